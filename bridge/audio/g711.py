"""Audio as G.711 mu-law (8 bytes per ms), and as the base64 in which it is sent.

Twilio and a mu-law model exchange base64 unchanged: no frame of a running call is
decoded here.
"""

import audioop
import base64
import binascii
import math
import string
import struct
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

BYTES_PER_MS = 8
"""G.711: 8000 samples a second, one byte each."""

SILENCE = b"\xff"
"""Mu-law for zero."""

_GROUP_BYTES = 3
_GROUP_CHARS = 4
"""Base64 writes 3 bytes as 4 characters; it can be cut undecoded only between such
groups."""

_MAGNITUDES = bytes(~code & 0x7F for code in range(256))
"""Mu-law byte -> its code without the sign; mu-law is written inverted."""

_ALPHABET = (string.ascii_letters + string.digits + "+/").encode()
_PADDINGS = {it.encode(): it for it in ("", "=", "==")}
"""What may follow the characters of _ALPHABET at the end."""


def is_payload(text: str) -> bool:
    """True: base64 of some audio. Not by decoding, which takes twice as long for a
    frame, and three times for a delta."""
    if not text or len(text) % _GROUP_CHARS:
        return False
    try:
        rest = text.encode("ascii").translate(None, _ALPHABET)
    except UnicodeEncodeError:
        return False
    padding = _PADDINGS.get(rest)
    return padding is not None and text.endswith(padding)


def payload_bytes(payload: str) -> int:
    """Bytes of audio in a base64 payload, counted without decoding."""
    size = len(payload)
    return size // _GROUP_CHARS * _GROUP_BYTES - payload.count("=", size - 2)


def cut_payload(payload: str, size_bytes: int) -> tuple[str, str]:
    """Cuts a payload: the first `size_bytes` (all, or a multiple of 3), and the
    rest."""
    if size_bytes >= payload_bytes(payload):
        return payload, ""
    chars = size_bytes // _GROUP_BYTES * _GROUP_CHARS
    return payload[:chars], payload[chars:]


def sound(payloads: Iterable[str]) -> bytes:
    """The mu-law of several payloads, concatenated."""
    return b"".join(map(binascii.a2b_base64, payloads))


def frames(mulaw: bytes, ms: int = 20) -> list[tuple[str, float]]:
    """The audio as payloads of `ms`, the last one may be shorter; each with its
    duration in ms."""
    size = ms * BYTES_PER_MS
    pieces = (mulaw[at : at + size] for at in range(0, len(mulaw), size))
    return [(base64.b64encode(it).decode(), len(it) / BYTES_PER_MS) for it in pieces]


def payload(mulaw: bytes) -> str:
    """Mu-law as base64."""
    return base64.b64encode(mulaw).decode()


def joined(payloads: Sequence[str]) -> str:
    """Several payloads as one; a single payload is returned unchanged."""
    if len(payloads) == 1:
        return payloads[0]
    return base64.b64encode(sound(payloads)).decode()


def peaks(mulaw: bytes, size: int) -> bytes:
    """The peak of each `size` bytes, in mu-law codes from 0 (silence) to 127."""
    linear = audioop.ulaw2lin(mulaw, 2)
    step = 2 * size
    parts = range(0, len(linear), step)
    each = [audioop.max(linear[begin : begin + step], 2) for begin in parts]
    coded = audioop.lin2ulaw(struct.pack(f"={len(each)}h", *each), 2)
    return coded.translate(_MAGNITUDES)


def linear(mulaw: bytes) -> bytes:
    """As 16-bit PCM."""
    return audioop.ulaw2lin(mulaw, 2)


def loudness(mulaw: bytes) -> int:
    """RMS of some audio, as linear 16-bit samples."""
    return audioop.rms(audioop.ulaw2lin(mulaw, 2), 2)


@lru_cache(maxsize=64)
def silence(ms: int) -> str:
    """`ms` of silence as a base64 payload."""
    return base64.b64encode(SILENCE * (ms * BYTES_PER_MS)).decode()


# ITU-T Q.23: a key is one low and one high tone.
_LOW_HZ = (697, 770, 852, 941)
_HIGH_HZ = (1209, 1336, 1477, 1633)
_KEYPAD = ("123A", "456B", "789C", "*0#D")
KEY_HZ = {
    key: (low, high)
    for row, low in zip(_KEYPAD, _LOW_HZ, strict=True)
    for key, high in zip(row, _HIGH_HZ, strict=True)
}

KEY_MS = 100
"""Q.24 asks for 40 ms at least; answering machines want more."""

KEY_GAP_MS = 80
"""Between two keys; Q.24 asks for 40 ms at least."""

PAUSE_MS = 500
"""Length of `w`, as in Twilio's own sendDigits."""

_SAMPLES_PER_MS = 8
_LOW_LEVEL, _HIGH_LEVEL = 7000, 8800
"""-10 and -8 dBm0. The high tone is 2 dB above the low one, because lines dampen it
more; the sum of both stays far from clipping."""


def key_tones(keys: str, tone_ms: int = KEY_MS, gap_ms: int = KEY_GAP_MS) -> bytes:
    """Mu-law of keys pressed one after the other: 0-9 * # A-D, and w for a pause."""
    return b"".join(_key_tone(key, tone_ms, gap_ms) for key in keys)


def _key_tone(key: str, tone_ms: int, gap_ms: int) -> bytes:
    if key == "w":
        return SILENCE * (PAUSE_MS * BYTES_PER_MS)
    low, high = KEY_HZ[key]
    tone = _tone(tone_ms, (low, _LOW_LEVEL), (high, _HIGH_LEVEL))
    return tone + SILENCE * (gap_ms * BYTES_PER_MS)


COMFORT_HZ = 440
COMFORT_LEVEL = 900
"""-28 dBm0: audible in silence, masked by speech."""

COMFORT_MS = 120


@cache
def comfort_tone() -> str:
    """A payload of two soft beeps: they tell the caller that the line works."""
    beep = _tone(COMFORT_MS, (COMFORT_HZ, COMFORT_LEVEL))
    pause = SILENCE * (COMFORT_MS * BYTES_PER_MS)
    return base64.b64encode(beep + pause + beep).decode()


def _tone(ms: int, *parts: tuple[int, int]) -> bytes:
    """Mu-law of the sum of sines, given as (Hz, amplitude)."""
    turns = [
        (2 * math.pi * hz / (1000 * _SAMPLES_PER_MS), level) for hz, level in parts
    ]
    samples = [
        round(sum(level * math.sin(turn * n) for turn, level in turns))
        for n in range(ms * _SAMPLES_PER_MS)
    ]
    return audioop.lin2ulaw(struct.pack(f"<{len(samples)}h", *samples), 2)
