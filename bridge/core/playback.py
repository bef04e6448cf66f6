"""The ledger: what was sent to Twilio, what came back, hence what the caller heard.

Positions are bytes of mu-law since the stream began (8 to the ms), times of Twilio are
ms of its own media clock, `now` is seconds of ours. docs/playback.md tells the method;
this module only counts: what follows from it is decided in conversation.py.
"""

import math
from collections import deque
from dataclasses import dataclass

from bridge.audio.g711 import BYTES_PER_MS

MARK_BYTES = 200 * BYTES_PER_MS
"""At most so much audio between two marks: after a stall inside of it, less than this
is judged by a clock that did not see the stall."""

PIECE_BYTES = 1599
"""A longer delta is cut here: the largest piece under MARK_BYTES that base64 can be
cut at (a multiple of 3)."""

LOW_SECONDS = 0.12
"""While we believe that less than this is queued, jitter may have emptied the queue
unseen: audio goes out in small pieces then, each with its mark ..."""

LOW_PIECE_BYTES = 318
"""... of 40 ms ..."""

START_PIECE_BYTES = 159
"""... and of 20 ms where playing begins: the mark that pins the start may have crossed
the network sooner than the audio behind it, and only the next mark will tell."""

FRAME_MS = 20
"""Twilio's clock reaches us in frames: between two of them we do not see it move."""

CLEARLY_EARLY_MS = 45
"""A mark that came back so long before it was due was flushed; one that is nearer may
have been played: both times are known to a frame only, and a Twilio that plays in whole
frames echoes a mark up to a frame late."""

STALE_SECONDS = 0.25
"""Frames come 50 a second, and in order with the marks: a mark that comes so long after
the last frame overtook none, frames are missing, and only then our clock stands in.
Longer than the jitter that may lie between a frame and the mark behind it."""

RESTART_MS = 10_000
"""A timestamp so far back is no late frame: the one before was wrong, or the clock has
begun anew (caller_audio.MAX_GAP_MS)."""

QUICKEST_SECONDS = 10.0
"""How long the quickest frame is remembered: two clocks drift apart by less than a
millisecond in that time."""

MAX_PENDING_MARKS = 4096
"""Ten minutes of audio, which is all that Twilio buffers (error 31931)."""

MAX_SPANS = 4096
"""Of audio of one item and then another's. Items come one after the other; a model that
mixes them has its answer stopped."""

Key = tuple[str, int]
"""(item id, content index): what the model can be told to truncate."""


@dataclass(frozen=True, slots=True)
class Window:
    """A moment of the media clock, known to lie in [low, high) ms."""

    low: float
    high: float

    @property
    def latest(self) -> float:
        """The moment to reckon with: as a rule a message is as quick as the quickest
        frame, so its moment is the last that it can be. Moments that are compared are
        all read so, and what they have in common cancels out."""
        return self.high

    def earlier(self, ms: float) -> "Window":
        return Window(self.low - ms, self.high - ms)

    def intersect(self, other: "Window") -> "Window | None":
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Window(low, high) if low < high else None


class MediaClock:
    """Twilio's own clock, read from the timestamps of the caller's frames."""

    __slots__ = (
        "_end_ms",
        "_last_frame_at",
        "_offset_ms",
        "_previous_offset_ms",
        "_span_began",
    )

    def __init__(self, now: float) -> None:
        self._end_ms = 0.0
        self._last_frame_at = now
        self._span_began = now
        self._offset_ms = self._previous_offset_ms = math.inf
        """How far our clock is ahead of Twilio's, at least: of the fastest frame in
        this span of QUICKEST_SECONDS, and in the one before."""

    def frame(self, timestamp_ms: int, duration_ms: float, now: float) -> None:
        end_ms = timestamp_ms + duration_ms
        if end_ms < self._end_ms - RESTART_MS:
            # This is another clock than before.
            self._offset_ms = self._previous_offset_ms = math.inf
            self._end_ms = end_ms
        self._end_ms = max(self._end_ms, end_ms)
        self._last_frame_at = now
        if now - self._span_began > QUICKEST_SECONDS:
            self._previous_offset_ms, self._offset_ms = self._offset_ms, math.inf
            self._span_began = now
        self._offset_ms = min(self._offset_ms, 1000 * now - self._end_ms)

    def read(self, now: float) -> Window:
        """Twilio's time at which what arrives now was sent."""
        silent = now - self._last_frame_at
        low = self._end_ms + (1000 * silent if silent > STALE_SECONDS else 0.0)
        offset_ms = min(self._offset_ms, self._previous_offset_ms)
        if math.isinf(offset_ms):
            return Window(low, low + FRAME_MS)
        # Nothing crosses the network faster than the quickest frame did.
        latest = max(low, 1000 * now - offset_ms) + 1.0
        return Window(low, min(low + FRAME_MS, latest))

    def guess(self, now: float) -> float:
        """Twilio's time as our clock would carry it on from the last frame."""
        return self._end_ms + 1000 * (now - self._last_frame_at)


