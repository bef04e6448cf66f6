"""The effect of a failing model, or a failing Calls API, on SIP calls.

    .venv/bin/python -m tests.bench.sip_faults [--runs 20] [--only REFER] [--quick]

Real sockets; bridge and fakes in one process; each call has its own bridge, model and
Calls API. Each cell says how its call must end at OpenAI and in the metric and log, and
what the caller must have heard. Nothing of a call may be left. Exits 1 if a call is
wrong. `tests.bench.faults` runs these calls, too, in a process of their own.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import monotonic
from typing import Any, TypeAlias

import structlog
from agents import RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent
from structlog.testing import LogCapture

from bridge.agent.live import BadRequest, CallOver, LiveCall
from bridge.model.session import dial
from bridge.model.sip_session import ATTACH_TRIES
from bridge.sim.model import Behaviour, CallTool, Fail, ModelSession, SayText, Turn
from bridge.sim.realtime import faults
from bridge.sim.realtime.calls import incoming, new_secret
from bridge.sim.realtime.faults import Fault
from bridge.sim.realtime.phone_call import PhoneCall, SipCallState
from bridge.telemetry import log
from tests.sim.realtime_client import QUICK, speech
from tests.sip.test_sip import DESK, SipSetup, place, talking, tasks

RUNS = 20
QUICK_RUNS = 3
AT_ONCE = 30
STAGGER_SECONDS = 0.1

LOOK_SECONDS = 0.02
CALL_SECONDS = 60.0
"""Longest time for each of a call's parts: its fault, its end, what is left of it."""
TOOL_SECONDS = 3.0
LATE_SECONDS = 2.0
"""How late a slow server is."""
LEFT_SECONDS = 10.0
"""Limit for a call to be gone after its end, on a machine that is busy with the floods.
A hang-up that fails may last longer."""
ALWAYS = 99
"""More requests than the bridge makes."""

HELLO, SORRY, YES = "Hello.", "I am sorry.", "Yes?"
LONG = "This is a long greeting which goes on and on, so that it can be broken off."
HUGE = json.dumps({"type": "rate_limits.updated", "rate_limits": ["x" * 3_000_000]})


# --- a call -------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """One call."""

    here: SipSetup
    call: PhoneCall
    fault_at: float
    tools: list[bool] = field(default_factory=list)
    """For each running tool that began: whether it has ended."""

    @property
    def session(self) -> ModelSession:
        assert self.call.session is not None, "no control socket is attached"
        return self.call.session

    @property
    def requests(self) -> list[str]:
        return [verb for verb, _ in self.here.calls.requests]

    def inject(self, fault: Fault) -> None:
        self.fault_at = monotonic()
        fault(self.session)

    async def heard(self, text: str) -> None:
        """Waits until the caller has heard this, or the call is over."""
        await until(lambda: text in self.here.said() or self.here.sip.calls == 0)


Act: TypeAlias = Callable[[Run], Awaitable[None]]
"""What happens in a call from its webhook to the beginning of its end."""

Before: TypeAlias = Callable[[SipSetup], None]
"""Sets a fault before the call rings."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A fault in a phase of a call, and what must hold."""

    phase: str
    fault: str
    act: Act
    # What must hold
    outcome: str | None
    """The call's outcome in metric and log; None: no call begins here."""
    or_outcome: str = ""
    """Another one that is right, too."""
    state: SipCallState = SipCallState.ENDED
    by: str | None = "api"
    """Who ended the call at OpenAI; None: it has not ended there."""
    heard: Sequence[str] = (HELLO,)
    """What the caller has heard, in order, among other words."""
    requests: Mapping[str, int] = field(default_factory=lambda: {"accept": 1})
    """The number of requests by verb, of the verbs that matter."""
    logged: Collection[str] = ()
    """Log lines that must be there. Others of level error must not be there."""
    least_seconds: float = 0.0
    most_seconds: float = 30.0
    """From the fault to the end of the call."""
    left_seconds: float = LEFT_SECONDS
    # What the call is given
    behaviour: Behaviour = field(default_factory=lambda: talking([SayText(HELLO)]))
    openai: Mapping[str, Any] = field(default_factory=dict)
    before: Before = lambda here: None
    connect: Any = None
    stops_bridge: bool = False
    """The bridge is stopped when `act` has returned."""

    @property
    def name(self) -> str:
        return f"{self.phase} / {self.fault}"

    def allows(self, outcomes: list[str]) -> bool:
        if self.outcome is None:
            return not outcomes
        return outcomes in ([self.outcome], [self.or_outcome])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(CALL_SECONDS):
        while not condition():  # noqa: ASYNC110 - the fakes have no events
            await asyncio.sleep(LOOK_SECONDS)


