"""A model that is hostile or broken: the call survives, or ends with a reason.

The process never ends, and no other call is affected.
"""

import asyncio
import json
from typing import Any

import pytest
from agents import function_tool
from agents.realtime import RealtimeAgent
from structlog.testing import capture_logs

from bridge.core.limits import MAX_ID_CHARS
from bridge.model import wire
from bridge.model.sdk_session import MAX_TOOLS, TOO_MANY
from bridge.model.session import MAX_EVENT_BYTES
from bridge.model.wire import MAX_EVENT_CHARS
from bridge.sim.model import Behaviour, CallTool, PlayRuler
from bridge.sim.realtime import faults
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, RunningBridge, bridge
from tests.support.waiting import until

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
TALK = [steps.SayStep(HELLO), LISTEN, steps.HangUpStep()]
SILENCE = "/" * 212 + "////"
"""20 ms of audio in base64, without padding."""


def event(type: str, **fields: Any) -> str:
    return json.dumps({"type": type, "event_id": "e", **fields})


def raw(type: str, fields: str) -> str:
    """An event with text in it that no JSON library would write."""
    return f'{{"type":"{type}","event_id":"e",{fields}}}'


def delta(
    response: str = "r", item: str = "i", sound: Any = SILENCE, **more: Any
) -> str:
    return event(
        "response.output_audio.delta",
        response_id=response,
        item_id=item,
        delta=sound,
        **{"output_index": 0, "content_index": 0, **more},
    )


def added(kind: str, **item: Any) -> str:
    return event(kind, response_id="r", output_index=0, item=item)


NUMBERS = ("-1", "1e400", "-1e400", "1" + "0" * 400)
NO_NUMBERS = ("NaN", "Infinity", "9" * 5000)

DEEP = "[" * 100_000 + "]" * 100_000

MALFORMED: list[str | bytes] = [
    "",
    "null",
    "[]",
    "{",
    "\x00",
    b"\x00\xff binary",
    DEEP,
    raw("rate_limits.updated", f'"rate_limits":{DEEP}'),
    raw("session.updated", f'"session":{DEEP}'),
    raw("response.done", f'"response":{{"id":"r","usage":{DEEP}}}'),
    *(raw("rate_limits.updated", f'"rate_limits":{n}') for n in NO_NUMBERS),
    *(
        raw("response.output_audio.delta", f'"content_index":{n}')
        for n in (*NUMBERS, *NO_NUMBERS)
    ),
    raw("response.created", '"response":{"id":"\\ud800"}'),
    raw(
        "conversation.item.added", '"item":{"id":"i","type":"message","role":"\\udfff"}'
    ),
    '{"type":"error","type":"session.updated","type":5}',
    event("no.such.event", much="x" * 1000),
    event("x" * 100_000),
]
"""Messages that are malformed, or that refer to nothing."""

NONSENSE: list[str] = [
    *(raw("rate_limits.updated", f'"rate_limits":{n}') for n in NUMBERS),
    # Out of order, about unknown items, repeated.
    event("response.done", response={"id": "r"}),
    event("response.done", response={"id": "r"}),
    event("response.done", response={"id": "r", "status": 5, "usage": "much"}),
    event("response.done", response={"id": "r2", "usage": {"input_tokens": 10**30}}),
    event("response.output_audio.done", response_id="r", item_id="nobody"),
    event("conversation.item.deleted", item_id="nobody"),
    event("conversation.item.truncated", item_id="nobody", content_index=-1),
    event("input_audio_buffer.committed", item_id=""),
    event("input_audio_buffer.speech_stopped", item_id="u", audio_end_ms=-(10**20)),
    event("input_audio_buffer.timeout_triggered", item_id=None),
    event("session.created", session={"type": "realtime"}),
    event("session.created", session=None),
    event("session.updated", session={"audio": None}),
    event("session.updated", session={"audio": {"input": {"format": "none"}}}),
    event("error", error={"message": "x" * 50_000, "code": "y" * 5000, "type": ""}),
    event("error", error=[]),
    # Of a wrong shape where the SDK expects the right one without a check.
    added("response.output_item.added", id="i", type="message", content=5),
    added("response.output_item.added", id="i", type="message", content=[5, None]),
    added("response.output_item.added", id="i", type="message", role="king"),
    added(
        "response.output_item.done", id=7, type="message", content=[{"type": "text"}]
    ),
    added(
        "response.output_item.done", id="i", type="function_call", status="completed"
    ),
    event("conversation.item.added", item={"id": "i", "type": "message", "content": 5}),
    event("conversation.item.added", item={"id": "i2", "type": "message", "role": "x"}),
    event("conversation.item.done", item={"id": "i3", "content": [{"text": 5}, 6]}),
    event("mcp_list_tools.failed", item_id="nobody"),
    event("response.mcp_call.completed", item_id="nobody", output_index=-5),
    event("conversation.item.done", item={"id": "m", "type": "mcp_list_tools"}),
    # Audio for items that never began or have ended, and in other formats.
    delta("unknown", "unknown"),
    delta(),
    event("response.output_audio.done", response_id="r", item_id="i"),
    delta(),
    delta(sound="A"),
    delta(sound="====" * 100),
    delta(sound=5),
    delta(sound="\u00e9" * 400),
    delta(content_index=2**40),
    delta(content_index=-1),
    delta(item="x" * (MAX_ID_CHARS + 1)),
    event("response.output_audio_transcript.delta", response_id="r", item_id="i")[:-1]
    + ',"delta":"\\ud800"}',
]


