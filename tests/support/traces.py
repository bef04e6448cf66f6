"""Traces of tests that have no event loop."""

import threading

from bridge.telemetry.trace_file import TraceWriter

WRITER = TraceWriter()


def written() -> None:
    """Waits until the traces are written as far as they were handed over."""
    done = threading.Event()
    WRITER.add(done.set)
    assert done.wait(20), "the traces are not written"
