"""Both registries, and a clock that the test moves."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest

from bridge.fleet import InstanceLoad, Registry
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.redis import RedisRegistry, redis_registry
from tests.fleet.redis_server import RedisServer


class Clock:
    """The clock of a memory registry; with a Redis, its values get older instead, and
    so does what the instance knows of them."""

    def __init__(
        self, server: RedisServer | None = None, registry: RedisRegistry | None = None
    ) -> None:
        self.now = 1000.0
        self._server = server
        self._registry = registry

    def __call__(self) -> float:
        return self.now

    def pass_on(self, seconds: float) -> None:
        self.now += seconds
        if self._server:
            self._server.let_pass(seconds)
        if self._registry:
            kept = self._registry._written._kept
            for key, value in kept.items():
                kept[key] = replace(value, until=value.until - seconds)


@dataclass
class Place:
    registry: Registry
    clock: Clock


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for all tests of a module that do not stop it."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "redis"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    if request.param == "memory":
        clock = Clock()
        yield Place(MemoryRegistry(clock), clock)
        return
    server: RedisServer = request.getfixturevalue("running")
    server.client.flushall()
    async with redis_registry(server.url, lambda: InstanceLoad(1, 0)) as registry:
        yield Place(registry, Clock(server, registry))


@pytest.fixture
def registry(place: Place) -> Registry:
    return place.registry


@pytest.fixture
def clock(place: Place) -> Clock:
    return place.clock
