"""Instances of two versions on one Redis: this version, and format 0's own code in a
process of its own. Each takes over the calls of the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.app.outbound import CallStatus, OutboundOrder
from bridge.call.checkpoint import Checkpoint
from bridge.core.history import HistoryItem
from bridge.fleet import TAKEN, CallEntry, InstanceLoad
from bridge.fleet.formats import FORMAT, encode, format_of
from bridge.fleet.keys import INSTANCES, SHELF
from bridge.fleet.plan import AnsweredBy, CallSnapshot, Plan
from bridge.fleet.redis import RedisRegistry, redis_registry
from tests.fleet.earlier_version import OtherVersion, running, unpack
from tests.fleet.format0 import record
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import QUICK, beats, instance, soon
from tests.fleet.test_formats import ORDER, PLAN, SNAPSHOT, STATUS, STEP
from tests.fleet.test_registry import SORRY, entry, streams

JOIN = """
import asyncio
import msgspec
from bridge.core.history import HistoryItem
from bridge.fleet import CallEntry, Capacity, NextStep, Then
from bridge.fleet.plan import Earlier, Plan
from bridge.fleet.redis import Pace, redis_registry
try:
    from bridge.call.checkpoint import Safekeeping
except ModuleNotFoundError:  # in the tree of format 0
    from bridge.safekeeping import Safekeeping

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


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


@dataclass
class Format0:
    """An instance of format 0 in the fleet."""

    process: OtherVersion

    async def run(self, code: str, **given: Any) -> Any:
        return await self.process.run(code, **given)

    async def opens(self, sid: str, stream: str) -> None:
        code = "await registry.opened(CallEntry(sid, stream, 5.0))"
        await self.run(code, sid=sid, stream=stream)

    async def snapshot(self, sid: str) -> Any:
        return await self.run("result = await look(sid)", sid=sid)

    async def keeps(self, sid: str, snapshot: CallSnapshot) -> None:
        await self.run("await keep(sid, snapshot)", sid=sid, snapshot=plain(snapshot))

    async def leaves(self) -> None:
        await self.run(LEAVE)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("format0") / "source")


@asynccontextmanager
async def older(source: Path, server: RedisServer) -> AsyncIterator[Format0]:
    async with running(source) as process:
        await process.run(JOIN, url=server.url)
        yield Format0(process)


def stored(server: RedisServer, sid: str) -> bytes:
    """The snapshot of a call as it is in Redis."""
    text: Any = server.client.get(f"{SHELF}talk:{sid}")
    return bytes(text)[17:]


async def snapshot(registry: RedisRegistry, sid: str) -> CallSnapshot:
    return CallSnapshot.read(await registry.get(f"talk:{sid}"))


async def keep(registry: RedisRegistry, sid: str, earlier: CallSnapshot) -> None:
    await Checkpoint(registry, sid, lambda: 0, lambda: earlier).keep()


# --- one deploy, and one rollback ---


async def test_a_call_goes_from_the_older_version_to_this_one(
    server: RedisServer, source: Path
) -> None:
    """In a deploy: a caller whose instance is stopped, or killed, is back on a new one
    with all that was said, and the older instance lets go of the call."""
    async with older(source, server) as old, instance(server.url) as new:
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

        # One that is killed leaves the same behind.
        await old.opens("CA2", "MZ3")
        await old.keeps("CA2", SNAPSHOT)
        old.process.kill()
        assert await snapshot(new.registry, "CA2") == SNAPSHOT


async def test_a_call_goes_from_this_version_to_the_older_one(
    server: RedisServer, source: Path
) -> None:
    """In a rollback, the same the other way round; and what the older instance makes of
    the call comes back."""
    async with instance(server.url) as new, older(source, server) as old:
        await soon(lambda: new.registry.format() == 0, "it does not see the older one")
        await new.registry.opened(entry(stream="MZ1"))
        await keep(new.registry, "CA1", SNAPSHOT)

        assert await old.snapshot("CA1") == plain(SNAPSHOT)
        await old.opens("CA1", "MZ2")
        await soon(lambda: new.heard, "it does not let go of the call")
        assert new.heard == [("CA1", TAKEN)]

        said = (*SNAPSHOT.history, HistoryItem("u2", "user", "Thank you."))
        longer = msgspec.structs.replace(SNAPSHOT, history=said, streams=3)
        await old.keeps("CA1", longer)
        assert await snapshot(new.registry, "CA1") == longer


