"""The agent of tests/bench/gateways.py: it has a tool and an output guardrail.

BRIDGE_AGENT=tests/bench/gateway_agent.py:AGENT
"""

from typing import Any

from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.realtime import RealtimeAgent

FORBIDDEN = "milligrams"
RESULT = "table nine is free"


@function_tool
def look_up(day: str) -> str:
    """Looks up a free table."""
    return RESULT


def no_doses(context: Any, agent: Any, text: str) -> GuardrailFunctionOutput:
    """The agent must not name a dose."""
    return GuardrailFunctionOutput(None, tripwire_triggered=FORBIDDEN in text)


AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="front desk",
    instructions="You answer the phone.",
    tools=[look_up],
    output_guardrails=[OutputGuardrail(guardrail_function=no_doses, name="no doses")],
)
