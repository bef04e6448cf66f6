"""An interruptible sleep; cheaper than a timeout around an asyncio.Event.

For one waiter. A `wake` while nothing sleeps is not remembered, so check the condition
before sleeping.
"""

import asyncio
from time import monotonic


class Wakeup:
    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake the sleeper, if any."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def sleep_until(self, when: float | None) -> None:
        """Sleep until `when` (None: for ever) or until `wake`. Always yields to other
        tasks."""
        delay = None if when is None else when - monotonic()
        if delay is not None and delay <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if delay is None else loop.call_later(delay, self.wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
