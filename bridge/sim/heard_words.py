"""Error of the heard words: words that a bridge's report calls heard, compared with the
words that were heard.

Servers send words ahead of their audio, with it, behind it, all first or all last. For
each of these leads calls are placed to a given bridge. The truth is the audio that the
caller heard: espeak tells where each word of it begins.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, replace
from random import Random
from time import monotonic
from typing import Any, Protocol

from aiohttp import web
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bridge.sim.belief import percentile
from bridge.sim.caller import Caller, CallRecord, random_number
from bridge.sim.model import Behaviour, ModelItem, ModelServer, SayText
from bridge.sim.played_items import find_items
from bridge.sim.realtime.render import chunks
from bridge.sim.scenes import ANSWER_TIMEOUT, FIRST_SPEECH, LEFT, SOONEST, burst
from bridge.sim.twilio.network import Network
from bridge.sim.twilio.steps import (
    HangUpStep,
    HearStep,
    ListenStep,
    SayStep,
    Step,
    WaitStep,
)

LEADS = {
    "1 s ahead": 1.0,
    "0.5 s ahead": 0.5,
    "with the audio": 0.0,
    "0.5 s behind": -0.5,
    "all first": math.inf,
    "all last": -math.inf,
}
P95_LIMIT = 1  # words

# None of these was used to tune a bridge.
VOICES = ("en+f2", "en+m1", "en-us+m7", "en+f4")
RATES = (125, 145, 175, 190, 210)  # words per minute
SPEEDS = (4.0, 2.0)  # of the model
TEXTS = (
    "Good afternoon, this is the dental practice. How may I help you today? If it is "
    "about an appointment, please tell me your name and your date of birth.",
    "The train to Edinburgh leaves from platform seven at half past four. It stops in "
    "York, Durham and Newcastle; the journey takes about four hours. Shall I reserve a "
    "seat for you?",
    "Okay. I have changed your reservation to two nights instead of three, and the new "
    "total is two hundred and sixteen pounds. You will get a confirmation soon.",
    "Unfortunately we do not have that model in stock right now, but I could order it "
    "for you, and it would be here by the end of next week.",
    "To reset the router, unplug it from the wall, wait for thirty seconds, and then "
    "plug it in again. The light should turn green after about two minutes.",
    "Let me check that. Yes, there is one free table on the terrace, at eight o'clock; "
    "inside, you could come any time. Which one would you prefer?",
    "Your parcel left our warehouse on Monday and was handed to the courier yesterday. "
    "If nobody is at home, it will be taken to the post office around the corner.",
    "I understand. For your safety I have to ask two questions first: what is the name "
    "of your street, and what are the last two letters of your customer code?",
)
NETWORK = Network(up_ms=60, down_ms=60, jitter_ms=30)
STAGGER = 1.5  # s; calls placed at once begin at random times within this
QUIET = 0.8
TICK = 0.01  # s between two measurements of the event loop's delay
LATE_MS = 300.0  # about a word: a call whose fakes were later than this measures them
ATTEMPTS = 2  # of a call whose fakes were late
OFF_MS = 100.0  # error of the heard position that the report mentions
REPORT_SECONDS = 30.0  # from the end of a call to its report, which may be sent twice
LOUD = 2  # mu-law codes; below this a sample is silence
BYTES_PER_MS = 8


class ReportingBridge(Protocol):
    """Runs a bridge in front of the model at this URL, which posts its reports to the
    other URL. Yields the URL of its voice webhook, and its auth token or None."""

    def __call__(
        self, model_url: str, report_url: str
    ) -> AbstractAsyncContextManager[tuple[str, str | None]]: ...


@dataclass(frozen=True, slots=True)
class HeardWords:
    """One answer that was cut."""

    lead: str
    sent: int
    heard: int
    recorded: int
    text: str  # as recorded
    belief_ms: float = 0.0  # error of the heard position, as the model believes it

    @property
    def error(self) -> int:
        """Positive: words are recorded as heard that were not."""
        return self.recorded - self.heard


@dataclass(frozen=True, slots=True)
class WordsRow:
    """The answers of one lead."""

    lead: str
    answers: int
    p50: float
    p95: float
    worst: float
    bias: float


@dataclass(frozen=True, slots=True)
class WordsReport:
    rows: tuple[WordsRow, ...]
    answers: tuple[HeardWords, ...]
    broken: tuple[str, ...]
    seconds: float = 0.0
    late_ms: float = 0.0  # longest delay of the event loop in the calls that count


@dataclass(frozen=True, slots=True)
class PlannedCall:
    lead: str
    number: int
    interruptions: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.lead} call {self.number}"


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCall:
    """A call to place. Its voice has been rendered: that would stop all other calls."""

    plan: PlannedCall
    behaviour: Behaviour
    steps: Sequence[Step]
    stagger: float
    network_seed: int


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """A finished call, not judged yet: that, too, would stop the other calls."""

    plan: PlannedCall
    record: CallRecord
    items: Sequence[ModelItem]
    posted: Any  # the report; None: no report came
    late_ms: float  # longest delay of the event loop in this call


class _EventLoopDelay:
    """Measures how late the event loop wakes a sleeper: the fakes share it with the
    bridge."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []  # (when, seconds)

    async def watch(self) -> None:
        while True:
            due = monotonic() + TICK
            await asyncio.sleep(TICK)
            now = monotonic()
            if now - due > TICK:
                self._late.append((now, now - due))

    def ms_since(self, began: float) -> float:
        late = (seconds for at, seconds in self._late if at >= began)
        return 1000 * max(late, default=0.0)


