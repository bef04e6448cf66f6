"""Several instances on one Redis."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic, time

import pytest
from structlog.testing import capture_logs

from bridge.fleet import TAKEN, CallEntry, InstanceLoad, keys
from bridge.fleet.formats import FORMAT
from bridge.fleet.keys import CALL, INSTANCES, PUT_BACK, SCRIPTS
from bridge.fleet.redis import RedisRegistry, Timing, redis_registry
from bridge.fleet.written import WrittenValues
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_registry import HANG_UP, SORRY, entry, streams

QUICK = Timing(
    beat=0.1, instance=0.5, lease=0.8, limit=0.5, probe=0.03, wait=2.0, settle=0.2
)
FREE = InstanceLoad(2, 0)
SOON_SECONDS = 5.0
"""Until then, at the latest, on a machine that is busy with other things."""


@dataclass
class Instance:
    registry: RedisRegistry
    load: InstanceLoad
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    up: list[bool] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    """One for each instance that it was told is lost."""


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
        registry.subscribe(lambda sid, word: made[0].heard.append((sid, word)))
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


async def test_any_instance_is_told_what_follows(server: RedisServer) -> None:
    """Twilio may ask any instance how a call goes on, and an operator what calls there
    are."""
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
    """A caller who is back on another instance hears one voice, and what is left by the
    stream before does not end the call. Their clocks do not agree."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry(stream="MZa", at=100.0))
        await b.registry.opened(entry(stream="MZb", at=40.0))

        await soon(lambda: a.heard, "nobody told the first instance")
        await beats()
        assert (a.heard, b.heard) == ([("CA1", TAKEN)], [])
        assert await streams(a.registry) == await streams(b.registry) == ["MZb"]

        await a.registry.closed(entry(stream="MZa"), HANG_UP)
        assert await a.registry.next_step("CA1") is None
        await b.registry.closed(entry(stream="MZb"), SORRY)
        assert await a.registry.next_step("CA1") == SORRY


async def test_a_call_that_goes_to_and_fro(server: RedisServer) -> None:
    """Each stream but the last is told once that it is over, also the caller's second
    one here."""
    async with pair(server) as (a, b):
        for stream, it in ("MZ1", a), ("MZ2", b), ("MZ3", a), ("MZ4", a):
            await it.registry.opened(entry(stream=stream))

        await soon(lambda: b.heard, "nobody told the second instance")
        await beats()
        assert len(a.heard) == 2 and len(b.heard) == 1
        assert await streams(b.registry) == ["MZ4"]


async def test_a_lost_word_is_made_up_for(server: RedisServer) -> None:
    """Two agents do not speak to a caller for longer than a beat, even where the word
    between their instances was lost."""
    async with instance(server.url) as a:
        await a.registry.opened(entry(at=5.0))
        server.client.hset(
            f"{CALL}CA1", mapping={"stream": "MZb", "instance": "b", "since": "6.000"}
        )

        await soon(lambda: a.heard, "the first agent goes on speaking")
        assert a.heard == [("CA1", TAKEN)]


async def test_a_call_is_there_for_as_long_as_its_instance(
    server: RedisServer,
) -> None:
    """A long call stays on the list; nothing of it stays in Redis when it is over."""
    async with pair(server) as (a, b):
        await a.registry.opened(entry())
        await asyncio.sleep(QUICK.lease * 1.5)
        assert await streams(b.registry) == ["MZ1"]

        await a.registry.closed(entry(), None)
        assert await b.registry.calls() == []
        left = {key for key in server.client.keys("*") if b"CA1" in key}
        assert not left


async def test_words_reach_every_instance(server: RedisServer) -> None:
    """What an operator says into a call arrives wherever the call is, once."""
    async with pair(server) as (a, b):
        await a.registry.publish("CA1", b"\xff whisper")

        assert a.heard == [("CA1", b"\xff whisper")]
        await soon(lambda: b.heard, "the word was lost")
        await beats(1)
        assert a.heard == b.heard == [("CA1", b"\xff whisper")]


