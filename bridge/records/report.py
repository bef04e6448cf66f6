"""What a call leaves behind: one report, given to a function or posted to a webhook.

A report holds what people said, so nothing of it is ever logged. Delivery belongs to
the server and outlives the call; it never delays one, nor raises into it.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self

import aiohttp
import msgspec
import structlog

from bridge.agent import user_code
from bridge.agent.live import CallFacts, LiveCall, Message
from bridge.core.history import HistoryItem
from bridge.privacy.redaction import Redaction
from bridge.records.standard_webhooks import signed, signing_key

log = structlog.get_logger()

CLOSE_SECONDS = 5.0
"""For what still runs when the server goes and nobody has named a time."""

TRY_AGAIN = frozenset({408, 425, 429, *range(500, 600)})
"""Answers of a receiver that may answer otherwise later."""

MACHINE_ENDS = frozenset({"machine", "message_left"})
"""Ways in which a call ends that an answering machine has taken (bridge.call.call)."""


# --- the report ---


@dataclass(frozen=True, slots=True)
class TranscriptEntry:
    """What one of the two said at a time."""

    at: float
    """Seconds since the stream began."""
    who: Literal["caller", "agent"]
    text: str
    """What was heard of it."""
    generated: str
    """The agent's words, heard or not; empty for the caller."""
    cut: bool
    """The caller did not hear all of it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON as the model wrote it; `output` empty if none ever came."""

    name: str
    arguments: str
    output: str


@dataclass(frozen=True, slots=True)
class CallUsage:
    """Of the model. `cost` is in the unit of the prices that the route gives."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call that is over. The JSON that is posted has these names."""

    call_sid: str
    stream_sid: str
    account_sid: str
    from_number: str
    to_number: str
    direction: str
    route: str
    started_at: str
    """ISO 8601 in UTC: when the stream began, or the call was placed."""
    seconds: float
    status: str
    """`completed`; of an outbound call nobody talked in, what became of it: `busy`,
    `no-answer`, `failed`, `canceled`, `machine`."""
    outcome: str
    """`{ended_by}_{ended_why}`, as in the metrics; empty where there was no stream."""
    ended_by: str
    ended_why: str
    agent: str
    """In charge at the end."""
    transcript: Sequence[TranscriptEntry] = ()
    tools: Sequence[ToolCall] = ()
    messages: Sequence[Message] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    usage: CallUsage = field(default_factory=CallUsage)

    def as_json(self) -> bytes:
        """UTF-8. Of `notes` what JSON does not have is written as its text."""
        return msgspec.json.encode(self, enc_hook=str)


def report_of(
    live: LiveCall, ended_by: str, ended_why: str, seconds: float
) -> CallReport:
    """The report of a call that had a stream; `seconds` is how long it lasted. Without
    what the call's route takes out."""
    redaction = live.redaction
    history = [redaction.item(item) for item in live.history]
    return CallReport(
        **_facts(live.facts),
        started_at=_utc(live.began),
        seconds=seconds,
        status="machine" if ended_why in MACHINE_ENDS else "completed",
        outcome=f"{ended_by}_{ended_why}",
        ended_by=ended_by,
        ended_why=ended_why,
        agent=live.agent_name,
        transcript=[said(item) for item in history if item.spoken],
        tools=_tools(history),
        messages=[_without(it, redaction) for it in live.messages],
        notes=_notes(live),
        usage=CallUsage(live.input_tokens, live.output_tokens, live.cost),
    )


def report_of_silence(facts: CallFacts, status: str, placed_at: float) -> CallReport:
    """The report of an outbound call that never got a stream. `placed_at` is seconds
    since the epoch."""
    return CallReport(
        **_facts(facts),
        started_at=_utc(placed_at),
        seconds=0.0,
        status=status,
        outcome="",
        ended_by="",
        ended_why="",
        agent="",
    )


def said(item: HistoryItem) -> TranscriptEntry:
    """A spoken item as reports and the control API show it."""
    who: Literal["caller", "agent"] = "caller" if item.kind == "user" else "agent"
    return TranscriptEntry(item.at, who, item.text, item.generated, item.cut)


def _facts(facts: CallFacts) -> dict[str, Any]:
    return {
        "call_sid": facts.call_sid,
        "stream_sid": facts.stream_sid,
        "account_sid": facts.account_sid,
        "from_number": facts.from_number,
        "to_number": facts.to_number,
        "direction": facts.direction,
        "route": facts.route,
    }


def _notes(live: LiveCall) -> dict[str, Any]:
    """The user's own. Only of JSON values anything can be taken out."""
    if not live.redaction:
        return dict(live.notes)
    try:
        plain = msgspec.to_builtins(live.notes, str_keys=True, enc_hook=str)
        notes: dict[str, Any] = live.redaction.value(plain)
    except (TypeError, ValueError, RecursionError):
        log.warning("notes_not_stored", notes=len(live.notes))
        return {}
    return notes


def _without(it: Message, redaction: Redaction) -> Message:
    return Message(*map(redaction.text, (it.text, it.name, it.call_back)))


def _tools(history: Sequence[HistoryItem]) -> list[ToolCall]:
    outputs = {it.call_id: it.text for it in history if it.kind == "tool_output"}
    return [
        ToolCall(it.name, it.arguments, outputs.get(it.call_id, ""))
        for it in history
        if it.kind == "tool_call"
    ]


