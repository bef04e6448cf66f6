"""Outbound calls: places an order through Twilio's REST API and follows its status.

Knows numbers, limits and Twilio's status reports, but not audio, streams or our HTTP
server. Data that every instance needs is stored in the registry.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
import structlog
from twilio.base.exceptions import (  # type: ignore[import-untyped]
    TwilioException,
    TwilioRestException,
)
from twilio.http.http_client import TwilioHttpClient  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]

import twiml
from bridge.app.dial_permissions import may_dial
from bridge.fleet import Registry, formats
from bridge.fleet.plan import AnsweredBy

log = structlog.get_logger()

HTTP_SECONDS = 10.0
"""Timeout of a connection to Twilio, and of each read of its response."""

REST_SECONDS = 15.0
"""Timeout of a whole request."""

RATE_WAIT_SECONDS = 5.0
"""Longest wait of an order for the rate limit; an order that would wait longer is
refused, and its sender should slow down."""

ORDER_SECONDS = 600.0
"""How long an order is stored after its ringing time: Twilio requests its document when
the call is answered."""

LONGEST_SECONDS = 4 * 3600
"""Twilio ends a call without a time limit after this."""

STATUS_SECONDS = LONGEST_SECONDS + 3600.0

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

T = TypeVar("T")


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
    ring_seconds: int = 30
    longest_seconds: int | None = None

    def __post_init__(self) -> None:
        twiml.phone_number(self.to)
        twiml.phone_number(self.from_number)
        if not self.id:
            raise ValueError("the order has no id")
        if (self.machine == "message") != bool(self.message.strip()):
            raise ValueError(
                'machine="message" needs a message, other values must have none'
            )
        if self.ring_seconds not in twiml.RING_SECONDS:
            low, high = twiml.RING_SECONDS[0], twiml.RING_SECONDS[-1]
            raise ValueError(f"ring_seconds must be from {low} to {high}")
        if self.longest_seconds is not None and self.longest_seconds < 1:
            raise ValueError("longest_seconds must be at least 1")


class CallStatus(msgspec.Struct, frozen=True):
    """The newest status of a call that Twilio has reported."""

    call_sid: str
    state: State
    sequence: int
    """Twilio's SequenceNumber; -1 before its first callback."""
    talked_seconds: int | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL


class OutboundLimited(Exception):
    """We did not place the call, because of one of our limits: `limit`.

    "off": no prefix is configured. "prefix": the number is not allowed. "at_once": too
    many calls are running. "rate": too many orders wait for the rate limit. "cost": the
    cost limit of the day is reached.
    """

    def __init__(
        self, limit: Literal["off", "prefix", "at_once", "rate", "cost"], text: str
    ) -> None:
        super().__init__(text)
        self.limit = limit


class OutboundRefused(Exception):
    """Twilio did not place the call. `code` is Twilio's error code, `status` the HTTP
    status; both are 0 if Twilio could not be reached.

    `text` may contain the number: return it to the sender of the order, do not log it.
    """

    def __init__(self, code: int, status: int, text: str) -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.code = code
        self.status = status
        self.text = text


