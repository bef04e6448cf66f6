"""Tools of hosted MCP servers: in the SDK's session, over the fake model's socket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from agents import HostedMCPTool, MCPToolApprovalRequest, function_tool
from agents.realtime import RealtimeAgent, RealtimeModelSendEvent, RealtimeRunner
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model import RealtimeModelConfig
from agents.realtime.model_inputs import RealtimeModelSendSessionUpdate
from agents.realtime.openai_realtime import OpenAIRealtimeWebSocketModel
from agents.tool import MCPToolApprovalFunction
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bridge.agent.approvals import ApprovalRule, Approvals
from bridge.model import hosted_mcp
from bridge.model.hosted_mcp import HostedMcp, split
from bridge.sim.model import (
    Behaviour,
    CallMcp,
    CallTool,
    ModelServer,
    ModelSession,
    SayText,
    Turn,
    TurnContext,
)
from tests.support.waiting import until

SID = "CA00000000000000000000000000000001"
BOOK = {"name": "book", "description": "Books a table.", "input_schema": {}}
LOOK = {"name": "look", "description": "Looks for a table.", "input_schema": {}}
CALL = CallMcp("tables", "book", {"guests": 4}, output="table 7")
ARGUMENTS = '{"guests":4}'


def tables(
    approver: MCPToolApprovalFunction | None = None, **config: Any
) -> HostedMCPTool:
    named = {"type": "mcp", "server_label": "tables", "server_url": "https://a.example"}
    return HostedMCPTool(
        tool_config=cast(Any, named | config), on_approval_request=approver
    )


@function_tool
def hours() -> str:
    """When we are open."""
    return "always"


def desk(*tools: Any, **more: Any) -> RealtimeAgent[Any]:
    return RealtimeAgent(
        name="desk", instructions="Be kind.", tools=list(tools), **more
    )


@dataclass
class Call:
    """The parts of a call that HostedMcp needs, and the records that the tests
    check."""

    call_sid: str = SID
    agent_name: str = "desk"
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: int = 0
    at_work: list[str] = field(default_factory=list)
    """What it was told of as running or waiting: the ids of calls."""

    def emit(self, event_type: str, **data: Any) -> None:
        self.events.append((event_type, data))

    def ask(self) -> None:
        self.asked += 1

    def running(self, change: int, call_id: str = "") -> None:
        if change > 0:
            self.at_work.append(call_id)
        else:
            self.at_work.remove(call_id)

    def told(self, event_type: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.events if kind == event_type]

    async def tells(self, event_type: str, count: int = 1) -> dict[str, Any]:
        """The newest `count` events of this type, once there are so many."""
        await until(lambda: len(self.told(event_type)) >= count)
        return self.told(event_type)[-1]


class Socket:
    """A connection with HostedMcp in it, as in the wire."""

    def __init__(self, socket: ClientConnection, hosted: HostedMcp) -> None:
        self.socket = socket
        self._hosted = hosted

    def __aiter__(self) -> "Socket":
        return self

    async def __anext__(self) -> str:
        try:
            text = cast(str, await self.socket.recv())
        except ConnectionClosed:
            raise StopAsyncIteration from None
        self._hosted.model_event(text)
        return text

    async def send(self, text: str) -> None:
        event = json.loads(text)
        if event["type"] == "session.update":
            self._hosted.put_into(event["session"])
        await self.socket.send(json.dumps(event))

    async def close(self) -> None:
        await self.socket.close()


class Model(OpenAIRealtimeWebSocketModel):
    """The SDK's model with HostedMcp in it, as in PhoneModel."""

    hosted: HostedMcp
    wire: Socket

    async def connect(self, options: RealtimeModelConfig) -> None:
        settings = self.hosted.take(options.get("initial_model_settings", {}))
        await super().connect({**options, "initial_model_settings": settings})

    async def send_event(self, event: RealtimeModelSendEvent) -> None:
        if isinstance(event, RealtimeModelSendSessionUpdate):
            settings = self.hosted.take(event.session_settings)
            event = RealtimeModelSendSessionUpdate(session_settings=settings)
        await super().send_event(event)

    async def _create_websocket_connection(
        self, url: str, headers: Any, transport_config: Any = None
    ) -> ClientConnection:
        socket = await connect(url, compression=None, close_timeout=0.2)
        self.wire = Socket(socket, self.hosted)
        return cast(ClientConnection, self.wire)


