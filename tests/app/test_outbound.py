"""Outbound calls against the fake of Twilio's API, over real sockets."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge.app.outbound import (
    CallStatus,
    OutboundCalls,
    OutboundOrder,
    RepeatedKey,
)
from bridge.app.outbound_limits import OutboundLimited
from bridge.app.twilio_api import RestAccess, TwilioApi, TwilioRefused
from bridge.app.twilio_rest import rest_client
from bridge.fleet.formats import OLDEST, format_of
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import AnsweredBy
from bridge.sim.caller import HangUpStep, HearStep, WaitStep
from bridge.sim.twilio.rest import Answers, TwilioRest, Unreached
from tests.sim.tiny_bridge import AGENT, TinyBridge, TinyBridgeStream, tiny_bridge
from tests.support.waiting import until

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


class NotedRegistry(MemoryRegistry):
    """Notes the names of sets, which others can read in Redis."""

    def __init__(self, now: Callable[[], float], epoch: float | None) -> None:
        super().__init__(now, epoch=epoch)
        self.names: set[str] = set()

    async def acquire(
        self, name: str, member: str, seconds: float, limit: int | None = None
    ) -> bool:
        self.names.add(name)
        return await super().acquire(name, member, seconds, limit)


@dataclass
class OutboundSetup:
    bridge: TinyBridge
    rest: TwilioRest
    registry: NotedRegistry
    outbound: OutboundCalls

    def another(self, **options: Any) -> OutboundCalls:
        """Another instance, or the same with other limits."""
        arguments: dict[str, Any] = {
            "public_url": self.bridge.origin,
            "prefixes": ["+1", "+4930"],
            "per_second": 100.0,
            **options,
        }
        access = RestAccess(
            SID,
            arguments.pop("username", SID),
            arguments.pop("password", TOKEN),
            api_url=arguments.pop("api_url", self.rest.url),
        )
        return OutboundCalls(self.registry, TwilioApi(access), **arguments)

    async def over(self, call_sid: str) -> None:
        async with asyncio.timeout(8):
            await self.rest.calls[call_sid].over.wait()


@asynccontextmanager
async def outbound_setup(
    *plays: Callable[[TinyBridgeStream], Any],
    clock: list[float] | None = None,
    **options: Any,
) -> AsyncIterator[OutboundSetup]:
    async with (
        tiny_bridge(*plays) as bridge,
        TwilioRest(SID, TOKEN, numbers=frozenset({FROM}), **options) as rest,
    ):
        now = monotonic if clock is None else lambda: clock[0]
        registry = NotedRegistry(now, epoch=None if clock is None else 0.0)
        outbound_setup = OutboundSetup(bridge, rest, registry, None)  # type: ignore[arg-type]
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
            each for each in it.bridge.requests if each[0].path == "/voice"
        )
        assert request.query["order"] == "a/b 1"
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
        machine = await it.outbound.place(
            order(to=PERSONS[2], ring_seconds=45, longest_seconds=90)
        )
        message = await it.outbound.place(
            order(to=PERSONS[3], machine="message", message="Hi")
        )
        keys = await it.outbound.place(
            order(to=PERSONS[4], machine="ignore", send_digits="ww1W2#")
        )

        origin = it.bridge.origin
        asked = it.rest.calls[plain].asked
        assert list(it.rest.calls[plain].events) == [
            "initiated",
            "ringing",
            "answered",
            "completed",
        ]
        assert asked["To"] == TO and asked["Timeout"] == "30"
        status_url, _, query = asked["StatusCallback"].partition("?")
        assert status_url == origin + "/call-status"
        asked_for = dict(parse_qsl(query, keep_blank_values=True))
        assert list(asked_for) == ["order", "placed", "route"]
        assert abs(int(asked_for["placed"]) - time.time()) < 60
        assert not {"TimeLimit", "MachineDetection", "AsyncAmd"} & set(asked)
        asked = it.rest.calls[machine].asked
        assert (asked["Timeout"], asked["TimeLimit"]) == ("45", "90")
        assert (asked["MachineDetection"], asked["AsyncAmd"]) == ("Enable", "true")
        assert asked["AsyncAmdStatusCallback"] == origin + "/amd-status"
        assert it.rest.calls[message].asked["MachineDetection"] == "DetectMessageEnd"
        assert it.rest.calls[keys].asked["SendDigits"] == "ww1W2#"


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
        with capture_logs() as logs, pytest.raises(TwilioRefused) as refused:
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
        with pytest.raises(TwilioRefused) as refused:
            await it.another(password="wrong").hang_up("CA1")

        assert (refused.value.code, refused.value.status) == (20003, 401)


async def test_an_api_key_places_calls_in_place_of_the_auth_token() -> None:
    """An operator need not give the auth token to make requests; webhooks of the call
    are still signed with it."""
    keys = {"SK1": "secret of the key"}
    async with outbound_setup(callee=Unreached("busy"), api_keys=keys) as it:
        by_key = it.another(username="SK1", password="secret of the key")

        await it.over(await by_key.place(order()))

        assert it.bridge.requests[0][0].path == "/call-status"


async def test_a_request_that_is_not_answered_is_given_up() -> None:
    """The SDK's asynchronous client has no limit of time of its own: a Twilio that
    accepts and never answers would hold the order, and its place, for ever."""
    accepted: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(
        lambda _, writer: accepted.append(writer), "127.0.0.1", 0
    ) as silent:
        port = silent.sockets[0].getsockname()[1]
        access = RestAccess(SID, SID, TOKEN, api_url=f"http://127.0.0.1:{port}")
        twilio = TwilioApi(access, seconds=0.2)
        outbound = OutboundCalls(
            MemoryRegistry(), twilio, public_url="https://b.example", prefixes=["+1"]
        )
        with pytest.raises(TwilioRefused) as refused:
            async with asyncio.timeout(8):
                await outbound.place(order())
        for writer in accepted:
            writer.close()

    assert (refused.value.code, refused.value.status) == (0, 0)
    assert len(accepted) == 1


def test_requests_go_to_the_host_of_the_region_and_the_edge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK reads a region from the process environment, and makes a host from it
    that does not exist. Only the settings count."""
    monkeypatch.setenv("TWILIO_REGION", "au1")
    home = rest_client(SID, SID, TOKEN, seconds=1.0)
    dublin = rest_client(SID, SID, TOKEN, seconds=1.0, region="ie1", edge="dublin")

    url = "https://api.twilio.com/2010-04-01"
    assert home.get_hostname(url) == url
    assert dublin.get_hostname(url) == "https://api.dublin.ie1.twilio.com/2010-04-01"


