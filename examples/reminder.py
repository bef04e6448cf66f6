"""A call that we place: a reminder, or a message for the answering machine.

Offline:  .venv/bin/bridge demo --agent examples/reminder.py:agent
For real: BRIDGE_AGENT=examples/reminder.py:agent, and to place one

    curl https://bridge.example.com/api/calls \\
      -H "Authorization: Bearer $BRIDGE_API_TOKEN" \\
      -H "Content-Type: application/json" \\
      -d '{"to": "+14155550123", "parameters": {"name": "Ms. Doe", "time": "ten"},
           "greeting": "Say who you are and that you call about an appointment.",
           "machine": "message",
           "message": "This is Maple Street Dental. Please call us back."}'

An empty `greeting` lets whoever picks up speak first. A machine gets the `message` once
its beep was heard; `"machine": "hang_up"` leaves none.
"""

from typing import Any, Literal

from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge import LiveCall, hang_up


def agent(call: LiveCall) -> RealtimeAgent[Any]:
    """`parameters` of the order are facts of the call; `theirs` is whom we called."""
    parameters = call.facts.parameters
    name, time = parameters.get("name", "somebody"), parameters.get("time", "ten")

    @function_tool
    def answer(coming: Literal["yes", "no", "another time"]) -> str:
        """Note whether they come."""
        call.notes["coming"] = coming  # in the call's report
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
