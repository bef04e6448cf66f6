"""The Registry of all instances that share a Redis, and of one that has lost it.

While Redis is away nothing raises: an instance goes on with what it has written itself,
and puts that back when Redis is there again, into an empty one, too. What is kept there
is in keys.py. Decides nothing about a call.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from bridge.core import UNREADABLE
from bridge.fleet import (
    TAKEN,
    CallEntry,
    InstanceLoad,
    NextStep,
    Subscriber,
    formats,
    keys,
)
from bridge.fleet.memory import NEXT_STEP_SECONDS, Members
from bridge.fleet.place import redis_place
from bridge.fleet.written import Counts, StoredValue, WrittenValues, stamp_of, value_of

log = structlog.get_logger()

_T = TypeVar("_T")

TAIL_SECONDS = 3.0
"""A Redis that dies may lose what it was told in its last second or two, whatever its
disk: who finds it again tells it that again."""

STEADY_SECONDS, LONGEST_PROBE_SECONDS = 3.0, 2.0
"""A Redis that is lost sooner than that after it was found is looked for less and less
often, but more often than a reader's patience lasts: no flood of log lines."""

CONNECTIONS = 16
CHUNK_CALLS = 200
CHUNK_BYTES = 256 * 1024
"""In one go; more would keep Redis from the others for milliseconds."""

MAX_TAKEN = 1000
"""Streams that are remembered as taken over from."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The defaults are meant; tests are in more of a hurry."""

    beat: float = 2.0
    instance: float = 6.0
    """An instance that has not been heard of for so long is gone."""
    lease: float = 15.0
    """A call whose instance has not been heard of for so long is over."""
    limit: float = 0.5
    """For one answer of Redis; it takes a third of a millisecond."""
    probe: float = 0.5
    """How often one that is away is looked for."""
    wait: float = 3.0
    """A reader's patience, from when it went away: Twilio waits 15 s for a webhook."""
    settle: float = 1.0
    """When it is back, the others need so long to put back what they have."""


class _Away(Exception):
    """There is no answer of Redis. Does not leave this module."""


_LOST = (RedisError, OSError, TimeoutError)
"""Redis is not there or of no use: full, loading, read-only."""


@dataclass(slots=True)
class _Lease:
    """A call that this instance has."""

    entry: CallEntry
    since: float
    """Orders the streams of a call: its start, but later than the one before."""
    held: bool = False
    """Redis knows."""


