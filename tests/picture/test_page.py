"""The page of a call: what is in the file, and what no words of people can do to it."""

import base64
import gzip
import json
import re
import wave
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import pytest

from bridge.audio import g711
from bridge.picture import explanations, recording
from bridge.picture.page import page
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

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>@@DATA@@"


def view(**given: Any) -> CallView:
    """Two seconds: the agent is cut after 400 of 1000 ms."""
    made = CallView(
        call_sid="CA1", length_ms=2000, ended_by="caller", ended_why="hung_up"
    )
    made.caller, made.agent = bytes(range(256)) * 62 + b"\xff" * 128, b"\xff" * 16_000
    part = Part("i1", "agent", "shop", "r1", 900, 1000, 400, True, audio=b"\x20" * 8000)
    part.runs = [HeardRun(1000, 0, 400)]
    part.words = [Word(0, "We ", True), Word(500, "open", False)]
    made.parts = [part]
    made.turns = [CallerTurn("u1", 100, 700, "When?", 720)]
    made.responses = [
        ModelResponse(
            "r1", "shop", 710, None, 700, 900, 1000, 1100, "completed", 10, 20, 0.5
        )
    ]
    made.tools = [Tool("c1", "look", 710, '{"day":1}', "nine", 850)]
    made.events = [Event(1410, "clear"), Event(-5, "mark", {"name": "m1"})]
    made.gaps = [Gap("stream", 1500, 1800)]
    for name, value in given.items():
        setattr(made, name, value)
    return made


