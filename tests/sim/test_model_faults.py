"""Injected faults of the fake model, and what a new session accepts of an old one."""

import asyncio
import base64
import json
from time import monotonic
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from bridge.sim import counting
from bridge.sim.model import (
    Behaviour,
    ModelServer,
    PlayRuler,
    RememberedItem,
    SayText,
    Turn,
    TurnContext,
)
from bridge.sim.realtime import faults
from tests.sim.realtime_client import (
    QUICK,
    WEATHER,
    Client,
    Event,
    speech,
    talking,
    until_active,
)

AT_ONCE: dict[str, Any] = {
    "think_seconds": 0.0,
    "speed": 1000.0,
    "transcribe_seconds": 0.0,
}


async def how_it_ends(client: Client) -> tuple[Any, list[str]]:
    """The server's close frame (None: a reset), and the events before it."""
    with pytest.raises(ConnectionClosed) as end:
        while True:
            await client.next()
    return end.value.rcvd, client.types()


async def test_a_fault_applies_to_every_open_session() -> None:
    """An injected fault applies to all open sessions."""
    async with (
        ModelServer() as server,
        Client.of(server) as one,
        Client.of(server) as other,
    ):
        for client in (one, other):
            await client.until("session.created")
        server.inject(faults.drop)
        ends = [await how_it_ends(client) for client in (one, other)]
        await until_active(server, 0)

        assert ends == [(None, ["session.created"])] * 2
        assert [session.closed for session in server.sessions] == ["dropped"] * 2


async def test_a_fault_applies_to_the_next_session_before_its_first_event() -> None:
    """A fault for the next session applies before its first event."""
    server = ModelServer()
    server.inject_next(faults.closing(1011, "oops"))
    server.inject_next(faults.expire)
    async with server:
        async with Client.of(server) as client:
            close, events = await how_it_ends(client)
            assert (close.code, close.reason, events) == (1011, "oops", [])
        async with Client.of(server) as client:
            close, events = await how_it_ends(client)
            assert (close.code, events) == (1001, ["error"])
            assert client.events[0]["error"]["code"] == "session_expired"
        async with Client.of(server) as client:
            await client.until("session.created")


async def test_a_frozen_session_continues_after_the_thaw() -> None:
    """After a freeze the session continues where it was and has lost nothing."""
    async with talking(Behaviour(turns=[[PlayRuler(400)]], **QUICK)) as (
        client,
        session,
    ):
        faults.freeze(session)
        await client.send(type="response.create")
        pong = asyncio.ensure_future(await client.socket.ping())  # noqa: TID251
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await client.socket.recv()
        assert session.frozen and not pong.done() and not session.responses
        faults.thaw(session)
        await client.until("response.done")
        async with asyncio.timeout(1):
            await pong

    assert len(client.audio()) == 400 * 8


async def test_audio_held_by_a_freeze_arrives_after_it() -> None:
    """The audio held during a freeze arrives after it, once and complete."""
    behaviour = Behaviour(turns=[[PlayRuler(2000)]], think_seconds=0, speed=10)
    async with talking(behaviour) as (client, session):
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        faults.freeze(session)
        await asyncio.sleep(0.3)
        sent = len(session.sent_deltas)
        assert sent < 10
        faults.thaw(session)
        await client.until("response.done")

    assert len(client.audio()) == 2000 * 8
    assert len(session.sent_deltas) == 10


async def test_a_mute_session_answers_pings() -> None:
    """A mute session answers pings, so only its silence shows the fault."""
    async with talking(Behaviour(**QUICK)) as (client, session):
        faults.mute(session)
        await client.send(type="response.create")
        async with asyncio.timeout(1):
            await (await client.socket.ping())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await client.socket.recv()

    assert session.responses  # the server reads, and has created responses
    assert not session.sent_deltas


async def test_the_next_handshakes_are_refused_as_ordered() -> None:
    """The refusals apply in order; later handshakes succeed."""
    async with ModelServer() as server:
        server.handshakes.answer(429, times=2)
        server.handshakes.answer(429, code="insufficient_quota")
        codes = []
        for _ in range(3):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(server.url):
                    pass
            assert refused.value.response.body is not None
            body = json.loads(refused.value.response.body)
            codes.append((refused.value.response.status_code, body["error"]["code"]))
        async with Client.of(server) as client:
            await client.until("session.created")

    assert codes == [
        (429, "rate_limit_exceeded"),
        (429, "rate_limit_exceeded"),
        (429, "insufficient_quota"),
    ]


async def test_a_handshake_stays_unanswered_until_the_client_gives_up() -> None:
    """The TCP connection is accepted, but the handshake gets no answer."""
    async with ModelServer() as server:
        server.handshakes.leave_unanswered()
        with pytest.raises(TimeoutError):
            async with connect(server.url, open_timeout=0.15):
                pass
        async with Client.of(server) as client:
            await client.until("session.created")
        server.handshakes.leave_unanswered()
        async with asyncio.TaskGroup() as group:
            dialling = group.create_task(not_answered(server.url))
            while not server.handshakes.unanswered:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            server.handshakes.reset()
        assert isinstance(dialling.result(), EOFError | OSError)


