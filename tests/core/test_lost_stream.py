"""The caller's stream is lost while the call lives: the session is kept for another
stream."""

import pytest

from bridge.core.commands import Started
from bridge.core.endings import (
    GOODBYE_MOST_SECONDS,
    GOODBYE_SECONDS,
    HAND_OVER_SECONDS,
)
from bridge.core.history import HistoryItem
from bridge.core.rules import BACK, BROKEN_OFF, CUT_OFF, GOODBYES
from bridge.core.stream_presence import ABSENT_SECONDS
from tests.core.phone import (
    SECOND,
    STREAM,
    Phone,
    answering,
    appended,
    asks,
    cancels,
    ends,
    events,
    given,
    heard,
    notes,
    one,
    only,
    reasons,
    said_to_model,
    to_caller,
    to_model,
    told,
)

HANG_UP = ("agent", "hung_up")


# --- lost, and not back ---


def test_a_call_ends_if_the_caller_does_not_come_back() -> None:
    """The session is kept for some seconds, not for ever."""
    phone = Phone().talking()
    assert ends(phone.loses_line()) == []
    assert phone.talk.stream_is_lost
    assert ends(phone.wait(ABSENT_SECONDS - 0.1)) == []

    assert ends(phone.wait(0.2)) == [("caller", "connection_lost")]
    assert not phone.talk.stream_is_lost


def test_a_stream_lost_before_start_ends_the_call() -> None:
    """There is no call to be kept."""
    phone = Phone()

    assert ends(phone.loses_line()) == [("caller", "connection_lost")]


def test_a_stream_is_lost_once() -> None:
    """Reader and writer may both notice the loss: the time counts from the first
    notice."""
    phone = Phone().talking()
    phone.loses_line()
    phone.wait(5.0)
    assert phone.loses_line() == []

    assert ends(phone.wait(ABSENT_SECONDS - 4.9)) != []


def test_no_audio_and_no_response_for_a_lost_stream() -> None:
    """No audio goes to a lost stream, and no response is begun for it."""
    phone = Phone().talking()
    phone.loses_line()
    assert asks(phone.ask()) == 0
    assert events(phone.play(100)) == []

    assert cancels(phone.created()) == ["r1"]
    assert to_caller(phone.says(200)) == []
    phone.done(status="cancelled")
    assert asks(phone.line_back()) == 1


# --- lost, and back ---


def test_back_in_the_middle_of_a_response() -> None:
    """The model is told how much was heard, and goes on from there."""
    phone = answering(2000, "One two three four")
    phone.frames(1000)

    lost = phone.loses_line()
    assert cancels(lost) == ["r1"]
    [(verb, item, ms)] = told(lost)
    assert (verb, item) == ("truncate", "i1")
    assert ms == pytest.approx(1000, abs=40)
    [said] = notes(lost, "said")
    assert said.private["heard"] == "One two"
    phone.done(status="cancelled")
    phone.wait(2.0)
    back = phone.line_back()

    assert one(back, Started).again
    assert said_to_model(back) == [("system", CUT_OFF)]
    assert asks(back) == 1
    [note] = notes(back, "stream_back")
    assert note.data["seconds"] == pytest.approx(2.0)


def test_back_before_the_model_has_stopped() -> None:
    """One request at a time: the response is requested when the cut one has ended."""
    phone = answering(2000, "One two three four")
    phone.frames(500)
    phone.loses_line()
    back = phone.line_back()
    assert (said_to_model(back), asks(back)) == ([("system", CUT_OFF)], 0)
    assert to_caller(phone.says(200)) == [], "of the answer that was cut"

    assert asks(phone.done(status="cancelled")) == 1


def test_back_while_nobody_was_speaking() -> None:
    """The caller is told that the line is back: they may have said something."""
    phone = Phone().talking()
    phone.answers(200, words="Yes.")
    phone.frames(500)
    phone.loses_line()

    back = phone.line_back()

    assert said_to_model(back) == [("system", BACK)]
    assert asks(back) == 1


