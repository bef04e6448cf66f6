"""Signatures of Standard Webhooks, for OpenAI's webhooks and for the bridge's reports.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from standardwebhooks import Webhook, WebhookVerificationError

FORM = "whsec_ and the base64 of 24 to 64 bytes"

_SIGNATURE = re.compile("v1,[A-Za-z0-9+/]{43}=")  # of SHA-256

TOLERANCE_SECONDS = 300
"""The library refuses a delivery whose timestamp differs from now by more than this."""


def signing_key(secret: str) -> Webhook:
    """Raises ValueError, without the secret in its text, if `secret` is not in FORM."""
    try:
        # The library ignores characters outside base64 and accepts any length.
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError(f"a webhook secret is {FORM}")
    return Webhook(key)


def signed(
    key: Webhook, webhook_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The headers for a delivery of `body` (UTF-8); `timestamp` in Unix seconds."""
    moment = datetime.fromtimestamp(timestamp, UTC)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": key.sign(webhook_id, moment, body.decode()),
    }


def is_signed(key: Webhook, headers: Mapping[str, str], body: bytes) -> bool:
    """True if a signature matches and the timestamp is within TOLERANCE_SECONDS of now.
    The names of `headers` are in lower case."""
    # The library stops at the first signature that it cannot split or decode, even if a
    # later signature matches.
    signatures = headers.get("webhook-signature", "").split()
    v1 = " ".join(it for it in signatures if _SIGNATURE.fullmatch(it))
    try:
        key.verify(body, {**headers, "webhook-signature": v1}, json_parse=False)
    except (WebhookVerificationError, ValueError):  # ValueError: not UTF-8
        return False
    return True
