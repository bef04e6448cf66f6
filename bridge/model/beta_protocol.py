"""The beta Realtime protocol: its names, items and flat session <-> those of GA. PURE.

Azure's `/openai/realtime?api-version=` speaks it (openai/openai-agents-python#1748).
speaches and Qwen-Omni-Realtime are reported to speak it; we have not tried them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

CREATED = "conversation.item.created"

NAMES = {
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    CREATED: "conversation.item.added",
}
"""Server event types: beta -> GA."""

SUFFIX = "_flat"
"""Added to the event_id of a session.update in the flat form: the server may still
refuse the same update in the GA form."""

_FORMATS: dict[str, dict[str, Any]] = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}

FORMATS = ("input_audio_format", "output_audio_format")
"""Fields of the flat session."""

_PLACES: dict[str, tuple[str, ...]] = {
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "max_response_output_tokens": ("max_output_tokens",),
    "input_audio_format": ("audio", "input", "format"),
    "output_audio_format": ("audio", "output", "format"),
    "modalities": ("output_modalities",),
}
"""Fields of the flat session -> their places in that of GA."""

_SAME = (
    *("id", "object", "model", "instructions", "tools", "tool_choice", "temperature"),
    *("tracing", "include"),
)

_PARTS = {"text": "output_text", "audio": "output_audio"}
"""Content parts of the assistant: beta -> GA."""
_BETA_PARTS = {ga: beta for beta, ga in _PARTS.items()}


def is_flat(session: dict[str, Any]) -> bool:
    """Whether a server's session is in the beta form."""
    return "audio" not in session and any(
        name in session
        for name in ("modalities", "input_audio_format", "output_audio_format")
    )


def session(flat: dict[str, Any]) -> dict[str, Any]:
    """A server's flat session in the form of GA."""
    made: dict[str, Any] = {"type": "realtime"}
    made |= {name: flat[name] for name in ("id", "model", "tools") if name in flat}
    if isinstance(flat.get("instructions"), str):
        made["instructions"] = flat["instructions"]
    for name, place in _PLACES.items():
        if name not in flat:
            continue
        value = flat[name]
        if place[-1] == "format":
            if not isinstance(value, str):
                continue
            value = _FORMATS.get(value, {"type": value})
        if name == "modalities":
            value = output_modalities(value)
        at = made
        for key in place[:-1]:
            at = at.setdefault(key, {})
        at[place[-1]] = value
    return made


def output_modalities(modalities: Any) -> Any:
    """`modalities` in the form of GA: beside audio, the text is its transcript."""
    speaks = isinstance(modalities, list) and "audio" in modalities
    return ["audio"] if speaks else modalities


def is_wordless(session: dict[str, Any]) -> bool:
    """Whether the answers of a flat session have audio and no transcript."""
    modalities = session.get("modalities")
    return (
        isinstance(modalities, list)
        and "audio" in modalities
        and ("text" not in modalities)
    )


def item(fields: dict[str, Any]) -> dict[str, Any]:
    """An item of the conversation, with the parts of the assistant as in GA."""
    return _with_parts(fields, _PARTS)


def client_event(text: str, formats: Mapping[str, Any]) -> str:
    """A client event of GA in the beta form. `formats`: the audio formats of the
    session, which an update does not repeat: speaches refuses the fields
    (speaches, src/speaches/realtime/session_event_router.py)."""
    if not any(kind in text for kind in _CLIENT_TEXTS):
        return text
    event: Any = msgspec.json.decode(text)
    match event.get("type"):
        case "session.update":
            flat = _flat(event["session"])
            for name in FORMATS:
                if name in flat and flat[name] == formats.get(name):
                    del flat[name]
            event["session"] = flat
            event["event_id"] = f"{event.get('event_id', '')}{SUFFIX}"
        case "conversation.item.create" if isinstance(event.get("item"), dict):
            event["item"] = _with_parts(event["item"], _BETA_PARTS)
        case "response.create" if isinstance(event.get("response"), dict):
            event["response"] = _flat(event["response"])
    return msgspec.json.encode(event).decode()


_CLIENT_TEXTS = (
    '"session.update"',
    '"conversation.item.create"',
    '"response.create"',
)


def _flat(session: dict[str, Any]) -> dict[str, Any]:
    made = {name: session[name] for name in _SAME if name in session}
    for name, place in _PLACES.items():
        at: Any = session
        for key in place[:-1]:
            at = at.get(key) or {}
        if place[-1] not in at:
            continue
        value = at[place[-1]]
        if place[-1] == "format":
            kind = value.get("type") if isinstance(value, dict) else value
            names = {form["type"]: beta for beta, form in _FORMATS.items()}
            value = names.get(kind, kind)
        if name == "modalities" and value == ["audio"]:
            value = ["audio", "text"]  # the beta knows no audio without its transcript
        made[name] = value
    return made


def _with_parts(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """An item with the names of the assistant's content parts replaced."""
    content = fields.get("content")
    if fields.get("role") != "assistant" or not isinstance(content, list):
        return fields
    return {**fields, "content": [_renamed(part, names) for part in content]}


def _renamed(part: Any, names: dict[str, str]) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    named = names.get(kind) if isinstance(kind, str) else None
    return {**part, "type": named} if named else part
