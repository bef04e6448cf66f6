"""Redaction: removes what a route names (`redact`) from a call's texts. PURE.

The agent and its tools get the original text; everything that is stored or handed out
passes through here first. In doubt it removes too much rather than too little: an
operator who names `cards` wants no card number on a disk.
"""

import base64
import contextlib
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from re import _parser  # type: ignore[attr-defined]  # the only access to a parsed pattern
from typing import Any

import msgspec

from bridge.audio import g711
from bridge.core import UNREADABLE
from bridge.core.history import HistoryItem, Playing

CARD, KEYS, DIGITS, REMOVED = "[card number]", "[keys]", "[digits]", "[removed]"

CARD_DIGITS = range(13, 20)
"""Lengths of payment card numbers (ISO/IEC 7812)."""

CARD_BEGINS = frozenset("23456")
"""First digits of payment card numbers (ISO/IEC 7812)."""

LEAST_CARD = 10 ** (CARD_DIGITS[0] - 1)

FEW_DIGITS = 4
"""Shortest run of digits that `digits` removes: a PIN has at least four."""

WINDOW = 256
"""Characters an operator's pattern is matched against at once, as slow patterns are
slow on long texts. Any match of up to half this length is found."""

MAX_WAYS = 70_000
"""Limit of the ways in which a pattern may try to match at one position. A pattern may
have two unbounded repeats, not three."""

FEW_WAYS = 5000
"""A pattern with more ways is slow: it is matched against SLOW_CHARS of a text."""

SLOW_CHARS = 2000
"""Characters of one text that a slow pattern is matched against; the rest is removed.
The slowest pattern needs a tenth of a second for them."""

MAX_PATTERN_CHARS = 500
MAX_CHARS = 20_000
"""Characters of one text that are searched; the rest is removed. A text is searched on
the event loop, at up to 1 us a character (patterns of operators: more)."""

MAX_MESSAGE_CHARS = 2 * MAX_CHARS
"""Characters of all texts of one message, event or JSON value that are searched; later
texts are removed."""

LEAST_COST = 10
"""Characters that a short text counts for: each text has a fixed cost."""

MAX_RUN_CHARS = 256
"""Characters that are searched beyond MAX_CHARS, so that a number which begins before
that position is found: 19 spelled digits with separators are shorter."""

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

# Matched against lower-case text: a case-insensitive expression is five times slower.
_DIGIT = rf"(?:(?:{'|'.join(_TIMES)})[ -])?(?:\d|(?<![a-z])(?:{'|'.join(_SPOKEN)})\b)"
_TOKEN = re.compile(rf"(?:({'|'.join(_TIMES)})[ -])?(?:(\d+)|([a-z]+))")
# Separators as people, tools and transcription models write them: 4111-1111,
# "four, one. One", "4111... 1111". A possessive repeat (`+` behind it) remembers no
# positions to return to.
_SEPARATORS = r"[\s.,\u2026\u200b\u2010-\u2015-]{0,5}+"
_RUN = re.compile(rf"{_DIGIT}(?:{_SEPARATORS}{_DIGIT})++")
_PRESSED = re.compile(r"(?<=pressed these keys on the phone: )[^)]*")
"""The keys in the sentence by which core/conversation.py reports them to the agent."""

_AUDIO = frozenset({"payload", "audio"})
_TOOLS = frozenset({"arguments", "output"})
_IDS = frozenset(
    {
        "accountSid",
        "callSid",
        "call_id",
        "conversation_id",
        "event_id",
        "id",
        "item",
        "item_id",
        "item_ids",
        "items",
        "previous_item_id",
        "response",
        "response_id",
        "streamSid",
    }
)
"""Fields that are kept if their value has the form of an id."""

_ID = re.compile(r"[A-Za-z][\w-]*", re.ASCII)

_NO_TEXT = frozenset(
    {
        "chunk",
        "encoding",
        "event",
        "key_actions",
        "kind",
        "model",
        "object",
        "role",
        "sequenceNumber",
        "timestamp",
        "track",
        "type",
    }
)
"""Fields that are kept: types, counters and settings. Names and codes (`name`, `tool`,
`code`, `status`, `voice`) are searched like any text: the model or user code may put
words into them."""

