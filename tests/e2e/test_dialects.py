"""Servers that speak the Realtime API in another form than OpenAI: tools, guardrails,
the transcript and the audio work on each."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import GuardrailFunctionOutput, OutputGuardrail, function_tool
from agents.realtime import RealtimeAgent, RealtimeRunner
from structlog.testing import capture_logs

from bridge.agent.live import LiveCall
from bridge.app.routes import ReportTarget, Route
from bridge.core import redial, sessions
from bridge.core.model_side import NO_AUDIO, NOT_CONFIRMED
from bridge.records.report import CallReport
from bridge.sim.model import Behaviour, CallTool, PlayRuler, SayText
from bridge.sim.realtime import dialects
from bridge.sim.realtime.client_events import InvalidRequestError
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import bridge
from tests.support.waiting import until
from twiml import spoken_texts

LISTEN = steps.ListenStep(quiet_seconds=0.3, timeout=8)
HANG_UP = steps.HangUpStep()
Says = Callable[[dict[str, Any]], list[dict[str, Any]]]


def all_of(*parts: Says) -> Says:
    def says(event: dict[str, Any]) -> list[dict[str, Any]]:
        events = [event]
        for part in parts:
            events = [said for each in events for said in part(each)]
        return events

    return says


SERVERS: dict[str, dict[str, Any]] = {
    "no ids": {"says": dialects.without_ids},
    "no status": {"says": dialects.without_status},
    "only ends": {"says": dialects.only_ends},
    "only output items": {"says": dialects.only_output},
    "created": {"says": dialects.created},
    "beta": {"says": dialects.beta, "hears": dialects.hears_beta},
    "beta, loose": {"says": dialects.beta, "hears": dialects.hears_beta_loosely},
    "all at once": {
        "says": all_of(
            dialects.without_status,
            dialects.only_ends,
            dialects.only_output,
            dialects.without_ids,
        )
    },
}


@pytest.mark.parametrize("server", SERVERS)
async def test_tools_guardrails_and_transcript_work(server: str) -> None:
    """The tool runs, the guardrail reads the agent's words, and the history has what
    was said and called; the audio is heard."""
    read: list[str] = []
    asked: list[str] = []
    calls: list[LiveCall] = []

    @function_tool
    def lookup(order: str) -> str:
        asked.append(order)
        return "shipped"

    def check(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        read.append(str(output))
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    async def first(call: LiveCall) -> RealtimeRunner:
        calls.append(call)
        agent: RealtimeAgent[Any] = RealtimeAgent(
            name="desk",
            tools=[lookup],
            output_guardrails=[OutputGuardrail(check, name="reads")],
        )
        often = {"guardrails_settings": {"debounce_text_length": 20}}
        return RealtimeRunner(agent, config=often)

    words = "Your order has been shipped today."
    behaviour = Behaviour(
        turns=[[CallTool("lookup", {"order": "A7"})], [SayText(words)]],
        think_seconds=0.05,
        speed=20,
        **SERVERS[server],
    )
    with capture_logs() as lines:
        async with bridge(behaviour, agent=first, greeting="Go.") as place:
            call = await place.caller().call([LISTEN, HANG_UP])
            await place.empty()

    assert asked == ["A7"]
    assert read, "the guardrail has read nothing"
    assert read[-1].startswith("Your order has been")
    assert sum(size for _, size in call.media_in) > 8_000, "1 s of mu-law"
    history = calls[0].history
    kinds = [item.kind for item in history]
    assert kinds[-3:] == ["tool_call", "tool_output", "assistant"]
    said = next(item for item in history if item.kind == "assistant")
    assert said.generated.startswith("Your order"), said
    called = next(item for item in history if item.kind == "tool_call")
    assert "A7" in called.arguments
    bad = [it for it in lines if it["event"] in ("protocol_error", "model_error")]
    assert bad == []


async def test_a_session_that_is_never_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log says why the call has no agent. With BRIDGE_MODEL_READY_ON the agent
    speaks, and the log says the same."""
    monkeypatch.setattr(sessions, "CONFIGURE_SECONDS", 0.5)
    monkeypatch.setattr(redial, "READY_SECONDS", 1.5)
    behaviour = Behaviour(turns=[[PlayRuler(300)]], says=dialects.silent_on_updates)
    for ready_on, spoken in (("session.updated", False), ("session.created", True)):
        with capture_logs() as lines:
            async with bridge(
                behaviour, greeting="Go.", model_ready_on=ready_on
            ) as place:
                call = await place.caller().call([LISTEN, HANG_UP])
                await place.empty()

        reasons = [it["reason"] for it in lines if it["event"] == "protocol_error"]
        assert set(reasons) == {NOT_CONFIRMED}, ready_on
        assert bool(read_ruler(call.heard).heard_ms) is spoken


@pytest.mark.parametrize("says", [dialects.text_only, dialects.text_only_in_beta_name])
async def test_a_session_that_answers_in_text_is_not_ready(says: Says) -> None:
    """Handled like a refused configuration: the caller hears a sentence at once, and
    the log says why."""
    with capture_logs() as lines:
        async with bridge(Behaviour(says=says)) as place:
            call = await place.caller().call([steps.WaitStep(5)])
            await place.empty()

    assert call.said_by_twilio == [spoken_texts.SORRY]
    assert [it["reason"] for it in lines if it["event"] == "protocol_error"] == [
        NO_AUDIO
    ]
    assert "ready" not in [it["event"] for it in lines]


