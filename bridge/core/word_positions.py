"""Where each word of a spoken item lies in its audio: an estimate. PURE.

A server sends words and audio as two streams. When a word arrived says little by itself
about where it is spoken: some servers send words a second ahead of their audio, all of
them before it, or all behind it. So the text is laid along the speech by its length,
punctuation is matched with the pauses, and only then the arrival of the words refines
the positions, if the distance proves to be constant. docs/architecture.md gives the
reasons.

Positions are in seconds of speech: pauses are left out.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import Annotated

import msgspec

from bridge.audio.g711 import BYTES_PER_MS
from bridge.audio.pauses import Pause
from bridge.core import pause_matching
from bridge.core.pause_matching import Anchor, Breaks

SECOND = 1000 * BYTES_PER_MS

_HAN = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"(?:[{_HAN}][^\w\s]*|[^\s{_HAN}]+)\s*")
"""A word with the blanks behind it. Japanese and Chinese have none between words: there
each character counts."""

_SENTENCE_ENDS = ".?!\u2026:;\u3002\uff01\uff1f"
_CLAUSE_ENDS = ",\u2014\u2013)\uff0c\u3001"

MAX_WORDS = 3000
"""Most words whose punctuation is matched with pauses: fifteen minutes of speech."""

WORD_WEIGHT = 1.0
"""What a word takes besides its characters, in characters."""

BREAK_WEIGHT = 3.0
"""The word before a punctuation is drawn out."""

DIGIT_WEIGHT = 4.0
"""A digit is a word by itself."""

PACE = 19.0
"""Weight of the text in a second of speech, until it is learned."""

PACE_SPREAD, LEARNED_SPREAD, ARRIVAL_SPREAD = 0.2, 0.06, 0.3
"""Standard deviation of a pace's logarithm: unlearned, learned, and from the arrival of
the words in one second of speech."""

PACES = (0.7, 0.76, 0.82, 0.88, 0.94, 1, 1.07, 1.15, 1.24, 1.33, 1.43, 1.55)
LEARNED_PACES = (0.9, 0.95, 1, 1.05, 1.1)
"""Paces that are tried where the end of the text is not known, as shares of the pace
that is expected."""

POSSIBLE_PACES = (8, 33)
TEXT_FITS, LEARNED_TEXT_FITS = 0.4, 0.25
"""Text that came behind all audio is the text of that audio, if the logarithm of its
pace is so near to the one expected."""

TRUST_SECONDS = 4.0
"""Speech up to the last matched pause that outweighs the pace that was expected."""

TIED_SECONDS = 0.22
"""Words and audio are tied if half of the words deviate less from the lead."""

LEAD_WORDS = 3
"""Least number of arrivals from which a lead can be computed."""

ENOUGH_SECONDS = 20.0
"""Speech from which a pace is learned; later speech costs no CPU."""

LEAST_SECONDS = 1.0
"""Shorter speech teaches no pace."""


class Pace(msgspec.Struct, frozen=True):
    """How a server speaks, and how it ties words to audio: learned in a call."""

    weight: Annotated[float, msgspec.Meta(gt=0)] = PACE
    """Weight of the text in one second of speech."""
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Speech from which it was learned."""
    lead: float | None = None
    """Bytes of audio from the arrival of a word to the word itself, negative for a
    server whose words come late; None: not known, or not constant."""

    @property
    def is_learned(self) -> bool:
        return self.seconds > 0

    @property
    def is_settled(self) -> bool:
        return self.seconds >= ENOUGH_SECONDS


class SpeechSeconds:
    """Converts bytes of an item's audio to seconds of speech, and back."""

    def __init__(self, pauses: Sequence[Pause]) -> None:
        self.pauses = pauses
        self._begins = [begin for begin, _ in pauses]
        self._silent = list(accumulate((e - b for b, e in pauses), initial=0))
        self.positions = [self.at(begin) for begin in self._begins]
        """Of each pause."""

    def at(self, byte: float) -> float:
        index = bisect_right(self._begins, byte)
        silent: float = self._silent[index]
        if index:
            silent -= max(self.pauses[index - 1][1] - byte, 0)
        return (byte - silent) / SECOND

    def byte(self, seconds: float) -> float:
        """Of a word that begins here: behind the pause, if there is one."""
        index = bisect_right(self.positions, seconds + 1e-9)
        return seconds * SECOND + self._silent[index]


