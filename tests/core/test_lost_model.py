"""The model connection is lost in any phase of a call: what the next session is told.

Each test is a script: what happened, then the loss, then everything that the next
session gets.
"""

import base64
import json
from typing import Any

import pytest

from bridge.core.caller_audio import RESEND_MS
from bridge.core.commands import End, Note, Switch
from bridge.core.conversation import LATE_SECONDS, UNANSWERED_SECONDS, State
from bridge.core.history import MAX_OPEN_TOOL_CALLS
from bridge.core.limits import Bounds
from bridge.core.model_side import PROBE_ID
from bridge.core.redial import AWAY_SECONDS, READY_SECONDS
from bridge.core.rules import BROKEN_OFF, GOODBYES
from bridge.core.sessions import (
    PROBE_AFTER_SECONDS,
    PROBE_ANSWER_SECONDS,
)
from tests.core.phone import (
    Phone,
    answering,
    appended,
    asks,
    cancels,
    dials,
    ends,
    events,
    given,
    heard,
    notes,
    one,
    only,
    payload,
    said_to_model,
    to_caller,
    to_model,
    told,
    types_to_model,
)

HANG_UP = ("agent", "hung_up")
CREATE, ASK = "conversation.item.create", "response.create"


# --- before there is a session ---


def test_a_model_that_refuses_at_first_is_tried_again() -> None:
    """A busy model costs the caller a moment, and none of their words."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.frames(100)

    assert dials(phone.not_dialled("HTTP 429")) == [(0.0, False)]
    assert dials(phone.not_dialled("HTTP 503")) == [(0.25, False)]
    phone.frames(100)
    commands = phone.model_back()

    assert said_to_model(commands) == [("system", "Say hello.")]
    assert asks(commands) == 1
    assert len(appended(commands)) == 8 * 200
    assert types_to_model(commands) == [CREATE, ASK]
    assert not notes(commands, "model_back"), "it had not been there"


def test_a_fatal_refusal_ends_the_call_at_once() -> None:
    """A wrong key does not become right by waiting."""
    phone = Phone()
    phone.start()

    commands = phone.not_dialled("HTTP 401", fatal=True)

    assert ends(commands) == [("model", "refused")]
    [note] = notes(commands, "model_refused")
    assert note.data == {"why": "HTTP 401", "fatal": True}


REFUSALS: dict[str, dict[str, Any]] = {
    "wrong key at the model": {
        "type": "server_error",
        "message": "Upstream realtime handshake rejected with HTTP 401",
    },
    "unknown model": {
        "type": "server_error",
        "message": "400: {'error': '_arealtime: Invalid model name passed in'}",
    },
    "OpenAI": {"type": "invalid_request_error", "code": "invalid_api_key"},
    "no quota": {"type": "server_error", "code": "insufficient_quota"},
    "no such model": {"type": "server_error", "code": "model_not_found"},
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_after_the_handshake_ends_the_call_at_once(kind: str) -> None:
    """A gateway accepts the connection before it has one to the model. The caller does
    not wait for a key to become right."""
    phone = Phone()
    phone.start()
    phone.dialled()

    commands = phone.model("error", error={"message": "", **REFUSALS[kind]})

    assert ends(commands) == [("model", "refused")]


@pytest.mark.parametrize("code", [1008, 3000, 3003])
def test_a_close_that_refuses_ends_the_call_at_once(code: int) -> None:
    """Also when the next session is refused, but not when a session is lost so: another
    one tells whether the server refuses it."""
    phone = Phone()
    phone.start()
    phone.dialled()
    assert ends(phone.loses_model("lost", code)) == [("model", "refused")]

    phone = Phone().talking()
    assert ends(phone.loses_model("lost", code)) == []
    phone.dialled()
    assert ends(phone.loses_model("lost", code)) == [("model", "refused")]


@pytest.mark.parametrize(
    "error",
    [
        {"type": "server_error", "message": "handshake rejected with HTTP 429"},
        {"type": "guardrail_error", "message": "503: {'error': 'try later'}"},
        {"type": "server_error", "message": "The server had an error."},
        {"type": "server_error", "message": "See HTTP 400.5 and 404"},
        {"type": "x", "code": "rate_limit_exceeded", "message": "HTTP 403"},
    ],
)
def test_an_error_after_the_handshake_that_may_pass(error: dict[str, Any]) -> None:
    """A busy model is dialled again; so is one behind a close that says nothing."""
    phone = Phone()
    phone.start()
    phone.dialled()
    assert dials(phone.model("error", error=error)) == [(0.0, False)]

    phone.dialled()
    assert dials(phone.loses_model("lost", 1011)) == [(0.25, False)]
    assert ends(phone.log) == []


def test_a_model_that_refuses_on_and_on_is_given_up_in_time() -> None:
    """The caller hears the fallback after the first limit, however long redialling goes
    on."""
    phone = Phone()
    phone.start()
    began = phone.now
    while not ends(phone.log):
        [(seconds, _)] = dials(phone.not_dialled()) or [(READY_SECONDS, False)]
        phone.wait(seconds)

    assert ends(phone.log) == [("model", "not_ready")]
    assert phone.now - began <= READY_SECONDS + 2.0


def test_a_connection_lost_before_its_session_is_dialled_again() -> None:
    """The greeting and what the caller said first go to the next session, once."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.frames(100)
    one(phone.dialled(), Switch)

    assert dials(phone.loses_model()) == [(0.0, False)]
    commands = phone.model_back()

    assert said_to_model(commands) == [("system", "Say hello.")]
    assert (asks(commands), len(appended(commands))) == (1, 8 * 100)


