"""Two writes of one fact are on their way to Redis at the same time, on two
connections: the later one counts, in whatever order they arrive."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from time import monotonic, time
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.app import quotas
from bridge.app.quotas import reporting
from bridge.call.checkpoint import SNAPSHOT_SECONDS, Checkpoint
from bridge.call.continuity import RETURN_SECONDS
from bridge.core.history import HistoryItem
from bridge.fleet import TAKEN, keys
from bridge.fleet.redis import Timing
from bridge.fleet.snapshot import CallSnapshot
from bridge.fleet.written_values import WrittenValues
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import QUICK, Instance, beats, instance
from tests.fleet.test_quotas import ANN, BOB, QuotasOfInstance, at_work
from tests.fleet.test_registry import entry, streams
from tests.support.tcp_proxy import TcpProxy, tcp_proxy
from tests.support.waiting import until

PATIENT = replace(QUICK, limit=5.0)
"""A held command is no lost Redis."""
NAME = "snapshot:CA1"


@asynccontextmanager
async def behind_a_proxy(
    server: RedisServer, pace: Timing = PATIENT
) -> AsyncIterator[tuple[Instance, TcpProxy]]:
    async with tcp_proxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with instance(url, pace=pace) as it:
            await beats()  # the values of format 1 have been copied
            yield it, proxy
            proxy.release()


async def test_two_streams_of_one_instance(server: RedisServer) -> None:
    """The caller's stream breaks right after its start and the caller comes back: the
    call goes on, although the entry of the first stream arrives last."""
    async with behind_a_proxy(server) as (it, proxy), asyncio.TaskGroup() as tasks:
        proxy.hold(b"MZold")
        first = tasks.create_task(it.registry.opened(entry(stream="MZold")))
        await proxy.held()
        await it.registry.opened(entry(stream="MZnew"))
        proxy.release()
        await first
        await beats()

        assert await streams(it.registry) == ["MZnew"]
        assert it.heard == [("CA1", TAKEN)], "the older stream only"


async def test_streams_of_two_instances(server: RedisServer) -> None:
    """The entry of an older stream is late: the instance with the newer stream goes on,
    and the other one learns that it has lost the call. Its clock is ahead."""
    async with behind_a_proxy(server) as (old, proxy), instance(server.url) as new:
        proxy.hold(b"MZold")
        ahead = entry(stream="MZold", at=time() + 60)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(old.registry.opened(ahead))
            await proxy.held()
            # Far more than the instances' clocks of Redis differ.
            await asyncio.sleep(0.2)
            await new.registry.opened(entry(stream="MZnew", at=time()))
            proxy.release()
        await until(lambda: old.heard, what="TAKEN at the instance that lost the call")
        await beats()

        assert new.heard == []
        for it in (old, new):
            assert await streams(it.registry) == ["MZnew"]
        await old.registry.closed(ahead, None)
        assert await streams(new.registry) == ["MZnew"]


async def test_a_deleted_value_stays_deleted(server: RedisServer) -> None:
    """Nobody reads what the caller said after it was deleted, although a write of it
    arrives after the deletion. Also when the write was cancelled: its command is on its
    way, on a connection of its own."""
    for cancel in (False, True):
        async with behind_a_proxy(server) as (it, proxy), asyncio.TaskGroup() as tasks:
            proxy.hold(b"words")
            writing = tasks.create_task(it.registry.put(NAME, b"words", 60.0))
            await proxy.held()
            if cancel:
                writing.cancel()
            await it.registry.delete(NAME)
            proxy.release()
            await asyncio.wait([writing])
            await beats()

            assert await it.registry.get(NAME) is None
            assert all(b"words" not in text for text in snapshots(server))


def snapshots(server: RedisServer) -> list[bytes]:
    names: Any = server.client.keys("*:CA1")
    return [text for text in map(server.client.get, names) if isinstance(text, bytes)]


async def test_a_deletion_while_redis_is_away(server: RedisServer) -> None:
    """The end of a call does not wait for Redis, and what the caller said is deleted
    when Redis is back."""
    async with instance(server.url) as it:
        await it.registry.put(NAME, b"words", 60.0)
        server.freeze()
        began = monotonic()
        await it.registry.delete(NAME)
        assert monotonic() - began < QUICK.wait
        server.thaw()
        await until(lambda: it.up[-1] and len(it.up) > 1, what="Redis is back")

        assert await it.registry.get(NAME) is None
        assert all(b"words" not in text for text in snapshots(server))


async def test_a_transfer_keeps_its_time_to_live(server: RedisServer) -> None:
    """The other phone of a transfer rings for ten minutes and is not answered: the
    caller comes back to the agent, although a checkpoint write was on its way when the
    call was transferred."""
    said = CallSnapshot((HistoryItem("u1", "user", "words"),), stream_count=1)
    async with behind_a_proxy(server) as (it, proxy), asyncio.TaskGroup() as tasks:
        saved = Checkpoint(it.registry, "CA1", lambda: 0, lambda: said)
        proxy.hold(b"words")
        running = tasks.create_task(saved.run())
        await proxy.held()
        await saved.keep_last(1200.0)
        running.cancel()
        proxy.release()
        await beats()

        left: Any = server.client.pttl(f"bridge:store:{NAME}")
        assert left > 1_100_000


async def test_an_instance_whose_clock_is_behind(server: RedisServer) -> None:
    """It resumes a call: its snapshot replaces the one that it has read."""
    ahead = WrittenValues()
    ahead.follow(b"%016d+" % ((time() + 60) * 1e6))
    server.client.set(f"bridge:store:{NAME}", ahead.keep(NAME, b"first", 60.0).text)
    async with instance(server.url) as it:
        assert await it.registry.get(NAME) == b"first"
        await it.registry.put(NAME, b"second", 60.0)

        async with instance(server.url) as other:
            assert await other.registry.get(NAME) == b"second"


YEAR = 365 * 86400.0


async def move_clock(server: RedisServer, it: Instance, seconds: float) -> None:
    """The stamps of this instance are ahead from now on."""
    stamp = (time() + seconds) * 1e6
    server.client.set("bridge:store:ahead", b"%016d+" % stamp, px=60_000)
    await it.registry.get("ahead")


async def test_a_deletion_needs_no_agreement_of_clocks(server: RedisServer) -> None:
    """The call of an instance whose clock is ahead ends on another one: nobody reads
    what the caller said, although that instance is still writing it."""
    async with behind_a_proxy(server) as (ahead, proxy), instance(server.url) as it:
        await move_clock(server, ahead, 60.0)
        await ahead.registry.put(NAME, b"first", 180.0)
        proxy.hold(b"words")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ahead.registry.put(NAME, b"words", 180.0))
            await proxy.held()
            await it.registry.delete(NAME)
            assert await ahead.registry.get(NAME) is None
            proxy.release()

        assert await it.registry.get(NAME) is None
        assert {text[16:] for text in snapshots(server)} == {b"-"}


async def test_a_deletion_without_redis_and_with_another_clock(
    server: RedisServer,
) -> None:
    """The call ends while Redis is away."""
    async with instance(server.url) as ahead, behind_a_proxy(server) as (it, proxy):
        await move_clock(server, ahead, 60.0)
        await ahead.registry.put(NAME, b"words", 180.0)
        proxy.cut()
        await until(lambda: not it.up[-1], what="the loss of Redis")
        await it.registry.delete(NAME)
        proxy.mend()
        await until(lambda: it.up[-1], what="Redis is back")

        assert await ahead.registry.get(NAME) is None


async def test_a_late_write_of_a_clock_that_is_ahead(server: RedisServer) -> None:
    """It arrives after another instance has resumed the call: one checkpoint of that
    instance is refused, not those of the next minute."""
    async with instance(server.url) as ahead, instance(server.url) as it:
        await move_clock(server, ahead, 60.0)
        await it.registry.get(NAME)
        await ahead.registry.put(NAME, b"late", 180.0)
        for text in (b"one", b"two"):
            await it.registry.put(NAME, text, 180.0)

        assert await ahead.registry.get(NAME) == b"two"


@pytest.mark.parametrize("how", ["delete", "pop"])
async def test_an_instance_that_was_away_for_long(
    server: RedisServer, how: str
) -> None:
    """It has stored what the caller said while it was without Redis. The call has ended
    on another instance meanwhile."""
    async with behind_a_proxy(server) as (away, proxy), instance(server.url) as it:
        proxy.cut()
        await until(lambda: not away.up[-1], what="the loss of Redis")
        await away.registry.put(NAME, b"words", SNAPSHOT_SECONDS)
        await it.registry.put(NAME, b"later", SNAPSHOT_SECONDS)
        await getattr(it.registry, how)(NAME)
        server.let_pass(keys.POPPED_SECONDS + 1.0)
        proxy.mend()
        await until(lambda: away.up[-1], what="Redis is back")
        await beats()

        assert await it.registry.get(NAME) is None


def test_tombstones_outlive_snapshots() -> None:
    """Else an instance that was away puts a snapshot back."""
    assert max(SNAPSHOT_SECONDS, RETURN_SECONDS) <= keys.DELETED_SECONDS


@pytest.mark.parametrize("how", ["put", "delete", "pop"])
async def test_a_value_from_a_wrong_clock(server: RedisServer, how: str) -> None:
    """An instance whose clock was a year ahead has written a value: the others replace
    and delete it, and their own stamps do not stop."""
    text = b"%016d+wrong" % ((time() + YEAR) * 1e6)
    async with instance(server.url) as it:
        await beats()
        server.client.set(f"bridge:store:{NAME}", text, px=60_000)
        await it.registry.get(NAME)
        assert it.registry._written.stamp() < (time() + 60.0) * 1e6
        if how != "put":
            await getattr(it.registry, how)(NAME)
            assert await it.registry.get(NAME) is None
        await it.registry.put(NAME, b"right", 60.0)

        assert await it.registry.get(NAME) == b"right"


def test_a_wrong_clock_that_is_set_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance needs no restart: what it writes is not taken for wrong."""
    written = WrittenValues()
    with monkeypatch.context() as wrong:
        wrong.setattr("time.time_ns", lambda: int((time() + YEAR) * 1e9))
        assert written.stamp() > (time() + 60.0) * 1e6

    first = written.stamp()
    assert first < (time() + 60.0) * 1e6
    assert written.stamp() > first


