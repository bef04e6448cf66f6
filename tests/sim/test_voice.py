"""The voices of the fakes, and the ruler."""

import audioop
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.sim.voice import (
    AGENT_VOICE,
    CALLER_VOICE,
    RulerSpan,
    read_ruler,
    resample,
    ruler,
    speak,
    tones,
    voice_available,
)


@pytest.fixture
def real_voice() -> None:
    """Fail without espeak-ng: `speak` would give tones."""
    assert voice_available(), "the package espeakng-loader is missing: make setup"


needs_voice = pytest.mark.usefixtures("real_voice")


def tone(frequency: float, rate: int, seconds: float = 1.0) -> bytes:
    t = np.arange(int(rate * seconds)) / rate
    return bytes((np.sin(2 * np.pi * frequency * t) * 10000).astype("<i2").tobytes())


@needs_voice
def test_words_are_spoken_in_order_within_the_audio() -> None:
    """Each word has a time within the audio, in order; none is missing."""
    speech = speak("Hello there, I have 25 apples - how are you? It is 3:30.")

    assert " ".join(word for _, word in speech.words) == speech.text
    times = [at for at, _ in speech.words]
    assert times == sorted(times)
    assert times[0] < 0.1 and speech.seconds - 2 < times[-1] < speech.seconds
    assert 3 < speech.seconds < 8


@needs_voice
def test_caller_and_agent_sound_different() -> None:
    """The caller and the agent can be told apart in a recording."""
    caller = speak("Good morning to you", voice=CALLER_VOICE)
    agent = speak("Good morning to you", voice=AGENT_VOICE)

    assert caller.pcm != agent.pcm


@needs_voice
@pytest.mark.parametrize("voice", ["en-us+nobody", "nope"])
def test_a_voice_that_does_not_exist_is_refused(voice: str) -> None:
    """An unknown voice raises an error."""
    with pytest.raises(ValueError, match=voice.split("+")[-1]):
        speak("hello", voice=voice)