def test_back_on_a_stream_with_a_clock_of_its_own() -> None:
    """Frames of the new stream are heard from the first; its marks are its own."""
    phone = Phone().talking()
    phone.frames(3000)
    phone.loses_line()
    phone.line_back()

    heard_now = phone.frames(200)
    assert len(appended(heard_now)) == 8 * 200, "no hole is filled, none goes back"
    assert not notes(heard_now, "gap_filled") and not reasons(heard_now)
    phone.answers(400, words="Here I am.")
    assert {it["streamSid"] for it in to_caller(phone.log[-9:])} == {SECOND}
    [said] = notes(phone.frames(600), "said")
    assert said.data["heard_ms"] == 400


def test_late_messages_of_the_old_stream_are_ignored() -> None:
    """Two streams of a call are never heard at the same time."""
    phone = Phone().talking()
    phone.loses_line()
    phone.line_back()

    assert reasons(phone.frame(sid=STREAM)) == ["message of another stream"]
    assert ends(phone.caller(event="stop", streamSid=STREAM)) == []


def test_a_second_start_on_a_live_stream_is_refused() -> None:
    """Only a lost stream is followed by another."""
    phone = Phone().talking()

    assert reasons(phone.start(SECOND)) == ["second start"]


def test_back_on_a_stream_that_is_not_mulaw() -> None:
    """It is refused, as a first stream would be."""
    phone = Phone().talking()
    phone.loses_line()

    assert ends(phone.start(SECOND, encoding="audio/l16")) == [
        ("caller", "unsupported_media_format")
    ]


def test_lost_again_and_back_again() -> None:
    """Each time the caller is with the same agent."""
    phone = Phone().talking()
    for sid in ("MZ1", "MZ2", "MZ3"):
        phone.loses_line()
        phone.wait(5.0)
        back = phone.line_back(sid)
        assert ends(back) == [] and said_to_model(back) == [("system", BACK)]
        phone.answers(200)
        phone.frames(400)


def test_a_response_owed_at_the_loss_comes_when_the_caller_is_back() -> None:
    """The caller asked, the stream broke before the response began: it comes."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.writes("How late is it?")
    phone.ask()
    phone.created()
    phone.loses_line()
    phone.done(status="cancelled")

    back = phone.line_back()

    assert asks(back) == 1


def test_a_tool_that_ends_while_the_stream_is_lost() -> None:
    """Its result is kept, and spoken of when the caller can hear it."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()
    phone.loses_line()
    ended = phone.tool_ends("c1", "Friday")
    assert (len(given(ended)), asks(ended)) == (1, 0)

    assert asks(phone.line_back()) == 1


def test_a_cut_is_settled_when_its_stream_is_lost() -> None:
    """Its fence will not come back: it is settled with what is known, at once."""
    phone = answering(2000, "One two three four")
    phone.frames(1000)
    phone.barges_in()

    [(verb, _, ms)] = told(phone.loses_line())

    assert verb == "truncate" and ms == pytest.approx(1000, abs=40)
    assert said_to_model(phone.line_back()) == [("system", BACK)]


# --- waits and limits meanwhile ---


def test_a_goodbye_that_was_not_heard_does_not_end_the_call() -> None:
    """The agent learns that the caller did not hear it, and that they are back."""
    phone = Phone().talking()
    phone.answers(3000, words="Good bye.")
    phone.when_heard(1, then=HANG_UP)
    phone.when_heard(2, stoppable=False)

    lost = phone.loses_line()

    assert (heard(lost), ends(lost)) == ([(1, False), (2, False)], [])
    assert heard(phone.when_heard(3)) == [(3, False)], "nobody hears anything"
    assert said_to_model(phone.line_back()) == [("system", CUT_OFF)]
    assert ends(phone.frames(4000)) == []


