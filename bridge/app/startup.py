"""Puts an instance together: settings, routes and the user's code -> Services.

Every mistake in them is reported before the first call. Opens no listening socket:
server.py does.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from agents import set_default_openai_key
from agents.realtime import RealtimeAgent, RealtimeRunner

from bridge.agent import loader
from bridge.agent.live import Transfer
from bridge.agent.loader import AgentNotLoaded, AgentSource
from bridge.agent.user_code import protected_loop
from bridge.app import routes as routes_file
from bridge.app.background_tasks import BackgroundTasks
from bridge.app.fallback import FallbackSwitch, following
from bridge.app.outbound_limits import OutboundLimits
from bridge.app.quotas import Quotas, reporting
from bridge.app.routes import Route, Routes, RoutesError
from bridge.app.services import Capacity, Ceilings, Services
from bridge.app.settings import OPENAI_MODEL_URL, Finding, Settings, SettingsError
from bridge.app.twilio_api import RestAccess
from bridge.app.values import LOCAL_MODEL
from bridge.app.warm_calls import WarmCalls, missing_for_warm
from bridge.core.limits import Bounds, Limits
from bridge.fleet import Registry
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.signing import FleetKey
from bridge.model.local_mcp import LocalMcp, McpUnavailable, local_mcp
from bridge.model.session import ModelTarget
from bridge.records import retention
from bridge.records.report import Reports
from bridge.telemetry.disk_space import DiskSpace, watched
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.trace_file import TraceWriter
from bridge.websocket.tls import tls_client

if TYPE_CHECKING:
    from bridge.model.transcode import ModelAudio

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UserCode:
    """The user's code: the default agent, and the agents and functions of routes."""

    source: AgentSource
    routes: Routes = field(default_factory=Routes.none)
    sources: Mapping[str, AgentSource] = field(default_factory=dict)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    connect: Callable[..., Any] | None = None


def load_user_code(settings: Settings, agent: str | None = None) -> UserCode:
    """Loads the user's code that the settings name; `agent` replaces the agent of the
    settings. SettingsError with every mistake of it and of the routes file."""
    user_code, mistakes = read_user_code(settings, agent)
    if mistakes or user_code is None:
        raise SettingsError(mistakes)
    return user_code


def read_user_code(
    settings: Settings, agent: str | None = None
) -> tuple[UserCode | None, list[Finding]]:
    """As load_user_code, with the mistakes beside what can be used. None: the default
    agent cannot be loaded."""
    mistakes: list[Finding] = []

    def loaded(load: Callable[[str], T], name: str, *of: Finding) -> T | None:
        """None: it cannot be loaded, and `of` say which settings or keys name it."""
        try:
            return load(name)
        except AgentNotLoaded as error:
            for it in of:
                text = f"{it.text} {error}"
                mistakes.append(replace(it, text=text.replace("\n", " ")))
        return None

    source = loaded(loader.load, agent or settings.agent, _NO_AGENT)
    connect = None
    if settings.model_connect:
        connect = loaded(loader.load_function, settings.model_connect, _NO_CONNECT)
    routes, incomplete = _read_routes(settings, mistakes)
    sources: dict[str, AgentSource] = {}
    functions: dict[str, Callable[..., Any]] = {}
    for name, named in routes.agents().items():
        places = [_at(routes.where(it, "agent"), "agent:") for it in named]
        if (it := loaded(loader.load, name, *dict.fromkeys(places))) is not None:
            sources[name] = it
    for name, keys in routes.functions().items():
        places = [_at(routes.where(it, key), f"{key}:") for it, key in keys]
        if function := loaded(loader.load_function, name, *dict.fromkeys(places)):
            functions[name] = function
    mistakes += _missing_in_routes(routes, settings, incomplete)
    mistakes = list(dict.fromkeys(mistakes))
    if source is None:
        return None, mistakes
    return UserCode(source, routes, sources, functions, connect), mistakes


_FIX = "correct the name or the file"
_NO_AGENT = Finding("error", "BRIDGE_AGENT", "cannot be loaded:", _FIX)
_NO_CONNECT = Finding("error", "BRIDGE_MODEL_CONNECT", "cannot be loaded:", _FIX)


def _at(place: str, text: str, fix: str = "") -> Finding:
    """A mistake in the routes file, at `FILE:LINE`."""
    return Finding("error", "BRIDGE_ROUTES", text, fix, place)


def _read_routes(
    settings: Settings, mistakes: list[Finding]
) -> tuple[Routes, frozenset[str]]:
    """The routes as far as they can be used, and the names of those that are not
    complete. Adds the mistakes of the file."""
    if settings.routes is None:
        return Routes.none(), frozenset()
    try:
        return routes_file.load(settings.routes), frozenset()
    except RoutesError as error:
        for it in error.mistakes:
            line, _, text = it.removeprefix(f"{settings.routes}:").partition(": ")
            mistakes.append(_at(f"{settings.routes}:{line}", text))
        return error.rest, error.incomplete


