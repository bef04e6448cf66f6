"""The address at which other instances read the events of this one's calls."""

import ipaddress
from typing import Any

import pytest
from pydantic import SecretStr

from bridge.app.settings import Settings
from bridge.http.advertised import address


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"advertise_url": "https://b1.example:8443/"}, "https://b1.example:8443"),
        ({"host": "10.1.2.3"}, "http://10.1.2.3:8080"),
        ({"host": "fd00::1"}, "http://[fd00::1]:8080"),
        (
            {"host": "127.0.0.1", "redis_url": "redis://10.1.2.3"},
            "http://127.0.0.1:8080",
        ),
        ({"redis_url": "redis://localhost:6379/0"}, "http://127.0.0.1:8080"),
        ({"redis_url": "unix:///run/redis.sock"}, "http://127.0.0.1:8080"),
        ({"redis_url": "redis://no-such-host.invalid"}, None),
        ({}, None),
    ],
)
async def test_what_is_advertised(given: dict[str, Any], found: str | None) -> None:
    """The setting; else the address that is listened on; else the one towards Redis."""
    if url := given.get("redis_url"):
        given = {**given, "redis_url": SecretStr(url)}

    assert await address(Settings(**{"host": "0.0.0.0", **given}), 8080) == found


async def test_the_own_address_is_found_by_the_way_to_redis() -> None:
    """A container has several addresses, and no name of its own. (127.0.0.2 counts as
    another machine here: it is not recognised as this one by its name.)"""
    settings = Settings(
        host="::", redis_url=SecretStr("redis://[::ffff:127.0.0.2]:6379")
    )
    found = await address(settings, 8080)

    assert found is not None
    host = found.removeprefix("http://").rpartition(":")[0].strip("[]")
    ip = ipaddress.ip_address(host)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else ip
    assert mapped is not None and mapped.is_loopback
