"""One media stream: a full queue, a slow socket, messages before `start`."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from bridge.call.stream import (
    MAX_BEFORE_START,
    MAX_QUEUED_MESSAGES,
    IdentifiedPhone,
    Stream,
)
from bridge.core import twilio_messages


class Phone:
    """Sends the given messages, then nothing. If `stuck`, `send` blocks."""

    def __init__(self, *says: str | bytes, stuck: bool = False) -> None:
        self.says = says
        self.taken: list[str] = []
        self._goes_on = asyncio.Event()
        if not stuck:
            self._goes_on.set()

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        for text in self.says:
            yield text
        await asyncio.sleep(60)

    async def send(self, text: str) -> None:
        await self._goes_on.wait()
        self.taken.append(text)

    async def close(self) -> None:
        pass


class Ear:
    """Records the stream's calls."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.changed = asyncio.Event()

    def stream_message(self, text: str | bytes) -> None:
        self._keep("heard")

    def stream_invalid(self, reason: str) -> None:
        self._keep(reason)

    def stream_closed(self) -> None:
        self._keep("over")

    def stream_backlogged(self) -> None:
        self._keep("stuck")

    def stream_timed_out(self) -> None:
        self._keep("slow")

    def _keep(self, what: str) -> None:
        self.told.append(what)
        self.changed.set()


async def test_a_phone_that_takes_nothing_is_told_of_and_left() -> None:
    """The operator sees that the phone was slow, not that the caller hung up."""
    ear, phone = Ear(), Phone(stuck=True)
    async with asyncio.TaskGroup() as tasks:

        def start_task(
            work: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        line = Stream(phone, ear, start_task, lambda seconds: None, 0.05)
        line.send("one", 0.0)
        async with asyncio.timeout(2):
            await ear.changed.wait()
        line.send("two", 0.0)
        line.stop()

    assert ear.told == ["slow", "over"]
    assert phone.taken == []


async def test_a_phone_for_which_too_much_waits() -> None:
    """Ten minutes of audio may wait; one message more ends the call."""
    ear, phone = Ear(), Phone(stuck=True)
    async with asyncio.TaskGroup() as tasks:

        def start_task(
            work: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        line = Stream(phone, ear, start_task, lambda seconds: None)
        for _ in range(MAX_QUEUED_MESSAGES):
            line.send("a message", 0.0)
        assert ear.told == []
        line.send("one more", 0.0)
        line.stop()

    assert ear.told == ["stuck"]


async def test_what_comes_before_the_start_is_kept_in_bounds() -> None:
    """A peer that never sends `start` cannot make the bridge read without limit."""
    many = await IdentifiedPhone.wait_for_start(Phone(*["{}"] * (MAX_BEFORE_START + 1)))
    long = await IdentifiedPhone.wait_for_start(
        Phone(*["x" * twilio_messages.MAX_MESSAGE_CHARS] * 5)
    )

    assert (
        (many.call_sid, many.timed_out)
        == (long.call_sid, long.timed_out)
        == (None, False)
    )
    assert len(many._read_ahead) == MAX_BEFORE_START and len(long._read_ahead) == 2