@dataclass(slots=True)
class SentMark:
    name: str
    position: int
    sent_at: float
    starts: bool
    """Nothing was queued before it: it is echoed at once, and pins a new start."""
    fence: bool = False


@dataclass(slots=True)
class Span:
    """Consecutive audio of one item in the stream, not yet known to be played."""

    key: Key
    start: int
    end: int


@dataclass(slots=True)
class Tally:
    """Bytes of one item: sent to Twilio, known to be heard."""

    sent: int = 0
    heard: int = 0


class Playback:
    """What lies at Twilio, and how far it has been played.

    `echoed` must be given every mark that comes back, `clock` every frame.
    """

    def __init__(self, now: float) -> None:
        self.clock = MediaClock(now)
        self.sent = 0
        self.played = 0
        """Everything before is known: it was played, or cleared."""
        self.round_trip = math.inf
        """Seconds, the shortest seen."""
        self._marks: deque[SentMark] = deque(maxlen=MAX_PENDING_MARKS)
        self._spans: deque[Span] = deque()
        self._tallies: dict[Key, Tally] = {}
        self._origin: Window | None = None
        """When byte 0 would have begun, had all played without a pause."""
        self._flushed: Window | None = None
        """When the clear that is under way took effect, by a mark that it flushed."""
        self._serial = 0
        self._last_mark = 0
        self._last_starts = False
        self._queue_ends = -math.inf
        """When the queue at Twilio runs dry, on our clock: a guess."""

    # --- what we send ---

    def plan(self, key: Key, size: int, now: float) -> list[tuple[str | None, int]]:
        """Books `size` bytes of an item; answers how to send them: (mark, bytes)s.

        A mark is the name to send *before* those bytes. It says when they began; one
        behind would be blind for a pause between it and what follows.
        """
        pieces = []
        while size > 0:
            dry = now >= self._queue_ends
            low = now > self._queue_ends - LOW_SECONDS
            take = min(size, _piece(size, dry=dry, low=low))
            mark = self._mark_before(take, now, dry=dry, low=low)
            self._book(key, take, now)
            pieces.append((mark, take))
            size -= take
        return pieces

    def end_mark(self, now: float) -> str | None:
        """The mark to send behind an item's last byte, if none is there yet."""
        if self._last_mark == self.sent:
            return None
        return self._new_mark(now, starts=False)

    def fence(self, now: float) -> str:
        """The mark to send right behind a `clear`: its echo is the clear's moment."""
        name = self._new_mark(now, starts=True)
        self._marks[-1].fence = True
        self._queue_ends = now
        return name

    # --- what comes back ---

    def echoed(self, name: str, now: float) -> SentMark | None:
        """A mark came back: `played` moves on. None if we sent no such mark."""
        # Echoes keep the order of the marks, so one that was skipped is lost.
        if all(mark.name != name for mark in self._marks):
            return None
        while (mark := self._marks.popleft()).name != name:
            pass
        moment = self.clock.read(now)
        if mark.starts or mark.fence:
            self.round_trip = min(self.round_trip, now - mark.sent_at)
        if mark.fence:
            cut = self._flushed or moment
            self._cut_at(mark.position, self._position(cut.latest))
        elif mark.position >= self.played and self._was_played(mark, moment):
            self._pin(mark, moment)
            self._advance(mark.position)
        return mark

    def settle_late_fence(self, fence: str, sent_at: float) -> None:
        """The fence did not come back in time: settles by our clock what it would."""
        for mark in self._marks:
            if mark.name == fence:
                trip = 0.0 if math.isinf(self.round_trip) else self.round_trip
                moment = self.clock.guess(sent_at) + 1000 * trip
                self._cut_at(mark.position, self._position(moment))

    def stop(self, now: float) -> None:
        """The stream has ended: what was played until now is all that was heard."""
        self._advance(self._position(self.clock.read(now).latest))

    # --- what is known ---

    @property
    def idle(self) -> bool:
        """All that was sent is known to be played, or cleared."""
        return self.played >= self.sent

    @property
    def queue_ends(self) -> float:
        """When the queue at Twilio runs dry, on our clock: a guess."""
        return self._queue_ends

    def is_full(self, seconds: float, now: float) -> bool:
        """Twilio has as much to play as it may have, which is `seconds`."""
        return self._queue_ends - now > seconds or len(self._spans) >= MAX_SPANS

    def heard_by(self, now: float) -> int:
        """Bytes of the stream that were played until now, as well as is known."""
        return self._position(self.clock.guess(now))

    def ahead(self, key: Key, position: int) -> int:
        """Bytes of this item that are sent and lie behind `position`."""
        spans = (span for span in self._spans if span.key == key)
        return sum(
            span.end - max(span.start, min(position, span.end)) for span in spans
        )

    def audible(self, now: float) -> Key | None:
        """The item that the caller hears, as well as our clock can tell."""
        position = self._position(self.clock.guess(now))
        for span in self._spans:
            if position < span.end:
                return span.key
        return self._spans[-1].key if self._spans else None

    def has(self, key: Key) -> bool:
        """Some of it is not known to be played, or cleared."""
        return any(span.key == key for span in self._spans)

    def tally(self, key: Key) -> Tally:
        return self._tallies.get(key, Tally())

    def forget(self, key: Key) -> None:
        """The item is settled; nothing more of it will be sent."""
        self._tallies.pop(key, None)

    # --- the counting ---

    def _mark_before(
        self, take: int, now: float, *, dry: bool, low: bool
    ) -> str | None:
        since = self.sent - self._last_mark
        enough = START_PIECE_BYTES if self._last_starts else LOW_PIECE_BYTES
        if dry or since + take > MARK_BYTES or (low and since >= enough):
            return self._new_mark(now, starts=dry)
        return None

    def _new_mark(self, now: float, *, starts: bool) -> str:
        self._serial += 1
        name = f"m{self._serial}"
        self._marks.append(SentMark(name, self.sent, now, starts))
        self._last_mark = self.sent
        self._last_starts = starts
        return name

    def _book(self, key: Key, size: int, now: float) -> None:
        start, self.sent = self.sent, self.sent + size
        if self._spans and self._spans[-1].key == key:
            self._spans[-1].end = self.sent
        else:
            self._spans.append(Span(key, start, self.sent))
        self._tallies.setdefault(key, Tally()).sent += size
        seconds = size / BYTES_PER_MS / 1000
        self._queue_ends = max(self._queue_ends, now) + seconds

    def _was_played(self, mark: SentMark, moment: Window) -> bool:
        """Played, not flushed: only while a clear is under way may it be the latter."""
        if not any(pending.fence for pending in self._marks):
            return True
        if self._flushed:
            return False  # all behind a flushed mark are flushed with it
        if self._origin is None:
            return mark.starts
        due = self._origin.latest + mark.position / BYTES_PER_MS
        if due > moment.latest + CLEARLY_EARLY_MS:
            # It came back at the very moment of the clear, and crossed no network after
            # it as the fence did.
            self._flushed = moment
        return due <= moment.latest

    def _pin(self, mark: SentMark, moment: Window) -> None:
        origin = moment.earlier(mark.position / BYTES_PER_MS)
        narrowed = self._origin.intersect(origin) if self._origin else None
        # Each mark gives a window of one frame; together they narrow it, until playing
        # paused (a start, or windows that do not meet) and all before is worth nothing.
        self._origin = origin if mark.starts or narrowed is None else narrowed

    def _position(self, moment_ms: float) -> int:
        """What is played at that time of Twilio's, within what is known and sent."""
        if self._origin is None:
            return self.played
        position = int((moment_ms - self._origin.latest) * BYTES_PER_MS)
        return max(self.played, min(position, self.sent))

    def _cut_at(self, fence: int, position: int) -> None:
        """A clear took effect at `position`: what lay between it and the fence is gone,
        and with it the old start; what follows the fence begins anew."""
        if self.played < fence:
            self._advance(min(position, fence))
            while self._spans and self._spans[0].start < fence:
                span = self._spans[0]
                span.start = fence
                if span.end > fence:
                    break
                self._spans.popleft()
            self.played = fence
        self._origin = None
        self._flushed = None

    def _advance(self, position: int) -> None:
        while self._spans and self._spans[0].start < position:
            span = self._spans[0]
            end = min(span.end, position)
            tally = self._tallies.get(span.key)
            if tally is not None:
                tally.heard += end - span.start
            span.start = end
            if span.start == span.end:
                self._spans.popleft()
        self.played = position


def _piece(size: int, *, dry: bool, low: bool) -> int:
    """How much of a delta goes out before the next mark may be due."""
    if dry:
        return START_PIECE_BYTES
    if low:
        return LOW_PIECE_BYTES
    return MARK_BYTES if size <= MARK_BYTES else PIECE_BYTES
