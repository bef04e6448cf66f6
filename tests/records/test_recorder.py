"""What is kept of a call at its end: the process that makes it, and its failures."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.agent.live import CallFacts
from bridge.core.capabilities import SIP
from bridge.core.limits import Bounds
from bridge.picture.files import RecordPart
from bridge.privacy.redaction import Redaction
from bridge.records import recorder
from bridge.records.recorder import (
    INHERITED,
    MAX_MEMORY_BYTES,
    NICE,
    Recorder,
    show_command,
)
from bridge.records.report import CallReport, report_of_silence
from bridge.records.retention import StillRuns, forget
from bridge.telemetry.disk_space import DiskSpace
from bridge.telemetry.trace import Trace
from bridge.telemetry.trace_file import TraceWriter
from tests.support.waiting import until

Parts = frozenset[RecordPart]
AUDIO: Parts = frozenset({"audio"})
ALL: Parts = frozenset({"trace", "audio", "page", "report"})
FACTS = CallFacts.of("CA1", {"From": "+14155550100", "To": "+14155550101"})
REPORT = replace(report_of_silence(FACTS, "busy", 0.0), stream_sid="MZ1")


@dataclass
class Place:
    recorder: Recorder
    folder: Path
    failed: list[None] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def call(self, sid: str, parts: Parts | None = None, **conf: Any) -> Trace:
        """A call that has ended."""
        trace = Trace(1.0, self.losses.append, Bounds(), **conf)
        if self.recorder.begin(trace, sid, "MZ1", parts, Redaction()):
            trace.close()
            self.recorder.call_ended(trace, parts)
        return trace

    @property
    def left(self) -> set[str]:
        return {it.name for it in self.folder.iterdir()}


@asynccontextmanager
async def recording(
    folder: Path,
    script: str = "",
    *,
    parts: Parts = AUDIO,
    disk: DiskSpace | None = None,
    **conf: Any,
) -> AsyncIterator[Place]:
    """With a script in the place of `bridge show`: its arguments are a trace and the
    parts."""

    def command(trace: Path, wanted: Collection[RecordPart]) -> Sequence[str]:
        return [sys.executable, "-c", script, str(trace), *wanted]

    failed: list[None] = []
    # A busy machine runs a process of the lowest priority late.
    conf = {"close_seconds": 120.0, **conf}
    if script:
        conf = {"command": command, **conf}
    async with TraceWriter(disk=disk) as writer:
        it = Recorder(folder, parts, writer, lambda: failed.append(None), **conf)
        async with it:
            yield Place(it, folder, failed)


WRITES = """
import sys
for part in sys.argv[2:]:
    open(sys.argv[1].partition(".trace")[0] + "." + part, "w").close()
"""
HANGS = """
import pathlib, sys, time
pathlib.Path(sys.argv[1] + ".hangs").touch()
time.sleep(600)
"""


def failures(logs: Sequence[Any]) -> list[tuple[str, str]]:
    """(call, why); nothing else is logged."""
    assert all(
        (it["event"], it["log_level"]) == ("record_failed", "error") for it in logs
    )
    assert all(it.keys() == {"event", "log_level", "call_sid", "why"} for it in logs)
    return [(it["call_sid"], it["why"]) for it in logs]


async def test_the_trace_goes_when_the_others_are_made(tmp_path: Path) -> None:
    """If it is not wanted. A route says what is wanted; else the setting does."""
    async with recording(tmp_path, WRITES) as place:
        place.call("CA1")
        place.call("CA2", frozenset({"trace", "page"}))
        place.call("CA3", frozenset())
        place.call("CA4", frozenset({"report"}))
        place.call("CA5", frozenset({"trace"}))

    assert place.left == {
        "CA1.MZ1.audio",
        *("CA2.MZ1.page", "CA2.MZ1.trace.jsonl.zst"),
        "CA5.MZ1.trace.jsonl.zst",
    }
    assert place.failed == []


async def test_no_process_is_started_for_traces(tmp_path: Path) -> None:
    """The default costs nothing."""
    parts: Parts = frozenset({"trace", "report"})
    async with recording(tmp_path, HANGS, parts=parts) as place:
        place.call("CA1")
        names = {task.get_name() for task in asyncio.all_tasks()}

    assert "records" not in names
    assert place.left == {"CA1.MZ1.trace.jsonl.zst"}


async def test_a_call_without_audio_has_no_wav(tmp_path: Path) -> None:
    """The audio of a SIP call does not pass the bridge."""
    async with recording(tmp_path, WRITES) as place:
        place.call("CA1", capabilities=SIP)
        place.call("CA2", ALL, capabilities=SIP)

    assert place.left == {"CA2.MZ1.page", "CA2.MZ1.trace.jsonl.zst"}


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Many calls that end together do not take the machine from those that run."""
    script = """
import os, pathlib, sys
busy = pathlib.Path(sys.argv[1]).parent / "busy"
busy.mkdir()  # fails if another one is there
busy.rmdir()
"""
    async with recording(tmp_path, script) as place:
        for n in range(4):
            place.call(f"CA{n}")

    assert (place.left, place.failed) == (set(), [])


