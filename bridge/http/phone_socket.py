"""Opens the WebSocket of a media stream: aiohttp has read the request, and hands the
connection over to bridge.websocket."""

from aiohttp import web
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from bridge.core.limits import Limits
from bridge.http.authenticated import proof
from bridge.http.connection_guard import NAME, GuardedConnection
from bridge.websocket.closing import CLOSE_SECONDS
from bridge.websocket.direct_connection import PhoneConnection

PING_SECONDS = 20.0
PONG_SECONDS = 10.0
"""Interval of pings, and the time for the answer. A phone that vanishes without closing
is noticed after the sum of both. Twilio answers pings (uvicorn's defaults ping as
often, and that works)."""

MAX_UNSENT_BYTES = 10 * 1024 * 1024
"""Limit of data that waits to be sent to Twilio, which accepts ten minutes of audio at
once."""


def open_phone_socket(request: web.Request, limits: Limits) -> PhoneConnection:
    """Answers the handshake, and takes the connection over from aiohttp, with the data
    that has arrived behind the handshake. The handler then returns an UpgradedResponse.

    HTTPException: the request is no valid handshake. ConnectionResetError: the peer has
    gone.
    """
    handshake = ServerProtocol()
    headers = Headers(request.headers.items())
    response = handshake.accept(Request(request.raw_path, headers))
    if handshake.handshake_exc is not None:
        raise web.HTTPBadRequest(text="this is no valid handshake of a WebSocket")
    transport = request.transport
    guarded = transport.get_protocol() if transport else None
    if transport is None or not isinstance(guarded, GuardedConnection):
        raise ConnectionResetError("the connection is gone")
    response.headers["Server"] = NAME
    response.headers.update(proof(request))
    phone = PhoneConnection(
        # aiohttp has read the handshake, so the protocol begins behind it.
        ServerProtocol(state=OPEN, max_size=limits.message_bytes),
        ping_interval=PING_SECONDS,
        ping_timeout=PONG_SECONDS,
        close_timeout=CLOSE_SECONDS,
    )
    phone.set_limits(
        stuck_seconds=limits.send_seconds,
        max_unsent=MAX_UNSENT_BYTES,
        max_message=limits.message_bytes,
    )
    phone.response = response
    transport.write(response.serialize())
    guarded.upgrade(phone, request.protocol)
    phone.start_keepalive()
    return phone


class UpgradedResponse(web.StreamResponse):
    """What a handler returns whose connection is a WebSocket now, and closed: aiohttp
    must not answer the request."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None
