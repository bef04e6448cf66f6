"""Watches the server under load, and the fakes' own event loop."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from bridge.sim.load_delays import Timed
from bridge.sim.load_report import LoadSample
from bridge.sim.model import ModelServer
from bridge.sim.server_process import ProcessTree

TICK_SECONDS = 0.01

Progress = Callable[[LoadSample], None]


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of the server and of the fakes during `seconds`."""

    seconds: float = 0.0
    server: float | None = 0.0
    fakes: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        server = None
        if self.server is not None and other.server is not None:
            server = self.server + other.server
        seconds = self.seconds + other.seconds
        return Spent(seconds, server, self.fakes + other.fakes)


class LoadMonitor:
    """The load passes `mark` at each border of its phases: all calls run, (the burst
    begins, the burst has ended,) the first call ends."""

    def __init__(
        self, pid: int | None, model: ModelServer, progress: Progress | None
    ) -> None:
        self.began = monotonic()
        self.late: list[Timed] = []  # of the event loop
        self.samples: list[LoadSample] = []
        self.marks: list[float] = []
        self._spent: list[Spent] = []  # since the start of the processes
        self._tree = ProcessTree(pid) if pid is not None else None
        self._model = model
        self._progress = progress
        self._tasks: list[asyncio.Task[None]] = []
        self.memory_before_mb = self._memory()

    def start(self, group: asyncio.TaskGroup) -> None:
        self._tasks = [
            group.create_task(self._tick()),
            group.create_task(self._sample()),
        ]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def mark(self) -> None:
        if self._tree is not None and not self.marks:
            self._tree.find()
        self.marks.append(monotonic())
        self._spent.append(Spent(self.marks[-1], self._cpu(), time.process_time()))

    def spent(self, phase: int) -> Spent:
        """What was used between two marks that follow each other."""
        begin, end = self._spent[phase : phase + 2]
        server = None
        if begin.server is not None and end.server is not None:
            server = end.server - begin.server
        return Spent(end.seconds - begin.seconds, server, end.fakes - begin.fakes)

    @property
    def phases(self) -> int:
        return len(self.marks) - 1

    @property
    def memory_full_mb(self) -> float | None:
        """With all calls, before the burst."""
        until = self.marks[1] if self.phases > 1 else float("inf")
        found = [it for it in self.samples if self.began + it.at <= until]
        return max((it.memory_mb for it in found if it.memory_mb), default=None)

    def _cpu(self) -> float | None:
        return self._tree.cpu_seconds() if self._tree is not None else None

    def _memory(self) -> float | None:
        return self._tree.memory_mb() if self._tree is not None else None

    async def _tick(self) -> None:
        while True:
            due = monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.late.append((due, max(0.0, 1000 * (monotonic() - due))))

    async def _sample(self) -> None:
        counted = 0
        at, cpu, own = monotonic(), self._cpu(), time.process_time()
        while True:
            await asyncio.sleep(1.0)
            if self._tree is not None and len(self.samples) % 10 == 0:
                await asyncio.to_thread(self._tree.find)
            before, cpu_before, own_before = at, cpu, own
            at, cpu, own = monotonic(), self._cpu(), time.process_time()
            percent = 100 / (at - before)
            sample = LoadSample(
                at=at - self.began,
                calls=self._model.active,
                cpu_percent=None
                if cpu is None or cpu_before is None
                else percent * max(0.0, cpu - cpu_before),
                memory_mb=self._memory(),
                fakes_cpu_percent=percent * (own - own_before),
                fakes_late_ms=max((ms for _, ms in self.late[counted:]), default=0.0),
            )
            counted = len(self.late)
            self.samples.append(sample)
            if self._progress is not None:
                self._progress(sample)
