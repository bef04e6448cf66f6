"""The stored snapshot of a running call: when it is written and when it is deleted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bridge.call import checkpoint
from bridge.call.checkpoint import REFRESH_SECONDS, SNAPSHOT_SECONDS, Checkpoint, encode
from bridge.core.history import HistoryItem, Playing
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.snapshot import CallSnapshot, SavedMessage
from bridge.privacy.redaction import Redaction
from tests.fleet.conftest import Clock
from tests.support.waiting import until

NAME = "snapshot:CA1"
POLL = 0.01


class CheckpointedCall:
    """A call whose snapshot goes into a registry with a clock that the test sets."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.registry = MemoryRegistry(self.clock)
        self.said: list[str] = []
        self.written = 0
        self.saved = Checkpoint(self.registry, "CA1", self.version, self.take_snapshot)

    def version(self) -> object:
        return len(self.said)

    def take_snapshot(self) -> CallSnapshot:
        self.written += 1
        items = enumerate(self.said)
        return CallSnapshot(tuple(HistoryItem(f"u{n}", "user", it) for n, it in items))

    async def stored(self) -> list[str] | None:
        """The texts that another instance would find."""
        talk = await self.registry.get(NAME)
        return (
            None
            if talk is None
            else [it.text for it in CallSnapshot.read(talk).history]
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.saved.run())
            yield
            task.cancel()


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> CheckpointedCall:
    monkeypatch.setattr(checkpoint, "POLL_SECONDS", POLL)
    return CheckpointedCall()


async def test_only_changes_are_written(talk: CheckpointedCall) -> None:
    """If an instance is killed, the last words are in the registry; a silent caller
    causes no writes."""
    async with talk.running():
        await until(lambda: talk.written)
        assert await talk.stored() == []
        talk.said += ["One", "two"]
        await until(lambda: talk.written == 2)
        assert await talk.stored() == ["One", "two"]
        await asyncio.sleep(10 * POLL)

    assert talk.written == 2


async def test_an_unchanged_snapshot_is_refreshed_before_it_expires(
    talk: CheckpointedCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour on hold the caller's conversation is still stored."""
    monkeypatch.setattr(checkpoint, "REFRESH_SECONDS", 5 * POLL)
    talk.said.append("One")
    async with talk.running():
        for n in range(1, 4):
            await until(lambda n=n: talk.written > n)  # type: ignore[misc]
            talk.clock.now += SNAPSHOT_SECONDS - 1
            assert await talk.stored() == ["One"], "the call was forgotten"

    assert 3 * REFRESH_SECONDS < SNAPSHOT_SECONDS, "a write or two may be lost"


async def test_a_long_conversation_is_written_less_often(
    talk: CheckpointedCall,
) -> None:
    """A long conversation costs the registry no more than a short one."""
    talk.said.append("x" * 100_000)
    async with talk.running():
        for _ in range(10):
            talk.said.append("more")
            await asyncio.sleep(POLL)

    assert talk.written == 1


async def test_the_snapshot_is_deleted_when_the_call_is_over(
    talk: CheckpointedCall,
) -> None:
    """When the call is over its conversation is deleted. Until then it is stored as
    long as was asked for."""
    await talk.saved.keep(1200.0)
    talk.clock.now += 1100
    assert await talk.stored() == []

    await talk.saved.drop()

    assert await talk.stored() is None
    await talk.saved.drop()  # deleting twice does no harm


@pytest.mark.parametrize("last", ["keep_last", "drop", "leave"])
async def test_nothing_is_written_after_the_last_write(
    talk: CheckpointedCall, last: str
) -> None:
    """The stream takes a second to close, and the caller still speaks: what was deleted
    stays deleted, a transfer keeps its time to live, and the snapshot of an instance
    that has taken over is not replaced by an older one."""
    async with talk.running():
        await until(lambda: talk.written)
        match last:
            case "keep_last":
                await talk.saved.keep_last(1200.0)
            case "drop":
                await talk.saved.drop()
            case _:
                talk.saved.leave()
        stored, written = await talk.stored(), talk.written
        talk.said.append("more")
        await talk.saved.keep()  # as when the stream breaks
        await asyncio.sleep(10 * POLL)

    assert (await talk.stored(), talk.written) == (stored, written)
    assert stored == (None if last == "drop" else [])


def cycle() -> dict[str, Any]:
    notes: dict[str, Any] = {"name": "n"}
    notes["self"] = notes
    return notes


@pytest.mark.parametrize(
    "notes", [cycle(), {"lock": object()}, {"no_key": {(1, 2): 3}}]
)
def test_notes_that_are_no_json_are_left_out(notes: dict[str, Any]) -> None:
    """The user's own notes may hold anything; the conversation is stored without
    them."""
    said = (HistoryItem("u1", "user", "Hi."),)

    read = CallSnapshot.read(
        encode(CallSnapshot(said, stream_count=1, notes=notes), FORMAT)
    )

    assert (read.history, read.stream_count, read.notes) == (said, 1, {})


async def test_the_stored_snapshot_is_redacted() -> None:
    """The shared registry contains no card number. The instance that resumes the call
    still gets the rest of the conversation."""
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
    saved = Checkpoint(registry, "CA1", lambda: 0, lambda: earlier, cards)

    await saved.keep()

    stored = await registry.get(NAME)
    assert stored is not None and b"1111" not in stored
    found = CallSnapshot.read(stored)
    assert found.history[0].text == "Charge [card number], please."
    assert found.as_of(found.taken_at + 60).history[1].text == "It is [card number]."
    assert found.messages == (SavedMessage(*["[card number]"] * 3),)
    assert found.notes["card"] == found.notes["left"]["text"] == "[card number]"
    assert found.parameters == earlier.parameters


def test_notes_that_cannot_be_redacted_are_not_stored() -> None:
    """Notes that are no JSON cannot be redacted, so they are not stored."""
    earlier = CallSnapshot(stream_count=1, notes=cycle())

    read = CallSnapshot.read(encode(earlier, FORMAT, Redaction(cards=True)))

    assert (read.stream_count, read.notes) == (1, {})
