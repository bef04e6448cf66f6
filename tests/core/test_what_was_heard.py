"""The record of what the caller heard when a side is lost, or an item is odd: never
more than was played, and every word of an item that was played to its end."""

import pytest

from tests.core.phone import (
    Phone,
    answering,
    asks,
    given,
    notes,
    only,
    to_caller,
    to_model,
    told,
)

WORDS = "One two three four five six seven eight"


def text_of(phone: Phone, item: str = "i1") -> str:
    known = phone.talk.history.get(item)
    assert known is not None
    return known.text


# --- cuts whose fence does not come back ---


def interrupted(phone: Phone) -> Phone:
    """The caller interrupts after one second; then nothing comes from the stream."""
    phone.frames(1000)
    phone.barges_in()
    phone.now += 0.9
    return phone


def test_a_line_lost_behind_a_barge_in() -> None:
    """The caller heard the agent up to the barge-in, not up to the loss: the model does
    not believe that it said what was cleared."""
    phone = interrupted(answering(4000, WORDS))

    lost = phone.loses_line()

    [(verb, _, ms)] = told(lost)
    assert verb == "truncate" and ms == pytest.approx(1000, abs=40)
    assert text_of(phone) == "One two"
    assert notes(lost, "fence_late") == [], "the line is lost, the fence is not late"


def test_a_call_that_ends_behind_a_barge_in() -> None:
    """The report of the call contains no word that was cleared."""
    phone = interrupted(answering(4000, WORDS))

    [said] = notes(phone.hangs_up(), "said")

    assert said.data["heard_ms"] == pytest.approx(1000, abs=40)
    assert text_of(phone) == "One two"


def test_a_line_lost_behind_two_barge_ins() -> None:
    """Each cut is settled at its own time: of the second response nothing was heard."""
    phone = answering(4000, WORDS)
    phone.frames(1000)
    phone.barges_in()
    phone.falls_silent()
    phone.done(status="cancelled")
    phone.answers(4000, item="i2", response="r2", words=WORDS)
    phone.barges_in()
    phone.now += 0.9

    lost = phone.loses_line()

    [(_, first, ms), second] = told(lost)
    assert first == "i1" and ms == pytest.approx(1000, abs=40)
    assert second == ("delete", "i2", None)


def test_a_line_that_was_broken_before_it_was_noticed() -> None:
    """Audio that went into a broken connection was not heard."""
    phone = answering(8000, WORDS)
    phone.frames(1000)
    phone.now += 5.0

    [(_, _, ms)] = told(phone.loses_line())

    assert ms <= 1200


def test_no_audio_is_counted_on_a_stream_that_is_gone() -> None:
    """A server that goes on with a response it never announced is not heard."""
    phone = Phone().talking()
    phone.loses_line()

    assert to_caller(phone.says(500, response="unknown")) == []
    phone.words("lost", response="unknown")
    assert notes(phone.wait(11.0), "said") == []


# --- words of items that were complete, or were not ---


def test_a_complete_item_keeps_its_last_words_when_the_model_is_lost() -> None:
    """A voice that speaks quickly: the caller heard every word, so the next session and
    the report have every word."""
    phone = Phone().talking()
    phone.answers(600, words="Your number is eight hundred fifty-five.")
    phone.frames(100)

    commands = phone.another_model()

    assert only("i1", commands) == ["Your number is eight hundred fifty-five."]
    phone.frames(1000)
    assert text_of(phone) == "Your number is eight hundred fifty-five."


def test_text_that_ran_ahead_of_its_audio_was_not_heard() -> None:
    """Everything sent was played before the barge-in; the text of the audio that had
    not come is not recorded as heard."""
    phone = answering(400, "One two three four five six")
    phone.frames(600)

    phone.barges_in()
    commands = phone.echoes()

    [said] = notes(commands, "said")
    assert said.private["generated"] == "One two three four five six"
    assert said.private["heard"] == "One two"


@pytest.mark.parametrize("status", ["cancelled", "failed", "incomplete"])
def test_text_without_audio_in_a_response_that_broke_off(status: str) -> None:
    """A server that ends a response in mid-word may send no end of its item."""
    phone = answering(400, "One two three four five six")
    phone.done(status=status)
    phone.frames(600)

    assert text_of(phone) == "One two"


@pytest.mark.parametrize("status", ["completed", None])
def test_a_response_without_ends_of_items_keeps_its_words(status: str) -> None:
    """A server that ends only the response has sent all of it."""
    phone = answering(400, "One two three four five six")
    phone.done(status=status)
    phone.frames(600)

    assert text_of(phone) == "One two three four five six"


# --- items of several parts ---


def two_parts(ms: int) -> Phone:
    """An item of two parts of two seconds each; another session knows it as text, and
    the caller has heard so much of it."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    for index, words in enumerate(("One two three four", " five six seven eight")):
        phone.words(words, index=index)
        phone.says(2000, index=index)
        phone.item_done(index=index)
    phone.done()
    phone.frames(100)
    phone.another_model()
    phone.frames(ms - 100)
    return phone


@pytest.mark.parametrize(
    ("ms", "heard"),
    [(1000, "One two"), (2500, "One two three four five"), (3500, WORDS[:-6])],
)
def test_a_cut_item_of_several_parts_is_replaced_once(ms: int, heard: str) -> None:
    """The model remembers one message with the text that was heard of all parts, also
    of a part that was heard to its end long before."""
    phone = two_parts(ms)
    phone.barges_in()

    create, delete = to_model(phone.echoes())

    assert create["item"]["content"][0]["text"] == heard == text_of(phone)
    assert (create["previous_item_id"], delete["item_id"]) == ("i1", "i1")


def test_a_replayed_item_of_which_no_word_was_heard_is_deleted() -> None:
    """A message without text is none."""
    phone = two_parts(200)
    phone.barges_in()

    assert [event["type"] for event in to_model(phone.echoes())] == [
        "conversation.item.delete"
    ]


def test_the_servers_copy_of_a_replayed_item_is_not_what_was_heard() -> None:
    """The server shows the item that was replayed after it was cut: the text that the
    caller did not hear does not come back into the record."""
    phone = Phone().talking()
    phone.answers(2000, words=WORDS)
    replayed = phone.another_model()
    phone.barges_in()
    phone.echoes()
    assert text_of(phone) == ""

    phone.shows([it for it in replayed if "conversation.item.create" in str(it)])

    assert text_of(phone) == ""
    assert given(phone.another_model()) == []
    assert asks(phone.log) == 0
