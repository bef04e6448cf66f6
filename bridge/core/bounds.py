"""How much the core accepts from either side of one call."""

import math

import msgspec


class Bounds(msgspec.Struct, frozen=True):
    """Given to the Conversation at its beginning; stored in a trace of it."""

    messages_per_second: float = 200.0
    """Of the caller's stream, averaged over ten seconds; Twilio sends 50."""
    audio_held_seconds: float = 20.0
    """Caller's audio held for a model that is not ready."""
    audio_ahead_seconds: float = 600.0
    """Agent's audio queued at Twilio."""


BURST_SECONDS = 10.0
"""A network that stalled delivers the messages of seconds at once, which is normal."""

MAX_ID_CHARS = 256
"""Of any id or name that a side sends; they are kept long. Twilio's ids have 34
characters, OpenAI's up to 32, others are UUIDs with a prefix."""


class MessageRate:
    """Rate limiter, averaged over a burst. `add` costs one addition and two
    comparisons: it runs for every frame."""

    __slots__ = ("_burst", "_per_second", "_spent_at")

    def __init__(self, per_second: float, burst_seconds: float = BURST_SECONDS) -> None:
        self._per_second = per_second
        self._burst = burst_seconds
        self._spent_at = -math.inf
        """When all that has arrived would have arrived at the permitted rate."""

    def add(self, amount: float, now: float) -> bool:
        """Counts `amount`; False: that is more than is permitted."""
        spent_at = self._spent_at
        if spent_at < now:
            spent_at = now
        self._spent_at = spent_at = spent_at + amount / self._per_second
        return spent_at - now <= self._burst
