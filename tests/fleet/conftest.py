"""A registry with a clock that the test sets."""

import pytest

from bridge.fleet import Registry
from bridge.fleet.memory import MemoryRegistry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return MemoryRegistry(clock)
