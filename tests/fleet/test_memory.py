"""The registry of a single instance."""

from bridge.fleet import NEXT_STEP_SECONDS, NextStep, Then
from bridge.fleet.memory import MemoryRegistry
from tests.fleet.conftest import Clock
from tests.fleet.test_registry import HANG_UP, SORRY, entry


async def test_unused_next_steps_cost_no_memory() -> None:
    """An instance that runs for months does not grow by next steps that Twilio never
    asks for."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    for n in range(1000):
        clock.now += 1
        await registry.closed(entry(str(n)), SORRY)

    assert len(registry._next) == NEXT_STEP_SECONDS


async def test_unused_values_cost_no_memory() -> None:
    """An instance that runs for months does not grow by values that are never read."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    for n in range(10_000):
        clock.now += 1
        await registry.put(f"plan:{n}", b"x", 60.0)

    assert len(registry._store) < 300


async def test_callers_who_have_left_cost_no_memory() -> None:
    """Nor by the callers that it has counted."""
    clock = Clock()
    registry = MemoryRegistry(clock)
    for n in range(10_000):
        clock.now += 1
        await registry.acquire(f"calls:{n}", "CA1", 60.0, 10)
        await registry.count(f"admitted:{n}", 60.0)

    assert len(registry._members._names) < 300
    assert len(registry._store) < 300


async def test_the_real_clock_is_the_default() -> None:
    """The registry works as a server creates it."""
    registry = MemoryRegistry()
    await registry.closed(entry(), HANG_UP)

    assert await registry.next_step("CA1") == NextStep(Then.HANG_UP)
