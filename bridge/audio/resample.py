"""Resampling of streams, 8 kHz <-> 24 kHz. Linear phase; the result does not depend on
how a stream is cut into pieces.

One low-pass serves both directions: flat to 3.4 kHz (the telephone's band), blocking
from 4 kHz on. May not know what the samples mean, nor how they are coded.
"""

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]
Exact = NDArray[np.float64]

RATIO = 3
"""24 kHz to 8 kHz."""

DELAY = 36
"""Samples at 8 kHz (4.5 ms), in each direction: to compute a sample, this much of the
input after it must be known. The output comes later by this time but is not shifted:
sample n at 8 kHz is sample 3 n at 24 kHz, and `flush` returns the rest."""

_HALF = DELAY * RATIO
_CUTOFF_HZ = 3700
_KAISER_BETA = 8.5
"""With this length: 85 dB from 3.4 to 4 kHz."""

_GRAIN = 2.0**24
"""Taps are whole multiples of 1/_GRAIN, so that every sum is exact in float64 in any
order of addition: the order depends on where a stream is cut."""


def _low_pass() -> Exact:
    """Taps at 24 kHz, from -_HALF to _HALF; their sum is one."""
    cycles = 2 * _CUTOFF_HZ / (8000 * RATIO)
    ideal = np.sinc(np.arange(-_HALF, _HALF + 1) * cycles)
    taps = ideal * np.kaiser(2 * _HALF + 1, _KAISER_BETA)
    return np.asarray(np.rint(taps / taps.sum() * _GRAIN) / _GRAIN)


_TAPS = _low_pass()
# For each of the three samples made from one at 8 kHz: the weights of that sample and
# its neighbours.
_UP = [
    RATIO * np.pad(_TAPS, (0, RATIO - 1))[phase::RATIO][::-1] for phase in range(RATIO)
]
# The filter around a sample, ending _HALF after it, split into three phases of equal
# length.
_WINDOW = np.pad(_TAPS, (RATIO - 1, 0))
_DOWN = [_WINDOW[phase::RATIO] for phase in range(RATIO)]
_BEFORE_UP = np.zeros(DELAY)
_BEFORE_DOWN = np.zeros(len(_WINDOW) - 1 - _HALF)


class Upsampler:
    """8 kHz in, 24 kHz out: three samples for each."""

    def __init__(self) -> None:
        self._kept: Exact = _BEFORE_UP

    def feed(self, samples: Samples) -> Samples:
        """The output that is known by now: DELAY behind the input, possibly empty."""
        held = _joined(self._kept, samples)
        count = len(held) - 2 * DELAY
        if count <= 0:
            self._kept = held
            return np.zeros(0, np.int16)
        self._kept = held[count:].copy()
        made = np.empty((count, RATIO))
        for phase, taps in enumerate(_UP):
            made[:, phase] = np.correlate(held, taps)
        return _rounded(made.ravel())

    def flush(self) -> Samples:
        """Returns the rest of a stream: its whole output is 3 x as long as its input. A
        new stream may follow."""
        rest = self.feed(np.zeros(DELAY, np.int16))
        self._kept = _BEFORE_UP
        return rest


class Downsampler:
    """24 kHz in, 8 kHz out: one sample for each complete group of three, so the output
    never lasts longer than the input."""

    def __init__(self) -> None:
        self._kept: Exact = _BEFORE_DOWN

    def feed(self, samples: Samples) -> Samples:
        """The output that is known by now: 3 x DELAY behind the input, possibly
        empty."""
        held = _joined(self._kept, samples)
        count = (len(held) - len(_WINDOW)) // RATIO + 1
        if count <= 0:
            self._kept = held
            return np.zeros(0, np.int16)
        self._kept = held[count * RATIO :].copy()
        made = np.zeros(count)
        for phase, taps in enumerate(_DOWN):
            made += np.correlate(held[phase::RATIO], taps)[:count]
        return _rounded(made)

    def flush(self) -> Samples:
        """Returns the rest of a stream: its whole output is a third as long as its
        input. A new stream may follow."""
        # An incomplete group of three at the end gives no sample.
        rest = self.feed(np.zeros(_HALF - (RATIO - 1), np.int16))
        self._kept = _BEFORE_DOWN
        return rest


def _joined(kept: Exact, samples: Samples) -> Exact:
    return np.concatenate((kept, samples), dtype=np.float64)


def _rounded(made: Exact) -> Samples:
    return np.clip(np.rint(made), -32768, 32767).astype(np.int16)
