"""Scripts of a call: what each side sends, and what must come of it."""

import pytest

from bridge.core.conversation import MAX_GUARDRAIL_STOPS, START_SECONDS, State
from bridge.core.redial import READY_SECONDS
from bridge.core.sessions import PROBE_AFTER_SECONDS
from tests.core.phone import (
    Interrupted,
    Phone,
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
)


def test_the_session_is_opened_with_the_calls_facts() -> None:
    """The agent is fetched the moment Twilio says whose call it is."""
    phone = Phone()
    phone.caller(event="connected", protocol="Call", version="1.0.0")

    started = one(phone.start(), Started)

    assert started.start.start.call_sid == "CA1"
    assert phone.talk.state is State.HOLDING


def test_the_first_words_wait_for_the_model() -> None:
    """What the caller says before the model is there reaches it, in order."""
    phone = Phone()
    phone.start()
    said = [payload(20, bytes([n])) for n in range(60)]
    for words in said:
        assert to_model(phone.frame(payload=words)) == []

    commands = phone.ready()

    assert appended(commands) == b"".join(bytes([n]) * 160 for n in range(60))
    assert len(to_model(commands)) == 3, "a long wait is no flood of events"
    assert to_model(phone.frame(payload=said[3]))[0]["audio"] == said[3]


def test_audio_is_held_only_so_long() -> None:
    """A model that never comes costs bounded memory, and the loss is told."""
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


def test_a_second_session_update_greets_nobody() -> None:
    """A handoff must not make the agent say hello again."""
    phone = Phone(greeting="Say hello.").talking()

    assert to_model(phone.ready()) == []


def test_holes_in_the_timestamps_become_silence() -> None:
    """Lost audio keeps its length, so the model's clock stays the caller's."""
    phone = Phone().talking()
    phone.timestamp += 60

    filled, frame = to_model(phone.frame())

    assert filled["audio"] == payload(60, b"\xff")
    assert frame["audio"] == payload(20)


def test_a_monstrous_hole_is_filled_only_so_far() -> None:
    """A timestamp from nowhere does not send an hour of silence."""
    phone = Phone().talking()
    phone.timestamp += 3_600_000

    sent = to_model(phone.frame())

    assert len(sent) == 11  # ten times a second, and the frame
    assert to_model(phone.frame())[0]["audio"] == payload(20)


def test_timestamps_that_go_back_are_told_and_taken() -> None:
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