async def test_what_is_left_for_the_other_version(
    server: RedisServer, source: Path
) -> None:
    """Whichever instance Twilio asks knows what follows and what was planned, whichever
    had the call; a ticket is good once; and each knows that the other has room."""
    async with instance(server.url) as new, older(source, server) as old:
        await soon(lambda: new.registry.format() == 0, "it does not see the older one")
        await new.registry.opened(entry("1"))
        await new.registry.closed(entry("1"), STEP)
        found = "result = msgspec.to_builtins(await registry.next_step('CA1'))"
        assert await old.run(found) == plain(STEP)
        left = """
step = NextStep(Then.SORRY, "+14155550100")
await registry.closed(CallEntry("CA2", "MZ2", 5.0), step)
await registry.put("plan:CA2", Plan("Hi.").kept(), 60.0)
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
    the older format, and at its end, or a deploy's, in the newer one. Two lines in the
    log, however long it takes."""
    async with instance(server.url) as new, instance(server.url) as peer:
        registry, asked = new.registry, 0

        def look() -> CallSnapshot:
            nonlocal asked
            asked += 1
            return SNAPSHOT

        def written(format: int) -> bool:
            return server.client.exists(f"{SHELF}talk:CA1") == 1 and (
                format_of(stored(server, "CA1")) == format
            )

        with capture_logs() as lines:
            async with asyncio.TaskGroup() as tasks:
                safe = Checkpoint(registry, "CA1", lambda: 0, look)
                task = tasks.create_task(safe.run())
                await soon(lambda: written(FORMAT), "no snapshot in the newest format")
                async with older(source, server) as old:
                    await soon(lambda: written(0), "no snapshot in the older format")
                    assert await old.snapshot("CA1") == plain(SNAPSHOT)
                    assert registry.format() == 0
                    await soon(lambda: peer.registry.format() == 0, "not all know")
                    await beats(5)
                    await old.leaves()
                await soon(lambda: written(FORMAT), "the older format stays")
                task.cancel()
        assert asked == 3, "it was written for nothing"
        assert registry.format() == FORMAT
        await soon(lambda: peer.registry.format() == FORMAT, "not all know")
        told = [line["event"] for line in lines]
        assert told == 2 * ["fleet_formats_differ"] + 2 * ["fleet_formats_agree"]
        first, last = lines[0], lines[-1]
        assert (first["oldest"], first["newest"], first["writes"]) == (0, FORMAT, 0)
        assert first["log_level"] == last["log_level"] == "info"
        assert last["format"] == FORMAT and last["seconds"] > 0


# --- formats that are announced ---


def announce(server: RedisServer, name: str, beat: str) -> None:
    server.client.hset(INSTANCES, name, f"99999999999999 {beat}")


async def test_a_newer_instance_joins(server: RedisServer) -> None:
    """It writes what this version reads; this version goes on as before."""
    with capture_logs() as lines:
        async with instance(server.url) as a:
            newer = encode(InstanceLoad(2, 0), FORMAT + 1).decode()
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
    """It is an old one: format 0 is written from the first value on."""
    announce(server, "older", beat)
    async with instance(server.url) as a:
        assert a.registry.format() == 0


async def test_versions_too_far_apart(server: RedisServer) -> None:
    """A version was left out in a deploy: the log warns, for one of them cannot read
    what another writes."""
    announce(server, "older", "{}")
    announce(server, "newer", f'{{"format":{FORMAT + 1}}}')
    with capture_logs() as lines:
        async with instance(server.url):
            pass
    assert [line["log_level"] for line in lines] == ["warning"]
    assert (lines[0]["oldest"], lines[0]["newest"]) == (0, FORMAT + 1)


async def test_redis_is_not_there_yet(server: RedisServer) -> None:
    """Nobody knows which versions will read what is put there later: the oldest format
    is safe. While Redis is away, what was known last counts."""
    server.stop()
    async with instance(server.url) as a:
        assert a.registry.format() == 0
        server.start()
        await soon(lambda: a.up == [False, True], "it is not found")
        assert a.registry.format() == FORMAT
        server.stop()
        await soon(lambda: a.up[-1] is False, "it is not missed")
        assert a.registry.format() == FORMAT


async def test_a_beat_is_what_format_0_reads(server: RedisServer) -> None:
    """Its shape never changes: that is how versions learn each other's format."""
    async with instance(server.url, InstanceLoad(20, 3)) as a:
        beat: Any = server.client.hget(INSTANCES, a.registry.id)
        _, text = bytes(beat).split(b" ", 1)
    assert msgspec.json.decode(text) == {
        "format": FORMAT,
        "limit": 20,
        "calls": 3,
        "draining": False,
    }


# --- what format 0 has left in Redis ---


async def test_a_redis_full_of_format_0(server: RedisServer) -> None:
    """All keys that format 0 writes, recorded, mean the same to this version."""
    record.load(server)
    async with redis_registry(
        server.url, lambda: InstanceLoad(1, 1), timing=QUICK
    ) as it:
        assert it.format() == 0
        [call] = await it.calls()
        assert call == CallEntry("CA1", "MZ1", 1_800_000_000.0, call.instance)
        assert await it.room() and await it.others()
        assert await it.next_step("CA2") == STEP
        assert await snapshot(it, "CA1") == SNAPSHOT
        assert Plan.read(await it.get("plan:CA1")) == PLAN
        order, status = await it.get(f"order:{ORDER.id}"), await it.get("status:CA1")
        assert order and msgspec.json.decode(order, type=OutboundOrder) == ORDER
        assert status and msgspec.json.decode(status, type=CallStatus) == STATUS
        assert await AnsweredBy.of(it, "CA1") is AnsweredBy.MACHINE_END_BEEP
        assert await it.get("ended:CA1") == b"1800000001.5"
        assert await it.get("route:CA1") == b"bookings"
        assert not await it.set_if_absent("ticket:abc", 60.0)
        assert await it.count("cost:2027-01-15", 60.0, 0) == 1.25
        assert not await it.acquire("calls:0f0f", "CA2", 60.0, 1)
        assert await it.pop("talk:CA1") == (record.HERE / "snapshot.json").read_bytes()
