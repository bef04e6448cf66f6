"""How long a call may be silent and last, and what it may cost: rules, and what a
caller hears."""

from typing import Any

import pytest

from bridge.core.call_limits import CallLimits, cost_of
from bridge.core.commands import limit_hit, protocol_error
from bridge.core.endings import GOODBYE_SECONDS
from bridge.core.model_events import NO_USAGE
from bridge.core.rules import GOODBYES, SILENT, Prices, Rules
from bridge.core.usage import CachedTokens, InputTokens, OutputTokens, Usage
from tests.core.phone import Phone, asks, ends, heard, notes, said_to_model

PRICES = Prices(
    input_text=4.0,
    input_audio=32.0,
    input_cached=0.5,
    output_text=16.0,
    output_audio=64.0,
)


# --- a caller who says nothing ---


def test_a_silent_caller_is_asked_twice_then_the_call_ends() -> None:
    """The caller is gone: two questions, a goodbye that is played to its end, then the
    end."""
    phone = Phone(silent_seconds=5.0, silent_asks=2).talking()
    for n in (1, 2):
        assert said_to_model(phone.frames(4900)) == []
        asked = phone.frames(200)
        assert said_to_model(asked) == [("system", SILENT)]
        assert asks(asked) == 1
        assert notes(asked, "caller_silent")
        phone.answers(1000, item=f"i{n}", response=f"r{n}")
        phone.frames(1000)
    goodbye = phone.frames(5200)
    assert said_to_model(goodbye) == [("system", GOODBYES["silent"])]
    assert notes(goodbye, "goodbye")[0].data == {"why": "silent"}
    assert ends(goodbye) == []

    phone.answers(1000, item="i3", response="r3")

    assert ends(phone.frames(980)) == []
    assert ends(phone.frames(60)) == [("bridge", "silent")]


def test_a_caller_who_speaks_again_is_asked_anew() -> None:
    """One long thought does not bring the end of the call nearer."""
    phone = Phone(silent_seconds=5.0, silent_asks=1).talking()
    for n in range(3):
        assert said_to_model(phone.frames(5100)) == [("system", SILENT)]
        phone.answers(100, item=f"i{n}", response=f"r{n}")
        phone.frames(200)
        phone.barges_in()
        phone.falls_silent()
        phone.cleared()

    assert ends(phone.log) == []


def test_an_agent_that_does_not_ask_does_not_keep_the_call() -> None:
    """If a model ignores the instruction to ask, the next one follows after the same
    time."""
    phone = Phone(silent_seconds=5.0, silent_asks=1).talking()
    phone.frames(5100)
    phone.created()
    phone.done(status="cancelled")

    commands = phone.frames(5100)

    assert said_to_model(commands) == [("system", GOODBYES["silent"])]


def test_silence_is_counted_from_the_end_of_the_agents_audio() -> None:
    """A caller who listens to a long response is not silent."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.answers(4000)

    assert said_to_model(phone.frames(5900)) == []
    assert said_to_model(phone.frames(200)) == [("system", SILENT)]


def test_a_caller_who_waits_for_a_tool_is_not_called_silent() -> None:
    """The bridge keeps them waiting, so their silence does not count."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.busy(+1)
    phone.busy(+1)
    phone.frames(3000)
    phone.busy(-1)
    assert said_to_model(phone.frames(3000)) == []
    phone.busy(-1)
    phone.busy(-1)  # reported once too often

    assert said_to_model(phone.frames(1900)) == []
    assert said_to_model(phone.frames(200)) == [("system", SILENT)]


