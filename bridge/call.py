"""One phone call. READ FIRST.

A call has two ends: the phone (Twilio's stream) and the agent (a session on a model).
What is said on one goes to the other as core/conversation.py decides; this module
carries its decisions out and sees to it that all of a call ends when one side ends.
It is given its two ends and a registry: no aiohttp, websockets or redis here.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from agents.exceptions import ModelBehaviorError
from agents.realtime import (
    RealtimeAudioInterrupted,
    RealtimeError,
    RealtimeGuardrailTripped,
    RealtimeHandoffEvent,
    RealtimeSessionEvent,
    RealtimeToolApprovalRequired,
    RealtimeToolEnd,
    RealtimeToolStart,
)
from pydantic import ValidationError

from bridge.agent.loader import AgentSource, CallFacts
from bridge.agent.session import AgentSession, ModelRefused, ModelTarget
from bridge.core import ProtocolError, media_stream, realtime
from bridge.core.commands import (
    Command,
    End,
    Interrupted,
    Note,
    Started,
    ToCaller,
    ToModel,
)
from bridge.core.conversation import Conversation
from bridge.fleet import CallEntry, NextStep, Registry
from bridge.watch.log import NoteLog
from bridge.watch.metrics import Metrics
from bridge.watch.trace import Trace, feed

MAX_TO_PHONE = 4000
"""Messages waiting for Twilio. It takes ten minutes of audio at once; a socket that
lets so many pile up takes none."""

SEND_SECONDS = 5.0
"""A socket that takes nothing for so long is dead, though nobody said so."""

CLOSE_SECONDS = 1.0
"""For what must still be said to the phone and the registry when a call is over."""

MEASURE_EVERY = 10
"""Of the 50 frames a second, one in so many is timed: enough to see, cheap to have."""


class Phone(Protocol):
    """The caller's end: Twilio's messages, one each, until the stream ends.

    Iterating raises ProtocolError where it ends because of what was sent, sending a
    ConnectionError where nobody is there any more.
    """

    def __aiter__(self) -> AsyncIterator[str | bytes]: ...
    async def send(self, text: str) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class House:
    """What all calls of an instance share."""

    source: AgentSource
    target: ModelTarget
    greeting: str | None
    registry: Registry
    metrics: Metrics
    record_dir: Path | None = None
    account_sid: str | None = None
    """Streams of another account are refused; None: of any."""


class _Over(Exception):
    """The call has ended; ends the TaskGroup and all that is in it."""


class Call:
    """`run` once. Returns how it ended; leaves no task, no socket, no entry behind."""

    def __init__(self, phone: Phone, house: House) -> None:
        now = time.monotonic()
        self._phone = phone
        self._house = house
        self._talk = Conversation(greeting=house.greeting, now=now)
        self._log = structlog.get_logger()
        self._notes = NoteLog(self._log)
        self._trace = (
            Trace(house.greeting, now, self._trace_lost) if house.record_dir else None
        )
        self._tasks = asyncio.TaskGroup()
        self._own_tasks: list[asyncio.Task[None]] = []
        self._to_phone: asyncio.Queue[tuple[str, float]] = asyncio.Queue(MAX_TO_PHONE)
        self._agent: AgentSession | None = None
        self._entry: CallEntry | None = None
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
        self._house.metrics.calls_active.inc()
        try:
            async with self._tasks:
                self._spawn(self._listen(), "caller reader")
                self._spawn(self._speak(), "caller writer")
                self._spawn(self._keep_time(), "clock")
                self._set_timer(time.monotonic())
                await self._ended.wait()
                raise _Over
        except* _Over:
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

    def end(self, why: str) -> None:
        """The bridge itself ends the call (it is shutting down)."""
        self._feed("end", ["bridge", why])

    async def _listen(self) -> None:
        """The caller's messages, as they come. Waits for nothing but the next one."""
        try:
            async for text in self._phone:
                self._hear(text)
        except ProtocolError as error:
            self._feed("misread", ["caller", error.reason])
            self._feed("end", ["caller", "protocol_error"])
        # Twilio closes behind a `stop`; without one the line broke.
        self._feed("end", ["caller", "connection_lost"])

    def _hear(self, text: str | bytes) -> None:
        now = time.monotonic()
        try:
            if isinstance(text, bytes):
                raise ProtocolError("binary message")
            message = media_stream.decode(text)
        except ProtocolError as error:
            self._feed("misread", ["caller", error.reason])
            return
        if self._trace:
            self._trace.input("caller", text, now)
        self._obey(self._talk.from_caller(message, now), now)

    async def _speak(self) -> None:
        """What is decided for the caller, in order, by one writer."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                text, since = await self._to_phone.get()
                async with asyncio.timeout(SEND_SECONDS) as limit:
                    await self._phone.send(text)
                    while not self._to_phone.empty():
                        limit.reschedule(loop.time() + SEND_SECONDS)  # for each anew
                        text, since = self._to_phone.get_nowait()
                        await self._phone.send(text)
                self._house.metrics.model_to_caller.observe(time.monotonic() - since)
        except (ConnectionError, TimeoutError):
            self._feed("end", ["caller", "connection_lost"])

    async def _converse(self, facts: CallFacts) -> None:
        """The agent's session, from opening to end."""
        house = self._house
        self._agent = AgentSession(
            house.source, house.target, facts, self, self._tasks, self._sent_to_model
        )
        try:
            await self._agent.run()
        except ModelRefused as refused:
            self._see(Note("model_refused", {"why": refused.why}))
            self._feed("end", ["model", "refused"])
        except (ValidationError, ModelBehaviorError) as error:
            # The model sent what the SDK cannot take; the text of the error quotes it.
            self._log.error("model_misbehaved", error=type(error).__name__)
            self._feed("end", ["model", "protocol_error"])
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise  # by us: the call is over
            self._log.error("agent_failed", error="CancelledError")
            self._feed("end", ["bridge", "agent_failed"])
        except (Exception, SystemExit):
            # The user's code: their function, their instructions, a tool that asked
            # for its errors to be raised. Theirs to mend, so all of it is logged.
            self._log.exception("agent_failed")
            self._feed("end", ["bridge", "agent_failed"])
        else:
            self._feed("end", ["model", "closed"])

    async def _conclude(self) -> None:
        """All that must be said when a call is over, whatever happens meanwhile."""
        if self._timer:
            self._timer.cancel()
        if self._trace:
            self._trace.close()
        outcome = f"{self._ending.by}_{self._ending.why}"
        self._house.metrics.calls_active.dec()
        self._house.metrics.calls.labels(outcome).inc()
        seconds = round(time.monotonic() - self._began, 3)
        self._log.info("call_ended", outcome=outcome, seconds=seconds)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._entry:
                    await self._house.registry.closed(self._entry, self._next_step())
                await self._phone.close()
        except (TimeoutError, ConnectionError):
            self._log.warning("close_late")

    def _next_step(self) -> NextStep | None:
        """What Twilio is told when it asks how the call goes on; None: it will not."""
        if (self._ending.by, self._ending.why) == ("caller", "hung_up"):
            return None
        # Whoever is still on the line did not end it: no silence, a word.
        return NextStep.SORRY

    # --- what the agent's session tells (bridge.agent.session.SessionLine) ---

    def model_event(self, event: realtime.ServerEvent, text: str) -> None:
        if isinstance(event, realtime.Other):
            return
        now = time.monotonic()
        if self._trace:
            self._trace.input("model", text, now)
        self._obey(self._talk.from_model(event, now), now)

    def model_misread(self, reason: str) -> None:
        self._feed("misread", ["model", reason])

    def model_lost(self, why: str, code: int | None) -> None:
        self._see(Note("model_gone", {"why": why, "close_code": code}))
        self._feed("end", ["model", why])

    def interrupt_agent(self, by: str, response_id: str | None) -> None:
        self._feed("interrupt", [by, response_id])

    def session_event(self, event: RealtimeSessionEvent) -> None:
        note = session_note(event)
        if note:
            self._see(note)
            if self._trace:
                self._trace.session(note, time.monotonic())

    # --- carrying out ---

    def _feed(self, kind: str, value: Sequence[str | None] = ()) -> None:
        """An input that is no message: one path for all, so that a trace has it."""
        now = time.monotonic()
        if self._trace:
            self._trace.input(kind, value, now)
        self._obey(feed(self._talk, kind, value, now), now)

    def _obey(self, commands: list[Command], now: float) -> None:
        """Carries commands out, in order, without waiting for any."""
        for command in commands:
            if self._trace:
                self._trace.command(command, now)
            match command:
                case ToModel(text):
                    assert self._agent, "the model has spoken, so there is a session"
                    self._agent.post(text)
                case ToCaller(text):
                    self._to_caller(text, now)
                case Note():
                    self._see(command)
                case Interrupted(item_id, content_index):
                    assert self._agent, "the model has spoken, so there is a session"
                    self._agent.interrupted(item_id, content_index)
                case Started(start):
                    self._start(start)
                case End():
                    self._ending = command
                    self._ended.set()
        self._set_timer(now)

    def _to_caller(self, text: str, now: float) -> None:
        try:
            self._to_phone.put_nowait((text, now))
        except asyncio.QueueFull:
            self._feed("end", ["caller", "stuck"])

    def _see(self, note: Note) -> None:
        self._notes.note(note)
        self._house.metrics.note(note)

    def _start(self, start: media_stream.Start) -> None:
        """Now the call has a name: its log, its trace, its entry, its agent."""
        facts = facts_of(start)
        if self._house.account_sid not in (None, facts.account_sid):
            self._feed("end", ["caller", "wrong_account"])
            return
        sid = facts.call_sid
        self._entry = CallEntry(sid, facts.stream_sid, time.time())
        self._log = self._log.bind(call_sid=sid, stream_sid=facts.stream_sid)
        self._notes = NoteLog(self._log)
        self._log.info("call_started")
        if self._trace and self._house.record_dir:
            self._trace.open(self._house.record_dir, sid, facts.stream_sid)
        for task in self._own_tasks:
            task.set_name(f"{sid} {task.get_name()}")
        self._spawn(self._house.registry.opened(self._entry), f"{sid} entry")
        self._spawn(self._converse(facts), f"{sid} agent")

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        self._own_tasks.append(self._tasks.create_task(work, name=name))

    def _set_timer(self, now: float) -> None:
        """The core is called when its deadline comes. Not set anew 50 times a second:
        a timer that is early finds nothing due, and sets the next."""
        deadline = self._talk.deadline
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
            self._house.metrics.caller_to_model.observe(seconds)


