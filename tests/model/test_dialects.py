"""Each form in which a server speaks another Realtime API than OpenAI's, and what the
call and the SDK get of it. Each event that they get is one that the SDK takes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from bridge.core import realtime_events
from bridge.core.model_side import NOT_CONFIRMED
from bridge.model import beta_protocol, dialects
from bridge.model.dialects import (
    LARGE_CHARS,
    MAX_ITEMS,
    MAX_UPDATES,
    NO_TEXT,
    NO_TRANSCRIPT,
    Dialect,
)
from bridge.model.sdk_model import transcript_delta

Event = dict[str, Any]
IDS = {"response_id": "r", "item_id": "i", "output_index": 0, "content_index": 0}
_SDK: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def event(kind: str, **fields: Any) -> Event:
    return {"type": kind, "event_id": "e", **fields}


def part(kind: str, **fields: Any) -> Event:
    return event(kind, **IDS, **fields)


def item(kind: str, **fields: Any) -> Event:
    return event(
        kind,
        response_id="r",
        output_index=0,
        item={"id": "i", "type": "message"} | fields,
    )


def shown(kind: str, **fields: Any) -> Event:
    message = {"id": "i", "type": "message", "role": "assistant", "content": []}
    return event(kind, previous_item_id=None, item=message | fields)


def response(kind: str, **fields: Any) -> Event:
    return event(kind, response={"id": "r", **fields})


ADDED = item("response.output_item.added", role="assistant", content=[])
ENDED = item(
    "response.output_item.done", role="assistant", content=[], status="completed"
)
CALL = {"type": "function_call", "call_id": "c", "name": "look", "arguments": ""}
CALLED = item("response.output_item.added", **CALL)
WORDS = part("response.output_audio_transcript.delta", delta="Hi")
ALL_WORDS = part("response.output_audio_transcript.done", transcript="Hi there")
ARGUMENTS = part(
    "response.function_call_arguments.done",
    call_id="c",
    name="look",
    arguments='{"a":1}',
)
CREATED = response("response.created", status="in_progress")
DONE = response("response.done", status="completed", output=[])


class Server:
    """A dialect, and what it makes of a server's events."""

    def __init__(self, *, waits_for_updated: bool = True) -> None:
        self.reported: list[str] = []
        self.dialect = Dialect(
            self.reported.append, waits_for_updated=waits_for_updated
        )

    def says(self, *events: Event) -> list[Event]:
        """The events in form; each must be one that the SDK takes."""
        return list(self._each(events))

    def _each(self, events: tuple[Event, ...]) -> Iterator[Event]:
        for given in events:
            made = self.dialect.read(json.dumps(given))
            for text in [json.dumps(given)] if made is None else made:
                it = json.loads(text)
                if it.get("previous_item_id", "") is None:
                    it["previous_item_id"] = ""  # as the SDK does
                _SDK.validate_python(it)
                yield it

    def passes(self, *events: Event) -> bool:
        """Every event is in form: it passes unchanged."""
        return all(self.dialect.read(json.dumps(it)) is None for it in events)


def kinds(events: list[Event]) -> list[str]:
    return [it["type"] for it in events]


def without(it: Event, *names: str) -> Event:
    return {key: value for key, value in it.items() if key not in names}


# --- events in form ---


def test_events_in_form_pass_unchanged() -> None:
    """A call with OpenAI costs nothing more than the tests of its events."""
    server = Server()

    assert server.passes(
        event("session.created", session={"type": "realtime"}),
        event("session.updated", session={"type": "realtime", "audio": {}}),
        CREATED,
        ADDED,
        shown("conversation.item.added"),
        part("response.content_part.added", part={"type": "audio"}),
        WORDS,
        WORDS,
        part("response.output_audio.delta", delta="AAAA"),
        part("response.output_audio.done"),
        ALL_WORDS,
        shown("conversation.item.done"),
        ENDED,
        CALLED | {"output_index": 1},
        DONE,
        event("error", error={"type": "x", "message": "y"}),
        event("rate_limits.updated", rate_limits=[]),
        event("no.such.event"),
    )
    assert server.reported == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"type":5}', '{"no":"type"}', "[" * 100_000]
)
def test_what_cannot_be_read_is_left_to_others(text: str) -> None:
    """The call reports it."""
    assert Server().dialect.read(text) is None


