"""Signatures of Standard Webhooks, checked against the verifier of `openai`."""

import base64
import time
from collections.abc import Callable

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from bridge.records.standard_webhooks import (
    TOLERANCE_SECONDS,
    is_signed,
    signed,
    signing_key,
)

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()
BODY = '{"name": "Zoë"}'.encode()


def headers(secret: str = SECRET, age: float = 0) -> dict[str, str]:
    return signed(signing_key(secret), "msg_1", int(time.time() - age), BODY)


def openai_accepts(given: dict[str, str], body: bytes) -> bool:
    with OpenAI(api_key="none", webhook_secret=SECRET) as client:
        try:
            client.webhooks.verify_signature(body, given)
        except (InvalidWebhookSignatureError, ValueError):
            return False
    return True


@pytest.mark.parametrize(
    ("made", "body", "accepted"),
    [
        (lambda: headers(), BODY, True),
        (lambda: headers(age=TOLERANCE_SECONDS - 30), BODY, True),
        (lambda: headers(age=30 - TOLERANCE_SECONDS), BODY, True),
        (lambda: headers(age=TOLERANCE_SECONDS + 1), BODY, False),
        (lambda: headers(age=-TOLERANCE_SECONDS - 30), BODY, False),
        (lambda: headers(OTHER), BODY, False),
        (lambda: headers(), BODY + b" ", False),
        (lambda: headers(), b"\xff", False),
        (lambda: headers() | {"webhook-id": "msg_2"}, BODY, False),
        (lambda: headers() | {"webhook-timestamp": "soon"}, BODY, False),
        (lambda: headers() | {"webhook-signature": "v1,"}, BODY, False),
        (lambda: {}, BODY, False),
    ],
)
def test_it_decides_as_openais_own_verifier_does(
    made: Callable[[], dict[str, str]], body: bytes, accepted: bool
) -> None:
    """Forged, old, early or incomplete deliveries are refused, all others are not."""
    given = made()  # now: the timestamps depend on the time of the test
    assert is_signed(signing_key(SECRET), given, body) is accepted
    assert openai_accepts(given, body) is accepted


@pytest.mark.parametrize("first", ["v1a,AAAA", "v2", "v1,AAAA"])
def test_one_of_several_signatures_is_enough(first: str) -> None:
    """A sender that rotates its secret signs with the old and the new one."""
    given = headers()
    given["webhook-signature"] = f"{first}  {given['webhook-signature']}"

    assert is_signed(signing_key(SECRET), given, BODY)
    assert openai_accepts(given, BODY)


def test_an_empty_list_of_signatures_is_none() -> None:
    given = headers() | {"webhook-signature": " v1a,AAAA "}

    assert not is_signed(signing_key(SECRET), given, BODY)
