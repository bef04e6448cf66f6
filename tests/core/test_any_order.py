"""Everything that can happen in a call, in any order: what must hold all the same.

ANY_ORDER_EXAMPLES=4000 looks harder than `make test` does.
"""

import contextlib
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core import media_stream, realtime
from bridge.core.commands import Command, End, Heard
from bridge.core.conversation import Conversation, State
from bridge.core.history import HistoryItem
from bridge.core.rules import GOODBYES, Prices, Rules
from bridge.sim.twilio.playout import Playout
from bridge.watch.trace import Trace, feed, replay
from tests.core.phone import MULAW_SESSION, STREAM, payload, to_caller, to_model

EXAMPLES = int(os.environ.get("ANY_ORDER_EXAMPLES", "150"))

FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}

Step = tuple[str, Any]


class Line:
    """A traced conversation; after each input it is asked whether all is well."""

    def __init__(self, folder: Path, loses_marks: bool) -> None:
        self.now = 100.0
        self.talk = Conversation(now=self.now)
        self.twilio = Playout()
        self.loses_marks = loses_marks
        self.timestamp = 0
        self.waits = itertools.count(1)
        self.waiting: set[int] = set()
        self.ended: End | None = None
        self.trace = Trace(self.now, self._lost)
        self.path = self.trace.open(folder, "CA1", STREAM)

    def does(self, kind: str, value: Any) -> None:
        if kind == "caller":
            self.caller(**value)
        elif kind == "model":
            text = msgspec.json.encode(value).decode()
            self.trace.input("model", text, self.now)
            self.took(self.talk.from_model(realtime.decode(text), self.now))
        elif kind == "frames":
            for _ in range(value):
                self.passes(0.02)
                media = {"timestamp": str(self.timestamp), "payload": payload(20)}
                self.caller(event="media", streamSid=STREAM, media=media)
                self.timestamp += 20
        elif kind == "passes":
            self.passes(value)
        elif kind == "when_heard":
            number = next(self.waits)
            self.waiting.add(number)
            self.feed("when_heard", [number, *value])
        elif kind == "give_up":
            self.waiting.difference_update(value)
            self.feed(kind, value)
        else:
            self.feed(kind, value)

    def caller(self, **message: Any) -> None:
        text = msgspec.json.encode(message).decode()
        self.trace.input("caller", text, self.now)
        self.took(self.talk.from_caller(media_stream.decode(text), self.now))

    def feed(self, kind: str, value: Any) -> None:
        self.trace.input(kind, value, self.now)
        commands = feed(self.talk, kind, value, self.now)
        early = self.talk.state in (State.WAITING, State.HOLDING)
        assert not (early and to_model(commands)), "the model is not ready"
        self.took(commands)

    def passes(self, seconds: float) -> None:
        """Time goes by; each deadline is kept to the moment."""
        until = self.now + seconds
        while (due := self.talk.deadline) is not None and due <= until:
            self.now = max(self.now, due)
            self.feed("tick", [])
            after = self.talk.deadline
            assert after is None or after > self.now, "a clock that spins"
        self.now = max(self.now, until)
        marks = self.twilio.due(self.now)
        if not self.loses_marks:
            for name in marks:
                self.caller(event="mark", streamSid=STREAM, mark={"name": name})

    def took(self, commands: list[Command]) -> None:
        for command in commands:
            self.trace.command(command, self.now)
            if isinstance(command, Heard):
                self.waiting.remove(command.wait)  # once each
            elif self.ended is not None:
                raise AssertionError("something follows the end")
            if isinstance(command, End):
                self.ended = command
        assert (self.ended is not None) == (self.talk.state is State.ENDED)
        for message in to_caller(commands):
            assert message["streamSid"] == STREAM
            if message["event"] == "media":
                sound = len(message["media"]["payload"]) // 4 * 3
                self.twilio.media(bytes(sound), self.now)
            elif message["event"] == "mark":
                self.twilio.mark(message["mark"]["name"], self.now)
            else:
                self.twilio.clear(self.now)

    def _lost(self, why: str) -> None:
        raise AssertionError(why)


# --- all that can happen ---

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
)


def told(kind: str, *value: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(*value).map(lambda given: (kind, list(given)))


THEN = st.sampled_from([None, ["agent", "hung_up"]])
FROM_CODE = st.one_of(
    told("follow", RULES.map(msgspec.to_builtins)),
    told("tell", st.sampled_from(["user", "system"]), TEXTS, st.booleans()),
    told("ask"),
    told("edit", st.lists(ITEMS, max_size=2), st.dictionaries(ITEMS, TEXTS)),
    told("mute", st.booleans()),
    told("busy", st.sampled_from([1, -1])),
    told("play", st.integers(1, 500).map(payload)),
    told("when_heard", THEN, st.booleans()),
    told("when_heard", THEN, st.booleans()),
    told("give_up", st.integers(1, 4)),
    told("goodbye", st.sampled_from(sorted(GOODBYES))),
    told("interrupt", st.just("app"), st.one_of(st.none(), RESPONSES)),
    told("misread", st.sampled_from(["caller", "model"]), st.just("odd")),
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
ENDING = st.sampled_from(
    [("end", ["bridge", "shutdown"]), ("caller", {"event": "stop"}), ("passes", 200.0)]
)
ANYTHING = st.lists(
    st.one_of(FROM_MODEL, FROM_MODEL, FROM_CALLER, FROM_CODE, PASSES), max_size=40
)


@given(
    st.lists(st.one_of(FROM_CODE, PASSES), max_size=3),
    RULES,
    st.lists(st.one_of(FROM_CODE, FROM_CALLER), max_size=4),
    ANYTHING,
    ENDING,
    st.booleans(),
)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_whatever_happens_a_call_is_carried_to_its_end(
    early: list[Step],
    rules: Rules,
    held: list[Step],
    script: list[Step],
    ending: Step,
    loses_marks: bool,
) -> None:
    """Nobody waits for ever, no clock spins, nothing follows the end; and the trace of
    the call is the same call again."""
    followed = ("follow", [msgspec.to_builtins(rules)])
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder), loses_marks)
        with contextlib.closing(line.trace):
            for step in [*early, START, followed, *held, READY, *script, ending]:
                line.does(*step)

        assert line.ended is not None
        assert line.waiting == set()
        assert [pair for pair in replay(line.path) if pair[0] != pair[1]] == []
