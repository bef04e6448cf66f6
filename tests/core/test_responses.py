"""Responses that fail are requested again: when, how often, and when the call ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core import errors
from bridge.core.commands import Command, End
from bridge.core.conversation import LATE_SECONDS
from bridge.core.endings import GOODBYE_SECONDS
from bridge.core.responses import (
    NOW,
    RATE_LIMIT_SECONDS,
    REQUESTS,
    RETRY_SECONDS,
    SPREAD,
    Request,
    RequestEvent,
    Responses,
)
from tests.core.phone import Phone, asks, cancels, ends, notes

RATE_LIMIT = "rate_limit_exceeded"


def fails(
    phone: Phone, code: str = "server_error", message: str = "", response: str = "r1"
) -> list[Command]:
    """The server begins a response and ends it as failed."""
    error = {"type": "x", "code": code, "message": message}
    details = {"type": "failed", "error": error}
    phone.created(response)
    head = {"id": response, "status": "failed", "status_details": details}
    return phone.model("response.done", response=head)


def seconds_to_retry(phone: Phone) -> float:
    """Time passes, frame by frame, until a response is requested."""
    began = phone.now
    while not asks(phone.frames(20)):
        assert phone.now < began + 60, "no response is requested"
    return phone.now - began


# --- when ---


def test_a_failed_response_is_requested_again_at_once() -> None:
    """A fault of a moment costs the caller nothing."""
    phone = Phone().talking()

    commands = fails(phone)

    assert asks(commands) == 1
    assert notes(commands, "answer_failed")[0].data == {"why": "server_error"}
    assert notes(commands, "answer_retried")[0].data == {"seconds": 0.0}


def test_a_rate_limit_is_not_reached_again_at_once() -> None:
    """A retry at once fails like the response before it: the call would end though the
    limit is refilled within seconds."""
    phone = Phone().talking()

    commands = fails(phone, RATE_LIMIT)

    assert asks(commands) == 0
    waited = seconds_to_retry(phone)
    most = RATE_LIMIT_SECONDS * (1 + SPREAD) + 0.04
    assert RATE_LIMIT_SECONDS - 0.02 <= waited <= most


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached for gpt-realtime. Please try again in 1.8s. Visit", 1.8),
        ("Please try again in 20s.", 20.0),
        ("please try again in 2166ms.", 2.166),
        ("Please try again in 166ms. Visit", 0.166),
        ("Limit 40000. Try again in 3 seconds.", 3.0),
        ("Please retry after 2s.", 2.0),
    ],
)
def test_the_server_says_when_to_retry(message: str, seconds: float) -> None:
    """The caller waits as long as the account must wait, not longer."""
    phone = Phone().talking()

    fails(phone, RATE_LIMIT, message)

    assert seconds - 0.02 <= seconds_to_retry(phone) <= seconds * (1 + SPREAD) + 0.04


def test_a_refused_request_is_retried_in_time_too() -> None:
    """The server may refuse the request itself, as it does for a greeting."""
    phone = Phone(greeting="Say hi.").talking()
    error = {
        "type": "x",
        "code": RATE_LIMIT,
        "message": "Please try again in 3s.",
        "event_id": "bridge_answer",
    }

    assert asks(phone.model("error", error=error)) == 0

    assert 2.98 <= seconds_to_retry(phone) <= 3 * (1 + SPREAD) + 0.04


def test_calls_that_reach_a_limit_together_do_not_retry_together() -> None:
    """A burst of rate limits for the whole account is not repeated by all its calls at
    one moment."""
    waits = set()
    for n in range(20):
        phone = Phone()
        phone.stream = f"MZ{n}"
        phone.start(phone.stream)
        phone.ready()
        fails(phone, RATE_LIMIT, "Please try again in 10s.")
        waits.add(round(seconds_to_retry(phone), 1))

    assert len(waits) > 5


def test_a_message_without_a_time() -> None:
    """Text of the server is not trusted."""
    assert errors.retry_after(None) is None
    assert errors.retry_after("Try later.") is None
    assert errors.retry_after("try again in 99999999s") is None
    assert errors.retry_after("x" * 3000 + "try again in 1s") is None
    assert errors.retry_after("try again in a while") is None
    assert errors.retry_after("try again in 5 sheep") is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_message_has_a_bounded_time_or_none(before: str, after: str) -> None:
    """A message cannot make the bridge fail, or wait a negative time."""
    for text in (
        before,
        f"try again in {before}",
        f"{before}try again in 2.5s {after}",
    ):
        wait = errors.retry_after(text)
        assert wait is None or 0 <= wait < 61 * 10**6


@given(st.integers(0, 59), st.floats(0.001, 59.99))
def test_the_wait_is_read_in_each_form(minutes: int, seconds: float) -> None:
    """The forms that servers use for one duration are the same wait."""
    seconds = round(seconds, 3)
    forms = {f"{minutes}m{seconds:.3f}s", f"{minutes} minutes {seconds:.3f} seconds"}
    if not minutes:
        forms |= {f"{seconds:.3f}s", f"{1000 * seconds:.0f}ms", f"{seconds:.3f} SECS"}
    for form in forms:
        wait = errors.retry_after(f"Rate limit reached. Please try again in {form}. x")
        assert wait == pytest.approx(60 * minutes + seconds)


def test_a_server_that_asks_for_no_wait_is_not_asked_in_a_loop() -> None:
    """The call would be a tight loop of requests for half a minute."""
    phone = Phone().talking()

    assert asks(fails(phone, RATE_LIMIT, "Please try again in 0s.")) == 0
    assert seconds_to_retry(phone) >= 0.1


def test_a_wait_of_minutes_ends_the_call_at_once() -> None:
    """The caller hears the apology now, not after half a minute of silence."""
    phone = Phone().talking()

    assert ends(fails(phone, RATE_LIMIT, "Please try again in 1m2.5s."))


# --- how long ---


def test_retries_end_after_a_time() -> None:
    """No caller waits in silence for ever: the call ends with the apology."""
    phone = Phone().talking()
    began = phone.now
    commands = fails(phone, RATE_LIMIT)
    n = 1
    while not ends(commands):
        seconds_to_retry(phone)
        n += 1
        commands = fails(phone, RATE_LIMIT, response=f"r{n}")

    assert ends(commands) == [("model", "failed")]
    assert RETRY_SECONDS / 2 < phone.now - began <= RETRY_SECONDS
    assert n > 3


def test_a_wait_that_no_caller_bears_ends_the_call_at_once() -> None:
    """The caller hears the apology now, not after a minute of silence."""
    phone = Phone().talking()

    assert ends(fails(phone, RATE_LIMIT, "Please try again in 59s.")) == [
        ("model", "failed")
    ]


def test_a_response_refused_for_quota_is_not_requested_again() -> None:
    """The caller hears the apology at once instead of endless silence."""
    phone = Phone().talking()

    assert ends(fails(phone, "insufficient_quota")) == [("model", "failed")]


def test_a_refused_request_that_no_retry_can_mend_ends_the_call() -> None:
    """As a response that fails for the same reason does."""
    phone = Phone().talking()
    phone.ask()

    commands = phone.refused("insufficient_quota", "bridge_answer")

    assert ends(commands) == [("model", "failed")]


def test_a_response_that_succeeds_begins_the_time_anew() -> None:
    """Two short outages in one call are two outages."""
    phone = Phone().talking()
    for n in range(8):
        fails(phone, RATE_LIMIT, "Please try again in 20s.", response=f"f{n}")
        seconds_to_retry(phone)
        commands = phone.answers(20, f"i{n}", f"r{n}")
        assert not ends(commands)
        phone.frames(200)


# --- meanwhile ---


def test_the_wait_for_a_retry_is_not_a_late_response() -> None:
    """The session is healthy: another one would reach the same limit."""
    phone = Phone().talking()
    fails(phone, RATE_LIMIT, f"Please try again in {LATE_SECONDS + 5}s.")

    commands = phone.frames(int(1000 * (LATE_SECONDS + 1)))

    assert notes(commands, "answer_late") == []
    assert ends(commands) == []


def test_a_caller_who_speaks_is_answered_by_the_server() -> None:
    """The retry is dropped: its response would be a second answer."""
    phone = Phone().talking()
    fails(phone, RATE_LIMIT, "Please try again in 5s.")

    commands = phone.speaks(400) + phone.answers(200, "i2", "r2") + phone.frames(9000)

    assert asks(commands) == 0


def test_a_request_of_user_code_does_not_shorten_the_wait() -> None:
    """A tool that ends meanwhile asks for a response: the limit is not refilled yet."""
    phone = Phone().talking()
    fails(phone, RATE_LIMIT, "Please try again in 5s.")
    phone.frames(1000)

    assert asks(phone.ask()) == 0

    assert 3.9 <= seconds_to_retry(phone) <= 5 * (1 + SPREAD) - 0.9


def test_a_retry_survives_the_loss_of_the_session() -> None:
    """The next session has the same account and the same limit."""
    phone = Phone().talking()
    fails(phone, RATE_LIMIT, "Please try again in 5s.")

    assert asks(phone.another_model()) == 0

    assert 4.9 <= seconds_to_retry(phone) <= 5 * (1 + SPREAD) + 0.04


def test_a_guardrail_keeps_a_retry() -> None:
    """A guardrail stops one response; the response that is owed to the caller comes."""
    phone = Phone().talking()
    phone.answers(5000)
    fails(phone, RATE_LIMIT, "Please try again in 2s.", response="r2")

    assert asks(phone.interrupt("guardrail", "r1")) == 0

    assert 1.9 <= seconds_to_retry(phone) <= 2 * (1 + SPREAD) + 0.04


def test_a_response_that_fails_while_the_caller_speaks() -> None:
    """The server responds at the end of the turn: another request would be a second
    answer."""
    phone = Phone().talking()
    phone.barges_in()

    commands = fails(phone)

    assert notes(commands, "answer_retried")
    assert asks(commands + phone.frames(3000)) == 0


def test_a_second_request_does_not_repeat_a_refused_one_at_once() -> None:
    """Two tools ended; the first request was refused by a rate limit."""
    phone = Phone().talking()
    phone.ask()
    phone.ask()
    error = {"type": "x", "code": RATE_LIMIT, "event_id": "bridge_answer"}

    assert asks(phone.model("error", error={**error, "message": ""})) == 0

    assert seconds_to_retry(phone) >= RATE_LIMIT_SECONDS - 0.02


@pytest.mark.parametrize("meanwhile", ["another session", "a tool"])
def test_nothing_makes_the_wait_for_a_retry_a_late_response(meanwhile: str) -> None:
    """The call does not end before the retry that the server asked for."""
    phone = Phone().talking()
    fails(phone, RATE_LIMIT, "Please try again in 20s.")
    phone.frames(500)
    if meanwhile == "a tool":
        phone.busy(1, "c1")
        phone.busy(-1, "c1")
    else:
        phone.another_model()

    began = len(phone.log)
    assert 19 <= seconds_to_retry(phone) <= 20 * (1 + SPREAD)
    assert notes(phone.log[began:], "answer_late") == []


def test_a_new_turn_of_the_caller_is_a_new_try() -> None:
    """The time that the caller speaks is no time of silence."""
    phone = Phone().talking()
    fails(phone, RATE_LIMIT, "Please try again in 20s.")
    phone.barges_in()
    phone.frames(int(1000 * RETRY_SECONDS) + 5000)
    phone.falls_silent()
    phone.committed()

    commands = fails(phone, response="r2")

    assert ends(commands) == []
    assert asks(commands) == 1


def stalls(phone: Phone, response: str) -> list[Command]:
    """The caller hears the beginning of a response that never ends."""
    phone.created(response)
    phone.says(400, f"item {response}", response)
    return phone.frames(int(1000 * LATE_SECONDS) + 200)


def test_responses_that_only_begin_end_the_call() -> None:
    """The caller would hear beginnings of responses for ever."""
    phone = Phone().talking()
    assert ends(stalls(phone, "r1")) == []
    phone.model_back()

    assert ends(stalls(phone, "r2")) == [("model", "failed")]


def test_responses_that_fail_after_their_first_audio_end_the_call() -> None:
    """The time for retries ends, though the caller hears a part of each response."""
    phone = Phone().talking()
    began, commands, n = phone.now, list[Command](), 0
    while not ends(commands):
        assert phone.now < began + RETRY_SECONDS + 10, "retries have no end"
        n += 1
        phone.created(f"r{n}")
        phone.says(400, f"i{n}", f"r{n}")
        commands = phone.done(f"r{n}", "failed") + phone.frames(2000)

    assert ends(commands) == [("model", "failed")]
    assert phone.now > began + RETRY_SECONDS - 10


def test_a_response_that_the_caller_cut_off_was_not_late() -> None:
    """They heard it. The next one that stalls gets its second try."""
    phone = Phone().talking()
    stalls(phone, "r1")
    phone.model_back()
    phone.created("r2")
    phone.says(400, "i2", "r2")
    phone.barges_in()
    phone.done("r2", "cancelled")
    phone.falls_silent()
    phone.committed()

    commands = stalls(phone, "r3")

    assert notes(commands, "answer_late")
    assert ends(commands) == []


def test_nothing_follows_the_end_of_a_call() -> None:
    """A response that fails when the time of the goodbye is over begins no tone."""
    phone = Phone(longest_seconds=1000.0).talking()
    phone.created()
    phone.goodbye("longest")
    phone.now += GOODBYE_SECONDS
    error = {"code": RATE_LIMIT, "message": "Please try again in 10s."}
    details = {"type": "failed", "error": error}
    head = {"id": "r1", "status": "failed", "status_details": details}

    commands = phone.model("response.done", response=head)

    assert isinstance(commands[-1], End)


def test_a_wait_that_ends_the_call_ends_though_no_response_comes() -> None:
    """The caller has spoken, a tool has asked for a response and hangs up: a server
    that creates none does not keep the call."""
    phone = Phone().talking()
    phone.speaks(500)
    phone.ask()
    phone.when_heard(1, ("agent", "hung_up"))

    assert ends(phone.frames(25_000)) == [("agent", "hung_up")]


def test_a_response_that_the_server_may_not_begin_is_waited_for_no_more() -> None:
    """The server's own response was refused, because the agent still spoke. The retry
    of the failed response keeps its time."""
    session = {"turn_detection": {"type": "server_vad", "interrupt_response": False}}
    phone = Phone()
    phone.start()
    phone.ready({"audio": {"input": session}})
    phone.created()
    phone.barges_in()
    phone.falls_silent()
    phone.refused("conversation_already_has_active_response", None)
    error = {"code": RATE_LIMIT, "message": "Please try again in 10s."}
    details = {"type": "failed", "error": error}
    head = {"id": "r1", "status": "failed", "status_details": details}

    assert asks(phone.model("response.done", response=head)) == 0

    assert seconds_to_retry(phone) >= 9.9


def test_a_request_that_was_stopped_is_not_repeated() -> None:
    """User code has stopped the agent: nobody waits for that response."""
    phone = Phone().talking()
    phone.ask()
    phone.interrupt()

    commands = phone.refused(RATE_LIMIT, "bridge_answer") + phone.frames(5000)

    assert asks(commands) == 0


# --- the table ---


@pytest.mark.parametrize("state", Request)
@pytest.mark.parametrize("event", RequestEvent)
def test_the_table_is_complete(state: Request, event: RequestEvent) -> None:
    """Each event has a next state, but that only one request is sent at a time."""
    sends_twice = event is RequestEvent.SEND and state is not Request.NONE

    assert (event in REQUESTS[state]) != sends_twice


def test_a_request_that_was_stopped_is_cancelled_when_it_begins() -> None:
    """As long as the caller has not spoken: then it answers the caller."""
    for spoke in (False, True):
        phone = Phone().talking()
        phone.ask()
        phone.interrupt()
        if spoke:
            phone.falls_silent()
        assert cancels(phone.created()) == ([] if spoke else ["r1"])


def test_a_response_is_requested_once() -> None:
    """Two agents at a time would speak into each other."""
    responses = Responses()
    responses.want(1.0)
    assert responses.request_at == NOW
    responses.requested(1.0)
    responses.want(1.0)
    assert responses.request_at is None
    responses.created("r1", has_stream=True, now=1.0)
    assert responses.request_at is None
    responses.done("r1")
    assert responses.request_at == NOW