# --- measuring ----------------------------------------------------------------------


async def measure(
    start_bridge: ReportingBridge,
    *,
    calls: int = 4,
    interruptions: int = 6,
    seed: int = 1,
    at_once: int = 12,
    leads: Sequence[str] = tuple(LEADS),
    progress: Callable[[int, int], None] | None = None,
) -> WordsReport:
    """Place `calls` calls for each lead; in each so many answers are interrupted."""
    prepared = [
        _prepare(PlannedCall(lead, number, interruptions, seed))
        for number in range(1, calls + 1)
        for lead in leads
    ]
    began = monotonic()
    finished: dict[PreparedCall, FinishedCall] = {}
    for _ in range(ATTEMPTS):
        late = [
            call
            for call in prepared
            if call not in finished or finished[call].late_ms > LATE_MS
        ]
        for first in range(0, len(late), at_once):
            finished |= await _place_together(
                late[first : first + at_once], start_bridge
            )
            if progress is not None:
                progress(len(finished), len(prepared))
    return report_calls(list(finished.values()), leads, monotonic() - began)


async def _place_together(
    calls: Sequence[PreparedCall], start_bridge: ReportingBridge
) -> dict[PreparedCall, FinishedCall]:
    """Places these calls at once. All bridges run before the first call, and until the
    last has ended: a start would stop the other calls."""
    lateness = _EventLoopDelay()
    async with AsyncExitStack() as stack:
        sides = []
        for call in calls:
            url, reports = await stack.enter_async_context(_report_receiver())
            model = await stack.enter_async_context(ModelServer(call.behaviour))
            bridge = await stack.enter_async_context(start_bridge(model.url, url))
            sides.append((call, model, bridge, reports))
        async with asyncio.TaskGroup() as placing:
            watch = placing.create_task(lateness.watch())
            tasks = [placing.create_task(_place(*it, lateness)) for it in sides]
            await asyncio.wait(tasks)
            watch.cancel()
    return {call: task.result() for call, task in zip(calls, tasks, strict=True)}


