"""The record of what was heard, against what was heard, when the stream and the session
are lost in any order, too.

The world is that of test_heard_position.py. There, the model's belief is compared with
the truth; here, the ms and the words of the record (`said`, and the history).
HEARD_POSITION_EXAMPLES=2000 searches harder than `make test` does.
"""

import base64
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import precondition, rule

from bridge.core.commands import Command, Dial, Note
from bridge.core.inputs import Dialled, ModelLost, StreamLost
from bridge.core.playback import MARK_BYTES
from bridge.sim.ruler import read_ruler, ruler
from bridge.sim.twilio.playout import Playout
from tests.core import test_heard_position
from tests.core.phone import MULAW_SESSION, asks, notes, to_model

MOST_LOSSES = 3
"""A call whose session, or stream, is lost again and again ends: test_lost_model.py."""

UNNOTICED_MS = MARK_BYTES / 8
"""Of a stream that was broken before this was noticed, what was heard is known to one
mark."""


@dataclass
class Part(test_heard_position.SpokenItem):
    """One content part of an item."""

    item: int = 0
    index: int = 0
    words: list[tuple[int, str]] = field(default_factory=list)
    """(bytes of audio before the word, word)."""
    complete: bool = False
    cut: bool = False
    said: list[Note] = field(default_factory=list)
    lost: float | None = None
    """It was settled without a fence: ms that its record may be wrong by."""

    @property
    def name(self) -> str:
        return f"item{self.item}"


