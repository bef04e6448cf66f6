"""Classifies errors of the model's server: harmless, worth a retry, or fatal. PURE."""

import re

from bridge.core import realtime_events

BENIGN_CODES = frozenset(
    {
        "response_cancel_not_active",
        "item_truncate_invalid_item_id",
        "item_delete_invalid_item_id",
        "unsupported_content_type",
        "input_audio_buffer_commit_empty",
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
        "model_not_found",
    }
)
"""Error codes after which no retry can succeed: this account gets no response."""

RATE_LIMIT = "rate_limit_exceeded"

CODES = BENIGN_CODES | FATAL_CODES | {RATE_LIMIT}
"""All codes that mean something here, and are no types of errors in OpenAI's API."""

LATER_CODES = frozenset({RATE_LIMIT, "session_expired", "server_error"})
"""Codes or types of errors before a session is ready; another session may succeed."""

TEMPORARY_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})
"""HTTP statuses of a handshake that are temporary, so the handshake is retried."""

_STATUS = re.compile(r"(?:\A|HTTP )([1-5][0-9]{2})\b(?!\.)")
"""The HTTP status in a message. LiteLLM accepts the connection before it has one to the
model, and then names the status of that in an error of type server_error: "Upstream
realtime handshake rejected with HTTP 401", "400: {'error': ..." (BerriAI/litellm#39851,
litellm_core_utils/realtime_errors.py)."""

REFUSING_CLOSES = frozenset({1008, 3000, 3003})
"""Codes of a close before the session that mean a refusal: a policy (RFC 6455; LiteLLM
for a model that says 401 or 403), unauthorized (OpenAI for a wrong key:
twilio-samples/speech-assistant-openai-realtime-api-python#4), forbidden."""

_NUMBER = r"([0-9]{1,6}(?:\.[0-9]{1,6})?) ?"
_TRY_AGAIN = re.compile(
    rf"(?:try again|retry) (?:in|after) (?:{_NUMBER}m(?:in|inutes?)?\b ?|{_NUMBER}m"
    rf"(?=[0-9]))?(?:{_NUMBER}(ms|milliseconds?|s|secs?|seconds?)\b)?",
    re.IGNORECASE,
)
"""The wait that the server asks for, in the message of a rate limit: "try again in
1.8s", "in 166ms", "in 1m2.5s", "in 20 seconds"."""

ACTIVE_CODE = "conversation_already_has_active_response"

MAX_CODE_CHARS = 64
"""Characters kept of a server's error code: it goes into logs."""


MAX_SEARCHED_CHARS = 2000
"""Characters of a message that are searched for the wait."""


def is_benign(error: realtime_events.ErrorDetails) -> bool:
    return error.code in BENIGN_CODES or "already shorter" in error.message


def may_pass(error: realtime_events.ErrorDetails) -> bool:
    """The error is temporary: another session may succeed."""
    if error.code in FATAL_CODES:
        return False
    status = _STATUS.search(error.message[:MAX_SEARCHED_CHARS])
    if error.code is None and status:
        return int(status[1]) in TEMPORARY_STATUSES
    return bool({error.code, error.type} & LATER_CODES)


def retry_after(message: str | None) -> float | None:
    """Seconds that the server asks to wait before another request; None: it does not
    say."""
    found = _TRY_AGAIN.search((message or "")[:MAX_SEARCHED_CHARS])
    if found is None or not any(found.groups()):
        return None
    minutes, seconds = float(found[1] or found[2] or 0), float(found[3] or 0)
    thousandths = (found[4] or "").lower().startswith("m")
    return 60 * minutes + seconds / (1000 if thousandths else 1)


def short(code: str | None) -> str:
    return (code or "")[:MAX_CODE_CHARS]


def is_lost(status: str | None, *, sounded: bool) -> bool:
    """The caller will not hear this response. `sounded`: some of its audio was sent."""
    return status == "failed" or (status == "incomplete" and not sounded)
