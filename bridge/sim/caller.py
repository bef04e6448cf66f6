"""A Twilio that places a call to a bridge, over real sockets, in real time.

It asks the voice webhook, obeys the TwiML, opens the media stream, plays what comes at
1x, echoes marks, obeys clear, and asks `<Connect action>` when the stream ends. It
imports nothing of the bridge: what both would get wrong together, no test would find.

    record = await Caller(webhook_url="http://127.0.0.1:8080/voice").call([Listen()])
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from time import monotonic
from urllib.parse import urljoin, urlsplit

import aiohttp
from websockets.asyncio.client import ClientConnection

from bridge.sim.twilio import markup
from bridge.sim.twilio.dial import (
    StreamRefusedError,
    open_socket,
    stream_url,
    without_query,
)
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.person import Person
from bridge.sim.twilio.playout import FRAME_US, Playout
from bridge.sim.twilio.record import CallRecord, Streamed, StreamEnd, Warned
from bridge.sim.twilio.steps import (
    Drop,
    Gap,
    HangUp,
    Hear,
    Listen,
    Press,
    Say,
    Script,
    Send,
    Step,
    Wait,
)
from bridge.sim.twilio.stream import CLOSED_BY_BRIDGE, MediaStream, OnMedia
from bridge.sim.twilio.webhooks import Answer, Places, Webhooks

__all__ = [
    "CallRecord",
    "Caller",
    "Drop",
    "Gap",
    "HangUp",
    "Hear",
    "Listen",
    "Network",
    "Press",
    "Say",
    "Script",
    "Send",
    "Step",
    "Wait",
    "place_many",
]

HANG_UP_LIMIT = 5.0  # s for the last words over the socket
XML_TYPES = {"text/xml", "application/xml", "text/html"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls whom, over which network; `call` may be used again for a new call.

    `auth_token` None = nothing is signed. `signed_origin` is the origin Twilio
    believes in (https://...) when it differs from the one connected. `parameters` are
    added to every webhook's form. At `max_seconds` the caller hangs up.
    """

    webhook_url: str
    auth_token: str | None = None
    signed_origin: str | None = None
    account_sid: str = "AC" + "0" * 31 + "1"
    from_number: str = "+15551230001"
    to_number: str = "+15557650002"
    call_sid: str | None = None
    network: Network = field(default_factory=Network)
    parameters: Mapping[str, str] = field(default_factory=dict)
    status_callback_url: str | None = None
    frame_playout: bool = False
    noisy_silence: bool = False
    keep_frame_times: bool = False
    max_seconds: float = 300.0
    on_media: OnMedia | None = None

    async def call(self, script: Script) -> CallRecord:
        """Place the call, act out the script, return what happened."""
        return await _Call(self).run(script)


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
    """Twilio cannot go on: it would say "an application error" and hang up."""


