"""Limits for TCP connections that are not calls: their number, and how long each lasts.

aiohttp limits neither the time of a request's head nor the number of connections. The
guard therefore accepts each connection itself, reads the head within limits, and only
then passes the data to aiohttp. After an upgrade, the transport itself hands the data
to the WebSocket: a running call costs the guard nothing.
"""

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from bridge.app.values import IpNetwork
from bridge.core.limits import Limits

LINGER_SECONDS = 1.0
"""Time in which a refused client can read the answer. If the connection were closed at
once, the data that the client still sends would make its TCP drop the answer unread
(RFC 9112, 9.6)."""

BACKLOG = 256
"""Connections that the kernel queues until they are accepted. All queued ones are
accepted at once. A SYN that finds the queue full is sent again after a second."""

GRACE_SECONDS = 0.05
"""For this time, up to twice as many connections as the limit allows may be open."""

NAME = "bridge"
"""Value of the `Server` header; aiohttp's own lists the versions of its parts."""

HEADERS = {
    "Server": NAME,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # One request per connection: no slow second request, and no request smuggled behind
    # the first.
    "Connection": "close",
}

_END = b"\r\n\r\n"
# The head's end, or a bare LF, at which a proxy and aiohttp may disagree on the end of
# a line.
_END_OR_BARE_LF = re.compile(rb"\r\n\r\n|[^\r]\n")
# Refuses TLS, and an empty line before the request, which would end the head early.
_FIRST_BYTE = re.compile(rb"[A-Z]")
# Refuses HTTP/0.9, which aiohttp would answer.
_FIRST_LINE = re.compile(rb"[A-Z]+ [^ \r\n]+ HTTP/1\.[01]\r\n")
# aiohttp refuses any other `Expect` with an answer that quotes the header, and does so
# before the token is checked.
_UNSUPPORTED_EXPECT = re.compile(
    rb"\r\nexpect[ \t]*:(?![ \t]*100-continue[ \t]*\r)", re.I
)