async def test_the_process_has_the_lowest_priority_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of the bridge are not in its environment."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    script = f"""
import json, os, pathlib, sys, time
while os.nice(0) != {NICE}:
    time.sleep(0.01)
pathlib.Path(sys.argv[1]).with_name("environ").write_text(json.dumps(dict(os.environ)))
"""
    async with recording(tmp_path, script) as place:
        place.call("CA1")

    found = json.loads((tmp_path / "environ").read_text())
    assert found.keys() - {"LC_CTYPE"} <= {*INHERITED, "PYTHONPATH"}
    assert place.failed == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise SystemExit(3)", "bridge show ended with 3"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "bridge show was ended by SIGKILL",
        ),
    ],
)
async def test_a_process_that_fails_is_logged(
    tmp_path: Path, script: str, why: str
) -> None:
    """The trace stays, although it was not wanted, and the next call has its turn."""
    with capture_logs() as logs:
        async with recording(tmp_path, script) as place:
            place.call("CA1")
            place.call("CA2")

    assert failures(logs) == [("CA1", why), ("CA2", why)]
    assert len(place.failed) == 2
    assert place.left == {f"CA{n}.MZ1.trace.jsonl.zst" for n in (1, 2)}


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
async def test_the_memory_of_the_process_is_bounded(tmp_path: Path) -> None:
    """A call of hours does not take the memory of the calls that run."""
    script = f"""
import resource
while resource.getrlimit(resource.RLIMIT_DATA)[0] != {MAX_MEMORY_BYTES}:
    pass
try:
    bytes({MAX_MEMORY_BYTES})
except MemoryError:
    raise SystemExit(7)
"""
    with capture_logs() as logs:
        async with recording(tmp_path, script) as place:
            place.call("CA1")

    assert failures(logs) == [("CA1", "bridge show ended with 7")]


async def test_a_process_that_cannot_start_is_logged(tmp_path: Path) -> None:
    with capture_logs() as logs:
        none = [str(tmp_path / "no program")]
        async with recording(tmp_path, command=lambda *_: none) as place:
            place.call("CA1")

    assert failures(logs) == [("CA1", "No such file or directory")]


async def test_a_trace_that_cannot_be_read_is_logged(tmp_path: Path) -> None:
    """The real command, with a trace of another format."""
    with capture_logs() as logs:
        async with recording(tmp_path) as place:
            trace = Trace(1.0, place.losses.append)
            place.recorder.begin(trace, "CA1", "MZ1", None, Redaction())
            trace.close()
            assert trace.path and await place.recorder.writer.written()
            trace.path.write_bytes(b'{"format": 1}\n')
            place.recorder.call_ended(trace, None)

    assert failures(logs) == [("CA1", "bridge show ended with 1")]


async def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """A trace on which the replay hangs keeps no other call waiting."""
    with capture_logs() as logs:
        async with recording(tmp_path, HANGS, make_seconds=0.2) as place:
            place.call("CA1")
            await until(lambda: place.failed)

    assert failures(logs) == [("CA1", "not made in 0.2 s")]


async def test_a_shutdown_does_not_wait_for_ever(tmp_path: Path) -> None:
    """The process is ended, the calls that are left are named, their traces stay."""
    with capture_logs() as logs:
        async with recording(tmp_path, HANGS, close_seconds=0.0) as place:
            place.call("CA1")
            place.call("CA2")
            await until((tmp_path / "CA1.MZ1.trace.jsonl.zst.hangs").exists)

    assert failures(logs) == [("CA1", "shutdown"), ("CA2", "shutdown")]
    assert {f"CA{n}.MZ1.trace.jsonl.zst" for n in (1, 2)} <= place.left


async def test_the_calls_that_wait_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "QUEUE_CALLS", 2)
    with capture_logs() as logs:
        async with recording(tmp_path, WRITES) as place:
            for n in range(4):
                place.call(f"CA{n}")

    why = "too many calls wait"
    assert failures(logs) == [("CA2", why), ("CA3", why)]
    assert {"CA0.MZ1.audio", "CA1.MZ1.audio", "CA2.MZ1.trace.jsonl.zst"} <= place.left


async def test_nothing_is_made_from_a_trace_that_was_lost(tmp_path: Path) -> None:
    """The file may be that of another call: its name comes from the stream's sender.
    It is not deleted."""
    other = tmp_path / "CA1.MZ1.trace.jsonl.zst"
    other.write_text("words of another call")
    with capture_logs() as logs:
        async with recording(tmp_path, WRITES) as place:
            place.call("CA1")

    assert failures(logs) == [("CA1", "the trace is not complete")]
    assert place.losses == [os.strerror(17)]
    assert (place.left, other.read_text()) == ({other.name}, "words of another call")


async def test_a_disk_that_is_nearly_full_gets_no_more(tmp_path: Path) -> None:
    """A WAV is larger than a trace."""
    disk = DiskSpace(tmp_path)
    with capture_logs() as logs:
        async with recording(tmp_path, WRITES, parts=ALL, disk=disk) as place:
            place.call("CA1")
            disk.is_nearly_full = True
            place.recorder.keep_report(REPORT, None, None)

    why = "the disk is nearly full"
    assert failures(logs) == [("CA1", why), ("CA1", why)]
    assert place.left == {"CA1.MZ1.trace.jsonl.zst"}


async def test_a_call_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    """Not before its files are made, else they would be written after the deletion. A
    trace that is deleted while it waits is no failure."""
    first, second = (tmp_path / f"CA{n}.MZ1.trace.jsonl.zst" for n in (1, 2))
    script = """