@pytest.mark.parametrize(
    "given",
    [
        event("session.updated", session=None),
        event("response.done", response=None),
        response("response.done", output=[5, {}, {"id": "m", "type": "message"}]),
        event("response.output_item.done", response_id="r", output_index=0, item=5),
        event("response.output_item.added", response_id=7, output_index=0, item={}),
        event("conversation.item.added", item={"id": 7}),
        event("error", error=None),
        {**ARGUMENTS, "arguments": 5},
        {**ALL_WORDS, "item_id": 7},
        {**ALL_WORDS, "transcript": 7},
        {**WORDS, "item_id": "x" * 1000},
        item("response.output_item.done", **CALL | {"arguments": {"a": 1}}),
        item("response.output_item.done", **CALL | {"arguments": 5, "call_id": [1]}),
    ],
)
def test_malformed_events_pass(given: Event) -> None:
    """They are reported where they are read, and stop nothing here."""
    Server().dialect.read(json.dumps(given))


# --- missing fields ---

LEFT_OUT = ("event_id", "output_index", "content_index")


@pytest.mark.parametrize(
    "given",
    [
        CREATED,
        ADDED,
        WORDS,
        ALL_WORDS,
        ARGUMENTS,
        ENDED,
        DONE,
        event("session.updated", session={"type": "realtime"}),
        event("input_audio_buffer.speech_started", item_id="u"),
        event("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=3),
        event(
            "conversation.item.input_audio_transcription.completed",
            item_id="u",
            transcript="Hello",
        ),
        event("error", error={"type": "x", "message": "y"}),
        part("response.output_text.delta", delta="x"),
    ],
)
def test_missing_fields_are_filled(given: Event) -> None:
    """Without them the SDK drops the event: the guardrails read nothing, and no tool
    runs, while the audio plays."""
    server = Server()
    server.says(ADDED, shown("conversation.item.added"))

    made = server.says(without(given, *LEFT_OUT))[-1]

    filled = [name for name in made if name in LEFT_OUT or name not in given]
    assert "event_id" in filled
    for name in filled:
        assert made[name] == dialects.FILLED[name]
    for name in given.keys() - LEFT_OUT:
        assert made[name] == given[name]


def test_a_filled_delta_takes_the_short_way_to_the_sdk() -> None:
    (made,) = (it for it in Server().says(without(WORDS, *LEFT_OUT)) if "delta" in it)

    assert transcript_delta(made) is not None


# --- other events than the SDK expects ---


def test_words_that_come_only_at_their_end() -> None:
    """The guardrails and the history get them."""
    server = Server()
    made = server.says(CREATED, ADDED, shown("conversation.item.added"), ALL_WORDS)

    assert made[-2:] == [
        {
            **without(ALL_WORDS, "transcript"),
            "type": WORDS["type"],
            "delta": "Hi there",
        },
        ALL_WORDS,
    ]
    assert server.says(ALL_WORDS) == [ALL_WORDS], "given once"
    text = part("response.output_text.done", text="Hi") | {"item_id": "i2"}
    assert kinds(server.says(text))[-2:] == [
        "response.output_text.delta",
        "response.output_text.done",
    ]


def test_words_that_came_in_pieces_are_not_repeated() -> None:
    """Also where two parts end one after the other, and where no item was announced."""
    server = Server()
    other = {"item_id": "i2"}
    made = server.says(WORDS, WORDS | other, ALL_WORDS, ALL_WORDS | other)

    said = [it["delta"] for it in made if it["type"] == WORDS["type"]]
    assert said == ["Hi", "Hi"]
    assert server.says(part(ALL_WORDS["type"], transcript="")) != []


def test_a_tool_call_that_comes_only_as_its_arguments() -> None:
    """The tool runs: the SDK reads response.output_item.done alone."""
    made = Server().says(CREATED, ARGUMENTS, DONE)

    assert kinds(made) == [
        "response.created",
        "response.function_call_arguments.done",
        "conversation.item.added",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert made[3]["item"] == {
        **{"id": "i", "type": "function_call", "call_id": "c", "name": "look"},
        **{"arguments": '{"a":1}', "status": "completed"},
    }


def test_words_and_tool_calls_with_one_item_id() -> None:
    """The guardrails read each sentence, and each tool runs, once."""
    more = ALL_WORDS | {"transcript": "How are you?"}
    other = ARGUMENTS | {"call_id": "c2", "name": "book"}
    made = Server().says(
        CREATED, ALL_WORDS, more, more, ARGUMENTS, other, other, without(DONE, "output")
    )

    words = [it["delta"] for it in made if it["type"] == WORDS["type"]]
    assert words == ["Hi there", "How are you?"]
    calls = [it["item"] for it in made if it["type"] == "response.output_item.done"]
    assert [(it["call_id"], it["name"]) for it in calls] == [
        ("c", "look"),
        ("c2", "book"),
    ]
    assert len({it["id"] for it in calls}) == 2
    alone = Server().says(CREATED, ARGUMENTS, other, DONE)
    assert kinds(alone).count("response.output_item.done") == 2


def test_the_name_of_a_tool_that_only_the_announcement_has() -> None:
    """The beta protocol's arguments.done has no name."""
    given = without(ARGUMENTS, "name", "call_id")
    made = Server().says(CREATED, CALLED, given, DONE)

    (done,) = (it for it in made if it["type"] == "response.output_item.done")
    assert (done["item"]["name"], done["item"]["call_id"]) == ("look", "c")


def test_a_tool_call_that_only_the_output_has() -> None:
    other = {"id": "m", "type": "message", "role": "assistant", "content": []}
    output = [{"id": "i", **CALL, "arguments": "{}"}, other]
    known: list[list[Event]] = [[], [CALLED], [ARGUMENTS | {"arguments": "{}"}]]
    for before in known:
        made = Server().says(CREATED, *before, response("response.done", output=output))

        (done,) = (it for it in made if it["type"] == "response.output_item.done")
        assert done["item"]["arguments"] == "{}"
        assert done["item"]["status"] == "completed"


@pytest.mark.parametrize("first", ["arguments", "item"])
def test_a_tool_call_with_another_id_in_the_output_runs_once(first: str) -> None:
    """A gateway may make up the ids of items anew for each event."""
    call = CALL | {"arguments": '{"a":1}', "status": "completed"}
    done = response("response.done", status="completed", output=[{"id": "j", **call}])
    ended = item("response.output_item.done", **call)
    made = Server().says(CREATED, ARGUMENTS if first == "arguments" else ended, done)
    again = Server().says(CREATED, ended, done, CREATED, without(done, "status"))

    assert kinds(made).count("response.output_item.done") == 1
    assert kinds(again).count("response.output_item.done") == 2, "of two responses"


@pytest.mark.parametrize("status", ["cancelled", "failed", "incomplete"])
def test_a_tool_call_of_a_response_that_failed_does_not_run(status: str) -> None:
    made = Server().says(CREATED, ARGUMENTS, response("response.done", status=status))

    assert "response.output_item.done" not in kinds(made)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [('{"a":1}', "completed"), ('{"a"', "incomplete"), (None, "completed")],
)
@pytest.mark.parametrize("said", [{}, {"status": None}, {"status": "in_progress"}])
def test_a_tool_call_that_ends_without_a_status(
    arguments: str | None, status: str, said: Event
) -> None:
    """It runs if its arguments are complete."""
    server = Server()
    server.says(CREATED, CALLED, ARGUMENTS)
    call = {"type": "function_call", "arguments": arguments}
    given = item("response.output_item.done", **call, **said)
    made = json.loads((server.dialect.read(json.dumps(given)) or [])[0])

    assert made["item"]["status"] == status
    assert made["item"]["call_id"] == "c"
    assert made["item"]["name"] == "look"
    assert made["item"]["arguments"] == (arguments or '{"a":1}')
    assert kinds(server.says(DONE)) == ["response.done"], "it does not run twice"


def test_an_answer_that_comes_only_as_output_items() -> None:
    """The history has it: it is shown before its first words, and ended."""
    server = Server()
    made = server.says(CREATED, ADDED, WORDS, ALL_WORDS, ENDED, DONE)

    assert kinds(made) == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert (
        server.says(shown("conversation.item.added", id="i2"))[-1]["item"]["id"] == "i2"
    )


def test_an_answer_without_any_event_about_it_is_shown_at_its_end() -> None:
    made = Server().says(CREATED, ADDED, DONE)

    assert kinds(made)[2:] == [
        "conversation.item.added",
        "conversation.item.done",
        "response.done",
    ]
    made = Server().says(CREATED, ENDED, DONE)
    assert kinds(made)[1:] == [
        "conversation.item.added",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]


def test_created_in_place_of_added() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, 5]
    given = shown("conversation.item.created", content=content[:1])
    made = Server().says(CREATED, ADDED, given, ENDED, DONE)

    assert kinds(made)[2:5] == [
        "conversation.item.added",
        "response.output_item.done",
        "conversation.item.done",
    ]
    assert made[2]["item"]["content"] == [{"type": "output_text", "text": "a"}]
    renamed = beta_protocol.item({"role": "assistant", "content": content})
    assert renamed["content"] == [{"type": "output_text", "text": "a"}, *content[1:]]


