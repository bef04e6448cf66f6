"""The aiohttp application: Twilio's webhooks, the media socket, health, metrics.

Lets in who may come in, and gives each stream to a Call. Knows no audio, no model.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from multidict import MultiDictProxy
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import twiml
from bridge.agent.live import CallFacts, LiveCall
from bridge.call import RETURN_SECONDS, Call
from bridge.console import api
from bridge.core import ProtocolError
from bridge.core.conversation import HAND_OVER_SECONDS
from bridge.fleet import TAKEN, CallEntry, NextStep, Registry, Then
from bridge.fleet.plan import AnsweredBy, Earlier, Plan
from bridge.full_house import RETURNING, WAITING, FullHouse, Place
from bridge.house import House
from bridge.opening import Crew, open_house
from bridge.outbound import Outbound, OutboundOrder
from bridge.report import report_of_silence
from bridge.routes import Route
from bridge.settings import Settings
from bridge.signature import HEADER, Signatures, websocket_origin
from bridge.stream import Opened
from bridge.watch.metrics import Metrics

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 1024 * 1024
"""Above this a message is not even read, and the stream ends (close code 1009). Between
here and media_stream.MAX_MESSAGE_CHARS it is read, counted and ignored."""

MAX_FORM_BYTES = 64 * 1024
"""Twilio's webhooks are 1-2 kB."""

BODY_SECONDS = 10.0
"""For all of it to arrive: whoever sends it need not be Twilio."""

MAX_PARAMETER_CHARS = 400
"""Name and value of a <Parameter> must be under 500 characters together."""

PING_SECONDS = 20.0
"""A phone that is gone without a word is noticed after one and a half of these. Twilio
answers pings (it does on uvicorn's defaults, which ping as often)."""

CLOSE_SECONDS = 1.0
"""For Twilio to answer our close."""

PLAN_SECONDS = 24 * 3600.0
"""What an outbound call was placed for is known as long as a call can last."""

ENDED_SECONDS = 60.0
"""That the end of a stream is remembered; the next one begins at once."""

EXPECTED_SECONDS = 15.0
"""Until a new stream is there that Twilio was told to open."""

MAX_RESUMES = 5
"""Of one call: where every new stream breaks at once, there is no use in another."""

BACK = "back"
"""In the query of `/voice/next`: the stream was one after a transfer."""

MAX_REFUSALS = 2
"""What is known of the others' room is some seconds old: so often a stream that found
none is tried again."""

RESUMED_SECONDS = 120.0
"""That resumes and refusals are counted, from the last one on: a stream that lasts as
long is a good one."""

ANSWERED_BY = b"answered_by:"
"""A word for the instance that has a call: who picked up."""

ANSWERED = frozenset({"completed", "answered"})
"""DialCallStatus of a transfer that came about."""

UNANSWERED = frozenset({"busy", "no-answer", "failed", "canceled"})

NOT_ANSWERED = (
    "You tried to put the caller through, but nobody took the call ({status}). The "
    "caller is back with you: tell them in one sentence and ask how else you can help."
)

SHUTDOWN_SECONDS = 3.0
"""For the calls to end once draining is over."""

LOOK_SECONDS = 0.2
"""While draining, so often is looked whether SIP calls are left."""

_ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?", re.ASCII)