def test_a_session_refused_for_a_moment_is_tried_again() -> None:
    """A rate limit reported inside the connection passes as one before it does."""
    phone = Phone()
    phone.start()
    phone.dialled()

    assert dials(phone.refused("rate_limit_exceeded", None)) == [(0.0, False)]
    phone.dialled()
    assert ends(phone.refused("invalid_value", None)) == [("model", "refused")]


def test_a_connection_that_is_not_configured_in_time_is_replaced() -> None:
    """A server that accepts the connection and then says nothing does not use up the
    caller's whole wait."""
    phone = Phone()
    phone.start()
    phone.dialled()

    while not dials(phone.log):
        assert not ends(phone.frames(100)), "the caller lost the call for it"
    assert dials(phone.log) == [(0.0, False)]
    phone.model_back()
    assert phone.talk.state is State.TALKING


# --- while the agent greets ---


def test_lost_before_the_greeting_began() -> None:
    """The next session greets the caller, once."""
    phone = Phone(greeting="Say hello.").talking()

    commands = phone.another_model()

    assert said_to_model(commands) == [("system", "Say hello.")]
    assert types_to_model(commands) == [CREATE, ASK]


def test_lost_in_the_greeting() -> None:
    """The caller hears the rest of it, and its beginning once."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.shows(phone.ready())
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("Welcome to")
    phone.says(600)
    phone.frames(200)

    commands = phone.another_model()

    assert [(role, words) for _, role, words in given(commands)] == [
        ("system", "Say hello."),
        ("assistant", "Welcome to"),
        ("system", BROKEN_OFF),
    ]
    assert types_to_model(commands) == [CREATE, CREATE, CREATE, ASK]


# --- while the caller speaks, or nobody does ---


def test_lost_while_nobody_speaks() -> None:
    """The agent says nothing about it; the next session gets the audio that the server
    may not have understood."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.writes("How are you?")
    phone.answers(200, words="Fine.")
    phone.frames(2000)
    phone.loses_model("lost")
    phone.frames(100)

    commands = phone.model_back()

    assert given(commands) == [
        ("u", "user", "How are you?"),
        ("i1", "assistant", "Fine."),
    ]
    assert asks(commands) == 0
    assert len(appended(commands)) == 8 * 2100, "all since the caller's last turn"
    [note] = notes(commands, "model_back")
    assert note.data["items"] == 2
    assert note.data["seconds"] == pytest.approx(0.1)


