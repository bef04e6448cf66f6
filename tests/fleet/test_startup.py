"""Which registry an instance opens with."""

from agents.realtime import RealtimeAgent

from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.redis import RedisRegistry
from tests.fleet.redis_server import RedisServer

CREW = UserCode(RealtimeAgent(name="plain", instructions="You are a test."))


async def test_an_instance_of_its_own_is_alone() -> None:
    """Without a Redis nothing is missed."""
    async with start_services(Settings(), CREW, "ws://127.0.0.1:9") as services:
        assert isinstance(services.registry, MemoryRegistry)
        assert services.metrics.registry.get_sample_value("bridge_registry_up") == 1


async def test_an_instance_of_a_fleet_shares(server: RedisServer) -> None:
    """An operator sees in the metrics whether it does; calls are taken either way."""
    settings = Settings(redis_url=server.url, max_calls=1)
    async with start_services(settings, CREW, "ws://127.0.0.1:9") as services:
        assert isinstance(services.registry, RedisRegistry)
        assert services.metrics.registry.get_sample_value("bridge_registry_up") == 1
        services.capacity.streams = 1
        assert not await services.registry.room()
    server.stop()
    async with start_services(settings, CREW, "ws://127.0.0.1:9") as services:
        assert services.metrics.registry.get_sample_value("bridge_registry_up") == 0
        assert await services.registry.room()
