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
    error, sip = (code_of(webhook, it) for it in ("ErrorCode", "DialSipResponseCode"))
    message = webhook.text("ErrorMessage")
    if not message.isprintable():
        message = ""
    message = _NAMED.sub("[number]", message[: 4 * MAX_MESSAGE_CHARS])
    return FailedTransfer(status, error, sip, message[:MAX_MESSAGE_CHARS])


def code_of(webhook: Webhook, name: str) -> str:
    """The code in this field; empty if it is none."""
    code = webhook.text(name)
    return code if _CODE.fullmatch(code) else ""
