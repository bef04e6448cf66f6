"""Which model is called and how it is to be: the url, the settings, mu-law always."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter

from bridge.app.settings import OPENAI_MODEL_URL, Settings, load
from bridge.model.names import DEPRECATED_MODELS, DEPRECATED_TRANSCRIPTION_MODELS
from bridge.model.session import ModelTarget
from bridge.model.wire import SESSION_ID, is_update, shaped
from tests.support.sdk_session import sample, talk

MULAW = {"type": "audio/pcmu"}


def as_sent(text: str) -> str:
    return shaped(text, lambda session: None)


def target(url: str = OPENAI_MODEL_URL, **more: Any) -> ModelTarget:
    return ModelTarget(url, "gpt-realtime-2.1", "marin", **more)


# --- the address ---


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (
            "wss://api.openai.com/v1/realtime",
            "wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1",
        ),
        ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080?model=gpt-realtime-2.1"),
        (
            "wss://x.example/realtime?model=other",
            "wss://x.example/realtime?model=other",
        ),
        (
            "wss://x.example/realtime?api-version=2025-04-01&empty=",
            "wss://x.example/realtime?api-version=2025-04-01&empty=&model=gpt-realtime-2.1",
        ),
        (
            "wss://x.example/?submodel=a",
            "wss://x.example/?submodel=a&model=gpt-realtime-2.1",
        ),
    ],
)
def test_the_model_is_named_once_in_the_address(url: str, address: str) -> None:
    """The model that was configured answers, whatever else the url holds."""
    assert target(url).address == address


def test_what_is_odd_in_a_url_stays_what_it_is() -> None:
    """A key in the query of somebody's url arrives as it was written."""
    url = "wss://x.example/r?key=a%2Fb%26c+d"

    query = parse_qsl(urlsplit(target(url).address).query)

    assert query == [("key", "a/b&c d"), ("model", "gpt-realtime-2.1")]


def test_a_model_with_an_odd_name_is_escaped() -> None:
    """The name of a model of one's own does not spoil the url."""
    odd = ModelTarget("ws://x", "ft:gpt/1 & 2", "marin").address

    assert parse_qsl(urlsplit(odd).query) == [("model", "ft:gpt/1 & 2")]


def test_a_target_shows_no_key() -> None:
    """A traceback with the target in it does not give the account away."""
    secret = target(headers={"Authorization": "Bearer sk-secret"})

    assert "sk-secret" not in repr(secret)


# --- the settings ---


def test_both_ways_are_mulaw() -> None:
    """What a caller hears is a voice and not noise."""
    audio = target().settings["audio"]

    assert audio["input"]["format"] == MULAW
    assert audio["output"] == {"format": MULAW, "voice": "marin"}


def test_a_barge_in_is_the_servers_from_the_start() -> None:
    """Nothing depends on what a server takes for granted: turns are set in words."""
    detection = target().settings["audio"]["input"]["turn_detection"]

    assert detection == {
        "type": "semantic_vad",
        "create_response": True,
        "interrupt_response": True,
    }


def test_transcription_is_off_when_nobody_wants_it() -> None:
    """Callers' words are not written down unless somebody chose a model for it."""
    off: dict[str, Any] = dict(target().settings["audio"]["input"])
    on = target(transcription_model="gpt-transcribe").settings["audio"]["input"]

    assert "transcription" in off and off["transcription"] is None
    assert on["transcription"] == {"model": "gpt-transcribe"}


def test_tracing_is_switched_off_in_words() -> None:
    """Left out, the SDK's default would send every call's trace to OpenAI."""
    off: dict[str, Any] = dict(target().settings)

    assert "tracing" in off and off["tracing"] is None
    assert "tracing" not in target(tracing=True).settings


async def test_tracing_is_on_where_it_is_wanted() -> None:
    """On OpenAI the calls can be looked at in its dashboard."""
    async with talk(target=target(tracing=True)) as it:
        it.connection.says(sample("session.created"))
        await it.connection.settled()

        assert it.connection.sent[-1]["session"]["tracing"] == "auto"


async def test_transcription_is_set_on_the_wire() -> None:
    """The model that writes the caller's words down is the one that was chosen."""
    async with talk(target=target(transcription_model="gpt-transcribe")) as it:
        session = it.connection.sent[0]["session"]

    assert session["audio"]["input"]["transcription"] == {"model": "gpt-transcribe"}


def test_nothing_that_is_shut_down_soon_is_used_by_default() -> None:
    """The phone is still answered next year, with nothing changed."""
    settings = Settings()
    defaults = ModelTarget(
        OPENAI_MODEL_URL,
        settings.model,
        settings.voice,
        settings.transcription_model,
    ).settings
    deprecated = {*DEPRECATED_MODELS, *DEPRECATED_TRANSCRIPTION_MODELS}

    assert not deprecated & set(strings(defaults))
    assert load({}, None).model == defaults["model_name"]


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for it in value.values() for text in strings(it)]
    if isinstance(value, list):
        return [text for it in value for text in strings(it)]
    return [value] if isinstance(value, str) else []


# --- mu-law in every change of the session ---


def update(**session: Any) -> str:
    return json.dumps({"type": "session.update", "session": session})


@pytest.mark.parametrize(
    ("audio", "made"),
    [
        (
            {"input": {"format": {"type": "audio/pcm", "rate": 24000}}},
            {"input": {"format": MULAW}},
        ),
        (
            {"output": {"voice": "cedar"}},
            {"output": {"voice": "cedar", "format": MULAW}},
        ),
        (
            {"input": {}, "output": {"format": None}},
            {"input": {"format": MULAW}, "output": {"format": MULAW}},
        ),
        ({"input": None}, {"input": None}),
        ({}, {}),
    ],
)
def test_every_change_of_the_session_is_made_mulaw(audio: Any, made: Any) -> None:
    """A handoff, or a user's own update, does not turn the phone into noise."""
    event = json.loads(as_sent(update(type="realtime", audio=audio)))

    assert event["session"] == {"type": "realtime", "audio": made}


def test_a_change_that_is_not_of_the_audio_stays_so() -> None:
    """New instructions do not touch how the line sounds."""
    for session in ({"instructions": "Be brief."}, {"audio": None}):
        event = json.loads(as_sent(update(**session)))

        assert event["session"] == session


def test_a_refused_change_can_be_told_from_others() -> None:
    """An error about the session is known for one; the user's own names stay."""
    assert json.loads(as_sent(update()))["event_id"] == SESSION_ID
    named = json.dumps({"type": "session.update", "event_id": "mine", "session": {}})
    assert json.loads(as_sent(named))["event_id"] == "mine"


def test_words_about_a_session_are_no_session() -> None:
    """A caller who talks of "session.update" changes nothing but the conversation."""
    content = [{"type": "input_text", "text": 'about "session.update"'}]
    item = {"type": "message", "role": "user", "content": content}

    assert not is_update(json.dumps({"type": "conversation.item.create", "item": item}))
    assert is_update(update(instructions="Be brief."))


async def test_what_the_sdk_sends_stays_valid() -> None:
    """The model takes what the wire made of the SDK's own update."""
    async with talk() as it:
        [sent] = it.connection.sent

    made = as_sent(json.dumps(sent))

    TypeAdapter[Any](RealtimeClientEvent).validate_json(made)
    assert json.loads(made)["session"] == sent["session"]