def test_a_lost_stream_does_not_count_as_silence() -> None:
    """A caller who cannot hear is not asked whether they are there."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.loses_line()
    phone.wait(6.0)

    assert not notes(phone.log, "caller_silent")
    phone.line_back()
    assert notes(phone.log, "caller_silent") == []


def test_no_response_is_late_while_the_stream_is_lost() -> None:
    """The session is not replaced because the caller is away."""
    phone = Phone().talking()
    phone.ask()
    phone.loses_line()

    assert not notes(phone.wait(ABSENT_SECONDS - 0.1), "answer_late")


def test_a_goodbye_is_heard_when_the_caller_is_back() -> None:
    """A call that must end does so with a goodbye that is heard, though the stream
    broke before the goodbye began."""
    phone = Phone().talking()
    phone.goodbye("longest")
    phone.loses_line()
    phone.created()
    phone.done(status="cancelled")
    phone.wait(2.0)

    back = phone.line_back()

    assert (said_to_model(back), asks(back)) == ([], 1)
    phone.answers(400, response="r2", words="Goodbye.")
    assert ends(phone.frames(600)) == [("bridge", "longest")]
    assert said_to_model(phone.log) == [("system", GOODBYES["longest"])]


def test_a_goodbye_that_broke_off_is_said_to_its_end() -> None:
    """The call does not end in the middle of the goodbye because the stream broke."""
    phone = Phone().talking()
    phone.goodbye("longest")
    phone.answers(4000, words="We have to end it here. Goodbye.")
    phone.frames(1000)
    assert ends(phone.loses_line()) == []
    assert ends(phone.wait(3.0)) == []

    back = phone.line_back()

    assert said_to_model(back) == [("system", CUT_OFF)]
    assert asks(back) == 1
    phone.answers(400, item="i2", response="r2", words="Goodbye.")
    assert ends(phone.frames(600)) == [("bridge", "longest")]


def thinks(phone: Phone, seconds: float, response: str = "r1") -> None:
    """Time passes, in which the response makes progress without audio."""
    for _ in range(round(seconds * 10)):
        item = {"id": "x", "type": "reasoning"}
        phone.model("response.output_item.added", response_id=response, item=item)
        phone.frames(100)


def test_the_time_limit_of_a_goodbye_starts_again_with_the_caller() -> None:
    """The time without a stream does not count: the caller hears the goodbye."""
    phone = Phone().talking()
    phone.goodbye("longest")
    phone.created()
    thinks(phone, GOODBYE_SECONDS - 1.0)
    phone.loses_line()
    phone.done(status="cancelled")
    for _ in range(5):
        assert ends(phone.wait(1.0)) == []
    assert asks(phone.line_back()) == 1
    phone.created("r2")

    thinks(phone, GOODBYE_SECONDS - 0.1, "r2")
    assert ends(phone.log) == []
    phone.frames(200)
    assert ends(phone.log) == [("bridge", "longest")]


def test_the_time_of_a_goodbye_is_limited_on_a_line_that_breaks_again_and_again() -> (
    None
):
    """A call that must end for its cost does end."""
    phone = Phone().talking()
    phone.goodbye("cost")
    began = phone.now
    while not ends(phone.log) and phone.now < began + 200.0:
        phone.loses_line()
        phone.wait(3.0)
        if not ends(phone.log):
            phone.line_back()
            phone.says(20)

    assert ends(phone.log) == [("bridge", "cost")]
    assert phone.now - began <= GOODBYE_MOST_SECONDS + 3.0


def test_a_goodbye_is_heard_when_stream_and_model_are_back() -> None:
    """The goodbye waits for both sides."""
    phone = Phone().talking()
    phone.goodbye("longest")
    phone.loses_model()
    phone.loses_line()
    phone.line_back()

    assert asks(phone.model_back()) == 1
    phone.answers(400, response="r2", words="Goodbye.")
    assert ends(phone.frames(600)) == [("bridge", "longest")]


def test_a_line_that_breaks_while_the_call_is_to_be_moved() -> None:
    """A caller who is back hears that the line is back, and is answered: only then the
    call moves."""
    phone = Phone().talking()
    phone.created()
    phone.hand_over()
    phone.loses_line()
    phone.done(status="cancelled")

    back = phone.line_back()

    assert (said_to_model(back), asks(back)) == ([("system", BACK)], 1)
    phone.answers(400, response="r2", words="I am here.")
    assert ends(phone.frames(600)) == [("bridge", "handed_over")]


def test_the_first_answer_is_heard_though_the_line_broke_before_it() -> None:
    """The session became ready while the caller was away: the greeting is owed, and is
    requested once on the stream on which it can be heard."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.loses_line()
    assert asks(phone.ready()) == 0

    assert asks(phone.line_back()) == 1
    assert "media" in events(phone.answers(400))


