"""The Realtime client events, checked as strictly as the real server checks them.

Every event accepted here validates against the `openai` package's client union. A
refusal has the server's own error code. Pure.
"""

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Json: TypeAlias = dict[str, Any]

MAX_ID = 32  # characters of an item's id

Voice = Literal[
    "alloy",
    "ash",
    "ballad",
    "coral",
    "echo",
    "sage",
    "shimmer",
    "verse",
    "marin",
    "cedar",
]
Milliseconds = Annotated[int, Meta(ge=0)]
ItemId = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$", max_length=MAX_ID)]


class InvalidRequestError(Exception):
    """An error of one client event: the server answers with an `error` event, and the
    session goes on unchanged."""

    def __init__(self, message: str, code: str | None, param: str | None = None):
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class _Shape(Struct, forbid_unknown_fields=True):
    pass


# --- session -------------------------------------------------------------------------


class Pcm(_Shape, tag="audio/pcm", tag_field="type"):
    rate: Literal[24000] = 24000


class Pcmu(_Shape, tag="audio/pcmu", tag_field="type"):
    pass


class Pcma(_Shape, tag="audio/pcma", tag_field="type"):
    pass


Format: TypeAlias = Pcm | Pcmu | Pcma


class ServerVadConfig(_Shape, tag="server_vad", tag_field="type"):
    threshold: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    prefix_padding_ms: Milliseconds | UnsetType = UNSET
    silence_duration_ms: Milliseconds | UnsetType = UNSET
    create_response: bool | UnsetType = UNSET
    interrupt_response: bool | UnsetType = UNSET
    idle_timeout_ms: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET


class SemanticVadConfig(_Shape, tag="semantic_vad", tag_field="type"):
    eagerness: Literal["low", "medium", "high", "auto"] | UnsetType = UNSET
    create_response: bool | UnsetType = UNSET
    interrupt_response: bool | UnsetType = UNSET


class TranscriptionConfig(_Shape):
    model: str | UnsetType = UNSET
    language: str | UnsetType | None = UNSET
    languages: list[str] | UnsetType = UNSET
    prompt: str | UnsetType | None = UNSET
    keywords: list[str] | UnsetType = UNSET
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | UnsetType = UNSET


class NoiseReductionConfig(_Shape):
    type: Literal["near_field", "far_field"] | UnsetType = UNSET
    strength: float | UnsetType = UNSET


class AudioInputConfig(_Shape):
    format: Format | UnsetType = UNSET
    transcription: TranscriptionConfig | UnsetType | None = UNSET
    noise_reduction: NoiseReductionConfig | UnsetType | None = UNSET
    turn_detection: ServerVadConfig | SemanticVadConfig | UnsetType | None = UNSET


class VoiceId(_Shape):
    id: str


class AudioOutputConfig(_Shape):
    format: Format | UnsetType = UNSET
    voice: Voice | VoiceId | UnsetType = UNSET
    speed: Annotated[float, Meta(ge=0.25, le=1.5)] | UnsetType = UNSET


class AudioConfig(_Shape):
    input: AudioInputConfig | UnsetType = UNSET
    output: AudioOutputConfig | UnsetType = UNSET


class FunctionTool(_Shape, tag="function", tag_field="type"):
    name: str
    description: str | UnsetType = UNSET
    parameters: Json | UnsetType = UNSET


class McpFilter(_Shape):
    read_only: bool | UnsetType = UNSET
    tool_names: list[str] | UnsetType = UNSET


class McpApproval(_Shape):
    always: McpFilter | UnsetType = UNSET
    never: McpFilter | UnsetType = UNSET


class McpTool(_Shape, tag="mcp", tag_field="type"):
    server_label: str
    server_url: str | UnsetType = UNSET
    connector_id: str | UnsetType = UNSET
    tunnel_id: str | UnsetType = UNSET
    allowed_tools: list[str] | McpFilter | UnsetType | None = UNSET
    authorization: str | UnsetType = UNSET
    headers: dict[str, str] | UnsetType | None = UNSET
    require_approval: Literal["always", "never"] | McpApproval | UnsetType | None = (
        UNSET
    )
    server_description: str | UnsetType = UNSET
    defer_loading: bool | UnsetType = UNSET
    allowed_callers: list[Literal["direct", "programmatic"]] | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if (self.server_url, self.connector_id, self.tunnel_id).count(UNSET) == 3:
            raise ValueError(
                "One of server_url, connector_id or tunnel_id must be provided"
            )


class ChosenFunction(_Shape, tag="function", tag_field="type"):
    name: str


