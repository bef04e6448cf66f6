"""A WAV file -> mu-law of a phone line: one channel, 8 kHz.

Files of every common form: PCM, float, mu-law and A-law, any rate and channels. The
whole file is converted at once, so this is for the start of a process, not for a call.
"""

import audioop
import math
import struct
from collections.abc import Callable

import numpy as np

from bridge.audio.resample import Samples

RATE = 8000
RATES = (RATE, 192_000)
MAX_CHANNELS = 8
LONGEST_SECONDS = 120
"""Callers hear no longer one; each call's trace has the audio that it may play."""

PASS_HZ, STOP_HZ = 3400, 4000
"""The telephone's band, and half of its rate."""

EDGE_SECONDS = 0.05
"""Silence behind the end while a file is resampled: the transform is cyclic, and else
the end would be heard at the beginning."""

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE

_TO_16_BITS: dict[tuple[int, int], Callable[[bytes], bytes]] = {
    (_PCM, 8): lambda data: audioop.lin2lin(audioop.bias(data, 1, 128), 1, 2),
    (_PCM, 16): lambda data: data,
    (_PCM, 24): lambda data: audioop.lin2lin(data, 3, 2),
    (_PCM, 32): lambda data: audioop.lin2lin(data, 4, 2),
    (_FLOAT, 32): lambda data: _from_float(data, "<f4"),
    (_FLOAT, 64): lambda data: _from_float(data, "<f8"),
    (_ALAW, 8): lambda data: audioop.alaw2lin(data, 2),
    (_MULAW, 8): lambda data: audioop.ulaw2lin(data, 2),
}
"""(format, bits of a sample) -> linear samples of 16 bits."""


def mulaw(wav: bytes) -> bytes:
    """Raises ValueError, whose text completes "the file ..."."""
    head, data = _chunks(wav)
    if len(head) < 16:
        raise ValueError("is no WAV file: convert it to WAV")
    form, channels, rate, _, _, bits = struct.unpack("<HHIIHH", head[:16])
    if form == _EXTENSIBLE and len(head) >= 26:
        form = int.from_bytes(head[24:26], "little")
    to_16_bits = _TO_16_BITS.get((form, bits))
    if to_16_bits is None:
        raise ValueError(
            f"has audio of format {form} with {bits} bits: convert it to PCM"
        )
    if not (1 <= channels <= MAX_CHANNELS and RATES[0] <= rate <= RATES[1]):
        raise ValueError(
            f"has {channels} channels at {rate} Hz: write 1 to {MAX_CHANNELS} channels "
            f"at {RATES[0]} to {RATES[1]} Hz"
        )
    size = channels * bits // 8
    count = len(data) // size
    if count * RATE < rate:  # not one sample of the line
        raise ValueError("has no audio: record it again")
    if count > LONGEST_SECONDS * rate:
        raise ValueError(
            f"is {count / rate:.0f} s long: shorten it to {LONGEST_SECONDS} s"
        )
    data = data[: count * size]
    if (form, channels, rate) == (_MULAW, 1, RATE):
        return data
    samples = np.frombuffer(to_16_bits(data), "<i2").reshape(count, channels)
    one = samples.mean(axis=1) if channels > 1 else samples[:, 0]
    return audioop.lin2ulaw(_resampled(one, rate).tobytes(), 2)


def _chunks(wav: bytes) -> tuple[bytes, bytes]:
    """The chunks `fmt ` and `data`; empty if there is none."""
    found: dict[bytes, bytes] = {}
    at = 12 if wav[:4] == b"RIFF" and wav[8:12] == b"WAVE" else len(wav)
    while at + 8 <= len(wav):
        size = int.from_bytes(wav[at + 4 : at + 8], "little")
        found.setdefault(wav[at : at + 4], wav[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return found.get(b"fmt ", b""), found.get(b"data", b"")


def _from_float(data: bytes, form: str) -> bytes:
    samples = np.nan_to_num(np.frombuffer(data, form).astype(np.float64))
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def _resampled(
    samples: "np.ndarray[tuple[int], np.dtype[np.number]]", rate: int
) -> Samples:
    """At 8 kHz. Nothing above the telephone's band is left that could be heard as
    another frequency."""
    if rate == RATE:
        return np.asarray(np.rint(samples), np.int16)
    shared = math.gcd(rate, RATE)
    unit = rate // shared  # so many samples become a whole number of samples
    units = math.ceil((len(samples) + EDGE_SECONDS * rate) / unit)
    made = units * (RATE // shared)
    spectrum = np.fft.rfft(samples, units * unit)[: made // 2 + 1]
    hz = np.arange(len(spectrum)) * RATE / made
    slope = np.clip((hz - PASS_HZ) / (STOP_HZ - PASS_HZ), 0, 1)
    spectrum *= 0.5 + 0.5 * np.cos(np.pi * slope)
    wave = np.fft.irfft(spectrum, made) * (made / (units * unit))
    wave = wave[: round(len(samples) * RATE / rate)]
    return np.asarray(np.clip(np.rint(wave), -32768, 32767), np.int16)
