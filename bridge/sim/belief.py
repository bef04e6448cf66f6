"""Belief error: what the model believes was heard, compared with what was heard. Pure.

Judges one call by its played audio and by the model's items, and many calls by the
limits that a bridge must keep. What the bridge itself reports does not count.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bridge.sim.realtime.items import ModelItem, ResponseRecord
from bridge.sim.ruler import BLOCK, Reading, read_ruler

P95_LIMIT = 20.0  # ms: one frame of Twilio
WORST_LIMIT = 40.0  # ms: two frames
STOPS_P95_LIMIT = 25.0  # on networks that lose messages
STOPS_WORST_LIMIT = 100.0


@dataclass(frozen=True, slots=True)
class Belief:
    """One item: how much was generated, heard, and believed heard by the model."""

    number: int  # the item's ruler number within the call
    sent_ms: float
    heard_ms: float
    believed_ms: float
    corrected: bool  # the item was truncated or deleted

    @property
    def error_ms(self) -> float:
        """Positive: the model believes that more was heard than was."""
        return self.believed_ms - self.heard_ms

    @property
    def cut(self) -> bool:
        """True if the item was heard in part: only then a position must be known."""
        return 0 < self.heard_ms < self.sent_ms

    @property
    def uncorrected(self) -> bool:
        """True if the item was not heard in full and the model was not told."""
        return self.heard_ms < self.sent_ms and not self.corrected


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of one call."""

    scene: str = ""
    network: str = ""
    call: int = 0
    beliefs: tuple[Belief, ...] = ()
    interrupted: int = 0  # answers that were cut as planned
    while_generating: int = 0  # interrupted answers that the model had not finished
    errors: tuple[str, ...] = ()  # texts of the model's error events
    lost_ms: float = 0.0
    repeated_ms: float = 0.0
    stray_ms: float = 0.0  # audio that belongs to no item
    in_order: bool = True
    faults: tuple[str, ...] = ()  # deviations from the planned call

    @property
    def name(self) -> str:
        return f"{self.scene} {self.network} call {self.call}"


@dataclass(frozen=True, slots=True)
class Row:
    """Totals of several calls. Errors in ms, absolute except for `bias`."""

    scene: str
    network: str
    calls: int
    items: int
    cut: int  # items heard in part; p50, p95, `worst_cut` and `bias` are of these items
    unheard: int
    interrupted: int
    while_generating: int
    p50: float
    p95: float
    worst_cut: float
    worst: float  # of all items
    bias: float  # signed mean
    uncorrected: int
    model_errors: int
    lost_ms: float
    repeated_ms: float
    stray_ms: float
    out_of_order: int  # number of calls


@dataclass(frozen=True, slots=True, kw_only=True)
class BeliefReport:
    """The result of a measurement; `broken` is empty if the bridge keeps all limits."""

    rows: tuple[Row, ...]
    total: Row
    broken: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    frame_playout: bool = False
    seconds: float = 0.0
    late_ms: float = 0.0  # longest delay of the event loop
    p95_limit: float = P95_LIMIT
    worst_limit: float = WORST_LIMIT

    def worst(self, count: int) -> list[tuple[Verdict, Belief]]:
        """The items with the largest belief errors."""
        every = [(v, belief) for v in self.verdicts for belief in v.beliefs]
        every.sort(key=lambda each: -abs(each[1].error_ms))
        return every[:count]


def report(
    verdicts: Sequence[Verdict],
    *,
    frame_playout: bool = False,
    seconds: float = 0.0,
    late_ms: float = 0.0,
    stops: bool = False,
) -> BeliefReport:
    """The calls by scene and network and in total, checked against the limits.

    `stops`: the networks lose messages.
    """
    p95_limit = STOPS_P95_LIMIT if stops else P95_LIMIT
    worst_limit = STOPS_WORST_LIMIT if stops else WORST_LIMIT
    cells: defaultdict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        cells[verdict.scene, verdict.network].append(verdict)
    total = _row("all", "", verdicts)
    return BeliefReport(
        rows=tuple(_row(*names, cell) for names, cell in cells.items()),
        total=total,
        broken=(*_broken(total, p95_limit, worst_limit), *_broken_calls(verdicts)),
        verdicts=tuple(verdicts),
        frame_playout=frame_playout,
        seconds=seconds,
        late_ms=late_ms,
        p95_limit=p95_limit,
        worst_limit=worst_limit,
    )


# --- one call -----------------------------------------------------------------------


