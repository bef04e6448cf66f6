"""One media stream of Twilio's: hands its messages to the call as they come, and sends
the call's messages in order.

A call has one stream at a time, and may have several, one after the other. This module
decides nothing, and interprets no message but `start`, which names the stream's call.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from bridge.core import ProtocolError, twilio_messages
from bridge.core.stream_presence import START_SECONDS
from bridge.websocket.text_socket import (
    SocketEnd,
    SocketListener,
    StartTask,
    TextSocket,
    Why,
    begin,
    failing,
)

MAX_BEFORE_START = 10
"""Twilio sends `connected`, then `start`. A peer that sends more messages than this
before `start`, or more bytes than one message may have
(twilio_messages.MAX_MESSAGE_CHARS), is not Twilio."""

INVALID = {
    Why.TOO_LARGE: twilio_messages.TOO_LARGE,
    Why.TOO_MANY: twilio_messages.TOO_MANY,
    Why.BROKEN: "websocket protocol broken",
}
"""Ends of a socket that are the peer's fault."""


class IdentifiedPhone:
    """A phone's socket whose messages were read as far as its `start`. The messages
    already read wait for the listener, and so do those that arrive meanwhile."""

    def __init__(self, socket: TextSocket) -> None:
        self._socket = socket
        self._read_ahead: list[str | bytes] = []
        self._done = asyncio.Event()
        self.call_sid: str | None = None
        """The call that `start` names; None if there was no `start`."""
        self.account_sid = ""
        self.timed_out = False
        """No `start` came in time."""

    @classmethod
    async def wait_for_start(
        cls, socket: TextSocket, seconds: float = START_SECONDS
    ) -> "IdentifiedPhone":
        """Reads until `start` arrives, or the limits of time, number or size are
        reached."""
        identified = cls(socket)
        socket.listen(identified)
        try:
            async with asyncio.timeout(seconds):
                await identified._done.wait()
        except TimeoutError:
            # `call_sid` stays None; the server then closes the socket.
            socket.hold()
            identified.timed_out = True
        return identified

    def hand_over(self, listener: SocketListener) -> TextSocket:
        """The listener gets all messages, from the first."""
        first, self._read_ahead = self._read_ahead, []
        self._socket.listen(listener, first)
        return self._socket

    # --- called by the socket (bridge.websocket.text_socket.SocketListener) ---

    def socket_message(self, text: str | bytes) -> None:
        self._read_ahead.append(text)
        if start := _start_in(text):
            self.call_sid, self.account_sid = start.call_sid, start.account_sid
        size = sum(map(len, self._read_ahead))
        most = twilio_messages.MAX_MESSAGE_CHARS
        if start or len(self._read_ahead) >= MAX_BEFORE_START or size > most:
            self._socket.hold()
            self._done.set()

    def socket_ended(self, end: SocketEnd) -> None:
        self._done.set()

    def socket_resumed(self, seconds: float) -> None:
        """Nothing is measured before the call begins."""


class StreamOwner(Protocol):
    """What the stream calls on its call. None of these methods waits."""

    def stream_message(self, text: str | bytes) -> None: ...
    def stream_invalid(self, reason: str) -> None:
        """The stream ended because a message broke the protocol."""

    def stream_closed(self) -> None:
        """No more messages come, or none are accepted."""

    def stream_stuck(self) -> None:
        """The phone does not read (Why.STUCK). `stream_closed` follows."""


class Stream:
    """A SocketListener. It ends with `close`, with `stop`, or when the stream is
    lost."""

    def __init__(
        self,
        phone: IdentifiedPhone,
        owner: StreamOwner,
        start_task: StartTask,
        on_sent: Callable[[float], None],
    ) -> None:
        """`on_sent` gets the time that a message waited here, in seconds."""
        self._owner = owner
        self._start_task = start_task
        self._on_sent = on_sent
        self._stopped = False
        self.finished = asyncio.Event()
        """Set when the socket is not needed any more."""
        self._socket = phone.hand_over(self)

    def send(self, texts: list[str], now: float) -> None:
        """Sends messages. `now`: when the input arrived that led to them."""
        self._socket.send_text(*texts)
        if not self._socket.is_paused:
            self._on_sent(time.monotonic() - now)

    async def close(self) -> None:
        """Closes the socket; safe to call twice."""
        self._stopped = True
        self._socket.leave()
        try:
            await self._socket.close_bounded()
        finally:
            self.finished.set()

    def stop(self) -> None:
        """Closes the socket in a task, and reports nothing more: a newer stream has
        taken over, or this one is lost."""
        if self._stopped:
            return
        self._stopped = True
        self._socket.leave()
        closing = begin(self._start_task, self.close(), "caller close")
        if closing is None:
            self._closed()
            return
        # `close` sets it, unless its task is cancelled before it begins.
        closing.add_done_callback(lambda _: self._closed())

    def _closed(self) -> None:
        self._socket.abort()
        self.finished.set()

    # --- called by the socket (bridge.websocket.text_socket.SocketListener) ---

    def socket_message(self, text: str | bytes) -> None:
        try:
            self._owner.stream_message(text)
        except Exception as error:
            self._fail(error)

    def socket_ended(self, end: SocketEnd) -> None:
        try:
            if end.why is Why.STUCK:
                self._owner.stream_stuck()
            elif reason := INVALID.get(end.why):
                self._owner.stream_invalid(reason)
            # Twilio sends `stop` before it closes. If there was none, the connection
            # broke. A stream that the bridge gives up is closed at once, so that Twilio
            # asks for the next step while the call still waits for its next stream.
            if not self._stopped:
                self.stop()
                self._owner.stream_closed()
        except Exception as error:
            self._fail(error)

    def socket_resumed(self, seconds: float) -> None:
        self._on_sent(seconds)

    def _fail(self, error: Exception) -> None:
        """A bug of the bridge, in a callback of the socket. It ends the call like an
        error in one of the call's tasks."""
        self._socket.leave()
        begin(self._start_task, failing(error), "caller message")


def _start_in(text: str | bytes) -> twilio_messages.StartDetails | None:
    """The details of a `start` message; None for any other message."""
    if isinstance(text, bytes):
        return None
    try:
        message = twilio_messages.decode(text)
    except ProtocolError:
        return None
    return message.start if isinstance(message, twilio_messages.Start) else None
