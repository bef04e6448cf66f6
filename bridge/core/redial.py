"""When a lost model is dialled again, and when a call without a model ends. PURE.

Says how long to wait. model/wire.py dials, and adds the jitter.
"""

READY_SECONDS = 10.0
"""Longest time from the start of a call to the model's session.updated; no caller waits
longer for the agent. A handshake and a model that is slow to start take 1-3 s."""

AWAY_SECONDS = 20.0
"""Longest time from the loss of a model to the next session; the caller's audio is held
for the same time."""

STEADY_SECONDS = 10.0
"""A session that is lost sooner counts to the outage before it: the deadline stays."""

WAITS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Seconds before the 1st, 2nd, ... try; the last value holds for all further ones."""

SPARE_SECONDS = 30.0
"""Wait after a spare connection failed, before the next try."""


class Redial:
    """The retries of one call. `expires`: when a call without a model ends."""

    def __init__(self, now: float) -> None:
        self.expires = now + READY_SECONDS
        self.had_session = False
        """There was a session: another one continues its conversation."""
        self.lost_at = now
        """When the caller was last left without a model."""
        self._tries = 0
        self._ready_at: float | None = None
        self._outage_ends: float | None = None

    def lost(self, now: float) -> None:
        """The session is lost; `wait` says when to dial."""
        if self._ready_at is None:
            return  # no session began since the last loss: the deadline stays
        self.lost_at = now
        steady = now >= self._ready_at + STEADY_SECONDS
        self._ready_at = None
        if steady or self._outage_ends is None:
            self._outage_ends = now + AWAY_SECONDS
            self._tries = 0
        self.expires = self._outage_ends

    def wait(self) -> float:
        """Seconds to wait before the next try; counts the try."""
        wait = WAITS[min(self._tries, len(WAITS) - 1)]
        self._tries += 1
        return wait

    def ready(self, now: float) -> None:
        """A session is configured."""
        self.had_session = True
        self._ready_at = now
