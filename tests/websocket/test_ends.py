"""The end of a connection, over real sockets with small buffers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from bridge.websocket.direct_connection import PhoneConnection
from bridge.websocket.model_connections import ModelClientConnection
from bridge.websocket.text_socket import SocketEnd, Why
from tests.support.waiting import until
from tests.websocket.test_connections import MOST, Listener

pytestmark = pytest.mark.both_loops

LOST = SocketEnd(Why.LOST, 1006)


@asynccontextmanager
async def unread(
    at_least: int, stuck_seconds: float = 60.0
) -> AsyncIterator[tuple[PhoneConnection, Listener, socket.socket]]:
    """A connection with data that its peer does not read."""
    made: list[PhoneConnection] = []

    def connection() -> PhoneConnection:
        phone = PhoneConnection(ServerProtocol(state=OPEN, max_size=MOST))
        phone.set_limits(
            stuck_seconds=stuck_seconds, max_unsent=10**7, max_message=MOST
        )
        phone.response = object()  # type: ignore[assignment]
        made.append(phone)
        return phone

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1")
    server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(server.sockets[0].getsockname())
        await until(lambda: made and hasattr(made[0], "transport"))
        [phone], listener = made, Listener()
        phone.listen(listener)
        while phone.transport.get_write_buffer_size() < at_least:
            phone.send_text("x" * 1000)
            await asyncio.sleep(0)
        try:
            yield phone, listener, peer
        finally:
            if not phone.connection_lost_waiter.done():
                phone.transport.abort()
            server.close()


async def test_the_end_of_the_peers_data_is_reported_at_once() -> None:
    """A caller whose connection broke is waited for at once, and not after a minute
    without frames, although data waits that the peer does not read."""
    async with unread(20_000) as (phone, listener, peer):
        assert not phone.is_paused
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: listener.got, 2.0, "the end")

        assert listener.got == [LOST]


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_half_closed_peer_that_does_not_read_leaves_no_socket(how: str) -> None:
    """Neither the socket nor its data stays in memory after the call."""
    async with unread(20_000) as (phone, _, peer):
        peer.shutdown(socket.SHUT_WR)
        await until(phone.transport.is_closing)
        if how == "close":
            await phone.close_bounded()
        phone.abort()
        await until(phone.connection_lost_waiter.done, 2.0, "the socket's end")


async def test_closing_a_connection_that_has_closed_itself_raises_nothing() -> None:
    """A slow caller's connection ends after the rest was sent: the call waits for the
    next stream, and does not fail with an error of asyncio's transport."""
    async with unread(20_000) as (phone, _, peer), asyncio.TaskGroup() as tasks:
        peer.shutdown(socket.SHUT_WR)
        await until(phone.transport.is_closing)
        tasks.create_task(phone.close_bounded())
        await asyncio.sleep(0)
        peer.settimeout(0)
        while not phone.connection_lost_waiter.done():
            try:
                peer.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        await phone.close_bounded()
        phone.abort()


async def test_a_spare_connection_stays_alive_until_it_is_used() -> None:
    """A new session is dialled before the old one ends, and waits for a quiet moment.
    Pings are answered and pongs are read meanwhile, although an event waits."""

    async def serve_model(model: ServerConnection) -> None:
        await model.send("session.created")
        await model.wait_closed()

    async with (
        serve(serve_model, "127.0.0.1", 0, ping_interval=0.1, ping_timeout=0.2) as here,
        connect(
            f"ws://127.0.0.1:{next(iter(here.sockets)).getsockname()[1]}",
            create_connection=ModelClientConnection,
            compression=None,
            ping_interval=0.1,
            ping_timeout=0.2,
        ) as spare,
    ):
        assert isinstance(spare, ModelClientConnection)
        await asyncio.sleep(1.0)
        listener = Listener()
        spare.listen(listener)
        await until(lambda: listener.got)
        await asyncio.sleep(0)

        assert listener.got == ["session.created"]
        assert spare.protocol.state is OPEN
