"""The commands that the core returns: plain values, to be carried out in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.core import twilio_messages

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ToCaller:
    """A message to Twilio (JSON)."""

    text: str


@dataclass(frozen=True, slots=True)
class ToModel:
    """A client event to the model (JSON)."""

    text: str


@dataclass(frozen=True, slots=True)
class Started:
    """The call is known: open its agent's session now. `again`: the same call, on
    another stream."""

    start: twilio_messages.Start
    again: bool = False


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The agent was interrupted in this item: notify the session's listeners."""

    item_id: str
    content_index: int


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a model connection after `seconds`. `spare`: the present connection stays in
    use; else it is given up."""

    seconds: float
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Switch:
    """Use the connection that was dialled in place of the present one."""


@dataclass(frozen=True, slots=True)
class WaitDone:
    """A wait (Conversation.when_heard) is over. `done`: the caller heard everything
    (True), did not (False), or the call has ended (None)."""

    wait: int
    done: bool | None


@dataclass(frozen=True, slots=True)
class Pressed:
    """The caller pressed keys for which the route has an action."""

    keys: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something to log, count or trace. `private` holds the words and keys of people:
    it goes only into traces, which an operator must switch on, never into logs."""

    name: str
    data: Mapping[str, Value] = field(default_factory=dict)
    private: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
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
    | WaitDone
    | Pressed
    | Note
    | End
)


def protocol_error(side: str, reason: str) -> Note:
    """`side` sent what its contract does not allow; `reason` is a fixed phrase."""
    return Note("protocol_error", {"side": side, "reason": reason})


def limit_hit(limit: str) -> Note:
    """A limit, by its name in bridge.core.limits.HITS, was hit; it is counted."""
    return Note("limit_hit", {"limit": limit})
