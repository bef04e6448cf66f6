"""A call as a stereo WAV: the caller left, what they heard right. PURE."""

import struct

from bridge.audio import g711
from bridge.picture.view import CallView

RATE_HZ = 8000
PCM, MULAW = 1, 7
"""Formats of RIFF (mmreg.h)."""


def stereo_wav(view: CallView) -> bytes:
    """The whole call, 16-bit PCM."""
    left, right = g711.linear(view.caller), g711.linear(view.agent)
    size = min(len(left), len(right))
    frames = bytearray(2 * size)
    for byte in (0, 1):
        frames[byte::4] = left[byte:size:2]
        frames[2 + byte :: 4] = right[byte:size:2]
    return _wav(PCM, 16, bytes(frames))


def mulaw_wav(view: CallView) -> bytes:
    """The same as mu-law, of half the size. Browsers play it."""
    size = min(len(view.caller), len(view.agent))
    frames = bytearray(2 * size)
    frames[0::2], frames[1::2] = view.caller[:size], view.agent[:size]
    return _wav(MULAW, 8, bytes(frames))


def _wav(kind: int, bits: int, frames: bytes) -> bytes:
    block = 2 * bits // 8
    described = (kind, 2, RATE_HZ, RATE_HZ * block, block, bits, 0)
    count = struct.pack("<I", len(frames) // block)
    chunks = (
        _chunk(b"fmt ", struct.pack("<HHIIHHH", *described)),
        _chunk(b"fact", count),
        _chunk(b"data", frames),
    )
    return _chunk(b"RIFF", b"WAVE" + b"".join(chunks))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content
