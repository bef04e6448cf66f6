"""The variables of a `.env` file, the line of each, and its lines that do nothing."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

# Its warning about a line that it cannot read is a mistake of this report.
logging.getLogger("dotenv.main").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class EnvFile:
    """What one file holds; nothing, if there is no file."""

    path: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> the first and the last line (from 1) of the assignment that counts."""
    unreadable: tuple[int, ...] = ()
    """Lines that are neither NAME=value nor a comment."""
    repeated: Mapping[str, int] = field(default_factory=dict)
    """Name -> the line of an earlier assignment, which does not count."""
    bare: frozenset[str] = frozenset()
    """Names without `=`: docker compose does not set them."""

    def place(self, name: str, line: int = 1) -> str:
        """`FILE:LINE` of the line-th line of the value; empty if it is not here."""
        if name not in self.lines:
            return ""
        first, last = self.lines[name]
        return f"{self.path}:{min(first + line - 1, last)}"


def read(path: str | Path | None) -> EnvFile:
    """OSError, UnicodeDecodeError: the file cannot be read."""
    if path is None or not Path(path).is_file():
        return EnvFile()
    lines: dict[str, tuple[int, int]] = {}
    unreadable: list[int] = []
    repeated: dict[str, int] = {}
    with Path(path).open(encoding="utf-8") as stream:
        for binding in parse_stream(stream):
            first, last = _lines_of(binding)
            if binding.error:
                unreadable.append(first)
            elif binding.key is not None:
                if binding.key in lines:
                    repeated[binding.key] = lines[binding.key][0]
                lines[binding.key] = first, last
    found = dotenv_values(path, encoding="utf-8")
    values = {name: value or "" for name, value in found.items()}
    bare = frozenset(name for name, value in found.items() if value is None)
    return EnvFile(str(path), values, lines, tuple(unreadable), repeated, bare)


def _lines_of(binding: Binding) -> tuple[int, int]:
    """The first and the last line, without the blank lines before them, which belong to
    the binding, too."""
    text = binding.original.string
    before = text[: len(text) - len(text.lstrip())]
    first = binding.original.line + before.count("\n")
    return first, first + text.strip().count("\n")
