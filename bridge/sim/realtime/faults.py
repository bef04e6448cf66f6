"""What can befall a session of the fake model, on command or at a set hour.

A Fault is done to a session: `server.inject(faults.drop)` does it to all that are
open, `server.inject_next(faults.mute)` to the next one. Nothing here waits.
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
_FULL_BYTES = 256 * 1024  # more would only wait to be sent
_RESET = struct.pack("ii", 1, 0)  # lingering for 0 s turns a close into a reset


def drop(session: SessionContext) -> None:
    """The connection breaks: a TCP reset, no close frame."""
    session.connection.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, _RESET
    )
    session.abort("dropped")


def closing(code: int, reason: str = "") -> Fault:
    """The server closes with this code."""
    return partial(_close, code=code, reason=reason)


def expire(session: SessionContext) -> None:
    """The hour is over: the error, then close 1001 with the same words."""
    session.out.error(InvalidRequestError(EXPIRED, "session_expired"))
    _close(session, 1001, EXPIRED)


def freeze(session: SessionContext) -> None:
    """Neither reads nor sends nor answers pings, until `thaw`."""
    session.freeze()


def thaw(session: SessionContext) -> None:
    """It goes on where it was; what had been held meanwhile comes at once."""
    session.thaw()


def mute(session: SessionContext) -> None:
    """Says nothing any more, though it reads and answers pings."""
    session.out.muted = True


def saying(*frames: str | bytes) -> Fault:
    """It sends these, as they are, whatever they may be."""

    def say(session: SessionContext) -> None:
        for frame in frames:
            session.out.put(frame)

    return say


def flooding(make: Callable[[int], str], at_once: int = 100) -> Fault:
    """It sends without end, as fast as it is read: `make(n)` is the nth frame."""

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
    """Set the hours that the session's behaviour names."""
    behaviour = session.behaviour
    hours: list[tuple[float | None, Fault]] = [
        (behaviour.drop_after, drop),
        (behaviour.freeze_after, freeze),
        (behaviour.mute_after, mute),
        (behaviour.expire_after, expire),
    ]
    if behaviour.close_after is not None:
        seconds, code, reason = behaviour.close_after
        hours.append((seconds, closing(code, reason)))
    for at, fault in hours:
        if at is not None:
            session.later(at, partial(fault, session))
