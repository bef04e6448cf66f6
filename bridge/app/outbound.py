"""Calls that we place: an order in, a ringing telephone out, by Twilio's REST API.

Knows numbers, limits and what Twilio reports of a call; nothing of audio, streams or
HTTP requests of ours. What has to be known on any instance is on the registry's shelf.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import structlog
from twilio.base.exceptions import (  # type: ignore[import-untyped]
    TwilioException,
    TwilioRestException,
)
from twilio.http.http_client import TwilioHttpClient  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]

import twiml
from bridge.app.quotas import may_dial
from bridge.fleet import Registry, formats
from bridge.fleet.plan import AnsweredBy

log = structlog.get_logger()

HTTP_SECONDS = 10.0
"""For Twilio to take a connection, and for each piece of its answer."""

REST_SECONDS = 15.0
"""For a request as a whole."""

TURN_SECONDS = 5.0
"""That an order waits for its turn; beyond, whoever places it should slow down."""

ORDER_SECONDS = 600.0
"""That an order is kept, beside the ringing: Twilio asks for it when it is answered."""

LONGEST_SECONDS = 4 * 3600
"""Of a call to which no limit was given: Twilio ends it then."""

STATUS_SECONDS = LONGEST_SECONDS + 3600.0

EVENTS = ("initiated", "ringing", "answered", "completed")
IS_OVER = frozenset({20404, 21220})
"""Twilio's codes for a call that is no longer active, or was not in progress."""

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
    """Who is to be called and what for. ValueError for what cannot be placed."""

    to: str
    from_number: str
    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(16))
    route: str = ""
    """The agent's name; empty: as for a call that came in."""
    parameters: dict[str, str] = {}
    greeting: str | None = None
    machine: Literal["hang_up", "ignore", "message"] = "hang_up"
    """What happens when an answering machine picks up; "message": `message` is left
    after the beep."""
    message: str = ""
    ring_seconds: int = 30
    longest_seconds: int | None = None

    def __post_init__(self) -> None:
        twiml.phone_number(self.to)
        twiml.phone_number(self.from_number)
        if not self.id:
            raise ValueError("the order has no id")
        if (self.machine == "message") != bool(self.message.strip()):
            raise ValueError('a message is for machine="message", which needs one')
        if self.ring_seconds not in twiml.RING_SECONDS:
            low, high = twiml.RING_SECONDS[0], twiml.RING_SECONDS[-1]
            raise ValueError(f"ring_seconds is not within {low} to {high}")
        if self.longest_seconds is not None and self.longest_seconds < 1:
            raise ValueError("longest_seconds is not positive")


class CallStatus(msgspec.Struct, frozen=True):
    """The newest that Twilio has told of a call."""

    call_sid: str
    state: State
    sequence: int
    """Twilio's SequenceNumber; -1 before its first callback."""
    talked_seconds: int | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL


class OutboundLimited(Exception):
    """We do not place the call; `limit` says which of our limits is in the way.

    "off": no prefix is allowed. "prefix": this number is not. "at_once": too many calls
    are running. "rate": too many orders wait for their turn. "cost": the day has cost
    what a day may.
    """

    def __init__(
        self, limit: Literal["off", "prefix", "at_once", "rate", "cost"], text: str
    ) -> None:
        super().__init__(text)
        self.limit = limit


class OutboundRefused(Exception):
    """Twilio did not place the call; both numbers are 0 when it could not be reached.

    `text` may name the number: it is for whoever placed the order, not for the log.
    """

    def __init__(self, code: int, status: int, text: str) -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.code = code
        self.status = status
        self.text = text


