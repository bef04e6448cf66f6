"""What is kept of a call at its end: its trace, and files beside it
(bridge/picture/files.py).

The WAV and the page are made from the trace by `bridge show`, for one call at a time,
in a process of its own with the lowest priority: a replay holds the GIL for seconds.
The thread of the traces writes the report. A failure ends nothing: it is counted and
logged, and the trace stays.
"""

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from bridge.picture.files import REPORT_SUFFIX, RecordPart, beside, write_private
from bridge.privacy.redaction import Redaction
from bridge.records.report import CallReport
from bridge.telemetry.trace import Trace, stem
from bridge.telemetry.trace_file import NEARLY_FULL, TOO_SLOW, TraceWriter

log = structlog.get_logger()

QUEUE_CALLS = 1000
"""Calls that wait for their files. The files of further calls are not made."""

MAKE_SECONDS = 300.0
"""Time to make the files of one call. An hour of call needs 12 s of an idle core."""

CLOSE_SECONDS = 10.0
"""Time for the files of the calls that wait, at shutdown."""

POLL_SECONDS = 0.1
"""Between two looks whether the process has ended."""

NICE = 19
"""The lowest priority: what serves calls goes first."""

OPTIONS: dict[RecordPart, str] = {"audio": "--wav", "page": "--page"}
"""What `bridge show` makes from a trace."""

MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Of the process: an hour of call. The container's memory is for the calls."""

INHERITED = ("PATH", "LANG", "LD_LIBRARY_PATH")
"""Variables that the process gets. It needs no secret."""


def show_command(trace: Path, parts: Collection[RecordPart]) -> list[str]:
    """The command that makes the files of a trace."""
    options = [option for part, option in OPTIONS.items() if part in parts]
    python = [sys.executable, "-P", "-m", "bridge"]
    return [*python, "show", str(trace.absolute()), *options]


@dataclass(frozen=True, slots=True)
class _Job:
    trace: Trace
    path: Path
    parts: frozenset[RecordPart]