@asynccontextmanager
async def redis_registry(
    url: str,
    load: Callable[[], InstanceLoad],
    on_up: Callable[[bool], None] = lambda up: None,
    timing: Timing | None = None,
    on_lost: Callable[[], None] = lambda: None,
) -> AsyncIterator["RedisRegistry"]:
    """The Registry as long as this instance lives; there even where Redis is not.

    `capacity` says what this instance has to give, `told_up` hears whether Redis is
    there, at first and whenever that changes, `told_lost` of an instance that has ended
    without leaving: of each, one of the others is told.
    """
    timing = timing or Timing()
    client, place = _client(url, timing.limit), redis_place(url)
    registry = RedisRegistry(client, place, load, on_up, on_lost, timing)
    async with asyncio.TaskGroup() as tasks:
        staying = tasks.create_task(registry.stay(), name="fleet")
        try:
            await registry.tried.wait()
            yield registry
        finally:
            # Not in the middle of a beat: Redis might read that after the goodbye, and
            # the others would miss an instance that has left in good order.
            with suppress(TimeoutError):
                async with asyncio.timeout(timing.limit), registry.beating:
                    staying.cancel()
            staying.cancel()
            await asyncio.wait([staying])
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
    ) -> None:
        self.id = f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"
        self.beating = asyncio.Lock()
        """Held while a beat is on its way."""
        self.tried = asyncio.Event()
        """It is known whether Redis is there."""
        # Any: what its commands answer, its types leave open.
        self._redis: Any = client
        self._place = place
        self._load = load
        self._on_up = on_up
        self._on_lost = on_lost
        self._timing = timing
        self._subscribers: list[Subscriber] = []
        self._leases: dict[str, _Lease] = {}
        self._taken: dict[str, None] = {}
        """Streams of ours that a newer one took over from, until they close."""
        self._ended: dict[str, tuple[int, _Lease]] = {}
        """Calls of ours that ended a short while ago, and when (a stamp)."""
        self._written = WrittenValues()
        self._counts = Counts()
        self._members = Members(time.monotonic)
        """Whom this instance has let in; it decides while Redis is away."""
        self._others: dict[str, InstanceLoad] = {}
        self._format = formats.OLDEST
        """The format to write; the oldest as long as the others are not known."""
        self._formats_differ = False
        """Live instances announce different formats."""
        self._differ_since = 0.0
        self._era: bytes | None = None
        self._up = False
        self._back = asyncio.Event()
        """As `_up`, for who waits."""
        self._spell = 0
        """How often Redis was found: who got no answer from one that is gone since
        says nothing about the next."""
        self._changed_at = time.monotonic()
        self._settled_at = 0.0
        self._away_stamp = 0
        """What was written from then on Redis may not have been told."""
        self._lasted = 0.0
        """Seconds that Redis was there, the last time."""
        self._told_away = False
        self._session: asyncio.Timeout | None = None

    # --- calls ---

    async def opened(self, entry: CallEntry) -> None:
        sid, since = entry.call_sid, entry.started_at
        older = self._leases.get(sid)
        if older and older.entry.stream_sid != entry.stream_sid:
            since = max(since, older.since + 0.001)
            self._lose(older)
        lease = _Lease(replace(entry, instance=self.id), since)
        self._leases[sid] = lease
        self._ended.pop(sid, None)
        self._written.keep(keys.NEXT + sid, None, NEXT_STEP_SECONDS)
        with suppress(_Away):  # it is told when it is back
            await self._ask(lambda: self._hold(lease, "new"))

    async def closed(self, entry: CallEntry, next_step: NextStep | None) -> None:
        sid, stream = entry.call_sid, entry.stream_sid
        lease = self._leases.get(sid)
        if stream in self._taken or (lease and lease.entry.stream_sid != stream):
            self._taken.pop(stream, None)
            return
        lease = self._leases.pop(sid, None) or _Lease(entry, entry.started_at)
        value = formats.encode(next_step, self._format) if next_step else None
        now = self._written.keep(keys.NEXT + sid, value, NEXT_STEP_SECONDS).stamp
        # Of those before, Redis has forgotten by itself that there were any.
        over = now - _us(self._timing.lease)
        self._ended = {k: it for k, it in self._ended.items() if it[0] > over}
        self._ended[sid] = (now, lease)
        with suppress(_Away):  # it is told when it is back
            await self._ask(lambda: self._close(lease, "new"))

    async def next_step(self, call_sid: str) -> NextStep | None:
        key = keys.NEXT + call_sid
        value = await self._read(key, lambda: self._redis.get(key))
        return formats.read(value, NextStep) if value else None

    async def calls(self) -> list[CallEntry]:
        entries: dict[str, CallEntry] = {}
        with suppress(_Away):  # then it is those of this instance
            entries = await self._ask(self._all_calls)
        for sid, lease in self._leases.items():
            entries[sid] = lease.entry
        return sorted(entries.values(), key=lambda entry: entry.started_at)

    # --- the shelf ---

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        key = keys.SHELF + name
        text = self._written.keep(key, value, seconds).text
        with suppress(_Away):  # it is put there when it is back
            await self._ask(lambda: self._redis.set(key, text, px=_ms(seconds)))

    async def get(self, name: str) -> bytes | None:
        key = keys.SHELF + name
        return await self._read(key, lambda: self._redis.get(key))

    async def pop(self, name: str) -> bytes | None:
        key, mine = keys.SHELF + name, keys.JUST_TAKEN + secrets.token_hex(8)
        ttl = _ms(keys.JUST_TAKEN_SECONDS)
        value = await self._read(
            key,
            lambda: self._script(keys.TAKE, [key, mine], [self._written.stamp(), ttl]),
        )
        if value is not None:
            # As long as what is there would last, should it come back with Redis.
            own, now = self._written.get(key), time.monotonic()
            left = own.until - now if own else 0.0
            self._written.keep(key, None, max(left, keys.JUST_TAKEN_SECONDS))
        return value

    async def set_if_absent(self, name: str, seconds: float) -> bool:
        key = keys.SHELF + name
        own = self._written.get(key)
        known = own is not None and own.value is not None
        # Something of its own, to be known by when an answer was lost.
        mine = secrets.token_bytes(8)
        kept = own if own and known else self._written.keep(key, mine, seconds)
        text, ttl = kept.text, _ms(seconds)
        try:
            first = await self._ask(
                lambda: self._script(keys.FIRST, [key], [text, ttl])
            )
        except _Away:
            return not known  # as far as can be told from here
        if not first and not known:
            self._written.drop(key)  # it is another's to remember
        return first == 1 or (first == 2 and not known)

    # --- how much, and how many ---

    async def count(self, name: str, seconds: float, amount: float = 1.0) -> float:
        """What was added while Redis was away is added with the next question for this
        counter."""
        key = keys.COUNTED + name
        own = self._counts.of(key, seconds)
        # Out while it is being told: another question is not to tell it, too.
        adding, own.unreported = own.unreported + amount, 0.0
        left = _ms(own.until - time.monotonic())
        try:
            total, left = await self._ask(
                lambda: self._script(
                    keys.COUNT, [key], [adding, own.known, left, _ms(seconds)]
                )
            )
        except _Away:
            own.unreported += adding
            return own.known + own.unreported
        except BaseException:  # a cancellation: nobody knows whether it was told
            own.unreported += adding
            raise
        own.known = max(own.known, float(total))
        own.until = time.monotonic() + left / 1000
        return float(total)

    async def acquire(
        self, name: str, member: str, seconds: float, limit: int | None = None
    ) -> bool:
        try:
            there = await self._ask(
                lambda: self._script(
                    keys.LET_IN,
                    [keys.INSIDE + name],
                    [member, _ms(seconds), "" if limit is None else limit],
                )
            )
        except _Away:
            return self._members.acquire(name, member, seconds, limit)
        return bool(there) and self._members.acquire(name, member, seconds, None)

    async def release(self, name: str, member: str) -> None:
        self._members.release(name, member)
        with suppress(_Away):  # it is forgotten there, too, when its time is over
            await self._ask(lambda: self._redis.zrem(keys.INSIDE + name, member))

    # --- words, and room ---

    async def publish(self, call_sid: str, message: bytes) -> None:
        self._deliver(call_sid, message)
        text = msgspec.json.encode((self.id, call_sid, "", message))
        with suppress(_Away):  # once, to whoever is there
            await self._ask(lambda: self._redis.publish(keys.WORDS, text))

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    async def room(self) -> bool:
        return self._load().free or await self.others()

    async def others(self) -> bool:
        return self._up and any(other.free for other in self._others.values())

    async def reachable(self) -> bool:
        return self._up

    def format(self) -> int:
        return self._format

    # --- asking Redis, or doing without ---

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """The answer. _Away: there is none in time, or known to be none."""
        if not self._up:
            raise _Away
        spell = self._spell
        try:
            async with asyncio.timeout(self._timing.limit):
                return await question()
        except _LOST as error:
            if spell == self._spell:
                self._lost(error)
            raise _Away from error

    async def _read(
        self, key: str, question: Callable[[], Awaitable[Any]]
    ) -> bytes | None:
        """What Redis has. While it is away: what was written here meanwhile, else what
        it has when it is back in time, else what was written here before."""
        timing = self._timing
        give_up = time.monotonic() + timing.wait + timing.settle
        while True:
            try:
                await self._settle(key, give_up)
                return value_of(await self._ask(question))
            except _Away:
                own = self._written.get(key)
                if own and own.stamp >= self._away_stamp:
                    return own.value
                # What is older another instance may have changed since.
                if not await self._is_back(
                    min(self._changed_at + timing.wait, give_up)
                ):
                    return own.value if own else None

    async def _settle(self, key: str, give_up: float) -> None:
        """Right after Redis was away, waits until what counts is there: what is not, or
        is older than that, another instance may be about to put back."""
        while time.monotonic() < min(self._settled_at, give_up):
            text = await self._ask(lambda: self._redis.get(key))
            if text is not None and stamp_of(text) >= self._away_stamp:
                return
            await asyncio.sleep(self._timing.settle / 10)

    async def _is_back(self, till: float) -> bool:
        try:
            async with asyncio.timeout(till - time.monotonic()):
                await self._back.wait()
        except TimeoutError:
            return False
        return True

    async def _script(
        self, script: keys.Script, names: Sequence[str], args: Sequence[Any]
    ) -> Any:
        told = (len(names), *names, *args)
        try:
            return await self._redis.execute_command("EVALSHA", script.sha, *told)
        except NoScriptError:  # somebody had Redis forget it
            return await self._redis.execute_command("EVAL", script.text, *told)

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
            ],
        )
        if since is None:
            return False
        lease.since, lease.held = float(since), True
        return True

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
                _ms(NEXT_STEP_SECONDS),
                how,
            ],
        )
        _, ended = self._ended.get(sid, (0, None))
        if not had and ended is lease:
            del self._ended[sid]
            self._written.drop(key)  # the newer one says what follows

    async def _all_calls(self) -> dict[str, CallEntry]:
        listed: list[bytes] = await self._redis.zrange(keys.CALLS, 0, -1)
        sids = [sid.decode() for sid in listed]
        found: dict[str, CallEntry] = {}
        for some in _parts(sids, CHUNK_CALLS):
            names = [keys.CALL + sid for sid in some]
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                pipe.hmget(name, ["stream", "started", "instance"])
            rows = list(zip(some, await pipe.execute(), strict=True))
            if any(stream is None for _, (stream, *_) in rows):
                await self._script(keys.STRIKE, [keys.CALLS, *names], some)
            for sid, (stream, started, instance) in rows:
                if stream is not None:
                    found[sid] = CallEntry(
                        sid, stream.decode(), float(started), instance.decode()
                    )
        return found

    # --- being there ---

    async def stay(self) -> None:
        """Holds on to Redis, and looks for it while it is away. Does not return."""
        pause = self._timing.probe
        while True:
            spell = self._spell
            try:
                await self._be_there()
            except _LOST as error:
                self._lost(error)
            if spell != self._spell:  # it was found in between
                if self._lasted > STEADY_SECONDS:
                    pause = self._timing.probe
                    continue
                pause = min(2 * pause, LONGEST_PROBE_SECONDS)
            await asyncio.sleep(pause)

    async def leave(self) -> None:
        """The others need not find out by themselves."""
        # Also where Redis is not known to be there yet: the first beat may have come.
        with suppress(*_LOST):  # then they do
            async with asyncio.timeout(self._timing.limit):
                await self._redis.hdel(keys.INSTANCES, self.id)
        with suppress(*_LOST):  # the connections are done with either way
            async with asyncio.timeout(self._timing.limit):
                await self._redis.aclose()
                await asyncio.sleep(0)  # a closed socket is let go of a turn later

    async def _be_there(self) -> None:
        """From finding Redis to losing it, which raises."""
        words, limit = self._redis.pubsub(), self._timing.limit
        try:
            async with asyncio.timeout(None) as session:
                async with asyncio.timeout(limit):
                    await words.subscribe(keys.WORDS)
                    await words.get_message(timeout=limit)  # that it is so
                emptied = await self._beat()
                gone = time.monotonic() - self._changed_at
                before = self._written.stamp() - _us(gone + TAIL_SECONDS)
                await self._put_back(0 if emptied else before)
                # No await in between: all that was written meanwhile is there.
                self._found(session)
                await self._receive(words)
        finally:
            self._session = None
            with suppress(*_LOST):  # the connection is done with either way
                async with asyncio.timeout(limit):
                    await words.aclose()

    async def _receive(self, words: PubSub) -> None:
        """Words as they come, a beat when it is due."""
        beat = self._timing.beat
        heard_at = time.monotonic()
        beat_at = heard_at + beat
        while True:
            wait = max(beat_at - time.monotonic(), 0.0)
            message = await words.get_message(timeout=wait)
            now = time.monotonic()
            if message is not None:
                heard_at = now
                if message["type"] == "message":
                    self._read_message(message["data"])
            if now < beat_at:
                continue
            if now - heard_at > 3 * beat:
                raise TimeoutError  # the line is dead, though nobody said so
            async with asyncio.timeout(self._timing.limit):
                await words.ping()
            if await self._beat():
                await self._put_back(0)
            beat_at = now + beat

    async def _beat(self) -> bool:
        """Tells of this instance and its calls, hears of the others. True: Redis has
        lost what it had."""
        own = formats.encode(self._load(), formats.FORMAT)
        ttl, era = _ms(self._timing.instance), secrets.token_hex(4)
        async with self.beating, asyncio.timeout(self._timing.limit):
            found, *told = await self._script(
                keys.BEAT, [keys.INSTANCES, keys.ERA], [self.id, own, ttl, era]
            )
        beats = dict(zip(map(bytes.decode, told[::2]), told[1::2], strict=True))
        beats.pop(self.id, None)
        for name in [name for name, text in beats.items() if not text]:
            del beats[name]
            log.warning("instance_lost", instance=name)
            self._on_lost()
        capacities = {name: _load(text) for name, text in beats.items()}
        self._others = {name: it for name, it in capacities.items() if it}
        self._note_formats([_announced(text) for text in beats.values()])
        emptied, self._era = self._era not in (None, found), found
        # While Redis is there, one that is not held is just being told of.
        leases = [it for it in self._leases.values() if it.held or not self._up]
        for some in _parts(leases, CHUNK_CALLS):
            await self._renew(some)
        return emptied

    def _note_formats(self, others: Sequence[int]) -> None:
        """What format to write, now that the others have announced theirs. One line in
        the log when the formats begin to differ, one when they agree again."""
        self._format = formats.common(others)
        announced = (formats.FORMAT, *others)
        oldest, newest = min(announced), max(announced)
        differ = oldest != newest
        if differ == self._formats_differ:
            return
        now = time.monotonic()
        if differ:
            # A version reads its own format and the one before.
            tell = log.info if newest - oldest == 1 else log.warning
            tell(
                "fleet_formats_differ",
                oldest=oldest,
                newest=newest,
                writes=self._format,
            )
            self._differ_since = now
        else:
            seconds = round(now - self._differ_since, 3)
            log.info("fleet_formats_agree", format=newest, seconds=seconds)
        self._formats_differ = differ

    async def _renew(self, leases: Sequence[_Lease]) -> None:
        """That these calls are ours. Of one that is not the word may have been lost."""
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
            return  # it is over, or has a newer stream here
        async with asyncio.timeout(self._timing.limit):
            ours = await self._hold(lease, "again")
        if not ours:
            self._lose(lease)

    async def _put_back(self, since: int) -> None:
        """Tells Redis what was written here from `since` (a stamp) on, and which calls
        there are, until there is no more: calls go on meanwhile."""
        async with asyncio.timeout(self._timing.limit):
            for script in keys.SCRIPTS:
                await self._redis.script_load(script.text)
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
                return  # a call that came or went would have written something
            since = self._written.stamp()
            for some in _chunks(written):
                await self._write_again(some)

    async def _write_again(self, some: Sequence[tuple[str, StoredValue]]) -> None:
        pipe, now = self._redis.pipeline(transaction=False), time.monotonic()
        for key, kept in some:
            left = kept.until - now
            if kept.value is None:
                left = min(left, keys.JUST_TAKEN_SECONDS)
            pipe.execute_command(
                "EVALSHA", keys.AGAIN.sha, 1, key, kept.text, _ms(left)
            )
        async with asyncio.timeout(self._timing.limit):
            await pipe.execute()

    # --- what is known of Redis, and what is heard ---

    def _found(self, session: asyncio.Timeout) -> None:
        now = time.monotonic()
        if self._told_away:
            seconds = round(now - self._changed_at, 3)
            log.info("fleet_back", at=self._place, seconds=seconds)
            self._settled_at = now + self._timing.settle
        self._up, self._told_away, self._changed_at = True, False, now
        self._spell += 1
        self._session = session
        self._back.set()
        self.tried.set()
        self._on_up(True)

    def _lost(self, error: BaseException) -> None:
        """Said once, until it is found again."""
        if self._told_away:
            return
        now = time.monotonic()
        if self._up:
            self._lasted = now - self._changed_at
        self._up, self._told_away, self._changed_at = False, True, now
        self._away_stamp = self._written.stamp() - _us(self._timing.limit)
        self._back.clear()
        for lease in self._leases.values():
            lease.held = False
        if self._session:
            self._session.reschedule(asyncio.get_running_loop().time())
            self._session = None
        self.tried.set()
        self._on_up(False)
        log.warning("fleet_away", at=self._place, why=_why(error))

    def _read_message(self, data: bytes) -> None:
        try:
            sender, sid, stream, message = msgspec.json.decode(
                data, type=tuple[str, str, str, bytes]
            )
        except UNREADABLE:
            log.warning("fleet_message_unreadable", what="word")
            return
        if sender == self.id:
            return
        if not stream:
            self._deliver(sid, message)
            return
        # Who was taken over from; by now it may have a newer one itself.
        lease = self._leases.get(sid)
        if lease and lease.entry.stream_sid == stream:
            self._lose(lease)

    def _lose(self, lease: _Lease) -> None:
        """A newer stream has the call."""
        sid = lease.entry.call_sid
        if self._leases.get(sid) is lease:
            del self._leases[sid]
            self._taken[lease.entry.stream_sid] = None
            if len(self._taken) > MAX_TAKEN:  # not all of them are ever closed
                del self._taken[next(iter(self._taken))]
            self._deliver(sid, TAKEN)

    def _deliver(self, call_sid: str, message: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber(call_sid, message)


def _client(url: str, limit: float) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=limit,
        # None: on Python 3.11 its own limit may swallow a cancellation. Here is one
        # around every question.
        socket_timeout=None,
        socket_connect_timeout=limit,
        protocol=2,
        # Not again: an instance does without Redis before a caller notices.
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _announced(beat: bytes) -> int:
    """The format that an instance announces; 0 if the beat does not say."""
    try:
        return formats.format_of(beat)
    except UNREADABLE:
        return 0


def _load(text: bytes) -> InstanceLoad | None:
    try:
        return msgspec.json.decode(text, type=InstanceLoad)
    except UNREADABLE:  # of another version of the bridge
        return None


def _why(error: BaseException) -> str:
    """What an operator can look up; never a url."""
    if type(error) is ResponseError:
        return str(error).partition(" ")[0]  # OOM, MISCONF, NOPERM ...
    if isinstance(error.__cause__, OSError):
        error = error.__cause__
    return type(error).__name__


def _parts(things: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (things[at : at + size] for at in range(0, len(things), size))


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
