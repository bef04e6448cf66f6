"""Responses that are requested, owed, stopped or late: when each is requested, and how
often."""

from typing import Any

import pytest

from bridge.core.commands import Command
from bridge.core.conversation import (
    IGNORED_SECONDS,
    LATE_SECONDS,
    UNANSWERED_SECONDS,
    WORDLESS_SECONDS,
)
from bridge.core.interruptions import MAX_RESUMES
from bridge.core.model_side import CUT_RESULT, MAX_RETOLD_CHARS, REFUSED_OUTPUT
from bridge.core.responses import MAX_SILENT, RESULTS_SECONDS
from bridge.core.rules import BROKEN_OFF, GOODBYES, RESUME, UNFINISHED
from bridge.core.turn_watch import (
    LONGEST_TURN_SECONDS,
    LONGEST_WAIT_SECONDS,
    QUIET_SECONDS,
)
from bridge.core.waits import ANSWER_SECONDS
from tests.core.phone import (
    Phone,
    asks,
    cancels,
    dials,
    ends,
    events,
    given,
    heard,
    notes,
    payload,
    said_to_model,
    to_model,
    told,
    types_to_model,
)

HANG_UP = ("agent", "hung_up")
LATE_MS = int(1000 * LATE_SECONDS)
BUSY = "conversation_already_has_active_response"


# --- when a response is requested ---


def test_no_response_is_requested_while_the_caller_speaks() -> None:
    """The result of a tool that ends while the caller speaks is answered together with
    what they say."""
    phone = Phone().talking()
    phone.barges_in()

    assert asks(phone.ask()) == 0
    phone.falls_silent()
    assert asks(phone.answers(20)) == 0


def test_a_response_waits_for_the_one_that_the_server_is_about_to_begin() -> None:
    """A message between the caller's last word and the server's response is answered
    after that, once."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()

    assert asks(phone.tell("The parcel is found.", "system")) == 0
    assert asks(phone.answers(20)) == 1
    assert asks(phone.answers(20, "i2", "r2")) == 0


def test_no_response_is_requested_before_the_model_knows_what_was_heard() -> None:
    """The response to keys does not build on words that never left the phone."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.frames(300)

    commands = phone.presses("1#")
    assert events(commands) == ["clear", "mark"]
    assert asks(commands) == 0

    settled = [it["type"] for it in to_model(phone.echoes())]
    assert settled == ["conversation.item.truncate", "response.create"]


def test_a_lost_fence_delays_a_response_by_a_second_at_most() -> None:
    """A Twilio that loses a mark costs a second, not the response."""
    phone = Phone().talking()
    phone.answers(2000)
    phone.frames(300)
    assert asks(phone.presses("1#")) == 0

    commands = phone.wait(1.0)

    assert notes(commands, "fence_late")
    assert asks(commands) == 1


def test_a_response_requested_before_the_model_is_ready_comes_later() -> None:
    """A request before the model is ready is not forgotten."""
    phone = Phone()
    phone.start()
    assert to_model(phone.ask()) == []

    assert asks(phone.ready()) == 1
    phone.answers(20)
    assert asks(phone.ready()) == 0


def test_the_greeting_has_an_event_id_of_its_own() -> None:
    """An error about the greeting is not taken for a refused response."""
    phone = Phone(greeting="Say hello.")
    phone.start()

    say, create = to_model(phone.ready())

    assert create["event_id"] == "bridge_answer"
    assert say["event_id"] not in (None, create["event_id"])


# --- when the server will not respond by itself ---


def test_a_dropped_turn_is_not_waited_for() -> None:
    """The server will not respond to it, so a response that is owed is requested at
    once."""
    phone = Phone().talking()
    phone.barges_in()
    phone.falls_silent()
    assert asks(phone.ask()) == 0

    assert asks(phone.cleared()) == 1


def test_a_dropped_turn_is_over() -> None:
    """A caller whose audio was dropped does not count as speaking."""
    phone = Phone().talking()
    phone.barges_in()
    phone.cleared()

    assert asks(phone.ask()) == 1


def test_a_committed_turn_is_over() -> None:
    """After an application ends the turn itself, the caller does not count as
    speaking."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.barges_in()
    phone.committed()

    assert heard(phone.when_heard(1)) == [(1, True)]
    phone.answers(20)
    phone.frames(40)
    assert said_to_model(phone.frames(2100)) != []
    assert notes(stays_quiet(phone, QUIET_MS + 500), "turn_stuck") == []


def test_turning_detection_off_ends_the_open_turn() -> None:
    """If turn detection is switched off in mid-sentence, no event tells the end: the
    caller must not count as speaking for ever."""
    phone = Phone().talking()
    phone.barges_in()
    phone.ready({"audio": {"input": {"turn_detection": None}}})

    assert asks(phone.ask()) == 1


def test_a_session_update_without_detection_keeps_the_open_turn() -> None:
    """A change of the voice does not end the caller's turn."""
    phone = Phone().talking()
    phone.barges_in()
    phone.ready({"audio": {"output": {}}})

    assert asks(phone.ask()) == 0


UNANSWERED_MS = int(1000 * UNANSWERED_SECONDS)


