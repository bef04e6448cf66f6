"""The agent in a call: handoffs, history, changes by the user's code, MCP, reports."""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from agents import HostedMCPTool, RunContextWrapper, function_tool
from agents.mcp import MCPServerStdio
from agents.realtime import RealtimeAgent, RealtimeHistoryUpdated, realtime_handoff
from aiohttp import web
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket

from bridge.agent.events import CallEvent
from bridge.agent.live import BadRequest, LiveCall
from bridge.agent.phone_tools import take_message
from bridge.app.routes import ReportTarget, Route
from bridge.model.hosted_mcp import NOT_DONE, UNKNOWN
from bridge.model.sdk_session import FAILED
from bridge.model.session_settings import SessionSettings
from bridge.records.report import CallReport
from bridge.sim.model import (
    Behaviour,
    CallMcp,
    CallTool,
    PlayAudio,
    PlayRuler,
    Turn,
    TurnContext,
)
from bridge.sim.realtime import faults
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from bridge.telemetry import trace
from tests.e2e.bridge import AGENT, HELLO, WAIT, RunningBridge, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()
SHORT: steps.Script = [LISTEN, HANG_UP]
PHONE = {"type": "audio/pcmu"}
MCP_PROGRAM = Path(__file__).parent.parent / "support" / "mcp_server.py"


def on_call(hook: Any, **route: Any) -> dict[str, Any]:
    """Options of a bridge that runs `hook` for each call, before the call has an
    agent."""
    return {"route": Route(on_call="hook", **route), "functions": {"hook": hook}}


def outputs(place: RunningBridge) -> list[str | None]:
    items = place.session.items.values()
    return [it.output for it in items if it.type == "function_call_output"]


def words(place: RunningBridge, role: str) -> list[str]:
    """The texts of this role's messages that the model remembers."""
    items = place.session.items.values()
    return [it.text for it in items if it.role == role and not it.deleted]


# --- handoffs ---


async def test_handoffs_there_and_back() -> None:
    """Each agent has its own instructions, made for the caller, its own tools, and
    mu-law audio. A handoff that fails does not change the current agent."""

    async def instructions(
        context: RunContextWrapper[LiveCall], agent: RealtimeAgent[Any]
    ) -> str:
        return f"{agent.name} talks to {context.context.facts.from_number}"

    def fails(context: RunContextWrapper[LiveCall]) -> None:
        raise LookupError

    @function_tool
    def who(context: RunContextWrapper[LiveCall]) -> str:
        return context.context.agent_name

    front: RealtimeAgent[Any] = RealtimeAgent(
        name="front", instructions=instructions, tools=[who]
    )
    back: RealtimeAgent[Any] = RealtimeAgent(
        name="back", instructions=instructions, tools=[who], handoffs=[front]
    )
    nobody: RealtimeAgent[Any] = RealtimeAgent(name="nobody")
    front.handoffs = [back, realtime_handoff(nobody, on_handoff=fails)]
    behaviour = Behaviour(
        turns=[
            [CallTool("transfer_to_nobody", {})],
            [CallTool("who", {})],
            [CallTool("transfer_to_back", {})],
            [CallTool("who", {})],
            [CallTool("transfer_to_front", {})],
            [CallTool("who", {})],
            [PlayRuler(300)],
        ],
        think_seconds=0.05,
    )
    async with bridge(behaviour, agent=front, greeting="Go.") as place:
        record = await place.caller().call(SHORT)
        await place.empty()

    assert outputs(place)[0] == FAILED
    assert outputs(place)[1::2] == ["front", "back", "front"]
    received = [event for _, event in place.session.received]
    updates = [
        it["session"]
        for it in received
        if it["type"] == "session.update" and "tools" in it["session"]
    ]
    said = [it["instructions"] for it in updates]
    assert said == [f"{it} talks to +15551230001" for it in ("front", "back", "front")]
    for update in updates:
        audio = update["audio"]
        assert audio["input"]["format"] == audio["output"]["format"] == PHONE
    assert read_ruler(record.heard).heard_ms == {1: 300}
    assert not place.session.errors_sent


# --- the history ---


