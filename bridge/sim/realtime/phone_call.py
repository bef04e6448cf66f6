"""A fake SIP call as its caller and OpenAI's Calls API see it: states, keys, speech."""

import asyncio
import base64
import enum
import json
import time

from bridge.sim.realtime.client_events import BufferAppend, Json
from bridge.sim.realtime.session import ModelSession

_FRAME_BYTES = 160
_SILENCE = b"\xff" * 8000  # a second: enough to end a turn


class SipCallState(enum.Enum):
    RINGING = "ringing"  # the webhook was sent; nobody has decided
    TALKING = "talking"  # accepted
    REJECTED = "rejected"
    REFERRED = "referred"  # somebody else has the caller now
    ENDED = "ended"


class PhoneCall:
    """One call as its caller, and the Calls API, see it."""

    def __init__(self, call_id: str, caller: str, called: str, *, late: int) -> None:
        self.id = call_id
        self.caller = caller
        self.called = called
        self.state = SipCallState.RINGING
        self.body: Json = {}  # the session it was accepted with
        self.answers: list[int] = []  # HTTP statuses of the webhook
        self.sip_status: int | None = None  # of a rejection
        self.target: str | None = None  # of a REFER
        self.ended_by: str | None = None  # "caller" or "api"
        self.session: ModelSession | None = None  # once somebody has attached
        self.attached = 0  # how often
        self._late = late  # handshakes that still come too early
        self._moved = asyncio.Event()

    async def until(self, *lines: SipCallState) -> None:
        """Waits for one of these states."""
        while self.state not in lines:
            await self._moved.wait()

    @property
    def attachable(self) -> bool:
        """Asked once for each handshake. Right behind accept the real server says 404
        for a moment (openai-agents-python, examples/realtime/twilio_sip)."""
        if self.state is not SipCallState.TALKING:
            return False
        self._late -= 1
        return self._late < 0

    def move(self, line: SipCallState) -> None:
        self.state = line
        self._moved.set()
        self._moved = asyncio.Event()

    def end(self, line: SipCallState, by: str) -> None:
        """The call is over; so is its socket, without a close frame."""
        self.ended_by = by
        self.move(line)
        if self.session is not None:
            self.session.abort(f"{by} {line.value}")

    # --- what the caller does ---

    def hang_up(self) -> None:
        self.end(SipCallState.ENDED, "caller")

    def press(self, key: str) -> None:
        """A key, over RTP (RFC 4733); its event alone has no event_id."""
        assert self.session is not None, "nobody has attached"
        event = {
            "type": "input_audio_buffer.dtmf_event_received",
            "event": key,
            "received_at": int(time.time()),
        }
        self.session.out.put(json.dumps(event))

    def say(self, mulaw: bytes) -> None:
        """The caller speaks: heard at once, and silence enough to end the turn."""
        assert self.session is not None, "nobody has attached"
        audio = mulaw + _SILENCE
        for at in range(0, len(audio), _FRAME_BYTES):
            frame = base64.b64encode(audio[at : at + _FRAME_BYTES]).decode()
            self.session.caller_input.append(BufferAppend(audio=frame))
