"""Server events in another form than the GA Realtime API's -> events in that form.

PURE. The SDK validates every event against the types of `openai` and drops the others:
without an `event_id` the guardrails see no words and no tool runs, while the audio
plays. An event in form passes unchanged, after a few cheap tests. docs/models.md has
the source and the test of each form. beta_protocol.py has the forms of the beta
protocol, event_forms.py what one event tells by itself.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import msgspec
import openai.types.realtime as openai_realtime

from bridge.core import UNREADABLE
from bridge.core.limits import MAX_ID_CHARS
from bridge.core.model_side import NOT_CONFIRMED
from bridge.core.responses import remember
from bridge.model import beta_protocol
from bridge.model.event_forms import (
    EVENT_ID,
    conversation_event,
    error_details,
    has_formats,
    nested,
    with_status,
    without_parts,
)

END_CHARS = 200
"""The type of an audio delta is looked for in so many characters at both ends. If it
is elsewhere, the delta passes as well, but its reading costs more."""

MAX_WORDS_CHARS = 1000
"""Transcript deltas are shorter than this."""

MAX_ITEMS = 64
"""Limit of items of open responses that are remembered, the oldest are forgotten: a
server might never end its responses."""

LARGE_CHARS = 16_000
"""Of an item in a larger event, lists and objects are not remembered: they take up to
24 times the memory of their text."""

MAX_CALLS = 256
"""Limit of tool calls that are remembered, so that none is made twice."""

MAX_UPDATES = 16
"""Limit of session.updates that are remembered, the oldest are forgotten: a server
might never send a session."""

NO_TRANSCRIPT = "answer with audio and without transcript"
NO_TEXT = "session.updated confirms audio without text"
WORDLESS = frozenset({NO_TRANSCRIPT, NO_TEXT})
"""Reasons of protocol errors: nobody gets the agent's words."""

AUDIO_DELTA = '"response.output_audio.delta"'
WORDS_DELTA = '"response.output_audio_transcript.delta"'

FILLED: dict[str, Any] = {
    "event_id": EVENT_ID,
    "output_index": 0,
    "content_index": 0,
    "audio_start_ms": 0,
    "audio_end_ms": 0,
    "previous_item_id": None,
    "usage": {"type": "duration", "seconds": 0},
    "name": "",
    "call_id": "",
}
"""Fields that servers leave out, and the values that say nothing. `name` of a tool
call's arguments: the beta protocol has none."""


def _required() -> dict[str, frozenset[str]]:
    union = get_args(openai_realtime.RealtimeServerEvent)[0]
    return {
        get_args(kind.model_fields["type"].annotation)[0]: frozenset(
            name for name, field in kind.model_fields.items() if field.is_required()
        )
        for kind in get_args(union)
    }


REQUIRED = _required()
"""Event types that the SDK can validate (any other makes it report an error), and the
fields without which it drops an event."""

_FILLED_OF = {
    kind: tuple(name for name in FILLED if name in names)
    for kind, names in REQUIRED.items()
}

_DELTAS = {
    "response.output_audio_transcript.done": (
        "response.output_audio_transcript.delta",
        "transcript",
    ),
    "response.output_text.done": ("response.output_text.delta", "text"),
}
"""The end of an answer's words -> the event for a piece of them, and the field that has
all of them. Some servers send only the end."""

_WORDS = frozenset(kind for kind, _ in _DELTAS.values())
_OF_WORDS = _WORDS | _DELTAS.keys()
_OF_AUDIO = frozenset({"response.output_audio.delta", "response.output_audio.done"})

_TRACKED = frozenset(
    {
        "response.created",
        "response.done",
        "response.output_item.added",
        "response.output_item.done",
        "conversation.item.added",
        "conversation.item.done",
        "response.function_call_arguments.done",
        "response.output_audio_transcript.done",
        "response.output_text.done",
        "session.created",
        "session.updated",
        "error",
    }
)
"""Event types that have a row of their own."""


