"""The wire: each new session is configured again, and the SDK sees only one session."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import msgspec
import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.server import ServerConnection, serve
from websockets.protocol import State

from bridge.core import realtime_events, realtime_requests
from bridge.model import sdk_events
from bridge.model.sdk_events import MAX_KNOWN, MAX_OPEN, failed
from bridge.model.session import dial, dialled
from bridge.model.wire import (
    EVENTS_PER_SECOND,
    MAX_UPDATES,
    SESSION_ID,
    SHORT_CHARS,
    Wire,
    updates,
)
from bridge.sim.model import Behaviour, ModelServer
from bridge.sim.realtime import faults
from bridge.websocket import model_connections
from bridge.websocket.model_connections import ModelClientConnection
from tests.support.waiting import until
from tests.websocket.test_connections import connection

pytestmark = pytest.mark.both_loops


def update(**session: Any) -> str:
    return json.dumps({"type": "session.update", "session": session})


WHOLE = {
    "type": "realtime",
    "instructions": "Be kind.",
    "tools": [],
    "audio": {"output": {"voice": "marin"}},
}
BAD = {"type": "realtime", "output_modalities": ["smell"]}


def sessions(texts: list[str]) -> list[dict[str, Any]]:
    return [json.loads(text)["session"] for text in texts]


# --- session updates ---


def test_a_full_update_replaces_earlier_updates() -> None:
    """After a handoff the next session is configured for the new agent."""
    desk = update(instructions="desk", tools=[], voice="marin")
    clerk = update(instructions="clerk", tools=[1])

    assert sessions(updates([desk], clerk)) == [{"instructions": "clerk", "tools": [1]}]


def test_fields_of_user_updates_are_kept() -> None:
    """Fields that a full update does not name are sent again to every later session."""
    mine = update(type="realtime", tracing=None, instructions="mine")
    whole = update(type="realtime", instructions="all", tools=[])

    made = updates(updates([], mine), whole)

    assert sessions(made) == [
        {"type": "realtime", "instructions": "all", "tools": []},
        {"type": "realtime", "tracing": None},
    ]
    assert updates([whole], update(speed=1.2)) == [whole, update(speed=1.2)]
    assert len(updates([update(type="realtime")], whole)) == 1, "nothing is left of it"


def test_the_kept_updates_are_bounded() -> None:
    """An application that updates its session every second does not fill the memory."""
    made: list[str] = []
    for n in range(MAX_UPDATES + 5):
        made = updates(made, update(speed=n))

    assert len(made) == MAX_UPDATES
    assert sessions(made)[-1] == {"speed": MAX_UPDATES + 4}


def test_a_lost_response_ends_for_the_sdk() -> None:
    """The SDK waits for the end of a response before it sends anything more."""
    event: Any = TypeAdapter[Any](RealtimeServerEvent).validate_json(failed("r1"))

    assert (event.type, event.response.id) == ("response.done", "r1")
    assert event.response.status == "failed"


# --- connections, one after the other ---


class Call:
    """A WireOwner that records its calls, and switches connections at once."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.told: list[tuple[Any, ...]] = []
        self.changed = asyncio.Event()
        self.on_deleted: Callable[[], None] = lambda: None
        self.newest = self.in_use = 0
        """Numbers of the connections dialled last, and in use."""

    def dial(self, seconds: float = 0.0, *, spare: bool = False) -> None:
        """Dials another connection. Without `spare`, the one in use is closed first."""
        assert self.wire is not None
        if not spare:
            self.wire.leave(self.in_use)
        self.newest += 1
        self.wire.dial(self.newest, seconds)

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None:
        assert connection == self.in_use, "an event of another connection"
        self._keep("event", msgspec.json.decode(text, type=realtime_events.Other).type)
        if isinstance(event, realtime_events.ItemDeleted):
            self.on_deleted()

    def model_misread(self, reason: str, kind: str = "") -> None:
        self._keep("misread", reason)

    def model_dialled(self, connection: int) -> None:
        assert self.wire is not None
        self._keep("dialled")
        self.wire.leave(self.in_use)
        self.in_use = connection
        self.wire.switch(connection)

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None:
        assert connection == self.newest
        self._keep("not dialled", why, fatal)

    def model_lost(self, connection: int, why: str, code: int | None) -> None:
        assert connection == self.in_use
        self._keep("lost", why, code)

    def model_stuck(self, why: str) -> None:
        self._keep("stuck", why)

    def model_limit(self, limit: str) -> None:
        self._keep("limit", limit)

    def send_to_model(self, text: str) -> None:
        assert self.wire is not None
        self.wire.post(text)

    def left(self) -> None:
        self._keep("left")

    def ask(self) -> None:
        assert self.wire is not None
        self.wire.post(realtime_requests.create_response("e"))

    def _keep(self, *what: Any) -> None:
        self.told.append(what)
        self.changed.set()

    async def until(self, *what: Any, times: int = 1) -> None:
        async with asyncio.timeout(3):
            while self.told.count(what) < times:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def wired(
    model: ModelServer, wants_raw: Callable[[], bool] = lambda: True
) -> AsyncIterator[tuple[Wire, Call, list[Any]]]:
    """A wire, its call, and what the SDK sees of it."""
    call, seen = Call(), list[Any]()

    async def interrupted(item_id: str, content_index: int) -> None:
        seen.append((item_id, content_index))

    async def sdk(wire: Wire) -> None:
        async for text in wire:
            seen.append(json.loads(text))

    async with asyncio.TaskGroup() as tasks:
        wire = call.wire = Wire(
            lambda: dialled(dial, model.url, {}),
            call,
            tasks,
            "CA1",
            interrupted,
            lambda seconds: None,
            lambda session: None,
            on_left=call.left,
            wants_raw=wants_raw,
        )
        tasks.create_task(sdk(wire), name="sdk")
        try:
            yield wire, call, seen
        finally:
            await wire.close()


