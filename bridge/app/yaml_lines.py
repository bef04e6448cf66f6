"""A YAML file an operator wrote: plain values, and every mistake with its line.

Scalars stay the texts they were written as, so a phone number is no sum and `no` may
be a language. Knows nothing of what the keys mean.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml  # type: ignore[import-untyped]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 20

Node: TypeAlias = yaml.Node
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_OFF = frozenset({"off", "no", "false", "none"})
_WHOLE = re.compile("[0-9]{1,9}")
_JSON_INT = re.compile("-?(0|[1-9][0-9]{0,17})")
_JSON_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}([eE][-+]?[0-9]{1,2})?")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Wrong(Exception):
    """What is wrong with a value; `YamlFile.at` puts its key before it."""

    def __init__(self, where: Node | int, text: str) -> None:
        super().__init__(text)
        self.line = where if isinstance(where, int) else line_of(where)
        self.text = text


class Told(Exception):
    """There is no value, as the mistakes in it have been told already."""


class YamlFile:
    """One file while it is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path: list[str] = []
        self._mistakes: list[tuple[int, str]] = []
        self._warnings: list[tuple[int, str]] = []

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Each as `FILE:LINE: what is wrong, and what to write instead`."""
        return self._said(self._mistakes)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._said(self._warnings)

    def wrong(self, line: int, text: str, *below: str | int) -> None:
        """A mistake of the key that is being read, or of one `below` it."""
        self._mistakes.append((line, self._named(text, below)))

    def keep(self, error: Wrong | Told) -> None:
        if isinstance(error, Wrong):
            self.wrong(error.line, error.text)

    def warn(self, line: int, text: str, *below: str | int) -> None:
        self._warnings.append((line, self._named(text, below)))

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Reads the value of a key; a mistake in it is kept, and the next is read."""
        self._path.append(key)
        try:
            yield
        except (Wrong, Told) as error:
            self.keep(error)
        finally:
            self._path.pop()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Told at the end, if anything in it was wrong."""
        before = len(self._mistakes)
        yield
        if len(self._mistakes) > before:
            raise Told

    def _named(self, text: str, below: Iterable[str | int]) -> str:
        name = ".".join(map(str, (*self._path, *below)))
        return f"{name} {text}" if name else text

    def _said(self, found: list[tuple[int, str]]) -> tuple[str, ...]:
        return tuple(f"{self.name}:{line}: {text}" for line, text in sorted(found))


Read = Callable[[YamlFile, Node], Any]
"""One kind of value. Wrong or Told if there is none."""


def root_of(path: Path) -> Node | None:
    """What the file holds; None: nothing. Neither aliases nor tags are taken."""
    text = _text_of(path)
    try:
        # The events first: they come without recursion, so that what would take too
        # much of it, or grow by aliases, is never built.
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Wrong(line, "has a character no YAML has: remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context
        raise Wrong(mark.line + 1, f"is no YAML: {problem}") from None


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise Wrong(1, f"cannot be read ({reason}): name a file that can") from None
    if len(content) > MAX_BYTES:
        raise Wrong(1, f"has more than {MAX_BYTES} bytes: shorten it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Wrong(line, "is not UTF-8: save it as UTF-8") from None


def _check_events(events: Iterable[Any]) -> None:
    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise Wrong(line, f'*{event.anchor} is an alias: write it out, or "*"')
        if getattr(event, "anchor", None) is not None:
            raise Wrong(line, f"&{event.anchor} is an anchor: leave it out")
        if getattr(event, "tag", None) is not None:
            raise Wrong(line, f"{event.tag} is a tag: leave it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise Wrong(line, "is nested too deep: make it flatter")


def line_of(node: Node) -> int:
    line: int = node.start_mark.line
    return line + 1


# ----------------------------------------------------------------------------- mappings


@dataclass(frozen=True, slots=True)
class _Pair:
    key: str
    line: int
    node: Node


def _pairs(file: YamlFile, node: Node) -> list[_Pair]:
    """The entries of a mapping; one whose key comes a second time is a mistake."""
    if not isinstance(node, yaml.MappingNode):
        raise Wrong(node, "is no mapping: write `key: value` lines below it")
    found: dict[str, _Pair] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            file.wrong(line_of(key), "has a key that is no word: write a plain one")
        elif key.value in found:
            first = found[key.value].line
            text = f"is in line {first} already: keep one of the two"
            file.wrong(line_of(key), text, key.value)
        else:
            found[key.value] = _Pair(key.value, line_of(key), value)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Said:
    """The known keys of one mapping: their values, and the lines they stand in."""

    values: dict[str, Any]
    lines: dict[str, int]


def fields(
    file: YamlFile,
    node: Node,
    readers: Mapping[str, Read],
    required: tuple[str, ...] = (),
) -> Said:
    """A mapping of known keys. Told if anything is wrong with it."""
    said = Said({}, {})
    with file.whole():
        for pair in _pairs(file, node):
            said.lines[pair.key] = pair.line
            if pair.key not in readers:
                text = f"is no key here: {_near(pair.key, readers)}"
                file.wrong(pair.line, text, pair.key)
                continue
            with file.at(pair.key):
                said.values[pair.key] = readers[pair.key](file, pair.node)
        if missing := [key for key in required if key not in said.lines]:
            file.wrong(line_of(node), f"lacks {', '.join(missing)}: write it")
    return said


def _near(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(key.lower(), names, n=1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(names)}"


def entries(
    file: YamlFile, node: Node, form: re.Pattern[str], forms: str, read: Read
) -> Mapping[str, Any]:
    """A mapping whose keys are the user's own, of some form (`forms`, in words)."""
    found = {}
    with file.whole():
        for pair in _pairs(file, node):
            if not form.fullmatch(pair.key):
                file.wrong(pair.line, f"has {pair.key!r} as a key: write {forms}")
                continue
            with file.at(pair.key):
                found[pair.key] = read(file, pair.node)
    return MappingProxyType(found)