class WordPositions:
    """The words of one item, each with an estimate of its position.

    `pieces`: (byte of the audio at which the text arrived, text), in order. `received`:
    bytes of audio. `whole`: there is no more audio, and no text without audio.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[int, str]],
        pauses: Sequence[Pause],
        received: int,
        pace: Pace,
        *,
        whole: bool,
    ) -> None:
        text = "".join(piece for _, piece in pieces)
        self._words: list[str] = _WORD.findall(text)
        if self._words:
            blank = len(text) - len(text.lstrip())
            self._words[0] = text[:blank] + self._words[0]
        self._ends = list(accumulate(map(_weight, self._words), initial=0.0))
        self._received = received
        self._speech = SpeechSeconds(pauses)
        self._seconds = self._speech.at(received)
        self._expected = pace
        self._first = self._arrivals(pieces)
        self._whole = whole or self._is_text_of_audio(pieces)
        self._pace = pace.weight
        self._anchors: list[Anchor] = [(0.0, 0.0)]
        if self._words:
            self._match_pauses()
        self._matched = self._anchors
        self._lead = self._find_lead()
        if self._words:
            self._follow_arrivals()

    # --- questions ---

    def before(self, heard: int) -> str:
        """The words of which at least one half lies before the byte `heard`."""
        if heard <= 0:
            return ""
        seconds = self._speech.at(min(heard, self._received))
        count = 0
        for begin, end in zip(self._ends, self._ends[1:], strict=False):
            if self._at((begin + end) / 2) > seconds:
                break
            count += 1
        text = "".join(self._words[:count])
        return text if count == len(self._words) else text.rstrip()

    def placed(self) -> list[tuple[int, str]]:
        """(byte at which the word begins, word), in order."""
        return [
            (int(self._speech.byte(self._at(begin))), word)
            for begin, word in zip(self._ends, self._words, strict=False)
        ]

    def learn(self) -> Pace:
        """What is known of the pace after this item."""
        old = self._expected
        weight, seconds = self._matched[-1]
        if seconds < LEAST_SECONDS:
            return old
        if not self._whole:
            seconds *= 0.3  # a pause may be matched with the wrong punctuation
        known = old.seconds + seconds
        pace = weight / self._matched[-1][1]
        learned = (old.weight * old.seconds + pace * seconds) / known
        if not self._whole or self._lead is None:
            return Pace(learned, known, old.lead)
        lead, spread = self._lead
        if spread >= 2 * TIED_SECONDS:
            return Pace(learned, known)
        if spread >= TIED_SECONDS:
            return Pace(learned, known, old.lead)
        before = lead if old.lead is None else old.lead
        return Pace(learned, known, (before + lead) / 2)

    # --- the text along the audio ---

    def _arrivals(self, pieces: Sequence[tuple[int, str]]) -> dict[int, int]:
        """Byte of the audio -> the first word that arrived there."""
        first: dict[int, int] = {}
        begins = list(accumulate(map(len, self._words), initial=0))
        at_char = 0
        for at, text in pieces:
            word = bisect_right(begins, at_char) - 1
            if begins[word] < at_char:
                word += 1  # the delta begins within a word
            at_char += len(text)
            if begins[min(word, len(begins) - 1)] < at_char:
                first.setdefault(at, word)
        return first

    def _is_text_of_audio(self, pieces: Sequence[tuple[int, str]]) -> bool:
        """All text came behind all audio, and is not longer than the audio."""
        if not self._words or pieces[0][0] < self._received or self._seconds < 0.5:
            return False
        fits = LEARNED_TEXT_FITS if self._expected.is_learned else TEXT_FITS
        pace = self._ends[-1] / self._seconds
        return abs(math.log(pace / self._expected.weight)) < fits

    def _match_pauses(self) -> None:
        matching = pause_matching.Matching(self._breaks())
        if self._whole:
            self._pace = self._ends[-1] / max(self._seconds, 0.1)
            end = (self._ends[-1], self._seconds)
            self._anchors = matching.best(self._pace, end).anchors
            return
        paces = LEARNED_PACES if self._expected.is_learned else PACES
        spread = LEARNED_SPREAD if self._expected.is_learned else PACE_SPREAD
        arriving = self._arriving_pace()
        most = self._most_pace()
        best = math.inf
        for share in paces:
            pace = min(self._expected.weight * share, most)
            found = matching.best(pace, None)
            off = math.log(pace / self._expected.weight)
            cost = found.cost + (off / spread) ** 2
            if arriving is not None:
                by_words, seconds = arriving
                off = math.log(pace / by_words) * seconds / ARRIVAL_SPREAD
                cost += off**2
            if cost < best:
                best, self._pace, self._anchors = cost, pace, found.anchors
        weight, seconds = self._anchors[-1]
        total = weight + self._pace * TRUST_SECONDS
        self._pace = total / (seconds + TRUST_SECONDS)

    def _most_pace(self) -> float:
        """Words that come before their audio reach to the end of the audio."""
        if 0 not in self._first:
            return math.inf
        words = self._first.get(self._received, len(self._words))
        return max(self._ends[words], WORD_WEIGHT) / max(self._seconds, 0.1)

    def _breaks(self) -> Breaks:
        if len(self._words) > MAX_WORDS:
            return Breaks((), (), self._seconds)
        text = []
        for word, end in zip(self._words[:-1], self._ends[1:], strict=False):
            last = word.rstrip()[-1]
            if last in _SENTENCE_ENDS or last in _CLAUSE_ENDS:
                text.append((end, last in _SENTENCE_ENDS))
        pauses = zip(self._speech.positions, self._speech.pauses, strict=True)
        sound = [(at, (end - begin) / SECOND) for at, (begin, end) in pauses]
        return Breaks(tuple(text), tuple(sound), self._seconds)

    # --- when the words arrived ---

    def _informative(self) -> list[tuple[int, int]]:
        """(byte, first word) of the arrivals between two deltas of audio. Words that
        came before all audio, or behind it, may lie anywhere."""
        last = len(self._words)
        return [
            (at, word)
            for at, word in self._first.items()
            if 0 < at < self._received and word < last
        ]

    def _arriving_pace(self) -> tuple[float, float] | None:
        """(weight of the words that arrive in a second of speech, seconds); None: too
        few, or the words come much faster than they can be spoken."""
        points = [(self._speech.at(a), self._ends[w]) for a, w in self._informative()]
        if len(points) < LEAD_WORDS or points[-1][0] - points[0][0] < LEAST_SECONDS:
            return None
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        above = sum((x - mean_x) * (y - mean_y) for x, y in points)
        pace = above / sum((x - mean_x) ** 2 for x, _ in points)
        low, high = POSSIBLE_PACES
        return (pace, points[-1][0] - points[0][0]) if low < pace < high else None

    def _find_lead(self) -> tuple[float, float] | None:
        """(lead in bytes, deviation of half of the words from it in seconds)."""
        arrivals = self._informative()
        if len(arrivals) < LEAD_WORDS:
            return None
        leads = [self._speech.byte(self._at(self._ends[w])) - a for a, w in arrivals]
        lead = median(leads)
        return lead, median(abs(it - lead) for it in leads) / SECOND

    def _follow_arrivals(self) -> None:
        """Puts each word where it arrived, moved by the lead, if the lead is known."""
        if self._lead is None:
            return
        lead: float | None = self._lead[0] if self._lead[1] < TIED_SECONDS else None
        if not self._whole and self._expected.lead is not None:
            lead = self._expected.lead
        if lead is None:
            return
        anchors: list[Anchor] = [(0.0, 0.0)]
        most = self._seconds if self._whole else math.inf
        for at, word in self._informative():
            weight, seconds = self._ends[word], self._speech.at(max(at + lead, 0))
            if anchors[-1][0] < weight and anchors[-1][1] < seconds < most:
                anchors.append((weight, seconds))
        if self._whole:
            anchors.append(self._anchors[-1])
        self._anchors = anchors

    def _at(self, weight: float) -> float:
        """Position of a weight, in seconds of speech."""
        index = bisect_right(self._anchors, (weight, math.inf)) - 1
        before, since = self._anchors[index]
        if index + 1 == len(self._anchors):
            return since + (weight - before) / self._pace
        after, until = self._anchors[index + 1]
        return since + (until - since) * (weight - before) / (after - before)


def _weight(word: str) -> float:
    """How long a word is spoken, in characters."""
    digits = sum(map(str.isdigit, word))
    letters = sum(map(str.isalpha, word))
    han = 2 * letters if word.strip()[0] >= "\u2e80" else 0
    drawn = BREAK_WEIGHT * (word.rstrip()[-1] in _SENTENCE_ENDS + _CLAUSE_ENDS)
    return WORD_WEIGHT + letters + han + DIGIT_WEIGHT * digits + drawn
