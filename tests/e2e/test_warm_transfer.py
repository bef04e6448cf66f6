"""Warm transfers: a person is called while the caller and the agent go on talking."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from agents.realtime import RealtimeAgent
from pydantic import SecretStr

import twiml
from bridge import PHONE_TOOLS
from bridge.agent.live import BadRequest, CallFacts, LiveCall, Transfer
from bridge.app.routes import ReportTarget, Route
from bridge.app.warm_calls import WarmCalls
from bridge.records.report import CallReport
from bridge.sim.caller import Caller, CallRecord, PlacedCall
from bridge.sim.model import Behaviour, CallTool, SayText
from bridge.sim.twilio import rest, steps
from bridge.sim.twilio.playout import SILENCE
from tests.e2e.bridge import HELLO, WAIT, RunningBridge, bridge
from tests.support.waiting import until

ACCOUNT = "AC" + "0" * 31 + "1"
SECRET = "twilio-secret-of-this-test"
PUBLIC = "https://bridge.example"
OURS, DESK = "+15557650002", "+15550000007"
STAY, HANG_UP = steps.WaitStep(60), steps.HangUpStep()
AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="desk", instructions="Put callers through.", tools=PHONE_TOOLS
)
SALES = Transfer(DESK, ring_seconds=20, whisper="Press 1.", accept=True, warm=True)
MONDAY = "We are open on Monday."
SUMMARY = "Ann asks for a price."
ASKS = CallTool("transfer_call", {"target": "sales", "summary": SUMMARY})


@dataclass
class Phones:
    """A bridge, a Twilio that places its calls, and a caller on the line."""

    place: RunningBridge
    twilio: rest.TwilioRest
    reports: list[CallReport] = field(default_factory=list)

    async def call(self, script: steps.Script, **more: Any) -> CallRecord:
        conferences = self.twilio.conferences
        caller: Caller = replace(self.place.caller(**more), conferences=conferences)
        placed = PlacedCall(caller)
        self.twilio.attached[placed.record.call_sid] = placed
        return await placed.run(script)

    @property
    def warm_calls(self) -> WarmCalls | None:
        return self.place.server.warm_calls

    @property
    def leg(self) -> rest.FakeCall:
        """The second call."""
        [call] = self.twilio.calls.values()
        return call

    def told(self) -> list[str]:
        """What the bridge has told the model."""
        items = self.place.session.items.values()
        return [it.text for it in items if it.role == "system"]


@asynccontextmanager
async def phones(
    callee: rest.Callee,
    sales: Transfer = SALES,
    turns: list[list[Any]] | None = None,
    agent_for: Any = AGENT,
    **more: Any,
) -> AsyncIterator[Phones]:
    reports: list[CallReport] = []
    turns = turns or [[SayText("I ring them."), ASKS], [SayText("It rings.")]]
    route = Route(transfers={"sales": sales}, report=ReportTarget(to="reported"))
    async with rest.TwilioRest(
        ACCOUNT, SECRET, callee=callee, numbers=frozenset({OURS})
    ) as twilio:
        conf: dict[str, Any] = {
            "public_url": PUBLIC,
            "twilio_account_sid": ACCOUNT,
            "twilio_auth_token": SecretStr(SECRET),
            "twilio_api_url": twilio.url,
            **more,
        }
        async with bridge(
            Behaviour(turns=turns),
            agent=agent_for,
            route=route,
            functions={"reported": reports.append},
            callers={
                "auth_token": SECRET,
                "signed_origin": PUBLIC,
                "account_sid": ACCOUNT,
                "to_number": OURS,
            },
            **conf,
        ) as place:
            twilio.bridge = place.url
            yield Phones(place, twilio, reports)


async def test_the_caller_talks_with_the_agent_until_the_person_accepts() -> None:
    """While the phone rings, the agent answers the caller. The person hears who calls,
    presses 1, and then each hears the other."""
    says = [steps.WaitStep(2.0), steps.SayStep(WAIT), STAY]
    person = rest.Answers(says, after=5.0, presses="1")
    turns = [
        [SayText("I ring them."), ASKS],
        [SayText("It rings.")],
        [SayText(MONDAY)],
    ]
    async with phones(person, turns=turns) as all:
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(300),
            steps.ListenStep(0.3, 8),
            steps.SayStep(HELLO),
            steps.WaitStep(7.0),
            steps.SayStep(HELLO),
            steps.WaitStep(0.5),
            steps.HangUpStep(),
        ]
        record = await all.call(script)
        async with asyncio.timeout(10):
            await all.leg.over.wait()
        await all.place.empty()
        leg = all.leg

    assert leg.record and leg.record.said_by_twilio == [
        "Ann asks for a price. Press 1."
    ]
    assert (leg.asked["To"], leg.asked["From"]) == (DESK, OURS)
    [caller_there], [person_there] = record.conferences, leg.record.conferences
    assert caller_there.met == [leg.sid] and person_there.met == [record.call_sid]
    assert any(it != SILENCE for it in person_there.heard)
    assert any(it != SILENCE for it in caller_there.heard)
    assert DESK not in caller_there.name and record.call_sid not in caller_there.name
    # One stream: the caller never left the agent, and talked with it meanwhile.
    assert len(record.streams) == 1 and record.dials == []
    assert all.place.metric('bridge_calls_total{outcome="agent_transferred"}') == 1
    items = all.place.session.items.values()
    assert [it.text for it in items if it.role == "assistant"][-1] == MONDAY
    assert leg.status == "completed" and all.twilio.conferences.names == []


@pytest.mark.parametrize(
    ("callee", "status", "reason"),
    [
        (rest.Unreached("busy", sip_code=486), "busy", "the line is busy"),
        (rest.Unreached("failed", error_code=13224), "failed", "cannot be reached"),
        (rest.Answers([STAY], presses="2"), "declined", "nobody took the call"),
    ],
)
async def test_nobody_takes_the_call(
    callee: rest.Callee, status: str, reason: str
) -> None:
    """The caller never leaves the agent, which is told the reason in words and can try
    again. The report has the reason, too."""
    async with phones(callee) as all:
        script = [steps.SayStep(HELLO), steps.WaitStep(4.0), steps.HangUpStep()]
        record = await all.call(script)
        await until(lambda: all.leg.over.is_set())
        await all.place.empty()
        await until(lambda: bool(all.reports))

    assert any(reason in text for text in all.told())
    assert len(record.streams) == 1 and record.ended_by == "caller"
    [failed] = all.reports[0].failed_transfers
    assert failed.status == status
    assert (failed.sip_code == "486") == (status == "busy")
    assert all.twilio.conferences.names == [] and record.conferences == []


async def test_a_mailbox_takes_no_caller() -> None:
    """Without `accept`, Twilio says that a machine has answered."""
    sales = replace(SALES, accept=False, whisper="")
    async with phones(rest.Machine(WAIT), sales) as all:
        script = [steps.SayStep(HELLO), steps.WaitStep(5.0), steps.HangUpStep()]
        await all.call(script)
        await all.place.empty()
        await until(lambda: bool(all.reports))

    assert any("a machine answered" in text for text in all.told())
    assert [it.status for it in all.reports[0].failed_transfers] == ["machine"]
    assert all.leg.status == "completed"


async def test_a_person_without_a_key() -> None:
    """A transfer without `accept` needs no key: the person hears the summary, then the
    caller. When the person hangs up, the call is over, as after every transfer."""
    sales = replace(SALES, accept=False, whisper="")
    waits = [steps.WaitStep(6.0), steps.HangUpStep()]
    async with phones(rest.Answers(waits, detected_after=0.2), sales) as all:
        record = await all.call([steps.SayStep(HELLO), STAY])
        await all.place.empty()

    assert all.leg.record and all.leg.record.said_by_twilio == [SUMMARY]
    assert all.leg.answered_by == "human"
    [there] = record.conferences
    assert there.met == [all.leg.sid] and record.ended_by == "bridge"
    assert len(record.streams) == 1


@pytest.mark.parametrize(
    "callee", [rest.Answers([STAY], after=30.0), rest.Answers([STAY], after=0.1)]
)
async def test_a_caller_who_hangs_up_ends_the_second_call(callee: rest.Answers) -> None:
    """The phone stops ringing, and a person who hears the whisper is hung up on."""
    async with phones(callee) as all:
        script = [steps.SayStep(HELLO), steps.WaitStep(2.5), steps.HangUpStep()]
        await all.call(script)
        await until(lambda: all.leg.over.is_set())
        await all.place.empty()

    assert all.leg.status == ("canceled" if callee.after > 1 else "completed")
    assert all.leg.record is None or all.leg.record.conferences == []


@pytest.mark.parametrize("stays", [0.0, 2.0])
async def test_a_person_who_leaves_at_once(stays: float) -> None:
    """A person who has accepted hangs up: before the caller was there, the caller has
    not left the agent; after a second together, the caller is back with the agent. The
    agent is told in both cases."""
    person = rest.Answers([steps.WaitStep(stays), steps.HangUpStep()], presses="1")
    async with phones(person) as all:
        behaviour = all.place.model.behaviour
        calling = all.call([steps.SayStep(HELLO), steps.WaitStep(7.0), HANG_UP])
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(calling)
            await until(lambda: bool(all.twilio.calls))
            # The agent of the next stream does not transfer again.
            again = Behaviour(turns=[[SayText("They are gone.")]])
            all.place.model.behaviour = again if stays else behaviour
        record = call.result()
        await all.place.empty()
        await until(lambda: len(all.reports) == len(record.streams))

    assert len(record.streams) == (2 if stays else 1)
    assert any("hung up before the caller was connected" in it for it in all.told())
    assert [it.status for it in all.reports[-1].failed_transfers] == ["left"]
    assert len(record.conferences) == (1 if stays else 0)
    assert record.ended_by == "caller" and all.twilio.conferences.names == []


async def test_a_caller_who_is_alone_in_the_conference_is_taken_out() -> None:
    """Twilio keeps a caller in a conference that the other has left before: the bridge
    replaces the document of the call, and the next step follows."""
    async with phones(rest.Answers([STAY])) as all:
        document = twiml.conference("warm-x")
        caller = replace(
            all.place.caller(document=document), conferences=all.twilio.conferences
        )
        call = PlacedCall(caller)
        all.twilio.attached[call.record.call_sid] = call
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call.run([STAY]))
            await until(lambda: all.twilio.conferences.names == ["warm-x"])
            assert all.warm_calls
            await all.warm_calls.fetch_back("x", call.record.call_sid)

    record = call.record
    assert record.requests[-1].path == "/voice/next" and record.twiml == [
        document,
        twiml.hang_up(),  # nothing is stored of this call
    ]
    assert all.twilio.conferences.names == []


@pytest.mark.parametrize("accepts", [True, False])
async def test_the_call_moves_while_the_phone_rings(accepts: bool) -> None:
    """The instance hands the call over, as in a deploy. The one that goes on with it
    knows of the phone that rings: the caller joins the person, or the agent is told."""
    person = rest.Answers([STAY], after=3.0, presses="1" if accepts else "2")
    async with phones(person) as all:
        script = [steps.SayStep(HELLO), steps.WaitStep(8.0), HANG_UP]
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(all.call(script))
            await until(lambda: bool(all.twilio.calls))
            [sid] = all.twilio.attached
            running = all.place.server.call(sid)
            assert running
            all.place.model.behaviour = Behaviour(turns=[[SayText("I am here.")]])
            running.hand_over()
        record = call.result()
        await until(lambda: all.leg.over.is_set())
        await all.place.empty()

    assert len(record.streams) == 2
    assert all.place.metric('bridge_calls_total{outcome="bridge_handed_over"}') == 1
    assert [it.met for it in record.conferences] == ([[all.leg.sid]] if accepts else [])
    assert accepts or any("nobody took the call" in text for text in all.told())


async def test_a_person_who_has_accepted_is_not_left_alone() -> None:
    """The caller's instance is gone and the caller with it, so nobody joins the person:
    the person's call ends."""
    async with phones(rest.Answers([STAY], presses="1")) as all:
        assert all.warm_calls
        facts = CallFacts("CA" + "7" * 32, account_sid=ACCOUNT, to_number=OURS)
        warm = all.warm_calls.plan(facts, SALES, "", "")
        await all.warm_calls.ring(warm, facts, SALES)
        webhooks = all.place.server._webhooks._warm
        webhooks._caller_seconds = 0.5
        await until(lambda: all.leg.over.is_set())

    assert all.leg.status == "completed" and all.leg.record
    assert [it.met for it in all.leg.record.conferences] == [[]]


