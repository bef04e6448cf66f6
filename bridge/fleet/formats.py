"""The format of everything that the bridge stores, and the rules for changing it.

Instances of two versions share one Redis while a new version is rolled out, and while
it is rolled back. Each instance must read what the other version has written.

What has a format
-----------------
* The **fleet format** (`FORMAT`) covers JSON objects in the registry (the snapshot of a
  call, its plan, its order, its status, its next step, the beat of an instance), and
  key names, key types and scripts (keys.py).
* Each JSON object has the field `format` first. Its value is the fleet format that
  last changed this kind of object (`CHANGED_IN`), so a value of an unchanged kind can
  be read by every version. An object without the field has format 1: the version of
  format 1 writes its orders without it.
* A trace has the **trace format** (`TRACE_FORMAT` of bridge/telemetry/trace.py), in its
  first line. Instances do not exchange traces, so the trace format changes without the
  fleet format.
* Plain values (`answered_by:`, `stream_ended:`, `route:`, the values of
  `set_if_absent` and `count`, messages between instances) have no format. A plain value
  never changes its meaning: a value with another meaning gets another name. An instance
  ignores a message that it does not know.

What is a change of format
--------------------------
A stored field is renamed or removed, or its type or its meaning changes; or a key is
renamed, or its type changes. Then FORMAT grows by one. A new field with a default is no
change: readers ignore fields that they do not know. Therefore no struct that is stored
may forbid unknown fields.

What a version reads and writes
-------------------------------
It reads its own format and the one before (`OLDEST` to `FORMAT`). The version that
introduces format N keeps the code that reads and writes format N-1, and drops N-2. A
fleet is upgraded, and rolled back, by one format at a time.

It writes the format that `Registry.format()` gives: the newest one that every live
instance reads. Each instance announces its FORMAT with every beat; no announcement
means 0. While an older instance is in the fleet, all instances write the older format.
When an older instance joins (a rollback), the other instances notice with their next
beat. From then on

* they write the snapshots of their running calls again, in the older format
  (bridge/call/checkpoint.py);
* they move every stored value that has a name of the newer format to the name of the
  older one, and rewrite snapshots in the older format (`rewritten`; fleet_format.py).
  Values of calls that have no instance at that moment are moved, too.

Until that beat (2 s) the older instance does not see values that only have a new name.
It reads what its own name has instead: nothing, or the value from before the upgrade;
and if it pops a value, the value that only has a new name stays.
Names that must not be used twice (tickets) and quotas have no such gap: keys.py.

A registry that has not yet reached Redis writes the oldest format that it reads.

How to rename a field
---------------------
* Of a snapshot: in `RENAMED_FIELDS`, and FORMAT in `CHANGED_IN`. Snapshots are
  rewritten as described above.
* Of a plan, an order, a status or a next step: these are written once and are not
  rewritten. An instance of format N-1 refuses an object whose `format` is N, whatever
  its fields are. Therefore the number of the object stays as it is: format N writes the
  field under both names and reads either; format N+1 drops the old name.

What an instance does with a format that it does not read
---------------------------------------------------------
It does not guess: it logs `format_unreadable` with the kind, the format, and the oldest
and newest format that it reads, and goes on as if nothing was stored. It does not
overwrite the value before it has something of its own to store.

* Snapshot: the call goes on without its history. The agent greets the caller as in a
  new call; length, cost and transfers count from zero.
* Plan: the call gets the greeting of its route; an answering machine is ignored.
* Next step: a call with a snapshot is resumed; a call without one gets a new stream or
  plan B.
* Order: the instance does not know why the callee was called, so it hangs up.
* Trace: `replay` raises an error that names both formats.

What never changes
------------------
The key `bridge:instances`, the shape of its fields (`{milliseconds} {JSON object}`) and
the field `format`: that is how two versions learn each other's format.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import structlog

from bridge.core import UNREADABLE

log = structlog.get_logger()

FORMAT = 2
"""The fleet format of this version. Format 2 renamed keys (keys.py) and the fields in
`RENAMED_FIELDS`."""

OLDEST = 1
"""The oldest fleet format that this version reads and writes: the one before. Commit
739a7ad is the last version of it."""

CHANGED_IN: Mapping[str, int] = {"CallSnapshot": 2}
"""Kind of stored object -> the format that last changed it. Other kinds: 1."""

RENAMED_FIELDS: Mapping[str, Mapping[str, str]] = {
    "CallSnapshot": {
        "taken_at": "at",
        "stream_count": "streams",
        "unnoticed": "quiet",
        "agent_name": "agent",
        "call_seconds": "seconds",
        "transfer_count": "transfers",
        "instruction": "word",
    }
}
"""Kind of stored object -> {field: its name in OLDEST}."""

T = TypeVar("T")


class _FormatHead(msgspec.Struct):
    """The part of a stored object that all formats have in common."""

    format: Annotated[int, msgspec.Meta(ge=0)] | None = None


def encode(value: Any, format: int) -> bytes:
    """`value` (a struct or a dataclass) as JSON object that an instance of the given
    fleet format reads."""
    kind, text = type(value).__name__, msgspec.json.encode(value, enc_hook=_plain)
    changed = CHANGED_IN.get(kind, 1)
    if format < changed:
        return _with_fields(text, format, RENAMED_FIELDS.get(kind, {}))
    return b'{"format":%d,' % changed + text[1:]


def _plain(value: object) -> str:
    """A subclass of str, such as a phone number: msgspec does not encode one."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"objects of type {type(value).__name__} cannot be stored")


