"""The fallback switch in both registries: the newest state counts, for all instances,
also when Redis or an instance was away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from bridge.app import fallback
from bridge.app.fallback import (
    CHANGED,
    NAME,
    FallbackState,
    FallbackSwitch,
    RegistryAway,
    following,
)
from bridge.fleet import Registry, formats
from bridge.fleet.redis import RedisRegistry
from bridge.fleet.signing import FleetKey
from tests.fleet.redis_server import RedisServer
from tests.fleet.test_fleet import instance
from tests.support.waiting import until

KEY = FleetKey("the token of all bridges")
STORED = f"bridge:shelf:{NAME}", f"bridge:store:{NAME}"


def switch(
    registry: Registry, key: FleetKey | None = KEY, *, initial: bool = False
) -> FallbackSwitch:
    return FallbackSwitch(registry, key, lambda on: None, initial=initial)


@asynccontextmanager
async def running(
    server: RedisServer, **more: bool
) -> AsyncIterator[tuple[FallbackSwitch, RedisRegistry]]:
    """The switch of one more instance."""
    async with (
        instance(server.url) as it,
        following(switch(it.registry, **more)) as made,
    ):
        yield made, it.registry


async def test_it_is_switched_on_and_off(registry: Registry) -> None:
    """Who, why and since when are kept; each change is shown once, and what runs is
    told that the model is away."""
    shown: list[bool] = []
    told: list[str] = []
    it = FallbackSwitch(registry, KEY, shown.append)
    it.listeners.append(lambda: told.append("on"))
    assert not it.on
    with capture_logs() as lines:
        state = await it.set(True, reason="vendor down", by="ann")
        await it.set(True, reason="still down", by="ann")
        assert it.on and not state.until
        await it.set(False, by="bob")

    assert (state.reason, state.by, it.state.by, it.on) == (
        *("vendor down", "ann", "bob"),
        False,
    )
    assert abs(state.changed_at - registry.clock()) < 5
    assert (shown, told) == ([True, False], ["on"])
    assert [(x["event"], x["log_level"]) for x in lines] == [
        ("fallback_on", "warning"),
        ("fallback_off", "info"),
    ]


async def test_it_goes_off_by_itself(registry: Registry) -> None:
    it = switch(registry)
    await it.set(True, seconds=600)
    assert it.on
    later, past = it.state.changed_at + 1, registry.clock() - 1
    it.state = FallbackState(True, changed_at=later, until=past)
    with capture_logs() as lines:
        await it.refresh()

    assert not it.on
    assert [(x["event"], x["why"]) for x in lines] == [("fallback_off", "expired")]


async def test_an_instance_that_starts_reads_the_state(registry: Registry) -> None:
    """Whatever BRIDGE_FALLBACK says: it counts until somebody has used the switch."""
    first = switch(registry, initial=True)
    assert first.on
    later = switch(registry, initial=False)
    await later.refresh()
    assert not later.on
    await first.set(False)
    restarted = switch(registry, initial=True)
    await restarted.refresh()
    assert not restarted.on
    await first.set(True)
    for initial in (False, True):
        restarted = switch(registry, initial=initial)
        await restarted.refresh()
        assert restarted.on


async def test_a_state_that_nobody_has_signed_does_not_count(
    registry: Registry,
) -> None:
    """Somebody who can write to Redis cannot switch the fleet, nor can a signature of
    another purpose or of another token."""
    it = switch(registry)
    on = formats.encode(FallbackState(True, changed_at=9e9), registry.format())
    forged = (on, KEY.sign(b"message", on), FleetKey("other").sign(b"fallback", on))
    with capture_logs() as lines:
        for text in (*forged, b""):
            await registry.put(NAME, text, 60)
            await it.refresh()
            assert not it.on
    assert [x["event"] for x in lines] == ["fallback_unreadable"]

    await it.set(False)
    await registry.put(NAME, forged[0], 60)
    await it.refresh()  # it stores its own state again
    other = switch(registry, initial=True)
    await other.refresh()
    assert not other.on


async def test_without_a_token_the_setting_decides(registry: Registry) -> None:
    it = switch(registry, None, initial=True)
    await it.refresh()
    assert it.on
    with pytest.raises(RegistryAway):
        await it.set(False)
    assert it.on


async def test_all_instances_follow(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One instance is told, the other one follows by the message, without waiting for
    its next look; an instance that starts later has the state at once."""
    monkeypatch.setattr(fallback, "REFRESH_SECONDS", 600.0)
    async with running(server) as (one, _), running(server) as (two, __):
        await one.set(True)
        await until(lambda: two.on)
        async with running(server) as (three, ___):
            assert three.on
            await three.set(False)
            await until(lambda: not one.on and not two.on)


async def test_a_lost_message_is_made_up_for(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "REFRESH_SECONDS", 0.05)
    async with running(server) as (one, registry), running(server) as (two, _):
        monkeypatch.setattr(two, "_message", lambda *_: None)
        state = FallbackState(True, changed_at=registry.clock())
        text = formats.encode(state, registry.format())
        await registry.put(NAME, KEY.sign(b"fallback", text), 60)
        await until(lambda: one.on and two.on)


async def test_redis_loses_its_data(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance that has set the state is gone, and Redis is emptied: the others
    store it again."""
    monkeypatch.setattr(fallback, "REFRESH_SECONDS", 0.05)
    async with running(server) as (two, _):
        async with running(server) as (one, __):
            await one.set(True)
            await until(lambda: two.on)
        server.client.flushall()
        await until(lambda: server.client.exists(*STORED))
        async with running(server) as (three, ___):
            assert three.on


async def test_redis_is_away(server: RedisServer) -> None:
    """Nothing is switched by halves: the state stays, and the operator is told."""
    async with running(server) as (one, registry):
        await one.set(True)
        server.stop()
        await until(lambda: not registry._up)
        with pytest.raises(RegistryAway):
            await one.set(False)
        await one.refresh()
        assert one.on


async def test_the_state_survives_an_outage_of_redis(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis restarts without its data while the fallback is on."""
    monkeypatch.setattr(fallback, "REFRESH_SECONDS", 0.05)
    async with running(server) as (one, registry):
        await one.set(True)
        server.stop()
        await until(lambda: not registry._up)
        server.start()
        await until(lambda: server.client.exists(*STORED))
        assert one.on
        async with running(server) as (two, _):
            assert two.on


async def test_the_message_is_no_message_about_a_call(registry: Registry) -> None:
    """An instance of another version, and a call of any name, are not affected."""
    it = switch(registry)
    await registry.publish("CA1", CHANGED)
    await registry.publish("", b"other")
    assert not it._ring.is_set()
    await registry.publish("", CHANGED)
    assert it._ring.is_set()
    await asyncio.sleep(0)
