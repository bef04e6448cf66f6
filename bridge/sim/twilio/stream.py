"""One media stream: Twilio's end of the WebSocket, its media clock, playout and echoes.

Events at Twilio are computed in order of time and do not depend on when timers fire:
frames every 20 ms without drift, arrivals after the network's delay, echoes when their
audio has been played. A late wake-up catches up with the exact times.

Hundreds of streams share one core with the fake model. So a stream has one timer and no
task that wakes for each frame, and writes its frames without waiting.
"""

import asyncio
import base64
import socket as sockets
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from time import monotonic
from typing import Literal

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError
from websockets.protocol import State

from bridge.sim.twilio import messages
from bridge.sim.twilio.caller_voice import CallerVoice
from bridge.sim.twilio.network import NetworkLink
from bridge.sim.twilio.playout import BYTE_US, FRAME_BYTES, FRAME_US, SILENCE
from bridge.sim.twilio.record import (
    CallRecord,
    DebuggerWarning,
    StreamEnd,
    StreamRecord,
)
from bridge.sim.twilio.wakeup import Wakeup
from bridge.sim.twilio.writing import text_frame

FRAME_SECONDS = FRAME_US / 1e6
FRAME_MS = FRAME_US // 1000
SEND_LIMIT = 5.0  # s; a socket that accepts no bytes for this long is broken (31903)
CLOSE_LIMIT = 2.0  # s for the bridge's part of the closing handshake
# unsent bytes, three seconds of audio; above this, audio is discarded (31930)
BACKLOG_LIMIT = 64 * 1024
HEAD_BYTES = 16  # kept of a media message; enough to tell what it is a part of
STUCK_LIMIT = 2**20  # unsent bytes; a socket with more accepts nothing at the moment
SLOW_READER, BUFFER_FULL = 31930, 31931
LOST, CLOSED_BY_BRIDGE, PROTOCOL_BROKEN = 31903, 31921, 31924

OnMedia = Callable[[bytes, float], None]


def silent_payloads(noisy: bool) -> Sequence[str]:
    """Base64 of a silent caller's frames; `noisy` adds a little line noise."""
    if not noisy:
        return [base64.b64encode(bytes([SILENCE]) * FRAME_BYTES).decode()]
    levels = bytes([0xFF, 0xFE, 0x7F, 0x7E])
    hiss = Random("hiss")
    return [
        base64.b64encode(bytes(hiss.choices(levels, k=FRAME_BYTES))).decode()
        for _ in range(25)
    ]


QUIET, HISS = silent_payloads(noisy=False), silent_payloads(noisy=True)


class _Ending(Enum):
    """How to end a connection; queued like a message."""

    CLOSE = auto()  # closing handshake
    RESET = auto()  # TCP reset without a close frame


@dataclass(frozen=True, slots=True)
class _Closed:
    """The end of the connection as Twilio sees it."""

    code: int
    text: str
    close_code: int | None


