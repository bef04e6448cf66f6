"""Matches the punctuation of a text with the pauses in its audio. PURE.

A voice pauses at most sentence ends and at some commas, and sometimes in between. The
cheapest match is found: a stretch of text between two matches should be as long as the
stretch of audio, and what is left unmatched has a price.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

Anchor = tuple[float, float]
"""A place in the text (its weight), and in the audio (seconds of speech)."""

SENTENCE_COST, CLAUSE_COST = 1.5, 0.5
"""Price of a sentence end, or a comma, at which the voice does not pause."""

PAUSE_COST, PAUSE_SECONDS = 1.8, 0.45
"""Price of a pause of PAUSE_SECONDS or more that no punctuation explains; a shorter one
costs less."""

LEAST_PAUSE = 0.13
"""Seconds; a shorter pause is not matched."""

MARGIN = 0.05
"""Seconds; a pause nearer to the beginning or the end of the speech is not matched."""

JITTER, SPREAD, PACE_ERROR = 0.015, 0.02, 0.04
"""Variance of a stretch in s2: of any, of each second, and the share of its square."""

REACH, REACH_SHARE, MOST_REACH = 0.9, 0.08, 2.0
"""Seconds: a match this far from the place that the pace gives is not tried."""

WINDOW = 3
"""Most punctuation in a row that is left unmatched between two matches."""

MAX_BREAKS = 80
"""Most punctuation that is matched, and most pauses: about a minute of speech. The rest
of a longer text follows its length."""

MAX_WAYS = 5
"""Most matches of one punctuation that are followed: the cheapest."""


@dataclass(frozen=True, slots=True)
class Breaks:
    """What is matched."""

    text: Sequence[tuple[float, bool]]
    """Weight of the text up to a punctuation; True: the end of a sentence."""
    sound: Sequence[tuple[float, float]]
    """Position and length of each pause, in seconds."""
    seconds: float
    """Length of the speech."""


@dataclass(frozen=True, slots=True)
class Match:
    cost: float
    anchors: list[Anchor]


@dataclass(frozen=True, slots=True)
class _Node:
    """A match of one punctuation with one pause, or the beginning."""

    weight: float
    seconds: float
    text: int
    sound: int
    cost: float
    before: "_Node | None" = None


class Matching:
    """The matches of one text with its audio, at any pace."""

    def __init__(self, breaks: Breaks) -> None:
        last = breaks.seconds - MARGIN
        self._pace = 1.0
        self._seconds = breaks.seconds
        self._text = breaks.text[:MAX_BREAKS]
        self._sound = [
            (at, length)
            for at, length in breaks.sound
            if length >= LEAST_PAUSE and MARGIN < at < last
        ][:MAX_BREAKS]
        # Prices of all that comes before an index.
        costs = (SENTENCE_COST if ends else CLAUSE_COST for _, ends in self._text)
        self._text_costs = list(accumulate(costs, initial=0.0))
        lengths = (min(length / PAUSE_SECONDS, 1) for _, length in self._sound)
        self._sound_costs = list(
            accumulate((PAUSE_COST * it for it in lengths), initial=0.0)
        )
        self._nodes: list[_Node] = []

    def best(self, pace: float, end: Anchor | None) -> Match:
        """The cheapest match at this pace. `end`: of text and audio, if it is known."""
        self._pace = pace
        self._nodes = [_Node(0.0, 0.0, -1, -1, 0.0)]
        for index in range(len(self._text) if self._sound else 0):
            self._nodes += self._matches_of(index)
        cost, node = min(
            ((self._total(node, end), node) for node in self._nodes),
            key=lambda it: it[0],
        )
        anchors = [] if end is None else [end]
        last: _Node | None = node
        while last is not None:
            anchors.append((last.weight, last.seconds))
            last = last.before
        return Match(cost, anchors[::-1])

    def _matches_of(self, text: int) -> list[_Node]:
        """The cheapest way to a match of this punctuation with each pause near it."""
        weight = self._text[text][0]
        expected = weight / self._pace
        reach = min(REACH + REACH_SHARE * expected, MOST_REACH)
        before = [node for node in self._nodes if node.text >= text - 1 - WINDOW]
        found: list[_Node] = []
        for sound, (at, _) in enumerate(self._sound):
            if abs(at - expected) > reach:
                continue
            ways = [
                (self._step(node, weight, at) + self._left(node, text, sound), node)
                for node in before
                if node.sound < sound
            ]
            if ways:
                cost, node = min(ways, key=lambda it: it[0])
                found.append(_Node(weight, at, text, sound, cost, node))
        found.sort(key=lambda node: node.cost)
        return found[:MAX_WAYS]

    def _step(self, node: _Node, weight: float, seconds: float) -> float:
        """Price of the stretch from a match to this place, and of all before it."""
        spoken = seconds - node.seconds
        off = spoken - (weight - node.weight) / self._pace
        variance = JITTER + SPREAD * spoken + (PACE_ERROR * spoken) ** 2
        return node.cost + off * off / variance

    def _left(self, node: _Node, text: int, sound: int) -> float:
        """Price of what is left unmatched between a match and this one."""
        return (
            self._text_costs[text]
            - self._text_costs[node.text + 1]
            + self._sound_costs[sound]
            - self._sound_costs[node.sound + 1]
        )

    def _total(self, node: _Node, end: Anchor | None) -> float:
        """Price if this is the last match."""
        text = len(self._text)
        if end is not None:
            cost = self._step(node, *end)
        else:
            cost = node.cost
            spoken = (self._seconds - node.seconds) * (1 - PACE_ERROR) - REACH / 3
            most = node.weight + spoken * self._pace
            text = next(
                (i for i in range(node.text + 1, text) if self._text[i][0] >= most),
                text,
            )
        return cost + self._left(node, text, len(self._sound))