class RecordWorld(test_heard_position.World):
    """Words, items of several parts; the session or the stream may be lost."""

    items: list[Part]  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.earlier: list[Playout] = []
        """Twilio's buffers of the streams that were lost."""
        self.model_losses = self.line_losses = 0
        self.broken = False
        self.losing: float | None = None
        self.replaced: list[str] = []

    # --- the model ---

    def new_item(self) -> None:
        self.add_part(self.items[-1].item + 1 if self.items else 1, 0)
        item: dict[str, Any] = {"id": self.items[-1].name, "type": "message"}
        response = f"r{self.response}"
        self.event("response.output_item.added", response_id=response, item=item)
        item |= {"role": "assistant", "content": []}
        self.event("conversation.item.added", item=item)

    def add_part(self, item: int, index: int) -> None:
        part = Part(len(self.items) + 1, item=item, index=index)
        part.generated = ruler(part.number, 20_000)
        self.items.append(part)

    @precondition(lambda self: self.open)
    @rule()
    def goes_on_with_another_part(self) -> None:
        last = self.items[-1]
        self.end_item()
        self.add_part(last.item, last.index + 1)

    @precondition(lambda self: self.open)
    @rule()
    def writes_ahead(self) -> None:
        """Text may be ahead of its audio."""
        part = self.items[-1]
        word = f"w{part.number}.{len(part.words)} "
        part.words.append((part.sent, word))
        self.send_part("response.output_audio_transcript.delta", delta=word)

    def delta(self, ms: int) -> None:
        self.sounded = True
        part = self.items[-1]
        self.writes_ahead()
        audio = part.generated[part.sent : part.sent + 8 * ms]
        if not audio:
            return  # a very long item
        part.sent += len(audio)
        payload = base64.b64encode(audio).decode()
        self.send_part("response.output_audio.delta", delta=payload)

    def end_item(self) -> None:
        self.items[-1].complete = not self.items[-1].cut
        self.send_part("response.output_audio.done")

    def send_part(self, kind: str, **fields: Any) -> None:
        part = self.items[-1]
        self.event(
            kind,
            response_id=f"r{self.response}",
            item_id=part.name,
            content_index=part.index,
            **fields,
        )

    def event(self, type: str, **fields: Any) -> None:
        if type == "input_audio_buffer.speech_started":
            self.cuts()
        super().event(type, **fields)

    def cuts(self) -> None:
        """What the model has not completed by now, it does not complete."""
        for part in self.items:
            part.cut = part.cut or not part.complete

    # --- the session, or the stream, is lost ---

    @precondition(lambda self: self.model_losses < MOST_LOSSES)
    @rule()
    def the_session_is_lost(self) -> None:
        """Another one is there at once."""
        self.model_losses += 1
        self.gives(ModelLost(self.connection, "closed"))

    @precondition(lambda self: self.line_losses < MOST_LOSSES)
    @rule(unnoticed=st.sampled_from([0.0, 0.1, 3.0]), away=st.sampled_from([0.0, 2.0]))
    def the_stream_is_lost(self, unnoticed: float, away: float) -> None:
        """It breaks, this is noticed, and the caller comes back on another stream."""
        self.line_losses += 1
        self.broken = True
        self.twilio.end(self.now)
        self.wire.clear()
        self.run(unnoticed)
        self.losing = UNNOTICED_MS if unnoticed else 0.0
        self.gives(StreamLost())
        self.losing = None
        self.cuts()
        if self.open:
            self.end_item()
            self.end_response("cancelled")
        self.run(away)
        self.earlier.append(self.twilio)
        self.twilio = Playout(self.phase)
        self.wire.clear()
        self.broken = False
        self.sid += "Z"
        self.began, self.next_frame = self.now, self.now + test_heard_position.FRAME
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"callSid": "CA", "mediaFormat": form}
        self.hear({"event": "start", "streamSid": self.sid, "start": start})

    def send(self, link: Any, side: str, message: dict[str, Any]) -> None:
        if not self.broken:
            super().send(link, side, message)

    # --- what the record says ---

    def obey(self, commands: list[Command]) -> None:
        super().obey(commands)
        for dial in [it for it in commands if isinstance(it, Dial)]:
            self.cuts()
            self.open = False
            self.gives(Dialled(dial.connection))
            self.event("session.updated", session=MULAW_SESSION)
        estimated = bool(notes(commands, "fence_late"))
        for note in notes(commands, "said"):
            self.was_said(note, estimated)
        for event in to_model(commands):
            if event["type"] == "conversation.item.create":
                self.was_told(event)
        if asks(commands) and not self.open:
            self.begins_to_answer()

    def was_said(self, note: Note, estimated: bool) -> None:
        place = note.data["item"], note.data["content_index"]
        [part] = [it for it in self.items if (it.name, it.index) == place]
        part.said.append(note)
        part.lost = self.losing
        if estimated:
            # Without its fence, a cut is known to a round trip; on a stream that was
            # broken before this was noticed, to one mark more.
            part.lost = 1000 * self.round_trip + (UNNOTICED_MS if self.broken else 0)

    def was_told(self, event: dict[str, Any]) -> None:
        """A new session gets an item as text and shows it; or such an item is
        replaced."""
        item = event["item"]
        if item["role"] != "assistant":
            return
        if "previous_item_id" not in event:
            self.event("conversation.item.added", item=item)
            return
        old = event["previous_item_id"]
        assert old not in self.replaced, "replaced twice"
        self.replaced.append(old)
        known = self.talk.history.get(old)
        assert known is not None and item["content"][0]["text"] == known.text

    def remember(self, event: dict[str, Any]) -> None:
        """Only the record is compared here."""

    def teardown(self) -> None:
        if not hasattr(self, "items"):
            return
        if self.open:
            self.has_answered()
        self.run(1.5 + self.round_trip)  # settle what is under way
        self.run(self.twilio.buffered(self.now) / 8000 + 0.5 + self.round_trip)
        truth: dict[int, float] = {}
        for stream in (*self.earlier, self.twilio):
            for number, ms in read_ruler(stream.heard.audio(self.now)).heard_ms.items():
                truth[number] = truth.get(number, 0.0) + ms
        for part in self.items:
            self.check_ms(part, truth.get(part.number, 0.0))
            self.check_words(part, truth.get(part.number, 0.0))
        for name in {part.name for part in self.items}:
            said = [it for part in self.items if part.name == name for it in part.said]
            known = self.talk.history.get(name)
            texts = [str(note.private["heard"]) for note in said]
            assert known is not None and sorted(known.text.split()) == sorted(
                "".join(texts).split()
            )

    def check_ms(self, part: Part, truth: float) -> None:
        assert len(part.said) <= 1, "recorded twice"
        assert part.said or truth == 0.0 or not part.sent, "never recorded"
        for note in part.said:
            heard = note.data["heard_ms"]
            assert isinstance(heard, int)
            over, under = self.tolerance, self.tolerance
            if part.lost is not None:
                over += part.lost
                # What was heard while the last messages were on their way is unknown.
                under += UNNOTICED_MS + 1000 * self.round_trip
            assert truth - under <= heard <= truth + over, (part, truth)

    def check_words(self, part: Part, truth: float) -> None:
        for note in part.said:
            heard = str(note.private["heard"])
            words = "".join(word for _, word in part.words)
            assert words.startswith(heard)
            if part.complete and note.data["heard_ms"] == note.data["received_ms"]:
                assert heard == words, "a word that was heard is lost"
            over = self.tolerance + (part.lost or 0.0)
            for start, word in part.words:
                silent = start >= part.sent and not part.complete
                if silent or start / 8 >= truth + over:
                    assert word.strip() not in heard.split(), "nobody heard it"


RecordWorld.TestCase.settings = test_heard_position.SEARCH
TestHeardRecord = pytest.mark.timeout(1800)(RecordWorld.TestCase)
