"""Removes from a text what a tool was called with: words that a person has said.

The text of a tool's exception goes to the log, and often quotes an argument.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

HIDDEN = "[argument]"

MIN_CHARS = 3
"""Shorter words of ASCII letters are kept: they occur in any text, and say nothing
about a person. A name in Chinese has two characters."""

MAX_WORDS = 500
"""Arguments with more words: the whole text is removed."""

_BETWEEN = re.compile(r"[\s!-/:-@\[-`{-~]+")
r"""Blanks and punctuation of ASCII. Not `\W`: marks that combine with a letter, as in
Hindi, are part of a word."""


def hides(arguments: str) -> Callable[[str], str]:
    """A function that replaces the values of these arguments, JSON as the model wrote
    it, and each word of them, in a text. Upper and lower case are the same."""
    try:
        words = set(_words(json.loads(arguments or "{}")))
    except (ValueError, RecursionError):
        words = set(_in_text(arguments))
    if len(words) > MAX_WORDS:
        return lambda text: HIDDEN if text else ""
    # The longest first: a word may be the beginning of another.
    found = "|".join(map(_as_pattern, sorted(words, key=len, reverse=True)))
    if not found:
        return lambda text: text
    pattern = re.compile(found, re.IGNORECASE)
    runs = re.compile(rf"{re.escape(HIDDEN)}(?:\W{{1,2}}{re.escape(HIDDEN)})+")

    def hide(text: str) -> str:
        composed = unicodedata.normalize("NFC", text)
        return runs.sub(HIDDEN, pattern.sub(HIDDEN, composed))

    return hide


def _as_pattern(word: str) -> str:
    """A word of ASCII as a whole word. Other scripts have no blanks between words, or
    endings that belong to the sentence."""
    if word.isascii():
        return rf"(?<!\w){re.escape(word)}(?!\w)"
    return re.escape(word)


def _words(value: Any) -> Iterator[str]:
    """Names of arguments are the user's code, but those of inner objects may not be."""
    match value:
        case dict():
            for it in value.values():
                yield from _inner(it)
        case _:
            yield from _inner(value)


def _inner(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield from _in_text(value)
        case dict():
            for name, it in value.items():
                yield from _in_text(name)
                yield from _inner(it)
        case list():
            for it in value:
                yield from _inner(it)
        case bool() | None:
            return
        case _:
            yield from _in_text(str(value))


def _in_text(text: str) -> Iterator[str]:
    for word in _BETWEEN.split(unicodedata.normalize("NFC", text)):
        if word and (len(word) >= MIN_CHARS or not word.isascii()):
            # As it is written in the text of most exceptions, and in a URL or JSON.
            yield from (word, quote(word, ""), json.dumps(word)[1:-1])
