"""Settings from the environment, and what `bridge check` reports about them."""

import base64
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import get_args

import pytest
from openai.types.realtime import RealtimeSessionCreateRequest
from openai.types.realtime.audio_transcription import AudioTranscription
from pydantic import SecretStr, ValidationError

from bridge.app.recordings import OFF
from bridge.app.settings import (
    GREETING,
    NAMES,
    Finding,
    Settings,
    SettingsError,
    load,
)
from bridge.app.settings_report import (
    check,
    open_with_model_key,
    serving_mistakes,
    unknown_names,
)
from bridge.app.values import LOCAL_MODEL, PARAMETERS
from bridge.core.rules import Prices
from bridge.model.deprecated_models import (
    DEPRECATED_MODELS,
    DEPRECATED_TRANSCRIPTION_MODELS,
)

SIGNING = "whsec_" + "A" * 32
"""A text with the form of a signing secret."""

MAIN_SID, SUB_SID = "AC" + "0" * 32, "AC" + "5" * 32
REAL = {
    "BRIDGE_PUBLIC_URL": "https://bridge.example",
    "OPENAI_API_KEY": "sk-key",
    "TWILIO_AUTH_TOKEN": "0123456789abcdef" * 2,
}


def settings(**environ: str) -> Settings:
    return load(environ, env_file=None)


def mistakes(environ: Mapping[str, str]) -> dict[str, Finding]:
    with pytest.raises(SettingsError) as raised:
        load(environ, env_file=None)
    return {mistake.name: mistake for mistake in raised.value.mistakes}


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def test_an_empty_environment_gives_the_defaults() -> None:
    """`make demo` works without any variable."""
    found = settings()

    assert (found.host, found.port, found.max_calls) == ("0.0.0.0", 8080, 200)
    assert found.public_url is None and not found.insecure
    assert found.agent == "bridge.agent.receptionist:receptionist"
    assert (found.model, found.voice) == ("gpt-realtime-2.1", "marin")
    assert found.transcription_model == "gpt-transcribe"
    assert (found.greeting, found.drain_seconds) == (GREETING, 300.0)
    assert (found.model_headers, found.record_dir) == ({}, None)
    assert found.record == {"trace"}
    assert (found.log_format, found.fallback_number) == ("auto", None)
    assert (found.when_full, found.queue_seconds) == ("busy", 120.0)
    assert (found.routes, found.api_token, found.model_connect) == (None, None, None)
    assert (found.model_audio, found.outbound_calls) == ("mulaw", 10)
    assert (found.outbound_prefixes, found.outbound_number) == ((), None)  # nobody
    assert (found.report_url, found.report_secret) == (None, None)
    assert (found.twilio_api_url, found.openai_webhook_secret) == (None, None)


def test_every_variable_is_read(tmp_path: Path) -> None:
    """Each variable that an operator sets arrives in its setting."""
    found = settings(
        BRIDGE_HOST="127.0.0.1",
        BRIDGE_PORT="9000",
        BRIDGE_PUBLIC_URL="https://bridge.example.com/",
        BRIDGE_AGENT="examples/pizza.py:agent",
        BRIDGE_MODEL_URL="wss://other.example.com/v1/realtime?deployment=a",
        BRIDGE_MODEL="gpt-realtime-2.1-mini",
        BRIDGE_VOICE="cedar",
        BRIDGE_MODEL_HEADERS="api-key: k:1; X-Team: phone;",
        BRIDGE_TRANSCRIPTION_MODEL="",
        BRIDGE_GREETING="",
        BRIDGE_WAITING_SOUND="Off",
        BRIDGE_SLOW_TOOL_SECONDS="5.5",
        BRIDGE_MAX_CALLS="1",
        BRIDGE_DRAIN_SECONDS="1.5",
        BRIDGE_RECORD_DIR=str(tmp_path),
        BRIDGE_RECORD="audio, Page,",
        BRIDGE_FALLBACK_NUMBER="+1 415-555-0100",
        BRIDGE_WHEN_FULL="Queue",
        BRIDGE_QUEUE_SECONDS="45.5",
        BRIDGE_LOG="json",
        BRIDGE_ROUTES=" routes.yaml ",
        BRIDGE_API_TOKEN="token",
        BRIDGE_MODEL_AUDIO="PCM",
        BRIDGE_MODEL_CONNECT="company.net:connect",
        BRIDGE_REPORT_URL="https://example.com/calls?key=k",
        BRIDGE_REPORT_SECRET=SIGNING,
        BRIDGE_OUTBOUND_PREFIXES="+1, +4930,",
        BRIDGE_OUTBOUND_NUMBER="+1 (415) 555-0101",
        BRIDGE_OUTBOUND_CALLS="3",
        BRIDGE_TWILIO_API_URL="http://127.0.0.1:4010",
        OPENAI_WEBHOOK_SECRET=SIGNING,
        OPENAI_API_KEY="sk-key\n",
        TWILIO_ACCOUNT_SID="AC" + "0" * 32,
        TWILIO_AUTH_TOKEN="token",
        TWILIO_API_KEY="SK1",
        TWILIO_API_SECRET="its secret".replace(" ", "-"),
        TWILIO_REGION="ie1",
        TWILIO_EDGE="dublin",
    )

    assert (found.host, found.port) == ("127.0.0.1", 9000)
    assert found.public_url == "https://bridge.example.com"
    assert found.agent == "examples/pizza.py:agent"
    assert found.model_target == "wss://other.example.com/v1/realtime?deployment=a"
    assert (found.model, found.voice) == ("gpt-realtime-2.1-mini", "cedar")
    assert found.model_headers == {"api-key": "k:1", "X-Team": "phone"}
    assert (found.transcription_model, found.greeting) == ("", "")
    assert (found.waiting_sound, found.slow_tool_seconds) == (OFF, 5.5)
    assert (found.max_calls, found.drain_seconds) == (1, 1.5)
    assert (found.record_dir, found.record) == (tmp_path, {"audio", "page"})
    assert (found.fallback_number, found.log_format) == ("+14155550100", "json")
    assert (found.when_full, found.queue_seconds) == ("queue", 45.5)
    assert found.routes == Path("routes.yaml")
    assert found.api_token == SecretStr("token")
    assert (found.model_audio, found.model_connect) == ("pcm", "company.net:connect")
    assert found.report_url == "https://example.com/calls?key=k"
    assert found.report_secret == found.openai_webhook_secret == SecretStr(SIGNING)
    assert found.outbound_prefixes == ("+1", "+4930")
    assert (found.outbound_number, found.outbound_calls) == ("+14155550101", 3)
    assert found.twilio_api_url == "http://127.0.0.1:4010"
    assert found.openai_api_key == SecretStr("sk-key")
    assert found.twilio_account_sid == "AC" + "0" * 32
    assert found.twilio_auth_token == SecretStr("token")
    assert found.twilio_api_key == SecretStr("SK1")
    assert found.twilio_api_secret == SecretStr("its-secret")
    assert (found.twilio_region, found.twilio_edge) == ("ie1", "dublin")


