"""The Registry of all instances that share a Redis.

While Redis cannot be reached nothing raises: an instance goes on with what it has
written itself, and writes that again when Redis is back, also if Redis is empty then.
keys.py describes the keys, fleet_format.py gives their names in the format in use. This
module decides nothing about a call.
"""

import asyncio
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import NoScriptError

from bridge.core import UNREADABLE
from bridge.fleet import (
    CLAIM_BYTES,
    MAX_DIRECT_BYTES,
    NEXT_STEP_SECONDS,
    TAKEN,
    CallEntry,
    InstanceLoad,
    NextStep,
    Receiver,
    Subscriber,
    formats,
    keys,
)
from bridge.fleet.fleet_format import FleetFormat
from bridge.fleet.ignored import Ignored
from bridge.fleet.memory import Members
from bridge.fleet.redis_address import redis_address
from bridge.fleet.redis_client import (
    FAILURES,
    is_of_key,
    parts,
    reason_of,
    redis_client,
)
from bridge.fleet.written_values import (
    Counts,
    StoredValue,
    WrittenValues,
    stamp_of,
    value_of,
)

log = structlog.get_logger()

TAIL_SECONDS = 3.0
"""A Redis that crashes may lose the writes of its last second or two, even with a disk:
an instance that finds it again repeats its writes of this time."""

STEADY_SECONDS, LONGEST_PROBE_SECONDS = 3.0, 2.0
"""If a connection to Redis lasts less than STEADY_SECONDS, the pause before the next
attempt doubles, up to LONGEST_PROBE_SECONDS: it bounds the log lines. That is less than
`Timing.wait`, so a reader that waits for Redis sees at least one attempt."""

CHUNK_CALLS = 200
CHUNK_BYTES = 256 * 1024
"""In one request; a larger one would block Redis for milliseconds."""

MAX_UNRELEASED = 10_000
"""Members whose release waits for Redis; older ones expire in Redis."""

MAX_TAKEN = 1000
"""Streams that are remembered as taken over from."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The defaults are for production; tests use shorter times."""

    beat: float = 2.0
    instance: float = 6.0
    """An instance without a beat for so long is no longer in the fleet."""
    lease: float = 15.0
    """A call whose instance has sent no beat for so long is over."""
    limit: float = 0.5
    """Timeout of one answer of Redis; it normally takes a third of a millisecond."""
    probe: float = 0.5
    """Pause between two attempts to reach Redis."""
    wait: float = 3.0
    """A reader waits for Redis until so long after its loss: Twilio waits 15 s for a
    webhook."""
    settle: float = 1.0
    """When Redis is back, the other instances need so long to put back their values."""


class _Unavailable(Exception):
    """Redis has not answered. Does not leave this module."""


class _KeyUnusable(_Unavailable):
    """Redis is there, but the command failed because of what its key contains."""


@dataclass(slots=True)
class _Lease:
    """A call that this instance has."""

    entry: CallEntry
    since: float
    """Orders the streams of a call: the start of the stream, but later than the one
    before."""
    begun: tuple[int, int] | None
    """The earliest and the latest time at which the stream has begun, in ms of the
    clock of Redis. None: that clock was not known."""
    held: bool = False
    """Redis has the lease."""


