"""The wire: what makes a session ours is made again with each, and the SDK sees one."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import msgspec
import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from bridge.core import realtime_events
from bridge.model import wire as wire_file
from bridge.model.session import dial, dialled
from bridge.model.wire import (
    EVENTS_PER_SECOND,
    MAX_KNOWN,
    MAX_OPEN,
    MAX_OUT,
    MAX_UPDATES,
    SESSION_ID,
    Wire,
    failed,
    updates,
)
from bridge.sim.model import Behaviour, ModelServer
from bridge.sim.realtime import faults


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


# --- what makes a session ours ---


def test_a_whole_configuration_takes_the_place_of_the_one_before() -> None:
    """After a handoff another session is the clerk's, and not the desk's."""
    desk = update(instructions="desk", tools=[], voice="marin")
    clerk = update(instructions="clerk", tools=[1])

    assert sessions(updates([desk], clerk)) == [{"instructions": "clerk", "tools": [1]}]


def test_a_change_of_the_users_own_lasts() -> None:
    """What a configuration does not name is made again in every session to come."""
    mine = update(type="realtime", tracing=None, instructions="mine")
    whole = update(type="realtime", instructions="all", tools=[])

    made = updates(updates([], mine), whole)

    assert sessions(made) == [
        {"type": "realtime", "instructions": "all", "tools": []},
        {"type": "realtime", "tracing": None},
    ]
    assert updates([whole], update(speed=1.2)) == [whole, update(speed=1.2)]
    assert len(updates([update(type="realtime")], whole)) == 1, "nothing is left of it"


def test_changes_without_end_are_kept_in_bounds() -> None:
    """An application that changes its session every second costs no memory."""
    made: list[str] = []
    for n in range(MAX_UPDATES + 5):
        made = updates(made, update(speed=n))

    assert len(made) == MAX_UPDATES
    assert sessions(made)[-1] == {"speed": MAX_UPDATES + 4}


def test_an_answer_whose_connection_is_gone_ends_as_a_servers_would() -> None:
    """The SDK waits for the end of an answer before it sends anything more."""
    event: Any = TypeAdapter[Any](RealtimeServerEvent).validate_json(failed("r1"))

    assert (event.type, event.response.id) == ("response.done", "r1")
    assert event.response.status == "failed"


# --- connections, one after the other ---


class Call:
    """bridge.model.wire.Line that keeps what it is told, and switches at once."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.told: list[tuple[Any, ...]] = []
        self.changed = asyncio.Event()

    def model_event(self, event: realtime_events.ServerEvent, text: str) -> None:
        self._keep("event", msgspec.json.decode(text, type=realtime_events.Other).type)

    def model_misread(self, reason: str) -> None:
        self._keep("misread", reason)

    def model_dialled(self) -> None:
        assert self.wire is not None
        self._keep("dialled")
        self.wire.switch()

    def model_not_dialled(self, why: str, fatal: bool) -> None:
        self._keep("not dialled", why, fatal)

    def model_lost(self, why: str, code: int | None) -> None:
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
        self.wire.post(realtime_events.create_response("e"))

    def _keep(self, *what: Any) -> None:
        self.told.append(what)
        self.changed.set()

    async def until(self, *what: Any, times: int = 1) -> None:
        async with asyncio.timeout(3):
            while self.told.count(what) < times:
                self.changed.clear()
                await self.changed.wait()


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(2):
        while not happened():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@asynccontextmanager
async def wired(model: ModelServer) -> AsyncIterator[tuple[Wire, Call, list[Any]]]:
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
        )
        tasks.create_task(sdk(wire), name="sdk")
        try:
            yield wire, call, seen
        finally:
            await wire.close()


async def test_the_sdk_sees_one_session_and_each_item_once() -> None:
    """Replayed items are no news; an answer that was cut has an end."""
    words = {"type": "message", "role": "user", "content": []}
    item = words | {"id": "u1", "content": [{"type": "input_text", "text": "Hi"}]}
    create = json.dumps({"type": "conversation.item.create", "item": item})
    async with (
        ModelServer(Behaviour(think_seconds=5.0)) as model,
        wired(model) as (wire, call, seen),
    ):
        wire.dial(0.0)
        await wire.send(update(type="realtime", instructions="Be kind."))
        await call.until("event", "session.updated")
        await wire.send(create)
        await wire.send('{"type":"response.create"}')
        await call.until("event", "response.created")
        model.inject(faults.drop)
        await call.until("lost", "lost", 1006)
        wire.dial(0.0)
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
    """The connection is lost, and there is another, configured."""
    model.inject(faults.drop)
    await call.until("lost", "lost", 1006, times=times)
    wire.dial(0.0)
    await call.until("event", "session.updated", times=call.told.count(UPDATED) + 1)