class OutboundCalls:
    """The outbound calls of one Twilio account.

    `prefixes`: prefixes of numbers that may be called ("+1", "+4930"), or with `!` may
    not ("!+1900"); without any, no number may be called. `at_once`: limit of the calls
    that this instance has placed and that have not ended. `api_url`: another origin for
    Twilio's API, such as a proxy or a test. `now` returns monotonic seconds. `hit` is
    called with each limit that refused a call (bridge.core.limits.HITS). `day_is_spent`
    returns True when the cost limit of the day is reached.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        account_sid: str,
        auth_token: str,
        public_url: str,
        prefixes: Sequence[str],
        at_once: int = 10,
        per_second: float = 1.0,
        api_url: str | None = None,
        hit: Callable[[str], None] = lambda limit: None,
        day_is_spent: Callable[[], Awaitable[bool]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._client = Client(account_sid, auth_token, http_client=_Http(api_url))
        self._public_url = public_url.rstrip("/")
        self._prefixes = tuple(prefixes)
        self._hit = hit
        self._day_is_spent = day_is_spent
        self._now = now
        self._at_once = at_once
        self._interval = 1.0 / per_second
        self._next_at = 0.0
        """Time at which the rate limit allows the next call."""
        self._placing = 0
        self._running: dict[str, float] = {}
        """Calls that have not ended -> time at which each must have ended."""

    async def place(self, order: OutboundOrder) -> str:
        """Places the call and returns its SID.

        OutboundLimited, OutboundRefused: no call was placed, and the order cannot be
        used.
        """
        self._check_prefix(twiml.phone_number(order.to))
        if self._day_is_spent and await self._day_is_spent():
            self._hit("cost_of_day")
            raise OutboundLimited("cost", "today's calls have reached the cost limit")
        await self._take_slot()
        try:
            await self._wait_for_rate()
            call_sid = await self._create(order)
            longest = order.ring_seconds + (order.longest_seconds or LONGEST_SECONDS)
            self._running[call_sid] = self._now() + longest + REST_SECONDS
        finally:
            self._placing -= 1
        log.info("call_placed", call_sid=call_sid, order=order.id)
        await self._note(CallStatus(call_sid, "queued", -1))
        return call_sid

    async def hang_up(self, call_sid: str) -> None:
        """Ends the call; no error if it had ended already."""
        try:
            await self._ask(
                lambda: self._client.calls(call_sid).update(status="completed")
            )
        except OutboundRefused as refused:
            if refused.code not in CALL_ENDED_CODES:
                raise

    async def order(self, order_id: str) -> OutboundOrder | None:
        """The order of a placed call. It stays stored, as Twilio may ask for its
        document twice."""
        stored = await self._registry.get(_order_name(order_id))
        return formats.read(stored, OutboundOrder) if stored else None

    # --- callbacks from Twilio ---

    async def note_status(self, form: Mapping[str, str]) -> CallStatus | None:
        """Stores a status callback. Returns the call's new status, None if it is older
        than the stored one or unreadable.

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
                },
                CallStatus,
                strict=False,
            )
        except (KeyError, msgspec.ValidationError):
            log.warning("call_status_unreadable", call_sid=form.get("CallSid"))
            return None
        if status.final:
            self._running.pop(status.call_sid, None)
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

    # --- limits ---

    def _check_prefix(self, number: str) -> None:
        if not self._prefixes:
            raise OutboundLimited(
                "off", "no number may be called: no prefix is configured"
            )
        if not may_dial(number, self._prefixes):
            self._hit("outbound_number")
            raise OutboundLimited(
                "prefix", "numbers with this prefix may not be called"
            )

    async def _take_slot(self) -> None:
        """Takes one of `at_once`. `place` or the end of the call frees it."""
        if self._full:
            await self._drop_ended()
        if self._full:
            text = f"the limit of {self._at_once} running calls is reached"
            raise OutboundLimited("at_once", text)
        self._placing += 1

    @property
    def _full(self) -> bool:
        return self._placing + len(self._running) >= self._at_once

    async def _drop_ended(self) -> None:
        """Drops calls whose end was reported to another instance, or never reported."""
        for call_sid, until in list(self._running.items()):
            status = await self.status(call_sid)
            if self._now() > until or (status is not None and status.final):
                self._running.pop(call_sid, None)

    async def _wait_for_rate(self) -> None:
        """Twilio limits the calls per second that an account may place."""
        now = self._now()
        at = max(now, self._next_at)
        if at - now > RATE_WAIT_SECONDS:
            raise OutboundLimited(
                "rate", "too many orders wait for the limit of calls per second"
            )
        self._next_at = at + self._interval
        await asyncio.sleep(at - now)

    # --- Twilio ---

    async def _create(self, order: OutboundOrder) -> str:
        """Stores the order first: Twilio asks for its document when the call is
        answered."""
        name = _order_name(order.id)
        stored = formats.encode(order, self._registry.format())
        await self._registry.put(name, stored, ORDER_SECONDS + order.ring_seconds)
        options = self._options(order)
        try:
            call = await self._ask(lambda: self._client.calls.create(**options))
        except OutboundRefused as refused:
            # If Twilio did not answer, the phone may still ring. The sender of the
            # order will try again, so this call must not find its order.
            await self._registry.delete(name)
            log.warning("call_not_placed", order=order.id, code=refused.code)
            raise
        return str(call.sid)

    def _options(self, order: OutboundOrder) -> dict[str, Any]:
        # In the URL: a status may come before Twilio has answered with the call's SID.
        query = urlencode({"route": order.route})
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

    async def _ask(self, work: Callable[[], T]) -> T:
        """Runs a blocking request of Twilio's client in a thread. OutboundRefused if it
        fails."""
        try:
            async with asyncio.timeout(REST_SECONDS):
                return await asyncio.to_thread(work)
        except TwilioRestException as error:
            code = error.code or error.status
            raise OutboundRefused(code, error.status, error.msg) from error
        except (TwilioException, OSError, ValueError) as error:
            # OSError: no connection or no answer. ValueError: the answer is not
            # Twilio's, for example a proxy's page.
            text = f"no usable answer from Twilio: {type(error).__name__}"
            raise OutboundRefused(0, 0, text) from error

    async def _note(self, status: CallStatus) -> bool:
        """Stores the status. False, and nothing is stored, if a later one is known."""
        before = await self.status(status.call_sid)
        if before is not None and (
            before.final or (not status.final and before.sequence >= status.sequence)
        ):
            return False
        name = f"{'final_status' if status.final else 'status'}:{status.call_sid}"
        stored = formats.encode(status, self._registry.format())
        await self._registry.put(name, stored, STATUS_SECONDS)
        return True


class _Http(TwilioHttpClient):  # type: ignore[misc]
    """Twilio's HTTP client; `api_url` replaces the origin of Twilio's API."""

    def __init__(self, api_url: str | None) -> None:
        # The client would write eight log lines per request, so its logger is silent.
        # Each request has its own session: `requests` does not promise that threads can
        # share one.
        silent = logging.Logger("twilio", level=logging.CRITICAL)
        super().__init__(pool_connections=False, timeout=HTTP_SECONDS, logger=silent)
        self._api = None if api_url is None else urlsplit(api_url)

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        if self._api is not None:
            scheme, host, base = self._api.scheme, self._api.netloc, self._api.path
            original = urlsplit(url)
            path = base.rstrip("/") + original.path
            url = urlunsplit((scheme, host, path, original.query, ""))
        return super().request(method, url, *args, **options)


def _order_name(order_id: str) -> str:
    return f"order:{order_id}"
