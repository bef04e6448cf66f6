"""Values that our documents show in the place of yours: an address, a key, a number.

They have the right form, so nothing else notices that one was left in place.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretStr

SETTINGS = {
    "public_url": "the address at which Twilio reaches your bridge",
    "openai_api_key": "the key of your OpenAI account",
    "openai_webhook_secret": "the signing secret of OpenAI's webhook",
    "model_url": "the URL of your model",
    "model_headers": "the headers of your model",
    "twilio_account_sid": "the SID of your account, from the Twilio console",
    "twilio_auth_token": "the auth token of the Twilio console",
    "twilio_auth_token_secondary": "the secondary token of the Twilio console",
    "twilio_api_key": "the SID of your API key, from the Twilio console",
    "twilio_api_secret": "the secret of your API key",
    "twilio_shared_keys": "the keys of the Twilio console",
    "twilio_accounts": "the SIDs and tokens of the Twilio console",
    "twilio_api_url": "the address of your proxy",
    "api_token": "a random token",
    "redis_url": "the URL of your Redis",
    "report_url": "the address that takes your reports",
    "report_secret": "a random signing secret",
    "fallback_number": "a phone number of yours",
    "outbound_number": "a number of your Twilio account",
}
"""Fields of Settings whose value is nobody else's -> what belongs there."""

PUBLISHED = frozenset(
    {
        "the-auth-token-of-the-twilio-console",
        "the-old-auth-token",
        "the-secret-of-the-key",
        "a-long-random-token",
        "webhooks_sharedkey_id",
        "whsec_cHV0IDI0IHRvIDY0IHJhbmRvbSBieXRlcyBoZXJl",
    }
)
"""Values of our files that no form below gives away. Everybody knows them."""

_FORMS = (
    r".*(\.\.\.|\u2026|<[^>]*>).*",  # sk-..., AC..., <your token>
    r"(sk-|SK|AC|whsec_)?(your|its)[-_ ].*",  # your-auth-token, sk-your-key
    r"(AC|SK|sk-|CA)[xyzXYZ*]{6,}",
    r"(?i:change-?me|secret|password|token|todo|placeholder)",
    r"(?i:[a-z]+://)(.*@)?([^/?#]*\.)?example\.(com|net|org)([:/?#].*)?",  # RFC 2606
    r"(?i:[a-z]+://)(NAME|your|my-company)[.-].*",
    r".*://[^/@]*:(password|a-long-random-password)@.*",
    # Numbers that nobody has: area code 555, and 555-0100 to 555-0199 of each area.
    r"\+1555\d{7}",
    r"\+1\d{3}55501\d{2}",
)
_PLACEHOLDER = re.compile("|".join(f"(?:{it})" for it in _FORMS))


def is_placeholder(text: str) -> bool:
    return text in PUBLISHED or bool(_PLACEHOLDER.fullmatch(text))


def texts_in(value: Any) -> Iterator[str]:
    """The texts of the value of a setting, also those of a table."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, Mapping):
        for key, content in value.items():
            yield key
            yield from texts_in(content)
    elif isinstance(value, tuple):
        for content in value:
            yield from texts_in(content)
    elif isinstance(value, str):
        yield value
