"""The effect of a failing model on a caller: every phase of a call x every fault.

    .venv/bin/python -m tests.bench.faults [--runs 20] [--only tool,freeze] [--quick]

Real sockets; bridge and fakes in one process; each run has its own bridge and model.
Caller and agent speak counted words (bridge/sim/counting.py), so every word is checked:
in the audio that the caller heard, and in the conversation of the last session.

The SIP calls of tests.bench.sip_faults run at the same time in a process of their own,
so that neither delays the other. Exits 1 if a call is lost or a SIP call is wrong.
"""

import argparse
import asyncio
import logging
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import Any, TypeAlias

from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge.sim import counting
from bridge.sim.belief import percentile
from bridge.sim.caller import CallRecord, PlacedCall
from bridge.sim.counting import CountedWord, utterance
from bridge.sim.model import Behaviour, Fault, ModelServer, ModelSession, RememberedItem
from bridge.sim.realtime import faults
from bridge.sim.twilio import steps
from bridge.telemetry import log
from tests.bench.counter import RESULT, TOOL_SECONDS
from tests.e2e.bridge import RunningBridge, bridge
from tests.support.counted_calls import (
    ANSWER_MS,
    CALLER_WORDS,
    WORDS,
    hear_out,
    say,
)

RUNS = 20
QUICK_RUNS = 3
AT_ONCE = 40
STAGGER_SECONDS = 0.15

ANSWERS = 3  # greeting and two
SLOW, QUICK = 1.5, 8.0
"""Speed of the model, in multiples of real time. SLOW: the generation of an answer
takes long. QUICK: all of an answer is at Twilio at once."""

LOOK_SECONDS = 0.01
PHASE_SECONDS = 20.0
"""Longest wait for the phase of the call in which the fault is to occur."""
CALL_SECONDS = 90.0
BACK_SECONDS = 1.5
"""Limit for the time until a dropped session is replaced, p95 (issue 4)."""


# --- the call -----------------------------------------------------------------------


def script() -> list[steps.Step]:
    """The greeting, a pause, and two questions with their answers."""
    turns = [*hear_out(), steps.WaitStep(1.5), say(1), *hear_out(), say(2), *hear_out()]
    return [*turns, steps.HangUpStep()]


@dataclass(slots=True)
class Run:
    """One call, its fault, and its sessions."""

    phase: str
    fault: str
    record: CallRecord
    sessions: Sequence[ModelSession] = ()
    fault_at: float | None = None
    tool_began: asyncio.Event = field(default_factory=asyncio.Event)


# --- the moments of the faults --------------------------------------------------------

