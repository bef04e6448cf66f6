"""The caller's audio on its way to the model: held until it is ready, holes filled.

Payloads pass as they came; only silence is made here.
"""

from collections import deque

from bridge.core import audio, realtime
from bridge.core.commands import Command, Note, ToModel, protocol_error

HELD_MS = 20_000
"""Audio kept for a model that is not ready: longer than a caller waits for it
(conversation.READY_SECONDS), so that no first word is lost."""

GAP_MS = 20
"""A hole of a frame or more in the timestamps is audio that Twilio did not send."""

MAX_GAP_MS = 10_000
"""No hole is filled with more silence than this, whatever the timestamps say."""

STALL_SECONDS = 0.75
"""When frames stop while the caller speaks (some calls send none in silence), the
model would wait for ever for the end of the turn: silence is sent in their place."""


class CallerAudio:
    """Frames in, commands out. `ready` once, when the model takes audio."""

    def __init__(self, now: float) -> None:
        self.speaking = False
        """The model hears the caller speak."""
        self.held_ms = 0.0
        self.muted = False
        """The model is to hear silence in the caller's place."""
        self._ready = False
        self._held: deque[tuple[str, float]] = deque()
        self._end_ms: float | None = None
        """Where on the media clock the audio ends that the model was given."""
        self._last = now
        self._stalled_ms = 0
        """Silence made since the last frame came."""

    def frame(
        self, payload: str, timestamp_ms: int, duration_ms: float, now: float
    ) -> list[Command]:
        """One frame, with the silence that is missing before it."""
        commands = self._fill_gap(timestamp_ms, duration_ms)
        self._last = now
        self._stalled_ms = 0
        if self.muted:
            payload = audio.silence(max(round(duration_ms), 1))
        return commands + self._give(payload, duration_ms)

    def ready(self) -> list[Command]:
        """The model takes audio from now on: what was held, in order."""
        self._ready = True
        commands: list[Command] = [
            ToModel(realtime.append(payload)) for payload, _ in self._held
        ]
        self._held.clear()
        return commands

    @property
    def stalls_at(self) -> float | None:
        """When the caller's silence must be made, if no frame comes before."""
        if not self.speaking or self._stalled_ms >= MAX_GAP_MS:
            return None
        return self._last + STALL_SECONDS

    def fill_stall(self, now: float) -> list[Command]:
        """No frame came in the middle of the caller's speech: silence instead."""
        ms = int(STALL_SECONDS * 1000)
        self._stalled_ms += ms
        self._last = now
        self._end_ms = (self._end_ms or 0.0) + ms
        return [Note("stall_filled", {"ms": ms}), *self._silence(ms)]

    def _fill_gap(self, timestamp_ms: int, duration_ms: float) -> list[Command]:
        end = timestamp_ms + duration_ms
        if self._end_ms is None:
            self._end_ms = end
            return []
        gap = timestamp_ms - self._end_ms
        if gap < -MAX_GAP_MS:
            self._end_ms = end
            return [protocol_error("caller", "timestamp went back")]
        # A small step back: frames that come after all, behind a stall that was filled.
        self._end_ms = max(self._end_ms, end)
        if gap < GAP_MS:
            return []
        ms = min(int(gap), MAX_GAP_MS)
        return [Note("gap_filled", {"ms": ms}), *self._silence(ms)]

    def _silence(self, ms: int) -> list[Command]:
        # A second at a time: payloads of silence are cached by their length.
        commands: list[Command] = []
        while ms > 0:
            part = min(ms, 1000)
            commands += self._give(audio.silence(part), part)
            ms -= part
        return commands

    def _give(self, payload: str, duration_ms: float) -> list[Command]:
        if self._ready:
            return [ToModel(realtime.append(payload))]
        self._held.append((payload, duration_ms))
        self.held_ms += duration_ms
        lost = 0.0
        while self.held_ms > HELD_MS:
            _, oldest_ms = self._held.popleft()
            self.held_ms -= oldest_ms
            lost += oldest_ms
        return [Note("held_audio_lost", {"ms": lost})] if lost else []
