"""The webhooks of a warm transfer: what the person hears, what they press, the end of
their call; and the caller's way into the conference.

Decides nothing about the call; core/transfers.py and app/warm_calls.py do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from aiohttp import web

import twiml
from bridge.app.outbound import FINAL
from bridge.app.services import Services
from bridge.app.warm_calls import ALONE, OF_CALL, WARM, WarmCalls
from bridge.core.transfers import (
    LEFT,
    FailedTransfer,
    WarmOutcome,
    WarmTransfer,
    has_met,
    outcome_of_leg,
)
from bridge.fleet import NextStep, Then
from bridge.fleet.plan import AnsweredBy
from bridge.http.dials import code_of
from bridge.http.webhook_fields import Webhook
from bridge.http.webhook_urls import DIALLED, KEY, next_url, screen_url

log = structlog.get_logger()

ALONE_SECONDS = 3.0
"""Time for Twilio to end a conference and to ask for the caller's next step, before the
caller is taken out of it."""

CALLER_SECONDS = 30.0
"""Time for the caller to join a person who has accepted. Then the person's call ends:
the caller has hung up at that moment, or the caller's instance has died."""

_MACHINES = frozenset(it.value for it in AnsweredBy if it.is_machine)


class WarmWebhooks:
    """`alone_seconds`, `caller_seconds`: see ALONE_SECONDS, CALLER_SECONDS."""

    def __init__(
        self,
        services: Services,
        alone_seconds: float = ALONE_SECONDS,
        caller_seconds: float = CALLER_SECONDS,
    ) -> None:
        self._services = services
        self._calls = services.warm_calls
        self._alone_seconds = alone_seconds
        self._caller_seconds = caller_seconds

    def answers(self) -> dict[str, Callable[[Webhook], Awaitable[web.Response]]]:
        """Path -> what answers its signed requests."""
        if self._calls is None:
            return {}
        return {
            "/voice/warm": self._answered,
            "/voice/warm/answer": self._accept,
            "/warm-status": self._leg_status,
        }

    # --- the person ---

    async def _answered(self, webhook: Webhook) -> web.Response:
        """`/voice/warm`: somebody, or a machine, has answered the second call."""
        warm = await self._undecided(webhook)
        if warm is None:
            return _twiml(twiml.hang_up())
        if webhook.text("AnsweredBy") in _MACHINES:
            return await self._refuse(webhook, warm, "machine")
        query = {WARM: warm.id, **({KEY: "1"} if warm.accept else {})}
        answer_url = screen_url(webhook, "warm/answer", **query)
        language = warm.language or None
        if warm.accept:
            document = twiml.whisper(
                warm.whisper, accept_url=answer_url, language=language
            )
        else:
            document = twiml.tell(warm.whisper, then_url=answer_url, language=language)
        return _twiml(document)

    async def _accept(self, webhook: Webhook) -> web.Response:
        """`/voice/warm/answer`: the person has pressed a key, or has heard the whisper
        of a transfer that needs none."""
        warm = await self._of(webhook)
        if warm is None:
            return _twiml(twiml.hang_up())  # the caller has left meanwhile
        if warm.accept and webhook.text("Digits") != "1":
            return await self._refuse(webhook, warm, "declined")
        outcome = await self._warm_calls.decide(warm.id, WarmOutcome())
        log.info("transfer_answered", call_sid=warm.call_sid, accepted=outcome.accepted)
        if not outcome.accepted:
            return _twiml(twiml.hang_up())
        self._start(self._end_if_alone(warm, webhook.call_sid), warm.call_sid)
        return _twiml(twiml.conference(warm.room))

    async def _refuse(
        self, webhook: Webhook, warm: WarmTransfer, status: str
    ) -> web.Response:
        await self._warm_calls.decide(warm.id, WarmOutcome(FailedTransfer(status)))
        log.info("transfer_answered", call_sid=warm.call_sid, accepted=False)
        return _twiml(twiml.hang_up())

    async def _end_if_alone(self, warm: WarmTransfer, leg: str) -> None:
        """The person waits in the conference; the caller may never come."""
        calls, until = self._warm_calls, time.monotonic() + self._caller_seconds
        while await calls.joined_at(warm.id) is None:
            if await calls.has_left(warm.id):
                return
            if time.monotonic() >= until:
                log.warning("transfer_left_alone", call_sid=warm.call_sid)
                await calls.end_leg(leg)
                return
            await asyncio.sleep(min(1.0, self._caller_seconds))

    async def _leg_status(self, webhook: Webhook) -> web.Response:
        """`/warm-status`: the person's call has ended."""
        status = webhook.text("CallStatus")
        warm_id = webhook.query.get(WARM, "")
        log.info("call_status", **webhook.log_fields("call_status"))
        if status not in FINAL or not warm_id:
            return web.Response(status=204)
        codes = (code_of(webhook, name) for name in ("ErrorCode", "SipResponseCode"))
        calls = self._warm_calls
        outcome = await calls.decide(warm_id, outcome_of_leg(status, *codes))
        if outcome.accepted:
            await calls.person_left(warm_id)
            joined, now = await calls.joined_at(warm_id), calls.now()
            if joined is not None and not has_met(joined, now):
                call_sid = webhook.query.get(OF_CALL, "")
                self._start(self._fetch_if_alone(warm_id, call_sid), call_sid)
        return web.Response(status=204)

    async def _fetch_if_alone(self, warm_id: str, call_sid: str) -> None:
        """The person has left before the caller was there, or at once: Twilio keeps the
        caller in an empty conference, or has ended it and asks for the next step."""
        await asyncio.sleep(self._alone_seconds)
        if await self._warm_calls.claim_return(warm_id):
            await self._warm_calls.fetch_back(warm_id, call_sid)

    # --- the caller ---

    async def joins(
        self, webhook: Webhook, step: NextStep | None
    ) -> str | FailedTransfer | None:
        """The document that brings the caller to a person who has accepted. A
        FailedTransfer: the person has left, and the caller goes back to the agent.
        None: the call has no such transfer."""
        if self._calls is None:
            return None
        if ALONE in webhook.query:
            return LEFT
        warm = await self._accepted(webhook.call_sid, step)
        if warm is None:
            return None
        if not await self._calls.caller_joins(warm):
            await self._calls.claim_return(warm.id)
            await self._calls.forget(warm)
            return LEFT
        await self._calls.forget(warm)
        query = {DIALLED: "1", WARM: warm.id}
        return twiml.conference(warm.room, action_url=next_url(webhook, query))

    async def _accepted(
        self, call_sid: str, step: NextStep | None
    ) -> WarmTransfer | None:
        """The accepted transfer of a call that was closed for it, or that has lost its
        stream or its instance meanwhile."""
        calls = self._warm_calls
        if step is not None and step.then is Then.TRANSFER:
            return WarmTransfer(step.warm, call_sid, "", 0.0) if step.warm else None
        if step is not None and step.then is not Then.RESUME:
            return None
        warm = await calls.of_call(call_sid)
        outcome = await calls.outcome(warm.id) if warm else None
        return warm if outcome and outcome.accepted else None

    async def after_conference(self, webhook: Webhook) -> FailedTransfer | None:
        """The caller's conference has ended. None: they have talked with the person."""
        warm_id = webhook.query[WARM]
        await self._warm_calls.claim_return(warm_id)
        joined = await self._warm_calls.joined_at(warm_id)
        return None if has_met(joined, self._warm_calls.now()) else LEFT

    # --- what both use ---

    @property
    def _warm_calls(self) -> WarmCalls:
        assert self._calls, "only these answer requests"
        return self._calls

    async def _of(self, webhook: Webhook) -> WarmTransfer | None:
        """The transfer that the URL names, if it is still under way."""
        warm = await self._warm_calls.of_call(webhook.query.get(OF_CALL, ""))
        return warm if warm and warm.id == webhook.query.get(WARM) else None

    async def _undecided(self, webhook: Webhook) -> WarmTransfer | None:
        warm = await self._of(webhook)
        if warm and await self._warm_calls.outcome(warm.id) is None:
            return warm
        return None

    def _start(self, work: Coroutine[Any, Any, None], call_sid: str) -> None:
        self._services.background_tasks.start(work, f"warm transfer {call_sid}")


def _twiml(document: str) -> web.Response:
    return web.Response(text=document, content_type="text/xml")
