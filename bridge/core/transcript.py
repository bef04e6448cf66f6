"""The text of one spoken item, tied to its audio: which words were heard.

Text arrives as deltas, a little ahead of their audio. A delta belongs to the audio
behind it, up to the next delta.
"""

from collections.abc import Iterable

from bridge.audio.g711 import BYTES_PER_MS

MIN_CHAR_BYTES = 45 * BYTES_PER_MS
"""Least audio of one character, in quick speech. If the last text has less, its last
word is incomplete."""


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

    def end_at(self, received_bytes: int) -> None:
        """No more audio will arrive: drops text whose audio never arrived, and a last
        word whose audio is incomplete."""
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
        """The text whose audio lies before `heard_bytes`, cut between two words.

        If the audio of a delta was heard in part, the same share of its text counts.
        """
        if heard_bytes >= received_bytes:
            return self.all
        # Audio before the first text belongs to that text: some servers send all text
        # after the audio.
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
        cut -= 1  # do not count half a word
    return text[:cut]
