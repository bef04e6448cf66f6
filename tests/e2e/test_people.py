"""Secrets and personal data: what is stored and logged of a call, and what is not."""

import asyncio
import io
import json
import logging
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from agents import RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent
from pydantic import SecretStr
from redis import Redis

from bridge.agent.events import CallEvent
from bridge.agent.live import LiveCall
from bridge.app.routes import ReportTarget, Route, Routes
from bridge.app.settings import Settings
from bridge.cli.secret_values import secrets_of
from bridge.http.api import client
from bridge.privacy.redaction import Redaction
from bridge.records.report import CallReport
from bridge.sim.model import Behaviour, CallTool, SayText
from bridge.sim.realtime.phone_call import SipCallState
from bridge.sim.twilio import rest, steps
from bridge.telemetry import log
from tests.e2e.bridge import HELLO, RunningBridge, bridge
from tests.e2e.test_connection_guard import with_sip
from tests.e2e.test_outbound import CALLEE, SECRET, TOKEN, phones
from tests.fleet.redis_server import RedisServer
from tests.support.traces import text_of
from tests.support.waiting import until

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()
CALLER = "+15551230001"
VISA = "4111 1111 1111 1111"
KEY = "sk-proj-the-key-of-this-test"
PASSWORD = "hunter22-of-redis"
QUOTED = (CALLER, "030 12345678", VISA, KEY, TOKEN, SECRET, PASSWORD)
"""Texts that any exception may contain."""


# --- the log ---


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Everything that a bridge logs, at every level, configured as by `bridge
    serve`."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = ("websockets", "asyncio", "httpx", "openai.agents", "aiohttp.server")
    levels = {name: logging.getLogger(name).level for name in names}
    settings = Settings(
        api_token=SecretStr(TOKEN),
        twilio_auth_token=SecretStr(SECRET),
        openai_api_key=SecretStr(KEY),
        redis_url=SecretStr(f"redis://:{PASSWORD}@127.0.0.1:6379/0"),
    )
    log.configure("json", logging.DEBUG, secrets_of(settings, Routes.none()))
    lines = io.StringIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(lines)
    yield lines
    root.handlers, root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


def gives_away(text: str) -> list[str]:
    return [it for it in (*QUOTED, CALLEE, "4111111111111111") if it in text]


def raises() -> None:
    raise ValueError("it fails for " + " and ".join(QUOTED))


@function_tool(failure_error_function=None)
def look_up() -> str:
    """Looks something up."""
    raises()
    return ""


def listens(event: CallEvent) -> None:
    raises()


def reported(report: CallReport) -> None:
    raises()


async def test_exceptions_of_the_users_code_leak_no_personal_data(
    written: io.StringIO,
) -> None:
    """The operator sees which function failed and where, but no number."""

    def on_call(live: LiveCall) -> None:
        live.on(listens)

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[look_up])
    turns = [[CallTool("look_up", {})], [SayText("No.")]]
    route = Route(on_call="on_call", report=ReportTarget(to="reported"))
    functions: dict[str, Any] = {"on_call": on_call, "reported": reported}
    async with bridge(
        Behaviour(turns=turns), agent=agent, route=route, functions=functions
    ) as place:
        await place.caller().call([steps.SayStep(HELLO), LISTEN, HANG_UP])
        await place.empty()
        assert odd_labels(place) == set()

    text = written.getvalue()
    assert not gives_away(text)
    lines = [json.loads(line) for line in text.splitlines()]
    failed = {line["event"]: line for line in lines if "exception" in line}
    assert {"listener_failed", "report_function_failed"} <= failed.keys()
    for line in failed.values():
        assert "in raises" in line["exception"]
        assert "ValueError: it fails for [number] and" in line["exception"]
    assert "tool_failed" in text


@pytest.mark.parametrize("where", ["on_call", "agent", "instructions"])
async def test_a_failed_agent_function_leaks_no_personal_data(
    written: io.StringIO, where: str
) -> None:
    """Also if the failure ends the call."""

    def fails(*given: Any) -> Any:
        raises()

    agent: Any = RealtimeAgent(name="desk")
    if where == "agent":
        agent = fails
    elif where == "instructions":
        agent = RealtimeAgent(name="desk", instructions=fails)
    route = Route(on_call="fails" if where == "on_call" else None)
    async with bridge(agent=agent, route=route, functions={"fails": fails}) as place:
        await place.caller().call([steps.WaitStep(3)])
        await place.empty()

    assert "agent_failed" in written.getvalue()
    assert "in raises" in written.getvalue()
    assert not gives_away(written.getvalue())


