"""Five outages with calls running: what callers hear, and what the operator sees.

    .venv/bin/python -m tests.bench.outages                      # all, at the same time
    .venv/bin/python -m tests.bench.outages --outage 2 --minutes 3
    .venv/bin/python -m tests.bench.outages --outage 2 --blind   # an exercise

Each outage has its own fleet (a real bridge, Redis and HAProxy), fake callers and a
fake model. A Prometheus evaluates deploy/alerts.yml as it is; without the program
`prometheus` (apt-get install prometheus, or --prometheus PATH) no alert is evaluated.
A minute without a fault comes first; after the outage it is repaired, for a minute.

Prints what the callers heard, the warnings and errors in the log, the metrics that
moved, the alerts with the time until they fired, and the output of the first command
that the runbook gives for the first alert.

`--blind` prints only what an operator sees, for a test of the runbook by someone who
does not know the cause: the numbers are those of BLIND. It waits for Ctrl-C before the
repair, so that commands can be tried; `docker` and `df` of the printed folder show the
fleet.

The outage of the disk needs a small file system (tmpfs): run it as root, or with
`unshare --map-root-user --mount`.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from bridge.sim.caller import Caller, CallRecord, random_number
from bridge.sim.model import (
    Behaviour,
    CallTool,
    ModelServer,
    PlayRuler,
    Turn,
    TurnContext,
)
from bridge.sim.ruler import ruler
from bridge.sim.twilio import steps
from scripts.fleet import Fleet
from tests.bench import operator_view
from tests.bench.operator_view import Prometheus

AGENT = f"{Path(__file__).resolve().parent / 'outages_agent.py'}:AGENT"

CALL_EVERY_SECONDS = 2.0
CALL_SECONDS = 60.0
QUESTION_MS = 600
ANSWER_MS = 1200
LONG_PAUSE_SECONDS = 2.5
"""From the end of a question to the answer; with a healthy fleet it is 0.8 s."""

NORMAL_SECONDS = 60.0
REPAIR_SECONDS = 60.0
MINUTES = 8.0
"""Long enough for the slowest alert (EventLoopBlocked)."""

DISK_BYTES = 64 * 2**20
REFUSALS = 100_000
LOG_LINES = 40

BLIND = (4, 2, 5, 1, 3)
"""`--blind --outage N` makes the Nth of these outages: the number tells nothing."""


def answer(context: TurnContext) -> Turn:
    """The model looks something up for each question of the caller."""
    if context.caller_turns and not context.answered:
        return [CallTool("look_up", {"number": "12"})]
    return [PlayRuler(ANSWER_MS)]


BEHAVIOUR = Behaviour(answer=answer)


# --- the calls ---


@dataclass
class Calls:
    """Calls that begin every CALL_EVERY_SECONDS until it is cancelled."""

    voice_url: str
    records: list[CallRecord] = field(default_factory=list)
    """The calls that have ended."""

    async def place(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._call())
                await asyncio.sleep(CALL_EVERY_SECONDS)

    async def _call(self) -> None:
        question = steps.SayStep(ruler(1, QUESTION_MS))
        listen = steps.ListenStep(quiet_seconds=0.8, timeout=15.0)
        script = [listen, question, listen, question, listen, steps.HangUpStep()]
        caller = Caller(
            webhook_url=self.voice_url,
            from_number=random_number(),
            max_seconds=CALL_SECONDS,
        )
        self.records.append(await caller.call(script))


def pauses(record: CallRecord) -> Iterator[float]:
    """Seconds from each question to the next audio of the agent."""
    starts = sorted(run.start for run in record.runs())
    for spoken in record.spoken:
        later = [it for it in starts if it > spoken.ended_at]
        if later:
            yield later[0] - spoken.ended_at


def heard(records: Sequence[CallRecord]) -> str:
    """What these callers heard, in a sentence."""
    apology = [it for it in records if it.said_by_twilio]
    failed = [it for it in records if it.error and it not in apology]
    rest = [it for it in records if it not in apology and it not in failed]
    waits = [max(pauses(it), default=0.0) for it in rest]
    late = [it for it in waits if it > LONG_PAUSE_SECONDS]
    parts = [f"{len(records)} calls", f"{len(rest) - len(late)} as usual"]
    if late:
        parts.append(f"{len(late)} with a pause of up to {max(late):.1f} s")
    if apology:
        parts.append(f"{len(apology)} the apology")
    if failed:
        parts.append(f"{len(failed)} Twilio's error ({failed[0].error})")
    if unanswered := sum(bool(it.timed_out) for it in rest):
        parts.append(f"{unanswered} of them an answer that never came")
    return ", ".join(parts)


# --- the outages ---


@dataclass
class Scene:
    """A running fleet with its fakes. `mode` is the file that the agent's tool reads;
    `filler` takes the free space of the disk."""

    model: ModelServer
    fleet: Fleet
    mode: Path

    @property
    def filler(self) -> Path:
        return self.fleet.folder / "filler"


Step = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Outage:
    title: str
    begin: Step
    repair: Step
    small_disk: bool = False


async def _refuse_key(scene: Scene) -> None:
    scene.model.handshakes.answer(401, times=REFUSALS)


async def _accept_key(scene: Scene) -> None:
    scene.model.handshakes.reset()


async def _stop_redis(scene: Scene) -> None:
    await scene.fleet.stop_redis()


async def _start_redis(scene: Scene) -> None:
    await scene.fleet.start_redis()


async def _fill_disk(scene: Scene) -> None:
    with scene.filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65536))


async def _empty_disk(scene: Scene) -> None:
    scene.filler.unlink()


def _tool(mode: str) -> Step:
    async def step(scene: Scene) -> None:
        scene.mode.write_text(mode)

    return step


OUTAGES = (
    Outage("the model refuses the key", _refuse_key, _accept_key),
    Outage("Redis is gone", _stop_redis, _start_redis),
    Outage("the disk is full", _fill_disk, _empty_disk, small_disk=True),
    Outage("a tool raises", _tool("raise"), _tool("")),
    Outage("a tool blocks the event loop", _tool("block"), _tool("")),
)


@contextmanager
def disk(small: bool) -> Iterator[Path]:
    """A folder for all output of a fleet; `small`: a file system of its own."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        if not small:
            yield Path(name)
            return
        options = f"size={DISK_BYTES}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", name]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                "the outage of the disk mounts a tmpfs: run this as root, or with "
                "`unshare --map-root-user --mount`"
            )
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