@asynccontextmanager
async def redis_registry(
    url: str,
    load: Callable[[], InstanceLoad],
    on_up: Callable[[bool], None] = lambda up: None,
    timing: Timing | None = None,
    on_lost: Callable[[], None] = lambda: None,
    on_ignored: Callable[[str], None] = lambda key: None,
) -> AsyncIterator["RedisRegistry"]:
    """The Registry for the life of this instance; it works without Redis, too.

    `load` gives the load of this instance. `on_up` is called with whether Redis can be
    reached, at first and at each change. `on_lost` is called for an instance that has
    ended without leaving, on one of the other instances. `on_ignored` is called with
    the kind of key (bridge.telemetry.metrics.REDIS_KEYS) for each key or message that
    the bridge cannot have written.
    """
    timing = timing or Timing()
    client, place = redis_client(url, timing.limit), redis_address(url)
    registry = RedisRegistry(
        client, place, load, on_up, on_lost, timing, Ignored(on_ignored)
    )
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(registry.stay_connected(), name="fleet"),
            tasks.create_task(registry.follow_format(), name="fleet format"),
        ]
        try:
            await registry.tried.wait()
            yield registry
        finally:
            # Not during a beat: Redis might read the beat after `leave`, and the other
            # instances would report this one as lost.
            with suppress(TimeoutError):
                async with asyncio.timeout(timing.limit), registry.beating:
                    running[0].cancel()
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await registry.leave()


