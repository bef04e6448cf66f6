"""A full instance, and a call that continues in a new stream: what Twilio is told to
do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import aiohttp
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

import twiml
from bridge.app import overflow
from bridge.app.routes import Route, Routes, WhenFull
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.core.history import HistoryItem
from bridge.fleet import CallEntry, InstanceLoad, NextStep, Registry, Then
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import Plan
from bridge.fleet.snapshot import CallSnapshot
from bridge.http.server import Server
from bridge.http.webhooks import MAX_REFUSALS, MAX_RESUMES
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from bridge.sim.twilio import steps
from tests.e2e.bridge import AGENT, RunningBridge, bridge
from twiml import spoken_texts

PUBLIC, TOKEN = "https://bridge.example", SecretStr("twilio-secret-of-this-test")
NUMBER = "+15550009999"
SID, OTHER = "CA" + "1" * 32, "CA" + "2" * 32
FORM = {
    "AccountSid": "AC" + "0" * 32,
    "CallSid": SID,
    "From": "+15551230001",
    "To": "+15557650002",
}
STEP = NextStep(Then.RESUME)


@asynccontextmanager
async def held_line(url: str) -> AsyncIterator[None]:
    """Another call takes one of the bridge's calls until the block ends."""
    start = {"callSid": "CAheld", "mediaFormat": {"encoding": "audio/x-mulaw"}}
    start["mediaFormat"] |= {"sampleRate": 8000, "channels": 1}  # type: ignore[operator]
    message = {"event": "start", "streamSid": "MZheld", "start": start}
    async with connect(url.replace("http", "ws") + "/media", proxy=None) as socket:
        await socket.send(json.dumps(message))
        yield
        stop = {"event": "stop", "streamSid": "MZheld", "stop": {"callSid": "CAheld"}}
        await socket.send(json.dumps(stop))


async def asked(url: str, path: str, **form: str) -> ElementTree.Element:
    """The bridge's answer to a request of Twilio."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(url + path, data={**FORM, **form}) as answer,
    ):
        assert answer.status == 200
        return ElementTree.fromstring(await answer.text())


def verbs(document: ElementTree.Element) -> list[str]:
    return [verb.tag for verb in document]


def said(document: ElementTree.Element) -> list[str | None]:
    return [verb.text for verb in document.iter("Say")]


def parameters(document: ElementTree.Element) -> dict[str, str]:
    return {it.attrib["name"]: it.attrib["value"] for it in document.iter("Parameter")}


def registry_of(place: RunningBridge) -> Registry:
    return place.server._services.registry


# ------------------------------------------------------------------------ one instance


async def test_a_caller_waits_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears that they wait; when another call has ended, they talk to the
    agent, which knows who calls."""
    monkeypatch.setattr(overflow, "LONGEST_PAUSE", 1)
    monkeypatch.setattr(overflow, "SHORTEST_PAUSE", 1)
    seen: list[Any] = []

    def agent_for(call: Any) -> Any:
        seen.append(call.facts)
        return AGENT

    conf = {"max_calls": 1, "when_full": "queue", "greeting": "Hi."}
    behaviour = Behaviour(fallback=[PlayRuler(300)])
    async with bridge(behaviour, agent=agent_for, **conf) as place:
        waiting = place.caller().call([steps.HearStep(200), steps.HangUpStep()])
        async with asyncio.TaskGroup() as tasks, held_line(place.url):
            call = tasks.create_task(waiting)
            await asyncio.sleep(0.3)
        await place.empty()

    record = call.result()
    assert (record.said_by_twilio, record.ended_by) == ([spoken_texts.HOLD], "caller")
    assert record.heard
    facts = next(it for it in seen if it.call_sid == record.call_sid)
    assert (facts.from_number, facts.to_number) == (FORM["From"], FORM["To"])


async def test_a_wait_that_is_too_long() -> None:
    """After the longest wait the caller is connected to a human. Every turn is signed,
    the place in the queue included."""
    conf = {"public_url": PUBLIC, "twilio_auth_token": TOKEN, "queue_seconds": 1}
    async with bridge(
        when_full="queue", fallback_number=NUMBER, max_calls=1, **conf
    ) as place:
        place.server._services.capacity.streams = 1
        caller = place.caller(auth_token=TOKEN.get_secret_value(), signed_origin=PUBLIC)
        record = await caller.call([steps.WaitStep(5)])

    assert record.said_by_twilio == [spoken_texts.HOLD, spoken_texts.BUSY_CONNECTING]
    assert (record.dialled, record.ended_by) == (NUMBER, "bridge")
    assert record.ended_at is not None
    assert 0.9 < record.ended_at - record.started_at < 4


