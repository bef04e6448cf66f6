"""One phone call. READ FIRST.

A call has two ends: the phone (Twilio's stream) and the agent (a session on a model).
What is said on one goes to the other as core/conversation.py decides; this module
carries its decisions out and sees to it that all of a call ends when one side ends.
Each end may be lost and come back: a stream (stream.py), a connection (agent/wire.py).
It is given its two ends and a registry: no aiohttp, websockets or redis here.
"""

import asyncio
import base64
import contextlib
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

import msgspec
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
from bridge.app.routes import HangUp, Route, Tell
from bridge.app.services import Services, rules_for
from bridge.audio import g711
from bridge.call.checkpoint import Checkpoint
from bridge.call.stream import Phone, Stream
from bridge.core import ProtocolError, realtime_events, twilio_messages
from bridge.core.commands import (
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
from bridge.fleet import CallEntry, NextStep, Then
from bridge.fleet.plan import AnsweredBy, CallSnapshot, Plan, SavedMessage, moment
from bridge.model.session import AgentSession, SessionPlan
from bridge.records.report import report_of
from bridge.telemetry.log import NoteLog
from bridge.telemetry.trace import Trace, feed

CLOSE_SECONDS = 1.0
"""For what must still be said to the phone and the registry when a call is over."""

RETURN_SECONDS = 1200.0
"""How long what was said is kept while somebody else's phone rings: longer than it may
(600 s)."""

MAX_TRANSFERS = 5
"""Of one call: an agent that puts a caller through again and again is lost."""

MEASURE_EVERY = 10
"""Of the 50 frames a second, one in so many is timed: enough to see, cheap to have."""


class _CallOver(Exception):
    """The call has ended; ends the TaskGroup and all that is in it."""


class Call:
    """`run` once. Returns how it ended; leaves no task, no socket, no entry behind."""

    def __init__(
        self, phone: Phone, services: Services, since: float | None = None
    ) -> None:
        """`since` when the phone is there: now."""
        now = time.monotonic() if since is None else since
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
        self._own_tasks: list[asyncio.Task[None]] = []
        """Begun before it had a name."""
        self._agent: AgentSession | None = None
        self._live: LiveCall | None = None
        self._listeners: Listeners | None = None
        self._approvals: Approvals | None = None
        self._route = Route()
        self._plan = Plan()
        self._transfer: Transfer | None = None
        self._transfers = 0
        """How often this caller has been put through, in earlier streams, too."""
        self._snapshot = CallSnapshot()
        self._answered_by: AnsweredBy | None = None
        self._planned = False
        self._left_word = False
        self._waits: dict[int, tuple[asyncio.Future[bool | None], Transfer | None]] = {}
        self._wait_numbers = itertools.count(1)
        self._entry: CallEntry | None = None
        self._entered: asyncio.Task[None] | None = None
        """The registry is being told of the stream: before it is told that it ended."""
        self._entering = False
        self._checkpoint: Checkpoint | None = None
        self._begun = asyncio.Event()
        """It has a name, or never will have."""
        self._ended = asyncio.Event()
        self._ending = End("bridge", "failed")
        self._began = now
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._due = asyncio.Event()
        self._sends = 0

    # --- the story ---

    async def run(self) -> End:
        """Carries the call until one side ends it."""
        self._services.metrics.calls_active.inc()
        try:
            async with self._tasks:
                self._stream = self._new_stream(self._phone)
                self._spawn(self._keep_time(), "clock")
                self._set_timer(time.monotonic())
                await self._ended.wait()
                # First: whoever is on the line is not to wait until all of ours ends.
                await self._leave_word()
                raise _CallOver
        except* _CallOver:
            pass  # the one way in which a call ends; how is in self._ending
        except* Exception as group:
            # A bug of ours. It ends this call, not the process; the caller is told.
            self._log.error("call_failed", exc_info=group)
        finally:
            await self._conclude()
        return self._ending

    @property
    def call_sid(self) -> str | None:
        """None before Twilio has said whose call it is."""
        return self._entry.call_sid if self._entry else None

    @property
    def live(self) -> LiveCall | None:
        """The call as the user's code has it; None before it has a name."""
        return self._live

    def end(self, why: str) -> None:
        """The bridge itself ends the call (it is shutting down)."""
        self._feed("end", ["bridge", why])

    @property
    def fallback_number(self) -> str:
        """The number that Twilio dials when the agent fails; empty: none."""
        return self._route.fallback or self._services.fallback_number

    @property
    def twilio_asks(self) -> bool:
        """Of a call that has ended: Twilio will ask what follows."""
        return self._next_step() is not None

    @property
    def waits(self) -> bool:
        """The stream broke, and the caller may be back on another."""
        return self._conversation.line_is_lost

    def taken(self) -> None:
        """Another instance has a newer stream of this call, and leads it on."""
        if self._entering:
            return  # the newer stream is our own
        self._feed("end", ["bridge", TAKEN_OVER])

    def hand_over(self) -> None:
        """Another instance is to lead the call on; it leaves in a quiet moment."""
        self._feed("hand_over")

    async def take_over(self, phone: Phone) -> bool:
        """A newer stream of this call: it goes on there, until that ends, and nobody
        listens to the older one. False: the call has ended, this stream is not its."""
        await self._begun.wait()
        if self._ended.is_set() or self._stream is None:
            return False
        older = self._stream
        older.leave()
        self._feed("line_lost")
        stream = self._stream = self._new_stream(phone)
        self._begin(_closed(older), f"{self.call_sid} caller close")
        await stream.over.wait()
        return True

    def _new_stream(self, phone: Phone) -> Stream:
        services = self._services
        sent, seconds = (
            services.metrics.model_to_caller.observe,
            services.limits.send_seconds,
        )
        return Stream(phone, self, self._spawn, sent, seconds)

    def answered_by(self, who: AnsweredBy) -> None:
        """Twilio's answering-machine detection has a result (an outbound call). It may
        be told more than once, and before it is known what is to be done."""
        if self._answered_by or not self._planned:
            return
        self._answered_by = who
        self._see(Note("answered_by", {"who": who.value}))
        if not who.is_machine:
            return
        if self._plan.machine == "hang_up":
            self._feed("end", ["bridge", "machine"])
        elif self._plan.machine == "message":
            self._feed("interrupt", ["machine", None])
            self._feed("tell", ["system", machine_word(self._plan.message), True])
            self._wish(["agent", "message_left"], stoppable=False)

    # --- what its stream tells (bridge.call.stream.Ear) ---

    def stream_broken(self, reason: str) -> None:
        self._caller_misread(reason)
        self._feed("end", ["caller", "protocol_error"])

    def stream_over(self) -> None:
        self._feed("line_lost")
        if self._checkpoint and not self._ended.is_set():
            # Twilio asks at once what follows, this instance or another.
            self._spawn(self._keep(self._checkpoint), "checkpoint")

    def stream_stuck(self) -> None:
        if not self._ended.is_set():
            self.stream_slow()
        self._feed("end", ["caller", "stuck"])

    def stream_slow(self) -> None:
        self._see(limit_hit("phone_slow"))

    def _caller_misread(self, reason: str) -> None:
        if limit := LIMITS.get(reason):
            self._see(limit_hit(limit))
        self._feed("misread", ["caller", reason])

    def stream_message(self, text: str | bytes) -> None:
        now = time.monotonic()
        try:
            if isinstance(text, bytes):
                raise ProtocolError("binary message")
            message = twilio_messages.decode(text)
        except ProtocolError as error:
            self._caller_misread(error.reason)
            return
        if self._trace:
            self._trace.input("caller", text, now)
        self._obey(self._conversation.from_caller(message, now), now)

    async def _converse(self, live: LiveCall, approvals: Approvals) -> None:
        """The agent's session, from opening to end."""
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
            # The model sent what the SDK cannot take; the text of the error quotes it.
            self._log.error("model_misbehaved", error=type(error).__name__)
            self._feed("end", ["model", "protocol_error"])
        except BaseException as error:
            if not user_code.is_theirs(error):
                raise
            # The user's code: their function, their instructions. Theirs to mend, so
            # all of it is logged.
            self._log.exception("agent_failed")
            self._feed("end", ["bridge", "agent_failed"])
        else:
            self._feed("end", ["model", "closed"])

    async def _prepare(self, live: LiveCall) -> CallSnapshot:
        """All that must be known of a call before its session: what was planned for it,
        what was said before, what the user's own code wants with it."""
        sid, services, registry = live.call_sid, self._services, self._services.registry
        # At once: each may wait a while for a registry that is just going away.
        plan, talk = await asyncio.gather(
            registry.get(f"plan:{sid}"), registry.get(f"snapshot:{sid}")
        )
        self._plan, snapshot = Plan.read(plan), CallSnapshot.read(talk)
        if snapshot.stream_count:
            ended = await registry.get(f"stream_ended:{sid}")
            snapshot = snapshot.as_of(moment(ended))
            self._resume(live, snapshot)
        self._snapshot, self._transfers = snapshot, snapshot.transfer_count
        rules = rules_for(
            self._route,
            self._greeting(),
            snapshot,
            services.session_seconds,
            services.ceilings,
        )
        self._feed("rules", [msgspec.to_builtins(rules)])
        self._planned = True
        # Not before: what is kept from now on has in it what was kept before.
        self._checkpoint = Checkpoint(
            registry, sid, self._version, self._look, self._route.redact
        )
        if registry.shared:
            self._spawn(self._checkpoint.run(), f"{sid} checkpoint")
        await services.begin(self._route, live)
        if who := await AnsweredBy.of(registry, sid):
            self.answered_by(who)
        return snapshot

    def _resume(self, live: LiveCall, snapshot: CallSnapshot) -> None:
        """The call had streams before, on this instance or another."""
        live.began -= snapshot.call_seconds
        live.cost = snapshot.cost
        live.input_tokens = snapshot.input_tokens
        live.output_tokens = snapshot.output_tokens
        live.notes.update(snapshot.notes)
        live.messages += [
            Message(it.text, it.name, it.call_back) for it in snapshot.messages
        ]
        self._see(Note("call_resumed", {"why": snapshot.ended_as}))

    async def _keep(self, safe: Checkpoint) -> None:
        await safe.keep()

    def _version(self) -> object:
        live = self._live
        return self._conversation.version, live and (
            live.agent_name,
            len(live.messages),
        )

    def _look(self) -> CallSnapshot:
        """What was said until now, for whoever leads the call on."""
        live, snapshot, now = self._live, self._snapshot, time.monotonic()
        assert live is not None, "a call that is kept has a name"
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
            call_seconds=snapshot.call_seconds + now - self._began,
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
        """The call's own, else the route's, else the house's."""
        own, services = self._plan.greeting, self._services
        return own or None if own is not None else services.greeting_of(self._route)

    async def _conclude(self) -> None:
        """All that must be said when a call is over, whatever happens meanwhile."""
        if self._timer:
            self._timer.cancel()
        if self._trace:
            self._trace.close()
        self._begun.set()
        if self._stream:
            self._stream.over.set()  # however it ended
        outcome = f"{self._ending.by}_{self._ending.why}"
        self._services.metrics.calls_active.dec()
        self._services.metrics.calls.labels(outcome).inc()
        seconds = round(time.monotonic() - self._began, 3)
        self._log.info("call_ended", outcome=outcome, seconds=seconds)
        if self._entry:
            moved = self._ending.why in MOVED_ON
            self._services.quotas.ended(self._entry.call_sid, goes_on=moved)
        await self._leave_word()
        if self._live:
            self._tell_the_end(self._live, self._snapshot.call_seconds + seconds)

    async def _leave_word(self) -> None:
        """How the call goes on, for whoever Twilio asks; then the stream is closed."""
        if self._left_word:
            return
        self._left_word = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._entry:
                    await self._leave_step(self._entry)
                if self._stream:
                    await self._stream.close()
        except (TimeoutError, ConnectionError):
            self._log.warning("close_late")

    async def _leave_step(self, entry: CallEntry) -> None:
        step = self._next_step()
        if self._entered:
            await self._entered
        if self._checkpoint and self._ending.why != TAKEN_OVER:
            if step and step.then is Then.TRANSFER:
                self._transfers += 1
                await self._checkpoint.keep(RETURN_SECONDS)
            elif self._goes_on:
                await self._checkpoint.keep()
            else:
                await self._checkpoint.drop()
        await self._services.registry.closed(entry, step)

    @property
    def _goes_on(self) -> bool:
        """Whoever is on the line will be back with the agent, or may be."""
        return (self._ending.by, self._ending.why) in GOES_ON

    def _next_step(self) -> NextStep | None:
        """What Twilio is told when it asks how the call goes on; None: it will not."""
        by, why = self._ending.by, self._ending.why
        if (by, why) in (("caller", "hung_up"), ("bridge", TAKEN_OVER)):
            return None
        if self._goes_on:
            return NextStep(Then.RESUME)
        language = self._route.language or ""
        if self._transfer and (by, why) == ("agent", "transferred"):
            to = self._transfer
            return NextStep(
                Then.TRANSFER, to.number, to.caller_id, to.ring_seconds, language
            )
        if by == "agent" or why in POLITE_ENDS:
            return NextStep(Then.HANG_UP)
        # Whoever is still on the line did not end it: no silence, a word.
        return NextStep(
            Then.SORRY,
            self.fallback_number,
            language=language,
            text=self._route.sorry or "",
        )

    def _tell_the_end(self, live: LiveCall, seconds: float) -> None:
        """The call's report to the user, once all that was said is settled; not where
        the call goes on elsewhere, and is reported there."""
        by, why = self._ending.by, self._ending.why
        live.emit("call_ended", by=by, why=why, seconds=seconds)
        live.end()
        if self._listeners:
            self._listeners.end()
        if why not in MOVED_ON:
            self._services.deliver_report(
                self._route, report_of(live, by, why, seconds)
            )

    # --- what the agent's session tells (bridge.model.session.SessionLine) ---

    def model_event(self, event: realtime_events.ServerEvent, text: str) -> None:
        if not isinstance(event, realtime_events.AudioDelta) and self._agent:
            self._agent.model_event(text)
        if isinstance(event, realtime_events.Other):
            return
        now = time.monotonic()
        if self._trace:
            self._trace.input("model", text, now)
        self._obey(self._conversation.from_model(event, now), now)

    def model_misread(self, reason: str) -> None:
        self._feed("misread", ["model", reason])

    def model_dialled(self) -> None:
        self._feed("dialled")

    def model_not_dialled(self, why: str, fatal: bool) -> None:
        self._feed("not_dialled", [why, fatal])

    def model_lost(self, why: str, code: int | None) -> None:
        self._see(Note("model_gone", {"why": why, "close_code": code}))
        self._feed("model_lost", [why])

    def model_stuck(self, why: str) -> None:
        self._feed("end", ["model", why])

    def model_limit(self, limit: str) -> None:
        self._see(limit_hit(limit))

    def send_to_model(self, text: str) -> None:
        self._feed("send", [text])

    def interrupt_agent(self, by: str, response_id: str | None) -> None:
        self._feed("interrupt", [by, response_id])

    def ask(self) -> None:
        self._feed("ask")

    def tool_running(self, change: int, call_id: str = "") -> None:
        self._feed("tool_running", [change, call_id])

    def tool_failed(self, tool: str, error: str) -> None:
        self._see(Note("tool_failed", {"tool": tool, "error": error}))

    def session_event(self, event: RealtimeSessionEvent) -> None:
        note = session_note(event)
        if note:
            self._notes.note(note)
            if self._trace:
                self._trace.session(note, time.monotonic())
        if isinstance(event, RealtimeToolApprovalRequired):
            assert self._approvals and self._live, "the session has a call"
            self._approvals.ask_for(event, self._live.session)
        if self._listeners and self._listeners.wants(event.type):
            self._listeners.emit(call_event(event))

    # --- what the user's code asks for (bridge.agent.live.CallLine) ---

    @property
    def history(self) -> Sequence[HistoryItem]:
        return self._conversation.history.items

    def tell(self, role: Role, text: str, *, respond: bool) -> None:
        self._feed("tell", [role, text, respond])

    def interrupt(self, by: str) -> None:
        self._feed("interrupt", [by, None])

    def mute(self, on: bool) -> None:
        self._feed("mute", [on])

    def send_raw(self, event: Mapping[str, Any]) -> None:
        if self._agent is None or not self._agent.send_raw(event):
            raise BadRequest("the model is not there yet")

    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        self._feed("edit", [list(removed), dict(corrected)])

    async def heard(self) -> bool:
        return await self._wait(None)

    async def hang_up(self) -> bool:
        return await self._leave(["agent", "hung_up"], None)

    async def transfer(self, transfer: Transfer) -> bool:
        assert self._live, "somebody asks"
        try:
            self._services.check_transfer(self._route, self._live, transfer)
        except NotAllowed:
            self._see(limit_hit("transfer_number"))
            raise
        if self._transfers >= MAX_TRANSFERS:
            raise BadRequest("this caller has been put through too often")
        return await self._leave(["agent", "transferred"], transfer)

    async def send_digits(self, digits: str) -> bool:
        if not await self._wait(None):
            return False
        tones = base64.b64encode(g711.key_tones(digits)).decode()
        self._feed("play", [tones])
        # Whoever answers the tones speaks: that is what they are sent for.
        return await self._wait(None, stoppable=False)

    async def _leave(self, then: list[str], transfer: Transfer | None) -> bool:
        if self._live and self._live.session is None:
            # Asked for by the user's code that the session waits for: done later.
            self._wish(then, transfer=transfer)
            return True
        return await self._wait(then, transfer=transfer)

    async def _wait(
        self,
        then: list[str] | None,
        *,
        stoppable: bool = True,
        transfer: Transfer | None = None,
    ) -> bool:
        """Until all was heard (Conversation.when_heard). CallOver if the call is."""
        if self._live and self._live.session is None:
            raise BadRequest("nothing can be waited for before the session has begun")
        number, waiting = self._wish(then, stoppable=stoppable, transfer=transfer)
        try:
            done = await waiting
        except asyncio.CancelledError:
            self._feed("give_up", [number])
            self._waits.pop(number, None)
            raise
        if done is None:
            raise CallOver
        return done

    def _wish(
        self,
        then: list[str] | None,
        *,
        stoppable: bool = True,
        transfer: Transfer | None = None,
    ) -> tuple[int, asyncio.Future[bool | None]]:
        number = next(self._wait_numbers)
        waiting = asyncio.get_running_loop().create_future()
        self._waits[number] = (waiting, transfer)
        self._feed("when_heard", [number, then, stoppable])
        return number, waiting

    def _heard(self, number: int, done: bool | None) -> None:
        waiting, transfer = self._waits.pop(number)
        if done and transfer:
            self._transfer = transfer
        if not waiting.done():
            waiting.set_result(done)

    def _pressed(self, keys: str) -> None:
        """Keys that the route has an action for."""
        action = self._route.keys[keys]
        self._feed("interrupt", ["keys", None])
        match action:
            case Tell(text):
                self._feed("tell", ["system", text, True])
            case HangUp():
                self._feed("end", ["agent", "hung_up"])
            case Transfer():
                self._transfer = action
                self._feed("end", ["agent", "transferred"])

    # --- carrying out ---

    def _feed(self, kind: str, value: Sequence[Any] = ()) -> None:
        """An input that is no message: one path for all, so that a trace has it."""
        now = time.monotonic()
        if self._trace:
            self._trace.input(kind, value, now)
        self._obey(feed(self._conversation, kind, value, now), now)

    def _obey(self, commands: list[Command], now: float) -> None:
        """Carries commands out, in order, without waiting for any."""
        if self._trace:
            # All of them first: one that leads to another input (a key's action) has
            # that input's own commands behind it.
            for command in commands:
                self._trace.command(command, now)
        for command in commands:
            match command:
                case ToModel(text):
                    assert self._agent, "the model has spoken, so there is a session"
                    self._agent.post(text)
                case ToCaller(text):
                    assert self._stream, "somebody was heard"
                    self._stream.send(text, now)
                case Note():
                    self._see(command)
                case Interrupted(item_id, content_index):
                    assert self._agent, "the model has spoken, so there is a session"
                    self._agent.interrupted(item_id, content_index)
                case Started(start, again):
                    (self._start_again if again else self._start)(start)
                case Dial(seconds, spare):
                    assert self._agent, "the first connection is dialled unasked"
                    self._agent.dial(seconds, spare=spare)
                case Switch():
                    assert self._agent, "somebody has dialled"
                    self._agent.switch()
                case WaitDone(wait, done):
                    self._heard(wait, done)
                case Pressed(keys):
                    self._pressed(keys)
                case End():
                    self._ending = command
                    self._ended.set()
                    self._begun.set()
        self._set_timer(now)

    def _see(self, note: Note) -> None:
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
        """Now the call has a name: its log, its trace, its entry, its route, its
        agent."""
        facts = facts_of(start)
        if self._services.account_sid not in (None, facts.account_sid):
            self._feed("end", ["caller", "wrong_account"])
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
        for task in self._own_tasks:
            task.set_name(f"{sid} {task.get_name()}")
        self._listeners = Listeners(self._services.background_tasks.start, sid)
        approvals = Approvals(self._route.approval, self._begin, sid, self.tool_running)
        self._approvals = approvals
        self._live = LiveCall(facts, self, self._listeners, approvals)
        self._live.transfers = self._route.transfers
        self._live.redaction = self._route.redact
        self._enter(self._entry)
        if facts.direction == "inbound":
            self._services.quotas.began(sid, facts.theirs)
        self._begun.set()
        self._spawn(self._converse(self._live, approvals), f"{sid} agent")

    def _start_again(self, start: twilio_messages.Start) -> None:
        """The caller is back, on another stream."""
        assert self._live and self._entry, "the call has begun"
        stream_sid = start.stream_sid
        self._live.facts = replace(self._live.facts, stream_sid=stream_sid)
        self._entry = replace(self._entry, stream_sid=stream_sid)
        self._log.info("line_back", new_stream_sid=stream_sid)
        self._enter(self._entry)

    def _enter(self, entry: CallEntry) -> None:
        self._entered = self._spawn(self._told_of(entry), "entry")

    async def _told_of(self, entry: CallEntry) -> None:
        self._entering = True
        await self._services.registry.opened(entry)
        self._entering = False

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> object:
        """As `_spawn`, for what ends by itself."""
        return self._tasks.create_task(work, name=name)

    def _spawn(
        self, work: Coroutine[None, None, None], name: str
    ) -> asyncio.Task[None]:
        if self.call_sid and not name.startswith(self.call_sid):
            name = f"{self.call_sid} {name}"
        task = self._tasks.create_task(work, name=name)
        if not self.call_sid:
            self._own_tasks.append(task)
        return task

    def _set_timer(self, now: float) -> None:
        """The core is called when its deadline comes. Not set anew 50 times a second:
        a timer that is early finds nothing due, and sets the next."""
        deadline = self._conversation.deadline
        if deadline is None or deadline >= self._timer_at:
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = deadline
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(deadline - now, 0.0), self._due.set)

    async def _keep_time(self) -> None:
        """Ticks in a task, so that what fails there ends the call as all else does."""
        while True:
            await self._due.wait()
            self._due.clear()
            self._timer_at = math.inf
            self._feed("tick")

    def _trace_lost(self, why: str) -> None:
        self._log.error("trace_lost", why=why)

    def _sent_to_model(self, seconds: float) -> None:
        self._sends += 1
        if self._sends % MEASURE_EVERY == 0:
            self._services.metrics.caller_to_model.observe(seconds)


TAKEN_OVER = "taken_over"

LIMITS = {
    twilio_messages.TOO_LARGE: "message_bytes",
    twilio_messages.TOO_MANY: "message_rate",
}
"""What was wrong with a message -> the limit that it is."""

MOVED_ON = frozenset({TAKEN_OVER, "handed_over"})
"""Whys of a call that goes on on another instance."""

GOES_ON = frozenset({("bridge", "handed_over"), ("caller", "connection_lost")})
"""Ends of a stream, and not of the call."""

POLITE_ENDS = frozenset({"silent", "longest", "cost", "machine"})
"""The bridge's own ends of which the caller was told, or nobody is there to be."""


def facts_of(start: twilio_messages.Start) -> CallFacts:
    """The call's facts, as its stream gives them."""
    details = start.start
    facts = CallFacts.of(details.call_sid, details.custom_parameters or {})
    return replace(facts, stream_sid=start.stream_sid, account_sid=details.account_sid)


async def _closed(stream: Stream) -> None:
    """A stream that nobody listens to any more; whose end is nobody's business."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await stream.close()


def machine_word(message: str) -> str:
    return (
        "An answering machine has taken this call and waits for a message. Say this, "
        f"word for word, and nothing else: {message}"
    )