async def test_the_sdk_sees_one_session_and_each_item_once() -> None:
    """Replayed items are hidden, and a response whose connection was lost gets an
    end."""
    words = {"type": "message", "role": "user", "content": []}
    item = words | {"id": "u1", "content": [{"type": "input_text", "text": "Hi"}]}
    create = json.dumps({"type": "conversation.item.create", "item": item})
    async with (
        ModelServer(Behaviour(think_seconds=5.0)) as model,
        wired(model) as (wire, call, seen),
    ):
        call.dial()
        await wire.send(update(type="realtime", instructions="Be kind."))
        await call.until("event", "session.updated")
        await wire.send(create)
        await wire.send('{"type":"response.create"}')
        await call.until("event", "response.created")
        model.inject(faults.drop)
        await call.until("lost", "lost", 1006)
        call.dial()
        await call.until("event", "session.updated", times=2)
        await wire.send(create)
        wire.interrupted("i1", 0)
        await call.until("event", "conversation.item.done", times=2)
        last = model.sessions[-1]

    assert last.session["instructions"] == "Be kind."
    types = [it["type"] for it in seen if isinstance(it, dict)]
    assert types.count("session.created") == 1
    assert types.count("conversation.item.added") == 1
    assert types.count("response.done") == 1
    assert ("i1", 0) in seen


async def again(wire: Wire, call: Call, model: ModelServer, times: int) -> None:
    """The connection is lost, and another one is open and configured."""
    model.inject(faults.drop)
    await call.until("lost", "lost", 1006, times=times)
    call.dial()
    await call.until("event", "session.updated", times=call.told.count(UPDATED) + 1)


UPDATED = ("event", "session.updated")


