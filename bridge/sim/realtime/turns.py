"""What the fake model says and how it behaves: outputs, turns, pace, faults.

Values only. `bridge.sim.model` obeys them; tests, the demo and measurements write them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bridge.sim.realtime.items import RememberedItem

Trigger: TypeAlias = Literal["client", "speech", "idle"]


@dataclass(frozen=True, slots=True)
class SayText:
    """An assistant item that speaks `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class PlayAudio:
    """An assistant item of given audio (mu-law, 8 kHz); `text` is its transcript."""

    mulaw: bytes
    text: str


@dataclass(frozen=True, slots=True)
class PlayRuler:
    """An assistant item of ruler audio with the session's next item number.

    Readable again only where the output format is audio/pcmu.
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

    Where the session wants approval first, the response ends with the request.
    """

    server_label: str
    name: str
    arguments: Mapping[str, Any]
    output: str = ""
    error: Mapping[str, Any] | None = None  # as RealtimeMcpToolCall.error; no output
    seconds: float = 0.0  # the tool takes


@dataclass(frozen=True, slots=True)
class Fail:
    """The response ends here with status "failed"."""

    code: str = "rate_limit_exceeded"
    message: str = "Rate limit reached."


Output: TypeAlias = SayText | PlayAudio | PlayRuler | CallTool | CallMcp | Fail
Turn: TypeAlias = Sequence[Output]
"""One response: its output items in order."""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    call_id: str
    name: str
    output: str


@dataclass(frozen=True, slots=True)
class TurnContext:
    """What the model knows when it is about to answer."""

    number: int  # of the response within the session, from 1
    trigger: Trigger  # response.create | the caller's turn ended | idle timeout
    instructions: str  # of the session, or of this response.create
    tools: tuple[Mapping[str, Any], ...]
    caller_turns: int  # spoken so far
    seconds: float  # of speech in the latest of them, without padding and silence
    transcript: str | None  # of the latest of them, where a text was given for it
    text: str | None  # the latest user message that came as text
    answered: tuple[ToolOutput, ...]  # tool outputs no response has spoken about yet
    overrides: Mapping[str, Any]  # response.create's own `response`
    conversation: tuple[RememberedItem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How the fake model behaves. Times in seconds; None or empty: never."""

    # What is answered to the 1st, 2nd ... response; then `answer`, if given, else
    # `fallback`. With none of the three, `bridge.sim.realtime.default_answers` answers.
    turns: Sequence[Turn] = ()
    answer: Callable[[TurnContext], Turn] | None = None
    fallback: Turn | None = None
    user_texts: Sequence[str] = ()  # "transcription" of the nth caller turn
    # Hosted MCP servers by label, with the tools each lists; others cannot be reached.
    mcp: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    # Pace
    voice: str | None = None  # of espeak; None: bridge.sim.voice.AGENT_VOICE
    speed: float = 4.0  # audio is generated so many times faster than it plays
    delta_ms: int = 200
    first_delta_ms: int | None = None
    think_seconds: float = 0.25  # from response.created to the first delta
    transcribe_seconds: float = 0.15  # from a turn's end to its transcription

    # Misbehaviour of a response
    stall: tuple[float, float] | None = None  # after so much audio, pause so long
    stall_responses: frozenset[int] | None = None  # which (from 1); None: all
    late_deltas: int = 0  # sent between a cancellation and its response.done
    late_item: bool = False  # a new item begins there, too

    # Hearing
    vad_threshold: float = 400.0  # RMS of linear 16-bit samples
    # The words in a turn's audio (in the session's format), instead of `user_texts`.
    recogniser: Callable[[bytes], str] | None = None

    # Faults of the connection
    refuse: int | None = None  # HTTP status of the handshake
    # Unknown models: as with OpenAI the handshake succeeds, then comes an `error`
    # event and close 4000 "invalid_request_error.model_not_found"
    # (close code: livekit/agents-js#1756).
    refuse_model: Sequence[str] = ()
    reject_update: str | None = None  # code of the error that answers session.update
    ignore_formats: bool = False  # a server that has only PCM 24 kHz
    delay_updated: float = 0.0  # a session.update takes effect, and is echoed, late
    garbage: Sequence[str | bytes] = ()  # frames sent after the first session.updated
    drop_after: float | None = None  # TCP connection aborted
    close_after: tuple[float, int, str] | None = None  # seconds, close code, reason
    expire_after: float | None = None  # session_expired, then close 1001
    freeze_after: float | None = None  # neither reads nor sends nor answers pings
    mute_after: float | None = None  # says nothing any more, but answers pings

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError("speed must be positive (inf: as fast as possible)")
        if self.delta_ms < 1 or (self.first_delta_ms or 1) < 1:
            raise ValueError("a delta holds at least a millisecond")
