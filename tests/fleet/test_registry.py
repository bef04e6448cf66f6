"""Calls, next steps and messages: the contract of both registries."""

from bridge.fleet import (
    NEXT_STEP_SECONDS,
    TAKEN,
    CallEntry,
    NextStep,
    Registry,
    Then,
)
from tests.fleet.conftest import Clock

SORRY, HANG_UP = NextStep(Then.SORRY, "+14155550100"), NextStep(Then.HANG_UP)
RING = NextStep(Then.TRANSFER, "+14155550100", "+14155550101", 30, "de-DE", "Moment.")


def entry(name: str = "1", stream: str = "", at: float = 5.0) -> CallEntry:
    return CallEntry(f"CA{name}", stream or f"MZ{name}", at)


async def streams(registry: Registry) -> list[str]:
    return [call.stream_sid for call in await registry.calls()]


async def test_running_calls_oldest_first(registry: Registry) -> None:
    """An operator sees the running calls in the order in which they began."""
    first, second, third = entry("b"), entry("a", at=6.0), entry("c", at=7.0)
    for call in (first, second, third):
        await registry.opened(call)
    await registry.closed(second, None)

    found = await registry.calls()
    assert [(it.call_sid, it.started_at) for it in found] == [
        ("CAb", 5.0),
        ("CAc", 7.0),
    ]


async def test_a_step_is_kept_until_the_next_stream(registry: Registry) -> None:
    """Twilio gets the same answer if it repeats its request, until the call has a new
    stream."""
    await registry.opened(entry())
    await registry.closed(entry(), RING)

    assert await registry.calls() == []
    assert await registry.next_step("CA1") == RING
    assert await registry.next_step("CA1") == RING

    await registry.opened(entry(stream="MZ2"))
    assert await registry.next_step("CA1") is None


async def test_no_next_step_after_a_hang_up(registry: Registry) -> None:
    """A call that its caller ended has no next step."""
    await registry.closed(entry(), None)

    assert await registry.next_step("CA1") is None
    assert await registry.next_step("CAunknown") is None


async def test_each_call_has_its_own_step(registry: Registry) -> None:
    """No caller hears the sentence that was meant for another one."""
    await registry.closed(entry("1"), SORRY)
    await registry.closed(entry("2"), HANG_UP)

    assert await registry.next_step("CA2") == HANG_UP
    assert await registry.next_step("CA1") == SORRY


async def test_the_last_next_step_counts(registry: Registry) -> None:
    """The next step of the second stream replaces that of the first: no apology after a
    call that ended well."""
    await registry.closed(entry(stream="MZ1"), SORRY)
    await registry.closed(entry(stream="MZ2"), HANG_UP)

    assert await registry.next_step("CA1") == HANG_UP


async def test_a_new_stream_of_a_call_outlives_its_old_one(registry: Registry) -> None:
    """A call that continues in a second stream stays on the list. The first stream gets
    TAKEN, and its next step is ignored."""
    heard: list[tuple[str, bytes]] = []
    registry.subscribe(lambda sid, message: heard.append((sid, message)))
    old, new = entry(stream="MZold"), entry(stream="MZnew")
    await registry.opened(old)
    assert heard == []
    await registry.opened(new)
    assert heard == [("CA1", TAKEN)]

    await registry.closed(old, SORRY)
    await registry.closed(old, SORRY)

    assert await streams(registry) == ["MZnew"]
    assert await registry.next_step("CA1") is None


async def test_a_next_step_expires(registry: Registry, clock: Clock) -> None:
    """A call SID that is used again a day later does not get the step of the day
    before."""
    await registry.closed(entry(), SORRY)
    clock.pass_on(NEXT_STEP_SECONDS)

    assert await registry.next_step("CA1") is None


async def test_the_step_of_a_transfer_lives_while_it_rings(
    registry: Registry, clock: Clock
) -> None:
    """The person who answers after two minutes hears the whisper, and is not hung up
    on."""
    ringing = NextStep(Then.TRANSFER, "+14155550101", ring_seconds=120, whisper="Hi.")
    await registry.closed(entry(), ringing)
    clock.pass_on(NEXT_STEP_SECONDS + 100.0)
    assert await registry.next_step("CA1") == ringing
    clock.pass_on(20.0)
    assert await registry.next_step("CA1") is None


async def test_a_late_request_is_answered(registry: Registry, clock: Clock) -> None:
    """A Twilio that asks late still gets the step before it expires."""
    await registry.closed(entry(), SORRY)
    clock.pass_on(NEXT_STEP_SECONDS - 5.0)

    assert await registry.next_step("CA1") == SORRY


async def test_a_transfer_is_known_as_long_as_it_rings(
    registry: Registry, clock: Clock
) -> None:
    """A person who answers after three minutes hears the whisper, and is not hung up
    on; then the step ends like any other."""
    long = NextStep(Then.TRANSFER, "+14155550100", ring_seconds=600, whisper="A caller")
    await registry.closed(entry("1"), long)
    await registry.closed(entry("2"), SORRY)
    clock.pass_on(180)
    await registry.closed(entry("3"), SORRY)

    assert await registry.next_step("CA1") == long
    assert await registry.next_step("CA2") is None
    clock.pass_on(420 + NEXT_STEP_SECONDS)
    assert await registry.next_step("CA1") is None


async def test_a_renewed_step_does_not_keep_older_ones(
    registry: Registry, clock: Clock
) -> None:
    """A step expires on time, although another call has ended twice since."""
    await registry.closed(entry("1"), SORRY)
    await registry.closed(entry("2"), SORRY)
    clock.pass_on(50)
    await registry.closed(entry("1", "MZ1b"), SORRY)
    clock.pass_on(10)  # 60 s since 2 ended, 10 s since 1 did so again

    assert await registry.next_step("CA2") is None
    assert await registry.next_step("CA1") == SORRY


async def test_a_message_reaches_this_instance_too(registry: Registry) -> None:
    """An operator need not know which instance has the call."""
    heard: list[tuple[str, bytes]] = []
    registry.subscribe(lambda sid, message: heard.append((sid, message)))

    await registry.publish("CA1", b"\xff\x00 whisper")

    assert heard == [("CA1", b"\xff\x00 whisper")]


async def test_a_single_instance_has_room_and_no_others(registry: Registry) -> None:
    """A caller is not sent to an instance that does not exist."""
    assert await registry.room()
    assert not await registry.others()
