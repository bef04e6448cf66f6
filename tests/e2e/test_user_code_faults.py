"""Every function of the user x every fault x both kinds of call, over real sockets.

A fault of user code ends at most its own call. Another call of the process goes on, the
server answers, and nothing is left behind.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog
from agents import (
    GuardrailFunctionOutput,
    OutputGuardrail,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    function_tool,
)
from agents.realtime import RealtimeAgent
from pydantic import SecretStr
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect

from bridge.agent import events, user_code
from bridge.agent.live import LiveCall
from bridge.app.routes import ReportTarget, Route, Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.http.server import Server
from bridge.model import session
from bridge.records import report
from bridge.sim.caller import PlacedCall
from bridge.sim.model import Behaviour, CallTool, ModelServer, SayText
from bridge.sim.realtime.calls import CallsServer
from bridge.sim.realtime.phone_call import PhoneCall, SipCallState
from bridge.sim.twilio import steps
from tests.e2e.bridge import RunningBridge
from tests.support.waiting import until
from twiml import spoken_texts

pytestmark = pytest.mark.slow

LIMIT = 0.8
"""Limit of every function of the user, in these tests. A healthy function must keep it
on a loaded machine."""

LONGEST = 20.0
"""Longest wait for anything that must happen."""

LONG = SayText("This answer is so long that the SDK lets the guardrails check it. " * 2)
SHORT = SayText("Yes.")
QUICK = {"think_seconds": 0.02, "speed": 40.0}


class PanicException(BaseException):
    """Stands for a panic of an extension module that is written in Rust."""


BOTH = (RuntimeError, PanicException, SystemExit, None)
PLAIN = (*BOTH, StopIteration)
"""Python makes a RuntimeError of the StopIteration of an async function."""

ASYNC = (*BOTH, KeyboardInterrupt, asyncio.CancelledError)
ENDS = ("agent", "on_call", "instructions", "is_enabled", "connector")
"""Functions without which the call has no agent."""

TOOLS = ("tool", "tool_with_timeout", "needs_approval", "tool_guardrail")
GOES_ON = (*TOOLS, "guardrail", "listener", "report")
HUNG_CONNECTOR = "connector hang"


Raises = type[BaseException] | None


@dataclass
class Fault:
    """What one function of one call does."""

    hook: str
    raises: Raises
    """None: it hangs."""
    plain: bool
    number: str
    """From which the call comes."""
    happened: int = 0
    free: threading.Event = field(default_factory=threading.Event)
    """Ends the threads of functions that hang."""

    def __str__(self) -> str:
        what = self.raises.__name__ if self.raises else "hang"
        return f"{self.hook} {'plain' if self.plain else 'async'} {what}"

    def function(self, result: Any) -> Callable[..., Any]:
        """The function that has the fault, or that returns `result`."""

        def plain(*_: Any) -> Any:
            self.happened += 1
            if self.raises is None:
                self.free.wait(20)
                return result
            raise self.raises("theirs")

        async def waits(*_: Any) -> Any:
            self.happened += 1
            if self.raises is None:
                await asyncio.Event().wait()
            else:
                raise self.raises("theirs")

        return plain if self.plain else waits


def faults(hook: str) -> list[Fault]:
    """All faults of one function. The SDK has a limit for async tools only."""
    found: list[tuple[Raises, bool]] = [(raises, False) for raises in ASYNC]
    if hook != "tool_with_timeout":
        found += [(raises, True) for raises in PLAIN]
    return [
        Fault(hook, raises, plain, f"+1555000{at:04}")
        for at, (raises, plain) in enumerate(found, 1)
    ]


def agent_of(fault: Fault | None) -> RealtimeAgent[Any]:
    """An agent whose one function has the fault; a healthy one without a fault."""

    def made(hook: str, healthy: Any) -> Callable[..., Any]:
        if fault and fault.hook == hook:
            return fault.function(healthy)
        return lambda *_: healthy

    hook = fault.hook if fault else ""
    work = made("tool_with_timeout" if hook == "tool_with_timeout" else "tool", "done")

    async def waiting() -> str:
        return str(await work())

    def plain() -> str:
        return str(work())

    is_plain = fault is None or fault.plain or hook not in TOOLS[:2]
    tool = function_tool(
        plain if is_plain else waiting,
        name_override="work",
        failure_error_function=None,
        timeout=LIMIT if hook == "tool_with_timeout" else None,
        is_enabled=made("is_enabled", True),
        needs_approval=made("needs_approval", False),
    )
    allow = ToolGuardrailFunctionOutput.allow()
    check = made("tool_guardrail", allow)
    tool.tool_input_guardrails = [ToolInputGuardrail(check, name="check")]
    passed = GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)
    return RealtimeAgent(
        name="desk",
        instructions=made("instructions", "Be kind."),
        tools=[tool],
        output_guardrails=[OutputGuardrail(made("guardrail", passed), name="kind")],
    )


@dataclass
class Place:
    """One process with its server; the fake model, Twilio and OpenAI's calls."""

    running: RunningBridge
    calls: CallsServer
    lives: dict[str, LiveCall]
    """The calls by the number of the caller."""
    connectors: list[Fault]
    """The faults of the next connections to the model, one each."""
    tasks: set[asyncio.Task[Any]]
    """Those that run without any call."""
    logs: list[Any]

    async def ring(self, fault: Fault) -> PhoneCall:
        url = f"{self.running.url}/openai/webhook"
        return await self.calls.ring(url, caller=fault.number)

    def is_logged(self, fault: Fault) -> bool:
        """Whether the log of the call says what failed, and how."""
        if fault.raises is None and fault.hook in UNLOGGED_HANGS:
            return True
        late = "timeout" if fault.hook in TOOLS else "TimeoutError"
        how = fault.raises.__name__ if fault.raises else late
        sid = self.lives[fault.number].call_sid
        names = (LOGGED[fault.hook], "model_connector_failed")
        return any(
            how in f"{it.get('error')} {it.get('exception')}"
            for it in self.logs
            if it.get("call_sid") == sid and it["event"] in names
        )

    async def empty(self) -> None:
        """Fails if anything of a call is left, such as a task of the SDK."""
        await self.running.empty()
        await until(lambda: not self._left(), 3, f"the end of {self._left()}")

    def _left(self) -> list[str]:
        left = asyncio.all_tasks() - self.tasks - {asyncio.current_task()}
        # The fake of OpenAI's API keeps connections open for further requests.
        return [it for it in map(repr, left) if "RequestHandler.start" not in it]


