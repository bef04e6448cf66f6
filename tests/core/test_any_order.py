"""Every input of a call, in any order: what must always hold.

ANY_ORDER_EXAMPLES=4000 searches harder than `make test` does.
"""

import base64
import contextlib
import itertools
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core import realtime_events, twilio_messages
from bridge.core.commands import (
    CloseConnection,
    Command,
    Dial,
    End,
    Note,
    Started,
    Switch,
    ToModel,
    WaitDone,
)
from bridge.core.conversation import Conversation, State
from bridge.core.history import HistoryItem
from bridge.core.inputs import (
    Ask,
    Dialled,
    Edit,
    EndCall,
    FromModel,
    FromPhone,
    GiveUpWait,
    Goodbye,
    HandOver,
    Input,
    Interrupt,
    Misread,
    ModelLost,
    MuteCaller,
    NotDialled,
    Play,
    Send,
    SetRules,
    StreamLost,
    Tell,
    Tick,
    ToolRunning,
    WhenHeard,
)
from bridge.core.rules import GOODBYES, Prices, Rules
from bridge.core.sessions import FIRST_CONNECTION
from bridge.sim.twilio.playout import Playout
from bridge.telemetry.trace import Trace, replay
from tests.core.phone import MULAW_SESSION, STREAM, payload, to_caller
from tests.support.traces import WRITER, written

EXAMPLES = int(os.environ.get("ANY_ORDER_EXAMPLES", "150"))

FRAME = re.compile(rb"(?:#\d{7}){20}")

FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}

Step = tuple[str, Any]


class HeardFrames:
    """What the model hears of the caller: every frame, in order, in each session.
    Frames may be dropped only where that is documented and noted."""

    def __init__(self) -> None:
        self.said = 0
        """Numbers of the frames that the caller has sent."""
        self.unsaid: set[int] = set()
        """Frames sent while muted, or before the call began."""
        self.heard: int | None = None
        """The last frame that the present session has heard."""
        self.furthest = 0
        """The last frame that any session has heard."""
        self.bounded = False
        """A note said that there were too many frames to be kept."""

    def frame(self, unsaid: bool) -> str:
        """20 ms of the caller's audio that can be recognised again."""
        self.said += 1
        if unsaid:
            self.unsaid.add(self.said)
        return base64.b64encode(b"#%07d" % self.said * 20).decode()

    def hears(self, event: dict[str, Any]) -> None:
        sound = base64.b64decode(event.get("audio", ""))
        for frame in FRAME.finditer(sound):
            number = int(frame[0][1:8])
            if self.heard is not None:
                assert number == self._behind(self.heard), "frames are lost or moved"
            elif not self.bounded:
                assert number <= self._behind(self.furthest), "frames are lost"
            self.heard, self.bounded = number, False
            self.furthest = max(self.furthest, number)

    def _behind(self, number: int) -> int:
        number += 1
        while number in self.unsaid:
            number += 1
        return number


