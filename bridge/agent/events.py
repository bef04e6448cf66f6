"""Events of a call for user code: one subscription covers every kind of event.

Each listener has its own queue and task, so one that raises, blocks or is slow never
affects the call. This module makes no decision about the call.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from agents.realtime import (
    RealtimeAgentEndEvent,
    RealtimeAgentStartEvent,
    RealtimeAudioEnd,
    RealtimeAudioInterrupted,
    RealtimeError,
    RealtimeGuardrailTripped,
    RealtimeHandoffEvent,
    RealtimeHistoryAdded,
    RealtimeSessionEvent,
    RealtimeToolApprovalRequired,
    RealtimeToolEnd,
    RealtimeToolStart,
)

from bridge.agent import user_code
from bridge.agent.finished_tools import FinishedTool
from bridge.core.commands import Note, Value

LATE_SECONDS = 5.0
"""Time a listener has for its remaining events after the call has ended."""

MAX_WAITING = 2000
"""Limit of events queued per listener: a few minutes of conversation."""

MAX_WAITING_CHARS = 16_000_000
"""Limit of text in one listener's queue, in characters. Events beyond MAX_WAITING or
this limit are dropped and counted."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Something that happened in a call. docs/agent.md lists every `type` and its
    `data`."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    source: RealtimeSessionEvent | None = field(default=None, repr=False)
    """The SDK's own event, if this event was made from one."""
    at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    emitted: bool = field(default=False, repr=False)
    """Sent by `LiveCall.emit`: any field of `data` may hold words of people."""


Listener = Callable[[CallEvent], Awaitable[None] | None]

