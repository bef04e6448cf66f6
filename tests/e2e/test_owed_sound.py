"""A caller who is owed sound gets sound, whatever the model's server leaves out.

Over real sockets; the fake model leaves things out as real servers have been reported
to do.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent
from structlog.testing import capture_logs

from bridge.app.routes import ReportTarget, Route, Silence
from bridge.core.responses import RESULTS_SECONDS
from bridge.core.rules import RESUME, UNFINISHED
from bridge.records.report import CallReport
from bridge.sim.model import (
    Behaviour,
    BreakOff,
    CallTool,
    Fail,
    ModelSession,
    PlayRuler,
    SayText,
    Turn,
    TurnContext,
)
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from bridge.sim.twilio.record import CallRecord
from tests.e2e.bridge import HELLO, WAIT, RunningBridge, bridge
from tests.support.waiting import until
from twiml import spoken_texts

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=12)
HANG_UP = steps.HangUpStep()
ASKS = Route(silence=Silence(seconds=2.0))
"""A route whose agent asks a silent caller soon."""


def requests(session: ModelSession) -> int:
    """Responses that the bridge has requested."""
    return received(session).count("response.create")


def received(session: ModelSession) -> list[str]:
    """Types of the client events."""
    return [it["type"] for _, it in session.received]


def told(session: ModelSession) -> list[str]:
    """The instructions that the agent was given."""
    return [it.text for it in session.items.values() if it.role == "system"]


def figures(name: str, place: RunningBridge, record: CallRecord) -> None:
    """Prints the seconds of silence; shown with `pytest -s`."""
    session = place.session
    turns = [it.ended_at for it in record.spoken]
    began = turns[-1] if turns else session.configured_at or session.opened_at
    first = [at for at, _, _ in session.sent_deltas if at >= began]
    heard = f"{first[0] - began:.1f} s" if first else "never"
    print(f"{name}: silence before the agent's first sound: {heard}")


async def test_a_greeting_that_is_only_written() -> None:
    """The model answers in text, then with nothing; the third answer is heard."""
    turns = [[SayText("Hello!", written=True)], [], [PlayRuler(500)]]
    async with bridge(Behaviour(turns=turns), greeting="Go.", route=ASKS) as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    figures("silent answer", place, record)
    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert requests(place.session) == 3
    assert told(place.session) == ["Go."], "the caller was not silent"
    assert "Hello!" not in [it.text for it in place.session.conversation]


async def test_a_model_that_only_writes() -> None:
    """The caller hears the apology instead of silence without end."""
    behaviour = Behaviour(fallback=[SayText("Hello!", written=True)])
    async with bridge(behaviour, greeting="Go.", route=ASKS) as place:
        record = await place.caller().call([steps.WaitStep(20)])
        await place.empty()

    assert record.said_by_twilio == [spoken_texts.SORRY]
    assert requests(place.session) == 3


@pytest.mark.parametrize("begins_late", [0.0, 4.2], ids=["never", "late"])
async def test_a_turn_that_the_server_does_not_answer(begins_late: float) -> None:
    """The caller is answered within seconds, once, though the server forgets the turn,
    or begins its own answer after the bridge has asked for one."""
    behaviour = Behaviour(
        turns=[[PlayRuler(500)], [PlayRuler(500)]],
        unanswered_turns=frozenset() if begins_late else frozenset({1}),
        begins_late=begins_late,
        turn_errors=True,
        user_texts=["Hello?"],
    )
    async with bridge(behaviour, route=ASKS) as place:
        script = [steps.SayStep(HELLO), LISTEN, steps.WaitStep(1.5), HANG_UP]
        record = await place.caller().call(script)
        await place.empty()

    figures("unanswered turn", place, record)
    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert requests(place.session) == 1
    assert told(place.session) == [], "the caller was not silent"


async def test_a_rate_limit_that_says_when_to_try_again() -> None:
    """The caller waits as long as the server asks for, twice, and is answered."""
    behaviour = Behaviour(
        turns=[
            [Fail(message="Please try again in 166ms.")],
            [Fail(message="Rate limit reached. Please try again in 1.8s. Visit x")],
            [PlayRuler(500)],
        ]
    )
    async with bridge(behaviour, greeting="Go.", route=ASKS) as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    figures("rate limit", place, record)
    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert requests(place.session) == 3
    assert told(place.session) == ["Go."]


async def test_noise_that_stops_the_agent() -> None:
    """The server finds no words in it, and does not answer: the agent goes on, and
    knows what was heard."""
    behaviour = Behaviour(
        turns=[[PlayRuler(4000)], [PlayRuler(500)]],
        unanswered_turns=frozenset({1}),
        recogniser=lambda audio: " ",
    )
    async with bridge(behaviour, greeting="Go.", route=ASKS) as place:
        script = [steps.HearStep(1000), steps.SayStep(WAIT), LISTEN, HANG_UP]
        record = await place.caller().call(script)
        await place.empty()

    figures("noise", place, record)
    heard = read_ruler(record.heard).heard_ms
    assert heard[1] < 4000 and heard[2] == 500
    assert told(place.session) == ["Go.", RESUME]
    assert requests(place.session) == 2


async def test_a_turn_that_the_server_does_not_end() -> None:
    """The server hears speech for ever: a tone, then the turn is committed, and
    answered once."""
    behaviour = Behaviour(turns=[[PlayRuler(500)]], stuck_turns=frozenset({1}))
    async with bridge(behaviour, route=ASKS) as place:
        both = steps.HearStep(700)  # the tone has 360 ms, with its pause
        script = [steps.SayStep(HELLO), both, LISTEN, steps.WaitStep(1.0), HANG_UP]
        record = await place.caller().call(script)
        await place.empty()

    figures("stuck turn", place, record)
    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert requests(place.session) == place.session.caller_turns == 1
    assert told(place.session) == [], "the caller was not silent"


@pytest.mark.parametrize("why", sorted(UNFINISHED))
async def test_an_answer_that_breaks_off(why: str) -> None:
    """The agent goes on, or says something else; the reason is in the log."""
    turns = [[PlayRuler(800), BreakOff(why)], [PlayRuler(500)]]
    reports: list[CallReport] = []
    told_of = {"reports": reports.append}
    route = replace(ASKS, report=ReportTarget(to="reports"))
    async with bridge(
        Behaviour(turns=turns), greeting="Go.", route=route, functions=told_of
    ) as place:
        with capture_logs() as logged:
            record = await place.caller().call([LISTEN, HANG_UP])
            await place.empty()
            await until(lambda: bool(reports))

    assert read_ruler(record.heard).heard_ms == {1: 800, 2: 500}
    assert told(place.session) == ["Go.", UNFINISHED[why]]
    assert why in [it["why"] for it in logged if it["event"] == "answer_incomplete"]
    problems = [(it.name, it.what) for it in reports[0].problems]
    assert problems == [("answer_incomplete", why)]


async def test_an_output_that_the_server_refuses() -> None:
    """The agent knows the result, and the caller hears one answer, which has it."""

    @function_tool
    async def look_up() -> str:
        return "42 " * 100

    def step(heard: TurnContext) -> Turn:
        if heard.number == 1:
            return [CallTool("look_up", {})]
        knows = "42 42" in heard.conversation[-1].text
        return [PlayRuler(500 if knows else 300)]

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[look_up])
    behaviour = Behaviour(answer=step, longest_output=200)
    async with bridge(behaviour, agent=agent, greeting="Go.") as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    figures("refused output", place, record)
    assert list(read_ruler(record.heard).heard_ms.values()) == [500]


@pytest.mark.parametrize("slow", [0.5, 4.0])
async def test_two_tools_in_one_answer(slow: float) -> None:
    """One answer speaks of both results; a slow tool does not keep the other."""

    @function_tool
    async def quick() -> str:
        return "1"

    @function_tool
    async def late() -> str:
        await asyncio.sleep(slow)
        return "2"

    def step(heard: TurnContext) -> Turn:
        if heard.number == 1:
            return [CallTool("quick", {}), CallTool("late", {})]
        return [PlayRuler(200 + 100 * len(heard.answered))]

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[quick, late])
    answers = 1 if slow < RESULTS_SECONDS else 2
    async with bridge(Behaviour(answer=step), agent=agent, greeting="Go.") as place:
        async with asyncio.TaskGroup() as tasks:
            script = [steps.HearStep(400 if answers == 1 else 600), LISTEN, HANG_UP]
            call = tasks.create_task(place.caller().call(script))
        await place.empty()

    figures("two tools", place, call.result())
    heard = read_ruler(call.result().heard).heard_ms
    assert heard == ({1: 400} if answers == 1 else {1: 300, 2: 300})
    assert requests(place.session) == 1 + answers


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_tool_that_is_slow(refuses: bool) -> None:
    """The caller hears the agent before the result is there, and then the result. The
    tool runs once."""
    began = asyncio.Event()
    go_on = asyncio.Event()

    @function_tool
    async def look_up() -> str:
        assert not began.is_set()
        began.set()
        await go_on.wait()
        return "42"

    def step(heard: TurnContext) -> Turn:
        if heard.number == 1:
            return [CallTool("look_up", {})]
        if heard.overrides.get("tool_choice") == "none":
            return [PlayRuler(300)]
        return [PlayRuler(500)] if heard.answered else [CallTool("look_up", {})]

    def hears(event: dict[str, Any]) -> dict[str, Any]:
        if refuses and event.get("response"):
            return {**event, "response": {"tool_choice": "unknown"}}
        return event

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[look_up])
    behaviour, route = Behaviour(answer=step, hears=hears), Route(slow_tool_seconds=1)
    async with (
        bridge(behaviour, agent=agent, greeting="Go.", route=route) as place,
        asyncio.TaskGroup() as tasks,
    ):
        script = [steps.HearStep(500 if refuses else 800), LISTEN, HANG_UP]
        call = tasks.create_task(place.caller().call(script))
        await until(lambda: place.model.sessions != [])
        session = place.session
        await until(lambda: "conversation.item.delete" in received(session))
        go_on.set()
        await call
        await place.empty()

    heard = read_ruler(call.result().heard).heard_ms
    assert heard == ({1: 500} if refuses else {1: 300, 2: 500})
    instructions = [it.text for it in session.conversation if it.kind == "system"]
    assert instructions == ["Go."], "the other one is withdrawn"


async def test_a_rate_limit_that_lasts_long() -> None:
    """Twilio asks the caller to wait, and the answer comes on the next stream, in the
    same session. The agent is told nothing."""
    behaviour = Behaviour(turns=[[Fail(message="Try again in 9s.")], [PlayRuler(500)]])
    async with bridge(behaviour, greeting="Go.") as place:
        record = await place.caller().call([steps.WaitStep(16), HANG_UP])
        await place.empty()

    assert record.said_by_twilio == [spoken_texts.MOMENT]
    assert len(record.streams) == 2
    assert len(place.model.sessions) == 1
    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert told(place.session) == ["Go."]
