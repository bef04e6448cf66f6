"""The registry of an instance that is alone, with a clock that the test sets."""

from bridge.fleet import CallEntry, NextStep, Registry, Then
from bridge.fleet.memory import NEXT_STEP_SECONDS, MemoryRegistry
from tests.fleet.conftest import Clock

SORRY, HANG_UP = NextStep(Then.SORRY, "+14155550100"), NextStep(Then.HANG_UP)


def entry(name: str = "1", stream: str = "") -> CallEntry:
    return CallEntry(f"CA{name}", stream or f"MZ{name}", 5.0)


async def test_running_calls_oldest_first(registry: Registry) -> None:
    """An operator sees who is on the phone, in the order in which they called."""
    first, second, third = entry("b"), entry("a"), entry("c")
    for call in (first, second, third):
        await registry.opened(call)
    await registry.closed(second, None)

    assert await registry.calls() == [first, third]


async def test_a_step_is_kept_until_the_next_stream(registry: Registry) -> None:
    """A Twilio that asks again is told the same; after a new stream it is not."""
    await registry.opened(entry())
    await registry.closed(entry(), SORRY)

    assert await registry.calls() == []
    assert await registry.next_step("CA1") is SORRY
    assert await registry.next_step("CA1") is SORRY

    await registry.opened(entry(stream="MZ2"))
    assert await registry.next_step("CA1") is None


async def test_nothing_is_left_for_who_hung_up(registry: Registry) -> None:
    """A call that its caller ended leaves nothing behind."""
    await registry.closed(entry(), None)

    assert await registry.next_step("CA1") is None
    assert await registry.next_step("CAunknown") is None


async def test_each_call_has_its_own_step(registry: Registry) -> None:
    """Nobody hears what was meant for another caller."""
    await registry.closed(entry("1"), SORRY)
    await registry.closed(entry("2"), HANG_UP)

    assert await registry.next_step("CA2") is HANG_UP
    assert await registry.next_step("CA1") is SORRY


async def test_the_last_word_counts(registry: Registry) -> None:
    """A call whose second stream ended well is not told sorry for its first."""
    await registry.closed(entry(stream="MZ1"), SORRY)
    await registry.closed(entry(stream="MZ2"), HANG_UP)

    assert await registry.next_step("CA1") is HANG_UP


async def test_a_new_stream_of_a_call_outlives_its_old_one(registry: Registry) -> None:
    """A call that goes on in a second stream is still on the list."""
    old, new = entry(stream="MZold"), entry(stream="MZnew")
    await registry.opened(old)
    await registry.opened(new)

    await registry.closed(old, None)
    await registry.closed(old, None)

    assert await registry.calls() == [new]


async def test_what_nobody_asks_for_is_dropped(
    registry: Registry, clock: Clock
) -> None:
    """A call SID that is used again a day later is not told of the day before."""
    await registry.closed(entry(), SORRY)
    clock.now += NEXT_STEP_SECONDS

    assert await registry.next_step("CA1") is None


async def test_who_asks_in_time_is_answered(registry: Registry, clock: Clock) -> None:
    """A Twilio that is slow to ask still gets the answer."""
    await registry.closed(entry(), SORRY)
    clock.now += NEXT_STEP_SECONDS - 0.1

    assert await registry.next_step("CA1") is SORRY


async def test_calls_that_nobody_asks_about_cost_no_memory(clock: Clock) -> None:
    """An instance that runs for months does not grow by its dropped calls."""
    registry = MemoryRegistry(clock)
    for n in range(1000):
        clock.now += 1
        await registry.closed(entry(str(n)), SORRY)

    assert len(registry._next) == NEXT_STEP_SECONDS


async def test_a_step_left_anew_does_not_shield_older_ones(
    registry: Registry, clock: Clock
) -> None:
    """What is over stays over, though another call has ended twice."""
    await registry.closed(entry("1"), SORRY)
    clock.now += 1
    await registry.closed(entry("2"), SORRY)
    clock.now += 50
    await registry.closed(entry("1", "MZ1b"), SORRY)
    clock.now += 10  # 61 s since 2 ended, 10 s since 1 did so again

    assert await registry.next_step("CA2") is None
    assert await registry.next_step("CA1") is SORRY


async def test_the_real_clock_is_the_default() -> None:
    """The registry works as a server makes it."""
    registry = MemoryRegistry()
    await registry.closed(entry(), HANG_UP)

    assert await registry.next_step("CA1") is HANG_UP
