"""The aiohttp application: Twilio's webhooks, the media socket, health, metrics.

Lets in who may come in, and gives each stream to a Call. Knows no audio, no model.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from multidict import MultiDictProxy
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import twiml
from bridge.agent.loader import AgentSource
from bridge.agent.session import ModelTarget
from bridge.call import Call, House
from bridge.core import ProtocolError
from bridge.fleet import NextStep
from bridge.fleet.memory import MemoryRegistry
from bridge.settings import OPENAI_MODEL_URL, Settings
from bridge.signature import HEADER, Signatures, websocket_origin
from bridge.variables import LOCAL_MODEL
from bridge.watch.metrics import Metrics

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 1024 * 1024
"""Above this a message is not even read, and the stream ends (close code 1009). Between
here and media_stream.MAX_MESSAGE_CHARS it is read, counted and ignored."""

MAX_FORM_BYTES = 64 * 1024
"""Twilio's webhooks are 1-2 kB."""

MAX_PARAMETER_CHARS = 400
"""Name and value of a <Parameter> must be under 500 characters together."""

PING_SECONDS = 20.0
"""A phone that is gone without a word is noticed after one and a half of these. Twilio
answers pings (it does on uvicorn's defaults, which ping as often)."""

CLOSE_SECONDS = 1.0
"""For Twilio to answer our close."""

SHUTDOWN_SECONDS = 3.0
"""For the calls to end once draining is over."""