def test_an_empty_value_means_unset() -> None:
    """docker-compose passes empty variables; they must not prevent the start."""
    choices = {"BRIDGE_GREETING", "BRIDGE_TRANSCRIPTION_MODEL"}

    assert load(dict.fromkeys(NAMES - choices, " "), env_file=None) == settings()


def test_all_mistakes_are_reported_at_once() -> None:
    """An operator can correct the environment in one go, not in several restarts."""
    found = mistakes(
        {
            "BRIDGE_PORT": "eighty",
            "BRIDGE_MAX_CALLS": "0",
            "BRIDGE_PUBLIC_URL": "https://bridge.example",
            "BRIDGE_INSECURE": "1",
            "BRIDGE_AGENT": "{receptionist}",
            "BRIDGE_ROUTES": str(Path(__file__).parent),
            "BRIDGE_MODEL_HEADERS": "{",
        }
    )

    assert set(found) == {
        "BRIDGE_PORT",
        "BRIDGE_MAX_CALLS",
        "BRIDGE_INSECURE",
        "BRIDGE_AGENT",
        "BRIDGE_ROUTES",
        "BRIDGE_MODEL_HEADERS",
    }
    assert all(mistake.fix for mistake in found.values())


def test_the_error_has_one_line_for_each_mistake() -> None:
    """The log of a container that does not start shows each mistake and its fix."""
    with pytest.raises(SettingsError) as raised:
        settings(BRIDGE_PORT="eighty", BRIDGE_LOG="loud")

    assert str(raised.value).splitlines() == [
        "BRIDGE_PORT is 'eighty', which is not a whole number: "
        "set a whole number from 0 to 65535",
        "BRIDGE_LOG is 'loud': set auto, json or pretty",
    ]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("BRIDGE_HOST", "http://0.0.0.0", "not an address"),
        ("BRIDGE_PORT", "65536", "65536"),
        ("BRIDGE_PORT", "-1", "-1"),
        ("BRIDGE_PORT", "1_0", "not a whole number"),
        ("BRIDGE_PORT", "٨٠", "not a whole number"),
        ("BRIDGE_MAX_CALLS", "1.5", "not a whole number"),
        ("BRIDGE_DRAIN_SECONDS", "-1", "not a number of seconds"),
        ("BRIDGE_DRAIN_SECONDS", "inf", "not a number of seconds"),
        ("BRIDGE_PUBLIC_URL", "bridge.example.com", "not a complete URL"),
        ("BRIDGE_PUBLIC_URL", "http://bridge.example.com", "TLS"),
        ("BRIDGE_PUBLIC_URL", "http://localhost.example.com", "TLS"),
        ("BRIDGE_PUBLIC_URL", "wss://bridge.example.com", "TLS"),
        ("BRIDGE_PUBLIC_URL", "https://bridge.example.com/voice", "path"),
        ("BRIDGE_PUBLIC_URL", "https://bridge.example.com?a=1", "query"),
        ("BRIDGE_PUBLIC_URL", "https://bridge.example.com:port", "not a complete URL"),
        ("BRIDGE_PUBLIC_URL", "https://[::1", "not a complete URL"),
        ("BRIDGE_PUBLIC_URL", "https://", "not a complete URL"),
        ("BRIDGE_PUBLIC_URL", "https://a b", "not a complete URL"),
        ("BRIDGE_INSECURE", "maybe", "neither yes nor no"),
        ("BRIDGE_AGENT", "receptionist", "receptionist"),
        ("BRIDGE_AGENT", "a.py:", "a.py:"),
        ("BRIDGE_ROUTES", str(Path(__file__).parent), "names a folder"),
        ("BRIDGE_REDIS_URL", "cache:6379", "not a Redis URL"),
        ("BRIDGE_REDIS_URL", "https://cache:6379", "not a Redis URL"),
        ("BRIDGE_REDIS_URL", "redis://", "not a complete URL"),
        ("BRIDGE_REDIS_URL", "unix://", "not a complete URL"),
        ("BRIDGE_REDIS_URL", "redis://:a/b@cache", "not a complete URL"),
        ("BRIDGE_REDIS_URL", "redis://cache:0", "not a complete URL"),
        ("BRIDGE_REDIS_URL", "redis://ca che", "not a complete URL"),
        ("BRIDGE_REDIS_URL", "redis://cache/zero", "not the number of a database"),
        ("BRIDGE_REDIS_URL", "redis://cache?retries=1", "option that does not exist"),
        ("BRIDGE_REDIS_URL", "redis://cache?db=x", "option that does not exist"),
        ("BRIDGE_REDIS_URL", "redis://c?ssl_cert_reqs=none", "option that does not"),
        ("BRIDGE_API_TOKEN", "two words", "blank"),
        ("BRIDGE_MODEL_AUDIO", "opus", "opus"),
        ("BRIDGE_MODEL_CONNECT", "connect", "connect"),
        ("BRIDGE_REPORT_URL", "example.com/calls", "not a complete URL"),
        ("BRIDGE_REPORT_URL", "ftp://example.com/calls", "not an http or https URL"),
        ("BRIDGE_REPORT_URL", "https://example.com/#calls", "not an http or https URL"),
        ("BRIDGE_REPORT_URL", "https://me:x@example.com/", "user or password"),
        ("BRIDGE_REPORT_SECRET", "hush", "not a signing secret"),
        (
            "BRIDGE_REPORT_SECRET",
            SIGNING.removeprefix("whsec_"),
            "not a signing secret",
        ),
        ("BRIDGE_REPORT_SECRET", "whsec_AAAA", "not a signing secret"),
        ("BRIDGE_REPORT_SECRET", "whsec_" + "A" * 92, "not a signing secret"),
        ("BRIDGE_REPORT_SECRET", SIGNING + "*", "not a signing secret"),
        ("BRIDGE_REPORT_SECRET", "whsec_ AAAA", "blank"),
        ("BRIDGE_OUTBOUND_PREFIXES", "+1,4930", "no phone number begins with"),
        ("BRIDGE_OUTBOUND_PREFIXES", "+", "no phone number begins with"),
        ("BRIDGE_OUTBOUND_PREFIXES", "+0", "no phone number begins with"),
        ("BRIDGE_OUTBOUND_PREFIXES", "+1 415", "no phone number begins with"),
        ("BRIDGE_OUTBOUND_NUMBER", "0800 12345", "not a phone number"),
        ("BRIDGE_OUTBOUND_CALLS", "0", "0"),
        ("BRIDGE_TWILIO_API_URL", "twilio", "not a complete URL"),
        (
            "BRIDGE_TWILIO_API_URL",
            "wss://twilio.example.com",
            "not an http or https URL",
        ),
        ("OPENAI_WEBHOOK_SECRET", "sk-key", "not a signing secret"),
        ("BRIDGE_MODEL_URL", "https://model.example.com", "WebSocket"),
        ("BRIDGE_MODEL_URL", "fake", "not a complete URL"),
        ("BRIDGE_MODEL_HEADERS", "api-key", "colon"),
        ("BRIDGE_MODEL_HEADERS", "api key: 1", "no header"),
        ("BRIDGE_MODEL_HEADERS", '{"api-key": 1}', "no header"),
        ("BRIDGE_MODEL_HEADERS", '{"a": "b\\r\\nc: d"}', "control characters"),
        ("BRIDGE_MODEL_HEADERS", '{"a":' * 100_000, "not a valid JSON object"),
        ("BRIDGE_RECORD_DIR", __file__, "names a file"),
        ("BRIDGE_RECORD", "audio,video", "'video', which is nothing"),
        ("BRIDGE_RECORD", ",", "names nothing"),
        ("BRIDGE_RECORD", "off,trace", "'off', which is nothing"),
        (
            "BRIDGE_RECORD_DIR",
            "~nobody-of-that-name/calls",
            "home folder of an unknown user",
        ),
        (
            "BRIDGE_ROUTES",
            "~nobody-of-that-name/routes.yaml",
            "home folder of an unknown user",
        ),
        ("BRIDGE_FALLBACK_NUMBER", "0800 12345", "not a phone number"),
        ("BRIDGE_WAITING_SOUND", "a.wav", "is 'a.wav', which is no file"),
        ("BRIDGE_WAITING_SOUND", __file__, "is no WAV file"),
        ("BRIDGE_WAITING_SOUND", "a\0", "is no file"),
        ("BRIDGE_WAITING_SOUND", "m\udcfcsik.wav", "is 'm\\udcfcsik.wav', which is no"),
        ("BRIDGE_WAITING_SOUND", "~nobody-of-that-name/a.wav", "an unknown user"),
        ("BRIDGE_WHEN_FULL", "wait", "wait"),
        ("BRIDGE_WHEN_FULL", "fallback", "no number to dial"),
        ("BRIDGE_QUEUE_SECONDS", "-1", "not a number of seconds"),
        ("BRIDGE_VOICE", "ma\x00rin", "control characters"),
        ("TWILIO_ACCOUNT_SID", "SK" + "0" * 32, "not an account SID"),
        ("TWILIO_AUTH_TOKEN", "0123 4567", "blank"),
        ("OPENAI_API_KEY", "sk-“quoted”", "no key has"),
        ("TWILIO_EDGE", "dublin", "TWILIO_REGION is not"),
        ("TWILIO_API_SECRET", "hush", "TWILIO_API_KEY is not"),
    ],
)
def test_a_mistake_names_its_variable_and_a_fix(
    name: str, value: str, told: str
) -> None:
    """The operator reads which variable is wrong, why, and what to set."""
    found = mistakes({name: value})

    assert set(found) == {name}
    assert told in found[name].text and found[name].fix


