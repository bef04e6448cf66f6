"""Whether Twilio's stream is connected, and how long a call waits for another one.

PURE. The one owner of "is there a stream?".
"""

import math

START_SECONDS = 10.0
"""Longest wait for `start`. Twilio sends `start` right after `connected`; a socket
without `start` is not a call."""

SILENT_SECONDS = 45.0
"""A stream that has sent nothing for this long is asked whether it is there: a bare
mark is sent. Twilio sends 50 frames a second, but none for a caller who is muted or on
hold, and returns a mark at once where no audio is queued."""

PROBE_SECONDS = 15.0
"""A stream that does not return that mark in this time is lost, even if no `stop` came
(error 31924)."""

ABSENT_SECONDS = 10.0
"""How long the call waits for a new stream after the old one broke. Twilio requests the
next TwiML at once; a new stream arrives within a second or two."""


class StreamPresence:
    """The stream of one call. Times are seconds of the caller's clock `now`."""

    __slots__ = ("_exists", "_probed_at", "ends_silent", "last_message_at", "lost_at")

    def __init__(self, now: float, *, exists: bool = True) -> None:
        """`exists`: the call has streams; else nothing is ever lost."""
        self._exists = exists
        self.last_message_at = now
        """Written directly, without a method, because that happens 50 times a
        second."""
        self.lost_at: float | None = None
        """When the stream broke; None: it is connected."""
        self.ends_silent = True
        """A stream that sends nothing is given up. False (a route with `silence: off`):
        only a connection that breaks, or returns no ping, is lost."""
        self._probed_at = -math.inf
        """When a mark was sent to a stream that sent nothing."""

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

    def probed(self, now: float) -> None:
        """A mark was sent to the stream, which has sent nothing since `probe_at`."""
        self._probed_at = now

    @property
    def due_at(self) -> float | None:
        """When the stream is given up, or probed before that; None: at no known
        time."""
        if self.lost_at is None and self._probed_at < self.last_message_at:
            return self.probe_at  # as a rule: it is read for the caller's frames
        return self.given_up_at

    @property
    def probe_at(self) -> float | None:
        """When a stream that sends nothing is probed; None: it is not."""
        if not self._watches_silence or self._probed_at >= self.last_message_at:
            return None
        return self.last_message_at + SILENT_SECONDS

    @property
    def given_up_at(self) -> float | None:
        """When a broken stream, or one that has not returned the probe's mark, ends the
        call."""
        if self.lost_at is not None:
            return self.lost_at + ABSENT_SECONDS
        if not self._watches_silence or self._probed_at < self.last_message_at:
            return None
        return self._probed_at + PROBE_SECONDS

    @property
    def _watches_silence(self) -> bool:
        return self._exists and self.ends_silent and self.lost_at is None
