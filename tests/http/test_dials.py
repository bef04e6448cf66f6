"""The number that a dialled person is shown, and what is known of a leg that failed."""

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import MultiDict

from bridge.core.transfers import FailedTransfer, instruction
from bridge.http.dials import (
    MAX_MESSAGE_CHARS,
    failed_transfer,
    shown_number,
)
from bridge.http.webhook_fields import Webhook

OURS, OTHER = "+15557650002", "+14155550100"


def webhook(**form: str) -> Webhook:
    request = make_mocked_request("POST", "/voice/next")
    return Webhook(request, MultiDict(form), "https://bridge.example")


@pytest.mark.parametrize(
    ("caller", "called", "shown"),
    [
        ("+15551230001", OURS, None),  # Twilio shows the caller's
        ("client:ann", OURS, OURS),
        ("sip:ann@example.com", OURS, OURS),
        ("anonymous", OURS, OURS),
        ("+266696687", OURS, OURS),  # spells ANONYMOUS
        ("", OURS, OURS),
        ("client:ann", "support", OTHER),
        ("sip:ann@example.com", "sip:desk@example.com", OTHER),
    ],
)
def test_a_caller_without_a_number_is_shown_as_ours(
    caller: str, called: str, shown: str | None
) -> None:
    """A person who is dialled sees a number that Twilio accepts."""
    assert shown_number(webhook(From=caller, To=called), OTHER) == shown


def test_without_any_number_twilio_decides() -> None:
    """Nothing is invented."""
    assert shown_number(webhook(From="client:a", To="desk"), "") is None


def test_what_twilio_says_about_a_failed_leg() -> None:
    """Codes and text are kept; a number and an address in the text are not."""
    text = "Dial: +1 (555) 123-0001 and sip:ann@example.com are not allowed (13214)"
    form = {"ErrorCode": "13214", "DialSipResponseCode": "486", "ErrorMessage": text}

    assert failed_transfer(webhook(**form), "failed") == FailedTransfer(
        "failed", "13214", "486", "Dial: [number] and [number] are not allowed (13214)"
    )


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ({}, ("", "", "")),
        ({"ErrorCode": "", "DialSipResponseCode": "no"}, ("", "", "")),
        ({"ErrorCode": "1" * 99, "ErrorMessage": "a\nb"}, ("", "", "")),
        ({"ErrorMessage": "x" * 5000}, ("", "", "x" * MAX_MESSAGE_CHARS)),
    ],
)
def test_odd_fields_are_left_out(
    form: dict[str, str], kept: tuple[str, str, str]
) -> None:
    """A long or malformed text does not reach the log."""
    found = failed_transfer(webhook(**form), "busy")

    assert (found.error_code, found.sip_code, found.message) == kept


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("busy", "busy"),
        ("no-answer", "nobody answered"),
        ("canceled", "nobody took"),
        ("failed", "cannot be reached"),
        ("some-new-status", "cannot be reached"),
    ],
)
def test_the_agent_is_told_what_a_person_would_be_told(status: str, words: str) -> None:
    """The agent can tell the caller that the line is busy, or that nobody answered."""
    assert words in instruction(status)
    assert status == "busy" or status not in instruction(status)