class PhoneSocket:
    """Twilio's end of a stream, as bridge.call.Phone wants it."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """ProtocolError where the stream ends because of what it sent."""
        async for message in self._socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                yield message.data
            elif isinstance(message.data, WebSocketError):
                if message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
                    raise ProtocolError("message too large")
                raise ProtocolError("websocket protocol broken")

    async def send(self, text: str) -> None:
        await self._socket.send_str(text)

    async def close(self) -> None:
        await self._socket.close()


class Server:
    """One instance. `start`, then `close`; `port` is known in between."""

    def __init__(self, settings: Settings, house: House) -> None:
        self._settings = settings
        self._house = house
        self._signatures = _signatures(settings)
        self._calls: set[Call] = set()
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._draining = False
        self._asking: set[str] = set()
        """Calls that we ended: Twilio is about to ask what follows."""
        self._nobody_asks = asyncio.Event()
        self._nobody_asks.set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    # --- life ---

    async def start(self) -> None:
        """Listens. OSError when the address cannot be had."""
        app = web.Application(client_max_size=MAX_FORM_BYTES)
        app.add_routes(
            [
                web.post("/voice", self._webhook(self._voice)),
                web.post("/voice/next", self._webhook(self._voice_next)),
                web.post("/stream-status", self._webhook(self._stream_status)),
                web.post("/call-status", self._webhook(self._call_status)),
                web.get("/media", self._media),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        site = web.TCPSite(runner, self._settings.host, self._settings.port)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = runner.addresses[0][1]
        log.info("listening", host=self._settings.host, port=self.port)

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Takes no more calls, lets the running ones end, ends what is left."""
        self._draining = True
        log.info("draining", calls=len(self._calls), seconds=drain_seconds)
        if not await _within(drain_seconds, self._no_calls):
            for call in list(self._calls):
                call.end("shutdown")
                if call.call_sid:
                    self._asking.add(call.call_sid)
                    self._nobody_asks.clear()
            if not await _within(SHUTDOWN_SECONDS, self._no_calls):
                log.warning("calls_left", calls=len(self._calls))
            # Who was cut off is told why: the listener stays until Twilio has asked.
            if not await _within(SHUTDOWN_SECONDS, self._nobody_asks):
                log.warning("callers_not_told", calls=len(self._asking))
        if self._runner:
            await self._runner.cleanup()
        log.info("closed")

    @property
    def calls(self) -> int:
        """Streams that are open now."""
        return len(self._calls)

    @property
    def metrics(self) -> Metrics:
        return self._house.metrics

    async def registered(self) -> list[str]:
        """SIDs of the calls that the registry knows of."""
        return [entry.call_sid for entry in await self._house.registry.calls()]

    @property
    def _full(self) -> bool:
        return len(self._calls) >= self._settings.max_calls

    # --- webhooks ---

    def _webhook(
        self, answer: "Callable[[web.Request, Form], Awaitable[web.Response]]"
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A signed form in, or 403; 415 for what is no form."""

        async def handle(request: web.Request) -> web.Response:
            if request.content_type != "application/x-www-form-urlencoded":
                raise web.HTTPUnsupportedMediaType(text="a form is expected")
            try:
                form = await request.post()
            except (ValueError, LookupError):
                raise web.HTTPBadRequest(text="the form cannot be read") from None
            if self._signatures and not self._signatures.webhook(
                request.raw_path, form, request.headers.get(HEADER)
            ):
                log.warning("webhook_refused", path=request.path, why="signature")
                raise web.HTTPForbidden(text="not signed by Twilio")
            account = self._settings.twilio_account_sid
            if account and _text(form, "AccountSid") != account:
                log.warning("webhook_refused", path=request.path, why="account")
                raise web.HTTPForbidden(text="not of this account")
            return await answer(request, form)

        return handle

    async def _voice(self, request: web.Request, form: "Form") -> web.Response:
        """A call comes in: what Twilio is to do with it."""
        call_sid = _text(form, "CallSid")
        if self._draining or self._full:
            why = "draining" if self._draining else "full"
            log.warning("call_refused", call_sid=call_sid, why=why)
            return _twiml(twiml.busy())
        origin = self._origin(request)
        document = twiml.connect(
            f"{websocket_origin(origin)}/media",
            action_url=f"{origin}/voice/next",
            status_callback_url=f"{origin}/stream-status",
            parameters={name: _parameter(form, name) for name in ("From", "To")},
        )
        log.info("call_answered", call_sid=call_sid)
        return _twiml(document)

    async def _voice_next(self, request: web.Request, form: "Form") -> web.Response:
        """The stream has ended and somebody is still on the line: what follows."""
        call_sid = _text(form, "CallSid")
        step = await self._house.registry.take_next(call_sid)
        self._asking.discard(call_sid)
        if not self._asking:
            self._nobody_asks.set()
        if step is None:
            # Nothing was left, so nothing ended as it should: the handshake failed or
            # the instance is gone. Whoever still holds the line is told.
            step = NextStep.SORRY
        log.info("call_goes_on", call_sid=call_sid, step=step.value)
        if step is NextStep.HANG_UP:
            return _twiml(twiml.hang_up())
        return _twiml(twiml.sorry(fallback_number=self._settings.fallback_number))

    async def _stream_status(self, request: web.Request, form: "Form") -> web.Response:
        """The only word there is of a handshake that failed."""
        event = _text(form, "StreamEvent")
        facts = {
            "call_sid": _text(form, "CallSid"),
            "stream_sid": _text(form, "StreamSid"),
        }
        if event == "stream-error":
            log.warning("stream_error", error=_text(form, "StreamError"), **facts)
        else:
            log.debug("stream_status", status=event, **facts)
        return web.Response(status=204)

    async def _call_status(self, request: web.Request, form: "Form") -> web.Response:
        call_sid, status = _text(form, "CallSid"), _text(form, "CallStatus")
        log.info("call_status", call_sid=call_sid, status=status)
        return web.Response(status=204)

    # --- the stream ---

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """The media stream of one call, as long as it lasts."""
        if self._signatures and not self._signatures.handshake(
            request.raw_path, request.headers.get(HEADER)
        ):
            log.warning("stream_refused", why="signature")
            raise web.HTTPForbidden(text="not signed by Twilio")
        if self._draining or self._full:
            # 503: a balancer in front tries the next instance.
            log.warning("stream_refused", why="draining" if self._draining else "full")
            raise web.HTTPServiceUnavailable(text="no line is free")
        # The upgrade is answered before there is a model: Twilio does not wait for
        # one. It offers no compression, and frames gain nothing by it.
        socket = web.WebSocketResponse(
            compress=False,
            heartbeat=PING_SECONDS,
            timeout=CLOSE_SECONDS,
            max_msg_size=MAX_MESSAGE_BYTES,
        )
        await socket.prepare(request)
        call = Call(PhoneSocket(socket), self._house)
        self._calls.add(call)
        self._no_calls.clear()
        try:
            await call.run()
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._no_calls.set()
        return socket

    # --- for operators ---

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "calls": len(self._calls)})

    async def _readyz(self, request: web.Request) -> web.Response:
        state = "draining" if self._draining else "full" if self._full else "ready"
        facts = {"status": state, "calls": len(self._calls)}
        return web.json_response(facts, status=200 if state == "ready" else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        body = generate_latest(self._house.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _origin(self, request: web.Request) -> str:
        """Where Twilio reaches us. Without a configured origin (development only) what
        the request, or the tunnel before us, says."""
        if self._settings.public_url:
            return self._settings.public_url
        scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
        host = request.headers.get("X-Forwarded-Host", request.host)
        origin = f"{scheme.split(',')[0].strip()}://{host.split(',')[0].strip()}"
        if urlsplit(origin).hostname is None:
            raise web.HTTPBadRequest(text="no usable Host header")
        return origin


Form = MultiDictProxy[Any]


@asynccontextmanager
async def serving(
    settings: Settings, source: AgentSource, model_url: str
) -> AsyncIterator[Server]:
    """A running server with an agent and a model; closed, with its calls, on the way
    out. `model_url` is where the model is, whatever the settings call it."""
    server = Server(settings, open_house(settings, source, model_url))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def open_house(settings: Settings, source: AgentSource, model_url: str) -> House:
    """What the calls of an instance share, as the settings want it."""
    return House(
        source=source,
        target=ModelTarget(
            url=model_url,
            model=settings.model,
            voice=settings.voice,
            transcription_model=settings.transcription_model or None,
            headers=_model_headers(settings, model_url),
            # Traces of a session are OpenAI's; others refuse the field.
            tracing=model_url.startswith(OPENAI_MODEL_URL),
        ),
        greeting=settings.greeting or None,
        registry=MemoryRegistry(),
        account_sid=settings.twilio_account_sid,
        metrics=Metrics(),
        record_dir=settings.record_dir,
    )


def _model_headers(settings: Settings, model_url: str) -> dict[str, str]:
    headers = dict(settings.model_headers)
    key = settings.openai_api_key
    named = {name.lower() for name in headers}
    # The bundled fake is no place for a key; Azure's own headers stand alone.
    wanted = settings.model_target != LOCAL_MODEL
    if key and wanted and not named & {"authorization", "api-key"}:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    return headers


def _signatures(settings: Settings) -> Signatures | None:
    if settings.insecure:
        return None
    # cli.serve tells it better; here only so that no path leads around it.
    if settings.public_url is None or settings.twilio_auth_token is None:
        raise ValueError("neither BRIDGE_INSECURE nor what signatures need is set")
    token = settings.twilio_auth_token.get_secret_value()
    return Signatures(settings.public_url, token)


def _text(form: Form, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _parameter(form: Form, name: str) -> str:
    """Fit for a <Parameter>; a caller whose SIP address is not, calls all the same."""
    value = _text(form, name)
    if len(value) > MAX_PARAMETER_CHARS or not value.isprintable():
        log.warning("parameter_left_out", name=name)
        return ""
    return value


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _twiml(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