async def test_twilio_cannot_be_reached() -> None:
    """A failed connection is a refusal, and the call no longer counts as running."""
    async with outbound_setup(callee=Unreached("busy")) as it:
        lost = it.another(api_url="http://127.0.0.1:1", at_once=1)
        for _ in range(2):
            with pytest.raises(TwilioRefused) as refused:
                await lost.place(order())

            assert (refused.value.code, refused.value.status) == (0, 0)
            assert "ClientConnectorError" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [(502, "<html>", 502), (200, "<html>", 0), (201, "[]", 0), (201, "{}", 0)],
)
async def test_a_page_of_a_proxy_is_a_refusal(
    status: int, text: str, code: int
) -> None:
    """A proxy between the bridge and Twilio may answer in Twilio's place."""
    async with outbound_setup() as it:
        path = f"/proxy/2010-04-01/Accounts/{SID}/Calls.json"
        it.bridge.documents[path] = web.Response(status=status, text=text)
        proxied = it.another(api_url=it.bridge.origin + "/proxy/")

        with pytest.raises(TwilioRefused) as refused:
            await proxied.place(order())

        assert (refused.value.code, refused.value.unsure) == (code, True)


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


PERSONS = [f"+1555123{number:04}" for number in range(10)]


async def test_the_calls_of_all_instances_count_together() -> None:
    """A fleet of ten instances does not place ten times as many calls. The next call is
    placed when one has ended, whichever instance its end is reported to."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        here, there = it.another(at_once=2), it.another(at_once=2)
        first = await here.place(order(id="o1", to=PERSONS[1]))
        await there.place(order(id="o2", to=PERSONS[2]))
        for instance in (here, there):
            with pytest.raises(OutboundLimited) as limited:
                await instance.place(order(to=PERSONS[3]))
            assert limited.value.limit == "at_once"

        await there.note_status(status_form(first, "completed", 3), "o1")
        await here.place(order(to=PERSONS[3]))
        with pytest.raises(OutboundLimited):
            await there.place(order(to=PERSONS[4]))

        assert len(it.rest.calls) == 3


@pytest.mark.parametrize(
    ("second", "limit"),
    [
        ({"to": "+1 (555) 123-0001"}, "number"),
        ({"to": PERSONS[2], "campaign": "spring"}, "campaign"),
    ],
)
async def test_one_call_at_a_time_to_a_number_and_of_a_campaign(
    second: dict[str, Any], limit: str
) -> None:
    """Nobody's phone rings twice at the same time, also if two instances are asked. A
    refused order takes no place, and other calls are placed meanwhile."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        first = await it.outbound.place(order(id="o1", campaign="spring"))
        with pytest.raises(OutboundLimited) as limited:
            await it.another().place(order(**second))
        assert limited.value.limit == limit and "+1" not in str(limited.value)
        await it.another().place(order(to=PERSONS[3], campaign="autumn"))

        await it.another().note_status(status_form(first, "no-answer", 2), "o1")
        await it.another().place(order(**second))

        assert len(it.rest.calls) == 3
        names = str([*it.registry.names])
        assert not [number for number in PERSONS if number.lstrip("+") in names]


