"""Stores a snapshot of the call in the registry, for the instance that resumes the
call.

The snapshot is written again and again while the call runs, because an instance may be
killed at any moment. The call never waits for it.
"""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from bridge.fleet import Registry
from bridge.fleet.snapshot import CallSnapshot
from bridge.privacy.redaction import Copies, Redaction

log = structlog.get_logger()

POLL_SECONDS = 0.5
"""Interval at which the call is checked for changes."""

BYTES_A_SECOND = 100_000
"""A write of so many bytes adds a second to the interval: long conversations are
written less often."""

SNAPSHOT_SECONDS = 180.0
"""Lifetime of a stored snapshot, unless it is refreshed."""

REFRESH_SECONDS = 45.0
"""An unchanged snapshot is written again at this interval, before it expires."""


def encode(
    snapshot: CallSnapshot, format: int, redaction: Redaction | None = None
) -> bytes:
    """The snapshot's bytes in this format (bridge/fleet/formats.py). If the user's
    notes cannot be written as JSON, all notes are left out."""
    try:
        if redaction:
            notes = redaction.value(msgspec.to_builtins(snapshot.notes, str_keys=True))
            snapshot = msgspec.structs.replace(snapshot, notes=notes)
        return snapshot.encoded(format)
    except (TypeError, ValueError, RecursionError):
        log.warning("notes_not_stored", notes=len(snapshot.notes))
        return msgspec.structs.replace(snapshot, notes={}).encoded(format)


class Checkpoint:
    """The checkpoint of one call. `take_snapshot` gives the call's state; it is taken
    when the value of `version` has changed. It is stored redacted, so the agent that
    resumes the call does not know what was redacted either."""

    def __init__(
        self,
        registry: Registry,
        call_sid: str,
        version: Callable[[], object],
        take_snapshot: Callable[[], CallSnapshot],
        redaction: Redaction | None = None,
    ) -> None:
        self._registry = registry
        self._name = f"snapshot:{call_sid}"
        self._version = version
        self._take_snapshot = take_snapshot
        self._redaction = redaction or Redaction()
        self._copies = Copies(self._redaction)
        self._over = False
        """The last write has begun: a later one would replace it."""

    async def run(self) -> None:
        """Runs until it is cancelled. The snapshot is also written again when the
        fleet's format changes: an older instance that has joined must be able to read
        it."""
        known: object = None
        age = 0.0
        while True:
            version = self._version(), self._registry.format()
            pause = POLL_SECONDS
            if version != known or age >= REFRESH_SECONDS:
                known, age = version, 0.0
                pause += await self.keep() / BYTES_A_SECOND
            await asyncio.sleep(pause)
            age += pause

    async def keep(self, seconds: float = SNAPSHOT_SECONDS) -> int:
        """Stores the snapshot now. Returns its size in bytes."""
        return 0 if self._over else await self._write(seconds)

    async def keep_last(self, seconds: float = SNAPSHOT_SECONDS) -> None:
        """Stores the snapshot for the last time: the stream has ended."""
        self._over = True
        await self._write(seconds)

    async def drop(self) -> None:
        """Deletes the snapshot: the call is over, and its content must not be kept."""
        self._over = True
        await self._registry.delete(self._name)

    def leave(self) -> None:
        """Writes no more: the snapshot belongs to another instance."""
        self._over = True

    async def _write(self, seconds: float) -> int:
        # No await before `put`: the registry keeps the order in which its methods are
        # called, also if an earlier write still runs or was cancelled.
        snapshot, format = (
            self._redacted(self._take_snapshot()),
            self._registry.format(),
        )
        text = encode(snapshot, format, self._redaction)
        await self._registry.put(self._name, text, seconds)
        return len(text)

    def _redacted(self, snapshot: CallSnapshot) -> CallSnapshot:
        redaction = self._redaction
        if not redaction:
            return snapshot
        return msgspec.structs.replace(
            snapshot,
            history=self._copies.of(snapshot.history),
            playing=tuple(map(redaction.playing, snapshot.playing)),
            messages=tuple(it.without(redaction) for it in snapshot.messages),
        )
