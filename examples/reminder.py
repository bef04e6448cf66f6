"""An outbound call: a reminder, or a message for the answering machine.

Offline:  .venv/bin/bridge demo --agent examples/reminder.py:agent
For real: BRIDGE_AGENT=examples/reminder.py:agent. To place a call:

    curl https://bridge.example.com/api/calls \\
      -H "Authorization: Bearer $BRIDGE_API_TOKEN" \\
      -H "Content-Type: application/json" \\
      -d '{"to": "+14155550123", "parameters": {"name": "Ms. Doe", "time": "ten"},
           "greeting": "Say who you are and that you call about an appointment.",
           "machine": "message",
           "message": "This is Maple Street Dental. Please call us back."}'

With an empty `greeting`, the called person speaks first. An answering machine gets the
`message` after its beep; with `"machine": "hang_up"` it gets none.
"""

from typing import Any, Literal

from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge import LiveCall, hang_up


def agent(call: LiveCall) -> RealtimeAgent[Any]:
    """`parameters` and the called number (`theirs`) are facts of the call."""
    parameters = call.facts.parameters
    name, time = parameters.get("name", "somebody"), parameters.get("time", "ten")

    @function_tool
    def answer(coming: Literal["yes", "no", "another time"]) -> str:
        """Note whether they come."""
        call.notes["coming"] = coming  # part of the report of the call
        return "noted; say thank you, then goodbye"

    return RealtimeAgent(
        name="reminder",
        instructions=(
            f"You call {name} for Maple Street Dental: the appointment is tomorrow at "
            f"{time}. Ask whether they come, note the answer, say goodbye and hang up. "
            "If it is a wrong number, apologize and hang up. Short sentences."
        ),
        tools=[answer, hang_up],
    )
