"""The log: structlog, JSON in production, pleasant in a terminal.

Messages are static text; numbers, transcripts and tokens never come here. Of a Note
only `data` is logged, never `private`. What comes all the same (the text of an
exception, a line of a library's) goes through
bridge/privacy/log_scrubber.py.
"""

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
        "usage",
        "caller_said",
        "key_pressed",
        "late_audio",
        "stall_filled",
        "gap_filled",
    }
)
"""Notes of every turn: with hundreds of calls they would drown the rest (debug)."""

WARN = frozenset(
    {
        "protocol_error",
        "model_error",
        "model_gone",
        "model_refused",
        "answer_failed",
        "session_error",
        "tool_failed",
        "answer_late",
        "text_dropped",
        "fence_late",
        "held_audio_lost",
        "limit_hit",
    }
)


def configure(
    form: str, level: int = logging.INFO, secrets: Iterable[str] = ()
) -> None:
    """Once, at start. `form`: "json", "pretty", or "auto" (pretty in a terminal).
    `secrets`: what no line may show, in whatever text it comes."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    render: list[structlog.typing.Processor] = [structlog.processors.JSONRenderer()]
    if pretty:
        console = structlog.dev.ConsoleRenderer(
            # Rich ones print local variables: what people said, and who they are.
            exception_formatter=structlog.dev.plain_traceback
        )
        render = [_visible, console]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Here, not by the renderer: its text is looked through, too.
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    # Libraries (aiohttp, websockets, the SDK) log through the standard library: the
    # same lines for them.
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                scrub_with(LogScrubber(secrets)),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *render,
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # What is no HTTP at all is quoted in aiohttp's complaint: headers, urls, anything.
    logging.getLogger("aiohttp.server").addFilter(_is_not_about_bytes)
    logging.getLogger("openai.agents").addFilter(_is_not_about_events)
    for chatty in ("websockets", "asyncio", "httpx", "openai.agents"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_BUT_LINES = {code: it for code, it in _CONTROLS.items() if chr(code) not in "\n\t"}


def scrub_with(scrubber: LogScrubber) -> Processor:
    """A processor of structlog that scrubs each value of a line but `timestamp` and
    `level`. Text of exceptions and of libraries is scrubbed more strictly."""

    def scrub(logger: object, method: str, line: EventDict) -> EventDict:
        theirs = not line.get("_from_structlog", True)
        return {
            key: value
            if key in ("timestamp", "level") or key.startswith("_")
            else scrubber.value(
                value, (theirs and key == "event") or key in ("exception", "stack")
            )
            for key, value in line.items()
        }

    return scrub


def _visible(logger: object, method: str, line: EventDict) -> EventDict:
    """What others send (an id, an error, a status) does nothing to a terminal."""
    for name, value in line.items():
        if isinstance(value, str):
            unseen = _BUT_LINES if name == "exception" else _CONTROLS
            line[name] = value.translate(unseen)
    return line


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be made is not shown in pieces, as logging would."""
        error = sys.exc_info()[1]
        sys.stderr.write(f"log line lost: {type(error).__name__}\n")


def tell_crashes() -> None:
    """What nobody catches is logged as all else is; Python itself would print it."""
    log = structlog.get_logger()

    def crashed(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        log.critical("crashed", exc_info=(kind, error, trace))

    def thread_crashed(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            crashed(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = crashed
    threading.excepthook = thread_crashed


def _is_not_about_events(record: logging.LogRecord) -> bool:
    """Each that the SDK cannot take is counted (agent/model.py), and told of once."""
    return not str(record.msg).startswith("Failed to validate server event")


def _is_not_about_bytes(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "http_exceptions" not in type(error).__module__


MAX_LINES = 1000
"""Of one kind in one call, above debug: a server that complains without end fills no
disk. Figures count all."""


class NoteLog:
    """One call's Notes as log lines; a protocol error once for each reason, a limit
    once, of any other so many."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._seen: set[tuple[object, ...]] = set()
        self._lines: Counter[str] = Counter()

    def note(self, note: Note) -> None:
        if note.name in ("protocol_error", "limit_hit"):
            what = (note.name, *note.data.values())
            if what in self._seen:
                return
            self._seen.add(what)
        self._lines[note.name] += 1
        lines = self._lines[note.name]
        if lines == MAX_LINES and note.name not in QUIET:
            self._log.warning("log_lines_dropped", of=note.name)
        # The same again and again while a model is away: `model_gone` has said it.
        again = note.name == "model_refused" and note.data.get("fatal") is False
        benign = note.data.get("benign") is True
        if lines >= MAX_LINES:
            self._log.debug(note.name, **note.data)
        elif again:
            self._log.info(note.name, **note.data)
        elif note.name in WARN and not benign:
            self._log.warning(note.name, **note.data)
        elif note.name in QUIET or benign:
            self._log.debug(note.name, **note.data)
        else:
            self._log.info(note.name, **note.data)
