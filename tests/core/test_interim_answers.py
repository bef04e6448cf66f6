"""A slow tool: the agent tells the caller who waits that there is no result yet."""

from typing import Any

import pytest

from bridge.audio import g711
from bridge.core.commands import Command
from bridge.core.interim_answers import CHECK_SECONDS, IGNORED_SECONDS, MOST
from bridge.core.rules import NO_RESULT_YET
from bridge.core.speech import INTERIM_ID
from tests.core.phone import (
    Phone,
    SipPhone,
    asks,
    ends,
    given,
    notes,
    to_model,
    told,
)

SECONDS = 7.0
MS = int(1000 * SECONDS)


def tool(phone: Phone, call: str = "c1", response: str = "r1") -> None:
    """The agent answers the caller with a call of a tool, which runs."""
    phone.speaks(400)
    phone.created(response)
    phone.calls_tool(call, response=response)
    phone.done(response)


def slow(**rules: Any) -> Phone:
    """A quiet caller waits for a tool."""
    phone = Phone(slow_tool_seconds=SECONDS, waiting_sound=None, **rules)
    phone.sound = g711.SILENCE
    phone.talking()
    tool(phone)
    return phone


def asked(**rules: Any) -> tuple[Phone, str]:
    """As `slow`; the agent was asked for an interim answer. Returns the id of its
    instruction, which the server has shown, too."""
    phone = slow(**rules)
    commands = phone.frames(MS + 100)
    assert len(interim(commands)) == 1
    phone.shows(commands)
    return phone, given(commands)[0][0]


def interim(commands: list[Command]) -> list[dict[str, Any]]:
    """The requests for interim answers."""
    return [it for it in to_model(commands) if it.get("event_id") == INTERIM_ID]


def failed(commands: list[Command]) -> list[object]:
    return [it.data["why"] for it in notes(commands, "interim_answer_failed")]


# --- when it is asked for ---


def test_a_slow_tool_is_spoken_of() -> None:
    """Once, in a response that cannot call the tool again, and with the truth."""
    phone = slow()
    assert not interim(phone.frames(MS - 100))

    commands = phone.frames(200)

    [(_, role, text)] = given(commands)
    assert (role, text) == ("system", NO_RESULT_YET.format(tools="look_up"))
    [request] = interim(commands)
    assert request["response"] == {"tool_choice": "none"}
    [note] = notes(commands, "interim_answer")
    assert note.data["seconds"] == pytest.approx(SECONDS, abs=0.05)


def test_a_tool_whose_name_is_unknown() -> None:
    """A server that does not show the call."""
    phone = slow()
    phone.busy(-1, "c1")
    phone.busy(1, "c2")

    [(_, _, text)] = given(phone.frames(MS + 100))
    assert text == NO_RESULT_YET.format(tools="a tool")


def test_the_time_begins_when_the_agent_has_spoken() -> None:
    """ "Let me look that up" is heard first."""
    phone = Phone(slow_tool_seconds=SECONDS).talking()
    phone.sound = g711.SILENCE
    phone.speaks(400)
    phone.created()
    phone.says(2000)
    phone.calls_tool("c1")
    phone.done()

    assert not interim(phone.frames(MS + 1900))
    assert interim(phone.frames(200))


def test_audio_that_comes_late_puts_it_off() -> None:
    """Key tones of the tool are a sound, too."""
    phone = slow()
    phone.frames(MS - 100)
    phone.play(1000)

    assert not interim(phone.frames(MS + 500))
    assert interim(phone.frames(700))


def test_audio_behind_the_end_of_its_response_puts_it_off() -> None:
    """Some servers end a response before its last audio."""
    phone = slow()
    phone.frames(MS - 100)
    phone.says(1000, "i9", "r9")
    assert not interim(phone.wait(0.2))

    assert not interim(phone.frames(MS + 300))
    assert interim(phone.frames(700))


def test_it_is_asked_for_again_but_not_without_end() -> None:
    """After each interim answer the same silence, three times at most."""
    phone = slow()
    count = 0
    for number in range(2 * MOST):
        count += len(interim(phone.frames(MS + 200)))
        if count == number + 1:
            phone.answers(500, f"x{number}", f"rx{number}")
            phone.frames(500)

    assert count == MOST
    phone.tool_ends("c1")
    phone.answers(500, "i2", "r2")
    phone.frames(500)
    tool(phone, "c2", "r3")
    assert interim(phone.frames(MS + 100)), "another tool"


