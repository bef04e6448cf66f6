"""The phone side of a fake SIP call: the playout of the model's audio, in real time.

The server owns the playout of such a call. No audio passes the control socket, and the
server itself knows how much was heard before an interruption.
"""

import time
from collections import deque
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection

from bridge.sim.realtime.client_events import InvalidRequestError, Json
from bridge.sim.realtime.configuration import default_session, updated
from bridge.sim.realtime.context import SessionContext
from bridge.sim.realtime.event_sender import EventSender
from bridge.sim.realtime.items import ModelItem
from bridge.sim.realtime.render import Chunk

_LINE_FORMAT: Json = {"type": "audio/pcmu"}


@dataclass(slots=True)
class _Playing:
    """The audio of one response that the caller hears or will hear."""

    response_id: str
    items: list[ModelItem] = field(default_factory=list)
    seconds: float = 0.0  # of audio generated so far
    since: float | None = None  # monotonic time at which it began to play
    done: bool = False  # no audio will be added


class Leg(EventSender):
    """An EventSender whose audio goes to a phone, not to the client."""

    def __init__(self, connection: ServerConnection, session: SessionContext) -> None:
        super().__init__(connection)
        self._session = session
        self._queue: deque[_Playing] = deque()
        self._cut: set[str] = set()  # responses whose audio is discarded

    def emit(self, event: Json) -> None:
        super().emit(event)
        match event["type"]:
            case "input_audio_buffer.speech_started":
                if self._session.interrupt_response:
                    self.clear()
            case "response.done":
                self._response_done(event["response"]["id"])

    def emit_audio(self, item: ModelItem, chunk: Chunk, tail: str) -> None:
        response_id = item.response_id or ""
        if response_id in self._cut:
            return
        self.deltas.append((time.monotonic(), item.id, chunk.audio))
        playing = next((p for p in self._queue if p.response_id == response_id), None)
        if playing is None:
            playing = _Playing(response_id)
            self._queue.append(playing)
        if item not in playing.items:
            playing.items.append(item)
        playing.seconds += chunk.seconds
        self._play()

    def clear(self) -> None:
        """Discard the queued audio and truncate its items at what was heard."""
        if not self._queue:
            return
        queue, self._queue = self._queue, deque()
        self._emit_buffer_event("cleared", queue[0])
        for playing in queue:
            self._cut.add(playing.response_id)
            heard = self._heard_ms(playing)
            for item in playing.items:
                self._truncate(item, min(heard, item.sent_ms))
                heard = max(heard - item.sent_ms, 0.0)

    def _play(self) -> None:
        playing = self._queue[0]
        if playing.since is None:
            playing.since = time.monotonic()
            self._emit_buffer_event("started", playing)

    def _response_done(self, response_id: str) -> None:
        for playing in self._queue:
            if playing.response_id == response_id:
                playing.done = True
        self._wait_for_end()

    def _wait_for_end(self) -> None:
        playing = self._queue[0] if self._queue else None
        if playing is not None and playing.done and playing.since is not None:
            left = playing.since + playing.seconds - time.monotonic()
            self._session.later(max(left, 0.0), lambda: self._played(playing))

    def _played(self, playing: _Playing) -> None:
        if not self._queue or self._queue[0] is not playing:
            return  # the queue was cleared in the meantime
        self._queue.popleft()
        self._emit_buffer_event("stopped", playing)
        if self._queue:
            self._play()
            self._wait_for_end()

    def _emit_buffer_event(self, what: str, playing: _Playing) -> None:
        kind = f"output_audio_buffer.{what}"
        self.emit({"type": kind, "response_id": playing.response_id})

    def _heard_ms(self, playing: _Playing) -> float:
        if playing.since is None:
            return 0.0
        return min(time.monotonic() - playing.since, playing.seconds) * 1000

    def _truncate(self, item: ModelItem, heard_ms: float) -> None:
        item.truncated_ms = int(heard_ms)
        item.text = ""
        self.emit(
            {
                "type": "conversation.item.truncated",
                "item_id": item.id,
                "content_index": 0,
                "audio_end_ms": item.truncated_ms,
            }
        )


def accepted_session(session_id: str, body: Json, default_model: str) -> Json:
    """The first session object of an accepted call, in the line's audio format."""
    session = default_session(session_id, body.get("model", default_model))
    session = updated(session, body, spoken=False, model_chosen=False, only_pcm=False)
    for side in ("input", "output"):
        session["audio"][side]["format"] = dict(_LINE_FORMAT)
    return session


def check_formats(session: Json) -> None:
    """Raise InvalidRequestError if the session names an audio format.

    The real server accepts it, and the line is distorted or silent
    (openai-agents-python#2097). The fake cannot hear that, so it refuses.
    """
    for side in ("input", "output"):
        if "format" in (session.get("audio", {}).get(side) or {}):
            param = f"session.audio.{side}.format"
            message = "The audio format of a SIP call is negotiated on its leg."
            raise InvalidRequestError(message, "invalid_value", param)
