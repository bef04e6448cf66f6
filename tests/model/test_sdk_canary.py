"""What the bridge relies on in openai-agents beyond its public names.

One test for each; its docstring says what would break on a call. A new minor version
of the SDK is taken when all of them pass on it (pyproject.toml pins the minor).
"""

import asyncio
import functools
import inspect
import json
from typing import Any

import pytest
from agents import (
    GuardrailFunctionOutput,
    OutputGuardrail,
    _debug,
    function_tool,
)
from agents.exceptions import UserError
from agents.mcp import MCPUtil
from agents.realtime import (
    RealtimeAgent,
    RealtimeModelEvent,
    RealtimeModelSendRawMessage,
    RealtimeModelSendUserInput,
    RealtimeRunner,
    RealtimeSession,
    openai_realtime,
    realtime_handoff,
)
from agents.realtime.model_events import RealtimeModelRawServerEvent
from agents.realtime.model_inputs import RealtimeModelSendInterrupt
from agents.realtime.openai_realtime import (
    OpenAIRealtimeWebSocketModel,
    _ConversionHelper,
)
from agents.realtime.session import _PendingToolOutputSendError
from agents.tool import _FailureHandlingFunctionToolInvoker
from agents.version import __version__

from bridge.agent.tool_definitions import explained
from bridge.model.dialects import REQUIRED
from bridge.model.local_mcp import reachable
from bridge.model.results import background_result
from bridge.model.sdk_events import UNREAD
from bridge.model.sdk_model import PhoneModel
from tests.support.sdk_session import EVENTS, TARGET, Connection, sample, talk

MULAW = {"type": "audio/pcmu"}


def test_the_sdk_has_the_tested_version() -> None:
    """With another minor version the behaviour on calls is unknown."""
    assert __version__.startswith("0.24.")


# --- the connection ---


async def test_the_sdk_connects_through_our_method() -> None:
    """Otherwise the SDK dials by itself and no audio reaches the caller."""
    asked: list[dict[str, Any]] = []
    connection = Connection()

    class Model(OpenAIRealtimeWebSocketModel):
        async def _create_websocket_connection(  # type: ignore[override]
            self, **given: Any
        ) -> Any:
            asked.append(given)
            return connection

    model = Model()
    await model.connect(
        {
            "url": TARGET.address,
            "headers": {"api-key": "k"},
            "initial_model_settings": TARGET.settings,
        }
    )
    await model.close()

    assert asked == [
        {"url": TARGET.address, "headers": {"api-key": "k"}, "transport_config": None}
    ]
    assert connection.sent_types() == ["session.update"]
    assert connection.closed == 1
    assert connection.strange == []


def test_our_method_has_the_sdks_signature() -> None:
    """With another parameter no call gets a model."""
    theirs = inspect.signature(
        OpenAIRealtimeWebSocketModel._create_websocket_connection
    ).parameters
    ours = inspect.signature(PhoneModel._create_websocket_connection).parameters

    assert list(ours) == list(theirs)
    assert list(theirs) == ["self", "url", "headers", "transport_config"]
    assert all(ours[name].kind == theirs[name].kind for name in theirs)


async def test_the_sdk_uses_three_methods_of_a_connection() -> None:
    """The Wire has no others: the SDK would fail in the middle of a call."""

    @function_tool
    async def get_weather(city: str) -> str:
        """The weather."""
        return "sunny"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[get_weather])
    async with talk(agent) as it:
        it.connection.says(*EVENTS)
        await it.connection.settled()
        await it.session.send_message("hello")
        await it.session.update_agent(RealtimeAgent(name="other"))
        await it.session.interrupt()
        await it.connection.settled()

    assert it.connection.closed >= 1
    assert it.connection.strange == []
    assert it.connection.dialled == [(TARGET.address, {})]


async def test_headers_are_passed_unchanged() -> None:
    """A model of another vendor is reached without an OpenAI key."""
    async with talk() as it:
        assert it.connection.dialled == [(TARGET.address, {})]


async def test_the_session_uses_the_given_model() -> None:
    """A session on another model instance would have no wire."""
    connection = Connection()
    model = PhoneModel(connection.dial, lambda by, answer: None, lambda it: it)
    runner = RealtimeRunner(RealtimeAgent(name="desk"), model=model)

    session = await runner.run(model_config={"url": "ws://x", "headers": {}})

    assert session.model is model


