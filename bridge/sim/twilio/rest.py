"""Twilio's REST API over HTTP: creates, shows and changes calls, and the settings of
phone numbers.

A created call really takes place: a `Callee` is rung and answers or does not. An
answered call is a `PlacedCall` like any other. Errors and codes are Twilio's.

    async with TwilioRest("AC...", "token") as rest:
        client = Client("AC...", "token", http_client=...)  # to rest.url
"""

import asyncio
import base64
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from time import monotonic, time
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from bridge.sim.caller import NUMBER, Caller, PlacedCall
from bridge.sim.twilio.conference import Conferences
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.record import CallRecord
from bridge.sim.twilio.rest_calls import (
    Answers,
    Callee,
    FakeCall,
    Machine,
    Status,
    Unreached,
    detection,
)
from bridge.sim.twilio.rest_checks import (
    RefusedError,
    check_callbacks,
    check_detection,
    check_digits,
    check_instructions,
    check_number,
    method,
    not_found,
)
from bridge.sim.twilio.rest_numbers import FakeNumber, number_page
from bridge.sim.twilio.steps import WaitStep
from bridge.sim.twilio.webhooks import Origins, WebhookClient, progress

__all__ = ["Answers", "Callee", "FakeCall", "Machine", "TwilioRest", "Unreached"]

API = "/2010-04-01"
QUEUED_SECONDS = 0.05
CLEAN_UP_LIMIT = 5.0  # s
RING_LIMIT = 600  # s
LONGEST_SECONDS = 4 * 3600