# Headers by which a proxy tells for whom it sends the request. Few proxies send none.
_PROXY_HEADERS = (
    *("forwarded", "x-forwarded-", "via", "x-real-ip", "x-client-ip"),
    *("cf-", "true-client-ip"),
)

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class ConnectionGuard:
    """The guard of one instance. `listen`, then `close`."""

    def __init__(
        self,
        limits: Limits,
        trusted: Sequence[IpNetwork],
        hit: Callable[[str], None],
    ) -> None:
        """`trusted`: the networks of this installation's proxies. `hit` is called with
        the name of each limit that is reached (bridge.core.limits.HITS)."""
        self.limits = limits
        self.hit = hit
        self._trusted = trusted
        self._waiting = _Connections()
        self._by_address: dict[str, _Connections] = {}
        self._drop_timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def listen(self, runner: web.AppRunner, host: str, port: int) -> int:
        """Accepts connections; returns the port. `runner` must be set up. OSError if
        the address cannot be used."""
        manager = runner.server
        assert manager is not None, "runner.setup() must come first"
        loop = asyncio.get_running_loop()

        def handler() -> web.RequestHandler:
            return RequestHandler(
                manager,
                loop=loop,
                access_log=None,
                # Closes the connection after one request even if `secure_headers` is
                # missing.
                keepalive_timeout=0,
                lingering_time=LINGER_SECONDS,
                # No client of the bridge has a reason to compress; a small body could
                # unpack to a huge one.
                auto_decompress=False,
                hit=self.hit,
            )

        self._server = await loop.create_server(
            lambda: GuardedConnection(self, handler), host, port, backlog=BACKLOG
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stops accepting, and closes the connections that have sent no complete head.
        The requests and calls that run are closed by the runner's `cleanup`, which must
        follow."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if self._drop_timer:
            self._drop_timer.cancel()
            self._drop_timer = None
        for connection in self._waiting.without_head():
            connection.drop()
        await asyncio.sleep(0)  # the transports close in the next turn of the loop

    @property
    def waiting(self) -> int:
        """Connections that are not calls."""
        return len(self._waiting)

    def exempt_from_limits(self, request: web.Request) -> None:
        """Exempts the request's connection from the limits, because it has become a
        call (or an event stream of a client that has the token)."""
        transport = request.transport
        connection = transport.get_protocol() if transport else None
        if isinstance(connection, GuardedConnection):
            connection.exempt()

    def address_of(self, request: web.Request) -> str:
        """The client's IP address: the peer's, or the one that this installation's
        proxies report. Empty if the connection is gone and the address unknown."""
        address = request.remote or ""
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        # The peer wrote the last hop, the last hop the one before, and so on. Whatever
        # stands before a hop that is not a trusted proxy may be forged.
        while hops and self._is_trusted_proxy(address):
            hop = _ip(hops.pop().strip())
            if hop is None:
                break
            address = str(hop)
        return address

    def is_direct(self, request: web.Request) -> bool:
        """The request passed no proxy, neither a trusted one nor any other."""
        return not any(
            name.lower().startswith(_PROXY_HEADERS) for name in request.headers
        )

    def is_from_unknown_proxy(self, request: web.Request) -> bool:
        """The request passed a proxy that is not one of this installation's."""
        peer = request.remote or ""
        return not (self.is_direct(request) or self._is_trusted_proxy(peer))

    def _is_trusted_proxy(self, address: str) -> bool:
        ip = _ip(address) if self._trusted else None
        return ip is not None and any(ip in network for network in self._trusted)

    # --- called by the connections ---

    def add(self, connection: "GuardedConnection", address: str) -> None:
        """Counts a new connection. At the limit the oldest one is dropped and not the
        newest: a legitimate call needs milliseconds, so it is always served."""
        if self._server is None:
            connection.drop()  # accepted while the server was closing
            return
        self._waiting.add(connection)
        maximum, group = self.limits.waiting_sockets, self._waiting
        # A client that was gone before it was accepted has no address.
        if address and not self._is_trusted_proxy(address):
            connection.client_network = client_network(address)
            per_client = self._by_address.setdefault(
                connection.client_network, _Connections()
            )
            per_client.add(connection)
            if len(per_client) > self.limits.waiting_per_address:
                maximum, group = self.limits.waiting_per_address, per_client
        if len(group) > 2 * maximum:
            self._drop_oldest()
        elif len(group) > maximum and self._drop_timer is None:
            # Hundreds of connections may be accepted in one turn of the loop. The
            # requests of the legitimate ones have arrived, but were not read yet.
            loop = asyncio.get_running_loop()
            self._drop_timer = loop.call_later(GRACE_SECONDS, self._drop_oldest)

    def head_received(self, connection: "GuardedConnection") -> None:
        """The connection's head is complete."""
        for group in self._groups(connection):
            group.head_received(connection)

    def remove(self, connection: "GuardedConnection") -> None:
        """Stops counting the connection. May be called twice."""
        for group in self._groups(connection):
            group.remove(connection)
            if not group and group is not self._waiting:
                del self._by_address[connection.client_network]

    def _groups(self, connection: "GuardedConnection") -> list["_Connections"]:
        per_client = self._by_address.get(connection.client_network)
        return [self._waiting] if per_client is None else [self._waiting, per_client]

    def _drop_oldest(self) -> None:
        """Drops the oldest connections until every limit is kept."""
        if self._drop_timer:
            self._drop_timer.cancel()
            self._drop_timer = None
        for group in list(self._by_address.values()):
            self._drop_until(
                group, self.limits.waiting_per_address, "sockets_of_address"
            )
        self._drop_until(self._waiting, self.limits.waiting_sockets, "sockets")

    def _drop_until(self, group: "_Connections", maximum: int, limit: str) -> None:
        while len(group) > maximum:
            self.hit(limit)
            connection = group.oldest()
            self.remove(connection)
            connection.drop()


class _Connections:
    """Connections without and with a complete head, each kind in order of arrival."""

    def __init__(self) -> None:
        self._without_head: dict[GuardedConnection, None] = {}
        self._with_head: dict[GuardedConnection, None] = {}

    def __len__(self) -> int:
        return len(self._without_head) + len(self._with_head)

    def add(self, connection: "GuardedConnection") -> None:
        self._without_head[connection] = None

    def head_received(self, connection: "GuardedConnection") -> None:
        del self._without_head[connection]
        self._with_head[connection] = None

    def remove(self, connection: "GuardedConnection") -> None:
        self._without_head.pop(connection, None)
        self._with_head.pop(connection, None)

    def without_head(self) -> list["GuardedConnection"]:
        return list(self._without_head)

    def oldest(self) -> "GuardedConnection":
        """The oldest of the larger kind. Thus many silent connections cannot push out
        requests that are being answered, and many slow bodies cannot push out new
        connections."""
        larger = max(self._without_head, self._with_head, key=len)
        return next(iter(larger))


class GuardedConnection(asyncio.Protocol):
    """One connection, from its first byte to its last. Once the head is complete,
    aiohttp gets all data, and after an upgrade the WebSocket."""

    def __init__(
        self, guard: ConnectionGuard, handler: Callable[[], web.RequestHandler]
    ) -> None:
        self._guard = guard
        self._new_handler = handler
        self._handler: web.RequestHandler | None = None
        self._head = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._refused = False
        self._exempt = False
        self._transport: asyncio.Transport | None = None
        self._receive: Callable[[bytes], None] = self._read_head
        self._websocket: asyncio.Protocol | None = None
        self.client_network = ""
        """The client that the connection is counted for; empty if it is not counted per
        client."""

    # --- called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: uvloop's transports are of another class.
        self._transport = cast(asyncio.Transport, transport)
        self._set_timer(self._guard.limits.start_seconds, self._head_timed_out)
        peer = transport.get_extra_info("peername")
        self._guard.add(self, peer[0] if peer else "")

    def data_received(self, data: bytes) -> None:
        self._receive(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._guard.remove(self)
        self._transport = None
        self._receive = _discard  # breaks a reference cycle
        if self._websocket:
            self.data_received = _discard  # type: ignore[method-assign]
            self._websocket.connection_lost(exc)
            self._websocket = None
        if self._handler:
            self._handler.connection_lost(exc)
            self._handler = None

    def eof_received(self) -> None:
        """Returns None, so that the transport closes: a client that has closed its side
        does not read the answer."""
        if self._websocket:
            self._websocket.eof_received()
        elif self._handler:
            self._handler.eof_received()

    def pause_writing(self) -> None:
        """The client must read before more can be written. With `high=0` this is called
        for any unread byte."""
        if self._websocket:
            self._websocket.pause_writing()  # it notices a peer that does not read
            return
        if self._handler:
            self._handler.pause_writing()
        if not self._exempt:
            self._watch_reader()

    def resume_writing(self) -> None:
        if self._websocket:
            self._websocket.resume_writing()
            return
        if not self._exempt:
            self._cancel_timer()
        if self._handler:
            self._handler.resume_writing()

    # --- called by the guard ---

    def exempt(self) -> None:
        if self._exempt or self._transport is None:
            return
        self._exempt = True
        self._cancel_timer()
        self._guard.remove(self)
        if self._websocket is None:
            self._transport.set_write_buffer_limits()

    def upgrade(self, websocket: asyncio.Protocol, handler: web.RequestHandler) -> None:
        """The WebSocket takes the connection over, with all data that comes, and with
        the data that has arrived behind the handshake."""
        assert self._transport is not None, "the connection is open"
        self._cancel_timer()
        websocket.connection_made(self._transport)
        self._websocket = websocket
        # aiohttp's own WebSockets take the connection over in this way, too.
        rest = _Rest()
        handler.set_parser(rest)  # type: ignore[arg-type]
        # In place of the method, which would be one more call for each frame. uvloop
        # looks the method up only when it is given the protocol.
        self.data_received = websocket.data_received  # type: ignore[method-assign]
        self._transport.set_protocol(self)
        # Not before: aiohttp resumes reading in `set_parser`.
        if rest.data:
            websocket.data_received(rest.data)

    def request_done(self) -> None:
        """The request of the connection is over, and aiohttp closes the connection:
        asyncio waits with that, without a limit, until the client has read
        everything."""
        transport = self._transport
        if self._exempt and transport and transport.get_write_buffer_size():
            self._exempt = False
            transport.set_write_buffer_limits(high=0)
            self._watch_reader()

    def drop(self) -> None:
        """Closes the connection at once, without the time to linger."""
        assert self._transport is not None
        self._cancel_timer()
        self._receive = _discard
        if not (self._handler or self._refused):
            self._transport.write(_error_response(HTTPStatus.SERVICE_UNAVAILABLE))
        self._transport.abort()

    # --- the request's head ---

    def _read_head(self, data: bytes) -> None:
        head, limit = self._head, self._guard.limits.header_bytes
        # Up to three bytes of the head's end may be here already.
        start = max(0, len(head) - 3)
        head += data
        found = _END_OR_BARE_LF.search(head, start, limit)
        if found and found[0] == _END and _FIRST_LINE.match(head):
            if _UNSUPPORTED_EXPECT.search(head, 0, found.end()):
                self._refuse(HTTPStatus.EXPECTATION_FAILED)
            else:
                self._pass_to_aiohttp()
        elif found or not _FIRST_BYTE.match(head):
            self._refuse(HTTPStatus.BAD_REQUEST)
        elif len(head) >= limit:
            self._guard.hit("header_bytes")
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _pass_to_aiohttp(self) -> None:
        assert self._transport is not None
        self._cancel_timer()
        self._guard.head_received(self)
        # Until the connection is exempt, every unread byte of an answer must be
        # noticed.
        self._transport.set_write_buffer_limits(high=0)
        head, self._head = bytes(self._head), bytearray()
        self._handler = handler = self._new_handler()
        handler.connection_made(self._transport)
        self._receive = handler.data_received
        handler.data_received(head)

    def _head_timed_out(self) -> None:
        self._guard.hit("request_slow")
        self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        assert self._transport is not None
        self._refused = True
        self._head = bytearray()
        self._receive = _discard
        self._set_timer(LINGER_SECONDS, self._transport.abort)
        self._transport.write(_error_response(status))
        # OSError: the client is gone, and `connection_lost` will follow.
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    # --- a client that does not read the answer ---

    def _watch_reader(self) -> None:
        assert self._transport is not None
        self._unread = self._transport.get_write_buffer_size()
        self._set_timer(self._guard.limits.send_seconds, self._check_reader)

    def _check_reader(self) -> None:
        assert self._transport is not None
        if self._transport.get_write_buffer_size() < self._unread:
            self._watch_reader()  # slow, but it reads
            return
        self._guard.hit("answer_slow")
        self._transport.abort()

    # --- timer ---

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class RequestHandler(web.RequestHandler):
    """aiohttp's handler of a connection. A request that aiohttp cannot parse is not
    logged as an error of the bridge. A connection whose request is over is closed,
    even if the client does not read."""

    __slots__ = ("_hit",)

    def __init__(
        self, *args: object, hit: Callable[[str], None], **more: object
    ) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self._hit = hit

    async def start(self) -> None:
        """Handles the request, from its head until aiohttp closes the connection."""
        transport = self.transport
        try:
            await super().start()
        finally:
            connection = transport.get_protocol() if transport else None
            if isinstance(connection, GuardedConnection):
                connection.request_done()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers without quoting the request, and keeps it out of the log."""
        response: web.StreamResponse
        if isinstance(exc, LineTooLong):
            self._hit("header_bytes")
            response = web.Response(status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif isinstance(exc, BadHttpMessage):
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        elif isinstance(exc, ConnectionError) and self._is_closing():
            # The client closed before it got the answer, so nobody reads this response.
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(HEADERS)
        response.force_close()
        return response

    def log_exception(self, *args: object, **more: object) -> None:
        """Skips errors in the unread rest of a body that the handler did not want."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **more)

    def _is_closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()


async def secure_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Handler of the application's `on_response_prepare`. Does not replace a header
    that a handler has set itself. A WebSocket's 101 gets only `Server`: it is no
    document, and its connection stays open."""
    # Replaced, because aiohttp has set its own.
    response.headers["Server"] = NAME
    if isinstance(response, web.WebSocketResponse):
        return
    response.force_close()
    response.headers["Connection"] = "close"
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


class _Rest:
    """Gets what aiohttp has received behind the handshake."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The WebSocket has its own `connection_lost`."""


def _error_response(status: HTTPStatus) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in HEADERS.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _discard(data: bytes) -> None:
    """Receives the data of a connection that was refused."""


def _ip(text: str) -> _IP | None:
    """None if the text is no IP address. An IPv4-mapped IPv6 address is returned as
    IPv4."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped
    return ip


def client_network(address: str) -> str:
    """The client that an address is counted for: an IPv4 address itself, or the /64
    network of an IPv6 address, which is what one subscriber gets."""
    ip = _ip(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return address
