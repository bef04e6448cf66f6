"""Quotas of callers: calls at a time, calls in an hour, the cost of a day.

A quota is checked before a call is answered and updated while the call runs. Instances
that share a Registry count together. Only a keyed hash of a caller's number is stored.
"""

import asyncio
import hmac
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from bridge.fleet import Registry
from twiml.phone_numbers import PhoneNumber

log = structlog.get_logger()

HOUR_SECONDS = 3600.0

CALL_SECONDS = 60.0
"""A call is counted for this long after its last renewal. No renewal comes if its
stream never started or its instance died."""

RENEW_SECONDS = 15.0
"""Interval at which running calls are renewed."""

BEAT_SECONDS = 5.0
"""Interval at which costs are sent to the registry; a crash loses at most the costs of
one interval."""

CLOSE_SECONDS = 5.0
"""Time for the last report at shutdown."""

DAY_SECONDS = 2 * 86400.0
"""How long the cost of a day is stored. Longer than a day, because the clocks of
instances may differ about its end."""

ADMITTED_SECONDS = 600.0
"""How long an admitted call is remembered: Twilio asks again for a call that waits in
the queue."""


def _keypad_number(word: str) -> str:
    """A word typed on a telephone keypad: 2 has ABC, 3 has DEF, ..."""
    keys = ["ABC", "DEF", "GHI", "JKL", "MNO", "PQRS", "TUV", "WXYZ"]
    return "+" + "".join(
        str(key) for it in word for key, letters in enumerate(keys, 2) if it in letters
    )


WITHHELD = frozenset(
    _keypad_number(word)
    for word in (
        "ANONYMOUS",
        "BLOCKED",
        "PRIVATE",
        "RESTRICTED",
        "UNAVAILABLE",
        "UNKNOWN",
    )
)
"""Numbers that are sent in place of a withheld number: +266696687 spells ANONYMOUS."""

WITHHELD_SHARE = 10
"""All callers who withhold their number are counted as one caller. Because they may be
many, their quota is this many times as large."""


def shows_number(caller: str) -> bool:
    """A phone number that is not in place of a withheld one."""
    return PhoneNumber.of_caller(caller) is not None and caller not in WITHHELD


def _is_withheld(caller: str) -> bool:
    """The caller shows no number: an empty one, one of WITHHELD, or a SIP address,
    which its sender can choose. (A `client:` name counts as a number: the operator's
    own application gave it.)"""
    return not (shows_number(caller) or caller.startswith("client:"))