Start = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""(coroutine, task name): starts a task that may outlive the call by a little."""


class Listeners:
    """The listeners of one call. After `end`, queued events are still delivered.

    All methods except `wants` and `end` may also be called from the thread of a tool or
    of a listener.
    """

    def __init__(self, start: Start, call_sid: str) -> None:
        self._start = start
        self._call_sid = call_sid
        self._queues: list[_Queue] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def add(self, listener: Listener, types: Sequence[str]) -> Callable[[], None]:
        queue = _Queue(listener, frozenset(types), self._call_sid)
        self._do(self._begin, queue)
        return lambda: self._do(self._remove, queue)

    def wants(self, event_type: str) -> bool:
        """Whether any listener gets events of this type; if not, do not create them."""
        return any(not it.types or event_type in it.types for it in self._queues)

    def emit(self, event: CallEvent) -> None:
        self._do(self._emit, event)

    def end(self) -> None:
        self._ended = True
        for queue in self._queues:
            queue.put(None)
        self._queues.clear()
        for task in self._tasks:
            _cancel_after(LATE_SECONDS, task)

    def _begin(self, queue: "_Queue") -> None:
        if self._ended:
            return
        self._queues.append(queue)
        task = self._start(queue.deliver(), f"{self._call_sid} listener")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remove(self, queue: "_Queue") -> None:
        if queue in self._queues:
            self._queues.remove(queue)
            queue.put(None)

    def _emit(self, event: CallEvent) -> None:
        for queue in self._queues:
            if not queue.types or event.type in queue.types:
                queue.put(event)

    def _do(self, action: Callable[..., None], *given: Any) -> None:
        if threading.get_ident() == self._thread:
            action(*given)
        else:
            self._loop.call_soon_threadsafe(action, *given)


def _cancel_after(seconds: float, task: asyncio.Task[None]) -> None:
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
    task.add_done_callback(lambda _: timer.cancel())


class _Queue:
    """The events that wait for one listener."""

    def __init__(self, listener: Listener, types: frozenset[str], call: str) -> None:
        self.types = types
        self._listener = listener
        self._call_sid = call
        self._waiting: asyncio.Queue[CallEvent | None] = asyncio.Queue()
        self._chars = 0
        """Text in the queued events, in characters."""
        self._dropped = 0
        self._failed = False

    def put(self, event: CallEvent | None) -> None:
        if event is not None:
            chars = self._chars + _text_chars(event)
            if self._waiting.qsize() >= MAX_WAITING or chars > MAX_WAITING_CHARS:
                if not self._dropped:
                    log.warning("listener_queue_full", call_sid=self._call_sid)
                self._dropped += 1
                return
            self._chars = chars
        self._waiting.put_nowait(event)

    async def deliver(self) -> None:
        name = f"{self._call_sid} listener"
        while (event := await self._waiting.get()) is not None:
            self._chars -= _text_chars(event)
            try:
                # No limit here: Listeners.end ends a listener that hangs.
                await user_code.call(self._listener, event, name=name, seconds=None)
            except Exception:
                # An error in user code: logged with its traceback once per listener.
                if not self._failed:
                    self._failed = True
                    log.warning(
                        "listener_failed", call_sid=self._call_sid, exc_info=True
                    )
        if self._dropped:
            log.warning(
                "listener_events_dropped", call_sid=self._call_sid, events=self._dropped
            )


def _text_chars(event: CallEvent) -> int:
    return sum(len(it) for it in event.data.values() if isinstance(it, str))


def call_event(event: RealtimeSessionEvent) -> CallEvent:
    """An SDK event as a CallEvent with plain values in `data`.

    The SDK sends its `audio_interrupted` at once, without the position; here its type
    is `agent_interrupted`. The bridge's `audio_interrupted` follows; it has the heard
    part.
    """
    if isinstance(event, RealtimeAudioInterrupted):
        return CallEvent("agent_interrupted", {"item": event.item_id}, event)
    return CallEvent(event.type, _event_data(event), event)


def _event_data(event: RealtimeSessionEvent) -> Mapping[str, Any]:
    match event:
        case RealtimeAgentStartEvent() | RealtimeAgentEndEvent():
            return {"agent": event.agent.name}
        case RealtimeHandoffEvent():
            return {"agent": event.from_agent.name, "to": event.to_agent.name}
        case RealtimeToolStart():
            return _tool(event)
        case RealtimeToolEnd():
            return {**_tool(event), "output": str(event.output)}
        case RealtimeToolApprovalRequired():
            return {**_tool(event), "call_id": event.call_id}
        case RealtimeAudioEnd():
            return {"item": event.item_id, "content_index": event.content_index}
        case RealtimeHistoryAdded():
            return {"item": event.item.item_id}
        case RealtimeGuardrailTripped():
            names = [it.guardrail.get_name() for it in event.guardrail_results]
            return {"guardrails": names, "message": event.message}
        case RealtimeError():
            return {"error": event.error}
        case _:
            return {}


def _tool(
    event: RealtimeToolStart | RealtimeToolEnd | RealtimeToolApprovalRequired,
) -> dict[str, Any]:
    return {
        "tool": event.tool.name,
        "arguments": event.arguments,
        "agent": event.agent.name,
    }


def note_events(note: Note) -> list[CallEvent]:
    """A Note as events for listeners. A `said` note of an interrupted answer also gives
    `audio_interrupted`."""
    data = {**note.data, **note.private}
    events = [CallEvent(note.name, data)]
    if note.name == "said" and note.data["cut"]:
        events.append(CallEvent("audio_interrupted", data))
    return events


def tool_notes(tool: FinishedTool) -> list[Note]:
    """What is logged, counted and told to listeners of a tool call that has ended."""
    outcome: dict[str, Value] = {"tool": tool.tool, "outcome": tool.outcome}
    notes = [Note("tool_finished", {**outcome, "seconds": round(tool.seconds, 3)})]
    if tool.error:
        place = {"where": tool.where, "exception": tool.traceback}
        data = {"tool": tool.tool, "error": tool.error}
        data |= {name: text for name, text in place.items() if text}
        notes.insert(0, Note("tool_failed", data, {"message": tool.message}))
    return notes


def session_note(event: RealtimeSessionEvent) -> Note | None:
    """The Note for an SDK event; None if the core's own Notes cover the event."""
    match event:
        case RealtimeToolStart() | RealtimeToolEnd():
            return Note(event.type, {"tool": event.tool.name})
        case RealtimeHandoffEvent():
            agents = {"agent": event.from_agent.name, "to": event.to_agent.name}
            return Note("handoff", agents)
        case RealtimeGuardrailTripped():
            names = [it.guardrail.get_name() for it in event.guardrail_results]
            return Note("guardrail_tripped", {"guardrails": ", ".join(names)})
        case RealtimeAudioInterrupted():
            return Note("audio_interrupted", {"item": event.item_id})
        case RealtimeToolApprovalRequired():
            return Note("tool_waits_for_approval", {"tool": event.tool.name})
        case RealtimeError(error=dict()):
            # Raised by the SDK itself (unknown tool, failed guardrail). The model's
            # errors are in the core's Notes.
            return Note("session_error", {"kind": "sdk"})
        case _:
            return None
