"""What a call said, heard and did, printed for people when it is over.

One form for `bridge demo`, `bridge sim call` and `bridge serve`. It has words of
people, so it goes to the terminal, never into the log.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.records.report import CallReport, ToolCall

SHORTEN_AT = 160
"""Characters of a tool's arguments and output, and of an error, that are printed."""

CUT = " ✂"

HANDOFF = "transfer_to_"
"""Prefix of the names of the SDK's handoffs, which are tools to the model."""


@dataclass(frozen=True, slots=True)
class Said:
    """Something that was said. `at`: seconds from the start of the call."""

    at: float
    who: str
    text: str
    heard: str = ""
    """The part of `text` that was heard, if `cut`."""
    cut: bool = False
    """The caller did not hear the rest."""


@dataclass(frozen=True, slots=True)
class Did:
    """A tool call or handoff of the agent; `at` as in Said."""

    at: float
    kind: str
    """`tool`, or `handoff` from one agent to another."""
    name: str
    arguments: str = ""
    """JSON as the model wrote it."""
    output: str | None = None
    """None if there was no output: the call was over, or nobody approved the tool
    call."""
    result: str = ""
    """How long it took, and what became of it."""

    @property
    def text(self) -> str:
        words = " ".join(part for part in (self.name, self.arguments) if part)
        end = f" ({self.result})" if self.result else ""
        if self.output is None:
            return words + end
        return f"{words} -> {shortened(self.output)}{end}"


Line = Said | Did


def shortened(text: str) -> str:
    short = text[:SHORTEN_AT]
    return f"{short}{' ...' if short != text else ''}"


def show_lines(lines: Sequence[Line], console: Console) -> None:
    """Prints what was said and done, in the order of time."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for line in sorted(lines, key=lambda it: it.at):
        tenths = round(line.at * 10)
        clock = f"{tenths // 600}:{tenths % 600 / 10:04.1f}"
        if isinstance(line, Did):
            table.add_row(clock, Text(line.kind, "magenta"), Text(line.text, "magenta"))
            continue
        style = "cyan" if line.who == "caller" else "green"
        text = Text(line.text or "(words unknown)")
        if line.cut:
            unheard = line.text[len(line.heard) :]
            text = Text.assemble(line.heard, (CUT, "red"), (unheard, "dim"))
        table.add_row(clock, Text(line.who, style), text)
    console.print(table)
    if any(isinstance(line, Said) and line.cut for line in lines):
        console.print("[red]✂[/] interrupted: the caller did not hear the rest")


def show_delays(rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Prints what each delay is, and how long it was."""
    table = Table(title="Delays", title_justify="left", box=None, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    if rows:
        console.print(table)


def seconds_text(seconds: float) -> str:
    return f"{seconds:.2f} s"


# --- a report, as `bridge serve` prints it ---


def show_report(report: CallReport, console: Console) -> None:
    """Prints the whole page of a call that is over."""
    console.print()
    console.print(
        Text(f"Call {report.call_sid} is over", "bold"), soft_wrap=True, highlight=False
    )
    show_lines(_lines(report), console)
    show_delays(_delays(report), console)
    for problem in _problems(report):
        console.print(Text(problem, "red"), soft_wrap=True)
    console.print(Text(_end(report)), soft_wrap=True)
    console.print()


def _lines(report: CallReport) -> list[Line]:
    said: list[Line] = []
    handoffs = sorted(report.handoffs, key=lambda it: it.at)
    for it in report.transcript:
        agent = handoffs[0].agent if handoffs else report.agent
        for handoff in handoffs:
            if handoff.at <= it.at:
                agent = handoff.to
        who = "caller" if it.who == "caller" else agent or "agent"
        if it.cut:
            said.append(Said(it.at, who, it.generated, it.text, cut=True))
        else:
            said.append(Said(it.at, who, it.text))
    ended = report.seconds
    did = [
        Did(
            ended if it.at is None else it.at,
            "tool",
            it.name,
            shortened(it.arguments),
            it.output or None,
            _result(it),
        )
        for it in report.tools
        if not (it.name.startswith(HANDOFF) and it.outcome == "done")
    ]
    went = [Did(it.at, "handoff", f"{it.agent} -> {it.to}") for it in report.handoffs]
    return [*said, *did, *went]


def _result(tool: ToolCall) -> str:
    if tool.seconds is None:
        return "no result"
    outcome = {"done": "", "call_over": "the call was over", "unknown": "no such tool"}
    what = outcome.get(tool.outcome, tool.outcome)
    return ", ".join(part for part in (seconds_text(tool.seconds), what) if part)


def _delays(report: CallReport) -> list[tuple[str, str]]:
    waited = [it.seconds for it in report.delays]
    if not waited:
        return []
    first, *others = waited
    rows = [("to the first words", seconds_text(first))]
    if others:
        each = ", ".join(seconds_text(it) for it in others)
        rows.append(("from the end of the caller's turn to the answer", each))
        if len(others) > 1:
            rows.append(
                ("the median of these", seconds_text(statistics.median(others)))
            )
    return rows


def _problems(report: CallReport) -> list[str]:
    """Errors of tools, of the model's server, and of transfers."""
    failed = [
        f"tool {it.name} failed: {shortened(it.error)}"
        for it in report.tools
        if it.error
    ]
    model = [
        f"{it.name}: {' '.join(part for part in (it.what, it.event_type) if part)}"
        f"{f': {shortened(it.message)}' if it.message else ''}"
        for it in report.problems
    ]
    transfers = [
        f"transfer failed: {it.status} {it.message}".rstrip()
        for it in report.failed_transfers
    ]
    return failed + model + transfers


def _end(report: CallReport) -> str:
    """How the call ended, and what it used."""
    if not report.ended_by:
        return f"Nobody talked: {report.status}."
    why = report.ended_why.replace("_", " ")
    usage = report.usage
    parts = [f"After {report.seconds:.1f} s the {report.ended_by} ended it: {why}."]
    interrupted = sum(1 for it in report.transcript if it.cut)
    if interrupted:
        parts.append(f"The agent was interrupted {interrupted} times.")
    if usage.input_tokens or usage.output_tokens:
        tokens = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
        cost = f", cost {usage.cost:.4f}" if usage.cost else ""
        parts.append(f"The model used {tokens}{cost}.")
    return " ".join(parts)
