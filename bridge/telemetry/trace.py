"""The trace of one call: every input and every command of the core, as JSON lines, in
a file that is compressed (trace_file.py).

A trace contains people's audio and words. It is written only if the operator has set
BRIDGE_RECORD_DIR, and what the route redacts is removed (privacy/redaction.py).
`replay` gives the inputs of a trace to the core again.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bridge.core import UNREADABLE
from bridge.core.capabilities import MEDIA_STREAM, Capabilities
from bridge.core.commands import Command, Note
from bridge.core.conversation import Conversation
from bridge.core.inputs import Input
from bridge.core.limits import Bounds
from bridge.privacy.redaction import KEYS, REMOVED, Redaction
from bridge.telemetry.trace_file import (
    TOO_EARLY,
    TOO_LARGE,
    DamagedFile,
    TraceFile,
    TraceWriter,
    lines_of,
)

TRACE_FORMAT = 3
"""The trace format of this version, and the only one that it replays."""

MAX_BYTES = 2 * 1024**3
"""Largest trace, before it is compressed: twice what the longest call makes. It keeps a
model that sends without end from filling the disk."""

MAX_EARLY_BYTES = 256 * 1024
"""Bytes held in memory before `start` arrives. Twilio sends `start` at once."""

SUFFIX = ".trace.jsonl.zst"
PLAIN_SUFFIX = ".trace.jsonl"
"""Of traces that are not compressed, such as those of earlier versions."""


class InputLine(msgspec.Struct):
    """A line of a trace: an input of the core."""

    at: float
    given: Input = msgspec.field(name="in")


class CommandLine(msgspec.Struct):
    at: float
    command: Command = msgspec.field(name="out")


class SessionLine(msgspec.Struct):
    at: float
    note: Note = msgspec.field(name="session")


Line = InputLine | CommandLine | SessionLine | dict[str, Any]


DAMAGED = "The file is no trace, or it is damaged."


class TraceFormatError(ValueError):
    """This version cannot replay the trace. The text names the format of the trace and
    the format that this version replays; it may be printed."""


class Trace:
    """Writes lines: `{"at": seconds, "in": input}`, `{"at": seconds, "out": command}`
    (bridge/core/inputs.py, commands.py) and `{"at": seconds, "session": note}`. The
    first line has the format (bridge/fleet/formats.py).

    Lines are held in memory until `open` opens the file, because the call's SID, which
    is in the file name, comes with `start`. If the trace cannot be written, no more of
    it is written and `on_lost` is called with the reason, in any thread: a full or slow
    disk ends no call.
    """

    def __init__(
        self,
        at: float,
        on_lost: Callable[[str], None],
        bounds: Bounds = Bounds(),  # noqa: B008 - a value
        capabilities: Capabilities = MEDIA_STREAM,
    ) -> None:
        self.has_audio = capabilities.has_audio
        self.path: Path | None = None
        """None until `open`."""
        self._on_lost = on_lost
        self._file: TraceFile | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._over = False
        self._redaction = Redaction()
        self._encode = msgspec.json.Encoder().encode
        first = {"at": at, "format": TRACE_FORMAT, "begin": bounds}
        self._write({**first, "capabilities": capabilities})

    def open(
        self,
        writer: TraceWriter,
        folder: Path,
        call_sid: str,
        stream_sid: str,
        redaction: Redaction | None = None,
    ) -> Path:
        """Opens the file in `folder` and writes the held lines. Returns its path.

        `redaction` is applied to every line. The first line of a redacted trace names
        what was redacted; its replay gives the same call with other words."""
        path = folder / f"{stem(call_sid, stream_sid)}{SUFFIX}"
        self.path = path
        self._redaction = redaction or self._redaction
        if self._over:
            return path  # it was given up before
        self._file = TraceFile(writer, path, self._on_lost)
        for line in map(msgspec.json.decode, self._early):
            if self._redaction:
                line = _redacted(line, self._redaction)
                if "begin" in line:
                    line["redacted"] = self._redaction.names
            self._put(line)
        self._early.clear()
        return path

    @property
    def lost(self) -> bool:
        """It was not written to its end."""
        return self._file is None or self._file.lost

    def input(self, given: Input, at: float) -> None:
        self._write(InputLine(at, given))

    def command(self, command: Command, at: float) -> None:
        self._write(CommandLine(at, command))

    def session(self, note: Note, at: float) -> None:
        """Writes a note of the agent's session. It is not an input of the core, so it
        is not replayed."""
        self._write(SessionLine(at, note))

    def close(self) -> None:
        """Closes the file; later lines are dropped, because the call is over."""
        self._over = True
        if self._file:
            self._file.close()

    def _write(self, line: Line) -> None:
        if self._over:
            return
        if self._redaction:
            line = _redacted(msgspec.to_builtins(line), self._redaction)
        if self._file:
            self._put(line)
            return
        text = self._encode(line) + b"\n"
        self._early.append(text)
        self._early_bytes += len(text)
        if self._early_bytes > MAX_EARLY_BYTES:
            self._give_up(TOO_EARLY)

    def _put(self, line: Line) -> None:
        if self._file and self._file.write(line) > MAX_BYTES:
            self._give_up(TOO_LARGE)

    def _give_up(self, why: str) -> None:
        self._early.clear()
        self.close()
        if self._file:
            self._file.lose(why)
        else:
            self._on_lost(why)


def plain_name(sid: str) -> str:
    """A SID as part of a file name, safe for any text that a client sends as SID."""
    return re.sub("[^A-Za-z0-9]", "_", sid)[:64]


def stem(call_sid: str, stream_sid: str) -> str:
    """What the names of all files of a call begin with. `stream_sid` is empty for a
    call without a stream."""
    return f"{plain_name(call_sid)}.{plain_name(stream_sid or call_sid)}"


def _redacted(line: dict[str, Any], redaction: Redaction) -> dict[str, Any]:
    """The line, as JSON values, without the data that the redaction names."""
    kept: dict[str, Any] = redaction.message(line)
    for part in ("in", "out"):
        match line.get(part):
            case {"kind": "to_caller" | "to_model" | "send", "text": str(text)}:
                kept[part]["text"] = _message(text, redaction)
            case {"kind": "pressed"}:
                kept[part]["keys"] = KEYS
            case {"kind": "edit", "removed": ids}:
                kept[part]["removed"] = ids
    return kept


def _message(text: str, redaction: Redaction) -> str:
    """A message of Twilio or of the model, redacted."""
    try:
        message = redaction.message(msgspec.json.decode(text))
        return msgspec.json.encode(message).decode()
    except UNREADABLE:
        return REMOVED


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a trace of any format, compressed or not. An incomplete end, of a
    call that runs or after a crash, is skipped. TraceFormatError: the file is
    damaged."""
    with path.open("rb") as file:
        try:
            for line in lines_of(file):
                if line.endswith(b"\n"):
                    yield msgspec.json.decode(line, type=dict[str, Any])
        except (*UNREADABLE, DamagedFile):
            raise TraceFormatError(DAMAGED) from None


