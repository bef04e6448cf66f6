"""Signatures of Standard Webhooks: OpenAI signs its webhooks so, we sign our reports.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime

from standardwebhooks import Webhook, WebhookVerificationError

FORM = "whsec_ and the base64 of 24 to 64 bytes"

TOLERANCE_SECONDS = 300
"""The library refuses a delivery that was signed earlier or later than this."""


def signing_key(secret: str) -> Webhook:
    """ValueError, whose text does not contain the secret, if it has not the form."""
    try:
        # The library ignores characters that base64 does not have, and any length.
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook secret is {FORM}")
    return Webhook(key)


def signed(
    key: Webhook, webhook_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The headers of a delivery of `body` (UTF-8); `timestamp` in Unix seconds."""
    moment = datetime.fromtimestamp(timestamp, UTC)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": key.sign(webhook_id, moment, body.decode()),
    }


def is_signed(key: Webhook, headers: Mapping[str, str], body: bytes) -> bool:
    """One of the signatures matches, and it is at most TOLERANCE_SECONDS old. The names
    of `headers` are in lower case."""
    # The library stops at the first signature that it cannot split, even if a later
    # signature matches.
    signatures = headers.get("webhook-signature", "").split()
    v1 = " ".join(it for it in signatures if it.startswith("v1,"))
    try:
        key.verify(body, {**headers, "webhook-signature": v1}, json_parse=False)
    except (WebhookVerificationError, ValueError):  # ValueError: not base64, not UTF-8
        return False
    return True
