"""The agent of tests.bench.owed: its tools take as long as the scene says.

BRIDGE_AGENT=tests/bench/owed_agent.py:AGENT
"""

import asyncio
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent


@function_tool
async def look_up(seconds: float, result: str) -> str:
    """Looks something up."""
    await asyncio.sleep(seconds)
    return result


AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="desk", instructions="You are a test.", tools=[look_up]
)
