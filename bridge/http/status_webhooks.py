"""Twilio's callbacks that report something and need no document: the status of a
stream, of a call, and who has answered a call.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog
from aiohttp import web

from bridge.agent.live import CallFacts
from bridge.app.outbound import (
    FINAL,
    ORDER,
    PLACED,
    STATUS_SECONDS,
    CallStatus,
    OutboundCalls,
)
from bridge.app.services import Services
from bridge.call.call import Call
from bridge.http.webhook_fields import Webhook
from bridge.records.report import report_of_silence

log = structlog.get_logger()

ANSWERED_BY = b"answered_by:"
"""Start of a message to the instance that has a call; the AnsweredBy value follows."""

COMPLETED = b"completed"
"""Message to the instance that has a call: the call is over at Twilio."""

UNANSWERED = frozenset({"busy", "no-answer", "failed", "canceled"})


class CallDirectory(Protocol):
    """The calls of the instance that got the webhook."""

    def call(self, call_sid: str) -> Call | None:
        """The newest call with this SID, running or about to run."""

    def expect_stream(self, call_sid: str) -> None:
        """Twilio was told to open another stream for the call. No effect if the call is
        not on this instance."""

    def next_step_requested(self, call_sid: str) -> None:
        """Twilio has asked for the call's next step."""


class StatusWebhooks:
    """`outbound` None: the bridge places no calls."""

    def __init__(
        self,
        services: Services,
        directory: CallDirectory,
        outbound: OutboundCalls | None,
    ) -> None:
        self._services = services
        self._directory = directory
        self._outbound = outbound

    def answers(self) -> dict[str, Callable[[Webhook], Awaitable[web.Response]]]:
        """Path -> what answers its signed requests."""
        return {
            "/stream-status": self._stream_status,
            "/call-status": self._call_status,
            "/amd-status": self._amd_status,
        }

    async def _stream_status(self, webhook: Webhook) -> web.Response:
        """`/stream-status`: the only report of a handshake that failed."""
        if webhook.text("StreamEvent") == "stream-error":
            log.warning("stream_error", **webhook.log_fields("stream_error"))
        else:
            log.debug("stream_status", **webhook.log_fields("stream_status"))
        return web.Response(status=204)

    async def _call_status(self, webhook: Webhook) -> web.Response:
        """`/call-status`: the progress of a call. Twilio may send statuses out of order
        and to any instance."""
        if self._is_old(webhook):
            log.warning("call_status_old", call_sid=webhook.call_sid)
            return web.Response(status=204)
        known = (
            await self._outbound.note_status(
                webhook.plain(), webhook.query.get(ORDER, "")
            )
            if self._outbound
            else None
        )
        log.info("call_status", **webhook.log_fields("call_status"))
        if webhook.text("CallStatus") in FINAL:
            await self._end_call(webhook.call_sid)
        if known and known.state in UNANSWERED:
            await self._report_unanswered(webhook, known)
        return web.Response(status=204)

    async def _end_call(self, call_sid: str) -> None:
        """The call is over at Twilio. Its stream may be half open, and then nothing
        else says so."""
        registry = self._services.registry
        if call := self._directory.call(call_sid):
            call.completed()
        elif registry.shared:
            await registry.publish(call_sid, COMPLETED)

    def _is_old(self, webhook: Webhook) -> bool:
        """The call was placed so long ago that its status is not stored any more: an
        attacker repeats a recorded webhook."""
        placed = webhook.query.get(PLACED, "")
        now = self._services.registry.clock()
        return placed.isdecimal() and now - int(placed) > STATUS_SECONDS

    async def _report_unanswered(self, webhook: Webhook, status: CallStatus) -> None:
        """An outbound call was not answered: reports that to the code that placed
        it."""
        call_sid, services = webhook.call_sid, self._services
        route = webhook.query.get("route")
        if route is None:  # an instance of an earlier version may have placed the call
            stored = await services.registry.get(f"route:{call_sid}")
            if stored is None:
                return  # the bridge did not place this call
            route = stored.decode(errors="replace")
        numbers = {name: webhook.text(name) for name in ("From", "To")}
        report_unanswered(services, status, route, numbers)

    async def _amd_status(self, webhook: Webhook) -> web.Response:
        """`/amd-status`: a person or a machine has answered."""
        if self._outbound:
            who = await self._outbound.answered_by(webhook.plain())
            if who and (call := self._directory.call(webhook.call_sid)):
                call.answered_by(who)
            elif who:
                message = ANSWERED_BY + who.encode()
                await self._services.registry.publish(webhook.call_sid, message)
        return web.Response(status=204)


def report_unanswered(
    services: Services, status: CallStatus, route: str, numbers: Mapping[str, str]
) -> None:
    """Reports the end of an outbound call without a stream. `numbers`: From and To."""
    own = {"Direction": "outbound", "Route": route}
    facts = CallFacts.of(status.call_sid, {**own, **numbers})
    found = services.route_of(facts)
    report = report_of_silence(
        facts,
        status.state,
        time.time(),
        found.redact,
        sip_code=status.sip_code,
        error_code=status.error_code,
    )
    services.deliver_report(found, report)