async def test_only_one_of_several_takes(server: RedisServer) -> None:
    """A conversation goes on in one place; a message that came twice counts once."""
    async with pair(server) as (a, b):
        await a.registry.put("snapshot:CA1", b"said", 60.0)
        both = [it.registry for it in (a, b)]

        taken = await asyncio.gather(*(it.pop("snapshot:CA1") for it in both))
        first = await asyncio.gather(*(it.set_if_absent("hook:1", 60.0) for it in both))
        assert sorted(taken, key=bool) == [None, b"said"]
        assert sorted(first) == [False, True]


async def test_what_another_version_left(server: RedisServer) -> None:
    """In the middle of a deploy an instance reads what it can, and goes on."""
    async with instance(server.url) as a:
        server.client.set("bridge:next:CA1", b"%016d+{}" % 1)
        server.client.hset(INSTANCES, "other", "99999999999999 {}")
        server.client.hset(INSTANCES, "worse", "what")
        server.client.publish("bridge:words", "[1]")

        assert await a.registry.next_step("CA1") is None
        await beats()
        assert not await a.registry.others()
        assert a.up == [True]


# --- room ---


async def test_who_is_full_knows_of_others_with_room(server: RedisServer) -> None:
    """A caller is turned away only where the whole fleet is full."""
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
        assert not await a.registry.others(), "one that has closed is still counted"


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


async def test_one_that_is_killed(server: RedisServer) -> None:
    """Its caller is taken over with all that was said; soon it is not counted, and a
    call that nobody took over is off the list."""
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
        assert sum(a.lost) + sum(b.lost) == 1, "an alarm is missed, or rings twice"


async def test_only_those_that_died_are_missed(server: RedisServer) -> None:
    """No alarm for an instance that was stopped in good order, nor for any while Redis
    was away for longer than a beat may be late."""
    async with instance(server.url) as a:
        async with instance(server.url):
            await soon(lambda: a.registry._others, "it is not seen")
        async with instance(server.url) as c:
            await soon(lambda: a.registry._others, "it is not seen")
            server.stop()
            await soon(lambda: a.up[-1:] == c.up[-1:] == [False], "it is not noticed")
            await asyncio.sleep(2 * QUICK.instance)
            server.start()
            await soon(lambda: a.up[-1] and c.up[-1], "it is not found again")
            await beats()
        assert (a.lost, c.lost) == ([], [])


async def test_one_whose_beat_is_late(server: RedisServer) -> None:
    """Redis was away for a little less than an instance may be silent: the first that
    is back does not take the others for dead."""

    def beat(who: str) -> dict[bytes, bytes]:
        arguments = (who, "{}", 1000, "era")
        told = server.client.eval(
            keys.BEAT.text, 2, keys.INSTANCES, keys.ERA, *arguments
        )
        return dict(zip(told[1::2], told[2::2], strict=True))

    beat("one")
    await asyncio.sleep(0.4)
    beat("other")
    await asyncio.sleep(0.7)  # the other's time is not over yet

    assert beat("other").get(b"one") is None
    beat("one")
    await asyncio.sleep(0.9)
    beat("other")
    await asyncio.sleep(0.2)
    assert beat("other")[b"one"] == b"", "one that is dead is not missed"


# --- Redis is away ---


async def test_redis_is_away_for_a_while(server: RedisServer) -> None:
    """Calls go on, and what happened meanwhile is known to all when Redis is back, also
    where it has forgotten everything. Two lines in the log."""
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
            assert monotonic() - began < 1.0, "who calls waits for a Redis that is away"

            server.start()
            await soon(lambda: a.up[-1] and b.up[-1], "it is not found again")
        assert await b.registry.next_step("CA2") == SORRY
        assert await b.registry.get("plan:CA1") == b"before"
        assert await b.registry.pop("snapshot:CA1") == b"199"
        assert await streams(b.registry) == ["MZ1", "MZ3"]
        assert not await b.registry.set_if_absent("hook", 60.0)
        assert a.up == b.up == [True, False, True]
        told = [line["event"] for line in lines]
        assert sorted(told) == 2 * ["fleet_away"] + 2 * ["fleet_back"], lines


