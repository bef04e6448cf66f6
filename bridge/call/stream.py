"""One media stream of Twilio's: reads messages as they come, writes messages in order.

A call has one stream at a time, and may have several, one after the other. This module
decides nothing, and interprets no message but `start`, which names the stream's call.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Protocol

from bridge.core import ProtocolError, twilio_messages
from bridge.core.stream_presence import START_SECONDS

MAX_QUEUED_MESSAGES = 4000
"""Limit of messages that wait to be sent to Twilio: 10 MB at 2.5 kB each. Twilio
accepts ten minutes of audio at once, so a full queue means that the socket accepts
nothing."""

SEND_SECONDS = 5.0
"""A socket that accepts nothing for this long is dead, even if no close has arrived."""

MAX_BEFORE_START = 10
"""Twilio sends `connected`, then `start`. A peer that sends more messages than this
before `start`, or more bytes than one message may have
(twilio_messages.MAX_MESSAGE_CHARS), is not Twilio."""


class Phone(Protocol):
    """The caller's socket. Iterating gives Twilio's messages until the stream ends.

    Iterating raises ProtocolError if a message broke the protocol. `send` raises
    ConnectionError if the connection is gone. `close` does not raise, and takes a
    second or two at most: it breaks a connection that does not close, also when it is
    cancelled.
    """

    def __aiter__(self) -> AsyncIterator[str | bytes]: ...
    async def send(self, text: str) -> None: ...
    async def close(self) -> None: ...


class IdentifiedPhone:
    """A phone whose messages were read as far as its `start`. Iterating gives the
    messages already read, then the rest."""

    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self._messages = aiter(phone)
        self._read_ahead: list[str | bytes] = []
        self.call_sid: str | None = None
        """The call that `start` names; None if there was no `start`."""
        self.account_sid = ""
        self.timed_out = False
        """No `start` came in time."""

    @classmethod
    async def wait_for_start(
        cls, phone: Phone, seconds: float = START_SECONDS
    ) -> "IdentifiedPhone":
        """Reads until `start` arrives, or the limits of time, number or size are
        reached."""
        identified = cls(phone)
        try:
            async with asyncio.timeout(seconds):
                await identified._read_start()
        except (TimeoutError, ProtocolError) as error:
            # `call_sid` stays None; the server then closes the socket.
            identified.timed_out = isinstance(error, TimeoutError)
        return identified

    async def _read_start(self) -> None:
        async for text in self._messages:
            self._read_ahead.append(text)
            if start := _start_in(text):
                self.call_sid, self.account_sid = start.call_sid, start.account_sid
            size = sum(map(len, self._read_ahead))
            most = twilio_messages.MAX_MESSAGE_CHARS
            if start or len(self._read_ahead) >= MAX_BEFORE_START or size > most:
                return

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        first, self._read_ahead = self._read_ahead, []
        for text in first:
            yield text
        async for text in self._messages:
            yield text

    async def send(self, text: str) -> None:
        await self._phone.send(text)

    async def close(self) -> None:
        await self._phone.close()


class StreamOwner(Protocol):
    """What the stream calls on its call. None of these methods waits."""

    def stream_message(self, text: str | bytes) -> None: ...
    def stream_invalid(self, reason: str) -> None:
        """The stream ended because a message broke the protocol."""

    def stream_closed(self) -> None:
        """No more messages come, or none are accepted."""

    def stream_stuck(self) -> None:
        """The socket accepted nothing for `send_seconds`, or MAX_QUEUED_MESSAGES wait
        to be sent. `stream_closed` follows."""


StartTask = Callable[[Coroutine[None, None, None], str], asyncio.Task[None]]


class Stream:
    """The stream's two tasks, reader and writer. The call starts them; they end with
    the call, with `stop`, or when the stream is lost."""

    def __init__(
        self,
        phone: Phone,
        owner: StreamOwner,
        start_task: StartTask,
        on_sent: Callable[[float], None],
        send_seconds: float = SEND_SECONDS,
    ) -> None:
        """`on_sent` gets the time that the last message waited here, in seconds."""
        self._send_seconds = send_seconds
        self._phone = phone
        self._owner = owner
        self._start_task = start_task
        self._on_sent = on_sent
        self._outgoing: asyncio.Queue[tuple[str, float]] = asyncio.Queue(
            MAX_QUEUED_MESSAGES
        )
        self._stopped = False
        self.finished = asyncio.Event()
        """Set when the socket is not needed any more."""
        self._reader = start_task(self._read_messages(), "caller reader")
        self._writer = start_task(self._write_messages(), "caller writer")

    def send(self, text: str, now: float) -> None:
        if self._stopped:
            return
        try:
            self._outgoing.put_nowait((text, now))
        except asyncio.QueueFull:
            self._report_stuck()

    async def close(self) -> None:
        """Closes the socket; safe to call twice."""
        try:
            await self._phone.close()
        finally:
            self.finished.set()

    def stop(self) -> None:
        """Stops reading and writing, and closes the socket: a newer stream has taken
        over, or this one is lost."""
        if self._stopped:
            return
        self._stopped = True
        self._reader.cancel()
        self._writer.cancel()
        closing = self._start_task(self.close(), "caller close")
        # `close` sets it, unless its task is cancelled before it begins.
        closing.add_done_callback(lambda _: self.finished.set())

    def _report_closed(self) -> None:
        """A stream that the bridge gives up is closed at once, so that Twilio asks for
        the next step while the call still waits for its next stream."""
        if not self._stopped:
            self.stop()
            self._owner.stream_closed()

    def _report_stuck(self) -> None:
        if not self._stopped:
            self._owner.stream_stuck()
            self._report_closed()

    async def _read_messages(self) -> None:
        """Gives each message to the call as it arrives. Waits only for the next
        message."""
        try:
            async for text in self._phone:
                self._owner.stream_message(text)
        except ProtocolError as error:
            self._stopped = True
            self._owner.stream_invalid(error.reason)
        # Twilio sends `stop` before it closes. If there was none, the connection broke.
        self._report_closed()

    async def _write_messages(self) -> None:
        """The only writer: sends the call's messages in order."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                text, queued_at = await self._outgoing.get()
                async with asyncio.timeout(self._send_seconds) as limit:
                    await self._phone.send(text)
                    while not self._outgoing.empty():
                        # The limit is for each message.
                        limit.reschedule(loop.time() + self._send_seconds)
                        text, queued_at = self._outgoing.get_nowait()
                        await self._phone.send(text)
                self._on_sent(time.monotonic() - queued_at)
        except TimeoutError:
            self._report_stuck()
        except ConnectionError:
            self._report_closed()


def _start_in(text: str | bytes) -> twilio_messages.StartDetails | None:
    """The details of a `start` message; None for any other message."""
    if isinstance(text, bytes):
        return None
    try:
        message = twilio_messages.decode(text)
    except ProtocolError:
        return None
    return message.start if isinstance(message, twilio_messages.Start) else None
