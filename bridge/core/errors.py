"""Classifies errors of the model's server: harmless, worth a retry, or fatal. PURE."""

import re

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
"""Error codes of a truncate, delete, cancel or create that lost a race: the session
still works. The error `Audio content of Xms is already shorter than Yms` is as
harmless, but has no code."""

FATAL_CODES = frozenset(
    {
        "insufficient_quota",
        "invalid_api_key",
        "account_deactivated",
        "billing_hard_limit_reached",
    }
)
"""Error codes after which no retry can succeed: this account gets no response."""

RATE_LIMIT = "rate_limit_exceeded"

LATER_CODES = frozenset({RATE_LIMIT, "session_expired", "server_error"})
"""Codes or types of errors before a session is ready; another session may succeed."""

_TRY_AGAIN = re.compile(r"try again in ([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s)\b")
"""The wait that the server asks for, in the message of a rate limit."""

ACTIVE_CODE = "conversation_already_has_active_response"

MAX_CODE_CHARS = 64
"""Characters kept of a server's error code: it goes into logs."""


MAX_SEARCHED_CHARS = 2000
"""Characters of a message that are searched for the wait."""


def is_benign(error: realtime_events.ErrorDetails) -> bool:
    return error.code in BENIGN_CODES or "already shorter" in error.message


def may_pass(error: realtime_events.ErrorDetails) -> bool:
    """The error is temporary: another session may succeed."""
    return bool({error.code, error.type} & LATER_CODES)


def retry_after(message: str | None) -> float | None:
    """Seconds that the server asks to wait before another request; None: it does not
    say."""
    found = _TRY_AGAIN.search((message or "")[:MAX_SEARCHED_CHARS])
    if found is None:
        return None
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def short(code: str | None) -> str:
    return (code or "")[:MAX_CODE_CHARS]


def is_lost(status: str | None, *, sounded: bool) -> bool:
    """The caller will not hear this response. `sounded`: some of its audio was sent."""
    return status == "failed" or (status == "incomplete" and not sounded)
