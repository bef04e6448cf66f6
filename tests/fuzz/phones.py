"""Targets of the phone side: webhooks that report something, numbers, recordings, and
calls that the control API places. All of them run in this process, without a socket.

See texts.py for what a target does.
"""

import contextlib
import re
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import MultiDict
from pydantic import TypeAdapter, ValidationError

import twiml
from bridge.app import values
from bridge.app.dial_permissions import may_dial
from bridge.app.outbound import FINAL, LONGEST_SECONDS, OutboundCalls
from bridge.app.outbound_limits import OutboundLimits
from bridge.app.services import Services
from bridge.app.twilio_api import RestAccess, TwilioApi
from bridge.app.warm_calls import OF_CALL, WARM, WarmCalls
from bridge.audio import wav as wav_files
from bridge.core.transfers import FailedTransfer, WarmTransfer, instruction
from bridge.fleet import NextStep, Then, formats
from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.http.api import bodies, handlers
from bridge.http.dials import MAX_MESSAGE_CHARS, failed_transfer, shown_number
from bridge.http.parameters import (
    MAX_CHARS,
    MAX_PARAMETERS,
    _carried,
    stream_parameters,
    to_carry,
)
from bridge.http.warm_webhooks import WarmWebhooks
from bridge.http.webhook_fields import Webhook
from bridge.sim.twilio import markup
from tests.fuzz.texts import form_of_any, lines

CALLER, OURS, DESK = "CA" + "2" * 32, "+14155550100", "+14155550101"
E164 = re.compile(r"\+[1-9][0-9]{6,14}")
OWN = ("From", "To", "Direction", "Route")
"""Parameters that the bridge sets itself."""


@dataclass
class Request:
    """What a Webhook uses of aiohttp's request."""

    query: MultiDict[str] = field(default_factory=MultiDict)


def webhook(form: "MultiDict[str]", query: "MultiDict[str] | None" = None) -> Webhook:
    request = Request(query if query is not None else MultiDict())
    return Webhook(cast(web.Request, request), form, "https://bridge.example")


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of work that waits for nothing: a registry in memory never does."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value
    work.close()
    raise AssertionError("it waits")


NAMES: TypeAdapter[tuple[str, ...]] = TypeAdapter(values.ParameterNames)


def parameters(data: bytes) -> int:
    """BRIDGE_PARAMETERS with any text, a query and a form: what is selected is bounded,
    fits into TwiML and a URL, and chooses neither a number nor a route."""
    setting, query, form = (*data.split(b"\n", 2), b"", b"")[:3]
    try:
        allowed = NAMES.validate_python(setting.decode("utf-8", "replace"))
    except ValidationError:
        allowed = values.PARAMETERS
    it = webhook(form_of_any(form), form_of_any(query))
    found = stream_parameters(it, allowed)
    twiml.connect("wss://a.example/m", action_url="/", parameters=found)
    own = [found.pop(name, "") for name in OWN]
    assert own[2] in ("", "outbound") and not own[3]
    assert len(found) <= MAX_PARAMETERS
    assert sum(map(len, [*found, *found.values()])) <= MAX_CHARS
    carried = to_carry(it, allowed)
    again = stream_parameters(webhook(it.form, MultiDict(carried)), allowed)
    sent = {*it.form, *it.query, *_carried(it), *OWN}
    assert again.keys() <= sent, "a parameter that nobody sent"
    return 1


class _NoTwilio:
    """No target reaches Twilio."""


def _limits(registry: MemoryRegistry) -> OutboundLimits:
    return OutboundLimits(
        registry, prefixes=(), at_once=9, key=b"", hit=lambda limit: None
    )


def status(data: bytes) -> int:
    """Status callbacks and detections of one deployment, in any order: an unreadable
    one is refused, and a final status is never replaced."""
    outbound = OutboundCalls(
        MemoryRegistry(),
        cast(TwilioApi, _NoTwilio()),
        public_url="https://bridge.example",
        prefixes=("+1",),
    )
    last: dict[str, Any] = {}
    count = 0
    for line in data.split(b"\n"):
        count += 1
        form = dict(form_of_any(line).items())
        done(outbound.note_status(form, form.get("order", "")))
        done(outbound.answered_by(form))
        sid = form.get("CallSid", "")
        known = done(outbound.status(sid))
        before = last.get(sid)
        assert before is None or before.state not in FINAL or known == before
        last[sid] = known
    return count


def dial_result(data: bytes) -> int:
    """What Twilio says about a transfer that has ended: bounded, without a number, and
    with a sentence for the agent."""
    count = 0
    for line in data.split(b"\n"):
        count += 1
        it = webhook(form_of_any(line))
        failed = failed_transfer(it, it.text("DialCallStatus"))
        assert len(failed.message) <= MAX_MESSAGE_CHARS and failed.message.isprintable()
        assert not re.search(r"\+\d{8,}", failed.message), "a number is left"
        assert instruction(failed.status) and instruction(failed.status, stayed=True)
        with contextlib.suppress(UnicodeEncodeError, ValueError):
            # A status is a word in a webhook that is accepted.
            stored = formats.encode(failed, FORMAT)
            assert formats.read(stored, FailedTransfer) == failed
        shown = shown_number(it, OURS)
        assert shown is None or E164.fullmatch(shown)
    return count


