"""The Realtime API's server events that decide something for a call: text -> value.

Reads only the fields that matter here; the SDK (model/wire.py) gets every event whole.
realtime_requests.py has the client events. Contract: `openai.types.realtime`.
"""

from collections.abc import Callable
from typing import Annotated, Any, get_args

import msgspec

from bridge.audio import g711
from bridge.core import UNREADABLE, ProtocolError, twilio_messages
from bridge.core.limits import MAX_ID_CHARS
from bridge.core.usage import Usage

MULAW = "audio/pcmu"

MAX_DELTA_CHARS = 1024 * 1024
"""98 s of audio in one event; models send 0.1 to 1 s."""

ContentIndex = Annotated[int, msgspec.Meta(ge=0, le=2**31)]

Id = Annotated[str, msgspec.Meta(max_length=MAX_ID_CHARS)]


class AudioDelta(msgspec.Struct, frozen=True, tag="response.output_audio.delta"):
    """A piece of a response's audio: base64 in the session's output format."""

    response_id: Id
    item_id: Id
    delta: str
    content_index: ContentIndex = 0


class AudioDone(msgspec.Struct, frozen=True, tag="response.output_audio.done"):
    """No more audio in this item; also sent after an interruption."""

    response_id: Id
    item_id: Id
    content_index: ContentIndex = 0


class TranscriptDelta(
    msgspec.Struct, frozen=True, tag="response.output_audio_transcript.delta"
):
    """Text of a response; arrives a little ahead of its audio."""

    response_id: Id
    item_id: Id
    delta: str
    content_index: ContentIndex = 0


class SpeechStarted(
    msgspec.Struct, frozen=True, tag="input_audio_buffer.speech_started"
):
    """The server heard the caller begin to speak."""

    item_id: Id = ""


class SpeechStopped(
    msgspec.Struct, frozen=True, tag="input_audio_buffer.speech_stopped"
):
    """The server heard the caller stop speaking."""

    item_id: Id = ""


class PlayoutStarted(msgspec.Struct, frozen=True, tag="output_audio_buffer.started"):
    """The server begins to play a response; only on calls whose audio it has."""

    response_id: Id


class PlayoutStopped(msgspec.Struct, frozen=True, tag="output_audio_buffer.stopped"):
    """The server has played the response to its end."""

    response_id: Id


class PlayoutCleared(msgspec.Struct, frozen=True, tag="output_audio_buffer.cleared"):
    """The server has stopped playing the response before its end."""

    response_id: Id


Playout = PlayoutStarted | PlayoutStopped | PlayoutCleared


class KeyReceived(
    msgspec.Struct, frozen=True, tag="input_audio_buffer.dtmf_event_received"
):
    """The caller pressed a key; only on calls whose audio the server has."""

    event: twilio_messages.Digit


class InputCommitted(msgspec.Struct, frozen=True, tag="input_audio_buffer.committed"):
    """The caller's turn is over: its audio is an item now."""

    item_id: Id = ""


class InputCleared(msgspec.Struct, frozen=True, tag="input_audio_buffer.cleared"):
    """The audio of the caller's turn was dropped."""


class CallerTranscript(
    msgspec.Struct,
    frozen=True,
    tag="conversation.item.input_audio_transcription.completed",
):
    """Transcript of a caller's turn, by the session's transcription model."""

    item_id: Id
    transcript: str


class TranscriptionFailed(
    msgspec.Struct,
    frozen=True,
    tag="conversation.item.input_audio_transcription.failed",
):
    """A caller's turn gets no transcript."""

    item_id: Id


class ResponseError(msgspec.Struct, frozen=True):
    code: str | None = None
    message: Any = None


class StatusDetails(msgspec.Struct, frozen=True):
    reason: str | None = None
    error: ResponseError | None = None


class ResponseHead(msgspec.Struct, frozen=True):
    id: Id
    status: Id | None = None
    status_details: StatusDetails | None = None
    usage: Any = None
    output: Any = None

    @property
    def acted(self) -> bool:
        """Some item of it is no message: a tool was called, by whomever."""
        items = self.output if isinstance(self.output, list) else []
        return any(isinstance(it, dict) and it.get("type") != "message" for it in items)

    @property
    def used(self) -> Usage | None:
        """None if the server gives no usage, or one of the wrong shape: the response
        ends anyway."""
        try:
            used = msgspec.convert(self.usage, Usage | None)
        except msgspec.ValidationError:
            return None
        return None if used == Usage() else used

    @property
    def why(self) -> str | None:
        """Why the response was not completed: the error's code, or the reason."""
        details = self.status_details
        if details is None:
            return None
        return details.error.code if details.error else details.reason

    @property
    def message(self) -> str | None:
        """The error's text, if the response failed."""
        error = self.status_details.error if self.status_details else None
        return error.message if error and isinstance(error.message, str) else None


class ResponseCreated(msgspec.Struct, frozen=True, tag="response.created"):
    response: ResponseHead


class ResponseDone(msgspec.Struct, frozen=True, tag="response.done"):
    """The model has generated all of a response; playing it may take much longer."""

    response: ResponseHead


class OutputItem(msgspec.Struct, frozen=True):
    id: Id
    type: Id


class EndedItem(msgspec.Struct, frozen=True):
    id: Id
    type: Id
    status: Id | None = None
    call_id: Id | None = None


class OutputItemDone(msgspec.Struct, frozen=True, tag="response.output_item.done"):
    """An item of a response has ended. The SDK runs the tool of a function call whose
    status is "completed"; a cancelled one is "incomplete"."""

    response_id: Id
    item: EndedItem


class OutputItemAdded(msgspec.Struct, frozen=True, tag="response.output_item.added"):
    """The response has another item; only items of type `message` have audio."""

    response_id: Id
    item: OutputItem


