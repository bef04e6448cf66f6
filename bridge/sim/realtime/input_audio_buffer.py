"""The input audio buffer of the fake model and its voice activity detection (VAD).

Works on the audio that a session appends, in the session's format. Counts session
audio, not time: if the client sends nothing, no silence passes. No I/O, no clock.
"""

import audioop
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

FRAME_MS = 20
BYTES_PER_MS = {"audio/pcmu": 8, "audio/pcma": 8, "audio/pcm": 48}
_ONSET_FRAMES = 3  # 60 ms: a click is shorter, a vowel is not
# semantic_vad has no such settings; these values are the fake server's.
_SEMANTIC_SILENCE_MS = 500
_SEMANTIC_PREFIX_MS = 300
_BUFFER_MS = 15 * 60 * 1000  # at most this much uncommitted audio is kept


@dataclass(frozen=True, slots=True)
class VadSpeechStarted:
    audio_start_ms: int


@dataclass(frozen=True, slots=True)
class VadSpeechStopped:
    audio_end_ms: int
    seconds: float  # of speech, without padding and the silence after it


class InputAudioBuffer:
    """One session's input audio buffer."""

    def __init__(self, threshold: float) -> None:
        self.audio = bytearray()  # appended, not yet committed
        self.speaking = False
        self.awaits_voice = False  # the turn does not end before speech is heard again
        self.heard_ms = 0  # session audio so far, in whole frames
        self._threshold = threshold
        self._format = "audio/pcm"
        self._detection: dict[str, Any] | None = None
        self._partial = bytearray()
        self._voiced = 0  # consecutive frames above the threshold, before speech
        self._first_voiced_ms = 0
        self._last_voiced_ms = 0

    def configure(self, format_type: str, detection: dict[str, Any] | None) -> None:
        """Apply the session's audio.input; another format empties the buffer."""
        if format_type != self._format:
            self._format = format_type
            self.clear()
        if detection is None:
            self.speaking = False
        self._detection = detection

    @property
    def buffered_ms(self) -> int:
        return len(self.audio) // BYTES_PER_MS[self._format]

    def append(self, audio: bytes) -> Iterator[VadSpeechStarted | VadSpeechStopped]:
        """Append audio. At each yielded event the buffer holds the audio up to that
        moment."""
        size = FRAME_MS * BYTES_PER_MS[self._format]
        self._partial += audio
        taken = 0
        while len(self._partial) - taken >= size:
            frame = bytes(self._partial[taken : taken + size])
            taken += size
            event = self._frame(frame)
            if event is not None:
                # The consumer may commit or clear now, so `_partial` must be up to
                # date.
                del self._partial[:taken]
                taken = 0
                yield event
        del self._partial[:taken]

    def commit(self) -> tuple[bytes, float]:
        """Take the buffer's whole frames: audio and duration in seconds."""
        audio = bytes(self.audio)
        self.audio.clear()
        return audio, len(audio) / BYTES_PER_MS[self._format] / 1000

    def clear(self) -> None:
        """Discard the appended audio and a turn in progress."""
        self.audio.clear()
        self._partial.clear()
        self.speaking = False
        self._voiced = 0

    def _frame(self, frame: bytes) -> VadSpeechStarted | VadSpeechStopped | None:
        begin = self.heard_ms
        self.heard_ms += FRAME_MS
        self.audio += frame
        if self._detection is None:
            self._bound(_BUFFER_MS)
            return None
        voiced = _level(self._format, frame) > self._threshold
        if self.speaking:
            return self._listening(voiced)
        self._voiced = self._voiced + 1 if voiced else 0
        if self._voiced == 1:
            self._first_voiced_ms = begin
        prefix = int(self._detection.get("prefix_padding_ms", _SEMANTIC_PREFIX_MS))
        self._bound(prefix + FRAME_MS * _ONSET_FRAMES)
        if self._voiced < _ONSET_FRAMES:
            return None
        self.speaking = True
        self._voiced = 0
        self._last_voiced_ms = self.heard_ms
        # "audio sent to the model minus the prefix padding" (speech_started).
        return VadSpeechStarted(max(0, self._first_voiced_ms - prefix))

    def _listening(self, voiced: bool) -> VadSpeechStopped | None:
        if voiced:
            self._last_voiced_ms = self.heard_ms
            self.awaits_voice = False
            return None
        if self.awaits_voice:
            return None
        assert self._detection is not None
        silence_ms = self._detection.get("silence_duration_ms", _SEMANTIC_SILENCE_MS)
        if self.heard_ms - self._last_voiced_ms < silence_ms:
            return None
        self.speaking = False
        seconds = (self._last_voiced_ms - self._first_voiced_ms) / 1000
        # Includes the silence, as the server's speech_stopped does.
        return VadSpeechStopped(self.heard_ms, seconds)

    def _bound(self, ms: int) -> None:
        excess = len(self.audio) - ms * BYTES_PER_MS[self._format]
        if excess > 0:
            del self.audio[:excess]


@lru_cache(maxsize=256)  # most frames of many calls are the same silence
def _level(format_type: str, frame: bytes) -> float:
    if format_type == "audio/pcmu":
        frame = audioop.ulaw2lin(frame, 2)
    elif format_type == "audio/pcma":
        frame = audioop.alaw2lin(frame, 2)
    return audioop.rms(frame, 2)