def test_a_long_silence_is_sent_again_in_part() -> None:
    """Audio without speech is kept within bounds."""
    phone = Phone().talking()
    phone.frames(2 * RESEND_MS)

    assert len(appended(phone.another_model())) == 8 * RESEND_MS


def test_lost_in_the_callers_sentence() -> None:
    """The next session hears it from its beginning, and responds when it ends."""
    phone = Phone().talking()
    phone.frames(1000)
    phone.barges_in()
    phone.frames(18_000)

    phone.loses_model()
    phone.frames(1000)
    commands = phone.model_back()

    assert appended(commands)[-8 * 19_000 :] == payload_bytes(19_000)
    assert asks(commands) == 0, "the caller has not ended"
    assert not notes(phone.log, "held_audio_lost")


def test_a_sentence_longer_than_what_is_held() -> None:
    """A caller who tells a long story is understood from its beginning."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(30_000)
    phone.loses_model()
    phone.frames(1000)

    assert len(appended(phone.model_back())) >= 8 * 31_000


def test_lost_when_a_long_sentence_has_just_ended() -> None:
    """The server has not made an item of the sentence yet, so the next session hears
    it from its beginning."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(30_000)
    phone.falls_silent()
    phone.frames(500)

    assert len(appended(phone.another_model())) >= 8 * 30_500


def test_frames_of_any_length_are_sent_again_unchanged() -> None:
    """Base64 may end with padding or not, and a frame may be long."""
    phone = Phone().talking()
    sizes = [1, 2, 3, 160, 800, 1601, 5, 240] * 20
    sound = b""
    for n, size in enumerate(sizes):
        frame = bytes([n % 250]) * size
        sound += frame
        phone.now += size / 8000
        phone.frame(payload=base64.b64encode(frame).decode())

    assert appended(phone.another_model()).endswith(sound)


def test_audio_held_in_a_long_outage_is_bounded() -> None:
    """What a caller says in an outage is kept up to the second in which it ends."""
    phone = Phone().talking()
    phone.loses_model()
    phone.frames(19_000)

    assert Bounds().audio_held_seconds >= AWAY_SECONDS
    assert len(appended(phone.model_back())) == 8 * 19_100


def payload_bytes(ms: int) -> bytes:
    return b"\x55" * (8 * ms)


def test_frames_keep_their_order_over_a_loss() -> None:
    """What the caller said reaches the next session in the order in which it was
    said."""
    phone = Phone().talking()
    sound = [bytes([n]) for n in range(1, 60)]
    for n, byte in enumerate(sound):
        if n == 20:
            phone.loses_model()
        phone.frame(payload=payload(20, byte))

    assert appended(phone.model_back())[-59 * 160 :] == b"".join(
        byte * 160 for byte in sound
    )


# --- between the caller's turn and its answer ---


def test_lost_after_a_turn_without_a_transcript() -> None:
    """The next session gets the audio of the turn, and responds."""
    phone = Phone().talking()
    phone.speaks(800)

    commands = phone.another_model()

    assert given(commands) == [("u", "user", "<900 ms>")]
    assert types_to_model(commands) == [CREATE, ASK]
    assert appended(commands) == b"", "it would be heard twice"


def test_lost_after_a_turn_with_a_transcript() -> None:
    """The next session gets the text, which costs the model less time than audio."""
    phone = Phone().talking()
    phone.speaks(800)
    phone.writes("Where are you?")

    commands = phone.another_model()

    assert given(commands) == [("u", "user", "Where are you?")]
    assert asks(commands) == 1


def test_audio_of_turns_without_transcripts_is_bounded() -> None:
    """Of a long conversation without transcription the last minute is sent again."""
    phone = Phone().talking()
    for n in range(4):
        phone.speaks(25_000, f"u{n}")
        phone.model("conversation.item.deleted", item_id="u3")

    assert [item for item, *_ in given(phone.another_model())] == ["u2"]


def test_a_turn_with_an_empty_transcript_is_not_sent_again() -> None:
    """The transcription found no words in it: it was a cough."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.writes("")

    assert given(phone.another_model()) == []


def test_a_turn_without_an_item_id_is_not_sent_again() -> None:
    """An odd server does not end the call: there is nothing to be sent again."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()
    phone.committed("")

    assert given(phone.another_model()) == []


