"""The fake model's input and output, validated with `openai`'s own types."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from bridge.sim.model import (
    Behaviour,
    CallTool,
    Fail,
    PlayAudio,
    PlayRuler,
    SayText,
    Turn,
)
from bridge.sim.voice import read_ruler, ruler, speak
from tests.sim.realtime_client import (
    PCMU,
    QUICK,
    WEATHER,
    Event,
    speech,
    talking,
)

# Events as the real server sends them.
DOCUMENTED = Path(__file__).with_name("realtime-server-events.jsonl")


def keys(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        below = (keys(inner, f"{path}.{key}") for key, inner in value.items())
        return {path}.union(*below)
    if isinstance(value, list):
        return {path}.union(*(keys(inner, f"{path}[]") for inner in value))
    return {path}


async def rich_conversation(formats: Event) -> list[Event]:
    turns: list[Turn] = [
        [SayText("Hello!")],
        [SayText("Let me see."), CallTool("get_weather", {"city": "Paris"})],
        [SayText("It is sunny in Paris today, and it will stay so for days.")],
        [Fail()],
    ]
    behaviour = Behaviour(turns=turns, user_texts=["How is the weather?"], **QUICK)
    transcription = {"transcription": {"model": "gpt-transcribe"}}
    pcmu = formats == PCMU
    async with talking(
        behaviour, formats=formats, input=transcription, tools=[WEATHER]
    ) as (client, session):
        await client.send(type="response.create")
        greeting = (await client.until("response.done"))["response"]["output"][0]["id"]
        rate = 8000 if pcmu else 24000
        spoken = speak("How is the weather in Paris?", rate=rate)
        if pcmu:
            await client.say(spoken.mulaw())
        else:
            await client.say(spoken.pcm, silence=bytes(48000))
        call = await client.until("response.function_call_arguments.done")
        await client.until("response.done")
        output = {"type": "function_call_output", "output": "sun"}
        output["call_id"] = call["call_id"]
        await client.send(type="conversation.item.create", item=output)
        await client.send(type="response.create")
        await client.until("response.output_audio.delta")
        await client.send(type="response.cancel")
        done = await client.until("response.done")
        item_id = done["response"]["output"][0]["id"]
        ids = {"item_id": item_id}
        cut = ids | {"content_index": 0, "audio_end_ms": 100}
        await client.send(type="conversation.item.truncate", **cut)
        await client.send(type="conversation.item.retrieve", **ids)
        await client.send(type="conversation.item.delete", item_id=greeting)
        await client.until("conversation.item.deleted")
        await client.send(type="input_audio_buffer.clear")
        await client.refused(type="response.cancel")
        await client.send(type="response.create")
        await client.until("response.done")
        assert session.received
        return client.events


@pytest.mark.parametrize("formats", [PCMU, {"type": "audio/pcm", "rate": 24000}])
async def test_every_event_has_the_real_shape(formats: Event) -> None:
    """Every event has the fields and types of the real server's event."""
    events = await rich_conversation(formats)

    assert len({event["event_id"] for event in events}) == len(events)
    documented: dict[str, set[str]] = {}
    for line in DOCUMENTED.read_text().splitlines():
        example = json.loads(line)
        documented.setdefault(example["type"], set()).update(keys(example))
    sent = {event["type"] for event in events}
    assert sent <= documented.keys() and len(sent) >= 27
    for event in events:
        # The documented examples contain responses and items of every kind, so only the
        # top levels are compared.
        example = documented[event["type"]]
        assert {f".{key}" for key in event} <= example, event["type"]


async def test_a_turn_has_the_order_of_the_real_server() -> None:
    """The events of a turn come in the order that clients of the real server expect."""
    behaviour = Behaviour(turns=[[PlayRuler(400)]], delta_ms=200, **QUICK)
    async with talking(behaviour) as (client, _):
        first = len(client.events)
        await client.say(speech())
        await client.until("response.done")

    words = "response.output_audio_transcript.delta"
    audio = "response.output_audio.delta"
    assert client.types()[first:] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "rate_limits.updated",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        *(words, audio, words, audio),
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    assert client.events[-1]["response"]["usage"]["output_tokens"] > 0


