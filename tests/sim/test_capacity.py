"""`bridge sim capacity`: the search, and what it says about its own limits."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge.cli.commands import app
from bridge.sim import capacity
from bridge.sim.capacity import (
    PRECISION,
    CapacityPlan,
    CapacitySearch,
    CapacityStep,
    StepResult,
    judge,
    result_of,
)
from bridge.sim.capacity_report import Circumstances, as_json, render
from bridge.sim.load import LoadPlan, LoadTarget, measure
from bridge.sim.load_delays import Delays
from bridge.sim.load_monitor import Progress
from bridge.sim.load_report import Lateness, LoadReport
from bridge.sim.load_server import LoadedServer
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from tests.bench.ratio import relay_process

pytestmark = pytest.mark.slow

PASSED, FAILED, WORTHLESS = StepResult.PASSED, StepResult.FAILED, StepResult.WORTHLESS
IN_TIME = Delays(1000, 0.1, 0.2, 0.3)
LATE = Delays(1000, 0.1, 6.0, 8.0)


@pytest.fixture
async def report() -> LoadReport:
    """A report of a load whose calls all failed."""
    async with ModelServer(record_appends=True) as model:
        target = LoadTarget(name="nothing", webhook_url="http://127.0.0.1:9/voice")
        plan = LoadPlan(calls=1, seconds=0.1, ramp_seconds=0, settle_seconds=0.05)
        return await measure(target, model, plan)


def good(report: LoadReport) -> LoadReport:
    return replace(
        report,
        failed=[],
        caller_to_model=IN_TIME,
        model_to_caller=IN_TIME,
        clear=IN_TIME,
        fakes=Lateness(IN_TIME, IN_TIME, 10.0),
    )


# --- the search ---------------------------------------------------------------------


def searched(
    search: CapacitySearch, holds: int, late_above: int = 10**6
) -> list[tuple[int, StepResult]]:
    """The steps of a search on a server that holds so many calls, with fakes that are
    late above another number."""
    steps = []
    while (calls := search.next()) is not None:
        result = PASSED if calls <= holds else FAILED
        result = WORTHLESS if calls > late_above else result
        steps.append((calls, result))
        search.add(calls, result)
    return steps


@pytest.mark.parametrize("holds", [1, 7, 24, 25, 26, 130, 333, 799, 999])
def test_the_search_finds_what_a_server_holds(holds: int) -> None:
    search = CapacitySearch(first=25, most=1000, steps=20)
    steps = searched(search, holds)
    assert search.passed <= holds
    assert holds - search.passed <= max(1, PRECISION * holds)
    assert len(steps) <= 12
    assert len({calls for calls, _ in steps}) == len(steps)  # none is tried twice


def test_a_server_that_holds_the_most_calls_is_not_asked_for_more() -> None:
    search = CapacitySearch(first=25, most=150, steps=20)
    assert searched(search, 500) == [(it, PASSED) for it in (25, 50, 100, 150)]


def test_the_search_ends_after_its_steps() -> None:
    """An operator who plans ten minutes does not wait for an hour."""
    search = CapacitySearch(first=25, most=1000, steps=3)
    assert len(searched(search, 30)) == 3
    assert search.passed == 25


def test_a_worthless_step_is_repeated_once_and_is_then_a_bound() -> None:
    """One hiccup of the machine ends no search, and fakes that are always late do not
    make it endless."""
    search = CapacitySearch(first=100, most=1000, steps=20)
    steps = searched(search, 500, late_above=150)
    assert steps[:3] == [(100, PASSED), (200, WORTHLESS), (200, WORTHLESS)]
    assert search.passed == 150
    hiccup = CapacitySearch(first=100, most=200, steps=20)
    for calls, result in ((100, PASSED), (200, WORTHLESS), (200, PASSED)):
        assert hiccup.next() == calls
        hiccup.add(calls, result)
    assert hiccup.next() is None and hiccup.passed == 200


# --- the verdict --------------------------------------------------------------------


async def test_a_step_fails_by_the_limit_that_it_exceeds(report: LoadReport) -> None:
    fine = good(report)
    assert judge(fine, 10) == (PASSED, [])
    for changed, why in (
        (replace(fine, clear=LATE), "p99 of speech to clear is 6.0 ms, above 5 ms"),
        (replace(fine, caller_to_model=LATE), "p99 of caller to model is 6.0 ms"),
        (replace(fine, model_to_caller=LATE), "p99 of model to caller is 6.0 ms"),
        (replace(fine, underruns=2), "2 gaps in answers"),
        (replace(fine, failed=["call 1: busy"]), "call 1: busy"),
        (replace(fine, caller_to_model=Delays(0, 0, 0, 0)), "no delay was measured"),
    ):
        result, reasons = judge(changed, 5)
        assert result is FAILED and len(reasons) == 1 and why in reasons[0]
    assert judge(replace(fine, clear=LATE), 10) == (PASSED, [])


async def test_a_step_with_late_fakes_neither_passes_nor_fails(
    report: LoadReport,
) -> None:
    """Its delays are those of the fakes: a slow machine must not look like a slow
    server, or a busy one like a fast server."""
    fine = good(report)
    late = Lateness(LATE, IN_TIME, 99.0)
    for each in (fine, replace(fine, clear=Delays(9, 50, 99, 99), underruns=9)):
        assert judge(replace(each, fakes=late), 10)[0] is WORTHLESS


async def test_the_conclusion_says_what_limited_the_search(report: LoadReport) -> None:
    def steps(*given: tuple[int, StepResult]) -> list[CapacityStep]:
        return [
            CapacityStep(calls, result, [] if result is PASSED else ["why"], report)
            for calls, result in given
        ]

    found = result_of(steps((100, PASSED), (200, FAILED), (150, FAILED)), 10)
    assert found.conclusion == "100 calls; at 150 calls: why"
    assert not found.limited_by_fakes
    found = result_of(steps((100, PASSED), (150, WORTHLESS), (150, WORTHLESS)), 10)
    assert found.conclusion.startswith("at least 100 calls, limited by the fakes")
    assert found.limited_by_fakes
    found = result_of(steps((100, WORTHLESS), (100, PASSED)), 10)
    assert found.conclusion == "at least 100 calls: no larger number was tried"


# --- over real sockets --------------------------------------------------------------


async def test_the_steps_of_a_search_do_not_disturb_each_other() -> None:
    """All steps use one server and one model, and their calls have the same numbers."""

    @contextmanager
    def silent(name: str, plan: LoadPlan) -> Iterator[Progress]:
        yield lambda sample: None

    behaviour = Behaviour(fallback=[PlayRuler(2000)], think_seconds=0.05)
    plan = CapacityPlan(
        limit_ms=10_000, first=1, most=2, steps=2, seconds=2, settle_seconds=0.2
    )
    ended: list[CapacityStep] = []
    async with (
        ModelServer(behaviour, record_appends=True) as model,
        relay_process(model.url, uvloop=False) as relay,
    ):
        target = LoadTarget(name="r", webhook_url=relay.webhook_url, pid=relay.pid)
        result = await capacity.find(
            LoadedServer(target, model, None),
            plan,
            progress=silent,
            on_step=ended.append,
        )
    assert result.steps == ended and len(ended) == 2
    for step in result.steps:
        assert step.report.failed == [] and step.report.answers == step.calls
    circumstances = Circumstances(
        server="r", machine="m", placement=None, event_loop="uvloop", tls=None
    )
    written = json.loads(as_json(result, circumstances))
    assert (written["event_loop"], written["TLS_at_the_model"]) == (
        "uvloop",
        "not known",
    )
    assert [it["calls"] for it in written["steps"]] == [it.calls for it in ended]
    assert render(result).row_count == 2


def test_a_server_that_does_not_answer_ends_the_search(tmp_path: Path) -> None:
    """The operator has mistyped the address; halving the calls would not help."""
    figures = tmp_path / "capacity.json"
    result = CliRunner().invoke(
        app,
        [
            *("sim", "capacity", "--webhook", "http://127.0.0.1:9/voice"),
            *("--model-port", "0", "--seconds", "2", "--first", "2"),
            *("--json", str(figures)),
        ],
    )
    assert result.exit_code in (1, 3), result.output
    written = json.loads(figures.read_text())
    assert written["calls"] == 0 and len(written["steps"]) == 1
    assert "11205" in str(written["exceeded_first"]) or result.exit_code == 3
