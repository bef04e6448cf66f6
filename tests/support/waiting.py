"""Waiting for something that no event announces."""

import asyncio
import inspect
from collections.abc import Callable
from time import monotonic

POLL_SECONDS = 0.005


async def until(
    happened: Callable[[], object], seconds: float = 60.0, what: str = "it"
) -> None:
    """Waits until `happened`, a plain or an async function, returns a true value. Fails
    after `seconds`, and says `what` did not happen."""
    limit = monotonic() + seconds
    while True:
        it = happened()
        if await it if inspect.isawaitable(it) else it:
            return
        assert monotonic() < limit, f"{what} did not happen within {seconds:g} s"
        await asyncio.sleep(POLL_SECONDS)
