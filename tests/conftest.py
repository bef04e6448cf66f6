"""Makes the suite fast when several workers run it; it changes no test.

The time of most calls is simulated (tests/support/simulated_time.py), so workers mostly
compute. Tests with processes wait, so there are more workers than cores. What each
worker does before its first test costs once per worker, except the imports of
tests/support/forked.py.
"""

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import simulated_time

simulated_time.install()  # before any module imports `monotonic`

pytest_plugins = [
    "tests.support.forked",
    "tests.support.loops",
    "tests.support.not_run",
    "tests.support.running_redis",
]

ROOT = Path(__file__).parent.parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1 ...
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

LONG = (
    *("test_serve_", "test_loop_held", "test_output", "deploy/test_fleet"),
    *("sim/test_load", "test_capacity", "test_attacks_round3", "test_demo"),
    *("test_examples", "fleet/", "deploy/"),
)
"""Parts of the ids of tests that wait for real time, the longest first."""

# Garbage collection took a fifth of the time of imports and collection, although what
# they create is never garbage.
gc.disable()

# A deadline for each example fails on a busy machine, which says nothing of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

# jsonschema tries this import for a format (iri) that no test checks. It compiles a
# grammar, which takes two seconds in each worker.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Commands that run in this process export .env (bridge.app.settings.export): no
    later test may find it."""
    before = dict(os.environ)
    yield
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    if WORKER and session.config.args == session.config.getini("testpaths"):
        _compile_together()
    yield
    gc.freeze()
    gc.enable()


def _compile_together() -> None:
    """Imports all test modules, each worker starting at a different one.

    A fresh clone has no bytecode. Workers that import the modules in the same order
    compile each of them at the same time. With different starts, a worker finds what
    another has compiled already.
    """
    names = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in (ROOT / "tests").rglob("test_*.py")
        if (file.parent / "__init__.py").exists()
    )
    first = int(WORKER.removeprefix("gw")) * len(names) // WORKERS
    for name in names[first:] + names[:first]:
        # The collection reports modules that cannot be imported.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker starts with the tests that Hypothesis computes. The other workers get
    the tests with calls, long ones first; a worker that has finished takes tests from
    others (--dist worksteal). So calls do not compete for the cores, and the run does
    not wait for a long test that started last."""
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
