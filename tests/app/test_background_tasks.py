"""What outlives a call: it is done, or given up, and hurts nobody."""

import asyncio
import contextvars
import threading
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.agent.user_code import in_thread
from bridge.app.background_tasks import BackgroundTasks


async def test_an_errand_is_done_before_the_house_closes() -> None:
    """A report that is under way arrives though the bridge shuts down."""
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("done")

    async with BackgroundTasks() as background_tasks:
        task = background_tasks.start(work(), "CA1 report")
        assert task.get_name() == "CA1 report"

    assert done == ["done"]


async def test_an_errand_that_takes_too_long_is_given_up() -> None:
    """The house closes all the same, and the log says what was left undone."""

    async def work() -> None:
        await asyncio.sleep(3600)

    began = time.monotonic()
    with capture_logs() as logs:
        async with BackgroundTasks(close_seconds=0.05) as background_tasks:
            task = background_tasks.start(work(), "CA1 listener")

    assert time.monotonic() - began < 1 and task.cancelled()
    assert [(it["event"], it["task"]) for it in logs] == [
        ("background_task_cancelled", "CA1 listener")
    ]


@pytest.mark.parametrize("error", [LookupError, SystemExit])
async def test_an_errand_that_raises_hurts_no_other(error: type[BaseException]) -> None:
    """Its error is logged under its name; the others go on."""
    done: list[str] = []

    async def raises() -> None:
        raise error

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("done")

    with capture_logs() as logs:
        async with BackgroundTasks() as background_tasks:
            background_tasks.start(raises(), "CA1 report")
            background_tasks.start(work(), "CA2 report")

    assert done == ["done"]
    [failed] = logs
    assert (failed["event"], failed["task"]) == ("background_task_failed", "CA1 report")


async def test_one_errand_may_be_cancelled() -> None:
    """Without a word, and without an effect on others."""
    with capture_logs() as logs:
        async with BackgroundTasks() as background_tasks:
            task = background_tasks.start(asyncio.sleep(3600), "CA1 listener")
            await asyncio.sleep(0)
            task.cancel()

    assert logs == []


# --- plain functions ---

CALL = contextvars.ContextVar("CALL", default="")


async def test_a_plain_function_in_a_thread() -> None:
    """It sees the call's own log context, under a name that tells whose it is."""
    CALL.set("CA1")

    def work(number: int) -> tuple[int, str, str]:
        return number + 1, CALL.get(), threading.current_thread().name

    assert await in_thread(work, 7, "CA1 listener") == (8, "CA1", "CA1 listener")


@pytest.mark.parametrize("error", [LookupError, SystemExit])
async def test_a_plain_function_that_raises(error: type[BaseException]) -> None:
    """Its error is the caller's of it, sys.exit() too."""

    def work(_: Any) -> None:
        raise error

    with pytest.raises(error):
        await in_thread(work, None, "CA1 listener")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_plain_function_that_hangs(fails: bool) -> None:
    """Whoever waits for it may go; what it comes to then is nobody's business."""
    free, over = threading.Event(), threading.Event()

    def work(_: Any) -> None:
        free.wait(5)
        over.set()
        if fails:
            raise LookupError

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_thread(work, None, "CA1 listener")

    free.set()
    await asyncio.to_thread(over.wait, 1)
    await asyncio.sleep(0.02)


def test_a_plain_function_that_outlives_the_loop() -> None:
    """The process ends without waiting for it."""
    free = threading.Event()

    async def begin() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_thread(lambda _: free.wait(5), None, "CA1 outlives")

    began = time.monotonic()
    asyncio.run(begin())
    assert time.monotonic() - began < 1

    free.set()
    for thread in threading.enumerate():
        if thread.name == "CA1 outlives":
            assert thread.daemon
            thread.join(1)
