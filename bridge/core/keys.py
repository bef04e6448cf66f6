"""Keys the caller presses, gathered into inputs: what a pause or `#` ends is one."""

from collections.abc import Iterable

MAX_KEYS = 64
"""Longer than any card number; who leans on a key sends no book."""


class Keys:
    """`actions` are inputs that are complete the moment they are pressed, unless a
    longer one begins with them."""

    def __init__(self, pause_seconds: float, actions: Iterable[str] = ()) -> None:
        self._pause = pause_seconds
        self._actions = frozenset(actions)
        self._pressed = ""
        self._last = 0.0

    def press(self, key: str, now: float) -> str | None:
        """The input that this key completes, if it does; `#` at the end is left out."""
        self._pressed += key
        self._last = now
        pressed = self._pressed
        longer = any(it.startswith(pressed) and it != pressed for it in self._actions)
        if longer:
            return None
        if pressed in self._actions or key == "#" or len(pressed) >= MAX_KEYS:
            return self.take()
        return None

    @property
    def due_at(self) -> float | None:
        """When the pause ends the input."""
        return self._last + self._pause if self._pressed else None

    def take(self) -> str:
        """What was pressed, as one input."""
        pressed, self._pressed = self._pressed, ""
        if pressed in self._actions:
            return pressed
        return pressed.removesuffix("#") or pressed
