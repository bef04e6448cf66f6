"""One phone call. READ THIS FILE FIRST.

A call has two ends. The caller's end is a leg (leg.py): Twilio's media streams
(media_leg.py) or OpenAI's SIP line (sip_leg.py). The agent's end is a session on a
model (model/session.py), which agent_side.py runs. `Call.run` is the whole call:

- The leg names the call: on Twilio by its first message, on SIP at once. The call then
  gets its route, its log, its trace and its entry in the registry (`_start`).
- `_prepare_session` reads what is stored about the call and makes the agent's session.
- Every message of either end, every request of the user's code (actions.py) and every
  timer is an input of the pure state machine core/conversation.py (`feed`). It answers
  with commands, and `_obey` carries them out.
- When one end ends the call, `_store_next_step_and_close` stores what Twilio must do
  next (continuity.py) and closes the leg. `_conclude` ends the rest.

Either end may be lost and replaced while the call runs: a new stream (`take_over`), a
new model connection (model/wire.py). This module knows no aiohttp, websockets or redis.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial

import structlog
from agents.realtime import RealtimeSessionEvent

from bridge.agent.approvals import Approvals
from bridge.agent.events import Listeners
from bridge.agent.live import CallFacts, LiveCall, Transfer
from bridge.app.routes import Route
from bridge.app.services import Services, rules_for
from bridge.call.actions import Actions
from bridge.call.agent_side import AgentSide
from bridge.call.answer_tool import who_answered
from bridge.call.call_notes import CallNotes
from bridge.call.continuity import TAKEN_OVER, Continuity
from bridge.call.deadline_timer import DeadlineTimer
from bridge.call.leg import CallLeg, SessionControl
from bridge.call.media_leg import facts_of
from bridge.call.stream import IdentifiedPhone
from bridge.call.warm_transfer import CallParts, WarmTransfers
from bridge.core.call_state import State
from bridge.core.commands import (
    CloseConnection,
    Command,
    Dial,
    End,
    Interrupted,
    MuteSession,
    Note,
    Pressed,
    SayOneMoment,
    Started,
    Switch,
    ToCaller,
    ToModel,
    WaitDone,
)
from bridge.core.conversation import Conversation
from bridge.core.inputs import (
    Begin,
    EndCall,
    HandOver,
    Input,
    SetRules,
    StreamLost,
    Tick,
)
from bridge.fleet.plan import AnsweredBy
from bridge.model.session import Early, SessionPlan
from bridge.records.report import report_of
from bridge.telemetry.log import level_of_end
from bridge.telemetry.trace import Trace
from bridge.telemetry.trace_file import LOSSES, NEARLY_FULL

CLOSE_SECONDS = 1.0
"""Time limit for storing the next step and closing the leg when a call is over."""


class _CallEnded(Exception):
    """Raised in the call's TaskGroup when the call has ended; cancels all its tasks."""