async def not_answered(url: str) -> BaseException | None:
    with pytest.raises(InvalidMessage) as refused:
        async with connect(url):
            pass
    return refused.value.__cause__


async def test_tcp_is_refused_for_a_while() -> None:
    """The server does not listen for a while; open sessions go on."""
    async with ModelServer() as server, Client.of(server) as before:
        await before.until("session.created")
        async with asyncio.TaskGroup() as group:
            group.create_task(server.refuse_tcp(0.3))
            await asyncio.sleep(0.05)
            with pytest.raises(OSError):
                async with connect(server.url):
                    pass
            await before.configure()
        async with Client.of(server) as after:
            await after.until("session.created")
            assert server.active == 2
    assert server.active == 0


# --- history put back ---


def message(role: str, kind: str, text: str, item_id: str) -> Event:
    content = [{"type": kind, "text": text}]
    return {"type": "message", "role": role, "id": item_id, "content": content}


@pytest.mark.parametrize(
    ("item_id", "code"),
    [("x" * 33, "string_above_max_length"), ("item.1", "invalid_value")],
)
async def test_invalid_item_ids_are_refused(item_id: str, code: str) -> None:
    """An item id that the real server would refuse is refused."""
    async with talking(Behaviour()) as (client, _):
        item = message("user", "input_text", "hi", item_id)
        error = await client.refused(type="conversation.item.create", item=item)
        item["id"] = "x" * 32
        await client.send(type="conversation.item.create", item=item)
        await client.until("conversation.item.done")

    assert (error["code"], error["param"]) == (code, "item.id")


async def test_the_model_remembers_restored_items() -> None:
    """Restored items are remembered as they were: roles, calls and results."""
    put_back: list[Event] = [
        message("user", "input_text", "What is the weather?", "u1"),
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "get_weather",
            "arguments": "{}",
            "id": "f1",
        },
        {"type": "function_call_output", "call_id": "c1", "output": "rain", "id": "f2"},
        message("assistant", "output_text", "It rains", "a1"),
        message("system", "input_text", "You were cut off.", "s1"),
    ]
    behaviour = Behaviour(turns=[[SayText("all day")]], **AT_ONCE)
    async with talking(behaviour, tools=[WEATHER]) as (client, session):
        for item in put_back:
            await client.send(type="conversation.item.create", item=item)
        await client.send(type="response.create")
        await client.until("response.done")

    told = [(it.id, it.kind, it.text, it.call_id) for it in session.conversation]
    assert told[:-1] == [
        ("u1", "user", "What is the weather?", None),
        ("f1", "function_call", "{}", "c1"),
        ("f2", "function_call_output", "rain", "c1"),
        ("a1", "assistant", "It rains", None),
        ("s1", "system", "You were cut off.", None),
    ]
    assert told[-1][1:3] == ("assistant", "all day")
    assert session.conversation[2].name == "get_weather"


async def test_a_restored_result_is_not_spoken_again() -> None:
    """A restored tool result is not read out again."""
    heard: list[TurnContext] = []

    def answer(each: TurnContext) -> Turn:
        heard.append(each)
        return [SayText("Yes.")]

    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "5"}
    async with talking(Behaviour(answer=answer, **AT_ONCE)) as (client, _):
        for item in (call, output, message("assistant", "output_text", "Five.", "a")):
            await client.send(type="conversation.item.create", item=item)
        await client.send(type="response.create")
        await client.until("response.done")

    assert not heard[0].answered


async def test_restored_audio_is_recognised() -> None:
    """A restored audio item without a transcript is recognised from its sound."""
    words = counting.utterance("caller", 7, 1, 3)
    audio = base64.b64encode(counting.sound(words)).decode()
    behaviour = Behaviour(
        answer=counting.CountingAgent(2), recogniser=counting.recognise, **AT_ONCE
    )
    async with talking(behaviour) as (client, session):
        part = {"type": "input_audio", "audio": audio}
        item = {"type": "message", "role": "user", "content": [part], "id": "u1"}
        await client.send(type="conversation.item.create", item=item)
        await client.send(type="response.create")
        await client.until("response.done")

    said = [(it.kind, it.text) for it in session.conversation]
    assert said == [("user", "c7-1-1 c7-1-2 c7-1-3"), ("assistant", "a7-1-1 a7-1-2")]
    assert session.caller_input.seconds == 1.2 and session.caller_turns == 1


