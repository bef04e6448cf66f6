"""Inputs that are texts: one message a line, each through the parser it is meant for.

A target takes bytes, and gives how many messages were in them. It raises only where the
bridge did: an error that its parser does not declare, or a value that cannot be.
"""

import base64
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from bridge.agent.live import CallFacts
from bridge.app import routes, values
from bridge.app.overflow import Overflow, QueuePlace
from bridge.app.routes import Route, RoutesError, WhenFull
from bridge.audio import g711
from bridge.core import ProtocolError, errors, realtime_events, twilio_messages
from bridge.core.replay import recorded
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.place import redis_place
from bridge.fleet.plan import CallSnapshot, Plan
from bridge.http.api import bodies
from bridge.http.signature import Signatures
from bridge.http.tickets import TicketRefused, Tickets
from bridge.model.transcode import MULAW_FORMAT, ModelAudio

NOW = 1_760_000_000.0
"""Seconds since the epoch."""


def lines(data: bytes) -> Iterator[str]:
    """Bytes that are no UTF-8 become lone surrogates, which no text may have."""
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
    "message without an event",
    "message is no JSON",
    "unknown event",
    *(f"{tag} message of the wrong shape" for tag in CALLER_TAGS),
}


def caller(data: bytes) -> int:
    """twilio_messages: a value, or ProtocolError with one of its phrases."""
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
"""Of another deployment."""


def signature(data: bytes) -> int:
    """bridge.http.signature: no rubbish is Twilio's, and none raises."""
    checks = Signatures("https://bridge.example.com", ["token"], {"key": "secret"})
    target, signed, settings, body, *_ = [*lines(data), "", "", "", ""]
    headers = {"X-Twilio-Signature": signed, "X-Twilio-Signature-Settings": settings}
    form = dict(part.partition("=")[::2] for part in body.split("&"))
    assert not checks.form(target, form, headers)
    assert not checks.json(target, body.encode("utf-8", "surrogateescape"), headers)
    assert not checks.handshake(target, headers)
    return 1


def ticket(data: bytes) -> int:
    """bridge.http.tickets: rubbish opens no stream, and is told so."""
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
    "event without a type",
    "event is no JSON",
    "audio delta too large",
    "audio delta is not base64",
    *(f"{tag} of the wrong shape" for tag in MODEL_TAGS),
}


def model(data: bytes) -> int:
    """realtime_events: a value that answers all it is asked, or ProtocolError."""
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
                assert it.used is None or isinstance(it.used, realtime_events.Usage)
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
    """bridge.model.transcode: what a PCM model says reaches the bridge as mu-law, or as
    it was; what cannot be read is said by realtime_events.decode behind it."""
    between = ModelAudio()
    count = 0
    for text in lines(data):
        count += 1
        for each in between.from_model(text):
            with contextlib.suppress(ProtocolError):
                event = realtime_events.decode(each)
                if isinstance(event, realtime_events.SessionUpdated):
                    assert {type(it) for it in event.formats} <= {str, type(None)}
        frame = base64.b64encode(text.encode("utf-8", "replace")[:160] or b"\xff")
        sent = between.to_model(realtime_events.append(frame.decode()))
        assert len(base64.b64decode(msgspec.json.decode(sent)["audio"])) % 6 == 0
    sound_in = {"audio": {"input": {"format": MULAW_FORMAT}}}
    update = msgspec.json.encode({"type": "session.update", "session": sound_in})
    assert '"audio/pcm"' in between.to_model(update.decode())
    return count


# --- other instances, through Redis ---


def shelf(data: bytes) -> int:
    """bridge.fleet.plan: what somebody else has written is read, or is nothing."""
    Plan.read(data)
    earlier = CallSnapshot.read(data)
    for ended in (0.0, earlier.taken_at, earlier.taken_at + 1.5, NOW):
        then = earlier.as_of(ended)
        assert then.playing == ()
        assert isinstance(then.why, str)
        assert then.ended_as in ("transfer", "moved", "lost")
    assert CallSnapshot.read(earlier.encoded(FORMAT)) == earlier
    return 1


def place(data: bytes) -> int:
    """bridge.app.overflow: a place in the queue that somebody wrote by hand."""
    text = data.decode("utf-8", "surrogateescape")
    found = QueuePlace.read(text)
    for route in (Route(), Route(when_full=WhenFull("queue", "Wait."))):
        services = Overflow(answer="queue")
        held = services.hold(route, found, NOW, lambda it: f"https://a.example/?w={it}")
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
    """bridge.http.api.bodies: each body is taken, or told all that is wrong with it."""
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
    """bridge.app.routes: routes, or RoutesError with a line a mistake."""
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


SETTINGS: list[Callable[[str], Any]] = [
    values.whole_number(0),
    values.whole_number(-5, 10),
    values.seconds,
    values.yes_or_no,
    values.word,
    values.host,
    values.agent,
    values.public_url,
    values.model_url,
    values.redis_url,
    values.headers,
    values.phone_number,
    values.account_sid,
    values.secret,
    values.webhook_secret,
    values.prefixes,
    values.networks,
    values.shared_keys,
    values.prices,
    values.amount,
    values.http_url,
    values.file,
    values.folder,
    values.one_of("a", "b"),
    values.text,
]


def setting(data: bytes) -> int:
    """bridge.app.values: a value, or what is wrong with it."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in SETTINGS:
        try:
            value = parse(text)
        except PydanticCustomError as error:
            assert error.message()
            continue
        if parse is values.redis_url:
            redis_place(str(value))
    return 1