async def test_an_answer_whose_words_never_come() -> None:
    """The guardrails of the agent read nothing: that is an error in the log, at the
    first answer."""
    behaviour = Behaviour(fallback=[PlayRuler(300)], says=dialects.wordless)
    guarded = RealtimeAgent[Any](
        name="desk", output_guardrails=[OutputGuardrail(passed, name="reads")]
    )
    with capture_logs() as lines:
        async with bridge(behaviour, agent=guarded, greeting="Go.") as place:
            await place.caller().call([LISTEN, HANG_UP])
            await place.empty()

    errors = [it for it in lines if it["log_level"] == "error"]
    assert [it["event"] for it in errors] == ["guardrails_read_nothing"]


async def test_a_session_whose_words_cannot_be_had() -> None:
    """The server says so when it confirms the session: an error in the log before any
    answer, once."""
    behaviour = Behaviour(says=dialects.beta_without_text, hears=dialects.hears_beta)
    guarded = RealtimeAgent[Any](
        name="desk", output_guardrails=[OutputGuardrail(passed, name="reads")]
    )
    with capture_logs() as lines:
        async with bridge(behaviour, agent=guarded) as place:
            await place.caller().call([steps.WaitStep(0.5), HANG_UP])
            await place.empty()

    assert place.session.responses == []
    errors = [it["event"] for it in lines if it["log_level"] == "error"]
    assert errors == ["guardrails_read_nothing"]


def passed(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)


async def test_events_that_cannot_be_used_are_named() -> None:
    """In the log once a call, with their type; a model error with its message. Both are
    in the report."""
    reports: list[CallReport] = []
    unknown = '{"type":"response.mood","event_id":"e"}'
    error = (
        '{"type":"error","event_id":"e","error":{"type":"invalid_request_error",'
        '"code":"unknown_parameter","message":"Unknown parameter: session.mood"}}'
    )
    behaviour = Behaviour(fallback=[PlayRuler(300)], garbage=[unknown, unknown, error])
    with capture_logs() as lines:
        async with bridge(
            behaviour,
            greeting="Go.",
            route=Route(report=ReportTarget(to="keep")),
            functions={"keep": reports.append},
        ) as place:
            await place.caller().call([LISTEN, HANG_UP])
            await place.empty()
            await until(lambda: reports)

    named = [it["event_type"] for it in lines if it["event"] == "protocol_error"]
    assert named == ["response.mood"]
    [told] = [it for it in lines if it["event"] == "model_error"]
    assert told["message"] == "Unknown parameter: session.mood"
    assert [(it.name, it.event_type, it.message) for it in reports[0].problems] == [
        ("protocol_error", "response.mood", ""),
        ("model_error", "", "Unknown parameter: session.mood"),
    ]


async def test_a_handoff_that_the_server_refuses() -> None:
    """The agent before stays in charge for the SDK, too: its tool works. The model is
    told, and so are the listeners."""
    asked: list[str] = []
    events: list[Any] = []
    calls: list[LiveCall] = []

    @function_tool
    def lookup(order: str) -> str:
        asked.append(order)
        return "shipped"

    def refuses(event: dict[str, Any]) -> dict[str, Any]:
        if "You are the clerk" in str(event.get("session", {}).get("instructions")):
            raise InvalidRequestError(
                "Invalid schema for function 'look'.", "invalid_function_parameters"
            )
        return event

    clerk = RealtimeAgent[Any](name="clerk", instructions="You are the clerk.")

    async def first(call: LiveCall) -> RealtimeAgent[Any]:
        calls.append(call)
        call.on(events.append, "handoff", "handoff_refused")
        return RealtimeAgent(
            name="desk",
            instructions="You are the desk.",
            tools=[lookup],
            handoffs=[clerk],
        )

    behaviour = Behaviour(
        turns=[
            [CallTool("transfer_to_clerk", {})],
            [PlayRuler(300)],
            [CallTool("lookup", {"order": "A7"})],
            [PlayRuler(300)],
        ],
        hears=refuses,
        think_seconds=0.05,
        speed=20,
    )
    async with (
        bridge(behaviour, agent=first, greeting="Go.") as place,
        asyncio.TaskGroup() as tasks,
    ):
        talk = place.caller().call([steps.WaitStep(5), HANG_UP])
        caller = tasks.create_task(talk, name="caller")
        await until(lambda: asked)
        assert calls[0].agent_name == "desk"
        told = [it for it in place.session.conversation if it.kind == "system"]
        await caller
        await place.empty()

    assert "handoff to clerk failed" in told[-1].text
    assert [(it.type, it.data["to"]) for it in events] == [
        ("handoff", "clerk"),
        ("handoff_refused", "clerk"),
    ]
    assert "You are the desk" in place.session.session["instructions"]


async def test_an_update_does_not_repeat_the_model_of_the_url() -> None:
    """A gateway maps the name in the url to its own: it refuses the alias in an
    update."""
    behaviour = Behaviour(fallback=[PlayRuler(300)])
    async with bridge(behaviour, greeting="Go.") as place:
        await place.caller().call([LISTEN, HANG_UP])
        await place.empty()
        events = [event for _, event in place.session.received]

    updates = [it["session"] for it in events if it["type"] == "session.update"]
    assert updates
    assert [it for it in updates if "model" in it] == []
