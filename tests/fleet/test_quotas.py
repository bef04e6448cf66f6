"""Quotas of callers and of the day, on one instance and on several."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bridge.app import quotas
from bridge.app.quotas import (
    CALL_SECONDS,
    WITHHELD,
    WITHHELD_SHARE,
    Quotas,
    reporting,
)
from bridge.fleet import Registry
from tests.fleet.conftest import Clock
from tests.support.waiting import until

ANN, BOB = "+14155550101", "+14155550102"
NOON = 1_800_000_000.0


class QuotasOfInstance:
    """An instance's allowance, and the limits that it has told of."""

    def __init__(self, registry: Registry, **limits: Any) -> None:
        self.hits: list[str] = []
        self.now = NOON
        given = {"key": b"token", "now": lambda: self.now, **limits}
        self.quotas = Quotas(registry, self.hits.append, **given)

    async def ring(self, *sids: str, caller: str = ANN) -> list[str | None]:
        return [await self.quotas.admit(it, caller) for it in sids]


@asynccontextmanager
async def at_work(registry: Registry, **limits: Any) -> AsyncIterator[QuotasOfInstance]:
    services = QuotasOfInstance(registry, **limits)
    async with reporting(services.quotas):
        yield services


async def test_calls_of_a_caller_at_once(registry: Registry) -> None:
    """Further calls are rejected; as soon as a call has ended, the next one is
    accepted."""
    async with at_work(registry, calls_of_number=2) as services:
        assert await services.ring("CA1", "CA2", "CA3") == [
            None,
            None,
            "calls_of_number",
        ]
        assert await services.ring("CB1", caller=BOB) == [None]
        assert services.hits == ["calls_of_number"]

        services.quotas.began("CA1", ANN)
        services.quotas.began("CA2", ANN)
        services.quotas.ended("CA2", goes_on=True)  # another instance has it now
        services.quotas.ended("CA9")
        assert await services.ring("CA3") == ["calls_of_number"]
        services.quotas.ended("CA1")

        async def free() -> bool:
            return await services.ring("CA3") == [None]

        await until(free)


async def test_many_calls_at_the_same_time(registry: Registry) -> None:
    """50 calls of one number to two instances at the same time: no more than 10 are
    accepted."""
    limits = {"calls_of_number": 10, "calls_of_number_hour": 12}
    instances = [
        QuotasOfInstance(registry, **limits),
        QuotasOfInstance(registry, **limits),
    ]
    asked = [it.quotas.admit(f"CA{n // 2}", ANN) for n, it in enumerate(instances * 50)]
    answers = await asyncio.gather(*asked)

    assert answers.count(None) == 20  # each was asked for twice
    assert {it for it in answers if it} <= {"calls_of_number", "calls_of_number_hour"}


async def test_twilio_asks_again(registry: Registry) -> None:
    """A call is counted once and answered the same, whatever has happened since: the
    answer was lost, or the caller waits in the queue."""
    services = QuotasOfInstance(
        registry, calls_of_number=2, calls_of_number_hour=2, cost_of_day=10.0
    )
    assert await services.ring("CA1", "CA1", "CA1", "CA2") == [None] * 4
    assert await services.ring("CA3", "CA3") == ["calls_of_number_hour"] * 2
    services.quotas.spent(11)
    assert await services.ring("CA4", "CA1") == ["cost_of_day", None]


async def test_an_hour(registry: Registry, clock: Clock) -> None:
    """Who calls again and again is let in again an hour after they were; who was turned
    away meanwhile has not used anything up."""
    services = QuotasOfInstance(registry, calls_of_number=1, calls_of_number_hour=2)
    assert await services.ring("CA1", "CA2") == [None, "calls_of_number"]
    clock.pass_on(CALL_SECONDS + 1)
    assert await services.ring("CA3") == [None]
    clock.pass_on(CALL_SECONDS + 1)
    assert await services.ring("CA4") == ["calls_of_number_hour"]
    clock.pass_on(3600 - 2 * CALL_SECONDS)
    assert await services.ring("CA5", "CA6") == [None, "calls_of_number_hour"]


