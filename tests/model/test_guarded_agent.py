"""User code that the SDK asks for the agent's settings: what it gets, and its cost."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.mcp import ToolFilterContext
from agents.realtime import RealtimeAgent, realtime_handoff
from agents.tool import FunctionTool, Tool
from mcp.types import Tool as McpTool

from bridge.agent import user_code
from bridge.model.sdk_model import PhoneModel
from bridge.model.sdk_session import PhoneSession
from tests.model.test_local_mcp import Strange
from tests.model.test_sdk_session import ANSWER, Watch
from tests.support.sdk_session import TARGET, Connection, sample


@dataclass
class Opened:
    session: PhoneSession
    connection: Connection

    @property
    def tools(self) -> list[str]:
        """The names of the tools in the newest `session.update`."""
        updates = [it for it in self.connection.sent if it["type"] == "session.update"]
        return [it["name"] for it in updates[-1]["session"]["tools"]]


@asynccontextmanager
async def talk(
    agent: RealtimeAgent[Any],
    settings: dict[str, Any] | None = None,
    **run_config: Any,
) -> AsyncIterator[Opened]:
    connection = Connection()
    session = PhoneSession(
        PhoneModel(connection.dial, lambda by, answer: None, lambda it: it),
        agent,
        None,
        {
            "url": TARGET.address,
            "headers": {},
            "initial_model_settings": {**TARGET.settings, **(settings or {})},  # type: ignore[typeddict-item]
        },
        run_config,  # type: ignore[arg-type]
        tool_seconds=5.0,
        watch=Watch(),
    )
    await session.enter()
    try:
        yield Opened(session, connection)
    finally:
        await session.close()


def tool(name: str, is_enabled: Any = True) -> FunctionTool:
    @function_tool(name_override=name, is_enabled=is_enabled)
    async def made() -> str:
        return name

    return made


# --- the agent itself ---


class Server(Strange):
    """Its tools go through the user's filter, as in the SDK's servers."""

    def __init__(self, tool_filter: Any) -> None:
        super().__init__()
        self._filter = tool_filter

    async def list_tools(self, context: Any = None, agent: Any = None) -> list[Any]:
        found = McpTool(name="remote", inputSchema={"type": "object"})
        given = ToolFilterContext(context, agent, self.name)
        return [found] if self._filter(given, found) else []


@pytest.mark.parametrize("subclass", [False, True])
async def test_user_code_gets_the_agent_itself(subclass: bool) -> None:
    """A predicate that compares the agent offers its tools and handoffs. With a copy
    of the agent, the model would not get them."""

    class Overrides(RealtimeAgent[Any]):
        async def get_all_tools(self, run_context: Any) -> list[Tool]:
            return await super().get_all_tools(run_context)

    def mine(_: Any, agent: Any) -> bool:
        return agent is triage

    other, last = RealtimeAgent[Any](name="other"), RealtimeAgent[Any](name="last")
    off = realtime_handoff(other, tool_name_override="off", is_enabled=False)
    plain = realtime_handoff(other, tool_name_override="plain")
    plain.is_enabled = mine
    triage = (Overrides if subclass else RealtimeAgent[Any])(
        name="triage",
        instructions=lambda _, agent: f"{agent is triage}",
        tools=[tool("own", mine)],
        mcp_servers=[Server(lambda given, _: given.agent is triage)],
        handoffs=[realtime_handoff(other, is_enabled=mine), plain, off, last],
    )
    async with talk(triage) as it:
        handoffs = ["transfer_to_other", "plain", "transfer_to_last"]
        assert it.tools == ["remote", "own", *handoffs]
        session = it.connection.sent[0]["session"]
        assert session["instructions"] == "True"


async def test_the_tools_of_a_run_configuration() -> None:
    """They replace the agent's; their predicates get the agent itself, too."""

    def mine(_: Any, agent: Any) -> bool:
        return agent is desk and threading.current_thread().name.endswith("is_enabled")

    handoff = realtime_handoff(RealtimeAgent[Any](name="other"))
    handoff.is_enabled = mine
    desk = RealtimeAgent[Any](name="desk", tools=[tool("replaced")])
    settings = {"tools": [tool("own", mine)], "handoffs": [handoff]}
    async with talk(desk, settings) as it:
        assert it.tools == ["own", "transfer_to_other"]


async def test_a_guardrail_of_the_agent_and_of_the_run_runs_once() -> None:
    """It would cost its time twice, and count in its own statistics twice. It gets the
    agent itself, and so does who reads the result."""
    seen: list[bool] = []

    def check(_: Any, given: Any, output: Any) -> GuardrailFunctionOutput:
        seen.append(given is agent)
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    both = OutputGuardrail[Any](check)
    agent = RealtimeAgent[Any](name="desk", output_guardrails=[both])
    async with talk(agent, output_guardrails=[both]) as it:
        words = "a long answer " * 20
        it.connection.says(
            sample("response.created"),
            sample(
                "response.output_audio_transcript.delta", item_id=ANSWER, delta=words
            ),
        )
        async for event in it.session:
            if event.type == "guardrail_tripped":
                (result,) = event.guardrail_results
                break
    assert seen == [True]
    assert result.guardrail is both and getattr(result, "agent") is agent  # noqa: B009


