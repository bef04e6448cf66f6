"""The trace of a call: its replay gives the same commands again."""

import errno
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.core import ProtocolError, realtime_events, twilio_messages
from bridge.core.capabilities import MEDIA_STREAM
from bridge.core.commands import Command, Note
from bridge.core.conversation import Conversation
from bridge.core.inputs import (
    Ask,
    Dialled,
    Edit,
    EndCall,
    FromModel,
    FromPhone,
    Goodbye,
    Input,
    Interrupt,
    Misread,
    MuteCaller,
    Play,
    Send,
    SetRules,
    Tell,
    Tick,
    ToolRunning,
    WhenHeard,
)
from bridge.core.limits import Bounds
from bridge.core.rules import Rules
from bridge.core.sessions import FIRST_CONNECTION
from bridge.privacy.redaction import Redaction, pattern
from bridge.telemetry.trace import (
    MAX_EARLY_BYTES,
    TRACE_FORMAT,
    Trace,
    TraceFormatError,
    read,
    replay,
)
from bridge.telemetry.trace_file import MAGIC
from tests.core.phone import MULAW_SESSION, payload
from tests.support.traces import WRITER, rewrite, text_of, written

GREETING = "Say hello."


class TracedCall:
    """A Conversation with its trace, connected as call.py connects them; the test sets
    the time `at`."""

    def __init__(self, folder: Path, greeting: str | None = GREETING) -> None:
        self.folder = folder
        self.at = 50.0
        self.timestamp = 0
        self.talk = Conversation(now=self.at)
        self.rules = Rules(greeting=greeting, key_actions=("9",))
        self.lost: list[str] = []
        self.trace = Trace(self.at, self.lost.append)
        self.commands: list[Command] = []
        self.path: Path | None = None

    def caller(self, **message: Any) -> None:
        text = msgspec.json.encode(message).decode()
        try:
            decoded = twilio_messages.decode(text)
        except ProtocolError as error:
            self.gives(Misread("caller", error.reason))
            return
        self.gives(FromPhone(decoded))

    def model(self, type: str, **event: Any) -> None:
        text = msgspec.json.encode({"type": type, **event}).decode()
        decoded = realtime_events.decode(text)
        if not isinstance(decoded, realtime_events.Other):
            self.gives(FromModel(FIRST_CONNECTION, decoded))

    def gives(self, given: Input) -> None:
        self.trace.input(given, self.at)
        self.obey(self.talk.handle(given, self.at))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            self.trace.command(command, self.at)
        self.commands += commands

    # --- events of a call ---

    def start(self, call_sid: str = "CA1", stream_sid: str = "MZ1") -> None:
        media = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        details = {"callSid": call_sid, "mediaFormat": media}
        self.caller(event="start", streamSid=stream_sid, start=details)
        self.path = self.trace.open(WRITER, self.folder, call_sid, stream_sid)
        self.gives(SetRules(self.rules))
        self.gives(Dialled(FIRST_CONNECTION))

    def frames(self, ms: int) -> None:
        for _ in range(ms // 20):
            self.at += 0.02
            media = {"timestamp": str(self.timestamp), "payload": payload(20)}
            self.caller(event="media", streamSid="MZ1", media=media)
            self.timestamp += 20

    def mark(self, name: str) -> None:
        self.caller(event="mark", streamSid="MZ1", mark={"name": name})

    def says(self, ms: int, item: str = "i1") -> None:
        self.model(
            "response.output_audio.delta",
            response_id="r1",
            item_id=item,
            delta=payload(ms),
        )


def a_whole_call(folder: Path) -> TracedCall:
    """Greeting, held audio, an answer, a barge-in, a guardrail, errors, the end."""
    call = TracedCall(folder)
    call.caller(event="connected", protocol="Call", version="1.0.0")
    call.caller(event="nonsense")
    call.start()
    call.frames(100)
    call.model("session.updated", session=MULAW_SESSION)
    call.model("response.created", response={"id": "r1"})
    call.model(
        "response.output_audio_transcript.delta",
        response_id="r1",
        item_id="i1",
        delta="Grüß Gott, \u2028 hello",
    )
    call.says(1000)
    call.mark("m1")
    call.frames(400)
    call.model("input_audio_buffer.speech_started", item_id="u1")
    call.at += 1.1  # the fence is lost, and frames stop while the caller speaks
    call.gives(Tick())
    call.model("input_audio_buffer.speech_stopped", item_id="u1")
    call.gives(Misread("model", "event is no JSON"))
    call.trace.session(Note("tool_start", {"tool": "opening_hours"}), call.at)
    call.model("response.done", response={"id": "r1", "status": "cancelled"})
    call.model("response.created", response={"id": "r2"})
    call.gives(Interrupt("guardrail", "r2"))
    call.gives(Interrupt("application"))
    call.caller(event="dtmf", streamSid="MZ1", dtmf={"digit": "5"})
    call.model("response.done", response={"id": "r2", "status": "cancelled"})
    inputs_of_the_users_code(call)
    call.model("error", error={"type": "server_error", "message": "oh"})
    call.frames(100)
    call.gives(EndCall("caller", "connection_lost"))
    call.trace.close()
    written()
    return call


def inputs_of_the_users_code(call: TracedCall) -> None:
    """Every input that is not a message of the caller or the model, with the commands
    that only it causes."""
    call.caller(event="dtmf", streamSid="MZ1", dtmf={"digit": "#"})
    call.caller(event="dtmf", streamSid="MZ1", dtmf={"digit": "9"})
    call.gives(Tell("system", "They are a regular.", True))
    call.gives(Ask())
    message = {"id": "u1", "type": "message", "role": "user"}
    call.model("conversation.item.added", item=message)
    call.gives(Edit(("i1",), {"u1": "(hidden)"}))
    call.gives(MuteCaller(True))
    call.frames(40)
    call.gives(MuteCaller(False))
    call.gives(ToolRunning(1, "call_1"))
    call.gives(ToolRunning(-1, "call_1"))
    call.gives(Play(payload(100)))
    call.gives(WhenHeard(1, None, False))
    call.gives(WhenHeard(2, ("agent", "hung_up")))
    call.gives(Interrupt("application"))
    call.gives(Goodbye("cost"))


def lines(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    written()
    return list(read(path))


def inputs(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line["in"] for line in found if "in" in line]


def differences(path: Path | None) -> list[Any]:
    assert path is not None
    written()
    return [pair for pair in replay(path) if pair[0] != pair[1]]


def test_a_replay_gives_the_same_call(tmp_path: Path) -> None:
    """A failure that a caller had can be reproduced, and so corrected."""
    call = a_whole_call(tmp_path)
    assert call.path is not None

    pairs = list(replay(call.path))

    assert len(pairs) == len(call.commands) > 60
    assert differences(call.path) == []
    assert {recorded["kind"] for recorded, _ in pairs} == {
        "to_caller",
        "to_model",
        "note",
        "interrupted",
        "started",
        "switch",
        "wait_done",
        "pressed",
        "end",
    }


def test_a_trace_says_what_happened_and_when(tmp_path: Path) -> None:
    """A reader of the trace sees both sides, in order, with the time of each line."""
    call = a_whole_call(tmp_path)

    found = lines(call.path)

    begin = msgspec.to_builtins(Bounds())
    leg = msgspec.to_builtins(MEDIA_STREAM)
    assert found[0] == {
        "at": 50.0,
        "format": TRACE_FORMAT,
        "begin": begin,
        "capabilities": leg,
    }
    [rules] = [it for it in inputs(found) if it["kind"] == "set_rules"]
    assert rules["rules"]["greeting"] == GREETING
    assert all("at" in line for line in found)
    assert [line["at"] for line in found] == sorted(line["at"] for line in found)
    [session] = [line["session"] for line in found if "session" in line]
    assert (session["name"], session["data"]) == (
        "tool_start",
        {"tool": "opening_hours"},
    )
    commands = [line["out"] for line in found if "out" in line]
    notes = [it for it in commands if it["kind"] == "note"]
    pressed = [it["private"] for it in notes if it["name"] == "key_pressed"]
    assert pressed == [{"digit": "5"}, {"digit": "#"}, {"digit": "9"}]
    assert [it["keys"] for it in commands if it["kind"] == "pressed"] == ["9"]


def test_a_changed_core_is_noticed(tmp_path: Path) -> None:
    """A change of the calls' behaviour shows in the replay of old traces."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    text = text_of(call.path)

    rewrite(
        call.path,
        text.replace(
            '{"kind":"end_call","by":"caller","why":"connection_lost"}',
            '{"kind":"end_call","by":"x","why":"y"}',
        ),
    )

    assert len(differences(call.path)) == 1


def test_a_command_that_is_missing_in_the_trace_is_noticed(tmp_path: Path) -> None:
    """The replay of a trace that ends before its call shows what would have come
    next."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    *kept, _ = text_of(call.path).split("\n")[:-1]
    rewrite(call.path, "\n".join([*kept, ""]))

    [(recorded, now)] = differences(call.path)

    assert recorded == {}
    assert now == {"kind": "end", "by": "caller", "why": "connection_lost"}


@pytest.mark.parametrize("left", ["", '{"at":', '{"at":99.0,"in":{"kind":"tick"}}'])
@pytest.mark.parametrize("name", ["CA1.MZ1.trace.jsonl", "CA1.MZ1.trace.jsonl.zst"])
def test_a_line_that_a_crash_cut_off_is_ignored(
    tmp_path: Path, name: str, left: str
) -> None:
    """The trace of a call whose process was killed can be read up to its last whole
    line; so can one that an earlier version has written, which is not compressed."""
    call = a_whole_call(tmp_path / "call")
    assert call.path is not None
    text, path = text_of(call.path) + left, tmp_path / name
    if name.endswith(".zst"):
        rewrite(path, text)
    else:
        path.write_text(text)

    assert lines(path) == lines(call.path)
    assert differences(path) == []


def test_a_trace_that_is_still_written_can_be_read(tmp_path: Path) -> None:
    """Wherever the file ends at that moment, the lines are those of the whole trace."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    whole, content = lines(call.path), call.path.read_bytes()
    for size in range(0, len(content), 17):
        call.path.write_bytes(content + content[:size])
        read_now = lines(call.path)
        assert read_now[: len(whole)] == whole
        assert read_now[len(whole) :] == whole[: len(read_now) - len(whole)]


def test_a_trace_is_written_in_blocks_and_whole_at_the_end(tmp_path: Path) -> None:
    """The caller's audio never waits for a disk; what came before `start` is in the
    trace, too."""
    call = TracedCall(tmp_path)
    call.start()
    call.frames(1000)
    written()
    assert call.path is not None and call.path.stat().st_size < 2000
    call.trace.close()

    assert len(lines(call.path)) == 6 + 50
    assert "begin" in lines(call.path)[0]


@pytest.mark.parametrize(
    ("call_sid", "stream_sid", "name"),
    [
        ("CA1", "MZ2", "CA1.MZ2.trace.jsonl.zst"),
        ("../../etc/passwd", "/root", "______etc_passwd._root.trace.jsonl.zst"),
        ("CA\x00\n é", "..", "CA____.__.trace.jsonl.zst"),
        ("A" * 5000, "", f"{'A' * 64}.{'A' * 64}.trace.jsonl.zst"),
    ],
)
def test_a_hostile_sid_is_only_an_odd_name(
    tmp_path: Path, call_sid: str, stream_sid: str, name: str
) -> None:
    """A SID with path parts cannot make the bridge write outside the folder."""
    folder = tmp_path / "made" / "here"
    trace = Trace(1.0, pytest.fail)

    path = trace.open(WRITER, folder, call_sid, stream_sid)
    trace.close()
    written()

    assert path == folder / name
    assert [it.name for it in folder.iterdir()] == [name]


def test_a_socket_without_a_start_costs_no_memory() -> None:
    """Messages before `start` are stored up to a limit, and never written to a file."""
    lost: list[str] = []
    trace = Trace(1.0, lost.append)
    for n in range(10_000):
        trace.input(Misread("caller", "unknown event"), float(n))

    assert trace._early == []
    assert lost == ["too much before the start of the call"]
    trace.close()


def test_malformed_messages_before_the_start_can_be_replayed(tmp_path: Path) -> None:
    """A call with malformed messages before `start` can be analysed, too."""
    call = TracedCall(tmp_path)
    for _ in range(100):
        call.caller(event="stop", streamSid="MZ1")
    call.start()
    call.mark("m99")
    call.trace.close()

    assert differences(call.path) == []
    assert sum(len(line) for line in call.trace._early) < MAX_EARLY_BYTES


def test_without_a_writable_folder_only_the_trace_is_lost(tmp_path: Path) -> None:
    """The operator is told once; the call continues."""
    (tmp_path / "file").write_text("in the way")
    call = TracedCall(tmp_path / "file")
    call.start()
    call.frames(100)
    call.trace.close()
    written()

    assert len(call.lost) == 1
    assert "CA1" not in call.lost[0]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process gets longer than 4 kB; writing more is an OSError."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, most))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("lines", [2_000, 20_000], ids=["at the end", "before"])
def test_on_a_full_disk_only_the_trace_is_lost(
    lines: int, tmp_path: Path, full_disk: None
) -> None:
    """A trace that cannot be written is abandoned, also at the very end of the call."""
    lost: list[str] = []
    trace = Trace(1.0, lost.append)
    path = trace.open(WRITER, tmp_path, "CA1", "MZ1")
    for _ in range(lines):
        trace.input(Tick(), random.random())
    written()
    assert len(lost) == (lines > 2_000)
    trace.close()
    written()

    assert lost == [os.strerror(errno.EFBIG)]
    assert path.stat().st_size == 4096


def test_a_trace_has_a_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace that is larger than any normal call's is abandoned, and the operator is
    told."""
    monkeypatch.setattr("bridge.telemetry.trace.MAX_BYTES", 10_000)
    lost: list[str] = []
    trace = Trace(1.0, lost.append)
    path = trace.open(WRITER, tmp_path, "CA1", "MZ1")
    for n in range(1000):
        trace.input(Tick(), float(n))
    trace.close()
    written()

    assert lost == ["larger than a call can be"]
    assert 9_000 < len(text_of(path)) <= 10_100


def test_a_closed_trace_ignores_further_lines(tmp_path: Path) -> None:
    """A bridge that shuts down while a call is ending ends the other calls, too."""
    call = a_whole_call(tmp_path)

    call.gives(EndCall("bridge", "shutdown"))  # Server.close, while the call concludes
    call.trace.close()

    assert differences(call.path) == []


@pytest.mark.parametrize(
    "odd",
    [
        '{"kind":"dance"}',
        '{"kind":"end_call","by":"caller"}',
        '{"kind":"misread","side":null,"reason":"x"}',
        '{"kind":"mute","on":"yes"}',
        '{"kind":"from_phone","message":{"event":"mark"}}',
    ],
)
def test_an_unknown_input_is_refused(tmp_path: Path, odd: str) -> None:
    """The trace of a changed version is not replayed as if this version understood
    it."""
    call = a_whole_call(tmp_path)
    assert call.path is not None
    rewrite(call.path, text_of(call.path).replace('{"kind":"tick"}', odd))

    with pytest.raises(ValueError, match=r"missing|Invalid|Expected"):
        list(replay(call.path))


# --- redaction, permissions ---

VISA = "4111 1111 1111 1111"
ALL = Redaction(cards=True, keys=True, patterns=(pattern(r"(?i)hush\w{0,9}"),))


def a_call_with_a_card(folder: Path, redaction: Redaction) -> TracedCall:
    """The card number is spoken, typed, repeated, given to a tool and added by the
    operator."""
    call = TracedCall(folder)
    media = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    facts = {"callSid": "CA1", "mediaFormat": media, "customParameters": {"c": VISA}}
    call.caller(event="start", streamSid="MZ1", start=facts)
    call.path = call.trace.open(WRITER, folder, "CA1", "MZ1", redaction)
    call.gives(Dialled(FIRST_CONNECTION))
    call.rules = msgspec.structs.replace(call.rules, greeting=f"Say {VISA}.")
    call.gives(SetRules(call.rules))
    call.frames(100)
    call.model("session.updated", session=MULAW_SESSION)
    spoken = "conversation.item.input_audio_transcription"
    call.model(f"{spoken}.delta", item_id="u1", delta="4111 1111")
    call.model(f"{spoken}.completed", item_id="u1", transcript=f"It is {VISA}.")
    call.model("response.created", response={"id": "r1"})
    for delta in ("Your card ", "4111 1111 ", "1111 1111", ", hushed."):
        call.model(
            "response.output_audio_transcript.delta",
            response_id="r1",
            item_id="i1",
            delta=delta,
        )
    call.says(1000)
    tool = {"id": "c1", "type": "function_call", "call_id": "call_1", "name": "pay"}
    tool["arguments"] = msgspec.json.encode(
        {"card": int(VISA.replace(" ", ""))}
    ).decode()
    call.model("conversation.item.done", item=tool)
    for digit in "4111":
        call.caller(event="dtmf", streamSid="MZ1", dtmf={"digit": digit})
    call.gives(Tick())
    call.gives(Tell("system", f"Charge {VISA}.", True))
    call.gives(Edit(("u0",), {"u1": VISA}))
    call.gives(Send('{"type":"x","text":"4111 1111 1111 1111"}'))
    call.gives(Send("no JSON: 4111 1111 1111 1111"))
    call.gives(Play(payload(100)))
    call.caller(event="dtmf", streamSid="MZ1", dtmf={"digit": "9"})
    call.mark("m1")
    call.frames(1500)
    call.at += 3
    call.gives(Tick())
    call.gives(EndCall("caller", "hung_up"))
    call.trace.close()
    written()
    return call


def test_a_trace_is_redacted_as_the_route_says(tmp_path: Path) -> None:
    """A thief of the disk gets no card number: not as said, typed or heard. A reader of
    the trace sees that something was removed."""
    open_call = a_call_with_a_card(tmp_path / "open", Redaction())
    call = a_call_with_a_card(tmp_path / "kept", ALL)
    assert open_call.path is not None and call.path is not None
    before, after = text_of(open_call.path), text_of(call.path)

    assert VISA in before and '"digit":"4' in before
    for secret in (VISA, VISA.replace(" ", ""), "4111", "hushed", '"digit":"'):
        found = [line for line in after.splitlines() if secret in line]
        assert not [line for line in found if "[keys]" not in line], secret
    assert payload(20) not in after and payload(100) not in after
    assert lines(call.path)[0]["redacted"] == ["cards", "keys", "pattern"]
    assert "redacted" not in lines(open_call.path)[0]
    assert "[card number]" in after and "[keys]" in after and "[removed]" in after


def test_a_trace_without_texts_can_be_replayed(tmp_path: Path) -> None:
    """Line for line, with the same times: failures stay visible, and the call can be
    replayed."""
    whole = lines(a_call_with_a_card(tmp_path / "open", Redaction()).path)
    call = a_call_with_a_card(tmp_path / "kept", ALL)
    kept = lines(call.path)

    assert [line["at"] for line in kept] == [line["at"] for line in whole]
    for part in ("in", "out"):
        kinds = [line.get(part, {}).get("kind") for line in whole]
        assert [line.get(part, {}).get("kind") for line in kept] == kinds
    assert call.path is not None
    replayed = list(replay(call.path))
    # When the bridge asks if the server is there depends on how loud the caller is.
    before, again = (
        [it["kind"] for it in side if it and "bridge_probe" not in str(it)]
        for side in zip(*replayed, strict=True)
    )
    assert before == again


def test_a_trace_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Other users of the machine cannot read what callers said."""
    folder = tmp_path / "records"
    call = a_whole_call(folder)

    assert call.path is not None
    assert call.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("is_link", [False, True])
def test_a_trace_is_never_written_over_another_file(
    tmp_path: Path, is_link: bool
) -> None:
    """A stream with the SIDs of an earlier one destroys no trace, and does not follow a
    link that was put in its place."""
    there = tmp_path / "CA1.MZ1.trace.jsonl.zst"
    elsewhere = tmp_path / "elsewhere"
    if is_link:
        there.symlink_to(elsewhere)
    else:
        there.write_text("an earlier call")
    call = TracedCall(tmp_path)

    call.start()
    call.trace.close()
    written()

    assert call.lost == ["File exists"]
    assert not elsewhere.exists()
    assert is_link or there.read_text() == "an earlier call"


@pytest.mark.parametrize(
    "content", [b"not JSON\n", b"[1]\n", MAGIC + bytes(range(100))]
)
def test_a_file_that_is_no_trace_is_named(tmp_path: Path, content: bytes) -> None:
    """A user who names the wrong file reads what is wrong, and no traceback."""
    path = tmp_path / "CA1.MZ1.trace.jsonl.zst"
    path.write_bytes(content)

    with pytest.raises(TraceFormatError, match="damaged"):
        list(read(path))
