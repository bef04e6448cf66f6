"""The caller's WebSocket of a stream, on aiohttp. Reads, writes, and closes it within a
limit, whatever the peer does."""

import asyncio
import socket as sockets
import struct
import time
from collections.abc import AsyncIterator

from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from bridge.core import ProtocolError, twilio_messages
from bridge.core.limits import Limits, MessageRate

PING_SECONDS = 20.0
"""Interval of pings. A phone that vanishes without closing is noticed after one and a
half intervals. Twilio answers pings (uvicorn's defaults ping as often, and that
works)."""

PINGS_PER_SECOND = 10.0
"""Limit of a phone's pings and pongs per second, averaged over ten seconds. No phone
needs that many."""

CLOSE_SECONDS = 1.0
"""Time for a WebSocket to close: to send what still waits, and for Twilio to answer the
close frame."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: closing the socket resets the connection."""


class PhoneSocket:
    """The caller's socket of a stream (bridge.call.stream.Phone)."""

    def __init__(self, request: web.Request, limits: Limits) -> None:
        self.response = BoundedWebSocket(request, limits.message_bytes)
        self._request = request
        self._seconds = limits.send_seconds
        self._pings = MessageRate(PINGS_PER_SECOND)

    async def open(self) -> None:
        """Answers the handshake."""
        await self.response.prepare(self._request)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """ProtocolError if a message broke the protocol."""
        async for message in self.response:
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    yield message.data
                case WSMsgType.PING | WSMsgType.PONG:
                    if not self._pings.add(1.0, time.monotonic()):
                        raise ProtocolError(twilio_messages.TOO_MANY)
                    ping = message.type is WSMsgType.PING
                    if ping and not await self._answer_ping(message.data):
                        return
                case WSMsgType.ERROR:
                    if isinstance(message.data, WebSocketError):
                        if message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
                            raise ProtocolError(twilio_messages.TOO_LARGE)
                        raise ProtocolError("websocket protocol broken")

    async def _answer_ping(self, ping: bytes) -> bool:
        """False: the socket does not accept the pong, so the phone is gone."""
        try:
            async with asyncio.timeout(self._seconds):
                await self.response.pong(ping)
        except (ConnectionError, TimeoutError):
            return False
        return True

    async def send(self, text: str) -> None:
        await self.response.send_str(text)

    async def close(self, code: WSCloseCode = WSCloseCode.OK) -> None:
        await self.response.close(code=code)


class BoundedWebSocket(web.WebSocketResponse):
    """A WebSocket that is closed within CLOSE_SECONDS, whoever closes it: the call, or
    aiohttp itself after a protocol error and at the end of the request.

    aiohttp's own `close` waits until the peer has read what was sent before. A peer
    that reads nothing would keep the connection, and its descriptor, open for ever.
    """

    def __init__(self, request: web.Request, max_bytes: int) -> None:
        # Twilio offers no compression, and audio frames would not shrink.
        super().__init__(
            compress=False,
            autoping=False,  # PhoneSocket answers pings, within limits
            heartbeat=PING_SECONDS,
            timeout=CLOSE_SECONDS,
            max_msg_size=max_bytes,
        )
        self._opened_by = request
        self._close_begun = False

    async def close(
        self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True
    ) -> bool:
        """False: the socket is closed, or is being closed by another task."""
        if self._close_begun:
            return False
        self._close_begun = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                return await super().close(code=code, message=message, drain=drain)
        except TimeoutError:
            return True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            # The tasks that wait until the peer reads share one future in aiohttp, and
            # another of them was cancelled: not this one.
            return True
        finally:
            self._abort()

    def _abort(self) -> None:
        """Closes the connection at once, if it is still open."""
        transport = self._opened_by.transport
        if transport is None:
            return
        if transport.get_write_buffer_size():
            # The peer does not read. A FIN would wait in the kernel behind the unread
            # data, and the peer would still see a live stream; a reset does not wait.
            line = transport.get_extra_info("socket")
            line.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
        transport.abort()
