"""What the server's errors mean for a call: nothing, another try, or its end. PURE."""

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
"""Answers to a truncate, delete, cancel or create that lost a race: the session is
unhurt. So is it by `Audio content of Xms is already shorter than Yms`, which has no
code."""

FATAL_CODES = frozenset(
    {
        "insufficient_quota",
        "invalid_api_key",
        "account_deactivated",
        "billing_hard_limit_reached",
    }
)
"""No answer will come on this account, however often it is asked for."""

LATER_CODES = frozenset({"rate_limit_exceeded", "session_expired", "server_error"})
"""Errors (codes or types) before a session is ready that another one may not meet."""

ACTIVE_CODE = "conversation_already_has_active_response"

MAX_CODE_CHARS = 64
"""Of what a server calls its error: it goes into logs."""


def is_benign(error: realtime_events.ErrorDetails) -> bool:
    return error.code in BENIGN_CODES or "already shorter" in error.message


def may_pass(error: realtime_events.ErrorDetails) -> bool:
    """Another session may not meet it."""
    return bool({error.code, error.type} & LATER_CODES)


def short(code: str | None) -> str:
    return (code or "")[:MAX_CODE_CHARS]


def is_lost(status: str | None, *, sounded: bool) -> bool:
    """The caller will not hear this answer."""
    return status == "failed" or (status == "incomplete" and not sounded)
