"""The doors: TCP connections as long as they are no calls: who waits, and how long.

aiohttp has no limit of time for a request's head, nor of the number of connections. So
each connection is met here: its head is waited for, within limits, and only then given
to aiohttp. From there on a call costs nothing here: aiohttp's own methods are called.
"""

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from bridge.app.values import IpNetwork
from bridge.core.limits import Limits

LEAVE_SECONDS = 1.0
"""For whoever was refused to read why: were it closed at once, what they still send
would have the answer thrown away on its way (RFC 9112, 9.6)."""

BACKLOG = 256
"""Connections that the kernel keeps until they are taken. A SYN that finds no place is
sent again after a second; all that are there are taken at once."""

GRACE_SECONDS = 0.05
"""That more may wait than there is place for, up to twice as many."""

NAME = "bridge"
"""As `Server`: aiohttp would name all versions."""

HEADERS = {
    "Server": NAME,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # One request a connection: no slow second one, none smuggled behind the first.
    "Connection": "close",
}

_END = b"\r\n\r\n"
# It, or a line that a proxy may end elsewhere than aiohttp does.
_END_OR_BARE = re.compile(rb"\r\n\r\n|[^\r]\n")
# No TLS; no empty line before the request, which would end the head before it began.
_FIRST_BYTE = re.compile(rb"[A-Z]")
# aiohttp answers HTTP/0.9, too.
_FIRST_LINE = re.compile(rb"[A-Z]+ [^ \r\n]+ HTTP/1\.[01]\r\n")
# aiohttp says again what it cannot do, before anybody is asked for a token.
_NOT_TO_BE_MET = re.compile(rb"\r\nexpect[ \t]*:(?![ \t]*100-continue[ \t]*\r)", re.I)

