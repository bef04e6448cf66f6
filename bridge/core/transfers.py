"""Transfers: what is known of one that nobody answered, and what a warm one does next.
PURE.

A warm transfer is a second call, to a person, while the caller goes on talking with the
agent. One value decides it, whoever stores it first: the person has accepted, or why
nobody has.
"""

import msgspec

RETURNED = (
    "You tried to put the caller through, but {reason}. The caller is back with you: "
    "tell them in one sentence and ask how else you can help."
)
NOT_TAKEN = (
    "You tried to reach somebody for the caller, but {reason}. The caller is still "
    "with you: tell them in one sentence and ask how else you can help."
)
RINGING = (
    "The phone is ringing. The caller is still with you: tell them, and go on helping "
    "them. They are put through without another word as soon as the call is taken, "
    "and you are told if nobody takes it."
)
REASONS = {
    "busy": "the line is busy",
    "no-answer": "nobody answered",
    "canceled": "nobody took the call",
    "declined": "nobody took the call",
    "machine": "a machine answered",
    "left": "the person hung up before the caller was connected",
}
UNREACHABLE = (
    "the call could not be connected: that number cannot be reached at the moment"
)
"""For `failed`, and for a status that is not known. The person who is told needs no
code."""

ANSWER_SECONDS = 90.0
"""Longest time from the end of ringing to a decision: Twilio rings 5 s longer than it
is told, detects a machine in up to 30 s, says the whisper, and waits 10 s for a key."""

MEET_SECONDS = 5.0
"""A person who leaves the conference sooner after the caller was sent there has not
talked with the caller."""

WHISPER_CHARS = 500
"""Longest text of the agent for the person who answers: half a minute of speech."""


class FailedTransfer(msgspec.Struct, frozen=True):
    """A transfer that nobody answered. Stored in snapshots, and part of reports."""

    status: str
    """Twilio's `DialCallStatus`: `busy`, `no-answer`, `failed`, `canceled`. Of a warm
    transfer also `declined`, `machine`, and `left`: the person hung up before the
    caller was connected."""
    error_code: str = ""
    """Twilio's error code, such as 13214; empty if it gave none."""
    sip_code: str = ""
    """The response of the dialled SIP line, such as 486."""
    message: str = ""
    """Twilio's text, without numbers."""


class WarmTransfer(msgspec.Struct, frozen=True):
    """A warm transfer that is under way. Stored under `warm:{SID of the caller's
    call}`, so that any instance can go on with it."""

    id: str
    call_sid: str
    """The caller's call."""
    number: str
    began: float
    """Seconds since the epoch, by the registry's clock."""
    ring_seconds: int = 20
    whisper: str = ""
    accept: bool = False
    language: str = ""
    """Of the whisper."""
    leg: str = ""
    """SID of the person's call; empty until Twilio has named it."""

    @property
    def room(self) -> str:
        """Name of the conference. It contains nothing about a person."""
        return f"warm-{self.id}"

    @property
    def due(self) -> float:
        """When the transfer is given up, if nothing has decided it."""
        return self.began + self.ring_seconds + ANSWER_SECONDS


class WarmOutcome(msgspec.Struct, frozen=True):
    """How a warm transfer was decided."""

    failed: FailedTransfer | None = None
    """None: the person has accepted."""

    @property
    def accepted(self) -> bool:
        return self.failed is None


TIMED_OUT = WarmOutcome(FailedTransfer("no-answer"))
"""The outcome of a transfer that is due, and about which Twilio has said nothing."""


LEFT = FailedTransfer("left")


def instruction(status: str, *, stayed: bool = False) -> str:
    """What the agent is told when nobody has taken the call. `stayed`: the caller has
    not left the agent."""
    text = NOT_TAKEN if stayed else RETURNED
    return text.format(reason=REASONS.get(status, UNREACHABLE))


def outcome_of_leg(
    status: str, error_code: str = "", sip_code: str = ""
) -> WarmOutcome:
    """The outcome, if the person's call ends and nothing was decided before."""
    # The call was answered, and ended without a key, or during the whisper.
    status = "declined" if status == "completed" else status
    return WarmOutcome(FailedTransfer(status, error_code, sip_code))


def has_met(joined_at: float | None, now: float) -> bool:
    """The caller and the person have talked in the conference, which has ended. Seconds
    since the epoch; `joined_at` None: the time is not known any more."""
    return joined_at is None or now - joined_at >= MEET_SECONDS


def whisper_of(summary: str, whisper: str, default: str) -> str:
    """What the person who answers hears: the agent's summary of the call, then the
    operator's text, or else `default`."""
    shown = "".join(it if it.isprintable() else " " for it in summary)
    parts = (shown[:WHISPER_CHARS].strip(), whisper or default)
    return " ".join(it for it in parts if it)