@dataclass
class McpSession:
    call: Call
    hosted: HostedMcp
    approvals: Approvals
    server: ModelSession
    say: Callable[[dict[str, Any]], None]
    errors: list[Any] = field(default_factory=list)

    def answer(self) -> None:
        """Requests a response of the model."""
        self.say({"type": "response.create"})

    async def said(self, text: str) -> None:
        """Waits until the model has said this."""
        items = self.server.items
        await until(
            lambda: any(it.text == text and it.complete for it in items.values())
        )

    def in_session(self) -> list[str]:
        """Names of the functions and labels of the servers that the model knows."""
        tools = self.server.session["tools"]
        return [it.get("name") or it["server_label"] for it in tools]


def speaks_of_results(heard: TurnContext) -> Turn:
    return [SayText("; ".join(it.output for it in heard.answered) or "nothing")]


@asynccontextmanager
async def talk(
    agent: RealtimeAgent[Any], *turns: Turn, rule: ApprovalRule | None = None
) -> AsyncIterator[McpSession]:
    """A session with this agent whose servers are listed. An error of the model fails
    the test."""
    behaviour = Behaviour(
        turns=turns,
        answer=speaks_of_results,
        mcp={"tables": [BOOK, LOOK]},
        think_seconds=0.02,
        speed=40.0,
    )
    call, model = Call(), Model()
    async with ModelServer(behaviour) as server, asyncio.TaskGroup() as tasks:

        def start(work: Any, name: str) -> object:
            started.append(tasks.create_task(work, name=name))
            return started[-1]

        def say(event: dict[str, Any]) -> None:
            tasks.create_task(model.wire.send(json.dumps(event)))

        def ask() -> None:
            call.ask()
            say({"type": "response.create"})

        started: list[asyncio.Task[None]] = []
        approvals = Approvals(rule or ApprovalRule(), start, SID, call.running)
        hosted = HostedMcp(call, approvals, start, say, ask, call.running)
        model.hosted = hosted
        session = await RealtimeRunner(agent, model=model).run(
            context=call, model_config={"url": server.url, "headers": {}}
        )
        await session.enter()
        found = McpSession(call, hosted, approvals, server.sessions[0], say)

        async def listen() -> None:
            async for event in session:
                if event.type == "error":
                    found.errors.append(event.error)

        tasks.create_task(listen())
        try:
            await until(lambda: bool(found.server.session["tools"]))
            yield found
            assert found.errors == [] and found.server.errors_sent == []
            assert call.at_work == []
        finally:
            for task in started:
                task.cancel()
            await session.close()


async def test_agent_with_a_hosted_server_talks() -> None:
    """The model gets functions and servers, and the bridge knows the servers' tools."""
    async with talk(desk(hours, tables())) as it:
        changed = await it.call.tells("mcp_tools_changed")

        assert it.in_session() == ["hours", "tables"]
        assert [tool["name"] for tool in changed["tools"]] == ["book", "look"]
        assert changed["server"] == "tables"
        assert [tool["name"] for tool in it.hosted.servers["tables"]] == [
            "book",
            "look",
        ]


