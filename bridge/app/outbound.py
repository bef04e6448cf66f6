"""Outbound calls: places an order through Twilio's REST API and follows its status.

Knows orders and Twilio's status reports, but not audio, streams or our HTTP server.
Data that every instance needs is stored in the registry.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, urlencode

import msgspec
import structlog

import twiml
from bridge.app.outbound_limits import OutboundLimited, OutboundLimits
from bridge.app.twilio_api import REST_SECONDS, TwilioApi, TwilioRefused
from bridge.fleet import Registry, formats
from bridge.fleet.plan import AnsweredBy

log = structlog.get_logger()

ORDER_SECONDS = 600.0
"""How long an order is stored after its ringing time: Twilio requests its document when
the call is answered."""

LONGEST_SECONDS = 4 * 3600
"""Twilio ends a call without a time limit after this."""

STATUS_SECONDS = LONGEST_SECONDS + 3600.0

ATTEMPT_SECONDS = 24 * 3600.0
"""How long an idempotency key is remembered."""

ASK_AGAIN_SECONDS = 30.0
"""Time between two questions to Twilio whether a call has ended."""

MAX_ASKED = 20
"""Calls that Twilio is asked about for one order that a limit refuses."""

PLACED = "placed"
"""Query parameter of `/call-status`: when the call was placed, in seconds since the
epoch."""

ORDER = "order"
"""Query parameter of `/voice` and `/call-status`: the id of the order."""

EVENTS = ("initiated", "ringing", "answered", "completed")
CALL_ENDED_CODES = frozenset({20404, 21220})
"""Twilio's error codes for a call that is no longer active, or was not in progress."""

State = Literal[
    "queued",
    "initiated",
    "ringing",
    "in-progress",
    "completed",
    "busy",
    "no-answer",
    "failed",
    "canceled",
]
FINAL = frozenset({"completed", "busy", "no-answer", "failed", "canceled"})

KEYS = re.compile(r"[0-9A-D*#wW]{1,32}")
"""Keys that Twilio presses when the call is answered; w waits half a second, W one."""


class OutboundOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The number to call, and the agent and texts for the call. ValueError if the call
    cannot be placed."""

    to: str
    from_number: str
    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))
    route: str = ""
    """Name of the route; empty: the routes are matched as for an inbound call."""
    parameters: dict[str, str] = {}
    greeting: str | None = None
    machine: Literal["hang_up", "ignore", "message"] = "hang_up"
    """Action when an answering machine answers; "message": `message` is left after the
    beep."""
    message: str = ""
    agent_decides: bool = False
    """The agent hears who has answered and says it; `machine` is what is done about a
    mailbox."""
    ring_seconds: int = 30
    longest_seconds: int | None = None
    send_digits: str = ""
    """Keys that Twilio presses when the call is answered (KEYS)."""
    campaign: str = ""
    """Calls of one campaign are placed one after the other; empty: no campaign."""

    def __post_init__(self) -> None:
        twiml.phone_number(self.to)
        twiml.phone_number(self.from_number)
        if not self.id:
            raise ValueError("the order has no id")
        if (self.machine == "message") != bool(self.message.strip()):
            raise ValueError(
                'machine="message" needs a message, other values must have none'
            )
        if self.agent_decides and self.machine == "ignore":
            raise ValueError('agent_decides needs machine="hang_up" or "message"')
        if self.ring_seconds not in twiml.RING_SECONDS:
            low, high = twiml.RING_SECONDS[0], twiml.RING_SECONDS[-1]
            raise ValueError(f"ring_seconds must be from {low} to {high}")
        longest = self.longest_seconds
        if longest is not None and not 1 <= longest <= LONGEST_SECONDS:
            raise ValueError(f"longest_seconds must be from 1 to {LONGEST_SECONDS}")
        if self.send_digits and not KEYS.fullmatch(self.send_digits):
            raise ValueError("send_digits must be up to 32 of 0-9 A-D * # w W")
        if self.send_digits and self.machine != "ignore":
            raise ValueError(
                "send_digits switches Twilio's machine detection off: "
                'set machine="ignore"'
            )


class CallStatus(msgspec.Struct, frozen=True):
    """The newest status of a call that Twilio has reported."""

    call_sid: str
    state: State
    sequence: int
    """Twilio's SequenceNumber; -1 before its first callback."""
    talked_seconds: int | None = None
    sip_code: int | None = None
    """Why the call failed: the SIP code of the callee's network."""
    error_code: int | None = None
    """Why the call failed: Twilio's error code."""

    @property
    def final(self) -> bool:
        return self.state in FINAL