async def test_transcription_comes_after_the_response_began() -> None:
    """The transcription comes late, because a separate recogniser makes it."""
    behaviour = Behaviour(turns=[[SayText("Yes.")]], user_texts=["Is it?"], **QUICK)
    async with talking(
        behaviour, input={"transcription": {"model": "gpt-transcribe"}}
    ) as (client, session):
        await client.say(speech())
        kind = "conversation.item.input_audio_transcription"
        completed = await client.until(f"{kind}.completed")

    assert client.types().index("response.created") < client.types().index(
        f"{kind}.delta"
    )
    assert completed["transcript"] == "Is it?"
    assert session.items[completed["item_id"]].text == "Is it?"


# --- hearing -----------


@pytest.mark.parametrize(
    "detection",
    [
        {"type": "server_vad", "silence_duration_ms": 300, "prefix_padding_ms": 100},
        {"type": "semantic_vad", "eagerness": "high"},
    ],
)
async def test_the_caller_is_noticed_where_speech_begins_and_ends(
    detection: Event,
) -> None:
    """The VAD finds the turn in the audio, whenever the caller speaks."""
    spoken = speech("Good evening.")
    async with talking(
        Behaviour(turns=[[SayText("Hi.")]], **QUICK),
        input={"turn_detection": detection},
    ) as (client, session):
        await client.say(b"\xff" * 8000 + spoken)
        started = await client.until("input_audio_buffer.speech_started")
        stopped = await client.until("input_audio_buffer.speech_stopped")
        await client.until("response.done")

    padding = detection.get("prefix_padding_ms", 300)
    silence = detection.get("silence_duration_ms", 500)
    end = 1000 + len(spoken) / 8
    assert started["audio_start_ms"] == pytest.approx(1000 - padding, abs=120)
    assert end - 600 + silence < stopped["audio_end_ms"] < end + silence + 60
    assert session.caller_turns == 1 and len(session.speech_started_at) == 1
    assert session.items[started["item_id"]].role == "user"
    assert bytes(session.caller_audio[:8000]) == b"\xff" * 8000


async def test_noise_and_clicks_are_not_speech() -> None:
    """Hiss and clicks do not start a turn."""
    hiss = bytes([0x7E, 0xFE, 0xFD, 0x7D]) * 4000
    click = b"\x00" * 160 + b"\xff" * 800
    async with talking(Behaviour(**QUICK)) as (client, session):
        await client.say(hiss + click * 3)
        await client.send(type="input_audio_buffer.clear")
        await client.until("input_audio_buffer.cleared")

        assert not session.speech_started_at
        assert session.appends > 100 and session.audio_in_bytes > 16000


async def test_without_turn_detection_only_a_commit_makes_a_turn() -> None:
    """Push-to-talk: without turn detection only a commit ends a turn."""
    async with talking(
        Behaviour(turns=[[SayText("Yes?")]], **QUICK), input={"turn_detection": None}
    ) as (client, session):
        empty = await client.refused(type="input_audio_buffer.commit")
        await client.say(speech())
        await client.send(type="input_audio_buffer.commit")
        await client.until("input_audio_buffer.committed")
        await client.send(type="response.create")
        await client.until("response.done")

    assert empty["code"] == "input_audio_buffer_commit_empty"
    assert not session.speech_started_at and session.caller_turns == 1


async def test_create_response_false_only_reports() -> None:
    """With create_response false the model does not answer by itself."""
    vad = {"type": "server_vad", "create_response": False}
    async with talking(Behaviour(**QUICK), input={"turn_detection": vad}) as (
        client,
        session,
    ):
        await client.say(speech())
        await client.until("conversation.item.done")
        await client.send(type="response.create")
        await client.until("response.done")

    assert len(session.responses) == 1 and session.responses[0].trigger == "client"


