"""The items of the agent's speech until it is known how much of each the caller heard.

PURE. Decides what the model is told about an item that was cut: nothing, a truncate or
a delete. playback.py counts how much was heard; docs/playback.md gives the reasons.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bridge.audio.g711 import BYTES_PER_MS
from bridge.core import realtime_requests
from bridge.core.commands import Command, Note, ToModel, Value
from bridge.core.history import History, Playing
from bridge.core.playback import Key, Playback, SentMark
from bridge.core.realtime_requests import EventIds
from bridge.core.responses import MAX_OPEN, remember
from bridge.core.sessions import Sessions
from bridge.core.spoken_item import RecordedItem, SpokenItem
from bridge.core.transcript import size_of
from bridge.core.word_positions import Pace

FENCE_SECONDS = 1.0
"""Longest time from a clear until a response may be requested without its fence, which
returns in one round trip. Then the model is told what the bridge believes."""

FENCE_LOST_SECONDS = 5.0
"""A fence that is not back by then does not come: a network that loses packets stops
for less. Until then the fence corrects what the model was told without it."""

MAX_CUTS = 16
"""Most barge-ins whose fence has not returned. Nobody interrupts so often within five
seconds; beyond the limit the oldest are settled by the bridge's own clock."""

MAX_TRANSCRIPT_CHARS = 1_000_000
"""Largest text (in transcript.size_of) of all unsettled items; text beyond it is not
kept. Ten minutes of quick speech need an eighth of it."""

MAX_RECORDED = 8
"""Most settled items to which late words are added. A server sends the words of an item
before it ends the response."""


@dataclass(slots=True)
class Cut:
    """A clear sent at `at` whose fence has not returned; `items` are the items that it
    cut."""

    fence: str
    at: float
    items: dict[Key, SpokenItem]
    told: dict[Key, int] | None = None
    """Bytes of each item that were heard, as the model was told before the fence is
    back, because a response needs it. None: it was not told."""


