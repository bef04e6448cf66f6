"""Outbound calls against the fake of Twilio's API, over real sockets."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge.app.outbound import (
    CallStatus,
    OutboundCalls,
    OutboundLimited,
    OutboundOrder,
    OutboundRefused,
)
from bridge.fleet.formats import OLDEST, format_of
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import AnsweredBy
from bridge.sim.caller import HangUpStep, HearStep, WaitStep
from bridge.sim.twilio.rest import Answers, TwilioRest, Unreached
from tests.sim.tiny_bridge import AGENT, TinyBridge, TinyBridgeStream, tiny_bridge

SID, TOKEN = "AC" + "0" * 31 + "1", "12345"
TO, FROM = "+15551230001", "+15557650002"


def order(**options: Any) -> OutboundOrder:
    return OutboundOrder(**{"to": TO, "from_number": FROM, **options})


def status_form(call_sid: str, state: str, sequence: int) -> dict[str, str]:
    return {
        "CallSid": call_sid,
        "CallStatus": state,
        "SequenceNumber": str(sequence),
        "CallbackSource": "call-progress-events",
    }


@dataclass
class OutboundSetup:
    bridge: TinyBridge
    rest: TwilioRest
    registry: MemoryRegistry
    outbound: OutboundCalls

    def another(self, **options: Any) -> OutboundCalls:
        """Another instance, or the same with other limits."""
        arguments: dict[str, Any] = {
            "account_sid": SID,
            "auth_token": TOKEN,
            "public_url": self.bridge.origin,
            "prefixes": ["+1", "+4930"],
            "per_second": 100.0,
            "api_url": self.rest.url,
            **options,
        }
        return OutboundCalls(self.registry, **arguments)

    async def over(self, call_sid: str) -> None:
        async with asyncio.timeout(8):
            await self.rest.calls[call_sid].over.wait()


@asynccontextmanager
async def outbound_setup(
    *plays: Callable[[TinyBridgeStream], Any], **options: Any
) -> AsyncIterator[OutboundSetup]:
    async with (
        tiny_bridge(*plays) as bridge,
        TwilioRest(SID, TOKEN, numbers=frozenset({FROM}), **options) as rest,
    ):
        outbound_setup = OutboundSetup(bridge, rest, MemoryRegistry(), None)  # type: ignore[arg-type]
        outbound_setup.outbound = outbound_setup.another()
        yield outbound_setup


async def test_an_order_becomes_a_call_that_finds_its_order() -> None:
    """The callee hears the agent, because the webhook's URL names the order."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:1600])

    callee = Answers([HearStep(200), HangUpStep()])
    async with outbound_setup(play, callee=callee) as it:
        wanted = order(
            id="a/b 1", route="sales", parameters={"name": "Anna"}, greeting="Hello!"
        )
        call_sid = await it.outbound.place(wanted)
        assert await it.outbound.status(call_sid) is not None
        await it.over(call_sid)

        request, _ = next(
            each for each in it.bridge.requests if "order" in each[0].query
        )
        assert request.path == "/voice" and request.query["order"] == "a/b 1"
        assert await it.another().order("a/b 1") == wanted
        assert await it.another().order("a/b 1") == wanted
        assert it.rest.calls[call_sid].record.heard == AGENT[:1600]  # type: ignore[union-attr]
        # Values that are written once keep a number that older instances read.
        for name in ("order:a/b 1", f"status:{call_sid}"):
            assert format_of(await it.registry.get(name) or b"") == OLDEST


async def test_parameters_of_the_request_to_twilio() -> None:
    """All four status events, a time limit, and machine detection that does not delay
    the call."""
    async with outbound_setup(callee=Unreached("busy")) as it:
        plain = await it.outbound.place(order(machine="ignore", to="+1 (555) 123-0001"))
        machine = await it.outbound.place(order(ring_seconds=45, longest_seconds=90))
        message = await it.outbound.place(order(machine="message", message="Hi"))

        origin = it.bridge.origin
        asked = it.rest.calls[plain].asked
        assert list(it.rest.calls[plain].events) == [
            "initiated",
            "ringing",
            "answered",
            "completed",
        ]
        assert asked["To"] == TO and asked["Timeout"] == "30"
        assert asked["StatusCallback"] == origin + "/call-status?route="
        assert not {"TimeLimit", "MachineDetection", "AsyncAmd"} & set(asked)
        asked = it.rest.calls[machine].asked
        assert (asked["Timeout"], asked["TimeLimit"]) == ("45", "90")
        assert (asked["MachineDetection"], asked["AsyncAmd"]) == ("Enable", "true")
        assert asked["AsyncAmdStatusCallback"] == origin + "/amd-status"
        assert it.rest.calls[message].asked["MachineDetection"] == "DetectMessageEnd"


