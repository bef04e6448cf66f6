"""The control API reaches a call through any instance of the fleet: two bridges and a
real Redis, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from agents.realtime import RealtimeAgent
from pydantic import SecretStr
from structlog.testing import capture_logs

from bridge.agent.live import LiveCall
from bridge.fleet import NextStep, Then
from bridge.http.api import event_relay, owners
from bridge.sim.twilio import steps
from tests.e2e.bridge import AGENT, RunningBridge, bridge
from tests.fleet.redis_server import RedisServer
from tests.support.waiting import until

TOKEN = "a-token-that-all-bridges-of-the-fleet-have"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Fleet:
    """Two bridges. The call is on `one`; the client asks `two`."""

    one: RunningBridge
    two: RunningBridge
    http: aiohttp.ClientSession
    made: list[LiveCall]
    """The calls, as the agent's function got them."""

    async def ask(
        self, method: str, path: str, body: Any = None, at: RunningBridge | None = None
    ) -> tuple[int, Any]:
        url = f"{(at or self.two).url}/api{path}"
        async with self.http.request(method, url, json=body, headers=AUTH) as answer:
            text = await answer.json() if answer.content_length else None
            return answer.status, text


@asynccontextmanager
async def fleet(server: RedisServer, **of_two: Any) -> AsyncIterator[Fleet]:
    made: list[LiveCall] = []

    def agent(call: LiveCall) -> RealtimeAgent[Any]:
        made.append(call)
        return AGENT

    conf = {"redis_url": SecretStr(server.url), "api_token": SecretStr(TOKEN)}
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(bridge(agent=agent, **conf))
        other = {**conf, **of_two}
        two = await stack.enter_async_context(bridge(agent=agent, **other))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Fleet(one, two, http, made)


@asynccontextmanager
async def calling(fleet: Fleet, at: RunningBridge | None = None) -> AsyncIterator[str]:
    """A call that goes on until the test ends it; gives its SID."""
    place = at or fleet.one
    before = len(fleet.made)
    script = [steps.ListenStep(quiet_seconds=60, timeout=60)]
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(place.caller().call(script))
        await until(lambda: len(fleet.made) > before, what="the call")
        sid = fleet.made[-1].call_sid
        await until(lambda: fleet.made[-1].session, what="the session")
        yield sid
        call.cancel()


async def test_a_call_is_steered_through_another_instance(server: RedisServer) -> None:
    """Details, text, mute, history and hang-up reach the call on the other bridge, and
    give the same answers and the same errors as there."""
    async with fleet(server) as it, calling(it) as sid:
        call = f"/calls/{sid}"
        listed = (await it.ask("GET", "/calls"))[1]["calls"]
        assert [(c["call_sid"], c["here"]) for c in listed] == [(sid, False)]
        status, details = await it.ask("GET", call)
        assert (status, details["call_sid"]) == (200, sid)
        assert (await it.ask("POST", f"{call}/mute", {"on": True}))[0] == 204
        assert it.made[-1].muted
        text = {"text": "We close.", "role": "system", "respond": False}
        assert (await it.ask("POST", f"{call}/text", text))[0] == 204
        items = (await it.ask("GET", f"{call}/history"))[1]["items"]
        assert "We close." in [item["text"] for item in items]
        for path, body in (
            ("transfer", {"number": "+14155550111"}),
            ("approvals/c9", {"approve": True}),
            ("text", {"text": "  "}),
        ):
            there = await it.ask("POST", f"{call}/{path}", body, at=it.one)
            assert await it.ask("POST", f"{call}/{path}", body) == there
            assert there[0] in (403, 404, 422)
        assert await it.ask("POST", f"{call}/hang_up") == (200, {"done": True})
        await until(lambda: it.made[-1].over)
        assert (await it.ask("POST", f"{call}/mute", {"on": False}))[0] in (404, 410)


async def test_the_events_of_a_call_come_through_another_instance(
    server: RedisServer,
) -> None:
    """A client of the other bridge reads the same events, and the stream ends cleanly
    with the call."""
    async with fleet(server) as it, calling(it) as sid:
        url = f"{it.two.url}/api/calls/{sid}/events"
        async with it.http.get(url, headers=AUTH) as answer:
            assert answer.status == 200
            assert await answer.content.readline() == b": events of the call\n"
            it.made[-1].emit("mine", n=1)
            await it.ask("POST", f"/calls/{sid}/hang_up")
            rest = (await answer.content.read()).decode()
    assert rest.index("event: mine\n") < rest.index("event: call_ended\n")