def test_lost_before_the_first_audio_of_a_response() -> None:
    """The caller still waits for it; it is requested once, and nothing was broken
    off."""
    phone = Phone().talking()
    phone.speaks(800)
    phone.writes("Where are you?")
    phone.created()

    commands = phone.another_model()

    assert given(commands) == [("u", "user", "Where are you?")]
    assert asks(commands) == 1


def test_lost_before_the_turn_was_an_item() -> None:
    """The caller had ended; the server had not made an item of it yet. What they said
    is sent again before a response to it is requested, or the server responds by
    itself."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(500)
    phone.falls_silent()

    types = [event["type"] for event in to_model(phone.another_model())]

    assert types[0] == "input_audio_buffer.append"


# --- while a tool runs ---


def test_lost_while_a_tool_runs() -> None:
    """The tool goes on; the next session gets the call, then its result, and
    responds."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()

    commands = phone.another_model()

    assert given(commands) == [("f_c1", "function_call c1", "look_up")]
    assert asks(commands) == 0, "there is no result to speak of"
    ended = phone.tool_ends("c1", "Friday")
    assert [it[1:] for it in given(ended)] == [("function_call_output c1", "Friday")]
    assert types_to_model(ended) == [CREATE, ASK]


def test_lost_in_the_response_that_called_a_tool() -> None:
    """The result asks for the next response, not the loss."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")

    assert asks(phone.another_model()) == 0
    assert asks(phone.tool_ends("c1")) == 1


def test_a_tool_that_ends_while_the_model_is_away() -> None:
    """Call, result, one request: in this order, each once."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()
    phone.loses_model()
    assert to_model(phone.tool_ends("c1", "Friday")) == []

    commands = phone.model_back()

    assert [it[1:] for it in given(commands)] == [
        ("function_call c1", "look_up"),
        ("function_call_output c1", "Friday"),
    ]
    assert types_to_model(commands) == [CREATE, CREATE, ASK]


def test_lost_after_a_result_that_the_server_has_not_shown() -> None:
    """It may not have arrived: it is sent again, behind its call, once."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()
    phone.tool_ends("c1", "Friday")

    commands = phone.another_model()

    assert [it[1:] for it in given(commands)] == [
        ("function_call c1", "look_up"),
        ("function_call_output c1", "Friday"),
    ]
    assert asks(commands) == 1


def test_lost_after_a_result_that_the_server_has_shown() -> None:
    """It stands in the history, once."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()
    phone.shows(phone.tool_ends("c1", "Friday"))
    phone.created("r2")
    phone.answers(200, words="On Friday.", response="r2")
    phone.frames(400)

    commands = phone.another_model()

    assert [words for *_, words in given(commands)] == [
        "look_up",
        "Friday",
        "On Friday.",
    ]
    assert asks(commands) == 0


def test_tool_calls_that_never_end_take_bounded_memory() -> None:
    """Of hundreds without a result the newest are sent again."""
    phone = Phone().talking()
    for n in range(MAX_OPEN_TOOL_CALLS + 10):
        phone.calls_tool(f"c{n}")

    assert len(given(phone.another_model())) == MAX_OPEN_TOOL_CALLS


# --- while the agent speaks ---


def test_lost_in_the_middle_of_a_response() -> None:
    """What Twilio has is heard to its end, then the rest, said by another session."""
    phone = answering(1000)
    phone.frames(300)
    lost = phone.loses_model()
    assert events(lost) == ["mark"], "nothing is taken from the caller's ear"

    commands = phone.model_back()

    assert given(commands)[0] == ("i1", "assistant", "One two three")
    assert said_to_model(commands)[-1] == ("system", BROKEN_OFF)
    assert types_to_model(commands) == [CREATE, CREATE, ASK]
    phone.created("r2")
    assert "media" in events(phone.says(400, item="i2", response="r2"))
    phone.item_done("i2", "r2")
    phone.done("r2")
    said = notes(phone.frames(1600), "said")
    assert [(it.data["item"], it.data["heard_ms"]) for it in said] == [
        ("i1", 1000),
        ("i2", 400),
    ]


