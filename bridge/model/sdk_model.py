"""The SDK's WebSocket model on the bridge's Wire: the call does audio and interruption.

The SDK keeps doing the rest: session configuration, tools, handoffs, guardrails and
history. tests/model/test_sdk_canary.py lists the SDK's private names used here.
"""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, cast

import msgspec
import structlog
from agents.realtime import (
    RealtimeModelConfig,
    RealtimeModelListener,
    RealtimeModelSendEvent,
    RealtimeSession,
    openai_realtime,
)
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model_events import (
    RealtimeModelAudioInterruptedEvent,
    RealtimeModelErrorEvent,
    RealtimeModelEvent,
    RealtimeModelRawServerEvent,
    RealtimeModelTranscriptDeltaEvent,
)
from agents.realtime.model_inputs import (
    RealtimeModelSendInterrupt,
    RealtimeModelSendSessionUpdate,
    RealtimeModelSendToolOutput,
)
from agents.realtime.openai_realtime import (
    OpenAIRealtimeWebSocketModel,
    TransportConfig,
)
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection

from bridge.agent import user_code
from bridge.model.results import BackgroundResult
from bridge.model.wire import Wire

log = structlog.get_logger()

# The SDK makes a TypeAdapter for each item (0.5 ms) and for each raw event of user code
# (26 ms), in which no call goes on. Now it makes one for each type.
vars(openai_realtime)["TypeAdapter"] = cache(TypeAdapter)

MAX_OUTPUT_CHARS = 100_000
"""Limit of a tool's result. No agent reads out more than this. The server echoes the
result, and a WebSocket message has at most 8 MB."""

CUT_OUTPUT = "\n(The result was longer than this and has been cut off.)"

REJECTED_BY_SDK = "event that the SDK cannot take"

OpenWire = Callable[[str, dict[str, str]], Awaitable[Wire]]
"""(url, headers) -> a Wire to that url; it need not be connected yet."""

Interrupt = Callable[[str, str | None], None]
"""(cause, response id or None for any): stops the agent's speech at once."""

Misread = Callable[[str, str], None]
"""Called for an event that cannot be used, with a fixed phrase that says why, and the
event's type."""

Configured = Callable[[RealtimeSessionModelSettings], None]

Take = Callable[[RealtimeSessionModelSettings], RealtimeSessionModelSettings]
"""Settings of the agent in charge -> those the SDK accepts (HostedMcp.take)."""


class _TranscriptDelta(msgspec.Struct):
    """The fields of a transcript delta that the SDK demands."""

    event_id: str
    response_id: str
    item_id: str
    delta: str
    output_index: int
    content_index: int


def transcript_delta(event: Any) -> RealtimeModelTranscriptDeltaEvent | None:
    """The SDK's event for a server event that is a valid transcript delta; None for all
    others."""
    if (
        not isinstance(event, dict)
        or event.get("type") != "response.output_audio_transcript.delta"
    ):
        return None
    try:
        delta = msgspec.convert(event, _TranscriptDelta)
    except msgspec.ValidationError:
        return None
    return RealtimeModelTranscriptDeltaEvent(
        item_id=delta.item_id, delta=delta.delta, response_id=delta.response_id
    )


def _type_of(event: Any) -> str:
    kind = event.get("type") if isinstance(event, dict) else None
    return kind if isinstance(kind, str) else ""