class Recorder:
    """Keeps the records of an instance's calls. Use it as a context manager; at its end
    it makes the files of the calls that wait, for CLOSE_SECONDS. The traces of the
    others stay."""

    def __init__(
        self,
        folder: Path | None,
        parts: frozenset[RecordPart],
        writer: TraceWriter,
        on_failed: Callable[[], None],
        *,
        command: Callable[[Path, Collection[RecordPart]], Sequence[str]] = show_command,
        make_seconds: float = MAKE_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        """`folder` None: nothing is kept. `parts`: of routes that say nothing.
        `on_failed` is called, in any thread, for each call of which a file is not
        made."""
        self.folder = folder
        self._usual = parts
        self.writer = writer
        self._on_failed = on_failed
        self._command = command
        self._make_seconds, self._close_seconds = make_seconds, close_seconds
        self._waiting: deque[_Job] = deque()
        self._tasks = asyncio.TaskGroup()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._worker:
            await asyncio.wait([self._worker], timeout=self._close_seconds)
            self._worker.cancel()
        await self._tasks.__aexit__(None, None, None)
        for job in self._waiting:
            self._failed(job.path, "shutdown")

    # --- of a call ---

    def begin(
        self,
        trace: Trace,
        call_sid: str,
        stream_sid: str,
        of_route: frozenset[RecordPart] | None,
        redaction: Redaction,
    ) -> bool:
        """Opens the trace of a call, whose route is known now. False: the route needs
        none, so nothing is written. `stream_sid` is empty for a call without a
        stream."""
        parts = self._parts(of_route)
        if self.folder is None or not ("trace" in parts or _made(trace, parts)):
            return False
        trace.open(self.writer, self.folder, call_sid, stream_sid, redaction)
        return True

    def call_ended(self, trace: Trace, of_route: frozenset[RecordPart] | None) -> None:
        """The call is over, and its trace is closed: makes the files that the route
        wants, later."""
        parts = self._parts(of_route)
        if trace.path is None or not _made(trace, parts):
            return
        if len(self._waiting) >= QUEUE_CALLS:
            self._failed(trace.path, "too many calls wait")
            return
        self._waiting.append(_Job(trace, trace.path, parts))
        if self._worker is None or self._worker.done():
            self._worker = self._tasks.create_task(self._work(), name="records")

    def keep_report(
        self,
        report: CallReport,
        of_route: frozenset[RecordPart] | None,
        trace: Path | None,
    ) -> None:
        """Writes the report as JSON, if the route wants it: beside the `trace`. Raises
        nothing."""
        if self.folder is None or "report" not in self._parts(of_route):
            return
        name = f"{stem(report.call_sid, report.stream_sid)}{REPORT_SUFFIX}"
        path = beside(trace, REPORT_SUFFIX) if trace else self.folder / name
        try:
            content = report.as_json()
        except Exception as error:  # the notes are the user's, and may be anything
            self._failed(path, type(error).__name__)
            return
        if self.writer.is_disk_nearly_full:
            self._failed(path, NEARLY_FULL)
        elif not self.writer.add(partial(self._write, path, content), len(content)):
            self._failed(path, TOO_SLOW)

    def _parts(self, of_route: frozenset[RecordPart] | None) -> frozenset[RecordPart]:
        return self._usual if of_route is None else of_route

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The SIDs in the name come from the sender of the stream.
            write_private(path, content, replace=False)
        except OSError as error:
            self._failed(path, _why(error))

    def _failed(self, path: Path, why: str) -> None:
        self._on_failed()
        log.error("record_failed", call_sid=path.name.partition(".")[0], why=why)

    # --- the process ---

    async def _work(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            try:
                why = await self._make(job)
            except asyncio.CancelledError:
                self._failed(job.path, "shutdown")
                raise
            except OSError as error:
                why = _why(error)
            if why:
                self._failed(job.path, why)

    async def _make(self, job: _Job) -> str:
        """Makes the files of one call. Returns why it cannot; empty if it can, or if
        the trace was deleted meanwhile."""
        if not await self.writer.written():
            return TOO_SLOW
        if job.trace.lost:
            return "the trace is not complete"
        if self.writer.is_disk_nearly_full:
            return NEARLY_FULL
        lock = await asyncio.to_thread(_locked, job.path)
        if lock is None:
            return ""
        try:
            why = await self._run(self._command(job.path, _made(job.trace, job.parts)))
            if not why and "trace" not in job.parts:
                await asyncio.to_thread(job.path.unlink, missing_ok=True)
        finally:
            os.close(lock)
        return why

    async def _run(self, command: Sequence[str]) -> str:
        """Runs a process to its end. Returns why it failed, or nothing."""
        starting = asyncio.get_running_loop().run_in_executor(None, _start, command)
        try:
            async with asyncio.timeout(self._make_seconds):
                process = await asyncio.shield(starting)
                # No thread waits for it: tools of agents need those of the pool.
                while (status := process.poll()) is None:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            return f"not made in {self._make_seconds:g} s"
        finally:
            process = await starting
            if process.poll() is None:
                process.kill()
                await asyncio.to_thread(process.wait)
        if status < 0:
            return f"bridge show was ended by {signal.Signals(-status).name}"
        return f"bridge show ended with {status}" if status else ""


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Called in a thread: the start of a process takes milliseconds, and up to 12 ms by
    uvloop, which copies the page tables."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = subprocess.Popen(  # noqa: S603 - our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # it names the call, and may quote it
        env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C at the terminal is for the bridge
    )
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        if sys.platform == "linux":
            limit = (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES)
            resource.prlimit(process.pid, resource.RLIMIT_DATA, limit)
    return process


def _made(trace: Trace, parts: Collection[RecordPart]) -> list[RecordPart]:
    """What is made from the trace. A call whose audio does not pass the bridge has no
    WAV."""
    made = [part for part in OPTIONS if part in parts]
    return [part for part in made if part != "audio" or trace.has_audio]


def _locked(path: Path) -> int | None:
    """Locks a trace, so that retention.py does not delete it meanwhile: files that are
    made later would stay. None: it was deleted."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # some file systems have no locks
        fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file).st_nlink:
        return file
    os.close(file)
    return None


def _why(error: OSError) -> str:
    # Without the path, which contains the call's SID.
    return error.strerror or type(error).__name__
