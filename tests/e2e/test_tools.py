"""Tools in a call: whatever a tool does, the model gets an answer and the call
continues."""

import asyncio
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from agents import (
    RunContextWrapper,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrailData,
    function_tool,
    tool_input_guardrail,
)
from agents.realtime import RealtimeAgent, RealtimeRunner, realtime_handoff
from agents.run_config import ToolErrorFormatterArgs
from pydantic import BaseModel
from structlog.testing import capture_logs

from bridge.agent.approvals import TIMED_OUT as NOT_APPROVED
from bridge.agent.approvals import ApprovalRule
from bridge.agent.events import CallEvent
from bridge.agent.finished_tools import OUTCOMES
from bridge.agent.live import CallOver, LiveCall
from bridge.app.routes import Route
from bridge.model.results import background_result
from bridge.model.sdk_session import FAILED, TIMED_OUT
from bridge.model.session_settings import SessionSettings
from bridge.sim.model import Behaviour, CallTool, Output, PlayRuler, Turn
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import WAIT, RunningBridge, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()


def chain(*calls: Output) -> Behaviour:
    """Each call in its own answer, because each result is answered; then speech."""
    turns: list[Turn] = [*([it] for it in calls), [PlayRuler(300)]]
    return Behaviour(turns=turns, speed=20, think_seconds=0.05)


def outputs(place: RunningBridge) -> list[str | None]:
    """The tool outputs that the model got, in order."""
    items = place.session.items.values()
    return [it.output for it in items if it.type == "function_call_output"]


def agent_with(*tools: Any) -> RealtimeAgent[Any]:
    return RealtimeAgent(name="desk", tools=list(tools))


# --- tools that work ---


class Pizza(BaseModel):
    name: str
    slices: int = 8


async def test_tools_of_every_kind() -> None:
    """Plain and async functions, pydantic models as arguments, the call as context:
    each works, and a tool that is switched off is not offered."""
    seen: list[str] = []

    @function_tool
    def plain(context: RunContextWrapper[LiveCall], word: str) -> str:
        seen.append(context.context.call_sid)
        return word.upper()

    @function_tool
    async def order(pizza: Pizza, paid: bool = False) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"slices": pizza.slices, "paid": paid}

    def by_route(context: RunContextWrapper[LiveCall], agent: object) -> bool:
        return context.context.facts.from_number == "+15551230001"

    @function_tool(is_enabled=by_route)
    def known() -> int:
        return 7

    @function_tool(is_enabled=False)
    def never() -> str:
        return "never"

    behaviour = chain(
        CallTool("plain", {"word": "ham"}),
        CallTool("order", {"pizza": {"name": "ham"}, "paid": True}),
        CallTool("known", {}),
    )
    agent = agent_with(plain, order, known, never)
    async with bridge(behaviour, agent=agent, greeting="Go.") as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    tools = [tool["name"] for tool in place.session.session["tools"]]
    assert tools == ["plain", "order", "known"]
    assert outputs(place) == ["HAM", '{"slices": 8, "paid": true}', "7"]
    assert seen == [record.call_sid]
    assert read_ruler(record.heard).heard_ms == {1: 300}
    assert not place.session.errors_sent


async def test_a_background_result_is_not_spoken_about() -> None:
    """The model gets the result, and the agent does not speak about it."""

    @function_tool
    def note_down(text: str) -> str:
        return background_result({"noted": text})

    behaviour = chain(CallTool("note_down", {"text": "ham"}))
    async with bridge(behaviour, agent=agent_with(note_down), greeting="Go.") as place:
        record = await place.caller().call([steps.WaitStep(1.0), HANG_UP])

    assert outputs(place) == ['{"noted": "ham"}']
    assert len(place.session.responses) == 1
    assert not record.heard


