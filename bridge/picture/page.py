"""A call as one HTML file: it needs no network, and opens from a disk.

The file contains the libraries, the data and the audio. What people said reaches the
page only as JSON, and the page puts it in as text, never as markup.
"""

import base64
import gzip
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import msgspec

from bridge.audio import g711
from bridge.picture import explanations, recording
from bridge.picture.problems import clock, problems
from bridge.picture.text import lines, waits
from bridge.picture.view import CallView, HeardRun, ModelResponse, Part

STEP_MS = 20
"""Each point of a waveform is the peak of this much audio: a frame of Twilio's."""

ROWS = ("caller speaks", "agent", "caller waits", "tools", "lost")
POINT_ROWS = ("keys and events", "clear, truncate", "marks")


def page(view: CallView) -> str:
    """The document."""
    parts = {
        "TITLE": escape(f"Call {view.call_sid}"),
        "STYLE": _asset("page.css"),
        "LIBRARY": _asset("echarts.min.js"),
        "SCRIPT": _asset("page.js"),
        "DATA": _in_script(msgspec.json.encode(data(view)).decode()),
        "AUDIO": _audio(view),
    }
    # In one pass: what people said may look like a name of the template.
    return re.sub("@@([A-Z]+)@@", lambda it: parts[it[1]], _asset("page.html"))


def data(view: CallView) -> dict[str, Any]:
    """What the page shows, as JSON values; times in seconds of the call."""
    return {
        "title": f"Call {view.call_sid}",
        "seconds": view.length_ms / 1000,
        "hasAudio": view.has_audio,
        "facts": list(_facts(view)),
        "problems": [
            {
                "at": max(it.at_ms, 0) / 1000,
                "clock": clock(it.at_ms),
                "title": it.title,
                "advice": it.advice,
                "severe": it.severe,
            }
            for it in problems(view)
        ],
        "step": STEP_MS / 1000,
        "caller": _peaks(view.caller),
        "heard": _peaks(view.agent),
        "unheard": list(_unheard(view)),
        "rows": ROWS,
        "bars": list(_bars(view)),
        "pointRows": POINT_ROWS,
        "points": list(_points(view)),
        "lines": list(_lines(view)),
        "waits": [
            [at_ms / 1000, clock(at_ms), what, *seconds]
            for at_ms, what, *seconds in waits(view)
        ],
        "costs": list(_costs(view)),
    }


@cache
def _asset(name: str) -> str:
    return resources.files("bridge.picture").joinpath("assets", name).read_text("utf-8")


def _in_script(json: str) -> str:
    """JSON that cannot end the element it stands in."""
    return json.replace("<", "\\u003c")


def _audio(view: CallView) -> str:
    """Both sides as a WAV of mu-law, compressed, as base64; empty: no audio."""
    if not view.has_audio:
        return ""
    wav = recording.mulaw_wav(view)
    return base64.b64encode(gzip.compress(wav, 4, mtime=0)).decode()


def _peaks(mulaw: bytes) -> str:
    """The loudness of each step, from 0 to 127, as base64."""
    size = STEP_MS * g711.BYTES_PER_MS
    return base64.b64encode(g711.peaks(mulaw, size)).decode()


def _facts(view: CallView) -> Iterator[tuple[str, str]]:
    yield "Length", clock(view.length_ms)
    if view.ended_by:
        yield "Ended", explanations.ending(view.ended_by, view.ended_why)
    else:
        yield "Ended", "no: the call still runs, or the trace was broken off"
    agents = {it.agent: None for it in view.responses if it.agent}
    if agents:
        yield "Agents", ", ".join(agents)
    yield "Responses", str(len(view.responses))
    tokens_in = sum(it.input_tokens for it in view.responses)
    tokens_out = sum(it.output_tokens for it in view.responses)
    yield "Tokens", f"{tokens_in} in, {tokens_out} out"
    if cost := sum(it.cost for it in view.responses):
        yield "Cost", f"{cost:.4f}"
    if view.redacted:
        yield "Redacted", f"{', '.join(view.redacted)}; the audio is silence"


def _costs(view: CallView) -> Iterator[list[Any]]:
    for it in view.responses:
        tokens = (it.input_tokens, it.output_tokens)
        moment = (it.created_ms / 1000, clock(it.created_ms))
        yield [*moment, it.agent, it.status, *tokens, it.cost]


def _unheard(view: CallView) -> Iterator[dict[str, Any]]:
    """The audio that was generated and not heard, where it would have been played."""
    for part in view.parts:
        rest_ms = part.generated_ms - part.heard_ms
        if part.kind != "agent" or rest_ms < STEP_MS or not part.audio:
            continue
        heard_bytes = int(part.heard_ms * g711.BYTES_PER_MS)
        yield {"at": _cut_at_ms(part) / 1000, "peaks": _peaks(part.audio[heard_bytes:])}


