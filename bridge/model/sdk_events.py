"""The events that the SDK reads: those of all connections to the model, as if there
were only one connection.

A new connection sends another `session.created` and repeats the items of the
conversation; the SDK does not get these. A lost connection does not end its responses;
the SDK gets their end from here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import get_args

import msgspec

from bridge.core import realtime_events

MAX_TO_SDK = 2000
"""Limit of events queued for the SDK. Ten responses have a few hundred events; if more
than this limit wait, the SDK is stuck."""

MAX_WAITING_CHARS = 32 * 1024 * 1024
"""Limit of characters in the queue for the SDK."""

EVENTS_BEFORE_YIELD = 20
"""Events handled before the event loop serves other calls: a server that sends a
thousand events in one packet does not delay the other calls."""

MAX_KNOWN = 2000
"""Limit of item ids that are remembered because the SDK has seen the items. Items of a
new session with these ids are hidden from the SDK."""

MAX_OPEN = 64
"""Limit of responses that are in progress for the SDK; normally there is one."""

UNREAD = frozenset(
    {
        "conversation.item.done",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.failed",
        "input_audio_buffer.committed",
        "input_audio_buffer.speech_stopped",
        "rate_limits.updated",
        "response.content_part.added",
        "response.content_part.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_audio_transcript.done",
    }
)
"""Types of events that the SDK reads only to make raw events of them: a third of all
events but audio. It validates each, which costs more than all that the call does with
it."""

_UNREAD_KINDS = tuple(
    kind
    for kind in get_args(realtime_events.KnownEvent)
    if kind.__struct_config__.tag in UNREAD
)


class SdkEvents:
    """A bounded queue, read by the SDK with `async for`."""

    def __init__(
        self,
        on_interrupted: Callable[[str, int], Awaitable[None]],
        on_stuck: Callable[[str], None],
        wants_raw: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_interrupted` is called when the SDK has read all events before the
        interruption; `on_stuck` with the reason when the SDK reads too slowly.
        `wants_raw`: whether anybody listens to the SDK's raw events."""
        self._on_interrupted = on_interrupted
        self._on_stuck = on_stuck
        self._wants_raw = wants_raw
        self._waiting: asyncio.Queue[str | tuple[str, int] | None] = asyncio.Queue()
        self._chars = 0
        self._read = 0
        """Events that the SDK has read."""
        self._open: dict[str, None] = {}
        """Responses that are in progress for the SDK."""
        self._shown: dict[str, None] = {}
        """Items that the SDK has seen in this session."""
        self._known: dict[str, None] = {}
        """Items that the SDK has seen in earlier sessions."""
        self.began = False
        """The SDK has seen a `session.created`; later ones are hidden from it."""
        self._closed = False

    def wants(self, event: realtime_events.ServerEvent) -> bool:
        """Whether something follows from the event in the SDK."""
        if isinstance(event, realtime_events.Other):
            unread = event.type in UNREAD
        else:
            unread = isinstance(event, _UNREAD_KINDS)
        return not unread or self._wants_raw()

    def put(self, event: realtime_events.ServerEvent, text: str) -> None:
        """Queues an event, unless it repeats what an earlier session has sent."""
        if self._is_new(event):
            self._put(text)

    def put_interruption(self, item_id: str, content_index: int) -> None:
        self._put((item_id, content_index))

    def fail_open_responses(self) -> None:
        """Tells the SDK that a lost connection's open responses failed; the SDK would
        wait for their end before it sends anything more."""
        for response_id in self._open:
            self._put(failed(response_id))
        self._open.clear()
        self._known |= self._shown
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._shown = {}

    def close(self) -> None:
        """Ends the SDK's loop behind the events that wait; safe to call twice."""
        self._closed = True
        self._waiting.put_nowait(None)

    def __aiter__(self) -> "SdkEvents":
        return self

    async def __anext__(self) -> str:
        while True:
            self._read += 1
            if self._read % EVENTS_BEFORE_YIELD == 0:
                await asyncio.sleep(0)
            event = await self._waiting.get()
            if event is None:
                # The SDK's loop ends, as after a clean close of a WebSocket.
                raise StopAsyncIteration
            if isinstance(event, str):
                self._chars -= len(event)
                return event
            await self._on_interrupted(*event)

    def _is_new(self, event: realtime_events.ServerEvent) -> bool:
        """Whether the SDK gets the event. It does not get a second session.created, nor
        the items that a new session repeats."""
        match event:
            case realtime_events.ResponseCreated(response=response):
                _remember(self._open, response.id, MAX_OPEN)
            case realtime_events.ResponseDone(response=response):
                self._open.pop(response.id, None)
            case (
                realtime_events.ItemAdded(item=item)
                | realtime_events.ItemDone(item=item)
            ):
                _remember(self._shown, item.id, MAX_KNOWN)
                return item.id not in self._known
            case realtime_events.Other(type="session.created"):
                began, self.began = self.began, True
                return not began
        return True

    def _put(self, event: str | tuple[str, int]) -> None:
        if self._closed:
            return
        chars = self._chars + (len(event) if isinstance(event, str) else 0)
        if self._waiting.qsize() >= MAX_TO_SDK or chars > MAX_WAITING_CHARS:
            self._on_stuck("sdk_stuck")
            return
        self._chars = chars
        self._waiting.put_nowait(event)


def _remember(memory: dict[str, None], key: str, most: int) -> None:
    """Adds a key and drops the oldest beyond `most`: a server may send any number."""
    memory[key] = None
    if len(memory) > most:
        del memory[next(iter(memory))]


def failed(response_id: str) -> str:
    """The `response.done` of a response whose connection was lost."""
    response = {
        "id": response_id,
        "object": "realtime.response",
        "status": "failed",
        "status_details": {"type": "failed", "error": {"type": "connection_lost"}},
        "output": [],
    }
    event = {"type": "response.done", "event_id": "bridge_lost", "response": response}
    return msgspec.json.encode(event).decode()