@pytest.mark.parametrize("seconds", [None, SECONDS])
def test_no_tool_runs_or_it_is_off(seconds: float | None) -> None:
    """An answer that is slow by itself cannot be spoken of."""
    phone = Phone(slow_tool_seconds=seconds, waiting_sound=None).talking()
    phone.sound = g711.SILENCE
    if seconds is None:
        tool(phone)
    else:
        phone.speaks(400)
        phone.created()

    assert not interim(phone.frames(MS + 1500))


def test_a_tool_of_the_models_server_is_a_part_of_its_response() -> None:
    phone = Phone(slow_tool_seconds=SECONDS, waiting_sound=None).talking()
    phone.sound = g711.SILENCE
    phone.speaks(400)
    phone.created()
    phone.busy(1)

    assert not interim(phone.frames(MS + 2000))


def test_the_caller_is_not_interrupted() -> None:
    """Neither while they speak, nor before the server has answered them."""
    phone = slow()
    phone.frames(MS - 500)
    phone.barges_in()
    assert not interim(phone.frames(2000))

    phone.falls_silent()
    assert not interim(phone.frames(1000))
    phone.created("r2")
    phone.says(500, "i2", "r2")
    phone.done("r2")
    assert not interim(phone.frames(MS))
    assert interim(phone.frames(700)), "the caller is told again"


def test_a_call_that_ends_is_not_held_up() -> None:
    """A tool that hangs up waits until the agent was heard, or the call says
    goodbye."""
    phone = slow()
    phone.when_heard(1, ("agent", "hung_up"))
    assert not interim(phone.frames(MS + 100))

    phone = slow()
    phone.goodbye("cost")
    assert not interim(phone.frames(MS + 100))


def test_it_waits_for_a_fence() -> None:
    """No response is requested before the model knows what was heard."""
    phone = Phone(slow_tool_seconds=0.5, waiting_sound=None).talking()
    phone.sound = g711.SILENCE
    phone.busy(1, "c1")
    phone.answers(3000)
    phone.frames(500)
    phone.twilio.due = lambda now: []  # type: ignore[method-assign]  # no mark returns
    phone.interrupt()
    assert not interim(phone.frames(600))
    phone.frames(int(1000 * CHECK_SECONDS) + 2000)

    assert len([it for it in notes(phone.log, "interim_answer")]) == 1


# --- its end ---


def test_its_instruction_is_withdrawn() -> None:
    """The instruction does not hold any more once the result is there."""
    phone, item = asked()
    phone.created("r2")
    assert told(phone.says(800, "i2", "r2")) == []

    assert told(phone.done("r2")) == [("delete", item, None)]


def test_the_result_is_spoken_of_behind_it() -> None:
    phone, _ = asked()
    phone.created("r2")
    phone.says(800, "i2", "r2")
    assert asks(phone.tool_ends("c1")) == 0

    assert asks(phone.done("r2")) == 1


def test_a_result_that_comes_first() -> None:
    """The server has not begun the interim answer: it is not needed any more."""
    phone, item = asked()
    assert asks(phone.tool_ends("c1")) == 0

    begun = phone.created("r2")

    assert to_model(begun)[0]["type"] == "response.cancel"
    assert told(begun) == [("delete", item, None)]
    assert asks(phone.done("r2", "cancelled")) == 1
    assert not ends(phone.answers(500, "i3", "r3"))


def test_results_of_parallel_tools_wait_for_each_other_after_it() -> None:
    """The interim answer is not the response that goes on behind the calls."""
    phone = Phone(slow_tool_seconds=SECONDS, waiting_sound=None).talking()
    phone.sound = g711.SILENCE
    phone.speaks(400)
    phone.created()
    phone.calls_tool("c1")
    phone.calls_tool("c2")
    phone.done()
    phone.frames(MS + 100)
    phone.answers(500, "i2", "r2")
    phone.frames(600)

    assert asks(phone.tool_ends("c1") + phone.frames(1000)) == 0
    assert asks(phone.tool_ends("c2")) == 1


def test_the_caller_speaks_before_it_begins() -> None:
    """The server answers the caller by itself, whose turn counts."""
    phone, item = asked()
    phone.barges_in()
    phone.frames(300)
    phone.falls_silent()

    begun = phone.created("r2")

    assert told(begun) == [("delete", item, None)]
    assert not phone.talk._call.responses.is_interim("r2")


def test_the_caller_interrupts_it() -> None:
    phone, item = asked()
    phone.created("r2")
    phone.says(800, "i2", "r2")
    phone.frames(200)
    phone.barges_in()

    assert ("delete", item, None) in told(phone.done("r2", "cancelled"))
    assert not failed(phone.log)


