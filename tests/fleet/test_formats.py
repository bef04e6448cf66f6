"""Formats: this version reads the values of format 1, the code of format 1 reads the
values of this version, and values of a newer version are not misread."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

import twiml
from bridge.app.outbound import CallStatus, OutboundOrder
from bridge.core.history import HistoryItem, Playing
from bridge.fleet import InstanceLoad, NextStep, Then, formats
from bridge.fleet.formats import (
    FORMAT,
    OLDEST,
    RENAMED_FIELDS,
    announced,
    announcement,
    common,
    encode,
    format_of,
)
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import Plan
from bridge.fleet.snapshot import CallSnapshot, SavedMessage
from bridge.telemetry.trace import TRACE_FORMAT, TraceFormatError, read, replay
from tests.fleet.earlier_version import (
    FORMAT_1,
    OtherVersion,
    running,
    shared_source,
    unpack,
)
from tests.support.traces import text_of
from tests.telemetry.test_trace import a_whole_call

RECORDED = Path(__file__).parent / "format1"

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
    taken_at=1_800_000_000.125,
    stream_count=2,
    handed_over=True,
    unnoticed=True,
    agent_name="Booking",
    parameters={"From": "+14155550100", "To": "+14155550101"},
    call_seconds=61.5,
    cost=0.25,
    input_tokens=1200,
    output_tokens=340,
    transfer_count=1,
    messages=(SavedMessage("Call me back.", "Ada", "+14155550100"),),
    notes={"table": 7, "asked": ["window", None, 1.5], "deep": {"er": True}},
    instruction="Nobody answered.",
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
"""The files that tests/fleet/format1/record.py has written with the code of format 1,
and the same values in this version."""


def recorded_fields(kind: type[Any]) -> set[str]:
    """The fields that format 1 knows."""
    [file] = [file for file, value in STORED if type(value) is kind]
    return set(json.loads((RECORDED / file).read_bytes()))


def known(value: Any, stored: bytes) -> bytes:
    """`value` as stored, without the fields that format 1 does not know: it ignores
    them. Each has a default, which holds once format 1 has written the value again."""
    recorded = {"format"} | recorded_fields(type(value))
    fields = msgspec.json.decode(stored, type=dict[str, msgspec.Raw])
    kept = {name: field for name, field in fields.items() if name in recorded}
    assert formats.read(msgspec.json.encode(kept), type(value)) is not None
    return msgspec.json.encode(kept)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of format 1."""
    return shared_source(tmp_path_factory)


@pytest.fixture
async def format1(source: Path) -> AsyncIterator[OtherVersion]:
    async with running(source) as it:
        yield it


# --- values of format 1 ---


@pytest.mark.parametrize(("file", "value"), STORED)
def test_values_of_format_1_are_read(file: str, value: Any) -> None:
    """A call that an instance of the version before has left continues here with all
    its data: no field is lost."""
    stored = (RECORDED / file).read_bytes()

    with capture_logs() as logs:
        found = formats.read(stored, type(value))

    assert found == value and logs == []
    assert format_of(stored) == 1


@pytest.mark.parametrize(("file", "value"), STORED)
def test_values_written_in_format_1_are_the_same_bytes(file: str, value: Any) -> None:
    """An older instance cannot tell them from its own, but for later fields, which it
    ignores."""
    recorded = (RECORDED / file).read_bytes()
    if type(value) is OutboundOrder:  # format 1 writes orders without the number
        recorded = b'{"format":1,' + recorded.removeprefix(b"{")
    assert known(value, encode(value, 1)) == recorded
    rewritten = formats.rewritten(encode(value, FORMAT), type(value).__name__, 1)
    assert known(value, rewritten) == recorded


@pytest.mark.parametrize("stored", [b"", b"[1]", b'{"format":3,"word":1}', b'{"a":1}'])
def test_other_values_are_not_rewritten(stored: bytes) -> None:
    """A value that this version has not written is copied as it is."""
    assert formats.rewritten(stored, "CallSnapshot", 1) == stored


def test_every_renamed_field_exists() -> None:
    """A field that is missing in the list of renamed fields would be lost when the
    other version continues the call."""
    now = {field.name for field in msgspec.structs.fields(CallSnapshot)}
    renamed = RENAMED_FIELDS["CallSnapshot"]
    recorded = recorded_fields(CallSnapshot) - {"format"}
    assert recorded <= {renamed.get(name, name) for name in now}
    assert renamed.keys() <= now


LEAST = [
    CallSnapshot(),
    Plan(),
    NextStep(Then.SORRY),
    CallStatus("", "queued", 0),
    OutboundOrder(to="+14155550109", from_number="+14155550108"),
]


def test_the_recorded_values_use_every_field() -> None:
    """A field with its default value could be lost without a failing test."""
    for (_, value), least in zip(STORED, LEAST, strict=True):
        ours, others = in_format_1(value), in_format_1(least)
        assert not {name for name in ours if ours[name] == others[name]}


def test_a_trace_of_format_1_is_read_and_not_replayed() -> None:
    """Its lines can be looked at. Its inputs have other names, so a replay would say
    nothing about the call: `replay` refuses it and names both formats."""
    path = RECORDED / "trace.jsonl"
    text = path.read_text("utf-8")

    assert [json.loads(line) for line in text.strip().split("\n")] == list(read(path))
    with pytest.raises(TraceFormatError) as error:
        next(replay(path))
    assert str(error.value) == (
        "The trace has format 1. This version of the bridge replays format 3."
    )


# --- values of this version, read by the code of format 1 ---