T = TypeVar("T")


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
        self._outbound = _outbound(settings, house)
        self._full = FullHouse(
            settings.when_full, settings.queue_seconds, house.fallback_number
        )
        self._calls: set[Call] = set()
        self._by_sid: dict[str, Call] = {}
        self._expected: dict[str, float] = {}
        """Calls of ours whose caller was given another stream, until when."""
        self._opening = 0
        """Streams of which nobody has said whose they are."""
        house.registry.listen(self._told)
        self._no_calls = asyncio.Event()
        self._no_calls.set()
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
                web.post("/amd-status", self._webhook(self._amd_status)),
                web.post("/openai/webhook", self._openai_webhook),
                web.get("/media", self._media),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        token = self._settings.api_token
        if token:
            app.add_subapp("/api", api.application(self, token.get_secret_value()))
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
        self._house.lines.draining = True
        log.info("draining", calls=len(self._calls), seconds=drain_seconds)
        drained = await _within(drain_seconds, self._last_call())
        if not drained and await self._house.registry.others():
            for call in list(self._calls):
                call.hand_over()
            limit = HAND_OVER_SECONDS + CLOSE_SECONDS
            drained = await _within(limit, self._last_call())
        if self._house.sip:
            self._house.sip.end("shutdown")
        if not drained:
            for call in list(self._calls):
                call.end("shutdown")
                if call.call_sid:
                    self._asking.add(call.call_sid)
                    self._nobody_asks.clear()
            if not await _within(SHUTDOWN_SECONDS, self._no_calls.wait()):
                log.warning("calls_left", calls=len(self._calls))
            # Who was cut off is told why: the listener stays until Twilio has asked.
            if not await _within(SHUTDOWN_SECONDS, self._nobody_asks.wait()):
                log.warning("callers_not_told", calls=len(self._asking))
        if self._runner:
            await self._runner.cleanup()
        log.info("closed")

    async def _last_call(self) -> None:
        """Returns when there is neither a stream nor a SIP call left."""
        await self._no_calls.wait()
        while self._house.lines.others():  # noqa: ASYNC110 - nobody tells of the last
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def calls(self) -> int:
        """Streams that are open now."""
        return len(self._calls)

    @property
    def metrics(self) -> Metrics:
        return self._house.metrics

    @property
    def registry(self) -> Registry:
        return self._house.registry

    async def registered(self) -> list[str]:
        """SIDs of the calls that the registry knows of."""
        return [entry.call_sid for entry in await self._house.registry.calls()]

    # --- webhooks ---

    def _webhook(
        self, answer: "Callable[[web.Request, Form], Awaitable[web.Response]]"
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A signed form in, or 403; 415 for what is no form."""

        async def handle(request: web.Request) -> web.Response:
            if request.content_type != "application/x-www-form-urlencoded":
                raise web.HTTPUnsupportedMediaType(text="a form is expected")
            form = await _received(request.post())
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
        """A call is there, come in or placed by us: what Twilio is to do with it."""
        call_sid = _text(form, "CallSid")
        parameters = _both_ends(form)
        order = await self._order(request)
        if order is None and "order" in request.query:
            # Void, or of another life of ours: whoever picked up is no caller, and
            # nobody knows what they were called for.
            log.warning("order_unknown", call_sid=call_sid)
            return _twiml(twiml.hang_up())
        if order is not None:
            ours = {"Direction": "outbound", "Route": order.route}
            parameters = {**order.parameters, **parameters, **ours}
            plan = Plan(
                greeting=order.greeting, machine=order.machine, message=order.message
            )
            await self._house.registry.put(
                f"plan:{call_sid}", plan.kept(), PLAN_SECONDS
            )
        # Not whether we have room: the balancer brings the stream to whoever has.
        if not await self._house.registry.room():
            outbound = order is not None
            return await self._no_line(request, call_sid, parameters, outbound=outbound)
        log.info("call_answered", call_sid=call_sid)
        return _twiml(self._first_stream(request, parameters))

    async def _no_line(
        self,
        request: web.Request,
        call_sid: str,
        parameters: Mapping[str, str],
        *,
        outbound: bool,
    ) -> web.Response:
        """No instance takes the call: the caller waits, or is told."""
        document = twiml.hang_up()  # whom we called need not hear it
        if not outbound:
            route = self._house.route_of(CallFacts.of(call_sid, parameters))
            if held := await self._hold(request, call_sid, route, "/voice", WAITING):
                return _twiml(held)
            document = self._full.refusal(route)
        log.warning("call_refused", call_sid=call_sid, why=self._house.lines.state)
        return _twiml(document)

    async def _hold(
        self, request: web.Request, call_sid: str, route: Route, path: str, name: str
    ) -> str | None:
        """A turn in the queue, after which Twilio asks `path`; None: no waiting. `name`
        is what the place is called in the query."""
        here = self._house.lines
        if here.draining and not await self._others_have_calls():
            return None  # nobody would be there to be asked
        place = _place(request, name)

        def ask(new: Place) -> str:
            query = request.rel_url.update_query({name: str(new)}).raw_query_string
            return f"{self._origin(request)}{path}?{query}"

        document = self._full.hold(route, place, time.time(), ask)
        if document and place is None:
            log.info("call_waits", call_sid=call_sid, why=here.state)
        return document

    async def _others_have_calls(self) -> bool:
        """Where all are full, whoever else is there has some."""
        entries = await self._house.registry.calls()
        return any(self._call(entry.call_sid) is None for entry in entries)

    async def _order(self, request: web.Request) -> OutboundOrder | None:
        """What an outbound call was placed for."""
        order_id = request.query.get("order")
        if order_id is None or self._outbound is None:
            return None
        return await self._outbound.order(order_id)

    def _first_stream(self, request: web.Request, parameters: Mapping[str, str]) -> str:
        """Where no instance takes it after all, the caller keeps their place."""
        place = _place(request, WAITING)
        query = "" if place is None else f"?{WAITING}={place}"
        return self._stream(self._origin(request), parameters, query)

    def _stream(
        self, origin: str, parameters: Mapping[str, str], query: str = ""
    ) -> str:
        """`query` is what `/voice/next` is asked with."""
        return twiml.connect(
            f"{websocket_origin(origin)}/media",
            action_url=f"{origin}/voice/next{query}",
            status_callback_url=f"{origin}/stream-status",
            parameters=parameters,
        )

    async def _voice_next(self, request: web.Request, form: "Form") -> web.Response:
        """The stream or a transfer has ended and somebody is still on the line."""
        call_sid = _text(form, "CallSid")
        if dialled := _text(form, "DialCallStatus"):
            return await self._after_transfer(request, form, dialled)
        step = await self._house.registry.next_step(call_sid)
        if BACK in request.query and step and step.then is Then.TRANSFER:
            step = None  # that was tried; it is the way back that did not come about
        self._asking.discard(call_sid)
        if not self._asking:
            self._nobody_asks.set()
        if step is None or step.then is Then.RESUME:
            talk = await self._house.registry.get(f"talk:{call_sid}")
            if step is None and talk is not None:
                # Nobody else knows when it ended: how much was heard depends on it.
                ended, name = str(time.time()).encode(), f"ended:{call_sid}"
                await self._house.registry.put(name, ended, ENDED_SECONDS)
            parameters = {**_both_ends(form), **self._parameters(call_sid, talk)}
            if step is None and talk is None and self._call(call_sid) is None:
                return await self._not_begun(request, call_sid, parameters)
            return await self._lead_on(request, call_sid, parameters)
        return self._go_on(request, call_sid, step, {})

    def _parameters(self, call_sid: str, talk: bytes | None) -> Mapping[str, str]:
        """What the call's stream was given."""
        call = self._call(call_sid)
        if talk is None and call and call.live:
            return call.live.facts.parameters
        return Earlier.read(talk).parameters

    async def _lead_on(
        self, request: web.Request, call_sid: str, parameters: Mapping[str, str]
    ) -> web.Response:
        """A call is handed over to us, or whoever had it died: a new stream, with all
        that the old one had. Where that cannot be, the caller waits or is told."""
        route = self._house.route_of(CallFacts.of(call_sid, parameters))
        step = self._plan_b(route)
        # What may be left of it here takes no other call's line.
        if not await self._house.registry.room() and self._call(call_sid) is None:
            back = "/voice/next"
            if held := await self._hold(request, call_sid, route, back, RETURNING):
                return _twiml(held)
        elif await self._once_more(f"resumed:{call_sid}", MAX_RESUMES):
            step = NextStep(Then.RESUME)
            if self._call(call_sid) is not None:
                self._expected[call_sid] = time.monotonic() + EXPECTED_SECONDS
        return self._go_on(request, call_sid, step, parameters)

    async def _not_begun(
        self, request: web.Request, call_sid: str, parameters: Mapping[str, str]
    ) -> web.Response:
        """Nothing was kept of a call: its handshake failed, maybe as no instance had a
        line any more."""
        registry = self._house.registry
        room = await registry.room()
        if room and self._house.lines.free:
            route = self._house.route_of(CallFacts.of(call_sid, parameters))
            return self._go_on(request, call_sid, self._plan_b(route), parameters)
        # What a call of ours was for, nobody knows any more.
        ours = await registry.get(f"plan:{call_sid}") is not None
        if (
            room
            and not ours
            and await self._once_more(f"refused:{call_sid}", MAX_REFUSALS)
        ):
            log.info("call_answered", call_sid=call_sid)
            return _twiml(self._first_stream(request, parameters))
        return await self._no_line(request, call_sid, parameters, outbound=ours)

    def _go_on(
        self,
        request: web.Request,
        call_sid: str,
        step: NextStep,
        parameters: Mapping[str, str],
    ) -> web.Response:
        log.info("call_goes_on", call_sid=call_sid, step=step.then.value)
        return _twiml(self._next_document(step, self._origin(request), parameters))

    def _plan_b(self, route: Route) -> NextStep:
        number = route.fallback or self._house.fallback_number
        language, text = route.language or "", route.sorry or ""
        return NextStep(Then.SORRY, number, language=language, text=text)

    async def _once_more(self, name: str, most: int) -> bool:
        """False when it has been done so often."""
        registry = self._house.registry
        count = int(await registry.get(name) or 0)
        if count >= most:
            return False
        await registry.put(name, str(count + 1).encode(), RESUMED_SECONDS)
        return True

    def _next_document(
        self, step: NextStep, origin: str, parameters: Mapping[str, str]
    ) -> str:
        match step.then:
            case Then.HANG_UP:
                return twiml.hang_up()
            case Then.RESUME:
                return self._stream(origin, parameters)
            case Then.TRANSFER:
                return twiml.transfer(
                    step.number,
                    caller_id=step.caller_id or None,
                    action_url=f"{origin}/voice/next",
                    timeout_seconds=step.ring_seconds,
                )
            case Then.SORRY:
                return twiml.sorry(
                    step.text or None,
                    fallback_number=step.number or None,
                    language=step.language or None,
                )

    async def _after_transfer(
        self, request: web.Request, form: "Form", dialled: str
    ) -> web.Response:
        """The other side has hung up, or never answered: then the caller is back with
        the agent, who knows it."""
        call_sid, registry = _text(form, "CallSid"), self._house.registry
        log.info("transfer_ended", call_sid=call_sid, status=dialled)
        talk = await registry.get(f"talk:{call_sid}")
        if dialled in ANSWERED or talk is None:
            await registry.take(f"talk:{call_sid}")
            return _twiml(twiml.hang_up())
        word = NOT_ANSWERED.format(status=dialled)
        earlier = msgspec.structs.replace(Earlier.read(talk), word=word)
        await registry.put(f"talk:{call_sid}", earlier.kept(), RETURN_SECONDS)
        parameters = dict(earlier.parameters)
        stream = self._stream(self._origin(request), parameters, f"?{BACK}=1")
        return _twiml(stream)

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
        """How far a call is. Twilio's order is not kept, nor the instance."""
        call_sid, status = _text(form, "CallSid"), _text(form, "CallStatus")
        known = (
            await self._outbound.note_status(_plain(form)) if self._outbound else None
        )
        log.info("call_status", call_sid=call_sid, status=status)
        if known and known.state in UNANSWERED:
            await self._report_unanswered(form, known.state)
        return web.Response(status=204)

    async def _report_unanswered(self, form: "Form", state: str) -> None:
        """Nobody took a call that we placed: whoever had it placed is told."""
        call_sid, house = _text(form, "CallSid"), self._house
        route = await house.registry.get(f"route:{call_sid}")
        if route is None:
            return  # not one of ours
        parameters = {"Direction": "outbound", "Route": route.decode()}
        parameters |= {name: _text(form, name) for name in ("From", "To")}
        facts = CallFacts.of(call_sid, parameters)
        report = report_of_silence(facts, state, time.time())
        house.hand_over(house.route_of(facts), report)

    async def _amd_status(self, request: web.Request, form: "Form") -> web.Response:
        """Who has picked up: a person or a machine."""
        if self._outbound:
            who = await self._outbound.answered_by(_plain(form))
            call = self._call(_text(form, "CallSid"))
            if who and call:
                call.answered_by(who)
            elif who:
                word = ANSWERED_BY + who.encode()
                await self._house.registry.tell(_text(form, "CallSid"), word)
        return web.Response(status=204)

    # --- the stream ---

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """The media stream of one call, as long as it lasts."""
        if self._signatures and not self._signatures.handshake(
            request.raw_path, request.headers.get(HEADER)
        ):
            log.warning("stream_refused", why="signature")
            raise web.HTTPForbidden(text="not signed by Twilio")
        lines = self._house.lines
        # A caller whose stream broke may be back: they have a line here, even if all
        # are taken, or the last calls are ending.
        if not (lines.free or self._expects()):
            # 503: a balancer in front tries the next instance.
            log.info("stream_refused", why=lines.state)
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
        since = time.monotonic()
        self._count(opening=+1)
        try:
            phone = await Opened.of(PhoneSocket(socket))
        finally:
            self._count(opening=-1)
        sid = phone.call_sid or ""
        call = self._call(sid)
        self._expected.pop(sid, None)
        if call is None or not await call.take_over(phone):
            if lines.free:
                await self._carry(Call(phone, self._house, since), sid)
            else:
                log.info("stream_refused", why=lines.state)
                await phone.close()
        return socket

    def _expects(self) -> bool:
        """Somebody whom we have a call of was told to come back."""
        now = time.monotonic()
        for sid, until in list(self._expected.items()):
            if until < now or self._call(sid) is None:
                del self._expected[sid]
        return bool(self._expected) or any(call.waits for call in self._calls)

    async def _carry(self, call: Call, call_sid: str) -> None:
        self._calls.add(call)
        self._by_sid[call_sid] = call
        self._no_calls.clear()
        self._count()
        try:
            await call.run()
        finally:
            self._calls.discard(call)
            if self._by_sid.get(call_sid) is call:
                del self._by_sid[call_sid]
            self._count()
            if not self._calls:
                self._no_calls.set()

    def _count(self, opening: int = 0) -> None:
        self._opening += opening
        self._house.lines.streams = len(self._calls) + self._opening

    def _told(self, call_sid: str, word: bytes) -> None:
        """A word of another instance's about a call that may be ours."""
        call = self._call(call_sid)
        if call is None:
            return
        if word == TAKEN:
            call.taken()
        elif word.startswith(ANSWERED_BY):
            call.answered_by(AnsweredBy(word.removeprefix(ANSWERED_BY).decode()))

    async def _openai_webhook(self, request: web.Request) -> web.Response:
        """A call comes in over SIP: OpenAI has its audio, the agent is ours."""
        if self._house.sip is None:
            raise web.HTTPNotFound(text="SIP calls are not set up here")
        body = await _received(request.read())
        status, text = await self._house.sip.incoming(request.headers, body)
        return web.Response(status=status, text=text)

    # --- the control API's view (bridge.console.api.Calls) ---

    def live(self, call_sid: str) -> LiveCall | None:
        """A call of this instance."""
        call = self._call(call_sid)
        if call is None:
            return self._house.sip.live(call_sid) if self._house.sip else None
        return call.live

    async def entries(self) -> list[CallEntry]:
        return await self._house.registry.calls()

    async def place(self, wanted: api.PlaceCall) -> str:
        """Calls somebody; api.Refused says why not."""
        if self._outbound is None:
            raise api.Refused(
                409,
                "Outbound calls are not set up",
                "They need BRIDGE_PUBLIC_URL, TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN "
                "and BRIDGE_OUTBOUND_PREFIXES.",
            )
        if not self._house.lines.free:
            detail = f"The bridge is {self._house.lines.state}."
            raise api.Refused(503, "There is no line for the call", detail)
        number = wanted.from_number or self._settings.outbound_number
        sid = await api.place(self._outbound, wanted, number, self._house.routes)
        # Its statuses say nothing of what it was placed for.
        route = wanted.route.encode()
        await self._house.registry.put(f"route:{sid}", route, PLAN_SECONDS)
        return sid

    def _call(self, call_sid: str) -> Call | None:
        """The newest of that name, begun or about to."""
        return self._by_sid.get(call_sid) if call_sid else None

    # --- for operators ---

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "calls": len(self._calls)})

    async def _readyz(self, request: web.Request) -> web.Response:
        state = self._house.lines.state
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
        if not _ORIGIN.fullmatch(origin):
            raise web.HTTPBadRequest(text="no usable Host header")
        return origin