def judge(
    heard: bytes,
    responses: Sequence[ResponseRecord],
    interruptions: int,
    errors: Sequence[str] = (),
) -> Verdict:
    """Judge a call by the audio that the caller heard and by the model's responses.

    The plan was to cut each of the `interruptions` + 1 answers except the last.
    """
    reading = read_ruler(heard)
    heard_ms = reading.heard_ms
    answers = [list(_beliefs(response.items, heard_ms)) for response in responses]
    beliefs = tuple(belief for answer in answers for belief in answer)
    # The caller's speech cancels a response even when all audio so far had been heard:
    # the caller spoke into a pause.
    was_cut = [
        response.status == "cancelled" or any(b.heard_ms < b.sent_ms for b in answer)
        for response, answer in zip(responses, answers, strict=True)
    ]
    generating = [response.status == "cancelled" for response in responses]
    strange_ms = sum(heard_ms.values()) - sum(belief.heard_ms for belief in beliefs)
    return Verdict(
        beliefs=beliefs,
        interrupted=sum(was_cut[:interruptions]),
        while_generating=sum(generating[:interruptions]),
        errors=tuple(errors),
        lost_ms=_lost_bytes(reading) / BLOCK,
        repeated_ms=reading.repeated_bytes / BLOCK,
        stray_ms=reading.stray / BLOCK + strange_ms,
        in_order=reading.in_order,
        faults=tuple(_turn_faults(was_cut, interruptions)),
    )


def _beliefs(
    items: Sequence[ModelItem], heard_ms: dict[int, float]
) -> Iterator[Belief]:
    for item in items:
        if item.ruler_number is not None and item.sent_bytes:
            yield Belief(
                number=item.ruler_number,
                sent_ms=item.sent_ms,
                heard_ms=heard_ms.get(item.ruler_number, 0.0),
                believed_ms=item.believed_ms,
                corrected=item.deleted or item.truncated_ms is not None,
            )


def _turn_faults(was_cut: Sequence[bool], interruptions: int) -> Iterator[str]:
    """Deviations from the planned interruptions, without which nothing is measured."""
    if len(was_cut) != interruptions + 1:
        yield f"{len(was_cut)} answers instead of {interruptions + 1}"
    missed = [n for n, cut in enumerate(was_cut[:interruptions], 1) if not cut]
    if missed:
        yield f"not interrupted: answer {', '.join(map(str, missed))}"
    if any(was_cut[interruptions:]):
        yield "the last answer was not heard to its end"


def _lost_bytes(reading: Reading) -> int:
    """Gaps inside items, and the missing beginnings of items."""
    begins: dict[int, int] = {}
    for span in reading.spans:
        begins[span.item] = min(span.start, begins.get(span.item, span.start))
    return reading.lost_bytes + sum(begins.values())


# --- many calls ---------------------------------------------------------------------


def _row(scene: str, network: str, verdicts: Sequence[Verdict]) -> Row:
    beliefs = [belief for verdict in verdicts for belief in verdict.beliefs]
    cut = [belief for belief in beliefs if belief.cut]
    errors = sorted(abs(belief.error_ms) for belief in cut)
    return Row(
        scene=scene,
        network=network,
        calls=len(verdicts),
        items=len(beliefs),
        cut=len(cut),
        unheard=sum(not belief.heard_ms for belief in beliefs),
        interrupted=sum(verdict.interrupted for verdict in verdicts),
        while_generating=sum(verdict.while_generating for verdict in verdicts),
        p50=percentile(errors, 50),
        p95=percentile(errors, 95),
        worst_cut=percentile(errors, 100),
        worst=max((abs(belief.error_ms) for belief in beliefs), default=0.0),
        bias=sum(belief.error_ms for belief in cut) / max(1, len(cut)),
        uncorrected=sum(belief.uncorrected for belief in beliefs),
        model_errors=sum(len(verdict.errors) for verdict in verdicts),
        lost_ms=sum(verdict.lost_ms for verdict in verdicts),
        repeated_ms=sum(verdict.repeated_ms for verdict in verdicts),
        stray_ms=sum(verdict.stray_ms for verdict in verdicts),
        out_of_order=sum(not verdict.in_order for verdict in verdicts),
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed; 0 if there are
    none."""
    if not ascending:
        return 0.0
    rank = math.ceil(len(ascending) * percent / 100)
    return ascending[max(0, rank - 1)]


def _broken(total: Row, p95_limit: float, worst_limit: float) -> Iterator[str]:
    """The broken ones of the limits over all calls."""
    if not total.cut:
        yield "no item was cut: nothing was measured"
    if total.p95 > p95_limit:
        yield f"p95 of the cut items is {total.p95:.1f} ms, above {p95_limit:g}"
    if total.worst > worst_limit:
        yield f"the worst item is {total.worst:.1f} ms off, above {worst_limit:g}"


def _broken_calls(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Violations of what must hold in each single call."""
    for verdict in verdicts:
        for text in (*_call_bounds(verdict), *verdict.faults):
            yield f"{verdict.name}: {text}"


def _call_bounds(verdict: Verdict) -> Iterator[str]:
    uncorrected = [
        str(belief.number) for belief in verdict.beliefs if belief.uncorrected
    ]
    if uncorrected:
        yield f"the model was not told what was heard of item {', '.join(uncorrected)}"
    for error in verdict.errors:
        yield f"the model sent an error: {error}"
    for what, ms in (
        ("lost", verdict.lost_ms),
        ("repeated", verdict.repeated_ms),
        ("outside all items", verdict.stray_ms),
    ):
        if ms:
            yield f"{ms:.1f} ms of audio {what}"
    if not verdict.in_order:
        yield "audio out of order"
