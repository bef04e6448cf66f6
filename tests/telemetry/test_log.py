"""The log: one JSON object per line, with the call's SID, without anything people
said."""

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

import bridge.core as bridge_core
from bridge.core.commands import Note, protocol_error
from bridge.telemetry.log import (
    MAX_LINES,
    QUIET,
    WARN,
    NoteLog,
    configure,
    log_crashes,
)
from tests.core.phone import Phone


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restores the log configuration of the test run."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    chatty = [logging.getLogger(n) for n in ("websockets", "asyncio", "httpx")]
    chatty.append(logging.getLogger("openai.agents"))
    levels = [logger.level for logger in chatty]
    yield
    root.handlers, root.level = handlers, level
    for logger, before in zip(chatty, levels, strict=True):
        logger.setLevel(before)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The logged lines, parsed from JSON."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def levels(*notes: Note) -> list[tuple[str, str]]:
    """(level, event) of each line that these Notes produce."""
    with capture_logs() as logged:
        notelog = NoteLog(structlog.get_logger())
        for note in notes:
            notelog.note(note)
    return [(line["log_level"], line["event"]) for line in logged]


# --- the lines ---


def test_a_line_is_json_with_the_calls_sid(capsys: pytest.CaptureFixture[str]) -> None:
    """An operator finds all lines of a call by its SID."""
    configure("json")
    log = structlog.get_logger().bind(call_sid="CA1", stream_sid="MZ1")

    NoteLog(log).note(Note("ready", {"held_ms": 340.0}))

    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "ready",
        "level": "info",
        "call_sid": "CA1",
        "stream_sid": "MZ1",
        "held_ms": 340.0,
    }


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback does not split a log line, which programs parse."""
    configure("json")
    try:
        raise ValueError("in two\nlines")
    except ValueError:
        structlog.get_logger().exception("agent_failed", call_sid="CA1")
        logging.getLogger("aiohttp.server").exception("of a library")

    ours, theirs = lines(capsys)
    assert (ours["event"], ours["level"]) == ("agent_failed", "error")
    assert (theirs["event"], theirs["level"]) == ("of a library", "error")
    for line in (ours, theirs):
        assert "ValueError: in two\nlines" in line["exception"]


def test_lines_of_libraries_have_the_same_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """aiohttp's lines have no other format."""
    configure("json")

    logging.getLogger("aiohttp.access").warning("%d of %s", 3, "them")
    logging.getLogger("websockets.client").info("too much")

    [line] = lines(capsys)
    assert (line["event"], line["level"]) == ("3 of them", "warning")
    assert "timestamp" in line


def test_notes_of_every_turn_are_not_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With hundreds of calls, lines of every turn would hide the line that matters."""
    configure("json")
    notes = NoteLog(structlog.get_logger())
    for name in sorted(QUIET):
        notes.note(Note(name))
    notes.note(Note("interrupted"))

    assert [line["event"] for line in lines(capsys)] == ["interrupted"]


def test_a_terminal_gets_readable_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator at a terminal reads plain text; a container writes JSON."""
    configure("pretty")
    structlog.get_logger().info("listening", port=8080)
    words = capsys.readouterr().err
    configure("auto")  # no terminal here
    structlog.get_logger().info("listening", port=8080)

    assert "listening" in words and not words.startswith("{")
    assert [line["port"] for line in lines(capsys)] == [8080]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    configure("auto")
    structlog.get_logger().info("listening", port=8080)
    assert not capsys.readouterr().err.startswith("{")


# --- the notes of a call ---


def test_received_control_characters_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A vendor's id, error or status cannot clear the screen or forge a log line."""
    evil = "\x1b[2J\x1b]0;title\x07\x9b31m\r\ncall_ended"
    configure("pretty")

    structlog.get_logger().warning("model_error", code=evil, call_sid=evil)
    logging.getLogger("some.library").warning("broken: %s", evil)

    shown = capsys.readouterr().err
    for code in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\r"):
        assert code not in shown
    assert "\\x1b[2J" in shown
    assert not [it for it in shown.splitlines() if it.startswith("call_ended")]


def test_notes_of_trouble_are_warnings() -> None:
    """An operator finds trouble by the level of a line."""
    always = sorted(WARN - {"call_resumed"})  # its level depends on the reason
    assert levels(*map(Note, always)) == [("warning", name) for name in always]
    assert levels(Note("interrupted"), Note("said")) == [
        ("info", "interrupted"),
        ("debug", "said"),
    ]


def test_a_benign_error_is_no_warning() -> None:
    """A benign error of the model does not affect the caller."""
    benign = Note("model_error", {"code": "x", "benign": True})
    real = Note("model_error", {"code": "x", "benign": False})

    assert levels(benign, real) == [
        ("debug", "model_error"),
        ("warning", "model_error"),
    ]


def test_repeated_errors_do_not_fill_the_disk() -> None:
    """A model that sends 900 errors a second: the first ones are logged, then one line
    says that more were dropped. Other Notes and other calls are logged as before."""
    error = Note("model_error", {"code": "x", "benign": False})
    told = levels(*[error] * (MAX_LINES + 50), Note("handoff", {}))

    assert told.count(("warning", "model_error")) == MAX_LINES - 1
    assert told.count(("warning", "log_lines_dropped")) == 1
    assert told[-1] == ("info", "handoff")