async def test_the_end_of_the_connection_ends_the_session() -> None:
    """Otherwise a call whose model is gone is silent until the caller hangs up."""
    async with talk() as it:
        it.connection.ends()
        await it.connection.settled()
        async with asyncio.timeout(1):
            await it.listen()  # ends by itself

    assert it.heard("error") == []


async def test_every_event_for_the_sdk_is_known_to_it() -> None:
    """An event that the SDK cannot validate would be an error in the call's record."""
    assert {event["type"] for event in EVENTS} <= REQUIRED.keys()
    adapter = openai_realtime.get_server_event_type_adapter()
    for event in EVENTS:
        adapter.validate_python(event)


# --- the session as it is configured ---


class Emitted:
    """A listener of a model. Errors are compared by their type only."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def on_event(self, event: RealtimeModelEvent) -> None:
        if event.type == "error":
            self.events.append(type(event.error))
        else:
            self.events.append(event)


DELTA = sample("response.output_audio_transcript.delta")


@pytest.mark.parametrize(
    "event",
    [
        DELTA,
        {**DELTA, "of_a_later_version": {"a": 1}},
        *(
            {name: DELTA[name] for name in DELTA if name != missing}
            for missing in DELTA
        ),
        *({**DELTA, name: None} for name in DELTA),
        *({**DELTA, name: ["?"]} for name in DELTA),
        *({**DELTA, name: "7"} for name in DELTA if name != "type"),
        *({**DELTA, name: 1.0} for name in DELTA),
        {**DELTA, "output_index": True},
    ],
)
async def test_a_transcript_delta_is_what_the_sdk_makes_of_it(event: Any) -> None:
    """The bridge makes the SDK's event itself. With another one, the history, the
    output guardrails and the user's listeners would miss words."""
    theirs, ours = Emitted(), Emitted()
    sdk = OpenAIRealtimeWebSocketModel()
    model = PhoneModel(Connection().dial, lambda by, answer: None, lambda it: it)
    sdk.add_listener(theirs)
    model.add_listener(ours)

    if isinstance(event.get("type"), str):
        await sdk._handle_ws_event(dict(event))
    await model._handle_ws_event(dict(event))

    if isinstance(event.get("type"), str):
        assert ours.events == theirs.events
    else:  # the SDK raises, and ends the session
        assert ours.events


async def test_a_raw_event_is_only_queued_by_the_session() -> None:
    """Nobody reads the queue's raw events unless a listener asks for them, so the
    session is not given them: it must do nothing else with them."""
    async with talk() as it:
        await it.connection.settled()
        before, state = len(it.events), dict(vars(it.session))
        raw = RealtimeModelRawServerEvent(data={"type": "rate_limits.updated"})
        await it.session.on_event(raw)
        assert dict(vars(it.session)) == state
        await it.connection.settled()

        assert [event.type for event in it.events[before:]] == ["raw_model_event"]


async def test_some_events_are_nothing_but_raw_events() -> None:
    """Unless somebody listens to raw events, the SDK is not given them."""
    unread = [event for event in EVENTS if event["type"] in UNREAD]
    assert {event["type"] for event in unread} == UNREAD
    async with talk() as it:
        for event in EVENTS:
            it.connection.says(event)
            await it.connection.settled()
            before, sent = len(it.events), len(it.connection.sent)
            history = [item.model_copy(deep=True) for item in it.session._history]
            if event["type"] not in UNREAD:
                continue
            it.connection.says(event)
            await it.connection.settled()

            new = [each.type for each in it.events[before:]]
            assert new == ["raw_model_event"], event["type"]
            assert it.session._history == history
            assert it.connection.sent[sent:] == []


def test_a_listener_of_the_model_itself_is_noticed() -> None:
    """It gets raw events, too."""
    model = PhoneModel(Connection().dial, lambda by, answer: None, lambda it: it)
    assert not model.has_other_listeners

    model.add_listener(Emitted())

    assert model.has_other_listeners


