"""Which words of an item were heard, however the server ties words to audio."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.pause_matching import MAX_WAYS, Breaks, Matching
from bridge.core.spoken_item import SpokenItem
from bridge.core.word_positions import MAX_WORDS, PACE, Pace, WordPositions

SECOND = 8000
TEXT = "We open at nine in the morning. On Saturdays we open at ten, and close at two."
WORDS = TEXT.split(" ")
SPOKEN = [0.0, 0.2, 0.55, 0.7, 1.05, 1.2, 1.45, 2.9, 3.1, 3.8, 4.0, 4.4, 4.6, 5.5, 5.7]
SPOKEN += [6.2, 6.4]
"""Seconds at which each word begins: a pause of 0.8 s behind the sentence, and one of
0.5 s behind the comma."""
PAUSES = ((int(2.1 * SECOND), int(2.9 * SECOND)), (5 * SECOND, int(5.5 * SECOND)))
END = 7 * SECOND


def server(lead: float, until: float = 99.0) -> list[tuple[int, str]]:
    """The words that a server with this lead has sent with so many seconds of audio: in
    deltas of 200 ms, each behind its words."""
    pieces: list[tuple[int, str]] = []
    received = min(until, 7.0)
    for index, (word, at) in enumerate(zip(WORDS, SPOKEN, strict=True)):
        sent = max(at - lead, 0.0) // 0.2 * 0.2
        if sent < received or until == 99.0:
            text = word if index == 0 else f" {word}"
            pieces.append((round(min(sent, received) * SECOND), text))
    return pieces


def heard(
    seconds: float,
    lead: float,
    *,
    until: float = 99.0,
    pace: Pace = Pace(),  # noqa: B008 - it is frozen
) -> int:
    """Words that count as heard when the caller heard so many seconds."""
    received = round(min(until, 7.0) * SECOND)
    pauses = [it for it in PAUSES if it[1] <= received]
    positions = WordPositions(
        server(lead, until), pauses, received, pace, whole=until == 99.0
    )
    return len(positions.before(round(seconds * SECOND)).split())


def truth(seconds: float) -> int:
    ends = [*SPOKEN[1:], 7.0]
    ends[6], ends[12] = 2.1, 5.0
    return sum((a + b) / 2 <= seconds for a, b in zip(SPOKEN, ends, strict=True))


LEADS = (1.0, 0.5, 0.0, -0.5, 99.0, -99.0)
"""Ahead, with the audio, behind; all first, and all last."""


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("seconds", [0.4, 1.3, 2.3, 2.8, 3.5, 4.5, 5.2, 6.0, 6.9])
def test_words_of_a_whole_answer(seconds: float, lead: float) -> None:
    """The report has at most one word too many or too few. By their arrival alone it
    were three, or all."""
    assert abs(heard(seconds, lead) - truth(seconds)) <= 1


@pytest.mark.parametrize("lead", LEADS[:-1])
@pytest.mark.parametrize("seconds", [0.4, 1.3, 2.3, 2.8, 3.5, 4.1])
def test_words_of_an_answer_that_the_model_had_not_finished(
    seconds: float, lead: float
) -> None:
    """The end of the text is not known; the voice's pace is, from earlier answers."""
    lead_bytes = lead * SECOND if abs(lead) <= 1 else None
    pace = Pace(weight=17.0, seconds=30.0, lead=lead_bytes)

    assert abs(heard(seconds, lead, until=4.4, pace=pace) - truth(seconds)) <= 1


@pytest.mark.parametrize("lead", [1.0, 0.5, 0.0])
def test_the_arrival_of_the_words_tells_the_pace_of_an_unknown_voice(
    lead: float,
) -> None:
    """The first answer of a call, cut while the model sends it."""
    assert abs(heard(4.0, lead, until=4.4) - truth(4.0)) <= 1


def test_all_words_behind_the_audio_of_an_answer_that_was_cut() -> None:
    """A server that sends its words last has sent those of the audio that it sent."""
    pieces = [(int(4.2 * SECOND), "We open at nine in the morning. On Saturdays")]
    positions = WordPositions(
        pieces, PAUSES[:1], int(4.2 * SECOND), Pace(weight=14.0), whole=False
    )

    said = positions.before(int(3.5 * SECOND))
    assert said == "We open at nine in the morning. On"


def test_text_that_is_much_longer_than_the_audio_is_not_squeezed_into_it() -> None:
    """A server that sent the text of all that it would have said."""
    pieces = [(SECOND, TEXT)]

    for pace in (Pace(), Pace(PACE, 60.0)):
        positions = WordPositions(pieces, (), SECOND, pace, whole=False)
        assert positions.before(SECOND) == "We open at nine in"


