"""The report of a call: its content, and its delivery to a function or a webhook.

A report contains what people said, so nothing of it is logged. A delivery may outlive
its call; it must not delay the call, nor raise an exception into it.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Self

import aiohttp
import msgspec
import structlog

from bridge.agent import user_code
from bridge.agent.finished_tools import FinishedTool, Outcome
from bridge.agent.live import CallFacts, LiveCall, Message, ModelProblem
from bridge.core.history import HistoryItem
from bridge.core.transfers import FailedTransfer
from bridge.privacy.redaction import Redaction
from bridge.records.standard_webhooks import signed, signing_key

log = structlog.get_logger()

CLOSE_SECONDS = 5.0
"""Time that deliveries get at shutdown, if `close` was not called before."""

RETRY_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
"""HTTP statuses after which a delivery is retried: a later attempt may succeed."""

NOTHING = Redaction()

MACHINE_ENDS = frozenset({"machine", "message_left"})
"""`ended_why` of calls that an answering machine has answered (bridge.call.actions)."""


# --- the report ---


@dataclass(frozen=True, slots=True)
class TranscriptEntry:
    """One spoken item of the caller or of the agent."""

    at: float
    """Seconds since the call began."""
    who: Literal["caller", "agent"]
    text: str
    """The text that was heard."""
    generated: str
    """All text that the model generated, heard or not; empty for the caller."""
    cut: bool
    """The caller did not hear all of the generated text."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the model's JSON, unchanged; `output` is empty if none came."""

    name: str
    arguments: str
    output: str
    outcome: Outcome | Literal[""] = ""
    """Empty if the tool has not ended on the call's last stream."""
    seconds: float | None = None
    """How long the tool took; None if `outcome` is empty."""
    at: float | None = None
    """Seconds since the call began: the start of the tool; None as for `seconds`."""
    error: str = ""
    """Why it failed: the type of the exception and its text, or `timeout`; then the
    user's lines. Also if the model got a polite text as the output."""


@dataclass(frozen=True, slots=True)
class Handoff:
    """The agent handed the call over to another agent."""

    at: float
    """Seconds since the call began."""
    agent: str
    to: str


@dataclass(frozen=True, slots=True)
class AnswerDelay:
    """How long the caller waited for an answer of the agent, or for the greeting."""

    at: float
    """Seconds since the call began: the first audio."""
    seconds: float
    """As in the metric bridge_first_audio_seconds."""


@dataclass(frozen=True, slots=True)
class CallUsage:
    """Usage of the model. `cost` is in the unit of the route's prices."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class CallReport:
    """The report of one ended call. The fields are those of the posted JSON."""

    call_sid: str
    stream_sid: str
    account_sid: str
    from_number: str
    to_number: str
    direction: str
    route: str
    parameters: Mapping[str, str]
    """What the webhook, the order or the SIP headers said about the call, without the
    numbers (BRIDGE_PARAMETERS)."""
    started_at: str
    """ISO 8601 in UTC: the start of the stream; without a stream, the time at which the
    call was placed."""
    seconds: float
    status: str
    """`completed`; for an outbound call in which nobody talked: `busy`, `no-answer`,
    `failed`, `canceled`, `machine`."""
    outcome: str
    """`{ended_by}_{ended_why}`, as in the metrics; empty if there was no stream."""
    ended_by: str
    ended_why: str
    agent: str
    """Name of the agent at the end of the call."""
    transcript: Sequence[TranscriptEntry] = ()
    tools: Sequence[ToolCall] = ()
    messages: Sequence[Message] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    usage: CallUsage = field(default_factory=CallUsage)
    problems: Sequence[ModelProblem] = ()
    answered_by: str = ""
    """Who has answered an outbound call: what the agent has said (`voicemail`,
    `screened`, `person`), else what Twilio's machine detection has."""
    sip_code: int | None = None
    """Why an outbound call failed: the SIP code of the callee's network."""
    error_code: int | None = None
    """Why an outbound call failed: Twilio's error code."""
    failed_transfers: Sequence[FailedTransfer] = ()
    """Transfers that nobody answered, with Twilio's error code and message."""
    handoffs: Sequence[Handoff] = ()
    """On the call's last stream, as the delays."""
    delays: Sequence[AnswerDelay] = ()

    def as_json(self) -> bytes:
        """UTF-8. Values in `notes` of types that JSON lacks are written as str(value).
        RecursionError if `notes` contains itself."""
        return msgspec.json.encode(self, enc_hook=str)


