"""The log: structlog, JSON in production, pleasant in a terminal.

Messages are static text; numbers, transcripts and tokens never come here. Of a Note
only `data` is logged, never `private`.
"""

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger

from bridge.core.commands import Note

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
        "word_lost",
        "fence_late",
        "held_audio_lost",
    }
)


def configure(form: str, level: int = logging.INFO) -> None:
    """Once, at start. `form`: "json", "pretty", or "auto" (pretty in a terminal)."""
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor
    if pretty:
        renderer = structlog.dev.ConsoleRenderer(
            # Rich ones print local variables: what people said, and who they are.
            exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.JSONRenderer()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not pretty:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    # Libraries (aiohttp, websockets, the SDK) log through the standard library: the
    # same lines for them.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # What is no HTTP at all is quoted in aiohttp's complaint: headers, urls, anything.
    logging.getLogger("aiohttp.server").addFilter(_is_not_about_bytes)
    for chatty in ("websockets", "asyncio", "httpx", "openai.agents"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _is_not_about_bytes(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "http_exceptions" not in type(error).__module__


class NoteLog:
    """One call's Notes as log lines; a protocol error once for each reason."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._seen: set[tuple[object, object]] = set()

    def note(self, note: Note) -> None:
        if note.name == "protocol_error":
            what = (note.data.get("side"), note.data.get("reason"))
            if what in self._seen:
                return
            self._seen.add(what)
        # The same again and again while a model is away: `model_gone` has said it.
        again = note.name == "model_refused" and note.data.get("fatal") is False
        benign = note.data.get("benign") is True
        if again:
            self._log.info(note.name, **note.data)
        elif note.name in WARN and not benign:
            self._log.warning(note.name, **note.data)
        elif note.name in QUIET or benign:
            self._log.debug(note.name, **note.data)
        else:
            self._log.info(note.name, **note.data)
