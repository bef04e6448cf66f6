"""The files of traces, compressed and written by a thread: the event loop never waits
for the disk.

A file is a sequence of zstd frames (RFC 8878), one for each block, so that the trace of
a running call can be read up to its last block: `zstdcat` does so, too. A disk that
stops for seconds would otherwise stop all calls. Blocks that are not yet
written are bounded; a trace whose block does not fit is lost, and its call goes on.
"""

import asyncio
import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Self

import msgspec
import structlog

from bridge.telemetry.writer_thread import WriterThread

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = structlog.get_logger()

BLOCK_BYTES = 256 * 1024
"""Size of a block before it is compressed. A call makes about 50 kB a second."""

MAGIC = b"\x28\xb5\x2f\xfd"
"""The first bytes of a zstd frame."""

LEVEL = 1
"""Of the compression: twice as fast as level 3, and no larger."""

QUEUE_BYTES = 64 * 1024 * 1024
"""Blocks of all traces that wait for the thread: six seconds of 200 calls."""

WAIT_SECONDS = 5.0
"""Time for the disk to take what waits for it, at shutdown and before a deletion."""

TOO_SLOW = "the disk does not keep up"


class DamagedFile(ValueError):
    """A file that begins as a trace does is none."""


_encode_into = msgspec.json.Encoder().encode_into


def lines_of(file: BufferedReader) -> Iterator[bytes]:
    """The lines of an open trace, of which the end may be missing: it is being written,
    or the process was killed. Traces of earlier versions are not compressed.
    DamagedFile: something else is in the file."""
    if not file.peek().startswith(MAGIC):
        yield from file
        return
    try:
        with zstd.ZstdFile(file) as lines:
            yield from lines
    except EOFError:
        return
    except zstd.ZstdError as error:
        raise DamagedFile(str(error)) from None


def compressed(block: bytes | bytearray) -> bytes:
    """A block as a zstd frame."""
    return zstd.compress(block, LEVEL)


class TraceWriter(WriterThread):
    """The thread that writes the traces of an instance. Use it as a context manager;
    at its end the traces of all calls that have ended are complete."""

    def __init__(self, queue_bytes: int = QUEUE_BYTES) -> None:
        super().__init__("traces", queue_bytes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not await self.written():
            log.error("traces_not_written", why=TOO_SLOW)
        self.stop()

    async def written(self) -> bool:
        """Waits until all that was handed over is written. False: not in time."""
        if not self.is_started:
            return True
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done.set)

        self.add(tell)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await done.wait()
        except TimeoutError:
            return False
        return True


class TraceFile:
    """The file of one trace, open until `close`. No method waits for the disk.

    `on_lost` is called once, with the reason, if the file cannot be written; it may be
    called in the writer's thread.
    """

    def __init__(
        self, writer: TraceWriter, path: Path, on_lost: Callable[[str], None]
    ) -> None:
        self._writer = writer
        self._on_lost = on_lost
        self._block = bytearray()
        self._size = 0
        """Bytes of the blocks before this one."""
        self._closed = False
        self._lost = threading.Lock()
        """Taken for ever by the first loss."""
        self._file: IO[bytes] | None = None
        """Used by the writer's thread alone."""
        writer.add(partial(self._open, path))

    @property
    def lost(self) -> bool:
        return self._lost.locked()

    def write(self, line: Any) -> int:
        """Writes a value as a line of JSON. Returns the size of all lines, in bytes
        before they are compressed."""
        block = self._block
        if self._closed or self.lost:
            return self._size
        _encode_into(line, block, len(block))
        block += b"\n"
        if len(block) >= BLOCK_BYTES:
            self._hand_over()
        return self._size + len(self._block)

    def close(self) -> None:
        """Hands over what is left. The file keeps its lock until all is written."""
        if self._closed:
            return
        if self._block and not self.lost:
            self._hand_over()
        self._closed = True
        self._block.clear()
        self._writer.add(self._close)

    def lose(self, why: str) -> None:
        """Writes no more. What was handed over stays: it is the begin of the trace."""
        if self._lost.acquire(blocking=False):
            self._on_lost(why)

    def _hand_over(self) -> None:
        block, self._block = self._block, bytearray()
        self._size += len(block)
        if not self._writer.add(partial(self._write, block), len(block)):
            self.lose(TOO_SLOW)

    # --- in the writer's thread ---

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # O_EXCL: the SIDs in the name come from the sender of the stream, and must
            # not overwrite an existing file.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._file = open(os.open(path, flags, 0o600), "wb")  # noqa: SIM115 - `_close`
        except OSError as error:
            self._failed(error)
            return
        # The lock tells retention.py that the call still runs. Some file systems have
        # no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _write(self, block: bytearray) -> None:
        if self._file is None:
            return
        try:
            self._file.write(compressed(block))
            self._file.flush()
        except OSError as error:
            self._failed(error)
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        try:
            if file:
                file.close()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        # Without the path, which contains the call's SID.
        self.lose(error.strerror or type(error).__name__)