async def test_a_refused_update_is_not_sent_again() -> None:
    """If the server refuses an update of a handoff or of user code, the call survives a
    lost connection: the next session gets the settings before it."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        call.dial()
        await wire.send(update(**WHOLE))
        await call.until(*UPDATED)
        await wire.send(update(type="realtime", instructions="Be brief."))
        await wire.send(update(**{**WHOLE, **BAD, "instructions": "clerk"}))
        await wire.send(update(**BAD))
        await call.until(*UPDATED, times=2)
        await call.until("event", "error", times=2)
        await again(wire, call, model, 1)
        await call.until(*UPDATED, times=4)
        last = model.sessions[-1]

    assert last.session["instructions"] == "Be brief."
    assert last.session["audio"]["output"]["voice"] == "marin"
    assert last.errors_sent == []
    ids = [event["event_id"] for _, event in model.sessions[0].received]
    assert len(set(ids)) == len(ids) == 4, "each can be told from the others"
    assert all(event_id.startswith(SESSION_ID) for event_id in ids)


async def test_updates_with_the_same_event_id() -> None:
    """User code may use one id for all its updates: the newest one was refused."""
    mine = {"type": "session.update", "event_id": "mine"}
    changes = {"type": "realtime", "instructions": "Be brief."}, BAD
    async with ModelServer() as model, wired(model) as (wire, call, _):
        call.dial()
        for change in changes:
            await wire.send(json.dumps({**mine, "session": change}))
        await call.until("event", "error")
        await again(wire, call, model, 1)
        last = model.sessions[-1]

    assert last.session["instructions"] == "Be brief."
    assert [event["event_id"] for _, event in last.received] == ["mine"]


async def test_an_update_refused_temporarily_is_sent_again() -> None:
    """A server that is too busy for our configuration gets it again."""
    behaviour = Behaviour(reject_update="rate_limit_exceeded")
    async with ModelServer(behaviour) as model, wired(model) as (wire, call, _):
        call.dial()
        await wire.send(update(**WHOLE))
        await call.until("event", "error")
        model.behaviour = Behaviour()
        await again(wire, call, model, 1)
        last = model.sessions[-1]

    assert last.session["instructions"] == "Be kind."


async def test_old_updates_are_merged() -> None:
    """Updates that can no longer be refused are merged into one."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        call.dial()
        await wire.send(update(**WHOLE))
        await call.until(*UPDATED)
        for n in range(2 * MAX_UPDATES):
            await wire.send(update(type="realtime", instructions=str(n)))
        await call.until(*UPDATED, times=2 * MAX_UPDATES + 1)
        await again(wire, call, model, 1)
        await call.until(*UPDATED, times=3 * MAX_UPDATES + 1)
        last = model.sessions[-1]

    assert last.session["instructions"] == str(2 * MAX_UPDATES - 1)
    assert len(last.received) == MAX_UPDATES


async def test_on_left_is_called_once_per_connection() -> None:
    """For a lost connection, one that is redialled, and one replaced by a spare: once
    each, after the call was told."""
    async with ModelServer() as model, wired(model) as (_, call, _):
        call.dial()
        await call.until("event", "session.created")
        model.inject(faults.drop)
        await call.until("left")
        call.dial()
        await call.until("event", "session.created", times=2)
        call.dial()
        await call.until("event", "session.created", times=3)
        call.dial(spare=True)
        await call.until("event", "session.created", times=4)
        told = [it[0] for it in call.told if it[0] in ("lost", "left")]

    assert told == ["lost", "left", "left", "left"]


async def test_a_refused_connection_is_reported() -> None:
    """The call decides whether it is dialled again."""
    async with ModelServer() as model, wired(model) as (_, call, _):
        model.handshakes.answer(429)
        model.handshakes.answer(401)
        call.dial()
        await call.until("not dialled", "HTTP 429 rate_limit_exceeded", False)
        call.dial(0.01)
        await call.until("not dialled", "HTTP 401 invalid_api_key", True)
        call.dial(0.01)
        await call.until("dialled")

    assert ("lost", "closed", 1000) not in call.told, "we hung up ourselves"


async def test_a_spare_does_not_disturb_the_one_in_use() -> None:
    """The old connection is left when the new one takes over, not before."""
    async with ModelServer() as model, wired(model) as (_, call, _):
        call.dial()
        await call.until("event", "session.created")
        call.dial(spare=True)
        await call.until("event", "session.created", times=2)

    assert [it[0] for it in call.told].count("lost") == 0
    assert len(model.sessions) == 2


async def test_a_lost_connection_leaves_no_task() -> None:
    """A call that loses its model ten times has the tasks of one connection."""
    async with ModelServer() as model, wired(model) as (_, call, _):
        for n in range(3):
            call.dial()
            await call.until("event", "session.created", times=n + 1)
            model.inject(faults.drop)
            await call.until("lost", "lost", 1006, times=n + 1)
        await until(lambda: not model.active)
        names = [task.get_name() for task in asyncio.all_tasks()]

        assert [name for name in names if name.startswith("CA1 model")] == []


