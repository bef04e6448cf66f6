"""Calls over the Realtime Calls API (SIP): OpenAI's webhook and the admission of calls.

This module has no HTTP server: `incoming` gets a request's headers and body. An
admitted call is a `Call` with a `SipLeg`.
"""

import asyncio
import re
from collections.abc import Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import msgspec
import structlog

from bridge.agent.live import CallFacts, LiveCall
from bridge.app.routes import Route
from bridge.app.services import Services
from bridge.app.settings import Settings
from bridge.call.call import Call
from bridge.call.sip_leg import SipLeg
from bridge.core import UNREADABLE
from bridge.model.calls_api import CallGone, CallsApi, CallsApiError, rest_url
from bridge.model.sip_session import NOT_ON_SIP
from bridge.records.standard_webhooks import TOLERANCE_SECONDS, is_signed, signing_key
from twiml.phone_numbers import PhoneNumber

log = structlog.get_logger()

KNOWN_SECONDS = 2.0 * TOLERANCE_SECONDS + 60.0
"""How long a call's first delivery is remembered. Afterwards its signature is too old,
by the clock of the registry, which instances may know a little late."""

ANSWER_SECONDS = 2.0
"""Limit of a webhook's answer; OpenAI repeats a webhook that is answered with 503."""

CLOSE_SECONDS = 12.0
"""Time that the remaining hang-ups get at shutdown, so that no call goes on."""

ELSEWHERE = 503, "another instance takes calls"
"""HAProxy tries the next instance; without HAProxy, OpenAI repeats the webhook."""

SIP_CALL_TAKEN = 200, "taken"
"""The call is decided; only its first delivery gets this answer."""

BUSY_HERE = 486
"""SIP status: all lines are busy, or this caller is refused. https://www.rfc-editor.org/rfc/rfc3261#section-21.4.24"""

