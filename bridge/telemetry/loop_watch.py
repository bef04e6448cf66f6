"""Measures how late the event loop is, and logs what holds it.

A timer of the event loop measures. A thread sees when the timer is late: it looks at
the stack of the event loop's thread, because the loop itself cannot. loop_holds.py
decides what a hold was.
"""

import asyncio
import gc
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import structlog

from bridge.agent.user_code import name_of
from bridge.telemetry.loop_holds import (
    IDLE_PERIOD_SECONDS,
    PERIOD_SECONDS,
    HoldWatch,
    LineLimit,
    Sample,
)

log = structlog.get_logger()

STOP_SECONDS = 1.0
"""Time for the thread to end; it waits for nothing but the log."""

_LIBRARY_FOLDERS = (
    *(sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")),
    *(str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "twiml"), "<"),
)
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@contextmanager
def watch_loop(
    lag: Callable[[float], object], calls: Callable[[], int]
) -> Iterator[None]:
    """Watches the running event loop while the context is open. `lag` gets the seconds
    by which the loop is late; `calls` gives the number of calls."""
    watch = _LoopWatch(asyncio.get_running_loop(), lag, calls)
    watch.start()
    try:
        yield
    finally:
        watch.stop()


class _LoopWatch:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lag: Callable[[float], object],
        calls: Callable[[], int],
    ) -> None:
        self._loop, self._lag, self._calls = loop, lag, calls
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        # A daemon, so that the process can end while a log handler hangs.
        self._thread = threading.Thread(
            target=self._run, name="loop watch", daemon=True
        )
        self._holds = HoldWatch()
        self._lines = LineLimit()
        self._of_loop: frozenset[CodeType] = frozenset()
        """Code that runs the event loop, with all that has called it."""
        self._gc_started = self._gc_seconds = 0.0

    def start(self) -> None:
        self._timer: asyncio.Handle = self._loop.call_soon(self._begin)
        gc.callbacks.append(self._on_gc)

    def stop(self) -> None:
        self._timer.cancel()
        gc.callbacks.remove(self._on_gc)
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _begin(self) -> None:
        below = sys._getframe().f_back
        self._of_loop = frozenset(it.f_code for it in _outwards(below))
        cpu = time.thread_time(), time.process_time()
        self._holds.begin(time.monotonic(), *cpu, self._gc_seconds)
        self._timer = self._loop.call_later(PERIOD_SECONDS, self._beat)
        self._thread.start()

    def _beat(self) -> None:
        now, cpu = time.monotonic(), time.thread_time()
        period = PERIOD_SECONDS if self._calls() else IDLE_PERIOD_SECONDS
        for late in self._holds.beat(now, cpu, self._gc_seconds, period):
            self._lag(late)
        self._timer = self._loop.call_later(period, self._beat)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        """Any thread may collect garbage; the interpreter's lock stops the others."""
        now = time.monotonic()
        if phase == "start":
            self._gc_started = now
        else:
            self._gc_seconds += now - self._gc_started

    def _run(self) -> None:
        """In the thread."""
        while not self._stopping.wait(self._holds.wait_seconds(time.monotonic())):
            now = time.monotonic()
            holds, is_held = self._holds.woke(now, time.process_time())
            if is_held:
                self._holds.add(self._sample())
            for hold in holds:
                self._log(hold.fields(), is_over=hold.is_over)

    def _log(self, fields: dict[str, object], *, is_over: bool) -> None:
        # Of a tool one line, whatever line of it was seen.
        code = fields.get("tool") or str(fields.get("where")).rpartition(":")[0]
        cause = is_over, fields["by"], code
        skipped = self._lines.take(cause, time.monotonic())
        if skipped is None:
            return
        more = {"not_logged": skipped} if skipped else {}
        if is_over:
            log.warning("loop_held", **fields, **more)
        else:
            log.error("loop_still_held", **fields, **more)

    def _sample(self) -> Sample:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)
        frames = []
        for it in _outwards(frame):
            if it.f_code in self._of_loop:
                break
            frames.append(it)
        # asyncio waits for events in a Python function, uvloop in C.
        if not frames or frames[0].f_code.co_filename.endswith("selectors.py"):
            return Sample()
        callback = frames[-1].f_code.co_qualname
        return Sample(_name(task) if task else "", callback, _where(frames))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _name(task: asyncio.Task[Any]) -> str:
    work = getattr(task.get_coro(), "__qualname__", "")
    return name_of(task) or f"{task.get_name()} {work}".rstrip()


def _where(frames: list[FrameType]) -> str:
    """The innermost line of the user's code, and the innermost line of all."""
    theirs = next((it for it in frames if _is_users(it.f_code)), frames[0])
    found = dict.fromkeys((theirs, frames[0]))
    return " > ".join(
        f"{it.f_code.co_filename}:{it.f_lineno} {it.f_code.co_name}" for it in found
    )


def _is_users(code: CodeType) -> bool:
    """Whether this is code of neither Python, a package, nor the bridge."""
    file = code.co_filename
    return not (
        file.startswith(_LIBRARY_FOLDERS)
        or any(it in Path(file).parts for it in _PACKAGE_FOLDERS)
    )