def agent_of(ended: list[bool]) -> RealtimeAgent[LiveCall]:
    """An agent with the tools of all cells. `ended`: of Run.tools."""

    @function_tool
    async def look_up(context: RunContextWrapper[LiveCall]) -> str:
        """Looks something up."""
        number = len(ended)
        ended.append(False)
        try:
            await asyncio.sleep(TOOL_SECONDS)
        finally:
            ended[number] = True
        return "found"

    @function_tool
    async def hang_up(context: RunContextWrapper[LiveCall]) -> str:
        """Ends the call."""
        return str(await context.context.hang_up())

    @function_tool
    async def transfer(context: RunContextWrapper[LiveCall]) -> str:
        """Puts the caller through."""
        try:
            return str(await context.context.transfer(DESK))
        except (BadRequest, CallOver) as error:
            return type(error).__name__

    return RealtimeAgent(
        name="sip", instructions="Help.", tools=[look_up, hang_up, transfer]
    )


# --- what happens in a call -----------------------------------------------------------


async def rings(run: Run) -> None:
    """The call ends by itself."""


async def greeted(run: Run) -> None:
    """The caller hears the greeting and hangs up."""
    await run.heard(HELLO)
    run.call.hang_up()


async def gives_up(run: Run) -> None:
    """The caller hangs up before the call is attached to."""
    await asyncio.sleep(1.0)
    run.call.hang_up()


async def attached(run: Run) -> None:
    await until(lambda: run.call.session is not None)


async def in_greeting(run: Run) -> None:
    """The caller has heard a part of the greeting, which is still generated."""
    await attached(run)
    await until(lambda: bool(run.session.sent_deltas))
    await asyncio.sleep(0.5)


async def listening(run: Run) -> None:
    await run.heard(HELLO)


async def in_tool(run: Run) -> None:
    """The caller has heard the greeting, and a tool runs."""
    await run.heard(HELLO)
    await until(lambda: bool(run.tools))
    await asyncio.sleep(0.3)


def then(moment: Act, fault: Fault) -> Act:
    """The fault occurs at that moment; the call ends by it."""

    async def act(run: Run) -> None:
        await moment(run)
        run.inject(fault)

    return act


def as_caller_leaves(moment: Act, fault: Fault) -> Act:
    """The caller hangs up at that moment. The fault takes the place of what OpenAI does
    to the control socket then."""

    async def act(run: Run) -> None:
        await moment(run)
        run.call.ended_by = "caller"
        run.call.move(SipCallState.ENDED)
        run.inject(fault)

    return act


def goes_on_after(*faults_: Fault) -> Act:
    """The call survives the faults: the caller speaks, is answered, and hangs up."""

    async def act(run: Run) -> None:
        await run.heard(HELLO)
        for fault in faults_:
            run.inject(fault)
        run.call.say(speech())
        await run.heard(YES)
        run.call.hang_up()

    return act


async def sorry(run: Run) -> None:
    """The agent was told that its transfer failed, and says so."""
    await run.heard(SORRY)
    run.call.hang_up()


