"""State machine of one call's conversation: inputs in, commands out. PURE.

Routes each input to the part that owns it, and says when time must be given. May not
wait, log or read a clock: `now` is passed in (seconds).
"""

from typing import assert_never

from bridge.core.call_state import CallState, State
from bridge.core.capabilities import MEDIA_STREAM, Capabilities
from bridge.core.commands import Command, Note, ToCaller, WaitDone, protocol_error
from bridge.core.endings import HANDED_OVER
from bridge.core.history import History, Playing
from bridge.core.inputs import (
    Ask,
    Begin,
    Dialled,
    Edit,
    EndCall,
    FromModel,
    FromPhone,
    GiveUpWait,
    Goodbye,
    HandOver,
    Input,
    Interrupt,
    Misread,
    ModelLost,
    MuteCaller,
    NotDialled,
    OtherInput,
    Play,
    Send,
    SetRules,
    StreamLost,
    Tell,
    Tick,
    ToolRunning,
    WhenHeard,
)
from bridge.core.interruptions import Interruptions
from bridge.core.limits import MAX_ID_CHARS, Bounds
from bridge.core.model_events import ModelEvents
from bridge.core.phone_side import PhoneSide
from bridge.core.playback import Playback
from bridge.core.realtime_events import AudioDelta, KnownEvent, TranscriptDelta
from bridge.core.rules import Rules
from bridge.core.stream_presence import START_SECONDS
from bridge.core.twilio_messages import Inbound, Mark, Media

LATE_SECONDS = 9.0
"""A response without progress for this long is requested from another session: no model
thinks longer, and no caller waits much longer in silence."""

IGNORED_SECONDS = 4.0
"""The same for a server that has not begun a response to the caller's turn by itself,
and does not when it is asked for it either: nothing comes from it any more."""

UNANSWERED_SECONDS = 3.0
"""A server that responds to the caller's turns by itself, and has not begun to by then,
is asked for the response. Most begin at once; the caller hears nothing meanwhile."""

WORDLESS_SECONDS = 1.5
"""The same after a turn whose transcript is empty: noise, most likely, to which the
server may rightly not respond."""


