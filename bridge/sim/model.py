"""A faithful fake of the OpenAI Realtime (GA) WebSocket server.

It listens, speaks, calls tools, can be interrupted, and fails on command. Real sockets,
no network, no model. Message shapes and rules are the real server's as far as they are
known. It imports nothing of the rest of `bridge`, because a fake that shares code
proves nothing.
"""

import asyncio
import json
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from bridge.sim.realtime import faults
from bridge.sim.realtime.configuration import DEFAULT_MODEL
from bridge.sim.realtime.connection import ModelSocket
from bridge.sim.realtime.event_sender import Direction
from bridge.sim.realtime.faults import Fault
from bridge.sim.realtime.handshakes import ERROR_CODES, HandshakeFaults
from bridge.sim.realtime.items import ModelItem, RememberedItem, ResponseRecord
from bridge.sim.realtime.phone_call import PhoneCall
from bridge.sim.realtime.session import Hook, ModelSession
from bridge.sim.realtime.turns import (
    Behaviour,
    BreakOff,
    CallMcp,
    CallTool,
    Fail,
    Output,
    PlayAudio,
    PlayRuler,
    SayText,
    ToolOutput,
    Turn,
    TurnContext,
)

__all__ = [
    "Behaviour",
    "BreakOff",
    "CallMcp",
    "CallTool",
    "Direction",
    "Fail",
    "Fault",
    "Hook",
    "ModelItem",
    "ModelServer",
    "ModelSession",
    "Output",
    "PlayAudio",
    "PlayRuler",
    "RememberedItem",
    "ResponseRecord",
    "SayText",
    "ToolOutput",
    "Turn",
    "TurnContext",
]

_PATH = "/v1/realtime"
_FRAME_BYTES = 20 * 1024 * 1024  # bytes; an append holds up to 15 MiB of base64
_CLOSE_SECONDS = 1.0
_OPEN_SECONDS = 600.0  # s; a handshake may stay unanswered as long as a test wants