def _utc(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- delivery ---

ReportTo = Callable[[CallReport], Awaitable[None] | None]
"""Yours: told of every call. A plain function runs in a thread."""


@dataclass(frozen=True, slots=True)
class DeliveryTimes:
    """How long is tried. By default six times in two minutes and what they take."""

    attempts: int = 6
    attempt_seconds: float = 10.0
    """For the receiver to take one and answer."""
    first_wait: float = 4.0
    """Between the first two attempts, in seconds; doubled each time, give or take."""
    longest_wait: float = 60.0
    """Also of what a receiver may ask for (Retry-After)."""
    function_seconds: float = 30.0


class Reports:
    """Delivers reports while it is entered; leaves no task behind."""

    def __init__(self, secret: str | None, times: DeliveryTimes | None = None) -> None:
        """ValueError if the secret is none. None: what is posted is not signed."""
        self._key = signing_key(secret) if secret is not None else None
        self._call_limits = times or DeliveryTimes()
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self._open = False
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            # A receiver that hangs keeps none of the others waiting for a connection.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._call_limits.attempt_seconds),
            headers={"User-Agent": "twilio-realtime-bridge"},
        )
        await self._tasks.__aenter__()
        self._open = True
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self.close(CLOSE_SECONDS)
        finally:
            self._drop()
            try:
                await self._tasks.__aexit__(None, None, None)
            finally:
                await self._http.close()

    def send(self, report: CallReport, to: ReportTo | None, url: str | None) -> None:
        """Delivers it by and by, to the function and to the webhook."""
        if not self._open:
            log.error("report_lost", call_sid=report.call_sid, why="closed")
            return
        work = self.deliver(report, to, url)
        task = self._tasks.create_task(work, name=f"report {report.call_sid}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self, seconds: float) -> None:
        """Takes no more, gives what runs so long, drops the rest."""
        self._open = False
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        if left := self._drop():
            await asyncio.wait(left, timeout=CLOSE_SECONDS)

    async def deliver(
        self, report: CallReport, to: ReportTo | None, url: str | None
    ) -> None:
        """As `send`, and waits until it is delivered or lost. Raises nothing."""
        async with asyncio.TaskGroup() as both:
            name = f"report {report.call_sid}"
            if to is not None:
                both.create_task(self._tell(report, to), name=name)
            if url is not None:
                both.create_task(self._post(report, url), name=name)

    def _drop(self) -> set[asyncio.Task[None]]:
        for task in self._running:
            task.cancel()
        return set(self._running)

    async def _tell(self, report: CallReport, to: ReportTo) -> None:
        call_sid = report.call_sid
        try:
            async with asyncio.timeout(self._call_limits.function_seconds):
                await user_code.ask(to, report, f"report {report.call_sid}")
        except asyncio.CancelledError:
            log.error("report_lost", call_sid=call_sid, why="shutdown")
            raise
        except (Exception, SystemExit):
            # Theirs to mend, so all of it is logged; too late is a TimeoutError.
            log.exception("report_function_failed", call_sid=call_sid)

    async def _post(self, report: CallReport, url: str) -> None:
        call_sid = report.call_sid
        try:
            body = report.as_json()
            lost = await self._attempts(call_sid, url, body)
        except asyncio.CancelledError:
            log.error("report_lost", call_sid=call_sid, why="shutdown")
            raise
        except Exception as error:
            # Notes that cannot be written, an url that is none.
            log.error("report_lost", call_sid=call_sid, why=type(error).__name__)
            return
        if lost is None:
            log.info("report_delivered", call_sid=call_sid)
        else:
            log.error("report_lost", call_sid=call_sid, **lost)

    async def _attempts(
        self, call_sid: str, url: str, body: bytes
    ) -> dict[str, int | str] | None:
        """None: it was taken. Else how the last attempt failed, fit to be logged."""
        webhook_id = f"msg_{uuid.uuid4().hex}"
        times = self._call_limits
        wait = times.first_wait
        for attempt in range(1, times.attempts + 1):
            asked = 0.0
            try:
                status, asked = await self._once(url, webhook_id, body)
            except aiohttp.InvalidURL:
                raise
            except (aiohttp.ClientError, TimeoutError) as error:
                failed: dict[str, int | str] = {"why": type(error).__name__}
            else:
                if 200 <= status < 300:
                    return None
                failed = {"why": "refused", "status": status}
                if status not in TRY_AGAIN:
                    break
            if attempt < times.attempts:
                log.warning("report_delayed", call_sid=call_sid, **failed)
                # Not all of a thousand reports at the same moment.
                pause = max(wait * random.uniform(0.75, 1.25), asked)  # noqa: S311 - no secret
                await asyncio.sleep(min(pause, times.longest_wait))
                wait *= 2
        return failed

    async def _once(self, url: str, webhook_id: str, body: bytes) -> tuple[int, float]:
        """The status that was answered, and how many seconds it asks us to wait."""
        headers = {"Content-Type": "application/json"}
        if self._key is None:
            headers["webhook-id"] = webhook_id
        else:
            headers |= signed(self._key, webhook_id, int(time.time()), body)
        async with self._http.post(
            url, data=body, headers=headers, allow_redirects=False
        ) as response:
            return response.status, _retry_after(response.headers.get("Retry-After"))


def _retry_after(value: str | None) -> float:
    """Seconds from now; 0 where nothing usable was said. RFC 9110 10.2.3."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # no date; a time zone beyond all measure
        return 0.0
    return max(moment.timestamp() - time.time(), 0.0)
