"""Scripts of a call: what each side sends, and what must follow."""

import pytest

from bridge.core.conversation import UNANSWERED_SECONDS, State
from bridge.core.inputs import Misread
from bridge.core.interruptions import MAX_GUARDRAIL_STOPS
from bridge.core.model_side import NO_AUDIO, NOT_CONFIRMED
from bridge.core.redial import READY_SECONDS
from bridge.core.responses import MAX_OPEN
from bridge.core.sessions import CONFIGURE_SECONDS, EXPECTED_SECONDS
from bridge.core.stream_presence import START_SECONDS
from tests.core.phone import (
    Interrupted,
    Phone,
    SipPhone,
    Started,
    appended,
    ends,
    events,
    notes,
    one,
    payload,
    reasons,
    to_caller,
    to_model,
    told,
    types_to_model,
)


def test_the_session_is_opened_with_the_calls_facts() -> None:
    """The agent's session is opened as soon as `start` says which call it is."""
    phone = Phone()
    phone.caller(event="connected", protocol="Call", version="1.0.0")

    started = one(phone.start(), Started)

    assert started.start.start.call_sid == "CA1"
    assert phone.talk.state is State.HOLDING


def test_the_first_words_wait_for_the_model() -> None:
    """What the caller says before the model is ready reaches it, in order."""
    phone = Phone()
    phone.start()
    said = [payload(20, bytes([n])) for n in range(60)]
    for words in said:
        assert to_model(phone.frame(payload=words)) == []

    commands = phone.ready()

    assert appended(commands) == b"".join(bytes([n]) * 160 for n in range(60))
    assert len(to_model(commands)) == 3, "a long wait is no flood of events"
    assert to_model(phone.frame(payload=said[3]))[0]["audio"] == said[3]


def test_held_audio_is_bounded() -> None:
    """A model that never comes costs bounded memory, and the loss is noted."""
    phone = Phone()
    phone.start()
    for _ in range(1010):
        phone.frame()

    assert len(notes(phone.log, "held_audio_lost")) == 10
    assert len(appended(phone.ready())) == 1000 * 160


def test_the_agent_speaks_first_when_told_to() -> None:
    """With a greeting the caller hears the agent without having said a word."""
    phone = Phone(greeting="Say hello.")
    phone.start()
    phone.frame()

    item, respond, audio = to_model(phone.ready())

    assert item["item"]["content"] == [{"type": "input_text", "text": "Say hello."}]
    assert respond == {"type": "response.create", "event_id": "bridge_answer"}
    assert audio["type"] == "input_audio_buffer.append"


def test_a_second_session_update_does_not_repeat_the_greeting() -> None:
    """A handoff must not make the agent say hello again."""
    phone = Phone(greeting="Say hello.").talking()

    assert to_model(phone.ready()) == []


def test_gaps_in_the_timestamps_become_silence() -> None:
    """Lost audio keeps its length, so the model's clock stays the caller's."""
    phone = Phone().talking()
    phone.timestamp += 60

    filled, frame = to_model(phone.frame())

    assert filled["audio"] == payload(60, b"\xff")
    assert frame["audio"] == payload(20)


def test_a_huge_gap_is_filled_up_to_a_limit() -> None:
    """A wrong timestamp does not send an hour of silence."""
    phone = Phone().talking()
    phone.timestamp += 3_600_000

    sent = to_model(phone.frame())

    assert len(sent) == 11  # ten times a second, and the frame
    assert to_model(phone.frame())[0]["audio"] == payload(20)


def test_timestamps_that_go_back_are_reported_and_accepted() -> None:
    """A restarted clock does not stop the caller's audio."""
    phone = Phone().talking()
    phone.timestamp = 50_000
    phone.frame()
    phone.timestamp = 0

    commands = phone.frame()

    assert reasons(commands) == ["timestamp went back"]
    assert len(to_model(commands)) == 1
    phone.timestamp -= 5
    assert len(to_model(phone.frame())) == 1


