"""Values of our own documents are mistakes in a deployment."""

import re
from pathlib import Path

import pytest

from bridge.app.placeholders import SETTINGS
from bridge.app.settings import Settings, SettingsError, load, variable
from bridge.app.settings_report import serving_mistakes

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "README.md",
    ".env.example",
    "deploy/kubernetes/secret.example.yaml",
    "deploy/kustomization.yaml",
)
NAMES = {variable(field): field for field in SETTINGS}
SHOWN = re.compile(rf"({'|'.join(NAMES)})[=:] ?(\"[^\"]+\"|\S+( \.\.\.)?)")
USABLE = {
    # Values that may be in use.
    "local",
    "redis://127.0.0.1:6379/0",
    "http://127.0.0.1:9000/calls",
    "http://127.0.0.1:9010",
}
REAL = {
    "BRIDGE_PUBLIC_URL": "https://phone.test",
    "OPENAI_API_KEY": "sk-0123",
    "TWILIO_AUTH_TOKEN": "0123456789abcdef" * 2,
    "TWILIO_ACCOUNT_SID": "AC" + "0123456789abcdef" * 2,
}


def shown() -> list[tuple[str, str]]:
    """Each setting whose value is nobody else's, with the value of a document."""
    found = []
    for file in FILES:
        text = (ROOT / file).read_text("utf-8")
        found += [(it[0], it[1].strip('"`;,')) for it in SHOWN.findall(text)]
    return sorted({it for it in found if it[1] not in USABLE})


def mistakes(environ: dict[str, str]) -> set[str]:
    try:
        found = serving_mistakes(load(environ, None))
    except SettingsError as error:  # not of the form of a value
        found = list(error.mistakes)
    return {it.name for it in found if it.level == "error"}


def test_the_documents_are_read() -> None:
    """Almost every such setting is in one of them."""
    assert len({name for name, _ in shown()}) >= len(SETTINGS) - 3


@pytest.mark.parametrize(("name", "value"), shown())
def test_a_value_of_our_documents_is_a_mistake(name: str, value: str) -> None:
    """Left in place, it is named before the first caller meets it."""
    pair = {
        "TWILIO_API_KEY": "TWILIO_API_SECRET",
        "TWILIO_API_SECRET": "TWILIO_API_KEY",
    }
    more = {pair[name]: "SK0123456789abcdef"} if name in pair else {}

    assert name in mistakes({**REAL, **more, name: value}), value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRIDGE_PUBLIC_URL", "https://example-company.com"),
        ("BRIDGE_PUBLIC_URL", "https://myexample.com"),
        ("BRIDGE_FALLBACK_NUMBER", "+14152370100"),
        ("BRIDGE_OUTBOUND_NUMBER", "+493012345678"),
        ("OPENAI_API_KEY", "sk-yours-0123"),
        ("BRIDGE_API_TOKEN", "Zm9vYmFyYmF6cXV4"),
        ("BRIDGE_REDIS_URL", "redis://:pa55word@redis:6379/0"),
        ("BRIDGE_MODEL_HEADERS", "api-key: 0123456789"),
    ],
)
def test_a_value_of_ones_own_is_none(name: str, value: str) -> None:
    """Nobody is kept from using it."""
    assert mistakes({**REAL, name: value}) == set()


def test_a_developer_is_only_warned() -> None:
    """An insecure bridge serves nobody but this machine."""
    found = serving_mistakes(
        load({"BRIDGE_INSECURE": "1", "OPENAI_API_KEY": "sk-..."}, None)
    )

    assert {it.level for it in found} == {"warning"}
    assert "OPENAI_API_KEY" in {it.name for it in found}


def test_every_setting_that_is_checked_exists() -> None:
    """A renamed field is not forgotten here."""
    assert set(SETTINGS) < set(Settings.model_fields)