def test_text_that_ran_ahead_of_its_audio_is_dropped() -> None:
    """The next session goes on behind the last word that has audio."""
    phone = answering(1000, "One two")
    phone.words(" three")

    commands = phone.another_model()

    assert only("i1", commands) == ["One two"]


def test_a_word_of_which_only_the_beginning_came_is_said_again() -> None:
    """Better a syllable twice than a word that the caller did not hear."""
    phone = answering(200, "One")
    phone.words(" hippopotamus")
    phone.says(200)

    assert only("i1", phone.another_model()) == ["One"]


def test_a_response_heard_over_a_loss_is_recorded_once() -> None:
    """A third session is not told the same words twice."""
    phone = answering(1000)
    phone.frames(200)
    phone.shows(phone.another_model())
    [item] = [it for it in phone.talk.history.items if it.id == "i1"]
    assert item.text == "", "it is still to be heard"
    phone.frames(1000)

    assert item.text == "One two three"
    assert item.cut, "it was no end"
    assert only("i1", phone.another_model()) == ["One two three"]


def test_lost_while_the_last_words_are_still_heard() -> None:
    """The model had said all: nothing is broken off, nothing is requested."""
    phone = Phone().talking()
    phone.answers(1000, words="That is all.")
    phone.frames(200)

    commands = phone.another_model()

    assert given(commands) == [("i1", "assistant", "That is all.")]
    assert asks(commands) == 0


def test_a_cut_item_of_a_lost_session_gets_the_text_that_was_heard() -> None:
    """The next session knows it as text, which cannot be truncated, so its text is
    replaced."""
    phone = Phone().talking()
    phone.answers(2000, words="One two three four")
    phone.frames(1000)
    phone.shows(phone.another_model())
    assert events(phone.barges_in()) == ["clear", "mark"]

    commands = phone.echoes()

    create, delete = to_model(commands)
    assert create["type"] == CREATE
    assert create["previous_item_id"] == "i1"
    assert create["item"]["content"][0]["text"] == "One two"
    assert (delete["type"], delete["item_id"]) == ("conversation.item.delete", "i1")
    phone.shows(commands)
    phone.model("conversation.item.deleted", item_id="i1")
    words = [it[2] for it in given(phone.another_model()) if it[1] == "assistant"]
    assert words == ["One two"]


def test_an_unheard_item_of_a_lost_session_is_deleted() -> None:
    """A second response of which nothing was heard is deleted there as anywhere."""
    phone = Phone().talking()
    phone.answers(2000, words="One.")
    phone.answers(2000, item="i2", response="r2", words="Two.")
    phone.frames(500)
    phone.another_model()
    phone.barges_in()

    deleted = sorted(told(phone.echoes()))
    assert deleted == [("delete", "i1", None), ("delete", "i2", None)]


def test_lost_between_a_barge_in_and_its_fence() -> None:
    """The next session is told what was heard, whether or not the fence comes."""
    phone = answering(2000, "One two three four")
    phone.frames(1000)
    phone.barges_in()

    commands = phone.another_model()

    assert only("i1", commands) == ["One two"]
    assert notes(commands, "fence_late")
    assert told(commands) == []
    assert told(phone.echoes()) == []


def test_interrupted_by_keys_while_the_model_is_away() -> None:
    """Keys interrupt the agent; the next session is told how much was heard."""
    phone = answering(2000, "One two three four")
    phone.frames(1000)
    phone.loses_model()
    phone.presses("1")
    silent = phone.wait(2.1)
    assert to_model(silent) == []
    assert "clear" in events(phone.log)
    phone.echoes()

    commands = phone.model_back()

    assert only("i1", commands) == ["One two"]
    assert BROKEN_OFF not in [text for _, text in said_to_model(commands)]
    assert asks(commands) == 1
    assert said_to_model(commands)[-1][0] == "user"


def test_an_unconfirmed_deletion_holds_for_the_next_session() -> None:
    """What nobody heard does not come back with another session."""
    phone = Phone().talking()
    phone.answers(1000, words="Nobody hears this.")
    phone.barges_in()
    assert told(phone.echoes()) == [("delete", "i1", None)]

    assert given(phone.another_model()) == []


