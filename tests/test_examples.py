"""The examples run unchanged: each is loaded and serves a call that shows its
purpose."""

import ast
import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from agents import set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner
from pydantic import SecretStr

from bridge.agent import loader
from bridge.agent.live import LiveCall
from bridge.app.settings import Settings
from bridge.app.startup import load_user_code
from bridge.http.api import client
from bridge.sim.caller import CallRecord
from bridge.sim.model import (
    Behaviour,
    CallMcp,
    CallTool,
    ModelSession,
    PlayRuler,
    SayText,
    Turn,
)
from bridge.sim.realtime.default_answers import AnyMcpServer
from bridge.sim.ruler import read_ruler
from bridge.sim.text_model import TextModel
from bridge.sim.twilio import rest, steps
from tests.e2e.bridge import HELLO, WAIT, bridge

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "examples").glob("*.py"))
NO_AGENT = {"mcp_tools_server", "reports"}
AGENTS = [file for file in FILES if file.stem not in NO_AGENT]

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=8)
HANG_UP = steps.HangUpStep()
ASK: list[steps.Step] = [steps.SayStep(HELLO), LISTEN, HANG_UP]
BYE = PlayRuler(200)


@pytest.fixture(autouse=True)
def _in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def example(name: str) -> Any:
    return loader.load(f"examples/{name}.py:agent")


def watched(name: str) -> tuple[Callable[[LiveCall], Any], list[LiveCall]]:
    """The example, and the list of calls for which it was called."""
    make, calls = example(name), list[LiveCall]()

    def agent(call: LiveCall) -> Any:
        calls.append(call)
        return make(call)

    return agent, calls


async def talk(
    agent: Any,
    turns: Sequence[Any],
    script: Sequence[steps.Step] = ASK,
    *,
    caller: dict[str, Any] | None = None,
    behaviour: dict[str, Any] | None = None,
    **conf: Any,
) -> tuple[ModelSession, CallRecord]:
    """A call in which the model takes these turns; nothing may fail in it."""
    told = Behaviour(turns=turns, **{"mcp": AnyMcpServer(), **(behaviour or {})})
    async with bridge(told, agent=agent, callers=caller, **conf) as place:
        record = await place.caller().call(script)
        await place.empty()
    well(place.session, record)
    return place.session, record


def well(session: ModelSession, record: CallRecord) -> None:
    assert session.errors_sent == []
    assert record.error is None and not record.warnings and not record.timed_out
    assert record.said_by_twilio == []


def outputs(session: ModelSession) -> dict[str, str]:
    """The outputs of the tools; each tool that was called has one."""
    items = session.items.values()
    called = [it for it in items if it.type == "function_call"]
    given = {it.call_id: it.output or "" for it in items if it.output is not None}
    return {str(it.name): given[it.call_id] for it in called}


def written(session: ModelSession, role: str) -> list[str]:
    return [it.text for it in session.items.values() if it.role == role]


def names(session: ModelSession) -> set[str]:
    return {tool["name"] for tool in session.session["tools"]}


# ---------------------------------------------------------------------- all examples


@pytest.mark.parametrize("file", AGENTS, ids=lambda file: file.stem)
def test_the_command_at_the_top_of_an_example_works(file: Path) -> None:
    """A user who copies the line at its top gets this agent."""
    found = loader.load(f"{file}:agent")

    assert isinstance(found, RealtimeAgent | RealtimeRunner) or callable(found)
    words = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert ".venv/bin/bridge demo --" in words
    if "--routes" not in words:
        assert words.count(f"examples/{file.name}:agent") >= 2


@pytest.mark.parametrize("name", ["routes", "front_desk"])
def test_the_routes_of_the_examples_can_be_loaded(name: str) -> None:
    """A server starts with a routes file of the examples, unchanged."""
    user_code = load_user_code(Settings(routes=ROOT / "examples" / f"{name}.yaml"))

    assert set(user_code.sources) == set(user_code.routes.agents())
    assert set(user_code.functions) == set(user_code.routes.functions())


def test_every_example_is_tested_here() -> None:
    """A new example without a test is noticed."""
    here = Path(__file__).read_text()
    ways = ('example("{}")', 'watched("{}")', "examples/{}.yaml")

    for file in AGENTS:
        assert any(way.format(file.stem) in here for way in ways), file.name


# --------------------------------------------------------------------- each example


async def test_hello() -> None:
    """The caller is answered."""
    session, record = await talk(example("hello"), [[PlayRuler(300)]])

    assert len(record.heard) == 2400
    assert "hedgehogs" in session.session["instructions"]


async def test_pizza() -> None:
    """The order is stored between tool calls; the caller is handed over and comes
    back."""
    pizza = {"name": "funghi", "count": 2, "without": ["basil"]}
    turns: list[Turn] = [
        [CallTool("add_pizza", {"pizza": pizza})],
        [CallTool("total", {})],
        [CallTool("usual_order", {})],
        [CallTool("transfer_to_complaints", {})],
        [CallTool("transfer_to_orders", {})],
        [BYE],
    ]
    session, _ = await talk(
        example("pizza"), turns, caller={"from_number": "+14155550123"}
    )

    given = outputs(session)
    assert given["add_pizza"] == "the order is 2 funghi"
    assert given["total"] == "19.00 dollars"
    assert "without basil" in given["usual_order"]
    assert "pizzeria" in session.session["instructions"]


