"""Tool calls that wait for approval: each is decided exactly once."""

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
    """Records which approvals were requested and which decisions were carried out."""

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
    """The Approvals of one call; leaving the context ends the call and its tasks."""
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


async def test_waiting_tool_calls_are_listed() -> None:
    """The person who decides sees what the tool would do and how long they have."""
    async with approvals(ApprovalRule(seconds=20)) as (it, desk):
        made = ask(it, desk)
        ask(it, desk, "call_2")

        assert it.pending[0] == made and len(it.pending) == 2
        assert desk.waiting == ["call_1", "call_2"]
        assert (made.call_id, made.tool, made.agent) == ("call_1", "pay", "desk")
        assert (made.arguments, made.server) == ('{"amount":7}', "shop")
        assert made.until - time.time() == pytest.approx(20, abs=1)
        assert made.since <= time.time()


async def test_a_decision_is_carried_out_once() -> None:
    """Each decision is passed on as given, and the tool call no longer waits."""
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


async def test_a_second_decision_is_refused() -> None:
    """Two people press the button: the second one gets an error."""
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
async def test_the_default_is_taken_after_the_timeout(
    rule: ApprovalRule, decided: tuple[bool, bool, str | None]
) -> None:
    """After the timeout the default decision is carried out and logged."""
    with capture_logs() as logs:
        async with approvals(rule) as (it, desk):
            ask(it, desk)
            await asyncio.wait(desk.tasks, timeout=5)

            assert it.pending == [] and desk.waiting == []
    assert desk.decided == [decided]
    [timed_out] = logs
    assert timed_out["event"] == "approval_timed_out"
    assert (timed_out["call_sid"], timed_out["default"]) == (SID, rule.default)


async def test_the_timeout_does_not_change_a_decision() -> None:
    """An approved tool call stays approved when the timeout passes."""
    async with approvals(ApprovalRule(seconds=0.05)) as (it, desk):
        ask(it, desk)
        await it.approve("call_1")
        await asyncio.wait(desk.tasks, timeout=5)

    assert desk.decided == [(True, False, None)]


async def test_a_withdrawn_approval_cannot_be_decided() -> None:
    """A late approval runs nothing and is not waited for; other tool calls still
    wait."""
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


async def test_the_end_of_the_call_decides_nothing() -> None:
    """No decision is carried out after the caller has hung up."""
    async with approvals(ApprovalRule(seconds=30, default="approve")) as (it, desk):
        ask(it, desk)
        await asyncio.sleep(0)

    assert desk.decided == [] and all(task.done() for task in desk.tasks)
