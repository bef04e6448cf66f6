"""Is this request Twilio's? Checked before anything is accepted or paid for.

Rules: https://www.twilio.com/docs/usage/security.
The url that was signed is built from the configured origin, never from the request.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from twilio.request_validator import (  # type: ignore[import-untyped]
    RequestValidator,
)

HEADER = "X-Twilio-Signature"


class Signatures:
    """Checks against one origin (`https://host[:port]`, no path) and auth token."""

    def __init__(self, public_url: str, auth_token: str) -> None:
        self._origin = public_url
        self._validator = RequestValidator(auth_token)

    def webhook(
        self, target: str, form: Mapping[str, Any], signature: str | None
    ) -> bool:
        """A POST of a form. `target`: path and query exactly as they were requested;
        `form`: a MultiDict, for a plain dict would lose repeated names."""
        if not signature:
            return False
        return self._matches(self._origin + target, form, signature)

    def handshake(self, target: str, signature: str | None) -> bool:
        """The upgrade of a media stream: the wss url of the TwiML, no parameters."""
        if not signature:
            return False
        url = websocket_origin(self._origin) + target
        # "try appending a trailing / character to the URL" (Twilio's security page).
        urls = [url, url.rstrip("/") + "/"]
        return any(self._matches(url, {}, signature) for url in urls)

    def _matches(self, url: str, form: Mapping[str, Any], signature: str) -> bool:
        try:
            if url.startswith("wss:"):
                # The SDK would try a wss url with port 80 only; with 443 named it
                # tries that one and none.
                url = _with_port(url, 443)
            return bool(self._validator.validate(url, form, signature))
        except ValueError:
            return False  # no url at all, or a signature that is no ASCII


def websocket_origin(origin: str) -> str:
    """https://host -> wss://host, http://host -> ws://host."""
    return "ws" + origin.removeprefix("http")


def _with_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    if parts.port is not None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.netloc}:{port}"))
