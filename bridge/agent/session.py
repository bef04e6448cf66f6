"""One RealtimeSession for one call: opened with the agent, listened to, closed.

Carries no audio (wire.py does) and decides nothing about it (the core does).
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import structlog
from agents.realtime import RealtimeAgent, RealtimeRunner, RealtimeSessionEvent
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model import RealtimeModelConfig
from agents.version import __version__ as agents_version
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from bridge.agent.loader import AgentSource, CallFacts, agent_for
from bridge.agent.model import PhoneModel
from bridge.agent.wire import PHONE_FORMAT, Line, Wire

log = structlog.get_logger()

OPEN_SECONDS = 10.0
"""For the handshake with the model."""

CLOSE_SECONDS = 1.0
"""A model that does not answer our close is left: the caller has gone."""

PING_SECONDS = 5.0
"""A model that is gone without a word is noticed after two of these: the caller hears
nothing for so long."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""As the SDK's own limit."""


class ModelRefused(Exception):
    """The model did not take us. `why` is a short fixed phrase, fit to be logged."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


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


class SessionLine(Line, Protocol):
    """The call, as its session sees it."""

    def session_event(self, event: RealtimeSessionEvent) -> None: ...
    def interrupt_agent(self, by: str, response_id: str | None) -> None: ...


class AgentSession:
    """`run` lives as long as the session; `post` and `interrupted` reach the wire."""

    def __init__(
        self,
        source: AgentSource,
        target: ModelTarget,
        facts: CallFacts,
        line: SessionLine,
        tasks: asyncio.TaskGroup,
        on_sent: Callable[[float], None],
    ) -> None:
        self._source = source
        self._target = target
        self._facts = facts
        self._line = line
        self._tasks = tasks
        self._on_sent = on_sent
        self._model = PhoneModel(self._dial, line.interrupt_agent)
        self._wire: Wire | None = None

    async def run(self) -> None:
        """Opens the session and hands its events on until the model is gone.

        ModelRefused if it does not come about; what the user's agent raises, as it is.
        """
        agent: RealtimeAgent[Any] = await agent_for(self._source, self._facts)
        runner = RealtimeRunner(agent, model=self._model)
        config: RealtimeModelConfig = {
            "url": self._target.address,
            "headers": self._target.headers,
            "initial_model_settings": self._target.settings,
        }
        session = await runner.run(context=self._facts, model_config=config)
        try:
            await session.enter()
            async for event in session:
                self._line.session_event(event)
        finally:
            try:
                async with asyncio.timeout(2 * CLOSE_SECONDS):
                    await session.close()
            except TimeoutError:
                # A tool that ignores its cancellation; the call is over all the same.
                log.warning("session_close_late", call_sid=self._facts.call_sid)

    def post(self, text: str) -> None:
        """An event for the model. There is a wire before anything is to be sent."""
        assert self._wire is not None, "nothing is sent before the model answered"
        self._wire.post(text)

    def interrupted(self, item_id: str, content_index: int) -> None:
        """The session's listeners are to get `audio_interrupted`."""
        assert self._wire is not None, "nobody is interrupted before the model answered"
        self._wire.interrupted(item_id, content_index)

    async def _dial(self, url: str, headers: dict[str, str]) -> Wire:
        try:
            socket = await connect(
                url,
                additional_headers=headers,
                user_agent_header=f"twilio-realtime-bridge Agents/{agents_version}",
                # 50 small messages a second: compression costs CPU and gains nothing
                # on base64 of mu-law.
                compression=None,
                max_size=MAX_EVENT_BYTES,
                open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
            )
        except InvalidStatus as error:
            raise ModelRefused(_refusal(error)) from error
        except (InvalidHandshake, OSError, TimeoutError) as error:
            raise ModelRefused(f"unreachable ({type(error).__name__})") from error
        try:
            self._wire = Wire(
                socket,
                self._line,
                self._tasks,
                self._facts.call_sid,
                self._model.tell_interrupted,
                self._on_sent,
            )
        except RuntimeError:
            # The call has ended meanwhile and its TaskGroup takes no more: a socket
            # that nobody reads would be paid for.
            await socket.close()
            raise
        return self._wire


def _refusal(error: InvalidStatus) -> str:
    """HTTP status and the API's own error code; its message may hold half a key."""
    status = error.response.status_code
    try:
        code = json.loads(error.response.body or b"")["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return f"HTTP {status} {code}" if isinstance(code, str) else f"HTTP {status}"