@asynccontextmanager
async def running(small_disk: bool) -> AsyncIterator[Scene]:
    with disk(small_disk) as folder, tempfile.TemporaryDirectory() as other:
        mode = Path(other) / "mode"
        mode.write_text("")
        env = {
            "BRIDGE_AGENT": AGENT,
            "BRIDGE_GREETING": "Greet the caller.",
            "BRIDGE_RECORD_DIR": str(folder / "records"),
            "OUTAGES_MODE": str(mode),
        }
        (folder / "records").mkdir()
        async with (
            ModelServer(BEHAVIOUR, keep_sessions=20, keep_audio=False) as model,
            Fleet(1, model_url=model.url, env=env, folder=folder) as fleet,
        ):
            yield Scene(model, fleet, mode)


@dataclass
class Seen:
    """What one outage has shown."""

    title: str
    heard: str
    events: list[str]
    metrics: list[str]
    alerts: list[str]
    pending: list[str]
    command: str
    output: str
    repaired: str


@dataclass
class Watch:
    """The calls of a scene and, if there is one, its Prometheus."""

    scene: Scene
    calls: Calls
    prometheus: Prometheus | None
    tools: Path

    async def pages(self, outage: Outage, seconds: float) -> tuple[str, str, str]:
        """Runs the normal minute and the outage. The metrics at the beginning, at the
        beginning of the outage, and at its end."""
        before = await operator_view.metrics_page(self.scene.fleet)
        await asyncio.sleep(NORMAL_SECONDS)
        began = await operator_view.metrics_page(self.scene.fleet)
        self.began_at, self.began_bytes = monotonic(), self.log.stat().st_size
        self.calls.records.clear()
        await outage.begin(self.scene)
        await asyncio.sleep(seconds)
        operator_view.show_to_operator(self.scene.fleet, self.tools)
        return before, began, await operator_view.metrics_page(self.scene.fleet)

    began_at = 0.0
    began_bytes = 0

    @property
    def log(self) -> Path:
        return self.scene.fleet.bridges[0].log

    @property
    def fired(self) -> list[operator_view.Alert]:
        """The alerts that have fired, in the order of time."""
        found = self.prometheus.fired.values() if self.prometheus else ()
        return sorted(found, key=lambda alert: alert.fired_at)

    def command(self) -> str:
        """What the runbook says first."""
        fired = self.fired
        if fired:
            return operator_view.first_command(fired[0].name)
        return operator_view.OVERVIEW