def test_an_unconfirmed_deletion_of_user_code_holds_for_the_next_session() -> None:
    """What the application removed from the conversation stays out."""
    phone = Phone().talking()
    phone.item_added("u1", "user", {"type": "input_text", "text": "secret"})
    phone.sends("conversation.item.delete", item_id="u1")

    assert given(phone.another_model()) == []


def test_a_response_stopped_by_a_guardrail_is_not_continued() -> None:
    """The next session does not say what was stopped."""
    phone = answering(1000)
    phone.frames(200)
    phone.interrupt("guardrail", "r1")
    phone.echoes()

    commands = phone.another_model()

    assert BROKEN_OFF not in [text for _, text in said_to_model(commands)]
    assert asks(commands) == 0


def test_late_events_of_a_lost_response_are_dropped() -> None:
    """A response that another session continues is not heard from the first."""
    phone = answering(300)
    phone.another_model()

    assert to_caller(phone.says(200)) == []
    assert to_caller(phone.item_done()) == []


# --- what user code sends meanwhile ---


def test_texts_and_events_of_an_outage_are_kept_in_order() -> None:
    """The agent learns what it was told while it was away; one response to all of
    it."""
    phone = Phone().talking()
    phone.loses_model()
    item = {"type": "message", "role": "user", "content": []}
    phone.tell("One.", "system", respond=False)
    phone.sends(CREATE, item=item | {"content": [{"type": "input_text", "text": "2"}]})
    phone.sends("response.cancel")
    phone.tell("Three.", "user")
    assert to_model(phone.ask()) == []

    commands = phone.model_back()

    assert [text for _, text in said_to_model(commands)] == ["One.", "2", "Three."]
    assert asks(commands) == 1


def test_events_after_the_end_are_ignored() -> None:
    """A call that is over requests nothing."""
    phone = Phone().talking()
    phone.hangs_up()

    assert phone.sends("response.create") == []
    assert phone.loses_model() == []
    assert phone.dialled() == []
    assert phone.not_dialled() == []
    assert phone.loses_line() == []
    assert phone.hand_over() == []


def test_a_refused_item_is_not_sent_to_the_next_session() -> None:
    """An item that one server refused is not offered to the next."""
    phone = Phone().talking()
    item = {"type": "message", "role": "critic", "content": []}
    [sent] = to_model(phone.sends(CREATE, event_id="mine", item=item))
    assert sent["event_id"] == "mine"
    phone.refused("invalid_value", "mine")

    assert types_to_model(phone.another_model()) == []


# --- again and again ---


def test_lost_again_before_the_session_was_ready() -> None:
    """The one after gets the same, once."""
    phone = answering(1000)
    phone.frames(300)
    phone.loses_model()
    phone.dialled()
    assert dials(phone.loses_model()) == [(0.25, False)]

    commands = phone.model_back()

    assert [text for _, text in said_to_model(commands)] == [
        "One two three",
        BROKEN_OFF,
    ]
    assert asks(commands) == 1


def test_lost_again_before_the_server_had_shown_anything() -> None:
    """The third session gets what the second may have lost: each text once."""
    phone = answering(1000)
    phone.frames(300)
    phone.tell("They are a regular.", "system", respond=False)
    phone.another_model()

    commands = phone.another_model()

    assert [text for _, text in said_to_model(commands)] == [
        "One two three",
        "They are a regular.",
        BROKEN_OFF,
    ]
    assert types_to_model(commands) == [CREATE] * 3 + [ASK]


def test_a_turn_is_given_again_to_a_third_session() -> None:
    """Two losses in one sentence cost the caller no word of it."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(18_000)
    assert len(appended(phone.another_model())) >= 8 * 18_000

    assert len(appended(phone.another_model())) >= 8 * 18_000


def test_a_response_broken_off_twice() -> None:
    """Each piece was heard once; the third session goes on from the second's."""
    phone = answering(400, "One two")
    phone.frames(100)
    phone.shows(phone.another_model())
    phone.created("r2")
    phone.item_added("i2", "assistant")
    phone.words("three four", "i2", "r2")
    phone.says(500, "i2", "r2")

    commands = phone.another_model()

    assert [text for _, text in said_to_model(commands)] == [
        "One two",
        BROKEN_OFF,
        "three four",
        BROKEN_OFF,
    ]
    assert asks(commands) == 1


