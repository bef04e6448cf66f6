"""A session that gets old is replaced by another, in a quiet moment, unnoticed."""

import msgspec
import pytest

from bridge.core import realtime_events
from bridge.core.commands import CloseConnection, Switch
from bridge.core.conversation import LATE_SECONDS, State
from bridge.core.inputs import Dialled, FromModel, ModelLost, NotDialled
from bridge.core.redial import SPARE_SECONDS
from bridge.core.rules import BROKEN_OFF
from tests.core.phone import (
    MULAW_SESSION,
    Phone,
    appended,
    asks,
    dials,
    ends,
    events,
    given,
    notes,
    payload,
    said_to_model,
    to_caller,
    to_model,
)

SECONDS = 5.0


def old() -> Phone:
    """The session is old, a spare one is dialled; nobody speaks."""
    phone = Phone(session_seconds=SECONDS).talking()
    phone.speaks(400)
    phone.writes("Hello.")
    phone.answers(200, words="Good day.")
    commands = phone.frames(int(1000 * SECONDS))
    assert dials(commands) == [(0.0, True)], "beside the one in use"
    return phone


def switches(phone: Phone) -> int:
    return len([it for it in phone.log if isinstance(it, Switch)])


def test_an_old_session_is_replaced_in_silence() -> None:
    """The caller hears nothing of it, and the agent forgets nothing."""
    phone = old()
    dialled = phone.dialled()
    assert [it for it in dialled if isinstance(it, Switch)] != []
    assert notes(dialled, "rolls_over")
    assert to_model(phone.frames(100)) == [], "of a session that is left"

    commands = phone.ready()

    assert given(commands) == [
        ("u", "user", "Hello."),
        ("i1", "assistant", "Good day."),
    ]
    assert asks(commands) == 0
    assert said_to_model(commands)[-1][1] != BROKEN_OFF
    assert len(appended(commands)) > 0
    [note] = notes(commands, "model_back")
    assert note.data["why"] == "roll_over"
    assert "media" not in events(phone.frames(3000))


def test_the_next_one_gets_old_too() -> None:
    """A call may be longer than two sessions."""
    phone = old()
    phone.dialled()
    phone.ready()

    assert dials(phone.frames(int(1000 * SECONDS) - 100)) == []
    assert dials(phone.frames(200)) == [(0.0, True)]


def test_a_roll_over_waits_until_the_caller_was_answered() -> None:
    """Not in their sentence, not before the response, not in the response."""
    phone = old()
    phone.barges_in()
    phone.dialled()
    before = switches(phone)
    phone.frames(500)
    phone.falls_silent()
    phone.committed("u2")
    phone.frames(300)
    phone.answers(500, item="i2", response="r2", words="Sure.")
    phone.frames(300)
    assert switches(phone) == before

    phone.frames(400)

    assert switches(phone) == before + 1
    assert ("i2", "assistant", "Sure.") in given(phone.ready())


def test_a_roll_over_waits_for_a_tool() -> None:
    """Its call and its result belong to one session, where that is possible."""
    phone = old()
    phone.calls_tool("c1")
    phone.dialled()
    before = switches(phone)
    phone.frames(1000)
    assert switches(phone) == before
    phone.shows(phone.tool_ends("c1"))
    phone.answers(200, item="i2", response="r2")

    phone.frames(400)

    assert switches(phone) == before + 1


def test_lost_with_a_spare_at_hand() -> None:
    """The spare session takes over at once: there is nothing to dial."""
    phone = old()
    phone.created("r2")
    phone.item_added("i2", "assistant")
    phone.words("Well, it", "i2", "r2")
    phone.says(500, "i2", "r2")
    phone.dialled()

    lost = phone.loses_model()

    assert [it for it in lost if isinstance(it, Switch)] != []
    assert dials(lost) == []
    commands = phone.ready()
    assert [text for _, text in said_to_model(commands)][-2:] == [
        "Well, it",
        BROKEN_OFF,
    ]
    assert asks(commands) == 1


def test_lost_while_the_spare_is_dialled() -> None:
    """It is used as soon as it is open; no second one is dialled meanwhile."""
    phone = old()

    assert dials(phone.loses_model()) == []
    assert len(given(phone.model_back())) == 2


def test_a_late_session_is_not_used_again_while_a_spare_is_dialled() -> None:
    """Its server does not respond, but is still connected: its events must not make it
    the next session, which would be dialled a second time."""
    phone = old()
    phone.ask()
    phone.gives_signs = False
    phone.wait(LATE_SECONDS)
    assert notes(phone.log, "answer_late")
    phone.refused("invalid_value", None)

    assert to_model(phone.model("session.updated", session=MULAW_SESSION)) == []

    assert ends(phone.log) == []
    assert switches(phone) == 1
    assert notes(phone.model_back(), "model_back")


