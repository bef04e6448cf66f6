"""`bridge check --dial`: most mistakes between a deployment and its model's server are
found before the first caller."""

import asyncio
from typing import Any

import pytest
from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.realtime import RealtimeAgent

from bridge.agent.loader import AgentSource
from bridge.app.routes import Route, Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.call import dial_check
from bridge.call.dial_check import CheckedSession, check_sessions
from bridge.sim.model import Behaviour, Fail, ModelServer, SayText
from bridge.sim.realtime import dialects
from tests.cli.test_commands import bridge_here


@function_tool
def lookup(order: str) -> str:
    return order


AGENT: RealtimeAgent[Any] = RealtimeAgent(
    name="desk", instructions="You are the desk.", tools=[lookup]
)


async def checked(
    behaviour: Behaviour | None = None,
    agent: AgentSource = AGENT,
    routes: Routes | None = None,
    **server: Any,
) -> list[CheckedSession]:
    conf = Settings(host="127.0.0.1", port=0, insecure=True)
    code = UserCode(agent, routes or Routes(defaults=Route()))
    async with (
        ModelServer(behaviour, **server) as model,
        start_services(conf, code, model.url) as services,
    ):
        found = await check_sessions(services)
        for _ in range(100):
            if not model.active:
                break
            await asyncio.sleep(0.02)
        assert not model.active, "the session is closed"
    return found


async def test_a_session_that_the_server_takes() -> None:
    """It names the agent, the model and the voice, once for each route."""
    routes = Routes(routes=(Route(name="sales"), Route()), defaults=Route())
    found = await checked(routes=routes)

    assert [it.route for it in found] == ["sales", "route 2", "defaults"]
    for it in found:
        assert it.problems == []
        assert it.round_trip is not None
        assert (it.agent, it.model, it.voice) == ("desk", "gpt-realtime-2.1", "marin")
        assert "agent desk, model gpt-realtime-2.1, voice marin" in it.text


async def passed(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)


GUARDED: RealtimeAgent[Any] = RealtimeAgent(
    name="desk",
    handoffs=[
        RealtimeAgent(
            name="clerk", output_guardrails=[OutputGuardrail(passed, "reads")]
        )
    ],
)


async def test_an_agent_whose_guardrails_can_read() -> None:
    """It is asked for one answer, in which no tool runs; others are not."""
    created: list[Any] = []

    def hears(event: dict[str, Any]) -> dict[str, Any]:
        if event.get("type") == "response.create":
            created.append(event["response"])
        return event

    behaviour = Behaviour(fallback=[SayText("Yes.")], hears=hears, speed=20)
    for agent in (AGENT, GUARDED):
        [found] = await checked(behaviour, agent)
        assert found.problems == []
    [asked] = created
    assert asked["tool_choice"] == "none"


async def broken(call: Any) -> RealtimeAgent[Any]:
    raise ValueError("no such customer")


def forgets(event: dict[str, Any]) -> list[dict[str, Any]]:
    if event["type"] == "session.updated":
        return [{**event, "session": {"type": "realtime", "output_modalities": []}}]
    return [event]


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "refused": (
        {"behaviour": Behaviour(reject_update="unknown_parameter")},
        ["refused: unknown_parameter: This session.update is rejected."],
    ),
    "a wrong key": ({"api_key": "right"}, ["refused: HTTP 401"]),
    "text": (
        {"behaviour": Behaviour(says=dialects.text_only)},
        ["not confirmed: output_modalities (['text'])"],
    ),
    "PCM": (
        {"behaviour": Behaviour(ignore_formats=True)},
        [
            "not confirmed: input format ('audio/pcm')",
            "not confirmed: output format ('audio/pcm')",
        ],
    ),
    "closed": (
        {"behaviour": Behaviour(close_after=(0.0, 1011, ""), delay_updated=9)},
        ["the connection was lost: lost, close code 1011"],
    ),
    "forgets": (
        {"behaviour": Behaviour(says=forgets)},
        ["not confirmed: instructions", "not confirmed: tools lookup"],
    ),
    "silent": (
        {"behaviour": Behaviour(says=dialects.silent_on_updates)},
        ["the server never confirmed session.update"],
    ),
    "no words": (
        {
            "behaviour": Behaviour(
                fallback=[SayText("Yes.")], says=dialects.wordless, speed=20
            ),
            "agent": GUARDED,
        },
        ["guardrails have nothing to read: answer with audio and without transcript"],
    ),
    "no audio": (
        {"behaviour": Behaviour(fallback=[]), "agent": GUARDED},
        ["the answer has no audio"],
    ),
    "no answer": (
        {"behaviour": Behaviour(fallback=[Fail("server_error")]), "agent": GUARDED},
        ["no answer: server_error"],
    ),
    "late answer": (
        {"behaviour": Behaviour(think_seconds=60), "agent": GUARDED},
        ["no answer came to: say yes"],
    ),
    "the user's code": ({"agent": broken}, ["no such customer"]),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_session_with_mistakes(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mistake is named."""
    monkeypatch.setattr(dial_check, "SECONDS", 2.0)
    server, expected = CASES[case]
    [found] = await checked(**server)

    text = "\n".join(found.problems)
    for problem in expected:
        assert problem in text


def test_the_command_dials(tmp_path: Any) -> None:
    """With the bundled fake model it needs no key."""
    done = bridge_here(
        "check", "--dial", folder=tmp_path, BRIDGE_INSECURE="1", COLUMNS="200"
    )

    assert "session of defaults opened" in done.stdout, done.stdout + done.stderr
    assert "configured in" in done.stdout
