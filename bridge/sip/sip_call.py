"""One phone call on the Realtime Calls API: OpenAI has the audio, we have the agent.

What call.py is to a media stream: carries out what sip_talk.py decides, does what is
asked of a call, and sees to it that all of it ends. No audio passes here.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from agents.exceptions import ModelBehaviorError
from agents.realtime import RealtimeSessionEvent, RealtimeToolApprovalRequired
from pydantic import ValidationError

from bridge.agent.approvals import ApprovalRule, Approvals
from bridge.agent.events import CallEvent, Listeners, call_event
from bridge.agent.events import Start as StartBeside
from bridge.agent.live import (
    BadRequest,
    CallFacts,
    CallOver,
    LiveCall,
    NotAllowed,
    Role,
    Transfer,
)
from bridge.core import realtime_events
from bridge.core.commands import (
    Command,
    End,
    Interrupted,
    Note,
    Pressed,
    ToModel,
    WaitDone,
    limit_hit,
    protocol_error,
)
from bridge.core.history import HistoryItem
from bridge.core.rules import Rules
from bridge.fleet import CallEntry, Registry
from bridge.model.calls_api import CallGone, CallsApi, CallsApiError
from bridge.model.local_mcp import LocalMcp
from bridge.model.session import SessionPlan
from bridge.model.wire import ModelRefused
from bridge.sip.sip_session import SipSession
from bridge.sip.sip_talk import SipTalk
from bridge.telemetry.log import NoteLog

END_SECONDS = 4.0
"""For what must still be said to the API and the registry when a call is over."""

UNAVAILABLE = 503
"""SIP: another gateway, where the trunk has one, may be tried."""

NOT_YET = "the model is not there yet"


@dataclass(frozen=True, slots=True)
class SipPlan:
    """How a call is to be led, as its route says."""

    session: SessionPlan
    rules: Rules = field(default_factory=Rules)
    """`history` and `word` have no meaning here: a lost session is not replaced."""
    approval: ApprovalRule = field(default_factory=ApprovalRule)
    route: str = ""


@dataclass(frozen=True, slots=True)
class SipServices:
    """What all SIP calls of an instance share."""

    secret: str = field(repr=False)
    """Of the webhook: `whsec_...`."""
    api_key: str = field(repr=False)
    rest_url: str
    """Such as https://api.openai.com/v1 (calls_api.rest_url)."""
    registry: Registry
    local_mcp: LocalMcp
    start: StartBeside
    """Runs what may outlive a call a little: its listeners."""
    plan: Callable[[CallFacts], SipPlan]
    room: Callable[[], bool]
    """False: full, or shutting down."""
    begin: Callable[[LiveCall], Awaitable[None]]
    """Waited for before a call is accepted: the caller hears it ring."""
    ended: Callable[[LiveCall, End, float], None]
    """Told of a call that is over, and how many seconds it was."""
    pressed: Callable[[LiveCall, str], Awaitable[None]]
    """Does what the route says of an input that is among rules.key_actions."""
    see: Callable[[Note], None]
    """Told of whatever is worth seeing: metrics."""
    admit: Callable[[CallFacts], Awaitable[str | None]]
    """The limit, known to be reached, that keeps a call out; None: it may."""
    check_transfer: Callable[[LiveCall, Transfer], None]
    """NotAllowed unless the call may be put through there."""


class _SipCallOver(Exception):
    """The call has ended; ends the TaskGroup and all that is in it."""


