"""Where tests and `make fleet` find the programs of HAProxy and Redis."""

import sys
from pathlib import Path

import pytest

from scripts import fleet


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH; it has a program of each name."""
    for name in ("haproxy", "redis-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("haproxy", "redis-server"):
        monkeypatch.setitem(fleet._WHEELS, name, ("not-installed", name))


def test_the_locked_programs_are_preferred(on_path: Path) -> None:
    """Programs that the machine has do not change what is tested."""
    locked = ["redis-server", *(["haproxy"] if sys.platform == "linux" else [])]

    for name in locked:
        assert Path(fleet.program(name)).is_relative_to(sys.prefix)


def test_programs_without_a_wheel_are_found_on_path(
    on_path: Path, no_wheels: None
) -> None:
    """For example on macOS, for which HAProxy has no wheel."""
    for name in ("haproxy", "redis-server"):
        assert fleet.program(name) == str(on_path / name)


@pytest.mark.parametrize("name", ["haproxy", "redis-server"])
def test_a_missing_program_is_an_error(
    name: str, on_path: Path, no_wheels: None
) -> None:
    """The error comes before a process is started, and names the fix."""
    (on_path / name).unlink()

    with pytest.raises(fleet.FleetFailed, match=f"{name} is missing.*make setup"):
        fleet.Fleet(2, folder=on_path / "fleet")
    assert not (on_path / "fleet").exists()
