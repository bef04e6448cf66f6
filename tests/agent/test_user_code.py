"""Who may end the process: the operator may, user code may not. Every function and
every fault on real calls: tests/e2e/test_user_code_faults.py."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from bridge.agent import user_code
from bridge.agent.user_code import UserCodeFailed, kind, name_of, protected_loop

ERRORS = (SystemExit, KeyboardInterrupt)


async def fails(error: type[BaseException]) -> None:
    await asyncio.sleep(0)
    raise error("theirs")


@pytest.mark.parametrize("error", ERRORS)
async def test_a_task_that_user_code_starts(error: type[BaseException]) -> None:
    """Its author sees the error as the task's; the event loop goes on."""
    async with protected_loop():
        task = asyncio.get_running_loop().create_task(fails(error))
        await asyncio.wait([task])

    failed = task.exception()
    assert isinstance(failed, UserCodeFailed) and kind(failed) == error.__name__


async def test_a_cancelled_task_is_cancelled() -> None:
    """The protection of the loop changes no cancellation, and no task that ends as it
    should."""
    loop = asyncio.get_running_loop()
    async with protected_loop():
        waiting = loop.create_task(asyncio.sleep(60), name="waits")
        never_begun = loop.create_task(fails(SystemExit))
        done = loop.create_task(asyncio.sleep(0, "done"))
        never_begun.cancel()
        await asyncio.sleep(0)
        assert "sleep" in repr(waiting) and waiting.get_stack()
        waiting.cancel()
        await asyncio.wait([waiting, never_begun, done])

    assert waiting.cancelled() and never_begun.cancelled() and done.result() == "done"
    assert loop.get_task_factory() is None


async def test_hanging_threads_stop_no_other_thread() -> None:
    """The DNS lookup of the model's host uses the same executor as plain tools."""
    free = threading.Event()
    async with protected_loop():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                hanging = (asyncio.to_thread(free.wait, 20) for _ in range(100))
                await asyncio.gather(*hanging)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "found") == "found"
    free.set()


async def test_the_limit_of_a_function() -> None:
    """The bridge's own cancellation passes through, and is no fault of the function."""

    async def hangs(_: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await user_code.call(hangs, None, name="CA1 agent", seconds=0.02)

    loop = asyncio.get_running_loop()
    task = loop.create_task(user_code.call(hangs, None, name="CA1", seconds=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_async_function_of_each_kind() -> None:
    """An object with an async `__call__` runs in the event loop, too."""

    class Told:
        async def __call__(self, given: int) -> int:
            asyncio.get_running_loop()
            return given + 1

    assert await user_code.call(Told(), 1, name="CA1", seconds=5) == 2
    with pytest.raises(UserCodeFailed) as failed:
        await user_code.call(fails, SystemExit, name="CA1", seconds=5)
    assert user_code.kind(failed.value) == "SystemExit"


PROCESS = """
import asyncio, os, signal, sys
from bridge.agent import user_code

async def theirs(_):
    print("running", flush=True)
    while True:
        {busy}

async def main():
    {handler}
    async with user_code.protected_loop(), asyncio.TaskGroup() as tasks:
        tasks.create_task(user_code.call(theirs, None, name="x", seconds=20))

asyncio.run(main())
"""
DEFAULT = "signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.mark.parametrize(
    ("handler", "busy", "signals"),
    [
        (DEFAULT, "sum(range(1000))", 1),
        ("pass", "await asyncio.sleep(0)", 1),
        ("pass", "sum(range(1000))", 2),
    ],
    ids=["python's handler", "asyncio's handler", "second Ctrl-C"],
)
def test_ctrl_c_stops_the_process(handler: str, busy: str, signals: int) -> None:
    """Also while user code runs, and even if it blocks the event loop."""
    code = textwrap.dedent(PROCESS).format(handler=handler, busy=busy)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"running\n"
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3 if signals > 1 else 10)
        try:
            code_ = process.wait(10)
        finally:
            process.kill()
        error = process.stderr.read()
    assert code_ in (-signal.SIGINT, 130) and b"KeyboardInterrupt" in error


async def test_a_task_without_a_name_belongs_to_the_task_that_started_it() -> None:
    """The log names the call and the tool of what holds the event loop, also if the
    SDK or the tool has started a task for it."""
    found: list[str] = []

    async def last() -> None:
        task = asyncio.current_task()
        assert task is not None
        found.append(name_of(task))

    async def start() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_task(last())
        with user_code.running_tool("CA1", "lookup"):
            await loop.create_task(last())
        await loop.create_task(last(), name="its own")
        await last()

    async with protected_loop():
        loop = asyncio.get_running_loop()
        await loop.create_task(start(), name="CA1 agent")
        await loop.create_task(last())

    assert found[:4] == ["CA1 agent", "CA1 tool lookup", "its own", "CA1 agent"]
    assert "CA1" not in found[4]
