"""Background tasks may outlive their call; they must not harm a call or each other."""

import asyncio
import concurrent.futures
import contextvars
import threading
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.agent.user_code import UserCodeFailed, in_thread, kind
from bridge.app.background_tasks import BackgroundTasks


async def test_a_running_task_may_finish_at_shutdown() -> None:
    """A report that is being delivered arrives although the bridge shuts down."""
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("done")

    async with BackgroundTasks() as background_tasks:
        task = background_tasks.start(work(), "CA1 report")
        assert task.get_name() == "CA1 report"

    assert done == ["done"]


async def test_a_task_that_takes_too_long_is_cancelled_at_shutdown() -> None:
    """The bridge stops all the same, and the log names the task that did not finish."""

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
async def test_a_task_that_raises_does_not_end_other_tasks(
    error: type[BaseException],
) -> None:
    """The exception is logged with the task's name; the other tasks continue."""
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


async def test_one_task_may_be_cancelled() -> None:
    """Nothing is logged, and other tasks are not affected."""
    with capture_logs() as logs:
        async with BackgroundTasks() as background_tasks:
            task = background_tasks.start(asyncio.sleep(3600), "CA1 listener")
            await asyncio.sleep(0)
            task.cancel()

    assert logs == []


# --- plain functions ---

CALL = contextvars.ContextVar("CALL", default="")


async def test_a_plain_function_runs_in_a_thread() -> None:
    """It has the log context of its call; the thread's name shows which call it belongs
    to."""
    CALL.set("CA1")

    def work(number: int) -> tuple[int, str, str]:
        return number + 1, CALL.get(), threading.current_thread().name

    assert await in_thread(work, 7, name="CA1 listener") == (8, "CA1", "CA1 listener")


@pytest.mark.parametrize(
    "error",
    [
        LookupError,
        SystemExit,
        KeyboardInterrupt,
        StopIteration,
        asyncio.CancelledError,
        concurrent.futures.CancelledError,
    ],
)
async def test_a_plain_function_that_raises(error: type[BaseException]) -> None:
    """The code that waits for the function learns of every error. One that no `except
    Exception` would handle comes as the cause of an Exception."""

    def work(_: Any) -> None:
        raise error

    with pytest.raises((LookupError, UserCodeFailed)) as raised:
        await in_thread(work, None, name="CA1 listener")

    assert kind(raised.value) == error.__name__


@pytest.mark.parametrize("fails", [False, True])
async def test_a_plain_function_that_hangs(fails: bool) -> None:
    """The waiting code may stop waiting; the function's later result or exception is
    ignored."""
    free, over = threading.Event(), threading.Event()

    def work(_: Any) -> None:
        free.wait(5)
        over.set()
        if fails:
            raise LookupError

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_thread(work, None, name="CA1 listener")

    free.set()
    await asyncio.to_thread(over.wait, 1)
    await asyncio.sleep(0.02)


def test_a_plain_function_that_outlives_the_loop() -> None:
    """The process ends without waiting for the function."""
    free = threading.Event()

    async def begin() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await in_thread(lambda _: free.wait(5), None, name="CA1 outlives")

    began = time.monotonic()
    asyncio.run(begin())
    assert time.monotonic() - began < 1

    free.set()
    for thread in threading.enumerate():
        if thread.name == "CA1 outlives":
            assert thread.daemon
            thread.join(1)
