"""The report of a call: its content, and that it arrives or its loss is logged."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from openai import InvalidWebhookSignatureError, OpenAI
from structlog.testing import capture_logs

from bridge.agent.finished_tools import FinishedTool
from bridge.agent.live import CallFacts, Message, ModelProblem
from bridge.core.history import HistoryItem
from bridge.core.transfers import FailedTransfer
from bridge.privacy.redaction import Redaction
from bridge.records.report import (
    CallReport,
    DeliveryTimes,
    Reports,
    report_of,
    report_of_silence,
)
from bridge.records.standard_webhooks import signed, signing_key
from tests.support.call_control import FACTS, FakeCallControl, live_call

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
QUICK = DeliveryTimes(
    attempts=4,
    attempt_seconds=0.3,
    first_wait=0.02,
    longest_wait=0.3,
    function_seconds=0.2,
)
PARAMETERS = {"From": "+14155550101", "Route": "sales", "CallerCity": "BOSTON"}
SPOKEN = "I would like to order a pizza"
REPORT = report_of_silence(FACTS, "busy", 0.0)

Answer = int | web.Response | None
"""A status, a whole response, or None: the receiver does not answer."""


class Receiver:
    """The receiver of a webhook: gives `answers` one after the other, the last one for
    ever."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers) or [204]
        self.got: list[tuple[dict[str, str], bytes, float]] = []
        """(headers, body, monotonic time) of each attempt."""
        self.url = ""
        self.gone = asyncio.Event()

    async def take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((headers, await request.read(), time.monotonic()))
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if answer is None:
            await self.gone.wait()
            return web.Response()
        return (
            answer if isinstance(answer, web.Response) else web.Response(status=answer)
        )


