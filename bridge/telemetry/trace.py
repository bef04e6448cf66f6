"""The trace of one call: every input and every command of the core, as JSON lines.

A trace contains people's audio and words. It is written only if the operator has set
BRIDGE_RECORD_DIR, and what the route redacts is removed (privacy/redaction.py).
`replay` gives the inputs of a trace to the core again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bridge.core import UNREADABLE, realtime_events, twilio_messages
from bridge.core.commands import (
    Command,
    Dial,
    End,
    Interrupted,
    Note,
    Pressed,
    Started,
    Switch,
    ToCaller,
    ToModel,
    WaitDone,
)
from bridge.core.conversation import Conversation
from bridge.core.limits import Bounds
from bridge.core.rules import Rules
from bridge.privacy.redaction import KEYS, REMOVED, Redaction, silence
from bridge.telemetry.trace_file import TraceFile, TraceWriter

TRACE_FORMAT = 2
"""The trace format of this version, and the only one that it replays."""

MAX_BYTES = 2 * 1024**3
"""Largest file: twice the size that the longest call makes. It keeps a model that sends
without end from filling the disk."""

MAX_EARLY_BYTES = 256 * 1024
"""Bytes held in memory before `start` arrives. Twilio sends `start` at once."""

SUFFIX = ".trace.jsonl"


class TraceFormatError(ValueError):
    """This version cannot replay the trace. The text names the format of the trace and
    the format that this version replays; it may be printed."""


class Trace:
    """Writes lines `{"at": seconds, ...}`: inputs as received, commands as returned.
    The first line has the format (bridge/fleet/formats.py).

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
    ) -> None:
        self._on_lost = on_lost
        self._file: TraceFile | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._bytes = 0
        self._over = False
        self._redaction = Redaction()
        self._encode = msgspec.json.Encoder().encode
        self._write({"at": at, "format": TRACE_FORMAT, "begin": bounds})

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
        path = folder / f"{plain_name(call_sid)}.{plain_name(stream_sid)}{SUFFIX}"
        self._redaction = redaction or self._redaction
        if self._over:
            return path  # it was given up before
        self._file = TraceFile(writer, path, self._on_lost)
        for line in map(msgspec.json.decode, self._early):
            if "begin" in line and self._redaction:
                line["redacted"] = self._redaction.names
            self._put(self._encode(_redacted(line, self._redaction)) + b"\n")
        self._early.clear()
        return path

    def input(self, kind: str, value: str | Sequence[Any], at: float) -> None:
        """Writes an input. `kind`: "caller" or "model" (messages as received), or a
        name that `feed` knows."""
        self._write({"at": at, "in": kind, "value": value})

    def command(self, command: Command, at: float) -> None:
        self._write({"at": at, **_as_line(command)})

    def session(self, note: Note, at: float) -> None:
        """Writes a note of the agent's session. It is not an input of the core, so it
        is not replayed."""
        self._write({"at": at, **_as_line(note), "out": "session"})

    def close(self) -> None:
        """Closes the file; later lines are dropped, because the call is over."""
        self._over = True
        if self._file:
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._over or (self._file and self._file.lost):
            return
        text = self._encode(_redacted(line, self._redaction)) + b"\n"
        if self._file:
            self._put(text)
            return
        self._early.append(text)
        self._early_bytes += len(text)
        if self._early_bytes > MAX_EARLY_BYTES:
            self._give_up("too much before the start of the call")

    def _put(self, text: bytes) -> None:
        self._bytes += len(text)
        if self._bytes > MAX_BYTES:
            self._give_up("larger than a call can be")
        elif self._file:
            self._file.write(text)

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


def _redacted(line: dict[str, Any], redaction: Redaction) -> dict[str, Any]:
    """The line without the data that the redaction names."""
    if not redaction or "value" not in line:
        return line
    value = line["value"]
    match line.get("in", line.get("out")), value:
        case "caller" | "model", text:
            value = _message(text, redaction)
        case "send", [text]:
            value = [_message(text, redaction)]
        case "play", [payload]:
            value = [silence(payload)]
        case "tell", [role, text, respond]:
            value = [role, redaction.text(text), respond]
        case "edit", [removed, corrected]:
            kept = {key: redaction.text(text) for key, text in corrected.items()}
            value = [removed, kept]
        case "note" | "session", [name, data, private]:
            value = [name, redaction.message(data), redaction.message(private)]
        case "pressed", _:
            value = KEYS
        case "tool_running" | "interrupt" | "interrupted" | "started", _:
            return line  # ids
        case _:
            value = redaction.message(value)
    return {**line, "value": value}


