"""The words of one spoken item, tied to its audio: which of them were heard.

The words come as deltas a little ahead of their audio; a delta belongs to the audio
that follows it, up to the next one.
"""

from collections.abc import Iterable

from bridge.audio.g711 import BYTES_PER_MS

MIN_CHAR_BYTES = 45 * BYTES_PER_MS
"""Of audio to a character, in quick speech: a word with less is not whole."""


MAX_PIECE_CHARS = 4096
"""What comes without audio between is one piece, up to so much: words without end would
be copied again and again."""

PIECE_CHARS = 64
"""A piece takes as much memory as so many characters."""


def size_of(text: str) -> int:
    """Of a delta in characters: what is to be had for it at most."""
    return len(text) + PIECE_CHARS


class ItemTranscript:
    """Words of one item with the byte of its audio at which each delta came."""

    __slots__ = ("_pieces", "size")

    def __init__(self, pieces: Iterable[tuple[int, str]] = ()) -> None:
        self._pieces = list(pieces)
        self.size = sum(size_of(text) for _, text in self._pieces)
        """Characters, with those that a piece is worth; no less than there are."""

    def add(self, text: str, at_bytes: int) -> None:
        """A delta, come when `at_bytes` of the item's audio had been received."""
        self.size += size_of(text)
        if self._pieces and self._pieces[-1][0] == at_bytes:
            before = self._pieces[-1][1]
            if len(before) < MAX_PIECE_CHARS:
                self._pieces.pop()
                text = before + text
        self._pieces.append((at_bytes, text))

    @property
    def all(self) -> str:
        return "".join(text for _, text in self._pieces)

    @property
    def pieces(self) -> list[tuple[int, str]]:
        """(byte of the audio at which they came, words), in order."""
        return list(self._pieces)

    def end_at(self, received_bytes: int) -> None:
        """No more audio will come: words that ran ahead of it were never spoken, nor
        one of which only the beginning came."""
        while len(self._pieces) > 1 and self._pieces[-1][0] >= received_bytes:
            self._pieces.pop()
        if not self._pieces:
            return
        at, text = self._pieces.pop()
        came = received_bytes - (at if self._pieces else 0)
        takes = len(text.strip()) * MIN_CHAR_BYTES
        self._pieces.append(
            (at, _first_words(text, came / takes) if came < takes else text)
        )

    def heard(self, heard_bytes: int, received_bytes: int) -> str:
        """The words whose audio lies before `heard_bytes`, cut between two words.

        A delta whose audio was heard in part gives words in proportion to it.
        """
        if heard_bytes >= received_bytes:
            return self.all
        # What came before the first word belongs to it: some servers send all the
        # words behind the audio.
        starts = [0, *(at for at, _ in self._pieces[1:]), received_bytes]
        heard = ""
        for (_, text), start, end in zip(
            self._pieces, starts, starts[1:], strict=False
        ):
            if heard_bytes >= end:
                heard += text
            elif heard_bytes > start:
                heard += _first_words(text, (heard_bytes - start) / (end - start))
        return heard


def _first_words(text: str, share: float) -> str:
    cut = int(len(text) * share)
    while cut and not text[cut].isspace():
        cut -= 1  # half a word was not said
    return text[:cut]
