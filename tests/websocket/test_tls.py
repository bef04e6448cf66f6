"""TLS at the model: real sockets, a real TLS server of asyncio."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from bridge.model.session import dial, dialled
from bridge.model.wire import ModelRefused
from bridge.websocket import model_connections
from bridge.websocket.model_connections import ModelClientConnection, TaskConnection
from bridge.websocket.text_socket import SocketEnd, TextSocket, Why
from bridge.websocket.tls import MAX_TICKETS, TlsTransport, tls_client
from tests.support.tls import server_context, trusted
from tests.support.waiting import until
from tests.websocket.test_connections import Listener

pytestmark = pytest.mark.both_loops

LOST = SocketEnd(Why.LOST, 1006)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificate")
    server_context(made)
    return made


@pytest.fixture(autouse=True)
def trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("https_proxy", "wss_proxy", "socks_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with trusted(folder, monkeypatch):
        yield


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def model(
    context: ssl.SSLContext, port: int = 0, handler: object = echo
) -> AsyncIterator[int]:
    """The port of a model that sends back what it gets."""
    async with serve(
        handler,  # type: ignore[arg-type]
        *("127.0.0.1", port),
        ssl=context,
        max_size=None,
        close_timeout=0.2,
    ) as server:
        yield int(next(iter(server.sockets)).getsockname()[1])


async def opened(port: int) -> ModelClientConnection:
    made = await dial(f"wss://127.0.0.1:{port}", {})
    assert isinstance(made, ModelClientConnection)
    assert isinstance(made.transport, TlsTransport)
    return made


def resumed(connection: ClientConnection) -> bool:
    return bool(connection.transport.get_extra_info("ssl_object").session_reused)


async def closed(connection: ModelClientConnection) -> None:
    await connection.close_bounded()
    await until(connection.connection_lost_waiter.done)


# --- messages ---


async def test_messages_of_all_sizes_pass(folder: Path) -> None:
    """The largest event that the bridge reads, and the smallest, arrive whole and in
    order, although TLS cuts them into records."""
    texts = ["a" * size for size in (0, 1, 125, 16_384, 16_385, 70_000, 3_000_000)]
    async with model(server_context(folder)) as port:
        connection = await opened(port)
        listener = Listener()
        connection.listen(listener)
        for text in texts:
            connection.send_text(text)
        await until(lambda: len(listener.got) == len(texts))

        assert listener.got == texts
        await closed(connection)


async def test_records_in_pieces_are_put_together(folder: Path) -> None:
    """A network that delivers a few bytes at a time loses no event."""

    async def in_pieces(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                for start in range(0, len(data), size):
                    writer.write(data[start : start + size])
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()

    async def pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )
        await asyncio.gather(
            in_pieces(reader, out, 65536), in_pieces(there, writer, 50)
        )

    async with model(server_context(folder)) as port:
        proxy = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        async with proxy:
            connection = await opened(proxy.sockets[0].getsockname()[1])
            listener = Listener()
            connection.listen(listener)
            texts = [str(n) * 40 for n in range(50)]
            for text in texts:
                connection.send_text(text)
            await until(lambda: len(listener.got) == len(texts))

            assert listener.got == texts
            await closed(connection)


# --- sessions that are resumed ---


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_the_next_connection_resumes_the_session(
    version: str, folder: Path
) -> None:
    """A redial, also after a connection that broke, needs half the CPU, and the
    trusted certificates are loaded once."""
    server = server_context(folder)
    server.maximum_version = ssl.TLSVersion[version]
    async with model(server) as port:
        first = await opened(port)
        assert not resumed(first)
        first.abort()
        await until(first.connection_lost_waiter.done)

        second = await opened(port)
        assert resumed(second)
        context = second.transport.get_extra_info("ssl_object").context
        assert context is tls_client().context
        await closed(second)


async def test_a_ticket_is_used_once(folder: Path) -> None:
    """Two calls that dial at the same time do not share one (RFC 8446, C.4)."""
    async with model(server_context(folder)) as port:
        await closed(await opened(port))
        second, third = await opened(port), await opened(port)

        assert (resumed(second), resumed(third)) == (True, False)
        await closed(second)
        await closed(third)


async def test_a_server_that_gives_no_new_ticket_gets_the_old_one_once(
    folder: Path,
) -> None:
    context = server_context(folder)
    async with model(context) as port:
        await closed(await opened(port))
        context.num_tickets = 0
        second = await opened(port)
        assert resumed(second)
        await closed(second)
        third = await opened(port)

        assert not resumed(third)
        await closed(third)


async def test_a_server_that_has_forgotten_its_tickets_still_works(
    folder: Path,
) -> None:
    """The model's vendor restarts a server: the redial has a full handshake."""
    async with model(server_context(folder)) as port:
        await closed(await opened(port))
    async with model(server_context(folder), port):
        second = await opened(port)
        assert not resumed(second)
        await closed(second)
        third = await opened(port)
        assert resumed(third)
        await closed(third)


