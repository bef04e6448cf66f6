"""A full house, and a call that goes on in a new stream: what Twilio is told to do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
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
from bridge.fleet.plan import CallSnapshot, Plan
from bridge.http.server import Server
from bridge.http.webhooks import MAX_REFUSALS, MAX_RESUMES
from bridge.sim.model import Behaviour, ModelServer, Ruled
from bridge.sim.twilio import steps
from tests.e2e.bridge import AGENT, Place, bridge

PUBLIC, TOKEN = "https://bridge.example", SecretStr("twilio-secret-of-this-test")
NUMBER = "+15550009999"
FORM = {"CallSid": "CA1", "From": "+15551230001", "To": "+15557650002"}
STEP = NextStep(Then.RESUME)


@asynccontextmanager
async def held_line(url: str) -> AsyncIterator[None]:
    """Somebody has a line of this bridge until they hang up."""
    start = {"callSid": "CAheld", "mediaFormat": {"encoding": "audio/x-mulaw"}}
    start["mediaFormat"] |= {"sampleRate": 8000, "channels": 1}  # type: ignore[operator]
    message = {"event": "start", "streamSid": "MZheld", "start": start}
    async with connect(url.replace("http", "ws") + "/media", proxy=None) as socket:
        await socket.send(json.dumps(message))
        yield
        stop = {"event": "stop", "streamSid": "MZheld", "stop": {"callSid": "CAheld"}}
        await socket.send(json.dumps(stop))


async def asked(url: str, path: str, **form: str) -> ElementTree.Element:
    """What a bridge answers Twilio."""
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


def registry_of(place: Place) -> Registry:
    return place.server._services.registry


# ------------------------------------------------------------------------ one instance


async def test_a_caller_waits_for_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hear that they wait; when somebody hangs up they talk to the agent, who
    knows who calls."""
    monkeypatch.setattr(overflow, "LONGEST_PAUSE", 1)
    monkeypatch.setattr(overflow, "SHORTEST_PAUSE", 1)
    seen: list[Any] = []

    def agent_for(call: Any) -> Any:
        seen.append(call.facts)
        return AGENT

    conf = {"max_calls": 1, "when_full": "queue", "greeting": "Hi."}
    behaviour = Behaviour(fallback=[Ruled(300)])
    async with bridge(behaviour, agent=agent_for, **conf) as place:
        waiting = place.caller().call([steps.Hear(200), steps.HangUp()])
        async with asyncio.TaskGroup() as tasks, held_line(place.url):
            call = tasks.create_task(waiting)
            await asyncio.sleep(0.3)
        await place.empty()

    record = call.result()
    assert (record.said_by_twilio, record.ended_by) == ([twiml.HOLD], "caller")
    assert record.heard
    facts = next(it for it in seen if it.call_sid == record.call_sid)
    assert (facts.from_number, facts.to_number) == (FORM["From"], FORM["To"])


async def test_a_wait_that_is_too_long() -> None:
    """Who has waited as long as is to be borne is put through to a human. Every turn is
    signed, the place in the queue with it."""
    conf = {"public_url": PUBLIC, "twilio_auth_token": TOKEN, "queue_seconds": 1}
    async with bridge(
        when_full="queue", fallback_number=NUMBER, max_calls=1, **conf
    ) as place:
        place.server._services.capacity.streams = 1
        caller = place.caller(auth_token=TOKEN.get_secret_value(), signed_origin=PUBLIC)
        record = await caller.call([steps.Wait(5)])

    assert record.said_by_twilio == [twiml.HOLD, twiml.BUSY_CONNECTING]
    assert (record.dialled, record.ended_by) == (NUMBER, "bridge")
    assert record.ended_at is not None
    assert 0.9 < record.ended_at - record.started_at < 4


async def test_a_place_that_nobody_gave() -> None:
    """A request with a place written by hand is answered, and wins no endless wait."""
    async with bridge(when_full="queue", max_calls=1) as place:
        place.server._services.capacity.streams = 1
        for query in ("waiting=", "waiting=%00&waiting=1", "waiting=-1-1e9"):
            assert said(await asked(place.url, f"/voice?{query}")) == [twiml.BUSY]
        future = await asked(place.url, "/voice?a=%26+b&waiting=9999999999999-7")
        late = await asked(place.url, "/voice?waiting=9999999999999-99999")

    [redirect] = future.iter("Redirect")
    assert redirect.text == f"{place.url}/voice?a=%26+b&waiting=9999999999999-8"
    assert said(late) == [twiml.BUSY]


