"""An agent whose instructions are the call SID, so that the fake model can tell which
session belongs to which call.

BRIDGE_AGENT=tests/bench/call_sid_agent.py:AGENT
"""

from typing import Any

from agents.realtime import RealtimeAgent
from agents.run_context import RunContextWrapper

from bridge.agent.live import LiveCall


def call_sid(context: RunContextWrapper[LiveCall], agent: RealtimeAgent[Any]) -> str:
    return context.context.facts.call_sid


AGENT: RealtimeAgent[Any] = RealtimeAgent(name="call SID", instructions=call_sid)