async def test_hanging_up_ends_the_call_and_may_be_repeated() -> None:
    """Hanging up a call that has ended already is no error."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        call_sid = await it.outbound.place(order())
        while it.rest.calls[call_sid].placed is None:  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.01)

        await it.outbound.hang_up(call_sid)
        await it.over(call_sid)
        await it.outbound.hang_up(call_sid)

        assert it.rest.calls[call_sid].record.ended_by == "rest"  # type: ignore[union-attr]


# Refusals by Twilio


async def test_a_refusal_has_twilios_code_and_voids_the_order() -> None:
    """The sender of the order gets Twilio's reason; the log does not contain the
    number."""
    async with outbound_setup() as it:
        with capture_logs() as logs, pytest.raises(OutboundRefused) as refused:
            await it.outbound.place(order(id="o1", from_number="+15550000000"))

        assert (refused.value.code, refused.value.status) == (21210, 400)
        assert "not yet verified" in refused.value.text
        assert await it.outbound.order("o1") is None
        assert [each["code"] for each in logs] == [21210]
        assert not any("+1555" in str(each) for each in logs)


async def test_a_wrong_token_is_refused_on_hanging_up_too() -> None:
    """Only Twilio's codes for an ended call count as hung up; other errors are
    raised."""
    async with outbound_setup() as it:
        with pytest.raises(OutboundRefused) as refused:
            await it.another(auth_token="wrong").hang_up("CA1")

        assert (refused.value.code, refused.value.status) == (20003, 401)


async def test_twilio_cannot_be_reached() -> None:
    """A failed connection is a refusal, and the call no longer counts as running."""
    async with outbound_setup(callee=Unreached("busy")) as it:
        lost = it.another(api_url="http://127.0.0.1:1", at_once=1)
        for _ in range(2):
            with pytest.raises(OutboundRefused) as refused:
                await lost.place(order())

            assert (refused.value.code, refused.value.status) == (0, 0)
            assert "ConnectionError" in str(refused.value)


@pytest.mark.parametrize(("status", "code"), [(502, 502), (200, 0)])
async def test_a_page_of_a_proxy_is_a_refusal(status: int, code: int) -> None:
    """A proxy between the bridge and Twilio may answer in Twilio's place."""
    async with outbound_setup() as it:
        path = f"/proxy/2010-04-01/Accounts/{SID}/Calls.json"
        it.bridge.documents[path] = web.Response(status=status, text="<html>")
        proxied = it.another(api_url=it.bridge.origin + "/proxy/")

        with pytest.raises(OutboundRefused) as refused:
            await proxied.place(order())

        assert refused.value.code == code


async def test_the_client_does_not_fill_the_log(caplog: Any) -> None:
    """Twilio's client would log every request with its URL."""
    caplog.set_level(logging.INFO)
    async with outbound_setup(callee=Unreached("busy")) as it:
        await it.outbound.place(order())

        assert [each.name for each in caplog.records if "twilio" in each.name] == []


# Limits


async def test_without_prefixes_no_number_is_called() -> None:
    """Outbound calls are off until the operator allows prefixes."""
    async with outbound_setup() as it:
        with pytest.raises(OutboundLimited) as limited:
            await it.another(prefixes=[]).place(order())
        assert limited.value.limit == "off"

        with pytest.raises(OutboundLimited) as limited:
            await it.outbound.place(order(to="+44201234567"))
        assert limited.value.limit == "prefix" and "+44" not in str(limited.value)
        assert it.rest.calls == {}


@pytest.mark.parametrize("to", ["+19005550100", "+1 (900) 555-0100", "+18765550100"])
async def test_expensive_numbers_can_be_excluded(to: str) -> None:
    """The longest prefix decides, and a refused attempt is counted as a limit hit."""
    hits: list[str] = []
    async with outbound_setup(callee=Unreached("busy")) as it:
        prefixes = ["+1", "!+1900", "!+1876", "+1876999"]
        outbound = it.another(prefixes=prefixes, hit=hits.append)
        with pytest.raises(OutboundLimited) as limited:
            await outbound.place(order(to=to))

        assert (limited.value.limit, hits) == ("prefix", ["outbound_number"])
        assert it.rest.calls == {}
        await outbound.place(order(to="+18769990100"))
        await outbound.place(order())
        assert len(it.rest.calls) == 2 and hits == ["outbound_number"]


