"""`bridge sim accuracy`: does the model believe what the caller really heard?

Places calls to a given bridge, between a fake model and a fake caller. The belief is
read from the model's items, the truth from the audio that the caller heard: each
millisecond of it carries its own position.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from random import Random
from time import monotonic
from typing import Protocol

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bridge.sim.belief import (
    Belief,
    BeliefReport,
    Row,
    Verdict,
    judge,
    report,
)
from bridge.sim.caller import Caller, CallRecord, random_number
from bridge.sim.model import ModelServer
from bridge.sim.realtime.items import ResponseRecord
from bridge.sim.scenes import (
    LOSSY_NETWORKS,
    NETWORKS,
    SCENES,
    Scene,
    label,
    lossy,
    script,
)
from bridge.sim.twilio.network import Network

__all__ = [
    "LOSSY_NETWORKS",
    "NETWORKS",
    "SCENES",
    "Belief",
    "BeliefReport",
    "BridgeFactory",
    "Row",
    "Scene",
    "Verdict",
    "as_json",
    "lossy",
    "measure",
    "render",
]

STAGGER = 1.5  # s; calls placed at once begin at random times within this
TURN_SECONDS = 5.0  # maximum from the caller's speech to the first audio of the answer
SETUP_SECONDS = 30.0  # time of a call besides its turns
TICK = 0.01  # s between two measurements of the event loop's delay
BUSY_MS = 50.0  # delay of the event loop that a failed report mentions
WORST_SHOWN = 10


class BridgeFactory(Protocol):
    """A context manager factory that runs a bridge in front of the model at this URL.

    Yields the URL of the bridge's voice webhook, and the auth token for its signatures
    or None.
    """

    def __call__(
        self, model_url: str
    ) -> AbstractAsyncContextManager[tuple[str, str | None]]: ...


Progress = Callable[[int, int], None]
"""Called with (finished calls, all calls)."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A call to place."""

    scene: Scene
    network: Network
    number: int  # within the calls of the same scene and network
    interruptions: int
    seed: int
    frame_playout: bool

    def random(self) -> Random:
        """The same randomness for this call, whatever else is measured."""
        where = f"{self.scene.name} {label(self.network)}"
        return Random(f"{self.seed} {where} {self.number}")


@dataclass(frozen=True, slots=True)
class _Placed:
    """A finished call, not judged yet: reading its audio would disturb the other
    calls."""

    plan: _Plan
    record: CallRecord
    sessions: int
    responses: Sequence[ResponseRecord]
    errors: Sequence[str]


# --- measuring ----------------------------------------------------------------------


async def measure(
    start_bridge: BridgeFactory,
    *,
    scenes: Sequence[Scene] = SCENES,
    networks: Sequence[Network] = NETWORKS,
    calls: int = 3,
    interruptions: int = 8,
    seed: int = 1,
    at_once: int = 12,
    frame_playout: bool = False,
    progress: Progress | None = None,
) -> BeliefReport:
    """Place `calls` calls per scene and network, `at_once` concurrently, and judge
    them."""
    plans = [
        _Plan(scene, network, number, interruptions, seed, frame_playout)
        for scene in scenes
        for network in networks
        for number in range(1, calls + 1)
    ]
    began = monotonic()
    free = asyncio.Semaphore(at_once)
    finished = 0

    async def place(plan: _Plan) -> _Placed:
        nonlocal finished
        async with free:
            placed = await _place(plan, start_bridge)
        finished += 1
        if progress is not None:
            progress(finished, len(plans))
        return placed

    lateness = [0.0]
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch_loop(lateness))
        async with asyncio.TaskGroup() as placing:
            tasks = [placing.create_task(place(plan)) for plan in plans]
        watch.cancel()
    seconds = monotonic() - began
    return report(
        [_judge(task.result()) for task in tasks],
        frame_playout=frame_playout,
        seconds=seconds,
        late_ms=lateness[0] * 1000,
        stops=any(network.longest_stop_ms for network in networks),
    )


