"""Values, counters and members: the contract of both registries."""

import asyncio

from bridge.core.history import HistoryItem
from bridge.fleet import Registry
from bridge.fleet.formats import FORMAT
from bridge.fleet.plan import Plan
from bridge.fleet.snapshot import CallSnapshot
from tests.fleet.conftest import Clock


async def test_a_value_is_kept_until_it_expires(
    registry: Registry, clock: Clock
) -> None:
    """A call that rings for a minute still finds its plan."""
    await registry.put("plan:CA1", b"x", 60.0)
    clock.pass_on(55)

    assert await registry.get("plan:CA1") == b"x"
    assert await registry.get("plan:CA2") is None
    clock.pass_on(5)
    assert await registry.get("plan:CA1") is None
    assert await registry.pop("plan:CA1") is None


async def test_a_value_is_replaced(registry: Registry, clock: Clock) -> None:
    """The last value counts, and its time to live."""
    await registry.put("a", b"old", 5.0)
    await registry.put("a", b"new", 60.0)
    clock.pass_on(10)

    assert await registry.get("a") == b"new"


async def test_a_popped_value_is_gone(registry: Registry) -> None:
    """Of two requests only one gets the conversation."""
    await registry.put("snapshot:CA1", b"", 60.0)

    assert await registry.pop("snapshot:CA1") == b""
    assert await registry.pop("snapshot:CA1") is None
    assert await registry.get("snapshot:CA1") is None


async def test_set_if_absent(registry: Registry, clock: Clock) -> None:
    """A webhook that comes twice takes effect once, until its time is over."""
    assert await registry.set_if_absent("hook:1", 300.0)
    assert not await registry.set_if_absent("hook:1", 300.0)
    assert await registry.set_if_absent("hook:2", 300.0)
    clock.pass_on(295)
    assert not await registry.set_if_absent("hook:1", 300.0)
    clock.pass_on(5)
    assert await registry.set_if_absent("hook:1", 300.0)


async def test_set_if_absent_with_a_value(registry: Registry) -> None:
    """Of those who name the owner of something, one wins, and all see which one."""
    names = [b"%d" % it for it in range(20)]
    owned = [registry.set_if_absent("owner", 60.0, it) for it in names]
    firsts = await asyncio.gather(*owned)

    assert sum(firsts) == 1
    assert await registry.get("owner") == names[firsts.index(True)]


async def test_values_are_not_dropped_early(registry: Registry) -> None:
    """However many values there are, none is dropped before it expires."""
    for n in range(200):
        await registry.put(str(n), str(n).encode(), 60.0)

    assert [await registry.pop(str(n)) for n in range(200)] == [
        str(n).encode() for n in range(200)
    ]


async def test_a_counter_lives_from_its_first_addition(
    registry: Registry, clock: Clock
) -> None:
    """The cost of a day is known until the day is over, however often it grows."""
    assert await registry.count("day", 60.0, 0) == 0
    clock.pass_on(30)
    assert await registry.count("day", 60.0) == 1
    clock.pass_on(50)
    assert await registry.count("day", 60.0, 0.25) == 1.25
    assert await registry.count("other", 60.0, 0) == 0
    clock.pass_on(5)
    assert await registry.count("day", 60.0, 0) == 1.25


async def test_a_counter_expires(registry: Registry, clock: Clock) -> None:
    """The next day begins at 0."""
    await registry.count("day", 0.05, 7)
    await asyncio.sleep(0.1)
    clock.pass_on(1)

    assert await registry.count("day", 60.0, 0) == 0
    assert await registry.count("day", 60.0, 2) == 2


async def test_concurrent_counts_are_all_added(registry: Registry) -> None:
    """No cost is lost when many calls add theirs at the same time."""
    totals = await asyncio.gather(*(registry.count("a", 60.0) for _ in range(50)))

    assert max(totals) == await registry.count("a", 60.0, 0) == 50


async def test_a_set_has_no_more_members_than_its_limit(
    registry: Registry, clock: Clock
) -> None:
    """Of 50 calls of one number that come at once, 10 are answered."""
    many = [registry.acquire("in", f"CA{n}", 60.0, 10) for n in range(50)]
    answers = await asyncio.gather(*many)
    inside = [f"CA{n}" for n, answer in enumerate(answers) if answer]
    assert len(inside) == 10
    assert await registry.acquire("other", "CA99", 60.0, 1)

    clock.pass_on(50)  # a member stays, and may be renewed
    assert await registry.acquire("in", inside[0], 60.0, 10)
    assert not await registry.acquire("in", "CA98", 60.0, 10)
    await registry.release("in", inside[1])
    await registry.release("in", "CA97")
    assert await registry.acquire("in", "CA98", 60.0, 10)
    assert not await registry.acquire("in", "CA97", 60.0, 10)
    assert await registry.acquire("in", "CA97", 60.0)  # no limit

    assert await registry.members("other") == ["CA99"]
    assert await registry.members("nobody") == []
    found = await registry.members("in")
    assert set(found[:8]) == set(inside[2:]), "they expire first"
    assert set(found[8:]) == {inside[0], "CA98", "CA97"}

    clock.pass_on(15)  # the members that were not renewed have expired
    answers = [await registry.acquire("in", f"CB{n}", 60.0, 10) for n in range(9)]
    assert answers == [True] * 7 + [False] * 2


def test_a_plan_is_read_as_stored() -> None:
    """The instance that answers the call has the plan of the one that placed it."""
    plan = Plan(greeting="", machine="message", message="Your table is booked.")

    assert Plan.read(plan.encoded(FORMAT)) == plan
    assert Plan.read(None) == Plan(greeting=None, machine="ignore")


def test_a_snapshot_is_read_as_stored() -> None:
    """The agent remembers a caller who comes back from a transfer."""
    said = HistoryItem("a1", "assistant", "Gladly.", "Gladly, sir.", True, 3.5)
    called = HistoryItem("t1", "tool_call", call_id="c", name="n", arguments="{}")
    snapshot = CallSnapshot(
        history=(said, called),
        agent_name="Booking",
        parameters={"From": "+1"},
        call_seconds=61.5,
        cost=0.02,
        transfer_count=1,
        instruction="Nobody answered.",
    )

    assert CallSnapshot.read(snapshot.encoded(FORMAT)) == snapshot
    assert CallSnapshot.read(None) == CallSnapshot()
