"""The log: structlog, JSON in production, readable text in a terminal.

The levels: `info`, normal; `warning`, a caller may have noticed it or an operator must
look; `error`, a call fails, or something is lost for good. Each event of the last two
has a row in docs/operations.md.

Events are static text without phone numbers, transcripts or tokens. Of a Note only
`data` is logged, never `private`. The text of an exception or of a library may
contain such values: bridge/privacy/log_scrubber.py removes them.
"""

import contextlib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from bridge.core.commands import Note
from bridge.privacy.log_scrubber import LogScrubber

QUIET = frozenset(
    {
        "speech_started",
        "speech_stopped",
        "clear_confirmed",
        "response_done",
        "first_audio",
        "said",
        "said_late",
        "usage",
        "caller_said",
        "key_pressed",
        "late_audio",
        "stall_filled",
        "gap_filled",
        "tool_finished",
    }
)
"""Names of Notes that are logged at level debug: they come in every turn, and with
hundreds of calls they would hide the other lines."""

WARN = frozenset(
    {
        "protocol_error",
        "handoff_refused",
        "model_error",
        "model_gone",
        "model_lost",
        "transfer_failed",
        "model_refused",
        "call_resumed",
        "stream_lost",
        "answer_failed",
        "answer_incomplete",
        "answer_retried",
        "turn_stuck",
        "turn_unanswered",
        "session_error",
        "tool_failed",
        "key_action_failed",
        "answer_late",
        "text_dropped",
        "fence_late",
        "held_audio_lost",
        "limit_hit",
    }
)
"""Names of Notes that are logged at level warning; `level_of` has the exceptions. All
others are logged at info."""


def level_of(note: Note) -> int:
    """The level at which a Note is logged."""
    data = note.data
    if note.name in QUIET or data.get("benign") is True:
        return logging.DEBUG
    if note.name == "model_refused" and data.get("fatal") is True:
        return logging.ERROR  # another try cannot help: the call fails
    if note.name == "call_resumed" and data.get("why") != "lost":
        return logging.INFO  # a deploy, or a transfer that nobody answered
    return logging.WARNING if note.name in WARN else logging.INFO


NORMAL_ENDS = frozenset(
    {
        "caller_hung_up",
        "bridge_handed_over",
        "bridge_taken_over",
        "bridge_silent",
        "bridge_longest",
        "bridge_cost",
        "bridge_machine",
    }
)
"""Outcomes of `call_ended` that are normal, beside all ends by the agent."""

FAILED_ENDS = frozenset({"bridge_failed", "bridge_agent_failed", "bridge_shutdown"})
"""Outcomes of calls that have failed, beside all ends by the model."""


def level_of_end(by: str, why: str) -> int:
    """The level of `call_ended`."""
    outcome = f"{by}_{why}"
    if by == "model" or outcome in FAILED_ENDS:
        return logging.ERROR
    normal = by == "agent" or outcome in NORMAL_ENDS
    return logging.INFO if normal else logging.WARNING


def configure(
    form: str, level: int = logging.INFO, secrets: Iterable[str] = ()
) -> None:
    """Sets up the log of the process; call it once, at startup.

    `form`: "json", "pretty", or "auto" (pretty in a terminal). `secrets`: texts that
    are removed from every line.
    """
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    # Libraries (aiohttp, websockets, the SDK) log through the standard library. The
    # handler writes their records in the same form.
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                scrub_with(LogScrubber(secrets)),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_pretty() if pretty else [structlog.processors.JSONRenderer()]),
            ],
            foreign_pre_chain=_SHARED,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    _quiet_libraries()


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    # Formatted here and not by the renderer, so that the scrubber sees the text.
    structlog.processors.format_exc_info,
]
"""Prepares the lines of the bridge and of libraries."""


def _pretty() -> list[Processor]:
    console = structlog.dev.ConsoleRenderer(
        # Rich tracebacks print local variables, which hold what people said and their
        # numbers.
        exception_formatter=structlog.dev.plain_traceback
    )
    return [_escape_controls, console]