async def test_a_call_without_a_final_status_stops_counting() -> None:
    """A call counts as running for its longest possible time, not for ever, whatever
    Twilio says about it."""
    clock = [0.0]
    async with outbound_setup(callee=Answers([WaitStep(60)]), clock=clock) as it:
        short = {"ring_seconds": 5, "longest_seconds": 60}
        await it.outbound.place(order(**short))
        clock[0] = 60.0
        with pytest.raises(OutboundLimited):
            await it.outbound.place(order(**short))
        clock[0] = 100.0

        await it.outbound.place(order(**short))


@pytest.mark.parametrize("options", [{}, {"to": "+15551230002", "campaign": "c"}])
async def test_a_call_whose_final_status_was_lost_gives_up_its_place(
    options: dict[str, str],
) -> None:
    """Twilio is asked when the place is needed, at most every 30 s. A call that runs
    keeps its place, and so does one about which Twilio does not tell."""
    clock = [0.0]
    callee = Answers([WaitStep(60)])
    async with outbound_setup(callee=callee, clock=clock) as it:

        async def place(**conf: Any) -> str:
            return await it.another(at_once=1, **conf).place(order(**options))

        async def refused(**conf: Any) -> str:
            with pytest.raises(OutboundLimited) as limited:
                await place(**conf)
            return limited.value.limit

        call_sid = await it.outbound.place(order(campaign="c"))
        limit = await refused()
        assert limit == ("campaign" if options else "number")
        await it.outbound.hang_up(call_sid)
        await it.over(call_sid)
        assert await refused() == limit, "Twilio was asked a moment ago"
        clock[0] = 31.0
        assert await refused(password="wrong") == limit
        clock[0] = 62.0
        with capture_logs() as logs:
            await place()

    [lost] = [each for each in logs if each["event"] == "call_status_lost"]
    assert (lost["call_sid"], lost["status"]) == (call_sid, "canceled")


async def test_a_request_that_a_deploy_cuts_off_stops_counting_soon() -> None:
    """The instance stops while Twilio is asked: the call may ring, so its number is
    kept for that time, and not for the four hours that a call may last. An order that
    waited for its turn was not placed: its key is free."""
    clock = [1000.0]
    accepted: list[asyncio.StreamWriter] = []
    async with (
        outbound_setup(callee=Answers([WaitStep(60)]), clock=clock) as it,
        await asyncio.start_server(
            lambda _, writer: accepted.append(writer), "127.0.0.1", 0
        ) as silent,
        asyncio.TaskGroup() as tasks,
    ):
        port = silent.sockets[0].getsockname()[1]
        stopping = it.another(api_url=f"http://127.0.0.1:{port}", per_second=0.25)
        placing = tasks.create_task(stopping.place(order(ring_seconds=5), "k1"))
        await until(lambda: accepted)
        waiting = tasks.create_task(stopping.place(order(to=PERSONS[2]), "k2"))
        await until(lambda: len(it.registry.names) == 3)  # two numbers, and all calls
        for task in (placing, waiting):
            task.cancel()
        await asyncio.wait([placing, waiting])
        for writer in accepted:
            writer.close()

        with pytest.raises(OutboundLimited):
            await it.outbound.place(order())
        with pytest.raises(RepeatedKey):
            await it.outbound.place(order(ring_seconds=5), "k1")
        await it.outbound.place(order(to=PERSONS[2]), "k2")
        clock[0] += 60
        await it.outbound.place(order())


