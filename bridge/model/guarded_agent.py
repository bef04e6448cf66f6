"""The user's functions on an agent, as the SDK may call them.

The SDK calls them in the event loop and without a limit: a plain function that blocks
would stop all calls of the process. The functions of tools need nothing of this: the
SDK runs a plain one in a thread, and sdk_session.py limits every tool call. Only their
failures are noticed (tool_runs.py).
"""

import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog
from agents import OutputGuardrail, RunContextWrapper
from agents.guardrail import OutputGuardrailResult
from agents.handoffs import Handoff
from agents.realtime import RealtimeAgent
from agents.realtime.config import RealtimeSessionModelSettings
from agents.tool import FunctionTool, Tool

from bridge.agent import user_code
from bridge.agent.user_code import SharedThread
from bridge.model.tool_runs import watched

log = structlog.get_logger()

Hook = Callable[..., Awaitable[Any]]


def guarded(
    agent: RealtimeAgent[Any], call_sid: str, more: Sequence[Tool] = ()
) -> RealtimeAgent[Any]:
    """A copy of the agent with `more` tools, whose instructions, tools and handoffs the
    SDK may ask for. All user code gets the agent itself: it may compare it, or keep
    state in it."""
    made = copy.copy(agent)
    thread = SharedThread(f"{call_sid} is_enabled")
    if callable(agent.instructions):
        name = f"{call_sid} instructions"
        made.instructions = _hook(agent.instructions, name, agent)
    made.tools = [_tool(it, agent, call_sid, thread) for it in _with(agent.tools, more)]
    made.handoffs = [_handoff(it, agent, thread) for it in agent.handoffs]
    # Attributes of the copy, in place of its methods: those would pass the copy on.
    of_copy = made.__dict__
    of_copy["get_mcp_tools"] = agent.get_mcp_tools
    if _overrides(agent, "get_system_prompt"):
        name = f"{call_sid} get_system_prompt"
        of_copy["get_system_prompt"] = _hook(agent.get_system_prompt, name)
    if _overrides(agent, "get_all_tools"):

        async def get_all_tools(context: RunContextWrapper[Any]) -> list[Tool]:
            tools = await user_code.call(
                agent.get_all_tools,
                context,
                name=f"{call_sid} get_all_tools",
                seconds=user_code.PROMPT_SECONDS,  # it may ask local MCP servers
            )
            tools = _with(tools, more)
            return [_tool(it, agent, call_sid, thread) for it in tools]

        of_copy["get_all_tools"] = get_all_tools
    return made


def guarded_settings(
    settings: RealtimeSessionModelSettings,
    agent: RealtimeAgent[Any],
    call_sid: str,
    more: Sequence[Tool] = (),
) -> RealtimeSessionModelSettings:
    """The same for the tools and handoffs of a run configuration, which replace those
    of the first agent."""
    made = settings.copy()
    thread = SharedThread(f"{call_sid} is_enabled")
    if "tools" in made:
        tools = _with(made["tools"], more)
        made["tools"] = [_tool(it, agent, call_sid, thread) for it in tools]
    if "handoffs" in made:
        made["handoffs"] = [_handoff(it, agent, thread) for it in made["handoffs"]]
    return made


def _with(tools: Sequence[Tool], more: Sequence[Tool]) -> list[Tool]:
    """The agent's own tool of the same name stays."""
    names = {it.name for it in tools}
    return [*tools, *(it for it in more if it.name not in names)]


def _overrides(agent: RealtimeAgent[Any], method: str) -> bool:
    found = getattr(agent, method)
    return getattr(found, "__func__", None) is not getattr(RealtimeAgent, method)


def guarded_output(
    guardrail: OutputGuardrail[Any], agent: RealtimeAgent[Any], call_sid: str
) -> OutputGuardrail[Any]:
    """The SDK ignores a guardrail that fails and does not say why: it is logged here,
    with its traceback. The result names the user's own guardrail and agent."""
    name = guardrail.get_name()
    inner, made = copy.copy(guardrail), copy.copy(guardrail)
    inner.guardrail_function = _hook(
        guardrail.guardrail_function, f"{call_sid} guardrail"
    )
    inner.name = name

    async def run(
        context: RunContextWrapper[Any], _: Any, output: Any
    ) -> OutputGuardrailResult:
        try:
            result = await inner.run(context, agent, output)  # type: ignore[arg-type]
        except Exception:
            log.exception("guardrail_failed", call_sid=call_sid, guardrail=name)
            raise
        return replace(result, guardrail=guardrail)

    made.__dict__["run"] = run
    return made


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


def _is_enabled(
    function: Callable[..., Any], agent: RealtimeAgent[Any], thread: SharedThread
) -> Hook:
    def called(context: Any, _: Any) -> Awaitable[Any]:
        return thread.call(function, context, agent)

    return called


def _handoff(handoff: Any, agent: RealtimeAgent[Any], thread: SharedThread) -> Any:
    if not isinstance(handoff, Handoff) or not callable(handoff.is_enabled):
        return handoff
    made = copy.copy(handoff)
    made.is_enabled = _is_enabled(handoff.is_enabled, agent, thread)
    return made


def _tool(
    tool: Tool, agent: RealtimeAgent[Any], call_sid: str, thread: SharedThread
) -> Tool:
    if not isinstance(tool, FunctionTool):
        return tool
    name = f"{call_sid} {tool.name}"
    changed: dict[str, Any] = {}
    if callable(tool.is_enabled):
        changed["is_enabled"] = _is_enabled(tool.is_enabled, agent, thread)
    if callable(tool.needs_approval):
        changed["needs_approval"] = _hook(tool.needs_approval, name)
    for side in ("tool_input_guardrails", "tool_output_guardrails"):
        if own := getattr(tool, side):
            changed[side] = [_tool_guardrail(it, name) for it in own]
    made = watched(tool)
    made.__dict__.update(changed)
    return made


def _tool_guardrail(guardrail: Any, name: str) -> Any:
    check = _hook(guardrail.guardrail_function, name)
    return replace(guardrail, guardrail_function=check, name=guardrail.get_name())
