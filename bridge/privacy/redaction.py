"""What must not be kept of a call, taken out of its words. PURE.

A route names it (`redact`). The agent and its tools have the words themselves; what is
written down or handed out passes here before. Rather is too much taken out than too
little: who names `cards` wants none of them on a disk.
"""

import base64
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from re import _parser  # type: ignore[attr-defined]  # the only way to see inside one
from typing import Any

import msgspec

from bridge.audio import g711
from bridge.core import UNREADABLE
from bridge.core.history import HistoryItem, Playing

CARD, KEYS, DIGITS, REMOVED = "[card number]", "[keys]", "[digits]", "[removed]"

CARD_DIGITS = range(13, 20)
"""ISO/IEC 7812, of the cards that people pay with ..."""

CARD_BEGINS = frozenset("23456")
"""... which begin so."""

LEAST_CARD = 10 ** (CARD_DIGITS[0] - 1)

FEW_DIGITS = 4
"""A PIN has no fewer."""

WINDOW = 256
"""Characters that an expression of the operator's sees at once: what it fits may be
half as long. Expressions that are slow are slow on long texts."""

MAX_WAYS = 70_000
"""Ways in which an expression may try to fit at one place: two open repeats."""

MAX_PATTERN_CHARS = 500
MAX_CHARS = 20_000
"""Of one text that expressions look into; the rest of it is not kept."""