def test_what_comes_most_makes_no_deadline_earlier() -> None:
    """To read the deadline costs as much as a frame, of which 50 come a second."""
    phone = Phone().talking()
    phone.frame()
    assert phone.talk.keeps_deadline
    phone.created()
    assert not phone.talk.keeps_deadline
    phone.says(200)
    assert phone.talk.keeps_deadline
    phone.words("and")
    assert phone.talk.keeps_deadline
    phone.echo("m1")
    assert phone.talk.keeps_deadline, "more of the speech is queued"
    phone.barges_in()
    assert not phone.talk.keeps_deadline
    phone.says(200)
    assert not phone.talk.keeps_deadline, "it is late"


def test_the_last_mark_makes_a_deadline_earlier() -> None:
    """With it, the time of silence begins, which ends the call."""
    phone = Phone(silent_seconds=1.0).talking()
    phone.answers(20)
    phone.now += 0.1
    phone.frame()

    phone.echoes()

    assert not phone.talk.keeps_deadline
    assert phone.talk.deadline == pytest.approx(phone.now + 1.0)


def test_the_first_frame_after_a_stall_makes_a_deadline_earlier() -> None:
    """Frames may stop again at once: the next stall is filled in time, too."""
    phone = Phone().talking()
    detection = {"type": "server_vad", "silence_duration_ms": 20_000}
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    phone.barges_in()
    for _ in range(14):
        phone.wait(0.75)
    phone.model("input_audio_buffer.speech_started", item_id="u", audio_start_ms=1)
    before = phone.talk.deadline

    phone.frame()

    assert not phone.talk.keeps_deadline
    assert before and phone.talk.deadline and phone.talk.deadline < before


