"""A disk that is slow or hangs: no call waits for it, and no trace is half closed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.agent.receptionist import receptionist
from bridge.app.routes import Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.core.inputs import Send
from bridge.records.retention import StillRuns, forget
from bridge.sim.model import ModelServer
from bridge.telemetry import trace_file
from bridge.telemetry.trace import Trace, read
from bridge.telemetry.trace_file import BLOCK_BYTES, TOO_SLOW, TraceWriter
from tests.support.traces import text_of
from tests.support.waiting import until

LINE_BYTES = 1000
QUEUE_BYTES = 4 * BLOCK_BYTES


class HangingDisk:
    """A writer whose thread is held, as by a disk that does not answer."""

    def __init__(self) -> None:
        self.writer = TraceWriter(QUEUE_BYTES)
        self._held, self._go_on = threading.Event(), threading.Event()

    def hang(self) -> None:
        self._held.clear()
        self._go_on.clear()
        self.writer.add(self._hold)
        assert self._held.wait(20)

    def _hold(self) -> None:
        self._held.set()
        self._go_on.wait()

    def answer(self) -> None:
        self._go_on.set()


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    disk = HangingDisk()
    yield disk
    disk.answer()


def speak(trace: Trace, size: int) -> None:
    for n in range(size // LINE_BYTES):
        trace.input(Send("x" * LINE_BYTES), float(n))


async def test_a_hanging_disk_stops_no_call(disk: HangingDisk, tmp_path: Path) -> None:
    """The call goes on while the disk hangs. The trace is whole if the disk is back in
    time."""
    lost: list[str] = []
    threads = threading.active_count()
    async with disk.writer:
        disk.hang()
        trace = Trace(1.0, lost.append)
        path = trace.open(disk.writer, tmp_path, "CA1", "MZ1")
        speak(trace, 3 * BLOCK_BYTES)
        trace.close()
        assert not path.exists()
        disk.answer()

    assert lost == []
    assert len(list(read(path))) == 1 + 3 * BLOCK_BYTES // LINE_BYTES
    await until(lambda: threading.active_count() == threads, what="the thread's end")


async def test_a_disk_that_does_not_keep_up_loses_the_trace(
    disk: HangingDisk, tmp_path: Path
) -> None:
    """The memory of the process is bounded and the operator is told why; the trace ends
    early and its lines are whole. The next call has a trace again."""
    lost: list[str] = []
    async with disk.writer:
        disk.hang()
        trace = Trace(1.0, lost.append)
        path = trace.open(disk.writer, tmp_path, "CA1", "MZ1")
        speak(trace, 3 * QUEUE_BYTES)
        assert lost == [TOO_SLOW]
        disk.answer()
        assert await disk.writer.written()
        speak(trace, BLOCK_BYTES)
        with pytest.raises(StillRuns):
            forget(tmp_path, "CA1")
        trace.close()

        again = Trace(1.0, pytest.fail)
        second = again.open(disk.writer, tmp_path, "CA2", "MZ2")
        speak(again, BLOCK_BYTES)
        again.close()

    assert lost == [TOO_SLOW]
    text = text_of(path)
    assert QUEUE_BYTES - BLOCK_BYTES < len(text) <= QUEUE_BYTES
    assert text.endswith("\n")
    assert len(list(read(second))) == 1 + BLOCK_BYTES // LINE_BYTES


async def test_a_trace_is_locked_until_it_is_written(
    disk: HangingDisk, tmp_path: Path
) -> None:
    """`bridge forget` right after a call deletes the trace, or says that it is not
    complete; no words are written after the deletion."""
    async with disk.writer:
        trace = Trace(1.0, pytest.fail)
        path = trace.open(disk.writer, tmp_path, "CA1", "MZ1")
        assert await disk.writer.written()
        disk.hang()
        speak(trace, BLOCK_BYTES)
        trace.close()
        with pytest.raises(StillRuns):
            forget(tmp_path, "CA1")
        disk.answer()
        await until(lambda: path.stat().st_size > 0)
        assert await disk.writer.written()
        assert forget(tmp_path, "CA1") == 1


async def test_a_shutdown_does_not_wait_for_ever(
    disk: HangingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, and the operator learns that traces are not complete."""
    monkeypatch.setattr(trace_file, "WAIT_SECONDS", 0.05)
    with capture_logs() as logs:
        async with disk.writer:
            disk.hang()
            trace = Trace(1.0, pytest.fail)
            trace.open(disk.writer, tmp_path, "CA1", "MZ1")
            trace.close()

    assert [(it["event"], it["log_level"]) for it in logs] == [
        ("traces_not_written", "error")
    ]


async def test_a_call_is_not_forgotten_before_its_trace_is_written(
    disk: HangingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the trace would be written after its deletion, and stay."""
    monkeypatch.setattr(trace_file, "WAIT_SECONDS", 0.05)
    settings = Settings(insecure=True, record_dir=tmp_path)
    async with (
        ModelServer() as model,
        start_services(
            settings, UserCode(receptionist, Routes.none()), model.url
        ) as services,
    ):
        monkeypatch.setattr(disk, "writer", services.recorder.writer)
        trace = Trace(1.0, pytest.fail)
        trace.open(disk.writer, tmp_path, "CA1", "MZ1")
        disk.hang()
        trace.close()

        with pytest.raises(OSError, match="wait to be written"):
            await services.forget("CA1")

        disk.answer()
        monkeypatch.setattr(trace_file, "WAIT_SECONDS", 20)
        await services.forget("CA1")
        assert list(tmp_path.iterdir()) == []