def test_back_before_the_model_was_ever_there() -> None:
    """The greeting is still to come: there is nothing to continue."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.loses_line()
    phone.line_back()

    commands = phone.ready()

    assert said_to_model(commands) == [("system", "Say hello.")]
    assert asks(commands) == 1


# --- both are lost ---


def test_line_and_model_are_lost() -> None:
    """The side that is back first waits for the other; one message, one response."""
    phone = answering(2000, "One two three four")
    phone.frames(1000)
    phone.loses_model()
    phone.loses_line()
    model = phone.model_back()
    assert only("i1", model) == ["One two"]
    assert (asks(model), BROKEN_OFF in str(to_model(model))) == (0, False)

    back = phone.line_back()

    assert said_to_model(back) == [("system", CUT_OFF)]
    assert asks(back) == 1


def test_the_line_is_back_before_the_model() -> None:
    """The message about it waits for the model, and comes once."""
    phone = answering(2000, "One two three four")
    phone.frames(1000)
    phone.loses_line()
    phone.loses_model()
    assert to_model(phone.line_back()) == []
    phone.frames(200)

    commands = phone.model_back()

    assert only("i1", commands) == ["One two"]
    assert said_to_model(commands)[-1] == ("system", CUT_OFF)
    assert asks(commands) == 1
    assert len(appended(commands)) > 8 * 200


def test_no_tone_goes_to_a_stream_that_is_gone() -> None:
    """A caller who comes back hears the agent, not old beeps."""
    phone = Phone().talking()
    phone.loses_model()
    phone.loses_line()

    assert to_caller(phone.wait(5.0)) == []


# --- what is kept for the next instance ---


def test_unheard_text_is_known_at_any_moment() -> None:
    """If an instance dies, it is known how much was heard until then, to a frame."""
    phone = answering(2000, "One two three four")
    before = phone.talk.version
    phone.frames(1000)

    [playing] = phone.talk.playing(phone.now)
    assert (playing.id, playing.received, playing.complete) == ("i1", 16_000, False)
    assert playing.heard == pytest.approx(8000, abs=320)
    assert playing.words == ((0, "One two three four"),)
    phone.barges_in()
    [cut] = phone.talk.playing(phone.now)
    assert cut.id == "i1" and phone.talk.version == before
    phone.echoes()

    assert phone.talk.playing(phone.now) == []
    assert phone.talk.version != before


def test_a_call_moved_in_a_quiet_moment_goes_on_in_silence() -> None:
    """The agent is told without responding; the caller notices nothing."""
    phone = Phone(
        greeting="Say hello.",
        history=(HistoryItem("u1", "user", "Hi."),),
        aside="It was moved.",
    )
    phone.start()

    commands = phone.ready()

    assert given(commands)[0] == ("u1", "user", "Hi.")
    assert said_to_model(commands)[-1] == ("system", "It was moved.")
    assert asks(commands) == 0


# --- handed over to another instance ---


def test_a_quiet_call_is_handed_over_at_once() -> None:
    """Nobody speaks: there is nothing to wait for."""
    phone = Phone().talking()
    phone.answers(200, words="Yes.")
    phone.frames(500)

    commands = phone.hand_over()

    assert ends(commands) == [("bridge", "handed_over")]
    assert phone.talk.ended_quietly
    assert "clear" not in events(commands)


def test_a_call_is_handed_over_after_the_response_in_progress() -> None:
    """The caller hears the sentence to its end."""
    phone = Phone().talking()
    phone.answers(1000, words="A sentence.")
    assert ends(phone.hand_over()) == []
    assert ends(phone.frames(800)) == []

    assert ends(phone.frames(400)) == [("bridge", "handed_over")]
    assert phone.talk.ended_quietly


def test_a_call_is_handed_over_when_all_speech_is_transcribed() -> None:
    """Speech without a transcript would be lost to the next instance."""
    phone = Phone().talking()
    phone.speaks(400, "u1")
    phone.writes("First.", "u1")
    phone.answers(200)
    phone.frames(400)
    phone.speaks(400, "u2")
    phone.answers(200, item="i2", response="r2")
    phone.frames(400)
    assert ends(phone.hand_over()) == []

    assert ends(phone.writes("Second.", "u2")) == [("bridge", "handed_over")]


def test_a_call_that_is_never_quiet_is_handed_over_at_the_time_limit() -> None:
    """What is cut then is known, and the next instance goes on from there."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("On and on and on")
    phone.says(20_000)
    phone.hand_over()
    assert ends(phone.frames(int(1000 * HAND_OVER_SECONDS) - 100)) == []

    commands = phone.frames(200)

    assert ends(commands) == [("bridge", "handed_over")]
    assert "clear" in events(commands)
    assert not phone.talk.ended_quietly
    [said] = notes(commands, "said")
    assert said.data["cut"] and said.private["heard"] == "On and"


