"""Several instances on one Redis."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic, time

import pytest
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from bridge.fleet import TAKEN, CallEntry, InstanceLoad, keys
from bridge.fleet.formats import FORMAT
from bridge.fleet.keys import CALL, INSTANCES, PUT, SCRIPTS
from bridge.fleet.redis import RedisRegistry, Timing, redis_registry
from bridge.fleet.redis_client import reason_of
from bridge.fleet.written_values import WrittenValues
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_registry import HANG_UP, SORRY, entry, streams

QUICK = Timing(
    beat=0.1, instance=0.5, lease=0.8, limit=0.5, probe=0.03, wait=2.0, settle=0.2
)
FREE = InstanceLoad(2, 0)
SOON_SECONDS = 60.0
"""Timeout of a condition on a busy machine."""


@dataclass
class Instance:
    registry: RedisRegistry
    load: InstanceLoad
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    up: list[bool] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    """One entry for each instance that was reported lost."""


@asynccontextmanager
async def instance(
    url: str, load: InstanceLoad = FREE, pace: Timing = QUICK
) -> AsyncIterator[Instance]:
    up: list[bool] = []
    made: list[Instance] = []
    async with redis_registry(
        url,
        lambda: made[0].load if made else load,
        up.append,
        pace,
        lambda: made[0].lost.append(1),
    ) as registry:
        made.append(Instance(registry, load, up=up))
        registry.subscribe(lambda sid, text: made[0].heard.append((sid, text)))
        yield made[0]


@asynccontextmanager
async def pair(server: RedisServer) -> AsyncIterator[tuple[Instance, Instance]]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(instance(server.url))
        yield one, await stack.enter_async_context(instance(server.url))


async def soon(true: Callable[[], object], what: str) -> None:
    until = monotonic() + SOON_SECONDS
    while not true():
        assert monotonic() < until, what
        await asyncio.sleep(0.01)


async def beats(number: int = 3) -> None:
    await asyncio.sleep(QUICK.beat * (number + 0.5))


# --- one call, several instances ---


async def test_any_instance_knows_the_next_step(server: RedisServer) -> None:
    """Twilio may ask any instance for the next step of a call, and an operator may ask
    any instance for the running calls."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry("1", at=5.0))
        await b.registry.opened(entry("2", at=6.0))

        found = [await it.registry.calls() for it in (a, b)]
        assert (
            found[0]
            == found[1]
            == [
                CallEntry("CA1", "MZ1", 5.0, a.registry.id),
                CallEntry("CA2", "MZ2", 6.0, b.registry.id),
            ]
        )
        await a.registry.closed(entry("1"), SORRY)
        assert await b.registry.next_step("CA1") == SORRY
        assert await streams(b.registry) == ["MZ2"]


