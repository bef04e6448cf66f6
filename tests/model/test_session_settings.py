"""Session settings arrive in the API's form, and mistakes are reported."""

import json
from typing import Any

import pytest
from agents.realtime.config import RealtimeSessionModelSettings
from agents.realtime.openai_realtime import (
    OpenAIRealtimeWebSocketModel,
    _ConversionHelper,
)
from openai.types.realtime import RealtimeClientEvent, RealtimeSessionCreateRequest
from openai.types.realtime.realtime_tools_config_union import Mcp
from pydantic import BaseModel, TypeAdapter, ValidationError

from bridge.model.deprecated_models import (
    DEPRECATED_MODELS,
    DEPRECATED_TRANSCRIPTION_MODELS,
)
from bridge.model.session_settings import SessionSettings, SettingsMistakes, merged
from bridge.sim.model import Behaviour
from bridge.sim.realtime.client_events import check
from tests.sim.realtime_client import QUICK, talking

PCMU = {"format": {"type": "audio/pcmu"}}
MULAW = {"audio": {"input": PCMU, "output": PCMU}}
LOGPROBS = "item.input_audio_transcription.logprobs"
SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.4,
    "prefix_padding_ms": 200,
    "silence_duration_ms": 700,
    "idle_timeout_ms": 9000,
    "create_response": True,
    "interrupt_response": False,
}
SEMANTIC_VAD = {
    "type": "semantic_vad",
    "eagerness": "low",
    "create_response": False,
    "interrupt_response": True,
}
TRANSCRIPTION = {
    "model": "gpt-transcribe",
    "language": "de",
    "languages": ["de", "en"],
    "prompt": "A call about pizza.",
    "keywords": ["Margherita"],
    "delay": "low",
}
RATIO = {
    "type": "retention_ratio",
    "retention_ratio": 0.8,
    "token_limits": {"post_instructions": 8000},
}
PROMPT = {"id": "pmpt_1", "version": "3", "variables": {"name": "Ada"}}
MCP = {
    "server_label": "crm",
    "server_url": "https://crm.example/mcp",
    "server_description": "Customers.",
    "allowed_tools": ["find", "note"],
    "authorization": "secret-token",
    "headers": {"X-Team": "phone"},
    "require_approval": "never",
    "defer_loading": False,
    "allowed_callers": ["direct"],
}


def said(**settings: Any) -> SessionSettings:
    return SessionSettings.read(settings)


def mistakes(**settings: Any) -> dict[str, str]:
    """Path of each mistake -> its message."""
    with pytest.raises(SettingsMistakes) as refused:
        SessionSettings.read(settings)
    found = {".".join(map(str, path)): text for path, text in refused.value.mistakes}
    assert len(found) == len(refused.value.mistakes), "a mistake told twice"
    return found


def sent(settings: SessionSettings) -> dict[str, Any]:
    """The `session` of a session.update, as SDK and bridge make it."""
    base: RealtimeSessionModelSettings = {"model_name": "gpt-realtime-2.1"}
    config = OpenAIRealtimeWebSocketModel()._get_session_config(
        {**base, **settings.sdk_settings()}
    )
    session = json.loads(config.model_dump_json(exclude_unset=True))
    session = merged(merged(session, settings.raw_session()), MULAW)
    event = {"type": "session.update", "session": session}
    TypeAdapter[Any](RealtimeClientEvent).validate_python(event)
    RealtimeSessionCreateRequest.model_validate(session, strict=True)
    check(event)
    return session


# ------------------------------------------------------------ what is sent to the model