# ------------------------------------------------------------------------------- values


def text(file: YamlFile, node: Node) -> str:
    """As it was written, be it a number: +14155550100 stays what it is."""
    if not isinstance(node, yaml.ScalarNode):
        raise Wrong(node, "is no text: write one")
    if _is_null(node):
        raise Wrong(node, "has no value: write one, or leave the key out")
    written: str = node.value
    return written


def some_text(file: YamlFile, node: Node) -> str:
    written = text(file, node)
    if not written.strip():
        raise Wrong(node, "is empty: write a text, or leave the key out")
    return written


def is_off(node: Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value.lower() in _OFF


def is_text(node: Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def is_list(node: Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


def is_plain(node: Node) -> bool:
    """A word without quotes."""
    return isinstance(node, yaml.ScalarNode) and node.style is None


def word_of(*words: str) -> Read:
    def read(file: YamlFile, node: Node) -> str:
        written = text(file, node)
        if written not in words:
            raise Wrong(node, f"is {shown(written)}: write {' or '.join(words)}")
        return written

    return read


def number(least: float, most: float, what: str = "a number") -> Read:
    def read(file: YamlFile, node: Node) -> float:
        written = text(file, node)
        if not _NUMBER.fullmatch(written) or not least <= float(written) <= most:
            span = f"write {what} from {least:g} to {most:g}"
            raise Wrong(node, f"is {shown(written)}: {span}")
        return float(written)

    return read


def whole_number(least: int, most: int) -> Read:
    def read(file: YamlFile, node: Node) -> int:
        written = text(file, node)
        if not _WHOLE.fullmatch(written) or not least <= int(written) <= most:
            span = f"write a whole number from {least} to {most}"
            raise Wrong(node, f"is {shown(written)}: {span}")
        return int(written)

    return read


def shown(written: str) -> str:
    """A value, as a message repeats it."""
    return repr(written if len(written) <= 60 else f"{written[:57]}...")


# -------------------------------------------------------- values that others understand


def plain(
    file: YamlFile,
    node: Node,
    json_at: frozenset[tuple[str, ...]] = frozenset(),
    path: tuple[str, ...] = (),
) -> Any:
    """Mappings, lists and scalars as they are. Scalars stay texts, empty ones are None.

    Below the paths of `json_at`, where nobody knows what is meant, a scalar without
    quotes is what JSON makes of it.
    """
    if isinstance(node, yaml.MappingNode):
        return {
            pair.key: plain(file, pair.node, json_at, (*path, pair.key))
            for pair in _pairs(file, node)
        }
    if isinstance(node, yaml.SequenceNode):
        return [plain(file, each, json_at, path) for each in node.value]
    if _is_null(node):
        return None
    of_json = any(path[: len(above)] == above for above in json_at)
    return _json_scalar(node.value) if of_json and is_plain(node) else node.value


def _is_null(node: Node) -> bool:
    return is_plain(node) and node.value in _NULL


def _json_scalar(written: str) -> str | int | float | bool:
    if written in ("true", "false"):
        return written == "true"
    if _JSON_INT.fullmatch(written):
        return int(written)
    return float(written) if _JSON_FLOAT.fullmatch(written) else written


def line_at(node: Node, path: Iterable[str | int]) -> int:
    """Line of the key, or of the entry of a list, at the end of the path; where the
    file ends sooner, a word being short for a mapping, of that word."""
    line = line_of(node)
    for step in path:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[step]
            line = line_of(node)
        elif isinstance(node, yaml.MappingNode):
            key, node = next(pair for pair in node.value if pair[0].value == step)
            line = line_of(key)
    return line