async def breaks_in_refer(run: Run) -> None:
    """The REFER breaks the control socket before its answer arrives."""
    await until(lambda: "refer" in run.requests)
    run.inject(faults.drop)


async def repeated(run: Run) -> None:
    """The webhook is delivered again at once, in the call, and after it."""
    event, send = incoming(run.call, {}), run.here.calls.send
    answers = await asyncio.gather(*(send(run.here.url, event) for _ in range(3)))
    await run.heard(HELLO)
    answers.append(await send(run.here.url, event))
    run.call.hang_up()
    await until(lambda: run.here.sip.calls == 0)
    answers.append(await send(run.here.url, event))
    run.call.answers += [status for each in answers for status in each]
    assert set(run.call.answers) == {200}, "a repeated webhook is answered with 200"


async def forged(run: Run) -> None:
    answers = await run.here.calls.send(
        run.here.url, incoming(run.call, {}), secret=new_secret()
    )
    assert answers == [401], "a forged webhook is refused"
    await run.heard(HELLO)
    run.call.hang_up()


async def accepting(run: Run) -> None:
    await until(lambda: "accept" in run.requests)


async def attaching(run: Run) -> None:
    await until(lambda: bool(run.here.model.refused))


def refusing(status: int) -> Before:
    return lambda here: here.model.handshakes.answer(status)


def beginning_with(fault: Fault) -> Before:
    return lambda here: here.model.inject_next(fault)


async def late_socket(url: str, headers: dict[str, str]) -> Any:
    await asyncio.sleep(LATE_SECONDS)
    return await dial(url, headers)


async def no_socket(url: str, headers: dict[str, str]) -> Any:
    raise ConnectionRefusedError


# --- the cells ----------------------------------------------------------------------

CALLER_LEFT: dict[str, Any] = {"outcome": "caller_hung_up", "by": "caller"}
TOOL = CallTool("look_up", {})
TRANSFER = talking([SayText(HELLO), CallTool("transfer", {})], [SayText(SORRY)])
HANG_UP = talking([SayText(HELLO), CallTool("hang_up", {})])
ANSWERED = talking([SayText(HELLO)], [SayText(YES)])
NO_HANG_UP = "sip_hang_up_failed"
FLOOD = "flood"


def no_fault() -> Iterator[Cell]:
    act = goes_on_after()
    yield Cell(
        phase="no fault", fault="none", act=act, behaviour=ANSWERED, **CALLER_LEFT
    )
    yield Cell(
        phase="no fault", fault="agent hangs up", act=rings, behaviour=HANG_UP,
        outcome="agent_hung_up",
    )  # fmt: skip


def accept_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="accept")
    refused: dict[str, Any] = {
        "act": rings,
        "outcome": "model_refused",
        "state": SipCallState.REJECTED,
        "heard": (),
    }
    yield cell(fault="refused 400", openai={"fail": {"accept": 400}}, **refused)
    retried: dict[str, Any] = {
        "requests": {"accept": 3, "reject": 1},
        "openai": {"fail": {"accept": 429}},
    }
    yield cell(fault="refused 429", **refused, **retried)
    # The caller hears ringing for three tries.
    never: dict[str, Any] = {
        "requests": {"accept": 3, "reject": 1},
        "openai": {"stall": {"accept": ALWAYS}},
    }
    yield cell(fault="no answer", **refused, **never)
    lost: dict[str, Any] = {
        "outcome": "model_refused",
        "requests": {"accept": 2, "hangup": 1},
        "heard": (),
    }
    yield cell(fault="answer lost", act=rings, openai={"lose": ["accept"]}, **lost)
    late: dict[str, Any] = {"openai": {"stall": {"accept": 1}}}
    yield cell(fault="late", act=greeted, requests={"accept": 2}, **late, **CALLER_LEFT)
    yield cell(
        fault="late, caller leaves", act=gives_up, requests={"accept": 2}, heard=(),
        **late, **CALLER_LEFT,
    )  # fmt: skip
    yield cell(
        fault="late, bridge stops", act=accepting, outcome="bridge_shutdown", heard=(),
        state=SipCallState.REJECTED, requests={"reject": 1}, stops_bridge=True, **late,
    )  # fmt: skip


