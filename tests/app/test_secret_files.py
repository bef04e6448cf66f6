"""Secrets in files: NAME_FILE=path in place of NAME=value."""

import os
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from bridge.app.routes import Routes
from bridge.app.settings import (
    SECRET_NAMES,
    Finding,
    SettingsError,
    file_name,
    load,
)
from bridge.app.settings_report import check, unknown_names
from bridge.app.values import MAX_FILE_BYTES
from bridge.cli.secret_values import secrets_of

SIGNING = "whsec_" + "A" * 32
SUB = "AC" + "5" * 32
VALUES = {
    "TWILIO_API_KEY": "SK-of-the-key",
    "TWILIO_API_SECRET": "secret-of-the-key",
    "BRIDGE_API_TOKEN": "the-token-of-the-api",
    "BRIDGE_MODEL_HEADERS": "api-key: the-key-in-a-header",
    "BRIDGE_MODEL_URL": "wss://model.example/v1?key=the-key-in-a-url",
    "BRIDGE_REDIS_URL": "redis://:the-password@redis:6379/0",
    "BRIDGE_REPORT_SECRET": SIGNING,
    "BRIDGE_REPORT_URL": "https://example.com/calls?key=the-key-of-reports",
    "OPENAI_API_KEY": "sk-the-key-of-openai",
    "OPENAI_WEBHOOK_SECRET": SIGNING,
    "TWILIO_ACCOUNTS": f"{SUB}: token-of-the-subaccount",
    "TWILIO_AUTH_TOKEN": "the-primary-token",
    "TWILIO_AUTH_TOKEN_SECONDARY": "the-secondary-token",
    "TWILIO_SHARED_KEYS": "webhooks_sharedkey_1: the-shared-key",
}
MAIN = {"TWILIO_ACCOUNT_SID": "AC" + "0" * 32}


def files(folder: Path, **given: str | bytes) -> dict[str, str]:
    """Writes each value into a file of its own, and returns the variables."""
    for name, value in given.items():
        data = value if isinstance(value, bytes) else value.encode()
        (folder / name.lower()).write_bytes(data)
    return {file_name(name): str(folder / name.lower()) for name in given}


def mistakes(environ: dict[str, str]) -> list[Finding]:
    with pytest.raises(SettingsError) as raised:
        load(environ, env_file=None)
    return list(raised.value.mistakes)


def test_each_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    """An operator who mounts secrets as files sets no secret as a variable."""
    assert set(VALUES) == SECRET_NAMES
    environ = files(tmp_path, **{name: f"{it}\n" for name, it in VALUES.items()})

    assert load(environ | MAIN, None) == load(VALUES | MAIN, None)


def test_the_log_hides_a_secret_that_came_from_a_file(tmp_path: Path) -> None:
    """The scrubber of the log knows it like one that came from a variable."""
    conf = load(files(tmp_path, **VALUES) | MAIN, None)

    secrets = secrets_of(conf, Routes.none())

    for value in VALUES.values():
        assert any(value.endswith(it) or f":{it}@" in value for it in secrets if it)
    assert {"token-of-the-subaccount", "the-shared-key", "the-password"} <= secrets


def test_the_env_file_may_name_the_file_of_a_secret(tmp_path: Path) -> None:
    """`.env` then has no secret in it."""
    named = files(tmp_path, OPENAI_API_KEY="sk-key\r\n")
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={it}\n" for name, it in named.items()))

    assert load({}, env_file).openai_api_key == SecretStr("sk-key")
    assert unknown_names({}, env_file) == []


def test_several_lines_are_several_entries(tmp_path: Path) -> None:
    """A file of accounts, keys or headers has a line for each."""
    accounts = f"{SUB}: one-token, other-token\n\nAC{'6' * 32}: third-token\n"
    keys = "webhooks_sharedkey_1: a\nwebhooks_sharedkey_2: b\n"
    named = files(tmp_path, TWILIO_ACCOUNTS=accounts, TWILIO_SHARED_KEYS=keys)
    found = load(named | MAIN, None)

    assert found.twilio_accounts == {
        SUB: ("one-token", "other-token"),
        "AC" + "6" * 32: ("third-token",),
    }
    assert list(found.twilio_shared_keys.values()) == ["a", "b"]


def test_an_empty_variable_beside_a_file_is_unset(tmp_path: Path) -> None:
    """docker-compose passes empty variables; the file counts."""
    named = files(tmp_path, OPENAI_API_KEY="sk-key")

    found = load({"OPENAI_API_KEY": "", "TWILIO_AUTH_TOKEN_FILE": " ", **named}, None)

    assert found.openai_api_key == SecretStr("sk-key")


