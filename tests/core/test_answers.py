"""Answers that are asked for, owed, stopped and late: who asks, when, and how often."""

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


# --- when an answer is asked for ---


def test_nobody_asks_into_the_callers_words() -> None:
    """A tool that ends while the caller speaks is answered with what they say."""
    phone = Phone().talking()
    phone.barges_in()

    assert asks(phone.ask()) == 0
    phone.falls_silent()
    phone.created()
    assert asks(phone.done()) == 0


def test_an_answer_waits_for_the_one_that_the_server_is_about_to_begin() -> None:
    """Told between the caller's last word and the answer to it, something is answered
    after that, once."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()

    assert asks(phone.tell("The parcel is found.", "system")) == 0
    phone.created()
    assert asks(phone.done()) == 1
    phone.created("r2")
    assert asks(phone.done("r2")) == 0


def test_no_answer_is_asked_for_before_the_model_knows_what_was_heard() -> None:
    """The answer to keys does not build on words that never left the phone."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.frames(300)

    commands = phone.presses("1#")
    assert events(commands) == ["clear", "mark"]
    assert asks(commands) == 0

    settled = [it["type"] for it in to_model(phone.echoes())]
    assert settled == ["conversation.item.truncate", "response.create"]


def test_a_fence_that_does_not_come_back_holds_no_answer() -> None:
    """A Twilio that loses a mark costs a second, not the answer."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.frames(300)
    assert asks(phone.presses("1#")) == 0

    commands = phone.wait(1.0)

    assert notes(commands, "fence_late")
    assert asks(commands) == 1


def test_an_answer_wanted_before_the_model_is_ready_comes_when_it_is() -> None:
    """Who asks too early is not forgotten."""
    phone = Phone()
    phone.start()
    assert to_model(phone.ask()) == []

    assert asks(phone.ready()) == 1
    phone.answers(20)
    assert asks(phone.ready()) == 0


def test_the_greeting_has_an_event_id_of_its_own() -> None:
    """An error about the opening words is not taken for a refused answer."""
    phone = Phone(greeting="Say hello.")
    phone.start()

    say, create = to_model(phone.ready())

    assert create["event_id"] == "bridge_answer"
    assert say["event_id"] not in (None, create["event_id"])


# --- who asks for the server ---


def test_a_turn_that_was_thrown_away_is_not_waited_for() -> None:
    """The server will not answer it: what is owed is asked for at once."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()
    assert asks(phone.ask()) == 0

    assert asks(phone.cleared()) == 1


def test_a_turn_that_was_thrown_away_is_over() -> None:
    """Nobody is taken for speaking whose words are gone."""
    phone = Phone().talking()
    phone.barges_in()
    phone.cleared()

    assert asks(phone.ask()) == 1


def test_a_turn_that_was_committed_is_over() -> None:
    """An application that ends the turn itself leaves nobody speaking."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.barges_in()
    phone.committed()

    assert heard(phone.when_heard(1)) == [(1, True)]
    assert said_to_model(phone.frames(2100)) != []


def test_a_session_without_detection_has_no_speaker() -> None:
    """Turned off in the middle of a word, detection tells nobody when that ends."""
    phone = Phone().talking()
    phone.barges_in()
    phone.ready({"audio": {"input": {"turn_detection": None}}})

    assert asks(phone.ask()) == 1


def test_a_session_that_says_nothing_of_detection_keeps_its_speaker() -> None:
    """A change of the voice ends nobody's sentence."""
    phone = Phone().talking()
    phone.barges_in()
    phone.ready({"audio": {"output": {}}})

    assert asks(phone.ask()) == 0