async def test_of_two_streams_the_newest_has_the_call(server: RedisServer) -> None:
    """A caller who is back on another instance hears one agent, and the next step of
    the older stream does not end the call. The clocks of the instances do not agree."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry(stream="MZa", at=100.0))
        await b.registry.opened(entry(stream="MZb", at=40.0))

        await soon(lambda: a.heard, "the first instance gets no message")
        await beats()
        assert (a.heard, b.heard) == ([("CA1", TAKEN)], [])
        assert await streams(a.registry) == await streams(b.registry) == ["MZb"]

        await a.registry.closed(entry(stream="MZa"), HANG_UP)
        assert await a.registry.next_step("CA1") is None
        await b.registry.closed(entry(stream="MZb"), SORRY)
        assert await a.registry.next_step("CA1") == SORRY


async def test_a_call_that_moves_several_times(server: RedisServer) -> None:
    """Each stream but the last gets TAKEN once, also if the newer stream is on the same
    instance."""
    async with pair(server) as (a, b):
        for stream, it in ("MZ1", a), ("MZ2", b), ("MZ3", a), ("MZ4", a):
            await it.registry.opened(entry(stream=stream))

        await soon(lambda: b.heard, "the second instance gets no message")
        await beats()
        assert len(a.heard) == 2 and len(b.heard) == 1
        assert await streams(b.registry) == ["MZ4"]


async def test_a_lost_takeover_message_is_noticed(server: RedisServer) -> None:
    """If the message about a takeover is lost, the older agent stops with the next
    beat: the caller does not hear two agents for longer."""
    async with instance(server.url) as a:
        await a.registry.opened(entry(at=5.0))
        server.client.hset(
            f"{CALL}CA1", mapping={"stream": "MZb", "instance": "b", "since": "6.000"}
        )

        await soon(lambda: a.heard, "the first agent goes on speaking")
        assert a.heard == [("CA1", TAKEN)]


async def test_a_call_is_listed_until_it_ends(
    server: RedisServer,
) -> None:
    """A long call stays on the list; Redis has no data of it when it is over."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry())
        await asyncio.sleep(QUICK.lease * 1.5)
        assert await streams(b.registry) == ["MZ1"]

        await a.registry.closed(entry(), None)
        assert await b.registry.calls() == []
        left = {key for key in server.client.keys("*") if b"CA1" in key}
        assert not left


async def test_messages_reach_every_instance(server: RedisServer) -> None:
    """A message that an operator sends into a call arrives once, on whichever instance
    the call is."""
    async with pair(server) as (a, b):
        await a.registry.publish("CA1", b"\xff whisper")

        assert a.heard == [("CA1", b"\xff whisper")]
        await soon(lambda: b.heard, "the message was lost")
        await beats(1)
        assert a.heard == b.heard == [("CA1", b"\xff whisper")]


async def test_only_one_instance_pops_a_value(server: RedisServer) -> None:
    """Two instances never continue the same conversation; a message that came twice
    counts once."""
    async with pair(server) as (a, b):
        await a.registry.put("snapshot:CA1", b"said", 60.0)
        both = [it.registry for it in (a, b)]

        taken = await asyncio.gather(*(it.pop("snapshot:CA1") for it in both))
        first = await asyncio.gather(*(it.set_if_absent("hook:1", 60.0) for it in both))
        assert sorted(taken, key=bool) == [None, b"said"]
        assert sorted(first) == [False, True]


async def test_unreadable_values_are_ignored(server: RedisServer) -> None:
    """During a deploy an instance ignores values that it cannot read, and goes on."""
    async with instance(server.url) as a:
        server.client.set("bridge:next:CA1", b"%016d+{}" % 1)
        server.client.hset(INSTANCES, "other", f"{round(time() * 1000) + 60_000} {{}}")
        server.client.hset(INSTANCES, "worse", "what")
        server.client.publish("bridge:words", "[1]")

        assert await a.registry.next_step("CA1") is None
        await beats()
        assert not await a.registry.others()
        assert a.up == [True]


# --- room ---


async def test_a_full_instance_knows_others_with_room(server: RedisServer) -> None:
    """A caller is turned away only if the whole fleet is full."""
    full, free = InstanceLoad(1, 1), InstanceLoad(2, 1)
    async with instance(server.url, full) as a:
        assert not await a.registry.room()
        async with instance(server.url, free) as b:
            assert await b.registry.room() and not await b.registry.others()
            await soon(lambda: a.registry._others, "the new one is not seen")
            assert await a.registry.room() and await a.registry.others()

            b.load = replace(free, draining=True)
            await beats()
            assert not await a.registry.room()
            b.load = free
            await beats()
            async with instance(server.url, full) as late:
                assert await late.registry.room(), "not known right after the start"
        await beats()
        assert not await a.registry.others(), "a closed instance is still counted"


