"""Load on a running server between both fakes: delays, errors, CPU and memory.

The standard workload: each call speaks 1 s every 8 s, each answer is 6 s of audio in
200 ms deltas at 4x real time, with the transcript. In one turn of five, the caller
interrupts the answer, so that clears and the model's belief are measured too.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic

from bridge.sim import belief
from bridge.sim.caller import Caller, CallRecord, random_number
from bridge.sim.load_burst import Burst
from bridge.sim.load_delays import (
    Delays,
    Timed,
    call_number,
    clear_delays,
    delays,
    down_delays,
    frames_late,
    p99_by_second,
    percentiles,
    up_delays,
)
from bridge.sim.load_monitor import LoadMonitor, Progress, Spent
from bridge.sim.load_report import BurstReport, Lateness, LoadReport, ServerCost
from bridge.sim.model import Behaviour, ModelServer, ModelSession, PlayRuler
from bridge.sim.ruler import BLOCK, ruler
from bridge.sim.twilio import steps

SPEECH_MS = 1000
TURN_SECONDS = 8.0
CUT_TURN_SECONDS = 4.0
"""A turn whose answer is interrupted: the next turn begins then."""

ANSWER_MS = 6000
RAMP_SECONDS = 0.05
"""Time between two calls: 20 per second, more than a Twilio account may place."""

SETTLE_SECONDS = 1.0
"""After the last call is placed: its setup is no part of the CPU that is measured."""

SETUP_SECONDS = 60.0
"""Time of a call besides its turns, before the caller gives up."""

BEHAVIOUR = Behaviour(fallback=[PlayRuler(ANSWER_MS)], delta_ms=200, speed=4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """`seconds`: during which all calls run. `ramp_seconds`: from the first call to the
    last. `barge_in_every`: one turn of so many is interrupted; 0: none. The figures are
    those after `settle_seconds`. `burst`: in the middle of what follows."""

    calls: int = 50
    seconds: float = 40.0
    ramp_seconds: float = 2.5
    barge_in_every: int = 5
    settle_seconds: float = SETTLE_SECONDS
    burst: Burst | None = None

    def __post_init__(self) -> None:
        if self.burst and self.burst_at < self.ramp_seconds + self.settle_seconds:
            needed = self.burst.total_seconds + self.settle_seconds
            raise ValueError(f"the burst needs a load of {needed:g} s at least")

    @property
    def all_calls(self) -> int:
        """The numbers of the burst's calls follow those of the others."""
        return self.calls + (self.burst.calls if self.burst else 0)

    @property
    def ends_at(self) -> float:
        """When the first call ends; as all times, in seconds since the first call."""
        return self.ramp_seconds + self.seconds

    @property
    def burst_at(self) -> float:
        """When the burst begins."""
        assert self.burst is not None
        rest = self.seconds - self.settle_seconds - self.burst.total_seconds
        return self.ramp_seconds + self.settle_seconds + rest / 2

    def script(self, number: int) -> list[steps.Step]:
        """The script of the nth call. It ends after all calls have run for
        `seconds`."""
        # The speech has the call's number, which matches sessions to calls.
        speech = steps.SayStep(ruler(number, SPEECH_MS))
        left = self.seconds + self.ramp_seconds - self.starts_at(number)
        script: list[steps.Step] = []
        turn = 0
        while left > 0:
            turn += 1
            # The last answer is heard to its end, because the model is not told what
            # the end of a call cuts.
            cut = (
                self.barge_in_every > 0
                and left > CUT_TURN_SECONDS
                and (number + turn) % self.barge_in_every == 0
            )
            seconds = CUT_TURN_SECONDS if cut else TURN_SECONDS
            script += [speech, steps.WaitStep(seconds - SPEECH_MS / 1000)]
            left -= seconds
        return [*script, steps.HangUpStep()]

    def starts_at(self, number: int) -> float:
        return self.ramp_seconds * (number - 1) / max(1, self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTarget:
    """A server to load. Either `webhook_url`, or `stream_url` for a media WebSocket
    without a webhook. `pid`: of the server, for its CPU and memory."""

    name: str
    webhook_url: str | None = None
    stream_url: str | None = None
    auth_token: str | None = None
    signed_origin: str | None = None
    allow_ws: bool = False
    pid: int | None = None

    def caller(self, max_seconds: float) -> Caller:
        stream = self.stream_url or ""
        origin = stream.replace("ws", "http", 1)
        document = f'<Response><Connect><Stream url="{stream}"/></Connect></Response>'
        return Caller(
            webhook_url=self.webhook_url or origin,
            document=document if self.webhook_url is None else None,
            auth_token=self.auth_token,
            signed_origin=self.signed_origin,
            allow_ws=self.allow_ws,
            from_number=random_number(),
            keep_frame_times=True,
            max_seconds=max_seconds,
        )


async def measure(
    target: LoadTarget,
    model: ModelServer,
    plan: LoadPlan,
    *,
    placement: str | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Place the calls on a server whose model is `model` (with record_appends)."""
    model.sessions.clear()  # of a load before: its calls have the same numbers
    monitor = LoadMonitor(target.pid, model, progress)
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would make the fakes late
    try:
        async with asyncio.TaskGroup() as tasks:
            monitor.start(tasks)
            placed = await _place_all(tasks, target, plan, monitor)
            await asyncio.wait(placed)
            monitor.stop()
    finally:
        gc.enable()  # what is frozen stays so: other code may have frozen objects, too
    records = [task.result() for task in placed]
    return _report(target, plan, records, model, monitor, placement)


async def _place_all(
    tasks: asyncio.TaskGroup, target: LoadTarget, plan: LoadPlan, monitor: LoadMonitor
) -> list[asyncio.Task[CallRecord]]:
    """Returns all calls, in the order of their numbers, when the first one ends."""
    placed = []
    limit = plan.ends_at + TURN_SECONDS + SETUP_SECONDS
    for number in range(1, plan.calls + 1):
        await _until(monitor.began + plan.starts_at(number))
        call = target.caller(limit).call(plan.script(number))
        placed.append(tasks.create_task(call))
    await asyncio.sleep(plan.settle_seconds)
    monitor.mark()
    ends_at = monitor.began + plan.ends_at
    if plan.burst is not None:
        begin = monitor.began + plan.burst_at
        await _until(begin)
        monitor.mark()
        burst = []
        for index in range(plan.burst.calls):
            await _until(begin + plan.burst.starts_at(index))
            caller = target.caller(plan.burst.call_seconds + SETUP_SECONDS)
            call = caller.call(plan.burst.script(plan.calls + 1 + index))
            burst.append(tasks.create_task(call))
        await asyncio.wait(burst, timeout=max(0.0, ends_at - monotonic()))
        monitor.mark()
        placed += burst
    await _until(ends_at)
    monitor.mark()
    return placed


async def _until(at: float) -> None:
    await asyncio.sleep(at - monotonic())


# --- the report ---------------------------------------------------------------------


class _Found:
    """What some of the calls and their sessions have shown."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.warnings: Counter[str] = Counter()
        self.harmed_ms = 0.0
        self.answers = self.uncorrected = self.underruns = 0
        self.underrun_seconds = 0.0
        self.errors_ms: list[float] = []
        self.setup_ms: list[float] = []
        self.delays: dict[str, list[Timed]] = {
            name: [] for name in ("in", "out", "clear", "frames")
        }

    def between(self, begin: float, end: float) -> dict[str, list[Timed]]:
        return {
            name: [it for it in timed if begin <= it[0] < end]
            for name, timed in self.delays.items()
        }

    def add(
        self, number: int, record: CallRecord, sessions: Sequence[ModelSession]
    ) -> None:
        self.delays["frames"] += frames_late(record)
        self.warnings.update({f"{it.code} {it.text}" for it in record.warnings})
        self.underruns += record.underruns.count
        self.underrun_seconds += record.underruns.seconds
        self.failed += [f"call {number}: {text}" for text in _faults(record, sessions)]
        if not sessions:
            return
        session = sessions[-1]
        verdict = belief.judge(record.heard, session.responses, 0)
        self.harmed_ms += verdict.lost_ms + verdict.repeated_ms + verdict.stray_ms
        self.answers += sum(it.heard_ms > 0 for it in verdict.beliefs)
        self.errors_ms += [abs(it.error_ms) for it in verdict.beliefs if it.cut]
        self.uncorrected += sum(it.uncorrected for it in verdict.beliefs)
        if session.append_at:
            self.setup_ms.append(1000 * (session.append_at[0] - record.started_at))
        self.delays["in"] += up_delays(record, session, number)
        self.delays["out"] += down_delays(record, session)
        self.delays["clear"] += clear_delays(record, session)


def _faults(record: CallRecord, sessions: Sequence[ModelSession]) -> Iterator[str]:
    if record.error or record.ended_by != "caller":
        yield record.error or f"ended by {record.ended_by}"
    if not sessions:
        yield "the model got none of its audio (as audio/pcmu)"
    elif len(sessions) > 1:
        yield f"{len(sessions)} sessions of the model instead of one"


def _report(
    target: LoadTarget,
    plan: LoadPlan,
    records: Sequence[CallRecord],
    model: ModelServer,
    monitor: LoadMonitor,
    placement: str | None,
) -> LoadReport:
    sessions: dict[int | None, list[ModelSession]] = {}
    for session in model.sessions:
        sessions.setdefault(call_number(session), []).append(session)
    found, of_burst = _Found(), _Found()
    for number, record in enumerate(records, 1):
        group = found if number <= plan.calls else of_burst
        group.add(number, record, sessions.get(number, []))
    full = found.between(monitor.marks[0], inf)
    frames = [*full["frames"], *of_burst.delays["frames"]]
    late = [it for it in monitor.late if it[0] >= monitor.marks[0]]
    spent = [monitor.spent(phase) for phase in range(monitor.phases)]
    cost = _cost(plan, monitor, spent)
    fakes = sum(spent, Spent())
    return LoadReport(
        server=target.name,
        calls=plan.calls,
        seconds=plan.seconds,
        ramp_seconds=plan.ramp_seconds,
        barge_in_every=plan.barge_in_every,
        placement=placement,
        failed=found.failed,
        warnings=_counted(found.warnings + of_burst.warnings),
        model_errors=sum(len(session.errors_sent) for session in model.sessions),
        lost_or_repeated_bytes=round((found.harmed_ms + of_burst.harmed_ms) * BLOCK),
        answers=found.answers,
        caller_to_model=_of(full["in"]),
        model_to_caller=_of(full["out"]),
        clear=_of(full["clear"]),
        belief_error=delays(found.errors_ms),
        uncorrected=found.uncorrected,
        underruns=found.underruns,
        underrun_seconds=found.underrun_seconds,
        cost=cost,
        fakes=Lateness(_of(late), _of(frames), 100 * fakes.fakes / fakes.seconds),
        burst=_of_burst(plan, found, of_burst, monitor, cost),
        samples=monitor.samples,
        percentiles={
            **{name: percentiles(full[name]) for name in ("in", "out", "clear")},
            "fakes": percentiles(late),
        },
        p99_by_second=_by_second(found, of_burst, monitor),
    )


def _counted(warnings: Counter[str]) -> list[str]:
    return [f"{text} ({n} calls)" for text, n in warnings.items()]


def _of(timed: Sequence[Timed]) -> Delays:
    return delays([ms for _, ms in timed])


def _by_second(
    found: _Found, of_burst: _Found, monitor: LoadMonitor
) -> dict[str, list[float | None]]:
    return {
        name: p99_by_second(timed, monitor.began)
        for name, timed in {
            **found.delays,
            "fakes": monitor.late,
            "burst in": of_burst.delays["in"],
            "burst out": of_burst.delays["out"],
        }.items()
    }


def _cost(plan: LoadPlan, monitor: LoadMonitor, spent: Sequence[Spent]) -> ServerCost:
    """`spent` in each phase. The burst is no part of the cost of the other calls."""
    cpu, before, full = None, monitor.memory_before_mb, monitor.memory_full_mb
    used = sum(spent[::2], Spent())
    if used.server is not None and used.seconds:
        cpu = 1000 * used.server / used.seconds / plan.calls
    per_call = None
    if before is not None and full is not None:
        per_call = (full - before) / plan.calls
    return ServerCost(cpu, before, full, per_call)


def _of_burst(
    plan: LoadPlan,
    found: _Found,
    of_burst: _Found,
    monitor: LoadMonitor,
    cost: ServerCost,
) -> BurstReport | None:
    if plan.burst is None:
        return None
    meanwhile = found.between(*monitor.marks[1:3])
    spent, cpu = monitor.spent(1), None
    if spent.server is not None and cost.cpu_ms_per_call_second is not None:
        others = cost.cpu_ms_per_call_second * plan.calls * spent.seconds
        cpu = (1000 * spent.server - others) / plan.burst.calls
    return BurstReport(
        what=str(plan.burst),
        calls=plan.burst.calls,
        failed=of_burst.failed,
        setup=delays(of_burst.setup_ms),
        caller_to_model=_of(of_burst.delays["in"]),
        model_to_caller=_of(of_burst.delays["out"]),
        cpu_ms_per_call=cpu,
        others_caller_to_model=_of(meanwhile["in"]),
        others_model_to_caller=_of(meanwhile["out"]),
        others_clear=_of(meanwhile["clear"]),
    )
