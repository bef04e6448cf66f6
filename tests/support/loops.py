"""A pytest plugin: the event loops on which the async tests run.

`bridge serve` runs on uvloop where it is installed, and else on asyncio. The transports
of the two differ in what they raise, buffer and call. A test with the marker
`both_loops` runs on both loops, any other test on that of `--event-loop`
(`make test LOOP=uvloop`).

Their time is simulated (simulated_time.py), except that of tests with a Redis of their
own and of tests with the marker `real_time`.
"""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.support.simulated_time import SimulatedLoop, SimulatedUvloop

SIMULATED: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": SimulatedLoop,
    "uvloop": SimulatedUvloop,
}

REAL: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


REDIS = {"server", "running", "place"}
"""Fixtures of a Redis, which has real time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--event-loop",
        choices=[*REAL],
        default="asyncio",
        help="the event loop of tests that do not run on both",
    )


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    is_real = item.get_closest_marker("real_time") or REDIS & set(item.fixturenames)
    loops = REAL if is_real else SIMULATED
    if item.get_closest_marker("both_loops"):
        return loops
    name = config.getoption("--event-loop")
    return {name: loops[name]}
