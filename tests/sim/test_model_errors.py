"""Errors, restored history, and scripted faults of the fake model."""

import asyncio
import json
import time
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bridge.sim.model import (
    Behaviour,
    ModelServer,
    PlayRuler,
)
from tests.sim.realtime_client import (
    PCMU,
    QUICK,
    WEATHER,
    Client,
    Event,
    talking,
    until_active,
)
from tests.support.waiting import until

REFUSALS: list[tuple[Event, str | None, str | None]] = [
    ({"type": "response.cancel"}, "response_cancel_not_active", None),
    (
        {"type": "conversation.item.delete", "item_id": "no"},
        "item_delete_invalid_item_id",
        "item_id",
    ),
    (
        {"type": "conversation.item.retrieve", "item_id": "no"},
        "item_retrieve_invalid_item_id",
        "item_id",
    ),
    (
        {"type": "input_audio_buffer.append", "audio": "%%%"},
        "invalid_value",
        "audio.audio",
    ),
    (
        {"type": "input_audio_buffer.append"},
        "missing_required_parameter",
        "audio",
    ),
    ({"type": "no.such.event"}, "invalid_value", "type"),
    ({"nothing": 1}, "missing_required_parameter", "type"),
    (
        {"type": "session.update", "session": {}},
        "missing_required_parameter",
        "session.type",
    ),
    (
        {"type": "session.update", "session": {"type": "realtime", "voice": "ash"}},
        "unknown_parameter",
        "session.voice",
    ),
    (
        {
            "type": "session.update",
            "session": {
                "type": "realtime",
                "audio": {"input": {"format": {"type": "audio/pcmu", "rate": 8000}}},
            },
        },
        "unknown_parameter",
        "session.audio.input.format.rate",
    ),
    (
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"output": {"speed": 4}}},
        },
        "invalid_value",
        "session.audio.output.speed",
    ),
    (
        {
            "type": "session.update",
            "session": {"type": "realtime", "audio": {"output": {"voice": "bob"}}},
        },
        "invalid_value",
        "session.audio.output.voice",
    ),
    (
        {"type": "session.update", "session": {"type": "realtime", "tools": "all"}},
        "invalid_type",
        "session.tools",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {"type": "function_call_output", "call_id": "no", "output": ""},
        },
        "invalid_tool_call_id",
        "item.call_id",
    ),
    (
        {
            "type": "conversation.item.create",
            "item": {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "input_text", "text": "I said"}],
            },
        },
        "invalid_value",
        "item.content[0].type",
    ),
    (
        {
            "type": "conversation.item.create",
            "previous_item_id": "no",
            "item": {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "hi"}],
            },
        },
        "item_create_invalid_item_id",
        "item_id",
    ),
]


@pytest.mark.parametrize(("event", "code", "param"), REFUSALS)
async def test_mistakes_are_answered_as_the_server_does(
    event: Event, code: str | None, param: str | None
) -> None:
    """An invalid event gets the real server's error, and the session goes on."""
    async with ModelServer() as server, Client.of(server) as client:
        before = (await client.until("session.created"))["session"]
        error = await client.refused(**event)
        after = (await client.configure(formats=before["audio"]["input"]["format"]))[
            "session"
        ]

        assert (error["code"], error["param"]) == (code, param)
        assert server.sessions[0].errors_sent == [error]
    assert after == before  # the session is unchanged


async def test_frames_that_are_no_json_are_answered() -> None:
    """Frames that are not JSON get an error, and the session goes on."""
    async with ModelServer() as server, Client.of(server) as client:
        await client.socket.send("{nonsense")
        first = await client.until("error")
        await client.socket.send(b"\x00\x01")
        second = await client.until("error")

    assert first["error"]["code"] == second["error"]["code"] == "invalid_json"


async def test_only_one_answer_at_a_time() -> None:
    """A second response.create during a response is refused."""
    async with talking(Behaviour(turns=[[PlayRuler(4000)]])) as (client, _):
        await client.send(type="response.create")
        await client.until("response.created")
        error = await client.refused(type="response.create")

    assert error["code"] == "conversation_already_has_active_response"