async def test_one_phone_rings_at_a_time() -> None:
    """A second warm transfer of a call is refused while the first one rings, and a call
    has a limit of transfers; user code gets the reason."""
    calls: list[LiveCall] = []

    def agent_for(call: LiveCall) -> RealtimeAgent[Any]:
        calls.append(call)
        return AGENT

    rings = rest.Answers([STAY], after=30.0)
    async with phones(rings, agent_for=agent_for) as all:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(all.call([steps.SayStep(HELLO), STAY]))
            await until(lambda: bool(all.twilio.calls))
            with pytest.raises(BadRequest, match="rings already"):
                await calls[0].transfer(DESK, warm=True)
            await calls[0].hang_up()
        await until(lambda: all.leg.over.is_set())
        await all.place.empty()

    assert all.leg.status == "canceled"


async def test_without_credentials_it_is_refused_in_words() -> None:
    """The agent of a bridge without REST credentials is told what is missing."""
    async with phones(rest.Answers([STAY]), twilio_account_sid=None) as all:
        script = [steps.SayStep(HELLO), steps.WaitStep(3.0), steps.HangUpStep()]
        await all.call(script)
        await all.place.empty()

    outputs = [it.output for it in all.place.session.items.values() if it.output]
    assert any("set TWILIO_ACCOUNT_SID" in str(it) for it in outputs)
    assert all.twilio.calls == {}
