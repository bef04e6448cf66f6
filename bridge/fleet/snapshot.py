"""The snapshot of a call: what another instance, or a newly started one, is told of it.

Stored in the Registry while the call runs; it continues the call on the next stream.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from bridge.audio.g711 import BYTES_PER_MS
from bridge.core.history import HistoryItem, Playing
from bridge.core.rules import BACK, CUT_OFF
from bridge.core.transfers import FailedTransfer
from bridge.core.word_positions import Pace, WordPositions
from bridge.fleet import formats
from bridge.privacy.redaction import Redaction

log = structlog.get_logger()

SLACK_MS = 150
"""Subtracted from the time that the caller has listened: the time from the end of a
stream to Twilio's request of `/voice/next`, and half a word. A word that is said twice
is better than a word that is missing."""

LONGEST_MS = 10 * 60 * 1000
"""Upper bound of the audio that Twilio has buffered: the caller has heard no more of
it, whatever the difference of two clocks says."""

AWAY_SECONDS = 600.0
"""Upper bound of the time between two streams of a call: no phone rings longer."""

MAX_ID_CHARS = 32
"""Longest id of an item that the model accepts."""


class SavedMessage(msgspec.Struct, frozen=True):
    """A message that the caller left: bridge.agent.live.Message as stored."""

    text: str
    name: str = ""
    call_back: str = ""

    def without(self, redaction: Redaction) -> "SavedMessage":
        texts = (self.text, self.name, self.call_back)
        return SavedMessage(*map(redaction.text, texts))


class CallSnapshot(msgspec.Struct, frozen=True):
    """The state of a call that its next stream needs.

    Stored under `snapshot:{call sid}` and kept up to date while the call runs, because
    its instance may be killed. formats.py says how a field is renamed.
    """

    history: tuple[HistoryItem, ...] = ()
    playing: tuple[Playing, ...] = ()
    """Audio that was being played to the caller at `taken_at`."""
    taken_at: float = 0.0
    """Seconds since the epoch."""
    stream_count: int = 0
    """Streams that the call has had; 0: a new call."""
    handed_over: bool = False
    """The instance has handed the call over to another one (a deploy)."""
    unnoticed: bool = False
    """The handover happened while nobody spoke: the caller did not notice it."""
    agent_name: str = ""
    """The agent that was in charge."""
    parameters: dict[str, str] = {}
    """The parameters of the stream."""
    call_seconds: float = 0.0
    """Length of the call so far. Limits of length, cost and transfers apply to the
    call, not to a stream."""
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    transfer_count: int = 0
    messages: tuple[SavedMessage, ...] = ()
    notes: dict[str, Any] = {}
    """`LiveCall.notes` of the user's code: JSON values."""
    failed_transfers: tuple[FailedTransfer, ...] = ()
    """Transfers of this call that nobody answered."""
    instruction: str = ""
    """Told to the agent at the start of the next stream, such as that a transfer was
    not answered; empty: `why` chooses one."""

    @classmethod
    def read(cls, stored: bytes | None) -> "CallSnapshot":
        return formats.read_or_default(stored, cls)

    def encoded(self, format: int) -> bytes:
        """As stored, in the format that `Registry.format()` gives."""
        return formats.encode(self, format)

    def as_of(self, ended: float) -> "CallSnapshot":
        """The state when the stream ended (seconds since the epoch): by then the caller
        had heard more of `playing`. A tool that was running has no result."""
        played = min((ended - self.taken_at) * 1000, LONGEST_MS) - SLACK_MS
        budget = round(max(played, 0)) * BYTES_PER_MS
        history = {item.id: item for item in self.history}
        for part in self.playing:
            heard = part.heard
            if not part.cut:
                heard = min(part.heard + budget, part.received)
                budget -= heard - part.heard
            item = history.get(part.id) or HistoryItem(id=part.id, kind="assistant")
            positions = WordPositions(
                part.words,
                part.pauses or (),
                part.received,
                part.pace or Pace(),
                whole=part.complete,
            )
            # Audio that the model had not sent yet is lost with the instance.
            all_words = "".join(text for _, text in part.words)
            generated = all_words if part.complete else positions.before(part.received)
            whole = heard >= part.received
            text = generated if whole else positions.before(heard)
            history[part.id] = msgspec.structs.replace(
                item,
                text=item.text + text,
                generated=item.generated + generated,
                cut=item.cut or heard < part.received or not part.complete,
            )
        items = tuple(_with_results(history.values()))
        # The time in which a transfer rang counts as part of the call.
        away = min(max(ended - self.taken_at, 0.0), AWAY_SECONDS)
        return msgspec.structs.replace(
            self, history=items, playing=(), call_seconds=self.call_seconds + away
        )

    @property
    def ended_as(self) -> str:
        """How the stream before ended: a label of the metrics."""
        if self.instruction:
            return "transfer"
        return "moved" if self.handed_over else "lost"

    @property
    def why(self) -> str:
        """Instruction to the agent that says why the call continues; empty: none. The
        agent answers it."""
        if self.instruction or not self.stream_count or self.unnoticed:
            return self.instruction
        last = next((it for it in reversed(self.history) if it.spoken), None)
        broken = last is not None and last.kind == "assistant" and last.cut
        return CUT_OFF if broken else BACK


def moment(stored: bytes | None) -> float:
    """A stored time in seconds since the epoch; the present time if there is none."""
    if not stored:
        return time.time()
    with suppress(ValueError):
        found = float(stored)
        if math.isfinite(found):
            return found
    log.error("stored_value_unreadable", kind="moment")
    return time.time()


UNKNOWN_RESULT = (
    "The result of this tool is not known: its server failed while it was at work. It "
    "may or may not have done what it was to do."
)


def _with_results(items: Iterable[HistoryItem]) -> Iterator[HistoryItem]:
    """Adds a result to every tool call without one: that the result is not known."""
    known = list(items)
    answered = {item.call_id for item in known if item.kind == "tool_output"}
    for item in known:
        yield item
        if item.kind == "tool_call" and item.arguments and item.call_id not in answered:
            yield HistoryItem(
                id=f"b_{item.id}"[:MAX_ID_CHARS],
                kind="tool_output",
                text=UNKNOWN_RESULT,
                call_id=item.call_id,
                at=item.at,
            )
