"""Functions of a phone besides talking: hanging up, transfer, tones, keys, limits."""

import asyncio
from typing import Any

import numpy as np
from agents import function_tool
from agents.realtime import RealtimeAgent
from agents.run_context import RunContextWrapper
from structlog.testing import capture_logs

import twiml
from bridge.agent.live import LiveCall, Transfer
from bridge.agent.phone_tools import PHONE_TOOLS
from bridge.app.routes import (
    Cost,
    HangUpAction,
    ReportTarget,
    Route,
    Silence,
    TellAction,
)
from bridge.call.continuity import MAX_TRANSFERS
from bridge.core.rules import Prices
from bridge.records.report import CallReport
from bridge.sim.model import Behaviour, CallTool, PlayRuler, SayText, Turn, TurnContext
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, WAIT, bridge
from tests.support.waiting import until

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=8)
HANG_UP = steps.HangUpStep()
STAY = steps.WaitStep(15)
AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="desk", instructions="Be kind.", tools=PHONE_TOOLS
)
SALES = Transfer("+14155550199", description="who wants to buy")
QUIET = Silence(seconds=0.7, ask=2)


def said(place: Any, role: str) -> list[str]:
    return [it.text for it in place.session.items.values() if it.role == role]


async def test_the_agent_hangs_up_once_its_goodbye_was_heard() -> None:
    """The caller hears the whole goodbye, then the call ends without another
    sentence."""
    turns = [[PlayRuler(1500), CallTool("hang_up", {})]]
    async with bridge(Behaviour(turns=turns), agent=AGENT) as place:
        record = await place.caller().call([steps.SayStep(HELLO), STAY])
        await place.empty()

    assert read_ruler(record.heard).heard_ms == {1: 1500}
    assert record.ended_by == "bridge" and record.said_by_twilio == []
    assert record.twiml[-1] == twiml.hang_up()
    assert place.metric('bridge_calls_total{outcome="agent_hung_up"}') == 1


async def test_a_caller_who_speaks_stops_the_hang_up() -> None:
    """The caller says "One more thing" during the goodbye: the call continues."""
    turns = [
        [PlayRuler(2500), CallTool("hang_up", {})],
        [SayText("Yes?")],
    ]
    async with bridge(Behaviour(turns=turns), agent=AGENT) as place:
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(900),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()

    assert record.ended_by == "caller"
    assert len(record.clears) == 1
    [output] = [it for it in place.session.items.values() if it.output]
    assert output.output and "The caller spoke" in output.output


async def test_a_transfer() -> None:
    """A caller who asks for a person hears the whole announcement, then the number is
    dialled."""
    turns = [[PlayRuler(1000), CallTool("transfer_call", {"target": "sales"})]]
    route = Route(transfers={"sales": SALES})
    async with bridge(Behaviour(turns=turns), agent=AGENT, route=route) as place:
        record = await place.caller().call([steps.SayStep(HELLO), STAY])
        await place.empty()

    assert read_ruler(record.heard).heard_ms == {1: 1000}
    assert record.dialled == SALES.number
    assert place.metric('bridge_calls_total{outcome="agent_transferred"}') == 1


async def test_a_person_takes_the_call_by_a_key() -> None:
    """The person who answers an extension hears who calls, presses 1, and only then
    talks with the caller."""
    turns = [[SayText("Yes."), CallTool("transfer_call", {"target": "sales"})]]
    sales = Transfer(
        SALES.number, digits="ww42", whisper="A buyer. Press 1.", accept=True
    )
    route = Route(transfers={"sales": sales})
    async with bridge(Behaviour(turns=turns), agent=AGENT, route=route) as place:
        caller = place.caller(dial_presses="1")
        record = await caller.call([steps.SayStep(HELLO), STAY])
        await place.empty()

    [dialled] = record.dials
    assert (dialled.number, dialled.digits) == (SALES.number, "ww42")
    assert (dialled.said, dialled.bridged) == (["A buyer. Press 1."], True)
    assert record.twiml[-1] == twiml.hang_up() and record.warnings == []


