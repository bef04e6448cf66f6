"""Instances of two versions on one Redis: this version, and the code of format 1 in a
process of its own. Each takes over the calls of the other."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.app.outbound import CallStatus, OutboundOrder
from bridge.call.checkpoint import Checkpoint
from bridge.core.history import HistoryItem
from bridge.fleet import TAKEN, CallEntry, InstanceLoad, keys
from bridge.fleet.formats import FORMAT, OLDEST, encode, format_of, read
from bridge.fleet.keys import INSTANCES, format_1
from bridge.fleet.plan import AnsweredBy, Plan
from bridge.fleet.redis import RedisRegistry, Timing, redis_registry
from bridge.fleet.snapshot import CallSnapshot
from tests.fleet.earlier_version import OtherVersion, running, shared_source
from tests.fleet.format1 import record
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import QUICK, Instance, beats, instance, soon
from tests.fleet.test_formats import ORDER, PLAN, SNAPSHOT, STATUS, STEP, in_format_1
from tests.fleet.test_registry import SORRY, entry, streams

pytestmark = pytest.mark.slow

JOIN = """
import asyncio
import msgspec
from bridge.call.checkpoint import Safekeeping
from bridge.core.history import HistoryItem
from bridge.fleet import CallEntry, Capacity, NextStep, Then
from bridge.fleet.plan import Earlier, Plan
from bridge.fleet.redis import Pace, redis_registry

pace = Pace(beat=0.1, instance=10.0, lease=10.0, settle=0.2)
opened = redis_registry(url, lambda: Capacity(2, 0), pace=pace)
registry = await opened.__aenter__()
heard, told = [], asyncio.Event()

def hear(sid, word):
    heard.append([sid, word.decode()])
    told.set()

registry.listen(hear)

async def look(sid):
    return msgspec.to_builtins(Earlier.read(await registry.get(f"talk:{sid}")))

async def keep(sid, snapshot):
    snapshot = msgspec.convert(snapshot, Earlier)
    await Safekeeping(registry, sid, lambda: 0, lambda: snapshot).keep()
