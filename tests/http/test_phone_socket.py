"""The WebSocket that takes an HTTP connection over from aiohttp."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from bridge.core.limits import Limits
from bridge.http import connection_guard
from bridge.http.connection_guard import ConnectionGuard, secure_headers
from bridge.http.phone_socket import UpgradedResponse, open_phone_socket
from bridge.websocket import frames
from bridge.websocket.direct_connection import PhoneConnection
from tests.support.waiting import until
from tests.websocket.test_connections import Listener

pytestmark = pytest.mark.both_loops

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LIMITS = Limits()


@asynccontextmanager
async def served(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[int]:
    """The port of a guarded server with this handler."""
    app = web.Application()
    app.on_response_prepare.append(secure_headers)
    app.add_routes([web.get("/", handle)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    guard = ConnectionGuard(LIMITS, [], lambda name: None)
    port = await guard.listen(runner, "127.0.0.1", 0)
    try:
        yield port
    finally:
        await guard.close()
        await runner.cleanup()


class Watcher(Listener):
    """Knows the files of the code that has handed it the latest message."""

    def socket_message(self, text: str | bytes) -> None:
        super().socket_message(text)
        self.passed = {it.filename for it in traceback.extract_stack()}


async def test_a_frame_of_a_call_does_not_pass_the_guard() -> None:
    """50 frames a second would cost a call each; the transport hands them to the
    WebSocket itself."""
    watcher = Watcher()

    async def handle(request: web.Request) -> web.StreamResponse:
        phone = open_phone_socket(request, LIMITS)
        phone.listen(watcher)
        await until(lambda: watcher.got == ["first"])
        await phone.close_bounded()
        return UpgradedResponse()

    async with served(handle) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frames.client_frame(b"first"))
        await until(lambda: watcher.got)
        writer.close()
        await writer.wait_closed()

    assert connection_guard.__file__ not in watcher.passed


async def test_a_flood_behind_the_handshake_is_made_to_wait() -> None:
    """While nobody listens, the bridge reads no more: a peer cannot fill the memory."""
    phones: list[PhoneConnection] = []
    checked, done = asyncio.Event(), asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        await checked.wait()  # the bridge checks the ticket, in the registry
        phones.append(open_phone_socket(request, LIMITS))
        await done.wait()
        phones[0].listen(Listener())
        await phones[0].close_bounded()
        return UpgradedResponse()

    async with served(handle) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE + frames.client_frame(b"x" * 20_000) * 400)
        await asyncio.sleep(0.2)
        checked.set()
        await until(lambda: phones)
        await asyncio.sleep(0.2)
        unread = len(phones[0]._unparsed)
        done.set()
        writer.close()

    assert unread < 1_000_000
