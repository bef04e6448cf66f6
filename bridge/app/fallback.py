"""The switch that sends all callers to the fallback while the model is away.

The state is that of the whole fleet: it is stored in the registry, signed, and each
instance has a copy that it asks for each call. BRIDGE_FALLBACK is the state of a fleet
in which nobody has used the switch yet. Knows no call and no request.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog

from bridge.fleet import Registry, formats
from bridge.fleet.signing import FleetKey

log = structlog.get_logger()

NAME = "fallback"
PURPOSE = b"fallback"
"""Name of the stored state, and of its signature."""

CHANGED = b"fallback"
"""Message to all instances: the stored state has changed. It concerns no call."""

REFRESH_SECONDS = 5.0
"""Interval at which an instance reads the state: a message may be lost."""

KEPT_SECONDS = 30 * 24 * 3600.0
"""How long the state is stored; running instances store it again."""


class FallbackState(msgspec.Struct, frozen=True):
    """As stored. Times are in seconds since the epoch, by the clock of the registry."""

    on: bool = False
    reason: str = ""
    by: str = ""
    changed_at: float = 0.0
    """0: nobody has used the switch."""
    until: float | None = None
    """When it goes off by itself; None: never."""


class RegistryAway(Exception):
    """The switch was not changed: the other instances would not learn it."""


class FallbackSwitch:
    """Use it within `following`. `key` None: there is no API, so nobody can use the
    switch; the setting decides."""

    def __init__(
        self,
        registry: Registry,
        key: FleetKey | None,
        show: Callable[[bool], None],
        *,
        initial: bool = False,
    ) -> None:
        """`initial`: BRIDGE_FALLBACK. `show` is called with each new value of `on`."""
        self._registry = registry
        self._key = key
        self._show = show
        self.state = FallbackState(on=initial)
        self.listeners: list[Callable[[], None]] = []
        """Called when it has been switched on."""
        self._was_on = False
        self._unreadable = False
        self._ring = asyncio.Event()
        registry.subscribe(self._message)

    @property
    def on(self) -> bool:
        """New callers are sent to the fallback, and no model is dialled for them."""
        state = self.state
        expired = state.until is not None and self._registry.clock() >= state.until
        return state.on and not expired

    async def set(
        self, on: bool, *, reason: str = "", by: str = "", seconds: float | None = None
    ) -> FallbackState:
        """Switches the whole fleet, for so many seconds (None: until it is switched
        again). Raises RegistryAway."""
        if self._key is None or not await self._reachable():
            raise RegistryAway
        now = max(self._registry.clock(), self.state.changed_at + 0.001)
        until = now + seconds if on and seconds is not None else None
        self.state = FallbackState(on, reason, by, now, until)
        await self._store(self._key)
        await self._registry.publish("", CHANGED)
        self._note()
        return self.state

    async def refresh(self) -> None:
        """Reads the stored state. The newest state counts; if Redis has lost it, it is
        stored again."""
        if self._key is not None and await self._reachable():
            stored = self._read(self._key, await self._registry.get(NAME))
            if stored.changed_at > self.state.changed_at:
                self.state = stored
            elif stored.changed_at < self.state.changed_at:
                await self._store(self._key)
        self._note()

    async def follow(self) -> None:
        """Does not return."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._ring.wait()
            self._ring.clear()
            await self.refresh()

    async def _reachable(self) -> bool:
        return not self._registry.shared or await self._registry.reachable()

    async def _store(self, key: FleetKey) -> None:
        text = formats.encode(self.state, self._registry.format())
        await self._registry.put(NAME, key.sign(PURPOSE, text), KEPT_SECONDS)

    def _read(self, key: FleetKey, signed: bytes | None) -> FallbackState:
        """The default if nothing is stored, or nothing that counts."""
        text = key.verified(PURPOSE, signed) if signed else None
        if signed and text is None and not self._unreadable:
            # Another BRIDGE_API_TOKEN has signed it, or somebody who has none.
            log.warning("fallback_unreadable")
        self._unreadable = signed is not None and text is None
        return formats.read_or_default(text, FallbackState)

    def _message(self, call_sid: str, message: bytes) -> None:
        if message == CHANGED and not call_sid:
            self._ring.set()

    def _note(self) -> None:
        """Shows a change in the metrics and in the log. Without the reason: people have
        written it."""
        on, state = self.on, self.state
        if on == self._was_on:
            return
        self._was_on = on
        self._show(on)
        if not on:
            log.info("fallback_off", why="expired" if state.on else "switched")
            return
        left = None
        if state.until is not None:
            left = round((state.until - self._registry.clock()) / 60, 1)
        log.warning("fallback_on", by_setting=not state.changed_at, minutes=left)
        for listener in self.listeners:
            listener()


@asynccontextmanager
async def following(switch: FallbackSwitch) -> AsyncIterator[FallbackSwitch]:
    """The switch follows the registry while the context is open."""
    await switch.refresh()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(switch.follow(), name="fallback")
        try:
            yield switch
        finally:
            task.cancel()