DIES = """
import asyncio, sys
from bridge.fleet import CallEntry, InstanceLoad
from bridge.fleet.redis import Timing, redis_registry

async def main() -> None:
    timing = Timing(beat=0.1, instance=0.5, lease=0.8)
    load = InstanceLoad(2, 0)
    async with redis_registry(sys.argv[1], lambda: load, timing=timing) as it:
        await it.opened(CallEntry("CA1", "MZ1", 5.0))
        await it.put("snapshot:CA1", b"said", 60.0)
        print("there", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_an_instance_is_killed(server: RedisServer) -> None:
    """Another instance continues its call with the whole history. Soon the killed
    instance is not counted, and its call is off the list."""
    async with (
        instance(server.url, InstanceLoad(1, 1)) as a,
        instance(server.url, InstanceLoad(1, 1)) as b,
    ):
        dies = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DIES, server.url, stdout=asyncio.subprocess.PIPE
        )
        assert dies.stdout
        assert await dies.stdout.readline() == b"there\n"
        await soon(lambda: len(a.registry._others) == 2, "it is not seen")
        dies.send_signal(signal.SIGKILL)
        await dies.wait()
        killed = monotonic()

        assert await streams(a.registry) == ["MZ1"]
        assert await a.registry.get("snapshot:CA1") == b"said"
        await soon(lambda: len(a.registry._others) == 1, "calls are still sent to it")
        while await a.registry.calls():
            assert monotonic() < killed + SOON_SECONDS, "its call is still on the list"
            await asyncio.sleep(0.02)
        await a.registry.opened(entry(stream="MZ2"))
        assert await a.registry.pop("snapshot:CA1") == b"said"
        await beats()
        assert sum(a.lost) + sum(b.lost) == 1, "it is not reported lost, or twice"


async def test_only_killed_instances_are_reported_lost(server: RedisServer) -> None:
    """No alarm for an instance that was stopped in good order, nor for any instance
    while Redis was away for longer than a beat may be late."""
    async with instance(server.url) as a:
        async with instance(server.url):
            await soon(lambda: a.registry._others, "it is not seen")
        async with instance(server.url) as c:
            await soon(lambda: a.registry._others, "it is not seen")
            server.stop()
            await soon(lambda: a.up[-1:] == c.up[-1:] == [False], "it is not noticed")
            await asyncio.sleep(2 * QUICK.instance)
            server.start()
            await soon(lambda: a.up[-1] and c.up[-1], "Redis is not back")
            await beats()
        assert (a.lost, c.lost) == ([], [])


async def test_a_late_beat_after_an_outage(server: RedisServer) -> None:
    """Redis was away for a little less than the lifetime of a beat: the first instance
    that is back does not report the others as lost."""

    def beat(who: str) -> dict[bytes, bytes]:
        arguments = (who, "{}", 2000, "era")
        told, *ignored = server.client.eval(
            keys.BEAT.text, 2, keys.INSTANCES, keys.ERA, *arguments
        )
        assert not ignored
        return dict(zip(told[2::2], told[3::2], strict=True))

    beat("one")
    await asyncio.sleep(0.8)
    beat("other")
    await asyncio.sleep(1.4)  # the beat of the other one has not expired yet

    assert beat("other").get(b"one") is None
    beat("one")
    await asyncio.sleep(1.8)
    beat("other")
    await asyncio.sleep(0.4)
    assert beat("other")[b"one"] == b"", "a dead instance is not reported lost"


# --- Redis is away ---


async def test_redis_is_away_for_a_while(server: RedisServer) -> None:
    """Calls go on. When Redis is back, even if it is empty, all instances know the
    changes that were made meanwhile. Two lines in the log."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry("1"))
        await a.registry.put("plan:CA1", b"before", 60.0)
        await a.registry.opened(entry("2"))
        with capture_logs() as lines:
            server.stop()
            began = monotonic()
            await a.registry.closed(entry("2"), SORRY)
            await a.registry.opened(entry("3"))
            for n in range(200):
                await a.registry.put("snapshot:CA1", b"%d" % n, 60.0)
                await a.registry.publish("CA1", b"word")
            assert await a.registry.set_if_absent("hook", 60.0)
            assert not await a.registry.set_if_absent("hook", 60.0)
            assert await a.registry.next_step("CA2") == SORRY
            assert await streams(a.registry) == ["MZ1", "MZ3"]
            assert await a.registry.get("snapshot:CA1") == b"199"
            assert await a.registry.room() and not await a.registry.others()
            assert monotonic() - began < QUICK.wait, (
                "requests wait for a Redis that is away"
            )

            server.start()
            await soon(lambda: a.up[-1] and b.up[-1], "Redis is not back")
        assert await b.registry.next_step("CA2") == SORRY
        assert await b.registry.get("plan:CA1") == b"before"
        assert await b.registry.pop("snapshot:CA1") == b"199"
        assert await streams(b.registry) == ["MZ1", "MZ3"]
        assert not await b.registry.set_if_absent("hook", 60.0)
        assert a.up == b.up == [True, False, True]
        told = [line["event"] for line in lines]
        assert sorted(told) == 2 * ["redis_back"] + 2 * ["redis_lost"], lines


