"""The session object of the fake model: its defaults, and the partial merge of updates.

Pure: an update either gives a new session or is refused as a whole.
"""

import copy
import time

from bridge.sim.realtime.client_events import InvalidRequestError, Json

DEFAULT_MODEL = "gpt-realtime-2.1"
SESSION_SECONDS = 60 * 60

_VAD_DEFAULTS: dict[str, Json] = {
    "server_vad": {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": True,
    },
    "semantic_vad": {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    },
}
# These objects are merged key by key; any other object is replaced as a whole.
_MERGED = ("audio", "audio.input", "audio.output", "audio.input.noise_reduction")


def default_session(session_id: str, model: str) -> Json:
    """The session object in session.created."""
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": model,
        "expires_at": int(time.time()) + SESSION_SECONDS,
        "output_modalities": ["audio"],
        "instructions": "",
        "tools": [],
        "tool_choice": "auto",
        "max_output_tokens": "inf",
        "tracing": None,
        "truncation": "auto",
        "prompt": None,
        "include": None,
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": dict(_VAD_DEFAULTS["server_vad"]),
            },
            "output": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "voice": "marin",
                "speed": 1.0,
            },
        },
    }


def updated(
    session: Json, update: Json, *, spoken: bool, model_chosen: bool, only_pcm: bool
) -> Json:
    """The session after `update`, which is already validated.

    `spoken`: the model has produced audio. `model_chosen`: the URL named the model.
    `only_pcm`: formats other than PCM are ignored (Behaviour.ignore_formats). Raises
    InvalidRequestError; then the session is unchanged.
    """
    new = copy.deepcopy(session)
    model = update.get("model")
    if model is not None and model != session["model"]:
        if model_chosen:
            raise InvalidRequestError(
                "Cannot update a session's model.", "invalid_value", "session.model"
            )
        new["model"] = model
    _merge(new, copy.deepcopy(update), "", only_pcm)
    if (
        spoken
        and new["audio"]["output"]["voice"] != session["audio"]["output"]["voice"]
    ):
        raise InvalidRequestError(
            "Cannot update a conversation's voice if assistant audio is present.",
            "cannot_update_voice",
            "session.audio.output.voice",
        )
    return new


def _merge(into: Json, update: Json, path: str, only_pcm: bool) -> None:
    for key, value in update.items():
        where = f"{path}.{key}" if path else key
        if where == "model" or (key == "format" and only_pcm):
            continue
        if where in _MERGED and isinstance(value, dict) and isinstance(into[key], dict):
            _merge(into[key], value, where, only_pcm)
        elif key == "turn_detection" and value is not None:
            into[key] = _turn_detection(into[key], value)
        elif key == "transcription" and value is not None:
            into[key] = {"model": None, "language": None, "prompt": None} | value
            if into[key]["model"] is None:
                into[key]["model"] = "gpt-transcribe"
        elif key == "format":
            into[key] = _format(value)
        else:
            into[key] = value


def _turn_detection(current: Json | None, update: Json) -> Json:
    """An update of the same type changes only the fields it has; another type starts
    from its defaults."""
    if current is not None and current["type"] == update["type"]:
        return current | update
    return _VAD_DEFAULTS[update["type"]] | update


def _format(update: Json) -> Json:
    return {"rate": 24000} | update if update["type"] == "audio/pcm" else dict(update)
