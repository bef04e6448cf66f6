"""A clock that jumps while nothing happens, and stands still while a test computes.

Calls run in real time: they mostly wait for the next frame of a phone. In a test, both
ends of each connection are usually in the test's own event loop. When such a loop has
nothing to do until its next timer, nothing can happen until then, so the clock jumps
there. While the loop computes, the clock stands still. So a call of 20 s takes as long
as it computes, and a busy machine delays no part of it.

The clock is real while something happens that the loop does not know: a thread works,
another process was started, or a socket leads to another process. Event loops that a
test makes itself have real time. `install` must run before any module imports
`monotonic`. `perf_counter` and the clocks of the CPU are always real.
"""

import asyncio
import atexit
import contextlib
import errno
import functools
import heapq
import itertools
import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import uvloop

STEP_SECONDS = 10e-6
"""Simulated time of one turn of the event loop. It is not 0, so that code which waits
turn by turn until a moment ends."""

TICK_SECONDS = 1e-6
"""Simulated time between two looks at the clock."""

QUIET_TURNS = 3
"""Turns of uvloop's loop without a callback after which the clock jumps: it writes at
the end of a turn."""

DELIVERY_SECONDS = 0.2
"""Longest real time to wait until the kernel has delivered what was sent."""

POLL_SECONDS = 0.005
"""Real time after which uvloop looks again whether something happens outside."""

WAITING_THREADS = ("loop watch", "disk space", "asyncio_")
"""Threads that mostly wait. The work of asyncio's own is counted."""

_monotonic, _time, _sleep = time.monotonic, time.time, time.sleep


class SimulatedClock:
    """Replaces functions of `time`. It is real unless a loop has stopped it."""

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
        if self._stopped_at is None:
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


class Files(Protocol):
    """The files at which a loop waits."""

    def version(self) -> object:
        """Another one when a file was added."""

    def inodes(self) -> Mapping[int, int]:
        """Their inodes, and the descriptor of each."""


class _Company:
    """What else may have to do with a loop: threads, processes, and sockets that lead
    out of it."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._children = _children()
        """Threads and processes of the test runner and of fixtures."""
        self._lock = threading.Lock()
        self._working = 0
        self._ports: dict[int, int] = {}
        """Servers of the loop (by inode), and their ports."""
        self._own: set[int] = set()
        """Inodes of files whose other end is in the loop."""
        self._seen: object = None
        """The version of the files that were all found to be its own."""

    def work(self, func: Callable[..., Any], *args: Any) -> Any:
        """Runs in another thread; `work_ended` follows in the loop."""
        try:
            return func(*args)
        finally:
            self.work_ended()

    def work_begins(self) -> None:
        with self._lock:
            self._working += 2

    @contextlib.contextmanager
    def work_of_c(self) -> Iterator[None]:
        """A C library may use a thread of its own."""
        self.work_begins()
        try:
            yield
        finally:
            self.work_ended()
            self.work_ended()

    def work_ended(self, _: object = None) -> None:
        with self._lock:
            self._working -= 1

    def is_there(self, files: "Files") -> bool:
        return (
            self._working > 0
            or not _children() <= self._children
            or any(_works(it) for it in set(threading.enumerate()) - self._threads)
            or not self._all_own(files)
        )

    def _all_own(self, files: "Files") -> bool:
        version = files.version()
        if version == self._seen:
            return True
        seen = files.inodes()
        for inode in seen.keys() - self._own:
            if port := _listens(seen[inode]):
                self._ports[inode] = port
                self._own.add(inode)
        ports = {self._ports[it] for it in seen.keys() & self._ports.keys()}
        for inode in seen.keys() - self._own:
            if not _leads_to(seen[inode], ports):
                return False
            self._own.add(inode)
        self._seen = version
        return True


class _Selector(selectors.EpollSelector):
    """Jumps instead of waiting."""

    def __init__(self, company: _Company) -> None:
        super().__init__()
        self._company = company
        self._registered = 0

    def register(
        self, fileobj: Any, events: int, data: Any = None
    ) -> selectors.SelectorKey:
        self._registered += 1
        return super().register(fileobj, events, data)

    def version(self) -> object:
        return self._registered

    def inodes(self) -> Mapping[int, int]:
        found = {}
        for fd in self.get_map():
            with contextlib.suppress(OSError):  # it was closed
                found[os.fstat(fd).st_ino] = fd
        return found

    def select(
        self, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        CLOCK.advance(STEP_SECONDS)
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if timeout is None or self._company.is_there(self):
            CLOCK.go()
            try:
                return super().select(timeout)
            finally:
                CLOCK.stop()
        if found := super().select(0):
            return found
        _let_deliver()
        if not (found := super().select(0)):
            CLOCK.advance(timeout)
        return found


@functools.cache
def _echo(process: int) -> socket.socket:
    """A socket that receives what it sends."""
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(("127.0.0.1", 0))
    echo.connect(echo.getsockname())
    echo.settimeout(DELIVERY_SECONDS)
    atexit.register(echo.close)
    return echo


def _let_deliver() -> None:
    """Waits until what was sent within this machine has arrived. That is usually before
    the call that sends returns. On a busy machine it is later, in the order of
    sending."""
    echo = _echo(os.getpid())
    echo.send(b".")
    with contextlib.suppress(TimeoutError):  # the kernel may drop it
        echo.recv(1)


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
    except OSError as error:
        # A loop has pipes and events of its own. Those of a process come with it.
        return error.errno == errno.ENOTSOCK


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
    return not getattr(owner, "is_idle", False)  # of a WriterThread


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio in simulated time."""

    def __init__(self) -> None:
        self._company = _Company()
        super().__init__(_Selector(self._company))
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
        self._company.work_begins()
        future = super().run_in_executor(executor, self._company.work, func, *args)
        future.add_done_callback(self._company.work_ended)
        return future


