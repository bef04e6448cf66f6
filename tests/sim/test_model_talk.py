"""The fake model as a developer uses it: default answers, the SDK, many calls."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bridge.sim.model import (
    Behaviour,
    CallMcp,
    CallTool,
    ModelServer,
    ModelSession,
    PlayRuler,
    SayText,
    ToolOutput,
    Turn,
    TurnContext,
)
from bridge.sim.realtime.default_answers import (
    AnyMcpServer,
    DefaultAnswers,
    about,
    default_answer,
    tool_calls,
)
from bridge.sim.voice import ruler
from tests.sim.realtime_client import (
    CLIENT_EVENTS,
    PCMU,
    QUICK,
    WEATHER,
    Client,
    Event,
    speech,
    talking,
)


async def test_the_default_answers_greet_and_call_a_tool() -> None:
    """A caller is greeted, answered, and sees a tool called."""
    async with talking(Behaviour(**QUICK), tools=[WEATHER]) as (client, session):
        await client.send(type="response.create")
        await client.until("response.done")
        for _ in range(2):
            await client.say(speech("This is about two seconds of speech, I think."))
            await client.until("response.done")
        call = session.responses[-1].items[-1]
        output = {"type": "function_call_output", "call_id": call.call_id}
        await client.send(
            type="conversation.item.create", item=output | {"output": "22 degrees"}
        )
        await client.send(type="response.create")
        await client.until("response.done")

    said = [r.items[0].text for r in session.responses]
    assert said[0].startswith("Hello! This is the built-in test voice")
    assert "You spoke for about t" in said[1] or "and a half" in said[1]
    assert call.name == "get_weather" and call.arguments == '{"city":"example"}'
    assert said[3] == "The tool get weather answered: 22 degrees"


async def test_the_answer_may_be_computed() -> None:
    """A test can compute the answer from what the caller said."""
    known: list[TurnContext] = []

    def answer(context: TurnContext) -> Turn:
        known.append(context)
        return [SayText(f"You said {context.transcript}.")]

    behaviour = Behaviour(answer=answer, user_texts=["Good day"], **QUICK)
    async with talking(behaviour, instructions="Be kind.") as (client, session):
        await client.say(speech())
        await client.until("response.done")

    assert known[0].instructions == "Be kind." and known[0].trigger == "speech"
    assert known[0].seconds == pytest.approx(1.4, abs=0.5)
    assert session.responses[0].items[0].text == "You said Good day."


def test_arguments_are_made_up_from_the_schema() -> None:
    """A tool is called with arguments that its schema accepts, or not at all."""
    schema = {
        "type": "object",
        "properties": {
            "size": {"enum": ["small", "large"]},
            "count": {"type": "integer", "minimum": 2},
            "extra": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "to": {"$ref": "#/$defs/Place"},
            "keys": {"type": "string", "description": "keys, such as 1w4#, pressed"},
        },
        "required": ["size", "count", "extra", "to", "keys"],
        "$defs": {"Place": {"type": "object", "properties": {}}},
    }
    odd = {"type": "object", "properties": {"at": {"type": "string", "pattern": "x"}}}
    odd["required"] = ["at"]
    tools = tuple(
        {"type": "function", "name": name, "parameters": parameters}
        for name, parameters in (("odd", odd), ("order", schema))
    )

    [call] = tool_calls(tools)

    assert isinstance(call, CallTool) and call.name == "order"
    expected = {"size": "small", "count": 2, "extra": "example", "to": {}}
    assert call.arguments == {**expected, "keys": "1w4#"}


def context(turn: int, *tools: Event, **more: Any) -> TurnContext:
    """The model's knowledge at the caller's nth turn."""
    known: dict[str, Any] = {
        "number": turn + 1,
        "trigger": "speech",
        "instructions": "",
        "tools": tools,
        "caller_turns": turn,
        "seconds": 1.0,
        "transcript": None,
        "text": None,
        "answered": (),
        "overrides": {},
    }
    return TurnContext(**{**known, **more})


def function(name: str) -> Event:
    return {"type": "function", "name": name, "parameters": {"type": "object"}}


def names(turn: Turn) -> list[str]:
    return [it.name for it in turn if isinstance(it, CallTool | CallMcp)]


LOOK, SUM = function("look_up"), function("sum")
HAND_OVER, HANG_UP = function("transfer_to_billing"), function("hang_up")


def test_default_answers_call_every_tool_once() -> None:
    """One tool per turn: tools, handoffs, and last the tools that end the call; also
    those of the agent that was handed over to."""
    talk = DefaultAnswers()
    front = (HANG_UP, HAND_OVER, LOOK)
    billing = (HANG_UP, LOOK, SUM)

    tried = [names(talk.answer(context(turn, *front))) for turn in (1, 2, 3)]
    tried += [names(talk.answer(context(turn, *billing))) for turn in (4, 5, 6)]

    assert tried == [[], ["look_up"], ["transfer_to_billing"], ["sum"], ["hang_up"], []]
    assert talk.answer(context(7, *billing)) == [SayText("That was all.")]


def test_default_answers_without_memory_call_one_tool_per_turn() -> None:
    """Without a memory of the call the caller's turn number selects the tool."""
    tried = [
        names(default_answer(context(turn, HANG_UP, LOOK))) for turn in (1, 2, 3, 4)
    ]

    assert tried == [[], ["look_up"], ["hang_up"], []]
    assert names(default_answer(context(2))) == []


