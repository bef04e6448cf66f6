"""The commands that the core returns: plain values, to be carried out in order.

PURE. `kind` names the type where a command is written as JSON (telemetry/trace.py).
"""

import re
from collections.abc import Mapping

import msgspec

from bridge.core import twilio_messages

Value = str | int | float | bool | None


def kind_of(class_name: str) -> str:
    """The `kind` of an input or a command in a trace: ToCaller -> to_caller."""
    return re.sub("(?<!^)(?=[A-Z])", "_", class_name).lower()


class CoreOutput(msgspec.Struct, frozen=True, tag_field="kind", tag=kind_of):
    """Base of all commands."""


class ToCaller(CoreOutput, frozen=True):
    """A message to Twilio (JSON)."""

    text: str


class ToModel(CoreOutput, frozen=True):
    """A client event to the model (JSON)."""

    text: str


class Started(CoreOutput, frozen=True):
    """The call is known: open its agent's session now. `again`: the same call, on
    another stream."""

    start: twilio_messages.Start
    again: bool = False


class Interrupted(CoreOutput, frozen=True):
    """The agent was interrupted in this item: notify the session's listeners."""

    item_id: str
    content_index: int


class Dial(CoreOutput, frozen=True):
    """Open a model connection after `seconds`. `connection`: its number, which its
    events carry."""

    connection: int
    seconds: float


class Switch(CoreOutput, frozen=True):
    """Use this connection, which is open. No connection is in use now."""

    connection: int


class CloseConnection(CoreOutput, frozen=True):
    """Close this connection, which was in use."""

    connection: int


class SayOneMoment(CoreOutput, frozen=True):
    """Leave the stream, so that Twilio says a sentence and opens another one."""


class MuteSession(CoreOutput, frozen=True):
    """Makes the model's server ignore the caller's audio (`on`), which does not pass
    here; or hear it again."""

    on: bool


class WaitDone(CoreOutput, frozen=True):
    """A wait (`WhenHeard`) is over. `done`: the caller heard everything
    (True), did not (False), or the call has ended (None)."""

    wait: int
    done: bool | None


class Pressed(CoreOutput, frozen=True):
    """The caller pressed keys for which the route has an action."""

    keys: str


class Note(CoreOutput, frozen=True):
    """Something to log, count or trace. `private` holds the words and keys of people:
    it goes only into traces, which an operator must switch on, never into logs."""

    name: str
    data: Mapping[str, Value] = {}
    private: Mapping[str, str] = {}


class End(CoreOutput, frozen=True):
    """The call is over. Given once, as the last command."""

    by: str
    """The side that caused it: "caller", "agent", "model" or "bridge"."""
    why: str


Command = (
    ToCaller
    | ToModel
    | Started
    | Interrupted
    | Dial
    | Switch
    | CloseConnection
    | SayOneMoment
    | MuteSession
    | WaitDone
    | Pressed
    | Note
    | End
)


MAX_TYPE_CHARS = 64
_TYPE = re.compile(r"[A-Za-z0-9_.\-]*")


def protocol_error(side: str, reason: str, event: str = "") -> Note:
    """`side` sent what its contract does not allow; `reason` is a fixed phrase. `event`
    is the type of its message, of which only the part that can be a name is kept."""
    data: dict[str, Value] = {"side": side, "reason": reason}
    name = _TYPE.match(event)
    if name and name[0]:
        data["event_type"] = name[0][:MAX_TYPE_CHARS]
    return Note("protocol_error", data)


def limit_hit(limit: str) -> Note:
    """A limit, by its name in bridge.core.limits.HITS, was hit; it is counted."""
    return Note("limit_hit", {"limit": limit})