Form = MultiDictProxy[Any]


@asynccontextmanager
async def serving(
    settings: Settings, crew: Crew, model_url: str
) -> AsyncIterator[Server]:
    """A running server with agents and a model; closed, with its calls, on the way
    out. `model_url` is where the model is, whatever the settings call it."""
    async with open_house(settings, crew, model_url) as house:
        server = Server(settings, house)
        await server.start()
        try:
            yield server
        finally:
            await server.close()


def _signatures(settings: Settings) -> Signatures | None:
    if settings.insecure:
        return None
    # cli.serve tells it better; here only so that no path leads around it.
    if settings.public_url is None or settings.twilio_auth_token is None:
        raise ValueError("neither BRIDGE_INSECURE nor what signatures need is set")
    token = settings.twilio_auth_token.get_secret_value()
    return Signatures(settings.public_url, token)


def _outbound(settings: Settings, house: House) -> Outbound | None:
    """None where it is not wanted, or where Twilio could not call us back."""
    sid, token = settings.twilio_account_sid, settings.twilio_auth_token
    if not (settings.outbound_prefixes and settings.public_url and sid and token):
        return None
    return Outbound(
        house.registry,
        account_sid=sid,
        auth_token=token.get_secret_value(),
        public_url=settings.public_url,
        prefixes=settings.outbound_prefixes,
        at_once=settings.outbound_calls,
        api_url=settings.twilio_api_url,
    )


def _plain(form: Form) -> dict[str, str]:
    return {name: value for name, value in form.items() if isinstance(value, str)}


def _text(form: Form, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def _place(request: web.Request, name: str) -> Place | None:
    """In the queue, as the query has it; None where it has none."""
    written = request.query.get(name)
    return None if written is None else Place.read(written)


def _both_ends(form: Form) -> dict[str, str]:
    """Who calls whom, as parameters of the stream."""
    return {name: _parameter(form, name) for name in ("From", "To")}


def _parameter(form: Form, name: str) -> str:
    """Fit for a <Parameter>; a caller whose SIP address is not, calls all the same."""
    value = _text(form, name)
    if len(value) > MAX_PARAMETER_CHARS or not value.isprintable():
        log.warning("parameter_left_out", name=name)
        return ""
    return value


async def _received(body: Awaitable[T]) -> T:
    """What a request has in it; 408 or 400 where it does not come, or is broken."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await body
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body did not come in time") from None
    except (ValueError, LookupError, web.RequestPayloadError, ConnectionError):
        raise web.HTTPBadRequest(text="the body cannot be read") from None


async def _within(seconds: float, wait: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        return False
    return True


def _twiml(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