@asynccontextmanager
async def receiver(*answers: Answer) -> AsyncIterator[Receiver]:
    """A real server on a free port."""
    one = Receiver(*answers)
    app = web.Application()
    app.router.add_post("/report", one.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/report"
    try:
        yield one
    finally:
        one.gone.set()
        await runner.cleanup()


async def delivered(
    url: str | None = None,
    to: Callable[[CallReport], Awaitable[None] | None] | None = None,
    report: CallReport = REPORT,
    secret: str | None = SECRET,
) -> list[Any]:
    """Delivers one report; returns the log lines."""
    with capture_logs() as logged:
        async with Reports(secret, QUICK) as reports:
            await reports.deliver(report, to, url)
    return logged


def losses(logged: list[Any]) -> list[dict[str, Any]]:
    keep = ("why", "status")
    lost = [line for line in logged if line["event"] == "report_lost"]
    assert all(line["call_sid"] == FACTS.call_sid for line in lost)
    return [{key: line[key] for key in keep if key in line} for line in lost]


# --- the content ---


async def test_a_report_describes_the_call() -> None:
    """Transcript, tools, messages, notes and the end of the call: all in one JSON
    object."""
    line = FakeCallControl()
    line.history = [
        HistoryItem("i0", "system", "You are a test."),
        HistoryItem("i1", "user", SPOKEN, at=1.5),
        HistoryItem("i2", "tool_call", call_id="c1", name="menu", arguments='{"n":1}'),
        HistoryItem("i3", "tool_output", "funghi", call_id="c1"),
        HistoryItem("i4", "tool_call", call_id="c2", name="oven", arguments="{}"),
        HistoryItem("i6", "tool_call", call_id="c3", name="bell", arguments="{}"),
        HistoryItem("i7", "tool_output", "Try again.", call_id="c3"),
        HistoryItem("i5", "assistant", "We have", "We have funghi", True, 3.25),
    ]
    async with live_call(line) as live:
        live.facts = replace(live.facts, parameters=PARAMETERS)
        live.began = 1_700_000_000.5
        live.notes["when"] = datetime(2026, 1, 2, tzinfo=UTC)
        live.notes["odd"] = {"it": complex(1, 2)}
        live.input_tokens, live.output_tokens, live.cost = 100, 20, 0.25
        live.take_message("Call me.", name="Ann")
        live.finished_tools = {
            "c1": FinishedTool("menu", "c1", "done", 0.25, ended_at=time.time() - 9),
            "c3": FinishedTool(
                "bell", "c3", "failed", 1.0, "KeyError", "mine.py:3", message="'Ann'"
            ),
        }
        live.handoffs = [(time.time() - 5, "receptionist", "billing")]
        live.delays = [(time.time() - 60, 0.4)]  # the clock was set meanwhile
        live.problems = [ModelProblem("model_error", "no_voice", message="No voice.")]
        live.failed_transfers = [FailedTransfer("busy", "", "486", "Busy.")]
        report = report_of(live, "caller", "hung_up", 12.5)

    body = json.loads(report.as_json())
    begun = [tool.pop("at") for tool in body["tools"]]
    assert begun == [pytest.approx(3.25, abs=0.5), None, pytest.approx(11.5, abs=0.5)]
    [handoff] = body.pop("handoffs")
    assert handoff.pop("at") == pytest.approx(7.5, abs=0.5)
    assert handoff == {"agent": "receptionist", "to": "billing"}
    assert body.pop("delays") == [{"at": 0.0, "seconds": 0.4}]
    assert body == {
        "call_sid": FACTS.call_sid,
        "stream_sid": FACTS.stream_sid,
        "account_sid": FACTS.account_sid,
        "from_number": "+14155550101",
        "to_number": "+14155550199",
        "direction": "inbound",
        "route": "sales",
        "parameters": {"CallerCity": "BOSTON"},
        "started_at": "2023-11-14T22:13:20.500Z",
        "seconds": 12.5,
        "status": "completed",
        "outcome": "caller_hung_up",
        "ended_by": "caller",
        "ended_why": "hung_up",
        "agent": "receptionist",
        "transcript": [
            {"at": 1.5, "who": "caller", "text": SPOKEN, "generated": "", "cut": False},
            {
                "at": 3.25,
                "who": "agent",
                "text": "We have",
                "generated": "We have funghi",
                "cut": True,
            },
        ],
        "tools": [
            {
                "name": "menu",
                "arguments": '{"n":1}',
                "output": "funghi",
                "outcome": "done",
                "seconds": 0.25,
                "error": "",
            },
            {
                "name": "oven",
                "arguments": "{}",
                "output": "",
                "outcome": "",
                "seconds": None,
                "error": "",
            },
            {
                "name": "bell",
                "arguments": "{}",
                "output": "Try again.",
                "outcome": "failed",
                "seconds": 1.0,
                "error": "KeyError: 'Ann' (mine.py:3)",
            },
        ],
        "messages": [{"text": "Call me.", "name": "Ann", "call_back": ""}],
        "notes": {"when": "2026-01-02T00:00:00Z", "odd": {"it": "(1+2j)"}},
        "usage": {"input_tokens": 100, "output_tokens": 20, "cost": 0.25},
        "answered_by": "",
        "sip_code": None,
        "error_code": None,
        "problems": [
            {
                "name": "model_error",
                "what": "no_voice",
                "event_type": "",
                "message": "No voice.",
            }
        ],
        "failed_transfers": [
            {"status": "busy", "error_code": "", "sip_code": "486", "message": "Busy."}
        ],
    }


@pytest.mark.parametrize(
    ("by", "why"), [("bridge", "machine"), ("agent", "message_left")]
)
async def test_a_machine_has_a_status_of_its_own(by: str, why: str) -> None:
    """The sender of the order sees that a machine answered, with or without a message
    left."""
    async with live_call(FakeCallControl()) as live:
        report = report_of(live, by, why, 12.5)

    assert (report.status, report.outcome) == ("machine", f"{by}_{why}")


def test_a_call_that_was_not_answered_is_reported() -> None:
    """The sender of the order learns that nobody answered."""
    facts = CallFacts("CA9", direction="outbound", to_number="+14155550155")

    report = json.loads(report_of_silence(facts, "no-answer", 0.0).as_json())

    assert (report["status"], report["outcome"]) == ("no-answer", "")
    assert report["started_at"] == "1970-01-01T00:00:00.000Z"
    assert report["transcript"] == []


# --- the signature ---


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """Receivers can verify it with any library of standardwebhooks.com (the example is
    theirs)."""
    headers = signed(
        signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )

    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


async def test_a_report_is_redacted_as_the_route_says() -> None:
    """The receiver of a report about a payment does not get the card number."""
    card = "4111 1111 1111 1111"
    line = FakeCallControl()
    line.history = [
        HistoryItem("i1", "user", f"It is {card}.", at=1.5),
        HistoryItem(
            "i2", "tool_call", call_id="c1", name="pay", arguments=f'["{card}"]'
        ),
        HistoryItem("i3", "tool_output", f"charged {card}", call_id="c1"),
        HistoryItem("i4", "assistant", "I char", f"I charged {card}.", True, 3.25),
        HistoryItem("i5", "tool_call", call_id="c2", name=f"charge {card}"),
    ]
    async with live_call(line) as live:
        live.redaction = Redaction(cards=True)
        live.notes |= {"card": Message(card), "number": 4111111111111111}
        live.take_message(card, name=card, call_back=card)
        report = report_of(live, "caller", "hung_up", 12.5)
        assert live.notes["number"] == 4111111111111111
        live.notes["self"] = live.notes
        unwritable = report_of(live, "caller", "hung_up", 12.5)

    told = report.as_json().decode()
    assert "1111 1111" not in told and "41111" not in told
    assert told.count("[card number]") == 10
    assert json.loads(told)["tools"][0]["arguments"] == '["[card number]"]'
    assert report.from_number == FACTS.from_number
    assert unwritable.notes == {}
    assert unwritable.messages == report.messages


async def test_openais_client_accepts_a_posted_report() -> None:
    """A user who has `openai` installed can verify our reports with it."""
    async with receiver() as there:
        assert losses(await delivered(there.url)) == []
    [(headers, body, _)] = there.got
    with OpenAI(api_key="none", webhook_secret=SECRET) as client:
        client.webhooks.verify_signature(body, headers)
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body + b" ", headers)

    assert headers["content-type"] == "application/json"
    assert body == REPORT.as_json()


