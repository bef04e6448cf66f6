"""The model's sessions of one call: lost, dialled again, rolled over. PURE.

Says which connection is wanted and when; what a session is told is the conversation's
business.
"""

import math

from bridge.core.commands import Command, Dial, Note, Switch
from bridge.core.redial import SPARE_SECONDS, Redial

CONFIGURE_SECONDS = 6.0
"""From a connection to its session.updated; one that takes longer is left."""

NEW_SECONDS = 3.0
"""For a session to find out what the caller said while there was none."""

PROBE_AFTER_SECONDS = 5.0
"""Of a server that says nothing, as it may when nobody speaks; then it is asked for a
sign of life ..."""

PROBE_ANSWER_SECONDS = 4.0
"""... which comes within so long, or the session is lost. Sockets that answer pings
have hung behind them before."""

COMFORT_SECONDS = 3.0
"""Of silence while the model is away; then, and every ..."""

COMFORT_EVERY_SECONDS = 4.0
"""... the caller hears a soft tone: the line is not dead."""


class Sessions:
    """`there` is told by the conversation: a session has been configured."""

    def __init__(self, now: float) -> None:
        self._redial = Redial(now)
        self.there = False
        self.left_why = ""
        """Why the session before was left."""
        self.spare = False
        """A connection is open beside the one in use, for a quiet moment."""
        self._dialling = True
        """One is being made; the first one unasked."""
        self._old_at: float | None = None
        """When the session is old enough for another one."""
        self._configure_by: float | None = None
        """When a connection is left that does not become a session."""
        self._comfort_at = now
        self._began_at = -math.inf
        """When the session took over from another."""
        self._last_event_at = now
        """When the server last said anything."""
        self._probed = False
        """It was asked for a sign since then ..."""
        self._probe_open = False
        """... and that has not been answered as such."""
        self._answers_probes: bool | None = None
        """The server answers a probe; None: it was not seen yet. Not every server that
        speaks this API need do so."""

    @property
    def had_session(self) -> bool:
        """There was a session: another one goes on with its conversation."""
        return self._redial.had_session

    @property
    def lost_at(self) -> float:
        return self._redial.lost_at

    @property
    def is_away(self) -> bool:
        """There was one, and is none."""
        return self.had_session and not self.there

    @property
    def is_configuring(self) -> bool:
        """The connection in use is to become a session. One that was left while its
        successor was being dialled is still there, and of no more use."""
        return self._configure_by is not None or not self.had_session

    def is_given_up(self, now: float) -> bool:
        """The caller has waited for one as long as they may."""
        return not self.there and now >= self._redial.expires

    def is_new(self, now: float) -> bool:
        """It took over a short while ago: what it was given of the caller's voice, it
        may not have understood yet."""
        return self.had_session and now < self._began_at + NEW_SECONDS

    def began(self, now: float, lasts: float | None) -> None:
        """A session is configured; after `lasts` seconds it is old."""
        self._began_at = now if self.had_session else -math.inf
        self._redial.ready(now)
        self.there = True
        self._configure_by = None
        self.event_received(now)
        if self._answers_probes is None:
            # Probe at once, to learn whether this server answers probes.
            self._last_event_at -= PROBE_AFTER_SECONDS
        self._old_at = None if lasts is None else now + lasts

    def left(self, why: str, now: float) -> None:
        """The session is of no more use, or never came to be one."""
        if self.there:
            self.left_why = why
            self._comfort_at = now + COMFORT_SECONDS
            self._redial.lost(now)  # else it is the same outage still
        self.there = False
        self._old_at = self._configure_by = None

    def switch_or_dial(self, now: float) -> list[Command]:
        """The spare one takes over, or one is dialled."""
        if self.spare:
            self.spare = False
            return self._switch(now)
        if self._dialling:
            return []
        self._dialling = True
        return [Dial(self._redial.wait())]

    def dialled(self, now: float) -> list[Command]:
        self._dialling = False
        self.spare = self.there
        return [] if self.there else self._switch(now)

    def event_received(self, now: float) -> None:
        """The server has said something."""
        self._last_event_at = now
        self._probed = False

    def probe_answered(self, now: float) -> None:
        """It was the answer to a probe, as well as can be told."""
        if self._probe_open:
            self._answers_probes = True
        self._probe_open = False
        self.event_received(now)

    def take_probe(self, now: float) -> bool:
        """A sign of life is to be asked for."""
        if not self.there or self._probed or self._answers_probes is False:
            return False
        if now < self._last_event_at + PROBE_AFTER_SECONDS:
            return False
        self._probed = self._probe_open = True
        self._last_event_at = now
        return True

    def _is_mute(self, now: float) -> bool:
        """None has come from a server that gives them."""
        if not self.there or not self._probed:
            return False
        if now < self._last_event_at + PROBE_ANSWER_SECONDS:
            return False
        if self._answers_probes:
            return True
        self._answers_probes, self._probed = False, False
        return False

    @property
    def _probe_due(self) -> float | None:
        if self._probed:
            return self._last_event_at + PROBE_ANSWER_SECONDS
        if self._answers_probes is False:
            return None
        return self._last_event_at + PROBE_AFTER_SECONDS

    def _switch(self, now: float) -> list[Command]:
        self._configure_by = now + CONFIGURE_SECONDS
        return [Switch()]

    def lost_reason(self, now: float) -> str | None:
        """Why a connection that nobody has closed is lost all the same."""
        if self._configure_by is not None and now >= self._configure_by:
            return "late"
        return "mute" if self._is_mute(now) else None

    def not_dialled(self, now: float) -> None:
        self._dialling = False
        if self.there:
            self._old_at = now + SPARE_SECONDS

    def dial_spare_if_old(self, now: float) -> list[Command]:
        """A session that has got old is about to have another in its place."""
        if self._old_at is None or now < self._old_at:
            return []
        self._old_at = None
        self._dialling = True
        return [Note("session_old"), Dial(0.0, spare=True)]

    def take_comfort_tone(self, now: float) -> bool:
        """It is time for a sound of life."""
        if not self.is_away or now < self._comfort_at:
            return False
        self._comfort_at = now + COMFORT_EVERY_SECONDS
        return True

    @property
    def due_at(self) -> float | None:
        """When something is to be done: a session given up or renewed, a comfort."""
        due: tuple[float | None, ...]
        if self.there:
            due = (self._probe_due, self._old_at)
        else:
            comfort_at = self._comfort_at if self.had_session else None
            due = (self._redial.expires, self._configure_by, comfort_at)
        return min((at for at in due if at is not None), default=None)