def test_an_item_that_is_shown_before_its_response_has_it() -> None:
    server = Server()
    server.says(CREATED, shown("conversation.item.added", id="i"), ADDED, DONE)

    assert server.dialect._items == {}


def test_the_items_are_bounded() -> None:
    """A server that ends no response does not fill the memory."""
    server = Server()
    for n in range(MAX_ITEMS + 9):
        server.says(shown("conversation.item.added", id=f"i{n}", role="user"))

    assert len(server.dialect._items) == MAX_ITEMS


def test_large_items_do_not_fill_the_memory() -> None:
    """The lists of an item take many times the memory of their text."""
    server = Server()
    parts: list[Any] = [[]] * (LARGE_CHARS // 2)
    server.dialect.read(json.dumps(shown("conversation.item.added", content=parts)))
    server.dialect.read(
        json.dumps(item("response.output_item.done", id="j", content=parts))
    )

    assert [it.fields.get("content") for it in server.dialect._items.values()] == [
        None,
        None,
    ]


def test_an_answer_without_words_is_reported() -> None:
    """Guardrails and transcript have nothing to read."""
    server = Server()
    sound = part("response.output_audio.delta", delta="AAAA")
    late = json.loads(json.dumps({"x": "y" * 300, **sound}))
    server.says(CREATED, sound, WORDS, DONE)
    server.says(CREATED, late, response("response.done", status="cancelled"))
    assert server.reported == []
    server.says(ALL_WORDS, CREATED, late, DONE)
    assert server.reported == [], "its words came before it began"
    again = json.loads(json.dumps(CREATED).replace('"r"', '"r2"'))
    server.says(again, late, json.loads(json.dumps(DONE).replace('"r"', '"r2"')))
    assert server.reported == [NO_TRANSCRIPT]
    server.dialect.read(json.dumps(event("response.created", response=None)))


# --- the beta protocol ---


@pytest.mark.parametrize(("beta", "ga"), beta_protocol.NAMES.items())
def test_beta_names(beta: str, ga: str) -> None:
    fields = {"delta": "AAAA", "transcript": "", "text": ""}
    given = {**shown(beta), **part(beta, **fields)}

    assert ga in kinds(Server().says(given))


FLAT = {
    "id": "s",
    "object": "realtime.session",
    "model": "m",
    "modalities": ["text", "audio"],
    "instructions": "Be kind.",
    "voice": "alloy",
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "pcm16",
    "turn_detection": {"type": "server_vad"},
    "input_audio_transcription": None,
    "temperature": 0.8,
}


def test_a_flat_session() -> None:
    """Its audio formats are checked like those of GA: PCM on a mu-law line would be
    noise."""
    (made,) = Server().says(event("session.updated", session=FLAT))
    updated = realtime_events.decode(json.dumps(made))

    assert isinstance(updated, realtime_events.SessionUpdated)
    assert updated.formats == ("audio/pcmu", "audio/pcm")
    assert made["session"]["output_modalities"] == ["audio"]
    assert made["session"]["audio"]["output"]["voice"] == "alloy"
    assert not updated.transcribes


def test_odd_flat_sessions() -> None:
    """Formats that are unknown, or of a wrong type; a session of text."""
    odd = {"input_audio_format": {"x": 1}, "output_audio_format": "opus"}
    made = beta_protocol.session({**odd, "modalities": ["text"], "instructions": 5})

    assert made == {
        "type": "realtime",
        "output_modalities": ["text"],
        "audio": {"output": {"format": {"type": "opus"}}},
    }


def test_a_flat_session_without_text() -> None:
    """Neither the guardrails nor the transcript would have words: reported at the start
    of the call, once."""
    server = Server()
    for _ in range(2):
        server.says(event("session.updated", session=FLAT | {"modalities": ["audio"]}))
    assert server.reported == [NO_TEXT]

    server = Server()
    server.says(event("session.updated", session=FLAT | {"modalities": ["text"]}))
    server.says(event("session.updated", session=FLAT | {"modalities": None}))
    assert server.reported == []


@pytest.mark.parametrize(
    ("modalities", "shown"),
    [(["text"], ["text"]), (["text", "audio"], ["audio"]), (None, None)],
)
def test_modalities_beside_the_audio_settings(modalities: Any, shown: Any) -> None:
    """aimock confirms its answers in text so: the call must not wait for a sound."""
    audio = {"output": {"format": {"type": "audio/pcmu"}}}
    both = {"type": "realtime", "modalities": modalities, "audio": audio}
    (made,) = Server().says(event("session.updated", session=both))
    updated = realtime_events.decode(json.dumps(made))

    assert made["session"]["output_modalities"] == shown
    assert isinstance(updated, realtime_events.SessionUpdated)
    assert updated.speaks is (shown != ["text"])
    named = both | {"output_modalities": ["audio"]}
    assert Server().passes(event("session.updated", session=named))


def test_a_session_without_a_type_gets_it() -> None:
    (made,) = Server().says(event("session.created", session={"audio": {}}))

    assert made["session"] == {"audio": {}, "type": "realtime"}


UPDATE = {
    "type": "session.update",
    "event_id": "u1",
    "session": {
        "type": "realtime",
        "output_modalities": ["audio"],
        "instructions": "Be kind.",
        "tools": [],
        "audio": {
            "input": {"format": {"type": "audio/pcmu"}, "turn_detection": None},
            "output": {"format": {"type": "audio/pcmu"}, "voice": "marin"},
        },
    },
}
# Without the input format, which FLAT has already.
FLAT_UPDATE = {
    "type": "session.update",
    "event_id": "u1_flat",
    "session": {
        "instructions": "Be kind.",
        "tools": [],
        "voice": "marin",
        "turn_detection": None,
        "output_audio_format": "g711_ulaw",
        "modalities": ["audio", "text"],
    },
}


def beta_server() -> Server:
    """A server that was sent an update, and then told that its session is flat."""
    server = Server()
    text = json.dumps(UPDATE)
    assert server.dialect.written(text) == text, "its form is not known yet"
    server.says(event("session.created", session=FLAT))
    assert list(map(json.loads, server.dialect.take_resent())) == [FLAT_UPDATE]
    assert server.dialect.take_resent() == []
    return server


def refusal(event_id: str | None) -> Event:
    return event("error", error={"type": "x", "message": "", "event_id": event_id})


@pytest.mark.parametrize(
    "audio", [[1], {"input": 1}, {"input": {"format": "g711_ulaw"}}]
)
def test_a_beta_server_that_confirms_an_odd_session(audio: Any) -> None:
    """It is no error here."""
    odd = event("session.updated", session={"audio": audio})
    beta_server().dialect.read(json.dumps(odd))


def test_a_beta_server_gets_the_flat_session() -> None:
    """What it answers to the first form does not count: a refusal, or its defaults."""
    mulaw = {**FLAT, "output_audio_format": "g711_ulaw"}
    server = beta_server()
    assert server.says(refusal("u1")) == []
    assert kinds(server.says(event("session.updated", session=mulaw))) == [
        "session.updated"
    ]

    server = beta_server()
    assert len(server.says(event("session.updated", session=mulaw))) == 1
    assert len(server.says(event("session.updated", session=FLAT))) == 1

    server = beta_server()
    assert server.says(event("session.updated", session=FLAT)) == []
    (made,) = server.says(event("session.updated", session=FLAT))
    assert made["session"]["audio"]["output"]["format"]["type"] == "audio/pcm"
    assert server.says(refusal("u1")) == [], "also if the refusal comes late"
    (made,) = server.says(refusal("u1_flat"))
    assert made["error"]["event_id"] == "u1", "the flat form's refusal counts"
    assert server.says(refusal(None)) == [refusal(None)]


def test_client_events_to_a_beta_server() -> None:
    written = beta_server().dialect.written
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
    create = {"type": "conversation.item.create", "item": said}
    asks = {"type": "response.create", "response": {"output_modalities": ["text"]}}
    append = '{"type":"input_audio_buffer.append","audio":"AAAA"}'
    plain = '{"type":"response.create"}'

    assert json.loads(written(json.dumps(UPDATE))) == FLAT_UPDATE
    made = json.loads(written(json.dumps(create)))
    assert made["item"]["content"] == [{"type": "text", "text": "a"}]
    assert json.loads(written(json.dumps(asks)))["response"] == {"modalities": ["text"]}
    assert written(append) == append
    assert json.loads(written(plain)) == json.loads(plain)


def test_client_events_to_a_ga_server_pass_unchanged() -> None:
    server = Server()
    server.dialect.written(json.dumps(UPDATE))
    server.says(event("session.created", session={"type": "realtime", "audio": {}}))
    create = '{"type":"conversation.item.create","x":"session.update"}'

    assert server.dialect.take_resent() == []
    assert server.dialect.written(json.dumps(UPDATE)) == json.dumps(UPDATE)
    assert server.dialect.written(create) == create
    assert Server().dialect.written(create) == create


def test_the_early_updates_are_bounded() -> None:
    server = Server()
    for n in range(MAX_UPDATES + 9):
        server.dialect.written(json.dumps({**UPDATE, "event_id": str(n)}))

    server.says(event("session.created", session=FLAT))
    assert len(server.dialect.take_resent()) == MAX_UPDATES


# --- errors ---


@pytest.mark.parametrize(
    ("given", "details"),
    [
        (
            {"error": "Model not found", "code": "model_not_found"},
            {"type": "error", "message": "Model not found", "code": "model_not_found"},
        ),
        (
            {"error": "Broken", "code": 5},
            {"type": "error", "message": "Broken", "code": None},
        ),
        (
            {"error": {"type": "insufficient_quota", "message": "x"}},
            {
                "type": "insufficient_quota",
                "message": "x",
                "code": "insufficient_quota",
            },
        ),
        ({"error": {"code": "c"}}, {"type": "error", "message": "", "code": "c"}),
        (
            {"error": {"type": ["x"], "message": "x"}},
            {"type": ["x"], "message": "x"},
        ),
    ],
)
def test_errors_of_another_shape(given: Event, details: Event) -> None:
    """The log has their message, and the call is handled by their code."""
    made = Server().dialect.read(json.dumps(event("error", **given)))
    shown = json.loads(made[0])["error"] if made else given["error"]

    assert shown == details


def test_a_session_event_without_a_session() -> None:
    (made,) = Server().says({"type": "session.created", "id": "s", "created": 1})
    assert made["session"] == {"type": "realtime"}

    server = Server(waits_for_updated=False)
    made, ready = server.says({"type": "session.created"})
    assert ready["type"] == "session.updated"
    server.dialect.read(json.dumps(event("session.updated", session=5)))


# --- a session that is never confirmed ---


def test_a_session_that_is_ready_when_it_is_created() -> None:
    """BRIDGE_MODEL_READY_ON=session.created; the log says so once, unless the server
    does confirm."""
    server = Server(waits_for_updated=False)
    created = event("session.created", session={"type": "realtime"})

    assert kinds(server.says(created)) == ["session.created", "session.updated"]
    server.says(CREATED, CREATED)
    assert server.reported == [NOT_CONFIRMED]

    server = Server(waits_for_updated=False)
    server.says(
        created, event("session.updated", session={"type": "realtime"}), CREATED
    )
    assert server.reported == []


# --- the document ---


def test_each_form_in_the_document_has_its_test() -> None:
    """A reader finds the test of each form, and no test is named that is not there."""
    root = Path(__file__).parents[2]
    page = (root / "docs/models.md").read_text()
    table = page.split("## Forms that are understood")[1].split("\n\n**")[0]
    rows = table.split("\n* ")[1:]
    tests = "".join(
        (root / "tests" / name).read_text()
        for name in ("model/test_dialects.py", "core/test_lost_model.py")
    )

    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in tests, name
