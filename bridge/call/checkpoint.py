"""Stores the snapshot of a running call in the Registry, for the next instance.

It is written repeatedly, because an instance may be killed at any moment. The call
never waits for it.
"""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from bridge.fleet import Registry
from bridge.fleet.plan import CallSnapshot
from bridge.privacy.redaction import Copies, Redaction

log = structlog.get_logger()

LOOK_SECONDS = 0.5
"""Interval at which the call is checked for changes."""

BYTES_A_SECOND = 100_000
"""Upper bound of the bytes written for a call: a long one is written less often."""

TALK_SECONDS = 180.0
"""Time to live of a snapshot."""

REFRESH_SECONDS = 45.0
"""A snapshot without changes is written again after so long, so that it does not
expire."""


def encoded(
    snapshot: CallSnapshot, format: int, redaction: Redaction | None = None
) -> bytes:
    """The snapshot as stored, in this format (bridge/fleet/formats.py). Without the
    user's notes if they are no JSON."""
    try:
        if redaction:
            notes = redaction.value(msgspec.to_builtins(snapshot.notes, str_keys=True))
            snapshot = msgspec.structs.replace(snapshot, notes=notes)
        return snapshot.encoded(format)
    except (TypeError, ValueError, RecursionError):
        log.warning("notes_not_stored", notes=len(snapshot.notes))
        return msgspec.structs.replace(snapshot, notes={}).encoded(format)


class Checkpoint:
    """The checkpoint of one call. `look` gives the snapshot; `version` is another value
    when the snapshot has changed. Values that `redaction` names are removed, so the
    instance that continues the call does not have them."""

    def __init__(
        self,
        registry: Registry,
        call_sid: str,
        version: Callable[[], object],
        look: Callable[[], CallSnapshot],
        redaction: Redaction | None = None,
    ) -> None:
        self._registry = registry
        self._name = f"snapshot:{call_sid}"
        self._version = version
        self._look = look
        self._redaction = redaction or Redaction()
        self._copies = Copies(self._redaction)

    async def run(self) -> None:
        """Runs until it is cancelled. The snapshot is also written when the fleet's
        format changes: an older instance that has joined must be able to read it."""
        known: object = None
        age = 0.0
        while True:
            version = self._version(), self._registry.format()
            pause = LOOK_SECONDS
            if version != known or age >= REFRESH_SECONDS:
                known, age = version, 0.0
                pause += await self.keep() / BYTES_A_SECOND
            await asyncio.sleep(pause)
            age += pause

    async def keep(self, seconds: float = TALK_SECONDS) -> int:
        """Writes the snapshot now; returns the number of bytes."""
        snapshot, format = self._without(self._look()), self._registry.format()
        text = encoded(snapshot, format, self._redaction)
        await self._registry.put(self._name, text, seconds)
        return len(text)

    def _without(self, snapshot: CallSnapshot) -> CallSnapshot:
        redaction = self._redaction
        if not redaction:
            return snapshot
        return msgspec.structs.replace(
            snapshot,
            history=self._copies.of(snapshot.history),
            playing=tuple(map(redaction.playing, snapshot.playing)),
            messages=tuple(it.without(redaction) for it in snapshot.messages),
        )

    async def drop(self) -> None:
        """Deletes the snapshot: the call is over."""
        await self._registry.pop(self._name)
