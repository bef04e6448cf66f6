"""The rules of one call, and the texts sent to its agent. A call's rules are known
shortly after its start, because its route must be looked up first.
"""

import msgspec

from bridge.core.history import HistoryItem

SILENT = (
    "The caller has been silent for a while. Ask in one short sentence whether they "
    "are still there."
)

GOODBYES = {
    # Message to the agent when the call must end: reason -> text.
    "silent": (
        "The caller does not answer any more. Say in one short sentence that you end "
        "the call now, and goodbye."
    ),
    "longest": (
        "This call has reached its longest time. Say in one short sentence that you "
        "have to end it now, and goodbye."
    ),
    "cost": (
        "This call has to end now. Say in one short sentence that you have to end it, "
        "and goodbye."
    ),
}

LIMIT_OF = {"longest": "longest", "cost": "cost_of_call"}
"""Reason of a goodbye -> name of the limit (limits.HITS) that caused it."""

BROKEN_OFF = (
    "A technical fault has cut your last answer off; the caller heard it up to the "
    "last word that you see of it. Go on from exactly there, in the middle of the "
    "sentence if need be. Do not repeat anything, do not greet, do not mention the "
    "fault."
)
"""Sent to the agent after the session was lost while the agent spoke."""

CUT_OFF = (
    "The line to the caller was interrupted for a moment and is back. Of your last "
    "answer they heard no more than you see. Go on with it from there; anything the "
    "caller said meanwhile is lost."
)
"""Sent to the agent after the stream was lost while the agent spoke."""

BACK = (
    "The line to the caller was interrupted for a moment and is back. Tell them so in "
    "one short sentence, and go on with what you were at; if they were saying "
    "something, it is lost, so ask them to say it again."
)
"""Sent to the agent after the stream was lost while the agent was silent."""

MOVED = (
    "This call has been moved to another server in a quiet moment. The caller did not "
    "notice; should the beginning of what they say next be missing, ask them for it."
)
"""Sent to the agent after the call moved to another instance while nobody spoke; the
agent does not respond."""


UNFINISHED = {
    # Message to the agent whose answer broke off: reason of the server -> text.
    "max_output_tokens": (
        "Your last answer was too long and broke off; the caller hears it up to its "
        "last word. Go on from exactly there, in the middle of the sentence if need "
        "be, and be brief. Do not repeat anything and do not mention it."
    ),
    "content_filter": (
        "A content filter has stopped your last answer; the caller hears it up to its "
        "last word. Do not go on with it. Say in one short sentence that you cannot "
        "say that, and offer something else."
    ),
}


RESUME = (
    "What stopped you was noise: the caller has said nothing. Of your last answer they "
    "heard no more than you see. Go on from exactly there, in the middle of the "
    "sentence if need be. Do not repeat anything, do not greet, do not mention the "
    "interruption."
)
"""Sent to the agent after an interruption in which the caller said nothing."""


SLOW_TOOL_SECONDS = 7.0
"""Usual `Rules.slow_tool_seconds`: the agent needs a second to begin, and the caller
hears it within 10 s."""

NO_RESULT_YET = (
    "You have called {tools}, and there is no result yet. The caller is waiting. Tell "
    "them in one short sentence, in other words than before, that it takes a little "
    "longer. Say nothing about the result, and do not say how long it takes."
)
"""Sent to the agent while a tool is slow (interim_answers.py)."""


class Prices(msgspec.Struct, frozen=True):
    """Per million tokens, in the unit of the cost limit."""

    input_text: float = 0.0
    input_audio: float = 0.0
    input_cached: float = 0.0
    output_text: float = 0.0
    output_audio: float = 0.0


class Recording(msgspec.Struct, frozen=True):
    """Audio that a call begins with, in place of words of the agent."""

    id: str
    """Of its item: the agent knows it as something that it has said."""
    payload: str
    """Base64 mu-law."""
    words: str
    interruptible: bool = True


class Rules(msgspec.Struct, frozen=True):
    """A rule that is None does not apply. Stored in traces: field names do not
    change."""

    greeting: str | None = None
    """Instruction for the agent's first response; None: the caller speaks first."""
    recordings: tuple[Recording, ...] = ()
    """Played one after the other when the call begins, before any greeting."""
    greeting_interruptible: bool = True
    """False: the caller hears the greeting to its end; the model gets what they say
    meanwhile afterwards."""
    silent_seconds: float | None = None
    """After this much silence the agent asks whether the caller is still there."""
    silent_asks: int = 2
    """How often the agent asks before the call ends."""
    silent_text: str = SILENT
    longest_seconds: float | None = None
    prices: Prices | None = None
    cost_limit: float | None = None
    spent: float = 0.0
    """What the call has cost on earlier streams."""
    key_pause_seconds: float = 2.0
    """A longer pause between two keys ends the input."""
    key_stops_agent: bool = True
    """The first key of an input stops the agent; False: the complete input does."""
    key_actions: tuple[str, ...] = ()
    """Key inputs for which the route has an action; the agent does not get them."""
    history: tuple[HistoryItem, ...] = ()
    """What was said in an earlier session of this call."""
    word: str = ""
    """Message to the agent that says why the call continues; the agent responds."""
    elapsed: float = 0.0
    """Seconds that the call had lasted before this stream."""
    aside: str = ""
    """As `word`, but the agent does not respond: the caller noticed nothing."""
    session_seconds: float | None = None
    """Age at which a model session is replaced by another one."""
    resumes_after_noise: bool = True
    """The agent goes on if the speech that interrupted it had no words."""
    waiting_sound: str | None = ""
    """Played while the caller waits for the agent in silence: base64 mu-law, again and
    again. Empty: a soft tone. None: nothing."""
    one_moment: bool = False
    """Twilio may say a sentence to a caller whose answer fails again and again."""
    slow_tool_seconds: float | None = None
    """After this much silence while a tool runs the agent says that it is not done."""
