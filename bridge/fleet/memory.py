"""The Registry of a single instance: its data end with the process."""

import time
from collections.abc import Callable

from bridge.fleet import (
    MAX_MEMBERS,
    TAKEN,
    CallEntry,
    InstanceLoad,
    NextStep,
    Receiver,
    Subscriber,
    formats,
)


class MemoryRegistry:
    """`now` gives seconds of a monotonic clock, `epoch` the time at which it was 0."""

    shared = False
    id = ""

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        load: Callable[[], InstanceLoad] = lambda: InstanceLoad(1, 0),
        epoch: float | None = None,
    ) -> None:
        self._epoch = time.time() - now() if epoch is None else epoch
        self._load = load
        self._now = now
        self._subscribers: list[Subscriber] = []
        self._entries: dict[str, CallEntry] = {}
        self._next: dict[str, tuple[float, NextStep]] = {}
        self._store: dict[str, tuple[float, bytes]] = {}
        self._sweep_at = 0
        self._members = Members(now)

    async def opened(self, entry: CallEntry) -> None:
        mine = (it for it in self._entries.values() if it.call_sid == entry.call_sid)
        for old in list(mine):
            del self._entries[old.stream_sid]
            if old.stream_sid != entry.stream_sid:
                await self.publish(entry.call_sid, TAKEN)
        self._entries[entry.stream_sid] = entry
        # `next_step` keeps the step, as Twilio may ask twice; a new stream ends that.
        self._next.pop(entry.call_sid, None)

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        self._entries.pop(entry.stream_sid, None)
        if any(it.call_sid == entry.call_sid for it in self._entries.values()):
            return  # a newer stream has the call
        self._drop_stale()
        self._next.pop(entry.call_sid, None)
        if next_step is not None:
            until = self._now() + next_step.seconds
            self._next[entry.call_sid] = (until, next_step)

    async def next_step(self, call_sid: str) -> NextStep | None:
        until, step = self._next.get(call_sid, (0.0, None))
        return step if until > self._now() else None

    async def calls(self) -> list[CallEntry]:
        return list(self._entries.values())

    async def owner(self, call_sid: str) -> CallEntry | None:
        found = (it for it in self._entries.values() if it.call_sid == call_sid)
        return next(found, None)

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        self._sweep()
        self._store[name] = (self._now() + seconds, value)

    async def get(self, name: str) -> bytes | None:
        until, value = self._store.get(name, (0.0, None))
        return value if until > self._now() else None

    async def pop(self, name: str) -> bytes | None:
        value = await self.get(name)
        self._store.pop(name, None)
        return value

    async def delete(self, name: str) -> None:
        self._store.pop(name, None)

    async def set_if_absent(
        self, name: str, seconds: float, value: bytes | None = None
    ) -> bool:
        if await self.get(name) is not None:
            return False
        await self.put(name, value or b"", seconds)
        return True

    async def count(self, name: str, seconds: float, amount: float = 1.0) -> float:
        key, now = f"count:{name}", self._now()
        until, kept = self._store.get(key, (0.0, b""))
        if until <= now:
            until, kept = now + seconds, b"0"
        total = float(kept) + amount
        if amount:
            self._sweep()
            self._store[key] = (until, repr(total).encode())
        return total

    async def acquire(
        self, name: str, member: str, seconds: float, limit: int | None = None
    ) -> bool:
        return self._members.acquire(name, member, seconds, limit)

    async def release(self, name: str, member: str) -> None:
        self._members.release(name, member)

    async def members(self, name: str) -> list[str]:
        return self._members.of(name)

    async def publish(self, call_sid: str, message: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber(call_sid, message)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    async def send(self, instance: str, message: bytes) -> bool | None:
        return False

    def receive(self, receiver: Receiver) -> None:
        """No other instance sends anything."""

    async def instances(self) -> list[str]:
        return []

    async def room(self) -> bool:
        return self._load().free

    async def others(self) -> bool:
        return False

    async def reachable(self) -> bool:
        return False

    def clock(self) -> float:
        return self._epoch + self._now()

    def format(self) -> int:
        return formats.FORMAT

    def _drop_stale(self) -> None:
        now = self._now()
        for call_sid, (until, _) in list(self._next.items()):
            if until <= now:
                del self._next[call_sid]

    def _sweep(self) -> None:
        """Drops expired values; runs when the number of values has doubled."""
        if len(self._store) <= self._sweep_at:
            return
        now = self._now()
        self._store = {
            name: kept for name, kept in self._store.items() if kept[0] > now
        }
        self._sweep_at = 2 * len(self._store) + 64


class Members:
    """Sets of members, each with the time at which it expires."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._names: dict[str, dict[str, float]] = {}
        self._sweep_at = 0

    def acquire(
        self, name: str, member: str, seconds: float, limit: int | None
    ) -> bool:
        """As Registry.acquire."""
        self._sweep()
        now = self._now()
        members = _current(self._names.get(name, {}), now)
        if limit is not None and member not in members and len(members) >= limit:
            return False
        members[member] = now + seconds
        self._names[name] = members
        return True

    def release(self, name: str, member: str) -> None:
        self._names.get(name, {}).pop(member, None)

    def of(self, name: str) -> list[str]:
        members = _current(self._names.get(name, {}), self._now())
        return sorted(members, key=members.__getitem__)[:MAX_MEMBERS]

    def _sweep(self) -> None:
        """Drops empty sets; runs when the number of sets has doubled."""
        if len(self._names) <= self._sweep_at:
            return
        now = self._now()
        left = {name: _current(members, now) for name, members in self._names.items()}
        self._names = {name: members for name, members in left.items() if members}
        self._sweep_at = 2 * len(self._names) + 64


def _current(members: dict[str, float], now: float) -> dict[str, float]:
    return {member: until for member, until in members.items() if until > now}
