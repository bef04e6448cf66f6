"""Requests between instances on a real Redis: each is carried out at most once, only
for an instance that has the fleet's key, and always gets an answer or a reason."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from bridge.agent.live import CallOver, LiveCall
from bridge.app.background_tasks import BackgroundTasks
from bridge.fleet import MAX_DIRECT_BYTES, CallEntry, keys, requests
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.redis import RedisRegistry
from bridge.fleet.requests import (
    MAX_BODY_BYTES,
    Answer,
    FleetRequests,
    RemoteRequest,
    Unanswered,
)
from bridge.fleet.signing import FleetKey
from bridge.http.api.event_relay import EventTickets
from bridge.http.api.owners import Owners
from bridge.http.api.problems import Problem
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import instance
from tests.support.call_control import FACTS, FakeCallControl, live_call
from tests.support.waiting import until

SECRET = "the token of all bridges"
SID = FACTS.call_sid
ASK = RemoteRequest("hang_up", SID, "argument", b'{"a": 1}')
DONE = Answer(200, b"done", "text/plain", {"Retry-After": "1"})


@dataclass
class Asking:
    """One instance, and what it was asked to do."""

    registry: RedisRegistry
    requests: FleetRequests
    asked: list[RemoteRequest] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)
    answer: Answer = DONE
    free: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, request: RemoteRequest) -> Answer:
        self.asked.append(request)
        await self.free.wait()
        return self.answer


@asynccontextmanager
async def asking(server: RedisServer, secret: str = SECRET) -> AsyncIterator[Asking]:
    refused: list[str] = []
    hits: list[str] = []
    async with instance(server.url) as one, BackgroundTasks(0.0) as tasks:
        made = FleetRequests(
            one.registry, FleetKey(secret), tasks.start, refused.append, hits.append
        )
        it = Asking(one.registry, made, refused=refused, hits=hits)
        made.serve = it.serve
        it.free.set()
        try:
            yield it
        finally:
            made.close()


@asynccontextmanager
async def pair(
    server: RedisServer, second: str = SECRET
) -> AsyncIterator[list[Asking]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(asking(server, secret))
            for secret in (SECRET, second)
        ]


async def unanswered(one: Asking, to: str, seconds: float = 5.0) -> tuple[str, bool]:
    with pytest.raises(Unanswered) as error:
        await one.requests.ask(to, ASK, seconds)
    return error.value.why, error.value.maybe


class Recorder:
    """Somebody who reads all channels of this Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._pubsub = server.client.pubsub()
        self._pubsub.psubscribe(f"{keys.REQUESTS}*")

    def recorded(self, to: Asking) -> list[bytes]:
        """What was sent to the instance."""
        found = []
        while (message := self._pubsub.get_message(timeout=0.2)) is not None:
            channel = f"{keys.REQUESTS}{to.registry.id}".encode()
            if message["type"] == "pmessage" and message["channel"] == channel:
                found.append(message["data"])
        return found


def send(server: RedisServer, to: Asking, message: bytes) -> None:
    server.client.publish(f"{keys.REQUESTS}{to.registry.id}", message)


async def test_a_request_is_answered(server: RedisServer) -> None:
    """The other instance gets the whole request, and the sender the whole answer."""
    async with pair(server) as [one, two]:
        two.answer = Answer(422, b"x" * 2_000_000, "text/plain", {"A": "b"})
        answer = await one.requests.ask(two.registry.id, ASK, 5.0)

    assert (two.asked, answer) == ([ASK], two.answer)
    assert one.refused == two.refused == one.hits == two.hits == []


