"""Reads a YAML file that an operator wrote: plain values and the line of each value.

A value is a dict, a list, a text or None (no value is written). Scalars stay text, as
written: a phone number must not become an integer, and `no` may be a language.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml  # type: ignore[import-untyped]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 20

Loc: TypeAlias = tuple[str | int, ...]
"""Keys and positions (from 0) from the root to a value, as in a pydantic error."""

_SURROGATE = re.compile("[\ud800-\udfff]")
"""A YAML escape can produce a lone surrogate, but UTF-8 cannot encode it."""
_NULL = frozenset({"", "~", "null", "Null", "NULL"})


class Unquoted(str):
    """The text of a scalar that has no quotes in the file."""

    __slots__ = ()


class YamlMistake(NamedTuple):
    line: int
    loc: Loc
    text: str


class NotYaml(Exception):
    """No value of the file can be used."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.mistake = YamlMistake(line, (), text)


class KeyLines(NamedTuple):
    key: int
    """Line of the key of an entry of a mapping; else the same as `value`."""
    value: int
    """Line at which the value begins."""


@dataclass(slots=True)
class YamlFile:
    value: Any = None
    lines: dict[Loc, KeyLines] = field(default_factory=dict)
    """An entry for each value; empty if the file has no value."""
    mistakes: list[YamlMistake] = field(default_factory=list)
    """Keys that are repeated or are not text. `value` does not contain them."""

    def nearest(self, loc: Loc) -> Loc:
        """`loc` without the steps that the file does not have: pydantic adds the tags
        of unions, and a file may have a short form (`queue` for `{answer: queue}`)."""
        found: Loc = ()
        for step in loc:
            if (*found, step) in self.lines:
                found = (*found, step)
        return found

    def at_key(self, loc: Loc, text: str) -> YamlMistake:
        return YamlMistake(self.lines[self.nearest(loc)].key, loc, text)


def read(path: Path) -> YamlFile:
    """Raises NotYaml if the file is unreadable, too large or too deep, or has an alias,
    an anchor or a tag: aliases let a small file expand without limit."""
    text = _text_of(path)
    file = YamlFile()
    events = _checked(yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if file.lines:
                    line = event.start_mark.line + 1
                    raise NotYaml(line, "is not YAML: found a second document")
                file.value = _value(file, events, next(events), ())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(line, "has a character that YAML forbids: remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        raise NotYaml(mark.line + 1, f"is not YAML: {problem}") from None
    return file


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotYaml(1, f"cannot be read ({reason}): check the path") from None
    if len(content) > MAX_BYTES:
        raise NotYaml(1, f"has more than {MAX_BYTES} bytes: shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotYaml(line, "is not UTF-8: save it as UTF-8") from None


def _checked(events: Iterable[Any]) -> Iterator[Any]:
    """Passes the events on; raises NotYaml unless they form a tree of limited depth."""
    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            fix = 'write the value itself, or put a key such as "*" in quotes'
            raise NotYaml(line, f"*{event.anchor} is an alias: {fix}")
        if getattr(event, "anchor", None) is not None:
            raise NotYaml(line, f"&{event.anchor} is an anchor: leave it out")
        if getattr(event, "tag", None) is not None:
            raise NotYaml(line, f"{event.tag} is a tag: leave it out")
        if _SURROGATE.search(getattr(event, "value", "")):
            raise NotYaml(line, "has half of a surrogate pair: remove it")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise NotYaml(line, "is nested too deep: make it flatter")
        yield event


def _value(
    file: YamlFile, events: Iterator[Any], event: Any, loc: Loc, key_line: int = 0
) -> Any:
    """The value that begins with `event`."""
    line = event.start_mark.line + 1
    file.lines[loc] = KeyLines(key_line or line, line)
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(file, events, loc)
    if isinstance(event, yaml.SequenceStartEvent):
        entries: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            entries.append(_value(file, events, event, (*loc, len(entries))))
        return entries
    if event.style is not None:
        return event.value
    return None if event.value in _NULL else Unquoted(event.value)


def _mapping(file: YamlFile, events: Iterator[Any], loc: Loc) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarEvent):
            text = "has a key that is not a text: write a plain word"
            file.mistakes.append(YamlMistake(line, loc, text))
            _value(YamlFile(), events, key, ())
        elif (place := (*loc, key.value)) in file.lines:
            text = f"is in line {file.lines[place].key} already: keep one of the two"
            file.mistakes.append(YamlMistake(line, place, text))
        else:
            found[key.value] = _value(file, events, next(events), place, line)
            continue
        _value(YamlFile(), events, next(events), ())  # skips the value
    return found
