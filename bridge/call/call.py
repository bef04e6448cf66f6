"""One phone call. READ THIS FILE FIRST.

A call has two ends. The caller's end is Twilio's media stream (stream.py). The agent's
end is a session on a model (model/session.py). `Call.run` is the whole call:

- Twilio's `start` message names the call. The call then gets its route, its log, its
  trace and its entry in the registry (`_start`).
- `_run_agent` reads what is stored about the call and runs the agent's session.
- Every message of either end, every request of the user's code and every timer is an
  input of the pure state machine core/conversation.py. It answers with commands, and
  `_obey` carries them out.
- When one end ends the call, `_store_next_step_and_close` stores what Twilio must do
  next and closes the stream. `_conclude` ends the rest.

Either end may be lost and replaced while the call runs: a new stream (`take_over`), a
new model connection (model/wire.py). This module knows no aiohttp, websockets or redis.
"""

import asyncio
import base64
import itertools
import math
import time
from collections.abc import (
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from typing import Any

import structlog
from agents.exceptions import ModelBehaviorError
from agents.realtime import (
    RealtimeSessionEvent,
    RealtimeToolApprovalRequired,
)
from pydantic import ValidationError

from bridge.agent import user_code
from bridge.agent.approvals import Approvals
from bridge.agent.events import Listeners, call_event, note_events, session_note
from bridge.agent.live import (
    BadRequest,
    CallFacts,
    CallOver,
    LiveCall,
    Message,
    NotAllowed,
    Role,
    Transfer,
)
from bridge.app.routes import HangUpAction, Route, TellAction
from bridge.app.services import Services, rules_for
from bridge.audio import g711
from bridge.call.checkpoint import Checkpoint
from bridge.call.stream import Phone, Stream
from bridge.core import ProtocolError, realtime_events, twilio_messages
from bridge.core.commands import (
    CloseConnection,
    Command,
    Dial,
    End,
    Interrupted,
    Note,
    Pressed,
    Started,
    Switch,
    ToCaller,
    ToModel,
    WaitDone,
    limit_hit,
)
from bridge.core.conversation import Conversation
from bridge.core.history import HistoryItem
from bridge.core.inputs import (
    Ask,
    Dialled,
    Edit,
    EndCall,
    FromModel,
    FromPhone,
    GiveUpWait,
    HandOver,
    Input,
    Interrupt,
    Misread,
    ModelLost,
    MuteCaller,
    NotDialled,
    Play,
    Send,
    SetRules,
    StreamLost,
    Tell,
    Tick,
    ToolRunning,
    WhenHeard,
)
from bridge.fleet import CallEntry, NextStep, Then
from bridge.fleet.plan import AnsweredBy, Plan
from bridge.fleet.snapshot import CallSnapshot, SavedMessage, moment
from bridge.model.session import AgentSession, SessionPlan
from bridge.records.report import report_of
from bridge.telemetry.log import NoteLog
from bridge.telemetry.trace import Trace

CLOSE_SECONDS = 1.0
"""Time limit for storing the next step and closing the stream when a call is over."""

RETURN_SECONDS = 1200.0
"""How long the snapshot is kept during a transfer, in seconds. The other phone may ring
for 600 s at most."""

MAX_TRANSFERS = 5
"""Limit per call, over all its streams: it stops an agent that transfers in a
circle."""

MEASURE_EVERY = 10
"""One of this many caller frames (there are 50 a second) is timed, to keep the cost
low."""


class _CallEnded(Exception):
    """Raised in the call's TaskGroup when the call has ended; cancels all its tasks."""


class Call:
    """`run` once. It returns how the call ended, and leaves no task, socket or registry
    entry behind."""

    def __init__(
        self, phone: Phone, services: Services, connected_at: float | None = None
    ) -> None:
        """`connected_at`: monotonic time at which the socket was accepted; now if
        omitted."""
        now = time.monotonic() if connected_at is None else connected_at
        self._phone = phone
        self._stream: Stream | None = None
        self._services = services
        self._conversation = Conversation(now=now, bounds=services.bounds)
        self._log = structlog.get_logger()
        self._notes = NoteLog(self._log)
        self._trace = (
            Trace(now, self._trace_lost, services.bounds)
            if services.record_dir
            else None
        )
        self._tasks = asyncio.TaskGroup()
        self._unnamed_tasks: list[asyncio.Task[None]] = []
        """Tasks that were started before the call's SID was known; they are renamed
        then."""
        self._agent: AgentSession | None = None
        self._live: LiveCall | None = None
        self._listeners: Listeners | None = None
        self._approvals: Approvals | None = None
        self._route = Route()
        self._plan = Plan()
        self._transfer: Transfer | None = None
        self._transfers = 0
        """Transfers of this call until now, those in earlier streams included."""
        self._snapshot = CallSnapshot()
        self._answered_by: AnsweredBy | None = None
        self._rules_known = False
        self._closing = False
        self._pending_waits: dict[
            int, tuple[asyncio.Future[bool | None], Transfer | None]
        ] = {}
        self._wait_numbers = itertools.count(1)
        self._entry: CallEntry | None = None
        self._registration: asyncio.Task[None] | None = None
        """Writes the call's entry into the registry. It must be done before the entry
        is closed."""
        self._registering = False
        self._checkpoint: Checkpoint | None = None
        self._identified = asyncio.Event()
        """Set when the call's SID is known, or when the call has ended without one."""
        self._ended = asyncio.Event()
        self._ending = End("bridge", "failed")
        self._connected_at = now
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._timer_due = asyncio.Event()
        self._frames_sent = 0

    # --- from start to end ---

    async def run(self) -> End:
        """Carries the call until one side ends it."""
        self._services.metrics.calls_active.inc()
        try:
            async with self._tasks:
                self._stream = self._new_stream(self._phone)
                self._spawn(self._run_timer(), "clock")
                self._set_timer(time.monotonic())
                await self._ended.wait()
                # Done before the tasks end, because ending them takes time and the
                # caller waits.
                await self._store_next_step_and_close()
                raise _CallEnded
        except* _CallEnded:
            pass  # every call ends this way; self._ending says why
        except* Exception as group:
            # A bug of the bridge. It ends this call and not the process. The caller
            # hears the apology.
            self._log.error("call_failed", exc_info=group)
        finally:
            await self._conclude()
        return self._ending

    @property
    def call_sid(self) -> str | None:
        """None until Twilio's `start` has arrived."""
        return self._entry.call_sid if self._entry else None

    @property
    def live(self) -> LiveCall | None:
        """The call as the user's code sees it; None until `start` has arrived."""
        return self._live

    def end(self, why: str) -> None:
        """Ends the call for a reason of the bridge's own, such as a shutdown."""
        self._feed(EndCall("bridge", why))

    @property
    def fallback_number(self) -> str:
        """The number that Twilio dials when the agent fails; empty if there is none."""
        return self._route.fallback or self._services.fallback_number

    @property
    def expects_next_request(self) -> bool:
        """For a call that has ended: Twilio will ask `/voice/next` for the next
        step."""
        return self._next_step() is not None

    @property
    def awaits_new_stream(self) -> bool:
        """The stream broke; the caller may return on a new stream."""
        return self._conversation.stream_is_lost

    def taken_over(self) -> None:
        """Another instance has a newer stream of this call and continues the call."""
        if self._registering:
            return  # the newer stream is this instance's own
        self._feed(EndCall("bridge", TAKEN_OVER))

    def hand_over(self) -> None:
        """Ends the call here in a quiet moment, so that another instance can resume
        it."""
        self._feed(HandOver())

    async def take_over(self, phone: Phone) -> bool:
        """Continues the call on a newer stream and closes the older one. Returns when
        the newer stream has finished. False: the call has ended, so it does not use the
        stream."""
        await self._identified.wait()
        if self._ended.is_set() or self._stream is None:
            return False
        older = self._stream
        older.stop()
        self._feed(StreamLost())
        stream = self._stream = self._new_stream(phone)
        await stream.finished.wait()
        return True

    def _new_stream(self, phone: Phone) -> Stream:
        on_sent = self._services.metrics.model_to_caller.observe
        send_seconds = self._services.limits.send_seconds
        return Stream(phone, self, self._spawn, on_sent, send_seconds)

    def answered_by(self, who: AnsweredBy) -> None:
        """Result of Twilio's answering-machine detection (outbound calls only). Twilio
        may report it more than once. A result that comes before the call's plan is
        known is ignored here: `_prepare` reads it again from the registry."""
        if self._answered_by or not self._rules_known:
            return
        self._answered_by = who
        self._handle_note(Note("answered_by", {"who": who.value}))
        if not who.is_machine:
            return
        if self._plan.machine == "hang_up":
            self._feed(EndCall("bridge", "machine"))
        elif self._plan.machine == "message":
            self._feed(Interrupt("machine"))
            text = machine_instruction(self._plan.message)
            self._feed(Tell("system", text, True))
            self._start_wait(("agent", "message_left"), stoppable=False)

    # --- called by the stream (bridge.call.stream.StreamOwner) ---

    def stream_invalid(self, reason: str) -> None:
        self._caller_misread(reason)
        self._feed(EndCall("caller", "protocol_error"))

    def stream_closed(self) -> None:
        self._feed(StreamLost())
        if self._checkpoint and not self._ended.is_set():
            # Twilio asks for the next step at once, and any instance may have to
            # answer.
            self._spawn(self._save_checkpoint(self._checkpoint), "checkpoint")

    def stream_stuck(self) -> None:
        self._handle_note(limit_hit("phone_slow"))

    def _caller_misread(self, reason: str) -> None:
        if limit := LIMITS.get(reason):
            self._handle_note(limit_hit(limit))
        self._feed(Misread("caller", reason))

    def stream_message(self, text: str | bytes) -> None:
        try:
            if isinstance(text, bytes):
                raise ProtocolError("binary message")
            message = twilio_messages.decode(text)
        except ProtocolError as error:
            self._caller_misread(error.reason)
            return
        self._feed(FromPhone(message))

    async def _run_agent(self, live: LiveCall, approvals: Approvals) -> None:
        """Runs the agent's session, from its start to its end."""
        services = self._services
        try:
            snapshot = await self._prepare(live)
            plan = SessionPlan(
                source=services.source_of(self._route),
                target=services.target,
                settings=self._route.session,
                agent_name=snapshot.agent_name,
                resumed=bool(snapshot.stream_count),
                tool_seconds=self._route.tool_seconds,
            )
            self._agent = AgentSession(
                plan,
                live,
                self,
                approvals,
                services.local_mcp,
                self._tasks,
                self._sent_to_model,
            )
            await self._agent.run()
        except (ValidationError, ModelBehaviorError) as error:
            # The model sent something that the SDK rejects. The error's text quotes it,
            # so only the error's type is logged.
            self._log.error("model_misbehaved", error=type(error).__name__)
            self._feed(EndCall("model", "protocol_error"))
        except BaseException as error:
            if not user_code.is_theirs(error):
                raise
            # A bug in the user's code (a function, the instructions). The user must fix
            # it, so the whole traceback is logged.
            self._log.exception("agent_failed")
            self._feed(EndCall("bridge", "agent_failed"))
        else:
            self._feed(EndCall("model", "closed"))

    async def _prepare(self, live: LiveCall) -> CallSnapshot:
        """Collects what the session needs: the call's plan and the snapshot of its
        earlier streams. Runs the route's `on_call` function."""
        sid, services, registry = live.call_sid, self._services, self._services.registry
        # Concurrently: each read may wait for a registry that is going down.
        plan, talk = await asyncio.gather(
            registry.get(f"plan:{sid}"), registry.get(f"snapshot:{sid}")
        )
        self._plan, snapshot = Plan.read(plan), CallSnapshot.read(talk)
        if snapshot.stream_count:
            ended = await registry.get(f"stream_ended:{sid}")
            snapshot = snapshot.as_of(moment(ended))
            self._restore(live, snapshot)
        self._snapshot, self._transfers = snapshot, snapshot.transfer_count
        rules = rules_for(
            self._route,
            self._greeting(),
            snapshot,
            services.session_seconds,
            services.ceilings,
        )
        self._feed(SetRules(rules))
        self._rules_known = True
        # Created only now, because a snapshot that is written from now on must contain
        # the one that was read.
        self._checkpoint = Checkpoint(
            registry, sid, self._version, self._take_snapshot, self._route.redact
        )
        if registry.shared:
            self._spawn(self._checkpoint.run(), f"{sid} checkpoint")
        await services.begin(self._route, live)
        if who := await AnsweredBy.of(registry, sid):
            self.answered_by(who)
        return snapshot

    def _restore(self, live: LiveCall, snapshot: CallSnapshot) -> None:
        """Restores the state of the call's earlier streams, of this instance or
        another."""
        live.began -= snapshot.call_seconds
        live.cost = snapshot.cost
        live.input_tokens = snapshot.input_tokens
        live.output_tokens = snapshot.output_tokens
        live.notes.update(snapshot.notes)
        live.messages += [
            Message(it.text, it.name, it.call_back) for it in snapshot.messages
        ]
        self._handle_note(Note("call_resumed", {"why": snapshot.ended_as}))

    async def _save_checkpoint(self, checkpoint: Checkpoint) -> None:
        await checkpoint.keep()

    def _version(self) -> object:
        live = self._live
        return self._conversation.version, live and (
            live.agent_name,
            len(live.messages),
        )

    def _take_snapshot(self) -> CallSnapshot:
        """The call's state until now, for the instance that resumes it."""
        live, snapshot, now = self._live, self._snapshot, time.monotonic()
        assert live is not None, "a call is identified before its first snapshot"
        return CallSnapshot(
            history=tuple(self._conversation.history.items),
            playing=tuple(self._conversation.playing(now)),
            taken_at=time.time(),
            stream_count=snapshot.stream_count + 1,
            handed_over=self._ending.why == "handed_over",
            unnoticed=self._conversation.ended_quietly
            and self._ending.why == "handed_over",
            agent_name=live.agent_name or snapshot.agent_name,
            parameters=dict(live.facts.parameters),
            call_seconds=snapshot.call_seconds + now - self._connected_at,
            cost=live.cost,
            input_tokens=live.input_tokens,
            output_tokens=live.output_tokens,
            transfer_count=self._transfers,
            messages=tuple(
                SavedMessage(it.text, it.name, it.call_back) for it in live.messages
            ),
            notes=live.notes,
        )

    def _greeting(self) -> str | None:
        """The plan's greeting, else the route's, else that of the settings."""
        own, services = self._plan.greeting, self._services
        return own or None if own is not None else services.greeting_of(self._route)

    async def _conclude(self) -> None:
        """Ends what is left of the call, however it ended: timer, trace, metrics, log,
        registry entry, stream, the user's listeners and the report."""
        if self._timer:
            self._timer.cancel()
        if self._trace:
            self._trace.close()
        self._identified.set()
        self._ended.set()  # also if the call failed: `take_over` then returns False
        outcome = f"{self._ending.by}_{self._ending.why}"
        self._services.metrics.calls_active.dec()
        self._services.metrics.calls.labels(outcome).inc()
        seconds = round(time.monotonic() - self._connected_at, 3)
        self._log.info("call_ended", outcome=outcome, seconds=seconds)
        if self._entry:
            moved = self._ending.why in MOVED_AWAY
            self._services.quotas.ended(self._entry.call_sid, goes_on=moved)
        await self._store_next_step_and_close()
        if self._live:
            self._report_end(self._live, self._snapshot.call_seconds + seconds)

    async def _store_next_step_and_close(self) -> None:
        """Stores what Twilio must do next, then closes the stream: Twilio asks
        `/voice/next`, of any instance, as soon as the stream is closed."""
        if self._closing:
            return
        self._closing = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                try:
                    if self._entry:
                        await self._store_next_step(self._entry)
                finally:
                    if self._stream:
                        await self._stream.close()
        except TimeoutError:
            self._log.warning("stream_close_failed")

    async def _store_next_step(self, entry: CallEntry) -> None:
        step = self._next_step()
        if self._registration:
            await self._registration
        if self._checkpoint and self._ending.why != TAKEN_OVER:
            if step and step.then is Then.TRANSFER:
                self._transfers += 1
                await self._checkpoint.keep(RETURN_SECONDS)
            elif self._will_resume:
                await self._checkpoint.keep()
            else:
                await self._checkpoint.drop()
        await self._services.registry.closed(entry, step)

    @property
    def _will_resume(self) -> bool:
        """The stream has ended, but the call goes on, or may go on, with the agent."""
        return (self._ending.by, self._ending.why) in RESUMABLE_ENDS

    def _next_step(self) -> NextStep | None:
        """The answer to Twilio's request for the next step; None if Twilio will not
        ask."""
        by, why = self._ending.by, self._ending.why
        if (by, why) in (("caller", "hung_up"), ("bridge", TAKEN_OVER)):
            return None
        if self._will_resume:
            return NextStep(Then.RESUME)
        language = self._route.language or ""
        if self._transfer and (by, why) == ("agent", "transferred"):
            to = self._transfer
            return NextStep(
                Then.TRANSFER, to.number, to.caller_id, to.ring_seconds, language
            )
        if by == "agent" or why in NO_APOLOGY_ENDS:
            return NextStep(Then.HANG_UP)
        # The caller did not end the call and may still be there: the caller hears an
        # apology, not silence.
        return NextStep(
            Then.SORRY,
            self.fallback_number,
            language=language,
            text=self._route.sorry or "",
        )

    def _report_end(self, live: LiveCall, seconds: float) -> None:
        """Tells the user's listeners that the call ended, and delivers the report. A
        call that another instance continues is reported by that instance."""
        by, why = self._ending.by, self._ending.why
        live.emit("call_ended", by=by, why=why, seconds=seconds)
        live.end()
        if self._listeners:
            self._listeners.end()
        if why not in MOVED_AWAY:
            self._services.deliver_report(
                self._route, report_of(live, by, why, seconds)
            )

    # --- called by the agent's session (bridge.model.session.SessionOwner) ---

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None:
        if not isinstance(event, realtime_events.AudioDelta) and self._agent:
            self._agent.model_event(text)
        if not isinstance(event, realtime_events.Other):
            self._feed(FromModel(connection, event))

    def model_misread(self, reason: str) -> None:
        self._feed(Misread("model", reason))

    def model_dialled(self, connection: int) -> None:
        self._feed(Dialled(connection))

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None:
        self._feed(NotDialled(connection, why, fatal))

    def model_lost(self, connection: int, why: str, code: int | None) -> None:
        self._handle_note(Note("model_gone", {"why": why, "close_code": code}))
        self._feed(ModelLost(connection, why))

    def model_stuck(self, why: str) -> None:
        self._feed(EndCall("model", why))

    def model_limit(self, limit: str) -> None:
        self._handle_note(limit_hit(limit))

    def send_to_model(self, text: str) -> None:
        self._feed(Send(text))

    def interrupt_agent(self, by: str, response_id: str | None) -> None:
        self._feed(Interrupt(by, response_id))

    def ask(self) -> None:
        self._feed(Ask())

    def tool_running(self, change: int, call_id: str = "") -> None:
        self._feed(ToolRunning(change, call_id))

    def tool_failed(self, tool: str, error: str) -> None:
        self._handle_note(Note("tool_failed", {"tool": tool, "error": error}))

    def session_event(self, event: RealtimeSessionEvent) -> None:
        note = session_note(event)
        if note:
            self._notes.note(note)
            if self._trace:
                self._trace.session(note, time.monotonic())
        if isinstance(event, RealtimeToolApprovalRequired):
            assert self._approvals and self._live, "a session starts after `start`"
            self._approvals.ask_for(event, self._live.session)
        if self._listeners and self._listeners.wants(event.type):
            self._listeners.emit(call_event(event))

    # --- called by the user's code (bridge.agent.live.CallControl) ---

    @property
    def history(self) -> Sequence[HistoryItem]:
        return self._conversation.history.items

    def tell(self, role: Role, text: str, *, respond: bool) -> None:
        self._feed(Tell(role, text, respond))

    def interrupt(self, by: str) -> None:
        self._feed(Interrupt(by))

    def mute(self, on: bool) -> None:
        self._feed(MuteCaller(on))

    def send_raw(self, event: Mapping[str, Any]) -> None:
        if self._agent is None or not self._agent.send_raw(event):
            raise BadRequest("the model is not connected yet")

    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        self._feed(Edit(tuple(removed), dict(corrected)))

    async def heard(self) -> bool:
        return await self._wait_until_heard(None)

    async def hang_up(self) -> bool:
        return await self._end_when_heard(("agent", "hung_up"), None)

    async def transfer(self, transfer: Transfer) -> bool:
        assert self._live, "only a call with a LiveCall is asked"
        try:
            self._services.check_transfer(self._route, self._live, transfer)
        except NotAllowed:
            self._handle_note(limit_hit("transfer_number"))
            raise
        if self._transfers >= MAX_TRANSFERS:
            raise BadRequest(f"a call can be transferred {MAX_TRANSFERS} times at most")
        return await self._end_when_heard(("agent", "transferred"), transfer)

    async def send_digits(self, digits: str) -> bool:
        if not await self._wait_until_heard(None):
            return False
        tones = base64.b64encode(g711.key_tones(digits)).decode()
        self._feed(Play(tones))
        # Not stoppable: the machine that the tones are for answers them with speech.
        return await self._wait_until_heard(None, stoppable=False)

    async def _end_when_heard(
        self, then: tuple[str, str], transfer: Transfer | None
    ) -> bool:
        if self._live and self._live.session is None:
            # The session waits for the user's code that asks for this, so the code
            # cannot wait for the session: the call ends later.
            self._start_wait(then, transfer=transfer)
            return True
        return await self._wait_until_heard(then, transfer=transfer)

    async def _wait_until_heard(
        self,
        then: tuple[str, str] | None,
        *,
        stoppable: bool = True,
        transfer: Transfer | None = None,
    ) -> bool:
        """Waits until the caller has heard everything (inputs.WhenHeard), then
        ends the call as `then` says, if given. False if the wait was stopped: the
        caller spoke, or the stream broke. CallOver if the call ended meanwhile."""
        if self._live and self._live.session is None:
            raise BadRequest("cannot wait before the agent's session has started")
        number, waiting = self._start_wait(then, stoppable=stoppable, transfer=transfer)
        try:
            done = await waiting
        except asyncio.CancelledError:
            self._feed(GiveUpWait(number))
            self._pending_waits.pop(number, None)
            raise
        if done is None:
            raise CallOver
        return done

    def _start_wait(
        self,
        then: tuple[str, str] | None,
        *,
        stoppable: bool = True,
        transfer: Transfer | None = None,
    ) -> tuple[int, asyncio.Future[bool | None]]:
        number = next(self._wait_numbers)
        waiting = asyncio.get_running_loop().create_future()
        self._pending_waits[number] = (waiting, transfer)
        self._feed(WhenHeard(number, then, stoppable))
        return number, waiting

    def _finish_wait(self, number: int, done: bool | None) -> None:
        waiting, transfer = self._pending_waits.pop(number)
        if done and transfer:
            self._transfer = transfer
        if not waiting.done():
            waiting.set_result(done)

    def _run_key_action(self, keys: str) -> None:
        """Runs the action that the route defines for these keys."""
        action = self._route.keys[keys]
        self._feed(Interrupt("keys"))
        match action:
            case TellAction(text):
                self._feed(Tell("system", text, True))
            case HangUpAction():
                self._feed(EndCall("agent", "hung_up"))
            case Transfer():
                self._transfer = action
                self._feed(EndCall("agent", "transferred"))

    # --- inputs and commands ---

    def _feed(self, given: Input) -> None:
        """Gives the state machine an input. All inputs pass here, so that the trace
        contains them."""
        now = time.monotonic()
        if self._trace:
            self._trace.input(given, now)
        self._obey(self._conversation.handle(given, now), now)

    def _obey(self, commands: list[Command], now: float) -> None:
        """Carries out the commands in order. Waits for none of them."""
        if self._trace:
            # All commands are traced before the first is carried out: a command may
            # cause another input (a key's action), and the commands of that input must
            # follow these in the trace.
            for command in commands:
                self._trace.command(command, now)
        for command in commands:
            match command:
                case ToModel(text):
                    assert self._agent, "only a session leads to this command"
                    self._agent.post(text)
                case ToCaller(text):
                    assert self._stream, "only a stream leads to this command"
                    self._stream.send(text, now)
                case Note():
                    self._handle_note(command)
                case Interrupted(item_id, content_index):
                    assert self._agent, "only a session leads to this command"
                    self._agent.interrupted(item_id, content_index)
                case Started(start, again):
                    (self._continue_on_new_stream if again else self._start)(start)
                case Dial(connection, seconds):
                    assert self._agent, "the session dials its first connection itself"
                    self._agent.dial(connection, seconds)
                case Switch(connection):
                    assert self._agent, "only a session dials"
                    self._agent.switch(connection)
                case CloseConnection(connection):
                    assert self._agent, "only a session dials"
                    self._agent.leave(connection)
                case WaitDone(wait, done):
                    self._finish_wait(wait, done)
                case Pressed(keys):
                    self._run_key_action(keys)
                case End():
                    self._ending = command
                    self._ended.set()
                    self._identified.set()
        self._set_timer(now)

    def _handle_note(self, note: Note) -> None:
        self._notes.note(note)
        self._services.metrics.note(note)
        if self._live and note.name == "usage":
            self._live.input_tokens += int(note.data["input_tokens"] or 0)
            self._live.output_tokens += int(note.data["output_tokens"] or 0)
            self._live.cost += float(note.data["cost"] or 0)
            self._services.quotas.spent(float(note.data["cost"] or 0))
        if self._agent and note.name == "said" and note.data["cut"]:
            self._agent.heard(
                str(note.data["item"]),
                int(note.data["content_index"] or 0),
                note.private["heard"],
            )
        if self._listeners:
            for event in note_events(note):
                self._listeners.emit(event)

    def _start(self, start: twilio_messages.Start) -> None:
        """`start` has arrived, so the call's SID is known: prepares log, trace, route
        and registry entry, then starts the agent's session."""
        facts = facts_of(start)
        if self._services.account_sid not in (None, facts.account_sid):
            self._feed(EndCall("caller", "wrong_account"))
            return
        sid = facts.call_sid
        self._route = self._services.route_of(facts)
        facts = replace(facts, route=self._route.name)
        self._entry = CallEntry(sid, facts.stream_sid, time.time())
        self._log = self._log.bind(call_sid=sid, stream_sid=facts.stream_sid)
        self._notes = NoteLog(self._log)
        self._log.info("call_started", route=self._route.name)
        if self._trace and self._services.record_dir:
            folder, stream_sid = self._services.record_dir, facts.stream_sid
            self._trace.open(folder, sid, stream_sid, self._route.redact)
        for task in self._unnamed_tasks:
            task.set_name(f"{sid} {task.get_name()}")
        self._listeners = Listeners(self._services.background_tasks.start, sid)
        approvals = Approvals(
            self._route.approval, self._spawn_named, sid, self.tool_running
        )
        self._approvals = approvals
        self._live = LiveCall(facts, self, self._listeners, approvals)
        self._live.transfers = self._route.transfers
        self._live.redaction = self._route.redact
        self._start_registration(self._entry)
        if facts.direction == "inbound":
            self._services.quotas.began(sid, facts.theirs)
        self._identified.set()
        self._spawn(self._run_agent(self._live, approvals), f"{sid} agent")

    def _continue_on_new_stream(self, start: twilio_messages.Start) -> None:
        """The caller has returned on a new stream."""
        assert self._live and self._entry, "the call was identified by its first stream"
        stream_sid = start.stream_sid
        self._live.facts = replace(self._live.facts, stream_sid=stream_sid)
        self._entry = replace(self._entry, stream_sid=stream_sid)
        self._log.info("line_back", new_stream_sid=stream_sid)
        self._start_registration(self._entry)

    def _start_registration(self, entry: CallEntry) -> None:
        self._registration = self._spawn(self._register(entry), "entry")

    async def _register(self, entry: CallEntry) -> None:
        self._registering = True
        await self._services.registry.opened(entry)
        self._registering = False

    def _spawn_named(self, work: Coroutine[Any, Any, None], name: str) -> object:
        """Starts a task with exactly this name that ends by itself."""
        return self._tasks.create_task(work, name=name)

    def _spawn(
        self, work: Coroutine[None, None, None], name: str
    ) -> asyncio.Task[None]:
        if self.call_sid and not name.startswith(self.call_sid):
            name = f"{self.call_sid} {name}"
        task = self._tasks.create_task(work, name=name)
        if not self.call_sid:
            self._unnamed_tasks.append(task)
        return task

    def _set_timer(self, now: float) -> None:
        """Sets the timer for the state machine's deadline. A timer that is too early is
        left as it is: it finds nothing due and sets the next one. That is cheaper than
        a new timer for each of the 50 frames a second."""
        deadline = self._conversation.deadline
        if deadline is None or deadline >= self._timer_at:
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = deadline
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(deadline - now, 0.0), self._timer_due.set)

    async def _run_timer(self) -> None:
        """Ticks in a task of the call, so that an error in a tick ends the call like
        any other error."""
        while True:
            await self._timer_due.wait()
            self._timer_due.clear()
            self._timer_at = math.inf
            self._feed(Tick())

    def _trace_lost(self, why: str) -> None:
        self._log.error("trace_write_failed", why=why)

    def _sent_to_model(self, seconds: float) -> None:
        self._frames_sent += 1
        if self._frames_sent % MEASURE_EVERY == 0:
            self._services.metrics.caller_to_model.observe(seconds)


TAKEN_OVER = "taken_over"

LIMITS = {
    twilio_messages.TOO_LARGE: "message_bytes",
    twilio_messages.TOO_MANY: "message_rate",
}
"""Reason for which a message was rejected -> name of the limit (core/limits.py)."""

MOVED_AWAY = frozenset({TAKEN_OVER, "handed_over"})
"""Reasons of an end after which another instance continues the call."""

RESUMABLE_ENDS = frozenset({("bridge", "handed_over"), ("caller", "connection_lost")})
"""(side, reason) of ends of the stream after which the call may continue."""

NO_APOLOGY_ENDS = frozenset({"silent", "longest", "cost", "machine"})
"""Reasons of the bridge's own ends that need no apology: the agent was asked to say
goodbye, or no caller is there."""


def facts_of(start: twilio_messages.Start) -> CallFacts:
    """The call's facts, from Twilio's `start`."""
    details = start.start
    facts = CallFacts.of(details.call_sid, details.custom_parameters or {})
    return replace(facts, stream_sid=start.stream_sid, account_sid=details.account_sid)


def machine_instruction(message: str) -> str:
    return (
        "An answering machine has taken this call and waits for a message. Say this, "
        f"word for word, and nothing else: {message}"
    )