async def test_a_mailbox_that_answers_does_not_take_the_caller() -> None:
    """A mailbox presses no key: it is hung up on, and the caller, who has heard
    ringing, comes back to the agent, which is told that nobody took the call."""
    turns = [[SayText("Yes."), CallTool("transfer_call", {"target": "sales"})]]
    sales = Transfer("sip:sales@pbx.example", accept=True)
    route = Route(transfers={"sales": sales})
    async with bridge(Behaviour(turns=turns), agent=AGENT, route=route) as place:
        caller = place.caller(dial_ring_seconds=1.0)
        script = [steps.SayStep(HELLO), steps.HearStep(200), steps.WaitStep(2.5)]
        with capture_logs() as lines:
            calling = asyncio.create_task(caller.call([*script, LISTEN, HANG_UP]))  # noqa: TID251
            await until(lambda: [it for it in lines if it["event"] == "next_step_sent"])
            place.model.behaviour = Behaviour(turns=[[SayText("Nobody was there.")]])
            record = await calling
        await place.empty()

    [dialled] = record.dials
    assert (dialled.number, dialled.bridged) == ("sip:sales@pbx.example", False)
    assert "Press 1" in dialled.said[0]
    assert any("nobody took the call" in text for text in said(place, "system"))


async def test_a_caller_without_a_number_is_transferred_under_ours() -> None:
    """A caller of Twilio's Voice SDK reaches the target, who sees our number: Twilio
    refuses to dial for a caller who has none."""
    turns = [[SayText("Yes."), CallTool("transfer_call", {"target": "sales"})]]
    route = Route(transfers={"sales": SALES})
    async with bridge(Behaviour(turns=turns), agent=AGENT, route=route) as place:
        caller = place.caller(from_number="client:ann")
        record = await caller.call([steps.SayStep(HELLO), STAY])
        await place.empty()

    [dialled] = record.dials
    assert (dialled.status, dialled.caller_id) == ("completed", caller.to_number)
    assert record.warnings == []


async def test_a_second_transfer_after_one_that_failed() -> None:
    """The caller who came back is transferred again, and does not land with the agent
    once more."""
    turns = [[SayText("Yes."), CallTool("transfer_call", {"target": "sales"})]]
    again = [[CallTool("transfer_call", {"target": "sales"})]]
    route = Route(transfers={"sales": SALES})
    async with bridge(Behaviour(turns=turns), agent=AGENT, route=route) as place:
        caller = place.caller(dial_outcome="busy", dial_ring_seconds=0.5)
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(caller.call([steps.SayStep(HELLO), STAY]))
            await until(lambda: place.model.sessions and place.session.responses)
            place.model.behaviour = Behaviour(turns=again)
        await place.empty()

    record = call.result()
    assert len(record.dials) == len(record.streams) - 1 == MAX_TRANSFERS


