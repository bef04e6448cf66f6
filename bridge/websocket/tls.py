"""TLS of a connection that the bridge opens, directly on the TCP connection.

asyncio's own TLS transport costs twice the CPU for each small message and 256 kB of
memory for each connection. Neither it nor uvloop's resumes a session, and both hide the
data that waits in the TCP connection. This one is the same on both event loops.
"""

import asyncio
import contextlib
import functools
import ssl
from collections import deque
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

RECORD_BYTES = 16 * 1024
"""The largest TLS record; OpenSSL reads and writes one at a time."""

MAX_TICKETS = 256
"""Sessions that wait to be resumed: about as many as a core has calls, which all dial
again when the model's server restarts. Each takes about 5 kB."""

_received = memoryview(bytearray(64 * 1024))
"""What a TCP connection has received. All use it, each within one callback."""


class TlsClient:
    """The trusted certificates, and the sessions that may be resumed.

    A resumed session is not verified again. So it is resumed only with the host and
    port that its certificate was verified for, and with the same trusted certificates.
    """

    def __init__(self) -> None:
        self.context = ssl.create_default_context()
        # Otherwise a TLS 1.2 server could make a write wait for a read.
        self.context.options |= ssl.OP_NO_RENEGOTIATION
        self._tickets: deque[tuple[str, int, ssl.SSLSession]] = deque(
            maxlen=MAX_TICKETS
        )

    def keep(self, host: str, port: int, session: ssl.SSLSession) -> None:
        self._tickets.append((host, port, session))

    def take(self, host: str, port: int) -> ssl.SSLSession | None:
        """The newest session with this server. It is taken only once (RFC 8446,
        C.4). OpenSSL does not offer one that has expired."""
        for entry in reversed(self._tickets):
            if entry[:2] == (host, port):
                self._tickets.remove(entry)
                return entry[2]
        return None


@functools.cache
def tls_client() -> TlsClient:
    """The one of this process: to load the trusted certificates takes 30 ms, in which
    no call is served, and 1 MB."""
    return TlsClient()


class TlsTransport(asyncio.Protocol, asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of the TCP connection and the transport of the protocol above.

    asyncio calls `buffer_updated`, uvloop `data_received`: each is the cheaper one.
    """

    def __init__(
        self, client: TlsClient, host: str, port: int, protocol: asyncio.Protocol
    ) -> None:
        super().__init__()
        self._client, self._host, self._port = client, host, port
        self._protocol = protocol
        self._tcp: asyncio.Transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._offered = client.take(host, port)
        self._tls = client.context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_hostname=host,
            session=self._offered,
        )
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._is_open = False
        """The handshake is done, and the protocol has this transport."""
        self._closing = False
        self._error: Exception | None = None

    async def opened(self) -> None:
        """Waits for the handshake. OSError: it failed; SSLCertVerificationError: the
        certificate is not valid for the host."""
        try:
            await self._opened
        except BaseException:
            self.abort()
            raise

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast(asyncio.Transport, transport)
        self._do_handshake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _received

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(_received[:nbytes])

    def data_received(self, data: bytes | memoryview) -> None:
        self._incoming.write(data)
        if self._is_open:
            self._read()
        else:
            self._do_handshake()

    def eof_received(self) -> None:
        """The TCP connection closes itself now."""
        self._peer_ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if not self._is_open:
            why = "the connection was closed during the TLS handshake"
            self._handshake_failed(exc or ConnectionResetError(why))
            return
        if self._error is None:
            self._keep_session()
        self._protocol.connection_lost(self._error or exc)

    def pause_writing(self) -> None:
        if self._is_open:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._is_open:
            self._protocol.resume_writing()

    # --- called by the protocol above ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        if not size or self._closing:
            return
        try:
            written = self._tls.write(data)
            self._tcp.write(self._outgoing.read())
            # One record at a time: a buffer of OpenSSL that has grown stays large.
            while written < size:
                written += self._tls.write(memoryview(data)[written:])
                self._tcp.write(self._outgoing.read())
        except ssl.SSLError as error:
            self._fail(error)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._is_open:
            # Sends close_notify. It raises an error until the peer has answered, which
            # nobody waits for: a WebSocket has its own closing handshake.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send()
        self._tcp.close()

    def abort(self) -> None:
        self._closing = True
        self._tcp.abort()

    def is_closing(self) -> bool:
        return self._closing or self._tcp.is_closing()

    def pause_reading(self) -> None:
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._tcp.resume_reading()

    def is_reading(self) -> bool:
        return self._tcp.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._tcp.get_write_buffer_limits()

    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None:
        self._tcp.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        return self._tcp.get_extra_info(name, default)

    # --- inside ---

    def _do_handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
        except ssl.SSLError as error:
            self._fail(error)
        else:
            self._send()
            if self._opened.done():  # cancelled
                return
            self._is_open = True
            self._protocol.connection_made(self)
            self._opened.set_result(None)
            self._read()

    def _read(self) -> None:
        """Hands over all that has arrived at once: the protocol above limits the time
        that one call of it takes."""
        parts: list[bytes] = []
        ended = False
        try:
            # OpenSSL's error for "no more data" costs more than a read. It keeps
            # nothing of a record that was read.
            while self._incoming.pending:
                part = self._tls.read(RECORD_BYTES)
                if not part:
                    ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass  # a part of a record
        except ssl.SSLError as error:
            self._error = error
        if self._outgoing.pending:
            self._send()  # the answer to a key update
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._protocol.data_received(data)
        if self._error is not None:
            self._fail(self._error)
        elif ended:
            self._peer_ended()

    def _send(self) -> None:
        if self._outgoing.pending and not self._tcp.is_closing():
            self._tcp.write(self._outgoing.read())

    def _peer_ended(self) -> None:
        if self._is_open and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._send()  # the alert
        self._closing = True
        if self._is_open:
            self._tcp.abort()
        else:
            self._handshake_failed(error)
            self._tcp.close()

    def _handshake_failed(self, error: Exception) -> None:
        """`opened` raises the error."""
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()  # asyncio logs one that is never looked at

    def _keep_session(self) -> None:
        """Each connection leaves the session that its server gave it last, for the
        connection that follows."""
        session = self._tls.session
        if session is None or not session.has_ticket:
            return
        if self._offered is None or session.id != self._offered.id:
            self._client.keep(self._host, self._port, session)


class TlsConnect(connect):
    """`websockets`' `connect`, with TlsTransport for wss: without a proxy."""

    async def create_connection(self) -> ClientConnection:
        uri = parse_uri(self.uri)
        if not uri.secure:
            return await super().create_connection()
        client = tls_client()
        if get_proxy(uri) is not None:
            self.connection_kwargs["ssl"] = client.context
            return await super().create_connection()
        connection = self.protocol_factory(uri)
        loop = asyncio.get_running_loop()
        _, transport = await loop.create_connection(
            lambda: TlsTransport(client, uri.host, uri.port, connection),
            *(uri.host, uri.port),
        )
        await transport.opened()
        return connection
