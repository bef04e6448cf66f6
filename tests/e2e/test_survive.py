"""A call survives the loss of the model connection or of the caller's stream.

Over real sockets; the agent counts, so that every word that is lost or repeated shows.
"""

import asyncio
import json
from time import monotonic
from typing import Any

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent, realtime_handoff
from websockets.asyncio.client import connect

from bridge.agent.live import LiveCall
from bridge.model.sdk_session import PhoneSession
from bridge.sim import counting
from bridge.sim.counting import CountingAgent, utterance
from bridge.sim.model import Behaviour, CallTool, PlayRuler, Turn, TurnContext
from bridge.sim.realtime import faults
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from bridge.sim.twilio.record import CallRecord
from tests.e2e.bridge import AGENT, HELLO, RunningBridge, bridge
from tests.support.waiting import until
from twiml import spoken_texts

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()
COUNTING = Behaviour(
    answer=CountingAgent(words=3),
    recogniser=counting.recognise,
    think_seconds=0.05,
    speed=4.0,
)


def asks(turn: int) -> steps.SayStep:
    """The caller says two words that the model can tell apart."""
    return steps.SayStep(counting.sound(utterance("caller", 1, turn, 2)))


def counted(turn: int, call: int = 1) -> str:
    """What the agent says in its answer."""
    return counting.text(utterance("agent", call, turn, 3))


def understood(record: CallRecord) -> str:
    """The agent's words that the caller heard, repeats included."""
    said = counting.understood_words(record.heard)
    return counting.text(word for word in said if word.speaker == "agent")


def sent_ms(place: RunningBridge) -> float:
    """Audio of the agent that the model has sent in its latest session."""
    items = place.session.items.values() if place.model.sessions else ()
    return sum(item.sent_ms for item in items if item.role == "assistant")


class AgentFactory:
    """A callable that returns the agent; keeps the calls for which it was called."""

    def __init__(self, agent: RealtimeAgent[Any] = AGENT) -> None:
        self.agent = agent
        self.calls: list[LiveCall] = []

    def __call__(self, call: LiveCall) -> RealtimeAgent[Any]:
        self.calls.append(call)
        return self.agent

    @property
    def session(self) -> PhoneSession:
        """The SDK's session of the only call."""
        [call] = self.calls
        assert call.session is not None
        return call.session


# --- the model connection ---


@pytest.mark.both_loops
async def test_the_model_connection_is_lost_in_two_answers() -> None:
    """A reset, then an expired session: the caller hears both answers to their ends,
    each word once. The third session knows all that was said, and the SDK's session,
    which stays the same, has each item once."""
    factory = AgentFactory()
    async with bridge(COUNTING, agent=factory) as place:
        async with asyncio.TaskGroup() as tasks:
            script = [asks(1), LISTEN, asks(2), LISTEN, HANG_UP]
            call = tasks.create_task(place.caller().call(script))
            await until(lambda: sent_ms(place) >= 600)
            session = factory.session
            place.model.inject(faults.drop)
            await until(lambda: len(place.model.sessions) == 2)
            await until(lambda: place.session.caller_turns and sent_ms(place) >= 600, 9)
            place.model.inject(faults.expire)
            await until(lambda: len(place.model.sessions) == 3)
            assert factory.session is session
        await place.empty()

    assert understood(call.result()) == f"{counted(1)} {counted(2)}"
    assert counting.conversation_lines(place.session.conversation) == [
        "user: c1-1-1 c1-1-2",
        f"assistant: {counted(1, 0)}",
        "user: c1-2-1 c1-2-2",
        f"assistant: {counted(2, 0)}",
    ]
    errors = [it["code"] for each in place.model.sessions for it in each.errors_sent]
    assert errors == ["session_expired"]
    ids = [item.item_id for item in session._history]
    assert len(ids) == len(set(ids)) >= 6
    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def test_a_model_that_refuses_two_reconnects() -> None:
    """A sentence that the caller began before the loss and ended during it is
    understood and answered."""
    async with bridge(COUNTING) as place:
        async with asyncio.TaskGroup() as tasks:
            script = [steps.WaitStep(0.3), asks(1), LISTEN, HANG_UP]
            call = tasks.create_task(place.caller().call(script))
            await until(lambda: place.model.active and place.session.speech_started_at)
            place.model.handshakes.answer(503)
            place.model.handshakes.answer(429)
            place.model.inject(faults.closing(1011, "oops"))
        await place.empty()

    assert place.model.refused == [503, 429]
    assert understood(call.result()) == counted(1)
    assert (
        counting.conversation_lines(place.session.conversation)[0]
        == "user: c1-1-1 c1-1-2"
    )


async def test_a_model_that_refuses_every_reconnect() -> None:
    """When the quota runs out during a call, the caller hears a sentence at once."""
    async with bridge(Behaviour(turns=[[PlayRuler(3000)]])) as place:
        async with asyncio.TaskGroup() as tasks:
            script = [steps.SayStep(HELLO), steps.WaitStep(8)]
            call = tasks.create_task(place.caller().call(script))
            await until(lambda: sent_ms(place) >= 200)
            place.model.handshakes.answer(429, times=9, code="insufficient_quota")
            began = monotonic()
            place.model.inject(faults.drop)
        waited = monotonic() - began
        await place.empty()

    assert call.result().said_by_twilio == [spoken_texts.SORRY]
    assert len(place.model.refused) == 1 and waited < 2.0
    assert place.metric('bridge_calls_total{outcome="model_refused"}') == 1


