"""`bridge check` calls an agent's function: what it says of one that fails."""

import asyncio
from typing import Any

from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge.agent.live import LiveCall
from bridge.app.startup import UserCode
from bridge.call.agent_check import check_agents


async def told(source: Any) -> str:
    """The one mistake, with its fix."""
    [found] = await check_agents(UserCode(source))
    assert found.level == "error" and found.name == "BRIDGE_AGENT"
    return f"{found.text}: {found.fix}"


async def test_a_function_that_makes_an_agent_has_no_mistake() -> None:
    def made(call: LiveCall) -> RealtimeAgent[Any]:
        return RealtimeAgent(name="desk")

    assert await check_agents(UserCode(made)) == []


async def test_a_tool_that_the_sdk_refuses_is_explained() -> None:
    """With the tool and its argument, as when the file defines it."""

    def made(call: LiveCall) -> RealtimeAgent[Any]:
        @function_tool
        def book(order: dict[str, str]) -> None: ...

        return RealtimeAgent(name="desk", tools=[book])

    text = await told(made)
    assert text.startswith(f"cannot make its agent: Tool book ({__file__}:")
    assert "its argument `order: dict[str, str]` may have any keys" in text


async def test_an_agent_that_a_session_would_refuse_is_explained() -> None:
    def made(call: LiveCall) -> RealtimeAgent[Any]:
        return RealtimeAgent(name="desk", tools=[print])  # type: ignore[list-item]

    text = await told(made)
    assert "cannot be used: agent 'desk': print in `tools` is a plain function" in text
    assert text.endswith("correct the agent that the function makes")
    assert (await told(lambda call: None)).endswith(
        "return a RealtimeAgent, or a runner"
    )


async def test_a_function_that_raises_is_named_with_its_line() -> None:
    async def broken(call: LiveCall) -> RealtimeAgent[Any]:
        await asyncio.sleep(0)
        raise LookupError("no agent")

    line = broken.__code__.co_firstlineno + 2
    text = await told(broken)
    assert "raises LookupError: no agent (" in text
    assert f"{__file__}:{line} broken)" in text
