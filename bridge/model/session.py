"""One RealtimeSession for one call: opened with the agent, listened to, closed.

Carries no audio (wire.py does) and decides nothing about it (the core does).
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import structlog
from agents.realtime import RealtimeAgent, RealtimeRunConfig, RealtimeSessionEvent
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model import RealtimeModelConfig
from agents.version import __version__ as agents_version
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from bridge.agent import user_code
from bridge.agent.approvals import Approvals
from bridge.agent.live import BadRequest, LiveCall
from bridge.agent.loader import AgentSource, agent_for
from bridge.core import errors
from bridge.model.hosted_mcp import HostedMcp
from bridge.model.local_mcp import LocalMcp, reachable
from bridge.model.sdk_model import PhoneModel
from bridge.model.sdk_session import PhoneSession, ToolWatch
from bridge.model.session_settings import SessionSettings, merged
from bridge.model.wire import PHONE_FORMAT, ModelRefused, Wire, WireOwner

log = structlog.get_logger()

OPEN_SECONDS = 5.0
"""For the handshake with the model; one that takes longer is tried again."""

CLOSE_SECONDS = 1.0
"""A model that does not answer our close is left: the caller has gone."""

PING_SECONDS = 3.0
"""A model that is gone without a word is noticed after one and a half of these, two at
most: the caller hears nothing for so long."""

PASSING_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})
"""HTTP statuses of a handshake that another try may not meet."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""As the SDK's own limit; the connection ends at a larger one. What is larger than the
wire looks into (wire.MAX_EVENT_CHARS) is thrown away."""

MAX_UNREAD_EVENTS = 4
"""Events that are read ahead; a few more come in one packet. It is the kernel that
holds a model back, not our memory."""


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """Which model is called, and how it is to be."""

    url: str
    model: str
    voice: str
    transcription_model: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    """With the credentials in it."""
    tracing: bool = False
    pcm: bool = False
    """It takes no mu-law: PCM of 24 kHz, which the wire transcodes."""
    connect: "Connect | None" = None
    """A connector of the user's own, in place of a plain websocket."""

    @property
    def address(self) -> str:
        """The url with the model's name in it, where the url does not name one."""
        parts = urlsplit(self.url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        if not any(key == "model" for key, _ in query):
            query.append(("model", self.model))
        return urlunsplit(parts._replace(query=urlencode(query)))

    @property
    def name(self) -> str:
        """The model that answers: a url that names one has the last word."""
        return dict(parse_qsl(urlsplit(self.url).query)).get("model", self.model)

    @property
    def settings(self) -> RealtimeSessionModelSettings:
        """Nothing is left to the SDK's defaults: some are deprecated, one is PCM."""
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
            # None switches it off; leaving it out would switch the SDK's default on.
            settings["audio"]["input"]["transcription"] = None  # type: ignore[typeddict-item]
        if not self.tracing:
            settings["tracing"] = None
        return settings


class SessionOwner(WireOwner, ToolWatch, Protocol):
    """The call, as its session sees it."""

    def session_event(self, event: RealtimeSessionEvent) -> None: ...
    def interrupt_agent(self, by: str, response_id: str | None) -> None: ...


Connect = Callable[[str, dict[str, str]], Awaitable[ClientConnection]]
"""(url, headers) -> an open websocket: a connector of the user's own."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Whose session it is to be, and how."""

    source: AgentSource
    target: ModelTarget
    settings: SessionSettings = field(default_factory=SessionSettings)
    """The route's; they have the last word."""
    agent_name: str = ""
    """Of the agent in charge, where the call goes on; empty: the first."""
    tool_seconds: float = 60.0
    resumed: bool = False
    """The call goes on, after a transfer that nobody took."""


class AgentSession:
    """`run` lives as long as the session; `post` and `interrupted` reach the wire."""

    def __init__(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        local_mcp: LocalMcp,
        tasks: asyncio.TaskGroup,
        on_sent: Callable[[float], None],
    ) -> None:
        self._plan = plan
        self._live = live
        self._owner = owner
        self._local_mcp = local_mcp
        self._tasks = tasks
        self._on_sent = on_sent
        self._session: PhoneSession | None = None
        self._wire: Wire | None = None
        self._hosted = HostedMcp(
            live, approvals, self._start, self._put, owner.ask, owner.tool_running
        )
        opens, interrupt = self._open_wire, owner.interrupt_agent
        self._model = PhoneModel(
            opens, interrupt, self._hosted.take, owner.model_misread
        )

    async def run(self) -> None:
        """Opens the session and hands its events on until it is closed; whether there
        is a model meanwhile is the call's business. What the user's agent raises, comes
        as it is."""
        plan, live = self._plan, self._live
        first, run_config = await agent_for(plan.source, live)
        agent = named(plan.agent_name, first) or first
        # Not before: who made the agent may listen.
        live.emit("call_started", resumed=plan.resumed)
        target, settings = self._settings(run_config)
        config: RealtimeModelConfig = {
            "url": target.address,
            "headers": target.headers,
            "initial_model_settings": settings,
        }
        run_config.pop("model_settings", None)
        run_config.update(plan.settings.run_config())
        async with self._local_mcp.using(first):
            self._session = session = PhoneSession(
                self._model,
                agent,
                live,
                config,
                run_config,
                tool_seconds=plan.tool_seconds,
                watch=self._owner,
            )
            live.session, live.agent_name = session, agent.name
            try:
                await session.enter()
                async for event in session:
                    live.agent_name = session.agent.name
                    self._owner.session_event(event)
            finally:
                await self._close(session)

    def _settings(
        self, run_config: RealtimeRunConfig
    ) -> tuple[ModelTarget, RealtimeSessionModelSettings]:
        """The deployment's, under those of the user's code, under the route's."""
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
            # A tool that ignores its cancellation; the call is over all the same.
            log.warning("session_close_late", call_sid=self._live.call_sid)

    def heard(self, item_id: str, content_index: int, text: str) -> None:
        """The caller heard no more of an answer than this."""
        if self._session:
            self._session.heard(item_id, content_index, text)

    def model_event(self, text: str) -> None:
        """Any event of the server's but audio, as it came."""
        self._hosted.model_event(text)

    def send_raw(self, event: Mapping[str, Any]) -> bool:
        """A client event of the user's own; False: there is no model yet."""
        if self._wire is None:
            return False
        try:
            self._put(dict(event))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            kind = type(error).__name__
            raise BadRequest(f"this is no client event ({kind})") from None
        return True

    def post(self, text: str) -> None:
        """An event for the model. There is a wire before anything is to be sent."""
        assert self._wire is not None, "nothing is sent before the model answered"
        self._wire.post(text)

    def dial(self, seconds: float, *, spare: bool) -> None:
        """Another connection to the model is wanted."""
        assert self._wire is not None, "the first connection is dialled unasked"
        self._wire.dial(seconds, spare=spare)

    def switch(self) -> None:
        """The connection that was dialled takes the place of the one before."""
        assert self._wire is not None, "somebody has dialled"
        self._wire.switch()

    def interrupted(self, item_id: str, content_index: int) -> None:
        """The session's listeners are to get `audio_interrupted`."""
        assert self._wire is not None, "nobody is interrupted before the model answered"
        self._wire.interrupted(item_id, content_index)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._tasks.create_task(work, name=name)

    def _put(self, event: dict[str, Any]) -> None:
        assert self._wire is not None, "nothing is sent before the model answered"
        self._wire.put(msgspec.json.encode(event).decode())

    def _shape(self, session: dict[str, Any]) -> None:
        """What the SDK cannot say of a session."""
        if "tools" in session:  # the whole of it, not the SDK's word on tracing
            session.update(merged(session, self._plan.settings.raw_session()))
            session["tools"] += self._plan.settings.mcp_tools()
        self._hosted.put_into(session)

    async def _open_wire(self, url: str, headers: dict[str, str]) -> Wire:
        target = self._plan.target
        connect = target.connect or dial
        self._wire = Wire(
            lambda: dialled(connect, url, headers),
            self._owner,
            self._tasks,
            self._live.call_sid,
            self._model.tell_interrupted,
            self._on_sent,
            self._shape,
            on_left=self._hosted.session_lost,
            pcm=target.pcm,
        )
        self._wire.dial(0.0)
        return self._wire


async def dialled(
    connect: "Connect", url: str, headers: dict[str, str]
) -> ClientConnection:
    """A websocket to the model; ModelRefused says why there is none."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await connect(url, headers)
    except InvalidStatus as error:
        status, code = error.response.status_code, _code(error)
        why = f"HTTP {status} {code}" if code else f"HTTP {status}"
        fatal = code in errors.FATAL_CODES or status not in PASSING_STATUSES
        raise ModelRefused(why, fatal=fatal) from error
    except (InvalidURI, ssl.SSLCertVerificationError) as error:
        why = f"unreachable ({type(error).__name__})"
        raise ModelRefused(why, fatal=True) from error
    except (InvalidHandshake, EOFError, OSError, TimeoutError) as error:
        why = f"unreachable ({type(error).__name__})"
        raise ModelRefused(why, fatal=False) from error
    except BaseException as error:
        if not user_code.is_theirs(error):
            raise
        # A connector of the user's own: theirs to mend, so all of it is logged.
        log.exception("model_connector_failed")
        why = f"connector failed ({type(error).__name__})"
        raise ModelRefused(why, fatal=True) from error


async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
    """A websocket to the model."""
    return await connect(
        url,
        additional_headers=headers,
        user_agent_header=f"twilio-realtime-bridge Agents/{agents_version}",
        # 50 small messages a second: compression costs CPU and gains nothing on base64
        # of mu-law.
        compression=None,
        max_size=MAX_EVENT_BYTES,
        max_queue=MAX_UNREAD_EVENTS,
        open_timeout=OPEN_SECONDS,
        close_timeout=CLOSE_SECONDS,
        ping_interval=PING_SECONDS,
        ping_timeout=PING_SECONDS,
    )


def named(name: str, first: RealtimeAgent[Any]) -> RealtimeAgent[Any] | None:
    """The agent of that name among those that can be reached by handoffs."""
    return next((agent for agent in reachable(first) if agent.name == name), None)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The SDK's settings with its older, flat names in their place of today; formats
    are left out, for they are the bridge's."""
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


def layered(*layers: Mapping[str, Any]) -> RealtimeSessionModelSettings:
    """Settings laid over each other, the last on top: objects key by key, but one of
    another kind (turn detection, transcription model) takes the whole place. Options
    of a transcription do not switch it on where it is off."""
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
    """The API's own code of an error; its message may hold half a key."""
    try:
        code = json.loads(error.response.body or b"")["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return errors.short(code) if isinstance(code, str) else None
