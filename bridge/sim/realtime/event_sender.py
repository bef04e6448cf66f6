"""The sending side of a fake session: events with serial ids, written at once, in
order.

Sending never waits. A client that does not read is disconnected when too many bytes are
unread.
"""

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec
from websockets.asyncio.server import ServerConnection, broadcast

from bridge.sim.realtime.client_events import InvalidRequestError, Json
from bridge.sim.realtime.items import ModelItem
from bridge.sim.realtime.render import Chunk

Direction: TypeAlias = Literal["sent", "received"]
_Delta: TypeAlias = tuple[str, bytes]  # item id, audio

_UNREAD_BYTES = 64 * 1024 * 1024  # a client with this much unread has stopped reading
_AUDIO_HEAD = '{"type":"response.output_audio.delta","event_id":"event_'
_LIMITS = (("requests", 1000), ("tokens", 50000))
_encode = msgspec.json.encode


class EventSender:
    """Sends the events of one connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.errors: list[Json] = []
        self.deltas: list[tuple[float, str, bytes]] = []
        self.muted = False  # True: frames are discarded instead of sent
        self._held: list[tuple[str | bytes, _Delta | None]] | None = None
        self.cut_off = False
        self.observe: Callable[[Direction, Json], None] | None = None
        self.says: Callable[[Json], list[Json]] | None = None
        self._connection = connection
        self._serial = 0

    def emit(self, event: Json) -> None:
        """Send `event` under a new event_id."""
        self._serial += 1
        head = {"type": event["type"], "event_id": f"event_{self._serial}"}
        event = head | event
        for said in self.says(event) if self.says else (event,):
            self.put(_encode(said).decode())
        if self.observe is not None:
            self.observe("sent", event)

    def emit_audio(self, item: ModelItem, chunk: Chunk, tail: str) -> None:
        """Send a response.output_audio.delta, assembled from prepared pieces."""
        self._serial += 1
        text = f'{_AUDIO_HEAD}{self._serial}{tail}{chunk.base64}"}}'
        for said in self.says(msgspec.json.decode(text)) if self.says else ():
            text = _encode(said).decode()
        self.put(text, (item.id, chunk.audio))
        if self.observe is not None:
            self.observe("sent", msgspec.json.decode(text))

    def rate_limits(self, used: int) -> None:
        """Send rate_limits.updated; the server does so when a response begins."""
        limits = [
            {
                "name": name,
                "limit": limit,
                "remaining": max(0, limit - used),
                "reset_seconds": 60,
            }
            for name, limit in _LIMITS
        ]
        self.emit({"type": "rate_limits.updated", "rate_limits": limits})

    def error(self, refused: InvalidRequestError, event_id: object = None) -> None:
        """Send an `error` event; `event_id` is that of the client's event."""
        error = {
            "type": "invalid_request_error",
            "code": refused.code,
            "message": refused.message,
            "param": refused.param,
            "event_id": event_id if isinstance(event_id, str) else None,
        }
        self.errors.append(error)
        self.emit({"type": "error", "error": error})

    def hold(self) -> None:
        """Queue all frames until `release`."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Send the queued frames and stop queueing."""
        held, self._held = self._held or [], None
        for frame, delta in held:
            self.put(frame, delta)

    def put(self, frame: str | bytes, delta: _Delta | None = None) -> None:
        """Send a frame unchanged; `delta` is the audio in it."""
        if self.muted:
            return
        if self._held is not None:
            self._held.append((frame, delta))
            return
        if delta is not None:
            self.deltas.append((time.monotonic(), *delta))
        # `broadcast` to one connection writes at once and in order, even if other
        # senders wait.
        broadcast((self._connection,), frame)
        if self._connection.transport.get_write_buffer_size() > _UNREAD_BYTES:
            self.cut_off = True
            self._connection.transport.abort()
