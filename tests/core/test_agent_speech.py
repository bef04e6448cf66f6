"""Rare paths of a response on its way to the caller, which no ordinary call takes."""

import pytest

from bridge.core.spoken_items import MAX_RECORDED
from tests.core.phone import (
    Phone,
    asks,
    ends,
    events,
    notes,
    only,
    to_caller,
    to_model,
    told,
)


def test_late_audio_of_a_cut_response_that_has_ended_is_dropped() -> None:
    """Audio that arrives after the end of a cut response is not played to the
    caller."""
    phone = Phone().talking()
    phone.created()
    phone.says(600)
    phone.barges_in()
    phone.done(status="cancelled")

    commands = phone.says(200)

    assert to_caller(commands) == []
    [note] = notes(commands, "late_audio")
    assert note.data == {"item": "i1", "bytes": 1600}


def test_the_end_of_one_response_does_not_end_another() -> None:
    """With two responses queued, each gets its end mark where its own audio ends."""
    phone = Phone().talking()
    phone.created("r1")
    phone.says(100, item="i1", response="r1")
    phone.created("r2")
    phone.says(100, item="i2", response="r2")

    assert events(phone.done("r1")) == ["mark"]

    phone.says(100, item="i2", response="r2")
    phone.frames(400)
    assert [note.data["item"] for note in notes(phone.log, "said")] == ["i1"]
    assert events(phone.done("r2")) == ["mark"]
    phone.frames(40)
    assert [note.data["item"] for note in notes(phone.log, "said")] == ["i1", "i2"]


def test_an_item_played_to_its_end_just_before_the_clear_is_not_truncated() -> None:
    """The model forgets nothing of a sentence that the caller has just heard in
    full."""
    phone = Phone().talking()
    phone.created()
    phone.says(100, item="i1")
    phone.item_done("i1")
    phone.says(1000, item="i2")
    phone.frames(80)
    # A line with 60 ms of delay: i1 has been played, and its mark is on its way.
    on_the_way = []
    for _ in range(3):
        phone.now += 0.02
        on_the_way.append(phone.twilio.due(phone.now))
    commands = phone.barges_in()
    for marks in on_the_way:
        for mark in marks:
            commands += phone.echo(mark)
        commands += phone.frame()
    commands += phone.frames(40)

    assert [(verb, item) for verb, item, _ in told(commands)] == [("truncate", "i2")]
    said = {note.data["item"]: note.data for note in notes(commands, "said")}
    assert said["i1"]["heard_ms"] == said["i1"]["received_ms"] == 100
    assert said["i2"]["heard_ms"] == pytest.approx(40, abs=25)


def test_a_truncated_item_is_not_deleted_when_its_response_ends() -> None:
    """The part of a cut response that the caller heard stays in the model's memory."""
    phone = Phone().talking()
    phone.created()
    item = {"id": "i1", "type": "message"}
    phone.model("response.output_item.added", response_id="r1", item=item)
    phone.says(1000)
    phone.frames(300)
    phone.barges_in()

    assert told(phone.done(status="cancelled")) == []
    assert [verb for verb, _, _ in told(phone.frames(40))] == ["truncate"]


def test_an_item_heard_before_the_cut_is_not_deleted() -> None:
    """A first sentence that was heard in full survives a barge-in into the second."""
    phone = Phone().talking()
    phone.created()
    for name in ("i1", "i2"):
        item = {"id": name, "type": "message"}
        phone.model("response.output_item.added", response_id="r1", item=item)
    phone.says(100, item="i1")
    phone.item_done("i1")
    phone.frames(200)
    phone.barges_in()

    done = phone.done(status="cancelled")

    assert told(done) == [("delete", "i2", None)]


def test_words_behind_the_barge_in_are_credited_before_the_fence() -> None:
    """A server whose words come behind their audio: the caller heard them."""
    phone = Phone().talking()
    phone.created()
    phone.says(500)
    phone.words("one ")
    phone.says(500)
    phone.frames(900)
    phone.barges_in()

    phone.words("two three four and so on for ever")
    phone.frames(60)

    [said] = notes(phone.log, "said")
    assert said.private["generated"] == "one two three four and so on for ever"
    assert said.private["heard"] == "one two three four"


def test_words_behind_the_fence_are_credited_when_the_response_ends() -> None:
    """All words come last, after the truncate: history, next session and events get
    what was heard; of words that were not heard they get none."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.says(3000)
    phone.frames(1500)
    phone.barges_in()
    phone.frames(100)
    assert [it.private["heard"] for it in notes(phone.log, "said")] == [""]

    phone.words("Good morning, this is the bakery on the corner")
    assert notes(phone.log, "said_late") == []
    phone.done(status="cancelled")

    [late] = notes(phone.log, "said_late")
    assert late.private["generated"].endswith("on the corner")
    assert late.private["heard"] == "Good morning, this is"
    assert late.data == {"item": "i1", "content_index": 0, "cut": True}
    assert phone.talk.history.items[-1].text == "Good morning, this is"
    assert only("i1", phone.another_model()) == ["Good morning, this is"]


def test_words_behind_an_answer_that_was_played_are_credited() -> None:
    """The transcript of a short answer comes when all of it was heard; that of another
    response stays where it is."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("Good ")
    phone.says(400)
    phone.item_done("i1")
    phone.frames(600)
    phone.words("morning.")

    phone.done("r0")
    assert phone.talk.history.items[-1].text == "Good "
    phone.done()

    assert phone.talk.history.items[-1].text == "Good morning."
    assert not phone.talk.history.items[-1].cut


