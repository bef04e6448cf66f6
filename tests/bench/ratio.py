"""The bridge beside a bare relay: the ratio of their CPU per call-second.

    .venv/bin/python -m tests.bench.ratio --calls 60 --seconds 30

Both get the same load on the same core in one run, one after the other. The ratio
decides, because absolute figures differ from machine to machine and from hour to hour.
Where they differ from minute to minute, `--together` loads both at the same time.
Exits 1 if calls failed, and 3 if the fakes were late in every round: nothing was
measured then. With --limit, exits 1 if the ratio is higher.
"""

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bridge.cli.terminal import loop_factory
from bridge.sim import load, load_report
from bridge.sim.load_progress import LoadProgress
from bridge.sim.load_report import LoadReport
from bridge.sim.model import ModelServer
from bridge.sim.server_process import (
    BridgeProcess,
    bridge_process,
    certificate,
    pinned,
)

ROOT = Path(__file__).resolve().parents[2]
out, err = Console(), Console(stderr=True)


@asynccontextmanager
async def relay_process(
    model_url: str, *, uvloop: bool
) -> AsyncIterator[BridgeProcess]:
    """tests.bench.relay in a process of its own."""
    options = ["--model-url", model_url, *(["--uvloop"] if uvloop else [])]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.relay", *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode().split()
        if not line:
            raise ChildProcessError("the relay did not start")
        yield BridgeProcess(line[0], process.pid)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Sides:
    """One round: the same load on both."""

    bridge: LoadReport
    relay: LoadReport

    @property
    def ratio(self) -> float | None:
        ours = self.bridge.cost.cpu_ms_per_call_second
        theirs = self.relay.cost.cpu_ms_per_call_second
        return ours / theirs if ours is not None and theirs else None

    @property
    def broken(self) -> list[str]:
        return [*self.bridge.broken, *self.relay.broken]

    @property
    def worthless(self) -> bool:
        return bool(self.bridge.worthless or self.relay.worthless)


async def load_on(
    name: str,
    process: BridgeProcess,
    model: ModelServer,
    plan: load.LoadPlan,
    placement: str | None,
) -> LoadReport:
    total = plan.ramp_seconds + plan.seconds + load.TURN_SECONDS
    target = load.LoadTarget(
        name=name, webhook_url=process.webhook_url, pid=process.pid
    )
    with LoadProgress(err, name, plan.calls, total) as progress:
        return await load.measure(
            target, model, plan, placement=placement, progress=progress.show
        )


async def measure_round(
    plan: load.LoadPlan, options: argparse.Namespace, tls: ssl.SSLContext | None
) -> Sides:
    """Both servers, each with a model of its own, in turn or at the same time."""
    more = dict(pair.split("=", 1) for pair in options.bridge_env)
    async with contextlib.AsyncExitStack() as stack:
        models = [
            await stack.enter_async_context(
                ModelServer(
                    load.BEHAVIOUR,
                    record_appends=True,
                    keep_sessions=4 * plan.calls,
                    tls=tls,
                )
            )
            for _ in range(2)
        ]
        ours = await stack.enter_async_context(
            bridge_process(
                models[0].url,
                max_calls=plan.calls,
                more={"BRIDGE_INSECURE": "1", **more},
            )
        )
        theirs = await stack.enter_async_context(
            relay_process(models[1].url, uvloop=options.uvloop)
        )
        placement = stack.enter_context(pinned(ours.pid, theirs.pid))
        bridge = load_on("bridge", ours, models[0], plan, placement)
        relay = load_on("relay", theirs, models[1], plan, placement)
        if options.together:
            return Sides(*await asyncio.gather(bridge, relay))
        return Sides(await bridge, await relay)


@contextlib.contextmanager
def tls_of_the_model() -> Iterator[ssl.SSLContext]:
    """A certificate for 127.0.0.1, which this process and its children trust."""
    with certificate() as (context, file):
        os.environ["SSL_CERT_FILE"] = file
        yield context


def show(rounds: list[Sides]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("", "bridge", "relay"):
        table.add_column(name)
    last = rounds[-1]
    relay = dict(load_report.rows(last.relay))
    for name, value in load_report.rows(last.bridge):
        table.add_row(name, value, relay.get(name, ""))
    wide = out if out.is_terminal else Console(width=160)
    wide.print(table)
    for number, each in enumerate(rounds, 1):
        ours = each.bridge.cost.cpu_ms_per_call_second
        theirs = each.relay.cost.cpu_ms_per_call_second
        note = "  (the fakes were late: worthless)" if each.worthless else ""
        if each.ratio is not None:
            out.print(
                f"round {number}: {ours:.2f} ms / {theirs:.2f} ms = "
                f"{each.ratio:.2f}{note}",
                highlight=False,
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--ramp", type=float, help="default: 20 calls a second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--together", action="store_true", help="load both at the same time"
    )
    parser.add_argument("--tls", action="store_true", help="wss:// to the model")
    parser.add_argument("--uvloop", action="store_true", help="the relay on uvloop")
    parser.add_argument("--limit", type=float, help="highest ratio that passes")
    parser.add_argument(
        "--bridge-env", action="append", default=[], metavar="NAME=VALUE"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    ramp = options.ramp
    plan = load.LoadPlan(
        calls=options.calls,
        seconds=options.seconds,
        ramp_seconds=options.calls * load.RAMP_SECONDS if ramp is None else ramp,
    )
    tls_or_not = tls_of_the_model() if options.tls else contextlib.nullcontext()
    # The fakes run on uvloop where it is installed, as in `bridge sim load`.
    runner = asyncio.Runner(loop_factory=loop_factory())
    with tls_or_not as tls, runner:
        rounds = [
            runner.run(measure_round(plan, options, tls)) for _ in range(options.rounds)
        ]
    show(rounds)
    if options.json:
        options.json.write_text(as_json(rounds))
    good = [each for each in rounds if not each.worthless]
    ratios = [each.ratio for each in good or rounds if each.ratio is not None]
    if ratios:
        loop = "uvloop" if options.uvloop else "asyncio"
        print(f"RATIO {median(ratios):.2f} (relay on {loop}, median of {len(ratios)})")
    broken = [text for each in rounds for text in each.broken]
    if broken:
        print(*broken[:20], sep="\n")
    if not good:
        print("WORTHLESS: the fakes were late in every round.")
        return load_report.WORTHLESS
    limit = options.limit
    too_high = limit is not None and (not ratios or median(ratios) > limit)
    return 1 if broken or too_high else 0


def as_json(rounds: list[Sides]) -> str:
    documents = [
        {
            "bridge": json.loads(load_report.as_json(each.bridge)),
            "relay": json.loads(load_report.as_json(each.relay)),
            "ratio": each.ratio,
        }
        for each in rounds
    ]
    return json.dumps({"rounds": documents}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