def attach_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="attach")
    refused: dict[str, Any] = {"act": rings, "outcome": "model_refused", "heard": ()}
    always: dict[str, Any] = {"openai": {"late": ALWAYS}}
    yield cell(fault="404 x2", act=greeted, openai={"late": 2}, **CALLER_LEFT)
    yield cell(
        fault="404 but for the last try", act=greeted,
        openai={"late": ATTACH_TRIES - 1}, **CALLER_LEFT,
    )  # fmt: skip
    yield cell(fault="404", **refused, **always)
    yield cell(
        fault="404, caller leaves", act=gives_up, heard=(), **always, **CALLER_LEFT
    )
    yield cell(
        fault="404, bridge stops", act=attaching, outcome="bridge_shutdown", heard=(),
        stops_bridge=True, **always,
    )  # fmt: skip
    for status in (401, 429, 503):
        yield cell(
            fault=f"refused {status}",
            before=refusing(status),
            **refused,
        )
    yield cell(fault="refused TCP", connect=no_socket, **refused)
    yield cell(
        fault="no answer", before=lambda here: here.model.handshakes.leave_unanswered(),
        **refused,
    )  # fmt: skip
    yield cell(fault="slow", act=greeted, connect=late_socket, **CALLER_LEFT)
    slow = Behaviour(turns=[[SayText(HELLO)]], delay_updated=LATE_SECONDS, **QUICK)
    yield cell(fault="session slow", act=greeted, behaviour=slow, **CALLER_LEFT)
    for name, fault in (("mute", faults.mute), ("freeze", faults.freeze)):
        yield cell(
            fault=name, act=rings, outcome="model_not_ready", heard=(),
            before=beginning_with(fault),
        )  # fmt: skip


SOCKET_FAULTS: Mapping[str, tuple[Fault, str]] = {
    "reset": (faults.drop, "model_lost"),
    "close 1000": (faults.closing(1000), "model_closed"),
    "close 1001": (faults.closing(1001, "going away"), "model_closed"),
    "close 1011": (faults.closing(1011, "internal error"), "model_lost"),
    "expired": (faults.expire, "model_closed"),
    "freeze": (faults.freeze, "model_lost"),
    "mute": (faults.mute, "model_lost"),
}
"""Faults of the control socket, and the outcome while OpenAI has the call."""

LEFT_BY = ("reset", "close 1000", "freeze")
"""Of these, what also happens to the socket of a caller who has left."""


def socket_cells() -> Iterator[Cell]:
    long = Behaviour(turns=[[SayText(LONG)]], speed=1.5)
    phases: list[tuple[str, Act, dict[str, Any]]] = [
        ("greeting", in_greeting, {"behaviour": long, "heard": ()}),
        ("listening", listening, {}),
        ("tool running", in_tool, {"behaviour": talking([SayText(HELLO), TOOL])}),
    ]
    for phase, moment, given in phases:
        for name, (fault, outcome) in SOCKET_FAULTS.items():
            act = then(moment, fault)
            yield Cell(phase=phase, fault=name, act=act, outcome=outcome, **given)
        for name in LEFT_BY:
            act = as_caller_leaves(moment, SOCKET_FAULTS[name][0])
            # The API says that the caller has left, if a ping finds the frozen socket.
            # If the core's probe finds it first, the API is not asked.
            probed = "model_lost" if name == "freeze" else ""
            yield Cell(
                phase=phase, fault=f"{name}, caller left", act=act, or_outcome=probed,
                **given, **CALLER_LEFT,
            )  # fmt: skip
        yield Cell(
            phase=phase, fault="bridge stops", act=moment, outcome="bridge_shutdown",
            stops_bridge=True, **given,
        )  # fmt: skip


