"""The model connections of one call: lost, dialled again, rolled over. PURE.

The one owner of "is there a model?" and of "which connection may speak?". model_side.py
decides what a session is sent.
"""

import math
from collections.abc import Callable

from bridge.core.commands import CloseConnection, Command, Dial, Note, Switch
from bridge.core.redial import SPARE_SECONDS, Redial

CONFIGURE_SECONDS = 6.0
"""Longest time from an open connection to its session.updated; then the connection is
given up."""

NEW_SECONDS = 3.0
"""Time for a new session to understand the caller's audio that was held for it."""

PROBE_AFTER_SECONDS = 5.0
"""A server that sends nothing for this long is probed. It may be healthy: nobody
speaks."""

EXPECTED_SECONDS = 2.0
"""The same if an event is due: a response was requested, or the caller is loud and the
server hears no speech."""

EXPECTED_EVERY_SECONDS = 1.0
"""Between two checks whether an event is due."""

PROBE_ANSWER_SECONDS = 4.0
"""Longest wait for the answer to a probe; then the session is lost. Servers have hung
while their sockets still answered pings."""

FIRST_CONNECTION = 1
"""Number of the first connection, which is dialled without a `Dial`."""


class Sessions:
    """Which model connection one call wants, and when.

    A connection is dialled, becomes the one in use (`Switch`), and is a session once
    the server has configured it (`began`). `has_session`: a session is in use. Each
    connection has a number; events of any other connection than `in_use` are not
    events of this call any more.

    Invariants: at most one connection is being dialled. A spare one is open only beside
    a session in use; it takes over when that session is left. A connection that is left
    is closed.
    """

    def __init__(self, now: float) -> None:
        self._redial = Redial(now)
        self.in_use: int | None = None
        """The connection whose events count; None: there is no connection."""
        self.has_session = False
        self.left_why = ""
        """Why the last session was left."""
        self.spare: int | None = None
        """A connection that is open beside the one in use; it takes over in a quiet
        moment."""
        self._newest = FIRST_CONNECTION
        """The connection that was dialled last."""
        self._dialling = True
        """It is being opened. True at first: the first connection needs no `Dial`."""
        self._old_at: float | None = None
        """When the session is old enough to be replaced; None: never, or the
        replacement is already under way."""
        self._configure_by: float | None = None
        """When the connection in use is given up, unless it has become a session."""
        self._began_at = -math.inf
        """When the session took over from another."""
        self._last_event_at = now
        """When the server last sent an event, or was last sent a probe."""
        self._check_at = now
        """When it is checked next whether a probe must be sent."""
        self.probed = False
        """A probe was sent, and no event has come since."""
        self._probe_open = False
        """A probe was sent, and no session.updated has come since."""
        self._answers_probes: bool | None = None
        """The server answers probes; None: unknown. Not every server with this API
        does."""

    def start(self, now: float) -> None:
        """The call begins: the first connection is being dialled."""
        self._redial = Redial(now)
        self._last_event_at = self._check_at = now

    @property
    def had_session(self) -> bool:
        """There was a session; the next one continues its conversation."""
        return self._redial.had_session

    @property
    def lost_at(self) -> float:
        """When the caller was last left without a model."""
        return self._redial.lost_at

    def is_given_up(self, now: float) -> bool:
        """The caller has waited for a session as long as they may."""
        return not self.has_session and now >= self._redial.expires

    def is_new(self, now: float) -> bool:
        """The session took over less than NEW_SECONDS ago: it may still be working on
        the caller's audio that was held for it."""
        return self.had_session and now < self._began_at + NEW_SECONDS

    def began(self, now: float, lasts: float | None) -> None:
        """A session is configured; it is old after `lasts` seconds (None: never)."""
        self._began_at = now if self.had_session else -math.inf
        self._redial.ready(now)
        self.has_session = True
        self._configure_by = None
        self.event_received(now)
        if self._answers_probes is None:
            # Probe at once, to learn whether this server answers probes.
            self._last_event_at -= PROBE_AFTER_SECONDS
            self._check_at = now
        self._old_at = None if lasts is None else now + lasts

    def lost(self, connection: int) -> bool:
        """A connection is closed. False: it was not in use."""
        if connection != self.in_use:
            return False
        self.in_use = None
        return True

    def leave(self, why: str, now: float) -> list[Command]:
        """The session is no longer usable, or the connection never became a session."""
        commands: list[Command] = []
        if self.in_use is not None:
            commands.append(CloseConnection(self.in_use))
            self.in_use = None
        if self.has_session:
            self.left_why = why
            self._redial.lost(now)  # without a session the same outage continues
        self.has_session = False
        self._old_at = self._configure_by = None
        return commands

    def switch_or_dial(self, now: float) -> list[Command]:
        """Switches to the spare connection, or dials one."""
        if self.spare is not None:
            spare, self.spare = self.spare, None
            return self._switch(spare, now)
        return [] if self._dialling else [self._dial(self._redial.wait())]

    def _dial(self, seconds: float) -> Dial:
        self._dialling = True
        self._newest += 1
        return Dial(self._newest, seconds)

    def dialled(self, connection: int, now: float) -> list[Command]:
        """A connection is open. With a session in use it is the spare one; else it is
        used."""
        if connection != self._newest or not self._dialling:
            return []
        self._dialling = False
        if self.has_session:
            self.spare = connection
            return []
        return self._switch(connection, now)

    def event_received(self, now: float) -> None:
        """The server sent an event: it is alive."""
        self._last_event_at = now
        self._check_at = now + EXPECTED_SECONDS
        self.probed = False

    def probe_answered(self, now: float) -> None:
        """The server sent a message that may answer a probe: a session.updated, or an
        error that names the probe."""
        if self._probe_open:
            self._answers_probes = True
        self._probe_open = False
        self.event_received(now)

    def take_probe(self, now: float, expects: Callable[[], bool]) -> bool:
        """True: a probe must be sent now; False until the next one is due. `expects`:
        whether an event of the server is due."""
        if not self.has_session or self.probed or self._answers_probes is False:
            return False
        if now < self._check_at:
            return False
        probe_at = self._last_event_at + PROBE_AFTER_SECONDS
        if now < probe_at and not expects():
            self._check_at = min(now + EXPECTED_EVERY_SECONDS, probe_at)
            return False
        self.probed = self._probe_open = True
        self._last_event_at = now
        return True

    def _is_mute(self, now: float) -> bool:
        """True: the server, which answered earlier probes, did not answer this one. A
        server that has never answered a probe is not probed again."""
        if not self.has_session or not self.probed:
            return False
        if now < self._last_event_at + PROBE_ANSWER_SECONDS:
            return False
        if self._answers_probes:
            return True
        self._answers_probes, self.probed = False, False
        return False

    @property
    def _probe_due(self) -> float | None:
        if self.probed:
            return self._last_event_at + PROBE_ANSWER_SECONDS
        if self._answers_probes is False:
            return None
        return self._check_at

    def _switch(self, connection: int, now: float) -> list[Command]:
        self.in_use = connection
        self._configure_by = now + CONFIGURE_SECONDS
        return [Switch(connection)]

    def lost_reason(self, now: float) -> str | None:
        """Why an open connection is lost: "late" (no session in time), "mute" (no
        answer to a probe); None: it is not."""
        if self._configure_by is not None and now >= self._configure_by:
            return "late"
        return "mute" if self._is_mute(now) else None

    def not_dialled(self, connection: int, now: float) -> bool:
        """The connection failed. A spare one is tried again after SPARE_SECONDS. False:
        no such connection was being dialled."""
        if connection != self._newest or not self._dialling:
            return False
        self._dialling = False
        if self.has_session:
            self._old_at = now + SPARE_SECONDS
        return True

    def dial_spare_if_old(self, now: float) -> list[Command]:
        """Dials a spare connection once the session is old."""
        if self._old_at is None or now < self._old_at:
            return []
        self._old_at = None
        return [Note("session_old"), self._dial(0.0)]

    @property
    def due_at(self) -> float | None:
        """When a probe, a roll-over or a deadline is due."""
        if self.has_session:
            probe, old = self._probe_due, self._old_at
            if probe is None or old is None:
                return old if probe is None else probe
            return min(probe, old)
        expires, configure_by = self._redial.expires, self._configure_by
        return expires if configure_by is None else min(expires, configure_by)
