"""Twilio's playout buffer: plays the bridge's audio at 1x, exact to the byte.

Pure: no clock, no asyncio; the caller passes `now` (seconds, never going back). Audio
is mu-law at 8 kHz: a byte lasts 125 microseconds, so time is kept in whole microseconds
and every position is exact. Shares no code with the bridge's own playback ledger.
"""

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

BYTE_US = 125
FRAME_BYTES = 160
FRAME_US = FRAME_BYTES * BYTE_US
BUFFER_LIMIT = 10 * 60 * 8000  # ten minutes; more is refused (warning 31931)
SILENCE = 0xFF


def micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


@dataclass(slots=True)
class Run:
    """Audio played without a pause.

    `received_from`: bytes accepted before the run's first byte, flushed bytes included:
    the run's position in what was sent. `played_from`: bytes played before the run.
    """

    start_us: int
    received_from: int
    played_from: int
    audio: bytearray = field(default_factory=bytearray)

    @property
    def start(self) -> float:
        return self.start_us / 1_000_000

    @property
    def received_to(self) -> int:
        return self.received_from + len(self.audio)

    @property
    def end_us(self) -> int:
        return self.start_us + len(self.audio) * BYTE_US

    @property
    def end(self) -> float:
        return self.end_us / 1_000_000


@dataclass(frozen=True, slots=True)
class AppliedClear:
    """A clear when it took effect. `position`: bytes of the stream played by then."""

    at: float
    flushed: int
    position: int


@dataclass(frozen=True, slots=True)
class MarkEcho:
    """An echoed mark. `position`: bytes accepted before it. `played`: all of them were
    played."""

    name: str
    arrived_at: float
    echoed_at: float
    played: bool
    position: int


