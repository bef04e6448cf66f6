"""Tool calls that wait for a yes or no: listed, answered, and never for ever.

The user's own functions and the tools of hosted MCP servers alike. What a yes or no
does is given by whoever asks for it.
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
    """What becomes of one that nobody answers."""

    seconds: float = 30.0
    default: Literal["approve", "reject"] = "reject"
    message: str = TIMED_OUT
    """What the model is told then."""


@dataclass(frozen=True, slots=True)
class Approval:
    """One tool call that waits. `arguments` is JSON as the model wrote it."""

    call_id: str
    tool: str
    arguments: str
    agent: str
    until: float
    """Seconds since the epoch, when the default is taken."""
    since: float = field(default_factory=time.time)
    server: str = ""
    """Label of the hosted MCP server; empty: a function of the agent's own."""


class Decide(Protocol):
    """Carries a decision out."""

    def __call__(
        self, approved: bool, *, always: bool, message: str | None
    ) -> Awaitable[None]: ...


Start = Callable[[Coroutine[Any, Any, None], str], object]
"""(work, name): runs it as long as the call lives."""


class Approvals:
    """Those of one call."""

    def __init__(
        self,
        rule: ApprovalRule,
        start: Start,
        call_sid: str,
        waiting: Callable[[int, str], None],
    ) -> None:
        """`waiting` is told +1 when one waits, -1 when it does no more, and which."""
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
        """A tool call waits from now on."""
        until = time.time() + self._rule.seconds
        approval = Approval(call_id, tool, arguments, agent, until, server=server)
        self._waiting[call_id] = (approval, decide)
        self._count(+1, call_id)
        self._start(self._expire(call_id), f"{self._call_sid} approval")
        return approval

    def ask_for(
        self, event: RealtimeToolApprovalRequired, session: RealtimeSession | None
    ) -> None:
        """A tool of the SDK's session waits, which carries the decision out."""
        assert session, "it is the session that asks"

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
        """KeyError: no such call waits (any more)."""
        await self._taken(call_id)(True, always=always, message=None)

    async def reject(
        self, call_id: str, *, always: bool = False, message: str | None = None
    ) -> None:
        """KeyError as above."""
        await self._taken(call_id)(False, always=always, message=message)

    def withdraw(self, call_id: str) -> None:
        """It is asked for no more: whoever decides now, gets a KeyError."""
        if call_id in self._waiting:
            self._taken(call_id)

    def _taken(self, call_id: str) -> Decide:
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