def test_a_caller_who_waits_for_a_response_is_not_called_silent() -> None:
    """A response was requested and has not begun: the caller need not speak."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.frames(1500)
    phone.ask()

    assert said_to_model(phone.frames(5000)) == []
    phone.answers(100)
    assert said_to_model(phone.frames(1900)) == []
    assert said_to_model(phone.frames(300)) == [("system", SILENT)]


def test_a_caller_who_speaks_on_and_on_is_not_silent() -> None:
    """A long story is not interrupted by the question whether the caller is there."""
    phone = Phone(silent_seconds=2.0).talking()
    phone.barges_in()

    assert said_to_model(phone.frames(10_000)) == []
    phone.falls_silent()
    phone.cleared()
    assert said_to_model(phone.frames(2100)) == [("system", SILENT)]


def test_silence_is_not_counted_before_the_model_is_ready() -> None:
    """A caller who hears nothing yet need not speak."""
    phone = Phone(silent_seconds=1.0)
    phone.start()
    phone.frames(5000)
    phone.ready()

    assert said_to_model(phone.frames(900)) == []
    assert said_to_model(phone.frames(200)) == [("system", SILENT)]


def test_without_the_rule_silence_is_not_limited() -> None:
    """A route without this limit lets its callers think."""
    phone = Phone().talking()

    assert said_to_model(phone.frames(30_000)) == []


# --- limits of time and cost ---


def test_a_call_at_its_longest_time_ends_with_a_goodbye() -> None:
    """The agent says that time is up, the caller hears it, the call ends."""
    phone = Phone(longest_seconds=60.0).talking()
    phone.frames(59_800)
    assert said_to_model(phone.log) == []

    commands = phone.frames(200)
    assert said_to_model(commands) == [("system", GOODBYES["longest"])]
    assert limit_hit("longest") in commands
    phone.answers(1000)
    assert ends(phone.frames(980)) == []
    assert ends(phone.frames(60)) == [("bridge", "longest")]


def test_a_goodbye_waits_for_the_response_in_progress() -> None:
    """It does not cut the agent's sentence; it is requested once that is generated."""
    phone = Phone(longest_seconds=10.0).talking()
    phone.frames(9800)
    phone.created()
    phone.says(3000)
    commands = phone.frames(200)
    assert said_to_model(commands) == [("system", GOODBYES["longest"])]
    assert asks(commands) == 0
    phone.item_done()

    assert asks(phone.done()) == 1
    phone.answers(1000, item="i2", response="r2")
    assert ends(phone.frames(3700)) == []
    assert ends(phone.frames(300)) == [("bridge", "longest")]


def test_a_call_ends_without_a_goodbye_in_time() -> None:
    """The end comes, whatever the model does."""
    phone = Phone(longest_seconds=10.0).talking()
    phone.frames(10_000)
    phone.created()
    phone.says(60_000)
    assert ends(phone.frames(int(GOODBYE_SECONDS * 1000) - 100)) == []

    assert ends(phone.frames(200)) == [("bridge", "longest")]


def test_a_caller_who_talks_into_the_goodbye_is_answered_first() -> None:
    """The caller's last question gets its response, which is the last one."""
    phone = Phone().talking()
    phone.goodbye("cost")
    phone.answers(3000)
    phone.frames(300)
    phone.barges_in()
    phone.frames(500)
    assert ends(phone.falls_silent()) == []
    phone.frames(300)

    phone.answers(500, item="i2", response="r2")
    assert ends(phone.frames(460)) == []
    assert ends(phone.frames(80)) == [("bridge", "cost")]


def test_goodbye_is_said_once() -> None:
    """Other limits that are reached meanwhile do not repeat it."""
    phone = Phone(longest_seconds=10.0, silent_seconds=2.0).talking()

    assert len(said_to_model(phone.goodbye("cost"))) == 1
    assert phone.goodbye("longest") == []
    assert notes(phone.log, "limit_hit") == [limit_hit("cost_of_call")]
    commands = phone.frames(int(GOODBYE_SECONDS * 1000) + 100)
    assert said_to_model(commands) == []
    assert ends(commands) == [("bridge", "cost")]
    assert phone.goodbye("cost") == []


def test_a_goodbye_before_the_model_is_ready_waits_for_it() -> None:
    """The caller hears from the agent why the call ends."""
    phone = Phone()
    phone.start()
    assert said_to_model(phone.goodbye("longest")) == []
    assert ends(phone.frames(1000)) == []

    commands = phone.ready()

    assert said_to_model(commands) == [("system", GOODBYES["longest"])]
    assert asks(commands) == 1
    phone.answers(200)
    assert ends(phone.frames(300)) == [("bridge", "longest")]


def test_a_goodbye_ends_the_call_with_waits_open() -> None:
    """Waits for the agent's speech are answered before the end."""
    phone = Phone().talking()
    phone.goodbye("cost")
    phone.when_heard(1)
    phone.answers(200)

    commands = phone.frames(300)

    assert heard(commands) == [(1, True)]
    assert ends(commands) == [("bridge", "cost")]