def test_a_turn_ends_though_frames_stop() -> None:
    """On a stream that sends nothing in silence the agent still responds."""
    phone = Phone().talking()
    phone.barges_in()
    assert phone.talk.deadline == pytest.approx(phone.now + 0.75)

    first = to_model(phone.wait(0.76))
    second = to_model(phone.wait(0.76))

    assert [event["audio"] for event in first + second] == [payload(750, b"\xff")] * 2
    phone.model("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1)
    due = phone.now + UNANSWERED_SECONDS
    phone.wait(EXPECTED_SECONDS)  # the check whether the server is gone
    assert phone.talk.deadline == pytest.approx(due)


def test_a_filled_stall_is_not_filled_again() -> None:
    """When frames come back after a stall, their gap is already filled with silence."""
    phone = Phone().talking()
    phone.barges_in()
    phone.wait(0.76)
    phone.timestamp += 760

    assert len(to_model(phone.frame())) == 1


def test_audio_of_the_agent_goes_out_with_a_mark_before_it() -> None:
    """The first audio of a response is pinned to Twilio's clock, and again soon after:
    mark and audio may have crossed the network at different speed."""
    phone = Phone().talking()

    sent = to_caller(phone.says(100))

    assert [message["event"] for message in sent] == ["mark", "media"] * 4
    audio = "".join(m["media"]["payload"] for m in sent if m["event"] == "media")
    assert audio == payload(100)
    assert sent[1]["streamSid"] == "MZ0000"


def test_long_deltas_are_split_by_marks() -> None:
    """However large the model's deltas, marks are at most 200 ms apart."""
    phone = Phone().talking()

    sent = to_caller(phone.says(1000))

    audio = "".join(m["media"]["payload"] for m in sent if m["event"] == "media")
    assert audio == payload(1000)
    since = 0
    for message in sent:
        if message["event"] == "mark":
            since = 0
        else:
            since += len(message["media"]["payload"]) // 4 * 3
            assert since <= 1600


def test_small_deltas_do_not_get_a_mark_each() -> None:
    """Marks are spaced by audio, not by messages."""
    phone = Phone().talking()
    for _ in range(100):
        phone.says(20)

    assert events(phone.log).count("mark") < 25


def test_the_end_of_an_item_is_marked_once() -> None:
    """The bridge learns when a response has been heard to its end."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)

    assert events(phone.item_done()) == ["mark"]
    assert events(phone.done()) == []


def test_response_done_ends_items_without_an_end_of_their_own() -> None:
    """A server that sends no output_audio.done is supported, too."""
    phone = Phone().talking()
    phone.created()
    phone.words("never spoken", item="i0")
    phone.says(300)

    assert events(phone.done()) == ["mark"]
    assert told(phone.barges_in()) == []


def test_a_barge_in_in_mid_sentence() -> None:
    """The caller talks over the agent: silence at once, and the model learns what was
    heard of its response, to a frame."""
    phone = Phone().talking()
    phone.created()
    phone.words("one two three four")
    phone.says(2000)
    phone.frames(1000)

    commands = phone.barges_in()

    assert events(commands) == ["clear", "mark"]
    assert one(commands, Interrupted) == Interrupted("i1", 0)
    assert to_model(commands) == []  # the server cancels its own answer
    settled = phone.echoes()
    [(verb, item, ms)] = told(settled)
    assert (verb, item) == ("truncate", "i1")
    assert ms == pytest.approx(1000, abs=20)
    [said] = notes(settled, "said")
    assert said.private == {"generated": "one two three four", "heard": "one two"}
    assert said.data["sent_ms"] == 2000


def test_a_finished_response_that_is_still_played_is_cut() -> None:
    """A response that the model finished long ago can be interrupted all the same."""
    phone = Phone().talking()
    phone.created()
    phone.says(2000)
    phone.item_done()
    phone.done()
    phone.frames(500)

    assert events(phone.barges_in()) == ["clear", "mark"]
    [(verb, _, ms)] = told(phone.echoes())
    assert verb == "truncate"
    assert ms == pytest.approx(500, abs=20)


def test_a_response_heard_to_its_end_is_not_cut() -> None:
    """Speech after the agent's end is no barge-in: no clear, no truncate."""
    phone = Phone().talking()
    phone.created()
    phone.says(200)
    phone.item_done()
    phone.done()
    [said] = notes(phone.frames(220), "said")

    assert said.data["heard_ms"] == 200
    commands = phone.barges_in()
    assert events(commands) == []
    assert told(commands) == []
    assert not [it for it in commands if isinstance(it, Interrupted)]


def test_with_two_items_queued_the_first_is_truncated_and_the_second_deleted() -> None:
    """A preamble heard in part is cut; the item behind it was never heard."""
    phone = Phone().talking()
    phone.created()
    phone.says(1000, item="i1")
    phone.item_done("i1")
    phone.says(1000, item="i2")
    phone.item_done("i2")
    phone.frames(400)
    phone.barges_in()

    (verb, item, ms), second = told(phone.echoes())

    assert (verb, item) == ("truncate", "i1")
    assert ms == pytest.approx(400, abs=20)
    assert second == ("delete", "i2", None)


def test_the_first_of_two_items_was_heard_in_full() -> None:
    """Only the second is cut, at its own position; the first keeps its text."""
    phone = Phone().talking()
    phone.created()
    phone.says(200, item="i1")
    phone.item_done("i1")
    phone.says(1000, item="i2")
    phone.item_done("i2")
    phone.frames(500)
    commands = phone.barges_in()

    assert one(commands, Interrupted) == Interrupted("i2", 0)
    [(verb, item, ms)] = told(phone.echoes())
    assert (verb, item) == ("truncate", "i2")
    assert ms == pytest.approx(300, abs=25)


def test_parts_of_one_item_are_cut_each_for_itself() -> None:
    """An item with two parts keeps the part that was heard; the other is truncated at
    0."""
    phone = Phone().talking()
    phone.created()
    phone.says(500, index=0)
    phone.item_done(index=0)
    phone.says(500, index=1)
    phone.frames(200)
    phone.barges_in()

    first, second = told(phone.echoes())

    assert first[:2] == ("truncate", "i1")
    assert second == ("truncate", "i1", 0)


def test_late_audio_of_a_cut_response_is_dropped() -> None:
    """The old response does not continue after the clear."""
    phone = Phone().talking()
    phone.created()
    phone.says(600)
    phone.barges_in()

    assert to_caller(phone.says(200)) == []
    assert events(phone.words("late")) == []
    assert to_caller(phone.item_done()) == []
    phone.created("r2")
    assert "media" in events(phone.says(200, item="i9", response="r2"))


def test_an_item_that_came_only_after_the_cut_is_deleted() -> None:
    """The model does not believe that it said what was dropped unheard."""
    phone = Phone().talking()
    phone.created()
    added = {"id": "i3", "type": "message"}
    tool = {"id": "f1", "type": "function_call"}
    phone.says(600)
    phone.barges_in()
    for item in (added, tool):
        phone.model("response.output_item.added", response_id="r1", item=item)
    phone.says(200, item="i2")
    phone.echoes()

    assert told(phone.done(status="cancelled")) == [
        ("delete", "i3", None),
        ("delete", "i2", None),
    ]


def test_a_barge_in_while_the_model_still_thinks() -> None:
    """No audio is queued, so nothing is cleared; the response is dropped unheard."""
    phone = Phone().talking()
    phone.created()

    assert events(phone.barges_in()) == []
    assert to_caller(phone.says(200)) == []
    assert told(phone.done(status="cancelled")) == [("delete", "i1", None)]


@pytest.mark.parametrize("setting", [None, True])
def test_the_response_is_cancelled_unless_the_server_does_it(
    setting: bool | None,
) -> None:
    """A server that does not say that it cancels by itself is told to."""
    detection = {"type": "server_vad"} | (
        {} if setting is None else {"interrupt_response": setting}
    )
    phone = Phone()
    phone.start()
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    phone.created()
    phone.says(500)

    cancels = [e for e in to_model(phone.barges_in()) if e["type"] == "response.cancel"]

    assert [e["response_id"] for e in cancels] == ([] if setting else ["r1"])


def test_barge_in_can_be_switched_off() -> None:
    """With interrupt_response false the agent finishes its sentence."""
    phone = Phone()
    phone.start()
    off = {"type": "server_vad", "interrupt_response": False}
    phone.ready({"audio": {"input": {"turn_detection": off}}})
    phone.created()
    phone.says(500)

    assert events(phone.barges_in()) == []


def test_a_guardrail_stops_what_is_queued() -> None:
    """Forbidden speech stops at once, though the caller is silent."""
    phone = Phone().talking()
    phone.created()
    phone.says(2000)

    commands = phone.interrupt("guardrail", "r1")

    assert events(commands) == ["clear", "mark"]
    assert [e["type"] for e in to_model(commands)] == ["response.cancel"]


def test_a_guardrail_that_stops_every_response_ends_the_call() -> None:
    """An agent that may not say anything is of no use: the caller gets the fallback."""
    phone = Phone().talking()
    for number in range(MAX_GUARDRAIL_STOPS):
        answer = f"r{number}"
        phone.model("response.created", response={"id": answer})
        assert not ends(phone.interrupt("guardrail", answer))
        phone.model("response.done", response={"id": answer, "status": "cancelled"})
    phone.model("response.created", response={"id": "last"})

    over = ends(phone.interrupt("guardrail", "last"))

    assert over == [("bridge", "guardrail")]


def test_speech_of_the_caller_resets_the_count_of_guardrail_stops() -> None:
    """Only a loop ends the call, not a strict guardrail in a long call."""
    phone = Phone().talking()
    for number in range(2 * MAX_GUARDRAIL_STOPS):
        answer = f"r{number}"
        phone.model("input_audio_buffer.speech_started", item_id="u")
        phone.model("input_audio_buffer.speech_stopped", item_id="u")
        phone.model("response.created", response={"id": answer})
        assert not ends(phone.interrupt("guardrail", answer))
        phone.model("response.done", response={"id": answer, "status": "cancelled"})


def test_a_guardrail_of_a_response_that_was_heard_stops_nothing() -> None:
    """The next response is not affected."""
    phone = Phone().talking()
    phone.created("r2")
    phone.says(500, response="r2")

    assert phone.interrupt("guardrail", "r1") == []
    assert phone.interrupt("guardrail", "r2") != []


def test_a_guardrail_clears_a_finished_response_that_is_still_played() -> None:
    """The response is over, its audio is not: it is cleared."""
    phone = Phone().talking()
    phone.created()
    phone.says(500)
    phone.item_done()
    phone.done()

    commands = phone.interrupt("guardrail", "r1")

    assert events(commands) == ["clear", "mark"]


def cut_off_at_800() -> Phone:
    """A caller who has interrupted the agent; the fence is not back."""
    phone = Phone().talking()
    phone.created()
    phone.says(3000)
    phone.frames(800)
    phone.barges_in()
    return phone


def test_a_fence_is_waited_for_while_nothing_needs_it() -> None:
    """The network stops for two seconds while the caller speaks: the model is told what
    the caller heard, not what the bridge would have guessed after a second."""
    phone = cut_off_at_800()

    assert told(phone.wait(2.0)) == []

    [(verb, _, ms)] = told(phone.echoes())
    assert (verb, ms) == ("truncate", pytest.approx(800, abs=40))


def test_the_model_is_told_before_the_server_responds() -> None:
    """The caller's turn has ended, so the response begins now: the model is told what
    may have been heard at most, and what was heard once the fence is back."""
    phone = cut_off_at_800()

    commands = phone.falls_silent()

    [(verb, _, ms)] = told(commands)
    assert verb == "truncate" and ms is not None
    assert 800 < ms < 2000
    assert notes(commands, "fence_late")
    assert told(phone.barges_in()) == told(phone.falls_silent()) == [], "told once"
    [(verb, _, exact)] = told(phone.echoes())
    assert (verb, exact) == ("truncate", pytest.approx(800, abs=40))


def test_what_the_model_was_told_to_forget_is_told_once() -> None:
    """The second item was not heard: it is deleted before the response, and the fence
    changes only the first."""
    phone = Phone().talking()
    phone.created()
    phone.says(3000)
    phone.says(2000, "i2")
    phone.frames(800)
    phone.barges_in()

    first = told(phone.falls_silent())
    assert [(verb, item) for verb, item, _ in first] == [
        ("truncate", "i1"),
        ("delete", "i2"),
    ]
    [(verb, item, ms)] = told(phone.echoes())
    assert (verb, item, ms) == ("truncate", "i1", pytest.approx(800, abs=40))


def test_a_fence_that_is_late_and_never_comes_is_given_up() -> None:
    """What the model was told before the response is corrected by our own clock."""
    phone = cut_off_at_800()
    phone.falls_silent()

    commands = phone.wait(5.01)

    assert [verb for verb, _, _ in told(commands)] == ["truncate"]
    assert notes(commands, "said") and not notes(commands, "fence_late")


def test_a_request_of_user_code_follows_what_was_heard() -> None:
    """User code sends its own response.create: the model is told first."""
    phone = cut_off_at_800()

    commands = phone.sends("response.create")

    kinds = [event["type"] for event in to_model(commands)]
    assert kinds == ["conversation.item.truncate", "response.create"]


def test_words_of_a_lost_session_are_replaced_before_the_response() -> None:
    """The new session knows the item as text: it gets the text that was heard."""
    phone = Phone().talking()
    phone.answers(6000, words="One two three four.")
    phone.frames(1000)
    phone.another_model()
    phone.barges_in()

    commands = phone.falls_silent()

    assert [(verb, item) for verb, item, _ in told(commands)] == [("delete", "i1")]
    assert notes(commands, "said")


def test_a_fence_that_never_comes_is_given_up() -> None:
    """Twilio does not echo the fence: what was heard is recorded by our own clock."""
    phone = cut_off_at_800()

    commands = phone.wait(5.01)

    [(verb, _, ms)] = told(commands)
    assert (verb, ms) == ("truncate", pytest.approx(800, abs=40))
    assert notes(commands, "fence_late") and notes(commands, "said")
    assert told(phone.echoes()) == []


def test_interrupted_again_before_the_fence_is_back() -> None:
    """Two barge-ins within a round trip: each response is cut at its own position."""
    phone = Phone().talking()
    phone.created("r1")
    phone.says(1000, item="i1", response="r1")
    phone.frames(300)
    phone.barges_in()
    phone.done("r1", "cancelled")
    phone.created("r2")
    phone.says(1000, item="i2", response="r2")
    phone.barges_in()

    first, second = told(phone.echoes())

    assert first[:2] == ("truncate", "i1")
    assert second == ("delete", "i2", None)


def test_keys_are_seen_but_never_logged() -> None:
    """A pressed digit may belong to a card number: it is private."""
    phone = Phone().talking()
    dtmf = {"track": "inbound_track", "digit": "7"}

    [note] = notes(
        phone.caller(event="dtmf", streamSid="MZ0000", dtmf=dtmf), "key_pressed"
    )

    assert (note.data, note.private) == ({}, {"digit": "7"})


def test_what_the_caller_said_is_private() -> None:
    """Transcripts go into a trace, never into a log."""
    phone = Phone().talking()

    [note] = phone.model(
        "conversation.item.input_audio_transcription.completed",
        item_id="u1",
        transcript="my secret",
    )

    assert "secret" not in str(note.data)
    assert note.private == {"text": "my secret"}


def test_how_long_the_caller_waits_is_noted() -> None:
    """From the end of the caller's turn to the first audio of the response."""
    phone = Phone().talking()
    phone.barges_in()
    phone.model("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1)
    phone.created()
    phone.frames(400)

    [note] = notes(phone.says(100), "first_audio")

    assert note.data["seconds"] == pytest.approx(0.4)
    assert notes(phone.says(100), "first_audio") == []


# --- what goes wrong ---


def test_messages_out_of_order_are_reported_and_the_call_goes_on() -> None:
    """Nothing that Twilio could send out of order ends or disturbs a call."""
    phone = Phone()
    assert reasons(phone.frame()) == ["message before start"]
    phone.start()
    assert reasons(phone.start()) == ["second start"]
    assert reasons(phone.frame(sid="MZother")) == ["message of another stream"]
    assert reasons(phone.frame(track="outbound")) == ["media of another track"]
    assert reasons(phone.echo("never-sent")) == ["unknown mark"]
    assert reasons(phone.caller(event="stop", streamSid="MZother")) == [
        "message of another stream"
    ]
    assert reasons(phone.misread("model", "event is no JSON")) == ["event is no JSON"]
    assert phone.talk.state is State.HOLDING
    assert len(to_model(phone.ready())) > 0 or phone.talk.state is State.TALKING


def test_audio_that_is_no_mulaw_ends_the_call() -> None:
    """A stream that would be noise to the model is refused with a reason."""
    phone = Phone()

    assert ends(phone.start(encoding="audio/l16")) == [
        ("caller", "unsupported_media_format")
    ]


def test_a_model_that_speaks_pcm_ends_the_call() -> None:
    """The caller hears the apology instead of noise."""
    phone = Phone()
    phone.start()
    pcm = {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 24000}}}}

    assert ends(phone.ready(pcm)) == [("model", "wrong_audio_format")]