@needs_voice
def test_voices_may_speak_from_any_thread() -> None:
    """Calls from several threads do not mix their audio."""
    texts = ["No.", "This sentence is a good deal longer than the other one."] * 4
    alone = [speak(text).seconds for text in texts]
    speak.cache_clear()
    together: dict[int, float] = {}

    def say(n: int) -> None:
        together[n] = speak(texts[n]).seconds

    threads = [threading.Thread(target=say, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [together[n] for n in range(8)] == pytest.approx(alone, abs=0.05)


def test_a_repeated_sentence_is_cached() -> None:
    """A repeated sentence comes from the cache."""
    assert speak("Say this once.") is speak("Say this once.")


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_speech_is_loud_enough_at_every_rate(rate: int) -> None:
    """Speech is audible and undistorted at every sampling rate."""
    speech = speak("The quick brown fox jumps over the lazy dog.", rate=rate)

    assert audioop.rms(speech.pcm, 2) > 1000
    assert len(speech.mulaw()) == pytest.approx(speech.seconds * 8000, abs=8)
    assert len(speech.mulaw()) % 8 == 0


def test_tones_stand_in_for_words() -> None:
    """Without espeak-ng a call still has bursts with pauses between them."""
    speech = tones("one two three four", words_per_minute=165)

    assert [word for _, word in speech.words] == ["one", "two", "three", "four"]
    assert 0.8 < speech.seconds < 2.5
    assert tones("one").pcm != tones("six").pcm
    assert tones("one", voice="a").pcm != tones("one", voice="b").pcm
    for at, _ in speech.words:
        begin = int((at + 0.05) * 8000) * 2
        assert audioop.rms(speech.pcm[begin : begin + 800], 2) > 1000


@pytest.mark.parametrize(
    ("frequency", "heard"), [(300, True), (3000, True), (4300, False), (7000, False)]
)
def test_resampling_does_not_alias(frequency: int, heard: bool) -> None:
    """Noise above the telephone band does not alias into it."""
    down = resample(tone(frequency, 22050), 22050, 8000)

    level = audioop.rms(down[800:-800], 2)
    assert len(down) // 2 == 8000
    assert level == pytest.approx(7071, rel=0.01) if heard else level < 8


def test_resampling_up_leaves_no_image() -> None:
    """Telephone speech at 24 kHz has nothing above the telephone band."""
    up = np.frombuffer(resample(tone(1000, 8000), 8000, 24000), "<i2")
    spectrum = np.abs(np.fft.rfft(up[2400:-2400].astype(float)))
    above = spectrum[len(spectrum) * 4100 // 12000 :]

    assert above.max() < spectrum.max() / 1000


def test_no_audio_resamples_to_none() -> None:
    """Empty audio stays empty."""
    assert resample(b"", 22050, 8000) == b""
    assert tones("").pcm == b""


def test_the_ruler_reads_back_whole() -> None:
    """An item that was played in full reads back in full."""
    reading = read_ruler(b"\xff" * 160 + ruler(7, 1234) + b"\xff" * 50 + ruler(8, 20))

    assert reading.spans == [RulerSpan(7, 0, 1234 * 8), RulerSpan(8, 0, 160)]
    assert reading.heard_ms == {7: 1234, 8: 20}
    assert reading.in_order and not reading.stray
    assert not reading.lost_bytes and not reading.repeated_bytes


def test_the_sync_byte_is_only_where_a_millisecond_begins() -> None:
    """A cut is never mistaken for the beginning of a millisecond."""
    audio = ruler((1 << 20) - 1, 5000) + ruler(0, 5000) + ruler(0x55555, 5000)

    assert all(audio[at] == 0xB5 for at in range(0, len(audio), 8))
    assert audio.count(0xB5) == 15000 and 0xFF not in audio


def test_the_ruler_tells_what_was_lost_and_repeated() -> None:
    """Lost and repeated audio is measured exactly."""
    audio = ruler(3, 100)
    hole = read_ruler(audio[:160] + audio[400:])
    echo = read_ruler(audio[:400] + audio[160:])
    swapped = read_ruler(audio[400:] + audio[:400])

    assert hole.lost_bytes == 240 and hole.in_order
    assert echo.repeated_bytes == 240 and not echo.in_order
    assert not swapped.in_order and not swapped.lost_bytes


def test_a_millisecond_split_by_a_pause_is_one_millisecond() -> None:
    """A stall within a millisecond loses nothing and adds nothing."""
    audio = ruler(3, 10)
    reading = read_ruler(
        audio[:21] + b"\xff" * 9 + audio[21:23] + b"\xff" + audio[23:77]
    )

    assert reading.spans == [RulerSpan(3, 0, 77)]
    assert reading.stray == 0


def test_speech_is_not_read_as_a_ruler() -> None:
    """Speech is never read as ruler audio."""
    reading = read_ruler(speak("This is not a ruler at all, is it?").mulaw())

    assert sum(reading.heard_bytes.values()) == 0


Piece = tuple[int, int, int, int]


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Items cut anywhere: (item, first byte, last byte, silence after)."""
    drawn: list[Piece] = []
    item = draw(st.integers(0, 1000))
    for _ in range(draw(st.integers(1, 6))):
        item += draw(st.integers(1, 3))
        start = draw(st.integers(0, 400))
        length = draw(st.integers(15, 400))  # contains at least one whole millisecond
        drawn.append((item, start, start + length, draw(st.integers(1, 40))))
    return drawn


@settings(max_examples=150, deadline=None)
@given(pieces())
def test_any_cut_is_measured_to_the_byte(cuts: list[Piece]) -> None:
    """What was heard of a cut item is measured to 1/8 ms."""
    audio = b"".join(
        ruler(item, 110)[start:end] + b"\xff" * silence
        for item, start, end, silence in cuts
    )

    reading = read_ruler(audio)

    assert reading.spans == [
        RulerSpan(item, start, end) for item, start, end, _ in cuts
    ]
    assert reading.stray == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 80), st.integers(0, 40))))
def test_every_byte_is_accounted_for(cuts: list[tuple[int, int, int]]) -> None:
    """Pieces too short to attribute are counted as stray, never lost or invented."""
    audio = b"".join(
        ruler(item, 16)[start : start + length] for item, start, length in cuts
    )

    reading = read_ruler(audio)

    assert sum(reading.heard_bytes.values()) + reading.stray == len(audio)
