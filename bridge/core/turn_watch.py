"""A turn of the caller that the server may never end: how long it goes on, how long the
caller has been quiet, and whether they go on after the bridge has ended it. PURE.
"""

import math
from collections.abc import Iterator

from bridge.audio import g711
from bridge.core.kept_audio import KeptAudio

QUIET_LEVEL = 250
"""RMS (of 16-bit samples) below which nobody speaks: -42 dBFS. A line's noise is
lower, a quiet voice is higher."""

QUIET_SECONDS = 2.5
"""Silence in which a server with `server_vad` and its usual wait ends a turn."""

QUIET_CHECK_SECONDS = 0.5
"""Between two checks whether a caller who counts as speaking is quiet."""

TONE_SECONDS = 3.0
"""After this much silence in a turn, or when a response has waited for its end for so
long, a tone tells the caller that the line works."""

COMPARED_MS = 200
"""Audio whose level is measured together: as a rule the newest is speech, and no other
is looked at."""

LONGEST_TURN_SECONDS = 60.0
"""A turn that the server has not ended by then is ended: with a loud background the
server may hear speech for ever."""

LONGEST_WAIT_SECONDS = 8.0
"""The same from the moment at which another response is owed, such as one that speaks
of a tool's result: it waits for the end of the turn."""


class TurnWatch:
    """The caller's turn in one call; the audio is looked at twice a second, and only
    while the caller counts as speaking, or may go on in a turn that the bridge ended.
    """

    def __init__(self, audio: KeptAudio, now: float) -> None:
        """`audio`: what the model was given since the caller's last turn."""
        self._audio = audio
        self._began = self._ends_by = now
        self.check_at: float | None = None
        """When `is_stuck` must be asked; None: there is nothing to watch. Kept, because
        it is read for every frame."""
        self._tone_due = self._tone_played = False
        """A tone for the quiet caller, once in each turn."""
        self._ended_by_bridge = False
        """The server may still hear the turn: no event tells if the caller goes on."""
        self.goes_on = False
        """The caller has spoken since the bridge has ended the turn."""

    def began(self, now: float) -> None:
        """The server hears the caller speak."""
        self.ended()
        self._begin(now)
        self.check_at = now + QUIET_SECONDS

    def _begin(self, now: float) -> None:
        self._began, self._ends_by = now, now + LONGEST_TURN_SECONDS
        self._tone_due = self._tone_played = False

    def ended(self) -> None:
        """The server hears no turn any more, for all that it tells."""
        self.check_at, self._ended_by_bridge, self.goes_on = None, False, False

    def was_stuck(self, now: float) -> None:
        """The bridge ends the turn."""
        self._ended_by_bridge, self.goes_on = True, False
        self.check_at = now + QUIET_CHECK_SECONDS

    def is_more(self, *, committed: bool) -> bool:
        """The server ends a turn now. True: it is more of one that the bridge had
        ended, so it needs a response of its own. `committed`: the server has taken that
        end."""
        if not self._ended_by_bridge:
            return False  # as a rule; to hear the whole turn takes a while
        return self.goes_on or (committed and not self.is_quiet(math.inf))

    def response_waits(self, now: float) -> None:
        """A response is owed, and waits for the end of the turn."""
        self._ends_by = min(self._ends_by, now + LONGEST_WAIT_SECONDS)

    def is_stuck(self, quiet_seconds: float, now: float, *, committed: bool) -> bool:
        """The server does not end the caller's turn: the caller has been quiet for
        `quiet_seconds`, or the turn is too long. `committed`: as in `is_more`."""
        if self.check_at is None or now < self.check_at:
            return False
        self.check_at = now + QUIET_CHECK_SECONDS
        if self._ended_by_bridge and not self.goes_on:
            self._begin(now)
            quiet = self.is_quiet(1000 * QUIET_CHECK_SECONDS)
            self.goes_on = committed and not quiet
            return False
        quiet_ms = self._quiet_ms(1000 * quiet_seconds)
        quiet_ms = min(quiet_ms, 1000 * (now - self._began))
        waits = now >= self._ends_by - LONGEST_WAIT_SECONDS + TONE_SECONDS
        if (waits or quiet_ms >= 1000 * TONE_SECONDS) and not self._tone_played:
            self._tone_due = self._tone_played = True
        return now >= self._ends_by or quiet_ms >= 1000 * quiet_seconds

    def take_tone(self) -> bool:
        """True: a tone is due, now."""
        due, self._tone_due = self._tone_due, False
        return due

    def is_quiet(self, ms: float) -> bool:
        """No speech is known in the last `ms` of the caller's audio."""
        return all(g711.loudness(it) < QUIET_LEVEL for it in self._newest(ms))

    def _quiet_ms(self, most: float) -> float:
        """For how long, up to `most`, the newest of the caller's audio is no speech."""
        quiet = 0.0
        for sound in self._newest(most):
            if g711.loudness(sound) >= QUIET_LEVEL:
                break  # as a rule the newest
            quiet += len(sound) / g711.BYTES_PER_MS
        return quiet

    def _newest(self, ms: float) -> Iterator[bytes]:
        """The last `ms` of the caller's audio, in pieces, the newest first."""
        for sound in self._audio.newest(COMPARED_MS):
            if ms <= 0:
                return
            piece = sound[-int(min(ms, COMPARED_MS) * g711.BYTES_PER_MS) :]
            ms -= len(piece) / g711.BYTES_PER_MS
            yield piece
