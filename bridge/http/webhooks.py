"""Twilio's webhooks: signed requests in, TwiML out.

They decide what Twilio does with a new call, and with a call whose stream or transfer
has ended. They know no sockets; the CallDirectory knows the instance's calls.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

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
from bridge.call.call import Call
from bridge.call.continuity import RETURN_SECONDS
from bridge.fleet import NextStep, Then, formats
from bridge.fleet.plan import Plan
from bridge.fleet.snapshot import CallSnapshot
from bridge.http.signature import Signatures, websocket_origin
from bridge.http.tickets import PATH, Tickets
from bridge.http.webhook_fields import (
    FORM,
    JSON,
    Webhook,
    form_of,
    from_and_to,
    json_of,
    read_body,
)
from bridge.records.report import report_of_silence
from twiml import spoken_texts

log = structlog.get_logger()

PLAN_SECONDS = 24 * 3600.0
"""The plan of an outbound call is stored as long as a call can last."""

ENDED_SECONDS = 60.0
"""How long the time at which a stream ended is stored; the next stream starts at
once."""

MAX_RESUMES = 5
"""Limit per call: if every new stream breaks at once, another one will not help."""

AFTER_TRANSFER = "back"
"""Query parameter of `/voice/next`: the stream that ended followed a transfer."""

MAX_REFUSALS = 2
"""Retries of a first stream that no instance took. The registry's view of the other
instances' free capacity is some seconds old, so a retry may succeed."""

RESUMED_SECONDS = 120.0
"""The counts of resumes and refusals start again after this time without a new one: a
stream that lasts this long is healthy."""

RESTART_SECONDS = 30
"""The pause that a caller waits at Twilio while all instances are recreated: up to 9 s
until the last call has left the old ones (core.conversation.HAND_OVER_SECONDS), then 6
to 24 s until docker compose has started new ones that take calls (measured on two
cores)."""

MAX_RESTART_WAITS = 2
"""Limit per call. If no instance has started meanwhile, Twilio gets no answer."""

LATE_TICKET = "late_ticket"
"""Registry key, followed by the call's SID: Twilio's handshake was refused because its
ticket was expired or used. The call gets another stream."""

ANSWERED_BY = b"answered_by:"
"""Start of a message to the instance that has a call; the AnsweredBy value follows."""

NEXT_STEP_REQUESTED = b"asked"
"""Message to the instance that had a call: Twilio asked another instance for the next
step."""

ANSWERED = frozenset({"completed", "answered"})
"""DialCallStatus of a transfer that was answered."""

UNANSWERED = frozenset({"busy", "no-answer", "failed", "canceled"})

NOT_ANSWERED = (
    "You tried to put the caller through, but nobody took the call ({status}). The "
    "caller is back with you: tell them in one sentence and ask how else you can help."
)

_ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?", re.ASCII)


class CallDirectory(Protocol):
    """The calls of the instance that got the webhook."""

    def call(self, call_sid: str) -> Call | None:
        """The newest call with this SID, running or about to run."""

    def expect_stream(self, call_sid: str) -> None:
        """Twilio was told to open another stream for the call. No effect if the call is
        not on this instance."""

    def next_step_requested(self, call_sid: str) -> None:
        """Twilio has asked for the call's next step."""


