"""One phone call on the Realtime Calls API: OpenAI has the audio, the bridge the agent.

The counterpart of call.py for media streams: carries out the commands of sip_talk.py
and the actions of user code, and ends everything with the call. No audio passes here.
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

from bridge.agent import user_code
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
from bridge.model.calls_api import LIMIT_SECONDS, CallGone, CallsApi, CallsApiError
from bridge.model.local_mcp import LocalMcp
from bridge.model.session import SessionPlan
from bridge.model.wire import ModelRefused
from bridge.sip.sip_session import SipSession
from bridge.sip.sip_talk import SipTalk
from bridge.telemetry.log import NoteLog

END_SECONDS = 4.0
"""Limit of the registry request when a call has ended."""

HANG_UP_TRIES = 2
HANG_UP_PAUSE_SECONDS = 2.0
HANG_UP_SECONDS = HANG_UP_TRIES * LIMIT_SECONDS + HANG_UP_PAUSE_SECONDS
"""Limit for ending a call at OpenAI. It runs beside the report of the call's end."""

UNCLEAR_CODES = (None, 1000, 1005, 1006)
"""Close codes (None: not closed) of a control socket that do not tell who ended it.
OpenAI breaks the socket without a close frame (1006) when the caller hangs up; a broken
network looks the same."""

UNAVAILABLE = 503
"""SIP status: the trunk may try another gateway, if it has one."""

NOT_YET = "the model is not there yet"


@dataclass(frozen=True, slots=True)
class SipPlan:
    """The settings of a call, from its route."""

    session: SessionPlan
    rules: Rules = field(default_factory=Rules)
    """`history` and `word` have no effect here: a lost session is not replaced."""
    approval: ApprovalRule = field(default_factory=ApprovalRule)
    route: str = ""


@dataclass(frozen=True, slots=True)
class SipServices:
    """What all SIP calls of an instance share."""

    secret: str = field(repr=False)
    """The webhook's secret: `whsec_...`."""
    api_key: str = field(repr=False)
    rest_url: str
    """Such as https://api.openai.com/v1 (calls_api.rest_url)."""
    registry: Registry
    local_mcp: LocalMcp
    start: StartBeside
    """Starts tasks that may outlive a call by a little: its listeners, the hang-up."""
    plan: Callable[[CallFacts], SipPlan]
    room: Callable[[], bool]
    """False: this instance is full or draining."""
    begin: Callable[[LiveCall], Awaitable[None]]
    """Awaited before a call is accepted; the caller hears ringing meanwhile."""
    ended: Callable[[LiveCall, End, float], None]
    """Called for each call that has ended, with its duration in seconds."""
    pressed: Callable[[LiveCall, str], Awaitable[None]]
    """Carries out the route's action for keys that are in rules.key_actions."""
    see: Callable[[Note], None]
    """Called with every Note, for metrics."""
    admit: Callable[[CallFacts], Awaitable[str | None]]
    """The reached limit for which a call is refused; None: the call is admitted."""
    check_transfer: Callable[[LiveCall, Transfer], None]
    """Raises NotAllowed unless the call may be transferred to this target."""


class _SipCallOver(Exception):
    """Raised when the call has ended, to end its TaskGroup with all tasks in it."""


