"""What the caller does in a call: a script is a sequence of these steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

KEYS = frozenset("0123456789*#ABCD")


@dataclass(frozen=True, slots=True)
class SayStep:
    """Speak the audio (mu-law, 8 kHz) to its end; agent audio does not stop it."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class WaitStep:
    """Say and do nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ListenStep:
    """Hear the agent out: until it has been heard and then silent for so long.

    Give up after `timeout`; that is noted in the record.
    """

    quiet_seconds: float = 0.8
    timeout: float = 20.0


@dataclass(frozen=True, slots=True)
class HearStep:
    """Listen to so many ms of agent audio, to interrupt in mid-sentence."""

    ms: float
    timeout: float = 20.0


@dataclass(frozen=True, slots=True)
class PressStep:
    """Press keys, one after the other."""

    digits: str
    gap_seconds: float = 0.2

    def __post_init__(self) -> None:
        if not KEYS.issuperset(self.digits):
            raise ValueError(f"no such key on a telephone: {self.digits!r}")


@dataclass(frozen=True, slots=True)
class HangUpStep:
    """End the call: Twilio sends `stop` and closes the socket."""


@dataclass(frozen=True, slots=True)
class DropStep:
    """Lose the TCP connection: neither `stop` nor a close frame.

    - `reset`: the bridge is told by a TCP reset.
    - `silence`: nothing passes any more, either way; the bridge sees a socket on which
      nothing comes, until the call is over.

    When Twilio asks what follows is up to `Caller.notice_seconds`.
    """

    how: Literal["reset", "silence"] = "reset"


@dataclass(frozen=True, slots=True)
class SendStep:
    """Send a raw text message in Twilio's place, odd or hostile."""

    text: str


@dataclass(frozen=True, slots=True)
class GapStep:
    """Send no frames for so long while the media clock goes on.

    - `dtx`: a silence nobody transmits (lasts until it is over; chunks go on).
    - `loss`: frames lost, with what is said meanwhile (runs beside the next steps;
      chunk numbers jump).
    - `late`: a stalled network; all comes in a burst afterwards, nothing is lost (runs
      beside the next steps).
    """

    ms: float
    mode: Literal["dtx", "loss", "late"] = "dtx"


Step = (
    SayStep
    | WaitStep
    | ListenStep
    | HearStep
    | PressStep
    | HangUpStep
    | DropStep
    | SendStep
    | GapStep
)
Script = Sequence[Step]
