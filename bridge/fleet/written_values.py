"""The values that an instance has written to Redis, until they expire.

The instance goes on with them while Redis is away, and puts them back afterwards. The
newest value of a key wins, in whatever order instances put theirs back. No connection.
"""

import time
from dataclasses import dataclass, replace

_HEAD = 17

AHEAD_SECONDS = 600.0
"""A stamp that is further ahead comes from a clock that is wrong. It counts for
nothing: else one such value would stop the stamps of all instances that read it."""

_AHEAD_US = round(AHEAD_SECONDS * 1e6)


@dataclass(frozen=True, slots=True)
class StoredValue:
    stamp: int
    """When it was written: microseconds since the epoch."""
    until: float
    """Seconds of the monotonic clock."""
    at: float
    """When it was written, by the monotonic clock: a stamp may follow other clocks."""
    value: bytes | None
    """None: a tombstone; the value was popped or there is none."""
    claim: bool = False
    """Written by `set_if_absent`: under the names of both formats (keys.py)."""
    deletes: bool = False
    """Redis has not confirmed this deletion: it deletes whatever it finds there."""

    @property
    def text(self) -> bytes:
        """As stored in Redis: 16 digits of the stamp; `+`, or `-` for a tombstone; the
        value."""
        flag = b"-" if self.value is None else b"+"
        return b"%016d%b%b" % (self.stamp, flag, self.value or b"")


def value_of(text: bytes | None) -> bytes | None:
    """The value in a stored text; None for a tombstone."""
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
        """Microseconds since the epoch; each call gives a larger number."""
        now = time.time_ns() // 1000
        if self._stamp > now + _AHEAD_US:  # the clock of this machine was set right
            self._stamp = 0
        self._stamp = max(now, self._stamp + 1)
        return self._stamp

    def follow(self, text: bytes) -> None:
        """The next stamp will be newer than that of a text that was read: what this
        instance writes next must replace it, although another clock may be ahead."""
        stamp = stamp_of(text)
        if stamp <= time.time_ns() // 1000 + _AHEAD_US:
            self._stamp = max(self._stamp, stamp)

    def keep(
        self, key: str, value: bytes | None, seconds: float, claim: bool = False
    ) -> StoredValue:
        self._sweep()
        now = time.monotonic()
        kept = StoredValue(self.stamp(), now + seconds, now, value, claim)
        self._kept[key] = kept
        return kept

    def get(self, key: str) -> StoredValue | None:
        kept = self._kept.get(key)
        return kept if kept and kept.until > time.monotonic() else None

    def keep_tombstone(self, key: str, seconds: float) -> StoredValue:
        """The tombstone lasts at least as long as this instance's own value: another
        instance may put back what it had of it."""
        own = self.get(key)
        left = own.until - time.monotonic() if own else 0.0
        return self.keep(key, None, max(left, seconds))

    def keep_deletion(self, key: str, seconds: float) -> StoredValue:
        kept = replace(self.keep_tombstone(key, seconds), deletes=True)
        self._kept[key] = kept
        return kept

    def confirm(self, key: str, deletion: StoredValue, text: bytes) -> None:
        """Redis has deleted the value and has this tombstone now."""
        self.follow(text)
        if self._kept.get(key) is deletion:
            self._kept[key] = replace(deletion, stamp=stamp_of(text), deletes=False)

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)

    def since(self, at: float) -> list[tuple[str, StoredValue]]:
        """The values that were written at this time or later (monotonic clock)."""
        now = time.monotonic()
        kept = self._kept.items()
        return [(k, it) for k, it in kept if it.at >= at and it.until > now]

    def _sweep(self) -> None:
        """Drops expired values; runs when the number of values has doubled."""
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
    """The total that Redis has answered."""
    unreported: float = 0.0
    """The amount that Redis has not got yet."""


class Counts:
    def __init__(self) -> None:
        self._counts: dict[str, Count] = {}
        self._sweep_at = 0

    def of(self, key: str, seconds: float) -> Count:
        """The counter; while it is 0 it expires `seconds` from now."""
        now = time.monotonic()
        count = self._counts.get(key)
        if count is None or count.until <= now:
            self._sweep(now)
            count = self._counts[key] = Count(now + seconds)
        elif not count.known and not count.unreported:
            count.until = now + seconds
        return count

    def _sweep(self, now: float) -> None:
        """As `WrittenValues._sweep`."""
        if len(self._counts) <= self._sweep_at:
            return
        self._counts = {k: it for k, it in self._counts.items() if it.until > now}
        self._sweep_at = 2 * len(self._counts) + 64
