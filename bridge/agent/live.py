"""A running call as user code sees it: in tools, event listeners and the control API.

`LiveCall` offers the call's facts, its conversation, events and actions. It has no
socket: its `CallControl`, the call itself (media stream or SIP), carries out actions.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from agents.realtime import RealtimeSession

import twiml
from bridge.agent.approvals import Approval, Approvals
from bridge.agent.events import CallEvent, Listener, Listeners
from bridge.agent.finished_tools import FinishedTool
from bridge.core.answered import Answer
from bridge.core.history import HistoryItem
from bridge.core.transfers import FailedTransfer
from bridge.privacy.redaction import Redaction

Role = Literal["user", "system"]

_DIGITS = re.compile("[0-9*#A-Dw]+")
MAX_DIGITS = 64
MAX_TEXT_CHARS = 8000
MAX_MESSAGES = 100
"""Messages kept per call: they stay in memory until the call's report is delivered."""
THREAD_SECONDS = 5.0
"""Longest time that a tool's thread waits until the event loop has carried out the
action."""

RING_SECONDS = range(5, 601)
"""Accepted `ring_seconds`: https://www.twilio.com/docs/voice/twiml/dial"""


class BadRequest(ValueError):
    """The action is not possible. The message says why and does not quote the value."""


class NotAllowed(BadRequest):
    """The operator's configuration does not permit the action."""


class CallOver(Exception):
    """The call has ended: no further action on it is possible."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known about a call when it begins."""

    call_sid: str
    stream_sid: str = ""
    account_sid: str = ""
    from_number: str = ""
    """As Twilio sends it: E.164, `anonymous`, `client:...` or `sip:...`."""
    to_number: str = ""
    direction: Literal["inbound", "outbound"] = "inbound"
    route: str = ""
    """Name of the call's route; empty if no route matched (deployment defaults)."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """All `<Parameter>`s of the TwiML, including From and To."""

    @classmethod
    def of(cls, call_sid: str, parameters: Mapping[str, str]) -> "CallFacts":
        """Reads From, To, Direction and Route from the stream's parameters.

        Twilio's `start` message has no numbers, so the TwiML passes them as
        parameters; Direction and Route are set for calls that the bridge placed.
        """
        outbound = parameters.get("Direction", "").startswith("outbound")
        return cls(
            call_sid=call_sid,
            from_number=parameters.get("From", ""),
            to_number=parameters.get("To", ""),
            direction="outbound" if outbound else "inbound",
            route=parameters.get("Route", ""),
            parameters=parameters,
        )

    @property
    def ours(self) -> str:
        """The number of the agent's side of the call."""
        return self.to_number if self.direction == "inbound" else self.from_number

    @property
    def theirs(self) -> str:
        """The number of the person the agent talks to."""
        return self.from_number if self.direction == "inbound" else self.to_number


@dataclass(frozen=True, slots=True)
class Transfer:
    """A target that a call can be transferred to."""

    number: str
    """E.164, or a SIP URI (sip:user@host)."""
    caller_id: str = ""
    """Number shown to the target, one of the account's; empty: the caller's number."""
    ring_seconds: int = 20
    description: str = ""
    """Text for the model: what this target is for."""
    digits: str = ""
    """Keys that are pressed when the target answers, such as an extension: 0-9 # *; w
    waits half a second, W one."""
    whisper: str = ""
    """What the person who answers hears before the caller is connected."""
    accept: bool = False
    """The person must press 1, else the caller comes back to the agent: a mailbox that
    answers takes no call. `whisper` then names the key; empty: a default text."""
    warm: bool = False
    """The person is called while the caller goes on talking with the agent. Needs
    credentials of Twilio's REST API."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message the caller left for the people the agent answers for."""

    text: str
    name: str = ""
    call_back: str = ""


