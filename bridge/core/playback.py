"""Ledger of the audio sent to Twilio: what was sent, what came back, hence what was
heard.

Positions are bytes of mu-law since the stream began (8 per ms), Twilio's times are ms
of its media clock, `now` is seconds of the bridge's clock. Method: docs/playback.md.
This module only counts; agent_speech.py decides what follows.
"""

import math
from collections import deque
from collections.abc import Sequence

import msgspec

from bridge.audio.g711 import BYTES_PER_MS

MARK_BYTES = 200 * BYTES_PER_MS
"""Most audio between two marks. A stall of playback is noticed only at the next mark,
so positions may be wrong for at most this much audio."""

PIECE_BYTES = 1584
"""A longer delta is cut into pieces of this size: the largest under MARK_BYTES of whole
milliseconds at which base64 can be cut (a multiple of 3)."""

LOW_SECONDS = 0.12
"""If less than this is queued by our estimate, jitter may already have emptied the
queue: audio goes out in small pieces, each with its mark."""

LOW_PIECE_BYTES = 318
"""Piece size while the queue is low: 40 ms."""

START_PIECE_BYTES = 159
"""Piece size where playback starts: 20 ms. The mark that dates the start may have
crossed the network faster than the audio after it; only the next mark shows that."""

FRAME_MS = 20
"""We read Twilio's clock from each frame, so every time is known to one frame."""

CLEARLY_EARLY_MS = 45
"""A mark that returns this long before it was due was flushed. A mark that is less
early may have been played: both times are known to one frame only, and if Twilio plays
whole frames, its echo is up to a frame late."""

STALE_SECONDS = 0.25
"""Frames come 50 a second, in order with the marks: if a mark comes this long after the
last frame, either Twilio sends none, or the network had stopped. Longer than the jitter
between a frame and the mark behind it."""

TOGETHER_MS = 60
"""A mark and the fence that come back within this may both be of the clear: jitter
parts a clear and its fence by less."""

STOPPED_MS = 1000
"""How much longer a network may hold a clear that is late, when the model must be told
before the fence is back."""

LONGEST_HELD_MS = 2500
"""Longest time for which a network holds a message and all behind it: TCP sends a lost
packet again after 0.2 to 1 s, and then after twice that time."""

MARGIN_MS = 100
"""The same where nothing shows that the clear is late: more than the jitter."""

RESTART_MS = 10_000
"""A timestamp this far back is not a late frame: the earlier timestamp was wrong, or
Twilio's clock started again (caller_audio.MAX_GAP_MS)."""

QUICKEST_SECONDS = 10.0
"""How long the quickest frame is remembered: two clocks drift apart by less than 1 ms
in that time."""

MAX_PENDING_MARKS = 4096
"""Enough for ten minutes of audio, which is all that Twilio buffers (error 31931)."""

MAX_SPANS = 4096
"""Most spans in the queue: changes from one item to another. Items normally come one
after the other; if a model mixes them, its response is stopped."""

Key = tuple[str, int]
"""(item id, content index): the unit that the model can truncate."""


