"""The sound that a caller hears while the agent is slow. Over real sockets."""

import asyncio
import wave
from pathlib import Path

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent

from bridge.app.recordings import TONE, Sound, waiting_sound
from bridge.app.routes import Route
from bridge.audio.g711 import comfort_tone, sound
from bridge.core.waiting_sound import WAIT_SECONDS
from bridge.sim.belief import judge
from bridge.sim.model import Behaviour, CallTool, Fail, PlayRuler
from bridge.sim.twilio import steps
from bridge.sim.twilio.record import CallRecord
from tests.e2e.bridge import HELLO, WAIT, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=12)
HANG_UP = steps.HangUpStep()
MUSIC = bytes(range(1, 251)) * 64
"""One second of 16-bit samples."""


@pytest.fixture
def hold(tmp_path: Path) -> Sound:
    path = str(tmp_path / "hold.wav")
    with wave.open(path, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(MUSIC)
    return waiting_sound(path)


@function_tool
async def look_up() -> str:
    """Looks something up."""
    await asyncio.sleep(WAIT_SECONDS + 1.2)
    return "42"


def figures(record: CallRecord) -> None:
    """Prints the seconds of silence; shown with `pytest -s`."""
    first = next(run.start for run in record.runs())
    print(f"seconds to any sound: {first - record.spoken[0].ended_at:.1f}")


async def test_a_slow_tool_and_an_answer_that_stalls(hold: Sound) -> None:
    """The caller hears the route's file until the answer comes, and again in the middle
    of the answer; the model believes of the answer just what was heard."""
    behaviour = Behaviour(
        turns=[[CallTool("look_up", {})], [PlayRuler(4000)], [PlayRuler(500)]],
        stall=(0.4, WAIT_SECONDS + 0.6),
        stall_responses=frozenset({2}),
    )
    agent: RealtimeAgent[None] = RealtimeAgent(name="a", tools=[look_up])
    route = Route(waiting_sound=hold)
    async with bridge(behaviour, agent=agent, route=route) as place:
        script = [
            *(steps.SayStep(HELLO), steps.HearStep(3400)),
            *(steps.SayStep(WAIT), LISTEN, HANG_UP),
        ]
        record = await place.caller().call(script)
        await place.empty()

    figures(record)
    assert record.heard.startswith(sound([hold.payload or ""])[:4000])
    assert record.clears, "the answer stopped the file"
    verdict = judge(record.heard, place.session.responses[1:], 1)
    [cut, whole] = verdict.beliefs
    assert cut.cut and not whole.cut and verdict.in_order
    assert abs(cut.error_ms) <= 40 and whole.error_ms == 0
    assert (verdict.lost_ms, verdict.repeated_ms, verdict.errors) == (0, 0, ())


async def test_a_rate_limit_is_no_dead_air() -> None:
    """The caller hears the tone, then the answer, to its end."""
    turns = [
        [Fail(message=f"Please try again in {WAIT_SECONDS + 1}s.")],
        [PlayRuler(500)],
    ]
    async with bridge(Behaviour(turns=turns), route=Route(waiting_sound=TONE)) as place:
        script = [steps.SayStep(HELLO), steps.HearStep(800), LISTEN, HANG_UP]
        record = await place.caller().call(script)
        await place.empty()

    figures(record)
    tone = sound([comfort_tone()])
    assert record.heard.startswith(tone)
    [belief] = judge(record.heard, place.session.responses[1:], 0).beliefs
    assert belief.heard_ms == belief.believed_ms == 500