def test_a_turn_ends_though_frames_stop() -> None:
    """On a line that sends nothing in silence the agent still answers."""
    phone = Phone().talking()
    phone.barges_in()
    assert phone.talk.deadline == pytest.approx(phone.now + 0.75)

    first = to_model(phone.wait(0.76))
    second = to_model(phone.wait(0.76))

    assert [event["audio"] for event in first + second] == [payload(750, b"\xff")] * 2
    phone.model("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1)
    assert phone.talk.deadline == pytest.approx(phone.now + PROBE_AFTER_SECONDS)


def test_what_was_filled_is_not_filled_again() -> None:
    """When frames come back behind a stall, their hole is already silence."""
    phone = Phone().talking()
    phone.barges_in()
    phone.wait(0.76)
    phone.timestamp += 760

    assert len(to_model(phone.frame())) == 1


def test_audio_of_the_agent_goes_out_with_a_mark_before_it() -> None:
    """The first sound of an answer is pinned to Twilio's clock, and again soon after:
    mark and audio may have crossed the network at different speed."""
    phone = Phone().talking()

    sent = to_caller(phone.says(100))

    assert [message["event"] for message in sent] == ["mark", "media"] * 4
    audio = "".join(m["media"]["payload"] for m in sent if m["event"] == "media")
    assert audio == payload(100)
    assert sent[1]["streamSid"] == "MZ0000"


def test_long_deltas_get_marks_within() -> None:
    """However large the model's deltas, no 200 ms go by without a mark."""
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
    """We learn when an answer has been heard to its end."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)

    assert events(phone.item_done()) == ["mark"]
    assert events(phone.done()) == []


def test_a_server_that_ends_no_items_is_served_too() -> None:
    """response.done ends the items that no output_audio.done has ended."""
    phone = Phone().talking()
    phone.created()
    phone.words("never spoken", item="i0")
    phone.says(300)

    assert events(phone.done()) == ["mark"]
    assert told(phone.barges_in()) == []


def test_a_barge_in_in_mid_sentence() -> None:
    """The caller talks over the agent: silence at once, and the model learns what was
    heard of its answer, to a frame."""
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


def test_the_queue_outlives_the_response() -> None:
    """An answer that the model finished long ago is cut all the same."""
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


def test_an_answer_heard_to_its_end_is_left_alone() -> None:
    """Talking after the agent is no interruption: no clear, no truncate."""
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


def test_two_items_are_queued() -> None:
    """A preamble heard in part is cut, the answer behind it was never heard."""
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
    """Only the second is cut, at its own position; the first keeps its words."""
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
    """An item with two parts keeps the heard one; the other is cut at nothing."""
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


def test_late_audio_of_a_cut_answer_is_dropped() -> None:
    """The stale answer does not come back behind the clear."""
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
    """The model does not believe it said what was dropped unheard."""
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
    """Nothing is playing, so nothing is cleared; the answer is dropped unheard."""
    phone = Phone().talking()
    phone.created()

    assert events(phone.barges_in()) == []
    assert to_caller(phone.says(200)) == []
    assert told(phone.done(status="cancelled")) == [("delete", "i1", None)]


@pytest.mark.parametrize("setting", [None, True])
def test_who_cancels_the_answer(setting: bool | None) -> None:
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
    """What must not be said stops at once, though the caller is silent."""
    phone = Phone().talking()
    phone.created()
    phone.says(2000)

    commands = phone.talk.interrupt("guardrail", phone.now, "r1")

    assert events(commands) == ["clear", "mark"]
    assert [e["type"] for e in to_model(commands)] == ["response.cancel"]


def test_a_guardrail_that_stops_every_answer_ends_the_call() -> None:
    """An agent that may not say anything is no agent: the caller gets plan B."""
    phone = Phone().talking()
    for number in range(MAX_GUARDRAIL_STOPS):
        answer = f"r{number}"
        phone.model("response.created", response={"id": answer})
        assert not ends(phone.talk.interrupt("guardrail", phone.now, answer))
        phone.model("response.done", response={"id": answer, "status": "cancelled"})
    phone.model("response.created", response={"id": "last"})

    over = ends(phone.talk.interrupt("guardrail", phone.now, "last"))

    assert over == [("bridge", "guardrail")]


def test_a_caller_who_speaks_gives_the_agent_another_chance() -> None:
    """Only a loop is stopped, not a strict guardrail in a long call."""
    phone = Phone().talking()
    for number in range(2 * MAX_GUARDRAIL_STOPS):
        answer = f"r{number}"
        phone.model("input_audio_buffer.speech_started", item_id="u")
        phone.model("input_audio_buffer.speech_stopped", item_id="u")
        phone.model("response.created", response={"id": answer})
        assert not ends(phone.talk.interrupt("guardrail", phone.now, answer))
        phone.model("response.done", response={"id": answer, "status": "cancelled"})


def test_a_guardrail_that_comes_too_late_stops_nobody() -> None:
    """Its answer has been heard; the next one is not its business."""
    phone = Phone().talking()
    phone.created("r2")
    phone.says(500, response="r2")

    assert phone.talk.interrupt("guardrail", phone.now, "r1") == []
    assert phone.talk.interrupt("guardrail", phone.now, "r2") != []


def test_a_guardrail_of_a_finished_answer_that_is_still_heard() -> None:
    """The response is over, its audio is not: it is cleared."""
    phone = Phone().talking()
    phone.created()
    phone.says(500)
    phone.item_done()
    phone.done()

    commands = phone.talk.interrupt("guardrail", phone.now, "r1")

    assert events(commands) == ["clear", "mark"]


def test_a_lost_fence_is_not_waited_for() -> None:
    """Twilio does not answer: the model is told after a second, by our own clock."""
    phone = Phone().talking()
    phone.created()
    phone.says(3000)
    phone.frames(800)
    phone.barges_in()
    due = phone.talk.deadline
    assert due is not None and due <= phone.now + 1.0

    commands = phone.wait(1.01)

    [(verb, _, ms)] = told(commands)
    assert verb == "truncate"
    assert ms == pytest.approx(800, abs=40)
    assert notes(commands, "fence_late")
    assert told(phone.echoes()) == []


def test_interrupted_again_before_the_fence_is_back() -> None:
    """Two interruptions in a round trip: each answer is cut for itself."""
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
    """A pressed digit may be of a card number: it is private."""
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
    """From the end of the caller's turn to the first sound of the answer."""
    phone = Phone().talking()
    phone.barges_in()
    phone.model("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=1)
    phone.created()
    phone.frames(400)

    [note] = notes(phone.says(100), "first_audio")

    assert note.data["seconds"] == pytest.approx(0.4)
    assert notes(phone.says(100), "first_audio") == []


# --- what goes wrong ---


def test_odd_messages_are_told_and_the_call_goes_on() -> None:
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
    assert reasons(phone.talk.misread("model", "event is no JSON")) == [
        "event is no JSON"
    ]
    assert phone.talk.state is State.HOLDING
    assert len(to_model(phone.ready())) > 0 or phone.talk.state is State.TALKING


def test_audio_that_is_no_mulaw_ends_the_call() -> None:
    """A stream that would be noise to the model is refused with a reason."""
    phone = Phone()

    assert ends(phone.start(encoding="audio/l16")) == [
        ("caller", "unsupported_media_format")
    ]


def test_a_model_that_speaks_pcm_ends_the_call() -> None:
    """Better a word of regret than noise in the ear."""
    phone = Phone()
    phone.start()
    pcm = {"audio": {"output": {"format": {"type": "audio/pcm", "rate": 24000}}}}

    assert ends(phone.ready(pcm)) == [("model", "wrong_audio_format")]


def test_a_refused_configuration_ends_the_call() -> None:
    """A session on the server's defaults would be PCM and without instructions."""
    phone = Phone()
    phone.start()
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
    """A truncate that came too late is no reason to wake anybody."""
    phone = Phone()
    phone.start()
    error = {"type": "invalid_request_error", "message": "", **error}

    [note] = phone.model("error", error=error)

    assert note.data["benign"] is True


def test_an_error_in_mid_call_is_told_and_survived() -> None:
    """A harmless error must not kill the call."""
    phone = Phone().talking()
    error = {"type": "server_error", "message": "private words"}

    [note] = phone.model("error", error=error)

    assert note.data["code"] == "server_error"
    assert "private" not in str(note.data)


def test_a_socket_without_a_call_is_closed() -> None:
    """Whoever opens a stream and says nothing does not keep it."""
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
    """The call ends once, and what was heard until then is on record."""
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


def test_hung_up_behind_an_interruption() -> None:
    """The cut answer is on record too, though its fence never came back."""
    phone = Phone().talking()
    phone.created()
    phone.says(1000)
    phone.barges_in()
    phone.created("r2")
    phone.words("not yet spoken", item="i2", response="r2")

    commands = phone.talk.end("caller", "connection_lost", phone.now)

    assert [note.data["item"] for note in notes(commands, "said")] == ["i1"]


def test_nothing_happens_after_the_end() -> None:
    """A call that is over answers to nothing any more."""
    phone = Phone().talking()
    phone.talk.end("bridge", "shutdown", phone.now)

    assert phone.frame() == []
    assert phone.says(100) == []
    assert phone.tick() == []
    assert phone.talk.interrupt("guardrail", phone.now) == []
    assert phone.talk.misread("model", "x") == []
    assert phone.talk.end("caller", "hung_up", phone.now) == []
    assert phone.talk.deadline is None


def test_an_answer_that_ends_before_the_session_is_ready() -> None:
    """A server that is early ends nobody's call."""
    phone = Phone(cost_limit=0.0)
    phone.start()

    assert to_model(phone.done("r0")) == []
    assert phone.talk.state is State.HOLDING


def test_events_that_decide_nothing_pass() -> None:
    """The SDK gets them; the call does not mind."""
    phone = Phone().talking()

    assert phone.model("rate_limits.updated", rate_limits=[]) == []


def test_a_server_that_never_ends_answers_costs_no_memory() -> None:
    """Ids are remembered in bounds, whatever is sent."""
    phone = Phone().talking()
    for n in range(3000):
        phone.created(f"r{n}")

    assert len(phone.talk._speech._responses) <= 1024
