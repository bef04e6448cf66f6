"""Tool calls that wait for a yes or no: each is answered once, by whomever."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.agent.approvals import TIMED_OUT, ApprovalRule, Approvals

SID = "CA" + "1" * 32


@dataclass
class Desk:
    """Who asks, and what was decided."""

    decided: list[tuple[bool, bool, str | None]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Calls that it was told of as waiting."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def decide(
        self, approved: bool, *, always: bool, message: str | None
    ) -> None:
        self.decided.append((approved, always, message))

    def count(self, change: int, call_id: str) -> None:
        if change > 0:
            self.waiting.append(call_id)
        else:
            self.waiting.remove(call_id)


@asynccontextmanager
async def approvals(
    rule: ApprovalRule | None = None,
) -> AsyncIterator[tuple[Approvals, Desk]]:
    """Those of a call; it ends on the way out, and with it who waits."""
    desk = Desk()
    async with asyncio.TaskGroup() as tasks:

        def start(work: Any, name: str) -> None:
            assert name == f"{SID} approval"
            desk.tasks.append(tasks.create_task(work, name=name))

        yield Approvals(rule or ApprovalRule(), start, SID, desk.count), desk
        for task in desk.tasks:
            task.cancel()


def ask(it: Approvals, desk: Desk, call_id: str = "call_1") -> Any:
    return it.ask(call_id, "pay", '{"amount":7}', "desk", desk.decide, server="shop")


async def test_what_waits_is_listed() -> None:
    """Who is to decide sees what the tool would do, and how long there is."""
    async with approvals(ApprovalRule(seconds=20)) as (it, desk):
        made = ask(it, desk)
        ask(it, desk, "call_2")

        assert it.pending[0] == made and len(it.pending) == 2
        assert desk.waiting == ["call_1", "call_2"]
        assert (made.call_id, made.tool, made.agent) == ("call_1", "pay", "desk")
        assert (made.arguments, made.server) == ('{"amount":7}', "shop")
        assert made.until - time.time() == pytest.approx(20, abs=1)
        assert made.since <= time.time()


async def test_yes_and_no() -> None:
    """Each is passed on as it was said, and waits no more."""
    async with approvals() as (it, desk):
        for call_id in ("a", "b", "c", "d"):
            ask(it, desk, call_id)
        await it.approve("a")
        await it.approve("b", always=True)
        await it.reject("c")
        await it.reject("d", always=True, message="Never.")

        assert it.pending == [] and desk.waiting == []
    assert desk.decided == [
        (True, False, None),
        (True, True, None),
        (False, False, None),
        (False, True, "Never."),
    ]


async def test_nobody_decides_twice() -> None:
    """Two people press the button: the second is told that it is too late."""
    async with approvals() as (it, desk):
        ask(it, desk)
        await it.approve("call_1")
        with pytest.raises(KeyError):
            await it.reject("call_1")
        with pytest.raises(KeyError):
            await it.approve("unknown")

    assert desk.decided == [(True, False, None)] and desk.waiting == []


@pytest.mark.parametrize(
    ("rule", "decided"),
    [
        (ApprovalRule(seconds=0.05), (False, False, TIMED_OUT)),
        (ApprovalRule(seconds=0.05, message="Later."), (False, False, "Later.")),
        (ApprovalRule(seconds=0.05, default="approve"), (True, False, None)),
    ],
)
async def test_nobody_decides(
    rule: ApprovalRule, decided: tuple[bool, bool, str | None]
) -> None:
    """The default is taken when its time has come; the log says so."""
    with capture_logs() as logs:
        async with approvals(rule) as (it, desk):
            ask(it, desk)
            await asyncio.wait(desk.tasks, timeout=5)

            assert it.pending == [] and desk.waiting == []
    assert desk.decided == [decided]
    [timed_out] = logs
    assert timed_out["event"] == "approval_timed_out"
    assert (timed_out["call_sid"], timed_out["default"]) == (SID, rule.default)


async def test_a_decision_is_not_taken_back_when_its_time_comes() -> None:
    """What was approved stays so."""
    async with approvals(ApprovalRule(seconds=0.05)) as (it, desk):
        ask(it, desk)
        await it.approve("call_1")
        await asyncio.wait(desk.tasks, timeout=5)

    assert desk.decided == [(True, False, None)]


async def test_what_is_asked_for_no_more() -> None:
    """A yes that comes too late runs nothing, and the caller is not waited for; other
    calls wait on."""
    async with approvals(ApprovalRule(seconds=0.05, default="approve")) as (it, desk):
        ask(it, desk)
        ask(it, desk, "call_2")
        it.withdraw("call_1")
        it.withdraw("call_1")

        assert [each.call_id for each in it.pending] == desk.waiting == ["call_2"]
        with pytest.raises(KeyError):
            await it.approve("call_1")
        await asyncio.wait(desk.tasks, timeout=5)

    assert desk.decided == [(True, False, None)]


async def test_the_call_ends_meanwhile() -> None:
    """Nothing is decided for a caller who has gone."""
    async with approvals(ApprovalRule(seconds=30, default="approve")) as (it, desk):
        ask(it, desk)
        await asyncio.sleep(0)

    assert desk.decided == [] and all(task.done() for task in desk.tasks)
