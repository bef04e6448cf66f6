"""`bridge check` calls the functions that make agents: once, for nobody."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge.agent import user_code
from bridge.agent.live import LiveCall
from bridge.agent.user_code import protected_loop
from bridge.app.routes import Route, Routes
from bridge.app.settings import Finding
from bridge.app.startup import UserCode
from bridge.call.agent_check import check_agents

Agent = RealtimeAgent[LiveCall]


async def checked(
    function: Callable[[LiveCall], Any] | Agent,
    routes: Routes | None = None,
    **more: Any,
) -> list[Finding]:
    code = UserCode(function, routes or Routes(), more)
    async with protected_loop():
        return await check_agents(code)


async def later(call: LiveCall) -> Agent:
    await asyncio.sleep(0)
    return Agent(name=call.facts.theirs)


async def nothing(call: LiveCall) -> None:
    return None


@pytest.mark.parametrize(
    "made", [Agent(name="desk"), lambda call: Agent(name="desk"), later]
)
async def test_an_agent_that_can_be_used(made: Any) -> None:
    """An agent, a function and an async function."""
    assert await checked(made) == []


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda call: None, "returned nothing"),
        (nothing, "returned nothing"),
        (lambda call: "desk", "returned a str"),
        (lambda call: call.nobody, "raises AttributeError"),
        (lambda call: {}["tenant"], "raises KeyError: 'tenant'"),
        (lambda: None, "raises TypeError"),
        (lambda call: exit(3), "raises SystemExit"),
    ],
)
async def test_a_function_that_makes_no_agent(made: Any, told: str) -> None:
    """Each caller would hear the apology."""
    [it] = await checked(made)

    assert (it.level, it.name) == ("error", "BRIDGE_AGENT")
    assert told in it.text and it.fix


async def test_a_function_that_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of a call."""
    monkeypatch.setattr(user_code, "SECONDS", 0.1)

    async def waits(call: LiveCall) -> Agent:
        await asyncio.Event().wait()
        raise AssertionError

    [it] = await checked(waits)

    assert "has not returned within 0.1 s" in it.text and it.fix


async def test_each_agent_of_the_routes_gets_a_call_of_its_route() -> None:
    """Its number, its parameters, its direction; once, although two routes name it."""
    seen: list[LiveCall] = []

    def sales(call: LiveCall) -> Agent:
        seen.append(call)
        return Agent(name="sales")

    routes = Routes(
        "routes.yaml",
        (
            Route(
                agent="a:sales",
                name="out",
                numbers=("+14155550111",),
                direction="outbound",
                when={"tenant": "7"},
            ),
            Route(agent="a:sales", name="in"),
            Route(agent="a:broken", name="broken"),
        ),
        lines={("out", "agent"): 3, ("broken", "agent"): 9},
    )
    found = await checked(
        Agent(name="desk"), routes, **{"a:sales": sales, "a:broken": nothing}
    )

    [call] = seen
    assert (call.facts.direction, call.facts.route) == ("outbound", "out")
    assert call.facts.ours == "+14155550111"
    assert call.facts.parameters["tenant"] == "7"
    [it] = found
    assert (it.name, it.place) == ("BRIDGE_ROUTES", "routes.yaml:9")
    assert "a:broken" in it.text


async def test_what_it_does_with_its_call_has_no_effect() -> None:
    """It may listen, tell and mute; there is nobody to hear it."""
    heard: list[object] = []

    async def busy(call: LiveCall) -> Agent:
        call.on(heard.append, "tool_end")
        call.tell("hello")
        call.interrupt()
        return Agent(name="busy")

    assert (await checked(busy), heard) == ([], [])


async def test_a_listener_that_waits_does_not_keep_the_check() -> None:
    """What it has started ends with its call."""
    started = asyncio.Event()

    async def listens(call: LiveCall) -> Agent:
        async def wait(event: object) -> None:
            started.set()
            await asyncio.Event().wait()

        call.on(wait, "begin")
        return Agent(name="listens")

    assert await checked(listens) == []


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