@pytest.mark.parametrize(
    ("settings", "place", "arrives"),
    [
        ({"model": "gpt-realtime-2"}, "model", "gpt-realtime-2"),
        ({"voice": "cedar"}, "audio.output.voice", "cedar"),
        ({"voice": {"id": "voice_1"}}, "audio.output.voice", {"id": "voice_1"}),
        ({"speed": 1.25}, "audio.output.speed", 1.25),
        ({"modalities": ["audio"]}, "output_modalities", ["audio"]),
        ({"transcription": TRANSCRIPTION}, "audio.input.transcription", TRANSCRIPTION),
        ({"transcription": None}, "audio.input.transcription", None),
        ({"transcription": "off"}, "audio.input.transcription", None),
        (
            {"transcription": "gpt-transcribe"},
            "audio.input.transcription",
            {"model": "gpt-transcribe"},
        ),
        ({"turn_detection": SERVER_VAD}, "audio.input.turn_detection", SERVER_VAD),
        ({"turn_detection": SEMANTIC_VAD}, "audio.input.turn_detection", SEMANTIC_VAD),
        (
            {"turn_detection": {"type": "server_vad", "idle_timeout_ms": "off"}},
            "audio.input.turn_detection",
            {"type": "server_vad", "idle_timeout_ms": None},
        ),
        (
            {"turn_detection": "semantic_vad"},
            "audio.input.turn_detection",
            {"type": "semantic_vad"},
        ),
        ({"turn_detection": False}, "audio.input.turn_detection", None),
        (
            {"noise_reduction": {"type": "far_field", "strength": 0.5}},
            "audio.input.noise_reduction",
            {"type": "far_field", "strength": 0.5},
        ),
        (
            {"noise_reduction": "near_field"},
            "audio.input.noise_reduction",
            {"type": "near_field"},
        ),
        ({"noise_reduction": "off"}, "audio.input.noise_reduction", None),
        ({"tool_choice": "required"}, "tool_choice", "required"),
        ({"tool_choice": "none"}, "tool_choice", "none"),
        (
            {"tool_choice": {"type": "function", "name": "look_up"}},
            "tool_choice",
            {"type": "function", "name": "look_up"},
        ),
        (
            {"tool_choice": {"type": "mcp", "server_label": "crm", "name": "find"}},
            "tool_choice",
            {"type": "mcp", "server_label": "crm", "name": "find"},
        ),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", False),
        ({"max_output_tokens": 800}, "max_output_tokens", 800),
        ({"max_output_tokens": "800"}, "max_output_tokens", 800),
        ({"max_output_tokens": "inf"}, "max_output_tokens", "inf"),
        ({"truncation": "disabled"}, "truncation", "disabled"),
        ({"truncation": RATIO}, "truncation", RATIO),
        ({"reasoning": {"effort": "minimal"}}, "reasoning", {"effort": "minimal"}),
        ({"prompt": PROMPT}, "prompt", PROMPT),
        ({"include": [LOGPROBS]}, "include", [LOGPROBS]),
    ],
)
def test_each_setting_arrives_where_the_api_has_it(
    settings: dict[str, Any], place: str, arrives: object
) -> None:
    """The model is sent what the operator wrote, in the form that the vendor
    accepts."""
    found: Any = sent(said(**settings))
    for key in place.split("."):
        found = found[key]

    assert found == arrives


ALL: dict[str, Any] = {
    "model": "gpt-realtime-2.1",
    "voice": "cedar",
    "speed": 1.1,
    "modalities": ["audio"],
    "transcription": TRANSCRIPTION,
    "turn_detection": SERVER_VAD,
    "noise_reduction": {"type": "near_field", "strength": 0.7},
    "tool_choice": {"type": "function", "name": "look_up"},
    "parallel_tool_calls": True,
    "max_output_tokens": 4096,
    "truncation": RATIO,
    "reasoning": {"effort": "low"},
    "tracing": {"workflow_name": "calls", "group_id": "1", "metadata": {"a": 1}},
    "prompt": PROMPT,
    "include": [LOGPROBS],
    "async_tool_calls": False,
    "guardrail_debounce_chars": 40,
    "pre_approval_guardrails": True,
    "mcp": [MCP],
    "extra": {"audio": {"output": {"speed": 1.2}}},
}


async def test_a_server_accepts_all_settings_together() -> None:
    """A call with every setting in use works."""
    assert set(ALL) == set(SessionSettings.model_fields)
    session = sent(said(**ALL))

    async with talking(Behaviour(**QUICK)) as (client, server):
        await client.send(type="session.update", session=session)
        await client.until("session.updated")

        assert server.session["truncation"] == RATIO
        assert server.session["audio"]["input"]["turn_detection"] == SERVER_VAD
        assert server.session["audio"]["output"]["speed"] == 1.2
    assert "error" not in client.types()


def test_unset_fields_are_not_sent() -> None:
    """A setting that is not in the file leaves the deployment's in force."""
    nothing = SessionSettings()

    assert nothing.sdk_settings() == {} and nothing.raw_session() == {}
    assert nothing.run_config() == {} and nothing.mcp_tools() == []
    assert nothing.warnings() == {}


