"""A call whose audio the model's server has (SIP): what differs from media streams."""

import pytest

from bridge.core.commands import (
    Command,
    End,
    Interrupted,
    MuteSession,
    Note,
    Switch,
    ToCaller,
    WaitDone,
    limit_hit,
    protocol_error,
)
from bridge.core.conversation import LATE_SECONDS, State
from bridge.core.inputs import (
    EndCall,
    FromPhone,
    ModelLost,
    NotDialled,
    Play,
    StreamLost,
)
from bridge.core.interruptions import MAX_GUARDRAIL_STOPS
from bridge.core.model_events import NO_USAGE
from bridge.core.outbox import MAX_PENDING
from bridge.core.redial import READY_SECONDS
from bridge.core.responses import MAX_OPEN
from bridge.core.rules import Prices
from bridge.core.sessions import CONFIGURE_SECONDS
from bridge.core.sip_speech import MAX_WORDS_CHARS
from bridge.core.twilio_messages import Stop
from bridge.core.waits import ANSWER_SECONDS, MAX_WAITS
from tests.core.phone import (
    Phone,
    SipPhone,
    asks,
    cancels,
    dials,
    ends,
    given,
    heard,
    notes,
    one,
    pressed,
    said_to_model,
    types_to_model,
)

WORDS = "one two three four five six"  # almost two seconds


def said(commands: list[Command]) -> list[tuple[object, str, object]]:
    """What the record says: (item, heard text, cut)."""
    return [
        (note.data["item"], note.private["heard"], note.data["cut"])
        for note in notes(commands, "said")
    ]


# --- from the beginning to the end ---


def test_a_call_begins_without_a_stream() -> None:
    """The greeting is requested when the session is configured; no audio is sent."""
    phone = SipPhone(greeting="Say hello.")
    assert phone.begins() == []
    assert phone.talk.state is State.HOLDING
    assert one(phone.dialled(), Switch).connection == 1

    commands = phone.ready()

    assert said_to_model(commands) == [("system", "Say hello.")]
    assert asks(commands) == 1
    assert not [it for it in phone.log if isinstance(it, ToCaller)]


def test_any_audio_format_will_do() -> None:
    """OpenAI and the caller's line negotiate it."""
    phone = SipPhone()
    phone.begins()
    opus = {"audio": {"output": {"format": {"type": "audio/opus"}}}}

    assert ends(phone.ready(opus)) == []


def test_a_call_ends_with_its_session() -> None:
    """OpenAI ends a call whose control socket was lost: no other one is dialled."""
    phone = SipPhone().talking()

    commands = phone.gives(ModelLost(1, "closed"))

    assert ends(commands) == [("model", "closed")]
    assert dials(commands) == []


def test_a_session_that_cannot_be_attached_to_ends_the_call() -> None:
    """The caller hears no endless ringing."""
    phone = SipPhone()
    phone.begins()
    assert ends(phone.gives(NotDialled(1, "HTTP 404", True))) == [("model", "refused")]

    phone = SipPhone()
    phone.begins()
    assert ends(phone.wait(READY_SECONDS)) == [("model", "not_ready")]


def test_a_session_that_never_begins_was_not_lost() -> None:
    """The operator sees that the call had no session: `model_lost` would be a broken
    network."""
    phone = SipPhone()
    phone.begins()
    phone.dialled()

    assert ends(phone.wait(CONFIGURE_SECONDS)) == [("model", "not_ready")]


def test_a_response_that_only_begins_ends_the_call() -> None:
    """The caller would hear its first word every ten seconds, for ever."""
    phone = SipPhone().talking()
    commands: list[Command] = []
    for response in ("r1", "r2"):
        assert ends(commands) == []
        phone.created(response)
        phone.words("one", f"item {response}", response)
        phone.playout("started", response)
        commands = phone.wait(LATE_SECONDS)
        phone.done(response, "cancelled")

    assert ends(commands) == [("model", "failed")]


def test_a_session_that_answers_no_probe_ends_the_call() -> None:
    """A server that hangs while its socket answers pings is noticed."""
    phone = SipPhone().talking()
    phone.wait(6.0)
    phone.gives_signs = False

    assert ends(phone.wait(6.0) + phone.wait(5.0)) == [("model", "lost")]


def test_a_quiet_caller_is_no_lost_stream() -> None:
    """No frames come on such a call, however long it lasts."""
    phone = SipPhone().talking()
    commands = []
    for _ in range(100):
        commands += phone.wait(4.0)

    assert ends(commands) == []
    assert phone.gives(StreamLost()) == []
    assert phone.gives(FromPhone(Stop())) == []


