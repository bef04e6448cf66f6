"""The SDK's session of one SIP call: accepts the call, then attaches to it.

The counterpart of session.py for media streams. OpenAI and the caller's line negotiate
the audio format, and the accept sets the model, so the session updates set neither.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, cast

import msgspec
import structlog
from agents import RunContextWrapper
from agents.realtime import RealtimeAgent, RealtimeRunConfig
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model import RealtimeModelConfig
from agents.realtime.openai_realtime import OpenAIRealtimeSIPModel
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidStatus

from bridge.agent import user_code
from bridge.agent.approvals import Approvals
from bridge.agent.live import LiveCall
from bridge.agent.loader import agent_for
from bridge.core.sessions import FIRST_CONNECTION
from bridge.model.calls_api import CallsApi, control_url
from bridge.model.guarded_agent import guarded
from bridge.model.hosted_mcp import HostedMcp, split
from bridge.model.local_mcp import LocalMcp
from bridge.model.sdk_model import PhoneModel
from bridge.model.sdk_session import PhoneSession
from bridge.model.session import (
    SessionOwner,
    SessionPlan,
    dial,
    layered,
    named,
    nested,
    opened,
)
from bridge.model.session_settings import merged
from bridge.model.wire import (
    CLOSE_SECONDS,
    SESSION_ID,
    ModelRefused,
    Wire,
    close_socket,
)

log = structlog.get_logger()

ATTACH_TRIES = 6
ATTACH_SECONDS = 0.1
"""First pause between attempts to attach: just after the accept the server may not know
the call yet (404). Each pause is twice the one before; in total about 3 s."""

NOT_ON_SIP = ("threshold", "prefix_padding_ms", "silence_duration_ms")
"""Options of turn_detection that the accept refuses
(https://openai.github.io/openai-agents-js/guides/voice-agents/transport)."""


class SipOwner(SessionOwner, Protocol):
    """The call's methods that its session calls."""

    def attached(self) -> None:
        """The session is attached: events can be sent to the model now."""


class SipSession:
    """Runs the session of one SIP call and passes the call's events to its wire."""

    def __init__(
        self,
        plan: SessionPlan,
        live: LiveCall,
        line: SipOwner,
        approvals: Approvals,
        local_mcp: LocalMcp,
        tasks: asyncio.TaskGroup,
        api: CallsApi,
    ) -> None:
        self.accepted = False
        self._plan = plan
        self._live = live
        self._owner = line
        self._local_mcp = local_mcp
        self._tasks = tasks
        self._api = api
        self._session: PhoneSession | None = None
        self._wire: Wire | None = None
        self._muted = False
        self._turn_detection: Any = None
        """The setting that applies while the call is not muted."""
        self._hosted = HostedMcp(
            live, approvals, self._start, self._send_event, line.ask, line.tool_running
        )
        self._model = PhoneModel(
            self._dial,
            line.interrupt_agent,
            self._hosted.take,
            call_sid=live.call_sid,
        )

    async def run(self) -> None:
        """Accepts the call and hands the session's events on until it is over.

        CallGone or CallsApiError: the call cannot be accepted. ModelRefused: attaching
        failed. Exceptions of the user's agent are passed on unchanged.
        """
        plan, live = self._plan, self._live
        first, run_config = await agent_for(plan.source, live)
        agent = named(plan.agent_name, first) or first
        live.emit("call_started", resumed=False)
        settings = layered(
            plan.target.settings,
            nested(run_config.get("model_settings") or {}),
            plan.settings.sdk_settings(),
        )
        run_config.pop("model_settings", None)
        run_config.update(plan.settings.run_config())
        async with self._local_mcp.using(first):
            async with asyncio.timeout(user_code.PROMPT_SECONDS):
                body = await self._payload(agent, settings, run_config)
            await self._api.accept(live.call_sid, body)
            self.accepted = True
            # The SDK raises an error if the model of an accepted call is named again.
            self._model.model = settings.pop("model_name", plan.target.name)
            config: RealtimeModelConfig = {
                "call_id": live.call_sid,
                "url": control_url(plan.target.url, live.call_sid),
                "headers": plan.target.headers,
                "initial_model_settings": settings,
            }
            self._session = session = self._open(agent, config, run_config)
            live.session, live.agent_name = session, agent.name
            try:
                await session.enter()
                self._owner.attached()
                async for event in session:
                    live.agent_name = session.agent.name
                    self._owner.session_event(event)
            finally:
                await self._close(session)

    def _open(
        self,
        agent: RealtimeAgent[Any],
        config: RealtimeModelConfig,
        run_config: RealtimeRunConfig,
    ) -> PhoneSession:
        """Creates the SDK's session, not entered yet."""
        return PhoneSession(
            self._model,
            agent,
            self._live,
            config,
            run_config,
            tool_seconds=self._plan.tool_seconds,
            watch=self._owner,
            call_sid=self._live.call_sid,
        )

    async def _payload(
        self,
        agent: RealtimeAgent[Any],
        settings: RealtimeSessionModelSettings,
        run_config: RealtimeRunConfig,
    ) -> dict[str, Any]:
        """The `session` body of the accept request."""
        agent = guarded(agent, self._live.call_sid)
        tools = await agent.get_all_tools(RunContextWrapper(self._live))
        # The SDK rejects hosted tools, so they are added to the finished session.
        plain, hosted = split({"tools": tools})
        built = await OpenAIRealtimeSIPModel.build_initial_session_payload(
            agent,
            context=self._live,
            model_config={"initial_model_settings": settings},
            run_config=run_config,
            overrides=plain if hosted else None,
        )
        session: dict[str, Any] = built.model_dump(mode="json", exclude_unset=True)
        session["tools"] = [*(session.get("tools") or ()), *hosted]
        model = session["model"]
        self._shape(session)
        return {**session, "model": model}

    async def _close(self, session: PhoneSession) -> None:
        try:
            async with asyncio.timeout(2 * CLOSE_SECONDS):
                await session.close()
        except TimeoutError:
            # A tool ignores its cancellation; the call has ended anyway.
            log.warning("session_close_timed_out", call_sid=self._live.call_sid)

    # --- what the call uses ---

    def heard(self, item_id: str, text: str) -> None:
        """Cuts an interrupted item in the SDK's history to the heard text."""
        if self._session:
            self._session.heard(item_id, 0, text)

    def model_event(self, text: str) -> None:
        """A server event, as received."""
        self._hosted.model_event(text)

    def send_raw(self, event: Mapping[str, Any]) -> bool:
        """Sends a client event of user code. False: there is no model yet."""
        if self._wire is None:
            return False
        self._send_event({**event})
        return True

    def mute(self, on: bool, clear: str) -> bool:
        """Mutes the caller by switching turn detection off, as OpenAI has the audio and
        it cannot be replaced by silence: the caller is not answered and cannot
        interrupt. The event `clear` discards the audio heard meanwhile. False: there is
        no model yet."""
        if self._wire is None:
            return False
        self._muted = on
        turns = {"input": {"turn_detection": self._turn_detection}}
        session = {"type": "realtime", "audio": turns}
        update = msgspec.json.encode({"type": "session.update", "session": session})
        change = self._shaped(update.decode())
        for text in (change, clear) if on else (clear, change):
            self._wire.post(text)
        return True

    def post(self, text: str) -> None:
        """Sends an event to the model; the call sends none before the wire exists."""
        assert self._wire is not None, "nothing is sent before there is a model"
        self._wire.post(text)

    def interrupted(self, item_id: str) -> None:
        """Sends `audio_interrupted` to the session's listeners."""
        assert self._wire is not None, "nothing is interrupted before there is a model"
        self._wire.interrupted(item_id, 0)

    # --- the socket ---

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._tasks.create_task(work, name=name)

    def _send_event(self, event: dict[str, Any]) -> None:
        self.post(self._shaped(msgspec.json.encode(event).decode()))

    def _shaped(self, text: str) -> str:
        """Adapts a session.update to a SIP call; returns other events unchanged."""
        event: Any = msgspec.json.decode(text)
        if event.get("type") != "session.update":
            return text
        event.setdefault("event_id", SESSION_ID)
        self._shape(event["session"])
        return msgspec.json.encode(event).decode()

    def _shape(self, session: dict[str, Any]) -> None:
        """Adds settings the SDK cannot express; removes those a SIP call cannot set."""
        if "instructions" in session:  # the full session, not the update of tracing
            settings = self._plan.settings
            session.update(merged(session, settings.raw_session()))
            session["tools"] = [*(session.get("tools") or ()), *settings.mcp_tools()]
        self._hosted.put_into(session)
        session.pop("model", None)
        audio = session.get("audio") or {}
        for side in audio.values():
            (side or {}).pop("format", None)
        given = audio.get("input") or {}
        if "turn_detection" in given:
            for name in NOT_ON_SIP:
                (given["turn_detection"] or {}).pop(name, None)
            self._turn_detection = given["turn_detection"]
            if self._muted:
                given["turn_detection"] = None

    async def _dial(self, url: str, headers: dict[str, str]) -> Wire:
        socket = await self._attach(url, headers)
        self._wire = Wire(
            _not_again,
            self._owner,
            self._tasks,
            self._live.call_sid,
            self._model.tell_interrupted,
            _no_matter,
            self._shape,
        )
        try:
            self._wire.use(FIRST_CONNECTION, socket)
        except RuntimeError:
            # The call has ended meanwhile, and its TaskGroup accepts no more tasks.
            await close_socket(socket)
            raise
        return cast(Wire, _SipWire(self._wire, self._shaped))

    async def _attach(self, url: str, headers: dict[str, str]) -> ClientConnection:
        connect = self._plan.target.connect or dial
        pause = ATTACH_SECONDS
        for _ in range(ATTACH_TRIES):
            try:
                return await opened(connect, url, headers)
            except InvalidStatus as error:
                status = error.response.status_code
                if status != 404:
                    raise ModelRefused(f"HTTP {status}", fatal=True) from error
            except (InvalidHandshake, OSError, TimeoutError) as error:
                kind = type(error).__name__
                raise ModelRefused(f"unreachable ({kind})", fatal=True) from error
            await asyncio.sleep(pause)
            pause *= 2
        # Either the caller has hung up, or the server has lost the call, which would
        # go on without an agent. The API knows: CallGone if the caller has hung up.
        await self._api.hang_up(self._live.call_sid)
        raise ModelRefused("HTTP 404", fatal=True)


class _SipWire:
    """The Wire for the SDK, with session updates adapted to a SIP call."""

    def __init__(self, wire: Wire, shaped: Callable[[str], str]) -> None:
        self._wire = wire
        self._shaped = shaped

    def __aiter__(self) -> Wire:
        return self._wire

    async def send(self, text: str) -> None:
        self._wire.post(self._shaped(text) if '"session.update"' in text else text)

    async def close(self) -> None:
        await self._wire.close()


async def _not_again() -> ClientConnection:
    """Refuses to dial again: OpenAI ends a call whose socket was lost."""
    raise ModelRefused("attached once", fatal=True)


def _no_matter(seconds: float) -> None:
    """Ignores the sending delay: it is measured only where audio passes."""
