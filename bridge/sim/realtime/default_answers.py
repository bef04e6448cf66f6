"""The fake model's answers if no script has any: enough for a developer's test call.

The model greets, says how long the caller spoke, and calls each of the agent's tools,
one per turn.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.sim.realtime.turns import CallMcp, CallTool, SayText, Turn, TurnContext

_FIRST_TRY = 2  # the caller's turn at which the first tool is called
_SHORTEN_AT = 60  # characters; a longer tool result is shortened when spoken
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_HANDOFF = "transfer_to_"  # prefix of the SDK's handoff tools
# These tools end the call, so they are called last.
_GOODBYE = ("hang", "end_call", "goodbye")
_ENDS_THE_CALL = (*_GOODBYE, "transfer")
# an example value in an argument's description
_SUCH_AS = re.compile(r"such as (\S*[\w#*])")
_LOOK_UP = {
    "name": "look_up",
    "description": "Looks something up.",
    "input_schema": {
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
    },
    "annotations": {"readOnlyHint": True},
}

Call = CallTool | CallMcp


class _Unfillable(Exception):
    """The JSON schema requires a value that cannot be generated."""


class DefaultAnswers:
    """The answers of one call: each tool is called once, whichever agent has it."""

    def __init__(self) -> None:
        self._tried: set[str] = set()

    def answer(self, context: TurnContext) -> Turn:
        """For `Behaviour.answer`."""
        calls = tool_calls(context.tools)
        untried = [it for it in calls if _title(it) not in self._tried]
        turn = _answer(context, calls, untried)
        called = (it for it in turn if isinstance(it, CallTool | CallMcp))
        self._tried |= {_title(call) for call in called}
        return turn


class AnyMcpServer(Mapping[str, Sequence[Mapping[str, Any]]]):
    """For `Behaviour.mcp`: every hosted MCP server is reachable and lists one tool, the
    same on all."""

    def __getitem__(self, label: str) -> Sequence[Mapping[str, Any]]:
        return (_LOOK_UP,)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def default_answer(context: TurnContext) -> Turn:
    """The answer if a Behaviour has none. It keeps no state: the nth turn with tools
    calls the nth tool."""
    calls = tool_calls(context.tools)
    return _answer(context, calls, calls[max(0, context.caller_turns - _FIRST_TRY) :])


def _answer(
    context: TurnContext, calls: Sequence[Call], untried: Sequence[Call]
) -> Turn:
    # The model stays silent about a tool result unless the client requests a response.
    if context.answered and context.trigger == "client":
        output = context.answered[-1]
        if output.name.startswith(_HANDOFF):
            return [
                SayText(f"You speak with {_words(output.name[len(_HANDOFF) :])} now.")
            ]
        return [
            SayText(f"The tool {_words(output.name)} answered: {_short(output.output)}")
        ]
    if context.trigger == "idle":
        return [SayText("Are you still there?")]
    if context.trigger == "client":
        return [SayText(_unasked(context))]
    if context.caller_turns >= _FIRST_TRY and calls:
        return _trying(untried[0]) if untried else [SayText("That was all.")]
    spoke = f"You spoke for about {about(context.seconds)}."
    if context.caller_turns >= _FIRST_TRY:
        return [SayText(spoke)]
    more = "I am only the built-in test voice, but I heard every bit of it."
    return [SayText(f"{spoke} {more}")]


def _unasked(context: TurnContext) -> str:
    """The answer when the client requests a response and the caller has not spoken."""
    if context.number == 1:
        return "Hello! This is the built-in test voice, not a real model."
    return (
        "All right." if context.text is None else f"I have read: {_short(context.text)}"
    )


def _trying(call: Call) -> Turn:
    leaves = isinstance(call, CallTool) and any(it in call.name for it in _GOODBYE)
    return [SayText("Goodbye!" if leaves else "One moment."), call]


def about(seconds: float) -> str:
    """Seconds in words, to the nearest half: "two and a half seconds"."""
    halves = max(1, round(seconds * 2))
    whole, half = divmod(halves, 2)
    if whole >= len(_NUMBERS):
        return f"{round(seconds)} seconds"
    if not whole:
        return "half a second"
    if half:
        return f"{_NUMBERS[whole]} and a half seconds"
    return "one second" if whole == 1 else f"{_NUMBERS[whole]} seconds"


def tool_calls(tools: Sequence[Mapping[str, Any]]) -> list[Call]:
    """One call per tool whose arguments can be generated from its schema. Order: tools,
    handoffs, tools that end the call."""
    calls = [call for tool in tools if (call := _call_of(tool)) is not None]
    return sorted(calls, key=_rank)


def _call_of(tool: Mapping[str, Any]) -> Call | None:
    if tool.get("type") == "mcp":
        return _hosted(tool)
    schema = tool.get("parameters") or {"type": "object"}
    try:
        arguments = _fill(schema, schema.get("$defs", {}))
    except _Unfillable:
        return None
    return CallTool(tool["name"], arguments) if isinstance(arguments, dict) else None


def _hosted(config: Mapping[str, Any]) -> CallMcp:
    """A call of the first allowed tool, or of the tool that `AnyMcpServer` lists."""
    allowed = config.get("allowed_tools") or ()
    if isinstance(allowed, Mapping):
        allowed = allowed.get("tool_names") or ()
    name = next(iter(allowed), str(_LOOK_UP["name"]))
    label = config["server_label"]
    output = f"this is what {label} would say"
    return CallMcp(label, name, {"query": "example"}, output)


_TOOL, _HANDOFF_TOOL, _LAST = range(3)


def _rank(call: Call) -> int:
    if isinstance(call, CallMcp):
        return _TOOL
    if call.name.startswith(_HANDOFF):
        return _HANDOFF_TOOL
    return _LAST if any(word in call.name for word in _ENDS_THE_CALL) else _TOOL


def _title(call: Call) -> str:
    return call.name if isinstance(call, CallTool) else f"{call.server_label}.mcp"


def _fill(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """A value that is valid for the JSON schema."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    if reference := schema.get("$ref"):
        name = str(reference).rpartition("/")[2]
        if name not in definitions:
            raise _Unfillable(reference)
        inner = {k: v for k, v in definitions.items() if k != name}  # no recursion
        return _fill(definitions[name], inner)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return _fill(choices[0], definitions)
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = kind[0]
    return _fill_type(kind, schema, definitions)


def _fill_type(
    kind: str | None, schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Any:
    match kind:
        case "object":
            required = schema.get("required", ())
            properties = schema.get("properties", {})
            return {name: _fill(properties[name], definitions) for name in required}
        case "array":
            items = schema.get("items", {})
            return [_fill(items, definitions)] if schema.get("minItems") else []
        case "string" if "pattern" not in schema and "format" not in schema:
            if example := _SUCH_AS.search(schema.get("description", "")):
                return example[1]
            return "example".ljust(schema.get("minLength", 0), "x")[
                : schema.get("maxLength")
            ]
        case "integer" | "number":
            return schema.get("minimum", schema.get("maximum", 1))
        case "boolean":
            return True
        case "null":
            return None
        case _:
            raise _Unfillable(str(kind))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(text: str) -> str:
    return text if len(text) <= _SHORTEN_AT else text[:_SHORTEN_AT] + " and so on"
