"""WAV files of every common form become the mu-law of a phone line."""

import audioop
import struct

import numpy as np
import pytest

from bridge.audio import wav
from bridge.audio.resample import Exact

PCM, FLOAT, ALAW, MULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
HZ, LEVEL = 1000, 8000


def file(
    data: bytes, form: int = PCM, bits: int = 16, rate: int = 8000, channels: int = 1
) -> bytes:
    """A WAV file, with a chunk of odd size that players ignore."""
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * frame, frame, bits)
    if form == EXTENSIBLE:
        head += struct.pack("<HHIH", 22, bits, 0, PCM) + bytes(14)
    body = (
        b"WAVE" + chunk(b"fmt ", head) + chunk(b"LIST", b"odd") + chunk(b"data", data)
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def tone(hz: float = HZ, rate: int = 8000, seconds: float = 0.5) -> Exact:
    return LEVEL * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


def pcm(samples: Exact, bits: int = 16) -> bytes:
    data = np.rint(samples).astype("<i2").tobytes()
    if bits == 8:
        return audioop.bias(audioop.lin2lin(data, 2, 1), 1, 128)
    return audioop.lin2lin(data, 2, bits // 8)


def level(mulaw: bytes, hz: float) -> float:
    """Amplitude of one frequency, without the edges."""
    sound = np.frombuffer(audioop.ulaw2lin(mulaw, 2), "<i2")[800:-800]
    turns = np.exp(-2j * np.pi * hz * np.arange(len(sound)) / 8000)
    return float(2 * abs(np.dot(sound, turns)) / len(sound))


@pytest.mark.parametrize(
    "rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_and_channels(rate: int, channels: int) -> None:
    """The caller hears the recording at its speed, pitch and level."""
    sound = np.repeat(tone(rate=rate), channels)

    made = wav.mulaw(file(pcm(sound), rate=rate, channels=channels))

    assert abs(len(made) - 4000) <= 1
    assert level(made, HZ) == pytest.approx(LEVEL, rel=0.03)


@pytest.mark.parametrize(
    ("form", "bits", "data"),
    [
        (PCM, 8, pcm(tone(), 8)),
        (PCM, 24, pcm(tone(), 24)),
        (PCM, 32, pcm(tone(), 32)),
        (EXTENSIBLE, 16, pcm(tone())),
        (FLOAT, 32, (tone() / 32768).astype("<f4").tobytes()),
        (FLOAT, 64, (tone() / 32768).astype("<f8").tobytes()),
        (ALAW, 8, audioop.lin2alaw(pcm(tone()), 2)),
        (MULAW, 8, audioop.lin2ulaw(pcm(tone()), 2)),
    ],
)
def test_every_form_of_samples(form: int, bits: int, data: bytes) -> None:
    made = wav.mulaw(file(data, form, bits))

    assert len(made) == 4000
    assert level(made, HZ) == pytest.approx(LEVEL, rel=0.05)


def test_mulaw_of_the_phone_line_is_not_changed() -> None:
    assert wav.mulaw(file(bytes(range(256)), MULAW, 8)) == bytes(range(256))


@pytest.mark.parametrize("hz", [5000, 7000, 15000])
def test_what_a_phone_cannot_carry_is_not_heard(hz: int) -> None:
    """A high tone does not come back as a lower one."""
    made = wav.mulaw(file(pcm(tone(hz, 44100)), rate=44100))

    sound = np.frombuffer(audioop.ulaw2lin(made, 2), "<i2")[800:-800].astype(float)
    assert np.sqrt(np.mean(sound**2)) < LEVEL / 300


def test_the_end_is_not_heard_at_the_beginning() -> None:
    sound = np.concatenate((np.zeros(24_000), tone(rate=48_000)))

    made = wav.mulaw(file(pcm(sound), rate=48_000))

    assert max(np.abs(np.frombuffer(audioop.ulaw2lin(made[:800], 2), "<i2"))) < 100


def test_floats_that_are_no_samples() -> None:
    data = struct.pack("<3f", float("nan"), 9.0, -9.0)

    made = audioop.ulaw2lin(wav.mulaw(file(data, FLOAT, 32)), 2)

    assert struct.unpack("<3h", made) == (0, 32124, -32124)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is no WAV file"),
        (b"ID3" + bytes(100), "is no WAV file"),
        (b"RIFF" + bytes(4) + b"WAVE", "is no WAV file"),
        (file(b"")[:30], "is no WAV file"),
        (file(b""), "has no audio"),
        (file(b"\0"), "has no audio"),
        (file(bytes(10), rate=48_000), "has no audio"),
        (file(bytes(8), form=2, bits=4), "has audio of format 2 with 4 bits"),
        (file(bytes(8), bits=12), "has audio of format 1 with 12 bits"),
        (file(bytes(8), channels=0), "has 0 channels at 8000 Hz"),
        (file(bytes(18), channels=9), "has 9 channels at 8000 Hz"),
        (file(bytes(8), rate=6000), "has 1 channels at 6000 Hz"),
        (file(bytes(8), rate=400_000), "has 1 channels at 400000 Hz"),
        (file(bytes(121 * 8000), MULAW, 8), "is 121 s long: shorten it to 120 s"),
    ],
)
def test_a_file_that_cannot_be_played(data: bytes, text: str) -> None:
    """The operator reads what is wrong with it."""
    with pytest.raises(ValueError, match=text):
        wav.mulaw(data)


def test_a_file_whose_recorder_did_not_write_its_size() -> None:
    """The rest of the file is the audio."""
    whole = file(pcm(tone()))
    at = whole.index(b"data") + 4

    assert len(wav.mulaw(whole[:at] + b"\xff" * 4 + whole[at + 4 :])) == 4000
