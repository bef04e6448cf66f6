"""The steps of a caller's script."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

KEYS = frozenset("0123456789*#ABCD")


@dataclass(frozen=True, slots=True)
class SayStep:
    """Speak the whole audio (mu-law, 8 kHz); the agent's audio does not stop it."""

    audio: bytes


@dataclass(frozen=True, slots=True)
class WaitStep:
    """Be silent for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ListenStep:
    """Listen until the agent has spoken and has then been silent for `quiet_seconds`.

    After `timeout` seconds the step gives up, which is recorded.
    """

    quiet_seconds: float = 0.8
    timeout: float = 20.0


@dataclass(frozen=True, slots=True)
class HearStep:
    """Listen until `ms` of agent audio were heard, to interrupt in mid-sentence."""

    ms: float
    timeout: float = 20.0


@dataclass(frozen=True, slots=True)
class PressStep:
    """Press keys in order."""

    digits: str
    gap_seconds: float = 0.2

    def __post_init__(self) -> None:
        if not KEYS.issuperset(self.digits):
            raise ValueError(f"not a key of a telephone: {self.digits!r}")


@dataclass(frozen=True, slots=True)
class HangUpStep:
    """End the call: Twilio sends `stop` and closes the WebSocket."""


@dataclass(frozen=True, slots=True)
class DropStep:
    """Lose the TCP connection without a `stop` and without a close frame.

    - `reset`: the bridge gets a TCP reset.
    - `silence`: nothing passes in either direction; the bridge sees an open but silent
      socket until the call is over.

    Twilio requests the next document after `Caller.notice_seconds`.
    """

    how: Literal["reset", "silence"] = "reset"


@dataclass(frozen=True, slots=True)
class SendStep:
    """Send a raw text message in Twilio's place, for invalid or hostile input."""

    text: str


@dataclass(frozen=True, slots=True)
class GapStep:
    """Send no frames for `ms` while the media clock continues.

    - `dtx`: silence that is not transmitted (the step lasts until the gap is over;
      chunk numbers have no hole).
    - `loss`: frames and the speech in them are lost (the next steps run during the gap;
      chunk numbers jump).
    - `late`: the network stalls; all frames arrive in a burst afterwards, none is lost
      (the next steps run during the gap).
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
