"""The record of a call as Twilio and the caller know it: the truth for tests.

Times are seconds of the monotonic clock; audio is mu-law, 8 bytes per ms. A call's own
clock begins with the media clock of its first stream (`stream_at`).
"""

import audioop
import wave
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from typing import Literal

from bridge.sim.twilio.playout import (
    SILENCE,
    AppliedClear,
    MarkEcho,
    PlayedAudio,
    Playout,
    Run,
)

DialStatus = Literal["completed", "busy", "no-answer", "failed", "canceled"]
UNDERRUN_LIMIT = 1.0  # s; a longer pause counts as the end of an answer


@dataclass(frozen=True, slots=True)
class CallerSpeech:
    """Speech of the caller. `start` and `end`: seconds of the stream's media clock."""

    stream_sid: str
    start: float
    end: float
    started_at: float
    ended_at: float
    audio: bytes


@dataclass(frozen=True, slots=True)
class DebuggerWarning:
    """A warning in Twilio's debugger (319xx); never fatal."""

    code: int
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """A webhook request of Twilio. Status 0: no answer; `error` has the reason."""

    path: str
    status: int
    content_type: str
    at: float
    form: dict[str, str]
    error: str = ""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a stream. Code 0: Twilio ended it; 31921: the bridge did; others:
    faults."""

    stream_sid: str
    code: int
    text: str
    at: float
    close_code: int | None = None


@dataclass(slots=True)
class DialledLeg:
    """A leg of <Dial>.

    Its status is "canceled" until the result is known, because the caller may hang up
    first.
    """

    call_sid: str
    number: str
    caller_id: str  # the number that the called party saw
    at: float
    status: DialStatus = "canceled"
    talked_seconds: float = 0.0
    digits: str = ""
    said: list[str] = field(default_factory=list)
    """What the called party heard before it was connected."""
    bridged: bool = False
    error: tuple[int, str] | None = (
        None  # Twilio's code and text, if it refused the leg
    )


@dataclass(slots=True)
class ConferenceVisit:
    """The time of a call in a conference."""

    name: str
    met: list[str] = field(default_factory=list)
    """Call SIDs of the others, once the conference has started."""
    heard: bytearray = field(default_factory=bytearray)
    """What the others said since then (mu-law), with the pauses."""


@dataclass(frozen=True, slots=True)
class Underruns:
    count: int
    seconds: float


@dataclass(slots=True)
class StreamRecord:
    """One media stream of the call; its media clock is 0 at `began_at`."""

    stream_sid: str
    began_at: float
    playout: Playout
    unheard_at_end: int = 0

    @property
    def heard(self) -> PlayedAudio:
        return self.playout.heard


@dataclass(slots=True)
class CallRecord:
    """Filled during the call; complete when `Caller.call` returns."""

    call_sid: str
    started_at: float
    answered_at: float | None = None
    ended_at: float | None = None
    ended_by: str = ""  # "caller", "bridge" or "error: ..."
    error: str | None = None
    twiml: list[str] = field(default_factory=list)
    requests: list[WebhookRequest] = field(default_factory=list)
    streams: list[StreamRecord] = field(default_factory=list)
    stream_ends: list[StreamEnd] = field(default_factory=list)
    spoken: list[CallerSpeech] = field(default_factory=list)
    pressed: list[tuple[float, str]] = field(default_factory=list)
    media_in: list[tuple[float, int]] = field(default_factory=list)
    warnings: list[DebuggerWarning] = field(default_factory=list)
    said_by_twilio: list[str] = field(default_factory=list)
    dials: list[DialledLeg] = field(default_factory=list)
    conferences: list[ConferenceVisit] = field(default_factory=list)
    rejected: str | None = None
    timed_out: list[str] = field(default_factory=list)  # steps whose timeout passed
    frames_sent: int = 0
    # With `keep_frame_times`: the time of each frame, and the first bytes of each
    # message of `media_in`.
    frame_sent_at: list[float] = field(default_factory=list)
    media_heads: list[bytes] = field(default_factory=list)

    @property
    def stream_sids(self) -> list[str]:
        return [stream.stream_sid for stream in self.streams]

    @property
    def dialled(self) -> str | None:
        """The last dialled number."""
        return self.dials[-1].number if self.dials else None

    @property
    def stream_at(self) -> float | None:
        """Time at which the first stream's media clock began."""
        return self.streams[0].began_at if self.streams else None

    @property
    def first_media_at(self) -> float | None:
        """Time of the bridge's first audio, before the simulated network delay."""
        return self.media_in[0][0] if self.media_in else None

    @property
    def first_heard_at(self) -> float | None:
        """Time at which the caller first heard the agent."""
        return next((run.start for run in self.runs()), None)

    @property
    def heard(self) -> bytes:
        """All played audio, without the pauses."""
        return b"".join(stream.heard.audio() for stream in self.streams)

    @property
    def clears(self) -> list[AppliedClear]:
        return [clear for stream in self.streams for clear in stream.playout.clears]

    @property
    def marks(self) -> list[MarkEcho]:
        """All echoed marks, in order."""
        return [mark for stream in self.streams for mark in stream.playout.marks]

    @property
    def unheard_at_end(self) -> int:
        """Bytes that were lost because their stream ended before they were played."""
        return sum(stream.unheard_at_end for stream in self.streams)

    @property
    def underruns(self) -> Underruns:
        """Pauses of up to a second because the buffer was empty: gaps in an answer.

        Not counted: audio cut by a clear, and a pause in which the caller began to
        speak.
        """
        holes = [
            after.start - before.end
            for stream in self.streams
            for before, after in pairwise(stream.heard.runs)
            if self._is_hole(stream, before, after)
        ]
        return Underruns(len(holes), sum(holes))

    def runs(self) -> Iterator[Run]:
        for stream in self.streams:
            yield from stream.heard.runs

    def heard_timeline(self) -> bytes:
        """The whole call as the caller heard it, with silence where nothing played."""
        line = self._silent_line()
        for stream in self.streams:
            for run in stream.heard.runs:
                self._lay(line, run.start, run.audio)
        return bytes(line)

    def caller_timeline(self) -> bytes:
        """The whole call as the caller spoke it, on the same clock."""
        line = self._silent_line()
        for spoken in self.spoken:
            self._lay(line, spoken.started_at, spoken.audio)
        return bytes(line)

    def write_wav(self, path: str | PathLike[str]) -> None:
        """Write stereo 8 kHz 16-bit: left the caller's speech, right what the caller
        heard."""
        left = audioop.ulaw2lin(self.caller_timeline(), 2)
        right = audioop.ulaw2lin(self.heard_timeline(), 2)
        stereo = audioop.add(
            audioop.tostereo(left, 2, 1, 0), audioop.tostereo(right, 2, 0, 1), 2
        )
        with wave.open(str(path), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(stereo)

    def _is_hole(self, stream: StreamRecord, before: Run, after: Run) -> bool:
        """True if no clear cut the audio (then bytes are missing) and no turn paused
        it."""
        return (
            before.received_to == after.received_from
            and after.start - before.end <= UNDERRUN_LIMIT
            and not any(
                spoken.stream_sid == stream.stream_sid
                and before.end <= spoken.started_at <= after.start
                for spoken in self.spoken
            )
        )

    def _silent_line(self) -> bytearray:
        if self.stream_at is None or self.ended_at is None:
            return bytearray()
        return bytearray([SILENCE]) * round((self.ended_at - self.stream_at) * 8000)

    def _lay(self, line: bytearray, at: float, audio: bytes | bytearray) -> None:
        assert self.stream_at is not None
        start = round((at - self.stream_at) * 8000)
        piece = audio[: max(0, len(line) - start)]
        line[start : start + len(piece)] = piece