class ModelServer:
    """`async with ModelServer() as server:` - then point a client at `server.url`.

    Faults on command: `inject` and `inject_next` (bridge.sim.realtime.faults),
    `handshakes` for faults of handshakes, `refuse_tcp`.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        *,
        keep_sessions: int = 1000,
        keep_audio: bool = True,
        record_appends: bool = False,
        on_event: Hook | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.behaviour = behaviour or Behaviour()  # may be changed for later sessions
        self.sessions: list[ModelSession] = []
        self.refused: list[int] = []  # HTTP statuses of refused handshakes
        self.calls: dict[str, PhoneCall] = {}  # by call id, for `?call_id=`
        self.handshakes = HandshakeFaults()
        self._next_faults: deque[Fault] = deque()  # of the next sessions, one each
        self._active: set[ModelSession] = set()
        self._host = host
        self._port = port
        self._api_key = api_key
        self._keep_sessions = keep_sessions
        self._keep_audio = keep_audio
        self._record_appends = record_appends
        self._on_event = on_event
        self._tls = tls
        self._server: Server | None = None
        self._closed: list[Server] = []  # servers that accept no more connections

    @property
    def url(self) -> str:
        scheme = "ws" if self._tls is None else "wss"
        return f"{scheme}://{self._host}:{self.port}{_PATH}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def active(self) -> int:
        """Number of connected sessions."""
        return len(self._active)

    @property
    def open(self) -> list[ModelSession]:
        """The connected sessions, oldest first."""
        return [session for session in self.sessions if session in self._active]

    def inject(self, fault: Fault) -> None:
        """Apply the fault to every open session."""
        for session in self.open:
            fault(session)

    def inject_next(self, fault: Fault, times: int = 1) -> None:
        """Apply the fault to the next sessions, before their first event."""
        self._next_faults.extend([fault] * times)

    async def refuse_tcp(self, seconds: float) -> None:
        """Accept no TCP connection for `seconds`; open connections stay."""
        assert self._server is not None
        self._closed.append(self._server)
        self._server.close(close_connections=False)
        await asyncio.sleep(0)  # the server stops listening in a task
        # Bound but not listening: connections are refused, and no other process gets
        # the port.
        with socket.socket() as keeper:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind((self._host, self._port))
            await asyncio.sleep(seconds)
        self._server = await self._listen()

    async def __aenter__(self) -> Self:
        self._server = await self._listen()
        self._port = int(next(iter(self._server.sockets)).getsockname()[1])
        return self

    async def _listen(self) -> Server:
        return await serve(
            self._serve,
            self._host,
            self._port,
            create_connection=ModelSocket,
            process_request=self._admit,
            compression=None,
            ssl=self._tls,
            max_size=_FRAME_BYTES,
            open_timeout=_OPEN_SECONDS,
            close_timeout=_CLOSE_SECONDS,
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self.handshakes.reset()
        for session in self.open:
            if session.frozen:
                session.abort("frozen")
            elif self._closed:  # a closed server waits for these sessions
                faults.closing(1001)(session)
        self._server.close()
        async with asyncio.timeout(_CLOSE_SECONDS * 5):
            for server in (*self._closed, self._server):
                await server.wait_closed()

    async def _serve(self, connection: ServerConnection) -> None:
        request = connection.request
        assert request is not None and isinstance(connection, ModelSocket)
        models = _query(request, "model")
        calls = _query(request, "call_id")
        call = self.calls[calls[0]] if calls else None
        session = ModelSession(
            connection,
            self.behaviour,
            model=models[0] if models else DEFAULT_MODEL,
            model_chosen=bool(models or calls),
            keep_audio=self._keep_audio,
            record_appends=self._record_appends,
            on_event=self._on_event,
            accepted_with=None if call is None else call.body,
            fault=self._next_faults.popleft() if self._next_faults else None,
        )
        if call is not None:
            call.session = session
            call.attached += 1
        self.sessions.append(session)
        del self.sessions[: -self._keep_sessions]
        self._active.add(session)
        try:
            await session.run()
        finally:
            self._active.discard(session)

    async def _admit(
        self, connection: ServerConnection, request: Request
    ) -> Response | None:
        refusal = await self.handshakes.on_handshake(connection)
        if refusal is not None:
            message = HTTPStatus(refusal.status).phrase
            return self._refusal(connection, refusal.status, message, refusal.code)
        if not urlsplit(request.path).path.endswith("/realtime"):
            return self._refusal(connection, 404, f"Unknown path: {request.path}")
        if self.behaviour.refuse is not None:
            status = self.behaviour.refuse
            return self._refusal(connection, status, HTTPStatus(status).phrase)
        if self._api_key is not None and self._api_key not in _keys(request):
            return self._refusal(connection, 401, "Incorrect API key provided.")
        for call_id in _query(request, "call_id"):
            call = self.calls.get(call_id)
            if call is None or not call.attachable:
                message = f"No session found for call_id {call_id}"
                return self._refusal(connection, 404, message, "call_id_not_found")
        return None

    def _refusal(
        self,
        connection: ServerConnection,
        status: int,
        message: str,
        code: str | None = None,
    ) -> Response:
        """An HTTP answer with the JSON body of OpenAI's errors."""
        self.refused.append(status)
        error = {
            "message": message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": None,
            "code": code or ERROR_CODES.get(status),
        }
        response = connection.respond(HTTPStatus(status), json.dumps({"error": error}))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response


def _query(request: Request, name: str) -> list[str]:
    return parse_qs(urlsplit(request.path).query).get(name, [])


def _keys(request: Request) -> Sequence[str]:
    """The keys that the handshake offers: Bearer (OpenAI) or api-key (Azure)."""
    authorization = request.headers.get("Authorization", "")
    scheme, _, token = authorization.partition(" ")
    offered = [request.headers.get("api-key", "")]
    if scheme.lower() == "bearer":
        offered.append(token.strip())
    return [key for key in offered if key]
