"""The one owner of calls of user code: how it is called, for how long, what it raises.

A plain function runs in a thread, an async function in the event loop. A plain function
that blocks does not block the event loop. An error that is no `Exception` (`sys.exit`,
a panic of an extension module) would end the process with all its calls, and a
`StopIteration` from a thread would reach nobody: both become `UserCodeFailed`.
"""

import asyncio
import contextvars
import inspect
import signal
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent import futures
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NoReturn

SECONDS = 10.0
"""Limit of a function for which the caller waits: an agent's function, `on_call`,
instructions, `is_enabled`, `needs_approval`, a guardrail."""

PROMPT_SECONDS = 15.0
"""Limit of all user code that one `session.update` needs, such as a local MCP server's
list of tools."""


class UserCodeFailed(Exception):
    """User code raised what no caller can handle; that error is the cause."""


def raised(error: BaseException) -> BaseException:
    """The error that user code raised, without UserCodeFailed around it."""
    if isinstance(error, UserCodeFailed) and error.__cause__ is not None:
        return error.__cause__
    return error


def kind(error: BaseException) -> str:
    """The name of the type of the error that user code raised."""
    return type(raised(error)).__name__


def is_theirs(error: BaseException) -> bool:
    """Whether user code raised `error`, as opposed to the bridge cancelling the task,
    or the operator stopping the process (Ctrl-C)."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, GeneratorExit) and not _is_operators(error)


def _is_operators(error: BaseException) -> bool:
    """Whether a signal handler raised it: Python's own, or that of asyncio.run."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False  # signal handlers run in the main thread
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_code.co_name == "_on_sigint"


def _failed(error: BaseException) -> UserCodeFailed:
    failed = UserCodeFailed(f"user code raised {type(error).__name__}")
    failed.__cause__ = error
    return failed


@contextmanager
def contained() -> Iterator[None]:
    """Turns an error of user code that is no Exception into UserCodeFailed."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if not is_theirs(error):
            raise
        raise _failed(error) from error


async def call(
    function: Callable[..., Any], *given: Any, name: str, seconds: float | None
) -> Any:
    """Returns the function's result; `name` is the name of its thread. TimeoutError
    after `seconds`; None: the task that waits here is cancelled in time. Raises only
    Exceptions, and CancelledError if the task is cancelled."""
    with contained():
        async with asyncio.timeout(seconds):
            if is_async(function):
                made = function(*given)
            else:
                made = await in_thread(function, *given, name=name)
            # A plain function may return an awaitable, too.
            return await made if inspect.isawaitable(made) else made


@contextmanager
def running_tool(call_sid: str, tool: str) -> Iterator[None]:
    """Names the current task after a tool while the context is open, so that the log
    can say what holds the event loop (bridge/telemetry/loop_watch.py)."""
    task = asyncio.current_task()
    assert task is not None, "the SDK runs tools in tasks"
    before = task.get_name()
    task.set_name(f"{call_sid} tool {tool}")
    try:
        yield
    finally:
        task.set_name(before)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine; also for objects with async `__call__`."""
    call = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


async def in_thread(function: Callable[..., Any], *given: Any, name: str) -> Any:
    """Calls the user's plain function in a new thread and returns its result.
    Cancelling this coroutine abandons the thread."""
    work = partial(contextvars.copy_context().run, function, *given)
    return await asyncio.wrap_future(_start_thread(work, name))


def _start_thread(work: Callable[[], Any], name: str) -> futures.Future[Any]:
    """Runs `work` in a new daemon thread. No pool: work that hangs takes no thread from
    other work, and the process exits without waiting for it."""
    done: futures.Future[Any] = futures.Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        result, error = _outcome(work)
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


Outcome = tuple[Any, Exception | None]


def _outcome(work: Callable[[], Any]) -> Outcome:
    """What `work` returns, or the error that it raises."""
    try:
        return work(), None
    except BaseException as error:
        # A future of asyncio refuses StopIteration, so that its caller would wait
        # for ever, and takes the other CancelledError for its own.
        refused = isinstance(error, (StopIteration, futures.CancelledError))
        if isinstance(error, Exception) and not refused:
            return None, error
        return None, _failed(error)