@pytest.mark.parametrize("meanwhile", ["nothing", "an error"])
def test_a_turn_that_the_server_does_not_answer(meanwhile: str) -> None:
    """The response is asked for within seconds, once. The agent is not told that the
    caller, who waits for it, is silent."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.speaks(400)
    phone.writes("Hello?")
    if meanwhile == "an error":
        assert asks(phone.refused("server_error", None)) == 0

    assert asks(phone.frames(UNANSWERED_MS - 100)) == 0
    commands = phone.frames(200)

    assert (asks(commands), bool(notes(commands, "turn_unanswered"))) == (1, True)
    assert asks(phone.answers(200) + phone.frames(1000)) == 0
    assert notes(phone.log, "caller_silent") == []


def test_a_result_that_waits_for_the_servers_response_is_asked_for_with_it() -> None:
    """A tool ended after the turn: one response answers both."""
    phone = Phone().talking()
    phone.speaks(400)
    assert asks(phone.ask()) == 0

    assert asks(phone.frames(UNANSWERED_MS + 100)) == 1
    assert asks(phone.answers(200) + phone.frames(1000)) == 0


@pytest.mark.parametrize("why", ["the caller speaks", "user code asks"])
def test_a_response_soon_after_an_unanswered_turn_is_heard(why: str) -> None:
    """It is none to that turn, also where the caller's speech does not interrupt."""
    turns = {"create_response": True, "interrupt_response": False}
    phone = Phone()
    phone.start()
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.speaks(400)
    assert asks(phone.frames(UNANSWERED_MS + 100)) == 1
    phone.answers(200)

    if why == "the caller speaks":
        phone.speaks(400, "u2")
    else:
        phone.sends("response.create", response={"instructions": "Say more."})

    assert cancels(phone.created("r2")) == []
    assert events(phone.says(200, "i2", "r2")) != []


def test_a_turn_without_words_needs_no_response() -> None:
    """After noise that was no speech the agent asks whether the caller is there,
    instead of waiting for a response that never comes."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.speaks(400)
    phone.writes(" ")

    assert asks(phone.frames(int(1000 * WORDLESS_SECONDS) + 2900)) == 0
    commands = phone.frames(200)

    assert notes(commands, "caller_silent")
    assert asks(commands) == 1


def interrupted_by_noise(phone: Phone, answer: int = 1) -> None:
    """The agent is stopped after one second; what stopped it ends."""
    phone.answers(3000, f"i{answer}", f"r{answer}", words="One two three.")
    phone.frames(1000)
    phone.barges_in()
    phone.frames(100)
    phone.falls_silent()


@pytest.mark.parametrize("how", ["without words", "dropped"])
def test_the_agent_goes_on_after_noise(how: str) -> None:
    """A cough stopped the agent: the caller hears the rest, from where it was cut."""
    phone = Phone().talking()
    interrupted_by_noise(phone)

    if how == "dropped":
        commands = phone.frames(500) + phone.cleared()
    else:
        phone.committed()
        phone.writes("")
        assert asks(phone.frames(int(1000 * WORDLESS_SECONDS) - 100)) == 0
        commands = phone.frames(200)

    assert said_to_model(commands) == [("system", RESUME)]
    assert (asks(commands), bool(notes(commands, "resumed"))) == (1, True)
    assert [verb for verb, _, _ in told(phone.log)] == ["truncate"]
    assert asks(phone.answers(200, "i2", "r2") + phone.frames(4000)) == 0


@pytest.mark.parametrize("meanwhile", ["noise", "words", "an answer"])
def test_the_agent_does_not_go_on_for_ever(meanwhile: str) -> None:
    """On a line that is noisy all the time, the agent stops until the caller speaks."""
    phone = Phone().talking()
    for answer in range(MAX_RESUMES):
        interrupted_by_noise(phone, answer)
        assert asks(phone.frames(500) + phone.cleared()) == 1
    if meanwhile != "noise":
        phone.answers(200, "i8", "r8")
        phone.speaks(400, "u2")
    if meanwhile == "words":
        phone.writes("Go on.", "u2")
    interrupted_by_noise(phone, 9)

    goes_on = 0 if meanwhile == "noise" else 1
    assert asks(phone.frames(500) + phone.cleared()) == goes_on


def test_a_server_that_responds_to_noise_is_heard() -> None:
    """The agent does not go on in addition."""
    phone = Phone().talking()
    interrupted_by_noise(phone)
    phone.committed()
    phone.writes("")
    phone.answers(200, "i2", "r2")

    assert asks(phone.frames(5000) + phone.cleared()) == 0


def test_noise_that_stops_nothing_makes_nobody_speak() -> None:
    """The agent had said everything."""
    phone = Phone().talking()
    phone.speaks(100)

    assert asks(phone.cleared() + phone.frames(5000)) == 0


@pytest.mark.parametrize("responds", [True, False])
def test_the_agent_goes_on_only_where_it_may(responds: bool) -> None:
    """A route may switch it off, and user code that asks for each response itself
    decides itself."""
    turns = {"create_response": responds, "interrupt_response": True}
    phone = Phone(resumes_after_noise=not responds)
    phone.start()
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    interrupted_by_noise(phone)

    assert asks(phone.cleared() + phone.frames(5000)) == 0


def test_the_servers_own_response_comes_just_before_ours() -> None:
    """Ours is refused then: the caller is answered once."""
    phone = Phone().talking()
    phone.speaks(400)
    assert asks(phone.frames(UNANSWERED_MS + 100)) == 1

    assert cancels(phone.created()) == []
    commands = phone.refused(BUSY, "bridge_answer") + phone.says(200) + phone.done()

    assert events(commands) != []
    assert asks(commands + phone.frames(1000)) == 0


def test_the_servers_own_response_is_refused_because_of_ours() -> None:
    """The server wants to respond after all: the caller is answered once."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.frames(UNANSWERED_MS + 100)
    phone.created()

    commands = phone.refused(BUSY, None) + phone.says(200) + phone.done()

    assert asks(commands + phone.frames(1000)) == 0


