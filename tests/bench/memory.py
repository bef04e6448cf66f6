"""What the bridge's memory holds: before the first call, for each call, over a soak.

    .venv/bin/python -m tests.bench.memory --calls 100
    .venv/bin/python -m tests.bench.memory --calls 40 --trace
    .venv/bin/python -m tests.bench.memory --calls 40 --soak 4

Starts `bridge serve`, and lets so many calls talk at once, over real sockets. Prints
the resident memory, and which objects a call keeps. `--trace`: also the lines of code
that have allocated what a call keeps; the server is slower then, and needs more memory.

`--soak`: so many minutes of calls of a few seconds, one after another, beside calls
that all come and go at once. Prints the memory every 30 s, its slope, and the objects
that have become more. Exits 1 if there are more objects than a few for each call.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.table import Table

from bridge.sim import load
from bridge.sim.model import ModelServer
from bridge.sim.server_process import ProcessTree, bridge_process
from bridge.sim.twilio import steps

HERE = Path(__file__).resolve().parent

WARM_UP_CALLS = 10
"""Their one-time work (caches, what is imported late) is counted apart."""

SOAK_CALL = (steps.HearStep(400, timeout=10), steps.WaitStep(2.0), steps.HangUpStep())
SHOWN = 30
REPORT_SECONDS = 30.0
SETTLE_SECONDS = 3.0

LEFT_OBJECTS = 1.0
"""Limit of the objects that a call of the soak leaves behind. A leak of anything of a
call leaves hundreds; histograms and caches that still fill leave fewer."""

out = Console(width=120)


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """At one moment."""

    objects: Mapping[str, int]
    lines: Mapping[str, int]
    """file:line -> bytes"""


class LoadedServer:
    """`bridge serve` with the agent of memory_probe.py."""

    def __init__(self, webhook_url: str, pid: int, report: Path) -> None:
        self._pid = pid
        self._tree = ProcessTree(pid)
        self._report = report
        self._target = load.LoadTarget(name="bridge serve", webhook_url=webhook_url)
        self.placed = 0

    def rss_mb(self) -> float:
        return self._tree.memory_mb() or 0.0

    async def memory(self) -> ServerMemory:
        self._report.unlink(missing_ok=True)
        os.kill(self._pid, signal.SIGUSR1)
        async with asyncio.timeout(120):
            while not self._report.exists():  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.05)
        found = json.loads(self._report.read_text())
        return ServerMemory(dict(found["objects"]), dict(found["lines"]))

    async def call(self, script: list[steps.Step]) -> None:
        self.placed += 1
        record = await self._target.caller(3600.0).call(script)
        assert record.error is None, record.error

    async def calls(self, plan: load.LoadPlan) -> None:
        """Until the last of them has ended."""

        async def place(number: int) -> None:
            await asyncio.sleep(plan.starts_at(number))
            await self.call(plan.script(number))

        async with asyncio.TaskGroup() as tasks:
            for number in range(1, plan.calls + 1):
                tasks.create_task(place(number))


@asynccontextmanager
async def loaded_server(max_calls: int, *, traced: bool) -> AsyncIterator[LoadedServer]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "memory.json")
        more = {
            "BRIDGE_INSECURE": "1",
            "BRIDGE_AGENT": f"{HERE / 'memory_probe.py'}:AGENT",
            "MEMORY_PROBE": str(report),
            "PYTHONPATH": str(HERE.parents[1]),  # this tree, also if it is a worktree
            **({"MEMORY_TRACE": "1"} if traced else {}),
        }
        async with (
            ModelServer(load.BEHAVIOUR, keep_audio=False, keep_sessions=1) as model,
            bridge_process(model.url, max_calls=max_calls, more=more) as process,
        ):
            yield LoadedServer(process.webhook_url, process.pid, report)


async def measure_calls(calls: int, seconds: float, *, traced: bool) -> None:
    async with loaded_server(2 * calls, traced=traced) as server:
        at_first = server.rss_mb()
        await server.calls(
            load.LoadPlan(calls=WARM_UP_CALLS, seconds=8, ramp_seconds=1)
        )
        await asyncio.sleep(SETTLE_SECONDS)
        before, idle = await server.memory(), server.rss_mb()
        ramp = calls * load.RAMP_SECONDS
        plan = load.LoadPlan(calls=calls, seconds=seconds, ramp_seconds=ramp)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.calls(plan))
            await asyncio.sleep(ramp + seconds - 2)
            full = server.rss_mb()  # first: the probe itself needs memory
            during = await server.memory()
        out.print(
            f"before the first call {at_first:.1f} MB, after {WARM_UP_CALLS} calls "
            f"{idle:.1f} MB, with {calls} calls {full:.1f} MB:\n"
            f"{(full - at_first) / calls:.3f} MB a call, "
            f"{(full - idle) / calls:.3f} MB without the one-time work"
        )
    out.print(_more(before.objects, during.objects, calls, "objects a call"))
    if traced:
        out.print(_more(before.lines, during.lines, calls, "bytes a call"))


def _more(
    before: Mapping[str, int], after: Mapping[str, int], calls: int, title: str
) -> Table:
    """What has become more, the most first."""
    table = Table(box=None, pad_edge=False)
    table.add_column(title, justify="right")
    table.add_column("")
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    largest = sorted(grown.items(), key=lambda it: -it[1])[:SHOWN]
    table.add_row(f"{sum(grown.values()) / calls:,.1f}", "in all")
    for name, count in largest:
        table.add_row(f"{count / calls:,.1f}", _short(name))
    return table


def _short(name: str) -> str:
    return name.rpartition("site-packages/")[2]


async def soak(calls: int, minutes: float) -> int:
    async with loaded_server(2 * calls + 10, traced=False) as server:
        plan = load.LoadPlan(calls=calls, seconds=5, ramp_seconds=1)
        await server.calls(plan)  # the first calls allocate
        await asyncio.sleep(SETTLE_SECONDS)
        before, rss, placed = await server.memory(), [server.rss_mb()], server.placed
        until = monotonic() + 60 * minutes

        async def one_after_another() -> None:
            while monotonic() < until:
                await server.call(list(SOAK_CALL))

        async def all_at_once() -> None:
            while monotonic() < until:
                await server.calls(plan)

        async def report() -> None:
            began = monotonic()
            while monotonic() < until:
                await asyncio.sleep(REPORT_SECONDS)
                rss.append(server.rss_mb())
                seconds = monotonic() - began
                out.print(f"{seconds:5.0f} s {server.placed:6} calls {rss[-1]:7.1f} MB")

        async with asyncio.TaskGroup() as tasks:
            for work in (one_after_another, all_at_once, report):
                tasks.create_task(work())
        await asyncio.sleep(SETTLE_SECONDS)
        after, ended = await server.memory(), server.rss_mb()
    done = server.placed - placed
    late = rss[len(rss) // 2 :]  # the first half fills the allocators' free blocks
    slope = statistics.linear_regression(range(len(late)), late).slope
    per_hour = slope * 3600 / REPORT_SECONDS
    left = sum(after.objects.values()) - sum(before.objects.values())
    out.print(
        f"{done} calls; {rss[0]:.1f} MB at first, {ended:.1f} MB at the end, {left} "
        f"objects more; slope of the second half: {per_hour:.1f} MB an hour"
    )
    out.print(_more(before.objects, after.objects, done, "objects left by a call"))
    return 0 if left / done <= LEFT_OBJECTS else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100, help="at the same time")
    parser.add_argument("--seconds", type=float, default=24.0, help="that all talk")
    parser.add_argument("--trace", action="store_true", help="who has allocated what")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    if options.soak:
        return asyncio.run(soak(options.calls, options.soak))
    asyncio.run(measure_calls(options.calls, options.seconds, traced=options.trace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
