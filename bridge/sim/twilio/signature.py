"""Twilio's request signature, written from Twilio's security page, not from its SDK.

https://www.twilio.com/docs/usage/security: HMAC-SHA1 with the account's primary auth
token over the URL and, for a form, all names and values sorted by name.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit


def sign(auth_token: str, url: str, form: Mapping[str, str] | None = None) -> str:
    """The X-Twilio-Signature header for a request to `url`."""
    text = url + "".join(name + value for name, value in sorted((form or {}).items()))
    digest = hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode()


def signed_url(url: str) -> str:
    """The URL as a voice webhook is signed: without user, fragment and (https) port.

    The URL of a media stream is signed exactly as written instead.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme == "https" and parts.port is not None:
        host = host.rpartition(":")[0]
    return urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
