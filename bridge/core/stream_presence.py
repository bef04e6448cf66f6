"""Whether Twilio's stream is connected, and how long a call waits for another one.

PURE. The one owner of "is there a stream?".
"""

START_SECONDS = 10.0
"""Longest wait for `start`. Twilio sends `start` right after `connected`; a socket
without `start` is not a call."""

SILENT_SECONDS = 60.0
"""A stream that sends nothing for this long is lost, even if no `stop` came (error
31924). Twilio sends 50 frames a second; lines that send no frames in silence still
return marks."""

ABSENT_SECONDS = 10.0
"""How long the call waits for a new stream after the old one broke. Twilio requests the
next TwiML at once; a new stream arrives within a second or two."""


class StreamPresence:
    """The stream of one call. Times are seconds of the caller's clock `now`."""

    __slots__ = ("_exists", "last_message_at", "lost_at")

    def __init__(self, now: float, *, exists: bool = True) -> None:
        """`exists`: the call has streams; else nothing is ever lost."""
        self._exists = exists
        self.last_message_at = now
        """Written directly, without a method, because that happens 50 times a
        second."""
        self.lost_at: float | None = None
        """When the stream broke; None: it is connected."""

    @property
    def is_lost(self) -> bool:
        return self.lost_at is not None

    def lost(self, now: float) -> None:
        """The stream broke."""
        self.lost_at = now

    def back(self, now: float) -> float:
        """Another stream has come. Returns the seconds without a stream."""
        away = now - (now if self.lost_at is None else self.lost_at)
        self.lost_at = None
        return away

    @property
    def given_up_at(self) -> float | None:
        """When a broken stream, or a stream that sends nothing, ends the call."""
        if not self._exists:
            return None
        if self.lost_at is not None:
            return self.lost_at + ABSENT_SECONDS
        return self.last_message_at + SILENT_SECONDS
