"""The conversation of one fake session: items in order, and the operations on them.

Pure. Refusals have the real server's texts and codes where an issue thread shows them;
codes for unknown item ids are formed in the same way.
"""

import base64
import binascii
from typing import assert_never

from bridge.sim.realtime.client_events import (
    PARTS_OF_ROLE,
    FunctionCallItem,
    FunctionCallOutputItem,
    InvalidRequestError,
    ItemCreate,
    ItemTruncate,
    Json,
    McpApprovalResponseItem,
    MessageItem,
)
from bridge.sim.realtime.items import ModelItem, RememberedItem


class ModelHistory:
    """Items by id, in conversation order. Deleted items stay, marked as deleted, for
    reports."""

    def __init__(self) -> None:
        self.items: dict[str, ModelItem] = {}

    def find(self, item_id: str, action: str) -> ModelItem:
        item = self.items.get(item_id)
        if item is None or item.deleted:
            raise InvalidRequestError(
                f"Item with item_id '{item_id}' not found.",
                f"item_{action}_invalid_item_id",
                "item_id",
            )
        return item

    def remembered(self) -> tuple[RememberedItem, ...]:
        """The conversation as the model remembers it, in order."""
        items = self.items.values()
        return tuple(item.remembered() for item in items if not item.deleted)

    def previous(self, item: ModelItem | None = None) -> str | None:
        """The id before `item`, or the last id if no item is given."""
        before: str | None = None
        for other in self.items.values():
            if other is item:
                break
            if not other.deleted:
                before = other.id
        return before

    def place(self, item: ModelItem, after: str | None = None) -> None:
        """Append, or insert after the item `after` ("root": at the front)."""
        if after is None:
            self.items[item.id] = item
            return
        ordered = [other for other in self.items.values() if other.id != item.id]
        at = 0
        if after != "root":
            at = ordered.index(self.items[after]) + 1
        ordered.insert(at, item)
        self.items = {other.id: other for other in ordered}

    def create(self, event: ItemCreate, raw: Json, new_id: str) -> ModelItem:
        """Add the client's item.

        Raises InvalidRequestError if the item does not fit the conversation.
        """
        described = raw["item"]
        item_id = described.get("id", new_id)
        existing = self.items.get(item_id)
        if existing is not None and not existing.deleted:
            raise InvalidRequestError(
                f"Error adding item: an item with id '{item_id}' already exists.",
                "item_create_duplicate_item_id",
                "item.id",
            )
        after = raw.get("previous_item_id")
        if after is not None and after != "root":
            self.find(after, "create")
        item = self._made(event, described, item_id)
        self.items.pop(item_id, None)
        self.place(item, after)
        return item

    def truncate(self, event: ItemTruncate) -> ModelItem:
        """Cut an assistant item's audio; the item's transcript is removed too."""
        item = self.find(event.item_id, "truncate")
        # An audio item has no audio to cut before its first delta (livekit#6157).
        if item.role != "assistant" or not item.chunks:
            raise InvalidRequestError(
                "Only model output audio messages can be truncated",
                "unsupported_content_type",
            )
        if event.content_index != 0:
            raise InvalidRequestError(
                f"Content index {event.content_index} does not exist.",
                "invalid_value",
                "content_index",
            )
        if event.audio_end_ms > item.believed_ms:
            raise InvalidRequestError(
                f"Audio content of {int(item.believed_ms)}ms is already shorter "
                f"than {event.audio_end_ms}ms",
                None,
            )
        item.truncated_ms = event.audio_end_ms
        item.text = ""
        return item

    def _made(self, event: ItemCreate, described: Json, item_id: str) -> ModelItem:
        shape = event.item
        item = ModelItem(id=item_id, type=described["type"], status="completed")
        item.complete = True
        match shape:
            case MessageItem():
                item.role = shape.role
                item.parts = described["content"]
                self._check_parts(shape.role, item)
                item.text = item.generated_text = " ".join(
                    part.get("text", "") for part in item.parts
                ).strip()
            case FunctionCallItem():
                item.call_id = shape.call_id
                item.name = shape.name
                item.arguments = shape.arguments
            case FunctionCallOutputItem():
                item.call_id = shape.call_id
                item.output = shape.output
                item.name = self._caller_of(shape.call_id)
            case McpApprovalResponseItem():
                self._check_request(shape.approval_request_id)
                item.approval_request_id = shape.approval_request_id
                item.approve = shape.approve
                item.reason = described.get("reason")
            case _:
                assert_never(shape)
        return item

    def _check_parts(self, role: str, item: ModelItem) -> None:
        for index, part in enumerate(item.parts):
            if part["type"] not in PARTS_OF_ROLE[role]:
                supported = ", ".join(
                    f"'{kind}'" for kind in sorted(PARTS_OF_ROLE[role])
                )
                raise InvalidRequestError(
                    f"Invalid value: '{part['type']}'. Supported values are: "
                    f"{supported}.",
                    "invalid_value",
                    f"item.content[{index}].type",
                )
            if part["type"] == "input_audio":
                item.chunks.append(decoded(part["audio"], f"item.content[{index}]"))

    def _check_request(self, request_id: str) -> None:
        """Raise InvalidRequestError unless the request exists and is unanswered."""
        request = self.items.get(request_id)
        if (
            request is None
            or request.deleted
            or request.type != "mcp_approval_request"
            or any(
                item.type == "mcp_approval_response"
                and item.approval_request_id == request_id
                for item in self.items.values()
            )
        ):
            raise InvalidRequestError(
                f"Approval request ID '{request_id}' not found in conversation.",
                "invalid_approval_request_id",
                "item.approval_request_id",
            )

    def _caller_of(self, call_id: str) -> str | None:
        for item in self.items.values():
            is_it = item.type == "function_call" and item.call_id == call_id
            if is_it and not item.deleted:
                return item.name
        raise InvalidRequestError(
            f"Tool call ID '{call_id}' not found in conversation.",
            "invalid_tool_call_id",
            "item.call_id",
        )


def decoded(audio: str, param: str = "audio") -> bytes:
    """Decode base64 as strictly as the server does."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            "Invalid 'audio'. Expected base64-encoded audio bytes but got an invalid "
            "value.",
            "invalid_value",
            f"{param}.audio",
        ) from None
