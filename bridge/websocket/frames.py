"""The frames of RFC 6455 that calls are made of: whole, unfragmented text frames.

Pure but for the random masks. All other frames are left to `websockets`.
"""

import os
import struct
from collections.abc import Iterator

try:
    from websockets.speedups import apply_mask
except ImportError:  # `websockets` has no wheel with compiled code for this platform
    from websockets.utils import apply_mask

TEXT = 0x81
"""First byte of an unfragmented text frame (section 5.2): FIN and opcode 1."""

MASKED = 0x80
MEDIUM = 126
LARGE = 127
MASK_BYTES = 4


def frame_size(data: bytes | bytearray, start: int = 0) -> tuple[int, int] | None:
    """The size of the head and of the payload of the frame that begins at `start`, in
    bytes. None: more data is needed to know."""
    if len(data) - start < 2:
        return None
    size = data[start + 1] & 0x7F
    head = 2
    if size == MEDIUM:
        head = 4
    elif size == LARGE:
        head = 10
    if len(data) - start < head:
        return None
    if size == MEDIUM:
        size = data[start + 2] << 8 | data[start + 3]
    elif size == LARGE:
        size = int.from_bytes(data[start + 2 : start + 10], "big")
    if data[start + 1] & MASKED:
        head += MASK_BYTES
    return head, size


def whole_text(data: bytes, masked: int) -> bytes | None:
    """The payload, if the data is exactly one text frame. None: it is anything else.

    Most frames arrive alone: 50 a second and call. So this repeats what `frame_size`
    and `unmasked` do, without a call. None also for a frame of less than four bytes,
    which no message has.
    """
    size = len(data)
    if size < 4 or data[0] != TEXT:
        return None
    length, start = data[1] ^ masked, 2
    if length == MEDIUM:
        length, start = data[2] << 8 | data[3], 4
    elif length == LARGE:
        length, start = int.from_bytes(data[2:10], "big"), 10
    elif length > LARGE:
        return None  # the mask bit of the other side
    if not masked:
        return data[start:] if start + length == size else None
    start += MASK_BYTES
    if start + length != size:
        return None
    return apply_mask(data[start:], data[start - MASK_BYTES : start])


def is_valid(data: bytes | bytearray, masked: int) -> bool:
    """Whether two bytes may begin a frame: a known opcode, no extension, the mask bit
    of this side, and a control frame that is short and not fragmented."""
    first, second = data[0], data[1]
    if first & 0x70 or second & MASKED != masked or (first & 0x0F) not in _OPCODES:
        return False
    is_control = first & 0x08
    return not is_control or (first >= 0x80 and (second & 0x7F) < MEDIUM)


_OPCODES = (0, 1, 2, 8, 9, 10)


def unmasked(payload: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """The payload of a client's frame (section 5.3)."""
    return apply_mask(payload, mask)


def server_frame(payload: bytes) -> bytes:
    """A text frame that a server sends."""
    return _head(len(payload), 0) + payload


def masks(count: int = 1024) -> Iterator[bytes]:
    """The random masks of a client's frames. They are taken from the operating system
    `count` at a time, because one call of it for each frame costs as much as the rest
    of the frame."""
    while True:
        pool = os.urandom(count * MASK_BYTES)
        for at in range(0, len(pool), MASK_BYTES):
            yield pool[at : at + MASK_BYTES]


_masks = masks()
_pack_medium = struct.Struct("!BBH").pack


def client_frame(payload: bytes) -> bytes:
    """A text frame that a client sends."""
    mask = next(_masks)
    return _head(len(payload), MASKED) + mask + apply_mask(payload, mask)


def _head(size: int, masked: int) -> bytes:
    if size < MEDIUM:
        return bytes((TEXT, masked | size))
    if size < 0x10000:
        return _pack_medium(TEXT, masked | MEDIUM, size)
    return struct.pack("!BBQ", TEXT, masked | LARGE, size)
