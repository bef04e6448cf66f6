"""A caller and an agent that count, so that every word of a call can be accounted for.

A word is 400 ms of ruler audio with its own number: the sound itself tells what the
caller and the model heard. The fake agent continues at the word at which it was cut, as
a model does that gets the position; so lost and repeated words can be seen. Pure.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bridge.sim.realtime.items import RememberedItem
from bridge.sim.realtime.turns import CallTool, PlayAudio, Turn, TurnContext
from bridge.sim.ruler import BLOCK, LIMIT, ruler

WORD_MS = 400
MAX_CALL, MAX_TURN, MAX_PLACE = 499, 19, 49
# From this fraction on, a word was spoken; speaking it again is a repetition.
WHOLE = 0.9
# From this fraction on, a cut word was understood, unless it is spoken again.
ENOUGH = 0.5
TOOL = "look_up"

_SPEAKERS = ("user", "assistant")
_WORD = re.compile(r"\b([ac])(\d+)-(\d+)-(\d+)\b")
_OF_AGENT = 500_000
_OF_CALL = 1000
_OF_TURN = 50
_SYNC = ruler(1, 1)[0]
_SHIFTS = np.arange(7, dtype=np.uint64)[::-1] * np.uint64(7)
_MASK = np.frombuffer(ruler(0, 1), np.uint8)[1:].astype(np.uint64)

Speaker: TypeAlias = Literal["agent", "caller"]


@dataclass(frozen=True, slots=True, order=True)
class CountedWord:
    """The nth word (`place`, from 1) of a speaker's mth utterance (`turn`)."""

    speaker: Speaker
    call: int
    turn: int
    place: int

    def __str__(self) -> str:
        return f"{self.speaker[0]}{self.call}-{self.turn}-{self.place}"

    @property
    def number(self) -> int:
        """The word's ruler number."""
        of_speaker = _OF_AGENT if self.speaker == "agent" else 0
        return of_speaker + self.call * _OF_CALL + self.turn * _OF_TURN + self.place

    @classmethod
    def of(cls, number: int) -> "CountedWord":
        agent, number = divmod(number, _OF_AGENT)
        call, number = divmod(number, _OF_CALL)
        return cls("agent" if agent else "caller", call, *divmod(number, _OF_TURN))


def utterance(
    speaker: Speaker, call: int, turn: int, count: int, first: int = 1
) -> tuple[CountedWord, ...]:
    """The words from `first` up to the `count`th."""
    if call > MAX_CALL or turn > MAX_TURN or count > MAX_PLACE:
        raise ValueError("the number of the call, turn or word is too large")
    return tuple(CountedWord(speaker, call, turn, k) for k in range(first, count + 1))


@lru_cache(maxsize=4096)
def sound(words: tuple[CountedWord, ...]) -> bytes:
    """The words as mu-law, without pauses."""
    return b"".join(ruler(word.number, WORD_MS) for word in words)


def text(words: Iterable[CountedWord]) -> str:
    return " ".join(map(str, words))


def parse_words(text: str) -> list[CountedWord]:
    """The counted words of a text; other words are skipped."""
    speakers: dict[str, Speaker] = {"a": "agent", "c": "caller"}
    return [
        CountedWord(speakers[speaker], int(call), int(turn), int(place))
        for speaker, call, turn, place in _WORD.findall(text)
    ]


@dataclass(frozen=True, slots=True)
class WordSegment:
    """A contiguous part of one word in mu-law audio."""

    word: CountedWord
    ms: int
    at_ms: int  # start in the audio

    @property
    def whole(self) -> bool:
        return self.ms >= WHOLE * WORD_MS