async def test_malformed_events_are_counted_and_the_call_continues() -> None:
    """A caller whose model sends everything that is malformed is answered as usual."""
    behaviour = Behaviour(turns=[[PlayRuler(500)]], garbage=MALFORMED)
    async with bridge(behaviour) as place:
        record = await place.caller().call(TALK)
        await place.empty()
        sessions = len(place.model.sessions)

    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert (record.ended_by, sessions) == ("caller", 1)
    assert place.metric('bridge_protocol_errors_total{side="model"}') == len(MALFORMED)


async def test_meaningless_events_do_not_end_a_call() -> None:
    """The events are well formed and mean nothing; the SDK's session does not end
    either."""
    with capture_logs() as lines:
        async with bridge(
            Behaviour(fallback=[PlayRuler(500)], garbage=NONSENSE)
        ) as place:
            record = await place.caller().call(TALK)
            await place.empty()

    # One event calls a tool without a name; the caller interrupted the answer to it.
    assert 500 in read_ruler(record.heard).heard_ms.values()
    assert record.ended_by == "caller"
    bad = {line["event"] for line in lines} & {"agent_failed", "call_failed"}
    assert not bad, lines


@pytest.mark.parametrize("size", [MAX_EVENT_CHARS + 1, 2 * MAX_EVENT_BYTES])
@pytest.mark.both_loops
async def test_a_giant_event(size: int) -> None:
    """The event is not parsed; if necessary another session continues the call."""
    behaviour = Behaviour(turns=[[PlayRuler(500)]] * 2)
    giant = event("response.output_text.delta", delta="x" * size)
    async with bridge(behaviour) as place:
        calling = asyncio.ensure_future(  # noqa: TID251
            place.caller().call(
                [steps.SayStep(HELLO), LISTEN, steps.WaitStep(0.5), *TALK]
            )
        )
        await until(lambda: is_configured(place) and bool(place.session.responses))
        await asyncio.sleep(1.2)
        place.model.inject(faults.saying(giant))
        record = await calling
        sessions = len(place.model.sessions)
        await place.empty()

    assert record.ended_by == "caller"
    assert sum(read_ruler(record.heard).heard_ms.values()) == 1000
    assert sessions == (1 if size < MAX_EVENT_BYTES else 2)
    assert place.metric('bridge_limit_hits_total{limit="model_bytes"}') == 1


def is_configured(place: RunningBridge) -> bool:
    return bool(place.model.open) and place.session.configured_at is not None


async def beside(place: RunningBridge, fault: faults.Fault) -> Any:
    """A normal call while the model of another call has this fault: the normal call's
    record."""
    bad = asyncio.ensure_future(  # noqa: TID251
        place.caller().call([steps.SayStep(HELLO), steps.WaitStep(20)])
    )
    await until(lambda: is_configured(place))
    first = place.session
    good = asyncio.ensure_future(  # noqa: TID251
        place.caller().call([steps.SayStep(HELLO), LISTEN, steps.HangUpStep()])
    )
    await until(lambda: len(place.model.open) == 2 and bool(place.session.responses))
    fault(first)
    record = await good
    await bad
    await place.empty()
    return record


