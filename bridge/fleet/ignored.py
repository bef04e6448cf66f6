"""Counts what is found in Redis and cannot have been written by the bridge.

Another program, a fault or an attacker may put anything under our names. It is not a
failure of Redis: it is ignored, and the instance goes on. No connection.
"""

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from bridge.fleet import keys

log = structlog.get_logger()


class Ignored:
    """`on_ignored` is called each time, with the kind of key (REDIS_KEYS of
    bridge.telemetry.metrics). The log gets one line for each kind and reason, without
    the name of the key: names may come from anybody."""

    def __init__(self, on_ignored: Callable[[str], None]) -> None:
        self._on_ignored = on_ignored
        self._logged: set[tuple[str, str]] = set()

    def note(self, key: str, why: str) -> None:
        """`why`: type, form, size, name, unusable."""
        kind = keys.kind_of(key)
        self._on_ignored(kind)
        if (kind, why) not in self._logged:
            self._logged.add((kind, why))
            log.warning("redis_key_ignored", key=kind, why=why)

    def without(self, answer: Sequence[Any], names: Sequence[str]) -> Any:
        """The answer in the answer of a keys.Script with these KEYS."""
        for it in answer[1:]:
            position, _, why = it.decode().partition(" ")
            self.note(names[int(position) - 1], why)
        return answer[0]
