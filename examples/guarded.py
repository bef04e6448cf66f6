"""Words that must never be said: guardrails, run configuration, text of a refusal.

Offline:  .venv/bin/bridge demo --agent examples/guarded.py:agent
For real: BRIDGE_AGENT=examples/guarded.py:agent

A guardrail checks the agent's words while the agent speaks. When a guardrail trips, the
agent is silent at once (the audio that is queued at Twilio is cleared), and must give
another answer.
"""

import re
from typing import Any

from agents import (
    GuardrailFunctionOutput,
    OutputGuardrail,
    RunContextWrapper,
    function_tool,
)
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.run_config import ToolErrorFormatterArgs

from bridge import CallEvent, LiveCall


def never(name: str, pattern: str) -> OutputGuardrail[Any]:
    """A guardrail that trips when the agent's words match the pattern."""

    async def check(
        context: RunContextWrapper[Any], agent: object, output: str
    ) -> GuardrailFunctionOutput:
        said = re.search(pattern, output, re.IGNORECASE) is not None
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=said)

    return OutputGuardrail(guardrail_function=check, name=name)


@function_tool
def balance() -> str:
    """The balance of the caller's account."""
    # Careless on purpose: the caller must not hear the first half.
    return "credit score poor, balance 120 dollars"


@function_tool(needs_approval=True)
def close_account() -> str:
    """Close the caller's account."""
    return "closed"


def explain(error: ToolErrorFormatterArgs[Any]) -> str | None:
    """What the model is told when a tool was not allowed to run."""
    if error.kind != "approval_rejected":
        return None  # the SDK's own text
    return f"{error.tool_name} is not done by phone. Offer to send the form."


bank: RealtimeAgent[Any] = RealtimeAgent(
    name="bank",
    instructions="You are a bank's telephone desk. One or two short sentences.",
    # To use a prompt stored in the OpenAI dashboard instead of the instructions:
    # prompt={"id": "pmpt_...", "version": "3", "variables": {"branch": "Main St"}},
    tools=[balance, close_account],
    output_guardrails=[never("account numbers", r"\d{8,}")],  # of this agent
)


def agent(call: LiveCall) -> RealtimeRunner:
    """A RealtimeRunner, an agent with its run configuration, can replace an agent."""

    async def no(event: CallEvent) -> None:
        await call.reject(event.data["call_id"])

    call.on(no, "tool_approval_required")
    return RealtimeRunner(
        bank,
        config={
            # These guardrails apply to all agents.
            "output_guardrails": [never("private figures", "credit score")],
            # The guardrails run each time this many more characters are known. With a
            # small number they react fast, and few characters at the end are unchecked.
            "guardrails_settings": {"debounce_text_length": 10},
            "tool_error_formatter": explain,
        },
    )
