"""Keys that the caller presses, gathered into inputs; a pause or `#` ends an input."""

from collections.abc import Iterable

MAX_KEYS = 64
"""Most keys of one input: more than any card number has. Limits a key that is held
down."""


class Keys:
    """Gathers key presses. `actions`: inputs that are complete as soon as they are
    pressed, unless a longer action begins with them."""

    def __init__(self, pause_seconds: float = 2.0, actions: Iterable[str] = ()) -> None:
        self._pressed = ""
        self._last = 0.0
        self.set_rules(pause_seconds, actions)

    def set_rules(self, pause_seconds: float, actions: Iterable[str]) -> None:
        self._pause = pause_seconds
        self._actions = frozenset(actions)

    def press(self, key: str, now: float) -> str | None:
        """Returns the input that this key completes, without a final `#`; else None."""
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
        """Returns the keys pressed so far as one input."""
        pressed, self._pressed = self._pressed, ""
        if pressed in self._actions:
            return pressed
        return pressed.removesuffix("#") or pressed
