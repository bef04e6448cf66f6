"""State machine of one call's conversation: messages in, commands out. PURE.

Decides what is sent to the caller and to the model, what a barge-in cut, and how the
model learns of that. May not wait, log or read a clock: `now` is passed in (seconds).
"""

import enum
from collections.abc import Iterable, Mapping

from bridge.audio import g711
from bridge.core import errors, realtime_events, twilio_messages
from bridge.core.agent_speech import ANSWER_ID, AgentSpeech
from bridge.core.call_limits import CallLimits
from bridge.core.caller_audio import CallerAudio
from bridge.core.commands import (
    Command,
    End,
    Note,
    Pressed,
    Started,
    ToCaller,
    ToModel,
    Value,
    WaitDone,
    limit_hit,
    protocol_error,
)
from bridge.core.history import MAX_CHARS, History, HistoryItem, Playing
from bridge.core.limits import MAX_ID_CHARS, Bounds, MessageRate
from bridge.core.outbox import Outbox, PendingText
from bridge.core.playback import Playback
from bridge.core.pressed_keys import Keys
from bridge.core.replay import Unfinished, recorded, replayed
from bridge.core.rules import (
    BACK,
    BROKEN_OFF,
    CUT_OFF,
    GOODBYES,
    LIMIT_OF,
    Rules,
)
from bridge.core.sessions import Sessions
from bridge.core.stream_presence import START_SECONDS, StreamPresence
from bridge.core.waits import ANSWER_SECONDS, Outstanding, Wait, Waits

MAX_FAILURES = 2
"""This many failed responses in a row end the call. One failure may be temporary (a
rate limit); after a second one the caller would wait in silence."""

MAX_GUARDRAIL_STOPS = 5
"""Responses that a guardrail may stop after the caller spoke; one more ends the call.
The agent may rephrase, but an agent whose every response is stopped would try for ever,
and the caller would hear nothing."""

GOODBYE_SECONDS = 15.0
"""Time for the agent's goodbye; then the call ends, whether or not the agent said
it. It starts again when a lost stream is back."""

GOODBYE_MOST_SECONDS = 60.0
"""Time for the goodbye, however often the stream is lost meanwhile."""

LATE_SECONDS = 10.0
"""A response without progress for this long is requested from another session: no model
thinks longer, and no caller waits much longer in silence."""

HAND_OVER_SECONDS = 8.0
"""Longest wait for a quiet moment in which the call can move to another instance."""

TEXT_KINDS = frozenset({"user", "assistant", "system"})
"""Kinds of history items that are messages; `edit` may replace their text."""

PROBE_ID = "bridge_probe"
"""event_id of a probe: an event that only makes the server answer."""

NO_USAGE = "answer without usage"
"""Reason of a protocol error; reported only where prices are configured."""

MAX_MESSAGE_CHARS = 2000
"""Characters kept of the message of a model error: only people read it."""


class State(enum.Enum):
    WAITING = "waiting"  # the socket is open, `start` has not arrived
    HOLDING = "holding"  # no model session is ready: the caller's audio is held
    TALKING = "talking"  # a model session is ready
    ENDED = "ended"  # `End` was returned


