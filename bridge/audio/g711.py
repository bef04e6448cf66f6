"""Audio as bytes of G.711 mu-law, 8 to the ms, and as the base64 it travels in.

Twilio and a mu-law model exchange base64 as it is: nothing here decodes a frame of a
running call.
"""

import audioop
import base64
import binascii
import math
import struct
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

BYTES_PER_MS = 8
"""G.711: 8000 samples a second, one byte each."""

SILENCE = b"\xff"
"""Mu-law for zero."""

_GROUP_BYTES = 3
_GROUP_CHARS = 4
"""Base64 writes 3 bytes as 4 characters; only there can it be cut undecoded."""


def is_payload(text: str) -> bool:
    """Base64 of some audio. Decoded to be checked (0.3 us a frame), thrown away."""
    # a2b_base64 takes padding too much, even in strict mode.
    if not text or len(text) % _GROUP_CHARS or text.endswith("==="):
        return False
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return False
    return True


def payload_bytes(payload: str) -> int:
    """Bytes of audio in a base64 payload, counted without decoding it."""
    return len(payload) // _GROUP_CHARS * _GROUP_BYTES - payload[-2:].count("=")


def cut_payload(payload: str, size_bytes: int) -> tuple[str, str]:
    """A payload in two: the first `size_bytes` (all, or a multiple of 3), the rest."""
    if size_bytes >= payload_bytes(payload):
        return payload, ""
    chars = size_bytes // _GROUP_BYTES * _GROUP_CHARS
    return payload[:chars], payload[chars:]


def sound(payloads: Iterable[str]) -> bytes:
    """Mu-law of payloads, one behind the other."""
    return b"".join(base64.b64decode(payload) for payload in payloads)


def joined(payloads: Sequence[str]) -> str:
    """One payload of several; a single one as it is."""
    if len(payloads) == 1:
        return payloads[0]
    return base64.b64encode(sound(payloads)).decode()


@lru_cache(maxsize=64)
def silence(ms: int) -> str:
    """So many ms of silence as a base64 payload."""
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
"""Of a `w`, as in Twilio's own sendDigits."""

_SAMPLES_PER_MS = 8
_LOW_LEVEL, _HIGH_LEVEL = 7000, 8800
"""-10 and -8 dBm0: the high tone 2 dB above the low one, for lines dampen it more; both
together stay far from clipping."""


def key_tones(keys: str) -> bytes:
    """Mu-law of keys pressed one after the other: 0-9 * # A-D, and w for a pause."""
    return b"".join(_key_tone(key) for key in keys)


def _key_tone(key: str) -> bytes:
    if key == "w":
        return SILENCE * (PAUSE_MS * BYTES_PER_MS)
    low, high = KEY_HZ[key]
    tone = _tone(KEY_MS, (low, _LOW_LEVEL), (high, _HIGH_LEVEL))
    return tone + SILENCE * (KEY_GAP_MS * BYTES_PER_MS)


COMFORT_HZ = 440
COMFORT_LEVEL = 900
"""-28 dBm0: heard in silence, drowned by any word."""

COMFORT_MS = 120


@cache
def comfort_tone() -> str:
    """A payload: two soft beeps, to say that the line is not dead."""
    beep = _tone(COMFORT_MS, (COMFORT_HZ, COMFORT_LEVEL))
    pause = SILENCE * (COMFORT_MS * BYTES_PER_MS)
    return base64.b64encode(beep + pause + beep).decode()


def _tone(ms: int, *parts: tuple[int, int]) -> bytes:
    """Mu-law of sines, (Hz, amplitude) each."""
    turns = [
        (2 * math.pi * hz / (1000 * _SAMPLES_PER_MS), level) for hz, level in parts
    ]
    samples = [
        round(sum(level * math.sin(turn * n) for turn, level in turns))
        for n in range(ms * _SAMPLES_PER_MS)
    ]
    return audioop.lin2ulaw(struct.pack(f"<{len(samples)}h", *samples), 2)