def test_a_session_without_audio_ends_the_call() -> None:
    """The server confirms another modality: the caller would hear nothing."""
    phone = Phone()
    phone.start()
    commands = phone.ready({"output_modalities": ["text"]})

    assert ends(commands) == [("model", "refused")]
    assert reasons(commands) == [NO_AUDIO]
    assert not notes(commands, "ready")


def test_a_session_that_stops_speaking_goes_on_and_is_reported() -> None:
    """Later, the user's code may have asked for it."""
    phone = Phone().talking()
    commands = phone.ready({"output_modalities": ["text"]})

    assert (ends(commands), reasons(commands)) == ([], [NO_AUDIO])
    assert reasons(phone.ready({"output_modalities": ["text", "audio"]})) == []
    assert reasons(phone.ready({"output_modalities": "audio"})) == []


def test_a_session_that_is_never_confirmed_is_reported() -> None:
    """The connection is given up, and the log says why."""
    phone = Phone()
    phone.start()
    phone.dialled()

    assert reasons(phone.wait(CONFIGURE_SECONDS)) == [NOT_CONFIRMED]


def test_an_event_that_cannot_be_used_is_named() -> None:
    """By its type, as far as that can be a name."""
    phone = Phone().talking()
    types = ("response.mood", "x" * 999, "", "\n<script>")
    named = [
        notes(phone.gives(Misread("model", "unknown event", it)), "protocol_error")
        for it in types
    ]

    assert [note.data.get("event_type") for [note] in named] == [
        "response.mood",
        "x" * 64,
        None,
        None,
    ]


