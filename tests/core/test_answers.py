"""Responses that are requested, owed, stopped or late: when each is requested, and how
often."""

import pytest

from bridge.core.conversation import LATE_SECONDS
from bridge.core.rules import BROKEN_OFF, GOODBYES
from bridge.core.waits import ANSWER_SECONDS
from tests.core.phone import (
    Phone,
    asks,
    cancels,
    dials,
    ends,
    events,
    given,
    heard,
    notes,
    said_to_model,
    to_model,
    told,
)

HANG_UP = ("agent", "hung_up")
LATE_MS = int(1000 * LATE_SECONDS)
BUSY = "conversation_already_has_active_response"


# --- when a response is requested ---


def test_no_response_is_requested_while_the_caller_speaks() -> None:
    """The result of a tool that ends while the caller speaks is answered together with
    what they say."""
    phone = Phone().talking()
    phone.barges_in()

    assert asks(phone.ask()) == 0
    phone.falls_silent()
    phone.created()
    assert asks(phone.done()) == 0


def test_a_response_waits_for_the_one_that_the_server_is_about_to_begin() -> None:
    """A message between the caller's last word and the server's response is answered
    after that, once."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()

    assert asks(phone.tell("The parcel is found.", "system")) == 0
    phone.created()
    assert asks(phone.done()) == 1
    phone.created("r2")
    assert asks(phone.done("r2")) == 0


def test_no_response_is_requested_before_the_model_knows_what_was_heard() -> None:
    """The response to keys does not build on words that never left the phone."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.frames(300)

    commands = phone.presses("1#")
    assert events(commands) == ["clear", "mark"]
    assert asks(commands) == 0

    settled = [it["type"] for it in to_model(phone.echoes())]
    assert settled == ["conversation.item.truncate", "response.create"]


def test_a_lost_fence_delays_a_response_by_a_second_at_most() -> None:
    """A Twilio that loses a mark costs a second, not the response."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.frames(300)
    assert asks(phone.presses("1#")) == 0

    commands = phone.wait(1.0)

    assert notes(commands, "fence_late")
    assert asks(commands) == 1


def test_a_response_requested_before_the_model_is_ready_comes_later() -> None:
    """A request before the model is ready is not forgotten."""
    phone = Phone()
    phone.start()
    assert to_model(phone.ask()) == []

    assert asks(phone.ready()) == 1
    phone.answers(20)
    assert asks(phone.ready()) == 0


def test_the_greeting_has_an_event_id_of_its_own() -> None:
    """An error about the greeting is not taken for a refused response."""
    phone = Phone(greeting="Say hello.")
    phone.start()

    say, create = to_model(phone.ready())

    assert create["event_id"] == "bridge_answer"
    assert say["event_id"] not in (None, create["event_id"])


# --- when the server will not respond by itself ---


def test_a_dropped_turn_is_not_waited_for() -> None:
    """The server will not respond to it, so a response that is owed is requested at
    once."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()
    assert asks(phone.ask()) == 0

    assert asks(phone.cleared()) == 1


def test_a_dropped_turn_is_over() -> None:
    """A caller whose audio was dropped does not count as speaking."""
    phone = Phone().talking()
    phone.barges_in()
    phone.cleared()

    assert asks(phone.ask()) == 1


def test_a_committed_turn_is_over() -> None:
    """After an application ends the turn itself, the caller does not count as
    speaking."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.barges_in()
    phone.committed()

    assert heard(phone.when_heard(1)) == [(1, True)]
    assert said_to_model(phone.frames(2100)) != []


def test_turning_detection_off_ends_the_open_turn() -> None:
    """If turn detection is switched off in mid-sentence, no event tells the end: the
    caller must not count as speaking for ever."""
    phone = Phone().talking()
    phone.barges_in()
    phone.ready({"audio": {"input": {"turn_detection": None}}})

    assert asks(phone.ask()) == 1


def test_a_session_update_without_detection_keeps_the_open_turn() -> None:
    """A change of the voice does not end the caller's turn."""
    phone = Phone().talking()
    phone.barges_in()
    phone.ready({"audio": {"output": {}}})

    assert asks(phone.ask()) == 0


