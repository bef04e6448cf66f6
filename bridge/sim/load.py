"""Load on a running bridge between both fakes: delays, errors, CPU and memory.

The standard workload: each call speaks 1 s every 8 s, each answer is 6 s of audio in
200 ms deltas at 4x real time, with the transcript.
"""

import asyncio
import bisect
import itertools
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

from rich.table import Table

from bridge.sim.caller import Caller, CallRecord, random_number
from bridge.sim.model import Behaviour, ModelServer, ModelSession, PlayRuler
from bridge.sim.ruler import read_ruler, ruler
from bridge.sim.twilio import steps

SPEECH_MS = 1000
TURN_SECONDS = 8.0
ANSWER_MS = 6000
START_SECONDS = 30.0
"""Time for a bridge to start on a loaded machine; most of it is spent on imports."""

RAMP_SECONDS = 0.05
"""Time between two calls: 20 per second, more than a Twilio account may place."""

BEHAVIOUR = Behaviour(fallback=[PlayRuler(ANSWER_MS)], delta_ms=200, speed=4.0)


@dataclass(frozen=True, slots=True)
class Delays:
    """The delays of one direction, in ms."""

    count: int
    p50: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    calls: int
    seconds: float
    failed: list[str]
    model_errors: int
    lost_or_repeated_bytes: int
    answers: int
    caller_to_model: Delays
    """From the sending of a frame by the caller to its append at the model: the time in
    the bridge, in both sockets and in the fakes."""
    model_to_caller: Delays
    """From the sending of a delta to the arrival of its last audio at the phone."""
    cpu_ms_per_call_second: float | None
    """CPU time of the bridge's process while all calls run."""
    memory_mb: float | None


@dataclass(frozen=True, slots=True)
class BridgeProcess:
    """A bridge in a process of its own, as a user would start it."""

    webhook_url: str
    pid: int


