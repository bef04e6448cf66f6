"""How many calls one core of a server holds: a search with short loads.

A step passes if no call failed, no answer had a gap and no p99 of the delays exceeds
the limit. A step whose fakes were late measures them and not the server: it neither
passes nor fails.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from bridge.sim import load
from bridge.sim.load_monitor import Progress
from bridge.sim.load_report import LoadReport
from bridge.sim.load_server import LoadedServer

PRECISION = 0.05
"""The search ends when the calls that passed and those that did not are this close."""


class StepResult(StrEnum):
    """What a number of calls has shown."""

    PASSED = "passed"
    FAILED = "failed"
    WORTHLESS = "worthless"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """`limit_ms`: of each p99. `first`, `most`: numbers of calls. `steps`: at most so
    many loads, each of `settle_seconds` and then `seconds` with all its calls."""

    limit_ms: float = 10.0
    first: int = 25
    most: int = 1000
    steps: int = 12
    seconds: float = 15.0
    settle_seconds: float = 3.0

    def load(self, calls: int) -> load.LoadPlan:
        return load.LoadPlan(
            calls=calls,
            seconds=self.settle_seconds + self.seconds,
            ramp_seconds=calls * load.RAMP_SECONDS,
            settle_seconds=self.settle_seconds,
        )


@dataclass(frozen=True, slots=True)
class CapacityStep:
    """`reasons`: why it did not pass."""

    calls: int
    result: StepResult
    reasons: list[str]
    report: LoadReport


class CapacitySearch:
    """Doubles the calls until a number does not pass, then bisects. Pure.

    A worthless step is repeated once. If that is worthless, too, the number is a bound
    of the search, as one that failed.
    """

    def __init__(self, first: int, most: int, steps: int) -> None:
        self.passed = 0
        """The most calls that passed."""
        self.bound: int | None = None
        """The fewest calls that did not pass."""
        self._first = min(first, most)
        self._most = most
        self._steps_left = steps
        self._last_worthless: int | None = None

    def next(self) -> int | None:
        """The number of calls to try; None: the search is over."""
        if self._steps_left == 0:
            return None
        if self._last_worthless is not None and self._last_worthless != self.bound:
            return self._last_worthless
        if self.bound is None:
            if self.passed >= self._most:
                return None
            return min(2 * self.passed, self._most) if self.passed else self._first
        if self.bound - self.passed <= max(1, PRECISION * self.passed):
            return None
        return (self.passed + self.bound) // 2

    def add(self, calls: int, result: StepResult) -> None:
        self._steps_left -= 1
        repeated = calls == self._last_worthless
        self._last_worthless = calls if result is StepResult.WORTHLESS else None
        if result is StepResult.PASSED:
            self.passed = calls
        elif result is StepResult.FAILED or repeated or self._steps_left == 0:
            self.bound = calls


OnStep = Callable[[CapacityStep], None]
ProgressOf = Callable[[str, load.LoadPlan], AbstractContextManager[Progress]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityResult:
    """`calls`: the most that passed. `bound`: the step with the fewest calls that did
    not pass; it says which limit was exceeded first."""

    limit_ms: float
    calls: int
    bound: CapacityStep | None
    steps: list[CapacityStep]

    @property
    def limited_by_fakes(self) -> bool:
        return self.bound is not None and self.bound.result is StepResult.WORTHLESS

    @property
    def conclusion(self) -> str:
        bound = self.bound
        if bound is None:
            return f"at least {self.calls} calls: no larger number was tried"
        why = f"{bound.calls} calls: {'; '.join(bound.reasons[:3])}"
        if self.limited_by_fakes:
            return f"at least {self.calls} calls, limited by the fakes; at {why}"
        return f"{self.calls} calls; at {why}"


async def find(
    server: LoadedServer,
    plan: CapacityPlan,
    *,
    progress: ProgressOf,
    on_step: OnStep,
) -> CapacityResult:
    """Loads the server, step by step. `on_step` gets each step when it has ended."""
    search = CapacitySearch(plan.first, plan.most, plan.steps)
    steps: list[CapacityStep] = []
    while (calls := search.next()) is not None:
        loaded = plan.load(calls)
        name = f"step {len(steps) + 1}"
        with progress(name, loaded) as show:
            report = await load.measure(
                server.target,
                server.model,
                loaded,
                placement=server.placement,
                progress=show,
            )
        result, reasons = judge(report, plan.limit_ms)
        steps.append(CapacityStep(calls, result, reasons, report))
        on_step(steps[-1])
        search.add(calls, result)
        if not report.answers and not report.caller_to_model.count:
            break  # no call was connected: that is no matter of capacity
    return result_of(steps, plan.limit_ms)


def judge(report: LoadReport, limit_ms: float) -> tuple[StepResult, list[str]]:
    if report.worthless:
        return StepResult.WORTHLESS, report.worthless
    reasons = list(report.broken)
    if report.underruns:
        reasons.append(f"{report.underruns} gaps in answers")
    measured = (
        ("caller to model", report.caller_to_model),
        ("model to caller", report.model_to_caller),
        ("speech to clear", report.clear),
    )
    if not report.caller_to_model.count or not report.model_to_caller.count:
        reasons.append("no delay was measured")
    over = [it for it in measured if it[1].p99 > limit_ms]
    for name, delays in sorted(over, key=lambda it: -it[1].p99):
        text = f"p99 of {name} is {delays.p99:.1f} ms, above {limit_ms:g} ms"
        reasons.append(text)
    return (StepResult.FAILED if reasons else StepResult.PASSED), reasons


def result_of(steps: Sequence[CapacityStep], limit_ms: float) -> CapacityResult:
    passed = [it.calls for it in steps if it.result is StepResult.PASSED]
    calls = max(passed, default=0)
    # The newest first: a worthless step may have been repeated.
    bounds = [it for it in reversed(steps) if it.calls > calls]
    bound = min(bounds, key=lambda it: it.calls, default=None)
    return CapacityResult(
        limit_ms=limit_ms, calls=calls, bound=bound, steps=list(steps)
    )
