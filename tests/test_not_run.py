"""What a test run reports of tests that it does not run (tests/support/not_run.py)."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

INI = """
[pytest]
addopts = --strict-markers -m 'not engine and not index'
markers =
    engine: needs an engine (make engine-test)
    index: needs the index (make index-test)
    slow: takes a minute
"""
TESTS = """
import pytest

def test_here(): pass

@pytest.mark.engine
@pytest.mark.parametrize("n", range(3))
def test_engine(n): pass

@pytest.mark.index
def test_index(): pass

@pytest.mark.slow
def test_slow(): pass
"""
LEFT_ENGINE = "left to .ci/run: 3 tests need an engine (make engine-test)"
LEFT_INDEX = "left to .ci/run: 1 test needs the index (make index-test)"

with_and_without_workers = pytest.mark.parametrize("workers", ["0", "2"])


def run(folder: Path, tests: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest with this plugin and xdist alone, in a separate folder."""
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_it.py").write_text(tests)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    plugins = ("-p", "xdist.plugin", "-p", "tests.support.not_run")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *words],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The counts of pytest's last line, without warnings: a busy machine adds one."""
    counts = re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1].split(" in ")[0])
    return {what: int(count) for count, what in counts if what[:7] != "warning"}


def left(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("left to")]


@with_and_without_workers
def test_deselected_tests_are_reported_with_their_reason(
    workers: str, tmp_path: Path
) -> None:
    """Once, however many workers there are."""
    done = run(tmp_path, TESTS, "-n", workers)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert left(done) == [LEFT_ENGINE, LEFT_INDEX]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-m", "engine or slow"), [LEFT_INDEX]),
        (("-m", "engine or index"), []),
        (("test_it.py::test_here",), []),
        (("-k", "here"), []),
    ],
)
def test_only_tests_that_were_selected_are_reported_as_left(
    words: tuple[str, ...], told: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, TESTS, "-n", "0", *words)

    assert done.returncode == 0, done.stdout + done.stderr
    assert left(done) == told


SKIPS = """
import pytest

@pytest.mark.skip(reason="by a mark")
def test_mark(): pass

@pytest.mark.skipif(True, reason="by a condition")
def test_condition(): pass

def test_call(): pytest.skip("by a call")

@pytest.fixture
def skips(): pytest.skip("by a fixture")

def test_fixture(skips): pass

@pytest.mark.xfail
def test_expected(): assert False

def test_here(): pass
"""
SKIPS_FILE = "import pytest\npytest.importorskip('no_such_module')\n"


@with_and_without_workers
def test_a_skipped_test_or_file_fails(workers: str, tmp_path: Path) -> None:
    """A run that has not tested what it claims to test does not pass. An expected
    failure is no skip."""
    (tmp_path / "test_file.py").write_text(SKIPS_FILE)
    keep_on = "--continue-on-collection-errors"
    done = run(tmp_path, SKIPS, "-n", workers, keep_on)

    assert done.returncode == 1
    assert outcomes(done) == {"failed": 1, "passed": 1, "xfailed": 1, "errors": 4}
    for how in ("by a mark", "by a condition", "by a call", "by a fixture"):
        assert f": {how}\nNo test is skipped here" in done.stdout
    assert re.search(
        "could not import 'no_such_module'.*\nNo test is skipped here", done.stdout
    )


def test_make_test_deselects_each_marker_with_a_need() -> None:
    """Each marker that needs something is deselected, and no other one."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    options = whole["tool"]["pytest"]["ini_options"]
    markers = dict(line.split(": ", 1) for line in options["markers"])
    needs = [name for name, why in markers.items() if why.startswith("needs ")]
    (chosen,) = re.findall("-m '([^']*)'", options["addopts"])

    assert needs
    assert chosen == " and ".join(f"not {name}" for name in needs)