def test_a_call_at_its_cost_limit_ends_with_a_goodbye() -> None:
    """The response that uses up the budget is the last one before the goodbye."""
    phone = Phone(prices=PRICES, cost_limit=0.01).talking()
    phone.created()
    first = phone.used(output_tokens=100)
    assert notes(first, "usage")[0].data == {
        "input_tokens": 0,
        "output_tokens": 100,
        "cost": pytest.approx(0.0064),
    }
    assert said_to_model(first) == []
    phone.created("r2")

    second = phone.used("r2", output_tokens=100)

    assert said_to_model(second) == [("system", GOODBYES["cost"])]
    assert asks(second) == 1
    assert limit_hit("cost_of_call") in second


def test_a_response_without_usage_is_reported() -> None:
    """Local models often send none: the operator learns that cost is not limited."""
    phone = Phone(prices=PRICES, cost_limit=0.01).talking()
    odd = [{}, {"prompt_tokens": 5}, {"output_tokens": -5}, {"output_tokens": 2**53}]
    for n, usage in enumerate(odd):
        phone.created(f"r{n}")
        assert protocol_error("model", NO_USAGE) in phone.used(f"r{n}", **usage)
    phone.created("r9")
    assert notes(phone.used("r9", output_tokens=5), "protocol_error") == []

    free = Phone().talking()
    free.created()
    assert notes(free.used(), "protocol_error") == []


def test_without_prices_no_cost_is_counted() -> None:
    """Tokens are noted all the same."""
    phone = Phone().talking()
    phone.created()

    [note] = notes(phone.used(input_tokens=7), "usage")

    assert note.data == {"input_tokens": 7, "output_tokens": 0, "cost": 0.0}


# --- what a response costs ---


@pytest.mark.parametrize(
    ("usage", "millionths"),
    [
        (Usage(), 0),
        (Usage(input_tokens=10, output_tokens=10), 10 * 32 + 10 * 64),
        (
            Usage(
                input_tokens=100,
                output_tokens=60,
                input_token_details=InputTokens(40, 60, CachedTokens(30, 20)),
                output_token_details=OutputTokens(10, 50),
            ),
            10 * 4 + 40 * 32 + 50 * 0.5 + 10 * 16 + 50 * 64,
        ),
        # Details with only one kind: the rest is audio.
        (
            Usage(
                input_tokens=100,
                output_tokens=60,
                input_token_details=InputTokens(text_tokens=40),
                output_token_details=OutputTokens(text_tokens=60),
            ),
            40 * 4 + 60 * 32 + 60 * 16,
        ),
        # More cached tokens than tokens: the cost is never negative.
        (
            Usage(
                input_tokens=2,
                input_token_details=InputTokens(1, 1, CachedTokens(9, 9)),
            ),
            18 * 0.5,
        ),
        # Totals that are less than their parts.
        (Usage(output_tokens=1, output_token_details=OutputTokens(5)), 5 * 16),
    ],
)
def test_a_response_costs_what_the_price_list_says(
    usage: Usage, millionths: float
) -> None:
    """The operator's limit is exact, with cached tokens at their own price."""
    assert cost_of(usage, PRICES) == pytest.approx(millionths / 1_000_000)


# --- the rules by themselves ---


def call_limits(**rules: Any) -> CallLimits:
    return CallLimits(Rules(**rules), 100.0)


def test_nothing_is_due_without_rules() -> None:
    """A call without limits is never ended by them."""
    it = call_limits()
    it.watch(True, 100.0)

    assert it.due_at is None
    assert it.due(1e9) is None


def test_the_nearest_limit_is_due_first() -> None:
    """Silence before the longest time, or the other way round."""
    it = call_limits(silent_seconds=5.0, longest_seconds=20.0)
    assert it.due_at == 120.0
    it.watch(True, 101.0)
    it.watch(True, 102.0)  # quiet still

    assert it.due_at == 106.0
    assert it.due(105.9) is None
    assert it.due(106.0) == "ask"
    assert it.due_at == 111.0
    it.watch(False, 107.0)
    assert it.due_at == 120.0
    assert it.due(120.0) == "longest"


def test_without_questions_the_first_silence_ends_the_call() -> None:
    """silent_asks 0: the call ends at the first silence."""
    it = call_limits(silent_seconds=5.0, silent_asks=0)
    it.watch(True, 101.0)

    assert it.due(106.0) == "silent"


def test_a_cost_limit_of_zero_is_reached_at_once() -> None:
    """The cost limit is reached by a response, not by time."""
    it = call_limits(prices=PRICES, cost_limit=0.001)
    assert it.due(101.0) is None

    assert it.spend(Usage(output_tokens=16)) == pytest.approx(0.001024)
    assert it.cost == pytest.approx(0.001024)
    assert it.due_at is None
    assert it.due(101.0) == "cost"
