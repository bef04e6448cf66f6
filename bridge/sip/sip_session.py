"""One RealtimeSession for one SIP call: the call is accepted with what the agent is,
then the session attaches to it. What session.py is to a media stream.

The caller's line and OpenAI have settled the audio's format between them, and the
accept has chosen the model: neither is named again.
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

from bridge.agent.approvals import Approvals
from bridge.agent.live import LiveCall
from bridge.agent.loader import agent_for
from bridge.model.calls_api import CallGone, CallsApi, control_url
from bridge.model.hosted_mcp import HostedMcp, split
from bridge.model.local_mcp import LocalMcp
from bridge.model.sdk_model import PhoneModel
from bridge.model.sdk_session import PhoneSession
from bridge.model.session import (
    CLOSE_SECONDS,
    OPEN_SECONDS,
    SessionOwner,
    SessionPlan,
    dial,
    layered,
    named,
    nested,
)
from bridge.model.session_settings import merged
from bridge.model.wire import SESSION_ID, ModelRefused, Wire

log = structlog.get_logger()

ATTACH_TRIES = 6
ATTACH_SECONDS = 0.1
"""Right behind accept the server may not know the call yet (404). The first pause;
each is twice as long as the one before, 3 s together."""

NOT_ON_SIP = ("threshold", "prefix_padding_ms", "silence_duration_ms")
"""Options of turn_detection that an accept refuses
(https://openai.github.io/openai-agents-js/guides/voice-agents/transport)."""


class SipOwner(SessionOwner, Protocol):
    """The call, as its session sees it."""

    def attached(self) -> None:
        """The model can be told something now."""


class SipSession:
    """`run` lives as long as the session; `post` and `interrupted` reach the wire."""

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
        """As it is when nobody is muted."""
        self._hosted = HostedMcp(
            live, approvals, self._start, self._send_event, line.ask, line.tool_running
        )
        self._model = PhoneModel(self._dial, line.interrupt_agent, self._hosted.take)

    async def run(self) -> None:
        """Accepts the call and hands the session's events on until it is over.

        CallGone or CallsApiError where it cannot be accepted, ModelRefused where it
        cannot be attached to; what the user's agent raises, as it is.
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
            body = await self._payload(agent, settings, run_config)
            await self._api.accept(live.call_sid, body)
            self.accepted = True
            # To name the model of a call that has one is an error of the SDK's.
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
        """The SDK's session; not entered yet."""
        return PhoneSession(
            self._model,
            agent,
            self._live,
            config,
            run_config,
            tool_seconds=self._plan.tool_seconds,
            watch=self._owner,
        )

    async def _payload(
        self,
        agent: RealtimeAgent[Any],
        settings: RealtimeSessionModelSettings,
        run_config: RealtimeRunConfig,
    ) -> dict[str, Any]:
        """The session that the call is accepted with."""
        tools = await agent.get_all_tools(RunContextWrapper(self._live))
        # The SDK refuses hosted tools: they are put into the finished session.
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
            # A tool that ignores its cancellation; the call is over all the same.
            log.warning("session_close_timed_out", call_sid=self._live.call_sid)

    # --- what the call uses ---

    def heard(self, item_id: str, text: str) -> None:
        """The caller heard no more of an answer than this."""
        if self._session:
            self._session.heard(item_id, 0, text)

    def model_event(self, text: str) -> None:
        """Any event of the server's, as it came."""
        self._hosted.model_event(text)

    def send_raw(self, event: Mapping[str, Any]) -> bool:
        """A client event of the user's own; False: there is no model yet."""
        if self._wire is None:
            return False
        self._send_event({**event})
        return True

    def mute(self, on: bool, clear: str) -> bool:
        """OpenAI has the audio, so no silence can be put in the caller's place. Turn
        detection is switched off instead: nobody is answered or interrupted. What was
        heard meanwhile is thrown away, with the event `clear`. False as above."""
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
        """An event for the model. There is a wire before anything is to be sent."""
        assert self._wire is not None, "nothing is sent before there is a model"
        self._wire.post(text)

    def interrupted(self, item_id: str) -> None:
        """The session's listeners are to get `audio_interrupted`."""
        assert self._wire is not None, "nobody is interrupted before there is a model"
        self._wire.interrupted(item_id, 0)

    # --- the socket ---

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> object:
        return self._tasks.create_task(work, name=name)

    def _send_event(self, event: dict[str, Any]) -> None:
        self.post(self._shaped(msgspec.json.encode(event).decode()))

    def _shaped(self, text: str) -> str:
        """A change of the session as a SIP call may have it; all else as it is."""
        event: Any = msgspec.json.decode(text)
        if event.get("type") != "session.update":
            return text
        event.setdefault("event_id", SESSION_ID)
        self._shape(event["session"])
        return msgspec.json.encode(event).decode()

    def _shape(self, session: dict[str, Any]) -> None:
        """Puts in what the SDK cannot say, takes out what is settled elsewhere."""
        if "instructions" in session:  # the whole of it, not the SDK's word on tracing
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
            self._wire.use(socket)
        except RuntimeError:
            # The call has ended meanwhile and its TaskGroup takes no more.
            await socket.close()
            raise
        return cast(Wire, _SipWire(self._wire, self._shaped))

    async def _attach(self, url: str, headers: dict[str, str]) -> ClientConnection:
        connect = self._plan.target.connect or dial
        pause = ATTACH_SECONDS
        for _ in range(ATTACH_TRIES):
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    return await connect(url, headers)
            except InvalidStatus as error:
                status = error.response.status_code
                if status != 404:
                    raise ModelRefused(f"HTTP {status}", fatal=True) from error
            except (InvalidHandshake, OSError, TimeoutError) as error:
                kind = type(error).__name__
                raise ModelRefused(f"unreachable ({kind})", fatal=True) from error
            await asyncio.sleep(pause)
            pause *= 2
        raise CallGone


class _SipWire:
    """A Wire as the SDK uses it, but changes of the session are a SIP call's."""

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
    """OpenAI ends a call whose socket is gone."""
    raise ModelRefused("attached once", fatal=True)


def _no_matter(seconds: float) -> None:
    """How long an event lay here is measured where there is audio in it."""