def test_a_caller_whom_the_server_does_not_answer_is_asked() -> None:
    """Noise that was no speech: the agent asks in time, not behind an answer that does
    not come."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.barges_in()
    phone.falls_silent()

    commands = phone.frames(3100)

    assert notes(commands, "caller_silent")
    assert asks(commands) == 1


# --- an answer that is stopped before it begins ---


def test_an_answer_that_was_stopped_does_not_begin() -> None:
    """Asked for, then stopped: it makes no sound, and the model is told to stop."""
    phone = Phone().talking()
    phone.ask()
    phone.interrupt()

    assert cancels(phone.created()) == ["r1"]
    assert events(phone.says(300)) == []
    phone.done(status="cancelled")
    assert cancels(phone.created("r2")) == []
    assert events(phone.says(300, item="i2", response="r2")) != []


def test_keys_into_an_answer_that_has_not_begun_are_answered_once() -> None:
    """The old answer is stopped when it begins, the one to the keys follows."""
    phone = Phone().talking()
    phone.ask()
    assert asks(phone.presses("1#")) == 0

    assert cancels(phone.created()) == ["r1"]
    assert asks(phone.done(status="cancelled")) == 1
    assert cancels(phone.created("r2")) == []
    assert asks(phone.done("r2")) == 0


def test_who_speaks_into_an_answer_that_has_not_begun_is_answered() -> None:
    """What begins once they have ended answers them, and is not stopped."""
    phone = Phone().talking()
    phone.ask()
    phone.barges_in()
    phone.falls_silent()

    assert cancels(phone.created()) == []
    assert events(phone.says(300)) != []


def test_a_guardrail_of_one_answer_does_not_stop_the_next() -> None:
    """What was asked for already is innocent."""
    phone = Phone().talking()
    phone.answers(1000)
    phone.ask()
    phone.interrupt("guardrail", "r1")

    assert cancels(phone.created("r2")) == []


# --- refusals ---


@pytest.mark.parametrize("event_id", ["bridge_answer", None])
def test_an_answer_refused_for_another_is_asked_for_after_it(
    event_id: str | None,
) -> None:
    """Ours, or the server's own: nobody loses the answer to what they said."""
    phone = Phone().talking()
    phone.created()

    assert asks(phone.refused(BUSY, event_id)) == 0
    assert asks(phone.done()) == 1


def test_an_answer_of_the_users_own_that_is_refused_is_theirs() -> None:
    """Code that asks by itself deals with the refusal by itself."""
    phone = Phone().talking()
    phone.created()
    phone.refused(BUSY, "event_of_theirs")

    assert asks(phone.done()) == 0


def test_a_refusal_leaves_nothing_owed() -> None:
    """Two were wanted and the first was refused: the second is asked for at once."""
    phone = Phone().talking()
    phone.ask()
    assert asks(phone.ask()) == 0

    assert asks(phone.refused("unsupported_content_type", "bridge_answer")) == 1


# --- answers that fail ---


def test_an_answer_cut_off_before_its_first_sound_has_failed() -> None:
    """`incomplete` without a sound is silence to the caller: it is asked for again."""
    phone = Phone().talking()
    phone.created()
    commands = phone.done(status="incomplete")
    assert notes(commands, "answer_failed")
    assert asks(commands) == 1

    phone.created("r2")
    assert ends(phone.done("r2", "incomplete")) == [("model", "failed")]


def test_an_answer_cut_off_in_the_middle_has_not_failed() -> None:
    """What was heard of it counts."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)
    commands = phone.done(status="incomplete")

    assert notes(commands, "answer_failed") == []
    assert asks(commands) == 0


def test_audio_makes_failures_forgotten() -> None:
    """Two failures with an answer between them, however it ended, are no row."""
    phone = Phone().talking()
    phone.created()
    phone.done(status="failed")
    phone.created("r2")
    phone.says(300, response="r2")
    phone.done("r2", "cancelled")
    phone.created("r3")

    assert ends(phone.done("r3", "failed")) == []


# --- answers that do not come ---


def test_an_answer_that_never_begins_is_asked_for_once_more() -> None:
    """No caller sits in silence for ever: another session is asked, then none."""
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


def test_an_answer_that_stops_coming_goes_on_in_another_session() -> None:
    """What was sent is heard, and is not said again; what is late is not heard."""
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


def test_an_answer_that_comes_on_is_not_late() -> None:
    """A long answer may take its time, as long as something comes of it."""
    phone = Phone().talking()
    phone.created()
    for n in range(4):
        phone.frames(LATE_MS - 2000)
        item = {"id": f"i{n}", "type": "message"}
        phone.model("response.output_item.added", response_id="r1", item=item)

    assert notes(phone.log, "answer_late") == []


def test_what_a_tool_takes_is_not_the_answers_delay() -> None:
    """A slow tool of the model's own server is waited for, and then the answer is."""
    phone = Phone().talking()
    phone.created()
    phone.busy(+1)
    phone.frames(2 * LATE_MS)
    phone.busy(-1)

    assert notes(phone.frames(LATE_MS - 100), "answer_late") == []
    assert notes(phone.frames(200), "answer_late") != []