"""
LEAVE = "await opened.__aexit__(None, None, None)"


CALM = replace(QUICK, instance=10.0, lease=10.0, limit=3.0)
"""A busy machine that delays a beat does not cost an instance its place."""

SLOW = Timing(beat=30.0, instance=90.0)
"""An instance that does not notice during a test that another one joins."""


def joined(url: str, timing: Timing = CALM) -> AbstractAsyncContextManager[Instance]:
    return instance(url, pace=timing)


@dataclass
class Format1:
    """An instance of format 1 in the fleet."""

    process: OtherVersion

    async def run(self, code: str, **given: Any) -> Any:
        return await self.process.run(code, **given)

    async def opens(self, sid: str, stream: str) -> None:
        code = "await registry.opened(CallEntry(sid, stream, 5.0))"
        await self.run(code, sid=sid, stream=stream)

    async def snapshot(self, sid: str) -> Any:
        return await self.run("result = await look(sid)", sid=sid)

    async def keeps(self, sid: str, snapshot: CallSnapshot) -> None:
        await self.run(
            "await keep(sid, snapshot)", sid=sid, snapshot=in_format_1(snapshot)
        )

    async def leaves(self) -> None:
        await self.run(LEAVE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_source(tmp_path_factory)


@asynccontextmanager
async def older(source: Path, server: RedisServer) -> AsyncIterator[Format1]:
    async with running(source) as process:
        await process.run(JOIN, url=server.url)
        yield Format1(process)


def snapshot_formats(server: RedisServer, sid: str) -> list[int]:
    """The format of the snapshot under its present name and under its old one; 0: there
    is none."""
    key = f"bridge:store:snapshot:{sid}"
    texts: Any = server.client.mget(key, format_1(key))
    return [0 if text is None else format_of(text[17:]) for text in texts]


def names_in(server: RedisServer) -> set[str]:
    """The keys in Redis, without those of the instances."""
    found: Any = server.client.keys("*")
    return {key.decode() for key in found} - {"bridge:instances", "bridge:era"}


async def snapshot(registry: RedisRegistry, sid: str) -> CallSnapshot:
    return CallSnapshot.read(await registry.get(f"snapshot:{sid}"))


async def sees_format(it: Instance, format: int) -> None:
    await soon(lambda: it.registry.format() == format, f"it writes not format {format}")


async def keep(registry: RedisRegistry, sid: str, earlier: CallSnapshot) -> None:
    await Checkpoint(registry, sid, lambda: 0, lambda: earlier).keep()


# --- one deploy, and one rollback ---


async def test_a_call_goes_from_the_older_version_to_this_one(
    server: RedisServer, source: Path
) -> None:
    """In a deploy: a caller whose instance is stopped or killed continues on a new
    instance with the whole history, and the older instance gives up the call."""
    async with older(source, server) as old, joined(server.url) as new:
        await old.opens("CA1", "MZ1")
        await old.keeps("CA1", SNAPSHOT)
        assert await streams(new.registry) == ["MZ1"]
        assert await snapshot(new.registry, "CA1") == SNAPSHOT

        await new.registry.opened(entry(stream="MZ2"))
        await old.run("await asyncio.wait_for(told.wait(), 5)")
        assert await old.run("result = heard") == [["CA1", TAKEN.decode()]]
        there = "result = [it.stream_sid for it in await registry.calls()]"
        assert await old.run(there) == ["MZ2"]
        assert await streams(new.registry) == ["MZ2"]

        # An instance that is killed leaves the same data.
        await old.opens("CA2", "MZ3")
        await old.keeps("CA2", SNAPSHOT)
        old.process.kill()
        assert await snapshot(new.registry, "CA2") == SNAPSHOT


async def test_a_call_goes_from_this_version_to_the_older_one(
    server: RedisServer, source: Path
) -> None:
    """In a rollback, the same in the other direction; and the call can come back."""
    async with joined(server.url) as new, older(source, server) as old:
        await sees_format(new, 1)
        await new.registry.opened(entry(stream="MZ1"))
        await keep(new.registry, "CA1", SNAPSHOT)

        assert await old.snapshot("CA1") == in_format_1(SNAPSHOT)
        await old.opens("CA1", "MZ2")
        await soon(lambda: new.heard, "it does not let go of the call")
        assert new.heard == [("CA1", TAKEN)]

        said = (*SNAPSHOT.history, HistoryItem("u2", "user", "Thank you."))
        longer = msgspec.structs.replace(SNAPSHOT, history=said, stream_count=3)
        await old.keeps("CA1", longer)
        assert await snapshot(new.registry, "CA1") == longer


async def test_values_of_a_call_are_shared(server: RedisServer, source: Path) -> None:
    """Any instance that Twilio asks knows the next step and the plan, whichever
    instance had the call; a ticket is good once; each knows that the other has room."""
    async with joined(server.url) as new, older(source, server) as old:
        await sees_format(new, 1)
        await new.registry.opened(entry("1"))
        await new.registry.closed(entry("1"), STEP)
        found = "result = msgspec.to_builtins(await registry.next_step('CA1'))"
        assert await old.run(found) == in_format_1(STEP)
        left = """
