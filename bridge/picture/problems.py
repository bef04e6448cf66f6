"""Problems of a call, named in plain words: what the caller noticed, and why.

PURE. Each rule is one function from a view to the problems it finds. A rule names a
cause only where the view shows it.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import msgspec

from bridge.picture.view import CallerTurn, CallView, Event, ModelResponse, Part, Tool

SLOW_MS = 2000.0
"""A longer wait for an answer is a problem: people begin to speak again after it."""

SLOW_TOOL_MS = 1000.0
"""A tool that takes longer is named as the cause of a wait."""

OVER_MS = 700.0
"""The agent speaks over the caller if both sound for longer: a barge-in takes the time
of the network, twice."""

GAP_MS = 200.0
"""A pause inside an item that the model did not make is heard as a gap."""

MINOR_GAP_MS = 1000.0
"""Callers hardly notice a shorter one."""

HOLD_MS = 3000.0
"""A caller's phone that sends no audio for longer is muted or on hold."""

MANY_KEYS = 10
KEYS_SECONDS = 5.0
"""So many keys within so many seconds are a flood."""

SAME_WORDS = 5
"""Shorter sentences may be said twice."""

LETTERS = 4
"""Fewer letters tell no script."""


class CallProblem(msgspec.Struct, frozen=True):
    """`at_ms`: where to look. `title`: what the caller noticed, and the cause, in one
    line. `advice`: what to look at, or to change."""

    at_ms: float
    title: str
    advice: str = ""
    severe: bool = False
    """The call failed, or the caller was left without an answer."""
    minor: bool = False
    """The caller hardly noticed."""


def problems(view: CallView) -> list[CallProblem]:
    """All problems: severe ones first, minor ones last, each in the order of the
    call."""
    found = [problem for rule in RULES for problem in rule(view)]
    return sorted(found, key=lambda it: (not it.severe, it.minor, it.at_ms))


def clock(ms: float) -> str:
    """A moment of a call as people write it: 0:42, 1:02:03."""
    seconds = int(max(ms, 0) / 1000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours}:{minutes:02}:{seconds % 60:02}"
    return f"{minutes}:{seconds % 60:02}"


def _s(ms: float) -> str:
    return f"{ms / 1000:.1f} s"


def _heard(view: CallView) -> Iterator[tuple[float, float, Part]]:
    """(begin, end, part) in ms of what the caller heard of the agent."""
    for part in view.parts:
        if part.kind in ("agent", "recording"):
            for run in part.runs:
                yield run.at_ms, run.at_ms + run.end_ms - run.begin_ms, part


# --- speech over speech ---


def spoke_over_the_caller(view: CallView) -> Iterator[CallProblem]:
    for turn in view.turns:
        turn_end = view.length_ms if turn.end_ms is None else turn.end_ms
        over = [
            (max(begin, turn.begin_ms), min(end, turn_end))
            for begin, end, _ in _heard(view)
        ]
        over = [(begin, end) for begin, end in over if end > begin]
        both_ms = sum(end - begin for begin, end in over)
        if both_ms < OVER_MS:
            continue
        at_ms = over[0][0]
        because, advice = _why_not_stopped(view, turn)
        title = f"The agent spoke {_s(both_ms)} over the caller at {clock(at_ms)}"
        yield CallProblem(at_ms, f"{title}: {because}", advice)


def _why_not_stopped(view: CallView, turn: CallerTurn) -> tuple[str, str]:
    if view.turn_detection.get("interrupt_response") is False:
        return (
            "interrupt_response is off",
            "Set interrupt_response in the turn detection of the route's session.",
        )
    greeting_ends = max(
        (end for _, end, part in _heard(view) if _is_opening(view, part)), default=0.0
    )
    if view.rules.get("greeting_interruptible") is False and (
        turn.begin_ms < greeting_ends
    ):
        return (
            "the greeting cannot be interrupted",
            "Remove `interruptible: false` from the route's greeting.",
        )
    clears = [it.at_ms for it in view.events if it.kind == "clear"]
    after = next((at for at in clears if at >= turn.begin_ms - 20), None)
    if after is None:
        return "no clear was sent", "Look at the events of this turn."
    wait_ms = after - turn.begin_ms
    if wait_ms > OVER_MS / 2:
        return (
            f"the clear was sent {_s(wait_ms)} after the caller began",
            "Look at the events of this turn, and at the delays of this instance.",
        )
    return (
        "the clear took long to reach Twilio",
        "Look at the network between the bridge and Twilio.",
    )


