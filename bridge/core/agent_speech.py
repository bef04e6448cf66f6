"""The agent's speech on its way to the caller: items, barge-ins, what was heard.

Decides what the model is told about a response that was cut: nothing, a truncate or a
delete. playback.py counts how much was heard; docs/playback.md gives the reasons.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bridge.audio import g711
from bridge.audio.g711 import BYTES_PER_MS
from bridge.core import realtime_events, twilio_messages
from bridge.core.commands import (
    Command,
    Interrupted,
    Note,
    ToCaller,
    ToModel,
    Value,
    limit_hit,
)
from bridge.core.history import History, Playing
from bridge.core.limits import Bounds
from bridge.core.playback import Key, Playback
from bridge.core.sessions import Sessions
from bridge.core.stream_presence import StreamPresence
from bridge.core.transcript import ItemTranscript, size_of

FENCE_SECONDS = 1.0
"""Longest wait for a fence, which returns in one round trip. Later the model may
already respond with a wrong memory, so the bridge decides with what it knows."""

ANSWER_ID = "bridge_answer"
"""event_id of the bridge's own response.create."""

BRIDGE_AUDIO: Key = ("", -1)
"""Playback's key for the bridge's own audio (tones). No item of the model has this key:
its parts count from 0, though its id may be empty."""

MAX_REMEMBERED = 1024
"""Ids of cut responses and items kept, to recognise their late audio."""

MAX_OPEN = 64
"""Most responses being generated, message items of one response, and unsettled items.
As a rule there is one of each, and a few more items when many are queued at Twilio.
Beyond the limit the oldest are forgotten."""

MAX_CUTS = 16
"""Most barge-ins whose fence has not returned. Nobody interrupts so often within a
second; beyond the limit the oldest are settled by the bridge's own clock."""

MAX_TRANSCRIPT_CHARS = 1_000_000
"""Largest text (in transcript.size_of) of all unsettled items; text beyond it is not
kept. Ten minutes of quick speech need an eighth of it."""

T = TypeVar("T")


@dataclass(slots=True)
class SpokenItem:
    """One content part of a message item, until it is settled."""

    response_id: str
    words: ItemTranscript = field(default_factory=ItemTranscript)
    received: int = 0
    """Bytes of its audio that the model has sent."""
    complete: bool = False
    """The model has sent all of its audio, and the item was not cut before that."""
    rest_dropped: bool = False
    """Twilio's queue was full: the rest of its audio was not sent."""
    text_only: bool = False
    """Its session was lost. The new session knows the item as text, which cannot be
    truncated, only replaced."""

    def heard(self, heard: int) -> str:
        """Its text up to byte `heard`. Of an item that was cut while the model sent it,
        text whose audio had not arrived was not heard."""
        words = self.words
        if not self.complete:
            words = ItemTranscript(words.pieces)
            words.end_at(self.received)
        return words.heard(heard, self.received)

    def is_whole(self, heard: int) -> bool:
        """The caller heard all of it, and all of it was sent."""
        return self.complete and not self.rest_dropped and heard == self.received


@dataclass(slots=True)
class Response:
    """A response that the model is generating."""

    messages: dict[str, None] = field(default_factory=dict)
    """Ids of its message items, in order."""
    cut: bool = False
    sent_audio: bool = False
    """Some of its audio went to the caller."""
    called_tool: bool = False
    """It calls a function tool, whose result requests another response."""
    open_calls: dict[str, None] = field(default_factory=dict)
    """Ids of its function calls that the model has not completed."""


@dataclass(slots=True)
class Cut:
    """A clear sent at `at` whose fence has not returned; `items` are the items that it
    cut."""

    fence: str
    at: float
    items: dict[Key, SpokenItem]