step = NextStep(Then.SORRY, "+14155550100")
await registry.closed(CallEntry("CA2", "MZ2", 5.0), step)
await registry.put("plan:CA2", Plan("Hi.").kept(1), 60.0)
"""
        await old.run(left)
        assert await new.registry.next_step("CA2") == SORRY
        assert Plan.read(await new.registry.get("plan:CA2")) == Plan("Hi.")

        assert await new.registry.set_if_absent("ticket:1", 60.0)
        assert not await old.run("result = await registry.first('ticket:1', 60.0)")
        assert await old.run("result = await registry.count('day', 60.0, 2)") == 2
        assert await new.registry.count("day", 60.0, 3) == 5
        assert await old.run("result = await registry.let_in('in', 'CA1', 60.0, 1)")
        assert not await new.registry.acquire("in", "CA2", 60.0, 1)
        assert await old.run("result = await registry.others()")
        assert await new.registry.others()


async def test_an_older_instance_joins(server: RedisServer, source: Path) -> None:
    """At the start of a rollback the snapshots of running calls are written again in
    the older format, and at its end, or a deploy's, in the newer one. The log says so
    in two lines for each instance, however long it takes."""
    async with joined(server.url) as new, joined(server.url) as peer:
        registry, asked = new.registry, 0

        def look() -> CallSnapshot:
            nonlocal asked
            asked += 1
            return SNAPSHOT

        with capture_logs() as lines:
            async with asyncio.TaskGroup() as tasks:
                safe = Checkpoint(registry, "CA1", lambda: 0, look)
                task = tasks.create_task(safe.run())
                await soon(lambda: snapshot_formats(server, "CA1") == [2, 0], "none")
                async with older(source, server) as old:
                    await soon(
                        lambda: snapshot_formats(server, "CA1") == [0, 1],
                        "no snapshot in the older format, or two",
                    )
                    assert await old.snapshot("CA1") == in_format_1(SNAPSHOT)
                    await sees_format(new, 1)
                    await sees_format(peer, 1)
                    await soon(lambda: asked == 2, "it is not written again")
                    await beats(5)
                    await old.leaves()
                await soon(
                    lambda: snapshot_formats(server, "CA1")[0] == 2, "format 1 stays"
                )
                await soon(lambda: asked == 3, "it is not written again")
                task.cancel()
        assert registry.format() == FORMAT
        await sees_format(peer, FORMAT)
        told = [it["event"] for it in lines if it["event"] != "fleet_values_copied"]
        assert told == 2 * ["fleet_formats_differ"] + 2 * ["fleet_formats_agree"]
        [first, *_, last] = [it for it in lines if it["event"] in told]
        assert (first["oldest"], first["newest"], first["writes"]) == (1, FORMAT, 1)
        assert first["log_level"] == last["log_level"] == "info"
        assert last["format"] == FORMAT and last["seconds"] > 0


# --- names that format 2 has renamed ---


async def use_every_name(registry: RedisRegistry) -> None:
    await keep(registry, "CA1", SNAPSHOT)
    await AnsweredBy.HUMAN.keep(registry, "CA1")
    await registry.put("plan:CA1", PLAN.encoded(registry.format()), 60.0)
    assert await registry.set_if_absent("ticket:1", 60.0)
    assert await registry.count("admitted:CA1", 60.0) == 1
    assert await registry.acquire("hourly_calls:0f", "CA1", 60.0, 1)


OLD_CLAIMS = {
    "bridge:shelf:ticket:1",
    "bridge:count:let_in:CA1",
    "bridge:in:hour:0f",
}
OLD_VALUES = {"bridge:shelf:talk:CA1", "bridge:shelf:amd:CA1", "bridge:shelf:plan:CA1"}


async def test_the_names_of_each_format(server: RedisServer) -> None:
    """While an older instance is in the fleet, only the old names are in use. Without
    one the new names are; tickets and quotas have both, because an older instance that
    joins must find them at once."""
    async with joined(server.url) as a:
        await use_every_name(a.registry)
        assert names_in(server) == OLD_CLAIMS | {
            "bridge:store:snapshot:CA1",
            "bridge:store:answered_by:CA1",
            "bridge:store:plan:CA1",
            "bridge:store:ticket:1",
            "bridge:count:admitted:CA1",
            "bridge:members:hourly_calls:0f",
        }
    server.client.flushall()
    announce(server, "older", '{"format":1}')
    async with joined(server.url) as a:
        await use_every_name(a.registry)
        assert names_in(server) == OLD_CLAIMS | OLD_VALUES


async def test_an_older_instance_finds_all_values(
    server: RedisServer, source: Path
) -> None:
    """Also those of calls that no running instance has: the caller whose transfer rings
    during a rollback continues with the whole history. The values have one name only:
    a call that is forgotten is forgotten under every name."""
    async with joined(server.url) as gone:
        await use_every_name(gone.registry)
        await gone.registry.put("resume_count:CA1", b"2", 60.0)
        await gone.registry.put("late_ticket:CA1", b"1", 60.0)
    with capture_logs() as lines:
        async with joined(server.url), older(source, server) as old:
            await soon(lambda: lines[-1:] and "values" in lines[-1], "nothing is moved")
            await beats()
            assert await old.snapshot("CA1") == in_format_1(SNAPSHOT)
            get = "result = (await registry.get(name) or b'').decode()"
            assert await old.run(get, name="amd:CA1") == "human"
            assert await old.run(get, name="resumed:CA1") == "2"
            assert await old.run(get, name="late-ticket:CA1") == "1"
            assert encode(PLAN, 1).decode() == await old.run(get, name="plan:CA1")
            assert not [it for it in names_in(server) if it.startswith("bridge:store:")]
            left: Any = server.client.pttl("bridge:shelf:talk:CA1")
            assert 150_000 < left <= 180_000
            assert await old.run("result = (await registry.take('talk:CA1')) != None")
            await old.leaves()
            await beats(5)
        async with joined(server.url) as a:
            assert await a.registry.get("snapshot:CA1") is None
            assert await a.registry.get("plan:CA1") == encode(PLAN, 1)


async def test_a_used_ticket_is_refused_at_once(
    server: RedisServer, source: Path
) -> None:
    """And a caller has no more calls than allowed, also in the first beat of an older
    instance, when the others do not know it yet."""
    async with joined(server.url, SLOW) as new:
        registry = new.registry
        assert registry.format() == FORMAT
        await use_every_name(registry)
        async with older(source, server) as old:
            assert registry.format() == FORMAT
            first = "result = await registry.first(name, 60.0)"
            assert not await old.run(first, name="ticket:1")
            assert await old.run(first, name="ticket:2")
            assert not await registry.set_if_absent("ticket:2", 60.0)

            enter = "result = await registry.let_in('hour:0f', sid, 60.0, 1)"
            assert await old.run(enter, sid="CA1"), "it is a member already"
            assert not await old.run(enter, sid="CA2")
            await old.run("await registry.let_out('hour:0f', 'CA1')")
            assert await registry.acquire("hourly_calls:0f", "CA2", 60.0, 1)
            assert not await old.run(enter, sid="CA1")
            await registry.release("hourly_calls:0f", "CA2")
            assert await old.run(enter, sid="CA1")
            assert not await registry.acquire("hourly_calls:0f", "CA2", 60.0, 1)

            total = "result = await registry.count('let_in:CA1', 60.0, 1)"
            assert await old.run(total) == 2
            assert await registry.count("admitted:CA1", 60.0) == 3
            assert await old.run(total) == 4


async def test_a_used_ticket_is_refused_after_redis_was_emptied(
    server: RedisServer,
) -> None:
    """The instance that knows the ticket writes it again under both names: an older
    instance that joins then reads the old one."""
    key = "bridge:store:ticket:1"
    async with joined(server.url) as new:
        assert await new.registry.set_if_absent("ticket:1", 60.0)
        await new.registry.put("plan:CA1", b"x", 60.0)
        server.client.flushall()
        await soon(lambda: server.client.exists(key), "it is not put back")
        assert server.client.get(format_1(key)) == server.client.get(key)
        await soon(lambda: server.client.exists("bridge:store:plan:CA1"), "no plan")
        assert not server.client.exists("bridge:shelf:plan:CA1")


@pytest.mark.parametrize("first", [1, 2])
async def test_instances_that_do_not_agree_on_the_format(
    server: RedisServer, first: int
) -> None:
    """Two instances of this version change over within one beat, not in one moment:
    until then each reads the values of the other, and only one pops a value."""
    async with joined(server.url, SLOW) as a, joined(server.url) as b:
        announce(server, "older", '{"format":1}')
        await sees_format(b, 1)
        assert a.registry.format() == FORMAT
        await beats(5)
        one, other = (
            (a.registry, b.registry) if first == 2 else (b.registry, a.registry)
        )

        await one.put("snapshot:CA1", b"old", 60.0)
        assert await other.get("snapshot:CA1") == b"old"
        await other.put("snapshot:CA1", b"new", 60.0)
        assert await one.get("snapshot:CA1") == b"new"
        popped = await asyncio.gather(*(it.pop("snapshot:CA1") for it in (one, other)))
        assert sorted(popped, key=bool) == [None, b"new"]
        assert await one.get("snapshot:CA1") is await other.get("snapshot:CA1") is None
        await one.put("snapshot:CA1", b"again", 60.0)
        assert await other.pop("snapshot:CA1") == b"again"
        assert await one.pop("snapshot:CA1") is None

        both = [it.set_if_absent("ticket:1", 60.0) for it in (one, other)]
        assert sorted(await asyncio.gather(*both)) == [False, True]
        assert await one.acquire("calls:0f", "CA1", 60.0, 1)
        assert not await other.acquire("calls:0f", "CA2", 60.0, 1)
        await other.release("calls:0f", "CA1")
        assert await one.acquire("calls:0f", "CA2", 60.0, 1)
        assert await one.count("admitted:CA1", 60.0) == 1
        assert await other.count("admitted:CA1", 60.0) == 2
        assert await one.count("admitted:CA1", 60.0) == 3

        await other.put("plan:CA1", b"first", 60.0)
        await one.put("plan:CA1", b"second", 60.0)
        assert await one.pop("plan:CA1") == b"second"
        server.let_pass(keys.POPPED_SECONDS + 1)  # the tombstones have expired
        assert await one.get("plan:CA1") is await other.get("plan:CA1") is None


async def test_a_value_that_is_written_late_is_moved(server: RedisServer) -> None:
    """An instance may be writing a value at the moment when it notices that an older
    instance has joined: the value gets the old name, too."""
    key, text = "bridge:store:plan:CA1", b"%016d+x" % 1
    announce(server, "older", '{"format":1}')
    async with joined(server.url):
        await asyncio.sleep(CALM.beat / 2)
        server.client.set(key, text, px=60_000)
        await soon(lambda: server.client.get(format_1(key)) == text, "it is not moved")
        assert not server.client.exists(key)


@pytest.mark.parametrize("prefix", ["bridge:shelf:talk", "bridge:store:snapshot"])
async def test_keys_of_another_program(server: RedisServer, prefix: str) -> None:
    """A key that is not a string, or whose name is not UTF-8, neither ends the instance
    nor keeps the values of calls from their other names."""
    server.client.rpush(f"{prefix}:CA0", "x")
    server.client.set(b"bridge:shelf:\xff", b"%016d+x" % 1, px=60_000)
    for n in range(200):
        server.client.set(f"bridge:shelf:talk:CA{n + 1}", b"%016d+x" % 1, px=60_000)
    with capture_logs() as logs:
        async with joined(server.url) as a:
            new = "bridge:store:snapshot:CA"
            await soon(
                lambda: len(server.client.keys(f"{new}[1-9]*")) == 200,
                "they are not copied",
            )
            await beats(3)
            assert await a.registry.get("snapshot:CA1") == b"x"
    assert "fleet_values_not_copied" not in {it["event"] for it in logs}


def test_a_value_that_changes_while_it_is_copied(server: RedisServer) -> None:
    """A value that was popped meanwhile does not come back under its other name."""
    text, tombstone = b"%016d+x" % 1, b"%016d-" % 2
    server.client.set("other", tombstone)

    def copy(how: str) -> Any:
        arguments = "name", "other", text, 60_000, how
        [written] = server.client.eval(keys.COPY.text, 2, *arguments)  # type: ignore[no-untyped-call]
        return written

    assert copy("move") == 0
    assert server.client.get("name") is None and server.client.get("other") == tombstone
    server.client.set("other", text)
    assert copy("copy") == 1 and copy("move") == 0
    assert server.client.get("name") == text and server.client.get("other") is None


PAIRS = 25
"""Values, tickets and members of each worker in one state of the fleet."""


async def test_a_rollback_and_a_deploy_under_load(
    server: RedisServer, source: Path
) -> None:
    """An older instance joins and leaves twice while all instances put, pop, use
    tickets and count calls. Every value is popped once, every ticket is accepted once,
    and no caller has more calls than allowed."""
    lost, counts = [], {"values": 0, "tickets": 0, "calls": 0}

    async def pop_by(old: Format1 | None, it: Instance, name: str) -> bool:
        """An older instance may look before the value was moved: it looks again."""
        if old is None:
            return await it.registry.pop(name) is not None
        take = "result = await registry.take(name) is not None"
        for _ in range(50):
            if await old.run(take, name=name.replace("snapshot", "talk")):
                return True
            await asyncio.sleep(QUICK.beat / 5)
        return False

    async def work(a: Instance, b: Instance, old: Format1 | None, who: str) -> None:
        for n in range(PAIRS):
            name = f"snapshot:{who}.{n}"
            await a.registry.put(name, SNAPSHOT.encoded(a.registry.format()), 60.0)
            assert await b.registry.get(name) is not None, name
            if not await pop_by(old, b, name):
                lost.append(name)
            assert await a.registry.pop(name) is await b.registry.pop(name) is None
            counts["values"] += 1

            ticket = f"ticket:{who}.{n}"
            asked = [it.registry.set_if_absent(ticket, 60.0) for it in (a, b)]
            if old:
                first = "result = await registry.first(name, 60.0)"
                asked.append(old.run(first, name=ticket))
            assert sum(await asyncio.gather(*asked)) == 1, ticket
            counts["tickets"] += 1

            calls = [
                it.registry.acquire(f"calls:{who}.{n}", f"CA{m}", 60.0, 3)
                for m, it in enumerate([a, b] * 3)
            ]
            if old:
                enter = "result = await registry.let_in(name, 'CA9', 60.0, 3)"
                calls.append(old.run(enter, name=f"calls:{who}.{n}"))
            assert sum(await asyncio.gather(*calls)) == 3
            counts["calls"] += 3

    async def all_work(a: Instance, b: Instance, old: Format1 | None, who: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work(a, b, None, f"{who}1"))
            tasks.create_task(work(b, a, None, f"{who}2"))
            if old:
                tasks.create_task(work(a, b, old, f"{who}3"))

    async with joined(server.url) as a, joined(server.url) as b:
        for turn in "12":
            await all_work(a, b, None, f"before{turn}")
            async with older(source, server) as old:
                await all_work(a, b, old, f"joins{turn}")
                assert a.registry.format() == b.registry.format() == OLDEST
                await all_work(a, b, old, f"there{turn}")
                await old.leaves()
            await all_work(a, b, None, f"leaves{turn}")
            await sees_format(a, FORMAT)
    assert lost == []
    assert counts == {"values": 500, "tickets": 500, "calls": 1500}


# --- formats that are announced ---


def announce(server: RedisServer, name: str, beat: str) -> None:
    until = round(time.time() * 1000) + 60_000
    server.client.hset(INSTANCES, name, f"{until} {beat}")


async def test_a_newer_instance_joins(server: RedisServer) -> None:
    """It writes values that this version reads; this version goes on as before."""
    with capture_logs() as lines:
        async with joined(server.url) as a:
            newer = f'{{"format":{FORMAT + 1},"limit":2,"calls":0}}'
            announce(server, "newer", newer)
            await soon(lambda: lines, "it is not noticed")
            assert a.registry.format() == FORMAT
            assert await a.registry.others(), "its room is not counted"
    assert [line["event"] for line in lines] == ["fleet_formats_differ"]
    assert lines[0]["log_level"] == "info"


@pytest.mark.parametrize("beat", ['{"limit":2,"calls":0}', "{}", "[1]"])
async def test_an_instance_that_announces_no_format(
    server: RedisServer, beat: str
) -> None:
    """It has the oldest format of all: this version writes the oldest that it can, and
    the log warns."""
    announce(server, "older", beat)
    with capture_logs() as lines:
        async with joined(server.url) as a:
            assert a.registry.format() == OLDEST
    assert (lines[0]["event"], lines[0]["log_level"], lines[0]["oldest"]) == (
        *("fleet_formats_differ", "warning"),
        0,
    )


async def test_versions_too_far_apart(server: RedisServer) -> None:
    """A version was left out in a deploy: the log warns, because some instance cannot
    read the values of another one."""
    announce(server, "older", "{}")
    announce(server, "newer", f'{{"format":{FORMAT + 1}}}')
    with capture_logs() as lines:
        async with joined(server.url):
            pass
    assert [line["log_level"] for line in lines] == ["warning"]
    assert (lines[0]["oldest"], lines[0]["newest"]) == (0, FORMAT + 1)


async def test_redis_is_not_reached_yet(server: RedisServer) -> None:
    """It is not known which versions will read the values: the oldest format is safe.
    While Redis is away, the format that was known last is written."""
    server.stop()
    async with joined(server.url) as a:
        assert a.registry.format() == OLDEST
        server.start()
        await soon(lambda: a.up == [False, True], "it is not found")
        assert a.registry.format() == FORMAT
        server.stop()
        await soon(lambda: a.up[-1] is False, "it is not missed")
        assert a.registry.format() == FORMAT


async def test_the_shape_of_a_beat(server: RedisServer) -> None:
    """It never changes: that is how versions learn each other's format."""
    async with instance(server.url, InstanceLoad(20, 3)) as a:
        beat: Any = server.client.hget(INSTANCES, a.registry.id)
        _, text = bytes(beat).split(b" ", 1)
    assert msgspec.json.decode(text) == {
        "format": FORMAT,
        "limit": 20,
        "calls": 3,
        "draining": False,
    }


