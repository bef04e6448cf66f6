"""Twilio's messages: the documented ones, and everything else that anybody could
send."""

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core import ProtocolError, twilio_messages
from bridge.core.twilio_messages import OutboundMessages, decode
from tests.core.rubbish import mangled

MZ, CA, AC = "MZ" + "X" * 32, "CA" + "X" * 32, "AC" + "X" * 32

# Word for word from Twilio's page "WebSocket messages"; only the
# payload, cut short there, is made whole.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "connected": {"event": "connected", "protocol": "Call", "version": "1.0.0"},
    "start": {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": AC,
            "streamSid": MZ,
            "callSid": CA,
            "tracks": ["inbound"],
            "mediaFormat": {
                "encoding": "audio/x-mulaw",
                "sampleRate": 8000,
                "channels": 1,
            },
            "customParameters": {
                "FirstName": "Jane",
                "LastName": "Doe",
                "RemoteParty": "Bob",
            },
        },
        "streamSid": MZ,
    },
    "media": {
        "event": "media",
        "sequenceNumber": "4",
        "media": {
            "track": "inbound",
            "chunk": "2",
            "timestamp": "5",
            "payload": "no+JhoaJjpzS",
        },
        "streamSid": MZ,
    },
    "dtmf": {
        "event": "dtmf",
        "streamSid": MZ,
        "sequenceNumber": "5",
        "dtmf": {"track": "inbound_track", "digit": "1"},
    },
    "mark": {
        "event": "mark",
        "sequenceNumber": "4",
        "streamSid": MZ,
        "mark": {"name": "my label"},
    },
    "stop": {
        "event": "stop",
        "sequenceNumber": "5",
        "stop": {"accountSid": AC, "callSid": CA},
        "streamSid": MZ,
    },
}

VALUES: dict[str, twilio_messages.Inbound] = {
    "connected": twilio_messages.Connected(),
    "start": twilio_messages.Start(
        MZ,
        twilio_messages.StartDetails(
            CA,
            twilio_messages.MediaFormat("audio/x-mulaw", 8000, 1),
            AC,
            {"FirstName": "Jane", "LastName": "Doe", "RemoteParty": "Bob"},
        ),
    ),
    "media": twilio_messages.Media(
        MZ, twilio_messages.MediaDetails("no+JhoaJjpzS", 5, "inbound")
    ),
    "dtmf": twilio_messages.Dtmf(MZ, twilio_messages.DtmfDetails("1")),
    "mark": twilio_messages.Mark(MZ, twilio_messages.MarkDetails("my label")),
    "stop": twilio_messages.Stop(MZ),
}

REASONS = {
    "message too large",
    "message is no JSON",
    "message has no event field",
    "unknown event",
    "media payload is not base64",
} | {f"{event} message of the wrong shape" for event in DOCUMENTED}


def numbers(value: Any) -> Any:
    """The same with each number that is a string as a number, as in Twilio's prose."""
    if isinstance(value, dict):
        return {k: v if k == "digit" else numbers(v) for k, v in value.items()}
    return int(value) if isinstance(value, str) and value.isdigit() else value


def strings(value: Any) -> Any:
    """The same with each number as a string."""
    if isinstance(value, dict):
        return {key: strings(it) for key, it in value.items()}
    return str(value) if isinstance(value, int) else value


def refused(text: str) -> str:
    with pytest.raises(ProtocolError) as error:
        decode(text)
    assert error.value.reason == str(error.value)
    return error.value.reason


@pytest.mark.parametrize("event", DOCUMENTED)
@pytest.mark.parametrize("form", [lambda it: it, numbers, strings])
def test_documented_messages_are_read(event: str, form: Any) -> None:
    """A call works whether Twilio writes its numbers as strings or as numbers."""
    assert decode(json.dumps(form(DOCUMENTED[event]))) == VALUES[event]


def test_a_field_that_twilio_adds_later_is_ignored() -> None:
    """Calls go on when Twilio adds a field to its messages."""
    for event, message in DOCUMENTED.items():
        assert decode(json.dumps({"news": [1], **message})) == VALUES[event]


@pytest.mark.parametrize("parameters", [{}, None, "absent"])
def test_a_stream_without_parameters_is_a_call_too(parameters: Any) -> None:
    """TwiML without <Parameter> connects the caller all the same."""
    message = json.loads(json.dumps(DOCUMENTED["start"]))
    message["start"]["customParameters"] = parameters
    if parameters == "absent":
        del message["start"]["customParameters"]

    start = decode(json.dumps(message))

    assert isinstance(start, twilio_messages.Start)
    assert not start.start.custom_parameters


def test_a_frame_is_as_long_as_its_audio() -> None:
    """30 ms frames of a carrier are not taken for 20 ms frames."""
    for ms in (10, 20, 30, 1000):
        payload = base64.b64encode(bytes(8 * ms)).decode()
        assert twilio_messages.MediaDetails(payload, 0).duration_ms == ms