_WEBHOOK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Without a dot: id, timestamp and body are signed with dots in between."""

_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_URI = re.compile(r"(?:sips?|tel):([^@;>\s]{1,128})(@[^;>\s]{1,253})?")


class _Header(msgspec.Struct, frozen=True):
    name: str
    value: str


class _Data(msgspec.Struct, frozen=True):
    call_id: str
    sip_headers: list[_Header] = []


class _Webhook(msgspec.Struct, frozen=True):
    type: str
    data: msgspec.Raw = msgspec.Raw()


class SipCalls:
    """`async with SipCalls(...) as sip:`; leaving it ends all running calls."""

    def __init__(
        self, services: Services, secret: str, api_key: str, api_url: str = ""
    ) -> None:
        """`secret`: of the webhook, `whsec_...`. `api_url`: of the REST API; that of
        the model if omitted. ValueError: the secret is malformed."""
        self._key = signing_key(secret)
        self._services = services
        self._api = CallsApi(api_key, api_url or rest_url(services.target.url))
        self._tasks = asyncio.TaskGroup()
        self._calls: dict[str, Call] = {}
        self._deliveries: dict[str, asyncio.Task[tuple[int, str]]] = {}
        """Deliveries that are being decided, by call."""
        self._reserved: set[str] = set()
        """Calls for which room is kept until their delivery is decided."""
        self._hang_ups: set[asyncio.Task[None]] = set()
        self._open = False
        self._warned: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self.end("shutdown")
        if self._deliveries:
            # Normally they end by themselves: 503, and the claim is given back.
            await asyncio.wait(self._deliveries.values(), timeout=ANSWER_SECONDS)
        for delivery in self._deliveries.values():
            delivery.cancel()
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            if self._hang_ups:
                await asyncio.wait(self._hang_ups, timeout=CLOSE_SECONDS)
            for task in self._hang_ups:
                task.cancel()
            await self._api.close()

    @property
    def calls(self) -> int:
        """Number of calls, running or about to run."""
        return len(self._calls) + len(self._reserved)

    def live(self, call_sid: str) -> LiveCall | None:
        call = self._calls.get(call_sid)
        return call.live if call else None

    def end(self, why: str) -> None:
        """Ends all calls on behalf of the bridge."""
        for call in list(self._calls.values()):
            call.end(why)

    async def incoming(
        self, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str]:
        """Handles a delivery of OpenAI's webhook; returns the HTTP status and text.

        Returns at once; an admitted call runs in a task of its own. 401: the signature
        is missing, wrong or too old; 400: the delivery is malformed; 503: OpenAI should
        send it again.
        """
        # Of a repeated header the first counts, for the signature and the webhook-id.
        given: dict[str, str] = {}
        for name, value in headers.items():
            given.setdefault(name.lower(), value)
        if not is_signed(self._key, given, body) or not self._is_recent(given):
            log.warning("webhook_refused", path="/openai/webhook", why="signature")
            return 401, "not signed by OpenAI"
        try:
            event = msgspec.json.decode(body, type=_Webhook)
            if event.type != "realtime.call.incoming":
                return 200, "ignored"
            data = msgspec.json.decode(event.data, type=_Data)
        except UNREADABLE:
            return 400, "no event"
        if not _CALL_ID.fullmatch(data.call_id):
            return 400, "no usable call_id"
        return await self._deliver(data)

    def _is_recent(self, given: Mapping[str, str]) -> bool:
        """`is_signed` uses the clock of this instance. If that is behind, a delivery
        may be accepted after its call is forgotten."""
        sent = float(given["webhook-timestamp"])
        age = self._services.registry.clock() - sent
        return age <= TOLERANCE_SECONDS and bool(
            _WEBHOOK_ID.fullmatch(given["webhook-id"])
        )

    async def _deliver(self, data: _Data) -> tuple[int, str]:
        """Decides about a call in a task. A delivery whose request is cancelled or too
        slow is decided nevertheless, and a second delivery gets the same answer."""
        call_id = data.call_id
        if not self._open:
            return 503, "closed"
        if call_id in self._calls:
            return 200, "known"
        delivery = self._deliveries.get(call_id)
        if delivery is None:
            headers = ((it.name, it.value) for it in data.sip_headers)
            room = self._services.capacity.free
            if room:
                self._reserved.add(call_id)
            decision = self._decide(facts_of(call_id, headers), room)
            delivery = self._tasks.create_task(decision, name=f"{call_id} webhook")
            self._deliveries[call_id] = delivery
        # A task that is cancelled by __aexit__ must not cancel the request.
        await asyncio.wait([delivery], timeout=ANSWER_SECONDS)
        if delivery.done() and not delivery.cancelled():
            return delivery.result()
        log.error("sip_webhook_unanswered", call_sid=call_id)
        return 503, "try again"

    async def _decide(self, facts: CallFacts, room: bool) -> tuple[int, str]:
        """`room`: this instance has room, which is kept until the decision."""
        call_id = facts.call_sid
        try:
            services = self._services
            passes_on = not room and not services.fallback.on
            if passes_on and await services.registry.others():
                log.info("sip_call_passed_on", call_sid=call_id)
                return ELSEWHERE
            return await self._claim(facts, room)
        except ConnectionError:
            log.error("registry_unreachable", call_sid=call_id)
        except Exception:
            # A bug of the bridge: it must not end the TaskGroup with all calls.
            log.exception("webhook_failed", call_sid=call_id)
        finally:
            self._reserved.discard(call_id)
            del self._deliveries[call_id]
        return 503, "try again"

    async def _claim(self, facts: CallFacts, room: bool) -> tuple[int, str]:
        """Takes the call, or has it rejected, unless another delivery did. Only a
        delivery that was taken counts: a 503 asks for the next one."""
        registry, claim = self._services.registry, f"sip_call:{facts.call_sid}"
        if not await registry.set_if_absent(claim, KNOWN_SECONDS):
            return 200, "known"
        taken = False
        try:
            why: str | None = "full"
            if self._services.fallback.on:
                why = "fallback"
            elif room:
                quotas = self._services.quotas
                why = await quotas.admit(facts.call_sid, facts.theirs)
            if self._open:
                self._take(facts, why)
                taken = True
        finally:
            if not taken:
                await registry.pop(claim)
        return SIP_CALL_TAKEN if taken else (503, "closed")

    def _take(self, facts: CallFacts, why: str | None) -> None:
        name = f"{facts.call_sid} sip"
        if why is None:
            self._warn(self._services.route_of(facts))
            leg = SipLeg(facts, self._services, self._api, self._start_hang_up)
            call = self._calls[facts.call_sid] = Call(leg, self._services)
            self._tasks.create_task(self._carry(facts.call_sid, call), name=name)
            return
        if why == "full":
            self._services.metrics.hit("calls")
        if why == "fallback":
            self._services.metrics.fallback_calls.inc()
        log.warning("call_refused", call_sid=facts.call_sid, why=why)
        self._tasks.create_task(self._turn_away(facts.call_sid), name=name)

    def _start_hang_up(
        self, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = self._services.background_tasks.start(work, name)
        self._hang_ups.add(task)
        task.add_done_callback(self._hang_ups.discard)
        return task

    async def _carry(self, call_sid: str, call: Call) -> None:
        try:
            await call.run()
        except Exception:
            # A bug of the bridge: it must not end the TaskGroup with all other calls.
            log.exception("call_failed", call_sid=call_sid)
        finally:
            del self._calls[call_sid]

    async def _turn_away(self, call_id: str) -> None:
        try:
            await self._api.reject(call_id, BUSY_HERE)
        except CallGone:
            log.info("caller_gone", call_sid=call_id)
        except CallsApiError as error:
            log.error("sip_reject_failed", call_sid=call_id, why=error.why)
        except Exception:
            # A bug of the bridge: it must not end the TaskGroup with all calls.
            log.exception("sip_reject_failed", call_sid=call_id, why="bug")

    def _warn(self, route: Route) -> None:
        """Warns once per route about settings that a SIP call cannot have."""
        detection = route.session.sdk_settings().get("audio", {})
        given: Any = detection.get("input", {}).get("turn_detection") or {}
        ignored = [name for name in NOT_ON_SIP if name in given]
        if ignored and route.name not in self._warned:
            self._warned.add(route.name)
            log.warning(
                "sip_settings_ignored", route=route.name, settings=", ".join(ignored)
            )


def sip_calls(settings: Settings, services: Services) -> SipCalls | None:
    """Serves SIP calls with the same agents. None if OPENAI_WEBHOOK_SECRET or
    OPENAI_API_KEY is not set."""
    secret, key = settings.openai_webhook_secret, settings.openai_api_key
    if secret is None or key is None:
        return None
    return SipCalls(services, secret.get_secret_value(), key.get_secret_value())


def facts_of(call_id: str, headers: Iterator[tuple[str, str]]) -> CallFacts:
    """The call's facts from its INVITE, whose content is untrusted.

    The parameters are From, To and the X- headers, the first of each name.
    """
    given: dict[str, str] = {}
    for name, value in headers:
        given.setdefault(name.lower(), value)
    numbers = {"From": number_of(given.get("from", ""))}
    numbers["To"] = number_of(given.get("to", ""))
    extra = {name: value for name, value in given.items() if name.startswith("x-")}
    return CallFacts(
        call_sid=call_id,
        from_number=numbers["From"],
        to_number=numbers["To"],
        parameters={**extra, **numbers},
    )


def number_of(header: str) -> str:
    """`"Ann" <sip:+14155550123@host;user=phone>;tag=1` -> `+14155550123`.

    An address without a number is returned as `sip:ann@host`, an anonymous caller as
    `anonymous`, a header without an address as an empty string.
    """
    # A display name may contain anything, so the part between < and > has precedence.
    bracket = re.search(r"<([^<>]*)>\s*(?:;|$)", header)
    uri = _URI.match((bracket[1] if bracket else header).strip())
    if uri is None:
        return ""
    # Percent-decoded only if the result is a number: the caller controls this text, and
    # it goes into the agent's instructions.
    number = unquote(uri[1])
    if known := PhoneNumber.of_caller(number):
        return known
    if uri[1].lower() == "anonymous":
        return "anonymous"
    address = f"sip:{uri[1]}{uri[2] or ''}"
    return address if address.isprintable() else ""