async def test_a_session_is_not_resumed_for_another_name(folder: Path) -> None:
    """The host's name is checked at a redial, too: a resumed session has no
    certificate."""
    async with model(server_context(folder)) as port:
        await closed(await opened(port))
        with pytest.raises(ModelRefused) as refused:
            await dialled(dial, f"wss://localhost:{port}", {})

        assert refused.value.fatal
        assert refused.value.why == "unreachable (SSLCertVerificationError)"


async def test_the_tickets_are_bounded(folder: Path) -> None:
    """Memory does not grow with the number of calls."""
    async with model(server_context(folder)) as port:
        connection = await opened(port)
        session = connection.transport.get_extra_info("ssl_object").session
        for n in range(2 * MAX_TICKETS):
            tls_client().keep("127.0.0.1", n, session)

        assert tls_client().take("127.0.0.1", 0) is None
        assert tls_client().take("127.0.0.1", 2 * MAX_TICKETS - 1) is session
        await closed(connection)


async def test_a_proxy_of_the_environment_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a company's proxy, the model is dialled as before, with the certificates
    that are loaded already."""
    asked: list[bytes] = []

    async def pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there, out = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pass_on(reader, out), pass_on(there, writer))

    async with model(server_context(folder)) as port:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        async with server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            monkeypatch.setenv("https_proxy", address)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            connection = await dial(f"wss://127.0.0.1:{port}", {})
            assert isinstance(connection, ModelClientConnection)
            context = connection.transport.get_extra_info("ssl_object").context
            assert context is tls_client().context
            await closed(connection)

    assert asked[0].startswith(b"CONNECT 127.0.0.1:")


# --- connections that fail ---


async def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path) -> None:
    """No caller's audio goes to a server that only claims to be the model."""
    async with model(server_context(tmp_path)) as port:
        with pytest.raises(ModelRefused) as refused:
            await dialled(dial, f"wss://127.0.0.1:{port}", {})

        assert refused.value.why == "unreachable (SSLCertVerificationError)"


