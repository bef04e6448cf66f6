"""Tool calls that wait for approval: listed, answered, and bounded by a timeout.

Covers function tools and tools of hosted MCP servers. The caller of `Approvals.ask`
supplies the function that carries the decision out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import structlog
from agents.realtime import RealtimeSession, RealtimeToolApprovalRequired

log = structlog.get_logger()

TIMED_OUT = "Nobody approved this in time, so it was not done."


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """How long an approval waits, and the decision when nobody answers in time."""

    seconds: float = 30.0
    default: Literal["approve", "reject"] = "reject"
    message: str = TIMED_OUT
    """The reason sent to the model when the timeout rejects the tool call."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A tool call that waits for approval. `arguments` is the model's JSON text."""

    call_id: str
    tool: str
    arguments: str
    agent: str
    until: float
    """When the default decision is taken, in seconds since the epoch."""
    since: float = field(default_factory=time.time)
    """When the approval was requested, in seconds since the epoch."""
    server: str = ""
    """Label of the hosted MCP server; empty for a function tool of the agent."""


class Decide(Protocol):
    """Carries out the decision about one tool call."""

    def __call__(
        self, approved: bool, *, always: bool, message: str | None
    ) -> Awaitable[None]: ...


Start = Callable[[Coroutine[Any, Any, None], str], object]
"""(coroutine, task name): starts a task that is cancelled when the call ends."""


class Approvals:
    """The approvals of one call."""

    def __init__(
        self,
        rule: ApprovalRule,
        start: Start,
        call_sid: str,
        waiting: Callable[[int, str], None],
    ) -> None:
        """`waiting` is called with (+1, call id) when an approval begins to wait, and
        with (-1, call id) when it ends."""
        self._rule = rule
        self._start = start
        self._call_sid = call_sid
        self._count = waiting
        self._waiting: dict[str, tuple[Approval, Decide]] = {}

    @property
    def pending(self) -> list[Approval]:
        return [approval for approval, _ in self._waiting.values()]

    def ask(
        self,
        call_id: str,
        tool: str,
        arguments: str,
        agent: str,
        decide: Decide,
        server: str = "",
    ) -> Approval:
        """Adds a tool call that waits from now on. `decide` is called once, unless the
        tool call is withdrawn."""
        until = time.time() + self._rule.seconds
        approval = Approval(call_id, tool, arguments, agent, until, server=server)
        self._waiting[call_id] = (approval, decide)
        self._count(+1, call_id)
        self._start(self._expire(call_id), f"{self._call_sid} approval")
        return approval

    def ask_for(
        self, event: RealtimeToolApprovalRequired, session: RealtimeSession | None
    ) -> None:
        """Adds a function tool call; the SDK's session carries the decision out."""
        assert session, "the event comes from the session"

        async def decide(approved: bool, *, always: bool, message: str | None) -> None:
            if approved:
                await session.approve_tool_call(event.call_id, always=always)
            else:
                await session.reject_tool_call(
                    event.call_id, always=always, rejection_message=message
                )

        self.ask(
            event.call_id, event.tool.name, event.arguments, event.agent.name, decide
        )

    async def approve(self, call_id: str, *, always: bool = False) -> None:
        """Lets the tool run. KeyError: no tool call with this id waits (any more)."""
        await self._remove(call_id)(True, always=always, message=None)

    async def reject(
        self, call_id: str, *, always: bool = False, message: str | None = None
    ) -> None:
        """Refuses the tool. KeyError: no tool call with this id waits (any more)."""
        await self._remove(call_id)(False, always=always, message=message)

    def withdraw(self, call_id: str) -> None:
        """Removes a tool call without a decision; a later decision raises KeyError."""
        if call_id in self._waiting:
            self._remove(call_id)

    def _remove(self, call_id: str) -> Decide:
        _, decide = self._waiting.pop(call_id)
        self._count(-1, call_id)
        return decide

    async def _expire(self, call_id: str) -> None:
        await asyncio.sleep(self._rule.seconds)
        if call_id not in self._waiting:
            return
        log.warning(
            "approval_timed_out", call_sid=self._call_sid, default=self._rule.default
        )
        if self._rule.default == "approve":
            await self.approve(call_id)
        else:
            await self.reject(call_id, message=self._rule.message)