class CallControl(Protocol):
    """The call itself. Only the `async` methods wait."""

    @property
    def history(self) -> Sequence[HistoryItem]: ...
    def tell(self, role: Role, text: str, *, respond: bool) -> None: ...
    def interrupt(self, by: str) -> None: ...
    def mute(self, on: bool) -> None: ...
    def send_raw(self, event: Mapping[str, Any]) -> None: ...
    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        """`removed`: item ids to delete. `corrected`: item id -> new text."""

    async def heard(self) -> bool:
        """Waits until the caller heard all agent speech. False: interrupted."""

    async def hang_up(self) -> bool:
        """Waits like `heard`, then ends the call. False: interrupted, call goes on."""

    async def transfer(self, transfer: Transfer, summary: str) -> bool:
        """Waits like `heard`, then transfers. False: interrupted, call goes on. A warm
        transfer begins at once; `summary` is said to the person of it."""

    async def send_digits(self, digits: str) -> bool:
        """Waits like `heard`, plays the tones, waits until they were heard."""

    def decide_answer(self, who: Answer) -> bool:
        """See LiveCall.decide_answer."""


@dataclass(frozen=True, slots=True)
class ModelProblem:
    """Something that went wrong between the bridge and the model's server."""

    name: str
    """`model_error`, `protocol_error`, `answer_failed`, `answer_incomplete` or
    `handoff_refused`, as in the log."""
    what: str
    """The error's code, the reason, or the agent that was not put in charge."""
    event_type: str = ""
    """The type of the server's event, of a protocol error."""
    message: str = ""
    """The server's text, of a model error."""


