"""The format of everything that the bridge stores, and the rules for changing it.

Instances of two versions share one Redis while a new version is rolled out, and while
it is rolled back. Each instance must read what the other version has written.

What has a format
-----------------
* JSON objects in the registry have the **fleet format** (`FORMAT`): the snapshot of a
  call (`talk:`), its plan (`plan:`), its status (`status:`, `final:`), its next step,
  and the beat of an instance. The field `format` stands first in the object. An object
  without that field has format 0: commit a45a49c, or an earlier one, has written it.
* Key names, key types and scripts (keys.py) belong to the fleet format, too.
* A trace has the **trace format** (`TRACE_FORMAT` of bridge/telemetry/trace.py), in its
  first line. Instances do not exchange traces, so the trace format changes without the
  fleet format.
* Plain values (`amd:`, `ended:`, `route:`, `resumed:`, `refused:`, `late-ticket:`, what
  `first` and `count` keep, messages between instances) have no format. A plain value
  never changes its meaning: a value with another meaning gets another name. An instance
  ignores a message that it does not know.

What is a change of format
--------------------------
A stored field is renamed or removed, or its type or its meaning changes; or a key is
renamed, or its type changes. Then FORMAT grows by one. A new field with a default is no
change: readers ignore fields that they do not know. Therefore no struct that is stored
may forbid unknown fields.

What a version reads
--------------------
Its own format and the one before (`OLDEST` to `FORMAT`). The version that introduces
format N keeps the code that reads and writes format N-1, and drops N-2. A fleet is
upgraded, and rolled back, by one format at a time.

What a version writes
---------------------
The format that `Registry.format()` gives: the newest one that every live instance
reads. Each instance announces its FORMAT with every beat; no announcement means 0.
While an older instance is in the fleet, all instances write the older format. When an
older instance joins (a rollback), the others notice with their next beat and write the
snapshots of their running calls again, in the older format
(bridge/call/checkpoint.py). A registry that has not yet reached Redis writes the oldest
format that it reads.

A value that is written once (plan, order, status, next step, the snapshot of a call
that has no stream) is not written again when an older instance joins. Therefore the
format that renames a field of a plan, an order, a status or a next step writes the
field under both names, and only the format after it drops the old name.

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
* Order: nobody knows what the callee was called for, so the call is hung up. The rule
  for values that are written once keeps this from happening.
* Trace: `replay` raises an error that names both formats.

What never changes
------------------
The key `bridge:instances`, the shape of its fields (`{milliseconds} {JSON object}`) and
the field `format`: that is how two versions learn each other's format.
"""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import msgspec
import structlog

from bridge.core import UNREADABLE

log = structlog.get_logger()

FORMAT = 1
"""The fleet format of this version. It differs from 0 in the field `format` alone."""

OLDEST = 0
"""The oldest fleet format that this version reads and writes: the one before."""

T = TypeVar("T")


class _FormatHead(msgspec.Struct):
    """The part of a stored object that all formats have in common."""

    format: Annotated[int, msgspec.Meta(ge=0)] = 0


def encode(value: Any, format: int) -> bytes:
    """`value` (a struct or a dataclass) as JSON object of the given format."""
    text = msgspec.json.encode(value)
    # Format 0 has no field `format`; nothing else differs from format 1.
    return text if format == 0 else b'{"format":%d,' % format + text[1:]


def format_of(stored: bytes) -> int:
    """The format of a stored JSON object. Raises UNREADABLE for anything else."""
    return msgspec.json.decode(stored, type=_FormatHead).format


def read(stored: bytes, kind: type[T]) -> T | None:
    """The stored value. None, and one line in the log, if this version cannot read it:
    its format is not supported, or it is not a JSON object of this kind."""
    try:
        found = format_of(stored)
        if OLDEST <= found <= FORMAT:
            # Formats 0 and 1 have the same fields.
            return msgspec.json.decode(stored, type=kind)
    except UNREADABLE as error:
        log.error(
            "stored_value_unreadable", kind=kind.__name__, error=type(error).__name__
        )
        return None
    log.error(
        "format_unreadable",
        kind=kind.__name__,
        format=found,
        oldest=OLDEST,
        newest=FORMAT,
    )
    return None


def common(others: Iterable[int]) -> int:
    """The format to write, given the formats that the other live instances announce:
    the newest that all of them read, but none that this version cannot write."""
    return max(OLDEST, min((FORMAT, *others)))
