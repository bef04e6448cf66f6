"""The report of a call: a function of yours gets it; this one writes it to a file.

Offline:  .venv/bin/bridge demo --routes examples/front_desk.yaml
For real: `report: {to: examples/reports.py:save}` in the routes

A url (`report: {url: https://...}`, or BRIDGE_REPORT_URL) gets the same report as JSON,
signed and with retries.
"""

import os
from pathlib import Path

from bridge import CallReport

FOLDER = Path(os.environ.get("REPORT_FOLDER", "calls"))


def save(report: CallReport) -> None:
    """Called once for each call. It may block: it has its own thread, and 30 s."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{report.call_sid}.report.json").write_bytes(report.as_json())

    lines = [f"{report.from_number} called, {report.seconds:.0f} s, {report.outcome}"]
    # `text` is what was heard; `generated` is what the model generated.
    lines += [f"{it.at:5.1f}  {it.who}: {it.text}" for it in report.transcript]
    for message in report.messages:
        lines.append(f"MESSAGE from {message.name or 'somebody'}: {message.text}")
    (FOLDER / f"{report.call_sid}.report.txt").write_text("\n".join(lines) + "\n")