async def test_what_a_day_costs_survives_redis(server: RedisServer) -> None:
    """A budget is kept to with Redis away, and by all when it is back, though it has
    forgotten everything."""
    async with pair(server) as (a, b):
        await a.registry.count("day", 60.0, 5)
        assert await b.registry.count("day", 60.0, 3) == 8
        server.stop()
        assert await a.registry.count("day", 60.0, 2) == 7
        assert await a.registry.count("day", 60.0, 1) == 8
        assert await b.registry.count("day", 60.0, 0) == 8
        assert await a.registry.count("hour", 60.0) == 1
        server.start()
        await soon(lambda: a.up[-1] and b.up[-1], "it is not found again")

        assert await b.registry.count("day", 60.0, 0) == 8
        assert await a.registry.count("day", 60.0, 0) == 11
        assert await b.registry.count("day", 60.0, 1) == 12
        assert await b.registry.count("hour", 60.0, 0) == 0
        assert await a.registry.count("hour", 60.0, 0) == 1
        left: int = server.client.pttl(keys.COUNTER + "day")  # type: ignore[assignment]
        assert 50_000 < left < 60_000


async def test_who_is_let_in_while_redis_is_away(server: RedisServer) -> None:
    """A caller has no more lines than they may on an instance that is alone."""
    async with pair(server) as (a, b):
        assert await a.registry.acquire("in", "CA1", 60.0, 2)
        assert await b.registry.acquire("in", "CA2", 60.0, 2)
        assert not await a.registry.acquire("in", "CA3", 60.0, 2)
        server.stop()
        assert await a.registry.acquire("in", "CA3", 60.0, 2)
        assert await a.registry.acquire("in", "CA1", 60.0, 2)
        assert not await a.registry.acquire("in", "CA4", 60.0, 2)
        await a.registry.release("in", "CA1")
        assert await a.registry.acquire("in", "CA4", 60.0, 2)


async def test_who_is_first_and_does_not_hear_it(server: RedisServer) -> None:
    """An answer of Redis' is lost, and it is asked again: the caller's ticket was not
    used by anybody else, so the stream comes in."""
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


async def test_who_asks_while_redis_restarts_gets_an_answer(
    server: RedisServer,
) -> None:
    """A caller whose stream ended just then goes on on the other instance."""
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
        assert await a.registry.pop("snapshot:CA1") is None, "it was taken before"


async def test_nobody_waits_for_ever(server: RedisServer) -> None:
    """Twilio gets an answer from an instance that knows nothing of the call, some
    seconds after Redis went; later at once."""
    pace = replace(QUICK, wait=0.4)
    async with instance(server.url, pace=pace) as a:
        server.stop()
        began = monotonic()
        assert await a.registry.next_step("CA1") is None
        assert monotonic() - began < 1.5
        began = monotonic()
        assert await a.registry.get("plan:CA1") is None
        assert await a.registry.pop("plan:CA1") is None
        assert monotonic() - began < 0.1


async def test_redis_hangs(server: RedisServer) -> None:
    """One question waits half a second, the next ones do not; and what was being taken
    when it froze is not lost when it goes on."""
    async with pair(server) as (a, b):
        await a.registry.put("snapshot:CA1", b"said", 60.0)
        server.freeze()
        try:
            async with asyncio.TaskGroup() as tasks:
                taken = tasks.create_task(b.registry.pop("snapshot:CA1"))
                began = monotonic()
                await a.registry.opened(entry("1"))
                assert monotonic() - began < 1.5
                began = monotonic()
                await a.registry.opened(entry("2"))
                await a.registry.closed(entry("2"), HANG_UP)
                assert monotonic() - began < 0.2
                await soon(lambda: b.up == [True, False], "it is not missed")
                server.thaw()
        finally:
            server.thaw()
        assert taken.result() == b"said"
        await soon(lambda: a.up[-1] and b.up[-1], "it is not found again")
        assert await b.registry.next_step("CA2") == HANG_UP
        assert await streams(b.registry) == ["MZ1"]
        assert await a.registry.pop("snapshot:CA1") is None