async def test_the_route_says_how_its_callers_wait() -> None:
    """Its own words, its own language, its own number."""
    route = Route(
        when_full=WhenFull("fallback", "Un instant."), fallback=NUMBER, language="fr"
    )
    async with bridge(route=route, max_calls=1) as place:
        place.server._services.capacity.streams = 1
        record = await place.caller().call([steps.Wait(5)])

    assert record.said_by_twilio == ["Un instant."]
    assert record.dialled == NUMBER
    assert 'language="fr"' in record.twiml[0]


async def test_nobody_waits_for_a_bridge_that_stops() -> None:
    """A bridge that is alone and about to go keeps nobody on the line for itself."""
    async with bridge(when_full="queue") as place:
        place.server._services.capacity.draining = True
        record = await place.caller().call([steps.Wait(5)])

    assert record.said_by_twilio == [twiml.BUSY]


@pytest.mark.parametrize(
    ("when_full", "heard"),
    [
        ("busy", [twiml.BUSY]),
        ("fallback", [twiml.BUSY_CONNECTING]),
        ("queue", [twiml.HOLD, twiml.BUSY_CONNECTING]),
    ],
)
async def test_the_last_line_is_taken_meanwhile(
    when_full: Any, heard: list[str]
) -> None:
    """Between the webhook and the stream another call took the line: the caller hears
    of a full house and not that something went wrong."""
    async with bridge(
        when_full=when_full, fallback_number=NUMBER, max_calls=1, queue_seconds=0.5
    ) as place:
        document = await asked(place.url, "/voice")
        place.server._services.capacity.streams = 1
        caller = place.caller(document=ElementTree.tostring(document, "unicode"))
        record = await caller.call([steps.Wait(5)])

    assert record.stream_ends[0].text == "handshake answered with 503"
    assert record.said_by_twilio == heard


async def test_who_waited_keeps_their_place() -> None:
    """A waiting caller whose line went to another does not begin to wait anew; nor is
    somebody whom we called ourselves kept waiting."""
    async with bridge(when_full="queue", max_calls=1) as place:
        document = await asked(place.url, "/voice?waiting=9999999999999-5")
        action = document[0].attrib["action"].removeprefix(place.url)
        place.server._services.capacity.streams = 1
        held = await asked(place.url, action)
        plan = Plan(greeting="Hi.").encoded(FORMAT)
        await registry_of(place).put("plan:CA2", plan, 60)
        ours = await asked(place.url, "/voice/next", CallSid="CA2")

    [redirect] = held.iter("Redirect")
    assert redirect.text == f"{place.url}/voice?waiting=9999999999999-6"
    assert verbs(ours) == ["Hangup"]


# ---------------------------------------------------------------------- two instances


@dataclass
class Fleet:
    """Two bridges that know of each other's room."""

    services: list[Services]
    servers: list[Server]

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.servers[number].port}"


