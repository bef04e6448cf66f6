"""The answer to a call when no instance has capacity: busy, a queue, or a fallback
number.

Pure: a route and a place in the queue -> a TwiML document. Nothing about a waiting
caller is stored: the place is in the URL that Twilio requests next, which is signed.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import twiml
from bridge.app.routes import Route, WhenFull
from twiml import spoken_texts

WAITING, RETURNING = "waiting", "returning"
"""Query parameters for the place in the queue: of a new call, and of a running call
whose instance has handed it over or died."""

LONGEST_PAUSE, SHORTEST_PAUSE = 8, 4
"""Seconds between two requests of a waiting caller: at first, and later. The caller who
has waited longest asks most often, and so most likely gets the next free capacity."""

SAY_EVERY = 4
"""A waiting caller hears the sentence in every fourth turn, and silence in the others:
a sentence every few seconds would annoy."""

_PLACE = re.compile("([0-9]{1,13})-([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """The place of one caller in the queue."""

    since: float
    """Start of the wait, in seconds since the epoch (milliseconds in the URL)."""
    turn: int = 0
    """Number of requests before this one."""

    @classmethod
    def read(cls, text: str) -> "QueuePlace":
        """A malformed text gives a place whose wait is over, so that a forged one gains
        no time."""
        found = _PLACE.fullmatch(text)
        return cls(int(found[1]) / 1000, int(found[2])) if found else cls(0.0)

    def __str__(self) -> str:
        return f"{self.since * 1000:.0f}-{self.turn}"


@dataclass(frozen=True, slots=True)
class Overflow:
    """How a full deployment answers a call; a route may override it."""

    answer: Literal["busy", "queue", "fallback"] = "busy"
    queue_seconds: float = 120.0
    """Longest wait of a caller in the queue."""
    fallback_number: str = ""

    def hold(
        self,
        route: Route,
        place: QueuePlace | None,
        now: float,
        ask: Callable[[QueuePlace], str],
    ) -> str | None:
        """The document of one turn in the queue. None if this call does not wait, or
        its wait is over.

        `now` is seconds since the epoch; `ask` returns the URL for the next place.
        """
        when_full = self._when_full(route)
        if when_full.answer != "queue":
            return None
        place = place or QueuePlace(now)
        # The clocks of instances differ, so `since` may be in the future. The limit of
        # turns ends the wait even then.
        left = self.queue_seconds - (now - place.since)
        if left <= 0 or place.turn > self.queue_seconds / SHORTEST_PAUSE:
            return None
        pause = min(max(LONGEST_PAUSE - place.turn, SHORTEST_PAUSE), math.ceil(left))
        speaks = place.turn % SAY_EVERY == 0
        return twiml.hold(
            (when_full.say or spoken_texts.HOLD) if speaks else None,
            ask_url=ask(replace(place, turn=place.turn + 1)),
            pause_seconds=pause,
            language=route.language,
        )

    def refusal(self, route: Route, caller_id: str | None = None) -> str:
        """The document for a caller who does not wait, or whose wait is over.
        `caller_id`: see `twiml.busy`."""
        when_full = self._when_full(route)
        number = route.fallback or self.fallback_number
        if when_full.answer == "busy" or not number:
            return twiml.busy(route.busy, language=route.language)
        # With "queue", `say` asks the caller to wait, so it does not fit here.
        text = when_full.say if when_full.answer == "fallback" else None
        return twiml.busy(text, number, caller_id=caller_id, language=route.language)

    def _when_full(self, route: Route) -> WhenFull:
        return route.when_full or WhenFull(self.answer)
