"""A SIP call's behaviour for unusual orders of events; no sockets, no clock."""

import json
from typing import Any

from bridge.core import realtime_events
from bridge.core.commands import (
    Command,
    End,
    Note,
    ToModel,
    WaitDone,
    limit_hit,
    protocol_error,
)
from bridge.core.model_events import NO_USAGE
from bridge.core.outbox import MAX_PENDING
from bridge.core.rules import Prices, Rules
from bridge.core.waits import MAX_WAITS
from bridge.sip.sip_speech import MAX_ANSWERS, SipSpeech, SpokenAnswer
from bridge.sip.sip_talk import SipTalk

WORDS = "one two three four five six"  # almost two seconds


def talk(rules: Rules | None = None) -> SipTalk:
    made = SipTalk(rules or Rules(), 0.0)
    made.attached(0.0)
    return made


def hear(made: SipTalk, now: float, kind: str, **fields: Any) -> list[Command]:
    text = json.dumps({"type": kind, "event_id": "e"} | fields)
    return made.from_model(realtime_events.decode(text), text, now)


def said(speech: SipSpeech, response_id: str = "r") -> None:
    speech.created(response_id, 0.0)
    speech.words(response_id, "i", WORDS)


def asked(commands: list[Command]) -> list[str]:
    return [json.loads(it.text)["type"] for it in commands if isinstance(it, ToModel)]


# --- what was heard


def test_what_was_played_was_heard() -> None:
    """The server reports that the audio has stopped."""
    speech = SipSpeech()
    said(speech)
    speech.playing("r", 1.0)
    assert speech.done("r", "completed") == []
    assert not speech.all_heard

    assert speech.played("r") == [SpokenAnswer("i", WORDS, WORDS, False)]
    assert speech.all_heard


def test_what_was_cleared_was_heard_in_part() -> None:
    """The text is cut between two words, by the time that the audio played."""
    speech = SipSpeech()
    said(speech)
    speech.words("r", "j", "and more")
    speech.playing("r", 1.0)
    speech.done("r", "completed")

    assert speech.cleared("r", 2.0) == [
        SpokenAnswer("i", "one two three", WORDS, True),
        SpokenAnswer("j", "", "and more", True),
    ]


def test_a_cut_answer_runs_until_the_server_has_ended_it() -> None:
    """An earlier request for a response would be an error; late deltas are ignored."""
    speech = SipSpeech()
    said(speech)
    speech.cleared("r", 1.0)
    speech.words("r", "i", "late")
    speech.want()

    assert speech.running == ["r"] and not speech.request_if_free()
    assert speech.done("r", "cancelled") == []
    assert speech.request_if_free()


def test_an_answer_that_was_never_played_was_not_heard() -> None:
    """The response was cancelled before its first audio."""
    speech = SipSpeech()
    said(speech)

    assert speech.done("r", "cancelled") == [SpokenAnswer("i", "", WORDS, True)]


def test_unknown_answers_are_nothing() -> None:
    """Events about unknown responses are ignored."""
    speech = SipSpeech()
    speech.words("r", "i", "x")
    speech.playing("r", 0.0)

    assert speech.done("r", "completed") == []
    assert speech.played("r") == speech.cleared("r", 0.0) == []


def test_answers_without_an_end_are_forgotten() -> None:
    """Responses that never end do not fill the memory."""
    speech = SipSpeech()
    for number in range(MAX_ANSWERS + 5):
        speech.created(f"r{number}", 0.0)

    assert len(speech.running) == MAX_ANSWERS


# --- decisions


def test_a_wait_ends_though_the_server_never_says_so() -> None:
    """A goodbye whose end is not reported does not keep the line open for ever."""
    made = talk()
    hear(made, 0.0, "response.created", response={"id": "r"})
    hear(
        made,
        0.0,
        "response.output_audio_transcript.delta",
        response_id="r",
        item_id="i",
        delta=WORDS,
    )
    hear(made, 0.1, "output_audio_buffer.started", response_id="r")
    hear(made, 0.2, "response.done", response={"id": "r", "status": "completed"})
    assert made.when_heard(1, 0.3) == []
    due = made.deadline
    assert due is not None and 3.0 < due < 10.0

    assert made.tick(due - 0.1) == []
    assert WaitDone(1, True) in made.tick(due)


def test_an_answer_that_lost_a_race_is_asked_for_again() -> None:
    """The server had begun a response by itself: the request is repeated when it is
    done."""
    made = talk()
    assert asked(made.ask()) == ["response.create"]
    code = "conversation_already_has_active_response"
    error = {"type": "x", "message": "m", "code": code, "event_id": "bridge_answer"}
    hear(made, 0.0, "response.created", response={"id": "r"})
    assert asked(hear(made, 0.1, "error", error=error)) == []

    done = {"id": "r", "status": "completed"}
    assert asked(hear(made, 0.2, "response.done", response=done)) == ["response.create"]


