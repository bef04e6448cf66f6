"""Twilio's webhooks: signed requests in, TwiML out.

What a call gets when it comes in, and when its stream or a transfer has ended. Knows no
sockets; which calls the instance has, its `Desk` says.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import web
from multidict import MultiDict

import twiml
from bridge.agent.live import CallFacts
from bridge.app.outbound import OutboundCalls, OutboundOrder
from bridge.app.overflow import RETURNING, WAITING, Overflow, QueuePlace
from bridge.app.routes import Route
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.call.call import RETURN_SECONDS, Call
from bridge.core import UNREADABLE
from bridge.fleet import NextStep, Then, formats
from bridge.fleet.plan import CallSnapshot, Plan
from bridge.http.signature import Signatures, websocket_origin
from bridge.http.tickets import PATH, Tickets
from bridge.records.report import report_of_silence

log = structlog.get_logger()

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

MAX_FIELDS = 500
"""Twilio's webhooks have some forty; sorting is what a signature costs."""

MAX_PARAMETER_CHARS = 400
"""Name and value of a <Parameter> must be under 500 characters together."""

PLAN_SECONDS = 24 * 3600.0
"""What an outbound call was placed for is known as long as a call can last."""

ENDED_SECONDS = 60.0
"""That the end of a stream is remembered; the next one begins at once."""

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

RESTART_SECONDS = 30
"""A caller waits so long at Twilio while all instances are recreated: up to 9 s until
the last call has left the old ones (core.conversation.HAND_OVER_SECONDS), then 6 to
24 s until docker compose has started new ones that take calls (seen on two cores)."""

MAX_RESTART_WAITS = 2
"""Of one call. Twilio hears no answer where no instance has started meanwhile."""

LATE_TICKET = "late_ticket"
"""On the shelf, with the call's SID: its stream was turned away though it was Twilio's:
it gets another."""

ANSWERED_BY = b"answered_by:"
"""A word for the instance that has a call: who picked up."""

ASKED = b"asked"
"""A word for the instance that had a call: Twilio has asked another what follows."""

ANSWERED = frozenset({"completed", "answered"})
"""DialCallStatus of a transfer that came about."""

UNANSWERED = frozenset({"busy", "no-answer", "failed", "canceled"})

NOT_ANSWERED = (
    "You tried to put the caller through, but nobody took the call ({status}). The "
    "caller is back with you: tell them in one sentence and ask how else you can help."
)

_ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?", re.ASCII)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Webhook:
    """A request that is Twilio's: that was checked."""

    request: web.Request
    form: "MultiDict[str]"
    origin: str
    """Where Twilio reaches us: https://host."""

    def text(self, name: str) -> str:
        return self.form.get(name, "")

    def plain(self) -> dict[str, str]:
        return dict(self.form.items())

    @property
    def call_sid(self) -> str:
        return self.text("CallSid")

    @property
    def account_sid(self) -> str:
        return self.text("AccountSid")

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query


class CallDirectory(Protocol):
    """The instance that is asked, with its calls."""

    def call(self, call_sid: str) -> Call | None:
        """The newest of that name, begun or about to."""

    def expect(self, call_sid: str) -> None:
        """Twilio was told to open another stream for a call of ours, if it is."""

    def asked(self, call_sid: str) -> None:
        """Twilio has asked what follows."""


