"""The contract between a call and its leg: the caller's end of the call.

`MediaLeg` (media_leg.py) is the leg of a call whose audio passes here, on Twilio's
media streams. `SipLeg` (sip_leg.py) is the leg of a SIP call: OpenAI has its audio, it
is transferred and ended by REST requests, and nobody asks for its next step.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from bridge.agent.approvals import Approvals
from bridge.agent.live import CallFacts, LiveCall, Transfer
from bridge.call.stream import IdentifiedPhone
from bridge.core.capabilities import Capabilities
from bridge.core.commands import End, Note
from bridge.core.inputs import Input
from bridge.model.session import SessionOwner, SessionPlan

Refer = Callable[[Transfer], Awaitable[None]]
"""Transfers the caller now, and ends the call. BadRequest: it was refused, and the call
goes on. CallOver: the caller has hung up."""


class SessionControl(Protocol):
    """What a call uses of its agent's session (AgentSession, SipSession). All but `run`
    need the session's connection, and `run` makes it."""

    async def run(self) -> None:
        """Runs the session until it is closed. Exceptions of the user's agent are
        passed on unchanged."""

    @property
    def post(self) -> Callable[[str], None]: ...
    def dial(self, connection: int, seconds: float) -> None: ...
    def switch(self, connection: int) -> None: ...
    def leave(self, connection: int) -> None: ...
    def interrupted(self, item_id: str, content_index: int) -> None: ...
    def heard(self, item_id: str, content_index: int, text: str) -> None: ...
    def model_event(self, text: str) -> None: ...
    def mute(self, on: bool) -> None:
        """Only of a leg without audio."""

    def send_raw(self, event: Mapping[str, Any]) -> bool:
        """False: there is no connection yet."""


class LegOwner(Protocol):
    """What a leg calls on its call. None of these methods waits."""

    def begin(self, facts: CallFacts) -> None:
        """The call begins; only of a leg without a stream, whose `start` is awaited."""

    def feed(self, given: Input) -> None: ...
    def note(self, note: Note) -> None:
        """A note of the leg's own: for the log, the metrics and the listeners."""

    def stream_lost(self) -> None:
        """The connection to the caller is gone; it may come back here, or to another
        instance."""

    def start_task(
        self, work: Coroutine[None, None, None], name: str
    ) -> asyncio.Task[None]:
        """Starts a task that ends with the call. An error in it ends the call."""


class CallLeg(Protocol):
    """The caller's end of one call."""

    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def refer(self) -> Refer | None:
        """None: the call ends first, and its next step is the transfer."""

    def open(self, owner: LegOwner) -> None:
        """Begins to give the call its inputs."""

    def session(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        tasks: asyncio.TaskGroup,
    ) -> SessionControl:
        """The agent's session of this call, not running yet."""

    def send(self, texts: list[str], now: float) -> None:
        """Sends the messages of commands `ToCaller`."""

    def leave_stream(self) -> None:
        """Closes the stream, and lets the call wait for its next one."""

    async def take_over(self, phone: IdentifiedPhone) -> bool:
        """Goes on with a newer stream of the call, until that one has finished. False:
        the leg does not use it."""

    async def close(self, ending: End) -> None:
        """Ends the call at the caller's side. The next step is stored already."""