def response_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="responses")

    def failing(*fails: Fail) -> Behaviour:
        turns: list[Turn] = [[it] for it in fails]
        return talking(*turns, [SayText(HELLO)])

    def for_ever(fail: Fail) -> Behaviour:
        return Behaviour(fallback=[fail], **QUICK)

    ends: dict[str, Any] = {"act": rings, "outcome": "model_failed", "heard": ()}
    once, limit = Fail("server_error"), Fail()
    told = Fail(message="Rate limit reached. Please try again in 2s.")
    later = Fail(message="Rate limit reached. Please try again in 90s.")
    for name, fails, least in (
        ("failed x2", [once, once], 0.0),
        ("rate limit", [limit], 1.0),
        ("rate limit, in 2 s", [told], 2.0),
        ("rate limit, in 2 s, x3", [told] * 3, 6.0),
    ):
        yield cell(
            fault=name, act=greeted, behaviour=failing(*fails), least_seconds=least,
            **CALLER_LEFT,
        )  # fmt: skip
    yield cell(
        fault="rate limit for ever", behaviour=for_ever(limit), least_seconds=10.0,
        most_seconds=40.0, **ends,
    )  # fmt: skip
    yield cell(
        fault="rate limit in 2 s for ever", behaviour=for_ever(told), most_seconds=40.0,
        least_seconds=20.0, **ends,
    )  # fmt: skip
    breaks_off = Behaviour(fallback=[SayText(HELLO), once], **QUICK)
    yield cell(
        fault="fails after audio, for ever", behaviour=breaks_off, most_seconds=40.0,
        least_seconds=10.0, **ends,
    )  # fmt: skip
    yield cell(fault="rate limit, in 90 s", behaviour=for_ever(later), **ends)
    yield cell(fault="no quota", behaviour=for_ever(Fail("insufficient_quota")), **ends)
    stuck = partial(Behaviour, fallback=[SayText(HELLO)], **QUICK)
    first = frozenset({1})
    for name, stall in (("never ends", (0.2, 1000.0)), ("no audio", (0.0, 1000.0))):
        yield cell(
            fault=f"{name}, once", act=greeted, least_seconds=8.0, most_seconds=25.0,
            behaviour=stuck(stall=stall, stall_responses=first), **CALLER_LEFT,
        )  # fmt: skip
        yield cell(
            fault=name, behaviour=stuck(stall=stall), least_seconds=15.0,
            most_seconds=35.0, **ends,
        )  # fmt: skip


def event_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="events")
    goes_on: dict[str, Any] = {"behaviour": ANSWERED, "heard": (HELLO, YES)}
    sent: dict[str, list[str | bytes]] = {
        "binary": [b"\x00\xff"],
        "no JSON": ["{", "", "[" * 5000],
        "wrong shapes": [
            '{"type": "output_audio_buffer.stopped"}',
            '{"type": "response.done", "response": 7}',
            '{"type": "session.updated", "session": []}',
            '{"type": 5}',
            "[]",
            "null",
        ],
        "unknown": ['{"type": "something.new", "event_id": "e"}'] * 50,
        "too large": [HUGE],
        "error": ['{"type": "error", "error": {"type": "x", "message": "m"}}'],
        "audio": [
            '{"type": "response.output_audio.delta", "response_id": "r", "item_id":'
            ' "i", "output_index": 0, "content_index": 0, "delta": "////"}'
        ],
    }
    for name, frames in sent.items():
        act = goes_on_after(faults.saying(*frames))
        yield cell(fault=name, act=act, **goes_on, **CALLER_LEFT)
    flood = faults.flooding(lambda n: f'{{"type": "something.new", "event_id": "{n}"}}')
    # A busy bridge reads the answers to its pings too late. The listener gets its
    # events for some seconds after the call.
    yield cell(
        fault=FLOOD, act=then(listening, flood), outcome="model_flood",
        or_outcome="model_lost", most_seconds=40.0, left_seconds=15.0,
    )  # fmt: skip


