"""The environment -> one frozen `Settings`.

Every mistake is found before the first call, and one message lists them all. A message
never contains a value that may be secret. Nothing here opens a connection.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasGenerator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from bridge.app import values
from bridge.app.values import LOCAL_MODEL

OPENAI_MODEL_URL = "wss://api.openai.com/v1/realtime"
GREETING = "Greet the caller in one short, friendly sentence and ask how you can help."

EVERYWHERE = "0.0.0.0"  # noqa: S104 - for containers; requests are checked
LOOPBACK = "127.0.0.1"

# All other empty values count as unset (docker-compose passes empty variables).
_EMPTY_IS_A_CHOICE = frozenset({"BRIDGE_GREETING", "BRIDGE_TRANSCRIPTION_MODEL"})


Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report. `name` is the variable; `fix` is empty if all is well."""

    level: Level
    name: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.text}" + (f": {self.fix}" if self.fix else "")


class SettingsError(ValueError):
    """The environment cannot be used; the message has one line for each mistake."""

    def __init__(self, mistakes: Iterable[Finding]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def _variable(field: str) -> str:
    name = field.upper()
    return name if name.startswith(("OPENAI_", "TWILIO_")) else f"BRIDGE_{name}"


class Settings(BaseSettings):
    """The settings of one process. `load` makes them; tests write `Settings(port=0)`.

    Only the arguments and the file that `load` passes are read, never the process
    environment: the environment of the machine must not change a test.
    """

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=_variable),
        populate_by_name=True,  # code uses field names, the file variables
        env_prefix="BRIDGE_",  # else a line `host=...` of the file would count
        env_file_encoding="utf-8",
        enable_decoding=False,  # values.py reads lists and tables; they are not JSON
        case_sensitive=True,
        frozen=True,
        extra="ignore",
        arbitrary_types_allowed=True,  # Prices
        hide_input_in_errors=True,
        validate_default=False,
    )

    port: values.Whole = Field(default=8080, ge=0, le=65535)  # 0: any free port
    public_url: values.PublicUrl | None = None
    insecure: values.Switch = False
    # Unsigned requests come from this machine only, unless BRIDGE_HOST is set.
    host: values.Host = Field(
        default_factory=lambda data: LOOPBACK if data.get("insecure") else EVERYWHERE
    )
    agent: values.Agent = "bridge.agent.receptionist:receptionist"
    routes: values.File | None = None
    # Not in repr: the headers contain a key, and the query of some vendors' URLs too.
    model_url: values.ModelUrl | None = Field(default=None, repr=False)
    model: values.Word = "gpt-realtime-2.1"
    model_headers: values.Headers = Field(default_factory=dict, repr=False)
    voice: values.Word = "marin"
    # Empty: no transcription. The default of the SDK is deprecated.
    transcription_model: values.Text = "gpt-transcribe"
    greeting: values.Text = GREETING  # empty: the caller speaks first
    max_calls: values.Count = 200
    redis_url: values.RedisUrl | None = None  # all instances share it
    api_token: values.Secret | None = None
    # The model's audio format: G.711 mu-law, or 16 bit PCM at 24 kHz (transcoded).
    model_audio: Annotated[Literal["mulaw", "pcm"], values.Lower] = "mulaw"
    # An async function of the user: (url, headers) -> websocket.
    model_connect: values.Agent | None = None
    # Not in repr: the URL may contain a key.
    report_url: values.HttpUrl | None = Field(default=None, repr=False)
    report_secret: values.SigningSecret | None = None
    outbound_prefixes: values.Prefixes = ()  # numbers that may be called; empty: none
    outbound_number: values.PhoneNumber | None = None  # shown to the callee
    outbound_calls: values.Count = 10
    # Another origin of Twilio's REST API: a proxy, the fake.
    twilio_api_url: values.HttpUrl | None = Field(
        default=None, validation_alias="BRIDGE_TWILIO_API_URL"
    )
    drain_seconds: values.Seconds = 300.0
    session_seconds: values.Seconds = 3000.0
    record_dir: values.Folder | None = None
    fallback_number: values.PhoneNumber | None = None
    # The answer to a caller while no instance has free capacity.
    when_full: Annotated[Literal["busy", "queue", "fallback"], values.Lower] = "busy"
    queue_seconds: values.Seconds = 120.0
    log_format: Annotated[Literal["auto", "json", "pretty"], values.Lower] = Field(
        default="auto", validation_alias="BRIDGE_LOG"
    )
    openai_api_key: values.Secret | None = None
    # Signs the webhook of incoming SIP calls.
    openai_webhook_secret: values.SigningSecret | None = None
    twilio_account_sid: values.AccountSid | None = None
    twilio_auth_token: values.Secret | None = None
    # While the token is rotated, a signature of either token is valid.
    twilio_auth_token_secondary: values.Secret | None = None
    # id -> secret, for webhooks that are signed with SharedKeys.
    twilio_shared_keys: values.SharedKeys = Field(default_factory=dict, repr=False)
    # `required`: a stream without a ticket of one of our webhooks is refused.
    tickets: Annotated[Literal["required", "off"], values.Lower] = "required"
    trusted_proxies: values.Networks = ()  # their X-Forwarded-For is trusted

    # --- limits ---

    start_seconds: values.PositiveSeconds = 10.0
    waiting_sockets: values.Count = 500
    waiting_per_address: values.Count = 100
    header_bytes: values.Whole = Field(default=16 * 1024, ge=2048, le=1 << 20)
    body_bytes: values.Bytes = 64 * 1024
    body_seconds: values.PositiveSeconds = 10.0
    send_seconds: values.PositiveSeconds = 5.0
    message_bytes: values.Bytes = 256 * 1024
    messages_per_second: values.Whole = Field(default=200, ge=60, le=100_000)
    audio_held_seconds: values.PositiveSeconds = 20.0
    audio_ahead_seconds: values.PositiveSeconds = 600.0
    calls_per_number: values.Limit = 10
    calls_per_number_hour: values.Limit = 60
    longest_seconds: values.Whole = Field(default=4 * 3600, ge=10, le=4 * 3600)
    # Per million tokens, in any unit; the next two limits are in the same unit.
    prices: values.PriceTable | None = None
    cost_per_call: values.Amount = 0.0  # 0: no limit
    cost_per_day: values.Amount = 0.0  # 0: no limit
    # Calls may be transferred to these numbers and to those that the routes name.
    transfer_prefixes: values.Prefixes = ()
    api_per_second: values.Whole = Field(default=20, ge=1, le=10_000)
    # Older records are deleted.
    record_days: values.Whole = Field(default=30, ge=0, le=3650)

    @property
    def model_target(self) -> str:
        """The URL of the model (without `?model=`), or `LOCAL_MODEL`."""
        if self.model_url is not None:
            return self.model_url
        return LOCAL_MODEL if self.openai_api_key is None else OPENAI_MODEL_URL

    @model_validator(mode="before")
    @classmethod
    def _without_unset(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Removes empty variables and None: both mean unset."""
        kept = given.keys() - (NAMES - _EMPTY_IS_A_CHOICE)
        return {
            name: value
            for name, value in given.items()
            if value is not None and (name in kept or str(value).strip())
        }

    @field_validator("insecure")
    @classmethod
    def _without_public_url(cls, insecure: bool, info: ValidationInfo) -> bool:
        if insecure and info.data.get("public_url") is not None:
            text = "is on together with BRIDGE_PUBLIC_URL, so anybody could call"
            raise values.wrong(text, "unset one of the two")
        return insecure

    @field_validator("when_full")
    @classmethod
    def _with_a_number(cls, chosen: str, info: ValidationInfo) -> str:
        # An invalid number is not in the data; it is reported as a separate mistake.
        if chosen == "fallback" and info.data.get("fallback_number", "") is None:
            text = "is fallback, but there is no number to dial"
            raise values.wrong(text, "set BRIDGE_FALLBACK_NUMBER")
        return chosen

    @classmethod
    def settings_customise_sources(
        cls, *_: Any, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return sources["init_settings"], sources["dotenv_settings"]


_FIELDS = {str(it.validation_alias): it for it in Settings.model_fields.values()}
NAMES = frozenset(_FIELDS)


def load(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> Settings:
    """The settings of this process; a variable of `environ` overrides `env_file`."""
    environ = os.environ if environ is None else environ
    given: dict[str, Any] = {it: environ[it] for it in NAMES & environ.keys()}
    given["_env_file"] = env_file  # a parameter of BaseSettings
    try:
        return Settings(**given)
    except ValidationError as error:
        mistakes = [
            _mistake(it)
            for it in error.errors()
            # pydantic skips the default of `host` after a mistake before it.
            if it["type"] != "default_factory_not_called"
        ]
        raise SettingsError(dict.fromkeys(mistakes)) from None
    except (OSError, UnicodeDecodeError) as error:
        text, fix = "cannot be read", "correct its permissions or remove it"
        if isinstance(error, UnicodeDecodeError):
            text, fix = "is not UTF-8", "save it as UTF-8"
        raise SettingsError([Finding("error", str(env_file), text, fix)]) from None


def _mistake(error: Mapping[str, Any]) -> Finding:
    """Turns an error of pydantic into a message that says how to correct it."""
    name = str(error["loc"][0]) if error["loc"] else "the environment"
    field = (Settings.model_fields | _FIELDS).get(name, FieldInfo())
    given, context = str(error["input"]).strip(), error.get("ctx", {})
    match error["type"]:
        case "setting":
            return Finding("error", name, context["text"], context["fix"])
        case "literal_error":
            fix = f"set {context['expected']}".replace("'", "")
            return Finding("error", name, f"is {given!r}", fix)
        case "int_parsing" | "float_parsing":
            text = f"is {given!r}, which is not {field.title}"
            return Finding("error", name, text, _in_range(field))
        case "greater_than_equal" | "less_than_equal" as bound:
            size = "small" if bound.startswith("g") else "large"
            text = f"is {given}, which is too {size}"
            return Finding("error", name, text, _in_range(field))
    return Finding("error", name, "is not usable", str(error["msg"]))


def _in_range(field: FieldInfo) -> str:
    """The fix for a wrong number: its kind and its bounds."""
    least = max(getattr(bound, "ge", 0) for bound in field.metadata)
    most = [bound.le for bound in field.metadata if hasattr(bound, "le")]
    bounds = f" from {least} to {most[0]}" if most else f", {least} or more"
    return f"set {field.title}{bounds}"
