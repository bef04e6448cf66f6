"""Servers that speak the Realtime API in another form than OpenAI: what each sends, and
how it hears. Each is for `Behaviour.says` or `Behaviour.hears`.
"""

from bridge.sim.realtime.client_events import InvalidRequestError, Json

_LEFT_OUT = frozenset({"event_id", "output_index", "content_index"})
_WORDS = frozenset(
    {"response.output_audio_transcript.delta", "response.output_text.delta"}
)
_BETA = {
    "response.output_": "response.",
    "conversation.item.added": "conversation.item.created",
}
_BETA_FORMATS = {
    "audio/pcm": "pcm16",
    "audio/pcmu": "g711_ulaw",
    "audio/pcma": "g711_alaw",
}
_GA_FORMATS = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


def without_ids(event: Json) -> list[Json]:
    """No event_id, no indexes."""
    return [{key: value for key, value in event.items() if key not in _LEFT_OUT}]


def without_status(event: Json) -> list[Json]:
    """The end of an item has no status."""
    if event["type"] != "response.output_item.done":
        return [event]
    item = {key: value for key, value in event["item"].items() if key != "status"}
    return [{**event, "item": item}]


def only_ends(event: Json) -> list[Json]:
    """Words and tool calls come whole, once; a tool call has no output_item.done."""
    kind = event["type"]
    if kind in _WORDS or kind == "response.function_call_arguments.delta":
        return []
    if kind == "response.output_item.done" and event["item"]["type"] == "function_call":
        return []
    if kind == "response.done":
        return [{**event, "response": {**event["response"], "output": []}}]
    return [event]


def only_output(event: Json) -> list[Json]:
    """An answer is shown in `response.output_item.*` alone."""
    item = event.get("item") or {}
    ours = item.get("role") == "assistant" or item.get("type") == "function_call"
    return [] if event["type"].startswith("conversation.item.") and ours else [event]


def created(event: Json) -> list[Json]:
    """conversation.item.created in place of added and done."""
    if event["type"] == "conversation.item.done":
        return []
    if event["type"] == "conversation.item.added":
        return [{**event, "type": "conversation.item.created"}]
    return [event]


def silent_on_updates(event: Json) -> list[Json]:
    """Configures the session and does not say so."""
    return [] if event["type"] == "session.updated" else [event]


def text_only(event: Json) -> list[Json]:
    """The session answers in text."""
    if event["type"] != "session.updated":
        return [event]
    return [{**event, "session": {**event["session"], "output_modalities": ["text"]}}]


def text_only_in_beta_name(event: Json) -> list[Json]:
    """The same, with the name that the beta protocol has for it (aimock)."""
    if event["type"] != "session.updated":
        return [event]
    session = {**event["session"], "modalities": ["text"]}
    session.pop("output_modalities", None)
    return [{**event, "session": session}]


def refuses_late(event: Json) -> list[Json]:
    """A gateway whose model refuses the key: it has accepted the connection, and sends
    an error without id and code (LiteLLM)."""
    message = "Upstream realtime handshake rejected with HTTP 401"
    refusal = {"type": "error", "error": {"type": "server_error", "message": message}}
    return [refusal] if event["type"] == "session.created" else []


def wordless(event: Json) -> list[Json]:
    """The agent's words are sent as audio alone."""
    if "_transcript." in event["type"] and "input_audio" not in event["type"]:
        return []
    return [event]


def beta(event: Json) -> list[Json]:
    """The beta protocol."""
    kind = event["type"]
    if kind == "conversation.item.done":
        return []
    for ga, name in _BETA.items():
        if kind.startswith(ga) and not kind.startswith("response.output_item"):
            kind = kind.replace(ga, name)
    event = {**event, "type": kind}
    if kind.startswith("session."):
        event["session"] = _flat(event["session"])
    if kind == "response.function_call_arguments.done":
        del event["name"]
    return [event]


def beta_without_text(event: Json) -> list[Json]:
    """The beta protocol, with answers that are audio alone."""
    events = beta(event)
    for said in events:
        if said["type"].startswith("session."):
            said["session"]["modalities"] = ["audio"]
    return events


def _flat(session: Json) -> Json:
    audio = session["audio"]
    given, sent = audio["input"], audio["output"]
    return {
        "id": session["id"],
        "object": "realtime.session",
        "model": session["model"],
        "modalities": ["audio", "text"],
        "instructions": session["instructions"],
        "voice": sent["voice"],
        "input_audio_format": _BETA_FORMATS[given["format"]["type"]],
        "output_audio_format": _BETA_FORMATS[sent["format"]["type"]],
        "input_audio_transcription": given["transcription"],
        "turn_detection": given["turn_detection"],
        "tools": session["tools"],
        "tool_choice": session["tool_choice"],
        "temperature": 0.8,
        "max_response_output_tokens": session["max_output_tokens"],
    }


def hears_beta(event: Json) -> Json:
    """Takes the flat session, and refuses any other."""
    if event.get("type") != "session.update":
        return event
    flat = event["session"]
    for name in ("type", "audio", "output_modalities"):
        if name in flat:
            raise InvalidRequestError(
                f"Unknown parameter: 'session.{name}'.",
                "unknown_parameter",
                f"session.{name}",
            )
    return {**event, "session": _nested(flat)}


def hears_beta_loosely(event: Json) -> Json:
    """Takes the flat session, and ignores the fields of any other."""
    if event.get("type") != "session.update":
        return event
    return {**event, "session": _nested(event["session"])}


def _nested(flat: Json) -> Json:
    given: Json = {}
    sent: Json = {}
    for side, name in ((given, "input_audio_format"), (sent, "output_audio_format")):
        if name in flat:
            side["format"] = _GA_FORMATS[flat[name]]
    if "turn_detection" in flat:
        given["turn_detection"] = flat["turn_detection"]
    if "input_audio_transcription" in flat:
        given["transcription"] = flat["input_audio_transcription"]
    if "voice" in flat:
        sent["voice"] = flat["voice"]
    same: Json = {
        name: flat[name]
        for name in ("instructions", "tools", "tool_choice")
        if name in flat
    }
    return {"type": "realtime", **same, "audio": {"input": given, "output": sent}}
