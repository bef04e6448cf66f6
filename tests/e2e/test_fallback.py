"""The fallback switch over real sockets: what callers, running calls and outbound calls
get while it is on."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosedOK

from bridge.app.routes import Route
from bridge.cli.commands import app
from bridge.core.call_state import State
from bridge.fleet import NextStep, Then
from bridge.fleet.snapshot import CallSnapshot
from bridge.http.api import client
from bridge.sim.model import Behaviour
from bridge.sim.realtime import faults
from bridge.sim.twilio import steps
from tests.e2e.bridge import RunningBridge, bridge
from tests.e2e.test_fleet_api import TOKEN, calling, fleet
from tests.e2e.test_full import SID, asked, held_line, registry_of, said, verbs
from tests.e2e.test_outbound import CALLEE, phones
from tests.e2e.test_outbound import TOKEN as OUTBOUND_TOKEN
from tests.fleet.redis_server import RedisServer
from tests.support.waiting import until
from twiml import spoken_texts

NUMBER = "+15550009999"
STAY = [steps.WaitStep(30)]
API: dict[str, Any] = {"api_token": SecretStr(TOKEN)}


async def switch(place: RunningBridge, on: bool, **more: Any) -> dict[str, Any]:
    return await client.set_fallback(place.url, TOKEN, {"on": on, **more})


@pytest.mark.parametrize("number", [NUMBER, None])
async def test_a_caller_is_sent_to_the_fallback(number: str | None) -> None:
    """No stream is opened and no model is dialled; the caller hears a sentence and is
    connected to the number, if there is one. The next caller after the switch is off
    reaches the agent."""
    async with bridge(fallback_number=number, **API) as place:
        state = await switch(place, True, reason="vendor down", by="ann", minutes=90)
        assert (state["on"], state["reason"], state["by"]) == (
            *(True, "vendor down", "ann"),
        )
        assert await client.get_fallback(place.url, TOKEN) == state
        record = await place.caller().call(STAY)
        sentence = spoken_texts.SORRY_CONNECTING if number else spoken_texts.SORRY
        assert record.said_by_twilio == [sentence]
        assert record.dialled == number
        assert place.model.sessions == []
        assert place.metric("bridge_fallback_on") == 1
        assert place.metric("bridge_fallback_calls_total") == 1
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{place.url}/readyz") as ready,
        ):
            assert ready.status == 200, "calls are still taken"
        await switch(place, False)
        await place.caller().call([steps.WaitStep(0.3), steps.HangUpStep()])
        assert len(place.model.sessions) == 1
        assert place.metric("bridge_fallback_on") == 0


async def test_the_routes_own_number_and_sentence() -> None:
    route = Route(fallback="+15550001111", sorry="Please hold.")
    async with bridge(route=route, fallback_number=NUMBER, fallback=True) as place:
        record = await place.caller().call(STAY)

    assert (record.said_by_twilio, record.dialled) == (["Please hold."], route.fallback)


async def test_a_stream_that_no_webhook_has_announced() -> None:
    """A TwiML Bin opens the stream, or the switch was used a moment after the webhook:
    the call ends at once, and its next step is the fallback."""
    async with bridge(fallback=True, fallback_number=NUMBER) as place:
        with pytest.raises(ConnectionClosedOK):
            async with held_line(place.url):
                await until(lambda: place.metric("bridge_fallback_calls_total") == 1)
                await place.empty()
        step = await registry_of(place).next_step("CAheld")

    assert step == NextStep(Then.SORRY, NUMBER)
    assert place.model.sessions == []
    ended = 'bridge_calls_total{outcome="bridge_fallback"}'
    assert place.metric(ended) == 1


@pytest.mark.parametrize("step", [NextStep(Then.RESUME), None])
async def test_a_call_that_moves_is_sent_to_the_fallback(
    step: NextStep | None,
) -> None:
    """Another instance would have to dial the model for it."""
    async with bridge(fallback=True) as place:
        registry = registry_of(place)
        if step:
            snapshot = CallSnapshot(stream_count=1).encoded(registry.format())
            await registry.put(f"snapshot:{SID}", snapshot, 60)
        document = await asked(place.url, "/voice/next")

    assert said(document) == [spoken_texts.SORRY]


async def test_a_transfer_that_nobody_answers_ends_at_the_fallback() -> None:
    async with bridge(fallback=True) as place:
        registry = registry_of(place)
        snapshot = CallSnapshot(stream_count=1).encoded(registry.format())
        await registry.put(f"snapshot:{SID}", snapshot, 60)
        form = {"DialCallStatus": "no-answer"}
        document = await asked(place.url, "/voice/next?dialled=1", **form)

    assert said(document) == [spoken_texts.SORRY]


async def test_a_running_call_keeps_its_session_until_it_is_lost(
    server: RedisServer,
) -> None:
    """The other bridge is told. The call goes on; when its model is lost, nobody dials
    another one: the caller is connected to the number at once."""
    async with fleet(server) as it, calling(it) as sid:
        call = it.one.server.call(sid)
        assert call is not None
        await until(lambda: call._conversation.state is State.TALKING)
        await it.ask("PUT", "/fallback", {"on": True}, at=it.two)
        await until(lambda: it.one.metric("bridge_fallback_on") == 1)
        assert (await it.ask("GET", f"/calls/{sid}"))[0] == 200
        it.one.model.inject(faults.drop)
        lost = 'bridge_calls_total{outcome="model_lost"}'
        await until(lambda: it.one.metric(lost) == 1, seconds=10)
        assert len(it.one.model.sessions) == 1


async def test_a_call_that_waits_for_its_model_is_not_kept_waiting() -> None:
    """The switch is used while a call redials: it ends at once, and not after 20 s."""
    late = Behaviour(delay_updated=60.0)
    async with bridge(late, fallback_number=NUMBER, **API) as place:

        async def switch_on() -> None:
            await until(lambda: place.model.sessions)
            await switch(place, True)

        record, _ = await asyncio.gather(place.caller().call(STAY), switch_on())

    assert record.dialled == NUMBER
    assert place.metric('bridge_calls_total{outcome="model_lost"}') == 1


async def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`bridge fallback` switches a running bridge, and says who has switched it."""
    monkeypatch.chdir(tmp_path)  # no .env
    async with bridge(**API) as place:

        async def command(*words: str) -> tuple[int, list[str]]:
            words = ("fallback", *words, "--url", place.url)
            env = {"BRIDGE_API_TOKEN": TOKEN}
            done = await asyncio.to_thread(CliRunner().invoke, app, words, env=env)
            lines = done.output.splitlines()
            # Without the bridge's own log, which begins with the time.
            return done.exit_code, [it for it in lines if not it.startswith("20")]

        off = ["off: new callers are connected to the agent"]
        assert await command("status") == (0, off)
        code, lines = await command("on", "--reason", "vendor down", "--minutes", "5")
        assert (code, lines[0]) == (0, "on: new callers are sent to the fallback")
        assert [it.split(":")[0] for it in lines[1:]] == [
            *("since", "until", "by", "reason")
        ]
        assert place.metric("bridge_fallback_on") == 1
        assert (await command("status"))[1] == lines
        code, lines = await command("on", "--minutes", "0")
        assert code == 1 and "minutes" in lines[0]
        code, lines = await command("off")
        assert (code, lines[:1]) == (0, off)
        assert place.metric("bridge_fallback_on") == 0


async def test_no_call_is_placed() -> None:
    """A program that places calls learns why not, and the phone does not ring."""
    async with phones(Behaviour(), [steps.HangUpStep()], fallback=True) as (place, it):
        with pytest.raises(client.ApiError, match="The fallback is switched on"):
            await client.place_call(place.url, OUTBOUND_TOKEN, {"to": CALLEE})
        assert it.calls == {}


async def test_a_person_who_is_called_hears_no_apology() -> None:
    """The call was placed before the switch was used."""
    async with bridge(fallback=True) as place:
        document = await asked(place.url, "/voice", Direction="outbound-api")

    assert verbs(document) == ["Hangup"]


@pytest.mark.parametrize(
    "body", [{}, {"on": "yes"}, {"on": True, "minutes": 0}, {"on": True, "x": 1}]
)
async def test_wrong_requests_change_nothing(body: dict[str, Any]) -> None:
    async with bridge(**API) as place:
        with pytest.raises(client.ApiError):
            await client.set_fallback(place.url, TOKEN, body)
        assert not (await client.get_fallback(place.url, TOKEN))["on"]