def test_default_answers_speak_about_results() -> None:
    """Results are spoken when the client requests a response, not otherwise; after a
    handoff the new agent says its name."""
    output = ToolOutput("call_1", "look_up", "it is blue")
    through = ToolOutput("call_2", "transfer_to_billing", "{}")

    def said(**more: Any) -> str:
        [words] = default_answer(context(1, **more))
        assert isinstance(words, SayText)
        return words.text

    assert said(answered=(output,), trigger="client") == (
        "The tool look up answered: it is blue"
    )
    assert said(answered=(through,), trigger="client") == "You speak with billing now."
    assert said(answered=(output,)).startswith("You spoke for about one second.")
    assert said(trigger="client", text="Hi.") == "I have read: Hi."
    assert said(trigger="client") == "All right."
    assert said(trigger="idle") == "Are you still there?"


def test_default_answers_reach_every_hosted_server() -> None:
    """The demo of an agent with hosted MCP tools needs no MCP server."""
    config = {"type": "mcp", "server_label": "tables", "server_url": "https://x.y"}
    chosen = config | {"allowed_tools": {"tool_names": ["book"]}}

    [tool] = AnyMcpServer()["tables"]
    assert "anything" in AnyMcpServer() and tool["name"] == "look_up"
    assert names(DefaultAnswers().answer(context(2, config))) == ["look_up"]
    assert names(DefaultAnswers().answer(context(2, chosen))) == ["book"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "half a second"),
        (1.1, "one second"),
        (2.4, "two and a half seconds"),
        (3.0, "three seconds"),
        (42.0, "42 seconds"),
    ],
)
def test_durations_are_spoken(seconds: float, words: str) -> None:
    """The caller hears in words how long they spoke."""
    assert about(seconds) == words


async def test_the_agents_sdk_talks_to_it() -> None:
    """An agent written with openai-agents runs on the fake as on the real model."""
    from agents import function_tool
    from agents.realtime import RealtimeAgent, RealtimeRunner

    called: list[str] = []

    @function_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        called.append(city)
        return "sunny"

    expert = RealtimeAgent(name="expert", instructions="You are the expert.")
    agent = RealtimeAgent(
        name="front",
        instructions="You are the front desk.",
        tools=[get_weather],
        handoffs=[expert],
    )
    turns: list[Turn] = [
        [SayText("Good morning.")],
        [CallTool("get_weather", {"city": "Paris"})],
        [SayText("Sunny."), CallTool("transfer_to_expert", {})],
        [SayText("I am the expert.")],
    ]
    behaviour = Behaviour(turns=turns, user_texts=["Weather, please"], **QUICK)
    seen: dict[str, int] = {}
    errors: list[Any] = []
    async with ModelServer(behaviour, api_key="x") as server:
        settings: dict[str, Any] = {
            "input_audio_format": "g711_ulaw",
            "output_audio_format": "g711_ulaw",
            "turn_detection": {"type": "server_vad", "interrupt_response": True},
        }
        run: Any = {"model_settings": settings}
        runner = RealtimeRunner(agent, config=run)
        config: Any = {"url": server.url, "api_key": "x"}
        async with asyncio.timeout(10), await runner.run(model_config=config) as talk:
            await talk.send_message("Hello?")
            ended = 0
            async for event in talk:
                seen[event.type] = seen.get(event.type, 0) + 1
                if event.type == "error":
                    errors.append(event.error)
                if event.type == "agent_end":
                    ended += 1
                    if ended == 1:
                        await talk.send_audio(speech() + b"\xff" * 8000)
                    if ended == 4:
                        break
            session = server.sessions[0]
            assert session.session["instructions"] == "You are the expert."
            assert session.session["audio"]["output"]["format"] == PCMU

    assert called == ["Paris"] and not errors and not session.errors_sent
    assert seen["handoff"] == 1 and seen["tool_end"] == 1 and seen["audio"] > 5
    assert session.speech_started_at and session.caller_turns == 1
    assert [r.status for r in session.responses] == ["completed"] * 4
    for _, sent in session.received:
        CLIENT_EVENTS.validate_python(sent)


async def test_many_calls_speak_at_once() -> None:
    """Each of a hundred callers hears the whole answer."""
    behaviour = Behaviour(turns=[[PlayRuler(2000)]], think_seconds=0.05, speed=8)
    observed: list[str] = []
    hook: Callable[[ModelSession, str, Event], None] = lambda _, way, event: (  # noqa: E731
        observed.append(way) if event["type"] == "response.created" else None
    )
    async with ModelServer(behaviour, keep_sessions=50, on_event=hook) as server:

        async def call() -> bytes:
            async with Client.of(server) as client:
                await client.until("session.created")
                await client.configure()
                await client.send(type="response.create")
                await client.until("response.done")
                return client.audio()

        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call()) for _ in range(100)]

    assert {task.result() for task in calls} == {ruler(1, 2000)}
    assert len(server.sessions) == 50 and observed == ["sent"] * 100