class Window(msgspec.Struct, frozen=True):
    """A moment of the media clock, known to lie in [low, high) ms."""

    low: float
    high: float

    @property
    def is_wide(self) -> bool:
        """No frame shows when it was: the network had stopped, or Twilio sends none."""
        return self.high - self.low > FRAME_MS + 1

    @property
    def latest(self) -> float:
        """The moment to calculate with. As a rule a message is as quick as the quickest
        frame, so the latest possible moment is the right one. All moments that are
        compared are read in this way, so their common error cancels out."""
        return self.high

    def earlier(self, ms: float) -> "Window":
        return Window(self.low - ms, self.high - ms)

    def intersect(self, other: "Window") -> "Window | None":
        """None: the windows do not overlap."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Window(low, high) if low < high else None


class MediaClock:
    """Twilio's media clock, read from the timestamps of the caller's frames."""

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
        """Our clock minus Twilio's, measured with the quickest frame (the smallest
        value): in this period of QUICKEST_SECONDS, and in the period before."""

    def frame(self, timestamp_ms: int, duration_ms: float, now: float) -> None:
        """A frame of the caller arrived, with its timestamp and duration on Twilio's
        clock."""
        end_ms = timestamp_ms + duration_ms
        if end_ms < self._end_ms - RESTART_MS:
            # The clock started again.
            self._offset_ms = self._previous_offset_ms = math.inf
            self._end_ms = end_ms
        # Not by `max` and `min`: this runs for each frame.
        if end_ms > self._end_ms:
            self._end_ms = end_ms
        self._last_frame_at = now
        if now - self._span_began > QUICKEST_SECONDS:
            self._previous_offset_ms, self._offset_ms = self._offset_ms, math.inf
            self._span_began = now
        offset_ms = 1000 * now - self._end_ms
        if offset_ms < self._offset_ms:
            self._offset_ms = offset_ms

    def read(self, now: float) -> Window:
        """Twilio's time (ms) at which a message that arrives now was sent."""
        low = self._end_ms
        silent = now - self._last_frame_at
        if silent > STALE_SECONDS:
            # It was sent at once and then held by the network, or only now, and Twilio
            # sends no frames: the window has both.
            return Window(low, max(low + 1000 * silent, self.guess(now)) + FRAME_MS)
        # Nothing crosses the network faster than the quickest frame did.
        offset_ms = self._offset_ms
        if offset_ms > self._previous_offset_ms:
            offset_ms = self._previous_offset_ms
        latest = 1000 * now - offset_ms + 1.0
        if latest >= low + FRAME_MS or offset_ms == math.inf:  # inf: no frame yet
            latest = low + FRAME_MS
        return Window(low, latest if latest > low + 1.0 else low + 1.0)

    def guess(self, now: float) -> float:
        """Twilio's time (ms) at which a message was sent that arrives at `now` and is
        as quick as the quickest frame."""
        offset = self._offset
        if offset == math.inf:
            return self._end_ms + 1000 * (now - self._last_frame_at)
        return 1000 * now - offset

    @property
    def end_ms(self) -> float:
        """Twilio's time (ms) at the end of the last frame."""
        return self._end_ms

    @property
    def _offset(self) -> float:
        return min(self._offset_ms, self._previous_offset_ms)


class SentMark(msgspec.Struct):
    name: str
    position: int
    sent_at: float
    starts: bool
    """Nothing was queued before the mark: Twilio echoes it at once, and the echo dates
    a new start of playback."""
    fence: bool = False


class Span(msgspec.Struct):
    """Consecutive audio of one item in the stream that may not have been played yet."""

    key: Key
    start: int
    end: int


class PlayedRun(msgspec.Struct, frozen=True):
    """Audio of one item that was played without a pause. `at_ms`: when its first byte
    was played, on Twilio's media clock."""

    key: Key
    start: int
    end: int
    at_ms: float


class Tally(msgspec.Struct):
    """Bytes of one item: sent to Twilio, and known to be heard."""

    sent: int = 0
    heard: int = 0


