"""The cost of a call to a PCM model: loss of sound quality, and CPU time.

    .venv/bin/python -m tests.bench.resampling

Mu-law itself has about 37 dB. For comparison, `audioop.ratecv` is measured too; it
interpolates linearly. The round trips leave it out: on the way down it picks exactly
the samples that it had on the way up.
"""

import audioop
import base64
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bridge.audio.resample import Downsampler, Samples, Upsampler
from bridge.core import realtime_requests
from bridge.model.transcode import ModelAudio, from_mulaw, to_mulaw
from bridge.sim.voice import speak

TONES_HZ = (200, 300, 500, 1000, 1500, 2000, 2500, 3000, 3300, 3400)
ALIASES_HZ = (4100, 4600, 5000, 6000, 7000, 8000, 9000, 10000, 11000)
TEXT = "Good morning, I would like to move my appointment to next Tuesday at four."
SETTLED = 400
"""Samples at both ends that are not measured."""
FRAMES = 2000

Way = Callable[[Samples], Samples]


def up(samples: Samples) -> Samples:
    stream = Upsampler()
    return np.concatenate((stream.feed(samples), stream.flush()))


def down(samples: Samples) -> Samples:
    stream = Downsampler()
    return np.concatenate((stream.feed(samples), stream.flush()))


def linear(samples: Samples, rate: int, to_rate: int) -> Samples:
    """audioop's own resampling."""
    pcm, _ = audioop.ratecv(samples.tobytes(), 2, 1, rate, to_rate, None)
    return np.frombuffer(pcm, np.int16)


RATECV: tuple[Way, Way] = (
    partial(linear, rate=8000, to_rate=24000),
    partial(linear, rate=24000, to_rate=8000),
)


def tone(
    hz: float, rate: int, amplitude: float = 10_000, seconds: float = 2
) -> Samples:
    t = np.arange(round(seconds * rate)) / rate
    return np.rint(amplitude * np.sin(2 * np.pi * hz * t)).astype(np.int16)


def noise(seed: int = 1) -> Samples:
    """Two seconds of white noise from 300 to 3400 Hz, as loud as speech."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=16_000))
    hz = np.fft.rfftfreq(16_000, 1 / 8000)
    spectrum[(hz < 300) | (hz > 3400)] = 0
    sound = np.fft.irfft(spectrum)
    return np.asarray(np.rint(sound / sound.std() * 3000), np.int16)


def speech() -> Samples:
    return from_mulaw(speak(TEXT).mulaw())


def coded(samples: Samples) -> Samples:
    """To mu-law and back."""
    return from_mulaw(to_mulaw(samples))


def round_trip(samples: Samples) -> Samples:
    """Mu-law to PCM at 24 kHz and back to mu-law."""
    return coded(down(up(coded(samples))))


def snr_db(wanted: Samples, got: Samples) -> float:
    """Ratio of the signal to the difference, up to 3.4 kHz; both at 8 kHz, aligned."""
    signal, error = in_band(wanted), in_band(wanted.astype(float) - got)
    return decibels(float((signal**2).mean() / (error**2).mean()))


def segment_snr_db(wanted: Samples, got: Samples) -> float:
    """Mean SNR of the 20 ms segments with an amplitude above 1 % of the loudest."""
    signal, error = in_band(wanted), in_band(wanted.astype(float) - got)
    frames = len(signal) // 160 * 160
    power = (signal[:frames] ** 2).reshape(-1, 160).mean(axis=1)
    wrong = (error[:frames] ** 2).reshape(-1, 160).mean(axis=1)
    loud = power > power.max() / 10_000
    return float(np.mean(10 * np.log10(power[loud] / np.maximum(wrong[loud], 0.01))))


def in_band(sound: NDArray[np.generic]) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(sound.astype(float))
    spectrum[np.fft.rfftfreq(len(sound), 1 / 8000) > 3400] = 0
    return np.fft.irfft(spectrum, len(sound))


def tone_snr_db(got: Samples, hz: float) -> float:
    """Ratio of the tone to the rest of a sound at 8 kHz."""
    t = np.arange(len(got))[SETTLED:-SETTLED] / 8000
    sound = got[SETTLED:-SETTLED].astype(float)
    basis = np.stack([np.sin(2 * np.pi * hz * t), np.cos(2 * np.pi * hz * t)], axis=1)
    fit = basis @ np.linalg.lstsq(basis, sound, rcond=None)[0]
    return decibels(float((fit**2).mean() / ((sound - fit) ** 2).mean()))


def alias_db(hz: float, back: Way = down) -> float:
    """The level below 4 kHz that a tone above the telephone band leaves."""
    sound = tone(hz, 24_000, 20_000)
    left = back(sound)[SETTLED:-SETTLED].astype(float)
    # An output of zeros counts as the power of the rounding error.
    power = max(float((left**2).mean()), 1 / 12)
    return decibels(power / float((sound.astype(float) ** 2).mean()))


def image_db(hz: float, there: Way = up) -> float:
    """The level above 4 kHz that a tone within the telephone band leaves."""
    sound = there(tone(hz, 8000, 20_000))[SETTLED:-SETTLED].astype(float)
    spectrum = np.abs(np.fft.rfft(sound * np.blackman(len(sound)))) ** 2
    above = np.fft.rfftfreq(len(sound), 1 / 24_000) > 4000
    return decibels(float(spectrum[above].sum() / spectrum.sum()))


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


def microseconds(work: Callable[[], object]) -> float:
    """Time of one `work()` in the fastest of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(FRAMES):
            work()
        rounds.append((time.perf_counter() - began) / FRAMES * 1e6)
    return min(rounds)