def _message(text: str, redaction: Redaction) -> str:
    """A message of Twilio or of the model, redacted."""
    try:
        message = redaction.message(msgspec.json.decode(text))
        return msgspec.json.encode(message).decode()
    except UNREADABLE:
        return REMOVED


def _as_line(command: Command) -> dict[str, Any]:
    match command:
        case ToCaller(text):
            return {"out": "caller", "value": text}
        case ToModel(text):
            return {"out": "model", "value": text}
        case Note(name, data, private):
            return {"out": "note", "value": [name, dict(data), dict(private)]}
        case Interrupted(item_id, content_index):
            return {"out": "interrupted", "value": [item_id, content_index]}
        case Started(start, again):
            return {"out": "started", "value": [start.start.call_sid, again]}
        case Dial(seconds, spare):
            return {"out": "dial", "value": [seconds, spare]}
        case Switch():
            return {"out": "switch", "value": None}
        case WaitDone(wait, done):
            return {"out": "wait_done", "value": [wait, done]}
        case Pressed(keys):
            return {"out": "pressed", "value": keys}
        case End(by, why):
            return {"out": "end", "value": [by, why]}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a trace of any format. An incomplete last line, after a crash, is
    skipped."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line)


def replay(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Feeds the inputs of a trace through a new Conversation.

    Yields (line as recorded, line as it is now) of each command, for comparison.
    TraceFormatError, before the first one: the trace has another format, or none.
    """
    lines = read(path)
    first = next(lines, {})
    _check_format(first.get("format"))
    bounds = msgspec.convert(first["begin"], Bounds)
    conversation = Conversation(now=first["at"], bounds=bounds)
    expected: list[dict[str, Any]] = []
    for line in lines:
        at = line["at"]
        if "in" in line:
            commands = _feed_line(conversation, line["in"], line["value"], at)
            expected += [_as_line(command) for command in commands]
        elif line["out"] != "session":
            del line["at"]
            yield line, _plain(expected.pop(0)) if expected else {}
    for line in expected:
        yield {}, _plain(line)


def _check_format(found: object) -> None:
    if found == TRACE_FORMAT:
        return
    has = f"has format {found}"
    if found is None:
        has = "has no format: it is empty, or an older version has written it"
    raise TraceFormatError(
        f"The trace {has}. This version of the bridge replays format {TRACE_FORMAT}."
    )


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """The line as it is after writing and reading it."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(line))
    return plain


def feed(
    talk: Conversation, kind: str, value: Sequence[Any], at: float
) -> list[Command]:
    """Gives the core an input that is not a message, by its name in a trace.

    Values are plain, as JSON gives them back.
    """
    match kind, value:
        case "tick", _:
            return talk.tick(at)
        case "misread", [str(side), str(reason)]:
            return talk.misread(side, reason)
        case "rules", [rules]:
            return talk.follow(msgspec.convert(rules, Rules), at)
        case "tell", [str(role), str(text), bool(respond)]:
            return talk.tell(role, text, respond, at)
        case "ask", _:
            return talk.ask(at)
        case "edit", [removed, corrected]:
            return talk.edit(removed, corrected)
        case "mute", [bool(on)]:
            return talk.mute(on)
        case "tool_running", [int(change), str(call_id)]:
            return talk.busy(change, at, call_id)
        case "model_lost", [str(why)]:
            return talk.model_lost(why, at)
        case "dialled", _:
            return talk.dialled(at)
        case "not_dialled", [str(why), bool(fatal)]:
            return talk.not_dialled(why, fatal, at)
        case "line_lost", _:
            return talk.line_lost(at)
        case "hand_over", _:
            return talk.hand_over(at)
        case "send", [str(text)]:
            return talk.send(text)
        case "play", [str(payload)]:
            return talk.play(payload, at)
        case "when_heard", [int(wait), then, bool(stoppable)]:
            by_why = (str(then[0]), str(then[1])) if then else None
            return talk.when_heard(wait, at, then=by_why, stoppable=stoppable)
        case "give_up", [int(wait)]:
            return talk.give_up(wait)
        case "goodbye", [str(why)]:
            return talk.goodbye(why, at)
        case "interrupt", [str(by), response_id]:
            return talk.interrupt(by, at, response_id)
        case "end", [str(by), str(why)]:
            return talk.end(by, why, at)
        case _:
            raise ValueError(f"no such input: {kind!r}")


def _feed_line(talk: Conversation, kind: str, value: Any, at: float) -> list[Command]:
    if kind == "caller":
        # A redacted key is replayed as `*`.
        return talk.from_caller(twilio_messages.decode(value.replace(KEYS, "*")), at)
    if kind == "model":
        return talk.from_model(realtime_events.decode(value), at)
    return feed(talk, kind, value, at)
