"""Standard output and standard error of `bridge serve`: nobody waits for their reader.

A pipe whose reader has stopped blocks each write; a closed pipe and a full disk raise
an exception in the code that logs or prints. Both would stop all calls. So a thread for
each stream writes, and lines that cannot be written are lost and counted.
"""

import atexit
import io
import os
import select
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

import structlog

from bridge.telemetry.writer_thread import WriterThread

log = structlog.get_logger()

QUEUE_BYTES = 4 * 1024 * 1024
"""Lines of one stream that wait for its reader. A call logs about 3 kB."""

LINE_OVERHEAD = 200
"""Bytes that a waiting line needs besides its text."""

FINISH_SECONDS = 2.0
"""Time for the reader to take the last lines when the process ends."""


class LostLines:
    """Counts the lines that could not be written; any thread may use it."""

    def __init__(self) -> None:
        # Reentrant: a finalizer that runs meanwhile may log or print.
        self._lock = threading.RLock()
        self._total = self._unlogged = 0
        self._on_lost: Callable[[int], None] | None = None

    def add(self, lines: int) -> None:
        with self._lock:
            self._total += lines
            self._unlogged += lines
            if self._on_lost:
                self._on_lost(lines)

    def count_with(self, on_lost: Callable[[int], None]) -> None:
        """Calls `on_lost` with the lines lost so far, and then with each loss."""
        with self._lock:
            on_lost(self._total)
            self._on_lost = on_lost

    def log(self) -> None:
        """Writes to the log how many lines were lost since the last time."""
        with self._lock:
            lines, self._unlogged = self._unlogged, 0
        if lines:
            log.warning("log_lines_lost", lines=lines)


class OutputFile(io.BufferedIOBase):
    """The file behind a stream. `write` takes whole lines; it neither waits nor
    raises."""

    def __init__(
        self, file: int, name: str, lost: LostLines, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        # A copy: code that closes the original must not make us write into a socket
        # that gets the same number.
        self._file = os.dup(file)
        self.name = f"<{name}>"
        self._lost = lost
        self._has_log = name == "stderr"
        self._is_torn = False
        """The last line in the file is incomplete."""
        self._thread: WriterThread | None = WriterThread(name, queue_bytes)
        os.register_at_fork(after_in_child=self._forget_thread)

    def write(self, data: Any, /) -> int:
        """`data`: bytes, or an object with a buffer."""
        lines = bytes(data)
        if self._thread is None:
            self._write(lines)
        elif not self._thread.add(
            partial(self._write, lines), len(lines) + LINE_OVERHEAD
        ):
            self._lose(lines)
        return len(lines)

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Waits until the lines in the queue are written, but not for ever."""
        if self._thread:
            self._thread.finish(seconds)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return os.isatty(self._file)

    def _forget_thread(self) -> None:
        # A child process of the user's code has no threads of this process.
        self._thread = None

    def _write(self, lines: bytes) -> None:
        """In the thread."""
        left = whole = b"\n" + lines if self._is_torn else lines
        try:
            while left:
                left = left[self._write_some(left) :]
        except OSError:
            self._is_torn = self._is_torn or len(left) < len(whole)
            self._lose(lines)
            return
        self._is_torn = False
        # Only if the log itself can be written, and not while the queue is nearly full:
        # the line about lost lines would be lost.
        if self._has_log and self._thread and self._thread.is_half_empty:
            self._lost.log()

    def _write_some(self, data: bytes) -> int:
        try:
            return os.write(self._file, data)
        except BlockingIOError:  # another process has made the pipe non-blocking
            waiting = select.poll()
            waiting.register(self._file, select.POLLOUT)
            waiting.poll()
            return 0

    def _lose(self, lines: bytes) -> None:
        self._lost.add(max(lines.count(b"\n"), 1))


def protect_output() -> LostLines:
    """Replaces sys.stdout and sys.stderr; call it once, before anything keeps them.

    What waits is written when the process ends, uncaught exceptions included.
    """
    lost = LostLines()
    for name in ("stdout", "stderr"):
        file = _file_of(getattr(sys, name))
        if file is None:
            continue
        output = OutputFile(file, name, lost)
        atexit.register(output.finish)
        stream = io.TextIOWrapper(
            output,
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, stream)
    return lost


def _file_of(stream: TextIO | None) -> int | None:
    """None: the stream is no file (in a test), so it needs no protection."""
    if stream is None:  # closed when the process started
        return os.open(os.devnull, os.O_WRONLY)
    try:
        return stream.fileno()
    except io.UnsupportedOperation:
        return None
