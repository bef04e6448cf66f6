"""What the model is told was heard, against what was heard, in any order of events.

The other end is independent of the core: a Twilio with its own buffer, clock and
network (bridge.sim), and audio that says which item and which millisecond it is. The
core never sees that truth; the test compares with it.
"""

import base64
import heapq
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from bridge.core import realtime_events, twilio_messages
from bridge.core.commands import Command, Switch, ToCaller, ToModel
from bridge.core.conversation import LATE_SECONDS, Conversation
from bridge.core.inputs import Dialled, FromModel, FromPhone, Input, Tick
from bridge.core.rules import Rules
from bridge.core.sessions import FIRST_CONNECTION
from bridge.core.waits import ANSWER_SECONDS
from bridge.sim.ruler import read_ruler, ruler
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.playout import Playout
from tests.core.phone import MULAW_SESSION, payload

FRAME = 0.02
SILENCE = payload(20)
LONGEST_MS = 120_000
"""No item gets longer in the steps of one call; most are much shorter."""

ENCODER = msgspec.json.Encoder()

TOLERANCE_MS = 40
"""The project's own bound (docs/playback.md): the maximum over all items."""

FRAMES_TOLERANCE_MS = 60
"""Against a Twilio that plays whole frames: a begun frame is heard to its end, and a
mark is echoed at the end of its frame."""

JITTER_TOLERANCE_MS = 65
"""Where jitter parts messages that were written together (rare with TCP), a mark may
come back one start piece and one low piece before its audio."""


@dataclass
class SpokenItem:
    """An item as the model knows it."""

    number: int
    generated: bytes = field(default=b"", repr=False)
    sent: int = 0
    truncated_ms: int | None = None
    deleted: bool = False

    @property
    def name(self) -> str:
        return f"item{self.number}"

    @property
    def believed_ms(self) -> float:
        """The position of the last truncate; 0 if deleted, all if neither."""
        if self.deleted:
            return 0.0
        if self.truncated_ms is not None:
            return float(self.truncated_ms)
        return self.sent / 8


@dataclass(order=True)
class Delivery:
    at: float
    order: int
    side: str = field(compare=False)
    message: dict[str, Any] = field(compare=False)


