"""An order by phone: an agent made for each call, tools that keep its state, a handoff.

BRIDGE_AGENT=examples/pizza.py:agent_for

`agent_for` is called with the facts of every call (bridge.agent.loader.CallFacts):
who calls, which number was dialled, the parameters of the TwiML. What it returns lives
as long as the call, so the order below is the caller's own.
"""

from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent, realtime_handoff

from bridge.agent.loader import CallFacts

MENU = {"margherita": 8.5, "funghi": 9.5, "diavola": 10.0}

SPEAK = "You are on the phone: one or two short sentences, no lists. "


def agent_for(facts: CallFacts) -> RealtimeAgent[Any]:
    """The agent of one call."""
    order: list[str] = []

    @function_tool
    def add_pizza(name: str) -> str:
        """Put a pizza on the order."""
        if name.lower() not in MENU:
            return f"not on the menu; there is {', '.join(MENU)}"
        order.append(name.lower())
        return f"the order is {', '.join(order)}"

    @function_tool
    def total() -> str:
        """What the order costs."""
        return f"{sum(MENU[name] for name in order):.2f} dollars"

    complaints: RealtimeAgent[Any] = RealtimeAgent(
        name="complaints",
        handoff_description="The caller is unhappy with an earlier order.",
        instructions=SPEAK + "Apologize, ask what was wrong, promise a call back.",
    )
    return RealtimeAgent(
        name="orders",
        instructions=(
            SPEAK + "You take orders for a pizzeria. Read the order back and say what "
            "it costs before you confirm it. "
            + ("Ask for a name." if facts.from_number in ("", "anonymous") else "")
        ),
        tools=[add_pizza, total],
        handoffs=[realtime_handoff(complaints)],
    )
