"""The agent of tests.bench.outages: its tool works, raises, or blocks the event loop.

BRIDGE_AGENT=tests/bench/outages_agent.py:AGENT. The file OUTAGES_MODE has one word.
"""

import os
import time
from pathlib import Path
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent

MODE = Path(os.environ["OUTAGES_MODE"])
BLOCK_SECONDS = 0.7


@function_tool
async def look_up(number: str) -> str:
    """Looks an order up."""
    mode = MODE.read_text("utf-8")
    if mode == "raise":
        prices = {"1": 20}
        return str(prices[number])
    if mode == "block":
        time.sleep(BLOCK_SECONDS)  # noqa: ASYNC251 - the fault
    return "It costs 20 euros."


AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="desk", instructions="You are a test.", tools=[look_up]
)