@pytest.mark.parametrize("ended", [False, True])
def test_a_server_that_begins_both_responses(ended: bool) -> None:
    """The second answer to the same turn is cancelled, and not heard."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.frames(UNANSWERED_MS + 100)
    if ended:
        phone.answers(200)
    else:
        phone.created()

    assert cancels(phone.created("r2")) == ["r2"]
    assert events(phone.says(200, "i2", "r2")) == []
    assert asks(phone.done("r2", "cancelled") + phone.frames(500)) == 0
    phone.speaks(400, "u2")
    assert cancels(phone.created("r3")) == []


def test_the_servers_own_response_takes_the_place_of_one_that_is_retried() -> None:
    """Ours failed, and waits; the server's own comes: the caller is answered once."""
    phone = Phone().talking()
    phone.speaks(400)
    phone.frames(UNANSWERED_MS + 100)
    error = {"type": "x", "code": "x", "message": "Please try again in 5s."}
    assert asks(phone.model("error", error=error | {"event_id": "bridge_answer"})) == 0

    assert cancels(phone.created()) == []
    assert events(phone.says(200)) != []
    assert asks(phone.done() + phone.frames(8000)) == 0


# --- a turn that the server does not end ---

QUIET = payload(20, b"\xfa")  # the noise of a line
QUIET_MS = int(1000 * QUIET_SECONDS)