def print_sound() -> None:
    print("tones, SNR in dB: mu-law, and mu-law -> PCM 24 kHz -> mu-law")
    for hz in TONES_HZ:
        sound = tone(hz + 0.7, 8000)  # not in step with the sample rate
        pair = coded(sound), round_trip(sound)
        once, twice = (tone_snr_db(got, hz + 0.7) for got in pair)
        print(f"{hz:>12} Hz {once:8.1f} {twice:8.1f}")
    print("round trip against the mu-law input, SNR in dB: whole, mean of 20 ms parts")
    for name, sound in (("speech", speech()), ("noise", noise())):
        pair = coded(sound), round_trip(sound)
        print(f"{name:>15} {snr_db(*pair):8.1f} {segment_snr_db(*pair):8.1f}")
    print("24 -> 8 kHz, alias of a tone above the band, in dB: bridge, ratecv")
    for hz in ALIASES_HZ:
        print(f"{hz:>12} Hz {alias_db(hz):8.1f} {alias_db(hz, RATECV[1]):8.1f}")
    print("8 -> 24 kHz, image of a tone in the band, in dB: bridge, ratecv")
    for hz in TONES_HZ:
        print(f"{hz:>12} Hz {image_db(hz):8.1f} {image_db(hz, RATECV[0]):8.1f}")


def print_cost() -> None:
    low, high = tone(1000, 8000, seconds=0.02), tone(1000, 24_000, seconds=0.02)
    upwards, downwards, model = Upsampler(), Downsampler(), ModelAudio()
    frame = realtime_requests.append(base64.b64encode(to_mulaw(low)).decode())
    pcm = base64.b64encode(high.tobytes()).decode()
    delta = (
        '{"type":"response.output_audio.delta","event_id":"e","response_id":"r",'
        f'"item_id":"i","output_index":0,"content_index":0,"delta":"{pcm}"}}'
    )
    other = delta.replace("audio.delta", "text.delta")
    print("us for 20 ms")
    for name, work in (
        ("8 -> 24 kHz", lambda: upwards.feed(low)),
        ("24 -> 8 kHz", lambda: downwards.feed(high)),
        ("ratecv 8 -> 24", lambda: RATECV[0](low)),
        ("ratecv 24 -> 8", lambda: RATECV[1](high)),
        ("append event", lambda: model.to_model(frame)),
        ("delta event", lambda: model.from_model(delta)),
        ("other event", lambda: model.from_model(other)),
    ):
        print(f"{name:>15} {microseconds(work):8.1f}")


if __name__ == "__main__":
    print_sound()
    print_cost()