@pytest.mark.parametrize(
    "secret",
    ["", SECRET.removeprefix("whsec_"), "whsec_c2hvcnQ=", "whsec_!", SECRET + "A"],
)
def test_a_malformed_secret_is_refused_at_startup(secret: str) -> None:
    """The operator sees the mistake at once; the message does not contain the
    secret."""
    with pytest.raises(ValueError, match="whsec_ and the base64") as refused:
        Reports(secret)

    assert not secret.removeprefix("whsec_") or secret not in str(refused.value)


async def test_without_a_secret_a_report_has_no_signature() -> None:
    """The report still has an id, by which the receiver recognizes a second copy."""
    async with receiver() as there:
        await delivered(there.url, secret=None)

    [(headers, _, _)] = there.got
    assert headers["webhook-id"].startswith("msg_")
    assert "webhook-signature" not in headers


# --- the webhook ---


async def test_a_receiver_that_fails_twice_gets_the_report() -> None:
    """A restart of the receiver loses no report; every attempt has the same id."""
    async with receiver(503, 429, 200) as there:
        logged = await delivered(there.url)

    assert [line["event"] for line in logged] == [
        "report_attempt_failed",
        "report_attempt_failed",
        "report_delivered",
    ]
    assert len({headers["webhook-id"] for headers, _, _ in there.got}) == 1
    assert len({body for _, body, _ in there.got}) == 1
    first, second, third = (at for _, _, at in there.got)
    # Each wait is twice the one before, up to a quarter shorter or longer.
    assert second - first >= 0.75 * QUICK.first_wait
    assert third - second >= 0.75 * 2 * QUICK.first_wait