def _prepare(plan: PlannedCall) -> PreparedCall:
    random = Random(f"{plan.seed} {plan.lead} {plan.number}")
    texts = random.sample(TEXTS, plan.interruptions + 1)
    behaviour = Behaviour(
        turns=[[SayText(text)] for text in texts],
        voice=random.choice(VOICES),
        words_per_minute=random.choice(RATES),
        words_lead=LEADS[plan.lead],
        speed=random.choice(SPEEDS),
    )
    steps = tuple(_script(texts, behaviour, random))
    return PreparedCall(
        plan, behaviour, steps, random.uniform(0, STAGGER), random.getrandbits(32)
    )


async def _place(
    call: PreparedCall,
    model: ModelServer,
    bridge: tuple[str, str | None],
    reports: asyncio.Queue[Any],
    lateness: _EventLoopDelay,
) -> FinishedCall:
    await asyncio.sleep(call.stagger)
    webhook_url, auth_token = bridge
    caller = Caller(
        webhook_url=webhook_url,
        from_number=random_number(),
        auth_token=auth_token,
        network=replace(NETWORK, seed=call.network_seed),
        max_seconds=60.0 + 10.0 * len(call.steps),
    )
    began = monotonic()
    record = await caller.call(call.steps)
    late_ms = lateness.ms_since(began)
    posted = None
    with suppress(TimeoutError):
        async with asyncio.timeout(REPORT_SECONDS):
            posted = await reports.get()
    items = [
        item
        for session in model.sessions
        for response in session.responses
        for item in response.items
        if item.spoken and item.chunks
    ]
    return FinishedCall(call.plan, record, items, posted, late_ms)


def _script(
    texts: Sequence[str], behaviour: Behaviour, random: Random
) -> Iterator[Step]:
    """Interrupts each answer but the last, at any time within it."""
    yield WaitStep(random.uniform(*FIRST_SPEECH))
    round_trip = (NETWORK.up_ms + NETWORK.down_ms + 2 * NETWORK.jitter_ms) / 1000
    for text in texts:
        seconds = _seconds(text, behaviour)
        yield SayStep(burst())
        if text == texts[-1]:
            break
        yield HearStep(1, ANSWER_TIMEOUT)
        latest = seconds - LEFT - round_trip
        yield WaitStep(random.uniform(SOONEST, latest))
    yield ListenStep(QUIET, ANSWER_TIMEOUT + 20.0)
    yield HangUpStep()


def _seconds(text: str, behaviour: Behaviour) -> float:
    """Length of an answer. Renders it as the model will, whose chunks are cached."""
    rendered = chunks(
        SayText(text),
        "audio/pcmu",
        behaviour.delta_ms,
        behaviour.first_delta_ms,
        1.0,
        behaviour.voice,
        behaviour.words_per_minute,
        behaviour.words_lead,
    )
    return sum(chunk.seconds for chunk in rendered)


