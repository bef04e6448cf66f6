"""A fake SIP call as its caller and OpenAI's Calls API see it: states, keys, speech."""

import asyncio
import base64
import enum
import json
import time

from bridge.sim.realtime.client_events import BufferAppend, Json
from bridge.sim.realtime.session import ModelSession

_FRAME_BYTES = 160
_SILENCE = b"\xff" * 8000  # a second: long enough to end a turn


class SipCallState(enum.Enum):
    RINGING = "ringing"  # the webhook was sent; no decision yet
    TALKING = "talking"  # accepted
    REJECTED = "rejected"
    REFERRED = "referred"  # the call was transferred
    ENDED = "ended"


class PhoneCall:
    """One call, as the caller and the Calls API see it."""

    def __init__(self, call_id: str, caller: str, called: str, *, late: int) -> None:
        self.id = call_id
        self.caller = caller
        self.called = called
        self.state = SipCallState.RINGING
        self.body: Json = {}  # the session of the accept request
        self.answers: list[int] = []  # HTTP statuses of the webhook
        self.sip_status: int | None = None  # of a rejected call
        self.target: str | None = None  # of a REFER
        self.ended_by: str | None = None  # "caller" or "api"
        # None until a control socket is attached
        self.session: ModelSession | None = None
        self.attached = 0  # number of control sockets so far
        self._late = late  # handshakes that are still refused as too early
        self._moved = asyncio.Event()

    async def until(self, *states: SipCallState) -> None:
        """Wait until the call has one of these states."""
        while self.state not in states:
            await self._moved.wait()

    @property
    def attachable(self) -> bool:
        """True if this handshake may attach. Call it once per handshake.

        Just after an accept the real server answers 404 for a moment
        (openai-agents-python, examples/realtime/twilio_sip).
        """
        if self.state is not SipCallState.TALKING:
            return False
        self._late -= 1
        return self._late < 0

    def move(self, state: SipCallState) -> None:
        self.state = state
        self._moved.set()
        self._moved = asyncio.Event()

    def end(self, state: SipCallState, by: str) -> None:
        """End the call and its control socket, which gets no close frame."""
        self.ended_by = by
        self.move(state)
        if self.session is not None:
            self.session.abort(f"{by} {state.value}")

    # --- what the caller does ---

    def hang_up(self) -> None:
        self.end(SipCallState.ENDED, "caller")

    def press(self, key: str) -> None:
        """Press a key, sent over RTP (RFC 4733). Its event is the only one without an
        event_id."""
        assert self.session is not None, "no control socket is attached"
        event = {
            "type": "input_audio_buffer.dtmf_event_received",
            "event": key,
            "received_at": int(time.time()),
        }
        self.session.out.put(json.dumps(event))

    def say(self, mulaw: bytes) -> None:
        """Let the caller speak: the server hears the audio at once, then enough silence
        to end the turn."""
        assert self.session is not None, "no control socket is attached"
        audio = mulaw + _SILENCE
        for at in range(0, len(audio), _FRAME_BYTES):
            frame = base64.b64encode(audio[at : at + _FRAME_BYTES]).decode()
            self.session.caller_input.append(BufferAppend(audio=frame))