async def test_a_recorded_request_is_not_carried_out_again(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody with access to Redis sends a genuine request again: at once, after it
    has expired, and to another instance."""
    monkeypatch.setattr(requests, "ACCEPT_SECONDS", 1.0)
    recorder = Recorder(server)
    async with pair(server) as [one, two]:
        await one.requests.ask(two.registry.id, ASK, 5.0)
        [recorded] = recorder.recorded(two)
        send(server, two, recorded)
        send(server, one, recorded)
        await until(lambda: two.refused == one.refused == ["fleet_message"])
        late = two.registry.clock() + 1.0
        await until(lambda: two.registry.clock() > late)
        send(server, two, recorded)
        await until(lambda: len(two.refused) == 2)

    assert (two.asked, one.asked) == ([ASK], [])


async def test_a_message_without_the_key_has_no_effect(server: RedisServer) -> None:
    """Noise, a message that is too large, an instance with another secret."""
    async with pair(server, second="another token") as [one, two]:
        send(server, one, b"noise")
        send(server, one, FleetKey(SECRET).sign(b"message", b"no msgpack"))
        send(server, one, FleetKey(SECRET).sign(b"other purpose", b"\x80"))
        await until(lambda: len(one.refused) == 3)
        send(server, one, b"x" * (MAX_DIRECT_BYTES + 1))
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(requests, "ACCEPT_SECONDS", 0.2)
            patch.setattr(requests, "LATE_SECONDS", 0.1)
            assert await unanswered(two, one.registry.id) == ("unaccepted", True)

    assert (one.asked, one.refused) == ([], ["fleet_message"] * 4)


async def test_a_flood_is_bounded(server: RedisServer) -> None:
    """Messages beyond the rate are dropped before their signature is computed."""
    async with asking(server) as one:
        for _ in range(int(requests.MESSAGES_BURST) + 500):
            send(server, one, b"noise")
        await until(lambda: "fleet_rate" in one.hits)
        assert set(one.refused) == {"fleet_message"}


async def test_an_instance_that_is_gone(server: RedisServer) -> None:
    """Nobody listens: the sender knows at once that nothing was done."""
    async with asking(server) as one:
        assert await unanswered(one, "host-0") == ("gone", False)


async def test_an_instance_is_lost_while_it_works(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender does not wait for the whole time limit, and does not claim that
    nothing was done."""
    monkeypatch.setattr(requests, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(requests, "LATE_SECONDS", 0.1)
    async with asking(server) as one, asyncio.TaskGroup() as tasks:
        async with asking(server) as two:
            two.free.clear()
            waiting = tasks.create_task(unanswered(one, two.registry.id, 60.0))
            await until(lambda: two.asked)
        assert await waiting == ("lost", True)


async def test_an_answer_that_is_late(server: RedisServer) -> None:
    async with pair(server) as [one, two]:
        two.free.clear()
        assert await unanswered(one, two.registry.id, 0.3) == ("late", True)


async def test_redis_is_away(server: RedisServer) -> None:
    """Nothing is sent, so nothing was done."""
    async with pair(server) as [one, two]:
        server.stop()
        await until(lambda: not one.registry._up)
        assert await unanswered(one, two.registry.id) == ("registry", False)


async def test_too_many_requests_at_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request beyond the limit is refused at once, and carried out by nobody."""
    monkeypatch.setattr(requests, "MAX_RUNNING", 1)
    async with pair(server) as [one, two], asyncio.TaskGroup() as tasks:
        two.free.clear()
        first = tasks.create_task(one.requests.ask(two.registry.id, ASK, 5.0))
        await until(lambda: two.asked)
        answer = await one.requests.ask(two.registry.id, ASK, 5.0)
        assert (answer.status, two.hits) == (429, ["fleet_rate"])
        two.free.set()
        assert (await first).status == 200
    assert two.asked == [ASK]


async def test_sizes_are_bounded(server: RedisServer) -> None:
    """An answer that is too large becomes an answer that says so; a request that is too
    large is not sent."""
    noise = b"".join(
        n.to_bytes(4, "big") + n.to_bytes(2, "little") for n in range(60000)
    )
    async with pair(server) as [one, two]:
        for body in (bytes(MAX_BODY_BYTES + 1), _incompressible()):
            two.answer = Answer(200, body)
            assert await one.requests.ask(two.registry.id, ASK, 5.0) == Answer(507)
            with pytest.raises(Unanswered) as error:
                await one.requests.ask(
                    two.registry.id, RemoteRequest("a", SID, "", body), 5.0
                )
            assert (error.value.why, error.value.maybe) == ("too-large", False)
        two.answer = Answer(200, noise)
        assert (await one.requests.ask(two.registry.id, ASK, 5.0)).body == noise


def _incompressible() -> bytes:
    return random.Random(1).randbytes(MAX_DIRECT_BYTES)


async def test_a_memory_registry_has_no_other_instance() -> None:
    registry = MemoryRegistry()
    entry = CallEntry(SID, "MZ1", 1.0)
    await registry.opened(entry)

    assert await registry.owner(SID) == entry
    assert await registry.owner("CA0") is None
    assert await registry.send("other", b"") is False
    assert await registry.instances() == []


# --- the owner of a call ---


class Moves(FakeCallControl):
    """A call that ends, because another instance takes it, while an action waits."""

    async def _answer(self, *asked: Any) -> bool:
        self.asked.append(asked)
        await self.free.wait()
        raise CallOver


async def no_address() -> None:
    return None


def owners(it: Asking, live: Callable[[str], LiveCall | None]) -> Owners:
    made = Owners(live, it.registry, it.requests, EventTickets(no_address))
    it.requests.serve = made.serve
    return made


@asynccontextmanager
async def moving(server: RedisServer) -> AsyncIterator[tuple[Any, ...]]:
    """A call that is on `two` at first, and then on `three`; `one` is asked."""
    async with pair(server) as [one, two], asking(server) as three:
        before, after = Moves(), FakeCallControl()
        async with live_call(before) as here, live_call(after) as there:
            ask = owners(one, lambda sid: None)
            owners(two, lambda sid: here if sid == SID else None)
            owners(three, lambda sid: there if sid == SID else None)
            await two.registry.opened(CallEntry(SID, "MZ1", 1.0))
            before.free.clear()

            async def move() -> None:
                await until(lambda: before.asked)
                await three.registry.opened(CallEntry(SID, "MZ2", 2.0))
                before.free.set()

            yield ask, move, before, after


async def test_an_action_follows_a_call_that_moves(server: RedisServer) -> None:
    """The first instance loses the call before it has hung up: the second one hangs up,
    and only that one."""
    async with moving(server) as (ask, move, before, after):
        answer, _ = await asyncio.gather(ask.run(RemoteRequest("hang_up", SID)), move())

    assert answer.status == 200
    assert before.asked == after.asked == [("hang_up",)]


async def test_keys_are_not_pressed_twice(server: RedisServer) -> None:
    """Some keys may have been pressed when the call moved: the client decides."""
    keys = RemoteRequest("send_digits", SID, body=b'{"digits": "12"}')
    async with moving(server) as (ask, move, _, after):
        answer, _ = await asyncio.gather(ask.run(keys), move())

    assert (answer.status, after.asked) == (410, [])


async def test_an_operation_that_an_owner_does_not_know(server: RedisServer) -> None:
    """A newer version asks for something that this version does not have."""
    async with moving(server) as (ask, _, before, __):
        answer = await ask.run(RemoteRequest("fly", SID))

    assert (answer.status, before.asked) == (501, [])


async def test_an_owner_without_an_address(server: RedisServer) -> None:
    async with moving(server) as (ask, _, __, ___):
        answer = await ask.run(RemoteRequest("open_events", SID))

    assert answer.status == 502 and b"BRIDGE_ADVERTISE_URL" in answer.body


async def test_no_call_is_reported_at_once(server: RedisServer) -> None:
    async with pair(server) as [one, _]:
        with pytest.raises(Problem) as error:
            await owners(one, lambda sid: None).run(RemoteRequest("hang_up", "CA0"))

    assert (error.value.status, error.value.kind) == (404, "no-call")
