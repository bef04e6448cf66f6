"""An agent whose process has the clock of tests.bench.hour.

BRIDGE_AGENT=tests/bench/hour_agent.py:AGENT HOUR_CLOCK=<file with a double>

`time.monotonic` reads the file, which the benchmark moves on. asyncio's event loop uses
that function, too; uvloop has a clock of its own, so it is not used.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from agents.realtime import RealtimeAgent

AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="hour", instructions="You are a friendly receptionist."
)
read_double = struct.Struct("d").unpack_from

with Path(os.environ["HOUR_CLOCK"]).open("rb") as file:
    clock = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
time.monotonic = lambda: read_double(clock)[0]
sys.modules["uvloop"] = None  # type: ignore[assignment] # its import fails
