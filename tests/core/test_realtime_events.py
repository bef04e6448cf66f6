"""The model's events as values, and our client events, checked against OpenAI's own
types."""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeClientEvent, RealtimeServerEvent
from pydantic import BaseModel, TypeAdapter

from bridge.core import (
    ProtocolError,
    realtime_events,
    realtime_requests,
    twilio_messages,
)
from bridge.core.inputs import FromPhone
from bridge.core.realtime_events import decode
from tests.core.phone import MULAW_SESSION, Phone
from tests.core.rubbish import mangled
from tests.core.test_twilio_messages import DOCUMENTED

LINES = (
    (Path(__file__).parent.parent / "sim" / "realtime-server-events.jsonl")
    .read_text("utf-8")
    .splitlines()
)
EVENTS: list[dict[str, Any]] = [json.loads(line) for line in LINES]

# The events that decide something for a call, by their `type`.
KINDS = {
    "response.output_audio.delta": realtime_events.AudioDelta,
    "response.output_audio.done": realtime_events.AudioDone,
    "response.output_audio_transcript.delta": realtime_events.TranscriptDelta,
    "input_audio_buffer.speech_started": realtime_events.SpeechStarted,
    "input_audio_buffer.speech_stopped": realtime_events.SpeechStopped,
    "input_audio_buffer.committed": realtime_events.InputCommitted,
    "input_audio_buffer.cleared": realtime_events.InputCleared,
    "conversation.item.input_audio_transcription.completed": (
        realtime_events.CallerTranscript
    ),
    "conversation.item.input_audio_transcription.failed": (
        realtime_events.TranscriptionFailed
    ),
    "input_audio_buffer.dtmf_event_received": realtime_events.KeyReceived,
    "output_audio_buffer.started": realtime_events.PlayoutStarted,
    "output_audio_buffer.stopped": realtime_events.PlayoutStopped,
    "output_audio_buffer.cleared": realtime_events.PlayoutCleared,
    "response.created": realtime_events.ResponseCreated,
    "response.done": realtime_events.ResponseDone,
    "response.output_item.added": realtime_events.OutputItemAdded,
    "response.output_item.done": realtime_events.OutputItemDone,
    "conversation.item.added": realtime_events.ItemAdded,
    "conversation.item.done": realtime_events.ItemDone,
    "conversation.item.deleted": realtime_events.ItemDeleted,
    "session.updated": realtime_events.SessionUpdated,
    "error": realtime_events.ModelError,
}

REASONS = {
    "event is no JSON",
    "event has no type field",
    "audio delta is not base64",
} | {f"{kind} of the wrong shape" for kind in KINDS}


def sample(kind: str) -> dict[str, Any]:
    return next(event for event in EVENTS if event["type"] == kind)


# --- events of the model ---


def test_there_is_a_sample_of_every_kind() -> None:
    """No event that a call depends on goes untested."""
    kinds = set(get_args(realtime_events.KnownEvent))

    assert kinds == set(KINDS.values())
    assert {event["type"] for event in EVENTS} >= set(KINDS)
    assert len(EVENTS) == 44


@pytest.mark.parametrize("line", LINES, ids=[event["type"] for event in EVENTS])
def test_every_event_of_the_server_is_read(line: str) -> None:
    """What the real server sends is understood; other events are ignored."""
    event = decode(line)

    kind = json.loads(line)["type"]
    if kind in KINDS:
        assert type(event) is KINDS[kind]
    else:
        assert event == realtime_events.Other(kind)


@pytest.mark.parametrize("line", LINES, ids=[event["type"] for event in EVENTS])
def test_what_is_read_is_what_the_sdk_reads(line: str) -> None:
    """The bridge and the SDK read the same values from an event."""
    ours = msgspec.to_builtins(decode(line))
    server = TypeAdapter(RealtimeServerEvent).validate_json(line)

    assert contains(server.model_dump(mode="json"), ours)


