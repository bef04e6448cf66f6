"""Waits until all was heard: for hang-ups, transfers and tones; and what stops them."""

from bridge.core.conversation import LATE_SECONDS
from bridge.core.redial import READY_SECONDS
from bridge.core.waits import HEARD_SECONDS
from tests.core.phone import (
    Phone,
    asks,
    ends,
    events,
    heard,
    notes,
    said_to_model,
    to_model,
    told,
)

HANG_UP = ("agent", "hung_up")


def test_a_goodbye_is_heard_to_its_end_before_the_call_ends() -> None:
    """The caller hears the last word, and then the call ends at once."""
    phone = Phone().talking()
    phone.created()
    phone.says(1000)

    assert phone.when_heard(1, then=HANG_UP) == []
    phone.item_done()
    assert ends(phone.done()) == []
    assert ends(phone.frames(980)) == []

    commands = phone.frames(60)

    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_a_goodbye_limits_a_wait_that_is_under_way() -> None:
    """The call ends at the time of the goodbye, although a tool still waits until all
    was heard."""
    phone = Phone().talking()
    phone.created()
    phone.when_heard(1)
    wait_ends = phone.talk.deadline
    phone.goodbye("longest")

    assert phone.talk.deadline == wait_ends
    assert ends(phone.frames(60_000)) == [("bridge", "longest")]


def test_a_hang_up_in_silence_ends_the_call_at_once() -> None:
    """Nothing is queued, so nothing is waited for."""
    commands = Phone().talking().when_heard(1, then=HANG_UP)

    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_a_barge_in_stops_a_hang_up() -> None:
    """A caller who has one more question is not hung up on."""
    phone = Phone().talking()
    phone.answers(1000)
    phone.when_heard(1, then=HANG_UP)
    phone.frames(300)

    assert heard(phone.barges_in()) == [(1, False)]
    phone.falls_silent()
    assert ends(phone.frames(3000)) == []


def test_a_caller_who_is_speaking_is_not_hung_up_on() -> None:
    """A hang-up decided while the caller speaks is not carried out."""
    phone = Phone().talking()
    phone.barges_in()

    commands = phone.when_heard(1, then=HANG_UP)

    assert heard(commands) == [(1, False)]
    assert ends(commands) == []


def test_an_application_that_interrupts_stops_a_hang_up() -> None:
    """What was not heard does not count as heard."""
    phone = Phone().talking()
    phone.answers(1000)
    phone.when_heard(1, then=HANG_UP)

    assert heard(phone.interrupt()) == [(1, False)]


def test_without_barge_in_a_hang_up_is_not_stopped() -> None:
    """Where the agent may not be interrupted, its goodbye may not be either."""
    phone = Phone()
    phone.start()
    turns = {"interrupt_response": False, "create_response": False}
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.answers(500)
    phone.barges_in()

    assert heard(phone.when_heard(1, then=HANG_UP)) == []
    assert ends(phone.frames(600)) == [HANG_UP]