async def _place(plan: _Plan, start_bridge: BridgeFactory) -> _Placed:
    """Place one call. It has its own model, because ruler numbers count per session."""
    random = plan.random()
    behaviour = plan.scene.behaviour(random)
    network = replace(plan.network, seed=random.getrandbits(32))
    steps = list(script(plan.scene, behaviour, network, plan.interruptions, random))
    turn = TURN_SECONDS + plan.scene.seconds + plan.scene.stall_seconds
    turn += plan.network.longest_stop_ms / 1000
    await asyncio.sleep(random.uniform(0, STAGGER))
    async with (
        ModelServer(behaviour, keep_audio=False) as model,
        start_bridge(model.url) as (webhook_url, auth_token),
    ):
        caller = Caller(
            webhook_url=webhook_url,
            from_number=random_number(),
            auth_token=auth_token,
            network=network,
            frame_playout=plan.frame_playout,
            max_seconds=SETUP_SECONDS + (plan.interruptions + 1) * turn,
        )
        record = await caller.call(steps)
    return _Placed(
        plan,
        record,
        len(model.sessions),
        [response for session in model.sessions for response in session.responses],
        [str(e["message"]) for session in model.sessions for e in session.errors_sent],
    )


async def _watch_loop(lateness: list[float]) -> None:
    """Record the longest delay with which the event loop woke a sleeper, in seconds."""
    # Skip the start, when modules are loaded: no answer is interrupted yet.
    await asyncio.sleep(STAGGER)
    while True:
        due = monotonic() + TICK
        await asyncio.sleep(TICK)
        lateness[0] = max(lateness[0], monotonic() - due)


def _judge(placed: _Placed) -> Verdict:
    plan, heard = placed.plan, placed.record.heard
    verdict = judge(heard, placed.responses, plan.interruptions, placed.errors)
    return replace(
        verdict,
        scene=plan.scene.name,
        network=label(plan.network),
        call=plan.number,
        faults=(*_call_faults(placed), *verdict.faults),
    )


def _call_faults(placed: _Placed) -> Iterator[str]:
    record = placed.record
    if record.ended_by != "caller":
        yield f"the call was ended by {record.ended_by}"
    if placed.sessions != 1:
        yield f"{placed.sessions} sessions on the model instead of one"
    for step in record.timed_out:
        yield f"a step of the caller timed out: {step}"
    for warning in record.warnings:
        yield f"Twilio warned: {warning.code} {warning.text}"


# --- the report ---------------------------------------------------------------------

_NAMES = ("scene", "up/down/jitter")
_NUMBERS = (
    *("items", "cut", "unheard", "generating", "p50", "p95", "max", "all max"),
    *("bias", "uncorrected", "errors", "lost/repeated/stray"),
)


def render(report: BeliefReport) -> Group:
    """The report for a terminal: a table, the worst items, the broken limits."""
    table = Table(
        title="Belief error (all in ms)",
        caption="p50 ... bias: of the items heard in part; generating: answers cut "
        "before the model had finished",
    )
    for name in _NAMES:
        table.add_column(name)
    for name in _NUMBERS:
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(*_cells(row), end_section=row is report.rows[-1])
    table.add_row(*_cells(report.total), style="bold")
    return Group(table, *(Text(line) for line in _lines(report)))


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.items, row.cut, row.unheard, row.while_generating)
    errors = (row.p50, row.p95, row.worst_cut, row.worst)
    audio = (row.lost_ms, row.repeated_ms, row.stray_ms)
    return (
        row.scene,
        row.network,
        *map(str, counts),
        *(f"{error:.1f}" for error in errors),
        f"{row.bias:+.1f}",
        *map(str, (row.uncorrected, row.model_errors)),
        "/".join(f"{ms:g}" for ms in audio),
    )


def _lines(report: BeliefReport) -> Iterator[str]:
    total = report.total
    playout = "whole frames" if report.frame_playout else "single bytes"
    yield (
        f"{total.calls} calls, {total.interrupted} answers interrupted, "
        f"{report.seconds:.0f} s; Twilio plays {playout}; "
        f"the event loop was late by {report.late_ms:.0f} ms at most"
    )
    for verdict, belief in report.worst(WORST_SHOWN):
        if abs(belief.error_ms) > report.p95_limit:
            yield (
                f"off by {belief.error_ms:+.1f}: {verdict.name}, item {belief.number}: "
                f"believed {belief.believed_ms:g}, heard {belief.heard_ms:.1f} "
                f"of {belief.sent_ms:g}"
            )
    for text in report.broken:
        yield f"BROKEN: {text}"
    if not report.broken:
        yield "All limits hold."
    elif report.late_ms > BUSY_MS:
        yield "This machine may be too busy for exact results: try fewer calls at once."


def as_json(report: BeliefReport) -> str:
    """The whole report with every item, as JSON."""
    document = asdict(report)
    document["calls"] = document.pop("verdicts")
    limits = document.pop("p95_limit"), document.pop("worst_limit")
    document["limits_ms"] = dict(zip(("p95", "worst"), limits, strict=True))
    return json.dumps(document, indent=1)