class SipCall:
    """`run` once. Returns how it ended; leaves no task, no socket, no entry behind.

    Also the CallLine of its LiveCall, and the SipLine of its session.
    """

    def __init__(
        self, facts: CallFacts, plan: SipPlan, services: SipServices, api: CallsApi
    ) -> None:
        sid, now = facts.call_sid, time.monotonic()
        self._call_id = sid
        self._services = services
        self._api = api
        self._began = now
        self._log = structlog.get_logger().bind(call_sid=sid)
        self._notes = NoteLog(self._log)
        self._talk = SipTalk(plan.rules, now)
        self._tasks = asyncio.TaskGroup()
        self._woken = asyncio.Event()
        self._ended = asyncio.Event()
        self._ending = End("bridge", "failed")
        self._leaving: End | None = None
        """The API is being asked to end the call, or to put it through."""
        self._left = False
        """The call itself is over: nobody needs to hang up."""
        self._waits: dict[int, asyncio.Future[bool | None]] = {}
        self._numbers = itertools.count(1)
        self._listeners = Listeners(services.start, sid)
        self._approvals = Approvals(plan.approval, self._start, sid, self.tool_running)
        self.live = LiveCall(facts, self, self._listeners, self._approvals)
        self._agent = SipSession(
            plan.session,
            self.live,
            self,
            self._approvals,
            services.local_mcp,
            self._tasks,
            api,
        )

    # --- the story ---

    async def run(self) -> End:
        """Accepts the call and carries it until one side ends it."""
        self._log.info("call_started", route=self.live.facts.route, kind="sip")
        try:
            async with self._tasks:
                registered = self._services.registry.opened(self._entry)
                self._start(registered, f"{self._call_id} entry")
                self._start(self._converse(), f"{self._call_id} agent")
                self._start(self._keep_time(), f"{self._call_id} clock")
                await self._ended.wait()
                raise _SipCallOver
        except* _SipCallOver:
            pass  # the one way in which a call ends; how is in self._ending
        except* Exception as group:
            # A bug of ours. It ends this call, not the others.
            self._log.error("call_failed", exc_info=group)
        finally:
            await self._conclude()
        return self._ending

    def end(self, by: str, why: str) -> None:
        """One side is gone, or the bridge ends the call. Only the first one counts."""
        self._obey(self._talk.end(by, why, time.monotonic()))

    @property
    def _entry(self) -> CallEntry:
        # There is no stream; the registry wants a name of its own for each.
        return CallEntry(self._call_id, self._call_id, self.live.began)

    async def _converse(self) -> None:
        """The agent's session, from the accept to its end."""
        try:
            await self._services.begin(self.live)
            await self._agent.run()
        except CallGone:
            self._left = True
            self.end("caller", "hung_up")
        except (CallsApiError, ModelRefused) as refused:
            self._see(Note("model_refused", {"why": refused.why}))
            self.end("model", "refused")
        except (ValidationError, ModelBehaviorError) as error:
            # The model sent what the SDK cannot take; the text of the error quotes it.
            self._log.error("model_misbehaved", error=type(error).__name__)
            self.end("model", "protocol_error")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise  # by us: the call is over
            self._log.error("agent_failed", error="CancelledError")
            self.end("bridge", "agent_failed")
        except (Exception, SystemExit):
            # The user's code: their function, their instructions. Theirs to mend, so
            # all of it is logged.
            self._log.exception("agent_failed")
            self.end("bridge", "agent_failed")
        else:
            self.end("model", "closed")

    async def _conclude(self) -> None:
        """All that must be said when a call is over, whatever happens meanwhile."""
        self.end(self._ending.by, self._ending.why)
        by, why = self._ending.by, self._ending.why
        seconds = round(time.monotonic() - self._began, 3)
        self._log.info("call_ended", outcome=f"{by}_{why}", seconds=seconds)
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._services.registry.closed(self._entry, None)
                if not self._left:
                    await self._let_go()
        except (TimeoutError, ConnectionError):
            self._log.warning("close_late")
        self.live.emit("call_ended", by=by, why=why, seconds=seconds)
        self.live.end()
        self._listeners.end()
        self._services.ended(self.live, self._ending, seconds)

    async def _let_go(self) -> None:
        """A call lives on at OpenAI without us, so we hang up; also where its socket
        was lost, for that need not have been the caller."""
        try:
            if self._agent.accepted or not await self._rejected():
                await self._api.hang_up(self._call_id)
        except CallGone:
            return
        except CallsApiError as error:
            self._log.error("sip_hang_up_failed", why=error.why)

    async def _rejected(self) -> bool:
        """False: it may have been accepted, though we did not hear of it."""
        try:
            await self._api.reject(self._call_id, UNAVAILABLE)
        except CallsApiError as error:
            self._log.warning("sip_reject_failed", why=error.why)
            return False
        return True

    # --- what the session tells (bridge.sip.sip_session.SipLine) ---

    def attached(self) -> None:
        self._obey(self._talk.attached(time.monotonic()))

    def model_event(self, event: realtime_events.ServerEvent, text: str) -> None:
        self._agent.model_event(text)
        self._obey(self._talk.from_model(event, text, time.monotonic()))

    def model_misread(self, reason: str) -> None:
        self._see(protocol_error("model", reason))

    def model_lost(self, why: str, code: int | None) -> None:
        """The caller's hang-up is a socket that breaks without a close frame (1006)."""
        if self._leaving:
            self._left = True
            self.end(self._leaving.by, self._leaving.why)
        elif why in ("closed", "lost") and code in (1000, 1006):
            self.end("caller", "hung_up")
        else:
            self._see(Note("model_gone", {"why": why, "close_code": code}))
            self.end("model", why)

    def model_dialled(self) -> None:
        """Never: attached to once (SipSession)."""

    def model_not_dialled(self, why: str, fatal: bool) -> None:
        """Never, as above."""

    def model_stuck(self, why: str) -> None:
        self.end("model", why)

    def model_limit(self, limit: str) -> None:
        self._see(limit_hit(limit))

    def send_to_model(self, text: str) -> None:
        self._agent.post(text)

    def tool_running(self, change: int, call_id: str = "") -> None:
        self._obey(self._talk.busy(change, time.monotonic()))

    def tool_failed(self, tool: str, error: str) -> None:
        self._see(Note("tool_failed", {"tool": tool, "error": error}))

    def interrupt_agent(self, by: str, response_id: str | None) -> None:
        self._obey(self._talk.interrupt(by, time.monotonic(), response_id))

    def ask(self) -> None:
        self._obey(self._talk.ask())

    def session_event(self, event: RealtimeSessionEvent) -> None:
        if isinstance(event, RealtimeToolApprovalRequired):
            self._approvals.ask_for(event, self.live.session)
        if self._listeners.wants(event.type):
            self._listeners.emit(call_event(event))

    # --- carrying out ---

    def _obey(self, commands: list[Command]) -> None:
        """Carries commands out, in order, without waiting for any."""
        for command in commands:
            match command:
                case ToModel(text):
                    self._agent.post(text)
                case Note():
                    self._see(command)
                case Interrupted(item_id, _):
                    self._agent.interrupted(item_id)
                case WaitDone(number, done):
                    wait = self._waits.pop(number)
                    if not wait.done():
                        wait.set_result(done)
                case Pressed(keys):
                    self._start(self._act(keys), f"{self._call_id} keys")
                case End():
                    self._ending = command
                    self._ended.set()
        self._woken.set()

    def _see(self, note: Note) -> None:
        self._notes.note(note)
        self._services.see(note)
        data = {**note.data, **note.private}
        self._listeners.emit(CallEvent(note.name, data))
        if note.name == "usage":
            self.live.input_tokens += int(note.data["input_tokens"] or 0)
            self.live.output_tokens += int(note.data["output_tokens"] or 0)
            self.live.cost += float(note.data["cost"] or 0)
        if note.name == "said" and note.data["cut"]:
            self._agent.heard(str(note.data["item"]), note.private["heard"])
            self._listeners.emit(CallEvent("audio_interrupted", data))

    async def _act(self, keys: str) -> None:
        try:
            await self._services.pressed(self.live, keys)
        except (BadRequest, CallOver) as error:
            self._log.warning("key_action_failed", error=type(error).__name__)

    async def _keep_time(self) -> None:
        while True:
            try:
                # The loop's clock is time.monotonic, too.
                async with asyncio.timeout_at(self._talk.deadline):
                    await self._woken.wait()
            except TimeoutError:
                self._obey(self._talk.tick(time.monotonic()))
            self._woken.clear()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._tasks.create_task(work, name=name)

    # --- what the user's code asks for (bridge.agent.live.CallLine) ---

    @property
    def history(self) -> Sequence[HistoryItem]:
        return self._talk.history.items

    def tell(self, role: Role, text: str, *, respond: bool) -> None:
        self._obey(self._talk.tell(role, text, respond))

    def interrupt(self, by: str) -> None:
        self._obey(self._talk.interrupt(by, time.monotonic()))

    def mute(self, on: bool) -> None:
        """Nobody is answered or interrupted any more (SipSession.mute says how)."""
        if not self._agent.mute(on, self._talk.clear_input()):
            raise BadRequest(NOT_YET)

    def send_raw(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "input_audio_buffer.append":
            raise BadRequest("the caller's audio of a SIP call does not pass here")
        if not self._agent.send_raw(event):
            raise BadRequest(NOT_YET)

    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        self._obey(self._talk.edit(removed, corrected))

    async def heard(self) -> bool:
        return await self._wait(None)

    async def _wait(self, then: tuple[str, str] | None) -> bool:
        number = next(self._numbers)
        wait: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        self._waits[number] = wait
        self._obey(self._talk.when_heard(number, time.monotonic(), then))
        try:
            done = await wait
        except asyncio.CancelledError:
            self._talk.give_up(number)
            self._waits.pop(number, None)
            raise
        if done is None:
            raise CallOver
        return done

    async def hang_up(self) -> bool:
        if not await self._wait(("agent", "hung_up")):
            return False
        self._leaving = End("agent", "hung_up")
        try:
            await self._api.hang_up(self._call_id)
            self._left = True
        except CallGone:
            self._left = True
        except CallsApiError as error:
            # It is tried once more when all of the call is ended.
            self._log.warning("sip_hang_up_failed", why=error.why)
        self.end("agent", "hung_up")
        return True

    async def transfer(self, transfer: Transfer) -> bool:
        """A SIP REFER: whom the dialled one sees, and how long it rings, is the trunk's
        business. Who is not answered does not come back."""
        try:
            self._services.check_transfer(self.live, transfer)
        except NotAllowed:
            self._see(limit_hit("transfer_number"))
            raise
        if transfer.caller_id:
            raise BadRequest("a SIP transfer cannot choose the number that is shown")
        if not await self._wait(("agent", "transferred")):
            return False
        self._leaving = End("agent", "transferred")
        try:
            await self._api.refer(self._call_id, transfer.number)
        except CallGone:
            self._left = True
            self.end("caller", "hung_up")
            raise CallOver from None
        except CallsApiError as error:
            self._leaving = None
            self._log.error("sip_transfer_failed", why=error.why)
            raise BadRequest("the transfer was refused by the phone line") from None
        self._left = True
        self.end("agent", "transferred")
        return True

    async def send_digits(self, digits: str) -> bool:
        raise BadRequest("the Realtime Calls API plays no tones")