def test_a_protocol_error_is_logged_once_per_reason() -> None:
    """A broken peer that sends 50 wrong messages a second does not fill the disk."""
    with capture_logs() as logged:
        notes = NoteLog(structlog.get_logger())
        for _ in range(50):
            notes.note(protocol_error("caller", "unknown event"))
            notes.note(protocol_error("model", "unknown event"))
            notes.note(protocol_error("caller", "unknown mark"))
        NoteLog(structlog.get_logger()).note(protocol_error("caller", "unknown mark"))

    assert [(line["side"], line["reason"]) for line in logged] == [
        ("caller", "unknown event"),
        ("model", "unknown event"),
        ("caller", "unknown mark"),
        ("caller", "unknown mark"),  # of another call
    ]


def test_nothing_that_people_said_is_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A card number that a caller types or says is in no log line, at any level."""
    configure("json", level=logging.DEBUG)
    phone = Phone().talking()
    phone.barges_in()
    phone.presses("8675309#")
    phone.model(
        "conversation.item.input_audio_transcription.completed",
        item_id="u1",
        transcript="SECRET",
    )
    phone.created()
    phone.words("SECRET SECRET")
    phone.says(1000)
    phone.frames(500)
    error = {"type": "server_error", "message": "Not found: 415-555-0101"}
    phone.model("error", error=error)
    phone.barges_in()
    phone.frames(100)
    phone.ends("caller", "hung_up")
    notes = [note for note in phone.log if isinstance(note, Note)]
    told = {
        note.name
        for note in notes
        if any(secret in str(note.private) for secret in ("SECRET", "'digit': '8'"))
    }
    log = NoteLog(structlog.get_logger())

    for note in notes:
        log.note(note)

    written = capsys.readouterr().err
    assert told == {"key_pressed", "caller_said", "said"}
    assert '"message": "Not found: [number]"' in written, "scrubbed as text of others"
    assert all(f'"event": "{name}"' in written for name in told)
    assert "SECRET" not in written


def test_a_traceback_shows_no_local_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a caller was saying when an error occurred is not printed in a terminal."""
    words = "-".join(["card", "4242"])
    configure("pretty")

    try:
        fail(words)
    except ValueError:
        structlog.get_logger().exception("agent_failed")

    written = capsys.readouterr().err
    assert "no such card" in written
    assert words not in written


def fail(heard: str) -> None:
    raise ValueError("no such card")


def test_the_lists_of_levels_contain_only_existing_notes() -> None:
    """A renamed Note would otherwise be logged at the wrong level, unnoticed."""
    core = Path(bridge_core.__path__[0])
    beside = (core.parent / "call").glob("*.py"), (core.parent / "agent").glob("*.py")
    files = [*core.glob("*.py"), *beside[0], *beside[1]]
    source = "".join(file.read_text("utf-8") for file in files)

    assert not QUIET & WARN
    for name in QUIET | WARN:
        assert f'Note("{name}"' in source, name


# --- texts that others write ---


def fails_with(text: str) -> None:
    raise ValueError(text)


def test_the_text_of_an_exception_is_scrubbed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Code that puts a number or a key into an error's text does not leak it; the place
    of the failure is still in the traceback."""
    for form in ("json", "pretty"):
        configure(form, secrets=["a-token-of-ours"])
        words = (
            "+14155550101",
            "030 12345678",
            "4111 1111 1111 1111",
            "a-token-of-ours",
        )
        try:
            fails_with(" / ".join(words))
        except ValueError:
            structlog.get_logger().exception("agent_failed", call_sid="CA1")
            logging.getLogger("aiohttp.server").exception("Error for %s", words[0])

        written = capsys.readouterr().err
        assert not [word for word in words if word in written]
        assert written.count("ValueError: [number]") == 2
        assert written.count("in fails_with") == 2
        assert "CA1" in written


def test_a_line_that_cannot_be_formatted_is_not_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Python would print the message and its arguments unscrubbed."""
    configure("json")

    logging.getLogger("a.library").warning("%d", "+14155550101")

    assert capsys.readouterr().err == (
        "a log line could not be formatted and is lost: TypeError\n"
    )


def test_a_log_that_cannot_be_written_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in commands other than `serve`: the reader of the pipe is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        configure("json")

        structlog.get_logger().warning("call_failed")
        logging.getLogger("a.library").warning("%d", "no number")

        with pytest.raises(BrokenPipeError):
            broken.close()


def test_an_uncaught_exception_is_logged_scrubbed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An uncaught exception, in a thread of the user's code or in ours, leaks no
    number."""
    configure("json")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    log_crashes()
    thread = threading.Thread(target=fails_with, args=["+14155550101"])

    thread.start()
    thread.join()
    try:
        fails_with("+14155550101")
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    first, second = lines(capsys)
    for line in (first, second):
        assert (line["event"], line["level"]) == ("uncaught_exception", "critical")
        assert "ValueError: [number]" in line["exception"]


def test_a_limit_and_a_protocol_error_do_not_hide_each_other() -> None:
    """Each is logged once, even if their data are equal."""
    assert levels(
        Note("limit_hit", {"x": "a"}), Note("protocol_error", {"x": "a"})
    ) == [
        ("warning", "limit_hit"),
        ("warning", "protocol_error"),
    ]