@asynccontextmanager
async def _report_receiver() -> AsyncIterator[tuple[str, asyncio.Queue[Any]]]:
    """A web server to which a bridge posts its reports."""
    reports: asyncio.Queue[Any] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        reports.put_nowait(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/report", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/report", reports
    finally:
        await runner.cleanup()


# --- judging ------------------------------------------------------------------------


def report_calls(
    calls: Sequence[FinishedCall], leads: Sequence[str], seconds: float = 0.0
) -> WordsReport:
    """Calls whose fakes were late do not count: they measure this machine."""
    answers: list[HeardWords] = []
    faults: list[str] = []
    late = [call for call in calls if call.late_ms > LATE_MS]
    if late:
        worst = max(call.late_ms for call in late)
        faults.append(
            f"WORTHLESS: in {len(late)} of {len(calls)} calls, which do not count, the "
            f"fakes were late by up to {worst:.0f} ms: try fewer calls at once"
        )
    counted = [call for call in calls if call.late_ms <= LATE_MS]
    for call in counted:
        name = call.plan.name
        faults += [f"{name}: a step timed out: {it}" for it in call.record.timed_out]
        if call.posted is None:
            faults.append(f"{name}: no report came")
        else:
            answers += _cut_answers(call)
    found = report(answers, faults, leads)
    late_ms = max((call.late_ms for call in counted), default=0.0)
    return replace(found, seconds=seconds, late_ms=late_ms)


def _cut_answers(call: FinishedCall) -> Iterator[HeardWords]:
    items, posted = call.items, call.posted
    audio = [(b"".join(item.chunks), item.deleted) for item in items]
    recorded = [entry for entry in posted["transcript"] if entry["who"] == "agent"]
    for item, (sound, _), (_, heard) in zip(
        items, audio, find_items(call.record.heard, audio), strict=True
    ):
        if not 0 < heard < len(sound):
            continue  # nothing of it, or all
        text = _recorded(item, recorded)
        yield HeardWords(
            call.plan.lead,
            len(item.generated_text.split()),
            sum(middle <= heard for middle in middles(item.cues, sound)),
            len(text.split()),
            text,
            item.believed_ms - heard / BYTES_PER_MS,
        )


def _recorded(item: ModelItem, entries: Sequence[Any]) -> str:
    """What the report calls heard of an item; all texts have another beginning."""
    whole = item.generated_text
    for entry in entries:
        generated = str(entry["generated"])
        if generated and (whole.startswith(generated) or generated.startswith(whole)):
            return str(entry["text"])
    return ""


def middles(cues: Sequence[tuple[float, str]], sound: bytes) -> list[float]:
    """The byte at which one half of each word was spoken. A pause behind a word does
    not belong to it."""
    begins = [at * BYTES_PER_MS for at, _ in cues]
    found = []
    for begin, end in zip(begins, [*begins[1:], len(sound)], strict=True):
        last = int(end)
        while last - begin > 100 * BYTES_PER_MS and _is_silent(sound[:last]):
            last -= 20 * BYTES_PER_MS
        found.append((begin + last) / 2)
    return found


def _is_silent(sound: bytes) -> bool:
    """Its last 20 ms are silence."""
    return all(~byte & 0x7F <= LOUD for byte in sound[-20 * BYTES_PER_MS :])


def report(
    answers: Sequence[HeardWords],
    faults: Sequence[str] = (),
    leads: Sequence[str] = tuple(LEADS),
) -> WordsReport:
    """The answers by lead, checked against the limit."""
    rows = tuple(
        _row(lead, [it for it in answers if it.lead == lead]) for lead in leads
    )
    broken = [*faults]
    for row in rows:
        if not row.answers:
            broken.append(f"{row.lead}: no answer was cut: nothing was measured")
        if row.p95 > P95_LIMIT:
            broken.append(
                f"{row.lead}: p95 of the heard words is {row.p95:g} words off, "
                f"above {P95_LIMIT}"
            )
    return WordsReport(rows, tuple(answers), tuple(broken))


def _row(lead: str, answers: Sequence[HeardWords]) -> WordsRow:
    errors = sorted(abs(answer.error) for answer in answers)
    return WordsRow(
        lead,
        len(answers),
        percentile(errors, 50),
        percentile(errors, 95),
        percentile(errors, 100),
        sum(answer.error for answer in answers) / max(1, len(answers)),
    )


def render(report: WordsReport) -> Group:
    """The report for a terminal."""
    table = Table(
        title="Heard words (words that the report has too many or too few)",
        caption="of the answers that were cut; the words arrive ... of their audio",
    )
    table.add_column("words")
    for name in ("answers", "p50", "p95", "max", "bias"):
        table.add_column(name, justify="right")
    for row in report.rows:
        figures = (f"{it:g}" for it in (row.answers, row.p50, row.p95, row.worst))
        table.add_row(row.lead, *figures, f"{row.bias:+.2f}")
    off = max((abs(it.belief_ms) for it in report.answers), default=0.0)
    lines = [
        f"{len(report.answers)} answers were cut in {report.seconds:.0f} s; the event "
        f"loop was late by {report.late_ms:.0f} ms at most",
        *(f"BROKEN: {text}" for text in report.broken),
    ]
    if off > OFF_MS:
        lines.append(f"The heard position was off by up to {off:.0f} ms.")
    return Group(table, *map(Text, lines))
