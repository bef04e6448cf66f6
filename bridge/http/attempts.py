"""Counts what the bridge tries again and again for one call."""

import re

from bridge.fleet import Registry

RESUMED_SECONDS = 120.0
"""The counts of resumes and refusals start again after this time without a new one: a
stream that lasts this long is healthy."""


async def take_attempt(registry: Registry, name: str, most: int) -> bool:
    """Counts an attempt. False if `most` were made before."""
    stored = await registry.get(name) or b""
    # Anything else was not written by a bridge, and counts as no attempt.
    count = int(stored) if re.fullmatch(rb"\d{1,9}", stored) else 0
    if count >= most:
        return False
    await registry.put(name, str(count + 1).encode(), RESUMED_SECONDS)
    return True