FLOODS = {
    "words": lambda n: event(
        "response.output_audio_transcript.delta",
        response_id="r",
        item_id="i",
        delta="and so on ",
        output_index=0,
        content_index=0,
    ),
    "answers": lambda n: event("response.created", response={"id": f"r{n}"}),
    "nothing": lambda n: "{}",
}


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower limits, so that the tests reach them quickly, also on a loaded machine: the
    answer to a keepalive ping waits behind the flood."""
    assert wire.EVENTS_PER_SECOND * wire.FLOOD_SECONDS == 20_000
    monkeypatch.setattr(wire, "EVENTS_PER_SECOND", 20.0)
    monkeypatch.setattr(wire, "CHARS_PER_SECOND", wire.CHARS_PER_SECOND / 10)


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("kind", FLOODS)
@pytest.mark.both_loops
async def test_a_flood_ends_its_call_and_no_other(kind: str) -> None:
    """A model that sends without end: its caller hears an apology, the other caller
    hears the whole answer."""
    async with bridge(Behaviour(fallback=[PlayRuler(1500)], speed=2)) as place:
        record = await beside(place, faults.flooding(FLOODS[kind]))

    assert list(read_ruler(record.heard).heard_ms.values()) == [1500]
    assert place.metric('bridge_calls_total{outcome="model_flood"}') == 1
    assert place.metric('bridge_limit_hits_total{limit="model_flood"}') >= 1


@pytest.mark.usefixtures("low_limits")
@pytest.mark.both_loops
async def test_a_flood_of_bytes() -> None:
    """Fewer events of a megabyte each: the call ends before they fill the memory."""
    book = event("response.output_text.delta", delta="x" * 1_000_000)
    async with bridge(Behaviour(fallback=[PlayRuler(1500)], speed=2)) as place:
        record = await beside(place, faults.flooding(lambda n: book, 1))

    assert list(read_ruler(record.heard).heard_ms.values()) == [1500]
    assert place.metric('bridge_calls_total{outcome="model_flood"}') == 1
    assert place.metric('bridge_limit_hits_total{limit="model_bytes"}') >= 1


# --- tools ---


def calls_tool(n: int, name: str = "look_up", arguments: str = "{}") -> str:
    item = {
        "id": f"item_f{n}",
        "type": "function_call",
        "status": "completed",
        "call_id": f"call_{n}",
        "name": name,
        "arguments": arguments,
    }
    return added("response.output_item.done", **item)


class Tools:
    """An agent with a tool; counts how many calls of the tool run at the same time."""

    def __init__(self, seconds: float = 0.2) -> None:
        self.now = self.most = 0
        self.seconds = seconds

        @function_tool
        async def look_up(turn: int = 0) -> str:
            """Looks something up."""
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(self.seconds)
            self.now -= 1
            return "found"

        self.agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[look_up])


def outputs(place: RunningBridge) -> list[str]:
    """The tool outputs that the model got."""
    items = (
        event["item"]
        for _, event in place.session.received
        if event["type"] == "conversation.item.create"
    )
    return [it["output"] for it in items if it["type"] == "function_call_output"]


async def test_tools_called_with_malformed_arguments() -> None:
    """The model gets an error for each; the caller hears the agent all the same."""
    garbage = [
        calls_tool(1, arguments="no json"),
        calls_tool(2, arguments='{"turn":"many"}'),
        calls_tool(3, arguments="[" * 50_000),
        calls_tool(4, arguments='{"turn":' + "9" * 5000 + "}"),
        calls_tool(5, name="no_such_tool"),
        calls_tool(6, name=""),
        calls_tool(7, arguments='{"turn":"\ud800"}'),
        calls_tool(8, arguments="x" * 500_000),
        calls_tool(9, name="x" * (MAX_ID_CHARS + 1)),
    ]
    # The server refuses the outputs of calls that it does not know, for which responses
    # are cancelled.
    turns = [[CallTool("look_up", {}), PlayRuler(400)]] * 4
    behaviour = Behaviour(turns=turns, fallback=[PlayRuler(400)])
    async with bridge(behaviour, agent=Tools().agent) as place:
        calling = asyncio.ensure_future(  # noqa: TID251
            place.caller().call([steps.WaitStep(1), *TALK])
        )
        await until(lambda: is_configured(place))
        place.model.inject(faults.saying(*garbage))
        record = await calling
        told = outputs(place)
        await place.empty()

    assert record.ended_by == "caller"
    assert 400 in read_ruler(record.heard).heard_ms.values()
    assert told.count("found") >= 1
    assert len(told) >= 7


async def test_two_hundred_tools_at_once() -> None:
    """The number of running tool calls is limited; for the others the model is told to
    wait."""
    tools = Tools(6.0)  # the first still runs when the last one begins
    behaviour = Behaviour(fallback=[PlayRuler(400)])
    async with bridge(behaviour, agent=tools.agent) as place:
        calling = asyncio.ensure_future(  # noqa: TID251
            place.caller().call([steps.WaitStep(8.5), *TALK])
        )
        await until(lambda: is_configured(place))
        place.model.inject(faults.saying(*(calls_tool(n) for n in range(200))))
        record = await calling
        told = outputs(place)
        await place.empty()

    assert record.ended_by == "caller"
    assert tools.most == MAX_TOOLS
    assert told.count("found") == MAX_TOOLS
    assert told.count(TOO_MANY) == 200 - MAX_TOOLS
    hits = place.metric('bridge_limit_hits_total{limit="model_flood"}')
    assert hits == 200 - MAX_TOOLS