@dataclass
class Counts(RealtimeAgent[Any]):
    """Keeps state in itself."""

    prompts: int = 0
    lists: int = 0
    free: asyncio.Event | None = None

    async def get_system_prompt(self, run_context: Any) -> str:
        self.prompts += 1
        if self.free is not None:
            await self.free.wait()
        return f"prompt {self.prompts}"

    async def get_all_tools(self, run_context: Any) -> list[Tool]:
        self.lists += 1
        return [tool(f"tool_{self.lists}", lambda *_: True)]


async def test_a_subclass_of_the_agent_keeps_its_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its methods run on the agent itself, with the limit."""
    agent = Counts(name="counts")
    async with talk(agent) as it:
        await it.session.update_agent(agent)
        assert it.tools == ["tool_2"] and (agent.prompts, agent.lists) == (2, 2)
        assert it.connection.sent[-1]["session"]["instructions"] == "prompt 2"

        monkeypatch.setattr(user_code, "SECONDS", 0.05)
        agent.free = asyncio.Event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await it.session.update_agent(agent)


# --- the cost of is_enabled ---


async def test_all_predicates_of_an_update_share_one_thread() -> None:
    """64 threads for each update would stop the event loop, so that all callers hear
    gaps. One that is off, fails or is async changes nothing for the others."""
    threads: list[threading.Thread] = []

    def on(*_: Any) -> bool:
        threads.append(threading.current_thread())
        return True

    async def awaited(*_: Any) -> bool:
        return True

    tools = [tool(f"tool_{it}", on) for it in range(64)]
    tools += [tool("never", lambda *_: False), tool("async", awaited), tool("bool")]
    tools += [tool("returns_awaitable", lambda *given: awaited(*given))]
    names = [*(f"tool_{it}" for it in range(64)), "async", "bool", "returns_awaitable"]
    agent = RealtimeAgent[Any](name="desk", tools=list(tools))
    async with talk(agent) as it:
        assert it.tools == names
        assert len(threads) == 64 and len(set(threads)) == 1
        # The SDK asks once more before each tool call.
        item = sample("response.output_item.done")["item"]
        call = {"type": "function_call", "call_id": "call_1", "name": "tool_7"}
        item = {"id": "item_1", "status": "completed", "arguments": "{}", **call}
        it.connection.says(sample("response.output_item.done", item=item))
        async for event in it.session:
            if event.type == "tool_end":
                break
    assert len(threads) == 128 and len(set(threads)) == 2
    assert threading.main_thread() not in threads


async def test_tools_without_predicates_start_no_thread() -> None:
    before = threading.active_count()
    agent = RealtimeAgent[Any](name="desk", tools=[tool("on"), tool("off", False)])
    async with talk(agent) as it:
        assert it.tools == ["on"]
        assert it.session._current_dispatch_snapshot is not None
        [offered] = it.session._current_dispatch_snapshot.tools
        assert isinstance(offered, FunctionTool) and offered.is_enabled is True
        assert threading.active_count() == before


@pytest.mark.parametrize("error", [LookupError, StopIteration, SystemExit])
async def test_a_predicate_that_fails(error: type[BaseException]) -> None:
    """Its caller learns the error; the others get their results."""

    def fails() -> None:
        raise error

    thread = user_code.SharedThread("CA1 is_enabled")
    failed, fine = await asyncio.gather(
        thread.call(fails), thread.call(lambda: 1), return_exceptions=True
    )
    assert isinstance(failed, Exception) and user_code.kind(failed) == error.__name__
    assert fine == 1


async def test_predicates_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for all of one turn; the next turn has a new thread. A caller that
    is cancelled takes no result from the others."""
    monkeypatch.setattr(user_code, "SECONDS", 0.05)
    free = threading.Event()
    thread = user_code.SharedThread("CA1 is_enabled")
    late = await asyncio.gather(
        thread.call(free.wait, 20), thread.call(lambda: 1), return_exceptions=True
    )
    assert [type(it) for it in late] == [TimeoutError, TimeoutError]
    free.set()

    monkeypatch.setattr(user_code, "SECONDS", 20.0)
    async with asyncio.TaskGroup() as tasks:
        cancelled = tasks.create_task(thread.call(lambda: 2), name="cancelled")
        other = tasks.create_task(thread.call(lambda: 3), name="other")
        await asyncio.sleep(0)
        cancelled.cancel()
    assert other.result() == 3 and cancelled.cancelled()