@pytest.mark.parametrize("side_by_side", [True, False])
async def test_tools_run_in_parallel_or_in_turn(side_by_side: bool) -> None:
    """Without async_tool_calls the second tool starts when the first has ended."""
    order: list[str] = []

    @function_tool
    async def work(number: int) -> str:
        order.append(f"begin {number}")
        await asyncio.sleep(0.2)
        order.append(f"end {number}")
        return str(number)

    behaviour = Behaviour(
        turns=[[CallTool("work", {"number": 1}), CallTool("work", {"number": 2})]],
        fallback=[PlayRuler(300)],
        think_seconds=0.05,
    )
    session = SessionSettings.read({"async_tool_calls": side_by_side})
    async with bridge(
        behaviour, agent=agent_with(work), greeting="Go.", route=Route(session=session)
    ) as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    second = "begin 2" if side_by_side else "end 1"
    assert order[:2] == ["begin 1", second]
    assert sorted(it or "" for it in outputs(place)) == ["1", "2"]
    assert record.heard


# --- tools that fail ---


@tool_input_guardrail
def raises(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
    raise RuntimeError("guardrail of the user's")


@tool_input_guardrail
def tripped(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
    return ToolGuardrailFunctionOutput.raise_exception("no")


@tool_input_guardrail
def refuses(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
    return ToolGuardrailFunctionOutput.reject_content("Not on Sundays.")


async def test_tools_that_fail() -> None:
    """However a tool fails, the model is told, the caller hears of it, and the call
    continues. The failure is told, logged with its traceback and counted, also where
    the SDK makes a polite text of it; the log does not quote the arguments."""

    @function_tool(failure_error_function=None)
    def broken(number: str) -> str:
        raise LookupError(f"there is no {number}")

    @function_tool
    def excused(number: str) -> str:
        raise LookupError(f"there is no {number}")

    @function_tool(failure_error_function=lambda context, error: "Ask again.")
    async def polite(number: str) -> str:
        await asyncio.sleep(0)
        raise LookupError(f"there is no {number}")

    @function_tool(failure_error_function=None)
    def quits() -> str:
        sys.exit(3)

    @function_tool(failure_error_function=None)
    async def cancels() -> str:
        raise asyncio.CancelledError

    @function_tool(tool_input_guardrails=[raises])
    def guarded() -> str:
        return "never"

    @function_tool(tool_input_guardrails=[tripped])
    def forbidden() -> str:
        return "never"

    @function_tool(tool_input_guardrails=[refuses])
    def rejected() -> str:
        return "never"

    @function_tool(timeout=0.1, timeout_behavior="raise_exception")
    async def late() -> str:
        await asyncio.sleep(5)
        return "never"

    @function_tool
    async def endless() -> str:
        await asyncio.sleep(5)
        return "never"

    @function_tool(timeout=0.1)
    async def slow() -> str:
        await asyncio.sleep(5)
        return "never"

    @function_tool(timeout=0.1, timeout_error_function=lambda it, error: "Too slow.")
    async def slower() -> str:
        await asyncio.sleep(5)
        return "never"

    @function_tool(failure_error_function=None)
    def strict(number: int) -> str:
        return "never"

    @function_tool
    def lenient(number: int) -> str:
        return "never"

    def go_nowhere(context: RunContextWrapper[LiveCall]) -> None:
        raise LookupError("nobody is there")

    nowhere = realtime_handoff(
        RealtimeAgent[Any](name="nowhere"),
        on_handoff=go_nowhere,
        tool_name_override="nowhere",
    )
    names = (
        *("broken", "excused", "polite", "quits", "cancels", "guarded", "forbidden"),
        *("rejected", "late", "endless", "slow", "slower", "strict", "lenient"),
        *("nowhere", "missing"),
    )
    behaviour = chain(*(CallTool(name, {"number": "Miller"}) for name in names))
    tools = (broken, excused, polite, quits, cancels, guarded, forbidden, rejected)
    more = (late, endless, slow, slower, strict, lenient)
    agent = RealtimeAgent[Any](name="desk", tools=[*tools, *more], handoffs=[nowhere])
    route = Route(tool_seconds=0.3)
    failures: list[tuple[str, str]] = []

    def agent_for(live: LiveCall) -> RealtimeAgent[Any]:
        live.on(
            lambda it: failures.append((it.data["tool"], it.data["error"])),
            "tool_failed",
        )
        return agent

    with capture_logs() as logs:
        async with bridge(
            behaviour, agent=agent_for, greeting="Go.", route=route
        ) as place:
            record = await place.caller().call([LISTEN, HANG_UP])
            await place.empty()

    told = dict(zip(names, outputs(place), strict=True))
    assert "An error occurred" in str(told.pop("excused"))
    assert "An error occurred" in str(told.pop("lenient"))
    assert told.pop("polite") == "Ask again."
    assert "timed out" in str(told.pop("slow"))
    assert told.pop("slower") == "Too slow."
    assert told.pop("rejected") == "Not on Sundays."
    assert told.pop("missing") == "Tool missing not found"
    assert told.pop("late") == told.pop("endless") == TIMED_OUT
    assert set(told.values()) == {FAILED}
    errors = {
        "broken": "LookupError",
        "excused": "LookupError",
        "polite": "LookupError",
        "quits": "SystemExit",
        "cancels": "CancelledError",
        "guarded": "RuntimeError",
        "forbidden": "ToolInputGuardrailTripwireTriggered",
        "late": "timeout",
        "endless": "timeout",
        "slow": "timeout",
        "slower": "timeout",
        "strict": "ModelBehaviorError",
        "lenient": "ModelBehaviorError",
        "nowhere": "LookupError",
    }
    assert dict(failures) == errors and len(failures) == len(errors)
    lines = {it["tool"]: it for it in logs if it["event"] == "tool_failed"}
    assert {name: it["error"] for name, it in lines.items()} == errors
    for name in ("broken", "excused", "polite"):
        assert re.search(rf"{__file__}:\d+ {name}$", lines[name]["where"])
        assert f", in {name}\n    raise LookupError" in lines[name]["exception"]
        assert lines[name]["exception"].endswith("LookupError: there is no [argument]")
    assert lines["endless"]["where"].endswith(" endless")
    assert lines["nowhere"]["where"].endswith(" go_nowhere")
    counted = {
        name: next(
            outcome
            for outcome in OUTCOMES
            if place.metric(f'bridge_tools_total{{tool="{name}",outcome="{outcome}"}}')
        )
        for name in names
        if name != "missing"
    }
    outcome_of = {name: "failed" for name in errors}
    outcome_of |= {name: "timeout" for name, it in errors.items() if it == "timeout"}
    assert counted == {**outcome_of, "rejected": "done"}
    assert place.metric('bridge_tools_total{tool="other",outcome="unknown"}') == 1
    assert place.metric('bridge_tool_seconds_count{tool="late"}') == 1
    assert read_ruler(record.heard).heard_ms == {1: 300}
    assert record.ended_by == "caller" and not place.session.errors_sent
    assert "Miller" not in str(logs)


async def test_a_tool_that_blocks_its_thread_does_not_freeze_the_call() -> None:
    """While a plain function waits for a slow database, the agent's audio has no gap,
    and it stops at once when the caller speaks."""

    @function_tool
    def block() -> str:
        time.sleep(1.5)  # until the caller is speaking
        return "done"

    behaviour = Behaviour(
        turns=[[CallTool("block", {}), PlayRuler(5000)]],
        fallback=[PlayRuler(300)],
        speed=3,
        think_seconds=0.05,
    )
    async with bridge(behaviour, agent=agent_with(block), greeting="Go.") as place:
        script: steps.Script = [
            steps.HearStep(700),
            steps.SayStep(WAIT * 3),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()

    [clear] = record.clears
    assert clear.at - place.session.speech_started_at[0] < 0.1
    assert record.underruns.count == 0
    assert outputs(place) == ["done"]


# --- approvals ---


def approving(
    decide: Callable[[LiveCall, CallEvent], Any], agent: RealtimeAgent[Any]
) -> Callable[[LiveCall], RealtimeAgent[Any]]:
    """The agent of a call in which `decide` is called for each tool call that waits."""

    def agent_for(live: LiveCall) -> RealtimeAgent[Any]:
        async def asked(event: CallEvent) -> None:
            await decide(live, event)

        live.on(asked, "tool_approval_required")
        return agent

    return agent_for


async def test_approvals_by_the_users_code() -> None:
    """Each approval is listed with its arguments. The model gets a refusal with the
    given text or the formatter's text; after `always` there is no further request."""
    listed: list[tuple[str, str, str]] = []
    ran: list[int] = []

    @function_tool(needs_approval=True)
    def pay(amount: int) -> str:
        ran.append(amount)
        return f"paid {amount}"

    @function_tool(needs_approval=True)
    def refund() -> str:
        return "never"

    async def decide(live: LiveCall, event: CallEvent) -> None:
        [waiting] = live.approvals
        assert waiting.call_id == event.data["call_id"]
        listed.append((waiting.tool, waiting.arguments, waiting.agent))
        match len(listed):
            case 1:
                await live.approve(waiting.call_id)
            case 2:
                await live.reject(waiting.call_id, message="Too much.")
            case 3:
                await live.reject(waiting.call_id)
            case 4:
                await live.approve(waiting.call_id, always=True)
            case 5:
                await live.reject(waiting.call_id, always=True, message="Never.")
        with pytest.raises(KeyError):
            await live.approve(waiting.call_id)

    def formatter(args: ToolErrorFormatterArgs[Any]) -> str:
        return f"{args.tool_name} was refused."

    runner = RealtimeRunner(
        agent_with(pay, refund), config={"tool_error_formatter": formatter}
    )

    def agent_for(live: LiveCall) -> RealtimeRunner:
        approving(decide, runner._starting_agent)(live)
        return runner

    pays = [CallTool("pay", {"amount": amount}) for amount in (1, 2, 3, 4, 5)]
    behaviour = chain(*pays, CallTool("refund", {}), CallTool("refund", {}))
    async with bridge(behaviour, agent=agent_for, greeting="Go.") as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    assert outputs(place) == [
        *("paid 1", "Too much.", "pay was refused.", "paid 4", "paid 5"),
        *("Never.", "Never."),
    ]
    assert ran == [1, 4, 5]
    assert listed[0] == ("pay", '{"amount":1}', "desk")
    assert len(listed) == 5
    assert read_ruler(record.heard).heard_ms == {1: 300}


@pytest.mark.parametrize(
    ("default", "told"), [("approve", "paid"), ("reject", NOT_APPROVED)]
)
async def test_an_approval_without_a_decision(default: Any, told: str) -> None:
    """After the route's time limit its default is taken: no caller waits for ever."""

    @function_tool(needs_approval=True)
    def pay() -> str:
        return "paid"

    route = Route(approval=ApprovalRule(seconds=0.4, default=default))
    behaviour = chain(CallTool("pay", {}))
    async with bridge(
        behaviour, agent=agent_with(pay), greeting="Go.", route=route
    ) as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    assert outputs(place) == [told]
    assert record.heard


async def test_a_call_that_ends_with_approvals_open() -> None:
    """The caller hangs up while an approval is pending: nothing of it is left, and the
    tool does not run."""
    ran: list[str] = []
    calls: list[LiveCall] = []

    @function_tool(needs_approval=True)
    def pay() -> str:
        ran.append("paid")
        return "paid"

    def agent_for(live: LiveCall) -> RealtimeAgent[Any]:
        calls.append(live)
        return agent_with(pay)

    route = Route(approval=ApprovalRule(seconds=30, default="approve"))
    async with bridge(
        chain(CallTool("pay", {})), agent=agent_for, greeting="Go.", route=route
    ) as place:
        await place.caller().call([steps.WaitStep(0.8), HANG_UP])
        await place.empty()

    [live] = calls
    with pytest.raises(CallOver):
        await live.approve("any")
    assert ran == [] and outputs(place) == []