@pytest.mark.parametrize("status", [400, 401, 404, 410, 302])
async def test_a_report_that_was_refused_is_not_sent_again(status: int) -> None:
    """After a final refusal there is no retry; a redirect is not followed."""
    elsewhere = {"Location": "/report"}
    async with receiver(web.Response(status=status, headers=elsewhere)) as there:
        logged = await delivered(there.url)

    assert len(there.got) == 1
    assert losses(logged) == [{"why": "refused", "status": status}]


async def test_attempts_end_if_the_receiver_stays_down() -> None:
    """The operator learns from the log which call's report is lost, and why."""
    async with receiver(500) as there:
        logged = await delivered(there.url)

    assert len(there.got) == QUICK.attempts
    assert losses(logged) == [{"why": "refused", "status": 500}]


async def test_a_receiver_that_does_not_answer_gets_another_attempt() -> None:
    """A receiver that takes the report and never answers does not block the
    delivery."""
    async with receiver(None, 200) as there:
        logged = await delivered(there.url)

    assert losses(logged) == []
    assert len(there.got) == 2


async def test_attempts_end_if_nothing_listens_at_the_url() -> None:
    """A URL at which nothing listens costs a few attempts, no more."""
    async with receiver() as there:
        url = there.url

    [lost] = losses(await delivered(url))

    assert lost == {"why": "ClientConnectorError"}


async def test_a_malformed_url_is_logged_without_a_retry() -> None:
    """A mistake in the configuration is in the log after the first attempt."""
    logged = await delivered("nowhere")

    assert [line["event"] for line in logged] == ["report_lost"]


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("1", 0.25, 1.0),  # no longer than the longest wait
        (format_datetime(datetime(2100, 1, 1, tzinfo=UTC), usegmt=True), 0.25, 1.0),
        (format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True), 0.0, 0.25),
        ("soon", 0.0, 0.25),
        ("Sun, 06 Nov 1994 08:49:37 +99999999999999999999", 0.0, 0.25),
    ],
)
async def test_a_receiver_may_ask_for_time(
    value: str, least: float, most: float
) -> None:
    """Retry-After is respected up to a limit; a malformed value does no harm."""
    busy = web.Response(status=429, headers={"Retry-After": value})
    async with receiver(busy, 200) as there:
        assert losses(await delivered(there.url)) == []

    (_, _, first), (_, _, second) = there.got
    assert least <= second - first < most


async def test_what_people_said_is_never_in_the_log() -> None:
    """The log names a lost report by its call SID and contains nothing that was
    said."""
    line = FakeCallControl()
    line.history = [HistoryItem("i1", "user", SPOKEN)]
    async with live_call(line) as live:
        report = report_of(live, "caller", "hung_up", 1.0)
    async with receiver(400) as there:
        logged = await delivered(there.url, report=report)

    assert losses(logged)
    told = json.dumps(logged)
    for private in (SPOKEN, "+1415", there.url, SECRET):
        assert private not in told


async def test_notes_that_cannot_be_encoded_are_logged() -> None:
    """A note that contains itself costs this report, and nothing else."""
    line = FakeCallControl()
    async with live_call(line) as live:
        live.notes["me"] = live.notes
        report = report_of(live, "caller", "hung_up", 1.0)
    async with receiver() as there:
        logged = await delivered(there.url, report=report)

    assert losses(logged) == [{"why": "RecursionError"}]
    assert there.got == []


# --- the function ---