class Scripts(HTMLParser):
    """The scripts of a document, by id, and every address in it."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._id: str | None = None
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._id = (given.get("id") or "code") if tag == "script" else None
        self.addresses += [given[it] or "" for it in ("src", "href") if it in given]

    def handle_data(self, text: str) -> None:
        if self._id:
            self.scripts[self._id] = self.scripts.get(self._id, "") + text


def data_of(shown: CallView) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Scripts(page(shown)).scripts["data"])
    return read


def test_the_file_needs_no_network() -> None:
    """It opens from a disk, and a policy forbids the browser to load anything."""
    document = page(view())
    found = Scripts(document)

    assert found.addresses == []
    assert "link" not in found.tags and "iframe" not in found.tags
    assert "default-src 'none'" in document
    assert "@@" not in document.replace(found.scripts["code"], "")


def test_words_of_people_cannot_become_markup() -> None:
    """What a caller says, or a tool returns, is data; it ends no element."""
    shown = view()
    clean = Scripts(page(shown)).tags
    shown.turns[0].text = shown.tools[0].output = shown.parts[0].agent = HOSTILE
    shown.events.append(Event(0, "model_error", {"code": HOSTILE}, HOSTILE))
    document = page(shown)

    assert Scripts(document).tags == clean
    assert HOSTILE not in document
    said = json.dumps(data_of(shown))
    assert "onerror=alert(2)" in said and "@@DATA@@" in said


def test_words_that_look_like_the_template_stay_words() -> None:
    """Nobody can move the recording into a sentence, or markup into the title."""
    shown = view(call_sid="CA</title><script>alert(1)</script>")
    shown.turns[0].text = "@@AUDIO@@ @@TITLE@@"
    found = Scripts(page(shown))

    assert found.scripts["recording"] == Scripts(page(view())).scripts["recording"]
    assert found.tags == Scripts(page(view())).tags
    assert "@@AUDIO@@ @@TITLE@@" in found.scripts["data"]


def test_the_audio_is_that_of_the_call() -> None:
    """Both sides, as the browser plays them."""
    shown = view()
    coded = Scripts(page(shown)).scripts["recording"]
    wav = gzip.decompress(base64.b64decode(coded))

    assert wav == recording.mulaw_wav(shown)
    assert wav[8:16] == b"WAVEfmt "
    assert wav[-4:] == bytes([shown.caller[-2], 255, shown.caller[-1], 255])


def test_what_is_shown() -> None:
    """Every lane has what happened: speech, heard and unheard, waits, tools, gaps."""
    shown = data_of(view())

    bars = [
        (shown["rows"][row], begin, end, kind)
        for row, begin, end, _, kind in shown["bars"]
    ]
    assert bars == [
        ("caller speaks", 0.1, 0.7, "caller"),
        ("agent", 1.0, 1.4, "agent"),
        ("agent", 1.4, 2.0, "unheard"),
        ("caller waits", 0.7, 0.71, "wait"),
        ("caller waits", 0.71, 0.9, "wait"),
        ("caller waits", 0.9, 1.0, "wait"),
        ("tools", 0.71, 0.85, "tool"),
        ("lost", 1.5, 1.8, "failed"),
    ]
    points = [(shown["pointRows"][row], at) for row, at, _ in shown["points"]]
    assert points == [("clear, truncate", 1.41), ("marks", 0)]
    assert shown["unheard"][0]["at"] == 1.4
    assert len(base64.b64decode(shown["unheard"][0]["peaks"])) == 600 // 20
    assert len(base64.b64decode(shown["caller"])) == 2000 // 20
    [line] = [it for it in shown["lines"] if it["who"] == "shop"]
    assert line["words"] == [[1.0, "We ", True], [None, "open", False]]
    assert shown["waits"] == [[0.7, "0:00", "the caller", 0.01, 0.2, 0.3]]
    assert shown["costs"] == [[0.71, "0:00", "shop", "completed", 10, 20, 0.5]]


def test_nobody_waits_while_the_agent_speaks() -> None:
    """After a tool the answer comes behind what the agent says: the caller waits from
    the end of that."""
    shown = view(turns=[])
    before = Part("i0", "agent", "shop", "r0", 100, 850, 850)
    before.runs = [HeardRun(100, 0, 850)]
    shown.parts.insert(0, before)

    waits = [it[1:3] for it in data_of(shown)["bars"] if it[4] == "wait"]
    assert waits == [[0.95, 1.0]]


def test_a_call_without_audio_has_a_page() -> None:
    """Of a SIP call, whose audio does not pass the bridge."""
    shown = view(has_audio=False, caller=b"", agent=b"")

    assert Scripts(page(shown)).scripts.get("recording", "").strip() == ""
    assert data_of(shown)["hasAudio"] is False


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({}, ["Ended", "the caller hung up (caller_hung_up)"]),
        ({"ended_by": "model", "ended_why": "lost"}, ["Ended", "model_lost"]),
        (
            {"ended_by": "", "ended_why": ""},
            ["Ended", "no: the call still runs, or the trace was broken off"],
        ),
        ({"redacted": ["cards"]}, ["Redacted", "cards; the audio is silence"]),
    ],
)
def test_facts(given: dict[str, Any], fact: list[str]) -> None:
    assert fact in data_of(view(**given))["facts"]


def test_the_recording_has_both_sides() -> None:
    """16-bit PCM that every player reads: the caller left, what they heard right."""
    shown = view()
    with wave.open(BytesIO(recording.stereo_wav(shown))) as file:
        frames = file.readframes(file.getnframes())
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        assert file.getframerate() == 8000
    left = b"".join(frames[at : at + 2] for at in range(0, len(frames), 4))
    right = b"".join(frames[at : at + 2] for at in range(2, len(frames), 4))

    assert left == g711.linear(shown.caller)
    assert right == g711.linear(shown.agent)


def test_the_meaning_of_an_event() -> None:
    truncate = Event(0, "conversation.item.truncate", {"audio_end_ms": 900, "x": 0.123})

    assert explanations.text_of(truncate) == (
        "The bridge tells the model how much was heard (conversation.item.truncate) "
        "audio_end_ms=900 x=0.12"
    )
    assert explanations.text_of(Event(0, "new_note")) == "new_note"
    assert explanations.row_of("usage") is None


def test_the_library_is_the_published_one() -> None:
    """The file is unchanged: its licence and version stand in it and in licenses/."""
    code = Scripts(page(view())).scripts["code"]

    assert re.search(r'version="6\.\d+\.\d+"|version:"6\.\d+\.\d+"', code)
    assert "Licensed to the Apache Software Foundation" in code
