"""Waits for the moment at which the caller has heard all that the agent said. PURE."""

import msgspec

from bridge.core.commands import WaitDone

HEARD_SECONDS = 3.0
"""Audio that should have been played this long ago counts as heard, even if its mark
has not come back."""

ANSWER_SECONDS = 20.0
"""Longest wait for a response without progress before a call may end."""


MAX_WAITS = 256
"""Most waits at a time. Each tool may wait, and no model calls more tools at once."""


class Wait(msgspec.Struct, frozen=True):
    """One wait, begun at `since` (seconds). `then`: (by, why) of the `End` that follows
    when the caller has heard everything."""

    number: int
    since: float
    then: tuple[str, str] | None = None
    stoppable: bool = True
    """A barge-in ends the wait."""


class Outstanding(msgspec.Struct, frozen=True):
    """What the caller has yet to hear; times in seconds."""

    generating: bool
    """A response is requested or being generated."""
    unanswered: bool
    """The caller has spoken, and the server has not created its response yet."""
    queued: bool
    """Twilio may still have audio to play."""
    queue_ends: float
    """When that audio should have been played."""
    progress: float
    """When any part of a response was last received."""

    @property
    def nothing(self) -> bool:
        return not (self.generating or self.queued)


class Waits:
    """The waits of one call, in the order in which they began; each ends with one
    WaitDone, unless it is dropped."""

    def __init__(self) -> None:
        self._waits: list[Wait] = []

    def __bool__(self) -> bool:
        """True: a wait is under way."""
        return bool(self._waits)

    def add(self, wait: Wait) -> bool:
        """False: there are too many waits."""
        if len(self._waits) >= MAX_WAITS:
            return False
        self._waits.append(wait)
        return True

    @property
    def will_end_call(self) -> bool:
        """A wait will end the call once the caller has heard everything."""
        return any(it.then is not None for it in self._waits)

    def stop(self, *, tones: bool = False) -> list[WaitDone]:
        """The agent was interrupted: ends the stoppable waits as not heard. `tones`:
        the bridge's own audio was cleared, too, so the waits for that audio end as
        well."""
        stopped = [it for it in self._waits if it.stoppable or (tones and not it.then)]
        self._waits = [it for it in self._waits if it not in stopped]
        return [WaitDone(wait.number, False) for wait in stopped]

    def drop(self, number: int) -> None:
        """Forgets a wait, without a WaitDone."""
        self._waits = [it for it in self._waits if it.number != number]

    def end(self) -> list[WaitDone]:
        """The call is over."""
        ended, self._waits = self._waits, []
        return [WaitDone(wait.number, None) for wait in ended]

    def over(self, outstanding: Outstanding, now: float) -> list[Wait]:
        """Removes and returns the waits that end now: the caller has heard everything,
        or should have heard it long ago."""
        over = [
            it
            for it in self._waits
            if (outstanding.nothing and not _awaits_response(it, outstanding))
            or now >= _gives_up_at(it, outstanding)
        ]
        self._waits = [it for it in self._waits if it not in over]
        return over

    def due_at(self, outstanding: Outstanding) -> float | None:
        """When the next wait is given up, whether or not the caller has heard
        everything."""
        return min(
            (_gives_up_at(wait, outstanding) for wait in self._waits), default=None
        )


def _gives_up_at(wait: Wait, outstanding: Outstanding) -> float:
    if outstanding.generating or _awaits_response(wait, outstanding):
        return max(wait.since, outstanding.progress) + ANSWER_SECONDS
    return max(wait.since, outstanding.queue_ends) + HEARD_SECONDS


def _awaits_response(wait: Wait, outstanding: Outstanding) -> bool:
    """A wait that ends the call lasts until the caller's last turn has its response."""
    return outstanding.unanswered and wait.then is not None
