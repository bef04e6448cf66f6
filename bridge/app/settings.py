"""The environment -> one frozen `Settings`, and what `bridge check` says about it.

Every mistake is found before the first call and all of them are told at once. Values
that may be secret are never part of a message. Nothing is dialled from here.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bridge.app import values
from bridge.app.values import LOCAL_MODEL
from bridge.core.rules import Prices
from bridge.fleet.place import redis_place
from bridge.model.names import DEPRECATED_MODELS, DEPRECATED_TRANSCRIPTION_MODELS

OPENAI_MODEL_URL = "wss://api.openai.com/v1/realtime"
GREETING = "Greet the caller in one short, friendly sentence and ask how you can help."

MIN_TOKEN_CHARS = 16
"""Of what opens a door on the internet: who guesses it places calls, or passes for
Twilio (whose own tokens have 32)."""

EVERYWHERE = "0.0.0.0"  # noqa: S104 - a container's own; who gets in is checked
LOOPBACK = "127.0.0.1"

PUBLISHED = frozenset(
    {
        "your-other-auth-token",
        "the-auth-token-of-the-twilio-console",
        "the-old-auth-token",
        "a-long-random-token",
    }
)
"""Values that our own files show, and that are long enough: anybody can read them."""

_PREFIX = "BRIDGE_"
# Everywhere else an empty value means: not set (docker-compose passes such).
_EMPTY_IS_A_CHOICE = frozenset({"BRIDGE_GREETING", "BRIDGE_TRANSCRIPTION_MODEL"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report. `name` is the variable; `fix` is empty when all is well."""

    level: Literal["ok", "warning", "error"]
    name: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.text}" + (f": {self.fix}" if self.fix else "")


