"""Keys the caller presses: which of them form one input, and when it is complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.pressed_keys import MAX_KEYS, Keys
from tests.core.phone import (
    Phone,
    asks,
    ends,
    events,
    heard,
    notes,
    pressed,
    said_to_model,
    to_model,
)

PRESSED = "(The caller pressed these keys on the phone: {})"


def entered(keys: Keys, pressed: str, now: float = 0.0) -> list[str]:
    """The inputs that these keys complete, pressed at once."""
    inputs = [keys.press(key, now) for key in pressed]
    return [it for it in inputs if it is not None]


@given(st.text("0123456789*", min_size=1, max_size=MAX_KEYS - 1))
def test_a_hash_ends_an_input(number: str) -> None:
    """A caller who types a number and # is understood at once, without a pause."""
    keys = Keys(2.0)

    assert entered(keys, number) == []
    assert keys.press("#", 0.0) == number
    assert keys.due_at is None


def test_a_hash_alone_is_an_input() -> None:
    """A caller who presses only # has pressed something."""
    assert Keys(2.0).press("#", 0.0) == "#"


def test_a_pause_ends_an_input() -> None:
    """Slow keys are one input as long as no pause is too long."""
    keys = Keys(2.0)
    keys.press("1", 10.0)
    keys.press("2", 11.9)

    assert keys.due_at == 13.9
    assert keys.take() == "12"
    assert keys.due_at is None


def test_a_key_held_down_gives_inputs_of_bounded_length() -> None:
    """An input is complete at its longest, and the next one begins."""
    assert entered(Keys(2.0), "5" * 2 * MAX_KEYS) == ["5" * MAX_KEYS] * 2


@pytest.mark.parametrize(
    ("actions", "keys", "inputs", "left"),
    [
        (["0"], "0", ["0"], False),
        (["0"], "10", [], True),  # the 0 of a number is no 0
        (["1", "12"], "1", [], True),
        (["1", "12"], "12", ["12"], False),
        (["1", "12"], "13#", ["13"], False),
        (["1", "12"], "1#", ["1"], False),
        (["#"], "#", ["#"], False),
        (["*#"], "*#", ["*#"], False),
        (["12#"], "12#", ["12#"], False),
        (["#1"], "#", [], True),
        (["#1"], "#1", ["#1"], False),
        (["0"], "00", ["0", "0"], False),
    ],
)
def test_an_action_is_complete_unless_a_longer_one_begins_with_it(
    actions: list[str], keys: str, inputs: list[str], left: bool
) -> None:
    """A mapped key acts at once, unless a longer sequence begins with it."""
    kept = Keys(2.0, actions)

    assert entered(kept, keys) == inputs
    assert (kept.due_at is not None) == left


# --- in a call ---


def test_the_first_key_stops_the_agent_and_the_answer_comes_after_the_pause() -> None:
    """A caller who presses 1 while the agent reads a menu is not spoken over for the
    pause in which another key may come."""
    phone = Phone(key_pause_seconds=1.5).talking()
    phone.created()
    phone.says(5000)
    phone.frames(400)

    commands = phone.presses("1")

    assert events(commands) == ["clear", "mark"]
    assert [it["type"] for it in to_model(commands)] == ["response.cancel"]
    phone.done(status="cancelled")
    between = phone.frames(1400)
    assert not asks(between) and not said_to_model(between)
    assert events(phone.presses("2")) == []  # the agent is silent already
    answered = phone.frames(1600)
    assert said_to_model(answered) == [("user", PRESSED.format("12"))]
    assert asks(answered) == 1


def test_a_response_that_begins_between_two_keys_is_stopped_by_the_next() -> None:
    """The result of a tool, answered while the caller types, does not speak over the
    caller."""
    phone = Phone().talking()
    phone.presses("1")
    phone.created()
    phone.says(1000)

    assert events(phone.presses("2")) == ["clear", "mark"]


