"""Reads a trace into a CallView: replays it, and notes what each step shows.

It decides nothing about a call: what was heard and when is what the core's own ledger
says in the replay (core/playback.py).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import msgspec

from bridge.audio import g711
from bridge.audio.pauses import Pauses
from bridge.core import UNREADABLE, commands, inputs, realtime_events, twilio_messages
from bridge.core.agent_speech import BRIDGE_AUDIO, WAITING_SOUND
from bridge.core.playback import Key, Playback
from bridge.core.transcript import ItemTranscript
from bridge.core.word_positions import Pace, WordPositions
from bridge.picture.audio_track import StreamTrack
from bridge.picture.view import (
    CallerTurn,
    CallView,
    Event,
    Gap,
    HeardRun,
    ModelResponse,
    Part,
    Tool,
    Word,
)
from bridge.telemetry import trace

OTHER_SOUND = {BRIDGE_AUDIO: "tones", WAITING_SOUND: "waiting sound"}

KINDS = {it: commands.kind_of(it.__name__) for it in get_args(commands.Command)}
"""How a trace names each command."""

SHOWN = frozenset(
    {
        "conversation.item.truncate",
        "conversation.item.delete",
        "response.cancel",
        "response.create",
    }
)
"""Client events that a picture shows. The others are audio, texts and settings."""


def view(path: Path) -> CallView:
    """The call of a trace, of which the end may be missing. trace.TraceFormatError:
    this version cannot replay it. OSError: it cannot be read."""
    reader = _Reader()
    try:
        for step in trace.steps(path):
            reader.take(step)
    except (*UNREADABLE, KeyError, TypeError) as error:
        kind = type(error).__name__
        text = f"A line of the trace is of another version, or damaged ({kind})."
        raise trace.TraceFormatError(text) from None
    return reader.finish()


@dataclass(slots=True)
class _Spoken:
    """One item while it is read. Times are seconds of the bridge's clock."""

    part: Part
    at: float
    words: ItemTranscript = field(default_factory=ItemTranscript)
    pauses: Pauses = field(default_factory=Pauses)
    payloads: list[str] = field(default_factory=list)
    received: int = 0
    said: tuple[str, str] | None = None
    """(generated, heard) texts, once it is known what was heard."""

    def place_words(self) -> list[Word]:
        """Its words, with the position of each in its audio."""
        generated, heard = self.said or (self.words.all, "")
        pieces = self.words.pieces if self.words.all == generated else [(0, generated)]
        placed = WordPositions(
            pieces, self.pauses.find(), self.received, Pace(), whole=True
        ).placed()
        words, chars = [], 0
        for byte, word in placed:
            # A word is heard if it ends before the end of the heard text.
            chars += len(word)
            is_heard = chars - (len(word) - len(word.rstrip())) <= len(heard)
            words.append(Word(byte / g711.BYTES_PER_MS, word, is_heard))
        return words


