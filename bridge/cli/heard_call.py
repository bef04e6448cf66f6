"""A call of the fake caller, as the caller experienced it, for people.

The fake caller knows what it said and which audio it heard, not the agent's words.
"""

import statistics
from itertools import pairwise

from bridge.cli.call_page import Said, seconds_text
from bridge.sim.caller import CallRecord
from bridge.sim.twilio.record import UNDERRUN_LIMIT


def experienced_delays(record: CallRecord) -> list[tuple[str, str]]:
    """The caller's delays: what each is, and how long it was."""
    answers = [
        began - spoken.ended_at
        for spoken in record.spoken
        if (began := _next_sound(record, spoken.ended_at)) is not None
    ]
    stops = [
        clear.at - spoken.started_at
        for clear in record.clears
        for spoken in record.spoken
        if spoken.started_at <= clear.at <= spoken.ended_at
    ]
    rows = []
    if record.first_heard_at and record.stream_at is not None:
        greeted = record.first_heard_at - record.stream_at
        rows.append(("from the answer of the call to the greeting", greeted))
    if answers:
        rows.append(
            ("from the end of speech to the answer", statistics.median(answers))
        )
    if stops:
        rows.append(("from an interruption to silence", statistics.median(stops)))
    return [(what, seconds_text(seconds)) for what, seconds in rows]


def _next_sound(record: CallRecord, after: float) -> float | None:
    return next((run.start for run in record.runs() if run.start >= after), None)


def heard_lines(record: CallRecord, texts: list[str]) -> list[Said]:
    """What was said, in the order of time. `texts`: the words of the caller, one for
    each of its speeches; of the agent only the seconds are known."""
    start = record.stream_at
    if start is None:
        return []
    lines = [
        Said(spoken.started_at - start, "caller", text)
        for spoken, text in zip(record.spoken, texts, strict=False)
    ]
    clears = [clear.at for clear in record.clears]
    for begin, end in _answers(record):
        cut = any(begin <= at <= end + 0.1 for at in clears)
        heard = f"(heard for {end - begin:.1f} s)"
        lines.append(Said(begin - start, "agent", heard, heard, cut))
    return lines


def _answers(record: CallRecord) -> list[tuple[float, float]]:
    """When the caller heard the agent: from each answer's begin to its end."""
    runs = [(run.start, run.end) for run in record.runs() if run.audio]
    if not runs:
        return []
    # A turn of the caller, or a long pause, is the end of an answer.
    begins = [runs[0][0]]
    ends = []
    for (_, before), (after, _) in pairwise(runs):
        spoke = any(before - 1 <= it.started_at <= after for it in record.spoken)
        if spoke or after - before > UNDERRUN_LIMIT:
            ends.append(before)
            begins.append(after)
    return list(zip(begins, [*ends, runs[-1][1]], strict=True))