class SpokenItems:
    """The items on one stream, and what the model believes of them.

    Settling an item writes the heard text into the history and corrects the model's
    memory.

    Invariants:
    - A truncate is never beyond what was received, nor beyond an earlier truncate.
    - Each item is settled once.
    - Without a session nothing is sent to the model.
    """

    def __init__(self, history: History, sessions: Sessions, ids: EventIds) -> None:
        self.playback = Playback(0.0)
        self._history = history
        self._sessions = sessions
        self._ids = ids
        self._items: dict[Key, SpokenItem] = {}
        self._cuts: deque[Cut] = deque()
        self._cut_ids: dict[str, None] = {}
        self._heard_ids: dict[str, None] = {}
        self._recorded: dict[Key, RecordedItem] = {}
        self._pace = Pace()
        self._chars_left = MAX_TRANSCRIPT_CHARS
        """Lower bound of the remaining budget; recomputed when it is used up."""

    # --- the model sends ---

    def add_text(self, key: Key, response_id: str, text: str, *, late: bool) -> None:
        """Text of an item; dropped beyond MAX_TRANSCRIPT_CHARS. `late`: its response or
        its item was cut; the text may belong to the part that was heard."""
        if not self._has_room(size_of(text)):
            return
        recorded = self._recorded.get(key)
        if recorded is not None:
            recorded.has_late_words = True
            item: SpokenItem | None = recorded.item
        elif late:
            item = next((it.items[key] for it in self._cuts if key in it.items), None)
        else:
            item = self._item(key, response_id)
        if item is not None:
            item.words.add(text, item.received)

    def add_audio(self, key: Key, response_id: str, payload: str, size: int) -> None:
        """`size` bytes of an item's audio have arrived, as base64."""
        item = self._item(key, response_id)
        item.received += size
        item.pauses.add(payload, size)

    def add_recording(self, key: Key, words: str, payload: str, size: int) -> None:
        """`size` bytes of a recording, as base64; it is complete."""
        item = self._item(key, key[0])
        item.words.add(words, 0)
        item.pauses.add(payload, size)
        item.received, item.complete = size, True
        item.text_only = item.is_recording = True

    def is_late(self, item_id: str) -> bool:
        """The item was cut: its audio and text are dropped."""
        return item_id in self._cut_ids

    def complete(self, key: Key) -> bool:
        """All audio of this part was received. False: the part is unknown."""
        item = self._items.get(key)
        if item is None:
            return False
        item.complete = True
        return True

    def end_response(self, response_id: str, *, completed: bool) -> list[Key]:
        """The model sends no more of this response. Returns its parts with audio."""
        mine = [k for k, item in self._items.items() if item.response_id == response_id]
        for key in mine:
            item = self._items[key]
            if item.received == 0:
                del self._items[key]  # text without audio is not speech
            elif not completed:
                item.end_early(self._pace)
        return [key for key in mine if key in self._items]

    def drop_rest(self, response_id: str) -> dict[Key, int]:
        """No more audio of this response is sent to the caller. Returns the parts that
        end early, with the ms that were sent."""
        ended: dict[Key, int] = {}
        for key, item in self._items.items():
            if item.response_id != response_id or not item.received:
                continue  # nothing was sent: deleted when the response is done
            remember(self._cut_ids, key[0], None)
            if not item.complete:
                item.rest_dropped = True
                item.end_early(self._pace)
                ended[key] = item.received // BYTES_PER_MS
        return ended

    def forget_unsent(self, message_ids: Iterable[str]) -> list[Command]:
        """Deletes the messages of a cut response that the caller heard nothing of: no
        audio of them was sent."""
        commands: list[Command] = []
        for item_id in message_ids:
            if item_id not in self._cut_ids and item_id not in self._heard_ids:
                remember(self._cut_ids, item_id, None)
                delete = realtime_requests.delete(item_id, self._ids.next())
                commands += self._to_model(delete)
        return commands

    def _item(self, key: Key, response_id: str) -> SpokenItem:
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = SpokenItem(response_id)
            if len(self._items) > MAX_OPEN:
                oldest = next(iter(self._items))
                del self._items[oldest]
                self.playback.forget(oldest)
        return item

    def _has_room(self, size: int) -> bool:
        """Takes `size` from the remaining budget; False if less is left."""
        if size > self._chars_left:
            cut = (item for cut in self._cuts for item in cut.items.values())
            recorded = (it.item for it in self._recorded.values())
            items = (*self._items.values(), *cut, *recorded)
            sizes = (item.words.size for item in items)
            self._chars_left = MAX_TRANSCRIPT_CHARS - sum(sizes)
        if size > self._chars_left:
            return False
        self._chars_left -= size
        return True

    # --- questions ---

    def is_live(self, response_id: str) -> bool:
        """Some of this response may still be heard."""
        return any(item.response_id == response_id for item in self._items.values())

    def counts(self, item_id: str) -> bool:
        """How much of this item the caller hears is counted here: its text in the
        history is the text that was heard, whatever a server shows."""
        if item_id in self._cut_ids or item_id in self._heard_ids:
            return True
        return any(item_id == key[0] for key in self._items)

    @property
    def live(self) -> dict[Key, SpokenItem]:
        """The parts that the caller may still hear, in order."""
        return {key: item for key, item in self._items.items() if item.received}

    @property
    def fence_lost_at(self) -> float | None:
        """When the oldest fence does not come any more; None: no fence is awaited."""
        return self._cuts[0].at + FENCE_LOST_SECONDS if self._cuts else None

    @property
    def held_until(self) -> float | None:
        """Until when a response waits for fences; None: the model knows of each
        cut."""
        if not self._cuts or self._cuts[-1].told is not None:
            return None
        return self._cuts[-1].at + FENCE_SECONDS

    def playing(self, now: float) -> list[Playing]:
        """Parts of items whose audio is on its way to the caller, in order."""
        parts = [
            self._playing(key, item, self.playback.cleared_by(cut.at), cut=True)
            for cut in self._cuts
            for key, item in cut.items.items()
        ]
        heard = self.playback.heard_by(now)
        parts += [self._playing(key, it, heard) for key, it in self._items.items()]
        return [part for part in parts if part.received]

    def _playing(
        self, key: Key, item: SpokenItem, position: int, *, cut: bool = False
    ) -> Playing:
        """The part, heard up to `position`."""
        return Playing(
            id=key[0],
            words=tuple(item.words.pieces),
            pauses=item.pauses.find(),
            pace=self._pace,
            received=item.received,
            heard=self._heard_by(key, item, position),
            complete=item.complete,
            cut=cut,
        )

    def _heard_by(self, key: Key, item: SpokenItem, position: int) -> int:
        return max(item.received - self.playback.ahead(key, position), 0)

    # --- cut, and settled ---

    def cut(self, now: float) -> str:
        """All live parts are cut by a clear that is sent now. Returns the mark to send
        behind it: the fence."""
        fence = self.playback.fence(now)
        self._cuts.append(Cut(fence, now, self.live))
        return fence

    def drop_all(self, live: Mapping[Key, SpokenItem]) -> None:
        """From now on, audio and text of these parts are late."""
        for item_id, _ in live:
            remember(self._cut_ids, item_id, None)
        self._items = {}

    def settle_fence(self, mark: SentMark, now: float) -> list[Command]:
        """A mark came back; if it is the oldest fence, its cut is settled."""
        if not self._cuts or mark.name != self._cuts[0].fence:
            return []
        cut = self._cuts.popleft()
        confirmed = Note("clear_confirmed", {"seconds": now - cut.at})
        return [confirmed, *self._settle(cut.items, cut.told)]

    def settle_heard(self) -> list[Command]:
        """Settles the parts that were played to their end."""
        notes: list[Command] = []
        for key, item in list(self._items.items()):
            heard = self.playback.tally(key).heard
            if item.complete and heard == item.received > 0:
                notes.append(self._record_heard(key, item))
                self.playback.forget(key)
                remember(self._heard_ids, key[0], None)
                del self._items[key]
        return notes

    def tell_heard(self) -> list[Command]:
        """The model responds now: tells it of each cut whose fence is not back, by the
        bridge's own clock. The fence may correct that, but only towards less: the model
        cannot remember again what it has forgotten."""
        if any(it.text_only for cut in self._cuts for it in cut.items.values()):
            return self.settle_lost_fences(math.inf)  # a text is replaced only once
        commands: list[Command] = []
        for number, cut in enumerate(self._cuts):
            if cut.told is None:
                cut.told = self._may_be_heard(cut, first=number == 0)
                commands.append(Note("fence_late", {"fence": cut.fence}))
                commands += self._correct(cut.items, cut.told, {})
        return commands

    def _may_be_heard(self, cut: Cut, *, first: bool) -> dict[Key, int]:
        """Bytes of each item that were heard at most: all, where it is not known when
        the audio began. `first`: no earlier clear is awaited, behind which it began."""
        if not (first and self.playback.is_dated):
            return {key: item.received for key, item in cut.items.items()}
        position = self.playback.cleared_before(cut.at)
        return {
            key: self._heard_by(key, item, position) for key, item in cut.items.items()
        }

    def settle_lost_fences(self, now: float) -> list[Command]:
        """Settles the cuts whose fence does not come any more, and the oldest beyond
        MAX_CUTS, by the bridge's own clock."""
        commands: list[Command] = []
        while (lost_at := self.fence_lost_at) is not None and (
            now >= lost_at or len(self._cuts) > MAX_CUTS
        ):
            if self._cuts[0].told is None:
                commands.append(Note("fence_late", {"fence": self._cuts[0].fence}))
            commands += self._settle_oldest_cut(math.inf)
        return commands

    def stream_lost(self, now: float) -> tuple[list[Command], bool]:
        """The stream is lost, with the audio queued at Twilio: settles what was heard
        until now. True: something that the agent said was not heard."""
        # First each cut at the time of its clear: audio behind it was not heard.
        commands: list[Command] = []
        while self._cuts:
            commands += self._settle_oldest_cut(now)
        self.playback.stop(now)
        live = self.live
        self.drop_all(live)
        unheard = any(
            self.playback.tally(key).heard < item.received
            for key, item in live.items()
            if not item.is_recording
        )
        return commands + self._settle(live), unheard

    def call_ended(self, now: float) -> list[Command]:
        """Settles all parts in the history; sends nothing to the model."""
        # Each cut at its own time: audio behind a clear was not heard.
        for cut in self._cuts:
            self.playback.settle_late_fence(cut.fence, cut.at, now)
        self.playback.stop(now)
        unsettled = [*(cut.items for cut in self._cuts), self._items]
        self._cuts.clear()
        self._items = {}
        late = self.record_late_words()
        return late + [
            self._record_heard(key, item)
            for items in unsettled
            for key, item in items.items()
            if item.received
        ]

    def session_lost(self) -> dict[Key, SpokenItem]:
        """The session is lost: the next one knows these items as text. Returns the
        parts that the model had not completed; they have no end that the caller could
        hear."""
        begun = {key: item for key, item in self._items.items() if not item.complete}
        for item in begun.values():
            item.end_early(self._pace)
        return begun

    def become_text(self, begun: Iterable[Key]) -> None:
        """After `session_lost`: items of the lost session cannot be truncated."""
        for item in self._items.values():
            item.text_only = True
        for item_id, _ in begun:
            known = self._history.get(item_id)
            if known is not None:
                known.cut = True

    def _settle_oldest_cut(self, ended_at: float) -> list[Command]:
        """Settles the oldest cut, without its fence, at the time of its clear.
        `ended_at`: when the stream ended."""
        cut = self._cuts.popleft()
        self.playback.settle_late_fence(cut.fence, cut.at, ended_at)
        return self._settle(cut.items, cut.told)

    def _settle(
        self, items: Mapping[Key, SpokenItem], told: Mapping[Key, int] | None = None
    ) -> list[Command]:
        """It is known how much of each cut part was heard: corrects the model's
        memory. `told`: as in Cut."""
        heard = {key: self.playback.tally(key).heard for key in items}
        commands = self._correct(items, heard, told or {})
        replaced: dict[str, None] = {}
        for key, item in items.items():
            commands.append(self._record_heard(key, item))
            self.playback.forget(key)
            if item.text_only and self._begun(heard, key[0]):
                whole = item.is_whole(heard[key])
                replaced.update({} if whole else {key[0]: None})
        for item_id in replaced:
            commands += self._replace_text(item_id)
        return commands

    def _correct(
        self,
        items: Mapping[Key, SpokenItem],
        heard: Mapping[Key, int],
        told: Mapping[Key, int],
    ) -> list[Command]:
        """Truncates or deletes the parts of which not all was heard. `told`: as in
        Cut."""
        commands: list[Command] = []
        deleted: dict[str, None] = {}
        for key, item in items.items():
            item_id, content_index = key
            if told and not self._begun(told, item_id):
                continue  # it is deleted
            if not self._begun(heard, item_id):
                # Not truncated at 0: the server refuses that until the item has audio.
                deleted[item_id] = None
                continue
            ms = heard[key] // BYTES_PER_MS
            known = told and ms >= told[key] // BYTES_PER_MS
            if not (item.text_only or item.is_whole(heard[key]) or known):
                truncate = realtime_requests.truncate(
                    item_id, content_index, ms, self._ids.next()
                )
                commands += self._to_model(truncate)
        for item_id in deleted:
            delete = realtime_requests.delete(item_id, self._ids.next())
            commands += self._to_model(delete)
        return commands

    def _begun(self, heard: Mapping[Key, int], item_id: str) -> bool:
        """The caller has heard some of the item."""
        return item_id in self._heard_ids or any(
            key[0] == item_id and size >= BYTES_PER_MS for key, size in heard.items()
        )

    def _replace_text(self, item_id: str) -> list[Command]:
        """Replaces the text of an item in the model's memory by what was heard of all
        its parts, once that is in the history."""
        item = self._history.get(item_id)
        commands: list[Command] = []
        if item is not None and item.text:
            new = realtime_requests.message(
                "assistant", item.text, self._ids.next(), after=item_id
            )
            commands += self._to_model(new)
        delete = realtime_requests.delete(item_id, self._ids.next())
        return commands + self._to_model(delete)

    def _record_heard(self, key: Key, item: SpokenItem) -> Note:
        """Writes into the history what was heard of a part."""
        heard = self.playback.tally(key).heard
        cut = not item.is_whole(heard)
        data: dict[str, Value] = {
            "item": key[0],
            "content_index": key[1],
            "received_ms": item.received // BYTES_PER_MS,
            "sent_ms": self.playback.tally(key).sent // BYTES_PER_MS,
            "heard_ms": heard // BYTES_PER_MS,
            "cut": cut,
        }
        words = item.words.all
        heard_words, self._pace = item.heard(heard, self._pace)
        self._history.said(key[0], heard_words, words, cut=cut)
        recorded = RecordedItem(item, heard, heard_words, words)
        self._recorded[key] = recorded
        if len(self._recorded) > MAX_RECORDED:
            del self._recorded[next(iter(self._recorded))]
        return Note("said", data, {"generated": words, "heard": heard_words})

    def record_late_words(self, response_id: str | None = None) -> list[Command]:
        """Words of a response (None: of any) came after it was recorded what was heard:
        corrects the history."""
        notes: list[Command] = []
        for key, it in self._recorded.items():
            if not it.has_late_words or response_id not in (it.item.response_id, None):
                continue
            it.has_late_words = False
            words = it.item.words.all
            heard, self._pace = it.item.heard(it.heard, self._pace)
            self._history.said_again(key[0], (it.text, heard), (it.generated, words))
            it.text, it.generated = heard, words
            cut = not it.item.is_whole(it.heard)
            data: dict[str, Value] = {
                "item": key[0],
                "content_index": key[1],
                "cut": cut,
            }
            private = {"generated": words, "heard": heard}
            notes.append(Note("said_late", data, private))
        return notes

    def _to_model(self, text: str) -> list[Command]:
        return [ToModel(text)] if self._sessions.has_session else []