class SharedThread:
    """Runs plain functions that are called in one turn of the event loop one after the
    other, in one new thread. Many short functions (the `is_enabled` of all tools) cost
    less than their threads would."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._works: list[Callable[[], Any]] = []
        self._waiting: list[asyncio.Future[Any]] = []

    async def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """The function's result, when all plain functions of this turn have returned.
        The limit of SECONDS is for all of them together."""
        if is_async(function):
            return await call(function, *given, name=self._name, seconds=SECONDS)
        loop = asyncio.get_running_loop()
        if not self._works:
            loop.call_soon(self._start, loop)
        context = contextvars.copy_context()
        self._works.append(partial(context.run, function, *given))
        done = loop.create_future()
        self._waiting.append(done)
        made = await done
        if not inspect.isawaitable(made):
            return made

        async def theirs() -> Any:
            return await made

        return await call(theirs, name=self._name, seconds=SECONDS)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        works, self._works = self._works, []
        waiting, self._waiting = self._waiting, []

        def run_all() -> list[Outcome]:
            return [_outcome(work) for work in works]

        def answer(outcomes: list[Outcome]) -> None:
            limit.cancel()
            for done, (result, error) in zip(waiting, outcomes, strict=True):
                if done.done():  # the limit is over, or its task was cancelled
                    continue
                if error is None:
                    done.set_result(result)
                else:
                    done.set_exception(error)

        too_late: list[Outcome] = [(None, TimeoutError())] * len(works)
        limit = loop.call_later(SECONDS, answer, too_late)
        thread = asyncio.wrap_future(_start_thread(run_all, self._name), loop=loop)
        thread.add_done_callback(lambda it: answer(it.result()))


class Threads(futures.ThreadPoolExecutor):
    """The default executor of the event loop: a new thread for each call.

    The SDK runs plain tools in it (asyncio.to_thread), and so does the DNS lookup of
    the model's host: tools that hang must not stop new calls.
    """

    def submit(
        self, function: Callable[..., Any], /, *given: Any, **named: Any
    ) -> futures.Future[Any]:
        return _start_thread(partial(function, *given, **named), "user code")


class _Contained(Coroutine[Any, Any, Any]):
    """A task's coroutine, with `contained` around each of its steps."""

    def __init__(self, work: Coroutine[Any, Any, Any], starter: str) -> None:
        self._work = work
        self.starter = starter
        """The name of the task that has started this one (name_of)."""

    def send(self, value: Any) -> Any:
        try:
            return self._work.send(value)
        except (Exception, asyncio.CancelledError):
            raise  # a cancellation ends the task, whatever its cause
        except BaseException as error:
            self._raise(error)

    def throw(self, error: Any, *_: Any) -> Any:
        try:
            return self._work.throw(error)  # asyncio gives an instance, nothing more
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._raise(error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)  # cr_frame and so on, for debuggers

    def _raise(self, error: BaseException) -> NoReturn:
        if not is_theirs(error):
            raise error
        raise _failed(error)


def contained_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any
) -> asyncio.Task[Any]:
    """A task that raises SystemExit does not end the event loop. The SDK and user code
    start tasks of their own, which no code of the bridge surrounds."""
    starter = asyncio.current_task(loop)
    name = name_of(starter) if starter else ""
    return asyncio.Task(_Contained(work, name), loop=loop, **more)


def name_of(task: asyncio.Task[Any]) -> str:
    """The name that the task was given. Without one, it is the name of the task that
    has started it: it tells the call, and the tool. Empty: neither has a name."""
    name = task.get_name()
    # "None": Python 3.13 gives it to tasks of a task factory.
    if name != "None" and not name.startswith("Task-"):
        return name
    work = task.get_coro()
    return work.starter if isinstance(work, _Contained) else ""


@asynccontextmanager
async def protected_loop() -> AsyncIterator[None]:
    """While the context is open, no thread and no task of the running event loop can
    end the loop or hang its waiter by what it raises."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_default_executor(Threads())
    loop.set_task_factory(contained_task)  # type: ignore[arg-type]
    try:
        yield
    finally:
        loop.set_task_factory(before)
