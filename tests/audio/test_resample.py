"""8 kHz <-> 24 kHz: the same sound, at the same time, however it is cut into pieces."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.audio.resample import DELAY, Downsampler, Samples, Upsampler
from bridge.sim import voice
from tests.bench.resampling import alias_db, down, image_db, in_band, tone, up

Stream = Upsampler | Downsampler
STREAMS = pytest.mark.parametrize("kind", [Upsampler, Downsampler])

CUTS = st.lists(st.integers(0, 700), max_size=12)
LOUD = st.tuples(st.integers(0, 2000), st.integers(0, 2**32 - 1))
"""Number of samples, and the seed from which they are made."""


def loud(length: int, seed: int) -> Samples:
    """Random samples, up to full scale."""
    dice = np.random.default_rng(seed)
    return dice.integers(-32768, 32768, length).astype(np.int16)


def in_chunks(stream: Stream, sound: Samples, cuts: Sequence[int]) -> Samples:
    places = np.minimum(np.cumsum([0, *cuts]), len(sound))
    chunks = np.split(sound, places)
    return np.concatenate([*map(stream.feed, chunks), stream.flush()])


def together(stream: Stream, sound: Samples) -> Samples:
    return in_chunks(stream, sound, [])


@STREAMS
@given(LOUD, CUTS)
def test_the_result_does_not_depend_on_how_a_stream_is_cut(
    kind: Callable[[], Stream], what: tuple[int, int], cuts: list[int]
) -> None:
    """Deltas of any length give the very same sound: no click where they meet."""
    sound = loud(*what)

    assert np.array_equal(in_chunks(kind(), sound, cuts), together(kind(), sound))


@given(st.integers(0, 3000))
def test_no_sample_is_gained_or_lost(length: int) -> None:
    """What was heard is counted in samples: in the end the number is the same."""
    sound = loud(length, 1)

    assert len(together(Upsampler(), sound)) == 3 * length
    assert len(together(Downsampler(), sound)) == length // 3


@STREAMS
def test_after_its_end_a_stream_begins_anew(kind: Callable[[], Stream]) -> None:
    """Nothing of the last response is heard in the next one."""
    stream = kind()
    first, second = loud(1000, 1), loud(1000, 2)
    together(stream, first)

    assert np.array_equal(together(stream, second), together(kind(), second))


def test_the_delay_is_four_and_a_half_ms() -> None:
    """The delay that a PCM model adds, each way, is known and small."""
    assert len(Upsampler().feed(loud(160, 1))) == 3 * (160 - DELAY)
    assert len(Downsampler().feed(loud(480, 1))) == 160 - DELAY
    assert len(Upsampler().feed(loud(DELAY, 1))) == 0
    assert len(Downsampler().feed(loud(3 * DELAY, 1))) == 0
    assert DELAY / 8 == 4.5


@pytest.mark.parametrize("hz", [200, 440, 1000, 2500, 3400])
def test_a_tone_keeps_its_level_and_position(hz: float) -> None:
    """Neither louder nor later: sample n at 8 kHz is sample 3 n at 24 kHz."""
    low, high = tone(hz, 8000), tone(hz, 24_000)

    made_high, made_low = up(low), down(high)

    middle = slice(3 * DELAY, -3 * DELAY)  # the tone has a beginning, and rings there
    assert np.abs(made_high.astype(int) - high)[middle].max() <= 3
    assert np.abs(made_low.astype(int) - low)[middle].max() <= 3


@given(CUTS, CUTS)
def test_there_is_no_click_between_two_chunks(
    there: list[int], back: list[int]
) -> None:
    """A whistle through a PCM model and back is the same whistle, without a jump."""
    sound = tone(1000, 8000, seconds=0.5)

    high = in_chunks(Upsampler(), sound, there)
    low = in_chunks(Downsampler(), high, back)

    middle = slice(DELAY, -DELAY)
    assert np.abs(low.astype(int) - sound)[middle].max() <= 2


def test_silence_stays_silent() -> None:
    """Silence in gives silence out, without a hiss."""
    silence = np.zeros(1000, np.int16)

    assert not up(silence).any() and not down(silence).any()


def test_what_is_too_loud_is_clipped() -> None:
    """A shout overshoots between its samples; it must not turn into a bang."""
    square = np.where(np.arange(800) // 8 % 2, 32767, -32768).astype(np.int16)

    made = up(square)

    assert made.max() == 32767 and made.min() == -32768
    assert np.array_equal(np.sign(made[1::3][50:-50]), np.sign(square[50:-50]))


@pytest.mark.parametrize("hz", [4000, 4600, *range(5000, 12_000, 1000)])
def test_frequencies_above_the_telephone_band_are_removed(hz: float) -> None:
    """The s of a wide-band voice does not become a whistle for the caller."""
    assert alias_db(hz) < -80


@pytest.mark.parametrize("hz", [300, 1000, 2000, 3000, 3400])
def test_nothing_is_added_above_the_telephone_band(hz: float) -> None:
    """The model hears the caller without a mirror image of the voice."""
    assert image_db(hz) < -80


def test_speech_agrees_with_another_resampler() -> None:
    """A resampler of another design gives the same: in the band, and to the sample."""
    speech = voice.speak("Hello, is anybody there?", rate=24_000).pcm
    theirs = np.frombuffer(voice.resample(speech, 24_000, 8000), "<i2")

    ours = down(np.frombuffer(speech, "<i2"))

    wanted = in_band(theirs)
    error = in_band(ours.astype(float) - theirs[: len(ours)])
    assert (wanted**2).mean() > 1000**2
    assert (error**2).mean() < (wanted**2).mean() / 1e5
