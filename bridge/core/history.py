"""What was said in a call, as the model knows it: text that was heard, tool calls.

Text only, bounded, in the server's order. Filled from the server's events, and by
AgentSpeech once it is known what the caller heard. A later session gets the history
(replay.py).
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec

from bridge.core.word_positions import Pace

Kind = Literal["user", "assistant", "system", "tool_call", "tool_output"]

MAX_ITEMS = 400
"""Two hours of conversation. Older items are forgotten here; the model still has
them."""

MAX_CHARS = 8000
"""Most characters of one item: a tool may return the text of a whole book."""

MAX_OPEN_TOOL_CALLS = 64
"""Most tool calls without a result that are remembered; beyond that the oldest are
forgotten."""

MAX_ALL_CHARS = 2_000_000
"""Most characters of all items; the oldest are forgotten first. A day of conversation
has fewer, and so has the output of a hundred tools at MAX_CHARS each."""


class HistoryItem(msgspec.Struct):
    """One item. `text`: what was heard of it, or a tool's output."""

    id: str
    kind: Kind
    text: str = ""
    generated: str = ""
    """Text of an assistant's message, heard or not."""
    cut: bool = False
    """The caller did not hear all of it."""
    at: float = 0.0
    """Seconds since the call began, earlier streams included."""
    call_id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def spoken(self) -> bool:
        """Text of a person or an agent, not of a tool."""
        return self.kind in ("user", "assistant") and bool(self.text or self.generated)


Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Playing(msgspec.Struct, frozen=True):
    """A part of a message on its way to the caller: more of it is heard as time
    passes."""

    id: str
    words: tuple[tuple[Bytes, str], ...]
    """(byte of the audio at which the text arrived, text)."""
    received: Bytes
    """Bytes of mu-law that the model has sent of it."""
    heard: Bytes
    """Bytes that the caller has heard of it."""
    complete: bool
    """The model has sent all of it."""
    cut: bool = False
    """No more of it will be heard."""
    pauses: tuple[tuple[Bytes, Bytes], ...] | msgspec.UnsetType = msgspec.UNSET
    """(first byte, byte behind it) of each pause in the audio."""
    pace: Pace | msgspec.UnsetType = msgspec.UNSET
    """What was known of the pace."""