Moment: TypeAlias = Callable[[Run, ModelServer], Awaitable[None]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PHASE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the fakes have no events
            await asyncio.sleep(LOOK_SECONDS)


def first_audio_of(server: ModelServer, answer: int) -> bool:
    responses = server.sessions[0].responses if server.sessions else []
    return len(responses) >= answer and responses[answer - 1].first_audio_at is not None


def generating(answer: int) -> Moment:
    """The caller has heard 0.7 s of the answer, and the model still generates it."""

    async def moment(run: Run, server: ModelServer) -> None:
        await until(lambda: first_audio_of(server, answer))
        await asyncio.sleep(0.7)

    return moment


async def listening(run: Run, server: ModelServer) -> None:
    """0.5 s after the greeting; both sides are silent for one more second."""
    await until(lambda: first_audio_of(server, 1))
    await asyncio.sleep(ANSWER_MS / 1000 + 0.5)


async def in_mid_sentence(run: Run, server: ModelServer) -> None:
    await until(lambda: bool(server.sessions and server.sessions[0].speech_started_at))
    await asyncio.sleep(0.5)


async def tool_running(run: Run, server: ModelServer) -> None:
    async with asyncio.timeout(PHASE_SECONDS):
        await run.tool_began.wait()
    await asyncio.sleep(0.3)


async def playing(run: Run, server: ModelServer) -> None:
    """All of the answer is at Twilio, and the caller has heard little of it."""
    await until(
        lambda: (
            first_audio_of(server, 2)
            and server.sessions[0].responses[1].finished_at is not None
        )
    )
    await asyncio.sleep(0.3)


@dataclass(frozen=True, slots=True)
class Phase:
    moment: Moment | None  # None: while the first session is dialled
    speed: float = 4.0
    tool: bool = False

    def behaviour(self) -> Behaviour:
        turns = frozenset({1} if self.tool else ())
        return Behaviour(
            answer=counting.CountingAgent(WORDS, turns),
            recogniser=counting.recognise,
            speed=self.speed,
        )


PHASES = {
    "connecting": Phase(None),
    "greeting": Phase(generating(1), speed=SLOW),
    "listening": Phase(listening),
    "mid-sentence": Phase(in_mid_sentence),
    "tool running": Phase(tool_running, tool=True),
    "generating": Phase(generating(2), speed=SLOW),
    "playing": Phase(playing, speed=QUICK),
}


# --- the faults -----------------------------------------------------------------------

Inject: TypeAlias = Callable[[ModelServer, bool], Coroutine[None, None, None]]
"""Causes the fault; (the model, whether the first session is being dialled)."""


def session_fault(fault: Fault) -> Inject:
    async def inject(server: ModelServer, connecting: bool) -> None:
        if connecting:
            server.inject_next(fault)
        else:
            server.inject(fault)

    return inject


def refused_with(status: int) -> Inject:
    """The model refuses two handshakes with this status and accepts the third."""

    async def inject(server: ModelServer, connecting: bool) -> None:
        server.handshakes.answer(status, times=2)
        server.inject(faults.drop)

    return inject


async def hang(server: ModelServer, connecting: bool) -> None:
    if connecting:
        server.handshakes.leave_unanswered()
    else:
        server.inject(faults.freeze)


async def refuse_tcp(server: ModelServer, connecting: bool) -> None:
    server.inject(faults.drop)
    await server.refuse_tcp(1.0)


async def nothing(server: ModelServer, connecting: bool) -> None:
    """No fault: the other calls are compared with this call."""


NO_FAULT = "none"
FAULTS: dict[str, Inject] = {
    "reset": session_fault(faults.drop),
    "close 1001": session_fault(faults.closing(1001, "going away")),
    "close 1011": session_fault(faults.closing(1011, "internal error")),
    "expired": session_fault(faults.expire),
    "freeze": hang,
    "refused 1 s": refuse_tcp,
    "429 x2": refused_with(429),
    "503 x2": refused_with(503),
    "mute": session_fault(faults.mute),
}
DROPS = ("reset", "close 1001", "close 1011", "expired")
"""After these faults the model accepts a new connection at once."""


async def run_once(phase: str, fault: str) -> Run:
    """One call with its own bridge and model."""
    chosen = PHASES[phase]
    began = asyncio.Event()

    @function_tool
    async def look_up(turn: int) -> str:
        """Looks something up."""
        began.set()
        await asyncio.sleep(TOOL_SECONDS)
        return RESULT

    agent: RealtimeAgent[Any] = RealtimeAgent(
        name="counter", instructions="You count.", tools=[look_up]
    )
    async with bridge(chosen.behaviour(), agent=agent, greeting="Greet them.") as place:
        placed = PlacedCall(place.caller(max_seconds=CALL_SECONDS))
        run = Run(phase, fault, placed.record, place.model.sessions)
        run.tool_began = began
        await _call(run, place, placed)
        for session in place.model.open:
            if session.frozen:
                session.abort("frozen")
    return run


async def _call(run: Run, place: RunningBridge, placed: PlacedCall) -> None:
    inject = FAULTS.get(run.fault, nothing)
    moment = PHASES[run.phase].moment
    async with asyncio.TaskGroup() as tasks:
        if moment is None:
            run.fault_at = monotonic()
            injecting = tasks.create_task(inject(place.model, True))
            await asyncio.sleep(0.01)  # the fault must be set before the call begins
        else:
            injecting = tasks.create_task(_inject_at(moment, inject, run, place.model))
        await placed.run(script())
        injecting.cancel()


async def _inject_at(
    moment: Moment, inject: Inject, run: Run, server: ModelServer
) -> None:
    try:
        await moment(run, server)
    except TimeoutError:
        return  # the call never reached the phase: it is judged without the fault
    run.fault_at = monotonic()
    await inject(server, False)


# --- judging ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """The results of one call."""

    lost: str | None  # why; None: the call was not lost
    silence: float  # s in which neither side spoke
    ready: float | None  # s from the fault to a configured session
    heard: counting.WordComparison  # the agent's words, as the caller heard them
    understood: counting.WordComparison  # the caller's words, as the model has them
    differences: tuple[str, ...]  # of the last session's conversation from the audio
    errors: tuple[str, ...]  # of the model
    sessions: int


def judge(
    run: Run, *, answers: int = ANSWERS, turns: int = ANSWERS - 1, call: int = 1
) -> Verdict:
    heard = [
        w for w in counting.understood_words(run.record.heard) if w.speaker == "agent"
    ]
    spoken = [
        word
        for turn in range(1, turns + 1)
        for word in utterance("caller", call, turn, CALLER_WORDS)
    ]
    wanted = [
        word
        for turn in range(1, answers + 1)
        for word in utterance("agent", 0, turn, WORDS)
    ]
    ready = [it for it in run.sessions if it.configured_at is not None]
    memory = ready[-1].conversation if ready else ()
    understood = [
        word
        for item in memory
        if item.kind == "user"
        for word in counting.parse_words(item.text)
    ]
    tool = PHASES[run.phase].tool if run.phase in PHASES else False
    differences = _differences(memory, conversation_of(heard, spoken, tool=tool))
    return Verdict(
        lost=_lost(run.record),
        silence=silence(run.record),
        ready=_ready(run),
        heard=counting.compare_words(wanted, heard),
        understood=counting.compare_words(spoken, understood),
        differences=differences,
        errors=tuple(
            f"{error['code']}: {error['message']}"
            for session in run.sessions
            for error in session.errors_sent
            if error["code"] != "session_expired"
        ),
        sessions=len(run.sessions),
    )


def conversation_of(
    heard: Sequence[CountedWord], spoken: Sequence[CountedWord], *, tool: bool
) -> list[str]:
    """The spoken conversation, in order: the greeting, then questions and answers."""
    items = []
    for turn in range(1, max((w.turn for w in heard), default=0) + 1):
        answer = dict.fromkeys(w for w in heard if w.turn == turn)
        items.append(RememberedItem("", "assistant", counting.text(answer)))
        question = [w for w in spoken if w.turn == turn]
        items.append(RememberedItem("", "user", counting.text(question)))
        if tool and turn == 1:
            name, call = counting.TOOL, '{"turn":1}'
            items.append(RememberedItem("", "function_call", call, name=name))
            result = RememberedItem("", "function_call_output", RESULT, name=name)
            items.append(result)
    return counting.conversation_lines(items)


def _differences(
    memory: Sequence[RememberedItem], wanted: list[str]
) -> tuple[str, ...]:
    found = counting.conversation_lines(memory)
    if found == wanted:
        return ()
    missing, extra = Counter(wanted), Counter(found)
    return (
        *(f"- {line}" for line in (missing - extra)),
        *(f"+ {line}" for line in (extra - missing)),
    ) or ("in another order",)


def _lost(record: CallRecord) -> str | None:
    if record.ended_by != "caller":
        return f"ended by {record.ended_by}"
    if record.said_by_twilio or record.dials:
        return "plan B"
    if any(it.startswith("call") for it in record.timed_out):
        return "did not reach its end"
    return None


def silence(record: CallRecord) -> float:
    """Seconds of the call in which neither side was audible."""
    assert record.ended_at is not None
    sounds = [(run.start, run.end) for run in record.runs()]
    sounds += [(it.started_at, it.ended_at) for it in record.spoken]
    until, total = record.started_at, 0.0
    for begin, end in sorted(sounds):
        total += max(0.0, min(begin, record.ended_at) - until)
        until = max(until, end)
    return total + max(0.0, record.ended_at - until)


def _ready(run: Run) -> float | None:
    if run.fault_at is None:
        return None
    after = [
        it.configured_at
        for it in run.sessions
        if it.configured_at is not None and it.configured_at > run.fault_at
    ]
    return min(after) - run.fault_at if after else None


# --- the table ----------------------------------------------------------------------

COLUMNS = (
    "phase",
    "fault",
    "calls lost",
    "added silence p50/max s",
    "words lost/repeated/unasked",
    "caller's words lost/repeated",
    "conversation intact",
    "session ready p95 s",
    "model's errors",
)


@dataclass(frozen=True, slots=True)
class Cell:
    phase: str
    fault: str
    verdicts: Sequence[Verdict]
    usual: float  # silence of the same call without a fault

    @property
    def lost(self) -> int:
        return sum(it.lost is not None for it in self.verdicts)

    @property
    def ready(self) -> list[float]:
        return sorted(it.ready for it in self.verdicts if it.ready is not None)

    def row(self) -> tuple[str, ...]:
        them = self.verdicts
        # A lost call counts only as lost.
        alive = [it for it in them if it.lost is None]
        silences = [it.silence - self.usual for it in alive]
        heard = [it.heard for it in alive]
        understood = [it.understood for it in alive]
        lost = sum(len(it.lost) for it in heard)
        repeated = sum(len(it.repeated) for it in heard)
        strange = sum(len(it.strange) for it in heard)
        missed = sum(len(it.lost) for it in understood)
        twice = sum(len(it.repeated) + len(it.strange) for it in understood)
        intact = sum(not it.differences for it in alive)
        ready = f"{percentile(self.ready, 95):.2f}" if self.ready else "-"
        return (
            self.phase,
            self.fault,
            f"{self.lost}/{len(them)}",
            f"{median(silences):.2f} / {max(silences):.2f}" if silences else "-",
            f"{lost} / {repeated} / {strange}",
            f"{missed} / {twice}",
            f"{intact}/{len(them)}",
            ready,
            str(sum(len(it.errors) for it in them)),
        )

    def remarks(self) -> Iterator[str]:
        """The mistakes in this cell's calls: the six most frequent kinds, counted."""
        kinds: Counter[str] = Counter()
        for it in self.verdicts:
            if it.lost:
                kinds[f"call lost: {it.lost}"] += 1
            for text in it.differences:
                kinds[f"conversation: {text}"] += 1
            for text in it.errors:
                kinds[f"model: {text}"] += 1
            if it.lost:
                continue
            for what, words in (
                ("lost", it.heard.lost),
                ("repeated", it.heard.repeated),
                ("unasked", it.heard.strange),
                ("caller's, lost", it.understood.lost),
                ("caller's, repeated", it.understood.repeated),
            ):
                if words:
                    kinds[f"{what}: {counting.text(words)}"] += 1
            if not it.heard.in_order:
                kinds["words out of order"] += 1
        for text, count in kinds.most_common(6):
            yield f"{self.phase} / {self.fault}: {count}x {text}"


def markdown(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wanted(only: str, phase: str, fault: str) -> bool:
    """`only`: parts of names of phases and faults, with commas. If parts of phases are
    given, the phase must contain one of them; the same holds for faults."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    for value, known in ((phase, [*PHASES]), (fault, [*FAULTS])):
        named = [n for n in names if any(n in each for each in known)]
        if named and not any(name in value for name in named):
            return False
    return True


async def place_all(
    plan: Sequence[tuple[str, str]], at_once: int
) -> list[tuple[tuple[str, str], Verdict]]:
    """Judges each call when it ends, so that little memory is kept: the collection of
    much garbage would pause all running calls."""
    free = asyncio.Semaphore(at_once)

    async def one(phase: str, fault: str) -> Verdict:
        async with free:
            return judge(await run_once(phase, fault))

    async with asyncio.TaskGroup() as group:
        tasks = []
        for phase, fault in plan:
            tasks.append(group.create_task(one(phase, fault)))
            await asyncio.sleep(STAGGER_SECONDS)
    verdicts = [task.result() for task in tasks]
    return list(zip(plan, verdicts, strict=True))


async def watch_loop(lateness: list[float]) -> None:
    """Appends how late the event loop wakes, in s: the machine's part of all delays."""
    while True:
        due = monotonic() + LOOK_SECONDS
        await asyncio.sleep(LOOK_SECONDS)
        lateness.append(monotonic() - due)


async def run_sip_calls(chosen: argparse.Namespace) -> tuple[str, bool]:
    """Returns the table of the SIP calls, and whether all are right."""
    given = [f"--runs={chosen.runs}", f"--only={chosen.only}"]
    given += ["--quick"] if chosen.quick else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.sip_faults", *given, stdout=PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return output.decode(), process.returncode == 0


async def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="calls for each cell")
    parser.add_argument(
        "--only", default="", help="parts of names of phases and faults, with commas"
    )
    parser.add_argument(
        "--at-once", type=int, default=AT_ONCE, help="calls at the same time"
    )
    parser.add_argument("--quick", action="store_true", help="3 calls for each cell")
    chosen = parser.parse_args(arguments)
    runs = QUICK_RUNS if chosen.quick else chosen.runs
    cells = [(p, f) for p in PHASES for f in FAULTS if wanted(chosen.only, p, f)]
    plan = [(phase, NO_FAULT) for phase in dict.fromkeys(p for p, _ in cells)] + cells
    began = monotonic()
    # Cell after cell in turn, so that other load of the machine affects all cells.
    lateness: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        sip_calls = tasks.create_task(run_sip_calls(chosen))
        watching = tasks.create_task(watch_loop(lateness))
        done = await place_all(plan * runs, chosen.at_once)
        watching.cancel()
    verdicts: dict[tuple[str, str], list[Verdict]] = {cell: [] for cell in plan}
    for of, verdict in done:
        verdicts[of].append(verdict)
    usual = {
        phase: median(it.silence for it in of)
        for (phase, fault), of in verdicts.items()
        if fault == NO_FAULT
    }
    table = [Cell(*cell, verdicts[cell], usual[cell[0]]) for cell in plan]
    print(markdown([cell.row() for cell in table], COLUMNS))
    print()
    for cell in table:
        for remark in cell.remarks():
            print(remark)
    lost = sum(cell.lost for cell in table)
    ready = sorted(s for cell in table if cell.fault in DROPS for s in cell.ready)
    print(
        f"\n{len(done)} calls in {monotonic() - began:.0f} s, {lost} lost; after a "
        f"dropped session the next was ready in {percentile(ready, 95):.2f} s (p95; "
        f"the limit is {BACK_SECONDS:g} s).\nThe event loop was late by at most "
        f"{max(lateness):.2f} s, and by {percentile(sorted(lateness), 99.9):.2f} s "
        "(p99.9): the machine may have caused a maximum of the table."
    )
    sip_table, sip_right = sip_calls.result()
    print(f"\n{sip_table}")
    return 0 if sip_right and not lost else 1


if __name__ == "__main__":
    log.configure("pretty", logging.CRITICAL)
    sys.exit(asyncio.run(main()))
