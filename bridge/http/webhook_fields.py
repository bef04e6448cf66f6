"""The fields of a webhook: how a body is read, which form each field has, which fields
are logged, and which go on to the stream as parameters.

Does not answer requests. A field that is not in LOGGED is never in the log: webhooks
contain numbers and names of people. (`transfer_ended` has Twilio's text about a failed
leg, from which dials.py removes numbers.)
"""

import asyncio
import re
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

SID_CHARS = 34

_SID = "[0-9a-fA-F]{32}"
_WORD = "[a-z]+(?:[-_][a-z]+)*"
_NUMBER = "[0-9]{1,12}"
_PHONE = r"\+?[0-9*#]{1,32}|(?i:anonymous|unknown|unavailable|restricted|private)"
FORMS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(form)
    for name, form in {
        "AccountSid": f"AC{_SID}",
        "CallSid": f"CA{_SID}",
        "StreamSid": f"MZ{_SID}",
        **dict.fromkeys(("CallStatus", "DialCallStatus", "AnsweredBy"), _WORD),
        **dict.fromkeys(("Direction", "StreamEvent"), _WORD),
        **dict.fromkeys(("SequenceNumber", "CallDuration"), _NUMBER),
        "DialBridged": "true|false",
        "Digits": "[0-9A-D*#]*",
        # Empty for a call that did not fail.
        **dict.fromkeys(("SipResponseCode", "ErrorCode"), f"(?:{_NUMBER})?"),
        **dict.fromkeys(("From", "To"), _PHONE),
    }.items()
}
"""Field that the bridge uses -> its form, which it must have in full. `From` and `To`
may have another form, too: an address (`sip:`, `client:`) equals `Caller` and
`Called`."""

_SAME = {"From": "Caller", "To": "Called"}
"""Twilio sends both under two names."""

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "/voice": ("From", "To"),
    "/voice/next": ("From", "To"),
    "/voice/whisper": ("From", "To"),
    "/voice/accept": ("From", "To", "Digits"),
    "/voice/warm": ("From", "To"),
    "/voice/warm/answer": ("From", "To"),
    "/call-status": ("CallStatus", "From", "To"),
    "/warm-status": ("CallStatus", "From", "To"),
    "/amd-status": ("AnsweredBy",),
    "/stream-status": ("StreamEvent", "StreamSid"),
}
"""Path -> fields that Twilio always sends there, besides the SIDs."""

NAME = re.compile("[A-Za-z][A-Za-z0-9_]*|SipHeader_[A-Za-z0-9_.-]+")
"""A name of Twilio, of a parameter of its client SDK, or of a SIP header."""

_FIELD = re.compile(
    f"Sid(?=[A-Z]{{2}}{_SID})"
    r"|(?:From|To)(?=\+[0-9]|sips?:|client:|whatsapp:|(?i:anonymous))"
    r"|SequenceNumber(?=[0-9])|(?<!Dial)CallDuration(?=[0-9])"
)
"""A text that can be read as a field: then it must be one. Not by accident in a token
of Twilio's, which is base64."""

LOGGED: Mapping[str, Mapping[str, str]] = {
    "call_status": {
        "call_sid": "CallSid",
        "status": "CallStatus",
        "sip_code": "SipResponseCode",
        "error_code": "ErrorCode",
    },
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
        """What a log event may show of this webhook: LOGGED[event], without codes that
        Twilio has not sent."""
        return {
            key: self.text(name)
            for key, name in LOGGED[event].items()
            if self.text(name) or not key.endswith("_code")
        }


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


def misdivided(
    path: str, target: str, form: "MultiDict[str]", *required: str
) -> str | None:
    """What shows that this is not the form that Twilio sent; None if nothing does.

    Twilio signs the URL and the names and values, sorted by name, without separators:
    the same text divided at other places has the same signature. A text can be read in
    one way only if the SIDs stand where Twilio has put them, and every field that the
    bridge uses is there once and in its form. `required`: fields besides REQUIRED.
    `target`: the path with the query, which is signed in front of the fields.
    """
    for name in ("AccountSid", "CallSid", *REQUIRED.get(path, ()), *required):
        if name not in form:
            return f"{name} is missing"
    for name in form:
        if not NAME.fullmatch(name):
            return "a name is malformed"
    for name in FORMS:
        values = form.getall(name, ())
        if len(values) > 1:
            return f"{name} is repeated"
        if values and not _has_form(name, values[0], form):
            return f"{name} is malformed"
    return None if _fields_stand_apart(target, form) else "a value contains a field"


def _has_form(name: str, value: str, form: "MultiDict[str]") -> bool:
    if FORMS[name].fullmatch(value):
        return True
    if name not in _SAME:
        return False
    # Nothing in an address shows where it ends, but Twilio has signed it at two places.
    # A call of Twilio's client SDK has in `To` whatever its page has put there.
    by_page = name == "To" and "ApplicationSid" in form and value[:1] != "+"
    return by_page or form.get(_SAME[name]) == value


def _fields_stand_apart(target: str, form: "MultiDict[str]") -> bool:
    """Each _FIELD in the signed text is a field of the form, or its name is the end of
    another name (`ParentCallSid`, `ForwardedFrom`)."""
    text, starts = target, dict[int, tuple[str, str]]()
    for name, value in sorted(set(form.items())):
        text += name
        starts[len(text)] = (name, value)
        text += value
    for found in _FIELD.finditer(text):
        name, value = starts.get(found.end(), ("", ""))
        whole = len(value) == SID_CHARS if found[0] == "Sid" else True
        ours = found[0] in ("Sid", *_SAME) or name == found[0]
        if not (name and whole and ours):
            return False
    return True


def parameter(webhook: Webhook, name: str) -> str:
    """The value, if it is fit for a <Parameter>, else "". A call whose SIP address does
    not fit is still accepted."""
    value = webhook.text(name)
    if len(value) > MAX_PARAMETER_CHARS or not value.isprintable():
        log.warning("parameter_omitted", name=name)
        return ""
    return value
