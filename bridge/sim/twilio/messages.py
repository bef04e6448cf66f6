"""Media Streams messages of Twilio's side: built by hand, checked strictly.

The fields are those of https://www.twilio.com/docs/voice/media-streams/
websocket-messages. A message that deviates gets the warning of Twilio's debugger.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass

CONNECTED = '{"event":"connected","protocol":"Call","version":"1.0.0"}'
MALFORMED = 31950
INVALID = 31951


@dataclass(frozen=True, slots=True)
class MediaMessage:
    audio: bytes


@dataclass(frozen=True, slots=True)
class MarkMessage:
    name: str


@dataclass(frozen=True, slots=True)
class ClearMessage:
    pass


@dataclass(frozen=True, slots=True)
class IgnoredMessage:
    """A message that Twilio ignores; `code` and `text` are those of its warning."""

    code: int
    text: str


BridgeMessage = MediaMessage | MarkMessage | ClearMessage | IgnoredMessage


def read(raw: str | bytes, stream_sid: str) -> BridgeMessage:
    """Parse a message of the bridge; IgnoredMessage if Twilio would ignore it."""
    if isinstance(raw, bytes):
        return IgnoredMessage(MALFORMED, "a binary frame")
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return IgnoredMessage(MALFORMED, f"not JSON: {type(error).__name__}")
    if not isinstance(message, dict):
        return IgnoredMessage(MALFORMED, "not a JSON object")
    event = message.get("event")
    inside = {"media": {"event", "streamSid", "media"}, "clear": {"event", "streamSid"}}
    inside["mark"] = {"event", "streamSid", "mark"}
    if not isinstance(event, str) or event not in inside:
        return IgnoredMessage(INVALID, f"unknown event {event!r}"[:200])
    if wrong := _wrong_fields(message, inside[event]):
        return IgnoredMessage(INVALID, f"{event}: {wrong}")
    if message["streamSid"] != stream_sid:
        return IgnoredMessage(INVALID, f"{event}: wrong streamSid"[:200])
    match event:
        case "media":
            return _media(message["media"])
        case "mark":
            return _mark(message["mark"])
        case _:
            return ClearMessage()


def _media(media: object) -> MediaMessage | IgnoredMessage:
    if wrong := _wrong_fields(media, {"payload"}):
        return IgnoredMessage(INVALID, f"media.media: {wrong}")
    assert isinstance(media, dict)
    payload = media["payload"]
    if not isinstance(payload, str):
        return IgnoredMessage(INVALID, "media.media.payload is not a string")
    try:
        return MediaMessage(base64.b64decode(payload, validate=True))
    except (binascii.Error, ValueError):
        return IgnoredMessage(INVALID, "media.media.payload is not base64")


def _mark(mark: object) -> MarkMessage | IgnoredMessage:
    if wrong := _wrong_fields(mark, {"name"}):
        return IgnoredMessage(INVALID, f"mark.mark: {wrong}")
    assert isinstance(mark, dict)
    name = mark["name"]
    if not isinstance(name, str) or not name:
        return IgnoredMessage(
            INVALID, "mark.mark.name is not a text of at least one character"
        )
    return MarkMessage(name)


def _wrong_fields(value: object, fields: set[str]) -> str | None:
    if not isinstance(value, dict):
        return "not an object"
    if extra := sorted(value.keys() - fields):
        return f"extra field {extra[0]}"[:200]
    if missing := sorted(fields - value.keys()):
        return f"missing field {missing[0]}"
    return None


def start(
    account_sid: str, call_sid: str, stream_sid: str, parameters: Mapping[str, str]
) -> str:
    """The `start` message; it always has sequence number 1."""
    inside = {
        "accountSid": account_sid,
        "streamSid": stream_sid,
        "callSid": call_sid,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": dict(parameters),
    }
    return _compact(
        {
            "event": "start",
            "sequenceNumber": "1",
            "start": inside,
            "streamSid": stream_sid,
        }
    )


def media(number: int, chunk: int, timestamp: int, payload: str, tail: str) -> str:
    """A `media` message, concatenated for speed (50 per second and call).

    `tail` comes from `media_tail`.
    """
    return (
        f'{{"event":"media","sequenceNumber":"{number}","media":{{"track":"inbound",'
        f'"chunk":"{chunk}","timestamp":"{timestamp}","payload":"{payload}{tail}'
    )


def media_tail(stream_sid: str) -> str:
    """The part of a media message after its payload; the same for the whole stream."""
    return f'"}},"streamSid":"{stream_sid}"}}'


def dtmf(number: int, stream_sid: str, digit: str) -> str:
    return _compact(
        {
            "event": "dtmf",
            "streamSid": stream_sid,
            "sequenceNumber": str(number),
            "dtmf": {"track": "inbound_track", "digit": digit},
        }
    )


def mark(number: int, stream_sid: str, name: str) -> str:
    return _compact(
        {
            "event": "mark",
            "sequenceNumber": str(number),
            "streamSid": stream_sid,
            "mark": {"name": name},
        }
    )


def stop(number: int, account_sid: str, call_sid: str, stream_sid: str) -> str:
    return _compact(
        {
            "event": "stop",
            "sequenceNumber": str(number),
            "stop": {
                "accountSid": account_sid,
                "callSid": call_sid,
                "streamSid": stream_sid,
            },
            "streamSid": stream_sid,
        }
    )


def _compact(message: Mapping[str, object]) -> str:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)