@pytest.mark.parametrize(
    ("given", "value", "missing"),
    [
        ("TWILIO_REGION", "ie1", "TWILIO_EDGE"),
        ("TWILIO_API_KEY", "SK1", "TWILIO_API_SECRET"),
    ],
)
def test_a_setting_that_needs_another_one(given: str, value: str, missing: str) -> None:
    """From a region without an edge, Twilio's SDK makes a host that does not exist, and
    a key without its secret proves nothing: the bridge does not start."""
    found = mistakes({given: value})

    assert set(found) == {missing}
    assert f"{given} is" in found[missing].text
    assert "set both" in found[missing].fix


def test_a_region_with_a_mistake_is_reported_once() -> None:
    """The edge is not blamed for a region that cannot be read."""
    found = mistakes({"TWILIO_REGION": "ie1.twilio.com", "TWILIO_EDGE": "dublin"})

    assert set(found) == {"TWILIO_REGION"}


def test_an_api_key_does_not_replace_the_auth_token() -> None:
    """Twilio signs its webhooks with the auth token: without it no call is taken, and
    the message says so. A key without its account can place no call."""
    key = {"TWILIO_API_KEY": "SK1", "TWILIO_API_SECRET": "its-secret"}
    without = {name: it for name, it in REAL.items() if name != "TWILIO_AUTH_TOKEN"}
    found = {it.name: it for it in check(without | key, env_file=None)}

    assert found["TWILIO_AUTH_TOKEN"].level == "error"
    assert "never with an API key" in found["TWILIO_AUTH_TOKEN"].text
    assert found["TWILIO_API_KEY"].level == "warning"


