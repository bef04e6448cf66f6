"""Requests to Twilio's REST API: with which account, and what a failure means.

Knows no call and no phone number. The SDK is imported only by a process that makes
requests (twilio_rest.py).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from aiohttp import ClientConnectorError, ClientError
from twilio.base.exceptions import (  # type: ignore[import-untyped]
    TwilioException,
    TwilioRestException,
)

from bridge.app.settings import Settings

REST_SECONDS = 15.0
"""Timeout of a whole request."""

SERVER_ERROR = 500
"""From this HTTP status on, Twilio or a proxy has failed after it got the request."""

NO_ANSWER_OF_TWILIO = (ValueError, AttributeError, TypeError)
"""What the SDK raises if the answer is not Twilio's: a proxy's page, or other JSON."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RestAccess:
    """An account of Twilio's, and how its REST API is reached.

    `username` and `password`: an API key and its secret, or the account's SID and auth
    token. Both are valid in one region only: `region` and `edge` are given together.
    `api_url`: another origin, such as a proxy or a test.
    """

    account_sid: str
    username: str
    password: str = field(repr=False)
    region: str | None = None
    edge: str | None = None
    api_url: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "RestAccess | None":
        """None without an account, or without an API key and an auth token."""
        sid, token = settings.twilio_account_sid, settings.twilio_auth_token
        key, secret = settings.twilio_api_key, settings.twilio_api_secret
        if sid is None:
            return None
        if key is not None and secret is not None:
            username, password = key.get_secret_value(), secret.get_secret_value()
        elif token is not None:
            username, password = sid, token.get_secret_value()
        else:
            return None
        return cls(
            sid,
            username,
            password,
            region=settings.twilio_region,
            edge=settings.twilio_edge,
            api_url=settings.twilio_api_url,
        )


class TwilioRefused(Exception):
    """Twilio did not do what was requested. `code` is Twilio's error code, `status` the
    HTTP status; both are 0 if there is no answer of Twilio's. `unsure`: Twilio may have
    done it.

    `text` may contain a phone number: return it to the sender of the request, do not
    log it.
    """

    def __init__(
        self, code: int, status: int, text: str, *, unsure: bool = False
    ) -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.code = code
        self.status = status
        self.text = text
        self.unsure = unsure


class TwilioApi:
    """Makes requests with the SDK's asynchronous client."""

    def __init__(self, access: RestAccess, seconds: float = REST_SECONDS) -> None:
        """`seconds`: the time after which a request is given up."""
        # Its libraries need 11 MB, and a bridge without outbound calls has no use for
        # them.
        from bridge.app.twilio_rest import rest_client

        self._client = rest_client(seconds=seconds, **asdict(access))
        self._seconds = seconds

    async def ask(self, request: Callable[[Any], Awaitable[T]]) -> T:
        """The answer to `request`, which gets the SDK's client. TwilioRefused if it
        fails."""
        try:
            async with asyncio.timeout(self._seconds):
                return await request(self._client)
        except TwilioRestException as error:
            code = error.code or error.status
            unsure = error.status >= SERVER_ERROR
            raise TwilioRefused(code, error.status, error.msg, unsure=unsure) from error
        except (TwilioException, ClientError, OSError, *NO_ANSWER_OF_TWILIO) as error:
            if page := _refused_page(error):
                raise page from error
            # ClientError, OSError: no connection or no answer.
            text = f"no usable answer from Twilio: {type(error).__name__}"
            unsure = not isinstance(error, ClientConnectorError)
            if isinstance(error, ClientConnectorError):
                text += f", {error.host} port {error.port} cannot be reached"
            raise TwilioRefused(0, 0, text, unsure=unsure) from error


def _refused_page(error: Exception) -> TwilioRefused | None:
    """The SDK raises the response itself if a list is refused."""
    response = error.args[-1] if isinstance(error, TwilioException) else None
    try:
        problem = json.loads(response.text)  # type: ignore[union-attr]
        return TwilioRefused(problem["code"], problem["status"], problem["message"])
    except (AttributeError, ValueError, KeyError, TypeError):
        return None
