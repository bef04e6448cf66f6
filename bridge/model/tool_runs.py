"""What became of each tool call, also where the SDK gave the model a polite text.

The SDK turns most failures of a tool into a text for the model (its default, or a
`failure_error_function` of the user) and tells nobody else. `watched` makes a copy of a
tool that reports them to the `ToolRun` of the task it runs in.
tests/model/test_sdk_canary.py lists the SDK's private names used here.
"""

import copy
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from agents.exceptions import ToolTimeoutError
from agents.mcp import MCPServer
from agents.tool import (
    FunctionTool,
    _FailureHandlingFunctionToolInvoker,
    default_tool_timeout_error_message,
)

from bridge.agent import user_code, user_errors
from bridge.agent.finished_tools import MAX_MESSAGE_CHARS, FinishedTool, Outcome
from bridge.privacy.argument_words import hides


class McpToolError(Exception):
    """An MCP server answered that its tool failed. The text is the server's."""


class ToolRun:
    """One tool call that runs."""

    def __init__(self, arguments: str = "{}", exists: bool = True) -> None:
        """`exists`: the agent has the tool."""
        self._arguments = arguments
        self._exists = exists
        self._failure: BaseException | None = None
        """The first error that was noticed."""
        self.over = False
        """The call has ended before the tool did."""

    def failed(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error

    def finished(self, tool: str, call_id: str, seconds: float) -> FinishedTool:
        """What became of it, after `seconds`."""
        error = self._failure
        if error is None:
            usual: Outcome = "done" if self._exists else "unknown"
            outcome: Outcome = "call_over" if self.over else usual
            return FinishedTool(tool, call_id, outcome, seconds)
        late = isinstance(error, TimeoutError | ToolTimeoutError)
        return FinishedTool(
            tool,
            call_id,
            "timeout" if late else "failed",
            seconds,
            "timeout" if late else user_code.kind(error),
            user_errors.where(error),
            ""
            if isinstance(error, McpToolError)
            else user_errors.traceback_of(error, hides(self._arguments)),
            user_errors.text_of(user_code.raised(error))[:MAX_MESSAGE_CHARS],
        )


current: ContextVar[ToolRun | None] = ContextVar("current tool run", default=None)
"""The run of the tool in whose task, or thread, this code runs."""


def notice(error: BaseException) -> None:
    """Notes that the current tool has failed, although its result looks normal."""
    if run := current.get():
        run.failed(error)


def watched(tool: FunctionTool) -> FunctionTool:
    """A copy of the tool whose failures are noticed where the SDK gives the model a
    text in place of the exception."""
    # Not copy.copy: it would compute the tool's strict JSON schema once more.
    made = object.__new__(type(tool))
    made.__dict__.update(tool.__dict__)
    if isinstance(tool.on_invoke_tool, _FailureHandlingFunctionToolInvoker):
        invoker = copy.copy(tool.on_invoke_tool)
        invoker._function_tool = made
        invoker._on_handled_error = _noticing(tool.on_invoke_tool._on_handled_error)
        made.on_invoke_tool = invoker
    if tool.timeout_seconds is not None:
        made.timeout_error_function = _late(tool)
    return made


def _noticing(handled: Callable[..., None]) -> Callable[..., None]:
    def on_handled_error(tool: FunctionTool, error: Exception, *given: Any) -> None:
        notice(error)
        handled(tool, error, *given)

    return on_handled_error


def _late(tool: FunctionTool) -> Callable[..., Any]:
    own = tool.timeout_error_function

    async def timed_out(context: Any, error: Exception) -> str:
        notice(error)
        if own is None:
            return default_tool_timeout_error_message(
                tool_name=tool.name, timeout_seconds=tool.timeout_seconds or 0.0
            )
        text = own(context, error)
        return str(await text if inspect.isawaitable(text) else text)

    return timed_out


def watch_server(server: MCPServer) -> None:
    """Notices answers with isError of this server, once for its life. Its own
    `custom_data_extractor` is still called."""
    own = getattr(server, "custom_data_extractor", None)
    if not isinstance(own, _McpErrors):
        server.custom_data_extractor = _McpErrors(own)


class _McpErrors:
    """A custom_data_extractor, the SDK's only hook that sees isError."""

    def __init__(self, own: Callable[..., Any] | None) -> None:
        self._own = own

    async def __call__(self, context: Any) -> Any:
        if context.is_error:
            notice(McpToolError(_text_of(context.tool_output)))
        if self._own is None:
            return None
        data = self._own(context)
        return await data if inspect.isawaitable(data) else data


def _text_of(output: Any) -> str:
    parts = output if isinstance(output, list) else [output]
    texts = [it.get("text", "") if isinstance(it, dict) else str(it) for it in parts]
    return " ".join(text for text in texts if text)
