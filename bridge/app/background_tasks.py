"""Tasks of a call that may outlive it: reports, listeners of the user's code.

A task must not disturb a call or another task: an exception is logged. At shutdown the
remaining tasks get CLOSE_SECONDS, then they are cancelled.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from bridge.agent import user_code

log = structlog.get_logger()

CLOSE_SECONDS = 5.0


class BackgroundTasks:
    """Use it as a context manager; `start` works while the context is open."""

    def __init__(self, close_seconds: float = CLOSE_SECONDS) -> None:
        self._close_seconds = close_seconds
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=self._close_seconds)
        for task in self._running:
            log.warning("background_task_cancelled", task=task.get_name())
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs `work` as a task. An exception is logged with `name`."""
        task = self._group.create_task(_log_failure(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


async def _log_failure(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        with user_code.contained():
            await work
    except Exception:
        log.exception("background_task_failed", task=name)