class TracedCall:
    """A traced conversation, whose invariants are checked after each input.

    Stands in for the edges, too: opens a connection when `Dial` asks for it, and a
    model that is not connected sends nothing.
    """

    def __init__(self, folder: Path, loses_marks: bool) -> None:
        self.now = 100.0
        self.stream = STREAM
        self.streams = itertools.count(1)
        self.dialling = True
        """The first connection is opened without a `Dial`."""
        self.newest = self.in_use = FIRST_CONNECTION
        self.spare = False
        self.connected = False
        self.talking = False
        """The connection is a configured session."""
        self.heard_frames = HeardFrames()
        self.muted = False
        self.talk = Conversation(now=self.now)
        self.twilio = Playout()
        self.loses_marks = loses_marks
        self.timestamp = 0
        self.waits = itertools.count(1)
        self.waiting: set[int] = set()
        self.ended: End | None = None
        self.trace = Trace(self.now, self._lost)
        self.path = self.trace.open(WRITER, folder, "CA1", STREAM)

    def does(self, kind: str, value: Any) -> None:
        if kind == "caller":
            self.caller(**{"streamSid": self.stream, **value})
        elif kind == "model":
            if self.connected:
                self.model(value)
        elif kind == "dialled":
            if self.dialling:
                self.dialling, self.spare = False, True
                self.gives(Dialled(self.newest))
        elif kind == "not_dialled":
            if self.dialling:
                self.dialling = False
                self.gives(NotDialled(self.newest, *value))
        elif kind == "model_lost":
            if self.connected:
                number = self.in_use
                self.hung_up_by_model()
                self.gives(ModelLost(number, *value))
        elif kind == "back":
            self.does("dialled", [])
            self.does(*READY)
        elif kind == "line_back":
            self.gives(StreamLost())
            self.passes(value)
            self.starts(f"MZ{next(self.streams)}")
        elif kind == "frames":
            for _ in range(value):
                self.passes(0.02)
                early = self.talk.state is State.WAITING
                sound = self.heard_frames.frame(early or self.muted)
                media = {"timestamp": str(self.timestamp), "payload": sound}
                self.caller(event="media", streamSid=self.stream, media=media)
                self.timestamp += 20
        elif kind == "passes":
            self.passes(value)
        elif kind == "when_heard":
            number = next(self.waits)
            self.waiting.add(number)
            self.gives(WhenHeard(number, *value))
        else:
            match value:
                case GiveUpWait(wait):
                    self.waiting.discard(wait)
                case MuteCaller(on):
                    self.muted = on
            self.gives(value)

    def caller(self, **message: Any) -> None:
        text = msgspec.json.encode(message).decode()
        self.gives(FromPhone(twilio_messages.decode(text)))

    def starts(self, sid: str) -> None:
        """A stream begins, with a clock of its own."""
        self.stream, self.timestamp, self.twilio = sid, 0, Playout()
        self.caller(**START[1] | {"streamSid": sid})

    def model(self, value: Any) -> None:
        event: Any = realtime_events.decode(msgspec.json.encode(value).decode())
        given = FromModel(self.in_use, event)
        commands = self._handled(given)
        began = self.talk.state in (State.TALKING, State.ENDED)
        self.talking = self.talking or began
        self.took(commands)

    def hung_up_by_model(self) -> None:
        self.connected = self.talking = False
        self.heard_frames.heard = None

    def gives(self, given: Input) -> None:
        self.took(self._handled(given))

    def _handled(self, given: Input) -> list[Command]:
        self.trace.input(given, self.now)
        before = self.talk.deadline
        commands = self.talk.handle(given, self.now)
        after = self.talk.deadline
        if self.talk.keeps_deadline and after is not None:
            # Else the call would not be given the time.
            assert before is not None and (before <= after or before <= self.now)
        return commands

    def passes(self, seconds: float) -> None:
        """Time passes; `tick` runs at each deadline exactly."""
        until = self.now + seconds
        while (due := self.talk.deadline) is not None and due <= until:
            self.now = max(self.now, due)
            self.gives(Tick())
            after = self.talk.deadline
            assert after is None or after > self.now, "a clock that spins"
        self.now = max(self.now, until)
        marks = self.twilio.due(self.now)
        if not self.loses_marks:
            for name in marks:
                mark = {"name": name}
                self.caller(event="mark", streamSid=self.stream, mark=mark)

    def took(self, commands: list[Command]) -> None:
        for command in commands:
            self.trace.command(command, self.now)
            if isinstance(command, WaitDone):
                self.waiting.remove(command.wait)  # once each
            elif self.ended is not None:
                raise AssertionError("something follows the end")
            match command:
                case End():
                    self.ended = command
                case Dial(number):
                    assert not self.dialling, "two connections are asked for"
                    assert not self.spare, "there is one"
                    assert number == self.newest + 1
                    assert self.connected == (self.talk.state is State.TALKING)
                    self.dialling, self.newest = True, number
                case CloseConnection(number):
                    assert self.connected and number == self.in_use
                    self.hung_up_by_model()
                case Switch(number):
                    assert self.spare, "there is none to switch to"
                    assert not self.connected, "two connections are in use"
                    assert number == self.newest
                    self.spare = False
                    self.connected, self.in_use = True, number
                case ToModel(text):
                    assert self.talking, "nobody is there to be told"
                    self.heard_frames.hears(msgspec.json.decode(text))
                case Note("held_audio_lost"):
                    self.heard_frames.bounded = True
                case Started(again=again):
                    assert again == (self.stream != STREAM)
                    self.muted = self.muted and again
        assert (self.ended is not None) == (self.talk.state is State.ENDED)
        for message in to_caller(commands):
            assert message["streamSid"] == self.stream
            if message["event"] == "media":
                sound = len(message["media"]["payload"]) // 4 * 3
                self.twilio.media(bytes(sound), self.now)
            elif message["event"] == "mark":
                self.twilio.mark(message["mark"]["name"], self.now)
            else:
                self.twilio.clear(self.now)

    def _lost(self, why: str) -> None:
        raise AssertionError(why)


# --- all inputs ---

ITEMS = st.sampled_from(["i1", "i2", "i3"])
RESPONSES = st.sampled_from(["r1", "r2", "r3"])
TEXTS = st.sampled_from(["", "hello", "one two three"])


