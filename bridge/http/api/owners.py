"""Finds the instance that has a call, and carries out the operation there.

The instance that a client has reached sends one request at a time to the call's owner
(fleet/requests.py). It asks the next owner only if the one before has certainly not
carried the request out: so nothing happens twice, also while a call moves.
"""

import asyncio
from collections.abc import Callable

import structlog

from bridge.agent.live import LiveCall
from bridge.fleet import CallEntry, Registry, Then
from bridge.fleet.requests import (
    BUSY,
    TOO_LARGE,
    Answer,
    FleetRequests,
    RemoteRequest,
    Unanswered,
)
from bridge.http.api import call_operations
from bridge.http.api.call_operations import ACTION_SECONDS, no_call
from bridge.http.api.event_relay import OPEN_EVENTS, EventTickets
from bridge.http.api.problems import Problem

log = structlog.get_logger()

MOVE_SECONDS = 5.0
"""How long a request waits for a call that is between two instances."""

POLL_SECONDS = 0.2

NOT_HERE = Answer(421)
"""The answer of an instance that does not have the call; nothing was done."""

SLACK_SECONDS = 5.0
"""The owner's own time limit of an action is reported before this instance's."""


class Owners:
    """`live`: a call of this instance. `requests` None: no other instance can be
    asked."""

    def __init__(
        self,
        live: Callable[[str], LiveCall | None],
        registry: Registry,
        requests: FleetRequests | None,
        tickets: EventTickets,
    ) -> None:
        self.live = live
        self._registry = registry
        self._requests = requests
        self._tickets = tickets

    async def run(self, request: RemoteRequest) -> Answer:
        """Carries out an operation (call_operations.py, or OPEN_EVENTS) where the call
        is. Raises Problem."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + MOVE_SECONDS
        over: Problem | None = None
        while True:
            try:
                return await self._try(request)
            except NotDone as error:
                over = over or error.problem
            if not await self._is_somewhere(request.call_sid):
                raise over or no_call()
            if loop.time() >= give_up:
                raise over or _unsettled()
            await asyncio.sleep(POLL_SECONDS)

    async def serve(self, request: RemoteRequest) -> Answer:
        """Carries out an operation that another instance asks for, if the call is
        here."""
        live = self.live(request.call_sid)
        try:
            return NOT_HERE if live is None else await self._run_here(live, request)
        except Problem as problem:
            return problem.answer()
        except Exception:
            # The other instance, and its client, must not wait for an answer in vain.
            log.exception("api_failed", call_sid=request.call_sid)
            return Problem(500, "failed", "The bridge has failed").answer()

    async def ask(self, instance: str, request: RemoteRequest) -> Answer:
        """The answer of another instance. Raises Problem; NotDone: it is gone."""
        if self._requests is None:
            raise _no_registry()
        seconds = ACTION_SECONDS + SLACK_SECONDS
        try:
            answer = await self._requests.ask(instance, request, seconds)
        except Unanswered as error:
            if error.why == "gone":
                raise NotDone(_owner_gone()) from None
            raise _unanswered(error, request) from None
        if answer.status == BUSY.status and not answer.body:
            title = "The call's instance gets too many requests"
            raise Problem(429, "rate", title, headers={"Retry-After": "1"})
        if answer.status == TOO_LARGE.status:
            title = "The answer is too large to be passed on by another instance"
            raise Problem(502, "too-large", title)
        return answer

    async def _try(self, request: RemoteRequest) -> Answer:
        """NotDone: the operation has certainly not been carried out."""
        live = self.live(request.call_sid)
        if live is not None:
            try:
                return await self._run_here(live, request)
            except Problem as problem:
                if _was_over(request, problem.status):
                    raise NotDone(problem) from None
                raise
        entry = await self._entry(request.call_sid)
        if entry is None or entry.instance == self._registry.id:
            raise NotDone(None)  # it may be about to begin here
        answer = await self.ask(entry.instance, request)
        if answer.status == NOT_HERE.status:
            raise NotDone(None)
        if _was_over(request, answer.status):
            raise NotDone(Problem(410, "over", "The call is over"))
        return answer

    async def _run_here(self, live: LiveCall, request: RemoteRequest) -> Answer:
        if request.name == OPEN_EVENTS:
            return await self._tickets.open(request)
        if request.name not in call_operations.OPERATIONS:
            raise Problem(501, "unknown", "The call's instance has another version")
        name, argument = request.name, request.argument
        return await call_operations.run(live, name, argument, request.body)

    async def _entry(self, call_sid: str) -> CallEntry | None:
        registry = self._registry
        entry = await registry.owner(call_sid)
        if entry is None and registry.shared and not await registry.reachable():
            raise _no_registry()
        return entry

    async def _is_somewhere(self, call_sid: str) -> bool:
        """Some instance has the call, or its next stream is about to begin."""
        if await self._registry.owner(call_sid) is not None:
            return True
        step = await self._registry.next_step(call_sid)
        return step is not None and step.then is Then.RESUME


class NotDone(Exception):
    """Nothing was done. `problem`: for the client, if no other instance has the call;
    None: a call that is not there."""

    def __init__(self, problem: Problem | None) -> None:
        super().__init__()
        self.problem = problem


def _was_over(request: RemoteRequest, status: int) -> bool:
    """The call was over before the operation was carried out."""
    return status == 410 and request.name not in call_operations.PARTLY


def _unsettled() -> Problem:
    return Problem(
        503,
        "moving",
        "No instance has the call at this moment",
        "Nothing was done. The call is beginning, ending, or moving to another "
        "instance: try again.",
        headers={"Retry-After": "2"},
    )


def _owner_gone() -> Problem:
    return Problem(
        503,
        "owner-gone",
        "The instance that had the call is gone, or has an earlier version",
        "Nothing was done. If the caller is still there, another instance continues "
        "the call: try again.",
        headers={"Retry-After": "2"},
    )


def _no_registry() -> Problem:
    return Problem(503, "registry", "The registry of calls does not answer")


REASONS = {
    "registry": "Redis cannot be reached.",
    "unaccepted": "It did not accept the request: its BRIDGE_API_TOKEN may differ, or "
    "it is overloaded.",
    "lost": "It was lost meanwhile.",
    "late": "It did not answer in time.",
    "too-large": "The request is too large to be passed on.",
}
"""Of Unanswered -> a sentence about the call's instance."""


def _unanswered(error: Unanswered, request: RemoteRequest) -> Problem:
    detail = REASONS[error.why]
    if error.maybe:
        if request.name not in call_operations.READS:
            detail += " It is not known whether the action has happened."
        title = "The call's instance did not answer"
        return Problem(504, "unanswered", title, detail)
    if error.why == "too-large":
        return Problem(413, "too-large", detail)
    title = "The registry of calls does not answer"
    return Problem(503, "registry", title, f"{detail} Nothing was done.")
