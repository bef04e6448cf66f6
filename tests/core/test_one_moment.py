"""An answer that fails again and again: Twilio says a sentence between two streams."""

from typing import Any

import pytest

from bridge.audio import g711
from bridge.core.commands import Command, SayOneMoment
from bridge.core.one_moment import CHECK_SECONDS, MOST, SILENT_SECONDS
from bridge.core.rules import BACK, CUT_OFF
from tests.core.phone import Phone, asks, ends, given, notes

MS = int(1000 * SILENT_SECONDS)


def failing(seconds: float = 20.0, *, allowed: bool = True, **rules: Any) -> Phone:
    """A quiet caller, whose answer has failed; the next try comes after `seconds`."""
    phone = Phone(waiting_sound=None, one_moment=allowed, **rules)
    phone.sound = g711.SILENCE
    phone.talking()
    phone.speaks(400)
    phone.created()
    fails(phone, seconds)
    return phone


def fails(phone: Phone, seconds: float, response: str = "r1") -> list[Command]:
    message = f"Please try again in {seconds}s."
    error = {"type": "x", "code": "rate_limit_exceeded", "message": message}
    details = {"type": "failed", "error": error}
    head = {"id": response, "status": "failed", "status_details": details}
    return phone.model("response.done", response=head)


def says(commands: list[Command]) -> int:
    return sum(isinstance(it, SayOneMoment) for it in commands)


def test_a_caller_whose_answer_fails_hears_a_sentence() -> None:
    """Once in a silence; the session and the next try stay."""
    phone = failing()
    assert says(phone.frames(MS - 100)) == 0

    commands = phone.frames(200)

    assert says(commands) == 1
    [note] = notes(commands, "one_moment")
    assert note.data["seconds"] == pytest.approx(SILENT_SECONDS, abs=0.05)
    assert says(phone.frames(500)) == 0, "the stream is about to be left"
    phone.loses_line()
    phone.now += 3.0
    back = phone.line_back()
    assert given(back) == [], "the line was not interrupted"
    assert asks(back + phone.frames(4000)) == 0
    assert asks(phone.frames(9000)) == 1


def test_a_try_that_is_due_meanwhile_is_made_on_the_next_stream() -> None:
    phone = failing(8.5)
    assert says(phone.frames(MS + 100)) == 1
    phone.loses_line()
    assert asks(phone.wait(3.0)) == 0

    assert asks(phone.line_back()) == 1


def test_an_answer_that_began_before_the_stream_was_left_is_gone_on_with() -> None:
    """The caller heard a part of it, and the stream was cut."""
    phone = failing(8.2)
    assert says(phone.frames(MS + 50)) == 1
    phone.frames(3000)
    phone.created("r2")
    phone.says(900, "i2", "r2")
    phone.frames(200)
    phone.loses_line()

    assert [text for _, _, text in given(phone.line_back())] == [CUT_OFF]


def test_a_stream_that_breaks_later_was_not_left() -> None:
    phone = failing(9.0)
    phone.frames(MS + 100)
    phone.loses_line()
    phone.line_back()
    phone.frames(2000)
    phone.answers(300, "i2", "r2")
    phone.frames(500)
    phone.loses_line()

    assert [text for _, _, text in given(phone.line_back())] == [BACK]


def test_it_is_said_again_but_not_without_end() -> None:
    phone = failing(23.0)
    count = 0
    for _ in range(MOST + 1):
        said = says(phone.frames(MS + 100))
        count += said
        if said:
            phone.loses_line()
            phone.line_back()

    assert count == MOST
    assert not ends(phone.log)


def test_it_waits_for_the_end_of_a_try() -> None:
    """A response that is requested may succeed; when it fails, the sentence is due."""
    phone = failing(7.5)
    phone.frames(7900)
    phone.created("r2")
    assert says(phone.frames(1000)) == 0

    fails(phone, 15.0, "r2")
    assert says(phone.frames(int(1000 * CHECK_SECONDS) + 100)) == 1


def test_what_the_caller_hears_puts_it_off() -> None:
    phone = failing()
    phone.frames(MS - 100)
    phone.says(1000, "i9", "r9")  # audio of a response that is unknown
    assert says(phone.wait(0.2)) == 0

    assert says(phone.frames(MS + 300)) == 0
    assert says(phone.frames(700)) == 1


@pytest.mark.parametrize("why", ["rule", "caller", "wait", "goodbye", "session"])
def test_it_is_not_said(why: str) -> None:
    """Where Twilio would not come back, while the caller speaks, while user code waits
    for words, when the call ends, and while no session could answer."""
    phone = failing(allowed=why != "rule")
    phone.frames(MS - 200)
    if why == "caller":
        phone.barges_in()
    elif why == "wait":
        phone.when_heard(1)
    elif why == "goodbye":
        phone.goodbye("cost")
    elif why == "session":
        phone.loses_model()

    assert says(phone.frames(2000)) == 0


def test_an_answer_that_is_only_slow_is_waited_for() -> None:
    phone = Phone(waiting_sound=None, one_moment=True)
    phone.sound = g711.SILENCE
    phone.talking()
    phone.speaks(400)
    phone.created()

    assert says(phone.frames(MS + 500)) == 0
