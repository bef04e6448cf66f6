"""Where the notes of a call go: log, metrics, usage, the agent's history, listeners."""

import time
from collections.abc import Callable

import structlog
from agents.realtime import RealtimeSessionEvent
from structlog.typing import FilteringBoundLogger

from bridge.agent.events import Listeners, call_event, note_events, session_note
from bridge.agent.finished_tools import MAX_KEPT
from bridge.agent.live import LiveCall, ModelProblem
from bridge.app.services import Services
from bridge.core.commands import Note
from bridge.telemetry.log import MAX_MESSAGE_CHARS, NoteLog

MAX_PROBLEMS = 50
"""Limit of different problems in the report of a call."""


def problem_of(note: Note) -> ModelProblem | None:
    """What the report of a call says about a Note; None: nothing."""
    data = note.data
    match note.name:
        case "model_error" if not data["benign"]:
            message = note.private.get("message", "")[:MAX_MESSAGE_CHARS]
            return ModelProblem(note.name, str(data["code"]), message=message)
        case "protocol_error" if data["side"] == "model":
            kind = str(data.get("event_type", ""))
            return ModelProblem(note.name, str(data["reason"]), event_type=kind)
        case "answer_failed" | "answer_incomplete":
            return ModelProblem(note.name, str(data["why"]))
        case "handoff_refused":
            return ModelProblem(note.name, str(data["to"]))
    return None


class CallNotes:
    """The notes of one call, and the events of its SDK session."""

    def __init__(
        self, services: Services, on_cut: Callable[[str, int, str], None]
    ) -> None:
        """`on_cut` gets each interrupted item (id, content index, heard text)."""
        self._services = services
        self._on_cut = on_cut
        self._log = NoteLog(structlog.get_logger())
        self._live: LiveCall | None = None
        self._listeners: Listeners | None = None

    def begin(
        self, log: FilteringBoundLogger, live: LiveCall, listeners: Listeners
    ) -> None:
        """The call is known: its log names it, and user code may listen."""
        self._log = NoteLog(log)
        self._live, self._listeners = live, listeners

    def end(self) -> None:
        """The listeners get no more events."""
        if self._listeners:
            self._listeners.end()

    def note(self, note: Note) -> None:
        self._log.note(note)
        self._services.metrics.note(note)
        if self._live and note.name == "usage":
            cost = float(note.data["cost"] or 0)
            self._live.input_tokens += int(note.data["input_tokens"] or 0)
            self._live.output_tokens += int(note.data["output_tokens"] or 0)
            self._live.cost += cost
            self._services.quotas.spent(cost)
        if self._live and note.name == "first_audio":
            delay = (time.time(), float(note.data["seconds"] or 0))
            self._live.delays = [*self._live.delays[-MAX_KEPT:], delay]
        problem = problem_of(note)
        if self._live and problem and problem not in self._live.problems:
            self._live.problems = [*self._live.problems, problem][:MAX_PROBLEMS]
        if self._live and note.name in ("answered_by", "answer_decided"):
            self._live.answered_by = str(note.data["who"])
        if note.name in ("said", "said_late") and note.data["cut"]:
            index = int(note.data["content_index"] or 0)
            self._on_cut(str(note.data["item"]), index, note.private["heard"])
        if self._listeners:
            for event in note_events(note):
                self._listeners.emit(event)

    def session_event(self, event: RealtimeSessionEvent) -> Note | None:
        """Returns what the log says of the event."""
        note = session_note(event)
        if note:
            self._log.note(note)
        if self._live and note and note.name == "handoff":
            handoff = (time.time(), str(note.data["agent"]), str(note.data["to"]))
            self._live.handoffs = [*self._live.handoffs[-MAX_KEPT:], handoff]
        if self._listeners and self._listeners.wants(event.type):
            self._listeners.emit(call_event(event))
        return note