def test_a_refused_configuration_ends_the_call() -> None:
    """A session with the server's defaults would be PCM and without instructions."""
    phone = Phone()
    phone.start()
    phone.dialled()
    error = {"type": "invalid_request_error", "code": "invalid_value", "message": "no"}

    assert ends(phone.model("error", error=error)) == [("model", "refused")]


@pytest.mark.parametrize(
    "error",
    [
        {"code": "response_cancel_not_active"},
        {"code": None, "message": "Audio content of 3700ms is already shorter than 1"},
    ],
)
def test_errors_that_lost_a_race_are_benign(error: dict[str, str | None]) -> None:
    """A truncate that came too late is no reason to alert an operator."""
    phone = Phone()
    phone.start()
    phone.dialled()
    error = {"type": "invalid_request_error", "message": "", **error}

    [note] = phone.model("error", error=error)

    assert note.data["benign"] is True


def test_an_error_in_mid_call_is_reported_and_survived() -> None:
    """A harmless error does not end the call."""
    phone = Phone().talking()
    error = {"type": "server_error", "message": "private words"}

    [note] = phone.model("error", error=error)

    assert note.data["code"] == "server_error"
    assert "private" not in str(note.data)


def test_a_socket_without_a_call_is_closed() -> None:
    """A client that opens a stream and sends no `start` does not keep it."""
    phone = Phone()
    assert phone.talk.deadline == phone.now + START_SECONDS

    assert ends(phone.wait(START_SECONDS)) == [("caller", "no_start")]