class OutboundCalls:
    """The calls of one account.

    `prefixes` are the beginnings of numbers that may be called ("+1", "+4930"), or with
    `!` may not ("!+1900"): without any, nothing is. `at_once` counts the calls that
    this instance has placed and that have not ended. `api_url` is another origin for
    Twilio's API: a proxy, a test. `now` gives seconds of a clock that never goes back.
    `hit` hears of limits (bridge.core.limits.HITS), `day_is_spent` says whether no more
    calls are to be paid for.
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
        self._turn_seconds = 1.0 / per_second
        self._next_turn = 0.0
        self._placing = 0
        self._running: dict[str, float] = {}
        """Calls that have not ended, and when each must have."""

    async def place(self, order: OutboundOrder) -> str:
        """The SID of the call, which rings from now on.

        OutboundLimited, OutboundRefused: it does not, and the order is void.
        """
        self._check_prefix(twiml.phone_number(order.to))
        if self._day_is_spent and await self._day_is_spent():
            self._hit("cost_of_day")
            raise OutboundLimited("cost", "today's calls have cost what they may")
        await self._take_slot()
        try:
            await self._take_turn()
            call_sid = await self._create(order)
            longest = order.ring_seconds + (order.longest_seconds or LONGEST_SECONDS)
            self._running[call_sid] = self._now() + longest + REST_SECONDS
        finally:
            self._placing -= 1
        log.info("call_placed", call_sid=call_sid, order=order.id)
        await self._note(CallStatus(call_sid, "queued", -1))
        return call_sid

    async def hang_up(self, call_sid: str) -> None:
        """Ends the call; well if it was over already."""
        try:
            await self._ask(
                lambda: self._client.calls(call_sid).update(status="completed")
            )
        except OutboundRefused as refused:
            if refused.code not in IS_OVER:
                raise

    async def order(self, order_id: str) -> OutboundOrder | None:
        """What the call is for that Twilio asks about; Twilio may ask twice."""
        kept = await self._registry.get(_order_name(order_id))
        return formats.read(kept, OutboundOrder) if kept else None

    # --- what Twilio tells ---

    async def note_status(self, form: Mapping[str, str]) -> CallStatus | None:
        """A status callback; the call's new status, None where it is no news.

        They come out of order and on any instance: a later one stays, and a final one
        for good.
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
        """The newest status; None for a call nobody knows (any more)."""
        # A name of its own: of two callbacks that come to two instances at the same
        # time, the one that is not final must not overwrite the one that is.
        kept = await self._registry.get(f"final_status:{call_sid}")
        if kept is None:
            kept = await self._registry.get(f"status:{call_sid}")
        return formats.read(kept, CallStatus) if kept else None

    async def answered_by(self, form: Mapping[str, str]) -> AnsweredBy | None:
        """What the detection of machines has found; None for a form that says nothing.

        Kept (bridge.fleet.plan): it may come before the stream, and elsewhere.
        """
        call_sid, said = form.get("CallSid"), form.get("AnsweredBy")
        if not call_sid or not said:
            log.warning("answered_by_unreadable", call_sid=call_sid)
            return None
        # Whoever may be a human is not hung up on: "unknown", and words yet to come.
        known = frozenset(AnsweredBy)
        found = AnsweredBy(said) if said in known else AnsweredBy.HUMAN
        await found.keep(self._registry, call_sid)
        log.info("answered_by", call_sid=call_sid, by=found.value)
        return found

    # --- limits ---

    def _check_prefix(self, number: str) -> None:
        if not self._prefixes:
            raise OutboundLimited("off", "no number may be called: no prefix is set")
        if not may_dial(number, self._prefixes):
            self._hit("outbound_number")
            raise OutboundLimited("prefix", "numbers that begin so are not allowed")

    async def _take_slot(self) -> None:
        """Of the calls at once; given back by `place` or by the call's end."""
        if self._full:
            await self._drop_ended()
        if self._full:
            text = f"{self._at_once} calls are running, which is the limit"
            raise OutboundLimited("at_once", text)
        self._placing += 1

    @property
    def _full(self) -> bool:
        return self._placing + len(self._running) >= self._at_once

    async def _drop_ended(self) -> None:
        """Calls whose end was told to another instance, or to none."""
        for call_sid, until in list(self._running.items()):
            status = await self.status(call_sid)
            if self._now() > until or (status is not None and status.final):
                self._running.pop(call_sid, None)

    async def _take_turn(self) -> None:
        """So many calls a second does Twilio take from an account."""
        now = self._now()
        at = max(now, self._next_turn)
        if at - now > TURN_SECONDS:
            raise OutboundLimited("rate", "too many calls wait for their turn")
        self._next_turn = at + self._turn_seconds
        await asyncio.sleep(at - now)

    # --- Twilio ---

    async def _create(self, order: OutboundOrder) -> str:
        """The order is where Twilio's question for it finds it, then the call rings."""
        name = _order_name(order.id)
        kept = formats.encode(order, self._registry.format())
        await self._registry.put(name, kept, ORDER_SECONDS + order.ring_seconds)
        options = self._options(order)
        try:
            call = await self._ask(lambda: self._client.calls.create(**options))
        except OutboundRefused as refused:
            # Where no answer came the telephone may ring all the same. Whoever hears
            # "refused" will try again: this call is not to find its order.
            await self._registry.pop(name)
            log.warning("call_not_placed", order=order.id, code=refused.code)
            raise
        return str(call.sid)

    def _options(self, order: OutboundOrder) -> dict[str, Any]:
        options: dict[str, Any] = {
            "to": twiml.phone_number(order.to),
            "from_": twiml.phone_number(order.from_number),
            "url": f"{self._public_url}/voice?order={quote(order.id, safe='')}",
            "method": "POST",
            "status_callback": f"{self._public_url}/call-status",
            "status_callback_method": "POST",
            # A list: each goes as a parameter of its own, as Twilio wants them.
            "status_callback_event": list(EVENTS),
            "timeout": order.ring_seconds,
        }
        if order.longest_seconds is not None:
            options["time_limit"] = order.longest_seconds
        if order.machine != "ignore":
            # Beside the call: else whoever answers hears silence until Twilio is sure.
            waits = order.machine == "message"
            options |= {
                "machine_detection": "DetectMessageEnd" if waits else "Enable",
                "async_amd": "true",
                "async_amd_status_callback": f"{self._public_url}/amd-status",
                "async_amd_status_callback_method": "POST",
            }
        return options

    async def _ask(self, work: Callable[[], T]) -> T:
        """A request by Twilio's client, which blocks; OutboundRefused when it fails."""
        try:
            async with asyncio.timeout(REST_SECONDS):
                return await asyncio.to_thread(work)
        except TwilioRestException as error:
            code = error.code or error.status
            raise OutboundRefused(code, error.status, error.msg) from error
        except (TwilioException, OSError, ValueError) as error:
            # No connection or answer (OSError), or one that is not Twilio's: a proxy's
            # page (ValueError).
            text = f"Twilio could not be asked: {type(error).__name__}"
            raise OutboundRefused(0, 0, text) from error

    async def _note(self, status: CallStatus) -> bool:
        """Keep it; False where a later one was known."""
        before = await self.status(status.call_sid)
        if before is not None and (
            before.final or (not status.final and before.sequence >= status.sequence)
        ):
            return False
        name = f"{'final_status' if status.final else 'status'}:{status.call_sid}"
        kept = formats.encode(status, self._registry.format())
        await self._registry.put(name, kept, STATUS_SECONDS)
        return True


class _Http(TwilioHttpClient):  # type: ignore[misc]
    """Twilio's own HTTP client, which may be sent elsewhere."""

    def __init__(self, api_url: str | None) -> None:
        # Eight lines of log a request: for nobody. A session of its own for each, as
        # `requests` does not promise one to several threads.
        unheard = logging.Logger("twilio", level=logging.CRITICAL)
        super().__init__(pool_connections=False, timeout=HTTP_SECONDS, logger=unheard)
        self._api = None if api_url is None else urlsplit(api_url)

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        if self._api is not None:
            scheme, host, base = self._api.scheme, self._api.netloc, self._api.path
            wanted = urlsplit(url)
            path = base.rstrip("/") + wanted.path
            url = urlunsplit((scheme, host, path, wanted.query, ""))
        return super().request(method, url, *args, **options)


def _order_name(order_id: str) -> str:
    return f"order:{order_id}"
