"""The caller's end of a call on Twilio's media streams, one stream after the other.

Reads the messages of the stream as inputs of the core, and sends the core's messages.
A stream that breaks may be replaced by a newer one while the call runs.
"""

import asyncio
import time
from dataclasses import replace

from bridge.agent.approvals import Approvals
from bridge.agent.live import CallFacts, LiveCall
from bridge.app.services import Services
from bridge.call.leg import LegOwner
from bridge.call.stream import IdentifiedPhone, Stream
from bridge.core import ProtocolError, twilio_messages
from bridge.core.capabilities import MEDIA_STREAM
from bridge.core.commands import End, limit_hit
from bridge.core.inputs import EndCall, FromPhone, Misread, StreamLost
from bridge.model.session import AgentSession, SessionOwner, SessionPlan

MEASURE_EVERY = 10
"""One of this many messages (there are 50 a second) is timed, to keep the cost low."""

LIMITS = {
    twilio_messages.TOO_LARGE: "message_bytes",
    twilio_messages.TOO_MANY: "message_rate",
}
"""Reason for which a message was rejected -> name of the limit (core/limits.py)."""


class MediaLeg:
    """A bridge.call.leg.CallLeg, and the StreamOwner of its streams."""

    capabilities = MEDIA_STREAM
    refer = None

    def __init__(self, phone: IdentifiedPhone, services: Services) -> None:
        """`phone`: the socket of the first stream."""
        self._phone = phone
        self._services = services
        self._call: LegOwner
        """The call, which opens its leg first."""
        self._stream: Stream | None = None
        self._messages = 0

    def open(self, owner: LegOwner) -> None:
        self._call = owner
        self._stream = self._new_stream(self._phone)

    def session(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        tasks: asyncio.TaskGroup,
    ) -> AgentSession:
        local_mcp = self._services.local_mcp
        return AgentSession(
            plan,
            live,
            owner,
            approvals,
            local_mcp,
            tasks,
            self._services.metrics.caller_to_model.observe,
        )

    def send(self, texts: list[str], now: float) -> None:
        assert self._stream, "only a stream leads to a message for the caller"
        self._stream.send(texts, now)

    async def take_over(self, phone: IdentifiedPhone) -> bool:
        """Closes the older stream: the caller is on this one now."""
        if self._stream is None:
            return False
        self._stream.stop()
        self._call.feed(StreamLost())
        stream = self._stream = self._new_stream(phone)
        await stream.finished.wait()
        return True

    def leave_stream(self) -> None:
        if self._stream:
            self._stream.stop()
            self.stream_closed()

    async def close(self, ending: End) -> None:
        """Closes the stream; safe to call twice. Twilio asks for the next step as soon
        as it is closed."""
        if self._stream:
            await self._stream.close()

    def _new_stream(self, phone: IdentifiedPhone) -> Stream:
        observe = self._services.metrics.model_to_caller.observe
        return Stream(phone, self, self._call.start_task, observe)

    # --- called by the stream (bridge.call.stream.StreamOwner) ---

    def stream_message(self, text: str | bytes) -> None:
        self._messages += 1
        arrived_at = 0.0 if self._messages % MEASURE_EVERY else time.monotonic()
        try:
            if isinstance(text, bytes):
                raise ProtocolError("binary message")
            message = twilio_messages.decode(text)
        except ProtocolError as error:
            self._misread(error.reason)
            return
        self._call.feed(FromPhone(message))
        if arrived_at:
            seconds = time.monotonic() - arrived_at
            self._services.metrics.caller_to_model.observe(seconds)

    def stream_invalid(self, reason: str) -> None:
        self._misread(reason)
        self._call.feed(EndCall("caller", "protocol_error"))

    def stream_closed(self) -> None:
        self._call.stream_lost()

    def stream_stuck(self) -> None:
        self._call.note(limit_hit("phone_slow"))

    def _misread(self, reason: str) -> None:
        if limit := LIMITS.get(reason):
            self._call.note(limit_hit(limit))
        self._call.feed(Misread("caller", reason))


def facts_of(start: twilio_messages.Start) -> CallFacts:
    """The call's facts, from Twilio's `start`."""
    details = start.start
    facts = CallFacts.of(details.call_sid, details.custom_parameters or {})
    return replace(facts, stream_sid=start.stream_sid, account_sid=details.account_sid)