class LiveCall:
    """One phone call, for user code.

    Tools, dynamic instructions and guardrails receive it as the SDK's context
    (`context.context`). Every action raises `CallOver` once the call has ended.
    """

    def __init__(
        self,
        facts: CallFacts,
        control: CallControl,
        listeners: Listeners,
        approvals: Approvals,
    ) -> None:
        self.facts = facts
        self.began = time.time()
        """Seconds since the epoch."""
        self.agent_name = ""
        """Name of the agent in charge."""
        self.session: RealtimeSession | None = None
        """The SDK's session; None until it exists. You may add listeners to its
        `model`; they receive no audio, which bypasses the SDK."""
        self.messages: list[Message] = []
        self.problems: list[ModelProblem] = []
        """What went wrong between the bridge and the model's server."""
        self.finished_tools: dict[str, FinishedTool] = {}
        """The newest tool calls of this stream that have ended, by the id of the
        call."""
        self.handoffs: list[tuple[float, str, str]] = []
        """(seconds since the epoch, agent, agent that is in charge since then), on this
        stream."""
        self.delays: list[tuple[float, float]] = []
        """(seconds since the epoch, seconds until the first audio of an answer), on
        this stream."""
        self.failed_transfers: list[FailedTransfer] = []
        """Transfers of this call that nobody answered."""
        self.notes: dict[str, Any] = {}
        """For your own data (JSON values): delivered with the call's report."""
        self.input_tokens = self.output_tokens = 0
        self.cost = 0.0
        """Cost of the model so far, in the unit of the configured prices."""
        self.answered_by = ""
        """Who has answered an outbound call: what Twilio's machine detection has said
        (`human`, `machine_start`, ...), then what the agent has (`decide_answer`)."""
        self.muted = False
        self.transfers: Mapping[str, Transfer] = {}
        """Transfer targets the agent may use, by name: the route's, or set by you."""
        self.redaction = Redaction()
        """What is removed from records and API output; user code gets the original."""
        self._control = control
        self._listeners = listeners
        self._approvals = approvals
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ended = False

    # --- facts and conversation ---

    @property
    def call_sid(self) -> str:
        return self.facts.call_sid

    @property
    def history(self) -> list[HistoryItem]:
        """The conversation as the model has it, oldest item first.

        Text only: speech as far as the caller heard it, and tool calls with their
        results. Bounded to the newest few hundred items.
        """
        return list(self._control.history)

    @property
    def transcript(self) -> list[HistoryItem]:
        """The spoken items of `history`: speech of the caller and of the agent."""
        return [item for item in self._control.history if item.spoken]

    @property
    def approvals(self) -> list[Approval]:
        """Tool calls that wait for approval."""
        return self._approvals.pending

    @property
    def over(self) -> bool:
        return self._ended

    # --- events ---

    def on(self, listener: Listener, *types: str) -> Callable[[], None]:
        """Subscribes `listener(event)` to all events, or only to the given types.

        Returns a function that unsubscribes. A listener gets its events in order, one
        at a time; plain (not async) functions run in a thread. A listener that is
        slow or raises misses events; the call is not affected.
        """
        self._check()
        return self._listeners.add(listener, types)

    def is_listened_to(self, event_type: str) -> bool:
        """Whether any listener gets events of this type."""
        return self._listeners.wants(event_type)

    def emit(self, event_type: str, **data: Any) -> None:
        """Sends an event of your own to all listeners."""
        self._listeners.emit(CallEvent(event_type, data, emitted=True))

    # --- actions: those that are not async may also be called from a tool's thread ---

    def tell(self, text: str, *, role: Role = "user", respond: bool = True) -> None:
        """Adds text to the conversation, from the caller (`user`) or as an instruction
        to the agent (`system`).

        With `respond`, the agent answers the text once its current speech is over.
        BadRequest: the text is blank or too long, or the role is another one.
        """
        if not text.strip() or len(text) > MAX_TEXT_CHARS:
            raise BadRequest(f"the text must have 1 to {MAX_TEXT_CHARS} characters")
        if role not in ("user", "system"):
            raise BadRequest("the role must be user or system")
        self._do(lambda: self._control.tell(role, _encodable(text), respond=respond))

    def interrupt(self) -> None:
        """Stops the agent at once; audio still queued at Twilio is never heard."""
        self._do(lambda: self._control.interrupt("application"))

    def mute(self, on: bool = True) -> None:
        """While on, the model receives silence instead of the caller's audio."""
        self._do(lambda: self._control.mute(on))
        self.muted = on

    def send_raw(self, event: Mapping[str, Any]) -> None:
        """Sends a Realtime client event to the model as given, but always with the
        bridge's audio formats."""
        if not isinstance(event.get("type"), str):
            raise BadRequest("the client event needs a `type`, as text")
        self._do(lambda: self._control.send_raw(event))

    def update_history(
        self,
        *,
        remove: Iterable[str] = (),
        correct: Mapping[str, str] | None = None,
    ) -> None:
        """Removes items (by id) from the model's conversation, or replaces their text.

        Only spoken items can be corrected, not tool calls. BadRequest: names the ids
        that are unknown or have no text.
        """
        known = {item.id: item for item in self._control.history}
        removed = list(remove)
        corrected = {key: _encodable(it) for key, it in (correct or {}).items()}
        if unknown := [it for it in (*removed, *corrected) if it not in known]:
            raise BadRequest(f"no such items in the history: {', '.join(unknown)}")
        if silent := [it for it in corrected if not known[it].spoken]:
            raise BadRequest(
                f"these items have no text that can be corrected: {', '.join(silent)}"
            )
        self._do(lambda: self._control.edit_history(removed, corrected))

    async def heard(self) -> bool:
        """Waits until the caller has heard all agent speech. False: interrupted."""
        self._check()
        return await self._control.heard()

    async def hang_up(self) -> bool:
        """Ends the call once the caller has heard all agent speech.

        False: the caller spoke first, so the call goes on.
        """
        self._check()
        return await self._control.hang_up()

    async def transfer(
        self,
        number: str,
        *,
        caller_id: str = "",
        ring_seconds: int = 20,
        digits: str = "",
        whisper: str = "",
        accept: bool = False,
        warm: bool = False,
        summary: str = "",
    ) -> bool:
        """Transfers the caller to `number` (E.164, or a SIP URI that the route or
        `transfers` names) once all agent speech was heard. The rest: see Transfer.

        If the target does not answer, the caller returns to the agent and the agent
        is told. False: the caller spoke first, so the call goes on.

        With `warm`, returns True when the phone rings. The caller stays with the agent
        until the person has answered (`accept`: has pressed 1), or the agent is told
        why nobody has. `summary` is what the person hears first, before `whisper`.

        NotAllowed: the number is in neither the route nor `transfers`, and
        BRIDGE_TRANSFER_PREFIXES does not allow it; or `caller_id` is not one of the
        bridge's numbers. BadRequest: `ring_seconds` or a number is malformed.
        """
        self._check()
        target = _checked(
            Transfer(
                number,
                caller_id,
                ring_seconds,
                digits=digits,
                whisper=whisper,
                accept=accept,
                warm=warm,
            )
        )
        return await self._control.transfer(target, _encodable(summary))

    async def send_digits(self, digits: str) -> bool:
        """Plays DTMF tones (0-9 * # A-D; `w` pauses half a second) once all agent
        speech was heard, and waits until they were heard. False: interrupted."""
        self._check()
        if not _DIGITS.fullmatch(digits) or len(digits) > MAX_DIGITS:
            raise BadRequest(f"digits are 1 to {MAX_DIGITS} of 0-9 * # A-D w")
        return await self._control.send_digits(digits)

    def decide_answer(self, who: Answer) -> bool:
        """Says who has answered an outbound call that was placed with
        `agent_decides`. True: a mailbox has, and the bridge ends the call, after the
        order's message. False: the call goes on.

        BadRequest: the agent does not decide that in this call.
        """
        self._check()
        return self._control.decide_answer(who)

    def take_message(self, text: str, *, name: str = "", call_back: str = "") -> None:
        """Adds a message from the caller to `messages` and the call's report.

        BadRequest: the message is empty or too long, or there are MAX_MESSAGES already.
        """
        self._check()
        if not text.strip():
            raise BadRequest("the message is empty")
        longest = max(len(text), len(name), len(call_back))
        if len(self.messages) >= MAX_MESSAGES or longest > MAX_TEXT_CHARS:
            raise BadRequest("the message is too long, or too many were taken already")
        text, name, call_back = (
            _encodable(text),
            _encodable(name),
            _encodable(call_back),
        )
        self.messages.append(Message(text, name, call_back))
        self.emit("message_taken", text=text, name=name, call_back=call_back)

    async def approve(self, call_id: str, *, always: bool = False) -> None:
        """Lets a waiting tool call run; `always`: also every later call of that tool.

        KeyError: no tool call with this id waits for approval.
        """
        self._check()
        await self._approvals.approve(call_id, always=always)

    async def reject(
        self, call_id: str, *, always: bool = False, message: str | None = None
    ) -> None:
        """Refuses a waiting tool call; the model is told `message`. `always` and
        KeyError: see `approve`."""
        self._check()
        await self._approvals.reject(call_id, always=always, message=message)

    # --- used by the call, not by user code ---

    def end(self) -> None:
        self._ended = True

    def _check(self) -> None:
        if self._ended:
            raise CallOver

    def _do(self, action: Callable[[], None]) -> None:
        self._check()
        if threading.get_ident() == self._thread:
            action()
            return
        done = Future[None]()
        self._loop.call_soon_threadsafe(self._do_for_thread, action, done)
        # The tool's thread waits, not the event loop: the tool gets the action's error.
        done.result(THREAD_SECONDS)

    def _do_for_thread(self, action: Callable[[], None], done: Future[None]) -> None:
        try:
            self._check()
            action()
        except BaseException as error:  # the tool's thread gets it, not the event loop
            done.set_exception(error)
        else:
            done.set_result(None)


def _encodable(text: str) -> str:
    """Replaces lone surrogates with `?`. They cannot be encoded as UTF-8; user code may
    cut a text inside a surrogate pair, and this must not end the call."""
    return text.encode(errors="replace").decode()


def _checked(to: Transfer) -> Transfer:
    """The transfer, with its numbers as Twilio takes them. BadRequest: Twilio would
    refuse it."""
    if to.ring_seconds not in RING_SECONDS:
        raise BadRequest("ring_seconds must be 5 to 600")
    try:
        number = twiml.dial_target(to.number)
        caller_id = twiml.phone_number(to.caller_id) if to.caller_id else ""
    except ValueError:
        raise BadRequest(
            "a target is an E.164 number, such as +14155550100, or sip:user@host"
        ) from None
    try:
        twiml.transfer(number, digits=to.digits)
        twiml.whisper(to.whisper, accept_url="/")
    except ValueError as error:
        raise BadRequest(str(error)) from None
    return replace(to, number=number, caller_id=caller_id)
