"""The parts of one call, put together: each owns its own facts. PURE.

Has what concerns all parts: whether the call has begun and ended, its rules, and what
follows after every input.
"""

import enum

from bridge.core.activity import Activity
from bridge.core.agent_speech import AgentSpeech
from bridge.core.caller_audio import CallerAudio
from bridge.core.capabilities import Capabilities
from bridge.core.commands import Command, End
from bridge.core.endings import HANDED_OVER, Endings
from bridge.core.history import History
from bridge.core.interim_answers import InterimAnswers
from bridge.core.limits import Bounds
from bridge.core.model_side import ModelSide
from bridge.core.one_moment import OneMoment
from bridge.core.opening import Opening
from bridge.core.outbox import Outbox
from bridge.core.pressed_keys import Keys
from bridge.core.realtime_requests import EventIds
from bridge.core.rules import Rules
from bridge.core.running_tools import RunningTools
from bridge.core.sessions import Sessions
from bridge.core.silent_wait import SilentWait
from bridge.core.sip_speech import SipSpeech
from bridge.core.speech import CallSpeech
from bridge.core.stream_presence import StreamPresence
from bridge.core.waiting_sound import WaitingSound


class State(enum.Enum):
    WAITING = "waiting"  # the socket is open, `start` has not arrived
    HOLDING = "holding"  # no model session is ready: the caller's audio is held
    TALKING = "talking"  # a model session is ready
    ENDED = "ended"  # `End` was returned


class CallState:
    """One call."""

    def __init__(self, now: float, bounds: Bounds, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self.history = History()
        self.started = False
        self.ended = False
        self.ended_quietly = False
        """Set at the end: nobody spoke, no audio was queued, no response was owed."""
        self.began = now
        self.turn_over_at = now
        """When the caller's last turn ended."""
        self.stream = StreamPresence(now, exists=capabilities.has_audio)
        self.sessions = Sessions(now)
        self.outbox = Outbox()
        self.tools = RunningTools()
        self.keys = Keys()
        audio = capabilities.has_audio
        self.caller = CallerAudio(now, bounds, self.sessions, passes_here=audio)
        ids = EventIds()
        parts = (self.history, self.sessions, self.stream, ids)
        self.media_speech = AgentSpeech(*parts, bounds) if audio else None
        """The speech of a media stream; None: the model's server plays the audio."""
        self.speech: CallSpeech = self.media_speech or SipSpeech(*parts)
        self.responses = self.speech.responses
        self.model = ModelSide(
            capabilities,
            self.sessions,
            self.speech,
            self.caller,
            self.stream,
            self.history,
            self.outbox,
            self.tools,
            ids,
            self.end,
        )
        self.activity = Activity(
            self.speech,
            self.caller,
            self.sessions,
            self.stream,
            self.outbox,
            self.history,
            self.keys,
            self.tools,
        )
        speech, caller = self.media_speech, self.caller
        self.opening = Opening(speech, caller, self.model, self.history, self.stream)
        self.endings = Endings(self.activity, self.model, self.end, now)
        self._watch_silence()
        self.rules = Rules()

    def _watch_silence(self) -> None:
        """Adds what a caller gets who waits in silence."""
        self.silent_wait = SilentWait(self.activity, self.speech, self.caller)
        wait = self.silent_wait
        self.waiting_sound = WaitingSound(wait, self.media_speech, self.caller)
        self.one_moment = OneMoment(wait, self.activity, self.responses, self.endings)
        self.interim_answers = InterimAnswers(
            wait,
            self.activity,
            self.endings,
            self.model,
            self.speech,
            self.tools,
            self.history,
        )

    @property
    def state(self) -> State:
        if self.ended:
            return State.ENDED
        if not self.started:
            return State.WAITING
        return State.TALKING if self.sessions.has_session else State.HOLDING

    def seconds_into_call(self, now: float) -> float:
        """Seconds since the call began, earlier streams of it included."""
        return now - self.began + self.rules.elapsed

    def begin(self, now: float) -> None:
        """The caller is there; the first model connection is being dialled."""
        self.started = True
        self.began = now
        self.caller.start(now)
        self.sessions.start(now)

    def set_rules(self, rules: Rules) -> None:
        self.rules = self.model.rules = rules
        self.keys.set_rules(rules.key_pause_seconds, rules.key_actions)
        self.endings.set_rules(rules, self.began)
        self.waiting_sound.sound = rules.waiting_sound
        self.interim_answers.seconds = rules.slow_tool_seconds
        self.one_moment.allowed = rules.one_moment and self.capabilities.next_step
        self.opening.recordings = rules.recordings
        self.stream.ends_silent = rules.silent_seconds is not None
        for item in rules.history:
            self.history.add(item)

    def changed(self, now: float) -> list[Command]:
        """Runs after every input that may change what is said or heard: watches for
        silence, switches to a spare session, finishes waits, ends a call whose end is
        due."""
        if self.ended:
            return []
        outstanding = self.activity.outstanding
        self.endings.watch(outstanding, now)
        heard: list[Command] = []
        if self.started:
            self.silent_wait.watch(outstanding, now)
            self.waiting_sound.watch(now)
            if self.silent_wait.since is not None or self.one_moment.due_at:
                self.one_moment.watch()
            heard = self.opening.watch(outstanding, now)
            if self.tools.calls or self.interim_answers.is_active:
                heard += self.interim_answers.watch(now)
        may_roll_over = self.sessions.spare is not None and self.endings.at is None
        if may_roll_over and self.activity.is_quiet(outstanding):
            return heard + self.model.roll_over(now)
        return heard + self.endings.finish(outstanding, now)

    def end(self, by: str, why: str, now: float) -> list[Command]:
        """Ends the call; called once."""
        activity = self.activity
        self.ended_quietly = activity.is_settled(activity.outstanding, now)
        self.ended = True
        self.caller.end()
        commands = self.speech.call_ended(now, clears=why == HANDED_OVER)
        return [*commands, *self.endings.waits.end(), End(by, why)]
