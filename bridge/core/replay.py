"""A conversation kept and given back: the server's items -> history -> client events.

What is given back is what was heard; a tool call goes with its result or not at all.
"""

import base64
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.core import realtime_events
from bridge.core.history import HistoryItem


def recorded(item: realtime_events.ConversationItem, at: float) -> HistoryItem | None:
    """An item of the server's as the history keeps it; None: it is none of ours."""
    match item.type, item.role:
        case "message", "assistant":
            # Its words count when they were heard; only of written ones all is known.
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
    """What a history has no text of yet, though the model is to be given it."""

    words: Mapping[str, str] = field(default_factory=dict)
    """Item id -> an answer's words that are still on their way to the caller."""
    voice: Callable[[str], bytes] = lambda _: b""
    """Item id -> mu-law of what the caller said, where nobody wrote it down."""
    calls: Container[str] = ()
    """Tool calls (call_id) whose results are still to come."""


NOTHING_UNFINISHED = Unfinished()


def replayed(
    history: Sequence[HistoryItem],
    event_id: Callable[[], str],
    unfinished: Unfinished = NOTHING_UNFINISHED,
) -> list[str]:
    """The client events that give a new session what was said before."""
    called = {item.call_id for item in history if item.kind == "tool_call"}
    answered = {item.call_id for item in history if item.kind == "tool_output"}
    events = []
    for item in history:
        text = item.text + unfinished.words.get(item.id, "")
        match item.kind:
            case "tool_output" if item.call_id in called:
                event = realtime_events.tool_output(
                    item.call_id, text, event_id(), item.id
                )
            case "tool_call" if (
                item.call_id in answered or item.call_id in unfinished.calls
            ):
                event = realtime_events.tool_call(
                    item.call_id, item.name, item.arguments, event_id(), item.id
                )
            case "user" | "assistant" | "system" if text:
                event = realtime_events.message(
                    item.kind, text, event_id(), item_id=item.id
                )
            case "user" if voice := unfinished.voice(item.id):
                payload = base64.b64encode(voice).decode()
                event = realtime_events.spoken(payload, event_id(), item.id)
            case _:
                continue
        events.append(event)
    return events


def _is_written(item: realtime_events.ConversationItem) -> bool:
    parts = item.content if isinstance(item.content, list) else []
    return any(isinstance(it, dict) and it.get("type") == "output_text" for it in parts)