async def test_the_idle_timeout_asks_a_silent_caller() -> None:
    """The idle timeout, if configured, makes the model speak to a silent caller."""
    vad = {"type": "server_vad", "idle_timeout_ms": 50}
    async with talking(
        Behaviour(turns=[[PlayRuler(100)]], **QUICK), input={"turn_detection": vad}
    ) as (client, session):
        await client.send(type="response.create")
        done = await client.until("response.done")
        silent_since = client.at[-1]
        await client.until("input_audio_buffer.timeout_triggered")
        waited = client.at[-1] - silent_since
        await client.until("response.done")

    assert done and waited == pytest.approx(0.15, abs=0.1)
    assert [r.trigger for r in session.responses] == ["client", "idle"]


# --- speaking ----------


async def test_audio_is_paced_and_cut_as_asked() -> None:
    """Audio is generated faster than it plays, in deltas of the configured size."""
    behaviour = Behaviour(
        turns=[[PlayRuler(1000)]],
        speed=4,
        delta_ms=200,
        first_delta_ms=40,
        think_seconds=0.1,
    )
    async with talking(behaviour) as (client, session):
        await client.send(type="response.create")
        await client.until("response.done")

    sizes = [len(audio) for _, _, audio in session.sent_deltas]
    assert sizes == [320, 1600, 1600, 1600, 1600, 1280]
    first, last = session.sent_deltas[0][0], session.sent_deltas[-1][0]
    assert last - first == pytest.approx(0.84 / 4, abs=0.06)
    assert first - session.responses[0].started_at == pytest.approx(0.1, abs=0.05)
    assert client.audio() == ruler(1, 1000)


async def test_words_run_a_little_ahead_of_their_audio() -> None:
    """Transcript deltas come just before their audio, never after it."""
    text = "One two three four five six seven eight nine ten."
    async with talking(Behaviour(turns=[[SayText(text)]], **QUICK)) as (client, _):
        await client.send(type="response.create")
        await client.until("response.done")

    said = ""
    generated = 0.0
    due = {word: at for at, word in speak(text, voice="en+f3").words}
    for event in client.events:
        if event["type"] == "response.output_audio_transcript.delta":
            said += event["delta"]
            at = due[event["delta"].strip()]
            assert generated <= at + 0.001 < generated + 0.3
        elif event["type"] == "response.output_audio.delta":
            generated += len(base64.b64decode(event["delta"])) / 8000
    assert said == text


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma", "audio/pcm"])
async def test_every_output_format_is_spoken(kind: str) -> None:
    """The speech is the same in every output format."""
    formats = {"type": kind} | ({"rate": 24000} if kind == "audio/pcm" else {})
    seconds = speak("Good morning.", voice="en+f3").seconds
    async with talking(
        Behaviour(turns=[[SayText("Good morning.")]], **QUICK), formats=formats
    ) as (client, session):
        await client.send(type="response.create")
        done = await client.until("response.done")

    item = session.items[done["response"]["output"][0]["id"]]
    assert item.sent_ms / 1000 == pytest.approx(seconds, abs=0.05)
    assert len(client.audio()) == item.sent_bytes
    assert item.text == "Good morning." and item.complete


async def test_a_preamble_and_an_answer_are_two_items() -> None:
    """Two items of one response can be truncated and remembered separately."""
    turns: list[Turn] = [
        [PlayRuler(60), PlayAudio(ruler(9, 40), "played"), PlayRuler(80)]
    ]
    async with talking(Behaviour(turns=turns, **QUICK)) as (client, session):
        await client.send(type="response.create")
        await client.until("response.done")

    items = list(session.items.values())
    assert [item.ruler_number for item in items] == [1, None, 2]
    assert [item.believed_ms for item in items] == [60, 40, 80]
    assert read_ruler(client.audio()).heard_ms == {1: 60, 9: 40, 2: 80}
    added = [e for e in client.events if e["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2]


async def test_text_only_and_out_of_band_responses() -> None:
    """An out-of-band response has no audio and does not enter the conversation."""
    async with talking(Behaviour(answer=lambda h: [SayText("A note.")], **QUICK)) as (
        client,
        session,
    ):
        side = {"conversation": "none", "output_modalities": ["text"]}
        await client.send(
            type="response.create", response=side | {"metadata": {"of": "me"}}
        )
        done = await client.until("response.done")

    assert done["response"]["metadata"] == {"of": "me"}
    assert done["response"]["output"][0]["content"][0]["text"] == "A note."
    assert not client.audio() and not session.items
