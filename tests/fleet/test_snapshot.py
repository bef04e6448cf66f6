"""A snapshot of a call: which words the caller had heard when the stream ended, and
what another version of the bridge can read."""

import math
from string import ascii_lowercase as letters
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.audio.g711 import BYTES_PER_MS
from bridge.core.history import HistoryItem, Playing
from bridge.core.rules import BACK, CUT_OFF
from bridge.core.word_positions import Pace
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import AnsweredBy, Plan
from bridge.fleet.snapshot import (
    AWAY_SECONDS,
    SLACK_MS,
    UNKNOWN_RESULT,
    CallSnapshot,
    moment,
)

AT = 1_800_000_000.0
WORD_MS = 100
WORD = WORD_MS * BYTES_PER_MS
"""Bytes of a spoken word."""

PACE = Pace(weight=36.0, seconds=60.0, lead=0.0)
"""Learned: two letters in 100 ms, and each word arrives with its audio."""


def playing(
    item: str,
    ms: int,
    *,
    heard_ms: int = 0,
    words: int | None = None,
    complete: bool = True,
    cut: bool = False,
) -> Playing:
    """`ms` of audio of an item, with a word of its own every 100 ms."""
    count = math.ceil(ms / WORD_MS) if words is None else words
    pieces = tuple((n * WORD, f"{item[-1]}{letters[n]} ") for n in range(count))
    received, heard = ms * BYTES_PER_MS, heard_ms * BYTES_PER_MS
    return Playing(item, pieces, received, heard, complete, cut, pace=PACE)


def after(snapshot: CallSnapshot, ms: float) -> dict[str, HistoryItem]:
    """The history if the stream ended `ms` after the snapshot was written."""
    items = snapshot.as_of(AT + (SLACK_MS + ms) / 1000).history
    assert len({item.id for item in items}) == len(items)
    return {item.id: item for item in items}


def words(item: HistoryItem) -> int:
    return len(item.text.split())


# --- how much was heard when the stream ended ---


def test_the_stream_ends_in_the_second_of_two_answers() -> None:
    """The caller heard the first answer to its end, and of the second the words for
    which there was time. The next instance gets them in that order, after the earlier
    items."""
    snapshot = CallSnapshot(
        history=(
            HistoryItem("u1", "user", "Hi."),
            HistoryItem("ix", "assistant"),
            HistoryItem("f1", "tool_call", call_id="c1", name="book", arguments="{}"),
        ),
        playing=(
            playing("ix", 600, heard_ms=200),
            playing("iy", 1000, complete=False),  # its item had not come yet
        ),
        taken_at=AT,
        stream_count=1,
    )

    items = after(snapshot, 400 + 300)

    assert list(items) == ["u1", "ix", "f1", "b_f1", "iy"]
    first, second = items["ix"], items["iy"]
    assert (first.text, first.cut) == ("xa xb xc xd xe xf ", False)
    assert second.text.split() == ["ya", "yb", "yc"] and second.cut
    assert second.generated.split()[:3] == ["ya", "yb", "yc"]
    assert items["b_f1"].text == UNKNOWN_RESULT and items["b_f1"].call_id == "c1"


def test_parts_of_one_item_are_one() -> None:
    """An answer with two parts of audio is one item with the words of both; it is cut
    if either part is."""
    parts = (playing("ix", 200), playing("ix", 400))
    snapshot = CallSnapshot(
        (HistoryItem("ix", "assistant"),), parts, AT, stream_count=1
    )

    item = after(snapshot, 400)["ix"]

    assert item.text.split() == ["xa", "xb", "xa", "xb"] and item.cut
    assert not after(snapshot, 600)["ix"].cut


@pytest.mark.parametrize("seconds", [-5.0, 0.0, SLACK_MS / 1000])
def test_no_time_has_passed(seconds: float) -> None:
    """A clock that is behind gives the caller no words that were not heard: a word that
    is said twice is better than a missing one."""
    snapshot = CallSnapshot(
        playing=(playing("ix", 900, heard_ms=200),), taken_at=AT, stream_count=1
    )

    [item] = snapshot.as_of(AT + seconds).history

    assert item.text.split() == ["xa", "xb"] and item.cut


@pytest.mark.parametrize(
    ("away", "seconds"), [(20.0, 120.0), (-5.0, 100.0), (10**9, 100.0 + AWAY_SECONDS)]
)
def test_the_time_between_two_streams_is_a_part_of_the_call(
    away: float, seconds: float
) -> None:
    """A caller who is transferred again and again does not get a longer call by it."""
    snapshot = CallSnapshot(taken_at=AT, stream_count=1, call_seconds=100.0)

    assert snapshot.as_of(AT + away).call_seconds == pytest.approx(seconds)


def test_an_answer_that_was_cut() -> None:
    """However late the stream ended, the caller heard no more of an answer that was
    cut; the next answer gets all the time that passed."""
    cut = playing("ix", 2000, heard_ms=300, cut=True)
    snapshot = CallSnapshot(
        playing=(cut, playing("iy", 500)), taken_at=AT, stream_count=1
    )

    items = after(snapshot, 500)

    assert words(items["ix"]) == 3 and items["ix"].cut
    assert words(items["iy"]) == 5 and not items["iy"].cut
    assert words(after(snapshot, 60_000)["ix"]) == 3


def test_an_unfinished_answer() -> None:
    """Words that came before their audio were not spoken; the agent continues the
    answer."""
    begun = playing("ix", 300, words=9, complete=False)
    snapshot = CallSnapshot(playing=(begun,), taken_at=AT, stream_count=1)
    whole = CallSnapshot(playing=(playing("ix", 300),), taken_at=AT, stream_count=1)

    resumed = snapshot.as_of(AT + 60)

    [item] = resumed.history
    assert item.text == item.generated == "xa xb xc"
    assert item.cut and resumed.why == CUT_OFF
    assert whole.as_of(AT + 60).why == BACK


