"""Calls user code: a plain function in a thread, an async function in the event loop.

So a plain function that blocks does not block the event loop. An exception from user
code is passed on unchanged.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any


def is_theirs(error: BaseException) -> bool:
    """Whether user code raised `error`, as opposed to the bridge cancelling the task.

    Also true of a `sys.exit` in a tool, a panic in an extension module, and a cancelled
    await within user code. None of these may end the process and all its calls.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, (KeyboardInterrupt, GeneratorExit))


async def ask(function: Callable[[Any], Any], given: Any, name: str) -> Any:
    """Returns the function's result for `given`; `name` is the name of its thread.

    There is no time limit: the caller of `ask` sets one.
    """
    made = (
        function(given)
        if is_async(function)
        else await in_thread(function, given, name)
    )
    # A plain function may return an awaitable, too.
    return await made if inspect.isawaitable(made) else made


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine; also for objects with async `__call__`."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


async def in_thread(function: Callable[[Any], Any], given: Any, name: str) -> Any:
    """Calls the user's plain function in a new thread and returns its result.

    A new daemon thread, not the thread pool: a function that hangs takes no worker from
    tools and DNS look-ups, and the process exits without waiting for it. Cancelling
    this coroutine abandons the thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.done():
            return  # the waiting task was cancelled
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, failed = None, None
        try:
            result = context.run(function, given)
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await done
