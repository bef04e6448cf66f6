"""20 good calls while hostile clients attack the bridge: is a call lost or harmed?

    .venv/bin/python -m tests.bench.attacks [--only pings,frames] [--together]

The bridge runs in its own process, as in production (signatures, tickets). The hostile
clients (tests/bench/hostile_clients.py) run in another, of low priority. The fakes of
the good calls run in this process. The waves of calls: one without an attack, one for
each attack, one with all attacks, and one without again. Half of a wave's calls are
placed before the attack, half during it. Exits 1 if a limit is exceeded.

SYN floods are not tested: a SYN alone does not reach the bridge, only the kernel.
"""

import argparse
import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bridge.sim import belief
from bridge.sim.belief import percentile
from bridge.sim.caller import Caller, CallRecord
from bridge.sim.load_delays import down_delays
from bridge.sim.model import ModelServer, ModelSession
from bridge.sim.scenes import NETWORKS, Scene, script
from bridge.sim.server_process import BridgeProcess, bridge_process
from tests.bench.faults import markdown, watch_loop
from tests.bench.hostile_clients import ACCOUNT, ATTACKS, PUBLIC

ROOT = Path(__file__).resolve().parent.parent.parent
AGENT = f"{ROOT / 'tests' / 'bench' / 'call_sid_agent.py'}:AGENT"
TOKEN = "a" * 32

CALLS = 20
INTERRUPTIONS = 3
RAMP_SECONDS = 0.15
"""Between two calls of a wave; the attack begins when half of the calls are placed."""
CALL_SECONDS = 60.0
SCENE = Scene(name="attacks", items_ms=(3000,))
NEAR, FAR = NETWORKS[0], NETWORKS[1]

LOOK_SECONDS = 0.05
READY_SECONDS = 0.2
"""From a configured session until the audio that waited for it has been sent."""
SETTLED_SECONDS = 20.0
"""Longest wait until the hostile clients' sockets are closed. The bridge keeps a call
whose stream broke for 10 s."""

P95_MS = belief.P95_LIMIT
PEAK_MB = 30.0
LEFT_MB = 3.0
"""Growth of the memory in the calls after the last attack: freed memory is reused."""
LEFT_FDS = 2
LATER_P50_MS, LATER_P99_MS = 5.0, 50.0
"""More delay than without an attack; a caller does not hear so little."""


@dataclass(frozen=True, slots=True)
class Look:
    """A measurement of the bridge's process."""

    at: float
    memory_mb: float
    fds: int
    cpu_seconds: float
    waited_seconds: float
    """Ready to run, while other processes had the CPUs."""


def look(pid: int) -> Look:
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    pages = int((process / "statm").read_text().split()[1])
    return Look(
        monotonic(),
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        sum(1 for _ in (process / "fd").iterdir()),
        ticks / os.sysconf("SC_CLK_TCK"),
        int((process / "schedstat").read_text().split()[1]) / 1e9,
    )


@dataclass(slots=True)
class Wave:
    """The results of 20 calls, and of the bridge during these calls."""

    name: str
    about: str
    lost: list[str] = field(default_factory=list)
    harmed: list[str] = field(default_factory=list)
    errors_ms: list[float] = field(default_factory=list)
    up_ms: list[float] = field(default_factory=list)
    down_ms: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    after_mb: float = 0.0
    peak_fds: int = 0
    after_fds: int = 0
    settled_seconds: float = 0.0
    cpu: float = 0.0
    late_ms: float = 0.0
    starved: float = 0.0
    """The part of the time in which the bridge waited for a CPU: the machine, not the
    bridge, causes these delays."""
    clients_cpu: float = 0.0
    outcomes: dict[str, dict[str, object]] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)

    def row(self) -> tuple[str, ...]:
        def ways(values: Sequence[float]) -> str:
            return f"{percentile(values, 50):.1f} / {percentile(values, 99):.1f}"

        errors = (percentile(self.errors_ms, it) for it in (50, 95, 100))
        return (
            self.name,
            f"{len(self.lost)} / {len(self.harmed)}",
            " / ".join(f"{it:.1f}" for it in errors),
            ways(self.up_ms),
            ways(self.down_ms),
            f"{self.peak_mb:.0f} / {self.after_mb:.0f}",
            f"{self.peak_fds} / {self.after_fds}",
            f"{self.settled_seconds:.1f}",
            f"{100 * self.cpu:.0f} / {100 * self.clients_cpu:.0f}",
            f"{self.late_ms:.0f} ms / {100 * self.starved:.0f} %",
        )