def announcement(load: Any) -> bytes:
    """The beat of an instance: `load` with the FORMAT of this version."""
    return b'{"format":%d,' % FORMAT + msgspec.json.encode(load)[1:]


def announced(beat: bytes) -> int:
    """The format that an instance announces; 0 if its beat does not name one."""
    try:
        return _head(beat).format or 0
    except UNREADABLE:
        return 0


def format_of(stored: bytes) -> int:
    """The format of a stored JSON object. Raises UNREADABLE for anything else."""
    found = _head(stored).format
    return 1 if found is None else found


def _head(stored: bytes) -> _FormatHead:
    return msgspec.json.decode(stored, type=_FormatHead)


def read(stored: bytes, kind: type[T]) -> T | None:
    """The stored value. None, and one line in the log, if this version cannot read it:
    its format is not supported, or it is not a JSON object of this kind."""
    name = kind.__name__
    changed = CHANGED_IN.get(name, 1)
    try:
        found = format_of(stored)
        if min(OLDEST, changed) <= found <= FORMAT:
            if found < changed:
                old = {was: now for now, was in RENAMED_FIELDS.get(name, {}).items()}
                stored = _with_fields(stored, found, old)
            return msgspec.json.decode(stored, type=kind)
    except UNREADABLE as error:
        log.error("stored_value_unreadable", kind=name, error=type(error).__name__)
        return None
    log.error(
        "format_unreadable",
        kind=name,
        format=found,
        oldest=OLDEST,
        newest=FORMAT,
    )
    return None


def rewritten(stored: bytes, kind: str, format: int) -> bytes:
    """A stored object as an instance of the given fleet format reads it. A value that
    is no object of this version stays as it is."""
    try:
        if not format < format_of(stored) <= CHANGED_IN.get(kind, 1):
            return stored
        return _with_fields(stored, format, RENAMED_FIELDS.get(kind, {}))
    except UNREADABLE:
        return stored


def _with_fields(text: bytes, format: int, names: Mapping[str, str]) -> bytes:
    """The JSON object with this number, and with the fields in `names` renamed."""
    fields: dict[str, Any] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    fields.pop("format", None)
    renamed = {names.get(name, name): value for name, value in fields.items()}
    return msgspec.json.encode({"format": format, **renamed})


def read_or_default(stored: bytes | None, kind: type[T]) -> T:
    """The stored value. The default of `kind` if nothing is stored, or if this version
    cannot read it: a call without its history is better than no call."""
    found = read(stored, kind) if stored else None
    return kind() if found is None else found


def common(others: Iterable[int]) -> int:
    """The format to write, given the formats that the other live instances announce:
    the newest that all of them read, but none that this version cannot write."""
    return max(OLDEST, min((FORMAT, *others)))
