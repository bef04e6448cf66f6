"""The events of the model's server: routes each to the part that owns it. PURE."""

from typing import assert_never

from bridge.core import errors, realtime_events
from bridge.core.call_state import CallState
from bridge.core.commands import Command, Note, ToCaller, Value, protocol_error
from bridge.core.failures import Failures
from bridge.core.history import MAX_CHARS
from bridge.core.interruptions import Interruptions
from bridge.core.replay import recorded
from bridge.core.rules import UNFINISHED
from bridge.core.usage import Usage

SILENT = "silent"
"""Reason of a failed response that is complete, but has no audio."""

NO_USAGE = "answer without usage"
"""Reason of a protocol error; reported only where prices are configured."""


class ModelEvents:
    """The events of the model connection in use."""

    def __init__(self, call: CallState, interruptions: Interruptions) -> None:
        self._call = call
        self._interruptions = interruptions
        self._failures = Failures(call)

    def handle(
        self, connection: int, event: realtime_events.KnownEvent, now: float
    ) -> list[Command]:
        """A server event. Events of a connection that is not used any more are
        dropped."""
        if connection != self._call.sessions.in_use:
            return []
        if isinstance(event, realtime_events.SessionUpdated):
            self._call.sessions.probe_answered(now)
        else:
            self._call.sessions.event_received(now)
        if isinstance(event, realtime_events.AudioDelta):
            return self._agent_audio(event, now)
        if isinstance(event, realtime_events.TranscriptDelta):
            self._call.speech.transcript_delta(event, now)
            return []
        return self._rare(event, now)

    def _rare(self, event: realtime_events.RareEvent, now: float) -> list[Command]:
        match event:
            case realtime_events.AudioDone():
                key = (event.item_id, event.content_index)
                return self._call.speech.item_done(key, now)
            case realtime_events.SpeechStarted():
                return self._interruptions.speech_started(now)
            case realtime_events.SpeechStopped():
                return self._interruptions.speech_stopped(now)
            case realtime_events.InputCommitted():
                self._interruptions.turn_committed(event.item_id, now)
            case realtime_events.InputCleared():
                return self._interruptions.turn_dropped(now)
            case realtime_events.ResponseCreated():
                return self._response_created(event.response.id, now)
            case realtime_events.OutputItemAdded():
                self._call.speech.item_added(event, now)
            case realtime_events.OutputItemDone():
                self._call.speech.output_item_done(event)
            case realtime_events.ResponseDone(response=response):
                return self._response_done(response, now)
            case realtime_events.SessionUpdated():
                return self._call.model.session_updated(event, now)
            case realtime_events.ModelError(error=error):
                return self._failures.error(error, now)
            case realtime_events.CallerTranscript(item_id, transcript):
                return self._transcribed(item_id, transcript)
            case realtime_events.TranscriptionFailed():
                self._call.caller.transcription_failed(event.item_id)
            case realtime_events.PlayoutStarted():
                return self._playout(event, now) + self._first_audio(now)
            case realtime_events.PlayoutStopped() | realtime_events.PlayoutCleared():
                return self._playout(event, now)
            case realtime_events.KeyReceived(event=digit):
                return self._interruptions.key_pressed(digit, now)
            case realtime_events.ItemAdded() | realtime_events.ItemDone():
                self._item_shown(event, now)
            case realtime_events.ItemDeleted():
                self._call.history.remove(event.item_id)
                self._call.caller.turn_transcribed(event.item_id)
                self._call.outbox.gone(event.item_id)
            case _:
                assert_never(event)
        return []

    def _response_created(self, response_id: str, now: float) -> list[Command]:
        self._interruptions.response_created()
        commands = self._call.speech.response_created(response_id, now)
        return commands + self._call.interim_answers.created(response_id)

    def _transcribed(self, item_id: str, transcript: str) -> list[Command]:
        """A turn of the caller has a transcript."""
        self._call.caller.server_transcribes = True
        self._call.caller.turn_transcribed(item_id)
        self._interruptions.turn_transcribed(item_id, transcript)
        self._call.history.transcribed(item_id, transcript)
        text = {"text": transcript[:MAX_CHARS]}
        return [Note("caller_said", {"item": item_id}, text)]

    def _playout(self, event: realtime_events.Playout, now: float) -> list[Command]:
        commands = self._call.speech.playout(event, now)
        if isinstance(event, realtime_events.PlayoutCleared):
            commands += self._call.endings.waits.stop()
        return commands

    def _item_shown(
        self, event: realtime_events.ItemAdded | realtime_events.ItemDone, now: float
    ) -> None:
        """The server shows an item of the conversation."""
        self._call.outbox.seen(event.item)
        item = recorded(event.item, self._call.seconds_into_call(now))
        if item is not None:
            if self._call.speech.counts(item.id):
                item.text = ""  # a new session shows unheard text, too
            self._call.history.add(item, event.previous_item_id)
        if event.item.is_cut_off_call:
            self._call.history.remove(event.item.id)

    def _agent_audio(
        self, event: realtime_events.AudioDelta, now: float
    ) -> list[Command]:
        commands = self._call.speech.audio(event, now)
        if not any(isinstance(command, ToCaller) for command in commands):
            return commands
        return commands + self._first_audio(now)

    def _first_audio(self, now: float) -> list[Command]:
        """The caller hears a response."""
        model = self._call.model
        since, model.awaiting_audio_since = model.awaiting_audio_since, None
        return [] if since is None else [Note("first_audio", {"seconds": now - since})]

    def _response_done(
        self, response: realtime_events.ResponseHead, now: float
    ) -> list[Command]:
        wanted = not self._call.responses.was_cut(response.id)
        speaks_later = self._call.speech.leads_to_result(response.id)
        sounded = self._call.speech.sounded(response.id)
        status, why = response.status, errors.short(response.why)
        completed = status in ("completed", None)
        silent = wanted and completed and not sounded and self._is_silent(response)
        fails = wanted and not speaks_later
        fails = fails and not self._call.responses.is_interim(response.id)
        lost = silent or (fails and errors.is_lost(status, sounded=sounded))
        retried = None
        # Before the response ends: the next one must not be requested too early.
        if silent:
            why = SILENT
            self._call.responses.cut(response.id)  # the model forgets its text
            retried = self._failures.retry_silent(now)
        elif lost:
            retried = self._failures.retry(why, response.message, now)
        commands: list[Command] = []
        if wanted and status == "incomplete" and sounded:
            commands = self._continue(response.id, why, now)
        commands += self._call.interim_answers.done(response, sounded=sounded)
        commands += self._call.speech.response_done(
            response.id, now, completed=completed
        )
        commands.append(
            Note("response_done", {"response": response.id, "status": status})
        )
        used = response.used
        if used:
            commands.append(self._used(used))
        elif status == "completed" and self._call.rules.prices:
            # Cost limits have no effect without usage: the operator must know.
            commands.append(protocol_error("model", NO_USAGE))
        if status == "completed" and not silent:
            self._call.responses.succeeded()
        if lost:
            commands.append(Note("answer_failed", {"why": why}))
            return commands + ([retried] if retried else self._failures.end(now))
        return commands + self._call.endings.apply_limits(now)

    def _continue(self, response_id: str, why: str, now: float) -> list[Command]:
        """The server broke a response off, of which the caller hears a part: another
        one continues it."""
        commands: list[Command] = [Note("answer_incomplete", {"why": why})]
        known, text = self._call.responses.get(response_id), UNFINISHED.get(why)
        if text is None or not known or not known.is_awaited or known.acted:
            return commands  # the result of a tool leads to another response
        if self._call.endings.waits.will_end_call:
            return commands
        if not self._call.responses.may_continue():
            return commands
        return commands + self._call.model.tell("system", text, True, now)

    def _is_silent(self, response: realtime_events.ResponseHead) -> bool:
        """The caller waits for this response, of which no audio came, and nothing else
        follows from it: it has text, or nothing at all."""
        if self._call.endings.waits.will_end_call:
            return False  # the agent has said all that it has to say
        known = self._call.responses.get(response.id)
        awaited = known is not None and known.is_awaited and not known.acted
        return awaited and not response.acted

    def _used(self, usage: Usage) -> Note:
        data: dict[str, Value] = {
            "input_tokens": usage.input_tokens or 0,
            "output_tokens": usage.output_tokens or 0,
            "cost": self._call.endings.limits.spend(usage),
        }
        return Note("usage", data)
