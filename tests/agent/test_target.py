"""Which model is connected to, and how: the url, the settings, always mu-law."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter

from bridge.app.settings import OPENAI_MODEL_URL, Settings, load
from bridge.model.deprecated_models import (
    DEPRECATED_MODELS,
    DEPRECATED_TRANSCRIPTION_MODELS,
)
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
    """The configured model answers, whatever other parameters the url has."""
    assert target(url).address == address


def test_other_parameters_of_a_url_are_kept() -> None:
    """A key in the url's query arrives as it was written."""
    url = "wss://x.example/r?key=a%2Fb%26c+d"

    query = parse_qsl(urlsplit(target(url).address).query)

    assert query == [("key", "a/b&c d"), ("model", "gpt-realtime-2.1")]


def test_a_model_with_an_odd_name_is_escaped() -> None:
    """The name of a custom model cannot break the url."""
    odd = ModelTarget("ws://x", "ft:gpt/1 & 2", "marin").address

    assert parse_qsl(urlsplit(odd).query) == [("model", "ft:gpt/1 & 2")]


def test_the_repr_of_a_target_has_no_key() -> None:
    """A traceback that shows the target does not reveal the API key."""
    secret = target(headers={"Authorization": "Bearer sk-secret"})

    assert "sk-secret" not in repr(secret)


# --- the settings ---


def test_both_ways_are_mulaw() -> None:
    """The caller hears a voice, not noise."""
    audio = target().settings["audio"]

    assert audio["input"]["format"] == MULAW
    assert audio["output"] == {"format": MULAW, "voice": "marin"}


def test_turn_detection_is_set_explicitly() -> None:
    """Barge-in does not depend on the server's defaults."""
    detection = target().settings["audio"]["input"]["turn_detection"]

    assert detection == {
        "type": "semantic_vad",
        "create_response": True,
        "interrupt_response": True,
    }


def test_transcription_is_off_without_a_model() -> None:
    """Callers are not transcribed unless a transcription model is configured."""
    off: dict[str, Any] = dict(target().settings["audio"]["input"])
    on = target(transcription_model="gpt-transcribe").settings["audio"]["input"]

    assert "transcription" in off and off["transcription"] is None
    assert on["transcription"] == {"model": "gpt-transcribe"}


def test_tracing_is_switched_off_explicitly() -> None:
    """The SDK's default would send every call's trace to OpenAI."""
    off: dict[str, Any] = dict(target().settings)

    assert "tracing" in off and off["tracing"] is None
    assert "tracing" not in target(tracing=True).settings


async def test_tracing_is_on_if_configured() -> None:
    """On OpenAI's platform the calls can be seen in its dashboard."""
    async with talk(target=target(tracing=True)) as it:
        it.connection.says(sample("session.created"))
        await it.connection.settled()

        assert it.connection.sent[-1]["session"]["tracing"] == "auto"


async def test_the_transcription_model_is_sent() -> None:
    """The configured model transcribes the caller."""
    async with talk(target=target(transcription_model="gpt-transcribe")) as it:
        session = it.connection.sent[0]["session"]

    assert session["audio"]["input"]["transcription"] == {"model": "gpt-transcribe"}


def test_no_default_model_is_deprecated() -> None:
    """An unchanged deployment still answers the phone next year."""
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
def test_every_session_update_gets_mulaw(audio: Any, made: Any) -> None:
    """A handoff, or an update by user code, does not turn the audio into noise."""
    event = json.loads(as_sent(update(type="realtime", audio=audio)))

    assert event["session"] == {"type": "realtime", "audio": made}


def test_an_update_without_audio_gets_no_format() -> None:
    """New instructions do not change the audio settings."""
    for session in ({"instructions": "Be brief."}, {"audio": None}):
        event = json.loads(as_sent(update(**session)))

        assert event["session"] == session


def test_a_refused_update_is_recognised_by_its_event_id() -> None:
    """An error about a session update is recognised; ids of user code are kept."""
    assert json.loads(as_sent(update()))["event_id"] == SESSION_ID
    named = json.dumps({"type": "session.update", "event_id": "mine", "session": {}})
    assert json.loads(as_sent(named))["event_id"] == "mine"


def test_text_that_mentions_an_update_is_not_one() -> None:
    """A caller who says `session.update` changes nothing but the conversation."""
    content = [{"type": "input_text", "text": 'about "session.update"'}]
    item = {"type": "message", "role": "user", "content": content}

    assert not is_update(json.dumps({"type": "conversation.item.create", "item": item}))
    assert is_update(update(instructions="Be brief."))


async def test_an_update_of_the_sdk_stays_valid() -> None:
    """The model accepts the SDK's update after the wire has changed it."""
    async with talk() as it:
        [sent] = it.connection.sent

    made = as_sent(json.dumps(sent))

    TypeAdapter[Any](RealtimeClientEvent).validate_json(made)
    assert json.loads(made)["session"] == sent["session"]