def test_a_caller_whom_the_server_does_not_answer_counts_as_silent() -> None:
    """After noise that was no speech the agent asks whether the caller is there,
    instead of waiting for a response that never comes."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.barges_in()
    phone.falls_silent()

    commands = phone.frames(3100)

    assert notes(commands, "caller_silent")
    assert asks(commands) == 1


# --- a response that is stopped before it begins ---


def test_a_response_stopped_before_it_begins_is_cancelled() -> None:
    """It makes no sound, and the model is told to cancel it."""
    phone = Phone().talking()
    phone.ask()
    phone.interrupt()

    assert cancels(phone.created()) == ["r1"]
    assert events(phone.says(300)) == []
    phone.done(status="cancelled")
    assert cancels(phone.created("r2")) == []
    assert events(phone.says(300, item="i2", response="r2")) != []


def test_keys_pressed_before_a_requested_response_begins_are_answered_once() -> None:
    """The old response is cancelled when it begins; the response to the keys
    follows."""
    phone = Phone().talking()
    phone.ask()
    assert asks(phone.presses("1#")) == 0

    assert cancels(phone.created()) == ["r1"]
    assert asks(phone.done(status="cancelled")) == 1
    assert cancels(phone.created("r2")) == []
    assert asks(phone.done("r2")) == 0


def test_speech_before_a_requested_response_begins_is_answered() -> None:
    """A response that begins after the caller's turn is the response to it, and is not
    cancelled."""
    phone = Phone().talking()
    phone.ask()
    phone.barges_in()
    phone.falls_silent()

    assert cancels(phone.created()) == []
    assert events(phone.says(300)) != []


def test_a_guardrail_of_one_response_does_not_stop_the_next() -> None:
    """A response that is already requested did not break the rule."""
    phone = Phone().talking()
    phone.answers(1000)
    phone.ask()
    phone.interrupt("guardrail", "r1")

    assert cancels(phone.created("r2")) == []


# --- refusals ---


@pytest.mark.parametrize("event_id", ["bridge_answer", None])
def test_a_response_refused_because_another_is_active_is_requested_after_it(
    event_id: str | None,
) -> None:
    """Whether the active response is ours or the server's own: the caller's words are
    answered."""
    phone = Phone().talking()
    phone.created()

    assert asks(phone.refused(BUSY, event_id)) == 0
    assert asks(phone.done()) == 1


def test_a_refused_response_of_user_code_is_not_repeated() -> None:
    """User code that requests a response by itself handles the refusal by itself."""
    phone = Phone().talking()
    phone.created()
    phone.refused(BUSY, "event_of_theirs")

    assert asks(phone.done()) == 0


def test_a_second_response_is_requested_after_the_first_was_refused() -> None:
    """Two were wanted and the first was refused: the second is requested at once."""
    phone = Phone().talking()
    phone.ask()
    assert asks(phone.ask()) == 0

    assert asks(phone.refused("unsupported_content_type", "bridge_answer")) == 1


# --- responses that fail ---


def test_an_incomplete_response_without_audio_has_failed() -> None:
    """`incomplete` without audio is silence to the caller: the response is requested
    again."""
    phone = Phone().talking()
    phone.created()
    commands = phone.done(status="incomplete")
    assert notes(commands, "answer_failed")
    assert asks(commands) == 1


def test_an_incomplete_response_with_audio_has_not_failed() -> None:
    """The caller heard a part of it, so it is not repeated."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)
    commands = phone.done(status="incomplete")

    assert notes(commands, "answer_failed") == []
    assert asks(commands) == 0


def test_audio_resets_the_count_of_failures() -> None:
    """Two failures with an audible response between them do not end the call."""
    phone = Phone().talking()
    phone.created()
    phone.done(status="failed")
    phone.created("r2")
    phone.says(300, response="r2")
    phone.done("r2", "cancelled")
    phone.created("r3")

    assert ends(phone.done("r3", "failed")) == []


# --- responses that do not come ---


