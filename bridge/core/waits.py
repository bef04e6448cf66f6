"""Who waits until all that the agent said has been heard, and how long."""

from dataclasses import dataclass

from bridge.core.commands import WaitDone

HEARD_SECONDS = 3.0
"""What should have been heard so long ago was, though its mark did not come back."""

ANSWER_SECONDS = 20.0
"""Nobody waits longer for an answer that does not come on before a call may end."""


MAX_WAITS = 256
"""At a time; a tool may wait, and a model calls no more of them at once."""


@dataclass(frozen=True, slots=True)
class Wait:
    """`then`: by whom and why the call ends when all was heard."""

    number: int
    since: float
    then: tuple[str, str] | None = None
    stoppable: bool = True
    """The caller ends the wait by speaking."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What the caller has yet to hear."""

    generating: bool
    """An answer is being made, or was asked for."""
    unanswered: bool
    """The caller has spoken, and the server has not begun to answer."""
    queued: bool
    """Twilio has something that is not known to be played."""
    queue_ends: float
    """When that should have been played."""
    progress: float
    """When anything of an answer came last."""

    @property
    def nothing(self) -> bool:
        return not (self.generating or self.queued)


class Waits:
    """In the order in which they began."""

    def __init__(self) -> None:
        self._waits: list[Wait] = []

    def __bool__(self) -> bool:
        """Somebody waits."""
        return bool(self._waits)

    def add(self, wait: Wait) -> bool:
        """False: too many wait."""
        if len(self._waits) >= MAX_WAITS:
            return False
        self._waits.append(wait)
        return True

    @property
    def to_leave(self) -> bool:
        """The call is to end once all was heard."""
        return any(it.then is not None for it in self._waits)

    def stop(self, *, tones: bool = False) -> list[WaitDone]:
        """The agent was interrupted: it was not heard; nor were `tones` of ours."""
        stopped = [it for it in self._waits if it.stoppable or (tones and not it.then)]
        self._waits = [it for it in self._waits if it not in stopped]
        return [WaitDone(wait.number, False) for wait in stopped]

    def drop(self, number: int) -> None:
        """Nobody waits for this any more."""
        self._waits = [it for it in self._waits if it.number != number]

    def end(self) -> list[WaitDone]:
        """The call is over."""
        ended, self._waits = self._waits, []
        return [WaitDone(wait.number, None) for wait in ended]

    def over(self, outstanding: Outstanding, now: float) -> list[Wait]:
        """Those that end now: all was heard, or should have been long ago."""
        over = [
            it
            for it in self._waits
            if (outstanding.nothing and not _answer_comes(it, outstanding))
            or now >= _gives_up_at(it, outstanding)
        ]
        self._waits = [it for it in self._waits if it not in over]
        return over

    def due_at(self, outstanding: Outstanding) -> float | None:
        """When the first of them has waited long enough."""
        return min(
            (_gives_up_at(wait, outstanding) for wait in self._waits), default=None
        )


def _gives_up_at(wait: Wait, outstanding: Outstanding) -> float:
    if outstanding.generating or _answer_comes(wait, outstanding):
        return max(wait.since, outstanding.progress) + ANSWER_SECONDS
    return max(wait.since, outstanding.queue_ends) + HEARD_SECONDS


def _answer_comes(wait: Wait, outstanding: Outstanding) -> bool:
    """No call ends between what the caller said and the answer to it."""
    return outstanding.unanswered and wait.then is not None
