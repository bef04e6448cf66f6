"""What became of a tool call: for the log, the metrics, the report and listeners."""

import time
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["done", "failed", "timeout", "call_over", "unknown"]
"""`call_over`: the call ended first, as with `hang_up`. `unknown`: the model asked for
a tool that its agent does not have."""

OUTCOMES: tuple[Outcome, ...] = ("done", "failed", "timeout", "call_over", "unknown")

MAX_KEPT = 500
"""Limit of finished tools that a call keeps for its report: the newest."""

MAX_MESSAGE_CHARS = 1000
"""Characters of the text of an exception that are kept."""


@dataclass(frozen=True, slots=True)
class FinishedTool:
    """A tool call, or a handoff, that has ended."""

    tool: str
    call_id: str
    outcome: Outcome
    seconds: float
    """From the start of the tool, without the time it waited for an approval."""
    error: str = ""
    """The type of the exception, or `timeout`; empty unless it failed."""
    where: str = ""
    """The user's lines that raised (user_errors.where)."""
    traceback: str = ""
    """user_errors.traceback_of"""
    message: str = ""
    """The text of the exception: it may hold words of people."""
    ended_at: float = field(default_factory=time.time)
    """Seconds since the epoch."""