def _missing_in_routes(
    routes: Routes, settings: Settings, incomplete: frozenset[str]
) -> Iterator[Finding]:
    """What a route needs beside itself. What `incomplete` ones lack may be there when
    their mistakes are corrected."""
    every = (*routes.routes, routes.defaults) if settings.routes else ()
    for route in (it for it in every if it.name not in incomplete):
        full = route.when_full
        number = route.fallback or settings.fallback_number
        if full and full.answer == "fallback" and not number:
            text = "when_full is fallback, but there is no number to dial"
            fix = "set `fallback`, or BRIDGE_FALLBACK_NUMBER"
            yield _at(routes.where(route, "when_full"), text, fix)
        if _has_warm_transfer(route) and (missing := missing_for_warm(settings)):
            text = "has a transfer that is `warm`: it needs Twilio's REST API"
            fix = f"set {', '.join(missing)}"
            yield _at(routes.where(route, "transfers"), text, fix)
        limited = settings.cost_per_call or settings.cost_per_day
        if limited and settings.prices is None and route.cost is None:
            text = (
                "has no prices, so its calls would not count towards the limit of cost"
            )
            fix = "set `cost`, or BRIDGE_PRICES"
            yield _at(routes.where(route), text, fix)


@asynccontextmanager
async def _open_services(
    settings: Settings, user_code: UserCode, model_url: str
) -> AsyncIterator[Services]:
    """The Services with the connections, tasks and threads that they need."""
    capacity, metrics = Capacity(settings.max_calls), _metrics(settings)
    async with (
        protected_loop(),
        _registry(settings, capacity, metrics) as registry,
        BackgroundTasks() as background_tasks,
        _reports(settings) as reports,
        local_mcp() as mcp,
        watched(_disk(settings, metrics)) as disk,
        TraceWriter(disk=disk) as trace_writer,
        reporting(_quotas(settings, registry, metrics)) as quotas,
        following(_fallback(settings, registry, metrics)) as fallback,
        retention.delete_expired(settings.record_dir, settings.record_days),
    ):
        yield Services(
            source=user_code.source,
            target=model_target(settings, model_url, user_code.connect),
            greeting=settings.greeting or None,
            registry=registry,
            metrics=metrics,
            background_tasks=background_tasks,
            reports=reports,
            local_mcp=mcp,
            routes=user_code.routes,
            sources=user_code.sources,
            functions=user_code.functions,
            report_url=settings.report_url,
            fallback_number=settings.fallback_number or "",
            record_dir=settings.record_dir,
            trace_writer=trace_writer,
            fallback=fallback,
            waiting_sound=settings.waiting_sound,
            slow_tool_seconds=settings.slow_tool_seconds,
            # A TwiML Bin, whose streams have no tickets, may name no next step.
            one_moment=settings.tickets == "required",
            session_seconds=settings.session_seconds or None,
            account_sids=settings.account_sids,
            capacity=capacity,
            quotas=quotas,
            ceilings=_ceilings_of(settings),
            transfer_prefixes=settings.transfer_prefixes,
            outbound_number=settings.outbound_number or "",
            warm_calls=await _warm_calls(settings, user_code.routes, registry, metrics),
            missing_for_warm=tuple(missing_for_warm(settings)),
            limits=limits_of(settings),
            bounds=_bounds_of(settings),
        )


def _disk(settings: Settings, metrics: Metrics) -> DiskSpace:
    return DiskSpace(
        settings.record_dir, metrics.records_free.set, metrics.records_used.set
    )


@asynccontextmanager
async def start_services(
    settings: Settings, user_code: UserCode, model_url: str
) -> AsyncIterator[Services]:
    """The Services, which work while the context is open. `model_url` is the resolved
    address of the model (the settings may say `local`). McpUnavailable if an agent's
    MCP server cannot be reached."""
    if settings.openai_api_key is not None:
        # Text agents that tools run need the key, too. A key that stands only in .env
        # is not in the environment, where the SDK looks for it.
        set_default_openai_key(settings.openai_api_key.get_secret_value())
    if model_url.startswith("wss:") and user_code.connect is None:
        tls_client()  # not at the first call: it stops the event loop for 30 ms
    missing: McpUnavailable | None = None
    async with _open_services(settings, user_code, model_url) as services:
        try:
            await _connect_mcp_servers(user_code, services.local_mcp)
        except McpUnavailable as error:
            missing = error
        else:
            yield services
    # Raised here, because the task groups above would wrap it in an ExceptionGroup.
    if missing is not None:
        raise missing


def limits_of(settings: Settings) -> Limits:
    return Limits(
        **{field.name: getattr(settings, field.name) for field in fields(Limits)}
    )


