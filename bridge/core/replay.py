"""Converts the server's items to history items, and these to client events.

A new session gets the text that the caller heard. It gets a tool call only together
with the result, or if the tool still runs.
"""

import base64
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.core import realtime_events, realtime_requests
from bridge.core.history import HistoryItem


def recorded(item: realtime_events.ConversationItem, at: float) -> HistoryItem | None:
    """An item of the server as the history keeps it; None for kinds that are not
    kept."""
    match item.type, item.role:
        case "message", "assistant":
            # Spoken text is added once it was heard; written text is known at once.
            text = item.text if _is_written(item) else ""
            return HistoryItem(id=item.id, kind="assistant", text=text, at=at)
        case "message", "user":
            return HistoryItem(id=item.id, kind="user", text=item.text, at=at)
        case "message", _:
            return HistoryItem(id=item.id, kind="system", text=item.text, at=at)
        case "function_call", _:
            return HistoryItem(
                id=item.id,
                kind="tool_call",
                at=at,
                call_id=item.call_id or "",
                name=item.name or "",
                arguments=item.arguments or "",
            )
        case "function_call_output", _:
            call_id, output = item.call_id or "", item.output or ""
            return HistoryItem(
                id=item.id, kind="tool_output", text=output, at=at, call_id=call_id
            )
        case _:
            return None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Data that a new session needs and the history does not hold yet."""

    words: Mapping[str, str] = field(default_factory=dict)
    """Item id -> the text of a response that is still on its way to the caller."""
    voice: Callable[[str], bytes] = lambda _: b""
    """Item id -> mu-law of the caller's turn if it has no transcript; else empty."""
    calls: Container[str] = ()
    """call_ids of tools that have not given their result."""


NOTHING_UNFINISHED = Unfinished()


def replayed(
    history: Sequence[HistoryItem],
    event_id: Callable[[], str],
    unfinished: Unfinished = NOTHING_UNFINISHED,
) -> list[str]:
    """The client events that tell a new session what was said before."""
    called = {item.call_id for item in history if item.kind == "tool_call"}
    answered = {item.call_id for item in history if item.kind == "tool_output"}
    events = []
    for item in history:
        text = item.text + unfinished.words.get(item.id, "")
        match item.kind:
            case "tool_output" if item.call_id in called:
                event = realtime_requests.tool_output(
                    item.call_id, text, event_id(), item.id
                )
            case "tool_call" if (
                item.call_id in answered or item.call_id in unfinished.calls
            ):
                event = realtime_requests.tool_call(
                    item.call_id, item.name, item.arguments, event_id(), item.id
                )
            case "user" | "assistant" | "system" if text:
                event = realtime_requests.message(
                    item.kind, text, event_id(), item_id=item.id
                )
            case "user" if voice := unfinished.voice(item.id):
                payload = base64.b64encode(voice).decode()
                event = realtime_requests.spoken(payload, event_id(), item.id)
            case _:
                continue
        events.append(event)
    return events


def _is_written(item: realtime_events.ConversationItem) -> bool:
    parts = item.content if isinstance(item.content, list) else []
    return any(isinstance(it, dict) and it.get("type") == "output_text" for it in parts)