def test_tools_and_their_results() -> None:
    """A tool call with a result keeps it. The result of a tool that was running is not
    known. A tool call that the model had not completed gets no result."""
    snapshot = CallSnapshot(
        history=(
            HistoryItem("f1", "tool_call", call_id="c1", name="a", arguments="{}"),
            HistoryItem("f2", "tool_call", call_id="c2", name="b", arguments="{}"),
            HistoryItem("f3", "tool_call", call_id="c3", name="c"),
            HistoryItem("o1", "tool_output", "42", call_id="c1"),
        ),
        taken_at=AT,
        stream_count=1,
    )

    items = after(snapshot, 1000)

    results = {it.call_id: it.text for it in items.values() if it.kind == "tool_output"}
    assert results == {"c1": "42", "c2": UNKNOWN_RESULT}
    assert list(items) == ["f1", "f2", "b_f2", "f3", "o1"]


@st.composite
def conversations(draw: st.DrawFn) -> CallSnapshot:
    """Answers that are being played: partly heard or not, complete or not, cut or not,
    with or without an item."""
    parts = []
    for name in letters[: draw(st.integers(1, 5))]:
        ms = draw(st.integers(1, 1500))
        complete = draw(st.booleans())
        ahead = 0 if complete else draw(st.integers(0, 5))
        part = playing(
            f"i{name}",
            ms,
            heard_ms=draw(st.integers(0, ms)),
            words=math.ceil(ms / WORD_MS) + ahead,
            complete=complete,
            cut=draw(st.booleans()),
        )
        parts.append(part)
    known = [HistoryItem(part.id, "assistant") for part in parts if draw(st.booleans())]
    history = (HistoryItem("u1", "user", "Hi."), *known)
    return CallSnapshot(history, tuple(parts), AT, stream_count=1)


@given(conversations(), st.integers(0, 6000), st.integers(0, 6000))
def test_no_more_words_than_time_and_audio(
    snapshot: CallSnapshot, ms: int, more_ms: int
) -> None:
    """No word counts as heard that was not spoken, or for which there was no time; the
    place of a word is estimated, to a word."""
    now, then, later = after(snapshot, 0), after(snapshot, ms), after(snapshot, ms + 1)
    known = [item.id for item in snapshot.history]
    new = [part.id for part in snapshot.playing if part.id not in known]
    gained = 0
    open_part = False  # an earlier part was not heard to its end
    for part in snapshot.playing:
        first, item = now[part.id], then[part.id]
        spoken = "".join(text for _, text in part.words)
        assert spoken.startswith(item.text) and item.text.startswith(first.text)
        assert words(item) <= math.ceil(part.received / WORD) + 1
        assert words(later[part.id]) >= words(item), "a later end loses a word"
        if part.cut:
            assert item.text == first.text
        else:
            assert not (open_part and item.text != first.text), "out of order"
            # The first word had begun before, and the last one may be short.
            gained += max(words(item) - words(first) - 2, 0)
            open_part = open_part or (item.cut and part.complete)
        assert item.cut or (part.complete and item.text == spoken)
    assert gained * WORD_MS <= ms
    assert list(then) == [*known, *new]
    assert after(snapshot, ms + more_ms).keys() == then.keys()
    assert snapshot.as_of(AT).playing == ()


# --- what cannot be read ---


@pytest.mark.parametrize(
    "kept",
    [
        b'{"history":[{"id":1,"kind":"user"}],"machine":1}',
        b'{"history":[{"id":"1","kind":"a_new_kind"}],"machine":"a_new_way"}',
        b'{"format":2,"stream_count":"two","greeting":2}',
        b'{"format":2,"stream_count":1',
        b"[]",
        b"\x00",
    ],
)
def test_unreadable_snapshots_and_plans(kept: bytes) -> None:
    """The call starts without a history, and a line in the log says why, without any of
    the stored text."""
    with capture_logs() as logs:
        assert CallSnapshot.read(kept) == CallSnapshot()
        assert Plan.read(kept) == Plan()

    assert [it["event"] for it in logs] == ["stored_value_unreadable"] * 2
    assert [it["kind"] for it in logs] == ["CallSnapshot", "Plan"]
    assert all(it.keys() == {"event", "log_level", "kind", "error"} for it in logs)


async def test_unreadable_plain_values() -> None:
    """An unreadable value counts as absent."""
    registry = MemoryRegistry()
    await registry.put("answered_by:CA1", b"an_alien", 60.0)

    assert await AnsweredBy.of(registry, "CA1") is None
    assert moment(b"1700000000.5") == 1_700_000_000.5
    for text in (b"soon", b"nan", b"-inf", b"\xff", None):
        assert abs(moment(text) - time()) < 5


def test_a_call_without_a_snapshot() -> None:
    """A new call is not logged as an error."""
    with capture_logs() as logs:
        assert CallSnapshot.read(None) == CallSnapshot() and Plan.read(b"") == Plan()

    assert logs == []


def test_unknown_fields_are_ignored() -> None:
    """During a rolling deploy an instance ignores fields that it does not know."""
    snapshot = CallSnapshot(
        (HistoryItem("u1", "user", "Hi."),), stream_count=2, notes={"n": 1}
    )
    newer = snapshot.encoded(FORMAT).removesuffix(b"}") + b',"of_tomorrow":[1]}'

    assert (
        CallSnapshot.read(newer)
        == CallSnapshot.read(snapshot.encoded(FORMAT))
        == snapshot
    )