async def test_ended_calls_cost_no_memory(server: RedisServer) -> None:
    """Also not if the clock of another instance is ahead."""
    async with instance(server.url, pace=replace(QUICK, lease=0.1)) as it:
        await move_clock(server, it, 60.0)
        for name in map(str, range(20)):
            await it.registry.closed(entry(name), None)
        await asyncio.sleep(0.2)
        await it.registry.closed(entry("last"), None)

        assert len(it.registry._ended) == 1


async def test_values_from_before_an_outage_while_stamps_stand_still(
    server: RedisServer,
) -> None:
    """The stamps of this instance follow another clock. While Redis is away, it does
    not take what it wrote before for the newest value: it waits for Redis."""
    async with (
        instance(server.url) as other,
        behind_a_proxy(server, QUICK) as (it, proxy),
    ):
        await move_clock(server, it, 60.0)
        await it.registry.put(NAME, b"old", 60.0)
        await other.registry.get(NAME)
        await other.registry.put(NAME, b"new", 60.0)
        await asyncio.sleep(QUICK.limit + 0.1)
        proxy.cut()
        await until(lambda: not it.up[-1], what="the loss of Redis")
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(it.registry.get(NAME))
            await asyncio.sleep(0)
            proxy.mend()

        assert reading.result() == b"new"


