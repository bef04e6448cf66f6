"""The agent of the benchmarks' bridges. It only has a tool, which the model calls.

BRIDGE_AGENT=tests/bench/counter.py:AGENT
"""

import asyncio
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent

TOOL_SECONDS = 1.0
RESULT = "found"


@function_tool
async def look_up(turn: int) -> str:
    """Looks something up."""
    await asyncio.sleep(TOOL_SECONDS)
    return RESULT


AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="counter", instructions="You count.", tools=[look_up]
)