class _Head(msgspec.Struct, frozen=True, tag=False):
    """What decides whether an event is in form. None: the field is missing or null."""

    type: str
    event_id: Any = None
    output_index: Any = None
    content_index: Any = None
    audio_start_ms: Any = None
    audio_end_ms: Any = None
    previous_item_id: Any = None
    usage: Any = None
    name: Any = None
    call_id: Any = None
    item_id: Any = None
    response_id: Any = None


class _Ids(msgspec.Struct, frozen=True):
    """The fields of a transcript delta that say whether it is in form."""

    event_id: Any = None
    output_index: Any = None
    content_index: Any = None
    item_id: str = ""


class _OpenItem(msgspec.Struct):
    """An item of an open response."""

    response_id: str
    output_index: Any
    fields: dict[str, Any]
    shown: bool = False
    """The server has sent its conversation.item.added, or we have."""
    done: Literal["server", "missing", "sent"] = "server"
    """Who sends its conversation.item.done. "missing": the server does not."""
    ended: bool = False
    """Its response.output_item.done has come."""
    has_words: bool = False
    """A piece of its words has come."""
    arguments: str | None = None
    """All arguments of a tool call."""
    told: str | None = None
    """Its words that came whole, the latest; None: they come in pieces."""


_Event = dict[str, Any]

_decode_head: Callable[[str], _Head] = msgspec.json.Decoder(_Head).decode
_decode_ids: Callable[[str], _Ids] = msgspec.json.Decoder(_Ids).decode
_decode: Callable[[str], _Event] = msgspec.json.Decoder(_Event).decode


def _encoded(event: _Event) -> str:
    return msgspec.json.encode(event).decode()


def _id_of(value: Any) -> str:
    """An id, or empty: of another type, or longer than any part of a call takes."""
    return value if isinstance(value, str) and len(value) <= MAX_ID_CHARS else ""