async def test_turns_are_found_in_a_burst_of_audio() -> None:
    """Twenty seconds of audio in one burst: the VAD finds every turn in them."""
    turns = [counting.utterance("caller", 1, turn, 4) for turn in (1, 2, 3)]
    pause = b"\xff" * 40_000
    burst = pause.join(counting.sound(words) for words in turns) + pause
    behaviour = Behaviour(
        answer=counting.CountingAgent(), recogniser=counting.recognise, **AT_ONCE
    )
    async with talking(behaviour) as (client, session):
        audio = base64.b64encode(burst).decode()
        began = monotonic()
        await client.send(type="input_audio_buffer.append", audio=audio)
        await client.until("response.done")
        assert monotonic() - began < 1.0

    said = [counting.parse_words(it.text) for it in session.conversation]
    assert [list(words) for words in turns] == [
        words for words in said if words and words[0].speaker == "caller"
    ]


async def test_a_cut_answer_is_believed_up_to_its_last_word() -> None:
    """The model remembers a truncated answer up to the truncation."""
    behaviour = Behaviour(answer=counting.CountingAgent(4), **AT_ONCE)
    async with talking(behaviour) as (client, session):
        await client.send(type="response.create")
        await client.until("response.done")
        item_id = next(iter(session.items))
        await client.send(
            type="conversation.item.truncate",
            item_id=item_id,
            content_index=0,
            audio_end_ms=1050,
        )
        await client.until("conversation.item.truncated")

    assert session.conversation[0].text.split() == ["a0-1-1", "a0-1-2", "a0-1-3"]


async def test_a_session_sends_scripted_frames() -> None:
    """Scripted frames are sent once and in order; a flood lasts until the client
    leaves."""
    async with talking(Behaviour(**QUICK)) as (client, session):
        faults.saying("no json", b"binary")(session)
        async with asyncio.timeout(1):
            assert [await client.socket.recv() for _ in range(2)] == [
                "no json",
                b"binary",
            ]
        faults.flooding(lambda n: "x" * 1000 + str(n))(session)
        async with asyncio.timeout(2):
            for n in range(2000):
                assert await client.socket.recv() == "x" * 1000 + str(n)


# --- counting ---


async def test_the_counting_agent_continues_a_cut_answer() -> None:
    """In a new session the agent continues the answer if it is told to; else it
    begins another."""
    agent = counting.CountingAgent(words=5, tool_turns=frozenset({2}))
    first = counting.utterance("agent", 3, 1, 2)
    user = message("user", "input_text", "c3-1-1 c3-1-2", "u1")
    user_2 = message("user", "input_text", "c3-2-1", "u2")
    cut = message("assistant", "output_text", counting.text(first), "a1")
    told = message("system", "input_text", "You were cut off: go on.", "s1")
    behaviour = Behaviour(answer=agent, **AT_ONCE)

    async def answer(*items: Event) -> str:
        async with talking(behaviour, tools=[WEATHER]) as (client, session):
            for item in items:
                await client.send(type="conversation.item.create", item=item)
            await client.send(type="response.create")
            await client.until("response.done")
            latest = session.conversation[-1]
            assert latest.kind != "function_call" or latest.name == counting.TOOL
            return latest.text

    assert await answer() == "a0-1-1 a0-1-2 a0-1-3 a0-1-4 a0-1-5"
    assert await answer(user, cut, told) == "a3-1-3 a3-1-4 a3-1-5"
    assert (await answer(user, cut, user_2))[0] == "{"  # the call of the tool
    assert (await answer(cut, user)).startswith("a3-2-1 ")


def test_words_are_read_from_any_sound() -> None:
    """Lost, cut and repeated words are distinguished in the audio."""
    words = counting.utterance("agent", 0, 1, 4)
    one, two, three, _ = (counting.sound((word,)) for word in words)
    silence = b"\xff" * 1234
    heard = one + silence + two[:2000] + silence + two[2000:] + three[:2400]

    assert counting.understood_words(heard) == list(
        words[:3]
    )  # 300 ms of the third word are enough to understand it
    assert counting.understood_words(heard + three) == list(words[:3])
    assert counting.understood_words(three[:1000]) == []

    tally = counting.compare_words(
        words, counting.understood_words(one + one + three + speech()[:800])
    )
    assert tally.lost == (words[1], words[3])
    assert tally.repeated == (words[0],)
    assert not tally.strange and tally.in_order and not tally.good


def test_a_conversation_is_compared_as_lines() -> None:
    """An answer in one piece and in two pieces gives the same lines."""
    whole = counting.utterance("agent", 0, 1, 4)
    pieces = [
        message("assistant", "output_text", counting.text(whole[:2]), "a1"),
        message("system", "input_text", "Go on.", "s"),
        message("assistant", "output_text", counting.text(whole[2:]), "a2"),
    ]
    remembered = [
        RememberedItem(it["id"], it["role"], it["content"][0]["text"]) for it in pieces
    ]
    assert counting.conversation_lines(remembered) == [
        f"assistant: {counting.text(whole)}"
    ]