class _Call:
    """One call, from the first webhook to the last; its tasks live in one group."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        call_sid = caller.call_sid or "CA" + secrets.token_hex(16)
        self._record = CallRecord(call_sid, started_at=monotonic())
        self._person = Person(self._record)
        self._places = Places.of(caller.webhook_url, caller.signed_origin)
        self._tasks = asyncio.TaskGroup()
        self._webhooks: Webhooks | None = None
        self._unattended: str | None = None  # a stream's fault no verb followed

    async def run(self, script: Script) -> CallRecord:
        record = self._record
        # Twilio keeps cookies for a call; the jar must accept them from 127.0.0.1 too.
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as session:
            token = self._caller.auth_token
            self._webhooks = Webhooks(session, self._places, token, record)
            async with self._tasks:
                course = self._tasks.create_task(self._course())
                acting = self._tasks.create_task(self._person.act(script))
                ending = self._tasks.create_task(self._person.hung_up.wait())
                await self._until_over(course, ending)
                acting.cancel()
                ending.cancel()
                record.ended_at = monotonic()
                self._person.mouth.stop(record.ended_at)
                if self._caller.status_callback_url is not None:
                    self._tasks.create_task(self._post_completed())
        return record

    async def _until_over(
        self, course: asyncio.Task[None], ending: asyncio.Task[bool]
    ) -> None:
        """Return when the call is over, by whichever side; the caller may hang up."""
        await asyncio.wait(
            {course, ending},
            timeout=self._caller.max_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if course.done():
            return
        if not ending.done():
            self._record.timed_out.append(f"call: {self._caller.max_seconds:g} s")
            self._person.hung_up.set()
        self._record.ended_by = "caller"
        if self._person.stream is not None:
            self._person.stream.hang_up()
            await asyncio.wait({course}, timeout=HANG_UP_LIMIT)
        course.cancel()
        await asyncio.wait({course})

    async def _course(self) -> None:
        """What the bridge's documents make of the call."""
        document: Answer | None
        try:
            document = await self._ask(self._caller.webhook_url, "POST", "ringing")
            while document is not None:
                document = await self._obey(document)
        except (_CallFailedError, markup.TwimlError) as error:
            self._record.error = str(error)
        self._record.ended_by = self._record.ended_by or self._reason()

    def _reason(self) -> str:
        """Why the call ended, seeing that the caller did not hang up."""
        record = self._record
        record.error = record.error or self._unattended
        return "bridge" if record.error is None else f"error: {record.error}"

    async def _obey(self, answer: Answer) -> Answer | None:
        """Follow a document; returns the next one, None when the call is over."""
        record = self._record
        for verb in self._verbs(answer):
            if record.answered_at is None and not isinstance(verb, markup.Reject):
                record.answered_at = monotonic()
            self._unattended = None
            match verb:
                case markup.Say(text):
                    record.said_by_twilio.append(text)
                case markup.Pause(seconds):
                    await asyncio.sleep(seconds)
                case markup.Redirect(url, method):
                    return await self._ask(urljoin(answer.url, url), method)
                case markup.Connect(stream, action, method):
                    end = await self._connect(stream, answer.url)
                    if self._person.hung_up.is_set():
                        return None
                    if action is not None:
                        return await self._ask(urljoin(answer.url, action), method)
                    if end.code != CLOSED_BY_BRIDGE:
                        self._unattended = f"{end.code} {end.text}"
                case markup.Dial(number):
                    record.dialled = number
                    return None
                case markup.Reject(reason):
                    record.rejected = reason
                    return None
                case markup.Hangup():
                    return None
        return None

    def _verbs(self, answer: Answer) -> list[markup.Verb]:
        if answer.status == 204:
            return []
        if answer.content_type == "text/plain" and "<Response" not in answer.text:
            return [markup.Say(answer.text), markup.Hangup()]  # read aloud, hang up
        if answer.content_type not in XML_TYPES | {"text/plain"}:
            raise _CallFailedError(f"12300 content type {answer.content_type}")
        self._record.twiml.append(answer.text)
        return markup.verbs(answer.text)

    async def _connect(self, stream: markup.Stream, document_url: str) -> StreamEnd:
        """Open a stream and let it run to its end."""
        stream_sid = "MZ" + secrets.token_hex(16)
        try:
            url = stream_url(stream, document_url)
            if url != without_query(url):
                text = "the stream URL's query string is not passed on"
                self._record.warnings.append(Warned(31920, text, monotonic()))
            url = without_query(url)
            socket = await open_socket(url, self._places, self._caller.auth_token)
        except StreamRefusedError as error:
            end = StreamEnd(stream_sid, error.code, error.text, monotonic())
            self._record.stream_ends.append(end)
            self._notify(stream, stream_sid, "stream-error", f"{end.code} {end.text}")
            return end
        self._notify(stream, stream_sid, "stream-started")
        end = await self._carry(stream, stream_sid, socket)
        if end.code in (0, CLOSED_BY_BRIDGE):
            self._notify(stream, stream_sid, "stream-stopped")
        else:
            self._notify(stream, stream_sid, "stream-error", f"{end.code} {end.text}")
        return end

    async def _carry(
        self, stream: markup.Stream, stream_sid: str, socket: ClientConnection
    ) -> StreamEnd:
        """Run the stream on its open socket until it ends; leave nothing behind."""
        caller, index = self._caller, len(self._record.streams)
        phase = Random(f"{caller.network.seed} phase {index}").random() * FRAME_US / 1e6
        playout = Playout(phase if caller.frame_playout else None)
        self._record.streams.append(Streamed(stream_sid, monotonic(), playout))
        media_stream = MediaStream(
            socket,
            self._record.streams[-1],
            self._record,
            account_sid=caller.account_sid,
            mouth=self._person.mouth,
            up=caller.network.up(index),
            down=caller.network.down(index),
            changed=self._person.changed,
            noisy=caller.noisy_silence,
            keep_frame_times=caller.keep_frame_times,
            on_media=caller.on_media,
        )
        reading = self._tasks.create_task(media_stream.read())
        try:
            media_stream.open(stream.parameters)
            self._person.opened(media_stream)
            await media_stream.run()
        finally:
            socket.transport.abort()
            reading.cancel()
        assert media_stream.end is not None
        return media_stream.end

    async def _ask(
        self, url: str, method: markup.Method, status: str = "in-progress"
    ) -> Answer:
        """A webhook that must say how the call goes on."""
        assert self._webhooks is not None
        url = self._places.public_url(url)
        answer = await self._webhooks.ask(url, self._form(status), method)
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
            "Direction": "inbound",
            "From": caller.from_number,
            "To": caller.to_number,
            **caller.parameters,
        }

    def _notify(
        self, stream: markup.Stream, stream_sid: str, event: str, error: str = ""
    ) -> None:
        """Post the stream's statusCallback, beside everything else."""
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
        url = self._places.public_url(stream.status_callback)
        asking = self._webhooks.ask(url, form, stream.status_method)
        self._tasks.create_task(asking)

    async def _post_completed(self) -> None:
        record, url = self._record, self._caller.status_callback_url
        assert self._webhooks is not None and url is not None
        assert record.ended_at is not None
        answered = record.answered_at or record.ended_at
        seconds = round(record.ended_at - answered)
        form = {
            **self._form("completed"),
            "CallDuration": str(seconds),
            "Duration": str(-(-seconds // 60)),
            "CallbackSource": "call-progress-events",
            "SequenceNumber": "0",
        }
        await self._webhooks.ask(self._places.public_url(url), form, "POST")
