"""What is kept of a running call: when it is written, and when it is gone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from bridge.call import checkpoint
from bridge.call.checkpoint import REFRESH_SECONDS, TALK_SECONDS, Checkpoint, encoded
from bridge.core.history import HistoryItem, Playing
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import CallSnapshot, SavedMessage
from bridge.privacy.redaction import Redaction
from tests.fleet.conftest import Clock

NAME = "snapshot:CA1"
LOOK = 0.01


async def until(happened: Callable[[], object]) -> None:
    limit = monotonic() + 2.0
    while not happened():
        assert monotonic() < limit, "it was not written"
        await asyncio.sleep(LOOK / 2)


class Talk:
    """A call in which words are said, kept on a shelf whose time a test tells."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = MemoryRegistry(self.clock)
        self.said: list[str] = []
        self.written = 0
        self.safe = Checkpoint(self.registry, "CA1", self.version, self.look)

    def version(self) -> object:
        return len(self.said)

    def look(self) -> CallSnapshot:
        self.written += 1
        items = enumerate(self.said)
        return CallSnapshot(tuple(HistoryItem(f"u{n}", "user", it) for n, it in items))

    async def shelf(self) -> list[str] | None:
        """The words that another instance would find."""
        talk = await self.registry.get(NAME)
        return (
            None
            if talk is None
            else [it.text for it in CallSnapshot.read(talk).history]
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.safe.run())
            yield
            task.cancel()


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
    monkeypatch.setattr(checkpoint, "LOOK_SECONDS", LOOK)
    return Talk()


async def test_what_is_new_is_written_and_nothing_else(talk: Talk) -> None:
    """An instance that is killed leaves the last words; a caller who says nothing costs
    the registry nothing."""
    async with talk.running():
        await until(lambda: talk.written)
        assert await talk.shelf() == []
        talk.said += ["One", "two"]
        await until(lambda: talk.written == 2)
        assert await talk.shelf() == ["One", "two"]
        await asyncio.sleep(10 * LOOK)

    assert talk.written == 2


async def test_a_call_in_which_nothing_is_said_is_kept(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who is put on hold for an hour finds their conversation."""
    monkeypatch.setattr(checkpoint, "REFRESH_SECONDS", 5 * LOOK)
    talk.said.append("One")
    async with talk.running():
        for n in range(1, 4):
            await until(lambda n=n: talk.written > n)  # type: ignore[misc]
            talk.clock.now += TALK_SECONDS - 1
            assert await talk.shelf() == ["One"], "the call was forgotten"

    assert 3 * REFRESH_SECONDS < TALK_SECONDS, "a write or two may be lost"


async def test_a_long_conversation_is_written_more_seldom(talk: Talk) -> None:
    """So that it costs the registry no more than a short one."""
    talk.said.append("x" * 100_000)
    async with talk.running():
        for _ in range(10):
            talk.said.append("more")
            await asyncio.sleep(LOOK)

    assert talk.written == 1


async def test_a_call_that_is_over_is_nobodys_business(talk: Talk) -> None:
    """What was said is on no shelf any more; of one that goes on, as long as it may
    take."""
    await talk.safe.keep(1200.0)
    talk.clock.now += 1100
    assert await talk.shelf() == []

    await talk.safe.drop()

    assert await talk.shelf() is None
    await talk.safe.drop()  # nor is there harm in a second time


def cycle() -> dict[str, Any]:
    notes: dict[str, Any] = {"name": "n"}
    notes["self"] = notes
    return notes


@pytest.mark.parametrize(
    "notes", [cycle(), {"lock": object()}, {"no_key": {(1, 2): 3}}]
)
def test_notes_that_are_no_json_cost_no_conversation(notes: dict[str, Any]) -> None:
    """The user's own notes may hold anything; what was said is kept without them."""
    said = (HistoryItem("u1", "user", "Hi."),)

    read = CallSnapshot.read(
        encoded(CallSnapshot(said, stream_count=1, notes=notes), FORMAT)
    )

    assert (read.history, read.stream_count, read.notes) == (said, 1, {})


async def test_what_the_route_takes_out_is_on_no_shelf() -> None:
    """Whoever has the shared registry has no card number of anybody; whoever leads the
    call on has the rest of what was said."""
    card = "4111 1111 1111 1111"
    words = ((0, "It is "), (800, "4111 1111 "), (1600, "1111 1111."))
    earlier = CallSnapshot(
        history=(HistoryItem("u1", "user", f"Charge {card}, please."),),
        playing=(Playing("i1", words, received=2400, heard=0, complete=True),),
        stream_count=1,
        parameters={"From": "+14155550101"},
        messages=(SavedMessage(card, card, card),),
        notes={"card": int(card.replace(" ", "")), "left": SavedMessage(card)},
    )
    registry = MemoryRegistry()
    cards = Redaction(cards=True)
    safe = Checkpoint(registry, "CA1", lambda: 0, lambda: earlier, cards)

    await safe.keep()

    shelf = await registry.get(NAME)
    assert shelf is not None and b"1111" not in shelf
    found = CallSnapshot.read(shelf)
    assert found.history[0].text == "Charge [card number], please."
    assert found.as_of(found.taken_at + 60).history[1].text == "It is [card number]."
    assert found.messages == (SavedMessage(*["[card number]"] * 3),)
    assert found.notes["card"] == found.notes["left"]["text"] == "[card number]"
    assert found.parameters == earlier.parameters


def test_notes_of_which_nothing_can_be_taken_out_are_not_kept() -> None:
    """What is no JSON is kept nowhere, whatever may be in it."""
    earlier = CallSnapshot(stream_count=1, notes=cycle())

    read = CallSnapshot.read(encoded(earlier, FORMAT, Redaction(cards=True)))

    assert (read.stream_count, read.notes) == (1, {})
