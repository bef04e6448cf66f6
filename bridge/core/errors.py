"""What a server error means for a call: nothing, another try, or the end. PURE."""

from bridge.core import realtime_events

BENIGN_CODES = frozenset(
    {
        "response_cancel_not_active",
        "item_truncate_invalid_item_id",
        "item_delete_invalid_item_id",
        "unsupported_content_type",
        "conversation_already_has_active_response",
    }
)
"""Codes of errors about a truncate, delete, cancel or create that lost a race: the
session is unharmed. So it is by `Audio content of Xms is already shorter than Yms`,
which has no code."""

FATAL_CODES = frozenset(
    {
        "insufficient_quota",
        "invalid_api_key",
        "account_deactivated",
        "billing_hard_limit_reached",
    }
)
"""This account gets no response, however often one is requested."""

LATER_CODES = frozenset({"rate_limit_exceeded", "session_expired", "server_error"})
"""Codes or types of errors before a session is ready that another session may not
meet."""

ACTIVE_CODE = "conversation_already_has_active_response"

MAX_CODE_CHARS = 64
"""Characters kept of a server's error code: it goes into logs."""


def is_benign(error: realtime_events.ErrorDetails) -> bool:
    return error.code in BENIGN_CODES or "already shorter" in error.message


def may_pass(error: realtime_events.ErrorDetails) -> bool:
    """Another session may not meet this error."""
    return bool({error.code, error.type} & LATER_CODES)


def short(code: str | None) -> str:
    return (code or "")[:MAX_CODE_CHARS]


def is_lost(status: str | None, *, sounded: bool) -> bool:
    """The caller will not hear this response. `sounded`: some of its audio was sent."""
    return status == "failed" or (status == "incomplete" and not sounded)
