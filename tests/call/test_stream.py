"""One media stream: a phone that does not read, messages before `start`, a bug."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bridge.call.stream import MAX_BEFORE_START, IdentifiedPhone, Stream
from bridge.core import twilio_messages
from bridge.websocket.text_socket import SocketEnd, SocketListener, Why, failing

pytestmark = pytest.mark.both_loops


class Phone:
    """A TextSocket to which nothing arrives but the given messages."""

    is_paused = False

    def __init__(self, *messages: str | bytes) -> None:
        self.messages = list(messages)
        self.sent: list[str] = []
        self.closed = 0
        self.listener: SocketListener | None = None

    def listen(
        self, listener: SocketListener, first: Iterable[str | bytes] = ()
    ) -> None:
        self.listener = listener
        self.messages = [*first, *self.messages]
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        while self.messages and self.listener:
            self.listener.socket_message(self.messages.pop(0))

    def hold(self) -> None:
        self.listener = None

    def leave(self) -> None:
        self.listener = None

    def send_text(self, *texts: str) -> None:
        self.sent.extend(texts)

    async def close_bounded(self, code: int = 1000) -> None:
        self.closed += 1

    def abort(self) -> None:
        pass


class Recorder:
    """Records the stream's calls."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.bug: Exception | None = None

    def stream_message(self, text: str | bytes) -> None:
        self.events.append(f"heard {text!r}")
        if self.bug:
            raise self.bug

    def stream_invalid(self, reason: str) -> None:
        self.events.append(reason)

    def stream_closed(self) -> None:
        self.events.append("over")

    def stream_stuck(self) -> None:
        self.events.append("stuck")


@asynccontextmanager
async def running(phone: Phone, recorder: Recorder) -> AsyncIterator[Stream]:
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:

        def start_task(
            work: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        identified = IdentifiedPhone(phone)
        yield Stream(identified, recorder, start_task, lambda seconds: None)


@pytest.mark.parametrize(
    ("why", "events"),
    [
        (Why.STUCK, ["stuck", "over"]),
        (Why.LOST, ["over"]),
        (Why.CLOSED, ["over"]),
        (Why.TOO_LARGE, [twilio_messages.TOO_LARGE, "over"]),
        (Why.TOO_MANY, [twilio_messages.TOO_MANY, "over"]),
        (Why.BROKEN, ["websocket protocol broken", "over"]),
    ],
)
async def test_each_end_of_the_socket_is_reported(why: Why, events: list[str]) -> None:
    """The operator sees that the phone was slow, or broke the protocol, and not that
    the caller hung up; the socket is closed once."""
    recorder, phone = Recorder(), Phone()
    async with running(phone, recorder) as stream:
        assert phone.listener
        phone.listener.socket_ended(SocketEnd(why))

    assert recorder.events == events
    assert phone.closed == 1 and stream.finished.is_set()


async def test_a_stopped_stream_reports_nothing() -> None:
    """The older stream of a caller who is back does not end the newer one."""
    recorder, phone = Recorder(), Phone("one")
    async with running(phone, recorder) as stream:
        listener = phone.listener
        stream.stop()
        stream.stop()
        assert listener
        listener.socket_ended(SocketEnd(Why.LOST))

    assert recorder.events == [] and phone.closed == 1


async def test_a_bug_in_a_callback_is_the_error_of_a_task() -> None:
    """A bug ends the call with the apology, as in any task of the call; the socket
    calls nothing of the call any more."""
    recorder, phone = Recorder(), Phone("one", "two")
    recorder.bug = LookupError("a bug")
    with pytest.raises(ExceptionGroup) as failed:
        async with running(phone, recorder):
            await asyncio.sleep(5)

    assert failed.group_contains(LookupError) and recorder.events == ["heard 'one'"]


@pytest.mark.parametrize("what", ["end", "bug", "stop"])
async def test_a_callback_while_the_call_ends_raises_nothing(what: str) -> None:
    """A call that ends with an error takes a moment to end. What its socket reports
    meanwhile is no error in asyncio's callback, and the socket is closed."""
    recorder, phone = Recorder(), Phone()
    with pytest.raises(ExceptionGroup) as failed:
        async with running(phone, recorder) as stream:
            try:
                stream._start_task(failing(LookupError("a bug")), "bug")
                await asyncio.sleep(1)
            finally:
                assert phone.listener
                if what == "stop":
                    stream.stop()
                elif what == "end":
                    phone.listener.socket_ended(SocketEnd(Why.LOST))
                else:
                    recorder.bug = LookupError("another bug")
                    phone.listener.socket_message("one")

    assert failed.group_contains(LookupError, match="a bug")
    assert phone.listener is None and (what == "bug" or stream.finished.is_set())


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


async def test_messages_before_the_call_is_known_are_not_lost() -> None:
    """The stream gets the messages that were read to find `start`, and those that
    arrived meanwhile, in order."""
    phone = Phone("a", "b")
    identified = await IdentifiedPhone.wait_for_start(phone, 0.05)
    phone.messages.append("c")
    recorder = Recorder()

    class Owner(Recorder):
        def stream_message(self, text: str | bytes) -> None:
            recorder.stream_message(text)

    async with asyncio.TaskGroup() as tasks:
        stream = Stream(
            identified,
            Owner(),
            lambda work, name: tasks.create_task(work, name=name),
            lambda seconds: None,
        )
        await asyncio.sleep(0)
        stream.stop()

    assert recorder.events == ["heard 'a'", "heard 'b'", "heard 'c'"]
    assert identified.timed_out
