"""A SIP call's conversation as a state machine: the server's events in, commands out.

The counterpart of core/conversation.py without audio: the server hears, plays and
interrupts by itself. Pure: no clock, no socket, no log; `now` in seconds.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from bridge.core import UNREADABLE, errors, realtime_events, realtime_requests
from bridge.core.agent_speech import ANSWER_ID
from bridge.core.call_limits import CallLimits
from bridge.core.commands import (
    Command,
    End,
    Interrupted,
    Note,
    Pressed,
    ToModel,
    Value,
    WaitDone,
    limit_hit,
    protocol_error,
)
from bridge.core.conversation import NO_USAGE
from bridge.core.endings import GOODBYE_SECONDS
from bridge.core.history import History
from bridge.core.outbox import MAX_PENDING
from bridge.core.pressed_keys import Keys
from bridge.core.replay import recorded
from bridge.core.rules import GOODBYES, LIMIT_OF, Rules
from bridge.core.waits import Outstanding, Wait, Waits
from bridge.sip.sip_speech import SipSpeech, SpokenAnswer

MAX_FAILURES = 2
"""This many failed responses in a row end the call."""


class _Buffer(msgspec.Struct, frozen=True):
    """output_audio_buffer.started, .stopped, .cleared."""

    response_id: str


class _Key(msgspec.Struct, frozen=True):
    """input_audio_buffer.dtmf_event_received."""

    event: str


_buffer = msgspec.json.Decoder(_Buffer).decode
_key = msgspec.json.Decoder(_Key).decode


class SipTalk:
    """The state of one conversation. The caller carries out the returned commands in
    order, and calls `attached` once events can be sent to the model."""

    def __init__(self, rules: Rules, now: float) -> None:
        self.history = History()
        self._rules = rules
        self._speech = SipSpeech()
        self._keys = Keys(rules.key_pause_seconds, rules.key_actions)
        self._call_limits = CallLimits(rules, now)
        self._waits = Waits()
        self._turns = realtime_events.TurnDetection()
        """Turn detection as the server reports it."""
        self._began = now
        self._attached = False
        self._ended = False
        self._caller_speaks = False
        self._unanswered = False
        """The caller has spoken, and no response to it has begun."""
        self._busy = 0
        self._failures = 0
        self._serial = 0
        self._progress = now
        """Time of the server's last event."""
        self._outbox: list[tuple[str, str, bool]] = []
        self._ends_at: float | None = None
        """Latest end of the call while the agent says goodbye; None: no goodbye."""
        self._ends_why = ""

    # --- inputs ---

    def attached(self, now: float) -> list[Command]:
        """The socket is open, and the session is configured."""
        self._attached = True
        commands: list[Command] = []
        if self._rules.greeting:
            commands += self.tell("system", self._rules.greeting, True)
        pending, self._outbox = self._outbox, []
        for word in pending:
            commands += self.tell(*word)
        return commands + self._changed(now)

    def from_model(
        self, event: realtime_events.ServerEvent, text: str, now: float
    ) -> list[Command]:
        """An event of the server, decoded and as its text."""
        if self._ended:
            return []
        self._progress = now
        return self._model_event(event, text, now) + self._changed(now)

    def _model_event(
        self, event: realtime_events.ServerEvent, text: str, now: float
    ) -> list[Command]:
        match event:
            case realtime_events.TranscriptDelta():
                self._speech.words(event.response_id, event.item_id, event.delta)
            case realtime_events.SpeechStarted():
                return self._speech_started()
            case realtime_events.SpeechStopped():
                self._caller_speaks = False
                return [Note("speech_stopped")]
            case realtime_events.ResponseCreated():
                self._unanswered = False
                self._speech.created(event.response.id, now)
            case realtime_events.ResponseDone():
                return self._response_done(event.response, now)
            case realtime_events.SessionUpdated():
                self._turns = event.turns
            case realtime_events.ModelError():
                return self._model_error(event.error, now)
            case realtime_events.CallerTranscript():
                self.history.transcribed(event.item_id, event.transcript)
                words = {"text": event.transcript}
                return [Note("caller_said", {"item": event.item_id}, words)]
            case realtime_events.ItemAdded() | realtime_events.ItemDone():
                item = recorded(event.item, now - self._began)
                if item is not None:
                    self.history.add(item, event.previous_item_id)
            case realtime_events.ItemDeleted():
                self.history.remove(event.item_id)
            case realtime_events.Other():
                return self._other(event.type, text, now)
        return []

    def _other(self, kind: str, text: str, now: float) -> list[Command]:
        """Events that occur only on calls whose audio the server plays."""
        try:
            match kind:
                case "output_audio_buffer.started":
                    self._speech.playing(_buffer(text).response_id, now)
                case "output_audio_buffer.stopped":
                    return self._said(self._speech.played(_buffer(text).response_id))
                case "output_audio_buffer.cleared":
                    return self._cleared(_buffer(text).response_id, now)
                case "input_audio_buffer.dtmf_event_received":
                    return self._key_pressed(_key(text).event, now)
        except UNREADABLE:
            return [protocol_error("model", "invalid event")]
        return []

    # --- actions ---

    def tell(self, role: str, text: str, respond: bool) -> list[Command]:
        """Adds text to the conversation; with `respond` a response is requested."""
        if self._ended:
            return []
        if not self._attached:
            if len(self._outbox) >= MAX_PENDING:
                return [Note("text_dropped")]
            self._outbox.append((role, text, respond))
            return []
        say = ToModel(realtime_requests.message(role, text, self.event_id()))
        # A caller who speaks gets a response afterwards, which includes this text.
        answered = self._caller_speaks and self._turns.create_response is not False
        return [say, *(self.ask() if respond and not answered else [])]

    def ask(self) -> list[Command]:
        """Requests a response, at once or after the one in progress."""
        if self._ended:
            return []
        self._speech.want()
        return self._request_if_free()

    def interrupt(
        self, by: str, now: float, response_id: str | None = None
    ) -> list[Command]:
        """Cancels responses in progress and clears audio not played yet. With a
        `response_id` only if something of that response may still be heard."""
        if self._ended:
            return []
        if response_id is not None and not self._speech.is_live(response_id):
            return []
        running, audible = self._speech.running, self._speech.audible
        self._speech.drop_wish()
        commands: list[Command] = [
            ToModel(realtime_requests.cancel(it, self.event_id())) for it in running
        ]
        if audible:
            commands.append(ToModel(_event("output_audio_buffer.clear", self)))
        if commands:
            data: dict[str, Value] = {"by": by, "responses": len(running)}
            commands.append(Note("interrupted", data))
        return [*commands, *self._waits.stop(), *self._changed(now)]

    def edit(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> list[Command]:
        """Removes items from the model's conversation, or replaces their text."""
        if self._ended:
            return []
        commands: list[Command] = []
        for item_id, text in corrected.items():
            item = self.history.get(item_id)
            if item is not None:
                new = self.event_id()
                word = realtime_requests.message(item.kind, text, new, after=item_id)
                commands.append(ToModel(word))
        gone = (*removed, *corrected)
        return commands + [
            ToModel(realtime_requests.delete(it, self.event_id())) for it in gone
        ]

    def clear_input(self) -> str:
        """The event that discards the caller's audio since the last turn."""
        self._caller_speaks = self._unanswered = False
        return _event("input_audio_buffer.clear", self)

    def when_heard(
        self, wait: int, now: float, then: tuple[str, str] | None = None
    ) -> list[Command]:
        """Gives `WaitDone(wait, ...)` once the caller has heard all agent speech: the
        server reports it, or it is overdue. `then`: how the call will end; it does not
        end between the caller's speech and the response to it."""
        if self._ended:
            return [WaitDone(wait, None)]
        if self._caller_speaks and self._interruptible:
            return [WaitDone(wait, False)]
        if not self._waits.add(Wait(wait, now, then)):
            return [WaitDone(wait, False)]
        return self._changed(now)

    def give_up(self, wait: int) -> None:
        """Cancels a wait; the action that was to follow is not taken."""
        self._waits.drop(wait)

    def busy(self, change: int, now: float) -> list[Command]:
        """A tool has begun (+1) or ended (-1)."""
        self._busy += change
        return self._changed(now)

    def end(self, by: str, why: str, now: float) -> list[Command]:
        """Ends the call, for any side. Only the first end counts."""
        if self._ended:
            return []
        self._ended = True
        said = self._said(self._speech.over(now))
        return [*said, *self._waits.end(), End(by, why)]

    def tick(self, now: float) -> list[Command]:
        """Does what is due at `now`."""
        if self._ended:
            return []
        commands: list[Command] = []
        keys_at = self._keys.due_at
        if keys_at is not None and now >= keys_at:
            commands += self._keys_entered(self._keys.take(), now)
        return commands + self._apply_call_limit(now) + self._changed(now)

    @property
    def deadline(self) -> float | None:
        """Time of the next `tick`; None: not before the next input."""
        if self._ended:
            return None
        patient = self._attached and self._ends_at is None
        times = (
            self._keys.due_at,
            self._call_limits.due_at if patient else None,
            self._ends_at,
            self._waits.due_at(self._outstanding),
        )
        return min((at for at in times if at is not None), default=None)

    # --- the agent ---

    def _said(self, items: list[SpokenAnswer]) -> list[Command]:
        notes: list[Command] = []
        for said in items:
            item_id, words = said.item_id, said.generated
            self.history.said(item_id, said.text, words, cut=said.cut)
            data: dict[str, Value] = {
                "item": item_id,
                "content_index": 0,
                "cut": said.cut,
            }
            notes.append(Note("said", data, {"generated": words, "heard": said.text}))
        return notes

    def _cleared(self, response_id: str, now: float) -> list[Command]:
        said = self._speech.cleared(response_id, now)
        told = [Interrupted(said[0].item_id, 0)] if said else []
        return [*told, *self._said(said), *self._waits.stop()]

    def _response_done(
        self, response: realtime_events.ResponseHead, now: float
    ) -> list[Command]:
        status, why = response.status, errors.short(response.why)
        commands = self._said(self._speech.done(response.id, status))
        data: dict[str, Value] = {"response": response.id, "status": status}
        commands.append(Note("response_done", data))
        used = response.used
        if used:
            usage: dict[str, Value] = {
                "input_tokens": used.input_tokens or 0,
                "output_tokens": used.output_tokens or 0,
                "cost": self._call_limits.spend(used),
            }
            commands.append(Note("usage", usage))
        elif status == "completed" and self._rules.prices:
            commands.append(protocol_error("model", NO_USAGE))
        if status == "completed":
            self._failures = 0
        if status == "failed":
            commands.append(Note("answer_failed", {"why": why}))
            return commands + self._failed(why, now)
        return commands + self._apply_call_limit(now)

    def _failed(self, why: str, now: float) -> list[Command]:
        """A response failed: requests it again, or ends the call."""
        self._failures += 1
        if why in errors.FATAL_CODES or self._failures >= MAX_FAILURES:
            return self.end("model", "failed", now)
        return self.ask()

    def _model_error(
        self, error: realtime_events.ErrorDetails, now: float
    ) -> list[Command]:
        benign = errors.is_benign(error)
        data: dict[str, Value] = {
            "code": errors.short(error.code or error.type),
            "param": errors.short(error.param) or None,
            "benign": benign,
        }
        note = Note("model_error", data, {"message": error.message})
        if error.event_id != ANSWER_ID:
            return [note]
        running = error.code == "conversation_already_has_active_response"
        self._speech.refused(again=running)
        return [note, *([] if benign else self._failed(error.code or "", now))]

    def _request_if_free(self) -> list[Command]:
        if not self._attached or not self._speech.request_if_free():
            return []
        return [ToModel(realtime_requests.create_response(ANSWER_ID))]

    # --- the caller ---

    def _speech_started(self) -> list[Command]:
        self._caller_speaks = True
        self._unanswered = self._turns.create_response is not False
        self._call_limits.caller_is_there()
        stopped = self._waits.stop() if self._interruptible else []
        return [Note("speech_started"), *stopped]

    @property
    def _interruptible(self) -> bool:
        """False: the user configured interrupt_response as false."""
        return self._turns.interrupt_response is not False

    def _key_pressed(self, key: str, now: float) -> list[Command]:
        self._call_limits.caller_is_there()
        entered = self._keys.press(key, now)
        commands: list[Command] = [Note("key_pressed", {}, {"digit": key})]
        return commands + (self._keys_entered(entered, now) if entered else [])

    def _keys_entered(self, keys: str, now: float) -> list[Command]:
        """A key input is complete: takes the route's action or tells the agent."""
        # Pressing keys interrupts the agent, as speaking does.
        stop = self.interrupt("keys", now)
        if keys in self._rules.key_actions:
            return [*stop, Pressed(keys)]
        word = f"(The caller pressed these keys on the phone: {keys})"
        return [*stop, *self.tell("user", word, True)]

    # --- time ---

    def _changed(self, now: float) -> list[Command]:
        """Applies a change of state to requests, waits, limits and the call's end."""
        if self._ended:
            return []
        commands = self._request_if_free()
        quiet = self._speech.all_heard and not (self._caller_speaks or self._busy)
        self._call_limits.watch(quiet and self._attached, now)
        over = self._waits.over(self._outstanding, now)
        commands += [WaitDone(wait.number, True) for wait in over]
        said = quiet and not self._unanswered
        if self._ends_at is not None and (said or now >= self._ends_at):
            commands += self.end("bridge", self._ends_why, now)
        return commands

    @property
    def _outstanding(self) -> Outstanding:
        """What the caller has yet to hear, including text not sent to the model yet."""
        pending = any(respond for _, _, respond in self._outbox)
        return Outstanding(
            generating=self._speech.generating or pending,
            unanswered=self._unanswered,
            queued=bool(self._speech.audible),
            queue_ends=self._speech.ends_at,
            progress=self._progress,
        )

    def _apply_call_limit(self, now: float) -> list[Command]:
        if self._ends_at is not None or not self._attached:
            return []
        why = self._call_limits.due(now)
        if why is None:
            return []
        if why == "ask":
            ask = self.tell("system", self._rules.silent_text, True)
            return [Note("caller_silent"), *ask]
        self._ends_at = now + GOODBYE_SECONDS
        self._ends_why = why
        # Even while the caller speaks, as the agent says nothing else after it.
        say = self.tell("system", GOODBYES[why], False)
        hit = [limit_hit(LIMIT_OF[why])] if why in LIMIT_OF else []
        return [*hit, Note("goodbye", {"why": why}), *say, *self.ask()]

    def event_id(self) -> str:
        """A unique id for each event, so that errors can be matched to it."""
        self._serial += 1
        return f"bridge_{self._serial}"


def _event(kind: str, talk: SipTalk) -> str:
    event: dict[str, Any] = {"type": kind, "event_id": talk.event_id()}
    return msgspec.json.encode(event).decode()