async def test_the_cost_of_a_day_survives_an_outage(server: RedisServer) -> None:
    """The budget of a day is kept while Redis is away, and by all instances when it is
    back, even if it is empty."""
    async with pair(server) as (a, b):
        await a.registry.count("day", 60.0, 5)
        assert await b.registry.count("day", 60.0, 3) == 8
        server.stop()
        assert await a.registry.count("day", 60.0, 2) == 7
        assert await a.registry.count("day", 60.0, 1) == 8
        assert await b.registry.count("day", 60.0, 0) == 8
        assert await a.registry.count("hour", 60.0) == 1
        server.start()
        await soon(lambda: a.up[-1] and b.up[-1], "Redis is not back")

        assert await b.registry.count("day", 60.0, 0) == 8
        assert await a.registry.count("day", 60.0, 0) == 11
        assert await b.registry.count("day", 60.0, 1) == 12
        assert await b.registry.count("hour", 60.0, 0) == 0
        assert await a.registry.count("hour", 60.0, 0) == 1
        left: int = server.client.pttl(keys.COUNTER + "day")  # type: ignore[assignment]
        assert 50_000 < left < 60_000


async def test_members_while_redis_is_away(server: RedisServer) -> None:
    """While Redis is away, the limit of calls of a caller applies to each instance."""
    async with pair(server) as (a, b):
        assert await a.registry.acquire("in", "CA1", 60.0, 2)
        assert await b.registry.acquire("in", "CA2", 60.0, 2)
        assert not await a.registry.acquire("in", "CA3", 60.0, 2)
        server.stop()
        assert await a.registry.acquire("in", "CA3", 60.0, 2)
        assert await a.registry.acquire("in", "CA1", 60.0, 2)
        assert not await a.registry.acquire("in", "CA4", 60.0, 2)
        assert await a.registry.members("in") == ["CA3", "CA1"]
        await a.registry.release("in", "CA1")
        assert await a.registry.acquire("in", "CA4", 60.0, 2)


async def test_set_if_absent_is_repeated(server: RedisServer) -> None:
    """If an answer of Redis is lost, the script is repeated: the caller's own ticket
    does not count as used, so the stream is accepted."""
    async with pair(server) as (a, b):
        text, ttl = b"0000000000000000+mine", 60_000
        names = keys.names(keys.STORE + "ticket:1", FORMAT)

        async def ask(mine: bytes) -> object:
            return await a.registry._script(
                keys.SET_IF_ABSENT, names, [mine, ttl, len(names)]
            )

        assert [await ask(text), await ask(text), await ask(text + b"?")] == [1, 2, 0]
        assert await a.registry.set_if_absent("ticket:2", 60.0)
        assert not await a.registry.set_if_absent("ticket:2", 60.0)
        assert not await b.registry.set_if_absent("ticket:2", 60.0)


