"""What a client of the control API can read about a running call and do with it.

Each operation uses the LiveCall methods that the user's code uses; nothing is decided
here. The request may have come to this instance or to another one (owners.py), so an
operation knows no HTTP request: it gets the body as bytes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from bridge.agent.live import BadRequest, CallOver, LiveCall, NotAllowed
from bridge.fleet.requests import Answer
from bridge.http.api import bodies, openapi
from bridge.http.api.auth import parsed
from bridge.http.api.bodies import Body, Mistake
from bridge.http.api.problems import Problem, invalid

ACTION_SECONDS = 60.0
"""Time limit of an action. It may still happen afterwards."""

Operate = Callable[[LiveCall, Any, str], Awaitable[Body | None]]
"""Gets the call, the body, and the rest of the path (the id of a tool call)."""

TAKES: Mapping[str, type[Body]] = {
    it.name: it.takes or bodies.Nothing for it in openapi.OPERATIONS
}
"""Name of an operation -> the model of its body."""


def no_call() -> Problem:
    return Problem(404, "no-call", "There is no such call, or it has ended")


async def run(live: LiveCall, name: str, argument: str, raw: bytes) -> Answer:
    """Carries out an operation of OPERATIONS. Raises Problem."""
    body = parsed(raw, TAKES[name])
    async with time_limit():
        with _refusals_as_problems():
            given = await OPERATIONS[name](live, body, argument)
    return Answer(204) if given is None else answer_of(given)


def answer_of(body: Body, status: int = 200, **headers: str) -> Answer:
    return Answer(status, body.model_dump_json().encode(), "application/json", headers)


@asynccontextmanager
async def time_limit() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ACTION_SECONDS):
            yield
    except TimeoutError:
        raise unfinished() from None


def unfinished() -> Problem:
    return Problem(
        504,
        "unfinished",
        "The action did not finish within a minute",
        "It may still happen: the caller is still listening, or Twilio is slow.",
    )


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


# --- reading ---


async def _get_call(live: LiveCall, _: Body, __: str) -> Body:
    return bodies.details(live, time.time())


async def _list_approvals(live: LiveCall, _: Body, __: str) -> Body:
    return bodies.approval_list(live)


async def _get_history(live: LiveCall, _: Body, __: str) -> Body:
    return bodies.item_list(live)


# --- actions that wait until the caller has heard everything ---


async def _hang_up(live: LiveCall, _: Body, __: str) -> Body:
    return bodies.Done(done=await live.hang_up())


async def _transfer(live: LiveCall, to: bodies.TransferTo, _: str) -> Body:
    done = await live.transfer(
        to.number,
        caller_id=to.caller_id,
        ring_seconds=to.ring_seconds,
        digits=to.digits,
        whisper=to.whisper,
        accept=to.accept,
        warm=to.warm,
        summary=to.summary,
    )
    return bodies.Done(done=done)


async def _send_digits(live: LiveCall, wanted: bodies.Digits, _: str) -> Body:
    return bodies.Done(done=await live.send_digits(wanted.digits))


# --- actions that do not wait ---


async def _send_text(live: LiveCall, wanted: bodies.Text, _: str) -> None:
    live.tell(wanted.text, role=wanted.role, respond=wanted.respond)


async def _interrupt(live: LiveCall, _: Body, __: str) -> None:
    live.interrupt()


async def _mute(live: LiveCall, wanted: bodies.Mute, _: str) -> None:
    live.mute(wanted.on)


async def _edit_history(live: LiveCall, wanted: bodies.EditHistory, _: str) -> None:
    live.update_history(remove=wanted.remove, correct=wanted.correct)


async def _decide(live: LiveCall, decision: bodies.Decision, call_id: str) -> None:
    if call_id not in {it.call_id for it in live.approvals}:
        title = "No tool call with this id awaits approval"
        raise Problem(404, "no-approval", title)
    if decision.approve:
        await live.approve(call_id, always=decision.always)
    else:
        message = decision.message
        await live.reject(call_id, always=decision.always, message=message)


OPERATIONS: Mapping[str, Operate] = {
    "get_call": _get_call,
    "list_approvals": _list_approvals,
    "get_history": _get_history,
    "hang_up": _hang_up,
    "transfer": _transfer,
    "send_digits": _send_digits,
    "send_text": _send_text,
    "interrupt": _interrupt,
    "mute": _mute,
    "edit_history": _edit_history,
    "decide": _decide,
}

READS = frozenset({"get_call", "list_approvals", "get_history", "open_events"})
"""These change nothing."""

PARTLY = frozenset({"send_digits"})
"""If the call ends meanwhile, a part of these may have happened. The others have not
happened at all then, so another instance may carry them out."""