def test_no_audio_format_is_sent() -> None:
    """The bridge alone sets the audio format."""
    settings = json.dumps([said(**ALL).sdk_settings(), said(**ALL).raw_session()])

    assert "format" not in settings


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("choice", [{"type": "function", "name": "a"}, "auto"])
def test_a_chosen_tool_causes_no_warning(choice: Any) -> None:
    """A correct `tool_choice` writes no warning into the log of a call."""
    assert sent(said(tool_choice=choice))["tool_choice"] == choice


def test_the_run_configuration_has_the_sdks_own_settings() -> None:
    """Async tool calls and early guardrails are switches of the SDK."""
    assert said(**ALL).run_config() == {
        "async_tool_calls": False,
        "guardrails_settings": {"debounce_text_length": 40},
        "tool_execution": {"pre_approval_tool_input_guardrails": True},
    }
    assert said(async_tool_calls=True).run_config() == {"async_tool_calls": True}


@pytest.mark.parametrize(
    ("tracing", "told"),
    [
        ("off", None),
        ("auto", "auto"),
        (
            {"workflow_name": "calls", "metadata": {"team": 1}},
            {"workflow_name": "calls", "metadata": {"team": 1}},
        ),
    ],
)
def test_tracing_has_the_form_the_sdk_accepts(tracing: Any, told: Any) -> None:
    """A call is traced, or not, under the configured name."""
    settings: dict[str, Any] = dict(said(tracing=tracing).sdk_settings())

    assert settings == {"tracing": told}
    made = _ConversionHelper.convert_tracing_config(told)
    if isinstance(made, BaseModel):
        assert made.model_dump(exclude_none=True) == told
    else:
        assert made == told


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"allowed_tools": {"read_only": True, "tool_names": ["find"]}},
        {"require_approval": {"always": {"tool_names": ["note"]}, "never": {}}},
        {"type": "mcp"},
    ],
)
def test_hosted_tools_have_the_form_of_the_api(more: dict[str, Any]) -> None:
    """The model is sent the servers exactly as in the file."""
    [tool] = said(mcp=[MCP | more]).mcp_tools()

    assert tool == {"type": "mcp", **MCP, **more}
    Mcp.model_validate(tool, strict=True)


def test_a_secret_is_not_in_the_repr() -> None:
    """A traceback that shows the settings does not reveal a server's token."""
    shown = repr(said(mcp=[MCP]))

    assert "secret-token" not in shown and "X-Team" not in shown
    assert "crm.example" not in shown


