"""Delays of a server between both fakes, from the records of a call and its session.

Each delay comes with the monotonic second at which it began. Positions in the audio
pair what was sent with what arrived, so a server may join, cut or drop pieces.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge.sim.realtime.session import ModelSession
from bridge.sim.ruler import BLOCK, read_ruler, ruler
from bridge.sim.twilio.playout import FRAME_BYTES
from bridge.sim.twilio.record import CallRecord
from bridge.sim.twilio.stream import FRAME_SECONDS

WARM_UP_FRAMES = 50  # the frames of the first second may wait for the model
CLEAR_SECONDS = 2.0  # a clear that comes later has another reason

SHOWN = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0)
"""Percentiles of a plot."""

Timed = tuple[float, float]
"""Monotonic second, delay in ms."""


@dataclass(frozen=True, slots=True)
class Delays:
    """The delays of one direction, in ms."""

    count: int
    p50: float
    p99: float
    most: float


def delays(values: Sequence[float]) -> Delays:
    ascending = sorted(values)
    if not ascending:
        return Delays(0, 0.0, 0.0, 0.0)
    last = len(ascending) - 1
    p99 = ascending[min(last, int(0.99 * len(ascending)))]
    return Delays(len(ascending), ascending[len(ascending) // 2], p99, ascending[-1])


def arrivals(record: CallRecord) -> dict[int, list[tuple[int, float]]]:
    """Item number -> (position of a media message's last byte, arrival), in order."""
    items: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for (at, size), head in zip(record.media_in, record.media_heads, strict=True):
        spans = read_ruler(head).spans
        if spans:
            items[spans[0].item].append((spans[0].start + size, at))
    return items


def call_number(session: ModelSession) -> int | None:
    """The ruler number in the caller's audio, which is the number of the call."""
    spans = read_ruler(bytes(session.caller_audio[: BLOCK * 4000])).spans
    return spans[0].item if spans else None


def up_delays(record: CallRecord, session: ModelSession, number: int) -> list[Timed]:
    """From the sending of each frame to the append with its last byte.

    Without the first second. The caller's first speech shows by how many bytes the
    session's audio is shifted, as when a server drops or adds audio before it.
    """
    if not record.spoken or not session.append_at:
        return []
    first = record.spoken[0]
    at_model = session.caller_audio.find(ruler(number, 10))
    shift = at_model - round(first.start * 1000) * BLOCK
    sent = np.array(record.frame_sent_at)
    ends = (np.arange(len(sent)) + 1) * FRAME_BYTES + shift
    index = np.searchsorted(np.array(session.append_ends), ends)
    counted = (np.arange(len(sent)) >= WARM_UP_FRAMES) & (
        index < len(session.append_at)
    )
    arrived = np.array(session.append_at)[index[counted]]
    sent = sent[counted]
    return list(zip(sent.tolist(), (1000 * (arrived - sent)).tolist(), strict=True))


def down_delays(record: CallRecord, session: ModelSession) -> Iterator[Timed]:
    """From the sending of each delta to the arrival of its last audio at the phone.

    A delta that never arrives, because its answer was cut, has no delay.
    """
    arrived = arrivals(record)
    sent_bytes: dict[str, int] = defaultdict(int)
    reached: dict[str, int] = defaultdict(int)
    for sent_at, item_id, audio in session.sent_deltas:
        sent_bytes[item_id] += len(audio)
        number = session.items[item_id].ruler_number
        pieces = arrived.get(-1 if number is None else number, [])
        at = reached[item_id]
        while at < len(pieces) and pieces[at][0] < sent_bytes[item_id]:
            at += 1
        reached[item_id] = at
        if at < len(pieces):
            yield sent_at, 1000 * (pieces[at][1] - sent_at)


def clear_delays(record: CallRecord, session: ModelSession) -> Iterator[Timed]:
    """From speech_started at the model to the clear at the phone."""
    clears = np.array([clear.at for clear in record.clears])
    starts = session.speech_started_at
    for start, following in zip(starts, [*starts[1:], np.inf], strict=True):
        index = int(np.searchsorted(clears, start))
        if index < len(clears):
            at = float(clears[index])
            if at < min(following, start + CLEAR_SECONDS):
                yield start, 1000 * (at - start)


def frames_late(record: CallRecord) -> list[Timed]:
    """How late the fake phone sent each frame."""
    if not record.streams:
        return []
    sent = np.array(record.frame_sent_at)
    due = record.streams[0].began_at + (np.arange(len(sent)) + 1) * FRAME_SECONDS
    late = np.maximum(0.0, 1000 * (sent - due))
    return list(zip(sent.tolist(), late.tolist(), strict=True))


def percentiles(values: Sequence[Timed]) -> list[tuple[float, float]]:
    """(percent, ms) for a plot."""
    ascending = sorted(ms for _, ms in values)
    if not ascending:
        return []
    last = len(ascending) - 1
    return [(it, ascending[min(last, int(it / 100 * len(ascending)))]) for it in SHOWN]


def p99_by_second(values: Sequence[Timed], begin: float) -> list[float | None]:
    """The p99 of each second after `begin`; None for a second without a value."""
    if not values:
        return []
    table: NDArray[np.float64] = np.array(values)
    seconds = (table[:, 0] - begin).astype(int)
    line: list[float | None] = [None] * (int(seconds.max()) + 1)
    for second in np.unique(seconds[seconds >= 0]):
        line[second] = delays(table[seconds == second, 1].tolist()).p99
    return line
