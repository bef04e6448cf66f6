"""A listener gets all events of a call, and cannot harm the call."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.realtime import (
    RealtimeAgent,
    RealtimeModelEvent,
    RealtimeModelListener,
    RealtimeRawModelEvent,
    RealtimeRunner,
)
from structlog.testing import capture_logs

from bridge.agent import events
from bridge.agent.events import CallEvent
from bridge.agent.live import CallOver, LiveCall
from bridge.agent.phone_tools import take_message
from bridge.app.routes import Route
from bridge.model.sdk_events import UNREAD
from bridge.model.session_settings import SessionSettings
from bridge.sim.model import Behaviour, CallTool, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import AGENT, WAIT, bridge

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()


def heard_by(listen: Callable[[LiveCall], object]) -> dict[str, Any]:
    """Options of a bridge that calls `listen` for each call, before the call has an
    agent."""
    return {"route": Route(on_call="listen"), "functions": {"listen": listen}}


def in_order(types: list[str], *wanted: str) -> bool:
    """The wanted types come in this order, with any others between them."""
    rest = iter(types)
    return all(each in rest for each in wanted)


async def test_one_subscription_for_everything() -> None:
    """The events of the SDK, of the phone and of the user's code arrive in order; the
    position at which the agent was interrupted is known to 40 ms."""
    seen: list[CallEvent] = []

    @function_tool
    def weather(city: str) -> str:
        return f"sunny in {city}"

    second: RealtimeAgent[Any] = RealtimeAgent(name="second")
    agent: RealtimeAgent[Any] = RealtimeAgent(
        name="first", tools=[weather, take_message], handoffs=[second]
    )

    def listen(live: LiveCall) -> None:
        live.on(seen.append)
        live.emit("mine", number=7)

    behaviour = Behaviour(
        turns=[
            [CallTool("weather", {"city": "Rome"})],
            [CallTool("take_message", {"text": "Call me."})],
            [CallTool("transfer_to_second", {})],
            [PlayRuler(4000)],
        ],
        fallback=[PlayRuler(300)],
        user_texts=["And then?"],
    )
    async with bridge(
        behaviour, agent=agent, greeting="Go.", **heard_by(listen)
    ) as place:
        script: steps.Script = [
            steps.HearStep(900),
            steps.SayStep(WAIT),
            steps.PressStep("5"),
            LISTEN,
            HANG_UP,
        ]
        record = await place.caller().call(script)
        await place.empty()

    types = [event.type for event in seen]
    assert types[:2] == ["mine", "call_started"]
    assert in_order(
        types,
        *("ready", "history_updated", "agent_start", "tool_start", "tool_end"),
        *("handoff", "first_audio", "agent_end", "interrupted", "speech_started"),
        *("clear_confirmed", "said", "audio_interrupted", "speech_stopped"),
        *("agent_start", "caller_said", "first_audio", "audio_end", "said"),
    ), types
    assert {
        *("history_updated", "message_taken"),
        *("raw_model_event", "history_added", "agent_end", "usage", "response_done"),
        *("agent_interrupted", "key_pressed"),
    } <= set(types)
    assert types[-1] == "call_ended" and types.count("call_ended") == 1
    assert seen[-1].data["why"] == "hung_up"

    by_type = {event.type: event.data for event in seen}
    assert by_type["mine"] == {"number": 7}
    assert by_type["handoff"] == {"agent": "first", "to": "second"}
    assert by_type["caller_said"]["text"] == "And then?"
    assert by_type["key_pressed"] == {"digit": "5"}
    start, end = (
        next(event.data for event in seen if event.type == kind)
        for kind in ("tool_start", "tool_end")
    )
    assert start == {
        "tool": "weather",
        "arguments": '{"city":"Rome"}',
        "agent": "first",
    }
    assert end["output"] == "sunny in Rome"

    heard = read_ruler(record.heard).heard_ms
    [cut] = [event for event in seen if event.type == "audio_interrupted"]
    assert cut.data["heard_ms"] == pytest.approx(heard[1], abs=40)
    [clear] = record.clears
    assert clear.flushed
    [at_once] = [event for event in seen if event.type == "agent_interrupted"]
    assert at_once.data["item"] == cut.data["item"] and at_once.at <= cut.at

    raw = [event.source for event in seen if event.type == "raw_model_event"]
    kinds = {
        event.data.data["type"]
        for event in raw
        if isinstance(event, RealtimeRawModelEvent)
        and event.data.type == "raw_server_event"
    }
    assert {"session.created", "response.created", "response.done"} <= kinds
    assert UNREAD & kinds, "somebody listens to raw events"
    assert "response.output_audio.delta" not in kinds


async def test_chosen_types_and_an_end_of_listening() -> None:
    """A listener gets the types that it asked for until it unsubscribes, also from its
    own thread. A call that has ended takes no listener."""
    chosen: list[str] = []
    once: list[str] = []
    calls: list[LiveCall] = []

    async def choose(event: CallEvent) -> None:
        chosen.append(event.type)

    def listen(live: LiveCall) -> None:
        calls.append(live)
        live.on(choose, "said", "usage")

        def first(event: CallEvent) -> None:
            once.append(event.type)
            live.emit("from_a_thread")
            stop()

        live.on(choose, "from_a_thread")
        stop = live.on(first, "said")

    behaviour = Behaviour(turns=[[PlayRuler(300), PlayRuler(300)]])
    async with bridge(behaviour, greeting="Go.", **heard_by(listen)) as place:
        await place.caller().call([LISTEN, HANG_UP])
        await place.empty()

    assert sorted(chosen) == ["from_a_thread", "said", "said", "usage"]
    assert once == ["said"]
    with pytest.raises(CallOver):
        calls[0].on(choose)


async def test_listeners_that_fail_or_block_do_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One raises, one exits, some block their threads, one sleeps for ever: the agent's
    audio has no gap and stops as soon as the caller speaks, the call ends at once, and
    nothing of the listeners is left."""
    monkeypatch.setattr(events, "LATE_SECONDS", 0.5)
    seen: list[str] = []
    free = threading.Event()

    def raises(event: CallEvent) -> None:
        raise LookupError("a listener's own")

    def exits(event: CallEvent) -> None:
        raise SystemExit(3)

    def blocks(event: CallEvent) -> None:
        free.wait(30)

    async def sleeps(event: CallEvent) -> None:
        await asyncio.sleep(3600)

    def listen(live: LiveCall) -> None:
        for listener in (raises, exits, sleeps, *([blocks] * 40)):
            live.on(listener)
        live.on(sleeps)()  # unsubscribed at once
        live.on(lambda event: seen.append(event.type))

    @function_tool
    def plain() -> str:
        return "run in a thread"

    behaviour = Behaviour(
        turns=[[CallTool("plain", {})], [PlayRuler(4000)]],
        fallback=[PlayRuler(300)],
        speed=3,
    )
    agent = AGENT.clone(tools=[plain])
    with capture_logs() as logs:
        async with bridge(
            behaviour, agent=agent, greeting="Go.", **heard_by(listen)
        ) as place:
            script: steps.Script = [
                steps.HearStep(1000),
                steps.SayStep(WAIT),
                LISTEN,
                HANG_UP,
            ]
            record = await place.caller().call(script)
            await place.empty()

    free.set()
    heard = read_ruler(record.heard)
    assert heard.heard_ms[2] == 300 and heard.in_order
    assert record.underruns.count == 0
    [clear] = record.clears
    assert clear.at - place.session.speech_started_at[0] < 0.1
    [output] = [it.output for it in place.session.items.values() if it.output]
    assert output == "run in a thread"
    assert seen[-1] == "call_ended"
    failed = [it for it in logs if it["event"] == "listener_failed"]
    assert len(failed) == 2  # each of the two, once
    assert not [it for it in logs if it["event"] == "background_task_cancelled"]


