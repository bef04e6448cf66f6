"""Twilio's Media Streams messages: text -> value, value -> text.

May not know what a message means for a call; that is decided in conversation.py.
Contract: https://www.twilio.com/docs/voice/media-streams/websocket-messages
"""

from collections.abc import Callable
from typing import Annotated, get_args

import msgspec

from bridge.audio import g711
from bridge.core import UNREADABLE, ProtocolError
from bridge.core.limits import MAX_ID_CHARS

MAX_MESSAGE_CHARS = 64 * 1024
"""A frame has under 400 characters, a `start` with many parameters a few kB (name and
value of each are under 500): a larger message is not from Twilio."""

TOO_LARGE, TOO_MANY = "message too large", "too many messages"
"""Reasons of a ProtocolError; http/server.py raises them, too."""


Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Bounded, so that hostile digits cannot overflow a calculation."""


Sid = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]
"""Bounded, because every message that we send contains it."""

Digit = Annotated[str, msgspec.Meta(max_length=1, pattern="^[0-9A-D*#]$")]
"""One key. It becomes a message to the agent, so nothing but a key is accepted."""


class Connected(msgspec.Struct, frozen=True, tag_field="event", tag="connected"):
    """The socket is open; says nothing about the call."""


class MediaFormat(msgspec.Struct, frozen=True, rename="camel"):
    encoding: str
    sample_rate: int
    channels: int


class StartDetails(msgspec.Struct, frozen=True, rename="camel"):
    call_sid: Sid
    media_format: MediaFormat
    account_sid: Sid = ""
    # `{}` when the TwiML had no <Parameter>; null and absent are accepted as well.
    custom_parameters: dict[str, str] | None = None


class Start(
    msgspec.Struct, frozen=True, tag_field="event", tag="start", rename="camel"
):
    """The stream begins: the call's SID, and the <Parameter>s of its TwiML."""

    stream_sid: Sid
    start: StartDetails


class MediaDetails(msgspec.Struct, frozen=True):
    payload: str
    timestamp: Milliseconds
    track: str = "inbound"

    @property
    def duration_ms(self) -> float:
        """20 ms in practice; the contract names no length."""
        return g711.payload_bytes(self.payload) / g711.BYTES_PER_MS


class Media(
    msgspec.Struct, frozen=True, tag_field="event", tag="media", rename="camel"
):
    """Audio of the caller: base64 mu-law; `timestamp` in ms since the stream began."""

    stream_sid: str
    media: MediaDetails


class DtmfDetails(msgspec.Struct, frozen=True):
    digit: Digit


class Dtmf(msgspec.Struct, frozen=True, tag_field="event", tag="dtmf", rename="camel"):
    """The caller pressed a key."""

    stream_sid: str
    dtmf: DtmfDetails


class MarkDetails(msgspec.Struct, frozen=True):
    name: str


class Mark(msgspec.Struct, frozen=True, tag_field="event", tag="mark", rename="camel"):
    """A mark came back: the audio in front of it was played, or cleared."""

    stream_sid: str
    mark: MarkDetails


class Stop(msgspec.Struct, frozen=True, tag_field="event", tag="stop", rename="camel"):
    """The stream or the call has ended. This message may never come."""

    stream_sid: str = ""


Inbound = Connected | Start | Media | Dtmf | Mark | Stop


class _MessageHead(msgspec.Struct):
    event: str


# strict=False: sequenceNumber, chunk and timestamp are strings in Twilio's examples and
# numbers in its prose ("Media message"); both are accepted.
_decode: Callable[[str], Inbound] = msgspec.json.Decoder(Inbound, strict=False).decode
_decode_head: Callable[[str], _MessageHead] = msgspec.json.Decoder(_MessageHead).decode
_KNOWN = {kind.__struct_config__.tag for kind in get_args(Inbound)}


def decode(text: str) -> Inbound:
    """Reads one message of Twilio. Raises ProtocolError, whose reason says what is
    wrong."""
    if len(text) > MAX_MESSAGE_CHARS:
        raise ProtocolError(TOO_LARGE)
    try:
        message = _decode(text)
    except UNREADABLE:
        raise ProtocolError(_fault(text)) from None
    if isinstance(message, Media) and not g711.is_payload(message.media.payload):
        # Checked here, because the model would answer with an error.
        raise ProtocolError("media payload is not base64")
    return message


def _fault(text: str) -> str:
    """Why a message cannot be decoded."""
    try:
        event = _decode_head(text).event
    except msgspec.ValidationError:
        return "message has no event field"
    except UNREADABLE:
        return "message is no JSON"
    return f"{event} message of the wrong shape" if event in _KNOWN else "unknown event"


class OutboundMessages:
    """Messages to one stream, with exactly the documented fields: an extra field is
    warning 31951 at Twilio."""

    __slots__ = ("_clear", "_mark", "_media")

    def __init__(self, stream_sid: str) -> None:
        sid = msgspec.json.encode(stream_sid).decode()
        self._media = f'{{"event":"media","streamSid":{sid},"media":{{"payload":"'
        self._mark = f'{{"event":"mark","streamSid":{sid},"mark":{{"name":"'
        self._clear = f'{{"event":"clear","streamSid":{sid}}}'

    def media(self, payload: str) -> str:
        """`payload` must be base64: it is inserted unchecked."""
        return f'{self._media}{payload}"}}}}'

    def mark(self, name: str) -> str:
        """`name` must be letters and digits: it is inserted unchecked."""
        return f'{self._mark}{name}"}}}}'

    def clear(self) -> str:
        return self._clear
