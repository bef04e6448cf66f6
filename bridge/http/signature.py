"""Is this request Twilio's? Checked before anything is accepted or paid for.

Rules: https://www.twilio.com/docs/usage/security.
The url that was signed is built from the configured origin, never from the request.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from twilio.request_validator import (  # type: ignore[import-untyped]
    HMAC_SHA1,
    HMAC_SHA256,
    SIGNATURE_HEADER,
    SIGNATURE_SETTINGS_HEADER,
    RequestValidator,
    get_signature_algorithm,
)

BODY_HASH = "bodySHA256"
"""In the query of a webhook whose body is JSON."""

_NO_KEYS: Mapping[str, str] = MappingProxyType({})


class Signatures:
    """Checks against one origin (`https://host[:port]`, no path).

    `auth_tokens`: any of them may have signed, for a token is rotated by having two for
    a while. `shared_keys`: id -> secret; a request that names one (Twilio's SharedKeys)
    is checked against that one alone, and with HMAC-SHA256 alone.
    """

    def __init__(
        self,
        public_url: str,
        auth_tokens: Sequence[str],
        shared_keys: Mapping[str, str] = _NO_KEYS,
    ) -> None:
        self._origin = public_url
        self._tokens = [RequestValidator(token) for token in auth_tokens]
        self._shared = {
            name: RequestValidator(secret) for name, secret in shared_keys.items()
        }

    def form(
        self, target: str, form: Mapping[str, Any], headers: Mapping[str, str]
    ) -> bool:
        """A POST of a form. `target`: path and query exactly as they were requested;
        `form`: a MultiDict, for a plain dict would lose repeated names; `headers`: a
        mapping that knows no case."""
        return self._matches([self._origin + target], form, headers)

    def json(self, target: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """A POST of JSON: its url is signed, and has the hash of the body in it."""
        try:
            if BODY_HASH not in parse_qs(urlsplit(target).query):
                return False
            text = body.decode()
        except ValueError:
            return False
        return self._matches([self._origin + target], text, headers)

    def handshake(self, target: str, headers: Mapping[str, str]) -> bool:
        """The upgrade of a media stream: the wss url of the TwiML, no parameters."""
        url = websocket_origin(self._origin) + target
        # "try appending a trailing / character to the URL" (Twilio's security page).
        return self._matches([url, url.rstrip("/") + "/"], {}, headers)

    def _matches(
        self, urls: list[str], form: object, headers: Mapping[str, str]
    ) -> bool:
        signature = headers.get(SIGNATURE_HEADER)
        if not signature:
            return False  # the SDK would raise
        algorithm, validators = self._signers(headers.get(SIGNATURE_SETTINGS_HEADER))
        try:
            return any(
                validator.validate(_named(url), form, signature, algorithm)
                for validator in validators
                for url in urls
            )
        except ValueError:
            return False  # no url at all, or a signature that is no ASCII

    def _signers(self, settings: str | None) -> tuple[str, list[RequestValidator]]:
        """Who may have signed so. The header is the request's own word: it only picks
        among the secrets, each of which is good for one algorithm."""
        algorithm = get_signature_algorithm(settings).upper()
        if algorithm == HMAC_SHA1:
            return algorithm, self._tokens
        if algorithm != HMAC_SHA256:
            return algorithm, []
        parts = (part.partition("=") for part in (settings or "").split(","))
        named = {name.strip(): value.strip() for name, _, value in parts}
        key = self._shared.get(named.get("key", ""))
        return algorithm, [key] if key else []


def websocket_origin(origin: str) -> str:
    """https://host -> wss://host, http://host -> ws://host."""
    return "ws" + origin.removeprefix("http")


def _named(url: str) -> str:
    """The SDK would try a wss url with port 80 only; with 443 named it tries that one
    and none."""
    if not url.startswith("wss:"):
        return url
    parts = urlsplit(url)
    if parts.port is not None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.netloc}:443"))
