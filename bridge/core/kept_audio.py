"""The caller's latest audio, kept in little memory for another session.

A call keeps up to 15 s of it at any time, and 45 s while the caller speaks. As single
frames it would be the largest part of a call's memory.
"""

import re
from collections.abc import Iterator

from bridge.audio import g711

FRAMES_IN_PART = 25
"""Frames are put together into one text: half a second. A frame alone takes 350 bytes
for its 160 bytes of audio, and one of these texts takes 216 for each."""

LONG_CHARS = 1000
"""A payload that is longer is a part of its own; a frame has 216."""

MAX_CHARS_PER_MS = 16
"""A frame needs 11. Frames of single samples need 32, so they are kept half as long."""

_PAYLOAD = re.compile("[^=]+=*")
"""Payloads that follow each other: where one is padded, the next must begin."""


class KeptAudio:
    """Payloads in, and their newest audio as mu-law out. `limit` bounds it."""

    def __init__(self) -> None:
        self._new: list[str] = []
        """The payloads since the last part."""
        self._parts: list[tuple[str, float]] = []
        """Each with its duration in ms."""
        self._ms = 0.0
        """Duration of the parts."""
        self._chars = 0
        """Size of the parts."""

    def add(self, payload: str) -> bool:
        """True: a part is full, so that `limit` must follow."""
        self._new.append(payload)
        return len(self._new) >= FRAMES_IN_PART or len(payload) > LONG_CHARS

    def limit(self, ms: float) -> None:
        """Drops the oldest parts that are not needed for `ms`."""
        part = "".join(self._new)
        part_bytes = len(part) // 4 * 3 - part.count("=")
        self._new.clear()
        self._parts.append((part, part_bytes / g711.BYTES_PER_MS))
        self._ms += part_bytes / g711.BYTES_PER_MS
        self._chars += len(part)
        while self._ms - self._parts[0][1] >= ms or self._chars > ms * MAX_CHARS_PER_MS:
            oldest, oldest_ms = self._parts.pop(0)
            self._ms -= oldest_ms
            self._chars -= len(oldest)

    def take(self, ms: float) -> bytes:
        """The newest `ms` as mu-law. Nothing is kept any more."""
        return decoded(self.take_text())[-int(ms * g711.BYTES_PER_MS) :]

    def take_text(self) -> str:
        """All that is kept, for `decoded`. Nothing is kept any more."""
        text = "".join([*(part for part, _ in self._parts), *self._new])
        self.clear()
        return text

    def newest(self, ms: int) -> Iterator[bytes]:
        """Mu-law in pieces of at most `ms`, the newest first."""
        size = ms * g711.BYTES_PER_MS
        for part in ("".join(self._new), *(part for part, _ in reversed(self._parts))):
            sound = decoded(part)
            for end in range(len(sound), 0, -size):
                yield sound[max(end - size, 0) : end]

    def clear(self) -> None:
        self._new.clear()
        self._parts.clear()
        self._ms, self._chars = 0.0, 0


def decoded(text: str) -> bytes:
    """The mu-law of payloads that follow each other."""
    return g711.sound(_PAYLOAD.findall(text))
