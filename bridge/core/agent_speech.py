"""The agent's speech on its way to the caller: responses, barge-ins, audio and marks.

PURE. responses.py says which response may be requested, spoken_items.py what the caller
heard; this module puts both together and sends.
"""

from bridge.audio import g711
from bridge.core import realtime_events, realtime_requests, twilio_messages
from bridge.core.commands import (
    Command,
    Interrupted,
    Note,
    ToCaller,
    Value,
    limit_hit,
)
from bridge.core.history import History, Playing
from bridge.core.limits import Bounds
from bridge.core.playback import Key, Playback
from bridge.core.realtime_requests import EventIds
from bridge.core.responses import MAX_OPEN, Response, remember
from bridge.core.sessions import Sessions
from bridge.core.speech import CallSpeech
from bridge.core.spoken_items import SpokenItems
from bridge.core.stream_presence import StreamPresence

BRIDGE_AUDIO: Key = ("", -1)
"""Playback's key for the bridge's own audio (tones). No item of the model has this key:
its parts count from 0, though its id may be empty."""

WAITING_SOUND: Key = ("", -2)
"""The same for the sound that a waiting caller hears."""

RECORDING_PART_BYTES = 9999
"""A long payload is cut into messages from parts of this size: each cut copies the
rest. A multiple of 3."""


