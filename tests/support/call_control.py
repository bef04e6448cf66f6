"""A fake CallControl: it records each request and gives the answers of the test."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bridge.agent.approvals import ApprovalRule, Approvals
from bridge.agent.events import Listeners
from bridge.agent.live import CallFacts, LiveCall, NotAllowed, Role, Transfer
from bridge.core.answered import Answer
from bridge.core.history import HistoryItem

FACTS = CallFacts(
    call_sid="CA" + "1" * 32,
    stream_sid="MZ" + "2" * 32,
    account_sid="AC" + "3" * 32,
    from_number="+14155550101",
    to_number="+14155550199",
    route="sales",
)


class FakeCallControl:
    """A bridge.agent.live.CallControl. While `free` is cleared, its requests wait."""

    def __init__(self) -> None:
        self.history: Sequence[HistoryItem] = []
        self.asked: list[tuple[Any, ...]] = []
        self.allowed = True
        """Whether transfers are allowed."""
        self.done = True
        """The result of hang_up, transfer, send_digits and heard."""
        self.free = asyncio.Event()
        self.free.set()

    def tell(self, role: Role, text: str, *, respond: bool) -> None:
        self.asked.append(("tell", role, text, respond))

    def interrupt(self, by: str) -> None:
        self.asked.append(("interrupt", by))

    def mute(self, on: bool) -> None:
        self.asked.append(("mute", on))

    def send_raw(self, event: Mapping[str, Any]) -> None:
        self.asked.append(("send_raw", event))

    def edit_history(
        self, removed: Iterable[str], corrected: Mapping[str, str]
    ) -> None:
        self.asked.append(("edit_history", list(removed), dict(corrected)))

    async def heard(self) -> bool:
        return await self._answer("heard")

    async def hang_up(self) -> bool:
        return await self._answer("hang_up")

    async def transfer(self, transfer: Transfer, summary: str) -> bool:
        if not self.allowed:
            raise NotAllowed("this number is not among those")
        more = (summary,) if transfer.warm else ()
        return await self._answer("transfer", transfer, *more)

    async def send_digits(self, digits: str) -> bool:
        return await self._answer("send_digits", digits)

    def decide_answer(self, who: Answer) -> bool:
        self.asked.append(("decide_answer", who))
        return self.done

    async def _answer(self, *asked: Any) -> bool:
        self.asked.append(asked)
        await self.free.wait()
        return self.done


@asynccontextmanager
async def live_call(
    line: FakeCallControl, facts: CallFacts = FACTS, rule: ApprovalRule | None = None
) -> AsyncIterator[LiveCall]:
    """A running call on this line; it ends, with its listeners, on exit."""
    async with asyncio.TaskGroup() as tasks:

        def start(work: Any, name: str) -> asyncio.Task[None]:
            return tasks.create_task(work, name=name)

        waiting: list[asyncio.Task[None]] = []

        def start_approval(work: Any, name: str) -> None:
            waiting.append(start(work, name))

        listeners = Listeners(start, facts.call_sid)
        approvals = Approvals(
            rule or ApprovalRule(), start_approval, facts.call_sid, lambda *_: None
        )
        live = LiveCall(facts, line, listeners, approvals)
        live.agent_name = "receptionist"
        try:
            yield live
        finally:
            live.end()
            listeners.end()
            for task in waiting:
                task.cancel()