async def test_a_request_during_a_restart_of_redis(
    server: RedisServer,
) -> None:
    """A caller whose stream ended during the restart continues on the other
    instance."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry("1"))
        await a.registry.put("snapshot:CA1", b"said", 60.0)
        server.stop()
        await a.registry.closed(entry("1"), SORRY)

        async with asyncio.TaskGroup() as tasks:
            step = tasks.create_task(b.registry.next_step("CA1"))
            talk = tasks.create_task(b.registry.pop("snapshot:CA1"))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.start)
        assert (step.result(), talk.result()) == (SORRY, b"said")
        await beats()
        assert await a.registry.pop("snapshot:CA1") is None, "it was popped before"


async def test_requests_while_redis_is_away_are_answered(server: RedisServer) -> None:
    """Twilio gets an answer from an instance that does not know the call: some seconds
    after the loss of Redis, and later at once."""
    pace = replace(QUICK, wait=1.0)
    async with instance(server.url, pace=pace) as a:
        server.stop()
        async with asyncio.timeout(SOON_SECONDS):
            assert await a.registry.next_step("CA1") is None
        began = monotonic()
        assert await a.registry.get("plan:CA1") is None
        assert await a.registry.pop("plan:CA1") is None
        assert monotonic() - began < pace.wait


async def test_redis_hangs(server: RedisServer) -> None:
    """The first request waits a second, the next ones do not. A value that was being
    popped when Redis froze is not lost."""
    pace = replace(QUICK, limit=1.0)
    async with (
        instance(server.url, pace=pace) as a,
        instance(server.url, pace=pace) as b,
    ):
        await a.registry.put("snapshot:CA1", b"said", 60.0)
        server.freeze()
        try:
            async with asyncio.TaskGroup() as tasks:
                taken = tasks.create_task(b.registry.pop("snapshot:CA1"))
                async with asyncio.timeout(SOON_SECONDS):
                    await a.registry.opened(entry("1"))
                began = monotonic()
                await a.registry.opened(entry("2"))
                await a.registry.closed(entry("2"), HANG_UP)
                assert monotonic() - began < pace.limit
                await soon(lambda: b.up == [True, False], "the loss is not noticed")
                server.thaw()
        finally:
            server.thaw()
        assert taken.result() == b"said"
        await soon(lambda: a.up[-1] and b.up[-1], "Redis is not back")
        assert await b.registry.next_step("CA2") == HANG_UP
        assert await streams(b.registry) == ["MZ1"]
        assert await a.registry.pop("snapshot:CA1") is None


async def test_a_takeover_while_redis_is_away(server: RedisServer) -> None:
    """As soon as Redis is back, the caller hears only the newer agent."""
    async with pair(server) as (a, b):
        now = time()
        await a.registry.opened(entry("1", "MZa", now - 60))
        await a.registry.opened(entry("2", "MZ2a", now - 60))
        server.stop()
        await b.registry.opened(entry("1", "MZb", now))
        await b.registry.opened(entry("2", "MZ2b", now))
        await a.registry.closed(entry("2", "MZ2a"), SORRY)
        server.start()

        await soon(lambda: a.heard, "the first agent goes on speaking")
        await beats()
        assert (a.heard, b.heard) == ([("CA1", TAKEN)], [])
        assert await streams(a.registry) == ["MZb", "MZ2b"]
        assert await b.registry.next_step("CA2") is None


async def test_redis_is_not_there_at_the_start(server: RedisServer) -> None:
    """A bridge takes calls all the same, and shares them when Redis is there."""
    server.stop()
    with capture_logs() as lines:
        async with asyncio.timeout(SOON_SECONDS), instance(server.url) as a:
            await a.registry.opened(entry())
            assert await streams(a.registry) == ["MZ1"]
            await asyncio.sleep(0.2)
            server.start()
            await soon(lambda: a.up == [False, True], "Redis is not reached")
            async with instance(server.url) as b:
                assert await streams(b.registry) == ["MZ1"]
    assert [line["event"] for line in lines] == ["redis_lost", "redis_back"]


async def test_redis_is_full(server: RedisServer) -> None:
    """Redis is full: the log says so once, calls go on, and the values are written when
    Redis has space again."""
    with capture_logs() as lines:
        async with instance(server.url) as a:
            server.client.config_set("maxmemory", "1")
            await soon(lambda: a.up == [True, False], "it is not noticed")
            await a.registry.put("plan:CA1", b"x", 60.0)
            await asyncio.sleep(0.3)
            server.client.config_set("maxmemory", "0")
            await soon(lambda: a.up == [True, False, True], "Redis is not back")
            async with instance(server.url) as b:
                assert await b.registry.get("plan:CA1") == b"x"
    away, back = lines
    assert (away["event"], back["event"]) == ("redis_lost", "redis_back")
    assert away["why"] in ("OOM", "OutOfMemoryError")


def test_the_reason_of_an_error_in_a_pipeline() -> None:
    """redis-py puts the command, which names keys, before the error of Redis."""
    text = "Command # 1 (EVALSHA bridge:x) of pipeline caused error: OOM command not"
    assert reason_of(ResponseError(text)) == "OOM"
    assert reason_of(ResponseError("NOPERM this user")) == "NOPERM"


async def test_redis_is_emptied(server: RedisServer) -> None:
    """Another Redis in its place, or a FLUSHALL: within a beat the instances have
    written all their values again."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry("1"))
        await a.registry.closed(entry("2"), SORRY)
        server.client.flushall()
        server.client.script_flush()

        await beats()
        assert await b.registry.next_step("CA2") == SORRY
        assert await streams(b.registry) == ["MZ1"]
        assert a.up == [True]


