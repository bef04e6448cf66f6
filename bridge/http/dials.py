"""The legs that Twilio dials for a caller (<Dial>): the number that they are shown, and
what is known of a leg that nobody answered.

Dials nothing, and answers no request.
"""

import re

from bridge.app.quotas import shows_number
from bridge.core.transfers import FailedTransfer
from bridge.http.webhook_fields import Webhook

MAX_MESSAGE_CHARS = 200
"""Longest text of Twilio about a failed leg in a log line and a report."""

RETURNED = (
    "You tried to put the caller through, but {reason}. The caller is back with you: "
    "tell them in one sentence and ask how else you can help."
)
REASONS = {
    "busy": "the line is busy",
    "no-answer": "nobody answered",
    "canceled": "nobody took the call",
}
UNREACHABLE = (
    "the call could not be connected: that number cannot be reached at the moment"
)
"""For `failed`, and for a status that is not known. The person who is told needs no
code."""

_CODE = re.compile("[0-9]{3,6}")
_NAMED = re.compile(r"(?i:sips?|client|whatsapp|tel):\S+|\+?\d[\d ().-]{5,}\d")
"""A number or an address in a text of Twilio."""


def shown_number(webhook: Webhook, outbound_number: str) -> str | None:
    """The `callerId` for a <Dial>; None: Twilio shows the caller's own number.

    Twilio refuses the leg (13214) of a caller without a number: a client of its Voice
    SDK, a SIP address, a caller who withholds it. Then the number that was called is
    shown, or BRIDGE_OUTBOUND_NUMBER if that is no number either.
    """
    if shows_number(webhook.text("From")):
        return None
    ours = webhook.text("To")
    return ours if shows_number(ours) else outbound_number or None


def failed_transfer(webhook: Webhook, status: str) -> FailedTransfer:
    """What Twilio says about a leg that was not answered."""
    codes = (webhook.text("ErrorCode"), webhook.text("DialSipResponseCode"))
    error, sip = (it if _CODE.fullmatch(it) else "" for it in codes)
    message = webhook.text("ErrorMessage")
    if not message.isprintable():
        message = ""
    message = _NAMED.sub("[number]", message[: 4 * MAX_MESSAGE_CHARS])
    return FailedTransfer(status, error, sip, message[:MAX_MESSAGE_CHARS])


def instruction(status: str) -> str:
    """What the agent is told when the caller comes back."""
    return RETURNED.format(reason=REASONS.get(status, UNREACHABLE))