def contains(whole: Any, part: Any) -> bool:
    """Each value of `part` stands at the same place in `whole`."""
    if isinstance(part, dict):
        return all(contains((whole or {}).get(key), it) for key, it in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        pairs = zip(whole, part, strict=True)
        return all(contains(whole_it, it) for whole_it, it in pairs)
    return bool(whole == part) or (whole is None and part == "")


def test_an_audio_delta_is_read_as_it_is() -> None:
    """The audio goes to the caller as it came, as part of the response it belongs
    to."""
    text = json.dumps(
        {
            "type": "response.output_audio.delta",
            "event_id": "e",
            "response_id": "r1",
            "item_id": "i1",
            "output_index": 3,
            "content_index": 2,
            "delta": "//8A",
        }
    )

    assert decode(text) == realtime_events.AudioDelta("r1", "i1", "//8A", 2)


def test_a_missing_content_index_is_the_first() -> None:
    """A server that leaves out what is always 0 is understood."""
    event = sample("response.output_audio.delta")
    event = {key: it for key, it in event.items() if key != "content_index"}

    delta = decode(json.dumps(event))

    assert isinstance(delta, realtime_events.AudioDelta)
    assert delta.content_index == 0


@pytest.mark.parametrize(
    ("audio", "formats", "interrupts"),
    [
        (None, (None, None), None),
        ({}, (None, None), None),
        ({"input": None, "output": None}, (None, None), None),
        ({"input": {}, "output": {}}, (None, None), None),
        ({"input": {"turn_detection": None}}, (None, None), None),
        ({"input": {"turn_detection": {}}}, (None, None), None),
        (
            {"input": {"turn_detection": {"interrupt_response": False}}},
            (None, None),
            False,
        ),
        ({"input": {"format": {"type": "audio/pcma"}}}, ("audio/pcma", None), None),
        (
            {"output": {"format": {"type": "audio/pcm", "rate": 24000}}},
            (None, "audio/pcm"),
            None,
        ),
        (MULAW_SESSION["audio"], ("audio/pcmu", "audio/pcmu"), True),
    ],
)
def test_what_the_server_says_of_its_session(
    audio: Any, formats: tuple[str | None, str | None], interrupts: bool | None
) -> None:
    """A format or a setting that a server does not state causes neither noise nor a
    forbidden barge-in."""
    updated = decode(
        json.dumps({"type": "session.updated", "session": {"audio": audio}})
    )

    assert isinstance(updated, realtime_events.SessionUpdated)
    assert updated.formats == formats
    assert updated.turns.interrupt_response is interrupts


def test_a_session_tells_whether_the_server_responds() -> None:
    """Where the server does not respond by itself, the bridge knows it."""
    detection = {"create_response": False}
    session = {"audio": {"input": {"turn_detection": detection}}}

    updated = decode(json.dumps({"type": "session.updated", "session": session}))

    assert isinstance(updated, realtime_events.SessionUpdated)
    assert updated.turns == realtime_events.TurnDetection(create_response=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ""),
        ([], ""),
        ("words", ""),
        (7, ""),
        ({"text": "words"}, ""),
        (["words", None, 7, []], ""),
        ([{}, {"text": None}, {"transcript": None}], ""),
        ([{"text": 7}, {"transcript": ["x"]}], ""),
        ([{"type": "input_text", "text": "a"}, {"transcript": "b"}], "a b"),
        ([{"text": "", "transcript": "b"}, "x"], "b"),
    ],
)
@pytest.mark.parametrize("kind", ["conversation.item.added", "conversation.item.done"])
def test_an_item_of_unknown_shape_has_no_text(
    kind: str, content: object, words: str
) -> None:
    """It does no harm."""
    event = decode(json.dumps({"type": kind, "item": {"id": "i", "content": content}}))

    assert isinstance(event, realtime_events.ItemAdded | realtime_events.ItemDone)
    assert event.item.text == words
    assert event.previous_item_id is None


def test_the_usage_of_a_response() -> None:
    """Tokens are read as they are reported, and are nothing where they are not."""
    told = sample("response.done")["response"]["usage"]
    done = decode(json.dumps({"type": "response.done", "response": {"id": "r"}}))
    assert isinstance(done, realtime_events.ResponseDone) and done.response.used is None

    done = decode(
        json.dumps({"type": "response.done", "response": {"id": "r", "usage": told}})
    )

    assert (
        isinstance(done, realtime_events.ResponseDone)
        and done.response.used is not None
    )
    assert done.response.used.input_tokens == told["input_tokens"]
    assert done.response.used.output_tokens == told["output_tokens"]


