"""How a connection of `websockets` is closed within a limit, and why one has ended."""

import asyncio
import contextlib
import socket as sockets
import struct

from websockets.asyncio.connection import Connection
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode
from websockets.protocol import OPEN, Protocol

from bridge.websocket.text_socket import SocketEnd, Why

CLOSE_SECONDS = 1.0
"""Time for a connection to close: to send what still waits, and for the peer to answer
the close frame."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing the socket resets the connection."""

_NORMAL = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY)


async def close_bounded(connection: Connection, code: int) -> None:
    """Closes a connection within CLOSE_SECONDS, and breaks it if that does not succeed
    or is cancelled.

    The connection's own `close` waits without a limit until the peer has read what was
    sent before; its `close_timeout` begins only then.
    """
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if connection.protocol.state is OPEN:
                    await connection.close(code)
                # Not `close`, which aborts the transport even if it is gone, for which
                # asyncio raises AttributeError.
                await asyncio.shield(connection.connection_lost_waiter)
    finally:
        abort(connection)


def abort(connection: Connection) -> None:
    """Breaks the connection, unless its socket is closed. (The protocol's state is
    CLOSED at the peer's FIN, while data still waits.)"""
    if connection.connection_lost_waiter.done():
        return
    transport = connection.transport
    if transport.get_write_buffer_size():
        # The peer does not read. A FIN would wait in the kernel behind the unread data,
        # and the peer would still see a live stream; a reset does not wait.
        line = transport.get_extra_info("socket")
        if line is not None:
            with contextlib.suppress(OSError):  # the socket is closed already
                line.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
    transport.abort()


def end_of(protocol: Protocol) -> SocketEnd:
    """Why a connection that is closing or closed has ended."""
    error = protocol.parser_exc
    if isinstance(error, PayloadTooBig):
        return SocketEnd(Why.TOO_LARGE)
    if error is not None and not isinstance(error, EOFError):
        return SocketEnd(Why.BROKEN)
    received = protocol.close_rcvd
    code = int(received.code if received else CloseCode.ABNORMAL_CLOSURE)
    return SocketEnd(Why.CLOSED if code in _NORMAL else Why.LOST, code)
