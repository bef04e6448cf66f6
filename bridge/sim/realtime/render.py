"""Outputs as audio deltas: cut, encoded and aligned with their words.

Everything is computed once and cached: hundreds of calls with the same text cost no
more than copying strings. No I/O, no clock.
"""

import audioop
import base64
import math
from dataclasses import dataclass
from functools import lru_cache

from bridge.sim.realtime.input_audio_buffer import BYTES_PER_MS
from bridge.sim.realtime.turns import PlayAudio, PlayRuler, SayText
from bridge.sim.voice import AGENT_VOICE, WORDS_PER_MINUTE, resample, ruler, speak

_RULER_WORD_MS = 300
Words = tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One audio delta and the words that are sent before it."""

    audio: bytes
    base64: str
    words: tuple[str, ...]  # transcript deltas, each with its leading space
    # the words that are spoken in it, with their start in the item's audio, in ms
    cues: tuple[tuple[float, str], ...]
    seconds: float


@lru_cache(maxsize=128)
def ruler_audio(output: PlayRuler, number: int) -> PlayAudio:
    """Ruler audio of item `number`, with a word every 300 ms."""
    count = max(1, math.ceil(output.ms / _RULER_WORD_MS))
    return PlayAudio(ruler(number, output.ms), " ".join(["word"] * count))


@lru_cache(maxsize=512)
def chunks(
    output: SayText | PlayAudio,
    format_type: str,
    delta_ms: int,
    first_delta_ms: int | None,
    speed: float,
    voice: str | None,
    words_per_minute: int = WORDS_PER_MINUTE,
    lead: float = 0.0,
) -> tuple[Chunk, ...]:
    """The deltas of `output`, in the session's format. Words of which the `lead` is
    negative may be left over: they come behind the audio."""
    rate = round(words_per_minute * speed)
    audio, words = _sound(output, format_type, rate, voice or AGENT_VOICE)
    per_ms = BYTES_PER_MS[format_type]
    cut: list[Chunk] = []
    position = 0
    waiting = unsent = _with_blanks(words)
    while position < len(audio):
        ms = first_delta_ms if first_delta_ms and not position else delta_ms
        piece = audio[position : position + ms * per_ms]
        position += len(piece)
        until = position / per_ms / 1000
        last = position >= len(audio)
        count = sum(1 for at, _ in waiting if at < until or last)
        said, waiting = waiting[:count], waiting[count:]
        count = sum(1 for at, _ in unsent if at - lead < until or (last and lead >= 0))
        sent, unsent = unsent[:count], unsent[count:]
        cut.append(
            Chunk(
                audio=piece,
                base64=base64.b64encode(piece).decode(),
                words=tuple(word for _, word in sent),
                cues=tuple((at * 1000, word) for at, word in said),
                seconds=len(piece) / per_ms / 1000,
            )
        )
    return tuple(cut)


def _sound(
    output: SayText | PlayAudio, format_type: str, words_per_minute: int, voice: str
) -> tuple[bytes, Words]:
    if isinstance(output, PlayAudio):
        return _in_format(output.mulaw, format_type), _even(output)
    rate = 24000 if format_type == "audio/pcm" else 8000
    speech = speak(
        output.text, rate=rate, voice=voice, words_per_minute=words_per_minute
    )
    if format_type == "audio/pcm":
        whole_ms = len(speech.pcm) - len(speech.pcm) % BYTES_PER_MS[format_type]
        return speech.pcm[:whole_ms], speech.words
    return _in_format(speech.mulaw(), format_type), speech.words


def _in_format(mulaw: bytes, format_type: str) -> bytes:
    if format_type == "audio/pcmu":
        return mulaw
    linear = audioop.ulaw2lin(mulaw, 2)
    if format_type == "audio/pcma":
        return audioop.lin2alaw(linear, 2)
    return resample(linear, 8000, 24000)


def _even(output: PlayAudio) -> Words:
    """Words spread evenly over audio whose word timing is unknown."""
    words = output.text.split()
    seconds = len(output.mulaw) / 8000
    return tuple((i * seconds / len(words), word) for i, word in enumerate(words))


def _with_blanks(words: Words) -> Words:
    return tuple(
        (at, word if i == 0 else " " + word) for i, (at, word) in enumerate(words)
    )