def warm(data: bytes) -> int:
    """The webhooks of a warm transfer in any order, with any fields: one decision, a
    conference only for a person who has accepted, and documents that Twilio takes."""
    registry = MemoryRegistry()
    access = RestAccess("AC" + "1" * 32, "user", "password")
    calls = WarmCalls(
        registry, access, _limits(registry), public_url="https://bridge.example"
    )
    head, *rest = data.split(b"\n")
    words = head.decode("utf-8", "replace")
    transfer = WarmTransfer(
        "ab12",
        CALLER,
        DESK,
        began=0.0,
        whisper="".join(it for it in words if it.isprintable())[:400].strip(),
        accept=not head.startswith(b" "),
    )
    done(calls._put(transfer))
    webhooks = _Webhooks(cast(Services, _WithWarm(calls)))
    decided = None
    for line in rest:
        kind, _, text = line.partition(b" ")
        query = MultiDict([(OF_CALL, CALLER), (WARM, transfer.id)])
        if kind[1:2] == b"!":
            query = form_of_any(text)
        it = webhook(form_of_any(text), query)
        document = _answer(webhooks, it, kind[:1])
        outcome = done(calls.outcome(transfer.id))
        assert decided is None or outcome == decided, "decided twice"
        decided = outcome
        if document:
            found = markup.verbs(document)
            if any(isinstance(each, markup.TwimlConference) for each in found):
                assert outcome and outcome.accepted
    return len(rest)


def _answer(webhooks: "_Webhooks", it: Webhook, kind: bytes) -> str | None:
    answers = webhooks.answers()
    match kind:
        case b"a":
            response = done(answers["/voice/warm"](it))
        case b"k":
            response = done(answers["/voice/warm/answer"](it))
        case b"s":
            response = done(answers["/warm-status"](it))
        case b"n" | b"j":
            step = NextStep(Then.TRANSFER, DESK, warm="") if kind == b"j" else None
            it = webhook(MultiDict({**it.form, "CallSid": CALLER}), MultiDict())
            joins = done(webhooks.joins(it, step))
            return joins if isinstance(joins, str) else None
        case _:
            done(webhooks.after_conference(it)) if WARM in it.query else None
            return None
    return cast(str | None, response.text)


@dataclass
class _WithWarm:
    warm_calls: WarmCalls


class _Webhooks(WarmWebhooks):
    """Work that waits for seconds is dropped."""

    def _start(self, work: Coroutine[Any, Any, None], call_sid: str) -> None:
        work.close()


def number(data: bytes) -> int:
    """Phone numbers and targets as people write them: E.164 or ValueError, stable, and
    no prefix allows a number that does not begin with it."""
    count = 0
    for text in lines(data):
        count += 1
        with contextlib.suppress(ValueError):
            twiml.dial_digits(text)
        try:
            target = twiml.dial_target(text)
        except ValueError:
            assert not may_dial(text, ["+"])
            continue
        assert twiml.dial_target(target) == target
        twiml.transfer(target)
        if target.startswith("+"):
            assert E164.fullmatch(target)
            assert not may_dial(target, [])
            assert not may_dial(target, ["!" + target, "+"])
            assert target.startswith("+1") or not may_dial(target, ["+1"])
    return count


def wav(data: bytes) -> int:
    """A recording of a route: mu-law of at most its longest time, or ValueError."""
    try:
        sound = wav_files.mulaw(data)
    except ValueError as error:
        assert str(error)
        return 1
    assert 0 < len(sound) <= (wav_files.LONGEST_SECONDS + 1) * wav_files.RATE
    return 1


ORDERS = OutboundCalls(
    MemoryRegistry(),
    cast(TwilioApi, _NoTwilio()),
    public_url="https://bridge.example",
    prefixes=("+1",),
)


def order(data: bytes) -> int:
    """The body of a request to place a call: what Twilio is told is bounded, or the
    request is refused."""
    count = 0
    for line in data.split(b"\n"):
        count += 1
        try:
            wanted = bodies.PlaceCall.model_validate_json(line)
            placed = handlers._order(wanted, wanted.from_number or OURS)
        except (ValidationError, handlers.Refused):
            continue
        options = ORDERS._options(placed)
        assert E164.fullmatch(options["to"]) and E164.fullmatch(options["from_"])
        assert options["timeout"] in twiml.RING_SECONDS
        assert 1 <= options.get("time_limit", 1) <= LONGEST_SECONDS
        assert len(options.get("send_digits", "")) <= 32
        assert dict(parse_qsl(options["url"].partition("?")[2]))["order"] == placed.id
        stored = formats.encode(placed, FORMAT)
        assert formats.read(stored, type(placed)) == placed
    return count