READ = """
import msgspec
from bridge.app.outbound import CallStatus, OutboundOrder
from bridge.fleet import NextStep, formats
from bridge.fleet.plan import Earlier, Plan
from bridge.fleet.redis import _announced, _capacity

stored = stored.encode()
kinds = {
    "CallSnapshot": Earlier,
    "Plan": Plan,
    "NextStep": NextStep,
    "CallStatus": CallStatus,
    "OutboundOrder": OutboundOrder,
}
found = formats.read(stored, kinds[kind]) if kind in kinds else _capacity(stored)
result = msgspec.to_builtins(found)
"""


def in_format_1(value: Any) -> Any:
    """The value with the field names of format 1."""
    return without_format(known(value, encode(value, 1)))


def without_format(stored: bytes) -> Any:
    plain = json.loads(stored)
    del plain["format"]
    return plain


async def test_values_in_format_1_are_read_by_format_1(format1: OtherVersion) -> None:
    """After a rollback the older version continues every call that this one had."""
    for value in (SNAPSHOT, PLAN, STEP, STATUS, ORDER):
        stored, kind = encode(value, 1).decode(), type(value).__name__
        found = await format1.run(READ, stored=stored, kind=kind)
        assert found == in_format_1(value), kind
    load = InstanceLoad(20, 3, True)
    stored = encode(load, 1).decode()
    found = await format1.run(READ, stored=stored, kind="InstanceLoad")
    assert found == msgspec.to_builtins(load)


async def test_values_that_are_written_once_are_read_by_format_1(
    format1: OtherVersion,
) -> None:
    """A plan, an order, a status and a next step are not rewritten when an older
    instance joins, so it must read them as a fleet of this version has written them."""
    for value in (PLAN, STEP, STATUS, ORDER):
        stored, kind = encode(value, FORMAT).decode(), type(value).__name__
        found = await format1.run(READ, stored=stored, kind=kind)
        assert found == without_format(known(value, stored.encode())), kind


async def test_a_beat_is_read_by_format_1(format1: OtherVersion) -> None:
    """An older instance sees the load of this version, and its format."""
    beat = announcement(InstanceLoad(20, 3, True)).decode()
    found = await format1.run(READ, stored=beat, kind="InstanceLoad")
    assert found == {"limit": 20, "calls": 3, "draining": True}
    assert await format1.run("result = _announced(stored)") == FORMAT


def test_a_later_version_may_add_fields() -> None:
    """This version reads every kind of value with a field that it does not know."""
    for _, value in STORED:
        later = encode(value, FORMAT).removesuffix(b"}") + b',"of_tomorrow":[1]}'
        assert formats.read(later, type(value)) == value


# --- values of a newer version ---


def with_format(number: int, value: Any) -> bytes:
    return b'{"format":%d,' % number + msgspec.json.encode(value)[1:]


@pytest.mark.parametrize(
    "kind", [CallSnapshot, Plan, NextStep, CallStatus, OutboundOrder]
)
def test_a_newer_format_is_not_misread(kind: type[Any]) -> None:
    """Even if all fields seem to fit: their meaning may have changed. The log names the
    format that was found and those that this version reads."""
    [value] = [value for _, value in STORED if type(value) is kind]
    with capture_logs() as logs:
        assert formats.read(with_format(FORMAT + 1, value), kind) is None

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
    """The agent speaks to the caller as in a new call."""
    with capture_logs() as logs:
        assert CallSnapshot.read(with_format(7, SNAPSHOT)) == CallSnapshot()
        assert Plan.read(with_format(7, PLAN)) == Plan()

    assert [it["event"] for it in logs] == ["format_unreadable"] * 2


@pytest.mark.parametrize(
    "stored", [b'{"format":-1}', b'{"format":"1"}', b'{"format":1.5}', b"[]", b"\x00"]
)
def test_a_value_of_something_else_is_ignored(stored: bytes) -> None:
    """A value that no version of the bridge has written counts as absent."""
    with capture_logs() as logs:
        assert formats.read(stored, Plan) is None

    assert [it["event"] for it in logs] == ["stored_value_unreadable"]


@pytest.mark.parametrize("found", [TRACE_FORMAT + 1, "x", None])
def test_a_trace_of_another_format_is_refused(tmp_path: Path, found: object) -> None:
    """The error says which version can replay it, and not that the calls differ."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    first, rest = text_of(call.path).split("\n", 1)
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
    """Except a format that this version cannot write."""
    assert common(others) == written


def test_a_single_instance_writes_the_newest_format() -> None:
    """No other instance reads its values."""
    assert MemoryRegistry().format() == FORMAT
    assert format_of(encode(SNAPSHOT, FORMAT)) == FORMAT


@pytest.mark.parametrize("beat", [b"", b"[1]", b"{}", b'{"format":"x"}'])
def test_a_beat_without_a_format(beat: bytes) -> None:
    """An instance that announces no format counts as the oldest of all."""
    assert announced(beat) == 0


# --- the other version's code ---


def test_a_tree_without_history_fails_and_says_why(tmp_path: Path) -> None:
    """A missing history must fail the tests of two versions, not skip them."""
    with pytest.raises(pytest.fail.Exception) as error:
        unpack(tmp_path / "source", "0" * 40)

    assert f"Commit {'0' * 40} cannot be read from the git history" in str(error.value)
    assert len(FORMAT_1) == 40, "a full hash: a short one may name two commits one day"


def test_a_phone_number_is_stored_as_a_text() -> None:
    """A number that the bridge has read is no plain str, and with Redis it ended the
    call that was to be transferred."""
    number = twiml.phone_number("+1 415 555 0100")
    step = NextStep(Then.TRANSFER, number, caller_id=number)

    assert formats.read(encode(step, FORMAT), NextStep) == step
    with pytest.raises(TypeError):
        encode(NextStep(Then.TRANSFER, object()), FORMAT)  # type: ignore[arg-type]
