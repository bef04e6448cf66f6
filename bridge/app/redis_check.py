"""`bridge check` asks the Redis of BRIDGE_REDIS_URL whether the bridges can use it.

It reads, and deletes a key that does not exist, which a Redis that takes no writes
refuses. No message has a part of the URL but its address.
"""

import asyncio
import re
import secrets
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bridge.app.resolving import NoResolver, NotResolved, resolve
from bridge.app.settings import Finding
from bridge.fleet.redis_address import redis_address
from bridge.fleet.redis_client import (
    FAILURES,
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
    redis_client,
)

SECONDS = 5.0
"""For the whole check."""

OLDEST, TESTED = (5, 0), (7, 0)
"""Versions: in an older one the scripts of the bridge fail; the tests have run."""

NAME = "BRIDGE_REDIS_URL"


async def check_redis(url: str) -> list[Finding]:
    """What is wrong with it, and one line if it answers."""
    if missing := list(_unreadable_files(url)):
        return missing
    place, parts = redis_address(url), urlsplit(url)
    client = redis_client(url, SECONDS)
    try:
        async with asyncio.timeout(SECONDS):
            if parts.hostname:
                await resolve(parts.hostname, parts.port or 6379)
            info: Mapping[str, Any] = await client.info()
            await client.delete(f"bridge:check:{secrets.token_hex(8)}")
    except (NotResolved, NoResolver):
        text = f"names {place}, and this name has no address here"
        fix = "correct the name; in a container it is the name of the service"
        return [Finding("error", NAME, text, fix)]
    except FAILURES as error:
        text, fix = _failure(error, place)
        if parts.scheme == "rediss" and isinstance(error, TimeoutError):
            fix += "; a Redis without TLS answers nothing: write redis:// for it"
        return [Finding("error", NAME, text, fix)]
    finally:
        await client.aclose()
    return list(of_info(info, place))


def of_info(info: Mapping[str, Any], place: str) -> Iterator[Finding]:
    """What INFO tells of a Redis that answers."""
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(it) for it in re.findall(r"\d+", version)[:2])
    name = f"Redis {version} at {place}"
    if numbers < OLDEST:
        text = f"is {name}, which is too old for the scripts of the bridge"
        yield Finding("error", NAME, text, "use Redis 7 or newer, or Valkey")
    elif numbers < TESTED:
        text = f"is {name}, and the bridge is tested with 7 and newer"
        yield Finding("warning", NAME, text, "use Redis 7 or newer, or Valkey")
    else:
        yield Finding("ok", f"{NAME} answers", f"as {name}")
    if str(info.get("cluster_enabled", "0")) == "1":
        text = "is a Redis Cluster, where scripts with several keys fail"
        yield Finding("error", NAME, text, "use one primary")
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        text = f"has maxmemory-policy {policy}: when it is full, data of calls are lost"
        yield Finding("warning", NAME, text, "set maxmemory-policy to noeviction")


def _unreadable_files(url: str) -> Iterator[Finding]:
    """Files of TLS that the URL names."""
    for name, path in parse_qsl(urlsplit(url).query):
        if name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            try:
                Path(path).read_bytes()
            except OSError as error:
                text = f"has {name}, a file that cannot be read ({error.strerror})"
                fix = "correct the path, or let the user of the bridge read the file"
                yield Finding("error", NAME, text, fix)


_ANSWERS: tuple[tuple[type[BaseException], str, str, str], ...] = (
    (AuthenticationError, "", "refuses the password", "correct user and password"),
    (
        *(NoPermissionError, "", "does not let this user run the commands of a bridge"),
        "give the user of the URL all commands on bridge:* and +info (ACL)",
    ),
    (
        *(ReadOnlyError, "", "is a read-only replica, but bridges write"),
        "name the primary",
    ),
    (BusyLoadingError, "", "is still loading its data", "wait, then check again"),
    (
        ResponseError,
        "NOAUTH",
        "wants a password",
        "write redis://:PASSWORD@host:port/0",
    ),
    (
        *(ResponseError, "DB index", "has no database of that number"),
        "write /0 at the end, or raise `databases` in redis.conf",
    ),
    (
        *(ResponseError, "MISCONF", "takes no writes, because it cannot save its data"),
        "look at its log and at the free space of its disk",
    ),
    (ResponseError, "", "refuses a command", "look at its log"),
    (
        InvalidResponse,
        "",
        "does not speak the protocol of Redis",
        "correct host and port",
    ),
    (
        *(
            ssl.SSLError,
            "",
            "does not speak TLS, or has no certificate that is trusted",
        ),
        "write redis:// for a Redis without TLS, or name its CA with ssl_ca_certs",
    ),
    (
        *(ConnectionRefusedError, "", "has no program that listens at that port"),
        "start Redis, or correct host and port",
    ),
    (
        FileNotFoundError,
        "",
        "has no socket at that path",
        "start Redis, or correct the path",
    ),
    (
        PermissionError,
        "",
        "lets this user not open its socket",
        "change its permissions",
    ),
    (
        *(TimeoutError, "", f"has not answered within {SECONDS:g} s"),
        "correct host and port, or open the firewall",
    ),
)
"""Type of the error, begin of its text -> what is wrong, and the fix."""


def _failure(error: BaseException, place: str) -> tuple[str, str]:
    for it in (error.__cause__ or error.__context__, error):
        for kind, begin, text, fix in _ANSWERS:
            if isinstance(it, kind) and str(it).startswith(begin):
                return f"names {place}, which {text}", fix
    return f"names {place}, which cannot be reached", "correct host and port"