def replay(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Gives the inputs of a trace to a new Conversation.

    Yields (command as recorded, command as it is now), as JSON values; empty where
    there is none. TraceFormatError, before the first one: the trace has another format,
    or none.
    """
    expected: deque[Command] = deque()
    for step in steps(path):
        expected += step.commands
        if "out" in step.line:
            yield step.line["out"], _plain(expected.popleft()) if expected else {}
    for command in expected:
        yield {}, _plain(command)


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a trace, replayed."""

    line: dict[str, Any]
    """As it was recorded."""
    conversation: Conversation
    """The call, after this line."""
    given: Input | None
    """The input of the line, if it has one; with the commands that follow from it."""
    commands: Sequence[Command] = ()


def steps(path: Path) -> Iterator[Step]:
    """Replays a trace line by line, the first line included. TraceFormatError: as in
    `replay`."""
    lines = read(path)
    first = next(lines, {})
    _check_format(first.get("format"))
    bounds = msgspec.convert(first["begin"], Bounds)
    # Older traces of this format are all of media streams.
    capabilities = msgspec.convert(first.get("capabilities", {}), Capabilities)
    conversation = Conversation(
        now=first["at"], bounds=bounds, capabilities=capabilities
    )
    yield Step(first, conversation, None)
    for line in lines:
        if "in" in line:
            given = msgspec.convert(_with_keys(line["in"]), Input)
            commands = conversation.handle(given, line["at"])
            yield Step(line, conversation, given, commands)
        else:
            yield Step(line, conversation, None)


def _check_format(found: object) -> None:
    if found == TRACE_FORMAT:
        return
    has = f"has format {found}"
    if found is None:
        has = "has no format: it is empty, or an older version has written it"
    raise TraceFormatError(
        f"The trace {has}. This version of the bridge replays format {TRACE_FORMAT}."
    )


def _plain(command: Command) -> dict[str, Any]:
    """The command as it is after writing and reading it."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(command))
    return plain


def _with_keys(given: dict[str, Any]) -> dict[str, Any]:
    """The input with `*` in place of a redacted key, which is no key of a telephone."""
    match given:
        case {"message": {"dtmf": {"digit": digit} as dtmf}} if digit == KEYS:
            dtmf["digit"] = "*"
        case {"event": {"event": event} as pressed} if event == KEYS:
            pressed["event"] = "*"
    return given
