"""The calls of the fake REST API, and the people and machines that they reach."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from bridge.sim.caller import PlacedCall
from bridge.sim.twilio.record import CallRecord, WebhookRequest
from bridge.sim.twilio.steps import SayStep, Script, WaitStep

Status = Literal[
    "queued",
    "initiated",
    "ringing",
    "in-progress",
    "completed",
    "busy",
    "no-answer",
    "failed",
    "canceled",
]


def _tone(seconds: float) -> bytes:
    """A loud 1 kHz tone as mu-law: eight samples per period."""
    wave = bytes([0xFF, 0x91, 0x8B, 0x91, 0xFF, 0x11, 0x0B, 0x11])
    return wave * round(seconds * 1000)


BEEP = _tone(0.5)


@dataclass(frozen=True, slots=True)
class Answers:
    """A person answers after `after` seconds.

    `answered_by` is the result of machine detection, `detected_after` (seconds) its
    time.
    """

    script: Script
    after: float = 0.1
    presses: str = ""
    """The key that the person presses at a <Gather>."""
    answered_by: Literal["human", "unknown", "fax"] = "human"
    detected_after: float = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine answers, plays `greeting` and `beep` (b"": no beep) and records for
    `records_seconds`."""

    greeting: bytes
    after: float = 0.1
    beep: bytes = BEEP
    records_seconds: float = 60.0

    @property
    def script(self) -> Script:
        spoken = [SayStep(self.greeting), SayStep(self.beep)]
        return [*spoken, WaitStep(self.records_seconds)]


@dataclass(frozen=True, slots=True)
class Unreached:
    """No answer; `status` is known after `after` seconds. `sip_code` and `error_code`
    say why, if the network or Twilio does."""

    status: Literal["busy", "no-answer", "failed"]
    after: float = 0.1
    sip_code: int | None = None
    error_code: int | None = None

    @property
    def reason(self) -> dict[str, str]:
        """The parameters of the last status callback that give the reason."""
        codes = {"SipResponseCode": self.sip_code, "ErrorCode": self.error_code}
        return {name: str(code) for name, code in codes.items() if code is not None}


Callee = Answers | Machine | Unreached


@dataclass(slots=True)
class FakeCall:
    """One call of the account, from its creation on."""

    sid: str
    asked: dict[str, str]  # request parameters that are not lists
    events: Sequence[str]
    created_at: datetime
    status: Status = "queued"
    answered_by: str | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    record: CallRecord | None = None  # of an answered call
    # of status and of machine detection
    callbacks: list[WebhookRequest] = field(default_factory=list)
    placed: PlacedCall | None = None
    canceled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last status callback has been answered."""
    pending_callbacks: "asyncio.Queue[dict[str, str] | None]" = field(
        default_factory=asyncio.Queue
    )
    sequence: int = 0
    reason: dict[str, str] = field(default_factory=dict)
    """Parameters of the last status callback that say why the call failed."""

    @property
    def is_active(self) -> bool:
        return self.status in ("queued", "initiated", "ringing", "in-progress")

    @property
    def talked_seconds(self) -> float:
        if self.answered_at is None or self.ended_at is None:
            return 0.0
        return (self.ended_at - self.answered_at).total_seconds()


def detection(asked: Mapping[str, str], callee: Answers | Machine) -> tuple[str, float]:
    """The result of machine detection, and its time in seconds after the answer."""
    limit = float(asked.get("MachineDetectionTimeout", 30))
    if isinstance(callee, Answers):
        said, seconds = str(callee.answered_by), callee.detected_after
    else:
        spoken, beep = len(callee.greeting) / 8000, len(callee.beep) / 8000
        if asked["MachineDetection"] == "DetectMessageEnd":
            silence = int(asked.get("MachineDetectionSilenceTimeout", 5000)) / 1000
            said = "machine_end_beep" if callee.beep else "machine_end_silence"
            seconds = spoken + (beep if callee.beep else silence)
        else:
            said = "machine_start"
            threshold = int(asked.get("MachineDetectionSpeechThreshold", 2400)) / 1000
            seconds = min(spoken, threshold)
    return (said, seconds) if seconds <= limit else ("unknown", limit)
