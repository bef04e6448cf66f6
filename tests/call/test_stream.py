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

    def __init__(self, *messages: str | bytes, stuck: bool = False) -> None:
        self.messages = messages
        self.sent: list[str] = []
        self.closed = 0
        self._may_send = asyncio.Event()
        if not stuck:
            self._may_send.set()

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        for text in self.messages:
            yield text
        await asyncio.sleep(60)

    async def send(self, text: str) -> None:
        await self._may_send.wait()
        self.sent.append(text)

    async def close(self) -> None:
        self.closed += 1


class Recorder:
    """Records the stream's calls."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.changed = asyncio.Event()

    def stream_message(self, text: str | bytes) -> None:
        self._keep("heard")

    def stream_invalid(self, reason: str) -> None:
        self._keep(reason)

    def stream_closed(self) -> None:
        self._keep("over")

    def stream_stuck(self) -> None:
        self._keep("stuck")

    def _keep(self, what: str) -> None:
        self.events.append(what)
        self.changed.set()


async def test_a_phone_that_accepts_nothing_is_reported_and_closed() -> None:
    """The operator sees that the phone was slow, not that the caller hung up."""
    recorder, phone = Recorder(), Phone(stuck=True)
    async with asyncio.TaskGroup() as tasks:

        def start_task(
            work: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        stream = Stream(phone, recorder, start_task, lambda seconds: None, 0.05)
        stream.send("one", 0.0)
        async with asyncio.timeout(2):
            await recorder.changed.wait()
        stream.send("two", 0.0)
        stream.stop()

    assert recorder.events == ["stuck", "over"]
    assert phone.sent == [] and phone.closed == 1 and stream.finished.is_set()


async def test_a_full_queue_is_reported() -> None:
    """Ten minutes of audio may wait; one message more ends the stream."""
    recorder, phone = Recorder(), Phone(stuck=True)
    async with asyncio.TaskGroup() as tasks:

        def start_task(
            work: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        stream = Stream(phone, recorder, start_task, lambda seconds: None)
        for _ in range(MAX_QUEUED_MESSAGES):
            stream.send("a message", 0.0)
        assert recorder.events == []
        stream.send("one more", 0.0)
        stream.send("and one more", 0.0)
        stream.stop()

    assert recorder.events == ["stuck", "over"]
    assert phone.closed == 1


async def test_messages_before_start_are_limited() -> None:
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
