"""Keys and messages in Redis that no bridge has written: by another program, by a
fault, or by an attacker. They are ignored and counted, and calls go on."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic, time
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError
from structlog.testing import capture_logs

from bridge.fleet import InstanceLoad, Registry, keys
from bridge.fleet.formats import FORMAT
from bridge.fleet.redis import RedisRegistry, redis_registry
from bridge.fleet.redis_client import is_of_key
from bridge.telemetry.metrics import REDIS_KEYS
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import QUICK, soon
from tests.fleet.test_registry import SORRY, entry, streams

pytestmark = pytest.mark.slow

HUGE = b"x" * (keys.MAX_VALUE_BYTES + 1)
LONG = b"x" * 100_000
STAMP = b"%016d+" % round(time() * 1e6)

Plant = Callable[[Any, str], object]
BROKEN: dict[str, Plant] = {
    "list": lambda redis, key: redis.rpush(key, "x"),
    "set": lambda redis, key: redis.sadd(key, b"\xff"),
    "stream": lambda redis, key: redis.xadd(key, {"a": "b"}),
    "hash": lambda redis, key: redis.hset(key, b"\xff", b"\xff"),
    "hash of a lease": lambda redis, key: redis.hset(
        key, mapping={"stream": b"\xff", "since": "nan", "instance": LONG}
    ),
    "hash with an endless lease": lambda redis, key: redis.hset(
        key, mapping={"stream": "MZx", "since": "inf", "started": "inf"}
    ),
    "hash of beats": lambda redis, key: redis.hset(
        key, mapping={b"\xff": "99999999999999 {}", "x": "no beat", "y": LONG}
    ),
    "sorted set": lambda redis, key: redis.zadd(
        key, {b"\xff": "-inf", "": 1, "gone": "inf", "far": 1e300, LONG: 2}
    ),
    "no text": lambda redis, key: redis.set(key, ""),
    "bytes": lambda redis, key: redis.set(key, b"\xff\xfe\x00+"),
    "long bytes": lambda redis, key: redis.set(key, b"zzzzzzzzzzzzzzzz+\xff"),
    "no number": lambda redis, key: redis.set(key, "nan"),
    "no finite number": lambda redis, key: redis.set(key, "inf", px=60_000),
    "huge": lambda redis, key: redis.set(key, HUGE),
    "huge value": lambda redis, key: redis.set(key, STAMP + HUGE, px=60_000),
}
WRONG_TYPE = ("list", "set", "stream")


PATIENT = replace(QUICK, beat=0.25, instance=1.5, lease=2.0, limit=5.0, wait=10.0)
"""On a busy machine an answer may take long; these tests are about values, not time."""


async def beats(number: int = 3) -> None:
    await asyncio.sleep(PATIENT.beat * (number + 0.5))


@dataclass
class Instance:
    registry: RedisRegistry
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    up: list[bool] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def instance(url: str) -> AsyncIterator[Instance]:
    up, ignored, lost = [], Counter(), []  # type: ignore[var-annotated]
    async with redis_registry(
        url,
        lambda: InstanceLoad(2, 0),
        up.append,
        PATIENT,
        lambda: lost.append(1),
        lambda kind: ignored.update([kind]),
    ) as registry:
        it = Instance(registry, up=up, ignored=ignored, lost=lost)
        registry.subscribe(lambda sid, text: it.heard.append((sid, text)))
        yield it
    assert up == [True], "Redis was taken for lost"
    assert lost == []
    assert ignored.keys() <= set(REDIS_KEYS)


@asynccontextmanager
async def pair(server: RedisServer) -> AsyncIterator[tuple[Instance, Instance]]:
    async with instance(server.url) as a, instance(server.url) as b:
        await soon(lambda: a.registry.format() == FORMAT, "no common format")
        yield a, b


async def plant(server: RedisServer, how: str, *names: str) -> None:
    """In a thread: the registries must not wait until the values are sent."""

    def planted() -> None:
        for name in names:
            with server.client.pipeline() as both:
                both.delete(name)
                BROKEN[how](both, name)
                both.execute()

    await asyncio.to_thread(planted)


def names_of(sid: str) -> dict[str, tuple[str, ...]]:
    """Every key of one call, and those of the fleet, by kind."""
    every = keys.names
    return {
        "call": (keys.CALL + sid,),
        "calls": (keys.CALLS,),
        "next": (keys.NEXT + sid,),
        "store": every(keys.SNAPSHOT + sid, FORMAT)
        + every(f"{keys.STORE}ticket:{sid}", FORMAT),
        "count": every(f"{keys.COUNTER}admitted:{sid}", FORMAT),
        "members": every(f"{keys.MEMBERS}hourly_calls:{sid}", FORMAT),
        "instances": (keys.INSTANCES,),
        "era": (keys.ERA,),
    }


def all_names(sid: str) -> list[str]:
    return [name for several in names_of(sid).values() for name in several]


async def in_time(work: Awaitable[Any]) -> Any:
    """The answer, which does not wait for a Redis that is away."""
    began = monotonic()
    answer = await work
    assert monotonic() < began + PATIENT.wait, "an answer that waits for Redis"
    return answer


async def whole_call(a: Registry, b: Registry, number: str) -> None:
    """A call on one instance, and what the other one knows of it."""
    sid, call = f"CA{number}", entry(number)
    await in_time(a.opened(call))
    assert [it.call_sid for it in await in_time(b.calls())] == [sid]
    await in_time(a.put(f"snapshot:{sid}", b"said", 60.0))
    assert await in_time(b.get(f"snapshot:{sid}")) == b"said"
    firsts = [await in_time(it.set_if_absent(f"ticket:{sid}", 60.0)) for it in (a, b)]
    assert firsts == [True, False]
    assert await in_time(a.count(f"admitted:{sid}", 60.0)) == 1.0
    assert await in_time(b.count(f"admitted:{sid}", 60.0)) == 2.0
    taken = [
        await in_time(it.acquire(f"hourly_calls:{sid}", name, 60.0, 1))
        for it, name in ((a, "one"), (b, "two"))
    ]
    assert taken == [True, False]
    assert await in_time(b.members(f"hourly_calls:{sid}")) == ["one"]
    await in_time(b.release(f"hourly_calls:{sid}", "one"))
    assert await in_time(a.acquire(f"hourly_calls:{sid}", "two", 60.0, 1))
    assert await in_time(b.pop(f"snapshot:{sid}")) == b"said"
    assert await in_time(a.get(f"snapshot:{sid}")) is None
    await in_time(a.closed(call, SORRY))
    assert await in_time(b.next_step(sid)) == SORRY
    assert await in_time(b.calls()) == []


@pytest.mark.parametrize("how", BROKEN)
async def test_a_call_finds_its_keys_taken(server: RedisServer, how: str) -> None:
    """Everything of a call works as with an empty Redis, at once, and what was in the
    way is replaced."""
    async with pair(server) as (a, b):
        await plant(server, how, *all_names("CA1"))
        await whole_call(a.registry, b.registry, "1")
        await beats()
        assert await a.registry.others() and await b.registry.others()
        assert a.registry.format() == b.registry.format() == FORMAT
        assert a.heard == b.heard == []
        counted = a.ignored + b.ignored
    if how in WRONG_TYPE:
        kinds = {"call", "calls", "store", "count", "members", "instances", "era"}
        assert kinds <= counted.keys()


@pytest.mark.parametrize("how", BROKEN)
async def test_a_running_call_loses_its_keys(server: RedisServer, how: str) -> None:
    """The call keeps its agent, and both instances stay in the fleet: with the next
    beat, all is as before."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry(at=5.0))
        await plant(server, how, *all_names("CA1"))
        assert len(await in_time(b.registry.calls())) <= 1
        await beats(4)

        assert await streams(b.registry) == ["MZ1"]
        assert await a.registry.others() and await b.registry.others()
        assert a.heard == []
        await in_time(a.registry.closed(entry(), SORRY))
        assert await in_time(b.registry.next_step("CA1")) == SORRY


