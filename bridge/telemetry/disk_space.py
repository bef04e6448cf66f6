"""The disk of the traces: what is free, what the traces take, and whether traces may be
written.

A disk that is full stops more than the traces: the log, Redis or the system may be on
it. So no trace is written while less than MIN_FREE_BYTES are free; calls go on.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

log = structlog.get_logger()

MIN_FREE_BYTES = 512 * 1024 * 1024
"""With less, no trace is written: 200 calls fill this in about four minutes."""

RESUME_FREE_BYTES = 2 * MIN_FREE_BYTES
"""With so much, traces of new calls are written again."""

FREE_SECONDS = 5.0
"""Between two looks at the free bytes."""

FIRST_SECONDS = 2.0
"""A bridge that starts waits so long for the first look."""

USED_EVERY = 12
"""Looks at the free bytes for one at the size of all files: a minute."""


@dataclass(slots=True)
class DiskSpace:
    """The state of the disk. Its `look` runs in a thread; a look at a disk that hangs
    does not return, and the state stays."""

    folder: Path | None
    """None: no traces are kept."""
    on_free: Callable[[int], None] = lambda size: None
    """Called with the free bytes of the disk, in the thread."""
    on_used: Callable[[int], None] = lambda size: None
    """Called with the bytes of all files in the folder, in the thread."""
    min_free: int = field(default_factory=lambda: MIN_FREE_BYTES)
    resume_free: int = field(default_factory=lambda: RESUME_FREE_BYTES)
    is_nearly_full: bool = False
    looks: int = 0

    def look(self) -> None:
        """Measures. Logs once when traces stop, and once when they go on."""
        assert self.folder is not None, "only a folder is measured"
        try:
            free = _free_bytes(self.folder)
            if self.looks % USED_EVERY == 0:
                self.on_used(_used_bytes(self.folder))
        except OSError as error:
            if self.looks == 0:
                why = error.strerror or type(error).__name__
                log.warning("disk_not_measured", why=why)
            self.looks += 1
            return
        self.looks += 1
        self.on_free(free)
        if not self.is_nearly_full and free < self.min_free:
            self.is_nearly_full = True
            needed = self.resume_free >> 20
            log.error("traces_stopped", free_mb=free >> 20, needed_mb=needed)
        elif self.is_nearly_full and free >= self.resume_free:
            self.is_nearly_full = False
            log.info("traces_resumed", free_mb=free >> 20)


def _free_bytes(folder: Path) -> int:
    """Of the disk of the folder, which may not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    state = os.statvfs(existing)
    return state.f_bavail * state.f_frsize


def _used_bytes(folder: Path) -> int:
    """Of all files in the folder itself."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                except FileNotFoundError:
                    continue  # deleted meanwhile
    except FileNotFoundError:
        return 0  # the first call creates the folder
    return total


@asynccontextmanager
async def watched(
    disk: DiskSpace, every: float = FREE_SECONDS
) -> AsyncIterator[DiskSpace]:
    """The disk, looked at once before the context opens and then every `every` seconds
    while it is open, in a thread: the event loop waits for no disk."""
    if disk.folder is None:
        yield disk
        return
    loop, looked, over = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def look_first() -> None:
        disk.look()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(looked.set)

    def keep_looking() -> None:
        while not over.wait(every):
            disk.look()

    # Daemons: a disk that hangs must not keep the process from ending.
    first = threading.Thread(target=look_first, name="first look", daemon=True)
    others = threading.Thread(target=keep_looking, name="disk space", daemon=True)
    first.start()
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            await looked.wait()
    except TimeoutError:
        log.warning("disk_not_measured", why="the disk does not answer")
    others.start()
    try:
        yield disk
    finally:
        over.set()
