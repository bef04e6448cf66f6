"""The limits of outbound calls, counted for all instances together.

Knows what may be called and how often; places no call. What all instances share is in
the registry. A call has one place in each set that it counts for, under the id of its
order, from before it is placed until Twilio reports its end to any instance. If the end
is never reported, OutboundCalls asks Twilio when the place is needed; at the latest the
places are free after the longest time that the call can last.
"""

import asyncio
import hmac
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from bridge.app.dial_permissions import may_dial
from bridge.fleet import Registry

RATE_WAIT_SECONDS = 5.0
"""Longest wait of an order for the rate limit; an order that would wait longer is
refused, and its sender should slow down."""

ALL_CALLS = "outbound_calls"

LimitName = Literal[
    "off", "prefix", "at_once", "number", "campaign", "rate", "cost", "registry"
]

_Place: TypeAlias = tuple[LimitName, str, int, str]
"""Limit, name of the set, most members, text of the refusal."""


class LimitedOrder(Protocol):
    """An order, as its limits need it."""

    @property
    def id(self) -> str: ...
    @property
    def campaign(self) -> str: ...


class OutboundLimited(Exception):
    """We did not place the call, because of one of our limits: `limit`.

    "off": no prefix is configured. "prefix": the number is not allowed. "at_once": too
    many calls are running. "number", "campaign": a call to the number, or of the
    campaign, is running. "rate": too many orders wait for the rate limit. "cost": the
    cost limit of the day is reached. "registry": Redis cannot be reached, and so it is
    not known whether an idempotency key was used.
    """

    def __init__(self, limit: LimitName, text: str, orders: Sequence[str] = ()) -> None:
        """`orders`: the ids of the orders whose calls have the places."""
        super().__init__(text)
        self.limit = limit
        self.orders = orders


class OutboundLimits:
    """`prefixes`: prefixes of numbers that may be called ("+1", "+4930"), or with `!`
    may not ("!+1900"); without any, no number may be called. `at_once`: limit of the
    calls of all instances that have not ended. `per_second`: limit of the calls that
    all instances place in a second. `key`: of the hashes of numbers; the same for all
    instances. `hit` is called with each limit that refused a call
    (bridge.core.limits.HITS). `day_is_spent` returns True when the cost limit of the
    day is reached.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        prefixes: Sequence[str],
        at_once: int,
        per_second: float = 1.0,
        key: bytes,
        hit: Callable[[str], None],
        day_is_spent: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._registry = registry
        self._prefixes = tuple(prefixes)
        self._at_once = at_once
        self._interval = 1.0 / per_second
        self._key = key
        self._hit = hit
        self._day_is_spent = day_is_spent
        self._next_turn = 0
        """The first turn that no order of this instance has tried to take."""

    async def check(self, number: str) -> None:
        """OutboundLimited if the number may not be called, or nothing may today."""
        if not self._prefixes:
            text = "no number may be called: no prefix is configured"
            raise OutboundLimited("off", text)
        if not may_dial(number, self._prefixes):
            self._hit("outbound_number")
            text = "numbers with this prefix may not be called"
            raise OutboundLimited("prefix", text)
        if self._day_is_spent and await self._day_is_spent():
            self._hit("cost_of_day")
            raise OutboundLimited("cost", "today's calls have reached the cost limit")

    async def take(self, order: LimitedOrder, number: str, seconds: float) -> None:
        """Takes the places of a call for so many seconds, and waits for its turn.
        OutboundLimited: none is taken."""
        places: list[_Place] = [
            (
                "number",
                f"outbound_number:{self._hash(number)}",
                1,
                "a call to this number is running",
            )
        ]
        if order.campaign:
            name = f"outbound_campaign:{self._hash(order.campaign)}"
            text = "a call of this campaign is running"
            places.append(("campaign", name, 1, text))
        await self._take(order.id, [*places, self._at_once_place()], seconds)

    async def take_transfer(self, transfer_id: str, seconds: float) -> None:
        """Takes the place of the second call of a warm transfer, and waits for its
        turn. Several callers may be put through to one number. OutboundLimited: none is
        taken."""
        await self._take(transfer_id, [self._at_once_place()], seconds)

    def _at_once_place(self) -> _Place:
        text = f"the limit of {self._at_once} running calls is reached"
        return ("at_once", ALL_CALLS, self._at_once, text)

    async def _take(self, id: str, places: Sequence[_Place], seconds: float) -> None:
        # Stored first: whatever happens next, `release` finds them.
        names = " ".join(name for _, name, _, _ in places)
        await self._registry.put(_places_name(id), names.encode(), seconds)
        try:
            for limit, name, most, text in places:
                if not await self._registry.acquire(name, id, seconds, most):
                    orders = await self._registry.members(name)
                    raise OutboundLimited(limit, text, orders)
            await self._wait_for_turn()
        except BaseException:
            await self.release(id)
            raise

    async def shorten(self, order_id: str, seconds: float) -> None:
        """It is not known whether the call was placed: its places are free after so
        many seconds, unless Twilio reports its end before."""
        names = await self._registry.get(_places_name(order_id))
        for name in (names or b"").decode().split():
            await self._registry.acquire(name, order_id, seconds)

    async def release(self, order_id: str) -> None:
        """The call of this order has ended, or was not placed. May be repeated."""
        names = await self._registry.pop(_places_name(order_id))
        for name in (names or b"").decode().split():
            await self._registry.release(name, order_id)

    async def _wait_for_turn(self) -> None:
        """Twilio limits the calls per second that an account may place. Each turn of
        `interval` seconds is for one call, of whatever instance."""
        now = self._registry.clock()
        turn = math.floor(now / self._interval)
        # Later turns are of another clock: that of this machine, until Redis was found.
        if self._next_turn * self._interval - now <= RATE_WAIT_SECONDS + self._interval:
            turn = max(turn, self._next_turn)
        else:
            self._next_turn = turn
        while turn * self._interval - now <= RATE_WAIT_SECONDS:
            self._next_turn = turn + 1
            name = f"outbound_turn:{turn}"
            if await self._registry.set_if_absent(name, 2 * RATE_WAIT_SECONDS):
                await asyncio.sleep(max(0.0, turn * self._interval - now))
                return
            turn = max(turn + 1, self._next_turn)
        text = "too many orders wait for the limit of calls per second"
        raise OutboundLimited("rate", text)

    def _hash(self, text: str) -> str:
        """No name in the registry contains a number."""
        return hmac.digest(self._key, text.encode(), "sha256").hex()[:32]


def _places_name(order_id: str) -> str:
    return f"outbound_places:{order_id}"