def word_segments(mulaw: bytes) -> list[WordSegment]:
    """The words and partial words in `mulaw`, in order.

    A word split by silence is one segment; a word that starts again is two.
    """
    numbers, ms, at = _blocks(mulaw)
    if not len(numbers):
        return []
    begins = np.flatnonzero((np.diff(numbers) != 0) | (np.diff(ms) <= 0)) + 1
    edges = [0, *begins.tolist(), len(numbers)]
    return [
        WordSegment(CountedWord.of(int(numbers[a])), b - a, int(at[a]) // BLOCK)
        for a, b in pairwise(edges)
    ]


def understood_words(mulaw: bytes) -> list[CountedWord]:
    """The words that a listener understands: whole words, and cut words that are not
    repeated."""
    heard = word_segments(mulaw)
    whole = {each.word for each in heard if each.whole}
    pieces: Counter[CountedWord] = Counter()
    for each in heard:
        pieces[each.word] += each.ms
    understood: list[CountedWord] = []
    for each in heard:
        if each.whole:
            understood.append(each.word)
        elif each.word not in whole and pieces[each.word] >= ENOUGH * WORD_MS:
            whole.add(each.word)  # the other segments of the word do not count
            understood.append(each.word)
    return understood


def recognise(mulaw: bytes) -> str:
    """A `Behaviour.recogniser` for a session in mu-law."""
    return text(word for word in understood_words(mulaw) if word.speaker == "caller")


def _blocks(
    mulaw: bytes,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each whole millisecond of ruler audio: item number, ms, position."""
    audio = np.frombuffer(mulaw, np.uint8)
    at = np.flatnonzero(audio[: max(0, len(audio) - BLOCK + 1)] == _SYNC)
    data = audio[at[:, None] + np.arange(1, BLOCK)].astype(np.uint64)
    at, data = at[(data < 0x80).all(axis=1)], data[(data < 0x80).all(axis=1)]
    value = ((data ^ _MASK) << _SHIFTS).sum(axis=1).astype(np.int64)
    numbers, ms, check = value >> 29, value >> 9 & (LIMIT - 1), value & 511
    good = check == (ms * 181 + numbers * 77 + ms // 128 * 29) % 511
    return numbers[good], ms[good], at[good]


# --- the agent ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CountingAgent:
    """A `Behaviour.answer`: each answer counts from 1 to `words`.

    The agent knows only the conversation. If a system message follows a cut answer, the
    next answer continues at the cut. In the caller's turns `tool_turns`, the agent
    calls `TOOL` first.
    """

    words: int = 6
    tool_turns: frozenset[int] = frozenset()

    def __call__(self, context: TurnContext) -> Turn:
        conversation = context.conversation
        spoken = [it for it in conversation if it.kind != "system"]
        last = spoken[-1] if spoken else None
        counted = [w for it in spoken for w in parse_words(it.text)]
        call = next((w.call for w in reversed(counted) if w.speaker == "caller"), 0)
        if last is not None and last.kind == "user":
            turn = max((w.turn for w in parse_words(last.text)), default=0)
            if turn in self.tool_turns:
                return [CallTool(TOOL, {"turn": turn})]
        answers = [w for w in counted if w.speaker == "agent"]
        latest = max(answers, key=lambda w: (w.turn, w.place), default=None)
        if latest is None:
            return self._count(call, 1)
        instructed = conversation[-1].kind == "system"
        cut = last is not None and last.kind == "assistant" and instructed
        if cut and latest.place < self.words:
            return self._count(call, latest.turn, latest.place + 1)
        return self._count(call, latest.turn + 1)

    def _count(self, call: int, turn: int, first: int = 1) -> Turn:
        words = utterance("agent", call, turn, self.words, first)
        return [PlayAudio(sound(words), text(words))]


# --- comparing --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WordComparison:
    """The words that should have been heard, compared with those that were."""

    lost: tuple[CountedWord, ...]
    repeated: tuple[CountedWord, ...]
    strange: tuple[CountedWord, ...]  # words that this call does not expect
    in_order: bool

    @property
    def good(self) -> bool:
        return self.in_order and not (self.lost or self.repeated or self.strange)


def compare_words(
    expected: Sequence[CountedWord], heard: Sequence[CountedWord]
) -> WordComparison:
    """Compare the words. The call's number in the agent's words is ignored, because the
    agent may not know it."""
    wanted = [_plain(word) for word in expected]
    got = [_plain(word) for word in heard]
    counts, known = Counter(got), set(wanted)
    firsts = list(dict.fromkeys(word for word in got if word in known))
    return WordComparison(
        lost=tuple(w for w in wanted if w not in counts),
        repeated=tuple(w for w in wanted for _ in range(counts[w] - 1)),
        strange=tuple(w for w in got if w not in known),
        in_order=firsts == [word for word in wanted if word in counts],
    )


def _plain(word: CountedWord) -> CountedWord:
    if word.speaker == "caller":
        return word
    return CountedWord("agent", 0, word.turn, word.place)


def conversation_lines(conversation: Iterable[RememberedItem]) -> list[str]:
    """The conversation as comparable lines: each speaker's words, calls, results.

    Consecutive items of one speaker are one line; system messages and empty items are
    left out.
    """
    lines: list[tuple[str, str]] = []
    for kind, words in _words_of_items(conversation):
        if kind in _SPEAKERS and lines and lines[-1][0] == kind:
            lines[-1] = (kind, f"{lines[-1][1]} {words}")
        else:
            lines.append((kind, words))
    return [f"{kind}: {words}" for kind, words in lines]


def _words_of_items(
    conversation: Iterable[RememberedItem],
) -> Iterator[tuple[str, str]]:
    for item in conversation:
        if item.kind in _SPEAKERS:
            words = text(_plain(word) for word in parse_words(item.text))
            if words:
                yield item.kind, words
        elif item.kind in ("function_call", "function_call_output"):
            yield item.kind, f"{item.name} {item.text}"
