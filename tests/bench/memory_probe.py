"""An agent whose process tells what its memory holds (tests.bench.memory).

BRIDGE_AGENT=tests/bench/memory_probe.py:AGENT MEMORY_PROBE=<file> [MEMORY_TRACE=1]

At SIGUSR1 it writes JSON to that file: the count of live objects by type and, with
MEMORY_TRACE, what each line of code has allocated since the start that is still there.
"""

import gc
import json
import os
import signal
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

from agents.realtime import RealtimeAgent

AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="memory", instructions="You are a friendly receptionist."
)


def _write(*_: object) -> None:
    gc.collect()
    # Objects that were frozen at the start of the server are not among these.
    types = Counter(
        f"{type(it).__module__}.{type(it).__qualname__}" for it in gc.get_objects()
    )
    report: dict[str, Any] = {"objects": types.most_common(), "lines": []}
    if tracemalloc.is_tracing():
        shot = tracemalloc.take_snapshot()
        report["lines"] = [
            (f"{it.traceback[0].filename}:{it.traceback[0].lineno}", it.size)
            for it in shot.statistics("lineno")
        ]
    path = Path(os.environ["MEMORY_PROBE"])
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report))
    part.rename(path)  # whole, or not there


signal.signal(signal.SIGUSR1, _write)
if os.environ.get("MEMORY_TRACE"):
    tracemalloc.start()
