"""The levels of log events, and their rows in docs/operations.md."""

import ast
import logging
import re
from pathlib import Path

import pytest
import structlog
import yaml
from structlog.testing import capture_logs

import bridge
from bridge.core.commands import Note
from bridge.telemetry.log import (
    FAILED_ENDS,
    NORMAL_ENDS,
    WARN,
    NoteLog,
    level_of,
    level_of_end,
)

ROOT = Path(__file__).resolve().parents[2]
HANDBOOK = (ROOT / "docs" / "operations.md").read_text("utf-8")

LEVELS = {
    "warning": "warning",
    "_warn": "warning",  # of bridge/model/hosted_mcp.py: once for each call
    "error": "error",
    "exception": "error",
    "critical": "error",
}
"""Method of a logger -> the table of docs/operations.md that has the event."""

COMPUTED = {
    ("error", "call_ended"),
    ("warning", "call_ended"),
    ("error", "model_refused"),
    ("warning", "transfer_ended"),
    ("warning", "fleet_formats_differ"),
}
"""Events whose level depends on their data."""


def logged() -> set[tuple[str, str]]:
    """(table, event) of each event that the bridge logs as a warning or an error."""
    found = COMPUTED | {("warning", name) for name in WARN}
    package = Path(bridge.__file__).parent
    for file in package.rglob("*.py"):
        if package / "sim" in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=method),
                    args=[ast.Constant(value=str(event)), *_],
                ) if method in LEVELS and re.fullmatch(r"[a-z_]+", event):
                    found.add((LEVELS[method], event))
    return found


def documented() -> set[tuple[str, str]]:
    """(table, event) of each row of the two tables of docs/operations.md."""
    found = set()
    for table in ("error", "warning"):
        (rows,) = re.findall(rf"(?m)^\| {table} \|.*\n((?:\|.*\n)+)", HANDBOOK)
        for row in rows.splitlines()[1:]:
            found |= {
                (table, it) for it in re.findall(r"`([a-z_]+)`", row.split("|")[1])
            }
    return found


def test_each_warning_and_error_has_a_row_in_operations_md() -> None:
    """An operator who finds an event in the log can look up what it means for callers
    and what to do; and no row describes an event that does not exist."""
    assert logged() == documented()


def test_no_event_has_a_computed_name() -> None:
    """The event's name stands in the code, so that a search for it finds its place."""
    package = Path(bridge.__file__).parent
    dynamic = [
        f"{file.name}:{node.lineno}"
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("info", "warning", "error", "exception", "critical")
        and re.fullmatch(r"(self\._)?log", ast.unparse(node.func.value))
        and not isinstance(node.args[0], ast.Constant)
    ]
    # `_warn` of hosted_mcp.py: `logged` looks for its callers.
    assert [place.partition(":")[0] for place in dynamic] == ["hosted_mcp.py"]


def outcomes() -> set[str]:
    """The outcomes in the table of docs/operations.md."""
    (rows,) = re.findall(r"(?m)^\| outcome \|.*\n((?:\|.*\n)+)", HANDBOOK)
    return set(re.findall(r"`((?:caller|agent|bridge|model)_[a-z_]+)`", rows))


def test_the_level_of_an_end_says_whether_the_call_failed() -> None:
    """Each outcome whose calls the alert CallsFail counts is an error."""
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text("utf-8"))
    (rule,) = [it for it in groups["groups"][0]["rules"] if it["alert"] == "CallsFail"]
    failing = re.findall(r'outcome=~"([^"]+)"', rule["expr"])[0]
    assert outcomes() >= NORMAL_ENDS | FAILED_ENDS

    levels = {it: level_of_end(*it.split("_", 1)) for it in outcomes()}
    errors = {it for it, level in levels.items() if level == logging.ERROR}
    assert errors == {it for it in outcomes() if re.fullmatch(failing, it)} | {
        "bridge_shutdown"
    }
    assert levels["caller_hung_up"] == levels["agent_hung_up"] == logging.INFO
    assert levels["caller_connection_lost"] == logging.WARNING


@pytest.mark.parametrize(
    ("note", "level"),
    [
        (Note("model_lost", {"why": "closed"}), logging.WARNING),
        (Note("model_refused", {"why": "HTTP 401", "fatal": True}), logging.ERROR),
        (Note("model_refused", {"why": "HTTP 503", "fatal": False}), logging.WARNING),
        (Note("model_error", {"code": "x", "benign": True}), logging.DEBUG),
        (Note("call_resumed", {"why": "lost"}), logging.WARNING),
        (Note("call_resumed", {"why": "moved"}), logging.INFO),
        (Note("stream_back", {"seconds": 1.0}), logging.INFO),
        (Note("said", {}), logging.DEBUG),
    ],
)
def test_the_level_of_a_note(note: Note, level: int) -> None:
    """What a caller may have noticed is a warning; what ends the call is an error."""
    assert level_of(note) == level


def test_while_the_model_is_away_each_reason_is_one_warning() -> None:
    """The runbook's grep finds an outage of the model in each call, and is not flooded
    by the dials that are repeated several times a second."""
    refused = Note("model_refused", {"why": "HTTP 503", "fatal": False})
    other = Note("model_refused", {"why": "unreachable (OSError)", "fatal": False})
    with capture_logs() as lines:
        log = NoteLog(structlog.get_logger())
        for note in (refused, refused, other, refused, Note("model_back", {}), refused):
            log.note(note)

    told = [line["log_level"] for line in lines if line["event"] == "model_refused"]
    assert told == ["warning", "info", "warning", "info", "warning"]