async def test_the_history_and_its_correction() -> None:
    """The history holds texts; of an interrupted answer only the words that were heard.
    What the user's code removes or corrects changes for the model and in both
    histories."""
    calls: list[LiveCall] = []
    theirs: list[list[Any]] = []
    known: list[tuple[str, str, str]] = []

    def hook(live: LiveCall) -> None:
        calls.append(live)

        async def keep(event: CallEvent) -> None:
            assert isinstance(event.source, RealtimeHistoryUpdated)
            theirs.append(list(event.source.history))

        live.on(keep, "history_updated")

    @function_tool
    async def edit(context: RunContextWrapper[LiveCall]) -> str:
        live = context.context
        known.extend((it.kind, it.text, it.generated) for it in live.history)
        cut = next(it for it in live.history if it.cut)
        [asked] = [it for it in live.history if it.kind == "user"]
        call = next(it for it in live.history if it.kind == "tool_call")
        with pytest.raises(BadRequest, match="item_unknown"):
            live.update_history(remove=["item_unknown"])
        with pytest.raises(BadRequest):
            live.update_history(correct={call.id: "no words"})
        live.update_history(remove=[asked.id], correct={cut.id: "I said so."})
        return "done"

    behaviour = Behaviour(
        turns=[[PlayRuler(5000)], [CallTool("edit", {})], [PlayRuler(300)]],
        user_texts=["Stop, please."],
        transcribe_seconds=0.01,
        speed=20,
    )
    async with bridge(
        behaviour, agent=AGENT.clone(tools=[edit]), greeting="Go.", **on_call(hook)
    ) as place:
        script: steps.Script = [
            steps.HearStep(1000),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()

    heard_ms = read_ruler(record.heard).heard_ms[1]
    system, answer, asked, call = known
    assert system == ("system", "Go.", "") and call[0] == "tool_call"
    assert asked == ("user", "Stop, please.", "")
    assert answer[2].split() == ["word"] * 17
    assert len(answer[1].split()) == pytest.approx(heard_ms / 300, abs=1)

    [live] = calls
    assert words(place, "user") == []
    assert [text for text in words(place, "assistant") if "word" not in text] == [
        "I said so."
    ]
    spoken = [(it.kind, it.text) for it in live.transcript]
    assert spoken == [("assistant", "I said so."), ("assistant", "word")]
    last = [item for item in theirs[-1] if item.type == "message"]
    assert [(it.role, _text(it)) for it in last if it.role != "system"] == [
        ("assistant", "I said so."),
        ("assistant", "word"),
    ]
    before = [
        [_text(it) for it in history if it.type == "message"] for history in theirs
    ]
    assert any(answer[1] in texts for texts in before)
    parts = [part for item in last for part in item.content]
    assert all(getattr(part, "audio", None) is None for part in parts)
    assert not place.session.errors_sent


def _text(item: Any) -> str:
    texts = (getattr(it, "text", None) or it.transcript for it in item.content)
    return " ".join(text or "" for text in texts)


# --- changes by the user's code ---


async def test_the_users_code_adds_messages() -> None:
    """As the caller's or as a system message, with or without an answer; also before
    the session exists."""
    calls: list[LiveCall] = []

    def hook(live: LiveCall) -> None:
        calls.append(live)
        live.tell("I call from the car.", respond=False)
        live.tell("Say hello.", role="system")

    behaviour = Behaviour(fallback=[PlayRuler(300)], think_seconds=0.05)
    async with bridge(behaviour, **on_call(hook)) as place:
        async with asyncio.TaskGroup() as tasks:
            script: steps.Script = [LISTEN, steps.WaitStep(1.2), HANG_UP]
            tasks.create_task(place.caller().call(script))
            await _until(lambda: bool(calls) and len(calls[0].transcript) == 2)
            assert await calls[0].heard()
            calls[0].tell("And now?")
            await _until(lambda: len(place.session.responses) == 2)
        await place.empty()

    assert words(place, "user") == ["I call from the car.", "And now?"]
    assert words(place, "system") == ["Say hello."]
    assert len(place.session.responses) == 2
    assert not place.session.errors_sent


@pytest.mark.parametrize("through_the_sdk", [False, True])
async def test_the_users_code_interrupts(through_the_sdk: bool) -> None:
    """Queued audio is never heard, and the model knows to a frame what was heard."""

    @function_tool
    async def stop(context: RunContextWrapper[LiveCall]) -> str:
        live = context.context
        await asyncio.sleep(1.2)
        if through_the_sdk:
            assert live.session
            await live.session.interrupt()
        else:
            live.interrupt()
        return "stopped"

    behaviour = Behaviour(
        turns=[[CallTool("stop", {}), PlayRuler(6000)]],
        fallback=[PlayRuler(300)],
        speed=3,
    )
    async with bridge(
        behaviour, agent=AGENT.clone(tools=[stop]), greeting="Go."
    ) as place:
        listen = steps.ListenStep(quiet_seconds=0.8, timeout=8)
        record = await place.caller().call([listen, HANG_UP])
        await place.empty()

    heard = read_ruler(record.heard).heard_ms
    [cut, after] = [it for it in place.session.items.values() if it.ruler_number]
    assert 300 < heard[1] < 1500 and heard[2] == 300
    assert cut.truncated_ms == pytest.approx(heard[1], abs=40)
    assert after.truncated_ms is None
    assert place.session.responses[0].reason == "client_cancelled"
    assert len(record.clears) == 1 and not place.session.errors_sent


async def test_a_caller_is_muted_and_unmuted() -> None:
    """The model hears silence, then the caller again."""
    calls: list[LiveCall] = []

    def hook(live: LiveCall) -> None:
        calls.append(live)
        live.mute()

    said: list[steps.Step] = [
        steps.SayStep(HELLO),
        steps.WaitStep(0.6),
        steps.SayStep(WAIT),
    ]
    script: steps.Script = [*said, LISTEN, HANG_UP]
    behaviour = Behaviour(fallback=[PlayRuler(300)])
    async with (
        bridge(behaviour, **on_call(hook)) as place,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(place.caller().call(script))
        await _until(lambda: bool(calls))
        await asyncio.sleep(len(HELLO) / 8000 + 0.3)
        assert calls[0].muted
        calls[0].mute(False)

    heard = bytes(place.session.caller_audio)
    assert HELLO not in heard and WAIT in heard
    assert place.session.caller_turns == 1


dialled: list[str] = []


async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
    """A connector of the user's code, which may use a proxy or a client certificate."""
    dialled.append(url)
    return await connect_socket(url, additional_headers={**headers, "X-Proxy": "ours"})


async def test_a_connector_of_the_users_code(tmp_path: Path) -> None:
    """BRIDGE_MODEL_CONNECT opens the model connection, with the bridge's headers."""
    dialled.clear()
    routes = tmp_path / "routes.yaml"
    routes.write_text("defaults:\n  greeting: Go.\n", "utf-8")
    async with bridge(
        Behaviour(turns=[[PlayRuler(300)]]),
        api_key="sk-test",
        openai_api_key="sk-test",
        model_target="openai",
        model_connect="tests.e2e.test_agent:dial",
        routes=routes,
    ) as place:
        record = await place.caller().call(SHORT)
        await place.empty()
        address = f"{place.model.url}?model=gpt-realtime-2.1"

    assert read_ruler(record.heard).heard_ms == {1: 300}
    assert dialled == [address]
    assert place.session.headers["x-proxy"] == "ours"


async def test_a_model_that_takes_pcm_only() -> None:
    """BRIDGE_MODEL_AUDIO=pcm: the model understands the caller, its audio is heard in
    full length, and after an interruption it knows what was heard."""
    sound = bytes(range(32, 96)) * 500  # 4 s of audio
    behaviour = Behaviour(
        turns=[
            [PlayAudio(sound[:4000], "Hello.")],
            [PlayAudio(sound, "A long story.")],
        ],
        fallback=[PlayAudio(sound[:2400], "Yes?")],
        ignore_formats=True,
        user_texts=["Tell me a story.", "Stop."],
    )
    with capture_logs() as logs:
        async with bridge(behaviour, greeting="Go.", model_audio="pcm") as place:
            script: steps.Script = [
                *(
                    LISTEN,
                    steps.SayStep(HELLO),
                    steps.HearStep(900),
                    steps.SayStep(WAIT),
                ),
                *(LISTEN, HANG_UP),
            ]
            record = await place.caller().call(script)
            await place.empty()

    first, second, third = [
        it for it in place.session.items.values() if it.role == "assistant"
    ]
    assert place.session.session["audio"]["input"]["format"]["type"] == "audio/pcm"
    assert words(place, "user") == ["Tell me a story.", "Stop."]
    assert place.session.caller_turns == 2
    [clear] = record.clears
    assert first.truncated_ms is None and third.truncated_ms is None
    heard_ms = clear.position / 8 - 500
    assert second.truncated_ms == pytest.approx(heard_ms, abs=40)
    assert (len(record.heard) - clear.position) / 8 == pytest.approx(300, abs=2)
    assert not place.session.errors_sent
    assert not [it for it in logs if it["event"] == "protocol_error"]


async def test_a_tool_that_the_sdk_refuses_is_explained_in_the_log() -> None:
    """The agent's function defines it for each call, so nothing is noticed at start."""

    def agent_for(live: LiveCall) -> RealtimeAgent[Any]:
        @function_tool
        def book(order: dict[str, str]) -> None: ...

        return AGENT.clone(tools=[book])

    with capture_logs() as logs:
        async with bridge(agent=agent_for) as place:
            await place.caller().call([steps.WaitStep(5)])
            await place.empty()

    [failed] = [it for it in logs if it["event"] == "agent_failed"]
    told = failed["hint"]
    assert told.startswith(f"Tool book ({__file__}:")
    assert "its argument `order: dict[str, str]` may have any keys" in told


# --- MCP ---


async def test_a_local_mcp_server() -> None:
    """The agent has the server's tools in a call; the server's program starts before
    the call."""
    params: Any = {"command": sys.executable, "args": [str(MCP_PROGRAM)]}
    server = MCPServerStdio(params=params, name="sums", cache_tools_list=True)
    agent = AGENT.clone(mcp_servers=[server])
    add = CallTool("add", {"a": 2, "b": 40})
    divide = CallTool("divide", {"a": 4711, "b": 0})
    behaviour = Behaviour(turns=[[add], [divide], [PlayRuler(300)]], speed=20)
    failures: list[CallEvent] = []

    def agent_for(live: LiveCall) -> RealtimeAgent[Any]:
        live.on(failures.append, "tool_failed")
        return agent

    with capture_logs() as logs:
        async with bridge(behaviour, agent=agent_for, greeting="Go.") as place:
            record = await place.caller().call(SHORT)
            await place.empty()

    names = [tool["name"] for tool in place.session.session["tools"]]
    assert names == ["add", "divide", "pid"]
    added, divided = outputs(place)
    assert added and "42" in added
    assert divided and "4711 cannot be divided by 0" in divided
    assert record.heard
    # The server answers with isError: the model reads the text, and we hear of it.
    [failed] = failures
    text = "4711 cannot be divided by 0"
    assert failed.data == {"tool": "divide", "error": "McpToolError", "message": text}
    [line] = [it for it in logs if it["event"] == "tool_failed"]
    assert line["error"] == "McpToolError" and "4711" not in str(line)
    for tool, outcome in (("add", "done"), ("divide", "failed")):
        count = f'bridge_tools_total{{tool="{tool}",outcome="{outcome}"}}'
        assert place.metric(count) == 1


UNFOUND = {"type": "tool_execution_error", "message": "no Ur"}


async def test_hosted_mcp_servers() -> None:
    """The servers of the agent and of the route: tools are called, approved or refused
    by the user's code, and the agent speaks about the result as soon as it is there."""
    shop: Any = {
        "type": "mcp",
        "server_label": "shop",
        "server_url": "https://shop.example",
        "require_approval": "always",
    }
    agent = AGENT.clone(tools=[HostedMCPTool(tool_config=shop)])
    maps = {
        "server_label": "maps",
        "server_url": "https://maps.example",
        "require_approval": "never",
        "authorization": "secret",
    }
    session = SessionSettings.read({"mcp": [maps]})
    seen: list[CallEvent] = []

    def hook(live: LiveCall) -> None:
        async def decide(event: CallEvent) -> None:
            [waiting] = live.approvals
            assert (waiting.server, waiting.tool) == ("shop", "order")
            if "ham" in waiting.arguments:
                await live.approve(waiting.call_id)
            else:
                await live.reject(waiting.call_id, message="Not today.")

        live.on(decide, "tool_approval_required")
        live.on(seen.append, "mcp_tool_call_completed", "mcp_tools_changed")
        live.on(seen.append, "tool_failed")

    tool = {"name": "order", "description": "", "input_schema": {}}
    behaviour = Behaviour(
        turns=[
            [CallMcp("maps", "find", {"place": "Rome"}, output="there")],
            [CallMcp("shop", "order", {"what": "ham"}, output="ordered")],
            [CallMcp("shop", "order", {"what": "fish"}, output="never")],
            [CallMcp("maps", "find", {"place": "Ur"}, error=UNFOUND)],
        ],
        fallback=[PlayRuler(300)],
        mcp={"shop": [tool], "maps": [{**tool, "name": "find"}]},
        think_seconds=0.05,
    )
    async with bridge(
        behaviour, agent=agent, greeting="Go.", **on_call(hook, session=session)
    ) as place:
        record = await place.caller().call(SHORT)
        await place.empty()

    done = [event.data for event in seen if event.type == "mcp_tool_call_completed"]
    assert [(it["server"], it["output"]) for it in done] == [
        ("maps", "there"),
        ("shop", "ordered"),
        ("maps", None),
    ]
    [failed] = [event.data for event in seen if event.type == "tool_failed"]
    assert failed["tool"] == "maps.find" and failed["message"] == "no Ur"
    for name, count in ({"maps.find": 1, "shop.order": 1}).items():
        done_of = f'bridge_tools_total{{tool="{name}",outcome="done"}}'
        assert place.metric(done_of) == count
    assert place.metric('bridge_tools_total{tool="maps.find",outcome="failed"}') == 1
    changed = [event.data for event in seen if event.type == "mcp_tools_changed"]
    assert {it["server"] for it in changed} == {"shop", "maps"}
    [refused] = [
        it
        for it in place.session.items.values()
        if it.type == "mcp_approval_response" and not it.approve
    ]
    assert refused.reason == "Not today."
    assert read_ruler(record.heard).heard_ms == {1: 300}
    assert not place.session.errors_sent


@pytest.mark.parametrize("approval", ["never", "always"])
async def test_the_model_connection_is_lost_during_a_hosted_tool_call(
    approval: str, tmp_path: Path
) -> None:
    """The hosted tool is running or waits for approval: the caller soon hears the
    agent, which knows that there is no result. A function tool that waits for approval
    keeps waiting and gets its answer, too; nothing waits for ever."""

    @function_tool(needs_approval=True)
    def pay() -> str:
        return "paid"

    shop: Any = {"type": "mcp", "server_label": "shop", "require_approval": approval}
    shop["server_url"] = "https://shop.example"
    order = CallMcp("shop", "order", {"what": "ham"}, output="ordered", seconds=60)

    def answer(heard: TurnContext) -> Turn:
        told = [it.text for it in heard.conversation if it.kind == "system"]
        if any("tool order" in text for text in told):
            return [PlayRuler(300)]
        return [order] if approval == "never" else [CallTool("pay", {}), order]

    calls: list[LiveCall] = []
    behaviour = Behaviour(
        answer=answer,
        mcp={"shop": [{"name": "order", "description": "", "input_schema": {}}]},
        think_seconds=0.05,
    )
    agent = AGENT.clone(tools=[pay, HostedMCPTool(tool_config=shop)])
    async with bridge(
        behaviour,
        agent=agent,
        greeting="Go.",
        record_dir=tmp_path,
        **on_call(calls.append),
    ) as place:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call([steps.WaitStep(9)]))
            begun = "mcp_call" if approval == "never" else "mcp_approval_request"
            await _until(
                lambda: (
                    place.model.sessions
                    and begun in [it.type for it in place.session.items.values()]
                )
            )
            waiting = {"never": [], "always": ["order", "pay"]}[approval]
            await _until(lambda: _waits(calls[0]) == waiting)
            place.model.inject(faults.drop)
            await _until(lambda: len(place.model.sessions) == 2)
            await _until(lambda: place.session.responses)
            assert _waits(calls[0]) == [it for it in waiting if it == "pay"]
            for each in calls[0].approvals:
                await calls[0].approve(each.call_id)
            assert await calls[0].hang_up()
        await place.empty()

    [told] = [it for it in words(place, "system") if "tool order" in it]
    assert told.endswith(UNKNOWN if approval == "never" else NOT_DONE)
    assert outputs(place) == (["paid"] if "pay" in waiting else [])
    heard = read_ruler(call.result().heard).heard_ms
    assert heard and set(heard.values()) == {300}
    assert not place.session.errors_sent

    [file] = tmp_path.glob("*.zst")
    busy = Counter[str]()
    for line in trace.read(file):
        match line:
            case {"in": {"kind": "tool_running", "change": change, "call_id": call_id}}:
                busy[call_id] += change
    assert set(busy.values()) == {0}, "each that began has ended, by its own name"
    # A part of an answer has no name; the answer does not wait for the other items.
    kinds = sorted(call_id.partition("_")[0] for call_id in busy)
    assert kinds == (["", "call", "mcpr"] if "pay" in waiting else [""])
    assert all(recorded == again for recorded, again in trace.replay(file))


def _waits(live: LiveCall) -> list[str]:
    return sorted(it.tool for it in live.approvals)


async def test_a_refused_handoff_does_not_affect_later_sessions() -> None:
    """The session continues unchanged; so does the session after a lost model
    connection."""
    calls: list[LiveCall] = []
    change = {"type": "realtime", "instructions": "No.", "tools": []}
    change["output_modalities"] = ["smell"]
    behaviour = Behaviour(fallback=[PlayRuler(300)], think_seconds=0.05)
    async with bridge(behaviour, greeting="Go.", **on_call(calls.append)) as place:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call([steps.WaitStep(9)]))
            await _until(lambda: place.model.sessions and place.session.responses)
            calls[0].send_raw({"type": "session.update", "session": change})
            await _until(lambda: place.session.errors_sent)
            assert await calls[0].heard()
            place.model.inject(faults.drop)
            await _until(lambda: len(place.model.sessions) == 2)
            calls[0].tell("Are you there?")
            await _until(lambda: place.session.responses)
            assert await calls[0].hang_up()
        await place.empty()

    assert read_ruler(call.result().heard).heard_ms == {1: 600}
    assert place.session.session["instructions"] == "You are a test."
    assert not place.session.errors_sent