async def test_the_first_update_has_our_configuration() -> None:
    """The SDK's default format is PCM, which would be noise on the phone."""
    async with talk() as it:
        [update] = it.connection.sent

    session = update["session"]
    assert update["type"] == "session.update"
    assert session["type"] == "realtime"
    assert session["model"] == "m"  # the model named in the url wins
    assert session["output_modalities"] == ["audio"]
    assert session["instructions"] == "Be kind."
    assert session["audio"]["input"] == {
        "format": MULAW,
        "transcription": None,
        "turn_detection": {
            "type": "semantic_vad",
            "create_response": True,
            "interrupt_response": True,
        },
    }
    assert session["audio"]["output"] == {"format": MULAW, "voice": "marin"}
    assert "tracing" not in session


async def test_a_handoff_keeps_format_and_voice() -> None:
    """After a handoff the audio is not noise, and the voice is the same."""
    async with talk() as it:
        await it.session.update_agent(RealtimeAgent(name="b", instructions="Be brief."))
        first, second = it.connection.sent

    assert second["session"]["audio"] == first["session"]["audio"]
    assert second["session"]["instructions"] == "Be brief."


async def test_tracing_can_be_switched_off() -> None:
    """A server of another vendor is not sent a field that it refuses."""
    async with talk() as it:
        it.connection.says(sample("session.created"))
        await it.connection.settled()

        assert it.connection.sent_types() == ["session.update"]


# --- interruption is done by the bridge ---


async def test_the_sdk_does_nothing_when_the_caller_interrupts() -> None:
    """The SDK would truncate at a position it does not know: the model would believe
    that the caller heard nothing."""
    async with talk() as it:
        it.connection.says(
            sample("session.updated"),
            sample("response.created"),
            sample("response.output_item.added"),
            sample("response.output_audio_transcript.delta"),
            sample("input_audio_buffer.speech_started"),
        )
        await it.connection.settled()

        assert it.connection.sent_types() == ["session.update"]
        assert it.heard("audio_interrupted") == []
        assert it.interrupts == []


async def test_listeners_are_told_of_an_interruption() -> None:
    """A program that shows who speaks learns that the agent was interrupted."""
    async with talk() as it:
        await it.model.tell_interrupted("item_9", 1)
        await it.connection.settled()

        [event] = it.heard("audio_interrupted")
        assert (event.item_id, event.content_index) == ("item_9", 1)


def test_an_interrupt_has_the_fields_that_are_read() -> None:
    """Without them a guardrail's interruption looks like a mere cancel."""
    event = RealtimeModelSendInterrupt()

    assert event.cancel_response_only is False
    assert event.response_id is None


async def test_the_users_interrupt_reaches_the_call() -> None:
    """session.interrupt() in user code stops the agent on the phone."""
    async with talk() as it:
        await it.session.interrupt()

        assert it.interrupts == [("application", None)]
        assert it.connection.sent_types() == ["session.update"]


async def test_an_answer_that_is_only_cancelled_stays_audible() -> None:
    """Audio that was generated already is still played; only generation stops."""
    async with talk() as it:
        created = sample("response.created")
        it.connection.says(created)
        await it.connection.settled()
        answer = created["response"]["id"]

        await it.model.send_event(
            RealtimeModelSendInterrupt(response_id=answer, cancel_response_only=True)
        )

        assert it.interrupts == []
        assert it.connection.sent[-1] == {
            "type": "response.cancel",
            "response_id": answer,
        }


async def _bad_word(context: Any, agent: Any, output: str) -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(
        output_info=None, tripwire_triggered="forbidden" in output
    )


BAD_WORD = OutputGuardrail(guardrail_function=_bad_word, name="bad word")


async def test_a_guardrail_interrupts_the_call() -> None:
    """Forbidden speech is cleared at Twilio, where it is queued."""
    agent: RealtimeAgent[Any] = RealtimeAgent(name="a", output_guardrails=[BAD_WORD])
    async with talk(agent, guardrails_settings={"debounce_text_length": 1}) as it:
        delta = sample("response.output_audio_transcript.delta", delta="forbidden")
        it.connection.says(sample("response.created"), delta)
        await it.connection.settled()

        assert it.interrupts == [("guardrail", delta["response_id"])]
        assert len(it.heard("guardrail_tripped")) == 1


