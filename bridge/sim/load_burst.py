"""A burst of short calls, beside the calls of a load."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from bridge.sim.ruler import ruler
from bridge.sim.twilio import steps

MAX_SPEECH_MS = 1000
_FORM = re.compile(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Burst:
    """`per_second` new calls a second for `seconds`, each of `call_seconds`."""

    per_second: float
    seconds: float
    call_seconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """`50x10x2`: 50 new calls a second for 10 s, each of 2 s."""
        form = _FORM.fullmatch(text)
        burst = cls(*map(float, form.groups())) if form else None
        if burst is None or not burst.per_second or not burst.call_seconds:
            raise ValueError(
                f"{text!r} is no burst: calls a second x seconds x seconds of a call, "
                "such as 50x10x2"
            )
        return burst

    @property
    def calls(self) -> int:
        return max(1, round(self.per_second * self.seconds))

    @property
    def total_seconds(self) -> float:
        """From the first call to the end of the last one."""
        return self.seconds + self.call_seconds

    def starts_at(self, index: int) -> float:
        return index / self.per_second

    def script(self, number: int) -> Sequence[steps.Step]:
        """The caller speaks at once: the speech has the call's number."""
        speech_ms = min(MAX_SPEECH_MS, round(500 * self.call_seconds))
        rest = self.call_seconds - speech_ms / 1000
        speech = steps.SayStep(ruler(number, speech_ms))
        return [speech, steps.WaitStep(rest), steps.HangUpStep()]

    def __str__(self) -> str:
        return (
            f"{self.calls} calls: {self.per_second:g} a second for {self.seconds:g} s, "
            f"each of {self.call_seconds:g} s"
        )
