"""The text of one item, with the place in its audio at which it arrived."""

from bridge.core.transcript import ItemTranscript, first_words


def test_text_is_kept_with_its_arrival() -> None:
    """Deltas without audio between them are one piece."""
    words = ItemTranscript()
    for at, text in ((0, "Good "), (0, "mor"), (800, "ning.")):
        words.add(text, at)

    assert words.all == "Good morning."
    assert words.pieces == [(0, "Good mor"), (800, "ning.")]
    assert ItemTranscript().all == ""


def test_text_without_audio_is_forgotten() -> None:
    """Of an item that ends early, the text up to the end of its audio is kept."""
    words = ItemTranscript([(0, "Good "), (800, "morning"), (1600, " Sir")])

    words.keep(8)

    assert words.pieces == [(0, "Good "), (800, "mor")]


def test_a_share_of_a_text_ends_between_two_words() -> None:
    """Half a word does not count, and a line break separates words, too."""
    assert first_words("one two three", 0.7) == "one two"
    assert first_words("one\ntwo", 0.9) == "one"
    assert first_words("one", 0.9) == ""
