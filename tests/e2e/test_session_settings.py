"""An operator's session settings reach the model, complete and in every session."""

from typing import Any

import pytest
from agents import RunContextWrapper, function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from agents.realtime.model_inputs import RealtimeModelSendRawMessage
from structlog.testing import capture_logs

from bridge.agent.live import LiveCall
from bridge.app.routes import Route
from bridge.model.session_settings import SessionSettings
from bridge.sim.model import Behaviour, CallTool, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import AGENT, RunningBridge, bridge
from twiml import spoken_texts

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()
PHONE = {"type": "audio/pcmu"}

SAID = SessionSettings.read(
    {
        "voice": "cedar",
        "speed": 1.2,
        "transcription": {
            "model": "gpt-transcribe",
            "language": "en",
            "keywords": ["calzone"],
        },
        "turn_detection": {
            "type": "server_vad",
            "threshold": 0.6,
            "silence_duration_ms": 400,
            "create_response": True,
            "interrupt_response": True,
        },
        "noise_reduction": {"type": "far_field", "strength": 0.4},
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "max_output_tokens": 500,
        "truncation": {"type": "retention_ratio", "retention_ratio": 0.8},
        "reasoning": {"effort": "low"},
        "tracing": {"workflow_name": "pizza", "metadata": {"shop": 7}},
        "prompt": {"id": "pmpt_1", "version": "2", "variables": {"city": "Rome"}},
        "include": ["item.input_audio_transcription.logprobs"],
        "extra": {"audio": {"input": {"turn_detection": {"prefix_padding_ms": 200}}}},
    }
)
WHOLE = {
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": PHONE,
            "transcription": {
                "model": "gpt-transcribe",
                "language": "en",
                "keywords": ["calzone"],
            },
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.6,
                "silence_duration_ms": 400,
                "prefix_padding_ms": 200,
                "create_response": True,
                "interrupt_response": True,
            },
            "noise_reduction": {"type": "far_field", "strength": 0.4},
        },
        "output": {"format": PHONE, "voice": "cedar", "speed": 1.2},
    },
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "max_output_tokens": 500,
    "truncation": {"type": "retention_ratio", "retention_ratio": 0.8},
    "reasoning": {"effort": "low"},
    "prompt": {"id": "pmpt_1", "version": "2", "variables": {"city": "Rome"}},
    "include": ["item.input_audio_transcription.logprobs"],
}
TRACING = {"workflow_name": "pizza", "group_id": None, "metadata": {"shop": 7}}


def updates(place: RunningBridge) -> list[dict[str, Any]]:
    """Every `session` that was sent, in order."""
    received = (event for _, event in place.session.received)
    return [it["session"] for it in received if it["type"] == "session.update"]


async def test_the_session_of_a_route_arrives_whole() -> None:
    """In the first update, and again when another agent takes over."""
    second: RealtimeAgent[Any] = RealtimeAgent(name="second", instructions="Be brief.")
    agent: RealtimeAgent[Any] = RealtimeAgent(name="first", handoffs=[second])
    behaviour = Behaviour(
        turns=[[CallTool("transfer_to_second", {})], [PlayRuler(300)]], speed=20
    )
    route = Route(session=SAID)
    async with bridge(behaviour, agent=agent, greeting="Go.", route=route) as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    whole = [it for it in updates(place) if "tools" in it]
    assert len(whole) == 2
    assert [{key: it.get(key) for key in WHOLE} for it in whole] == [WHOLE, WHOLE]
    assert whole[1]["instructions"] == "Be brief."
    assert place.session.session["tracing"] == TRACING
    assert not place.session.errors_sent
    assert record.ended_by == "caller"


async def test_the_routes_settings_override_those_of_the_code() -> None:
    """The settings of a RealtimeRunner, also under the SDK's old names, apply where the
    route sets nothing; its audio formats never apply."""
    agent: RealtimeAgent[Any] = RealtimeAgent(
        name="desk", instructions="Be kind.", prompt={"id": "pmpt_of_the_agent"}
    )
    runner = RealtimeRunner(
        agent,
        config={
            "model_settings": {
                "voice": "ash",
                "speed": 0.9,
                "input_audio_format": "pcm16",
                "audio": {"output": {"format": "pcm16"}},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
                "max_output_tokens": 100,
            }
        },
    )
    session = SessionSettings.read({"voice": "cedar", "transcription": "off"})
    async with bridge(
        Behaviour(turns=[[PlayRuler(300)]]),
        agent=runner,
        greeting="Go.",
        route=Route(session=session),
    ) as place:
        record = await place.caller().call([LISTEN, HANG_UP])

    said = place.session.session
    assert said["audio"]["output"] == {"format": PHONE, "voice": "cedar", "speed": 0.9}
    assert said["audio"]["input"]["format"] == PHONE
    assert said["audio"]["input"]["transcription"] is None
    assert said["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert said["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 300
    assert said["max_output_tokens"] == 100
    assert said["instructions"] == "Be kind."
    assert said["prompt"]["id"] == "pmpt_of_the_agent"
    assert read_ruler(record.heard).stray == 0 and record.heard


async def test_a_setting_that_the_model_refuses() -> None:
    """The operator reads which setting it was. The caller hears a sentence: no noise,
    and no agent without instructions."""
    session = SessionSettings.read({"extra": {"colour": "red"}})
    behaviour = Behaviour(turns=[[PlayRuler(300)]])
    with capture_logs() as logs:
        async with bridge(
            behaviour, greeting="Go.", route=Route(session=session)
        ) as place:
            record = await place.caller().call([steps.WaitStep(5)])
            await place.empty()

    assert record.said_by_twilio == [spoken_texts.SORRY]
    assert record.media_in == []
    [error] = [it for it in logs if it["event"] == "model_error"]
    assert error["code"] == "unknown_parameter"
    assert error["param"] == "session.colour"
    assert place.metric('bridge_calls_total{outcome="model_refused"}') == 1


@pytest.mark.parametrize("through_the_sdk", [False, True])
async def test_raw_updates_of_the_users_code(through_the_sdk: bool) -> None:
    """An update that the model refuses does not end the call; an update that names PCM
    does not change the call's mu-law."""

    async def send(live: LiveCall, session: dict[str, Any]) -> None:
        session = {"type": "realtime", **session}
        if through_the_sdk:
            assert live.session
            await live.session.model.send_event(
                RealtimeModelSendRawMessage(
                    message={
                        "type": "session.update",
                        "other_data": {"session": session},
                    }
                )
            )
        else:
            live.send_raw({"type": "session.update", "session": session})

    @function_tool
    async def tinker(context: RunContextWrapper[LiveCall]) -> str:
        live = context.context
        await send(live, {"max_output_tokens": 9999})
        pcm = {"format": {"type": "audio/pcm", "rate": 24000}}
        await send(live, {"audio": {"input": pcm, "output": {**pcm, "speed": 1.1}}})
        return "done"

    agent = AGENT.clone(tools=[tinker])
    behaviour = Behaviour(turns=[[CallTool("tinker", {})], [PlayRuler(300)]], speed=20)
    async with bridge(behaviour, agent=agent, greeting="Go.") as place:
        record = await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    said = place.session.session["audio"]
    assert said["output"]["speed"] == 1.1
    assert said["input"]["format"] == said["output"]["format"] == PHONE
    assert len(place.session.errors_sent) == 1
    assert record.ended_by == "caller" and record.heard
