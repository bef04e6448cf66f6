"""A WebSocket of either side, on the Sans-I/O core of `websockets`.

A message is parsed and handed to the listener in the callback in which it arrives, and
is written to the transport in the turn in which it is sent. There is no queue, task or
timeout for a message: the transport's buffer is the bound, and one timer, armed while
the transport is paused, notices a peer that does not read.
"""

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from websockets.asyncio.connection import Connection
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, SERVER, Event
from websockets.server import ServerProtocol

from bridge.core.limits import MessageRate
from bridge.websocket import closing, frames
from bridge.websocket.text_socket import SocketEnd, SocketListener, Why
from bridge.websocket.write_watch import WriteWatch

TURN_SECONDS = 0.002
"""Longest time for the messages of one connection, before the event loop serves the
other calls."""

REST_FRAMES = 300
"""Limit of the frames that are read of what arrived before a connection broke: six
seconds of a phone. It is no time, because a busy machine would lose Twilio's `stop`."""

LAST_BYTES = 1024
"""A larger packet behind the end of a connection is a flood, and is ignored."""

PINGS_PER_SECOND = 10.0
"""Limit of a peer's pings and pongs per second, averaged over ten seconds. No phone and
no model needs that many."""

MAX_HELD = 4
"""Messages that wait for a listener before reading is paused: TCP flow control then
makes the peer wait."""

MAX_PARTS = 1000
"""Limit of the frames of one message. Frames may be empty, so the limit of a message's
size does not bound them."""


