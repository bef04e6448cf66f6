"""Removes secrets, phone numbers and card numbers from every log line.

The bridge's own messages are static text and need no scrubbing. What is removed here
mostly comes from exceptions of user code, or from a library that quotes a request.
"""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from bridge.privacy.redaction import CARD, card_runs

SECRET, NUMBER = "[secret]", "[number]"

MIN_SECRET_CHARS = 6
"""Shorter secrets are ignored: they occur in any text, and protect nothing."""

MIN_CARD = 10**12
"""Smallest integer that may be a card number."""

MAX_CHARS = 32_000
"""Longest text that is logged: an exception may quote a whole message."""

_KEYS = re.compile(
    r"""
    (?<= :// ) [^\s/@]{0,99} : [^\s/@]{1,99} (?= @ )   # user:password in a url
    | \b (?: sk- | ek_ | whsec_ ) [\w*+/=-]{4,}     # OpenAI's keys, masked or not
    | (?: (?<= \bbearer[ \t] ) | (?<= \bbearer\\t ) | (?<= \bbearer%20 ) )
      [ \t]{0,9} [\w.~+/=-]{8,}
    | (?: (?<= \bbasic[ \t] ) | (?<= \bbasic\\t ) | (?<= \bbasic%20 ) )
      [ \t]{0,9} (?= [a-z]* (?-i: [\dA-Z+/] ) ) [\w+/]{8,} ={0,2}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"\w")
_SPACES = r" \xa0\u2007\u202f"
"""A space, and the no-break spaces of formatters."""
_GAP = rf"(?:[{_SPACES}\t()./\u2011-]|\\u00a0|\\u2007|\\u202f|\\xa0|%20){{0,2}}"
_E164 = re.compile(rf"(?:\+|%2B|\\u002B|\\x2B)[1-9](?:{_GAP}\d){{6,14}}", re.IGNORECASE)
# Does not match a SID, address or id (a letter beside the digits), a date, a fraction
# or a count.
_NATIONAL = re.compile(
    r"(?<!\w)(?<!\d\.)(?<!-[\da-f]{4}-)(?!\d{4}-\d\d-\d\d)"
    rf"(?:\d(?:[{_SPACES}()\u2011-]{{0,2}}\d){{6,14}}|\d{{3}}\.\d{{3}}\.\d{{4}})"
    rf"(?!\w|\.\d|[{_SPACES}](?:bytes|characters|chars|ms|seconds|tokens)\b)"
)


class LogScrubber:
    """Replaces sensitive text in log values; `secrets` are those of this process.

    Removes secrets, API keys, card numbers and E.164 phone numbers from all text. From
    text of others (exceptions, libraries) it also removes what looks like a phone
    number in national form.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long = {it for it in secrets if len(it) >= MIN_SECRET_CHARS}
        written = {form for it in long for form in (it, quote(it, ""), _escaped(it))}
        # The longest first: one secret may contain another.
        escaped = map(re.escape, sorted(written, key=len, reverse=True))
        self._secrets = re.compile("|".join(escaped)) if written else None

    def text(self, text: str, *, theirs: bool = False) -> str:
        """Scrubs a text. `theirs`: it was not written by the bridge."""
        if len(text) > MAX_CHARS:
            # Cut at a space: half of a key would not be recognised as a key.
            text = text[:MAX_CHARS].rpartition(" ")[0] + " [cut]"
        if self._secrets:
            text = self._secrets.sub(SECRET, text)
        text = _KEYS.sub(SECRET, text)
        for begin, end in reversed(list(card_runs(text))):
            # Digits within a SID or another id are not a card number.
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
                return (
                    value
                    if abs(value) < MIN_CARD
                    else self.text(str(value), theirs=True)
                )
            case dict():
                return {
                    self.text(str(key)): self.value(it, theirs)
                    for key, it in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self.value(it, theirs) for it in value]
            case _:
                # The text that the log renderers would write.
                return self.text(repr(value), theirs=True)


def _escaped(secret: str) -> str:
    """The secret as it appears within a JSON text or a repr."""
    return json.dumps(secret)[1:-1]
