"""Connections that are not calls: real sockets, from two client addresses."""

import asyncio
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from bridge.core.limits import HITS, Limits
from bridge.http.connection_guard import (
    GRACE_SECONDS,
    ConnectionGuard,
    GuardedConnection,
    secure_headers,
)
from tests.support.simulated_time import due
from tests.support.waiting import until

pytestmark = pytest.mark.both_loops

HERE = "127.0.0.1"
ELSEWHERE = "127.0.0.2"
QUICK = Limits(start_seconds=0.3, send_seconds=0.2)
GOOD_REQUEST = b"GET /hello HTTP/1.1\r\nHost: here\r\n\r\n"
UNFINISHED_REQUEST = (
    b"POST /hello HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\nFrom="
)
UPGRADE = (
    b"GET /media HTTP/1.1\r\nHost: here\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
BIG = 8 << 20


class GuardedServer:
    """A small server behind a connection guard."""

    def __init__(self, limits: Limits, trusted: Iterable[str] = ()) -> None:
        self.hits: Counter[str] = Counter()
        self.guard = ConnectionGuard(
            limits, [ip_network(it) for it in trusted], self._hit
        )
        self.port = 0
        self.bodies: list[str] = []
        """Bodies of the requests that were answered."""
        self.clients: list[tuple[str, bool]] = []
        """(client address, whether it is direct) of each request."""
        self.transport: asyncio.Transport | None = None
        """Of the last request for /events."""

    def _hit(self, limit: str) -> None:
        assert limit in HITS
        self.hits[limit] += 1

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.route("*", "/hello", self.hello),
                web.get("/big", self.big),
                web.get("/media", self.media),
                web.get("/events", self.events),
                web.get("/slow", self.slow),
                web.get("/broken", self.broken),
            ]
        )
        app.on_response_prepare.append(secure_headers)
        return app

    async def hello(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.text())
        self.clients.append(
            (self.guard.address_of(request), self.guard.is_direct(request))
        )
        return web.Response(text="hello")

    async def big(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(BIG))

    async def media(self, request: web.Request) -> web.WebSocketResponse:
        """Becomes a call with its first message; echoes every message."""
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        async for message in stream:
            self.guard.exempt_from_limits(request)
            await stream.send_str(message.data)
        return stream

    async def events(self, request: web.Request) -> web.StreamResponse:
        """An exempt stream that ends while its client has not read all of it."""
        self.guard.exempt_from_limits(request)
        self.transport = request.transport
        response = web.StreamResponse()
        await response.prepare(request)
        assert self.transport is not None
        while not self.transport.get_write_buffer_size():
            await response.write(bytes(4096))
        return response

    async def slow(self, request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.Response()

    async def broken(self, request: web.Request) -> web.Response:
        raise RuntimeError("ours to mend")

    async def empty(self) -> None:
        """Waits until no connection is left."""
        async with asyncio.timeout(3):
            while self.guard.waiting:  # noqa: ASYNC110 - nobody tells of the last
                await asyncio.sleep(0.01)


@asynccontextmanager
async def guarded_server(
    limits: Limits = QUICK, trusted: Iterable[str] = (), host: str = HERE
) -> AsyncIterator[GuardedServer]:
    """Checks that no connection, task, timer or error is left behind."""
    before = asyncio.all_tasks()
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    server = GuardedServer(limits, trusted)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    server.port = await server.guard.listen(runner, host, 0)
    try:
        yield server
    finally:
        since = time.monotonic()
        await server.guard.close()
        await runner.cleanup()
        await asyncio.sleep(0.01)
        assert time.monotonic() - since < 2, "closing took its time"
    assert errors == []
    assert server.guard.waiting == 0
    assert asyncio.all_tasks() <= before
    assert not [it for it in due(loop) if is_of_guard(it)]


def is_of_guard(timer: Callable[..., object]) -> bool:
    """Whether a connection or the guard has set it."""
    owner = getattr(timer, "__self__", None)
    aborts = getattr(timer, "__name__", "") == "abort"
    return aborts or isinstance(owner, GuardedConnection | ConnectionGuard)


@asynccontextmanager
async def client(
    port: int, send: bytes = b"", origin: str = HERE
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(
        HERE, port, local_addr=(origin, 0), limit=1 << 20
    )
    try:
        writer.write(send)
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> str:
    """The whole answer, until the connection is closed."""
    async with asyncio.timeout(3):
        return (await reader.read()).decode()


async def request_raw(port: int, *pieces: bytes) -> str:
    async with client(port) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        return await answer(reader)


async def good_request(port: int) -> float:
    """Seconds that a correct request takes."""
    since = time.monotonic()
    assert (await request_raw(port, GOOD_REQUEST)).endswith("hello")
    return time.monotonic() - since


@asynccontextmanager
async def flood(
    port: int, count: int, origin: str, send: bytes = b""
) -> AsyncIterator[list[socket.socket]]:
    """Connections that send only `send`."""
    sockets = []
    loop = asyncio.get_running_loop()
    try:
        for _ in range(count):
            it = socket.socket()
            it.setblocking(False)
            sockets.append(it)
            it.bind((origin, 0))
            await loop.sock_connect(it, (HERE, port))
            if send:
                await loop.sock_sendall(it, send)
        await asyncio.sleep(2 * GRACE_SECONDS)  # until the surplus is dropped
        yield sockets
    finally:
        for it in sockets:
            it.close()


# --- silent connections ---


@pytest.mark.parametrize("origin", [HERE, ELSEWHERE])
@pytest.mark.parametrize(
    "send",
    [b"", b"GET /hello HTT", UNFINISHED_REQUEST],
    ids=["idle", "half a head", "no body"],
)
async def test_a_thousand_silent_connections_keep_no_caller_out(
    origin: str, send: bytes
) -> None:
    """Callers are served at once, even from the address of the thousand connections."""
    limits = Limits()
    async with guarded_server(limits) as server, flood(server.port, 1000, origin, send):
        assert server.guard.waiting == limits.waiting_per_address
        assert await good_request(server.port) < 0.2
        assert server.hits["sockets_of_address"] >= 900
        assert server.hits["sockets"] == 0


async def test_connections_from_many_addresses_are_limited_in_total() -> None:
    """The total is limited too, and callers are still served at once."""
    limits = Limits(waiting_sockets=200, waiting_per_address=150)
    async with (
        guarded_server(limits) as server,
        flood(server.port, 140, HERE),
        flood(server.port, 140, ELSEWHERE, UPGRADE),
        flood(server.port, 140, "127.0.0.3"),
    ):
        assert server.guard.waiting == 200
        assert await good_request(server.port) < 0.2
        assert server.hits["sockets"] >= 220
        assert server.hits["sockets_of_address"] == 0


async def test_complete_requests_accepted_in_one_turn_are_answered() -> None:
    """Hundreds of connections may be accepted in one turn of the loop, each with a
    complete request: none is dropped unread, although the limit is ten."""
    async with guarded_server(
        Limits(waiting_sockets=100, waiting_per_address=10)
    ) as server:
        lines = []
        for _ in range(15):
            # Connected and written before the loop turns: all wait to be accepted.
            lines.append(socket.create_connection((HERE, server.port)))
            lines[-1].sendall(GOOD_REQUEST)
        answers = [await _answer_on(line) for line in lines]
        assert all(answer.endswith("hello") for answer in answers)
        assert not server.hits


async def _answer_on(line: socket.socket) -> str:
    line.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=line)
    try:
        async with asyncio.timeout(5):
            return (await reader.read()).decode()
    finally:
        writer.close()


async def test_a_connection_without_an_address_harms_no_other() -> None:
    """A client that was gone when it was accepted has no address any more: the event
    loop was blocked, and a proxy had given up. The proxy's requests are answered."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()  # it has no address either
    async with guarded_server(trusted=[HERE]) as server:

        def answering() -> web.RequestHandler:
            raise AssertionError("it sends no request")

        def new() -> GuardedConnection:
            return GuardedConnection(server.guard, answering)

        transport, _ = await loop.create_unix_connection(new, sock=ours)
        assert server.guard.waiting == 1
        await good_request(server.port)
        theirs.close()
        await server.empty()
        transport.close()

    assert server.bodies == [""]


async def test_a_trusted_proxy_is_not_limited_as_one_client() -> None:
    """A trusted proxy carries the traffic of all clients, so it is not limited as
    one."""
    limits = Limits(waiting_per_address=5)
    async with (
        guarded_server(limits, ["127.0.0.2/32"]) as server,
        flood(server.port, 20, ELSEWHERE),
    ):
        assert await good_request(server.port) < 0.2
        assert server.guard.waiting == 20
        assert not server.hits


async def test_calls_are_not_counted() -> None:
    """Running calls are never dropped, however many connections come in."""
    limits = Limits(waiting_sockets=3, waiting_per_address=3)
    async with guarded_server(limits) as server:
        url = f"ws://{HERE}:{server.port}/media"
        async with connect(url) as one, connect(url) as other:
            for it in (one, other):
                await it.send("start")
                assert await it.recv() == "start"
            assert server.guard.waiting == 0
            async with flood(server.port, 20, HERE):
                for it in (one, other):
                    await it.send("media")
                    assert await it.recv() == "media"


async def test_streams_without_a_start_are_dropped() -> None:
    """Handshakes without a `start` keep no caller out; the oldest is dropped first."""
    limits = Limits(waiting_sockets=3)
    async with guarded_server(limits) as server:
        url = f"ws://{HERE}:{server.port}/media"
        async with connect(url) as first, connect(url), connect(url):
            async with connect(url) as last:
                await asyncio.sleep(2 * GRACE_SECONDS)
                await last.send("start")
                assert await last.recv() == "start"
            with pytest.raises(ConnectionClosed):
                await first.recv()
        assert server.hits["sockets"] == 1


async def test_a_dropped_connection_gets_503() -> None:
    """A client that was only slow learns that it may try again."""
    async with (
        guarded_server(Limits(waiting_sockets=1)) as server,
        client(server.port, b"GET") as (reader, _),
        client(server.port),
    ):
        assert (await answer(reader)).startswith("HTTP/1.1 503 ")


# --- slow clients ---


@pytest.mark.parametrize("send", [b"", b"GET /hello HTTP/1.1\r\nHost: h\r\n"])
async def test_an_incomplete_request_gets_408(send: bytes) -> None:
    """The client gets 408 when the time is over."""
    async with guarded_server() as server:
        since = time.monotonic()
        assert (await request_raw(server.port, send)).startswith("HTTP/1.1 408 ")
        assert 0.2 < time.monotonic() - since < 1
        assert server.hits == {"request_slow": 1}
        await server.empty()


async def test_slow_loris() -> None:
    """Many headers, each in time, do not extend the time for the whole head."""
    async with (
        guarded_server() as server,
        client(server.port, b"GET / HTTP/1.1\r\n") as (_, writer),
    ):
        since = time.monotonic()
        while server.hits["request_slow"] == 0:
            assert time.monotonic() - since < 1
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.02)


async def test_one_request_per_connection() -> None:
    """The connection is closed after its answer, so a second request cannot be slow."""
    async with guarded_server() as server:
        text = await request_raw(server.port, GOOD_REQUEST + GOOD_REQUEST)
        assert text.count("hello") == 1
        assert "\r\nConnection: close\r\n" in text


async def test_an_answer_that_is_not_read_is_given_up() -> None:
    """The answer is given up early; otherwise it would stay in memory until TCP gives
    up."""
    limits = replace(QUICK, start_seconds=5)
    async with guarded_server(limits) as server:
        it = socket.socket()
        it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        it.connect((HERE, server.port))
        it.sendall(GOOD_REQUEST.replace(b"hello", b"big"))
        await asyncio.sleep(0.1)
        assert server.guard.waiting == 1
        await server.empty()
        assert server.hits == {"answer_slow": 1}
        it.close()


async def test_a_stream_whose_end_is_not_read_is_given_up() -> None:
    """An exempt connection has no limit while its request runs. Afterwards it has one:
    the descriptor does not stay open until TCP gives up."""
    async with guarded_server() as server:
        with socket.socket() as it:
            it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            it.connect((HERE, server.port))
            it.sendall(GOOD_REQUEST.replace(b"hello", b"events"))
            await until(lambda: server.hits["answer_slow"], 3, "the limit")
            assert server.transport is not None
            line = server.transport.get_extra_info("socket")
            await until(lambda: line.fileno() == -1, 1, "the close")


async def test_an_answer_that_is_read_slowly_is_sent_completely() -> None:
    """A client on a slow network gets the whole answer."""
    async with (
        guarded_server(replace(QUICK, send_seconds=0.4)) as server,
        client(server.port, GOOD_REQUEST.replace(b"hello", b"big")) as (reader, _),
    ):
        got = 0
        async with asyncio.timeout(10):
            while piece := await reader.read(1 << 18):
                got += len(piece)
                await asyncio.sleep(0.04)  # longer in total than `send_seconds`
        assert got > BIG
        assert not server.hits


# --- request heads ---


@pytest.mark.parametrize(
    "fields",
    [
        b"X: y\r\n" * 5000,
        b"X: " + b"y" * 20_000 + b"\r\n",
        b"X" * 20_000 + b": y\r\n",
    ],
    ids=["many", "a long one", "a long name"],
)
@pytest.mark.parametrize("split", [False, True])
async def test_a_head_that_is_too_large_gets_431(fields: bytes, split: bool) -> None:
    """The client gets 431 as soon as the limit is reached, and the limit is counted."""
    pieces = [fields[i : i + 1000] for i in range(0, len(fields), 1000)]
    async with guarded_server() as server:
        head = GOOD_REQUEST[:-2]
        text = await request_raw(
            server.port, head, *(pieces if split else [fields]), b"\r\n"
        )
        assert text.startswith("HTTP/1.1 431 ")
        assert server.hits == {"header_bytes": 1}
        assert not server.bodies


async def test_a_header_line_that_is_too_long_for_aiohttp_gets_431() -> None:
    """If a single line is too long for aiohttp, the answer is the same."""
    async with guarded_server(replace(QUICK, header_bytes=64 * 1024)) as server:
        long = b"X: " + b"y" * 20_000 + b"\r\n\r\n"
        assert (await request_raw(server.port, GOOD_REQUEST[:-2] + long)).startswith(
            "HTTP/1.0 431 "
        )
        assert server.hits == {"header_bytes": 1}


async def test_a_head_byte_by_byte() -> None:
    """A request that arrives byte by byte is answered, with its body."""
    request = (
        b"POST /hello HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n"
        b"X: \xe4\r\n\r\nabcde"
    )
    async with guarded_server() as server:
        pieces = [request[i : i + 1] for i in range(len(request))]
        assert (await request_raw(server.port, *pieces)).endswith("hello")
        assert server.bodies == ["abcde"]


@pytest.mark.parametrize(
    "send",
    [
        b"GET /hello HTTP/1.1\nHost: here\n\n",
        b"GET /hello HTTP/1.1\r\nHost: here\n\r\n",
        b"GET /hello HTTP/1.1\r\nX: y\n\nGET /hello HTTP/1.1\r\n\r\n",
        b"\r\n\r\n" + GOOD_REQUEST,
        b"\r\n" + GOOD_REQUEST,
        b"\n" + GOOD_REQUEST,
        b" " + GOOD_REQUEST,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /hello\r\n\r\n",
        b"GET /hello HTTP/0.9\r\n\r\n",
        b"GET  /hello HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost : here\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: here\r\n X: folded\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: here\rX: y\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: he\x00re\r\n\r\n",
        b"POST /hello HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /hello HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n"
        b"Content-Length: 5\r\n\r\nabcde",
        b"POST /hello HTTP/1.1\r\nHost: here\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST /hello HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: xchunked\r\n\r\n",
    ],
)
async def test_malformed_requests_get_400(
    send: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that two parsers may read differently is refused. It is not logged, and
    the answer does not name the server's software."""
    async with guarded_server() as server:
        text = await request_raw(server.port, send)
        assert text.startswith(("HTTP/1.1 400 ", "HTTP/1.0 400 "))
        assert "\r\nServer: bridge\r\n" in text
        assert not server.bodies
    assert not caplog.records


async def test_expect_100() -> None:
    """A client that sends `Expect` gets `100 Continue` before it sends its body."""
    async with guarded_server() as server:
        request = (
            b"POST /hello HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        async with client(server.port, request) as (reader, writer):
            assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"abcde")
            assert (await answer(reader)).endswith("hello")


async def test_http_1_0() -> None:
    """Old health checks work, and their connections are closed."""
    async with guarded_server() as server:
        text = await request_raw(
            server.port, b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        )
        assert text.startswith("HTTP/1.0 200 ")
        assert "keep-alive" not in text


async def test_data_sent_together_with_a_handshake_arrives() -> None:
    """A client that sends its first message together with the handshake loses
    nothing."""
    async with guarded_server() as server:
        masked = b"\x81\x85\x00\x00\x00\x00start"
        async with client(server.port, UPGRADE + masked) as (reader, _):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert b"Connection: close" not in head
            assert await reader.readexactly(7) == b"\x81\x05start"


# --- clients that leave ---


@pytest.mark.parametrize(
    "send",
    [b"", b"GET", GOOD_REQUEST, UPGRADE, GOOD_REQUEST.replace(b"hello", b"slow")],
    ids=["nothing", "half", "request", "stream", "waiting"],
)
async def test_reset_connections_leave_nothing_behind(
    send: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Reset connections leave neither a socket nor a log line behind."""
    async with guarded_server() as server:
        async with flood(server.port, 50, HERE, send) as sockets:
            for it in sockets:
                linger = struct.pack("ii", 1, 0)  # RST
                it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await server.empty()
        assert await good_request(server.port) < 0.2
    assert not caplog.records


async def test_a_half_closed_connection_is_dropped() -> None:
    """A client that closes its sending side before the request is complete is
    dropped."""
    async with (
        guarded_server(Limits()) as server,
        client(server.port, b"GET") as (_, writer),
    ):
        writer.write_eof()
        await server.empty()


async def test_closing_drops_connections_without_a_request() -> None:
    """A shutdown does not wait for clients that have sent no request."""
    async with guarded_server(Limits()) as server:
        slow = GOOD_REQUEST.replace(b"hello", b"slow")
        async with flood(server.port, 20, HERE), client(server.port, slow):
            await asyncio.sleep(0.05)
            assert server.guard.waiting == 21
            await server.guard.close()
            assert server.guard.waiting == 1
            with pytest.raises(OSError):
                await good_request(server.port)


async def test_an_address_in_use_raises_oserror() -> None:
    """The error is raised when the server starts."""
    async with guarded_server() as server, guarded_server() as other:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        with pytest.raises(OSError):
            await other.guard.listen(runner, HERE, server.port)
        await runner.cleanup()


async def test_a_bug_in_a_handler_gets_500(caplog: pytest.LogCaptureFixture) -> None:
    """A bug is reported in the log and not in the answer."""
    async with guarded_server() as server:
        text = await request_raw(server.port, GOOD_REQUEST.replace(b"hello", b"broken"))
        assert text.startswith("HTTP/1.1 500 ")
        assert "mend" not in text
        assert "\r\nServer: bridge\r\n" in text
    assert "ours to mend" in caplog.text


# --- client addresses ---


class Accepted(asyncio.Transport):
    """A connection of a peer; the kernel of the tests may have no IPv6."""

    aborted = False

    def write(self, data: Any) -> None: ...

    def abort(self) -> None:
        self.aborted = True


async def test_an_ipv6_network_counts_as_one_client() -> None:
    """A /64 network counts as one client, because one subscriber has all of it."""
    subscriber = [f"2001:db8:0:1::{n}" for n in range(5)]
    peers = [*subscriber, "2001:db8:0:2::1", "2001:db8:0:3::1"]

    def no_handler() -> web.RequestHandler:
        raise AssertionError("no request has arrived")

    async with guarded_server(Limits(waiting_per_address=2)) as server:
        accepted = [Accepted({"peername": (peer, 40000, 0, 0)}) for peer in peers]
        connections = [GuardedConnection(server.guard, no_handler) for _ in peers]
        for connection, transport in zip(connections, accepted, strict=True):
            connection.connection_made(transport)
        await until(lambda: server.guard.waiting == 2 + 2)

        assert [it.aborted for it in accepted] == [True] * 3 + [False] * 4
        assert server.hits == {"sockets_of_address": 3}
        for connection in connections:
            connection.connection_lost(None)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ([], HERE),
        (["192.0.2.1"], "192.0.2.1"),
        (["198.51.100.7, 192.0.2.1"], "192.0.2.1"),
        (["198.51.100.7", "192.0.2.1"], "192.0.2.1"),
        (["198.51.100.7, 192.0.2.1, 10.1.2.3"], "192.0.2.1"),
        (["10.1.2.3"], "10.1.2.3"),
        (["192.0.2.1, nonsense"], HERE),
        (["192.0.2.1, nonsense, 10.1.2.3"], "10.1.2.3"),
        (["2001:db8::1"], "2001:db8::1"),
        (["::ffff:192.0.2.1, ::ffff:10.1.2.3"], "192.0.2.1"),
        ([""], HERE),
        ([","], HERE),
    ],
)
async def test_the_client_address_behind_trusted_proxies(
    forwarded: list[str], address: str
) -> None:
    """A client cannot hide its address with a header of its own."""
    headers = [("X-Forwarded-For", it) for it in forwarded]
    async with (
        guarded_server(trusted=[HERE, "10.0.0.0/8"]) as server,
        aiohttp.ClientSession() as http,
        http.get(f"http://{HERE}:{server.port}/hello", headers=headers) as it,
    ):
        assert it.status == 200
        assert server.clients == [(address, not forwarded)]


async def test_forwarded_headers_of_untrusted_peers_are_ignored() -> None:
    """Without a trusted proxy the header is ignored."""
    headers = {"x-forwarded-for": "192.0.2.1"}
    async with (
        guarded_server() as server,
        aiohttp.ClientSession() as http,
        http.get(f"http://{HERE}:{server.port}/hello", headers=headers) as it,
    ):
        assert it.status == 200
        assert server.clients == [(HERE, False)]


@pytest.mark.parametrize("path", ["/hello", "/nowhere"])
async def test_every_answer_has_the_security_headers(path: str) -> None:
    """A browser can do nothing with an answer, and no software version is revealed."""
    async with (
        guarded_server() as server,
        aiohttp.ClientSession() as http,
        http.get(f"http://{HERE}:{server.port}{path}") as it,
    ):
        assert it.headers["X-Content-Type-Options"] == "nosniff"
        assert it.headers["Cache-Control"] == "no-store"
        assert it.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in it.headers["Content-Security-Policy"]
        assert it.headers["Server"] == "bridge"
        assert it.headers["Connection"] == "close"