async def test_a_forged_place_in_the_queue() -> None:
    """A request with a forged place is answered and does not get an endless wait."""
    async with bridge(when_full="queue", max_calls=1) as place:
        place.server._services.capacity.streams = 1
        for query in ("waiting=", "waiting=%00&waiting=1", "waiting=-1-1e9"):
            assert said(await asked(place.url, f"/voice?{query}")) == [
                spoken_texts.BUSY
            ]
        future = await asked(place.url, "/voice?a=%26+b&waiting=9999999999999-7")
        late = await asked(place.url, "/voice?waiting=9999999999999-99999")

    [redirect] = future.iter("Redirect")
    assert redirect.text
    url, _, query = redirect.text.partition("?")
    pairs = parse_qsl(query)
    assert url == f"{place.url}/voice" and query.startswith("a=%26+b&")
    assert [name for name, _ in pairs] == ["a", "once", "waiting"]  # sorted
    assert pairs[-1][1] == "9999999999999-8"
    assert said(late) == [spoken_texts.BUSY]


async def test_the_route_says_how_its_callers_wait() -> None:
    """With its own sentence, its own language, its own number."""
    route = Route(
        when_full=WhenFull("fallback", "Un instant."), fallback=NUMBER, language="fr"
    )
    async with bridge(route=route, max_calls=1) as place:
        place.server._services.capacity.streams = 1
        record = await place.caller().call([steps.WaitStep(5)])

    assert record.said_by_twilio == ["Un instant."]
    assert record.dialled == NUMBER
    assert 'language="fr"' in record.twiml[0]


async def test_no_queue_at_a_bridge_that_stops() -> None:
    """A bridge that is alone and will stop lets no caller wait for it."""
    async with bridge(when_full="queue") as place:
        place.server._services.capacity.draining = True
        record = await place.caller().call([steps.WaitStep(5)])

    assert record.said_by_twilio == [spoken_texts.BUSY]


@pytest.mark.parametrize(
    ("when_full", "heard"),
    [
        ("busy", [spoken_texts.BUSY]),
        ("fallback", [spoken_texts.BUSY_CONNECTING]),
        ("queue", [spoken_texts.HOLD, spoken_texts.BUSY_CONNECTING]),
    ],
)
async def test_the_last_capacity_is_taken_before_the_stream_opens(
    when_full: Any, heard: list[str]
) -> None:
    """Between the webhook and the stream another call took it: the caller hears that
    all lines are busy, not that something went wrong."""
    async with bridge(
        when_full=when_full, fallback_number=NUMBER, max_calls=1, queue_seconds=0.5
    ) as place:
        document = await asked(place.url, "/voice")
        place.server._services.capacity.streams = 1
        caller = place.caller(document=ElementTree.tostring(document, "unicode"))
        record = await caller.call([steps.WaitStep(5)])

    assert record.stream_ends[0].text == "handshake answered with 503"
    assert record.said_by_twilio == heard


async def test_a_waiting_caller_keeps_the_place() -> None:
    """A waiting caller whose capacity went to another call does not start the wait
    anew. A callee of ours does not have to wait."""
    async with bridge(when_full="queue", max_calls=1) as place:
        document = await asked(place.url, "/voice?waiting=9999999999999-5")
        action = document[0].attrib["action"].removeprefix(place.url)
        place.server._services.capacity.streams = 1
        held = await asked(place.url, action)
        plan = Plan(greeting="Hi.").encoded(FORMAT)
        await registry_of(place).put(f"plan:{OTHER}", plan, 60)
        ours = await asked(place.url, "/voice/next", CallSid=OTHER)

    [redirect] = held.iter("Redirect")
    assert redirect.text
    query = dict(parse_qsl(urlsplit(redirect.text).query))
    assert redirect.text.startswith(f"{place.url}/voice?")
    assert query["waiting"] == "9999999999999-6"
    assert verbs(ours) == ["Hangup"]


# ---------------------------------------------------------------------- two instances


@dataclass
class Fleet:
    """Two bridges that know each other's capacity."""

    services: list[Services]
    servers: list[Server]

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.servers[number].port}"


@asynccontextmanager
async def fleet(**conf: Any) -> AsyncIterator[Fleet]:
    settings = Settings(host="127.0.0.1", port=0, insecure=True, max_calls=1, **conf)
    both = Fleet([], [])

    def load() -> InstanceLoad:
        # What each instance reports of itself, as a shared registry has it.
        told = [services.capacity.load for services in both.services]
        return next((it for it in told if it.free), InstanceLoad(0, 0))

    shared = MemoryRegistry(load=load)
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(
            ModelServer(Behaviour(fallback=[PlayRuler(300)]))
        )
        for _ in range(2):
            user_code = UserCode(AGENT, Routes(defaults=Route()))
            opened = start_services(settings, user_code, model.url)
            services = replace(await stack.enter_async_context(opened), registry=shared)
            server = Server(settings, services)
            await server.start()
            stack.push_async_callback(server.close)
            both.services.append(services)
            both.servers.append(server)
        yield both


@pytest.mark.parametrize("draining", [False, True])
async def test_another_instance_has_capacity(draining: bool) -> None:
    """A caller whose webhook reached a full or stopping instance talks all the same:
    the load balancer sends the stream to the other one."""
    async with fleet() as both:
        both.services[0].capacity.draining = draining
        both.services[0].capacity.streams = 1
        document = await asked(both.url(0), "/voice")
        assert parameters(document) == {"From": FORM["From"], "To": FORM["To"]}

        text = ElementTree.tostring(document, "unicode")
        text = text.replace(str(both.servers[0].port), str(both.servers[1].port))
        place = RunningBridge(both.servers[1], ModelServer(), Settings())
        record = await place.caller(document=text).call(
            [steps.HearStep(200), steps.HangUpStep()]
        )

    assert record.heard and record.said_by_twilio == []


