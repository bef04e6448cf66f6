"""The settings of a Realtime session that an operator configures beside the agent.

`SessionSettings` is one frozen value: validated against the API, layered (a route's
over the deployment's), and handed on in the three forms the SDK needs. It has no audio
formats: the bridge sets those.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from agents.realtime.config import RealtimeRunConfig, RealtimeSessionModelSettings
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from bridge.model.deprecated_models import (
    DEPRECATED_MODELS,
    DEPRECATED_TRANSCRIPTION_MODELS,
)

Path = tuple[str | int, ...]
"""Where a setting is, from the top of the settings: `("mcp", 0, "headers")`."""

_OFF = frozenset({"off", "no", "false", "none", "null"})


def wrong(text: str, fix: str) -> PydanticCustomError:
    # The text is in the context, not in the template, because a value may contain
    # braces.
    return PydanticCustomError("setting", "{text}: {fix}", {"text": text, "fix": fix})


class SettingsMistakes(ValueError):
    """The settings are invalid. `mistakes` has all of them, each with its path."""

    def __init__(self, mistakes: Iterable[tuple[Path, str]]) -> None:
        self.mistakes = tuple(mistakes)
        lines = (f"{_dotted(path)} {text}" for path, text in self.mistakes)
        super().__init__("\n".join(lines))


class _SettingsPart(BaseModel):
    """Only fields that were set count (`model_fields_set`); defaults are never sent."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
        protected_namespaces=(),
    )
    may_be_off: ClassVar[frozenset[str]] = frozenset()

    @field_validator("*", mode="before")
    @classmethod
    def _check_empty(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name in cls.may_be_off and _is_off(value):
            return None
        if value is None:
            raise wrong("has no value", "give one, or leave the key out")
        return value

    def extends(self, lower: Self) -> bool:
        """Whether fields that are not set here are taken from `lower`."""
        return True

    def json_value(self) -> dict[str, Any]:
        """In the API's form: the fields that were set, no defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


def _is_off(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _OFF
    return value is None or value is False


def _kinds(expected: str) -> Discriminator:
    """Chooses one of a value's forms, so that mistakes are reported for that form only.

    The tags: `word`, `list`, an object's `type`, or `object` if it has none.
    """

    def kind(value: object) -> str:
        if isinstance(value, BaseModel):
            return str(getattr(value, "type", "object"))
        if isinstance(value, Mapping):
            return str(value.get("type", "object"))
        return "list" if isinstance(value, (list, tuple)) else "word"

    return Discriminator(kind, custom_error_type="kind", custom_error_message=expected)


def _by_name(key: str) -> BeforeValidator:
    """Accepts a short form: `near_field` for `{type: near_field}`."""
    return BeforeValidator(lambda it: {key: it} if isinstance(it, str) else it)


def _language(code: str) -> str:
    if not re.fullmatch("[A-Za-z]{2,3}", code):
        raise wrong("is not a language code", "write ISO 639-1, such as en")
    return code.lower()


_Text = Annotated[str, Field(min_length=1)]
_Language = Annotated[str, AfterValidator(_language)]
_Texts = tuple[_Text, ...]
_Milliseconds = Annotated[int, Field(ge=0)]
_Effort = Literal["minimal", "low", "medium", "high", "xhigh"]

# ------------------------------------------------------------------------- audio input


class Transcription(_SettingsPart):
    """Transcription of the caller. Without a `model` it does not switch transcription
    on, and only sets its options."""

    model: _Text | None = None
    language: _Language | None = None
    languages: tuple[_Language, ...] | None = None
    prompt: str | None = None
    keywords: _Texts | None = None
    delay: _Effort | None = None

    def extends(self, lower: Self) -> bool:
        """False for another model: models have different options."""
        return self.model in (None, lower.model) or lower.model is None


class ServerVad(_SettingsPart):
    may_be_off = frozenset({"idle_timeout_ms"})

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    prefix_padding_ms: _Milliseconds | None = None
    silence_duration_ms: _Milliseconds | None = None
    idle_timeout_ms: Annotated[int, Field(ge=1)] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class SemanticVad(_SettingsPart):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class NoiseReduction(_SettingsPart):
    type: Literal["near_field", "far_field"]
    strength: Annotated[float, Field(ge=0)] | None = None

    def extends(self, lower: Self) -> bool:
        return self.type == lower.type


# ------------------------------------------------------------------------ audio output


class CustomVoice(_SettingsPart):
    id: _Text


# ------------------------------------------------------------------- tools and context


class _Choice(_SettingsPart):
    def extends(self, lower: Self) -> bool:
        return False


class FunctionChoice(_Choice):
    type: Literal["function"]
    name: _Text


class McpChoice(_Choice):
    type: Literal["mcp"]
    server_label: _Text
    name: _Text | None = None


class TokenLimits(_SettingsPart):
    post_instructions: Annotated[int, Field(ge=1)] | None = None


class RetentionRatio(_SettingsPart):
    type: Literal["retention_ratio"]
    retention_ratio: Annotated[float, Field(ge=0, le=1)]
    token_limits: TokenLimits | None = None


class Reasoning(_SettingsPart):
    effort: _Effort


class Tracing(_SettingsPart):
    workflow_name: _Text | None = None
    group_id: _Text | None = None
    metadata: dict[str, JsonValue] | None = None


class PromptTemplate(_SettingsPart):
    id: _Text
    version: _Text | None = None
    variables: dict[str, str] | None = None

    def extends(self, lower: Self) -> bool:
        return self.id == lower.id


class ToolFilter(_SettingsPart):
    """Selects tools of an MCP server."""

    read_only: bool | None = None
    tool_names: _Texts | None = None


class ApprovalFilter(_SettingsPart):
    """Which tools of an MCP server need approval."""

    always: ToolFilter | None = None
    never: ToolFilter | None = None


class McpServer(_SettingsPart):
    """An MCP server that OpenAI calls itself. It has exactly one of three addresses.

    openai.types.realtime.realtime_tools_config_union.Mcp
    """

    type: Literal["mcp"] = "mcp"
    server_label: _Text
    server_url: _Text | None = Field(default=None, repr=False)
    connector_id: _Text | None = None
    tunnel_id: _Text | None = None
    server_description: str | None = None
    allowed_tools: (
        Annotated[
            Annotated[_Texts, Tag("list")] | Annotated[ToolFilter, Tag("object")],
            _kinds("a list of names, or read_only and tool_names"),
        ]
        | None
    ) = None
    authorization: _Text | None = Field(default=None, repr=False)
    headers: dict[str, str] | None = Field(default=None, repr=False)
    require_approval: (
        Annotated[
            Annotated[Literal["always", "never"], Tag("word")]
            | Annotated[ApprovalFilter, Tag("object")],
            _kinds("always, never, or tools below always: and never:"),
        ]
        | None
    ) = None
    defer_loading: bool | None = None
    allowed_callers: tuple[Literal["direct", "programmatic"], ...] | None = None

    @model_validator(mode="after")
    def _has_one_address(self) -> Self:
        addresses = {"server_url", "connector_id", "tunnel_id"} & self.model_fields_set
        if len(addresses) != 1:
            raise wrong(
                "has no address" if not addresses else "has more than one address",
                "write server_url, connector_id or tunnel_id",
            )
        return self

    def json_value(self) -> dict[str, Any]:
        return {"type": "mcp", **super().json_value()}


# --------------------------------------------------------------------- SessionSettings


def _audio_only(modalities: tuple[str, ...]) -> tuple[str, ...]:
    if modalities != ("audio",):
        raise wrong("leaves the phone silent", "write [audio], or leave it out")
    return modalities


def _token_limit(value: object) -> object:
    text = str(value).strip()
    if text == "inf":
        return text
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= 4096:
        raise wrong("is not a limit the API accepts", "write 1 to 4096, or inf")
    return int(text)


def _different_labels(servers: tuple[McpServer, ...]) -> tuple[McpServer, ...]:
    labels = [server.server_label for server in servers]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise wrong(f"has {', '.join(twice)} twice", "give each its own server_label")
    return servers


# Fields that `extra` may not set -> error text that says where each is set.
_FORMAT = "is set by the bridge, as a phone line is mu-law: leave it out"
_AGENTS_OWN = "is set by the agent: write it there"
_NOT_RAW: dict[Path, str] = {
    ("audio", "input", "format"): _FORMAT,
    ("audio", "output", "format"): _FORMAT,
    ("input_audio_format",): _FORMAT,
    ("output_audio_format",): _FORMAT,
    ("output_modalities",): "cannot be in `extra`: write `modalities` beside `extra`",
    ("model",): "cannot be in `extra`: write `model` beside `extra`",
    ("tools",): "is set by the agent: write it there, or in `mcp` beside `extra`",
    ("instructions",): _AGENTS_OWN,
    ("type",): "is always realtime: leave it out",
}


def _has(value: object, path: Path) -> bool:
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def _raw(extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
    found = [(path, text) for path, text in _NOT_RAW.items() if _has(extra, path)]
    if not found:
        return extra
    keys = ", ".join(".".join(map(str, path)) for path, _ in found)
    message = "Fields that cannot be in `extra`: {keys}"
    raise PydanticCustomError("several", message, {"keys": keys, "at": found})


class SessionSettings(_SettingsPart):
    """Settings of a Realtime session; `model_fields_set` has those that were set.

    `None` (in a file: `off`) counts as set: it switches transcription, turn detection,
    noise reduction or tracing off.
    """

    may_be_off = frozenset(
        {"transcription", "turn_detection", "noise_reduction", "tracing"}
    )

    model: _Text | None = None
    voice: (
        Annotated[
            Annotated[_Text, Tag("word")] | Annotated[CustomVoice, Tag("object")],
            _kinds("a name, or id: of a voice of your own"),
        ]
        | None
    ) = None
    speed: Annotated[float, Field(ge=0.25, le=1.5)] | None = None
    modalities: (
        Annotated[tuple[Literal["audio", "text"], ...], AfterValidator(_audio_only)]
        | None
    ) = None
    transcription: Annotated[Transcription | None, _by_name("model")] = None
    turn_detection: Annotated[
        Annotated[
            Annotated[ServerVad, Tag("server_vad")]
            | Annotated[SemanticVad, Tag("semantic_vad")],
            _kinds("type: server_vad or type: semantic_vad"),
        ]
        | None,
        _by_name("type"),
    ] = None
    noise_reduction: Annotated[NoiseReduction | None, _by_name("type")] = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("word")]
            | Annotated[FunctionChoice, Tag("function")]
            | Annotated[McpChoice, Tag("mcp")],
            _kinds("none, auto, required, type: function or type: mcp"),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: (
        Annotated[int | Literal["inf"], BeforeValidator(_token_limit)] | None
    ) = None
    truncation: (
        Annotated[
            Annotated[Literal["auto", "disabled"], Tag("word")]
            | Annotated[RetentionRatio, Tag("retention_ratio")],
            _kinds("auto, disabled or type: retention_ratio"),
        ]
        | None
    ) = None
    reasoning: Reasoning | None = None
    tracing: (
        Annotated[
            Annotated[Literal["auto"], Tag("word")] | Annotated[Tracing, Tag("object")],
            _kinds("auto, off, or workflow_name, group_id and metadata"),
        ]
        | None
    ) = None
    prompt: PromptTemplate | None = None
    include: tuple[Literal["item.input_audio_transcription.logprobs"], ...] | None = (
        None
    )
    async_tool_calls: bool | None = None
    guardrail_debounce_chars: Annotated[int, Field(ge=1)] | None = None
    pre_approval_guardrails: bool | None = None
    mcp: Annotated[tuple[McpServer, ...], AfterValidator(_different_labels)] | None = (
        None
    )
    extra: Annotated[dict[str, JsonValue], AfterValidator(_raw)] | None = None

    @classmethod
    def read(cls, given: Mapping[str, object]) -> "SessionSettings":
        """Reads plain values of a file or a request; a number may be given as text.

        SettingsMistakes: a value is invalid. Its messages quote no value, as it may be
        a secret.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsMistakes(
                mistake
                for each in error.errors(include_url=False, include_input=False)
                for mistake in _mistakes(each, given)
            ) from None

    def over(self, lower: "SessionSettings") -> "SessionSettings":
        """Merges these settings over `lower`: a field that is set here wins.

        Objects of the same kind are merged key by key. An object of another kind
        (another `type`, transcription `model` or prompt `id`) replaces the lower one
        whole. `extra` is merged at every depth; lists, `tool_choice` and `voice` are
        replaced. A transcription without a model does not switch on one that is off.
        """
        given = {
            name: _over(getattr(self, name), getattr(lower, name))
            if name in lower.model_fields_set
            else getattr(self, name)
            for name in self.model_fields_set
        }
        return lower.model_copy(update=given)

    def sdk_settings(self) -> RealtimeSessionModelSettings:
        """The set fields that the SDK can send; audio in the nested form, no formats.

        `raw_session` has the other fields of the session.
        """
        settings: dict[str, Any] = {
            sdk_name: _plain(getattr(self, name))
            for name, sdk_name in _SDK_NAMES.items()
            if name in self.model_fields_set
        }
        if isinstance(self.tool_choice, str):
            settings["tool_choice"] = self.tool_choice
        audio = {
            side: {
                name: _plain(getattr(self, name))
                for name in names
                if name in self.model_fields_set
            }
            for side, names in _AUDIO.items()
        }
        if given := {side: options for side, options in audio.items() if options}:
            settings["audio"] = given
        made: RealtimeSessionModelSettings = settings  # type: ignore[assignment]
        return made

    def raw_session(self) -> dict[str, Any]:
        """The set fields that the SDK does not send, in the API's form.

        The caller merges them (`merged`) over every `session.update`. A chosen tool is
        here because the SDK sends it with a pydantic warning. For `mcp` see
        `mcp_tools`.
        """
        session: dict[str, Any] = {
            name: _plain(getattr(self, name))
            for name in ("truncation", "include")
            if name in self.model_fields_set
        }
        if isinstance(self.tool_choice, _Choice):
            session["tool_choice"] = self.tool_choice.json_value()
        return merged(session, self.extra or {})

    def mcp_tools(self) -> list[dict[str, Any]]:
        """The hosted MCP servers in the form of the API's `tools`."""
        return [server.json_value() for server in self.mcp or ()]

    def run_config(self) -> RealtimeRunConfig:
        """The set fields that belong to the SDK's run configuration.

        Tracing is not among them: the session's settings switch it off already.
        """
        config: RealtimeRunConfig = {}
        if self.async_tool_calls is not None:
            config["async_tool_calls"] = self.async_tool_calls
        if self.guardrail_debounce_chars is not None:
            debounce = self.guardrail_debounce_chars
            config["guardrails_settings"] = {"debounce_text_length": debounce}
        if self.pre_approval_guardrails is not None:
            config["tool_execution"] = {
                "pre_approval_tool_input_guardrails": self.pre_approval_guardrails
            }
        return config

    def warnings(self) -> dict[Path, str]:
        """Deprecated values: path of the setting -> message."""
        transcription = self.transcription.model if self.transcription else None
        used: tuple[tuple[Path, str | None, Mapping[str, str]], ...] = (
            (("model",), self.model, DEPRECATED_MODELS),
            (_TRANSCRIPTION_MODEL, transcription, DEPRECATED_TRANSCRIPTION_MODELS),
        )
        return {
            path: f"is {model}, which OpenAI shuts down on {shut_down[model]}: "
            "name a current one"
            for path, model, shut_down in used
            if model is not None and model in shut_down
        }


_TRANSCRIPTION_MODEL: Path = ("transcription", "model")
_AUDIO = {
    "input": ("transcription", "turn_detection", "noise_reduction"),
    "output": ("voice", "speed"),
}
_SDK_NAMES = {
    "model": "model_name",
    "modalities": "output_modalities",
    "parallel_tool_calls": "parallel_tool_calls",
    "max_output_tokens": "max_output_tokens",
    "reasoning": "reasoning",
    "tracing": "tracing",
    "prompt": "prompt",
}


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` merged over `lower`: objects key by key at every depth, all else whole.

    An object with another `type` than the lower one replaces it.
    """
    both = dict(lower)
    for key, value in upper.items():
        below = both.get(key)
        if (
            isinstance(value, Mapping)
            and isinstance(below, Mapping)
            and value.get("type", below.get("type")) == below.get("type")
        ):
            value = merged(below, value)
        both[key] = value
    return both


def _over(upper: Any, lower: Any) -> Any:
    if isinstance(upper, Transcription) and upper.model is None and lower is None:
        return None
    if isinstance(upper, Mapping) and isinstance(lower, Mapping):
        return merged(lower, upper)
    if (
        isinstance(upper, _SettingsPart)
        and type(upper) is type(lower)
        and upper.extends(lower)
    ):
        given = {name: getattr(upper, name) for name in upper.model_fields_set}
        return lower.model_copy(update=given)
    return upper


def _plain(value: Any) -> Any:
    if isinstance(value, _SettingsPart):
        return value.json_value()
    return list(value) if isinstance(value, tuple) else value


# ---------------------------------------------------------------------- error messages

# A field, or the `type` in it -> the class whose keys are suggested for an unknown key.
_PARTS: dict[str | int, type[_SettingsPart]] = {
    "voice": CustomVoice,
    "transcription": Transcription,
    "server_vad": ServerVad,
    "semantic_vad": SemanticVad,
    "noise_reduction": NoiseReduction,
    "function": FunctionChoice,
    "retention_ratio": RetentionRatio,
    "token_limits": TokenLimits,
    "reasoning": Reasoning,
    "tracing": Tracing,
    "prompt": PromptTemplate,
    "mcp": McpServer,
    "allowed_tools": ToolFilter,
    "require_approval": ApprovalFilter,
    "always": ToolFilter,
    "never": ToolFilter,
}
_OTHER_VAD: dict[str | int, type[_SettingsPart]] = {
    "server_vad": SemanticVad,
    "semantic_vad": ServerVad,
}


def _mistakes(
    error: ErrorDetails, given: Mapping[str, object]
) -> list[tuple[Path, str]]:
    path, context = _path(error["loc"], given), error.get("ctx", {})
    if error["type"] == "several":
        found: list[tuple[Path, str]] = context["at"]
        return [((*path, *inner), text) for inner, text in found]
    return [(path, _message(error, context))]


def _message(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    match error["type"]:
        case "setting":
            return f"{context['text']}: {context['fix']}"
        case "missing":
            return f"lacks {error['loc'][-1]}: write it"
        case "extra_forbidden":
            return _unknown(error["loc"])
        case "kind":
            return f"is not usable: write {error['msg']}"
        case "model_type" | "dict_type":
            return "is no mapping: write its keys below it"
        case "tuple_type":
            return "is no list: write [one, another]"
    message = error["msg"].removeprefix("Input ").removeprefix("String ")
    return f"is not usable: it {message[0].lower()}{message[1:]}"


def _unknown(place: Path) -> str:
    *above, key = place
    for kind, other in _OTHER_VAD.items():
        if kind in above and key in other.model_fields:
            owner = next(name for name in _OTHER_VAD if name != kind)
            return f"is an option of {owner}, but the type is {kind}: use one of them"
    part: type[_SettingsPart] = SessionSettings
    if place[0] == "tool_choice" and "mcp" in above:
        part = McpChoice
    elif near := [_PARTS[name] for name in above if name in _PARTS]:
        part = near[-1]
    names = difflib.get_close_matches(str(key), part.model_fields, n=1)
    fix = f"did you mean {names[0]}?" if names else f"there is {_listed(part)}"
    return f"is not a setting: {fix}"


def _listed(part: type[_SettingsPart]) -> str:
    return ", ".join(part.model_fields)


def _path(place: tuple[Any, ...], given: Any) -> Path:
    """The path of a mistake without the parts that only pydantic uses."""
    path: list[str | int] = []
    for key in place:
        if (isinstance(given, Mapping) and key in given) or (
            isinstance(given, (list, tuple)) and isinstance(key, int)
        ):
            given = given[key]
            path.append(key)
    return tuple(path)


def _dotted(path: Path) -> str:
    return ".".join(("session", *map(str, path)))