@asynccontextmanager
async def place(
    hook: str, all_faults: list[Fault], logs: list[Any]
) -> AsyncIterator[Place]:
    by_number = {fault.number: fault for fault in all_faults}
    lives: dict[str, LiveCall] = {}
    connectors: list[Fault] = []

    def fault_of(number: str, hook: str) -> Fault | None:
        fault = by_number.get(number)
        return fault if fault and fault.hook == hook else None

    def agent(live: LiveCall) -> Any:
        number = live.facts.from_number
        if fault := fault_of(number, "listener"):
            live.on(fault.function(None))
        if fault := fault_of(number, "agent"):
            return fault.function(None)(live)
        return agent_of(by_number.get(number))

    def on_call(live: LiveCall) -> Any:
        lives[live.facts.from_number] = live
        fault = fault_of(live.facts.from_number, "on_call")
        return fault.function(None)(live) if fault else None

    def reported(it: report.CallReport) -> Any:
        fault = fault_of(it.from_number, "report")
        return fault.function(None)(it) if fault else None

    async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
        if connectors:
            made = connectors.pop(0).function(None)(url, headers)
            await made
        query = urlsplit(url).query  # the fake API and the fake model have two ports
        return await connect(f"{model.url}?{query}", additional_headers=headers)

    def plain_dial(url: str, headers: dict[str, str]) -> Any:
        if connectors and connectors[0].plain:
            return connectors.pop(0).function(None)(url, headers)
        return dial(url, headers)

    turns: list[Any] = [[CallTool("work", {})]] if hook in TOOLS else []
    answer = LONG if hook == "guardrail" else SHORT
    behaviour = Behaviour(turns=[*turns, [answer]], fallback=[SHORT], **QUICK)
    async with (
        ModelServer(behaviour, api_key="sk-sim") as model,
        CallsServer(model) as calls,
    ):
        settings = Settings(
            host="127.0.0.1",
            port=0,
            insecure=True,
            greeting="Go.",
            calls_per_number=0,
            calls_per_number_hour=0,
            openai_api_key=SecretStr("sk-sim"),
            openai_webhook_secret=SecretStr(calls.secret),
        )
        route = Route(
            on_call="on_call", report=ReportTarget(to="report"), tool_seconds=LIMIT
        )
        functions = {"on_call": on_call, "report": reported}
        routes = Routes(defaults=route)
        code = UserCode(agent, routes, functions=functions, connect=plain_dial)
        url = f"ws{calls.url.removeprefix('http')}/realtime"
        async with start_services(settings, code, url) as services:
            server = Server(settings, services)
            await server.start()
            running = RunningBridge(server, model, settings)
            before = asyncio.all_tasks()
            try:
                yield Place(running, calls, lives, connectors, before, logs)
            finally:
                for fault in all_faults:
                    fault.free.set()
                await server.close()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "SECONDS", LIMIT)
    monkeypatch.setattr(session, "OPEN_SECONDS", LIMIT)
    monkeypatch.setattr(events, "LATE_SECONDS", LIMIT)
    times = partial(report.DeliveryTimes, function_seconds=LIMIT)
    monkeypatch.setattr(report, "DeliveryTimes", times)


