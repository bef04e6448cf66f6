"""Traces of tests that have no event loop."""

import threading
from pathlib import Path

from bridge.telemetry.trace_file import TraceWriter, compressed, lines_of

WRITER = TraceWriter()


def written() -> None:
    """Waits until the traces are written as far as they were handed over."""
    done = threading.Event()
    WRITER.add(done.set)
    assert done.wait(20), "the traces are not written"


def text_of(path: Path) -> str:
    """All lines of a trace, whose file is compressed."""
    with path.open("rb") as file:
        return b"".join(lines_of(file)).decode()


def rewrite(path: Path, text: str) -> None:
    """Replaces all lines of a trace."""
    path.write_bytes(compressed(text.encode()))
