"""The figures of a load: judged, as a table, and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.table import Table

from bridge.sim.load_delays import Delays

LATE_P99_MS = 5.0
LATE_MAX_MS = 100.0
"""Fakes that are later than this have measured themselves: the delays contain theirs,
and a server that gets its frames in bursts needs less CPU."""

WORTHLESS = 3
"""Exit code of a load whose fakes were late."""


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The state in one second of the load."""

    at: float  # s since the first call
    calls: int  # in progress
    cpu_percent: float | None  # of one core, of the server's process tree
    memory_mb: float | None
    fakes_cpu_percent: float
    fakes_late_ms: float  # the longest delay of the fakes' event loop


@dataclass(frozen=True, slots=True)
class ServerCost:
    """What the server used. None: its process id is not known, or there is no /proc."""

    cpu_ms_per_call_second: float | None
    memory_before_mb: float | None
    memory_full_mb: float | None
    memory_per_call_mb: float | None


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late the fakes themselves were."""

    loop: Delays
    """Of the event loop: of a timer each 10 ms."""
    frames: Delays
    """Of the caller's frames."""
    cpu_percent: float
    """CPU of the fakes while all calls ran, of one core."""

    @property
    def faults(self) -> list[str]:
        """Why a result with these fakes is worthless; empty if it is not."""
        return [
            f"{name} of {what} is {value:.1f} ms, above {limit:g} ms"
            for what, late in (("their loop", self.loop), ("their frames", self.frames))
            for name, value, limit in (
                ("p99", late.p99, LATE_P99_MS),
                ("max", late.most, LATE_MAX_MS),
            )
            if value > limit
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstReport:
    """The calls of a burst, and the delays of the other calls meanwhile."""

    what: str
    calls: int
    failed: list[str]
    setup: Delays
    """From dialling to the first audio of the caller at the model."""
    caller_to_model: Delays
    """Without the first second of each call, as for all calls."""
    model_to_caller: Delays
    cpu_ms_per_call: float | None
    """CPU of the server during the burst beyond that of the other calls."""
    others_caller_to_model: Delays
    others_model_to_caller: Delays
    others_clear: Delays


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """All delays, also those of the fakes, are those while all calls ran;
    `p99_by_second` has the others too. The calls of a burst are counted apart."""

    server: str
    calls: int
    seconds: float
    """During which all calls ran."""
    ramp_seconds: float
    barge_in_every: int
    placement: str | None
    failed: list[str]
    warnings: list[str]
    """Twilio's warnings, each with the number of calls."""
    model_errors: int
    lost_or_repeated_bytes: int
    answers: int
    caller_to_model: Delays
    """From the sending of a frame by the caller to its append at the model: the time in
    the server, in both sockets and in the fakes."""
    model_to_caller: Delays
    """From the sending of a delta to the arrival of its last audio at the phone."""
    clear: Delays
    """From speech_started at the model to the clear at the phone."""
    belief_error: Delays
    """Of the items that were cut: |ms the model believes were heard - ms that were|."""
    uncorrected: int
    """Items that were not heard in full, of which the model was told nothing."""
    underruns: int
    underrun_seconds: float
    cost: ServerCost
    fakes: Lateness
    burst: BurstReport | None
    samples: list[LoadSample]
    percentiles: dict[str, list[tuple[float, float]]]
    """Of the delays "in", "out", "clear", and of the "fakes": (percent, ms)."""
    p99_by_second: dict[str, list[float | None]]

    @property
    def worthless(self) -> list[str]:
        return self.fakes.faults

    @property
    def broken(self) -> list[str]:
        """What a caller or the model would notice."""
        counted = (
            (self.model_errors, "errors of the model"),
            (self.lost_or_repeated_bytes, "bytes lost, repeated or of no item"),
        )
        of_burst = self.burst.failed if self.burst else []
        counts = [f"{count} {what}" for count, what in counted if count]
        return [*self.failed, *of_burst, *counts]


def render(report: LoadReport) -> Table:
    """The report for a terminal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows(report):
        table.add_row(name, value)
    return table


def rows(report: LoadReport) -> Iterator[tuple[str, str]]:
    yield "server", report.server
    yield "calls", f"{report.calls}, all of them for {report.seconds:.0f} s"
    yield "answers heard", str(report.answers)
    yield "calls failed", str(len(report.failed))
    yield "Twilio's warnings", ", ".join(report.warnings) or "0"
    yield "errors of the model", str(report.model_errors)
    yield "bytes lost or repeated", str(report.lost_or_repeated_bytes)
    yield (
        "under-runs",
        f"{report.underruns}, {report.underrun_seconds:.2f} s of silence in answers",
    )
    yield "caller to model", _delays(report.caller_to_model)
    yield "model to caller", _delays(report.model_to_caller)
    yield "speech to clear", _delays(report.clear)
    yield "belief error", _delays(report.belief_error)
    yield "model not told of a cut", f"{report.uncorrected} items"
    cost = report.cost
    yield "CPU per call-second", _figure(cost.cpu_ms_per_call_second, "ms", 2)
    yield "memory before the first call", _figure(cost.memory_before_mb, "MB", 0)
    yield "memory with all calls", _figure(cost.memory_full_mb, "MB", 0)
    yield "memory per call", _figure(cost.memory_per_call_mb, "MB", 3)
    if report.burst is not None:
        yield from _burst_rows(report.burst)
    yield "fakes: their loop is late by", _delays(report.fakes.loop)
    yield "fakes: frames are late by", _delays(report.fakes.frames)
    yield "fakes: CPU", f"{report.fakes.cpu_percent:.0f} % of a core"
    if report.placement:
        yield "cores", report.placement


def _burst_rows(burst: BurstReport) -> Iterator[tuple[str, str]]:
    yield "burst", burst.what
    yield "burst: calls failed", str(len(burst.failed))
    yield "burst: from dialling to the model", _delays(burst.setup)
    yield "burst: caller to model", _delays(burst.caller_to_model)
    yield "burst: model to caller", _delays(burst.model_to_caller)
    yield "burst: CPU per call", _figure(burst.cpu_ms_per_call, "ms", 1)
    yield "others meanwhile: caller to model", _delays(burst.others_caller_to_model)
    yield "others meanwhile: model to caller", _delays(burst.others_model_to_caller)
    yield "others meanwhile: speech to clear", _delays(burst.others_clear)


def _delays(delays: Delays) -> str:
    if not delays.count:
        return "not measured"
    return (
        f"p50 {delays.p50:.2f} ms, p99 {delays.p99:.2f} ms, max {delays.most:.2f} ms "
        f"({delays.count})"
    )


def _figure(value: float | None, unit: str, digits: int) -> str:
    return "not measured" if value is None else f"{value:.{digits}f} {unit}"


def as_json(report: LoadReport) -> str:
    document = asdict(report)
    document["worthless"] = report.worthless
    return json.dumps(document, indent=2)