async def test_events_read_ahead_of_a_connection_that_is_left_are_dropped() -> None:
    """The call leaves the connection at the first event of a burst: neither the call
    nor the SDK gets the others, which belong to a session that was given up."""
    burst = [event("conversation.item.deleted", item_id=f"i{n}") for n in range(9)]

    async with ModelServer() as model, wired(model) as (wire, call, seen):
        call.dial()
        await call.until("event", "session.created")
        call.on_deleted = lambda: wire.leave(call.in_use)
        model.inject(faults.saying(*burst))
        await until(lambda: not model.active)

    kind = "conversation.item.deleted"
    assert call.told.count(("event", kind)) == 1
    assert [it["type"] for it in seen].count(kind) <= 1


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_closed_wire_leaves_no_connection(hangs: bool) -> None:
    """Also while it dials."""
    async with ModelServer() as model:
        if hangs:
            model.handshakes.leave_unanswered()
        async with wired(model) as (wire, call, _):
            call.dial()
            if not hangs:
                await call.until("event", "session.created")
            else:
                await until(lambda: model.handshakes.unanswered)
            await wire.close()
        await until(lambda: not (model.active or model.handshakes.unanswered))


@asynccontextmanager
async def deaf_model() -> AsyncIterator[str]:
    """The url of a server that accepts connections and reads nothing after the
    handshake."""

    async def stop_reading(connection: ServerConnection) -> None:
        line = connection.transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.transport.pause_reading()
        await connection.wait_closed()

    async with serve(stop_reading, "127.0.0.1", 0, close_timeout=0.1) as server:
        try:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            for connection in server.connections:
                connection.transport.abort()


@asynccontextmanager
async def deaf(tasks: asyncio.TaskGroup) -> AsyncIterator[tuple[Wire, Call]]:
    """A wire whose model reads nothing, and its call."""
    async with deaf_model() as url:
        call = Call()
        wire = call.wire = Wire(
            lambda: dialled(dial, url, {}),
            call,
            tasks,
            "CA1",
            _on_interrupted,
            lambda seconds: None,
            lambda session: None,
        )
        call.dial()
        await call.until("dialled")
        yield wire, call
        await wire.close()


async def test_the_data_that_waits_for_the_model_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that reads nothing cannot make the bridge's memory grow: the connection
    is lost, and nothing is written to it any more."""
    monkeypatch.setattr(model_connections, "MAX_UNSENT_BYTES", 1_000_000)
    async with asyncio.TaskGroup() as tasks, deaf(tasks) as (wire, call):
        for _ in range(200):
            wire.post(realtime_requests.append("A" * 100_000))

        assert call.told[1:] == [("lost", "stuck", None)]


async def test_a_new_connection_that_is_lost_while_it_is_configured() -> None:
    """A connection that takes no data gets more settings than may wait: the call dials
    another one, and does not fail."""
    socket, transport = connection(masked=False, max_unsent=1000)
    async with asyncio.TaskGroup() as tasks:
        call = Call()
        wire = Wire(
            lambda: dialled(dial, "", {}),
            call,
            tasks,
            "CA1",
            _on_interrupted,
            lambda seconds: None,
            lambda session: None,
        )
        for number in range(3):
            wire.put(update(instructions=str(number) * 600))
        socket.paused, transport.unread = True, 900
        wire.use(0, socket)
        assert call.told == [("lost", "stuck", None)]
        socket.connection_lost(None)


async def test_a_model_that_reads_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call dials another connection after SEND_SECONDS, not after a minute of
    silence."""
    monkeypatch.setattr(model_connections, "SEND_SECONDS", 0.1)
    async with asyncio.TaskGroup() as tasks, deaf(tasks) as (wire, call):
        for _ in range(100):
            wire.post(realtime_requests.append("A" * 100_000))
        await call.until("lost", "stuck", None)


class Over(Exception):
    """Ends the call of a test, like an error of the bridge."""