async def test_a_transfer_is_not_answered() -> None:
    """The caller returns to the agent, which knows what was said and, in words, what
    failed. The operator sees Twilio's code in the log, the report's reader there."""
    reports: list[CallReport] = []
    turns = [
        [SayText("I put you through."), CallTool("transfer_call", {"target": "sales"})]
    ]
    route = Route(transfers={"sales": SALES}, report=ReportTarget(to="reported"))
    behaviour = Behaviour(turns=turns, user_texts=["Sales, please."])
    functions = {"reported": reports.append}
    async with bridge(
        behaviour, agent=AGENT, route=route, greeting="Hi.", functions=functions
    ) as place:
        place.model.behaviour = Behaviour(turns=[[SayText("Welcome.")], *turns])
        error = (21215, f"No permission to call {SALES.number} from client:x")
        caller = place.caller(dial_outcome="failed", dial_error=error)
        script = [
            LISTEN,
            steps.SayStep(HELLO),
            steps.HearStep(700),
            steps.WaitStep(0.6),
        ]
        talking = asyncio.create_task(caller.call([*script, LISTEN, HANG_UP]))  # noqa: TID251
        await asyncio.sleep(2)  # the first session is ready, the transfer has not begun
        place.model.behaviour = Behaviour(turns=[[SayText("Nobody was there.")]])
        with capture_logs() as lines:
            record = await talking
            await until(lambda: len(reports) == 2)
        await place.empty()

    assert record.dialled == SALES.number
    second = place.session
    words = [it.text for it in second.items.values() if it.role == "system"]
    assert any("cannot be reached at the moment" in text for text in words)
    assert not any("21215" in text for text in words)  # a person would not say that
    [ended] = [it for it in lines if it["event"] == "transfer_ended"]
    assert (ended["status"], ended["error_code"]) == ("failed", "21215")
    assert ended["message"] == "No permission to call [number] from [number]"
    [failed] = reports[-1].failed_transfers
    assert (failed.status, failed.error_code) == ("failed", "21215")
    assert reports[0].failed_transfers == []
    roles = [it.role or it.type for it in second.items.values()]
    assert roles[:4] == ["system", "assistant", "user", "assistant"]
    assert [it.text for it in second.items.values() if it.role == "assistant"] == [
        "Welcome.",
        "I put you through.",
        "Nobody was there.",
    ]


def tones(heard: bytes) -> list[tuple[int, int]]:
    """The two loudest frequencies of each 20 ms that are not silent, without
    repeats."""
    import audioop

    samples = np.frombuffer(audioop.ulaw2lin(heard, 2), "<i2").astype(float)
    found: list[tuple[int, int]] = []
    for at in range(0, len(samples) - 160, 160):
        window = samples[at : at + 160] * np.hanning(160)
        power = np.abs(np.fft.rfft(window, 8000))
        low = int(np.argmax(power[600:1000])) + 600
        high = int(np.argmax(power[1100:1700])) + 1100
        if power.max() < 100_000:
            found.append((0, 0))
        else:
            found.append((round(low, -1), round(high, -1)))
    return found


async def test_the_agent_presses_keys() -> None:
    """A phone menu behind the number hears the tones of the keys, one after the
    other, as long as the route says."""
    turns = [[CallTool("send_digits", {"digits": "1#"})], [SayText("Done.")]]
    route = Route(tone_ms=300)
    async with bridge(Behaviour(turns=turns), agent=AGENT, route=route) as place:
        record = await place.caller().call([steps.SayStep(HELLO), LISTEN, HANG_UP])
        await place.empty()

    spectrum = tones(record.heard)
    assert (700, 1210) in spectrum, spectrum[:20]
    assert spectrum.count((700, 1210)) > 8, "the tone is as long as the route says"
    assert any(low == 940 and high in (1480, 1470) for low, high in spectrum)
    assert not record.warnings and not place.session.errors_sent


async def test_keys_reach_the_agent_as_one_input() -> None:
    """The digits that the caller types arrive as one number, and interrupt the
    agent."""
    turns = [[PlayRuler(5000)], [SayText("Thank you.")]]
    async with bridge(Behaviour(turns=turns), agent=AGENT) as place:
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(600),
            steps.PressStep("123#"),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()

    assert (
        said(place, "user")[-1] == "(The caller pressed these keys on the phone: 123)"
    )
    assert len(record.clears) == 1
    assert len(place.session.responses) == 2 and not place.session.errors_sent


