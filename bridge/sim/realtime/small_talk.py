"""What the fake model says of its own accord: enough for a developer who dials it.

It greets, tells how long the caller spoke, calls a tool on the second turn. Pure.
"""

from collections.abc import Mapping
from typing import Any

from bridge.sim.realtime.turns import CallTool, Heard, Say, Turn

_TOOL_ON_TURN = 2
_SHORTEN_AT = 200  # characters of a tool's result that are read out
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
# A demo that hangs up on its second turn shows nothing: such tools come last.
_ENDS_THE_CALL = ("hang", "transfer", "end_call", "goodbye")


class _Unfillable(Exception):
    """This schema asks for something nobody can make up."""


def small_talk(heard: Heard) -> Turn:
    """The answer where a Behaviour gives none."""
    if heard.answered:
        output = heard.answered[-1]
        return [Say(f"{_spoken(output.name)} answered: {_short(output.output)}")]
    if heard.trigger == "idle":
        return [Say("Are you still there?")]
    if heard.trigger == "client":
        if heard.text is not None and heard.number > 1:
            return [Say(f"I have read: {_short(heard.text)}")]
        return [
            Say(
                "Hello! This is the built-in test voice, not a real model. "
                "Say something, and I will tell you how long you spoke."
            )
        ]
    if heard.caller_turns == _TOOL_ON_TURN:
        call = callable_tool(heard.tools)
        if call is not None:
            return [Say("One moment, I will look that up."), call]
    return [
        Say(
            f"You spoke for about {about(heard.seconds)}. "
            "I am only the built-in test voice, but I heard every bit of it."
        )
    ]


def about(seconds: float) -> str:
    """ "two and a half seconds": to the nearest half, in words."""
    halves = max(1, round(seconds * 2))
    whole, half = divmod(halves, 2)
    if whole >= len(_NUMBERS):
        return f"{round(seconds)} seconds"
    if not whole:
        return "half a second"
    if half:
        return f"{_NUMBERS[whole]} and a half seconds"
    return "one second" if whole == 1 else f"{_NUMBERS[whole]} seconds"


def callable_tool(tools: tuple[Mapping[str, Any], ...]) -> CallTool | None:
    """The first function tool whose parameters can be made up from their schema."""
    functions = [tool for tool in tools if tool.get("type") == "function"]
    functions.sort(key=lambda tool: any(w in tool["name"] for w in _ENDS_THE_CALL))
    for tool in functions:
        schema = tool.get("parameters") or {"type": "object"}
        try:
            arguments = _fill(schema, schema.get("$defs", {}))
        except _Unfillable:
            continue
        if isinstance(arguments, dict):
            return CallTool(tool["name"], arguments)
    return None


def _fill(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """A value that the JSON schema accepts."""
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


def _spoken(name: str) -> str:
    return "The tool " + name.replace("_", " ")


def _short(text: str) -> str:
    return text if len(text) <= _SHORTEN_AT else text[:_SHORTEN_AT] + " and so on"