def test_a_link_is_followed(tmp_path: Path) -> None:
    """Kubernetes mounts a secret as a link to a file in another folder."""
    named = files(tmp_path, OPENAI_API_KEY="sk-key")
    link = tmp_path / "link"
    link.symlink_to(named["OPENAI_API_KEY_FILE"])

    found = load({"OPENAI_API_KEY_FILE": str(link)}, None)

    assert found.openai_api_key == SecretStr("sk-key")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b" \n\n", "is empty", id="blank"),
        pytest.param(b'"sk-key"\n', "begins with a quotation mark", id="quoted"),
        pytest.param("hush".encode("utf-16"), "is not UTF-8", id="UTF-16"),
        pytest.param(b"hush" * MAX_FILE_BYTES, "is too large", id="large"),
        pytest.param(b"hush\nhush\n", "has a blank", id="two lines"),
        pytest.param(b"hush hush", "has a blank", id="a blank"),
    ],
)
def test_a_wrong_file_is_named_and_its_content_is_not_shown(
    content: bytes, told: str, tmp_path: Path
) -> None:
    """The operator reads which setting and which file, why, and what to do."""
    environ = files(tmp_path, OPENAI_API_KEY=content)

    [found] = mistakes(environ)

    assert found.name == "OPENAI_API_KEY_FILE" and found.fix
    assert told in found.text and str(tmp_path / "openai_api_key") in str(found)
    reported = [it for it in check(environ, None) if "OPENAI" in it.name]
    assert reported == [found]
    assert "hush" not in str(found)


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing mount, a folder, a pipe (which would block the start) and a forbidden
    file are mistakes. All are reported at once."""
    os.mkfifo(tmp_path / "pipe")
    forbidden = tmp_path / "forbidden"
    forbidden.write_text("hush")
    forbidden.chmod(0)
    found = mistakes(
        {
            "OPENAI_API_KEY_FILE": str(tmp_path / "missing"),
            "BRIDGE_API_TOKEN_FILE": str(tmp_path),
            "TWILIO_AUTH_TOKEN_FILE": str(tmp_path / "pipe"),
            "BRIDGE_REDIS_URL_FILE": f"{tmp_path}/x\0y",
            "BRIDGE_REPORT_SECRET_FILE": "secrets/report",
            "BRIDGE_PORT": "eighty",
        }
    )

    told = {it.name: it.text.partition(", ")[2] or it.text for it in found}
    assert told == {
        "OPENAI_API_KEY_FILE": "which does not exist",
        "BRIDGE_API_TOKEN_FILE": "which is not a file",
        "TWILIO_AUTH_TOKEN_FILE": "which is not a file",
        "BRIDGE_REDIS_URL_FILE": "which cannot be read",
        "BRIDGE_REPORT_SECRET_FILE": "./, ../ or ~/",
        "BRIDGE_PORT": "which is not a whole number",
    }
    if os.geteuid():  # root reads every file
        [found_forbidden] = mistakes({"OPENAI_API_KEY_FILE": str(forbidden)})
        assert "cannot be read" in found_forbidden.text


def test_a_secret_in_the_place_of_its_path_is_not_shown() -> None:
    """An operator who writes the secret itself into NAME_FILE does not find it in the
    log."""
    [found] = mistakes({"OPENAI_API_KEY_FILE": "sk-hush"})

    assert found.name == "OPENAI_API_KEY_FILE" and found.fix
    assert "hush" not in str(found)


def test_a_value_and_a_file_of_one_setting(tmp_path: Path) -> None:
    """Which of the two counts is not left to chance, wherever each of them is set."""
    named = files(tmp_path, OPENAI_API_KEY="sk-key")
    env_file = tmp_path / ".env"
    env_file.write_text("OPENAI_API_KEY=sk-other\n")

    [found] = mistakes({**named, "OPENAI_API_KEY": "sk-other"})

    assert found.name == "OPENAI_API_KEY_FILE"
    assert found.text == "is set together with OPENAI_API_KEY"
    with pytest.raises(SettingsError, match="together"):
        load(named, env_file)


def test_check_names_the_files(tmp_path: Path) -> None:
    """`bridge check` says which files are read, and shows nothing of them."""
    environ = files(tmp_path, **VALUES) | MAIN
    report = check(environ, None)

    told = {it.name: it.text for it in report if it.level == "ok"}
    assert told["OPENAI_API_KEY_FILE"] == f"is {tmp_path / 'openai_api_key'}"
    assert told["TWILIO_ACCOUNTS"] == f"takes calls of {SUB}"
    assert not re.search("hush|the-|sk-|whsec", "".join(map(str, report)))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("TWILIO_AUTH_TOKEN_FIEL", "TWILIO_AUTH_TOKEN_FILE"),
        ("BRIDGE_API_TOKEN_FILES", "BRIDGE_API_TOKEN_FILE"),
    ],
)
def test_a_misspelt_name_of_a_file_is_noticed(name: str, near: str) -> None:
    """A secret that is not read is reported, with the name that was probably meant."""
    [found] = unknown_names({name: "/run/secrets/x"}, None)

    assert (found.name, found.fix) == (name, f"did you mean {near}?")


def test_only_a_secret_may_stand_in_a_file() -> None:
    """A file for another setting has no effect, and is reported."""
    [found] = unknown_names({"BRIDGE_PORT_FILE": "/run/secrets/port"}, None)

    assert found.name == "BRIDGE_PORT_FILE"