class PhoneModel(OpenAIRealtimeWebSocketModel):
    """One per call: the SDK's runner would share one model between its sessions."""

    def __init__(
        self,
        wire: OpenWire,
        interrupt: Interrupt,
        take: Take,
        misread: Misread = lambda reason, kind: None,
        call_sid: str = "",
        configured: Configured = lambda settings: None,
    ) -> None:
        """`configured` gets the settings of each session.update of the SDK, when it was
        sent."""
        super().__init__()
        self._call_sid = call_sid
        self._misread = misread
        self._configured = configured
        self._reading: Any = None
        """The event that the SDK reads."""
        self._wire = wire
        self._interrupt = interrupt
        self._take = take

    @property
    def has_other_listeners(self) -> bool:
        """User code listens to the model itself, not only to its session."""
        return any(not isinstance(it, RealtimeSession) for it in self._listeners)

    async def connect(self, options: RealtimeModelConfig) -> None:
        settings = options.get("initial_model_settings", {})
        await super().connect(
            {**options, "initial_model_settings": self._take(settings)}
        )
        self._configured(settings)

    async def _create_websocket_connection(
        self,
        url: str,
        headers: dict[str, str],
        transport_config: TransportConfig | None = None,
    ) -> ClientConnection:
        # The SDK uses only `async for`, `send` and `close` of a connection.
        return cast(ClientConnection, await self._wire(url, headers))

    async def _handle_ws_event(self, event: dict[str, Any]) -> None:
        """Like the SDK's method, but skips a malformed event, which would end the
        session."""
        self._reading = event
        try:
            delta = transcript_delta(event)
            if delta is None:
                await super()._handle_ws_event(event)
                return
            # What the SDK's method sends; but pydantic costs more than all the rest.
            await self._emit_event(RealtimeModelRawServerEvent(data=event))
            await self._emit_event(delta)
        except (AttributeError, LookupError, TypeError, ValidationError):
            # The SDK validates only some events. Malformed ones of the others raise
            # where the SDK reads a field.
            self._misread(REJECTED_BY_SDK, _type_of(self._reading))

    async def _emit_event(self, event: RealtimeModelEvent) -> None:
        if isinstance(event, RealtimeModelErrorEvent) and isinstance(
            event.error, ValidationError
        ):
            self._misread(REJECTED_BY_SDK, _type_of(self._reading))
        for listener in list(self._listeners):
            if isinstance(listener, RealtimeSession):
                await listener.on_event(event)
            else:
                await self._tell(listener, event)

    async def _tell(self, listener: RealtimeModelListener, event: Any) -> None:
        """A listener of the user's own that fails does not end the session."""
        name, seconds = f"{self._call_sid} model listener", user_code.SECONDS
        try:
            await user_code.call(listener.on_event, event, name=name, seconds=seconds)
        except Exception:
            log.warning("model_listener_failed", call_sid=self._call_sid, exc_info=True)
            self.remove_listener(listener)

    async def send_event(self, event: RealtimeModelSendEvent) -> None:
        """Like the SDK's method, but an interruption also clears the audio queued at
        Twilio, and a tool decides whether its result gets a response.

        The SDK's own interruption would truncate at the position it believes was
        played, but no audio passes through the SDK.
        """
        if isinstance(event, RealtimeModelSendSessionUpdate):
            settings = self._take(event.session_settings)
            await super().send_event(RealtimeModelSendSessionUpdate(settings))
            self._configured(event.session_settings)
        elif isinstance(event, RealtimeModelSendToolOutput):
            # The SDK requests no response for a tool that does not exist. The caller
            # would hear silence, so the bridge requests one.
            respond = not isinstance(event.output, BackgroundResult)
            output = event.output
            if len(output) > MAX_OUTPUT_CHARS:
                output = output[:MAX_OUTPUT_CHARS] + CUT_OUTPUT
            await super().send_event(
                RealtimeModelSendToolOutput(event.tool_call, output, respond)
            )
        elif not isinstance(event, RealtimeModelSendInterrupt):
            await super().send_event(event)
        elif event.cancel_response_only:
            await self._cancel_response(response_id=event.response_id)
        else:
            # An interruption by a guardrail names the response; by user code it does
            # not.
            by = "application" if event.response_id is None else "guardrail"
            self._interrupt(by, event.response_id)

    async def tell_interrupted(self, item_id: str, content_index: int) -> None:
        """Sends `audio_interrupted` to the session's listeners."""
        await self._emit_event(
            RealtimeModelAudioInterruptedEvent(
                item_id=item_id, content_index=content_index
            )
        )