def test_a_flood_of_keys_costs_a_bounded_number_of_answers() -> None:
    """A program that sends 180 keys a second for a minute, each a complete input, is
    answered twice a second after its first 64, and the operator sees a limit."""
    phone = Phone(key_pause_seconds=2.0).talking()
    commands = []
    for _ in range(60 * 180):
        phone.now += 1 / 180
        commands += phone.presses("#")

    assert len(said_to_model(commands)) <= 64 + 2 * 60
    assert len(notes(commands, "key_pressed")) == len(said_to_model(commands))
    assert {it.data["limit"] for it in notes(commands, "limit_hit")} == {"key_rate"}
    phone.now += 60.0
    assert said_to_model(phone.presses("7#")) == [("user", PRESSED.format("7"))]


def test_keys_are_one_message_to_the_agent_and_interrupt_it() -> None:
    """With `key_stops_agent: off`, a caller who types 1 2 3 # while the agent speaks
    interrupts it when the input is complete: then silence at once, and one response
    when the old one has ended and the model knows what was heard of it."""
    phone = Phone(key_stops_agent=False).talking()
    phone.created()
    phone.says(2000)
    phone.frames(400)
    assert said_to_model(phone.presses("123")) == []

    commands = phone.presses("#")

    assert events(commands) == ["clear", "mark"]
    assert said_to_model(commands) == [("user", PRESSED.format("123"))]
    assert [it["type"] for it in to_model(commands)] == [
        "response.cancel",
        "conversation.item.create",
    ]
    assert asks(phone.done(status="cancelled")) == 0
    assert asks(phone.frames(100)) == 1


def test_keys_are_answered_after_the_pause() -> None:
    """A caller who does not know # is understood all the same."""
    phone = Phone(key_pause_seconds=1.5).talking()
    phone.presses("42")
    assert phone.talk.deadline == pytest.approx(phone.now + 1.5)
    assert said_to_model(phone.frames(1400)) == []

    commands = phone.frames(200)

    assert said_to_model(commands) == [("user", PRESSED.format("42"))]
    assert asks(commands) == 1


def test_a_mapped_key_is_not_told_to_the_agent() -> None:
    """The route's 0 dials a person: the agent is told nothing of it."""
    phone = Phone(key_actions=("0",)).talking()

    commands = phone.presses("0")

    assert pressed(commands) == ["0"]
    assert to_model(commands) == []


def test_a_mapped_key_that_begins_a_longer_one_waits() -> None:
    """With 1 and 12 mapped, 1 alone acts after the pause."""
    phone = Phone(key_actions=("1", "12")).talking()

    assert pressed(phone.presses("1")) == []
    assert pressed(phone.frames(2020)) == ["1"]
    assert pressed(phone.presses("12")) == ["12"]


def test_keys_pressed_before_the_model_is_ready_are_not_lost() -> None:
    """An impatient caller's choice reaches the agent as soon as the model is ready."""
    phone = Phone()
    phone.start()
    assert to_model(phone.presses("7#")) == []

    commands = phone.ready()

    assert said_to_model(commands) == [("user", PRESSED.format("7"))]
    assert asks(commands) == 1


def test_keys_stop_a_hang_up() -> None:
    """A caller who presses a key during the goodbye wants something."""
    phone = Phone().talking()
    phone.created()
    phone.says(1000)
    phone.when_heard(7, then=("agent", "hung_up"))

    assert heard(phone.presses("1#")) == [(7, False)]
    assert ends(phone.frames(3000)) == []


def test_a_caller_who_presses_keys_is_not_silent() -> None:
    """The caller is not asked whether they are there while they type."""
    phone = Phone(silent_seconds=3.0, key_pause_seconds=2.0).talking()
    phone.frames(2500)
    phone.presses("1")
    commands = phone.frames(1500)
    phone.presses("2")

    assert said_to_model(commands + phone.frames(1900)) == []
    assert said_to_model(phone.frames(200)) == [("user", PRESSED.format("12"))]


def test_silence_is_counted_from_the_last_key() -> None:
    """A caller who presses a mapped key and then says nothing is asked in time."""
    phone = Phone(silent_seconds=3.0, key_actions=("0",)).talking()
    phone.frames(1000)
    phone.presses("0")

    assert not notes(phone.wait(2.9), "caller_silent")
    assert notes(phone.wait(0.2), "caller_silent")
