"""Orders by phone: an agent for each call, typed tools, a handoff and a way back.

Offline:  .venv/bin/bridge demo --agent examples/pizza.py:agent
For real: BRIDGE_AGENT=examples/pizza.py:agent

The bridge calls `agent` with every call (bridge.agent.live.LiveCall), which has the
caller's number, the dialled number and the actions. The returned agent lives as long as
the call, so each caller has an order of their own.
"""

from typing import Any, Literal

from agents import AgentBase, RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent, realtime_handoff
from pydantic import BaseModel, Field

from bridge import LiveCall

MENU = {"margherita": 8.5, "funghi": 9.5, "diavola": 10.0}
LAST_TIME = {"+14155550123": "two margherita, one without basil"}

SPEAK = "You are on the phone: one or two short sentences, no lists. "


class Pizza(BaseModel):
    """Arguments of a tool. Invalid arguments never reach the tool: the model is told
    what is wrong and tries again."""

    name: Literal["margherita", "funghi", "diavola"]
    count: int = Field(ge=1, le=20)
    without: list[str] = Field(description="ingredients that are left out")


def knows_the_caller(context: RunContextWrapper[LiveCall], agent: AgentBase) -> bool:
    """For `is_enabled`: the model gets the tool only in some calls."""
    return context.context.facts.from_number not in ("", "anonymous")


@function_tool(is_enabled=knows_the_caller)
def usual_order(context: RunContextWrapper[LiveCall]) -> str:
    """What this caller had the last time."""
    number = context.context.facts.from_number
    return LAST_TIME.get(number, "this is their first order")


def agent(call: LiveCall) -> RealtimeAgent[Any]:
    """The agent of one call."""
    order: list[Pizza] = []

    @function_tool
    def add_pizza(pizza: Pizza) -> str:
        """Put pizzas of one kind on the order."""
        order.append(pizza)
        return f"the order is {', '.join(f'{it.count} {it.name}' for it in order)}"

    @function_tool
    def total() -> str:
        """What the order costs."""
        return f"{sum(MENU[it.name] * it.count for it in order):.2f} dollars"

    orders: RealtimeAgent[Any] = RealtimeAgent(
        name="orders",
        handoff_description="Takes orders.",
        instructions=(
            SPEAK + "You take orders for a pizzeria. Read the order back and say what "
            "it costs before you confirm it."
        ),
        tools=[add_pizza, total, usual_order],
    )
    complaints: RealtimeAgent[Any] = RealtimeAgent(
        name="complaints",
        handoff_description="The caller is unhappy with an earlier order.",
        instructions=SPEAK + "Apologize, ask what was wrong, promise a call back.",
        # And back, when the caller wants to order again.
        handoffs=[realtime_handoff(orders)],
    )
    orders.handoffs = [realtime_handoff(complaints)]
    return orders
