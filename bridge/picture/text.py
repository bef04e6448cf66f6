"""A call as text for a terminal: problems, what was said and done, delays."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.picture.problems import CallProblem, clock, problems
from bridge.picture.view import CallView, Part, Tool

OTHER_LINES = {
    # event -> how it is named
    "handoff": "handoff",
    "guardrail_tripped": "guardrail",
    "stream_lost": "stream lost",
    "stream_back": "stream back",
    "model_lost": "model lost",
    "model_back": "model back",
    "model_error": "model error",
    "tool_failed": "tool failed",
    "answer_failed": "no answer",
    "key_pressed": "key",
    "goodbye": "goodbye",
    "end": "end",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the course of a call; `unheard` follows `text`, struck through."""

    at_ms: float
    who: str
    text: str
    kind: str
    """`caller`, `agent`, `tool`, `event`, or `problem` for an event that is one."""
    unheard: str = ""
    part: int | None = None
    """`id` of the Part of the view; None: the line is no item of the agent."""


STYLES = {
    "caller": "cyan",
    "agent": "green",
    "tool": "magenta",
    "event": "magenta",
    "problem": "yellow",
    "sound": "dim",
}


_CONTROLS = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}"
)
"""Of a terminal: what a tool returns, or a server says, must not move its cursor."""
_CONTROLS[ord("\n")] = "\n"


def plain(text: str) -> str:
    """The text without characters that control a terminal."""
    return text.translate(_CONTROLS)


def lines(view: CallView) -> list[Line]:
    """What was said and done, in the order of the call."""
    every = [*_turns(view), *_parts(view), *map(_tool, view.tools), *_others(view)]
    clean = [
        replace(it, who=plain(it.who), text=plain(it.text), unheard=plain(it.unheard))
        for it in every
    ]
    return sorted(clean, key=lambda it: it.at_ms)


def _turns(view: CallView) -> Iterator[Line]:
    for turn in view.turns:
        yield Line(turn.begin_ms, "caller", turn.text or "(no words)", "caller")


def _parts(view: CallView) -> Iterator[Line]:
    for part in view.parts:
        if part.kind == "waiting sound" and part.runs:
            yield Line(part.runs[0].at_ms, "bridge", "(waiting sound)", "sound")
        elif part.kind in ("agent", "recording") and (part.words or part.runs):
            yield _spoken(part)


def _spoken(part: Part) -> Line:
    began = part.heard_from_ms
    at_ms = part.arrived_ms if began is None else began
    heard = "".join(word.text for word in part.words if word.heard).rstrip()
    unheard = "".join(word.text for word in part.words if not word.heard)
    if not part.words:
        heard = f"({part.kind}, {part.heard_ms / 1000:.1f} s)"
    return Line(at_ms, part.agent or "agent", heard, "agent", unheard, id(part))


def _tool(tool: Tool) -> Line:
    text = f"{tool.name} {tool.arguments}"
    if tool.done_ms is not None:
        seconds = (tool.done_ms - tool.called_ms) / 1000
        text += f" -> {tool.output} ({seconds:.1f} s)"
    return Line(tool.called_ms, "tool", text, "tool")


def _others(view: CallView) -> Iterator[Line]:
    for event in view.events:
        if name := OTHER_LINES.get(event.kind):
            details = [f"{key}={value}" for key, value in event.data.items()]
            if event.kind == "handoff":
                details = [f"{event.data.get('agent')} -> {event.data.get('to')}"]
            kind = "event" if event.kind in ("handoff", "end") else "problem"
            text = " ".join([*details, *([event.text] if event.text else [])])
            yield Line(event.at_ms, name, text, kind)


def waits(view: CallView) -> list[tuple[float, str, float, float, float]]:
    """How long the caller waited for each answer: (ms of the call, what wanted an
    answer, seconds to the request or the server's own start, to the first audio, to the
    first sound that the caller heard)."""
    found = []
    for response in view.responses:
        if response.sound_ms is None or response.wanted_ms is None:
            continue
        wanted = response.wanted_ms
        turn = any(it.end_ms == wanted for it in view.turns)
        began = min(response.created_ms, response.requested_ms or math.inf)
        audio = response.audio_ms or response.sound_ms
        moments = (began, audio, response.sound_ms)
        seconds = [max(moment - wanted, 0) / 1000 for moment in moments]
        what = "the caller" if turn else "a tool"
        found.append((wanted, what, seconds[0], seconds[1], seconds[2]))
    return found


def show(view: CallView, console: Console, *, advice: bool = True) -> None:
    """Prints the call."""
    _show_problems(problems(view), console, advice=advice)
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for line in lines(view):
        text = Text(line.text)
        if line.unheard:
            text.append(" ✂ ", "red").append(line.unheard, "dim strike")
        table.add_row(_precise(line.at_ms), Text(line.who, STYLES[line.kind]), text)
    console.print(table)
    if any(line.unheard for line in lines(view)):
        console.print("[red]✂[/] the caller did not hear the rest")
    _show_waits(view, console)
    _show_totals(view, console)


def svg(view: CallView) -> str:
    """The same as an SVG document."""
    console = Console(record=True, width=110, file=StringIO())
    show(view, console)
    return console.export_svg(title=f"Call {view.call_sid}")


def _show_problems(found: list[CallProblem], console: Console, *, advice: bool) -> None:
    if not found:
        console.print("[green]No problem was found in this call.[/]\n")
        return
    for problem in found:
        style = "bold red" if problem.severe else "yellow"
        console.print(
            Text.assemble(("! ", style), plain(problem.title)), soft_wrap=True
        )
        if advice and problem.advice:
            console.print(Text(f"  {plain(problem.advice)}", "dim"), soft_wrap=True)
    console.print()


def _show_waits(view: CallView, console: Console) -> None:
    found = waits(view)
    if not found:
        return
    table = Table(title="Seconds until the answer", title_justify="left", box=None)
    for column in ("after", "of", "began", "first audio", "heard"):
        table.add_column(column, justify="right")
    for at_ms, what, *seconds in found:
        cells = [f"{it:.2f}" for it in seconds]
        table.add_row(_precise(at_ms), what, *cells)
    console.print()
    console.print(table)


def _show_totals(view: CallView, console: Console) -> None:
    tokens_in = sum(it.input_tokens for it in view.responses)
    tokens_out = sum(it.output_tokens for it in view.responses)
    cost = sum(it.cost for it in view.responses)
    ended = (
        f"ended as {view.ended_by}_{view.ended_why}"
        if view.ended_by
        else ("has no end in this trace: it still runs, or the trace was broken off")
    )
    console.print(
        f"\nThe call lasted {clock(view.length_ms)} and {ended}. "
        f"{len(view.responses)} responses, {tokens_in} tokens in, {tokens_out} out"
        + (f", cost {cost:.4f}." if cost else "."),
        highlight=False,
    )


def _precise(ms: float) -> str:
    return f"{clock(ms)}.{int(max(ms, 0) / 100) % 10}"