async def test_a_key_of_the_route_acts_at_once() -> None:
    """0 transfers the caller, whatever the agent is saying."""
    keys = {"0": SALES, "9": HangUpAction(), "*": TellAction("Say the opening hours.")}
    async with bridge(
        Behaviour(turns=[[PlayRuler(6000)], [PlayRuler(800)]]), route=Route(keys=keys)
    ) as place:
        talk = [steps.SayStep(HELLO), steps.HearStep(500)]
        scripts: dict[str, steps.Script] = {
            "0": [*talk, steps.PressStep("0"), STAY],
            "9": [*talk, steps.PressStep("9"), STAY],
            "*": [*talk, steps.PressStep("*"), LISTEN, HANG_UP],
        }
        async with asyncio.TaskGroup() as tasks:
            calls = {
                key: tasks.create_task(place.caller().call(script))
                for key, script in scripts.items()
            }
        await place.empty()

    through, ended, told = (calls[key].result() for key in "09*")
    assert through.dialled == SALES.number
    assert ended.twiml[-1] == twiml.hang_up()
    assert told.ended_by == "caller"
    items = [it for one in place.model.sessions for it in one.items.values()]
    words = [it.text for it in items if it.role == "system"]
    assert words == ["Say the opening hours."]


async def test_a_silent_caller_is_asked_twice_then_the_call_ends() -> None:
    """A forgotten call does not cost money for ever; a caller who is there is asked
    first."""

    def answer(heard: TurnContext) -> Turn:
        return [PlayRuler(400)]

    async with bridge(
        Behaviour(answer=answer), route=Route(silence=QUIET), greeting="Hello."
    ) as place:
        record = await place.caller().call([steps.WaitStep(20)])
        await place.empty()

    words = said(place, "system")
    assert [QUIET.tell in text for text in words] == [False, True, True, False]
    assert len(read_ruler(record.heard).heard_ms) == 4
    assert record.said_by_twilio == [] and record.twiml[-1] == twiml.hang_up()
    assert place.metric('bridge_calls_total{outcome="bridge_silent"}') == 1


async def test_a_caller_who_waits_for_a_tool_is_not_asked() -> None:
    """A tool may take a while; a caller who waits for it is not asked whether they are
    there."""

    @function_tool
    async def slow() -> str:
        await asyncio.sleep(1.8)
        return "found"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="slow", tools=[slow])
    turns = [[CallTool("slow", {})], [SayText("Found.")]]
    async with bridge(
        Behaviour(turns=turns), agent=agent, route=Route(silence=QUIET)
    ) as place:
        await place.caller().call([steps.SayStep(HELLO), LISTEN, HANG_UP])

    assert said(place, "system") == []


async def test_a_call_ends_at_its_longest_time() -> None:
    """The agent says goodbye, then the call ends."""
    behaviour = Behaviour(turns=[[SayText("Hello.")], [PlayRuler(700)]])
    async with bridge(
        behaviour, route=Route(longest_seconds=2.0), greeting="Hello."
    ) as place:
        record = await place.caller().call([steps.WaitStep(15)])
        await place.empty()

    assert read_ruler(record.heard).heard_ms[1] == 700
    assert place.metric('bridge_calls_total{outcome="bridge_longest"}') == 1


async def test_a_call_that_costs_too_much_ends() -> None:
    """The cost limit of the route ends the call, with a goodbye."""
    prices = Prices(100.0, 100.0, 10.0, 100.0, 60_000.0)
    route = Route(cost=Cost(prices, limit=1.0))
    behaviour = Behaviour(turns=[[PlayRuler(1500)], [SayText("I must go.")]])
    async with bridge(behaviour, route=route) as place:
        await place.caller().call([steps.SayStep(HELLO), steps.WaitStep(12)])
        await place.empty()

    assert place.metric('bridge_calls_total{outcome="bridge_cost"}') == 1


async def test_a_muted_caller_is_not_heard() -> None:
    """While the caller types something private, the model hears silence."""

    @function_tool
    def private(context: RunContextWrapper[LiveCall]) -> str:
        context.context.mute()
        return "muted"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[private])
    turns = [[CallTool("private", {})], [SayText("Go on.")]]
    async with bridge(Behaviour(turns=turns), agent=agent) as place:
        script = [
            steps.SayStep(HELLO),
            LISTEN,
            steps.SayStep(WAIT),
            steps.WaitStep(1),
            HANG_UP,
        ]
        await place.caller().call(script)

    assert place.session.caller_turns == 1
    assert WAIT not in bytes(place.session.caller_audio)
