"""`bridge check --dial`: opens a session for each route's agent, as a call would, and
says what the model's server refused and what it did not confirm. No phone is involved.

For an agent with output guardrails it also asks for one short answer: no setting of a
session tells whether a server sends the words of its audio, which guardrails read.
"""

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from agents.realtime import RealtimeSessionEvent

from bridge.agent.approvals import Approvals
from bridge.agent.events import Listeners
from bridge.agent.finished_tools import FinishedTool
from bridge.agent.live import (
    CallControl,
    CallFacts,
    CallOver,
    LiveCall,
    Role,
    Transfer,
)
from bridge.app.routes import Route
from bridge.app.services import Services
from bridge.core import errors, realtime_events
from bridge.core.answered import Answer
from bridge.core.history import HistoryItem
from bridge.core.sessions import CONFIGURE_SECONDS
from bridge.model.dialects import WORDLESS
from bridge.model.session import AgentSession, SessionPlan

SECONDS = 2 * CONFIGURE_SECONDS
"""Limit of one check: the user's code, the handshake, and the configuration."""

CONFIRMED: Mapping[str, tuple[str, ...]] = {
    "output_modalities": ("output_modalities",),
    "instructions": ("instructions",),
    "input format": ("audio", "input", "format", "type"),
    "output format": ("audio", "output", "format", "type"),
    "voice": ("audio", "output", "voice"),
    "turn detection": ("audio", "input", "turn_detection", "type"),
    "transcription": ("audio", "input", "transcription", "model"),
}
"""What a server must confirm: name -> place in the session."""


ANSWER = {
    "type": "response.create",
    "event_id": "bridge_check",
    "response": {"instructions": "Say only: yes.", "tool_choice": "none"},
}
"""Asks for an answer in which no tool runs."""


@dataclass(slots=True)
class CheckedSession:
    """What the server has said to one route's agent."""

    route: str
    agent: str = ""
    model: str = ""
    voice: str = ""
    round_trip: float | None = None
    """Seconds from session.update to session.updated; None: it never came."""
    problems: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What is right, for people."""
        took = round(1000 * (self.round_trip or 0.0))
        return (
            f"agent {self.agent}, model {self.model}, voice {self.voice}: "
            f"configured in {took} ms"
        )


class SessionCheck:
    """The owner of one session (bridge.model.session.SessionOwner), and the call that
    the user's code gets (bridge.agent.live.CallControl). Nobody speaks."""

    history: Sequence[HistoryItem] = ()

    def __init__(self, route: str) -> None:
        self.result = CheckedSession(route)
        self.ended = asyncio.Event()
        self.session: AgentSession | None = None
        self.awaited = "the server never confirmed session.update"
        """The problem if what is awaited does not come in time."""
        self._configured_at = 0.0
        self._asked = False
        """An answer was asked for."""
        self._sounded = False
        """It has audio."""

    def problem(self, text: str) -> None:
        if text not in self.result.problems:
            self.result.problems.append(text)

    # --- the session's owner ---

    def model_dialled(self, connection: int) -> None:
        assert self.session, "the session has dialled"
        self._configured_at = time.monotonic()
        self.session.switch(connection)

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None:
        self.problem(f"refused: {why}")
        self.ended.set()

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None:
        if isinstance(event, realtime_events.ModelError):
            code = errors.short(event.error.code or event.error.type)
            self.problem(f"refused: {code}: {event.error.message[:300]}")
            self.ended.set()
        elif isinstance(event, realtime_events.SessionUpdated):
            self._updated(msgspec.json.decode(text)["session"])
        elif isinstance(event, realtime_events.AudioDelta):
            self._sounded = True
        elif isinstance(event, realtime_events.ResponseDone) and self._asked:
            self._answered(event.response)

    def _updated(self, confirmed: dict[str, Any]) -> None:
        assert self.session, "the session was configured"
        if self._asked:
            return
        self._compare(confirmed)
        if self.result.problems or not self.session.is_guarded:
            self.ended.set()
            return
        self._asked, self.awaited = True, "no answer came to: say yes"
        self.session.post(msgspec.json.encode(ANSWER).decode())

    def _answered(self, answer: realtime_events.ResponseHead) -> None:
        if answer.status not in (None, "completed"):
            self.problem(f"no answer: {errors.short(answer.why or answer.status)}")
        elif not self._sounded:
            self.problem("the answer has no audio")
        self.ended.set()

    def _compare(self, confirmed: dict[str, Any]) -> None:
        """What the server has confirmed, with what was asked for."""
        assert self.session, "the session was configured"
        result, asked = self.result, self.session.requested
        result.round_trip = time.monotonic() - self._configured_at
        result.model = str(confirmed.get("model") or "(not named)")
        result.voice = str(_at(confirmed, CONFIRMED["voice"]) or "(not named)")
        for name, place in CONFIRMED.items():
            wanted, got = _at(asked, place), _at(confirmed, place)
            if wanted is None or wanted == got:
                continue
            shown = "" if name == "instructions" or got is None else f" ({got!r})"
            self.problem(f"not confirmed: {name}{shown}")
        tools = _tools(asked) - _tools(confirmed)
        if tools:
            self.problem(f"not confirmed: tools {', '.join(sorted(tools))}")

    def model_misread(self, reason: str, kind: str = "") -> None:
        assert self.session, "only a session has events"
        if reason in WORDLESS and self.session.is_guarded:
            self.problem(f"the output guardrails have nothing to read: {reason}")
        else:
            self.problem(f"event that cannot be used: {kind or reason}")

    def model_lost(self, connection: int, why: str, code: int | None) -> None:
        self.problem(f"the connection was lost: {why}, close code {code}")
        self.ended.set()

    def model_stuck(self, why: str) -> None:
        self.problem(why)
        self.ended.set()

    def model_limit(self, limit: str) -> None:
        self.problem(f"limit {limit}")

    def send_to_model(self, text: str) -> None: ...
    def ask(self) -> None: ...
    def interrupt_agent(self, by: str, response_id: str | None) -> None: ...
    def handoff_refused(self, agent: str, to: str) -> None: ...
    def tool_running(self, change: int, call_id: str = "") -> None: ...
    def tool_finished(self, tool: FinishedTool) -> None: ...
    def session_event(self, event: RealtimeSessionEvent) -> None: ...

    # --- the call that the user's code gets ---

    def tell(self, role: Role, text: str, *, respond: bool) -> None: ...
    def interrupt(self, by: str) -> None: ...
    def mute(self, on: bool) -> None: ...
    def send_raw(self, event: Mapping[str, Any]) -> None: ...
    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None: ...

    async def heard(self) -> bool:
        raise CallOver

    async def hang_up(self) -> bool:
        raise CallOver

    async def transfer(self, transfer: Transfer, summary: str) -> bool:
        raise CallOver

    async def send_digits(self, digits: str) -> bool:
        raise CallOver

    def decide_answer(self, who: Answer) -> bool:
        raise CallOver


