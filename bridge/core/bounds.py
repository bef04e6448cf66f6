"""How much of anything the core bears from either side of one call."""

import math

import msgspec


class Bounds(msgspec.Struct, frozen=True):
    """Handed to the Conversation at its beginning; kept in a trace of it."""

    messages_per_second: float = 200.0
    """Of the caller's stream, on an average of ten seconds; Twilio sends 50."""
    audio_held_seconds: float = 20.0
    """Of the caller's audio that waits for a model."""
    audio_ahead_seconds: float = 600.0
    """Of the agent's audio that is queued at Twilio."""


BURST_SECONDS = 10.0
"""A network that stalled delivers the messages of seconds at once: good and normal."""

MAX_ID_CHARS = 256
"""Of any id or name that a side sends: they are kept long after what they name. Those
of Twilio have 34 characters, OpenAI's up to 32, others are UUIDs behind some words."""


class MessageRate:
    """How much comes in a second, on the average of a burst. One addition and two
    comparisons an `add`: it stands in the way of every frame."""

    __slots__ = ("_burst", "_per_second", "_spent_at")

    def __init__(self, per_second: float, burst_seconds: float = BURST_SECONDS) -> None:
        self._per_second = per_second
        self._burst = burst_seconds
        self._spent_at = -math.inf
        """When, at that pace, all that has come would have."""

    def add(self, amount: float, now: float) -> bool:
        """False: that was more than is borne."""
        spent_at = self._spent_at
        if spent_at < now:
            spent_at = now
        self._spent_at = spent_at = spent_at + amount / self._per_second
        return spent_at - now <= self._burst
