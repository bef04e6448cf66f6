"""The fake model's record of a conversation: items and responses, and their JSON."""

import base64
from dataclasses import dataclass, field

from bridge.sim.realtime.client_events import Json


@dataclass(slots=True)
class ModelItem:
    """One conversation item and its state."""

    id: str
    # message | function_call | function_call_output | mcp_list_tools | mcp_call |
    # mcp_approval_request | mcp_approval_response
    type: str
    role: str | None = None
    parts: list[Json] = field(default_factory=list)  # of user and system messages
    response_id: str | None = None
    ruler_number: int | None = None
    # Audio of this item: generated (assistant) or committed (user).
    chunks: list[bytes] = field(default_factory=list)
    bytes_per_ms: int = 8
    sent_bytes: int = 0
    text: str = ""  # the transcript that the model remembers; a truncation empties it
    generated_text: str = ""  # the transcript before any truncation
    # Start of each piece of `generated_text` in the audio, in ms.
    cues: list[tuple[float, str]] = field(default_factory=list)
    spoken: bool = False  # an audio item, not a text item
    truncated_ms: int | None = None
    deleted: bool = False
    complete: bool = False
    status: str = "in_progress"
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None
    server_label: str = ""
    tools: list[Json] = field(default_factory=list)  # of an mcp_list_tools
    error: Json | None = None  # of an mcp_call
    approval_request_id: str | None = None
    approve: bool = False
    reason: str | None = None

    @property
    def sent_ms(self) -> float:
        return self.sent_bytes / self.bytes_per_ms

    @property
    def believed_ms(self) -> float:
        """Milliseconds that the model believes the caller heard: 0 if deleted, the cut
        if truncated, else all that was sent."""
        if self.deleted:
            return 0.0
        return self.sent_ms if self.truncated_ms is None else float(self.truncated_ms)

    @property
    def known_text(self) -> str:
        """The words that the model knows of this item.

        Of truncated audio: each word that was heard to at least one half. Of a caller:
        the words that the model understood, transcribed or not.
        """
        if self.truncated_ms is None:
            return self.text or self.generated_text
        ends = [*(at for at, _ in self.cues[1:]), self.sent_ms]
        return "".join(
            word
            for (at, word), end in zip(self.cues, ends, strict=True)
            if (at + end) / 2 <= self.truncated_ms
        )

    def remembered(self) -> "RememberedItem":
        words = self.known_text
        if self.type == "function_call":
            words = self.arguments or ""
        elif self.output is not None:
            words = self.output
        kind = self.role or self.type
        return RememberedItem(self.id, kind, words, self.call_id, self.name)

    def wire(self, *, with_audio: bool = False) -> Json:
        """The item as events show it. Only item.retrieved shows audio."""
        if self.type.startswith("mcp_"):
            return self._mcp()
        shown: Json = {"id": self.id, "object": "realtime.item", "type": self.type}
        shown["status"] = self.status
        if self.type == "function_call":
            return shown | {
                "call_id": self.call_id,
                "name": self.name,
                "arguments": self.arguments,
            }
        if self.type == "function_call_output":
            return shown | {"call_id": self.call_id, "output": self.output}
        return shown | {"role": self.role, "content": self._content(with_audio)}

    def _mcp(self) -> Json:
        shown: Json = {"id": self.id, "type": self.type}
        if self.type == "mcp_approval_response":
            return shown | {
                "approval_request_id": self.approval_request_id,
                "approve": self.approve,
                "reason": self.reason,
            }
        shown["server_label"] = self.server_label
        if self.type == "mcp_list_tools":
            return shown | {"tools": self.tools}
        shown |= {"name": self.name, "arguments": self.arguments}
        if self.type == "mcp_approval_request":
            return shown
        return shown | {
            "approval_request_id": self.approval_request_id,
            "output": self.output,
            "error": self.error,
        }

    def _content(self, with_audio: bool) -> list[Json]:
        if self.role == "assistant" and self.response_id is not None:
            return self._generated(with_audio)
        parts = [dict(part) for part in self.parts]
        for part in parts:
            if part["type"] == "input_audio":
                part["transcript"] = self.text or None
                part.pop("audio", None)
                if with_audio:
                    part["audio"] = self._audio()
        return parts

    def _generated(self, with_audio: bool) -> list[Json]:
        if self.status == "in_progress" and not with_audio:
            return []
        if not self.spoken:
            return [{"type": "output_text", "text": self.text}]
        transcript = None if self.truncated_ms is not None else self.text
        part: Json = {"type": "output_audio", "transcript": transcript}
        if with_audio:
            part["audio"] = self._audio()
        return [part]

    def _audio(self) -> str:
        audio = b"".join(self.chunks)
        if self.truncated_ms is not None:
            audio = audio[: self.truncated_ms * self.bytes_per_ms]
        return base64.b64encode(audio).decode()


@dataclass(frozen=True, slots=True)
class RememberedItem:
    """An item as the model remembers it."""

    id: str
    kind: (
        str  # user | assistant | system | function_call | function_call_output | mcp_*
    )
    text: str  # the words; a function call's arguments, or its output
    call_id: str | None = None
    name: str | None = None  # of the function, also for its output


@dataclass(slots=True)
class ResponseRecord:
    """One response, for reports and tests. Times are monotonic seconds."""

    id: str
    number: int  # from 1; 0: out of band (conversation "none")
    trigger: str
    started_at: float
    status: str = "in_progress"
    reason: str | None = None  # turn_detected | client_cancelled | an error's code
    first_audio_at: float | None = None
    finished_at: float | None = None
    items: list[ModelItem] = field(default_factory=list)
