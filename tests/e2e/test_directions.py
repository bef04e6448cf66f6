"""Calls that the operator's own Twilio code has placed, with our `/voice` as their
url: `From` is ours, and the person was called."""

import asyncio
from typing import Any

import pytest

from bridge.app.routes import ReportTarget, Route
from bridge.records.report import CallReport
from bridge.sim.model import Behaviour, SayText
from bridge.sim.twilio import steps
from tests.e2e.bridge import bridge
from tests.support.waiting import until

OURS, THEIRS = "+15557650002", "+14155550177"
PLACED: dict[str, Any] = {
    "direction": "outbound-api",
    "from_number": OURS,
    "to_number": THEIRS,
}
TALK = [steps.ListenStep(quiet_seconds=0.3, timeout=8), steps.HangUpStep()]


async def test_our_number_is_not_taken_for_the_caller() -> None:
    """A campaign from one number is not rejected as one caller who calls too often, and
    its reports say who was called, and the parameters."""
    reports: list[CallReport] = []
    route = Route(name="out", direction="outbound", report=ReportTarget(to="reported"))
    async with bridge(
        Behaviour(fallback=[SayText("Hi.")]),
        route=route,
        functions={"reported": reports.append},
        greeting="Hi.",
        calls_per_number=1,
        calls_per_number_hour=1,
    ) as place:
        more = {"CallerCity": "BOSTON", "CallToken": "secret"}
        callers = [place.caller(**PLACED, parameters=more) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            talks = [group.create_task(it.call(TALK)) for it in callers]
        await until(lambda: len(reports) == 3)
        await place.empty()

    assert [it.result().rejected for it in talks] == [None] * 3
    for report in reports:
        assert (report.direction, report.to_number) == ("outbound", THEIRS)
        assert report.parameters == {"CallerCity": "BOSTON"}


@pytest.mark.parametrize("direction", ["outbound-api", "inbound"])
async def test_a_day_that_is_spent_ends_a_call_as_its_direction_allows(
    direction: str,
) -> None:
    """Twilio refuses <Reject> in a call that was answered: the called person's call
    ends. A caller hears a busy line, which costs nothing."""
    spent = {"cost_per_day": 1.0, "greeting": "Hi."}
    async with bridge(**spent) as place:
        place.server._services.quotas.spent(2.0)
        placed = {**PLACED, "direction": direction}
        record = await place.caller(**placed).call([steps.WaitStep(3)])

    assert record.streams == [] and record.error is None
    assert record.rejected == (None if direction == "outbound-api" else "busy")
    assert place.metric('bridge_limit_hits_total{limit="cost_of_day"}') == 1