def _is_opening(view: CallView, part: Part) -> bool:
    agents = [it for it in view.parts if it.kind in ("agent", "recording")]
    return bool(agents) and part is agents[0]


def false_interruptions(view: CallView) -> Iterator[CallProblem]:
    for turn in view.turns:
        cut = [it for it in view.parts if it.cut and _cut_by(it, turn)]
        if cut and turn.text_ms is not None and not turn.text.strip():
            yield CallProblem(
                turn.begin_ms,
                f"Noise interrupted the agent at {clock(turn.begin_ms)}: the caller's "
                "turn has no words",
                "Raise the threshold of the turn detection, or set noise_reduction.",
            )


def _cut_by(part: Part, turn: CallerTurn) -> bool:
    until = part.heard_until_ms
    return until is not None and -500 < until - turn.begin_ms < 1500


# --- waiting ---


def slow_answers(view: CallView) -> Iterator[CallProblem]:
    sounds = sorted(begin for begin, _, _ in _heard(view))
    for turn, following in _with_next(view.turns):
        if turn.end_ms is None:
            continue
        until = following.begin_ms if following else view.length_ms
        sound = next((at for at in sounds if at > turn.end_ms), None)
        answered = sound is not None and sound <= until
        wait_ms = (sound if answered and sound is not None else until) - turn.end_ms
        if wait_ms < SLOW_MS:
            continue
        causes = _causes(view, turn.end_ms, turn.end_ms + wait_ms)
        where = f"at {clock(turn.end_ms)}"
        if answered:
            title = f"The answer {where} took {_s(wait_ms)}"
        elif wait_ms >= 2 * SLOW_MS:
            title = f"The caller got no answer {where}, and waited {_s(wait_ms)}"
        else:
            continue
        because = f": {causes}" if causes else ""
        yield CallProblem(turn.end_ms, title + because, severe=not answered)


def slow_greeting(view: CallView) -> Iterator[CallProblem]:
    first = min((begin for begin, _, _ in _heard(view)), default=None)
    greets = view.rules.get("greeting") is not None
    if not greets or not view.has_audio:
        return
    if first is None and view.length_ms > 2 * SLOW_MS:
        causes = _causes(view, 0, view.length_ms)
        title = "The caller never heard the agent"
        yield CallProblem(0.0, f"{title}: {causes}" if causes else title, severe=True)
    elif first is not None and first > SLOW_MS:
        causes = _causes(view, 0, first)
        title = f"The greeting began after {_s(first)}"
        yield CallProblem(0.0, f"{title}: {causes}" if causes else title)


def _causes(view: CallView, begin_ms: float, end_ms: float) -> str:
    """What took the time between two moments, the longest part first."""

    def inside(begin: float | None, end: float | None) -> float:
        if begin is None:
            return 0.0
        return min(end_ms if end is None else end, end_ms) - max(begin, begin_ms)

    found: list[tuple[float, str]] = []
    for tool in view.tools:
        ms = inside(tool.called_ms, tool.done_ms)
        if ms >= SLOW_TOOL_MS:
            found.append((ms, f"{_s(ms)} of it in the tool {tool.name}"))
    for gap in view.gaps:
        ms = inside(gap.begin_ms, gap.end_ms)
        if ms > 0:
            names = {"stream": "the stream was lost", "model": "the model was lost"}
            found.append((ms, f"{_s(ms)} of it {names[gap.kind]}"))
    for response in view.responses:
        until = response.audio_ms or response.done_ms
        ms = inside(response.created_ms, until)
        if ms >= SLOW_TOOL_MS:
            found.append((ms, f"{_s(ms)} of it the model prepared a response"))
    silent = [
        it for it in _silent_responses(view) if begin_ms <= it.created_ms < end_ms
    ]
    if silent:
        found.append((0.0, "a response of the model had no sound"))
    failed = [it for it in view.events if it.kind == "answer_failed"]
    whys = {str(it.data.get("why")) for it in failed if begin_ms <= it.at_ms < end_ms}
    if whys:
        found.append((0.0, f"a response failed ({', '.join(sorted(whys))})"))
    return "; ".join(text for _, text in sorted(found, reverse=True))


def _silent_responses(view: CallView) -> Iterator[ModelResponse]:
    """Responses that the model completed without sound and without calling a tool."""
    for response in view.responses:
        done = response.done_ms
        if done is None or response.audio_ms or response.status != "completed":
            continue
        if not any(
            response.created_ms <= it.called_ms <= done + 50 for it in view.tools
        ):
            yield response


