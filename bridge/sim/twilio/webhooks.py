"""Twilio's webhook requests: form-encoded, signed, with a timeout of 15 seconds.

URLs are the public ones, which Twilio would see and sign; `Origins` maps them to the
address that the fake connects to.
"""

import asyncio
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from time import monotonic
from urllib.parse import urlencode, urlsplit, urlunsplit

import aiohttp

from bridge.sim.twilio.markup import Method
from bridge.sim.twilio.record import WebhookRequest
from bridge.sim.twilio.signature import sign, signed_url

WEBHOOK_LIMIT = 15.0  # s, Twilio's hard limit
ATTEMPTS = 2  # a failed connection is retried once (`rc`=1, `rp`=ct)


@dataclass(frozen=True, slots=True)
class Origins:
    """`connect` is the origin to connect to, `public` the origin that Twilio knows."""

    connect: str
    public: str

    @classmethod
    def of(cls, webhook_url: str, signed_origin: str | None) -> "Origins":
        parts = urlsplit(webhook_url)
        connect = f"{parts.scheme}://{parts.netloc}"
        return cls(connect, (signed_origin or connect).rstrip("/"))

    def public_url(self, url: str) -> str:
        """The URL as Twilio knows it."""
        if url.startswith(self.connect + "/"):
            return self.public + url.removeprefix(self.connect)
        return url

    def is_ours(self, url: str) -> bool:
        """True if the URL's host is the public one."""
        return urlsplit(url).netloc == urlsplit(self.public).netloc

    def dial(self, url: str) -> str:
        """The URL to connect to: HTTP stays HTTP, a WebSocket stays a WebSocket; with
        TLS if the connect origin has TLS."""
        if not self.is_ours(url):
            return url
        parts, ours = urlsplit(url), urlsplit(self.connect)
        scheme = {"http": "ws", "https": "wss"}[ours.scheme]
        if not parts.scheme.startswith("ws"):
            scheme = ours.scheme
        return urlunsplit((scheme, ours.netloc, parts.path, parts.query, ""))


@dataclass(frozen=True, slots=True)
class WebhookResponse:
    """The answer to a webhook.

    `url`: the public URL, the base of relative URLs. Status 0: no answer came.
    """

    url: str
    status: int
    content_type: str
    text: str
    error: str = ""


def progress(sequence: int, talked_seconds: float | None = None) -> dict[str, str]:
    """The parameters of a status callback beyond the standard ones.

    `talked_seconds` None: the call is in progress. 0.0: it was not answered.
    """
    form = {
        "CallbackSource": "call-progress-events",
        "SequenceNumber": str(sequence),
        "Timestamp": format_datetime(datetime.now(UTC)),
    }
    if talked_seconds is not None:
        seconds = round(talked_seconds)
        form["CallDuration"] = str(seconds)
        form["Duration"] = str(-(-seconds // 60))  # minutes begun
    return form


class WebhookClient:
    """Makes the requests of one call and appends each to `noted`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        origins: Origins,
        auth_token: str | None,
        noted: list[WebhookRequest],
    ) -> None:
        self._session = session
        self._origins = origins
        self._auth_token = auth_token
        self._noted = noted

    async def ask(
        self, url: str, form: dict[str, str], method: Method
    ) -> WebhookResponse:
        """Request the public `url`. Failures of the bridge are in the result, never
        raised."""
        at = monotonic()
        # the same for the second attempt, which makes it recognisable
        token = str(uuid.uuid4())
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(WEBHOOK_LIMIT):
                    answer = await self._request(url, form, method, token)
                break
            except aiohttp.ClientConnectorError as error:
                answer = WebhookResponse(url, 0, "", "", f"11205 {error}")
                if attempt == ATTEMPTS:
                    break
            except TimeoutError:
                answer = WebhookResponse(url, 0, "", "", "11200 no answer in 15 s")
                break
            except (aiohttp.ClientError, ValueError) as error:
                answer = WebhookResponse(
                    url, 0, "", "", f"11200 {type(error).__name__} {error}"
                )
                break
        path = urlsplit(url).path
        self._noted.append(
            WebhookRequest(
                path, answer.status, answer.content_type, at, form, answer.error
            )
        )
        return answer

    async def _request(
        self, url: str, form: dict[str, str], method: Method, token: str
    ) -> WebhookResponse:
        if method == "GET":
            url += ("&" if urlsplit(url).query else "?") + urlencode(form)
        signed = form if method == "POST" else None
        headers = {
            "User-Agent": "TwilioProxy/1.1",
            "Accept": "*/*",
            "I-Twilio-Idempotency-Token": token,
        }
        if self._origins.is_ours(url):
            headers["Host"] = urlsplit(url).netloc
        if self._auth_token is not None:
            headers["X-Twilio-Signature"] = sign(
                self._auth_token, signed_url(url), signed
            )
        async with self._session.request(
            method,
            self._origins.dial(url),
            data=signed,
            headers=headers,
            allow_redirects=False,
        ) as response:
            text = await response.text(errors="replace")
            return WebhookResponse(url, response.status, response.content_type, text)
