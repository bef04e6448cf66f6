"""What another instance must know of a call, kept on the Registry's shelf.

Written again and again while the call runs, for an instance may be killed at any
moment; never waited for by the call.
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
"""So often is looked whether there is anything new ..."""

BYTES_A_SECOND = 100_000
"""... and a long conversation is written more seldom, so that it costs no more."""

TALK_SECONDS = 180.0
"""How long a conversation is kept when nothing more is heard of its instance ..."""

REFRESH_SECONDS = 45.0
"""... hence it is written again so often where nothing is new."""


def encoded(
    snapshot: CallSnapshot, format: int, redaction: Redaction | None = None
) -> bytes:
    """As it is kept, in this format (bridge/fleet/formats.py); the user's notes are
    left out where they are no JSON."""
    try:
        if redaction:
            notes = redaction.value(msgspec.to_builtins(snapshot.notes, str_keys=True))
            snapshot = msgspec.structs.replace(snapshot, notes=notes)
        return snapshot.encoded(format)
    except (TypeError, ValueError, RecursionError):
        log.warning("notes_not_stored", notes=len(snapshot.notes))
        return msgspec.structs.replace(snapshot, notes={}).encoded(format)


class Checkpoint:
    """Of one call. `look` gives what is to be kept, and `version` tells it from
    another; it is kept without what `redaction` names, so whoever leads the call on
    does not know that either."""

    def __init__(
        self,
        registry: Registry,
        call_sid: str,
        version: Callable[[], object],
        look: Callable[[], CallSnapshot],
        redaction: Redaction | None = None,
    ) -> None:
        self._registry = registry
        self._name = f"talk:{call_sid}"
        self._version = version
        self._look = look
        self._redaction = redaction or Redaction()
        self._copies = Copies(self._redaction)

    async def run(self) -> None:
        """Until it is cancelled. The snapshot is also written again when the fleet's
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
        """Now; the bytes that it took."""
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
        """The call is over: what was said in it is nobody's business any more."""
        await self._registry.pop(self._name)
