"""Between a phone that speaks mu-law and a model that takes only PCM at 24 kHz.

Events go in and out as text: with a ModelAudio between, the rest of the bridge has a
mu-law model before it. Nothing here decides what is said or heard.
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
"""16 bit, little-endian, mono; the one PCM the Realtime API knows."""

MAX_PARTS = 8
"""Parts of answers that are open at a time; there is one, as a rule."""

_SAMPLE_BYTES = 2
_SIGN_BIT = 15


def from_mulaw(sound: bytes) -> Samples:
    return np.frombuffer(audioop.ulaw2lin(sound, _SAMPLE_BYTES), np.int16)


def to_mulaw(samples: Samples) -> bytes:
    """As G.711 has it: alike above and below zero."""
    # audioop rounds down to its 14 bits, which makes a -8 of -1: all that is negative
    # would be coded too low, and a silence that is not quite zero would hiss.
    negative = samples >> _SIGN_BIT
    return audioop.lin2ulaw((samples - 3 * negative).tobytes(), _SAMPLE_BYTES)


class CallerTranscoder:
    """The caller to the model: one stream without an end."""

    def __init__(self) -> None:
        self._up = Upsampler()
        # So it gives as many ms as it is given, at any time: 4.5 ms late.
        self._up.feed(np.zeros(DELAY, np.int16))

    def feed(self, payload: str) -> str:
        """Mu-law in base64 as PCM in base64, of the same length in time.

        ValueError if it is not base64.
        """
        samples = self._up.feed(from_mulaw(_decoded(payload)))
        return base64.b64encode(samples.astype("<i2").tobytes()).decode()


class AnswerTranscoder:
    """The model to the caller: a stream for each part of an answer."""

    def __init__(self) -> None:
        self._down = Downsampler()
        self._odd = b""
        """Half a sample: deltas may be cut anywhere."""

    def feed(self, payload: str) -> str:
        """PCM in base64 as mu-law in base64, 4.5 ms behind it; "" if that is nothing.

        ValueError if it is not base64.
        """
        pcm = self._odd + _decoded(payload)
        whole = len(pcm) - len(pcm) % _SAMPLE_BYTES
        self._odd = pcm[whole:]
        return _encoded(self._down.feed(np.frombuffer(pcm[:whole], "<i2")))

    def flush(self) -> str:
        """The rest; in all a byte for three samples, never more than the model has."""
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
"""The fields of an event, those that nobody reads not decoded."""

_decode_fields = msgspec.json.Decoder(_Event).decode
_decode_ours = msgspec.json.Decoder(_Append | _SessionUpdate | _ItemCreate).decode
_decode_theirs = msgspec.json.Decoder(
    realtime_events.AudioDelta
    | realtime_events.AudioDone
    | realtime_events.ResponseDone
    | realtime_events.SessionUpdated
    | _SessionCreated
).decode

_OURS = ('"input_audio_buffer.append"', '"session.update"', '"input_audio"')
_THEIRS = (
    '"response.output_audio.d',  # delta, done
    '"response.done"',
    '"session.updated"',
    '"session.created"',
)
"""Events without any of these are not looked into."""


class _AudioPart:
    """A part of an answer that has begun and not ended."""

    def __init__(self, response_id: str) -> None:
        self.response_id = response_id
        self.sound = AnswerTranscoder()
        self.event: _Event = {}
        """Its latest delta, for the ids in it."""


class ModelAudio:
    """Stands between a mu-law bridge and a PCM model, for one connection."""

    def __init__(self) -> None:
        self._caller = CallerTranscoder()
        self._parts: dict[tuple[str, int], _AudioPart] = {}

    def to_model(self, text: str) -> str:
        """An event of ours as the model takes it.

        ValueError for an append that is not base64: what comes from the caller has
        been checked.
        """
        if not any(mark in text for mark in _OURS):
            return text
        try:
            event = _decode_ours(text)
        except UNREADABLE:
            return text  # another event that has such a word in it
        if isinstance(event, _SessionUpdate):
            return _with_formats(text, _to_be)
        if isinstance(event, _ItemCreate):
            return _with_voice(text)
        return _with(_decode_fields(text), "audio", self._caller.feed(event.audio))

    def from_model(self, text: str) -> list[str]:
        """A server's event as the events of a mu-law server; none, one or more.

        What cannot be read passes as it is: core/realtime.py says what is wrong.
        """
        if not any(mark in text for mark in _THEIRS):
            return [text]
        try:
            return self._in_mulaw(text)
        except UNREADABLE:
            return [text]

    def _in_mulaw(self, text: str) -> list[str]:
        event = _decode_theirs(text)
        match event:
            case realtime_events.AudioDelta():
                return self._delta(event, text)
            case realtime_events.AudioDone():
                return [*self._end(event.item_id, event.content_index), text]
            case realtime_events.ResponseDone():
                return [*self._end_all(event.response.id), text]
            case _:
                return [_with_formats(text, _as_is)]

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
        # A server that never ends a part would have all of them kept.
        while len(self._parts) > MAX_PARTS:
            out += self._end(*next(iter(self._parts)))
        return out

    def _end_all(self, response_id: str) -> list[str]:
        """The tails of what a server has left open at the end of a response."""
        parts = self._parts.items()
        keys = [key for key, part in parts if part.response_id == response_id]
        return [tail for key in keys for tail in self._end(*key)]

    def _end(self, item_id: str, content_index: int) -> list[str]:
        """The last delta of a part, which is forgotten with it."""
        part = self._parts.pop((item_id, content_index), None)
        tail = part.sound.flush() if part else ""
        return [_with(part.event, "delta", tail)] if part and tail else []


def _with(event: _Event, field: str, payload: str) -> str:
    return msgspec.json.encode(event | {field: payload}).decode()


def _with_voice(text: str) -> str:
    """An item with a caller's words in it, spoken: given back to a new session."""
    event: Any = msgspec.json.decode(text)
    parts = event.get("item", {}).get("content")
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and isinstance(part.get("audio"), str):
            # By itself: it has nothing to do with what is being said now.
            part["audio"] = CallerTranscoder().feed(part["audio"])
    return msgspec.json.encode(event).decode()


def _with_formats(text: str, change: Callable[[Any], Any]) -> str:
    """A session event with other formats, where it has any."""
    event: Any = msgspec.json.decode(text)
    both = event["session"].get("audio") or {}
    for side in ("input", "output"):
        if both.get(side) and both[side].get("format"):
            both[side]["format"] = change(both[side]["format"])
    return msgspec.json.encode(event).decode()


def _to_be(_: Any) -> Any:
    return PCM_FORMAT


def _as_is(form: Any) -> Any:
    # A server may leave the rate out: there is but one. One that was asked for PCM and
    # says mu-law is as wrong as the reverse, and must be known by it: hence both ways.
    if form == PCM_FORMAT or form == {"type": PCM_FORMAT["type"]}:
        return MULAW_FORMAT
    return PCM_FORMAT if form == MULAW_FORMAT else form


def _decoded(payload: str) -> bytes:
    return binascii.a2b_base64(payload, strict_mode=True)


def _encoded(samples: Samples) -> str:
    return base64.b64encode(to_mulaw(samples)).decode()