def test_a_response_that_never_begins_is_requested_once_more() -> None:
    """No caller sits in silence for ever: one other session is tried, then the call
    ends."""
    phone = Phone().talking()
    phone.ask()
    assert notes(phone.frames(LATE_MS - 100), "answer_late") == []

    late = phone.frames(200)
    assert notes(late, "answer_late")
    assert dials(late) == [(0.0, False)]
    assert asks(late) == 0, "of a session that does not answer"
    assert asks(phone.model_back()) == 1
    assert ends(phone.frames(LATE_MS - 100)) == []
    assert ends(phone.frames(200)) == [("model", "failed")]


def test_a_response_that_stalls_is_continued_in_another_session() -> None:
    """What was sent is heard and not repeated; what arrives late is not heard."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("One two")
    phone.says(400)
    late = phone.frames(LATE_MS + 100)

    assert told(late) == []
    commands = phone.model_back()
    assert given(commands)[0] == ("i1", "assistant", "One two")
    assert said_to_model(commands)[-1] == ("system", BROKEN_OFF)
    assert asks(commands) == 1
    assert events(phone.says(300)) == []


def test_a_response_that_makes_progress_is_not_late() -> None:
    """A long response may take its time, as long as parts of it arrive."""
    phone = Phone().talking()
    phone.created()
    for n in range(4):
        phone.frames(LATE_MS - 2000)
        item = {"id": f"i{n}", "type": "message"}
        phone.model("response.output_item.added", response_id="r1", item=item)

    assert notes(phone.log, "answer_late") == []


def test_the_time_of_a_hosted_tool_does_not_make_a_response_late() -> None:
    """A slow tool of the model's own server is waited for; then the response must go
    on."""
    phone = Phone().talking()
    phone.created()
    phone.busy(+1)
    phone.frames(2 * LATE_MS)
    phone.busy(-1)

    assert notes(phone.frames(LATE_MS - 100), "answer_late") == []
    assert notes(phone.frames(200), "answer_late") != []


def test_a_response_owed_behind_a_cut_one_that_never_ends_is_requested_once() -> None:
    """A model that does not confirm a cancel costs the caller one wait."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)
    phone.interrupt()
    phone.frames(100)
    assert asks(phone.ask()) == 0

    late = phone.frames(LATE_MS + 100)

    assert (asks(late), cancels(late)) == (0, [])
    assert asks(phone.model_back()) == 1


def test_each_response_has_its_own_time_limit() -> None:
    """The time limit starts at the request, not with the response before."""
    phone = Phone().talking()
    phone.created()
    phone.says(100)
    phone.ask()
    phone.frames(LATE_MS - 1000)
    assert asks(phone.done()) == 1

    assert notes(phone.frames(LATE_MS - 1000), "answer_late") == []