async def test_the_cost_limit_of_a_day_stops_outbound_calls() -> None:
    """Outbound calls count towards the same cost limit as inbound calls."""
    hits: list[str] = []

    async def spent() -> bool:
        return True

    async with outbound_setup() as it:
        outbound = it.another(day_is_spent=spent, hit=hits.append)
        with pytest.raises(OutboundLimited) as limited:
            await outbound.place(order())

        assert (limited.value.limit, hits) == ("cost", ["cost_of_day"])
        assert it.rest.calls == {}


@pytest.mark.parametrize(
    "to",
    [
        *("+14155550100,,900", "+14155550100x5", "+14155550100;ext=5", "+1415w5550100"),
        *(
            "sip:+14155550100@example.com",
            "client:ann",
            "tel:+14155550100",
            "whatsapp:+1",
        ),
        *("+1415555010\u0660", "\uff0b14155550100", "+14155550100\n+19005550100"),
        *("14155550100", "0014155550100", "011441", "911", "", "+", "++14155550100"),
        *("+1415\t5550100", "+1415\u00a05550100", "+1415\u200b5550100"),
    ],
)
def test_only_plain_numbers_are_dialled(to: str) -> None:
    """A text that the network could read as another number than our check did is
    refused."""
    with pytest.raises(ValueError):
        order(to=to)


async def test_the_number_of_running_calls_is_limited() -> None:
    """The next call is placed when one has ended, even if its end was reported to
    another instance."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        outbound, elsewhere = it.another(at_once=2), it.another()
        first = await outbound.place(order())
        second = await outbound.place(order())
        with pytest.raises(OutboundLimited) as limited:
            await outbound.place(order())
        assert limited.value.limit == "at_once"

        await outbound.note_status(status_form(first, "completed", 3))
        await outbound.place(order())
        await elsewhere.note_status(status_form(second, "no-answer", 2))
        await outbound.place(order())
        with pytest.raises(OutboundLimited):
            await outbound.place(order())

        assert len(it.rest.calls) == 4


async def test_a_call_without_a_final_status_stops_counting() -> None:
    """After a lost callback a call counts as running for its longest possible time, not
    for ever."""
    clock = [0.0]
    async with outbound_setup(callee=Unreached("busy")) as it:
        outbound = it.another(at_once=1, now=lambda: clock[0])
        await outbound.place(order(ring_seconds=5, longest_seconds=60))
        clock[0] = 60.0
        with pytest.raises(OutboundLimited):
            await outbound.place(order())
        clock[0] = 90.0

        await outbound.place(order())


async def test_orders_that_are_being_placed_count_as_running() -> None:
    """The limit of running calls holds for orders that are placed at the same time."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        outbound = it.another(at_once=1)
        placed = await asyncio.gather(
            *[outbound.place(order()) for _ in range(3)], return_exceptions=True
        )

        assert sorted(type(each).__name__ for each in placed) == [
            "OutboundLimited",
            "OutboundLimited",
            "str",
        ]


async def test_orders_wait_for_the_rate_limit() -> None:
    """Twilio takes one call a second: the third order is placed two seconds later."""
    async with outbound_setup(callee=Unreached("busy")) as it:
        outbound = it.another(per_second=5.0)
        started = monotonic()
        await asyncio.gather(*[outbound.place(order()) for _ in range(4)])

        assert 0.6 <= monotonic() - started < 2.0


async def test_an_order_that_would_wait_too_long_is_refused() -> None:
    """Beyond some seconds a refusal is better than a wait."""
    async with outbound_setup(callee=Unreached("busy")) as it:
        outbound = it.another(per_second=0.1)
        await outbound.place(order())

        with pytest.raises(OutboundLimited) as limited:
            await outbound.place(order())

        assert limited.value.limit == "rate"


# Callbacks from Twilio