async def media_call(here: Place, fault: Fault) -> None:
    """The caller hears the apology, or the agent."""
    placed = PlacedCall(here.running.caller(from_number=fault.number))
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(placed.run([steps.WaitStep(2 * LONGEST)]))
        if fault.hook != "report":  # that comes after the call
            await until(lambda: fault.happened or call.done(), LONGEST, f"{fault}")
        if fault.hook in ENDS and str(fault) not in SECOND_TRY:
            record = await call
            assert record.said_by_twilio == [spoken_texts.SORRY], fault
        else:
            await until(lambda: placed.record.heard, LONGEST, f"speech after {fault}")
            await log_of(here, fault)
            assert not call.done(), fault
            placed.end("caller")
    await until(lambda: fault.happened, LONGEST, f"the fault {fault}")


async def log_of(here: Place, fault: Fault) -> None:
    """The fault is logged; that of a report comes after the call."""
    if fault.hook != "report":
        await until(lambda: here.is_logged(fault), LONGEST, f"the log of {fault}")


SECOND_TRY = ("connector plain hang", "connector async hang")
"""A connection that is too late is dialled again, and the call goes on."""


async def sip_call(here: Place, fault: Fault) -> None:
    """The caller is hung up, or hears the agent."""
    call = await here.ring(fault)
    async with asyncio.timeout(LONGEST):
        if fault.hook in ENDS:
            await call.until(SipCallState.REJECTED, SipCallState.ENDED)
            assert call.ended_by != "caller", fault
        else:
            await until(lambda: spoke(call), LONGEST, f"speech in spite of {fault}")
            await log_of(here, fault)
            assert call.state is SipCallState.TALKING, fault
            call.hang_up()
        await until(lambda: fault.happened, LONGEST, f"the fault {fault}")


def spoke(call: PhoneCall) -> bool:
    responses = call.session.responses if call.session else []
    return any(it.first_audio_at is not None for it in responses)


OTHER = "+15559990000"


async def still_answers(live: LiveCall) -> None:
    """The agent of another call answers, and its call ends as it should."""
    said = asyncio.Event()

    async def listener(_: events.CallEvent) -> None:
        said.set()

    live.interrupt()
    live.on(listener, "said")
    live.tell("Are you there?")
    async with asyncio.timeout(LONGEST):
        await said.wait()
        await live.hang_up()


async def make_all(here: Place, all_faults: list[Fault], leg: Any) -> None:
    """All at once; but the connector does not know which call it connects."""
    if all_faults[0].hook == "connector":
        for fault in all_faults:
            here.connectors.append(fault)
            await leg(here, fault)
        return
    async with asyncio.TaskGroup() as calls:
        for fault in all_faults:
            calls.create_task(leg(here, fault), name=str(fault))


LOGGED = {
    **dict.fromkeys(ENDS, "agent_failed"),
    **dict.fromkeys(TOOLS, "tool_failed"),
    "guardrail": "guardrail_failed",
    "listener": "listener_failed",
    "report": "report_function_failed",
}


UNLOGGED_HANGS = ("connector", "tool_with_timeout", "listener")
"""A connection that is too late is dialled again (media) or refused (SIP). The SDK
tells the model of its own timeout. The events of a listener that hangs are dropped."""


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("leg", [media_call, sip_call])
@pytest.mark.parametrize("hook", [*ENDS, *GOES_ON])
async def test_a_fault_ends_at_most_its_own_call(hook: str, leg: Any) -> None:
    """The caller hears the apology if there is no agent; else the agent goes on. The
    other call goes on, the server answers, and no task is left."""
    all_faults = faults(hook)
    with capture_logs(processors=[structlog.processors.format_exc_info]) as logs:
        async with place(hook, all_faults, logs) as here:
            caller = here.running.caller(from_number=OTHER)
            async with asyncio.TaskGroup() as tasks:
                other = tasks.create_task(caller.call([steps.WaitStep(30)]))
                await until(lambda: here.running.model.sessions)
                await until(lambda: here.running.session.responses)
                await make_all(here, all_faults, leg)
                await still_answers(here.lives[OTHER])
            assert other.result().said_by_twilio == []
            await here.empty()
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"{here.running.url}/healthz") as answer,
            ):
                assert answer.status == 200
            for fault in all_faults:
                assert here.is_logged(fault), str(fault)
