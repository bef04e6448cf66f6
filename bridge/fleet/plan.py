"""What any instance must know to lead a call on: kept on the Registry's shelf."""

import enum
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from bridge.audio.g711 import BYTES_PER_MS
from bridge.core.history import HistoryItem, Playing
from bridge.core.rules import BACK, CUT_OFF
from bridge.core.transcript import ItemTranscript
from bridge.fleet import Registry, formats
from bridge.privacy.redaction import Redaction

log = structlog.get_logger()

ANSWERED_BY_SECONDS = 600.0

SLACK_MS = 150
"""From the end of a stream to Twilio's question what follows, at least, and for half a
word: rather is a word said twice than never."""

LONGEST_MS = 10 * 60 * 1000
"""Of audio that Twilio has: no more was heard, whatever two clocks say."""

AWAY_SECONDS = 600.0
"""Between two streams of a call, at most: no phone rings longer."""

MAX_ID_CHARS = 32
"""Of an item of the model's."""


class Plan(msgspec.Struct, frozen=True):
    """What is special about one call: of an inbound one nothing is.

    Under `plan:{call sid}`; from the webhook that answers the call to its streams.
    """

    greeting: str | None = None
    machine: Literal["ignore", "hang_up", "message"] = "ignore"
    """What to do when an answering machine has taken the call."""
    message: str = ""
    """What the agent says to it."""

    @classmethod
    def read(cls, stored: bytes | None) -> "Plan":
        return _read(stored, cls)

    def encoded(self, format: int) -> bytes:
        """As it is stored, in the format that `Registry.format()` gives."""
        return formats.encode(self, format)


Stored = TypeVar("Stored", "Plan", "CallSnapshot")


def _read(stored: bytes | None, kind: type[Stored]) -> Stored:
    """What another version of the bridge has written, and cannot be read, is nothing:
    a call that begins anew is better than none."""
    found = formats.read(stored, kind) if stored else None
    return kind() if found is None else found


class SavedMessage(msgspec.Struct, frozen=True):
    """A message that the caller left, as bridge.agent.live.Message."""

    text: str
    name: str = ""
    call_back: str = ""

    def without(self, redaction: Redaction) -> "SavedMessage":
        texts = (self.text, self.name, self.call_back)
        return SavedMessage(*map(redaction.text, texts))


class CallSnapshot(msgspec.Struct, frozen=True):
    """What was said in earlier streams of the call. Under `talk:{call sid}`: kept up to
    date while the call runs, for its instance may end without a word."""

    history: tuple[HistoryItem, ...] = ()
    playing: tuple[Playing, ...] = ()
    """What was on its way to the caller ..."""
    at: float = 0.0
    """... at this moment, in seconds since the epoch."""
    streams: int = 0
    """How many there were; 0: this call is new."""
    handed_over: bool = False
    """The instance gave the call away ..."""
    quiet: bool = False
    """... when nobody spoke, and the caller did not notice."""
    agent: str = ""
    """The one in charge."""
    parameters: dict[str, str] = {}
    """Of the stream."""
    seconds: float = 0.0
    """How long the call has lasted; with its cost and its transfers, as limits are of
    the call and not of a stream."""
    cost: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    transfers: int = 0
    messages: tuple[SavedMessage, ...] = ()
    notes: dict[str, Any] = {}
    """The user's own: JSON values."""
    word: str = ""
    """What the agent is told about why the call goes on; empty: see `why`."""

    @classmethod
    def read(cls, stored: bytes | None) -> "CallSnapshot":
        return _read(stored, cls)

    def encoded(self, format: int) -> bytes:
        """As it is stored, in the format that `Registry.format()` gives."""
        return formats.encode(self, format)

    def as_of(self, ended: float) -> "CallSnapshot":
        """As it was when the stream ended (seconds since the epoch): more of what was
        on its way was heard by then. A tool that was at work has no result."""
        played = min((ended - self.at) * 1000, LONGEST_MS) - SLACK_MS
        budget = round(max(played, 0)) * BYTES_PER_MS
        history = {item.id: item for item in self.history}
        for part in self.playing:
            heard = part.heard
            if not part.cut:
                heard = min(part.heard + budget, part.received)
                budget -= heard - part.heard
            item = history.get(part.id) or HistoryItem(id=part.id, kind="assistant")
            words = ItemTranscript(part.words)
            if not part.complete:
                words.end_at(part.received)
            # Whatever was still to come of it is lost with the instance.
            history[part.id] = msgspec.structs.replace(
                item,
                text=item.text + words.heard(heard, part.received),
                generated=item.generated + words.all,
                cut=item.cut or heard < part.received or not part.complete,
            )
        items = tuple(_with_results(history.values()))
        # Somebody else's phone may have rung meanwhile: no limit stands still for it.
        away = min(max(ended - self.at, 0.0), AWAY_SECONDS)
        return msgspec.structs.replace(
            self, history=items, playing=(), seconds=self.seconds + away
        )

    @property
    def ended_as(self) -> str:
        """How the stream before ended, for the metrics."""
        if self.word:
            return "transfer"
        return "moved" if self.handed_over else "lost"

    @property
    def why(self) -> str:
        """What the agent is told about why the call goes on, and answers."""
        if self.word or not self.streams or self.quiet:
            return self.word
        last = next((it for it in reversed(self.history) if it.spoken), None)
        broken = last is not None and last.kind == "assistant" and last.cut
        return CUT_OFF if broken else BACK


def moment(stored: bytes | None) -> float:
    """Seconds since the epoch, as they were put on the shelf; now, where nothing is."""
    try:
        return float(stored) if stored else time.time()
    except ValueError:
        log.error("stored_value_unreadable", kind="moment")
        return time.time()


UNKNOWN_RESULT = (
    "The result of this tool is not known: its server failed while it was at work. It "
    "may or may not have done what it was to do."
)


def _with_results(items: Iterable[HistoryItem]) -> Iterator[HistoryItem]:
    """Every call gets a result, if only that nobody knows it."""
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


class AnsweredBy(enum.StrEnum):
    """Who picked up a call of ours, in Twilio's words. Under `amd:{call sid}`."""

    HUMAN = "human"
    MACHINE_START = "machine_start"
    MACHINE_END_BEEP = "machine_end_beep"
    MACHINE_END_SILENCE = "machine_end_silence"
    MACHINE_END_OTHER = "machine_end_other"
    FAX = "fax"

    @property
    def is_machine(self) -> bool:
        return self is not AnsweredBy.HUMAN

    async def keep(self, registry: Registry, call_sid: str) -> None:
        await registry.put(f"amd:{call_sid}", self.encode(), ANSWERED_BY_SECONDS)

    @classmethod
    async def of(cls, registry: Registry, call_sid: str) -> "AnsweredBy | None":
        """None as long as Twilio has not said."""
        stored = await registry.get(f"amd:{call_sid}")
        try:
            return None if stored is None else cls(stored.decode())
        except ValueError:
            log.error("stored_value_unreadable", kind=cls.__name__)
            return None
