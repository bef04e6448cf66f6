"""What no log line may hold, whoever wrote it: a net below all that is logged.

Our own messages are static text, and most of what is caught here was never meant to
come: the text of an exception of the user's code, a library that quotes a request.
"""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from bridge.privacy.redaction import CARD, card_runs

SECRET, NUMBER = "[secret]", "[number]"

MIN_SECRET_CHARS = 6
"""What is shorter is found everywhere; it protects nothing either."""

BIG = 10**12
"""Whole numbers from here on may be a card's."""

MAX_CHARS = 32_000
"""Of one value: an exception may quote a whole message."""

_KEYS = re.compile(
    r"""
    (?<= :// ) [^\s/@]{0,99} : [^\s/@]{1,99} (?= @ )   # user:password of a url
    | \b (?: sk- | ek_ | whsec_ ) [\w*+/=-]{4,}     # OpenAI's, also as it masks them
    | (?<= \bbearer[ ] ) [\w.~+/=-]{8,}
    | (?<= \bbasic[ ] ) (?= [a-z]* (?-i: [\dA-Z+/] ) ) [\w+/]{8,} ={0,2}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"\w")
_E164 = re.compile(r"(?:\+|%2B)[1-9](?:[ ().-]{0,2}\d){6,14}", re.IGNORECASE)
# No SID, address or id (a letter beside it), date, fraction or count of something.
_NATIONAL = re.compile(
    r"(?<!\w)(?<!\d\.)(?<!-[\da-f]{4}-)(?!\d{4}-\d\d-\d\d)"
    r"(?:\d(?:[ ()-]{0,2}\d){6,14}|\d{3}\.\d{3}\.\d{4})"
    r"(?!\w|\.\d| (?:bytes|characters|chars|ms|seconds|tokens)\b)"
)


class LogScrubber:
    """Takes out of a value what no log line may have; `secrets` are the process' own.

    Phone numbers in E.164, card numbers and keys are taken out of everything; where
    others wrote the text (exceptions, libraries) so is what looks like a number
    somebody would dial at home.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long = {it for it in secrets if len(it) >= MIN_SECRET_CHARS}
        written = {form for it in long for form in (it, quote(it, ""), _escaped(it))}
        # The longest first: one may be a part of another.
        anyone = map(re.escape, sorted(written, key=len, reverse=True))
        self._secrets = re.compile("|".join(anyone)) if written else None

    def text(self, text: str, *, theirs: bool = False) -> str:
        """`theirs`: somebody else wrote it."""
        if len(text) > MAX_CHARS:
            # Not in the middle of a key, which would not be known for one.
            text = text[:MAX_CHARS].rpartition(" ")[0] + " [cut]"
        if self._secrets:
            text = self._secrets.sub(SECRET, text)
        text = _KEYS.sub(SECRET, text)
        for begin, end in reversed(list(card_runs(text))):
            # The digits in a SID or another id are none.
            beside = text[max(begin - 1, 0) : begin] + text[end : end + 1]
            if not _WORD.search(beside):
                text = text[:begin] + CARD + text[end:]
        text = _E164.sub(NUMBER, text)
        return _NATIONAL.sub(NUMBER, text) if theirs else text

    def value(self, value: Any, theirs: bool) -> Any:
        match value:
            case str():
                return self.text(value, theirs=theirs)
            case bool() | float() | None:
                return value
            case int():
                return value if abs(value) < BIG else self.text(str(value), theirs=True)
            case dict():
                return {
                    self.text(str(key)): self.value(it, theirs)
                    for key, it in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self.value(it, theirs) for it in value]
            case _:
                # As the renderers would write it.
                return self.text(repr(value), theirs=True)


def _escaped(secret: str) -> str:
    """As it is within a JSON text, or a repr."""
    return json.dumps(secret)[1:-1]
