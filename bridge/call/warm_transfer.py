"""The warm transfer of a call: a person is called while the caller and the agent talk.

Begins it, watches for its decision, and then joins the caller or tells the agent why
nobody has taken the call. The decision may come to any instance, and the call may move
to another one meanwhile, so it is read from the registry: a message could be lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bridge.agent.live import BadRequest, LiveCall, Transfer
from bridge.app.services import Services
from bridge.app.warm_calls import WarmCalls
from bridge.call.continuity import Continuity, Joined
from bridge.core.commands import End, Note
from bridge.core.inputs import Input, Tell
from bridge.core.transfers import (
    LEFT,
    RINGING,
    TIMED_OUT,
    FailedTransfer,
    WarmTransfer,
    instruction,
)
from bridge.websocket.text_socket import StartTask

WATCH_SECONDS = 0.5
"""Interval at which the decision is looked for, while a phone rings."""

JOIN_SECONDS = 5.0
"""Longest time that a person who has accepted waits for the end of what the agent is
saying."""


@dataclass(frozen=True, slots=True)
class CallParts:
    """What a warm transfer uses of its call."""

    live: LiveCall
    continuity: Continuity
    language: str
    feed: Callable[[Input], None]
    note: Callable[[Note], None]
    start_task: StartTask
    join: Callable[[Joined, float], Awaitable[None]]
    """Ends the call as transferred when the caller has heard what the agent is saying,
    after so many seconds at the latest."""


class WarmTransfers:
    """The warm transfers of one call, one at a time."""

    def __init__(self, services: Services, parts: CallParts) -> None:
        self._services = services
        self._parts = parts
        self._begun = False
        """A transfer is under way, or about to be."""
        self._current: WarmTransfer | None = None
        self._joined = False

    async def begin(self, to: Transfer, summary: str = "") -> None:
        """Calls the person, and returns when the phone rings. BadRequest: it does not
        ring."""
        calls, parts = self._calls(), self._parts
        if self._begun:
            raise BadRequest("a phone rings already: wait until you are told of it")
        self._begun = True
        try:
            facts = parts.live.facts
            warm = calls.plan(facts, to, summary, parts.language)
            self._current = await calls.ring(warm, facts, to)
        except BaseException:
            self._begun = False
            raise
        parts.continuity.count_transfer()
        parts.note(Note("transfer_ringing", {"leg": self._current.leg}))
        self._watch_in_background(calls, self._current)

    async def begin_by_key(self, to: Transfer) -> None:
        """The caller has pressed the key for it. The agent is told what happens."""
        try:
            await self.begin(to)
        except BadRequest as error:
            self._parts.note(Note("key_action_failed", {"error": "BadRequest"}))
            text = f"The caller has pressed a key to be put through. Not done: {error}."
        else:
            text = f"The caller has pressed a key to be put through. {RINGING}"
        self._parts.feed(Tell("system", text, True))

    async def adopt(self) -> None:
        """Goes on with the transfer that began on an earlier stream of the call."""
        calls = self._services.warm_calls
        if calls and (warm := await calls.of_call(self._parts.live.call_sid)):
            self._begun, self._current = True, warm
            self._watch_in_background(calls, warm)

    def call_ended(self, ending: End, *, goes_on: bool) -> None:
        """`goes_on`: on a later stream of the call, where `adopt` finds the
        transfer."""
        calls, warm = self._services.warm_calls, self._current
        joined = self._joined and (ending.by, ending.why) == ("agent", "transferred")
        if calls and warm and not goes_on and not joined:
            ends = calls.give_up(warm, "canceled")
            self._services.background_tasks.start(ends, f"{warm.call_sid} transfer")

    def _calls(self) -> WarmCalls:
        if calls := self._services.warm_calls:
            return calls
        missing = ", ".join(self._services.missing_for_warm)
        raise BadRequest(f"warm transfers are not set up on this bridge: set {missing}")

    def _watch_in_background(self, calls: WarmCalls, warm: WarmTransfer) -> None:
        self._parts.start_task(self._watch(calls, warm), "warm transfer")

    async def _watch(self, calls: WarmCalls, warm: WarmTransfer) -> None:
        """Until the transfer is decided; then does what follows."""
        while (outcome := await calls.outcome(warm.id)) is None:
            if calls.now() >= warm.due:
                outcome = await calls.decide(warm.id, TIMED_OUT)
                break
            await asyncio.sleep(WATCH_SECONDS)
        failed = outcome.failed
        if failed is None and await calls.has_left(warm.id):
            failed = LEFT
        if failed is None:
            await self._join(warm)
        else:
            await self._tell(calls, warm, failed)

    async def _join(self, warm: WarmTransfer) -> None:
        self._joined = True
        self._parts.note(Note("transfer_joined"))
        target = Joined(warm.number, transfer_id=warm.id)
        await self._parts.join(target, JOIN_SECONDS)

    async def _tell(
        self, calls: WarmCalls, warm: WarmTransfer, failed: FailedTransfer
    ) -> None:
        """Nobody has taken the call: the agent is told why."""
        parts = self._parts
        parts.live.failed_transfers.append(failed)
        codes = {"error_code": failed.error_code, "sip_code": failed.sip_code}
        known = {name: code for name, code in codes.items() if code}
        parts.note(Note("transfer_failed", {"status": failed.status, **known}))
        text = instruction(failed.status, stayed=True)
        parts.feed(Tell("system", text, True))
        self._begun, self._current = False, None
        # Deleted after the agent was told: another instance would tell it again, and
        # must if this one dies before.
        await calls.forget(warm)
        await calls.end_leg(warm.leg)
