"""Actions of a phone: hang up, transfer, press keys, take a message.

Offline:  .venv/bin/bridge demo --routes examples/front_desk.yaml
For real: BRIDGE_ROUTES=examples/front_desk.yaml

The route (front_desk.yaml beside this file) says to which numbers calls may be
transferred, what the keys do, and what happens in silence. The model never sees a phone
number.
"""

from agents import RunContextWrapper
from agents.realtime import RealtimeAgent

from bridge import PHONE_TOOLS, LiveCall


def instructions(
    context: RunContextWrapper[LiveCall], agent: RealtimeAgent[LiveCall]
) -> str:
    """The SDK calls this when the call begins and again after each handoff."""
    call = context.context
    people = ", ".join(call.transfers) or "nobody"
    return (
        "You are the front desk of a company, on the phone. Short sentences. Find out "
        f"what the call is about. You can put callers through to: {people}. If nobody "
        "answers there, take a message. When the caller says goodbye, say goodbye and "
        "hang up. If you reach a menu yourself, press the keys it asks for."
    )


agent: RealtimeAgent[LiveCall] = RealtimeAgent(
    name="front desk",
    instructions=instructions,
    # Or single tools: hang_up, transfer_call, send_digits, take_message.
    tools=PHONE_TOOLS,
)