def test_a_spare_that_fails_is_tried_again_later() -> None:
    """The present session goes on."""
    phone = old()
    phone.frames(5000)
    commands = phone.not_dialled("HTTP 503")
    assert (dials(commands), ends(commands)) == ([], [])
    assert len(to_model(phone.frames(20))) == 1, "the caller is heard"

    assert dials(phone.frames(int(1000 * SPARE_SECONDS) - 100)) == []
    assert dials(phone.frames(200)) == [(0.0, True)]


def test_a_spare_that_is_refused_for_ever_does_not_end_the_call() -> None:
    """A call does not end for a session that it does not need yet."""
    phone = old()

    assert ends(phone.not_dialled("HTTP 401", fatal=True)) == []


def test_lost_in_the_roll_over_itself() -> None:
    """The session that was to take over is lost: one is dialled, nothing is missing."""
    phone = old()
    phone.dialled()
    phone.frames(200)

    assert dials(phone.loses_model()) == [(0.0, False)]
    commands = phone.model_back()
    assert len(given(commands)) == 2
    assert asks(commands) == 0


def test_late_text_of_the_replaced_session_is_dropped() -> None:
    """Nothing of it reaches the caller any more."""
    phone = old()
    phone.created("r9")
    phone.dialled()
    phone.loses_model()
    phone.ready()

    assert to_caller(phone.says(200, "i9", "r9")) == []


def test_no_roll_over_in_a_goodbye() -> None:
    """A call that is about to end needs no new session."""
    phone = old()
    phone.goodbye("longest")
    before = switches(phone)
    phone.dialled()
    phone.answers(200, item="i2", response="r2")

    assert ends(phone.frames(400)) == [("bridge", "longest")]
    assert switches(phone) == before


@pytest.mark.parametrize("seconds", [None])
def test_without_a_session_age_no_session_is_replaced(seconds: float | None) -> None:
    """A bridge that sets no age replaces no session."""
    phone = Phone(session_seconds=seconds).talking()

    assert dials(phone.frames(10_000)) == []


# --- a session that was given up ---


def given_up_while_a_spare_is_dialled() -> tuple[Phone, int]:
    """The session is given up as late. Returns the call, and the number of the
    connection of that session."""
    phone = old()
    left = phone.connection
    phone.ask()
    commands = phone.wait(LATE_SECONDS)
    assert dials(commands) == [], "the spare connection is being dialled already"
    assert [it.connection for it in commands if isinstance(it, CloseConnection)] == [
        left
    ]
    return phone, left


def test_a_session_that_was_given_up_cannot_speak() -> None:
    """The caller hears one agent, not two; the response of the next session is not
    blocked by a response of the session before it."""
    phone, left = given_up_while_a_spare_is_dialled()

    head = realtime_events.ResponseHead("r9")
    delta = realtime_events.AudioDelta("r9", "i9", payload(200))
    late = phone.gives(FromModel(left, realtime_events.ResponseCreated(head)))
    late += phone.gives(FromModel(left, delta))
    back = phone.dialled() + phone.ready()

    assert late == []
    assert asks(back) == 1
    assert events(phone.answers(200, "i2", "r2")).count("media") > 0


def test_only_the_new_connection_makes_the_model_ready() -> None:
    """Nothing is sent to a session before its settings are in force, even if the
    session before it reports settings late."""
    phone, left = given_up_while_a_spare_is_dialled()
    session = msgspec.convert(MULAW_SESSION, realtime_events.SessionDetails)
    updated = realtime_events.SessionUpdated(session)

    late = phone.gives(FromModel(left, updated))
    phone.dialled()
    late += phone.gives(FromModel(left, updated)) + phone.frames(100)

    assert phone.talk.state is State.HOLDING
    assert to_model(late) == []
    assert len(appended(phone.ready())) > 0


def test_the_loss_of_a_connection_that_was_left_changes_nothing() -> None:
    """A connection that is closed late does not end the session that replaced it."""
    phone, left = given_up_while_a_spare_is_dialled()
    phone.dialled()
    phone.ready()

    assert phone.gives(ModelLost(left, "closed")) == []
    assert phone.gives(NotDialled(left, "HTTP 503", True)) == []
    assert phone.gives(Dialled(left)) == []
    assert phone.talk.state is State.TALKING
