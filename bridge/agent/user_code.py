"""The user's own functions, called so that none of them holds a call or the house up.

A plain function runs in a thread of its own, an async one in the loop. What they raise
is theirs, and comes out as it is.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any


def is_theirs(error: BaseException) -> bool:
    """Raised by the user's code, and no cancellation of ours: a sys.exit in a tool, a
    panic in an extension, an await of theirs that was cancelled. None of it may end the
    process and all its calls."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, (KeyboardInterrupt, GeneratorExit))


async def ask(function: Callable[[Any], Any], given: Any, name: str) -> Any:
    """What the function makes of `given`; `name` is that of its thread. No time limit:
    who asks sets one."""
    made = (
        function(given)
        if is_async(function)
        else await in_thread(function, given, name)
    )
    # A plain function may give something to be awaited all the same.
    return await made if inspect.isawaitable(made) else made


def is_async(function: Callable[..., Any]) -> bool:
    """Also of an object that can be called."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


async def in_thread(function: Callable[[Any], Any], given: Any, name: str) -> Any:
    """What the user's plain function returns, called in a thread of its own.

    The process does not wait for that thread when it ends: a function that hangs takes
    no worker from tools and name look-ups. Given up when it is cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.done():
            return  # too late: nobody waits any more
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
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await done
