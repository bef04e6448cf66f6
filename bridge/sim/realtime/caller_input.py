"""The input side of a fake session: the caller's turns, commits, transcription.

InputAudioBuffer detects speech. This module turns each detection into events, user
items and responses.
"""

import asyncio
import time
from functools import lru_cache
from typing import Protocol

from bridge.sim.realtime.client_events import BufferAppend, InvalidRequestError, Json
from bridge.sim.realtime.context import SessionContext
from bridge.sim.realtime.history import decoded
from bridge.sim.realtime.input_audio_buffer import (
    BYTES_PER_MS,
    InputAudioBuffer,
    VadSpeechStarted,
    VadSpeechStopped,
)
from bridge.sim.realtime.items import ModelItem
from bridge.sim.realtime.response import ActiveResponse
from bridge.sim.realtime.turns import Trigger

_CALLER_AUDIO_SECONDS = 600  # kept per session
_SHORT_CHARS = 1024  # of base64; most short appends of many calls are the same silence
_decoded_short = lru_cache(maxsize=256)(decoded)
_MINIMUM_COMMIT_MS = 100  # as the error input_audio_buffer_commit_empty says


class Responder(Protocol):
    """The part of a session that creates and cancels responses."""

    @property
    def active_response(self) -> ActiveResponse | None: ...

    def respond(self, trigger: Trigger, overrides: Json) -> None: ...

    def already_active_error(self) -> InvalidRequestError: ...