async def test_a_late_status_does_not_replace_a_newer_one() -> None:
    """A callback that another one has overtaken does not change the call's status."""
    async with outbound_setup() as it:
        here, there = it.another(), it.another()
        told = [
            await each.note_status(status_form("CA1", state, number))
            for each, state, number in [
                (here, "ringing", 1),
                (there, "initiated", 0),
                (there, "ringing", 1),
                (here, "completed", 3),
                (there, "in-progress", 2),
                (there, "completed", 3),
                (here, "in-progress", 9),
            ]
        ]

        news = [status and status.state for status in told]
        assert news == ["ringing", None, None, "completed", None, None, None]
        assert await there.status("CA1") == CallStatus("CA1", "completed", 3)
        assert await here.status("CA2") is None


async def test_statuses_of_a_whole_call_out_of_order() -> None:
    """The statuses that the fake Twilio sends out of order are handled as they
    arrive."""
    callee = Answers([WaitStep(0.2), HangUpStep()])
    async with outbound_setup(callee=callee, out_of_order=True) as it:
        call_sid = await it.outbound.place(order(machine="ignore"))
        placed = await it.outbound.status(call_sid)
        assert placed == CallStatus(call_sid, "queued", -1) and not placed.final
        await it.over(call_sid)

        forms = it.bridge.forms("/call-status")
        told = [await it.outbound.note_status(form) for form in forms]

        states = [status and status.state for status in told]
        assert states == ["ringing", None, "completed", None]
        final = await it.outbound.status(call_sid)
        assert final is not None and final.final and final.talked_seconds == 0


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"CallSid": "CA1"},
        {"CallSid": "CA1", "CallStatus": "asleep"},
        {"CallSid": "CA1", "CallStatus": "ringing", "SequenceNumber": "x"},
    ],
)
async def test_an_unreadable_status_is_ignored(form: dict[str, str]) -> None:
    """Twilio may send values that the bridge does not know; the call continues."""
    async with outbound_setup() as it:
        with capture_logs() as logs:
            assert await it.outbound.note_status(form) is None

        assert [each["event"] for each in logs] == ["call_status_unreadable"]
        assert await it.outbound.status("CA1") is None


@pytest.mark.parametrize(
    ("said", "found", "machine"),
    [
        ("human", AnsweredBy.HUMAN, False),
        ("unknown", AnsweredBy.HUMAN, False),
        ("robot", AnsweredBy.HUMAN, False),
        ("machine_start", AnsweredBy.MACHINE_START, True),
        ("machine_end_beep", AnsweredBy.MACHINE_END_BEEP, True),
        ("machine_end_silence", AnsweredBy.MACHINE_END_SILENCE, True),
        ("fax", AnsweredBy.FAX, True),
    ],
)
async def test_the_detection_result_is_known_on_every_instance(
    said: str, found: AnsweredBy, machine: bool
) -> None:
    """An answer that may be a human's counts as a human's."""
    async with outbound_setup() as it:
        assert await AnsweredBy.of(it.registry, "CA1") is None

        form = {"CallSid": "CA1", "AnsweredBy": said}
        assert await it.outbound.answered_by(form) is found

        assert await AnsweredBy.of(it.registry, "CA1") is found
        assert found.is_machine is machine


async def test_a_form_without_a_detection_result_is_ignored() -> None:
    """A form without a call SID or without a result stores nothing."""
    async with outbound_setup() as it:
        assert await it.outbound.answered_by({"CallSid": "CA1"}) is None
        assert await it.outbound.answered_by({"AnsweredBy": "human"}) is None
        assert await AnsweredBy.of(it.registry, "CA1") is None


# Orders


def test_an_order_can_be_sent_as_json_and_gets_an_id() -> None:
    """Two orders for the same person are two calls."""
    wanted = order(parameters={"a": "b"}, machine="message", message="Call us back.")

    assert (
        msgspec.json.decode(msgspec.json.encode(wanted), type=OutboundOrder) == wanted
    )
    assert wanted.id and order().id != order().id


@pytest.mark.parametrize(
    "options",
    [
        {"to": "0301234567"},
        {"from_number": "Anna"},
        {"id": ""},
        {"machine": "message"},
        {"message": "Hi"},
        {"ring_seconds": 4},
        {"ring_seconds": 601},
        {"longest_seconds": 0},
    ],
)
def test_an_order_that_cannot_be_placed_is_refused(options: dict[str, Any]) -> None:
    """The mistake is reported before any phone rings, in code and in JSON."""
    with pytest.raises(ValueError):
        order(**options)
    with pytest.raises(msgspec.ValidationError):
        text = msgspec.json.encode({"to": TO, "from_number": FROM, **options})
        msgspec.json.decode(text, type=OutboundOrder)
