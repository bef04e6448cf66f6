"""The aiohttp application: the media socket, health, metrics, admission, draining.

Lets in who may come in, and gives each stream to a Call. Knows no audio, no model.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bridge.agent.live import LiveCall
from bridge.app import versions
from bridge.app.outbound import OutboundCalls
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.call.call import Call
from bridge.call.stream import Opened
from bridge.core import ProtocolError, twilio_messages
from bridge.core.bounds import MessageRate
from bridge.core.conversation import HAND_OVER_SECONDS
from bridge.fleet import TAKEN, CallEntry, Registry
from bridge.fleet.plan import AnsweredBy
from bridge.http.api import handlers
from bridge.http.api.auth import ApiAuth, has_token
from bridge.http.connection_guard import ConnectionGuard, secure_headers
from bridge.http.signature import Signatures
from bridge.http.tickets import PATH, TICKET_SECONDS, Ticket, TicketRefused, Tickets
from bridge.http.webhooks import (
    ANSWERED_BY,
    ASKED,
    LATE_TICKET,
    PLAN_SECONDS,
    Webhooks,
    received,
)
from bridge.telemetry.metrics import Metrics

log = structlog.get_logger()

PING_SECONDS = 20.0
"""A phone that is gone without a word is noticed after one and a half of these. Twilio
answers pings (it does on uvicorn's defaults, which ping as often)."""

PINGS_PER_SECOND = 10.0
"""Of theirs, and their pongs, on an average of ten seconds. Nobody needs as many."""

CLOSE_SECONDS = 1.0
"""For Twilio to answer our close."""

EXPECTED_SECONDS = 15.0
"""Until a new stream is there that Twilio was told to open."""

SHUTDOWN_SECONDS = 3.0
"""For the calls to end once draining is over."""

LOOK_SECONDS = 0.2
"""While draining, so often is looked whether SIP calls are left."""


class PhoneSocket:
    """Twilio's end of a stream, as bridge.call.call.Phone wants it."""

    def __init__(
        self, request: web.Request, socket: web.WebSocketResponse, seconds: float
    ) -> None:
        """`seconds`: for a pong to be taken. `socket` answers no pings by itself."""
        self._request = request
        self._socket = socket
        self._seconds = seconds
        self._pings = MessageRate(PINGS_PER_SECOND)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """ProtocolError where the stream ends because of what it sent."""
        async for message in self._socket:
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    yield message.data
                case WSMsgType.PING | WSMsgType.PONG:
                    if not self._pings.add(1.0, time.monotonic()):
                        raise ProtocolError(twilio_messages.TOO_MANY)
                    ping = message.type is WSMsgType.PING
                    if ping and not await self._answered(message.data):
                        return
                case WSMsgType.ERROR:
                    if isinstance(message.data, WebSocketError):
                        if message.data.code == WSCloseCode.MESSAGE_TOO_BIG:
                            raise ProtocolError(twilio_messages.TOO_LARGE)
                        raise ProtocolError("websocket protocol broken")

    async def _answered(self, ping: bytes) -> bool:
        """False: nobody takes the answer, so nobody is there."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._socket.pong(ping)
        except (ConnectionError, TimeoutError):
            return False
        return True

    async def send(self, text: str) -> None:
        await self._socket.send_str(text)

    async def close(self) -> None:
        await self._socket.close()
        transport = self._request.transport
        if transport and transport.get_write_buffer_size():
            # Nobody reads: what waits to be sent would wait for as long as TCP does.
            transport.abort()


class Server:
    """One instance. `start`, then `close`; `port` is known in between."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._services = services
        self._signatures = _signatures(settings)
        self._tickets = _tickets(settings, services.registry)
        self._outbound = _outbound(settings, services)
        self._webhooks = Webhooks(
            settings, services, self, self._signatures, self._tickets, self._outbound
        )
        self._guard = ConnectionGuard(
            services.limits, settings.trusted_proxies, services.metrics.hit
        )
        self._calls: set[Call] = set()
        self._by_sid: dict[str, Call] = {}
        self._expected: dict[str, float] = {}
        """Calls of ours whose caller was given another stream, until when."""
        self._opening = 0
        """Streams of which nobody has said whose they are."""
        services.registry.subscribe(self._told)
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
        app = web.Application(client_max_size=self._services.limits.body_bytes)
        app.on_response_prepare.append(secure_headers)
        app.add_routes(self._webhooks.routes())
        app.add_routes(
            [
                web.post("/openai/webhook", self._openai_webhook),
                web.get(PATH, self._media),
                web.get(PATH + "/{account}/{call}/{ticket}", self._media),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._inside(self._readyz)),
                web.get("/metrics", self._inside(self._metrics)),
            ]
        )
        token = self._settings.api_token
        if token:
            auth = ApiAuth(
                token.get_secret_value(),
                self._guard,
                self._services.metrics.refused,
                self._settings.public_url,
            )
            app.add_subapp(
                "/api", handlers.application(self, auth, self._services.forget)
            )
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
        version = versions.version_of(versions.PACKAGE)
        host, port = self._settings.host, self.port
        log.info("listening", host=host, port=port, version=version)

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Takes no more calls, lets the running ones end, ends what is left."""
        self._services.capacity.draining = True
        self._services.metrics.draining.set(1)
        log.info("draining", calls=len(self._calls), seconds=drain_seconds)
        if not await _within(drain_seconds, self._last_call()):
            await self._hand_over()
        if self._services.sip:
            self._services.sip.end("shutdown")
        for call in list(self._calls):
            self._answer_before_closing(call)
            call.end("shutdown")
        if not await _within(SHUTDOWN_SECONDS, self._no_calls.wait()):
            log.warning("calls_left", calls=len(self._calls))
        # The listener stays until Twilio has asked what follows, for no other instance
        # may be there to answer.
        asked = await _within(SHUTDOWN_SECONDS, self._nobody_asks.wait())
        if not asked and not await self._services.registry.others():
            log.warning("shutdown_left_calls_unanswered", calls=len(self._asking))
        if self._runner:
            await self._guard.close()
            await self._runner.cleanup()
        log.info("closed")

    async def _hand_over(self) -> None:
        """Calls leave in a quiet moment, and go on at another instance.

        Where no other instance takes calls, `docker compose up` may be at work: it
        stops all old instances before it starts the new ones. Calls are then handed
        over to an instance that starts later (see Webhooks._lead_on). A call with a
        fallback number is not: Twilio dials that number.
        """
        registry = self._services.registry
        to_others = await registry.others()
        if not to_others and not await registry.reachable():
            return
        for call in list(self._calls):
            self._answer_before_closing(call)
            if to_others or not call.fallback_number:
                call.hand_over()
            else:
                call.end("shutdown")
        # SIP calls cannot be handed over, so they are not waited for.
        await _within(HAND_OVER_SECONDS + CLOSE_SECONDS, self._no_calls.wait())

    def _answer_before_closing(self, call: Call) -> None:
        """Twilio will ask what follows, and no other instance may be there to answer.
        Not of a call whose stream broke: Twilio has asked already."""
        if call.call_sid and call.call_sid not in self._expected:
            self._asking.add(call.call_sid)
            self._nobody_asks.clear()

    async def _last_call(self) -> None:
        """Returns when there is neither a stream nor a SIP call left."""
        await self._no_calls.wait()
        while self._services.capacity.others():  # noqa: ASYNC110 - nobody tells of the last
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def calls(self) -> int:
        """Streams that are open now."""
        return len(self._calls)

    @property
    def metrics(self) -> Metrics:
        return self._services.metrics

    @property
    def registry(self) -> Registry:
        return self._services.registry

    async def registered(self) -> list[str]:
        """SIDs of the calls that the registry knows of."""
        return [entry.call_sid for entry in await self._services.registry.calls()]

    # --- the stream ---

    async def _media(self, request: web.Request) -> web.StreamResponse:
        """The media stream of one call, as long as it lasts."""
        ticket = await self._checked(request)
        capacity, limits = self._services.capacity, self._services.limits
        # A caller whose stream broke may be back: they have a line here, even if all
        # are taken, or the last calls are ending.
        if not (capacity.free or self._expects(ticket)):
            # 503: a balancer tries the next instance, where the ticket is good.
            log.info("stream_refused", why=capacity.state)
            self._services.metrics.hit("calls")
            raise web.HTTPServiceUnavailable(text="no line is free")
        self._count(opening=+1)
        try:
            if ticket and self._tickets:
                await self._tickets.spend(ticket)
            # The upgrade is answered before there is a model: Twilio does not wait for
            # one. It offers no compression, and frames gain nothing by it.
            socket = web.WebSocketResponse(
                compress=False,
                autoping=False,  # PhoneSocket does it, within limits
                heartbeat=PING_SECONDS,
                timeout=CLOSE_SECONDS,
                max_msg_size=limits.message_bytes,
            )
            await socket.prepare(request)
            since = time.monotonic()
            reader = PhoneSocket(request, socket, limits.send_seconds)
            phone = await Opened.of(reader, limits.start_seconds)
        except TicketRefused as error:
            raise await self._bad_ticket(error, request) from None
        finally:
            self._count(opening=-1)
        if phone.call_sid is None:
            log.warning("stream_refused", why="no_start", late=phone.late)
            if phone.late:
                self._services.metrics.hit("start_late")
            await socket.close(code=WSCloseCode.POLICY_VIOLATION)
            return socket
        named = (phone.account_sid, phone.call_sid)
        if ticket and named != (ticket.account_sid, ticket.call_sid):
            # Another than the one whose webhook was answered.
            self._refused("other_call")
            await socket.close(code=WSCloseCode.POLICY_VIOLATION)
            return socket
        self._guard.in_call(request)
        sid = phone.call_sid
        call = self.call(sid)
        self._expected.pop(sid, None)
        if call is None or not await call.take_over(phone):
            if capacity.free:
                await self._carry(Call(phone, self._services, since), sid)
            else:
                log.info("stream_refused", why=capacity.state)
                await phone.close()
        return socket

    async def _checked(self, request: web.Request) -> Ticket | None:
        """Signed by Twilio, and opened because we said so; 403 where it is not. None:
        no ticket is needed here."""
        if self._signatures and not self._signatures.handshake(
            request.raw_path, request.headers
        ):
            raise self._refused("signature")
        given = request.match_info
        if "ticket" not in given:
            if self._needs_ticket:
                raise self._refused("ticket_missing")
            return None
        if self._tickets is None:
            raise web.HTTPNotFound(text="there are no tickets here")
        try:
            return self._tickets.read(given["account"], given["call"], given["ticket"])
        except TicketRefused as error:
            raise await self._bad_ticket(error, request) from None

    @property
    def _needs_ticket(self) -> bool:
        return not self._settings.insecure and self._settings.tickets == "required"

    async def _bad_ticket(
        self, error: TicketRefused, request: web.Request
    ) -> web.HTTPForbidden:
        if error.why != "ticket_forged":
            # Of ours, too late or used: maybe a caller whose handshake came twice.
            name = f"{LATE_TICKET}:{request.match_info['call']}"
            await self._services.registry.put(name, b"1", TICKET_SECONDS)
        return self._refused(error.why)

    def _refused(self, why: str) -> web.HTTPForbidden:
        log.warning("stream_refused", why=why)
        self._services.metrics.refused(why)
        return web.HTTPForbidden(text="not a stream that was asked for")

    def _expects(self, ticket: Ticket | None) -> bool:
        """We have the call. Without a ticket nobody knows yet whose stream it is: then
        somebody whom we have a call of was told to come back."""
        if ticket:
            return self.call(ticket.call_sid) is not None
        now = time.monotonic()
        for sid, until in list(self._expected.items()):
            if until < now or self.call(sid) is None:
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
            if not call.twilio_asks:
                self.asked(call_sid)
            if not self._calls:
                self._no_calls.set()

    def _count(self, opening: int = 0) -> None:
        self._opening += opening
        self._services.capacity.streams = len(self._calls) + self._opening

    def _told(self, call_sid: str, word: bytes) -> None:
        """A word of another instance's about a call that may be ours."""
        if word == ASKED:
            self.asked(call_sid)
            return
        call = self.call(call_sid)
        if call is None:
            return
        try:
            if word == TAKEN:
                call.taken()
            elif word.startswith(ANSWERED_BY):
                call.answered_by(AnsweredBy(word.removeprefix(ANSWERED_BY).decode()))
        except Exception:
            # Ours to mend, or another version's word; it is one call's trouble, and the
            # registry that told it has the words of all.
            log.exception("fleet_message_failed", call_sid=call_sid)

    async def _openai_webhook(self, request: web.Request) -> web.Response:
        """A call comes in over SIP: OpenAI has its audio, the agent is ours."""
        if self._services.sip is None:
            raise web.HTTPNotFound(text="SIP calls are not set up here")
        body = await received(request.read(), self._services)
        status, text = await self._services.sip.incoming(request.headers, body)
        if status == HTTPStatus.UNAUTHORIZED:
            self._services.metrics.refused("signature")
        return web.Response(status=status, text=text)

    # --- the webhooks' view (bridge.http.webhooks.Desk) ---

    def call(self, call_sid: str) -> Call | None:
        return self._by_sid.get(call_sid) if call_sid else None

    def expect(self, call_sid: str) -> None:
        if self.call(call_sid) is not None:
            self._expected[call_sid] = time.monotonic() + EXPECTED_SECONDS

    def asked(self, call_sid: str) -> None:
        self._asking.discard(call_sid)
        if not self._asking:
            self._nobody_asks.set()

    # --- the control API's view (bridge.http.api.handlers.Calls) ---

    def live(self, call_sid: str) -> LiveCall | None:
        """A call of this instance."""
        call = self.call(call_sid)
        if call is None:
            return self._services.sip.live(call_sid) if self._services.sip else None
        return call.live

    async def entries(self) -> list[CallEntry]:
        return await self._services.registry.calls()

    async def place(self, wanted: handlers.PlaceCall) -> str:
        """Calls somebody; handlers.Refused says why not."""
        if self._outbound is None:
            raise handlers.Refused(
                409,
                "Outbound calls are not set up",
                "They need BRIDGE_PUBLIC_URL, TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN "
                "and BRIDGE_OUTBOUND_PREFIXES.",
            )
        if not self._services.capacity.free:
            detail = f"The bridge is {self._services.capacity.state}."
            raise handlers.Refused(503, "There is no line for the call", detail)
        number = wanted.from_number or self._settings.outbound_number
        sid = await handlers.place(
            self._outbound, wanted, number, self._services.routes
        )
        # Its statuses say nothing of what it was placed for.
        route = wanted.route.encode()
        await self._services.registry.put(f"route:{sid}", route, PLAN_SECONDS)
        return sid

    # --- for operators ---

    def _inside(
        self, answer: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """For those who come directly (Prometheus, the balancer); through a proxy comes
        the world, and is to have the API's token."""

        async def handle(request: web.Request) -> web.Response:
            token = self._settings.api_token
            if self._guard.came_directly(request) or (
                token and has_token(request, token.get_secret_value().encode())
            ):
                return await answer(request)
            raise web.HTTPNotFound(text="not here")

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
    """A running server with agents and a model; closed, with its calls, on the way
    out. `model_url` is where the model is, whatever the settings call it."""
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
    # cli.serve tells it better; here only so that no path leads around it.
    if settings.public_url is None or settings.twilio_auth_token is None:
        raise ValueError("neither BRIDGE_INSECURE nor what signatures need is set")
    return Signatures(
        settings.public_url, _auth_tokens(settings), settings.twilio_shared_keys
    )


def _tickets(settings: Settings, registry: Registry) -> Tickets | None:
    """None where there is no secret that all instances have (development only)."""
    keys = _auth_tokens(settings)
    return Tickets(keys, registry) if keys else None


def _auth_tokens(settings: Settings) -> list[str]:
    tokens = (settings.twilio_auth_token, settings.twilio_auth_token_secondary)
    return [token.get_secret_value() for token in tokens if token]


def _outbound(settings: Settings, services: Services) -> OutboundCalls | None:
    """None where it is not wanted, or where Twilio could not call us back."""
    sid, token = settings.twilio_account_sid, settings.twilio_auth_token
    if not (settings.outbound_prefixes and settings.public_url and sid and token):
        return None
    return OutboundCalls(
        services.registry,
        account_sid=sid,
        auth_token=token.get_secret_value(),
        public_url=settings.public_url,
        prefixes=settings.outbound_prefixes,
        hit=services.metrics.hit,
        day_is_spent=services.quotas.day_is_spent,
        at_once=settings.outbound_calls,
        api_url=settings.twilio_api_url,
    )


async def _within(seconds: float, wait: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        return False
    return True
