"""A clock that jumps while nothing happens, and stands still while a test computes.

Calls run in real time: they mostly wait for the next frame of a phone. In a test, both
ends of each connection are usually in the test's own event loop. When such a loop has
nothing to do until its next timer, nothing can happen until then, so the clock jumps
there. While the loop computes, the clock stands still. So a call of 20 s takes as long
as it computes, and a busy machine delays no part of it.

The clock is real while something happens that the loop does not know: a thread works,
another process was started, or a socket leads to another process. `install` must run before any module imports
`monotonic`. Tests on uvloop, and event loops that a test makes itself, have real time.
"""

import asyncio
import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEP_SECONDS = 10e-6
"""Simulated time of one turn of the event loop. It is not 0, so that code which waits
turn by turn until a moment ends."""

TICK_SECONDS = 1e-6
"""Simulated time between two looks at the clock."""

QUIET_SECONDS = 0.0005
"""Real time without an event after which the clock jumps: the kernel usually delivers
what a socket sent before the call that sends returns, but not always."""

WAITING_THREADS = ("loop watch", "asyncio_")
"""Threads that mostly wait. The work of asyncio's own is counted."""

_monotonic, _time, _sleep = time.monotonic, time.time, time.sleep


class SimulatedClock:
    """Stands in for the functions of `time`. It is real unless a loop has stopped it."""

    def __init__(self) -> None:
        self._ahead = 0.0
        """Seconds by which it is ahead of the real clock while it is real. Never
        smaller than before, so that it does not go backwards."""
        self._ahead_before = 0.0
        """The same, when the present loop began: wall time was right then."""
        self._stopped_at: float | None = None
        self._thread = 0

    def monotonic(self) -> float:
        if self._stopped_at is None:
            return _monotonic() + self._ahead
        if threading.get_ident() == self._thread:
            self._stopped_at += TICK_SECONDS
        return self._stopped_at

    def time(self) -> float:
        return _time() + self.monotonic() - _monotonic() - self._ahead_before

    def sleep(self, seconds: float) -> None:
        """Blocks the loop in simulated time only, unless it waits for a process."""
        if self._stopped_at is None or threading.get_ident() != self._thread:
            _sleep(seconds)
        else:
            if _children():
                _sleep(seconds)
            self.advance(seconds)

    def stop(self) -> None:
        self._thread = threading.get_ident()
        self._stopped_at = _monotonic() + self._ahead

    def go(self) -> None:
        if self._stopped_at is not None:
            self._ahead = self._stopped_at - _monotonic()
            self._stopped_at = None

    def advance(self, seconds: float) -> None:
        assert self._stopped_at is not None
        self._stopped_at += seconds

    def begin(self) -> None:
        """From now on, wall time is right."""
        self._ahead_before = self._ahead


CLOCK = SimulatedClock()


def install() -> None:
    """Replaces the clocks of `time`."""
    time.monotonic, time.time, time.sleep = CLOCK.monotonic, CLOCK.time, CLOCK.sleep


class _Selector(selectors.EpollSelector):
    """Jumps instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self._others = set(threading.enumerate())
        self._children = _children()
        """Threads and processes of the test runner and of fixtures."""
        self.working = 0
        """Functions that run in the executor."""
        self._ports: dict[int, int] = {}
        """File descriptors of servers of this loop, and their ports."""
        self._known: set[int] = set()
        """File descriptors whose other end is in this loop."""

    def register(
        self, fileobj: Any, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        if port := _listens(key.fd):
            self._ports[key.fd] = port
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self._ports.pop(key.fd, None)
        self._known.discard(key.fd)
        return key

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        CLOCK.advance(STEP_SECONDS)
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if timeout is None or self._has_company():
            CLOCK.go()
            try:
                return super().select(timeout)
            finally:
                CLOCK.stop()
        found = super().select(0) or super().select(QUIET_SECONDS)
        if not found:
            CLOCK.advance(timeout)
        return found

    def _has_company(self) -> bool:
        """Something outside of this loop may have to do with it."""
        return (
            self.working > 0
            or not _children() <= self._children
            or any(_works(it) for it in set(threading.enumerate()) - self._others)
            or any(not self._is_own(fd) for fd in self.get_map())
        )

    def _is_own(self, fd: int) -> bool:
        if fd in self._known or fd in self._ports:
            return True
        own = _leads_to(fd, set(self._ports.values()))
        if own:
            self._known.add(fd)
        return own


def _listens(fd: int) -> int:
    """The port of a server; 0: it is none."""
    try:
        with socket.socket(fileno=os.dup(fd)) as it:
            if it.family not in (socket.AF_INET, socket.AF_INET6):
                return 0
            if not it.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return 0
            return int(it.getsockname()[1])
    except OSError:
        return 0


def _leads_to(fd: int, ports: set[int]) -> bool:
    """Whether it is a pair of sockets, or an end of a connection with one of the
    ports."""
    try:
        with socket.socket(fileno=os.dup(fd)) as it:
            if it.family == socket.AF_UNIX:
                return not it.getsockname()
            return it.getsockname()[1] in ports or it.getpeername()[1] in ports
    except OSError:
        return False


def _children() -> frozenset[str]:
    """Ids of the processes that this one has started and not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return frozenset()  # quicker than the files
    found: list[str] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += file.read_text().split()
    return frozenset(found)


def _works(thread: threading.Thread) -> bool:
    if thread.name.startswith(WAITING_THREADS):
        return False
    worker_queue = getattr(thread, "queue", None)  # of anyio
    if worker_queue is not None:
        return bool(worker_queue.unfinished_tasks)
    owner = getattr(getattr(thread, "_target", None), "__self__", None)
    jobs = getattr(owner, "_jobs", None)  # of a WriterThread
    return jobs is None or not jobs.empty()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio in simulated time."""

    _selector: _Selector

    def __init__(self) -> None:
        self._lock = threading.Lock()
        super().__init__(_Selector())
        CLOCK.begin()

    def run_forever(self) -> None:
        CLOCK.stop()
        try:
            super().run_forever()
        finally:
            CLOCK.go()

    def close(self) -> None:
        super().close()
        CLOCK.begin()

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        selector, lock = self._selector, self._lock

        def work() -> Any:
            try:
                return func(*args)
            finally:
                with lock:
                    selector.working -= 1

        with lock:
            selector.working += 2

        def done(_: object) -> None:
            with lock:
                selector.working -= 1

        future = super().run_in_executor(executor, work)
        future.add_done_callback(done)
        return future

