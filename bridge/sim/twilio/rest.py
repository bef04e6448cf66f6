"""Twilio's Calls resource over HTTP: creates, shows and changes calls.

A created call really takes place: a `Callee` is rung and answers or does not. An
answered call is a `PlacedCall` like any other. Errors and codes are Twilio's.

    async with TwilioRest("AC...", "token") as rest:
        client = Client("AC...", "token", http_client=...)  # to rest.url
"""

import asyncio
import base64
import hmac
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from time import monotonic
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from bridge.sim.caller import NUMBER, Caller, PlacedCall
from bridge.sim.twilio.markup import Method
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.record import CallRecord, WebhookRequest
from bridge.sim.twilio.steps import SayStep, Script, WaitStep
from bridge.sim.twilio.webhooks import Origins, WebhookClient, progress

API = "/2010-04-01"
EVENTS = ("initiated", "ringing", "answered", "completed")
METHODS: dict[str, Method] = {"GET": "GET", "POST": "POST"}
QUEUED_SECONDS = 0.05
CLEAN_UP_LIMIT = 5.0  # s
TWIML_LIMIT = 4000  # characters, error 32018
RING_LIMIT = 600  # s
LONGEST_SECONDS = 4 * 3600
# https://www.twilio.com/docs/voice/answering-machine-detection: parameter -> range
DETECTION_RANGES = {
    "MachineDetectionTimeout": (3, 59),
    "MachineDetectionSpeechThreshold": (1000, 6000),
    "MachineDetectionSpeechEndThreshold": (500, 5000),
    "MachineDetectionSilenceTimeout": (2000, 10000),
}