_SPOKEN = {
    "zero": "0",
    "oh": "0",
    "o": "0",
    "nought": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
_TIMES = {"double": 2, "triple": 3}
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
"""For str.translate: str.lower may make a text longer."""

# In small letters: a regular expression that heeds no case takes five times as long.
_DIGIT = rf"(?:(?:{'|'.join(_TIMES)})[ -])?(?:\d|(?<![a-z])(?:{'|'.join(_SPOKEN)})\b)"
_TOKEN = re.compile(rf"(?:({'|'.join(_TIMES)})[ -])?(?:(\d)|([a-z]+))")
# As people, tools and transcription models part them: 4111-1111, "four, one. One",
# "4111... 1111".
_RUN = re.compile(rf"{_DIGIT}(?:[\s.,\u2026\u200b\u2010-\u2015-]{{0,5}}{_DIGIT})+")
_PRESSED = re.compile(r"(?<=pressed these keys on the phone: )[^)]*")
"""Of the sentence that conversation.py has the agent told."""

_AUDIO = frozenset({"payload", "audio"})
_TOOLS = frozenset({"arguments", "output"})
_OURS = frozenset(
    {
        "accountSid",
        "callSid",
        "call_id",
        "chunk",
        "code",
        "conversation_id",
        "encoding",
        "event",
        "event_id",
        "id",
        "item",
        "item_id",
        "item_ids",
        "items",
        "key_actions",
        "kind",
        "model",
        "name",
        "object",
        "previous_item_id",
        "response",
        "response_id",
        "role",
        "sequenceNumber",
        "status",
        "streamSid",
        "timestamp",
        "tool",
        "track",
        "type",
        "voice",
    }
)
"""Fields of messages and events that hold no words: what makes them fit together."""

_NAMED = frozenset({"customParameters", "metadata", "variables"})
"""Fields whose own fields are named by whoever made the call: no name says that they
hold no words."""

_Found = tuple[int, int, str]
"""From, to, and what is put there."""


class Redaction(msgspec.Struct, frozen=True):
    """What one route names. With nothing named all is as it was.

    Whatever is named: keys are hidden, as they come one by one and cannot be judged,
    and in a trace so are the audio and the pieces of which words are put together.
    """

    cards: bool = False
    keys: bool = False
    digits: bool = False
    patterns: tuple[re.Pattern[str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def names(self) -> list[str]:
        """Of what is named, as a route names it."""
        named = {
            "cards": self.cards,
            "keys": self.keys,
            "digits": self.digits,
            "pattern": self.patterns,
        }
        return [name for name, is_named in named.items() if is_named]

    def text(self, text: str) -> str:
        """Words of people."""
        return self.pieces([text])[0]

    def pieces(self, pieces: Sequence[str]) -> list[str]:
        """One text that came in pieces; what lies across them goes with the first."""
        if not self:
            return list(pieces)
        whole = "".join(pieces)
        found = _apart(self._found(whole))
        kept, begin = [], 0
        for piece in pieces:
            kept.append(_without(whole, begin, begin + len(piece), found))
            begin += len(piece)
        return kept

    def heard(self, heard: str, generated: str) -> str:
        """Words of an answer that may have been cut short: of a number that was begun
        nothing is kept, though alone it would be none."""
        if not generated.startswith(heard):
            return self.text(heard)
        return self.pieces([heard, generated[len(heard) :]])[0]

    def json(self, text: str) -> str:
        """Arguments or output of a tool: JSON stays JSON, where it is some."""
        if not self:
            return text
        try:
            value = msgspec.json.decode(text)
            written = _json(value)
            kept = self.text(_json(self.value(value)))
        except (*UNREADABLE, TypeError):
            return self.text(text)
        return text if kept == written else kept

    def value(self, value: Any) -> Any:
        """JSON values of somebody's making: in all of them there may be words."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.value(key): self.value(it) for key, it in value.items()}
            case list() | tuple():
                return [self.value(it) for it in value]
            case int() | float() if not isinstance(value, bool):
                return self._number(value)
            case _:
                return value

    def message(self, message: Any, key: str = "") -> Any:
        """A message of either side, or an event, as JSON values: it keeps its form, its
        ids and its times."""
        if not self:
            return message
        match message:
            case dict():
                kept = {
                    name: self._field(message.get("type"), name, value)
                    for name, value in message.items()
                }
                return kept | self._heard_in(message)
            case list() | tuple():
                return [self.message(it, key) for it in message]
            case str():
                return self._words(key, message)
            case int() | float() if message >= LEAST_CARD and self.cards:
                return self._number(message)
            case _:
                return message

    def item(self, item: HistoryItem) -> HistoryItem:
        if not self:
            return item
        if item.kind == "tool_output":
            text = self.json(item.text)
        else:
            text = self.heard(item.text, item.generated)
        return msgspec.structs.replace(
            item,
            text=text,
            generated=self.text(item.generated),
            arguments=self.json(item.arguments),
        )

    def playing(self, part: Playing) -> Playing:
        texts = self.pieces([text for _, text in part.words])
        words = [(at, text) for (at, _), text in zip(part.words, texts, strict=True)]
        return msgspec.structs.replace(part, words=tuple(words))

    def _heard_in(self, message: dict[str, Any]) -> dict[str, str]:
        generated = message.get("generated")
        given = {name: message.get(name) for name in ("heard", "text")}
        return {
            name: self.heard(words, generated)
            for name, words in given.items()
            if isinstance(words, str) and isinstance(generated, str)
        }

    def _field(self, kind: object, name: str, value: Any) -> Any:
        if name == "logprobs":
            return []  # the words once more, piece by piece
        if name in _NAMED:
            return self.value(value)
        if isinstance(kind, str) and isinstance(value, str):
            if name == "delta":
                return silence(value) if kind.endswith("audio.delta") else ""
            if name == "text" and kind.endswith(".segment"):
                return ""
        return self.message(value, name)

    def _words(self, key: str, text: str) -> str:
        if key in _AUDIO:
            return silence(text)
        if key == "digit":
            return KEYS
        if key in _OURS:
            return text
        return self.json(text) if key in _TOOLS else self.text(text)

    def _number(self, number: float) -> float | str:
        text = str(number)
        kept = self.text(text)
        return number if kept == text else kept

    def _found(self, text: str) -> Iterator[_Found]:
        for pressed in _PRESSED.finditer(text):
            yield (*pressed.span(), KEYS)
        if self.cards or self.digits:
            for run in _RUN.finditer(text.translate(_LOWER)):
                groups = _groups(run.group())
                if self.cards and _is_card(groups):
                    yield (*run.span(), CARD)
                elif self.digits and sum(map(len, groups)) >= FEW_DIGITS:
                    yield (*run.span(), DIGITS)
        if self.patterns and len(text) > MAX_CHARS:
            yield (MAX_CHARS, len(text), REMOVED)
        for pattern in self.patterns:
            # Each window holds half of the one before: what is not longer than that is
            # whole in one of them.
            for begin in range(0, min(len(text), MAX_CHARS), WINDOW // 2):
                for match in pattern.finditer(text, begin, begin + WINDOW):
                    yield (*match.span(), REMOVED)


class Copies:
    """Of the items of one call: made anew only of what has changed, for a conversation
    is written twice a second."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._made: dict[str, tuple[HistoryItem, HistoryItem]] = {}

    def of(self, items: Sequence[HistoryItem]) -> tuple[HistoryItem, ...]:
        if not self._redaction:
            return tuple(items)
        made = {item.id: self._copy(item) for item in items}
        self._made = made
        return tuple(copy for _, copy in made.values())

    def _copy(self, item: HistoryItem) -> tuple[HistoryItem, HistoryItem]:
        before = self._made.get(item.id)
        if before is not None and before[0] == item:
            return before
        # Items change: compared is what it was.
        return msgspec.structs.replace(item), self._redaction.item(item)


def card_runs(text: str) -> Iterator[tuple[int, int]]:
    """From where to where there are runs of digits, written or spoken, that have the
    number of a payment card in them."""
    for run in _RUN.finditer(text.translate(_LOWER)):
        if _is_card(_groups(run.group())):
            yield run.span()


def _groups(run: str) -> list[str]:
    """The digits of a run (in small letters), as it groups them."""
    groups: list[str] = []
    end = -1
    for token in _TOKEN.finditer(run):
        times, written, word = token.groups()
        if token.start() != end:
            groups.append("")
        end = token.end()
        digit = str(int(written)) if written else _SPOKEN[word]
        groups[-1] += digit * _TIMES.get(times, 1)
    return groups


def _is_card(groups: list[str]) -> bool:
    """It begins where a group does; its date and its code may follow at once."""
    digits = "".join(groups)
    begins = accumulate(map(len, groups), initial=0)
    return any(
        _luhn(digits[begin : begin + length])
        for begin in begins
        if digits[begin : begin + 1] in CARD_BEGINS
        for length in CARD_DIGITS
        if begin + length <= len(digits)
    )


def _luhn(digits: str) -> bool:
    """https://patents.google.com/patent/US2950048A"""
    doubled = [divmod(2 * int(digit), 10) for digit in digits[-2::-2]]
    return (sum(map(sum, doubled)) + sum(map(int, digits[::-2]))) % 10 == 0


def silence(payload: str) -> str:
    """Base64 of mu-law silence, as long as that."""
    return base64.b64encode(g711.SILENCE * g711.payload_bytes(payload)).decode()


def pattern(written: str) -> re.Pattern[str]:
    """An expression of the operator's. ValueError says why it cannot be used.

    Callers choose the words that it is tried on, so one that may try for ever is none.
    """
    if len(written) > MAX_PATTERN_CHARS:
        raise ValueError(f"has more than {MAX_PATTERN_CHARS} characters")
    try:
        compiled, tree = re.compile(written), _parser.parse(written)
        ways = _ways(tree)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression ({error})") from None
    if tree.getwidth()[0] == 0:
        raise ValueError("fits where there is nothing: let it want a character")
    if ways > MAX_WAYS:
        raise ValueError("may take too long: bound its repeats, as in {1,20}")
    return compiled


def _ways(tree: Any) -> int:
    """In how many ways an expression may be tried at one place, at most."""
    ways = 1
    for operation, given in tree:
        inside = [_ways(part) for part in _parts(given)]
        if str(operation).endswith("REPEAT"):
            least, most = given[0], min(given[1], WINDOW)
            within = math.prod(inside)
            ways *= max(most - least + 1, 1) * within**most
            # What is repeated in several ways takes so many steps for each of them.
            ways *= most if within > 1 else 1
        elif str(operation) == "BRANCH":
            ways *= sum(inside)
        else:
            ways *= math.prod(inside)
        ways = min(ways, MAX_WAYS + 1)
    return ways


def _parts(given: Any) -> list[Any]:
    """The expressions within an operation."""
    if isinstance(given, _parser.SubPattern):
        return [given]
    if isinstance(given, tuple | list):
        return [part for it in given for part in _parts(it)]
    return []


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _apart(found: Iterable[_Found]) -> list[_Found]:
    """In order; of those that overlap one, named as the first of them is."""
    apart: list[_Found] = []
    for begin, end, put in sorted(found, key=lambda it: it[0]):
        if apart and begin < apart[-1][1]:
            first, last, earlier = apart[-1]
            apart[-1] = (first, max(last, end), earlier)
        else:
            apart.append((begin, end, put))
    return apart


def _without(whole: str, begin: int, end: int, found: list[_Found]) -> str:
    """That part of the whole; what is put stands where a thing began."""
    kept, at = "", begin
    for first, last, put in found:
        if first >= end or last <= at:
            continue
        kept += whole[at:first] + (put if first >= begin else "")
        at = min(last, end)
    return kept + whole[at:end]
