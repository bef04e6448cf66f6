"""What a handshake with the fake model meets before there is a session.

Orders are kept in the order given, one for each handshake; with none left, the
handshake is taken as usual.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from websockets.asyncio.server import ServerConnection

# OpenAI's `error.code` by HTTP status; others have none.
CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer in the place of 101."""

    status: int
    code: str | None = None


class Door:
    """Orders for the handshakes to come."""

    def __init__(self) -> None:
        self._orders: deque[Refusal | None] = deque()  # None: no answer at all
        self._hanging: set[asyncio.Future[None]] = set()

    @property
    def hanging(self) -> int:
        """Handshakes that wait for an answer now."""
        return len(self._hanging)

    def answer(self, status: int, times: int = 1, code: str | None = None) -> None:
        """The next handshakes get this status; `code` when not the status's own, such
        as 429 "insufficient_quota"."""
        refusal = Refusal(status, code or CODES.get(status))
        self._orders.extend([refusal] * times)

    def hang(self, times: int = 1) -> None:
        """The next handshakes are taken by TCP and never answered."""
        self._orders.extend([None] * times)

    def open(self) -> None:
        """Forget the orders; connections that hang are broken off."""
        self._orders.clear()
        for released in self._hanging:
            released.set_result(None)

    async def pass_through(self, connection: ServerConnection) -> Refusal | None:
        """One handshake is here: what it is refused with, if it is. May hang."""
        if not self._orders:
            return None
        order = self._orders.popleft()
        if order is not None:
            return order
        released = asyncio.get_running_loop().create_future()
        self._hanging.add(released)
        try:
            await asyncio.wait(
                (released, connection.connection_lost_waiter),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._hanging.discard(released)
        # The one way in which websockets drops a handshake without answer or log.
        raise asyncio.CancelledError