async def check_sessions(services: Services) -> list[CheckedSession]:
    """Each route's session, one after the other."""
    routes = [*services.routes.routes, services.routes.defaults]
    names = [it.name or f"route {n}" for n, it in enumerate(routes[:-1], 1)]
    named = zip([*names, "defaults"], routes, strict=True)
    return [await _check(services, name, route) for name, route in named]


@dataclass(frozen=True, slots=True)
class SampleCall:
    """What the user's code gets of a call that nobody makes."""

    live: LiveCall
    approvals: Approvals
    tasks: asyncio.TaskGroup


@asynccontextmanager
async def sample_call(
    facts: CallFacts, control: CallControl, route: Route
) -> AsyncIterator[SampleCall]:
    """A call without a phone and without a model; `control` does what it is told to."""
    async with asyncio.TaskGroup() as tasks:

        def start(work: Any, called: str) -> asyncio.Task[None]:
            return tasks.create_task(work, name=called)

        listeners = Listeners(start, facts.call_sid)
        approvals = Approvals(
            route.approval, start, facts.call_sid, lambda change, call: None
        )
        live = LiveCall(facts, control, listeners, approvals)
        yield SampleCall(live, approvals, tasks)
        listeners.end()


async def _check(services: Services, name: str, route: Route) -> CheckedSession:
    check = SessionCheck(name)
    async with sample_call(CallFacts("check", "", ""), check, route) as it:
        plan = SessionPlan(services.source_of(route), services.target, route.session)
        check.session = AgentSession(
            *(plan, it.live, check, it.approvals, services.local_mcp, it.tasks),
            lambda late: None,
        )
        running = it.tasks.create_task(_running(check, check.session.run), name="check")
        try:
            async with asyncio.timeout(SECONDS):
                await check.ended.wait()
        except TimeoutError:
            check.problem(check.awaited)
        check.result.agent = it.live.agent_name
        running.cancel()
    return check.result


async def _running(check: SessionCheck, run: Callable[[], Awaitable[None]]) -> None:
    """An error of the user's code is a finding like any other."""
    try:
        await run()
    except Exception as error:
        check.problem(f"fails: {type(error).__name__}: {error}")
    finally:
        check.ended.set()


def _at(session: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    value: Any = session
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _tools(session: Mapping[str, Any]) -> set[str]:
    tools = session.get("tools")
    named = (it.get("name") for it in tools or () if isinstance(it, Mapping))
    return {str(name) for name in named if name}