def facts_of(start: media_stream.Start) -> CallFacts:
    """The call's facts. From and To come as parameters: a stream does not name them."""
    parameters = start.start.custom_parameters or {}
    return CallFacts(
        call_sid=start.start.call_sid,
        stream_sid=start.stream_sid,
        account_sid=start.start.account_sid,
        from_number=parameters.get("From", ""),
        to_number=parameters.get("To", ""),
        parameters=parameters,
    )


def session_note(event: RealtimeSessionEvent) -> Note | None:
    """What is worth seeing of the SDK's events; the rest is in the core's own Notes."""
    match event:
        case RealtimeToolStart() | RealtimeToolEnd():
            return Note(event.type, {"tool": event.tool.name})
        case RealtimeHandoffEvent():
            agents = {"agent": event.from_agent.name, "to": event.to_agent.name}
            return Note("handoff", agents)
        case RealtimeGuardrailTripped():
            names = [it.guardrail.get_name() for it in event.guardrail_results]
            return Note("guardrail_tripped", {"guardrails": ", ".join(names)})
        case RealtimeAudioInterrupted():
            return Note("audio_interrupted", {"item": event.item_id})
        case RealtimeToolApprovalRequired():
            return Note("tool_waits_for_approval", {"tool": event.tool.name})
        case RealtimeError(error=dict()):
            # Of the SDK's own making (a tool that is not there, a guardrail that
            # raised); the model's errors are in the core's Notes.
            return Note("session_error", {"kind": "sdk"})
        case _:
            return None
