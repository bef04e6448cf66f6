"""The bundled agent: results of its tools, its handoffs, and its guardrail."""

import json
from typing import Any

import pytest
from agents import Handoff
from agents.realtime import RealtimeAgent
from agents.run_context import RunContextWrapper
from agents.tool import FunctionTool
from agents.tool_context import ToolContext

from bridge.agent.live import CallFacts
from bridge.agent.receptionist import (
    billing,
    free_appointments,
    invoice_status,
    no_dosage,
    opening_hours,
    receptionist,
)
from tests.support.call_control import FakeCallControl, live_call

FACTS = CallFacts("CA1", from_number="+14155550100")


async def ask(tool: FunctionTool, **arguments: str) -> str:
    text = json.dumps(arguments)
    context: ToolContext[None] = ToolContext(
        None, tool_name=tool.name, tool_call_id="c1", tool_arguments=text
    )
    return str(await tool.on_invoke_tool(context, text))


@pytest.mark.parametrize(
    ("day", "said"),
    [
        ("monday", "open from 8 to 5"),
        (" Wednesday ", "open from 8 to noon"),
        ("sunday", "closed all day"),
        ("tomorrow", "closed all day"),
    ],
)
async def test_opening_hours(day: str, said: str) -> None:
    """A caller who asks for the opening hours hears those of that day."""
    assert await ask(opening_hours, day=day) == said


@pytest.mark.parametrize(
    ("day", "said"),
    [
        ("Tuesday", "free at 9:30 and 2:00"),
        ("thursday", "free at 11:15 and 6:00"),
        ("monday", "nothing is free"),
    ],
)
async def test_free_appointments(day: str, said: str) -> None:
    """A caller who wants an appointment hears when one is free."""
    assert await ask(free_appointments, day=day) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("1042", "85 dollars, paid"),
        ("number 1 0 4 3", "120 dollars, due on the thirtieth"),
        ("7", "there is no invoice of that number; ask the caller to read it again"),
    ],
)
async def test_an_invoice(number: str, said: str) -> None:
    """A caller who reads out an invoice number, digit by digit, hears its status."""
    assert await ask(invoice_status, number=number) == said


@pytest.mark.parametrize(
    "tool", [opening_hours, free_appointments, invoice_status], ids=lambda it: it.name
)
def test_each_tool_describes_itself_and_its_arguments(tool: FunctionTool) -> None:
    """The model knows which tool to call, and with which arguments."""
    assert tool.description
    [parameter] = tool.params_json_schema["properties"].values()
    assert parameter["type"] == "string" and parameter["description"]


@pytest.mark.parametrize(
    ("output", "tripped"),
    [
        ("Take 400 mg of ibuprofen.", True),
        ("Take 2 tablets twice a day", True),
        ("One pill is enough: 1 Pill.", True),
        ("We are open from 8 to 5.", False),
        ("Your invoice is 85 dollars.", False),
        ("The magazine has 40 pages.", False),
    ],
)
async def test_no_dose_is_ever_named(output: str, tripped: bool) -> None:
    """A caller in pain gets an appointment, not a dose of a medicine."""
    context = RunContextWrapper(None)

    result = await no_dosage.run(context, receptionist, output)  # type: ignore[arg-type]

    assert result.output.tripwire_triggered is tripped
    assert receptionist.output_guardrails == [no_dosage]


async def test_both_agents_hand_over_to_each_other() -> None:
    """A question is answered by the right agent, and the call can return."""
    for one, other in ((receptionist, billing), (billing, receptionist)):
        [handoff] = one.handoffs
        assert isinstance(handoff, Handoff)
        assert handoff.agent_name == other.name
        assert await handoff.on_invoke_handoff(RunContextWrapper(None), "") is other


@pytest.mark.parametrize(
    ("facts", "known"), [(FACTS, True), (CallFacts("CA1"), False), (None, False)]
)
async def test_a_known_number_is_not_asked_for(
    facts: CallFacts | None, known: bool
) -> None:
    """A caller whose number is shown need not say it."""
    async with live_call(FakeCallControl(), facts or FACTS) as live:
        context: RunContextWrapper[Any] = RunContextWrapper(live if facts else None)
        told = await receptionist.get_system_prompt(context)

    assert told and ("number is known" in told) is known


@pytest.mark.parametrize("agent", [receptionist, billing], ids=lambda it: it.name)
async def test_both_agents_are_told_to_speak_briefly(agent: RealtimeAgent[Any]) -> None:
    """No agent reads out a list, or ten sentences in one breath."""
    told = await agent.get_system_prompt(RunContextWrapper(None))

    assert told and "on the phone" in told