@pytest.mark.parametrize(
    "url", ["http://localhost:8080", "http://127.0.0.2", "http://[::1]:8080"]
)
def test_a_loopback_public_url_needs_no_tls(url: str) -> None:
    """A developer can test signatures with the fake Twilio without a certificate."""
    assert settings(BRIDGE_PUBLIC_URL=url).public_url == url


SECRETS = {
    "BRIDGE_API_TOKEN": "hush hush",
    "BRIDGE_REPORT_URL": "https://me:hush@example.com",
    "BRIDGE_REPORT_SECRET": "whsec_hush",
    "BRIDGE_TWILIO_API_URL": "https://me:hush@twilio.example.com",
    "BRIDGE_OUTBOUND_NUMBER": "hush",
    "BRIDGE_OUTBOUND_PREFIXES": "+1,hush",
    "OPENAI_WEBHOOK_SECRET": "whsec_hush",
    "BRIDGE_REDIS_URL": "redis://me:hush@cache/hush?hush=hush",
    "BRIDGE_PUBLIC_URL": "https://me:hush@bridge.example.com",
    "BRIDGE_MODEL_URL": "wss://me:hush@model.example.com",
    "BRIDGE_MODEL_HEADERS": '{"api-key": "hush',
    "OPENAI_API_KEY": "hush hush",
    "TWILIO_AUTH_TOKEN": "hush hush",
    "TWILIO_ACCOUNT_SID": "hush",
    "TWILIO_API_KEY": "hush hush",
    "TWILIO_API_SECRET": "hush hush",
}


@pytest.mark.parametrize("name", SECRETS)
def test_no_error_shows_a_secret(name: str) -> None:
    """A key that was pasted wrongly does not appear in the log."""
    with pytest.raises(SettingsError) as raised:
        load({name: SECRETS[name]}, env_file=None)

    assert "hush" not in str(raised.value)


def test_no_report_shows_a_secret() -> None:
    """Settings that are printed in a log or a bug report contain no key."""
    environ = {
        "OPENAI_API_KEY": "hush",
        "TWILIO_AUTH_TOKEN": "hush",
        "BRIDGE_MODEL_URL": "wss://model.example.com/v1?api-key=hush",
        "BRIDGE_MODEL_HEADERS": "api-key: hush",
        "BRIDGE_REPORT_URL": "https://example.com/calls?key=hush",
        "BRIDGE_REPORT_SECRET": SIGNING,
        "BRIDGE_REDIS_URL": "rediss://hush:hush@cache/0?ssl_keyfile=hush",
        "BRIDGE_API_TOKEN": "hush",
        "OPENAI_WEBHOOK_SECRET": SIGNING,
    }

    found = load(environ, env_file=None)

    report = f"{found!r} {found} {check(environ, env_file=None)}"
    assert "hush" not in report
    assert SIGNING not in report


def test_settings_made_in_code_hide_a_wrong_value() -> None:
    """A test or a program that passes a wrong key to `Settings` does not print the
    key."""
    with pytest.raises(ValidationError) as raised:
        Settings(openai_api_key=SecretStr("fine"), twilio_account_sid="hush")

    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://cache", "at cache"),
        ("redis://cache:6379/0", "at cache:6379"),
        ("rediss://me:p%2Fw@cache:6380/1?ssl_cert_reqs=none", "at cache:6380"),
        ("unix:///run/redis.sock?db=2", "at /run/redis.sock"),
    ],
)
def test_every_form_of_a_redis_url_is_read_and_reported(url: str, place: str) -> None:
    """Each form of a Redis URL is accepted, and the report names the Redis that is
    used."""
    found = settings(BRIDGE_REDIS_URL=f" {url}\n").redis_url

    assert found == SecretStr(url)
    assert Settings(redis_url=found).redis_url == found
    lines = map(str, check({**REAL, "BRIDGE_REDIS_URL": url}, env_file=None))
    assert any(line.endswith(place) for line in lines)


@pytest.mark.parametrize("size", [24, 64])
def test_a_signing_secret_is_kept_unchanged(size: int) -> None:
    """The bridge signs and checks with exactly the secret that the other side has."""
    secret = "whsec_" + base64.b64encode(bytes(range(size))).decode()

    kept = settings(BRIDGE_REPORT_SECRET=f" {secret}\n").report_secret

    assert kept == SecretStr(secret)
    assert Settings(report_secret=kept).report_secret == kept


def test_an_empty_list_of_prefixes_allows_no_number() -> None:
    """An empty list of prefixes does not allow any outbound call."""
    assert settings(BRIDGE_OUTBOUND_PREFIXES=" ,").outbound_prefixes == ()
    assert Settings(outbound_prefixes=("+1",)).outbound_prefixes == ("+1",)


def test_when_full_fallback_uses_the_fallback_number() -> None:
    """The fallback number is read. If the number is invalid, only the number is
    reported, not BRIDGE_WHEN_FULL as well."""
    number = {"BRIDGE_WHEN_FULL": "fallback", "BRIDGE_FALLBACK_NUMBER": "+14155550100"}
    found = settings(**number)

    assert (found.when_full, found.fallback_number) == ("fallback", "+14155550100")
    assert set(mistakes({**number, "BRIDGE_FALLBACK_NUMBER": "0800"})) == {
        "BRIDGE_FALLBACK_NUMBER"
    }


def test_check_shows_the_answer_when_full() -> None:
    """The report says how long callers wait in the queue."""
    found = check({**REAL, "BRIDGE_WHEN_FULL": "queue"}, env_file=None)

    [told] = [it for it in found if it.name == "BRIDGE_WHEN_FULL"]
    assert told.level == "ok" and "120 s" in told.text