def refer_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="REFER", behaviour=TRANSFER)
    goes_on: dict[str, Any] = {"act": sorry, "heard": (HELLO, SORRY), **CALLER_LEFT}
    done: dict[str, Any] = {
        "act": rings,
        "outcome": "agent_transferred",
        "state": SipCallState.REFERRED,
    }
    failed: dict[str, Any] = {"logged": ("sip_transfer_failed",)}
    refused: dict[str, Any] = {
        "openai": {"fail": {"refer": 400}},
        "requests": {"refer": 1},
    }
    yield cell(fault="refused", **goes_on, **refused, **failed)
    never: dict[str, Any] = {
        "openai": {"stall": {"refer": ALWAYS}},
        "requests": {"refer": 3},
    }
    yield cell(fault="no answer", **goes_on, **never, **failed)
    yield cell(fault="slow", openai={"stall": {"refer": 1}}, **done)
    yield cell(fault="answer lost", openai={"lose": ["refer"]}, **done)
    breaks: dict[str, Any] = {**done, "act": breaks_in_refer}
    yield cell(fault="slow, reset", openai={"stall": {"refer": 1}}, **breaks)
    yield cell(
        fault="404: caller has left", act=rings, openai={"fail": {"refer": 404}},
        outcome="caller_hung_up", state=SipCallState.TALKING, by=None,
        requests={"refer": 1, "hangup": 0},
    )  # fmt: skip


def hang_up_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="hang-up")
    by_agent: dict[str, Any] = {
        "act": rings, "behaviour": HANG_UP, "outcome": "agent_hung_up",
    }  # fmt: skip
    stays: dict[str, Any] = {
        "state": SipCallState.TALKING,
        "by": None,
        "logged": (NO_HANG_UP,),
        "left_seconds": 30.0,
    }
    slow: dict[str, Any] = {
        "openai": {"stall": {"hangup": 1}},
        "requests": {"hangup": 2},
    }
    refused: dict[str, Any] = {
        "openai": {"fail": {"hangup": 400}}, "requests": {"hangup": 2}, **stays,
    }  # fmt: skip
    never: dict[str, Any] = {
        "openai": {"stall": {"hangup": ALWAYS}},
        "requests": {"hangup": 6},
        **stays,
    }
    yield cell(fault="slow", **by_agent, **slow)
    yield cell(fault="refused", **by_agent, **refused)
    yield cell(fault="no answer", **by_agent, **never)
    yield cell(fault="answer lost", **by_agent, openai={"lose": ["hangup"]})
    reset: dict[str, Any] = {
        "act": then(listening, faults.drop), "outcome": "model_lost",
    }  # fmt: skip
    yield cell(fault="slow, after a reset", **reset, **slow)
    yield cell(fault="refused, after a reset", **reset, **refused)
    yield cell(fault="no answer, after a reset", **reset, **never)
    # The second try finds no call. Whether the first one ended it, nobody can tell.
    yield cell(
        fault="slow, after a reset, caller left", outcome="model_lost", by="caller",
        act=as_caller_leaves(listening, faults.drop), **slow,
    )  # fmt: skip
    yield cell(
        fault="slow, bridge stops", act=listening, outcome="bridge_shutdown",
        stops_bridge=True, **slow,
    )  # fmt: skip


def webhook_cells() -> Iterator[Cell]:
    cell = partial(Cell, phase="webhook", **CALLER_LEFT)
    yield cell(fault="repeated", act=repeated)
    yield cell(fault="forged", act=forged)
    yield Cell(
        phase="webhook", fault="bridge drains", act=rings, outcome=None, heard=(),
        state=SipCallState.REJECTED, requests={"accept": 0, "reject": 1},
        before=lambda here: setattr(here.services.capacity, "draining", True),
    )  # fmt: skip