def report_of(
    live: LiveCall, ended_by: str, ended_why: str, seconds: float
) -> CallReport:
    """The report of a call that had a stream; `seconds` is the length of the call. What
    the redaction of the call's route covers is replaced."""
    redaction, ended_at = live.redaction, time.time()

    def at(moment: float) -> float:
        """Seconds since the call began; earlier streams are included in `seconds`."""
        return round(max(seconds - (ended_at - moment), 0.0), 3)

    history = [redaction.item(item) for item in live.history]
    return CallReport(
        **_facts(live.facts, redaction),
        started_at=_utc(live.began),
        seconds=seconds,
        status="machine" if ended_why in MACHINE_ENDS else "completed",
        outcome=f"{ended_by}_{ended_why}",
        ended_by=ended_by,
        ended_why=ended_why,
        agent=live.agent_name,
        transcript=[said(item) for item in history if item.spoken],
        tools=_tools(history, live.finished_tools, redaction, at),
        handoffs=[Handoff(at(then), *agents) for then, *agents in live.handoffs],
        delays=[AnswerDelay(at(then), waited) for then, waited in live.delays],
        messages=[_redacted(it, redaction) for it in live.messages],
        notes=_notes(live),
        usage=CallUsage(live.input_tokens, live.output_tokens, live.cost),
        problems=[
            replace(it, message=redaction.text(it.message)) for it in live.problems
        ],
        answered_by=live.answered_by,
        failed_transfers=[
            msgspec.structs.replace(it, message=redaction.text(it.message))
            for it in live.failed_transfers
        ],
    )


def report_of_silence(
    facts: CallFacts,
    status: str,
    placed_at: float,
    redaction: Redaction = NOTHING,
    *,
    sip_code: int | None = None,
    error_code: int | None = None,
) -> CallReport:
    """The report of an outbound call that had no stream. `placed_at` is in seconds
    since the epoch."""
    return CallReport(
        **_facts(facts, redaction),
        started_at=_utc(placed_at),
        seconds=0.0,
        status=status,
        outcome="",
        ended_by="",
        ended_why="",
        agent="",
        sip_code=sip_code,
        error_code=error_code,
    )


def said(item: HistoryItem) -> TranscriptEntry:
    """A spoken item in the form of reports and of the control API."""
    who: Literal["caller", "agent"] = "caller" if item.kind == "user" else "agent"
    return TranscriptEntry(item.at, who, item.text, item.generated, item.cut)


def _facts(facts: CallFacts, redaction: Redaction) -> dict[str, Any]:
    """`From` and `To`, and what the bridge has set itself, have fields of their own."""
    return {
        "call_sid": facts.call_sid,
        "stream_sid": facts.stream_sid,
        "account_sid": facts.account_sid,
        "from_number": facts.from_number,
        "to_number": facts.to_number,
        "direction": facts.direction,
        "route": facts.route,
        "parameters": {
            name: redaction.text(text)
            for name, text in facts.parameters.items()
            if name not in ("From", "To", "Direction", "Route")
        },
    }


def _notes(live: LiveCall) -> dict[str, Any]:
    """The notes that the user's code made. With redaction they become JSON values,
    because only those can be redacted; empty if that is impossible."""
    if not live.redaction:
        return dict(live.notes)
    try:
        plain = msgspec.to_builtins(live.notes, str_keys=True, enc_hook=str)
        notes: dict[str, Any] = live.redaction.value(plain)
    except (TypeError, ValueError, RecursionError):
        log.warning("notes_not_stored", notes=len(live.notes))
        return {}
    return notes


def _redacted(it: Message, redaction: Redaction) -> Message:
    return Message(*map(redaction.text, (it.text, it.name, it.call_back)))


def _tools(
    history: Sequence[HistoryItem],
    finished: Mapping[str, FinishedTool],
    redaction: Redaction,
    at: Callable[[float], float],
) -> list[ToolCall]:
    outputs = {it.call_id: it.text for it in history if it.kind == "tool_output"}
    calls = []
    for it in history:
        if it.kind != "tool_call":
            continue
        # The model may ask for a tool that does not exist, so a name may hold words.
        name, output = redaction.text(it.name), outputs.get(it.call_id, "")
        call = ToolCall(name, it.arguments, output)
        if ended := finished.get(it.call_id):
            error = redaction.text(why_failed(ended))
            seconds = round(ended.seconds, 3)
            began = at(ended.ended_at - ended.seconds)
            known = (ended.outcome, seconds, began, error)
            call = ToolCall(name, it.arguments, output, *known)
        calls.append(call)
    return calls