UPDATED = ("event", "session.updated")


async def test_a_change_that_was_refused_is_not_made_again() -> None:
    """After a handoff, or a change of the user's, that the server would not have, the
    call lasts over a loss: the next session is what the last one was."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
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


async def test_names_of_the_users_own_for_changes() -> None:
    """The same for all: of those the newest was refused."""
    mine = {"type": "session.update", "event_id": "mine"}
    changes = {"type": "realtime", "instructions": "Be brief."}, BAD
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
        for change in changes:
            await wire.send(json.dumps({**mine, "session": change}))
        await call.until("event", "error")
        await again(wire, call, model, 1)
        last = model.sessions[-1]

    assert last.session["instructions"] == "Be brief."
    assert [event["event_id"] for _, event in last.received] == ["mine"]


async def test_a_change_that_was_refused_for_a_moment() -> None:
    """A server that is too busy for our configuration gets it again."""
    behaviour = Behaviour(reject_update="rate_limit_exceeded")
    async with ModelServer(behaviour) as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
        await wire.send(update(**WHOLE))
        await call.until("event", "error")
        model.behaviour = Behaviour()
        await again(wire, call, model, 1)
        last = model.sessions[-1]

    assert last.session["instructions"] == "Be kind."


async def test_changes_without_end_are_made_again_in_bounds() -> None:
    """Those that can be refused no more count for good."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
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


async def test_who_has_work_in_a_session_learns_that_it_is_gone() -> None:
    """Lost, hung up for another, or left for a spare: once each, after the call."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
        await call.until("event", "session.created")
        model.inject(faults.drop)
        await call.until("left")
        wire.dial(0.0)
        await call.until("event", "session.created", times=2)
        wire.dial(0.0)
        await call.until("event", "session.created", times=3)
        wire.dial(0.0, spare=True)
        await call.until("event", "session.created", times=4)
        told = [it[0] for it in call.told if it[0] in ("lost", "left")]

    assert told == ["lost", "left", "left", "left"]


async def test_a_refusal_is_told_and_dialled_again() -> None:
    """Whether it may pass is for the call to know."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        model.handshakes.answer(429)
        model.handshakes.answer(401)
        wire.dial(0.0)
        await call.until("not dialled", "HTTP 429 rate_limit_exceeded", False)
        wire.dial(0.01)
        await call.until("not dialled", "HTTP 401 invalid_api_key", True)
        wire.dial(0.01)
        await call.until("dialled")

    assert ("lost", "closed", 1000) not in call.told, "we hung up ourselves"


async def test_a_spare_does_not_disturb_the_one_in_use() -> None:
    """The old connection is left when the new one takes over, not before."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
        await call.until("event", "session.created")
        wire.dial(0.0, spare=True)
        await call.until("event", "session.created", times=2)

    assert [it[0] for it in call.told].count("lost") == 0
    assert len(model.sessions) == 2


async def test_a_lost_connection_leaves_nothing() -> None:
    """A call that loses its model ten times has the tasks of one connection."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        for n in range(3):
            wire.dial(0.0)
            await call.until("event", "session.created", times=n + 1)
            model.inject(faults.drop)
            await call.until("lost", "lost", 1006, times=n + 1)
        await until(lambda: not model.active)
        names = [task.get_name() for task in asyncio.all_tasks()]

        assert [name for name in names if name.startswith("CA1 model")] == []


async def test_a_model_that_takes_nothing_is_heard_no_more() -> None:
    """What it still says is of a session that was given up."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
        await call.until("event", "session.created")
        for _ in range(MAX_OUT + 1):
            wire.post(realtime_events.append("AAAA"))

        assert [it[1] for it in call.told if it[0] == "lost"] == ["stuck"]
        await until(lambda: not model.active)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_wire_that_is_closed_leaves_nothing(hangs: bool) -> None:
    """Also while it dials: a call that is over costs no connection."""
    async with ModelServer() as model:
        if hangs:
            model.handshakes.leave_unanswered()
        async with wired(model) as (wire, call, _):
            wire.dial(0.0)
            if not hangs:
                await call.until("event", "session.created")
            else:
                await until(lambda: model.handshakes.unanswered)
            await wire.close()
        await until(lambda: not (model.active or model.handshakes.unanswered))


# --- how much is borne ---


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, "event_id": "e", **fields})


async def test_a_model_that_takes_no_bytes_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few events may be as much memory as many."""
    monkeypatch.setattr(wire_file, "MAX_WAITING_CHARS", 10_000)
    async with ModelServer() as model, wired(model) as (wire, call, _):
        wire.dial(0.0)
        await call.until("event", "session.created")
        for _ in range(20):
            wire.post(realtime_events.append("AAAA" * 100))
            await asyncio.sleep(0)
        assert not [it for it in call.told if it[0] == "lost"], "all was sent"
        for _ in range(30):
            wire.post(realtime_events.append("AAAA" * 100))

        assert [it[1] for it in call.told if it[0] == "lost"] == ["stuck"]


