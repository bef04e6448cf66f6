"""The control API's requests: lists, steers and places calls over HTTP.

Nothing is decided here. What is done with a running call is in call_operations.py, and
owners.py does it on the instance that has the call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import web

import twiml
from bridge.agent.live import LiveCall
from bridge.app.fallback import FallbackSwitch, RegistryAway
from bridge.app.outbound import (
    LONGEST_SECONDS,
    CallStatus,
    OutboundCalls,
    OutboundOrder,
    RepeatedKey,
)
from bridge.app.outbound_limits import LimitName, OutboundLimited
from bridge.app.routes import Routes
from bridge.app.twilio_api import TwilioRefused
from bridge.fleet import CallEntry, Registry
from bridge.fleet.requests import Answer, FleetRequests, RemoteRequest
from bridge.http.api import bodies, events, openapi
from bridge.http.api.auth import (
    API_AUTH,
    ApiAuth,
    Handler,
    body_of,
    parsed,
    raw_body,
)
from bridge.http.api.bodies import Body, Mistake, PlaceCall
from bridge.http.api.call_operations import (
    OPERATIONS,
    TAKES,
    answer_of,
    no_call,
    time_limit,
)
from bridge.http.api.event_relay import OPEN_EVENTS, EventTickets, problems, relay
from bridge.http.api.owners import NotDone, Owners
from bridge.http.api.problems import Problem, Refused, invalid, response_of
from bridge.records.retention import StillRuns

__all__ = ["Calls", "FleetAccess", "PlaceCall", "Refused", "applications", "place"]

log = structlog.get_logger()

REGISTRY_SECONDS = 5.0
FORGET = "forget"
"""Name of the request that deletes the records of a call on one instance."""

LIMITS: Mapping[LimitName, int] = {
    "off": 409,
    "prefix": 403,
    "registry": 503,
    **dict.fromkeys(("at_once", "number", "campaign", "rate", "cost"), 429),
}

DOCUMENT_BYTES = 60_000
"""Twilio refuses a document of more than 64 kB (error 11750), once the call is
answered. The rest is for the parameters that the bridge adds."""

MAX_KEY_CHARS = 255
"""Length of an Idempotency-Key."""


class Calls(Protocol):
    """The calls, as the API needs them."""

    def live(self, call_sid: str) -> LiveCall | None:
        """A call of this instance."""

    async def entries(self) -> list[CallEntry]:
        """The running calls of all instances, oldest first."""

    async def instances(self) -> list[str]:
        """The other live instances."""

    async def place(self, wanted: PlaceCall, idempotency_key: str) -> str:
        """Places a call, but only one for each key (empty: no key); returns its SID.
        Refused says why it was not placed."""

    async def status(self, call_sid: str) -> CallStatus | None:
        """The newest status of an outbound call; None if it is not known."""

    async def cancel(self, call_sid: str) -> CallStatus | None:
        """Cancels a call that was not answered yet; see OutboundCalls.cancel. Refused:
        Twilio did not cancel it."""

    @property
    def fallback(self) -> FallbackSwitch:
        """The switch of the fleet."""


Forget = Callable[[str], Awaitable[None]]
"""Deletes the stored records of a call. OSError if some could not be deleted."""


@dataclass(frozen=True, slots=True)
class FleetAccess:
    """How the API reaches the other instances."""

    registry: Registry
    requests: FleetRequests | None
    """None: there are no others."""
    address: Callable[[], Awaitable[str | None]]
    """The origin at which the others reach this instance; None: it is not known."""


@dataclass(frozen=True, slots=True)
class Applications:
    """What the server mounts."""

    api: Callable[[], web.Application]
    """A new application for each path at which the API is mounted (/api)."""
    events: web.Application
    """For other instances, at event_relay.PATH."""


def applications(
    calls: Calls, auth: ApiAuth, fleet: FleetAccess, forget: Forget | None = None
) -> Applications:
    """The control API of one instance. Without `forget` no records can be deleted."""
    api = _Api(calls, fleet, forget)
    handlers: Mapping[str, Handler] = {
        "list_calls": api.list_calls,
        "place_call": api.place_call,
        "get_status": api.get_status,
        "cancel": api.cancel,
        "events": api.events,
        "forget": api.forget,
        "get_fallback": api.get_fallback,
        "set_fallback": api.set_fallback,
        "openapi": api.openapi,
        **{name: api.operation(name) for name in OPERATIONS},
    }

    def mounted() -> web.Application:
        app = web.Application(middlewares=[auth.middleware])
        app[API_AUTH] = auth
        for it in openapi.OPERATIONS:
            app.router.add_route(it.method, it.path, handlers[it.name])
        return app

    own = web.Application(middlewares=[problems])
    own[API_AUTH] = auth
    own.router.add_get("/{ticket}", api.own_events)
    return Applications(mounted, own)


async def place(
    outbound: OutboundCalls,
    wanted: PlaceCall,
    number: str | None,
    routes: Routes,
    *,
    longest_seconds: float = LONGEST_SECONDS,
    idempotency_key: str = "",
) -> str:
    """Places a call through `outbound` from `number`; returns its SID. Refused says why
    it was not placed. `longest_seconds`: the limit of every call of this bridge."""
    if not number:
        detail = "Give `from`, or set BRIDGE_OUTBOUND_NUMBER."
        raise Refused(422, "There is no number to call from", detail)
    if wanted.route and routes.named(wanted.route) is None:
        detail = "`route` must name a route of the routes file."
        raise Refused(422, "There is no such route", detail)
    if wanted.longest_seconds is not None and wanted.longest_seconds > longest_seconds:
        detail = (
            f"`longest_seconds` is above BRIDGE_LONGEST_SECONDS ({longest_seconds:g})."
        )
        raise Refused(422, "Such a call cannot be placed", detail)
    order = _order(wanted, number)
    try:
        return await outbound.place(order, idempotency_key)
    except RepeatedKey as repeated:
        title = "The Idempotency-Key was used before"
        raise Refused(422 if repeated.other else 409, title, str(repeated)) from None
    except OutboundLimited as limited:
        raise Refused(
            LIMITS[limited.limit], "The call is not allowed now", str(limited)
        ) from None
    except TwilioRefused as refused:
        # Among Twilio's 4xx, only these are about the order; the others are about the
        # bridge's account or setup.
        status = 422 if refused.status in (400, 404) else 502
        raise Refused(status, "Twilio did not place the call", str(refused)) from None


def _order(wanted: PlaceCall, number: str) -> OutboundOrder:
    try:
        order = OutboundOrder(
            to=wanted.to,
            from_number=number,
            route=wanted.route,
            parameters=wanted.parameters,
            greeting=wanted.greeting,
            machine=wanted.machine,
            message=wanted.message,
            agent_decides=wanted.agent_decides,
            ring_seconds=wanted.ring_seconds,
            longest_seconds=wanted.longest_seconds,
            send_digits=wanted.send_digits,
            campaign=wanted.campaign,
        )
        # Checks the parameters now. Otherwise an error would show only once the call is
        # answered.
        document = twiml.connect(
            "wss://any.example/media", action_url="/", parameters=wanted.parameters
        )
        if len(document.encode()) > DOCUMENT_BYTES:
            raise ValueError("the parameters are too long for one document of Twilio's")
    except ValueError as error:
        raise Refused(422, "Such a call cannot be placed", str(error)) from None
    return order


async def cancel(
    outbound: OutboundCalls, call_sid: str
) -> tuple[CallStatus | None, OutboundOrder | None]:
    """See OutboundCalls.cancel. Problem: Twilio did not cancel the call."""
    try:
        return await outbound.cancel(call_sid)
    except TwilioRefused as refused:
        title = "Twilio did not cancel the call"
        raise Problem(502, "not-canceled", title, str(refused)) from None


def outbound_is_off() -> Refused:
    return Refused(
        409,
        "Outbound calls are not set up",
        "They need BRIDGE_PUBLIC_URL, TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN and "
        "BRIDGE_OUTBOUND_PREFIXES.",
    )


class _Api:
    """The operations; each answers one request."""

    def __init__(self, calls: Calls, fleet: FleetAccess, forget: Forget | None) -> None:
        self._calls = calls
        self._delete = forget
        self._tickets = EventTickets(fleet.address)
        requests = fleet.requests
        self._owners = Owners(calls.live, fleet.registry, requests, self._tickets)
        if requests:
            requests.serve = self.serve
        self._document = msgspec.json.encode(openapi.document())

    # --- calls ---

    async def list_calls(self, request: web.Request) -> web.Response:
        entries = await self._entries()
        here = {it.call_sid for it in entries if self._calls.live(it.call_sid)}
        return _json(bodies.call_list(entries, here))

    async def place_call(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, PlaceCall)
        key = request.headers.get(openapi.IDEMPOTENCY_KEY, "")
        if len(key) > MAX_KEY_CHARS:
            what = f"has more than {MAX_KEY_CHARS} characters"
            raise invalid([Mistake(at=openapi.IDEMPOTENCY_KEY, what=what)])
        async with time_limit():
            call_sid = await self._calls.place(wanted, key)
        location = f"{request.path}/{quote(call_sid, safe='')}"
        return _json(bodies.Placed(call_sid=call_sid), 201, Location=location)

    def operation(self, name: str) -> Handler:
        """Answers requests for an operation of call_operations.py, wherever the call
        is."""

        async def handle(request: web.Request) -> web.StreamResponse:
            raw = await raw_body(request, TAKES[name])
            parsed(raw, TAKES[name])  # a mistake is found before any instance is asked
            given = request.match_info
            asked = RemoteRequest(name, given["sid"], given.get("call_id", ""), raw)
            return response_of(await self._owners.run(asked))

        return handle

    async def events(self, request: web.Request) -> web.StreamResponse:
        call_sid, raw = request.match_info["sid"], request.query.get("raw") == "1"
        live = self._owners.live(call_sid)
        if live is not None:
            return await events.stream(request, live, raw=raw)
        asked = RemoteRequest(OPEN_EVENTS, call_sid, "raw" if raw else "")
        opened = await self._owners.run(asked)
        if opened.status != 200:
            return response_of(opened)
        return await relay(request, opened)

    # --- outbound calls, also before they are answered and after their end ---

    async def get_status(self, request: web.Request) -> web.Response:
        status = await self._calls.status(request.match_info["sid"])
        if status is None:
            raise no_call()
        return _json(bodies.call_progress(status))

    async def cancel(self, request: web.Request) -> web.Response:
        await body_of(request, bodies.Nothing)
        async with time_limit():
            status = await self._calls.cancel(request.match_info["sid"])
        if status is None:
            raise no_call()
        if status.state == "in-progress":
            title = "The call was answered: hang up instead"
            raise Problem(409, "answered", title)
        if status.state != "canceled":
            raise Problem(410, "over", "The call is over")
        return _json(bodies.call_progress(status))

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    # --- stored records ---

    async def forget(self, request: web.Request) -> web.Response:
        """Deletes the records on every instance; each has traces of its own."""
        call_sid = request.match_info["sid"]
        if call_sid in {entry.call_sid for entry in await self._entries()}:
            raise _still_runs()
        here = await self.forget_here(call_sid)
        asked = RemoteRequest(FORGET, call_sid)
        instances = await self._calls.instances()
        others = [self._forget_at(it, asked) for it in instances]
        answers = [here, *await asyncio.gather(*others)]
        wrong = [it for it in answers if it.status != 204]
        return response_of(max(wrong or answers, key=lambda it: it.status))

    async def _forget_at(self, instance: str, asked: RemoteRequest) -> Answer:
        try:
            return await self._owners.ask(instance, asked)
        except (Problem, NotDone):
            title = "An instance did not answer, so its records may be left"
            detail = "The records of the others are deleted. Try again."
            return Problem(502, "not-everywhere", title, detail).answer()

    async def forget_here(self, call_sid: str) -> Answer:
        try:
            await self._delete_here(call_sid)
        except Problem as problem:
            return problem.answer()
        return Answer(204)

    async def _delete_here(self, call_sid: str) -> None:
        if self._owners.live(call_sid):
            raise _still_runs()
        if self._delete is None:
            raise Problem(409, "no-records", "This bridge keeps no records to delete")
        try:
            async with time_limit():
                await self._delete(call_sid)
        except StillRuns:  # has no entry: another instance on this machine runs it
            raise _still_runs() from None
        except OSError as error:
            # Without the path, because it contains the call's SID.
            why = error.strerror or type(error).__name__
            log.error("records_not_deleted", call_sid=call_sid, why=why)
            raise Problem(500, "not-deleted", "Some records were not deleted") from None

    # --- the fallback switch ---

    async def get_fallback(self, request: web.Request) -> web.Response:
        switch = self._calls.fallback
        return _json(bodies.fallback(switch.state, on=switch.on))

    async def set_fallback(self, request: web.Request) -> web.Response:
        wanted = await body_of(request, bodies.SetFallback)
        seconds = None if wanted.minutes is None else wanted.minutes * 60.0
        switch = self._calls.fallback
        try:
            async with time_limit():
                state = await switch.set(
                    wanted.on, reason=wanted.reason, by=wanted.by, seconds=seconds
                )
        except RegistryAway:
            title = "The registry does not answer, so the fleet was not switched"
            detail = "Set BRIDGE_FALLBACK and deploy, or try again."
            raise Problem(503, "registry", title, detail) from None
        return _json(bodies.fallback(state, on=switch.on))

    # --- requests of other instances ---

    async def serve(self, request: RemoteRequest) -> Answer:
        """Carries out what another instance asks for."""
        if request.name == FORGET:
            return await self.forget_here(request.call_sid)
        return await self._owners.serve(request)

    async def own_events(self, request: web.Request) -> web.StreamResponse:
        """Sends the events to the instance that was given this ticket."""
        found = self._tickets.take(request.match_info["ticket"])
        if found is None:
            request.app[API_AUTH].check_rate(request, False)
            raise no_call()
        call_sid, raw = found
        live = self._owners.live(call_sid)
        if live is None or live.over:
            raise no_call()
        return await events.stream(request, live, raw=raw)

    # --- helpers ---

    async def _entries(self) -> list[CallEntry]:
        try:
            async with asyncio.timeout(REGISTRY_SECONDS):
                return await self._calls.entries()
        except (TimeoutError, ConnectionError):
            title = "The registry of calls does not answer"
            raise Problem(503, "registry", title) from None


def _still_runs() -> Problem:
    title = "The call is still running, or its files are being made"
    return Problem(409, "running", title)


def _json(body: Body, status: int = 200, **headers: str) -> web.Response:
    return response_of(answer_of(body, status, **headers))
