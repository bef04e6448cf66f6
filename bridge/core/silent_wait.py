"""Since when the caller waits for the agent in silence: the one owner of that. PURE."""

import math

from bridge.core.activity import Activity
from bridge.core.caller_audio import CallerAudio
from bridge.core.speech import CallSpeech
from bridge.core.waits import Outstanding

GAP_SECONDS = 0.5
"""A shorter time without an obligation does not end the wait: a tool begins a moment
after the response that calls it."""


class SilentWait:
    """The time in which the caller waits for the agent: for an answer, the result of a
    tool, or a session. The bridge's own waiting sound is silence here."""

    def __init__(
        self, activity: Activity, speech: CallSpeech, caller: CallerAudio
    ) -> None:
        self._activity = activity
        self._speech = speech
        self._caller = caller
        self.since: float | None = None
        """When the wait began, which also tells one wait from another; None: the caller
        does not wait."""
        self._began = self._ended = -math.inf
        """Of the last wait."""

    def watch(self, outstanding: Outstanding, now: float) -> None:
        """Runs after every input that may change what the caller waits for."""
        if not self._activity.caller_waits(outstanding):
            if self._caller.speaking:
                self._ended = -math.inf  # the next wait is another one
            elif self.since is not None:
                self._ended = now
            self.since = None
        elif self.since is None:
            if now > self._ended + GAP_SECONDS:
                self._began = now
            self.since = self._began

    @property
    def silent_since(self) -> float:
        """When the caller who waits has last heard the agent, or said something; in the
        future while audio is queued."""
        return max(self._began, self._speech.queue_ends)