def taken(seen: list[Any], number: int) -> bool:
    return len(seen) == number


async def test_an_sdk_that_takes_no_bytes_is_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So may what it has not taken."""
    monkeypatch.setattr(wire_file, "MAX_WAITING_CHARS", 10_000)
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        words = event("response.output_text.delta", delta="x" * 1000)
        for n in range(3):
            for _ in range(8):
                wire.take(words)
            await until(partial(taken, seen, 8 * (n + 1)))
        assert ("stuck", "sdk_stuck") not in call.told
        for _ in range(12):
            wire.take(words)
        assert ("stuck", "sdk_stuck") in call.told


async def test_ids_without_end_are_not_kept() -> None:
    """What the SDK has seen, and what it believes to be under way, has bounds."""
    async with ModelServer() as model, wired(model) as (wire, _, seen):
        for n in range(MAX_KNOWN + 10):
            item = {"id": f"i{n}", "type": "message", "role": "user"}
            wire.take(event("conversation.item.added", item=item))
            wire.take(event("response.created", response={"id": f"r{n}"}))
            if n % 100 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: len(seen) == 2 * MAX_KNOWN + 20)
        wire.connection_lost("lost", 1006)
        await until(lambda: len(seen) == 2 * MAX_KNOWN + 20 + MAX_OPEN)
        wire.take(event("conversation.item.added", item=item))
        wire.take(event("conversation.item.added", item={**item, "id": "i0"}))
        await until(lambda: seen[-1].get("item", {}).get("id") == "i0")

    assert seen[-2]["type"] == "response.done", "the newest item was known"


async def test_what_the_sdk_cannot_read_is_kept_from_it() -> None:
    """Numbers that its parser does not take: the session would end of them."""
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        wire.take('{"type":"rate_limits.updated","rate_limits":' + "9" * 5000 + "}")
        wire.take(event("rate_limits.updated", rate_limits=[]))
        await until(lambda: seen)

    assert [it["rate_limits"] for it in seen] == [[]]
    assert ("misread", "event that the SDK cannot read") in call.told


async def test_a_flood_is_told_of_once() -> None:
    """The call ends of it; nothing that still comes is looked into."""
    async with ModelServer() as model, wired(model) as (wire, call, _):
        began = monotonic()
        bears = [wire.bears("{}") for _ in range(25_000)]
        allowed = 20_000 + EVENTS_PER_SECOND * (monotonic() - began)

    assert bears.count(True) == pytest.approx(allowed, abs=200)
    assert call.told == [("limit", "model_flood"), ("stuck", "flood")]


LISTS: dict[str, Any] = {
    "parts": {"type": "message", "role": "user", "content": [{}] * 100_000},
    "tools": {"type": "mcp_list_tools", "server_label": "s", "tools": [1] * 100_000},
    "deep": {"type": "message", "role": "user", "content": [[[{}] * 90] * 90] * 20},
}


@pytest.mark.parametrize("kind", LISTS)
async def test_an_event_of_many_parts_is_kept_from_the_sdk(kind: str) -> None:
    """It would look at them for seconds, in which no call goes on."""
    item = {"id": "i", **LISTS[kind]}
    async with ModelServer() as model, wired(model) as (wire, call, seen):
        wire.take(event("conversation.item.done", item=item))
        wire.take(event("rate_limits.updated", rate_limits=[]))
        await until(lambda: seen)

    assert [it["type"] for it in seen] == ["rate_limits.updated"]
    assert ("limit", "model_bytes") in call.told
    assert ("misread", "event too large") in call.told


async def test_many_events_of_many_parts_are_a_flood() -> None:
    """A server that keeps the SDK busy is given up as one that sends without end."""
    item = {"id": "i", "type": "message", "role": "user", "content": [{}] * 4000}
    async with ModelServer() as model, wired(model) as (wire, call, _):
        for _ in range(60):
            wire.take(event("conversation.item.done", item=item))

    assert ("limit", "model_flood") in call.told and ("stuck", "flood") in call.told
