"""A running call, as the user's own code has it: tools, listeners, the control API.

Facts, what was said and heard, events, actions. Knows no socket: what it asks for is
done by its `CallLine`, the call itself (a media stream's or a SIP call's).
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agents.realtime import RealtimeSession

import twiml
from bridge.agent.approvals import Approval, Approvals
from bridge.agent.events import CallEvent, Listener, Listeners
from bridge.core.history import HistoryItem
from bridge.privacy.redaction import Redaction

Role = Literal["user", "system"]

_DIGITS = re.compile("[0-9*#A-Dw]+")
MAX_DIGITS = 64
MAX_TEXT_CHARS = 8000
MAX_MESSAGES = 100
"""Of one caller's: they wait in the report until the call is over."""
THREAD_SECONDS = 5.0
"""A tool's thread waits no longer for the call to do what it asked for."""

RING_SECONDS = range(5, 601)
"""https://www.twilio.com/docs/voice/twiml/dial"""


class BadRequest(ValueError):
    """What was asked for cannot be done; the message says why, without the value."""


class NotAllowed(BadRequest):
    """... by whoever runs the bridge."""


class CallOver(Exception):
    """The call has ended, so nothing can be done with it."""


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known of a call when it begins."""

    call_sid: str
    stream_sid: str = ""
    account_sid: str = ""
    from_number: str = ""
    """As Twilio gives it: E.164, `anonymous`, `client:...` or `sip:...`."""
    to_number: str = ""
    direction: Literal["inbound", "outbound"] = "inbound"
    route: str = ""
    """Name of the route that the call took; empty: none, the deployment's own."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """All <Parameter>s of the TwiML, From and To among them."""

    @classmethod
    def of(cls, call_sid: str, parameters: Mapping[str, str]) -> "CallFacts":
        """From and To come as parameters, for a stream does not name them; so do the
        direction and the route of a call that we placed."""
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
        """Our own number in it."""
        return self.to_number if self.direction == "inbound" else self.from_number

    @property
    def theirs(self) -> str:
        """The number of whoever the agent talks to."""
        return self.from_number if self.direction == "inbound" else self.to_number


@dataclass(frozen=True, slots=True)
class Transfer:
    """Who is dialled in the agent's place."""

    number: str
    """E.164."""
    caller_id: str = ""
    """Whom they see: the caller (empty) or a number of the account."""
    ring_seconds: int = 20
    description: str = ""
    """For the model: what they are called for."""


@dataclass(frozen=True, slots=True)
class Message:
    """Left by the caller for the people behind the agent."""

    text: str
    name: str = ""
    call_back: str = ""


class CallControl(Protocol):
    """The call itself. Nothing waits but where it says so."""

    @property
    def history(self) -> Sequence[HistoryItem]: ...
    def tell(self, role: Role, text: str, *, respond: bool) -> None: ...
    def interrupt(self, by: str) -> None: ...
    def mute(self, on: bool) -> None: ...
    def send_raw(self, event: Mapping[str, Any]) -> None: ...
    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        """Ids that are to go; id -> the text it is to have."""

    async def heard(self) -> bool:
        """Waits until all that the agent said was heard. False: it was interrupted."""

    async def hang_up(self) -> bool:
        """Waits as `heard`, then ends the call. False: interrupted, so it goes on."""

    async def transfer(self, transfer: Transfer) -> bool:
        """As `hang_up`; the caller is put through."""

    async def send_digits(self, digits: str) -> bool:
        """Waits as `heard`, plays the tones, waits until they were heard."""


