"""Removes from a text what a tool was called with: words that a person has said.

The text of a tool's exception goes to the log, and often quotes an argument.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

HIDDEN = "[argument]"

MIN_CHARS = 3
"""Shorter words are kept: they occur in any text, and say nothing about a person."""

MAX_WORDS = 500
"""Arguments with more words: the whole text is removed."""

_WORD = re.compile(r"\w+")


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
    found = "|".join(re.escape(it) for it in sorted(words, key=len, reverse=True))
    if not found:
        return lambda text: text
    pattern = re.compile(rf"(?<!\w)(?:{found})(?!\w)", re.IGNORECASE)
    runs = re.compile(rf"{re.escape(HIDDEN)}(?:\W{{1,2}}{re.escape(HIDDEN)})+")
    return lambda text: runs.sub(HIDDEN, pattern.sub(HIDDEN, text))


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
    for word in _WORD.findall(text):
        if len(word) >= MIN_CHARS:
            # As it is written in the text of most exceptions, and in a URL or JSON.
            yield from (word, quote(word, ""), json.dumps(word)[1:-1])
