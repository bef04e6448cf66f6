"""What all calls of an instance share: agents, routes, the model, who is told what.

Made by startup.py. Decides nothing about a call but how its route wants it to be led.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import twiml
from bridge.agent import user_code
from bridge.agent.live import CallFacts, LiveCall, NotAllowed, Transfer
from bridge.agent.loader import AgentSource
from bridge.app.background_tasks import BackgroundTasks
from bridge.app.quotas import Quotas, may_dial
from bridge.app.routes import Route, Routes
from bridge.core.bounds import Bounds
from bridge.core.limits import Limits
from bridge.core.rules import MOVED, Prices, Rules
from bridge.fleet import InstanceLoad, Registry
from bridge.fleet.plan import CallSnapshot
from bridge.model.local_mcp import LocalMcp
from bridge.model.session import ModelTarget
from bridge.records import retention
from bridge.records.report import CallReport, Reports
from bridge.sip.sip import SipCalls
from bridge.telemetry.metrics import Metrics

HOOK_SECONDS = 10.0
"""For the user's `on_call`; the caller waits for it."""


@dataclass(slots=True)
class Capacity:
    """How many calls an instance has, and may have."""

    limit: int
    streams: int = 0
    others: Callable[[], int] = lambda: 0
    """Calls that have no stream."""
    draining: bool = False
    """The instance takes no more."""

    @property
    def load(self) -> InstanceLoad:
        return InstanceLoad(self.limit, self.streams + self.others(), self.draining)

    @property
    def free(self) -> bool:
        return self.load.free

    @property
    def state(self) -> str:
        """What an operator reads."""
        if self.draining:
            return "draining"
        return "ready" if self.free else "full"


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What no call exceeds, whatever its route says."""

    longest_seconds: float = float("inf")
    cost: float | None = None
    prices: Prices | None = None
    """For routes that have none of their own."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all calls of an instance share."""

    source: AgentSource
    target: ModelTarget
    greeting: str | None
    registry: Registry
    metrics: Metrics
    background_tasks: BackgroundTasks
    reports: Reports
    local_mcp: LocalMcp
    capacity: Capacity
    quotas: Quotas
    ceilings: Ceilings = Ceilings()
    routes: Routes = field(default_factory=Routes.none)
    sources: Mapping[str, AgentSource] = field(default_factory=dict)
    """The agents that routes name."""
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The functions that routes name."""
    report_url: str | None = field(default=None, repr=False)
    fallback_number: str = ""
    transfer_prefixes: tuple[str, ...] = ()
    """Whom calls may be put through to, beside those whom routes name."""
    outbound_number: str = ""
    record_dir: Path | None = None
    session_seconds: float | None = None
    """How old a session of the model's may get before another takes its place."""
    account_sid: str | None = None
    """Streams of another account are refused; None: of any."""
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    """What a call bears of either side."""
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

    def check_transfer(self, route: Route, live: LiveCall, to: Transfer) -> None:
        """NotAllowed unless whoever set up the bridge wants such a call: it costs
        money, and an agent can be talked into much."""
        keys = (it for it in route.keys.values() if isinstance(it, Transfer))
        fallback = Transfer(route.fallback or self.fallback_number)
        named = [*route.transfers.values(), *keys, *live.transfers.values(), fallback]
        named = [it for it in named if _same(it.number, to.number)]
        ours = [live.facts.ours, self.outbound_number, *(it.caller_id for it in named)]
        if not named and not may_dial(to.number, self.transfer_prefixes):
            raise NotAllowed(
                "this number is not among those that calls may be put through to: name "
                "it in the route's transfers, or allow its beginning with "
                "BRIDGE_TRANSFER_PREFIXES"
            )
        if to.caller_id and not any(_same(it, to.caller_id) for it in ours):
            raise NotAllowed(
                "the caller_id is none of ours: our number in this call, "
                "BRIDGE_OUTBOUND_NUMBER, or the one that the route's transfer names"
            )

    async def forget(self, call_sid: str) -> None:
        """Deletes what is kept of a call that is over, here and on the shelf. OSError:
        some of it could not be."""
        await retention.forget_call(self.record_dir, self.registry, call_sid)

    def deliver_report(self, route: Route, report: CallReport) -> None:
        """The report of a call, to whoever the route or the house names."""
        where = route.report
        to = self.functions.get(where.to or "") if where else None
        url = (where.url if where else None) or self.report_url
        if to or url:
            self.reports.send(report, to, url)


def rules_for(
    route: Route,
    greeting: str | None,
    snapshot: CallSnapshot,
    session_seconds: float | None = None,
    ceilings: Ceilings = Ceilings(),
) -> Rules:
    """How a call on this route is led."""
    silence, cost = route.silence, route.cost
    longest = min(route.longest_seconds, ceilings.longest_seconds)
    limits = [cost.limit if cost else None, ceilings.cost]
    rules = Rules(
        greeting=greeting,
        silent_seconds=silence.seconds if silence else None,
        longest_seconds=max(longest - snapshot.call_seconds, 0.0),
        spent=snapshot.cost,
        prices=cost.prices if cost else ceilings.prices,
        cost_limit=min((it for it in limits if it is not None), default=None),
        key_pause_seconds=route.key_pause_seconds,
        key_actions=tuple(route.keys),
        history=snapshot.history,
        elapsed=snapshot.call_seconds,
        word=snapshot.why if snapshot.history else "",
        aside=MOVED if snapshot.unnoticed and snapshot.history else "",
        session_seconds=session_seconds,
    )
    if silence is None:
        return rules
    return msgspec.structs.replace(
        rules, silent_asks=silence.ask, silent_text=silence.tell
    )


def _same(number: str, other: str) -> bool:
    """However they are written; what is no number is nobody's."""
    try:
        return twiml.phone_number(number) == twiml.phone_number(other)
    except ValueError:
        return False
