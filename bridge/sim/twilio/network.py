"""The network between Twilio and the bridge: delay, jitter, stops. Order is kept.

Pure and repeatable: the caller passes `now`, and a seed determines all randomness. TCP
never reorders, so no message overtakes an earlier one. If a packet is lost, TCP stops
until the packet was sent again: that message and all behind it arrive later, at once.
"""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Network:
    """One-way delays in ms. Each message waits up to `jitter_ms` longer (uniform).

    With a chance of `up_loss` or `down_loss` (0 to 1), a message is lost at first: it
    and all behind it wait `up_stop_ms` or `down_stop_ms` longer.
    """

    up_ms: float = 0
    down_ms: float = 0
    jitter_ms: float = 0
    seed: int = 0
    up_loss: float = 0
    up_stop_ms: float = 0
    down_loss: float = 0
    down_stop_ms: float = 0

    @property
    def longest_stop_ms(self) -> float:
        stops = (self.up_loss, self.up_stop_ms), (self.down_loss, self.down_stop_ms)
        return max(ms if loss else 0 for loss, ms in stops)

    def up(self, stream: int = 0) -> "NetworkLink":
        """The link from Twilio to the bridge for the nth stream of the call."""
        seed = f"{self.seed} up {stream}"
        loss, stop_ms = self.up_loss, self.up_stop_ms
        return NetworkLink(self.up_ms, self.jitter_ms, seed, loss, stop_ms)

    def down(self, stream: int = 0) -> "NetworkLink":
        seed = f"{self.seed} down {stream}"
        loss, stop_ms = self.down_loss, self.down_stop_ms
        return NetworkLink(self.down_ms, self.jitter_ms, seed, loss, stop_ms)


class NetworkLink:
    """One direction of one socket: computes when each message arrives."""

    def __init__(
        self,
        delay_ms: float,
        jitter_ms: float,
        seed: str,
        loss: float = 0,
        stop_ms: float = 0,
    ) -> None:
        self._delay = delay_ms / 1000
        self._jitter = jitter_ms / 1000
        self._loss = loss
        self._stop = stop_ms / 1000
        self._random = Random(seed)
        self._losses = Random(f"{seed} losses")
        """Apart from `_random`: the same seed gives the same jitter with losses."""
        self._last = 0.0

    def arrival(self, now: float) -> float:
        """The time at which a message sent at `now` arrives."""
        at = now + self._delay
        if self._jitter:
            at += self._random.uniform(0, self._jitter)
        if self._loss and self._losses.random() < self._loss:
            at += self._stop
        self._last = max(self._last, at)
        return self._last

    def hold(self, until: float) -> None:
        """Deliver no message sent from now on before `until`: a stall, then a burst."""
        self._last = max(self._last, until)
