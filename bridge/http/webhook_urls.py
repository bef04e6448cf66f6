"""The URLs that Twilio is told to request. Each is requested once.

It answers no request.
"""

import secrets
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlencode

from bridge.app.warm_calls import DETECTS, OF_CALL
from bridge.http.webhook_fields import Webhook

DIALLED = "dialled"
"""Query parameter of `/voice/next`: a transfer has ended, so `DialCallStatus` must be
there."""

KEY = "key"
"""Query parameter of `/voice/warm/answer`: a key was pressed, so `Digits` must be
there."""

EXPECTED: Mapping[str, str] = MappingProxyType(
    {DIALLED: "DialCallStatus", DETECTS: "AnsweredBy", KEY: "Digits"}
)
"""Query parameter of a URL -> the field that a request to it must have."""

ONCE = "once"
"""Query parameter of every URL that Twilio is told to request: a random text. Twilio
signs the URL, so no two requests have the same signature (repeated_webhooks.py)."""

BY_GET = "by_get"
"""Query parameter of a URL that Twilio is told to POST to after it came by GET."""

_NO_QUERY: Mapping[str, str] = MappingProxyType({})


def next_url(webhook: Webhook, query: Mapping[str, str]) -> str:
    """A new URL of `/voice/next`."""
    return url(webhook, "/voice/next", query)


def url(
    webhook: Webhook,
    path: str,
    query: Mapping[str, str],
    before: Mapping[str, str] = _NO_QUERY,
) -> str:
    """A URL that Twilio requests once. Its query is sorted, because Twilio may sign it
    in that order. `before`: an earlier query, which `query` replaces in part."""
    own = {**query, ONCE: _once()}
    kept = [(name, text) for name, text in before.items() if name not in own]
    pairs = sorted([*kept, *own.items()])
    return f"{webhook.origin}{path}?{urlencode(pairs)}"


def screen_url(webhook: Webhook, path: str, **query: str) -> str:
    """A new URL for the leg of the person who answers a transfer."""
    call_sid = webhook.query.get(OF_CALL, webhook.call_sid)
    return url(webhook, f"/voice/{path}", {OF_CALL: call_sid, **query})


def _once() -> str:
    return secrets.token_urlsafe(9)