@asynccontextmanager
async def watching(outage: Outage, prometheus: str | None) -> AsyncIterator[Watch]:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(running(outage.small_disk))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="view-")))
        server = None
        if prometheus:
            server = Prometheus(prometheus, scene.fleet, folder)
            await stack.enter_async_context(server)
        calls = Calls(scene.fleet.voice_url)
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(calls.place())]
            if server:
                work.append(tasks.create_task(server.watch()))
            try:
                yield Watch(scene, calls, server, folder / "bin")
            finally:
                for task in work:
                    task.cancel()


async def make(outage: Outage, seconds: float, prometheus: str | None) -> Seen:
    """Makes the outage; what it has shown."""
    async with watching(outage, prometheus) as watch:
        pages = await watch.pages(outage, seconds)
        records, fired = list(watch.calls.records), watch.fired
        counted = operator_view.events(watch.log, watch.began_bytes).most_common()
        command = watch.command()
        output = await operator_view.run_command(command, watch.tools)
        pending = sorted(watch.prometheus.pending) if watch.prometheus else []
        await outage.repair(watch.scene)
        await asyncio.sleep(REPAIR_SECONDS)
        repaired = heard(watch.calls.records[-int(REPAIR_SECONDS / 4) :])
        return Seen(
            outage.title,
            heard(records),
            [f"{level} {event} {number}x" for (level, event), number in counted],
            operator_view.moved(*pages),
            [f"{it.name} after {it.fired_at - watch.began_at:.0f} s" for it in fired],
            pending,
            command,
            output,
            repaired,
        )


def show(seen: Seen) -> None:
    print(f"\n## {seen.title}\n")
    print(f"callers:  {seen.heard}")
    print(f"repaired: {seen.repaired}")
    for title, lines in (
        ("log", seen.events),
        ("metrics", seen.metrics),
        ("alerts", seen.alerts),
        ("pending", seen.pending),
    ):
        for line in lines or ["-"]:
            print(f"{title + ':':<9} {line}")
    print(f"\n$ {seen.command}\n{seen.output}", flush=True)


async def blind(outage: Outage, seconds: float, prometheus: str | None) -> None:
    """Makes the outage, and prints what an operator sees."""
    async with watching(outage, prometheus) as watch:
        *_, page = await watch.pages(outage, seconds)
        for alert in watch.fired:
            print(f"ALERT {alert.name}")
            for name, text in alert.annotations.items():
                print(f"  {name}: {text}")
        if not watch.fired:
            print("No alert has fired. A colleague reports: callers complain.")
        tail = f"tail -n {LOG_LINES} {watch.log}"
        print("\nthe end of the log:")
        print(await operator_view.run_command(tail, watch.tools))
        print("the metrics, without buckets and without counters that are 0:")
        for name, value in operator_view.series(page).items():
            if "_bucket" in name or "_created" in name:
                continue
            if value or "_total" not in name:
                print(f"{name} {value:g}")
        print(f"\nPATH={watch.tools}:$PATH has `docker` and `df` that show this fleet.")
        print("Ctrl-C ends the exercise.", flush=True)
        await asyncio.Event().wait()


async def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    numbers = range(1, len(OUTAGES) + 1)
    parser.add_argument("--outage", type=int, choices=numbers, help="default: all")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--prometheus", default=shutil.which("prometheus"))
    parser.add_argument("--blind", action="store_true", help="with --outage")
    chosen = parser.parse_args(arguments)
    seconds, program = 60 * chosen.minutes, chosen.prometheus
    if program is None:
        operator_view.note("there is no `prometheus`: no alert is evaluated")
    if chosen.blind:
        if not chosen.outage:
            parser.error("--blind needs --outage")
        await blind(OUTAGES[BLIND[chosen.outage - 1] - 1], seconds, program)
        return 0
    made = OUTAGES if chosen.outage is None else [OUTAGES[chosen.outage - 1]]
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(make(it, seconds, program)) for it in made]
    for task in work:
        show(task.result())
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
