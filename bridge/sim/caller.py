"""A Twilio that places a call to a bridge, over real sockets, in real time.

It requests the voice webhook, executes the TwiML, opens the media stream, plays the
bridge's audio at 1x, echoes marks, obeys clear, and requests `<Connect action>` when
the stream ends. It imports nothing of the bridge: no test would find a mistake that
both share.

    script = [ListenStep()]
    record = await Caller(webhook_url="http://127.0.0.1:8080/voice").call(script)
"""

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from time import monotonic
from types import MappingProxyType
from typing import Literal
from urllib.parse import urljoin, urlsplit

import aiohttp
from websockets.asyncio.client import ClientConnection

from bridge.sim.twilio import markup
from bridge.sim.twilio.conference import Conferences, Seat
from bridge.sim.twilio.dial import (
    StreamRefusedError,
    open_socket,
    stream_url,
    without_query,
)
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.playout import FRAME_US, Playout
from bridge.sim.twilio.record import (
    CallRecord,
    ConferenceVisit,
    DebuggerWarning,
    DialledLeg,
    DialStatus,
    StreamEnd,
    StreamRecord,
)
from bridge.sim.twilio.script_runner import ScriptRunner
from bridge.sim.twilio.steps import (
    DropStep,
    GapStep,
    HangUpStep,
    HearStep,
    ListenStep,
    PressStep,
    SayStep,
    Script,
    SendStep,
    Step,
    WaitStep,
)
from bridge.sim.twilio.stream import CLOSED_BY_BRIDGE, LOST, MediaStream, OnMedia
from bridge.sim.twilio.webhooks import Origins, WebhookClient, WebhookResponse, progress

__all__ = [
    "CallRecord",
    "Caller",
    "DropStep",
    "GapStep",
    "HangUpStep",
    "HearStep",
    "ListenStep",
    "Network",
    "PlacedCall",
    "PressStep",
    "SayStep",
    "Script",
    "SendStep",
    "Step",
    "WaitStep",
    "place_many",
]

HANG_UP_LIMIT = 5.0  # s to send the last messages
NO_PARAMETERS: Mapping[str, str] = MappingProxyType({})
NUMBER = re.compile(r"\+[1-9][0-9]{6,14}")  # E.164
NO_CALLER_ID = (
    "callerId must be provided for TwilioClient and SIP calls when using Dial"
)
INVALID_CALLER_ID = "Dial: Invalid callerId value"
XML_TYPES = {"text/xml", "application/xml", "text/html"}