class SimulatedUvloop(uvloop.Loop):
    """An event loop of uvloop in simulated time: its timers are kept here.

    While there is a timer, `_look` runs in each turn of the loop. When no callback was
    called for some turns, and no file is ready, the clock jumps to the next timer.
    """

    def __init__(self) -> None:
        self._company = _Company()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = itertools.count()
        self._looking = False
        self._called = self._quiet_turns = 0
        super().__init__()
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

    def time(self) -> float:
        return CLOCK.monotonic()

    def call_soon(self, *args: Any, **named: Any) -> Any:
        self._called += 1
        return super().call_soon(*args, **named)

    def call_soon_threadsafe(self, *args: Any, **named: Any) -> Any:
        self._called += 1
        return super().call_soon_threadsafe(*args, **named)

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Any = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._count), handle))
        if not self._looking:
            self._looking = True
            super().call_soon(self._look)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def run_in_executor(
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        self._company.work_begins()
        future = super().run_in_executor(executor, self._company.work, func, *args)
        future.add_done_callback(self._company.work_ended)
        return future

    async def create_server(self, *args: Any, **named: Any) -> Any:
        with self._company.work_of_c():  # looks for the host's address
            return await super().create_server(*args, **named)

    async def create_connection(self, *args: Any, **named: Any) -> Any:
        with self._company.work_of_c():
            return await super().create_connection(*args, **named)

    async def getaddrinfo(self, *args: Any, **named: Any) -> Any:
        with self._company.work_of_c():
            return await super().getaddrinfo(*args, **named)

    def _look(self) -> None:
        CLOCK.stop()
        CLOCK.advance(STEP_SECONDS)
        self._run_timers()
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        self._looking = bool(self._timers)
        if not self._looking:
            CLOCK.go()  # a thread may need it
            return
        quiet = not self._called and not self._has_files()
        self._quiet_turns = self._quiet_turns + 1 if quiet else 0
        self._called = 0
        if self._quiet_turns < QUIET_TURNS:
            super().call_soon(self._look)
            return
        self._quiet_turns = 0
        _let_deliver()
        left = max(self._timers[0][0] - CLOCK.monotonic(), 0.0)
        if self._company.is_there(self):
            CLOCK.go()
            super().call_later(min(left, POLL_SECONDS), self._look)
            return
        if not self._has_files():
            CLOCK.advance(left)
        super().call_soon(self._look)

    def _run_timers(self) -> None:
        now = CLOCK.monotonic()
        while self._timers and self._timers[0][0] <= now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._called += 1
                handle._run()

    def _has_files(self) -> bool:
        ready = select.poll()
        ready.register(self._get_backend_id(), select.POLLIN)
        return bool(ready.poll(0))

    def version(self) -> str:
        return Path(f"/proc/self/fdinfo/{self._get_backend_id()}").read_text()

    def inodes(self) -> Mapping[int, int]:
        found = {}
        for line in self.version().splitlines():
            if line.startswith("tfd:"):
                words = line.replace(":", " ").split()  # tfd 13 events ... ino b2a78
                found[int(words[words.index("ino") + 1], 16)] = int(words[1])
        return found


def due(loop: asyncio.AbstractEventLoop) -> list[Callable[..., object]]:
    """What the timers of a loop will call."""
    if isinstance(loop, SimulatedUvloop):
        timers = [timer for _, _, timer in loop._timers]
    else:
        assert isinstance(loop, SimulatedLoop)
        timers = loop._scheduled  # type: ignore[attr-defined]
    return [it._callback for it in timers if not it.cancelled()]  # type: ignore[attr-defined]