def test_an_answer_that_is_refused_twice_ends_the_call() -> None:
    """The caller does not stay in silence."""
    made = talk()
    made.ask()
    error = {"type": "x", "message": "m", "code": "bad", "event_id": "bridge_answer"}

    assert asked(hear(made, 0.1, "error", error=error)) == ["response.create"]
    assert End("model", "failed") in hear(made, 0.2, "error", error=error)
    assert made.deadline is None
    assert made.tick(1.0) == made.tell("user", "x", True) == []
    assert made.when_heard(1, 1.0) == [WaitDone(1, None)]
    assert made.end("bridge", "shutdown", 1.0) == []


def test_other_errors_are_told_only() -> None:
    """A benign error, such as a late truncate, is only noted."""
    error = {"type": "x", "message": "m", "code": "response_cancel_not_active"}
    (note,) = hear(talk(), 0.1, "error", error=error)

    assert isinstance(note, Note) and note.data["benign"] is True


def test_an_interruption_of_an_answer_that_is_over_is_nothing() -> None:
    """A late guardrail does not interrupt another response."""
    made = talk()
    hear(made, 0.0, "response.created", response={"id": "r"})

    assert made.interrupt("guardrail", 0.1, "other") == []
    assert asked(made.interrupt("guardrail", 0.1, "r")) == ["response.cancel"]


def test_who_speaks_is_not_asked_about() -> None:
    """Text that is added while the caller speaks is answered with their speech."""
    made = talk()
    hear(made, 0.0, "input_audio_buffer.speech_started", item_id="i")

    assert asked(made.tell("system", "x", True)) == ["conversation.item.create"]
    assert made.when_heard(1, 0.1) == [WaitDone(1, False)]


def test_no_call_ends_between_a_word_and_its_answer() -> None:
    """The caller has asked something, and the server is about to answer."""
    made = talk()
    hear(made, 0.0, "input_audio_buffer.speech_started", item_id="i")
    hear(made, 0.5, "input_audio_buffer.speech_stopped", item_id="i")

    assert made.when_heard(1, 0.6, ("agent", "hung_up")) == []
    hear(made, 0.7, "response.created", response={"id": "r"})
    done = {"id": "r", "status": "completed"}
    assert WaitDone(1, True) in hear(made, 0.8, "response.done", response=done)


def test_words_before_there_is_a_model_are_bounded() -> None:
    """They are kept in order, up to a limit."""
    made = SipTalk(Rules(greeting="Hello."), 0.0)
    for _ in range(MAX_PENDING):
        assert made.tell("user", "x", False) == []

    assert made.tell("user", "x", False) == [Note("text_dropped")]
    sent = asked(made.attached(0.0))
    assert sent.count("conversation.item.create") == MAX_PENDING + 1


def test_a_crowd_that_waits_is_answered_at_once() -> None:
    """A wait beyond the limit gets False at once and does not wait for ever."""
    made = talk()
    hear(made, 0.0, "response.created", response={"id": "r"})
    for number in range(MAX_WAITS):
        assert made.when_heard(number, 0.0) == []

    assert made.when_heard(999, 0.0) == [WaitDone(999, False)]


def test_a_model_that_does_not_say_what_it_took_is_told_of() -> None:
    """An operator learns that the cost limit does not work with this model."""
    for prices, told in ((Prices(output_audio=1.0), True), (None, False)):
        made = talk(Rules(prices=prices))
        hear(made, 0.0, "response.created", response={"id": "r"})
        done = {"id": "r", "status": "completed"}
        commands = hear(made, 0.0, "response.done", response=done)

        assert (protocol_error("model", NO_USAGE) in commands) is told


def test_the_longest_call_ends_with_a_goodbye() -> None:
    """The call ends when the goodbye was heard, or after a time if it is not spoken."""
    made = talk(Rules(longest_seconds=5.0))
    goodbye = made.tick(5.0)
    assert asked(goodbye) == ["conversation.item.create", "response.create"]
    assert limit_hit("longest") in goodbye
    due = made.deadline
    assert due is not None

    assert made.tick(due)[-1] == End("bridge", "longest")


def test_what_plays_when_the_call_ends_was_heard_in_part() -> None:
    """The record has only what reached the caller."""
    made = talk()
    hear(made, 0.0, "response.created", response={"id": "r"})
    item = {"id": "i", "type": "message", "role": "assistant", "content": []}
    hear(made, 0.0, "conversation.item.added", item=item)
    delta = {"response_id": "r", "item_id": "i", "delta": WORDS}
    hear(made, 0.0, "response.output_audio_transcript.delta", **delta)
    hear(made, 0.1, "output_audio_buffer.started", response_id="r")
    made.end("caller", "hung_up", 1.1)

    (kept,) = made.history.items
    assert (kept.text, kept.generated, kept.cut) == ("one two three", WORDS, True)