@pytest.mark.parametrize("how", ["closes", "resets", "sends something else"])
async def test_a_handshake_that_fails_is_tried_again(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The call dials again, and the log has no error of asyncio."""

    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if how == "resets":
            writer.transport.abort()
        elif how == "sends something else":
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(fail, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with caplog.at_level(logging.WARNING), pytest.raises(ModelRefused) as refused:
            await dialled(dial, f"wss://127.0.0.1:{port}", {})
        gc.collect()

        assert not refused.value.fatal
        assert not caplog.records


async def test_a_dial_that_is_cancelled_leaves_no_socket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller hangs up while a server does not answer the handshake."""
    ended = asyncio.Event()

    async def ignore(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                begun.set()
        ended.set()
        writer.close()

    begun = asyncio.Event()
    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server, asyncio.timeout(20):
        port = server.sockets[0].getsockname()[1]
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(dial(f"wss://127.0.0.1:{port}", {}))
            await begun.wait()
            task.cancel()
        await ended.wait()
        assert not caplog.records


@pytest.mark.parametrize("how", ["closes", "resets", "sends a broken record"])
async def test_the_end_of_a_connection_is_reported(how: str, folder: Path) -> None:
    """The call dials again at once. asyncio logs nothing about it."""

    async def end(connection: ServerConnection) -> None:
        await connection.send("last")
        line = connection.transport.get_extra_info("socket")
        if how == "sends a broken record":
            with socket.socket(fileno=line.fileno()) as raw:
                raw.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
                raw.detach()
            await connection.wait_closed()
        elif how == "resets":
            await connection.recv()
            connection.transport.abort()
        else:
            connection.transport.close()

    async with model(server_context(folder), handler=end) as port:
        connection = await opened(port)
        listener = Listener()
        connection.listen(listener)
        await until(lambda: listener.got)
        connection.send_text("go")
        await until(lambda: len(listener.got) == 2)

        assert listener.got == ["last", LOST]
        await until(connection.connection_lost_waiter.done)


async def test_the_closing_handshake(folder: Path) -> None:
    """The model sees a normal end, not a broken connection."""
    codes: list[int | None] = []

    async def note(connection: ServerConnection) -> None:
        await connection.wait_closed()
        codes.append(connection.close_code)

    async with model(server_context(folder), handler=note) as port:
        await closed(await opened(port))
        await until(lambda: codes)

        assert codes == [1000]


# --- a model that is slow, or does not read ---


class SlowLine:
    """A network between the bridge and the model. It passes everything on until
    `slow`, then takes 4 kB now and then, until `stop`."""

    def __init__(self, port: int) -> None:
        self._model = port
        self._is_slow = self._stopped = False
        self.taken = 0

    def slow(self) -> None:
        self._is_slow = True

    def stop(self) -> None:
        self._stopped = True

    async def run(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with (await loop.sock_accept(listener))[0] as client, socket.socket() as there:
            client.setblocking(False)
            there.setblocking(False)
            await loop.sock_connect(there, ("127.0.0.1", self._model))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._down(there, client))
                both.create_task(self._up(client, there))

    async def _down(self, there: socket.socket, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(there, 65536):
            await loop.sock_sendall(client, data)

    async def _up(self, client: socket.socket, there: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopped:
            data = await loop.sock_recv(client, 4096)
            if self._is_slow:
                self.taken += len(data)
                await asyncio.sleep(0.02)
            else:
                await loop.sock_sendall(there, data)


@asynccontextmanager
async def slow_line(model_port: int) -> AsyncIterator[tuple[SlowLine, int]]:
    line = SlowLine(model_port)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(line.run(listener))
            yield line, listener.getsockname()[1]
            task.cancel()


@pytest.mark.parametrize("own", [False, True], ids=["bridge", "user's connector"])
async def test_a_slow_model_that_reads_is_not_stuck(
    own: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a slow model reads is seen below TLS: its call keeps the connection. One
    that reads nothing is still noticed."""
    monkeypatch.setattr(model_connections, "SEND_SECONDS", 0.5)
    async with (
        model(server_context(folder)) as port,
        slow_line(port) as (line, port),
        asyncio.TaskGroup() as tasks,
    ):
        url = f"wss://127.0.0.1:{port}"
        made: ClientConnection
        sock: TextSocket
        if own:
            context = tls_client().context
            made = await connect(url, ssl=context, compression=None)
            sock = TaskConnection(made, lambda work, _: tasks.create_task(work))
        else:
            sock = made = await opened(port)
        listener = Listener()
        sock.listen(listener)
        line.slow()
        while not sock.is_paused:
            sock.send_text("x" * 100_000)
            await asyncio.sleep(0)
        sock.send_text("x" * 1_000_000)
        await asyncio.sleep(1.5)
        assert listener.got == [], f"the model took {line.taken} bytes"
        line.stop()
        await until(lambda: listener.got)
        assert listener.got == [SocketEnd(Why.STUCK)]
        sock.leave()
        made.transport.abort()
        await until(made.connection_lost_waiter.done)