async def test_a_clock_of_redis_that_is_set_back(server: RedisServer) -> None:
    """Redis fails over to another machine whose clock is 5 s behind, and the caller
    comes back: the new stream has the call, and the caller hears the agent."""
    async with instance(server.url) as it:
        began = {"stream": "MZ1", "instance": "other", "since": "5.000"}
        began["begun"] = f"MZ1 {(time() + 4.0) * 1000:.0f}"
        server.client.hset(f"{keys.CALL}CA1", mapping={**began, "started": "5.0"})
        await it.registry.opened(entry(stream="MZ2"))
        await beats()

        assert it.heard == []
        assert await streams(it.registry) == ["MZ2"]


@pytest.mark.parametrize(("late", "has_call"), [(3.0, "MZnew"), (8.0, "MZlate")])
def test_how_late_an_entry_may_be(
    server: RedisServer, late: float, has_call: str
) -> None:
    """An entry that is late by some seconds is refused. A greater difference is one of
    clocks: the stream that says that it is new has the call."""
    now = time()

    def hold(stream: str, begun: float) -> None:
        ms = f"{begun * 1000:.0f}"
        names = f"{keys.CALL}CA1", keys.CALLS, f"{keys.NEXT}CA1"
        call = "CA1", stream, "other", "5.0", "5.000", 15_000, 60_000, "new", ms, ms
        server.client.eval(keys.HOLD.text, 3, *names, *call)  # type: ignore[no-untyped-call]

    hold("MZnew", now)
    hold("MZlate", now - late)

    assert server.client.hget(f"{keys.CALL}CA1", "stream") == has_call.encode()


