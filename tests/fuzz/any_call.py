"""Turns bytes into one call: all that both sides, the shell and the user's code can do.

A step is a few bytes, so any input of the fuzzer is a call. After each step, the rules
of docs/architecture.md must hold. tests/core/test_any_order.py checks more, with sides
that behave better.
"""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from bridge.audio import g711
from bridge.core import ProtocolError, realtime_events, twilio_messages
from bridge.core.commands import (
    CloseConnection,
    Command,
    Dial,
    End,
    Interrupted,
    Note,
    Pressed,
    Started,
    Switch,
    ToCaller,
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
from bridge.core.rules import GOODBYES, Prices, Recording, Rules
from bridge.core.sessions import FIRST_CONNECTION
from bridge.fleet.formats import FORMAT
from bridge.fleet.snapshot import CallSnapshot
from bridge.sim.twilio.playout import Playout

MAX_STEPS = 400
"""Of one call. A fault that needs more steps would take the fuzzer too long to find."""

T = TypeVar("T")

SIDS = ("MZ1", "MZ2", "", 'M"Z\\', "MZé")
ITEMS = ("i1", "i2", "i3", "", 'i"\\', "é" * 40)
RESPONSES = ("r1", "r2", "r3", "")
CALLS = ("c1", "c2", "")
WORDS = (
    "",
    "hello",
    "one two three",
    " ",
    "\n",
    'say "it"',
    "\x00\ufffd😀",
    "x" * 9000,
)
SIZES = (1, 2, 3, 160, 160, 160, 159, 318, 1600, 1599, 8000, 40000)
SECONDS = (0.0, 0.0, 0.001, 0.02, 0.1, 0.25, 0.7, 1.0, 2.5, 5.0, 9.0, 16.0, 61.0)
LONG = (600.0, 3600.0, 14400.0, 1e6, 1e9)
TIMES = (0, 20, 40, 1000, 9000, 60000, 2**31, 2**53)
KEYS = "0123456789*#ABCDw"
STATUSES = ("completed", "cancelled", "failed", "incomplete", "in_progress", None)
CODES = (
    None,
    "conversation_already_has_active_response",
    "response_cancel_not_active",
    "server_error",
    "session_expired",
    "insufficient_quota",
    "x",
)
EVENT_IDS = (None, "bridge_answer", "bridge_probe", "bridge_1", "bridge_session_1")
ITEM_TYPES = (
    ("message", "user"),
    ("message", "assistant"),
    ("message", "system"),
    ("function_call", None),
    ("function_call_output", None),
    ("mcp_call", None),
    ("", "x"),
)
INVALID: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**53,
    2**64,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "9" * 5000,
    "AAAA====",
    "\ud800",
    [],
    {},
    [[[[]]]],
    {"type": "message", "id": 5},
)
MULAW = {"type": "audio/pcmu"}
FORMATS: tuple[Any, ...] = (MULAW, MULAW, MULAW, None, {"type": "audio/pcm"})
TURNS: tuple[Any, ...] = (
    {"type": "server_vad", "interrupt_response": True},
    {"create_response": False},
    {"interrupt_response": False},
    {"create_response": False, "interrupt_response": False},
    {},
    None,
)
MEDIA_FORMATS = (
    *[{"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}] * 7,
    {"encoding": "audio/pcm", "sampleRate": 8000, "channels": 1},
)
SENT = (
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
    {"type": "conversation.item.create", "item": {"type": "message", "id": "i2"}},
    {
        "type": "conversation.item.create",
        "event_id": "e1",
        "previous_item_id": "i1",
        "item": {"type": "function_call_output", "call_id": "c1", "output": "42"},
    },
    {"type": "conversation.item.create", "item": {"type": "mcp_approval_response"}},
    {"type": "conversation.item.delete", "item_id": "i1"},
    {"type": "response.cancel"},
    {"type": "response.create", "response": {"instructions": "x"}},
)
HISTORY = (
    (),
    (HistoryItem("h1", "user", "hi"), HistoryItem("i1", "tool_call", call_id="c1")),
    (HistoryItem("i1", "assistant", "", "one two", cut=True),),
)

RECORDINGS = tuple(
    Recording(id, base64.b64encode(b"\x33" * size).decode(), words, interruptible)
    for id, size, words, interruptible in (
        ("n1", 12000, "This call is recorded.", False),
        ("g1", 4000, "Hello.", True),
        ("g2", 1, "", False),
    )
)
WAITING_SOUNDS = ("", None, base64.b64encode(b"\x44" * 8000).decode())

DOCUMENTED = {
    # https://www.twilio.com/docs/voice/media-streams/websocket-messages
    "media": {"event", "streamSid", "media"},
    "mark": {"event", "streamSid", "mark"},
    "clear": {"event", "streamSid"},
    # openai.types.realtime: the fields that the core sends
    "input_audio_buffer.append": {"type", "audio"},
    "input_audio_buffer.commit": {"type", "event_id"},
    "conversation.item.truncate": {
        "type",
        "event_id",
        "item_id",
        "content_index",
        "audio_end_ms",
    },
    "conversation.item.delete": {"type", "event_id", "item_id"},
    "conversation.item.create": {"type", "event_id", "item", "previous_item_id"},
    "response.cancel": {"type", "event_id", "response_id"},
    "response.create": {"type", "event_id", "response"},
    "session.update": {"type", "event_id", "session"},
}
REQUIRED = {
    "conversation.item.truncate": {"item_id", "content_index", "audio_end_ms"},
    "conversation.item.delete": {"item_id"},
    "conversation.item.create": {"item"},
    "session.update": {"session"},
}


class Script:
    """Reads bytes as choices; after the last byte, every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        self._at += 1
        return 0 if self._at > len(self._data) else self._data[self._at - 1]

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.byte() % len(choices)]

    def text(self, choices: Sequence[str]) -> str:
        """One of `choices`, or (rarely) the bytes that follow."""
        byte = self.byte()
        if byte < 240:
            return choices[byte % len(choices)]
        return self.raw(byte - 239).decode("utf-8", "replace")

    def raw(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]


class AnyCall:
    """One call, and the shell around the core.

    `loose`: the shell, too, acts in any order; then only exceptions, and commands after
    the end, count as faults.
    """

    def __init__(self, script: Script) -> None:
        flags = script.byte()
        self.loose = flags % 8 == 7
        self.marks_come = flags & 8 == 0
        self.keeps_deadlines = flags & 16 == 0
        """True: tick() is called at each deadline; else only when time stops."""
        self.script = script
        self.messages = 0
        self.log: list[Command] = []
        self.now = 100.0
        self.conversation = Conversation(now=self.now)
        self.deadline = self.conversation.deadline
        """As the shell has read it: not after each input."""
        self.twilio = Playout()
        self.stream = SIDS[0]
        self.timestamp = 0
        self.dialling = False
        """A connection was requested; the start of the call requests the first one."""
        self.newest = self.in_use = FIRST_CONNECTION
        self.spare = False
        self.connected = False
        self.configured = False
        """A session with the wanted settings has existed."""
        self.ended: End | None = None
        self.waiting: set[int] = set()
        self.waits = 0
        self.known: set[str] = set()
        """Items that the model may know: it named them, or the core sent them."""
        self.received: dict[tuple[str, int], int] = {}
        self.truncated: dict[tuple[str, int], int] = {}
        if flags & 32 == 0:
            self._begin()

    def _begin(self) -> None:
        """Begins the call: most faults can occur only in a call that has begun."""
        self.start_stream(SIDS[0])
        self.follow()
        self.dialled()
        self.model_event(self.session_updated(MULAW, MULAW, TURNS[0]))

    def run(self) -> None:
        for _ in range(MAX_STEPS):
            if self.script.over:
                break
            self.script.pick(STEPS)(self)
        # In every state the call can be ended, and every wait gets its WaitDone.
        self.gives(EndCall("bridge", "shutdown"))
        assert self.ended is not None
        assert not self.waiting
        assert self.conversation.deadline is None
        for step in (self.frames, self.delta, self.tick):
            step()

    # --- what Twilio does ---

    def caller_message(self, message: dict[str, Any]) -> None:
        self.caller_text(json.dumps(message))

    def caller_text(self, text: str) -> None:
        self.messages += 1
        try:
            message = twilio_messages.decode(text)
        except ProtocolError as error:
            self.gives(Misread("caller", error.reason))
            return
        # A stream that is refused never becomes the call's.
        free = (
            self.conversation.stream_is_lost or self.conversation.state is State.WAITING
        )
        if isinstance(message, twilio_messages.Start) and free:
            self.stream, self.twilio = message.stream_sid, Playout()
        self.gives(FromPhone(message))

    def start_stream(self, sid: str) -> None:
        form = self.script.pick(MEDIA_FORMATS) if self.log else MEDIA_FORMATS[0]
        details = {"callSid": "CA1", "accountSid": "AC1", "mediaFormat": form}
        self.timestamp = 0
        self.caller_message({"event": "start", "streamSid": sid, "start": details})

    def start(self) -> None:
        self.start_stream(self.script.text(SIDS))

    def frame(self, sound: bytes, timestamp: int, track: str = "inbound") -> None:
        payload = base64.b64encode(sound).decode()
        media = {"track": track, "timestamp": str(timestamp), "payload": payload}
        self.caller_message(
            {"event": "media", "streamSid": self.stream, "media": media}
        )

    def frames(self) -> None:
        """Frames of 20 ms, on time."""
        for _ in range(1 + self.script.byte() % 25):
            self.advance(0.02)
            self.frame(b"\x55" * 160, self.timestamp)
            self.timestamp += 20

    def odd_frame(self) -> None:
        sound = b"\x55" * self.script.pick(SIZES)
        self.timestamp += self.script.pick(TIMES)
        track = "outbound" if self.script.byte() > 240 else "inbound"
        if self.script.byte() % 4 == 0:
            self.timestamp = 0
        self.frame(sound, self.timestamp, track)

    def key(self) -> None:
        dtmf = {"digit": self.script.text(KEYS)}
        self.caller_message({"event": "dtmf", "streamSid": self.stream, "dtmf": dtmf})

    def mark(self) -> None:
        """A mark of the bridge at the wrong time, or an unknown mark."""
        name = f"m{self.script.byte()}"
        sid = self.stream if self.script.byte() < 230 else self.script.text(SIDS)
        self.caller_message({"event": "mark", "streamSid": sid, "mark": {"name": name}})

    def stop(self) -> None:
        if self.script.byte() > 200:
            self.caller_message({"event": "stop", "streamSid": self.script.text(SIDS)})
        else:
            self.caller_message({"event": "connected"})

    def caller_raw(self) -> None:
        self.caller_text(self.script.raw(self.script.byte()).decode("utf-8", "replace"))

    # --- what the model does ---

    def model_event(self, event: dict[str, Any]) -> None:
        if self.script.byte() >= 250:  # one value in the event is invalid
            event = holder = json.loads(json.dumps(event))
            while isinstance(inner := self.script.pick(list(holder.values())), dict):
                if not inner or self.script.byte() % 3 == 0:
                    break
                holder = inner
            holder[self.script.pick(list(holder))] = self.script.pick(INVALID)
        self.model_text(json.dumps(event))

    def model_text(self, text: str) -> None:
        if not (self.connected or self.loose):
            return
        self.messages += 1
        try:
            event = realtime_events.decode(text)
        except ProtocolError as error:
            self.gives(Misread("model", error.reason))
            return
        self.note_items(event)
        if isinstance(event, realtime_events.Other):
            return
        given = FromModel(self.in_use, event)
        commands = self.handle(given)
        self.configured = self.configured or self.conversation.state is State.TALKING
        self.check(commands)

    def note_items(self, event: realtime_events.ServerEvent) -> None:
        match event:
            case realtime_events.AudioDelta(
                item_id=item, content_index=index, delta=delta
            ):
                self.known.add(item)
                size = g711.payload_bytes(delta)
                self.received[item, index] = self.received.get((item, index), 0) + size
            case realtime_events.TranscriptDelta(
                item_id=item
            ) | realtime_events.InputCommitted(item):
                self.known.add(item)
            case (
                realtime_events.ItemAdded(item=it)
                | realtime_events.ItemDone(item=it)
                | realtime_events.OutputItemAdded(item=it)
            ):
                self.known.add(it.id)

    def part(self) -> dict[str, Any]:
        return {
            "response_id": self.script.text(RESPONSES),
            "item_id": self.script.text(ITEMS),
            "content_index": self.script.pick((0, 0, 0, 0, 1, 2**31)),
        }

    def delta(self) -> None:
        sound = base64.b64encode(b"\x2a" * self.script.pick(SIZES)).decode()
        kind = "response.output_audio.delta"
        self.model_event({"type": kind, **self.part(), "delta": sound})

    def transcript(self) -> None:
        kind = "response.output_audio_transcript.delta"
        self.model_event(
            {"type": kind, **self.part(), "delta": self.script.text(WORDS)}
        )

    def audio_done(self) -> None:
        self.model_event({"type": "response.output_audio.done", **self.part()})

    def head(self) -> dict[str, Any]:
        head: dict[str, Any] = {
            "id": self.script.text(RESPONSES),
            "status": self.script.pick(STATUSES),
        }
        choice = self.script.byte()
        if choice % 4 == 1:
            head["usage"] = {"input_tokens": choice, "output_tokens": 2**53}
        if choice % 4 == 2:
            details = {"output_token_details": {"audio_tokens": 10**9}}
            head["usage"] = {"output_tokens": 10**9, **details}
        if choice % 4 == 3:
            error = {"code": self.script.pick(CODES)}
            head["status_details"] = {"reason": "x", "error": error}
        return head

    def response_created(self) -> None:
        self.model_event({"type": "response.created", "response": self.head()})

    def response_done(self) -> None:
        self.model_event({"type": "response.done", "response": self.head()})

    def answer(self) -> None:
        """A complete, valid answer."""
        response, item = self.script.text(RESPONSES), self.script.text(ITEMS)
        part = {"response_id": response, "item_id": item, "content_index": 0}
        sound = base64.b64encode(b"\x2a" * self.script.pick(SIZES)).decode()
        kind = "response.output_audio"
        for event in (
            {"type": "response.created", "response": {"id": response}},
            {
                "type": "response.output_item.added",
                "response_id": response,
                "item": {"id": item, "type": "message"},
            },
            {"type": f"{kind}_transcript.delta", **part, "delta": "one two"},
            {"type": f"{kind}.delta", **part, "delta": sound},
            {"type": f"{kind}.done", **part},
        ):
            self.model_text(json.dumps(event))
        if self.script.byte() % 4:
            done = {"id": response, "status": "completed"}
            self.model_text(json.dumps({"type": "response.done", "response": done}))

    def output_item(self) -> None:
        type_, _ = self.script.pick(ITEM_TYPES)
        response, item = self.script.text(RESPONSES), self.script.text(ITEMS)
        kind = "response.output_item.added"
        body = {"id": item, "type": type_}
        self.model_event({"type": kind, "response_id": response, "item": body})

    def item(self) -> None:
        kind = self.script.pick(("added", "added", "done"))
        type_, role = self.script.pick(ITEM_TYPES)
        text = self.script.text(WORDS)
        contents: tuple[Any, ...] = (
            [{"type": "output_text", "text": text}],
            [{"type": "output_audio", "transcript": text}, {"type": "x", "text": 5}],
            None,
            text,
        )
        item = {
            "id": self.script.text(ITEMS),
            "type": type_,
            "role": role,
            "content": self.script.pick(contents),
            "call_id": self.script.pick((*CALLS, None)),
            "name": self.script.pick(("look_up", None)),
            "arguments": self.script.pick(("{}", text, None)),
            "output": self.script.pick(("42", text, None)),
        }
        after = self.script.pick((None, None, *ITEMS))
        event = {"type": f"conversation.item.{kind}", "item": item}
        self.model_event({**event, "previous_item_id": after})

    def about_item(self) -> None:
        kinds = (
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.deleted",
            "input_audio_buffer.cleared",
        )
        kind, item = self.script.pick(kinds), self.script.text(ITEMS)
        self.model_event({"type": kind, "item_id": item})

    def transcribed(self) -> None:
        kind = "conversation.item.input_audio_transcription.completed"
        item, text = self.script.text(ITEMS), self.script.text(WORDS)
        self.model_event({"type": kind, "item_id": item, "transcript": text})

    def error(self) -> None:
        error = {
            "type": self.script.pick(("invalid_request_error", "server_error")),
            "message": self.script.text(WORDS),
            "code": self.script.pick(CODES),
            "event_id": self.script.pick(EVENT_IDS),
            "param": self.script.pick((None, "x")),
        }
        self.model_event({"type": "error", "error": error})

    def session_updated(self, taken: Any, sent: Any, turns: Any) -> dict[str, Any]:
        sound = {
            "input": {"format": taken, "turn_detection": turns},
            "output": {"format": sent},
        }
        return {"type": "session.updated", "session": {"audio": sound}}

    def session(self) -> None:
        pick = self.script.pick
        self.model_event(
            self.session_updated(pick(FORMATS), pick(FORMATS), pick(TURNS))
        )

    def model_raw(self) -> None:
        self.model_text(self.script.raw(self.script.byte()).decode("utf-8", "replace"))

    # --- what the shell does ---

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        for _ in range(30 if self.keeps_deadlines else 0):
            due = self.conversation.deadline
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.tick()
            after = self.conversation.deadline
            assert after is None or after > self.now, "a clock that spins"
        self.now = max(self.now, until)
        names = self.twilio.due(self.now)
        for name in names if self.marks_come else ():
            mark = {"name": name}
            self.caller_message(
                {"event": "mark", "streamSid": self.stream, "mark": mark}
            )

    def tick(self) -> None:
        self.gives(Tick())
        after = self.conversation.deadline
        assert after is None or after > self.now, "a clock that spins"

    def pass_time(self) -> None:
        self.advance(self.script.pick(SECONDS))
        self.tick()

    def pass_long_time(self) -> None:
        self.advance(self.script.pick(LONG))

    def model_lost(self) -> None:
        if self.connected or self.loose:
            self.connected = False
            self.gives(ModelLost(self.in_use, "closed"))

    def dialled(self) -> None:
        if self.dialling or self.loose:
            self.dialling, self.spare = False, True
            self.gives(Dialled(self.newest))

    def dialled_and_configured(self) -> None:
        self.dialled()
        self.model_text(json.dumps(self.session_updated(MULAW, MULAW, TURNS[0])))

    def not_dialled(self) -> None:
        if self.dialling or self.loose:
            self.dialling = False
            fatal = self.script.byte() > 240
            self.gives(NotDialled(self.newest, "HTTP 503", fatal))

    def line_lost(self) -> None:
        self.gives(StreamLost())
        if self.script.byte() % 2:
            self.advance(self.script.pick((0.0, 0.5, 9.0)))
            self.start_stream(self.script.text(SIDS))

    def hand_over(self) -> None:
        self.gives(HandOver())

    def resume(self) -> None:
        """Another instance reads the snapshot of this call and resumes from it."""
        kept = CallSnapshot(
            history=tuple(self.conversation.history.items),
            playing=tuple(self.conversation.playing(self.now)),
            taken_at=self.now,
            stream_count=1,
        )
        read = CallSnapshot.read(kept.encoded(FORMAT))
        assert read == kept
        then = read.as_of(self.now + self.script.pick(SECONDS))
        if self.conversation.state in (State.WAITING, State.HOLDING):
            rules = Rules(history=then.history, word=then.why)
            self.gives(SetRules(rules))
            self.known.update(item.id for item in then.history)

    # --- what the user's code does ---

    def follow(self) -> None:
        pick = self.script.pick
        rules = Rules(
            greeting=pick((None, "Say hello.")),
            silent_seconds=pick((None, 0.5, 3.0, 15.0)),
            silent_asks=pick((0, 1, 2)),
            longest_seconds=pick((None, None, 5.0, 20.0)),
            prices=pick((None, Prices(output_audio=100.0))),
            cost_limit=pick((None, 0.0, 0.015)),
            key_pause_seconds=pick((0.1, 2.0)),
            key_stops_agent=pick((True, False)),
            key_actions=pick(((), ("1", "12", "#"), ("0",))),
            history=pick(HISTORY),
            word=pick(("", "It goes on.")),
            aside=pick(("", "", "It was moved.")),
            session_seconds=pick((None, 0.5, 5.0, 3000.0)),
            recordings=pick(((), RECORDINGS[:2], RECORDINGS[1:], RECORDINGS[2:])),
            greeting_interruptible=pick((True, False)),
            waiting_sound=pick(WAITING_SOUNDS),
        )
        # A copy: the Conversation owns its rules and changes them.
        rules = msgspec.convert(msgspec.to_builtins(rules), Rules)
        self.known.update(item.id for item in (*rules.history, *rules.recordings))
        self.gives(SetRules(rules))

    def tell(self) -> None:
        role = self.script.pick(("user", "system"))
        respond = self.script.byte() % 2 == 0
        text = self.script.text(WORDS)
        self.gives(Tell(role, text, respond))

    def ask(self) -> None:
        self.gives(Ask())

    def edit(self) -> None:
        item, other = self.script.text(ITEMS), self.script.text(ITEMS)
        corrected = {other: self.script.text(WORDS)} if self.script.byte() % 2 else {}
        self.known.update((item, other))
        self.gives(Edit((item,), corrected))

    def mute(self) -> None:
        self.gives(MuteCaller(self.script.byte() % 2 == 0))

    def busy(self) -> None:
        change, call = self.script.pick((1, 1, -1)), self.script.pick(CALLS)
        self.gives(ToolRunning(change, call))

    def send(self) -> None:
        self.known.update(("i1", "i2"))
        self.gives(Send(json.dumps(self.script.pick(SENT))))

    def play(self) -> None:
        tones = b"\x11" * self.script.pick(SIZES)
        self.gives(Play(base64.b64encode(tones).decode()))

    def when_heard(self) -> None:
        self.waits += 1
        self.waiting.add(self.waits)
        then = self.script.pick((None, ("agent", "hung_up")))
        stoppable = self.script.byte() % 2 == 0
        self.gives(WhenHeard(self.waits, then, stoppable))

    def give_up(self) -> None:
        number = self.script.byte()
        self.waiting.discard(number)
        self.gives(GiveUpWait(number))

    def goodbye(self) -> None:
        why = self.script.pick(sorted(GOODBYES))
        self.gives(Goodbye(why))

    def interrupt(self) -> None:
        response = self.script.pick((None, *RESPONSES))
        self.gives(Interrupt("application", response))

    def end(self) -> None:
        if self.script.byte() > 200:
            self.gives(EndCall("bridge", "shutdown"))

    def gives(self, given: Input) -> None:
        self.check(self.handle(given))

    def handle(self, given: Input) -> list[Command]:
        commands = self.conversation.handle(given, self.now)
        deadline = self.conversation.deadline
        if not self.conversation.keeps_deadline:
            self.deadline = deadline
        elif deadline is not None:
            assert self.deadline is not None, "a tick is due that nobody knows of"
            assert deadline >= self.deadline, "a tick is due that nobody knows of"
        return commands

    # --- what must hold ---

    def check(self, commands: list[Command]) -> None:
        self.log += commands
        for command in commands:
            if isinstance(command, WaitDone):
                assert command.wait in self.waiting, "nobody waits for this"
                self.waiting.remove(command.wait)
                continue
            assert self.ended is None, "something follows the end"
            match command:
                case End():
                    self.ended = command
                case ToCaller(text):
                    self.to_caller(msgspec.json.decode(text))
                case ToModel(text):
                    # Before there is a session, messages to the model are lost.
                    there = self.connected or self.loose or not self.configured
                    assert there, "nobody is there to be told"
                    self.to_model(msgspec.json.decode(text))
                case Dial(number, seconds):
                    assert seconds >= 0
                    self.dial(number)
                case CloseConnection(number):
                    assert number == self.in_use
                    self.connected = False
                case Switch(number):
                    assert self.spare or self.loose, "there is none to switch to"
                    assert not self.connected or self.loose, "two are in use"
                    self.spare, self.connected, self.in_use = False, True, number
                case Interrupted(item_id):
                    assert self.is_known(item_id) or item_id == ""
                case Note(_, data, private):
                    msgspec.json.encode([dict(data), dict(private)])
                case Started(start, again):
                    assert start.stream_sid == self.stream
                    self.dialling = self.dialling or not again
                case Pressed(keys):
                    assert keys
        assert (self.ended is not None) == (self.conversation.state is State.ENDED)

    def is_known(self, item_id: str) -> bool:
        # A recording that is played again on another stream is another item.
        return not {item_id, item_id.partition("_")[0]}.isdisjoint(self.known)

    def dial(self, number: int) -> None:
        if not self.loose:
            assert not self.dialling, "two connections are asked for"
            assert not self.spare, "there is one"
        self.dialling, self.newest = True, number

    def to_caller(self, message: dict[str, Any]) -> None:
        kind = message["event"]
        assert message.keys() == DOCUMENTED[kind]
        assert message["streamSid"] == self.stream or self.loose
        if kind == "media":
            sound = base64.b64decode(message["media"]["payload"], validate=True)
            assert sound
            self.twilio.media(sound, self.now)
        elif kind == "mark":
            self.twilio.mark(message["mark"]["name"], self.now)
        else:
            self.twilio.clear(self.now)

    def to_model(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        assert event.keys() <= DOCUMENTED[kind]
        assert event.keys() >= REQUIRED.get(kind, set())
        if kind == "input_audio_buffer.append":
            assert base64.b64decode(event["audio"], validate=True)
        elif kind == "conversation.item.create":
            self.known.add(event["item"].get("id", ""))
        elif kind == "conversation.item.delete":
            assert self.is_known(event["item_id"]), "an item that nobody has named"
        elif kind == "conversation.item.truncate":
            key, ms = (event["item_id"], event["content_index"]), event["audio_end_ms"]
            most = self.received.get(key, 0) // g711.BYTES_PER_MS
            assert 0 <= ms <= self.truncated.get(key, most), "more than there is of it"
            self.truncated[key] = ms


STEPS: tuple[Callable[[AnyCall], None], ...] = (
    AnyCall.frames,
    AnyCall.frames,
    AnyCall.odd_frame,
    AnyCall.key,
    AnyCall.mark,
    AnyCall.stop,
    AnyCall.start,
    AnyCall.caller_raw,
    AnyCall.delta,
    AnyCall.delta,
    AnyCall.transcript,
    AnyCall.audio_done,
    AnyCall.response_created,
    AnyCall.response_done,
    AnyCall.answer,
    AnyCall.answer,
    AnyCall.output_item,
    AnyCall.item,
    AnyCall.about_item,
    AnyCall.about_item,
    AnyCall.transcribed,
    AnyCall.error,
    AnyCall.session,
    AnyCall.model_raw,
    AnyCall.pass_time,
    AnyCall.pass_time,
    AnyCall.pass_long_time,
    AnyCall.model_lost,
    AnyCall.dialled,
    AnyCall.dialled_and_configured,
    AnyCall.not_dialled,
    AnyCall.line_lost,
    AnyCall.hand_over,
    AnyCall.resume,
    AnyCall.follow,
    AnyCall.tell,
    AnyCall.ask,
    AnyCall.edit,
    AnyCall.mute,
    AnyCall.busy,
    AnyCall.send,
    AnyCall.play,
    AnyCall.when_heard,
    AnyCall.give_up,
    AnyCall.goodbye,
    AnyCall.interrupt,
    AnyCall.end,
)


def conversation(data: bytes) -> int:
    """bridge.core.conversation: no exception, for any events in any order."""
    return played(data).messages


def played(data: bytes) -> AnyCall:
    """The call that `data` describes, after its last step."""
    call = AnyCall(Script(data))
    call.run()
    return call


def messages(call: AnyCall) -> Iterator[str]:
    """The commands of a call, for a developer who looks at a finding."""
    yield from map(repr, call.log)
