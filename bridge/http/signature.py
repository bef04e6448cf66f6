"""Checks that a request was signed by Twilio, before the bridge accepts or pays for
anything.

Rules: https://www.twilio.com/docs/usage/security. The signed URL is built from the
configured origin, never from the request.
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
"""Query parameter of a webhook whose body is JSON."""

_NO_KEYS: Mapping[str, str] = MappingProxyType({})
_NO_ACCOUNTS: Mapping[str, Sequence[str]] = MappingProxyType({})


class Signatures:
    """Checks signatures for one public URL: `https://host[:port]`, and perhaps a path
    that a proxy takes away or leaves.

    `auth_tokens`: each of them is accepted, because two are valid while a token is
    rotated. `shared_keys`: id -> secret. A request that names a key (Twilio's
    SharedKeys) is checked against that key only, and with HMAC-SHA256 only.

    Both are secrets of the main account. `accounts`: SID -> auth tokens of another
    account; `of` gives the signatures that are valid for it.
    """

    def __init__(
        self,
        public_url: str,
        auth_tokens: Sequence[str],
        shared_keys: Mapping[str, str] = _NO_KEYS,
        accounts: Mapping[str, Sequence[str]] = _NO_ACCOUNTS,
    ) -> None:
        self._public = public_url
        parts = urlsplit(public_url)
        self._origin, self._prefix = f"{parts.scheme}://{parts.netloc}", parts.path
        self._tokens = [RequestValidator(token) for token in auth_tokens]
        self._shared = {
            name: RequestValidator(secret) for name, secret in shared_keys.items()
        }
        self._others = {
            sid: Signatures(public_url, tokens) for sid, tokens in accounts.items()
        }

    def of(self, account_sid: str) -> "Signatures":
        """The signatures that are valid for this account. An account that is not known
        gets those of the main account; its calls are refused after this check."""
        return self._others.get(account_sid, self)

    def form(
        self, target: str, form: Mapping[str, Any], headers: Mapping[str, str]
    ) -> bool:
        """A POST of a form. `target`: path and query exactly as requested. `form`: a
        MultiDict, because a plain dict would lose repeated names. `headers`: a
        case-insensitive mapping."""
        return self._matches(self._signed_urls(target), form, headers)

    def json(self, target: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """A POST of JSON. The signed URL contains the hash of the body."""
        try:
            if BODY_HASH not in parse_qs(urlsplit(target).query):
                return False
            text = body.decode()
        except ValueError:
            return False
        return self._matches(self._signed_urls(target), text, headers)

    def handshake(self, target: str, headers: Mapping[str, str]) -> bool:
        """The WebSocket upgrade of a media stream. The wss URL of the TwiML is signed,
        without parameters."""
        url = websocket_origin(self._url(target))
        # "try appending a trailing / character to the URL" (Twilio's security page).
        return self._matches([url, _other_slash(url)], {}, headers)

    def _url(self, target: str) -> str:
        """The public URL of a request. `target` has the prefix if the proxy left it."""
        is_whole = self._prefix and target.startswith(f"{self._prefix}/")
        return (self._origin if is_whole else self._public) + target

    def _signed_urls(self, target: str) -> list[str]:
        """The URLs that Twilio may have signed. It may have sorted the query, and a
        proxy may have added or removed a slash behind the path."""
        url = self._url(target)
        path, mark, query = url.partition("?")
        urls = [url, _other_slash(path) + mark + query]
        if (in_order := "&".join(sorted(query.split("&")))) != query:
            urls.append(path + mark + in_order)
        return urls

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
            return False  # not a URL, or a signature that is not ASCII

    def _signers(self, settings: str | None) -> tuple[str, list[RequestValidator]]:
        """The algorithm and the secrets that the header names. The header is not
        trusted: it only selects among the secrets, each valid for one algorithm
        only."""
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


def _other_slash(url: str) -> str:
    """The URL with a slash at its end, or without it if it has one."""
    return url[:-1] if url.endswith("/") else f"{url}/"


def _named(url: str) -> str:
    """For a wss URL without a port the SDK tries only port 80. With port 443 named, it
    tries the URL with and without the port."""
    if not url.startswith("wss:"):
        return url
    parts = urlsplit(url)
    if parts.port is not None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.netloc}:443"))
