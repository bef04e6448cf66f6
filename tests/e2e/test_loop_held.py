"""A function that blocks the event loop stops all calls: the log says which one it was.

Each test runs a real `bridge serve`.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.sim.caller import Caller
from bridge.sim.model import Behaviour, CallTool, ModelServer, PlayRuler, Turn
from bridge.sim.twilio import steps
from tests.e2e.test_output import Served, serving
from tests.support.waiting import until

pytestmark = pytest.mark.slow

AGENT = """
import asyncio, gc, time
from agents import function_tool
from agents.realtime import RealtimeAgent

@function_tool
async def blocks(number: str) -> str:
    time.sleep(0.5)
    return "found"

@function_tool(timeout=5)
async def starts(number: str) -> str:
    async def ask() -> None:
        time.sleep(0.5)
    await asyncio.create_task(ask())
    return "found"

@function_tool
async def computes(number: str) -> str:
    sum(range(20_000_000))    # in C, which keeps the interpreter's lock
    return "found"

@function_tool
async def later(number: str) -> str:
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0.1)
    return "found"

def callback() -> None:
    time.sleep(0.5)

@function_tool
async def collects(number: str) -> str:
    gc.unfreeze()    # each collection then scans all that the SDK has loaded
    for _ in range(3):
        gc.collect()
    gc.freeze()
    return "found"

@function_tool
async def waits(number: str) -> str:
    await asyncio.sleep(1)
    return "found"

tools = [blocks, starts, computes, later, collects, waits]
agent = RealtimeAgent(name="plain", instructions="You are a test.", tools=tools)
"""
BLOCKS = ("blocks", "starts", "computes")
"""Tools that hold the loop themselves."""


class Bridge:
    """A bridge whose model calls the tools in each call."""

    def __init__(self, served: Served, errors: Path) -> None:
        self.served, self._errors = served, errors

    def lines(self, *events: str) -> list[dict[str, Any]]:
        lines = self._errors.read_bytes().splitlines(keepends=True)
        found = [json.loads(it) for it in lines if it.endswith(b"\n")]
        return [it for it in found if it["event"] in events]

    def held(self) -> dict[str, dict[str, Any]]:
        """The first line about each tool, and about each cause that is no tool."""
        held = reversed(self.lines("loop_held"))
        return {it.get("tool", it["by"]): it for it in held}

    async def call(self) -> str:
        """Places a call, in which the tools run; gives its SID."""
        script = [steps.ListenStep(quiet_seconds=0.4, timeout=40), steps.HangUpStep()]
        async with asyncio.timeout(200):
            record = await Caller(webhook_url=f"{self.served.url}/voice").call(script)
        assert record.heard and record.ended_by == "caller", record.error
        return record.call_sid

    async def late(self, seconds: str = "0.1") -> float:
        """How often the loop was found to be later than that."""
        name = "bridge_loop_lag_seconds"
        in_time = await self.served.metric(f'{name}_bucket{{le="{seconds}"}}')
        return await self.served.metric(f"{name}_count") - in_time


@asynccontextmanager
async def bridge_with(folder: Path, tools: Sequence[str]) -> AsyncIterator[Bridge]:
    calls: list[Turn] = [[CallTool(it, {"number": "+15551234567"})] for it in tools]
    behaviour = Behaviour(turns=[*calls, [PlayRuler(300)]], speed=20)
    errors = folder / "errors"
    async with ModelServer(behaviour) as model:
        environ = {"BRIDGE_MODEL_URL": model.url}
        with errors.open("wb") as file:
            async with serving(
                folder, agent=AGENT, environ=environ, stderr=file
            ) as served:
                yield Bridge(served, errors)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_log_names_what_holds_the_event_loop(
    tmp_path: Path, loop: str
) -> None:
    """The line has the call, the tool and the line of its code, and no value; also if
    the tool blocks in a task that it has started, or in a C function. A callback and a
    garbage collection are told from a tool. The metric counts the time."""
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("raise ImportError('not installed')")
    else:
        pytest.importorskip("uvloop")
    tools = (*BLOCKS, "later", "collects")
    wanted = {*BLOCKS, "callback", "gc"}
    sids = set()
    async with bridge_with(tmp_path, tools) as bridge:
        # On a machine with too much to do, a hold may be blamed on the machine, and a
        # short one may be missed.
        while not wanted <= set(bridge.held()):
            assert len(sids) < 20, bridge.held()
            sids.add(await bridge.call())
        late = await bridge.late()
        assert await bridge.served.stop() == 0

    held = bridge.held()
    for tool, function in zip(BLOCKS, ("blocks", "ask", "computes"), strict=True):
        line = held[tool]
        assert line["call_sid"] in sids
        assert line["task"] == f"{line['call_sid']} tool {tool}"
        assert line["where"].startswith(f"{tmp_path}/agent.py:")
        assert line["where"].endswith(f" {function}")
        assert line["seconds"] >= 0.1 and line["level"] == "warning"
        assert "5551234567" not in json.dumps(line)
    assert held["callback"]["where"].endswith(" callback")
    assert held["callback"]["callback"] == "callback"
    assert "where" not in held["gc"]
    assert late >= 3


async def test_a_suspended_process_blames_no_tool(tmp_path: Path) -> None:
    """SIGSTOP, or a virtual machine that was paused, while a tool waits."""
    async with bridge_with(tmp_path, ["waits"]) as bridge, asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.call(), name="call")
        await until(lambda: bridge.lines("ready"))
        bridge.served.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        bridge.served.process.send_signal(signal.SIGCONT)
        # On a busy machine the line of this hold may be missing: the host had its line
        # already, for the next minute.
        await until(lambda: bridge.late("1.0"), what="the metric")
        await until(lambda: "host" in bridge.held(), what="the line")

    held = bridge.lines("loop_held", "loop_still_held")
    assert {it["by"] for it in held if it["seconds"] > 1} <= {"host"}
    assert not [it for it in held if "tool" in it]
