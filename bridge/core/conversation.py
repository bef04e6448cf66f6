"""One call's conversation as a state machine: messages in, commands out. PURE.

It decides what goes to the caller and to the model, what was interrupted and what the
model is told about it. It never waits, never logs, never reads a clock. Commands are
to be carried out in the order in which they are given.
"""

import enum

from bridge.core import media_stream, realtime
from bridge.core.agent_speech import AgentSpeech
from bridge.core.caller_audio import CallerAudio
from bridge.core.commands import (
    Command,
    End,
    Note,
    Started,
    ToCaller,
    ToModel,
    Value,
    protocol_error,
)
from bridge.core.playback import Playback

START_SECONDS = 10.0
"""Twilio sends `start` at once behind `connected`; a socket without it is no call."""

READY_SECONDS = 15.0
"""From `start` to the model's session.updated; a caller waits no longer in silence.
A handshake and a model that is slow to start take 1-3 s."""

BENIGN_ERRORS = frozenset(
    {
        "response_cancel_not_active",
        "item_truncate_invalid_item_id",
        "item_delete_invalid_item_id",
        "unsupported_content_type",
        "conversation_already_has_active_response",
    }
)
"""Answers to a truncate, delete, cancel or create that lost a race: the session is
unhurt. So is it by `Audio content of Xms is already shorter than Yms`, which has no
code."""

SILENT_SECONDS = 60.0
"""Twilio sends 50 frames a second, or on some lines none in silence, but then marks
come back: who sends nothing for so long has gone without a word (error 31924)."""

FATAL_CODES = frozenset(
    {
        "insufficient_quota",
        "invalid_api_key",
        "account_deactivated",
        "billing_hard_limit_reached",
    }
)
"""No answer will come on this account, however often it is asked for."""

MAX_FAILURES = 2
"""Answers that may fail one after the other. A rate limit may pass at once; who gets
no answer again would sit in silence."""

MAX_CODE_CHARS = 64
"""Of what a server calls its error: it goes into logs."""

ANSWER_ID = "bridge_answer"
"""event_id of our own requests for an answer, the greeting first."""


class State(enum.Enum):
    WAITING = "waiting"  # the socket is open, Twilio has not said whose call it is
    HOLDING = "holding"  # the model is not ready: what the caller says is kept
    TALKING = "talking"  # both sides are there
    ENDED = "ended"  # nothing is done any more