@pytest.mark.parametrize("how", BROKEN)
async def test_what_is_no_value_is_no_value(server: RedisServer, how: str) -> None:
    """It costs one command, and one line in the log for its kind, without the name."""
    with capture_logs() as logs:
        async with pair(server) as (a, _):
            wrong = keys.SNAPSHOT + "CA1"
            await plant(server, how, wrong, keys.NEXT + "CA1")
            logs.clear()
            for _ in range(3):
                assert await in_time(a.registry.get("snapshot:CA1")) is None
            assert await in_time(a.registry.next_step("CA1")) is None
            assert await in_time(a.registry.pop("snapshot:CA1")) is None
            if how != "no text":
                assert a.ignored == {"store": 4, "next": 1}
            assert server.client.exists(wrong), "it belongs to another program"
            # An older value under the other name is found all the same.
            old = keys.names(wrong, FORMAT)[1]
            server.client.set(old, b"%016d+said" % 1, px=60_000)
            assert await in_time(a.registry.get("snapshot:CA1")) == b"said"
            assert await in_time(a.registry.pop("snapshot:CA1")) == b"said"
    lines = [it for it in logs if it["event"] == "redis_key_ignored"]
    assert {it["key"] for it in lines} == (
        set() if how == "no text" else {"store", "next"}
    )
    assert len(lines) <= 2
    assert "CA1" not in str(logs)