def test_a_model_that_stays_away_is_given_up_in_time() -> None:
    """After the limit the caller hears the fallback, and not silence."""
    phone = Phone().talking()
    phone.frames(11_000)
    phone.loses_model()
    lost_at = phone.now
    while not ends(phone.log):
        waits = dials(phone.not_dialled()) or [(1.0, False)]
        phone.wait(waits[0][0])

    assert ends(phone.log) == [("model", "lost")]
    assert AWAY_SECONDS <= phone.now - lost_at <= AWAY_SECONDS + 2.0


def test_losses_in_quick_succession_are_one_outage() -> None:
    """A model that comes and goes for so long counts as away."""
    phone = Phone().talking()
    began = phone.now
    while not ends(phone.log):
        phone.loses_model()
        if not ends(phone.log):
            phone.model_back()
        phone.frames(3000)

    assert ends(phone.log) == [("model", "lost")]
    assert AWAY_SECONDS <= phone.now - began <= AWAY_SECONDS + 4.0


def test_a_server_that_accepts_and_drops_us_is_given_up_in_time() -> None:
    """It is not dialled without a pause, nor for ever."""
    phone = Phone().talking()
    phone.frames(20_000)
    lost_at, tries = phone.now, 0
    commands = phone.loses_model()
    while not ends(phone.log):
        [(seconds, _)] = dials(commands)
        phone.wait(seconds)
        phone.dialled()
        phone.wait(0.1)
        commands, tries = phone.loses_model(), tries + 1

    assert ends(phone.log) == [("model", "lost")]
    assert AWAY_SECONDS <= phone.now - lost_at <= AWAY_SECONDS + 3.0
    assert tries < 20


def test_a_fatal_refusal_after_a_loss_ends_the_call() -> None:
    """If the quota runs out in mid-call, nothing is waited for."""
    phone = Phone().talking()
    phone.loses_model()

    commands = phone.not_dialled("HTTP 429 insufficient_quota", fatal=True)

    assert ends(commands) == [("model", "refused")]


def test_no_connection_is_dialled_twice() -> None:
    """While one is being dialled another loss changes nothing."""
    phone = Phone().talking()
    assert dials(phone.loses_model()) == [(0.0, False)]

    assert dials(phone.loses_model()) == []


# --- waits across a loss ---


def test_the_agent_hangs_up_once_its_goodbye_was_heard() -> None:
    """Lost in its goodbye: the rest is said by another session, then the call ends."""
    phone = answering(400, "Good bye")
    phone.when_heard(1, then=HANG_UP)
    phone.loses_model()
    assert ends(phone.frames(1000)) == [], "not in the middle of it"

    assert asks(phone.model_back()) == 1
    phone.answers(400, item="i2", response="r2", words="and thank you.")

    assert ends(phone.frames(600)) == [HANG_UP]


def test_a_hang_up_needs_no_model_once_the_goodbye_is_queued() -> None:
    """A goodbye that Twilio has needs no session to be heard."""
    phone = Phone().talking()
    phone.answers(400, words="Good bye.")
    phone.when_heard(1, then=HANG_UP)
    phone.loses_model()

    commands = phone.frames(600)

    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_a_tool_waits_over_a_loss_until_all_was_heard() -> None:
    """It learns that the response was heard when the whole of it was."""
    phone = answering(400)
    phone.when_heard(1)
    phone.loses_model()
    phone.frames(600)
    phone.model_back()
    assert heard(phone.log) == []
    phone.answers(200, item="i2", response="r2")

    assert heard(phone.frames(400)) == [(1, True)]