# How they tell whom they bring; few say nothing at all.
_OF_PROXIES = (
    *("forwarded", "x-forwarded-", "via", "x-real-ip", "x-client-ip"),
    *("cf-", "true-client-ip"),
)

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class ConnectionGuard:
    """Of one instance. `listen`, then `close`."""

    def __init__(
        self,
        limits: Limits,
        trusted: Sequence[IpNetwork],
        hit: Callable[[str], None],
    ) -> None:
        """`trusted` are proxies of ours; `hit` is told of each limit that was reached
        (bridge.core.limits.HITS)."""
        self.limits = limits
        self.hit = hit
        self._trusted = trusted
        self._waiting = _Line()
        self._by_address: dict[str, _Line] = {}
        self._tidying: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def listen(self, runner: web.AppRunner, host: str, port: int) -> int:
        """Lets in; the port. `runner` is set up. OSError when the address cannot be
        had."""
        manager = runner.server
        assert manager is not None, "runner.setup() comes first"
        loop = asyncio.get_running_loop()

        def handler() -> web.RequestHandler:
            return _Inside(
                manager,
                loop=loop,
                access_log=None,
                # Without `secure_headers`, too, nobody stays for a second request.
                keepalive_timeout=0,
                lingering_time=LEAVE_SECONDS,
                # Nobody sends us compressed bodies but to have us unpack them.
                auto_decompress=False,
                hit=self.hit,
            )

        self._server = await loop.create_server(
            lambda: GuardedConnection(self, handler), host, port, backlog=BACKLOG
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Nobody comes in any more, and who has not asked yet is sent away. Requests
        and calls are the runner's: its `cleanup` is to follow."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if self._tidying:
            self._tidying.cancel()
            self._tidying = None
        for connection in self._waiting.asking():
            connection.turn_away()
        await asyncio.sleep(0)  # for their connections to be closed

    @property
    def waiting(self) -> int:
        """Connections that are no calls."""
        return len(self._waiting)

    def in_call(self, request: web.Request) -> None:
        """Its connection has a right to stay as long as it likes: it has become a call
        (or a stream of events for whoever has the token)."""
        transport = request.transport
        connection = transport.get_protocol() if transport else None
        if isinstance(connection, GuardedConnection):
            connection.stay()

    def address_of(self, request: web.Request) -> str:
        """Who asks: the peer, or whoever the proxies of ours had it from. Empty if the
        connection is gone and nobody knows."""
        address = request.remote or ""
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        # The last was written by the peer, the one before by the last, and so on: what
        # stands before one that is not ours is anybody's.
        while hops and self._is_ours(address):
            hop = _ip(hops.pop().strip())
            if hop is None:
                break
            address = str(hop)
        return address

    def came_directly(self, request: web.Request) -> bool:
        """No proxy in between, ours or another's."""
        return not any(name.lower().startswith(_OF_PROXIES) for name in request.headers)

    def _is_ours(self, address: str) -> bool:
        ip = _ip(address) if self._trusted else None
        return ip is not None and any(ip in network for network in self._trusted)

    # --- what visitors tell ---

    def came(self, connection: "GuardedConnection", address: str) -> None:
        """Whoever has waited longest makes place, not who has just come: a good call
        needs milliseconds, so it always gets in."""
        if self._server is None:
            connection.turn_away()  # accepted in the moment of closing
            return
        self._waiting.add(connection)
        most, line = self.limits.waiting_sockets, self._waiting
        if not self._is_ours(address):
            connection.neighbours = neighbours(address)
            own = self._by_address.setdefault(connection.neighbours, _Line())
            own.add(connection)
            if len(own) > self.limits.waiting_per_address:
                most, line = self.limits.waiting_per_address, own
        if len(line) > 2 * most:
            self._make_place()
        elif len(line) > most and self._tidying is None:
            # Hundreds may be accepted in one turn of the loop, and the requests of the
            # good among them are there, and not read yet.
            loop = asyncio.get_running_loop()
            self._tidying = loop.call_later(GRACE_SECONDS, self._make_place)

    def asked(self, connection: "GuardedConnection") -> None:
        """All of its head is there."""
        for line in self._lines(connection):
            line.asked(connection)

    def gone(self, connection: "GuardedConnection") -> None:
        """It waits for nothing any more. May be told twice."""
        for line in self._lines(connection):
            line.remove(connection)
            if not line and line is not self._waiting:
                del self._by_address[connection.neighbours]

    def _lines(self, connection: "GuardedConnection") -> list["_Line"]:
        own = self._by_address.get(connection.neighbours)
        return [self._waiting] if own is None else [self._waiting, own]

    def _make_place(self) -> None:
        """Until nobody has more than they may."""
        if self._tidying:
            self._tidying.cancel()
            self._tidying = None
        for line in list(self._by_address.values()):
            self._shorten(line, self.limits.waiting_per_address, "sockets_of_address")
        self._shorten(self._waiting, self.limits.waiting_sockets, "sockets")

    def _shorten(self, line: "_Line", most: int, limit: str) -> None:
        while len(line) > most:
            self.hit(limit)
            connection = line.oldest()
            self.gone(connection)
            connection.turn_away()


class _Line:
    """Those who wait, each kind in the order in which they came."""

    def __init__(self) -> None:
        self._asking: dict[GuardedConnection, None] = {}
        self._asked: dict[GuardedConnection, None] = {}

    def __len__(self) -> int:
        return len(self._asking) + len(self._asked)

    def add(self, connection: "GuardedConnection") -> None:
        self._asking[connection] = None

    def asked(self, connection: "GuardedConnection") -> None:
        del self._asking[connection]
        self._asked[connection] = None

    def remove(self, connection: "GuardedConnection") -> None:
        self._asking.pop(connection, None)
        self._asked.pop(connection, None)

    def asking(self) -> list["GuardedConnection"]:
        return list(self._asking)

    def oldest(self) -> "GuardedConnection":
        """Of the larger kind: a crowd that says nothing is not to push out those who
        are being answered, nor a crowd with slow bodies those who have just come."""
        crowd = max(self._asking, self._asked, key=len)
        return next(iter(crowd))


class GuardedConnection(asyncio.BaseProtocol):
    """One connection, from its first byte to its last. Once there is a request, what
    comes in goes straight to aiohttp: `data_received` is then aiohttp's own."""

    __slots__ = (
        "_guard",
        "_handler",
        "_head",
        "_new_handler",
        "_refused",
        "_stays",
        "_timer",
        "_transport",
        "_unread",
        "data_received",
        "neighbours",
    )

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
        self._stays = False
        self._transport: asyncio.Transport | None = None
        self.data_received: Callable[[bytes], None] = self._read_head
        self.neighbours = ""
        """Of whom it is one, where those are counted."""

    # --- as asyncio wants it ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._wait(self._guard.limits.start_seconds, self._too_slow)
        peer = transport.get_extra_info("peername")
        self._guard.came(self, peer[0] if peer else "")

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._guard.gone(self)
        self._transport = None
        self.data_received = _ignored  # a circle of references less to be collected
        if self._handler:
            self._handler.connection_lost(exc)
            self._handler = None

    def eof_received(self) -> None:
        """None: they hear no answer, either."""
        if self._handler:
            self._handler.eof_received()

    def pause_writing(self) -> None:
        """They have to read before we can write more: with `high=0`, anything more."""
        if self._handler:
            self._handler.pause_writing()
        if not self._stays:
            self._watch()

    def resume_writing(self) -> None:
        if not self._stays:
            self._wait_no_more()
        if self._handler:
            self._handler.resume_writing()

    # --- as the doors want it ---

    def stay(self) -> None:
        if self._stays or self._transport is None:
            return
        self._stays = True
        self._wait_no_more()
        self._guard.gone(self)
        self._transport.set_write_buffer_limits()

    def turn_away(self) -> None:
        """At once: whoever makes place is not waited for."""
        assert self._transport is not None
        self._wait_no_more()
        self.data_received = _ignored
        if not (self._handler or self._refused):
            self._transport.write(_answer(HTTPStatus.SERVICE_UNAVAILABLE))
        self._transport.abort()

    # --- the head ---

    def _read_head(self, data: bytes) -> None:
        head, limit = self._head, self._guard.limits.header_bytes
        # Three bytes of the end may be here already.
        start = max(0, len(head) - 3)
        head += data
        found = _END_OR_BARE.search(head, start, limit)
        if found and found[0] == _END and _FIRST_LINE.match(head):
            if _NOT_TO_BE_MET.search(head, 0, found.end()):
                self._refuse(HTTPStatus.EXPECTATION_FAILED)
            else:
                self._go_in()
        elif found or not _FIRST_BYTE.match(head):
            self._refuse(HTTPStatus.BAD_REQUEST)
        elif len(head) >= limit:
            self._guard.hit("header_bytes")
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _go_in(self) -> None:
        assert self._transport is not None
        self._wait_no_more()
        self._guard.asked(self)
        # While it is no call: whatever the other side does not take is seen.
        self._transport.set_write_buffer_limits(high=0)
        head, self._head = bytes(self._head), bytearray()
        self._handler = handler = self._new_handler()
        handler.connection_made(self._transport)
        self.data_received = handler.data_received
        handler.data_received(head)

    def _too_slow(self) -> None:
        self._guard.hit("request_slow")
        self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        assert self._transport is not None
        self._refused = True
        self._head = bytearray()
        self.data_received = _ignored
        self._wait(LEAVE_SECONDS, self._transport.abort)
        self._transport.write(_answer(status))
        with contextlib.suppress(OSError):  # they are gone: the transport sees it next
            self._transport.write_eof()

    # --- an answer that nobody reads ---

    def _watch(self) -> None:
        assert self._transport is not None
        self._unread = self._transport.get_write_buffer_size()
        self._wait(self._guard.limits.send_seconds, self._look)

    def _look(self) -> None:
        assert self._transport is not None
        if self._transport.get_write_buffer_size() < self._unread:
            self._watch()  # they are slow, but they read
            return
        self._guard.hit("answer_slow")
        self._transport.abort()

    # --- time ---

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._wait_no_more()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _wait_no_more(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class _Inside(web.RequestHandler):
    """aiohttp's side of a connection; what it cannot read is no error of ours."""

    __slots__ = ("_hit",)

    def __init__(
        self, *args: object, hit: Callable[[str], None], **more: object
    ) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self._hit = hit

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Without what was sent to us: neither in the answer nor in the log."""
        response: web.StreamResponse
        if isinstance(exc, LineTooLong):
            self._hit("header_bytes")
            response = web.Response(status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif isinstance(exc, BadHttpMessage):
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        elif isinstance(exc, ConnectionError) and self._is_left():
            # Before they had their answer. Nobody will read this one.
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        else:
            response = super().handle_error(request, status, exc, message)
        response.headers.update(HEADERS)
        response.force_close()
        return response

    def log_exception(self, *args: object, **more: object) -> None:
        """Not what is wrong with the rest of a body that was not wanted."""
        if not isinstance(more.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **more)

    def _is_left(self) -> bool:
        return self.transport is None or self.transport.is_closing()


async def secure_headers(request: web.Request, response: web.StreamResponse) -> None:
    """To be an `on_response_prepare` of the application. What a handler has said itself
    stays; a websocket's 101 is no document and does not close."""
    # aiohttp has put its own there.
    response.headers["Server"] = NAME
    if isinstance(response, web.WebSocketResponse):
        return
    response.force_close()
    response.headers["Connection"] = "close"
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def _answer(status: HTTPStatus) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in HEADERS.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _ignored(data: bytes) -> None:
    """They were told to go."""


def _ip(text: str) -> _IP | None:
    """None for what is no address. IPv4 in IPv6's clothes is IPv4."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped
    return ip


def neighbours(address: str) -> str:
    """An address; of IPv6 the network that one subscriber has."""
    ip = _ip(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return address