def test_the_bridge_plays_nothing() -> None:
    """It has no audio path to the caller."""
    phone = SipPhone().talking()

    assert phone.gives(Play("AAAA")) == []


def test_audio_that_a_server_sends_all_the_same_goes_nowhere() -> None:
    """There is no stream that could take it."""
    phone = SipPhone().talking()
    phone.created()

    assert phone.says(200) == phone.item_done() == []
    assert phone.talk.playing(phone.now) == []


def test_a_media_stream_has_no_playout_of_the_server() -> None:
    """Such events say nothing about audio that the bridge sends itself."""
    phone = Phone().talking()
    phone.answers(200)

    commands = phone.model("output_audio_buffer.stopped", response_id="r1")

    assert said(commands) == []


def test_no_silence_is_sent_for_a_caller_whose_audio_is_elsewhere() -> None:
    """Frames of a caller who speaks never come."""
    phone = SipPhone().talking()
    phone.barges_in()

    assert notes(phone.wait(2.0), "stall_filled") == []


# --- what was heard ---


def test_what_was_played_was_heard() -> None:
    """The server reports that the audio has stopped."""
    phone = SipPhone().talking()
    assert said(phone.speaks_to_caller(WORDS)) == []
    phone.when_heard()

    commands = phone.playout("stopped")

    assert said(commands) == [("i1", WORDS, False)]
    assert heard(commands) == [(1, True)]
    [item] = phone.talk.history.items
    assert (item.text, item.cut) == (WORDS, False)


def test_what_was_cleared_was_heard_in_part() -> None:
    """The text is cut between two words, by the time that the audio played."""
    phone = SipPhone().talking()
    phone.speaks_to_caller(WORDS)
    phone.words("and more", "i2")
    phone.wait(1.0)

    commands = phone.barges_in() + phone.playout("cleared")

    assert said(commands) == [("i1", "one two three", True), ("i2", "", True)]
    assert one(commands, Interrupted).item_id == "i1"
    assert types_to_model(commands) == [], "the server stops the agent by itself"
    assert notes(commands, "interrupted")


def test_a_cut_response_runs_until_the_server_has_ended_it() -> None:
    """An earlier request for a response would be an error; late deltas are ignored."""
    phone = SipPhone().talking()
    phone.created()
    phone.words(WORDS)
    phone.playout("cleared")
    phone.words("late")

    assert asks(phone.ask()) == 0
    commands = phone.done(status="cancelled")
    assert said(commands) == []
    assert asks(commands) == 1


def test_a_response_that_was_never_played_was_not_heard() -> None:
    """It was cancelled before its first audio."""
    phone = SipPhone().talking()
    phone.created()
    phone.words(WORDS)

    assert said(phone.done(status="cancelled")) == [("i1", "", True)]


def test_events_about_unknown_responses_are_ignored() -> None:
    phone = SipPhone().talking()
    commands = phone.words("x") + phone.playout("started") + phone.playout("stopped")
    commands += phone.playout("cleared") + phone.done()

    assert said(commands) == []


def test_responses_without_an_end_are_forgotten() -> None:
    """A server that never ends them does not fill the memory."""
    phone = SipPhone().talking()
    for n in range(MAX_OPEN + 5):
        phone.created(f"r{n}")

    assert not phone.interrupt("guardrail", "r0")
    assert phone.interrupt("guardrail", f"r{MAX_OPEN}")


def test_what_plays_when_the_call_ends_was_heard_in_part() -> None:
    """The record has only what reached the caller."""
    phone = SipPhone().talking()
    phone.speaks_to_caller(WORDS)
    phone.created("r2")
    phone.words("never played", "i2", "r2")
    phone.now += 1.0

    commands = phone.gives(EndCall("caller", "hung_up"))

    assert said(commands) == [("i1", "one two three", True), ("i2", "", True)]
    assert commands[-1] == End("caller", "hung_up")


def test_the_first_audio_is_timed() -> None:
    """The metric of the response time counts these calls, too."""
    phone = SipPhone().talking()
    phone.barges_in()
    phone.falls_silent()
    phone.created()
    phone.now += 0.5

    [note] = notes(phone.playout("started"), "first_audio")

    assert note.data["seconds"] == pytest.approx(0.5)


# --- interruptions ---


def test_user_code_stops_the_agent() -> None:
    """The response is cancelled, and the server stops playing it."""
    phone = SipPhone().talking()
    phone.created()
    phone.words(WORDS)
    phone.playout("started")

    commands = phone.interrupt()

    assert types_to_model(commands) == ["response.cancel", "output_audio_buffer.clear"]
    assert notes(commands, "interrupted")[0].data["responses"] == 1
    assert notes(phone.done(status="failed"), "answer_failed") == []