CELLS = (
    *no_fault(),
    *accept_cells(),
    *attach_cells(),
    *socket_cells(),
    *response_cells(),
    *event_cells(),
    *refer_cells(),
    *hang_up_cells(),
    *webhook_cells(),
)


# --- one call, judged -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    wrong: tuple[str, ...]
    seconds: float  # from the fault to the end of the call


async def run_once(cell: Cell, lines: list[Any]) -> Verdict:
    """`lines`: the log of all calls."""
    wrong: list[str] = []
    ended: list[bool] = []
    agent = agent_of(ended)
    async with place(
        cell.behaviour, agent, connect=cell.connect, **cell.openai
    ) as here:
        cell.before(here)
        began = monotonic()
        run = Run(here, await here.ring(), began, ended)
        try:
            await cell.act(run)
        except (TimeoutError, AssertionError) as error:
            wrong.append(f"{cell.fault}: {type(error).__name__} {error}")
        if cell.stops_bridge:
            run.fault_at = monotonic()
        else:
            wrong += await _see_it_end(cell, run)
        seconds = monotonic() - run.fault_at
        if not cell.stops_bridge:
            wrong += await _see_it_gone(cell, run)
        _release(run)
    if cell.stops_bridge:
        seconds = monotonic() - run.fault_at
        wrong += await _see_it_gone(cell, run)
    if not cell.least_seconds <= seconds <= cell.most_seconds:
        wrong.append(f"ended after {seconds:.1f} s")
    wrong += _differences(cell, run)
    wrong += _log_differences(
        cell, [it for it in lines if it.get("call_sid") == run.call.id]
    )
    return Verdict(tuple(wrong), seconds)


async def _see_it_end(cell: Cell, run: Run) -> list[str]:
    try:
        await until(lambda: run.here.sip.calls == 0)
    except TimeoutError:
        return ["did not end here"]
    return []


async def _see_it_gone(cell: Cell, run: Run) -> list[str]:
    """Waits until nothing of the call is left; returns what is."""
    limit = monotonic() + cell.left_seconds
    while left := await _left(run):
        if monotonic() > limit:
            return [f"left behind: {it}" for it in left]
        await asyncio.sleep(LOOK_SECONDS)
    return []


async def _left(run: Run) -> list[str]:
    here = run.here
    left = ["registry entry" for _ in await here.services.registry.calls()]
    left += ["call"] * here.sip.calls
    left += ["active call in the metric"] * int(here.metric("bridge_calls_active") or 0)
    left += ["socket" for it in here.model.open if not it.frozen]
    left += ["running tool" for ended in run.tools if not ended]
    return left + [
        name.removeprefix(run.call.id) for name in tasks() if run.call.id in name
    ]


def _release(run: Run) -> None:
    """Ends frozen sessions, for which the fake would wait."""
    for session in run.here.model.open:
        if session.frozen:
            session.abort("frozen")


def _differences(cell: Cell, run: Run) -> Iterator[str]:
    """What is not as the cell says, at OpenAI and in the metric."""
    here, call = run.here, run.call
    if not cell.allows(here.ends):
        yield f"outcome {', '.join(here.ends) or 'none'}"
    if (call.state, call.ended_by) != (cell.state, cell.by):
        yield f"at OpenAI: {call.state.value}, ended by {call.ended_by}"
    if call.attached > 1:
        yield "attached twice"
    made = Counter(run.requests)
    for verb, wanted in cell.requests.items():
        if made[verb] != wanted:
            yield f"{made[verb]} x {verb}"
    said = iter(here.said())
    for text in cell.heard:
        if text not in said:
            yield f"not heard: {text}"


