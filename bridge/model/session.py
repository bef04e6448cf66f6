"""The SDK's session of one call: opened with the agent, read until its end, closed.

This module carries no audio (wire.py does) and decides nothing about it (core does).
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import structlog
from agents.realtime import RealtimeAgent, RealtimeRunConfig, RealtimeSessionEvent
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model import RealtimeModelConfig
from agents.tool import Tool
from agents.version import __version__ as agents_version
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from bridge.agent import user_code
from bridge.agent.approvals import Approvals
from bridge.agent.live import BadRequest, LiveCall
from bridge.agent.loader import AgentSource, agent_for
from bridge.core import errors
from bridge.core.sessions import FIRST_CONNECTION
from bridge.model.configurations import Configuration, Configurations
from bridge.model.hosted_mcp import HostedMcp
from bridge.model.local_mcp import LocalMcp, reachable
from bridge.model.sdk_model import PhoneModel
from bridge.model.sdk_session import PhoneSession, ToolWatch
from bridge.model.session_settings import SessionSettings, merged
from bridge.model.wire import (
    PHONE_FORMAT,
    ModelRefused,
    ServerWatch,
    Transcoder,
    Wire,
    WireOwner,
)
from bridge.websocket.closing import CLOSE_SECONDS
from bridge.websocket.model_connections import MAX_EVENT_BYTES, ModelClientConnection
from bridge.websocket.tls import TlsConnect

log = structlog.get_logger()

OPEN_SECONDS = 5.0
"""Limit of the WebSocket handshake with the model; a slower one is retried."""

PING_SECONDS = 3.0
"""Ping interval and timeout of the model connection. A model that vanishes without a
close is detected after 1.5 to 2 times this; the caller hears nothing meanwhile."""


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """The model that a call connects to, with its settings."""

    url: str
    model: str
    voice: str
    transcription_model: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """HTTP headers of the handshake, including the credentials."""
    tracing: bool = False
    transcoder: Callable[[], Transcoder] | None = None
    """Set if the model accepts no mu-law: to and from 24 kHz PCM."""
    ready_on: str = "session.updated"
    """The server's event after which a session is ready."""
    connect: "Connect | None" = None
    """The user's own connector; None: a plain WebSocket."""

    @property
    def address(self) -> str:
        """The url, with the model's name added unless the url names a model."""
        parts = urlsplit(self.url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        if not any(key == "model" for key, _ in query):
            query.append(("model", self.model))
        return urlunsplit(parts._replace(query=urlencode(query)))

    @property
    def name(self) -> str:
        """The model's name; a name in the url takes precedence."""
        return dict(parse_qsl(urlsplit(self.url).query)).get("model", self.model)

    @property
    def settings(self) -> RealtimeSessionModelSettings:
        """All settings are explicit: some SDK defaults are deprecated, one is PCM."""
        transcription = self.transcription_model
        settings: RealtimeSessionModelSettings = {
            "model_name": self.name,
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": PHONE_FORMAT,
                    "transcription": {"model": transcription or ""},
                    "turn_detection": {
                        "type": "semantic_vad",
                        "create_response": True,
                        "interrupt_response": True,
                    },
                },
                "output": {"format": PHONE_FORMAT, "voice": self.voice},
            },
        }
        if not transcription:
            # None switches transcription off; without the key the SDK switches it on.
            settings["audio"]["input"]["transcription"] = None  # type: ignore[typeddict-item]
        if not self.tracing:
            settings["tracing"] = None
        return settings


HANDOFF_REFUSED = (
    "The handoff to %s failed for a technical reason, and you are still in charge of "
    "this call. Tell the caller, and help them yourself as far as you can."
)
"""To the model, in place of the agent that it believes to be in charge."""


class SessionOwner(WireOwner, ToolWatch, Protocol):
    """The call's methods that its session calls."""

    def session_event(self, event: RealtimeSessionEvent) -> None: ...
    def interrupt_agent(self, by: str, response_id: str | None) -> None: ...
    def handoff_refused(self, agent: str, to: str) -> None:
        """The model's server has refused the settings of agent `to`; `agent` stays in
        charge."""


Connect = Callable[[str, dict[str, str]], Awaitable[ClientConnection]]
"""(url, headers) -> an open WebSocket: a connector of the user's own."""


Early = Callable[[str, dict[str, str]], Awaitable[ClientConnection | None]]
"""(url, headers) -> a connection that was dialled early, or None. ModelRefused: it
could not be opened."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """The agent, the model and the settings of a session."""

    source: AgentSource
    target: ModelTarget
    settings: SessionSettings = field(default_factory=SessionSettings)
    """The route's settings; they override the deployment's and the user code's."""
    agent_name: str = ""
    """Agent in charge when a call is resumed; empty: the first agent."""
    tool_seconds: float = 60.0
    early: "Early | None" = None
    """Gives the connection that was dialled before the call was known."""
    tools: Sequence[Tool] = ()
    """Tools that the bridge gives to every agent of this call."""
    resumed: bool = False
    """The call was resumed, for example after a transfer that nobody answered."""