def test_a_model_that_does_not_come_is_not_waited_for() -> None:
    """The caller is not left in silence for longer than this."""
    phone = Phone()
    phone.start()
    assert ends(phone.wait(READY_SECONDS - 0.1)) == []

    assert ends(phone.wait(0.2)) == [("model", "not_ready")]


def test_the_caller_hangs_up() -> None:
    """The call ends once, and what was heard until then is recorded."""
    phone = Phone().talking()
    phone.created()
    phone.words("one two three four")
    phone.says(1000)
    phone.frames(500)

    commands = phone.caller(event="stop", streamSid="MZ0000")

    assert ends(commands) == [("caller", "hung_up")]
    [said] = notes(commands, "said")
    assert said.data["heard_ms"] == pytest.approx(500, abs=20)
    assert said.private["heard"] == "one two"


def test_a_hang_up_after_a_barge_in_records_the_cut_response() -> None:
    """The cut response is recorded, too, though its fence never came back."""
    phone = Phone().talking()
    phone.created()
    phone.says(1000)
    phone.barges_in()
    phone.created("r2")
    phone.words("not yet spoken", item="i2", response="r2")

    commands = phone.ends("caller", "connection_lost")

    assert [note.data["item"] for note in notes(commands, "said")] == ["i1"]


def test_nothing_happens_after_the_end() -> None:
    """A call that is over does not react to any input."""
    phone = Phone().talking()
    phone.ends("bridge", "shutdown")

    assert phone.frame() == []
    assert phone.says(100) == []
    assert phone.tick() == []
    assert phone.interrupt("guardrail") == []
    assert phone.misread("model", "x") == []
    assert phone.ends("caller", "hung_up") == []
    assert phone.talk.deadline is None