async def test_the_other_instance_has_become_full() -> None:
    """The other instance is full, too, but has not reported it yet: the stream is tried
    a few more times, then the caller hears that all lines are busy, not an apology."""
    async with fleet() as both:
        both.services[0].capacity.streams = 1
        place = RunningBridge(both.servers[0], ModelServer(), Settings())
        record = await place.caller().call([steps.WaitStep(5)])

    assert len(record.stream_ends) == 1 + MAX_REFUSALS
    assert record.said_by_twilio == [spoken_texts.BUSY]


async def test_a_caller_waits_for_the_other_instances_when_one_stops() -> None:
    """A caller who reaches a stopping instance of a full fleet waits for the other
    instances."""
    async with fleet(when_full="queue") as both:
        both.services[0].capacity.draining = True
        both.services[1].capacity.streams = 1
        await both.services[0].registry.opened(CallEntry("CAother", "MZother", 0.0))
        document = await asked(both.url(0), "/voice")

    assert verbs(document) == ["Say", "Pause", "Redirect"]


# ---------------------------------------------------------------- a resumed call

TALK = CallSnapshot(
    history=(HistoryItem("i1", "user", "My name is Ada."),),
    parameters={**FORM, "campaign": "spring"},
)


async def test_the_instance_of_a_call_died() -> None:
    """A caller whose stream broke with its instance talks to the agent again, which
    knows what was said and the call's parameters."""
    seen: list[Any] = []

    def agent_for(call: Any) -> Any:
        seen.append(call.facts)
        return AGENT

    behaviour = Behaviour(fallback=[PlayRuler(300)])
    with capture_logs() as logs:
        async with bridge(behaviour, agent=agent_for, greeting="Hi.") as place:
            await registry_of(place).put(f"snapshot:{SID}", TALK.encoded(FORMAT), 60)
            # Nothing listens at the address of the old stream.
            document = twiml.connect(
                "ws://127.0.0.1:1/media", action_url=f"{place.url}/voice/next"
            )
            caller = place.caller(document=document, call_sid=SID)
            record = await caller.call([steps.WaitStep(1.0), steps.HangUpStep()])
            await place.empty()

    assert record.said_by_twilio == []
    assert [it["step"] for it in logs if it["event"] == "next_step_sent"] == ["resume"]
    assert seen[0].parameters["campaign"] == "spring"
    words = [item.text for item in place.session.items.values()]
    assert "My name is Ada." in words


async def test_a_call_whose_new_streams_are_all_lost() -> None:
    """After a few lost streams the caller hears an apology."""
    async with bridge(fallback_number=NUMBER) as place:
        await registry_of(place).put(f"snapshot:{SID}", TALK.encoded(FORMAT), 60)
        answers = [
            await asked(place.url, "/voice/next") for _ in range(MAX_RESUMES + 1)
        ]

    assert [verbs(it) for it in answers[:-1]] == [["Connect"]] * MAX_RESUMES
    assert parameters(answers[0])["campaign"] == "spring"
    assert said(answers[-1]) == [spoken_texts.SORRY_CONNECTING]


async def test_a_call_is_handed_over() -> None:
    """A call that its instance handed over continues with its snapshot. If the other
    instance is full, the call waits, if callers wait there at all."""
    entry = CallEntry(SID, "MZ1", 0.0)
    async with bridge(when_full="queue", max_calls=1) as place:
        registry = registry_of(place)
        await registry.closed(entry, STEP)
        bare = await asked(place.url, "/voice/next")
        await registry.put(f"snapshot:{SID}", TALK.encoded(FORMAT), 60)
        place.server._services.capacity.streams = 1
        held = await asked(place.url, "/voice/next")
        place.server._services.capacity.streams = 0
        [redirect] = held.iter("Redirect")
        path = (redirect.text or "").removeprefix(place.url)
        resumed = await asked(place.url, path)

    assert parameters(bare) == {"From": FORM["From"], "To": FORM["To"]}
    assert said(held) == [spoken_texts.HOLD]
    assert path.startswith("/voice/next?once=") and "&returning=" in path
    assert parameters(resumed)["campaign"] == "spring"


async def test_a_call_that_cannot_be_resumed_because_all_are_full() -> None:
    """Without a queue, a caller who lost the agent during the call gets plan B, with
    the sentence of their own route."""
    route = Route(sorry="Pardon.", fallback=NUMBER, language="fr")
    async with bridge(max_calls=1, route=route) as place:
        place.server._services.capacity.streams = 1
        await registry_of(place).put(f"snapshot:{SID}", TALK.encoded(FORMAT), 60)
        document = await asked(place.url, "/voice/next")

    assert said(document) == ["Pardon."]
    assert [it.text for it in document.iter("Number")] == [NUMBER]