_NAMED = frozenset({"customParameters", "metadata", "variables"})
"""Fields whose keys are chosen by outsiders, so a key in _IDS or _NO_TEXT proves
nothing."""

_Found = tuple[int, int, str]
"""(start, end, replacement)."""


class Redaction(msgspec.Struct, frozen=True):
    """What one route redacts. With nothing named, every method returns its input.

    With anything named, keys are always hidden, because each key comes alone and cannot
    be judged. Audio and text deltas in a trace are then hidden, too.
    """

    cards: bool = False
    keys: bool = False
    digits: bool = False
    patterns: tuple[re.Pattern[str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def names(self) -> list[str]:
        """What is redacted, by the names a route uses."""
        named = {
            "cards": self.cards,
            "keys": self.keys,
            "digits": self.digits,
            "pattern": self.patterns,
        }
        return [name for name, is_named in named.items() if is_named]

    def text(self, text: str) -> str:
        """Redacts one text."""
        return self.pieces([text])[0]

    def pieces(self, pieces: Sequence[str]) -> list[str]:
        """Redacts one text that is split into pieces.

        The replacement of a match across pieces goes into the first of them.
        """
        if not self:
            return list(pieces)
        whole = "".join(pieces)
        found = _merge_overlaps(self._found(whole))
        kept, begin = [], 0
        for piece in pieces:
            end = begin + len(piece)
            first = bisect_right(found, begin, key=lambda it: it[1])
            last = bisect_left(found, end, lo=first, key=lambda it: it[0])
            kept.append(_replaced(whole, begin, end, found[first:last]))
            begin = end
        return kept

    def heard(self, heard: str, generated: str) -> str:
        """Redacts the heard part of a response, given the whole generated text.

        The beginning of a number that was cut off is removed, too, although alone it
        would not be recognised.
        """
        if not generated.startswith(heard):
            return self.text(heard)
        return self.pieces([heard, generated[len(heard) :]])[0]

    def json(self, text: str) -> str:
        """Redacts a tool's arguments or output. A JSON text stays valid JSON: one that
        is too long, or of which a part was removed that is no value, becomes a JSON
        string."""
        if not self:
            return text
        try:
            value = msgspec.json.decode(text)
            written = _json(value)
        except (*UNREADABLE, TypeError):
            return self.text(text)
        kept = written
        with contextlib.suppress(*UNREADABLE, TypeError):
            if len(written) <= MAX_CHARS:
                kept = _json(self.value(value))
        # Not `text`, which may have digits as escapes.
        kept = self.text(kept)
        if kept == written:
            return text
        return kept if _is_json(kept) else _json(kept)

    def value(self, value: Any) -> Any:
        """Redacts a JSON value of unknown structure: any part of it may hold words."""
        return _Walk(self).value(value)

    def message(self, message: Any) -> Any:
        """Redacts a message of Twilio or the model, or an event of the bridge, as JSON
        values. Its structure, ids and times are kept."""
        return _Walk(self).message(message) if self else message

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

    def _found(self, text: str) -> Iterator[_Found]:
        if len(text) > MAX_CHARS:
            yield (MAX_CHARS, len(text), REMOVED)
            text = text[: MAX_CHARS + MAX_RUN_CHARS]
        for pressed in _PRESSED.finditer(text):
            yield (*pressed.span(), KEYS)
        if self.cards or self.digits:
            for run in _RUN.finditer(text.translate(_LOWER)):
                groups = _groups(run.group())
                if self.cards and _is_card(groups):
                    yield (*run.span(), CARD)
                elif self.digits and sum(map(len, groups)) >= FEW_DIGITS:
                    yield (*run.span(), DIGITS)
        for pattern in self.patterns:
            most = _chars_for(pattern.pattern)
            if len(text) > most:
                yield (most, len(text), REMOVED)
            # Windows overlap by half, so one window contains all of a match of up to
            # half a window.
            for begin in range(0, min(len(text), most), WINDOW // 2):
                for match in pattern.finditer(text, begin, begin + WINDOW):
                    yield (*match.span(), REMOVED)


class _Walk:
    """Redacts one message or one JSON value, with a limit for all of its texts."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._left = MAX_MESSAGE_CHARS

    def value(self, value: Any) -> Any:
        match value:
            case str():
                return self._text(value)
            case dict():
                return {self.value(key): self.value(it) for key, it in value.items()}
            case list() | tuple():
                return [self.value(it) for it in value]
            case int() | float() if not isinstance(value, bool):
                return self._number(value)
            case _:
                return value

    def message(self, message: Any, key: str = "") -> Any:
        match message:
            case dict() if key == "mark":
                # The name of a mark is an id.
                return {name: self.message(it, "id") for name, it in message.items()}
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
            case int() | float() if message >= LEAST_CARD and self._redaction.cards:
                return self._number(message)
            case _:
                return message

    def _heard_in(self, message: dict[str, Any]) -> dict[str, str]:
        generated = message.get("generated")
        given = {name: message.get(name) for name in ("heard", "text")}
        return {
            name: self._redaction.heard(words, generated)
            if self._count(generated)
            else REMOVED
            for name, words in given.items()
            if isinstance(words, str) and isinstance(generated, str)
        }

    def _field(self, kind: object, name: str, value: Any) -> Any:
        if name == "logprobs":
            return []  # repeats the text token by token
        if name in _NAMED:
            return self.value(value)
        if isinstance(kind, str) and isinstance(value, str):
            if name == "delta":
                return silence(value) if kind.endswith("audio.delta") else ""
            if name == "text" and kind.endswith(".segment"):
                return ""
            if name == "event" and kind.endswith("dtmf_event_received"):
                return KEYS
        return self.message(value, name)

    def _words(self, key: str, text: str) -> str:
        if key in _AUDIO:
            return silence(text)
        if key == "digit":
            return KEYS
        if key in _NO_TEXT or (key in _IDS and _ID.fullmatch(text)):
            return text
        if key in _TOOLS:
            return self._redaction.json(text) if self._count(text) else REMOVED
        return self._text(text)

    def _text(self, text: str) -> str:
        return self._redaction.text(text) if self._count(text) else REMOVED

    def _number(self, number: float) -> float | str:
        text = str(number)
        kept = self._text(text)
        return number if kept == text else kept

    def _count(self, text: str) -> bool:
        """Counts a text towards the limit. False: the limit is used up."""
        is_left = self._left > 0
        self._left -= max(len(text), LEAST_COST)
        return is_left


class Copies:
    """Redacted copies of one call's items. Only changed items are redacted again: the
    conversation is stored up to twice a second."""

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
        # Items are mutable: keep a copy to compare with.
        return msgspec.structs.replace(item), self._redaction.item(item)


def card_runs(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of digits, written or spelled out, that contains the
    number of a payment card."""
    for run in _RUN.finditer(text.translate(_LOWER)):
        if _is_card(_groups(run.group())):
            yield run.span()


def _groups(run: str) -> list[str]:
    """The groups of digits in a run (in lower case), split where it has separators."""
    groups: list[list[str]] = []
    end = -1
    for token in _TOKEN.finditer(run):
        times, written, word = token.groups()
        if token.start() != end:
            groups.append([])
        end = token.end()
        digits = _ascii_digits(written) if written else _SPOKEN[word]
        groups[-1].append(digits[0] * _TIMES.get(times, 1) + digits[1:])
    return ["".join(group) for group in groups]


def _ascii_digits(written: str) -> str:
    return written if written.isascii() else "".join(str(int(it)) for it in written)


def _is_card(groups: list[str]) -> bool:
    """Whether a card number begins at the start of a group. Further digits, such as the
    expiry date and the security code, may follow directly."""
    digits = "".join(groups)
    shortest, longest = CARD_DIGITS[0], CARD_DIGITS[-1]
    if len(digits) < shortest:
        return False
    sums = _luhn_sums(digits, 0), _luhn_sums(digits, 1)
    return any(
        (sums[end % 2][end] - sums[end % 2][begin]) % 10 == 0
        for begin in accumulate(map(len, groups), initial=0)
        if digits[begin : begin + 1] in CARD_BEGINS
        for end in range(begin + shortest, min(begin + longest, len(digits)) + 1)
    )


def _luhn_sums(digits: str, parity: int) -> list[int]:
    """Sums of the Luhn check of the digits before each position, where the digits at
    even (`parity` 0) or odd (1) positions are doubled. In a number that ends before
    position n, those at n - 2, n - 4, ... are doubled.
    https://patents.google.com/patent/US2950048A

    With the sums, each part of a long run is checked in the same time."""
    values = list(map(int, digits))
    values[parity::2] = [sum(divmod(2 * it, 10)) for it in values[parity::2]]
    return list(accumulate(values, initial=0))


def silence(payload: str) -> str:
    """Mu-law silence of the same length as the payload; both are base64."""
    return base64.b64encode(g711.SILENCE * g711.payload_bytes(payload)).decode()


def pattern(written: str) -> re.Pattern[str]:
    """Compiles an operator's pattern. ValueError says why it cannot be used.

    Callers control the text it is matched against, so a pattern that may backtrack
    without bound is refused.
    """
    if len(written) > MAX_PATTERN_CHARS:
        raise ValueError(f"has more than {MAX_PATTERN_CHARS} characters")
    try:
        compiled, tree = re.compile(written), _parser.parse(written)
        ways = _ways(tree)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression ({error})") from None
    if tree.getwidth()[0] == 0:
        raise ValueError("matches an empty text: require at least one character")
    if ways > MAX_WAYS:
        raise ValueError("may take too long: bound its repeats, as in {1,20}")
    return compiled


@lru_cache
def _chars_for(written: str) -> int:
    """Characters of one text that a pattern is matched against."""
    is_slow = _ways(_parser.parse(written)) > FEW_WAYS
    return SLOW_CHARS if is_slow else MAX_CHARS + MAX_RUN_CHARS


def _ways(tree: Any, *, is_whole: bool = True) -> int:
    """Upper bound of the ways an expression may try to match at one position."""
    ways = 1
    for at, (operation, given) in enumerate(tree, 1):
        inside = [_ways(part, is_whole=False) for part in _parts(given)]
        if str(operation).endswith("REPEAT"):
            least, most = given[0], min(given[1], WINDOW)
            within = math.prod(inside)
            if within == 1 and is_whole and at == len(tree):
                continue  # nothing follows that could fail, so it has one way
            ways *= max(most - least + 1, 1) * within**most
            # A repeated part with several ways takes up to `most` steps for each.
            ways *= most if within > 1 else 1
        elif str(operation) == "BRANCH":
            ways *= sum(inside)
        else:
            ways *= math.prod(inside)
        ways = min(ways, MAX_WAYS + 1)
    return ways


def _parts(given: Any) -> list[Any]:
    """The subexpressions of an operation."""
    if isinstance(given, _parser.SubPattern):
        return [given]
    if isinstance(given, tuple | list):
        return [part for it in given for part in _parts(it)]
    return []


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except UNREADABLE:
        return False
    return True


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _merge_overlaps(found: Iterable[_Found]) -> list[_Found]:
    """Sorts matches; overlapping ones become one match with the first's replacement."""
    apart: list[_Found] = []
    for begin, end, put in sorted(found, key=lambda it: it[0]):
        if apart and begin < apart[-1][1]:
            first, last, earlier = apart[-1]
            apart[-1] = (first, max(last, end), earlier)
        else:
            apart.append((begin, end, put))
    return apart


def _replaced(whole: str, begin: int, end: int, found: list[_Found]) -> str:
    """`whole[begin:end]` with its matches replaced; a replacement stands where its
    match begins."""
    kept, at = "", begin
    for first, last, put in found:
        kept += whole[at:first] + (put if first >= begin else "")
        at = min(last, end)
    return kept + whole[at:end]