def test_a_goodbye_that_the_lost_model_was_told_is_told_again() -> None:
    """The caller is not cut off without it."""
    phone = Phone().talking()
    phone.goodbye("longest")
    commands = phone.another_model()

    assert said_to_model(commands) == [("system", GOODBYES["longest"])]
    assert asks(commands) == 1
    phone.answers(400, item="i2", response="r2")
    assert ends(phone.frames(600)) == [("bridge", "longest")]


def test_a_goodbye_decided_while_the_model_is_away() -> None:
    """It is said when a model is there; or the call ends in its time."""
    phone = Phone().talking()
    phone.loses_model()
    assert to_model(phone.goodbye("longest")) == []
    commands = phone.model_back()
    assert said_to_model(commands) == [("system", GOODBYES["longest"])]
    assert asks(commands) == 1

    away = Phone().talking()
    away.loses_model()
    away.goodbye("longest")
    assert ends(away.frames(16_000)) == [("bridge", "longest")]


def test_silence_is_not_counted_while_the_model_is_away() -> None:
    """A caller's silence does not count while no model could respond."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.loses_model()
    phone.frames(6000)

    commands = phone.model_back()

    assert not notes(phone.log, "caller_silent")
    assert said_to_model(commands) == []


# --- a response that is late ---


def test_a_session_that_only_answers_pings_is_replaced() -> None:
    """The caller is answered by another session."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.writes("Hello?")
    assert phone.ask() == []
    late = phone.frames(int(1000 * (UNANSWERED_SECONDS + LATE_SECONDS)) + 100)

    assert notes(late, "answer_late") and dials(late) == [(0.0, False)]
    commands = phone.model_back()
    assert given(commands) == [("u", "user", "Hello?")]
    assert asks(commands) == 1
    phone.answers(200)
    assert ends(phone.frames(int(2000 * LATE_SECONDS))) == []


def test_a_session_that_hangs_in_silence_is_noticed() -> None:
    """It is noticed before the caller's next sentence."""
    phone = Phone().talking()
    phone.frames(20_000)
    assert dials(phone.log) == [], "it gives signs of life"
    phone.gives_signs = False

    silent = phone.frames(
        int(1000 * (PROBE_AFTER_SECONDS + PROBE_ANSWER_SECONDS)) + 200
    )

    assert dials(silent) == [(0.0, False)]
    assert appended(phone.model_back()) != b""


def test_a_server_that_answers_no_probes_is_kept() -> None:
    """Not every server with this API answers a probe: it is probed once."""
    phone = Phone()
    phone.gives_signs = False
    phone.talking()
    phone.frames(40_000)

    types = [event["type"] for event in to_model(phone.log)]
    assert types.count("session.update") == 1
    assert dials(phone.log) == [] and ends(phone.log) == []


def test_an_error_is_an_answer_to_a_probe() -> None:
    """A server that refuses the probe has answered it; no operator is alerted."""
    phone = Phone().talking()
    phone.gives_signs = False
    phone.frames(int(1000 * PROBE_AFTER_SECONDS) + 100)

    assert phone.refused("invalid_value", PROBE_ID) == []
    phone.frames(int(1000 * PROBE_AFTER_SECONDS) + 100)
    phone.refused("invalid_value", PROBE_ID)
    assert dials(phone.frames(int(1000 * PROBE_ANSWER_SECONDS))) == []


def test_notes_of_a_loss_contain_nothing_that_was_said() -> None:
    """What people said does not get into a log because a connection broke."""
    phone = answering(400, "My secret is")
    phone.another_model("closed")

    seen = [
        json.dumps(dict(it.data))
        for it in phone.log
        if isinstance(it, Note) and it.name in ("model_lost", "model_back")
    ]
    assert len(seen) == 2 and "secret" not in "".join(seen)
    assert not [it for it in phone.log if isinstance(it, End)]
    assert cancels(phone.log) == []


def test_nothing_follows_the_end_of_a_call_whose_tick_was_late() -> None:
    """A process that was stopped for half a minute ends the call, and does not play the
    tone for a caller who waits, too."""
    phone = Phone().talking()
    phone.loses_model()

    commands = phone.wait(40.0)

    assert ends(commands) and isinstance(commands[-1], End)
