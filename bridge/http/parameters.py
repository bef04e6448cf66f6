"""What a webhook of a call tells the agent: the numbers, the direction, and the fields
and query parameters that BRIDGE_PARAMETERS selects. They become <Parameter>s of the
stream, because Twilio's `start` message has none of them.

Answers no request. All of it comes from the calling side, or from the operator's URL.
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote_plus

import msgspec
import structlog

from bridge.core import UNREADABLE
from bridge.http.webhook_fields import NAME, Webhook, parameter
from bridge.http.webhook_urls import BY_GET, ONCE

log = structlog.get_logger()

BRIDGES_OWN = frozenset({"From", "To", "Direction", "Route"})
"""Parameters of a call that the bridge sets itself."""

CARRIED = "parameters"
"""Query parameter of the URLs that Twilio is told to request: what an earlier webhook
of the call had in its query, or from a client. Twilio sends both only once."""

BRIDGES_QUERY = frozenset({CARRIED, ONCE, BY_GET})
"""Query parameters that the bridge adds to a URL, and no `*` selects."""

CUSTOM = "custom"
"""In BRIDGE_PARAMETERS: what a client of Twilio's Voice SDK sends."""

MAX_PARAMETERS = 40
MAX_VALUE_CHARS = 400
"""Name and value of a <Parameter> must be under 500 characters together, and a name of
at most 90 characters is selected. A longer value is left out, because half of one may
mean something else."""

MAX_NAME_CHARS = 90
MAX_CHARS = 8000
"""All names and values together. The TwiML document may have 64 kB."""

MAX_CARRIED_CHARS = 3000
"""All carried names and values, quoted: a character that is not ASCII is 6 to 12 long.
A URL of Twilio has at most 4000 characters."""

TWILIOS = re.compile(
    "(From|To|Caller|Called)(City|State|Zip|Country)?|CallerName|CalledVia"
    "|(Account|Application|Call|ParentCall)Sid|Call(Status|Token|Duration|backSource)"
    "|AddOns|AnsweredBy|ApiVersion|Digits|Direction|Duration|ForwardedFrom"
    "|MachineDetectionDuration|SequenceNumber|Timestamp"
    "|(Dial|Error|Queue|Recording|Sip|Speech|Stir|Stream).*"
)
"""Names that Twilio itself gives to fields."""


def stream_parameters(webhook: Webhook, allowed: Sequence[str]) -> dict[str, str]:
    """The parameters of the call's stream. `allowed`: names, `*` at the end stands for
    any rest."""
    return {**_bounded(_chosen(webhook, allowed)), **_of_every_call(webhook)}


def is_outbound(webhook: Webhook) -> bool:
    """Twilio has placed the call: `From` is ours, and the person was called."""
    return webhook.text("Direction").startswith("outbound")


def to_carry(webhook: Webhook, allowed: Sequence[str]) -> dict[str, str]:
    """The query of the next URL of this call: what its webhooks will not have again."""
    once: dict[str, str] = {}
    room, omitted = MAX_CARRIED_CHARS, 0
    for name, text in _bounded(_chosen(webhook, allowed)).items():
        if name in webhook.form and TWILIOS.fullmatch(name):
            continue  # each webhook has it
        size = len(quote_plus(msgspec.json.encode({name: text})))
        if size <= room:
            once[name] = text
            room -= size
        else:
            omitted += 1
    if omitted:
        log.warning("parameters_omitted", parameters=omitted)
    return {CARRIED: msgspec.json.encode(once).decode()} if once else {}


def _of_every_call(webhook: Webhook) -> dict[str, str]:
    numbers = {name: parameter(webhook, name) for name in ("From", "To")}
    return {**numbers, "Direction": "outbound"} if is_outbound(webhook) else numbers


def _chosen(webhook: Webhook, allowed: Sequence[str]) -> dict[str, str]:
    """What is selected. Of one name the first counts, and what comes first is bounded
    last: Twilio's fields, the operator's query, what an earlier webhook had, what a
    client has named itself. So no query can name another caller, and no client can
    replace or push out what the operator's URL says."""
    custom = CUSTOM in allowed
    twilios, theirs = list[tuple[str, str]](), list[tuple[str, str]]()
    for name, text in webhook.form.items():
        if _is_allowed(name, allowed) or (custom and _is_custom(webhook, name)):
            (twilios if TWILIOS.fullmatch(name) else theirs).append((name, text))
    query = [
        (name, text)
        for name, text in webhook.query.items()
        if name not in BRIDGES_QUERY and _is_allowed(name, allowed)
    ]
    found: dict[str, str] = {}
    for name, text in (*twilios, *query, *_carried(webhook).items(), *theirs):
        found.setdefault(name, text)
    return found


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    return any(
        name.startswith(it[:-1]) if it.endswith("*") else name == it
        for it in allowed
        if it != CUSTOM
    )


def _is_custom(webhook: Webhook, name: str) -> bool:
    """A parameter that a client of the Voice SDK has given: Twilio names none so."""
    is_client = webhook.text("From").startswith("client:")
    return is_client and not TWILIOS.fullmatch(name)


def _carried(webhook: Webhook) -> dict[str, str]:
    written = webhook.query.get(CARRIED)
    if written is None or len(written) > MAX_CARRIED_CHARS:
        return {}
    try:
        return msgspec.json.decode(written, type=dict[str, str])
    except UNREADABLE:
        return {}


def _bounded(chosen: Mapping[str, str]) -> dict[str, str]:
    """Those that are fit for a <Parameter>, as many as are allowed."""
    found: dict[str, str] = {}
    room, omitted = MAX_CHARS, 0
    for name, text in chosen.items():
        if name in BRIDGES_OWN or not text:
            continue
        fits = (
            len(name) <= MAX_NAME_CHARS
            and NAME.fullmatch(name)
            and len(text) <= MAX_VALUE_CHARS
            and text.isprintable()
            and len(found) < MAX_PARAMETERS
            and len(name) + len(text) <= room
        )
        if fits:
            found[name] = text
            room -= len(name) + len(text)
        else:
            omitted += 1
    if omitted:
        log.warning("parameters_omitted", parameters=omitted)
    return found