async def test_the_voice_stays_once_it_was_heard() -> None:
    """The voice cannot change after audio was sent; the whole update is refused."""
    async with talking(Behaviour(turns=[[PlayRuler(100)]], **QUICK)) as (
        client,
        session,
    ):
        output = {"voice": "cedar"}
        change = {"type": "realtime", "audio": {"output": output}, "instructions": "x"}
        await client.configure(audio={"output": output})
        await client.send(type="response.create")
        await client.until("response.done")
        output["voice"] = "ash"
        error = await client.refused(type="session.update", session=change)
        output["voice"] = "cedar"
        await client.send(type="session.update", session=change)
        await client.until("session.updated")

    assert error["code"] == "cannot_update_voice"
    assert session.session["instructions"] == "x"


async def test_an_update_changes_only_what_it_names() -> None:
    """A handoff that changes the tools leaves the audio formats unchanged."""
    vad = {"type": "server_vad", "silence_duration_ms": 200}
    async with talking(Behaviour(), input={"turn_detection": vad}) as (client, _):
        await client.send(
            type="session.update",
            session={
                "type": "realtime",
                "audio": {
                    "input": {
                        "turn_detection": {"type": "server_vad", "threshold": 0.7}
                    }
                },
                "tools": [WEATHER],
            },
        )
        session = (await client.until("session.updated"))["session"]

    assert session["audio"]["input"]["format"] == PCMU
    assert session["audio"]["output"]["format"] == PCMU
    assert session["tools"] == [WEATHER]
    detection = session["audio"]["input"]["turn_detection"]
    assert (detection["threshold"], detection["silence_duration_ms"]) == (0.7, 200)
    assert detection["interrupt_response"] is True


async def test_history_can_be_restored() -> None:
    """Items of an earlier session can be added in order, so the model knows them."""
    parts: dict[str, str] = {
        "user": "input_text",
        "assistant": "output_text",
        "system": "input_text",
    }
    async with talking(Behaviour(**QUICK)) as (client, session):
        for role, kind in parts.items():
            item: Event = {"type": "message", "role": role, "id": role}
            item |= {"content": [{"type": kind, "text": f"I am {role}"}]}
            await client.send(type="conversation.item.create", item=item)
        call = {"type": "function_call", "call_id": "c1", "name": "f"}
        call |= {"arguments": "{}", "id": "call"}
        output = {"type": "function_call_output", "call_id": "c1", "output": "5"}
        await client.send(
            type="conversation.item.create", item=call, previous_item_id="root"
        )
        await client.send(
            type="conversation.item.create",
            item=output | {"id": "output"},
            previous_item_id="call",
        )
        added = await client.until("conversation.item.done", previous_item_id="call")
        twice = await client.refused(
            type="conversation.item.create", item=call | {"id": "user"}
        )

    assert list(session.items) == ["call", "output", "user", "assistant", "system"]
    assert added["item"]["id"] == "output"
    assert twice["code"] == "item_create_duplicate_item_id"


# --- faults ------------


async def test_a_wrong_key_is_refused() -> None:
    """A wrong API key is refused at the handshake, with a readable reason."""
    async with ModelServer(api_key="secret") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(server.url, additional_headers=headers):
                    pass
            response = refused.value.response
            assert response.status_code == 401 and response.body is not None
            assert json.loads(response.body)["error"]["code"] == "invalid_api_key"
            assert response.headers["Content-Type"] == "application/json"
        for headers in ({"Authorization": "Bearer secret"}, {"api-key": "secret"}):
            async with connect(server.url, additional_headers=headers) as socket:
                assert "session.created" in str(await socket.recv())
        assert server.refused == [401, 401] and len(server.sessions) == 2


@pytest.mark.parametrize("status", [429, 503])
async def test_a_refused_handshake(status: int) -> None:
    """A model server at its limit refuses the handshake."""
    async with ModelServer(Behaviour(refuse=status)) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(server.url):
                pass
        assert refused.value.response.status_code == status
        assert not server.sessions


async def closing(behaviour: Behaviour, query: str = "") -> tuple[Client, Any, str]:
    """A session up to its end: its events, its close frame, the server's view."""
    async with ModelServer(behaviour) as server, Client.of(server, query) as client:
        with pytest.raises(ConnectionClosed) as end:
            while True:
                await client.next()
        await until_active(server, 0)
        return client, end.value.rcvd, server.sessions[0].closed or ""


