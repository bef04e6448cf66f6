"""The SDK's session of one SIP call: accepts the call, then attaches to it.

OpenAI and the caller's line negotiate the audio format, and the accept sets the model,
so the session updates set neither. The call lives no longer than its one connection.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from agents import RunContextWrapper
from agents.realtime import RealtimeAgent, RealtimeRunConfig
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model import RealtimeModelConfig
from agents.realtime.openai_realtime import OpenAIRealtimeSIPModel
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from bridge.agent import user_code
from bridge.agent.approvals import Approvals
from bridge.agent.live import LiveCall
from bridge.core.sessions import FIRST_CONNECTION
from bridge.model.calls_api import CallGone, CallsApiError, control_url
from bridge.model.guarded_agent import guarded, guarded_settings
from bridge.model.hosted_mcp import split
from bridge.model.local_mcp import LocalMcp
from bridge.model.session import AgentSession, ModelTarget, SessionOwner, SessionPlan
from bridge.model.wire import ModelRefused

ATTACH_TRIES = 6
ATTACH_SECONDS = 0.1
"""First pause between attempts to attach: just after the accept the server may not know
the call yet (404). Each pause is twice the one before; in total about 3 s."""

NOT_ON_SIP = ("threshold", "prefix_padding_ms", "silence_duration_ms")
"""Options of turn_detection that the accept refuses
(https://openai.github.io/openai-agents-js/guides/voice-agents/transport)."""


class SipLine(Protocol):
    """The caller's end of a SIP call."""

    async def accept(self, session: Mapping[str, Any]) -> None:
        """Accepts the call at the API. Raises CallGone or CallsApiError."""

    def caller_left(self) -> None:
        """The API does not have the call any more: the caller has hung up."""

    async def caller_has_left(self) -> bool:
        """Ends a call that has no connection at the API. True: the caller has hung
        up, and `caller_left` was called."""

    def connection_lost(self, connection: int, why: str, code: int | None) -> None:
        """The session's connection is lost (as in WireOwner.model_lost)."""


class SipSession(AgentSession):
    """Runs the session of one SIP call and passes the call's events to its wire."""

    sets_format = False

    def __init__(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        local_mcp: LocalMcp,
        tasks: asyncio.TaskGroup,
        line: SipLine,
    ) -> None:
        super().__init__(plan, live, owner, approvals, local_mcp, tasks, _no_matter)
        self._line = line
        self._on_lost = line.connection_lost
        self._muted = False
        self._turn_detection: Any = None
        """The setting that applies while the caller is not muted."""

    async def run(self) -> None:
        """Accepts the call and hands the session's events on until it is over.
        Exceptions of the user's agent are passed on unchanged."""
        try:
            await super().run()
        except CallGone:
            self._line.caller_left()
        except CallsApiError as refused:
            self._owner.model_not_dialled(FIRST_CONNECTION, refused.why, True)

    def mute(self, on: bool) -> None:
        """Switches turn detection off, as OpenAI has the caller's audio and it cannot
        be replaced by silence: the caller is not answered and cannot interrupt. What
        was heard meanwhile is discarded."""
        self._muted = on
        turns = {"input": {"turn_detection": self._turn_detection}}
        session = {"type": "realtime", "audio": turns}
        change = {"type": "session.update", "session": session}
        clear = {"type": "input_audio_buffer.clear"}
        for event in (change, clear) if on else (clear, change):
            self._put(event)

    async def _begin(
        self,
        agent: RealtimeAgent[Any],
        target: ModelTarget,
        settings: RealtimeSessionModelSettings,
        run_config: RealtimeRunConfig,
    ) -> RealtimeModelConfig:
        """Accepts the call."""
        async with asyncio.timeout(user_code.PROMPT_SECONDS):
            body = await self._payload(agent, settings, run_config)
        await self._line.accept(body)
        # The SDK raises an error if the model of an accepted call is named again.
        self._model.model = settings.pop("model_name", target.name)
        return {
            "call_id": self._live.call_sid,
            "url": control_url(target.url, self._live.call_sid),
            "headers": target.headers,
            "initial_model_settings": settings,
        }

    async def _payload(
        self,
        agent: RealtimeAgent[Any],
        settings: RealtimeSessionModelSettings,
        run_config: RealtimeRunConfig,
    ) -> dict[str, Any]:
        """The `session` body of the accept request."""
        settings = guarded_settings(settings, agent, self._live.call_sid)
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

    def _shape(self, session: dict[str, Any]) -> None:
        """Also removes the settings that a SIP call cannot have."""
        super()._shape(session)
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

    async def _dial(self, url: str, headers: dict[str, str]) -> ClientConnection:
        """Attaches to the accepted call. A refusal is final: the caller hears silence
        meanwhile."""
        pause = ATTACH_SECONDS
        for _ in range(ATTACH_TRIES):
            try:
                return await super()._dial(url, headers)
            except ModelRefused as refused:
                if not _is_unknown_call(refused):
                    raise ModelRefused(refused.why, fatal=True) from refused
            await asyncio.sleep(pause)
            pause *= 2
        # Either the caller has hung up, or the server has lost the call, which would
        # go on without an agent. The API knows.
        await self._line.caller_has_left()
        raise ModelRefused("HTTP 404", fatal=True)


def _is_unknown_call(refused: ModelRefused) -> bool:
    cause = refused.__cause__
    return isinstance(cause, InvalidStatus) and cause.response.status_code == 404


def _no_matter(seconds: float) -> None:
    """Ignores the sending delay: it is measured only where audio passes."""