LIMITS = {"calls_of_number": 1, "cost_of_day": 1.0}


@pytest.mark.parametrize("held", [b"bridge:count:cost:", b"bridge:members:calls:"])
async def test_the_last_report_of_quotas(server: RedisServer, held: bytes) -> None:
    """An instance shuts down while a report waits for Redis: what its last calls cost
    counts towards the day, and their callers may call again at once."""
    async with behind_a_proxy(server) as (it, proxy), instance(server.url) as other:
        closing = QuotasOfInstance(it.registry, **LIMITS)
        assert await closing.ring("CA1") == [None]
        assert await closing.ring("CB1", caller=BOB) == [None]
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as reports:
            await reports.enter_async_context(reporting(closing.quotas))
            for sid, caller in (("CA1", ANN), ("CB1", BOB)):
                closing.quotas.began(sid, caller)
            proxy.hold(held)
            closing.quotas.spent(0.4)
            closing.quotas.ended("CA1")
            await proxy.held()
            closing.quotas.ended("CB1")
            closing.quotas.spent(0.4)
            tasks.create_task(reports.aclose())
            await asyncio.sleep(0)  # `close` was called
            proxy.release()

        left = QuotasOfInstance(other.registry, **LIMITS)
        assert await left.ring("CA2") == [None]
        assert await left.ring("CB2", caller=BOB) == [None]
        left.quotas.spent(0.3)
        assert await left.quotas.day_is_spent()


async def test_the_last_report_is_bounded(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hangs does not hold the shutdown; the operator learns that quotas
    were not written."""
    monkeypatch.setattr(quotas, "CLOSE_SECONDS", 0.2)
    async with behind_a_proxy(server) as (it, proxy):
        with capture_logs() as logs:
            async with at_work(it.registry, **LIMITS) as closing:
                proxy.hold(b"bridge:count:cost:")
                closing.quotas.spent(0.4)

        assert [line["event"] for line in logs] == ["quotas_not_reported"]


async def test_a_cost_that_redis_did_not_take_is_written_later(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis was away when the last call of the day cost something: it counts as soon
    as Redis is back, also if no call comes."""
    monkeypatch.setattr(quotas, "BEAT_SECONDS", 0.05)
    async with instance(server.url) as it, at_work(it.registry, **LIMITS) as here:
        await here.quotas.day_is_spent()
        server.stop()
        here.quotas.spent(2.0)
        await until(lambda: not it.up[-1], what="the loss of Redis")
        await beats(1)  # the cost was given to the registry
        server.start()

        async with instance(server.url) as other:
            there = QuotasOfInstance(other.registry, **LIMITS)
            await until(there.quotas.day_is_spent)
