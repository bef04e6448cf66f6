"""`bridge connect` against the fake of Twilio's API, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from pydantic import SecretStr
from rich.console import Console

from bridge.app.number_settings import NumberSettings, faults
from bridge.app.settings import Settings
from bridge.cli.connect import ConnectFailed, NumberConnection
from bridge.sim.twilio.rest import TwilioRest
from bridge.sim.twilio.rest_numbers import FakeNumber

SID, TOKEN = "AC" + "0" * 31 + "1", "12345"
NUMBER, ORIGIN = "+14155550100", "https://bridge.example"
FALLBACK = "https://handler.twilio.com/twiml/EH1"


class Setup:
    """The fake, its number, and what the command prints."""

    def __init__(self, rest: TwilioRest) -> None:
        self.rest = rest
        self.out = Console(file=StringIO(), record=True, width=200)
        self.number = FakeNumber(NUMBER)
        rest.phone_numbers = [FakeNumber(NUMBER + "1"), self.number]

    def connection(self, number: str = NUMBER, **options: Any) -> NumberConnection:
        conf: dict[str, Any] = {
            "twilio_account_sid": SID,
            "twilio_auth_token": SecretStr(TOKEN),
            "twilio_api_url": self.rest.url,
            "public_url": ORIGIN,
            **options,
        }
        return NumberConnection(Settings(**conf), number, self.out)

    @property
    def told(self) -> str:
        return self.out.export_text(clear=False)


@asynccontextmanager
async def numbers() -> AsyncIterator[Setup]:
    async with TwilioRest(SID, TOKEN) as rest:
        yield Setup(rest)


async def test_a_number_is_connected_and_the_user_sees_what_changes() -> None:
    """The user sees what was set before, and agrees; then calls reach the bridge, and
    a call for a bridge that is away reaches the fallback."""
    async with numbers() as it:
        it.number.voice_application_sid = "AP1"
        it.number.status_callback_method = "GET"
        asked: list[str] = []

        def agreed() -> bool:
            asked.append(it.told)
            return True

        await it.connection("+1 (415) 555-0100").connect(FALLBACK, agreed)

        [shown] = asked
        assert "https://demo.twilio.com/welcome/voice/" in shown and "AP1" in shown
        assert it.number.voice_url == ORIGIN + "/voice"
        assert it.number.status_callback == ORIGIN + "/call-status"
        assert it.number.voice_fallback_url == FALLBACK
        assert (it.number.voice_application_sid, it.number.trunk_sid) == ("", "")
        assert it.number.status_callback_method == "POST"
        assert it.rest.phone_numbers[0].voice_url.startswith("https://demo.")
        assert await it.connection().check() == []
        await it.connection().connect(None, agreed)
        assert len(asked) == 1 and "nothing changes" in it.told
        assert "<Response>" not in it.told


async def test_the_query_of_a_connected_number_stays() -> None:
    """`/voice?tenant=acme` chooses the route: a second `bridge connect` does not send
    the tenant's callers to another agent, and --check finds nothing wrong."""
    async with numbers() as it:
        url = f"{ORIGIN}/voice?tenant=acme#rc=2"
        await it.connection().connect(FALLBACK, lambda: True)
        it.number.voice_url = url

        assert await it.connection().check() == []
        it.number.voice_method = "GET"
        await it.connection().connect(FALLBACK, lambda: True)
        assert (it.number.voice_url, it.number.voice_method) == (url, "POST")


async def test_a_user_who_does_not_agree_changes_nothing() -> None:
    """The number keeps the settings of whoever has set it up."""
    async with numbers() as it:
        with pytest.raises(ConnectFailed, match="Nothing was changed"):
            await it.connection().connect(None, lambda: False)

        assert it.number.voice_url == "https://demo.twilio.com/welcome/voice/"


