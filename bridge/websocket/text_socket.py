"""The contract of a WebSocket that carries text: its owner listens, sends, and leaves.

The sockets are in direct_connection.py and model_connections.py. `begin` and `failing`
are for listeners.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

StartTask = Callable[[Coroutine[None, None, None], str], asyncio.Task[None]]
"""Starts a task of the call."""


class Why(StrEnum):
    """Why a socket has ended."""

    CLOSED = "closed"
    """The peer closed it with code 1000 or 1001."""
    LOST = "lost"
    """The connection broke, or the peer closed it with another code."""
    STUCK = "stuck"
    """The peer does not read: it took nothing for `stuck_seconds`, or too much data
    waits to be sent."""
    TOO_LARGE = "too large"
    """A message was larger than the limit."""
    TOO_MANY = "too many"
    """The peer sent too many pings, pongs, or frames of one message."""
    BROKEN = "broken"
    """The peer broke the WebSocket protocol."""


@dataclass(frozen=True, slots=True)
class SocketEnd:
    """`code`: of the peer's close frame; 1006 if there was none; None if the bridge
    ended the connection."""

    why: Why
    code: int | None = None


class SocketListener(Protocol):
    """The owner of a socket. None of these methods waits or raises an exception."""

    def socket_message(self, text: str | bytes) -> None:
        """A message, in the callback in which it arrives. bytes: a binary message."""

    def socket_ended(self, end: SocketEnd) -> None:
        """No more messages come, and none are sent. Called once."""

    def socket_resumed(self, seconds: float) -> None:
        """The socket accepts data again, which it did not for `seconds`."""


class TextSocket(Protocol):
    """A WebSocket that is open."""

    @property
    def is_paused(self) -> bool:
        """Data waits in the transport's buffer for the peer to read."""

    def listen(
        self, listener: SocketListener, first: Iterable[str | bytes] = ()
    ) -> None:
        """Hands all messages to the listener: `first`, those that have arrived, then
        each that arrives. The first call of the listener comes after this returns.
        Replaces the listener before."""

    def hold(self) -> None:
        """Takes the listener away; the messages wait, within limits, for the next."""

    def send_text(self, *texts: str) -> None:
        """Writes messages to the transport, in one piece: each write is a system call.
        A socket that has ended, or is left, drops them."""

    def leave(self) -> None:
        """From now on, calls no listener and sends nothing. `close_bounded` must
        follow."""

    async def close_bounded(self, code: int = 1000) -> None:
        """Closes the connection within CLOSE_SECONDS, and breaks it if that does not
        succeed or is cancelled. Safe to call twice; raises nothing."""

    def abort(self) -> None:
        """Breaks the connection at once. Safe to call twice."""


async def failing(error: Exception) -> None:
    """A task that fails with an error that a listener has caught."""
    raise error


def begin(
    start_task: StartTask, work: Coroutine[None, None, None], name: str
) -> asyncio.Task[None] | None:
    """Starts a task of the call. None: an error is ending the call, whose TaskGroup
    starts no more tasks; the call then closes its sockets itself."""
    try:
        return start_task(work, name)
    except RuntimeError:
        work.close()  # before Python 3.13, the TaskGroup does not
        return None