class TwilioRest:
    """`async with TwilioRest(sid, token) as rest:` - then point a client at `rest.url`.

    `callees`: the callee of each number. `callee`: the callee of all other numbers.
    `numbers`: the account's own numbers; None accepts any. `api_keys`: SID of an API
    key -> its secret. `bridge`: the origin (http://127.0.0.1:...) of the bridge, for
    webhooks that a request names by their public URLs. `out_of_order`: swaps every two
    status callbacks. `answers_last`: the request for a call is answered when the call
    is over.
    """

    def __init__(
        self,
        account_sid: str,
        auth_token: str,
        *,
        callee: Callee | None = None,
        callees: Mapping[str, Callee] | None = None,
        numbers: frozenset[str] | None = None,
        api_keys: Mapping[str, str] | None = None,
        bridge: str | None = None,
        network: Network | None = None,
        queued_seconds: float = QUEUED_SECONDS,
        out_of_order: bool = False,
    ) -> None:
        self.calls: dict[str, FakeCall] = {}
        self.phone_numbers: list[FakeNumber] = []
        """The numbers whose settings can be read and changed."""
        self.attached: dict[str, PlacedCall] = {}
        """Calls of the account that nobody has placed by REST, such as incoming ones:
        SID -> call. Their documents can be replaced."""
        self.conferences = Conferences()
        self.callee: Callee = callee or Answers([WaitStep(60.0)])
        self.callees = dict(callees or {})
        self.out_of_order = out_of_order
        self.answers_last = False
        self._account_sid = account_sid
        self._auth_token = auth_token
        self._users = {account_sid: auth_token, **(api_keys or {})}
        self._numbers = numbers
        self.bridge = bridge
        self._network = network or Network()
        self._queued_seconds = queued_seconds
        self._tasks = asyncio.TaskGroup()
        self._call_tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        assert self._runner is not None
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        app = web.Application()
        account = f"{API}/Accounts/{{account}}"
        calls, numbers = f"{account}/Calls", f"{account}/IncomingPhoneNumbers"
        app.add_routes(
            [
                web.post(f"{calls}.json", self._answering(self._create)),
                web.get(f"{calls}/{{sid}}.json", self._answering(self._fetch)),
                web.post(f"{calls}/{{sid}}.json", self._answering(self._update)),
                web.get(f"{numbers}.json", self._answering(self._list_numbers)),
                web.post(f"{numbers}/{{sid}}.json", self._answering(self._set_number)),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        for task in self._call_tasks:
            task.cancel()
        async with asyncio.timeout(CLEAN_UP_LIMIT):
            await self._tasks.__aexit__(None, None, None)

    # --- requests ---

    def _answering(
        self, answer: Callable[[web.Request], Awaitable[tuple[int, dict[str, Any]]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                self._check_account(request)
                status, resource = await answer(request)
            except RefusedError as refused:
                return web.json_response(refused.answer, status=refused.status)
            return web.json_response(resource, status=status)

        return handle

    def _check_account(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode()
        keys = (f"{user}:{key}".encode() for user, key in self._users.items())
        basics = [b"Basic " + base64.b64encode(key) for key in keys]
        if not any(hmac.compare_digest(given, basic) for basic in basics):
            raise RefusedError(401, 20003, "Authenticate")
        if request.match_info["account"] != self._account_sid:
            raise not_found(request)

    async def _create(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        form = await request.post()
        asked = {name: str(value) for name, value in form.items()}
        events = [str(event) for event in form.getall("StatusCallbackEvent", [])]
        self._check_numbers(asked)
        check_instructions(asked)
        check_callbacks(asked, events)
        check_detection(asked)
        check_digits(asked)
        check_number(asked, "Timeout", (1, RING_LIMIT), 21208)
        # The error code of a bad TimeLimit is undocumented; 21200 is the resource's
        # own.
        check_number(asked, "TimeLimit", (1, 24 * 3600), 21200)
        call = FakeCall(
            sid="CA" + secrets.token_hex(16),
            asked=asked,
            events=events or ["completed"],
            created_at=_now(),
        )
        self.calls[call.sid] = call
        for work in (self._run_call(call), self._post_callbacks(call)):
            task = self._tasks.create_task(work)
            self._call_tasks.add(task)
            task.add_done_callback(self._call_tasks.discard)
        if self.answers_last:
            await call.over.wait()
        return 201, self._json(call)

    async def _fetch(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        call = self.calls.get(request.match_info["sid"])
        if call is None:
            raise not_found(request)
        return 200, self._json(call)

    async def _update(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        form = await request.post()
        asked = {name: str(value) for name, value in form.items()}
        sid = request.match_info["sid"]
        if sid in self.attached:
            return self._update_attached(self.attached[sid], asked, request)
        call = self.calls.get(sid)
        if call is None or not call.is_active:
            raise not_found(request)
        wanted = [name for name in ("Status", "Url", "Twiml") if name in asked]
        if len(wanted) > 1:
            text = f"{' and '.join(wanted)} are mutually exclusive"
            raise RefusedError(400, 21200, text)
        if wanted == ["Status"]:
            self._end(call, asked["Status"])
        elif wanted:
            check_instructions(asked)
            if call.placed is None:
                text = "Call is not in-progress. Cannot redirect."
                raise RefusedError(400, 21220, text)
            if "Twiml" in asked:
                call.placed.replace(asked["Twiml"])
            else:
                url = self._origins(asked["Url"]).public_url(asked["Url"])
                call.placed.redirect(url, method(asked, "Method"))
        return 200, self._json(call)

    def _update_attached(
        self, call: PlacedCall, asked: Mapping[str, str], request: web.Request
    ) -> tuple[int, dict[str, Any]]:
        if call.record.ended_at is not None:
            raise not_found(request)
        check_instructions(asked)
        url = self._origins(asked["Url"]).public_url(asked["Url"])
        call.redirect(url, method(asked, "Method"))
        return 200, {"sid": call.record.call_sid, "status": "in-progress"}

    def _end(self, call: FakeCall, status: str) -> None:
        if status not in ("completed", "canceled"):
            raise RefusedError(400, 21200, f"Status {status!r} cannot be requested")
        if status == "canceled" and call.status == "in-progress":
            return  # only a call that was not answered can be canceled
        if call.placed is not None:
            call.placed.end("rest")
        else:
            # What "completed" does to a ringing call is undocumented.
            call.canceled.set()

    def _check_numbers(self, asked: Mapping[str, str]) -> None:
        to, by = asked.get("To", ""), asked.get("From", "")
        if not to:
            raise RefusedError(400, 21201, "No 'To' number is specified")
        if not by:
            raise RefusedError(400, 21213, "'From' phone number is required")
        if not (NUMBER.fullmatch(to) or to.startswith("sip:")) or to == by:
            raise RefusedError(400, 21211, f"The 'To' number {to} is not valid")
        if not NUMBER.fullmatch(by):
            raise RefusedError(400, 21212, f"The 'From' number {by} is not valid")
        if self._numbers is not None and by not in self._numbers:
            text = f"The source phone number provided, {by}, is not yet verified"
            raise RefusedError(400, 21210, text)

    # --- the account's numbers ---

    async def _list_numbers(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        wanted = request.query.get("PhoneNumber", "")
        return 200, number_page(self.phone_numbers, wanted, self._account_sid)

    async def _set_number(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        form = await request.post()
        for number in self.phone_numbers:
            if number.sid == request.match_info["sid"]:
                number.update({name: str(value) for name, value in form.items()})
                return 200, number.json(self._account_sid)
        raise not_found(request)

    def _json(self, call: FakeCall) -> dict[str, Any]:
        """The call resource in Twilio's JSON."""
        uri = f"{API}/Accounts/{self._account_sid}/Calls/{call.sid}"
        ended = call.ended_at if call.answered_at is not None else None
        return {
            "account_sid": self._account_sid,
            "annotation": None,
            "answered_by": call.answered_by,
            "api_version": API[1:],
            "caller_name": None,
            "date_created": _rfc2822(call.created_at),
            "date_updated": _rfc2822(_now()),
            "direction": "outbound-api",
            "duration": None if ended is None else str(round(call.talked_seconds)),
            "end_time": _rfc2822(ended),
            "forwarded_from": None,
            "from": call.asked["From"],
            "from_formatted": call.asked["From"],
            "group_sid": None,
            "parent_call_sid": None,
            "phone_number_sid": None,
            "price": None,
            "price_unit": "USD",
            "queue_time": "0",
            "sid": call.sid,
            "start_time": _rfc2822(call.answered_at),
            "status": call.status,
            "subresource_uris": {"recordings": f"{uri}/Recordings.json"},
            "to": call.asked["To"],
            "to_formatted": call.asked["To"],
            "trunk_sid": None,
            "uri": f"{uri}.json",
        }

    # --- the call ---

    async def _run_call(self, call: FakeCall) -> None:
        """Run the call from the queue to its end."""
        if await _happens_within(self._queued_seconds, call.canceled):
            # Twilio: "Cancelling while queued fires no callback."
            call.status, call.ended_at = "canceled", _now()
        else:
            callee = self.callees.get(call.asked["To"], self.callee)
            self._set_status(call, "initiated")
            status = await self._ring(call, callee)
            if status is None:
                assert not isinstance(callee, Unreached)
                status = await self._answered_call(call, callee)
            call.ended_at = _now()
            self._set_status(call, status, "completed")
        call.pending_callbacks.put_nowait(None)

    async def _ring(self, call: FakeCall, callee: Callee) -> Status | None:
        """Ring the callee. Returns None if the callee answers, else the call's last
        status."""
        seconds = float(call.asked.get("Timeout", 60))
        if not (isinstance(callee, Unreached) and callee.status == "failed"):
            self._set_status(call, "ringing")
        if await _happens_within(min(callee.after, seconds), call.canceled):
            return "canceled"
        if callee.after > seconds:
            return "no-answer"
        if not isinstance(callee, Unreached):
            return None
        call.reason = callee.reason
        return callee.status

    async def _answered_call(self, call: FakeCall, callee: Answers | Machine) -> Status:
        """Run the call from the answer until one side hangs up."""
        call.answered_at = _now()
        self._set_status(call, "in-progress", "answered")
        # Twilio: SendDigits disables the machine detection.
        digits = "SendDigits" in call.asked
        mode = None if digits else call.asked.get("MachineDetection")
        is_async = call.asked.get("AsyncAmd", "false") == "true"
        if mode is not None and not is_async:
            said, seconds = detection(call.asked, callee)
            if await _happens_within(seconds, call.canceled):
                return "completed"
            call.answered_by = said
        presses = callee.presses if isinstance(callee, Answers) else ""
        call.placed = PlacedCall(self._caller(call, presses))
        call.record = call.placed.record
        async with asyncio.TaskGroup() as tasks:
            if mode is not None and is_async:
                detecting = tasks.create_task(self._detect(call, callee))
                await call.placed.run(callee.script)
                detecting.cancel()
            else:
                await call.placed.run(callee.script)
        return "completed"

    def _caller(self, call: FakeCall, presses: str) -> Caller:
        """A Caller for an outbound call: the callee plays its script."""
        asked = call.asked
        # If a request has both, Twilio uses the Url.
        url = asked.get("Url", "https://api.twilio.com/")
        origins = self._origins(url)
        more = {} if call.answered_by is None else {"AnsweredBy": call.answered_by}
        return Caller(
            webhook_url=origins.connect + url.removeprefix(origins.public),
            webhook_method=method(asked, "Method"),
            document=None if "Url" in asked else asked["Twiml"],
            direction="outbound-api",
            auth_token=self._auth_token,
            signed_origin=origins.public,
            account_sid=self._account_sid,
            from_number=asked["From"],
            to_number=asked["To"],
            call_sid=call.sid,
            network=self._network,
            parameters=more,
            presses=presses,
            conferences=self.conferences,
            max_seconds=float(asked.get("TimeLimit", LONGEST_SECONDS)),
        )

    async def _detect(self, call: FakeCall, callee: Answers | Machine) -> None:
        """Report the machine detection's result as soon as it is known, during the
        call."""
        assert call.record is not None and call.record.answered_at is not None
        said, seconds = detection(call.asked, callee)
        await asyncio.sleep(seconds)
        # The script begins with the stream, so the machine speaks later by the time
        # from the answer to the stream.
        await asyncio.sleep(_speech_began(call.record) + seconds - monotonic())
        call.answered_by = said
        form = {
            "CallSid": call.sid,
            "AccountSid": self._account_sid,
            "AnsweredBy": said,
            "MachineDetectionDuration": str(round(seconds * 1000)),
        }
        await self._post(call, "AsyncAmdStatusCallback", form)

    # --- callbacks ---

    def _set_status(self, call: FakeCall, status: Status, event: str = "") -> None:
        """Set the call's status and queue the status callback if it was requested."""
        call.status = status
        talked = None if call.is_active else call.talked_seconds
        form = {
            "AccountSid": self._account_sid,
            "ApiVersion": API[1:],
            "CallSid": call.sid,
            "CallStatus": status,
            "Called": call.asked["To"],
            "Caller": call.asked["From"],
            "Direction": "outbound-api",
            "From": call.asked["From"],
            "To": call.asked["To"],
            **progress(call.sequence, talked),
            **call.reason,
        }
        if (event or status) in call.events:
            call.sequence += 1
            call.pending_callbacks.put_nowait(form)

    async def _post_callbacks(self, call: FakeCall) -> None:
        """Post the status callbacks in order, or with every two swapped."""
        held: dict[str, str] | None = None
        while (form := await call.pending_callbacks.get()) is not None:
            if self.out_of_order and held is None:
                held = form
                continue
            await self._post(call, "StatusCallback", form)
            if held is not None:
                await self._post(call, "StatusCallback", held)
                held = None
        if held is not None:
            await self._post(call, "StatusCallback", held)
        call.over.set()

    async def _post(self, call: FakeCall, name: str, form: dict[str, str]) -> None:
        if (url := call.asked.get(name)) is None:
            return
        async with aiohttp.ClientSession() as session:
            origins = self._origins(url)
            webhooks = WebhookClient(session, origins, self._auth_token, call.callbacks)
            by = method(call.asked, f"{name}Method")
            await webhooks.ask(origins.public_url(url), form, by)

    def _origins(self, url: str) -> Origins:
        parts = urlsplit(url)
        public = f"{parts.scheme}://{parts.netloc}"
        return Origins(self.bridge or public, public)


def _speech_began(record: CallRecord) -> float:
    """Time at which the callee began to speak."""
    start = record.stream_at if record.stream_at is not None else record.answered_at
    assert start is not None
    return start


async def _happens_within(seconds: float, event: asyncio.Event) -> bool:
    """Wait up to `seconds` for the event; False if it did not happen."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _now() -> datetime:
    return datetime.fromtimestamp(time(), UTC)


def _rfc2822(at: datetime | None) -> str | None:
    return None if at is None else format_datetime(at)
