"""Deletion of traces: after BRIDGE_RECORD_DAYS, or for one call on request.

Deletes only files of BRIDGE_RECORD_DIR itself that have the name of a trace
(bridge/telemetry/trace.py), or of a page or a WAV that was made from a trace
(bridge/picture/files.py). Follows no link, enters no other folder.
"""

import asyncio
import fcntl
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from bridge.fleet import Registry
from bridge.picture.files import PAGE_SUFFIX, SVG_SUFFIX, WAV_SUFFIX
from bridge.telemetry.trace import PLAIN_SUFFIX, SUFFIX, plain_name

log = structlog.get_logger()

INTERVAL_SECONDS = 3600.0
"""Time between two deletions of old traces."""

DAY_SECONDS = 24 * 3600

_SUFFIXES = "|".join(
    map(re.escape, (SUFFIX, PLAIN_SUFFIX, PAGE_SUFFIX, SVG_SUFFIX, WAV_SUFFIX))
)
_TRACE_NAME = re.compile(rf"(\w{{0,64}})\.\w{{0,64}}(?:{_SUFFIXES})", re.ASCII)

STORED_NAMES = (
    *("snapshot", "plan", "stream_ended", "status", "final_status", "answered_by"),
    *("route", "resume_count", "refusal_count", "late_ticket", "account", "warm"),
)
"""Names under which the registry may store data of a call: `{name}:{call sid}`."""


class StillRuns(Exception):
    """A trace of the call is being written."""


def forget(folder: Path, call_sid: str) -> int:
    """Deletes the traces of a call; returns their number. OSError: a trace could not be
    deleted. StillRuns: a trace is being written."""
    name = plain_name(call_sid)
    return _delete(folder, lambda it, _: it == name)


def expire(folder: Path, before: float) -> int:
    """Deletes traces that were last written before `before` (seconds since the epoch);
    returns their number. OSError: a trace could not be deleted. StillRuns: a trace is
    being written."""
    return _delete(folder, lambda _, written: written < before)


def _delete(folder: Path, selected: Callable[[str, float], bool]) -> int:
    """Deletes the selected traces. After an error it continues with the other traces,
    then raises the last error."""
    deleted = 0
    left: OSError | StillRuns | None = None
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _TRACE_NAME.fullmatch(entry.name)]
    except FileNotFoundError:
        return 0  # the first call creates the folder
    for entry in found:
        try:
            if not entry.is_file(follow_symlinks=False):
                continue
            written = entry.stat(follow_symlinks=False).st_mtime
            if selected(entry.name.partition(".")[0], written):
                _check_not_written(entry.path)
                Path(entry.path).unlink()
                deleted += 1
        except FileNotFoundError:
            continue  # another process has deleted it
        except (OSError, StillRuns) as error:
            left = error
    if left is not None:
        raise left
    return deleted


def _check_not_written(path: str) -> None:
    """StillRuns if a process writes the file and so holds its lock
    (bridge/telemetry/trace.py)."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StillRuns from None
    finally:
        os.close(file)


async def forget_call(
    folder: Path | None, registry: Registry, call_sid: str
) -> tuple[int, int]:
    """Deletes the traces on this machine and the call's data in the registry; returns
    the number of each. OSError: a trace could not be deleted. StillRuns: the call has
    not ended."""
    traces = 0
    if folder is not None:
        traces = await asyncio.to_thread(forget, folder, call_sid)
    stored = [await registry.pop(f"{name}:{call_sid}") for name in STORED_NAMES]
    return traces, sum(it is not None for it in stored)


@asynccontextmanager
async def delete_expired(
    folder: Path | None, days: int, every: float = INTERVAL_SECONDS
) -> AsyncIterator[None]:
    """While the context is open, deletes traces that are older than `days`: at its
    start and then every `every` seconds. Deletes nothing without a folder or with 0
    days."""
    if folder is None or not days:
        yield
        return
    tasks = asyncio.TaskGroup()
    await tasks.__aenter__()
    task = tasks.create_task(_keep_deleting(folder, days, every), name="records")
    try:
        yield
    finally:
        task.cancel()
        # Without the exception of the caller's block: the group would wrap it in an
        # ExceptionGroup.
        await tasks.__aexit__(None, None, None)


async def _keep_deleting(folder: Path, days: int, every: float) -> None:
    while True:
        before = time.time() - days * DAY_SECONDS
        try:
            if deleted := await asyncio.to_thread(expire, folder, before):
                log.info("records_deleted", files=deleted, days=days)
        except StillRuns:
            pass  # deleted at a later interval, when the call has ended
        except OSError as error:
            # `strerror` has no path; a path contains the call's SID.
            why = error.strerror or type(error).__name__
            log.error("records_not_deleted", why=why)
        await asyncio.sleep(every)