async def test_no_secret_is_logged(server: RedisServer) -> None:
    """A wrong password is logged as such, without its text."""
    server.client.config_set("requirepass", "open sesame")
    url = server.url.replace("//", "//:hush@")
    with capture_logs() as lines:
        async with instance(url) as a:
            assert "hush" not in repr(a.registry)
    (line,) = lines
    assert "hush" not in str(line)
    assert line["at"] == f"127.0.0.1:{server.port}"
    assert line["why"] == "AuthenticationError"


async def test_an_instance_leaves_when_it_closes(server: RedisServer) -> None:
    """A shutdown does not hang, whatever request to Redis is under way, and the
    instance leaves the fleet."""
    pace = replace(QUICK, beat=0.002)
    for n in range(40):
        async with asyncio.timeout(SOON_SECONDS):
            async with instance(server.url, pace=pace):
                await asyncio.sleep(n / 4000)
    assert server.client.hlen(INSTANCES) == 0, "a beat came after it had left"


# --- the parts ---


@pytest.mark.parametrize("newest_first", [False, True])
async def test_the_newest_value_wins(server: RedisServer, newest_first: bool) -> None:
    """An instance that puts back an older value after an outage does not undo a newer
    one of another instance."""
    written = WrittenValues()
    texts = [written.keep("a", value, 60.0).text for value in (b"old", b"new")]
    if newest_first:
        texts.reverse()
    for text in texts:
        server.client.eval(PUT.text, 1, "a", text, 60_000)  # type: ignore[no-untyped-call]

    assert bytes(server.client.get("a") or b"")[17:] == b"new"


def test_expired_values_cost_no_memory() -> None:
    """An instance that runs for months does not grow by the values that it has
    written."""
    written = WrittenValues()
    for n in range(10_000):
        written.keep(str(n), b"x", -1.0)

    assert len(written._kept) < 100
    assert written.get("9999") is None


def test_scripts_are_called_by_their_hash(
    server: RedisServer,
) -> None:
    """A call of a script sends its hash, not its text."""
    names = [server.client.script_load(script.text) for script in SCRIPTS]

    assert names == [script.sha for script in SCRIPTS]