class LiveCall:
    """One call. Also the context that tools, instructions and guardrails are given."""

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
        """Of the agent in charge."""
        self.session: RealtimeSession | None = None
        """The SDK's own session, as soon as there is one. Its `model` takes listeners
        of yours; its audio does not pass here."""
        self.messages: list[Message] = []
        self.notes: dict[str, Any] = {}
        """Yours: handed on with the report of the call (JSON values)."""
        self.input_tokens = self.output_tokens = 0
        self.cost = 0.0
        """Of the model, in the unit of the prices that the route gives."""
        self.muted = False
        self.transfers: Mapping[str, Transfer] = {}
        """Whom the agent may put the caller through to, by name: the route says."""
        self.redaction = Redaction()
        """What is taken out of all that is kept or handed out; you have it all."""
        self._control = control
        self._listeners = listeners
        self._approvals = approvals
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._ended = False

    # --- what is known ---

    @property
    def call_sid(self) -> str:
        return self.facts.call_sid

    @property
    def history(self) -> list[HistoryItem]:
        """The conversation as the model has it, oldest first: text only, words that
        were heard, tool calls with their results. The newest few hundred items."""
        return list(self._control.history)

    @property
    def transcript(self) -> list[HistoryItem]:
        """What was said: of the history the words of the caller and of the agent."""
        return [item for item in self._control.history if item.spoken]

    @property
    def approvals(self) -> list[Approval]:
        """Tool calls that wait for a yes or no."""
        return self._approvals.pending

    @property
    def over(self) -> bool:
        return self._ended

    # --- events ---

    def on(self, listener: Listener, *types: str) -> Callable[[], None]:
        """Have `listener(event)` called for each event, or for those types only.

        Returns what ends it. Events come in order, one at a time; a listener that is
        slow or raises misses events, and the call goes on. Plain functions run in a
        thread.
        """
        self._check()
        return self._listeners.add(listener, types)

    def emit(self, event_type: str, **data: Any) -> None:
        """An event of your own, to all who listen."""
        self._listeners.emit(CallEvent(event_type, data))

    # --- actions: safe to call from a tool's thread, too, where they do not wait ---

    def tell(self, text: str, *, role: Role = "user", respond: bool = True) -> None:
        """Text into the live call: as if the caller had written it, or (`system`) as a
        word to the agent. With `respond` it is answered, after what is being said."""
        if not text.strip() or len(text) > MAX_TEXT_CHARS:
            raise BadRequest(f"a text has 1 to {MAX_TEXT_CHARS} characters")
        if role not in ("user", "system"):
            raise BadRequest("the role is user or system")
        self._do(lambda: self._control.tell(role, _whole(text), respond=respond))

    def interrupt(self) -> None:
        """Stops the agent at once: what is queued at Twilio is never heard."""
        self._do(lambda: self._control.interrupt("application"))

    def mute(self, on: bool = True) -> None:
        """The agent hears silence in the caller's place."""
        self._do(lambda: self._control.mute(on))
        self.muted = on

    def send_raw(self, event: Mapping[str, Any]) -> None:
        """A Realtime client event, as it is. Audio formats stay the bridge's own."""
        if not isinstance(event.get("type"), str):
            raise BadRequest("a client event has a type")
        self._do(lambda: self._control.send_raw(event))

    def update_history(
        self,
        *,
        remove: Iterable[str] = (),
        correct: Mapping[str, str] | None = None,
    ) -> None:
        """The model forgets items (by id), or remembers other words in their place.

        Only words can be corrected, not tool calls. BadRequest names what is unknown.
        """
        known = {item.id: item for item in self._control.history}
        removed = list(remove)
        corrected = {key: _whole(it) for key, it in (correct or {}).items()}
        if unknown := [it for it in (*removed, *corrected) if it not in known]:
            raise BadRequest(f"no such items in the history: {', '.join(unknown)}")
        if silent := [it for it in corrected if not known[it].spoken]:
            raise BadRequest(f"items without words: {', '.join(silent)}")
        self._do(lambda: self._control.edit_history(removed, corrected))

    async def heard(self) -> bool:
        """Waits until the caller has heard all that was said; False if cut short."""
        self._check()
        return await self._control.heard()

    async def hang_up(self) -> bool:
        """Ends the call once what was said has been heard. False: the caller spoke
        meanwhile, so the call goes on."""
        self._check()
        return await self._control.hang_up()

    async def transfer(
        self, number: str, *, caller_id: str = "", ring_seconds: int = 20
    ) -> bool:
        """Puts the caller through once what was said has been heard. When nobody
        answers they come back to the agent, who is told. False as with `hang_up`.

        NotAllowed: neither does the route name the number (nor `transfers`), nor does
        BRIDGE_TRANSFER_PREFIXES allow it; or `caller_id` is none of ours.
        """
        self._check()
        if ring_seconds not in RING_SECONDS:
            raise BadRequest("ring_seconds is 5 to 600")
        try:
            number = twiml.phone_number(number)
            caller_id = twiml.phone_number(caller_id) if caller_id else ""
        except ValueError:
            raise BadRequest("a phone number is E.164, such as +14155550100") from None
        return await self._control.transfer(Transfer(number, caller_id, ring_seconds))

    async def send_digits(self, digits: str) -> bool:
        """Plays DTMF tones: 0-9 * # A-D, `w` waits half a second. False: cut short."""
        self._check()
        if not _DIGITS.fullmatch(digits) or len(digits) > MAX_DIGITS:
            raise BadRequest(f"digits are 1 to {MAX_DIGITS} of 0-9 * # A-D w")
        return await self._control.send_digits(digits)

    def take_message(self, text: str, *, name: str = "", call_back: str = "") -> None:
        """Keeps a message for the report of the call."""
        self._check()
        if not text.strip():
            raise BadRequest("the message is empty")
        longest = max(len(text), len(name), len(call_back))
        if len(self.messages) >= MAX_MESSAGES or longest > MAX_TEXT_CHARS:
            raise BadRequest("the message is too long, or there are too many")
        text, name, call_back = _whole(text), _whole(name), _whole(call_back)
        self.messages.append(Message(text, name, call_back))
        self.emit("message_taken", text=text, name=name, call_back=call_back)

    async def approve(self, call_id: str, *, always: bool = False) -> None:
        """Lets a tool run that waits for approval. KeyError: none such waits."""
        self._check()
        await self._approvals.approve(call_id, always=always)

    async def reject(
        self, call_id: str, *, always: bool = False, message: str | None = None
    ) -> None:
        """Keeps it from running; the model is told `message`. KeyError as above."""
        self._check()
        await self._approvals.reject(call_id, always=always, message=message)

    # --- the call's own ---

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
        self._loop.call_soon_threadsafe(self._do_for, action, done)
        # The thread waits, and not the call: what cannot be done is told to who asked.
        done.result(THREAD_SECONDS)

    def _do_for(self, action: Callable[[], None], done: Future[None]) -> None:
        try:
            self._check()
            action()
        except Exception as error:
            done.set_exception(error)
        else:
            done.set_result(None)


def _whole(text: str) -> str:
    """Half a character (a lone surrogate) can be sent nowhere: the user's code may
    have cut it, and no call is to end of it."""
    return text.encode(errors="replace").decode()
