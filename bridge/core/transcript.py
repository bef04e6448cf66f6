"""The text of one spoken item, with the place in its audio at which it arrived.

Where the words lie in the audio: word_positions.py.
"""

from collections.abc import Iterable

MAX_PIECE_CHARS = 4096
"""Deltas without audio between them are joined into one piece, up to this length: each
delta copies the whole piece."""

PIECE_CHARS = 64
"""Memory of a piece without its text, as a number of characters."""


def size_of(text: str) -> int:
    """Most that a delta can add to `ItemTranscript.size`, in characters."""
    return len(text) + PIECE_CHARS


class ItemTranscript:
    """Text of one item, with the byte of its audio at which each delta arrived."""

    __slots__ = ("_pieces", "size")

    def __init__(self, pieces: Iterable[tuple[int, str]] = ()) -> None:
        self._pieces = list(pieces)
        self.size = sum(size_of(text) for _, text in self._pieces)
        """Characters, with PIECE_CHARS for each delta: an upper bound."""

    def add(self, text: str, at_bytes: int) -> None:
        """A delta that arrived when `at_bytes` of the item's audio had been
        received."""
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
        """(byte of the audio at which the text arrived, text), in order."""
        return list(self._pieces)

    def keep(self, chars: int) -> None:
        """Forgets the text behind so many characters."""
        kept: list[tuple[int, str]] = []
        for at, text in self._pieces:
            kept.append((at, text[:chars]))
            chars -= len(kept[-1][1])
        self._pieces = [(at, text) for at, text in kept if text]


def first_words(text: str, share: float) -> str:
    """So much of a text, cut between two words."""
    cut = int(len(text) * share)
    while cut and not text[cut].isspace():
        cut -= 1  # do not count half a word
    return text[:cut]
