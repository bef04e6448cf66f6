"""The network between Twilio and the bridge: delay and jitter; order is always kept.

Pure and repeatable: the caller passes `now`, and a seed determines all randomness. TCP
never reorders, so no message overtakes an earlier one.
"""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Network:
    """One-way delays in ms. Each message waits up to `jitter_ms` longer (uniform)."""

    up_ms: float = 0
    down_ms: float = 0
    jitter_ms: float = 0
    seed: int = 0

    def up(self, stream: int = 0) -> "NetworkLink":
        """The link from Twilio to the bridge for the nth stream of the call."""
        return NetworkLink(self.up_ms, self.jitter_ms, f"{self.seed} up {stream}")

    def down(self, stream: int = 0) -> "NetworkLink":
        return NetworkLink(self.down_ms, self.jitter_ms, f"{self.seed} down {stream}")


class NetworkLink:
    """One direction of one socket: computes when each message arrives."""

    def __init__(self, delay_ms: float, jitter_ms: float, seed: str) -> None:
        self._delay = delay_ms / 1000
        self._jitter = jitter_ms / 1000
        self._random = Random(seed)
        self._last = 0.0

    def arrival(self, now: float) -> float:
        """The time at which a message sent at `now` arrives."""
        at = now + self._delay
        if self._jitter:
            at += self._random.uniform(0, self._jitter)
        self._last = max(self._last, at)
        return self._last

    def hold(self, until: float) -> None:
        """Deliver no message sent from now on before `until`: a stall, then a burst."""
        self._last = max(self._last, until)
