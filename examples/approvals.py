"""Tools that wait for approval: code approves small amounts and refuses large ones.

Offline:  .venv/bin/bridge demo --agent examples/approvals.py:agent
For real: BRIDGE_AGENT=examples/approvals.py:agent

A person can decide instead of the code: GET /api/calls/CA.../approvals lists the tool
calls that wait. If nobody answers within 30 seconds, `approval:` of the route decides.
Meanwhile the caller and the agent continue to talk.
"""

import json
from typing import Annotated, Any

from agents import function_tool
from agents.realtime import RealtimeAgent
from pydantic import Field

from bridge import CallEvent, LiveCall

LIMIT = 50


@function_tool(needs_approval=True)
def refund(dollars: Annotated[int, Field(ge=5)]) -> str:
    """Pay something back to the caller's card."""
    return f"{dollars} dollars are on their way"


@function_tool(needs_approval=True)
def send_cheque(dollars: Annotated[int, Field(ge=100)]) -> str:
    """Send a cheque, for 100 dollars or more."""
    return f"a cheque of {dollars} dollars is in the mail"


def agent(call: LiveCall) -> RealtimeAgent[Any]:
    """The agent of one call, and the code that decides for it."""

    async def decide(event: CallEvent) -> None:
        """Both tools are defined here, so both have the argument `dollars`."""
        asked = event.data["call_id"]
        dollars = json.loads(event.data["arguments"])["dollars"]
        if dollars <= LIMIT:
            await call.approve(asked)
        else:
            why = f"More than {LIMIT} dollars need a manager, who will call back."
            await call.reject(asked, message=why)

    call.on(decide, "tool_approval_required")
    return RealtimeAgent(
        name="refunds",
        instructions=(
            "You are on the phone for a shop that sells lamps. Short sentences. Say "
            "that you will ask before you use a tool, for it may take a moment."
        ),
        tools=[refund, send_cheque],
    )
