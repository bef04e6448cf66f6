"""The audio of one stream on the call's time axis, of both sides.

PURE. core/playback.py decides what was heard, and when; this module only puts the bytes
in their places.
"""

import math
from dataclasses import dataclass, field

from bridge.audio import g711
from bridge.core.playback import Key, PlayedRun

JOINED_MS = 45.0
"""Runs that follow each other in the stream were played without a pause if their times
differ by less: each time is known to a frame, and a frame is 20 ms."""

SILENCE_MS = 500.0
"""A shorter time without frames is not listed."""

MAX_AHEAD_MS = 10_000.0
"""A timestamp that is further ahead of the bridge's clock is not one of Twilio's."""


@dataclass(slots=True)
class Heard:
    """Audio that was played without a pause. `start`, `end`: its positions in the
    stream, in bytes. `origin_ms`: when position 0 would have been played, by the
    stream's media clock."""

    key: Key
    start: int
    end: int
    origin_ms: float

    @property
    def at_ms(self) -> float:
        return self.origin_ms + self.start / g711.BYTES_PER_MS


@dataclass(slots=True)
class StreamTrack:
    """The audio of one stream. `began_at`: seconds of the bridge's clock."""

    began_at: float
    sent: bytearray = field(default_factory=bytearray)
    """All audio that was sent to Twilio, in order."""
    runs: list[PlayedRun] = field(default_factory=list)
    """Filled by Playback."""
    _frames: list[tuple[int, str]] = field(default_factory=list)
    _offset_ms: float = math.inf
    _last_ms: float = 0.0
    """Time of the stream at the last frame, by the bridge's clock."""

    def frame(self, timestamp_ms: int, payload: str, now: float) -> None:
        """A frame of the caller, with its time on Twilio's clock."""
        self._last_ms = 1000 * (now - self.began_at)
        if timestamp_ms > self._last_ms + MAX_AHEAD_MS:
            return
        self._frames.append((timestamp_ms, payload))
        end_ms = timestamp_ms + g711.payload_bytes(payload) / g711.BYTES_PER_MS
        self._offset_ms = min(self._offset_ms, 1000 * now - end_ms)

    @property
    def offset_ms(self) -> float:
        """The bridge's clock minus the stream's media clock, for the quickest frame."""
        if math.isinf(self._offset_ms):
            return 1000 * self.began_at
        return self._offset_ms

    @property
    def heard(self) -> list[Heard]:
        """What was played, in order, runs without a pause between them as one."""
        joined: list[Heard] = []
        for run in self.runs:
            if run.at_ms > self._last_ms + MAX_AHEAD_MS:
                continue  # dated by a timestamp that is none of Twilio's
            origin_ms = run.at_ms - run.start / g711.BYTES_PER_MS
            last = joined[-1] if joined else None
            if (
                last is not None
                and (last.key, last.end) == (run.key, run.start)
                and abs(origin_ms - last.origin_ms) < JOINED_MS
            ):
                # The newest time is the most exact one.
                last.end, last.origin_ms = run.end, origin_ms
            else:
                joined.append(Heard(run.key, run.start, run.end, origin_ms))
        return joined

    @property
    def end_ms(self) -> float:
        """When its last audio ends, of either side, by the stream's media clock."""
        last = self._frames[-1] if self._frames else (0, "")
        spoken = last[0] + g711.payload_bytes(last[1]) / g711.BYTES_PER_MS
        played = [
            it.at_ms + (it.end - it.start) / g711.BYTES_PER_MS for it in self.heard
        ]
        return max(spoken, *played, 0.0)

    def silences(self, until_ms: float) -> list[tuple[float, float]]:
        """(begin, end) of the times without frames, up to `until_ms`, by the stream's
        media clock."""
        found, end_ms = [], 0.0
        for timestamp_ms, payload in self._frames:
            if timestamp_ms > end_ms + SILENCE_MS:
                found.append((end_ms, float(timestamp_ms)))
            end_ms = timestamp_ms + g711.payload_bytes(payload) / g711.BYTES_PER_MS
        if self._frames and until_ms > end_ms + SILENCE_MS:
            found.append((end_ms, until_ms))
        return found

    def put_caller(self, track: bytearray, shift_ms: float) -> None:
        """Writes the caller's audio into a track of the call. `shift_ms`: where the
        stream's media clock is 0."""
        for timestamp_ms, payload in self._frames:
            _put(track, timestamp_ms + shift_ms, g711.sound([payload]))

    def put_heard(self, track: bytearray, shift_ms: float) -> None:
        """The same for what the caller heard."""
        for run in self.heard:
            _put(track, run.at_ms + shift_ms, bytes(self.sent[run.start : run.end]))


def _put(track: bytearray, at_ms: float, audio: bytes) -> None:
    begin = round(at_ms * g711.BYTES_PER_MS)
    if begin < 0:
        audio, begin = audio[-begin:], 0
    audio = audio[: max(len(track) - begin, 0)]
    track[begin : begin + len(audio)] = audio