class Dialect:
    """The form in which the server of one connection speaks."""

    def __init__(
        self, report: Callable[[str], None], *, waits_for_updated: bool = True
    ) -> None:
        """`report` gets the reason of a protocol error. `waits_for_updated` False: the
        session is ready at its session.created."""
        self._report = report
        self._waits_for_updated = waits_for_updated
        self._confirmed = False
        """A session.updated has come."""
        self._items: dict[str, _OpenItem] = {}
        self._is_large = False
        """The event that is read has more than LARGE_CHARS."""
        self._called: dict[str, None] = {}
        """call_ids of the complete tool calls since the last response began."""
        self._sounded = False
        """Audio has come since the last response began."""
        self._has_words = False
        """Words have come since the last response began."""
        self._worded: Any = None
        """The response whose words came last: they may come before its response.created
        (huggingface/speech-to-speech sends that with the first audio)."""
        self._beta: bool | None = None
        """The server speaks the beta protocol; None: it has not told yet."""
        self._early: dict[str, str] = {}
        """event_id -> session.update that was sent in the GA form, before the server
        told that it speaks the beta protocol."""
        self._early_open = False
        """The server may still confirm one of them, with the formats that it had."""
        self._formats: dict[str, Any] = {}
        """The audio formats of the flat session, in the names of the beta protocol."""
        self._resent: list[str] = []
        """Client events that the connection must send again, in the beta form."""

    # --- server events ---

    def read(self, text: str) -> list[str] | None:
        """The events in form that the server's event stands for. None: it is in form.

        An event that cannot be read is left to those who report that.
        """
        if AUDIO_DELTA in text[:END_CHARS] or AUDIO_DELTA in text[-END_CHARS:]:
            self._sounded = True
            return None
        try:
            if WORDS_DELTA in text[:MAX_WORDS_CHARS]:
                ids = _decode_ids(text)
                item = self._items.get(ids.item_id)
                lacks = None in (ids.event_id, ids.output_index, ids.content_index)
                if item is not None and item.has_words and not lacks:
                    return None
            return self._read(text)
        except UNREADABLE:
            return None

    def _read(self, text: str) -> list[str] | None:
        head = _decode_head(text)
        kind = beta_protocol.NAMES.get(head.type, head.type)
        filled = _FILLED_OF.get(kind)
        if filled is None:
            return None  # unknown to the SDK, too
        if kind in _OF_AUDIO:
            self._sounded = True
        item = self._item_named(head.item_id, kind in _OF_WORDS)
        if kind in _WORDS:
            self._has_words, self._worded = True, head.response_id
            if item is not None:
                item.has_words = True
        lacks = [name for name in filled if getattr(head, name) is None]
        in_form = kind == head.type and not lacks
        unshown = item is not None and not item.shown
        if in_form and not unshown and kind not in _TRACKED:
            return None
        event = _decode(text)
        self._is_large = len(text) > LARGE_CHARS
        if not in_form:
            event |= {"type": kind} | {name: FILLED[name] for name in lacks}
        before = self._show(item) if item is not None and unshown else []
        after = self._rows(kind, event, created=head.type == beta_protocol.CREATED)
        if in_form and not before and len(after) == 1 and after[0] is event:
            return None
        return [
            text if it is event and in_form else _encoded(it)
            for it in (*before, *after)
        ]

    def _item_named(self, item_id: Any, has_words: bool) -> _OpenItem | None:
        """The item that an event is about. One with words that the server has not
        announced is a message of the agent."""
        item_id = _id_of(item_id)
        item = self._items.get(item_id)
        if item is None and has_words:
            message = {"id": item_id, "type": "message", "role": "assistant"}
            item = self._item_of({}, {**message, "status": "in_progress"})
        return item

    def _rows(self, kind: str, event: _Event, *, created: bool) -> list[_Event]:
        """An event with what is missing before and after it. An event that is changed
        is another object."""
        match kind:
            case "response.created":
                return self._response_created(event)
            case "response.done":
                return self._response_done(event)
            case "response.output_item.added":
                return self._item_added(event)
            case "response.output_item.done":
                return self._item_ended(event)
            case "conversation.item.added" | "conversation.item.done":
                return [self._shown(kind, event, created=created)]
            case "response.function_call_arguments.done":
                return self._arguments(event)
            case "session.created" | "session.updated":
                return self._session(kind, event)
            case "error":
                return self._error(event)
            case _ if kind in _DELTAS:
                return self._words(kind, event)
        return [event]

    # --- responses and items ---

    def _response_created(self, event: _Event) -> list[_Event]:
        response = event.get("response")
        response_id = response.get("id") if isinstance(response, dict) else None
        self._sounded = False
        self._has_words = response_id is not None and response_id == self._worded
        self._called.clear()
        if not self._waits_for_updated and not self._confirmed:
            self._confirmed = True  # reported once
            self._report(NOT_CONFIRMED)
        return [event]

    def _item_added(self, event: _Event) -> list[_Event]:
        self._item_of(event, event.get("item"))
        return [event]

    def _item_of(self, event: _Event, fields: Any) -> _OpenItem | None:
        """The item of an event; it is remembered. None: it has no usable id."""
        fields = fields if isinstance(fields, dict) else {}
        item_id = _id_of(fields.get("id"))
        if not item_id:
            return None
        item = self._items.get(item_id)
        if item is None:
            response_id = _id_of(event.get("response_id"))
            kept = without_parts(fields) if self._is_large else fields
            item = _OpenItem(response_id, event.get("output_index", 0), kept)
            self._items[item_id] = item
            if len(self._items) > MAX_ITEMS:
                del self._items[next(iter(self._items))]
        elif not item.response_id:
            item.response_id = _id_of(event.get("response_id"))
        return item

    def _shown(self, kind: str, event: _Event, *, created: bool) -> _Event:
        """The server shows an item of the conversation."""
        fields = event.get("item")
        if created and isinstance(fields, dict):
            event["item"] = fields = beta_protocol.item(fields)
        item = self._item_of(event, fields)
        if item is not None:
            item.shown = True
            item.done = "missing" if created else "server"
            if kind == "conversation.item.done":
                item.done = "sent"
        return event

    def _show(self, item: _OpenItem) -> list[_Event]:
        """The conversation.item.added that the server does not send."""
        item.shown, item.done = True, "missing"
        return [conversation_event("conversation.item.added", item.fields)]

    def _arguments(self, event: _Event) -> list[_Event]:
        """A tool call is complete; its response.output_item.done may not follow
        (huggingface/speech-to-speech#416)."""
        item_id, call_id = event.get("item_id"), _id_of(event.get("call_id"))
        known = self._items.get(_id_of(item_id))
        if known is not None and call_id and _is_other(known, call_id):
            # One item_id for the words of an answer and all of its calls
            # (huggingface/speech-to-speech, handlers/response.py).
            item_id, known = call_id, self._items.get(call_id)
        fields = {
            "id": item_id,
            "type": "function_call",
            "call_id": event.get("call_id"),
            "name": event.get("name"),
            "arguments": "",
        }
        item = known or self._item_of(event, fields)
        arguments = event.get("arguments")
        if item is not None and isinstance(arguments, str):
            item.arguments = arguments
            for name in ("call_id", "name"):
                item.fields[name] = item.fields.get(name) or fields[name]
        return [event]

    def _item_ended(self, event: _Event) -> list[_Event]:
        item = self._item_of(event, event.get("item"))
        if item is None:
            return [event]
        fields = event["item"]
        ended = fields.get("status") in ("completed", "incomplete")
        if fields.get("type") == "function_call" and not ended:
            fields = with_status(fields, item.fields, item.arguments)
            event = {**event, "item": fields}
        is_call = fields.get("type") == "function_call"
        if is_call and fields.get("status") == "completed":
            remember(self._called, _id_of(fields.get("call_id")), None, MAX_CALLS)
        item.ended = True
        item.fields = fields
        events = [] if item.shown else self._show(item)
        events += [event, *self._finish(item)]
        item.fields = without_parts(fields)  # nothing else of it is needed any more
        return events

    def _finish(self, item: _OpenItem) -> list[_Event]:
        """The conversation.item.done that the server does not send."""
        if item.done != "missing":
            return []
        item.done = "sent"
        return [conversation_event("conversation.item.done", item.fields)]

    def _response_done(self, event: _Event) -> list[_Event]:
        response = event.get("response")
        response = response if isinstance(response, dict) else {}
        response_id = _id_of(response.get("id"))
        if response.get("status") in (None, "completed"):
            output = response.get("output")
            for fields in output if isinstance(output, list) else []:
                self._in_output(response_id, fields)
            if self._sounded and not self._has_words:
                self._report(NO_TRANSCRIPT)
        events: list[_Event] = []
        for item_id, item in list(self._items.items()):
            if item.response_id == response_id or item.ended:
                del self._items[item_id]
                if not item.ended and item.response_id == response_id:
                    events += self._end(item, response.get("status"))
        return [*events, event]

    def _in_output(self, response_id: str, fields: Any) -> None:
        """An item in `output` of a complete response; some servers send a tool call
        nowhere else."""
        item = self._item_of({"response_id": response_id}, fields)
        if item is None or fields.get("type") != "function_call":
            return
        if item.arguments is None and isinstance(fields.get("arguments"), str):
            item.arguments = fields["arguments"]
            item.fields = {**item.fields, **fields}

    def _end(self, item: _OpenItem, status: Any) -> list[_Event]:
        """The events of an item that the server has not ended."""
        events = [] if item.shown else self._show(item)
        complete = item.arguments is not None and status in (None, "completed")
        if complete and item.fields.get("type") == "function_call":
            fields = {**item.fields, "arguments": item.arguments, "status": "completed"}
            call_id = fields["call_id"] = fields.get("call_id") or fields["id"]
            item.fields = fields
            if _id_of(call_id) in self._called:
                return events + self._finish(item)  # it had another item_id
            remember(self._called, _id_of(call_id), None, MAX_CALLS)
            events.append(
                {
                    "type": "response.output_item.done",
                    "event_id": EVENT_ID,
                    "response_id": item.response_id,
                    "output_index": item.output_index or 0,
                    "item": fields,
                }
            )
        return events + self._finish(item)

    def _words(self, kind: str, event: _Event) -> list[_Event]:
        """All words of a part are there; a piece of them may never have come."""
        delta, field = _DELTAS[kind]
        item = self._items.get(_id_of(event.get("item_id")))
        words = event.get(field)
        if item is None or not isinstance(words, str) or not words:
            return [event]
        if words == item.told or (item.has_words and item.told is None):
            return [event]
        # One item may have several: huggingface/speech-to-speech sends each sentence.
        item.has_words = self._has_words = True
        item.told, self._worded = words, event.get("response_id")
        rest = {key: value for key, value in event.items() if key != field}
        return [{**rest, "type": delta, "delta": words}, event]

    # --- the session ---

    def _session(self, kind: str, event: _Event) -> list[_Event]:
        session = event.get("session")
        if session is None:
            # vLLM's session.created (openai/realtime/protocol.py).
            event = {**event, "session": {}}
            session = event["session"]
        if not isinstance(session, dict):
            return [event]
        flat = beta_protocol.is_flat(session)
        if flat:
            self._formats = {name: session.get(name) for name in beta_protocol.FORMATS}
        if self._beta is None:
            self._told(beta=flat)
        if flat:
            wordless = beta_protocol.is_wordless(session)
            session = beta_protocol.session(session)
        else:
            wordless, session = False, nested(session)
        if session is not event["session"]:
            event = {**event, "session": session}
        if kind == "session.created":
            return [event] if self._waits_for_updated else [event, _CONFIRMED]
        if self._early_open:
            self._early_open = False
            if not has_formats(self._early.values(), event["session"]):
                return []  # the server ignored what it does not know
        if wordless and not self._confirmed:
            self._report(NO_TEXT)
        self._confirmed = True
        return [event]

    def _told(self, *, beta: bool) -> None:
        """The server has told which form it speaks."""
        self._beta = beta
        if beta:
            self._resent = [self._in_beta(text) for text in self._early.values()]
            self._early_open = bool(self._early)
        else:
            self._early = {}

    def _error(self, event: _Event) -> list[_Event]:
        error = error_details(event)
        if not isinstance(error, dict):
            return [event]
        if error is not event["error"]:
            event = {**event, "error": error}
        event_id = _id_of(error.get("event_id"))
        if not self._beta:
            return [event]
        if event_id.endswith(beta_protocol.SUFFIX):
            real = event_id.removesuffix(beta_protocol.SUFFIX)
            return [{**event, "error": {**error, "event_id": real}}]
        if self._early.pop(event_id, None) is None:
            return [event]
        self._early_open = bool(self._early)
        return []

    # --- client events ---

    def take_resent(self) -> list[str]:
        """Client events to send now, because the server did not understand them."""
        resent, self._resent = self._resent, []
        return resent

    def written(self, text: str) -> str:
        """A client event in the server's form."""
        if self._beta is None and '"session.update"' in text:
            event = _decode(text)
            if event["type"] == "session.update":
                self._early[_id_of(event.get("event_id"))] = text
                if len(self._early) > MAX_UPDATES:
                    del self._early[next(iter(self._early))]
        return self._in_beta(text) if self._beta else text

    def _in_beta(self, text: str) -> str:
        return beta_protocol.client_event(text, self._formats)


_CONFIRMED: _Event = {
    "type": "session.updated",
    "event_id": EVENT_ID,
    "session": {"type": "realtime"},
}
"""Says nothing about any setting."""


def _is_other(item: _OpenItem, call_id: str) -> bool:
    """Whether an item is not the tool call with this id."""
    if item.fields.get("type") != "function_call":
        return True
    return item.fields.get("call_id") not in (None, "", call_id)