class Playback:
    """The audio of one stream: what is queued at Twilio, and how far it has been
    played.

    `echoed` must be given every mark that comes back, `clock.frame` every frame.

    Invariants: played <= sent, and neither decreases. Each byte before `played` was
    either played, and is counted as heard in its item's tally, or cleared.
    """

    def __init__(self, now: float) -> None:
        self.clock = MediaClock(now)
        self.sent = 0
        self.played = 0
        """Position up to which the fate of each byte is known: played, or cleared."""
        self.runs: list[PlayedRun] | None = None
        """Gets what was played, if it is a list: for a picture of the call."""
        self.round_trip = math.inf
        """The shortest round trip of a mark seen so far, in seconds."""
        self._marks: deque[SentMark] = deque(maxlen=MAX_PENDING_MARKS)
        self._fences = 0
        """Fences that have not come back. (More, if one was dropped from `_marks`.)"""
        self._spans: deque[Span] = deque()
        self._tallies: dict[Key, Tally] = {}
        self._origin: Window | None = None
        """When byte 0 would have begun, had all bytes been played without a pause."""
        self._undecided: list[tuple[SentMark, Window]] = []
        """Marks that came back while a fence has not: played, or flushed. Only the
        marks behind them, and the fence, show which."""
        self._played_mark_sent_at = -math.inf
        """When the last mark was sent that was played."""
        self._serial = 0
        self._last_mark = 0
        self._last_starts = False
        self._queue_ends = -math.inf
        """When Twilio's queue runs dry, by our clock (an estimate)."""

    # --- what we send ---

    def plan(self, key: Key, size: int, now: float) -> list[tuple[str | None, int]]:
        """Counts `size` bytes of an item as sent; returns the pieces to send as (mark,
        bytes).

        The mark, if any, must be sent *before* its piece and tells when the piece
        began. A mark after the piece would not show a pause before the next piece.
        """
        pieces = []
        while size > 0:
            dry = now >= self._queue_ends
            low = now > self._queue_ends - LOW_SECONDS
            take = min(size, _piece(size, dry=dry, low=low))
            mark = self._mark_before(take, now, dry=dry, low=low)
            self._count_sent(key, take, now)
            pieces.append((mark, take))
            size -= take
        return pieces

    def end_mark(self, now: float) -> str | None:
        """The mark to send behind an item's last byte; None if a mark was just sent
        there."""
        if self._last_mark == self.sent:
            return None
        return self._new_mark(now, starts=False)

    def probe(self, now: float) -> str:
        """A mark without audio, for a stream that sends nothing."""
        return self._new_mark(now, starts=now >= self._queue_ends)

    def fence(self, now: float) -> str:
        """The mark to send right behind a `clear`: its echo dates the clear."""
        name = self._new_mark(now, starts=True)
        self._marks[-1].fence = True
        self._fences += 1
        self._queue_ends = now
        return name

    # --- what comes back ---

    def echoed(self, name: str, now: float) -> SentMark | None:
        """A mark came back: moves `played` on. None: no such mark was sent."""
        # Echoes keep the order of the marks, so the echo of a skipped mark is lost.
        if all(mark.name != name for mark in self._marks):
            return None
        while (mark := self._marks.popleft()).name != name:
            self._fences -= mark.fence
        self._fences -= mark.fence
        moment = self.clock.read(now)
        if mark.starts or mark.fence:
            if moment.is_wide:
                # Twilio echoed it at once, so it was sent a round trip after our mark.
                sent = max(moment.low, self._echoed_at_once(mark.sent_at))
                moment = Window(moment.low, min(sent + FRAME_MS, moment.high))
            else:
                self.round_trip = min(self.round_trip, now - mark.sent_at)
        if mark.fence:
            self._settle_clear(mark, moment)
        elif self._fences and self._may_be_flushed(moment):
            self._undecided.append((mark, moment))
        elif mark.position >= self.played:
            self._was_played(mark, moment)
        return mark

    def settle_late_fence(
        self, fence: str, sent_at: float, ended_at: float = math.inf
    ) -> None:
        """The fence did not come back in time: settles its clear by our own clock.
        `ended_at`: when the stream ended, perhaps before the clear reached Twilio."""
        for mark in self._marks:
            if mark.name == fence:
                moment = self._cleared_at(sent_at)
                if not math.isinf(ended_at):
                    if self._origin is None and not self._undecided:
                        # Nothing shows that the audio has arrived.
                        self._cut_at(mark.position, self.played)
                        continue
                    moment = min(moment, self.clock.read(ended_at).latest)
                self._settle_clear(mark, Window(moment - 1, moment))

    def stop(self, now: float) -> None:
        """The stream has ended: the caller heard only what was played until now. That
        is not beyond the next mark, which would have come back: a broken stream is
        noticed late, and what was sent meanwhile was not played."""
        if self._origin is None:
            return  # nothing shows that the rest has begun
        position = self._position(self.clock.read(now).latest)
        ahead = (it.position for it in self._marks if it.position > self.played)
        self._advance(min(position, next(ahead, position)))

    # --- what is known ---

    @property
    def idle(self) -> bool:
        """All that was sent was played, or cleared."""
        return self.played >= self.sent

    @property
    def queue_ends(self) -> float:
        """When Twilio's queue runs dry, by our clock (an estimate)."""
        return self._queue_ends

    def is_full(self, seconds: float, now: float) -> bool:
        """Twilio's queue holds more than `seconds` of audio, or too many spans."""
        return self._queue_ends - now > seconds or len(self._spans) >= MAX_SPANS

    def heard_by(self, now: float) -> int:
        """Position that is played at `now`, by our clock (an estimate)."""
        return self._position(self.clock.guess(now))

    def cleared_by(self, sent_at: float) -> int:
        """Position at which the clear sent at `sent_at`, whose fence is not back, takes
        effect (an estimate)."""
        return self._position(self._cleared_at(sent_at))

    @property
    def is_dated(self) -> bool:
        """A mark has shown when the audio that is playing began."""
        return self._origin is not None

    def cleared_before(self, sent_at: float) -> int:
        """Position before which that clear takes effect: the estimate, and what a
        network that stops may add."""
        due = self._echoed_at_once(sent_at)
        stopped = math.isinf(self.round_trip) or self.clock.end_ms > due + TOGETHER_MS
        more = STOPPED_MS if stopped else MARGIN_MS
        return self._position(self._cleared_at(sent_at) + more)

    def ahead(self, key: Key, position: int) -> int:
        """Bytes of this item that were sent and lie behind `position`."""
        spans = (span for span in self._spans if span.key == key)
        return sum(
            span.end - max(span.start, min(position, span.end)) for span in spans
        )

    def audible(self, now: float) -> Key | None:
        """The item that the caller hears now, by our clock (an estimate)."""
        position = self._position(self.clock.guess(now))
        for span in self._spans:
            if position < span.end:
                return span.key
        return self._spans[-1].key if self._spans else None

    def has(self, key: Key) -> bool:
        """Some audio of this item may still be queued at Twilio."""
        return any(span.key == key for span in self._spans)

    def tally(self, key: Key) -> Tally:
        """What is known of this item; zeros if nothing is."""
        return self._tallies.get(key, Tally())

    def forget(self, key: Key) -> None:
        """The item is settled; no more of it will be sent."""
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

    def _count_sent(self, key: Key, size: int, now: float) -> None:
        start, self.sent = self.sent, self.sent + size
        if self._spans and self._spans[-1].key == key:
            self._spans[-1].end = self.sent
        else:
            self._spans.append(Span(key, start, self.sent))
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally()
        tally.sent += size
        seconds = size / BYTES_PER_MS / 1000
        self._queue_ends = max(self._queue_ends, now) + seconds

    def _may_be_flushed(self, moment: Window) -> bool:
        """A clear whose fence is not back may have taken effect before this moment."""
        sent = (self.clock.guess(it.sent_at) for it in self._marks if it.fence)
        return moment.latest + CLEARLY_EARLY_MS > next(sent, math.inf)

    def _echoed_at_once(self, sent_at: float) -> float:
        """Twilio's time (ms) at which a message sent at `sent_at` arrives there, if
        both ways are quick."""
        trip = 0.0 if self.round_trip == math.inf else self.round_trip
        return self.clock.guess(sent_at) + 1000 * trip

    def _cleared_at(self, sent_at: float) -> float:
        """Twilio's time (ms) at which a clear took effect whose fence is not back."""
        # The fence would have come before the last frame, had the clear been earlier.
        return max(self._echoed_at_once(sent_at), self.clock.end_ms)

    def _settle_clear(self, fence: SentMark, moment: Window) -> None:
        """A clear took effect before `moment`, when its fence was sent: decides which
        marks were played, and cuts the rest."""
        echoes, self._undecided = self._undecided, []
        held = moment.latest > self._echoed_at_once(fence.sent_at) + TOGETHER_MS
        cut_at: int | None = None
        for number, (mark, echoed) in enumerate(echoes):
            if mark.position < self.played:
                continue
            if self._origin is None:
                if not mark.starts:
                    break
                due = echoed.low
            else:
                due = self._origin.latest + mark.position / BYTES_PER_MS
            if due > echoed.latest + CLEARLY_EARLY_MS:
                # Twilio returns a flushed mark at the moment of the clear itself, but
                # the fence only after the fence has crossed the network, too.
                moment = moment if echoed.is_wide else echoed
                break
            behind = echoes[number + 1 :]
            together = _came_together(mark, echoed, behind, moment)
            late = echoed.low > due + CLEARLY_EARLY_MS and (held or not mark.starts)
            if late and together:
                # Playing had paused before the mark. Nothing shows where, nor whether
                # it has gone on since.
                cut_at = self._middle(mark.position)
                break
            played_at = min(echoed.latest, echoed.low + FRAME_MS)
            if due <= played_at + (0 if together else FRAME_MS):
                self._was_played(mark, echoed)
        if cut_at is None:
            cut_at = min(self._position(moment.latest), fence.position)
            later = (it.position for it, _ in echoes if it.position > self.played)
            if held and self._may_be_held(moment):
                # The network may have held the piece behind the last mark, too.
                end = max(next(later, fence.position), cut_at)
                cut_at = min(cut_at, self._middle(end))
        self._cut_at(fence.position, cut_at)

    def _may_be_held(self, moment: Window) -> bool:
        """The piece behind the last mark that was played was not sent long before this
        moment, at which the network let everything through that it had held."""
        arrived = self._echoed_at_once(self._played_mark_sent_at)
        return moment.latest < arrived + LONGEST_HELD_MS

    def _middle(self, position: int) -> int:
        """The cut, if it may be anywhere from `played` to `position`: the largest error
        is the smallest then, also in the whole milliseconds that the model is told."""
        return (self.played + position + BYTES_PER_MS) // 2

    def _was_played(self, mark: SentMark, moment: Window) -> None:
        self._pin(mark, moment)
        self._advance(mark.position)
        self._played_mark_sent_at = mark.sent_at

    def _pin(self, mark: SentMark, moment: Window) -> None:
        """A mark was played: computes from its moment when byte 0 would have begun."""
        origin = moment.earlier(mark.position / BYTES_PER_MS)
        narrowed = self._origin.intersect(origin) if self._origin else None
        # Each mark gives a window of one frame; intersecting them narrows it. If
        # playing paused (a start mark, or windows that do not overlap), the earlier
        # windows no longer hold.
        self._origin = origin if mark.starts or narrowed is None else narrowed

    def _position(self, moment_ms: float) -> int:
        """Position played at `moment_ms` of Twilio's clock: at least `played`, at most
        `sent`."""
        origin = self._origin or self._expected_origin()
        if origin is None:
            return self.played
        position = int((moment_ms - origin.latest) * BYTES_PER_MS)
        return max(self.played, min(position, self.sent))

    def _played_at(self, position: int) -> float:
        """When a byte was played, in ms of Twilio's clock."""
        origin = self._origin or self._expected_origin()
        return origin.latest + position / BYTES_PER_MS if origin else self.clock.end_ms

    def _expected_origin(self) -> Window | None:
        """The origin, if the start mark that has not come back, or is not decided, was
        echoed at once; None: none was sent since the last clear."""
        back = [it for it in self._undecided if it[0].starts]
        if back and back[0][0].position >= self.played:
            mark, moment = back[0]
            return moment.earlier(mark.position / BYTES_PER_MS)
        sent = next((it for it in self._marks if it.position >= self.played), None)
        if sent is None or sent.fence or not sent.starts:
            return None
        moment_ms = self._echoed_at_once(sent.sent_at)
        window = Window(moment_ms, moment_ms)
        return window.earlier(sent.position / BYTES_PER_MS)

    def _cut_at(self, fence: int, position: int) -> None:
        """A clear took effect at `position`: the audio from there to the fence is gone.
        The origin no longer holds: audio after the fence starts at a new one."""
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

    def _advance(self, position: int) -> None:
        """Everything before `position` was played: counts it as heard."""
        while self._spans and self._spans[0].start < position:
            span = self._spans[0]
            end = min(span.end, position)
            if self.runs is not None:
                at_ms = self._played_at(span.start)
                self.runs.append(PlayedRun(span.key, span.start, end, at_ms))
            tally = self._tallies.get(span.key)
            if tally is not None:
                tally.heard += end - span.start
            span.start = end
            if span.start == span.end:
                self._spans.popleft()
        self.played = position


def _came_together(
    mark: SentMark,
    echoed: Window,
    behind: Sequence[tuple[SentMark, Window]],
    fence: Window,
) -> bool:
    """The mark came back together with the fence, or with a mark so far behind it that
    not both were played."""
    if fence.latest - echoed.latest <= TOGETHER_MS:
        return True
    for other, moment in behind:
        apart = moment.latest - echoed.latest
        audio_ms = (other.position - mark.position) / BYTES_PER_MS
        if apart <= FRAME_MS and audio_ms > apart + CLEARLY_EARLY_MS:
            return True
    return False


def _piece(size: int, *, dry: bool, low: bool) -> int:
    """Bytes of a delta that are sent before the next mark may be due."""
    if dry:
        return START_PIECE_BYTES
    if low:
        return LOW_PIECE_BYTES
    return MARK_BYTES if size <= MARK_BYTES else PIECE_BYTES