def random_number() -> str:
    """A random number to call from: to a bridge, all calls from one number are calls of
    one caller."""
    return f"+1555{secrets.randbelow(10_000_000):07}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller's settings; `call` may be used for several calls.

    `auth_token` None: nothing is signed. `signed_origin`: the origin that Twilio knows
    (https://...), if it differs from the one to connect to. `parameters` are added to
    every webhook's form. After `max_seconds` the caller hangs up.

    With `direction` "outbound-api" Twilio has placed the call: it is answered before
    the first request, and the script is the called party's. `document`: TwiML to begin
    with, instead of a request to `webhook_url`.

    A number that the bridge dials rings for `dial_ring_seconds` (longer than <Dial
    timeout> means "no-answer"); then `dial_outcome` applies, with the code and text of
    `dial_error`. A party that answers talks
    for `dial_talk_seconds` and hangs up, if it presses `dial_presses` where the bridge
    asks it to accept. Then Twilio requests the action or executes
    the next verb. At a <Gather> of its own document, the caller presses `presses`.

    `conferences`: those of the account; None: the call is alone in each.

    `allow_ws` accepts ws:// stream URLs of any host, which Twilio refuses (31922).

    Twilio notices the lost connection of a stream, on either side, after
    `notice_seconds`, and then requests the action (Twilio's own delay is undocumented).
    """

    webhook_url: str
    webhook_method: markup.Method = "POST"
    document: str | None = None
    direction: Literal["inbound", "outbound-api"] = "inbound"
    auth_token: str | None = None
    signed_origin: str | None = None
    allow_ws: bool = False
    account_sid: str = "AC" + "0" * 31 + "1"
    from_number: str = "+15551230001"
    to_number: str = "+15557650002"
    call_sid: str | None = None
    network: Network = field(default_factory=Network)
    parameters: Mapping[str, str] = field(default_factory=dict)
    status_callback_url: str | None = None
    dial_outcome: DialStatus = "completed"
    dial_error: tuple[int, str] | None = None
    dial_presses: str = ""
    presses: str = ""
    conferences: Conferences | None = None
    dial_ring_seconds: float = 0.0
    dial_talk_seconds: float = 0.0
    notice_seconds: float = 0.0
    frame_playout: bool = False
    noisy_silence: bool = False
    keep_frame_times: bool = False
    max_seconds: float = 300.0
    on_media: OnMedia | None = None

    async def call(self, script: Script) -> CallRecord:
        """Place the call, run the script, return the record."""
        return await PlacedCall(self).run(script)


async def place_many(
    calls: Sequence[tuple[Caller, Script]], limit: int
) -> list[CallRecord]:
    """Place the calls in order, at most `limit` at the same time."""
    free = asyncio.Semaphore(limit)

    async def place(caller: Caller, script: Script) -> CallRecord:
        async with free:
            return await caller.call(script)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(place(*each)) for each in calls]
    return [task.result() for task in tasks]


class _CallFailedError(Exception):
    """Twilio cannot continue: it would say "an application error" and hang up."""


@dataclass(frozen=True, slots=True)
class _DocumentRequest:
    """A document to request."""

    url: str
    method: markup.Method


class PlacedCall:
    """One call, from the first webhook to the last; its tasks are in one TaskGroup.

    During the call the account may change it: `end`, `replace`, `redirect`.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        # replaces the document that runs
        self._next: _DocumentRequest | WebhookResponse | None = None
        self._interrupted = asyncio.Event()
        self._ended_by = "caller"
        call_sid = caller.call_sid or "CA" + secrets.token_hex(16)
        self._record = CallRecord(call_sid, started_at=monotonic())
        if caller.direction == "outbound-api":
            self._record.answered_at = self._record.started_at
        self._script_runner = ScriptRunner(self._record)
        self._origins = Origins.of(caller.webhook_url, caller.signed_origin)
        self._tasks = asyncio.TaskGroup()
        self._webhooks: WebhookClient | None = None
        self._conferences = caller.conferences or Conferences()
        # of the last stream, if no verb followed it
        self._stream_error: str | None = None
        # sockets kept open until the call is over
        self._silenced: list[ClientConnection] = []

    @property
    def record(self) -> CallRecord:
        return self._record

    def end(self, by: str) -> None:
        """The account ends the call; the record's `ended_by` is `by`."""
        self._ended_by = by
        self._script_runner.hung_up.set()

    def replace(self, document: str) -> None:
        """The account replaces the TwiML; an open stream ends."""
        self._next = _inline(document)
        self._interrupted.set()

    def redirect(self, url: str, method: markup.Method) -> None:
        """Like `replace`, with a document to request."""
        self._next = _DocumentRequest(url, method)
        self._interrupted.set()

    async def run(self, script: Script) -> CallRecord:
        caller, record = self._caller, self._record
        # Twilio keeps cookies for a call; the jar must accept them from 127.0.0.1 too.
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            self._webhooks = WebhookClient(
                session, self._origins, caller.auth_token, record.requests
            )
            async with self._tasks:
                acting = self._tasks.create_task(self._script_runner.run(script))
                ending = self._tasks.create_task(self._script_runner.hung_up.wait())
                try:
                    await self._until_over(ending)
                finally:
                    for socket in self._silenced:
                        socket.transport.abort()
                acting.cancel()
                ending.cancel()
                record.ended_at = monotonic()
                self._script_runner.voice.stop(record.ended_at)
                if caller.status_callback_url is not None:
                    self._tasks.create_task(self._post_completed())
        return record

    async def _until_over(self, ending: asyncio.Task[bool]) -> None:
        """Return when the call is over, ended by either side or by the time limit."""
        caller = self._caller
        over_at = monotonic() + caller.max_seconds
        document: _DocumentRequest | WebhookResponse | None = _DocumentRequest(
            caller.webhook_url, caller.webhook_method
        )
        if caller.document is not None:
            document = _inline(caller.document)
        while document is not None:
            self._interrupted.clear()
            self._next = None
            following = self._tasks.create_task(self._follow_documents(document))
            interrupting = self._tasks.create_task(self._interrupted.wait())
            await asyncio.wait(
                {following, ending, interrupting},
                timeout=over_at - monotonic(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            interrupting.cancel()
            if following.done():
                break
            if not ending.done() and self._next is None:
                self._record.timed_out.append(f"call: {caller.max_seconds:g} s")
                self._script_runner.hung_up.set()
            document = None if self._script_runner.hung_up.is_set() else self._next
            await self._stop(following)
        self._record.ended_by = self._record.ended_by or self._ended_by

    async def _stop(self, following: asyncio.Task[None]) -> None:
        """Stop the running document; an open stream sends its last messages first."""
        if self._script_runner.stream is not None:
            self._script_runner.stream.hang_up()
            await asyncio.wait({following}, timeout=HANG_UP_LIMIT)
        following.cancel()
        await asyncio.wait({following})

    async def _follow_documents(
        self, first: _DocumentRequest | WebhookResponse
    ) -> None:
        """Execute the bridge's documents, one after the other."""
        status = "in-progress" if self._record.answered_at is not None else "ringing"
        document: WebhookResponse | None
        try:
            if isinstance(first, WebhookResponse):
                document = first
            else:
                document = await self._request_document(first.url, first.method, status)
            while document is not None:
                document = await self._execute(document)
        except (_CallFailedError, markup.TwimlError) as error:
            self._record.error = str(error)
        if not self._is_over:
            self._record.ended_by = self._end_reason()

    @property
    def _is_over(self) -> bool:
        """A party has hung up, or another document replaces this one."""
        return self._script_runner.hung_up.is_set() or self._next is not None

    def _end_reason(self) -> str:
        """Why the call ended, given that the caller did not hang up."""
        record = self._record
        record.error = record.error or self._stream_error
        return "bridge" if record.error is None else f"error: {record.error}"

    async def _execute(self, answer: WebhookResponse) -> WebhookResponse | None:
        """Execute a document. Returns the next one, or None if the call is over."""
        record = self._record
        for verb in self._verbs(answer):
            if record.answered_at is None and not isinstance(verb, markup.TwimlReject):
                record.answered_at = monotonic()
            self._stream_error = None
            match verb:
                case markup.TwimlSay(text):
                    record.said_by_twilio.append(text)
                case markup.TwimlPause(seconds):
                    await asyncio.sleep(seconds)
                case markup.TwimlRedirect(url, method):
                    return await self._request_document(
                        urljoin(answer.url, url), method
                    )
                case markup.TwimlConnect(stream, action, method):
                    end = await self._connect(stream, answer.url)
                    if end.code == LOST:
                        await asyncio.sleep(self._caller.notice_seconds)
                    if self._is_over:
                        return None
                    if action is not None:
                        return await self._request_document(
                            urljoin(answer.url, action), method
                        )
                    if end.code != CLOSED_BY_BRIDGE:
                        self._stream_error = f"{end.code} {end.text}"
                case markup.TwimlDial(action=action, method=method):
                    result = _dial_form(await self._dial(verb))
                    if action is not None:
                        url = urljoin(answer.url, action)
                        return await self._request_document(url, method, more=result)
                case markup.TwimlConference(action=action, method=method):
                    await self._confer(verb)
                    if action is not None:
                        more = {"DialCallStatus": "answered"}
                        url = urljoin(answer.url, action)
                        return await self._request_document(url, method, more=more)
                case markup.TwimlGather():
                    if pressed := await self._gather(verb, answer.url):
                        return pressed
                case markup.TwimlReject(reason):
                    record.rejected = reason
                    return None
                case markup.TwimlHangup():
                    return None
        return None

    async def _gather(
        self, gather: markup.TwimlGather, base: str
    ) -> WebhookResponse | None:
        """None: no key was pressed in time, and the next verb follows."""
        self._record.said_by_twilio += gather.texts
        if keys := self._caller.presses:
            url, more = urljoin(base, gather.action), {"Digits": keys[:1]}
            return await self._request_document(url, gather.method, more=more)
        await asyncio.sleep(gather.timeout)
        return None

    async def _confer(self, noun: markup.TwimlConference) -> None:
        """In the conference, until it ends or the call leaves it."""
        runner, visit = self._script_runner, ConferenceVisit(noun.name)
        self._record.conferences.append(visit)
        seat = Seat(self._record.call_sid, noun, runner.voice, visit)
        self._conferences.enter(seat)
        runner.entered(seat)
        try:
            await seat.over.wait()
        finally:
            self._conferences.leave(seat)

    async def _dial(self, dial: markup.TwimlDial) -> DialledLeg:
        """Ring the number and let both parties talk; the caller may hang up at any
        time."""
        caller, now = self._caller, monotonic()
        dialled = DialledLeg(
            call_sid="CA" + secrets.token_hex(16),
            number=dial.number,
            caller_id=dial.caller_id or caller.from_number,
            at=now,
        )
        self._record.dials.append(dialled)
        if not NUMBER.fullmatch(dialled.caller_id):
            # A caller without a number, or a callerId that is no number of the account.
            text = NO_CALLER_ID if dial.caller_id is None else INVALID_CALLER_ID
            self._record.warnings.append(DebuggerWarning(13214, text, now))
            dialled.status, dialled.error = "failed", (13214, text)
            return dialled
        if not (NUMBER.fullmatch(dial.number) or dial.number.startswith("sip:")):
            self._record.warnings.append(
                DebuggerWarning(13224, "not a phone number", now)
            )
            dialled.status = "failed"
            dialled.error = (13224, "Dial: Invalid phone number")
            return dialled
        await asyncio.sleep(min(caller.dial_ring_seconds, dial.timeout))
        if caller.dial_ring_seconds > dial.timeout:
            dialled.status = "no-answer"
            return dialled
        dialled.status = caller.dial_outcome
        dialled.error = caller.dial_error
        if dialled.status == "completed":
            dialled.digits = dial.digits
            dialled.bridged = await self._screen(dialled, dial.screen_url)
        if dialled.bridged:
            await asyncio.sleep(caller.dial_talk_seconds)
            dialled.talked_seconds = caller.dial_talk_seconds
        return dialled

    async def _screen(self, dialled: DialledLeg, url: str | None) -> bool:
        """The called party hears the document of <Number url>, and presses
        `dial_presses` at a <Gather>. True: it is connected with the caller."""
        if url is None:
            return True
        leg = {"CallSid": dialled.call_sid, "ParentCallSid": self._record.call_sid}
        answer = await self._request_document(url, "POST", more=leg)
        while True:
            for verb in markup.verbs(answer.text):
                match verb:
                    case markup.TwimlSay(text):
                        dialled.said.append(text)
                    case markup.TwimlGather(texts, action, method):
                        dialled.said += texts
                        if keys := self._caller.dial_presses:
                            url = urljoin(answer.url, action)
                            more = {**leg, "Digits": keys[:1]}
                            answer = await self._request_document(
                                url, method, more=more
                            )
                            break
                    case markup.TwimlHangup():
                        return False
            else:
                return True

    def _verbs(self, answer: WebhookResponse) -> list[markup.Verb]:
        if answer.status == 204:
            return []
        if answer.content_type == "text/plain" and "<Response" not in answer.text:
            # Twilio reads the text aloud and hangs up.
            return [markup.TwimlSay(answer.text), markup.TwimlHangup()]
        if answer.content_type not in XML_TYPES | {"text/plain"}:
            raise _CallFailedError(f"12300 content type {answer.content_type}")
        self._record.twiml.append(answer.text)
        return markup.verbs(answer.text)

    async def _connect(
        self, stream: markup.TwimlStream, document_url: str
    ) -> StreamEnd:
        """Open a stream and run it to its end."""
        stream_sid = "MZ" + secrets.token_hex(16)
        try:
            if not document_url and stream.url.startswith("/"):
                raise StreamRefusedError(31923, f"malformed URL {stream.url!r}")
            url = stream_url(stream, document_url, self._caller.allow_ws)
            if url != without_query(url):
                text = "the stream URL's query string is not passed on"
                self._record.warnings.append(DebuggerWarning(31920, text, monotonic()))
            url = without_query(url)
            socket = await open_socket(url, self._origins, self._caller.auth_token)
        except StreamRefusedError as error:
            end = StreamEnd(stream_sid, error.code, error.text, monotonic())
            self._record.stream_ends.append(end)
            self._notify(stream, stream_sid, "stream-error", f"{end.code} {end.text}")
            return end
        self._notify(stream, stream_sid, "stream-started")
        end = await self._run_stream(stream, stream_sid, socket)
        if end.code in (0, CLOSED_BY_BRIDGE):
            self._notify(stream, stream_sid, "stream-stopped")
        else:
            self._notify(stream, stream_sid, "stream-error", f"{end.code} {end.text}")
        return end

    async def _run_stream(
        self, stream: markup.TwimlStream, stream_sid: str, socket: ClientConnection
    ) -> StreamEnd:
        """Run the stream on its open socket until it ends; leaves no task behind."""
        caller, index = self._caller, len(self._record.streams)
        phase = Random(f"{caller.network.seed} phase {index}").random() * FRAME_US / 1e6
        playout = Playout(phase if caller.frame_playout else None)
        self._record.streams.append(StreamRecord(stream_sid, monotonic(), playout))
        media_stream = MediaStream(
            socket,
            self._record.streams[-1],
            self._record,
            account_sid=caller.account_sid,
            voice=self._script_runner.voice,
            up=caller.network.up(index),
            down=caller.network.down(index),
            changed=self._script_runner.changed,
            noisy=caller.noisy_silence,
            keep_frame_times=caller.keep_frame_times,
            on_media=caller.on_media,
        )
        reading = self._tasks.create_task(media_stream.read())
        try:
            media_stream.open(stream.parameters)
            self._script_runner.opened(media_stream)
            await media_stream.run()
        finally:
            if media_stream.silenced:
                self._silenced.append(socket)
            else:
                socket.transport.abort()
            reading.cancel()
        assert media_stream.end is not None
        return media_stream.end

    async def _request_document(
        self,
        url: str,
        method: markup.Method,
        status: str = "in-progress",
        more: Mapping[str, str] = NO_PARAMETERS,
    ) -> WebhookResponse:
        """Request the document that says how the call continues."""
        assert self._webhooks is not None
        if not urlsplit(url).netloc:
            # Only in TwiML that was given without a URL.
            raise _CallFailedError(f"15004 the URL {url} is not absolute")
        url = self._origins.public_url(url)
        answer = await self._webhooks.ask(url, {**self._form(status), **more}, method)
        path = urlsplit(url).path
        if answer.status == 0:
            raise _CallFailedError(f"{answer.error} ({path})")
        if not 200 <= answer.status < 300:
            code = 11217 if answer.status >= 400 else 11200
            raise _CallFailedError(f"{code} {path} answered {answer.status}")
        return answer

    def _form(self, status: str) -> dict[str, str]:
        """The standard parameters of a voice webhook."""
        caller = self._caller
        return {
            "AccountSid": caller.account_sid,
            "ApiVersion": "2010-04-01",
            "CallSid": self._record.call_sid,
            "CallStatus": status,
            "Called": caller.to_number,
            "Caller": caller.from_number,
            "Direction": caller.direction,
            "From": caller.from_number,
            "To": caller.to_number,
            **caller.parameters,
        }

    def _notify(
        self, stream: markup.TwimlStream, stream_sid: str, event: str, error: str = ""
    ) -> None:
        """Post the stream's statusCallback in a task of its own."""
        if stream.status_callback is None:
            return
        form = {
            "AccountSid": self._caller.account_sid,
            "CallSid": self._record.call_sid,
            "StreamSid": stream_sid,
            "StreamName": stream.name or stream_sid,
            "StreamEvent": event,
            "Timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        if error:
            form["StreamError"] = error
        assert self._webhooks is not None
        url = self._origins.public_url(stream.status_callback)
        asking = self._webhooks.ask(url, form, stream.status_method)
        self._tasks.create_task(asking)

    async def _post_completed(self) -> None:
        record, url = self._record, self._caller.status_callback_url
        assert self._webhooks is not None and url is not None
        assert record.ended_at is not None
        answered = record.answered_at or record.ended_at
        form = self._form("completed") | progress(0, record.ended_at - answered)
        await self._webhooks.ask(self._origins.public_url(url), form, "POST")


def _inline(document: str) -> WebhookResponse:
    """TwiML as if it had been requested; it has no URL for relative URLs."""
    return WebhookResponse("", 200, "text/xml", document)


def _dial_form(dialled: DialledLeg) -> dict[str, str]:
    """The parameters of a <Dial action> about the dialled leg."""
    bridged = dialled.bridged
    form = {
        "DialCallStatus": dialled.status,
        "DialCallSid": dialled.call_sid,
        "DialBridged": "true" if bridged else "false",
    }
    if bridged:
        form["DialCallDuration"] = str(round(dialled.talked_seconds))
    if dialled.error:
        form["ErrorCode"] = str(dialled.error[0])
        form["ErrorMessage"] = dialled.error[1]
    return form
