"""A disk that is nearly full stops the traces, not the calls."""

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.core.inputs import Send
from bridge.telemetry import disk_space
from bridge.telemetry.disk_space import DiskSpace, watched
from bridge.telemetry.trace import Trace, read
from bridge.telemetry.trace_file import BLOCK_BYTES, NEARLY_FULL, TraceWriter
from tests.support.waiting import until

FULL = 2**62
"""More than any disk has."""


def free_of(folder: Path) -> int:
    found: list[int] = []
    DiskSpace(folder, found.append).look()
    return found[0]


def test_the_disk_is_measured(tmp_path: Path) -> None:
    """Its free bytes, and those of the files in the folder; links do not count."""
    folder = tmp_path / "calls"
    used: list[int] = []
    DiskSpace(folder, on_used=used.append).look()  # not made yet
    folder.mkdir()
    (folder / "a").write_bytes(bytes(range(256)) * 40)
    (folder / "link").symlink_to(folder / "a")
    (folder / "sub").mkdir()
    DiskSpace(folder, on_used=used.append).look()

    assert 2**20 < free_of(folder) < FULL
    assert used[0] == 0 and used[1] == (folder / "a").stat().st_blocks * 512


def test_the_files_are_measured_now_and_then(tmp_path: Path) -> None:
    """There may be many of them."""
    used: list[int] = []
    disk = DiskSpace(tmp_path, on_used=used.append)
    for _ in range(disk_space.USED_EVERY + 1):
        disk.look()

    assert len(used) == 2


def test_it_is_logged_once_when_traces_stop_and_go_on(tmp_path: Path) -> None:
    """Not again while the free space is between the two limits."""
    disk = DiskSpace(tmp_path, min_free=0, resume_free=0)
    with capture_logs() as logged:
        disk.look()
        assert not disk.is_nearly_full
        disk.min_free = disk.resume_free = FULL
        disk.look()
        disk.look()
        assert disk.is_nearly_full
        disk.min_free = 0
        disk.look()
        assert disk.is_nearly_full, "between the two limits"
        disk.resume_free = 0
        disk.look()
        disk.look()

    assert not disk.is_nearly_full
    assert [it["event"] for it in logged] == ["traces_stopped", "traces_resumed"]


def test_a_disk_that_cannot_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once; traces are written, as far as they can be."""
    folder = tmp_path / ("x" * 300)  # no name is that long
    disk = DiskSpace(folder)
    with capture_logs() as logged:
        disk.look()
        disk.look()

    assert [it["event"] for it in logged] == ["disk_not_measured"]
    assert not disk.is_nearly_full


async def test_it_is_looked_at_while_the_bridge_runs(tmp_path: Path) -> None:
    """At once, then again and again; and no more afterwards."""
    disk = DiskSpace(tmp_path, min_free=FULL)
    async with watched(disk, every=0.01) as it:
        assert it.is_nearly_full
        await until(lambda: disk.looks > 3)
    await until(lambda: "disk space" not in {it.name for it in threading.enumerate()})
    async with watched(DiskSpace(None)) as off:
        assert off.looks == 0


async def test_a_trace_ends_when_the_disk_is_nearly_full(tmp_path: Path) -> None:
    """What was written before can be read; the next trace makes no file."""
    disk = DiskSpace(tmp_path, min_free=0)
    lost: list[str] = []
    async with TraceWriter(disk=disk) as writer:
        trace = Trace(0.0, lost.append)
        trace.open(writer, tmp_path, "CA1", "MZ1")
        for n in range(BLOCK_BYTES // 1000 + 5):
            trace.input(Send("x" * 1000), float(n))
        disk.is_nearly_full = True
        for n in range(BLOCK_BYTES // 1000 + 5):
            trace.input(Send("x" * 1000), float(n))
        other = Trace(0.0, lost.append)
        other.open(writer, tmp_path, "CA2", "MZ2")
        trace.close()
        other.close()
        disk.is_nearly_full = False
        third = Trace(0.0, lost.append)
        third.open(writer, tmp_path, "CA3", "MZ3")
        third.close()

    assert lost == [NEARLY_FULL, NEARLY_FULL]
    [first, last] = sorted(tmp_path.iterdir())
    assert first.name.startswith("CA1") and last.name.startswith("CA3")
    assert 200 < len(list(read(first))) < BLOCK_BYTES // 1000 + 10