async def test_a_sip_call_leaks_no_personal_data(written: io.StringIO) -> None:
    """The same for calls that come over SIP."""

    def on_call(live: LiveCall) -> None:
        raises()

    async with with_sip(on_call) as (running, calls):
        url = f"http://127.0.0.1:{running.port}/openai/webhook"
        call = await calls.ring(url, caller=CALLER, called=CALLEE)
        async with asyncio.timeout(5):
            await call.until(SipCallState.REJECTED)

    assert "agent_failed" in written.getvalue()
    assert not gives_away(written.getvalue())


async def test_a_refusal_by_twilio_leaks_no_number(
    written: io.StringIO,
) -> None:
    """Twilio's answer contains the number: the sender of the order gets it, the log
    does not."""
    async with phones(Behaviour(), rest.Unreached("busy")) as (place, _):
        order = {"to": CALLEE, "from": "+15550009999"}
        with pytest.raises(client.ApiError):
            await client.place_call(place.url, TOKEN, order)

    assert "call_not_placed" in written.getvalue()
    assert "+15550009999" not in written.getvalue()
    assert not gives_away(written.getvalue())


@pytest.mark.parametrize("there", [True, False])
async def test_an_unreachable_registry_leaks_no_password(
    written: io.StringIO, tmp_path: Path, there: bool
) -> None:
    """Neither if nothing listens there nor if the password is wrong."""
    server = RedisServer(tmp_path, "--requirepass", "another")
    server.client = Redis(port=server.port, password="another")
    if there:
        server.start()
    url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
    try:
        async with bridge(redis_url=SecretStr(url)):
            await until(lambda: "redis_lost" in written.getvalue())
    finally:
        server.stop()

    assert not gives_away(written.getvalue())


async def test_a_refused_api_key_is_not_leaked(
    written: io.StringIO,
) -> None:
    """The model's error code contains the key that it got, or a number."""
    async with bridge(api_key="another", openai_api_key=SecretStr(KEY)) as place:
        await place.caller().call([steps.WaitStep(3)])
        await place.empty()
        for code in (KEY, CALLER):
            place.model.handshakes.answer(401, code=code)
            await place.caller().call([steps.WaitStep(3)])
            await place.empty()
        odd = odd_labels(place)

    assert "model_refused" in written.getvalue()
    assert "HTTP 401 [number]" in written.getvalue()
    assert not gives_away(written.getvalue())
    assert odd == set()


def odd_labels(place: RunningBridge) -> set[str]:
    """Label values of the metrics that are not our own words."""
    values = {
        value
        for family in place.server.metrics.registry.collect()
        for sample in family.samples
        for name, value in sample.labels.items()
        if name != "le"
    }
    assert "caller" in values  # proves that label values were found
    return {value for value in values if not re.fullmatch("[a-z_]+", value)}


# --- nothing is stored by default ---


@dataclass
class Watch:
    """The files that the process writes and the hosts to which it connects, while
    `on`."""

    on: bool = False
    files: set[str] = field(default_factory=set)
    dialled: set[str] = field(default_factory=set)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(given[0], str):
            writes = given[2] & 0o3  # O_WRONLY, O_RDWR
            if writes and "__pycache__" not in given[0]:
                self.files.add(given[0])
        elif event == "socket.connect" and given[0].family != socket.AF_UNIX:
            self.dialled.add(given[1][0])


WATCH = Watch()
"""One for all tests: an audit hook cannot be removed from the process."""


async def test_a_bridge_with_default_settings_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording, transcripts and reports are off by default: a call leaves no file, and
    the process connects only to Twilio and the model."""
    monkeypatch.chdir(tmp_path)
    behaviour = Behaviour(turns=[[SayText("Hello.")]], user_texts=[f"It is {VISA}."])
    async with bridge(behaviour) as place:
        settings = Settings()
        assert (settings.record_dir, settings.report_url) == (None, None)
        if not WATCH.files:
            sys.addaudithook(WATCH)
        WATCH.on = True
        try:
            await place.caller().call([steps.SayStep(HELLO), LISTEN, HANG_UP])
            await place.empty()
        finally:
            WATCH.on = False

    assert {it for it in WATCH.files if not it.startswith("/dev/")} == set()
    assert WATCH.dialled <= {"127.0.0.1"}
    assert list(tmp_path.rglob("*")) == []


async def test_an_instance_deletes_expired_traces(tmp_path: Path) -> None:
    """BRIDGE_RECORD_DAYS applies from the start of the bridge."""
    old = tmp_path / "CA1.MZ1.trace.jsonl"
    old.write_text("words")
    os.utime(old, (1_700_000_000, 1_700_000_000))
    (tmp_path / "CA2.MZ2.trace.jsonl").write_text("words")

    async with bridge(record_dir=tmp_path, record_days=1):
        await until(lambda: not old.exists())

    assert [it.name for it in tmp_path.iterdir()] == ["CA2.MZ2.trace.jsonl"]


# --- redaction by a route ---


@dataclass
class Seen:
    """What left the call, and what the user's own code got."""

    lives: list[LiveCall] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    events: list[CallEvent] = field(default_factory=list)
    reports: list[CallReport] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)
    """From the API and the registry: source -> text."""


