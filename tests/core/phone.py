"""A conversation driven by scripts: short methods as inputs, readable commands as
output."""

import base64
import json
from typing import Any

from bridge.core import realtime_events, twilio_messages
from bridge.core.capabilities import MEDIA_STREAM, SIP
from bridge.core.commands import (
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
from bridge.core.conversation import Conversation
from bridge.core.inputs import (
    Ask,
    Begin,
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
from bridge.core.model_side import PROBE_ID
from bridge.core.rules import Rules
from bridge.core.sessions import FIRST_CONNECTION
from bridge.sim.twilio.playout import Playout

STREAM = "MZ0000"
SECOND = "MZ0001"
MULAW_SESSION = {
    "audio": {
        "input": {
            "format": {"type": "audio/pcmu"},
            "turn_detection": {"type": "server_vad", "interrupt_response": True},
        },
        "output": {"format": {"type": "audio/pcmu"}},
    }
}


def payload(ms: int, byte: bytes = b"\x55") -> str:
    return base64.b64encode(byte * (8 * ms)).decode()


class Phone:
    """Feeds a Conversation; `now` moves only by `wait` and `frames`."""

    capabilities = MEDIA_STREAM

    def __init__(self, greeting: str | None = None, **rules: Any) -> None:
        self.now = 100.0
        self.talk = Conversation(now=self.now, capabilities=self.capabilities)
        self.talk.handle(SetRules(Rules(greeting=greeting, **rules)), self.now)
        self.timestamp = 0
        self.stream = STREAM
        self.session: Any = MULAW_SESSION
        self.sound = b"\x55"
        """Each byte of the caller's frames."""
        self.gives_signs = True
        """The server answers probes."""
        self.dialling = self.connection = FIRST_CONNECTION
        """The connections dialled last, and in use."""
        self.connected = False
        """A connection to the model has been open at least once."""
        self.log: list[Command] = []
        self.twilio = Playout()
        """Twilio's buffer, with no network between."""

    # --- inputs of both sides ---

    def caller(self, **message: Any) -> list[Command]:
        decoded = twilio_messages.decode(json.dumps(message))
        return self.gives(FromPhone(decoded))

    def model(self, type: str, **event: Any) -> list[Command]:
        decoded = realtime_events.decode(
            json.dumps({"type": type, "event_id": "e", **event})
        )
        return self.event(decoded)

    def event(self, event: realtime_events.KnownEvent) -> list[Command]:
        """An event of the connection in use."""
        return self.gives(FromModel(self.connection, event))

    def gives(self, given: Input) -> list[Command]:
        """One input."""
        return self._took(self.talk.handle(given, self.now))

    def start(self, sid: str = STREAM, **form: Any) -> list[Command]:
        media = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1, **form}
        start = {"callSid": "CA1", "mediaFormat": media, "customParameters": {}}
        return self.caller(event="start", streamSid=sid, start=start)

    def frame(self, sid: str = "", ms: int = 20, **more: Any) -> list[Command]:
        """One frame of the caller, at the present timestamp."""
        media = {"track": "inbound", "timestamp": str(self.timestamp), **more}
        media.setdefault("payload", payload(ms, self.sound))
        self.timestamp += ms
        return self.caller(event="media", streamSid=sid or self.stream, media=media)

    def frames(self, ms: int) -> list[Command]:
        """Time passes, with a frame each 20 ms; `now` is Twilio's time."""
        commands = []
        for _ in range(ms // 20):
            self.now += 0.02
            commands += self.echoes()
            commands += self.frame()
            commands += self.tick()
        return commands

    def tick(self) -> list[Command]:
        return self.gives(Tick())

    def wait(self, seconds: float) -> list[Command]:
        self.now += seconds
        return self.tick()

    def echo(self, name: str) -> list[Command]:
        return self.caller(event="mark", streamSid=self.stream, mark={"name": name})

    def echoes(self) -> list[Command]:
        """Twilio returns the marks that are due; `frames` calls this."""
        commands = []
        for name in self.twilio.due(self.now):
            commands += self.echo(name)
        return commands

    def ready(self, session: Any = MULAW_SESSION) -> list[Command]:
        """The session is configured as we want, on the first or the last dialled
        connection."""
        if not self.connected:
            self.dialled()
        self.session = session
        return self.model("session.updated", session=session)

    def talking(self) -> "Phone":
        """The stream has started, and the model is ready."""
        self.start()
        self.frames(100)
        self.ready()
        self.tick()
        return self

    def created(self, response: str = "r1") -> list[Command]:
        return self.model("response.created", response={"id": response})

    def says(
        self, ms: int, item: str = "i1", response: str = "r1", index: int = 0
    ) -> list[Command]:
        return self.model(
            "response.output_audio.delta",
            response_id=response,
            item_id=item,
            content_index=index,
            delta=payload(ms),
        )

    def words(
        self, text: str, item: str = "i1", response: str = "r1", index: int = 0
    ) -> list[Command]:
        return self.model(
            "response.output_audio_transcript.delta",
            response_id=response,
            item_id=item,
            content_index=index,
            delta=text,
        )

    def item_done(
        self, item: str = "i1", response: str = "r1", index: int = 0
    ) -> list[Command]:
        return self.model(
            "response.output_audio.done",
            response_id=response,
            item_id=item,
            content_index=index,
        )

    def done(self, response: str = "r1", status: str = "completed") -> list[Command]:
        return self.model("response.done", response={"id": response, "status": status})

    def answers(
        self, ms: int, item: str = "i1", response: str = "r1", words: str = ""
    ) -> list[Command]:
        """A whole response, generated at once: its audio is still to be played."""
        commands = self.created(response)
        commands += self.item_added(item, "assistant")
        if words:
            commands += self.words(words, item, response)
        commands += self.says(ms, item, response)
        return commands + self.item_done(item, response) + self.done(response)

    def item_added(
        self, item: str, role: str, *parts: dict[str, Any], after: str | None = None
    ) -> list[Command]:
        message = {"id": item, "type": "message", "role": role, "content": parts}
        return self.model(
            "conversation.item.added", item=message, previous_item_id=after
        )

    def used(self, response: str = "r1", **usage: Any) -> list[Command]:
        """A response ends with this usage."""
        head = {"id": response, "status": "completed", "usage": usage}
        return self.model("response.done", response=head)

    def barges_in(self) -> list[Command]:
        return self.model(
            "input_audio_buffer.speech_started", item_id="u", audio_start_ms=0
        )

    def shows(self, commands: list[Command]) -> list[Command]:
        """The server shows the items that these commands have sent it."""
        shown = []
        for event in to_model(commands):
            if event["type"] == "conversation.item.create":
                item = {"id": f"s_{event['event_id']}", **event["item"]}
                shown += self.model("conversation.item.added", item=item)
                shown += self.model("conversation.item.done", item=item)
        return shown

    def speaks(self, ms: int, item: str = "u") -> list[Command]:
        """A turn of the caller that the server has heard, and not yet responded to."""
        commands = self.barges_in() + self.frames(ms) + self.falls_silent()
        commands += self.committed(item)
        return commands + self.item_added(item, "user")

    def committed(self, item: str = "u") -> list[Command]:
        return self.model("input_audio_buffer.committed", item_id=item)

    def cleared(self) -> list[Command]:
        return self.model("input_audio_buffer.cleared")

    def refused(self, code: str, event_id: str | None) -> list[Command]:
        """The server refuses one of our events."""
        error = {"type": "x", "message": "", "code": code, "event_id": event_id}
        return self.model("error", error=error)

    def falls_silent(self) -> list[Command]:
        """The caller has ended their turn."""
        return self.model(
            "input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1
        )

    def presses(self, keys: str) -> list[Command]:
        commands = []
        for key in keys:
            dtmf = {"track": "inbound_track", "digit": key}
            commands += self.caller(event="dtmf", streamSid=self.stream, dtmf=dtmf)
        return commands

    # --- inputs of user code ---

    def follow(self, **rules: Any) -> list[Command]:
        return self.gives(SetRules(Rules(**rules)))

    def tell(
        self, text: str, role: str = "user", respond: bool = True
    ) -> list[Command]:
        return self.gives(Tell(role, text, respond))

    def ask(self) -> list[Command]:
        return self.gives(Ask())

    def busy(self, change: int, call: str = "") -> list[Command]:
        return self.gives(ToolRunning(change, call))

    def play(self, ms: int) -> list[Command]:
        return self.gives(Play(payload(ms)))

    def when_heard(
        self,
        wait: int = 1,
        then: tuple[str, str] | None = None,
        stoppable: bool = True,
    ) -> list[Command]:
        return self.gives(WhenHeard(wait, then, stoppable))

    def gives_up(self, wait: int) -> list[Command]:
        """The wait is given up."""
        return self.gives(GiveUpWait(wait))

    def goodbye(self, why: str) -> list[Command]:
        return self.gives(Goodbye(why))

    def interrupt(
        self, by: str = "application", response: str | None = None
    ) -> list[Command]:
        return self.gives(Interrupt(by, response))

    def mute(self, on: bool) -> list[Command]:
        return self.gives(MuteCaller(on))

    def edit(self, removed: list[str], corrected: dict[str, str]) -> list[Command]:
        return self.gives(Edit(tuple(removed), corrected))

    def misread(self, side: str, reason: str) -> list[Command]:
        return self.gives(Misread(side, reason))

    def ends(self, by: str, why: str) -> list[Command]:
        return self.gives(EndCall(by, why))

    def hangs_up(self) -> list[Command]:
        return self.caller(event="stop", streamSid=self.stream)

    # --- a side is lost, and comes back ---

    def loses_model(
        self, why: str = "closed", code: int | None = None
    ) -> list[Command]:
        return self.gives(ModelLost(self.connection, why, code))

    def dialled(self) -> list[Command]:
        self.connected = True
        return self.gives(Dialled(self.dialling))

    def not_dialled(self, why: str = "HTTP 503", fatal: bool = False) -> list[Command]:
        return self.gives(NotDialled(self.dialling, why, fatal))

    def model_back(self) -> list[Command]:
        """The connection that was dialled is open, and its session ready."""
        assert one(self.dialled(), Switch)
        return self.ready()

    def another_model(self, why: str = "closed") -> list[Command]:
        """The session is lost, and the next one is ready at once; returns what it is
        told."""
        self.loses_model(why)
        return self.model_back()

    def loses_line(self) -> list[Command]:
        return self.gives(StreamLost())

    def line_back(self, sid: str = SECOND) -> list[Command]:
        """The caller is on another stream, whose clock begins anew."""
        self.stream, self.timestamp, self.twilio = sid, 0, Playout()
        return self.start(sid)

    def hand_over(self) -> list[Command]:
        return self.gives(HandOver())

    def sends(self, type: str, **event: Any) -> list[Command]:
        """A client event of the SDK, or of user code."""
        return self.gives(Send(json.dumps({"type": type, **event})))

    def calls_tool(
        self, call: str, name: str = "look_up", response: str = "r1"
    ) -> list[Command]:
        """The model calls a tool, which begins to run."""
        commands = self.begins_call(call, name, response)
        return commands + self.ends_call(call, name, response) + self.busy(1, call)

    def begins_call(
        self, call: str, name: str = "look_up", response: str = "r1"
    ) -> list[Command]:
        """The model begins to call a tool: its arguments are still to come."""
        item = self._call(call, name, "in_progress", "")
        commands = self.model(
            "response.output_item.added", response_id=response, item=item
        )
        return commands + self.model("conversation.item.added", item=item)

    def ends_call(
        self,
        call: str,
        name: str = "look_up",
        response: str = "r1",
        status: str = "completed",
    ) -> list[Command]:
        """The call is complete, or was cancelled in the middle of its arguments."""
        arguments = "{}" if status == "completed" else '{"da'
        item = self._call(call, name, status, arguments)
        commands = self.model("conversation.item.done", item=item)
        return commands + self.model(
            "response.output_item.done", response_id=response, item=item
        )

    def _call(self, call: str, name: str, status: str, arguments: str) -> Any:
        return {
            "id": f"f_{call}",
            "type": "function_call",
            "status": status,
            "call_id": call,
            "name": name,
            "arguments": arguments,
        }

    def tool_ends(self, call: str, output: str = "42") -> list[Command]:
        """Its result goes to the model, which is to respond, as the SDK does it."""
        item = {"type": "function_call_output", "call_id": call, "output": output}
        commands = self.sends("conversation.item.create", item=item)
        return commands + self.ask() + self.busy(-1, call)

    def writes(self, text: str, item: str = "u") -> list[Command]:
        """The transcript of what the caller said in that item."""
        return self.model(
            "conversation.item.input_audio_transcription.completed",
            item_id=item,
            transcript=text,
        )

    def _took(self, commands: list[Command]) -> list[Command]:
        self.log += commands
        for command in commands:
            match command:
                case Dial(connection):
                    self.dialling = connection
                case Switch(connection):
                    self.connection = connection
        if self.gives_signs and any(
            isinstance(it, ToModel) and PROBE_ID in it.text for it in commands
        ):
            self.model("session.updated", session=self.session)
        for message in to_caller(commands):
            match message["event"]:
                case "media":
                    audio = base64.b64decode(message["media"]["payload"])
                    self.twilio.media(audio, self.now)
                case "mark":
                    self.twilio.mark(message["mark"]["name"], self.now)
                case "clear":
                    self.twilio.clear(self.now)
        return commands


class SipPhone(Phone):
    """A call whose audio the model's server has."""

    capabilities = SIP

    def begins(self) -> list[Command]:
        return self.gives(Begin())

    def talking(self) -> "SipPhone":
        self.begins()
        self.ready()
        return self

    def playout(self, what: str, response: str = "r1") -> list[Command]:
        """The server has started or stopped playing a response, or has cleared it."""
        return self.model(f"output_audio_buffer.{what}", response_id=response)

    def speaks_to_caller(self, words: str, item: str = "i1") -> list[Command]:
        """A response is generated and begins to be played."""
        commands = self.created()
        commands += self.item_added(item, "assistant")
        commands += self.words(words, item)
        return commands + self.playout("started") + self.done()


def answering(ms: int = 1000, words: str = "One two three") -> Phone:
    """The agent is in the middle of its response i1; the model generates more of it."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words(words)
    phone.says(ms)
    return phone


# --- reading commands ---


def to_caller(commands: list[Command]) -> list[dict[str, Any]]:
    return [json.loads(it.text) for it in commands if isinstance(it, ToCaller)]


def to_model(commands: list[Command]) -> list[dict[str, Any]]:
    return [json.loads(it.text) for it in commands if isinstance(it, ToModel)]


def events(commands: list[Command]) -> list[str]:
    """Twilio messages by their event."""
    return [message["event"] for message in to_caller(commands)]


def told(commands: list[Command]) -> list[tuple[str, str, int | None]]:
    """What the model is told about items: (verb, item, ms)."""
    return [
        (event["type"].rpartition(".")[2], event["item_id"], event.get("audio_end_ms"))
        for event in to_model(commands)
        if event["type"] in ("conversation.item.truncate", "conversation.item.delete")
    ]


def given(commands: list[Command]) -> list[tuple[str, str, str]]:
    """Items added to the conversation, in order: (item id, role or kind, text)."""
    return [
        _given(event["item"])
        for event in to_model(commands)
        if event["type"] == "conversation.item.create"
    ]


def _given(item: dict[str, Any]) -> tuple[str, str, str]:
    if item["type"] == "message":
        part = item["content"][0]
        heard = (
            f"<{len(base64.b64decode(part['audio'])) // 8} ms>"
            if "audio" in part
            else ""
        )
        return item["id"], item["role"], heard or part["text"]
    words = item["output"] if "output" in item else item["name"]
    return item["id"], f"{item['type']} {item['call_id']}", words


def appended(commands: list[Command]) -> bytes:
    """Mu-law of the caller's audio that the model is given, in order."""
    return b"".join(
        base64.b64decode(event["audio"])
        for event in to_model(commands)
        if event["type"] == "input_audio_buffer.append"
    )


def dials(commands: list[Command]) -> list[tuple[float, bool]]:
    """Connections to be dialled: (after so many seconds, as a spare). The connection in
    use is closed before another one than a spare is dialled."""
    return [
        (it.seconds, bool(notes(commands, "session_old")))
        for it in commands
        if isinstance(it, Dial)
    ]


def types_to_model(commands: list[Command]) -> list[str]:
    """Types of the events to the model, in order, without audio."""
    types = [event["type"] for event in to_model(commands)]
    return [it for it in types if it != "input_audio_buffer.append"]


def notes(commands: list[Command], name: str) -> list[Note]:
    return [it for it in commands if isinstance(it, Note) and it.name == name]


def said_to_model(commands: list[Command]) -> list[tuple[str, str]]:
    """Messages added to the conversation: (role, text)s."""
    return [
        (event["item"]["role"], event["item"]["content"][0]["text"])
        for event in to_model(commands)
        if event["type"] == "conversation.item.create"
        and event["item"]["type"] == "message"
    ]


def asks(commands: list[Command]) -> int:
    """Number of responses that are requested."""
    return [event["type"] for event in to_model(commands)].count("response.create")


def heard(commands: list[Command]) -> list[tuple[int, bool | None]]:
    """Waits that are over: (number, all was heard; None: the call has ended)."""
    return [(it.wait, it.done) for it in commands if isinstance(it, WaitDone)]


def cancels(commands: list[Command]) -> list[str]:
    """Responses that the model is told to cancel."""
    return [
        event["response_id"]
        for event in to_model(commands)
        if event["type"] == "response.cancel"
    ]


def pressed(commands: list[Command]) -> list[str]:
    """Inputs of keys for which the route has an action."""
    return [it.keys for it in commands if isinstance(it, Pressed)]


def only(item: str, commands: list[Command]) -> list[str]:
    """All texts that are given for one item."""
    return [words for known, _, words in given(commands) if known == item]


def one(commands: list[Command], kind: type) -> Any:
    found = [it for it in commands if isinstance(it, kind)]
    assert len(found) == 1, commands
    return found[0]


def reasons(commands: list[Command]) -> list[object]:
    return [note.data["reason"] for note in notes(commands, "protocol_error")]


def ends(commands: list[Command]) -> list[tuple[str, str]]:
    return [(it.by, it.why) for it in commands if isinstance(it, End)]


__all__ = ["Interrupted", "Phone", "Started"]