async def test_functions_of_either_kind_get_the_report() -> None:
    """`async def` runs in the event loop; `def` runs in a thread, where it may
    block."""
    told: list[tuple[str, bool]] = []

    def note() -> None:
        told.append((report.call_sid, threading.current_thread().daemon))

    def plain(given: CallReport) -> None:
        note()

    async def waiting(given: CallReport) -> None:
        note()

    class Told:
        async def __call__(self, given: CallReport) -> None:
            note()

    report = REPORT
    for to in (plain, waiting, Told(), lambda given: waiting(given)):
        assert await delivered(to=to) == []

    here, thread = (FACTS.call_sid, False), (FACTS.call_sid, True)
    assert told == [thread, here, here, here]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
async def test_an_exception_of_a_function_is_logged_with_its_traceback(
    error: type[BaseException],
) -> None:
    """The function's author finds the traceback; the webhook gets its report all the
    same."""

    async def raises(given: CallReport) -> None:
        raise error("theirs")

    async with receiver() as there:
        logged = await delivered(there.url, raises)

    [line] = [line for line in logged if line["event"] == "report_function_failed"]
    assert line["exc_info"] is True
    assert line["call_sid"] == FACTS.call_sid
    assert len(there.got) == 1


async def test_an_exception_of_a_plain_function_is_logged_too() -> None:
    """The same for a function that runs in a thread."""

    def raises(given: CallReport) -> None:
        raise RuntimeError("theirs")

    logged = await delivered(to=raises)

    assert [line["event"] for line in logged] == ["report_function_failed"]


async def test_a_function_that_takes_too_long_is_abandoned() -> None:
    """A function that hangs delays neither the calls nor the shutdown."""
    free = threading.Event()

    def plain(given: CallReport) -> None:
        free.wait(120)

    async def waiting(given: CallReport) -> None:
        await asyncio.sleep(120)

    began = time.monotonic()
    logged = await delivered(to=plain) + await delivered(to=waiting)
    free.set()
    await asyncio.sleep(0.05)  # the function's late return must do no harm

    assert [line["event"] for line in logged] == ["report_function_failed"] * 2
    assert time.monotonic() - began < 60


# --- shutdown ---


async def test_sending_does_not_wait() -> None:
    """A call ends at once, however slow the receiver of its report is."""
    async with receiver(None, 200) as there, Reports(None, QUICK) as reports:
        began = time.monotonic()
        reports.send(REPORT, None, there.url)
        assert time.monotonic() - began < 0.1
        await reports.close(5.0)

    assert len(there.got) == 2


async def test_a_shutdown_waits_and_logs_what_is_lost() -> None:
    """Reports that could not be delivered before the shutdown are in the log."""
    patient = DeliveryTimes(attempt_seconds=30.0)
    with capture_logs() as logged:
        async with receiver(None) as there, Reports(None, patient) as reports:
            reports.send(REPORT, None, there.url)
            began = time.monotonic()
            await reports.close(0.2)
            assert 0.15 < time.monotonic() - began < 1.0
            reports.send(REPORT, None, there.url)

    assert losses(logged) == [{"why": "shutdown"}, {"why": "closed"}]
    assert [task for task in asyncio.all_tasks() if "report" in task.get_name()] == []


async def test_a_cancelled_server_leaves_no_task() -> None:
    """Ctrl-C during a delivery ends the delivery, and its loss is logged."""
    patient = DeliveryTimes(attempt_seconds=30.0)
    entered = asyncio.Event()

    async def serve(url: str) -> None:
        async with Reports(None, patient) as reports:
            reports.send(REPORT, None, url)
            entered.set()
            await reports.close(30.0)

    with capture_logs() as logged:
        async with receiver(None) as there, asyncio.TaskGroup() as tasks:
            server = tasks.create_task(serve(there.url))
            await entered.wait()
            await asyncio.sleep(0.1)
            server.cancel()
            await asyncio.sleep(0.1)
            server.cancel()  # a second Ctrl-C while the first is still handled

    assert losses(logged) == [{"why": "shutdown"}]