async def test_without_a_fallback_the_text_of_a_bin_is_printed() -> None:
    """The user can paste it: an apology, and the fallback number if there is one."""
    async with numbers() as it:
        at = it.connection(fallback_number="+14155550199")
        await at.connect(None, lambda: True)

        assert "TwiML Bin" in it.told
        assert "<Say>" in it.told and "+14155550199</Number>" in it.told
        [finding] = await at.check()
        assert (finding.level, finding.name) == ("warning", "voice_fallback_url")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (ORIGIN + "/fallback", "at the bridge itself"),
        ("http://handler.twilio.com/twiml/EH1", "not an https URL"),
        ("https://[", "not an https URL"),
    ],
)
async def test_a_fallback_is_somewhere_else(url: str, told: str) -> None:
    """A fallback at the bridge is away together with the bridge."""
    async with numbers() as it:
        with pytest.raises(ConnectFailed, match=told):
            await it.connection().connect(url, lambda: True)


@pytest.mark.parametrize(
    ("options", "number", "told"),
    [
        ({}, "+14155550122", "no number"),
        ({}, "911", "not an E.164"),
        ({"public_url": None}, NUMBER, "BRIDGE_PUBLIC_URL"),
        ({"public_url": "http://127.0.0.1:8080"}, NUMBER, "Twilio cannot reach"),
        ({"twilio_account_sid": None}, NUMBER, "TWILIO_ACCOUNT_SID"),
        ({"twilio_auth_token": SecretStr("wrong")}, NUMBER, "20003.*TWILIO_REGION"),
        ({"twilio_api_url": "http://127.0.0.1:1"}, NUMBER, "127.0.0.1 port 1 cannot"),
    ],
)
async def test_what_is_missing_is_said(
    options: dict[str, Any], number: str, told: str
) -> None:
    """A user reads what to correct."""
    async with numbers() as it:
        with pytest.raises(ConnectFailed, match=told):
            await it.connection(number, **options).connect(None, lambda: True)


async def test_a_number_without_voice_is_not_connected() -> None:
    """Its webhooks would be set, and no call would ever come."""
    async with numbers() as it:
        it.number.voice = False
        with pytest.raises(ConnectFailed, match="no voice"):
            await it.connection().connect(None, lambda: True)
        assert "capabilities" in {found.name for found in await it.connection().check()}


CONNECTED = NumberSettings().connected(ORIGIN, FALLBACK)


@pytest.mark.parametrize(
    ("change", "level", "name", "told"),
    [
        ({"trunk_sid": "TK1"}, "error", "trunk_sid", "SIP trunk"),
        ({"voice_application_sid": "AP1"}, "error", "voice_application_sid", "AP1"),
        ({"voice_url": ""}, "error", "voice_url", "not set"),
        ({"voice_url": ORIGIN + "/voice/"}, "error", "voice_url", ORIGIN + "/voice"),
        ({"voice_method": "GET"}, "error", "voice_method", "POST"),
        ({"status_callback": ""}, "warning", "status_callback", "not set"),
        ({"status_callback_method": "GET"}, "warning", "status_callback_method", ""),
        ({"voice_fallback_url": ""}, "warning", "voice_fallback_url", "callers hear"),
        (
            {"voice_fallback_url": ORIGIN + "/voice"},
            "warning",
            "voice_fallback_url",
            "at the bridge",
        ),
    ],
)
def test_each_mistake_is_named(
    change: dict[str, str], level: str, name: str, told: str
) -> None:
    """An operator whose number does not answer reads the setting that is wrong."""
    now = replace(CONNECTED, **change)
    [found] = faults(now, ORIGIN, receives="voice", speaks=True)

    assert (found.level, found.name) == (level, name)
    assert told in found.text and found.fix


def test_options_of_the_connection_are_no_mistake() -> None:
    """Twilio's retries and time limits stand behind a # of the URL."""
    now = replace(CONNECTED, voice_url=ORIGIN + "/voice#rc=2")

    assert not list(faults(now, ORIGIN, receives="voice", speaks=True))
    [fax] = faults(now, ORIGIN, receives="fax", speaks=True)
    assert fax.name == "voice_receive_mode"
