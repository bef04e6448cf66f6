"""The event loops on which the tests run (tests/support/loops.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_project_files import text

ROOT = Path(__file__).resolve().parent.parent

INI = """
[pytest]
addopts = --strict-markers
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
markers =
    both_loops: both
"""
TESTS = """
import asyncio
import pytest
import uvloop

@pytest.fixture
async def of_fixture():
    return type(asyncio.get_running_loop())

def tell(name, of_fixture):
    running = type(asyncio.get_running_loop())
    assert running is of_fixture
    kind = "uvloop" if issubclass(running, uvloop.Loop) else "asyncio"
    print(f"\\n{name} on {kind}.")

@pytest.mark.both_loops
async def test_edge(of_fixture):
    tell("edge", of_fixture)

async def test_other(of_fixture):
    tell("other", of_fixture)
"""


@pytest.mark.parametrize(
    ("words", "other"),
    [([], "asyncio"), (["--event-loop", "uvloop"], "uvloop")],
    ids=["default", "uvloop"],
)
def test_a_test_of_an_edge_runs_on_both_loops(
    words: list[str], other: str, tmp_path: Path
) -> None:
    """A developer notices a difference of the loops' transports before a caller does.
    No Python warns that the way to choose a loop is deprecated."""
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "test_it.py").write_text(TESTS)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    plugins = ("-p", "pytest_asyncio.plugin", "-p", "tests.support.loops")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-s", *words],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if " on " in line]
    expected = ["edge on asyncio.", "edge on uvloop.", f"other on {other}."]
    assert sorted(told) == expected


def test_the_second_python_runs_the_tests_on_uvloop() -> None:
    """`serve` runs on uvloop in the image, so all tests run on it once, too."""
    assert "tests test on_3_13 LOOP=uvloop" in text(".ci/run")
    assert "--event-loop $(LOOP)" in text("Makefile")