# ------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("upper", "lower", "both"),
    [
        ({}, {"voice": "ash"}, {"voice": "ash"}),
        ({"voice": "cedar"}, {"voice": "ash"}, {"voice": "cedar"}),
        ({"voice": {"id": "a"}}, {"voice": {"id": "b"}}, {"voice": {"id": "a"}}),
        ({"speed": 1.1}, {"voice": "ash"}, {"speed": 1.1, "voice": "ash"}),
        # `off` is a value, too.
        (
            {"turn_detection": None},
            {"turn_detection": SERVER_VAD},
            {"turn_detection": None},
        ),
        (
            {"turn_detection": SERVER_VAD},
            {"turn_detection": None},
            {"turn_detection": SERVER_VAD},
        ),
        # Objects of the same kind are merged key by key.
        (
            {"turn_detection": {"type": "server_vad", "threshold": 0.9}},
            {"turn_detection": SERVER_VAD},
            {"turn_detection": SERVER_VAD | {"threshold": 0.9}},
        ),
        (
            {"noise_reduction": {"type": "near_field"}},
            {"noise_reduction": {"type": "near_field", "strength": 0.3}},
            {"noise_reduction": {"type": "near_field", "strength": 0.3}},
        ),
        (
            {"truncation": {"type": "retention_ratio", "retention_ratio": 0.5}},
            {"truncation": RATIO},
            {"truncation": RATIO | {"retention_ratio": 0.5}},
        ),
        (
            {"tracing": {"group_id": "2"}},
            {"tracing": {"workflow_name": "calls"}},
            {"tracing": {"group_id": "2", "workflow_name": "calls"}},
        ),
        (
            {"prompt": {"id": "pmpt_1", "version": "4"}},
            {"prompt": PROMPT},
            {"prompt": PROMPT | {"version": "4"}},
        ),
        # An object of another kind is replaced whole.
        (
            {"turn_detection": "semantic_vad"},
            {"turn_detection": SERVER_VAD},
            {"turn_detection": "semantic_vad"},
        ),
        (
            {"noise_reduction": "far_field"},
            {"noise_reduction": {"type": "near_field", "strength": 0.3}},
            {"noise_reduction": "far_field"},
        ),
        ({"truncation": "auto"}, {"truncation": RATIO}, {"truncation": "auto"}),
        ({"prompt": {"id": "other"}}, {"prompt": PROMPT}, {"prompt": {"id": "other"}}),
        (
            {"tool_choice": {"type": "mcp", "server_label": "a"}},
            {"tool_choice": {"type": "mcp", "server_label": "b", "name": "find"}},
            {"tool_choice": {"type": "mcp", "server_label": "a"}},
        ),
        # The kind of a transcription is its model.
        (
            {"transcription": {"language": "en"}},
            {"transcription": TRANSCRIPTION},
            {"transcription": TRANSCRIPTION | {"language": "en"}},
        ),
        (
            {"transcription": {"model": "a"}},
            {"transcription": {"language": "en"}},
            {"transcription": {"model": "a", "language": "en"}},
        ),
        (
            {"transcription": {"model": "gpt-live-transcribe"}},
            {"transcription": TRANSCRIPTION},
            {"transcription": {"model": "gpt-live-transcribe"}},
        ),
        (
            {"transcription": {"language": "en"}},
            {"transcription": None},
            {"transcription": None},
        ),
        (
            {"transcription": {"model": "a"}},
            {"transcription": None},
            {"transcription": {"model": "a"}},
        ),
        # Lists are replaced whole, raw fields are merged at every depth.
        ({"mcp": []}, {"mcp": [MCP]}, {"mcp": []}),
        (
            {"extra": {"a": {"b": 1}, "list": [1]}},
            {"extra": {"a": {"c": 2}, "list": [2, 3]}},
            {"extra": {"a": {"b": 1, "c": 2}, "list": [1]}},
        ),
    ],
)
def test_a_route_is_merged_over_the_defaults(
    upper: dict[str, Any], lower: dict[str, Any], both: dict[str, Any]
) -> None:
    """A route contains only what differs from the defaults."""
    above, below = said(**upper), said(**lower)

    made = above.over(below)

    assert made == said(**both)
    assert made.model_fields_set == said(**both).model_fields_set
    assert (above, below) == (said(**upper), said(**lower)), "nothing is changed"


# ----------------------------------------------------------------------- error messages


