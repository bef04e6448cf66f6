"""What callers may use up: calls at a time, calls in an hour, what a day may cost; and
which numbers may be dialled.

Asked before a call is answered, told of each call while it runs. All instances that
share a Registry count together. Of a caller no more is kept than a hash with a key.
"""

import asyncio
import hmac
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from bridge.fleet import Registry

HOUR_SECONDS = 3600.0

CALL_SECONDS = 60.0
"""A call that nobody has seen for so long is counted no more: its stream never came, or
its instance is gone."""

RENEW_SECONDS = 15.0
"""So often a running call is seen."""

BEAT_SECONDS = 5.0
"""What a crash may lose of what was spent."""

DAY_SECONDS = 2 * 86400.0
"""That the cost of a day is known: instances need not agree when it ends."""

ASKED_SECONDS = 600.0
"""That a call which was let in is known: Twilio asks again for one that waits."""

_E164 = re.compile(r"\+[1-9][0-9]{6,14}")


def _spelt(word: str) -> str:
    """A word as it is keyed on a telephone: 2 has ABC, 3 DEF, ..."""
    letters = ["ABC", "DEF", "GHI", "JKL", "MNO", "PQRS", "TUV", "WXYZ"]
    return "+" + "".join(
        str(key) for it in word for key, on_it in enumerate(letters, 2) if it in on_it
    )


WITHHELD = frozenset(
    _spelt(word)
    for word in (
        "ANONYMOUS",
        "BLOCKED",
        "PRIVATE",
        "RESTRICTED",
        "UNAVAILABLE",
        "UNKNOWN",
    )
)
"""What stands in the place of a number that is not shown, such as +266696687."""


_TRUNKS = tuple(
    re.compile(it)
    for it in (r"(\+1)[01]+", r"(\+7)[08]", r"(\+[2-689]\d)0+", r"(\+[2-689]\d\d)0+")
)
"""Digits that are dialled within a country and written behind its code all the same,
+44 (0)900: networks drop them, and dial what was excepted."""


def may_dial(number: str, prefixes: Sequence[str]) -> bool:
    """Of the prefixes that a number (E.164) begins with the longest says; `!` before
    one: no, with a trunk's digits behind the country's code, too. None: no."""
    read = (it.sub(r"\1", number, count=1) for it in _TRUNKS if it.match(number))
    return _says(number, prefixes) is True and not any(
        _says(it, prefixes) is False for it in read
    )


def _says(number: str, prefixes: Sequence[str]) -> bool | None:
    """None: nothing is said of it."""
    fitting = [it for it in prefixes if number.startswith(it.removeprefix("!"))]
    longest = max((len(it.removeprefix("!")) for it in fitting), default=0)
    said = [it for it in fitting if len(it.removeprefix("!")) == longest]
    return not any(it.startswith("!") for it in said) if said else None


WITHHELD_SHARE = 10
"""Who shows no number is one caller with all others who do not, and may be many: they
have so many times as much."""


def _is_withheld(caller: str) -> bool:
    """It shows no number of its own: none at all, a word in its place, or a SIP
    address, which is what somebody likes to write. (A `client:` has the name that the
    operator's own application gave it.)"""
    named = _E164.fullmatch(caller) or caller.startswith("client:")
    return not named or caller in WITHHELD


class Quotas:
    """At work within `telling`. A limit of 0 is none.

    `key` makes the hashes of callers: the same on all instances that share a registry.
    `hit` hears of each limit that kept somebody out, `now` gives seconds since the
    epoch.
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
        """Spent, and not in the day's total yet."""
        self._running: dict[str, str] = {}
        """Calls of this instance -> what their caller's calls are counted under."""
        self._gone: list[tuple[str, str]] = []
        self._woken = asyncio.Event()
        self._closed = False

    # --- before a call is answered ---

    async def admit(self, call_sid: str, caller: str) -> str | None:
        """None: it may, and is counted, once however often this is asked. Else the
        limit that is reached: one of bridge.core.limits.HITS, which has been told."""
        share = WITHHELD_SHARE if _is_withheld(caller) else 1
        limit = await self._reached(call_sid, self._name(caller), share)
        if limit:
            self._hit(limit)
        return limit

    async def day_is_spent(self) -> bool:
        """The day (UTC) has cost what a day may."""
        if not self._cost:
            return False
        return await self._report_cost() >= self._cost

    async def _reached(self, call_sid: str, name: str, share: int) -> str | None:
        registry, asked = self._registry, f"admitted:{call_sid}"
        calls, hour = f"calls:{name}", f"hourly_calls:{name}"
        if await registry.count(asked, ASKED_SECONDS, 0):
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
            # What is turned away is no call.
            if self._hour:
                await registry.release(hour, call_sid)
            return "calls_of_number"
        await registry.count(asked, ASKED_SECONDS)
        return None

    # --- while it runs ---

    def began(self, call_sid: str, caller: str) -> None:
        """A call that came in has a stream here, its first or another."""
        if self._calls:
            self._running[call_sid] = f"calls:{self._name(caller)}"

    def spent(self, cost: float) -> None:
        """Any call, ours as well, has cost so much more."""
        if self._cost:
            self._unreported += cost

    def ended(self, call_sid: str, *, goes_on: bool = False) -> None:
        """It has no stream here any more; it may have one elsewhere."""
        name = self._running.pop(call_sid, None)
        if name and not goes_on:
            self._gone.append((name, call_sid))
            self._woken.set()

    # --- what is told of it ---

    async def tell(self) -> None:
        """Tells the registry what was spent and who is there, until `close`."""
        renew_at = 0.0
        while not self._closed:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                pass  # nothing is urgent
            self._woken.clear()
            gone, self._gone = self._gone, []
            for name, call_sid in gone:
                await self._registry.release(name, call_sid)
            if self._unreported:
                await self._report_cost()
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + RENEW_SECONDS
                for call_sid, name in list(self._running.items()):
                    await self._registry.acquire(name, call_sid, CALL_SECONDS)

    def close(self) -> None:
        """`tell` tells what is left, and returns."""
        self._closed = True
        self._woken.set()

    async def _report_cost(self) -> float:
        """What the day has cost, all instances together."""
        cost, self._unreported = self._unreported, 0.0
        day = time.strftime("%Y-%m-%d", time.gmtime(self._now()))
        return await self._registry.count(f"cost:{day}", DAY_SECONDS, cost)

    def _name(self, caller: str) -> str:
        text = f"caller:{'' if _is_withheld(caller) else caller}"
        return hmac.digest(self._key, text.encode(), "sha256").hex()[:32]


@asynccontextmanager
async def reporting(it: Quotas) -> AsyncIterator[Quotas]:
    """It tells the registry of its calls, and at the end of the last of them."""
    async with asyncio.TaskGroup() as tasks:
        told = tasks.create_task(it.tell(), name="quotas")
        try:
            yield it
        finally:
            it.close()
            await asyncio.wait([told])