COLUMNS = (
    "attack",
    "calls lost / harmed",
    "belief error p50/p95/max ms",
    "caller->append p50/p99 ms",
    "delta->media p50/p99 ms",
    "memory peak/after MB",
    "fds peak/after",
    "settled s",
    "CPU bridge/hostile clients %",
    "fakes late p99.9 / bridge waited for a CPU",
)


# --- the good calls -------------------------------------------------------------------


def call_sid(wave: int, number: int) -> str:
    return f"CA{wave:016x}{number:016x}"


async def place(wave: int, number: int, url: str) -> CallRecord:
    random = Random(f"{wave} {number}")
    network = NEAR if number % 2 else FAR
    caller = Caller(
        webhook_url=url,
        auth_token=TOKEN,
        signed_origin=PUBLIC,
        account_sid=ACCOUNT,
        call_sid=call_sid(wave, number),
        from_number=f"+1555{wave:03}{number:04}",
        network=network,
        keep_frame_times=True,
        max_seconds=CALL_SECONDS,
    )
    behaviour = SCENE.behaviour(random)
    return await caller.call(
        [*script(SCENE, behaviour, network, INTERRUPTIONS, random)]
    )


def judge(wave: Wave, record: CallRecord, sessions: Sequence[ModelSession]) -> None:
    """Adds the call's results to the wave; the rules are those of `bridge sim
    accuracy`."""
    lost = []
    if record.ended_by != "caller":
        lost.append(f"ended by {record.ended_by}")
    if len(sessions) != 1:
        lost.append(f"{len(sessions)} sessions")
    if lost:
        wave.lost.append(", ".join(lost))
        return
    session = sessions[0]
    errors = [str(it["message"]) for it in session.errors_sent]
    verdict = belief.judge(record.heard, session.responses, INTERRUPTIONS, errors)
    harm = [*verdict.faults, *verdict.errors, *record.timed_out]
    harm += [f"Twilio warned: {it.code}" for it in record.warnings]
    harm += [
        f"{it.number} cut: model not told" for it in verdict.beliefs if it.uncorrected
    ]
    for what, ms in (
        ("lost", verdict.lost_ms),
        ("repeated", verdict.repeated_ms),
        ("stray", verdict.stray_ms),
    ):
        harm += [f"{ms:.1f} ms {what}"] if ms else []
    harm += [] if verdict.in_order else ["audio out of order"]
    if harm:
        wave.harmed.append(", ".join(harm))
    wave.errors_ms += [abs(it.error_ms) for it in verdict.beliefs if it.cut]
    wave.up_ms += _up_delays(record, session)
    wave.down_ms += [ms for _, ms in down_delays(record, session)]


def _up_delays(record: CallRecord, session: ModelSession) -> Iterator[float]:
    """ms from a caller's frame to its append, without the frames that waited for the
    session."""
    assert session.configured_at is not None
    for sent, arrived in zip(record.frame_sent_at, session.append_at, strict=False):
        if sent > session.configured_at + READY_SECONDS:
            yield 1000 * (arrived - sent)


# --- the hostile clients --------------------------------------------------------------


@asynccontextmanager
async def hostile_clients(
    port: int, names: Sequence[str], wave: Wave
) -> AsyncIterator[None]:
    """Runs these attacks; at the end, their outcomes are in the wave."""
    if not names:
        yield
        return
    given = {"port": port, "token": TOKEN, "attacks": names}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.hostile_clients", json.dumps(given)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=2**24,
    )
    assert process.stdin and process.stdout
    try:
        yield
    finally:
        process.stdin.close()
        output = await process.stdout.read()
        if await process.wait() == 0:
            report = json.loads(output)
            wave.clients_cpu, wave.outcomes = report["cpu"], report["outcomes"]
        else:
            wave.harmed.append("the hostile clients failed: nothing was tested")


def in_words(outcomes: dict[str, dict[str, object]]) -> Iterator[str]:
    for group, each in outcomes.items():
        endings, rate = each["endings"], each["sent_per_second"]
        assert isinstance(endings, dict)
        counts = [
            f"{len(times)}x {ending} ({median(times):.1f} s)"
            for ending, times in sorted(endings.items(), key=lambda it: -len(it[1]))
        ]
        sent = f", {rate:,.0f}/s sent" if isinstance(rate, float) else ""
        yield f"{group}: {'; '.join(counts) or 'no client'}{sent}"


