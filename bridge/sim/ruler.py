"""Audio in which each millisecond carries its item number and its position.

So what was heard is measured from the audio alone, without any other record. The sound
itself is irrelevant.

One millisecond is eight mu-law bytes: a sync byte, and seven bytes of seven bits with
the item's number (20 bits), the millisecond (20) and a checksum (9).
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

BLOCK = 8  # bytes per millisecond of mu-law
LIMIT = 1 << 20  # item numbers and milliseconds are below this
_SYNC = 0xB5  # never in the other seven bytes, which are below 0x80
_SILENCE = 0xFF
_SILENT_RUN = re.compile(rb"\xff+")
_PAGE_MS = 1024  # of an item, made at once to compare recordings with
# XOR masks, so that small numbers do not give runs of equal bytes; one per position.
_POSITION_MASK = (0x00, 0x15, 0x2A, 0x3F, 0x54, 0x69, 0x7E)


@dataclass(frozen=True, slots=True)
class RulerSpan:
    """Bytes `start` up to `end` of an item, played without a break in the item."""

    item: int
    start: int
    end: int

    @property
    def start_ms(self) -> float:
        return self.start / BLOCK

    @property
    def end_ms(self) -> float:
        return self.end / BLOCK


@dataclass(slots=True)
class Reading:
    """The content of an audio recording, in playing order."""

    spans: list[RulerSpan] = field(default_factory=list)
    stray: int = 0  # bytes that are neither silence nor part of an item

    @property
    def heard_bytes(self) -> dict[int, int]:
        """Bytes played of each item, repetitions included."""
        heard: dict[int, int] = {}
        for span in self.spans:
            heard[span.item] = heard.get(span.item, 0) + span.end - span.start
        return heard

    @property
    def heard_ms(self) -> dict[int, float]:
        return {item: heard / BLOCK for item, heard in self.heard_bytes.items()}

    @property
    def repeated_bytes(self) -> int:
        """Bytes that had been played before."""
        return sum(self.heard_bytes.values()) - sum(
            end - start for runs in self._merged().values() for start, end in runs
        )

    @property
    def lost_bytes(self) -> int:
        """Bytes never played although earlier and later bytes of their item were."""
        return sum(
            later[0] - earlier[1]
            for runs in self._merged().values()
            for earlier, later in pairwise(runs)
        )

    @property
    def in_order(self) -> bool:
        """True if items ascend and no byte of an item is played after a later one."""
        return all(
            (a.item, a.end) <= (b.item, b.start) for a, b in pairwise(self.spans)
        )

    def _merged(self) -> dict[int, list[tuple[int, int]]]:
        merged: dict[int, list[tuple[int, int]]] = {}
        for span in sorted(self.spans, key=lambda s: (s.item, s.start)):
            runs = merged.setdefault(span.item, [])
            if runs and span.start <= runs[-1][1]:
                runs[-1] = (runs[-1][0], max(runs[-1][1], span.end))
            else:
                runs.append((span.start, span.end))
        return merged

    def add(self, item: int, start: int, end: int) -> None:
        """Append a piece; it extends the last span if it continues there."""
        last = self.spans[-1] if self.spans else None
        if last is not None and last.item == item and last.end == start:
            self.spans[-1] = RulerSpan(item, last.start, end)
        else:
            self.spans.append(RulerSpan(item, start, end))


def ruler(item_number: int, ms: int) -> bytes:
    """The first `ms` milliseconds of the item with this number."""
    if not (0 <= item_number < LIMIT and 0 <= ms <= LIMIT):
        raise ValueError("the item number and the milliseconds must be below 2**20")
    return _blocks(item_number, 0, ms)


def _blocks(item_number: int, first_ms: int, end_ms: int) -> bytes:
    index = np.arange(first_ms, end_ms, dtype=np.uint64)
    check = (index * 181 + item_number * 77 + index // 128 * 29) % 511
    value = (np.uint64(item_number) << 29) | (index << 9) | check
    blocks = np.empty((len(index), BLOCK), np.uint8)
    blocks[:, 0] = _SYNC
    for position, mask in enumerate(_POSITION_MASK):
        bits = (value >> (7 * (6 - position))) & 0x7F
        blocks[:, 1 + position] = bits.astype(np.uint8) ^ mask
    return blocks.tobytes()


@lru_cache(maxsize=256)
def _page(item_number: int, page: int) -> bytes:
    return _blocks(item_number, page * _PAGE_MS, (page + 1) * _PAGE_MS)


def read_ruler(audio: bytes) -> Reading:
    """Read `audio`, which may be cut anywhere and contain silence (0xFF) and other
    bytes."""
    reading = Reading()
    fragment = bytearray()  # bytes since the last whole block, without silence
    position = 0
    while position < len(audio):
        byte = audio[position]
        block = _decode(audio, position) if byte == _SYNC else None
        if block is not None:
            _attribute(reading, bytes(fragment), block)
            fragment.clear()
            item, ms = block
            size = BLOCK * _whole_blocks(audio, position, item, ms)
            reading.add(item, ms * BLOCK, ms * BLOCK + size)
            position += size
            continue
        if byte == _SILENCE:
            _attribute(reading, bytes(fragment), None)
            fragment.clear()
            position = _end_of_silence(audio, position)
        else:
            fragment.append(byte)
            position += 1
    _attribute(reading, bytes(fragment), None)
    return reading


def _end_of_silence(audio: bytes, position: int) -> int:
    silence = _SILENT_RUN.match(audio, position)
    return position if silence is None else silence.end()


def _whole_blocks(audio: bytes, position: int, item: int, ms: int) -> int:
    """Number of whole blocks from `position` on that continue the item without a break,
    within a page. The first is known to be block `ms` of the item."""
    expected = _page(item, ms // _PAGE_MS)[ms % _PAGE_MS * BLOCK :]
    found = audio[position : position + len(expected)]
    if found == expected:
        return len(expected) // BLOCK
    whole = len(found) // BLOCK * BLOCK
    same = np.frombuffer(found[:whole], np.uint64) == np.frombuffer(
        expected[:whole], np.uint64
    )
    return whole // BLOCK if same.all() else int(same.argmin())


def _block(item: int, ms: int) -> bytes:
    check = (ms * 181 + item * 77 + ms // 128 * 29) % 511
    value = item << 29 | ms << 9 | check
    return bytes(
        [_SYNC]
        + [
            (value >> 7 * (6 - position) & 0x7F) ^ mask
            for position, mask in enumerate(_POSITION_MASK)
        ]
    )


def _decode(audio: bytes, position: int) -> tuple[int, int] | None:
    block = audio[position : position + BLOCK]
    if len(block) < BLOCK:
        return None
    value = 0
    for byte, mask in zip(block[1:], _POSITION_MASK, strict=True):
        if byte > 0x7F:
            return None
        value = value << 7 | (byte ^ mask)
    item, ms = value >> 29, value >> 9 & (LIMIT - 1)
    return (item, ms) if block == _block(item, ms) else None


def _attribute(
    reading: Reading, fragment: bytes, following: tuple[int, int] | None
) -> None:
    """Attribute the bytes between two whole blocks: a head, a tail, or both."""
    if not fragment:
        return
    # The longest tail that ends where `following` begins; a head may come before it.
    for tail in range(min(len(fragment), BLOCK - 1), -1, -1):
        if tail and not _is_tail(fragment[len(fragment) - tail :], following):
            continue
        head = fragment[: len(fragment) - tail]
        if tail and head and _head_of(reading, head) is None:
            continue
        reading.stray += _attribute_head(reading, head)
        if tail and following is not None:
            item, ms = following
            reading.add(item, ms * BLOCK - tail, ms * BLOCK)
        return


def _is_tail(piece: bytes, following: tuple[int, int] | None) -> bool:
    if following is None or following[1] == 0:
        return False
    return _block(following[0], following[1] - 1).endswith(piece)


def _attribute_head(reading: Reading, head: bytes) -> int:
    """Add `head` if it begins or completes a known block; else all of it is stray."""
    if not head:
        return 0
    found = _head_of(reading, head) or _rest_of(reading, head)
    if found is None:
        return len(head)
    item, start = found
    reading.add(item, start, start + len(head))
    return 0


def _rest_of(reading: Reading, piece: bytes) -> tuple[int, int] | None:
    """Position of `piece` if it continues the block that silence has split."""
    if not reading.spans or reading.spans[-1].end % BLOCK == 0:
        return None
    last = reading.spans[-1]
    rest = _block(last.item, last.end // BLOCK)[last.end % BLOCK :]
    return (last.item, last.end) if rest.startswith(piece) else None


def _head_of(reading: Reading, head: bytes) -> tuple[int, int] | None:
    """Item and position of the block that begins with `head`: the next block of the
    last item, or the first block of an item."""
    if not head or len(head) >= BLOCK or head[0] != _SYNC:
        return None
    candidates: list[tuple[int, int]] = []
    if reading.spans:
        last = reading.spans[-1]
        if last.end % BLOCK == 0:
            candidates.append((last.item, last.end // BLOCK))
        candidates.append((last.item + 1, 0))
    if len(head) >= 4:  # the first three data bytes contain the item's number
        value = 0
        for byte, mask in zip(head[1:4], _POSITION_MASK, strict=False):
            value = value << 7 | (byte ^ mask)
        candidates.append((value >> 1, 0))
    for item, ms in candidates:
        if item < LIMIT and ms < LIMIT and _block(item, ms).startswith(head):
            return item, ms * BLOCK
    return None
