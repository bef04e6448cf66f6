"""The second call of a warm transfer: the person who is called while the caller goes on
talking with the agent.

Places and ends it over Twilio's REST API, and stores what all instances must know of
it. Knows no audio, no request and no text for the agent; core/transfers.py decides.
"""

import asyncio
import secrets
from typing import Any
from urllib.parse import urlencode

import msgspec
import structlog

import twiml
from bridge.agent.live import BadRequest, CallFacts, Transfer
from bridge.app.outbound import CALL_ENDED_CODES
from bridge.app.outbound_limits import OutboundLimited, OutboundLimits
from bridge.app.quotas import shows_number
from bridge.app.settings import Settings
from bridge.app.twilio_api import RestAccess, TwilioApi, TwilioRefused
from bridge.core.transfers import (
    FailedTransfer,
    WarmOutcome,
    WarmTransfer,
    whisper_of,
)
from bridge.fleet import Registry, formats
from twiml import spoken_texts

log = structlog.get_logger()

WARM_SECONDS = 1200.0
"""How long a warm transfer is stored: the phone may ring for 600 s."""

WARM = "warm"
"""Query parameter of the URLs of a warm transfer: its id."""

ALONE = "alone"
"""Query parameter of `/voice/next`: the person has left, and the caller is alone in the
conference."""

DETECTS = "detects"
"""Query parameter of `/voice/warm`: Twilio detects machines, so `AnsweredBy` must be
there."""

OF_CALL = "call"
"""Query parameter of the URLs for the leg of a person: the caller's call."""


def missing_for_warm(settings: Settings) -> list[str]:
    """The settings that warm transfers need and that are not set."""
    names = {
        "BRIDGE_PUBLIC_URL": settings.public_url,
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
    }
    missing = [name for name, value in names.items() if value is None]
    if not missing and RestAccess.of(settings) is None:
        missing.append("TWILIO_AUTH_TOKEN, or TWILIO_API_KEY and TWILIO_API_SECRET")
    return missing