def test_a_call_that_has_not_begun_is_handed_over_at_once() -> None:
    """As is a call whose caller is away: there is nothing to wait for."""
    early, lost = Phone(), Phone().talking()
    lost.loses_line()

    assert ends(early.hand_over()) == [("bridge", "handed_over")]
    assert ends(lost.hand_over()) == [("bridge", "handed_over")]


def test_a_call_that_says_goodbye_is_not_handed_over() -> None:
    """It is over in a moment."""
    phone = Phone().talking()
    phone.goodbye("longest")

    assert phone.hand_over() == []


# --- a stream that sends nothing ---


def test_a_caller_on_hold_whose_stream_returns_marks_is_not_given_up() -> None:
    """A caller who is muted or on hold sends no frames, and the call goes on as long as
    Twilio returns the marks that ask for it."""
    phone = Phone(silent_seconds=900.0).talking()

    probed = [phone.wait(15.0) for _ in range(3)][-1]
    [mark] = to_caller(probed)
    assert mark["event"] == "mark"
    assert [note.name for note in notes(probed, "stream_probed")] == ["stream_probed"]
    assert not to_caller(phone.wait(14.0))  # asked once, and given time
    phone.echo(mark["mark"]["name"])
    again = phone.wait(44.9)
    assert not to_caller(again) and not ends(again)
    assert to_caller(phone.wait(0.2))


def test_a_stream_that_does_not_return_the_mark_is_given_up() -> None:
    """A connection on which nothing comes back is lost, and the call does not stay."""
    phone = Phone(silent_seconds=900.0).talking()

    phone.wait(45.0)

    assert not ends(phone.wait(14.9))
    assert ends(phone.wait(0.2)) == [("caller", "connection_lost")]


def test_frames_that_come_again_end_the_probe() -> None:
    """A caller who is back from hold has a whole minute again."""
    phone = Phone(silent_seconds=900.0).talking()
    phone.wait(45.0)
    phone.frames(100)

    assert not ends(phone.wait(44.0))


def test_with_silence_off_missing_frames_never_end_a_call() -> None:
    """An operator who lets callers be silent has callers on hold for an hour."""
    phone = Phone(silent_seconds=None).talking()

    sent = [command for _ in range(60) for command in phone.wait(60.0)]

    assert not ends(sent)
    assert phone.loses_line() and ends(phone.wait(11.0))  # a broken connection does


def test_the_mark_of_a_probe_leaves_what_was_heard_as_it_is() -> None:
    """An answer after the probe is counted from its own start."""
    phone = Phone(silent_seconds=900.0).talking()
    phone.wait(45.0)
    phone.frames(100)  # Twilio returns the mark
    phone.answers(1000, words="hello")
    phone.frames(1300)

    [said] = notes(phone.log, "said")
    assert said.data["heard_ms"] == 1000