def test_headers_may_be_json() -> None:
    """In JSON, the value of a header may contain a semicolon."""
    found = settings(BRIDGE_MODEL_HEADERS='{"X-Tags": "a; b: c"}')

    assert found.model_headers == {"X-Tags": "a; b: c"}


def test_which_model_is_used() -> None:
    """Without a key the bundled fake model is used, with a key OpenAI; BRIDGE_MODEL_URL
    overrides both."""
    assert settings().model_target == LOCAL_MODEL
    assert settings(OPENAI_API_KEY="k").model_target.startswith("wss://api.openai.com/")
    assert (
        settings(OPENAI_API_KEY="k", BRIDGE_MODEL_URL="local").model_target == "local"
    )


def test_the_environment_overrides_the_env_file(tmp_path: Path) -> None:
    """`.env` is read; a variable set for one run overrides it."""
    env_file = tmp_path / ".env"
    env_file.write_text("BRIDGE_PORT=81 # ours\nBRIDGE_MAX_CALLS=7\nhost=9.9.9.9\n")

    found = load({"BRIDGE_PORT": "82"}, env_file)

    assert (found.port, found.max_calls, found.host) == (82, 7, "0.0.0.0")


def test_a_name_in_lower_case_is_no_setting(tmp_path: Path) -> None:
    """It sets nothing, and the report names its line and the setting."""
    env_file = tmp_path / ".env"
    env_file.write_text("\nBRIDGE_port=eighty\n")

    [told] = [it for it in check({}, env_file) if it.name == "BRIDGE_port"]

    assert (told.level, told.fix) == ("warning", "did you mean BRIDGE_PORT?")
    assert told.place == f"{env_file}:2"
    assert load({}, env_file).port == 8080


def test_each_wrong_network_is_reported() -> None:
    """Two mistakes in one list are both reported."""
    with pytest.raises(SettingsError) as raised:
        settings(BRIDGE_TRUSTED_PROXIES="10.0.0.0/8,balancer,10.0.0.0/99")

    first, second = str(raised.value).splitlines()
    assert "'balancer'" in first and "'10.0.0.0/99'" in second


def test_load_reads_the_process_environment_and_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`BRIDGE_PORT=83 bridge serve` listens on 83; other settings come from `.env`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_PORT", "83")
    (tmp_path / ".env").write_text("BRIDGE_MAX_CALLS=7\n")

    found = load()

    assert (found.port, found.max_calls) == (83, 7)


def test_an_env_file_that_is_not_utf_8(tmp_path: Path) -> None:
    """If `.env` was saved as UTF-16, the error says so and names the file."""
    env_file = tmp_path / ".env"
    env_file.write_text("BRIDGE_PORT=81\n", encoding="utf-16")

    with pytest.raises(SettingsError, match="UTF-8"):
        load({}, env_file)
    assert levels(check({}, env_file)) == {str(env_file): "error"}


def test_settings_are_frozen() -> None:
    """No code can change a setting while calls run."""
    with pytest.raises(ValidationError):
        settings().port = 1  # type: ignore[misc]


def test_settings_made_in_code_ignore_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The environment of a developer's machine does not change the result of a test."""
    monkeypatch.setenv("BRIDGE_MAX_CALLS", "7")

    assert Settings(port=0).max_calls == 200


def test_a_complete_environment_has_no_finding() -> None:
    """A complete environment gives neither an error nor a warning."""
    assert serving_mistakes(load(REAL, env_file=None)) == []


@pytest.mark.parametrize("name", ["BRIDGE_PUBLIC_URL", "TWILIO_AUTH_TOKEN"])
def test_a_missing_signature_setting_is_an_error(name: str) -> None:
    """If an operator forgets one variable, unsigned requests are still not served."""
    environ = {key: value for key, value in REAL.items() if key != name}

    assert levels(serving_mistakes(load(environ, env_file=None))) == {name: "error"}


def test_insecure_gives_a_warning() -> None:
    """A developer can start without an account, and reads what that means."""
    found = serving_mistakes(settings(BRIDGE_INSECURE="yes", OPENAI_API_KEY="sk-k"))

    assert levels(found) == {"BRIDGE_INSECURE": "warning"}


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({"OPENAI_API_KEY": "k"}, True),
        ({"OPENAI_API_KEY": "k", "BRIDGE_MODEL_URL": "ws://127.0.0.1:8765"}, True),
        # The fake model answers, but a tool may use the key.
        ({"OPENAI_API_KEY": "k", "BRIDGE_MODEL_URL": "local"}, True),
        ({"BRIDGE_MODEL_URL": "wss://x.openai.azure.com/?api-key=k"}, True),
        ({"BRIDGE_MODEL_URL": "ws://m/", "BRIDGE_MODEL_HEADERS": "api-key: k"}, True),
        ({"BRIDGE_MODEL_URL": "ws://m/", "BRIDGE_MODEL_CONNECT": "m:f"}, True),
        ({}, False),
        ({"BRIDGE_MODEL_URL": "ws://model:8765/v1/realtime"}, False),
    ],
)
def test_an_open_bridge_with_a_real_model_is_a_danger(
    environ: dict[str, str], warned: bool
) -> None:
    """`bridge serve` shows a warning if strangers could run up a bill, and only then.
    `bridge check` says it, too."""
    conf = settings(BRIDGE_INSECURE="1", **environ)
    (found,) = (it for it in serving_mistakes(conf) if it.name == "BRIDGE_INSECURE")

    assert bool(open_with_model_key(conf)) == ("DANGER" in found.text) == warned
    assert open_with_model_key(load({**REAL, **environ}, env_file=None)) == []