def answers_without_sound(view: CallView) -> Iterator[CallProblem]:
    for response in _silent_responses(view):
        yield CallProblem(
            response.created_ms,
            f"The model's response at {clock(response.created_ms)} had no sound",
            "Check output_modalities and the model of the session.",
        )


def gaps_in_speech(view: CallView) -> Iterator[CallProblem]:
    for part in view.parts:
        for run, following in pairwise(part.runs):
            gap_ms = following.at_ms - (run.at_ms + run.end_ms - run.begin_ms)
            if gap_ms >= GAP_MS:
                at_ms = following.at_ms - gap_ms
                yield CallProblem(
                    at_ms,
                    f"The agent's sound stopped for {_s(gap_ms)} at {clock(at_ms)}: "
                    "its audio came too late",
                    "The model sent it too slowly, or the network held it.",
                    minor=gap_ms < MINOR_GAP_MS,
                )


# --- what failed ---


def failed_tools(view: CallView) -> Iterator[CallProblem]:
    for event in view.events:
        if event.kind == "tool_failed":
            tool, error = event.data.get("tool"), event.data.get("error")
            where = event.data.get("where")
            yield CallProblem(
                event.at_ms,
                f"The tool {tool} failed at {clock(event.at_ms)}: {error}",
                f"Look at {where}."
                if where
                else "The line tool_failed of the log has the error.",
            )


def unfinished_tools(view: CallView) -> Iterator[CallProblem]:
    ending = {"hang_up", "transfer_call"}
    for tool in view.tools:
        open_ms = view.length_ms - tool.called_ms
        if tool.done_ms is None and open_ms > SLOW_MS and tool.name not in ending:
            yield CallProblem(
                tool.called_ms,
                f"The tool {tool.name}, called at {clock(tool.called_ms)}, gave no "
                "result",
            )


def lost_connections(view: CallView) -> Iterator[CallProblem]:
    names = {"stream": "The caller's stream", "model": "The connection to the model"}
    reasons = {it.at_ms: it.data.get("why") for it in view.events}
    for gap in view.gaps:
        why = reasons.get(gap.begin_ms)
        because = f" ({why})" if why else ""
        title = f"{names[gap.kind]} was lost at {clock(gap.begin_ms)}{because}"
        if gap.end_ms is None:
            yield CallProblem(
                gap.begin_ms, f"{title} and did not come back", severe=True
            )
        else:
            seconds = _s(gap.end_ms - gap.begin_ms)
            yield CallProblem(gap.begin_ms, f"{title} for {seconds}")


def guardrails(view: CallView) -> Iterator[CallProblem]:
    for event in view.events:
        if event.kind == "guardrail_tripped":
            names = event.data.get("guardrails")
            yield CallProblem(
                event.at_ms,
                f"A guardrail stopped the agent at {clock(event.at_ms)}: {names}",
            )


def model_errors(view: CallView) -> Iterator[CallProblem]:
    for event in view.events:
        if event.kind == "model_error" and not event.data.get("benign"):
            code = event.data.get("code") or event.data.get("type") or "error"
            yield CallProblem(
                event.at_ms,
                f"The model's server reported {code} at {clock(event.at_ms)}",
                event.text,
            )
        elif event.kind == "answer_failed":
            yield CallProblem(
                event.at_ms,
                f"A response of the model failed at {clock(event.at_ms)}: "
                f"{event.data.get('why')}",
            )


# --- the caller's side ---


def silent_line(view: CallView) -> Iterator[CallProblem]:
    for begin_ms, end_ms in view.silences:
        if end_ms - begin_ms >= HOLD_MS:
            yield CallProblem(
                begin_ms,
                f"The caller's phone sent no audio for {_s(end_ms - begin_ms)} from "
                f"{clock(begin_ms)}: the caller was on hold or muted",
            )


def floods_of_keys(view: CallView) -> Iterator[CallProblem]:
    at = [it.at_ms for it in view.events if it.kind == "key_pressed"]
    first = 0
    while first + MANY_KEYS <= len(at):
        last = first + MANY_KEYS - 1
        if at[last] - at[first] > 1000 * KEYS_SECONDS:
            first += 1
            continue
        while last + 1 < len(at) and at[last + 1] - at[last] < 1000 * KEYS_SECONDS:
            last += 1
        count, seconds = last - first + 1, _s(at[last] - at[first])
        yield CallProblem(
            at[first],
            f"{count} keys were pressed in {seconds} from {clock(at[first])}: each "
            "stops the agent",
            "Set `key_stops_agent: false` if a phone sends keys by itself.",
        )
        first = last + 1


