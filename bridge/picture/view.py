"""What a picture of a call shows, as plain values.

Times are ms since the call's first stream began, on Twilio's media clock: the caller's
audio and what the caller heard are exact to a frame; moments of the bridge's own clock
(a response, a tool) are placed where the caller's audio of that moment lies. Nothing is
computed here: reading.py makes a view from a trace, problems.py judges it.
"""

import msgspec


class HeardRun(msgspec.Struct, frozen=True):
    """Audio that the caller heard without a pause: from `at_ms` of the call, the part
    from `begin_ms` to `end_ms` of the item."""

    at_ms: float
    begin_ms: float
    end_ms: float


class Word(msgspec.Struct, frozen=True):
    """A word of an item; `at_ms`: in the item's audio (an estimate)."""

    at_ms: float
    text: str
    heard: bool


class Part(msgspec.Struct):
    """One spoken item of the agent (a content part), or other sound of the bridge."""

    item: str
    kind: str
    """`agent`, `recording`, `tones` or `waiting sound`."""
    agent: str = ""
    """Name of the agent in charge."""
    response: str = ""
    arrived_ms: float = 0.0
    """When its first audio arrived from the model."""
    generated_ms: float = 0.0
    heard_ms: float = 0.0
    cut: bool = False
    """The caller did not hear all of it."""
    runs: list[HeardRun] = []
    words: list[Word] = []
    audio: bytes = b""
    """All that was generated of it, as mu-law."""

    @property
    def heard_from_ms(self) -> float | None:
        """When the caller heard its first sound; None: they heard nothing of it."""
        return self.runs[0].at_ms if self.runs else None

    @property
    def heard_until_ms(self) -> float | None:
        if not self.runs:
            return None
        last = self.runs[-1]
        return last.at_ms + last.end_ms - last.begin_ms


class CallerTurn(msgspec.Struct):
    """The caller speaks, as the model's server detects it."""

    item: str
    begin_ms: float
    end_ms: float | None = None
    """None: the server has reported no end."""
    text: str = ""
    """The transcript; empty: none came."""
    text_ms: float | None = None
    """When the transcript came."""


class ModelResponse(msgspec.Struct):
    """One response of the model."""

    id: str
    agent: str = ""
    created_ms: float = 0.0
    requested_ms: float | None = None
    """When the bridge requested it; None: the server began it by itself."""
    wanted_ms: float | None = None
    """When what it answers was complete: the end of the caller's turn, or a tool's
    result."""
    audio_ms: float | None = None
    """When its first audio arrived."""
    sound_ms: float | None = None
    """When the caller heard its first sound."""
    done_ms: float | None = None
    status: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Tool(msgspec.Struct):
    """One call of a function tool."""

    call_id: str
    name: str
    called_ms: float
    """When the model had completed the call."""
    arguments: str = ""
    output: str = ""
    done_ms: float | None = None
    """When the model was given the output; None: it was not."""
    failed: bool = False
    agent: str = ""


class Event(msgspec.Struct):
    """A moment of the call. `kind`: the name of the note, command or message, as the
    log has it. `data`: its details, without texts of people."""

    at_ms: float
    kind: str
    data: dict[str, str | int | float | bool | None] = {}
    text: str = ""
    """Words or keys of people, or a message of the model's server."""


class Gap(msgspec.Struct):
    """The time without a stream, or without a session of the model. `end_ms` None: it
    did not come back."""

    kind: str
    """`stream` or `model`."""
    begin_ms: float
    end_ms: float | None = None


class CallView(msgspec.Struct):
    """One call, or the part of it that one trace has."""

    call_sid: str = ""
    stream_sid: str = ""
    """Of the first stream."""
    length_ms: float = 0.0
    ended_by: str = ""
    """Empty: the call still runs, or the trace was not written to its end."""
    ended_why: str = ""
    has_audio: bool = True
    """False: the audio of this call did not pass the bridge."""
    replays_as_recorded: bool = True
    """False: this version decides otherwise than the one that wrote the trace."""
    redacted: list[str] = []
    """What the route has redacted; its audio is then silence."""
    caller: bytes = b""
    """The caller's audio as mu-law; silence where none came."""
    agent: bytes = b""
    """What the caller heard, as mu-law of the same length."""
    parts: list[Part] = []
    turns: list[CallerTurn] = []
    responses: list[ModelResponse] = []
    tools: list[Tool] = []
    events: list[Event] = []
    gaps: list[Gap] = []
    silences: list[tuple[float, float]] = []
    """(begin, end) in ms of the times in which the caller's phone sent no audio,
    although the stream was there."""
    rules: dict[str, str | int | float | bool | None] = {}
    """Of the call, as far as they are plain values."""
    turn_detection: dict[str, str | int | float | bool | None] = {}
    """As the server has confirmed it."""
