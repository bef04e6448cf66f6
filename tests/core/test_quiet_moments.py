"""A quiet moment always comes again: in it an old session is replaced, and a call moves
to another instance unnoticed. Whatever stays open for ever would prevent both."""

from collections.abc import Callable

import pytest

from bridge.core.commands import Command
from bridge.core.conversation import UNANSWERED_SECONDS
from bridge.core.history import MAX_OPEN_TOOL_CALLS
from bridge.core.waits import ANSWER_SECONDS
from tests.core.phone import (
    MULAW_SESSION,
    Phone,
    asks,
    ends,
    given,
    notes,
    to_model,
)


def moves_at_once(phone: Phone) -> bool:
    """The call can move to another instance now, and the caller would not notice."""
    commands: list[Command] = phone.hand_over()
    return ends(commands) == [("bridge", "handed_over")] and phone.talk.ended_quietly


def answered(phone: Phone) -> Phone:
    """The caller's interruption is answered, and the answer was heard."""
    phone.falls_silent()
    phone.answers(200, item="i9", response="r9", words="Sure.")
    phone.frames(400)
    return phone


def cut_off(phone: Phone) -> None:
    """As OpenAI's server closes a cancelled call."""
    phone.ends_call("c1", status="incomplete")
    phone.done(status="cancelled")


CANCELLED: dict[str, Callable[[Phone], object]] = {
    "the call is closed as incomplete": cut_off,
    "only the response ends": lambda phone: phone.done(status="cancelled"),
    "the response failed": lambda phone: phone.done(status="failed"),
    "the session is lost": lambda phone: phone.another_model(),
}


@pytest.mark.parametrize("end", CANCELLED.values(), ids=CANCELLED)
def test_a_barge_in_during_the_arguments_of_a_function_call(
    end: Callable[[Phone], object],
) -> None:
    """The tool never runs, so no result is waited for; neither another session nor the
    report hears of a call that was not made."""
    phone = Phone().talking()
    phone.created()
    phone.begins_call("c1")
    phone.barges_in()
    end(phone)
    answered(phone)

    assert [it.kind for it in phone.talk.history.items if it.kind == "tool_call"] == []
    assert given(phone.another_model())[-1:] == [("i9", "assistant", "Sure.")]
    phone.frames(5000)
    assert moves_at_once(phone)


def test_a_cancelled_function_call_does_not_prevent_a_roll_over() -> None:
    """The old session is replaced as in any call."""
    phone = Phone(session_seconds=5.0).talking()
    phone.created()
    phone.begins_call("c1")
    phone.barges_in()
    cut_off(phone)
    answered(phone)
    phone.frames(5000)

    assert notes(phone.dialled(), "rolls_over")


def test_a_complete_function_call_is_waited_for_before_its_tool_begins() -> None:
    """The response that calls a tool is done, and the tool begins a moment later."""
    phone = Phone().talking()
    phone.created()
    phone.begins_call("c1")
    phone.ends_call("c1")
    phone.done()

    assert not moves_at_once(phone)
    replayed = given(phone.another_model())
    assert replayed == [("f_c1", "function_call c1", "look_up")], "its result will come"


def test_a_function_call_that_the_sdk_does_not_run() -> None:
    """The SDK drops an event that it cannot read: once the model goes on, the call is
    not waited for."""
    phone = Phone().talking()
    phone.created()
    phone.begins_call("c1")
    phone.ends_call("c1")
    phone.done()
    phone.barges_in()
    answered(phone)

    assert moves_at_once(phone)


def test_a_function_call_without_an_id_is_not_waited_for() -> None:
    """No result can name it."""
    phone = Phone().talking()
    phone.created()
    item = {"id": "f1", "type": "function_call", "status": "completed"}
    phone.model("conversation.item.added", item=item)
    phone.model("response.output_item.done", response_id="r1", item=item)
    phone.model(
        "response.output_item.done",
        response_id="unknown",
        item=item | {"call_id": "c2"},
    )
    phone.done()

    assert moves_at_once(phone)


def test_a_result_that_the_server_refuses_is_not_waited_for() -> None:
    """The server has forgotten the call: no event will ever show the result, but the
    message that tells of it."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()
    [sent, *_] = to_model(phone.tool_ends("c1"))
    phone.shows(phone.refused("invalid_value", sent["event_id"]))
    phone.created("r2")  # requested before
    phone.done("r2", status="cancelled")
    phone.answers(200, item="i3", response="r3")
    phone.frames(400)

    assert moves_at_once(phone)


def test_a_result_whose_call_was_forgotten_is_not_waited_for() -> None:
    """User code removes a call from the conversation, and its result stays."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()
    phone.shows(phone.tool_ends("c1"))
    phone.answers(200, item="i2", response="r2")
    phone.frames(400)
    phone.model("conversation.item.deleted", item_id="f_c1")

    assert moves_at_once(phone)


def test_function_calls_that_the_model_repeats_for_ever_take_bounded_memory() -> None:
    """A server may complete calls that nobody runs."""
    phone = Phone().talking()
    phone.created()
    for n in range(MAX_OPEN_TOOL_CALLS + 10):
        phone.begins_call(f"c{n}")
        phone.ends_call(f"c{n}")

    assert len(phone.talk.history.open_calls) == MAX_OPEN_TOOL_CALLS


# --- transcripts that do not come ---


def transcribed() -> Phone:
    """The server transcribes; the caller's second turn has no transcript yet."""
    phone = Phone().talking()
    phone.speaks(400, "u1")
    phone.writes("First.", "u1")
    phone.speaks(400, "u2")
    phone.answers(200)
    phone.frames(400)
    return phone


def test_a_transcription_that_failed_is_not_waited_for() -> None:
    """The words are lost to another instance either way; another session on this one
    still gets the audio."""
    lost, phone = transcribed(), transcribed()
    failed = "conversation.item.input_audio_transcription.failed"
    for each in (lost, phone):
        each.model(failed, item_id="u2", error={"type": "x", "message": ""})

    assert ("u2", "user", "<400 ms>") in given(lost.another_model())
    assert moves_at_once(phone)


def test_a_transcript_of_a_lost_session_is_not_waited_for() -> None:
    """The next session gets the audio as an item, which no server transcribes."""
    phone = transcribed()
    phone.another_model()
    phone.frames(5000)

    assert moves_at_once(phone)


def test_a_turn_without_an_id_is_not_waited_for() -> None:
    """No transcript can name it."""
    phone = transcribed()
    phone.writes("Second.", "u2")
    phone.speaks(400, "")
    phone.answers(200, item="i2", response="r2")
    phone.frames(400)

    assert moves_at_once(phone)


def test_no_transcript_is_waited_for_once_transcription_is_off() -> None:
    """User code switches it off in mid-call."""
    phone = transcribed()
    audio = MULAW_SESSION["audio"]
    off = audio | {"input": audio["input"] | {"transcription": None}}
    phone.model("session.updated", session={"audio": off})

    assert moves_at_once(phone)


# --- turns without a response ---


def test_a_turn_to_which_the_server_does_not_respond() -> None:
    """It found no words in it: after a time none is expected."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.writes("")
    phone.frames(int(1000 * UNANSWERED_SECONDS) + 100)

    assert asks(phone.log) == 0
    assert moves_at_once(phone)


def test_a_turn_is_not_given_up_while_the_caller_speaks() -> None:
    """A long story is no turn without a response."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(int(1000 * ANSWER_SECONDS) + 1000)
    phone.falls_silent()
    phone.committed()

    assert not moves_at_once(phone)
