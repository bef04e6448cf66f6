"""The events of a call that another instance has.

The client's instance asks the call's instance to open the stream (owners.py), and gets
an address with a ticket in a signed answer. It reads the stream there, over HTTP, and
passes it on: what is not read on one side is not read on the other.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import structlog
from aiohttp import web

from bridge.fleet.requests import Answer, RemoteRequest
from bridge.http.api.auth import API_AUTH, Handler
from bridge.http.api.events import EVENT_STREAM, KEEP_ALIVE_SECONDS, Reader, abort
from bridge.http.api.problems import Problem

log = structlog.get_logger()

PATH = "/fleet/events"

OPEN_EVENTS = "open_events"
"""Name of the request; its argument is `raw` for the model's own events, too."""

TICKET_SECONDS = 10.0
MAX_TICKETS = 1000

CONNECT_SECONDS = 3.0
SILENT_SECONDS = 3 * KEEP_ALIVE_SECONDS
"""The other instance sends a comment every KEEP_ALIVE_SECONDS, so it is gone then."""


@dataclass(frozen=True, slots=True)
class _Ticket:
    call_sid: str
    raw: bool
    until: float
    """Of the event loop's clock."""


class EventTickets:
    """The tickets of this instance. Each opens one stream, once, within TICKET_SECONDS.

    `address`: the origin at which other instances reach this one; None: it is not
    known.
    """

    def __init__(self, address: Callable[[], Awaitable[str | None]]) -> None:
        self._address = address
        self._tickets: dict[str, _Ticket] = {}

    async def open(self, request: RemoteRequest) -> Answer:
        """The answer to OPEN_EVENTS. Raises Problem."""
        address = await self._address()
        if address is None:
            raise unreachable("its address is not known: set BRIDGE_ADVERTISE_URL")
        now = asyncio.get_running_loop().time()
        self._tickets = {id: it for id, it in self._tickets.items() if it.until > now}
        if len(self._tickets) >= MAX_TICKETS:
            raise Problem(429, "rate", "Too many event streams are opened at once")
        ticket = secrets.token_urlsafe(24)
        raw = request.argument == "raw"
        self._tickets[ticket] = _Ticket(request.call_sid, raw, now + TICKET_SECONDS)
        url = f"{address}{PATH}/{ticket}"
        return Answer(200, msgspec.json.encode({"url": url}), "application/json")

    def take(self, ticket: str) -> tuple[str, bool] | None:
        """The call's SID, and whether the model's own events are wanted, too. None: no
        such ticket, or it was used or has expired."""
        found = self._tickets.pop(ticket, None)
        if found is None or found.until < asyncio.get_running_loop().time():
            return None
        return found.call_sid, found.raw


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The middleware of the application at PATH: a ticket stands for the token."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()


def unreachable(why: str) -> Problem:
    title = "The events of the call cannot be read at the instance that has it"
    return Problem(502, "owner-unreachable", title, f"The reason: {why}.")


class _Url(msgspec.Struct):
    url: str


async def relay(request: web.Request, opened: Answer) -> web.StreamResponse:
    """Passes the events on, until the call ends or the client has gone. `opened`: the
    answer to OPEN_EVENTS. Raises Problem as long as nothing was sent."""
    url = msgspec.json.decode(opened.body, type=_Url).url
    auth = request.app[API_AUTH]
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
    )
    with auth.listening(request):
        async with aiohttp.ClientSession(timeout=timeout) as http:
            try:
                source = await http.get(url, allow_redirects=False)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise unreachable(type(error).__name__) from None
            async with source:
                if source.status != 200:
                    raise unreachable(f"it answered {source.status}")
                return await _pass_on(request, source, auth.guard.limits.send_seconds)


async def _pass_on(
    request: web.Request, source: aiohttp.ClientResponse, send_seconds: float
) -> web.StreamResponse:
    call_sid: Any = request.match_info["sid"]
    response = web.StreamResponse(headers=EVENT_STREAM)
    out = Reader(response, send_seconds)
    try:
        await response.prepare(request)
        while piece := await _next(source, call_sid):
            await out.write(piece)
        await out.end()
    except _SourceLost:
        # The answer has begun, so a broken connection is the only sign left.
        abort(request)
    except ConnectionError:
        log.debug("events_reader_gone", call_sid=call_sid)
    except TimeoutError:
        log.warning("events_reader_slow", call_sid=call_sid)
        request.app[API_AUTH].guard.hit("answer_slow")
        abort(request)
    return response


class _SourceLost(Exception):
    """The other instance does not send any more, and has not ended the stream."""


async def _next(source: aiohttp.ClientResponse, call_sid: str) -> bytes:
    """The next piece of the stream; empty at its end."""
    try:
        return await source.content.readany()
    except (aiohttp.ClientError, TimeoutError) as error:
        why = type(error).__name__
        log.warning("events_source_lost", call_sid=call_sid, why=why)
        raise _SourceLost from None