def test_a_response_that_ends_before_the_session_is_ready_is_harmless() -> None:
    """A server that is early does not end a call."""
    phone = Phone(cost_limit=0.0)
    phone.start()

    assert to_model(phone.done("r0")) == []
    assert phone.talk.state is State.HOLDING


def test_a_server_that_never_ends_responses_takes_bounded_memory() -> None:
    """Ids are remembered within bounds, whatever is sent."""
    phone = Phone().talking()
    for n in range(3000):
        phone.created(f"r{n}")

    assert len(phone.talk._call.responses.ids) <= MAX_OPEN


def test_speech_that_follows_a_probe_makes_a_deadline_earlier() -> None:
    """A server that speaks and then hangs is probed again after 2 s, not at the time at
    which the answer to the earlier probe would have been late."""
    phone = Phone().talking()
    phone.created()
    phone.gives_signs = False
    assert "session.update" in types_to_model(phone.wait(6.0))
    before = phone.talk.deadline

    phone.says(200)

    assert not phone.talk.keeps_deadline
    assert before and phone.talk.deadline and phone.talk.deadline < before
    phone.says(200)
    assert phone.talk.keeps_deadline


def test_the_ledger_of_the_stream_in_use() -> None:
    """A picture of the call is made from it; a call whose audio is elsewhere has
    none."""
    phone = Phone()
    assert phone.talk.playback is not None
    assert SipPhone().talk.playback is None