class ChosenMcp(_Shape, tag="mcp", tag_field="type"):
    server_label: str
    name: str | UnsetType | None = UNSET


class ReasoningConfig(_Shape):
    effort: Literal["minimal", "low", "medium", "high", "xhigh"] | UnsetType = UNSET


class Prompt(_Shape):
    id: str
    version: str | UnsetType | None = UNSET
    variables: Json | UnsetType | None = UNSET


class TracingConfig(_Shape):
    workflow_name: str | UnsetType | None = UNSET
    group_id: str | UnsetType | None = UNSET
    metadata: Json | UnsetType | None = UNSET


class TokenLimitsConfig(_Shape):
    post_instructions: int | UnsetType = UNSET


class RetentionRatioConfig(_Shape, tag="retention_ratio", tag_field="type"):
    retention_ratio: Annotated[float, Meta(ge=0, le=1)]
    token_limits: TokenLimitsConfig | UnsetType = UNSET


ToolChoice: TypeAlias = (
    Literal["none", "auto", "required"] | ChosenFunction | ChosenMcp | UnsetType
)
Modalities: TypeAlias = (
    Annotated[list[Literal["text", "audio"]], Meta(min_length=1, max_length=1)]
    | UnsetType
)
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=4096)] | Literal["inf"] | UnsetType


class SessionConfig(_Shape):
    type: Literal["realtime"]
    model: str | UnsetType = UNSET
    output_modalities: Modalities = UNSET
    instructions: str | UnsetType = UNSET
    prompt: Prompt | UnsetType | None = UNSET
    audio: AudioConfig | UnsetType = UNSET
    tools: list[FunctionTool | McpTool] | UnsetType = UNSET
    tool_choice: ToolChoice = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    reasoning: ReasoningConfig | UnsetType = UNSET
    max_output_tokens: Tokens = UNSET
    tracing: Literal["auto"] | TracingConfig | UnsetType | None = UNSET
    truncation: Literal["auto", "disabled"] | RetentionRatioConfig | UnsetType = UNSET
    include: list[Literal["item.input_audio_transcription.logprobs"]] | UnsetType = (
        UNSET
    )


# --- items ---------------------------------------------------------------------------


class InputText(_Shape, tag="input_text", tag_field="type"):
    text: str


class InputAudio(_Shape, tag="input_audio", tag_field="type"):
    audio: str
    transcript: str | UnsetType | None = UNSET


class InputImage(_Shape, tag="input_image", tag_field="type"):
    image_url: str
    detail: Literal["auto", "low", "high"] | UnsetType = UNSET


class OutputText(_Shape, tag="output_text", tag_field="type"):
    text: str


Part: TypeAlias = InputText | InputAudio | InputImage | OutputText
Status: TypeAlias = Literal["completed", "incomplete", "in_progress"] | UnsetType
ItemObject: TypeAlias = Literal["realtime.item"] | UnsetType


class MessageItem(_Shape, tag="message", tag_field="type"):
    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Part], Meta(min_length=1)]
    id: ItemId | UnsetType = UNSET
    object: ItemObject = UNSET
    status: Status = UNSET


class FunctionCallItem(_Shape, tag="function_call", tag_field="type"):
    name: str
    arguments: str
    call_id: str
    id: ItemId | UnsetType = UNSET
    object: ItemObject = UNSET
    status: Status = UNSET


class FunctionCallOutputItem(_Shape, tag="function_call_output", tag_field="type"):
    call_id: str
    output: str
    id: ItemId | UnsetType = UNSET
    object: ItemObject = UNSET
    status: Status = UNSET


class McpApprovalResponseItem(_Shape, tag="mcp_approval_response", tag_field="type"):
    id: ItemId
    approval_request_id: str
    approve: bool
    reason: str | UnsetType | None = UNSET


# Content parts that each role may have. A client cannot add assistant audio to a
# conversation.
PARTS_OF_ROLE: dict[str, frozenset[str]] = {
    "user": frozenset(("input_text", "input_audio", "input_image")),
    "system": frozenset(("input_text",)),
    "assistant": frozenset(("output_text",)),
}

# --- events --------------------------------------------------------------------------


class _EventShape(_Shape, tag_field="type"):
    event_id: str | UnsetType = UNSET


class SessionUpdate(_EventShape, tag="session.update", kw_only=True):
    session: SessionConfig


class BufferAppend(_EventShape, tag="input_audio_buffer.append", kw_only=True):
    audio: str


class BufferCommit(_EventShape, tag="input_audio_buffer.commit"):
    pass


class BufferClear(_EventShape, tag="input_audio_buffer.clear"):
    pass


