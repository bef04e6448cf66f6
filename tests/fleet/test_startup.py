"""The registry that an instance starts with."""

from agents.realtime import RealtimeAgent

from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.redis import RedisRegistry
from bridge.telemetry.metrics import REDIS_KEYS
from tests.fleet.redis_server import RedisServer

USER_CODE = UserCode(RealtimeAgent(name="plain", instructions="You are a test."))


async def test_an_instance_without_redis() -> None:
    """An instance without Redis works and reports its registry as up."""
    async with start_services(Settings(), USER_CODE, "ws://127.0.0.1:9") as services:
        assert isinstance(services.registry, MemoryRegistry)
        assert services.metrics.registry.get_sample_value("bridge_registry_up") == 1


async def test_an_instance_with_redis(server: RedisServer) -> None:
    """The metrics say whether Redis is reached; calls are taken in both cases."""
    settings = Settings(redis_url=server.url, max_calls=1)
    async with start_services(settings, USER_CODE, "ws://127.0.0.1:9") as services:
        assert isinstance(services.registry, RedisRegistry)
        assert services.metrics.registry.get_sample_value("bridge_registry_up") == 1
        services.capacity.streams = 1
        assert not await services.registry.room()
    server.stop()
    async with start_services(settings, USER_CODE, "ws://127.0.0.1:9") as services:
        assert services.metrics.registry.get_sample_value("bridge_registry_up") == 0
        assert await services.registry.room()


async def test_a_foreign_key_is_counted(server: RedisServer) -> None:
    """An operator sees in the metrics that something else writes under our names."""
    server.client.rpush("bridge:next:CA1", "x")
    settings = Settings(redis_url=server.url)
    async with start_services(settings, USER_CODE, "ws://127.0.0.1:9") as services:
        assert await services.registry.next_step("CA1") is None
        value = services.metrics.registry.get_sample_value
        counted = {
            it: value("bridge_redis_keys_ignored_total", {"key": it})
            for it in REDIS_KEYS
        }
    assert counted == dict.fromkeys(REDIS_KEYS, 0.0) | {"next": 1.0}