async def test_turns_of_a_wrong_clock_are_forgotten() -> None:
    """The clock of a machine is ahead of that of Redis. When Redis is found, orders are
    placed at once, not when its clock has caught up."""
    clock = [5000.0]
    async with outbound_setup(callee=Unreached("busy"), clock=clock) as it:
        await it.outbound.place(order(to=PERSONS[1]))
        clock[0] = 1000.0

        await it.outbound.place(order(to=PERSONS[2]))


async def test_orders_that_are_being_placed_count_as_running() -> None:
    """The limit of running calls holds for orders that are placed at the same time."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        outbound = it.another(at_once=1)
        placed = await asyncio.gather(
            *[outbound.place(order(to=to)) for to in PERSONS[:3]],
            return_exceptions=True,
        )

        assert sorted(type(each).__name__ for each in placed) == [
            "OutboundLimited",
            "OutboundLimited",
            "str",
        ]


async def test_orders_of_all_instances_wait_for_the_rate_limit() -> None:
    """Twilio takes one call a second of an account: each order has its own turn, also
    if two instances place calls."""
    clock = [1000.0]
    async with outbound_setup(callee=Unreached("busy"), clock=clock) as it:
        here, there = it.another(per_second=20.0), it.another(per_second=20.0)
        started = monotonic()
        await asyncio.gather(
            *[
                (here, there)[number % 2].place(order(to=PERSONS[number]))
                for number in range(5)
            ]
        )

        assert monotonic() - started >= 0.2  # four turns after the first
        assert len(it.rest.calls) == 5


async def test_an_order_that_would_wait_too_long_is_refused() -> None:
    """Beyond some seconds a refusal is better than a wait, and the refused order leaves
    no place taken."""
    clock = [1000.0]
    async with outbound_setup(callee=Unreached("busy"), clock=clock) as it:
        slow = it.another(per_second=0.1)
        await slow.place(order())
        for instance in (slow, it.another(per_second=0.1)):
            with pytest.raises(OutboundLimited) as limited:
                await instance.place(order(to=PERSONS[2]))
            assert limited.value.limit == "rate"

        await it.outbound.place(order(to=PERSONS[2]))


# Cancelling


async def test_a_ringing_call_is_canceled() -> None:
    """The phone stops ringing. The request that has canceled the call reports its end;
    the callback of Twilio, or a second request, does not report it again."""
    async with outbound_setup(callee=Answers([WaitStep(60)], after=30.0)) as it:
        wanted = order(id="o1", route="sales")
        call_sid = await it.outbound.place(wanted)
        await until(lambda: it.rest.calls[call_sid].status == "ringing")

        status, canceled = await it.another().cancel(call_sid)
        assert status == CallStatus(call_sid, "canceled", -1) and canceled == wanted
        await it.over(call_sid)
        late = await it.outbound.note_status(status_form(call_sid, "canceled", 2), "o1")
        assert late is None
        assert await it.outbound.cancel(call_sid) == (status, None)
        await it.outbound.place(order())  # its number may be called again

        assert it.rest.calls[call_sid].status == "canceled"


async def test_a_call_in_twilios_queue_is_canceled() -> None:
    """Twilio sends no callback for it, so its places are freed by the request."""
    async with outbound_setup(queued_seconds=30.0) as it:
        call_sid = await it.outbound.place(order())
        status, canceled = await it.outbound.cancel(call_sid)
        await it.over(call_sid)

        assert canceled is not None and status == await it.outbound.status(call_sid)
        assert it.rest.calls[call_sid].callbacks == []
        await it.outbound.place(order())


async def test_an_answered_call_is_not_canceled() -> None:
    """A person is on the line: the request says so and does nothing, also if Twilio's
    report of the answer has not arrived yet."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        call_sid = await it.outbound.place(order())
        await until(lambda: it.rest.calls[call_sid].status == "in-progress")

        status, canceled = await it.outbound.cancel(call_sid)
        assert status and (status.state, canceled) == ("in-progress", None)
        await it.outbound.hang_up(call_sid)
        await it.over(call_sid)
        status, canceled = await it.outbound.cancel(call_sid)
        assert status and (status.state, canceled) == ("completed", None)
        assert await it.outbound.cancel("CA1") == (None, None)


async def test_a_failed_cancellation_is_raised() -> None:
    """The sender learns that the phone still rings."""
    async with outbound_setup(callee=Answers([WaitStep(60)], after=30.0)) as it:
        call_sid = await it.outbound.place(order())
        with pytest.raises(TwilioRefused):
            await it.another(password="wrong").cancel(call_sid)