def _log_differences(cell: Cell, lines: list[Any]) -> Iterator[str]:
    ends = [it["outcome"] for it in lines if it["event"] == "call_ended"]
    if not cell.allows(ends):
        yield f"outcome in the log: {', '.join(ends) or 'none'}"
    names = {it["event"] for it in lines}
    yield from (f"not logged: {it}" for it in cell.logged if it not in names)
    errors = {it["event"] for it in lines if it["log_level"] in ("error", "critical")}
    yield from (f"logged: {it}" for it in errors if it not in cell.logged)


# --- the table ----------------------------------------------------------------------

COLUMNS = (
    "phase",
    "fault",
    "SIP calls wrong",
    "outcome",
    "at OpenAI",
    "fault to end p50/max s",
)


def row(cell: Cell, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    seconds = [it.seconds for it in verdicts]
    return (
        cell.phase,
        cell.fault,
        f"{sum(bool(it.wrong) for it in verdicts)}/{len(verdicts)}",
        cell.outcome or "-",
        f"{cell.state.value} by {cell.by or 'nobody'}",
        f"{median(seconds):.1f} / {max(seconds):.1f}",
    )


async def place_all(cells: Sequence[Cell], at_once: int) -> list[Verdict]:
    free = asyncio.Semaphore(at_once)
    capture = LogCapture()
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )

    async def one(cell: Cell) -> Verdict:
        async with free:
            try:
                return await run_once(cell, capture.entries)
            except Exception as error:
                # A bridge that does not close is one wrong call, not the end of all.
                return Verdict((f"raised {error!r}",), 0.0)

    async with asyncio.TaskGroup() as group:
        running = []
        for cell in cells:
            running.append(group.create_task(one(cell)))
            await asyncio.sleep(STAGGER_SECONDS)
    return [task.result() for task in running]


def wanted(only: str, cell: Cell) -> bool:
    """As tests.bench.faults.wanted, for SIP calls. None, if no part is known here."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    found = not names
    for value, known in (
        (cell.phase, {it.phase for it in CELLS}),
        (cell.fault, {it.fault for it in CELLS}),
    ):
        named = [n for n in names if any(n in each for each in known)]
        if named and not any(name in value for name in named):
            return False
        found = found or bool(named)
    return found


async def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="calls for each cell")
    parser.add_argument(
        "--only", default="", help="parts of names of phases and faults, with commas"
    )
    parser.add_argument(
        "--at-once", type=int, default=AT_ONCE, help="calls at the same time"
    )
    parser.add_argument("--quick", action="store_true", help="3 calls for each cell")
    chosen = parser.parse_args(arguments)
    runs = QUICK_RUNS if chosen.quick else chosen.runs
    # The slow cells first: the last calls would run alone. The floods last: they keep
    # the event loop busy.
    cells = sorted(
        (cell for cell in CELLS if wanted(chosen.only, cell)),
        key=lambda cell: -cell.most_seconds - cell.left_seconds,
    )
    unhandled: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: unhandled.append(context["message"])
    )
    began = monotonic()
    plan = sorted(cells * runs, key=lambda cell: cell.fault == FLOOD)
    done = await place_all(plan, chosen.at_once)
    print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join(['---'] * len(COLUMNS))} |")
    remarks: list[str] = []
    for cell in (it for it in CELLS if it in cells):
        verdicts = [it for of, it in zip(plan, done, strict=True) if of is cell]
        print(f"| {' | '.join(row(cell, verdicts))} |")
        kinds = Counter(text for it in verdicts for text in it.wrong)
        remarks += [f"{cell.name}: {n}x {text}" for text, n in kinds.most_common(6)]
    remarks += [f"{n}x {text}" for text, n in Counter(unhandled).most_common(6)]
    print("\n", *(f"{it}\n" for it in remarks), sep="")
    wrong = sum(bool(it.wrong) for it in done)
    print(f"{len(done)} SIP calls in {monotonic() - began:.0f} s, {wrong} wrong.")
    return 1 if wrong or unhandled else 0


if __name__ == "__main__":
    log.configure("pretty", logging.CRITICAL)
    sys.exit(asyncio.run(main()))