@pytest.mark.parametrize("how", ["left", "left at the end", "closed", "cut off"])
async def test_a_connection_whose_server_reads_nothing_is_closed(how: str) -> None:
    """Its descriptor is free within two seconds, however the call leaves the
    connection; TCP alone would keep it for hours."""
    async with deaf_model() as url:
        connection = await dial(url, {})
        assert isinstance(connection, ModelClientConnection)
        line = connection.transport.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as tasks:
                wire = Wire(
                    lambda: dialled(dial, url, {}),
                    Call(),
                    tasks,
                    "CA1",
                    _on_interrupted,
                    lambda seconds: None,
                    lambda session: None,
                )
                wire.use(1, connection)
                for _ in range(50):
                    wire.post(realtime_requests.append("A" * 100_000))
                await until(connection.transport.get_write_buffer_size)
                began = monotonic()
                await leave(wire, how)
        await until(lambda: connection.state is State.CLOSED, 2, "the close")
        assert monotonic() - began < 2
        assert line.fileno() == -1


async def leave(wire: Wire, how: str) -> None:
    match how:
        case "left":
            wire.leave(1)
        case "left at the end":
            wire.leave(1)
            raise Over
        case "closed":
            await wire.close()
        case "cut off":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wire.close()


async def _on_interrupted(item_id: str, content_index: int) -> None: ...


# --- limits ---


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, "event_id": "e", **fields})


def taken(seen: list[Any], number: int) -> bool:
    return len(seen) == number


async def test_the_queue_to_the_sdk_is_bounded_in_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few large events can use as much memory as many small ones."""
    monkeypatch.setattr(sdk_events, "MAX_WAITING_CHARS", 10_000)
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        words = event("response.output_text.delta", delta="x" * 1000)
        for n in range(3):
            for _ in range(8):
                wire.take(call.in_use, words)
            await until(partial(taken, seen, 8 * (n + 1)))
        assert ("stuck", "sdk_stuck") not in call.told
        for _ in range(12):
            wire.take(call.in_use, words)
        assert ("stuck", "sdk_stuck") in call.told


async def test_the_kept_ids_are_bounded() -> None:
    """Items that the SDK has seen, and responses it believes to be open."""
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        for n in range(MAX_KNOWN + 10):
            item = {"id": f"i{n}", "type": "message", "role": "user"}
            wire.take(call.in_use, event("conversation.item.added", item=item))
            wire.take(call.in_use, event("response.created", response={"id": f"r{n}"}))
            if n % 100 == 0:  # the queue to the SDK is bounded
                told = 2 * (n + 1)
                await until(lambda told=told: len(seen) == told)
        await until(lambda: len(seen) == 2 * MAX_KNOWN + 20)
        wire.connection_lost(call.in_use, "lost", 1006)
        await until(lambda: len(seen) == 2 * MAX_KNOWN + 20 + MAX_OPEN)
        wire.take(call.in_use, event("conversation.item.added", item=item))
        wire.take(
            call.in_use, event("conversation.item.added", item={**item, "id": "i0"})
        )
        await until(lambda: seen[-1].get("item", {}).get("id") == "i0")

    assert seen[-2]["type"] == "response.done", "the newest item was known"


def holds(seen: list[Any], count: int) -> bool:
    return len(seen) == count


async def test_the_sdk_is_spared_what_it_does_not_use() -> None:
    """A third of all events. Each costs more in the SDK than in the call."""
    listens = False
    known = {"type": "message", "role": "user", "content": []}
    async with (
        ModelServer() as model,
        wired(model, lambda: listens) as (wire, call, seen),
    ):
        for n, shown in ((1, 1), (2, 4)):
            item = known | {"id": f"i{n}"}
            wire.take(call.in_use, event("rate_limits.updated", rate_limits=[n]))
            wire.take(call.in_use, event("conversation.item.added", item=item))
            wire.take(call.in_use, event("conversation.item.done", item=item))
            await until(partial(holds, seen, shown))
            listens = True

    assert [(it["type"], it.get("item", {}).get("id")) for it in seen] == [
        ("conversation.item.added", "i1"),
        ("rate_limits.updated", None),
        ("conversation.item.added", "i2"),
        ("conversation.item.done", "i2"),
    ]
    assert [kind for _, kind in call.told].count("conversation.item.done") == 2


async def test_events_the_sdk_cannot_parse_are_hidden() -> None:
    """Its parser rejects some numbers, which would end the session."""
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        wire.take(
            call.in_use,
            '{"type":"rate_limits.updated","rate_limits":' + "9" * 5000 + "}",
        )
        wire.take(call.in_use, event("rate_limits.updated", rate_limits=[]))
        await until(lambda: seen)

    assert [it["rate_limits"] for it in seen] == [[]]
    assert ("misread", "event that the SDK cannot read") in call.told


@pytest.mark.parametrize("worst", ["[" * 400 + "]" * 400, "9" * 800, "[" + "{}," * 270])
async def test_a_small_delta_needs_no_search(worst: str) -> None:
    """Whatever a delta of this size has in it, the SDK reads it at once."""
    worst = worst.removesuffix(",") + ("]" if worst.endswith(",") else "")
    ids = {"item_id": "i", "response_id": "r", "content_index": 0}
    text = event("response.output_audio_transcript.delta", delta="a", **ids)
    text = text.removesuffix("}") + f',"x":{worst}}}'
    assert len(text) < SHORT_CHARS
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        wire.take(call.in_use, text)
        await until(lambda: seen)

    assert call.told == [("event", "response.output_audio_transcript.delta")]


async def test_a_flood_is_reported_once() -> None:
    """It ends the call, and no later event is decoded."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        began = monotonic()
        within_limits = [wire.is_within_limits("{}") for _ in range(25_000)]
        allowed = 20_000 + EVENTS_PER_SECOND * (monotonic() - began)

    assert within_limits.count(True) == pytest.approx(allowed, abs=200)
    assert call.told == [("limit", "model_flood"), ("stuck", "flood")]