class ConversationItem(msgspec.Struct, frozen=True):
    """An item of the conversation; all but the id may be missing or of the wrong
    type."""

    id: Id
    type: str = ""
    role: str | None = None
    content: Any = None
    call_id: Id | None = None
    name: Id | None = None
    arguments: str | None = None
    output: str | None = None
    status: str | None = None

    @property
    def is_cut_off_call(self) -> bool:
        """A function call that the model did not complete: its tool never runs."""
        return self.type == "function_call" and self.status == "incomplete"

    @property
    def text(self) -> str:
        """The text of all parts, written or transcribed."""
        parts = self.content if isinstance(self.content, list) else []
        words = (
            part.get("text") or part.get("transcript")
            for part in parts
            if isinstance(part, dict)
        )
        return " ".join(word for word in words if isinstance(word, str))


class ItemAdded(msgspec.Struct, frozen=True, tag="conversation.item.added"):
    """The conversation has another item; its text may still be missing."""

    item: ConversationItem
    previous_item_id: str | None = None


class ItemDone(msgspec.Struct, frozen=True, tag="conversation.item.done"):
    """An item is complete."""

    item: ConversationItem
    previous_item_id: str | None = None


class ItemDeleted(msgspec.Struct, frozen=True, tag="conversation.item.deleted"):
    item_id: Id


class Format(msgspec.Struct, frozen=True):
    type: str


class TurnDetection(msgspec.Struct, frozen=True):
    create_response: bool | None = None
    interrupt_response: bool | None = None
    type: Any = None
    silence_duration_ms: Any = None
    eagerness: Any = None


class SessionInput(msgspec.Struct, frozen=True):
    format: Format | None = None
    turn_detection: TurnDetection | msgspec.UnsetType | None = msgspec.UNSET
    transcription: Any = msgspec.UNSET


class SessionOutput(msgspec.Struct, frozen=True):
    format: Format | None = None


class SessionAudio(msgspec.Struct, frozen=True):
    input: SessionInput | None = None
    output: SessionOutput | None = None


class SessionDetails(msgspec.Struct, frozen=True):
    audio: SessionAudio | None = None
    output_modalities: Any = None


class SessionUpdated(msgspec.Struct, frozen=True, tag="session.updated"):
    """The session's settings now, as the server applied them."""

    session: SessionDetails

    @property
    def formats(self) -> tuple[str | None, str | None]:
        """(input, output) audio formats; None where the server does not say."""
        audio = self.session.audio
        taken = audio.input.format if audio and audio.input else None
        sent = audio.output.format if audio and audio.output else None
        return (taken.type if taken else None, sent.type if sent else None)

    @property
    def speaks(self) -> bool:
        """False: the server says that its answers are not audio."""
        modalities = self.session.output_modalities
        return not isinstance(modalities, list) or "audio" in modalities

    @property
    def turns(self) -> TurnDetection:
        """Whether the server responds and interrupts by itself; None where it does not
        say."""
        audio = self.session.audio
        detection = audio.input.turn_detection if audio and audio.input else None
        return detection or TurnDetection()

    @property
    def detects(self) -> bool:
        """False: the server says that it does not detect turns."""
        audio = self.session.audio
        return not (audio and audio.input and audio.input.turn_detection is None)

    @property
    def transcribes(self) -> bool:
        """False: the server says that it does not transcribe the caller."""
        audio = self.session.audio
        return not (audio and audio.input and audio.input.transcription is None)


class ErrorDetails(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""
    code: str | None = None
    event_id: str | None = None
    param: str | None = None


class ModelError(msgspec.Struct, frozen=True, tag="error"):
    """An error of the server; `event_id` names the client event it is about."""

    error: ErrorDetails


class Other(msgspec.Struct, frozen=True, tag=False):
    """An event that decides nothing on the audio path."""

    type: str


RareEvent = (
    AudioDone
    | SpeechStarted
    | SpeechStopped
    | PlayoutStarted
    | PlayoutStopped
    | PlayoutCleared
    | KeyReceived
    | InputCommitted
    | InputCleared
    | CallerTranscript
    | TranscriptionFailed
    | ResponseCreated
    | ResponseDone
    | OutputItemAdded
    | OutputItemDone
    | ItemAdded
    | ItemDone
    | ItemDeleted
    | SessionUpdated
    | ModelError
)
KnownEvent = AudioDelta | TranscriptDelta | RareEvent
"""The events that the core handles; most of them are the first two."""

ServerEvent = KnownEvent | Other


_decode_known: Callable[[str], KnownEvent] = msgspec.json.Decoder(KnownEvent).decode
_decode_head: Callable[[str], Other] = msgspec.json.Decoder(Other).decode
_KNOWN = {kind.__struct_config__.tag for kind in get_args(KnownEvent)}


def decode(text: str) -> ServerEvent:
    """Reads one server event. Raises ProtocolError, whose reason says what is wrong
    with it."""
    try:
        event = _decode_known(text)
    except UNREADABLE:
        return _decode_other(text)
    if isinstance(event, AudioDelta):
        if len(event.delta) > MAX_DELTA_CHARS:
            raise ProtocolError("audio delta too large")
        if not g711.is_payload(event.delta):
            # Twilio would play nothing and only warn (31951), so check here.
            raise ProtocolError("audio delta is not base64")
    return event


def _decode_other(text: str) -> Other:
    try:
        head = _decode_head(text)
    except msgspec.ValidationError:
        raise ProtocolError("event has no type field") from None
    except UNREADABLE:
        raise ProtocolError("event is no JSON") from None
    if head.type in _KNOWN:
        raise ProtocolError(f"{head.type} of the wrong shape")
    return head