class WarmCalls:
    """The second calls of one account."""

    def __init__(
        self,
        registry: Registry,
        access: RestAccess,
        limits: OutboundLimits,
        *,
        public_url: str,
        outbound_number: str = "",
    ) -> None:
        """`outbound_number`: shown to the person where the bridge has no number in the
        call; empty: none."""
        self._registry = registry
        self._access = access
        self._limits = limits
        self._public_url = public_url.rstrip("/")
        self._outbound_number = outbound_number
        self._api: TwilioApi | None = None

    async def prepare(self) -> None:
        """Imports Twilio's client, in a thread: that takes so long that calls would
        notice it."""
        if self._api is None:
            self._api = await asyncio.to_thread(TwilioApi, self._access)

    # --- the transfer ---

    def plan(
        self, facts: CallFacts, to: Transfer, summary: str, language: str
    ) -> WarmTransfer:
        """A new transfer of the call. BadRequest: it is not possible in this call."""
        if facts.account_sid and facts.account_sid != self._access.account_sid:
            raise BadRequest("this call is of a Twilio account without REST access")
        self._from_number(facts, to)
        default = spoken_texts.PRESS_1 if to.accept else ""
        return WarmTransfer(
            id=secrets.token_hex(8),
            call_sid=facts.call_sid,
            number=to.number,
            began=self._registry.clock(),
            ring_seconds=to.ring_seconds,
            whisper=whisper_of(summary, to.whisper, default),
            accept=to.accept,
            language=language,
        )

    async def ring(
        self, warm: WarmTransfer, facts: CallFacts, to: Transfer
    ) -> WarmTransfer:
        """Calls the person; returns the transfer with the SID of that call. BadRequest:
        the person is not called."""
        try:
            await self.prepare()
            await self._limits.take_transfer(warm.id, warm.due - warm.began)
        except OutboundLimited as limited:
            raise BadRequest(str(limited)) from None
        await self._put(warm)  # Twilio asks for the document when it is answered
        options = self._options(warm, self._from_number(facts, to), to.digits)
        try:
            call = await self._twilio.ask(lambda it: it.calls.create_async(**options))
            if not call.sid:
                raise TwilioRefused(0, 0, "the answer names no call", unsure=True)
        except BaseException as error:
            # A phone that rings all the same is hung up on: its transfer is unknown.
            await self.forget(warm)
            if not isinstance(error, TwilioRefused):
                raise
            log.warning("call_not_placed", call_sid=warm.call_sid, code=error.code)
            text = "Twilio has not placed the call to the person"
            raise BadRequest(f"{text} (error {error.code})") from None
        placed = msgspec.structs.replace(warm, leg=str(call.sid))
        await self._put(placed)
        return placed

    async def of_call(self, call_sid: str) -> WarmTransfer | None:
        """The transfer of this call that is under way."""
        stored = await self._registry.get(f"warm:{call_sid}")
        return formats.read(stored, WarmTransfer) if stored else None

    async def forget(self, warm: WarmTransfer) -> None:
        """The transfer is over, or has never begun."""
        await self._registry.delete(f"warm:{warm.call_sid}")
        await self._limits.release(warm.id)

    # --- what was decided ---

    async def outcome(self, warm_id: str) -> WarmOutcome | None:
        """None: nothing is decided yet."""
        stored = await self._registry.get(f"warm_outcome:{warm_id}")
        return formats.read(stored, WarmOutcome) if stored else None

    async def decide(self, warm_id: str, outcome: WarmOutcome) -> WarmOutcome:
        """Decides the transfer, unless it was decided before, on whatever instance.
        Returns the decision that counts."""
        name = f"warm_outcome:{warm_id}"
        stored = formats.encode(outcome, self._registry.format())
        if await self._registry.set_if_absent(name, WARM_SECONDS, stored):
            await self._limits.release(warm_id)
            return outcome
        return await self.outcome(warm_id) or outcome

    async def give_up(self, warm: WarmTransfer, why: str) -> None:
        """The caller is not there any more, or nobody has decided in time: ends the
        person's call."""
        await self.decide(warm.id, WarmOutcome(FailedTransfer(why)))
        await self.forget(warm)
        await self.end_leg(warm.leg)

    def now(self) -> float:
        """Seconds since the epoch, by the clock of all instances."""
        return self._registry.clock()

    async def end_leg(self, leg: str) -> None:
        """Ends the person's call; no error if it had ended already. `leg`: its SID;
        empty: Twilio has not named the call (see `ring`)."""
        if not leg:
            return
        try:
            # `canceled` does not end a call that was answered, and what `completed`
            # does to a call that rings is not documented.
            for status in ("canceled", "completed"):
                call = await self._update(leg, status=status)
                if call.status != "in-progress":
                    break
        except TwilioRefused as refused:
            if refused.code not in CALL_ENDED_CODES:
                log.warning("leg_not_ended", call_sid=leg, code=refused.code)

    # --- the conference ---

    async def caller_joins(self, warm: WarmTransfer) -> bool:
        """The caller is sent to the conference. False: the person has left."""
        now = str(self._registry.clock()).encode()
        # Written before the other is read, as in `leg_ended`: one of both sees it.
        await self._registry.put(f"warm_joined:{warm.id}", now, WARM_SECONDS)
        return not await self.has_left(warm.id)

    async def joined_at(self, warm_id: str) -> float | None:
        """When the caller was sent to the conference; None: not, or long ago."""
        stored = await self._registry.get(f"warm_joined:{warm_id}")
        return float(stored) if stored else None

    async def has_left(self, warm_id: str) -> bool:
        """The person has accepted, and hung up."""
        return await self._registry.get(f"warm_left:{warm_id}") is not None

    async def person_left(self, warm_id: str) -> None:
        await self._registry.put(f"warm_left:{warm_id}", b"1", WARM_SECONDS)

    async def claim_return(self, warm_id: str) -> bool:
        """True for the first that brings the caller back from the conference."""
        return await self._registry.set_if_absent(f"warm_back:{warm_id}", WARM_SECONDS)

    async def fetch_back(self, warm_id: str, call_sid: str) -> None:
        """Takes the caller, who is alone in the conference, out of it."""
        query = {ALONE: "1", WARM: warm_id, "once": secrets.token_urlsafe(9)}
        url = f"{self._public_url}/voice/next?{urlencode(sorted(query.items()))}"
        try:
            await self._update(call_sid, url=url, method="POST")
        except TwilioRefused as refused:
            if refused.code not in CALL_ENDED_CODES:
                log.warning("caller_left_alone", call_sid=call_sid, code=refused.code)

    # --- Twilio ---

    @property
    def _twilio(self) -> TwilioApi:
        assert self._api, "`prepare` comes first"
        return self._api

    async def _update(self, call_sid: str, **values: str) -> Any:
        await self.prepare()
        return await self._twilio.ask(
            lambda it: it.calls(call_sid).update_async(**values)
        )

    async def _put(self, warm: WarmTransfer) -> None:
        stored = formats.encode(warm, self._registry.format())
        await self._registry.put(f"warm:{warm.call_sid}", stored, WARM_SECONDS)

    def _from_number(self, facts: CallFacts, to: Transfer) -> str:
        """The number that calls: Twilio takes only numbers of the account."""
        ours = facts.ours if shows_number(facts.ours) else ""
        number = to.caller_id or ours or self._outbound_number
        if not number:
            raise BadRequest(
                "no number can call the person: set BRIDGE_OUTBOUND_NUMBER"
            )
        return twiml.phone_number(number)

    def _options(
        self, warm: WarmTransfer, from_number: str, digits: str
    ) -> dict[str, Any]:
        # `digits` switch the detection off, and a machine presses no key. The document
        # is requested after it: the caller must not meet a mailbox.
        detects = not digits and not warm.accept
        values = {OF_CALL: warm.call_sid, WARM: warm.id}
        status = urlencode(sorted(values.items()))
        values["once"] = secrets.token_urlsafe(9)
        if detects:
            values[DETECTS] = "1"
        query = urlencode(sorted(values.items()))
        options: dict[str, Any] = {
            "to": warm.number,
            "from_": from_number,
            "url": f"{self._public_url}/voice/warm?{query}",
            "method": "POST",
            "status_callback": f"{self._public_url}/warm-status?{status}",
            "status_callback_method": "POST",
            "status_callback_event": ["completed"],
            "timeout": warm.ring_seconds,
        }
        if digits:
            options["send_digits"] = digits
        if detects:
            options["machine_detection"] = "Enable"
        return options