# --- the report ---


async def test_the_report_of_a_call() -> None:
    """The route's function and URL get the heard transcript, the tool calls, the
    messages and the cost."""
    kept: list[CallReport] = []
    posted: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        posted.append(json.loads(await request.read()))
        return web.Response()

    def hook(live: LiveCall) -> None:
        live.notes["customer"] = 7

    app = web.Application()
    app.router.add_post("/report", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]

    behaviour = Behaviour(
        turns=[[PlayRuler(5000)], [CallTool("take_message", {"text": "Call me."})]],
        fallback=[PlayRuler(300)],
        user_texts=["Take a message."],
        speed=20,
    )
    route = on_call(
        hook,
        name="desk",
        report=ReportTarget(to="keep", url=f"http://127.0.0.1:{port}/report"),
    )
    route["functions"]["keep"] = kept.append
    agent = AGENT.clone(tools=[take_message])
    async with bridge(behaviour, agent=agent, greeting="Go.", **route) as place:
        script: steps.Script = [
            steps.HearStep(1000),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()
        await _until(lambda: bool(kept and posted))
    await runner.cleanup()

    [report], [json_report] = kept, posted
    assert json_report == json.loads(report.as_json())
    assert report.call_sid == record.call_sid and report.route == "desk"
    assert report.outcome == "caller_hung_up" and report.status == "completed"
    assert report.from_number == "+15551230001" and report.agent == "plain"
    cut, asked, answer = report.transcript
    heard_ms = read_ruler(record.heard).heard_ms[1]
    assert cut.cut and cut.who == "agent"
    assert len(cut.text.split()) == pytest.approx(heard_ms / 300, abs=1)
    assert cut.generated.split() == ["word"] * 17
    assert (asked.who, asked.text) == ("caller", "Take a message.")
    assert (answer.who, answer.text, answer.cut) == ("agent", "word", False)
    [tool] = report.tools
    assert (tool.name, tool.arguments) == ("take_message", '{"text":"Call me."}')
    assert tool.output.startswith("The message is kept.")
    [message] = report.messages
    assert message.text == "Call me."
    assert report.notes == {"customer": 7}
    assert report.usage.input_tokens and report.usage.output_tokens


async def _until(there: Any, seconds: float = 5.0) -> None:
    until = monotonic() + seconds
    while not there():
        assert monotonic() < until
        await asyncio.sleep(0.02)
