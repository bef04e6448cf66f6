"""Messages to the model that wait until it is ready, or that it has not confirmed.

PURE. An item that the server has not shown may be lost together with the session. Every
item gets its id here, so that the server's events about it can be matched.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from bridge.core import realtime_events

MAX_PENDING = 64
"""Texts and events that wait until the model is ready; more are refused."""

MAX_PENDING_CHARS = 8_000_000
"""Most characters of all that wait; the result of one tool has at most 100,000."""

MAX_UNACKED = 64
"""Most unconfirmed items that are remembered; the oldest are forgotten first, so that a
server that confirms nothing does not fill the memory."""

MAX_UNACKED_CHARS = 8_000_000
"""Most characters of all unconfirmed items; an item may be a picture. The oldest are
forgotten first."""

MAX_ID_CHARS = 12
"""Characters of the stream SID in an item id; the server accepts ids of 32 in all."""


@dataclass(frozen=True, slots=True)
class PendingText:
    """A text message to the model, not spoken by anyone. `respond`: the model responds
    to it."""

    role: str
    text: str
    respond: bool


class Outbox:
    """The pending texts and events, and the unacknowledged items, of one call.

    `owned_by` must be called before anything is sent.
    """

    def __init__(self) -> None:
        self._pending: list[PendingText | str] = []
        self._pending_chars = 0
        self.asked = False
        """A response was requested before the model was ready."""
        self._owner = ""
        self._serial = 0
        self._unacked: dict[str, tuple[str, str]] = {}
        """Item id -> (event_id, event)."""
        self._deleted: dict[str, None] = {}

    # --- pending: the model is not ready ---

    def keep(self, text: PendingText | str) -> bool:
        """Adds a text, or a client event as JSON. False: the limits are reached, and it
        is not added."""
        chars = self._pending_chars + len(
            text.text if isinstance(text, PendingText) else text
        )
        if len(self._pending) >= MAX_PENDING or chars > MAX_PENDING_CHARS:
            return False
        self._pending_chars = chars
        self._pending.append(text)
        return True

    def take(self) -> list[PendingText | str]:
        """Returns what is pending and empties the list: the model is ready."""
        pending, self._pending, self._pending_chars = self._pending, [], 0
        return pending

    @property
    def to_be_answered(self) -> bool:
        return any(isinstance(it, PendingText) and it.respond for it in self._pending)

    # --- unacked: the model was sent an item and has not shown it ---

    def owned_by(self, stream_sid: str) -> None:
        """Makes the item ids of this stream different from those of other streams."""
        self._owner = "".join(it for it in stream_sid if it.isalnum())[-MAX_ID_CHARS:]

    def new_id(self) -> str:
        """An id for an item."""
        self._serial += 1
        return f"b_{self._owner}_{self._serial}"

    def sent(self, text: str) -> str:
        """Remembers a client event that goes to the model now. Returns the event to
        send; an item without an id gets one."""
        if '"conversation.item.' not in text:
            return text
        event: Any = msgspec.json.decode(text)
        kind, item = event.get("type"), event.get("item")
        if kind == "conversation.item.delete":
            _keep(self._deleted, str(event.get("item_id")), None)
        if kind != "conversation.item.create" or not isinstance(item, dict):
            return text
        if item.get("type") == "mcp_approval_response":
            return text  # a new session did not request this approval
        if not item.get("id"):
            item["id"] = self.new_id()
            event.setdefault("event_id", f"bridge_{item['id']}")
            text = msgspec.json.encode(event).decode()
        # If the item is sent again, it goes to the end: the item before it may be gone.
        again = {key: it for key, it in event.items() if key != "previous_item_id"}
        unacked = str(event.get("event_id")), msgspec.json.encode(again).decode()
        _keep(self._unacked, str(item["id"]), unacked)
        chars = sum(len(text) for _, text in self._unacked.values())
        while chars > MAX_UNACKED_CHARS:
            chars -= len(self._unacked.pop(next(iter(self._unacked)))[1])
        return text

    def seen(self, item: realtime_events.ConversationItem) -> None:
        """The server has shown the item: it is acknowledged."""
        self._unacked.pop(item.id, None)

    def gone(self, item_id: str) -> None:
        """The server has deleted the item."""
        self._deleted.pop(item_id, None)
        self._unacked.pop(item_id, None)

    def refused(self, event_id: str | None, message: str) -> dict[str, str]:
        """The server has refused the event; another session would refuse it, too. An
        error without `event_id` may name the tool call. Returns the tool outputs that
        were refused, by call_id."""
        refused: dict[str, str] = {}
        for item_id, (known, text) in list(self._unacked.items()):
            outputs = _outputs([text])
            named = event_id is None and any(it in message for it in outputs if it)
            if known == event_id or named:
                del self._unacked[item_id]
                refused |= outputs
        return refused

    @property
    def outputs(self) -> Collection[str]:
        """call_ids of the tool outputs that the server has not shown yet."""
        return _outputs(self.events)

    @property
    def events(self) -> list[str]:
        """The events to send again to a new session, in order."""
        return [text for _, text in self._unacked.values()]

    @property
    def deleted(self) -> list[str]:
        """Ids of items whose deletion the server has not confirmed."""
        return list(self._deleted)


def _outputs(events: Iterable[str]) -> dict[str, str]:
    """The tool outputs among these events, by call_id."""
    items = [msgspec.json.decode(event)["item"] for event in events]
    return {
        str(item.get("call_id") or ""): str(item.get("output") or "")
        for item in items
        if item.get("type") == "function_call_output"
    }


def _keep(memory: dict[str, Any], key: str, value: Any) -> None:
    memory[key] = value
    if len(memory) > MAX_UNACKED:
        del memory[next(iter(memory))]
