"""Targets whose inputs are texts: each message goes through the parser of its target.

A target takes bytes and returns their number of messages. It raises only for a fault of
the bridge: an error that the parser does not declare, or an impossible value.
"""

import base64
import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import MultiDict
from pydantic import ValidationError

import twiml
from bridge.agent.live import CallFacts
from bridge.app import routes
from bridge.app.overflow import Overflow, QueuePlace
from bridge.app.routes import Route, RoutesError, WhenFull
from bridge.app.settings import NAMES, SettingsError, load
from bridge.app.values import PARAMETERS
from bridge.audio import g711
from bridge.core import (
    ProtocolError,
    errors,
    realtime_events,
    realtime_requests,
    twilio_messages,
)
from bridge.core.replay import recorded
from bridge.core.transfers import instruction
from bridge.core.usage import Usage
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.plan import Plan
from bridge.fleet.redis_address import redis_address
from bridge.fleet.snapshot import CallSnapshot, moment
from bridge.http.api import bodies
from bridge.http.dials import (
    MAX_MESSAGE_CHARS,
    failed_transfer,
    shown_number,
)
from bridge.http.parameters import (
    MAX_CHARS,
    MAX_PARAMETERS,
    stream_parameters,
    to_carry,
)
from bridge.http.signature import Signatures
from bridge.http.tickets import TicketRefused, Tickets
from bridge.http.webhook_fields import SID_CHARS, Webhook, form_of, misdivided
from bridge.model.transcode import MULAW_FORMAT, ModelAudio
from bridge.privacy.log_scrubber import LogScrubber
from bridge.privacy.redaction import Redaction, card_runs, pattern
from tests.http.divisions import RECORDED, accepted, divided, joined, meaning

NOW = 1_760_000_000.0
"""Seconds since the epoch."""


def lines(data: bytes) -> Iterator[str]:
    """The lines as text. Bytes that are not UTF-8 become lone surrogates."""
    for line in data.split(b"\n"):
        if line:
            yield line.decode("utf-8", "surrogateescape")


# --- Twilio ---

CALLER_TAGS = [
    str(kind.__struct_config__.tag) for kind in get_args(twilio_messages.Inbound)
]
CALLER_REASONS = {
    "message too large",
    "media payload is not base64",
    "message has no event field",
    "message is no JSON",
    "unknown event",
    *(f"{tag} message of the wrong shape" for tag in CALLER_TAGS),
}


def caller(data: bytes) -> int:
    """twilio_messages: a value, or ProtocolError with a reason of CALLER_REASONS."""
    count = 0
    for text in lines(data):
        count += 1
        try:
            message = twilio_messages.decode(text)
        except ProtocolError as error:
            assert error.reason in CALLER_REASONS, "the reason quotes the message"
            continue
        if isinstance(message, twilio_messages.Media):
            sound = base64.b64decode(message.media.payload, validate=True)
            assert len(sound) == g711.payload_bytes(message.media.payload) > 0
            assert 0 <= message.media.timestamp <= 2**53
        if isinstance(message, twilio_messages.Start):
            out = twilio_messages.OutboundMessages(message.stream_sid)
            for text in (out.media("////"), out.mark("m1"), out.clear()):
                assert msgspec.json.decode(text)["streamSid"] == message.stream_sid
            CallFacts.of(message.start.call_sid, message.start.custom_parameters or {})
    return count


TICKETS = Tickets(["token"], MemoryRegistry(), lambda: NOW)
TICKET = (
    Tickets(["another token"], MemoryRegistry(), lambda: NOW)
    .path("AC1", "CA1")
    .rpartition("/")[2]
)
"""A valid ticket of another deployment."""


def signature(data: bytes) -> int:
    """bridge.http.signature: invalid signatures are refused, and nothing raises."""
    checks = Signatures("https://bridge.example.com", ["token"], {"key": "secret"})
    target, signed, settings, body, *_ = [*lines(data), "", "", "", ""]
    headers = {"X-Twilio-Signature": signed, "X-Twilio-Signature-Settings": settings}
    form = dict(part.partition("=")[::2] for part in body.split("&"))
    assert not checks.form(target, form, headers)
    assert not checks.json(target, body.encode("utf-8", "surrogateescape"), headers)
    assert not checks.handshake(target, headers)
    return 1


