"""Items the model was given and has not shown yet: a lost session may have lost them.

Every item gets an id here, so that the server's own word of it can be told.
"""

from typing import Any

import msgspec

from bridge.core import realtime_events

MAX_UNCONFIRMED = 64
"""A server that confirms nothing does not fill our memory ..."""

MAX_CHARS = 8_000_000
"""... nor with so much: the newest are kept, each may be a picture."""

MAX_ID_CHARS = 12
"""Of the stream's SID in the ids of our items; a server takes 32 in all."""


class Unconfirmed:
    """Of one stream; `owned_by` before anything is sent."""

    def __init__(self) -> None:
        self._owner = ""
        self._serial = 0
        self._events: dict[str, tuple[str, str]] = {}
        """Item id -> (event_id, event)."""
        self._deleted: dict[str, None] = {}

    def owned_by(self, owner: str) -> None:
        """Sets the ids of this stream's items apart from those of others."""
        self._owner = "".join(it for it in owner if it.isalnum())[-MAX_ID_CHARS:]

    def sent(self, text: str) -> str:
        """A client event on its way to the model; items come back with an id in it."""
        if '"conversation.item.' not in text:
            return text
        event: Any = msgspec.json.decode(text)
        kind, item = event.get("type"), event.get("item")
        if kind == "conversation.item.delete":
            _keep(self._deleted, str(event.get("item_id")), None)
        if kind != "conversation.item.create" or not isinstance(item, dict):
            return text
        if item.get("type") == "mcp_approval_response":
            return text  # another session has not asked
        if not item.get("id"):
            self._serial += 1
            item["id"] = f"b_{self._owner}_{self._serial}"
            event.setdefault("event_id", f"bridge_{item['id']}")
            text = msgspec.json.encode(event).decode()
        # Given again it goes to the end: what it stood behind may be gone.
        again = {key: it for key, it in event.items() if key != "previous_item_id"}
        kept = str(event.get("event_id")), msgspec.json.encode(again).decode()
        _keep(self._events, str(item["id"]), kept)
        chars = sum(len(text) for _, text in self._events.values())
        while chars > MAX_CHARS:
            chars -= len(self._events.pop(next(iter(self._events)))[1])
        return text

    def seen(self, item: realtime_events.ConversationItem) -> None:
        """The server has it."""
        self._events.pop(item.id, None)

    def gone(self, item_id: str) -> None:
        """The server has deleted it."""
        self._deleted.pop(item_id, None)
        self._events.pop(item_id, None)

    def refused(self, event_id: str | None) -> None:
        """The server will not have it: nor would another session."""
        for item_id, (known, _) in list(self._events.items()):
            if known == event_id:
                del self._events[item_id]

    @property
    def events(self) -> list[str]:
        """What is to be given again to another session, in order."""
        return [text for _, text in self._events.values()]

    @property
    def deleted(self) -> list[str]:
        """Items that are to go, of which the server said nothing yet."""
        return list(self._deleted)


def _keep(memory: dict[str, Any], key: str, value: Any) -> None:
    memory[key] = value
    if len(memory) > MAX_UNCONFIRMED:
        del memory[next(iter(memory))]