class SipCall:
    """One SIP call. `run` it once: it leaves no task, socket or registry entry behind.

    It is also the CallControl of its LiveCall and the SipOwner of its session.
    """

    def __init__(
        self,
        facts: CallFacts,
        plan: SipPlan,
        services: SipServices,
        api: CallsApi,
        start_hang_up: StartBeside,
    ) -> None:
        """`start_hang_up` starts the request that ends the call at OpenAI."""
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
        self._start_hang_up = start_hang_up
        self._hanging_up: asyncio.Task[None] | None = None
        self._caller_left = False
        """OpenAI had no such call any more when it was told to hang up."""
        self._lost: Note | None = None
        """How the control socket was lost, if it was lost before the call ended."""
        self._referring = False
        """The API is asked to transfer the call, which ends the control socket."""
        self._left = False
        """The call has ended at OpenAI, too: no hang-up request is needed."""
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

    # --- the course of the call ---

    async def run(self) -> End:
        """Accepts the call and runs it until one side ends it; returns how it ended."""
        self._log.info("call_started", route=self.live.facts.route, kind="sip")
        try:
            async with self._tasks:
                registered = self._services.registry.opened(self._entry)
                self._start(registered, f"{self._call_id} entry")
                self._start(self._converse(), f"{self._call_id} agent")
                self._start(self._keep_time(), f"{self._call_id} clock")
                await self._ended.wait()
                # At once: closing the session takes time, and OpenAI bills the call.
                self._hang_up_at_openai()
                raise _SipCallOver
        except* _SipCallOver:
            pass  # the normal end of a call; self._ending has the cause
        except* Exception as group:
            # A bug of the bridge. It ends this call, not the others.
            self._log.error("call_failed", exc_info=group)
        finally:
            await self._conclude()
        return self._ending

    def end(self, by: str, why: str) -> None:
        """Ends the call, for any side. Only the first end counts."""
        self._obey(self._talk.end(by, why, time.monotonic()))

    @property
    def _entry(self) -> CallEntry:
        # There is no stream, so the call id stands in for the stream's id.
        return CallEntry(self._call_id, self._call_id, self.live.began)

    async def _converse(self) -> None:
        """Runs the agent's session, from the accept to its end."""
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
            # The SDK rejects an event of the model; the error's text quotes the event.
            self._log.error("model_misbehaved", error=type(error).__name__)
            self.end("model", "protocol_error")
        except BaseException as error:
            if not user_code.is_theirs(error):
                raise
            # An error in user code (the agent's function, its instructions): logged
            # with its traceback.
            self._log.exception("agent_failed")
            self.end("bridge", "agent_failed")
        else:
            self.end("model", "closed")

    async def _conclude(self) -> None:
        """Reports the end of the call to all who must know, even if some fail."""
        self.end(self._ending.by, self._ending.why)
        seconds = round(time.monotonic() - self._began, 3)
        self._hang_up_at_openai()
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._services.registry.closed(self._entry, None)
        except (TimeoutError, ConnectionError):
            self._log.warning("call_close_failed")
        if self._lost and self._ending.by == "model":
            await self._decide_who_left(self._lost)
        by, why = self._ending.by, self._ending.why
        self._log.info("call_ended", outcome=f"{by}_{why}", seconds=seconds)
        self.live.emit("call_ended", by=by, why=why, seconds=seconds)
        self.live.end()
        self._listeners.end()
        self._services.ended(self.live, self._ending, seconds)

    async def _decide_who_left(self, lost: Note) -> None:
        """Sets how a call whose control socket was lost has ended. If the API cannot
        tell, the network is broken and the model counts as lost."""
        why, code = lost.data["why"], lost.data["close_code"]
        if why in ("closed", "lost") and code in UNCLEAR_CODES and self._hanging_up:
            await asyncio.wait([self._hanging_up], timeout=LIMIT_SECONDS)
            if self._caller_left:
                self._ending = End("caller", "hung_up")
                return
        self._see(lost)

    def _hang_up_at_openai(self) -> None:
        """Ends the call at OpenAI, where it would go on and cost money: in a task that
        may outlive this call, so that its limit does not delay the report."""
        if not self._left and not self._hanging_up:
            name = f"{self._call_id} hang-up"
            self._hanging_up = self._start_hang_up(self._let_go(), name)

    async def _let_go(self) -> None:
        """Hangs up or rejects the call at OpenAI.

        Also after a lost socket, as the cause need not be the caller's hang-up.
        """
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                if self._agent.accepted or not await self._rejected():
                    await self._hang_up()
        except CallGone as gone:
            self._caller_left = not gone.retried
        except CallsApiError as error:
            self._log.error("sip_hang_up_failed", why=error.why)
        except TimeoutError:
            self._log.error("sip_hang_up_failed", why="TimeoutError")
        except asyncio.CancelledError:
            self._log.error("sip_hang_up_failed", why="shutdown")
            raise

    async def _hang_up(self) -> None:
        for _ in range(HANG_UP_TRIES - 1):
            try:
                return await self._api.hang_up(self._call_id)
            except CallsApiError as error:
                self._log.warning("sip_hang_up_retried", why=error.why)
            await asyncio.sleep(HANG_UP_PAUSE_SECONDS)
        await self._api.hang_up(self._call_id)

    async def _rejected(self) -> bool:
        """Rejects the call. False: it may have been accepted without us knowing."""
        try:
            await self._api.reject(self._call_id, UNAVAILABLE)
        except CallsApiError as error:
            self._log.warning("sip_reject_failed", why=error.why)
            return False
        return True

    # --- called by the session (bridge.sip.sip_session.SipOwner) ---

    def attached(self) -> None:
        self._obey(self._talk.attached(time.monotonic()))

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None:
        self._agent.model_event(text)
        self._obey(self._talk.from_model(event, text, time.monotonic()))

    def model_misread(self, reason: str) -> None:
        self._see(protocol_error("model", reason))

    def model_lost(self, connection: int, why: str, code: int | None) -> None:
        if not self._ended.is_set():
            self._lost = Note("model_gone", {"why": why, "close_code": code})
        # A transfer ends the socket, too; `transfer` gets the API's answer.
        if not self._referring:
            self.end("model", why)

    def model_dialled(self, connection: int) -> None:
        """Never called: SipSession attaches only once."""

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None:
        """Never called: SipSession attaches only once."""

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
        """Carries out commands in order, without waiting for any."""
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
                # The event loop's clock is time.monotonic, too.
                async with asyncio.timeout_at(self._talk.deadline):
                    await self._woken.wait()
            except TimeoutError:
                self._obey(self._talk.tick(time.monotonic()))
            self._woken.clear()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._tasks.create_task(work, name=name)

    # --- called by user code (bridge.agent.live.CallControl) ---

    @property
    def history(self) -> Sequence[HistoryItem]:
        return self._talk.history.items

    def tell(self, role: Role, text: str, *, respond: bool) -> None:
        self._obey(self._talk.tell(role, text, respond))

    def interrupt(self, by: str) -> None:
        self._obey(self._talk.interrupt(by, time.monotonic()))

    def mute(self, on: bool) -> None:
        """The caller is not answered and cannot interrupt (see SipSession.mute)."""
        if not self._agent.mute(on, self._talk.clear_input()):
            raise BadRequest(NOT_YET)

    def send_raw(self, event: Mapping[str, Any]) -> None:
        if event["type"] == "input_audio_buffer.append":
            raise BadRequest("a SIP call takes no audio: OpenAI has the caller's line")
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
        self.end("agent", "hung_up")
        return True

    async def transfer(self, transfer: Transfer) -> bool:
        """Transfers by a SIP REFER: the trunk decides the number that is shown and how
        long it rings. A caller who is not answered does not return to the agent."""
        try:
            self._services.check_transfer(self.live, transfer)
        except NotAllowed:
            self._see(limit_hit("transfer_number"))
            raise
        if transfer.caller_id:
            raise BadRequest("a SIP transfer cannot set the number that is shown")
        if not await self._wait(("agent", "transferred")):
            return False
        self._referring = True
        try:
            await self._refer(transfer.number)
        finally:
            self._referring = False
            if self._lost and not self._left:
                self.end("model", str(self._lost.data["why"]))
        return True

    async def _refer(self, number: str) -> None:
        try:
            await self._api.refer(self._call_id, number)
        except CallGone as gone:
            self._left = True
            if not gone.retried:
                self.end("caller", "hung_up")
                raise CallOver from None
            # An earlier try, whose answer was lost, has transferred the call.
        except CallsApiError as error:
            self._log.error("sip_transfer_failed", why=error.why)
            raise BadRequest("the transfer was refused by the phone line") from None
        self._left = True
        self.end("agent", "transferred")

    async def send_digits(self, digits: str) -> bool:
        raise BadRequest("the Realtime Calls API plays no tones")
