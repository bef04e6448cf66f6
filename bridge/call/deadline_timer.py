"""The timer of the core's deadlines."""

import asyncio
import math
from collections.abc import Callable


class DeadlineTimer:
    """Calls `tick` at the core's deadline. A deadline that moves away leaves the timer
    as it is: it then finds nothing due, and is set again. That is cheaper than a new
    timer for each of the 50 frames a second."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._handle: asyncio.TimerHandle | None = None
        self._at = math.inf
        self._due = asyncio.Event()

    def set(self, deadline: float | None, now: float) -> None:
        if deadline is None or deadline >= self._at:
            return
        self.cancel()
        self._at = deadline
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(max(deadline - now, 0.0), self._due.set)

    def cancel(self) -> None:
        if self._handle:
            self._handle.cancel()

    async def run(self) -> None:
        """Ticks in a task of the call, so that an error in a tick ends the call like
        any other error."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._at = math.inf
            self._tick()
