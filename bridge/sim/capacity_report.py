"""The result of a search for the capacity: as a table, and as JSON."""

import json
import platform
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

from rich.table import Table

from bridge.sim.capacity import CapacityResult, CapacityStep
from bridge.sim.load_delays import Delays
from bridge.sim.load_report import as_json as load_as_json

COLUMNS = (
    "calls",
    "result",
    "p99 in",
    "p99 out",
    "p99 clear",
    "CPU per call-s",
    "memory",
    "fakes: CPU",
    "fakes: late p99",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Without these, a figure cannot be compared with another one. None: not known."""

    server: str
    machine: str
    placement: str | None
    event_loop: str | None
    """Of the server."""
    tls: bool | None
    """Between the server and the model."""

    def rows(self) -> list[tuple[str, str]]:
        tls = {None: "not known", True: "yes", False: "no"}[self.tls]
        return [
            ("server", self.server),
            ("machine", self.machine),
            ("cores", self.placement or "not assigned"),
            ("event loop", self.event_loop or "not known"),
            ("TLS at the model", tls),
        ]


def machine() -> str:
    """This machine and its Python."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"{model}, {cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


def cells(step: CapacityStep) -> list[str]:
    """One row of the table."""
    report = step.report
    cost = report.cost
    cpu = cost.cpu_ms_per_call_second
    memory = cost.memory_full_mb
    return [
        str(step.calls),
        step.result,
        _p99(report.caller_to_model),
        _p99(report.model_to_caller),
        _p99(report.clear),
        "-" if cpu is None else f"{cpu:.2f} ms",
        "-" if memory is None else f"{memory:.0f} MB",
        f"{report.fakes.cpu_percent:.0f} %",
        f"{max(report.fakes.loop.p99, report.fakes.frames.p99):.1f} ms",
    ]


def line(step: CapacityStep) -> str:
    """A step that has just ended."""
    if step.reasons:
        return f"{step.calls} calls {step.result}: {'; '.join(step.reasons[:3])}"
    delays = ", ".join(
        f"{name} {value}"
        for name, value in zip(("in", "out", "clear"), cells(step)[2:5], strict=True)
    )
    return f"{step.calls} calls {step.result}: p99 {delays}"


def render(result: CapacityResult) -> Table:
    """The steps, in the order of the calls."""
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "result" else "right")
    for step in sorted(result.steps, key=lambda it: it.calls):
        table.add_row(*cells(step))
    return table


def as_json(result: CapacityResult, circumstances: Circumstances) -> str:
    document = {
        "calls": result.calls,
        "limit_ms": result.limit_ms,
        "conclusion": result.conclusion,
        "limited_by_fakes": result.limited_by_fakes,
        "bound": None if result.bound is None else result.bound.calls,
        "exceeded_first": [] if result.bound is None else result.bound.reasons,
        **{name.replace(" ", "_"): text for name, text in circumstances.rows()},
        "steps": [
            {
                "calls": it.calls,
                "result": it.result,
                "reasons": it.reasons,
                "report": json.loads(load_as_json(it.report)),
            }
            for it in result.steps
        ],
    }
    return json.dumps(document, indent=2)


def _p99(delays: Delays) -> str:
    return f"{delays.p99:.2f} ms" if delays.count else "-"
