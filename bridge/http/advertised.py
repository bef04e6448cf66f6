"""The origin at which the other instances of the fleet reach this one.

They read the events of its calls there (api/event_relay.py). All instances may have the
same name (a service of docker compose), so the name of the machine is not used.
"""

import asyncio
import socket
from urllib.parse import urlsplit

from bridge.app.settings import Settings
from bridge.app.values import is_loopback

DEFAULT_REDIS_PORT = 6379

EVERY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not listened on


async def address(settings: Settings, port: int) -> str | None:
    """BRIDGE_ADVERTISE_URL. Without it, the address on which this instance listens; if
    it listens on all, the one from which it reaches Redis. None: it is not known."""
    if settings.advertise_url:
        return settings.advertise_url.rstrip("/")
    host: str | None = settings.host
    if host in EVERY_ADDRESS:
        host = await _address_towards_redis(settings)
    if host is None:
        return None
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _address_towards_redis(settings: Settings) -> str | None:
    if settings.redis_url is None:
        return None
    url = urlsplit(settings.redis_url.get_secret_value())
    host = url.hostname
    if host is None or is_loopback(host):
        return "127.0.0.1"  # a socket of this machine, as in `unix:///...`
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host, url.port or DEFAULT_REDIS_PORT, type=socket.SOCK_DGRAM
        )
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            # Sends nothing: a UDP socket only learns which own address it would use.
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return None
