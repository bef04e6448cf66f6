"""How a call ends by plan: waits of user code, the call's limits, goodbye, hand-over.

PURE. Says when the end is due; conversation.py ends the call.
"""

from collections.abc import Callable

from bridge.core.activity import Activity
from bridge.core.call_limits import CallLimits
from bridge.core.commands import Command, Note, WaitDone, limit_hit
from bridge.core.inputs import WhenHeard
from bridge.core.model_side import ModelSide
from bridge.core.rules import GOODBYES, LIMIT_OF, Rules
from bridge.core.waits import Outstanding, Wait, Waits

GOODBYE_SECONDS = 15.0
"""Time for the agent's goodbye; then the call ends, whether or not the agent said
it. It starts again when a lost stream is back."""

GOODBYE_MOST_SECONDS = 60.0
"""Time for the goodbye, however often the stream is lost meanwhile."""

HAND_OVER_SECONDS = 8.0
"""Longest wait for a quiet moment in which the call can move to another instance."""

HANDED_OVER = "handed_over"


class Endings:
    """The planned end of one call, and everything that waits for it.

    `end` ends the call (by, why, now) and returns the commands for that.
    """

    def __init__(
        self,
        activity: Activity,
        model: ModelSide,
        end: Callable[[str, str, float], list[Command]],
        now: float,
    ) -> None:
        self._activity = activity
        self._model = model
        self._end = end
        self._rules = Rules()
        self.limits = CallLimits(self._rules, now)
        self.waits = Waits()
        self.at: float | None = None
        """When the call ends at the latest: a goodbye, or a move, is under way."""
        self._why = ""
        self._at_most = now
        """When the call ends after a goodbye, however often the stream is lost."""

    def set_rules(self, rules: Rules, began: float) -> None:
        """`began`: when the call's stream began."""
        self._rules = rules
        self.limits = CallLimits(rules, began)

    # --- inputs ---

    def goodbye(self, why: str, now: float) -> list[Command]:
        """The call must end (`why`: a key of GOODBYES), after a goodbye of the
        agent."""
        if self.at is not None:
            return []
        self.at, self._why = now + GOODBYE_SECONDS, why
        self._at_most = now + GOODBYE_MOST_SECONDS
        hit = [limit_hit(LIMIT_OF[why])] if why in LIMIT_OF else []
        say = self._model.say_goodbye(GOODBYES[why], now)
        return [*hit, Note("goodbye", {"why": why}), *say]

    def hand_over(self, now: float) -> None:
        """The call is moving to another instance: ends here in a settled moment."""
        if self.at is None:
            self.at, self._why = now + HAND_OVER_SECONDS, HANDED_OVER

    def stream_lost(self) -> None:
        """Nobody hears a goodbye now; `stream_back` gives it time again."""
        if self._why in GOODBYES:
            self.at = self._at_most

    def stream_back(self, now: float) -> bool:
        """True: the agent is to say goodbye."""
        if self._why not in GOODBYES:
            return False
        self.at = min(now + GOODBYE_SECONDS, self._at_most)
        return True

    def start_wait(
        self, given: WhenHeard, now: float, *, caller_interrupts: bool
    ) -> list[Command]:
        """`caller_interrupts`: the caller speaks, and that stops the agent."""
        speaks = caller_interrupts and given.stoppable
        if speaks and (given.then or not self._activity.outstanding.nothing):
            return [WaitDone(given.wait, False)]
        wait = Wait(given.wait, now, given.then, given.stoppable)
        return [] if self.waits.add(wait) else [WaitDone(given.wait, False)]

    # --- what is due ---

    def watch(self, outstanding: Outstanding, now: float) -> None:
        """Runs after every input: begins or ends the time of silence."""
        self.limits.watch(self._activity.is_silent(outstanding), now)

    def finish(self, outstanding: Outstanding, now: float) -> list[Command]:
        """Finishes waits, and ends a call whose end is due."""
        over = self.waits.over(outstanding, now)
        ending = next((wait for wait in over if wait.then), None)
        commands: list[Command] = [
            # If several waits end the call, only the first one does.
            WaitDone(wait.number, None if ending else outstanding.nothing)
            for wait in over
            if wait is not ending
        ]
        if ending is not None and ending.then is not None:
            done = WaitDone(ending.number, True)
            return [*commands, done, *self._end(*ending.then, now)]
        if self.at is None:
            return commands
        if self._why == HANDED_OVER:
            ready = self._activity.is_settled(outstanding, now)
        else:
            ready = self._activity.all_was_heard(outstanding)
        if ready or now >= self.at:
            return commands + self._end("bridge", self._why, now)
        return commands

    @property
    def limit_due_at(self) -> float | None:
        """When a limit of the call is reached; None while no limit applies."""
        if self.at is not None or not self._activity.has_both_sides:
            return None
        return self.limits.due_at

    def apply_limits(self, now: float) -> list[Command]:
        """Asks a silent caller, or begins the goodbye, if a limit is reached."""
        if self.at is not None or not self._activity.has_both_sides:
            return []
        # A response may have been requested since `watch` last ran.
        self.watch(self._activity.outstanding, now)
        due = self.limits.due(now)
        if due == "ask":
            ask = self._model.tell("system", self._rules.silent_text, True, now)
            return [Note("caller_silent"), *ask]
        return [] if due is None else self.goodbye(due, now)

    @property
    def due_at(self) -> float | None:
        """When a wait is given up, or the call must have ended."""
        # Read for every frame, so waits, which are rare, are skipped if empty.
        waits = self.waits.due_at(self._activity.outstanding) if self.waits else None
        if waits is None or self.at is None:
            return self.at if waits is None else waits
        return min(waits, self.at)