class Quotas:
    """Quotas of one instance; use it within `reporting`. A limit of 0 means no limit.

    `key` is the key of the hashes of callers; all instances that share a registry need
    the same key. `hit` is called with each limit that refused a call. `now` returns
    seconds since the epoch.
    """

    def __init__(
        self,
        registry: Registry,
        hit: Callable[[str], None],
        *,
        key: bytes,
        calls_of_number: int = 0,
        calls_of_number_hour: int = 0,
        cost_of_day: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._hit = hit
        self._key = key
        self._calls = calls_of_number
        self._hour = calls_of_number_hour
        self._cost = cost_of_day
        self._now = now
        self._unreported = 0.0
        """Cost that the registry has not been given yet."""
        self._running: dict[str, str] = {}
        """Running calls of this instance: call SID -> name of the caller's counter."""
        self._ended: deque[tuple[str, str]] = deque()
        """(counter, call SID) to release. Each stays until the registry has it."""
        self._wake = asyncio.Event()
        self._closed = False

    # --- before a call is answered ---

    async def admit(self, call_sid: str, caller: str) -> str | None:
        """None if the call is admitted; it is counted once, however often `admit` is
        called. Else the limit that refuses it, one of bridge.core.limits.HITS; `hit`
        has been called with it."""
        share = WITHHELD_SHARE if _is_withheld(caller) else 1
        limit = await self._limit_reached(call_sid, self._name(caller), share)
        if limit:
            self._hit(limit)
        return limit

    async def refuses_outbound(self) -> bool:
        """A call that the operator's own code has placed is refused: only the limit of
        the day applies to it. `hit` has been called."""
        if spent := await self.day_is_spent():
            self._hit("cost_of_day")
        return spent

    async def day_is_spent(self) -> bool:
        """The calls of this day (UTC) have reached the cost limit of a day."""
        if not self._cost:
            return False
        return await self._report_cost() >= self._cost

    async def _limit_reached(self, call_sid: str, name: str, share: int) -> str | None:
        registry, admitted = self._registry, f"admitted:{call_sid}"
        calls, hour = f"calls:{name}", f"hourly_calls:{name}"
        if await registry.count(admitted, ADMITTED_SECONDS, 0):
            if self._calls:
                await registry.acquire(calls, call_sid, CALL_SECONDS)
            return None
        if await self.day_is_spent():
            return "cost_of_day"
        if self._hour and not await registry.acquire(
            hour, call_sid, HOUR_SECONDS, share * self._hour
        ):
            return "calls_of_number_hour"
        if self._calls and not await registry.acquire(
            calls, call_sid, CALL_SECONDS, share * self._calls
        ):
            # A refused call does not count towards the hour.
            if self._hour:
                await registry.release(hour, call_sid)
            return "calls_of_number"
        await registry.count(admitted, ADMITTED_SECONDS)
        return None

    # --- while a call runs ---

    def began(self, call_sid: str, caller: str) -> None:
        """An inbound call has a stream on this instance, its first or a later one."""
        if self._calls:
            self._running[call_sid] = f"calls:{self._name(caller)}"

    def spent(self, cost: float) -> None:
        """A call, inbound or outbound, has cost `cost` more."""
        if self._cost:
            self._unreported += cost

    def ended(self, call_sid: str, *, goes_on: bool = False) -> None:
        """The call has no stream on this instance any more. `goes_on`: the call has
        not ended, it may have a stream on another instance."""
        name = self._running.pop(call_sid, None)
        if name and not goes_on:
            self._ended.append((name, call_sid))
            self._wake.set()

    # --- reports to the registry ---

    async def report_until_closed(self) -> None:
        """Reports costs, running calls and ended calls to the registry until
        `close`."""
        renew_at = 0.0
        while not self._closed:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass  # the interval is over
            self._wake.clear()
            await self._report()
            if time.monotonic() >= renew_at and not self._closed:
                renew_at = time.monotonic() + RENEW_SECONDS
                for call_sid, name in list(self._running.items()):
                    await self._registry.acquire(name, call_sid, CALL_SECONDS)
        # `close` may have come while a report waited for the registry.
        await self._report()

    async def _report(self) -> None:
        if self._cost:
            # Also without a new cost: the registry may still have some to write.
            await self._report_cost()
        while self._ended:
            await self._registry.release(*self._ended[0])
            self._ended.popleft()

    def close(self) -> None:
        """Makes `report_until_closed` send its last report and return. All calls have
        ended."""
        self._closed = True
        self._wake.set()

    async def _report_cost(self) -> float:
        """Gives the unreported cost to the registry, which keeps it until it is
        written; returns the cost of this day, of all instances together."""
        cost, self._unreported = self._unreported, 0.0
        day = time.strftime("%Y-%m-%d", time.gmtime(self._now()))
        return await self._registry.count(f"cost:{day}", DAY_SECONDS, cost)

    def _name(self, caller: str) -> str:
        text = f"caller:{'' if _is_withheld(caller) else caller}"
        return hmac.digest(self._key, text.encode(), "sha256").hex()[:32]


@asynccontextmanager
async def reporting(it: Quotas) -> AsyncIterator[Quotas]:
    """Reports to the registry while the context is open, and once more at its end."""
    async with asyncio.TaskGroup() as tasks:
        reports = tasks.create_task(it.report_until_closed(), name="quotas")
        try:
            yield it
        finally:
            it.close()
            await asyncio.wait([reports], timeout=CLOSE_SECONDS)
            if reports.cancel():
                log.error("quotas_not_reported")
