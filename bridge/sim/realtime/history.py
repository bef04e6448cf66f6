"""The conversation of one fake session: items in order, what may be done to them.

Pure. Refusals carry the real server's texts and codes where a thread shows them; the
codes of unknown item ids are formed alike.
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
    """Items by id, in conversation order; deleted ones stay, marked, for reports."""

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
        """The conversation as the model has it in mind, in order."""
        items = self.items.values()
        return tuple(item.remembered() for item in items if not item.deleted)

    def previous(self, item: ModelItem | None = None) -> str | None:
        """The id before `item`, or the last of all."""
        before: str | None = None
        for other in self.items.values():
            if other is item:
                break
            if not other.deleted:
                before = other.id
        return before

    def place(self, item: ModelItem, after: str | None = None) -> None:
        """Append, or insert behind `after` ("root": in front)."""
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
        """The client's item, placed; Refused if it does not fit the conversation."""
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
        """Cut an assistant item's audio; its transcript is forgotten with it."""
        item = self.find(event.item_id, "truncate")
        # Before the first delta an audio item has nothing to cut (livekit#6157).
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
        """It is there, and nobody has answered it."""
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
    """base64 -> bytes, as strictly as the server."""
    try:
        return base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            "Invalid 'audio'. Expected base64-encoded audio bytes but got an invalid "
            "value.",
            "invalid_value",
            f"{param}.audio",
        ) from None
