"""A user's own agent, in a folder without the repository."""

from pathlib import Path

from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge.agent.live import LiveCall
from bridge.agent.phone_tools import hang_up


@function_tool
def opening_hours(day: str) -> str:
    """When the shop is open on that day."""
    return f"On {day} from nine to five."


def agent(call: LiveCall) -> RealtimeAgent[LiveCall]:
    Path("called-by.txt").write_text(call.facts.theirs)
    return RealtimeAgent(
        name="shop",
        instructions=f"Somebody calls from {call.facts.theirs}. Be brief.",
        tools=[opening_hours, hang_up],
    )
