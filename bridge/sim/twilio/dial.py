"""Opens the WebSocket of a media stream as Twilio does: checks, headers, error codes.

No Origin, no sub-protocol, no compression, no redirects. The URL is signed as written.
"""

import ssl
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from bridge.sim.twilio.markup import TwimlStream
from bridge.sim.twilio.signature import sign
from bridge.sim.twilio.stream import CLOSE_LIMIT
from bridge.sim.twilio.webhooks import Origins

HANDSHAKE_LIMIT = 10.0  # s; Twilio's own limit is undocumented (error 31901 exists)
MESSAGE_LIMIT = 16 * 2**20  # bytes: more than ten minutes of audio in base64
WRITE_LIMIT = 2**20  # bytes; a send waits above this, which should never happen
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class StreamRefusedError(Exception):
    """The stream did not open; `code` is Twilio's error code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


def stream_url(stream: TwimlStream, document_url: str, allow_ws: bool = False) -> str:
    """The URL to sign and to connect to.

    Raises StreamRefusedError for a URL that Twilio does not accept. Twilio accepts
    wss:// only. This fake also accepts ws:// where no TLS is available: on loopback,
    and with `allow_ws` on any host (a network of containers).
    """
    if stream.track not in (None, "inbound_track"):
        raise StreamRefusedError(31941, f"track {stream.track} on <Connect>")
    url = stream.url
    document = urlsplit(document_url)
    if url.startswith("/"):
        scheme = {"http": "ws", "https": "wss"}[document.scheme]
        url = f"{scheme}://{document.netloc}{url}"
    try:
        parts = urlsplit(url)
        whole = bool(parts.scheme and parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are not valid
        whole = False
    if not whole:
        raise StreamRefusedError(31923, f"malformed URL {url!r}")
    plain = parts.scheme == "ws" and (allow_ws or parts.hostname in LOOPBACK)
    if parts.scheme != "wss" and not plain:
        raise StreamRefusedError(31922, f"the scheme of {url!r} is not wss")
    return url


def without_query(url: str) -> str:
    """The URL without its query string, which Twilio drops (several users saw it)."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


class _NoRedirect(connect):
    """`connect` for which a redirect is a failure, as for Twilio (31920)."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def open_socket(
    url: str, origins: Origins, auth_token: str | None
) -> ClientConnection:
    """Open the WebSocket. Raises StreamRefusedError with Twilio's error code."""
    headers = {}
    if auth_token is not None:
        headers["x-twilio-signature"] = sign(auth_token, url)
    # The Host header has the public origin; the connection goes to the origin that
    # `origins` maps it to.
    target = urlsplit(origins.dial(url))
    named = urlunsplit(urlsplit(url)._replace(scheme=target.scheme))
    try:
        return await _NoRedirect(
            named,
            host=target.hostname,
            port=target.port or (443 if target.scheme == "wss" else 80),
            additional_headers=headers,
            user_agent_header="Twilio.TmeWs/1.0",
            compression=None,
            proxy=None,
            open_timeout=HANDSHAKE_LIMIT,
            close_timeout=CLOSE_LIMIT,
            ping_interval=None,
            max_size=MESSAGE_LIMIT,
            write_limit=WRITE_LIMIT,
        )
    except InvalidStatus as error:
        status = error.response.status_code
        raise StreamRefusedError(31920, f"handshake answered with {status}") from error
    except InvalidHandshake as error:
        raise StreamRefusedError(31920, f"handshake: {error}") from error
    except TimeoutError as error:
        raise StreamRefusedError(31901, "no answer to the handshake") from error
    except ssl.SSLError as error:
        raise StreamRefusedError(31910, f"TLS: {error}") from error
    except OSError as error:
        raise StreamRefusedError(31902, f"connection refused: {error}") from error
