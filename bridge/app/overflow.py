"""What a caller is told when no instance has a line: busy, wait, or a fallback number.

Pure: a route and a place in the queue -> a TwiML document. Nothing is kept of who
waits: their place stands in the url that Twilio asks next, under its signature.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import twiml
from bridge.app.routes import Route, WhenFull

WAITING, RETURNING = "waiting", "returning"
"""What a place in the queue is called in the query: of who has not been served yet, and
of who lost their line in mid-call."""

LONGEST_PAUSE, SHORTEST_PAUSE = 8, 4
"""Seconds until a waiting caller is looked after again: at first, and later. Whoever
has waited longest asks most often, so the next line is most likely theirs."""

SAY_EVERY = 4
"""Turns. In between there is silence: a sentence every few seconds is none to bear."""

_PLACE = re.compile("([0-9]{1,13})-([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """Of one caller in the queue."""

    since: float
    """Seconds since the epoch; milliseconds in the url."""
    turn: int = 0
    """How often they have asked for a line."""

    @classmethod
    def read(cls, text: str) -> "QueuePlace":
        """Whoever writes it by hand gains no time: rubbish is a wait that is over."""
        found = _PLACE.fullmatch(text)
        return cls(int(found[1]) / 1000, int(found[2])) if found else cls(0.0)

    def __str__(self) -> str:
        return f"{self.since * 1000:.0f}-{self.turn}"


@dataclass(frozen=True, slots=True)
class Overflow:
    """How a deployment answers when it is full; a route may say otherwise."""

    answer: Literal["busy", "queue", "fallback"] = "busy"
    queue_seconds: float = 120.0
    """That a caller waits for a line, at most."""
    fallback_number: str = ""

    def hold(
        self,
        route: Route,
        place: QueuePlace | None,
        now: float,
        ask: Callable[[QueuePlace], str],
    ) -> str | None:
        """One turn in the queue; None: this call does not wait, or no longer.

        `now` is seconds since the epoch, `ask` gives the url for the next place.
        """
        when_full = self._way(route)
        if when_full.answer != "queue":
            return None
        place = place or QueuePlace(now)
        # Clocks of instances differ, and one that is behind sees the future: that is no
        # reason to wait for ever, so turns are counted, too.
        left = self.queue_seconds - (now - place.since)
        if left <= 0 or place.turn > self.queue_seconds / SHORTEST_PAUSE:
            return None
        pause = min(max(LONGEST_PAUSE - place.turn, SHORTEST_PAUSE), math.ceil(left))
        said = place.turn % SAY_EVERY == 0
        return twiml.hold(
            (when_full.say or twiml.HOLD) if said else None,
            ask_url=ask(replace(place, turn=place.turn + 1)),
            pause_seconds=pause,
            language=route.language,
        )

    def refusal(self, route: Route) -> str:
        """For who does not wait, or not any longer."""
        when_full = self._way(route)
        number = route.fallback or self.fallback_number
        if when_full.answer == "busy" or not number:
            return twiml.busy(route.busy, language=route.language)
        # What is said to those who wait is not for those who have waited.
        text = when_full.say if when_full.answer == "fallback" else None
        return twiml.busy(text, number, language=route.language)

    def _way(self, route: Route) -> WhenFull:
        return route.when_full or WhenFull(self.answer)
