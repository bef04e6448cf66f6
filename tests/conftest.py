"""What makes the suite quick where several workers run it; it changes no test.

Calls are real time, so workers mostly wait, and there are more of them than cores. What
each of them does before its first test is paid as often as there are workers.
"""

import contextlib
import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.support.not_run"]

ROOT = Path(__file__).parent.parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1 ...
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

LONG = ("test_serve_takes", "test_demo", "e2e/", "test_examples", "agent/", "sim/")
"""Where calls take seconds, the longest first."""

# A fifth of the time that imports and collection take went into looking for garbage
# among what stays for good.
gc.disable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    if WORKER and session.config.args == session.config.getini("testpaths"):
        _compile_together()
    yield
    gc.freeze()
    gc.enable()


def _compile_together() -> None:
    """Import all the tests, each worker from another place on.

    In a fresh clone there is no bytecode. Workers that go through the files in the same
    order compile each of them at the same time; so they find what another has compiled.
    """
    names = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "tests").rglob("test_*.py")
        if (file.parent / "__init__.py").exists()
    )
    first = int(WORKER.removeprefix("gw")) * len(names) // WORKERS
    for name in names[first:] + names[:first]:
        # What cannot be imported is told of by the collection.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker begins with what Hypothesis computes, the others are dealt the calls,
    long ones first; who is done takes from others (--dist worksteal). So neither do
    calls fight for the cores, nor does all wait for one that was begun last."""
    if WORKERS == 1:
        return
    computed = [it for it in items if it.get_closest_marker("hypothesis")]
    known = set(computed)
    rest = sorted((it for it in items if it not in known), key=_rank)
    dealt = len(rest) - max(0, len(items) // WORKERS - len(computed))
    items[:] = computed + rest[dealt:]
    for first in range(WORKERS - 1):
        items += rest[first : dealt : WORKERS - 1]


def _rank(item: pytest.Item) -> int:
    return next((at for at, it in enumerate(LONG) if it in item.nodeid), len(LONG))