class World(RuleBasedStateMachine):
    """A call in simulated time: the core, a network, a Twilio, a talking model."""

    @initialize(
        up=st.sampled_from([0, 20, 60, 150]),
        down=st.sampled_from([0, 20, 60, 150]),
        jitter=st.sampled_from([0, 10, 80]),
        seed=st.integers(0, 1000),
        phase=st.sampled_from([None, 0.0, 0.007, 0.0193]),
    )
    def place(
        self, up: int, down: int, jitter: int, seed: int, phase: float | None
    ) -> None:
        network = Network(up, down, jitter, seed)
        self.up, self.down = network.up(), network.down()
        self.tolerance = TOLERANCE_MS if phase is None else FRAMES_TOLERANCE_MS
        if jitter > 10:
            self.tolerance = max(self.tolerance, JITTER_TOLERANCE_MS)
        self.round_trip = (up + down + 2 * jitter) / 1000
        self.now = 10.0
        self.began = self.now
        self.next_frame = self.now + FRAME
        self.phase = phase
        self.twilio = Playout(phase)
        self.wire: list[Delivery] = []
        self.order = 0
        self.items: list[SpokenItem] = []
        self.response = 0
        self.open = False
        self.interrupted_at = -1.0
        self.moved_at = self.now
        self.sid = "MZ"
        self.connection = FIRST_CONNECTION
        rules = Rules(resumes_after_noise=False)  # each response is a rule of its own
        self.talk = Conversation(now=self.now, rules=rules)
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"callSid": "CA", "mediaFormat": form}
        self.hear({"event": "start", "streamSid": self.sid, "start": start})
        self.gives(Dialled(FIRST_CONNECTION))
        self.event("session.updated", session=MULAW_SESSION)
        self.run(0.1)

    # --- the model ---

    @precondition(lambda self: not self.open)
    @rule()
    def begins_to_answer(self) -> None:
        self.response += 1
        self.open, self.sounded = True, False
        self.event("response.created", response={"id": f"r{self.response}"})
        self.new_item()

    @precondition(lambda self: self.open)
    @rule(
        ms=st.one_of(st.integers(1, 40), st.integers(100, 700)),
        pieces=st.integers(1, 4),
    )
    def speaks(self, ms: int, pieces: int) -> None:
        for _ in range(pieces):
            self.delta(ms)
            self.run(ms / 4000)  # generated at four times real time

    @precondition(lambda self: self.open)
    @rule()
    def goes_on_with_another_item(self) -> None:
        self.end_item()
        self.new_item()

    @precondition(lambda self: self.open)
    @rule()
    def has_answered(self) -> None:
        if not self.sounded:
            self.delta(20)  # one without a sound is asked for again: test_answers.py
        self.end_item()
        self.end_response("completed")

    @rule(late=st.integers(0, 300))
    def is_interrupted(self, late: int) -> None:
        """The server hears speech and cancels its own response; audio is on the way."""
        self.event("input_audio_buffer.speech_started", item_id="u", audio_start_ms=0)
        if self.open:
            if late:
                self.delta(late)
            self.end_item()
            self.end_response("cancelled")
        self.interrupted_at = self.now
        self.event("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=0)
        self.event("input_audio_buffer.cleared")  # it was a cough

    # --- time passes ---

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.3, 1.1, 3.0]))
    def time_passes(self, seconds: float) -> None:
        if self.open and self.now + seconds > self.moved_at + LATE_SECONDS - 1:
            self.delta(20)  # an answer that stalls is given up: test_answers.py
        self.run(seconds)

    @invariant()
    def the_model_is_told_only_what_it_takes(self) -> None:
        """No truncate is beyond what the model sent, or beyond an earlier truncate."""
        for item in getattr(self, "items", []):
            if item.truncated_ms is not None:
                assert item.truncated_ms <= item.sent / 8

    def teardown(self) -> None:
        if not hasattr(self, "items"):
            return
        if self.open:
            self.has_answered()
        self.run(1.5 + self.round_trip)  # settle what is under way
        unplayed = self.twilio.buffered(self.now) / 8000
        self.run(unplayed + 0.5 + self.round_trip)
        heard = read_ruler(self.twilio.heard.audio(self.now))
        assert heard.in_order and heard.repeated_bytes == 0
        assert heard.lost_bytes == 0, "something in the middle of an item was lost"
        for item in self.items:
            truth = heard.heard_ms.get(item.number, 0.0)
            error = abs(item.believed_ms - truth)
            assert error <= self.tolerance, (
                f"the model believes {item.believed_ms} ms of item {item.number} were "
                f"heard, the caller heard {truth}"
            )
        # A probe is sent, and given up; a turn without a response is, too.
        for _ in range(3):
            due = self.talk.deadline or math.inf
            if due < self.now + ANSWER_SECONDS:
                self.now = due
                self.talk.handle(Tick(), self.now)
        due = self.talk.deadline or math.inf
        assert due > self.now + 30, "something waits for ever"

    # --- simulation ---

    def new_item(self) -> None:
        item = SpokenItem(len(self.items) + 1)
        item.generated = ruler(item.number, 20_000)
        self.items.append(item)
        self.event(
            "response.output_item.added",
            response_id=f"r{self.response}",
            item={"id": item.name, "type": "message"},
        )

    def delta(self, ms: int) -> None:
        self.sounded = True
        item = self.items[-1]
        if item.sent + 8 * ms > len(item.generated):
            item.generated = ruler(item.number, LONGEST_MS)
        audio = item.generated[item.sent : item.sent + 8 * ms]
        item.sent += len(audio)
        self.event(
            "response.output_audio.delta",
            response_id=f"r{self.response}",
            item_id=item.name,
            delta=base64.b64encode(audio).decode(),
        )

    def end_item(self) -> None:
        item = self.items[-1]
        self.event(
            "response.output_audio.done",
            response_id=f"r{self.response}",
            item_id=item.name,
        )

    def end_response(self, status: str) -> None:
        self.open = False
        response = {"id": f"r{self.response}", "status": status}
        self.event("response.done", response=response)

    def event(self, type: str, **fields: Any) -> None:
        self.moved_at = self.now
        event = realtime_events.decode(json.dumps({"type": type, **fields}))
        self.gives(FromModel(self.connection, event))

    def gives(self, given: Input) -> None:
        self.obey(self.talk.handle(given, self.now))

    def hear(self, message: dict[str, Any]) -> None:
        decoded = twilio_messages.decode(ENCODER.encode(message).decode())
        self.gives(FromPhone(decoded))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Switch):
                self.connection = command.connection
        for command in commands:
            if isinstance(command, ToCaller):
                self.send(self.down, "twilio", json.loads(command.text))
            elif isinstance(command, ToModel):
                self.remember(json.loads(command.text))

    def remember(self, event: dict[str, Any]) -> None:
        for item in self.items:
            if item.name != event.get("item_id"):
                continue
            if event["type"] == "conversation.item.delete":
                assert not item.deleted, "deleted twice"
                item.deleted = True
            elif event["type"] == "conversation.item.truncate":
                ms = event["audio_end_ms"]
                assert ms <= item.sent / 8, "longer than the item is"
                known = item.truncated_ms
                assert known is None or ms < known, "cannot be remembered again"
                item.truncated_ms = ms

    def send(self, link: Any, side: str, message: dict[str, Any]) -> None:
        self.order += 1
        at = link.arrival(self.now)
        heapq.heappush(self.wire, Delivery(at, self.order, side, message))

    def run(self, seconds: float) -> None:
        """Runs everything that falls due until then, in the order of time."""
        end = self.now + seconds
        while True:
            due = [end, self.next_frame]
            if self.wire:
                due.append(self.wire[0].at)
            if (echo := self.twilio.next_due) is not None:
                due.append(echo)
            if (deadline := self.talk.deadline) is not None:
                due.append(max(deadline, self.now))
            self.now = max(self.now, min(due))
            for name in self.twilio.due(self.now):
                mark = {"event": "mark", "streamSid": self.sid, "mark": {"name": name}}
                self.send(self.up, "bridge", mark)
            if self.now >= self.next_frame:
                self.send_frame()
            while self.wire and self.wire[0].at <= self.now:
                self.deliver(heapq.heappop(self.wire))
            self.gives(Tick())
            if self.now >= end:
                return

    def send_frame(self) -> None:
        timestamp = round((self.next_frame - FRAME - self.began) * 1000)
        media = {"timestamp": str(timestamp), "payload": SILENCE}
        self.next_frame += FRAME
        message = {"event": "media", "streamSid": self.sid, "media": media}
        self.send(self.up, "bridge", message)

    def deliver(self, delivery: Delivery) -> None:
        message = delivery.message
        if delivery.side == "bridge":
            self.hear(message)
        elif message["event"] == "media":
            self.twilio.media(base64.b64decode(message["media"]["payload"]), self.now)
        elif message["event"] == "mark":
            self.twilio.mark(message["mark"]["name"], self.now)
        else:
            self.twilio.clear(self.now)


SEARCH = settings(
    max_examples=int(os.environ.get("HEARD_POSITION_EXAMPLES", "50")),
    stateful_step_count=40,
    deadline=None,
    # The same examples each time: a rare find is for those who search for it
    # (HEARD_POSITION_EXAMPLES), not for those who run the tests.
    derandomize="HEARD_POSITION_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
World.TestCase.settings = SEARCH
TestHeardPosition = pytest.mark.timeout(1800)(World.TestCase)