def test_an_unstoppable_wait_survives_a_barge_in() -> None:
    """Tones that the other end answers by speaking are played to their end."""
    phone = Phone().talking()
    phone.play(300)
    phone.when_heard(1, stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == []
    assert heard(phone.frames(300)) == [(1, True)]
    assert heard(phone.when_heard(2, stoppable=False)) == [(2, True)]


def test_a_response_that_is_owed_is_waited_for() -> None:
    """No call ends between a question and the response to it."""
    phone = Phone().talking()
    phone.ask()
    assert heard(phone.when_heard(1)) == []
    phone.frames(500)

    assert heard(phone.answers(200)) == []
    assert heard(phone.frames(300)) == [(1, True)]


def test_a_message_for_a_model_that_is_not_ready_is_waited_for() -> None:
    """A message for an answering machine that was told early is left, then the call
    ends; not before the message."""
    phone = Phone()
    phone.start()
    phone.tell("Leave this message.", "system")
    assert phone.when_heard(1, then=("agent", "message_left"), stoppable=False) == []
    assert ends(phone.frames(2000)) == []

    assert asks(phone.ready()) == 1
    phone.answers(500)
    assert ends(phone.frames(600)) == [("agent", "message_left")]


def test_a_hang_up_before_the_model_is_ready_ends_the_call_at_once() -> None:
    """A caller whom the application turns away does not wait for a model first."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.tell("From the register: a regular.", "system", respond=False)

    assert ends(phone.when_heard(1, then=HANG_UP)) == [HANG_UP]


def test_a_message_for_a_machine_that_still_speaks_is_left() -> None:
    """The machine is recognised while it speaks: the message follows, and the call ends
    only when it was heard."""
    phone = Phone().talking()
    phone.barges_in()
    assert asks(phone.tell("Leave this message.", "system")) == 0
    assert phone.when_heard(1, then=("agent", "message_left"), stoppable=False) == []
    assert ends(phone.frames(1000)) == []
    assert ends(phone.falls_silent()) == []

    phone.frames(300)
    phone.answers(500)
    assert ends(phone.frames(480)) == []
    assert ends(phone.frames(60)) == [("agent", "message_left")]


def test_a_message_that_the_machine_interrupts_is_begun_again() -> None:
    """The beep cuts the message short: the call waits for the response that follows."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.when_heard(1, then=("agent", "message_left"), stoppable=False)
    phone.frames(200)
    phone.barges_in()
    phone.frames(100)
    phone.falls_silent()
    assert ends(phone.frames(500)) == []

    phone.answers(500, item="i2", response="r2")
    assert ends(phone.frames(600)) == [("agent", "message_left")]


def test_a_lost_end_mark_delays_the_end_by_seconds() -> None:
    """A Twilio that loses a mark costs the caller seconds, not a call without end."""
    phone = Phone().talking()
    phone.answers(1000)
    began = phone.now
    phone.when_heard(1, then=HANG_UP)
    assert phone.talk.deadline is not None
    assert phone.talk.deadline <= began + 1.0 + HEARD_SECONDS

    assert ends(phone.wait(1.0 + HEARD_SECONDS - 0.01)) == []
    commands = phone.wait(0.02)

    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_a_response_that_never_ends_does_not_keep_the_call() -> None:
    """A model that hangs in its goodbye does not keep the line."""
    phone = Phone().talking()
    phone.created()
    phone.when_heard(1, then=HANG_UP)
    assert ends(phone.frames(int(1000 * LATE_SECONDS) - 100)) == []

    assert ends(phone.frames(200)) == [HANG_UP]
    assert notes(phone.log, "answer_late"), "and not asked of another session"


def test_all_waits_end_with_the_call() -> None:
    """No tool of user code hangs for ever on a call that is over."""
    phone = Phone().talking()
    phone.answers(1000)
    phone.when_heard(1)
    phone.when_heard(2, stoppable=False)
    phone.when_heard(3, then=HANG_UP)

    commands = phone.hangs_up()

    assert heard(commands) == [(1, None), (2, None), (3, None)]
    assert ends(commands) == [("caller", "hung_up")]
    assert heard(phone.when_heard(4)) == [(4, None)]


def test_of_two_waits_that_end_the_call_the_first_does() -> None:
    """A hang-up after a transfer does not end the call a second time, and is told
    so."""
    phone = Phone().talking()
    phone.answers(200)
    phone.when_heard(1, then=("agent", "transferred"))
    phone.when_heard(2, then=HANG_UP)

    commands = phone.frames(300)

    assert heard(commands) == [(2, None), (1, True)]
    assert ends(commands) == [("agent", "transferred")]


def test_tones_are_heard_behind_what_is_said() -> None:
    """Digits sent by the agent reach the other end as audio, whole, with a mark that
    tells when they were played."""
    phone = Phone().talking()
    phone.answers(200)

    sent = phone.play(300)

    assert events(sent)[-1] == "mark"
    assert to_model(sent) == []
    phone.when_heard(1, stoppable=False)
    assert heard(phone.frames(480)) == []
    assert heard(phone.frames(60)) == [(1, True)]
    assert heard(phone.when_heard(2)) == [(2, True)]


def test_the_model_is_not_told_of_tones() -> None:
    """Only the agent's own audio is truncated at the model."""
    phone = Phone().talking()
    phone.play(1000)
    phone.frames(200)

    commands = phone.barges_in()

    assert events(commands) == []
    assert told(commands + phone.frames(200)) == []


def test_nothing_is_played_where_there_is_no_stream() -> None:
    """Before `start` and after the end, tones are dropped."""
    phone = Phone()
    assert phone.play(100) == []
    phone.start()
    assert events(phone.play(100)) != []
    phone.hangs_up()
    assert phone.play(100) == []


# --- messages to the agent ---


def test_a_told_message_is_in_the_conversation_and_answered() -> None:
    """The application's message reaches the agent, which responds if that is wanted."""
    phone = Phone().talking()

    silent = phone.tell("They are a regular.", "system", respond=False)
    loud = phone.tell("What is new?")

    assert said_to_model(silent) == [("system", "They are a regular.")]
    assert asks(silent) == 0
    assert said_to_model(loud) == [("user", "What is new?")]
    assert asks(loud) == 1


def test_messages_told_before_the_model_is_ready_are_not_lost() -> None:
    """Messages told while the model starts come in order, behind the greeting and
    before what the caller said."""
    phone = Phone(greeting="Say hello.")
    phone.tell("one", "system", respond=False)
    phone.start()
    phone.frame()
    phone.tell("two")

    commands = phone.ready()

    assert said_to_model(commands) == [
        ("system", "Say hello."),
        ("system", "one"),
        ("user", "two"),
    ]
    assert asks(commands) == 1
    assert to_model(commands)[-1]["type"] == "input_audio_buffer.append"
    assert asks(phone.answers(20)) == 1


def test_messages_for_a_model_that_never_comes_are_bounded() -> None:
    """An application that tells much to an absent model costs no memory, and the loss
    is noted."""
    phone = Phone()
    phone.start()
    tells = [phone.tell(str(n), respond=False) for n in range(66)]

    assert [len(notes(commands, "text_dropped")) for commands in tells[-3:]] == [
        0,
        1,
        1,
    ]
    assert len(said_to_model(phone.ready())) == 64


def test_a_message_told_while_the_caller_speaks_is_answered_after_their_turn() -> None:
    """The message is in the conversation; the server responds to both together."""
    phone = Phone().talking()
    phone.barges_in()

    commands = phone.tell("The parcel is found.", "system")

    assert said_to_model(commands) == [("system", "The parcel is found.")]
    assert asks(commands) == 0


def test_a_server_that_does_not_respond_by_itself_is_asked() -> None:
    """With create_response false the bridge must request each response."""
    phone = Phone()
    phone.start()
    turns = {"create_response": False}
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.barges_in()

    assert asks(phone.tell("Hello?")) == 1


def test_a_response_requested_while_another_runs_comes_after_it_once() -> None:
    """Two tools that end in one response lead to one more response, not to two."""
    phone = Phone().talking()
    phone.created()
    assert asks(phone.ask() + phone.ask() + phone.tell("And?")) == 0

    assert asks(phone.done()) == 1
    assert asks(phone.answers(20, "i2", "r2")) == 0


def test_a_response_refused_for_the_servers_own_comes_after_it() -> None:
    """Ours was refused because the server had just begun one of its own: it comes after
    that, once."""
    phone = Phone().talking()
    phone.ask()
    phone.created("server's own")
    code = "conversation_already_has_active_response"
    error = {"code": code, "message": "", "type": "", "event_id": "bridge_answer"}

    assert asks(phone.model("error", error=error)) == 0
    assert asks(phone.done("server's own")) == 1
    assert asks(phone.answers(20, "i2", "r2")) == 0


def test_a_request_refused_by_another_race_is_not_waited_for() -> None:
    """After a harmless error about our request no wait stays open for it."""
    phone = Phone().talking()
    phone.ask()
    error = {"code": "unsupported_content_type", "event_id": "bridge_answer"}

    phone.model("error", error=error)

    assert heard(phone.when_heard(1)) == [(1, True)]


def test_a_failed_response_with_another_owed_is_not_requested_twice() -> None:
    """The response that comes anyway replaces the failed one."""
    phone = Phone().talking()
    phone.created()
    phone.ask()

    assert asks(phone.done(status="failed")) == 1
    phone.created("r2")
    assert asks(phone.done("r2")) == 0


def test_nothing_is_sent_before_the_model_is_ready() -> None:
    """A model that is not there gets neither requests nor edits."""
    phone = Phone()
    phone.start()

    assert phone.ask() == []
    assert phone.edit(["i1"], {}) == []
    assert phone.wait(READY_SECONDS) != []
    assert phone.tell("Too late.") == []
    assert phone.follow(greeting="Too late.") == []
