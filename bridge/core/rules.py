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


class Prices(msgspec.Struct, frozen=True):
    """Per million tokens, in the unit of the cost limit."""

    input_text: float = 0.0
    input_audio: float = 0.0
    input_cached: float = 0.0
    output_text: float = 0.0
    output_audio: float = 0.0


class Rules(msgspec.Struct, frozen=True):
    """A rule that is None does not apply. Stored in traces: field names do not
    change."""

    greeting: str | None = None
    """Instruction for the agent's first response; None: the caller speaks first."""
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