def test_an_agent_that_is_silent_is_not_stopped() -> None:
    phone = SipPhone().talking()

    assert phone.interrupt() == []


def test_guardrails_end_a_call_that_they_stop_again_and_again() -> None:
    """The caller would hear nothing for ever."""
    phone = SipPhone().talking()
    for n in range(MAX_GUARDRAIL_STOPS):
        phone.created(f"r{n}")
        assert cancels(phone.interrupt("guardrail", f"r{n}")) == [f"r{n}"]
        phone.done(f"r{n}", "cancelled")
    phone.created("last")

    assert ends(phone.interrupt("guardrail", "last")) == [("bridge", "guardrail")]


def test_a_guardrail_of_a_response_that_is_over_stops_nothing() -> None:
    phone = SipPhone().talking()
    phone.created()

    assert phone.interrupt("guardrail", "other") == []


def test_keys_of_the_caller() -> None:
    """They come as events of the model; they interrupt, and the agent is told."""
    phone = SipPhone(key_actions=("9",)).talking()
    phone.speaks_to_caller(WORDS)

    def key(digit: str) -> list[Command]:
        kind = "input_audio_buffer.dtmf_event_received"
        return phone.model(kind, event=digit, received_at=1)

    assert pressed(key("9")) == ["9"]
    commands = key("1") + key("#")
    assert types_to_model(commands)[0] == "output_audio_buffer.clear"
    assert "keys on the phone: 1)" in said_to_model(commands)[0][1]


def test_a_key_while_a_tool_is_called_behind_words_that_were_heard() -> None:
    """The response goes on after its audio has ended: the key stops it, and the caller
    is answered. It ended the call."""
    phone = SipPhone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("I look that up.", "i1")
    phone.playout("started")
    phone.playout("stopped")

    kind = "input_audio_buffer.dtmf_event_received"
    keys = phone.model(kind, event="1", received_at=1)

    assert cancels(keys) == ["r1"]
    assert "output_audio_buffer.clear" not in types_to_model(keys)


def test_a_caller_is_muted_by_the_server() -> None:
    """The bridge has no audio that it could replace by silence. A call that is muted
    before there is a session begins muted."""
    phone = SipPhone()
    phone.begins()
    assert phone.mute(True) == []
    assert one(phone.ready(), MuteSession).on is True

    assert phone.mute(False) == [MuteSession(False)]


def test_a_long_answer_is_not_late() -> None:
    """Its text arrives all the time; no audio passes that could tell."""
    phone = SipPhone().talking()
    phone.created()
    phone.playout("started")
    commands = []
    for _ in range(60):
        commands += phone.words("word ") + phone.wait(0.5)

    assert notes(commands, "answer_late") == []
    assert types_to_model(commands).count("response.cancel") == 0


def test_a_response_that_does_not_play_yet_is_stopped() -> None:
    """Else the server would play it after the interruption."""
    phone = SipPhone().talking()
    phone.created()
    phone.words(WORDS)

    commands = phone.interrupt()

    assert types_to_model(commands) == ["response.cancel", "output_audio_buffer.clear"]


def test_an_end_that_is_never_reported() -> None:
    """Words that were played long ago were heard, and a silent caller is asked."""
    phone = SipPhone(silent_seconds=5.0).talking()
    phone.speaks_to_caller(WORDS)
    commands = []
    for _ in range(40):
        commands += phone.wait(0.5)

    assert said(commands) == [("i1", WORDS, False)]
    assert notes(commands, "caller_silent")


def test_the_text_of_a_response_is_bounded() -> None:
    """A server that sends text without end does not fill the memory."""
    phone = SipPhone().talking()
    phone.created()
    for n in range(200):
        phone.words("x" * 1000, f"i{n}")
        phone.words("x" * 1000, "i0")

    commands = phone.done(status="cancelled")

    texts = [note.private["generated"] for note in notes(commands, "said")]
    assert len(texts) <= MAX_OPEN
    assert sum(map(len, texts)) <= MAX_WORDS_CHARS


# --- responses, waits and limits, as on media streams ---


def test_a_response_without_progress_is_requested_once_more() -> None:
    """From the same session: another one cannot take its place."""
    phone = SipPhone().talking()
    phone.ask()
    commands = phone.wait(LATE_SECONDS)
    assert notes(commands, "answer_late")
    assert (asks(commands), dials(commands)) == (1, [])

    assert ends(phone.wait(LATE_SECONDS)) == [("model", "failed")]


