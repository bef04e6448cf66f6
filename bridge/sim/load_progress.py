"""The progress of a load: a live line in a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bridge.sim.load_report import LoadSample

PLAIN_SECONDS = 5
"""Seconds between two plain lines, as in a log of CI."""


class LoadProgress:
    """`with LoadProgress(console, ...) as progress:`; call `progress.show` each
    second."""

    def __init__(self, console: Console, name: str, calls: int, total: float) -> None:
        self._console = console
        self._name = name
        self._calls = calls
        self._total = total  # s
        self._shown = 0
        # Without its own refresh thread, which would disturb the fakes.
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, sample: LoadSample) -> None:
        self._shown += 1
        if self._console.is_terminal:
            self._live.update(Text(self._line(sample)), refresh=True)
        elif self._shown % PLAIN_SECONDS == 0:
            self._console.print(self._line(sample), highlight=False, soft_wrap=True)

    def _line(self, sample: LoadSample) -> str:
        parts = [
            f"{self._name}: {sample.at:3.0f} of about {self._total:.0f} s",
            f"{sample.calls} of {self._calls} calls",
        ]
        if sample.cpu_percent is not None:
            parts.append(f"CPU {sample.cpu_percent:.0f} %")
        if sample.memory_mb is not None:
            parts.append(f"{sample.memory_mb:.0f} MB")
        parts.append(f"fakes: CPU {sample.fakes_cpu_percent:.0f} %")
        parts.append(f"late by {sample.fakes_late_ms:.1f} ms")
        return ", ".join(parts)