async def test_the_sdk_continues_after_our_cancel() -> None:
    """The SDK does not see our response.cancel; after the response's end it requests
    responses again."""
    async with talk() as it:
        it.connection.says(sample("response.created"))
        await it.connection.settled()
        await it.model.send_event(RealtimeModelSendUserInput(user_input="and now?"))
        await it.connection.settled()
        assert "response.create" not in it.connection.sent_types()

        answer = sample("response.created")["response"]["id"]
        done = sample("response.done")
        done["response"] = {**done["response"], "id": answer, "status": "cancelled"}
        it.connection.says(done)
        await it.connection.settled()

        assert it.connection.sent_types()[-1] == "response.create"


async def test_audio_that_is_handed_on_would_wake_the_sdks_own_interruption() -> None:
    """The reason why no audio delta may reach the SDK: it would truncate against the
    core."""
    async with talk() as it:
        it.connection.says(
            sample("session.updated"),
            sample("response.created"),
            sample("response.output_audio.delta"),
            sample("input_audio_buffer.speech_started"),
        )
        await it.connection.settled()

        assert "conversation.item.truncate" in it.connection.sent_types()


def test_the_sdk_does_not_log_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller's words are in no log file: by default the SDK logs no data."""
    monkeypatch.delenv("OPENAI_AGENTS_DONT_LOG_MODEL_DATA", raising=False)
    monkeypatch.delenv("OPENAI_AGENTS_DONT_LOG_TOOL_DATA", raising=False)

    assert _debug._load_dont_log_model_data() is True
    assert _debug._load_dont_log_tool_data() is True


# --- tools and the end ---


async def test_a_tools_result_is_sent_over_the_wire() -> None:
    """The agent says what a tool found."""

    @function_tool
    async def get_weather(city: str) -> str:
        """The weather."""
        return f"sunny in {city}"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[get_weather])
    async with talk(agent) as it:
        it.connection.says(tool_call())
        await it.connection.settled()

        [output] = [
            event["item"]
            for event in it.connection.sent
            if event["type"] == "conversation.item.create"
        ]
        assert output["type"] == "function_call_output"
        assert output["output"] == "sunny in Paris"
        assert it.connection.sent_types()[-1] == "response.create"
        assert [event.tool.name for event in it.heard("tool_start")] == ["get_weather"]
        assert [event.tool.name for event in it.heard("tool_end")] == ["get_weather"]


async def test_a_tool_ends_with_the_call() -> None:
    """A tool of a call that has ended is cancelled, and no response is requested."""
    cancelled = asyncio.Event()
    running = asyncio.Event()

    @function_tool
    async def get_weather(city: str) -> str:
        """The weather."""
        running.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[get_weather])
    async with talk(agent) as it:
        it.connection.says(tool_call())
        async with asyncio.timeout(1):
            await running.wait()

    assert cancelled.is_set()
    assert it.connection.closed == 1
    assert it.connection.sent_types() == ["session.update"]


async def test_a_session_may_be_closed_twice() -> None:
    """The end of a call is never an error, whichever side ends it."""
    async with talk() as it:
        await it.session.close()
        await it.session.close()

    assert it.connection.closed == 1


async def test_the_users_raw_events_reach_the_model() -> None:
    """A client event of user code is sent as it was written."""
    async with talk() as it:
        item = {"type": "message", "role": "user", "content": []}
        await it.model.send_event(
            RealtimeModelSendRawMessage(
                message={
                    "type": "conversation.item.create",
                    "other_data": {"item": item},
                }
            )
        )

        assert it.connection.sent[-1]["type"] == "conversation.item.create"


async def test_a_background_result_passes_the_sdk_unchanged() -> None:
    """background_result() is a subclass of str: the SDK must hand on that object."""

    @function_tool
    async def get_weather(city: str) -> str:
        """The weather."""
        return background_result("noted")

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[get_weather])
    async with talk(agent) as it:
        it.connection.says(tool_call())
        await it.connection.settled()

        assert it.connection.sent[-1]["item"]["output"] == "noted"
        assert "response.create" not in it.connection.sent_types()


# --- what PhoneSession overrides and reads ---


