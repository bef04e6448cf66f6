"""The fake model's script: outputs, turns, pace, faults.

Values only. Tests, the demo and measurements write the script; `bridge.sim.model`
follows it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bridge.sim.realtime.items import RememberedItem
from bridge.sim.voice import WORDS_PER_MINUTE

Trigger: TypeAlias = Literal["client", "speech", "idle"]


@dataclass(frozen=True, slots=True)
class SayText:
    """An assistant item that speaks `text`.

    `written`: an item of text only, whatever modality was asked for.
    """

    text: str
    written: bool = False


@dataclass(frozen=True, slots=True)
class PlayAudio:
    """An assistant item with this audio (mu-law, 8 kHz); `text` is its transcript."""

    mulaw: bytes
    text: str


@dataclass(frozen=True, slots=True)
class PlayRuler:
    """An assistant item of ruler audio with the session's next item number.

    `read_ruler` can read it only if the output format is audio/pcmu.
    """

    ms: int


@dataclass(frozen=True, slots=True)
class CallTool:
    """A function_call item."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallMcp:
    """An mcp_call item: the model's server calls a tool of a hosted MCP server.

    If the session requires approval, the response ends with the approval request.
    """

    server_label: str
    name: str
    arguments: Mapping[str, Any]
    output: str = ""
    # a RealtimeMcpToolCall.error; then there is no output
    error: Mapping[str, Any] | None = None
    seconds: float = 0.0  # duration of the call


@dataclass(frozen=True, slots=True)
class Fail:
    """End the response here with status "failed"."""

    code: str = "rate_limit_exceeded"
    message: str = "Rate limit reached."


@dataclass(frozen=True, slots=True)
class BreakOff:
    """End the response here with status "incomplete"."""

    reason: str = "max_output_tokens"


Output: TypeAlias = (
    SayText | PlayAudio | PlayRuler | CallTool | CallMcp | Fail | BreakOff
)
Turn: TypeAlias = Sequence[Output]
"""The output items of one response, in order."""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    call_id: str
    name: str
    output: str


@dataclass(frozen=True, slots=True)
class TurnContext:
    """What the model knows when it is about to answer."""

    number: int  # of the response within the session, from 1
    trigger: Trigger  # response.create, end of the caller's turn, or idle timeout
    instructions: str  # of the session, or of this response.create
    tools: tuple[Mapping[str, Any], ...]
    caller_turns: int  # turns of the caller so far
    seconds: float  # of speech in the latest turn, without padding and silence
    transcript: str | None  # of the latest turn, if a text was given for it
    text: str | None  # the latest user message that was sent as text
    answered: tuple[ToolOutput, ...]  # tool outputs not spoken about yet
    overrides: Mapping[str, Any]  # `response` of response.create
    conversation: tuple[RememberedItem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the fake model behaves. Times in seconds; None or empty: never."""

    # The outputs of the 1st, 2nd ... response. After the last of them `answer` is
    # called if given, else `fallback` is used. With none of the three,
    # `bridge.sim.realtime.default_answers` answers.
    turns: Sequence[Turn] = ()
    answer: Callable[[TurnContext], Turn] | None = None
    fallback: Turn | None = None
    user_texts: Sequence[str] = ()  # the transcription of each caller turn, in order
    # Hosted MCP servers by label, each with its tools. Other servers are unreachable.
    mcp: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    # Pace
    voice: str | None = None  # of espeak; None: bridge.sim.voice.AGENT_VOICE
    words_per_minute: int = WORDS_PER_MINUTE
    # Seconds by which words are sent before their audio; negative: behind it; inf: all
    # words before all audio; -inf: all behind it, or when the response is cancelled.
    words_lead: float = 0.0
    speed: float = 4.0  # audio is generated this many times faster than it plays
    delta_ms: int = 200
    first_delta_ms: int | None = None
    think_seconds: float = 0.25  # from response.created to the first delta
    transcribe_seconds: float = 0.15  # from the end of a turn to its transcription

    # Faults of a response
    # (seconds of audio, seconds of pause after them)
    stall: tuple[float, float] | None = None
    stall_responses: frozenset[int] | None = None  # which responses, from 1; None: all
    late_deltas: int = 0  # sent between a cancellation and its response.done
    late_item: bool = False  # a new item begins there too

    # Faults of a turn of the caller; turns count from 1
    unanswered_turns: frozenset[int] = frozenset()  # committed, and no response begins
    stuck_turns: frozenset[int] = frozenset()  # speech_stopped never comes
    # A commit of the client does not end the turn for the VAD: speech after it is more
    # of that turn, without speech_started.
    commit_keeps_speech: bool = False
    begins_late: float = 0.0  # from the end of a turn to the server's own response
    turn_errors: bool = False  # an `error` without event_id follows each such turn

    longest_output: int | None = None  # longer outputs of tools are refused

    # Input
    vad_threshold: float = 400.0  # RMS of linear 16-bit samples
    # Returns the words in a turn's audio (in the session's format); replaces
    # `user_texts`.
    recogniser: Callable[[bytes], str] | None = None

    # Another form of the API (bridge.sim.realtime.dialects): what is sent in place of
    # an event, and how a client event is understood.
    says: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None
    hears: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    # Faults of the connection
    refuse: int | None = None  # HTTP status of the handshake
    # Models that do not exist. As with OpenAI the handshake succeeds, then an `error`
    # event follows and close 4000 "invalid_request_error.model_not_found" (close code:
    # livekit/agents-js#1756).
    refuse_model: Sequence[str] = ()
    reject_update: str | None = None  # error code of the answer to session.update
    ignore_formats: bool = False  # the server supports only PCM 24 kHz
    delay_updated: float = 0.0  # session.update takes effect, and is echoed, late
    garbage: Sequence[str | bytes] = ()  # frames sent after the first session.updated
    drop_after: float | None = None  # TCP connection aborted
    close_after: tuple[float, int, str] | None = None  # seconds, close code, reason
    expire_after: float | None = None  # session_expired, then close 1001
    freeze_after: float | None = None  # stops reading, sending and answering pings
    mute_after: float | None = None  # stops sending, but answers pings

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError("speed must be positive (inf: as fast as possible)")
        if self.delta_ms < 1 or (self.first_delta_ms or 1) < 1:
            raise ValueError("a delta must hold at least one millisecond")