class SettingsError(ValueError):
    """The environment does not describe a bridge; the message has a line a mistake."""

    def __init__(self, mistakes: Iterable[Finding]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def load(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> "Settings":
    """The settings of this process; what `environ` says goes before `env_file`."""
    given: dict[str, Any] = {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if name in NAMES
    }
    given["_env_file"] = env_file  # BaseSettings' own parameter
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(map(_mistake, error.errors())) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([_unreadable(env_file, error)]) from None


def serving_mistakes(settings: "Settings") -> list[Finding]:
    """What keeps the real Twilio from being served (errors), and what may surprise."""
    found = []
    if settings.insecure:
        found.append(_INSECURE)
        if settings.host != LOOPBACK:
            text = f"is {settings.host}: whoever reaches it calls, unsigned"
            fix = "remove it, unless that is what you want"
            found.append(Finding("warning", "BRIDGE_HOST", text, fix))
    else:
        if settings.public_url is None:
            found.append(_NO_PUBLIC_URL)
        if settings.twilio_auth_token is None:
            found.append(_NO_AUTH_TOKEN)
        if settings.tickets == "off":
            found.append(_NO_TICKETS)
    if settings.model_target == LOCAL_MODEL:
        found.append(_FAKE_MODEL)
    elif settings.openai_api_key is None and not settings.model_headers:
        found.append(_NO_MODEL_KEY)
    if any(network.prefixlen == 0 for network in settings.trusted_proxies):
        found.append(_ALL_TRUSTED)
    return found + _guessable(settings) + _half_set(settings) + _deprecated(settings)


def unknown_names(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> list[Finding]:
    """A warning for each BRIDGE_ variable that no setting reads, and for each that is
    nearly one of the vendors'."""
    names = set(os.environ if environ is None else environ)
    if env_file is not None and Path(env_file).is_file():
        names |= set(dotenv_values(env_file, encoding="utf-8"))
    found = []
    for name in sorted(names - NAMES):
        own = name.upper().startswith(_PREFIX)
        # The vendors' have many names, that are others' to read.
        near = difflib.get_close_matches(
            name.upper(), sorted(NAMES), n=1, cutoff=0.6 if own else 0.92
        )
        if not (own or near):
            continue
        fix = f"did you mean {near[0]}?" if near else "remove it"
        found.append(Finding("warning", name, "is not a setting of the bridge", fix))
    return found


def check(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> list[Finding]:
    """All there is to say about the environment, for `bridge check`; never raises."""
    try:
        settings = load(environ, env_file)
        unknown = unknown_names(environ, env_file)
    except SettingsError as error:
        return list(error.mistakes)
    return _in_force(settings) + serving_mistakes(settings) + unknown


def _only_without_public_url(value: object, info: ValidationInfo) -> bool:
    insecure = values.yes_or_no(value)
    if insecure and info.data.get("public_url") is not None:
        raise values.wrong(
            "is on together with BRIDGE_PUBLIC_URL, so anybody could call",
            "unset one of the two",
        )
    return insecure


def _with_a_number(value: object, info: ValidationInfo) -> str:
    answer = values.one_of("busy", "queue", "fallback")(value)
    # Not there at all: it is wrong itself, and is told as such.
    number = info.data.get("fallback_number", "")
    if answer == "fallback" and number is None:
        raise values.wrong(
            "is fallback, but there is nobody to dial", "set BRIDGE_FALLBACK_NUMBER"
        )
    return answer


_Secret = Annotated[SecretStr | None, BeforeValidator(values.secret)]
_Word = Annotated[str, BeforeValidator(values.word)]
_Text = Annotated[str, BeforeValidator(values.text)]
_SomeSeconds = Annotated[float, BeforeValidator(values.some_seconds)]


class Settings(BaseSettings):
    """What one process was told. Made by `load`; by hand in tests: `Settings(port=0)`.

    Only what is handed in counts (and the file `load` names): no field is read from
    the machine behind a test's back.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        case_sensitive=True,
        env_file=None,
        env_file_encoding="utf-8",
        arbitrary_types_allowed=True,  # Prices
        # Both: by hand a field goes by its own name, in the file by the variable's only
        # (without the prefix a line `host=...` there would count).
        populate_by_name=True,
        env_prefix=_PREFIX,
        hide_input_in_errors=True,
        validate_default=False,
    )

    # 0 = any free port, for demo and tests.
    port: Annotated[int, BeforeValidator(values.whole_number(0, 65535))] = Field(
        default=8080, validation_alias="BRIDGE_PORT"
    )
    public_url: Annotated[str | None, BeforeValidator(values.public_url)] = Field(
        default=None, validation_alias="BRIDGE_PUBLIC_URL"
    )
    insecure: Annotated[bool, BeforeValidator(_only_without_public_url)] = Field(
        default=False, validation_alias="BRIDGE_INSECURE"
    )
    # With BRIDGE_INSECURE 127.0.0.1, unless it is set.
    host: Annotated[str, BeforeValidator(values.host)] = Field(
        default=EVERYWHERE, validation_alias="BRIDGE_HOST"
    )
    agent: Annotated[str, BeforeValidator(values.agent)] = Field(
        default="bridge.agent.receptionist:receptionist",
        validation_alias="BRIDGE_AGENT",
    )
    routes: Annotated[Path | None, BeforeValidator(values.file)] = Field(
        default=None, validation_alias="BRIDGE_ROUTES"
    )
    # Some vendors want a key in the query, all want one in the headers: not in repr.
    model_url: Annotated[str | None, BeforeValidator(values.model_url)] = Field(
        default=None, validation_alias="BRIDGE_MODEL_URL", repr=False
    )
    model: _Word = Field(default="gpt-realtime-2.1", validation_alias="BRIDGE_MODEL")
    model_headers: Annotated[
        dict[str, str], NoDecode, BeforeValidator(values.headers)
    ] = Field(default_factory=dict, validation_alias="BRIDGE_MODEL_HEADERS", repr=False)
    voice: _Word = Field(default="marin", validation_alias="BRIDGE_VOICE")
    # Empty = off. The SDK's own default is deprecated.
    transcription_model: _Text = Field(
        default="gpt-transcribe", validation_alias="BRIDGE_TRANSCRIPTION_MODEL"
    )
    # Empty = the caller speaks first.
    greeting: _Text = Field(default=GREETING, validation_alias="BRIDGE_GREETING")
    max_calls: Annotated[int, BeforeValidator(values.whole_number(1))] = Field(
        default=200, validation_alias="BRIDGE_MAX_CALLS"
    )
    # Shared by all instances; it may well hold a password.
    redis_url: Annotated[SecretStr | None, BeforeValidator(values.redis_url)] = Field(
        default=None, validation_alias="BRIDGE_REDIS_URL"
    )
    api_token: _Secret = Field(default=None, validation_alias="BRIDGE_API_TOKEN")
    # What the model takes: G.711 mu-law, or PCM 16 bit 24 kHz through transcoding.
    model_audio: Annotated[
        Literal["mulaw", "pcm"], BeforeValidator(values.one_of("mulaw", "pcm"))
    ] = Field(default="mulaw", validation_alias="BRIDGE_MODEL_AUDIO")
    # The user's own async (url, headers) -> websocket.
    model_connect: Annotated[str | None, BeforeValidator(values.agent)] = Field(
        default=None, validation_alias="BRIDGE_MODEL_CONNECT"
    )
    # It may well hold a key.
    report_url: Annotated[str | None, BeforeValidator(values.http_url)] = Field(
        default=None, validation_alias="BRIDGE_REPORT_URL", repr=False
    )
    report_secret: Annotated[
        SecretStr | None, BeforeValidator(values.webhook_secret)
    ] = Field(default=None, validation_alias="BRIDGE_REPORT_SECRET")
    # Which numbers may be called; none: nobody.
    outbound_prefixes: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(values.prefixes)
    ] = Field(default=(), validation_alias="BRIDGE_OUTBOUND_PREFIXES")
    # Whom those who are called see.
    outbound_number: Annotated[str | None, BeforeValidator(values.phone_number)] = (
        Field(default=None, validation_alias="BRIDGE_OUTBOUND_NUMBER")
    )
    outbound_calls: Annotated[int, BeforeValidator(values.whole_number(1))] = Field(
        default=10, validation_alias="BRIDGE_OUTBOUND_CALLS"
    )
    # Another origin of Twilio's REST API: a proxy, the fake.
    twilio_api_url: Annotated[str | None, BeforeValidator(values.http_url)] = Field(
        default=None, validation_alias="BRIDGE_TWILIO_API_URL"
    )
    drain_seconds: Annotated[float, BeforeValidator(values.seconds)] = Field(
        default=300.0, validation_alias="BRIDGE_DRAIN_SECONDS"
    )
    session_seconds: Annotated[float, BeforeValidator(values.seconds)] = Field(
        default=3000.0, validation_alias="BRIDGE_SESSION_SECONDS"
    )
    record_dir: Annotated[Path | None, BeforeValidator(values.folder)] = Field(
        default=None, validation_alias="BRIDGE_RECORD_DIR"
    )
    fallback_number: Annotated[str | None, BeforeValidator(values.phone_number)] = (
        Field(default=None, validation_alias="BRIDGE_FALLBACK_NUMBER")
    )
    # What a caller hears when no instance has a line.
    when_full: Annotated[
        Literal["busy", "queue", "fallback"], BeforeValidator(_with_a_number)
    ] = Field(default="busy", validation_alias="BRIDGE_WHEN_FULL")
    queue_seconds: Annotated[float, BeforeValidator(values.seconds)] = Field(
        default=120.0, validation_alias="BRIDGE_QUEUE_SECONDS"
    )
    log_format: Annotated[
        Literal["auto", "json", "pretty"],
        BeforeValidator(values.one_of("auto", "json", "pretty")),
    ] = Field(default="auto", validation_alias="BRIDGE_LOG")
    openai_api_key: _Secret = Field(default=None, validation_alias="OPENAI_API_KEY")
    # Signs the webhook of incoming SIP calls.
    openai_webhook_secret: Annotated[
        SecretStr | None, BeforeValidator(values.webhook_secret)
    ] = Field(default=None, validation_alias="OPENAI_WEBHOOK_SECRET")
    twilio_account_sid: Annotated[str | None, BeforeValidator(values.account_sid)] = (
        Field(default=None, validation_alias="TWILIO_ACCOUNT_SID")
    )
    twilio_auth_token: _Secret = Field(
        default=None, validation_alias="TWILIO_AUTH_TOKEN"
    )
    # While the token is rotated, either of the two is right.
    twilio_auth_token_secondary: _Secret = Field(
        default=None, validation_alias="TWILIO_AUTH_TOKEN_SECONDARY"
    )
    # id -> secret, where webhooks are signed with SharedKeys.
    twilio_shared_keys: Annotated[
        dict[str, str], NoDecode, BeforeValidator(values.shared_keys)
    ] = Field(default_factory=dict, validation_alias="TWILIO_SHARED_KEYS", repr=False)
    # A stream without the ticket of a webhook of ours gets nothing, unless this is off.
    tickets: Annotated[
        Literal["required", "off"],
        BeforeValidator(values.one_of("required", "off")),
    ] = Field(default="required", validation_alias="BRIDGE_TICKETS")
    # Whose X-Forwarded-For is believed.
    trusted_proxies: Annotated[
        tuple[values.IpNetwork, ...], NoDecode, BeforeValidator(values.networks)
    ] = Field(default=(), validation_alias="BRIDGE_TRUSTED_PROXIES")

    # --- limits; where 0 makes sense it means: none ---

    start_seconds: _SomeSeconds = Field(
        default=10.0, validation_alias="BRIDGE_START_SECONDS"
    )
    waiting_sockets: Annotated[int, BeforeValidator(values.whole_number(1))] = Field(
        default=500, validation_alias="BRIDGE_WAITING_SOCKETS"
    )
    waiting_per_address: Annotated[int, BeforeValidator(values.whole_number(1))] = (
        Field(default=100, validation_alias="BRIDGE_WAITING_PER_ADDRESS")
    )
    header_bytes: Annotated[
        int, BeforeValidator(values.whole_number(2048, 1 << 20))
    ] = Field(default=16 * 1024, validation_alias="BRIDGE_HEADER_BYTES")
    body_bytes: Annotated[int, BeforeValidator(values.whole_number(4096, 16 << 20))] = (
        Field(default=64 * 1024, validation_alias="BRIDGE_BODY_BYTES")
    )
    body_seconds: _SomeSeconds = Field(
        default=10.0, validation_alias="BRIDGE_BODY_SECONDS"
    )
    send_seconds: _SomeSeconds = Field(
        default=5.0, validation_alias="BRIDGE_SEND_SECONDS"
    )
    message_bytes: Annotated[
        int, BeforeValidator(values.whole_number(4096, 16 << 20))
    ] = Field(default=256 * 1024, validation_alias="BRIDGE_MESSAGE_BYTES")
    messages_per_second: Annotated[
        int, BeforeValidator(values.whole_number(60, 100_000))
    ] = Field(default=200, validation_alias="BRIDGE_MESSAGES_PER_SECOND")
    audio_held_seconds: Annotated[float, BeforeValidator(values.some_seconds)] = Field(
        default=20.0, validation_alias="BRIDGE_AUDIO_HELD_SECONDS"
    )
    audio_ahead_seconds: Annotated[float, BeforeValidator(values.some_seconds)] = Field(
        default=600.0, validation_alias="BRIDGE_AUDIO_AHEAD_SECONDS"
    )
    calls_per_number: Annotated[int, BeforeValidator(values.whole_number(0))] = Field(
        default=10, validation_alias="BRIDGE_CALLS_PER_NUMBER"
    )
    calls_per_number_hour: Annotated[int, BeforeValidator(values.whole_number(0))] = (
        Field(default=60, validation_alias="BRIDGE_CALLS_PER_NUMBER_HOUR")
    )
    longest_seconds: Annotated[
        int, BeforeValidator(values.whole_number(10, 4 * 3600))
    ] = Field(default=4 * 3600, validation_alias="BRIDGE_LONGEST_SECONDS")
    # Per million tokens, in any unit; the two limits below are in it.
    prices: Annotated[Prices | None, BeforeValidator(values.prices)] = Field(
        default=None, validation_alias="BRIDGE_PRICES"
    )
    cost_per_call: Annotated[float, BeforeValidator(values.amount)] = Field(
        default=0.0, validation_alias="BRIDGE_COST_PER_CALL"
    )
    cost_per_day: Annotated[float, BeforeValidator(values.amount)] = Field(
        default=0.0, validation_alias="BRIDGE_COST_PER_DAY"
    )
    # Whom a call may be put through to, beside those whom the routes name.
    transfer_prefixes: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(values.prefixes)
    ] = Field(default=(), validation_alias="BRIDGE_TRANSFER_PREFIXES")
    api_per_second: Annotated[int, BeforeValidator(values.whole_number(1, 10_000))] = (
        Field(default=20, validation_alias="BRIDGE_API_PER_SECOND")
    )
    # What is older is deleted.
    record_days: Annotated[int, BeforeValidator(values.whole_number(0, 3650))] = Field(
        default=30, validation_alias="BRIDGE_RECORD_DAYS"
    )

    @property
    def model_target(self) -> str:
        """Where the model is dialled (without `?model=`), or `LOCAL_MODEL`."""
        if self.model_url is not None:
            return self.model_url
        return LOCAL_MODEL if self.openai_api_key is None else OPENAI_MODEL_URL

    @model_validator(mode="before")
    @classmethod
    def _as_it_is_meant(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Without the empty: unset values; a None stays with its default, too."""
        given = {
            name: value
            for name, value in given.items()
            if value is not None
            and (
                name in _EMPTY_IS_A_CHOICE
                or name not in NAMES
                or str(value).strip() != ""
            )
        }
        insecure = given.get("BRIDGE_INSECURE", given.get("insecure", ""))
        if values.is_yes(insecure) and not given.keys() & {"BRIDGE_HOST", "host"}:
            # Unsigned requests come from this machine, unless somebody says otherwise.
            given["BRIDGE_HOST"] = LOOPBACK
        return given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, dotenv_settings


NAMES = frozenset(
    field.validation_alias
    for field in Settings.model_fields.values()
    if isinstance(field.validation_alias, str)
)

# ------------------------------------------------------------------------- the report

_NO_PUBLIC_URL = Finding(
    "error",
    "BRIDGE_PUBLIC_URL",
    "is not set, so no signature of Twilio's can be checked",
    "add the line BRIDGE_PUBLIC_URL=https://<the host Twilio reaches you at> "
    "(or BRIDGE_INSECURE=1, while developing)",
)
_NO_AUTH_TOKEN = Finding(
    "error",
    "TWILIO_AUTH_TOKEN",
    "is not set, so no signature of Twilio's can be checked",
    "add the line TWILIO_AUTH_TOKEN=<the primary auth token of the Twilio console>",
)
_INSECURE = Finding(
    "warning",
    "BRIDGE_INSECURE",
    "is on: requests that Twilio did not sign are served",
    "for anything but development set BRIDGE_PUBLIC_URL and TWILIO_AUTH_TOKEN",
)
_NO_TICKETS = Finding(
    "warning",
    "BRIDGE_TICKETS",
    "is off: a handshake that was once seen opens streams for ever, and no limit of "
    "callers holds for them",
    "remove it, unless a TwiML Bin answers your number",
)
_ALL_TRUSTED = Finding(
    "warning",
    "BRIDGE_TRUSTED_PROXIES",
    "believes everybody: who writes X-Forwarded-For is held to no limit of addresses",
    "name your proxies' own addresses or network",
)
_FAKE_MODEL = Finding(
    "warning",
    "BRIDGE_MODEL_URL",
    "or OPENAI_API_KEY names no real model: the bundled fake answers the calls",
    "set OPENAI_API_KEY and no BRIDGE_MODEL_URL, or the url of another vendor",
)
_NO_MODEL_KEY = Finding(
    "warning",
    "BRIDGE_MODEL_URL",
    "is dialled without any key",
    "set OPENAI_API_KEY or BRIDGE_MODEL_HEADERS if it wants one",
)


def _guessable(settings: Settings) -> list[Finding]:
    """A placeholder that was left, a token that was cut off, or nothing but quotes."""
    console = "copy it again from the Twilio console, without quotes"
    own = f"set one of {MIN_TOKEN_CHARS} characters or more"
    shared = settings.twilio_shared_keys.values()
    twilios = [
        ("TWILIO_AUTH_TOKEN", settings.twilio_auth_token),
        ("TWILIO_AUTH_TOKEN_SECONDARY", settings.twilio_auth_token_secondary),
        *(("TWILIO_SHARED_KEYS", SecretStr(key)) for key in shared),
    ]
    secrets = [
        ("BRIDGE_API_TOKEN", settings.api_token, "places calls", own),
        *((name, it, "passes for Twilio", console) for name, it in twilios),
    ]
    return [
        Finding(
            "warning" if settings.insecure else "error",
            name,
            f"can be guessed, and whoever has it {does}",
            fix,
        )
        for name, secret, does, fix in secrets
        if secret
        and (
            len(secret.get_secret_value()) < MIN_TOKEN_CHARS
            or secret.get_secret_value() in PUBLISHED
        )
    ]


def _half_set(settings: Settings) -> list[Finding]:
    """What was wanted, but lacks something it should not be without."""
    found = []
    outbound = {
        "BRIDGE_PUBLIC_URL": settings.public_url,
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
        "TWILIO_AUTH_TOKEN": settings.twilio_auth_token,
        "BRIDGE_API_TOKEN": settings.api_token,
    }
    lacking = [name for name, value in outbound.items() if value is None]
    if settings.outbound_prefixes and lacking:
        text, fix = "allows calls that cannot be placed", f"set {', '.join(lacking)}"
        found.append(Finding("warning", "BRIDGE_OUTBOUND_PREFIXES", text, fix))
    for name, limit in (
        ("BRIDGE_COST_PER_CALL", settings.cost_per_call),
        ("BRIDGE_COST_PER_DAY", settings.cost_per_day),
    ):
        # What routes have no prices, startup.py tells.
        if limit and settings.prices is None and settings.routes is None:
            text = "is set, but nobody knows what anything costs"
            fix = "set BRIDGE_PRICES, or `cost` in the routes"
            found.append(Finding("error", name, text, fix))
    host = urlsplit(settings.model_url or "").hostname or ""
    own = host in ("", "local") or host.endswith((".openai.com", ".azure.com"))
    if settings.openai_api_key and not own and not settings.model_headers:
        text = f"sends OPENAI_API_KEY to {host}"
        fix = "set BRIDGE_MODEL_HEADERS to the key of that host, if it is not OpenAI's"
        found.append(Finding("warning", "BRIDGE_MODEL_URL", text, fix))
    if settings.openai_webhook_secret and settings.openai_api_key is None:
        text, fix = "is set, but no SIP call can be accepted", "set OPENAI_API_KEY"
        found.append(Finding("warning", "OPENAI_WEBHOOK_SECRET", text, fix))
    if settings.report_secret and not (settings.report_url or settings.routes):
        text = "is set, but no report is sent anywhere"
        fix = "set BRIDGE_REPORT_URL, or `report` in the routes"
        found.append(Finding("warning", "BRIDGE_REPORT_SECRET", text, fix))
    return found


def _deprecated(settings: Settings) -> list[Finding]:
    used = (
        ("BRIDGE_MODEL", settings.model, DEPRECATED_MODELS),
        (
            "BRIDGE_TRANSCRIPTION_MODEL",
            settings.transcription_model,
            DEPRECATED_TRANSCRIPTION_MODELS,
        ),
    )
    return [
        Finding(
            "warning",
            name,
            f"is {model}, which OpenAI shuts down on {shut_down[model]}",
            "unset it to use the current one",
        )
        for name, model, shut_down in used
        if model in shut_down
    ]


def _in_force(settings: Settings) -> list[Finding]:
    """What is in force, in words: nothing here may show a secret."""
    model = settings.model_target.partition("?")[0]
    said = [
        ("BRIDGE_PORT", f"listens on {settings.host}, port {settings.port}"),
        ("BRIDGE_AGENT", f"is {settings.agent}"),
        ("BRIDGE_MODEL", f"is {settings.model}, voice {settings.voice}, at {model}"),
        ("BRIDGE_MAX_CALLS", f"is {settings.max_calls}"),
        ("BRIDGE_DRAIN_SECONDS", f"is {settings.drain_seconds:g}"),
        ("BRIDGE_SESSION_SECONDS", f"is {settings.session_seconds:g}"),
        ("BRIDGE_LONGEST_SECONDS", f"is {settings.longest_seconds}: no call is longer"),
        ("BRIDGE_CALLS_PER_NUMBER", _most(settings.calls_per_number)),
        ("BRIDGE_CALLS_PER_NUMBER_HOUR", _most(settings.calls_per_number_hour)),
        ("BRIDGE_COST_PER_CALL", _most(settings.cost_per_call)),
        ("BRIDGE_COST_PER_DAY", _most(settings.cost_per_day)),
    ]
    if settings.public_url is not None:
        said.append(("BRIDGE_PUBLIC_URL", f"is {settings.public_url}"))
    if settings.trusted_proxies:
        proxies = ", ".join(map(str, settings.trusted_proxies))
        said.append(("BRIDGE_TRUSTED_PROXIES", f"believes {proxies}"))
    if settings.twilio_shared_keys:
        keys = ", ".join(settings.twilio_shared_keys)
        said.append(("TWILIO_SHARED_KEYS", f"has {keys}"))
    if settings.redis_url is not None:
        place = redis_place(settings.redis_url.get_secret_value())
        said.append(("BRIDGE_REDIS_URL", f"is set: calls are shared at {place}"))
    if settings.record_dir is not None:
        said.append(("BRIDGE_RECORD_DIR", f"is {settings.record_dir}"))
    if settings.fallback_number is not None:
        said.append(("BRIDGE_FALLBACK_NUMBER", "is set: plan B dials it"))
    if settings.when_full == "queue":
        limit = f"is queue: callers wait up to {settings.queue_seconds:g} s for a line"
        said.append(("BRIDGE_WHEN_FULL", limit))
    elif settings.when_full == "fallback":
        said.append(("BRIDGE_WHEN_FULL", "is fallback: callers are put through"))
    if settings.routes is not None:
        said.append(("BRIDGE_ROUTES", f"is {settings.routes}"))
    if settings.model_audio == "pcm":
        said.append(("BRIDGE_MODEL_AUDIO", "is pcm: audio is transcoded"))
    if settings.outbound_prefixes:
        allowed = ", ".join(settings.outbound_prefixes)
        said.append(("BRIDGE_OUTBOUND_PREFIXES", f"lets {allowed} be called"))
    if settings.transfer_prefixes:
        allowed = ", ".join(settings.transfer_prefixes)
        said.append(
            ("BRIDGE_TRANSFER_PREFIXES", f"lets calls be put through to {allowed}")
        )
    if settings.report_url is not None:
        said.append(("BRIDGE_REPORT_URL", "is set: reports are sent there"))
    for name, secret in (
        ("BRIDGE_API_TOKEN", settings.api_token),
        ("OPENAI_API_KEY", settings.openai_api_key),
        ("OPENAI_WEBHOOK_SECRET", settings.openai_webhook_secret),
        ("TWILIO_AUTH_TOKEN", settings.twilio_auth_token),
        ("TWILIO_AUTH_TOKEN_SECONDARY", settings.twilio_auth_token_secondary),
    ):
        if secret is not None:
            said.append((name, "is set"))
    return [Finding("ok", name, text) for name, text in said]


def _most(limit: float) -> str:
    return f"is {limit:g}" if limit else "is 0: no limit"


def _mistake(error: Mapping[str, Any]) -> Finding:
    """What pydantic found, told as every other mistake."""
    name = str(error["loc"][0]) if error["loc"] else "the environment"
    context = error.get("ctx", {})
    if error["type"] == "setting":
        return Finding("error", name, context["text"], context["fix"])
    return Finding("error", name, "is not usable", str(error["msg"]))


def _unreadable(env_file: str | Path | None, error: Exception) -> Finding:
    if isinstance(error, UnicodeDecodeError):
        return Finding("error", str(env_file), "is not UTF-8", "save it as UTF-8")
    return Finding(
        "error", str(env_file), "cannot be read", "correct its permissions or remove it"
    )
