"""Parts of server events that are not in the form of GA -> in that form. PURE.

dialects.py knows what a server leaves out; here is what one event, session or item
tells by itself.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from bridge.core import UNREADABLE, errors
from bridge.model import beta_protocol

Event = dict[str, Any]

EVENT_ID = "bridge_filled"
"""event_id of an event that the server did not send, or sent without an id."""

_decode: Callable[[str], Event] = msgspec.json.Decoder(Event).decode


def nested(session: Event) -> Event:
    """A session that is not flat, with what the SDK and the call look for. aimock names
    the modalities of its answers as the beta protocol does."""
    lacks: Event = {} if "type" in session else {"type": "realtime"}
    if "modalities" in session and "output_modalities" not in session:
        named = beta_protocol.output_modalities(session["modalities"])
        lacks["output_modalities"] = named
    return {**session, **lacks} if lacks else session


def conversation_event(kind: str, fields: Event) -> Event:
    """An event that shows an item of the conversation."""
    item = beta_protocol.item(fields)
    if item.get("type") == "message":
        item = {"role": "assistant", "content": [], **item}
        if kind == "conversation.item.added":
            item["content"] = []  # its words come later, and may be cut
    return {
        "type": kind,
        "event_id": EVENT_ID,
        "previous_item_id": None,
        "item": item,
    }


def error_details(event: Event) -> Any:
    """The details of an error, in form."""
    error = event.get("error")
    if isinstance(error, str):  # vLLM (openai/realtime/protocol.py)
        code = event.get("code")
        code = code if isinstance(code, str) else None
        return {"type": "error", "message": error, "code": code}
    if not isinstance(error, dict):
        return error
    lacks = {
        name: value
        for name, value in (("type", "error"), ("message", ""))
        if error.get(name) is None
    }
    kind = error.get("type")
    if error.get("code") is None and isinstance(kind, str) and kind in errors.CODES:
        lacks["code"] = kind  # huggingface/speech-to-speech, handlers/response.py
    return {**error, **lacks} if lacks else error


def without_parts(fields: Event) -> Event:
    """The fields of an item that are neither lists nor objects."""
    return {
        name: value
        for name, value in fields.items()
        if not isinstance(value, list | dict)
    }


def with_status(fields: Event, known: Event, complete: str | None) -> Event:
    """A function call with a status: whether its arguments are complete. `known`: its
    fields so far; `complete`: its arguments, if they came whole."""
    arguments = fields.get("arguments") or complete or ""
    if not isinstance(arguments, str):
        return fields  # the SDK rejects it
    try:
        _decode(arguments)
        status = "completed"
    except UNREADABLE:
        status = "incomplete"
    call_id = fields.get("call_id") or known.get("call_id") or fields["id"]
    name = fields.get("name") or known.get("name") or ""
    more = {"arguments": arguments, "call_id": call_id, "name": name}
    return {**fields, **more, "status": status}


def has_formats(updates: Iterable[str], session: Event) -> bool:
    """Whether a session has the audio formats that the updates ask for."""
    return all(
        _format(session, side) in (None, _format(_decode(text)["session"], side))
        for text in updates
        for side in ("input", "output")
        if _format(_decode(text)["session"], side)
    )


def _format(session: Event, side: str) -> Any:
    at: Any = session
    for name in ("audio", side, "format", "type"):
        at = at.get(name) if isinstance(at, dict) else None
    return at
