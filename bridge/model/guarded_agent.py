"""The user's functions on an agent, as the SDK may call them.

The SDK calls them in the event loop and without a limit: a plain function that blocks
would stop all calls of the process. The functions of tools need nothing of this: the
SDK runs a plain one in a thread, and sdk_session.py limits every tool call.
"""

import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog
from agents import OutputGuardrail
from agents.realtime import RealtimeAgent
from agents.tool import FunctionTool, Tool

from bridge.agent import user_code

log = structlog.get_logger()

Hook = Callable[..., Awaitable[Any]]


def guarded(agent: RealtimeAgent[Any], call_sid: str) -> RealtimeAgent[Any]:
    """A copy of the agent, whose instructions and tools the SDK may ask for. The user's
    functions get the agent itself."""
    made = copy.copy(agent)
    if callable(agent.instructions):
        name = f"{call_sid} instructions"
        made.instructions = _hook(agent.instructions, name, agent)
    made.tools = [_tool(it, agent, call_sid) for it in agent.tools]
    return made


def guarded_output(
    guardrails: Sequence[OutputGuardrail[Any]], call_sid: str
) -> list[OutputGuardrail[Any]]:
    """The SDK ignores a guardrail that fails and does not say why: it is logged here,
    with its traceback."""

    def made(guardrail: OutputGuardrail[Any]) -> OutputGuardrail[Any]:
        name = guardrail.get_name()
        check = _hook(guardrail.guardrail_function, f"{call_sid} guardrail")

        async def logged(*given: Any) -> Any:
            try:
                return await check(*given)
            except Exception:
                log.exception("guardrail_failed", call_sid=call_sid, guardrail=name)
                raise

        return replace(guardrail, guardrail_function=logged, name=name)

    return [made(it) for it in guardrails]


def _hook(
    function: Callable[..., Any], name: str, agent: RealtimeAgent[Any] | None = None
) -> Hook:
    """`function` with the limit of user_code. `agent` replaces its second argument."""

    async def called(*given: Any) -> Any:
        if agent is not None:
            given = (given[0], agent)
        seconds = user_code.SECONDS
        return await user_code.call(function, *given, name=name, seconds=seconds)

    return called


def _tool(tool: Tool, agent: RealtimeAgent[Any], call_sid: str) -> Tool:
    if not isinstance(tool, FunctionTool):
        return tool
    name = f"{call_sid} {tool.name}"
    changed: dict[str, Any] = {}
    if callable(tool.is_enabled):
        changed["is_enabled"] = _hook(tool.is_enabled, name, agent)
    if callable(tool.needs_approval):
        changed["needs_approval"] = _hook(tool.needs_approval, name)
    for side in ("tool_input_guardrails", "tool_output_guardrails"):
        if own := getattr(tool, side):
            changed[side] = [_tool_guardrail(it, name) for it in own]
    if not changed:
        return tool
    # Not copy.copy: it would compute the tool's strict JSON schema once more.
    made = object.__new__(type(tool))
    made.__dict__.update(tool.__dict__, **changed)
    return made


def _tool_guardrail(guardrail: Any, name: str) -> Any:
    check = _hook(guardrail.guardrail_function, name)
    return replace(guardrail, guardrail_function=check, name=guardrail.get_name())