async def test_a_handoff_changes_the_servers() -> None:
    """Each agent has its own tools only; a server that is known already is there at
    once."""
    cook = desk(hours)
    cook.name = "cook"
    first = desk(tables(), handoffs=[cook])
    cook.handoffs.append(first)
    there, back = CallTool("transfer_to_cook", {}), CallTool("transfer_to_desk", {})
    async with talk(first, [there], [SayText("Cook here.")], [back]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        await it.said("Cook here.")

        assert it.in_session() == ["hours", "transfer_to_desk"]
        assert it.hosted.servers == {}
        assert it.call.told("mcp_tools_changed")[-1]["tools"] == []

        it.answer()
        await it.call.tells("mcp_tools_changed", 3)
        assert list(it.hosted.servers) == ["tables"]
        await until(lambda: it.in_session() == ["transfer_to_cook", "tables"])


async def test_an_unreachable_server_is_reported() -> None:
    """The call goes on without its tools."""
    gone = HostedMCPTool(
        tool_config={
            "type": "mcp",
            "server_label": "gone",
            "server_url": "https://b.example",
        }
    )
    async with talk(desk(gone)) as it:
        assert await it.call.tells("mcp_tools_failed") == {"server": "gone"}
        assert it.hosted.servers == {}


async def test_caller_hears_what_the_server_found() -> None:
    """One response is requested, after the tool call's own response is done."""
    async with talk(desk(tables(require_approval="never")), [CALL]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        await it.said("table 7")

        assert it.call.asked == 1
        assert it.call.told("mcp_tool_call_completed") == [
            {
                "server": "tables",
                "name": "book",
                "arguments": ARGUMENTS,
                "output": "table 7",
                "error": None,
            }
        ]


async def test_caller_hears_that_the_server_failed() -> None:
    """A failed tool call gets a response as well, and is reported with its error."""
    error = {"type": "tool_execution_error", "message": "full"}
    call = CallMcp("tables", "book", {}, error=error)
    async with talk(desk(tables(require_approval="never")), [call]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        await it.said("full")

        told = await it.call.tells("mcp_tool_call_completed")
        assert told["error"] == error and told["output"] is None


async def test_two_tool_calls_of_a_response_get_one_answer() -> None:
    """The model is not asked for one response per tool call."""
    other = CallMcp("tables", "look", {}, output="by the window")
    tools = tables(require_approval="never")
    async with talk(desk(tools), [CALL, other]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        await it.said("table 7; by the window")

        assert it.call.asked == 1


async def test_a_tool_call_waits_for_approval() -> None:
    """It is listed among the approvals; once approved it runs and the caller hears of
    it."""
    async with talk(desk(tables()), [CALL]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        told = await it.call.tells("tool_approval_required")
        [approval] = it.approvals.pending

        assert (approval.tool, approval.server) == ("book", "tables")
        assert (approval.arguments, approval.agent) == (ARGUMENTS, "desk")
        assert told == {
            "call_id": approval.call_id,
            "tool": "book",
            "arguments": ARGUMENTS,
            "server": "tables",
            "until": approval.until,
        }
        assert it.call.asked == 0

        await it.approvals.approve(approval.call_id)
        await it.said("table 7")
        assert it.call.asked == 1
        assert len(it.call.told("mcp_tool_call_completed")) == 1


async def test_rejected_call_is_answered_with_the_reason() -> None:
    """The model is told the reason and speaks; the tool does not run."""
    async with talk(desk(tables()), [CALL]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        told = await it.call.tells("tool_approval_required")
        await it.approvals.reject(told["call_id"], message="too many guests")

        await it.said("not approved: too many guests")
        assert it.call.asked == 1
        assert it.call.told("mcp_tool_call_completed") == []


async def test_an_undecided_approval_is_rejected() -> None:
    """The call's approval rule applies to hosted tools, too."""
    rule = ApprovalRule(seconds=0.1, message="nobody was there")
    async with talk(desk(tables()), [CALL], rule=rule) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()

        await it.said("not approved: nobody was there")


async def test_always_approves_later_calls_of_the_tool() -> None:
    """`always` applies to this tool until the call ends."""
    async with talk(desk(tables()), [CALL], [SayText("Booked.")], [CALL]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        told = await it.call.tells("tool_approval_required")
        await it.approvals.approve(told["call_id"], always=True)
        await it.said("Booked.")

        it.answer()
        await it.call.tells("mcp_tool_call_completed", 2)
        assert len(it.call.told("tool_approval_required")) == 1


def yes(request: MCPToolApprovalRequest) -> Any:
    assert request.data.arguments == ARGUMENTS
    assert request.ctx_wrapper.context.call_sid == SID
    return {"approve": True}


async def no(request: MCPToolApprovalRequest) -> Any:
    return {"approve": False, "reason": f"{request.data.name} is off"}


def broken(request: MCPToolApprovalRequest) -> Any:
    raise RuntimeError("the user's own")


def exits(request: MCPToolApprovalRequest) -> Any:
    raise SystemExit


def stops(request: MCPToolApprovalRequest) -> Any:
    raise StopIteration


async def interrupts(request: MCPToolApprovalRequest) -> Any:
    raise KeyboardInterrupt


def odd(request: MCPToolApprovalRequest) -> Any:
    return None


async def slow(request: MCPToolApprovalRequest) -> Any:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("approver", "said"),
    [
        (yes, "table 7"),
        (lambda request: no(request), "not approved: book is off"),
        (no, "not approved: book is off"),
        (broken, f"not approved: {hosted_mcp.FAILED}"),
        (exits, f"not approved: {hosted_mcp.FAILED}"),
        (stops, f"not approved: {hosted_mcp.FAILED}"),
        (interrupts, f"not approved: {hosted_mcp.FAILED}"),
        (odd, f"not approved: {hosted_mcp.FAILED}"),
        (slow, f"not approved: {hosted_mcp.FAILED}"),
    ],
)
async def test_tools_own_approver_decides(
    approver: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The approver may be plain or async; one that fails or is late rejects. No other
    approval is requested."""
    monkeypatch.setattr(hosted_mcp, "APPROVER_SECONDS", 0.5)
    async with talk(desk(tables(approver)), [CALL]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()

        await it.said(said)
        assert it.approvals.pending == []
        assert it.call.told("tool_approval_required") == []


async def test_blocking_approver_does_not_stop_the_call() -> None:
    """A plain function runs in a thread, so the event loop is not blocked."""

    def blocks(request: MCPToolApprovalRequest) -> Any:
        time.sleep(0.3)
        return {"approve": True}

    async with talk(desk(tables(blocks)), [CALL]) as it:
        await it.call.tells("mcp_tools_changed")
        it.answer()
        beats = 0
        while not it.call.told("mcp_tool_call_completed"):
            await asyncio.sleep(0.01)
            beats += 1

        assert beats > 5


# --- event by event ---


def alone(
    sent: list[dict[str, Any]] | None = None,
) -> tuple[HostedMcp, Call, Approvals]:
    """A HostedMcp whose events the test makes up; client events it sends go to
    `sent`."""
    call, out = Call(), [] if sent is None else sent

    def start(work: Any, name: str) -> object:
        return work.close()

    approvals = Approvals(ApprovalRule(), start, SID, call.running)
    hosted = HostedMcp(call, approvals, start, out.append, call.ask, call.running)
    return hosted, call, approvals


def call_item(**fields: Any) -> dict[str, Any]:
    item = {"id": "m1", "type": "mcp_call", "server_label": "tables", "name": "book"}
    return item | {"arguments": "{}"} | fields


def feed(hosted: HostedMcp, kind: str, **fields: Any) -> None:
    hosted.model_event(json.dumps({"type": kind, "event_id": "e"} | fields))


def begin(hosted: HostedMcp) -> None:
    feed(hosted, "response.output_item.added", response_id="r1", item=call_item())


def respond(hosted: HostedMcp, status: str) -> None:
    feed(hosted, "response.done", response={"id": "r1", "status": status})


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_no_answer_after_a_cancelled_or_failed_response(status: str) -> None:
    """The caller who interrupted is speaking; a failed response is repeated by the
    call."""
    hosted, call, _ = alone()
    begin(hosted)
    feed(hosted, "response.mcp_call.completed", item_id="m1", output_index=0)
    respond(hosted, status)

    assert call.asked == 0


def test_a_tool_call_that_outlives_its_response_gets_an_answer() -> None:
    """One response and one report, in whatever order and however often its end is
    reported."""
    hosted, call, _ = alone()
    begin(hosted)
    respond(hosted, "completed")
    assert call.asked == 0

    ends = {"output_index": 0, "item_id": "m1"}
    feed(hosted, "response.mcp_call.completed", **ends)
    feed(hosted, "conversation.item.done", item=call_item(output="7"))
    done = {"response_id": "r1", "item": call_item(output="7")}
    feed(hosted, "response.output_item.done", **done)
    feed(hosted, "conversation.item.done", item=call_item(output="7"))

    assert call.asked == 1
    assert [it["output"] for it in call.told("mcp_tool_call_completed")] == ["7"]


def test_an_item_without_a_result_does_not_end_the_call() -> None:
    """A server may send `done` for the arguments before the tool has run."""
    hosted, call, _ = alone()
    begin(hosted)
    respond(hosted, "completed")
    feed(hosted, "conversation.item.done", item=call_item())

    assert call.asked == 0 and call.told("mcp_tool_call_completed") == []


def test_a_rejection_gets_one_answer() -> None:
    """Some servers also end the rejected call with an error."""
    sent: list[dict[str, Any]] = []
    hosted, call, approvals = alone(sent)
    request = {"id": "q1", "type": "mcp_approval_request", "server_label": "tables"}
    request |= {"name": "book", "arguments": "{}"}
    begin(hosted)
    feed(hosted, "response.output_item.done", response_id="r1", item=request)
    feed(hosted, "conversation.item.done", item=request)
    feed(hosted, "conversation.item.done", item=request)
    assert len(call.told("tool_approval_required")) == 1
    asyncio.run(approvals.reject("q1", message="no"))
    assert call.asked == 0, "its response is not over"
    respond(hosted, "completed")
    error = {"type": "tool_execution_error", "message": "rejected"}
    late = call_item(error=error, approval_request_id="q1")
    feed(hosted, "conversation.item.done", item=late)

    assert call.asked == 1
    [answer] = [event["item"] for event in sent]
    assert (answer["approve"], answer["reason"]) == (False, "no")
    assert answer["approval_request_id"] == "q1"


# --- the session is lost ---


def request(hosted: HostedMcp) -> None:
    """The model has called the tool and requests approval."""
    asked = call_item(id="q1", type="mcp_approval_request")
    begin(hosted)
    feed(hosted, "response.output_item.done", response_id="r1", item=asked)
    feed(hosted, "conversation.item.done", item=asked)
    respond(hosted, "completed")


def words(sent: list[dict[str, Any]]) -> list[str]:
    """The texts that the next session is told."""
    items = [event["item"] for event in sent if event["item"]["type"] == "message"]
    assert {item["role"] for item in items} <= {"system"}
    return [item["content"][0]["text"] for item in items]


def test_a_session_is_lost_while_a_tool_runs() -> None:
    """The next session is told that the result is unknown and is asked to speak, so
    that the caller does not wait. This happens once: a later loss does not repeat
    it."""
    sent: list[dict[str, Any]] = []
    hosted, call, _ = alone(sent)
    begin(hosted)
    done = {"item_id": "m1", "arguments": ARGUMENTS}
    feed(hosted, "response.mcp_call_arguments.done", response_id="r1", **done)
    assert call.at_work == [""], "a part of the answer"

    hosted.session_lost()

    assert call.at_work == [] and call.asked == 1
    [told] = words(sent)
    assert 'book of "tables"' in told and ARGUMENTS in told
    assert told.endswith(hosted_mcp.UNKNOWN)
    hosted.session_lost()
    assert len(sent) == call.asked == 1


def test_a_session_is_lost_while_a_tool_waits_for_approval() -> None:
    """The approval is withdrawn and the tool certainly did not run; the call no longer
    counts as waiting for it."""
    sent: list[dict[str, Any]] = []
    hosted, call, approvals = alone(sent)
    request(hosted)
    assert call.at_work == ["q1"], "it waits, and the answer is over"

    hosted.session_lost()

    assert call.at_work == [] and approvals.pending == [] and call.asked == 1
    with pytest.raises(KeyError):
        asyncio.run(approvals.approve("q1"))
    [told] = words(sent)
    assert told.endswith(hosted_mcp.NOT_DONE)


def test_a_session_is_lost_after_an_approval() -> None:
    """The tool may have run."""
    sent: list[dict[str, Any]] = []
    hosted, call, approvals = alone(sent)
    request(hosted)
    asyncio.run(approvals.approve("q1"))
    assert call.at_work == [""]

    hosted.session_lost()

    assert call.at_work == [] and call.asked == 1
    [told] = words(sent)
    assert told.endswith(hosted_mcp.UNKNOWN)


def test_the_next_session_knows_the_results_of_tools() -> None:
    """The agent does not book twice. No response is requested unless the caller waits
    for one."""
    sent: list[dict[str, Any]] = []
    hosted, call, approvals = alone(sent)
    begin(hosted)
    feed(hosted, "conversation.item.done", item=call_item(output="table 7"))
    respond(hosted, "completed")
    failed = call_item(id="m2", error={"type": "http_error", "message": "full"})
    feed(hosted, "conversation.item.done", item=failed)
    request(hosted)
    asyncio.run(approvals.reject("q1", message="too late"))
    answers = call.asked

    hosted.session_lost()

    assert call.at_work == [] and call.asked == answers
    gave, failed_, refused = words(sent)
    assert gave.endswith("table 7") and failed_.endswith("It failed: full")
    assert refused.endswith("It was not approved, so it was not done. too late")


def test_a_pending_answer_is_requested_of_the_next_session() -> None:
    """The tool had returned its result, and its response was not done."""
    sent: list[dict[str, Any]] = []
    hosted, call, _ = alone(sent)
    begin(hosted)
    feed(hosted, "conversation.item.done", item=call_item(output="table 7"))
    assert call.asked == 0

    hosted.session_lost()

    assert call.asked == 1 and words(sent)[0].endswith("table 7")


async def test_an_approver_that_decides_after_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next session gets no decision for a request that it did not make, which it
    would refuse."""
    decide, asked = asyncio.Event(), asyncio.Event()
    sent: list[dict[str, Any]] = []
    call = Call()

    async def late(request: MCPToolApprovalRequest) -> Any:
        asked.set()
        await decide.wait()
        return {"approve": True}

    monkeypatch.setattr(hosted_mcp, "WORK_SECONDS", 0.01)
    async with asyncio.TaskGroup() as tasks:

        def start(work: Any, name: str) -> object:
            return tasks.create_task(work, name=name)

        approvals = Approvals(ApprovalRule(), start, SID, call.running)
        hosted = HostedMcp(call, approvals, start, sent.append, call.ask, call.running)
        hosted.take({"tools": [tables(late)]})
        request(hosted)
        await asked.wait()
        assert call.at_work == ["q1"]
        hosted.session_lost()
        decide.set()

    assert call.at_work == [] and call.asked == 1
    [told] = words(sent)
    assert len(sent) == 1 and told.endswith(hosted_mcp.NOT_DONE)


def test_the_summary_for_the_next_session_is_bounded() -> None:
    """After an hour with a hundred tool calls only the newest are told, shortened."""
    sent: list[dict[str, Any]] = []
    hosted, _, _ = alone(sent)
    for n in range(100):
        item = call_item(id=f"m{n}", name=f"tool{n}", output="x" * 9000)
        feed(hosted, "conversation.item.done", item=item)

    hosted.session_lost()

    told = words(sent)
    assert len(told) == hosted_mcp.MAX_CALLED and "tool99" in told[-1]
    assert max(map(len, told)) < 2 * hosted_mcp.MAX_CHARS + 500


def test_the_state_of_a_session_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Events about too many items, servers and lists are ignored; the next session
    starts anew."""
    monkeypatch.setattr(hosted_mcp, "MAX_ITEMS", 70)
    monkeypatch.setattr(hosted_mcp, "MAX_LISTING_CHARS", 5000)
    hosted, _, _ = alone()
    hosted.take({"tools": [tables()]})
    hosted.put_into({"tools": []})
    item = {"type": "mcp_list_tools", "server_label": "tables"}
    long = [{"name": "x" * 6000}]
    with capture_logs() as lines:
        feed(hosted, "conversation.item.done", item=item | {"id": "l", "tools": long})
        for n in range(100):
            other = item | {"id": f"l{n}", "server_label": f"s{n}", "tools": [BOOK]}
            feed(hosted, "conversation.item.done", item=other)
        feed(hosted, "conversation.item.done", item=item | {"id": "x", "tools": [BOOK]})
    assert hosted.servers == {}
    warned = [owner["event"] for owner in lines]
    assert warned == ["mcp_listing_too_large", "mcp_too_many_items"]

    hosted.session_lost()
    feed(hosted, "conversation.item.done", item=item | {"id": "y", "tools": [BOOK]})
    assert list(hosted.servers) == ["tables"]


def test_running_tools_and_approvals_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Running tools beyond the limit are not waited for; approvals beyond it are
    rejected."""
    monkeypatch.setattr(hosted_mcp, "MAX_AT_WORK", 2)
    sent: list[dict[str, Any]] = []
    hosted, _, _ = alone(sent)
    for n in range(5):
        item = call_item(id=f"q{n}", type="mcp_approval_request")
        feed(hosted, "conversation.item.done", item=item)

    answers = [it["item"] for it in sent if it["item"]["type"] != "message"]
    assert [it["approval_request_id"] for it in answers] == ["q2", "q3", "q4"]
    assert {it["reason"] for it in answers} == {hosted_mcp.TOO_MANY}


def test_the_next_session_lists_its_tools_anew() -> None:
    """A server whose list has changed, or that has become unreachable, is reported
    so."""
    hosted, call, _ = alone()
    hosted.take({"tools": [tables()]})
    hosted.put_into({"tools": []})
    item = {"id": "l1", "type": "mcp_list_tools", "server_label": "tables"}
    feed(hosted, "conversation.item.done", item=item | {"tools": [BOOK, LOOK]})
    hosted.session_lost()
    feed(hosted, "conversation.item.done", item=item | {"tools": [LOOK]})
    hosted.session_lost()
    feed(hosted, "conversation.item.added", item=item | {"id": "l2"})
    feed(hosted, "mcp_list_tools.failed", item_id="l2")

    changes = [data["tools"] for data in call.told("mcp_tools_changed")]
    assert changes == [[BOOK, LOOK], [LOOK], []]


# --- malformed events, and the tools of the session ---


def test_a_malformed_event_is_logged_and_skipped() -> None:
    """It does not raise, its content is not logged, and it is logged once per call."""
    hosted, call, _ = alone()
    with capture_logs() as logs:
        hosted.model_event('{"type":"mcp_list_tools.failed","item_id":5}')
        hosted.model_event('{"type":"response.mcp_call.completed"')
        hosted.model_event('{"type":"conversation.item.done","x":"mcp_"}')

    assert [log["event"] for log in logs] == ["mcp_event_unreadable"]
    assert call.events == [] and call.asked == 0


def test_servers_are_added_to_full_updates_only() -> None:
    """A partial update stays partial; a server that is in it already is not added
    twice."""
    hosted, _, _ = alone()
    hosted.take({"tools": [tables()]})
    own = {"type": "mcp", "server_label": "tables", "server_url": "https://c.example"}
    sessions: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": [own]}]
    for session in sessions:
        hosted.put_into(session)

    assert sessions[0] == {}
    assert sessions[1]["tools"] == [tables().tool_config]
    assert sessions[2]["tools"] == [own]


@pytest.mark.parametrize("allowed", [["look"], {"tool_names": ["look"]}])
def test_only_allowed_tools_are_reported(allowed: Any) -> None:
    """Even if the server lists all of its tools."""
    hosted, _, _ = alone()
    hosted.take({"tools": [tables(allowed_tools=allowed)]})
    hosted.put_into({"tools": []})
    item = {"id": "l1", "type": "mcp_list_tools", "server_label": "tables"}
    feed(hosted, "conversation.item.done", item=item | {"tools": [BOOK, LOOK]})

    assert hosted.servers == {"tables": [LOOK]}


def test_a_server_of_the_route_is_reported_too() -> None:
    """A route may add servers of its own to the session."""
    hosted, call, _ = alone()
    hosted.put_into({"tools": [{"type": "function", "name": "f"}, ROUTES]})
    item = {"id": "l1", "type": "mcp_list_tools", "server_label": "maps"}
    feed(hosted, "conversation.item.done", item=item | {"tools": [LOOK]})

    assert hosted.servers == {"maps": [LOOK]}
    assert call.told("mcp_tools_changed") == [{"server": "maps", "tools": [LOOK]}]


ROUTES = {"type": "mcp", "server_label": "maps", "server_url": "https://d.example"}


def test_settings_without_hosted_tools_stay_as_they_are() -> None:
    """The same settings object is returned."""
    settings: RealtimeSessionModelSettings = {"tools": [hours], "voice": "marin"}

    assert split(settings) == (settings, [])
    assert split({"voice": "marin"}) == ({"voice": "marin"}, [])
    plain, raw = split({"tools": [hours, tables()], "voice": "marin"})
    assert plain == settings
    assert [tool["server_label"] for tool in raw] == ["tables"]