def test_text_that_ran_ahead_is_spread_over_the_audio_of_a_slow_voice() -> None:
    """All text came before its audio, so it cannot end before the audio."""
    positions = WordPositions(
        [(0, "one two six ten")], (), 4 * SECOND, Pace(), whole=False
    )

    assert positions.before(2 * SECOND) == "one two"


def test_nothing_was_heard_of_what_never_began() -> None:
    """Text that was queued behind a barge-in is not recorded as heard."""
    whole = WordPositions([(0, TEXT)], (), SECOND, Pace(), whole=True)
    begun = WordPositions([(0, TEXT)], (), 0, Pace(), whole=False)

    assert whole.before(0) == begun.before(0) == begun.before(SECOND) == ""
    assert begun.learn() == Pace()


@pytest.mark.parametrize("text", ["", "  "])
def test_a_response_without_text_has_none(text: str) -> None:
    """Audio without a transcript is no reason to invent one."""
    positions = WordPositions([(0, text)], (), SECOND, Pace(), whole=True)

    assert positions.before(SECOND) == ""
    assert positions.learn() == Pace()


def test_languages_without_blanks() -> None:
    """Of a Japanese or Chinese sentence the characters that were heard are recorded."""
    text = "\u4eca\u65e5\u306f\u3002\u826f\u3044\u5929\u6c17"
    positions = WordPositions([(0, text)], (), 7 * SECOND, Pace(), whole=True)

    assert positions.before(3 * SECOND) == text[:4]


def test_digits_take_longer_than_letters() -> None:
    """A number of five digits is spoken like five words."""
    positions = WordPositions(
        [(0, "It is 12345 now")], (), 8 * SECOND, Pace(), whole=True
    )

    assert positions.before(3 * SECOND) == "It is"


def test_a_delta_may_begin_within_a_word() -> None:
    """Tokens are not words: a word arrives with its first letter."""
    pieces = [(0, "Good"), (0, "ness "), (1600, "gra"), (3200, "cious"), (4800, " me")]
    positions = WordPositions(pieces, (), SECOND, Pace(), whole=True)

    assert positions.before(4000) == "Goodness"
    assert positions.before(SECOND) == "Goodness gracious me"


# --- what is learned ---


def learned(lead: float, before: Pace = Pace()) -> Pace:  # noqa: B008 - it is frozen
    positions = WordPositions(server(lead), PAUSES, END, before, whole=True)
    return positions.learn()


@pytest.mark.parametrize("lead", [1.0, 0.5, 0.0, -0.5])
def test_the_lead_is_learned(lead: float) -> None:
    """From an answer whose end is known, also on top of what was known."""
    once = learned(lead)

    assert once.is_learned and not once.is_settled
    assert once.lead == pytest.approx(lead * SECOND, abs=0.25 * SECOND)
    assert learned(lead, once).lead == pytest.approx(once.lead)
    assert learned(lead, Pace(17.0, 19.0)).is_settled


@pytest.mark.parametrize("lead", [99.0, -99.0])
def test_words_that_are_not_tied_to_the_audio_teach_no_lead(lead: float) -> None:
    """All first, or all last: only the pace is learned."""
    assert learned(lead).lead is None
    assert learned(lead).weight == pytest.approx(14.5, abs=2)


def test_a_lead_that_is_not_constant_is_forgotten() -> None:
    """Words that come in bursts of another rhythm than the audio say nothing. A small
    deviation in one answer does not make the lead of the others wrong."""
    wild = [
        (at, f"{word} ") for at, word in zip(range(100, 800, 50), WORDS, strict=False)
    ]
    rough = [(int(i * 0.85 * 8000) + 10, f"{w} ") for i, w in enumerate(WORDS[:8])]
    known = Pace(17.0, 10.0, 4000.0)

    forgotten = WordPositions(wild, PAUSES, END, known, whole=True).learn()
    assert forgotten.lead is None

    kept = WordPositions(rough, (), 6 * SECOND, known, whole=True)
    assert kept.learn().lead == 4000.0


def test_an_unfinished_answer_teaches_a_little() -> None:
    """By the pauses at its punctuation; the lead it does not teach."""
    pieces = [(0, TEXT)]
    pace = WordPositions(pieces, PAUSES, 6 * SECOND, Pace(17.0, 20.0), whole=False)

    assert pace.learn().weight < 17.0
    assert pace.learn().lead is None
    assert pace.learn().seconds < 22.0


def test_words_that_come_much_faster_than_speech_tell_no_pace() -> None:
    """A model that writes ten times faster than it speaks."""
    pieces = [(800 * i + 1, f"{word} ") for i, word in enumerate(WORDS * 3)]
    positions = WordPositions(pieces, (), 6 * SECOND, Pace(PACE, 60.0), whole=False)

    assert len(positions.before(3 * SECOND).split()) < 16


