"""State machine of one call's conversation: inputs in, commands out. PURE.

Routes each input to the part that owns it, and decides what the caller's side does: the
stream, barge-ins, turns, keys. May not wait, log or read a clock: `now` is passed in
(seconds).
"""

import enum
import hashlib
from typing import assert_never

from bridge.audio import g711
from bridge.core import errors, realtime_events, twilio_messages
from bridge.core.activity import Activity
from bridge.core.agent_speech import AgentSpeech
from bridge.core.caller_audio import CallerAudio
from bridge.core.commands import (
    Command,
    End,
    Note,
    Pressed,
    Started,
    ToCaller,
    Value,
    WaitDone,
    limit_hit,
    protocol_error,
)
from bridge.core.endings import HANDED_OVER, Endings
from bridge.core.history import MAX_CHARS, History, HistoryItem, Playing
from bridge.core.inputs import (
    Ask,
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
from bridge.core.limits import MAX_ID_CHARS, Bounds, MessageRate
from bridge.core.model_side import ModelSide
from bridge.core.outbox import Outbox
from bridge.core.playback import Playback
from bridge.core.pressed_keys import Keys
from bridge.core.realtime_requests import EventIds
from bridge.core.replay import recorded
from bridge.core.rules import BACK, CUT_OFF, Rules
from bridge.core.running_tools import RunningTools
from bridge.core.sessions import COMFORT_SECONDS, Sessions
from bridge.core.stream_presence import START_SECONDS, StreamPresence
from bridge.core.waits import ANSWER_SECONDS

MAX_GUARDRAIL_STOPS = 5
"""Responses that a guardrail may stop after the caller spoke; one more ends the call.
The agent may rephrase, but an agent whose every response is stopped would try for ever,
and the caller would hear nothing."""

LATE_SECONDS = 10.0
"""A response without progress for this long is requested from another session: no model
thinks longer, and no caller waits much longer in silence."""

NO_USAGE = "answer without usage"
"""Reason of a protocol error; reported only where prices are configured."""


class State(enum.Enum):
    WAITING = "waiting"  # the socket is open, `start` has not arrived
    HOLDING = "holding"  # no model session is ready: the caller's audio is held
    TALKING = "talking"  # a model session is ready
    ENDED = "ended"  # `End` was returned


class Conversation:
    """One call. `handle` takes every input (inputs.py) and returns commands.

    The commands must be carried out in the order given. `Tick` must be given at
    `deadline`. `rules` are the call's rules; `SetRules` replaces them once the route is
    known. `bounds` limit the input of either side: input beyond them is dropped with a
    Note, and a caller's stream that floods the bridge ends the call.

    Invariants:
    - `End` is returned once. After it, only a new wait is answered (WaitDone).
    - A response is requested only when none is requested or generating, and when what
      the caller heard of earlier ones is settled (AgentSpeech.request_if_free).
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
    ) -> None:
        self.history = History()
        self._started = False
        self._ended = False
        self.ended_quietly = False
        """Set at the end: nobody spoke, no audio was queued, no response was owed."""
        self._began = now
        self._start_due = now + START_SECONDS
        self._stream_sid = ""
        self._message_rate = MessageRate(bounds.messages_per_second)
        """Rate limiter for the caller's messages, unreadable ones included."""
        self._turn_over_at = now
        """When the caller's last turn ended."""
        self._guardrail_stops = 0
        """Responses stopped by a guardrail since the caller last spoke."""
        self._stream = StreamPresence(now)
        self._sessions = Sessions(now)
        self._outbox = Outbox()
        self._tools = RunningTools()
        self._keys = Keys()
        self._caller = CallerAudio(now, bounds, self._sessions)
        ids = EventIds()
        self._speech = AgentSpeech(
            self.history, self._sessions, self._stream, ids, bounds
        )
        self._responses = self._speech.responses
        self._model = ModelSide(
            self._sessions,
            self._speech,
            self._caller,
            self._stream,
            self.history,
            self._outbox,
            self._tools,
            ids,
            self._end,
        )
        self._activity = Activity(
            self._speech,
            self._caller,
            self._sessions,
            self._stream,
            self._outbox,
            self.history,
            self._keys,
            self._tools,
        )
        self._endings = Endings(self._activity, self._model, self._end, now)
        self._rules = Rules()
        self._set_rules(rules or Rules())

    # --- what the call asks ---

    @property
    def state(self) -> State:
        if self._ended:
            return State.ENDED
        if not self._started:
            return State.WAITING
        return State.TALKING if self._sessions.has_session else State.HOLDING

    @property
    def stream_is_lost(self) -> bool:
        """The stream broke; the session is kept for the next stream."""
        return not self._ended and self._stream.is_lost

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the history, or the audio sent to Twilio, changes."""
        return self.history.version, self._speech.playback.sent

    def playing(self, now: float) -> list[Playing]:
        """The agent's text that the caller is still to hear, with its audio
        position."""
        return self._speech.playing(now)

    @property
    def deadline(self) -> float | None:
        """When `Tick` is due; None: not before the next input."""
        if self._ended:
            return None
        due = (
            self._sessions.due_at if self._started else self._start_due,
            self._stream.given_up_at,
            self._speech.fence_due_at,
            self._speech.retry_at,
            self._caller.stalls_at,
            self._keys.due_at,
            self._answer_late_at,
            self._unanswered_until,
            self._endings.limit_due_at,
            self._endings.due_at,
        )
        return min((at for at in due if at is not None), default=None)

    # --- inputs ---

    def handle(self, given: Input, now: float) -> list[Command]:
        """Takes one input; returns the commands that follow from it, in order."""
        if isinstance(given, FromPhone):
            return self._from_phone(given.message, now)
        if self._ended:
            if isinstance(given, WhenHeard):
                return [WaitDone(given.wait, None)]
            return []
        if isinstance(given, FromModel):
            return self._from_model(given.connection, given.event, now)
        return self._act(given, now) + self._changed(now)

    def _act(self, given: OtherInput, now: float) -> list[Command]:
        match given:
            case Tick():
                return self._tick(now)
            case Tell(role, text, respond):
                return self._model.tell(role, text, respond, now)
            case Ask():
                return self._model.ask(now)
            case Send(text):
                return self._model.send(text)
            case Edit(removed, corrected):
                return self._model.edit(removed, corrected)
            case Interrupt(by, response_id):
                return self._interrupt(by, response_id, now)
            case Play(payload):
                return self._play(payload, now)
            case MuteCaller(on):
                self._caller.muted = on
            case ToolRunning(change, call_id):
                self._tools.change(change, call_id)
                if change > 0 and 0 < len(call_id) <= MAX_ID_CHARS:
                    self.history.tool_began(call_id)
                # The time that a tool took does not count as a late response.
                self._responses.progress = now
            case WhenHeard():
                return self._when_heard(given, now)
            case GiveUpWait(wait):
                self._endings.waits.drop(wait)
            case Goodbye(why):
                return self._endings.goodbye(why, now)
            case HandOver():
                return self._hand_over(now)
            case EndCall(by, why):
                return self._end(by, why, now)
            case SetRules(rules):
                self._set_rules(rules)
            case Misread(side, reason):
                return self._misread(side, reason)
            case StreamLost():
                return self._stream_lost(now)
            case Dialled(connection):
                return self._sessions.dialled(connection, now)
            case NotDialled(connection, why, fatal):
                return self._model.not_dialled(connection, why, fatal, now)
            case ModelLost(connection, why):
                return self._model.lost(connection, why, now)
            case _:
                assert_never(given)
        return []

    def _set_rules(self, rules: Rules) -> None:
        self._rules = self._model.rules = rules
        self._keys.set_rules(rules.key_pause_seconds, rules.key_actions)
        self._endings.set_rules(rules, self._began)
        for item in rules.history:
            self.history.add(item)

    def _misread(self, side: str, reason: str) -> list[Command]:
        # Counted at the time of the last readable message: a stream that sends nothing
        # readable is not Twilio's, and reaches the limit however slowly it sends.
        at = self._stream.last_message_at
        if side == "caller" and not self._message_rate.add(1.0, at):
            return self._flooded(at)
        return [protocol_error(side, reason)]

    def _flooded(self, now: float) -> list[Command]:
        """The caller's stream sends more messages than any phone: ends the call."""
        return [limit_hit("message_rate"), *self._end("caller", "flood", now)]

    def _interrupt(self, by: str, response_id: str | None, now: float) -> list[Command]:
        if response_id is not None:
            if not self._speech.is_live(response_id):
                return []
            self._guardrail_stops += 1
            if self._guardrail_stops > MAX_GUARDRAIL_STOPS:
                return self._end("bridge", "guardrail", now)
        return self._stop_agent(by, now, only=response_id)

    def _play(self, payload: str, now: float) -> list[Command]:
        if not self._started or self._stream.is_lost:
            return []
        return self._speech.play(payload, now)

    def _when_heard(self, given: WhenHeard, now: float) -> list[Command]:
        if self._stream.is_lost:
            return [WaitDone(given.wait, False)]  # the caller hears nothing
        interrupts = self._model.interruptible and self._caller.speaking
        return self._endings.start_wait(given, now, caller_interrupts=interrupts)

    def _hand_over(self, now: float) -> list[Command]:
        if self._endings.at is None and (not self._started or self._stream.is_lost):
            return self._end("bridge", HANDED_OVER, now)
        self._endings.hand_over(now)
        return []

    # --- the phone ---

    def _from_phone(
        self, message: twilio_messages.Inbound, now: float
    ) -> list[Command]:
        """A message of Twilio's stream."""
        self._stream.last_message_at = now
        if self._ended:
            return []
        if not self._message_rate.add(1.0, now):
            return self._flooded(now)
        if isinstance(message, twilio_messages.Connected):
            return []
        if isinstance(message, twilio_messages.Start):
            return self._start(message, now)
        if not self._started:
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
                return self._end("caller", "hung_up", now)

    def _start(self, message: twilio_messages.Start, now: float) -> list[Command]:
        if self._started and not self._stream.is_lost:
            return [protocol_error("caller", "second start")]
        media = message.start.media_format
        if (media.encoding, media.sample_rate) != ("audio/x-mulaw", 8000):
            return self._end("caller", "unsupported_media_format", now)
        self._stream_sid = message.stream_sid
        out = twilio_messages.OutboundMessages(message.stream_sid)
        if self._started:
            back = self._stream_back(out, now)
            return [Started(message, again=True), *back]
        self._started = True
        self._began = now
        self._speech.new_stream(out, Playback(now), now)
        self._outbox.owned_by(message.stream_sid)
        digest = hashlib.sha256(message.stream_sid.encode(errors="replace")).digest()
        self._responses.spread = digest[0] / 255
        self._caller.start(now)
        self._sessions.start(now)
        return [Started(message)]

    def _stream_lost(self, now: float) -> list[Command]:
        """Keeps the session for ABSENT_SECONDS: Twilio requests the next TwiML, and the
        caller may return on another stream (a second `start`)."""
        if not self._started:
            return self._end("caller", "connection_lost", now)
        if self._stream.is_lost:
            return []
        self._stream.lost(now)
        self._endings.stream_lost()
        lost = [Note("line_lost"), *self._speech.stream_lost(now), *self._changed(now)]
        # As after a barge-in: the caller has not heard everything, so every stoppable
        # wait and every wait for tones fails.
        return lost + self._endings.waits.stop(tones=True)

    def _stream_back(
        self, out: twilio_messages.OutboundMessages, now: float
    ) -> list[Command]:
        """The caller is back on another stream; the audio queued on the old one is
        lost."""
        seconds = self._stream.back(now)
        self._speech.new_stream(out, Playback(now), now)
        self._caller.new_stream(now)
        back: list[Command] = [Note("line_back", {"seconds": seconds})]
        if not self._sessions.had_session:
            return back  # the greeting follows, once there is a session
        saying_goodbye = self._endings.stream_back(now)
        if saying_goodbye and not self._speech.broken_off:
            # The agent says only the goodbye; it is owed if it had not begun.
            return back + self._speech.request_if_free(now)
        text = CUT_OFF if self._speech.broken_off else BACK
        self._speech.broken_off = False
        if not saying_goodbye:
            return back + self._model.tell("system", text, True, now)
        back += self._model.tell("system", text, False, now)
        return back + self._speech.request_response(now)

    def _caller_audio(
        self, media: twilio_messages.MediaDetails, now: float
    ) -> list[Command]:
        if media.track != "inbound":
            return [protocol_error("caller", "media of another track")]
        duration_ms = media.duration_ms
        self._speech.playback.clock.frame(media.timestamp, duration_ms, now)
        return self._caller.frame(media.payload, media.timestamp, duration_ms, now)

    def _key_pressed(self, key: str, now: float) -> list[Command]:
        self._endings.limits.caller_is_there()
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
        return [*stop, *self._model.tell("user", text, True, now)]

    # --- the model ---

    def _from_model(
        self, connection: int, event: realtime_events.KnownEvent, now: float
    ) -> list[Command]:
        """A server event. Events of a connection that is not used any more are
        dropped."""
        if connection != self._sessions.in_use:
            return []
        if isinstance(event, realtime_events.SessionUpdated):
            self._sessions.probe_answered(now)
        else:
            self._sessions.event_received(now)
        commands = self._model_event(event, now)
        if isinstance(event, realtime_events.AudioDelta):
            return commands  # the most frequent event, after which nothing can end
        return commands + self._changed(now)

    def _model_event(
        self, event: realtime_events.KnownEvent, now: float
    ) -> list[Command]:
        match event:
            case realtime_events.AudioDelta():
                return self._agent_audio(event, now)
            case realtime_events.TranscriptDelta():
                self._speech.transcript_delta(event)
            case realtime_events.AudioDone():
                return self._speech.item_done((event.item_id, event.content_index), now)
            case realtime_events.SpeechStarted():
                return self._speech_started(now)
            case realtime_events.SpeechStopped():
                return self._speech_stopped(now)
            case realtime_events.InputCommitted():
                self._turn_committed(event.item_id, now)
            case realtime_events.InputCleared():
                return self._model.turn_dropped(now)
            case realtime_events.ResponseCreated():
                return self._speech.response_created(event.response.id, now)
            case realtime_events.OutputItemAdded():
                self._speech.item_added(event, now)
            case realtime_events.OutputItemDone():
                self._speech.output_item_done(event)
            case realtime_events.ResponseDone(response=response):
                return self._response_done(response, now)
            case realtime_events.SessionUpdated():
                return self._model.session_updated(event, now)
            case realtime_events.ModelError(error=error):
                return self._model.error(error, now) + self._comfort_retry(now)
            case realtime_events.CallerTranscript():
                self._caller.server_transcribes = True
                self._caller.turn_transcribed(event.item_id)
                self.history.transcribed(event.item_id, event.transcript)
                text = {"text": event.transcript[:MAX_CHARS]}
                return [Note("caller_said", {"item": event.item_id}, text)]
            case realtime_events.TranscriptionFailed():
                self._caller.transcription_failed(event.item_id)
            case realtime_events.ItemAdded() | realtime_events.ItemDone():
                self._item_shown(event, now)
            case realtime_events.ItemDeleted():
                self.history.remove(event.item_id)
                self._caller.turn_transcribed(event.item_id)
                self._outbox.gone(event.item_id)
            case _:
                assert_never(event)
        return []

    def _item_shown(
        self, event: realtime_events.ItemAdded | realtime_events.ItemDone, now: float
    ) -> None:
        """The server shows an item of the conversation."""
        self._outbox.seen(event.item)
        item = recorded(event.item, self._seconds_into_call(now))
        if item is not None:
            if self._speech.counts(item.id):
                item.text = ""  # a new session shows unheard text, too
            self.history.add(item, event.previous_item_id)
        if event.item.is_cut_off_call:
            self.history.remove(event.item.id)

    def _agent_audio(
        self, event: realtime_events.AudioDelta, now: float
    ) -> list[Command]:
        commands = self._speech.audio(event, now)
        if not any(isinstance(command, ToCaller) for command in commands):
            return commands
        self._responses.succeeded()
        since, self._model.awaiting_audio_since = self._model.awaiting_audio_since, None
        if since is not None:
            commands.append(Note("first_audio", {"seconds": now - since}))
        return commands

    def _response_done(
        self, response: realtime_events.ResponseHead, now: float
    ) -> list[Command]:
        wanted = not self._responses.was_cut(response.id)
        known = self._responses.get(response.id)
        sounded = known is not None and known.sent_audio
        lost = wanted and errors.is_lost(response.status, sounded=sounded)
        completed = response.status in ("completed", None)
        commands = self._speech.response_done(response.id, now, completed=completed)
        status, why = response.status, errors.short(response.why)
        commands.append(
            Note("response_done", {"response": response.id, "status": status})
        )
        used = response.used
        if used:
            commands.append(self._used(used))
        elif status == "completed" and self._rules.prices:
            # Cost limits have no effect without usage: the operator must know.
            commands.append(protocol_error("model", NO_USAGE))
        if status == "completed":
            self._responses.succeeded()
        if lost:
            commands.append(Note("answer_failed", {"why": why}))
            failed = self._model.response_failed(why, response.message, now)
            return commands + failed + self._comfort_retry(now)
        return commands + self._endings.apply_limits(now)

    def _used(self, usage: realtime_events.Usage) -> Note:
        data: dict[str, Value] = {
            "input_tokens": usage.input_tokens or 0,
            "output_tokens": usage.output_tokens or 0,
            "cost": self._endings.limits.spend(usage),
        }
        return Note("usage", data)

    # --- turns and barge-ins ---

    def _speech_started(self, now: float) -> list[Command]:
        self._caller.speaking = True
        self._model.awaiting_audio_since = None
        self._responses.unanswered = self._model.server_responds
        self._endings.limits.caller_is_there()
        self._guardrail_stops = 0
        commands: list[Command] = [Note("speech_started")]
        if self._model.interruptible:
            commands = self._stop_agent("caller", now) + commands
        return commands

    def _speech_stopped(self, now: float) -> list[Command]:
        self._caller.speaking = False
        self._turn_over_at = now
        self._caller.turn_open = True
        self._responses.turn_ended()
        self._model.awaiting_audio_since = now
        return [Note("speech_stopped")]

    def _turn_committed(self, item_id: str, now: float) -> None:
        self._caller.speaking = False  # speech_stopped may not have come
        self._turn_over_at = now
        self._caller.turn_ended(item_id)
        if item_id:
            # Added now: the item's own event may be lost with the session.
            at = self._seconds_into_call(now)
            self.history.add(HistoryItem(id=item_id, kind="user", at=at))

    def _seconds_into_call(self, now: float) -> float:
        """Seconds since the call began, earlier streams of it included."""
        return now - self._began + self._rules.elapsed

    def _stop_agent(
        self, by: str, now: float, only: str | None = None
    ) -> list[Command]:
        """Clears audio, cancels responses (`only`: of that response), ends waits."""
        tones = self._speech.plays_bridge_audio
        commands = self._speech.interrupt(
            by,
            now,
            cancels=by == "caller" and self._model.server_cancels,
            answers=by == "caller" and self._model.server_responds,
            only=only,
        )
        flushed = tones and any(isinstance(it, ToCaller) for it in commands)
        return [*commands, *self._endings.waits.stop(tones=flushed)]

    # --- time ---

    def _tick(self, now: float) -> list[Command]:
        """Does everything that is due at `now`."""
        if not self._started and now >= self._start_due:
            return self._end("caller", "no_start", now)
        if now >= self._stream.given_up_at:
            return self._end("caller", "connection_lost", now)
        commands: list[Command] = []
        for due in (
            self._sessions_due,
            self._speech.give_up_late_fences,
            self._caller.fill_stall_if_due,
            self._keys_due,
            self._speech.retry_if_due,
            self._unanswered_due,
            self._answer_due,
            self._endings.apply_limits,
        ):
            commands += due(now)
            if self._ended:
                break
        return commands

    def _sessions_due(self, now: float) -> list[Command]:
        if not self._started:
            return []
        commands = self._model.tick(now)
        if self._sessions.take_comfort_tone(now) and self._speech.playback.idle:
            commands += self._play(g711.comfort_tone(), now)
        return commands

    def _comfort_retry(self, now: float) -> list[Command]:
        """A failed response is requested again after a while: a tone tells the caller
        that the line works."""
        retry_at = self._speech.retry_at
        if self._ended or retry_at is None or retry_at < now + COMFORT_SECONDS:
            return []
        idle = self._speech.playback.idle
        return self._play(g711.comfort_tone(), now) if idle else []

    def _keys_due(self, now: float) -> list[Command]:
        keys_at = self._keys.due_at
        if keys_at is None or now < keys_at:
            return []
        return self._keys_entered(self._keys.take(), now)

    @property
    def _answer_late_at(self) -> float | None:
        """When a response without progress is given up; None while the model's own
        server runs a tool, which is a part of the response and may take its time."""
        if self._tools.of_server or not self._activity.has_both_sides:
            return None
        if not self._responses.generating:
            return None
        return self._responses.progress + LATE_SECONDS

    @property
    def _unanswered_until(self) -> float | None:
        """When the server, which has not responded to the caller's turn, no longer
        will: no response may follow a turn in which the server found no words."""
        if not self._responses.unanswered or self._caller.speaking:
            return None
        return self._turn_over_at + ANSWER_SECONDS

    def _unanswered_due(self, now: float) -> list[Command]:
        until = self._unanswered_until
        if until is not None and now >= until:
            self._responses.unanswered = False
        return []

    def _answer_due(self, now: float) -> list[Command]:
        late_at = self._answer_late_at
        if late_at is None or now < late_at:
            return []
        late: list[Command] = [Note("answer_late")]
        goes_on = self._responses.late()
        if self._endings.waits.will_end_call:
            # A wait will end the call: another try would only prolong it.
            return late + self._speech.drop_responses(now)
        if not goes_on:
            return late + self._end("model", "failed", now)
        # The session answers pings and nothing else: use another one.
        return late + self._model.redial("answer_late", now)

    def _changed(self, now: float) -> list[Command]:
        """Runs after every input that may change what is said or heard: watches for
        silence, switches to a spare session, finishes waits, ends a call whose end is
        due."""
        if self._ended:
            return []
        outstanding = self._activity.outstanding
        self._endings.watch(outstanding, now)
        may_roll_over = self._sessions.spare is not None and self._endings.at is None
        if may_roll_over and self._activity.is_quiet(outstanding):
            return self._model.roll_over(now)
        return self._endings.finish(outstanding, now)

    def _end(self, by: str, why: str, now: float) -> list[Command]:
        """Ends the call. Only the first end counts."""
        if self._ended:
            return []
        activity = self._activity
        self.ended_quietly = activity.is_settled(activity.outstanding, now)
        self._ended = True
        commands = self._speech.call_ended(now, clears=why == HANDED_OVER)
        return [*commands, *self._endings.waits.end(), End(by, why)]
