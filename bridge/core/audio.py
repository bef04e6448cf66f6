"""Audio as bytes of G.711 mu-law, 8 to the ms, and as the base64 it travels in.

Twilio and a mu-law model exchange base64 as it is: nothing here decodes a frame of a
running call.
"""

import base64
import binascii
from functools import lru_cache

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


@lru_cache(maxsize=64)
def silence(ms: int) -> str:
    """So many ms of silence as a base64 payload."""
    return base64.b64encode(SILENCE * (ms * BYTES_PER_MS)).decode()
