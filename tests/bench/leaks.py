"""200 calls one after another, then 20 whose streams break: do they leak? (issue 2)

    .venv/bin/python -m tests.bench.leaks

Exits 1 if a task, a socket or a registry entry exists for more than 2 s after its call.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge.core.stream_presence import ABSENT_SECONDS
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.twilio import steps
from bridge.telemetry import log
from tests.e2e.bridge import RunningBridge, bridge

CALLS = 200
CUT_OFF = 20

HEAR = (steps.HearStep(150, timeout=5),)


async def place_calls(
    here: RunningBridge, script: Sequence[steps.Step], times: int
) -> None:
    for _ in range(times):
        record = await here.caller().call(script)
        assert record.heard, "the caller heard nothing"
        await here.empty()


async def cut_off(here: RunningBridge, times: int) -> None:
    """Calls whose streams all break at once; no stream comes back to the bridge, which
    waits for it."""
    script = [*HEAR, steps.DropStep(), steps.HangUpStep()]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(times):
            tasks.create_task(here.caller().call(script))
    async with asyncio.timeout(ABSENT_SECONDS + 5):
        while here.server.calls:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.1)
    await here.empty()


def sockets() -> int:
    """Number of open sockets of this process; needs /proc."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(fd).startswith("socket:")
        except FileNotFoundError:
            continue  # the descriptor of this listing itself
    return count


async def main() -> int:
    speaking = Behaviour(fallback=[PlayRuler(3000)], think_seconds=0.05)
    async with bridge(speaking, greeting="Hi.") as here:
        await place_calls(
            here, [*HEAR, steps.HangUpStep()], 3
        )  # the first calls allocate
        await asyncio.sleep(0.5)
        gc.collect()
        tasks, open_sockets = len(asyncio.all_tasks()), sockets()
        await place_calls(here, [*HEAR, steps.HangUpStep()], CALLS)
        await cut_off(here, CUT_OFF)
        gc.collect()
        await asyncio.sleep(0.5)
        left = {
            "tasks": len(asyncio.all_tasks()) - tasks,
            "sockets": sockets() - open_sockets,
            "streams": here.server.calls,
            "entries": len(await here.server.registered()),
            "sessions at the model": here.model.active,
        }
        hung_up = here.metric('bridge_calls_total{outcome="caller_hung_up"}')
        lost = here.metric('bridge_calls_total{outcome="caller_connection_lost"}')
    print(f"{hung_up:.0f} calls hung up, {lost:.0f} cut off; leaked: {left}")
    complete = hung_up >= CALLS and lost == CUT_OFF
    return 0 if complete and not any(left.values()) else 1


if __name__ == "__main__":
    log.configure("pretty", logging.ERROR)
    sys.exit(asyncio.run(main()))