class Conversation:
    """Feed it every message, every event and the time; carry out what it answers.

    `greeting` is what the agent is told to open with; without it the caller begins.
    """

    def __init__(self, *, greeting: str | None, now: float) -> None:
        self.state = State.WAITING
        self._greeting = greeting
        self._expires = now + START_SECONDS
        self._stream_sid = ""
        self._playback = Playback(now)
        self._speech = AgentSpeech(media_stream.Outbound(""), self._playback)
        self._caller = CallerAudio(now)
        self._server_cancels: bool | None = None
        """turn_detection.interrupt_response, as the server says it is."""
        self._heard_from = now
        """When Twilio last sent anything."""
        self._failures = 0
        self._answer_due: float | None = None
        """Since when the caller waits for the agent's first sound."""

    # --- what comes in ---

    def from_caller(self, message: media_stream.Inbound, now: float) -> list[Command]:
        """A message of Twilio's."""
        self._heard_from = now
        if self.state is State.ENDED or isinstance(message, media_stream.Connected):
            return []
        if isinstance(message, media_stream.Start):
            return self._start(message, now)
        if self.state is State.WAITING:
            return [protocol_error("caller", "message before start")]
        # `stop` alone is read without one: teardown must not hang on a detail.
        if message.stream_sid != self._stream_sid and message.stream_sid:
            return [protocol_error("caller", "message of another stream")]
        match message:
            case media_stream.Media(media=media):
                return self._caller_audio(media, now)
            case media_stream.Mark(mark=mark):
                commands = self._speech.mark_echoed(mark.name, now)
                if commands is None:
                    return [protocol_error("caller", "unknown mark")]
                return commands
            case media_stream.Dtmf(dtmf=dtmf):
                return [Note("key_pressed", {}, {"digit": dtmf.digit})]
            case _:  # Stop
                return self.end("caller", "hung_up", now)

    def from_model(self, event: realtime.ServerEvent, now: float) -> list[Command]:
        """An event of the model's."""
        if self.state is State.ENDED:
            return []
        match event:
            case realtime.AudioDelta():
                commands = self._speech.audio(event, now)
                return commands + self._first_audio(commands, now)
            case realtime.TranscriptDelta():
                self._speech.words(event)
            case realtime.AudioDone():
                return self._speech.item_done((event.item_id, event.content_index), now)
            case realtime.SpeechStarted():
                return self._speech_started(now)
            case realtime.SpeechStopped():
                self._caller.speaking = False
                self._answer_due = now
                return [Note("speech_stopped")]
            case realtime.ResponseCreated():
                self._speech.response_created(event.response.id)
            case realtime.OutputItemAdded():
                self._speech.item_added(event)
            case realtime.ResponseDone(response=response):
                done = self._speech.response_done(response.id, now)
                return done + self._response_done(response, now)
            case realtime.SessionUpdated():
                return self._session_updated(event, now)
            case realtime.ModelError(error=error):
                return self._model_error(error, now)
            case realtime.CallerTranscript():
                text = {"text": event.transcript}
                return [Note("caller_said", {"item": event.item_id}, text)]
        return []

    def misread(self, side: str, reason: str) -> list[Command]:
        """A message of that side ("caller", "model") could not be read."""
        if self.state is State.ENDED:
            return []
        return [protocol_error(side, reason)]

    def interrupt(
        self, by: str, now: float, response_id: str | None = None
    ) -> list[Command]:
        """Stops the agent though nobody spoke: a guardrail, the user's own code.

        With a `response_id` only if something of that answer may still be heard.
        """
        if self.state is State.ENDED:
            return []
        if response_id is not None and not self._speech.is_live(response_id):
            return []
        return self._speech.interrupt(by, now, cancels=False, only=response_id)

    def end(self, by: str, why: str, now: float) -> list[Command]:
        """One side is gone, or the bridge ends the call. Only the first one counts."""
        if self.state is State.ENDED:
            return []
        self.state = State.ENDED
        return [*self._speech.call_ended(now), End(by, why)]

    def tick(self, now: float) -> list[Command]:
        """Time has passed: does what is due."""
        if self.state is State.ENDED:
            return []
        if self.state is not State.TALKING and now >= self._expires:
            if self.state is State.WAITING:
                return self.end("caller", "no_start", now)
            return self.end("model", "not_ready", now)
        if now >= self._heard_from + SILENT_SECONDS:
            return self.end("caller", "connection_lost", now)
        commands: list[Command] = []
        while (late := self._speech.gives_up_at) is not None and now >= late:
            commands += self._speech.give_up_fence()
        stalls_at = self._caller.stalls_at
        if stalls_at is not None and now >= stalls_at:
            commands += self._caller.fill_stall(now)
        return commands

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do; None: not before a message comes."""
        if self.state is State.ENDED:
            return None
        expires = None if self.state is State.TALKING else self._expires
        due = (
            expires,
            self._heard_from + SILENT_SECONDS,
            self._speech.gives_up_at,
            self._caller.stalls_at,
        )
        return min((at for at in due if at is not None), default=None)

    # --- the caller ---

    def _start(self, message: media_stream.Start, now: float) -> list[Command]:
        if self.state is not State.WAITING:
            return [protocol_error("caller", "second start")]
        media = message.start.media_format
        if (media.encoding, media.sample_rate) != ("audio/x-mulaw", 8000):
            return self.end("caller", "unsupported_media_format", now)
        self._stream_sid = message.stream_sid
        self._playback = Playback(now)
        out = media_stream.Outbound(message.stream_sid)
        self._speech = AgentSpeech(out, self._playback)
        self._caller = CallerAudio(now)
        self._expires = now + READY_SECONDS
        self.state = State.HOLDING
        return [Started(message)]

    def _caller_audio(
        self, media: media_stream.MediaDetails, now: float
    ) -> list[Command]:
        if media.track != "inbound":
            return [protocol_error("caller", "media of another track")]
        duration_ms = media.duration_ms
        self._playback.clock.frame(media.timestamp, duration_ms, now)
        return self._caller.frame(media.payload, media.timestamp, duration_ms, now)

    def _speech_started(self, now: float) -> list[Command]:
        self._caller.speaking = True
        self._answer_due = None
        commands: list[Command] = [Note("speech_started")]
        # interrupt_response false: the user's wish that the agent is not interrupted.
        if self._server_cancels is not False:
            cancels = self._server_cancels is True
            commands = self._speech.interrupt("caller", now, cancels=cancels) + commands
        return commands

    # --- the model ---

    def _session_updated(
        self, event: realtime.SessionUpdated, now: float
    ) -> list[Command]:
        if any(form not in (None, realtime.MULAW) for form in event.formats):
            # PCM on a mu-law line is noise in the caller's ear.
            return self.end("model", "wrong_audio_format", now)
        self._server_cancels = event.interrupts
        if self.state is not State.HOLDING:
            return []
        self.state = State.TALKING
        taken, sent = event.formats
        data = {"held_ms": self._caller.held_ms, "input": taken, "output": sent}
        commands: list[Command] = [Note("ready", data)]
        if self._greeting:
            # As an item, for instructions of a response would replace the agent's own.
            # Before the held audio: a caller who said hello first is then answered.
            say = realtime.system_message(self._greeting, ANSWER_ID)
            respond = realtime.create_response(ANSWER_ID)
            commands += [ToModel(say), ToModel(respond)]
            self._answer_due = now
        return commands + self._caller.ready()

    def _first_audio(self, sent: list[Command], now: float) -> list[Command]:
        sounds = any(isinstance(command, ToCaller) for command in sent)
        if self._answer_due is None or not sounds:
            return []
        seconds = now - self._answer_due
        self._answer_due = None
        return [Note("first_audio", {"seconds": seconds})]

    def _response_done(
        self, response: realtime.ResponseHead, now: float
    ) -> list[Command]:
        status, why = response.status, (response.why or "")[:MAX_CODE_CHARS]
        note = Note("response_done", {"response": response.id, "status": status})
        if status == "completed":
            self._failures = 0
        if status != "failed":
            return [note]
        failed: list[Command] = [note, Note("answer_failed", {"why": why})]
        return failed + self._failed(why, now)

    def _failed(self, why: str, now: float) -> list[Command]:
        """An answer the caller waits for will not come: asks again, or gives up."""
        self._failures += 1
        if why in FATAL_CODES or self._failures >= MAX_FAILURES:
            return self.end("model", "failed", now)
        return [ToModel(realtime.create_response(ANSWER_ID))]

    def _model_error(self, error: realtime.ErrorDetails, now: float) -> list[Command]:
        benign = error.code in BENIGN_ERRORS or "already shorter" in error.message
        data: dict[str, Value] = {
            "code": (error.code or error.type)[:MAX_CODE_CHARS],
            "param": (error.param or "")[:MAX_CODE_CHARS] or None,
            "benign": benign,
        }
        note = Note("model_error", data, {"message": error.message})
        if self.state is State.HOLDING and not benign:
            # The session would go on with the server's defaults: PCM, no instructions.
            return [note, *self.end("model", "refused", now)]
        if error.event_id == ANSWER_ID and not benign:
            return [note, *self._failed(error.code or "", now)]
        return [note]