class Conversation:
    """One call. Each input (message, event, request of user code, time) gives commands.

    The commands must be carried out in the order given. `tick` must be called at
    `deadline`. `rules` are the call's rules; `follow` replaces them once the route is
    known. `bounds` limit the input of either side: input beyond them is dropped with a
    Note, and a caller's stream that floods the bridge ends the call.

    Invariants:
    - `End` is returned once. After it, only a new wait is answered (WaitDone).
    - A response is requested only when none is requested or generating, and when what
      the caller heard of earlier ones is settled (AgentSpeech.request_if_free).
    - The caller's audio goes to the model in TALKING and is held in HOLDING.
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
    ) -> None:
        self.state = State.WAITING
        self.history = History()
        self._rules = rules or Rules()
        self._keys = Keys(self._rules.key_pause_seconds, self._rules.key_actions)
        self._call_limits = CallLimits(self._rules, now)
        self._tools_running = 0
        """Tools that run now. Waiting for a tool does not count as silence."""
        self._server_tools_running = 0
        """Tools that the model's own server runs as a part of a response. While one
        runs, the response is never late."""
        self._waits = Waits()
        self._outbox = Outbox()
        self._ends_at: float | None = None
        """When the call ends at the latest: a goodbye, or a move, is under way."""
        self._ends_why = ""
        self._ends_by = now
        """When the call ends after a goodbye, however often the stream is lost."""
        self._began = now
        self._start_due = now + START_SECONDS
        self._sessions = Sessions(now)
        self._stream = StreamPresence(now)
        self.ended_quietly = False
        """Set at the end: nobody spoke, no audio was queued, no response was owed."""
        self._stream_sid = ""
        self._playback = Playback(now)
        self._bounds = bounds
        self._message_rate = MessageRate(bounds.messages_per_second)
        """Rate limiter for the caller's messages, unreadable ones included."""
        self._speech = AgentSpeech(
            twilio_messages.OutboundMessages(""), self._playback, self.history, bounds
        )
        self._caller = CallerAudio(now, bounds)
        self._turn_detection = realtime_events.TurnDetection()
        """The server's settings: whether the server interrupts and responds by
        itself."""
        self._server_detects_turns = True
        """False: the session has no turn detection."""
        self._unanswered = False
        """The caller has spoken, and the server has not created its response yet."""
        self._turn_over_at = now
        """When the caller's last turn ended."""
        self._server_transcribes = False
        """The server has sent a transcript of the caller's speech."""
        self._failures = 0
        self._guardrail_stops = 0
        """Responses stopped by a guardrail since the caller last spoke."""
        self._awaiting_audio_since: float | None = None
        """Since when the caller waits for the first audio of a response."""

    # --- inputs ---

    def from_caller(
        self, message: twilio_messages.Inbound, now: float
    ) -> list[Command]:
        """A message of Twilio's stream."""
        self._stream.last_message_at = now
        if not self._message_rate.add(1.0, now):
            return self._flooded(now)
        if self.state is State.ENDED or isinstance(message, twilio_messages.Connected):
            return []
        if isinstance(message, twilio_messages.Start):
            return self._start(message, now)
        if self.state is State.WAITING:
            return [protocol_error("caller", "message before start")]
        # Only `stop` is accepted without a stream SID: ending a call must not depend on
        # a detail.
        if message.stream_sid != self._stream_sid and message.stream_sid:
            return [protocol_error("caller", "message of another stream")]
        match message:
            case twilio_messages.Media(media=media):
                return self._caller_audio(media, now)
            case twilio_messages.Mark(mark=mark):
                commands = self._speech.mark_echoed(mark.name, now)
                if commands is None:
                    return [protocol_error("caller", "unknown mark")]
                return commands + self._changed(now)
            case twilio_messages.Dtmf(dtmf=dtmf):
                return self._key_pressed(dtmf.digit, now) + self._changed(now)
            case _:  # Stop
                return self.end("caller", "hung_up", now)

    def from_model(
        self, event: realtime_events.ServerEvent, now: float
    ) -> list[Command]:
        """A server event of the model."""
        if self.state is State.ENDED:
            return []
        if isinstance(event, realtime_events.SessionUpdated):
            self._sessions.probe_answered(now)
        else:
            self._sessions.event_received(now)
        if isinstance(event, realtime_events.AudioDelta):
            commands = self._speech.audio(event, now)
            if not any(isinstance(command, ToCaller) for command in commands):
                return commands
            self._failures = 0
            return commands + self._first_audio(now)
        return self._model_event(event, now) + self._changed(now)

    def _model_event(
        self, event: realtime_events.ServerEvent, now: float
    ) -> list[Command]:
        match event:
            case realtime_events.TranscriptDelta():
                self._speech.transcript_delta(event)
            case realtime_events.AudioDone():
                return self._speech.item_done((event.item_id, event.content_index), now)
            case realtime_events.SpeechStarted():
                return self._speech_started(now)
            case realtime_events.SpeechStopped():
                self._caller.speaking = False
                self._turn_over_at = now
                self._caller.turn_open = True
                self._speech.turn_ended()
                self._awaiting_audio_since = now
                return [Note("speech_stopped")]
            case realtime_events.InputCommitted():
                self._caller.speaking = False  # speech_stopped may not have come
                self._turn_over_at = now
                self._turn_committed(event.item_id, now)
            case realtime_events.InputCleared():
                return self._turn_dropped(now)
            case realtime_events.ResponseCreated():
                self._unanswered = False
                return self._speech.response_created(event.response.id, now)
            case realtime_events.OutputItemAdded():
                self._speech.item_added(event, now)
            case realtime_events.OutputItemDone():
                self._speech.output_item_done(event)
            case realtime_events.TranscriptionFailed():
                self._caller.transcription_failed(event.item_id)
            case realtime_events.ResponseDone(response=response):
                wanted = not self._speech.was_cut(response.id)
                sounded = self._speech.sent_audio(response.id)
                done = self._speech.response_done(
                    response.id, now, completed=response.status in ("completed", None)
                )
                lost = wanted and errors.is_lost(response.status, sounded=sounded)
                return done + self._response_done(response, lost, now)
            case realtime_events.SessionUpdated():
                return self._session_updated(event, now)
            case realtime_events.ModelError(error=error):
                return self._model_error(error, now)
            case realtime_events.CallerTranscript():
                self.history.transcribed(event.item_id, event.transcript)
                self._server_transcribes = True
                self._caller.turn_transcribed(event.item_id)
                text = {"text": event.transcript[:MAX_CHARS]}
                return [Note("caller_said", {"item": event.item_id}, text)]
            case realtime_events.ItemAdded() | realtime_events.ItemDone():
                self._outbox.seen(event.item)
                item = recorded(event.item, self._seconds_into_call(now))
                if item is not None:
                    if self._speech.counts(item.id):
                        item.text = ""  # a new session shows unheard text, too
                    self.history.add(item, event.previous_item_id)
                if event.item.is_cut_off_call:
                    self.history.remove(event.item.id)
            case realtime_events.ItemDeleted():
                self.history.remove(event.item_id)
                self._caller.turn_transcribed(event.item_id)
                self._outbox.gone(event.item_id)
        return []

    def _flooded(self, now: float) -> list[Command]:
        """The caller's stream sends more messages than any phone: ends the call."""
        if self.state is State.ENDED:
            return []
        return [limit_hit("message_rate"), *self.end("caller", "flood", now)]

    def model_lost(self, why: str, now: float) -> list[Command]:
        """The model connection is lost. `why` goes into the notes."""
        if self.state is State.ENDED:
            return []
        return [Note("model_lost", {"why": why}), *self._redial(why, now)]

    def dialled(self, now: float) -> list[Command]:
        """The connection requested by `Dial` is open."""
        if self.state is State.ENDED:
            return []
        return self._sessions.dialled(now) or self._changed(now)

    def not_dialled(self, why: str, fatal: bool, now: float) -> list[Command]:
        """The connection requested by `Dial` failed. `fatal`: no retry can succeed."""
        if self.state is State.ENDED:
            return []
        self._sessions.not_dialled(now)
        note = Note("model_refused", {"why": why, "fatal": fatal})
        if self._sessions.has_session:
            return [note]
        if fatal:
            return [note, *self.end("model", "refused", now)]
        return [note, *self._sessions.switch_or_dial(now)]

    def line_lost(self, now: float) -> list[Command]:
        """The stream broke. Keeps the session for ABSENT_SECONDS: Twilio requests the
        next TwiML, and the caller may return on another stream (a second `start`)."""
        if self.state is State.WAITING:
            return self.end("caller", "connection_lost", now)
        if self.state is State.ENDED or self._stream.is_lost:
            return []
        self._stream.lost(now)
        if self._ends_why in GOODBYES:
            self._ends_at = self._ends_by  # nobody hears it now: see _line_back
        settled = self._speech.line_lost(now)
        lost = [Note("line_lost"), *settled, *self._changed(now)]
        # As after a barge-in: the caller has not heard everything, so every stoppable
        # wait and every wait for tones fails.
        return lost + self._waits.stop(tones=True)

    def hand_over(self, now: float) -> list[Command]:
        """Moves the call to another instance: ends it here ("handed_over") in the next
        settled moment, at the latest after HAND_OVER_SECONDS; at once if there is no
        stream."""
        if self.state is State.ENDED or self._ends_at is not None:
            return []
        if self.state is State.WAITING or self._stream.is_lost:
            return self.end("bridge", "handed_over", now)
        self._ends_at = now + HAND_OVER_SECONDS
        self._ends_why = "handed_over"
        return self._changed(now)

    def send(self, text: str) -> list[Command]:
        """A client event (JSON) of the SDK or of the user's code: sent, or kept until
        the model is ready."""
        if self.state is State.ENDED:
            return []
        if self.state is State.TALKING:
            return [self._send_event(text)]
        if '"response.cancel"' in text:
            return []  # it is for a response of the lost session
        return self._keep_pending(text)

    def misread(self, side: str, reason: str) -> list[Command]:
        """A message of `side` ("caller", "model") is unreadable. `reason`: a fixed
        phrase."""
        if self.state is State.ENDED:
            return []
        # Counted at the time of the last readable message: a stream that sends nothing
        # readable is not Twilio's, and reaches the limit however slowly it sends.
        if side == "caller" and not self._message_rate.add(
            1.0, self._stream.last_message_at
        ):
            return self._flooded(self._stream.last_message_at)
        return [protocol_error(side, reason)]

    def interrupt(
        self, by: str, now: float, response_id: str | None = None
    ) -> list[Command]:
        """Stops the agent without a barge-in: for a guardrail (`response_id` given) or
        for the user's code. `by` goes into the notes.

        With a `response_id`, only if the caller may still hear something of that
        response.
        """
        if self.state is State.ENDED:
            return []
        if response_id is not None:
            if not self._speech.is_live(response_id):
                return []
            self._guardrail_stops += 1
            if self._guardrail_stops > MAX_GUARDRAIL_STOPS:
                return self.end("bridge", "guardrail", now)
        commands = self._stop_agent(by, now, only=response_id)
        return commands + self._changed(now)

    def follow(self, rules: Rules, now: float) -> list[Command]:
        """Sets the rules of the call; to be called before the model is ready."""
        if self.state is State.ENDED:
            return []
        self._rules = rules
        self._keys = Keys(rules.key_pause_seconds, rules.key_actions)
        self._call_limits = CallLimits(rules, self._began)
        for item in rules.history:
            self.history.add(item)
        return []

    def tell(self, role: str, text: str, respond: bool, now: float) -> list[Command]:
        """Adds a text message to the conversation; with `respond` the model
        responds."""
        if self.state is State.ENDED:
            return []
        if self.state is not State.TALKING:
            return self._keep_pending(PendingText(role, text, respond))
        return [self._send_message(role, text), *(self.ask(now) if respond else [])]

    def ask(self, now: float) -> list[Command]:
        """Requests a response, as soon as the model is free."""
        if self.state is not State.TALKING:
            self._outbox.asked = True
            return []
        if self._caller.speaking and self._turn_detection.create_response is not False:
            return []  # the server responds at the end of the turn
        if self._unanswered:
            # The server is about to begin a response by itself: this one follows it.
            self._speech.want_response(now)
            return []
        return self._speech.request_response(now)

    def edit(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> list[Command]:
        """Removes items (ids) from the model's conversation, and replaces the text of
        messages (id -> text). A replaced message is a new item behind the old one,
        which is deleted."""
        if self.state is not State.TALKING:
            # The next session is given the history as it stands then.
            for item_id in removed:
                self.history.remove(item_id)
            for item_id, text in corrected.items():
                self.history.correct(item_id, text)
            return []
        commands: list[Command] = []
        gone = list(removed)
        for item_id, text in corrected.items():
            item = self.history.get(item_id)
            if item is not None and item.kind in TEXT_KINDS:
                new = realtime_events.message(
                    item.kind, text, self._speech.event_id(), after=item_id
                )
                commands.append(self._send_event(new))
                gone.append(item_id)
        deletes = [realtime_events.delete(it, self._speech.event_id()) for it in gone]
        return commands + [self._send_event(delete) for delete in deletes]

    def mute(self, on: bool) -> list[Command]:
        """On: the model hears silence in place of the caller."""
        self._caller.muted = on
        return []

    def busy(self, change: int, now: float, call_id: str = "") -> list[Command]:
        """A tool started (`change` +1) or ended (-1). Without `call_id` it is a tool of
        the model's own server, a part of its response."""
        self._tools_running = max(self._tools_running + change, 0)
        if not call_id:
            self._server_tools_running = max(self._server_tools_running + change, 0)
        elif change > 0 and len(call_id) <= MAX_ID_CHARS:
            self.history.tool_began(call_id)
        # The time that a tool took does not count as a late response.
        self._speech.progress = now
        return self._changed(now)

    def play(self, payload: str, now: float) -> list[Command]:
        """Plays the bridge's own audio (base64 mu-law), such as key tones."""
        if self.state in (State.WAITING, State.ENDED) or self._stream.is_lost:
            return []
        return self._speech.play(payload, now)

    def when_heard(
        self,
        wait: int,
        now: float,
        *,
        then: tuple[str, str] | None = None,
        stoppable: bool = True,
    ) -> list[Command]:
        """Starts wait number `wait`: it gives WaitDone once the caller has heard
        everything, or can hear nothing more. With `then` (by, why of `End`) the call
        ends at that moment. A barge-in ends the wait, unless `stoppable` is False."""
        if self.state is State.ENDED:
            return [WaitDone(wait, None)]
        if self._stream.is_lost:
            return [WaitDone(wait, False)]  # the caller hears nothing
        speaks = stoppable and self._interruptible and self._caller.speaking
        if speaks and (then is not None or not self._outstanding.nothing):
            return [WaitDone(wait, False)]
        if not self._waits.add(Wait(wait, now, then, stoppable)):
            return [WaitDone(wait, False)]
        return self._changed(now)

    def give_up(self, wait: int) -> list[Command]:
        """Ends a wait without a WaitDone; its `then` is not done."""
        self._waits.drop(wait)
        return []

    def goodbye(self, why: str, now: float) -> list[Command]:
        """The call must end (`why`: a key of GOODBYES), after a goodbye of the
        agent."""
        if self.state is State.ENDED or self._ends_at is not None:
            return []
        self._ends_at = now + GOODBYE_SECONDS
        self._ends_by = now + GOODBYE_MOST_SECONDS
        self._ends_why = why
        # Requested even while the caller speaks: the agent says nothing else after it.
        not_ready = self.state is not State.TALKING
        say = self.tell("system", GOODBYES[why], not_ready, now)
        ask = [] if not_ready else self._speech.request_response(now)
        hit = [limit_hit(LIMIT_OF[why])] if why in LIMIT_OF else []
        return [*hit, Note("goodbye", {"why": why}), *say, *ask]

    def end(self, by: str, why: str, now: float) -> list[Command]:
        """Ends the call. Only the first call counts."""
        if self.state is State.ENDED:
            return []
        self.ended_quietly = self._is_settled(self._outstanding, now)
        self.state = State.ENDED
        commands = self._speech.call_ended(now, clears=why == "handed_over")
        return [*commands, *self._waits.end(), End(by, why)]

    def tick(self, now: float) -> list[Command]:
        """Does everything that is due at `now`."""
        if self.state is State.ENDED:
            return []
        if self.state is State.WAITING and now >= self._start_due:
            return self.end("caller", "no_start", now)
        if self.state is State.HOLDING and self._sessions.is_given_up(now):
            why = "lost" if self._sessions.had_session else "not_ready"
            return self.end("model", why, now)
        if now >= self._stream.given_up_at:
            return self.end("caller", "connection_lost", now)
        lost = self._sessions.lost_reason(now)
        commands = (
            self._redial(lost, now) if lost else self._sessions.dial_spare_if_old(now)
        )
        if self._sessions.take_probe(now):
            commands.append(ToModel(realtime_events.probe(PROBE_ID)))
        if self._sessions.take_comfort_tone(now) and self._playback.idle:
            commands += self.play(g711.comfort_tone(), now)
        while (gives_up := self._speech.fence_due_at) is not None and now >= gives_up:
            commands += self._speech.give_up_fence(now)
        stalls_at = self._caller.stalls_at
        if stalls_at is not None and now >= stalls_at:
            commands += self._caller.fill_stall(now)
        keys_at = self._keys.due_at
        if keys_at is not None and now >= keys_at:
            commands += self._keys_entered(self._keys.take(), now)
        silent_at = self._unanswered_until
        if silent_at is not None and now >= silent_at:
            self._unanswered = False  # the server does not respond to this turn
        late_at = self._answer_late_at
        if late_at is not None and now >= late_at:
            commands += self._give_up_answer(now)
        if self.state is State.TALKING:
            commands += self._apply_call_limit(now)
        return commands + self._changed(now)

    def playing(self, now: float) -> list[Playing]:
        """The agent's text that the caller is still to hear, with its audio
        position."""
        return self._speech.playing(now)

    @property
    def line_is_lost(self) -> bool:
        """The stream broke; the session is kept for the next stream."""
        return self.state is not State.ENDED and self._stream.is_lost

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the history, or the audio sent to Twilio, changes."""
        return self.history.version, self._playback.sent

    @property
    def deadline(self) -> float | None:
        """When `tick` is due; None: not before the next input."""
        if self.state is State.ENDED:
            return None
        due = (
            self._start_or_session_due,
            self._stream.given_up_at,
            self._speech.fence_due_at,
            self._caller.stalls_at,
            self._keys.due_at,
            self._answer_late_at,
            self._unanswered_until,
            self._limit_reached_at,
            self._ends_at,
            # `deadline` is read for every frame, so waits, which are rare, are skipped
            # if empty.
            self._waits.due_at(self._outstanding) if self._waits else None,
        )
        return min((at for at in due if at is not None), default=None)

    # --- the caller ---

    def _start(self, message: twilio_messages.Start, now: float) -> list[Command]:
        if self.state is not State.WAITING and not self._stream.is_lost:
            return [protocol_error("caller", "second start")]
        media = message.start.media_format
        if (media.encoding, media.sample_rate) != ("audio/x-mulaw", 8000):
            return self.end("caller", "unsupported_media_format", now)
        self._stream_sid = message.stream_sid
        self._playback = Playback(now)
        out = twilio_messages.OutboundMessages(message.stream_sid)
        if self._stream.is_lost:
            back = self._line_back(out, now)
            return [Started(message, again=True), *back]
        self._began = now
        self._speech = AgentSpeech(out, self._playback, self.history, self._bounds)
        self._outbox.owned_by(message.stream_sid)
        self._caller = CallerAudio(now, self._bounds)
        self._sessions = Sessions(now)
        self.state = State.HOLDING
        return [Started(message)]

    def _line_back(
        self, out: twilio_messages.OutboundMessages, now: float
    ) -> list[Command]:
        """The caller is back on another stream; the audio queued on the old one is
        lost."""
        seconds = self._stream.back(now)
        self._speech.line_back(out, self._playback, now)
        self._caller.new_stream(now)
        back: list[Command] = [Note("line_back", {"seconds": seconds})]
        if not self._sessions.had_session:
            return back  # the greeting follows, once there is a session
        saying_goodbye = self._ends_why in GOODBYES
        if saying_goodbye:
            self._ends_at = min(now + GOODBYE_SECONDS, self._ends_by)
        if saying_goodbye and not self._speech.broken_off:
            # The agent says only the goodbye; it is owed if it had not begun.
            return back + self._speech.request_if_free(now)
        text = CUT_OFF if self._speech.broken_off else BACK
        self._speech.broken_off = False
        if not saying_goodbye:
            return back + self.tell("system", text, True, now)
        back += self.tell("system", text, False, now)
        return back + self._speech.request_response(now)

    def _turn_committed(self, item_id: str, now: float) -> None:
        self._caller.turn_ended(item_id)
        if item_id:
            # Added now: the item's own event may be lost with the session.
            at = self._seconds_into_call(now)
            self.history.add(HistoryItem(id=item_id, kind="user", at=at))

    def _seconds_into_call(self, now: float) -> float:
        """Seconds since the call began, earlier streams of it included."""
        return now - self._began + self._rules.elapsed

    def _caller_audio(
        self, media: twilio_messages.MediaDetails, now: float
    ) -> list[Command]:
        if media.track != "inbound":
            return [protocol_error("caller", "media of another track")]
        duration_ms = media.duration_ms
        self._playback.clock.frame(media.timestamp, duration_ms, now)
        return self._caller.frame(media.payload, media.timestamp, duration_ms, now)

    def _speech_started(self, now: float) -> list[Command]:
        self._caller.speaking = True
        self._awaiting_audio_since = None
        self._unanswered = self._turn_detection.create_response is not False
        self._call_limits.caller_is_there()
        self._guardrail_stops = 0
        commands: list[Command] = [Note("speech_started")]
        if self._interruptible:
            commands = self._stop_agent("caller", now) + commands
        return commands

    def _turn_dropped(self, now: float) -> list[Command]:
        """The server will not respond to what the caller said last."""
        self._caller.speaking = False
        self._caller.turn_dropped()
        self._unanswered = False
        return self._speech.request_if_free(now)

    def _stop_agent(
        self, by: str, now: float, only: str | None = None
    ) -> list[Command]:
        """Clears audio, cancels responses (`only`: of that response), ends waits."""
        tones = self._speech.plays_bridge_audio
        commands = self._speech.interrupt(
            by,
            now,
            cancels=by == "caller" and self._turn_detection.interrupt_response is True,
            answers=by == "caller"
            and self._turn_detection.create_response is not False,
            only=only,
        )
        flushed = tones and any(isinstance(it, ToCaller) for it in commands)
        return [*commands, *self._waits.stop(tones=flushed)]

    @property
    def _interruptible(self) -> bool:
        """False only if the user's session has interrupt_response false."""
        return self._turn_detection.interrupt_response is not False

    def _key_pressed(self, key: str, now: float) -> list[Command]:
        self._call_limits.caller_is_there()
        commands: list[Command] = [Note("key_pressed", {}, {"digit": key})]
        entered = self._keys.press(key, now)
        if entered is not None:
            commands += self._keys_entered(entered, now)
        return commands

    def _keys_entered(self, keys: str, now: float) -> list[Command]:
        """A complete input of keys: an action of the route, or a message to the
        agent."""
        if keys in self._rules.key_actions:
            return [Pressed(keys)]
        # Keys interrupt the agent, as speech does.
        stop = self._stop_agent("keys", now)
        text = f"(The caller pressed these keys on the phone: {keys})"
        return [*stop, *self.tell("user", text, True, now)]

    # --- after each input: waits, silence, the end of the call ---

    def _changed(self, now: float) -> list[Command]:
        """Runs after every input that may change what is said or heard: watches for
        silence, switches to a spare session, finishes waits, ends a call whose end is
        due."""
        if self.state is State.ENDED:
            return []
        outstanding = self._outstanding
        idle = self._is_idle(outstanding)
        connected = self.state is State.TALKING and not self._stream.is_lost
        self._call_limits.watch(idle and connected and not self._caller.muted, now)
        may_roll_over = self._sessions.spare and self._ends_at is None
        if may_roll_over and self._is_quiet(outstanding):
            return self._roll_over(now)
        over = self._waits.over(outstanding, now)
        ending = next((wait for wait in over if wait.then), None)
        commands: list[Command] = [
            # If several waits end the call, only the first one does.
            WaitDone(wait.number, None if ending else outstanding.nothing)
            for wait in over
            if wait is not ending
        ]
        if ending is not None and ending.then is not None:
            done = WaitDone(ending.number, True)
            return [*commands, done, *self.end(*ending.then, now)]
        if self._ends_at is None:
            return commands
        moving = self._ends_why == "handed_over"
        # A goodbye is not said while the stream is lost: nobody hears it.
        all_said = idle and not outstanding.unanswered and not self._stream.is_lost
        ready = self._is_settled(outstanding, now) if moving else all_said
        if ready or now >= self._ends_at:
            return commands + self.end("bridge", self._ends_why, now)
        return commands

    @property
    def _outstanding(self) -> Outstanding:
        """What the caller has not heard yet; includes messages that wait for the
        model."""
        return Outstanding(
            generating=self._speech.generating or self._outbox.to_be_answered,
            # A call does not end between two keys of one input either.
            unanswered=self._unanswered or self._keys.due_at is not None,
            queued=not self._playback.idle,
            queue_ends=self._playback.queue_ends,
            progress=self._speech.progress,
        )

    def _is_idle(self, outstanding: Outstanding) -> bool:
        """Nobody speaks, no audio is queued or expected, no tool runs."""
        return (
            outstanding.nothing
            and not self._caller.speaking
            and not self._tools_running
        )

    def _is_quiet(self, outstanding: Outstanding) -> bool:
        """Idle, and nothing is about to begin. (A tool begins a moment after the
        response that calls it is done, so tool calls without a result count.)"""
        if self.state is not State.TALKING or self._stream.is_lost:
            return False
        idle = self._is_idle(outstanding) and not outstanding.unanswered
        return idle and not self.history.open_calls

    def _is_settled(self, outstanding: Outstanding, now: float) -> bool:
        """Quiet, and everything the caller said is transcribed: another instance gets
        no caller audio."""
        if self._server_transcribes and self._caller.awaits_transcript:
            return False
        return not self._sessions.is_new(now) and self._is_quiet(outstanding)

    @property
    def _answer_late_at(self) -> float | None:
        """When a response without progress is given up; None while the model's own
        server runs a tool, which is a part of the response and may take its time."""
        if self.state is not State.TALKING or self._server_tools_running:
            return None
        if not self._speech.generating or self._stream.is_lost:
            return None
        return self._speech.progress + LATE_SECONDS

    @property
    def _unanswered_until(self) -> float | None:
        """When the server, which has not responded to the caller's turn, no longer
        will: no response may follow a turn in which the server found no words."""
        if not self._unanswered or self._caller.speaking:
            return None
        return self._turn_over_at + ANSWER_SECONDS

    def _give_up_answer(self, now: float) -> list[Command]:
        self._unanswered = False  # the server would have begun by now
        late: list[Command] = [Note("answer_late")]
        if self._waits.will_end_call:
            # A wait will end the call: another try would only prolong it.
            return late + self._speech.drop_responses(now)
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            return late + self.end("model", "failed", now)
        # The session answers pings and nothing else: use another one.
        return late + self._redial("answer_late", now)

    @property
    def _limit_reached_at(self) -> float | None:
        if self.state is not State.TALKING or self._ends_at is not None:
            return None
        return None if self._stream.is_lost else self._call_limits.due_at

    def _apply_call_limit(self, now: float) -> list[Command]:
        if self._ends_at is not None or self._stream.is_lost:
            return []
        # A response may have been requested since `watch` last ran.
        idle = self._is_idle(self._outstanding)
        self._call_limits.watch(idle and not self._caller.muted, now)
        due = self._call_limits.due(now)
        if due == "ask":
            self._unanswered = False  # the server would have begun by now
            ask = self.tell("system", self._rules.silent_text, True, now)
            return [Note("caller_silent"), *ask]
        return [] if due is None else self.goodbye(due, now)

    # --- model sessions ---

    def _session_updated(
        self, event: realtime_events.SessionUpdated, now: float
    ) -> list[Command]:
        if any(form not in (None, realtime_events.MULAW) for form in event.formats):
            # PCM on a mu-law line would be noise to the caller.
            return self.end("model", "wrong_audio_format", now)
        self._turn_detection = event.turns
        # Without turn detection no event reports the end of the caller's turn, and no
        # response follows: the current turn is dropped.
        manual = self._server_detects_turns and not event.detects
        self._server_detects_turns = event.detects
        self._server_transcribes = self._server_transcribes and event.transcribes
        dropped = self._turn_dropped(now) if manual else []
        if self.state is not State.HOLDING or not self._sessions.is_configuring:
            return dropped  # sent by a connection that is no longer used
        self.state = State.TALKING
        taken, sent = event.formats
        commands: list[Command]
        if self._sessions.had_session:
            commands = self._resume_session(now)
        else:
            data = {"held_ms": self._caller.held_ms, "input": taken, "output": sent}
            commands = [Note("ready", data), *self._open_session(now)]
        self._sessions.began(now, self._rules.session_seconds)
        for pending in self._outbox.take():
            if isinstance(pending, PendingText):
                commands += self.tell(pending.role, pending.text, pending.respond, now)
            else:
                commands.append(self._send_event(pending))
        if self._outbox.asked:
            self._outbox.asked = False
            commands += self.ask(now)
        return commands + self._speech.request_if_free(now) + self._caller.ready()

    def _open_session(self, now: float) -> list[Command]:
        """Sends the first session of this stream the history of earlier sessions and
        the greeting."""
        rules = self._rules
        before = replayed(rules.history, self._speech.event_id)
        commands: list[Command] = [ToModel(event) for event in before]
        if rules.aside:
            return [*commands, self._send_message("system", rules.aside)]
        opening = rules.word or rules.greeting
        if opening:
            # An item, because instructions of a response would replace the agent's own.
            # Sent before the held audio, so that a caller who said hello first is
            # answered after it.
            commands.append(self._send_message("system", opening))
            commands += self._speech.request_response(now)
            self._awaiting_audio_since = now
        return commands

    def _resume_session(self, now: float) -> list[Command]:
        """Sends a session that replaces a lost or old one the history and what is
        unsettled."""
        settled = self._speech.model_back(now)
        words: dict[str, str] = {}
        for part in self._speech.playing(now):
            text = "".join(text for _, text in part.words)
            words[part.id] = words.get(part.id, "") + text
        unfinished = Unfinished(words, self._caller.turn_audio, self.history.open_calls)
        resent = replayed(self.history.items, self._speech.event_id, unfinished)
        resent += self._outbox.events
        data: dict[str, Value] = {
            "why": self._sessions.left_why,
            "seconds": now - self._sessions.lost_at,
            "held_ms": self._caller.held_ms,
            "items": len(resent),
        }
        commands: list[Command] = [Note("model_back", data), *settled]
        commands += [ToModel(event) for event in resent]
        if self._speech.broken_off and not self._stream.is_lost:
            self._speech.broken_off = False
            commands.append(self._send_message("system", BROKEN_OFF))
        return commands

    # --- a session is replaced ---

    def _redial(self, why: str, now: float) -> list[Command]:
        """The session is lost: uses the spare one or dials; ends the call if time is
        up."""
        commands = self._leave_session(why, now)
        if self._sessions.is_given_up(now):
            return commands + self.end("model", "lost", now)
        return commands + self._sessions.switch_or_dial(now)

    def _roll_over(self, now: float) -> list[Command]:
        """A quiet moment: the spare session takes over unnoticed."""
        left = self._leave_session("roll_over", now)
        return [Note("rolls_over"), *left, *self._sessions.switch_or_dial(now)]

    def _leave_session(self, why: str, now: float) -> list[Command]:
        """The session is not used any more: keeps what the next one must know, and
        holds the caller's audio."""
        had_session = self._sessions.has_session
        self._sessions.left(why, now)
        if not had_session:
            return []
        self.state = State.HOLDING
        commands = self._speech.model_lost(now, tools=bool(self._tools_running))
        turn_open = self._caller.speaking or self._caller.turn_open
        if self._unanswered and not turn_open:
            # The caller's turn has ended, and the server had not begun its response:
            # the response is owed.
            commands += self._speech.request_response(now)
        self._unanswered = False
        self._caller.model_lost()
        for item_id in self._outbox.deleted:
            self.history.remove(item_id)
        return commands

    @property
    def _start_or_session_due(self) -> float | None:
        """Deadline of `start`; after it, the next deadline of the model sessions."""
        if self.state is State.WAITING:
            return self._start_due
        return self._sessions.due_at

    def _send_event(self, text: str) -> ToModel:
        """Sends an event; an item is remembered until the server has shown it."""
        return ToModel(self._outbox.sent(text))

    def _send_message(self, role: str, text: str) -> ToModel:
        return self._send_event(
            realtime_events.message(role, text, self._speech.event_id())
        )

    def _keep_pending(self, text: PendingText | str) -> list[Command]:
        """Keeps a text, or a client event, until the model is ready."""
        return [] if self._outbox.keep(text) else [Note("text_dropped")]

    def _first_audio(self, now: float) -> list[Command]:
        if self._awaiting_audio_since is None:
            return []
        seconds = now - self._awaiting_audio_since
        self._awaiting_audio_since = None
        return [Note("first_audio", {"seconds": seconds})]

    def _response_done(
        self, response: realtime_events.ResponseHead, lost: bool, now: float
    ) -> list[Command]:
        status, why = response.status, errors.short(response.why)
        notes: list[Command] = [
            Note("response_done", {"response": response.id, "status": status})
        ]
        used = response.used
        if used:
            notes.append(self._used(used))
        elif status == "completed" and self._rules.prices:
            # Cost limits have no effect without usage: the operator must know.
            notes.append(protocol_error("model", NO_USAGE))
        if status == "completed":
            self._failures = 0
        if lost:
            notes.append(Note("answer_failed", {"why": why}))
            return notes + self._retry_or_end(why, now)
        if self.state is State.TALKING:
            notes += self._apply_call_limit(now)
        return notes

    def _used(self, usage: realtime_events.Usage) -> Note:
        data: dict[str, Value] = {
            "input_tokens": usage.input_tokens or 0,
            "output_tokens": usage.output_tokens or 0,
            "cost": self._call_limits.spend(usage),
        }
        return Note("usage", data)

    def _retry_or_end(self, why: str, now: float) -> list[Command]:
        """A response that the caller waits for failed."""
        self._failures += 1
        if why in errors.FATAL_CODES or self._failures >= MAX_FAILURES:
            return self.end("model", "failed", now)
        return [] if self._speech.requested else self.ask(now)

    def _model_error(
        self, error: realtime_events.ErrorDetails, now: float
    ) -> list[Command]:
        benign = errors.is_benign(error)
        data: dict[str, Value] = {
            "code": errors.short(error.code or error.type),
            "param": errors.short(error.param) or None,
            "benign": benign,
        }
        if error.event_id == PROBE_ID:
            self._sessions.probe_answered(now)
            return []
        words = {"message": error.message[:MAX_MESSAGE_CHARS]}
        note = Note("model_error", data, words)
        for call_id in self._outbox.refused(error.event_id):
            self.history.no_result(call_id)
        if self.state is State.HOLDING and self._sessions.is_configuring and not benign:
            if errors.may_pass(error):
                return [note, *self._redial("error", now)]
            # The session would go on with the server's defaults: PCM, no instructions.
            return [note, *self.end("model", "refused", now)]
        if error.code == errors.ACTIVE_CODE:
            # Refused because a response is active: our request, or the server's own
            # response to what the caller said while the agent went on speaking.
            if error.event_id in (None, ANSWER_ID):
                self._speech.want_response(now)
            return [note]
        if error.event_id == ANSWER_ID:
            commands = [note, *self._speech.request_failed(now)]
            if not benign:
                commands += self._retry_or_end(error.code or "", now)
            return commands
        return [note]
