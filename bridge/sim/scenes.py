"""The input of `bridge sim accuracy`: scenes, networks, and the caller's script.

Values only; randomness comes from a given `Random`. No clock, no I/O.
"""

import audioop
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np

from bridge.sim.realtime.turns import Behaviour, PlayRuler
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.steps import (
    HangUpStep,
    HearStep,
    ListenStep,
    SayStep,
    Step,
    WaitStep,
)

SPEECH_SECONDS = 0.6
FIRST_SPEECH = (0.2, 0.6)  # s after the stream has opened; random, so calls differ
SOONEST = 0.2  # s from an answer's first sound to the caller's speech
LEFT = 0.3  # s of an answer that must still follow when the speech arrives
QUIET = 0.8  # s of silence after a whole answer, in addition to the model's pause
ANSWER_TIMEOUT = 20.0  # s a caller waits for an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A way in which the model answers; all answers of a call have the same items."""

    name: str
    items_ms: tuple[int, ...] = (6000,)
    speed: float = 4.0
    delta_ms: int = 200
    first_delta_ms: int | None = None
    stall_seconds: float = 0.0
    stall_after: tuple[float, float] = (0.0, 0.0)  # s of audio; drawn per call
    late_deltas: int = 0
    late_item: bool = False

    @property
    def seconds(self) -> float:
        """Audio of an answer."""
        return sum(self.items_ms) / 1000

    def behaviour(self, random: Random) -> Behaviour:
        """The behaviour of one call's model."""
        stall = None
        if self.stall_seconds:
            stall = (random.uniform(*self.stall_after), self.stall_seconds)
        return Behaviour(
            fallback=[PlayRuler(ms) for ms in self.items_ms],
            speed=self.speed,
            delta_ms=self.delta_ms,
            first_delta_ms=self.first_delta_ms,
            stall=stall,
            late_deltas=self.late_deltas,
            late_item=self.late_item,
        )


SCENES = (
    Scene(name="plain"),
    # If the model pauses early, the caller's queue runs empty. If it pauses late, the
    # rest comes at about the moment when the queue is empty.
    Scene(name="stall", stall_seconds=1.5, stall_after=(0.5, 2.2)),
    Scene(name="preamble", items_ms=(2000, 4000)),
    Scene(name="big chunks", delta_ms=500),
    Scene(name="tiny first delta", first_delta_ms=20),
    # Slower than the others: only a response in progress can be cancelled.
    Scene(name="late deltas", speed=2.0, late_deltas=6, late_item=True),
)

NETWORKS = (
    Network(),
    Network(up_ms=60, down_ms=60, jitter_ms=30),
    Network(up_ms=120, down_ms=80, jitter_ms=60),
)

STOPS = ((0.004, 300), (0.002, 1000), (0.002, 2000))
"""Chance that a message is lost, and ms until it was sent again."""


def lossy(
    up_loss: float, up_stop_ms: float, down_loss: float, down_stop_ms: float
) -> Network:
    """The second of NETWORKS, which loses messages."""
    return replace(
        NETWORKS[1],
        up_loss=up_loss,
        up_stop_ms=up_stop_ms,
        down_loss=down_loss,
        down_stop_ms=down_stop_ms,
    )


LOSSY_NETWORKS = (
    *(lossy(loss, ms, 0, 0) for loss, ms in STOPS),
    *(lossy(0, 0, loss, ms) for loss, ms in STOPS),
)
"""Networks that stop, each in one direction."""


def label(network: Network) -> str:
    """up/down/jitter in ms, and the stops of each direction."""
    text = f"{network.up_ms:g}/{network.down_ms:g}/{network.jitter_ms:g}"
    if network.up_loss:
        text += f" up {network.up_loss:.1%} {network.up_stop_ms:g}"
    if network.down_loss:
        text += f" down {network.down_loss:.1%} {network.down_stop_ms:g}"
    return text


def script(
    scene: Scene,
    behaviour: Behaviour,
    network: Network,
    interruptions: int,
    random: Random,
) -> Iterator[Step]:
    """A caller who interrupts `interruptions` answers and hears the last one to its
    end.

    Interruptions are evenly distributed in time, not in audio: a pause of the model is
    as likely to be interrupted as its speech. Each is early enough to cut something.
    """
    round_trip = (network.up_ms + network.down_ms + 2 * network.jitter_ms) / 1000
    stop = network.longest_stop_ms / 1000
    latest = scene.seconds + hole(behaviour) - LEFT - round_trip - stop
    yield WaitStep(random.uniform(*FIRST_SPEECH))
    for _ in range(interruptions):
        yield SayStep(burst())
        yield HearStep(1, ANSWER_TIMEOUT)
        yield WaitStep(random.uniform(SOONEST, max(SOONEST, latest)))
    yield SayStep(burst())
    answer = scene.seconds + scene.stall_seconds
    quiet = QUIET + scene.stall_seconds + stop
    yield ListenStep(quiet, ANSWER_TIMEOUT + answer + stop)
    yield HangUpStep()


def hole(behaviour: Behaviour) -> float:
    """Seconds of silence that a stall causes in the answer."""
    if behaviour.stall is None:
        return 0.0
    after, pause = behaviour.stall
    return max(0.0, pause - after * (1 - 1 / behaviour.speed))


@lru_cache(maxsize=1)
def burst() -> bytes:
    """A voiced sound that a VAD takes for one turn: mu-law, loud from its start."""
    t = np.arange(int(SPEECH_SECONDS * 8000)) / 8000
    sound = sum(np.sin(2 * np.pi * 150 * n * t) / n for n in (1, 2, 3, 5, 8))
    edge = np.minimum(1, np.minimum(t, t[::-1]) / 0.01)
    samples = np.asarray(sound * edge * 5000, np.float64).astype("<i2")
    return audioop.lin2ulaw(samples.tobytes(), 2)