class History:
    """The items of one call, in order. Methods ignore items that are unknown.

    Invariants: at most MAX_ITEMS and MAX_ALL_CHARS (the oldest go first). An item that
    was removed is not added again, even if more events about it arrive.
    """

    def __init__(self, items: Iterable[HistoryItem] = ()) -> None:
        self._items: dict[str, HistoryItem] = {item.id: item for item in items}
        self._chars = sum(map(_size, self._items.values()))
        self._gone: dict[str, None] = {}
        """Ids that were removed."""
        self._awaited: dict[str, bool] = {}
        """call_id of a complete tool call whose result is awaited -> its tool has
        begun."""
        self._called_together: set[str] = set()
        """call_ids of the complete tool calls of the newest response."""
        self.version = 0
        """Rises with every change."""

    @property
    def items(self) -> Sequence[HistoryItem]:
        return list(self._items.values())

    @property
    def open_calls(self) -> set[str]:
        """call_ids of tool calls whose result is awaited. A call that the model did not
        complete has no result, ever: its tool does not run."""
        if not self._awaited:
            return set()
        calls = {it.call_id for it in self._items.values() if it.kind == "tool_call"}
        items = self._items.values()
        results = {it.call_id for it in items if it.kind == "tool_output"}
        return calls & self._awaited.keys() - results

    @property
    def open_calls_of_response(self) -> set[str]:
        """Those of the newest response."""
        if len(self._called_together) < 2:
            return set()  # as a rule
        return self._called_together & self.open_calls

    def called(self, call_id: str) -> None:
        """The newest response has completed a tool call."""
        self._called_together.add(call_id)
        self.call_completed(call_id)

    def call_completed(self, call_id: str) -> None:
        """The model has completed a tool call: its tool is about to run."""
        self._awaited.setdefault(call_id, False)
        if len(self._awaited) > MAX_OPEN_TOOL_CALLS:
            del self._awaited[next(iter(self._awaited))]

    def tool_began(self, call_id: str) -> None:
        """A tool runs, or waits for an approval."""
        self.call_completed(call_id)
        self._awaited[call_id] = True

    def response_began(self) -> None:
        """The model goes on: a tool that has not begun by now does not run."""
        self._awaited = {it: began for it, began in self._awaited.items() if began}
        self._called_together.clear()

    def no_result(self, call_id: str) -> None:
        """The model does not take the result of this tool call."""
        self._awaited.pop(call_id, None)

    def name_of(self, call_id: str) -> str:
        """The tool that this call calls; empty if the call is unknown."""
        calls = (it for it in self._items.values() if it.call_id == call_id)
        return next((it.name for it in calls if it.kind == "tool_call"), "")

    def get(self, item_id: str) -> HistoryItem | None:
        return self._items.get(item_id)

    def add(self, item: HistoryItem, after: str | None = None) -> None:
        """Adds an item behind `after` (else at the end), or fills the empty fields of a
        known item."""
        self.version += 1
        if item.id in self._gone:
            return
        known = self._items.get(item.id)
        if known is not None:
            before = _size(known)
            _fill(known, item)
            self._grew(_size(known) - before)
            return
        item.text, item.generated = item.text[:MAX_CHARS], item.generated[:MAX_CHARS]
        item.arguments = item.arguments[:MAX_CHARS]
        last = next(reversed(self._items), None)
        between = after in self._items and after != last
        self._items[item.id] = item
        if after is not None and between:
            self._move_behind(item.id, after)
        self._grew(_size(item))

    def said(self, item_id: str, heard: str, generated: str, *, cut: bool) -> None:
        """Adds to an item what the caller heard of one part of it, once that is
        known."""
        self.version += 1
        item = self._items.get(item_id)
        if item is not None:
            before = _size(item)
            # An item may have several parts: their texts are joined.
            item.text = (item.text + heard)[:MAX_CHARS]
            item.generated = (item.generated + generated)[:MAX_CHARS]
            item.cut = item.cut or cut
            self._grew(_size(item) - before)

    def said_again(
        self, item_id: str, heard: tuple[str, str], generated: tuple[str, str]
    ) -> None:
        """Corrects what `said` added of one part of an item: (before, now)."""
        self.version += 1
        item = self._items.get(item_id)
        if item is not None:
            before = _size(item)
            item.text = _replaced(item.text, *heard)[:MAX_CHARS]
            item.generated = _replaced(item.generated, *generated)[:MAX_CHARS]
            self._grew(_size(item) - before)

    def transcribed(self, item_id: str, text: str) -> None:
        """The transcript of what the caller said."""
        self.correct(item_id, text)

    def correct(self, item_id: str, text: str) -> None:
        """Replaces the text of an item."""
        self.version += 1
        item = self._items.get(item_id)
        if item is not None:
            before = _size(item)
            item.text = text[:MAX_CHARS]
            self._grew(_size(item) - before)

    def remove(self, item_id: str) -> None:
        """Removes an item; later events about it are ignored."""
        self.version += 1
        gone = self._items.pop(item_id, None)
        if gone is not None:
            self._chars -= _size(gone)
        self._gone[item_id] = None
        if len(self._gone) > MAX_ITEMS:
            del self._gone[next(iter(self._gone))]

    def _grew(self, chars: int) -> None:
        self._chars += chars
        while len(self._items) > MAX_ITEMS or self._chars > MAX_ALL_CHARS:
            self._chars -= _size(self._items.pop(next(iter(self._items))))

    def _move_behind(self, item_id: str, after: str) -> None:
        item = self._items.pop(item_id)
        items = list(self._items.items())
        at = next(i for i, (key, _) in enumerate(items) if key == after) + 1
        self._items = dict([*items[:at], (item_id, item), *items[at:]])


def _replaced(text: str, before: str, now: str) -> str:
    return text.replace(before, now, 1) if before else text + now


def _size(item: HistoryItem) -> int:
    return len(item.text) + len(item.generated) + len(item.arguments)


def _fill(known: HistoryItem, item: HistoryItem) -> None:
    known.text = known.text or item.text[:MAX_CHARS]
    known.name = known.name or item.name
    known.call_id = known.call_id or item.call_id
    known.arguments = known.arguments or item.arguments[:MAX_CHARS]
