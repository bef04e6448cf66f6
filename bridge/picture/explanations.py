"""What the events of a call mean, in plain words. PURE."""

from bridge.picture.view import Event

MARKS = frozenset({"mark"})
CUTS = frozenset(
    {
        "clear",
        "clear_confirmed",
        "fence_late",
        "interrupted",
        "conversation.item.truncate",
        "conversation.item.delete",
        "response.cancel",
        "late_audio",
    }
)
HIDDEN = frozenset(
    {
        *("usage", "said", "said_late", "caller_said", "audio_interrupted"),
        *("tool_end", "tool_finished"),
    }
)
"""Events that the picture shows in another way."""

MEANINGS = {
    "answer_failed": "A response of the model failed",
    "answer_incomplete": "A response of the model broke off",
    "answer_late": "The model has sent nothing for too long",
    "caller_silent": "The caller is silent: the agent asks whether they are there",
    "clear": "The bridge tells Twilio to drop the audio that is queued",
    "clear_confirmed": "Twilio has dropped the queued audio (the fence is back)",
    "conversation.item.delete": "The bridge deletes an item: nothing of it was heard",
    "conversation.item.truncate": "The bridge tells the model how much was heard",
    "dial_model": "The bridge opens a connection to the model",
    "end": "The end of the call",
    "end_requested": "The end of the call is requested",
    "fence_late": "The fence is not back: the bridge decides by its own clock",
    "first_audio": "The first audio of an answer goes to the phone",
    "gap_filled": "The caller's frames have a gap: silence is put in its place",
    "goodbye": "The call must end: the agent says goodbye",
    "greeting_heard": "The greeting was heard to its end",
    "guardrail_tripped": "A guardrail stops the agent",
    "handoff": "Another agent takes over",
    "interim_answer": "A tool is slow: the agent is asked to say so",
    "interim_answer_failed": "The agent could not say that a tool is slow",
    "interrupted": "The agent is interrupted",
    "key_pressed": "The caller presses a key",
    "late_audio": "Audio of an interrupted answer arrives, and is dropped",
    "limit_hit": "A limit is hit",
    "stream_back": "The caller's stream is back",
    "stream_lost": "The caller's stream is lost",
    "stream_probed": "The phone sends nothing: the bridge asks whether it is there",
    "mark": "Twilio has played the audio before this mark, or dropped it",
    "model_back": "The model is back",
    "model_error": "The model's server reports an error",
    "model_lost": "The connection to the model is lost",
    "one_moment": "Answers fail: Twilio asks the caller to wait",
    "protocol_error": "A message breaks the protocol",
    "ready": "The session of the model is configured",
    "response.cancel": "The bridge stops a response of the model",
    "response.create": "The bridge asks the model for a response",
    "response_done": "The model has generated all of a response",
    "rolls_over": "The session is old: another one takes its place",
    "speech_started": "The model's server hears the caller begin to speak",
    "speech_stopped": "The model's server hears the caller stop",
    "stream": "A stream of Twilio begins",
    "tool_failed": "A tool fails",
    "tool_start": "A tool starts",
    "turn_stuck": "The server does not end the caller's turn: the bridge does",
    "turn_unanswered": "The server does not answer the turn: the bridge asks for it",
    "waiting_sound": "The caller hears the waiting sound",
}

ENDINGS = {
    "caller_hung_up": "the caller hung up",
    "agent_hung_up": "the agent hung up",
    "agent_transferred": "the agent transferred the call",
}


def ending(by: str, why: str) -> str:
    """How a call ended: in words where they are plain, else the outcome."""
    outcome = f"{by}_{why}"
    words = ENDINGS.get(outcome)
    return f"{words} ({outcome})" if words else outcome


def row_of(kind: str) -> str | None:
    """The row of the picture in which an event stands; None: in none."""
    if kind in HIDDEN:
        return None
    if kind in MARKS:
        return "marks"
    return "clear, truncate" if kind in CUTS else "keys and events"


def text_of(event: Event) -> str:
    """One line: the meaning, the name, the details."""
    meaning = MEANINGS.get(event.kind)
    details = " ".join(f"{name}={_value(value)}" for name, value in event.data.items())
    begin = f"{meaning} ({event.kind})" if meaning else event.kind
    return " ".join(it for it in (begin, details, event.text) if it)


def _value(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
