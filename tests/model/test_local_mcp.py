"""Local MCP servers: real programs over stdio, connected for the calls."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from agents.handoffs import Handoff
from agents.mcp import MCPServer, MCPServerStdio, MCPServerStreamableHttp
from agents.realtime import RealtimeAgent, RealtimeRunner, realtime_handoff
from agents.realtime.openai_realtime import OpenAIRealtimeWebSocketModel
from structlog.testing import capture_logs

from bridge.model import local_mcp as module
from bridge.model.local_mcp import McpUnavailable, local_mcp, servers_of
from bridge.sim.model import (
    Behaviour,
    CallTool,
    ModelServer,
    SayText,
    Turn,
    TurnContext,
)
from tests.support.waiting import until

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "mcp_server.py"


def sums() -> MCPServerStdio:
    """A server program that starts when it is connected."""
    params: Any = {"command": sys.executable, "args": [str(PROGRAM)]}
    return MCPServerStdio(params=params, name="sums", cache_tools_list=True)


def agent(*servers: MCPServer, name: str = "desk", **more: Any) -> RealtimeAgent[Any]:
    return RealtimeAgent(name=name, mcp_servers=list(servers), **more)


async def pid(server: MCPServer) -> int:
    result: Any = await server.call_tool("pid", {})
    return int(result.content[0].text)


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


class Strange(MCPServer):
    """A server of a custom class with given delays; `session` as in the SDK's
    classes."""

    def __init__(
        self, connecting: float = 0.0, closing: float = 0.0, checking: float = 0.0
    ) -> None:
        super().__init__()
        self.session: Strange | None = None
        self.connects = self.cleanups = 0
        self.tasks: list[object] = []
        self.broken = False
        self._connecting, self._closing = connecting, closing
        self.checking = checking

    @property
    def name(self) -> str:
        return "strange"

    async def connect(self) -> None:
        self.connects += 1
        self.tasks.append(asyncio.current_task())
        await asyncio.sleep(self._connecting)
        self.session = self

    async def cleanup(self) -> None:
        self.cleanups += 1
        self.tasks.append(asyncio.current_task())
        self.session = None
        await asyncio.sleep(self._closing)

    async def list_tools(self, *_: Any) -> list[Any]:
        await asyncio.sleep(self.checking)
        if self.broken:
            raise BrokenPipeError
        return []

    async def call_tool(self, *_: Any) -> Any:
        raise NotImplementedError

    async def list_prompts(self) -> Any:
        raise NotImplementedError

    async def get_prompt(self, *_: Any) -> Any:
        raise NotImplementedError


# --- which servers ---


def test_servers_of_all_reachable_agents_are_found() -> None:
    """Through every kind of handoff, even if agents hand back to each other."""
    a, b, c, d = (Strange() for _ in range(4))
    last = agent(d, a, name="last")
    third = agent(c, name="third", handoffs=[last])
    second = agent(b, name="second", handoffs=[realtime_handoff(third)])
    first = agent(a, handoffs=[second])
    third.handoffs.append(first)

    assert servers_of(first) == [a, b, c, d]


GLOBAL = agent(Strange(), name="global")


def test_agents_of_a_hand_written_handoff_are_found() -> None:
    """An agent that the function refers to is found; one that it creates is not."""

    async def to_global(context: Any, arguments: str) -> RealtimeAgent[Any]:
        return GLOBAL

    async def to_another(context: Any, arguments: str) -> RealtimeAgent[Any]:
        return agent(Strange())

    class Callable_:
        async def __call__(self, context: Any, arguments: str) -> RealtimeAgent[Any]:
            return GLOBAL

    def by(function: Any) -> Handoff[Any, Any]:
        return Handoff("t", "d", {}, function, "name")

    handoffs = [by(to_global), by(to_another), by(Callable_())]
    assert servers_of(agent(handoffs=handoffs)) == GLOBAL.mcp_servers


# --- real programs ---


async def test_agent_uses_a_tool_of_its_server() -> None:
    """The model knows the tool, and the program's result reaches the model."""

    def answer(heard: TurnContext) -> Turn:
        return [SayText("It makes " + heard.answered[-1].output)]

    server = sums()
    desk = agent(server)
    turns = [[CallTool("add", {"a": 2, "b": 3})]]
    behaviour = Behaviour(turns=turns, answer=answer, think_seconds=0.02, speed=40.0)
    async with ModelServer(behaviour) as model, local_mcp() as local:
        async with local.using(desk):
            session = await RealtimeRunner(
                desk, model=OpenAIRealtimeWebSocketModel()
            ).run(model_config={"url": model.url, "headers": {}})
            async with session:
                await session.send_message("How much is 2 and 3?")
                items = model.sessions[0].items
                await until(
                    lambda: any(
                        it.complete and "makes" in it.text for it in items.values()
                    )
                )

        [said] = [it.text for it in items.values() if it.role == "assistant"]
        assert "5" in said


async def test_calls_share_a_server_until_the_last_ends() -> None:
    """One program serves two calls; it ends when both are over."""
    server = sums()
    desk = agent(server)
    async with local_mcp() as local:
        async with local.using(desk):
            first = await pid(server)
            async with local.using(desk):
                assert await pid(server) == first
            assert await pid(server) == first
        await until(lambda: not runs(first))

        async with local.using(desk):
            assert await pid(server) != first


