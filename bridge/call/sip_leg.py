"""The caller's end of a SIP call on OpenAI's Realtime Calls API.

OpenAI has the caller's audio. The leg accepts, transfers and ends the call by REST
requests. The call lives no longer than the session's one connection, and the API says
why that connection was lost.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from bridge.agent.approvals import Approvals
from bridge.agent.live import BadRequest, CallFacts, CallOver, LiveCall, Transfer
from bridge.app.services import Services
from bridge.call.leg import LegOwner
from bridge.call.stream import IdentifiedPhone
from bridge.core.capabilities import SIP
from bridge.core.commands import End
from bridge.core.inputs import EndCall
from bridge.model.calls_api import LIMIT_SECONDS, CallGone, CallsApi, CallsApiError
from bridge.model.session import SessionOwner, SessionPlan
from bridge.model.sip_session import SipSession
from bridge.websocket.text_socket import StartTask

HANG_UP_TRIES = 2
HANG_UP_PAUSE_SECONDS = 2.0
HANG_UP_SECONDS = HANG_UP_TRIES * LIMIT_SECONDS + HANG_UP_PAUSE_SECONDS
"""Limit for ending a call at OpenAI. It runs beside the report of the call's end."""

UNCLEAR_CODES = (None, 1000, 1005, 1006)
"""Close codes (None: not closed) of a connection that do not tell who ended it.
OpenAI breaks it without a close frame (1006) when the caller hangs up; a broken
network looks the same."""

UNAVAILABLE = 503
"""SIP status: the trunk may try another gateway, if it has one."""


class SipLeg:
    """A bridge.call.leg.CallLeg, and the SipLine of its session."""

    capabilities = SIP

    def __init__(
        self,
        facts: CallFacts,
        services: Services,
        api: CallsApi,
        start_hang_up: StartTask,
    ) -> None:
        """`facts`: of the INVITE. `start_hang_up` starts the request that ends the call
        at OpenAI, which may outlive the call."""
        self._facts = facts
        self._call_id = facts.call_sid
        self._services = services
        self._api = api
        self._start_hang_up = start_hang_up
        self._log = structlog.get_logger().bind(call_sid=facts.call_sid)
        self._owner: LegOwner | None = None
        self._session_owner: SessionOwner | None = None
        self._accepted = False
        self._accept_sent = False
        """The request to accept was sent: OpenAI may have carried it out."""
        self._left = False
        """The call has ended at OpenAI, too: no request to hang up is needed."""
        self._hanging_up: asyncio.Task[None] | None = None
        self._caller_hung_up = False
        """OpenAI had no such call any more when it was told to hang up."""
        self._referring = asyncio.Lock()

    def open(self, owner: LegOwner) -> None:
        self._owner = owner
        owner.begin(self._facts)

    def session(
        self,
        plan: SessionPlan,
        live: LiveCall,
        owner: SessionOwner,
        approvals: Approvals,
        tasks: asyncio.TaskGroup,
    ) -> SipSession:
        self._session_owner = owner
        local_mcp = self._services.local_mcp
        return SipSession(plan, live, owner, approvals, local_mcp, tasks, self)

    def send(self, texts: list[str], now: float) -> None:
        """Never called: the core has no message for a caller without a stream."""

    async def take_over(self, phone: IdentifiedPhone) -> bool:
        return False

    def leave_stream(self) -> None:
        """There is none."""

    async def close(self, ending: End) -> None:
        """Ends the call at OpenAI, where it would go on and cost money: in a task that
        may outlive the call, so that its limit does not delay the report."""
        if not self._left:
            self._start_letting_go()

    async def refer(self, transfer: Transfer) -> None:
        """Transfers by a SIP REFER: the trunk decides the number that is shown and how
        long it rings. BadRequest: it was refused, and the call goes on."""
        async with self._referring:
            if self._left:
                raise CallOver
            try:
                await self._api.refer(self._call_id, transfer.number)
            except CallGone as gone:
                # An earlier try, whose answer was lost, may have transferred the call.
                if not gone.retried:
                    self.caller_left()
                    raise CallOver from None
            except CallsApiError as error:
                self._log.warning("sip_transfer_failed", why=error.why)
                raise BadRequest(
                    "OpenAI refused the transfer of the SIP call"
                ) from None
            self._left = True
            self._call.feed(EndCall("agent", "transferred"))

    # --- called by the session (bridge.model.sip_session.SipLine) ---

    async def accept(self, session: Mapping[str, Any]) -> None:
        self._accept_sent = True
        await self._api.accept(self._call_id, session)
        self._accepted = True

    def caller_left(self) -> None:
        self._left = True
        self._call.feed(EndCall("caller", "hung_up"))

    async def caller_has_left(self) -> bool:
        await asyncio.wait([self._start_letting_go()], timeout=LIMIT_SECONDS)
        if self._caller_hung_up:
            self.caller_left()
        return self._caller_hung_up

    def connection_lost(self, connection: int, why: str, code: int | None) -> None:
        work = self._explain_loss(connection, why, code)
        self._call.start_task(work, "lost connection")

    # --- inside ---

    @property
    def _call(self) -> LegOwner:
        assert self._owner, "the call opens its leg first"
        return self._owner

    async def _explain_loss(self, connection: int, why: str, code: int | None) -> None:
        """Ends the call as the caller's hang-up, or as a lost model. If the API cannot
        tell, the network is broken and the model counts as lost."""
        async with self._referring:
            pass  # a transfer ends the connection, too, and ends the call
        if self._left:
            return
        unclear = why in ("closed", "lost") and code in UNCLEAR_CODES
        if unclear and await self.caller_has_left():
            return
        assert self._session_owner, "a session has lost its connection"
        self._session_owner.model_lost(connection, why, code)

    def _start_letting_go(self) -> asyncio.Task[None]:
        if not self._hanging_up:
            name = f"{self._call_id} hang-up"
            self._hanging_up = self._start_hang_up(self._let_go(), name)
        return self._hanging_up

    async def _let_go(self) -> None:
        """Hangs up or rejects the call at OpenAI.

        Also after a lost connection, as the cause need not be the caller's hang-up.
        """
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                if self._accepted or not await self._rejected():
                    await self._hang_up()
        except CallGone as gone:
            self._caller_hung_up = not gone.retried
        except CallsApiError as error:
            self._log.error("sip_hang_up_failed", why=error.why)
        except TimeoutError:
            self._log.error("sip_hang_up_failed", why="TimeoutError")
        except asyncio.CancelledError:
            self._log.error("sip_hang_up_failed", why="shutdown")
            raise

    async def _hang_up(self) -> None:
        for _ in range(HANG_UP_TRIES - 1):
            try:
                return await self._api.hang_up(self._call_id)
            except CallsApiError as error:
                self._log.warning("sip_hang_up_retried", why=error.why)
            await asyncio.sleep(HANG_UP_PAUSE_SECONDS)
        await self._api.hang_up(self._call_id)

    async def _rejected(self) -> bool:
        """Rejects the call. False: it may have been accepted without us knowing."""
        try:
            await self._api.reject(self._call_id, UNAVAILABLE)
        except CallGone:
            if not self._accept_sent:
                raise
            return False  # there is no call to reject: it was accepted, or has ended
        except CallsApiError as error:
            self._log.warning("sip_reject_failed", why=error.why)
            return False
        return True