def stays_quiet(phone: Phone, ms: int) -> list[Command]:
    """The phone sends frames in which nobody speaks."""
    commands = []
    for _ in range(ms // 20):
        phone.now += 0.02
        commands += phone.echoes() + phone.frame(payload=QUIET) + phone.tick()
    return commands


def test_a_turn_that_the_server_does_not_end() -> None:
    """The caller has stopped speaking, and the server has not noticed: the turn is
    committed, and answered once. The result of a tool is part of that."""
    phone = Phone(silent_seconds=3.0).talking()
    phone.barges_in()
    phone.frames(4000)
    assert asks(stays_quiet(phone, QUIET_MS - 200) + phone.ask()) == 0

    commands = stays_quiet(phone, 900)

    assert types_to_model(commands) == ["input_audio_buffer.commit", "response.create"]
    assert notes(commands, "turn_stuck")
    phone.committed()
    assert asks(phone.answers(200) + stays_quiet(phone, 2000)) == 0
    assert notes(phone.log, "caller_silent") == []
    assert asks(phone.ask()) == 1, "the caller does not count as speaking"


def test_a_caller_who_speaks_is_not_cut_off() -> None:
    """A long story with pauses for breath is one turn."""
    phone = Phone().talking()
    phone.barges_in()
    for _ in range(8):
        phone.frames(3000)
        stays_quiet(phone, QUIET_MS - 200)

    assert notes(phone.log, "turn_stuck") == []


def test_a_turn_has_a_longest_time() -> None:
    """With a loud background the server may hear speech for ever."""
    phone = Phone().talking()
    phone.barges_in()

    assert asks(phone.frames(int(1000 * LONGEST_TURN_SECONDS) - 500)) == 0
    assert asks(phone.frames(1000)) == 1


@pytest.mark.parametrize(
    ("detection", "seconds"),
    [
        ({"type": "server_vad", "silence_duration_ms": 3000}, 5.0),
        ({"type": "semantic_vad"}, 4.5),
        ({"type": "semantic_vad", "eagerness": "low"}, 8.5),
        ({"type": "server_vad", "silence_duration_ms": "x"}, 2.5),
    ],
)
def test_a_server_that_is_to_wait_longer_is_given_longer(
    detection: dict[str, Any], seconds: float
) -> None:
    """A pause that the session's settings allow does not end the turn."""
    phone = Phone()
    phone.start()
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    phone.barges_in()
    phone.frames(1000)

    assert asks(stays_quiet(phone, int(1000 * seconds) - 100)) == 0
    assert asks(stays_quiet(phone, 700)) == 1


@pytest.mark.parametrize("eagerness", ["auto", "low"])
def test_a_quiet_caller_hears_a_tone_before_a_long_wait_is_over(eagerness: str) -> None:
    """The line is not silent for more than four seconds; one tone in each turn."""
    phone = Phone()
    phone.start()
    detection = {"type": "semantic_vad", "eagerness": eagerness}
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    for item in ("u1", "u2"):
        phone.barges_in()
        phone.frames(1000)

        assert events(stays_quiet(phone, 2900)) == []
        assert events(stays_quiet(phone, 700)) != []
        assert events(stays_quiet(phone, 700)) == []
        phone.falls_silent()
        phone.committed(item)


def test_a_route_without_a_waiting_sound_has_no_tone_in_a_long_turn() -> None:
    """It is one setting for all tones of a caller who waits."""
    phone = Phone(waiting_sound=None)
    phone.start()
    detection = {"type": "semantic_vad", "eagerness": "low"}
    phone.ready({"audio": {"input": {"turn_detection": detection}}})
    phone.barges_in()
    phone.frames(1000)

    assert events(stays_quiet(phone, 6000)) == []


def goes_on(phone: Phone) -> None:
    """The server did not end a turn, the bridge did, and the caller speaks again: for
    the server, it is still the same turn."""
    phone.barges_in()
    phone.frames(1000)
    assert asks(stays_quiet(phone, QUIET_MS + 500)) == 1
    phone.committed("u1")
    phone.answers(200)
    assert asks(stays_quiet(phone, 1500)) == 0
    phone.frames(800)


@pytest.mark.parametrize("how", ["responds", "is refused", "does not respond"])
def test_a_caller_who_goes_on_after_a_stuck_turn_is_answered(how: str) -> None:
    """The server ends the turn now: its response is none to the part before."""
    phone = Phone().talking()
    goes_on(phone)
    if how == "is refused":
        phone.ask()
        phone.created("r2")

    phone.falls_silent()
    phone.committed("u2")

    if how == "responds":
        assert cancels(phone.created("r2")) == []
        assert events(phone.says(200, "i2", "r2")) != []
    elif how == "is refused":
        phone.refused(BUSY, None)
        phone.says(200, "i2", "r2")
        assert asks(phone.done("r2")) == 1
    else:
        assert asks(phone.frames(UNANSWERED_MS + 100)) == 1


@pytest.mark.parametrize("answering", [False, True])
def test_a_caller_who_goes_on_in_a_turn_that_never_ends_is_answered(
    answering: bool,
) -> None:
    """No event comes any more: the bridge hears the caller by itself, and does not say
    that they are silent. The response to the part before may still be generated."""
    phone = Phone(silent_seconds=3.0).talking()
    goes_on(phone)
    phone.frames(3000)
    if answering:
        phone.ask()
        phone.created("r2")

    commands = stays_quiet(phone, QUIET_MS + 900)

    assert "input_audio_buffer.commit" in types_to_model(commands)
    assert asks(commands + (phone.done("r2") if answering else [])) == 1
    assert notes(phone.log, "caller_silent") == []


def test_a_turn_that_the_server_ends_late_has_one_answer() -> None:
    """The caller has not gone on: the server's own response would be the second."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(1000)
    stays_quiet(phone, QUIET_MS + 500)
    phone.committed("u1")
    phone.answers(200)
    stays_quiet(phone, 1000)

    phone.falls_silent()
    phone.committed("u2")

    assert cancels(phone.created("r2")) == ["r2"]


def test_a_turn_that_both_sides_end_at_once_has_one_answer() -> None:
    """The server ends it before it has read the commit of the bridge."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(1000)
    assert asks(stays_quiet(phone, QUIET_MS + 500)) == 1

    phone.falls_silent()
    phone.committed("u1")

    phone.created()
    assert asks(phone.refused(BUSY, None) + phone.answers(200)) == 0


def test_a_result_does_not_wait_for_the_end_of_a_noise() -> None:
    """The server hears speech all the time: the agent speaks of the result."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(3000)
    assert asks(phone.ask()) == 0

    waits = phone.frames(int(1000 * LONGEST_WAIT_SECONDS) - 500)
    assert (asks(waits), events(waits) != []) == (0, True), "a tone"
    assert asks(phone.frames(1100)) == 1


def test_a_turn_of_which_too_little_is_known_is_not_ended() -> None:
    """No frames come: what has not arrived may be speech."""
    phone = Phone().talking()
    phone.barges_in()

    assert notes(phone.wait(QUIET_MS / 1000 + 0.6), "turn_stuck") == []
    assert phone.talk.deadline is not None


def test_a_turn_whose_frames_stop_is_ended() -> None:
    """The bridge fills the gap with silence, up to its limit, and looks at the turn
    again at its own time."""
    phone = Phone().talking()
    phone.barges_in()
    commands = []
    for _ in range(800):
        commands += phone.wait(0.1)

    assert len(notes(commands, "turn_stuck")) == 1


def test_user_code_that_responds_itself_is_not_asked_for() -> None:
    """The turn is ended; the response is user code's."""
    phone = Phone()
    phone.start()
    turns = {"create_response": False}
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.barges_in()

    commands = stays_quiet(phone, QUIET_MS + 900)

    assert types_to_model(commands) == ["input_audio_buffer.commit"]


def test_a_stuck_turn_is_left_to_the_next_session() -> None:
    """Nothing is committed while there is no session."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(100)
    phone.loses_model()

    assert types_to_model(stays_quiet(phone, QUIET_MS + 900)) == []


# --- a response that is stopped before it begins ---


def test_a_response_stopped_before_it_begins_is_cancelled() -> None:
    """It makes no sound, and the model is told to cancel it."""
    phone = Phone().talking()
    phone.ask()
    phone.interrupt()

    assert cancels(phone.created()) == ["r1"]
    assert events(phone.says(300)) == []
    phone.done(status="cancelled")
    assert cancels(phone.created("r2")) == []
    assert events(phone.says(300, item="i2", response="r2")) != []


def test_keys_pressed_before_a_requested_response_begins_are_answered_once() -> None:
    """The old response is cancelled when it begins; the response to the keys
    follows."""
    phone = Phone().talking()
    phone.ask()
    assert asks(phone.presses("1#")) == 0

    assert cancels(phone.created()) == ["r1"]
    assert asks(phone.done(status="cancelled")) == 1
    assert cancels(phone.answers(20, "i2", "r2")) == []
    assert asks(phone.frames(500)) == 0


def test_speech_before_a_requested_response_begins_is_answered() -> None:
    """A response that begins after the caller's turn is the response to it, and is not
    cancelled."""
    phone = Phone().talking()
    phone.ask()
    phone.barges_in()
    phone.falls_silent()

    assert cancels(phone.created()) == []
    assert events(phone.says(300)) != []


def test_a_guardrail_of_one_response_does_not_stop_the_next() -> None:
    """A response that is already requested did not break the rule."""
    phone = Phone().talking()
    phone.answers(1000)
    phone.ask()
    phone.interrupt("guardrail", "r1")

    assert cancels(phone.created("r2")) == []


# --- refusals ---


@pytest.mark.parametrize("event_id", ["bridge_answer", None])
def test_a_response_refused_because_another_is_active_is_requested_after_it(
    event_id: str | None,
) -> None:
    """Whether the active response is ours or the server's own: the caller's words are
    answered."""
    phone = Phone().talking()
    phone.created()

    assert asks(phone.refused(BUSY, event_id)) == 0
    assert asks(phone.done()) == 1


def test_a_refused_response_of_user_code_is_not_repeated() -> None:
    """User code that requests a response by itself handles the refusal by itself."""
    phone = Phone().talking()
    phone.created()
    phone.refused(BUSY, "event_of_theirs")

    assert asks(phone.done()) == 0


def test_a_second_response_is_requested_after_the_first_was_refused() -> None:
    """Two were wanted and the first was refused: the second is requested at once."""
    phone = Phone().talking()
    phone.ask()
    assert asks(phone.ask()) == 0

    assert asks(phone.refused("unsupported_content_type", "bridge_answer")) == 1


# --- several tools in one response ---


def calls_two_tools(phone: Phone) -> None:
    """One response calls two tools, and has ended."""
    phone.created()
    phone.calls_tool("c1")
    phone.calls_tool("c2")
    phone.done()


@pytest.mark.parametrize("shown", [True, False])
def test_tools_that_were_called_together_are_answered_together(shown: bool) -> None:
    """The caller hears one response about both results, not two."""
    phone = Phone().talking()
    calls_two_tools(phone)

    first = phone.tool_ends("c1")
    if shown:
        phone.shows(first)
    assert asks(first + phone.frames(1000)) == 0
    assert asks(phone.tool_ends("c2")) == 1
    assert asks(phone.answers(20, "i2", "r2") + phone.frames(5000)) == 0


def test_a_slow_tool_does_not_keep_the_result_of_the_other() -> None:
    """The agent speaks of what it has, and of the rest when it comes."""
    phone = Phone().talking()
    calls_two_tools(phone)
    phone.tool_ends("c1")

    assert asks(phone.frames(int(1000 * RESULTS_SECONDS) - 100)) == 0
    assert asks(phone.frames(200)) == 1
    phone.answers(20, "i2", "r2")
    phone.frames(5000)
    assert asks(phone.tool_ends("c2")) == 1


def test_the_time_of_a_slow_tool_begins_with_the_first_result() -> None:
    """A second result does not let the caller wait longer for the third."""
    phone = Phone().talking()
    phone.created()
    for call in ("c1", "c2", "c3"):
        phone.calls_tool(call)
    phone.done()
    phone.tool_ends("c1")
    assert asks(phone.frames(int(1000 * RESULTS_SECONDS) - 500)) == 0

    phone.tool_ends("c2")

    assert asks(phone.frames(400)) == 0
    assert asks(phone.frames(200)) == 1


def test_a_tool_of_an_earlier_response_is_not_waited_for() -> None:
    """A tool that runs in the background for a minute delays no other."""
    phone = Phone().talking()
    calls_two_tools(phone)
    phone.created("r2")
    phone.calls_tool("c3", response="r2")
    phone.calls_tool("c4", response="r2")
    phone.done("r2")

    phone.tool_ends("c3")
    assert asks(phone.tool_ends("c4")) == 1


def test_a_message_is_not_held_back_by_tools() -> None:
    """Keys that the caller presses are answered while both tools run."""
    phone = Phone().talking()
    calls_two_tools(phone)

    assert asks(phone.presses("1#")) == 1


def test_the_server_answers_the_caller_while_results_are_awaited() -> None:
    """The result is part of that answer: no other is requested for it."""
    phone = Phone().talking()
    calls_two_tools(phone)
    phone.tool_ends("c1")
    phone.speaks(400)
    phone.answers(20, "i2", "r2")

    assert asks(phone.frames(5000)) == 0
    assert asks(phone.tool_ends("c2")) == 1


# --- a tool's output that the server refuses ---


def refused_output(phone: Phone, commands: list[Command]) -> list[Command]:
    """The server refuses the item that these commands have sent."""
    (sent,) = (it for it in to_model(commands) if "item" in it)
    return phone.refused("string_above_max_length", sent["event_id"])


def calls_one_tool(phone: Phone) -> None:
    phone.created()
    phone.calls_tool("c1")
    phone.done()


def test_a_refused_output_is_told_in_a_message() -> None:
    """The answer that was asked for before the refusal does not know it, and is not
    heard; the next one does."""
    phone = Phone().talking()
    calls_one_tool(phone)
    sent = phone.tool_ends("c1", "It is \x0042.\n")
    assert asks(sent) == 1

    retold = refused_output(phone, sent)

    told_text = REFUSED_OUTPUT.format(name="look_up", output="It is 42.\n")
    assert (asks(retold), said_to_model(retold)) == (0, [("system", told_text)])
    assert cancels(phone.created("r2")) == ["r2"]
    assert asks(phone.done("r2", "cancelled")) == 1
    assert cancels(phone.answers(20, "i3", "r3")) == []
    assert asks(phone.frames(5000)) == 0


def test_a_long_refused_output_is_cut() -> None:
    """Its length may be the reason."""
    phone = Phone().talking()
    calls_one_tool(phone)

    retold = refused_output(phone, phone.tool_ends("c1", "x" * 50_000))

    ((_, text),) = said_to_model(retold)
    assert text.endswith("x" + CUT_RESULT) and len(text) < MAX_RETOLD_CHARS + 500


def test_a_refused_output_keeps_no_other_result_waiting() -> None:
    """The second of two results was refused: one answer speaks of both."""
    phone = Phone().talking()
    calls_two_tools(phone)
    sent = phone.tool_ends("c1")
    assert asks(sent) == 0

    assert asks(refused_output(phone, sent)) == 0
    assert asks(phone.tool_ends("c2")) == 1
    assert asks(phone.answers(20, "i2", "r2") + phone.frames(5000)) == 0


def test_a_refused_output_that_needs_no_answer_gets_none() -> None:
    """A tool's result for later is told to the model, and nothing is asked for. The
    call may have been forgotten since."""
    phone = Phone().talking()
    item = {"type": "function_call_output", "call_id": "c9", "output": "42"}
    sent = phone.sends("conversation.item.create", item=item)

    retold = refused_output(phone, sent)

    told_text = REFUSED_OUTPUT.format(name="", output="42")
    assert (asks(retold), said_to_model(retold)) == (0, [("system", told_text)])
    assert asks(phone.frames(3000)) == 0


# --- responses that fail ---


def test_an_incomplete_response_without_audio_has_failed() -> None:
    """`incomplete` without audio is silence to the caller: the response is requested
    again."""
    phone = Phone().talking()
    phone.created()
    commands = phone.done(status="incomplete")
    assert notes(commands, "answer_failed")
    assert asks(commands) == 1


def test_an_incomplete_response_with_audio_has_not_failed() -> None:
    """The caller heard a part of it, so it is not repeated."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)
    commands = phone.done(status="incomplete")

    assert notes(commands, "answer_failed") == []
    assert asks(commands) == 0


def breaks_off(
    phone: Phone,
    why: str = "max_output_tokens",
    response: str = "r1",
    begun: bool = False,
) -> list[Command]:
    """A response that the server ends in the middle."""
    if not begun:
        phone.created(response)
    phone.says(300, f"i{response}", response)
    details = {"type": "incomplete", "reason": why}
    head = {"id": response, "status": "incomplete", "status_details": details}
    return phone.model("response.done", response=head)


@pytest.mark.parametrize("why", sorted(UNFINISHED))
def test_an_answer_that_breaks_off_is_continued(why: str) -> None:
    """The agent goes on where the tokens ended, or says something else where a filter
    has stopped it; not for ever."""
    phone = Phone(greeting="Say hi.").talking()

    commands = breaks_off(phone, why)

    assert said_to_model(commands) == [("system", UNFINISHED[why])]
    types = [it["type"] for it in to_model(commands)]
    assert types == ["conversation.item.create", "response.create"]
    assert notes(commands, "answer_incomplete")[0].data == {"why": why}
    assert asks(breaks_off(phone, why, "r2")) == 1
    assert asks(breaks_off(phone, why, "r3")) == 0


def test_an_answer_that_breaks_off_for_another_reason_is_only_noted() -> None:
    """What to tell the agent is not known."""
    phone = Phone(greeting="Say hi.").talking()

    commands = breaks_off(phone, "weather")

    assert (asks(commands), said_to_model(commands)) == (0, [])
    assert notes(commands, "answer_incomplete")[0].data == {"why": "weather"}


def test_a_goodbye_that_breaks_off_ends_the_call() -> None:
    """The agent has hung up."""
    phone = Phone(greeting="Say hi.").talking()
    phone.when_heard(1, HANG_UP)

    assert asks(breaks_off(phone)) == 0
    assert ends(phone.frames(1000)) == [HANG_UP]


def test_an_answer_that_breaks_off_behind_a_tool_call() -> None:
    """The result of the tool leads to the next response."""
    phone = Phone(greeting="Say hi.").talking()
    phone.created()
    phone.calls_tool("c1")

    assert asks(breaks_off(phone, begun=True)) == 0


@pytest.mark.parametrize("status", ["failed", "incomplete"])
def test_an_answer_that_fails_behind_a_tool_call(status: str) -> None:
    """The tool runs, so the caller hears one answer, which knows its result."""
    phone = Phone().talking()
    phone.created()
    phone.calls_tool("c1")

    assert asks(phone.done(status=status) + phone.frames(1000)) == 0
    assert asks(phone.tool_ends("c1")) == 1


def test_an_answer_that_fails_within_a_tool_call_is_requested_again() -> None:
    """Its tool never runs."""
    phone = Phone().talking()
    phone.created()
    phone.begins_call("c1")

    assert asks(phone.done(status="failed")) == 1


def test_audio_resets_the_count_of_failures() -> None:
    """Two failures with an audible response between them do not end the call."""
    phone = Phone().talking()
    phone.created()
    phone.done(status="failed")
    phone.created("r2")
    phone.says(300, response="r2")
    phone.done("r2", "cancelled")
    phone.created("r3")

    assert ends(phone.done("r3", "failed")) == []


# --- responses that do not come ---


def test_a_response_that_never_begins_is_requested_once_more() -> None:
    """No caller sits in silence for ever: one other session is tried, then the call
    ends."""
    phone = Phone().talking()
    phone.ask()
    assert notes(phone.frames(LATE_MS - 100), "answer_late") == []

    late = phone.frames(200)
    assert notes(late, "answer_late")
    assert dials(late) == [(0.0, False)]
    assert asks(late) == 0, "of a session that does not answer"
    assert asks(phone.model_back()) == 1
    assert ends(phone.frames(LATE_MS - 100)) == []
    assert ends(phone.frames(200)) == [("model", "failed")]


def test_a_response_that_stalls_is_continued_in_another_session() -> None:
    """What was sent is heard and not repeated; what arrives late is not heard."""
    phone = Phone().talking()
    phone.created()
    phone.item_added("i1", "assistant")
    phone.words("One two")
    phone.says(400)
    late = phone.frames(LATE_MS + 100)

    assert told(late) == []
    commands = phone.model_back()
    assert given(commands)[0] == ("i1", "assistant", "One two")
    assert said_to_model(commands)[-1] == ("system", BROKEN_OFF)
    assert asks(commands) == 1
    assert events(phone.says(300)) == []


def test_a_response_that_makes_progress_is_not_late() -> None:
    """A long response may take its time, as long as parts of it arrive."""
    phone = Phone().talking()
    phone.created()
    for n in range(4):
        phone.frames(LATE_MS - 2000)
        item = {"id": f"i{n}", "type": "message"}
        phone.model("response.output_item.added", response_id="r1", item=item)

    assert notes(phone.log, "answer_late") == []


def test_the_time_of_a_hosted_tool_does_not_make_a_response_late() -> None:
    """A slow tool of the model's own server is waited for; then the response must go
    on."""
    phone = Phone().talking()
    phone.created()
    phone.busy(+1)
    phone.frames(2 * LATE_MS)
    phone.busy(-1)

    assert notes(phone.frames(LATE_MS - 100), "answer_late") == []
    assert notes(phone.frames(200), "answer_late") != []


def test_a_response_owed_behind_a_cut_one_that_never_ends_is_requested_once() -> None:
    """A model that does not confirm a cancel costs the caller one wait."""
    phone = Phone().talking()
    phone.created()
    phone.says(300)
    phone.interrupt()
    phone.frames(100)
    assert asks(phone.ask()) == 0

    late = phone.frames(LATE_MS + 100)

    assert (asks(late), cancels(late)) == (0, [])
    assert asks(phone.model_back()) == 1


def test_each_response_has_its_own_time_limit() -> None:
    """The time limit starts at the request, not with the response before."""
    phone = Phone().talking()
    phone.created()
    phone.says(100)
    phone.ask()
    phone.frames(LATE_MS - 1000)
    assert asks(phone.done()) == 1

    assert notes(phone.frames(LATE_MS - 1000), "answer_late") == []


def test_a_response_that_the_server_owes_is_requested_from_another_session() -> None:
    """A server that heard the caller and never responds is replaced; the next session
    gets what they said."""
    phone = Phone().talking()
    phone.barges_in()
    phone.frames(100)
    phone.falls_silent()
    phone.committed()
    assert asks(phone.ask()) == 0

    assert asks(phone.frames(UNANSWERED_MS + 100)) == 1
    late = phone.frames(int(1000 * IGNORED_SECONDS))

    assert (dials(late), asks(late)) == ([(0.0, False)], 0)
    commands = phone.model_back()
    assert [role for _, role, _ in given(commands)] == ["user"]
    assert asks(commands) == 1


def test_a_response_is_given_up_once_while_the_caller_speaks() -> None:
    """A response given up while the caller speaks is not given up again at each
    tick."""
    phone = Phone()
    phone.start()
    turns = {"interrupt_response": False}
    phone.ready({"audio": {"input": {"turn_detection": turns}}})
    phone.created()
    phone.ask()
    phone.barges_in()
    commands = phone.frames(LATE_MS + 100)

    assert len(notes(commands, "answer_late")) == 1
    assert dials(commands) == [(0.0, False)]
    assert phone.talk.deadline is not None
    assert phone.talk.deadline > phone.now
    assert asks(phone.model_back()) == 1


def test_no_response_is_late_while_there_is_no_session() -> None:
    """A model that is away is not taken for one that does not respond."""
    phone = Phone().talking()
    phone.loses_model()
    phone.tell("Say this.", "system")

    phone.frames(int(1000 * LATE_SECONDS) + 4000)
    assert notes(phone.log, "answer_late") == []
    assert asks(phone.model_back()) == 1


def test_a_call_that_hangs_up_gets_no_second_try() -> None:
    """A goodbye that stalls ends the call at its first time limit."""
    phone = Phone().talking()
    phone.created()
    phone.frames(1000)
    phone.when_heard(1, then=HANG_UP)

    commands = phone.frames(int(1000 * ANSWER_SECONDS))

    assert asks(commands) == 0
    assert heard(commands) == [(1, True)]
    assert ends(commands) == [HANG_UP]


def test_a_hang_up_does_not_wait_for_an_unconfirmed_cancel() -> None:
    """The cancel is not repeated; the response that is owed gets one chance."""
    phone = Phone().talking()
    phone.created()
    phone.interrupt()
    phone.ask()
    phone.when_heard(1, then=HANG_UP)

    commands = phone.frames(LATE_MS + 100)

    assert (cancels(commands), asks(commands), dials(commands)) == ([], 1, [])
    assert ends(phone.frames(LATE_MS + 100)) == [HANG_UP]


# --- waits ---


def test_a_wait_that_was_given_up_does_nothing() -> None:
    """A tool that ran into its time limit does not hang up a minute later."""
    phone = Phone().talking()
    phone.answers(500)
    phone.when_heard(1, then=HANG_UP)
    phone.when_heard(2)

    assert phone.gives_up(1) == phone.gives_up(9) == []
    commands = phone.frames(1000)
    assert heard(commands) == [(2, True)]
    assert ends(commands) == []


def test_cleared_tones_count_as_not_heard() -> None:
    """A clear removes the tones, and the code that sent them is told so."""
    phone = Phone().talking()
    phone.answers(500)
    phone.play(500)
    phone.when_heard(1, stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == [(1, False)]


def test_an_unstoppable_hang_up_survives_cleared_tones() -> None:
    """It still ends the call after the next response."""
    phone = Phone().talking()
    phone.answers(500)
    phone.play(500)
    phone.when_heard(1, then=("agent", "message_left"), stoppable=False)
    phone.frames(100)

    assert heard(phone.barges_in()) == []


def test_no_call_ends_between_two_keys() -> None:
    """A caller who is typing is not hung up on: the keys stop the hang-up."""
    phone = Phone(key_pause_seconds=2.0).talking()
    phone.answers(300)
    phone.when_heard(1, then=HANG_UP)
    phone.frames(200)

    assert heard(phone.presses("4")) == [(1, False)]
    assert ends(phone.frames(1900)) == []
    assert asks(phone.frames(200)) == 1


def test_no_goodbye_ends_a_call_between_two_keys() -> None:
    """Keys typed during the goodbye are answered first."""
    phone = Phone(key_pause_seconds=2.0).talking()
    phone.goodbye("cost")
    phone.answers(300)
    phone.frames(200)
    phone.presses("4")

    assert ends(phone.frames(1900)) == []


def test_a_muted_caller_is_not_called_silent() -> None:
    """A caller who cannot be heard cannot answer; silence is counted once they can."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.mute(True)
    assert said_to_model(phone.frames(6000)) == []
    phone.mute(False)

    assert said_to_model(phone.frames(1900)) == []
    assert said_to_model(phone.frames(200)) != []


def test_a_call_with_a_muted_caller_ends_when_the_goodbye_was_heard() -> None:
    """The line is not kept open for a caller who cannot be heard."""
    phone = Phone().talking()
    phone.mute(True)
    phone.goodbye("cost")
    phone.answers(500)

    assert ends(phone.frames(600)) == [("bridge", "cost")]


def test_the_cost_of_earlier_streams_counts() -> None:
    """The cost limit applies to the whole call, not to its second stream alone."""
    phone = Phone(spent=0.02, cost_limit=0.01).talking()
    phone.frames(100)

    assert said_to_model(phone.log) == [("system", GOODBYES["cost"])]


def test_a_cut_response_that_fails_is_not_requested_again() -> None:
    """Nobody waits for it; the server responds to what the caller said instead."""
    phone = Phone().talking()
    phone.created()
    phone.says(2000)
    phone.barges_in()

    commands = phone.model("response.done", response={"id": "r1", "status": "failed"})

    assert not [it for it in to_model(commands) if it["type"] == "response.create"]
    assert not ends(commands)


# --- responses without a sound ---


def writes(phone: Phone, response: str = "r1", item: str = "i1") -> list[Command]:
    """The server completes a response that has text, and no audio."""
    commands = phone.created(response)
    added = {"id": item, "type": "message"}
    commands += phone.model(
        "response.output_item.added", response_id=response, item=added
    )
    commands += phone.item_added(item, "assistant")
    return commands + phone.done(response)


@pytest.mark.parametrize("kind", ["text", "nothing"])
def test_a_complete_response_without_a_sound_is_asked_for_again(kind: str) -> None:
    """The caller hears the greeting, though the model first wrote it, or sent nothing.
    The model does not believe that it said the text."""
    phone = Phone(greeting="Say hi.", silent_seconds=4.0).talking()

    if kind == "text":
        commands = writes(phone)
        assert told(commands) == [("delete", "i1", None)]
        types = [it["type"] for it in to_model(commands)]
        assert types == ["conversation.item.delete", "response.create"]
    else:
        commands = phone.created() + phone.done()
    assert asks(commands) == 1
    assert notes(commands, "answer_failed")[0].data == {"why": "silent"}
    commands = phone.frames(5000)
    assert notes(commands, "caller_silent") == [], "it is the agent who is silent"
    assert events(phone.answers(300, "i2", "r2")) != []
    assert asks(phone.frames(3000)) == 0


def test_a_turn_that_is_answered_in_writing_is_asked_for_again() -> None:
    """The server's own response has no sound either."""
    phone = Phone().talking()
    phone.speaks(500)

    assert asks(writes(phone)) == 1


def test_a_model_that_only_writes_ends_the_call() -> None:
    """The caller hears the apology within seconds."""
    phone = Phone(greeting="Say hi.").talking()
    began, commands, n = phone.now, list[Command](), 0
    while not ends(commands):
        assert phone.now < began + 10, "the caller waits in silence"
        n += 1
        commands = writes(phone, f"r{n}", f"i{n}")
        while not (asks(commands) or ends(commands)):
            commands += phone.frames(100)

    assert ends(commands) == [("model", "failed")]
    assert n == MAX_SILENT


def test_sound_begins_the_count_of_silent_responses_anew() -> None:
    """A model that writes now and then is asked again each time."""
    phone = Phone().talking()
    for n in range(5):
        phone.speaks(200, f"u{n}")
        assert asks(writes(phone, f"r{n}", f"i{n}")) == 1
        assert ends(phone.answers(20, f"s{n}", f"q{n}")) == []
        phone.frames(200)


@pytest.mark.parametrize("how", ["added", "done", "in the response"])
def test_a_response_that_calls_a_tool_needs_no_sound(how: str) -> None:
    """The result of the tool leads to the next response, whichever event shows the
    call."""
    phone = Phone(greeting="Say hi.").talking()
    phone.created()
    output = []
    if how == "added":
        phone.begins_call("c1")
    elif how == "done":
        phone.ends_call("c1")
    else:
        output = [{"type": "function_call", "call_id": "c1"}]
    head = {"id": "r1", "status": "completed", "output": output}
    commands = phone.model("response.done", response=head)

    assert (asks(commands), notes(commands, "answer_failed")) == (0, [])


def test_a_silent_response_that_user_code_requested_is_its_own() -> None:
    """User code may let the model write something that is not for the caller."""
    phone = Phone().talking()
    phone.sends("response.create", response={"conversation": "none"})

    assert asks(writes(phone)) == 0


def test_an_agent_that_hangs_up_need_not_say_more() -> None:
    """After the result of the hang-up tool the model has nothing to add."""
    phone = Phone().talking()
    phone.ask()
    phone.when_heard(1, HANG_UP)
    phone.created()

    assert ends(phone.done()) == [HANG_UP]
