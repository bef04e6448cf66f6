"""Speech for the fakes: a caller's and an agent's voice that can be told apart.

espeak-ng if its wheel is installed, else tones of the same rhythm. Results are cached:
speaking the same text twice costs nothing. No I/O, no clock.
"""

import audioop
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bridge.sim.espeak import espeak, installed
from bridge.sim.ruler import Reading, RulerSpan, read_ruler, ruler

__all__ = [
    "AGENT_VOICE",
    "CALLER_VOICE",
    "Reading",
    "RulerSpan",
    "Speech",
    "read_ruler",
    "resample",
    "ruler",
    "speak",
    "tones",
    "voice_available",
]

CALLER_VOICE = "en-us"
AGENT_VOICE = "en+f3"  # a British woman; the wheel has no voice named en-gb

WORDS_PER_MINUTE = 165
_TONE_RATE = 24000
_TAPS = 24  # zero crossings of the low-pass on each side: 80 dB down outside the band
_KAISER_BETA = 8.0
_BLOCK = 8192  # output samples filtered at a time; bounds the memory


@dataclass(frozen=True, slots=True)
class Speech:
    """Spoken text: s16le mono, and the second at which each word begins."""

    text: str
    pcm: bytes
    rate: int
    words: tuple[tuple[float, str], ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate

    def mulaw(self) -> bytes:
        """The speech as G.711 mu-law at 8 kHz, a whole number of milliseconds."""
        return _mulaw(self.pcm, self.rate)


def voice_available() -> bool:
    """True if words are spoken; False if `speak` gives tones."""
    return installed()


@lru_cache(maxsize=512)
def speak(
    text: str,
    *,
    rate: int = 8000,
    voice: str = CALLER_VOICE,
    words_per_minute: int = WORDS_PER_MINUTE,
) -> Speech:
    """`text` as speech at `rate`. Raises ValueError for an unknown voice."""
    if not voice_available():
        return tones(text, rate=rate, voice=voice, words_per_minute=words_per_minute)
    library = espeak()
    pcm, events = library.say(text, voice, words_per_minute)
    words = _timed_words(text, events)
    return Speech(text, resample(pcm, library.rate, rate), rate, words)


def tones(
    text: str,
    *,
    rate: int = 8000,
    voice: str = CALLER_VOICE,
    words_per_minute: int = WORDS_PER_MINUTE,
) -> Speech:
    """A beep pattern per word, as long and as loud as the word would be."""
    pitch = 110 + zlib.crc32(voice.encode()) % 110
    parts: list[NDArray[np.float64]] = []
    words: list[tuple[float, str]] = []
    position = 0
    for word in text.split():
        words.append((position / _TONE_RATE, word))
        seconds = (60 / words_per_minute) * (0.4 + 0.12 * min(len(word), 12))
        beep = _beep(word, pitch, seconds)
        pause = np.zeros(int(0.04 * _TONE_RATE))
        parts += [beep, pause]
        position += len(beep) + len(pause)
    samples = np.concatenate(parts) if parts else np.zeros(0)
    pcm = samples.astype("<i2").tobytes()
    return Speech(text, resample(pcm, _TONE_RATE, rate), rate, tuple(words))


def resample(pcm: bytes, from_rate: int, to_rate: int) -> bytes:
    """s16le mono at another rate, band-limited (polyphase windowed sinc)."""
    if from_rate == to_rate or not pcm:
        return pcm
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor
    bank = _filter_bank(up, down)
    taps = bank.shape[1]
    samples = np.frombuffer(pcm, "<i2").astype(np.float32)
    padded = np.pad(samples, (taps // 2 - 1, taps // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    count = len(samples) * up // down
    out = np.empty(count, np.float32)
    for first in range(0, count, _BLOCK):
        at = np.arange(first, min(first + _BLOCK, count), dtype=np.int64) * down
        out[first : first + len(at)] = np.einsum(
            "ij,ij->i", windows[at // up], bank[at % up]
        )
    return bytes(np.clip(np.rint(out), -32768, 32767).astype("<i2").tobytes())


@lru_cache(maxsize=16)
def _filter_bank(up: int, down: int) -> NDArray[np.float32]:
    """For each of `up` phases between two input samples, the taps around it."""
    cutoff = min(1.0, up / down) * 0.95  # of the input's Nyquist frequency
    half = math.ceil(_TAPS / cutoff)
    phase = np.arange(up)[:, None] / up
    distance = np.arange(1 - half, half + 1)[None, :] - phase
    window = np.i0(
        _KAISER_BETA * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, 1))
    ) / np.i0(_KAISER_BETA)
    bank = np.sinc(distance * cutoff) * cutoff * window
    bank /= bank.sum(axis=1, keepdims=True)  # no ripple at DC between the phases
    return np.asarray(bank, np.float32)


def _beep(word: str, pitch: int, seconds: float) -> NDArray[np.float64]:
    """Three harmonics chosen by the word, with an envelope of syllables."""
    fingerprint = zlib.crc32(word.lower().encode())
    count = int(seconds * _TONE_RATE)
    t = np.arange(count) / _TONE_RATE
    sound = np.zeros(count)
    for harmonic in (2, 3 + fingerprint % 5, 9 + fingerprint // 7 % 6):
        sound += np.sin(2 * np.pi * pitch * harmonic * t) / harmonic**0.5
    syllables = max(1, len(word) // 3)
    swell = 0.55 + 0.45 * np.cos(2 * np.pi * syllables * (t / seconds) + np.pi)
    edge = np.minimum(1, np.minimum(t, t[::-1]) / 0.015)
    return np.asarray(sound * swell * edge * 6000)


def _timed_words(
    text: str, events: list[tuple[int, float]]
) -> tuple[tuple[float, str], ...]:
    """The text's words, each with the first second that espeak reported inside it.

    espeak splits words differently ("25" has two, "-" may have none).
    """
    words: list[tuple[float, str]] = []
    position = 0
    latest = 0.0
    for word in text.split():
        begin = text.index(word, position)
        position = begin + len(word)
        inside = [at for index, at in events if begin <= index < position]
        latest = max(latest, min(inside, default=latest))
        words.append((latest, word))
    return tuple(words)


@lru_cache(maxsize=512)
def _mulaw(pcm: bytes, rate: int) -> bytes:
    encoded = audioop.lin2ulaw(resample(pcm, rate, 8000), 2)
    return encoded + b"\xff" * (-len(encoded) % 8)
