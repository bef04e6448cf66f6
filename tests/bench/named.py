"""The agent of a bridge whose calls must be told apart at the model: it says whose it
is.

BRIDGE_AGENT=tests/bench/named.py:AGENT
"""

from typing import Any

from agents.realtime import RealtimeAgent
from agents.run_context import RunContextWrapper

from bridge.agent.live import LiveCall


def named(context: RunContextWrapper[LiveCall], agent: RealtimeAgent[Any]) -> str:
    return context.context.facts.call_sid


AGENT: RealtimeAgent[Any] = RealtimeAgent(name="named", instructions=named)