def _quiet_libraries() -> None:
    # aiohttp quotes malformed requests in its errors: headers, URLs, any bytes.
    logging.getLogger("aiohttp.server").addFilter(_quotes_no_request)
    logging.getLogger("openai.agents").addFilter(_is_not_invalid_event)
    for chatty in ("websockets", "asyncio", "httpx", "openai.agents"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS_IN_TRACEBACK = {
    code: it for code, it in _CONTROLS.items() if chr(code) not in "\n\t"
}


TEXT_OF_OTHERS = frozenset({"exception", "stack", "message"})
"""Fields of a log line that the bridge has not written itself."""


def scrub_with(scrubber: LogScrubber) -> Processor:
    """A structlog processor that scrubs each value of a line except `timestamp` and
    `level`. The text of exceptions, of libraries and of the model's server is
    scrubbed more strictly."""

    def scrub(logger: object, method: str, line: EventDict) -> EventDict:
        of_library = not line.get("_from_structlog", True)
        return {
            key: value
            if key in ("timestamp", "level") or key.startswith("_")
            else scrubber.value(
                value, (of_library and key == "event") or key in TEXT_OF_OTHERS
            )
            for key, value in line.items()
        }

    return scrub


def _escape_controls(logger: object, method: str, line: EventDict) -> EventDict:
    """Escapes control characters: an id, error or status that the caller's or the
    model's side sent must not control the terminal."""
    for name, value in line.items():
        if isinstance(value, str):
            controls = _CONTROLS_IN_TRACEBACK if name == "exception" else _CONTROLS
            line[name] = value.translate(controls)
    return line


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Replaces a line that cannot be formatted. `logging` would print its message
        and arguments unscrubbed."""
        error = sys.exc_info()[1]
        what = f"could not be formatted and is lost: {type(error).__name__}"
        # In `bridge serve` stderr raises nothing (bridge/telemetry/output.py).
        with contextlib.suppress(OSError):
            sys.stderr.write(f"a log line {what}\n")


def log_crashes() -> None:
    """Logs uncaught exceptions, scrubbed like all lines. Python itself would print them
    unscrubbed."""
    log = structlog.get_logger()

    def crashed(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        log.critical("uncaught_exception", exc_info=(kind, error, trace))

    def thread_crashed(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            crashed(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = crashed
    threading.excepthook = thread_crashed


def _is_not_invalid_event(record: logging.LogRecord) -> bool:
    """False for the SDK's line about a server event that it cannot validate: the bridge
    counts each such event and logs it once per call (bridge/model/sdk_model.py)."""
    return not str(record.msg).startswith("Failed to validate server event")


def _quotes_no_request(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "http_exceptions" not in type(error).__module__


MAX_MESSAGE_CHARS = 300
"""Characters of the message of a model error that are logged."""

MAX_LINES = 1000
"""Limit of log lines above debug per call and Note name, so that a server that sends
errors without end does not fill the disk. The metrics count all Notes."""


class NoteLog:
    """Writes the Notes of one call as log lines: a protocol error once per reason, a
    limit once, any other Note up to MAX_LINES times. While the model is away, only the
    first refusal with the same reason is a warning."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._seen: set[tuple[object, ...]] = set()
        self._lines: Counter[str] = Counter()
        self._refusals: set[object] = set()
        """Reasons of refused dials since the model was there."""

    def note(self, note: Note) -> None:
        if note.name in ("protocol_error", "limit_hit"):
            key = (note.name, *note.data.values())
            if key in self._seen or len(self._seen) >= MAX_LINES:
                return
            self._seen.add(key)
        self._lines[note.name] += 1
        lines = self._lines[note.name]
        data = dict(note.data)
        if note.name == "model_error":
            # Of the server, not of a person; log lines are scrubbed.
            data["message"] = note.private.get("message", "")[:MAX_MESSAGE_CHARS]
        if lines == MAX_LINES and note.name not in QUIET:
            self._log.warning("log_lines_dropped", note=note.name)
        level = level_of(note)
        if note.name == "model_back":
            self._refusals.clear()
        elif note.name == "model_refused" and level == logging.WARNING:
            # The dial is repeated several times a second.
            why = data.get("why")
            level = logging.INFO if why in self._refusals else level
            self._refusals.add(why)
        self._log.log(logging.DEBUG if lines >= MAX_LINES else level, note.name, **data)