class Webhooks:
    """`signatures` None: unsigned requests are accepted. `tickets` None: the URLs of
    streams contain no ticket."""

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
        self._overflow = Overflow(
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
        """Passes on requests that Twilio signed for this account; 403 for others. 415,
        413, 408 or 400 if a request cannot be read."""

        async def handle(request: web.Request) -> web.Response:
            if request.content_type not in (FORM, JSON):
                raise web.HTTPUnsupportedMediaType(
                    text="the body is not a form or JSON"
                )
            body = await read_body(request.read(), self._services)
            form = form_of(body) if request.content_type == FORM else json_of(body)
            if self._signatures and not self._is_signed(request, form, body):
                raise self._refused(request, "signature", "not signed by Twilio")
            account = self._settings.twilio_account_sid
            if account and form.get("AccountSid") != account:
                raise self._refused(
                    request, "account", "AccountSid is of another account"
                )
            if not form.get("CallSid"):
                raise web.HTTPBadRequest(text="CallSid is missing")
            return await answer(Webhook(request, form, self._origin(request)))

        return handle

    def _is_signed(
        self, request: web.Request, form: "MultiDict[str]", body: bytes
    ) -> bool:
        assert self._signatures, "checked only if there are signatures"
        target, headers = request.raw_path, request.headers
        if request.content_type == JSON:
            return self._signatures.json(target, body, headers)
        return self._signatures.form(target, form, headers)

    def _refused(self, request: web.Request, why: str, text: str) -> web.HTTPForbidden:
        log.warning("webhook_refused", path=request.path, why=why)
        self._services.metrics.refused(why)
        return web.HTTPForbidden(text=text)

    # --- the webhooks ---

    async def _voice(self, webhook: Webhook) -> web.Response:
        """`/voice`: a call has come in, or an outbound call was answered."""
        call_sid = webhook.call_sid
        parameters = from_and_to(webhook)
        order = await self._outbound_order(webhook)
        if order is None and "order" in webhook.query:
            # The order has expired, or is from before a restart. The person who
            # answered is not a caller, and the purpose of the call is not known any
            # more.
            log.warning("outbound_order_unknown", call_sid=call_sid)
            return _twiml(twiml.hang_up())
        if order is not None:
            own = {"Direction": "outbound", "Route": order.route}
            parameters = {**order.parameters, **parameters, **own}
            plan = Plan(
                greeting=order.greeting, machine=order.machine, message=order.message
            )
            encoded = plan.encoded(self._registry.format())
            await self._registry.put(f"plan:{call_sid}", encoded, PLAN_SECONDS)
        elif limit := await self._services.quotas.admit(call_sid, webhook.text("From")):
            log.warning("call_rejected", call_sid=call_sid, limit=limit)
            return _twiml(twiml.reject())
        # Any instance's free capacity counts, not only this one's: the balancer sends
        # the stream to an instance that has free capacity.
        if not await self._registry.room():
            outbound = order is not None
            return await self._hold_or_refuse(webhook, parameters, outbound=outbound)
        log.info("call_answered", call_sid=call_sid)
        return _twiml(self._first_stream(webhook, parameters))

    async def _hold_or_refuse(
        self,
        webhook: Webhook,
        parameters: Mapping[str, str],
        *,
        outbound: bool,
    ) -> web.Response:
        """No instance takes the call: the caller waits in the queue or hears a
        refusal."""
        call_sid = webhook.call_sid
        self._services.metrics.hit("calls")
        document = twiml.hang_up()  # the person called hears no refusal
        if not outbound:
            route = self._services.route_of(CallFacts.of(call_sid, parameters))
            if held := await self._hold(webhook, route, "/voice", WAITING):
                return _twiml(held)
            document = self._overflow.refusal(route)
        log.warning(
            "call_refused", call_sid=call_sid, why=self._services.capacity.state
        )
        return _twiml(document)

    async def _hold(
        self, webhook: Webhook, route: Route, path: str, name: str
    ) -> str | None:
        """One turn in the queue, after which Twilio requests `path` again; None if
        there is no queue. `name`: the query parameter that holds the place."""
        capacity, call_sid = self._services.capacity, webhook.call_sid
        if capacity.draining and not await self._other_instance_has_calls():
            return None  # no instance would be left to answer
        place = _queue_place(webhook, name)

        def next_url(new: QueuePlace) -> str:
            query = webhook.request.rel_url.update_query(
                {name: str(new)}
            ).raw_query_string
            return f"{webhook.origin}{path}?{query}"

        document = self._overflow.hold(route, place, time.time(), next_url)
        if document and place is None:
            log.info("call_queued", call_sid=call_sid, why=capacity.state)
        return document

    async def _may_wait_for_restart(self, call_sid: str) -> bool:
        """All instances are stopping, as when `docker compose up` recreates them, and
        the next ones will find the call in the registry. Counts the attempt."""
        return (
            self._services.capacity.draining
            and await self._registry.reachable()
            and await self._take_attempt(f"restarting:{call_sid}", MAX_RESTART_WAITS)
        )

    def _restart_document(self, webhook: Webhook, route: Route) -> str:
        """The caller waits at Twilio while no instance runs; then Twilio asks again."""
        log.info(
            "call_queued", call_sid=webhook.call_sid, why=self._services.capacity.state
        )
        query = f"?{AFTER_TRANSFER}=1" if AFTER_TRANSFER in webhook.query else ""
        spoken = (route.language or "en").startswith("en")
        return twiml.hold(
            spoken_texts.MOMENT if spoken else None,
            ask_url=f"{webhook.origin}/voice/next{query}",
            pause_seconds=RESTART_SECONDS,
            language=route.language,
        )

    async def _other_instance_has_calls(self) -> bool:
        """If all instances are full and others exist, those have calls."""
        entries = await self._registry.calls()
        return any(self._directory.call(entry.call_sid) is None for entry in entries)

    async def _outbound_order(self, webhook: Webhook) -> OutboundOrder | None:
        """The order that an outbound call was placed for; None for other calls."""
        order_id = webhook.query.get("order")
        if order_id is None or self._outbound is None:
            return None
        return await self._outbound.order(order_id)

    def _first_stream(self, webhook: Webhook, parameters: Mapping[str, str]) -> str:
        """TwiML for the first stream. The caller keeps the place in the queue, in case
        no instance takes the stream."""
        place = _queue_place(webhook, WAITING)
        query = "" if place is None else f"?{WAITING}={place}"
        return self._stream_document(webhook, parameters, query)

    def _stream_document(
        self,
        webhook: Webhook,
        parameters: Mapping[str, str],
        query: str = "",
    ) -> str:
        """`query`: query of the `/voice/next` request that follows the stream."""
        origin, path = webhook.origin, PATH
        if self._tickets:
            path = self._tickets.path(webhook.account_sid, webhook.call_sid)
        return twiml.connect(
            f"{websocket_origin(origin)}{path}",
            action_url=f"{origin}/voice/next{query}",
            status_callback_url=f"{origin}/stream-status",
            parameters=parameters,
        )

    async def _voice_next(self, webhook: Webhook) -> web.Response:
        """`/voice/next`: the stream or a transfer has ended, and the caller is still
        there."""
        call_sid = webhook.call_sid
        if dialled := webhook.text("DialCallStatus"):
            return await self._after_transfer(webhook, dialled)
        step = await self._registry.next_step(call_sid)
        if AFTER_TRANSFER in webhook.query and step and step.then is Then.TRANSFER:
            step = None  # the transfer was tried; the stream after it failed
        self._directory.next_step_requested(call_sid)
        if self._registry.shared:
            await self._registry.publish(call_sid, NEXT_STEP_REQUESTED)
        if step is None or step.then is Then.RESUME:
            stored = await self._registry.get(f"snapshot:{call_sid}")
            if step is None and stored is not None:
                # The time at which the stream ended is stored nowhere else, and what
                # the caller heard depends on it.
                ended, name = str(time.time()).encode(), f"stream_ended:{call_sid}"
                await self._registry.put(name, ended, ENDED_SECONDS)
            parameters = {**from_and_to(webhook), **self._parameters(call_sid, stored)}
            moved = step is not None or self._directory.call(call_sid) is None
            if step is None and stored is None and moved:
                return await self._retry_first_stream(webhook, parameters)
            return await self._resume_call(webhook, parameters, moved)
        return self._respond(webhook, step, {})

    def _parameters(self, call_sid: str, stored: bytes | None) -> Mapping[str, str]:
        """The parameters that the call's stream had."""
        call = self._directory.call(call_sid)
        if stored is None and call and call.live:
            return call.live.facts.parameters
        return CallSnapshot.read(stored).parameters

    async def _resume_call(
        self, webhook: Webhook, parameters: Mapping[str, str], moved: bool
    ) -> web.Response:
        """Resumes a call that was handed over, or whose instance died: a new stream
        with the parameters of the old one. If that is not possible, the caller waits or
        hears the apology.

        `moved`: the call is not on this instance any more, so it needs free capacity. A
        call that is still here needs no more capacity.
        """
        call_sid = webhook.call_sid
        route = self._services.route_of(CallFacts.of(call_sid, parameters))
        step = self._fallback_step(route)
        if moved and not await self._registry.room():
            # Checked before the queue: if all instances stop, none can answer when the
            # turn in the queue ends.
            if not step.number and await self._may_wait_for_restart(call_sid):
                return _twiml(self._restart_document(webhook, route))
            back = "/voice/next"
            if held := await self._hold(webhook, route, back, RETURNING):
                return _twiml(held)
        elif await self._take_attempt(f"resume_count:{call_sid}", MAX_RESUMES):
            step = NextStep(Then.RESUME)
            self._directory.expect_stream(call_sid)
        return self._respond(webhook, step, parameters)

    async def _retry_first_stream(
        self, webhook: Webhook, parameters: Mapping[str, str]
    ) -> web.Response:
        """No snapshot of the call exists: the handshake of its first stream failed,
        perhaps because no instance had free capacity any more, or because its ticket
        came late."""
        registry, call_sid = self._registry, webhook.call_sid
        room = await registry.room()
        late = await registry.pop(f"{LATE_TICKET}:{call_sid}") is not None
        free = room and self._services.capacity.free
        # An outbound call is not retried: its parameters are not known any more.
        outbound = await registry.get(f"plan:{call_sid}") is not None
        if (
            room
            and (late or not free)
            and not outbound
            and await self._take_attempt(f"refusal_count:{call_sid}", MAX_REFUSALS)
        ):
            log.info("call_answered", call_sid=call_sid)
            return _twiml(self._first_stream(webhook, parameters))
        if free:
            route = self._services.route_of(CallFacts.of(call_sid, parameters))
            return self._respond(webhook, self._fallback_step(route), parameters)
        return await self._hold_or_refuse(webhook, parameters, outbound=outbound)

    def _respond(
        self,
        webhook: Webhook,
        step: NextStep,
        parameters: Mapping[str, str],
    ) -> web.Response:
        log.info("next_step_sent", call_sid=webhook.call_sid, step=step.then.value)
        return _twiml(self._next_document(webhook, step, parameters))

    def _fallback_step(self, route: Route) -> NextStep:
        number = route.fallback or self._services.fallback_number
        language, text = route.language or "", route.sorry or ""
        return NextStep(Then.SORRY, number, language=language, text=text)

    async def _take_attempt(self, name: str, most: int) -> bool:
        """Counts an attempt. False if `most` were made before."""
        registry = self._registry
        count = int(await registry.get(name) or 0)
        if count >= most:
            return False
        await registry.put(name, str(count + 1).encode(), RESUMED_SECONDS)
        return True

    def _next_document(
        self,
        webhook: Webhook,
        step: NextStep,
        parameters: Mapping[str, str],
    ) -> str:
        match step.then:
            case Then.HANG_UP:
                return twiml.hang_up()
            case Then.RESUME:
                return self._stream_document(webhook, parameters)
            case Then.TRANSFER:
                return twiml.transfer(
                    step.number,
                    caller_id=step.caller_id or None,
                    action_url=f"{webhook.origin}/voice/next",
                    timeout_seconds=step.ring_seconds,
                )
            case Then.SORRY:
                return twiml.sorry(
                    step.text or None,
                    fallback_number=step.number or None,
                    language=step.language or None,
                )

    async def _after_transfer(self, webhook: Webhook, dialled: str) -> web.Response:
        """A transfer has ended. If the other phone did not answer, the caller returns
        to the agent, and the agent gets a message about it."""
        call_sid, registry = webhook.call_sid, self._registry
        log.info("transfer_ended", **webhook.log_fields("transfer_ended"))
        stored = await registry.get(f"snapshot:{call_sid}")
        if dialled in ANSWERED or stored is None:
            await registry.delete(f"snapshot:{call_sid}")
            return _twiml(twiml.hang_up())
        if snapshot := formats.read(stored, CallSnapshot):
            text = NOT_ANSWERED.format(status=dialled)
            snapshot = msgspec.structs.replace(snapshot, instruction=text)
            encoded = snapshot.encoded(registry.format())
            await registry.put(f"snapshot:{call_sid}", encoded, RETURN_SECONDS)
            parameters = dict(snapshot.parameters)
        else:
            # A snapshot that this version cannot read is left as it is: an instance of
            # a newer version may get the stream.
            parameters = from_and_to(webhook)
        stream = self._stream_document(webhook, parameters, f"?{AFTER_TRANSFER}=1")
        return _twiml(stream)

    async def _stream_status(self, webhook: Webhook) -> web.Response:
        """`/stream-status`: the only report of a handshake that failed."""
        if webhook.text("StreamEvent") == "stream-error":
            log.warning("stream_error", **webhook.log_fields("stream_error"))
        else:
            log.debug("stream_status", **webhook.log_fields("stream_status"))
        return web.Response(status=204)

    async def _call_status(self, webhook: Webhook) -> web.Response:
        """`/call-status`: the progress of a call. Twilio may send statuses out of order
        and to any instance."""
        known = (
            await self._outbound.note_status(webhook.plain())
            if self._outbound
            else None
        )
        log.info("call_status", **webhook.log_fields("call_status"))
        if known and known.state in UNANSWERED:
            await self._report_unanswered(webhook, known.state)
        return web.Response(status=204)

    async def _report_unanswered(self, webhook: Webhook, state: str) -> None:
        """An outbound call was not answered: reports that to the code that placed
        it."""
        call_sid, services = webhook.call_sid, self._services
        route = webhook.query.get("route")
        if route is None:  # an instance of an earlier version may have placed the call
            stored = await services.registry.get(f"route:{call_sid}")
            if stored is None:
                return  # the bridge did not place this call
            route = stored.decode()
        parameters = {"Direction": "outbound", "Route": route}
        parameters |= {name: webhook.text(name) for name in ("From", "To")}
        facts = CallFacts.of(call_sid, parameters)
        report = report_of_silence(facts, state, time.time())
        services.deliver_report(services.route_of(facts), report)

    async def _amd_status(self, webhook: Webhook) -> web.Response:
        """`/amd-status`: a person or a machine has answered."""
        if self._outbound:
            who = await self._outbound.answered_by(webhook.plain())
            if who and (call := self._directory.call(webhook.call_sid)):
                call.answered_by(who)
            elif who:
                message = ANSWERED_BY + who.encode()
                await self._registry.publish(webhook.call_sid, message)
        return web.Response(status=204)

    def _origin(self, request: web.Request) -> str:
        """The origin from the settings. Without one (development only), the origin that
        the request or the tunnel names."""
        if self._settings.public_url:
            return self._settings.public_url
        scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
        host = request.headers.get("X-Forwarded-Host", request.host)
        origin = f"{scheme.split(',')[0].strip()}://{host.split(',')[0].strip()}"
        if not _ORIGIN.fullmatch(origin):
            raise web.HTTPBadRequest(text="the Host header is missing or malformed")
        return origin


def _queue_place(webhook: Webhook, name: str) -> QueuePlace | None:
    """The place in the queue from the query; None if the query has none."""
    written = webhook.query.get(name)
    return None if written is None else QueuePlace.read(written)


def _twiml(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