class DirectConnection(Connection):
    """A bridge.websocket.text_socket.TextSocket, for either side of a connection.

    It is set up by `set_limits` before the first byte arrives.
    """

    _listener: SocketListener | None = None

    def set_limits(
        self,
        *,
        stuck_seconds: float,
        max_unsent: int,
        max_message: int,
        pings_per_second: float = PINGS_PER_SECOND,
    ) -> None:
        """`max_message`: limit of a message in bytes, which the protocol also has."""
        self._max_unsent = max_unsent
        self._watch = WriteWatch(stuck_seconds, self._stuck)
        self._pings = MessageRate(pings_per_second)
        self._max_message = max_message
        is_server = self.protocol.side is SERVER
        self._masked = frames.MASKED if is_server else 0
        """The mask bit of the frames that arrive."""
        self._frame = frames.server_frame if is_server else frames.client_frame
        self._head = b""
        """The last bytes of an incomplete handshake."""
        self._unparsed = bytearray()
        self._held: deque[str | bytes] = deque()
        """Messages that wait for a listener, or for their turn."""
        self._parts: list[bytes] = []
        """Frames of a message whose last frame has not arrived."""
        self._is_text = self._in_message = False
        self._is_broken = False
        """A frame was not valid: `websockets` gets all data from there, and fails."""
        self._end: SocketEnd | None = None
        self._left = False
        self._is_over = False
        """It has ended or is left: only the peer's close frame is of use."""
        self._ignores = False
        """All data is ignored."""
        self._is_lost = False
        """Nothing can be written: a ping gets no answer."""
        self._reading_paused = False
        self._delivering = False
        """`_deliver` is due in a later turn of the event loop."""

    # --- what the owner uses (TextSocket) ---

    @property
    def is_paused(self) -> bool:
        return self.paused

    def listen(
        self, listener: SocketListener, first: Iterable[str | bytes] = ()
    ) -> None:
        self._listener = listener
        self._held.extendleft(reversed(list(first)))
        if self._held or self._end:
            self._deliver_later()

    def hold(self) -> None:
        self._listener = None

    def send_text(self, *texts: str) -> None:
        if self._left or self.protocol.state is not OPEN:
            return
        if len(texts) == 1:
            data = self._frame(texts[0].encode())
        else:
            data = b"".join([self._frame(text.encode()) for text in texts])
        if self.paused:
            if self.transport.get_write_buffer_size() + len(data) > self._max_unsent:
                self._stuck()
                return
            self._watch.written += len(data)
        self.transport.write(data)

    def leave(self) -> None:
        self._left = True
        self._over()
        self._listener = None
        self._held.clear()
        self._watch.stop()
        self._resume_reading()

    async def close_bounded(self, code: int = CloseCode.NORMAL_CLOSURE) -> None:
        self.leave()
        await closing.close_bounded(self, code)

    def abort(self) -> None:
        closing.abort(self)

    # --- called by asyncio ---

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        if (
            listener is not None
            and not self._unparsed
            and not self._held
            and not self._in_message
            and not self._is_over
            and not self._is_broken
        ):
            payload = frames.whole_text(data, self._masked)
            if payload is not None and len(payload) <= self._max_message:
                # As `_text` does, without a call.
                try:
                    text = str(payload, "utf-8")
                except UnicodeDecodeError:
                    self._not_utf8()
                else:
                    listener.socket_message(text)
                return
        if self.response is None:
            self._read_handshake(data)
        elif self._is_over:
            self._read_last(data)
        elif self._unparsed or self._held:
            self._unparsed += data
            if not self._delivering:
                self._deliver()
        else:
            self._unparsed += data
            self._deliver()

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._left:
            self._watch.start(self.transport)

    def resume_writing(self) -> None:
        if not self.paused:
            return  # it was paused before this connection had the transport
        super().resume_writing()
        seconds = self._watch.stop()
        if self._listener is not None:
            self._listener.socket_resumed(seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.stop()
        self._is_lost = True
        self._read_rest()
        super().connection_lost(exc)
        self._ended(closing.end_of(self.protocol))

    def eof_received(self) -> None:
        """The transport closes now, but `connection_lost` waits until the peer has read
        all data."""
        self._read_rest()
        super().eof_received()
        self._ended(closing.end_of(self.protocol))

    # --- called by websockets ---

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame):
            super().process_event(event)  # the response of the handshake
            return
        match event.opcode:
            case Opcode.TEXT if event.fin:
                self._text(event.data)
            case Opcode.TEXT | Opcode.BINARY | Opcode.CONT:
                self._part(event)
            case Opcode.PING | Opcode.PONG:
                if not self._pings.add(1.0, time.monotonic()):
                    self._ended(SocketEnd(Why.TOO_MANY))
                super().process_event(event)

    # --- inside ---

    def _read_handshake(self, data: bytes) -> None:
        """Passes on the response's head, and then reads the frames behind it."""
        seen = self._head + data
        end = seen.find(b"\r\n\r\n")
        if end < 0:
            self._head = seen[-3:]
            self._parse(data)
            return
        head = end + 4 - len(self._head)
        self._head = b""
        self._parse(data[:head])
        if self.response is not None and self.protocol.state is OPEN and data[head:]:
            self.data_received(data[head:])
        elif data[head:]:
            self._parse(data[head:])  # the body of a refusal

    def _parse(self, data: bytes) -> None:
        """Has `websockets` read the data."""
        super().data_received(data)
        if self.protocol.state is not OPEN and self.response is not None:
            self._ended(closing.end_of(self.protocol))

    def _next_frame(self) -> bool:
        """Reads a frame of `_unparsed`. False: the rest of the frame is missing."""
        waiting = self._unparsed
        if self.protocol.state is not OPEN or (
            len(waiting) >= 2 and not frames.is_valid(waiting, self._masked)
        ):
            self._is_broken = True
        if self._is_broken:
            rest = bytes(waiting)
            waiting.clear()
            self._parse(rest)
            return True
        size = frames.frame_size(waiting)
        if size is None:
            return False
        head, length = size
        end = head + length
        if len(waiting) < end and length <= self._max_message:
            return False
        is_text = waiting[0] == frames.TEXT and not self._in_message
        if is_text and length <= self._max_message:
            payload: bytes | bytearray = waiting[head:end]
            if self._masked:
                payload = frames.unmasked(payload, waiting[head - 4 : head])
            del waiting[:end]
            self._text(payload)
        else:
            frame = bytes(waiting[:end])
            del waiting[:end]
            if not self._is_lost:
                self._parse(frame)
        return True

    def _part(self, frame: Frame) -> None:
        """A frame of a fragmented message, or a binary message. The protocol has
        checked order and total size."""
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._in_message = not frame.fin
        if len(self._parts) >= MAX_PARTS:
            self._ended(SocketEnd(Why.TOO_MANY))
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            data, self._parts = b"".join(self._parts), []
            if self._is_text:
                self._text(data)
            else:
                self._message(data)

    def _text(self, data: Any) -> None:
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            self._not_utf8()
        else:
            self._message(text)

    def _not_utf8(self) -> None:
        self.protocol.fail(CloseCode.INVALID_DATA, "invalid UTF-8")
        self.send_data()
        self._ended(SocketEnd(Why.BROKEN))

    def _message(self, message: str | bytes) -> None:
        if self._end is not None or self._left:
            return
        if self._listener is not None and not self._held:
            self._listener.socket_message(message)
            return
        self._held.append(message)
        if len(self._held) >= MAX_HELD:
            self._pause_reading()

    def _read_rest(self) -> None:
        """Reads what arrived before the end of the data, within a limit: it may be a
        packet of a hundred thousand frames."""
        for _ in range(REST_FRAMES):
            if not self._unparsed or not self._next_frame():
                break
        self._unparsed.clear()

    def _over(self) -> None:
        self._is_over = True
        if len(self._unparsed) > LAST_BYTES:
            self._ignore()

    def _read_last(self, data: bytes) -> None:
        """Reads what comes behind the end, unless it is a flood: the connection is
        then closed without the peer's close frame."""
        if self._ignores:
            return
        if len(data) > LAST_BYTES:
            self._ignore()
            return
        self._unparsed += data
        while self._unparsed and self._next_frame():
            pass

    def _ignore(self) -> None:
        self._ignores = True
        self._unparsed.clear()

    def _deliver_later(self) -> None:
        if not self._delivering:
            self._delivering = True
            self.loop.call_soon(self._deliver_in_turn)

    def _deliver_in_turn(self) -> None:
        self._delivering = False
        self._deliver()

    def _deliver(self) -> None:
        """Reads and hands over what waits, for TURN_SECONDS at most."""
        until = time.monotonic() + TURN_SECONDS
        while self._held or self._unparsed:
            if self._held and self._listener is not None:
                self._listener.socket_message(self._held.popleft())
            elif len(self._held) >= MAX_HELD:
                self._pause_reading()
                return
            # Also while a few messages wait: pings and pongs come between them.
            elif not self._unparsed or not self._next_frame():
                break
            if time.monotonic() > until:
                self._pause_reading()
                self._deliver_later()
                return
        if len(self._held) < MAX_HELD:
            self._resume_reading()
        self._report_end()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _stuck(self) -> None:
        self._ended(SocketEnd(Why.STUCK))

    def _ended(self, end: SocketEnd) -> None:
        if self._end is None:
            self._end = end
            self._over()
            self._report_end()

    def _report_end(self) -> None:
        """Reports the end behind the messages that wait."""
        if self._end and not self._held and self._listener is not None:
            listener, self._listener = self._listener, None
            listener.socket_ended(self._end)


class PhoneConnection(DirectConnection):
    """The server's side of a media stream."""

    protocol: ServerProtocol