class PlayedAudio:
    """What the caller heard of a stream: runs in order of time.

    The last run may reach into the future: buffered audio will be played unless a clear
    cuts it. Therefore every query takes a time.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def position(self, now: float) -> int:
        """Bytes played up to `now`, which may be in the past."""
        return self._position_us(micros(now))

    def audio(self, until: float | None = None) -> bytes:
        """The audio played up to `until` (None: all of it), without the pauses."""
        whole = b"".join(bytes(run.audio) for run in self.runs)
        return whole if until is None else whole[: self.position(until)]

    def timeline(self, start: float, end: float) -> bytearray:
        """Mu-law from `start` to `end`: what was heard, and silence where nothing
        played."""
        start_us, end_us = micros(start), micros(end)
        line = bytearray([SILENCE]) * max(0, (end_us - start_us) // BYTE_US)
        for run in self.runs:
            at = (run.start_us - start_us) // BYTE_US
            piece = run.audio[max(0, -at) : max(0, len(line) - at)]
            at = max(0, at)
            line[at : at + len(piece)] = piece
        return line

    def _position_us(self, now_us: int) -> int:
        index = bisect_right(self.runs, now_us, key=lambda run: run.start_us)
        if not index:
            return 0
        last = self.runs[index - 1]
        played = min(len(last.audio), (now_us - last.start_us) // BYTE_US)
        return last.played_from + played

    def add(self, at_us: int, received_from: int, audio: bytes) -> None:
        """Append audio that plays from `at_us`; the last run goes on if it ends
        there."""
        last = self.runs[-1] if self.runs else None
        if last is None:
            self.runs.append(Run(at_us, received_from, 0, bytearray(audio)))
        elif last.end_us == at_us and last.received_to == received_from:
            last.audio += audio
        else:
            played = last.played_from + len(last.audio)
            self.runs.append(Run(at_us, received_from, played, bytearray(audio)))

    def cut(self, at_us: int) -> None:
        """Remove the audio that would have played after `at_us`."""
        if self.runs:
            last = self.runs[-1]
            del last.audio[max(0, (at_us - last.start_us) // BYTE_US) :]
            if not last.audio:
                self.runs.pop()


class _Marks:
    """The marks that wait at Twilio, oldest first; their due times never decrease."""

    def __init__(self) -> None:
        self.echoed: list[MarkEcho] = []
        self._pending: deque[tuple[str, int, int, int]] = deque()

    def add(self, name: str, arrived_us: int, due_us: int, position: int) -> None:
        if self._pending:
            due_us = max(due_us, self._pending[-1][2])
        self._pending.append((name, arrived_us, due_us, position))

    @property
    def next_due_us(self) -> int | None:
        return self._pending[0][2] if self._pending else None

    def due(self, now_us: int) -> list[str]:
        names = []
        while self._pending and self._pending[0][2] <= now_us:
            name, arrived, due, position = self._pending.popleft()
            self._echo(name, arrived, due, True, position)
            names.append(name)
        return names

    def flush(self, now_us: int, played: int) -> list[str]:
        """Echo all waiting marks; those at or before byte `played` count as played."""
        names = self.due(now_us)
        while self._pending:
            name, arrived, _, position = self._pending.popleft()
            self._echo(name, arrived, now_us, position <= played, position)
            names.append(name)
        return names

    def _echo(
        self, name: str, arrived: int, echoed: int, played: bool, position: int
    ) -> None:
        self.echoed.append(
            MarkEcho(name, arrived / 1e6, echoed / 1e6, played, position)
        )


class _Continuous:
    """A buffer played byte by byte, starting when audio arrives while it is empty."""

    def __init__(self, heard: PlayedAudio) -> None:
        self._heard = heard

    def advance(self, now_us: int, received: int) -> None:
        """Nothing to do: PlayedAudio already holds the future."""

    def feed(self, audio: bytes, received: int, now_us: int) -> None:
        self._heard.add(max(now_us, self.over_us()), received, audio)

    def waiting(self, now_us: int) -> int:
        """Bytes not yet played; the byte that plays now counts."""
        return max(0, -(-(self.over_us() - now_us) // BYTE_US))

    def over_us(self) -> int:
        """Time at which all buffered audio has been played."""
        return self._heard.runs[-1].end_us if self._heard.runs else 0

    def flush(self, now_us: int) -> int:
        flushed = self.waiting(now_us)
        self._heard.cut(now_us)
        return flushed


class _Framed:
    """A buffer played in whole 20 ms frames that begin only on a time grid of its own.

    A frame with less than 160 bytes is padded. Once begun, a frame is played to its
    end, even if a clear arrives.
    """

    def __init__(self, heard: PlayedAudio, phase_us: int) -> None:
        self._heard = heard
        self._phase_us = phase_us % FRAME_US
        self._bytes = bytearray()
        self._next_us = 0  # start of the next frame, if bytes wait
        self._ended_us = 0  # end of the last frame that began

    def advance(self, now_us: int, received: int) -> None:
        """Begin the frames that are due."""
        while self._bytes and self._next_us <= now_us:
            first = received - len(self._bytes)
            self._heard.add(self._next_us, first, bytes(self._bytes[:FRAME_BYTES]))
            del self._bytes[:FRAME_BYTES]
            self._next_us = self._ended_us = self._next_us + FRAME_US

    def feed(self, audio: bytes, received: int, now_us: int) -> None:
        if not self._bytes:
            grid_us = now_us + (self._phase_us - now_us) % FRAME_US
            self._next_us = max(grid_us, self._ended_us)
        self._bytes += audio

    def waiting(self, now_us: int) -> int:
        """Bytes not yet played; the rest of the frame that plays now counts."""
        sounding_us = self._heard.runs[-1].end_us - now_us if self._heard.runs else 0
        return len(self._bytes) + max(0, -(-sounding_us // BYTE_US))

    def over_us(self) -> int:
        """End of the last frame that is needed for the buffered bytes."""
        if not self._bytes:
            return self._ended_us
        return self._next_us - (-len(self._bytes) // FRAME_BYTES) * FRAME_US

    def flush(self, now_us: int) -> int:
        flushed = len(self._bytes)
        self._bytes.clear()
        return flushed


class Playout:
    """The playout of one stream: `media`, `mark`, `clear` go in; echoes and the audio
    that was really played come out.

    Always: received == played(now) + cleared + buffered(now). `refused` bytes arrived
    while ten minutes of audio waited; they do not count as received. With `phase`
    (seconds), audio plays in whole 20 ms frames on a time grid instead: a second,
    differently built Twilio, which echoes a mark when its frame has ended.
    """

    def __init__(self, phase: float | None = None) -> None:
        self.received = 0
        self.cleared = 0
        self.refused = 0
        self.heard = PlayedAudio()
        self.clears: list[AppliedClear] = []
        self._buffer = (
            _Continuous(self.heard)
            if phase is None
            else _Framed(self.heard, micros(phase))
        )
        self._marks = _Marks()
        self._echoes: list[str] = []  # due because of a clear
        self._now_us: int | None = None

    @property
    def marks(self) -> list[MarkEcho]:
        """All echoed marks, in order."""
        return self._marks.echoed

    @property
    def next_due(self) -> float | None:
        """Time at which the next echo is due, or None."""
        if self._echoes:
            return (self._now_us or 0) / 1e6
        due_us = self._marks.next_due_us
        return None if due_us is None else due_us / 1e6

    @property
    def over_at(self) -> float | None:
        """Time at which all audio received so far ends (or ended); None if there was
        none."""
        return self._buffer.over_us() / 1e6 if self.received else None

    def media(self, audio: bytes, now: float) -> bool:
        """Buffer a message's audio; False if it is refused (31931)."""
        now_us = self._advance(now)
        if self._buffer.waiting(now_us) + len(audio) > BUFFER_LIMIT:
            self.refused += len(audio)
            return False
        if audio:
            self._buffer.feed(audio, self.received, now_us)
            self.received += len(audio)
        return True

    def mark(self, name: str, now: float) -> None:
        """Echo the mark when all audio before it is played; at once if none waits."""
        now_us = self._advance(now)
        due_us = max(now_us, self._buffer.over_us())
        self._marks.add(name, now_us, due_us, self.received)

    def clear(self, now: float) -> int:
        """Empty the buffer and echo all waiting marks; returns the flushed bytes.

        A byte that is partly played counts as not played.
        """
        now_us = self._advance(now)
        flushed = self._buffer.flush(now_us)
        self.cleared += flushed
        # All earlier bytes were played, are playing or were flushed before.
        self._echoes += self._marks.flush(now_us, self.received - flushed)
        self.clears.append(AppliedClear(now_us / 1e6, flushed, self.played(now)))
        return flushed

    def due(self, now: float) -> list[str]:
        """The marks to echo now, in order; each is returned once."""
        now_us = self._advance(now)
        names = self._echoes + self._marks.due(now_us)
        self._echoes = []
        return names

    def end(self, now: float) -> int:
        """The stream is over. Returns the bytes that are lost; no mark is echoed."""
        now_us = self._advance(now)
        unheard = self.buffered(now)
        self._buffer.flush(now_us)
        self.heard.cut(now_us)
        self.cleared += unheard
        return unheard

    def played(self, now: float) -> int:
        """Bytes played up to `now`: exact for the present and for any past time."""
        if self._now_us is None or micros(now) > self._now_us:
            self._advance(now)
        return self.heard.position(now)

    def buffered(self, now: float) -> int:
        """Bytes that wait at `now`, the present time."""
        return self._buffer.waiting(self._advance(now))

    def _advance(self, now: float) -> int:
        now_us = micros(now)
        if self._now_us is not None and now_us < self._now_us:
            raise ValueError(f"time must not go back, but now is {now}")
        self._now_us = now_us
        self._buffer.advance(now_us, self.received)
        return now_us
