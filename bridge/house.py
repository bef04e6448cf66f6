"""What all calls of an instance share: agents, routes, the model, who is told what.

Made by opening.py. Decides nothing about a call but how its route wants it to be led.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bridge import user_code
from bridge.agent.live import CallFacts, LiveCall
from bridge.agent.loader import AgentSource
from bridge.agent.local_mcp import LocalMcp
from bridge.agent.session import ModelTarget
from bridge.agent.sip import SipCalls
from bridge.core.rules import MOVED, Rules
from bridge.errands import Errands
from bridge.fleet import Capacity, Registry
from bridge.fleet.plan import Earlier
from bridge.report import CallReport, Reports
from bridge.routes import Route, Routes
from bridge.watch.metrics import Metrics

HOOK_SECONDS = 10.0
"""For the user's `on_call`; the caller waits for it."""


@dataclass(slots=True)
class Lines:
    """How many calls an instance has, and may have."""

    limit: int
    streams: int = 0
    others: Callable[[], int] = lambda: 0
    """Calls that have no stream."""
    draining: bool = False
    """The instance takes no more."""

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.limit, self.streams + self.others(), self.draining)

    @property
    def free(self) -> bool:
        return self.capacity.free

    @property
    def state(self) -> str:
        """What an operator reads."""
        if self.draining:
            return "draining"
        return "ready" if self.free else "full"


@dataclass(frozen=True, slots=True)
class House:
    """What all calls of an instance share."""

    source: AgentSource
    target: ModelTarget
    greeting: str | None
    registry: Registry
    metrics: Metrics
    errands: Errands
    reports: Reports
    local_mcp: LocalMcp
    lines: Lines
    routes: Routes = field(default_factory=Routes.none)
    sources: Mapping[str, AgentSource] = field(default_factory=dict)
    """The agents that routes name."""
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The functions that routes name."""
    report_url: str | None = field(default=None, repr=False)
    fallback_number: str = ""
    record_dir: Path | None = None
    session_seconds: float | None = None
    """How old a session of the model's may get before another takes its place."""
    account_sid: str | None = None
    """Streams of another account are refused; None: of any."""
    sip: SipCalls | None = None
    """The calls that OpenAI has the audio of."""

    def route_of(self, facts: CallFacts) -> Route:
        """The one that was named for this call, else the first that fits."""
        return self.routes.named(facts.route) or self.routes.pick(facts)

    def source_of(self, route: Route) -> AgentSource:
        return self.sources.get(route.agent or "", self.source)

    def greeting_of(self, route: Route) -> str | None:
        """None: the caller speaks first, which is what an empty one means."""
        own = route.greeting
        return own or None if own is not None else self.greeting

    async def begin(self, route: Route, live: LiveCall) -> None:
        """The user's own code is told of a call, before its session."""
        hook = self.functions.get(route.on_call or "")
        if hook is not None:
            async with asyncio.timeout(HOOK_SECONDS):
                await user_code.ask(hook, live, f"{live.call_sid} on_call")

    def hand_over(self, route: Route, report: CallReport) -> None:
        """The report of a call, to whoever the route or the house names."""
        where = route.report
        to = self.functions.get(where.to or "") if where else None
        url = (where.url if where else None) or self.report_url
        if to or url:
            self.reports.send(report, to, url)


def rules_for(
    route: Route,
    greeting: str | None,
    earlier: Earlier,
    session_seconds: float | None = None,
) -> Rules:
    """How a call on this route is led."""
    silence, cost = route.silence, route.cost
    rules = Rules(
        greeting=greeting,
        silent_seconds=silence.seconds if silence else None,
        longest_seconds=max(route.longest_seconds - earlier.seconds, 0.0),
        spent=earlier.cost,
        prices=cost.prices if cost else None,
        cost_limit=cost.limit if cost else None,
        key_pause_seconds=route.key_pause_seconds,
        key_actions=tuple(route.keys),
        history=earlier.history,
        elapsed=earlier.seconds,
        word=earlier.why if earlier.history else "",
        aside=MOVED if earlier.quiet and earlier.history else "",
        session_seconds=session_seconds,
    )
    if silence is None:
        return rules
    return msgspec.structs.replace(
        rules, silent_asks=silence.ask, silent_text=silence.tell
    )
