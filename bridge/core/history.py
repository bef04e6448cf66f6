"""What was said in a call, as the model has it: words that were heard, tool calls.

Text only, bounded, in the server's order. Fed by the server's own events and by what
was decided about the caller's hearing. Also what a later session is given back.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec

Kind = Literal["user", "assistant", "system", "tool_call", "tool_output"]

MAX_ITEMS = 400
"""Two hours of talk; what is older is forgotten here, the model has it still."""

MAX_CHARS = 8000
"""Of one item: a tool may return a book."""

MAX_ALL_CHARS = 2_000_000
"""Of all together; the oldest are forgotten first. A day of talk has less, and so have
a hundred tools that return a book each."""


class HistoryItem(msgspec.Struct):
    """One item. `text` is what was heard of it; a tool's output is text, too."""

    id: str
    kind: Kind
    text: str = ""
    generated: str = ""
    """An assistant's words, heard or not."""
    cut: bool = False
    """The caller did not hear all of it."""
    at: float = 0.0
    """Seconds since the stream began."""
    call_id: str = ""
    name: str = ""
    arguments: str = ""

    @property
    def spoken(self) -> bool:
        """Words of a person or an agent, not a tool's."""
        return self.kind in ("user", "assistant") and bool(self.text or self.generated)


Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Playing(msgspec.Struct, frozen=True):
    """Words on their way to the caller: more of them is heard as time passes."""

    id: str
    words: tuple[tuple[Bytes, str], ...]
    """(byte of the audio at which they came, words)."""
    received: Bytes
    """Bytes of mu-law the model has sent of it."""
    heard: Bytes
    """Bytes that the caller has heard of it."""
    complete: bool
    """There is no more of it."""
    cut: bool = False
    """No more of it will be heard."""


class History:
    """`items` in order; every method takes an item that is unknown as nothing."""

    def __init__(self, items: Iterable[HistoryItem] = ()) -> None:
        self._items: dict[str, HistoryItem] = {item.id: item for item in items}
        self._chars = sum(map(_size, self._items.values()))
        self._gone: dict[str, None] = {}
        """Ids that were removed: what still comes of them stays out."""
        self.version = 0
        """Another one with every change."""

    @property
    def items(self) -> Sequence[HistoryItem]:
        return list(self._items.values())

    @property
    def has_open_calls(self) -> bool:
        """A tool was called whose result is not there."""
        kinds = ("tool_call", "tool_output")
        calls = Counter(it.call_id for it in self._items.values() if it.kind in kinds)
        return any(count == 1 for count in calls.values())

    def get(self, item_id: str) -> HistoryItem | None:
        return self._items.get(item_id)

    def add(self, item: HistoryItem, after: str | None = None) -> None:
        """A new item, or more of a known one; behind `after`, else at the end."""
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
        """What the caller heard of an answer is known now."""
        self.version += 1
        item = self._items.get(item_id)
        if item is not None:
            before = _size(item)
            # A part of an item that has several: the words of all of them.
            item.text = (item.text + heard)[:MAX_CHARS]
            item.generated = (item.generated + generated)[:MAX_CHARS]
            item.cut = item.cut or cut
            self._grew(_size(item) - before)

    def transcribed(self, item_id: str, text: str) -> None:
        """The caller's words, as the transcription model has them."""
        self.correct(item_id, text)

    def correct(self, item_id: str, text: str) -> None:
        """Other words in the place of those that it has."""
        self.version += 1
        item = self._items.get(item_id)
        if item is not None:
            before = _size(item)
            item.text = text[:MAX_CHARS]
            self._grew(_size(item) - before)

    def remove(self, item_id: str) -> None:
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


def _size(item: HistoryItem) -> int:
    return len(item.text) + len(item.generated) + len(item.arguments)


def _fill(known: HistoryItem, item: HistoryItem) -> None:
    known.text = known.text or item.text[:MAX_CHARS]
    known.name = known.name or item.name
    known.call_id = known.call_id or item.call_id
    known.arguments = known.arguments or item.arguments[:MAX_CHARS]