def test_a_guardrail_stops_it() -> None:
    """It is owed to nobody."""
    phone, _ = asked()
    phone.created("r2")
    phone.says(800, "i2", "r2")
    phone.frames(200)

    assert asks(phone.interrupt("guardrail", "r2") + phone.frames(500)) == 0


# --- servers that do not do it ---


def test_a_server_that_refuses_it_is_asked_once() -> None:
    """The tone has to do, and the call goes on."""
    phone, item = asked()

    refused = phone.refused("invalid_request", INTERIM_ID)

    assert failed(refused) == ["invalid_request"]
    assert told(refused) == [("delete", item, None)]
    assert phone.refused("invalid_request", INTERIM_ID), "noted as an error"
    assert not interim(phone.frames(2 * MS))
    assert asks(phone.tool_ends("c1")) == 1


@pytest.mark.parametrize(
    "code", ["rate_limit_exceeded", "conversation_already_has_active_response"]
)
def test_an_error_that_passes(code: str) -> None:
    """It is asked for again after the same time."""
    phone, item = asked()

    refused = phone.refused(code, INTERIM_ID)

    assert failed(refused) == []
    assert told(refused) == [("delete", item, None)]
    assert asks(refused) == 0


def test_a_server_that_ignores_it() -> None:
    """The session works: it is not replaced, and the result is asked for at once."""
    phone, item = asked()

    ignored = phone.frames(int(1000 * IGNORED_SECONDS))

    assert failed(ignored) == ["ignored"]
    assert told(ignored) == [("delete", item, None)]
    assert not notes(phone.frames(2 * MS), "model_lost")
    assert asks(phone.tool_ends("c1")) == 1


def test_a_server_that_ignores_it_when_the_result_comes() -> None:
    phone, _ = asked()
    phone.tool_ends("c1")

    assert asks(phone.frames(int(1000 * IGNORED_SECONDS))) == 1


@pytest.mark.parametrize(
    ("status", "why"), [("completed", "silent"), ("failed", "failed")]
)
def test_an_interim_answer_without_sound(status: str, why: str) -> None:
    """Nothing is asked for again, and the call does not end."""
    phone, item = asked()
    phone.created("r2")

    done = phone.done("r2", status)

    assert failed(done) == [why]
    assert told(done) == [("delete", item, None)]
    assert asks(done) == 0 and not ends(done)
    assert not interim(phone.frames(2 * MS))


def test_a_rate_limit_during_it() -> None:
    phone, _ = asked()
    phone.created("r2")
    error = {"type": "x", "code": "rate_limit_exceeded", "message": "Later."}
    details = {"type": "failed", "error": error}
    head = {"id": "r2", "status": "failed", "status_details": details}

    done = phone.model("response.done", response=head)

    assert failed(done) == [] and asks(done) == 0
    assert interim(phone.frames(MS))


# --- the session, or the stream, is lost ---


@pytest.mark.parametrize("begun", [False, True])
def test_the_session_is_lost_during_it(begun: bool) -> None:
    """The next session gets neither the instruction nor a request: the tool still
    runs."""
    phone, item = asked()
    if begun:
        phone.created("r2")
        phone.says(400, "i2", "r2")
    phone.loses_model()

    back = phone.model_back()

    assert asks(back) == 0 and not interim(back)
    assert NO_RESULT_YET[:20] not in str(given(back))
    assert item not in str(to_model(back))


@pytest.mark.parametrize("begun", [False, True])
def test_the_stream_is_lost_during_it(begun: bool) -> None:
    phone, item = asked()
    if begun:
        phone.created("r2")

    lost = phone.loses_line()

    assert ("delete", item, None) in told(lost)
    if not begun:
        assert to_model(phone.created("r2")) != [], "cancelled"
    assert asks(lost + phone.done("r2", "cancelled")) == 0


def test_it_begins_and_nothing_more_comes() -> None:
    """The session is replaced, as for any response; no answer is owed."""
    phone, _ = asked()
    phone.created("r2")

    assert notes(phone.frames(9500), "answer_late")
    assert asks(phone.model_back()) == 0


# --- SIP ---


def test_a_sip_call_has_them() -> None:
    """There the caller has no tone."""
    phone = SipPhone(slow_tool_seconds=SECONDS).talking()
    phone.created()
    phone.calls_tool("c1")
    phone.done()

    assert interim(phone.wait(SECONDS))
    phone.created("r2")
    late = phone.wait(9.5)
    assert notes(late, "answer_late") and asks(late) == 0
