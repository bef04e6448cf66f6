"""One media stream of Twilio's: what comes is heard at once, what goes, goes in order.

A call has one at a time, and may have several one after the other. Nothing is decided
here, nor is a message understood but the `start` that says whose stream it is.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Protocol

from bridge.core import ProtocolError, twilio_messages
from bridge.core.stream_presence import START_SECONDS

MAX_TO_PHONE = 4000
"""Messages waiting for Twilio, of 2.5 kB at most: 10 MB in all. It takes ten minutes of
audio at once; a socket that lets so many pile up takes none."""

SEND_SECONDS = 5.0
"""A socket that takes nothing for so long is dead, though nobody said so."""

MAX_BEFORE_START = 10
"""Twilio sends `connected`, then `start`. Whoever sends more before is not Twilio, nor
who sends more than one message may have (twilio_messages.MAX_MESSAGE_CHARS)."""


class Phone(Protocol):
    """The caller's end: Twilio's messages, one each, until the stream ends.

    Iterating raises ProtocolError where it ends because of what was sent, sending a
    ConnectionError where nobody is there any more.
    """

    def __aiter__(self) -> AsyncIterator[str | bytes]: ...
    async def send(self, text: str) -> None: ...
    async def close(self) -> None: ...


class Opened:
    """A phone of which the first messages were read already."""

    def __init__(self, phone: Phone) -> None:
        self._phone = phone
        self._messages = aiter(phone)
        self._first: list[str | bytes] = []
        self.call_sid: str | None = None
        """Whose stream it is; None: that was not said."""
        self.account_sid = ""
        self.late = False
        """Nothing was said in time."""

    @classmethod
    async def of(cls, phone: Phone, seconds: float = START_SECONDS) -> "Opened":
        """Reads until Twilio has said whose stream it is, or should have."""
        opened = cls(phone)
        try:
            async with asyncio.timeout(seconds):
                await opened._read()
        except (TimeoutError, ProtocolError) as error:
            # It never said whose it is, and nothing more is wanted of it.
            opened.late = isinstance(error, TimeoutError)
        return opened

    async def _read(self) -> None:
        async for text in self._messages:
            self._first.append(text)
            if start := _start_in(text):
                self.call_sid, self.account_sid = start.call_sid, start.account_sid
            size = sum(map(len, self._first))
            most = twilio_messages.MAX_MESSAGE_CHARS
            if start or len(self._first) >= MAX_BEFORE_START or size > most:
                return

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        first, self._first = self._first, []
        for text in first:
            yield text
        async for text in self._messages:
            yield text

    async def send(self, text: str) -> None:
        await self._phone.send(text)

    async def close(self) -> None:
        await self._phone.close()


class StreamOwner(Protocol):
    """The call, as its stream sees it. Nothing here waits."""

    def stream_message(self, text: str | bytes) -> None: ...
    def stream_broken(self, reason: str) -> None:
        """It ended because of what it sent."""

    def stream_over(self) -> None:
        """Nothing comes any more, or nothing is taken."""

    def stream_stuck(self) -> None:
        """More waits to be sent than any phone takes."""

    def stream_slow(self) -> None:
        """Nothing was taken for so long that nothing more will be."""


Begin = Callable[[Coroutine[None, None, None], str], asyncio.Task[None]]


class Stream:
    """Its two tasks are begun by the call, and end with it or with `leave`."""

    def __init__(
        self,
        phone: Phone,
        owner: StreamOwner,
        begin: Begin,
        on_sent: Callable[[float], None],
        send_seconds: float = SEND_SECONDS,
    ) -> None:
        """`on_sent` is told how long the last message lay here, in seconds."""
        self._send_seconds = send_seconds
        self._phone = phone
        self._owner = owner
        self._on_sent = on_sent
        self._out: asyncio.Queue[tuple[str, float]] = asyncio.Queue(MAX_TO_PHONE)
        self._left = False
        self.over = asyncio.Event()
        """Nobody needs the socket any more."""
        self._reader = begin(self._listen(), "caller reader")
        self._writer = begin(self._speak(), "caller writer")

    def send(self, text: str, now: float) -> None:
        if self._left:
            return
        try:
            self._out.put_nowait((text, now))
        except asyncio.QueueFull:
            self._owner.stream_stuck()

    async def close(self) -> None:
        """The socket is closed. ConnectionError where nobody is there."""
        try:
            await self._phone.close()
        finally:
            self.over.set()

    def leave(self) -> None:
        """Nothing is heard from here any more, nothing sent: another took over."""
        self._left = True
        self._reader.cancel()
        self._writer.cancel()

    def _is_over(self) -> None:
        if not self._left:
            self._left = True
            self._owner.stream_over()

    async def _listen(self) -> None:
        """The caller's messages, as they come. Waits for nothing but the next one."""
        try:
            async for text in self._phone:
                self._owner.stream_message(text)
        except ProtocolError as error:
            self._left = True
            self._owner.stream_broken(error.reason)
        # Twilio closes behind a `stop`; without one the line broke.
        self._is_over()

    async def _speak(self) -> None:
        """What is decided for the caller, in order, by one writer."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                text, since = await self._out.get()
                async with asyncio.timeout(self._send_seconds) as limit:
                    await self._phone.send(text)
                    while not self._out.empty():
                        # For each anew.
                        limit.reschedule(loop.time() + self._send_seconds)
                        text, since = self._out.get_nowait()
                        await self._phone.send(text)
                self._on_sent(time.monotonic() - since)
        except TimeoutError:
            if not self._left:
                self._owner.stream_slow()
            self._is_over()
        except ConnectionError:
            self._is_over()


def _start_in(text: str | bytes) -> twilio_messages.StartDetails | None:
    """What a message says that is the start of a stream."""
    if isinstance(text, bytes):
        return None
    try:
        message = twilio_messages.decode(text)
    except ProtocolError:
        return None
    return message.start if isinstance(message, twilio_messages.Start) else None