def test_a_response_that_breaks_off_behind_a_complete_item() -> None:
    """The item keeps its words: all its audio came."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("A short item that is spoken very quickly")
    phone.says(400)
    phone.item_done("i1")

    phone.done(status="incomplete")
    phone.frames(600)

    assert phone.talk.history.items[-1].text.endswith("very quickly")


def test_words_of_which_no_audio_came_before_the_cut_are_not_recorded() -> None:
    """A late item that the caller heard nothing of."""
    phone = Phone().talking()
    phone.created()
    phone.words("one ")
    phone.says(1000)
    phone.barges_in()

    phone.words("two", item="i2")
    phone.frames(60)
    phone.done(status="cancelled")

    assert [it.data["item"] for it in notes(phone.log, "said")] == ["i1"]
    assert notes(phone.log, "said_late") == []


def test_late_words_of_a_call_that_ends() -> None:
    """The response never ends, but its words have come: the report has them. Of older
    items late words are not kept."""
    phone = Phone().talking()
    for n in range(MAX_RECORDED + 1):
        phone.created(f"r{n}")
        phone.item_added(f"i{n}", "assistant")
        phone.says(1000, f"i{n}", f"r{n}")
        phone.frames(900)
        phone.barges_in()
        phone.falls_silent()
        phone.frames(100)
    for n in range(MAX_RECORDED + 1):
        phone.words("yes, of course", f"i{n}", f"r{n}")

    phone.hangs_up()

    late = [it.data["item"] for it in notes(phone.log, "said_late")]
    assert late == [f"i{n}" for n in range(1, MAX_RECORDED + 1)]


def test_a_guardrail_of_an_old_response_requests_the_cleared_one_again() -> None:
    """The clear also removes a response that broke no rule: it is requested again, and
    the caller hears no dead air."""
    phone = Phone().talking()
    phone.created("r1")
    phone.says(1000, item="i1", response="r1")
    phone.done("r1")
    phone.created("r2")
    phone.says(1000, item="i2", response="r2")

    commands = phone.interrupt("guardrail", "r1")

    assert events(commands) == ["clear", "mark"]
    assert [event["response_id"] for event in to_model(commands)] == ["r2"]
    assert to_model(phone.done("r2", "cancelled")) == []
    settled = to_model(phone.echoes())
    assert [event["type"] for event in settled][-1] == "response.create"
    assert asks(phone.done("r2", "cancelled")) == 0


def test_a_guardrail_of_the_only_response_requests_no_other() -> None:
    """The SDK requests another response by itself in this case."""
    phone = Phone().talking()
    phone.created("r1")
    phone.says(1000, item="i1", response="r1")
    phone.interrupt("guardrail", "r1")

    assert to_model(phone.done("r1", "cancelled")) == []


def test_items_that_the_server_does_not_end_are_ended_with_the_response() -> None:
    """A server that sends no `done` event for an item does not break the call."""
    phone = Phone().talking()
    phone.created()
    phone.says(100, item="i1")
    phone.words("only words", item="i2")
    phone.item_done("i2")
    phone.frames(300)

    said = notes(phone.done(), "said")

    assert [note.data["item"] for note in said] == ["i1"]


def test_a_wrong_timestamp_in_the_future_is_recovered_from() -> None:
    """One wrong timestamp does not spoil the heard position for the rest of the
    call."""
    phone = Phone().talking()
    right = phone.timestamp
    phone.timestamp = 9_000_000
    phone.frame()
    phone.timestamp = right
    phone.created()
    phone.says(3000)
    phone.frames(1000)
    phone.barges_in()

    [(verb, _, ms)] = told(phone.echoes())
    assert verb == "truncate"
    assert ms == pytest.approx(1000, abs=20)


# --- a response that does not come ---


def test_a_stream_that_sends_nothing_for_a_minute_is_lost() -> None:
    """A phone that vanished without `stop` does not keep a paid session."""
    phone = Phone(silent_seconds=500.0)
    phone.start()
    turns = {"create_response": False}  # no response is expected
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.barges_in()
    commands = []
    for _ in range(80):
        commands += phone.wait(0.76)

    assert ends(commands) == [("caller", "connection_lost")]
    assert len(notes(commands, "stall_filled")) < 16  # silence is not made for ever


def test_dropped_audio_does_not_count_as_first_audio() -> None:
    """The response time is measured to audio that the caller hears, not to dropped
    audio."""
    phone = Phone().talking()
    phone.created()
    phone.says(600)
    phone.barges_in()
    phone.model("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1)

    assert notes(phone.says(200), "first_audio") == []

    phone.created("r2")
    phone.frames(300)
    [note] = notes(phone.says(200, item="i2", response="r2"), "first_audio")
    assert note.data["seconds"] == pytest.approx(0.3)
