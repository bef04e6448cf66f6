"""What is done for a call but may outlive it: reports, listeners of the user's code.

Nothing here may hurt a call or another errand: what raises is logged, and when the
house closes, what is left gets some seconds and is then given up.
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
    """`async with Errands() as errands:` - then `start`, from anywhere, any time."""

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
            log.warning("background_task_given_up", task=task.get_name())
            task.cancel()
        await self._group.__aexit__(kind, error, traceback)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs it; what it raises is logged under its name."""
        task = self._group.create_task(_safely(work, name), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


async def _safely(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except BaseException as error:
        if not user_code.is_theirs(error):
            raise
        log.exception("background_task_failed", task=name)
