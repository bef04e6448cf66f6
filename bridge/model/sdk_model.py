"""The SDK's websocket model with our wire in it: audio and interruption are the call's.

Everything else of the SDK stays: session configuration, tools, handoffs, guardrails,
history. Private names it relies on are listed in tests/model/test_sdk_canary.py.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from agents.realtime import RealtimeModelConfig, RealtimeModelSendEvent
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.model_events import (
    RealtimeModelAudioInterruptedEvent,
    RealtimeModelErrorEvent,
    RealtimeModelEvent,
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
from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection

from bridge.model.results import BackgroundResult
from bridge.model.wire import Wire

MAX_OUTPUT_CHARS = 100_000
"""Of a tool's result. Nobody is read more; the server echoes it, and a socket takes
8 MB at once."""

CUT_OUTPUT = "\n(The result was longer than this and has been cut off.)"

UNTAKEN = "event that the SDK cannot take"

OpenWire = Callable[[str, dict[str, str]], Awaitable[Wire]]
"""(url, headers) -> a wire to there, whether or not it is connected yet."""

Interrupt = Callable[[str, str | None], None]
"""(by whom, id of the answer or None for any): silence at once."""


Misread = Callable[[str], None]
"""An event could not be used; a fixed phrase says why."""

Take = Callable[[RealtimeSessionModelSettings], RealtimeSessionModelSettings]
"""Settings of the agent in charge -> what the SDK takes of them (hosted_mcp.py)."""


class PhoneModel(OpenAIRealtimeWebSocketModel):
    """One per call: the SDK's runner would share an instance between sessions."""

    def __init__(
        self,
        wire: OpenWire,
        interrupt: Interrupt,
        take: Take,
        misread: Misread = lambda reason: None,
    ) -> None:
        super().__init__()
        self._misread = misread
        self._wire = wire
        self._interrupt = interrupt
        self._take = take

    async def connect(self, options: RealtimeModelConfig) -> None:
        settings = options.get("initial_model_settings", {})
        await super().connect(
            {**options, "initial_model_settings": self._take(settings)}
        )

    async def _create_websocket_connection(
        self,
        url: str,
        headers: dict[str, str],
        transport_config: TransportConfig | None = None,
    ) -> ClientConnection:
        # The SDK uses three things of a connection, and the wire has them.
        return cast(ClientConnection, await self._wire(url, headers))

    async def _handle_ws_event(self, event: dict[str, Any]) -> None:
        """As the SDK's, but an odd event is left out and does not end the session."""
        try:
            await super()._handle_ws_event(event)
        except (AttributeError, LookupError, TypeError, ValidationError):
            # What it takes for granted of the shape of some, and for others checks.
            self._misread(UNTAKEN)

    async def _emit_event(self, event: RealtimeModelEvent) -> None:
        if isinstance(event, RealtimeModelErrorEvent) and isinstance(
            event.error, ValidationError
        ):
            self._misread(UNTAKEN)
        await super()._emit_event(event)

    async def send_event(self, event: RealtimeModelSendEvent) -> None:
        """As the SDK's, but an interruption stops what is queued at Twilio, and tools
        decide whether they are spoken about.

        The SDK's own interruption would truncate by what it knows of playing, which is
        nothing: audio does not pass through it.
        """
        if isinstance(event, RealtimeModelSendSessionUpdate):
            settings = self._take(event.session_settings)
            await super().send_event(RealtimeModelSendSessionUpdate(settings))
        elif isinstance(event, RealtimeModelSendToolOutput):
            # The SDK asks for no answer only where the tool does not exist: then the
            # caller would sit in silence.
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
            # With an answer's id it is a guardrail's, without one the user's code's.
            by = "application" if event.response_id is None else "guardrail"
            self._interrupt(by, event.response_id)

    async def tell_interrupted(self, item_id: str, content_index: int) -> None:
        """Listeners of the session get `audio_interrupted`."""
        await self._emit_event(
            RealtimeModelAudioInterruptedEvent(
                item_id=item_id, content_index=content_index
            )
        )
