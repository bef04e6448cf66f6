"""A sentence for a caller whose answer fails again and again: Twilio says it. PURE.

The bridge has no voice of its own. So it leaves the stream, and Twilio, which asks then
how the call goes on, says a sentence and opens another stream. Call and session wait
for that stream, as for any that was lost.
"""

import math

from bridge.core.activity import Activity
from bridge.core.commands import Command, Note, SayOneMoment
from bridge.core.endings import Endings
from bridge.core.responses import Responses
from bridge.core.silent_wait import SilentWait

SILENT_SECONDS = 8.0
"""Silence after which the sentence is due: Twilio says it a second later."""

MOST = 2
"""Sentences in one call. Each costs the caller a second or two in which nobody hears
them, and Twilio gets only a few new streams for a call."""

CHECK_SECONDS = 0.5
"""Between two checks whether a requested response has failed, too."""


class OneMoment:
    """Says when the sentence is due: only if the agent has failed to answer, another
    try waits for its time, and nothing else goes on in the call."""

    def __init__(
        self,
        wait: SilentWait,
        activity: Activity,
        responses: Responses,
        endings: Endings,
    ) -> None:
        self._wait = wait
        self._activity = activity
        self._responses = responses
        self._endings = endings
        self.allowed = False
        """As Rules.one_moment."""
        self.due_at: float | None = None
        """When `say_if_due` must be called; None: there is nothing to do. Kept, because
        it is read for every frame."""
        self._not_before = -math.inf
        self._count = 0
        self._leaves = False
        """The stream is left, or was left, for a sentence."""

    def watch(self) -> None:
        """Runs after every input, behind SilentWait.watch."""
        if self._wait.since is None or not self._may_be_due:
            self.due_at = None
        else:
            due_at = self._wait.silent_since + SILENT_SECONDS
            self.due_at = max(due_at, self._not_before)

    @property
    def _may_be_due(self) -> bool:
        if not (self.allowed and self._responses.is_failing) or self._count >= MOST:
            return False
        ends = self._endings.at is not None or bool(self._endings.waits)
        return self._activity.has_both_sides and not (self._leaves or ends)

    def say_if_due(self, now: float) -> list[Command]:
        if self.due_at is None or now < self.due_at:
            return []
        silent_since = self._wait.silent_since
        if now < silent_since + SILENT_SECONDS:
            return []  # the caller has heard something
        if not self._responses.waits_for_retry(now):
            self._not_before = now + CHECK_SECONDS
            return []
        self._count += 1
        self._leaves = True
        return [Note("one_moment", {"seconds": now - silent_since}), SayOneMoment()]

    def stream_back(self, now: float) -> bool:
        """Another stream has come. True: the one before was left for a sentence, which
        the caller has just heard."""
        left, self._leaves = self._leaves, False
        if left:
            self._not_before = now + SILENT_SECONDS
        return left
