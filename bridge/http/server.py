"""The aiohttp application: media WebSocket, health, metrics, admission, draining.

It decides which streams are accepted and gives each to a Call. It knows neither audio
nor the model.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from http import HTTPStatus

import structlog
from aiohttp import WSCloseCode, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bridge.agent.live import LiveCall
from bridge.app import versions
from bridge.app.fallback import FallbackSwitch
from bridge.app.outbound import CallStatus, OutboundCalls
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.app.twilio_api import RestAccess, TwilioApi
from bridge.app.warm_calls import WarmCalls
from bridge.call.call import Call
from bridge.call.media_leg import MediaLeg
from bridge.call.stream import IdentifiedPhone
from bridge.core.endings import HAND_OVER_SECONDS
from bridge.fleet import TAKEN, CallEntry, Registry
from bridge.fleet.plan import PLAN_SECONDS, AnsweredBy
from bridge.fleet.requests import FleetRequests
from bridge.fleet.signing import FleetKey
from bridge.http import advertised
from bridge.http.api import event_relay, handlers
from bridge.http.api.auth import ApiAuth, has_token
from bridge.http.authenticated import mark_authenticated, tell_balancer
from bridge.http.connection_guard import ConnectionGuard, secure_headers
from bridge.http.origins import OriginCheck
from bridge.http.phone_socket import UpgradedResponse, open_phone_socket
from bridge.http.signature import Signatures
from bridge.http.signed_requests import SignedRequests
from bridge.http.sip_calls import SIP_CALL_TAKEN, sip_calls
from bridge.http.status_webhooks import ANSWERED_BY, COMPLETED, report_unanswered
from bridge.http.tickets import PATH, TICKET_SECONDS, Ticket, TicketRefused, Tickets
from bridge.http.webhook_fields import read_body
from bridge.http.webhooks import (
    LATE_TICKET,
    NEXT_STEP_REQUESTED,
    Webhooks,
)
from bridge.model.early_dial import EarlyDial, EarlyDials
from bridge.telemetry.metrics import Metrics
from bridge.websocket.closing import CLOSE_SECONDS

log = structlog.get_logger()

EXPECTED_SECONDS = 15.0
"""Time for Twilio to open a new stream after it was told to."""

SHUTDOWN_SECONDS = 3.0
"""Time for the calls to end after draining."""

POLL_SECONDS = 0.2
"""Interval at which draining checks whether SIP calls are left."""


class Server:
    """One instance. `start`, then `close`; `port` is known in between."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._services = services
        self._signatures = _signatures(settings)
        self._tickets = _tickets(settings, services.registry)
        self._outbound = _outbound(settings, services)
        self._requests = SignedRequests(settings, services, self._signatures)
        self._webhooks = Webhooks(
            settings, services, self, self._tickets, self._outbound
        )
        self._guard = ConnectionGuard(
            services.limits, settings.trusted_proxies, services.metrics.hit
        )
        self._sip = sip_calls(settings, services)
        """SIP calls: OpenAI has their audio."""
        if self._sip:
            sip = self._sip
            services.capacity.others = lambda: sip.calls
        self._sip_running = AsyncExitStack()
        self._early_dials = EarlyDials(services.target, services.background_tasks.start)
        self._calls: set[Call] = set()
        self._by_sid: dict[str, Call] = {}
        self._expected_streams: dict[str, float] = {}
        """Call SID -> monotonic time until which a new stream of the call is expected:
        Twilio was told to open one."""
        self._unidentified = 0
        """Accepted WebSockets whose `start` has not arrived; they count against
        BRIDGE_MAX_CALLS."""
        services.registry.subscribe(self._handle_fleet_message)
        services.fallback.listeners.append(self._fallback_switched_on)
        self._no_calls = asyncio.Event()
        self._no_calls.set()
        self._awaiting_request: set[str] = set()
        """Calls that this instance ended and whose next step Twilio has not asked for
        yet."""
        self._no_awaited_requests = asyncio.Event()
        self._no_awaited_requests.set()
        self._fleet_requests = _fleet_requests(settings, services)
        self._runner: web.AppRunner | None = None
        self.port = 0

    # --- start and stop ---

    async def start(self) -> None:
        """Listens. OSError if the address cannot be used."""
        origins = OriginCheck(
            self._settings.public_url,
            self._settings.host,
            self._guard,
            self._services.metrics.refused,
        )
        app = web.Application(
            client_max_size=self._services.limits.body_bytes,
            middlewares=[origins.middleware, self._requests.count_unknown],
        )
        app.on_response_prepare.append(secure_headers)
        app.on_response_prepare.append(tell_balancer)
        self._add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            self.port = await self._guard.listen(
                runner, self._settings.host, self._settings.port
            )
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        if self._sip:
            await self._sip_running.enter_async_context(self._sip)
        version = versions.version_of(versions.PACKAGE)
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        host, port = self._settings.host, self.port
        log.info("listening", host=host, port=port, version=version, loop=loop)

    def _add_routes(self, app: web.Application) -> None:
        app.add_routes(self._requests.routes(self._webhooks.answers()))
        # A proxy may leave the path of BRIDGE_PUBLIC_URL, or take it away.
        for prefix in dict.fromkeys(("", self._settings.url_path)):
            stream = PATH + "/{account}/{call}/{ticket}"
            app.add_routes(
                [
                    web.post(f"{prefix}/openai/webhook", self._openai_webhook),
                    web.get(prefix + PATH, self._media),
                    web.get(prefix + stream, self._media),
                    web.get(f"{prefix}{stream}/", self._media),
                    web.get(f"{prefix}/healthz", self._healthz),
                ]
            )
        app.add_routes(
            [
                web.get("/readyz", self._operators_only(self._readyz)),
                web.get("/metrics", self._operators_only(self._metrics)),
            ]
        )
        token = self._settings.api_token
        if token:
            auth = ApiAuth(
                token.get_secret_value(), self._guard, self._services.metrics.refused
            )
            api = handlers.applications(
                self, auth, self._fleet_access(), self._services.forget
            )
            for prefix in dict.fromkeys(("", self._settings.url_path)):
                app.add_subapp(f"{prefix}/api", api.api())
            app.add_subapp(event_relay.PATH, api.events)

    def _fleet_access(self) -> handlers.FleetAccess:
        async def address() -> str | None:
            return await advertised.address(self._settings, self.port)

        return handlers.FleetAccess(
            self._services.registry, self._fleet_requests, address
        )

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Accepts no more calls, waits `drain_seconds` for the running ones, hands over
        or ends the rest."""
        self._services.capacity.draining = True
        self._services.metrics.draining.set(1)
        log.info("draining", calls=len(self._calls), seconds=drain_seconds)
        if not await _done_within(drain_seconds, self._wait_for_last_call()):
            await self._hand_over()
        if self._sip:
            self._sip.end("shutdown")
        for call in list(self._calls):
            self._await_next_request(call)
            call.end("shutdown")
        if not await _done_within(SHUTDOWN_SECONDS, self._no_calls.wait()):
            log.error("calls_still_running", calls=len(self._calls))
        # The listener stays open until Twilio has asked for the next steps, because
        # there may be no other instance to answer.
        requested = await _done_within(
            SHUTDOWN_SECONDS, self._no_awaited_requests.wait()
        )
        if not requested and not await self._services.registry.others():
            log.error(
                "shutdown_left_calls_unanswered", calls=len(self._awaiting_request)
            )
        if self._runner:
            await self._guard.close()
            await self._runner.cleanup()
        await self._sip_running.aclose()
        if self._fleet_requests:
            self._fleet_requests.close()
        log.info("closed")

    async def _hand_over(self) -> None:
        """Hands over the calls, each in a quiet moment, so that another instance
        resumes them.

        If no other instance takes calls, `docker compose up` may be running: it stops
        all old instances before it starts the new ones. Calls are then handed over to
        an instance that starts later (see Webhooks._resume_call). A call with a
        fallback number is not: Twilio dials that number.
        """
        registry = self._services.registry
        to_others = await registry.others()
        if not to_others and not await registry.reachable():
            return
        for call in list(self._calls):
            self._await_next_request(call)
            if to_others or not call.fallback_number:
                call.hand_over()
            else:
                call.end("shutdown")
        # SIP calls cannot be handed over, so they are not waited for.
        await _done_within(HAND_OVER_SECONDS + CLOSE_SECONDS, self._no_calls.wait())

    def _await_next_request(self, call: Call) -> None:
        """Twilio will ask for the call's next step, and there may be no other instance
        to answer. Not for a call whose stream broke: Twilio has asked already."""
        if call.call_sid and call.call_sid not in self._expected_streams:
            self._awaiting_request.add(call.call_sid)
            self._no_awaited_requests.clear()

    async def _wait_for_last_call(self) -> None:
        """Returns when neither a stream nor a SIP call is left."""
        await self._no_calls.wait()
        while self._services.capacity.others():  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(POLL_SECONDS)

    @property
    def calls(self) -> int:
        """Number of streams that are open now."""
        return len(self._calls)

    @property
    def metrics(self) -> Metrics:
        return self._services.metrics

    @property
    def warm_calls(self) -> WarmCalls | None:
        return self._services.warm_calls

    @property
    def registry(self) -> Registry:
        return self._services.registry

    async def registered(self) -> list[str]:
        """SIDs of the calls in the registry."""
        return [entry.call_sid for entry in await self._services.registry.calls()]

    # --- the media stream ---

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """Carries one call's media stream, until the stream ends."""
        ticket = await self._check_handshake(request)
        capacity, limits = self._services.capacity, self._services.limits
        # A caller whose stream broke may be back. The call still counts, so it is
        # accepted even if the instance is full or draining.
        if not (capacity.free or self._has_call_for(ticket)):
            # 503: the balancer tries the next instance, where the ticket is valid too.
            log.info("stream_refused", why=capacity.state)
            self._services.metrics.hit("calls")
            raise web.HTTPServiceUnavailable(text="this instance takes no more calls")
        with ExitStack() as waiting:
            self._update_capacity(unidentified=+1)
            waiting.callback(self._update_capacity, unidentified=-1)
            await self._spend(ticket, request)
            # The upgrade is answered before the model is connected: Twilio does not
            # wait for that.
            socket = open_phone_socket(request, limits)
            early = self._dial_early(ticket)
            try:
                connected_at = time.monotonic()
                phone = await IdentifiedPhone.wait_for_start(
                    socket, limits.start_seconds
                )
                waiting.close()
                if self._is_wanted(phone, ticket):
                    self._guard.exempt_from_limits(request)
                    await self._carry(phone, connected_at, early)
                else:
                    await socket.close_bounded(WSCloseCode.POLICY_VIOLATION)
            finally:
                if early:
                    early.drop()
                await socket.close_bounded()
        return UpgradedResponse()

    def _is_wanted(self, phone: IdentifiedPhone, ticket: Ticket | None) -> bool:
        """The stream has named its call, and has the ticket of that call."""
        if phone.call_sid is None:
            log.warning("stream_refused", why="no_start", timed_out=phone.timed_out)
            if phone.timed_out:
                self._services.metrics.hit("start_late")
            return False
        named = (phone.account_sid, phone.call_sid)
        if ticket and named != (ticket.account_sid, ticket.call_sid):
            # Not the call whose webhook was answered with this ticket.
            self._refused("other_call")
            return False
        return True

    def _dial_early(self, ticket: Ticket | None) -> EarlyDial | None:
        """Dials the model while the stream's `start` is awaited. Only for a stream with
        a ticket: each can be used once, so no stranger makes us dial. Not for a call
        that is here and has its session."""
        if ticket is None or self.call(ticket.call_sid) is not None:
            return None
        if self._services.fallback.on:
            return None  # the call is about to be sent to the fallback
        return self._early_dials.begin(ticket.call_sid)

    async def _carry(
        self, phone: IdentifiedPhone, connected_at: float, early: EarlyDial | None
    ) -> None:
        """Gives the stream to its call, until the stream ends."""
        assert phone.call_sid, "the stream has named its call"
        sid, capacity = phone.call_sid, self._services.capacity
        call = self.call(sid)
        self._expected_streams.pop(sid, None)
        if call is None or not await call.take_over(phone):
            if capacity.free:
                leg = MediaLeg(phone, self._services)
                take = early.take if early else None
                await self._run_call(Call(leg, self._services, connected_at, take), sid)
            else:
                log.info("stream_refused", why=capacity.state)

    async def _check_handshake(self, request: web.Request) -> Ticket | None:
        """Checks that Twilio signed the handshake and that the bridge issued its
        ticket; 403 if not. None: no ticket is needed."""
        given = request.match_info
        # Without an account in the path, the request is refused, or the bridge takes
        # calls of one account only (bridge.app.settings).
        if self._signatures and not self._signatures.of(
            given.get("account", "")
        ).handshake(request.raw_path, request.headers):
            raise self._refused("signature")
        if "ticket" not in given:
            if self._needs_ticket:
                raise self._refused("ticket_missing")
            return None
        if self._tickets is None:
            raise web.HTTPNotFound(text="this bridge uses no tickets")
        try:
            return self._tickets.read(given["account"], given["call"], given["ticket"])
        except TicketRefused as error:
            raise await self._refuse_ticket(error, request) from None

    async def _spend(self, ticket: Ticket | None, request: web.Request) -> None:
        """Marks the ticket as used; 403 if it was used before."""
        if ticket and self._tickets:
            try:
                await self._tickets.spend(ticket)
            except TicketRefused as error:
                raise await self._refuse_ticket(error, request) from None
        if self._signatures:
            mark_authenticated(request)

    @property
    def _needs_ticket(self) -> bool:
        return not self._settings.insecure and self._settings.tickets == "required"

    async def _refuse_ticket(
        self, error: TicketRefused, request: web.Request
    ) -> web.HTTPForbidden:
        if error.why != "ticket_forged":
            # A genuine ticket, expired or used: maybe Twilio sent the handshake of a
            # legitimate caller twice.
            name = f"{LATE_TICKET}:{request.match_info['call']}"
            await self._services.registry.put(name, b"1", TICKET_SECONDS)
        return self._refused(error.why)

    def _refused(self, why: str) -> web.HTTPForbidden:
        log.warning("stream_refused", why=why)
        self._services.metrics.refused(why)
        return web.HTTPForbidden(text="the stream's signature or ticket is not valid")

    def _has_call_for(self, ticket: Ticket | None) -> bool:
        """The stream is, or may be, that of a call which this instance has. Without a
        ticket the stream's call is not known yet: then any call that waits for a new
        stream will do."""
        if ticket:
            return self.call(ticket.call_sid) is not None
        now = time.monotonic()
        for sid, until in list(self._expected_streams.items()):
            if until < now or self.call(sid) is None:
                del self._expected_streams[sid]
        return bool(self._expected_streams) or any(
            call.awaits_new_stream for call in self._calls
        )

    async def _run_call(self, call: Call, call_sid: str) -> None:
        self._calls.add(call)
        self._by_sid[call_sid] = call
        self._no_calls.clear()
        self._update_capacity()
        try:
            await call.run()
        finally:
            self._calls.discard(call)
            if self._by_sid.get(call_sid) is call:
                del self._by_sid[call_sid]
            self._update_capacity()
            if not call.expects_next_request:
                self.next_step_requested(call_sid)
            if not self._calls:
                self._no_calls.set()

    def _update_capacity(self, unidentified: int = 0) -> None:
        self._unidentified += unidentified
        self._services.capacity.streams = len(self._calls) + self._unidentified

    def _handle_fleet_message(self, call_sid: str, message: bytes) -> None:
        """A message of another instance about a call that may be here."""
        if message == NEXT_STEP_REQUESTED:
            self.next_step_requested(call_sid)
            return
        call = self.call(call_sid)
        if call is None:
            return
        try:
            if message == TAKEN:
                call.taken_over()
            elif message == COMPLETED:
                call.completed()
            elif message.startswith(ANSWERED_BY):
                call.answered_by(AnsweredBy(message.removeprefix(ANSWERED_BY).decode()))
        except Exception:
            # A bug, or a message of another version. It concerns one call only, and the
            # registry that delivers the messages of all calls must go on.
            log.exception("fleet_message_failed", call_sid=call_sid)

    def _fallback_switched_on(self) -> None:
        for call in list(self._calls):
            call.end_without_model()

    async def _openai_webhook(self, request: web.Request) -> web.Response:
        """An incoming SIP call: OpenAI carries its audio, the bridge runs its agent."""
        if self._sip is None:
            raise web.HTTPNotFound(text="SIP calls are not set up on this bridge")
        body = await read_body(request.read(), self._services)
        status, text = await self._sip.incoming(request.headers, body)
        if (status, text) == SIP_CALL_TAKEN:
            # Only the first delivery of a call gets this answer, so it is no replay.
            mark_authenticated(request)
        if status == HTTPStatus.UNAUTHORIZED:
            self._services.metrics.refused("signature")
        return web.Response(status=status, text=text)

    # --- called by the webhooks (bridge.http.webhooks.CallDirectory) ---

    def call(self, call_sid: str) -> Call | None:
        return self._by_sid.get(call_sid) if call_sid else None

    def expect_stream(self, call_sid: str) -> None:
        if self.call(call_sid) is not None:
            self._expected_streams[call_sid] = time.monotonic() + EXPECTED_SECONDS

    def next_step_requested(self, call_sid: str) -> None:
        self._awaiting_request.discard(call_sid)
        if not self._awaiting_request:
            self._no_awaited_requests.set()

    # --- called by the control API (bridge.http.api.handlers.Calls) ---

    def live(self, call_sid: str) -> LiveCall | None:
        """A call of this instance."""
        call = self.call(call_sid)
        if call is None:
            return self._sip.live(call_sid) if self._sip else None
        return call.live

    async def entries(self) -> list[CallEntry]:
        return await self._services.registry.calls()

    @property
    def fallback(self) -> FallbackSwitch:
        return self._services.fallback

    async def instances(self) -> list[str]:
        return await self._services.registry.instances()

    async def place(self, wanted: handlers.PlaceCall, idempotency_key: str) -> str:
        """Places a call. handlers.Refused says why it was not placed."""
        if self._outbound is None:
            raise handlers.outbound_is_off()
        if self._services.fallback.on:
            detail = "GET /api/fallback says since when, and why."
            raise handlers.Refused(503, "The fallback is switched on", detail)
        if not self._services.capacity.free:
            detail = f"The bridge is {self._services.capacity.state}."
            raise handlers.Refused(503, "The bridge takes no more calls now", detail)
        number = wanted.from_number or self._settings.outbound_number
        sid = await handlers.place(
            self._outbound,
            wanted,
            number,
            self._services.routes,
            longest_seconds=self._services.ceilings.longest_seconds,
            idempotency_key=idempotency_key,
        )
        # For instances of an earlier version: they do not know `/call-status?route=`.
        route = wanted.route.encode()
        await self._services.registry.put(f"route:{sid}", route, PLAN_SECONDS)
        return sid

    async def status(self, call_sid: str) -> CallStatus | None:
        return await self._outbound.status(call_sid) if self._outbound else None

    async def cancel(self, call_sid: str) -> CallStatus | None:
        """Cancels an outbound call, and reports that it was canceled."""
        if self._outbound is None:
            raise handlers.outbound_is_off()
        status, order = await handlers.cancel(self._outbound, call_sid)
        if status and order:
            numbers = {"From": order.from_number, "To": order.to}
            report_unanswered(self._services, status, order.route, numbers)
        return status

    # --- for operators ---

    def _operators_only(
        self, answer: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Serves direct requests (Prometheus, the balancer). A request through a proxy
        may come from anywhere, so it needs the API token."""

        async def handle(request: web.Request) -> web.Response:
            token = self._settings.api_token
            if self._guard.is_direct(request) or (
                token and has_token(request, token.get_secret_value().encode())
            ):
                return await answer(request)
            raise web.HTTPNotFound(text="not found")

        return handle

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "calls": len(self._calls)})

    async def _readyz(self, request: web.Request) -> web.Response:
        state = self._services.capacity.state
        facts = {"status": state, "calls": len(self._calls)}
        return web.json_response(facts, status=200 if state == "ready" else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        body = generate_latest(self._services.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


@asynccontextmanager
async def serving(
    settings: Settings, user_code: UserCode, model_url: str
) -> AsyncIterator[Server]:
    """A running server with agents and a model; on exit it is closed, with its calls.
    `model_url` is the model's real address, whatever the settings say."""
    async with start_services(settings, user_code, model_url) as services:
        server = Server(settings, services)
        await server.start()
        try:
            yield server
        finally:
            await server.close()


def _signatures(settings: Settings) -> Signatures | None:
    if settings.insecure:
        return None
    # cli.serve reports this better. The check is repeated here so that no caller of
    # `serving` can skip it.
    if settings.public_url is None or settings.twilio_auth_token is None:
        raise ValueError("BRIDGE_PUBLIC_URL or TWILIO_AUTH_TOKEN is not set")
    return Signatures(
        settings.public_url,
        _auth_tokens(settings),
        settings.twilio_shared_keys,
        settings.twilio_accounts,
    )


def _fleet_requests(settings: Settings, services: Services) -> FleetRequests | None:
    """None if there is no other instance, or no API."""
    if settings.api_token is None or not services.registry.shared:
        return None
    return FleetRequests(
        services.registry,
        FleetKey(settings.api_token.get_secret_value()),
        services.background_tasks.start,
        services.metrics.refused,
        services.metrics.hit,
    )


def _tickets(settings: Settings, registry: Registry) -> Tickets | None:
    """None if there is no secret that all instances share (development only)."""
    keys = _auth_tokens(settings)
    return Tickets(keys, registry) if keys else None


def _auth_tokens(settings: Settings) -> list[str]:
    tokens = (settings.twilio_auth_token, settings.twilio_auth_token_secondary)
    return [token.get_secret_value() for token in tokens if token]


def _outbound(settings: Settings, services: Services) -> OutboundCalls | None:
    """None if outbound calls are off, or if Twilio could not reach the bridge."""
    access = RestAccess.of(settings)
    if not (settings.outbound_prefixes and settings.public_url and access):
        return None
    return OutboundCalls(
        services.registry,
        TwilioApi(access),
        public_url=settings.public_url,
        prefixes=settings.outbound_prefixes,
        key=access.password.encode(),
        hit=services.metrics.hit,
        day_is_spent=services.quotas.day_is_spent,
        at_once=settings.outbound_calls,
    )


async def _done_within(seconds: float, wait: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        return False
    return True
