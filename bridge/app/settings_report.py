"""The report of `bridge check` about the settings: mistakes, warnings, values in force.

`bridge serve` refuses to start on an error of this report. No line contains a value
that may be secret.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bridge.app import placeholders
from bridge.app.env_file import EnvFile
from bridge.app.settings import (
    NAMES,
    OPENAI_MODEL_URL,
    SECRET_NAMES,
    Finding,
    Level,
    Settings,
    SettingsReading,
    file_name,
    read,
    variable,
)
from bridge.app.values import LOCAL_MODEL, is_loopback
from bridge.fleet.redis_address import redis_address
from bridge.model.deprecated_models import (
    DEPRECATED_MODELS,
    DEPRECATED_TRANSCRIPTION_MODELS,
)

MIN_TOKEN_CHARS = 16
"""Minimum length of the API token and of Twilio's secrets (its auth tokens have 32
characters). An attacker who guesses the API token can place calls; an attacker who
guesses a secret of Twilio's can pass for Twilio."""


def unknown_names(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> list[Finding]:
    """A warning for each BRIDGE_ variable that is not a setting, and for each name that
    is nearly OPENAI_... or TWILIO_... of a setting."""
    return _unknown_names(read(environ, env_file))


def _unknown_names(reading: SettingsReading) -> list[Finding]:
    known = NAMES | {file_name(name) for name in SECRET_NAMES}
    found = []
    for name in sorted(reading.variables.keys() - known):
        own = name.upper().startswith("BRIDGE_")
        # OPENAI_ and TWILIO_ variables may be meant for other programs.
        near = difflib.get_close_matches(
            name.upper(), sorted(known), n=1, cutoff=0.6 if own else 0.92
        )
        if own or near:
            fix = f"did you mean {near[0]}?" if near else "remove it"
            text = "is not a setting of the bridge"
            found.append(reading.placed(Finding("warning", name, text, fix)))
    return found


def _lines(file: EnvFile) -> Iterator[Finding]:
    """Lines of the file that do nothing."""
    for line in file.unreadable:
        text, fix = "is no assignment", "write NAME=value, or # before a comment"
        yield Finding("error", "a line", text, fix, f"{file.path}:{line}")
    for name, line in file.repeated.items():
        text = f"is set in line {line} already; only the last one counts"
        yield Finding("warning", name, text, "remove one of the two", file.place(name))


def check(
    environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env"
) -> list[Finding]:
    """The whole report about the environment; never raises."""
    return report(read(environ, env_file))


def report(reading: SettingsReading) -> list[Finding]:
    """Mistakes of the environment, warnings, and the values in force."""
    if not reading.is_complete:
        return [*reading.mistakes, *_unknown_names(reading)]
    settings, files = reading.settings, reading.secret_files
    wrong = {it.name.removesuffix("_FILE") for it in reading.mistakes}
    in_files = [Finding("ok", file_name(it), f"is {at}") for it, at in files.items()]
    in_force = [
        it
        for it in _in_force(settings) + in_files
        if it.name.removesuffix("_FILE") not in wrong
    ]
    return [
        *in_force,
        *reading.mistakes,
        *_lines(reading.file),
        *map(reading.placed, not_consequences(serving_mistakes(settings), wrong)),
        *_unknown_names(reading),
    ]


def not_consequences(findings: list[Finding], wrong: Iterable[str]) -> list[Finding]:
    """The findings that name no setting of `wrong`. A setting whose value has a mistake
    counts as unset: what depends on it may be right when it is corrected."""
    names = {*wrong}
    return [
        it
        for it in findings
        if names.isdisjoint(re.findall(r"\b[A-Z][A-Z_]+\b", f"{it.name} {it.fix}"))
    ]


def serving_mistakes(settings: Settings) -> list[Finding]:
    """Errors prevent calls of the real Twilio; warnings name likely mistakes."""
    parts = (
        *(_insecure, _printed, _signatures, _placeholders, _model),
        *(_guessable, _half_set),
        _deprecated,
    )
    return [finding for part in parts for finding in part(settings)]


def _printed(settings: Settings) -> Iterator[Finding]:
    if settings.print_calls == "on" and not settings.insecure:
        text = "is on: stdout has the words of callers"
        yield Finding("warning", "BRIDGE_PRINT_CALLS", text, "unset it in production")


def open_with_model_key(settings: Settings) -> list[str]:
    """The warning of `bridge serve` for an insecure bridge whose calls cost money;
    empty if they cost none, as with the bundled fake."""
    real = settings.model_target != LOCAL_MODEL and (
        settings.model_headers
        or settings.model_connect
        or settings.model_target.startswith("wss:")
    )
    if not settings.insecure or not (real or settings.openai_api_key):
        return []
    callers = "Every program and every user of this machine"
    if not is_loopback(settings.host):
        callers = f"EVERYBODY who reaches port {settings.port} of this machine"
    return [
        "DANGER: this bridge is OPEN, and its calls cost YOUR money.",
        "",
        "BRIDGE_INSECURE=1 switches off the check of Twilio's signatures, and the key",
        "or the url of a real model is set.",
        callers,
        "can place calls that you pay for, and can talk to the tools of your agent.",
        "Do not make this port reachable: no tunnel (ngrok), no proxy, no open port.",
        "",
        "For a real number: set BRIDGE_PUBLIC_URL and TWILIO_AUTH_TOKEN, and unset",
        "BRIDGE_INSECURE. Without costs: unset OPENAI_API_KEY, set "
        "BRIDGE_MODEL_URL=local.",
    ]


def _insecure(settings: Settings) -> Iterator[Finding]:
    if open_with_model_key(settings):
        text = (
            "is on with a real model: DANGER, everybody who reaches the bridge can "
            "place calls that you pay for"
        )
        fix = (
            "set BRIDGE_PUBLIC_URL and TWILIO_AUTH_TOKEN instead, or use "
            "BRIDGE_MODEL_URL=local and no OPENAI_API_KEY"
        )
        yield Finding("warning", "BRIDGE_INSECURE", text, fix)
    elif settings.insecure:
        text = "is on: requests that Twilio did not sign are served"
        fix = "unless you develop, set BRIDGE_PUBLIC_URL and TWILIO_AUTH_TOKEN instead"
        yield Finding("warning", "BRIDGE_INSECURE", text, fix)
    if settings.insecure and not is_loopback(settings.host):
        text = f"is {settings.host}: anybody who reaches it can call, unsigned"
        fix = "remove it, unless that is what you want"
        yield Finding("warning", "BRIDGE_HOST", text, fix)


def _signatures(settings: Settings) -> Iterator[Finding]:
    unsigned = "is not set, so Twilio's signatures cannot be checked"
    if not settings.insecure:
        if settings.public_url is None:
            fix = (
                "add the line BRIDGE_PUBLIC_URL=https://<the host that Twilio calls> "
                "(or BRIDGE_INSECURE=1, while developing)"
            )
            yield Finding("error", "BRIDGE_PUBLIC_URL", unsigned, fix)
        if settings.twilio_auth_token is None:
            text = unsigned
            if settings.twilio_api_key is not None:
                text += " (Twilio signs with the auth token, never with an API key)"
            fix = (
                "add the line "
                "TWILIO_AUTH_TOKEN=<the primary auth token of the Twilio console>"
            )
            yield Finding("error", "TWILIO_AUTH_TOKEN", text, fix)
        if settings.tickets == "off":
            text = (
                "is off: anybody who has seen a handshake can open streams for ever, "
                "and no limit of callers holds for these streams"
            )
            fix = "remove it, unless a TwiML Bin answers your number"
            yield Finding("warning", "BRIDGE_TICKETS", text, fix)
    if any(network.prefixlen == 0 for network in settings.trusted_proxies):
        text = (
            "trusts every address: a client that writes X-Forwarded-For escapes every "
            "limit of addresses"
        )
        fix = "set the addresses or the network of your proxies"
        yield Finding("warning", "BRIDGE_TRUSTED_PROXIES", text, fix)


def _placeholders(settings: Settings) -> Iterator[Finding]:
    """Values that our own documents show."""
    level: Level = "warning" if settings.insecure else "error"
    for field, wanted in placeholders.SETTINGS.items():
        if _has_placeholder(settings, field):
            text = "is an example of the documentation"
            yield Finding(level, variable(field), text, f"set {wanted}")


def _has_placeholder(settings: Settings, field: str) -> bool:
    texts = placeholders.texts_in(getattr(settings, field))
    return any(map(placeholders.is_placeholder, texts))


def _model(settings: Settings) -> Iterator[Finding]:
    name = "BRIDGE_MODEL_URL"
    if settings.model_target == LOCAL_MODEL:
        text = "or OPENAI_API_KEY names no real model: the bundled fake answers calls"
        fix = "set OPENAI_API_KEY and no BRIDGE_MODEL_URL, or another vendor's URL"
        yield Finding("warning", name, text, fix)
    elif settings.openai_api_key is None and not settings.model_headers:
        fix = "set OPENAI_API_KEY or BRIDGE_MODEL_HEADERS if the model needs a key"
        yield Finding("warning", name, "is called without a key", fix)
    host = urlsplit(settings.model_url or "").hostname or ""
    own = host in ("", "local") or host.endswith((".openai.com", ".azure.com"))
    if settings.openai_api_key and not own and not settings.model_headers:
        fix = "set BRIDGE_MODEL_HEADERS to the key of that host, if it is not OpenAI's"
        yield Finding("warning", name, f"sends OPENAI_API_KEY to {host}", fix)
    yield from _model_key(settings)


def _model_key(settings: Settings) -> Iterator[Finding]:
    """What OpenAI's server would refuse."""
    name = "OPENAI_API_KEY"
    if urlsplit(settings.model_target).hostname != urlsplit(OPENAI_MODEL_URL).hostname:
        return
    if settings.openai_api_key is None:
        named = {it.lower() for it in settings.model_headers}
        if "authorization" not in named:
            text = "is not set, and OpenAI's server answers nobody without a key"
            yield Finding("error", name, text, "set the key of your OpenAI account")
    elif not settings.openai_api_key.get_secret_value().startswith(("sk-", "ek_")):
        text = "does not begin with sk-, as OpenAI's keys do"
        yield Finding("warning", name, text, "copy it again from OpenAI's console")


def _guessable(settings: Settings) -> Iterator[Finding]:
    """Finds secrets that are cut off, or nothing but quotes."""
    level: Level = "warning" if settings.insecure else "error"
    shared, accounts = settings.twilio_shared_keys, settings.twilio_accounts
    secrets: dict[str, Any] = {
        "api_token": settings.api_token,
        "twilio_auth_token": settings.twilio_auth_token,
        "twilio_auth_token_secondary": settings.twilio_auth_token_secondary,
        "twilio_shared_keys": tuple(shared.values()),
        "twilio_accounts": tuple(accounts.values()),
    }
    for field, given in secrets.items():
        if _has_placeholder(settings, field):
            continue  # reported by _placeholders
        name = variable(field)
        power = "pass for Twilio"
        fix = "copy it again from the Twilio console, without quotes"
        if name == "BRIDGE_API_TOKEN":
            power, fix = "place calls", f"set {MIN_TOKEN_CHARS} characters or more"
        if any(len(it) < MIN_TOKEN_CHARS for it in placeholders.texts_in(given)):
            text = f"can be guessed, and anybody who has it can {power}"
            yield Finding(level, name, text, fix)


def _half_set(settings: Settings) -> Iterator[Finding]:
    """Finds features that are set but lack another setting that they need."""
    outbound = {
        "BRIDGE_PUBLIC_URL": settings.public_url,
        "TWILIO_ACCOUNT_SID": settings.twilio_account_sid,
        "TWILIO_AUTH_TOKEN": settings.twilio_auth_token,
        "BRIDGE_API_TOKEN": settings.api_token,
    }
    missing = [name for name, value in outbound.items() if value is None]
    if settings.outbound_prefixes and missing:
        text, fix = "allows calls that cannot be placed", f"set {', '.join(missing)}"
        yield Finding("warning", "BRIDGE_OUTBOUND_PREFIXES", text, fix)
    # startup.py reports the routes that have no prices.
    if settings.prices is None and settings.routes is None:
        text = "is set, but there are no prices to count with"
        fix = "set BRIDGE_PRICES, or `cost` in BRIDGE_ROUTES"
        if settings.cost_per_call:
            yield Finding("error", "BRIDGE_COST_PER_CALL", text, fix)
        if settings.cost_per_day:
            yield Finding("error", "BRIDGE_COST_PER_DAY", text, fix)
    if settings.twilio_api_key and settings.twilio_account_sid is None:
        text = "is set, but the account that it belongs to is not known"
        yield Finding("warning", "TWILIO_API_KEY", text, "set TWILIO_ACCOUNT_SID")
    if settings.openai_webhook_secret and settings.openai_api_key is None:
        text, fix = "is set, but no SIP call can be accepted", "set OPENAI_API_KEY"
        yield Finding("warning", "OPENAI_WEBHOOK_SECRET", text, fix)
    if settings.report_secret and not (settings.report_url or settings.routes):
        text = "is set, but no report is sent anywhere"
        fix = "set BRIDGE_REPORT_URL, or `report` in BRIDGE_ROUTES"
        yield Finding("warning", "BRIDGE_REPORT_SECRET", text, fix)


def _deprecated(settings: Settings) -> Iterator[Finding]:
    transcription = settings.transcription_model
    for name, model, shut_down in (
        ("BRIDGE_MODEL", settings.model, DEPRECATED_MODELS),
        ("BRIDGE_TRANSCRIPTION_MODEL", transcription, DEPRECATED_TRANSCRIPTION_MODELS),
    ):
        if model in shut_down:
            text = f"is {model}, which OpenAI shuts down on {shut_down[model]}"
            yield Finding("warning", name, text, "unset it to use the current model")


def _in_force(settings: Settings) -> list[Finding]:
    """The effective settings as text. No line may show a secret."""
    it = settings
    model = it.model_target.partition("?")[0]
    redis = redis_address(it.redis_url.get_secret_value()) if it.redis_url else ""
    lines: dict[str, object] = {
        "BRIDGE_PORT": f"listens on {it.host}, port {it.port}",
        "BRIDGE_AGENT": f"is {it.agent}",
        "BRIDGE_MODEL": f"is {it.model}, voice {it.voice}, at {model}",
        "BRIDGE_MAX_CALLS": f"is {it.max_calls}",
        "BRIDGE_DRAIN_SECONDS": f"is {it.drain_seconds:g}",
        "BRIDGE_SESSION_SECONDS": f"is {it.session_seconds:g}",
        "BRIDGE_LONGEST_SECONDS": f"is {it.longest_seconds}: no call is longer",
        "BRIDGE_CALLS_PER_NUMBER": _limit(it.calls_per_number),
        "BRIDGE_CALLS_PER_NUMBER_HOUR": _limit(it.calls_per_number_hour),
        "BRIDGE_COST_PER_CALL": _limit(it.cost_per_call),
        "BRIDGE_COST_PER_DAY": _limit(it.cost_per_day),
        "BRIDGE_PUBLIC_URL": it.public_url and f"is {it.public_url}",
        "BRIDGE_TRUSTED_PROXIES": _each("trusts", it.trusted_proxies),
        "TWILIO_SHARED_KEYS": _each("has", it.twilio_shared_keys),
        "TWILIO_ACCOUNTS": _each("takes calls of", it.twilio_accounts),
        "BRIDGE_REDIS_URL": redis and f"is set: calls are shared at {redis}",
        "BRIDGE_RECORD_DIR": it.record_dir and f"is {it.record_dir}",
        "BRIDGE_FALLBACK_NUMBER": it.fallback_number and "is set",
        "BRIDGE_FALLBACK": it.fallback and "is on: callers do not reach the agent",
        "BRIDGE_ADVERTISE_URL": it.advertise_url and f"is {it.advertise_url}",
        "BRIDGE_WHEN_FULL": _when_full(it),
        "BRIDGE_WAITING_SOUND": f"is {it.waiting_sound.name}",
        "BRIDGE_SLOW_TOOL_SECONDS": f"is {it.slow_tool_seconds:g}",
        "BRIDGE_ROUTES": it.routes and f"is {it.routes}",
        "BRIDGE_MODEL_AUDIO": it.model_audio == "pcm" and "is pcm: audio is transcoded",
        "BRIDGE_MODEL_READY_ON": it.model_ready_on == "session.created"
        and "is session.created: a refused configuration is not noticed",
        "BRIDGE_OUTBOUND_PREFIXES": _each("allows calls to", it.outbound_prefixes),
        "BRIDGE_TRANSFER_PREFIXES": _each("allows transfers to", it.transfer_prefixes),
        "BRIDGE_REPORT_URL": it.report_url and "is set: reports are sent there",
        "BRIDGE_API_TOKEN": it.api_token and "is set",
        "OPENAI_API_KEY": it.openai_api_key and "is set",
        "OPENAI_WEBHOOK_SECRET": it.openai_webhook_secret and "is set",
        "TWILIO_AUTH_TOKEN": it.twilio_auth_token and "is set",
        "TWILIO_API_KEY": it.twilio_api_key
        and "is set: the REST API is asked with it, signatures need the auth token",
        "TWILIO_REGION": it.twilio_region and f"is {it.twilio_region}",
        "TWILIO_EDGE": it.twilio_edge and f"is {it.twilio_edge}",
        "TWILIO_AUTH_TOKEN_SECONDARY": it.twilio_auth_token_secondary and "is set",
    }
    return [Finding("ok", name, str(text)) for name, text in lines.items() if text]


def _when_full(settings: Settings) -> str:
    if settings.when_full == "queue":
        seconds = settings.queue_seconds
        return f"is queue: callers wait up to {seconds:g} s for a line"
    if settings.when_full == "fallback":
        return "is fallback: callers are connected to BRIDGE_FALLBACK_NUMBER"
    return ""


def _each(verb: str, items: Iterable[object]) -> str:
    names = ", ".join(map(str, items))
    return f"{verb} {names}" if names else ""


def _limit(limit: float) -> str:
    return f"is {limit:g}" if limit else "is 0: no limit"