@pytest.mark.parametrize(
    ("settings", "place", "told"),
    [
        ({"sped": 1}, "sped", "did you mean speed?"),
        ({"zzz": 1}, "zzz", "there is model, voice"),
        ({"modalities": ["text"]}, "modalities", "leaves the phone silent"),
        ({"modalities": ["audio", "text"]}, "modalities", "write [audio]"),
        ({"speed": 2}, "speed", "less than or equal to 1.5"),
        ({"speed": "nan"}, "speed", "finite"),
        ({"speed": None}, "speed", "has no value"),
        ({"model": " "}, "model", "at least 1 character"),
        ({"voice": ["ash"]}, "voice", "a name, or id:"),
        ({"voice": {"idd": "x"}}, "voice", "lacks id"),
        ({"max_output_tokens": 5000}, "max_output_tokens", "1 to 4096, or inf"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1 to 4096"),
        ({"max_output_tokens": "many"}, "max_output_tokens", "1 to 4096"),
        ({"turn_detection": {"threshold": 1}}, "turn_detection", "type: server_vad"),
        ({"turn_detection": "vad"}, "turn_detection", "or type: semantic_vad"),
        (
            {"turn_detection": {"type": "server_vad", "eagerness": "low"}},
            "turn_detection.eagerness",
            "is an option of semantic_vad, but the type is server_vad",
        ),
        (
            {"turn_detection": {"type": "semantic_vad", "threshold": 0.5}},
            "turn_detection.threshold",
            "is an option of server_vad, but the type is semantic_vad",
        ),
        (
            {"turn_detection": {"type": "server_vad", "treshold": 0.5}},
            "turn_detection.treshold",
            "did you mean threshold?",
        ),
        (
            {"turn_detection": {"type": "server_vad", "threshold": 1.5}},
            "turn_detection.threshold",
            "less than or equal to 1",
        ),
        (
            {"transcription": {"language": "de-DE"}},
            "transcription.language",
            "ISO 639-1",
        ),
        ({"transcription": {"modle": "x"}}, "transcription.modle", "mean model?"),
        ({"transcription": 5}, "transcription", "is no mapping"),
        ({"noise_reduction": "loud"}, "noise_reduction", "'near_field' or 'far_field'"),
        ({"tool_choice": "always"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tool_choice": {"type": "x"}}, "tool_choice", "type: function or type: mcp"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice", "lacks server_label"),
        (
            {"tool_choice": {"type": "mcp", "server_label": "a", "nme": "b"}},
            "tool_choice.nme",
            "did you mean name?",
        ),
        ({"truncation": "never"}, "truncation", "'auto' or 'disabled'"),
        ({"truncation": {"retention_ratio": 0.8}}, "truncation", "type: retention"),
        ({"tracing": "on"}, "tracing", "'auto'"),
        ({"include": "everything"}, "include", "is no list"),
        ({"prompt": {"version": "1"}}, "prompt", "lacks id"),
        ({"reasoning": "low"}, "reasoning", "is no mapping"),
        ({"guardrail_debounce_chars": 0}, "guardrail_debounce_chars", "or equal to 1"),
        ({"parallel_tool_calls": "maybe"}, "parallel_tool_calls", "boolean"),
        ({"mcp": [{"server_label": "a"}]}, "mcp.0", "has no address"),
        (
            {"mcp": [MCP | {"tunnel_id": "t"}]},
            "mcp.0",
            "has more than one address",
        ),
        ({"mcp": [MCP, MCP]}, "mcp", "has crm twice"),
        ({"mcp": [MCP, MCP | {"headrs": {}}]}, "mcp.1.headrs", "mean headers?"),
        ({"mcp": [MCP | {"allowed_tools": "a"}]}, "mcp.0.allowed_tools", "a list"),
        (
            {"mcp": [MCP | {"require_approval": {"always": {"tool": 1}}}]},
            "mcp.0.require_approval.always.tool",
            "there is read_only, tool_names",
        ),
        ({"extra": {"type": "x"}}, "extra.type", "is always realtime"),
        ({"extra": {"model": "x"}}, "extra.model", "beside `extra`"),
        ({"extra": {"instructions": "x"}}, "extra.instructions", "set by the agent"),
        ({"extra": {"output_modalities": []}}, "extra.output_modalities", "modalities"),
        ({"extra": {"tools": []}}, "extra.tools", "in `mcp`"),
        ({"extra": {"x": object()}}, "extra.x", "JSON"),
    ],
)
def test_a_mistake_is_reported_with_its_path(
    settings: dict[str, Any], place: str, told: str
) -> None:
    """An operator who writes an invalid value reads what is wrong, where, and how to
    fix it."""
    assert told in mistakes(**settings)[place]


def test_all_mistakes_are_reported_together() -> None:
    """The operator fixes all of them in one go, instead of one per start."""
    found = mistakes(
        speed=9,
        voice=None,
        turn_detection={"type": "server_vad", "threshold": 2, "eagerness": "low"},
        extra={"audio": {"input": {"format": 1}, "output": {"format": 2}}},
    )

    assert set(found) == {
        "speed",
        "voice",
        "turn_detection.threshold",
        "turn_detection.eagerness",
        "extra.audio.input.format",
        "extra.audio.output.format",
    }


def test_no_value_is_part_of_a_message() -> None:
    """A mistyped token does not appear in a terminal."""
    with pytest.raises(SettingsMistakes) as refused:
        said(mcp=[MCP | {"authorization": ["hush-hush"], "headers": "hush-hush"}])

    message = str(refused.value)
    assert "session.mcp.0.authorization" in message and "hush" not in message


def test_settings_are_immutable() -> None:
    """Two calls of one route cannot change each other's session."""
    with pytest.raises(ValidationError):
        SessionSettings().voice = "ash"


@pytest.mark.parametrize(
    ("settings", "place"),
    [({"model": it}, ("model",)) for it in DEPRECATED_MODELS]
    + [
        ({"transcription": it}, ("transcription", "model"))
        for it in DEPRECATED_TRANSCRIPTION_MODELS
    ],
)
def test_a_deprecated_model_gives_a_warning(
    settings: dict[str, Any], place: tuple[str, ...]
) -> None:
    """It works today; after the shutdown the phone would be silent."""
    warnings = said(**settings).warnings()

    assert list(warnings) == [place] and "2027" in warnings[place]