LISTS: dict[str, Any] = {
    "parts": {"type": "message", "role": "user", "content": [{}] * 100_000},
    "tools": {"type": "mcp_list_tools", "server_label": "s", "tools": [1] * 100_000},
    "deep": {"type": "message", "role": "user", "content": [[[{}] * 90] * 90] * 20},
}


@pytest.mark.parametrize("kind", LISTS)
async def test_an_event_with_many_parts_is_hidden_from_the_sdk(kind: str) -> None:
    """The SDK would process them for seconds, in which no call goes on."""
    item = {"id": "i", **LISTS[kind]}
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        wire.take(call.in_use, event("conversation.item.done", item=item))
        wire.take(call.in_use, event("rate_limits.updated", rate_limits=[]))
        await until(lambda: seen)

    assert [it["type"] for it in seen] == ["rate_limits.updated"]
    assert ("limit", "model_bytes") in call.told
    assert ("misread", "event too large") in call.told


TWO_MB: dict[str, str] = {
    "lists": "[" + "[]," * 660_000 + "1]",
    "numbers": "[" + "1.5," * 490_000 + "1]",
    "one object": "{" + ",".join(f'"k{n}":1' for n in range(170_000)) + "}",
}


@pytest.mark.parametrize("kind", TWO_MB)
async def test_an_event_that_takes_long_to_decode_is_not_decoded(kind: str) -> None:
    """It would hold the loop for up to a second, in which no call goes on. Many of them
    are a flood."""
    text = f'{{"type":"response.done","event_id":"e","usage":{TWO_MB[kind]}}}'
    async with ModelServer() as model, wired(model) as (wire, call, _):
        assert not wire.is_within_limits(text)
        assert call.told == [("limit", "model_bytes"), ("misread", "event too large")]
        result = json.dumps({"output": json.dumps([[1, 2]] * 90_000)})
        assert wire.is_within_limits(result), "a string is decoded quickly"
        small = text[:70] + TWO_MB[kind][:90_000]
        for _ in range(60):
            wire.is_within_limits(small if kind == "lists" else text)

    assert ("stuck", "flood") in call.told


async def test_many_events_of_many_parts_are_a_flood() -> None:
    """A server that keeps the SDK busy counts as one that sends without end."""
    item = {"id": "i", "type": "message", "role": "user", "content": [{}] * 4000}
    async with ModelServer() as model, wired(model) as (wire, call, _):
        for _ in range(60):
            wire.take(call.in_use, event("conversation.item.done", item=item))

    assert ("limit", "model_flood") in call.told and ("stuck", "flood") in call.told
