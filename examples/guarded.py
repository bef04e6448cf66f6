"""What must never be said: guardrails, the run configuration, words for a refusal.

Offline:  .venv/bin/bridge demo --agent examples/guarded.py:agent
For real: BRIDGE_AGENT=examples/guarded.py:agent

A guardrail reads along while the agent speaks. When one trips, the agent falls silent
at once - what is queued at Twilio is thrown away - and is asked for something better.
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
    """A guardrail that trips when the agent says what the pattern finds."""

    async def check(
        context: RunContextWrapper[Any], agent: object, output: str
    ) -> GuardrailFunctionOutput:
        said = re.search(pattern, output, re.IGNORECASE) is not None
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=said)

    return OutputGuardrail(guardrail_function=check, name=name)


@function_tool
def balance() -> str:
    """The balance of the caller's account."""
    # Careless on purpose: the first half is not for the caller.
    return "credit score poor, balance 120 dollars"


@function_tool(needs_approval=True)
def close_account() -> str:
    """Close the caller's account."""
    return "closed"


def explain(error: ToolErrorFormatterArgs[Any]) -> str | None:
    """What the model is told of a tool that was not allowed to run."""
    if error.kind != "approval_rejected":
        return None  # the SDK's own words
    return f"{error.tool_name} is not done by phone. Offer to send the form."


bank: RealtimeAgent[Any] = RealtimeAgent(
    name="bank",
    instructions="You are a bank's telephone desk. One or two short sentences.",
    # A prompt stored in the OpenAI dashboard, in place of the instructions:
    # prompt={"id": "pmpt_...", "version": "3", "variables": {"branch": "Main St"}},
    tools=[balance, close_account],
    output_guardrails=[never("account numbers", r"\d{8,}")],  # of this agent
)


def agent(call: LiveCall) -> RealtimeRunner:
    """Where an agent can stand, a RealtimeRunner can, too: an agent and its config."""

    async def no(event: CallEvent) -> None:
        await call.reject(event.data["call_id"])

    call.on(no, "tool_approval_required")
    return RealtimeRunner(
        bank,
        config={
            "output_guardrails": [never("private figures", "credit score")],  # of all
            # They run each time so many more characters are known. Small is quick, and
            # little is left unread at an answer's end.
            "guardrails_settings": {"debounce_text_length": 10},
            "tool_error_formatter": explain,
        },
    )