class CallerInput:
    """The input side of one session."""

    def __init__(
        self,
        session: SessionContext,
        responder: Responder,
        *,
        keep_audio: bool,
        record_appends: bool,
    ) -> None:
        self.appends = 0
        self.append_at: list[float] = []
        # `audio_in_bytes` after each append of `append_at`
        self.append_ends: list[int] = []
        self.audio_in_bytes = 0
        self.caller_audio = bytearray()
        self.speech_started_at: list[float] = []
        self.turns = 0  # committed turns of the caller
        self.seconds = 0.0  # of speech in the latest turn
        self.transcript: str | None = None  # of the latest turn, if a text is known
        self.buffer = InputAudioBuffer(session.behaviour.vad_threshold)
        self._session = session
        self._responder = responder
        self._keep_audio = keep_audio
        self._record_appends = record_appends
        self._turn_item = ""  # id of the user item that the caller speaks now
        self._idle: asyncio.Task[None] | None = None
        self.configure()

    def configure(self) -> None:
        """Apply the session's audio.input."""
        self._kept_bytes = _CALLER_AUDIO_SECONDS * 1000 * BYTES_PER_MS[self._format]
        self.buffer.configure(self._format, self._detection)

    def clear(self) -> None:
        self.buffer.clear()
        self._session.out.emit({"type": "input_audio_buffer.cleared"})

    @property
    def _input(self) -> Json:
        config: Json = self._session.session["audio"]["input"]
        return config

    @property
    def _format(self) -> str:
        return str(self._input["format"]["type"])

    @property
    def _detection(self) -> Json | None:
        detection: Json | None = self._input["turn_detection"]
        return detection

    def append(self, event: BufferAppend) -> None:
        short = len(event.audio) <= _SHORT_CHARS
        audio = _decoded_short(event.audio) if short else decoded(event.audio)
        self.appends += 1
        self.audio_in_bytes += len(audio)
        if self._record_appends:
            self.append_at.append(time.monotonic())
            self.append_ends.append(self.audio_in_bytes)
        if self._keep_audio and len(self.caller_audio) < self._kept_bytes:
            self.caller_audio += audio
        for heard in self.buffer.append(audio):
            stuck = self.turns + 1 in self._session.behaviour.stuck_turns
            if stuck and isinstance(heard, VadSpeechStopped):
                self.buffer.speaking = True
            elif isinstance(heard, VadSpeechStarted):
                self._speech_started(heard)
            else:
                self._speech_stopped(heard)

    def _speech_started(self, heard: VadSpeechStarted) -> None:
        self.stop_idle_timer()
        self.speech_started_at.append(time.monotonic())
        self._turn_item = self._session.new_id("item")
        self._session.out.emit(
            {
                "type": "input_audio_buffer.speech_started",
                "audio_start_ms": heard.audio_start_ms,
                "item_id": self._turn_item,
            }
        )
        response = self._responder.active_response
        if response is not None and self._session.interrupt_response:
            response.cancel("turn_detected")

    def _speech_stopped(self, heard: VadSpeechStopped) -> None:
        self._session.out.emit(
            {
                "type": "input_audio_buffer.speech_stopped",
                "audio_end_ms": heard.audio_end_ms,
                "item_id": self._turn_item,
            }
        )
        audio, _ = self.buffer.commit()
        self._commit(self._turn_item, audio, heard.seconds)
        detection = self._detection
        if detection and detection["create_response"]:
            self._begin_answer()

    def _begin_answer(self) -> None:
        behaviour = self._session.behaviour
        if self.turns in behaviour.unanswered_turns:
            if behaviour.turn_errors:
                text = "The server had an error."
                self._session.out.error(InvalidRequestError(text, "server_error"))
        elif behaviour.begins_late:
            self._session.later(behaviour.begins_late, self._answer_speech)
        else:
            self._answer_speech()

    def _answer_speech(self) -> None:
        # "If interrupt_response is false this may fail to create a response if the
        # model is already responding" (turn_detection.create_response).
        response = self._responder.active_response
        if response is None:
            self._responder.respond("speech", {})
        elif response.being_cancelled:
            response.afterwards = lambda: self._responder.respond("speech", {})
        else:
            self._session.out.error(self._responder.already_active_error())

    def commit_by_client(self) -> None:
        held = self.buffer.buffered_ms
        if held < _MINIMUM_COMMIT_MS:
            raise InvalidRequestError(
                "Error committing input audio buffer: buffer too small. Expected at "
                f"least 100ms of audio, but buffer only has {held:.2f}ms of audio.",
                "input_audio_buffer_commit_empty",
            )
        keeps = self.buffer.speaking and self._session.behaviour.commit_keeps_speech
        self.buffer.awaits_voice = keeps
        self.buffer.speaking = keeps
        audio, seconds = self.buffer.commit()
        self._commit(self._session.new_id("item"), audio, seconds)

    def _commit(self, item_id: str, audio: bytes, seconds: float) -> None:
        """Turn the input buffer into a user item; its transcription follows later."""
        item = ModelItem(
            id=item_id,
            type="message",
            role="user",
            parts=[{"type": "input_audio", "transcript": None}],
            chunks=[audio] if self._keep_audio else [],
            bytes_per_ms=BYTES_PER_MS[self._format],
            sent_bytes=len(audio),
            status="completed",
            complete=True,
        )
        self._session.out.emit(
            {
                "type": "input_audio_buffer.committed",
                "previous_item_id": self._session.history.previous(),
                "item_id": item_id,
            }
        )
        self._session.add_item(item, finished=True)
        self._add_turn(item, audio, seconds)
        if self._input["transcription"] is not None:
            self._session.spawn(self._transcribe(item, seconds), "transcription")

    def take_audio_item(self, item: ModelItem) -> None:
        """Count a turn that the client added to the conversation as audio."""
        audio = b"".join(item.chunks)
        item.bytes_per_ms = BYTES_PER_MS[self._format]
        item.sent_bytes = len(audio)
        transcripts = [str(part.get("transcript") or "") for part in item.parts]
        said = " ".join(filter(None, transcripts)) or None
        self._add_turn(item, audio, item.sent_ms / 1000, said)
        item.text = item.generated_text
        if not self._keep_audio:
            item.chunks = []

    def _add_turn(
        self, item: ModelItem, audio: bytes, seconds: float, said: str | None = None
    ) -> None:
        """Count a turn of the caller. The model knows its words at once."""
        behaviour = self._session.behaviour
        self.turns += 1
        self.seconds = seconds
        if said is None and behaviour.recogniser is not None:
            said = behaviour.recogniser(audio)
        if said is None and self.turns <= len(behaviour.user_texts):
            said = behaviour.user_texts[self.turns - 1]
        self.transcript = said
        item.generated_text = said or f"({seconds:.1f} seconds of speech)"

    async def _transcribe(self, item: ModelItem, seconds: float) -> None:
        await asyncio.sleep(self._session.behaviour.transcribe_seconds)
        text = item.generated_text
        kind = "conversation.item.input_audio_transcription"
        ids = {"item_id": item.id, "content_index": 0}
        for index, word in enumerate(text.split()):
            delta = {"delta": word if not index else " " + word}
            self._session.out.emit({"type": f"{kind}.delta"} | ids | delta)
        item.text = text
        tokens = {"input_tokens": int(seconds * 10), "output_tokens": len(text) // 4}
        details = {"text_tokens": 0, "audio_tokens": tokens["input_tokens"]}
        usage = tokens | {
            "type": "tokens",
            "total_tokens": sum(tokens.values()),
            "input_token_details": details,
        }
        self._session.out.emit(
            {"type": f"{kind}.completed"} | ids | {"transcript": text, "usage": usage}
        )

    # --- the idle caller (turn_detection.idle_timeout_ms) ---------------------------

    def start_idle_timer(self, playing: float) -> None:
        detection = self._detection or {}
        timeout = detection.get("idle_timeout_ms")
        if timeout is None or self.buffer.speaking:
            return
        # "the response.done time plus audio playback duration"
        since = self.buffer.heard_ms
        self._idle = self._session.later(
            playing + timeout / 1000, lambda: self._idle_too_long(since)
        )

    def stop_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _idle_too_long(self, since: int) -> None:
        # The timer's task is the one that runs now: it must not be cancelled.
        self._idle = None
        if self._responder.active_response is not None or self.buffer.speaking:
            return
        item_id = self._session.new_id("item")
        self._session.out.emit(
            {
                "type": "input_audio_buffer.timeout_triggered",
                "audio_start_ms": since,
                "audio_end_ms": self.buffer.heard_ms,
                "item_id": item_id,
            }
        )
        audio, _ = self.buffer.commit()
        self._commit(item_id, audio, 0.0)
        self._responder.respond("idle", {})