async def test_a_listener_of_the_model() -> None:
    """`session.model` accepts the SDK's listeners: they get all events except audio."""
    seen: list[str] = []

    class Listener(RealtimeModelListener):
        async def on_event(self, event: RealtimeModelEvent) -> None:
            seen.append(event.type)

    @function_tool
    def plug_in() -> str:
        [live] = calls
        assert live.session
        live.session.model.add_listener(Listener())
        return "plugged in"

    calls: list[LiveCall] = []
    agent = AGENT.clone(tools=[plug_in])
    behaviour = Behaviour(turns=[[CallTool("plug_in", {})], [PlayRuler(300)]])
    async with bridge(
        behaviour, agent=agent, greeting="Go.", **heard_by(calls.append)
    ) as place:
        await place.caller().call([LISTEN, HANG_UP])

    assert {"turn_started", "transcript_delta", "turn_ended", "usage"} <= set(seen)
    assert "audio" not in seen


async def test_a_guardrail_clears_queued_audio_at_once() -> None:
    """A guardrail of the run, checked after as many characters as the route says:
    queued audio is never heard, listeners know which guardrail it was, and the agent
    answers anew."""
    lengths: list[int] = []
    tripped_at: list[float] = []

    async def no_words(context: Any, agent: Any, text: str) -> GuardrailFunctionOutput:
        lengths.append(len(text))
        tripped_at.append(time.monotonic())
        return GuardrailFunctionOutput(None, tripwire_triggered=len(lengths) == 1)

    runner = RealtimeRunner(
        AGENT,
        config={
            "output_guardrails": [
                OutputGuardrail(guardrail_function=no_words, name="no words")
            ]
        },
    )
    seen: list[CallEvent] = []
    more = heard_by(lambda live: live.on(seen.append, "guardrail_tripped", "said"))
    session = SessionSettings.read({"guardrail_debounce_chars": 20})
    more["route"] = replace(more["route"], session=session)
    behaviour = Behaviour(turns=[[PlayRuler(6000)]], fallback=[PlayRuler(300)], speed=3)
    async with bridge(behaviour, agent=runner, greeting="Go.", **more) as place:
        listen = steps.ListenStep(quiet_seconds=0.8, timeout=8)
        record = await place.caller().call([listen, HANG_UP])
        await place.empty()

    assert 20 <= lengths[0] < 40
    [clear] = record.clears
    assert clear.flushed and clear.at - tripped_at[0] < 0.1
    heard = read_ruler(record.heard).heard_ms
    assert heard[1] < 2000 and heard[2] == 300
    [tripped] = [event for event in seen if event.type == "guardrail_tripped"]
    assert tripped.data["guardrails"] == ["no words"]
    assert [event.data["cut"] for event in seen if event.type == "said"] == [
        True,
        False,
    ]