def why_failed(tool: FinishedTool) -> str:
    """For people who may read what was said; empty if the tool did not fail."""
    text = f": {tool.message}" if tool.outcome == "failed" and tool.message else ""
    place = f" ({tool.where})" if tool.where else ""
    return f"{tool.error}{text}{place}"


def _utc(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- delivery ---

ReportTo = Callable[[CallReport], Awaitable[None] | None]
"""A function of the user's code that gets each report. A plain function runs in a
thread."""


@dataclass(frozen=True, slots=True)
class DeliveryTimes:
    """Timeouts and waits of a delivery. The default is six attempts; the waits between
    the attempts add up to two minutes."""

    attempts: int = 6
    attempt_seconds: float = 10.0
    """Timeout of one attempt, the receiver's answer included."""
    first_wait: float = 4.0
    """Seconds between the first two attempts. Each next wait is twice as long; a wait
    is up to a quarter shorter or longer at random."""
    longest_wait: float = 60.0
    """Limit of a wait, also of one that the receiver asks for (Retry-After)."""
    function_seconds: float = 30.0
    """Timeout of the user's function."""


class Reports:
    """Delivers reports while the context is open; no task outlives the context."""

    def __init__(self, secret: str | None, times: DeliveryTimes | None = None) -> None:
        """ValueError if the secret is malformed. None: posted reports are not
        signed."""
        self._key = signing_key(secret) if secret is not None else None
        self._times = times or DeliveryTimes()
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()
        self._open = False
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            # No limit: deliveries to a slow receiver must not hold the connections of
            # all others.
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._times.attempt_seconds),
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
        """Starts the delivery to the function and to the webhook; does not wait."""
        if not self._open:
            log.error("report_lost", call_sid=report.call_sid, why="closed")
            return
        work = self.deliver(report, to, url)
        task = self._tasks.create_task(work, name=f"report {report.call_sid}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self, seconds: float) -> None:
        """Accepts no more reports. Deliveries that run after `seconds` are cancelled,
        and their loss is logged."""
        self._open = False
        if self._running:
            await asyncio.wait(set(self._running), timeout=seconds)
        if left := self._drop():
            await asyncio.wait(left, timeout=CLOSE_SECONDS)

    async def deliver(
        self, report: CallReport, to: ReportTo | None, url: str | None
    ) -> None:
        """As `send`, but waits until the report is delivered or lost. Raises
        nothing."""
        async with asyncio.TaskGroup() as both:
            name = f"report {report.call_sid}"
            if to is not None:
                both.create_task(self._call_function(report, to), name=name)
            if url is not None:
                both.create_task(self._post(report, url), name=name)

    def _drop(self) -> set[asyncio.Task[None]]:
        for task in self._running:
            task.cancel()
        return set(self._running)

    async def _call_function(self, report: CallReport, to: ReportTo) -> None:
        call_sid = report.call_sid
        try:
            name, seconds = f"report {call_sid}", self._times.function_seconds
            await user_code.call(to, report, name=name, seconds=seconds)
        except asyncio.CancelledError:
            log.error("report_lost", call_sid=call_sid, why="shutdown")
            raise
        except Exception:
            # With the traceback, for the function's author. A function that takes too
            # long raises TimeoutError.
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
            # For example notes that cannot be encoded, or a malformed URL.
            log.error("report_lost", call_sid=call_sid, why=type(error).__name__)
            return
        if lost is None:
            log.info("report_delivered", call_sid=call_sid)
        else:
            log.error("report_lost", call_sid=call_sid, **lost)

    async def _attempts(
        self, call_sid: str, url: str, body: bytes
    ) -> dict[str, int | str] | None:
        """None if the receiver accepted the report. Else the failure of the last
        attempt, as fields of a log line."""
        webhook_id = f"msg_{uuid.uuid4().hex}"
        times = self._times
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
                if status not in RETRY_STATUSES:
                    break
            if attempt < times.attempts:
                log.warning("report_attempt_failed", call_sid=call_sid, **failed)
                # A random wait: not all reports are posted at the same moment after an
                # outage of the receiver.
                pause = max(wait * random.uniform(0.75, 1.25), asked)  # noqa: S311 - no secret
                await asyncio.sleep(min(pause, times.longest_wait))
                wait *= 2
        return failed

    async def _once(self, url: str, webhook_id: str, body: bytes) -> tuple[int, float]:
        """(HTTP status, seconds that the receiver asks us to wait)"""
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
    """Seconds from now; 0 if the header is missing or unusable. RFC 9110 10.2.3."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # not a date; a time zone that is too large
        return 0.0
    return max(moment.timestamp() - time.time(), 0.0)