@pytest.mark.parametrize("tokens", [-1, 2**60, "9", 1.5])
def test_an_absurd_count_of_tokens_counts_as_none(tokens: object) -> None:
    """No response costs less than nothing; its end is noticed all the same."""
    response = {"id": "r", "usage": {"output_tokens": tokens}}

    done = decode(json.dumps({"type": "response.done", "response": response}))

    assert isinstance(done, realtime_events.ResponseDone) and done.response.used is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "event is no JSON"),
        ("\ud800", "event is no JSON"),
        ('{"type":"error","error":{"message":"\\udc00"}}', "event is no JSON"),
        ('{"type":"x","y":Infinity}', "event is no JSON"),
        ("null", "event has no type field"),
        ('{"event":"media"}', "event has no type field"),
        ('{"type":null}', "event has no type field"),
        ('{"type":"error"}', "error of the wrong shape"),
        ('{"type":"response.done","response":{}}', "response.done of the wrong shape"),
        (
            '{"type":"session.updated","session":{"audio":"pcmu"}}',
            "session.updated of the wrong shape",
        ),
    ],
)
def test_an_unreadable_event_is_refused_with_a_reason(text: str, reason: str) -> None:
    """A server's odd event is counted, and the call goes on."""
    assert refused(text) == reason


@pytest.mark.parametrize("index", [-1, 2**31 + 1, 10**30, "0", 1.5, None])
def test_an_absurd_content_index_is_refused(index: object) -> None:
    """The model is never told to truncate a part that it could not have."""
    event = {**sample("response.output_audio.delta"), "content_index": index}

    assert (
        refused(json.dumps(event)) == "response.output_audio.delta of the wrong shape"
    )


@pytest.mark.parametrize("audio", ["AAA", "A===", "AA==AA==", "AA\nAA", "ÿ", "<audio>"])
def test_audio_that_is_no_base64_is_refused(audio: str) -> None:
    """Twilio would play nothing and report nothing: it is noticed here."""
    event = {**sample("response.output_audio.delta"), "delta": audio}

    assert refused(json.dumps(event)) == "audio delta is not base64"


@pytest.mark.parametrize("kind", ["session.updated", "rate_limits.updated"])
def test_an_event_nested_for_ever_is_refused(kind: str) -> None:
    """A broken model does not end the call."""
    deep = "[" * 10_000

    assert refused(f'{{"type":"{kind}","session":{deep}') in REASONS


@given(st.text(st.characters()))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises another error."""
    read_or_refused(text)


@given(mangled([sample(kind) for kind in KINDS]))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_mangled_event_is_read_or_refused(text: str) -> None:
    """An event with wrong types or half of it missing does no harm."""
    read_or_refused(text)


def refused(text: str) -> str:
    with pytest.raises(ProtocolError) as error:
        decode(text)
    return error.value.reason


def read_or_refused(text: str) -> None:
    try:
        decode(text)
    except ProtocolError as error:
        assert error.reason in REASONS, "a reason that could carry what was said"


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just(True),
                mangled(list(DOCUMENTED.values())),
                st.just(""),
                st.floats(0, 3),
            ),
            st.tuples(
                st.just(False),
                st.just(""),
                mangled([sample(kind) for kind in KINDS]),
                st.floats(0, 3),
            ),
        ),
        max_size=12,
    )
)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_no_message_that_can_be_read_breaks_a_call(
    script: list[tuple[bool, str, str, float]],
) -> None:
    """Whatever both sides send, in whatever order, the call does not fail."""
    phone = Phone(greeting="Hello.").talking()
    for from_caller, message, event, seconds in script:
        phone.now += seconds
        feed(phone, message if from_caller else None, event)
        phone.tick()
    phone.ends("caller", "hung_up")


def feed(phone: Phone, message: str | None, event: str) -> None:
    try:
        if message is None:
            decoded = decode(event)
            if not isinstance(decoded, realtime_events.Other):
                phone.event(decoded)
        else:
            # Of this call's stream, else it would be refused.
            message = message.replace("MZ" + "X" * 32, "MZ0000")
            phone.gives(FromPhone(twilio_messages.decode(message)))
    except ProtocolError:
        return


# --- client events ---

SAID = {
    "input_audio_buffer.append": realtime_requests.append("//8A"),
    "conversation.item.truncate": realtime_requests.truncate("i1", 1, 1200, "e1"),
    "conversation.item.delete": realtime_requests.delete("i1", "e2"),
    "response.cancel": realtime_requests.cancel("r1", "e3"),
    "response.create": realtime_requests.create_response("e4"),
    "conversation.item.create": realtime_requests.message(
        "system", 'Say "hé\u2028".\n', "e5"
    ),
}


@pytest.mark.parametrize("kind", SAID)
def test_our_events_are_what_openai_accepts(kind: str) -> None:
    """Each client event is one of OpenAI's, without a mistake."""
    adapter: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)

    event = adapter.validate_json(SAID[kind])

    assert event.type == kind
    assert odd_fields(event) == []
    assert event.model_dump(mode="json", exclude_unset=True) == json.loads(SAID[kind])