class ItemCreate(_EventShape, tag="conversation.item.create", kw_only=True):
    item: (
        MessageItem
        | FunctionCallItem
        | FunctionCallOutputItem
        | McpApprovalResponseItem
    )
    previous_item_id: str | UnsetType = UNSET


class ItemRetrieve(_EventShape, tag="conversation.item.retrieve", kw_only=True):
    item_id: str


class ItemTruncate(_EventShape, tag="conversation.item.truncate", kw_only=True):
    item_id: str
    content_index: Annotated[int, Meta(ge=0)]
    audio_end_ms: Milliseconds


class ItemDelete(_EventShape, tag="conversation.item.delete", kw_only=True):
    item_id: str


class ResponseOutput(_Shape):
    format: Format | UnsetType = UNSET
    voice: Voice | VoiceId | UnsetType = UNSET


class ResponseAudio(_Shape):
    output: ResponseOutput | UnsetType = UNSET


class ResponseParameters(_Shape):
    conversation: Literal["auto", "none"] | UnsetType = UNSET
    input: list[Json] | UnsetType = UNSET
    instructions: str | UnsetType = UNSET
    output_modalities: Modalities = UNSET
    audio: ResponseAudio | UnsetType = UNSET
    tools: list[FunctionTool | McpTool] | UnsetType = UNSET
    tool_choice: ToolChoice = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    reasoning: ReasoningConfig | UnsetType = UNSET
    max_output_tokens: Tokens = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET
    prompt: Prompt | UnsetType | None = UNSET


class ResponseCreate(_EventShape, tag="response.create"):
    response: ResponseParameters | UnsetType = UNSET


class ResponseCancel(_EventShape, tag="response.cancel"):
    response_id: str | UnsetType = UNSET


ClientEvent: TypeAlias = (
    SessionUpdate
    | BufferAppend
    | BufferCommit
    | BufferClear
    | ItemCreate
    | ItemRetrieve
    | ItemTruncate
    | ItemDelete
    | ResponseCreate
    | ResponseCancel
)

_PROBLEM = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$?\.?(?P<path>.*?)`)?$")
_UNKNOWN = re.compile(r"unknown field `(.*?)`")
_MISSING = re.compile(r"missing required field `(.*?)`")


_append = msgspec.json.Decoder(BufferAppend)


def decode_append(frame: str) -> BufferAppend | None:
    """A well-formed `input_audio_buffer.append`; None for any other frame.

    A fast path: appends come 50 times a second. `parse` and `check` judge every other
    event, faulty appends included.
    """
    if '"input_audio_buffer.append"' not in frame[:200]:
        return None
    try:
        return _append.decode(frame)
    except msgspec.DecodeError:
        return None


def parse(frame: str | bytes) -> Json:
    """Decode one client frame into a JSON object; its content is not checked."""
    try:
        event = msgspec.json.decode(frame)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(
            f"Could not parse the JSON: {error}", "invalid_json"
        ) from None
    if not isinstance(event, dict):
        raise InvalidRequestError("Invalid type: expected an object.", "invalid_type")
    return event


def check(event: Json) -> ClientEvent:
    """The event as a value.

    Raises InvalidRequestError with the server's code and the parameter's path.
    """
    if "type" not in event:
        raise _refusal("Object missing required field `type`")
    try:
        checked: ClientEvent = msgspec.convert(event, ClientEvent)
        return checked
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None


def _refusal(problem: str) -> InvalidRequestError:
    match = _PROBLEM.match(problem)
    assert match is not None
    what, path = match["what"], match["path"] or ""

    def at(name: str) -> str:
        return f"{path}.{name}" if path else name

    if unknown := _UNKNOWN.search(what):
        param = at(unknown[1])
        return InvalidRequestError(
            f"Unknown parameter: '{param}'.", "unknown_parameter", param
        )
    if missing := _MISSING.search(what):
        param = at(missing[1])
        return InvalidRequestError(
            f"Missing required parameter: '{param}'.",
            "missing_required_parameter",
            param,
        )
    if what.startswith("Expected") and ", got `" in what:
        return InvalidRequestError(
            f"Invalid type for '{path}': {what[0].lower()}{what[1:]}.",
            "invalid_type",
            path,
        )
    if what == f"Expected `str` of length <= {MAX_ID}":
        return InvalidRequestError(
            f"Invalid '{path}': string too long. Expected a string with maximum length "
            f"{MAX_ID}.",
            "string_above_max_length",
            path,
        )
    return InvalidRequestError(
        f"Invalid value for '{path}': {what}.", "invalid_value", path
    )
