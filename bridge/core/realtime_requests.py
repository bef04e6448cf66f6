"""The Realtime API's client events that the core sends: values -> text. PURE.

Contract: `openai.types.realtime`.
"""

from typing import Any

import msgspec


class EventIds:
    """Gives each event an id: an error names the event that it is about."""

    def __init__(self) -> None:
        self._serial = 0

    def next(self) -> str:
        self._serial += 1
        return f"bridge_{self._serial}"


def append(payload: str) -> str:
    """`payload` must be base64: it is inserted unchecked, 50 times a second."""
    return f'{{"type":"input_audio_buffer.append","audio":"{payload}"}}'


def truncate(item_id: str, content_index: int, audio_end_ms: int, event_id: str) -> str:
    """Makes the model forget the part of this item after `audio_end_ms`."""
    return _client_event(
        "conversation.item.truncate",
        event_id,
        item_id=item_id,
        content_index=content_index,
        audio_end_ms=audio_end_ms,
    )


def delete(item_id: str, event_id: str) -> str:
    """Makes the model forget this item."""
    return _client_event("conversation.item.delete", event_id, item_id=item_id)


def cancel(response_id: str, event_id: str) -> str:
    return _client_event("response.cancel", event_id, response_id=response_id)


def probe(event_id: str) -> str:
    """Changes nothing, and makes the server answer with session.updated."""
    return _client_event("session.update", event_id, session={"type": "realtime"})


def clear_playout(event_id: str) -> str:
    """Makes the server stop playing, on a call whose audio it has."""
    return _client_event("output_audio_buffer.clear", event_id)


def commit(event_id: str) -> str:
    """Ends the caller's turn. The server does not respond to it by itself."""
    return _client_event("input_audio_buffer.commit", event_id)


def create_response(event_id: str) -> str:
    return _client_event("response.create", event_id)


def create_response_without_tools(event_id: str) -> str:
    """A response that calls no tool."""
    response = {"tool_choice": "none"}
    return _client_event("response.create", event_id, response=response)


def message(
    role: str,
    text: str,
    event_id: str,
    *,
    item_id: str | None = None,
    after: str | None = None,
) -> str:
    """An item of text: of the caller (`user`), of the agent (`assistant`), or an
    instruction to the agent (`system`). `after`: id of the item before the new one."""
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text}]
    item: dict[str, Any] = {"type": "message", "role": role, "content": content}
    return _create_item(item, event_id, item_id, after)


def spoken(payload: str, event_id: str, item_id: str) -> str:
    """An item of the caller's voice: base64 in the session's input format."""
    content = [{"type": "input_audio", "audio": payload}]
    item = {"type": "message", "role": "user", "content": content}
    return _create_item(item, event_id, item_id, None)


def tool_call(
    call_id: str, name: str, arguments: str, event_id: str, item_id: str | None = None
) -> str:
    """A tool call of an earlier session; its output must follow."""
    item = {
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }
    return _create_item(item, event_id, item_id, None)


def tool_output(
    call_id: str, output: str, event_id: str, item_id: str | None = None
) -> str:
    item = {"type": "function_call_output", "call_id": call_id, "output": output}
    return _create_item(item, event_id, item_id, None)


def _create_item(
    item: dict[str, Any], event_id: str, item_id: str | None, after: str | None
) -> str:
    if item_id is not None:
        item["id"] = item_id
    place = {} if after is None else {"previous_item_id": after}
    return _client_event("conversation.item.create", event_id, item=item, **place)


def _client_event(type_: str, event_id: str, **fields: Any) -> str:
    # Each event has an event_id: an error can be matched to its event only by this id.
    event = {"type": type_, "event_id": event_id, **fields}
    return msgspec.json.encode(event).decode()
