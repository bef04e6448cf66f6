"""Which words of a response were heard, by where its audio was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.transcript import ItemTranscript

SECOND = 8000


def spoken(*pieces: tuple[int, str]) -> ItemTranscript:
    words = ItemTranscript()
    for at, text in pieces:
        words.add(text, at)
    return words


def test_all_is_heard_when_all_was_played() -> None:
    """The record of a call contains every word that was heard."""
    words = spoken((0, "Good "), (SECOND, "morning."))

    assert words.all == "Good morning."
    assert words.heard(2 * SECOND, 2 * SECOND) == "Good morning."
    assert words.heard(3 * SECOND, 2 * SECOND) == "Good morning."


def test_nothing_was_heard_of_what_never_began() -> None:
    """Text that was queued behind a barge-in is not recorded as heard."""
    assert spoken((0, "Good morning.")).heard(0, SECOND) == ""


def test_a_response_without_text_has_none() -> None:
    """Audio without a transcript is no reason to invent one."""
    assert ItemTranscript().all == ""
    assert ItemTranscript().heard(10, 20) == ""


def test_text_belongs_to_the_audio_behind_it() -> None:
    """Cut after the first second, only what was said in it was heard."""
    words = spoken((0, "one"), (SECOND, " two"), (2 * SECOND, " three"))

    assert words.heard(SECOND, 3 * SECOND) == "one"
    assert words.heard(SECOND + 100, 3 * SECOND) == "one"
    assert words.heard(2 * SECOND, 3 * SECOND) == "one two"


@pytest.mark.parametrize(
    ("heard", "words"),
    [
        (399, ""),  # in the middle of "one"
        (1200, "one"),  # behind it
        (1999, "one"),  # in the middle of "two"
        (2800, "one two"),
        (3999, "one two"),
    ],
)
def test_a_long_delta_is_cut_between_two_words(heard: int, words: str) -> None:
    """The record ends with the last whole word."""
    assert spoken((0, "one two th")).heard(heard, 4000) == words


def test_text_that_comes_behind_all_audio_is_distributed() -> None:
    """A server that sends its transcript last still gives a record of what was
    heard."""
    words = spoken((SECOND, "one two "), (SECOND, "three four"))

    assert words.heard(SECOND // 2, SECOND) == "one two"


def test_late_text_belongs_to_the_last_audio() -> None:
    """A last word without audio of its own counts as heard only with the last audio."""
    words = spoken((0, "one"), (SECOND, " two"))

    assert words.heard(SECOND - 1, SECOND) == ""
    assert words.heard(SECOND, SECOND) == "one two"


def test_audio_before_the_first_word_belongs_to_it() -> None:
    """A breath before the first word does not shift the text."""
    assert spoken((1000, "one two")).heard(1400, 2000) == "one"


def test_a_line_break_separates_words() -> None:
    """Of a spoken list the lines that were heard are recorded."""
    assert spoken((0, "one\ntwo three")).heard(5000, 8000) == "one\ntwo"
    assert spoken((0, "one\ntwo")).heard(6000, 8000) == "one"


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.text("ab ", max_size=12)), max_size=6),
    st.integers(0, 20_000),
)
def test_what_was_heard_is_the_beginning_of_what_was_said(
    deltas: list[tuple[int, str]], heard: int
) -> None:
    """No word is recorded that was not said, and none out of order."""
    words, received = ItemTranscript(), 0
    for audio_before, text in deltas:
        received += audio_before
        words.add(text, received)

    said = words.heard(heard, received + 1000)

    assert words.all.startswith(said)
    assert len(said) <= len(words.heard(heard + 500, received + 1000))