@asynccontextmanager
async def bridge_process(
    model_url: str,
    *,
    max_calls: int = 200,
    more: Mapping[str, str] | None = None,
    stderr: int = asyncio.subprocess.DEVNULL,
) -> AsyncIterator[BridgeProcess]:
    """`bridge serve` on a free port in front of the model at `model_url`.

    Requests are unsigned unless the environment in `more` says otherwise.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    vendors = ("BRIDGE_", "OPENAI_", "TWILIO_")
    environ = {
        **{name: it for name, it in os.environ.items() if not name.startswith(vendors)},
        "BRIDGE_HOST": "127.0.0.1",
        "BRIDGE_PORT": str(port),
        "BRIDGE_MODEL_URL": model_url,
        "BRIDGE_GREETING": "",
        "BRIDGE_MAX_CALLS": str(max_calls),
        "BRIDGE_DRAIN_SECONDS": "0",
        **(more or {"BRIDGE_INSECURE": "1"}),
    }
    with tempfile.TemporaryDirectory() as folder:
        # Another directory, so that no .env file of the user applies.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge.cli.commands", "serve"),
            env=environ,
            cwd=folder,
            stderr=stderr,
        )
        try:
            await _listening(port)
            yield BridgeProcess(f"http://127.0.0.1:{port}/voice", process.pid)
        finally:
            process.terminate()
            await process.wait()


async def _listening(port: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


async def measure(
    bridge: BridgeProcess, model: ModelServer, *, calls: int, seconds: float
) -> LoadReport:
    """Place the calls on a bridge whose model is `model` (with record_appends)."""
    pid = bridge.pid
    turns = max(1, int(seconds // TURN_SECONDS))
    async with asyncio.TaskGroup() as tasks:
        placed = []
        for number in range(1, calls + 1):
            caller = Caller(
                webhook_url=bridge.webhook_url,
                from_number=random_number(),
                keep_frame_times=True,
            )
            work = caller.call(_script(number, turns))
            placed.append(tasks.create_task(work))
            await asyncio.sleep(RAMP_SECONDS)
        before, since = _cpu_seconds(pid), monotonic()
        await asyncio.sleep(max(1.0, turns * TURN_SECONDS - calls * RAMP_SECONDS - 2))
        spent, lasted = _cpu_seconds(pid), monotonic() - since
        memory = _memory_mb(pid)
    records = [task.result() for task in placed]
    cpu = None
    if before is not None and spent is not None:
        cpu = 1000 * (spent - before) / lasted / calls
    return _report(records, model, turns * TURN_SECONDS, cpu, memory)


def _script(number: int, turns: int) -> list[steps.Step]:
    # The speech carries the call's number, which matches sessions to calls.
    speech = ruler(number, SPEECH_MS)
    turn: list[steps.Step] = [
        steps.SayStep(speech),
        steps.WaitStep(TURN_SECONDS - SPEECH_MS / 1000),
    ]
    return [*turn * turns, steps.HangUpStep()]


def _report(
    records: Sequence[CallRecord],
    model: ModelServer,
    seconds: float,
    cpu: float | None,
    memory: float | None,
) -> LoadReport:
    sessions = {_number_of(session): session for session in model.sessions}
    up: list[float] = []
    down: list[float] = []
    failed = []
    harmed = answers = 0
    for number, record in enumerate(records, 1):
        if record.error or record.ended_by != "caller":
            failed.append(record.error or f"ended by {record.ended_by}")
        session = sessions.get(number)
        if session is None:
            failed.append(f"call {number}: the model got none of its audio")
            continue
        heard = read_ruler(record.heard)
        harmed += heard.lost_bytes + heard.repeated_bytes + heard.stray
        answers += len(heard.heard_ms)
        up += up_delays(record, session)
        down += down_delays(record, session)
    return LoadReport(
        calls=len(records),
        seconds=seconds,
        failed=failed,
        model_errors=sum(len(session.errors_sent) for session in model.sessions),
        lost_or_repeated_bytes=harmed,
        answers=answers,
        caller_to_model=delays(up),
        model_to_caller=delays(down),
        cpu_ms_per_call_second=cpu,
        memory_mb=memory,
    )


def _number_of(session: ModelSession) -> int | None:
    said = read_ruler(bytes(session.caller_audio[: 8 * 4000])).heard_ms
    return max(said, key=lambda number: said[number]) if said else None


def up_delays(record: CallRecord, session: ModelSession) -> Iterator[float]:
    """Delay of each frame, without the first second, whose frames waited for the
    model."""
    pairs = zip(record.frame_sent_at, session.append_at, strict=False)
    for sent, arrived in itertools.islice(pairs, 50, None):
        yield 1000 * (arrived - sent)


def down_delays(record: CallRecord, session: ModelSession) -> Iterator[float]:
    arrived_bytes = list(itertools.accumulate(size for _, size in record.media_in))
    sent_bytes = 0
    for sent_at, _, delta in session.sent_deltas:
        sent_bytes += len(delta)
        at = bisect.bisect_left(arrived_bytes, sent_bytes)
        if at < len(record.media_in):
            yield 1000 * (record.media_in[at][0] - sent_at)


def delays(values: list[float]) -> Delays:
    values.sort()
    if not values:
        return Delays(0, 0.0, 0.0, 0.0)
    last = len(values) - 1
    p99 = values[min(last, int(0.99 * len(values)))]
    return Delays(len(values), values[len(values) // 2], p99, values[-1])


def _cpu_seconds(pid: int) -> float | None:
    """User and system time of a process; None without /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float | None:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    line = next(it for it in status.read_text().splitlines() if it.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def render(report: LoadReport) -> Table:
    """The report for a terminal."""
    table = Table(box=None, show_header=False)
    rows = [
        ("calls", f"{report.calls} for {report.seconds:.0f} s"),
        ("answers heard", str(report.answers)),
        ("calls failed", str(len(report.failed))),
        ("errors of the model", str(report.model_errors)),
        ("bytes lost or repeated", str(report.lost_or_repeated_bytes)),
        ("caller to model", _row(report.caller_to_model)),
        ("model to caller", _row(report.model_to_caller)),
    ]
    if report.cpu_ms_per_call_second is not None:
        rows.append(("CPU per call-second", f"{report.cpu_ms_per_call_second:.2f} ms"))
    if report.memory_mb is not None:
        rows.append(("memory", f"{report.memory_mb:.0f} MB"))
    for row in rows:
        table.add_row(*row)
    return table


def _row(delays: Delays) -> str:
    return (
        f"p50 {delays.p50:.2f} ms, p99 {delays.p99:.2f} ms, max {delays.most:.2f} ms "
        f"({delays.count})"
    )


def as_json(report: LoadReport) -> str:
    return json.dumps(asdict(report), indent=2)
