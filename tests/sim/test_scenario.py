"""Scripted calls."""

from bridge.sim.scenario import SHORT_TALK, staying
from bridge.sim.twilio.steps import HangUpStep, WaitStep


def test_a_caller_who_stays_hears_the_result_of_a_slow_tool() -> None:
    """The caller listens before hanging up, and not after it."""
    plan = staying(SHORT_TALK, 20)

    assert list(plan.caller[-2:]) == [WaitStep(20), HangUpStep()]
    assert list(plan.caller[:-2]) == list(SHORT_TALK.caller[:-1])
