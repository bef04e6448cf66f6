"""A call as a stereo WAV: the caller left, what they heard right. PURE."""

import struct

from bridge.audio import g711
from bridge.picture.view import CallView

RATE_HZ = 8000


def stereo_wav(view: CallView) -> bytes:
    """The whole call, 16-bit PCM, 8000 Hz."""
    left, right = g711.linear(view.caller), g711.linear(view.agent)
    size = min(len(left), len(right))
    frames = bytearray(2 * size)
    for at, side in ((0, left), (2, right)):
        for byte in (0, 1):
            frames[at + byte :: 4] = side[byte:size:2]
    header = struct.pack("<HHIIHH", 1, 2, RATE_HZ, RATE_HZ * 4, 4, 16)
    form = b"fmt " + struct.pack("<I", len(header)) + header
    data = b"data" + struct.pack("<I", len(frames)) + bytes(frames)
    return (
        b"RIFF" + struct.pack("<I", 4 + len(form) + len(data)) + b"WAVE" + form + data
    )