class Webhooks:
    """`signatures` None: unsigned requests are served. `tickets` None: streams have
    none."""

    def __init__(
        self,
        settings: Settings,
        services: Services,
        directory: CallDirectory,
        signatures: Signatures | None,
        tickets: Tickets | None,
        outbound: OutboundCalls | None,
    ) -> None:
        self._settings = settings
        self._services = services
        self._registry = services.registry
        self._directory = directory
        self._signatures = signatures
        self._tickets = tickets
        self._outbound = outbound
        self._full = Overflow(
            settings.when_full, settings.queue_seconds, services.fallback_number
        )

    def routes(self) -> list[web.RouteDef]:
        paths = {
            "/voice": self._voice,
            "/voice/next": self._voice_next,
            "/stream-status": self._stream_status,
            "/call-status": self._call_status,
            "/amd-status": self._amd_status,
        }
        return [web.post(path, self._signed(it)) for path, it in paths.items()]

    def _signed(
        self, answer: Callable[[Webhook], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """What Twilio has signed, for this account; else 403. 415, 413, 408 and 400 for
        what cannot be read."""

        async def handle(request: web.Request) -> web.Response:
            if request.content_type not in (FORM, JSON):
                raise web.HTTPUnsupportedMediaType(text="a form is expected")
            body = await received(request.read(), self._services)
            form = _form_of(body) if request.content_type == FORM else _json_of(body)
            if self._signatures and not self._is_signed(request, form, body):
                raise self._refused(request, "signature", "not signed by Twilio")
            account = self._settings.twilio_account_sid
            if account and form.get("AccountSid") != account:
                raise self._refused(request, "account", "not of this account")
            if not form.get("CallSid"):
                raise web.HTTPBadRequest(text="there is no CallSid")
            return await answer(Webhook(request, form, self._origin(request)))

        return handle

    def _is_signed(
        self, request: web.Request, form: "MultiDict[str]", body: bytes
    ) -> bool:
        assert self._signatures, "somebody checks"
        target, headers = request.raw_path, request.headers
        if request.content_type == JSON:
            return self._signatures.json(target, body, headers)
        return self._signatures.form(target, form, headers)

    def _refused(self, request: web.Request, why: str, text: str) -> web.HTTPForbidden:
        log.warning("webhook_refused", path=request.path, why=why)
        self._services.metrics.refused(why)
        return web.HTTPForbidden(text=text)

    # --- what is asked ---

    async def _voice(self, ask: Webhook) -> web.Response:
        """A call is there, come in or placed by us: what Twilio is to do with it."""
        call_sid = ask.call_sid
        parameters = _both_ends(ask)
        order = await self._order(ask)
        if order is None and "order" in ask.query:
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
            kept = plan.encoded(self._registry.format())
            await self._registry.put(f"plan:{call_sid}", kept, PLAN_SECONDS)
        elif limit := await self._services.quotas.admit(call_sid, ask.text("From")):
            log.warning("call_rejected", call_sid=call_sid, limit=limit)
            return _twiml(twiml.reject())
        # Not whether we have room: the balancer brings the stream to whoever has.
        if not await self._registry.room():
            outbound = order is not None
            return await self._no_line(ask, parameters, outbound=outbound)
        log.info("call_answered", call_sid=call_sid)
        return _twiml(self._first_stream(ask, parameters))

    async def _no_line(
        self,
        ask: Webhook,
        parameters: Mapping[str, str],
        *,
        outbound: bool,
    ) -> web.Response:
        """No instance takes the call: the caller waits, or is told."""
        call_sid = ask.call_sid
        self._services.metrics.hit("calls")
        document = twiml.hang_up()  # whom we called need not hear it
        if not outbound:
            route = self._services.route_of(CallFacts.of(call_sid, parameters))
            if held := await self._hold(ask, route, "/voice", WAITING):
                return _twiml(held)
            document = self._full.refusal(route)
        log.warning(
            "call_refused", call_sid=call_sid, why=self._services.capacity.state
        )
        return _twiml(document)

    async def _hold(
        self, ask: Webhook, route: Route, path: str, name: str
    ) -> str | None:
        """A turn in the queue, after which Twilio asks `path`; None: no waiting. `name`
        is what the place is called in the query."""
        here, call_sid = self._services.capacity, ask.call_sid
        if here.draining and not await self._others_have_calls():
            return None  # nobody would be there to be asked
        place = _place(ask, name)

        def again(new: QueuePlace) -> str:
            query = ask.request.rel_url.update_query({name: str(new)}).raw_query_string
            return f"{ask.origin}{path}?{query}"

        document = self._full.hold(route, place, time.time(), again)
        if document and place is None:
            log.info("call_waits", call_sid=call_sid, why=here.state)
        return document

    async def _a_start_is_awaited(self, call_sid: str) -> bool:
        """All instances are stopping, as when `docker compose up` recreates them, and
        the ones that start next will know the call."""
        return (
            self._services.capacity.draining
            and await self._registry.reachable()
            and await self._once_more(f"restarting:{call_sid}", MAX_RESTART_WAITS)
        )

    def _wait_for_a_start(self, ask: Webhook, route: Route) -> str:
        """The caller waits at Twilio while no instance runs; then Twilio asks again."""
        log.info("call_waits", call_sid=ask.call_sid, why=self._services.capacity.state)
        query = f"?{BACK}=1" if BACK in ask.query else ""
        spoken = (route.language or "en").startswith("en")
        return twiml.hold(
            twiml.MOMENT if spoken else None,
            ask_url=f"{ask.origin}/voice/next{query}",
            pause_seconds=RESTART_SECONDS,
            language=route.language,
        )

    async def _others_have_calls(self) -> bool:
        """Where all are full, whoever else is there has some."""
        entries = await self._registry.calls()
        return any(self._directory.call(entry.call_sid) is None for entry in entries)

    async def _order(self, ask: Webhook) -> OutboundOrder | None:
        """What an outbound call was placed for."""
        order_id = ask.query.get("order")
        if order_id is None or self._outbound is None:
            return None
        return await self._outbound.order(order_id)

    def _first_stream(self, ask: Webhook, parameters: Mapping[str, str]) -> str:
        """Where no instance takes it after all, the caller keeps their place."""
        place = _place(ask, WAITING)
        query = "" if place is None else f"?{WAITING}={place}"
        return self._stream(ask, parameters, query)

    def _stream(
        self,
        ask: Webhook,
        parameters: Mapping[str, str],
        query: str = "",
    ) -> str:
        """`query` is what `/voice/next` is asked with."""
        origin, path = ask.origin, PATH
        if self._tickets:
            path = self._tickets.path(ask.account_sid, ask.call_sid)
        return twiml.connect(
            f"{websocket_origin(origin)}{path}",
            action_url=f"{origin}/voice/next{query}",
            status_callback_url=f"{origin}/stream-status",
            parameters=parameters,
        )

    async def _voice_next(self, ask: Webhook) -> web.Response:
        """The stream or a transfer has ended and somebody is still on the line."""
        call_sid = ask.call_sid
        if dialled := ask.text("DialCallStatus"):
            return await self._after_transfer(ask, dialled)
        step = await self._registry.next_step(call_sid)
        if BACK in ask.query and step and step.then is Then.TRANSFER:
            step = None  # that was tried; it is the way back that did not come about
        self._directory.asked(call_sid)
        if self._registry.shared:
            await self._registry.publish(call_sid, ASKED)
        if step is None or step.then is Then.RESUME:
            talk = await self._registry.get(f"snapshot:{call_sid}")
            if step is None and talk is not None:
                # Nobody else knows when it ended: how much was heard depends on it.
                ended, name = str(time.time()).encode(), f"stream_ended:{call_sid}"
                await self._registry.put(name, ended, ENDED_SECONDS)
            parameters = {**_both_ends(ask), **self._parameters(call_sid, talk)}
            gone = step is not None or self._directory.call(call_sid) is None
            if step is None and talk is None and gone:
                return await self._not_begun(ask, parameters)
            return await self._lead_on(ask, parameters, gone)
        return self._go_on(ask, step, {})

    def _parameters(self, call_sid: str, talk: bytes | None) -> Mapping[str, str]:
        """What the call's stream was given."""
        call = self._directory.call(call_sid)
        if talk is None and call and call.live:
            return call.live.facts.parameters
        return CallSnapshot.read(talk).parameters

    async def _lead_on(
        self, ask: Webhook, parameters: Mapping[str, str], gone: bool
    ) -> web.Response:
        """A call is handed over to us, or whoever had it died: a new stream, with all
        that the old one had. Where that cannot be, the caller waits or is told.

        `gone`: the call is not on this instance any more. One that is has its line, so
        it needs no free one.
        """
        call_sid = ask.call_sid
        route = self._services.route_of(CallFacts.of(call_sid, parameters))
        step = self._plan_b(route)
        if gone and not await self._registry.room():
            # Before the queue: where all stop, nobody is there at the end of a turn.
            if not step.number and await self._a_start_is_awaited(call_sid):
                return _twiml(self._wait_for_a_start(ask, route))
            back = "/voice/next"
            if held := await self._hold(ask, route, back, RETURNING):
                return _twiml(held)
        elif await self._once_more(f"resume_count:{call_sid}", MAX_RESUMES):
            step = NextStep(Then.RESUME)
            self._directory.expect(call_sid)
        return self._go_on(ask, step, parameters)

    async def _not_begun(
        self, ask: Webhook, parameters: Mapping[str, str]
    ) -> web.Response:
        """Nothing was kept of a call: its handshake failed, maybe as no instance had a
        line any more, or as its ticket came too late."""
        registry, call_sid = self._registry, ask.call_sid
        room = await registry.room()
        late = await registry.pop(f"{LATE_TICKET}:{call_sid}") is not None
        free = room and self._services.capacity.free
        # What a call of ours was for, nobody knows any more.
        ours = await registry.get(f"plan:{call_sid}") is not None
        if (
            room
            and (late or not free)
            and not ours
            and await self._once_more(f"refusal_count:{call_sid}", MAX_REFUSALS)
        ):
            log.info("call_answered", call_sid=call_sid)
            return _twiml(self._first_stream(ask, parameters))
        if free:
            route = self._services.route_of(CallFacts.of(call_sid, parameters))
            return self._go_on(ask, self._plan_b(route), parameters)
        return await self._no_line(ask, parameters, outbound=ours)

    def _go_on(
        self,
        ask: Webhook,
        step: NextStep,
        parameters: Mapping[str, str],
    ) -> web.Response:
        log.info("call_goes_on", call_sid=ask.call_sid, step=step.then.value)
        return _twiml(self._next_document(ask, step, parameters))

    def _plan_b(self, route: Route) -> NextStep:
        number = route.fallback or self._services.fallback_number
        language, text = route.language or "", route.sorry or ""
        return NextStep(Then.SORRY, number, language=language, text=text)

    async def _once_more(self, name: str, most: int) -> bool:
        """False when it has been done so often."""
        registry = self._registry
        count = int(await registry.get(name) or 0)
        if count >= most:
            return False
        await registry.put(name, str(count + 1).encode(), RESUMED_SECONDS)
        return True

    def _next_document(
        self,
        ask: Webhook,
        step: NextStep,
        parameters: Mapping[str, str],
    ) -> str:
        match step.then:
            case Then.HANG_UP:
                return twiml.hang_up()
            case Then.RESUME:
                return self._stream(ask, parameters)
            case Then.TRANSFER:
                return twiml.transfer(
                    step.number,
                    caller_id=step.caller_id or None,
                    action_url=f"{ask.origin}/voice/next",
                    timeout_seconds=step.ring_seconds,
                )
            case Then.SORRY:
                return twiml.sorry(
                    step.text or None,
                    fallback_number=step.number or None,
                    language=step.language or None,
                )

    async def _after_transfer(self, ask: Webhook, dialled: str) -> web.Response:
        """The other side has hung up, or never answered: then the caller is back with
        the agent, who knows it."""
        call_sid, registry = ask.call_sid, self._registry
        log.info("transfer_ended", call_sid=call_sid, status=dialled)
        talk = await registry.get(f"snapshot:{call_sid}")
        if dialled in ANSWERED or talk is None:
            await registry.pop(f"snapshot:{call_sid}")
            return _twiml(twiml.hang_up())
        if snapshot := formats.read(talk, CallSnapshot):
            word = NOT_ANSWERED.format(status=dialled)
            snapshot = msgspec.structs.replace(snapshot, instruction=word)
            kept = snapshot.encoded(registry.format())
            await registry.put(f"snapshot:{call_sid}", kept, RETURN_SECONDS)
            parameters = dict(snapshot.parameters)
        else:
            # What this version cannot read stays as it is: an instance of a newer
            # version may get the stream.
            parameters = _both_ends(ask)
        stream = self._stream(ask, parameters, f"?{BACK}=1")
        return _twiml(stream)

    async def _stream_status(self, ask: Webhook) -> web.Response:
        """The only word there is of a handshake that failed."""
        event = ask.text("StreamEvent")
        facts = {
            "call_sid": ask.call_sid,
            "stream_sid": ask.text("StreamSid"),
        }
        if event == "stream-error":
            log.warning("stream_error", error=ask.text("StreamError"), **facts)
        else:
            log.debug("stream_status", status=event, **facts)
        return web.Response(status=204)

    async def _call_status(self, ask: Webhook) -> web.Response:
        """How far a call is. Twilio's order is not kept, nor the instance."""
        call_sid, status = ask.call_sid, ask.text("CallStatus")
        known = (
            await self._outbound.note_status(ask.plain()) if self._outbound else None
        )
        log.info("call_status", call_sid=call_sid, status=status)
        if known and known.state in UNANSWERED:
            await self._report_unanswered(ask, known.state)
        return web.Response(status=204)

    async def _report_unanswered(self, ask: Webhook, state: str) -> None:
        """Nobody took a call that we placed: whoever had it placed is told."""
        call_sid, services = ask.call_sid, self._services
        route = await services.registry.get(f"route:{call_sid}")
        if route is None:
            return  # not one of ours
        parameters = {"Direction": "outbound", "Route": route.decode()}
        parameters |= {name: ask.text(name) for name in ("From", "To")}
        facts = CallFacts.of(call_sid, parameters)
        report = report_of_silence(facts, state, time.time())
        services.deliver_report(services.route_of(facts), report)

    async def _amd_status(self, ask: Webhook) -> web.Response:
        """Who has picked up: a person or a machine."""
        if self._outbound:
            who = await self._outbound.answered_by(ask.plain())
            if who and (call := self._directory.call(ask.call_sid)):
                call.answered_by(who)
            elif who:
                word = ANSWERED_BY + who.encode()
                await self._registry.publish(ask.call_sid, word)
        return web.Response(status=204)

    def _origin(self, request: web.Request) -> str:
        """Without a configured origin (development only) what the request, or the
        tunnel before us, says."""
        if self._settings.public_url:
            return self._settings.public_url
        scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
        host = request.headers.get("X-Forwarded-Host", request.host)
        origin = f"{scheme.split(',')[0].strip()}://{host.split(',')[0].strip()}"
        if not _ORIGIN.fullmatch(origin):
            raise web.HTTPBadRequest(text="no usable Host header")
        return origin


async def received(body: Awaitable[T], services: Services) -> T:
    """What a request has in it; 408, 413 or 400 where it does not come, is too much or
    is broken."""
    try:
        async with asyncio.timeout(services.limits.body_seconds):
            return await body
    except TimeoutError:
        services.metrics.hit("body_slow")
        raise web.HTTPRequestTimeout(text="the body did not come in time") from None
    except web.HTTPRequestEntityTooLarge:
        services.metrics.hit("body_bytes")
        raise
    except (ValueError, LookupError, web.RequestPayloadError, ConnectionError):
        raise web.HTTPBadRequest(text="the body cannot be read") from None


def _form_of(body: bytes) -> "MultiDict[str]":
    """As it was sent, repeated names and empty values included: all of it is signed."""
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise web.HTTPBadRequest(text="the form cannot be read") from None
    return MultiDict(pairs)


def _json_of(body: bytes) -> "MultiDict[str]":
    """The same fields as JSON; what is no text or number in it is left out."""
    try:
        said = msgspec.json.decode(body)
    except UNREADABLE:
        raise web.HTTPBadRequest(text="the body is no JSON") from None
    if not isinstance(said, dict):
        raise web.HTTPBadRequest(text="the body is no JSON object")
    return MultiDict(
        (name, str(value))
        for name, value in said.items()
        if isinstance(value, str | int | float)
    )


def _place(ask: Webhook, name: str) -> QueuePlace | None:
    """In the queue, as the query has it; None where it has none."""
    written = ask.query.get(name)
    return None if written is None else QueuePlace.read(written)


def _both_ends(ask: Webhook) -> dict[str, str]:
    """Who calls whom, as parameters of the stream."""
    return {name: _parameter(ask, name) for name in ("From", "To")}


def _parameter(ask: Webhook, name: str) -> str:
    """Fit for a <Parameter>; a caller whose SIP address is not, calls all the same."""
    value = ask.text(name)
    if len(value) > MAX_PARAMETER_CHARS or not value.isprintable():
        log.warning("parameter_left_out", name=name)
        return ""
    return value


def _twiml(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