def test_the_danger_names_who_can_call() -> None:
    """The warning of a bridge that others reach is about all of them."""
    here = settings(BRIDGE_INSECURE="1", OPENAI_API_KEY="k")
    wide = settings(BRIDGE_INSECURE="1", OPENAI_API_KEY="k", BRIDGE_HOST="0.0.0.0")

    assert any("user of this machine" in it for it in open_with_model_key(here))
    assert any("EVERYBODY who reaches" in it for it in open_with_model_key(wide))


@pytest.mark.parametrize(
    ("token", "told"), [("your-token", {"BRIDGE_API_TOKEN": "error"}), ("x" * 16, {})]
)
def test_an_api_token_that_can_be_guessed_is_an_error(
    token: str, told: dict[str, str]
) -> None:
    """The placeholder of the example cannot stay as the token of an API that costs
    money."""
    found = serving_mistakes(load({**REAL, "BRIDGE_API_TOKEN": token}, None))

    assert levels(found) == told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWILIO_AUTH_TOKEN", "changeme"),
        ("TWILIO_AUTH_TOKEN", '""'),  # docker's --env-file takes quotes for a value
        ("TWILIO_AUTH_TOKEN_SECONDARY", "x"),
        ("TWILIO_SHARED_KEYS", "webhooks_sharedkey_1: secret"),
    ],
)
def test_a_twilio_secret_that_can_be_guessed_is_an_error(name: str, value: str) -> None:
    """An attacker who guesses the secret can pass for Twilio. A useless second secret
    would otherwise stay unnoticed."""
    found = serving_mistakes(load({**REAL, name: value}, None))

    assert levels(found) == {name: "error"}
    assert value not in str(found[0])


def test_trusting_every_address_as_a_proxy_gives_a_warning() -> None:
    """If every address is a trusted proxy, any client can forge its address and avoid
    the limits per address."""
    for given, told in (("10.0.0.0/8", {}), ("10.0.0.0/8,::/0", "warning")):
        found = serving_mistakes(load({**REAL, "BRIDGE_TRUSTED_PROXIES": given}, None))
        assert levels(found) == (told and {"BRIDGE_TRUSTED_PROXIES": told})


def test_a_fake_model_or_a_model_without_a_key_gives_a_warning() -> None:
    """The operator learns why the agent says that it is a fake, or why the model
    refuses the connection."""
    public = {k: v for k, v in REAL.items() if k != "OPENAI_API_KEY"}
    keyless = public | {"BRIDGE_MODEL_URL": "wss://model.example.com"}

    assert levels(serving_mistakes(load(public, None))) == {
        "BRIDGE_MODEL_URL": "warning"
    }
    assert levels(serving_mistakes(load(keyless, None))) == {
        "BRIDGE_MODEL_URL": "warning"
    }


def test_a_model_that_will_be_shut_down_gives_a_warning() -> None:
    """The operator reads the date before calls fail."""
    found = serving_mistakes(
        load(
            REAL
            | {
                "BRIDGE_MODEL": "gpt-realtime",
                "BRIDGE_TRANSCRIPTION_MODEL": "whisper-1",
            },
            env_file=None,
        )
    )

    assert [(f.level, f.name) for f in found] == [
        ("warning", "BRIDGE_MODEL"),
        ("warning", "BRIDGE_TRANSCRIPTION_MODEL"),
    ]
    assert "2027-01-20" in found[0].text


def test_the_default_models_are_current() -> None:
    """A new installation does not start with a model that will be shut down."""
    found = settings()

    assert found.model not in DEPRECATED_MODELS
    assert found.transcription_model not in DEPRECATED_TRANSCRIPTION_MODELS
    known = str(get_args(RealtimeSessionCreateRequest.model_fields["model"].annotation))
    assert f"'{found.model}'" in known
    known = str(get_args(AudioTranscription.model_fields["model"].annotation))
    assert f"'{found.transcription_model}'" in known


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("BRIDGE_PROT", "BRIDGE_PORT"),
        ("bridge_port", "BRIDGE_PORT"),
        ("BRIDGE_PUBLIC_URI", "BRIDGE_PUBLIC_URL"),
        ("BRIDGE_MAXCALLS", "BRIDGE_MAX_CALLS"),
    ],
)
def test_a_misspelt_variable_is_noticed(name: str, near: str, tmp_path: Path) -> None:
    """A variable that has no effect is reported, with the name that was probably
    meant."""
    (tmp_path / ".env").write_text(f"{name}=1\n")

    for found in (
        unknown_names({name: "1", "PATH": "/bin"}, env_file=None),
        unknown_names({}, tmp_path / ".env"),
    ):
        assert [(f.level, f.name, f.fix) for f in found] == [
            ("warning", name, f"did you mean {near}?")
        ]


def test_check_reports_effective_settings_and_mistakes() -> None:
    """`bridge check` shows the effective settings and all findings."""
    found = check(REAL | {"BRIDGE_PROT": "1"}, env_file=None)
    broken = check({"BRIDGE_PORT": "x"}, env_file=None)

    assert {f.level for f in found} == {"ok", "warning"}
    assert any("https://bridge.example" in f.text for f in found)
    assert {it.name for it in broken if it.level == "error"} == {
        *("BRIDGE_PORT", "BRIDGE_PUBLIC_URL", "TWILIO_AUTH_TOKEN")
    }