# Idempotency keys


async def test_a_repeated_request_does_not_call_twice() -> None:
    """A client whose connection broke sends its request again, to any instance, and
    learns the call's SID. The key counts for this request alone."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        call_sid = await it.outbound.place(order(), "k1")

        assert await it.another().place(order(), "k1") == call_sid
        with pytest.raises(RepeatedKey) as repeated:
            await it.another().place(order(greeting="Hello!"), "k1")
        assert repeated.value.other
        assert list(it.rest.calls) == [call_sid]


async def test_a_refused_request_may_be_repeated() -> None:
    """The key of an order that was not placed is free: the client waits and retries."""
    async with outbound_setup(callee=Unreached("busy")) as it:
        with pytest.raises(TwilioRefused):
            await it.another(password="wrong").place(order(), "k1")
        with pytest.raises(OutboundLimited):
            await it.another(prefixes=["+49"]).place(order(), "k1")

        await it.outbound.place(order(), "k1")


class FreedRegistry(NotedRegistry):
    """Another instance frees a key right after it was found in use."""

    async def set_if_absent(
        self, name: str, seconds: float, value: bytes | None = None
    ) -> bool:
        first = await super().set_if_absent(name, seconds, value)
        if not first:
            await self.delete(name)
        return first


async def test_a_key_that_is_freed_at_this_moment() -> None:
    """The client is told to try again, not that its key is of another call."""
    async with outbound_setup(callee=Answers([WaitStep(60)])) as it:
        it.registry = FreedRegistry(monotonic, None)
        await it.another().place(order(), "k1")

        with pytest.raises(RepeatedKey) as repeated:
            await it.another().place(order(), "k1")
        assert not repeated.value.other


async def test_a_call_whose_answer_was_lost_is_not_placed_again() -> None:
    """Twilio has placed the call, and its answer is lost: a retry places no second one.
    It is refused until Twilio's callback gives the SID; the call has its agent."""
    async with outbound_setup(callee=Answers([WaitStep(60)], after=30.0)) as it:
        path = f"/proxy/2010-04-01/Accounts/{SID}/Calls.json"
        it.bridge.documents[path] = web.Response(status=502, text="<html>")
        proxied = it.another(api_url=it.bridge.origin + "/proxy/")
        with pytest.raises(TwilioRefused) as refused:
            await proxied.place(order(id="o1"), "k1")
        assert refused.value.unsure
        with pytest.raises(RepeatedKey) as repeated:
            await it.outbound.place(order(id="o2"), "k1")
        assert not repeated.value.other

        await it.outbound.note_status(status_form("CA1", "ringing", 1), "o1")
        assert await it.outbound.place(order(id="o3"), "k1") == "CA1"
        assert await it.outbound.order("o1") is not None
        with pytest.raises(OutboundLimited) as limited:
            await it.outbound.place(order())
        assert limited.value.limit == "number"
        assert it.rest.calls == {}


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


async def test_why_a_call_failed_is_in_its_status() -> None:
    """An operator learns whether the number does not exist or the network failed. A
    code that is no number does not cost the status."""
    failed = Unreached("failed", sip_code=404, error_code=13223)
    async with outbound_setup(callee=failed) as it:
        call_sid = await it.outbound.place(order())
        await it.over(call_sid)
        form = dict(it.rest.calls[call_sid].callbacks[-1].form)
        await it.outbound.note_status(form)

        status = await it.another().status(call_sid)
        assert status and (status.sip_code, status.error_code) == (404, 13223)
        odd = {
            **status_form("CA1", "failed", 1),
            "SipResponseCode": "",
            "ErrorCode": "x",
        }
        assert await it.outbound.note_status(odd) == CallStatus("CA1", "failed", 1)


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
        {"longest_seconds": 4 * 3600 + 1},
        {"send_digits": "1"},
        {"send_digits": "1x", "machine": "ignore"},
        {"send_digits": "1" * 33, "machine": "ignore"},
    ],
)
def test_an_order_that_cannot_be_placed_is_refused(options: dict[str, Any]) -> None:
    """The mistake is reported before any phone rings, in code and in JSON."""
    with pytest.raises(ValueError):
        order(**options)
    with pytest.raises(msgspec.ValidationError):
        text = msgspec.json.encode({"to": TO, "from_number": FROM, **options})
        msgspec.json.decode(text, type=OutboundOrder)