WORDS = 'Say "hé\u2028".\n'
ITEMS = {
    "user": realtime_requests.message("user", WORDS, "e1", item_id="i1"),
    "assistant": realtime_requests.message("assistant", WORDS, "e1", after="i0"),
    "system": realtime_requests.message(
        "system", WORDS, "e1", item_id="i1", after="root"
    ),
    "call": realtime_requests.tool_call("c1", "hours", '{"day":"é"}', "e1", "i1"),
    "call without id": realtime_requests.tool_call("c1", "hours", "{}", "e1"),
    "output": realtime_requests.tool_output("c1", WORDS, "e1", "i1"),
    "output without id": realtime_requests.tool_output("c1", WORDS, "e1"),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_our_items_are_items_that_openai_accepts(kind: str) -> None:
    """Messages, tool calls and results can be given to a session, by OpenAI's own
    types."""
    adapter: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)

    event = adapter.validate_json(ITEMS[kind])

    assert event.type == "conversation.item.create"
    assert odd_fields(event) == []
    assert event.model_dump(mode="json", exclude_unset=True) == json.loads(ITEMS[kind])


def test_an_item_has_an_id_and_a_place_only_if_given() -> None:
    """The id and the item before it are sent only where they are known."""
    made = {kind: json.loads(text) for kind, text in ITEMS.items()}

    places = {kind: event.get("previous_item_id") for kind, event in made.items()}
    assert {k: it for k, it in places.items() if it} == {
        "assistant": "i0",
        "system": "root",
    }
    assert [kind for kind, event in made.items() if "id" not in event["item"]] == [
        "assistant",
        "call without id",
        "output without id",
    ]
    parts = {k: made[k]["item"]["content"] for k in ("user", "assistant", "system")}
    assert parts == {
        "user": [{"type": "input_text", "text": WORDS}],
        "assistant": [{"type": "output_text", "text": WORDS}],
        "system": [{"type": "input_text", "text": WORDS}],
    }


def odd_fields(value: Any) -> list[str]:
    """Fields that OpenAI's types accept but do not know."""
    if isinstance(value, list):
        return [name for it in value for name in odd_fields(it)]
    if not isinstance(value, BaseModel):
        return []
    inner = [name for it in dict(value).values() for name in odd_fields(it)]
    return [*(value.model_extra or {}), *inner]


def test_our_events_contain_the_values_given() -> None:
    """Each number and text arrives in its place."""
    said = {kind: json.loads(text) for kind, text in SAID.items()}

    assert said["input_audio_buffer.append"]["audio"] == "//8A"
    assert said["conversation.item.truncate"] == {
        "type": "conversation.item.truncate",
        "event_id": "e1",
        "item_id": "i1",
        "content_index": 1,
        "audio_end_ms": 1200,
    }
    assert said["conversation.item.delete"]["item_id"] == "i1"
    assert said["response.cancel"]["response_id"] == "r1"
    item = said["conversation.item.create"]["item"]
    assert item["role"] == "system"
    assert item["content"] == [{"type": "input_text", "text": 'Say "hé\u2028".\n'}]


def test_every_event_of_ours_has_an_id() -> None:
    """An error of the model names the event that it is about."""
    ids = [json.loads(text).get("event_id") for text in SAID.values()]

    assert ids == [None, "e1", "e2", "e3", "e4", "e5"]


def test_an_oversized_delta_is_refused() -> None:
    """A minute and a half in one message would delay every other call."""
    delta = {
        "type": "response.output_audio.delta",
        "response_id": "r1",
        "item_id": "i1",
        "delta": "A" * (realtime_events.MAX_DELTA_CHARS + 4),
    }

    with pytest.raises(ProtocolError, match="audio delta too large"):
        realtime_events.decode(json.dumps(delta))