async def test_calls_of_a_killed_instance_expire(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of a killed instance count for a minute after their last renewal;
    running calls count for as long as they run."""
    monkeypatch.setattr(quotas, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(quotas, "RENEW_SECONDS", 0.01)
    killed = QuotasOfInstance(registry, calls_of_number=2)
    await killed.ring("CA1")
    killed.quotas.began("CA1", ANN)
    async with at_work(registry, calls_of_number=2) as services:
        services.quotas.began("CA2", ANN)  # resumed: it was accepted long ago
        await asyncio.sleep(0.1)
        clock.pass_on(CALL_SECONDS - 5)
        assert await services.ring("CA3") == ["calls_of_number"]
        await asyncio.sleep(0.1)
        clock.pass_on(6)
        assert await services.ring("CA3", "CA4") == [None, "calls_of_number"]


async def test_no_limits(registry: Registry) -> None:
    """0 is no limit."""
    async with at_work(registry) as services:
        assert set(await services.ring(*(f"CA{n}" for n in range(100)))) == {None}
        services.quotas.began("CA1", ANN)
        services.quotas.spent(1e9)
        services.quotas.ended("CA1")
        assert not await services.quotas.day_is_spent()


@pytest.mark.parametrize(
    "other",
    [
        *("", "anonymous", "Restricted", "sip:ann@example.com"),
        *(
            "+266696687",
            "+7378742833",
            "+1 415 555 0101",
            "+14155550\uff11",
            ANN + "\n",
        ),
    ],
)
async def test_who_shows_no_number(registry: Registry, other: str) -> None:
    """They are one caller: whoever may write what they like has no more calls by it."""
    services = QuotasOfInstance(registry, calls_of_number=1)
    for number in range(WITHHELD_SHARE):
        assert await services.ring(f"CA1{number}", caller="unknown") == [None]
    assert await services.ring("CA2", caller=other) == ["calls_of_number"]
    assert await services.ring("CA3", caller=ANN) == [None]
    assert await services.ring("CA4", caller="client:ann") == [None]


def test_numbers_of_withheld_callers() -> None:
    """Numbers that Twilio gives for callers with a withheld number."""
    assert {"+266696687", "+2562533", "+8656696", "+86282452253"} < WITHHELD


async def test_no_number_is_stored(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of the shared registry does not learn the numbers of callers, and cannot
    find them by trying: the hash has a key."""
    names: set[str] = set()
    acquire = registry.acquire

    async def recording(name: str, *more: Any) -> bool:
        names.add(name)
        return await acquire(name, *more)

    monkeypatch.setattr(registry, "acquire", recording)
    limits = {"calls_of_number": 5, "calls_of_number_hour": 5}
    await QuotasOfInstance(registry, **limits).ring("CA1")
    await QuotasOfInstance(registry, **limits).ring("CA2")
    await QuotasOfInstance(registry, **{**limits, "key": b"other"}).ring("CA3")

    assert len(names) == 4
    assert not any("415" in name and "0101" in name for name in names)


async def test_the_cost_of_a_day(registry: Registry) -> None:
    """No instance accepts a call until the next day (UTC); running calls may go on."""
    async with at_work(registry, cost_of_day=1.0) as a:
        b = QuotasOfInstance(registry, cost_of_day=1.0)
        assert await a.ring("CA1") == [None]
        a.quotas.spent(0.6)
        assert await a.ring("CA2") == [None]
        b.quotas.spent(0.5)
        assert await b.ring("CB1") == ["cost_of_day"]
        assert await a.quotas.day_is_spent()
        assert await a.ring("CA3") == ["cost_of_day"]

        a.now = b.now = NOON + 86400
        assert await b.ring("CB1") == [None]


async def test_cost_is_reported_soon(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that crashes loses little of the reported cost, one that closes
    none."""
    monkeypatch.setattr(quotas, "BEAT_SECONDS", 0.01)
    b = QuotasOfInstance(registry, cost_of_day=1.0)
    async with at_work(registry, cost_of_day=1.0) as a:
        a.quotas.spent(1.0)
        await until(b.quotas.day_is_spent)
        a.now = b.now = NOON + 86400
        monkeypatch.setattr(quotas, "BEAT_SECONDS", 60.0)
        await asyncio.sleep(0.05)
        a.quotas.spent(1.0)
    assert await b.quotas.day_is_spent()