class RepeatedKey(Exception):
    """An order with an idempotency key that was used before, and no call to name.

    `other`: the earlier order was another one. Else the earlier order is still being
    placed, or Twilio did not say whether it was.
    """

    def __init__(self, *, other: bool) -> None:
        super().__init__(
            "this Idempotency-Key was used for another call"
            if other
            else "a call with this Idempotency-Key is being placed, or Twilio did not "
            "say whether it was placed: no other one is placed"
        )
        self.other = other


class OutboundCalls:
    """The outbound calls of one Twilio account.

    `key`: of the hashes of numbers and idempotency keys; the same for all instances.
    For the limits see OutboundLimits.
    """

    def __init__(
        self,
        registry: Registry,
        twilio: TwilioApi,
        *,
        public_url: str,
        prefixes: Sequence[str],
        key: bytes = b"",
        at_once: int = 10,
        per_second: float = 1.0,
        hit: Callable[[str], None] = lambda limit: None,
        day_is_spent: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._registry = registry
        self._twilio = twilio
        self._public_url = public_url.rstrip("/")
        self._limits = OutboundLimits(
            registry,
            prefixes=prefixes,
            at_once=at_once,
            per_second=per_second,
            key=key,
            hit=hit,
            day_is_spent=day_is_spent,
        )

    async def place(self, order: OutboundOrder, idempotency_key: str = "") -> str:
        """Places the call and returns its SID. With an `idempotency_key` that was used
        before, returns the SID of the earlier call.

        OutboundLimited, TwilioRefused, RepeatedKey: no call was placed, and the order
        cannot be used.
        """
        if not idempotency_key:
            await self._admit(order)
            return await self._place(order, keep=False)
        name = f"attempt:{hashlib.sha256(idempotency_key.encode()).hexdigest()}"
        attempt = f"{_digest(order)} {order.id}".encode()
        await self._require_registry()
        if not await self._registry.set_if_absent(name, ATTEMPT_SECONDS, attempt):
            return await self._placed_before(name, order)
        await self._require_registry()  # it may be lost by now: then all may be first
        try:
            await self._admit(order)
        except BaseException:  # refused, or cancelled: Twilio was not asked
            await self._registry.delete(name)
            raise
        try:
            return await self._place(order, keep=True)
        except TwilioRefused as refused:
            if not refused.unsure:
                await self._registry.delete(name)
            raise

    async def _require_registry(self) -> None:
        """OutboundLimited if another instance may have had the same key."""
        if self._registry.shared and not await self._registry.reachable():
            text = "it is not known whether this Idempotency-Key was used: try later"
            raise OutboundLimited("registry", text)

    async def _placed_before(self, name: str, order: OutboundOrder) -> str:
        stored = (await self._registry.get(name) or b"").decode()
        digest, _, order_id = stored.partition(" ")
        if not stored:  # the first attempt has just failed, and freed the key
            raise RepeatedKey(other=False)
        if digest != _digest(order):
            raise RepeatedKey(other=True)
        call_sid = await self._registry.get(f"order_call:{order_id}")
        if call_sid is None:
            raise RepeatedKey(other=False)
        return call_sid.decode()

    async def _admit(self, order: OutboundOrder) -> None:
        """Takes the places of a call. OutboundLimited: it may not be placed now."""
        number = twiml.phone_number(order.to)
        await self._limits.check(number)
        longest = order.ring_seconds + (order.longest_seconds or LONGEST_SECONDS)
        seconds = longest + 2 * REST_SECONDS
        try:
            await self._limits.take(order, number, seconds)
        except OutboundLimited as limited:
            if not await self._release_ended(limited.orders):
                raise
            await self._limits.take(order, number, seconds)

    async def _place(self, order: OutboundOrder, *, keep: bool) -> str:
        """`keep`: the order stays if Twilio did not say whether it places the call."""
        try:
            call_sid = await self._create(order, keep=keep)
        except BaseException as error:
            if _is_unsure(error):
                rings = order.ring_seconds + 2 * REST_SECONDS
                await self._limits.shorten(order.id, rings)
            else:
                await self._limits.release(order.id)
            raise
        log.info("call_placed", call_sid=call_sid, order=order.id)
        await self._note_call(order.id, call_sid)
        await self._note(CallStatus(call_sid, "queued", -1))
        return call_sid

    async def _release_ended(self, order_ids: Sequence[str]) -> bool:
        """Asks Twilio about the calls of these orders, because the report of their end
        may be lost. True: the places of one at least are free now."""
        asked = [self._release_if_ended(it) for it in order_ids[:MAX_ASKED]]
        return any(await asyncio.gather(*asked))

    async def _release_if_ended(self, order_id: str) -> bool:
        registry = self._registry
        call_sid = (await registry.get(f"order_call:{order_id}") or b"").decode()
        # Senders of orders that are refused try again and again.
        name = f"outbound_asked:{order_id}"
        if not call_sid or not await registry.set_if_absent(name, ASK_AGAIN_SECONDS):
            return False
        try:
            call = await self._twilio.ask(lambda it: it.calls(call_sid).fetch_async())
        except TwilioRefused:
            return False
        if call.status not in FINAL:
            return False
        log.warning("call_status_lost", call_sid=call_sid, status=call.status)
        await self._limits.release(order_id)
        return True

    async def cancel(
        self, call_sid: str
    ) -> tuple[CallStatus | None, OutboundOrder | None]:
        """Cancels a call that was not answered yet. Returns its status (None: the call
        is unknown), and its order if this request has canceled it: the sender of this
        request then reports the end, as Twilio reports none for a call in its queue.
        """
        status = await self.status(call_sid)
        if status is None or status.final or status.state == "in-progress":
            return status, None
        try:
            call = await self._twilio.ask(
                lambda it: it.calls(call_sid).update_async(status="canceled")
            )
        except TwilioRefused as refused:
            if refused.code not in CALL_ENDED_CODES:
                raise
            return CallStatus(call_sid, "completed", status.sequence), None
        if call.status == "in-progress":  # answered at this moment
            return CallStatus(call_sid, "in-progress", status.sequence), None
        canceled = CallStatus(call_sid, "canceled", status.sequence)
        if not await self._note(canceled):
            return await self.status(call_sid), None
        log.info("call_canceled", call_sid=call_sid)
        order_id = (await self._registry.get(f"call_order:{call_sid}") or b"").decode()
        await self._limits.release(order_id)
        return canceled, await self.order(order_id)

    async def hang_up(self, call_sid: str) -> None:
        """Ends the call; no error if it had ended already."""
        try:
            await self._twilio.ask(
                lambda it: it.calls(call_sid).update_async(status="completed")
            )
        except TwilioRefused as refused:
            if refused.code not in CALL_ENDED_CODES:
                raise

    async def order(self, order_id: str) -> OutboundOrder | None:
        """The order of a placed call. It stays stored, as Twilio may ask for its
        document twice."""
        stored = await self._registry.get(_order_name(order_id))
        return formats.read(stored, OutboundOrder) if stored else None

    # --- callbacks from Twilio ---

    async def note_status(
        self, form: Mapping[str, str], order_id: str = ""
    ) -> CallStatus | None:
        """Stores a status callback. Returns the call's new status, None if it is older
        than the stored one or unreadable. `order_id`: of the call, if it is known.

        Callbacks arrive out of order and at any instance: the one with the highest
        sequence number stays, and a final one is never replaced.
        """
        try:
            status = msgspec.convert(
                {
                    "call_sid": form["CallSid"],
                    "state": form["CallStatus"],
                    "sequence": form.get("SequenceNumber", 0),
                    "talked_seconds": form.get("CallDuration") or None,
                    "sip_code": _code(form.get("SipResponseCode")),
                    "error_code": _code(form.get("ErrorCode")),
                },
                CallStatus,
                strict=False,
            )
        except (KeyError, msgspec.ValidationError):
            log.warning("call_status_unreadable", call_sid=form.get("CallSid"))
            return None
        if order_id:
            # The answer to our request may be lost, so this may be the first time that
            # the call's SID is known.
            await self._note_call(order_id, status.call_sid)
            if status.final:
                await self._limits.release(order_id)
        return status if await self._note(status) else None

    async def status(self, call_sid: str) -> CallStatus | None:
        """The newest status; None if the call is unknown or its status has expired."""
        # A final status has its own name: when two instances get two callbacks at the
        # same time, the one that is not final must not overwrite the final one.
        stored = await self._registry.get(f"final_status:{call_sid}")
        if stored is None:
            stored = await self._registry.get(f"status:{call_sid}")
        return formats.read(stored, CallStatus) if stored else None

    async def answered_by(self, form: Mapping[str, str]) -> AnsweredBy | None:
        """The result of the answering machine detection; None if the form has none.

        The result is stored (bridge.fleet.plan), because the callback may arrive before
        the stream and at another instance.
        """
        call_sid, said = form.get("CallSid"), form.get("AnsweredBy")
        if not call_sid or not said:
            log.warning("answered_by_unreadable", call_sid=call_sid)
            return None
        # "unknown", and values that Twilio may add, count as a human: the bridge must
        # not hang up on a person.
        known = frozenset(AnsweredBy)
        found = AnsweredBy(said) if said in known else AnsweredBy.HUMAN
        await found.keep(self._registry, call_sid)
        log.info("answered_by", call_sid=call_sid, by=found.value)
        return found

    # --- Twilio ---

    async def _create(self, order: OutboundOrder, *, keep: bool) -> str:
        """Stores the order first: Twilio asks for its document when the call is
        answered."""
        name = _order_name(order.id)
        stored = formats.encode(order, self._registry.format())
        await self._registry.put(name, stored, ORDER_SECONDS + order.ring_seconds)
        options = self._options(order)
        try:
            call = await self._twilio.ask(lambda it: it.calls.create_async(**options))
            if not call.sid:
                text = "the answer names no call"
                raise TwilioRefused(0, 0, text, unsure=True)
        except BaseException as error:
            # If Twilio did not answer, the phone may still ring. The sender of the
            # order will try again, so this call must not find its order. With an
            # idempotency key the same order is not placed again.
            if not (keep and _is_unsure(error)):
                await self._registry.delete(name)
            code = error.code if isinstance(error, TwilioRefused) else 0
            log.warning("call_not_placed", order=order.id, code=code)
            raise
        return str(call.sid)

    def _options(self, order: OutboundOrder) -> dict[str, Any]:
        # In the URL: a status may come before Twilio has answered with the call's SID.
        placed = int(self._registry.clock())
        values = {ORDER: order.id, PLACED: placed, "route": order.route}
        query = urlencode(sorted(values.items()))
        options: dict[str, Any] = {
            "to": twiml.phone_number(order.to),
            "from_": twiml.phone_number(order.from_number),
            "url": f"{self._public_url}/voice?order={quote(order.id, safe='')}",
            "method": "POST",
            "status_callback": f"{self._public_url}/call-status?{query}",
            "status_callback_method": "POST",
            # A list is sent as one parameter per event, as Twilio requires.
            "status_callback_event": list(EVENTS),
            "timeout": order.ring_seconds,
        }
        if order.longest_seconds is not None:
            options["time_limit"] = order.longest_seconds
        if order.send_digits:
            options["send_digits"] = order.send_digits
        if order.machine != "ignore":
            # Asynchronous: else the callee hears silence until Twilio has a result.
            message = order.machine == "message"
            options |= {
                "machine_detection": "DetectMessageEnd" if message else "Enable",
                "async_amd": "true",
                "async_amd_status_callback": f"{self._public_url}/amd-status",
                "async_amd_status_callback_method": "POST",
            }
        return options

    async def _note_call(self, order_id: str, call_sid: str) -> None:
        """Twilio has given the call of this order its SID."""
        name, sid = f"order_call:{order_id}", call_sid.encode()
        if await self._registry.set_if_absent(name, ATTEMPT_SECONDS, sid):
            name = f"call_order:{call_sid}"
            await self._registry.put(name, order_id.encode(), STATUS_SECONDS)

    async def _note(self, status: CallStatus) -> bool:
        """Stores the status. False, and nothing is stored, if a later one is known. Of
        several final ones only one is stored."""
        before = await self.status(status.call_sid)
        if before is not None and (
            before.final or (not status.final and before.sequence >= status.sequence)
        ):
            return False
        stored = formats.encode(status, self._registry.format())
        if status.final:
            name = f"final_status:{status.call_sid}"
            return await self._registry.set_if_absent(name, STATUS_SECONDS, stored)
        await self._registry.put(f"status:{status.call_sid}", stored, STATUS_SECONDS)
        return True


def _order_name(order_id: str) -> str:
    return f"order:{order_id}"


def _is_unsure(error: BaseException) -> bool:
    """The call may have been placed: Twilio's answer was lost, or not waited for."""
    return not isinstance(error, TwilioRefused) or error.unsure


def _digest(order: OutboundOrder) -> str:
    """The same for two orders that differ in their id alone."""
    same = msgspec.structs.replace(order, id="-")
    return hashlib.sha256(msgspec.json.encode(same)).hexdigest()


def _code(text: str | None) -> int | None:
    """A code that is not a number is not known: the status counts all the same."""
    return int(text) if text and text.isdecimal() and len(text) <= 9 else None