# ----------------------------------------------------------------- limits and rotation


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        (
            "BRIDGE_OUTBOUND_PREFIXES",
            "+1,!+1900",
            "outbound_prefixes",
            ("+1", "!+1900"),
        ),
        ("BRIDGE_TRANSFER_PREFIXES", "", "transfer_prefixes", ()),
        (
            "BRIDGE_TRUSTED_PROXIES",
            "127.0.0.1, 10.1.2.3/8,::1",
            "trusted_proxies",
            tuple(map(ip_network, ("127.0.0.1", "10.0.0.0/8", "::1"))),
        ),
        (
            "TWILIO_SHARED_KEYS",
            "webhooks_sharedkey_1: a; webhooks_sharedkey_2: b",
            "twilio_shared_keys",
            {"webhooks_sharedkey_1": "a", "webhooks_sharedkey_2": "b"},
        ),
        (
            "BRIDGE_PRICES",
            "input_text=4,input_audio=32, input_cached=0.4 ,output_text=16,"
            "output_audio=64.",
            "prices",
            Prices(4, 32, 0.4, 16, 64),
        ),
        ("BRIDGE_COST_PER_DAY", "12.5", "cost_per_day", 12.5),
        ("BRIDGE_TICKETS", "OFF", "tickets", "off"),
        ("BRIDGE_RECORD_DAYS", "0", "record_days", 0),
        ("BRIDGE_RECORD", " OFF ", "record", frozenset()),
        ("BRIDGE_PARAMETERS", "none", "parameters", ()),
        ("BRIDGE_PARAMETERS", "", "parameters", PARAMETERS),
        ("BRIDGE_PARAMETERS", "tenant, X*", "parameters", ("tenant", "X*")),
        ("BRIDGE_PARAMETERS", "default,a", "parameters", (*PARAMETERS, "a")),
    ],
)
def test_a_limit_is_read(name: str, text: str, field: str, value: object) -> None:
    """The value that the operator writes is the value that applies."""
    assert getattr(settings(**{name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("BRIDGE_OUTBOUND_PREFIXES", "!+1900", "allows no number"),
        ("BRIDGE_OUTBOUND_PREFIXES", "+1,!!+1900", "no phone number begins with"),
        ("BRIDGE_TRUSTED_PROXIES", "10.0.0.0/8;::1", "not an address or network"),
        ("BRIDGE_TRUSTED_PROXIES", "balancer", "not an address or network"),
        ("TWILIO_ACCOUNTS", "s3cr3t-without-sid", "has no colon in entry 1"),
        ("TWILIO_ACCOUNTS", "s3cr3t: token", "has no account SID in entry 1"),
        ("TWILIO_ACCOUNTS", f"{SUB_SID}:", "without its token"),
        ("TWILIO_ACCOUNTS", f"{SUB_SID}: s3cr3t,b,c", "more than two tokens"),
        ("TWILIO_ACCOUNTS", f"{SUB_SID}: s3cr3t x", "has a blank"),
        ("TWILIO_ACCOUNTS", f"{SUB_SID}: a; {SUB_SID}: s3cr3t", "an account twice"),
        (
            "TWILIO_ACCOUNTS",
            f"{SUB_SID}: s3cr3t; {MAIN_SID}: s3cr3t",
            "a token of another account",
        ),
        ("TWILIO_ACCOUNTS", '{"s3cr3t', "not a valid JSON object"),
        ("TWILIO_ACCOUNTS", f'{{"{SUB_SID}": 1}}', "without its token"),
        ("TWILIO_SHARED_KEYS", "s3cr3t-without-id", "has no colon"),
        ("TWILIO_SHARED_KEYS", "id:", "no key has"),
        ("TWILIO_SHARED_KEYS", "i.d: s3cr3t", "no key has"),
        ("BRIDGE_PRICES", "input_text=4", "lacks input_audio"),
        ("BRIDGE_PRICES", "input_text=1e9", "not a price"),
        ("BRIDGE_PRICES", "inputtext=1", "not a price"),
        ("BRIDGE_COST_PER_CALL", "-1", "not an amount"),
        ("BRIDGE_COST_PER_CALL", "nan", "not an amount"),
        ("BRIDGE_TICKETS", "maybe", "maybe"),
        ("BRIDGE_PARAMETERS", "tenant;x", "no name of a parameter"),
        ("BRIDGE_PARAMETERS", "*", "no name of a parameter"),
        ("BRIDGE_WAITING_SOCKETS", "0", "is 0"),
        ("BRIDGE_MESSAGES_PER_SECOND", "10", "is 10"),
        ("BRIDGE_LONGEST_SECONDS", "5", "is 5"),
    ],
)
def test_a_limit_that_cannot_be_read_is_an_error(
    name: str, text: str, told: str
) -> None:
    """A typing mistake does not turn a limit off: the bridge does not start."""
    mistake = mistakes({name: text})[name]

    assert told in mistake.text
    assert mistake.fix
    assert "s3cr3t" not in str(mistake)


def test_the_errors_of_an_empty_environment_name_the_lines_to_add() -> None:
    """The operator can copy the two lines into `.env`."""
    told = {it.name: it for it in serving_mistakes(load({}, None))}

    assert "BRIDGE_PUBLIC_URL=https://" in told["BRIDGE_PUBLIC_URL"].fix
    assert "TWILIO_AUTH_TOKEN=" in told["TWILIO_AUTH_TOKEN"].fix
    assert {told[it].level for it in ("BRIDGE_PUBLIC_URL", "TWILIO_AUTH_TOKEN")} == {
        "error"
    }


def test_streams_without_tickets_give_a_warning() -> None:
    """An operator who uses a TwiML Bin reads which protection is missing."""
    found = serving_mistakes(load({**REAL, "BRIDGE_TICKETS": "off"}, None))

    assert levels(found) == {"BRIDGE_TICKETS": "warning"}


@pytest.mark.parametrize(
    "text",
    [
        f"{SUB_SID}: new, old; {'AC' + '6' * 32}: one",
        f"{SUB_SID}:new,old\n{'AC' + '6' * 32}:one\n",
        f'{{"{SUB_SID}": "new, old", "{"AC" + "6" * 32}": "one"}}',
    ],
)
def test_the_accounts_are_read(text: str) -> None:
    """Each form gives each account its tokens; calls of these accounts are taken."""
    found = settings(TWILIO_ACCOUNTS=text, TWILIO_ACCOUNT_SID=MAIN_SID)

    assert found.twilio_accounts == {SUB_SID: ("new", "old"), "AC" + "6" * 32: ("one",)}
    assert found.account_sids == {MAIN_SID, SUB_SID, "AC" + "6" * 32}
    assert settings(TWILIO_ACCOUNT_SID=MAIN_SID).account_sids == {MAIN_SID}
    assert settings().account_sids == frozenset()  # calls of any account


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"TWILIO_ACCOUNT_SID": ""}, "TWILIO_AUTH_TOKEN would be valid for any"),
        ({"TWILIO_ACCOUNT_SID": SUB_SID}, "names the account of TWILIO_ACCOUNT_SID"),
        ({"TWILIO_AUTH_TOKEN": "x" * 32}, "has a token of the account"),
        ({"TWILIO_AUTH_TOKEN_SECONDARY": "x" * 32}, "has a token of the account"),
        ({"BRIDGE_TICKETS": "off"}, "BRIDGE_TICKETS is off"),
    ],
)
def test_accounts_whose_tokens_would_be_valid_for_others(
    more: dict[str, str], told: str
) -> None:
    """The bridge does not start if a token would be valid beyond its own account."""
    accounts = {"TWILIO_ACCOUNTS": f"{SUB_SID}: {'x' * 32}"}
    found = mistakes({**REAL, "TWILIO_ACCOUNT_SID": MAIN_SID, **accounts, **more})

    assert set(found) == {"TWILIO_ACCOUNTS"}
    assert told in found["TWILIO_ACCOUNTS"].text and found["TWILIO_ACCOUNTS"].fix
    assert "xxx" not in str(found)


