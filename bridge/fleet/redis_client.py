"""The client of Redis: its connections, its failures, and sizes of requests.

redis.py decides what a failure means for the registry.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

__all__ = (
    "FAILURES",
    "AuthenticationError",
    "BusyLoadingError",
    "InvalidResponse",
    "NoPermissionError",
    "ReadOnlyError",
    "ResponseError",
    "is_of_key",
    "parts",
    "reason_of",
    "redis_client",
)
"""`bridge check` names the failure of a Redis; only this folder knows the package."""

_T = TypeVar("_T")

CONNECTIONS = 16

FAILURES = (RedisError, OSError, TimeoutError)
"""Redis cannot be reached or used: full, loading, read-only."""


def redis_client(url: str, limit: float) -> Redis:
    """`limit`: seconds to connect, and to wait for a free connection."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=limit,
        # None: on Python 3.11 this timeout may swallow a cancellation. The registry has
        # a timeout around every request.
        socket_timeout=None,
        socket_connect_timeout=limit,
        protocol=2,
        # No retry: an instance goes on without Redis before a caller notices.
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


_OF_KEY = re.compile(r"WRONGTYPE|user_script:\d+: (?:attempt|bad argument)")


def is_of_key(error: BaseException) -> bool:
    """The command failed because of what its key contains: the key has another type, or
    a script cannot use it. Redis itself works."""
    return type(error) is ResponseError and bool(_OF_KEY.search(str(error)))


def reason_of(error: BaseException) -> str:
    """A reason that an operator can look up; never a url."""
    if type(error) is ResponseError:
        # OOM, MISCONF, NOPERM ... An error in a pipeline has the command before it.
        return str(error).rpartition("caused error: ")[2].partition(" ")[0]
    if isinstance(error.__cause__, OSError):
        error = error.__cause__
    return type(error).__name__


def parts(things: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """One part for each request: a larger one would block Redis for milliseconds."""
    return (things[at : at + size] for at in range(0, len(things), size))