def test_a_response_that_is_owed_takes_the_place_of_a_late_one() -> None:
    """One response is requested, not two."""
    phone = SipPhone().talking()
    phone.created()
    phone.ask()

    assert asks(phone.wait(LATE_SECONDS)) == 1
    phone.created("r2")
    phone.words("Hello.", "i2", "r2")
    assert asks(phone.done("r2")) == 0


def test_a_late_response_that_began_is_cancelled() -> None:
    phone = SipPhone().talking()
    phone.created()

    commands = phone.wait(LATE_SECONDS)

    assert types_to_model(commands)[-2:] == ["response.cancel", "response.create"]


def test_a_failed_response_is_requested_again() -> None:
    """A rate limit that passes costs the caller a moment, not the call."""
    phone = SipPhone().talking()
    phone.created()
    error = {"code": "rate_limit_exceeded", "message": "Please try again in 4s."}
    details = {"type": "failed", "error": error}
    head = {"id": "r1", "status": "failed", "status_details": details}

    assert asks(phone.model("response.done", response=head)) == 0
    assert asks(phone.wait(3.9)) == 0
    assert asks(phone.wait(1.2)) == 1


def test_a_wait_ends_though_the_server_never_says_so() -> None:
    """A goodbye whose end is not reported does not keep the call for ever."""
    phone = SipPhone().talking()
    phone.speaks_to_caller(WORDS)
    assert phone.when_heard(1, ("agent", "hung_up")) == []
    while not ends(phone.log):
        due = phone.talk.deadline
        assert due is not None and phone.now < due < 100 + ANSWER_SECONDS
        phone.now = due
        phone.tick()

    assert ends(phone.log) == [("agent", "hung_up")]
    assert 103.0 < phone.now < 112.0


def test_no_call_ends_between_a_turn_and_its_answer() -> None:
    """The caller has asked something, and the server is about to answer."""
    phone = SipPhone().talking()
    phone.barges_in()
    phone.falls_silent()

    assert phone.when_heard(1, ("agent", "hung_up")) == []
    phone.created()
    assert ends(phone.done()) == [("agent", "hung_up")]


def test_a_caller_who_speaks_stops_a_wait() -> None:
    """And is answered once: text that is told meanwhile is part of that answer."""
    phone = SipPhone().talking()
    phone.speaks_to_caller(WORDS)
    phone.when_heard()

    assert heard(phone.barges_in()) == [(1, False)]
    assert asks(phone.tell("x", "system")) == 0
    assert heard(phone.when_heard(2)) == [(2, False)]


def test_the_longest_call_ends_with_a_goodbye() -> None:
    """The call ends when the goodbye was heard, or after a time if it is not spoken."""
    phone = SipPhone(longest_seconds=5.0).talking()

    goodbye = phone.wait(5.0)

    assert types_to_model(goodbye)[-2:] == [
        "conversation.item.create",
        "response.create",
    ]
    assert limit_hit("longest") in goodbye
    phone.speaks_to_caller("Bye.")
    assert ends(phone.playout("stopped")) == [("bridge", "longest")]


def test_texts_before_the_session_are_kept_in_order_and_bounded() -> None:
    phone = SipPhone(greeting="Hello.")
    phone.begins()
    for n in range(MAX_PENDING):
        assert phone.tell(str(n), respond=False) == []
    assert phone.tell("x", respond=False) == [Note("text_dropped")]

    told = [text for _, text in said_to_model(phone.ready())]

    assert told == ["Hello.", *map(str, range(MAX_PENDING))]


def test_more_waits_than_any_agent_has_are_answered_at_once() -> None:
    phone = SipPhone().talking()
    phone.created()
    for number in range(MAX_WAITS):
        assert phone.when_heard(number) == []

    assert phone.when_heard(999) == [WaitDone(999, False)]


def test_an_operator_learns_that_a_cost_limit_has_no_effect() -> None:
    for prices, told in ((Prices(output_audio=1.0), True), (None, False)):
        phone = SipPhone(prices=prices).talking()
        phone.created()

        assert (protocol_error("model", NO_USAGE) in phone.done()) is told


def test_items_are_edited_as_on_media_streams() -> None:
    """What the model knows can be corrected."""
    phone = SipPhone().talking()
    phone.item_added("u1", "user", {"type": "input_text", "text": "4111"})

    commands = phone.edit([], {"u1": "(a number)"})

    assert [text for _, _, text in given(commands)] == ["(a number)"]
    assert types_to_model(commands)[-1] == "conversation.item.delete"
