"""Formats: what format 0 has stored is read, what this version stores is read by format
0's own code, and what a newer version has stored is not misread."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.app.outbound import CallStatus, OutboundOrder
from bridge.core.history import HistoryItem, Playing
from bridge.fleet import InstanceLoad, NextStep, Then, formats
from bridge.fleet.formats import FORMAT, OLDEST, common, encode, format_of
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import CallSnapshot, Plan, SavedMessage
from bridge.telemetry.trace import TRACE_FORMAT, TraceFormatError, read, replay
from tests.fleet.earlier_version import FORMAT_0, OtherVersion, running, unpack
from tests.telemetry.test_trace import a_whole_call

RECORDED = Path(__file__).parent / "format0"

SNAPSHOT = CallSnapshot(
    history=(
        HistoryItem("u1", "user", "A table for two, please.", at=1.5),
        HistoryItem("f1", "tool_call", call_id="c1", name="book", arguments='{"n":2}'),
        HistoryItem("o1", "tool_output", "booked: Grüß Gott", call_id="c1"),
        HistoryItem("s1", "system", "The caller is a regular."),
        HistoryItem("a1", "assistant", "It is", "It is booked.", True, 4.25),
    ),
    playing=(
        Playing("a2", ((0, "Any"), (1600, "thing else?")), 4000, 800, False),
        Playing("a3", ((0, "Bye."),), 800, 0, True, True),
    ),
    at=1_800_000_000.125,
    streams=2,
    handed_over=True,
    quiet=True,
    agent="Booking",
    parameters={"From": "+14155550100", "To": "+14155550101"},
    seconds=61.5,
    cost=0.25,
    input_tokens=1200,
    output_tokens=340,
    transfers=1,
    messages=(SavedMessage("Call me back.", "Ada", "+14155550100"),),
    notes={"table": 7, "asked": ["window", None, 1.5], "deep": {"er": True}},
    word="Nobody answered.",
)
PLAN = Plan("Hello.", "message", "Your table is booked.")
STEP = NextStep(
    Then.TRANSFER, "+14155550103", "+14155550101", 30, "de-DE", "Einen Moment."
)
STATUS = CallStatus("CA1", "in-progress", 2, 31)
ORDER = OutboundOrder(
    to="+14155550102",
    from_number="+14155550101",
    id="0123456789abcdef",
    route="bookings",
    parameters={"table": "7"},
    greeting="Hello.",
    machine="message",
    message="Your table is booked.",
    ring_seconds=25,
    longest_seconds=600,
)

STORED = [
    ("snapshot.json", SNAPSHOT),
    ("plan.json", PLAN),
    ("next_step.json", STEP),
    ("status.json", STATUS),
    ("order.json", ORDER),
]
"""What tests/fleet/format0/record.py has written with format 0's code, in a file each,
and the same value in this version."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of format 0."""
    return unpack(tmp_path_factory.mktemp("format0") / "source")


@pytest.fixture
async def format0(source: Path) -> AsyncIterator[OtherVersion]:
    async with running(source) as it:
        yield it


# --- what format 0 has stored ---


@pytest.mark.parametrize(("file", "value"), STORED)
def test_what_format_0_has_stored_is_read(file: str, value: Any) -> None:
    """A call that an instance of the version before has left goes on here with all that
    it had: no field is lost, in silence or otherwise."""
    stored = (RECORDED / file).read_bytes()

    with capture_logs() as logs:
        found = formats.read(stored, type(value))

    assert found == value and logs == []
    assert format_of(stored) == 0


@pytest.mark.parametrize(("file", "value"), STORED)
def test_what_is_written_in_format_0_is_format_0(file: str, value: Any) -> None:
    """Byte for byte: an older instance cannot tell it from its own."""
    assert encode(value, 0) == (RECORDED / file).read_bytes()


LEAST = [
    CallSnapshot(),
    Plan(),
    NextStep(Then.SORRY),
    CallStatus("", "queued", 0),
    OutboundOrder(to="+14155550109", from_number="+14155550108"),
]


def test_the_recorded_values_use_every_field() -> None:
    """A field that stands on its default could be lost without a test that fails."""
    for (_, value), least in zip(STORED, LEAST, strict=True):
        ours, others = msgspec.to_builtins(value), msgspec.to_builtins(least)
        assert not {name for name in ours if ours[name] == others[name]}


def test_a_trace_of_format_0_is_read_and_not_replayed() -> None:
    """Its lines can be looked at. It does not say which of many versions has written
    it, so a replay that differs would mean nothing: replay refuses it."""
    path = RECORDED / "trace.jsonl"
    text = path.read_text("utf-8")

    assert [json.loads(line) for line in text.strip().split("\n")] == list(read(path))
    with pytest.raises(TraceFormatError) as error:
        next(replay(path))
    assert str(error.value) == (
        "The trace has no format: it is empty, or an older version has written it. "
        "This version of the bridge replays format 1."
    )


# --- what format 0's own code makes of ours ---

READ = """
import msgspec
from bridge.fleet import NextStep
from bridge.fleet.plan import Earlier, Plan
from bridge.fleet.redis import _capacity
from bridge.outbound import CallStatus, OutboundOrder, _known

stored = stored.encode()
found = {
    "CallSnapshot": Earlier.read,
    "Plan": Plan.read,
    "NextStep": lambda it: msgspec.json.decode(it, type=NextStep),
    "CallStatus": lambda it: _known(it, CallStatus),
    "OutboundOrder": lambda it: _known(it, OutboundOrder),
    "InstanceLoad": _capacity,
}[kind](stored)
result = msgspec.to_builtins(found)
"""