def test_an_answer_owed_behind_a_cut_one_that_never_ends_is_asked_for_once() -> None:
    """A model that does not confirm its cancel costs the caller one wait."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)
    phone.interrupt()
    phone.frames(100)
    assert asks(phone.ask()) == 0

    late = phone.frames(LATE_MS + 100)

    assert (asks(late), cancels(late)) == (0, [])
    assert asks(phone.model_back()) == 1


def test_an_answer_asked_for_late_has_its_whole_time() -> None:
    """The clock of an answer begins where it is asked for, not with the one before."""
    phone = Phone().talking()
    phone.created()
    phone.says(100)
    phone.ask()
    phone.frames(LATE_MS - 1000)
    assert asks(phone.done()) == 1

    assert notes(phone.frames(LATE_MS - 1000), "answer_late") == []


def test_an_answer_that_the_server_owes_is_asked_of_another() -> None:
    """A server that heard the caller and never answers is left, with what they said."""
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


def test_a_late_answer_in_a_caller_who_speaks_spins_no_clock() -> None:
    """Given up while the caller speaks on, an answer is not given up once more."""
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


def test_no_answer_is_late_before_the_model_is_ready() -> None:
    """A model that is slow to start is not taken for one that does not answer."""
    phone = Phone()
    phone.start()
    phone.tell("Say this.", "system")

    assert notes(phone.frames(14_000), "answer_late") == []
    assert asks(phone.ready()) == 1


def test_who_hangs_up_is_not_held_by_another_try() -> None:
    """A goodbye that hangs ends the call at its first limit."""
    phone = Phone().talking()
    phone.created()
    phone.frames(1000)
    phone.when_heard(1, then=HANG_UP)

    commands = phone.frames(int(1000 * ANSWER_SECONDS))

    assert asks(commands) == 0
    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_who_hangs_up_does_not_wait_for_a_cancel_that_is_not_confirmed() -> None:
    """It is not told again to stop; the answer that is owed has its one chance."""
    phone = Phone().talking()
    phone.created()
    phone.interrupt()
    phone.ask()
    phone.when_heard(1, then=HANG_UP)

    commands = phone.frames(LATE_MS + 100)

    assert (cancels(commands), asks(commands), dials(commands)) == ([], 1, [])
    assert ends(phone.frames(LATE_MS + 100)) == [HANG_UP]


# --- who waits ---


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


def test_tones_that_are_flushed_were_not_heard() -> None:
    """A clear takes the tones with it, and who sent them is told."""
    phone = Phone().talking()
    phone.answers(500)
    phone.play(500)
    phone.when_heard(1, stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == [(1, False)]


def test_a_message_that_must_be_left_outlives_flushed_tones() -> None:
    """Who cannot be stopped leaves all the same, after the answer that follows."""
    phone = Phone().talking()
    phone.answers(500)
    phone.play(500)
    phone.when_heard(1, then=("agent", "message_left"), stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == []


def test_no_call_ends_between_two_keys() -> None:
    """Who is typing wants something: what they typed stops the hang-up."""
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
    """What is typed into the goodbye is answered first."""
    phone = Phone(key_pause_seconds=2.0).talking()
    phone.goodbye("cost")
    phone.answers(300)
    phone.frames(200)
    phone.presses("4")

    assert ends(phone.frames(1900)) == []


def test_a_muted_caller_is_not_called_silent() -> None:
    """Who cannot be heard cannot answer; the count begins when they can."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.talk.mute(True)
    assert said_to_model(phone.frames(6000)) == []
    phone.talk.mute(False)

    assert said_to_model(phone.frames(1900)) == []
    assert said_to_model(phone.frames(200)) != []


def test_a_goodbye_to_a_muted_caller_ends_when_it_was_heard() -> None:
    """The line is not held open for somebody who cannot be heard."""
    phone = Phone().talking()
    phone.talk.mute(True)
    phone.goodbye("cost")
    phone.answers(500)

    assert ends(phone.frames(600)) == [("bridge", "cost")]


def test_what_a_call_has_cost_before_counts() -> None:
    """A limit is of the call, not of its second stream."""
    phone = Phone(spent=0.02, cost_limit=0.01).talking()
    phone.frames(100)

    assert said_to_model(phone.log) == [("system", GOODBYES["cost"])]


def test_an_answer_that_was_cut_and_then_fails_is_not_asked_for_again() -> None:
    """Nobody wants it any more; the server answers what the caller said instead."""
    phone = Phone().talking()
    phone.created()
    phone.says(2000)
    phone.barges_in()

    commands = phone.model("response.done", response={"id": "r1", "status": "failed"})

    assert not [it for it in to_model(commands) if it["type"] == "response.create"]
    assert not ends(commands)
