"""A call as a stereo WAV: the caller left, what they heard right. PURE."""

import struct
from collections.abc import Iterable

from bridge.audio import g711
from bridge.picture.view import CallView

RATE_HZ = 8000
PIECE = 60 * RATE_HZ
"""Samples that are converted at once."""
PCM, MULAW = 1, 7
"""Formats of RIFF (mmreg.h)."""


def stereo_wav(view: CallView) -> bytes:
    """The whole call, 16-bit PCM."""
    size = min(len(view.caller), len(view.agent))
    pieces = (
        _stereo(view.caller[at : at + PIECE], view.agent[at : at + PIECE])
        for at in range(0, size, PIECE)
    )
    return _wav(PCM, 16, 4 * size, pieces)


def _stereo(caller: bytes, agent: bytes) -> bytes:
    left, right = g711.linear(caller), g711.linear(agent)
    size = min(len(left), len(right))
    frames = bytearray(2 * size)
    for byte in (0, 1):
        frames[byte::4] = left[byte:size:2]
        frames[2 + byte :: 4] = right[byte:size:2]
    return bytes(frames)


def mulaw_wav(view: CallView) -> bytes:
    """The same as mu-law, of half the size. Browsers play it."""
    size = min(len(view.caller), len(view.agent))
    frames = bytearray(2 * size)
    frames[0::2], frames[1::2] = view.caller[:size], view.agent[:size]
    return _wav(MULAW, 8, 2 * size, [bytes(frames)])


def _wav(kind: int, bits: int, size: int, frames: Iterable[bytes]) -> bytes:
    """`size`: of all frames together, in bytes. They are copied once: a long call has
    hundreds of MB."""
    block = 2 * bits // 8
    described = (kind, 2, RATE_HZ, RATE_HZ * block, block, bits, 0)
    header = b"".join(
        (
            *(b"WAVE", b"fmt ", _word(18), struct.pack("<HHIIHHH", *described)),
            *(b"fact", _word(4), _word(size // block), b"data", _word(size)),
        )
    )
    return b"".join((b"RIFF", _word(len(header) + size), header, *frames))


def _word(number: int) -> bytes:
    return struct.pack("<I", number)
