"""The environment -> one frozen `Settings`.

Every mistake is found before the first call, and one message lists them all. A message
never contains a value that may be secret. Nothing here opens a connection.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasGenerator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from bridge.app import values
from bridge.app.env_file import EnvFile
from bridge.app.env_file import read as read_env_file
from bridge.app.recordings import TONE
from bridge.app.values import LOCAL_MODEL
from bridge.core.rules import SLOW_TOOL_SECONDS

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
    place: str = ""
    """FILE or FILE:LINE; empty for a value of the environment."""

    def __str__(self) -> str:
        where = f"{self.name} ({self.place})" if self.place else self.name
        return f"{where} {self.text}" + (f": {self.fix}" if self.fix else "")


class SettingsError(ValueError):
    """The environment cannot be used; the message has one line for each mistake."""

    def __init__(self, mistakes: Iterable[Finding]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def variable(field: str) -> str:
    """The variable of a field of Settings."""
    name = field.upper()
    return name if name.startswith(("OPENAI_", "TWILIO_")) else f"BRIDGE_{name}"


class Settings(BaseSettings):
    """The settings of one process. `load` makes them; tests write `Settings(port=0)`.

    A field with `repr=False` is, or may contain, a secret: its value may stand in a
    file (SECRET_NAMES), and no log line may contain it (bridge/cli/commands.py).

    Only the arguments that `load` passes are read, never the process environment: the
    environment of the machine must not change a test.
    """

    model_config = SettingsConfigDict(
        alias_generator=AliasGenerator(validation_alias=variable),
        populate_by_name=True,  # code uses field names, the file variables
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
    # Secret: the headers contain a key, and the query of some vendors' URLs too.
    model_url: values.ModelUrl | None = Field(default=None, repr=False)
    model: values.Word = "gpt-realtime-2.1"
    model_headers: values.Headers = Field(default_factory=dict, repr=False)
    voice: values.Word = "marin"
    # Empty: no transcription. The default of the SDK is deprecated.
    transcription_model: values.Text = "gpt-transcribe"
    greeting: values.Text = GREETING  # empty: the caller speaks first
    waiting_sound: values.WaitingSound = TONE  # of routes that set none
    slow_tool_seconds: values.Seconds = SLOW_TOOL_SECONDS  # the same; 0: never
    max_calls: values.Count = 200
    # All instances share it.
    redis_url: values.RedisUrl | None = Field(default=None, repr=False)
    api_token: values.Secret | None = Field(default=None, repr=False)
    # The origin at which the other instances reach this one.
    advertise_url: values.HttpUrl | None = None
    # The model's audio format: G.711 mu-law, or 16 bit PCM at 24 kHz (transcoded).
    model_audio: Annotated[Literal["mulaw", "pcm"], values.Lower] = "mulaw"
    # The server's event after which a session is ready.
    model_ready_on: Annotated[
        Literal["session.updated", "session.created"], values.Lower
    ] = "session.updated"
    # An async function of the user: (url, headers) -> websocket.
    model_connect: values.Agent | None = None
    # Secret: the URL may contain a key.
    report_url: values.HttpUrl | None = Field(default=None, repr=False)
    # Names of a webhook's fields and query that the agent gets; `*` ends a beginning.
    parameters: values.ParameterNames = values.PARAMETERS
    report_secret: values.SigningSecret | None = Field(default=None, repr=False)
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
    # The state of the fallback switch until somebody uses it (app/fallback.py).
    fallback: values.Switch = False
    # The answer to a caller while no instance has free capacity.
    when_full: Annotated[Literal["busy", "queue", "fallback"], values.Lower] = "busy"
    queue_seconds: values.Seconds = 120.0
    log_format: Annotated[Literal["auto", "json", "pretty"], values.Lower] = Field(
        default="auto", validation_alias="BRIDGE_LOG"
    )
    # Prints what each call said, heard and did; auto: an insecure bridge on a terminal.
    print_calls: Annotated[Literal["auto", "on", "off"], values.Lower] = "auto"
    openai_api_key: values.Secret | None = Field(default=None, repr=False)
    # Signs the webhook of incoming SIP calls.
    openai_webhook_secret: values.SigningSecret | None = Field(default=None, repr=False)
    twilio_account_sid: values.AccountSid | None = None
    twilio_auth_token: values.Secret | None = Field(default=None, repr=False)
    # For the REST API in place of the auth token, which Twilio signs with all the same.
    twilio_api_key: values.Secret | None = Field(default=None, repr=False)
    twilio_api_secret: values.Secret | None = Field(
        default=None, repr=False, validate_default=True
    )
    # Of the REST API. From a region alone, the SDK makes a host that does not exist.
    twilio_region: values.Region | None = None
    twilio_edge: values.Region | None = Field(default=None, validate_default=True)
    # While the token is rotated, a signature of either token is valid.
    twilio_auth_token_secondary: values.Secret | None = Field(default=None, repr=False)
    # id -> secret, for webhooks that are signed with SharedKeys.
    twilio_shared_keys: values.SharedKeys = Field(default_factory=dict, repr=False)
    # `required`: a stream without a ticket of one of our webhooks is refused.
    tickets: Annotated[Literal["required", "off"], values.Lower] = "required"
    # Other accounts, such as subaccounts: SID -> its one or two tokens.
    twilio_accounts: values.Accounts = Field(default_factory=dict, repr=False)
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

    @property
    def url_path(self) -> str:
        """The path of BRIDGE_PUBLIC_URL, without a slash at its end."""
        return urlsplit(self.public_url or "").path

    @property
    def account_sids(self) -> frozenset[str]:
        """The accounts whose calls are taken; empty: those of any account."""
        main = self.twilio_account_sid
        return frozenset((main, *self.twilio_accounts)) if main else frozenset()

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

    @field_validator("twilio_auth_token_secondary")
    @classmethod
    def _another_token(
        cls, token: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        """The steps of a rotation do nothing if both are the same."""
        if token is not None and token == info.data.get("twilio_auth_token"):
            text = "is the same as TWILIO_AUTH_TOKEN"
            raise values.wrong(text, "copy the secondary token, or unset it")
        return token

    @field_validator("twilio_edge", "twilio_api_secret")
    @classmethod
    def _in_pairs(cls, value: Any, info: ValidationInfo) -> Any:
        """The other one of the pair is `first`. One alone does nothing, or makes a host
        that does not exist."""
        first = {"twilio_edge": "twilio_region"}.get(
            str(info.field_name), "twilio_api_key"
        )
        # A setting with a mistake is not in the data; it is reported separately.
        if first in info.data and (info.data[first] is None) != (value is None):
            text = "is set, but {} is not" if value else "is not set, but {} is"
            raise values.wrong(text.format(variable(first)), "set both, or neither")
        return value

    @field_validator("when_full")
    @classmethod
    def _with_a_number(cls, chosen: str, info: ValidationInfo) -> str:
        # An invalid number is not in the data; it is reported as a separate mistake.
        if chosen == "fallback" and info.data.get("fallback_number", "") is None:
            text = "is fallback, but there is no number to dial"
            raise values.wrong(text, "set BRIDGE_FALLBACK_NUMBER")
        return chosen

    @field_validator("twilio_accounts")
    @classmethod
    def _apart_from_main(
        cls, accounts: dict[str, tuple[str, ...]], info: ValidationInfo
    ) -> dict[str, tuple[str, ...]]:
        """Each token must be valid for its own account only."""
        # A setting with a mistake is not in the data; it is reported separately.
        main = info.data.get("twilio_account_sid", "")
        if main is None:
            text = "is set, but TWILIO_AUTH_TOKEN would be valid for any account"
            raise values.wrong(text, "set TWILIO_ACCOUNT_SID to the account it is of")
        if main in accounts:
            text = "names the account of TWILIO_ACCOUNT_SID"
            raise values.wrong(text, "set its tokens as TWILIO_AUTH_TOKEN(_SECONDARY)")
        own = (info.data.get(f"twilio_auth_token{it}") for it in ("", "_secondary"))
        taken = {token.get_secret_value() for token in own if token}
        if any(taken & {*tokens} for tokens in accounts.values()):
            text = "has a token of the account of TWILIO_ACCOUNT_SID"
            raise values.wrong(text, "copy each token from the page of its account")
        if info.data.get("tickets") == "off":
            # The url of a stream without a ticket names no account.
            text = "is set, but BRIDGE_TICKETS is off: the token of any account could "
            fix = "set BRIDGE_TICKETS=required"
            raise values.wrong(f"{text}open streams for calls of all accounts", fix)
        return accounts

    @classmethod
    def settings_customise_sources(
        cls, *_: Any, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (sources["init_settings"],)


_FIELDS = {str(it.validation_alias): it for it in Settings.model_fields.values()}
NAMES = frozenset(_FIELDS)

SECRET_NAMES = frozenset(name for name, it in _FIELDS.items() if not it.repr)
"""Settings whose value may stand in a file: NAME_FILE=path in place of NAME=value."""


def export(file: "EnvFile", *, own: bool = True) -> None:
    """Puts what `file` holds into the process environment, where user code finds it as
    in a container of docker compose. A variable that is set already stays. `own`: also
    the settings of the bridge. Call it before user code, and the SDK, are imported."""
    for name, value in file.values.items():
        of_bridge = name in NAMES or name.startswith("BRIDGE_")
        if name not in file.bare and (own or not of_bridge):
            os.environ.setdefault(name, value)


def file_name(name: str) -> str:
    """The variable that names the file of a secret setting."""
    return f"{name}_FILE"


@dataclass(frozen=True, slots=True)
class SettingsReading:
    """The environment as far as it can be used, and its mistakes."""

    settings: Settings
    """Variables with mistakes count as unset in it."""
    mistakes: tuple[Finding, ...]
    variables: Mapping[str, str]
    """All variables; one of the process overrides one of the file."""
    file: EnvFile
    environ: Mapping[str, str]
    """The variables of the process."""
    is_complete: bool = True
    """False: the file could not be read, so it is not known what is missing."""

    @property
    def secret_files(self) -> dict[str, str]:
        """Secret setting -> the path that its NAME_FILE gives."""
        return _secret_files(self.variables)

    def placed(self, finding: Finding, line: int = 1) -> Finding:
        """The finding with the place of its variable, at the line-th line of its
        value."""
        if finding.place or finding.level == "ok" or finding.name in self.environ:
            return finding
        return replace(finding, place=self.file.place(finding.name, line))


def load(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> Settings:
    """The settings of this process; a variable of `environ` overrides `env_file`.
    SettingsError with all mistakes."""
    reading = read(environ, env_file)
    if reading.mistakes:
        raise SettingsError(reading.mistakes)
    return reading.settings


def read(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> SettingsReading:
    """As `load`, with the mistakes beside what can be used; never raises."""
    environ = os.environ if environ is None else environ
    file, mistakes, is_complete = EnvFile(), list[Finding](), False
    try:
        file = read_env_file(env_file)
        is_complete = True
    except (OSError, UnicodeDecodeError) as error:
        text, fix = "cannot be read", "correct its permissions or remove it"
        if isinstance(error, UnicodeDecodeError):
            text, fix = "is not UTF-8", "save it as UTF-8"
        mistakes.append(Finding("error", str(env_file), text, fix))
    given = {**file.values, **environ}
    contents, of_files = _contents_of_files(given)
    mistakes += of_files
    unusable = {it.name.removesuffix("_FILE") for it in of_files}
    chosen = {it: given[it] for it in NAMES & given.keys() - unusable} | contents
    settings, errors = _usable(chosen)
    reading = SettingsReading(settings, (), given, file, environ, is_complete)
    for it in errors:
        mistakes += _mistakes(it, reading)
    return replace(
        reading, mistakes=tuple(dict.fromkeys(map(reading.placed, mistakes)))
    )


_PAIRS = {"TWILIO_EDGE": "TWILIO_REGION", "TWILIO_API_SECRET": "TWILIO_API_KEY"}
"""A mistake of the first may be that it is not set, and the second is."""


def _usable(given: Mapping[str, str]) -> tuple[Settings, list[Any]]:
    """The settings without the variables that pydantic refuses, and the errors of all
    of them. Errors that come only from leaving a variable out are no mistakes."""
    try:
        return Settings(**given), []  # type: ignore[arg-type]  # texts
    except ValidationError as error:
        # pydantic skips the default of `host` after a mistake before it.
        wrong = "default_factory_not_called"
        errors = [it for it in error.errors() if it["type"] != wrong]
    names = {_name_of(it) for it in errors}
    names |= {_PAIRS[it] for it in names & _PAIRS.keys()}
    rest = {name: it for name, it in given.items() if name not in names}
    # What others need of a wrong variable goes with it.
    return _usable(rest if len(rest) < len(given) else {})[0], errors


def _secret_files(given: Mapping[str, str]) -> dict[str, str]:
    named = {name: given.get(file_name(name), "").strip() for name in SECRET_NAMES}
    return {name: path for name, path in sorted(named.items()) if path}


def _contents_of_files(
    given: Mapping[str, str],
) -> tuple[dict[str, str], list[Finding]]:
    """Secret setting -> content of its file, and the mistakes."""
    contents: dict[str, str] = {}
    mistakes: list[Finding] = []
    for name, path in _secret_files(given).items():
        try:
            if given.get(name, "").strip():
                raise values.wrong(f"is set together with {name}", "unset one of them")
            contents[name] = values.content_of(path)
        except PydanticCustomError as error:
            for it in values.faults_of(error):
                mistakes.append(Finding("error", file_name(name), it.text, it.fix))
    return contents, mistakes


def _name_of(error: Mapping[str, Any]) -> str:
    """The variable of an error of pydantic, which names a default by its field."""
    name = str(error["loc"][0]) if error["loc"] else "the environment"
    field = Settings.model_fields.get(name)
    return str(field.validation_alias) if field else name


def _mistakes(error: Mapping[str, Any], reading: SettingsReading) -> list[Finding]:
    """Turns an error of pydantic into messages that say how to correct it."""
    name, context = _name_of(error), error.get("ctx", {})
    if error["type"] != values.WRONG:
        return [_wrong_number_or_choice(name, error)]
    found = []
    for fault in context["faults"]:
        fix = fault.fix.replace(values.OF_A_FILE, file_name(name))
        mistake = Finding("error", name, fault.text, fix)
        path = reading.secret_files.get(name)
        if path:
            place = f"{path}:{fault.line}" if fault.line else path
            mistake = replace(mistake, name=file_name(name), place=place)
        found.append(reading.placed(mistake, fault.line or 1))
    return found


def _wrong_number_or_choice(name: str, error: Mapping[str, Any]) -> Finding:
    field = _FIELDS.get(name, FieldInfo())
    given, context = str(error["input"]).strip(), error.get("ctx", {})
    match error["type"]:
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