class RedisRegistry:
    """Made by `redis_registry`."""

    shared = True

    def __init__(
        self,
        client: Redis,
        place: str,
        load: Callable[[], InstanceLoad],
        on_up: Callable[[bool], None],
        on_lost: Callable[[], None],
        timing: Timing,
        ignored: Ignored,
    ) -> None:
        self.id = f"{_host()}-{secrets.token_hex(4)}"
        self.beating = asyncio.Lock()  # held during a beat
        self.tried = asyncio.Event()  # set when it is known whether Redis is there
        # Any: the types of redis-py leave the answers of commands open.
        self._redis: Any = client
        self._place = place
        self._load = load
        self._on_up, self._on_lost = on_up, on_lost
        self._timing = timing
        self._ignored = ignored
        self._subscribers: list[Subscriber] = []
        self._receivers: list[Receiver] = []
        self._leases: dict[str, _Lease] = {}
        self._taken: dict[str, None] = {}
        """Streams of this instance that a newer one replaced, until they close."""
        self._ended: dict[str, tuple[float, _Lease]] = {}
        """Calls of this instance that ended less than a lease ago: when (monotonic)."""
        self._written = WrittenValues()
        self._counts = Counts()
        self._members = Members(time.monotonic)
        """Members that this instance has added; they decide while Redis is away."""
        self._unreleased: dict[tuple[str, str], None] = {}  # (name, member)
        self._others: dict[str, InstanceLoad] = {}
        self._era: bytes | None = None
        self._clock: tuple[float, float] | None = None
        """The clock of Redis minus the monotonic clock, in ms: at least and at most."""
        self._up = self._loss_logged = False
        self._back = asyncio.Event()  # as `_up`, for tasks that wait
        self._format = FleetFormat(
            client, timing.limit, timing.beat, self._back, ignored
        )
        self._generation = 0
        """Number of the connection: a failure of an older connection must not mark this
        one as down."""
        self._changed_at = time.monotonic()
        self._settled_at = 0.0
        self._away_at = 0.0
        """Redis may lack what was written from this time on (monotonic clock)."""
        self._lasted = 0.0  # seconds that the last connection lasted
        self._session: asyncio.Timeout | None = None

    @property
    def _channel(self) -> str:
        """The channel of what is sent to this instance alone."""
        return keys.REQUESTS + self.id

    # --- calls ---

    async def opened(self, entry: CallEntry) -> None:
        sid, since = entry.call_sid, entry.started_at
        older = self._leases.get(sid)
        if older and older.entry.stream_sid != entry.stream_sid:
            since = max(since, older.since + 0.001)
            self._lose(older)
        lease = _Lease(replace(entry, instance=self.id), since, self._begun(older))
        self._leases[sid] = lease
        self._ended.pop(sid, None)
        self._written.keep(keys.NEXT + sid, None, NEXT_STEP_SECONDS)
        with suppress(_Unavailable):  # repeated when Redis is back
            if not await self._ask(lambda: self._hold(lease, "new")):
                # The caller of `opened` must have returned: its own streams give TAKEN
                # before that.
                asyncio.get_running_loop().call_soon(self._lose, lease)

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        sid, stream = entry.call_sid, entry.stream_sid
        lease = self._leases.get(sid)
        if stream in self._taken or (lease and lease.entry.stream_sid != stream):
            self._taken.pop(stream, None)
            return
        lease = self._leases.pop(sid, None) or _Lease(entry, entry.started_at, None)
        value = formats.encode(next_step, self._format.current) if next_step else None
        seconds = next_step.seconds if next_step else NEXT_STEP_SECONDS
        now = self._written.keep(keys.NEXT + sid, value, seconds).at
        # The leases of earlier ones have expired in Redis.
        over = now - self._timing.lease
        self._ended = {k: it for k, it in self._ended.items() if it[0] > over}
        self._ended[sid] = (now, lease)
        with suppress(_Unavailable):  # repeated when Redis is back
            await self._ask(lambda: self._close(lease, "new"))

    async def next_step(self, call_sid: str) -> NextStep | None:
        key = keys.NEXT + call_sid
        value = await self._read(key, lambda: self._newest(key))
        return formats.read(value, NextStep) if value else None

    async def calls(self) -> list[CallEntry]:
        entries: dict[str, CallEntry] = {}
        with suppress(_Unavailable):  # then only the calls of this instance are known
            async for entry in self._all_calls():
                entries[entry.call_sid] = entry
        for sid, lease in self._leases.items():
            entries[sid] = lease.entry
        return sorted(entries.values(), key=lambda entry: entry.started_at)

    async def owner(self, call_sid: str) -> CallEntry | None:
        if lease := self._leases.get(call_sid):
            return lease.entry
        with suppress(_Unavailable):
            [row] = await self._ask(partial(self._describe, [call_sid]))
            return _entry(call_sid, row)
        return None

    # --- the store ---

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        key = keys.STORE + name
        text = self._written.keep(key, value, seconds).text
        stored_as = self._format.names(key)[0]
        with suppress(_Unavailable):  # written when Redis is back
            newer = await self._ask(
                lambda: self._script(keys.PUT, [stored_as], [text, _ms(seconds)])
            )
            if newer:  # of an instance whose clock is ahead: the next write replaces it
                self._written.follow(newer)

    async def delete(self, name: str) -> None:
        key = keys.STORE + name
        kept = self._written.keep_deletion(key, keys.DELETED_SECONDS)
        names, left = self._format.names(key), _ms(kept.until - kept.at)
        with suppress(_Unavailable):  # deleted when Redis is back
            tombstone = await self._ask(
                lambda: self._script(keys.DELETE, names, [kept.stamp, left])
            )
            self._written.confirm(key, kept, tombstone)

    async def get(self, name: str) -> bytes | None:
        key = keys.STORE + name
        return await self._read(key, lambda: self._newest(key))

    async def pop(self, name: str) -> bytes | None:
        key, popped = keys.STORE + name, keys.POPPED + secrets.token_hex(8)
        value = await self._read(
            key,
            lambda: self._script(
                keys.POP,
                [popped, *self._format.names(key)],
                [self._written.stamp(), _ms(keys.POPPED_SECONDS)],
            ),
        )
        if value is not None:  # it may come back with Redis
            self._written.keep_tombstone(key, keys.DELETED_SECONDS)
        return value

    async def set_if_absent(
        self, name: str, seconds: float, value: bytes | None = None
    ) -> bool:
        key = keys.STORE + name
        own = self._written.get(key)
        known = own is not None and own.value is not None
        # A random value: if an answer was lost, the instance recognises its own.
        mine = secrets.token_bytes(CLAIM_BYTES) if value is None else value
        kept = own if own and known else self._written.keep(key, mine, seconds, True)
        text, ttl = kept.text, _ms(seconds)
        try:
            first = await self._ask(
                lambda: self._script(
                    keys.SET_IF_ABSENT,
                    self._format.names(key),
                    [text, ttl, len(self._format.claimed(key))],
                )
            )
        except _Unavailable:
            return not known  # only this instance's own values are known
        if not first and not known:
            self._written.drop(key)  # the instance that was first puts it back
        # Redis may have lost what this instance knows.
        return bool(first) and not known

    # --- counters and members ---

    async def count(self, name: str, seconds: float, amount: float = 1.0) -> float:
        key = keys.COUNTER + name
        own = self._counts.of(key, seconds)
        # 0 during the request: a concurrent `count` must not report it as well.
        adding, own.unreported = own.unreported + amount, 0.0
        left = _ms(own.until - time.monotonic())
        try:
            total, left = await self._ask(
                lambda: self._script(
                    keys.COUNT,
                    self._format.claimed(key),
                    [adding, own.known, left, _ms(seconds)],
                )
            )
        except _Unavailable:
            own.unreported += adding
            return own.known + own.unreported
        except BaseException:  # cancelled: it is not known whether Redis has it
            own.unreported += adding
            raise
        own.known = max(own.known, float(total))
        own.until = time.monotonic() + left / 1000
        return float(total)

    async def acquire(
        self, name: str, member: str, seconds: float, limit: int | None = None
    ) -> bool:
        self._unreleased.pop((name, member), None)
        try:
            added = await self._ask(
                lambda: self._script(
                    keys.ACQUIRE,
                    self._format.claimed(keys.MEMBERS + name),
                    [member, _ms(seconds), "" if limit is None else limit],
                )
            )
        except _Unavailable:
            return self._members.acquire(name, member, seconds, limit)
        return bool(added) and self._members.acquire(name, member, seconds, None)

    async def release(self, name: str, member: str) -> None:
        self._members.release(name, member)
        try:
            await self._ask(lambda: self._release(name, member))
        except _Unavailable:
            self._unreleased[name, member] = None
            if len(self._unreleased) > MAX_UNRELEASED:
                del self._unreleased[next(iter(self._unreleased))]

    async def _release(self, name: str, member: str) -> None:
        names = self._format.names(keys.MEMBERS + name)
        await self._script(keys.RELEASE, names, [member])

    async def members(self, name: str) -> list[str]:
        names = self._format.claimed(keys.MEMBERS + name)[:1]
        try:
            found = await self._ask(lambda: self._script(keys.LIST_MEMBERS, names, []))
        except _Unavailable:
            return self._members.of(name)
        return [it.decode(errors="replace") for it in found or ()]

    # --- messages, and free lines ---

    async def send(self, instance: str, message: bytes) -> bool | None:
        channel = keys.REQUESTS + instance
        try:
            got = await self._ask(lambda: self._redis.publish(channel, message))
        except _Unavailable:
            return None
        return bool(got)

    def receive(self, receiver: Receiver) -> None:
        self._receivers.append(receiver)

    async def instances(self) -> list[str]:
        return sorted(self._others)

    async def publish(self, call_sid: str, message: bytes) -> None:
        self._deliver(call_sid, message)
        text = msgspec.json.encode((self.id, call_sid, "", message))
        with suppress(_Unavailable):  # a message is sent once
            await self._ask(lambda: self._redis.publish(keys.MESSAGES, text))

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    async def room(self) -> bool:
        return self._load().free or await self.others()

    async def others(self) -> bool:
        return self._up and any(other.free for other in self._others.values())

    async def reachable(self) -> bool:
        return self._up

    def clock(self) -> float:
        if self._clock is None:  # Redis was never reached
            return time.time()
        # The latest that the clock of Redis may show: a value that this instance still
        # accepts has not expired in Redis.
        return time.monotonic() + self._clock[1] / 1000

    def format(self) -> int:
        return self._format.current

    # --- asking Redis, or going on without it ---

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """The answer. _Unavailable: it did not come in time, or Redis is known to be
        away."""
        if not self._up:
            raise _Unavailable
        generation = self._generation
        try:
            async with asyncio.timeout(self._timing.limit):
                return await question()
        except FAILURES as error:
            if is_of_key(error):
                self._ignored.note("", "unusable")
                raise _KeyUnusable from error
            if generation == self._generation:
                self._lost(error)
            raise _Unavailable from error

    async def _read(
        self, key: str, question: Callable[[], Awaitable[Any]]
    ) -> bytes | None:
        """The value in Redis. While Redis is away: the value that this instance has
        written meanwhile; else the one in Redis if it is back in time; else the one
        that this instance has written before."""
        timing = self._timing
        give_up = time.monotonic() + timing.wait + timing.settle
        while True:
            try:
                await self._settle(key, give_up)
                text = await self._ask(question)
                if text is not None:
                    self._written.follow(text)
                return value_of(text)
            except _KeyUnusable:
                own = self._written.get(key)
                return own.value if own else None
            except _Unavailable:
                own = self._written.get(key)
                if own and own.at >= self._away_at:
                    return own.value
                # Another instance may have changed an older value since.
                if not await self._is_back(
                    min(self._changed_at + timing.wait, give_up)
                ):
                    return own.value if own else None

    async def _settle(self, key: str, give_up: float) -> None:
        """Right after Redis was away, waits for a value that was written since: if
        there is none yet, another instance may be about to put it back."""
        while time.monotonic() < min(self._settled_at, give_up):
            text = await self._ask(lambda: self._newest(key))
            away = _us(time.time() - (time.monotonic() - self._away_at))
            if text is not None and stamp_of(text) >= away:
                return
            await asyncio.sleep(self._timing.settle / 10)

    async def _is_back(self, till: float) -> bool:
        try:
            async with asyncio.timeout(till - time.monotonic()):
                await self._back.wait()
        except TimeoutError:
            return False
        return True

    async def _newest(self, key: str) -> bytes | None:
        """The text of a key that has a name in each format."""
        text: bytes | None = await self._script(keys.READ, self._format.names(key), [])
        return text

    async def _script(
        self, script: keys.Script, names: Sequence[str], args: Sequence[Any]
    ) -> Any:
        rest = (len(names), *names, *args)
        try:
            answer = await self._redis.execute_command("EVALSHA", script.sha, *rest)
        except NoScriptError:  # Redis was emptied (SCRIPT FLUSH)
            answer = await self._redis.execute_command("EVAL", script.text, *rest)
        return self._ignored.without(answer, names)

    async def _hold(self, lease: _Lease, how: str) -> bool:
        """False: a newer stream has the call."""
        entry = lease.entry
        sid = entry.call_sid
        since = await self._script(
            keys.HOLD,
            [keys.CALL + sid, keys.CALLS, keys.NEXT + sid],
            [
                sid,
                entry.stream_sid,
                entry.instance,
                repr(entry.started_at),
                f"{lease.since:.3f}",
                _ms(self._timing.lease),
                _ms(keys.CALLS_SECONDS),
                how,
                *(lease.begun or ("", "")),
            ],
        )
        if since is None:
            return False
        lease.since, lease.held = float(since), True
        return True

    def _begun(self, older: _Lease | None) -> tuple[int, int] | None:
        """A stream begins now; the one before on this instance began earlier."""
        if self._clock is None:
            return None
        now = time.monotonic() * 1000
        earliest, latest = (round(now + offset) for offset in self._clock)
        if older and older.begun:
            earliest = max(earliest, older.begun[1] + 1)
        return earliest, max(latest, earliest)

    async def _close(self, lease: _Lease, how: str) -> None:
        sid = lease.entry.call_sid
        key = keys.NEXT + sid
        kept = self._written.get(key)
        had = await self._script(
            keys.CLOSE,
            [keys.CALL + sid, keys.CALLS, key],
            [
                sid,
                lease.entry.stream_sid,
                f"{lease.since:.3f}",
                kept.text if kept and kept.value is not None else "",
                _ms(kept.until - time.monotonic() if kept else NEXT_STEP_SECONDS),
                how,
            ],
        )
        _, ended = self._ended.get(sid, (0, None))
        if not had and ended is lease:
            del self._ended[sid]
            self._written.drop(key)  # the newer stream decides the next step

    async def _all_calls(self) -> AsyncIterator[CallEntry]:
        listed = await self._ask(lambda: self._script(keys.LIST, [keys.CALLS], []))
        for some in parts([sid.decode() for sid in listed], CHUNK_CALLS):
            rows = await self._ask(partial(self._describe, some))
            for sid, row in zip(some, rows, strict=True):
                if entry := _entry(sid, row):
                    yield entry

    async def _describe(self, sids: Sequence[str]) -> Any:
        names = [keys.CALLS, *(keys.CALL + sid for sid in sids)]
        return await self._script(keys.DESCRIBE, names, sids)

    # --- connection and beats ---

    async def stay_connected(self) -> None:
        """Connects to Redis, again and again. Does not return."""
        pause = self._timing.probe
        while True:
            generation = self._generation
            try:
                await self._connect()
            except FAILURES as error:
                self._lost(error)
            if generation != self._generation:  # Redis was reached meanwhile
                if self._lasted > STEADY_SECONDS:
                    pause = self._timing.probe
                    continue
                pause = min(2 * pause, LONGEST_PROBE_SECONDS)
            await asyncio.sleep(pause)

    async def follow_format(self) -> None:
        """Keeps stored values under the names of the format in use. Does not return."""
        await self._format.follow()

    async def leave(self) -> None:
        """Tells the other instances, which would otherwise wait for the beat."""
        # Also if no answer has come yet: Redis may have read the first beat.
        with suppress(*FAILURES):  # then they notice without it
            async with asyncio.timeout(self._timing.limit):
                await self._redis.hdel(keys.INSTANCES, self.id)
        with suppress(*FAILURES):  # the connections are dropped in any case
            async with asyncio.timeout(self._timing.limit):
                await self._redis.aclose()
                await asyncio.sleep(0)  # the loop closes sockets in its next turn

    async def _connect(self) -> None:
        """Runs until Redis is lost, which raises."""
        messages, limit = self._redis.pubsub(), self._timing.limit
        try:
            async with asyncio.timeout(None) as session:
                async with asyncio.timeout(limit):
                    channels = keys.MESSAGES, self._channel
                    await messages.subscribe(*channels)
                    for _ in channels:
                        await messages.get_message(timeout=limit)  # the confirmation
                emptied = await self._beat()
                before = self._changed_at - TAIL_SECONDS
                await self._put_back(0.0 if emptied else before)
                # No await in between: else a value could be written and not put back.
                self._found(session)
                await self._receive(messages)
        finally:
            self._session = None
            with suppress(*FAILURES):  # the connection is dropped in any case
                async with asyncio.timeout(limit):
                    await messages.aclose()

    async def _receive(self, messages: PubSub) -> None:
        """Delivers messages, and sends a beat when it is due."""
        beat = self._timing.beat
        received_at = time.monotonic()
        beat_at = received_at + beat
        while True:
            wait = max(beat_at - time.monotonic(), 0.0)
            message = await messages.get_message(timeout=wait)
            now = time.monotonic()
            if message is not None:
                received_at = now
                if message["type"] == "message":
                    self._read_message(message["channel"], message["data"])
            if now < beat_at:
                continue
            # If this process was late itself, the answer may wait to be read.
            on_time = now - beat_at < beat
            if on_time and now - received_at > 3 * beat:
                raise TimeoutError  # the connection is dead and was not closed
            async with asyncio.timeout(self._timing.limit):
                await messages.ping()
            if await self._beat():
                await self._put_back(0.0)
            beat_at = now + beat

    async def _beat(self) -> bool:
        """Announces this instance and its calls, and reads the other instances. True:
        Redis has lost its data."""
        own = formats.announcement(self._load())
        ttl, era = _ms(self._timing.instance), secrets.token_hex(4)
        async with self.beating, asyncio.timeout(self._timing.limit):
            asked_at = time.monotonic()
            found, redis_ms, *pairs = await self._script(
                keys.BEAT, [keys.INSTANCES, keys.ERA], [self.id, own, ttl, era]
            )
        self._clock = redis_ms - time.monotonic() * 1000, redis_ms - asked_at * 1000 + 1
        beats = dict(zip(map(bytes.decode, pairs[::2]), pairs[1::2], strict=True))
        beats.pop(self.id, None)
        for name in [name for name, text in beats.items() if not text]:
            del beats[name]
            log.warning("instance_lost", instance=name)
            self._on_lost()
        loads = {name: _load(text) for name, text in beats.items()}
        self._others = {name: it for name, it in loads.items() if it}
        self._format.note([formats.announced(text) for text in beats.values()])
        emptied, self._era = self._era not in (None, found), found
        # While Redis is up, a lease that is not held is about to be written.
        leases = [it for it in self._leases.values() if it.held or not self._up]
        for some in parts(leases, CHUNK_CALLS):
            await self._renew(some)
        return emptied

    async def _renew(self, leases: Sequence[_Lease]) -> None:
        """Renews the leases. If another stream has a call, the message about its
        takeover may have been lost."""
        names = [keys.CALL + lease.entry.call_sid for lease in leases]
        streams = [lease.entry.stream_sid for lease in leases]
        ttls = _ms(keys.CALLS_SECONDS), _ms(self._timing.lease)
        async with asyncio.timeout(self._timing.limit):
            missing = set(
                await self._script(keys.RENEW, [keys.CALLS, *names], [*ttls, *streams])
            )
        for number, lease in enumerate(leases):
            if number in missing:
                await self._hold_again(lease)
            else:
                lease.held = True

    async def _hold_again(self, lease: _Lease) -> None:
        if self._leases.get(lease.entry.call_sid) is not lease:
            return  # the call is over, or has a newer stream on this instance
        async with asyncio.timeout(self._timing.limit):
            ours = await self._hold(lease, "again")
        if not ours:
            self._lose(lease)

    async def _put_back(self, since: float) -> None:
        """Writes again what this instance has written from `since` on (monotonic
        clock), and the leases of its calls. Repeats that until nothing was written
        meanwhile."""
        async with asyncio.timeout(self._timing.limit):
            for script in keys.SCRIPTS:
                await self._redis.script_load(script.text)
        for name, member in list(self._unreleased):
            async with asyncio.timeout(self._timing.limit):
                await self._release(name, member)
            self._unreleased.pop((name, member), None)
        while True:
            for ended, lease in list(self._ended.values()):
                if ended >= since:
                    async with asyncio.timeout(self._timing.limit):
                        await self._close(lease, "again")
            if not self._up:
                for lease in [it for it in self._leases.values() if not it.held]:
                    await self._hold_again(lease)
            written = self._written.since(since)
            if not written:
                return  # the start or end of a call would have written something
            since = time.monotonic()
            for some in _chunks(written):
                await self._write_again(some)

    async def _write_again(self, some: Sequence[tuple[str, StoredValue]]) -> None:
        pipe, now = self._redis.pipeline(transaction=False), time.monotonic()
        written: list[tuple[str, ...]] = []
        for key, kept in some:
            left = _ms(kept.until - now)
            if kept.deletes:
                every = self._format.names(key)
                rest = (len(every), *every, kept.stamp, left)
                pipe.execute_command("EVALSHA", keys.DELETE.sha, *rest)
                written.append(every)
                continue
            if kept.claim:
                names = self._format.claimed(key)
            else:
                names = self._format.names(key)[:1]
            text = self._format.as_written(key, kept.text)
            for stored_as in names:
                pipe.execute_command("EVALSHA", keys.PUT.sha, 1, stored_as, text, left)
                written.append((stored_as,))
        async with asyncio.timeout(self._timing.limit):
            answers = await pipe.execute()
        for answer, names in zip(answers, written, strict=True):
            self._ignored.without(answer, names)

    # --- state of the connection, and messages ---

    def _found(self, session: asyncio.Timeout) -> None:
        now = time.monotonic()
        if self._loss_logged:
            seconds = round(now - self._changed_at, 3)
            log.info("redis_back", at=self._place, seconds=seconds)
            self._settled_at = now + self._timing.settle
        self._up, self._loss_logged, self._changed_at = True, False, now
        self._generation += 1
        self._session = session
        self._back.set()
        self._format.redis_found()
        self.tried.set()
        self._on_up(True)

    def _lost(self, error: BaseException) -> None:
        """Logged once, until Redis is reached again."""
        if self._loss_logged:
            return
        now = time.monotonic()
        if self._up:
            self._lasted = now - self._changed_at
        self._up, self._loss_logged, self._changed_at = False, True, now
        self._away_at = now - self._timing.limit
        self._back.clear()
        for lease in self._leases.values():
            lease.held = False
        if self._session:
            self._session.reschedule(asyncio.get_running_loop().time())
            self._session = None
        self.tried.set()
        self._on_up(False)
        log.warning("redis_lost", at=self._place, why=reason_of(error))

    def _read_message(self, channel: bytes, data: bytes) -> None:
        if channel != keys.MESSAGES.encode():
            self._read_direct(data)
            return
        if len(data) > keys.MAX_MESSAGE_BYTES:
            self._ignored.note(keys.MESSAGES, "size")
            return
        try:
            sender, sid, stream, message = msgspec.json.decode(
                data, type=tuple[str, str, str, bytes]
            )
        except UNREADABLE:
            self._ignored.note(keys.MESSAGES, "form")
            return
        if sender == self.id:
            return
        if not stream:
            self._deliver(sid, message)
            return
        # A takeover; this instance may have a newer stream of the call by now.
        lease = self._leases.get(sid)
        if lease and lease.entry.stream_sid == stream:
            self._lose(lease)

    def _read_direct(self, data: bytes) -> None:
        if len(data) > MAX_DIRECT_BYTES:
            self._ignored.note(self._channel, "size")
            return
        for receiver in self._receivers:
            receiver(data)

    def _lose(self, lease: _Lease) -> None:
        """A newer stream has the call."""
        sid = lease.entry.call_sid
        if self._leases.get(sid) is lease:
            del self._leases[sid]
            self._taken[lease.entry.stream_sid] = None
            if len(self._taken) > MAX_TAKEN:  # some are never closed
                del self._taken[next(iter(self._taken))]
            self._deliver(sid, TAKEN)

    def _deliver(self, call_sid: str, message: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber(call_sid, message)


def _entry(call_sid: str, row: Sequence[bytes] | None) -> CallEntry | None:
    """From a row of keys.DESCRIBE."""
    if row is None:
        return None
    stream, instance, started = map(bytes.decode, row)
    return CallEntry(call_sid, stream, float(started), instance)


def _host() -> str:
    """The name of this machine, as the scripts accept it in the name of an instance."""
    return re.sub("[^!-~]", "_", socket.gethostname()[:40])


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _load(text: bytes) -> InstanceLoad | None:
    try:
        return msgspec.json.decode(text, type=InstanceLoad)
    except UNREADABLE:  # of another version of the bridge
        return None


def _chunks(
    written: Sequence[tuple[str, StoredValue]],
) -> Iterator[list[tuple[str, StoredValue]]]:
    chunk: list[tuple[str, StoredValue]] = []
    size = 0
    for key, kept in written:
        size += len(kept.value or b"") + 100
        if chunk and size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], len(kept.value or b"") + 100
        chunk.append((key, kept))
    if chunk:
        yield chunk