class AgentSession:
    """Runs the session of one call and passes the call's events to its wire.

    SipSession (sip_session.py) is the session of a call whose audio the model's server
    has.
    """

    sets_format = True
    """The audio passes the wire, so the bridge sets its format."""

    def __init__(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        local_mcp: LocalMcp,
        tasks: asyncio.TaskGroup,
        on_resumed: Callable[[float], None],
    ) -> None:
        self._plan = plan
        self._live = live
        self._owner = owner
        self._local_mcp = local_mcp
        self._tasks = tasks
        self._on_resumed = on_resumed
        self._on_lost = owner.model_lost
        self._early = plan.early
        self._session: PhoneSession | None = None
        self._wire: Wire | None = None
        self.post: Callable[[str], None]
        """Sends an event to the model; set with the wire, before which the call sends
        none. No method, because that costs a call for each frame."""
        self._model_in_url: str | None = None
        """The model that the url of the connection names."""
        self._warned = False
        """The log says that the guardrails read nothing."""
        self._hosted = HostedMcp(
            live,
            approvals,
            self._start,
            self._put,
            owner.ask,
            owner.tool_running,
            owner.tool_finished,
        )
        opens, interrupt = self._open_wire, owner.interrupt_agent
        self._model = PhoneModel(
            opens,
            interrupt,
            self._hosted.take,
            owner.model_misread,
            live.call_sid,
            self._configured,
        )
        self._configurations = Configurations(self._configuration_refused)
        self._wants_raw = partial(live.is_listened_to, "raw_model_event")

    async def run(self) -> None:
        """Opens the session and hands its events on until it is closed.

        A lost model connection does not end the session: the call redials. Exceptions
        of the user's agent are passed on unchanged.
        """
        plan, live = self._plan, self._live
        first, run_config = await agent_for(plan.source, live)
        agent = named(plan.agent_name, first) or first
        # Emitted after `agent_for`: the agent's function may have added a listener.
        live.emit("call_started", resumed=plan.resumed)
        target, settings = self._settings(run_config)
        run_config.pop("model_settings", None)
        run_config.update(plan.settings.run_config())
        async with self._local_mcp.using(first):
            config = await self._begin(agent, target, settings, run_config)
            self._session = session = PhoneSession(
                self._model,
                agent,
                live,
                config,
                run_config,
                tool_seconds=plan.tool_seconds,
                watch=self._owner,
                call_sid=live.call_sid,
                tools=plan.tools,
                wants_raw=self._wants_raw,
            )
            live.session, live.agent_name = session, agent.name
            try:
                await session.enter()
                async for event in session:
                    live.agent_name = session.agent.name
                    self._owner.session_event(event)
            finally:
                await self._close(session)

    async def _begin(
        self,
        agent: RealtimeAgent[Any],
        target: ModelTarget,
        settings: RealtimeSessionModelSettings,
        run_config: RealtimeRunConfig,
    ) -> RealtimeModelConfig:
        """What the SDK needs to connect."""
        return {
            "url": target.address,
            "headers": target.headers,
            "initial_model_settings": settings,
        }

    def _settings(
        self, run_config: RealtimeRunConfig
    ) -> tuple[ModelTarget, RealtimeSessionModelSettings]:
        """The settings in layers: the deployment's, then the user code's, then the
        route's; the later wins."""
        target = self._plan.target
        settings = layered(
            target.settings,
            nested(run_config.get("model_settings") or {}),
            self._plan.settings.sdk_settings(),
        )
        name = settings.get("model_name") or target.name
        if name != target.name:
            target = replace(target, model=name)
            settings["model_name"] = target.name
        return target, settings

    async def _close(self, session: PhoneSession) -> None:
        try:
            async with asyncio.timeout(2 * CLOSE_SECONDS):
                await session.close()
        except TimeoutError:
            # A tool ignores its cancellation; the call has ended anyway.
            log.warning("session_close_timed_out", call_sid=self._live.call_sid)

    @property
    def requested(self) -> Mapping[str, Any]:
        """The settings that the model's session was sent."""
        updates = self._wire.session_updates if self._wire else []
        return layered(*(msgspec.json.decode(text)["session"] for text in updates))

    @property
    def is_guarded(self) -> bool:
        """An agent that may come to be in charge has output guardrails."""
        session = self._session
        return session is not None and (
            session.is_guarded
            or any(it.output_guardrails for it in reachable(session.agent))
        )

    def heard(self, item_id: str, content_index: int, text: str) -> None:
        """Cuts an interrupted item in the SDK's history to the heard text."""
        if self._session:
            self._session.heard(item_id, content_index, text)

    def model_event(self, text: str) -> None:
        """A server event other than audio, as received."""
        self._hosted.model_event(text)

    def send_raw(self, event: Mapping[str, Any]) -> bool:
        """Sends a client event of user code. False: there is no model yet.

        BadRequest: the event is malformed.
        """
        if self._wire is None:
            return False
        try:
            self._put(dict(event))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            kind = type(error).__name__
            raise BadRequest(f"this is not a Realtime client event ({kind})") from None
        return True

    def dial(self, connection: int, seconds: float) -> None:
        """Dials another connection to the model after `seconds` (Wire.dial)."""
        assert self._wire is not None, "the wire dials its first connection itself"
        self._wire.dial(connection, seconds)

    def switch(self, connection: int) -> None:
        """Uses the connection that was dialled."""
        assert self._wire is not None, "a connection was dialled before"
        self._wire.switch(connection)

    def leave(self, connection: int) -> None:
        """Closes the connection in use."""
        assert self._wire is not None, "a connection was in use before"
        self._wire.leave(connection)

    def mute(self, on: bool) -> None:
        """Never called: the core mutes a caller whose audio passes here."""

    def interrupted(self, item_id: str, content_index: int) -> None:
        """Sends `audio_interrupted` to the session's listeners."""
        assert self._wire is not None, (
            "nothing is interrupted before the model answered"
        )
        self._wire.interrupted(item_id, content_index)

    def _configured(self, settings: RealtimeSessionModelSettings) -> None:
        """The SDK has sent the settings of the agent in charge."""
        session, wire = self._session, self._wire
        assert session and wire, "the session configures the model over the wire"
        self._configurations.sent(
            Configuration(wire.last_update, session.agent, session.dispatch, settings)
        )

    def _configuration_refused(self, new: Configuration, old: Configuration) -> None:
        """The server keeps the settings of the agent before: so does the SDK."""
        assert self._session, "only a session has configured the model"
        self._hosted.take(old.settings)
        self._session.put_in_charge(old.agent, old.dispatch)
        self._live.agent_name = old.agent.name
        self._owner.handoff_refused(old.agent.name, new.agent.name)
        if not self._live.over:
            self._live.tell(HANDOFF_REFUSED % new.agent.name, role="system")

    def _answered_without_words(self) -> None:
        """The guardrails read the words of an answer, and there are none."""
        session = self._session
        if session and session.is_guarded and not self._warned:
            self._warned = True
            log.error(
                "guardrails_read_nothing",
                call_sid=self._live.call_sid,
                agent=session.agent.name,
            )

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._tasks.create_task(work, name=name)

    def _put(self, event: dict[str, Any]) -> None:
        assert self._wire is not None, "nothing is sent before the model answered"
        self._wire.put(msgspec.json.encode(event).decode())

    def _shape(self, session: dict[str, Any]) -> None:
        """Adds settings that the SDK cannot express to the `session` of an update."""
        if session.get("model", "") == self._model_in_url:
            # A gateway that maps names knows the name in the url, and refuses others.
            del session["model"]
        if "tools" in session:  # the full session, not the SDK's update of tracing
            session.update(merged(session, self._plan.settings.raw_session()))
            session["tools"] += self._plan.settings.mcp_tools()
        self._hosted.put_into(session)

    async def _dial(self, url: str, headers: dict[str, str]) -> ClientConnection:
        early, self._early = self._early, None
        if early and (connection := await early(url, headers)):
            return connection
        connect = self._plan.target.connect or dial
        return await dialled(connect, url, headers, self._live.call_sid)

    async def _open_wire(self, url: str, headers: dict[str, str]) -> Wire:
        self._model_in_url = dict(parse_qsl(urlsplit(url).query)).get("model")
        self._wire = Wire(
            lambda: self._dial(url, headers),
            self._owner,
            self._tasks,
            self._live.call_sid,
            self._model.tell_interrupted,
            self._on_resumed,
            self._shape,
            on_left=self._hosted.session_lost,
            on_lost=self._on_lost,
            transcoder=self._plan.target.transcoder if self.sets_format else None,
            sets_format=self.sets_format,
            ready_on=self._plan.target.ready_on,
            watch=ServerWatch(
                self._configurations.refused, self._answered_without_words
            ),
            wants_raw=lambda: self._wants_raw() or self._model.has_other_listeners,
        )
        self.post = self._wire.post
        self._wire.dial(FIRST_CONNECTION, 0.0)
        return self._wire


