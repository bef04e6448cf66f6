"""A pytest plugin: a run reports the tests that it left to .ci/run; a skip fails.

A test that needs something that not every machine has carries a marker. The marker's
description in pyproject.toml begins with "needs", says what the test needs, and names
the command that runs such tests. `make test` deselects these tests, and this plugin
reports their number. It counts nothing if tests are chosen by name (-k).

No other test may be left out: a skipped test fails.
"""

from collections.abc import Generator
from typing import Any

import pytest

NEEDS = "needs "
LEFT = pytest.StashKey[dict[str, int]]()
"""Description of a marker -> how many of its tests were deselected."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT] = {}


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        why = _need(item)
        if why and not item.config.option.keyword:
            left = item.config.stash[LEFT]
            left[why] = left.get(why, 0) + 1


def _need(item: pytest.Item) -> str:
    """What the test needs that not every machine has; empty: nothing."""
    for line in item.config.getini("markers"):
        name, _, description = line.partition(": ")
        if description.startswith(NEEDS) and item.get_closest_marker(name):
            return str(description)
    return ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist sends its counts to its controller."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = session.config.stash[LEFT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All workers collect the same tests: the counts of one are those of the run."""
    told = getattr(node, "workeroutput", {})  # a crashed worker has none
    node.config.stash[LEFT].update(told.get("left", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for why, count in config.stash[LEFT].items():
        what = why.removeprefix(NEEDS)
        tests = f"{count} tests need" if count > 1 else "1 test needs"
        terminalreporter.write_line(f"left to .ci/run: {tests} {what}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:
        assert isinstance(report.longrepr, tuple)
        file, line, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = (
            f"{file}:{line}: {reason}\n"
            "No test is skipped here: nobody notices. Make it run on every machine, or "
            "give it a marker that says what it needs (pyproject.toml)."
        )