def test_the_sdk_handles_tool_calls_in_our_method() -> None:
    """Otherwise a tool that raises ends the call, as in the SDK."""
    theirs = inspect.signature(RealtimeSession._handle_tool_call).parameters
    (_, event, *more) = theirs.values()

    assert inspect.iscoroutinefunction(RealtimeSession._handle_tool_call)
    assert event.name == "event" and event.kind is event.POSITIONAL_OR_KEYWORD
    assert all(each.kind is each.KEYWORD_ONLY for each in more)
    assert issubclass(_PendingToolOutputSendError, Exception)


@pytest.mark.parametrize("side_by_side", [True, False])
async def test_every_tool_call_passes_our_method(side_by_side: bool) -> None:
    """With and without async_tool_calls, with and without an approval."""
    handled: list[str] = []

    class Session(RealtimeSession):
        async def _handle_tool_call(self, event: Any, **more: Any) -> None:
            handled.append(event.name)
            await super()._handle_tool_call(event, **more)

    @function_tool(needs_approval=True)
    async def get_weather(city: str) -> str:
        """The weather."""
        return f"sunny in {city}"

    connection = Connection()
    session = Session(
        PhoneModel(connection.dial, lambda by, answer: None, lambda it: it),
        RealtimeAgent(name="desk", tools=[get_weather]),
        None,
        {"url": "ws://x", "headers": {}, "initial_model_settings": {}},
        {"async_tool_calls": side_by_side},
    )
    async with session:
        call = tool_call()
        connection.says(call)
        await connection.settled()
        assert handled == ["get_weather"]

        await session.approve_tool_call(call["item"]["call_id"])
        await connection.settled()

    assert handled == ["get_weather", "get_weather"]
    assert "function_call_output" in str(connection.sent)


async def test_the_session_fields_we_read_exist() -> None:
    """The agent in charge, its tools, and the history that the bridge bounds."""

    @function_tool(timeout=3.0)
    async def get_weather(city: str) -> str:
        """The weather."""
        return f"sunny in {city}"

    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", tools=[get_weather])
    async with talk(agent) as it:
        snapshot = it.session._current_dispatch_snapshot
        assert it.session._current_agent is agent
        assert snapshot and list(snapshot.tools) == [get_weather]
        assert get_weather.timeout_seconds == 3.0

        added = sample("response.output_item.added")
        it.connection.says(added)
        await it.connection.settled()
        assert [item.item_id for item in it.session._history] == [added["item"]["id"]]

        it.session._history = []
        done = sample("response.output_item.done", item=added["item"])
        it.connection.says(done)
        await it.connection.settled()
        assert len(it.session._history) == 1


async def test_two_events_put_transcripts_into_the_history() -> None:
    """Only these put an answer's text into the SDK's history; PhoneSession corrects it
    to the heard text after both."""
    texts: list[tuple[str, str]] = []

    class Session(RealtimeSession):
        async def on_event(self, event: RealtimeModelEvent) -> None:
            before = str(self._history)
            await super().on_event(event)
            if str(self._history) != before:
                item: Any = getattr(event, "item", event)
                texts.append((event.type, item.item_id))

    connection = Connection()
    session = Session(
        PhoneModel(connection.dial, lambda by, answer: None, lambda it: it),
        RealtimeAgent(name="desk"),
        None,
        {"url": "ws://x", "headers": {}, "initial_model_settings": {}},
    )
    answer = "item_a1"
    async with session:
        connection.says(*EVENTS)
        await connection.settled()

    kinds = {kind for kind, item in texts if item == answer}
    assert "transcript_delta" in kinds
    assert kinds <= {"transcript_delta", "item_updated", "item_deleted"}


# --- what the loader and local_mcp read ---


def test_the_runner_fields_we_read_exist() -> None:
    """A RealtimeRunner in place of an agent: its starting agent and its
    configuration."""
    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk")
    plain = RealtimeRunner(agent)
    runner = RealtimeRunner(agent, config={"async_tool_calls": False})

    assert runner._starting_agent is agent
    assert runner._config == {"async_tool_calls": False} and plain._config is None
    assert type(runner._model) is OpenAIRealtimeWebSocketModel