async def test_pizza_for_a_stranger() -> None:
    """A caller who withholds the number is not asked about an earlier order. Arguments
    of the wrong type are reported to the model and do not reach the tool."""
    turns = [[CallTool("add_pizza", {"pizza": {"name": "hawaii"}})], [BYE]]
    session, _ = await talk(
        example("pizza"), turns, caller={"from_number": "anonymous"}
    )

    assert names(session) == {"add_pizza", "total", "transfer_to_complaints"}
    assert "the order is" not in outputs(session)["add_pizza"]


async def test_guarded() -> None:
    """A forbidden word is cut off; for a refused tool call the model gets the example's
    text."""
    score = "Let me see, your credit score is a rather poor one, I am very sorry. " * 2
    turns: list[Turn] = [
        [CallTool("close_account", {})],
        [SayText(score)],
        [BYE],
    ]
    session, record = await talk(example("guarded"), turns)

    assert outputs(session)["close_account"].startswith("close_account is not done by")
    assert len(record.clears) == 1
    assert any("private figures" in text for text in written(session, "user"))


async def test_approvals() -> None:
    """A refund of five dollars is approved, a cheque is refused with a reason."""
    turns: list[Turn] = [
        [CallTool("refund", {"dollars": 5})],
        [CallTool("send_cheque", {"dollars": 100})],
        [BYE],
    ]
    session, _ = await talk(example("approvals"), turns)

    given = outputs(session)
    assert given["refund"] == "5 dollars are on their way"
    assert "need a manager" in given["send_cheque"]


async def test_delegate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text agent gets the transcript of the call, and the caller hears its
    answer."""
    set_tracing_disabled(True)
    turns: list[Turn] = [
        [SayText("Good day.")],
        [CallTool("ask_the_lawyer", {"question": "May I?"})],
        [BYE],
    ]
    async with TextModel() as text_model:
        monkeypatch.setenv("OPENAI_BASE_URL", text_model.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
        script: list[steps.Step] = [
            steps.SayStep(HELLO),
            LISTEN,
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        texts = ["I need advice.", "May I?"]
        session, _ = await talk(
            example("delegate"), turns, script, behaviour={"user_texts": texts}
        )

    [request] = text_model.requests
    assert "user: I need advice." in str(request["input"])
    assert "assistant: Good day." in str(request["input"])
    assert "lawyer" not in request["instructions"] and request["instructions"]
    assert "I was asked: The question: May I?" in outputs(session)["ask_the_lawyer"]


async def test_mcp_local() -> None:
    """The MCP server's program is started, called, and answers."""
    turns = [[CallTool("in_stock", {"article": "lamp"})], [BYE]]
    session, _ = await talk(example("mcp_local"), turns)

    assert names(session) == {"in_stock", "next_delivery"}
    assert "4 in stock" in outputs(session)["in_stock"]


async def test_mcp_hosted() -> None:
    """A reading tool is approved and runs at the model's side; a booking tool is
    refused."""
    turns: list[Turn] = [
        [CallMcp("tables", "look_up", {}, output="table 7")],
        [CallMcp("tables", "book", {"table": 7}, output="booked")],
        [BYE],
    ]
    session, _ = await talk(example("mcp_hosted"), turns)

    answers = [it for it in session.items.values() if it.type.endswith("_response")]
    assert [it.approve for it in answers] == [True, False]
    assert answers[1].reason is not None and "by a person" in answers[1].reason
    done = [it.output for it in session.items.values() if it.type == "mcp_call"]
    assert "table 7" in done and "booked" not in done


async def test_listener() -> None:
    """All events are counted, the heard part of an interrupted answer is known, a card
    number is removed, and a background tool causes no answer."""
    agent, calls = watched("listener")
    turns: list[Turn] = [
        [PlayRuler(3000), CallTool("note_topic", {"topic": "cards"})],
        [PlayRuler(300)],
    ]
    texts = ["My card is 4111 1111 1111 1111.", "Wait."]
    script: list[steps.Step] = [
        steps.SayStep(HELLO),
        steps.HearStep(1200),
        steps.SayStep(WAIT),
        LISTEN,
        HANG_UP,
    ]
    session, record = await talk(agent, turns, script, behaviour={"user_texts": texts})

    [call] = calls
    assert call.notes["topics"] == ["cards"]
    assert call.notes["counts"]["tool_end"] == 1
    cut = next(it for it in session.items.values() if it.ruler_number == 1)
    assert call.notes["heard_ms"] == [cut.truncated_ms]
    truth = read_ruler(record.heard).heard_ms[1]
    assert call.notes["heard_ms"] == [pytest.approx(truth, abs=40)]
    assert len(session.responses) == 2  # none for the tool
    kept = [it for it in session.items.values() if not it.deleted and it.role == "user"]
    assert [it.text for it in kept] == ["My card is [a card number].", "Wait."]


