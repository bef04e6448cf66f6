"""A thread that writes for the event loop, which never waits for a disk or a pipe."""

import threading
from collections.abc import Callable
from queue import SimpleQueue


class WriterThread:
    """Runs jobs one after the other. Bytes that wait are bounded."""

    def __init__(self, name: str, queue_bytes: int) -> None:
        self._name = name
        self._most = queue_bytes
        self._jobs: SimpleQueue[tuple[Callable[[], None], int] | None] = SimpleQueue()
        self._bytes = 0
        """Bytes in the queue; `_lock` guards this and the next."""
        self._undone = 0
        """Jobs in the queue, with the one that runs."""
        # Reentrant: a finalizer that runs meanwhile may log or print.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def add(self, job: Callable[[], None], size: int = 0) -> bool:
        """Runs the job in the thread; it raises nothing. False: there are too many
        bytes in the queue."""
        with self._lock:
            if size and self._bytes + size > self._most:
                return False
            self._bytes += size
            self._undone += 1
            if self._thread is None:
                # A daemon: a disk that hangs must not keep the process from ending.
                self._thread = threading.Thread(
                    target=self._run, name=self._name, daemon=True
                )
                self._thread.start()
        self._jobs.put((job, size))
        return True

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    @property
    def is_idle(self) -> bool:
        return not self._undone

    @property
    def is_half_empty(self) -> bool:
        return self._bytes < self._most / 2

    def finish(self, seconds: float) -> bool:
        """Waits until all jobs are done. False: not in time."""
        if self._thread is None:
            return True
        done = threading.Event()
        self.add(done.set)
        return done.wait(seconds)

    def stop(self) -> None:
        """Ends the thread after the jobs in the queue."""
        self._jobs.put(None)

    def _run(self) -> None:
        while found := self._jobs.get():
            job, size = found
            job()
            with self._lock:
                self._bytes -= size
                self._undone -= 1
