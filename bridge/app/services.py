"""What calls of an instance share: agents, routes, model, registry, quotas, reports.

startup.py makes it. It applies a route's settings to a call and decides nothing else
about the call.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bridge.agent import user_code
from bridge.agent.live import CallFacts, LiveCall, Transfer
from bridge.agent.loader import AgentSource
from bridge.app import dial_permissions
from bridge.app.background_tasks import BackgroundTasks
from bridge.app.fallback import FallbackSwitch
from bridge.app.quotas import Quotas
from bridge.app.recordings import TONE, Sound, recording
from bridge.app.route_types import RouteGreeting
from bridge.app.routes import Route, Routes
from bridge.app.warm_calls import WarmCalls
from bridge.core.history import HistoryItem
from bridge.core.limits import Bounds, Limits
from bridge.core.rules import (
    MOVED,
    SLOW_TOOL_SECONDS,
    Prices,
    Recording,
    Rules,
)
from bridge.fleet import InstanceLoad, Registry
from bridge.fleet.snapshot import CallSnapshot
from bridge.model.local_mcp import LocalMcp
from bridge.model.session import ModelTarget
from bridge.records import retention
from bridge.records.report import CallReport, Reports
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.trace_file import TraceWriter
from twiml.spoken_texts import MOMENT


@dataclass(slots=True)
class Capacity:
    """How many calls this instance has, and how many it may have."""

    limit: int
    streams: int = 0
    others: Callable[[], int] = lambda: 0
    """Number of calls without a stream: SIP calls, whose audio OpenAI has."""
    draining: bool = False
    """The instance takes no new calls."""

    @property
    def load(self) -> InstanceLoad:
        return InstanceLoad(self.limit, self.streams + self.others(), self.draining)

    @property
    def free(self) -> bool:
        return self.load.free

    @property
    def state(self) -> str:
        """For the operator: draining, ready or full."""
        if self.draining:
            return "draining"
        return "ready" if self.free else "full"


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Limits of every call. A route may set lower limits, not higher ones."""

    longest_seconds: float = float("inf")
    cost: float | None = None
    prices: Prices | None = None
    """For routes that set no prices."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all calls of an instance share."""

    source: AgentSource
    """The agent of routes that name none."""
    target: ModelTarget
    greeting: str | None
    registry: Registry
    metrics: Metrics
    background_tasks: BackgroundTasks
    reports: Reports
    local_mcp: LocalMcp
    capacity: Capacity
    quotas: Quotas
    trace_writer: TraceWriter
    fallback: FallbackSwitch
    ceilings: Ceilings = Ceilings()
    routes: Routes = field(default_factory=Routes.none)
    sources: Mapping[str, AgentSource] = field(default_factory=dict)
    """Agents that routes name, by that name."""
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Functions that routes name, by that name."""
    report_url: str | None = field(default=None, repr=False)
    print_report: Callable[[CallReport], None] | None = None
    """Prints the report of each call that has ended for people (BRIDGE_PRINT_CALLS)."""
    fallback_number: str = ""
    transfer_prefixes: tuple[str, ...] = ()
    """Numbers to which calls may be transferred, besides those that routes name."""
    outbound_number: str = ""
    warm_calls: WarmCalls | None = None
    """None: warm transfers lack the settings in `missing_for_warm`."""
    missing_for_warm: tuple[str, ...] = ()
    record_dir: Path | None = None
    waiting_sound: Sound = TONE
    slow_tool_seconds: float = SLOW_TOOL_SECONDS
    one_moment: bool = False
    """Twilio asks how a call goes on when its stream has ended."""
    """Of routes that set none."""
    session_seconds: float | None = None
    """Age at which a model session is replaced by a new one."""
    account_sids: frozenset[str] = frozenset()
    """Streams of other Twilio accounts are refused; empty: no account is refused."""
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    """How much one call accepts from the caller and from the model."""

    def route_of(self, facts: CallFacts) -> Route:
        """The route that the call names, else the first route that matches."""
        return self.routes.named(facts.route) or self.routes.pick(facts)

    def source_of(self, route: Route) -> AgentSource:
        return self.sources.get(route.agent or "", self.source)

    def greeting_of(self, route: Route) -> str | None:
        """None if the caller speaks first; a route says so with an empty greeting."""
        own = route.greeting
        if isinstance(own, RouteGreeting):
            own = own.text
        return own or None if own is not None else self.greeting

    def fallback_of(self, route: Route) -> str:
        """The number that Twilio dials when the agent fails; empty if there is none."""
        return route.fallback or self.fallback_number

    async def begin(self, route: Route, live: LiveCall) -> None:
        """Runs the user's `on_call` before the call's session starts. TimeoutError
        after user_code.SECONDS; else whatever `on_call` raises."""
        hook = self.functions.get(route.on_call or "")
        if hook is not None:
            name, seconds = f"{live.call_sid} on_call", user_code.SECONDS
            await user_code.call(hook, live, name=name, seconds=seconds)

    def check_transfer(self, route: Route, live: LiveCall, to: Transfer) -> None:
        """Calls dial_permissions.check_transfer with the numbers of this deployment."""
        dial_permissions.check_transfer(
            route,
            live,
            to,
            prefixes=self.transfer_prefixes,
            fallback_number=self.fallback_number,
            outbound_number=self.outbound_number,
        )

    async def forget(self, call_sid: str) -> None:
        """Deletes what is stored of a call that has ended: traces on this machine and
        entries in the registry. OSError: a trace could not be deleted, or is not
        written yet."""
        if not await self.trace_writer.written():
            raise OSError("traces wait to be written: try again later")
        await retention.forget_call(self.record_dir, self.registry, call_sid)

    def deliver_report(self, route: Route, report: CallReport) -> None:
        """Sends the report to the function and the URL that the route names, and to the
        terminal of a developer. Without a URL in the route, BRIDGE_REPORT_URL is
        used."""
        where = route.report
        to = self.functions.get(where.to or "") if where else None
        url = (where.url if where else None) or self.report_url
        if to or url:
            self.reports.send(report, to, url)
        if self.print_report:
            # Not here: an error of the printer must not reach the end of the call.
            asyncio.get_running_loop().call_soon(self.print_report, report)


def _recordings(route: Route, history: Sequence[HistoryItem]) -> tuple[Recording, ...]:
    """Those that a call on this route begins with. `history`: what was said on earlier
    streams, after which only what must be heard to its end, and was not, is played."""
    found = []
    if notice := route.notice:
        payload = recording(notice.file)
        found.append(Recording("bridge_notice", payload, notice.words, False))
    greeting = route.greeting
    if isinstance(greeting, RouteGreeting) and greeting.file:
        payload, words = recording(greeting.file), greeting.words
        id, interruptible = "bridge_greeting", greeting.interruptible
        found.append(Recording(id, payload, words, interruptible))
    if not history:
        return tuple(found)
    return tuple(
        msgspec.structs.replace(it, id=f"{it.id}_{len(history)}")
        for it in found
        if not it.interruptible and _was_cut_off(it.id, history)
    )


def _was_cut_off(recording_id: str, history: Sequence[HistoryItem]) -> bool:
    """The stream ended while this recording was played: nothing was said after it."""
    for item in reversed(history):
        if item.id.startswith(recording_id):
            return item.cut
        if item.text and item.kind in ("user", "assistant"):
            return False
    return False


def moment_text(route: Route) -> str:
    """The sentence that asks a caller of this route to wait; empty: none. The usual one
    is English."""
    if route.one_moment is not None:
        return route.one_moment
    return MOMENT if (route.language or "en").startswith("en") else ""


def _slow_tool_seconds(route: Route, usual: float) -> float | None:
    seconds = route.slow_tool_seconds
    return (usual if seconds is None else seconds) or None


def rules_for(
    route: Route,
    greeting: str | None,
    snapshot: CallSnapshot,
    session_seconds: float | None = None,
    ceilings: Ceilings = Ceilings(),
    waiting_sound: Sound = TONE,
    slow_tool_seconds: float = SLOW_TOOL_SECONDS,
    *,
    one_moment: bool = False,
) -> Rules:
    """The Rules of a call on this route; `snapshot` is what earlier streams of the call
    have used and said."""
    silence, cost = route.silence, route.cost
    longest = min(route.longest_seconds, ceilings.longest_seconds)
    limits = [cost.limit if cost else None, ceilings.cost]
    recordings = _recordings(route, snapshot.history)
    # With them the call begins again: the agent has nothing to go on with.
    why = snapshot.instruction if recordings else snapshot.why
    rules = Rules(
        greeting=greeting,
        greeting_interruptible=not isinstance(route.greeting, RouteGreeting)
        or route.greeting.interruptible,
        recordings=recordings,
        silent_seconds=silence.seconds if silence else None,
        longest_seconds=max(longest - snapshot.call_seconds, 0.0),
        spent=snapshot.cost,
        prices=cost.prices if cost else ceilings.prices,
        cost_limit=min((it for it in limits if it is not None), default=None),
        key_pause_seconds=route.key_pause_seconds,
        key_stops_agent=route.key_stops_agent,
        key_actions=tuple(route.keys),
        resumes_after_noise=route.resume_after_noise,
        waiting_sound=(route.waiting_sound or waiting_sound).payload,
        one_moment=one_moment and bool(moment_text(route)),
        slow_tool_seconds=_slow_tool_seconds(route, slow_tool_seconds),
        history=snapshot.history,
        elapsed=snapshot.call_seconds,
        word=why if snapshot.history else "",
        aside=MOVED if snapshot.unnoticed and snapshot.history else "",
        session_seconds=session_seconds,
    )
    if silence is None:
        return rules
    return msgspec.structs.replace(
        rules, silent_asks=silence.ask, silent_text=silence.tell
    )
