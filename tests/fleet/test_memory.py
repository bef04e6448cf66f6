"""The registry of an instance that is alone."""

from bridge.fleet import NextStep, Then
from bridge.fleet.memory import NEXT_STEP_SECONDS, MemoryRegistry
from tests.fleet.conftest import Clock
from tests.fleet.test_registry import HANG_UP, SORRY, entry


async def test_calls_that_nobody_asks_about_cost_no_memory() -> None:
    """An instance that runs for months does not grow by its dropped calls."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    for n in range(1000):
        clock.now += 1
        await registry.closed(entry(str(n)), SORRY)

    assert len(registry._next) == NEXT_STEP_SECONDS


async def test_what_nobody_comes_for_costs_no_memory() -> None:
    """An instance that runs for months does not grow by what was left on its shelf."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    for n in range(10_000):
        clock.now += 1
        await registry.put(f"plan:{n}", b"x", 60.0)

    assert len(registry._store) < 300


async def test_callers_who_are_gone_cost_no_memory() -> None:
    """Nor by the numbers that have called."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    for n in range(10_000):
        clock.now += 1
        await registry.acquire(f"calls:{n}", "CA1", 60.0, 10)
        await registry.count(f"admitted:{n}", 60.0)

    assert len(registry._members._names) < 300
    assert len(registry._store) < 300


async def test_the_real_clock_is_the_default() -> None:
    """The registry works as a server makes it."""
    registry = MemoryRegistry()
    await registry.closed(entry(), HANG_UP)

    assert await registry.next_step("CA1") == NextStep(Then.HANG_UP)