def _cut_at_ms(part: Part) -> float:
    until = part.heard_until_ms
    return part.arrived_ms if until is None else until


def _bars(view: CallView) -> Iterator[list[Any]]:
    for turn in view.turns:
        end_ms = view.length_ms if turn.end_ms is None else turn.end_ms
        text = f"The caller speaks: {turn.text}" if turn.text else "The caller speaks"
        yield _bar("caller speaks", turn.begin_ms, end_ms, text, "caller")
    for part in view.parts:
        name = (part.agent or "The agent") if part.kind == "agent" else part.kind
        for run in part.runs:
            end_ms = run.at_ms + run.end_ms - run.begin_ms
            heard = f"{name}: heard {part.heard_ms:.0f} of {part.generated_ms:.0f} ms"
            yield _bar("agent", run.at_ms, end_ms, heard, "agent")
        rest_ms = part.generated_ms - part.heard_ms
        if part.kind == "agent" and rest_ms >= STEP_MS:
            begin_ms = _cut_at_ms(part)
            text = f"{name}: {rest_ms:.0f} ms were generated and not heard"
            yield _bar("agent", begin_ms, begin_ms + rest_ms, text, "unheard")
    ends_ms = sorted(it.at_ms + it.end_ms - it.begin_ms for it in _runs(view))
    for response in view.responses:
        yield from _wait(response, ends_ms)
    for tool in view.tools:
        end_ms = view.length_ms if tool.done_ms is None else tool.done_ms
        text = f"{tool.name} {tool.arguments} -> {tool.output or 'no result'}"
        kind = "failed" if tool.failed else "tool"
        yield _bar(
            "tools", tool.called_ms, max(end_ms, tool.called_ms + 50), text, kind
        )
    for gap in view.gaps:
        end_ms = view.length_ms if gap.end_ms is None else gap.end_ms
        text = f"The {gap.kind} was lost for {(end_ms - gap.begin_ms) / 1000:.1f} s"
        yield _bar("lost", gap.begin_ms, end_ms, text, "failed")


def _runs(view: CallView) -> Iterator[HeardRun]:
    for part in view.parts:
        yield from part.runs


def _wait(response: ModelResponse, ends_ms: list[float]) -> Iterator[list[Any]]:
    """What the caller waited for, part by part. `ends_ms`: when sounds of the agent
    ended, in order: while one of them is heard, nobody waits."""
    sound_ms = response.sound_ms
    if response.wanted_ms is None or sound_ms is None:
        return
    heard = bisect_right(ends_ms, sound_ms)
    quiet_ms = max(response.wanted_ms, ends_ms[heard - 1] if heard else 0.0)
    audio_ms = response.audio_ms or sound_ms
    steps = (
        ("the request", response.wanted_ms, response.created_ms),
        ("the model's first audio", response.created_ms, audio_ms),
        ("the first sound at the phone", audio_ms, sound_ms),
    )
    for what, from_ms, end_ms in steps:
        begin_ms = max(from_ms, quiet_ms)
        if end_ms > begin_ms:
            seconds = (end_ms - begin_ms) / 1000
            yield _bar(
                "caller waits",
                begin_ms,
                end_ms,
                f"{seconds:.2f} s until {what}",
                "wait",
            )


def _bar(row: str, begin_ms: float, end_ms: float, text: str, kind: str) -> list[Any]:
    number = ROWS.index(row)
    return [number, begin_ms / 1000, end_ms / 1000, text[:600], kind]


def _points(view: CallView) -> Iterator[list[Any]]:
    for event in view.events:
        row = explanations.row_of(event.kind)
        if row is not None:
            text = explanations.text_of(event)
            at = max(event.at_ms, 0) / 1000
            yield [POINT_ROWS.index(row), at, text[:600]]


def _lines(view: CallView) -> Iterator[dict[str, Any]]:
    spoken = {id(part): part for part in view.parts}
    for line in lines(view):
        part = spoken.get(line.part) if line.part is not None else None
        words = list(_words(part)) if part is not None else []
        if not words:
            words = [[None, line.text, True], [None, line.unheard, False]]
        yield {
            "at": max(line.at_ms, 0) / 1000,
            "clock": clock(line.at_ms),
            "who": line.who,
            "kind": line.kind,
            "words": [word for word in words if word[1]],
        }


def _words(part: Part) -> Iterator[list[Any]]:
    """(second of the call at which it is heard, word, heard)."""
    for word in part.words:
        at = None
        for run in part.runs:
            if word.heard and run.begin_ms <= word.at_ms <= run.end_ms:
                at = (run.at_ms + word.at_ms - run.begin_ms) / 1000
        yield [at, word.text, word.heard]
