"""A call without failures: audio and text arrive unchanged on both sides."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent, realtime_handoff
from structlog.testing import capture_logs

from bridge.agent.live import LiveCall
from bridge.agent.receptionist import receptionist
from bridge.sim.model import Behaviour, CallTool, PlayRuler, SayText
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from bridge.sim.twilio.network import Network
from bridge.telemetry import disk_space, trace
from tests.e2e.bridge import HELLO, WAIT, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=8)
HANG_UP = steps.HangUpStep()


async def test_the_agent_speaks_first() -> None:
    """With a greeting the caller hears the agent before saying a word."""
    async with bridge(Behaviour(turns=[[SayText("Hi.")]]), greeting="Say hi.") as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    assert record.heard
    assert record.ended_by == "caller"
    [item] = [it for it in place.session.items.values() if it.role == "system"]
    assert item.text == "Say hi."


@pytest.mark.both_loops
async def test_no_first_word_is_lost() -> None:
    """The caller speaks at once, the model is ready a second later: it gets all of the
    caller's audio, byte for byte, in order."""
    slow = Behaviour(turns=[[SayText("Hi.")]], delay_updated=1.0)
    async with bridge(slow) as place:
        record = await place.caller().call([steps.SayStep(HELLO), LISTEN, HANG_UP])

    assert record.heard
    heard_by_model = bytes(place.session.caller_audio)
    assert HELLO in heard_by_model
    assert not place.session.errors_sent


@pytest.mark.both_loops
async def test_the_agents_audio_arrives_byte_for_byte() -> None:
    """No audio of an answer is lost, repeated or re-encoded."""
    behaviour = Behaviour(
        turns=[[PlayRuler(1500)], [PlayRuler(900), PlayRuler(700)]], delta_ms=333
    )
    async with bridge(behaviour) as place:
        script = [steps.SayStep(HELLO), LISTEN, steps.SayStep(WAIT), LISTEN, HANG_UP]
        record = await place.caller(network=Network(40, 40, 20, 3)).call(script)

    heard = read_ruler(record.heard)
    assert heard.heard_ms == {1: 1500, 2: 900, 3: 700}
    assert heard.in_order and not heard.lost_bytes and not heard.stray
    assert not record.warnings


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.both_loops
async def test_a_barge_in(tmp_path: Path, frames: bool) -> None:
    """The caller talks over the agent: the agent stops, the model knows to a frame what
    was heard, and the session's listeners get `audio_interrupted`."""
    behaviour = Behaviour(turns=[[PlayRuler(1500), PlayRuler(4000)], [PlayRuler(300)]])
    async with bridge(behaviour, record_dir=tmp_path) as place:
        caller = place.caller(network=Network(60, 60, 30, 1), frame_playout=frames)
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(700),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        record = await caller.call(script)
        await place.empty()

    [clear] = record.clears
    assert clear.flushed > 0
    heard = read_ruler(record.heard).heard_ms
    ruled = [it for it in place.session.items.values() if it.ruler_number]
    first, second, _ = ruled
    assert first.truncated_ms == pytest.approx(heard[1], abs=40)
    assert second.deleted
    assert 2 not in heard
    assert not place.session.errors_sent
    assert place.metric("bridge_interruptions_total") == 1
    [file] = tmp_path.glob("*.zst")
    notes = [it["session"] for it in trace.read(file) if "session" in it]
    session = [(note["name"], note["data"]) for note in notes]
    assert ("audio_interrupted", {"item": first.id}) in session