import pathlib, sys, time
trace = pathlib.Path(sys.argv[1])
trace.with_suffix(".begun").touch()
while not trace.with_suffix(".go").exists():
    time.sleep(0.01)
"""
    async with recording(tmp_path, script) as place:
        place.call("CA1")
        place.call("CA2")
        await until(first.with_suffix(".begun").exists)
        assert await place.recorder.writer.written()

        with pytest.raises(StillRuns):
            forget(tmp_path, "CA1")
        assert forget(tmp_path, "CA2") == 1
        first.with_suffix(".go").touch()

    assert not first.exists() and not second.with_suffix(".begun").exists()
    assert place.failed == []


# --- the report ---


async def test_a_report_is_kept_beside_the_trace(tmp_path: Path) -> None:
    """Its stream may be a later one than that which has named the trace. Without a
    trace, it has the name that a trace would have."""
    folder = tmp_path / "new"
    async with recording(folder, parts=frozenset({"report"})) as place:
        trace = folder / "CA1.MZ0.trace.jsonl.zst"
        place.recorder.keep_report(REPORT, None, trace)
        place.recorder.keep_report(replace(REPORT, call_sid="CA2"), None, None)
        unanswered = replace(REPORT, call_sid="CA3", stream_sid="")
        place.recorder.keep_report(unanswered, None, None)
        place.recorder.keep_report(REPORT, frozenset(), None)

    names = {f"{it}.call.json" for it in ("CA1.MZ0", "CA2.MZ1", "CA3.CA3")}
    assert place.left == names
    written = folder / "CA1.MZ0.call.json"
    assert written.read_bytes() == REPORT.as_json()
    assert written.stat().st_mode & 0o777 == 0o600
    assert place.failed == []


class Odd:
    """A note that cannot be written."""

    def __str__(self) -> str:
        raise ZeroDivisionError("words of people")


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (replace(REPORT, notes={"it": Odd()}), "ZeroDivisionError"),
        (replace(REPORT, call_sid="CA9"), "File exists"),
    ],
)
async def test_a_report_that_cannot_be_kept_is_logged(
    tmp_path: Path, report: CallReport, why: str
) -> None:
    other = tmp_path / "CA9.MZ1.call.json"
    other.write_text("another report")
    with capture_logs() as logs:
        async with recording(tmp_path, parts=ALL) as place:
            place.recorder.keep_report(report, None, None)

    assert failures(logs) == [(report.call_sid, why)]
    assert (len(place.failed), other.read_text()) == (1, "another report")


async def test_a_report_that_the_disk_does_not_take_in_time(tmp_path: Path) -> None:
    failed: list[None] = []
    with capture_logs() as logs:
        async with TraceWriter(queue_bytes=10) as writer:
            it = Recorder(tmp_path, ALL, writer, lambda: failed.append(None))
            it.keep_report(REPORT, None, None)

    assert failures(logs) == [("CA1", "the disk does not keep up")]


async def test_nothing_is_kept_without_a_folder(tmp_path: Path) -> None:
    async with TraceWriter() as writer, Recorder(None, ALL, writer, pytest.fail) as it:
        trace = Trace(1.0, pytest.fail)
        assert not it.begin(trace, "CA1", "MZ1", ALL, Redaction())
        it.keep_report(REPORT, ALL, None)
    assert trace.path is None


def test_the_command() -> None:
    """One replay makes both files; the path cannot be taken for an option."""
    command = show_command(Path("calls/--last.trace.jsonl"), ["page", "audio"])

    here = str(Path("calls/--last.trace.jsonl").absolute())
    assert command[1:] == ["-P", "-m", "bridge", "show", here, "--wav", "--page"]