async def test_a_dead_server_is_restarted_for_the_next_call() -> None:
    """Its death is detected before the call, although its tools are cached."""
    server = sums()
    desk = agent(server)
    async with local_mcp() as local:
        await local.hold(desk)
        async with local.using(desk):
            await server.list_tools()
            first = await pid(server)
        assert runs(first), "held, so it stays open"
        os.kill(first, signal.SIGKILL)

        with capture_logs() as logs:
            async with local.using(desk):
                second = await pid(server)
        assert second != first
        assert [log["event"] for log in logs] == ["mcp_server_reconnecting"]
    assert not runs(second)


async def test_a_server_that_cannot_start_is_named_at_start() -> None:
    """The operator reads which server it is and the type of the error."""
    gone = MCPServerStdio(params={"command": "/no/such/program"}, name="gone")
    async with local_mcp() as local:
        with pytest.raises(McpUnavailable, match=r"^MCP server gone: FileNotFound"):
            await local.hold(agent(sums(), gone))


# --- servers of any kind ---


async def test_one_task_connects_and_cleans_up() -> None:
    """MCP's transports need this, whichever call came first or ended last."""
    server = Strange()
    desk = agent(server)
    async with local_mcp() as local:
        first, second = local.using(desk), local.using(desk)
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        assert server.cleanups == 0
        await second.__aexit__(None, None, None)

    assert (server.connects, server.cleanups) == (1, 1)
    assert len(set(server.tasks)) == 1


async def test_a_server_that_connects_too_slowly_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names it; servers that did connect are closed again."""
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.1)
    slow, fine = Strange(connecting=60), Strange()
    async with local_mcp() as local:
        with pytest.raises(McpUnavailable, match="strange: TimeoutError"):
            async with local.using(agent(fine, slow)):
                raise AssertionError("it is not there")

    assert (slow.cleanups, fine.cleanups) == (1, 1)


async def test_a_server_that_closes_too_slowly_is_abandoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process ends, and the log says why."""
    monkeypatch.setattr(module, "CLEANUP_SECONDS", 0.1)
    with capture_logs() as logs:
        async with asyncio.timeout(2), local_mcp() as local:
            await local.hold(agent(Strange(closing=60)))

    [log] = logs
    assert log["event"] == "mcp_server_cleanup_failed"
    assert (log["server"], log["error"]) == ("strange", "TimeoutError")


async def test_a_hang_up_cancels_connecting() -> None:
    """No server is connected for a call that has ended."""
    server = Strange(connecting=60)
    async with asyncio.timeout(2), local_mcp() as local:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), local.using(agent(server)):
                raise AssertionError("it is not there")

    assert (server.connects, server.cleanups) == (1, 1)


async def test_a_busy_server_is_not_closed_under_another_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is late is reconnected only if no other call uses it."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)
    server = Strange()
    desk = agent(server)
    async with local_mcp() as local:
        await local.hold(desk)
        async with local.using(desk):
            server.checking = 60
            async with local.using(desk):
                assert server.connects == 1
        async with local.using(desk):
            assert server.connects == 2


async def test_a_broken_server_is_reconnected_for_all_calls() -> None:
    """The other calls have lost it, too."""
    server = Strange()
    desk = agent(server)
    async with local_mcp() as local, local.using(desk):
        server.broken = True
        async with local.using(desk):
            assert (server.connects, server.cleanups) == (2, 1)
        server.session, server.broken = None, False
        async with local.using(desk):
            assert server.connects == 3


class Cancels(Strange):
    async def connect(self) -> None:
        raise asyncio.CancelledError


async def test_server_that_cancels_its_own_task_is_unavailable() -> None:
    """It ends neither the call nor the process."""
    async with local_mcp() as local:
        with pytest.raises(McpUnavailable, match="CancelledError"):
            await local.hold(agent(Cancels()))


async def test_a_server_whose_task_was_cancelled_is_reconnected() -> None:
    """A broken transport may cancel it; the server was cleaned up then."""
    server = Strange()
    desk = agent(server)
    async with local_mcp() as local:
        await local.hold(desk)
        task = server.tasks[0]
        assert isinstance(task, asyncio.Task)
        task.cancel()
        async with local.using(desk):
            assert (server.connects, server.cleanups) == (2, 1)


async def test_a_server_without_a_session_counts_as_alive() -> None:
    """A custom class offers nothing to check."""
    server = Strange()
    desk = agent(server)
    async with local_mcp() as local, local.using(desk):
        del server.session
        async with local.using(desk):
            assert server.connects == 1


async def test_a_server_connected_by_user_code_is_not_touched() -> None:
    """It is neither connected again nor closed."""
    server = Strange()
    await server.connect()
    async with local_mcp() as local, local.using(agent(server)):
        assert server.connects == 1

    assert server.cleanups == 0 and server.session is not None


async def test_a_secret_in_an_address_is_not_logged() -> None:
    """Without a name of its own a server is named after its address."""
    params: Any = {"url": "http://127.0.0.1:9/mcp?key=secret"}
    async with local_mcp() as local:
        with pytest.raises(McpUnavailable) as raised:
            await local.hold(agent(MCPServerStreamableHttp(params=params)))

    assert "127.0.0.1:9/mcp" in str(raised.value)
    assert "secret" not in str(raised.value)