async def test_an_unknown_model_is_refused_after_the_handshake() -> None:
    """An unknown model name ends the session with an error event."""
    client, close, _ = await closing(Behaviour(refuse_model=["gpt-x"]), "?model=gpt-x")

    assert client.types() == ["error"]
    assert client.events[0]["error"]["code"] == "model_not_found"
    assert close.code == 4000


async def test_sessions_drop_close_and_expire() -> None:
    """Sessions can end in every way in which a real connection ends."""
    _, dropped, seen = await closing(Behaviour(drop_after=0.05))
    assert dropped is None and seen == "dropped"
    _, closed, seen = await closing(Behaviour(close_after=(0.05, 1011, "oops")))
    assert (closed.code, closed.reason) == (1011, "oops") and seen == "server 1011 oops"
    client, expired, _ = await closing(Behaviour(expire_after=0.05))
    assert expired.code == 1001 and "maximum duration of 60 minutes" in expired.reason
    assert client.events[-1]["error"]["code"] == "session_expired"


async def test_a_frozen_model_neither_speaks_nor_answers() -> None:
    """A frozen session sends nothing and answers no ping."""
    behaviour = Behaviour(turns=[[PlayRuler(60000)]], think_seconds=0, freeze_after=1.0)
    async with ModelServer(behaviour) as server, Client.of(server) as client:
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        await until(lambda: server.sessions[0].frozen)
        sent = len(server.sessions[0].sent_deltas)
        pong = asyncio.ensure_future(await client.socket.ping())  # noqa: TID251
        await client.send(type="input_audio_buffer.clear")
        await asyncio.sleep(0.2)

        assert server.sessions[0].frozen and not pong.done()
        assert len(server.sessions[0].sent_deltas) == sent
        assert "input_audio_buffer.clear" not in [
            event["type"] for _, event in server.sessions[0].received
        ]
    assert server.active == 0


async def test_updates_may_be_rejected_ignored_or_late() -> None:
    """A bridge that relies on settings before they are confirmed can be found out."""
    server = ModelServer(Behaviour(reject_update="invalid_value"))
    async with server, Client.of(server) as client:
        update = {"session": {"type": "realtime", "instructions": "x"}}
        error = await client.refused(type="session.update", **update)
    assert error["code"] == "invalid_value"

    async with talking(Behaviour(ignore_formats=True)) as (client, session):
        formats = client.events[-1]["session"]["audio"]["output"]["format"]
        assert formats == {"type": "audio/pcm", "rate": 24000}
        assert session.session["audio"]["input"]["format"] == formats

    began = time.monotonic()
    async with talking(Behaviour(delay_updated=0.2)) as (client, _):
        assert client.at[-1] - began > 0.2


async def test_garbage_is_sent_once_the_session_is_configured() -> None:
    """Invalid frames of the server reach the client unchanged."""
    behaviour = Behaviour(garbage=["{", b"\xff\x00", '{"type":"new.event"}'])
    async with talking(behaviour) as (client, _):
        received = [await client.socket.recv() for _ in range(3)]

    assert received == list(behaviour.garbage)


async def test_a_stall_pauses_the_chosen_answers() -> None:
    """The audio stops in mid-sentence for the configured time."""
    behaviour = Behaviour(
        turns=[[PlayRuler(600)], [PlayRuler(600)]],
        stall=(0.4, 0.3),
        stall_responses=frozenset([2]),
        **QUICK,
    )
    async with talking(behaviour) as (client, session):
        for _ in range(2):
            await client.send(type="response.create")
            await client.until("response.done")

    times = [at for at, _, _ in session.sent_deltas]
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps[:2]) < 0.1
    assert gaps[3] < 0.1 and gaps[4] == pytest.approx(0.3, abs=0.08)


async def test_a_vanished_client_leaves_nothing() -> None:
    """A client that disappears ends its own session and no other."""
    before = asyncio.all_tasks()
    behaviour = Behaviour(turns=[[PlayRuler(60000)]], think_seconds=0)
    async with ModelServer(behaviour) as server, Client.of(server) as other:
        async with Client.of(server) as client:
            await client.send(type="response.create")
            await client.until("response.output_audio.delta")
            client.socket.transport.abort()
            await until_active(server, 1)
        gone = server.sessions[1]
        await other.until("session.created")
        assert gone.closed == "client 1006"
        assert gone.responses[0].status == "cancelled"
        assert not [t for t in asyncio.all_tasks() if gone.id in t.get_name()]
    assert server.active == 0
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