async def opened(
    connect: "Connect", url: str, headers: dict[str, str]
) -> ClientConnection:
    """Calls the connector, which may be the user's. TimeoutError after
    OPEN_SECONDS."""
    socket = await user_code.call(
        connect, url, headers, name="model connector", seconds=OPEN_SECONDS
    )
    return cast(ClientConnection, socket)


async def dialled(
    connect: "Connect", url: str, headers: dict[str, str], call_sid: str = ""
) -> ClientConnection:
    """An open WebSocket to the model. ModelRefused says why it cannot be opened."""
    try:
        return await opened(connect, url, headers)
    except InvalidStatus as error:
        status, code = error.response.status_code, _code(error)
        why = f"HTTP {status} {code}" if code else f"HTTP {status}"
        fatal = code in errors.FATAL_CODES or status not in errors.TEMPORARY_STATUSES
        raise ModelRefused(why, fatal=fatal) from error
    except (InvalidURI, ssl.SSLCertVerificationError) as error:
        why = f"unreachable ({type(error).__name__})"
        raise ModelRefused(why, fatal=True) from error
    except (InvalidHandshake, EOFError, OSError, TimeoutError) as error:
        why = f"unreachable ({type(error).__name__})"
        raise ModelRefused(why, fatal=False) from error
    except Exception as error:
        # An error in the user's connector: logged with its traceback.
        log.exception("model_connector_failed", call_sid=call_sid)
        why = f"connector failed ({user_code.kind(error)})"
        raise ModelRefused(why, fatal=True) from error