def test_a_token_of_an_account_that_can_be_guessed_is_an_error() -> None:
    """Whoever guesses it can pass for Twilio."""
    environ = {"TWILIO_ACCOUNT_SID": MAIN_SID, "TWILIO_ACCOUNTS": f"{SUB_SID}: short"}

    found = serving_mistakes(load({**REAL, **environ}, None))

    assert levels(found) == {"TWILIO_ACCOUNTS": "error"}


PRICES = "input_text=4, input_audio=32, input_cached=1, output_text=16, output_audio=64"


@pytest.mark.parametrize("name", ["BRIDGE_COST_PER_CALL", "BRIDGE_COST_PER_DAY"])
def test_a_cost_limit_needs_prices(name: str, tmp_path: Path) -> None:
    """Without prices a cost limit would never be reached. Routes may have their own
    prices, which are checked when the routes are read."""
    limited = {**REAL, name: "5"}

    assert levels(serving_mistakes(load(limited, None))) == {name: "error"}
    for more in (
        {"BRIDGE_PRICES": PRICES},
        {"BRIDGE_ROUTES": str(tmp_path / "r.yaml")},
    ):
        assert serving_mistakes(load({**limited, **more}, None)) == []


def test_check_shows_the_limits() -> None:
    """The report shows which limits apply and which are off."""
    environ = {"BRIDGE_TRANSFER_PREFIXES": "+1,!+1900", "BRIDGE_COST_PER_CALL": "1.5"}
    told = {it.name: it.text for it in check(environ, None) if it.level == "ok"}

    assert told["BRIDGE_LONGEST_SECONDS"] == "is 14400: no call is longer"
    assert told["BRIDGE_CALLS_PER_NUMBER"] == "is 10"
    assert told["BRIDGE_COST_PER_CALL"] == "is 1.5"
    assert told["BRIDGE_COST_PER_DAY"] == "is 0: no limit"
    assert "+1, !+1900" in told["BRIDGE_TRANSFER_PREFIXES"]


@pytest.mark.parametrize(
    ("environ", "host", "told"),
    [
        ({}, "0.0.0.0", None),
        ({"BRIDGE_INSECURE": "1"}, "127.0.0.1", None),
        ({"BRIDGE_INSECURE": "1", "BRIDGE_HOST": "0.0.0.0"}, "0.0.0.0", "warning"),
        ({"BRIDGE_INSECURE": "0", "BRIDGE_HOST": "::1"}, "::1", None),
    ],
)
def test_insecure_listens_on_loopback_by_default(
    environ: dict[str, str], host: str, told: str | None
) -> None:
    """Other machines on a developer's network cannot place unsigned calls, unless
    BRIDGE_HOST allows it."""
    found = settings(**environ)

    assert found.host == host
    assert levels(serving_mistakes(found)).get("BRIDGE_HOST") == told


ROOT = Path(__file__).resolve().parents[2]
SHOWN = re.compile(
    r"(TWILIO_(?:AUTH_TOKEN|AUTH_TOKEN_SECONDARY|SHARED_KEYS|ACCOUNTS)|BRIDGE_API_TOKEN)"
    r"[=:] ?(\"[^\"]+\"|\S+)"
)


@pytest.mark.parametrize(
    "file", ["README.md", ".env.example", "deploy/kubernetes/secret.example.yaml"]
)
def test_a_placeholder_of_our_files_is_an_error_as_a_secret(file: str) -> None:
    """A placeholder that was left in place is an error, because everybody can read
    it."""
    shown = SHOWN.findall((ROOT / file).read_text("utf-8"))

    assert shown
    for name, value in shown:
        environ = {**REAL, "TWILIO_ACCOUNT_SID": MAIN_SID, name: value.strip('"')}
        assert levels(serving_mistakes(load(environ, None))).get(name) == "error", value


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("TWILIO_AUTH_TOKEN_SECONDRY", "TWILIO_AUTH_TOKEN_SECONDARY"),
        ("TWILIO_ACOUNT_SID", "TWILIO_ACCOUNT_SID"),
        ("TWILIO_REGION", None),
        ("OPENAI_BASE_URL", None),
    ],
)
def test_a_misspelt_vendor_variable_is_reported(name: str, near: str | None) -> None:
    """The mistake is reported before a rotation of the token refuses all callers.
    Variables of other programs are not reported."""
    found = unknown_names({name: "x"}, None)

    assert [it.fix for it in found] == ([f"did you mean {near}?"] if near else [])


@pytest.mark.parametrize("text", ["0", "0.0", "0.05"])
def test_a_time_limit_of_0_is_an_error(text: str) -> None:
    """A time limit of 0 would refuse every caller; it does not mean no limit."""
    name = "BRIDGE_START_SECONDS"

    assert f"{text}, which is too small" in mistakes({name: text})[name].text