def test_the_agent_of_a_handoff_is_found() -> None:
    """Its local MCP servers are connected before it takes over: it has to be found in
    the closure of the SDK's own function."""
    billing: RealtimeAgent[Any] = RealtimeAgent(name="billing")
    handoff = realtime_handoff(billing)

    assert isinstance(handoff.on_invoke_handoff, functools.partial)
    [invoke] = handoff.on_invoke_handoff.args
    assert billing in inspect.getclosurevars(invoke).nonlocals.values()
    agent: RealtimeAgent[Any] = RealtimeAgent(name="desk", handoffs=[handoff])
    assert reachable(agent) == [agent, billing]


def tool_call() -> dict[str, Any]:
    """The model calls get_weather for Paris."""
    event = next(
        event
        for event in EVENTS
        if event["type"] == "response.output_item.done"
        and event["item"]["type"] == "function_call"
    )
    arguments = json.dumps({"city": "Paris"})
    item = {**event["item"], "name": "get_weather", "arguments": arguments}
    return {**event, "item": item}


@pytest.mark.parametrize(
    "name",
    ["_create_websocket_connection", "_emit_event", "_cancel_response", "send_event"],
)
def test_the_private_methods_we_use_exist(name: str) -> None:
    """Otherwise a renamed method would fail in the middle of a call."""
    assert inspect.iscoroutinefunction(getattr(OpenAIRealtimeWebSocketModel, name))


def test_a_cancel_names_its_answer_by_keyword() -> None:
    """Otherwise a response that must stop goes on."""
    cancel = inspect.signature(OpenAIRealtimeWebSocketModel._cancel_response)
    answer = cancel.parameters["response_id"]

    assert answer.kind is inspect.Parameter.KEYWORD_ONLY
    assert answer.default is None


def test_the_sdk_makes_one_adapter_for_each_type() -> None:
    """Otherwise each raw event of one call's code stops all calls for 26 ms."""
    raw = RealtimeModelSendRawMessage({"type": "response.create"})
    convert = _ConversionHelper.try_convert_raw_message
    assert convert(raw)
    made = openai_realtime.TypeAdapter.cache_info()  # type: ignore[attr-defined]
    assert convert(raw) and convert(raw)
    again = openai_realtime.TypeAdapter.cache_info()  # type: ignore[attr-defined]

    assert again.misses == made.misses and again.hits == made.hits + 2


# --- tools that fail ---


async def test_the_hooks_of_a_failing_tool_exist() -> None:
    """Otherwise nobody hears of a tool whose exception the SDK turned into a text."""

    @function_tool
    def work() -> str:
        return ""

    invoker = work.on_invoke_tool
    assert isinstance(invoker, _FailureHandlingFunctionToolInvoker)
    assert invoker._function_tool is work and callable(invoker._on_handled_error)
    source = inspect.getsource(_FailureHandlingFunctionToolInvoker.__call__)
    assert "self._on_handled_error(self._function_tool, e, input, ctx)" in source
    source = inspect.getsource(MCPUtil._extract_custom_data)
    assert 'getattr(server, "custom_data_extractor", None)' in source
    assert "is_error=" in source


def test_the_frames_of_a_refused_tool_have_its_name() -> None:
    """Otherwise an author does not learn which tool and argument the SDK refuses."""

    def book(order: dict[str, str]) -> None: ...

    with pytest.raises(UserError) as refused:
        function_tool(book)

    told = explained(refused.value)
    assert told is not None and told.startswith(f"Tool book ({__file__}:")
    assert "its argument `order: dict[str, str]` may have any keys" in told
    assert explained(ValueError()) is None


# --- limits ---


async def test_the_private_fields_our_limits_use_exist() -> None:
    """Otherwise endless transcripts, endless tool calls and malformed events reach a
    call again."""
    async with talk() as it:
        assert it.session._item_transcripts == {}
        assert it.session._pending_tool_calls == {}
    source = inspect.getsource(OpenAIRealtimeWebSocketModel._listen_for_messages)
    assert "await self._handle_ws_event(parsed)" in source
    source = inspect.getsource(OpenAIRealtimeWebSocketModel._handle_ws_event)
    assert "RealtimeModelErrorEvent(error=e)" in source