# --- the waves ------------------------------------------------------------------------


@dataclass(slots=True)
class Bench:
    bridge: BridgeProcess
    model: ModelServer
    idle_fds: int = 0
    waves: list[Wave] = field(default_factory=list)
    _number: int = 0

    @property
    def port(self) -> int:
        return int(self.bridge.webhook_url.split(":")[2].split("/")[0])

    async def wave(
        self, name: str, attacks: Sequence[str] = (), about: str = ""
    ) -> Wave:
        wave = Wave(name, about)
        self._number += 1
        before = await self.counters()
        looks: list[Look] = [look(self.bridge.pid)]
        lateness: list[float] = []
        async with asyncio.TaskGroup() as tasks:
            watching = [
                tasks.create_task(watch_loop(lateness)),
                tasks.create_task(self._watch(looks)),
            ]
            placed = await self._calls(tasks, 1, CALLS // 2)
            async with hostile_clients(self.port, attacks, wave):
                placed += await self._calls(tasks, CALLS // 2 + 1, CALLS)
                await asyncio.wait(placed)
            for task in watching:
                task.cancel()
        await self._settle(wave)
        for call in placed:
            record = call.result()
            mine = [it for it in self.model.sessions if is_of(it, record.call_sid)]
            judge(wave, record, mine)
        self.model.sessions.clear()
        for values in (wave.errors_ms, wave.up_ms, wave.down_ms):
            values.sort()
        wave.peak_mb = max(it.memory_mb for it in looks)
        wave.peak_fds = max(it.fds for it in looks)
        one, last = looks[0], looks[-1]
        lasted = last.at - one.at
        wave.cpu = (last.cpu_seconds - one.cpu_seconds) / lasted
        wave.starved = (last.waited_seconds - one.waited_seconds) / lasted
        wave.late_ms = 1000 * percentile(sorted(lateness), 99.9)
        after = await self.counters()
        wave.counted = {
            name: value - before.get(name, 0.0)
            for name, value in after.items()
            if value > before.get(name, 0.0)
        }
        self.waves.append(wave)
        return wave

    async def _calls(
        self, tasks: asyncio.TaskGroup, begin: int, end: int
    ) -> "list[asyncio.Task[CallRecord]]":
        placed = []
        for number in range(begin, end + 1):
            calling = place(self._number, number, self.bridge.webhook_url)
            placed.append(tasks.create_task(calling))
            await asyncio.sleep(RAMP_SECONDS)
        return placed

    async def _watch(self, looks: list[Look]) -> None:
        while True:
            looks.append(look(self.bridge.pid))
            await asyncio.sleep(LOOK_SECONDS)

    async def _settle(self, wave: Wave) -> None:
        """Waits until the sockets of the clients and calls are closed, at most
        SETTLED_SECONDS."""
        began = monotonic()
        while True:
            now = look(self.bridge.pid)
            wave.after_mb, wave.after_fds = now.memory_mb, now.fds
            wave.settled_seconds = now.at - began
            enough = self.idle_fds + LEFT_FDS
            if now.fds <= enough or wave.settled_seconds > SETTLED_SECONDS:
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def counters(self) -> dict[str, float]:
        """The bridge's own metrics of the hostile clients."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            text = await answer.text() if answer.status == 200 else ""
        wanted = ("bridge_limit_hits", "bridge_refusals", "bridge_protocol_errors")
        return {
            " ".join([family.name, *sample.labels.values()]): sample.value
            for family in text_string_to_metric_families(text)
            if family.name.startswith((*wanted, "bridge_calls"))
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    def broken(self) -> Iterator[str]:
        """The limits that were exceeded."""
        calm = self.waves[0]
        for wave in self.waves:
            for kind, texts in (("lost", wave.lost), ("harmed", wave.harmed)):
                for text in dict.fromkeys(texts):
                    yield f"{wave.name}: {texts.count(text)} calls {kind}: {text}"
            p95, peak = percentile(wave.errors_ms, 95), wave.peak_mb - calm.peak_mb
            if not wave.errors_ms or p95 > P95_MS:
                yield f"{wave.name}: belief error p95 {p95:.1f} ms"
            for way, values, usual in (
                ("caller->append", wave.up_ms, calm.up_ms),
                ("delta->media", wave.down_ms, calm.down_ms),
            ):
                for percent, more in ((50, LATER_P50_MS), (99, LATER_P99_MS)):
                    late = percentile(values, percent) - percentile(usual, percent)
                    if late > more:
                        yield f"{wave.name}: {way} p{percent} {late:.0f} ms later"
            if peak > PEAK_MB:
                yield f"{wave.name}: memory grew by {peak:.0f} MB"
            if wave.after_fds > self.idle_fds + LEFT_FDS:
                yield f"{wave.name}: {wave.after_fds - self.idle_fds} fds still open"
        *attacked, last = self.waves
        grown = last.after_mb - max(it.peak_mb for it in attacked)
        if grown > LEFT_MB:
            yield f"after the attacks memory grew by {grown:.0f} MB more"


def is_of(session: ModelSession, sid: str) -> bool:
    """The agent tests/bench/call_sid_agent.py has the call SID as its instructions."""
    return sid in str(session.session.get("instructions"))


async def run(names: Sequence[str], stderr: int, *, apart: bool = True) -> Bench:
    more = {
        "BRIDGE_PUBLIC_URL": PUBLIC,
        "TWILIO_AUTH_TOKEN": TOKEN,
        "TWILIO_ACCOUNT_SID": ACCOUNT,
        "BRIDGE_AGENT": AGENT,
        "OPENAI_API_KEY": "sk-sim",
    }
    behaviour = SCENE.behaviour(Random(0))
    async with (
        ModelServer(
            behaviour, keep_audio=False, record_appends=True, keep_sessions=10_000
        ) as model,
        bridge_process(model.url, more=more, stderr=stderr) as bridge,
    ):
        bench = Bench(bridge, model)
        await asyncio.sleep(1.0)
        bench.idle_fds = look(bridge.pid).fds
        await bench.wave("(to warm up)")
        bench.waves.clear()
        bench.idle_fds = look(bridge.pid).fds
        plan: list[tuple[str, Sequence[str], str]] = [("none", (), "")]
        if apart:
            plan += [(name, [name], ATTACKS[name][0]) for name in names]
        plan += [("all at once", names, ""), ("none again", (), "")]
        for name, attacks, about in plan:
            wave = await bench.wave(name, attacks, about)
            print(f"| {' | '.join(wave.row())} |", file=sys.stderr, flush=True)
        return bench


def complaints(log: bytes) -> Counter[str]:
    """The errors in the bridge's own log: an attack must not cause any."""
    found: Counter[str] = Counter()
    for line in log.decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {"level": "error", "event": line}
        if entry.get("level") in ("error", "critical"):
            raised = re.findall(
                r"^[ |]*(\w[\w.]*: .*)$", entry.get("exception", ""), re.M
            )
            found[": ".join([entry["event"], *raised[-1:]])] += 1
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help=f"attacks, with commas: {', '.join(ATTACKS)}"
    )
    parser.add_argument(
        "--together", action="store_true", help="only the wave with all attacks"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    chosen = parser.parse_args(arguments)
    # An abandoned connection attempt is not an error here.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    names = [it for it in ATTACKS if not chosen.only or it in chosen.only.split(",")]
    began = monotonic()
    with tempfile.TemporaryFile() as log:
        bench = asyncio.run(run(names, log.fileno(), apart=not chosen.together))
        log.seek(0)
        errors = complaints(log.read())
    print(markdown([wave.row() for wave in bench.waves], COLUMNS))
    for wave in bench.waves:
        if wave.outcomes:
            print(f"\n{wave.name}: {wave.about or 'all of the above'}")
            for line in in_words(wave.outcomes):
                print(f"  {line}")
            counted = (f"{name} {value:.0f}" for name, value in wave.counted.items())
            print(f"  the bridge counted: {', '.join(counted) or 'nothing'}")
    print()
    broken = [f"{n}x in the bridge's log: {it[:300]}" for it, n in errors.items()]
    broken += bench.broken()
    for text in broken:
        print(f"LIMIT EXCEEDED: {text}")
    print(f"\n{len(bench.waves) * CALLS} calls in {monotonic() - began:.0f} s.")
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(it) for it in bench.waves]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