def _bounds_of(settings: Settings) -> Bounds:
    return Bounds(
        messages_per_second=settings.messages_per_second,
        audio_held_seconds=settings.audio_held_seconds,
        audio_ahead_seconds=settings.audio_ahead_seconds,
    )


def _ceilings_of(settings: Settings) -> Ceilings:
    return Ceilings(
        longest_seconds=settings.longest_seconds,
        cost=settings.cost_per_call or None,
        prices=settings.prices,
    )


def _metrics(settings: Settings) -> Metrics:
    metrics = Metrics()
    metrics.calls_limit.set(settings.max_calls)
    return metrics


def _reports(settings: Settings) -> Reports:
    secret = settings.report_secret
    return Reports(secret.get_secret_value() if secret else None)


async def _warm_calls(
    settings: Settings, routes: Routes, registry: Registry, metrics: Metrics
) -> WarmCalls | None:
    """None if settings are missing that warm transfers need."""
    access = RestAccess.of(settings)
    if access is None or settings.public_url is None:
        return None
    calls = WarmCalls(
        registry,
        access,
        OutboundLimits(
            registry,
            prefixes=(),  # app/dial_permissions.py permits the numbers of transfers
            at_once=settings.outbound_calls,
            hit=metrics.hit,
            key=access.password.encode(),
        ),
        public_url=settings.public_url,
        outbound_number=settings.outbound_number or "",
    )
    if any(_has_warm_transfer(it) for it in (*routes.routes, routes.defaults)):
        await calls.prepare()  # else at the first one: it costs 11 MB
    return calls


def _has_warm_transfer(route: Route) -> bool:
    targets = (*route.transfers.values(), *route.keys.values())
    return any(isinstance(it, Transfer) and it.warm for it in targets)


@asynccontextmanager
async def _registry(
    settings: Settings, capacity: Capacity, metrics: Metrics
) -> AsyncIterator[Registry]:
    """Redis, shared with other instances; or memory, for this instance alone."""
    if settings.redis_url is None:
        yield MemoryRegistry(load=lambda: capacity.load)
        return
    from bridge.fleet.redis import redis_registry  # 6 MB that memory does not need

    url = settings.redis_url.get_secret_value()
    async with redis_registry(
        url,
        lambda: capacity.load,
        metrics.registry_up.set,
        on_lost=metrics.instances_lost.inc,
        on_ignored=metrics.key_ignored,
    ) as registry:
        yield registry


def _quotas(settings: Settings, registry: Registry, metrics: Metrics) -> Quotas:
    token = settings.twilio_auth_token
    return Quotas(
        registry,
        metrics.hit,
        # All instances must have the same key to count a caller together. A random key
        # counts only the calls of this instance.
        key=token.get_secret_value().encode() if token else secrets.token_bytes(),
        calls_of_number=settings.calls_per_number,
        calls_of_number_hour=settings.calls_per_number_hour,
        cost_of_day=settings.cost_per_day,
    )


def _fallback(
    settings: Settings, registry: Registry, metrics: Metrics
) -> FallbackSwitch:
    token = settings.api_token
    return FallbackSwitch(
        registry,
        FleetKey(token.get_secret_value()) if token else None,
        metrics.fallback_on.set,
        initial=settings.fallback,
    )


async def _connect_mcp_servers(user_code: UserCode, mcp: LocalMcp) -> None:
    """Connects the MCP servers of agents that live as long as the process, so that an
    unreachable server is reported at startup (McpUnavailable)."""
    for source in (user_code.source, *user_code.sources.values()):
        if isinstance(source, RealtimeAgent | RealtimeRunner):
            await mcp.hold(loader.first_agent(source))


def model_target(
    settings: Settings, model_url: str, connect: Callable[..., Any] | None = None
) -> ModelTarget:
    """The model as the settings give it. Routes and the user's code may change it for a
    call."""
    return ModelTarget(
        url=model_url,
        model=settings.model,
        voice=settings.voice,
        transcription_model=settings.transcription_model or None,
        headers=_model_headers(settings),
        # Only OpenAI's API has `tracing`; other vendors refuse a session with it.
        tracing=model_url.startswith(OPENAI_MODEL_URL),
        transcoder=_transcoder(settings),
        ready_on=settings.model_ready_on,
        connect=connect,
    )


def _transcoder(settings: Settings) -> "type[ModelAudio] | None":
    if settings.model_audio != "pcm":
        return None
    from bridge.model.transcode import ModelAudio  # with numpy, 10 MB

    return ModelAudio


def _model_headers(settings: Settings) -> dict[str, str]:
    headers = dict(settings.model_headers)
    key = settings.openai_api_key
    named = {name.lower() for name in headers}
    # No key for the bundled fake model. Headers that already authorize (Azure's
    # `api-key`) replace ours.
    wanted = settings.model_target != LOCAL_MODEL
    if key and wanted and not named & {"authorization", "api-key"}:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    return headers
