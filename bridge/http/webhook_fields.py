"""The fields of a webhook: how a body is read, which fields are logged, and which go on
to the stream as parameters.

Does not answer requests. A field that is not in LOGGED is never in the log: webhooks
contain numbers and names of people.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
import structlog
from aiohttp import web
from multidict import MultiDict

from bridge.app.services import Services
from bridge.core import UNREADABLE

log = structlog.get_logger()

T = TypeVar("T")

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"

MAX_FIELDS = 500
"""Most fields of a body. Twilio's webhooks have about forty, and checking a signature
sorts all fields."""

MAX_PARAMETER_CHARS = 400
"""Name and value of a <Parameter> must be under 500 characters together."""

LOGGED: Mapping[str, Mapping[str, str]] = {
    "call_status": {"call_sid": "CallSid", "status": "CallStatus"},
    "transfer_ended": {"call_sid": "CallSid", "status": "DialCallStatus"},
    "stream_status": {
        "call_sid": "CallSid",
        "stream_sid": "StreamSid",
        "status": "StreamEvent",
    },
    "stream_error": {
        "call_sid": "CallSid",
        "stream_sid": "StreamSid",
        "error": "StreamError",
    },
}
"""Log event -> key in the log -> field of the webhook. Every other event of a webhook
has the call SID alone."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A request whose signature was checked: it is from Twilio."""

    request: web.Request
    form: "MultiDict[str]"
    origin: str
    """The origin under which Twilio reaches the bridge: https://host."""

    def text(self, name: str) -> str:
        return self.form.get(name, "")

    def plain(self) -> dict[str, str]:
        return dict(self.form.items())

    @property
    def call_sid(self) -> str:
        return self.text("CallSid")

    @property
    def account_sid(self) -> str:
        return self.text("AccountSid")

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query

    def log_fields(self, event: str) -> dict[str, str]:
        """What a log event may show of this webhook: LOGGED[event]."""
        return {key: self.text(name) for key, name in LOGGED[event].items()}


async def read_body(body: Awaitable[T], services: Services) -> T:
    """A request's body. 408 if it is late, 413 if it is too large, 400 if it is
    broken."""
    try:
        async with asyncio.timeout(services.limits.body_seconds):
            return await body
    except TimeoutError:
        services.metrics.hit("body_slow")
        raise web.HTTPRequestTimeout(text="the body did not arrive in time") from None
    except web.HTTPRequestEntityTooLarge:
        services.metrics.hit("body_bytes")
        raise
    except (ValueError, LookupError, web.RequestPayloadError, ConnectionError):
        raise web.HTTPBadRequest(text="the body cannot be read") from None


def form_of(body: bytes) -> "MultiDict[str]":
    """The form as it was sent, with repeated names and empty values: all are signed."""
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise web.HTTPBadRequest(text="the form cannot be read") from None
    return MultiDict(pairs)


def json_of(body: bytes) -> "MultiDict[str]":
    """The same fields from JSON. Values that are neither text nor numbers are left
    out."""
    try:
        fields = msgspec.json.decode(body)
    except UNREADABLE:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(fields, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return MultiDict(
        (name, str(value))
        for name, value in fields.items()
        if isinstance(value, str | int | float)
    )


def from_and_to(webhook: Webhook) -> dict[str, str]:
    """The caller's and the called number, as parameters of the stream."""
    return {name: parameter(webhook, name) for name in ("From", "To")}


def parameter(webhook: Webhook, name: str) -> str:
    """The value, if it is fit for a <Parameter>, else "". A call whose SIP address does
    not fit is still accepted."""
    value = webhook.text(name)
    if len(value) > MAX_PARAMETER_CHARS or not value.isprintable():
        log.warning("parameter_omitted", name=name)
        return ""
    return value
