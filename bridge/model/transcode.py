"""Transcodes between a mu-law phone line and a model that takes only 24 kHz PCM.

Realtime events go in and out as text, so the rest of the bridge always sees a mu-law
model. This module makes no decision about the conversation.
"""

import audioop
import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from bridge.audio import g711
from bridge.audio.resample import DELAY, Downsampler, Samples, Upsampler
from bridge.core import UNREADABLE, realtime_events

MULAW_FORMAT = {"type": realtime_events.MULAW}
PCM_FORMAT = {"type": "audio/pcm", "rate": 24000}
"""16 bit, little-endian, mono: the only PCM format of the Realtime API."""

MAX_PARTS = 8
"""Limit of audio parts of responses that are open at a time; normally there is one."""

_SAMPLE_BYTES = 2
_SIGN_BIT = 15


def from_mulaw(sound: bytes) -> Samples:
    return np.frombuffer(audioop.ulaw2lin(sound, _SAMPLE_BYTES), np.int16)


def to_mulaw(samples: Samples) -> bytes:
    """Encodes as G.711 does: symmetric around zero."""
    # audioop rounds down to its 14 bits, so -1 becomes -8: all negative samples would
    # be coded too low, and near-silence would hiss.
    negative = samples >> _SIGN_BIT
    return audioop.lin2ulaw((samples - 3 * negative).tobytes(), _SAMPLE_BYTES)


class CallerTranscoder:
    """Caller to model: one endless stream."""

    def __init__(self) -> None:
        self._up = Upsampler()
        # After these zeros every input of n ms gives n ms of output, 4.5 ms delayed.
        self._up.feed(np.zeros(DELAY, np.int16))

    def feed(self, payload: str) -> str:
        """Base64 mu-law to base64 PCM of the same duration. ValueError: not base64."""
        samples = self._up.feed(from_mulaw(_decoded(payload)))
        return base64.b64encode(samples.astype("<i2").tobytes()).decode()


class AnswerTranscoder:
    """Model to caller: one stream per audio part of a response."""

    def __init__(self) -> None:
        self._down = Downsampler()
        self._odd = b""
        """First byte of a sample that the next delta completes, or empty."""

    def feed(self, payload: str) -> str:
        """Base64 PCM to base64 mu-law, delayed by 4.5 ms; may be empty.

        ValueError: not base64.
        """
        pcm = self._odd + _decoded(payload)
        whole = len(pcm) - len(pcm) % _SAMPLE_BYTES
        self._odd = pcm[whole:]
        return _encoded(self._down.feed(np.frombuffer(pcm[:whole], "<i2")))

    def flush(self) -> str:
        """Returns the last delayed audio. All output together has one byte for three
        samples of input: never more than the model counts."""
        self._odd = b""
        return _encoded(self._down.flush())


class _SessionCreated(msgspec.Struct, frozen=True, tag="session.created"):
    session: realtime_events.SessionDetails


class _Append(msgspec.Struct, frozen=True, tag="input_audio_buffer.append"):
    audio: str


class _SessionUpdate(msgspec.Struct, frozen=True, tag="session.update"):
    session: dict[str, Any]


class _ItemCreate(msgspec.Struct, frozen=True, tag="conversation.item.create"):
    pass


_Event = dict[str, msgspec.Raw]
"""The fields of an event, still encoded."""

_decode_fields = msgspec.json.Decoder(_Event).decode
_decode_client = msgspec.json.Decoder(_Append | _SessionUpdate | _ItemCreate).decode
_decode_server = msgspec.json.Decoder(
    realtime_events.AudioDelta
    | realtime_events.AudioDone
    | realtime_events.ResponseDone
    | realtime_events.SessionUpdated
    | _SessionCreated
).decode

_CLIENT_TEXTS = ('"input_audio_buffer.append"', '"session.update"', '"input_audio"')
_SERVER_TEXTS = (
    '"response.output_audio.d',  # delta, done
    '"response.done"',
    '"session.updated"',
    '"session.created"',
)
"""An event without any of these texts is passed on without being decoded."""


class _AudioPart:
    """An audio part of a response that has begun and not ended."""

    def __init__(self, response_id: str) -> None:
        self.response_id = response_id
        self.sound = AnswerTranscoder()
        self.event: _Event = {}
        """The latest delta; the tail is sent with its ids."""


