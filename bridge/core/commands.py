"""What the core asks of the edges: plain values, to be carried out in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.core import twilio_messages

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ToCaller:
    """A message for Twilio."""

    text: str


@dataclass(frozen=True, slots=True)
class ToModel:
    """An event for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Started:
    """The call is known: its agent's session is to be opened now; or it is there
    `again`, on another stream."""

    start: twilio_messages.Start
    again: bool = False


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The agent was cut short in this item: the session's listeners are to know."""

    item_id: str
    content_index: int


@dataclass(frozen=True, slots=True)
class Dial:
    """A connection to the model is wanted, after so many seconds. `spare`: the one that
    there is stays in use meanwhile; else it is given up."""

    seconds: float
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Switch:
    """The connection that was dialled takes the place of the one before."""


@dataclass(frozen=True, slots=True)
class WaitDone:
    """The answer to a wait (Conversation.when_heard): all was heard, it was not, or
    (None) the call is over."""

    wait: int
    done: bool | None


@dataclass(frozen=True, slots=True)
class Pressed:
    """The caller pressed keys that the route has an action for."""

    keys: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth seeing. `private` holds what people said: it goes into a trace
    that somebody asked for, never into a log."""

    name: str
    data: Mapping[str, Value] = field(default_factory=dict)
    private: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class End:
    """The call is over. Given once; nothing follows."""

    by: str
    """Whose doing it was: "caller", "agent", "model" or "bridge"."""
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
    """That side sent what its contract does not allow; `reason` is a fixed phrase."""
    return Note("protocol_error", {"side": side, "reason": reason})


def limit_hit(limit: str) -> Note:
    """A limit of bridge.core.limits.HITS kept that side from more; it is counted."""
    return Note("limit_hit", {"limit": limit})
