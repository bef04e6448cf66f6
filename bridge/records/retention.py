"""What is kept of calls on this machine: how long it stays, and how it is deleted.

Only files that are ours by their name (bridge/telemetry/trace.py), in BRIDGE_RECORD_DIR
itself: no link is followed, no other folder entered, nothing else touched.
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
from bridge.telemetry.trace import SUFFIX, plain_name

log = structlog.get_logger()

EVERY_SECONDS = 3600.0
DAY_SECONDS = 24 * 3600

_OURS = re.compile(rf"(\w{{0,64}})\.\w{{0,64}}{re.escape(SUFFIX)}", re.ASCII)

STORED_NAMES = (
    *("snapshot", "plan", "stream_ended", "status", "final_status", "answered_by"),
    *("route", "resume_count", "refusal_count", "late_ticket"),
)
"""Values that the Registry may have of a call, each under `{name}:{call sid}`."""


class StillRuns(Exception):
    """A trace of the call is being written."""


def forget(folder: Path, call_sid: str) -> int:
    """Deletes the traces of a call, and says how many. OSError: one is left; StillRuns:
    one is being written."""
    name = plain_name(call_sid)
    return _delete(folder, lambda it, _: it == name)


def expire(folder: Path, before: float) -> int:
    """Deletes what was last written before then (seconds since the epoch), and says how
    many. OSError: one is left."""
    return _delete(folder, lambda _, written: written < before)


def _delete(folder: Path, goes: Callable[[str, float], bool]) -> int:
    """All that can be deleted is, whatever cannot."""
    deleted = 0
    left: OSError | StillRuns | None = None
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if _OURS.fullmatch(entry.name)]
    except FileNotFoundError:
        return 0  # it is made with the first call
    for entry in found:
        try:
            if not entry.is_file(follow_symlinks=False):
                continue
            written = entry.stat(follow_symlinks=False).st_mtime
            if goes(entry.name.partition(".")[0], written):
                _check_over(entry.path)
                Path(entry.path).unlink()
                deleted += 1
        except FileNotFoundError:
            continue  # somebody else has deleted it
        except (OSError, StillRuns) as error:
            left = error
    if left is not None:
        raise left
    return deleted


def _check_over(path: str) -> None:
    """StillRuns where somebody writes the file (bridge/telemetry/trace.py)."""
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
    """Deletes the traces on this machine and the values in the Registry; returns how
    many of each.
    OSError: a trace is left; StillRuns: the call is not over."""
    traces = 0
    if folder is not None:
        traces = await asyncio.to_thread(forget, folder, call_sid)
    values = [await registry.pop(f"{name}:{call_sid}") for name in STORED_NAMES]
    return traces, sum(it is not None for it in values)


@asynccontextmanager
async def delete_expired(
    folder: Path | None, days: int, every: float = EVERY_SECONDS
) -> AsyncIterator[None]:
    """Deletes what is older, now and again and again, while it is entered. Without a
    folder, or with 0 days, nothing."""
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
        # Of its own: what was raised within is to come out as it is.
        await tasks.__aexit__(None, None, None)


async def _keep_deleting(folder: Path, days: int, every: float) -> None:
    while True:
        before = time.time() - days * DAY_SECONDS
        try:
            if deleted := await asyncio.to_thread(expire, folder, before):
                log.info("records_deleted", files=deleted, days=days)
        except StillRuns:
            pass  # looked at again, when it is over
        except OSError as error:
            # Without the path, which names a call.
            why = error.strerror or type(error).__name__
            log.error("records_not_deleted", why=why)
        await asyncio.sleep(every)