class ModelAudio:
    """Transcodes the events of one connection between the bridge and a PCM model."""

    def __init__(self) -> None:
        self._caller = CallerTranscoder()
        self._parts: dict[tuple[str, int], _AudioPart] = {}

    def to_model(self, text: str) -> str:
        """A client event in the form that a PCM model accepts.

        ValueError: the audio of an append is not base64. The caller's audio was checked
        before.
        """
        if not any(part in text for part in _CLIENT_TEXTS):
            return text
        try:
            event = _decode_client(text)
        except UNREADABLE:
            return text  # another event that contains one of the texts
        if isinstance(event, _SessionUpdate):
            return _with_formats(text, _requested_format)
        if isinstance(event, _ItemCreate):
            return _with_pcm_audio(text)
        return _with(_decode_fields(text), "audio", self._caller.feed(event.audio))

    def from_model(self, text: str) -> list[str]:
        """A server event as the events of a mu-law server: none, one or more.

        An unreadable event passes unchanged: core/realtime_events.py reports it.
        """
        if not any(part in text for part in _SERVER_TEXTS):
            return [text]
        try:
            return self._in_mulaw(text)
        except UNREADABLE:
            return [text]

    def _in_mulaw(self, text: str) -> list[str]:
        event = _decode_server(text)
        match event:
            case realtime_events.AudioDelta():
                return self._delta(event, text)
            case realtime_events.AudioDone():
                return [*self._end(event.item_id, event.content_index), text]
            case realtime_events.ResponseDone():
                return [*self._end_all(event.response.id), text]
            case _:
                return [_with_formats(text, _reported_format)]

    def _delta(self, event: realtime_events.AudioDelta, text: str) -> list[str]:
        if not g711.is_payload(event.delta):
            return [text]
        fields = _decode_fields(text)
        key = (event.item_id, event.content_index)
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = _AudioPart(event.response_id)
        part.event = fields
        payload = part.sound.feed(event.delta)
        out = [_with(part.event, "delta", payload)] if payload else []
        # Bounded: a server might never end its parts.
        while len(self._parts) > MAX_PARTS:
            out += self._end(*next(iter(self._parts)))
        return out

    def _end_all(self, response_id: str) -> list[str]:
        """The tails of parts that the server left open at the end of a response."""
        parts = self._parts.items()
        keys = [key for key, part in parts if part.response_id == response_id]
        return [tail for key in keys for tail in self._end(*key)]

    def _end(self, item_id: str, content_index: int) -> list[str]:
        """Closes a part and returns its last delta, if it has any audio left."""
        part = self._parts.pop((item_id, content_index), None)
        tail = part.sound.flush() if part else ""
        return [_with(part.event, "delta", tail)] if part and tail else []


def _with(event: _Event, field: str, payload: str) -> str:
    return msgspec.json.encode(event | {field: payload}).decode()


def _with_pcm_audio(text: str) -> str:
    """A conversation.item.create with its audio as PCM. The replay of a conversation
    to a new session may contain the caller's audio."""
    event: Any = msgspec.json.decode(text)
    parts = event.get("item", {}).get("content")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and isinstance(part.get("audio"), str):
            # A transcoder of its own: this audio is not part of the live stream.
            part["audio"] = CallerTranscoder().feed(part["audio"])
    return msgspec.json.encode(event).decode()


def _with_formats(text: str, change: Callable[[Any], Any]) -> str:
    """A session event with each audio format in it replaced by `change(format)`."""
    event: Any = msgspec.json.decode(text)
    both = event["session"].get("audio") or {}
    for side in ("input", "output"):
        if both.get(side) and both[side].get("format"):
            both[side]["format"] = change(both[side]["format"])
    return msgspec.json.encode(event).decode()


def _requested_format(_: Any) -> Any:
    return PCM_FORMAT


def _reported_format(form: Any) -> Any:
    # A server may leave the rate out, as there is only one. Both formats are swapped: a
    # server that was asked for PCM and reports mu-law must be seen as wrong, too.
    if form == PCM_FORMAT or form == {"type": PCM_FORMAT["type"]}:
        return MULAW_FORMAT
    return PCM_FORMAT if form == MULAW_FORMAT else form


def _decoded(payload: str) -> bytes:
    return binascii.a2b_base64(payload, strict_mode=True)


def _encoded(samples: Samples) -> str:
    return base64.b64encode(to_mulaw(samples)).decode()