class AgentSpeech(CallSpeech):
    """The agent's responses on one stream.

    Audio is received, sent between marks, then either heard (a mark returns) or cut
    (clear, and a fence behind it).

    Invariants:
    - Audio and text that arrive after their response or item was cut are dropped.
    - No response is requested before the model knows what was heard: a fence has
      returned, or is late (`tell_heard`).

    `playback` must be given every frame and mark by the caller's side.
    """

    def __init__(
        self,
        history: History,
        sessions: Sessions,
        stream: StreamPresence,
        ids: EventIds,
        bounds: Bounds,
    ) -> None:
        super().__init__(history, sessions, stream, ids)
        self._ahead_seconds = bounds.audio_ahead_seconds
        self._out = twilio_messages.OutboundMessages("")
        self._items = SpokenItems(history, sessions, ids)
        self._other_audio_ends: float | None = None
        """The waiting sound was sent last: when the audio before it was played. None:
        other audio was sent last."""
        self._waiting_sound_at = 0
        """Position at which the waiting sound begins."""

    @property
    def playback(self) -> Playback:
        """What the caller heard of the stream in use."""
        return self._items.playback

    # --- the model generates ---

    def transcript_delta(
        self, event: realtime_events.TranscriptDelta, now: float
    ) -> None:
        late = self._is_late(event.response_id, event.item_id)
        key = (event.item_id, event.content_index)
        self._items.add_text(key, event.response_id, event.delta, late=late)

    def audio(self, event: realtime_events.AudioDelta, now: float) -> list[Command]:
        """Audio of a response, with the marks it needs; dropped if it was cut."""
        size = g711.payload_bytes(event.delta)
        response = self.responses.get(event.response_id)
        if self._is_late(event.response_id, event.item_id):
            if response:
                remember(response.messages, event.item_id, None, MAX_OPEN)
            return [Note("late_audio", {"item": event.item_id, "bytes": size})]
        self.responses.made_progress(now)
        if self.playback.is_full(self._ahead_seconds, now):
            return self._stop_at_ahead_limit(event.response_id, now)
        if response:
            response.sent_audio = True
        key = (event.item_id, event.content_index)
        self._items.add_audio(key, event.response_id, event.delta, size)
        if self._other_audio_ends is None:
            return self._send(key, event.delta, size, now)
        stop = self.stop_waiting_sound(now)
        return stop + self._send(key, event.delta, size, now)

    def _stop_at_ahead_limit(self, response_id: str, now: float) -> list[Command]:
        """Twilio's queue is full: ends the response here. The audio that was sent is
        played, and the model forgets the rest."""
        self.responses.cut(response_id)
        commands = [limit_hit("audio_ahead"), *self._cancel(response_id)]
        for key, ms in self._items.drop_rest(response_id).items():
            truncate = realtime_requests.truncate(*key, ms, self._ids.next())
            commands += [*self._to_model(truncate), *self.item_done(key, now)]
        return commands

    def play(self, payload: str, now: float) -> list[Command]:
        """The bridge's own audio (base64 mu-law), queued; only a clear stops it."""
        if self.playback.is_full(self._ahead_seconds, now):
            return [limit_hit("audio_ahead")]
        stop = self.stop_waiting_sound(now)
        return stop + self._play(BRIDGE_AUDIO, payload, now)

    def _play(self, key: Key, payload: str, now: float) -> list[Command]:
        self.playback.forget(key)
        size = g711.payload_bytes(payload)
        commands = self._send(key, payload, size, now)
        return commands + self._end_mark(now)

    def play_recording(
        self, item_id: str, payload: str, words: str, now: float
    ) -> list[Command]:
        """A recording in place of words of the agent; an item like any other, which the
        model knows as text."""
        key = (item_id, 0)
        size = g711.payload_bytes(payload)
        self._items.add_recording(key, words, payload, size)
        commands: list[Command] = []
        while payload:
            part, payload = g711.cut_payload(payload, RECORDING_PART_BYTES)
            commands += self._send(key, part, g711.payload_bytes(part), now)
        return commands + self._end_mark(now)

    def play_waiting_sound(self, payload: str, now: float) -> list[Command]:
        """A part of the sound that the caller hears while they wait."""
        if self._other_audio_ends is None:
            self._other_audio_ends = self.playback.queue_ends
            self._waiting_sound_at = self.playback.sent
        return self._play(WAITING_SOUND, payload, now)

    def stop_waiting_sound(self, now: float) -> list[Command]:
        """Clears what Twilio still has of it: no item is cut by that. If the audio
        before it may not have been played, it is played to its end."""
        waiting, self._other_audio_ends = self._other_audio_ends, None
        if waiting is None or self.playback.idle:
            return []
        if self.playback.played < self._waiting_sound_at:
            return []
        fence = self.playback.fence(now)
        return [ToCaller(self._out.clear()), ToCaller(self._out.mark(fence))]

    def probe(self, now: float) -> list[Command]:
        """A bare mark, which Twilio returns at once if no audio is queued."""
        return [ToCaller(self._out.mark(self.playback.probe(now)))]

    def _send(self, key: Key, payload: str, size: int, now: float) -> list[Command]:
        commands: list[Command] = []
        for mark, take in self.playback.plan(key, size, now):
            if mark:
                commands.append(ToCaller(self._out.mark(mark)))
            piece, payload = g711.cut_payload(payload, take)
            commands.append(ToCaller(self._out.media(piece)))
        return commands

    def _end_mark(self, now: float) -> list[Command]:
        mark = self.playback.end_mark(now)
        return [ToCaller(self._out.mark(mark))] if mark else []

    def item_done(self, key: Key, now: float) -> list[Command]:
        if not self._items.complete(key):
            return []
        return self._end_mark(now) or self._items.settle_heard()

    def response_done(
        self, response_id: str, now: float, *, completed: bool = True
    ) -> list[Command]:
        response = self._end_response(response_id)
        commands = self._items.record_late_words(response_id)
        if response and response.is_cut:
            commands += self._items.forget_unsent(response.messages)
            return commands + self.request_if_free(now)
        commands += self.request_if_free(now)
        for key in self._items.end_response(response_id, completed=completed):
            # Not every server sends a `done` event for each item.
            commands += self.item_done(key, now)
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
        """Sends a clear, and a fence behind it.

        Cuts everything the caller may still hear, whether or not the model is still
        generating it: Twilio's queue outlives the response. Settled when the fence
        returns.
        """
        self.broken_off = False
        heard_now = self.playback.audible(now)
        live, running = self._items.live, self.responses.running
        commands = self._clear(now) if live else self.stop_waiting_sound(now)
        for response_id in running if not cancels else ():
            commands += self._cancel(response_id)
        cut = {*running, *(item.response_id for item in live.values())}
        for response_id in cut:
            self.responses.cut(response_id)
        self._items.drop_all(live)
        self.responses.interrupted(answers=answers, only=only, cut=cut, now=now)
        if live and self._sessions.had_session:
            key = heard_now if heard_now in live else next(iter(live))
            commands.append(Interrupted(*key))
        if live or running:
            data: dict[str, Value] = {
                "by": by,
                "items": len(live),
                "responses": len(running),
            }
            commands.append(Note("interrupted", data))
        return commands + self.request_if_free(now)

    def _clear(self, now: float) -> list[Command]:
        self._other_audio_ends = None
        fence = self._items.cut(now)
        clear = [ToCaller(self._out.clear()), ToCaller(self._out.mark(fence))]
        return [*clear, *self._items.settle_lost_fences(now)]

    @property
    def queued(self) -> bool:
        if self.playback.idle:
            return False
        waiting = self._other_audio_ends is not None
        return not (waiting and self.playback.played >= self._waiting_sound_at)

    @property
    def queue_ends(self) -> float:
        if self._other_audio_ends is not None:
            return self._other_audio_ends
        return self.playback.queue_ends

    def is_live(self, response_id: str) -> bool:
        running = response_id in self.responses.running
        return running or self._items.is_live(response_id)

    def counts(self, item_id: str) -> bool:
        return self._items.counts(item_id)

    @property
    def plays_bridge_audio(self) -> bool:
        return self.playback.has(BRIDGE_AUDIO)

    def mark_echoed(self, name: str, now: float) -> list[Command] | None:
        """A mark came back: settles what it proves. None: no such mark was sent."""
        mark = self.playback.echoed(name, now)
        if mark is None:
            return None
        settled = self._items.settle_fence(mark, now) + self._items.settle_heard()
        return settled + self.request_if_free(now)

    @property
    def held_until(self) -> float | None:
        return self._items.held_until

    @property
    def fence_lost_at(self) -> float | None:
        return self._items.fence_lost_at

    def tell_heard(self) -> list[Command]:
        return self._items.tell_heard() if self._sessions.has_session else []

    def give_up_fences(self, now: float) -> list[Command]:
        settled = self._items.settle_lost_fences(now)
        return settled + self.request_if_free(now) if settled else []

    def call_ended(self, now: float, *, clears: bool = False) -> list[Command]:
        clear = clears and not self.playback.idle
        cleared: list[Command] = [ToCaller(self._out.clear())] if clear else []
        return cleared + self._items.call_ended(now)

    # --- the session, or the stream, is lost ---

    def session_lost(self, now: float, *, tools: bool) -> list[Command]:
        """Twilio still plays the queued audio, and the next session continues after
        it."""
        running = self._awaited
        self.broken_off = self.broken_off or any(it.sent_audio for it in running)
        if any(not (it.called_tool and tools) for it in running):
            self.responses.want(now)
        self.responses.session_lost(now)
        begun = self._items.session_lost()
        commands: list[Command] = []
        for response_id in self.responses.ids:
            commands += self.response_done(response_id, now)
            # A session that was left, not lost, may still send parts of the response.
            self.responses.cut(response_id)
        self._items.become_text(begun)
        return commands

    def stream_lost(self, now: float) -> list[Command]:
        """The stream is lost, with the audio queued at Twilio: settles what was heard
        until now."""
        running = self.responses.running
        live = self._items.live
        awaited = self._awaited
        broken_off = any(response.sent_audio for response in awaited)
        self.responses.stream_lost(wants=bool(awaited) and not broken_off, now=now)
        commands: list[Command] = []
        for response_id in running:
            commands += self._cancel(response_id)
        for response_id in (*running, *(item.response_id for item in live.values())):
            self.responses.cut(response_id)
        settled, unheard = self._items.stream_lost(now)
        self.broken_off = self.broken_off or broken_off or unheard
        return commands + settled

    def new_stream(
        self, out: twilio_messages.OutboundMessages, playback: Playback, now: float
    ) -> None:
        """Sends to this stream from now on."""
        self._out, self._items.playback = out, playback
        self._other_audio_ends = None
        self.responses.made_progress(now)

    def playing(self, now: float) -> list[Playing]:
        return self._items.playing(now)

    # --- helpers ---

    @property
    def _awaited(self) -> list[Response]:
        """The responses that are generated and not cut, without interim answers."""
        running = self.responses.running.items()
        return [it for id, it in running if not self.responses.is_interim(id)]

    def _is_late(self, response_id: str, item_id: str) -> bool:
        return (
            self._stream.is_lost
            or self.responses.was_cut(response_id)
            or self._items.is_late(item_id)
        )