async def test_a_call_on_a_disk_that_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is as any other, without a trace, which is counted. The log says it once
    for all calls."""
    monkeypatch.setattr(disk_space, "MIN_FREE_BYTES", 2**62)
    behaviour = Behaviour(turns=[[PlayRuler(600)]])
    with capture_logs() as logged:
        async with bridge(behaviour, record_dir=tmp_path) as place:
            script = [steps.SayStep(HELLO), LISTEN, HANG_UP]
            first, second = [await place.caller().call(script) for _ in range(2)]
            await place.empty()

    for record in (first, second):
        assert read_ruler(record.heard).heard_ms == {1: 600}
    assert place.metric('bridge_traces_lost_total{why="disk_full"}') == 2
    assert place.metric("bridge_records_disk_free_bytes") > 0
    assert list(tmp_path.iterdir()) == []
    names = [it["event"] for it in logged]
    assert names.count("traces_stopped") == 1 and "trace_write_failed" not in names


async def test_a_trace_replays(tmp_path: Path) -> None:
    """The trace of a call gives the same commands again."""
    behaviour = Behaviour(
        turns=[[SayText("One two three four five six.")], [SayText("Ok.")]]
    )
    async with bridge(behaviour, record_dir=tmp_path) as place:
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(600),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        await place.caller().call(script)
        await place.empty()

    [file] = tmp_path.glob("*.zst")
    pairs = list(trace.replay(file))
    assert len(pairs) > 100
    assert all(recorded == again for recorded, again in pairs)


async def test_the_bundled_receptionist() -> None:
    """Tool, answer, handoff: formats stay mu-law, and tools get their arguments."""
    behaviour = Behaviour(
        turns=[
            [CallTool("opening_hours", {"day": "Thursday"})],
            [PlayRuler(500)],
            [CallTool("transfer_to_billing", {})],
            [CallTool("invoice_status", {"number": "1043"})],
            [PlayRuler(400)],
        ]
    )
    async with bridge(behaviour, agent=receptionist) as place:
        script = [steps.SayStep(HELLO), LISTEN, steps.SayStep(WAIT), LISTEN, HANG_UP]
        record = await place.caller().call(script)

    outputs = [
        item.output
        for item in place.session.items.values()
        if item.type == "function_call_output"
    ]
    assert outputs[0] == "open from 10 to 7"
    assert outputs[2] == "120 dollars, due on the thirtieth"
    audio = place.session.session["audio"]
    assert (
        audio["input"]["format"] == audio["output"]["format"] == {"type": "audio/pcmu"}
    )
    assert "billing desk" in place.session.session["instructions"]
    assert read_ruler(record.heard).heard_ms == {1: 500, 2: 400}
    assert not place.session.errors_sent


async def test_a_guardrail_stops_queued_audio() -> None:
    """The receptionist starts to name a dose: its answer is interrupted although the
    caller said nothing."""
    dose = "You can safely take 800 mg of it, twice a day and with a lot of water. " * 3
    behaviour = Behaviour(turns=[[SayText(dose)], [SayText("Let me correct that.")]])
    async with bridge(behaviour, agent=receptionist) as place:
        script = [
            steps.SayStep(HELLO),
            steps.ListenStep(quiet_seconds=1.0, timeout=12),
            HANG_UP,
        ]
        record = await place.caller().call(script)

    [clear] = record.clears
    assert clear.flushed > 8000
    cut = next(it for it in place.session.items.values() if it.role == "assistant")
    assert cut.deleted or cut.truncated_ms is not None


async def test_a_tool_never_freezes_the_call() -> None:
    """While a tool is running, the agent continues to speak and can be interrupted."""

    @function_tool
    async def slow_lookup() -> str:
        """Takes long."""
        await asyncio.sleep(3)
        return "done"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="slow", tools=[slow_lookup])
    behaviour = Behaviour(
        turns=[
            [PlayRuler(3000), CallTool("slow_lookup", {})],
            [PlayRuler(300)],
            [PlayRuler(300)],
        ]
    )
    async with bridge(behaviour, agent=agent) as place:
        script = [
            steps.SayStep(HELLO),
            steps.HearStep(800),
            steps.SayStep(WAIT),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)

    assert read_ruler(record.heard).heard_ms[1] < 2000
    assert len(record.clears) == 1


async def test_an_agent_made_for_each_call() -> None:
    """A callable gets the call's facts and makes the agent of that call."""
    seen: list[LiveCall] = []

    async def agent_for(call: LiveCall) -> RealtimeAgent[Any]:
        seen.append(call)
        helper: RealtimeAgent[Any] = RealtimeAgent(name="helper")
        return RealtimeAgent(
            name="own",
            instructions=f"The caller is {call.facts.from_number}.",
            handoffs=[realtime_handoff(helper)],
        )

    async with bridge(agent=agent_for) as place:
        await place.caller(call_sid="CA" + "7" * 32).call(
            [steps.WaitStep(0.3), HANG_UP]
        )

    [call] = seen
    facts = call.facts
    assert facts.call_sid == "CA" + "7" * 32
    assert facts.from_number == "+15551230001"
    assert facts.to_number == "+15557650002"
    assert place.session.session["instructions"] == "The caller is +15551230001."


async def test_frames_that_are_not_sent_become_silence() -> None:
    """On a line that sends no frames in silence, the model still detects the end of the
    turn."""
    async with bridge(Behaviour(turns=[[PlayRuler(300)]])) as place:
        script = [steps.SayStep(HELLO), steps.GapStep(3000, "dtx"), HANG_UP]
        record = await place.caller().call(script)

    assert read_ruler(record.heard).heard_ms == {1: 300}


async def test_two_calls_do_not_mix() -> None:
    """Each caller hears the answers of their own session."""
    async with bridge(Behaviour(turns=[[PlayRuler(600)]] * 2)) as place:
        script = [steps.SayStep(HELLO), LISTEN, HANG_UP]
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(place.caller().call(script)) for _ in range(5)]
        await place.empty()

    for call in calls:
        assert read_ruler(call.result().heard).heard_ms == {1: 600}
    assert len(place.model.sessions) == 5
    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 5
    assert place.metric("bridge_calls_active") == 0