Status = Literal[
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


def _tone(seconds: float) -> bytes:
    """A loud 1 kHz tone as mu-law: eight samples per period."""
    wave = bytes([0xFF, 0x91, 0x8B, 0x91, 0xFF, 0x11, 0x0B, 0x11])
    return wave * round(seconds * 1000)


BEEP = _tone(0.5)


@dataclass(frozen=True, slots=True)
class Answers:
    """A person answers after `after` seconds.

    `answered_by` is the result of machine detection, `detected_after` (seconds) its
    time.
    """

    script: Script
    after: float = 0.1
    answered_by: Literal["human", "unknown", "fax"] = "human"
    detected_after: float = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine answers, plays `greeting` and `beep` (b"": no beep) and records for
    `records_seconds`."""

    greeting: bytes
    after: float = 0.1
    beep: bytes = BEEP
    records_seconds: float = 60.0

    @property
    def script(self) -> Script:
        spoken = [SayStep(self.greeting), SayStep(self.beep)]
        return [*spoken, WaitStep(self.records_seconds)]


@dataclass(frozen=True, slots=True)
class Unreached:
    """No answer; `status` is known after `after` seconds."""

    status: Literal["busy", "no-answer", "failed"]
    after: float = 0.1


Callee = Answers | Machine | Unreached


@dataclass(slots=True)
class FakeCall:
    """One call of the account, from its creation on."""

    sid: str
    asked: dict[str, str]  # request parameters that are not lists
    events: Sequence[str]
    created_at: datetime
    status: Status = "queued"
    answered_by: str | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    record: CallRecord | None = None  # of an answered call
    # of status and of machine detection
    callbacks: list[WebhookRequest] = field(default_factory=list)
    placed: PlacedCall | None = None
    canceled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last status callback has been answered."""
    pending_callbacks: "asyncio.Queue[dict[str, str] | None]" = field(
        default_factory=asyncio.Queue
    )
    sequence: int = 0

    @property
    def is_active(self) -> bool:
        return self.status in ("queued", "initiated", "ringing", "in-progress")

    @property
    def talked_seconds(self) -> float:
        if self.answered_at is None or self.ended_at is None:
            return 0.0
        return (self.ended_at - self.answered_at).total_seconds()


class _RefusedError(Exception):
    """The request is answered with this Twilio error."""

    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.answer = {
            "code": code,
            "message": text,
            "more_info": f"https://www.twilio.com/docs/errors/{code}",
            "status": status,
        }
        self.status = status


class TwilioRest:
    """`async with TwilioRest(sid, token) as rest:` - then point a client at `rest.url`.

    `callees`: the callee of each number. `callee`: the callee of all other numbers.
    `numbers`: the account's own numbers; None accepts any. `bridge`: the origin
    (http://127.0.0.1:...) of the bridge, for webhooks that a request names by their
    public URLs. `out_of_order`: swaps every two status callbacks. `answers_last`: the
    request for a call is answered when the call is over.
    """

    def __init__(
        self,
        account_sid: str,
        auth_token: str,
        *,
        callee: Callee | None = None,
        callees: Mapping[str, Callee] | None = None,
        numbers: frozenset[str] | None = None,
        bridge: str | None = None,
        network: Network | None = None,
        queued_seconds: float = QUEUED_SECONDS,
        out_of_order: bool = False,
    ) -> None:
        self.calls: dict[str, FakeCall] = {}
        self.callee: Callee = callee or Answers([WaitStep(60.0)])
        self.callees = dict(callees or {})
        self.out_of_order = out_of_order
        self.answers_last = False
        self._account_sid = account_sid
        self._auth_token = auth_token
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
        calls = f"{API}/Accounts/{{account}}/Calls"
        app.add_routes(
            [
                web.post(f"{calls}.json", self._answering(self._create)),
                web.get(f"{calls}/{{sid}}.json", self._answering(self._fetch)),
                web.post(f"{calls}/{{sid}}.json", self._answering(self._update)),
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
        self, answer: Callable[[web.Request], Awaitable[tuple[int, FakeCall]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                self._check_account(request)
                status, call = await answer(request)
            except _RefusedError as refused:
                return web.json_response(refused.answer, status=refused.status)
            return web.json_response(self._json(call), status=status)

        return handle

    def _check_account(self, request: web.Request) -> None:
        key = base64.b64encode(f"{self._account_sid}:{self._auth_token}".encode())
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, b"Basic " + key):
            raise _RefusedError(401, 20003, "Authenticate")
        if request.match_info["account"] != self._account_sid:
            raise _not_found(request)

    async def _create(self, request: web.Request) -> tuple[int, FakeCall]:
        form = await request.post()
        asked = {name: str(value) for name, value in form.items()}
        events = [str(event) for event in form.getall("StatusCallbackEvent", [])]
        self._check_numbers(asked)
        _check_instructions(asked)
        _check_callbacks(asked, events)
        _check_detection(asked)
        _check_number(asked, "Timeout", (1, RING_LIMIT), 21208)
        # The error code of a bad TimeLimit is undocumented; 21200 is the resource's
        # own.
        _check_number(asked, "TimeLimit", (1, 24 * 3600), 21200)
        call = FakeCall(
            sid="CA" + secrets.token_hex(16),
            asked=asked,
            events=events or ["completed"],
            created_at=datetime.now(UTC),
        )
        self.calls[call.sid] = call
        for work in (self._run_call(call), self._post_callbacks(call)):
            task = self._tasks.create_task(work)
            self._call_tasks.add(task)
            task.add_done_callback(self._call_tasks.discard)
        if self.answers_last:
            await call.over.wait()
        return 201, call

    async def _fetch(self, request: web.Request) -> tuple[int, FakeCall]:
        call = self.calls.get(request.match_info["sid"])
        if call is None:
            raise _not_found(request)
        return 200, call

    async def _update(self, request: web.Request) -> tuple[int, FakeCall]:
        form = await request.post()
        asked = {name: str(value) for name, value in form.items()}
        call = self.calls.get(request.match_info["sid"])
        if call is None or not call.is_active:
            raise _not_found(request)
        wanted = [name for name in ("Status", "Url", "Twiml") if name in asked]
        if len(wanted) > 1:
            text = f"{' and '.join(wanted)} are mutually exclusive"
            raise _RefusedError(400, 21200, text)
        if wanted == ["Status"]:
            self._end(call, asked["Status"])
        elif wanted:
            _check_instructions(asked)
            if call.placed is None:
                text = "Call is not in-progress. Cannot redirect."
                raise _RefusedError(400, 21220, text)
            if "Twiml" in asked:
                call.placed.replace(asked["Twiml"])
            else:
                url = self._origins(asked["Url"]).public_url(asked["Url"])
                call.placed.redirect(url, _method(asked, "Method"))
        return 200, call

    def _end(self, call: FakeCall, status: str) -> None:
        if status not in ("completed", "canceled"):
            raise _RefusedError(400, 21200, f"Status {status!r} cannot be requested")
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
            raise _RefusedError(400, 21201, "No 'To' number is specified")
        if not by:
            raise _RefusedError(400, 21213, "'From' phone number is required")
        if not NUMBER.fullmatch(to) or to == by:
            raise _RefusedError(400, 21211, f"The 'To' number {to} is not valid")
        if not NUMBER.fullmatch(by):
            raise _RefusedError(400, 21212, f"The 'From' number {by} is not valid")
        if self._numbers is not None and by not in self._numbers:
            text = f"The source phone number provided, {by}, is not yet verified"
            raise _RefusedError(400, 21210, text)

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
            "date_updated": _rfc2822(datetime.now(UTC)),
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
            call.status, call.ended_at = "canceled", datetime.now(UTC)
        else:
            callee = self.callees.get(call.asked["To"], self.callee)
            self._set_status(call, "initiated")
            status = await self._ring(call, callee)
            if status is None:
                assert not isinstance(callee, Unreached)
                status = await self._answered_call(call, callee)
            call.ended_at = datetime.now(UTC)
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
        return callee.status if isinstance(callee, Unreached) else None

    async def _answered_call(self, call: FakeCall, callee: Answers | Machine) -> Status:
        """Run the call from the answer until one side hangs up."""
        call.answered_at = datetime.now(UTC)
        self._set_status(call, "in-progress", "answered")
        mode = call.asked.get("MachineDetection")
        is_async = call.asked.get("AsyncAmd", "false") == "true"
        if mode is not None and not is_async:
            said, seconds = _detection(call.asked, callee)
            if await _happens_within(seconds, call.canceled):
                return "completed"
            call.answered_by = said
        call.placed = PlacedCall(self._caller(call))
        call.record = call.placed.record
        async with asyncio.TaskGroup() as tasks:
            if mode is not None and is_async:
                detecting = tasks.create_task(self._detect(call, callee))
                await call.placed.run(callee.script)
                detecting.cancel()
            else:
                await call.placed.run(callee.script)
        return "completed"

    def _caller(self, call: FakeCall) -> Caller:
        """A Caller for an outbound call: the callee plays its script."""
        asked = call.asked
        # If a request has both, Twilio uses the Url.
        url = asked.get("Url", "https://api.twilio.com/")
        origins = self._origins(url)
        more = {} if call.answered_by is None else {"AnsweredBy": call.answered_by}
        return Caller(
            webhook_url=origins.connect + url.removeprefix(origins.public),
            webhook_method=_method(asked, "Method"),
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
            max_seconds=float(asked.get("TimeLimit", LONGEST_SECONDS)),
        )

    async def _detect(self, call: FakeCall, callee: Answers | Machine) -> None:
        """Report the machine detection's result as soon as it is known, during the
        call."""
        assert call.record is not None and call.record.answered_at is not None
        said, seconds = _detection(call.asked, callee)
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
            method = _method(call.asked, f"{name}Method")
            await webhooks.ask(origins.public_url(url), form, method)

    def _origins(self, url: str) -> Origins:
        parts = urlsplit(url)
        public = f"{parts.scheme}://{parts.netloc}"
        return Origins(self.bridge or public, public)


def _detection(
    asked: Mapping[str, str], callee: Answers | Machine
) -> tuple[str, float]:
    """The result of machine detection, and its time in seconds after the answer."""
    limit = float(asked.get("MachineDetectionTimeout", 30))
    if isinstance(callee, Answers):
        said, seconds = str(callee.answered_by), callee.detected_after
    else:
        spoken, beep = len(callee.greeting) / 8000, len(callee.beep) / 8000
        if asked["MachineDetection"] == "DetectMessageEnd":
            silence = int(asked.get("MachineDetectionSilenceTimeout", 5000)) / 1000
            said = "machine_end_beep" if callee.beep else "machine_end_silence"
            seconds = spoken + (beep if callee.beep else silence)
        else:
            said = "machine_start"
            threshold = int(asked.get("MachineDetectionSpeechThreshold", 2400)) / 1000
            seconds = min(spoken, threshold)
    return (said, seconds) if seconds <= limit else ("unknown", limit)


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


def _check_instructions(asked: Mapping[str, str]) -> None:
    """Check the call's Url or Twiml parameter."""
    if "Url" in asked:
        _check_url(asked["Url"], 21205, "Url")
    elif "Twiml" not in asked:
        raise _RefusedError(400, 21205, "Url parameter is required.")
    elif len(asked["Twiml"]) > TWIML_LIMIT:
        raise _RefusedError(400, 32018, "Twiml is longer than 4000 characters")
    _method(asked, "Method")


def _check_callbacks(asked: Mapping[str, str], events: Sequence[str]) -> None:
    for name in ("StatusCallback", "AsyncAmdStatusCallback"):
        if name in asked:
            # The error code of a bad callback URL is undocumented; 21205 is the Url's.
            _check_url(asked[name], 21205, name)
        _method(asked, f"{name}Method")
    # A list in one parameter ("initiated ringing") is not a valid event.
    if wrong := [event for event in events if event not in EVENTS]:
        raise _RefusedError(400, 21626, f"Invalid 'StatusCallbackEvent' {wrong[0]!r}")


def _check_detection(asked: Mapping[str, str]) -> None:
    mode, is_async = asked.get("MachineDetection"), asked.get("AsyncAmd", "false")
    if mode not in (None, "Enable", "DetectMessageEnd") or (
        is_async not in ("true", "false")
    ):
        raise _RefusedError(400, 21234, "Invalid Machine Detection configuration value")
    for name, limits in DETECTION_RANGES.items():
        _check_number(asked, name, limits, 21234)
    if is_async == "true" and "AsyncAmdStatusCallback" not in asked:
        # A live account only gets a warning in the debugger, and the result never
        # comes.
        raise _RefusedError(400, 21262, "No AMD status callback URL provided")


def _check_url(url: str, code: int, name: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _RefusedError(400, code, f"{name} is not a valid URL: {url}")


def _check_number(
    asked: Mapping[str, str], name: str, limits: tuple[int, int], code: int
) -> None:
    text = asked.get(name)
    if text is None:
        return
    value = int(text) if text.isdecimal() else math.nan
    if not limits[0] <= value <= limits[1]:
        raise _RefusedError(400, code, f"Invalid {name}: {text}")


def _method(asked: Mapping[str, str], name: str) -> Method:
    method = METHODS.get(asked.get(name, "POST"))
    if method is None:
        raise _RefusedError(400, 21200, f"{name} is neither GET nor POST")
    return method


def _not_found(request: web.Request) -> _RefusedError:
    text = f"The requested resource {request.path} was not found"
    return _RefusedError(404, 20404, text)


def _rfc2822(at: datetime | None) -> str | None:
    return None if at is None else format_datetime(at)
