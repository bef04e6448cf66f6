"""Twilio's client for its REST API: asynchronous, quiet, and with a limit of time.

Imported only by a process that makes requests (twilio_api.py).
"""

import base64
import logging
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from twilio.http import AsyncHttpClient  # type: ignore[import-untyped]
from twilio.http.response import Response  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]


def rest_client(
    account_sid: str,
    username: str,
    password: str,
    *,
    seconds: float,
    region: str | None = None,
    edge: str | None = None,
    api_url: str | None = None,
) -> Any:
    """`seconds`: the longest time of one HTTP request. The rest: see RestAccess of
    twilio_api.py."""
    client = Client(
        username,
        password,
        account_sid,
        region=region,
        edge=edge,
        http_client=_Http(api_url, seconds),
        # Not empty: the SDK reads the process environment in place of an empty one, and
        # a TWILIO_REGION there changes the host.
        environment={"": ""},
    )
    # The SDK imports the part of the API at its first use, which would stop the event
    # loop, and with it all calls.
    _ = client.calls, client.incoming_phone_numbers
    return client


class _Http(AsyncHttpClient):  # type: ignore[misc]
    """In place of AsyncTwilioHttpClient, which has no limit of time, leaves its session
    open after a failure, and ignores the proxy of the environment."""

    def __init__(self, api_url: str | None, seconds: float) -> None:
        # The SDK would write eight log lines per request, so its logger is silent.
        silent = logging.Logger("twilio", level=logging.CRITICAL)
        super().__init__(silent, True, None)
        self._api = None if api_url is None else urlsplit(api_url)
        self._limit = aiohttp.ClientTimeout(total=seconds)

    async def request(
        self,
        method: str,
        url: str,
        params: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Response:
        # Each request has its own session: there are few, and none stays open.
        async with (
            aiohttp.ClientSession(
                timeout=self._limit, trust_env=True, cookie_jar=aiohttp.DummyCookieJar()
            ) as http,
            http.request(
                method.upper(),
                self._moved(url),
                params=params,
                data=_form(data),
                headers={**(headers or {}), **_authorization(auth)},
                allow_redirects=allow_redirects,
            ) as answer,
        ):
            return Response(answer.status, await answer.text(), answer.headers)

    def _moved(self, url: str) -> str:
        """The URL at the origin that replaces Twilio's."""
        if self._api is None:
            return url
        scheme, host, base = self._api.scheme, self._api.netloc, self._api.path
        original = urlsplit(url)
        path = base.rstrip("/") + original.path
        return urlunsplit((scheme, host, path, original.query, ""))


def _form(data: dict[str, Any] | None) -> list[tuple[str, str]] | None:
    """A list is sent as one field per element, as Twilio requires."""
    if data is None:
        return None
    return [
        (name, str(item))
        for name, value in data.items()
        for item in (value if isinstance(value, list) else [value])
    ]


def _authorization(auth: tuple[str, str] | None) -> dict[str, str]:
    if auth is None:
        return {}
    key = base64.b64encode(":".join(auth).encode()).decode()
    return {"Authorization": f"Basic {key}"}