@asynccontextmanager
async def paying(
    seen: Seen, redact: Redaction, folder: Path
) -> AsyncIterator[RunningBridge]:
    """A bridge whose caller pays by card: says the number, hears it, types it."""

    @function_tool
    def pay(context: RunContextWrapper[LiveCall], card: str) -> str:
        """Charges a card."""
        seen.cards.append(card)
        context.context.notes["paid_with"] = {"card": card}
        context.context.take_message(f"Paid with {card}.")
        return json.dumps({"charged": card})

    def on_call(live: LiveCall) -> None:
        seen.lives.append(live)
        live.on(seen.events.append)

    behaviour = Behaviour(
        turns=[
            [CallTool("pay", {"card": VISA})],
            [SayText(f"I charged {VISA}.")],
            [SayText("Thank you.")],
        ],
        user_texts=[f"My card is {VISA}."],
        speed=20,
    )
    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[pay])
    route = Route(redact=redact, on_call="on_call", report=ReportTarget(to="reported"))
    functions: dict[str, Any] = {"on_call": on_call, "reported": seen.reports.append}
    async with bridge(
        behaviour,
        agent=agent,
        route=route,
        functions=functions,
        record_dir=folder,
        api_token=SecretStr(TOKEN),
    ) as place:
        # Like a shared registry: the call's snapshot is stored for other instances.
        place.server.registry.shared = True
        yield place


async def look(place: RunningBridge, seen: Seen, api: aiohttp.ClientSession) -> None:
    """Stores what the API and the registry give while the call runs."""
    sid = seen.lives[0].call_sid
    url = f"{place.url}/api/calls/{sid}"
    for path in ("", "/history"):
        async with api.get(url + path) as answer:
            assert answer.status == 200
            seen.given[f"API {path}"] = await answer.text()
    stored = await place.server.registry.get(f"snapshot:{sid}")
    assert stored is not None
    seen.given["registry"] = stored.decode()


async def a_payment(redact: Redaction, folder: Path) -> tuple[Seen, str]:
    """A call with a card payment: what was seen, and the call's trace."""
    seen = Seen()
    # Typing the number interrupts the agent.
    keys = (steps.HearStep(1200), steps.PressStep("4111#"))
    talk = [steps.SayStep(HELLO), *keys, LISTEN, steps.WaitStep(1.2)]
    auth = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        paying(seen, redact, folder) as place,
        aiohttp.ClientSession(headers=auth) as api,
        asyncio.TaskGroup() as tasks,
    ):
        calling = tasks.create_task(place.caller().call([*talk, HANG_UP]))
        await until(lambda: seen.lives)
        sid = seen.lives[0].call_sid
        events = await api.get(f"{place.url}/api/calls/{sid}/events")
        await until(lambda: any("Thank you" in str(it.data) for it in seen.events))
        await asyncio.sleep(0.6)  # snapshots are stored twice a second
        await look(place, seen, api)
        await calling
        seen.given["API /events"] = await events.text()
        await until(lambda: seen.reports)
        await place.empty()
        assert odd_labels(place) == set()
    seen.given["report"] = seen.reports[0].as_json().decode()
    [trace] = folder.iterdir()
    return seen, text_of(trace)


async def test_a_card_number_is_used_and_stored_nowhere(tmp_path: Path) -> None:
    """The agent, its tools and the user's listeners get the number. The trace, the
    report, the API and the registry do not: not as said, heard or typed."""
    seen, trace = await a_payment(Redaction(cards=True), tmp_path / "calls")

    assert seen.cards == [VISA]
    assert any(VISA in str(it.data) for it in seen.events if it.type == "caller_said")
    assert [it.data["digit"] for it in seen.events if it.type == "key_pressed"] == [
        *"4111#"
    ]
    for what, text in {**seen.given, "trace": trace}.items():
        assert not re.search(r"4111[ ,.-]*1111", text), what
        assert not re.search(r'digit[\\": ]+[0-9#]', text), what
        assert "phone: 4111" not in text, what
        assert "[card number]" in text, what
    assert "[keys]" in trace and "[keys]" in seen.given["API /events"]
    assert json.loads(trace.splitlines()[0])["redacted"] == ["cards"]
    assert json.loads(seen.given["report"])["notes"] == {
        "paid_with": {"card": "[card number]"}
    }