def webhook(data: bytes) -> int:
    """bridge.http.webhook_fields: what is accepted has SIDs in their form. An input
    is a form, then the places at which a recorded webhook is cut: a division with the
    same signature that is accepted says what the recorded one says."""
    target, text, which, *cuts = [*data.split(b"\n"), b"", b""]
    form = form_of_any(text)
    address = target.decode("utf-8", "surrogateescape")
    if misdivided(address.partition("?")[0], address, form) is None:
        assert len(form["CallSid"]) == len(form["AccountSid"]) == SID_CHARS
    recorded = list(RECORDED.values())[len(which) % len(RECORDED)]
    whole = joined(recorded.form.items())
    places = (it % (len(whole) + 1) for cut in cuts for it in _numbers(cut))
    form = divided(whole, [0, *sorted(places), len(whole)])
    if accepted(recorded, recorded.target, form):
        assert meaning(recorded.path, form) == meaning(recorded.path, recorded.form)
    _told(form_of_any(text), address)
    return 2


def form_of_any(text: bytes) -> "MultiDict[str]":
    try:
        return form_of(text)
    except web.HTTPBadRequest:
        return MultiDict()


def _told(form: "MultiDict[str]", address: str) -> None:
    """bridge.http.parameters, dials: whatever a webhook says is bounded, fits into
    TwiML and JSON, and chooses neither a number nor a route by name."""
    query = address.partition("?")[2].encode(errors="replace").decode()
    request = make_mocked_request("POST", "/voice?" + quote(query, safe="=&%+"))
    it = Webhook(request, form, "https://bridge.example")
    for allowed in (PARAMETERS, (), ("custom", "a*", "tenant", "Route", "From")):
        found = stream_parameters(it, allowed)
        twiml.connect("wss://a.example/m", action_url="/", parameters=found)
        own = [found.pop(name, "") for name in ("From", "To", "Direction", "Route")]
        assert own[2] in ("", "outbound") and not own[3]
        assert len(found) <= MAX_PARAMETERS
        assert sum(map(len, [*found, *found.values()])) <= MAX_CHARS
        carried = to_carry(it, allowed)
        assert len(urlencode(carried)) < 5000
    shown_number(it, "")
    failed = failed_transfer(it, it.text("DialCallStatus"))
    assert len(failed.message) <= MAX_MESSAGE_CHARS and failed.message.isprintable()
    instruction(failed.status)


def _numbers(text: bytes) -> list[int]:
    return [int(it) for it in text.split() if it.isdigit() and len(it) < 9]


def ticket(data: bytes) -> int:
    """bridge.http.tickets: invalid tickets are refused with TicketRefused."""
    account, call, text, *_ = [*lines(data), "", "", ""]
    for known in ("", TICKET):
        try:
            TICKETS.read(account, call, text + known)
        except TicketRefused:
            continue
        raise AssertionError("a ticket that nobody gave")
    return 1


# --- the model ---

MODEL_TAGS = [
    str(kind.__struct_config__.tag)
    for kind in get_args(realtime_events.ServerEvent)
    if kind is not realtime_events.Other
]
MODEL_REASONS = {
    "event has no type field",
    "event is no JSON",
    "audio delta too large",
    "audio delta is not base64",
    *(f"{tag} of the wrong shape" for tag in MODEL_TAGS),
}


def model(data: bytes) -> int:
    """realtime_events: a value whose properties all work, or ProtocolError."""
    count = 0
    for text in lines(data):
        count += 1
        try:
            event = realtime_events.decode(text)
        except ProtocolError as error:
            assert error.reason in MODEL_REASONS, "the reason quotes the message"
            continue
        match event:
            case realtime_events.AudioDelta(delta=delta):
                sound = base64.b64decode(delta, validate=True)
                assert len(sound) == g711.payload_bytes(delta) > 0
            case realtime_events.SessionUpdated():
                assert isinstance(event.detects, bool)
                assert event.turns.create_response in (True, False, None)
                assert len(event.formats) == 2
            case realtime_events.ResponseCreated(
                response=it
            ) | realtime_events.ResponseDone(it):
                assert len(errors.short(it.why)) <= errors.MAX_CODE_CHARS
                errors.is_lost(it.status, sounded=False)
                assert it.used is None or isinstance(it.used, Usage)
            case (
                realtime_events.ItemAdded(item=item)
                | realtime_events.ItemDone(item=item)
            ):
                known = recorded(item, 0.0)
                assert known is None or isinstance(known.text, str)
            case realtime_events.ModelError(error=error):
                errors.is_benign(error)
                errors.may_pass(error)
    return count


