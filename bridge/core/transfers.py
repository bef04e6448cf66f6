"""What is known of a transfer that nobody answered. PURE."""

import msgspec


class FailedTransfer(msgspec.Struct, frozen=True):
    """A transfer that nobody answered. Stored in snapshots, and part of reports."""

    status: str
    """Twilio's `DialCallStatus`: `busy`, `no-answer`, `failed`, `canceled`."""
    error_code: str = ""
    """Twilio's error code, such as 13214; empty if it gave none."""
    sip_code: str = ""
    """The response of the dialled SIP line, such as 486."""
    message: str = ""
    """Twilio's text, without numbers."""