def test_a_response_that_the_server_owes_is_requested_from_another_session() -> None:
    """A server that heard the caller and never responds is replaced; the next session
    gets what they said."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(100)
    phone.falls_silent()
    phone.committed()
    assert asks(phone.ask()) == 0

    late = phone.frames(LATE_MS + 100)

    assert (dials(late), asks(late)) == ([(0.0, False)], 0)
    commands = phone.model_back()
    assert [role for _, role, _ in given(commands)] == ["user"]
    assert asks(commands) == 1


def test_a_response_is_given_up_once_while_the_caller_speaks() -> None:
    """A response given up while the caller speaks is not given up again at each
    tick."""
    phone = Phone()
    phone.start()
    turns = {"interrupt_response": False}
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.created()
    phone.ask()
    phone.barges_in()
    commands = phone.frames(LATE_MS + 100)

    assert len(notes(commands, "answer_late")) == 1
    assert dials(commands) == [(0.0, False)]
    assert phone.talk.deadline is not None
    assert phone.talk.deadline > phone.now
    assert asks(phone.model_back()) == 1


def test_no_response_is_late_before_the_model_is_ready() -> None:
    """A model that is slow to start is not taken for one that does not respond."""
    phone = Phone()
    phone.start()
    phone.tell("Say this.", "system")

    assert notes(phone.frames(14_000), "answer_late") == []
    assert asks(phone.ready()) == 1


def test_a_call_that_hangs_up_gets_no_second_try() -> None:
    """A goodbye that stalls ends the call at its first time limit."""
    phone = Phone().talking()
    phone.created()
    phone.frames(1000)
    phone.when_heard(1, then=HANG_UP)

    commands = phone.frames(int(1000 * ANSWER_SECONDS))

    assert asks(commands) == 0
    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_a_hang_up_does_not_wait_for_an_unconfirmed_cancel() -> None:
    """The cancel is not repeated; the response that is owed gets one chance."""
    phone = Phone().talking()
    phone.created()
    phone.interrupt()
    phone.ask()
    phone.when_heard(1, then=HANG_UP)

    commands = phone.frames(LATE_MS + 100)

    assert (cancels(commands), asks(commands), dials(commands)) == ([], 1, [])
    assert ends(phone.frames(LATE_MS + 100)) == [HANG_UP]


# --- waits ---


def test_a_wait_that_was_given_up_does_nothing() -> None:
    """A tool that ran into its time limit does not hang up a minute later."""
    phone = Phone().talking()
    phone.answers(500)
    phone.when_heard(1, then=HANG_UP)
    phone.when_heard(2)

    assert phone.gives_up(1) == phone.gives_up(9) == []
    commands = phone.frames(1000)
    assert heard(commands) == [(2, True)]
    assert ends(commands) == []


def test_cleared_tones_count_as_not_heard() -> None:
    """A clear removes the tones, and the code that sent them is told so."""
    phone = Phone().talking()
    phone.answers(500)
    phone.play(500)
    phone.when_heard(1, stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == [(1, False)]


def test_an_unstoppable_hang_up_survives_cleared_tones() -> None:
    """It still ends the call after the next response."""
    phone = Phone().talking()
    phone.answers(500)
    phone.play(500)
    phone.when_heard(1, then=("agent", "message_left"), stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == []


def test_no_call_ends_between_two_keys() -> None:
    """A caller who is typing is not hung up on: the keys stop the hang-up."""
    phone = Phone(key_pause_seconds=2.0).talking()
    phone.answers(300)
    phone.when_heard(1, then=HANG_UP)
    phone.frames(200)
    phone.presses("4")

    assert ends(phone.frames(1900)) == []
    commands = phone.frames(200)
    assert heard(commands) == [(1, False)]
    assert asks(commands) == 1


def test_no_goodbye_ends_a_call_between_two_keys() -> None:
    """Keys typed during the goodbye are answered first."""
    phone = Phone(key_pause_seconds=2.0).talking()
    phone.goodbye("cost")
    phone.answers(300)
    phone.frames(200)
    phone.presses("4")

    assert ends(phone.frames(1900)) == []


def test_a_muted_caller_is_not_called_silent() -> None:
    """A caller who cannot be heard cannot answer; silence is counted once they can."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.mute(True)
    assert said_to_model(phone.frames(6000)) == []
    phone.mute(False)

    assert said_to_model(phone.frames(1900)) == []
    assert said_to_model(phone.frames(200)) != []


def test_a_call_with_a_muted_caller_ends_when_the_goodbye_was_heard() -> None:
    """The line is not kept open for a caller who cannot be heard."""
    phone = Phone().talking()
    phone.mute(True)
    phone.goodbye("cost")
    phone.answers(500)

    assert ends(phone.frames(600)) == [("bridge", "cost")]


def test_the_cost_of_earlier_streams_counts() -> None:
    """The cost limit applies to the whole call, not to its second stream alone."""
    phone = Phone(spent=0.02, cost_limit=0.01).talking()
    phone.frames(100)

    assert said_to_model(phone.log) == [("system", GOODBYES["cost"])]


def test_a_cut_response_that_fails_is_not_requested_again() -> None:
    """Nobody waits for it; the server responds to what the caller said instead."""
    phone = Phone().talking()
    phone.created()
    phone.says(2000)
    phone.barges_in()

    commands = phone.model("response.done", response={"id": "r1", "status": "failed"})

    assert not [it for it in to_model(commands) if it["type"] == "response.create"]
    assert not ends(commands)
