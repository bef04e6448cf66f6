"""Client of OpenAI's Realtime Calls API, with the requests that a phone call needs.

Every request has a time limit; a failed one raises CallGone or CallsApiError.
https://platform.openai.com/docs/guides/realtime-sip
"""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, NotFoundError

REQUEST_SECONDS = 3.0
RETRIES = 2
"""Retries that the `openai` package makes: after connection errors, 408, 409, 429
and 5xx."""

LIMIT_SECONDS = 12.0
"""Limit of a request with all its retries: three unanswered tries and the pauses
between them (0.5 s and 1 s at most). The caller hears ringing meanwhile."""

RETRY_COUNT = "x-stainless-retry-count"
"""Header in which the `openai` package sends how many tries there were before."""


class CallGone(Exception):
    """The API answered 404: it has no such call any more. `retried`: an earlier try of
    the same request, whose answer was lost, may have ended the call. Otherwise the
    caller has hung up."""

    def __init__(self, *, retried: bool) -> None:
        super().__init__()
        self.retried = retried


class CallsApiError(Exception):
    """The request failed. `why` is a short fixed phrase that is safe to log."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class CallsApi:
    """Each request raises CallGone or CallsApiError if it fails."""

    def __init__(self, api_key: str, base_url: str) -> None:
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            timeout=REQUEST_SECONDS,
            max_retries=RETRIES,
        )
        self._calls = self._client.realtime.calls

    async def accept(self, call_id: str, session: Mapping[str, Any]) -> None:
        # In the body, because the package's arguments reject fields that it has no
        # types for.
        await _within(
            self._calls.accept(call_id, type="realtime", extra_body=dict(session))
        )

    async def reject(self, call_id: str, sip_status: int) -> None:
        await _within(self._calls.reject(call_id, status_code=sip_status))

    async def refer(self, call_id: str, number: str) -> None:
        """Transfers the caller to an E.164 number or a SIP URI by a SIP REFER."""
        target = f"tel:{number}" if number.startswith("+") else number
        await _within(self._calls.refer(call_id, target_uri=target))

    async def hang_up(self, call_id: str) -> None:
        await _within(self._calls.hangup(call_id))

    async def close(self) -> None:
        await self._client.close()


async def _within(request: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await request
    except NotFoundError as error:
        tries = error.response.request.headers.get(RETRY_COUNT, "0")
        raise CallGone(retried=tries != "0") from None
    except APIStatusError as error:
        # The error's message may quote part of the API key, so it is not passed on.
        raise CallsApiError(_status(error)) from None
    except (APIConnectionError, TimeoutError) as error:
        raise CallsApiError(f"unreachable ({type(error).__name__})") from None


def _status(error: APIStatusError) -> str:
    status = f"HTTP {error.status_code}"
    return f"{status} {error.code}" if isinstance(error.code, str) else status


def rest_url(model_url: str) -> str:
    """The REST API's url of a Realtime endpoint: wss://host/v1/realtime
    -> https://host/v1."""
    parts = urlsplit(model_url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/").removesuffix("/realtime")
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def control_url(model_url: str, call_id: str) -> str:
    """The WebSocket url of an accepted call. The accept has set the model, so a `model`
    in the url is removed."""
    parts = urlsplit(model_url)
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("model", "call_id")]
    query.append(("call_id", call_id))
    return urlunsplit(parts._replace(query=urlencode(query)))