async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
    """An open WebSocket to the model; raises what `websockets` raises."""
    return await TlsConnect(
        url,
        create_connection=ModelClientConnection,
        additional_headers=headers,
        user_agent_header=f"twilio-realtime-bridge Agents/{agents_version}",
        # 50 small messages a second: compression costs CPU and does not shrink base64
        # mu-law.
        compression=None,
        max_size=MAX_EVENT_BYTES,
        open_timeout=OPEN_SECONDS,
        close_timeout=CLOSE_SECONDS,
        ping_interval=PING_SECONDS,
        ping_timeout=PING_SECONDS,
    )


def named(name: str, first: RealtimeAgent[Any]) -> RealtimeAgent[Any] | None:
    """The agent of that name among those reachable from `first` by handoffs."""
    return next((agent for agent in reachable(first) if agent.name == name), None)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The SDK's settings with its older flat names moved to today's nested places.

    Audio formats are removed: the bridge sets them.
    """
    made = {key: value for key, value in settings.items() if key not in _FLAT}
    audio = {
        side: {k: v for k, v in (options or {}).items() if k != "format"}
        for side, options in (made.get("audio") or {}).items()
    }
    for old, place in _FLAT.items():
        if old not in settings or place is None:
            continue
        if len(place) == 1:
            made.setdefault(place[0], settings[old])
        else:
            audio.setdefault(place[0], {}).setdefault(place[1], settings[old])
    if audio:
        made["audio"] = audio
    return made


_FLAT: Mapping[str, tuple[str, ...] | None] = {
    "modalities": ("output_modalities",),
    "voice": ("output", "voice"),
    "speed": ("output", "speed"),
    "turn_detection": ("input", "turn_detection"),
    "input_audio_transcription": ("input", "transcription"),
    "input_audio_noise_reduction": ("input", "noise_reduction"),
    "input_audio_format": None,
    "output_audio_format": None,
}
"""The SDK's older flat names -> their places under `audio`, or at the top."""


def layered(*layers: Mapping[str, Any]) -> RealtimeSessionModelSettings:
    """Merges settings; a later layer overrides an earlier one.

    Objects are merged key by key, but an object of another kind (another turn detection
    type or transcription model) replaces the earlier one whole. Transcription options
    without a model do not switch on a transcription that is off.
    """
    made: dict[str, Any] = {}
    for layer in layers:
        made = _over(made, layer)
    return cast(RealtimeSessionModelSettings, made)


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(lower)
    for key, value in upper.items():
        under = both.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            value = _over(under, value) if _same_kind(under, value) else value
        elif key == "transcription" and key in both and under is None:
            value = value if value and value.get("model") else None
        both[key] = value
    return both


def _same_kind(under: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    kinds = ("type", "model")
    return all(value.get(kind, under.get(kind)) == under.get(kind) for kind in kinds)


def _code(error: InvalidStatus) -> str | None:
    """The API's error code. Its message may quote part of the key and is not used."""
    try:
        code = json.loads(error.response.body or b"")["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return errors.short(code) if isinstance(code, str) else None