async def test_a_tool_runs_while_the_model_connection_is_lost() -> None:
    """The tool is called once, and its result reaches the next session, behind its
    call. Then a handoff still works, and the SDK's session is the same."""
    called, go_on = asyncio.Event(), asyncio.Event()
    done_by: list[PhoneSession] = []

    @function_tool
    async def look_up() -> str:
        assert not called.is_set(), "called twice"
        called.set()
        await go_on.wait()
        return "Friday"

    @function_tool
    def done() -> str:
        done_by.append(factory.session)
        return "ok"

    clerk: RealtimeAgent[Any] = RealtimeAgent(name="clerk", tools=[done])
    first: RealtimeAgent[Any] = RealtimeAgent(
        name="desk", tools=[look_up], handoffs=[realtime_handoff(clerk)]
    )
    factory = AgentFactory(first)

    turns = {
        1: [CallTool("look_up", {})],
        2: [CallTool("transfer_to_clerk", {})],
        3: [CallTool("done", {})],
        4: [PlayRuler(300)],
    }

    def step(heard: TurnContext) -> Turn:
        """Each result leads to the next turn, in whatever session."""
        results = [it for it in heard.conversation if it.kind == "function_call_output"]
        return turns[1 + len(results)]

    behaviour = Behaviour(answer=step, think_seconds=0.05, speed=20)
    async with bridge(behaviour, agent=factory, greeting="Go.") as place:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call([LISTEN, HANG_UP]))
            await called.wait()
            session = factory.session
            place.model.inject(faults.drop)
            await until(lambda: len(place.model.sessions) == 2 and place.session.items)
            go_on.set()
        await place.empty()

    assert done_by == [session]
    called_there, told_there = [
        it for it in place.session.conversation if it.name == "look_up"
    ]
    assert called_there.kind == "function_call"
    assert (told_there.kind, told_there.text) == ("function_call_output", "Friday")
    assert [tool["name"] for tool in place.session.session["tools"]] == ["done"]
    assert read_ruler(call.result().heard).heard_ms == {1: 300}
    assert not place.session.errors_sent


async def test_a_session_is_rolled_over_unheard() -> None:
    """Two sessions or more, one conversation, and no difference that the caller could
    hear."""
    async with bridge(COUNTING, session_seconds=1.0, greeting="Go.") as place:
        async with asyncio.TaskGroup() as tasks:
            script = [LISTEN, steps.WaitStep(0.4), asks(1), LISTEN, HANG_UP]
            call = tasks.create_task(place.caller().call(script))
        await place.empty()

    assert len(place.model.sessions) >= 2
    assert understood(call.result()) == f"{counted(1, 0)} {counted(2)}"
    assert len(counting.conversation_lines(place.session.conversation)) == 3
    why = 'bridge_model_reconnects_total{why="roll_over"}'
    assert place.metric(why) == len(place.model.sessions) - 1


# --- the caller's stream ---


@pytest.mark.both_loops
async def test_a_stream_that_breaks_is_followed_by_another() -> None:
    """The caller has the same agent, in the same session, and hears the rest of the
    answer."""
    factory = AgentFactory()
    async with bridge(COUNTING, agent=factory) as place:
        caller = place.caller(notice_seconds=0.2)
        script = [
            asks(1),
            steps.HearStep(700),
            steps.DropStep(),
            steps.WaitStep(0.3),
            LISTEN,
        ]
        record = await caller.call([*script, HANG_UP])
        await place.empty()

    assert len(record.stream_sids) == 2 and len(factory.calls) == 1
    assert len(place.model.sessions) == 1
    assert sorted({*understood(record).split()}) == counted(1).split()
    again = len(understood(record).split()) - 3
    assert again <= 1, "the word in which the line broke, no more"
    assert record.said_by_twilio == []


async def test_a_second_stream_takes_over() -> None:
    """Twilio may not have closed the first stream yet: the caller never hears two
    voices."""
    sid = "CA" + "7" * 32
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    start = {"callSid": sid, "mediaFormat": form}
    heard: list[dict[str, Any]] = []
    async with bridge(COUNTING) as place:
        async with asyncio.TaskGroup() as tasks:
            url = place.url.replace("http", "ws") + "/media"
            alone = f"<Response><Connect><Stream url='{url}'/></Connect></Response>"
            first = place.caller(call_sid=sid, document=alone)
            tasks.create_task(first.call([asks(1), steps.WaitStep(9)]))
            await until(lambda: sent_ms(place) >= 600)
            async with connect(url, compression=None, proxy=None) as second:
                message = {"event": "start", "streamSid": "MZ2", "start": start}
                await second.send(json.dumps(message))
                async with asyncio.timeout(4):
                    while sum(it["event"] == "media" for it in heard) < 3:
                        heard.append(json.loads(await second.recv()))
                assert place.server.calls == 1
                await second.send(json.dumps({"event": "stop", "streamSid": "MZ2"}))
        await place.empty()

    assert {it["streamSid"] for it in heard} == {"MZ2"}
    assert len(place.model.sessions) == 1
