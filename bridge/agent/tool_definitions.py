"""What the SDK refuses in tools and agents, told with the tool's name and a remedy.

`explained` reads an error of `function_tool`; `mistakes_of` looks at an agent before a
session would refuse it in the middle of a call. Runs no user code.
tests/model/test_sdk_canary.py lists the SDK's private names used here.
"""

import copy
import inspect
import traceback
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agents
from agents import HostedMCPTool, RunContextWrapper
from agents.exceptions import UserError
from agents.handoffs import Handoff
from agents.realtime import RealtimeAgent
from agents.strict_schema import ensure_strict_json_schema
from agents.tool import FunctionTool
from agents.tool_context import ToolContext
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from bridge.agent import user_errors

SDK = str(Path(agents.__file__).parent)

STRICT = "or switch the strict schema off: @function_tool(strict_mode=False)"

# --- a function that cannot become a tool ---


def explained(error: BaseException) -> str | None:
    """Which tool cannot be made, which of its arguments is the cause, and what to write
    instead. None if the error is not one of making a tool."""
    made = _made(error)
    if made is None:
        return None
    name, function, strict = made
    line = user_errors.own_frame(error)
    place = f" ({line.filename}:{line.lineno})" if line else ""
    causes = [f"its argument {it}" for it in _refused(function, strict)]
    return f"Tool {name}{place}: {'; '.join(causes) or _first_line(error)}"


def _made(error: BaseException) -> tuple[str, Callable[..., Any] | None, bool] | None:
    """(name, function, strict) of the tool that was being made when the SDK raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if not frame.f_code.co_filename.startswith(SDK):
            continue
        found = frame.f_locals
        if frame.f_code.co_name == "_create_function_tool":
            function: Any = found.get("original_callable", found["the_func"])
            name = found.get("name_override") or getattr(function, "__name__", "?")
            return str(name), function, bool(found.get("strict_mode", True))
        if frame.f_code.co_name == "__post_init__":
            tool = found.get("self")
            if isinstance(tool, FunctionTool):
                return tool.name, None, tool.strict_json_schema
    return None


def _refused(function: Callable[..., Any] | None, strict: bool) -> Iterator[str]:
    """The arguments that cannot be described to the model, each with the remedy."""
    if function is None:
        return
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError):
        return  # the error itself names what is wrong
    for parameter in parameters:
        kind = hints.get(parameter.name, Any)
        origin = typing.get_origin(kind) or kind
        if origin in (RunContextWrapper, ToolContext):
            continue
        if why := _why_refused(kind, strict):
            yield f"`{parameter.replace(default=inspect.Parameter.empty)}` {why}"


def _why_refused(kind: Any, strict: bool) -> str:
    try:
        schema = TypeAdapter(kind).json_schema()
    except PydanticUserError:
        return (
            "has a type that cannot be described to the model. Write str, int, a "
            "TypedDict, a dataclass or a pydantic model"
        )
    if not strict:
        return ""
    try:
        ensure_strict_json_schema(copy.deepcopy(schema))
    except UserError:
        places = [it for it in _open_objects(schema) if it]
        inner = f" (in {', '.join(places)})" if places else ""
        return (
            f"may have any keys{inner}, but a strict schema names all keys. Write a "
            f"TypedDict or a pydantic model that has them, {STRICT}"
        )
    return ""


def _open_objects(schema: Any, path: str = "") -> Iterator[str]:
    """The places of objects with undeclared keys: `Order.extras`; empty: the whole."""
    if not isinstance(schema, dict):
        return
    if schema.get("additionalProperties") not in (None, False):
        yield path
    for name, it in schema.get("$defs", {}).items():
        yield from _open_objects(it, name)
    for name, it in schema.get("properties", {}).items():
        yield from _open_objects(it, f"{path}.{name}" if path else name)
    for key in ("items", "additionalProperties"):
        yield from _open_objects(schema.get(key), path)
    for key in ("anyOf", "allOf", "oneOf", "prefixItems"):
        for it in schema.get(key, ()):
            yield from _open_objects(it, path)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


# --- an agent that a session would refuse ---


def mistakes_of(agent: RealtimeAgent[Any]) -> list[str]:
    """What the SDK would refuse in the agent, or in one that it hands off to, when the
    session of a call starts."""
    seen = [agent]
    found = []
    for each in seen:
        found += [f"agent {each.name!r}: {it}" for it in _mistakes(each)]
        seen += [
            it
            for it in each.handoffs
            if isinstance(it, RealtimeAgent) and not any(it is old for old in seen)
        ]
    return found


def _mistakes(agent: RealtimeAgent[Any]) -> Iterator[str]:
    yield from (why for it in agent.tools if (why := _no_tool(it)))
    handoffs: list[object] = [*agent.handoffs]
    for it in handoffs:
        if not isinstance(it, RealtimeAgent | Handoff):
            kind = type(it).__name__
            yield (
                f"{getattr(it, 'name', it)!r} in `handoffs` is a {kind}: write a "
                "RealtimeAgent, or realtime_handoff(...)"
            )
    for name, count in Counter(_names(agent)).items():
        if count > 1:
            yield f"{count} tools or handoffs have the name {name}: rename all but one"
    if callable(agent.instructions) and not _takes(agent.instructions, 2):
        yield "`instructions` must be a function of two arguments, (context, agent)"


def _no_tool(tool: object) -> str:
    if isinstance(tool, FunctionTool):
        if callable(tool.is_enabled) and not _takes(tool.is_enabled, 2):
            return f"`is_enabled` of tool {tool.name} must take (context, agent)"
        if callable(tool.needs_approval) and not _takes(tool.needs_approval, 3):
            text = f"`needs_approval` of tool {tool.name} must take"
            return f"{text} (context, arguments, call_id)"
        return ""
    if isinstance(tool, HostedMCPTool):
        return ""
    name = getattr(tool, "__name__", None)
    if callable(tool) and name:
        return f"{name} in `tools` is a plain function: write @function_tool above it"
    kind = type(tool).__name__
    return (
        f"{kind} in `tools` does not run in a phone call: use function tools, "
        "HostedMCPTool, or `mcp_servers`"
    )


def _names(agent: RealtimeAgent[Any]) -> Iterator[str]:
    """Names that the model is sure to be given: what is switched off, or by a function,
    may have the name of another tool."""
    for tool in agent.tools:
        if isinstance(tool, FunctionTool) and tool.is_enabled is True:
            yield tool.name
    for it in agent.handoffs:
        if isinstance(it, RealtimeAgent):
            yield Handoff.default_tool_name(it)
        elif isinstance(it, Handoff) and it.is_enabled is True:
            yield it.tool_name


def _takes(function: Callable[..., Any], arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:
        return True  # a function without a signature that Python knows
    return True