class Call:
    """`run` once. It returns how the call ended, and leaves no task, socket or registry
    entry behind. It is the LegOwner of its leg."""

    def __init__(
        self,
        leg: CallLeg,
        services: Services,
        connected_at: float | None = None,
        early: Early | None = None,
    ) -> None:
        """`connected_at`: monotonic time at which the socket was accepted; now if
        omitted. `early`: gives a connection to the model that was dialled then."""
        now = time.monotonic() if connected_at is None else connected_at
        self._leg, self._early = leg, early
        self._services = services
        self._conversation = Conversation(
            now=now, bounds=services.bounds, capabilities=leg.capabilities
        )
        self._log = structlog.get_logger()
        self._trace = self._new_trace(now)
        self._tasks = asyncio.TaskGroup()
        self._unnamed_tasks: list[asyncio.Task[None]] = []
        """Tasks from before the call's SID was known; they are renamed then."""
        self._agent = AgentSide(
            self.feed, self._session_note, self._session_event, self.end_without_model
        )
        self._notes = CallNotes(services, self._agent.heard)
        self._actions = Actions(
            self.feed,
            self.note,
            self._conversation.history,
            leg.capabilities,
            session_started=self._session_started,
            send_raw=self._agent.send_raw,
            check_transfer=self._check_transfer,
            refer=leg.refer,
            warm=self._warm_transfers,
            start_task=self.start_task,
        )
        self._route = Route()
        self._live: LiveCall | None = None
        self._continuity: Continuity | None = None
        self._warm: WarmTransfers | None = None
        self._closed = False
        """The next step is stored, and the leg is closed."""
        self._identified = asyncio.Event()
        """Set when the call's SID is known, or when the call has ended without one."""
        self._ended = asyncio.Event()
        self._ending = End("bridge", "failed")
        self._connected_at = now
        self._timer = DeadlineTimer(lambda: self.feed(Tick()))

    # --- from start to end ---

    async def run(self) -> End:
        """Carries the call until one side ends it."""
        self._services.metrics.calls_active.inc()
        try:
            async with self._tasks:
                self._leg.open(self)
                self.start_task(self._timer.run(), "clock")
                self._timer.set(self._conversation.deadline, time.monotonic())
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
        """None until the call has begun: Twilio's `start` has arrived."""
        return self._live.call_sid if self._live else None

    @property
    def live(self) -> LiveCall | None:
        """The call as the user's code sees it; None until `start` has arrived."""
        return self._live

    def end(self, why: str) -> None:
        """Ends the call for a reason of the bridge's own, such as a shutdown."""
        self.feed(EndCall("bridge", why))

    @property
    def fallback_number(self) -> str:
        """The number that Twilio dials when the agent fails; empty if there is none."""
        return self._services.fallback_of(self._route)

    @property
    def expects_next_request(self) -> bool:
        """For a call that has ended: Twilio will ask `/voice/next` for the next
        step."""
        target = self._actions.transfer_target
        return bool(self._continuity and self._continuity.next_step(target))

    @property
    def awaits_new_stream(self) -> bool:
        """The stream broke; the caller may return on a new stream."""
        return self._conversation.stream_is_lost

    def taken_over(self) -> None:
        """Another instance has a newer stream of this call and continues the call."""
        if self._continuity and self._continuity.is_registering:
            return  # the newer stream is this instance's own
        self.feed(EndCall("bridge", TAKEN_OVER))

    def completed(self) -> None:
        """Twilio reports that the call is over, perhaps before its stream ends."""
        self.feed(EndCall("caller", "hung_up"))

    def end_without_model(self) -> None:
        """Ends the call at once if it has no session and the fallback is switched on:
        the model is away, and another dial would keep the caller waiting."""
        if self._services.fallback.on and self._conversation.state is State.HOLDING:
            self.feed(EndCall("model", "lost"))

    def hand_over(self) -> None:
        """Ends the call here in a quiet moment, so that another instance can resume
        it."""
        self.feed(HandOver())

    async def take_over(self, phone: IdentifiedPhone) -> bool:
        """Continues the call on a newer stream, until that one has finished. False: the
        call has ended, so it does not use the stream."""
        await self._identified.wait()
        return not self._ended.is_set() and await self._leg.take_over(phone)

    def answered_by(self, who: AnsweredBy) -> None:
        """Result of Twilio's answering-machine detection (outbound calls only)."""
        self._actions.answering.detected(who)

    async def _prepare_session(
        self, live: LiveCall, approvals: Approvals, continuity: Continuity
    ) -> SessionControl:
        """The agent's session, from the call's plan and the snapshot of its earlier
        streams. Runs the route's `on_call` function first."""
        services, route = self._services, self._route
        plan = await continuity.restore()
        self._actions.answering.begin(plan, continuity.keep_plan)
        live.answered_by = plan.answered_by
        snapshot = continuity.snapshot
        if snapshot.stream_count:
            self.note(Note("call_resumed", {"why": snapshot.ended_as}))
            self.start_task(self._warm_transfers().adopt(), "warm transfer")
        if plan.greeting is not None:
            route = replace(route, greeting=plan.greeting)
        rules = rules_for(
            route,
            services.greeting_of(route),
            snapshot,
            services.session_seconds,
            services.ceilings,
            services.waiting_sound,
            services.slow_tool_seconds,
            one_moment=services.one_moment,
        )
        self.feed(SetRules(rules))
        continuity.start_checkpoint()
        await services.begin(route, live)
        if who := await AnsweredBy.of(services.registry, live.call_sid):
            self.answered_by(who)
        session_plan = SessionPlan(
            source=services.source_of(route),
            target=services.target,
            settings=route.session,
            agent_name=snapshot.agent_name,
            resumed=bool(snapshot.stream_count),
            tool_seconds=route.tool_seconds,
            early=self._early,
            tools=(who_answered,) if plan.agent_decides else (),
        )
        leg, agent = self._leg, self._agent
        return leg.session(session_plan, live, agent, approvals, self._tasks)

    async def _conclude(self) -> None:
        """Ends what is left of the call, however it ended: timer, trace, metrics, log,
        registry entry, leg, the user's listeners and the report."""
        self._timer.cancel()
        if self._trace:
            self._trace.close()
        self._identified.set()
        self._ended.set()  # also if the call failed: `take_over` then returns False
        outcome = f"{self._ending.by}_{self._ending.why}"
        self._services.metrics.calls_active.dec()
        self._services.metrics.calls.labels(outcome).inc()
        seconds = round(time.monotonic() - self._connected_at, 3)
        level = level_of_end(self._ending.by, self._ending.why)
        self._log.log(level, "call_ended", outcome=outcome, seconds=seconds)
        live, continuity = self._live, self._continuity
        if live and continuity:
            self._services.quotas.ended(live.call_sid, goes_on=continuity.has_moved)
            if self._warm:
                self._warm.call_ended(self._ending, goes_on=continuity.may_go_on)
        await self._store_next_step_and_close()
        if live and continuity:
            self._report_end(live, continuity, seconds)

    def _report_end(
        self, live: LiveCall, continuity: Continuity, seconds: float
    ) -> None:
        """Tells the user's listeners that the call ended, and delivers the report. A
        call that another instance continues is reported by that instance."""
        by, why = self._ending.by, self._ending.why
        seconds += continuity.snapshot.call_seconds
        live.emit("call_ended", by=by, why=why, seconds=seconds)
        live.end()
        self._notes.end()
        if not continuity.has_moved:
            report = report_of(live, by, why, seconds)
            self._services.deliver_report(self._route, report)

    async def _store_next_step_and_close(self) -> None:
        """Stores what Twilio must do next, then closes the leg: Twilio asks
        `/voice/next`, of any instance, as soon as the stream is closed."""
        if self._closed:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                try:
                    if self._continuity:
                        target = self._actions.transfer_target
                        await self._continuity.store_next_step(target)
                finally:
                    await self._leg.close(self._ending)
        except TimeoutError:
            self._log.warning("stream_close_failed")
        # Not before: an error of the call may cancel this, and `_conclude` tries again.
        self._closed = True

    def _session_started(self) -> bool:
        return self._live is not None and self._live.session is not None

    def _check_transfer(self, transfer: Transfer) -> None:
        assert self._live and self._continuity, "only a call that is known is asked"
        self._services.check_transfer(self._route, self._live, transfer)
        self._continuity.check_transfer()

    # --- inputs and commands ---

    def feed(self, given: Input) -> None:
        """Gives the state machine an input. All inputs pass here, so that the trace
        contains them."""
        now = time.monotonic()
        if self._trace:
            self._trace.input(given, now)
        commands = self._conversation.handle(given, now)
        if commands:
            self._obey(commands, now)
        if not self._conversation.keeps_deadline:
            self._timer.set(self._conversation.deadline, now)

    def _obey(self, commands: list[Command], now: float) -> None:
        """Carries out the commands in order. Waits for none of them. Messages for the
        caller that follow each other are written together."""
        if self._trace:
            # Before the first is carried out: a command may cause another input (a
            # key's action), whose commands must follow these in the trace.
            for command in commands:
                self._trace.command(command, now)
        to_caller: list[str] = []
        for command in commands:
            # Not by `match`: these two are sent 60 times a second.
            if isinstance(command, ToCaller):
                to_caller.append(command.text)
                continue
            if to_caller:
                self._leg.send(to_caller, now)
                to_caller = []
            if isinstance(command, ToModel):
                self._agent.post(command.text)
                continue
            match command:
                case Interrupted() | Dial() | Switch() | CloseConnection():
                    self._agent.obey(command)
                case Note():
                    self.note(command)
                case Started(start, again=False):
                    self._start_on_stream(facts_of(start))
                case Started(start):
                    self._continue_on(start.stream_sid)
                case SayOneMoment():
                    self.start_task(self._say_one_moment(), "one moment")
                case MuteSession(on):
                    self._agent.mute(on)
                case WaitDone(wait, done):
                    self._actions.finish_wait(wait, done)
                case Pressed(keys):
                    self._actions.run_key_action(self._route.keys[keys])
                case End():
                    self._ending = command
                    self._ended.set()
                    self._identified.set()
        if to_caller:
            self._leg.send(to_caller, now)

    def note(self, note: Note) -> None:
        self._notes.note(note)

    def _session_note(self, note: Note) -> None:
        self.note(note)
        self._trace_session(note)

    def _session_event(self, event: RealtimeSessionEvent) -> None:
        if note := self._notes.session_event(event):
            self._trace_session(note)

    def _trace_session(self, note: Note) -> None:
        if self._trace:
            self._trace.session(note, time.monotonic())

    def stream_lost(self) -> None:
        self.feed(StreamLost())
        if self._continuity and not self._ended.is_set():
            self._continuity.stream_lost()

    async def _say_one_moment(self) -> None:
        assert self._continuity, "the call has begun"
        await self._continuity.plan_sentence()
        self._leg.leave_stream()

    def begin(self, facts: CallFacts) -> None:
        """A call without a stream begins."""
        self.feed(Begin())
        self._start(facts)

    def _start_on_stream(self, facts: CallFacts) -> None:
        accounts = self._services.account_sids
        if not accounts or facts.account_sid in accounts:
            self._start(facts)
        else:
            self.feed(EndCall("caller", "wrong_account"))

    def _start(self, facts: CallFacts) -> None:
        """The call's SID is known: prepares log, trace, route and registry entry, then
        starts the agent's session."""
        services, sid = self._services, facts.call_sid
        self._route = route = services.route_of(facts)
        facts = replace(facts, route=route.name)
        self._log = self._log.bind(call_sid=sid)
        if facts.stream_sid:
            self._log = self._log.bind(stream_sid=facts.stream_sid)
        self._log.info("call_started", route=route.name)
        if self._trace and services.record_dir:
            writer, folder = services.trace_writer, services.record_dir
            self._trace.open(writer, folder, sid, facts.stream_sid or sid, route.redact)
        for task in self._unnamed_tasks:
            task.set_name(f"{sid} {task.get_name()}")
        listeners = Listeners(services.background_tasks.start, sid)
        approvals = Approvals(
            route.approval,
            lambda work, name: self._tasks.create_task(work, name=name),
            sid,
            self._agent.tool_running,
        )
        live = LiveCall(facts, self._actions, listeners, approvals)
        live.transfers, live.redaction = route.transfers, route.redact
        self._actions.tones = (route.tone_ms, route.tone_gap_ms)
        self._live = live
        self._notes.begin(self._log, live, listeners)
        self._continuity = continuity = self._continuity_of(live)
        continuity.register()
        if facts.direction == "inbound":
            services.quotas.began(sid, facts.theirs)
        self._identified.set()
        if services.fallback.on:
            services.metrics.fallback_calls.inc()
            self.feed(EndCall("bridge", "fallback"))
            return
        prepare = partial(self._prepare_session, live, approvals, continuity)
        self.start_task(self._agent.run(live, approvals, self._log, prepare), "agent")

    def _continuity_of(self, live: LiveCall) -> Continuity:
        return Continuity(
            self._services,
            live,
            self._route,
            self._conversation,
            self._leg.capabilities,
            self._connected_at,
            lambda: self._ending,
            self.start_task,
        )

    def _warm_transfers(self) -> WarmTransfers:
        """Made when it is first needed: most calls have no warm transfer."""
        assert self._live and self._continuity, "only a call that is known has some"
        if self._warm is None:
            parts = CallParts(
                self._live,
                self._continuity,
                self._route.language or "",
                self.feed,
                self.note,
                self.start_task,
                self._actions.join,
            )
            self._warm = WarmTransfers(self._services, parts)
        return self._warm

    def _continue_on(self, stream_sid: str) -> None:
        """The caller has returned on a new stream."""
        assert self._live and self._continuity, "an earlier stream started the call"
        self._live.facts = replace(self._live.facts, stream_sid=stream_sid)
        self._log.info("stream_back", new_stream_sid=stream_sid)
        self._continuity.register_stream(stream_sid)

    # --- tasks ---

    def start_task(
        self, work: Coroutine[None, None, None], name: str
    ) -> asyncio.Task[None]:
        sid = self.call_sid
        task = self._tasks.create_task(work, name=f"{sid} {name}" if sid else name)
        if not sid:
            self._unnamed_tasks.append(task)
        return task

    def _new_trace(self, now: float) -> Trace | None:
        """None: the operator keeps no traces."""
        services = self._services
        if not services.record_dir:
            return None
        capabilities = self._leg.capabilities
        return Trace(now, self._trace_lost, services.bounds, capabilities)

    def _trace_lost(self, why: str) -> None:
        kind = LOSSES.get(why, "error")
        self._services.metrics.traces_lost.labels(kind).inc()
        if why != NEARLY_FULL:  # then `traces_stopped` is logged, once for all calls
            self._log.error("trace_write_failed", why=why)