# --- values of format 1 in Redis ---


async def test_a_redis_full_of_format_1(server: RedisServer) -> None:
    """All keys that format 1 writes, recorded, mean the same to this version."""
    record.load(server)
    async with redis_registry(
        server.url, lambda: InstanceLoad(1, 1), timing=CALM
    ) as it:
        assert it.format() == 1
        await means_the_same(it)


async def test_the_last_instance_of_format_1_has_left(server: RedisServer) -> None:
    """At the end of a deploy its values are copied to the new names: the version after
    this one reads no others."""
    record.load(server)
    server.client.hdel(INSTANCES, *server.client.hkeys(INSTANCES))
    old = {it for it in names_in(server) if it.startswith("bridge:shelf:")}
    async with redis_registry(
        server.url, lambda: InstanceLoad(1, 1), timing=CALM
    ) as it:
        assert it.format() == FORMAT
        await beats(5)
        new = {it for it in names_in(server) if it.startswith("bridge:store:")}
        assert {format_1(it) for it in new} == old
        await means_the_same(it)


async def means_the_same(it: RedisRegistry) -> None:
    [call] = await it.calls()
    assert call == CallEntry("CA1", "MZ1", 1_800_000_000.0, call.instance)
    assert await it.next_step("CA2") == STEP
    assert await snapshot(it, "CA1") == SNAPSHOT
    assert Plan.read(await it.get("plan:CA1")) == PLAN
    order, status = await it.get(f"order:{ORDER.id}"), await it.get("status:CA1")
    assert order and read(order, OutboundOrder) == ORDER
    assert status and read(status, CallStatus) == STATUS
    final = await it.get("final_status:CA3")
    assert final and read(final, CallStatus) == CallStatus("CA3", "completed", 3, 62)
    assert await AnsweredBy.of(it, "CA1") is AnsweredBy.MACHINE_END_BEEP
    assert await it.get("stream_ended:CA1") == b"1800000001.5"
    assert await it.get("route:CA1") == b"bookings"
    assert await it.get("resume_count:CA1") == b"2"
    assert await it.get("refusal_count:CA1") == b"1"
    assert await it.get("late_ticket:CA1") == b"1"
    assert not await it.set_if_absent("ticket:abc", 60.0)
    assert await it.count("cost:2027-01-15", 60.0, 0) == 1.25
    assert await it.count("admitted:CA1", 60.0, 0) == 1
    assert not await it.acquire("calls:0f0f", "CA2", 60.0, 1)
    assert not await it.acquire("hourly_calls:0f0f", "CA2", 60.0, 1)
    stored = (record.HERE / "snapshot.json").read_bytes()
    assert await it.pop("snapshot:CA1") == stored
    assert await it.pop("snapshot:CA1") is None
