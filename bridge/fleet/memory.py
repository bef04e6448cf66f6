"""The Registry of an instance that is alone: nothing outlives the process."""

import time
from collections.abc import Callable

from bridge.fleet import TAKEN, CallEntry, Capacity, Ear, NextStep, formats

NEXT_STEP_SECONDS = 60.0
"""Twilio asks right after the stream has ended; when it does not, the call is over and
what was left for it is dropped."""


class MemoryRegistry:
    """`now` gives seconds of a clock that never goes back."""

    shared = False

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        capacity: Callable[[], Capacity] = lambda: Capacity(1, 0),
    ) -> None:
        self._capacity = capacity
        self._now = now
        self._ears: list[Ear] = []
        self._entries: dict[str, CallEntry] = {}
        self._next: dict[str, tuple[float, NextStep]] = {}
        self._shelf: dict[str, tuple[float, bytes]] = {}
        self._sweep_at = 0
        self._inside = Inside(now)

    async def opened(self, entry: CallEntry) -> None:
        mine = (it for it in self._entries.values() if it.call_sid == entry.call_sid)
        for old in list(mine):
            del self._entries[old.stream_sid]
            if old.stream_sid != entry.stream_sid:
                await self.tell(entry.call_sid, TAKEN)
        self._entries[entry.stream_sid] = entry
        # Twilio may ask twice what follows; a new stream is what followed.
        self._next.pop(entry.call_sid, None)

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        self._entries.pop(entry.stream_sid, None)
        if any(it.call_sid == entry.call_sid for it in self._entries.values()):
            return  # it was taken over from
        self._drop_stale()
        # Out first, so that a step left anew is the newest again.
        self._next.pop(entry.call_sid, None)
        if next_step is not None:
            self._next[entry.call_sid] = (self._now() + NEXT_STEP_SECONDS, next_step)

    async def next_step(self, call_sid: str) -> NextStep | None:
        self._drop_stale()
        _, step = self._next.get(call_sid, (0.0, None))
        return step

    async def calls(self) -> list[CallEntry]:
        return list(self._entries.values())

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        self._sweep()
        self._shelf[name] = (self._now() + seconds, value)

    async def get(self, name: str) -> bytes | None:
        until, value = self._shelf.get(name, (0.0, None))
        return value if until > self._now() else None

    async def take(self, name: str) -> bytes | None:
        value = await self.get(name)
        self._shelf.pop(name, None)
        return value

    async def first(self, name: str, seconds: float) -> bool:
        if await self.get(name) is not None:
            return False
        await self.put(name, b"", seconds)
        return True

    async def count(self, name: str, seconds: float, amount: float = 1.0) -> float:
        key, now = f"count:{name}", self._now()
        until, kept = self._shelf.get(key, (0.0, b""))
        if until <= now:
            until, kept = now + seconds, b"0"
        total = float(kept) + amount
        if amount:
            self._sweep()
            self._shelf[key] = (until, repr(total).encode())
        return total

    async def let_in(
        self, name: str, who: str, seconds: float, most: int | None = None
    ) -> bool:
        return self._inside.let_in(name, who, seconds, most)

    async def let_out(self, name: str, who: str) -> None:
        self._inside.let_out(name, who)

    async def tell(self, call_sid: str, word: bytes) -> None:
        for ear in self._ears:
            ear(call_sid, word)

    def listen(self, ear: Ear) -> None:
        self._ears.append(ear)

    async def room(self) -> bool:
        return self._capacity().free

    async def others(self) -> bool:
        return False

    async def reachable(self) -> bool:
        return False

    def format(self) -> int:
        return formats.FORMAT

    def _drop_stale(self) -> None:
        # Oldest first, as they were put in.
        now = self._now()
        for call_sid, (until, _) in list(self._next.items()):
            if until > now:
                break
            del self._next[call_sid]

    def _sweep(self) -> None:
        """What nobody came for; looked for whenever the shelf has doubled."""
        if len(self._shelf) <= self._sweep_at:
            return
        now = self._now()
        self._shelf = {
            name: kept for name, kept in self._shelf.items() if kept[0] > now
        }
        self._sweep_at = 2 * len(self._shelf) + 64


class Inside:
    """Who is in what, and until when."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._names: dict[str, dict[str, float]] = {}
        self._sweep_at = 0

    def let_in(self, name: str, who: str, seconds: float, most: int | None) -> bool:
        """As Registry.let_in."""
        self._sweep()
        now = self._now()
        inside = _still(self._names.get(name, {}), now)
        if most is not None and who not in inside and len(inside) >= most:
            return False
        inside[who] = now + seconds
        self._names[name] = inside
        return True

    def let_out(self, name: str, who: str) -> None:
        self._names.get(name, {}).pop(who, None)

    def _sweep(self) -> None:
        """Names that nobody is in any more; as the shelf is swept."""
        if len(self._names) <= self._sweep_at:
            return
        now = self._now()
        left = {name: _still(inside, now) for name, inside in self._names.items()}
        self._names = {name: inside for name, inside in left.items() if inside}
        self._sweep_at = 2 * len(self._names) + 64


def _still(inside: dict[str, float], now: float) -> dict[str, float]:
    return {who: until for who, until in inside.items() if until > now}
