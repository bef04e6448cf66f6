"""Twilio's webhooks: signed requests in, TwiML out.

They decide what Twilio does with a new call, and with a call whose stream or transfer
has ended. They know no sockets; the CallDirectory knows the instance's calls.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import msgspec
import structlog
from aiohttp import web

import twiml
from bridge.agent.live import CallFacts
from bridge.app.outbound import (
    ORDER,
    OutboundCalls,
    OutboundOrder,
)
from bridge.app.overflow import RETURNING, WAITING, Overflow, QueuePlace
from bridge.app.routes import Route
from bridge.app.services import Services, moment_text
from bridge.app.settings import Settings
from bridge.app.warm_calls import OF_CALL, WARM
from bridge.call.continuity import RETURN_SECONDS
from bridge.core.transfers import FailedTransfer, instruction
from bridge.fleet import ONE_MOMENT, NextStep, Then, formats
from bridge.fleet.plan import PLAN_SECONDS, Plan
from bridge.fleet.snapshot import CallSnapshot
from bridge.http.attempts import take_attempt
from bridge.http.dials import failed_transfer, shown_number
from bridge.http.parameters import is_outbound, stream_parameters, to_carry
from bridge.http.signature import websocket_origin
from bridge.http.status_webhooks import CallDirectory, StatusWebhooks
from bridge.http.tickets import PATH, Tickets
from bridge.http.warm_webhooks import WarmWebhooks
from bridge.http.webhook_fields import Webhook
from bridge.http.webhook_urls import DIALLED, next_url, screen_url, url

log = structlog.get_logger()

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

NEXT_STEP_REQUESTED = b"asked"
"""Message to the instance that had a call: Twilio asked another instance for the next
step."""

ANSWERED = frozenset({"completed", "answered"})
"""DialCallStatus of a transfer that was answered."""

_NO_QUERY: Mapping[str, str] = MappingProxyType({})


class Webhooks:
    """`tickets` None: the URLs of streams contain no ticket."""

    def __init__(
        self,
        settings: Settings,
        services: Services,
        directory: CallDirectory,
        tickets: Tickets | None,
        outbound: OutboundCalls | None,
    ) -> None:
        self._settings = settings
        self._services = services
        self._registry = services.registry
        self._directory = directory
        self._tickets = tickets
        self._outbound = outbound
        self._statuses = StatusWebhooks(services, directory, outbound)
        self._warm = WarmWebhooks(services)
        self._overflow = Overflow(
            settings.when_full, settings.queue_seconds, services.fallback_number
        )

    def answers(self) -> dict[str, Callable[[Webhook], Awaitable[web.Response]]]:
        """Path -> what answers its signed requests."""
        return {
            "/voice": self._voice,
            "/voice/next": self._voice_next,
            "/voice/whisper": self._whisper,
            "/voice/accept": self._accept,
            **self._warm.answers(),
            **self._statuses.answers(),
        }

    async def _voice(self, webhook: Webhook) -> web.Response:
        """`/voice`: a call has come in, or an outbound call was answered."""
        call_sid = webhook.call_sid
        parameters = self._stream_parameters(webhook)
        outbound = is_outbound(webhook)
        order = await self._outbound_order(webhook)
        if order is None and ORDER in webhook.query:
            # The order has expired, or is from before a restart. The person who
            # answered is not a caller, and the purpose of the call is not known any
            # more.
            log.error("outbound_order_unknown", call_sid=call_sid)
            return _twiml(twiml.hang_up())
        if order is not None:
            own = {"Direction": "outbound", "Route": order.route}
            parameters = {**order.parameters, **parameters, **own}
            plan = Plan(
                greeting=order.greeting,
                machine=order.machine,
                message=order.message,
                agent_decides=order.agent_decides,
            )
            encoded = plan.encoded(self._registry.format())
            await self._registry.put(f"plan:{call_sid}", encoded, PLAN_SECONDS)
            outbound = True
        elif outbound:
            # The operator's own code has placed the call: the person called is no
            # caller, whom limits would reject, and an answered call has no <Reject>.
            if await self._services.quotas.refuses_outbound():
                log.warning("call_rejected", call_sid=call_sid, limit="cost_of_day")
                return _twiml(twiml.hang_up())
        elif limit := await self._services.quotas.admit(call_sid, webhook.text("From")):
            log.warning("call_rejected", call_sid=call_sid, limit=limit)
            return _twiml(twiml.reject())
        if self._services.fallback.on:
            return self._send_to_fallback(webhook, parameters, outbound=outbound)
        # Any instance's free capacity counts, not only this one's: the balancer sends
        # the stream to an instance that has free capacity.
        if not await self._registry.room():
            return await self._hold_or_refuse(webhook, parameters, outbound=outbound)
        log.info("call_answered", call_sid=call_sid)
        return _twiml(self._first_stream(webhook, parameters))

    def _send_to_fallback(
        self, webhook: Webhook, parameters: Mapping[str, str], *, outbound: bool
    ) -> web.Response:
        """The fallback is switched on: the model is away, and no stream is opened."""
        call_sid = webhook.call_sid
        self._services.metrics.fallback_calls.inc()
        log.info("call_to_fallback", call_sid=call_sid, outbound=outbound)
        if outbound:  # the person called hears no apology
            return _twiml(twiml.hang_up())
        route = self._services.route_of(CallFacts.of(call_sid, parameters))
        return self._respond(webhook, self._fallback_step(route), parameters)

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
            shown = self._shown_number(webhook)
            document = self._overflow.refusal(route, shown)
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

        def url_of(new: QueuePlace) -> str:
            carried = to_carry(webhook, self._settings.parameters)
            return url(webhook, path, {**carried, name: str(new)}, webhook.query)

        document = self._overflow.hold(route, place, time.time(), url_of)
        if document and place is None:
            log.warning("call_queued", call_sid=call_sid, why=capacity.state)
        return document

    async def _may_wait_for_restart(self, call_sid: str) -> bool:
        """All instances are stopping, as when `docker compose up` recreates them, and
        the next ones will find the call in the registry. Counts the attempt."""
        return (
            self._services.capacity.draining
            and await self._registry.reachable()
            and await take_attempt(
                self._registry, f"restarting:{call_sid}", MAX_RESTART_WAITS
            )
        )

    def _restart_document(self, webhook: Webhook, route: Route) -> str:
        """The caller waits at Twilio while no instance runs; then Twilio asks again."""
        log.warning(
            "call_queued", call_sid=webhook.call_sid, why=self._services.capacity.state
        )
        query = {AFTER_TRANSFER: "1"} if AFTER_TRANSFER in webhook.query else {}
        return twiml.hold(
            moment_text(route) or None,
            ask_url=next_url(webhook, query),
            pause_seconds=RESTART_SECONDS,
            language=route.language,
        )

    async def _other_instance_has_calls(self) -> bool:
        """If all instances are full and others exist, those have calls."""
        entries = await self._registry.calls()
        return any(self._directory.call(entry.call_sid) is None for entry in entries)

    async def _outbound_order(self, webhook: Webhook) -> OutboundOrder | None:
        """The order that an outbound call was placed for; None for other calls."""
        order_id = webhook.query.get(ORDER)
        if order_id is None or self._outbound is None:
            return None
        return await self._outbound.order(order_id)

    def _first_stream(self, webhook: Webhook, parameters: Mapping[str, str]) -> str:
        """TwiML for the first stream. The caller keeps the place in the queue, in case
        no instance takes the stream."""
        place = _queue_place(webhook, WAITING)
        query = to_carry(webhook, self._settings.parameters)
        if place is not None:
            query[WAITING] = str(place)
        return self._stream_document(webhook, parameters, query)

    def _stream_document(
        self,
        webhook: Webhook,
        parameters: Mapping[str, str],
        query: Mapping[str, str] = _NO_QUERY,
        step: NextStep | None = None,
    ) -> str:
        """`query`: of the `/voice/next` request that follows the stream. `step`: has
        the sentence that Twilio says first."""
        origin, path = webhook.origin, PATH
        if self._tickets:
            path = self._tickets.path(webhook.account_sid, webhook.call_sid)
        return twiml.connect(
            f"{websocket_origin(origin)}{path}",
            action_url=next_url(webhook, query),
            status_callback_url=f"{origin}/stream-status",
            parameters=parameters,
            text=step.text if step else "",
            language=(step.language if step else "") or None,
        )

    async def _voice_next(self, webhook: Webhook) -> web.Response:
        """`/voice/next`: the stream or a transfer has ended, the caller is there."""
        call_sid = webhook.call_sid
        if dialled := webhook.text("DialCallStatus"):
            return await self._after_transfer(webhook, dialled)
        step = await self._registry.next_step(call_sid)
        if step and step.then is Then.TRANSFER and await self._was_tried(webhook):
            step = None
        self._directory.next_step_requested(call_sid)
        if self._registry.shared:
            await self._registry.publish(call_sid, NEXT_STEP_REQUESTED)
        joins = await self._warm.joins(webhook, step)
        if isinstance(joins, FailedTransfer):
            return await self._return_to_agent(webhook, joins)
        if joins is not None:
            log.info("next_step_sent", call_sid=call_sid, step=Then.TRANSFER.value)
            return _twiml(joins)
        if step is None or step.then is Then.RESUME:
            stored = await self._registry.get(f"snapshot:{call_sid}")
            if step is None and stored is not None:
                # The time at which the stream ended is stored nowhere else, and what
                # the caller heard depends on it.
                ended, name = str(time.time()).encode(), f"stream_ended:{call_sid}"
                await self._registry.put(name, ended, ENDED_SECONDS)
            parameters = self._stream_parameters(webhook)
            parameters |= self._parameters(call_sid, stored)
            moved = step is not None or self._directory.call(call_sid) is None
            if step is None and stored is None and moved:
                return await self._retry_first_stream(webhook, parameters)
            return await self._resume_call(webhook, parameters, moved)
        return self._respond(webhook, step, {})

    async def _was_tried(self, webhook: Webhook) -> bool:
        """The transfer that is the next step has failed, and so has the stream after
        it: no stream has stored another snapshot since."""
        if AFTER_TRANSFER not in webhook.query:
            return False
        stored = await self._registry.get(f"snapshot:{webhook.call_sid}")
        snapshot = CallSnapshot.read(stored)
        return bool(snapshot.instruction) or not snapshot.stream_count

    def _stream_parameters(self, webhook: Webhook) -> dict[str, str]:
        return stream_parameters(webhook, self._settings.parameters)

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
        if moved and self._services.fallback.on:
            return self._send_to_fallback(
                webhook, parameters, outbound=is_outbound(webhook)
            )
        if moved and not await self._registry.room():
            # Checked before the queue: if all instances stop, none can answer when the
            # turn in the queue ends.
            if not step.number and await self._may_wait_for_restart(call_sid):
                return _twiml(self._restart_document(webhook, route))
            back = "/voice/next"
            if held := await self._hold(webhook, route, back, RETURNING):
                return _twiml(held)
        elif await take_attempt(
            self._registry, f"resume_count:{call_sid}", MAX_RESUMES
        ):
            text = await self._one_moment(call_sid, route)
            step = NextStep(Then.RESUME, text=text, language=route.language or "")
            self._directory.expect_stream(call_sid)
        return self._respond(webhook, step, parameters)

    async def _one_moment(self, call_sid: str, route: Route) -> str:
        """The sentence that the caller hears before the next stream; empty: none."""
        planned = await self._registry.pop(f"{ONE_MOMENT}:{call_sid}")
        return "" if planned is None else moment_text(route)

    async def _retry_first_stream(
        self, webhook: Webhook, parameters: Mapping[str, str]
    ) -> web.Response:
        """No snapshot of the call exists: the handshake of its first stream failed,
        perhaps because no instance had free capacity any more, or because its ticket
        came late."""
        registry, call_sid = self._registry, webhook.call_sid
        # A call of an order is not retried: its parameters are not known any more.
        placed = await registry.get(f"plan:{call_sid}") is not None
        outbound = placed or is_outbound(webhook)
        if self._services.fallback.on:
            return self._send_to_fallback(webhook, parameters, outbound=outbound)
        room = await registry.room()
        late = await registry.pop(f"{LATE_TICKET}:{call_sid}") is not None
        free = room and self._services.capacity.free
        if (
            room
            and (late or not free)
            and not placed
            and await take_attempt(
                self._registry, f"refusal_count:{call_sid}", MAX_REFUSALS
            )
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
        return await take_attempt(self._registry, name, most)

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
                return self._stream_document(webhook, parameters, step=step)
            case Then.TRANSFER:
                return twiml.transfer(
                    step.number,
                    caller_id=step.caller_id or self._shown_number(webhook),
                    action_url=next_url(webhook, {DIALLED: "1"}),
                    timeout_seconds=step.ring_seconds,
                    digits=step.digits,
                    screen_url=screen_url(webhook, "whisper")
                    if step.whisper or step.accept
                    else None,
                )
            case Then.SORRY:
                return twiml.sorry(
                    step.text or None,
                    fallback_number=step.number or None,
                    caller_id=self._shown_number(webhook),
                    language=step.language or None,
                )

    def _shown_number(self, webhook: Webhook) -> str | None:
        return shown_number(webhook, self._settings.outbound_number or "")

    async def _whisper(self, webhook: Webhook) -> web.Response:
        """`/voice/whisper`: somebody has answered a transfer. They hear the whisper,
        while the caller still hears ringing."""
        step = await self._registry.next_step(webhook.query.get(OF_CALL, ""))
        if step is None or step.then is not Then.TRANSFER:
            return _twiml(twiml.hang_up())  # the caller has left, or is back already
        # The call in the URL is the caller's; the webhook is of the other leg.
        accept_url = screen_url(webhook, "accept") if step.accept else None
        language = step.language or None
        document = twiml.whisper(step.whisper, accept_url=accept_url, language=language)
        return _twiml(document)

    async def _accept(self, webhook: Webhook) -> web.Response:
        """`/voice/accept`: the person who has answered a transfer has pressed a key."""
        taken = webhook.text("Digits") == "1"
        call_sid = webhook.query.get(OF_CALL, "")
        log.info("transfer_answered", call_sid=call_sid, accepted=taken)
        return _twiml(twiml.put_through() if taken else twiml.hang_up())

    async def _after_transfer(self, webhook: Webhook, dialled: str) -> web.Response:
        """A transfer has ended. If the other phone did not answer, the caller returns
        to the agent, and the agent gets a message about it."""
        if WARM in webhook.query and dialled in ANSWERED:
            # The one in the conference may have left before the caller came.
            failed = await self._warm.after_conference(webhook)
        else:
            if dialled in ANSWERED and webhook.text("DialBridged") == "false":
                dialled = "canceled"  # a person or a mailbox answered, not accepted
            failed = None if dialled in ANSWERED else failed_transfer(webhook, dialled)
        if failed is not None:
            return await self._return_to_agent(webhook, failed)
        call_sid = webhook.call_sid
        log.info("transfer_ended", call_sid=call_sid, status=dialled)
        await self._registry.delete(f"snapshot:{call_sid}")
        return _twiml(twiml.hang_up())

    async def _return_to_agent(
        self, webhook: Webhook, failed: FailedTransfer
    ) -> web.Response:
        """Nobody has taken the call: a new stream, on which the agent is told why."""
        call_sid, registry = webhook.call_sid, self._registry
        # The texts of Twilio, which contain no number.
        details = msgspec.structs.asdict(failed)
        shown = {key: text for key, text in details.items() if text}
        log.warning("transfer_ended", call_sid=call_sid, **shown)
        stored = await registry.get(f"snapshot:{call_sid}")
        if stored is None:
            return _twiml(twiml.hang_up())
        if self._services.fallback.on:
            await registry.delete(f"snapshot:{call_sid}")
            given = CallSnapshot.read(stored).parameters
            outbound = is_outbound(webhook)
            return self._send_to_fallback(webhook, given, outbound=outbound)
        if snapshot := formats.read(stored, CallSnapshot):
            snapshot = msgspec.structs.replace(
                snapshot,
                instruction=instruction(failed.status),
                failed_transfers=(*snapshot.failed_transfers, failed),
            )
            encoded = snapshot.encoded(registry.format())
            await registry.put(f"snapshot:{call_sid}", encoded, RETURN_SECONDS)
            parameters = dict(snapshot.parameters)
        else:
            # A snapshot that this version cannot read is left as it is: an instance of
            # a newer version may get the stream.
            parameters = self._stream_parameters(webhook)
        query = {AFTER_TRANSFER: "1"}
        stream = self._stream_document(webhook, parameters, query)
        return _twiml(stream)


def _queue_place(webhook: Webhook, name: str) -> QueuePlace | None:
    """The place in the queue from the query; None if the query has none."""
    written = webhook.query.get(name)
    return None if written is None else QueuePlace.read(written)


def _twiml(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