class MediaStream:
    """Run `read` and `run` concurrently; `end` is set when the stream is over."""

    def __init__(
        self,
        socket: ClientConnection,
        streamed: StreamRecord,
        record: CallRecord,
        *,
        account_sid: str,
        voice: CallerVoice,
        up: NetworkLink,
        down: NetworkLink,
        changed: Wakeup,
        noisy: bool = False,
        keep_frame_times: bool = False,
        on_media: OnMedia | None = None,
    ) -> None:
        self.end: StreamEnd | None = None
        self.silenced = False  # the socket is still open, but nothing passes
        self._socket = socket
        self._streamed = streamed
        self._playout = streamed.playout
        self._record = record
        self._account_sid = account_sid
        self._voice = voice
        self._up, self._down = up, down
        self._changed = changed  # woken when audio begins or is cut
        self._silence = HISS if noisy else QUIET
        self._keep_frame_times = keep_frame_times
        self._on_media = on_media
        self._sid = streamed.stream_sid
        self._tail = messages.media_tail(self._sid)
        self._began = streamed.began_at
        self._frames = self._chunk = 0
        self._number = 0  # sequenceNumber of the last message
        self._gap: tuple[float, float, Literal["dtx", "loss"]] | None = None
        self._warned: set[int] = set()
        self._sending: deque[tuple[float, str | _Ending, bool]] = deque()
        self._in_transit: deque[tuple[float, messages.BridgeMessage | _Closed]] = (
            deque()
        )
        self._stuck_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[_Ending | None] = self._loop.create_future()

    def open(self, parameters: dict[str, str]) -> None:
        """Send the first two messages; the media clock begins."""
        self._emit(messages.CONNECTED, self._began)
        self._number = 1
        text = messages.start(
            self._account_sid, self._record.call_sid, self._sid, parameters
        )
        self._emit(text, self._began)

    async def read(self) -> None:
        """Read the bridge's messages until the connection is closed or lost."""
        try:
            async for raw in self._socket:
                now = monotonic()
                message = messages.read(raw, self._sid)
                if isinstance(message, messages.MediaMessage):
                    self._record.media_in.append((now, len(message.audio)))
                    if self._keep_frame_times:
                        self._record.media_heads.append(message.audio[:HEAD_BYTES])
                self._receive(now, message)
            code = self._socket.close_code
            closed = _Closed(CLOSED_BY_BRIDGE, "closed by the bridge", code)
        except ConnectionClosedError as error:
            closed = _closed(error)
        self._receive(monotonic(), closed)

    async def run(self) -> None:
        """Run Twilio's side until the stream is over and the last message is sent."""
        try:
            self._tick()
            if await self._over is _Ending.CLOSE:
                async with asyncio.timeout(SEND_LIMIT):
                    await self._socket.close()
        except TimeoutError:
            self._socket.transport.abort()
        finally:
            self._over.cancel()
            if self._timer is not None:
                self._timer.cancel()

    def _tick(self) -> None:
        """Do all that is due, and set the timer for what follows."""
        if self._over.done():
            return
        now = monotonic()
        self.advance(now)
        self._deliver(now)
        self._check_stuck(now)
        if self._timer is not None:
            self._timer.cancel()
        if not self._over.done():
            self._timer = self._loop.call_later(self._next() - monotonic(), self._tick)

    def advance(self, now: float) -> None:
        """Process all events at Twilio up to `now`, in order of time."""
        while self.end is None:
            frame_at = self._began + (self._frames + 1) * FRAME_SECONDS
            due = self._playout.next_due
            at = frame_at if due is None or due > frame_at else due
            if self._in_transit and self._in_transit[0][0] <= at:
                at, message = self._in_transit[0]
                if at > now:
                    return
                self._in_transit.popleft()
                self._on_arrival(message, at)
            elif at > now:
                return
            elif due is not None and due <= at:
                for name in self._playout.due(at):
                    self._emit(messages.mark(self._next_number(), self._sid, name), at)
            else:
                self._frame(frame_at)

    # What the caller can do to the stream now:

    def press(self, digit: str) -> None:
        now = self._catch_up()
        self._emit(messages.dtmf(self._next_number(), self._sid, digit), now)

    def send_raw(self, text: str) -> None:
        self._emit(text, self._catch_up())

    def gap(self, ms: float, mode: Literal["dtx", "loss", "late"]) -> None:
        now = self._catch_up()
        if mode == "late":
            self._up.hold(now + ms / 1000)
        else:
            self._gap = (now, now + ms / 1000, mode)

    def hang_up(self) -> None:
        """End the call: send `stop`, then close."""
        now = self._catch_up()
        sids = (self._account_sid, self._record.call_sid, self._sid)
        self._emit(messages.stop(self._next_number(), *sids), now)
        self._emit(_Ending.CLOSE, now)
        self._finish(StreamEnd(self._sid, 0, "hung up", now))

    def drop(self, how: Literal["reset", "silence"] = "reset") -> None:
        """Break the connection; messages sent before still arrive."""
        now = self._catch_up()
        if how == "reset":
            self._emit(_Ending.RESET, now)
        else:
            self.silenced = True
            self._socket.transport.pause_reading()
        self._finish(StreamEnd(self._sid, LOST, "broken pipe", now))

    def _catch_up(self) -> float:
        """Advance Twilio to the present; what is sent now is delivered next. Returns
        the present time."""
        now = monotonic()
        self.advance(now)
        self._loop.call_soon(self._tick)
        return now

    def _frame(self, at: float) -> None:
        """Send the caller's frame that is complete at `at`."""
        begun = self._frames * FRAME_MS
        self._frames += 1
        speech = self._voice.frame(self._sid, begun / 1000, at - FRAME_SECONDS)
        if self._gap is not None and self._gap[0] < at <= self._gap[1]:
            self._chunk += self._gap[2] == "loss"
            return
        self._chunk += 1
        if self._backed_up():
            self._warn(SLOW_READER, "the bridge reads too slowly: audio discarded", at)
            return
        if speech is None:
            payload = self._silence[self._frames % len(self._silence)]
        else:
            payload = base64.b64encode(speech).decode()
        number = self._next_number()
        text = messages.media(number, self._chunk, begun, payload, self._tail)
        self._emit(text, at, frame=True)

    def _on_arrival(self, message: messages.BridgeMessage | _Closed, at: float) -> None:
        """Process a message of the bridge that has crossed the network."""
        match message:
            case messages.MediaMessage(audio):
                was_over = (self._playout.over_at or 0.0) <= at
                if not self._playout.media(audio, at):
                    self._warn(
                        BUFFER_FULL, "more than ten minutes of audio are queued", at
                    )
                if was_over:
                    self._changed.wake()
                if self._on_media is not None:
                    self._on_media(audio, at)
            case messages.MarkMessage(name):
                self._playout.mark(name, at)
            case messages.ClearMessage():
                self._playout.clear(at)
                self._changed.wake()
            case messages.IgnoredMessage(code, text):
                self._record.warnings.append(DebuggerWarning(code, text, at))
            case _Closed(code, text, close_code):
                self._sending.clear()
                self._finish(StreamEnd(self._sid, code, text, at, close_code))

    def _finish(self, end: StreamEnd) -> None:
        if self.end is not None:
            return
        self.end = end
        # Whether Twilio plays out its buffer when the socket closes is undocumented.
        # The fake discards it: the harder case for a bridge.
        self._streamed.unheard_at_end = self._playout.end(end.at)
        self._record.stream_ends.append(end)
        self._changed.wake()

    def _backed_up(self) -> bool:
        return self._socket.transport.get_write_buffer_size() > BACKLOG_LIMIT

    def _warn(self, code: int, text: str, at: float) -> None:
        """Record a warning that Twilio gives once per stream."""
        if code not in self._warned:
            self._warned.add(code)
            self._record.warnings.append(DebuggerWarning(code, text, at))

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _emit(self, text: str | _Ending, at: float, frame: bool = False) -> None:
        if self.end is None:  # the connection may have closed while catching up
            self._sending.append((self._up.arrival(at), text, frame))

    def _receive(self, now: float, message: messages.BridgeMessage | _Closed) -> None:
        self._in_transit.append((self._down.arrival(now), message))
        self._tick()

    def _next(self) -> float:
        """Time of the next event."""
        times = [self._sending[0][0]] if self._sending else []
        if self.end is None:
            times.append(self._began + (self._frames + 1) * FRAME_SECONDS)
            if self._in_transit:
                times.append(self._in_transit[0][0])
            if (due := self._playout.next_due) is not None:
                times.append(due)
        return min(times)

    def _deliver(self, now: float) -> None:
        """Write the messages that are due by `now` to the socket."""
        sending, write = self._sending, self._socket.transport.write
        is_open = self._socket.state is State.OPEN
        while sending and sending[0][0] <= now:
            _, text, frame = sending.popleft()
            if isinstance(text, _Ending):
                self._finish_with(text)
                return
            if not is_open:
                continue  # `read` sees the close and ends the stream
            write(text_frame(text))
            if frame:
                self._record.frames_sent += 1
                if self._keep_frame_times:
                    self._record.frame_sent_at.append(monotonic())
        if self.end is not None and not self._sending:
            self._finish_with(None)

    def _check_stuck(self, now: float) -> None:
        """Give the socket up when it has accepted too little for too long."""
        transport = self._socket.transport
        if transport.get_write_buffer_size() <= STUCK_LIMIT:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > SEND_LIMIT:
            transport.abort()

    def _finish_with(self, ending: _Ending | None) -> None:
        """Nothing more is sent: `run` returns, after the closing handshake for
        CLOSE."""
        self._sending.clear()
        if ending is _Ending.RESET:
            # SO_LINGER of 0 s turns the close into a TCP reset.
            linger = struct.pack("ii", 1, 0)
            raw = self._socket.transport.get_extra_info("socket")
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, linger)
            self._socket.transport.abort()
        if not self._over.done():
            self._over.set_result(ending)


def _closed(error: ConnectionClosedError) -> _Closed:
    if error.rcvd is not None:
        text = f"closed by the bridge: {error.rcvd.code} {error.rcvd.reason}"
        return _Closed(CLOSED_BY_BRIDGE, text.strip(), error.rcvd.code)
    if error.sent is not None:
        text = f"not conformant with WebSocket: {error.sent.reason}"
        return _Closed(PROTOCOL_BROKEN, text, error.sent.code)
    return _Closed(LOST, "connection lost without a close frame", None)


assert FRAME_BYTES * BYTE_US == FRAME_US