@asynccontextmanager
async def fleet(**conf: Any) -> AsyncIterator[Fleet]:
    settings = Settings(host="127.0.0.1", port=0, insecure=True, max_calls=1, **conf)
    both = Fleet([], [])

    def load() -> InstanceLoad:
        # What each tells of itself, as a shared registry has it.
        told = [services.capacity.load for services in both.services]
        return next((it for it in told if it.free), InstanceLoad(0, 0))

    shared = MemoryRegistry(load=load)
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(
            ModelServer(Behaviour(fallback=[Ruled(300)]))
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
async def test_another_instance_has_room(draining: bool) -> None:
    """A caller whose webhook came to a full or stopping instance talks all the same:
    the balancer brings the stream to the other one."""
    async with fleet() as both:
        both.services[0].capacity.draining = draining
        both.services[0].capacity.streams = 1
        document = await asked(both.url(0), "/voice")
        assert parameters(document) == {"From": FORM["From"], "To": FORM["To"]}

        text = ElementTree.tostring(document, "unicode")
        text = text.replace(str(both.servers[0].port), str(both.servers[1].port))
        place = Place(both.servers[1], ModelServer(), Settings())
        record = await place.caller(document=text).call(
            [steps.Hear(200), steps.HangUp()]
        )

    assert record.heard and record.said_by_twilio == []


async def test_what_is_known_of_the_others_is_old() -> None:
    """The other instance is full, too, but has not told yet: the stream is tried a few
    times more, then the caller hears that the house is full, and not an apology."""
    async with fleet() as both:
        both.services[0].capacity.streams = 1
        place = Place(both.servers[0], ModelServer(), Settings())
        record = await place.caller().call([steps.Wait(5)])

    assert len(record.stream_ends) == 1 + MAX_REFUSALS
    assert record.said_by_twilio == [twiml.BUSY]


async def test_others_are_there_when_one_stops() -> None:
    """A caller who comes to a stopping instance of a full fleet waits for the rest."""
    async with fleet(when_full="queue") as both:
        both.services[0].capacity.draining = True
        both.services[1].capacity.streams = 1
        await both.services[0].registry.opened(CallEntry("CAother", "MZother", 0.0))
        document = await asked(both.url(0), "/voice")

    assert verbs(document) == ["Say", "Pause", "Redirect"]


# ---------------------------------------------------------------- a call that goes on

TALK = CallSnapshot(
    history=(HistoryItem("i1", "user", "My name is Ada."),),
    parameters={**FORM, "campaign": "spring"},
)


async def test_the_instance_of_a_call_died() -> None:
    """The caller whose stream broke with its instance talks to the agent again, who
    knows what was said and what the call is about."""
    seen: list[Any] = []

    def agent_for(call: Any) -> Any:
        seen.append(call.facts)
        return AGENT

    behaviour = Behaviour(fallback=[Ruled(300)])
    with capture_logs() as logs:
        async with bridge(behaviour, agent=agent_for, greeting="Hi.") as place:
            await registry_of(place).put("snapshot:CA1", TALK.encoded(FORMAT), 60)
            # Nobody listens where the stream was.
            document = twiml.connect(
                "ws://127.0.0.1:1/media", action_url=f"{place.url}/voice/next"
            )
            caller = place.caller(document=document, call_sid="CA1")
            record = await caller.call([steps.Wait(1.0), steps.HangUp()])
            await place.empty()

    assert record.said_by_twilio == []
    assert [it["step"] for it in logs if it["event"] == "call_goes_on"] == ["resume"]
    assert seen[0].parameters["campaign"] == "spring"
    words = [item.text for item in place.session.items.values()]
    assert "My name is Ada." in words


async def test_a_call_that_never_gets_on_its_feet() -> None:
    """Where every new stream is lost, too, the caller is told after a few."""
    async with bridge(fallback_number=NUMBER) as place:
        await registry_of(place).put("snapshot:CA1", TALK.encoded(FORMAT), 60)
        answers = [
            await asked(place.url, "/voice/next") for _ in range(MAX_RESUMES + 1)
        ]

    assert [verbs(it) for it in answers[:-1]] == [["Connect"]] * MAX_RESUMES
    assert parameters(answers[0])["campaign"] == "spring"
    assert said(answers[-1]) == [twiml.SORRY_CONNECTING]


async def test_a_call_is_handed_over() -> None:
    """A call that its instance gave up for another goes on, with what is known of it;
    a house that is full by then lets it wait, if callers wait there at all."""
    entry = CallEntry("CA1", "MZ1", 0.0)
    async with bridge(when_full="queue", max_calls=1) as place:
        registry = registry_of(place)
        await registry.closed(entry, STEP)
        bare = await asked(place.url, "/voice/next")
        await registry.put("snapshot:CA1", TALK.encoded(FORMAT), 60)
        place.server._services.capacity.streams = 1
        held = await asked(place.url, "/voice/next")
        place.server._services.capacity.streams = 0
        [redirect] = held.iter("Redirect")
        path = (redirect.text or "").removeprefix(place.url)
        resumed = await asked(place.url, path)

    assert parameters(bare) == {"From": FORM["From"], "To": FORM["To"]}
    assert said(held) == [twiml.HOLD] and path.startswith("/voice/next?returning=")
    assert parameters(resumed)["campaign"] == "spring"


async def test_a_full_house_for_a_call_that_goes_on() -> None:
    """Where nobody waits, whoever lost the agent in mid-call gets plan B, in the words
    of their own route."""
    route = Route(sorry="Pardon.", fallback=NUMBER, language="fr")
    async with bridge(max_calls=1, route=route) as place:
        place.server._services.capacity.streams = 1
        await registry_of(place).put("snapshot:CA1", TALK.encoded(FORMAT), 60)
        document = await asked(place.url, "/voice/next")

    assert said(document) == ["Pardon."]
    assert [it.text for it in document.iter("Number")] == [NUMBER]
