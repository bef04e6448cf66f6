"""Faults of a session of the fake model, injected on command or at a set time.

A Fault is applied to one session: `server.inject(faults.drop)` applies it to all open
sessions, `server.inject_next(faults.mute)` to the next session. Nothing here waits.
"""

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from bridge.sim.realtime.client_events import InvalidRequestError
from bridge.sim.realtime.context import SessionContext

Fault: TypeAlias = Callable[[SessionContext], None]

EXPIRED = "Your session hit the maximum duration of 60 minutes."
_FULL_BYTES = 256 * 1024  # bytes; more would only wait in the write buffer
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a TCP reset


def drop(session: SessionContext) -> None:
    """Break the connection with a TCP reset, without a close frame."""
    session.connection.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, _RESET
    )
    session.abort("dropped")


def closing(code: int, reason: str = "") -> Fault:
    """A fault in which the server closes with this code."""
    return partial(_close, code=code, reason=reason)


def expire(session: SessionContext) -> None:
    """End the session at its maximum duration: the error, then close 1001 with the same
    text."""
    session.out.error(InvalidRequestError(EXPIRED, "session_expired"))
    _close(session, 1001, EXPIRED)


def freeze(session: SessionContext) -> None:
    """Stop reading, sending and answering pings, until `thaw`."""
    session.freeze()


def thaw(session: SessionContext) -> None:
    """Continue a frozen session; queued frames are sent at once."""
    session.thaw()


def mute(session: SessionContext) -> None:
    """Stop sending events, but keep reading and answering pings."""
    session.out.muted = True


def saying(*frames: str | bytes) -> Fault:
    """A fault in which the server sends these frames unchanged."""

    def say(session: SessionContext) -> None:
        for frame in frames:
            session.out.put(frame)

    return say


def flooding(make: Callable[[int], str], at_once: int = 100) -> Fault:
    """A fault in which the server sends without end, as fast as the client reads.

    `make(n)` is the nth frame.
    """

    def flood(session: SessionContext) -> None:
        session.spawn(_flood(session, make, at_once), "flood")

    return flood


async def _flood(
    session: SessionContext, make: Callable[[int], str], at_once: int
) -> None:
    transport = session.connection.transport
    for n in itertools.count():
        if n % at_once == 0:
            await asyncio.sleep(0)
        while transport.get_write_buffer_size() > _FULL_BYTES:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        session.out.put(make(n))


def _close(session: SessionContext, code: int, reason: str) -> None:
    session.closed = f"server {code} {reason}".rstrip()
    session.spawn(session.connection.close(code, reason), "close")


def schedule_faults(session: SessionContext) -> None:
    """Schedule the faults that the session's behaviour sets a time for."""
    behaviour = session.behaviour
    schedule: list[tuple[float | None, Fault]] = [
        (behaviour.drop_after, drop),
        (behaviour.freeze_after, freeze),
        (behaviour.mute_after, mute),
        (behaviour.expire_after, expire),
    ]
    if behaviour.close_after is not None:
        seconds, code, reason = behaviour.close_after
        schedule.append((seconds, closing(code, reason)))
    for at, fault in schedule:
        if at is not None:
            session.later(at, partial(fault, session))