class Unwritable:
    """A value in an event of the user's code that cannot be written."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_a_stream_that_breaks_at_its_source_breaks_here(
    server: RedisServer,
) -> None:
    """The call's bridge gives the stream up: the client sees a broken connection, and
    not the end of a call."""
    async with fleet(server) as it, calling(it) as sid:
        url = f"{it.two.url}/api/calls/{sid}/events"
        with capture_logs() as lines:
            async with it.http.get(url, headers=AUTH) as answer:
                await answer.content.readline()
                it.made[-1].emit("mine", value=Unwritable())
                with pytest.raises(aiohttp.ClientPayloadError):
                    await answer.content.read()
            await until(lambda: "events_source_lost" in [x["event"] for x in lines])
        assert not it.made[-1].over


async def test_a_ticket_opens_one_stream(server: RedisServer) -> None:
    """The address that one bridge gives to the other works once; nobody opens a stream
    without such an address."""
    opened: list[str] = []
    take = event_relay.EventTickets.take

    def noting(self: event_relay.EventTickets, ticket: str) -> tuple[str, bool] | None:
        opened.append(ticket)
        return take(self, ticket)

    async with fleet(server) as it, calling(it) as sid:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(event_relay.EventTickets, "take", noting)
            url = f"{it.two.url}/api/calls/{sid}/events"
            async with it.http.get(url, headers=AUTH) as answer:
                assert answer.status == 200
        for ticket in (opened[0], "a" * 32):
            own = f"{it.one.url}{event_relay.PATH}/{ticket}"
            async with it.http.get(own) as answer:
                assert answer.status == 404


async def test_an_instance_that_cannot_be_reached_is_named(server: RedisServer) -> None:
    """The address is wrong: the client gets 502 and the reason, not silence."""
    async with fleet(server) as it:
        # The port 1 of this machine: nothing listens there.
        object.__setattr__(it.two.settings, "advertise_url", "http://127.0.0.1:1")
        async with calling(it, at=it.two) as sid:
            status, problem = await it.ask("GET", f"/calls/{sid}/events", at=it.one)
    assert (status, problem["type"]) == (502, "urn:problem:bridge:owner-unreachable")
    assert "ClientConnectorError" in problem["detail"]


async def test_another_token_cannot_steer_calls(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge with another token shares the Redis: its requests are refused by the
    call's instance, and the client learns what may be wrong."""
    monkeypatch.setattr("bridge.fleet.requests.ACCEPT_SECONDS", 0.2)
    monkeypatch.setattr("bridge.fleet.requests.LATE_SECONDS", 0.2)
    other = SecretStr("the token of somebody else")
    async with fleet(server, api_token=other) as it, calling(it) as sid:
        url = f"{it.two.url}/api/calls/{sid}/hang_up"
        auth = {"Authorization": f"Bearer {other.get_secret_value()}"}
        async with it.http.post(url, headers=auth) as answer:
            assert answer.status == 504
            assert "BRIDGE_API_TOKEN" in (await answer.json())["detail"]
        assert not it.made[-1].over
        refused = it.one.metric('bridge_refusals_total{why="fleet_message"}')
        assert refused == 1


async def test_a_call_that_moves_is_steered_where_it_goes(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request comes while the call is between two bridges: it waits for the new one,
    and is carried out there, once."""
    waited: list[str] = []
    is_somewhere = owners.Owners._is_somewhere

    async def noting(self: owners.Owners, call_sid: str) -> bool:
        waited.append(call_sid)
        return await is_somewhere(self, call_sid)

    monkeypatch.setattr(owners.Owners, "_is_somewhere", noting)
    mute = {"on": True}
    async with (
        fleet(server) as it,
        calling(it) as sid,
        asyncio.TaskGroup() as tasks,
    ):
        # The entry of the old stream is gone, and the next step is to resume.
        registry = it.one.server.registry
        entry = await registry.owner(sid)
        assert entry is not None
        await registry.closed(entry, NextStep(Then.RESUME))
        asked = tasks.create_task(it.ask("POST", f"/calls/{sid}/mute", mute))
        await until(lambda: len(waited) >= 2, what="the wait for the new stream")
        await registry.opened(entry)
        assert await asked == (204, None)
        assert it.made[-1].muted


async def test_a_call_of_a_dead_instance_gets_a_clear_answer(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge was killed and its call is not continued yet: 503, nothing was done, and
    when to try again."""
    monkeypatch.setattr(owners, "MOVE_SECONDS", 0.3)
    async with fleet(server) as it:
        sid = "CA" + "d" * 32
        server.client.hset(
            f"bridge:call:{sid}",
            mapping={
                "stream": "MZ1",
                "instance": "dead-1",
                "started": "1.0",
                "since": "1.000",
            },
        )
        server.client.zadd("bridge:calls", {sid: 1})
        status, problem = await it.ask("POST", f"/calls/{sid}/hang_up")
    assert (status, problem["type"]) == (503, "urn:problem:bridge:owner-gone")


async def test_redis_is_away(server: RedisServer) -> None:
    """A call of this bridge can still be steered; for the others the answer names the
    registry."""
    async with fleet(server) as it, calling(it) as sid:
        with capture_logs() as lines:
            server.stop()
            await until(lambda: sum(x["event"] == "redis_lost" for x in lines) == 2)
        mute = {"on": True}
        assert (await it.ask("POST", f"/calls/{sid}/mute", mute, at=it.one))[0] == 204
        status, problem = await it.ask("POST", f"/calls/{sid}/mute", mute)
        assert (status, problem["type"]) == (503, "urn:problem:bridge:registry")


async def test_records_are_deleted_on_every_instance(server: RedisServer) -> None:
    """Each bridge has traces of its own; one request deletes all. Not while the call
    runs, wherever it runs."""
    async with fleet(server) as it:
        async with calling(it) as sid:
            path = f"/calls/{sid}/record"
            assert (await it.ask("DELETE", path))[0] == 409
            await it.ask("POST", f"/calls/{sid}/hang_up")
            await it.one.empty()
        assert await it.ask("DELETE", path) == (204, None)