def other_script(view: CallView) -> Iterator[CallProblem]:
    """The transcript of the caller is in another script than the agent's words."""
    spoken = Counter(
        script
        for part in view.parts
        if part.kind == "agent"
        for script in [_script("".join(word.text for word in part.words))]
        if script
    )
    if not spoken:
        return
    usual = spoken.most_common(1)[0][0]
    for turn in view.turns:
        script = _script(turn.text)
        if script and script not in spoken:
            yield CallProblem(
                turn.begin_ms,
                f"The transcript of the caller at {clock(turn.begin_ms)} is in "
                f"{script}, the agent speaks {usual}: the wrong language of "
                "transcription",
                "Set `language` in the transcription of the route's session.",
            )


def _script(text: str) -> str:
    """The script of most letters of a text; empty: too few letters."""
    names = Counter(
        unicodedata.name(char, "unknown").split(" ")[0].title()
        for char in text
        if char.isalpha()
    )
    if names.total() < LETTERS:
        return ""
    return names.most_common(1)[0][0]


# --- what the agent said ---


def repeated_sentences(view: CallView) -> Iterator[CallProblem]:
    said: dict[tuple[str, ...], list[float]] = {}
    for part in view.parts:
        words = tuple(word.text.strip().lower() for word in part.words if word.heard)
        if part.kind == "agent" and part.runs and len(words) >= SAME_WORDS:
            said.setdefault(words, []).append(part.runs[0].at_ms)
    for at_ms in map(sorted, said.values()):
        if len(at_ms) > 1:
            first, again = clock(at_ms[0]), clock(at_ms[1])
            title = f"The agent repeated at {again} what it had said at {first}"
            times = f", and {len(at_ms) - 2} times after that" if at_ms[2:] else ""
            yield CallProblem(at_ms[1], title + times)


# --- the end ---

APOLOGY = "the caller heard the apology"
ENDS = {
    # outcome -> what happened
    "bridge_silent": "The caller was silent, and the bridge ended the call",
    "bridge_longest": "The call reached the longest time of its route",
    "bridge_cost": "The call reached the cost limit of its route",
    "bridge_guardrail": f"Guardrails stopped the agent too often: {APOLOGY}",
    "bridge_failed": f"The bridge raised an exception: {APOLOGY}",
    "bridge_agent_failed": f"Your agent raised an exception: {APOLOGY}",
    "bridge_shutdown": f"This instance was stopped during the call: {APOLOGY}",
    "model_not_ready": f"The model had no session ready in time: {APOLOGY}",
    "model_refused": f"The model's server refused the session: {APOLOGY}",
    "model_closed": f"The model's server broke the protocol: {APOLOGY}",
    "model_failed": f"The model gave no answer, again and again: {APOLOGY}",
    "model_lost": f"The model was lost for too long: {APOLOGY}",
    "caller_connection_lost": "The caller's line broke and did not come back",
    "caller_flood": "The caller's stream sent more messages than a phone does",
    "caller_no_start": "The caller's stream did not begin",
}
"""Outcomes that somebody asks about; docs/operations.md has all."""


def ended_badly(view: CallView) -> Iterator[CallProblem]:
    outcome = f"{view.ended_by}_{view.ended_why}"
    if text := ENDS.get(outcome):
        last = _last(view.events)
        yield CallProblem(last, f"{text} ({outcome})", severe=APOLOGY in text)


def other_version(view: CallView) -> Iterator[CallProblem]:
    if not view.replays_as_recorded:
        yield CallProblem(
            0.0,
            "Another version of the bridge has written this trace, and decided "
            "otherwise",
            "Use the version that wrote the trace: the picture shows this one.",
        )


def _last(events: list[Event]) -> float:
    return events[-1].at_ms if events else 0.0


def _with_next(
    turns: list[CallerTurn],
) -> Iterator[tuple[CallerTurn, CallerTurn | None]]:
    yield from zip(turns, [*turns[1:], None], strict=False)


def tool_seconds(tool: Tool) -> float | None:
    """How long a tool took; None: it gave no result."""
    return None if tool.done_ms is None else (tool.done_ms - tool.called_ms) / 1000


RULES: tuple[Callable[[CallView], Iterator[CallProblem]], ...] = (
    ended_badly,
    lost_connections,
    slow_greeting,
    slow_answers,
    spoke_over_the_caller,
    failed_tools,
    unfinished_tools,
    answers_without_sound,
    model_errors,
    guardrails,
    false_interruptions,
    gaps_in_speech,
    silent_line,
    floods_of_keys,
    other_script,
    repeated_sentences,
    other_version,
)
