"""What the model has yet to be told: words that wait for it, items it may have lost.

PURE. An item that was sent counts as told when the server has shown it.
"""

from dataclasses import dataclass

from bridge.core.unconfirmed import Unconfirmed

MAX_UNTOLD = 64
"""Kept until the model is ready; no user's code has so much to say at once ..."""

MAX_UNTOLD_CHARS = 8_000_000
"""... nor of that length: results of tools are 100,000 at most."""


@dataclass(frozen=True, slots=True)
class Word:
    """Words that nobody spoke; answered with `respond`."""

    role: str
    text: str
    respond: bool


class Untold(Unconfirmed):
    """One call's: words and whole client events that wait, items that were sent."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Word | str] = []
        self._chars = 0
        """Of those that wait."""
        self.asked = False
        """An answer was wanted before the model was ready."""

    def keep(self, word: Word | str) -> bool:
        """False: there is too much already, and it is lost."""
        chars = self._chars + len(word.text if isinstance(word, Word) else word)
        if len(self._waiting) >= MAX_UNTOLD or chars > MAX_UNTOLD_CHARS:
            return False
        self._chars = chars
        self._waiting.append(word)
        return True

    def take(self) -> list[Word | str]:
        """What waited, now that the model is there."""
        waiting, self._waiting, self._chars = self._waiting, [], 0
        return waiting

    @property
    def to_be_answered(self) -> bool:
        return any(isinstance(it, Word) and it.respond for it in self._waiting)