async def test_names_that_are_not_utf8(server: RedisServer) -> None:
    """They end no bridge: as the name of an instance, of a running call, of a key, and
    of a stream."""
    redis = server.client
    bad = b"\xff\xfe"
    async with pair(server) as (a, b):
        redis.hset(keys.INSTANCES, bad, f"{round(time() * 1000) + 5000} {{}}")
        redis.zadd(keys.CALLS, {bad: 1})
        redis.hset(
            f"{keys.CALL}CA9", mapping={"stream": bad, "since": "1", "started": "1"}
        )
        redis.zadd(keys.CALLS, {"CA9": 2})
        redis.set(b"bridge:shelf:" + bad, STAMP + b"x", px=60_000)
        redis.set(b"bridge:store:" + bad, STAMP + b"x", px=60_000)
        await a.registry.opened(entry("1"))
        assert await streams(b.registry) == ["MZ1"]
        await beats()
        assert await a.registry.others() and await b.registry.others()
        async with instance(server.url) as late:
            await soon(lambda: late.ignored["store"], "it copies foreign keys")
            assert await streams(late.registry) == ["MZ1"]
        assert a.ignored["instances"] + b.ignored["instances"] >= 1


async def test_messages_that_are_none(server: RedisServer) -> None:
    """They are counted, and the next message arrives."""
    async with pair(server) as (a, b):
        for text in (b"", b"\xff", b"[" * 100_000, b'["a","CA1","",7]', HUGE[: 2**21]):
            server.client.publish(keys.MESSAGES, text)
        await a.registry.publish("CA1", b"word")

        await soon(lambda: b.heard, "the message is lost")
        assert b.heard == [("CA1", b"word")]
        assert b.ignored == {"words": 5}


async def test_a_full_list_of_instances_and_calls(server: RedisServer) -> None:
    """However many entries somebody adds, a beat and the list of calls stay short."""
    many = range(2 * keys.MAX_LISTED_CALLS)
    async with pair(server) as (a, b):
        await a.registry.opened(entry("1", at=time()))
        fields = {f"x{n}": "1 {}" for n in many}
        await asyncio.to_thread(server.client.hset, keys.INSTANCES, mapping=fields)
        members = {f"x{n}": n for n in many}
        await asyncio.to_thread(server.client.zadd, keys.CALLS, members)
        await beats()
        await b.registry.calls()
        await soon(lambda: a.ignored["instances"] + b.ignored["instances"], "no limit")
        await soon(lambda: b.ignored["calls"], "no limit")
        await beats()
        assert await a.registry.others() and await b.registry.others()
        assert server.client.hlen(keys.INSTANCES) == 2


@pytest.mark.parametrize("seed", range(3))
async def test_anything_at_any_time(server: RedisServer, seed: int) -> None:
    """While two instances work, every kind of value is planted under every key, in any
    order: nothing raises, nothing waits, no instance takes Redis for lost."""
    chance = random.Random(seed)
    over = False
    small = [how for how in BROKEN if "huge" not in how]  # those only load the machine

    async def plants() -> None:
        while not over:
            name = chance.choice(all_names(f"CA{chance.randrange(4)}"))
            await plant(server, chance.choice(small), name)
            await asyncio.sleep(0)

    async def works(it: Registry, other: Registry, number: str) -> None:
        sid, call = f"CA{number}", entry(number)
        for n in range(40):
            await it.opened(call)
            await it.put(f"snapshot:{sid}", b"%d" % n, 60.0)
            await other.get(f"snapshot:{sid}")
            await other.pop(f"snapshot:{sid}")
            await it.set_if_absent(f"ticket:{sid}", 60.0)
            assert 0 <= await it.count(f"admitted:{sid}", 60.0) < 1e15
            await it.acquire(f"hourly_calls:{sid}", sid, 60.0, 2)
            await it.release(f"hourly_calls:{sid}", sid)
            assert sid in {entry.call_sid for entry in await it.calls()}
            await other.calls()
            await it.delete(f"snapshot:{sid}")
            await it.closed(call, SORRY)
            await other.next_step(sid)

    async with pair(server) as (a, b):
        async with asyncio.TaskGroup() as tasks:
            planting = tasks.create_task(plants())
            async with asyncio.TaskGroup() as work:
                for n, (it, other) in enumerate([(a, b), (b, a), (a, b), (b, a)]):
                    work.create_task(works(it.registry, other.registry, str(n)))
            over = True
            await planting
        assert a.heard == b.heard == []
        assert sum((a.ignored + b.ignored).values()) > 20
        server.client.flushall()
        await beats()
        await whole_call(a.registry, b.registry, "9")


def test_which_errors_are_of_a_key() -> None:
    """A full, read-only or forbidden Redis is still a Redis that is lost."""
    of_key = [
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind"),
        ResponseError("user_script:3: attempt to compare nil with number script: 5"),
        ResponseError("Command # 1 (GET x) of pipeline caused error: WRONGTYPE a"),
    ]
    of_redis = [
        OutOfMemoryError("command not allowed script: 5, on @user_script:1."),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("BUSY Redis is busy running a script"),
        TimeoutError(),
    ]
    assert all(map(is_of_key, of_key)) and not any(map(is_of_key, of_redis))