def model_audio(data: bytes) -> int:
    """bridge.model.transcode: the events of a PCM model are passed on, with audio as
    mu-law. Invalid events pass unchanged; realtime_events.decode reports them."""
    transcoder = ModelAudio()
    count = 0
    for text in lines(data):
        count += 1
        for each in transcoder.from_model(text):
            with contextlib.suppress(ProtocolError):
                event = realtime_events.decode(each)
                if isinstance(event, realtime_events.SessionUpdated):
                    assert {type(it) for it in event.formats} <= {str, type(None)}
        frame = base64.b64encode(text.encode("utf-8", "replace")[:160] or b"\xff")
        sent = transcoder.to_model(realtime_requests.append(frame.decode()))
        assert len(base64.b64decode(msgspec.json.decode(sent)["audio"])) % 6 == 0
    sound_in = {"audio": {"input": {"format": MULAW_FORMAT}}}
    update = msgspec.json.encode({"type": "session.update", "session": sound_in})
    assert '"audio/pcm"' in transcoder.to_model(update.decode())
    return count


# --- other instances, through Redis ---


def snapshot(data: bytes) -> int:
    """bridge.fleet.snapshot: data of another instance is read, or counts as empty."""
    Plan.read(data)
    assert math.isfinite(moment(data))
    earlier = CallSnapshot.read(data)
    for ended in (0.0, earlier.taken_at, earlier.taken_at + 1.5, NOW):
        then = earlier.as_of(ended)
        assert then.playing == ()
        assert isinstance(then.why, str)
        assert then.ended_as in ("transfer", "moved", "lost")
    assert CallSnapshot.read(earlier.encoded(FORMAT)) == earlier
    return 1


def queue_place(data: bytes) -> int:
    """bridge.app.overflow: any text in the URL as the caller's place in the queue."""
    text = data.decode("utf-8", "surrogateescape")
    found = QueuePlace.read(text)
    for route in (Route(), Route(when_full=WhenFull("queue", "Wait."))):
        overflow = Overflow(answer="queue")
        held = overflow.hold(route, found, NOW, lambda it: f"https://a.example/?w={it}")
        assert held is None or held.startswith("<?xml")
    assert QueuePlace.read(str(found)) == found
    return 1


# --- the control API ---

BODIES = [
    bodies.Nothing,
    bodies.PlaceCall,
    bodies.TransferTo,
    bodies.Digits,
    bodies.Text,
    bodies.Mute,
    bodies.Decision,
    bodies.EditHistory,
]


def body(data: bytes) -> int:
    """bridge.http.api.bodies: each body is accepted, or each of its mistakes listed."""
    for kind in BODIES:
        try:
            taken = kind.model_validate_json(data)
        except ValidationError as error:
            for it in error.errors(include_url=False, include_context=False):
                at = ".".join(map(str, it["loc"]))
                bodies.Mistake(at=at, what=it["msg"]).model_dump_json()
            continue
        assert kind.model_validate_json(taken.model_dump_json(by_alias=True)) == taken
    return 1


# --- the operator ---

_FOLDER = tempfile.TemporaryDirectory()


def routes_file(data: bytes) -> int:
    """bridge.app.routes: routes, or RoutesError with a line for each mistake."""
    path = Path(_FOLDER.name) / "routes.yaml"
    path.write_bytes(data)
    try:
        found = routes.load(path)
    except RoutesError as error:
        assert error.mistakes
        assert all(it.startswith(f"{path}:") for it in error.mistakes)
        return 1
    for route in (*found.routes, found.defaults):
        assert found.where(route)
    found.pick(CallFacts.of("CA1", {"From": "+14155550100"}))
    found.agents()
    found.functions()
    return 1


def setting(data: bytes) -> int:
    """bridge.app.settings: each setting accepts the text, or reports the mistake and a
    fix."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        load(dict.fromkeys(NAMES, text), None)
    except SettingsError as error:
        assert all(it.name in NAMES and it.text and it.fix for it in error.mistakes)
    try:
        url = load({"BRIDGE_REDIS_URL": text}, None).redis_url
    except SettingsError:
        return 1
    if url is not None:
        redis_address(url.get_secret_value())
    return 1


# --- privacy ---

REDACTIONS = (
    Redaction(cards=True),
    Redaction(cards=True, keys=True, digits=True, patterns=(pattern(r"a.{1,9}b"),)),
)
SCRUBBER = LogScrubber(["a-secret-of-ours"])


def redaction(data: bytes) -> int:
    """redaction, log_scrubber: any text and any JSON value can be redacted. JSON stays
    JSON, and no card number is left."""
    count = 0
    for text in lines(data):
        count += 1
        SCRUBBER.text(text, theirs=True)
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            value = text
        else:
            for named in REDACTIONS:
                with contextlib.suppress(RecursionError):
                    msgspec.json.decode(named.json(text))
        for named in REDACTIONS:
            kept = named.text(text)
            assert not list(card_runs(kept)), "a card number is left"
            assert "".join(named.pieces([text[:50], text[50:]])) == kept
            with contextlib.suppress(RecursionError):
                assert type(named.message(value)) in (type(value), str)
                named.value(value)
    return count
