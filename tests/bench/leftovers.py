"""200 calls one after another, 20 more cut off: what is left behind? (issue 2)

    .venv/bin/python -m tests.bench.leftovers

Exits 1 when a task, a socket or an entry of a call outlives it by more than 2 s.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge.core.conversation import LINGER_SECONDS
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.twilio import steps
from bridge.telemetry import log
from tests.e2e.bridge import Place, bridge

CALLS = 200
CUT_OFF = 20

TALK = (steps.HearStep(150, timeout=5),)


async def place(services: Place, script: Sequence[steps.Step], times: int) -> None:
    for _ in range(times):
        record = await services.caller().call(script)
        assert record.heard, "the caller heard nothing"
        await services.empty()


async def cut_off(services: Place, times: int) -> None:
    """Lines that break, all at once: the bridge waits for each to be back, in vain."""
    script = [*TALK, steps.DropStep(), steps.HangUpStep()]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(times):
            tasks.create_task(services.caller().call(script))
    async with asyncio.timeout(LINGER_SECONDS + 5):
        while services.server.calls:  # noqa: ASYNC110 - nobody tells of the last
            await asyncio.sleep(0.1)
    await services.empty()


def sockets() -> int:
    """Open sockets of this process, where there is a /proc."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(fd).startswith("socket:")
        except FileNotFoundError:
            continue  # the one this listing itself had open
    return count


async def main() -> int:
    speaking = Behaviour(fallback=[PlayRuler(3000)], think_seconds=0.05)
    async with bridge(speaking, greeting="Hi.") as services:
        await place(services, [*TALK, steps.HangUpStep()], 3)  # first calls allocate
        await asyncio.sleep(0.5)
        gc.collect()
        tasks, open_sockets = len(asyncio.all_tasks()), sockets()
        await place(services, [*TALK, steps.HangUpStep()], CALLS)
        await cut_off(services, CUT_OFF)
        gc.collect()
        await asyncio.sleep(0.5)
        left = {
            "tasks": len(asyncio.all_tasks()) - tasks,
            "sockets": sockets() - open_sockets,
            "streams": services.server.calls,
            "entries": len(await services.server.registered()),
            "sessions at the model": services.model.active,
        }
        hung_up = services.metric('bridge_calls_total{outcome="caller_hung_up"}')
        lost = services.metric('bridge_calls_total{outcome="caller_connection_lost"}')
    print(f"{hung_up:.0f} calls hung up, {lost:.0f} cut off; left behind: {left}")
    whole = hung_up >= CALLS and lost == CUT_OFF
    return 0 if whole and not any(left.values()) else 1


if __name__ == "__main__":
    log.configure("pretty", logging.ERROR)
    sys.exit(asyncio.run(main()))
