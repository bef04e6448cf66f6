"""The report of a load as one HTML file: no scripts, no external files."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bridge.sim.load_report import LoadReport, rows

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 34
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
NAMES = {
    "in": "caller to model",
    "out": "model to caller",
    "clear": "speech to clear",
    "fakes": "loop of the fakes",
    "burst in": "caller to model",
    "burst out": "model to caller",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px;
       padding: 0 1em; color: #222; background: #fff; }
h1 { font-size: 1.4em; }
.verdict { padding: .6em .9em; border-left: 5px solid #2ca02c; background: #f1f8f1; }
.verdict.bad { border-color: #d62728; background: #fdf1f1; }
table { border-collapse: collapse; margin: 1em 0; }
td { padding: .2em .9em .2em 0; border-bottom: 1px solid #eee; }
td + td { font-variant-numeric: tabular-nums; }
.plots { display: flex; flex-wrap: wrap; gap: 18px; }
svg text { font: 11px system-ui, sans-serif; fill: #444; }
svg .title { font-size: 13px; font-weight: 600; fill: #222; }
"""


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over one axis; `names` are the labels of the x axis where it has no
    numbers."""

    title: str
    unit: str
    lines: Sequence[tuple[str, Points]]
    along: str = "s"
    names: Sequence[str] = ()


def page(report: LoadReport) -> str:
    """The HTML document."""
    title = f"{report.calls} calls on {report.server}"
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>\n"
        for name, value in rows(report)
    )
    plots = "\n".join(svg(plot) for plot in _plots(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{_verdict(report)}\n<table>{cells}</table>\n"
        f'<div class="plots">{plots}</div>\n</body></html>\n'
    )


def _verdict(report: LoadReport) -> str:
    if report.worthless:
        text = "This result is worthless, because the fakes were late: "
        return _box(text + "; ".join(report.worthless) + ".", bad=True)
    if report.broken:
        return _box("; ".join(report.broken[:20]) + ".", bad=True)
    return _box("No call failed, and no audio was lost or repeated.", bad=False)


def _box(text: str, *, bad: bool) -> str:
    kind = "verdict bad" if bad else "verdict"
    return f'<p class="{kind}">{escape(text)}</p>'


def _plots(report: LoadReport) -> Iterator[Plot]:
    samples = report.samples
    cpu = [(it.at, it.cpu_percent) for it in samples if it.cpu_percent is not None]
    memory = [(it.at, it.memory_mb) for it in samples if it.memory_mb is not None]
    fakes = [(it.at, it.fakes_cpu_percent) for it in samples]
    yield Plot("CPU", "% of a core", [("server", cpu), ("fakes", fakes)])
    yield Plot("Memory of the server", "MB", [("resident", memory)])
    yield Plot("Calls", "", [("calls", [(it.at, float(it.calls)) for it in samples])])
    by_second = report.p99_by_second
    yield Plot(
        "Delays, p99 of each second",
        "ms",
        [(NAMES[it], _known(by_second[it])) for it in ("in", "out", "clear")],
    )
    if report.burst is not None:
        yield Plot(
            "Delays of the burst, p99 of each second",
            "ms",
            [(NAMES[it], _known(by_second[it])) for it in ("burst in", "burst out")],
        )
    worst = [(it.at, it.fakes_late_ms) for it in samples]
    late = [("p99", _known(by_second["fakes"])), ("max", worst)]
    yield Plot("How late the fakes were", "ms", late)
    ordered = {
        name: [(float(i), ms) for i, (_, ms) in enumerate(points)]
        for name, points in report.percentiles.items()
    }
    percents = max(report.percentiles.values(), key=len)
    yield Plot(
        "Distribution of the delays",
        "ms",
        [(NAMES[name], points) for name, points in ordered.items()],
        along="percentile",
        names=[f"{percent:g}" for percent, _ in percents],
    )


def _known(line: Sequence[float | None]) -> Points:
    return [(at + 1.0, ms) for at, ms in enumerate(line) if ms is not None]


# --- SVG ----------------------------------------------------------------------------


def svg(plot: Plot) -> str:
    """The plot; y begins at 0."""
    points = [point for _, line in plot.lines for point in line]
    most_x = max((x for x, _ in points), default=0.0) or 1.0
    step = _step(max((y for _, y in points), default=0.0) or 1.0)
    most_y = step * math.ceil((max((y for _, y in points), default=0.0) or 1.0) / step)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most_x * wide, TOP + high - y / most_y * high

    parts = [
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img"><title>{escape(plot.title)}</title>'
    ]
    unit = f" ({plot.unit})" if plot.unit else ""
    parts.append(_text(LEFT, 14, plot.title + unit, "start", "title"))
    for number in range(round(most_y / step) + 1):
        _, y = place(0, number * step)
        parts.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
            'stroke="#ddd"/>'
        )
        parts.append(_text(LEFT - 6, y + 4, f"{number * step:g}", "end"))
    for x, name in _along(plot, most_x):
        parts.append(_text(place(x, 0)[0], HEIGHT - BOTTOM + 15, name, "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 4, plot.along, "end"))
    for number, (name, line) in enumerate(plot.lines):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*it) for it in line))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            'stroke-width="1.6"/>'
        )
        x = LEFT + 128 * number
        parts.append(
            f'<rect x="{x}" y="19" width="9" height="9" fill="{colour}"/>'
            + _text(x + 13, 27, name, "start")
        )
    return "".join((*parts, "</svg>"))


def _along(plot: Plot, most_x: float) -> Iterator[tuple[float, str]]:
    """The labels of the x axis."""
    if plot.names:
        yield from ((float(i), name) for i, name in enumerate(plot.names))
        return
    step = _step(most_x)
    yield from (
        (number * step, f"{number * step:g}")
        for number in range(math.floor(most_x / step) + 1)
    )


def _step(most: float) -> float:
    """A round number, 4 to 10 of which make `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * it for it in (0.1, 0.2, 0.5, 1.0) if most / power / it <= 10)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>'
        f"{escape(text)}</text>"
    )
