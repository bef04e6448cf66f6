"""The control API's operations: list, steer and place calls over HTTP.

Each operation calls the same LiveCall methods as the user's code; nothing is decided
here. Only calls of this instance can be steered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol
from urllib.parse import quote

import msgspec
import structlog
from aiohttp import web

import twiml
from bridge.agent.live import BadRequest, CallOver, LiveCall, NotAllowed
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
from bridge.fleet import CallEntry
from bridge.http.api import bodies, events, openapi
from bridge.http.api.auth import API_AUTH, ApiAuth, Handler, body_of
from bridge.http.api.bodies import Body, Mistake, PlaceCall
from bridge.http.api.problems import Problem, Refused, invalid
from bridge.records.retention import StillRuns

__all__ = ["Calls", "PlaceCall", "Refused", "application", "place"]

log = structlog.get_logger()

REGISTRY_SECONDS = 5.0
ACTION_SECONDS = 60.0
"""Time limit of a request. The action that it asked for may still happen afterwards."""

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

    async def place(self, wanted: PlaceCall, idempotency_key: str) -> str:
        """Places a call, but only one for each key (empty: no key); returns its SID.
        Refused says why it was not placed."""

    async def status(self, call_sid: str) -> CallStatus | None:
        """The newest status of an outbound call; None if it is not known."""

    async def cancel(self, call_sid: str) -> CallStatus | None:
        """Cancels a call that was not answered yet; see OutboundCalls.cancel. Refused:
        Twilio did not cancel it."""


Forget = Callable[[str], Awaitable[None]]
"""Deletes the stored records of a call. OSError if some could not be deleted."""


def application(
    calls: Calls, auth: ApiAuth, forget: Forget | None = None
) -> web.Application:
    """The application to mount at /api. Without `forget` no records can be deleted."""
    api = _Api(calls, forget)
    handlers: Mapping[str, Handler] = {
        "list_calls": api.list_calls,
        "place_call": api.place_call,
        "get_call": api.get_call,
        "hang_up": api.hang_up,
        "get_status": api.get_status,
        "cancel": api.cancel,
        "transfer": api.transfer,
        "send_digits": api.send_digits,
        "send_text": api.send_text,
        "interrupt": api.interrupt,
        "mute": api.mute,
        "list_approvals": api.list_approvals,
        "decide": api.decide,
        "get_history": api.get_history,
        "edit_history": api.edit_history,
        "events": api.events,
        "forget": api.forget,
        "openapi": api.openapi,
    }
    app = web.Application(middlewares=[auth.middleware])
    app[API_AUTH] = auth
    for it in openapi.OPERATIONS:
        app.router.add_route(it.method, it.path, handlers[it.name])
    return app


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

    def __init__(self, calls: Calls, forget: Forget | None) -> None:
        self._calls = calls
        self._delete = forget
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
        async with _time_limit():
            call_sid = await self._calls.place(wanted, key)
        location = {"Location": f"{request.path}/{quote(call_sid, safe='')}"}
        return _json(bodies.Placed(call_sid=call_sid), status=201, headers=location)

    async def get_call(self, request: web.Request) -> web.Response:
        return _json(bodies.details(await self._live(request), time.time()))

    # --- outbound calls, also before they are answered and after their end ---

    async def get_status(self, request: web.Request) -> web.Response:
        status = await self._calls.status(request.match_info["sid"])
        if status is None:
            raise _no_call()
        return _json(bodies.call_progress(status))

    async def cancel(self, request: web.Request) -> web.Response:
        await body_of(request, bodies.Nothing)
        async with _time_limit():
            status = await self._calls.cancel(request.match_info["sid"])
        if status is None:
            raise _no_call()
        if status.state == "in-progress":
            title = "The call was answered: hang up instead"
            raise Problem(409, "answered", title)
        if status.state != "canceled":
            raise Problem(410, "over", "The call is over")
        return _json(bodies.call_progress(status))

    # --- actions that wait until the caller has heard everything ---

    async def hang_up(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        await body_of(request, bodies.Nothing)
        return await _done(live.hang_up())

    async def transfer(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        to = await body_of(request, bodies.TransferTo)
        return await _done(
            live.transfer(
                to.number,
                caller_id=to.caller_id,
                ring_seconds=to.ring_seconds,
                digits=to.digits,
                whisper=to.whisper,
                accept=to.accept,
                warm=to.warm,
                summary=to.summary,
            )
        )

    async def send_digits(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        wanted = await body_of(request, bodies.Digits)
        return await _done(live.send_digits(wanted.digits))

    # --- actions that do not wait ---

    async def send_text(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        wanted = await body_of(request, bodies.Text)
        with _refusals_as_problems():
            live.tell(wanted.text, role=wanted.role, respond=wanted.respond)
        return web.Response(status=204)

    async def interrupt(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        await body_of(request, bodies.Nothing)
        with _refusals_as_problems():
            live.interrupt()
        return web.Response(status=204)

    async def mute(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        wanted = await body_of(request, bodies.Mute)
        with _refusals_as_problems():
            live.mute(wanted.on)
        return web.Response(status=204)

    # --- approvals ---

    async def list_approvals(self, request: web.Request) -> web.Response:
        return _json(bodies.approval_list(await self._live(request)))

    async def decide(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        decision = await body_of(request, bodies.Decision)
        call_id, always = request.match_info["call_id"], decision.always
        if call_id not in {it.call_id for it in live.approvals}:
            raise Problem(
                404, "no-approval", "No tool call with this id awaits approval"
            )
        async with _time_limit():
            with _refusals_as_problems():
                if decision.approve:
                    await live.approve(call_id, always=always)
                else:
                    message = decision.message
                    await live.reject(call_id, always=always, message=message)
        return web.Response(status=204)

    # --- the conversation ---

    async def get_history(self, request: web.Request) -> web.Response:
        return _json(bodies.item_list(await self._live(request)))

    async def edit_history(self, request: web.Request) -> web.Response:
        live = await self._live(request)
        wanted = await body_of(request, bodies.EditHistory)
        with _refusals_as_problems():
            live.update_history(remove=wanted.remove, correct=wanted.correct)
        return web.Response(status=204)

    async def events(self, request: web.Request) -> web.StreamResponse:
        return await events.stream(request, await self._live(request))

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    # --- stored records ---

    async def forget(self, request: web.Request) -> web.Response:
        call_sid = request.match_info["sid"]
        known = (entry.call_sid for entry in await self._entries())
        if self._calls.live(call_sid) or call_sid in known:
            raise Problem(409, "running", "The call is still running")
        if self._delete is None:
            raise Problem(409, "no-records", "This bridge keeps no records to delete")
        try:
            async with _time_limit():
                await self._delete(call_sid)
        except StillRuns:  # has no entry: another instance on this machine runs it
            raise Problem(409, "running", "The call is still running") from None
        except OSError as error:
            # Without the path, because it contains the call's SID.
            why = error.strerror or type(error).__name__
            log.error("records_not_deleted", call_sid=call_sid, why=why)
            raise Problem(500, "not-deleted", "Some records were not deleted") from None
        return web.Response(status=204)

    # --- helpers ---

    async def _live(self, request: web.Request) -> LiveCall:
        call_sid = request.match_info["sid"]
        live = self._calls.live(call_sid)
        if live is not None:
            return live
        if any(entry.call_sid == call_sid for entry in await self._entries()):
            raise Problem(
                409,
                "elsewhere",
                "Another instance has the call",
                "A call is steered at the instance that holds its stream.",
            )
        raise _no_call()

    async def _entries(self) -> list[CallEntry]:
        try:
            async with asyncio.timeout(REGISTRY_SECONDS):
                return await self._calls.entries()
        except (TimeoutError, ConnectionError):
            title = "The registry of calls does not answer"
            raise Problem(503, "registry", title) from None


def _no_call() -> Problem:
    return Problem(404, "no-call", "There is no such call, or it has ended")


async def _done(action: Awaitable[bool]) -> web.Response:
    async with _time_limit():
        with _refusals_as_problems():
            done = await action
    return _json(bodies.Done(done=done))


@contextmanager
def _refusals_as_problems() -> Iterator[None]:
    """Turns a call's refusals into problems."""
    try:
        yield
    except NotAllowed as error:
        raise Problem(403, "not-allowed", "This is not allowed", str(error)) from None
    except BadRequest as error:
        raise invalid([Mistake(at="", what=str(error))]) from None
    except CallOver:
        raise Problem(410, "over", "The call is over") from None


@asynccontextmanager
async def _time_limit() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ACTION_SECONDS):
            yield
    except TimeoutError:
        raise Problem(
            504,
            "unfinished",
            "The action did not finish within a minute",
            "It may still happen: the caller is still listening, or Twilio is slow.",
        ) from None


def _json(
    body: Body, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=body.model_dump_json().encode(),
        status=status,
        headers=headers,
        content_type="application/json",
    )
