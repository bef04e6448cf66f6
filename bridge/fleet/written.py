"""What an instance has put into the shared place and taken from it, while it counts.

What it goes on with while that place is away, and puts back afterwards. The newest word
for a key counts, whoever comes first. Asks nobody.
"""

import time
from dataclasses import dataclass

_HEAD = 17


@dataclass(frozen=True, slots=True)
class StoredValue:
    stamp: int
    """When it was written: microseconds since the epoch."""
    until: float
    """Seconds of the monotonic clock."""
    value: bytes | None
    """None: there is nothing, it was taken."""

    @property
    def text(self) -> bytes:
        """As it is kept: 16 digits of the stamp; `+`, or `-` for nothing; the value."""
        flag = b"-" if self.value is None else b"+"
        return b"%016d%b%b" % (self.stamp, flag, self.value or b"")


def value_of(text: bytes | None) -> bytes | None:
    """The value in a Kept's text."""
    if text is None or text[_HEAD - 1 : _HEAD] != b"+":
        return None
    return text[_HEAD:]


def stamp_of(text: bytes) -> int:
    return int(text[: _HEAD - 1])


class WrittenValues:
    def __init__(self) -> None:
        self._kept: dict[str, StoredValue] = {}
        self._stamp = 0
        self._sweep_at = 0

    def stamp(self) -> int:
        """Now; never the same twice."""
        self._stamp = max(time.time_ns() // 1000, self._stamp + 1)
        return self._stamp

    def keep(self, key: str, value: bytes | None, seconds: float) -> StoredValue:
        self._sweep()
        kept = StoredValue(self.stamp(), time.monotonic() + seconds, value)
        self._kept[key] = kept
        return kept

    def get(self, key: str) -> StoredValue | None:
        kept = self._kept.get(key)
        return kept if kept and kept.until > time.monotonic() else None

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)

    def since(self, stamp: int) -> list[tuple[str, StoredValue]]:
        """What was written then or later."""
        now = time.monotonic()
        kept = self._kept.items()
        return [(k, it) for k, it in kept if it.stamp >= stamp and it.until > now]

    def _sweep(self) -> None:
        """What is over; looked for whenever there is twice as much as was left."""
        if len(self._kept) <= self._sweep_at:
            return
        now = time.monotonic()
        self._kept = {key: it for key, it in self._kept.items() if it.until > now}
        self._sweep_at = 2 * len(self._kept) + 64


@dataclass(slots=True)
class Count:
    """One counter, as this instance knows it."""

    until: float
    """Seconds of the monotonic clock."""
    known: float = 0.0
    """What the shared place has said there is."""
    unreported: float = 0.0
    """What it has not been told."""


class Counts:
    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self._sweep_at = 0

    def of(self, key: str, seconds: float) -> Count:
        """A counter that nothing is in yet lives `seconds` from now."""
        now = time.monotonic()
        count = self._counts.get(key)
        if count is None or count.until <= now:
            self._sweep(now)
            count = self._counts[key] = Count(now + seconds)
        elif not count.known and not count.unreported:
            count.until = now + seconds
        return count

    def _sweep(self, now: float) -> None:
        """As that of Written."""
        if len(self._counts) <= self._sweep_at:
            return
        self._counts = {k: it for k, it in self._counts.items() if it.until > now}
        self._sweep_at = 2 * len(self._counts) + 64