def test_a_stop_without_a_stream_sid_ends_the_call() -> None:
    """A call ends though the last message lacks a detail."""
    assert decode('{"event":"stop"}') == twilio_messages.Stop("")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "message is no JSON"),
        ("{", "message is no JSON"),
        ("\ud800", "message is no JSON"),
        ('{"event":"\\ud800"}', "message is no JSON"),
        ('{"event":"connected","x":NaN}', "message is no JSON"),
        ("[]", "message has no event field"),
        ("5", "message has no event field"),
        ("{}", "message has no event field"),
        ('{"event":7}', "message has no event field"),
        ('{"event":"Media"}', "unknown event"),
        ('{"event":"clear","streamSid":"MZ"}', "unknown event"),
        ('{"event":"start"}', "start message of the wrong shape"),
        ('{"event":"mark","streamSid":"M"}', "mark message of the wrong shape"),
        ('{"event":"dtmf","streamSid":1,"dtmf":{}}', "dtmf message of the wrong shape"),
        ('{"event":"stop","streamSid":[]}', "stop message of the wrong shape"),
    ],
)
def test_an_unreadable_message_is_refused_with_a_reason(text: str, reason: str) -> None:
    """An operator reads what was wrong; the caller is not cut off for it."""
    assert refused(text) == reason


@pytest.mark.parametrize(
    "timestamp", [-1, "-1", 2**53 + 1, 10**400, 1.5, "", "x", " 5", None, True, [5]]
)
def test_an_invalid_timestamp_is_refused(timestamp: object) -> None:
    """A wrong count of milliseconds does not move the clock of a call."""
    media = {"payload": "AAAA", "timestamp": timestamp}
    message = {"event": "media", "streamSid": "MZ", "media": media}

    assert refused(json.dumps(message)) == "media message of the wrong shape"


@pytest.mark.parametrize(
    "payload", ["no+JhoaJjpzS...", "AAA", "A", "AA=", "====", "AA==AA==", "AA AA", "é"]
)
def test_a_payload_that_is_no_base64_is_refused(payload: str) -> None:
    """Invalid audio never reaches the model, which would answer each frame with an
    error."""
    media = {"payload": payload, "timestamp": "5"}
    message = {"event": "media", "streamSid": "MZ", "media": media}

    assert refused(json.dumps(message)) == "media payload is not base64"


@pytest.mark.parametrize("payload", ["AAAA=", "AAAA==", "//8AAAAA=="])
def test_excess_padding_is_refused(payload: str) -> None:
    """Audio that would be counted as shorter than it is does not get in."""
    media = {"payload": payload, "timestamp": "5"}
    message = {"event": "media", "streamSid": "MZ", "media": media}

    assert refused(json.dumps(message)) == "media payload is not base64"


def test_a_message_larger_than_any_of_twilios_is_not_even_parsed() -> None:
    """One hostile stream does not slow the other calls of the instance."""
    text = json.dumps(DOCUMENTED["connected"])
    room = twilio_messages.MAX_MESSAGE_CHARS - len(text)

    assert decode(text + " " * room) == twilio_messages.Connected()
    assert refused(text + " " * (room + 1)) == "message too large"


def test_a_start_as_large_as_twilio_allows_is_read() -> None:
    """99 <Parameter>s of 499 characters are accepted."""
    message = json.loads(json.dumps(DOCUMENTED["start"]))
    message["start"]["customParameters"] = {f"p{n:03}": "x" * 495 for n in range(99)}

    assert isinstance(decode(json.dumps(message)), twilio_messages.Start)


@pytest.mark.parametrize("before", ['{"event":"media","x":', '{"event":"start","x":'])
@pytest.mark.parametrize("nest", ["[", '{"a":'])
def test_a_message_nested_for_ever_is_refused(before: str, nest: str) -> None:
    """Ten thousand brackets are one bad message, not the end of a call."""
    assert refused(before + nest * 10_000) in REASONS


@given(st.text(st.characters()))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises another error."""
    read_or_refused(text)


@given(mangled(list(DOCUMENTED.values())))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_mangled_message_is_read_or_refused(text: str) -> None:
    """A message with wrong types, absurd numbers or half of it missing does no harm."""
    read_or_refused(text)


def read_or_refused(text: str) -> None:
    try:
        message = decode(text)
    except ProtocolError as error:
        assert error.reason in REASONS, "a reason that could carry what was sent"
        return
    if isinstance(message, twilio_messages.Media):
        assert 0 <= message.media.timestamp <= 2**53
        audio = base64.b64decode(message.media.payload, validate=True)
        assert message.media.duration_ms == len(audio) / 8
    if isinstance(message, twilio_messages.Start):
        clear = json.loads(OutboundMessages(message.stream_sid).clear())
        assert clear["streamSid"] == message.stream_sid


# --- messages to Twilio ---


def test_what_goes_to_twilio_is_what_is_documented() -> None:
    """No warning 31951 at Twilio: exactly the fields of its page, and no more."""
    out = OutboundMessages(MZ)

    assert json.loads(out.media("a3242sa=")) == {
        "event": "media",
        "streamSid": MZ,
        "media": {"payload": "a3242sa="},
    }
    assert json.loads(out.mark("m17")) == {
        "event": "mark",
        "streamSid": MZ,
        "mark": {"name": "m17"},
    }
    assert json.loads(out.clear()) == {"event": "clear", "streamSid": MZ}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_strange_stream_sid_is_sent_back_unchanged(sid: str) -> None:
    """Whatever Twilio names a stream, our messages reach it."""
    out = OutboundMessages(sid)

    for text in (out.media("AAAA"), out.mark("m1"), out.clear()):
        assert json.loads(text)["streamSid"] == sid