async def test_direct(tmp_path: Path) -> None:
    """A raw event slows the voice, the model is muted for a while, "be quiet" stops it
    at once; all over a socket that the example opened."""
    agent, calls = watched("direct")
    turns: list[Turn] = [
        [CallTool("speak_slower", {})],
        [CallTool("look_away", {})],
        [PlayRuler(200)],
        [PlayRuler(6000)],
        [PlayRuler(200)],
    ]
    routes = tmp_path / "routes.yaml"
    routes.write_text("routes: []\n")
    script: list[steps.Step] = [
        steps.SayStep(HELLO),
        LISTEN,
        steps.SayStep(WAIT),
        LISTEN,
        HANG_UP,
    ]
    session, record = await talk(
        agent,
        turns,
        script,
        behaviour={"user_texts": ["Hi.", "Be quiet!"], "transcribe_seconds": 0.6},
        routes=routes,
        model_connect="examples/direct.py:connect",
    )

    [call] = calls
    assert session.session["audio"]["output"]["speed"] == 0.8
    assert session.session["audio"]["output"]["format"] == {"type": "audio/pcmu"}
    assert outputs(session)["look_away"] == "you heard nothing for a second"
    assert call.notes["rate_limits"] and not call.muted
    assert len(record.clears) == 1
    assert written(session, "system") == ["Ask in three words whether to go on."]
    assert "twilio-realtime-bridge" not in session.headers["user-agent"]


async def test_front_desk_and_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A message is taken, the caller is transferred to a name of the routes, and the
    report of the call is in the folder."""
    save = loader.load_function("examples/reports.py:save")
    monkeypatch.setitem(save.__globals__, "FOLDER", tmp_path)
    message = {"text": "Call me.", "name": "Ms. Doe", "call_back": ""}
    turns: list[Turn] = [
        [PlayRuler(200)],
        [CallTool("take_message", message)],
        [SayText("I put you through."), CallTool("transfer_call", {"target": "sales"})],
    ]
    script: list[steps.Step] = [LISTEN, steps.SayStep(HELLO), steps.WaitStep(10)]
    behaviour = Behaviour(turns=turns, user_texts=["Sales, please."])
    conf: dict[str, Any] = {"routes": "examples/front_desk.yaml"}
    async with bridge(behaviour, **conf) as place:
        record = await place.caller().call(script)
        await place.empty()
    well(place.session, record)

    assert record.dialled == "+14155550101"
    assert "sales, support" in place.session.session["instructions"]
    assert "front desk" in written(place.session, "system")[0]
    [file] = tmp_path.glob("*.json")
    report = json.loads(file.read_bytes())
    assert report["messages"] == [message]
    assert report["outcome"] == "agent_transferred"
    words = file.with_suffix(".txt").read_text()
    assert "caller: Sales, please." in words and "MESSAGE from Ms. Doe" in words


@pytest.mark.parametrize("machine", [False, True])
async def test_reminder(machine: bool) -> None:
    """The callee is asked, and the call ends politely; a machine gets the message after
    its beep."""
    account, token, ours = "AC" + "0" * 31 + "1", "t" * 32, "+15557650002"
    agent, calls = watched("reminder")
    turns: list[Turn] = [
        [PlayRuler(300)],
        [CallTool("answer", {"coming": "yes"})],
        [PlayRuler(500), CallTool("hang_up", {})],
    ]
    if machine:
        turns = [[PlayRuler(6000)], [PlayRuler(700)]]
    person = rest.Answers(script=[LISTEN, steps.SayStep(HELLO), steps.WaitStep(10)])
    callee = rest.Machine(WAIT) if machine else person
    async with rest.TwilioRest(account, token, callee=callee) as twilio:
        conf: dict[str, Any] = {
            "public_url": "https://bridge.example",
            "twilio_account_sid": account,
            "twilio_auth_token": SecretStr(token),
            "api_token": SecretStr("api"),
            "outbound_prefixes": ("+1555",),
            "outbound_number": ours,
            "twilio_api_url": twilio.url,
        }
        async with bridge(Behaviour(turns=turns), agent=agent, **conf) as place:
            twilio.bridge = place.url
            order = {
                "to": "+15551230001",
                "parameters": {"name": "Ms. Doe", "time": "nine"},
                "greeting": "Say who you are.",
                "machine": "message",
                "message": "Please call us back.",
            }
            sid = await client.place_call(place.url, "api", order)
            async with asyncio.timeout(20):
                await twilio.calls[sid].over.wait()
            await place.empty()
            assert not place.session.errors_sent

    instructions = place.session.session["instructions"]
    assert "Ms. Doe" in instructions and "nine" in instructions
    words = written(place.session, "system")
    assert words[0] == "Say who you are."
    if machine:
        assert "Please call us back." in words[1]
        outcome = "agent_message_left"
    else:
        assert calls[0].notes["coming"] == "yes"
        outcome = "agent_hung_up"
    assert place.metric(f'bridge_calls_total{{outcome="{outcome}"}}') == 1
