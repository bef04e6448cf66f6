"""The fixture of a Redis for one test. A pytest plugin (tests/conftest.py)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis for one test."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