class _Reader:
    """Collects a CallView from the steps of a replay."""

    def __init__(self) -> None:
        self._view = CallView()
        self._streams: list[StreamTrack] = []
        self._playback: Playback | None = None
        self._spoken: dict[Key, _Spoken] = {}
        self._responses: dict[str, ModelResponse] = {}
        self._turns: dict[str, CallerTurn] = {}
        self._tools: dict[str, Tool] = {}
        self._failed: list[str] = []
        self._agent = ""
        self._requested_at: float | None = None
        self._wanted_at: float | None = None
        self._began_at: float | None = None
        self._last_at = 0.0
        self._expected: deque[commands.Command] = deque()

    # --- one line after the other ---

    def take(self, step: trace.Step) -> None:
        line, at = step.line, float(step.line["at"])
        self._last_at = at
        if self._began_at is None:
            self._began_at = at
            self._view.has_audio = step.conversation.playback is not None
            self._view.redacted = list(line.get("redacted", ()))
        if "session" in line:
            self._note(msgspec.convert(line["session"], commands.Note), at)
        if "out" in line and not self._view.redacted:
            self._compare(line["out"])
        if step.given is None:
            return
        self._expected += step.commands
        self._input(step.given, at)
        for command in step.commands:
            self._command(command, at)
        playback = step.conversation.playback
        if playback is not None and playback is not self._playback and self._streams:
            self._playback = playback
            playback.runs = self._streams[-1].runs

    def _compare(self, recorded: dict[str, Any]) -> None:
        """Whether this version decides as the one that has written the trace."""
        now = self._expected.popleft() if self._expected else None
        kind = recorded.get("kind")
        same = now is not None and KINDS[type(now)] == kind
        if not same or recorded.get("text") != getattr(now, "text", None):
            self._view.replays_as_recorded = False

    def _input(self, given: inputs.Input, at: float) -> None:
        match given:
            case inputs.FromPhone(twilio_messages.Media(media=media)):
                if self._streams:
                    self._streams[-1].frame(media.timestamp, media.payload, at)
            case inputs.FromPhone(twilio_messages.Mark(mark=mark)):
                self._event(at, "mark", {"name": mark.name})
            case inputs.FromModel(_, event):
                self._model_event(event, at)
            case inputs.Send(text):
                self._tool_output(text, at)
            case inputs.SetRules(rules):
                self._view.rules = _plain(msgspec.to_builtins(rules))
            case inputs.Begin():
                self._begin(at, "", "")
            case inputs.EndCall(by, why):
                self._event(at, "end_requested", {"by": by, "why": why})
            case inputs.Interrupt(by, _):
                self._event(at, "interrupt_requested", {"by": by})
            case _:
                pass

    def _model_event(self, event: realtime_events.KnownEvent, at: float) -> None:
        match event:
            case realtime_events.AudioDelta():
                key = (event.item_id, event.content_index)
                spoken = self._item(key, event.response_id, at)
                if not spoken.received:
                    spoken.at = at
                size = g711.payload_bytes(event.delta)
                spoken.pauses.add(event.delta, size)
                spoken.payloads.append(event.delta)
                spoken.received += size
                response = self._responses.get(event.response_id)
                if response and response.audio_ms is None:
                    response.audio_ms = at
            case realtime_events.TranscriptDelta():
                key = (event.item_id, event.content_index)
                spoken = self._item(key, event.response_id, at)
                spoken.words.add(event.delta, spoken.received)
            case realtime_events.SpeechStarted(item_id):
                self._turns[item_id] = CallerTurn(item_id, at)
                self._view.turns.append(self._turns[item_id])
            case realtime_events.SpeechStopped(item_id):
                self._wanted_at = at
                if turn := self._turns.get(item_id):
                    turn.end_ms = at
            case realtime_events.CallerTranscript(item_id, text):
                if turn := self._turns.get(item_id):
                    turn.text, turn.text_ms = text, at
            case realtime_events.ResponseCreated(head):
                response = ModelResponse(head.id, self._agent, at, self._requested_at)
                response.wanted_ms = self._wanted_at
                self._requested_at = self._wanted_at = None
                self._responses[head.id] = response
            case realtime_events.ResponseDone(head):
                self._response_done(head, at)
            case realtime_events.ItemAdded(item) | realtime_events.ItemDone(item):
                self._tool_call(item, at)
            case realtime_events.SessionUpdated():
                turns = msgspec.to_builtins(event.turns)
                self._view.turn_detection = _plain(turns)
            case _:
                pass

    def _item(self, key: Key, response_id: str, at: float) -> _Spoken:
        if key not in self._spoken:
            part = Part(key[0], "agent", self._agent, response_id)
            self._spoken[key] = _Spoken(part, at)
        return self._spoken[key]

    def _response_done(self, head: realtime_events.ResponseHead, at: float) -> None:
        response = self._responses.get(head.id)
        if response is None:
            return
        response.done_ms, response.status = at, head.status or ""
        if head.why:
            response.status = f"{response.status} ({head.why})"
        if head.used:
            response.input_tokens = head.used.input_tokens or 0
            response.output_tokens = head.used.output_tokens or 0

    def _tool_call(self, item: realtime_events.ConversationItem, at: float) -> None:
        if item.type != "function_call" or not item.call_id:
            return
        tool = self._tools.get(item.call_id)
        if tool is None:
            tool = self._tools[item.call_id] = Tool(item.call_id, "", at)
            tool.agent = self._agent
        if tool.done_ms is None:
            tool.called_ms = at
        tool.name = item.name or tool.name
        tool.arguments = item.arguments or tool.arguments

    def _tool_output(self, text: str, at: float) -> None:
        try:
            item = msgspec.json.decode(text, type=dict[str, Any]).get("item")
        except UNREADABLE:
            return  # the core has answered it
        if not isinstance(item, dict) or item.get("type") != "function_call_output":
            return
        if tool := self._tools.get(str(item.get("call_id"))):
            tool.output, tool.done_ms = str(item.get("output", "")), at
            if tool.name in self._failed:
                self._failed.remove(tool.name)
                tool.failed = True
            self._wanted_at = at

    # --- what follows from it ---

    def _command(self, command: commands.Command, at: float) -> None:
        match command:
            case commands.ToCaller(text):
                self._to_caller(text, at)
            case commands.ToModel(text):
                self._to_model(text, at)
            case commands.Started(start):
                self._begin(at, start.start.call_sid, start.stream_sid)
            case commands.Note():
                self._note(command, at)
            case commands.End(by, why):
                self._view.ended_by, self._view.ended_why = by, why
                self._event(at, "end", {"by": by, "why": why})
            case commands.Dial(connection, seconds):
                data = {"connection": connection, "in_seconds": seconds}
                self._event(at, "dial_model", data)
            case _:
                pass

    def _begin(self, at: float, call_sid: str, stream_sid: str) -> None:
        if not self._streams:
            self._view.call_sid, self._view.stream_sid = call_sid, stream_sid
        self._streams.append(StreamTrack(at))
        self._event(at, "stream", {"stream_sid": stream_sid})

    def _to_caller(self, text: str, at: float) -> None:
        message = msgspec.json.decode(text)
        match message:
            case {"event": "media", "media": {"payload": str(payload)}}:
                self._streams[-1].sent += g711.sound([payload])
            case {"event": "clear"}:
                self._event(at, "clear")
            case _:
                pass  # marks: what comes back is shown

    def _to_model(self, text: str, at: float) -> None:
        if text.startswith('{"type":"input_audio_buffer.append"'):
            return  # 50 a second
        message = msgspec.json.decode(text)
        kind = message.get("type")
        if kind == "response.create":
            self._requested_at = at
        if kind in SHOWN:
            names = ("item_id", "audio_end_ms", "response_id")
            data = {name: message[name] for name in names if name in message}
            self._event(at, kind, data)

    def _note(self, note: commands.Note, at: float) -> None:
        self._event(at, note.name, dict(note.data), " ".join(note.private.values()))
        match note.name:
            case "said" | "said_late":
                key = (str(note.data["item"]), int(note.data["content_index"] or 0))
                spoken = self._item(key, "", at)
                spoken.said = note.private["generated"], note.private["heard"]
                spoken.part.cut = bool(note.data["cut"])
            case "handoff":
                self._handoff(str(note.data["agent"]), str(note.data["to"]))
            case "tool_failed":
                self._failed.append(str(note.data["tool"]))
            case "usage":
                if last := next(reversed(self._responses.values()), None):
                    last.cost = float(note.data["cost"] or 0)
            case "stream_lost" | "model_lost":
                self._view.gaps.append(Gap(note.name.removesuffix("_lost"), at))
            case "stream_back" | "model_back":
                kind = note.name.removesuffix("_back")
                for gap in self._view.gaps:
                    if gap.kind == kind and gap.end_ms is None:
                        gap.end_ms = at
            case _:
                pass

    def _handoff(self, before: str, to: str) -> None:
        """Another agent is in charge. The first agent's name is known only now."""
        if not self._agent:
            for spoken in self._spoken.values():
                spoken.part.agent = before
            for response in self._responses.values():
                response.agent = before
            for tool in self._tools.values():
                tool.agent = before
        self._agent = to

    def _event(
        self, at: float, kind: str, data: Mapping[str, Any] = {}, text: str = ""
    ) -> None:
        self._view.events.append(Event(at, kind, dict(data), text))

    # --- the whole ---

    def finish(self) -> CallView:
        """Converts all times to ms of the call, and puts the audio in its place."""
        view = self._view
        view.responses = list(self._responses.values())
        view.tools = list(self._tools.values())
        zero_ms = self._streams[0].offset_ms if self._streams else 0.0
        shifts = [stream.offset_ms - zero_ms for stream in self._streams]
        self._place_parts(shifts)
        _to_ms(view, zero_ms)
        ends = [
            s.end_ms + shift for s, shift in zip(self._streams, shifts, strict=True)
        ]
        ends.append(1000 * self._last_at - zero_ms if self._streams else 0.0)
        view.length_ms = max(ends)
        for stream, shift in zip(self._streams, shifts, strict=True):
            is_last = stream is self._streams[-1] and not self._line_is_lost
            until_ms = view.length_ms - shift if is_last else 0.0
            silences = stream.silences(until_ms)
            view.silences += [(b + shift, e + shift) for b, e in silences]
        if view.has_audio:
            caller, agent = (bytearray(b"\xff") * int(view.length_ms * 8) for _ in "12")
            for stream, shift in zip(self._streams, shifts, strict=True):
                stream.put_caller(caller, shift)
                stream.put_heard(agent, shift)
            view.caller, view.agent = bytes(caller), bytes(agent)
        return view

    @property
    def _line_is_lost(self) -> bool:
        return any(it.kind == "stream" and it.end_ms is None for it in self._view.gaps)

    def _place_parts(self, shifts: list[float]) -> None:
        """Sets what was heard of each item, and makes parts of the bridge's sounds."""
        view = self._view
        heard_bytes: dict[Key, int] = {}
        for stream, shift_ms in zip(self._streams, shifts, strict=True):
            for run in stream.heard:
                spoken = self._spoken.get(run.key)
                audio = bytes(stream.sent[run.start : run.end])
                if spoken is None or run.key in OTHER_SOUND:
                    part = Part(run.key[0], OTHER_SOUND.get(run.key, "recording"))
                    part.audio, begin = audio, 0
                    part.generated_ms = len(audio) / g711.BYTES_PER_MS
                    view.parts.append(part)
                else:
                    part, begin = spoken.part, heard_bytes.get(run.key, 0)
                    heard_bytes[run.key] = begin + len(audio)
                bounds = (begin, begin + len(audio))
                of_item = (it / g711.BYTES_PER_MS for it in bounds)
                part.runs = [*part.runs, HeardRun(run.at_ms + shift_ms, *of_item)]
                part.heard_ms += len(audio) / g711.BYTES_PER_MS
        view.parts += self._spoken_parts()
        view.parts.sort(key=lambda it: it.arrived_ms)
        for part in view.parts:
            response = self._responses.get(part.response)
            heard_from = part.heard_from_ms
            if response and heard_from is not None:
                earlier = response.sound_ms
                if earlier is None or heard_from < earlier:
                    response.sound_ms = heard_from

    def _spoken_parts(self) -> Iterator[Part]:
        zero_ms = self._streams[0].offset_ms if self._streams else 0.0
        for spoken in self._spoken.values():
            part = spoken.part
            part.arrived_ms = 1000 * spoken.at - zero_ms
            part.audio = g711.sound(spoken.payloads)
            part.generated_ms = spoken.received / g711.BYTES_PER_MS
            part.words = spoken.place_words()
            yield part


def _to_ms(view: CallView, zero_ms: float) -> None:
    """Converts the moments of the bridge's clock, in seconds, to ms of the call."""

    def ms(at: float) -> float:
        return 1000 * at - zero_ms

    def maybe(at: float | None) -> float | None:
        return None if at is None else ms(at)

    for turn in view.turns:
        turn.begin_ms, turn.end_ms = ms(turn.begin_ms), maybe(turn.end_ms)
        turn.text_ms = maybe(turn.text_ms)
    for response in view.responses:
        response.created_ms = ms(response.created_ms)
        response.requested_ms = maybe(response.requested_ms)
        response.wanted_ms = maybe(response.wanted_ms)
        response.audio_ms = maybe(response.audio_ms)
        response.done_ms = maybe(response.done_ms)
    for tool in view.tools:
        tool.called_ms, tool.done_ms = ms(tool.called_ms), maybe(tool.done_ms)
    for event in view.events:
        event.at_ms = ms(event.at_ms)
    for gap in view.gaps:
        gap.begin_ms, gap.end_ms = ms(gap.begin_ms), maybe(gap.end_ms)


def _plain(values: Any) -> dict[str, Any]:
    """The entries that are plain values, without audio and long texts."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) < 400)
        or value is None
    }