class Conversation:
    """One call. `handle` takes every input (inputs.py) and returns commands.

    The commands must be carried out in the order given. `Tick` must be given at
    `deadline`, which must be read after each input unless `keeps_deadline`. `rules` are
    the call's rules; `SetRules` replaces them once the route is known. `bounds` limit
    the input of either side: input beyond them is dropped with a Note, and a caller's
    stream that floods the bridge ends the call.

    Invariants:
    - `End` is returned once. After it, only a new wait is answered (WaitDone).
    - A response is requested only when none is requested or generating, and when what
      the caller heard of earlier ones is settled (CallSpeech.request_if_free).
    - The caller's audio goes to the model in TALKING and is held in HOLDING.
    - Only the model connection in use (Sessions.in_use) can change anything.
    - A lost session, or a lost stream, does not end the call: the state needed to go on
      (history, outbox, unheard audio, owed response) is kept until another session or
      stream replaces the lost one, or time is up.
    """

    def __init__(
        self,
        *,
        now: float,
        rules: Rules | None = None,
        bounds: Bounds = Bounds(),  # noqa: B008 - a value
        capabilities: Capabilities = MEDIA_STREAM,
    ) -> None:
        self._call = call = CallState(now, bounds, capabilities)
        self._start_due = now + START_SECONDS
        self.keeps_deadline = False
        """The latest input has made no deadline earlier, so `deadline` need not be
        read, which costs as much as a frame of the caller."""
        self._interruptions = Interruptions(call)
        self._model_events = ModelEvents(call, self._interruptions)
        self._phone = (
            PhoneSide(call, call.media_speech, self._interruptions, bounds)
            if call.media_speech
            else None
        )
        call.set_rules(rules or Rules())

    # --- what the call asks ---

    @property
    def state(self) -> State:
        return self._call.state

    @property
    def history(self) -> History:
        return self._call.history

    @property
    def ended_quietly(self) -> bool:
        """The call has ended; nobody spoke, no audio was queued, no response was
        owed."""
        return self._call.ended_quietly

    @property
    def stream_is_lost(self) -> bool:
        """The stream broke; the session is kept for the next stream."""
        return not self._call.ended and self._call.stream.is_lost

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the history, or the audio sent to Twilio, changes."""
        return self.history.version, self._phone.version if self._phone else 0

    @property
    def playback(self) -> Playback | None:
        """The audio of the stream in use; None for a call whose audio does not pass
        here."""
        speech = self._call.media_speech
        return speech.playback if speech else None

    def playing(self, now: float) -> list[Playing]:
        """The agent's text that the caller is still to hear, with its audio
        position."""
        return self._call.speech.playing(now)

    @property
    def deadline(self) -> float | None:
        """When `Tick` is due; None: not before the next input."""
        if self._call.ended:
            return None
        due = (
            self._call.sessions.due_at if self._call.started else self._start_due,
            self._call.stream.due_at,
            self._call.speech.fence_lost_at,
            self._call.speech.unreported_at,
            self._call.speech.retry_at,
            self._call.caller.due_at,
            self._call.keys.due_at,
            self._call.waiting_sound.due_at,
            self._call.interim_answers.due_at,
            self._call.one_moment.due_at,
            self._answer_late_at,
            self._unanswered_until,
            self._call.endings.limit_due_at,
            self._call.endings.due_at,
        )
        return min([at for at in due if at is not None], default=None)

    # --- inputs ---

    def handle(self, given: Input, now: float) -> list[Command]:
        """Takes one input; returns the commands that follow from it, in order."""
        if isinstance(given, FromPhone):
            if not isinstance(given.message, Media):
                return self._from_phone(given.message, now)
            # Not the first frame after a stall: the next stall may begin.
            self.keeps_deadline = not self._call.caller.stalled_ms
            return self._phone.handle(given.message, now) if self._phone else []
        self.keeps_deadline = False
        if self._call.ended:
            if isinstance(given, WhenHeard):
                return [WaitDone(given.wait, None)]
            return []
        if isinstance(given, FromModel):
            # The first event after a probe: the next probe may be due before the time
            # at which this one would have been late.
            probed = self._call.sessions.probed
            commands = self._model_events.handle(given.connection, given.event, now)
            if self._is_only_speech(given.event, commands):
                self.keeps_deadline = not probed
                return commands  # nothing can end
            return commands + self._call.changed(now)
        return self._act(given, now) + self._call.changed(now)

    def _from_phone(self, message: Inbound, now: float) -> list[Command]:
        """A message that is not the caller's audio."""
        phone, self.keeps_deadline = self._phone, False
        if phone is None:
            return []
        commands = phone.handle(message, now)
        # Not the last mark of the speech: the time of silence may begin.
        self.keeps_deadline = isinstance(message, Mark) and phone.still_plays(commands)
        return commands

    def _is_only_speech(self, event: KnownEvent, commands: list[Command]) -> bool:
        """The event, a piece of the agent's speech, led to messages for the caller and
        to nothing else. Not for a SIP call, in which text tells the time of speech."""
        if isinstance(event, AudioDelta):
            # Or a clear that stops a waiting sound: its fence has no deadline.
            return bool(commands) and isinstance(commands[0], ToCaller)
        return isinstance(event, TranscriptDelta) and self._phone is not None

    def _act(self, given: OtherInput, now: float) -> list[Command]:
        match given:
            case Tick():
                return self._tick(now)
            case Tell(role, text, respond):
                return self._call.model.tell(role, text, respond, now)
            case Ask():
                return self._call.model.ask_for_results(now)
            case Send(text):
                return self._call.model.send(text, now)
            case Edit(removed, corrected):
                return self._call.model.edit(removed, corrected)
            case Interrupt(by, response_id):
                return self._interruptions.interrupt(by, response_id, now)
            case Play(payload):
                return self._phone.play(payload, now) if self._phone else []
            case MuteCaller(on):
                return self._call.model.mute(on)
            case ToolRunning(change, call_id):
                self._tool_running(change, call_id, now)
            case WhenHeard():
                return self._when_heard(given, now)
            case GiveUpWait(wait):
                self._call.endings.waits.drop(wait)
            case Goodbye(why):
                return self._call.endings.goodbye(why, now)
            case HandOver():
                return self._hand_over(now)
            case EndCall(by, why):
                return self._call.end(by, why, now)
            case SetRules(rules):
                self._call.set_rules(rules)
            case Begin():
                self._call.begin(now)
            case Misread(side, reason, event):
                return self._misread(side, reason, event)
            case StreamLost():
                return self._phone.stream_lost(now) if self._phone else []
            case Dialled(connection):
                return self._call.sessions.dialled(connection, now)
            case NotDialled(connection, why, fatal):
                return self._call.model.not_dialled(connection, why, fatal, now)
            case ModelLost(connection, why, code):
                return self._call.model.lost(connection, why, code, now)
            case _:
                assert_never(given)
        return []

    def _tool_running(self, change: int, call_id: str, now: float) -> None:
        self._call.tools.change(change, call_id)
        if change > 0 and 0 < len(call_id) <= MAX_ID_CHARS:
            self._call.history.tool_began(call_id)
        # The time that a tool took does not count as a late response.
        self._call.responses.made_progress(now)

    def _misread(self, side: str, reason: str, event: str) -> list[Command]:
        if side == "caller" and self._phone:
            return self._phone.misread(reason)
        return [protocol_error(side, reason, event)]

    def _when_heard(self, given: WhenHeard, now: float) -> list[Command]:
        if self._call.stream.is_lost:
            return [WaitDone(given.wait, False)]  # the caller hears nothing
        interrupts = self._call.model.interruptible and self._call.caller.speaking
        return self._call.endings.start_wait(given, now, caller_interrupts=interrupts)

    def _hand_over(self, now: float) -> list[Command]:
        if self._call.endings.at is None and (
            not self._call.started or self._call.stream.is_lost
        ):
            return self._call.end("bridge", HANDED_OVER, now)
        self._call.endings.hand_over(now)
        return []

    # --- time ---

    def _tick(self, now: float) -> list[Command]:
        """Does everything that is due at `now`."""
        if not self._call.started and now >= self._start_due:
            return self._call.end("caller", "no_start", now)
        given_up_at = self._call.stream.given_up_at
        if given_up_at is not None and now >= given_up_at:
            return self._call.end("caller", "connection_lost", now)
        commands: list[Command] = []
        for due in (
            self._probe_due,
            self._call.model.tick,
            self._call.speech.give_up_fences,
            self._call.speech.give_up_unreported,
            self._call.caller.fill_stall_if_due,
            self._stuck_turn_due,
            self._interruptions.keys_due,
            self._call.speech.retry_if_due,
            self._unanswered_due,
            self._answer_due,
            self._call.interim_answers.ask_if_due,
            self._call.one_moment.say_if_due,
            self._call.waiting_sound.play_if_due,
            self._call.endings.apply_limits,
        ):
            commands += due(now)
            if self._call.ended:
                break
        return commands

    def _probe_due(self, now: float) -> list[Command]:
        probe_at = self._call.stream.probe_at
        if self._phone is None or probe_at is None or now < probe_at:
            return []
        return self._phone.probe(now)

    def _stuck_turn_due(self, now: float) -> list[Command]:
        commands = self._interruptions.end_stuck_turn(now)
        if self._call.caller.watch.take_tone():
            commands += self._call.waiting_sound.play_once(now)
        return commands

    @property
    def _answer_late_at(self) -> float | None:
        """When a response without progress is given up; None while the model's own
        server runs a tool, which is a part of the response and may take its time."""
        if not self._call.responses.generating:  # first: it is false most of the time
            return None
        if self._call.tools.of_server or not self._call.activity.has_both_sides:
            return None
        dead = self._call.responses.is_ignored
        return self._call.responses.progress + (
            IGNORED_SECONDS if dead else LATE_SECONDS
        )

    @property
    def _unanswered_until(self) -> float | None:
        """When the server, which has not responded to the caller's turn, no longer
        will."""
        if not self._call.responses.unanswered or self._call.caller.speaking:
            return None
        wordless = self._interruptions.turn_is_wordless
        seconds = WORDLESS_SECONDS if wordless else UNANSWERED_SECONDS
        return self._call.turn_over_at + seconds

    def _unanswered_due(self, now: float) -> list[Command]:
        until = self._unanswered_until
        if until is None or now < until:
            return []
        if self._interruptions.turn_is_wordless:
            return self._interruptions.turn_was_wordless(now)
        self._call.responses.answer_turn(now)
        return [Note("turn_unanswered"), *self._call.speech.request_if_free(now)]

    def _answer_due(self, now: float) -> list[Command]:
        late_at = self._answer_late_at
        if late_at is None or now < late_at:
            return []
        late: list[Command] = [Note("answer_late")]
        goes_on = self._call.responses.late()
        if self._call.endings.waits.will_end_call:
            # A wait will end the call: only a response that is owed gets one chance.
            late += self._call.speech.drop_responses(now)
            return late + self._call.speech.request_if_free(now)
        if not goes_on:
            return late + self._call.end("model", "failed", now)
        return late + self._call.model.answer_late(now)
