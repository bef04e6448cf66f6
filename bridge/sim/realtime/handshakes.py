"""What a handshake with the fake model meets before there is a session.

Orders are kept in the refusal given, one for each handshake; with none left, the
handshake is taken as usual.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from websockets.asyncio.server import ServerConnection

# OpenAI's `error.code` by HTTP status; others have none.
ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class HandshakeRefusal:
    """An HTTP answer in the place of 101."""

    status: int
    code: str | None = None


class HandshakeFaults:
    """Orders for the handshakes to come."""

    def __init__(self) -> None:
        self._next: deque[HandshakeRefusal | None] = deque()  # None: no answer at all
        self._unanswered: set[asyncio.Future[None]] = set()

    @property
    def unanswered(self) -> int:
        """Handshakes that wait for an answer now."""
        return len(self._unanswered)

    def answer(self, status: int, times: int = 1, code: str | None = None) -> None:
        """The next handshakes get this status; `code` when not the status's own, such
        as 429 "insufficient_quota"."""
        refusal = HandshakeRefusal(status, code or ERROR_CODES.get(status))
        self._next.extend([refusal] * times)

    def leave_unanswered(self, times: int = 1) -> None:
        """The next handshakes are taken by TCP and never answered."""
        self._next.extend([None] * times)

    def reset(self) -> None:
        """Forget the orders; connections that hang are broken off."""
        self._next.clear()
        for released in self._unanswered:
            released.set_result(None)

    async def on_handshake(
        self, connection: ServerConnection
    ) -> HandshakeRefusal | None:
        """One handshake is here: what it is refused with, if it is. May hang."""
        if not self._next:
            return None
        refusal = self._next.popleft()
        if refusal is not None:
            return refusal
        released = asyncio.get_running_loop().create_future()
        self._unanswered.add(released)
        try:
            await asyncio.wait(
                (released, connection.connection_lost_waiter),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._unanswered.discard(released)
        # The one way in which websockets drops a handshake without answer or log.
        raise asyncio.CancelledError
