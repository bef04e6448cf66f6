"""Retention: traces and stored data of calls are deleted after their time or on
request."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.fleet.memory import MemoryRegistry
from bridge.records.retention import (
    DAY_SECONDS,
    STORED_NAMES,
    delete_expired,
    expire,
    forget,
    forget_call,
)
from tests.support.waiting import until

OLD = time.time() - 40 * DAY_SECONDS


def put(folder: Path, name: str, written: float | None = None) -> Path:
    path = folder / name
    path.write_text("words of people")
    if written is not None:
        os.utime(path, (written, written))
    return path


def left(folder: Path) -> set[str]:
    return {it.name for it in folder.iterdir()}


def test_old_traces_are_deleted(tmp_path: Path) -> None:
    """Nothing that people said is stored longer than the operator has configured."""
    made = ("call.html", "call.wav", "call.svg", "call.json")
    for suffix in ("trace.jsonl", "trace.jsonl.zst", *made):
        put(tmp_path, f"CA1.MZ1.{suffix}", OLD)
    put(tmp_path, "CA2.MZ2.trace.jsonl")

    assert expire(tmp_path, time.time() - 30 * DAY_SECONDS) == 6

    assert left(tmp_path) == {"CA2.MZ2.trace.jsonl"}


def test_a_file_that_was_not_finished_is_deleted(tmp_path: Path) -> None:
    """A process that is killed while it writes a recording leaves one: it has the
    caller's voice."""
    put(tmp_path, ".CA1.MZ1.call.wav.new")
    put(tmp_path, ".CA2.MZ1.call.wav.new")

    assert forget(tmp_path, "CA1") == 1
    assert left(tmp_path) == {".CA2.MZ1.call.wav.new"}


def test_only_traces_are_deleted(tmp_path: Path) -> None:
    """Other files in the folder, and the targets of links, stay."""
    away, folder = tmp_path / "away", tmp_path / "records"
    away.mkdir()
    folder.mkdir()
    precious = put(away, "CA1.MZ9.trace.jsonl", OLD)
    for name in ("notes.txt", "trace.jsonl", "CA1.trace.jsonl", "CA1.MZ1.trace.jsonl~"):
        put(folder, name, OLD)
    (folder / "CA1.MZ1.trace.jsonl").symlink_to(precious)
    (folder / "CA1.MZ2.trace.jsonl").symlink_to(away)
    (folder / "CA1.MZ3.trace.jsonl").mkdir()
    put(folder / "CA1.MZ3.trace.jsonl", "CA1.MZ4.trace.jsonl", OLD)
    before = left(folder)

    assert expire(folder, time.time()) == 0
    assert forget(folder, "CA1") == 0

    assert left(folder) == before
    assert precious.exists()
    assert left(folder / "CA1.MZ3.trace.jsonl") == {"CA1.MZ4.trace.jsonl"}


def test_all_traces_of_a_call_are_deleted_and_no_others(tmp_path: Path) -> None:
    """A caller's request to be forgotten covers every stream of the call, and no other
    call."""
    for name in ("CA1.MZ1", "CA1.MZ2", "CA11.MZ1", "CA2.MZ1"):
        put(tmp_path, f"{name}.trace.jsonl")

    assert forget(tmp_path, "CA1") == 2
    assert forget(tmp_path, "CA1") == 0

    assert left(tmp_path) == {"CA11.MZ1.trace.jsonl", "CA2.MZ1.trace.jsonl"}


@pytest.mark.parametrize("sid", ["*", "CA?", ".", "..", "../records/CA1", "", "CA1/.."])
def test_a_hostile_sid_deletes_nothing(tmp_path: Path, sid: str) -> None:
    """A SID with wildcards or path parts deletes no trace and reaches no other
    folder."""
    folder = tmp_path / "records"
    folder.mkdir()
    put(folder, "CA1.MZ1.trace.jsonl")
    put(tmp_path, "CA1.MZ1.trace.jsonl")

    assert forget(folder, sid) == 0

    assert left(folder) == {"CA1.MZ1.trace.jsonl"}
    assert left(tmp_path) == {"records", "CA1.MZ1.trace.jsonl"}


def test_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    """The first call creates the folder."""
    assert forget(tmp_path / "none", "CA1") == 0
    assert expire(tmp_path / "none", time.time()) == 0


async def test_the_registry_forgets_a_call_too(tmp_path: Path) -> None:
    """What the registry stored for the next stream of the call is deleted with its
    trace."""
    registry = MemoryRegistry()
    for name in STORED_NAMES:
        await registry.put(f"{name}:CA1", b"words", 60.0)
        await registry.put(f"{name}:CA2", b"words", 60.0)
    put(tmp_path, "CA1.MZ1.trace.jsonl")

    assert await forget_call(tmp_path, registry, "CA1") == (1, len(STORED_NAMES))
    assert await forget_call(None, registry, "CA1") == (0, 0)

    assert await registry.get("snapshot:CA1") is None
    assert await registry.get("snapshot:CA2") == b"words"


async def test_old_traces_are_deleted_at_startup_and_at_intervals(
    tmp_path: Path,
) -> None:
    """An instance that runs for months respects the retention time, too; the log names
    no call."""
    put(tmp_path, "CA1.MZ1.trace.jsonl", OLD)
    with capture_logs() as logged:
        async with delete_expired(tmp_path, 30, every=0.01):
            await until(lambda: len(logged) == 1)
            put(tmp_path, "CA2.MZ2.trace.jsonl", OLD)
            await until(lambda: len(logged) == 2)
            assert not left(tmp_path)

    assert [(it["event"], it["files"]) for it in logged] == [("records_deleted", 1)] * 2
    assert "CA1" not in str(logged)


@pytest.mark.parametrize("days", [0, 30])
async def test_without_days_or_a_folder_nothing_is_deleted(
    tmp_path: Path, days: int
) -> None:
    """0 days means for ever; without a folder there is nothing to delete."""
    put(tmp_path, "CA1.MZ1.trace.jsonl", OLD)
    async with delete_expired(None if days else tmp_path, days, every=0.005):
        await asyncio.sleep(0.02)

    assert left(tmp_path) == {"CA1.MZ1.trace.jsonl"}


async def test_a_failed_deletion_is_logged_without_a_sid(tmp_path: Path) -> None:
    """The operator sees that a trace stays; the instance continues."""
    folder = put(tmp_path, "no folder")
    with capture_logs() as logged:
        async with delete_expired(folder, 30):
            await asyncio.sleep(0.05)

    assert logged == [
        {"event": "records_not_deleted", "log_level": "error", "why": "Not a directory"}
    ]


async def test_an_exception_of_the_block_is_not_wrapped(tmp_path: Path) -> None:
    """`bridge serve` reports the error itself, not an ExceptionGroup."""
    with pytest.raises(ValueError, match="of the server"):
        async with delete_expired(tmp_path, 30):
            raise ValueError("of the server")


def test_one_failed_deletion_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be deleted does not keep the others; a file that is gone is no
    error."""
    for sid in ("CA1", "CA2", "CA3"):
        put(tmp_path, f"{sid}.MZ1.trace.jsonl", OLD)
    unlink = Path.unlink

    def of_another_owner(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("CA1"):
            raise PermissionError(1, "Operation not permitted")
        unlink(path)
        if path.name.startswith("CA2"):
            unlink(path, missing_ok=missing_ok)  # another process was faster

    monkeypatch.setattr(Path, "unlink", of_another_owner)

    with pytest.raises(PermissionError):
        expire(tmp_path, time.time())

    assert left(tmp_path) == {"CA1.MZ1.trace.jsonl"}