@pytest.mark.parametrize("format", range(OLDEST, FORMAT + 1))
async def test_what_this_version_writes_is_read_by_format_0(
    format0: OtherVersion, format: int
) -> None:
    """After a rollback the older version goes on with every call that this one had."""
    for value in (SNAPSHOT, PLAN, STEP, STATUS, InstanceLoad(20, 3, True)):
        stored, kind = encode(value, format).decode(), type(value).__name__
        found = await format0.run(READ, stored=stored, kind=kind)
        assert found == json.loads(msgspec.json.encode(value)), kind


async def test_an_order_is_read_by_format_0(format0: OtherVersion) -> None:
    """Format 0 refuses an order with a field that it does not know, and would hang up
    on the callee. So an order has no such field."""
    stored = encode(ORDER, 0).decode()
    found = await format0.run(READ, stored=stored, kind="OutboundOrder")
    assert found == json.loads(msgspec.json.encode(ORDER))

    refused = encode(ORDER, 1).decode()
    assert await format0.run(READ, stored=refused, kind="OutboundOrder") is None


def test_a_later_version_may_add_fields() -> None:
    """To everything that is stored, an order included: this version reads it."""
    for _, value in STORED:
        later = encode(value, FORMAT).removesuffix(b"}") + b',"of_tomorrow":[1]}'
        assert formats.read(later, type(value)) == value


REPLAY = """
from pathlib import Path
from bridge.watch.trace import replay
pairs = list(replay(Path(path)))
result = [len(pairs), sum(recorded != now for recorded, now in pairs)]
"""


async def test_a_trace_of_this_version_is_replayed_by_format_0(
    format0: OtherVersion, tmp_path: Path
) -> None:
    """A call can still be looked into after a rollback."""
    call = a_whole_call(tmp_path)
    assert call.path is not None

    count, different = await format0.run(REPLAY, path=str(call.path))

    assert count == len(list(replay(call.path))) > 60
    assert different == 0


# --- what a newer version has stored ---


@pytest.mark.parametrize(
    "kind", [CallSnapshot, Plan, NextStep, CallStatus, OutboundOrder]
)
def test_a_newer_format_is_not_misread(kind: type[Any]) -> None:
    """Even where all fields seem to fit: their meaning may have changed. The log says
    what was found and what would have been read."""
    [value] = [value for _, value in STORED if type(value) is kind]
    with capture_logs() as logs:
        assert formats.read(encode(value, FORMAT + 1), kind) is None

    assert logs == [
        {
            "event": "format_unreadable",
            "log_level": "error",
            "kind": kind.__name__,
            "format": FORMAT + 1,
            "oldest": OLDEST,
            "newest": FORMAT,
        }
    ]


def test_a_call_of_a_newer_format_goes_on_without_its_history() -> None:
    """The caller is spoken to, if only as a new one."""
    with capture_logs() as logs:
        assert CallSnapshot.read(encode(SNAPSHOT, 7)) == CallSnapshot()
        assert Plan.read(encode(PLAN, 7)) == Plan()

    assert [it["event"] for it in logs] == ["format_unreadable"] * 2


@pytest.mark.parametrize(
    "stored", [b'{"format":-1}', b'{"format":"1"}', b'{"format":1.5}', b"[]", b"\x00"]
)
def test_what_has_no_format_at_all(stored: bytes) -> None:
    """It is nothing of ours, and is nothing."""
    with capture_logs() as logs:
        assert formats.read(stored, Plan) is None

    assert [it["event"] for it in logs] == ["stored_value_unreadable"]


@pytest.mark.parametrize("found", [TRACE_FORMAT + 1, "x", None])
def test_a_trace_of_another_format_is_refused(tmp_path: Path, found: object) -> None:
    """Whoever replays it hears which version they need, not that something differs."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    first, rest = call.path.read_text("utf-8").split("\n", 1)
    line = json.loads(first) | {"format": found}
    call.path.write_text(f"{json.dumps(line)}\n{rest}", "utf-8")

    with pytest.raises(TraceFormatError) as error:
        list(replay(call.path))
    has = "has no format" if found is None else f"has format {found}."
    assert has in str(error.value)
    assert f"replays format {TRACE_FORMAT}." in str(error.value)


# --- which format is written ---


@pytest.mark.parametrize(
    ("others", "written"),
    [
        ([], FORMAT),
        ([FORMAT], FORMAT),
        ([FORMAT, FORMAT - 1], FORMAT - 1),
        ([FORMAT + 1], FORMAT),
        ([FORMAT + 2, FORMAT - 1], FORMAT - 1),
        ([OLDEST - 1], OLDEST),
    ],
)
def test_all_live_instances_can_read_what_is_written(
    others: list[int], written: int
) -> None:
    """But nothing is written that this version does not know how to write."""
    assert common(others) == written


def test_an_instance_that_is_alone_writes_the_newest() -> None:
    """Nobody else reads it."""
    assert MemoryRegistry().format() == FORMAT
    assert format_of(encode(PLAN, FORMAT)) == FORMAT


# --- the other version's code ---


def test_a_tree_without_history_fails_and_says_why(tmp_path: Path) -> None:
    """Whether two versions understand each other is never left untested in silence."""
    with pytest.raises(pytest.fail.Exception) as error:
        unpack(tmp_path / "source", "0" * 40)

    assert f"Commit {'0' * 40} cannot be read from the git history" in str(error.value)
    assert len(FORMAT_0) == 40, "a full hash: a short one may name two commits one day"