async def test_a_takeover_while_redis_is_away(server: RedisServer) -> None:
    """As soon as it can be known, the caller hears one agent: the newer one."""
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
    """A bridge takes calls all the same, and shares them later."""
    server.stop()
    with capture_logs() as lines:
        began = monotonic()
        async with instance(server.url) as a:
            assert monotonic() - began < 1.5
            await a.registry.opened(entry())
            assert await streams(a.registry) == ["MZ1"]
            await asyncio.sleep(0.2)
            server.start()
            await soon(lambda: a.up == [False, True], "it is not found")
            async with instance(server.url) as b:
                assert await streams(b.registry) == ["MZ1"]
    assert [line["event"] for line in lines] == ["fleet_away", "fleet_back"]


async def test_redis_is_there_but_of_no_use(server: RedisServer) -> None:
    """Full: the log says so once, calls go on, and it is used when it is not."""
    with capture_logs() as lines:
        async with instance(server.url) as a:
            server.client.config_set("maxmemory", "1")
            await soon(lambda: a.up == [True, False], "it is not noticed")
            await a.registry.put("plan:CA1", b"x", 60.0)
            await asyncio.sleep(0.3)
            server.client.config_set("maxmemory", "0")
            await soon(lambda: a.up == [True, False, True], "it is not found again")
            async with instance(server.url) as b:
                assert await b.registry.get("plan:CA1") == b"x"
    away, back = lines
    assert (away["event"], back["event"]) == ("fleet_away", "fleet_back")
    assert away["why"] in ("OOM", "OutOfMemoryError")


async def test_redis_has_forgotten_all(server: RedisServer) -> None:
    """Another Redis in its place, without a pause, or somebody who empties it: within a
    beat it knows again what is."""
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
    """A wrong password is told, but not what it is."""
    server.client.config_set("requirepass", "open sesame")
    url = server.url.replace("//", "//:hush@")
    with capture_logs() as lines:
        async with instance(url) as a:
            assert "hush" not in repr(a.registry)
    (line,) = lines
    assert "hush" not in str(line)
    assert line["at"] == f"127.0.0.1:{server.port}"
    assert line["why"] == "AuthenticationError"


async def test_an_instance_that_closes_is_gone(server: RedisServer) -> None:
    """A deploy does not hang, whatever the instance is telling Redis in that moment."""
    pace = replace(QUICK, beat=0.002)
    for n in range(40):
        async with asyncio.timeout(SOON_SECONDS):
            async with instance(server.url, pace=pace):
                await asyncio.sleep(n / 4000)
    assert server.client.hlen(INSTANCES) == 0, "a beat came behind the goodbye"


# --- the parts ---


@pytest.mark.parametrize("newest_first", [False, True])
async def test_the_newest_counts_whoever_comes_first(
    server: RedisServer, newest_first: bool
) -> None:
    """What one instance put back after an outage is not undone by another's older."""
    written = WrittenValues()
    texts = [written.keep("a", value, 60.0).text for value in (b"old", b"new")]
    if newest_first:
        texts.reverse()
    for text in texts:
        server.client.eval(PUT_BACK.text, 1, "a", text, 60_000)  # type: ignore[no-untyped-call]

    assert bytes(server.client.get("a") or b"")[17:] == b"new"


def test_what_is_over_costs_no_memory() -> None:
    """An instance that runs for months does not grow by what it once wrote."""
    written = WrittenValues()
    for n in range(10_000):
        written.keep(str(n), b"x", -1.0)

    assert len(written._kept) < 100
    assert written.get("9999") is None


def test_a_script_is_called_by_the_name_that_redis_gives_it(
    server: RedisServer,
) -> None:
    """A call costs its few bytes, not those of the scripts."""
    names = [server.client.script_load(script.text) for script in SCRIPTS]

    assert names == [script.sha for script in SCRIPTS]
