"""What goes on in a call: who speaks, what the caller has yet to hear, what is owed.

PURE. The one owner of "is the call idle, quiet, settled?". Decides nothing.
"""

from bridge.core.caller_audio import CallerAudio
from bridge.core.history import History
from bridge.core.outbox import Outbox
from bridge.core.pressed_keys import Keys
from bridge.core.running_tools import RunningTools
from bridge.core.sessions import Sessions
from bridge.core.speech import CallSpeech
from bridge.core.stream_presence import StreamPresence
from bridge.core.waits import Outstanding


class Activity:
    """Answers questions about the parts of one call; it has no state of its own."""

    def __init__(
        self,
        speech: CallSpeech,
        caller: CallerAudio,
        sessions: Sessions,
        stream: StreamPresence,
        outbox: Outbox,
        history: History,
        keys: Keys,
        tools: RunningTools,
    ) -> None:
        self._speech = speech
        self._caller = caller
        self._sessions = sessions
        self._stream = stream
        self._outbox = outbox
        self._history = history
        self._keys = keys
        self._tools = tools

    @property
    def outstanding(self) -> Outstanding:
        """What the caller has not heard yet; includes messages that wait for the
        model."""
        speech = self._speech
        return Outstanding(
            generating=speech.responses.generating or self._outbox.to_be_answered,
            # A call does not end between two keys of one input either.
            unanswered=speech.responses.unanswered or self._keys.due_at is not None,
            queued=speech.queued,
            queue_ends=speech.queue_ends,
            progress=speech.responses.progress,
        )

    @property
    def has_both_sides(self) -> bool:
        """A session and a stream are in use."""
        return self._sessions.has_session and not self._stream.is_lost

    def caller_waits(self, outstanding: Outstanding) -> bool:
        """The caller waits for the agent: for a response, the result of a tool, or a
        session."""
        if self._caller.speaking or self._stream.is_lost:
            return False
        answer = outstanding.generating or self._speech.responses.unanswered
        return answer or self._tools.count > 0 or not self._sessions.has_session

    def is_idle(self, outstanding: Outstanding) -> bool:
        """Nobody speaks, no audio is queued or expected, no tool runs."""
        return outstanding.nothing and not self._caller.talks and not self._tools.count

    def is_silent(self, outstanding: Outstanding) -> bool:
        """The caller could speak and hear, and nothing happens."""
        if outstanding.unanswered:
            return False  # the agent is silent, not the caller
        idle = self.is_idle(outstanding) and self.has_both_sides
        return idle and not self._caller.muted

    def all_was_heard(self, outstanding: Outstanding) -> bool:
        """The caller has heard everything. Not while the stream is lost: then nobody
        hears what the agent says."""
        idle = self.is_idle(outstanding) and not outstanding.unanswered
        return idle and not self._stream.is_lost

    def is_quiet(self, outstanding: Outstanding) -> bool:
        """Idle, and nothing is about to begin. (A tool begins a moment after the
        response that calls it is done, so tool calls without a result count.)"""
        idle = self.is_idle(outstanding) and not outstanding.unanswered
        return idle and self.has_both_sides and not self._history.open_calls

    def is_settled(self, outstanding: Outstanding, now: float) -> bool:
        """Quiet, and everything the caller said is transcribed: another instance gets
        no caller audio."""
        if self._caller.server_transcribes and self._caller.awaits_transcript:
            return False
        return not self._sessions.is_new(now) and self.is_quiet(outstanding)