def event(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    body = st.fixed_dictionaries({"type": st.just(kind), **fields})
    return body.map(lambda value: ("model", value))


def of_item(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return event(kind, response_id=RESPONSES, item_id=ITEMS, **fields)


STATUSES = st.sampled_from(["completed", "cancelled", "failed", "incomplete", None])
USAGE: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.builds(dict, input_tokens=st.just(9), output_tokens=st.just(99))
)
KINDS = st.sampled_from(["message", "function_call", "function_call_output", "x"])
CONVERSATION_ITEM = st.fixed_dictionaries(
    {
        "id": ITEMS,
        "type": KINDS,
        "role": st.sampled_from(["user", "assistant", "system", None]),
        "content": st.one_of(
            st.none(), TEXTS.map(lambda text: [{"type": "output_text", "text": text}])
        ),
        "call_id": st.sampled_from(["c1", None]),
    }
)
TURNS = st.fixed_dictionaries(
    {
        "create_response": st.sampled_from([True, False, None]),
        "interrupt_response": st.sampled_from([True, False, None]),
    }
)
SESSION = st.one_of(
    st.just(MULAW_SESSION),
    st.one_of(TURNS, st.none()).map(
        lambda turns: {"audio": {"input": {"turn_detection": turns}}}
    ),
)
ERRORS = st.fixed_dictionaries(
    {
        "type": st.just("invalid_request_error"),
        "message": TEXTS,
        "code": st.sampled_from(
            ["conversation_already_has_active_response", "server_error", None]
        ),
        "event_id": st.sampled_from(["bridge_answer", "bridge_3", None]),
    }
)
HEAD = st.fixed_dictionaries({"id": RESPONSES, "status": STATUSES, "usage": USAGE})
ADDED = st.fixed_dictionaries(
    {"id": ITEMS, "type": st.sampled_from(["message", "function_call"])}
)

FROM_MODEL = st.one_of(
    event("session.updated", session=SESSION),
    event("response.created", response=HEAD),
    event("response.created", response=HEAD),
    event("response.done", response=HEAD),
    of_item("response.output_audio.delta", delta=st.integers(1, 900).map(payload)),
    of_item("response.output_audio.delta", delta=st.integers(1, 900).map(payload)),
    of_item("response.output_audio.done"),
    of_item("response.output_audio_transcript.delta", delta=TEXTS),
    event("response.output_item.added", response_id=RESPONSES, item=ADDED),
    event("input_audio_buffer.speech_started"),
    event("input_audio_buffer.speech_stopped"),
    event("input_audio_buffer.committed"),
    event("input_audio_buffer.cleared"),
    event(
        "conversation.item.input_audio_transcription.completed",
        item_id=ITEMS,
        transcript=TEXTS,
    ),
    event(
        "conversation.item.added",
        item=CONVERSATION_ITEM,
        previous_item_id=st.one_of(st.none(), ITEMS),
    ),
    event("conversation.item.done", item=CONVERSATION_ITEM),
    event("conversation.item.deleted", item_id=ITEMS),
    event("error", error=ERRORS),
)

KEY = st.sampled_from("0123456789*#")
FROM_CALLER = st.one_of(
    st.integers(1, 60).map(lambda n: ("frames", n)),
    st.integers(1, 60).map(lambda n: ("frames", n)),
    KEY.map(
        lambda key: (
            "caller",
            {"event": "dtmf", "streamSid": STREAM, "dtmf": {"digit": key}},
        )
    ),
    st.sampled_from(
        [
            ("caller", {"event": "mark", "streamSid": STREAM, "mark": {"name": "m2"}}),
            ("caller", {"event": "connected"}),
        ]
    ),
)

RULES = st.builds(
    Rules,
    greeting=st.sampled_from([None, "Say hello."]),
    silent_seconds=st.sampled_from([None, 0.5, 3.0]),
    silent_asks=st.integers(0, 2),
    longest_seconds=st.sampled_from([None, 5.0, 20.0]),
    prices=st.sampled_from([None, Prices(output_audio=100.0)]),
    cost_limit=st.sampled_from([None, 0.0, 0.015]),
    spent=st.sampled_from([0.0, 0.01]),
    key_pause_seconds=st.sampled_from([0.1, 2.0]),
    key_actions=st.sampled_from([(), ("1", "12", "#"), ("0",)]),
    history=st.sampled_from(
        [(), (HistoryItem("h1", "user", "hi"), HistoryItem("i1", "tool_call"))]
    ),
    word=st.sampled_from(["", "It goes on."]),
    aside=st.sampled_from(["", "", "It was moved."]),
    session_seconds=st.sampled_from([None, None, 0.5, 5.0]),
    resumes_after_noise=st.booleans(),
)


def told(kind: str, *value: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(*value).map(lambda given: (kind, list(given)))


ITEM_TEXT = {"type": "message", "role": "user", "content": []}
SENT = st.sampled_from(
    [
        {"type": "conversation.item.create", "item": ITEM_TEXT},
        {"type": "conversation.item.create", "item": {**ITEM_TEXT, "id": "i2"}},
        {"type": "conversation.item.delete", "item_id": "i1"},
        {"type": "response.cancel"},
    ]
).map(lambda event: msgspec.json.encode(event).decode())
THEN = st.sampled_from([None, ("agent", "hung_up")])


def given_as(kind: type[Input], *values: st.SearchStrategy[Any]) -> Any:
    return st.builds(kind, *values).map(lambda given: ("given", given))


FROM_CODE = st.one_of(
    given_as(SetRules, RULES),
    given_as(Tell, st.sampled_from(["user", "system"]), TEXTS, st.booleans()),
    given_as(Ask),
    given_as(
        Edit,
        st.lists(ITEMS, max_size=2).map(tuple),
        st.dictionaries(ITEMS, TEXTS),
    ),
    given_as(MuteCaller, st.booleans()),
    given_as(ToolRunning, st.sampled_from([1, -1]), st.sampled_from(["", "c1", "c2"])),
    given_as(Send, SENT),
    given_as(Play, st.integers(1, 500).map(payload)),
    told("when_heard", THEN, st.booleans()),
    told("when_heard", THEN, st.booleans()),
    given_as(GiveUpWait, st.integers(1, 4)),
    given_as(Goodbye, st.sampled_from(sorted(GOODBYES))),
    given_as(Interrupt, st.just("app"), st.one_of(st.none(), RESPONSES)),
    given_as(Misread, st.sampled_from(["caller", "model"]), st.just("odd")),
)

FROM_EDGES = st.one_of(
    told("model_lost", st.just("closed")),
    told("model_lost", st.just("closed")),
    told("dialled"),
    told("back"),
    told("back"),
    told("not_dialled", st.just("HTTP 503"), st.just(False)),
    told("not_dialled", st.just("HTTP 401"), st.booleans()),
    given_as(StreamLost),
    st.sampled_from([0.0, 0.5, 9.0]).map(lambda it: ("line_back", it)),
    given_as(HandOver),
)
PASSES = st.sampled_from([0.0, 0.1, 0.7, 2.5, 9.0, 21.0]).map(lambda it: ("passes", it))
START = (
    "caller",
    {
        "event": "start",
        "streamSid": STREAM,
        "start": {"callSid": "CA1", "mediaFormat": FORMAT},
    },
)
READY = ("model", {"type": "session.updated", "session": MULAW_SESSION})
BACK: Step = ("back", [])
HANGS_UP: Step = ("caller", {"event": "stop"})
ENDING = st.sampled_from(
    [
        ("given", EndCall("bridge", "shutdown")),
        HANGS_UP,
        ("passes", 200.0),
    ]
)
ANYTHING = st.lists(
    st.one_of(FROM_MODEL, FROM_MODEL, FROM_CALLER, FROM_CODE, FROM_EDGES, PASSES),
    max_size=40,
)


@given(
    st.lists(st.one_of(FROM_CODE, PASSES), max_size=3),
    RULES,
    st.lists(st.one_of(FROM_CODE, FROM_CALLER, FROM_EDGES), max_size=4),
    ANYTHING,
    ENDING,
    st.booleans(),
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_in_any_order_of_inputs_a_call_reaches_its_end(
    early: list[Step],
    rules: Rules,
    held: list[Step],
    script: list[Step],
    ending: Step,
    loses_marks: bool,
) -> None:
    """No wait stays open, no deadline repeats for ever, no command follows `End`; and
    replaying the trace gives the same call."""
    followed = ("given", SetRules(rules))
    with tempfile.TemporaryDirectory() as folder:
        line = TracedCall(Path(folder), loses_marks)
        with contextlib.closing(line.trace):
            for step in [*early, START, followed, *held, BACK, *script, ending]:
                line.does(*step)
            given = [it for _, it in (followed, *held, *script)]
            last = [it.rules for it in given if isinstance(it, SetRules)][-1]
            if line.ended is None and last.silent_seconds is None:
                line.does(*HANGS_UP)  # silence ends no call with these rules

        written()
        assert line.ended is not None
        assert line.waiting == set()
        assert [pair for pair in replay(line.path) if pair[0] != pair[1]] == []