class AgentSpeech:
    """The agent's responses on one stream, and what the model believes of them.

    An item is received, sent between marks, then either heard (a mark returns) or cut
    (clear, and a fence behind it). Settling it writes the heard text into the history
    and corrects the model's memory.

    Invariants:
    - A truncate is never beyond what was received, nor beyond an earlier truncate.
    - Audio and text that arrive after their response or item was cut are dropped.
    - A response is requested only if none is requested or generating and every fence
      has returned: else the model would respond before it knows what was heard.
    - Without a session (Sessions) nothing is sent to the model; without a stream
      (StreamPresence) no response is requested.

    `playback` must be given every frame and mark by the caller's side.
    """

    def __init__(
        self,
        history: History,
        sessions: Sessions,
        stream: StreamPresence,
        bounds: Bounds,
    ) -> None:
        self._ahead_seconds = bounds.audio_ahead_seconds
        self._chars_left = MAX_TRANSCRIPT_CHARS
        """Lower bound of the remaining budget; recomputed when it is used up."""
        self._out = twilio_messages.OutboundMessages("")
        self.playback = Playback(0.0)
        self._history = history
        self._sessions = sessions
        self._stream = stream
        self._responses: dict[str, Response] = {}
        self._items: dict[Key, SpokenItem] = {}
        self._cuts: deque[Cut] = deque()
        self._cut_responses: dict[str, None] = {}
        self._cut_items: dict[str, None] = {}
        self._heard_items: dict[str, None] = {}
        self._event_serial = 0
        self.requested = False
        """A response was requested, and the server has not created it yet."""
        self._cancel_on_start = False
        """The requested response is to be cancelled once it is created."""
        self._wanted = False
        """A response is owed: request it once the model is free."""
        self.progress = 0.0
        """When a response was last requested, or any part of one received."""
        self.broken_off = False
        """The caller heard a response break off in the middle: the session or the
        stream was lost."""
        self.unanswered = False
        """The caller has spoken, and the server has not created its response yet."""

    # --- the model generates ---

    def response_created(self, response_id: str, now: float) -> list[Command]:
        """The server began a response; cancels it at once if it was stopped
        meanwhile."""
        self.requested = False
        self.progress = now
        self._history.response_began()
        no_stream = self._stream.is_lost
        stopped, self._cancel_on_start = self._cancel_on_start or no_stream, False
        # Without a stream: requested again when the caller is back.
        self._wanted = self._wanted or no_stream
        _remember(self._responses, response_id, Response(cut=stopped), MAX_OPEN)
        if not stopped:
            return []
        _remember(self._cut_responses, response_id, None)
        return self._to_model(realtime_events.cancel(response_id, self.event_id()))

    def item_added(self, event: realtime_events.OutputItemAdded, now: float) -> None:
        """The response has another item; messages and function calls matter here."""
        self.progress = now
        response = self._responses.get(event.response_id)
        if response and event.item.type == "message":
            _remember(response.messages, event.item.id, None, MAX_OPEN)
        elif response and event.item.type == "function_call":
            response.called_tool = True
            _remember(response.open_calls, event.item.id, None, MAX_OPEN)

    def output_item_done(self, event: realtime_events.OutputItemDone) -> None:
        """An item of the response has ended. The SDK runs the tool of a function call
        only if the model has completed the call."""
        item = event.item
        if item.type != "function_call" or item.status != "completed":
            return
        if item.call_id:
            self._history.call_completed(item.call_id)
        response = self._responses.get(event.response_id)
        if response:
            response.open_calls.pop(item.id, None)

    def transcript_delta(self, event: realtime_events.TranscriptDelta) -> None:
        """Text of a response; dropped if it was cut or beyond MAX_TRANSCRIPT_CHARS."""
        size = size_of(event.delta)
        if self._is_late(event.response_id, event.item_id) or not self._has_room(size):
            return
        item = self._item(event.item_id, event.content_index, event.response_id)
        item.words.add(event.delta, item.received)

    def _has_room(self, size: int) -> bool:
        """Takes `size` from the remaining budget; False if less is left."""
        if size > self._chars_left:
            cut = (item for cut in self._cuts for item in cut.items.values())
            sizes = (item.words.size for item in (*self._items.values(), *cut))
            self._chars_left = MAX_TRANSCRIPT_CHARS - sum(sizes)
        if size > self._chars_left:
            return False
        self._chars_left -= size
        return True

    def audio(self, event: realtime_events.AudioDelta, now: float) -> list[Command]:
        """Audio of a response, with the marks it needs; dropped if it was cut."""
        size = g711.payload_bytes(event.delta)
        if self._is_late(event.response_id, event.item_id):
            response = self._responses.get(event.response_id)
            if response:
                _remember(response.messages, event.item_id, None, MAX_OPEN)
            return [Note("late_audio", {"item": event.item_id, "bytes": size})]
        self.progress = now
        if self.playback.is_full(self._ahead_seconds, now):
            return self._stop_at_ahead_limit(event.response_id, now)
        response = self._responses.get(event.response_id)
        if response:
            response.sent_audio = True
        key = (event.item_id, event.content_index)
        self._item(*key, event.response_id).received += size
        return self._send(key, event.delta, size, now)

    def _stop_at_ahead_limit(self, response_id: str, now: float) -> list[Command]:
        """Twilio's queue is full: ends the response here. The audio that was sent is
        played, and the model forgets the rest."""
        response = self._responses.get(response_id)
        if response:
            response.cut = True
        _remember(self._cut_responses, response_id, None)
        cancel = realtime_events.cancel(response_id, self.event_id())
        commands = [limit_hit("audio_ahead"), *self._to_model(cancel)]
        for key, item in list(self._items.items()):
            if item.response_id != response_id or not item.received:
                continue  # nothing was sent: deleted when the response is done
            _remember(self._cut_items, key[0], None)
            if not item.complete:
                item.rest_dropped = True
                item.words.end_at(item.received)
                ms = item.received // BYTES_PER_MS
                truncate = realtime_events.truncate(*key, ms, self.event_id())
                commands += [*self._to_model(truncate), *self.item_done(key, now)]
        return commands

    def play(self, payload: str, now: float) -> list[Command]:
        """The bridge's own audio (base64 mu-law), queued; only a clear stops it."""
        if self.playback.is_full(self._ahead_seconds, now):
            return [limit_hit("audio_ahead")]
        self.playback.forget(BRIDGE_AUDIO)
        size = g711.payload_bytes(payload)
        commands = self._send(BRIDGE_AUDIO, payload, size, now)
        mark = self.playback.end_mark(now)
        return [*commands, ToCaller(self._out.mark(mark))] if mark else commands

    def _send(self, key: Key, payload: str, size: int, now: float) -> list[Command]:
        commands: list[Command] = []
        for mark, take in self.playback.plan(key, size, now):
            if mark:
                commands.append(ToCaller(self._out.mark(mark)))
            piece, payload = g711.cut_payload(payload, take)
            commands.append(ToCaller(self._out.media(piece)))
        return commands

    def item_done(self, key: Key, now: float) -> list[Command]:
        """All audio of this part was received."""
        item = self._items.get(key)
        if item is None:
            return []
        item.complete = True
        mark = self.playback.end_mark(now)
        if mark:
            return [ToCaller(self._out.mark(mark))]
        return self._settle_heard()

    def response_done(
        self, response_id: str, now: float, *, completed: bool = True
    ) -> list[Command]:
        """The model ended this response, completed or not."""
        response = self._responses.pop(response_id, None)
        for item_id in response.open_calls if response else ():
            self._history.remove(item_id)  # cut: its tool never runs
        if response and response.cut:
            return self._forget_unsent(response) + self.request_if_free(now)
        commands = self.request_if_free(now)
        mine = [k for k, item in self._items.items() if item.response_id == response_id]
        for key in mine:
            item = self._items.get(key)
            if item and item.received == 0:
                del self._items[key]  # text without audio is not speech
            elif item and not item.complete and not completed:
                item.words.end_at(item.received)
            # Not every server sends a `done` event for each item.
            commands += self.item_done(key, now)
        return commands

    def sent_audio(self, response_id: str) -> bool:
        """The response is being generated, and some of its audio went to the caller."""
        response = self._responses.get(response_id)
        return response is not None and response.sent_audio

    def was_cut(self, response_id: str) -> bool:
        """The response was cut: the caller does not wait for it."""
        return response_id in self._cut_responses

    def drop_responses(self, now: float) -> list[Command]:
        """Gives up responses without progress; audio that was sent is still played."""
        commands: list[Command] = []
        # Reset first: response_done may request a response that is owed.
        self.requested = self._cancel_on_start = False
        self.progress = now
        for response_id, response in list(self._responses.items()):
            if not response.cut:
                cancel = realtime_events.cancel(response_id, self.event_id())
                commands += self._to_model(cancel)
            _remember(self._cut_responses, response_id, None)
            commands += self.response_done(response_id, now, completed=False)
        return commands

    # --- the caller interrupts ---

    def interrupt(
        self,
        by: str,
        now: float,
        *,
        cancels: bool,
        answers: bool = False,
        only: str | None = None,
    ) -> list[Command]:
        """Silences the agent at once: sends a clear, and a fence behind it.

        Cuts everything the caller may still hear, whether or not the model is still
        generating it: Twilio's queue outlives the response. Settled when the fence
        returns.

        - `cancels`: the server cancels its own response by itself.
        - `answers`: the server responds to the caller by itself, so no response is
          owed.
        - `only`: the response to stop. The clear removes the audio of all responses, so
          the others are requested again.
        """
        commands: list[Command] = []
        self.progress = now
        self.broken_off = False
        heard_now = self.playback.audible(now)
        live = {key: item for key, item in self._items.items() if item.received}
        running = {i: r for i, r in self._responses.items() if not r.cut}
        if live:
            fence = self.playback.fence(now)
            commands.append(ToCaller(self._out.clear()))
            commands.append(ToCaller(self._out.mark(fence)))
            self._cuts.append(Cut(fence, now, live))
            while len(self._cuts) > MAX_CUTS:
                commands += self.give_up_fence(now)
        for response_id, response in running.items():
            response.cut = True
            if not cancels:
                cancel = realtime_events.cancel(response_id, self.event_id())
                commands += self._to_model(cancel)
        self._remember_cut(running, live)
        self._items = {}
        cut = {*running, *(item.response_id for item in live.values())}
        others_cut = only is not None and cut != {only}
        self._wanted = others_cut or (self._wanted and not answers)
        self._cancel_on_start = self._cancel_on_start or (
            self.requested and only is None
        )
        if live:
            item_id, content_index = (
                heard_now if heard_now in live else next(iter(live))
            )
            commands.append(Interrupted(item_id, content_index))
        if live or running:
            data: dict[str, Value] = {
                "by": by,
                "items": len(live),
                "responses": len(running),
            }
            commands.append(Note("interrupted", data))
        return commands + self.request_if_free(now)

    def _remember_cut(
        self, running: Iterable[str], live: Mapping[Key, SpokenItem]
    ) -> None:
        """From now on, audio and text of these responses and items are late."""
        for response_id in (*running, *(item.response_id for item in live.values())):
            _remember(self._cut_responses, response_id, None)
        for item_id, _ in live:
            _remember(self._cut_items, item_id, None)

    def request_response(self, now: float) -> list[Command]:
        """Requests a response: now, or once the model is free (`request_if_free`)."""
        self._wanted = True
        self.progress = now
        return self.request_if_free(now)

    def request_if_free(self, now: float) -> list[Command]:
        """Requests the response that is owed, if there is one and the model is free."""
        if not self._wanted or self.requested or self._responses or self._cuts:
            return []
        if not self._sessions.has_session or self._stream.is_lost:
            return []
        self._wanted = False
        self.requested = True
        self.progress = now
        return [ToModel(realtime_events.create_response(ANSWER_ID))]

    def want_response(self, now: float) -> None:
        """A response is owed after the one that is active at the server, or about to
        be, though its `response.created` may not have arrived."""
        self.requested = self._cancel_on_start = False
        self._wanted = True
        self.progress = now

    def request_failed(self, now: float) -> list[Command]:
        """The requested response will not come; another may be owed."""
        self.requested = self._cancel_on_start = False
        return self.request_if_free(now)

    def turn_ended(self) -> None:
        """The caller has spoken: the next response answers that, so it is not
        cancelled."""
        self._cancel_on_start = False

    def is_live(self, response_id: str) -> bool:
        """The response is being generated, or some of it may still be heard."""
        response = self._responses.get(response_id)
        if response and not response.cut:
            return True
        return any(item.response_id == response_id for item in self._items.values())

    def counts(self, item_id: str) -> bool:
        """How much of this item the caller hears is counted here: its text in the
        history is the text that was heard, whatever a server shows."""
        if item_id in self._cut_items or item_id in self._heard_items:
            return True
        return any(item_id == key[0] for key in self._items)

    @property
    def plays_bridge_audio(self) -> bool:
        """The caller has not heard all of the bridge's own audio yet."""
        return self.playback.has(BRIDGE_AUDIO)

    @property
    def generating(self) -> bool:
        """A response is owed, requested, or being generated and not cut."""
        if self.requested or self._wanted or not self._responses:
            return self.requested or self._wanted
        return any(not response.cut for response in self._responses.values())

    def mark_echoed(self, name: str, now: float) -> list[Command] | None:
        """A mark came back: settles what it proves. None: no such mark was sent."""
        mark = self.playback.echoed(name, now)
        if mark is None:
            return None
        commands: list[Command] = []
        if self._cuts and mark.name == self._cuts[0].fence:
            cut = self._cuts.popleft()
            commands.append(Note("clear_confirmed", {"seconds": now - cut.at}))
            commands += self._settle(cut)
        return commands + self._settle_heard() + self.request_if_free(now)

    @property
    def fence_due_at(self) -> float | None:
        """When the oldest fence is late."""
        return self._cuts[0].at + FENCE_SECONDS if self._cuts else None

    def give_up_late_fences(self, now: float) -> list[Command]:
        """Gives up every fence that is late."""
        commands: list[Command] = []
        while (due_at := self.fence_due_at) is not None and now >= due_at:
            commands += self.give_up_fence(now)
        return commands

    def give_up_fence(self, now: float) -> list[Command]:
        """The oldest fence is late: settles its cut by the bridge's own clock."""
        late = Note("fence_late", {"fence": self._cuts[0].fence})
        return [late, *self._settle_oldest_cut(math.inf), *self.request_if_free(now)]

    def _settle_oldest_cut(self, ended_at: float) -> list[Command]:
        """Settles the oldest cut, without its fence, at the time of its clear.
        `ended_at`: when the stream ended."""
        cut = self._cuts.popleft()
        self.playback.settle_late_fence(cut.fence, cut.at, ended_at)
        return self._settle(cut)

    def call_ended(self, now: float, *, clears: bool = False) -> list[Command]:
        """Settles all items in the history; sends nothing to the model. `clears`:
        clears Twilio's queue, so that the caller hears nothing more; else Twilio may
        play on."""
        notes: list[Command] = []
        if clears and not self.playback.idle:
            notes.append(ToCaller(self._out.clear()))
        # Each cut at its own time: audio behind a clear was not heard.
        for cut in self._cuts:
            self.playback.settle_late_fence(cut.fence, cut.at, now)
        self.playback.stop(now)
        unsettled = [*(cut.items for cut in self._cuts), self._items]
        self._cuts.clear()
        self._items = {}
        for key, item in ((k, i) for items in unsettled for k, i in items.items()):
            if item.received:
                notes.append(self._record_heard(key, item))
        return notes

    # --- what the model is told ---

    def _settle(self, cut: Cut) -> list[Command]:
        """It is known how much of each cut item was heard: corrects the model's
        memory."""
        heard = {key: self.playback.tally(key).heard for key in cut.items}
        begun = {
            item_id for (item_id, _), size in heard.items() if size >= BYTES_PER_MS
        }
        begun.update(item_id for item_id, _ in heard if item_id in self._heard_items)
        commands: list[Command] = []
        deleted: dict[str, None] = {}
        replaced: dict[str, None] = {}
        for key, item in cut.items.items():
            item_id, content_index = key
            whole = item.is_whole(heard[key])
            if item_id not in begun and item_id not in deleted:
                # Not truncated at 0: the server refuses that until the item has audio.
                deleted[item_id] = None
                delete = realtime_events.delete(item_id, self.event_id())
                commands += self._to_model(delete)
            elif item_id in begun and not whole and item.text_only:
                replaced[item_id] = None
            elif item_id in begun and not whole:
                ms = heard[key] // BYTES_PER_MS
                event_id = self.event_id()
                truncate = realtime_events.truncate(
                    item_id, content_index, ms, event_id
                )
                commands += self._to_model(truncate)
            commands.append(self._record_heard(key, item))
            self.playback.forget(key)
        for item_id in replaced:
            commands += self._replace_text(item_id)
        return commands

    def _settle_heard(self) -> list[Command]:
        """Settles the items that were played to their end."""
        notes: list[Command] = []
        for key, item in list(self._items.items()):
            heard = self.playback.tally(key).heard
            if item.complete and heard == item.received > 0:
                notes.append(self._record_heard(key, item))
                self.playback.forget(key)
                _remember(self._heard_items, key[0], None)
                del self._items[key]
        return notes

    def _forget_unsent(self, response: Response) -> list[Command]:
        """Deletes the items of a cut response that the caller heard nothing of: no
        audio of them was sent."""
        commands: list[Command] = []
        for item_id in response.messages:
            if item_id not in self._cut_items and item_id not in self._heard_items:
                _remember(self._cut_items, item_id, None)
                delete = realtime_events.delete(item_id, self.event_id())
                commands += self._to_model(delete)
        return commands

    def _replace_text(self, item_id: str) -> list[Command]:
        """Replaces the text of an item in the model's memory by what was heard of all
        its parts, once that is in the history."""
        item = self._history.get(item_id)
        commands: list[Command] = []
        if item is not None and item.text:
            new = realtime_events.message(
                "assistant", item.text, self.event_id(), after=item_id
            )
            commands += self._to_model(new)
        delete = realtime_events.delete(item_id, self.event_id())
        return commands + self._to_model(delete)

    def _record_heard(self, key: Key, item: SpokenItem) -> Note:
        """Writes into the history what was heard of an item."""
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
        heard_words = item.heard(heard)
        self._history.said(key[0], heard_words, words, cut=cut)
        return Note("said", data, {"generated": words, "heard": heard_words})

    # --- the session, or the stream, is lost ---

    def model_lost(self, now: float, *, tools: bool) -> list[Command]:
        """The session is lost, or was left: ends its responses. Twilio still plays the
        queued audio, and the next session continues after it. `tools`: a
        tool is running, and its result will request the response that follows a tool
        call."""
        running = [it for it in self._responses.values() if not it.cut]
        begun = {key for key, item in self._items.items() if not item.complete}
        self.broken_off = self.broken_off or any(it.sent_audio for it in running)
        wanted = any(not (it.called_tool and tools) for it in running)
        self._wanted = (
            self._wanted or wanted or (self.requested and not self._cancel_on_start)
        )
        self.requested = self._cancel_on_start = False
        self.progress = now
        for key in begun:
            self._items[key].words.end_at(self._items[key].received)
        commands: list[Command] = []
        for response_id in list(self._responses):
            commands += self.response_done(response_id, now)
            # A session that was left, not lost, may still send parts of the response.
            _remember(self._cut_responses, response_id, None)
        for item in self._items.values():
            item.text_only = True
        # Marks incomplete items as cut: they have no end that the caller could hear.
        for item_id, _ in begun:
            item_ = self._history.get(item_id)
            if item_ is not None:
                item_.cut = True
        return commands

    def settle_cuts(self, now: float) -> list[Command]:
        """Another session is about to be given the history: settles all cuts, without
        waiting for their fences."""
        commands: list[Command] = []
        while self._cuts:
            commands += self.give_up_fence(now)
        self.progress = now
        return commands

    def stream_lost(self, now: float) -> list[Command]:
        """The stream is lost, with the audio queued at Twilio: settles what was heard
        until now."""
        # First each cut at the time of its clear: audio behind it was not heard.
        settled: list[Command] = []
        while self._cuts:
            settled += self._settle_oldest_cut(now)
        self.playback.stop(now)
        running = {i: r for i, r in self._responses.items() if not r.cut}
        live = {key: item for key, item in self._items.items() if item.received}
        self._items = {}
        broken_off = any(response.sent_audio for response in running.values())
        self._wanted = (
            self._wanted or self.requested or (bool(running) and not broken_off)
        )
        commands: list[Command] = []
        for response_id, response in running.items():
            response.cut = True
            cancel = realtime_events.cancel(response_id, self.event_id())
            commands += self._to_model(cancel)
        self._remember_cut(running, live)
        self.broken_off = self.broken_off or broken_off or self._is_unheard(live)
        self._cancel_on_start = self.requested
        return commands + settled + self._settle(Cut("", now, live))

    def new_stream(
        self, out: twilio_messages.OutboundMessages, playback: Playback, now: float
    ) -> None:
        """Sends to this stream from now on."""
        self._out, self.playback = out, playback
        self.progress = now

    def playing(self, now: float) -> list[Playing]:
        """Parts of items whose audio is on its way to the caller, in order."""
        parts = [
            self._playing(key, item, cut.at, cut=True)
            for cut in self._cuts
            for key, item in cut.items.items()
        ]
        parts += [self._playing(key, it, now) for key, it in self._items.items()]
        return [part for part in parts if part.received]

    def _playing(
        self, key: Key, item: SpokenItem, at: float, *, cut: bool = False
    ) -> Playing:
        """The part as it was heard at `at`, by the bridge's own clock."""
        ahead = self.playback.ahead(key, self.playback.heard_by(at))
        return Playing(
            id=key[0],
            words=tuple(item.words.pieces),
            received=item.received,
            heard=max(item.received - ahead, 0),
            complete=item.complete,
            cut=cut,
        )

    def _is_unheard(self, items: Mapping[Key, SpokenItem]) -> bool:
        """Some audio of these items was not heard."""
        return any(
            self.playback.tally(key).heard < item.received
            for key, item in items.items()
        )

    # --- helpers ---

    def _to_model(self, text: str) -> list[Command]:
        return [ToModel(text)] if self._sessions.has_session else []

    def _item(self, item_id: str, content_index: int, response_id: str) -> SpokenItem:
        key = (item_id, content_index)
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = SpokenItem(response_id)
            if len(self._items) > MAX_OPEN:
                oldest = next(iter(self._items))
                del self._items[oldest]
                self.playback.forget(oldest)
        return item

    def _is_late(self, response_id: str, item_id: str) -> bool:
        return (
            self._stream.is_lost
            or response_id in self._cut_responses
            or item_id in self._cut_items
        )

    def event_id(self) -> str:
        """A new id for each event: an error names the event that it is about."""
        self._event_serial += 1
        return f"bridge_{self._event_serial}"


def _remember(
    memory: dict[str, T], key: str, value: T, most: int = MAX_REMEMBERED
) -> None:
    """Adds an entry; beyond `most` the oldest is forgotten, whatever a server sends."""
    memory[key] = value
    if len(memory) > most:
        del memory[next(iter(memory))]
