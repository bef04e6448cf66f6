"""Faults of the WebSocket handshake with the fake model, before a session exists.

Faults apply in the order in which they were added, one per handshake. Without any, the
handshake is accepted as usual.
"""

import asyncio
from collections import deque
from dataclasses import dataclass

from websockets.asyncio.server import ServerConnection

# OpenAI's `error.code` by HTTP status; other statuses have no code.
ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class HandshakeRefusal:
    """An HTTP error response instead of 101."""

    status: int
    code: str | None = None


class HandshakeFaults:
    """The faults of the next handshakes."""

    def __init__(self) -> None:
        # None: the handshake gets no answer
        self._next: deque[HandshakeRefusal | None] = deque()
        self._unanswered: set[asyncio.Future[None]] = set()

    @property
    def unanswered(self) -> int:
        """Number of handshakes that wait for an answer now."""
        return len(self._unanswered)

    def answer(self, status: int, times: int = 1, code: str | None = None) -> None:
        """Refuse the next `times` handshakes with this status.

        `code` replaces the status's usual error code, such as 429 "insufficient_quota".
        """
        refusal = HandshakeRefusal(status, code or ERROR_CODES.get(status))
        self._next.extend([refusal] * times)

    def leave_unanswered(self, times: int = 1) -> None:
        """Accept the TCP connections of the next handshakes, but send no answer."""
        self._next.extend([None] * times)

    def reset(self) -> None:
        """Remove all faults and drop the connections that got no answer."""
        self._next.clear()
        for released in self._unanswered:
            released.set_result(None)

    async def on_handshake(
        self, connection: ServerConnection
    ) -> HandshakeRefusal | None:
        """Apply the next fault to this handshake: returns its refusal, if any. May
        never return while the handshake is left unanswered."""
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
        # websockets has no other way to drop a handshake without an answer and a log
        # line.
        raise asyncio.CancelledError