# --- pauses and punctuation ---


def test_a_pause_that_no_punctuation_explains_is_left_out() -> None:
    """A voice that hesitates in the middle of a sentence."""
    breaks = Breaks(text=[(30.0, True)], sound=[(0.8, 0.3), (2.0, 0.4)], seconds=4.0)

    assert Matching(breaks).best(15.0, (60.0, 4.0)).anchors == [
        (0, 0),
        (30.0, 2.0),
        (60.0, 4.0),
    ]


def test_punctuation_without_a_pause_is_left_out() -> None:
    """A voice that reads over commas."""
    text = [(10.0, False), (20.0, False), (30.0, True), (40.0, False), (45.0, False)]
    breaks = Breaks(text=text, sound=[(2.0, 0.4)], seconds=4.0)

    assert Matching(breaks).best(15.0, None).anchors == [(0, 0), (30.0, 2.0)]


def test_short_and_distant_pauses_are_not_matched() -> None:
    """Nor those at the very beginning or end."""
    sound = [(0.01, 0.4), (2.0, 0.1), (3.9, 0.4), (5.99, 0.4)]
    breaks = Breaks(text=[(30.0, True)], sound=sound, seconds=6.0)

    assert Matching(breaks).best(15.0, None).anchors == [(0.0, 0.0)]


def test_many_pauses_and_much_punctuation() -> None:
    """What is tried is bounded; a break behind many without a pause finds no way to
    the ones before."""
    text = [(3.0 * n, n % 2 == 0) for n in range(1, 40)]
    late = Breaks(text=text, sound=[(7.0, 0.4)], seconds=9.0)
    dense = Breaks(text, [(0.2 * n, 0.2) for n in range(1, 40)], 9.0)

    assert len(Matching(dense).best(15.0, None).anchors) > MAX_WAYS
    assert Matching(late).best(15.0, None).anchors == [(0.0, 0.0)]


def test_a_text_of_hours_follows_its_length() -> None:
    """Its punctuation is not matched: that would take too long."""
    words = "ab. " * (MAX_WORDS + 1)
    positions = WordPositions([(0, words)], PAUSES, END, Pace(), whole=True)

    assert abs(len(positions.before(END // 2).split()) - MAX_WORDS / 2) < 500


@given(
    st.lists(
        st.tuples(st.integers(0, 3000), st.text("ab ., 1", max_size=12)), max_size=8
    ),
    st.lists(st.integers(100, 4000), max_size=6),
    st.integers(0, 20_000),
    st.booleans(),
)
def test_what_was_heard_is_the_beginning_of_what_was_said(
    deltas: list[tuple[int, str]], gaps: list[int], heard: int, whole: bool
) -> None:
    """No word is recorded that was not said, and none out of order; who heard more has
    heard no less words."""
    pieces, received = [], 0
    for audio_before, text in deltas:
        received += audio_before
        pieces.append((received, text))
    pauses, at = [], 0
    for gap in gaps:
        pauses.append((at + gap, at + gap + 800))
        at += gap + 800
    positions = WordPositions(pieces, pauses, received + 1000, Pace(), whole=whole)

    said = positions.before(heard)

    assert "".join(text for _, text in pieces).startswith(said)
    assert len(said) <= len(positions.before(heard + 500))
    assert positions.learn().weight > 0


def test_a_long_pause_is_the_end_of_the_sentence() -> None:
    """The voice pauses within the sentence, too: 0.24 s where the pace expects the end,
    and 0.5 s a little later."""
    breaks = Breaks(((71.0, True),), ((3.82, 0.24), (4.28, 0.5)), 6.0)

    assert Matching(breaks).best(18.0, None).anchors == [(0.0, 0.0), (71.0, 4.28)]


@pytest.mark.parametrize("is_recording", [False, True])
def test_a_recording_does_not_teach_the_pace_of_the_model(is_recording: bool) -> None:
    """Another voice speaks in it."""
    item = SpokenItem("r", received=END, complete=True, is_recording=is_recording)
    item.words.add(TEXT, 0)

    _, pace = item.heard(END, Pace())

    assert pace.is_learned is not is_recording


def test_each_word_has_a_place() -> None:
    """A picture plays a word when it is clicked: the words follow each other, and the
    second sentence begins behind the pause."""
    pieces, pauses = [(0, "Good morning. "), (8000, "How are you?")], [(8000, 12_000)]
    placed = WordPositions(pieces, pauses, 20_000, Pace(), whole=True).placed()

    assert "".join(word for _, word in placed) == "Good morning. How are you?"
    starts = [byte for byte, _ in placed]
    assert starts == sorted(starts) and starts[0] == 0
    assert 10_000 <= dict((word.strip(), at) for at, word in placed)["How"] <= 14_000
