"""The inputs of the core: plain values, given to `Conversation.handle` one at a time.

PURE. A trace is the list of a call's inputs and commands, as JSON (telemetry/trace.py):
`kind` names the type. A renamed type or field is another trace format.
"""

from collections.abc import Mapping

import msgspec

from bridge.core import realtime_events, twilio_messages
from bridge.core.commands import kind_of
from bridge.core.rules import Rules


class CoreInput(msgspec.Struct, frozen=True, tag_field="kind", tag=kind_of):
    """Base of all inputs."""


# --- the two sides ---


class FromPhone(CoreInput, frozen=True):
    """A message of Twilio's stream."""

    message: twilio_messages.Inbound


class FromModel(CoreInput, frozen=True):
    """A server event of a model connection. `connection`: its number (`Dial`)."""

    connection: int
    event: realtime_events.KnownEvent


class Misread(CoreInput, frozen=True):
    """A message of `side` ("caller", "model") is unreadable. `reason`: a fixed
    phrase. `event`: the message's type, as the side named it."""

    side: str
    reason: str
    event: str = ""


class Tick(CoreInput, frozen=True):
    """Time has passed: the conversation's `deadline` is reached."""


# --- connections ---


class StreamLost(CoreInput, frozen=True):
    """The stream broke. The call waits for another `start` (stream_presence.py)."""


class Dialled(CoreInput, frozen=True):
    """The model connection that `Dial` requested is open."""

    connection: int


class NotDialled(CoreInput, frozen=True):
    """The model connection that `Dial` requested failed. `fatal`: no retry can
    succeed."""

    connection: int
    why: str
    fatal: bool


class ModelLost(CoreInput, frozen=True):
    """A model connection is lost. `why` goes into the notes. `code`: of the server's
    close frame."""

    connection: int
    why: str
    code: int | None = None


# --- the call ---


class Begin(CoreInput, frozen=True):
    """A call without audio begins: no `start` of a stream comes. Its first model
    connection is being dialled."""


class SetRules(CoreInput, frozen=True):
    """The rules of the call; given before the model is ready."""

    rules: Rules


class HandOver(CoreInput, frozen=True):
    """Moves the call to another instance: ends it here ("handed_over") in the next
    settled moment, at the latest after HAND_OVER_SECONDS; at once if there is no
    stream."""


class EndCall(CoreInput, frozen=True):
    """Ends the call at once. `by`, `why`: as in the command `End`."""

    by: str
    why: str


# --- requests of the agent's session and of user code ---


class Tell(CoreInput, frozen=True):
    """A text message for the conversation; with `respond` the model responds."""

    role: str
    text: str
    respond: bool


class Ask(CoreInput, frozen=True):
    """Requests a response, as soon as the model is free."""


class Edit(CoreInput, frozen=True):
    """Removes items (ids) from the model's conversation, and replaces the text of
    messages (id -> text). A replaced message is a new item behind the old one, which is
    deleted."""

    removed: tuple[str, ...]
    corrected: Mapping[str, str]


class MuteCaller(CoreInput, frozen=True):
    """On: the model hears silence in place of the caller."""

    on: bool


class ToolRunning(CoreInput, frozen=True):
    """A tool started (`change` +1) or ended (-1). Without `call_id` it is a tool of the
    model's own server, a part of its response."""

    change: int
    call_id: str = ""


class Send(CoreInput, frozen=True):
    """A client event (JSON) of the SDK or of user code: sent, or kept until the model
    is ready."""

    text: str


class Play(CoreInput, frozen=True):
    """Plays the bridge's own audio (base64 mu-law), such as key tones."""

    payload: str


class Interrupt(CoreInput, frozen=True):
    """Stops the agent without a barge-in: for a guardrail (`response_id` given) or for
    user code. `by` goes into the notes.

    With a `response_id`, only if the caller may still hear something of that response.
    """

    by: str
    response_id: str | None = None


class WhenHeard(CoreInput, frozen=True):
    """Starts wait number `wait`: it gives WaitDone once the caller has heard
    everything, or can hear nothing more. With `then` (by, why of `End`) the call ends
    at that moment. A barge-in ends the wait, unless `stoppable` is False."""

    wait: int
    then: tuple[str, str] | None = None
    stoppable: bool = True


class GiveUpWait(CoreInput, frozen=True):
    """Ends a wait without a WaitDone; its `then` is not done."""

    wait: int


class Goodbye(CoreInput, frozen=True):
    """The call must end (`why`: a key of rules.GOODBYES), after a goodbye of the
    agent."""

    why: str


OtherInput = (
    Misread
    | Tick
    | StreamLost
    | Dialled
    | NotDialled
    | ModelLost
    | Begin
    | SetRules
    | HandOver
    | EndCall
    | Tell
    | Ask
    | Edit
    | MuteCaller
    | ToolRunning
    | Send
    | Play
    | Interrupt
    | WhenHeard
    | GiveUpWait
    | Goodbye
)

Input = FromPhone | FromModel | OtherInput
