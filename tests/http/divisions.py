"""Recorded webhooks of Twilio, and other forms that have the same signature.

Twilio signs the URL, then all names and values sorted by name, without separators. A
division of that text is a target and a list of fields.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from multidict import MultiDict

from bridge.http import webhook_fields
from bridge.http.webhook_fields import FORMS, misdivided

ACCOUNT, CALL, DIALLED = "AC" + "0a" * 16, "CA" + "1b" * 16, "CA" + "2c" * 16
STREAM, APP, PARENT = "MZ" + "3d" * 16, "AP" + "4e" * 16, "CA" + "5f" * 16
SIDS = {"AccountSid": ACCOUNT, "CallSid": CALL}
PHONES = {
    **SIDS,
    "ApiVersion": "2010-04-01",
    "CallStatus": "in-progress",
    "Called": "+15557650002",
    "Caller": "+15551230001",
    "Direction": "inbound",
    "From": "+15551230001",
    "To": "+15557650002",
}
CITIES = {
    **{"FromCity": "SAN FRANCISCO", "FromCountry": "US", "FromZip": "94103"},
    **{"ToCity": "Toronto", "ToCountry": "CA", "ToZip": ""},
}
SIP = {
    "Called": "sip:Desk.One@Ex.io",
    "Caller": "sip:Ann.Smith@Ex.io",
    "From": "sip:Ann.Smith@Ex.io",
    "To": "sip:Desk.One@Ex.io",
}


@dataclass(frozen=True)
class Recorded:
    """A webhook as Twilio has sent it."""

    target: str
    form: Mapping[str, str]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def text(self) -> str:
        """The signed text without the origin."""
        return self.target + joined(self.form.items())


def joined(fields: Iterable[tuple[str, str]]) -> str:
    return "".join(name + value for name, value in sorted(set(fields)))


RECORDED = {
    "a call": Recorded("/voice", {**PHONES, **CITIES, "CallStatus": "ringing"}),
    "a call that was forwarded": Recorded(
        "/voice", {**PHONES, "ForwardedFrom": "+15550000003", "CallerName": "To From"}
    ),
    "a call over SIP": Recorded(
        "/voice",
        {**PHONES, **SIP, "SipHeader_X-To": "+1900", "SipDomain": "Ex.io"},
    ),
    "a call of the client SDK": Recorded(
        "/voice",
        {
            **PHONES,
            "ApplicationSid": APP,
            "Caller": "client:Ann",
            "From": "client:Ann",
            "room": "Blue",
        },
    ),
    "an anonymous call": Recorded(
        "/voice", {**PHONES, "Caller": "Anonymous", "From": "Anonymous"}
    ),
    "a call with tokens": Recorded(
        "/voice",
        {
            **PHONES,
            "CallToken": '{"parentCallInfoToken":"eyJhbGciOiJFUzI1NiJ9.eyJjIjoiQ0Ei"}',
            "StirPassportToken": "eyJhbGciOiJFUzI1NiIsInR5cCI6InBhc3Nwb3J0Tox5Zr",
            "StirVerstat": "TN-Validation-Passed-A",
        },
    ),
    "a caller who waits": Recorded("/voice?waiting=1764500000000-3&once=AbCd", PHONES),
    "an outbound call": Recorded(
        "/voice?order=0a1b2c3d",
        {**PHONES, "Direction": "outbound-api", "ParentCallSid": PARENT},
    ),
    "the end of a stream": Recorded(
        "/voice/next?once=AbCdEfGh", {**PHONES, **CITIES, "StreamSid": STREAM}
    ),
    "the end of a transfer": Recorded(
        "/voice/next?dialled=1&once=AbCdEfGh",
        {
            **PHONES,
            "DialBridged": "true",
            "DialCallDuration": "12",
            "DialCallSid": DIALLED,
            "DialCallStatus": "completed",
        },
    ),
    "a transfer without a call": Recorded(
        "/voice/next?dialled=1&once=AbCdEfGh",
        {**PHONES, "DialBridged": "false", "DialCallStatus": "failed", "ToZip": ""},
    ),
    "a person who answers a transfer": Recorded(
        f"/voice/whisper?call={PARENT}&once=AbCdEfGh",
        {**PHONES, "CallStatus": "in-progress", "ParentCallSid": PARENT},
    ),
    "a person who declines a transfer": Recorded(
        f"/voice/accept?call={PARENT}&once=AbCdEfGh",
        {**PHONES, "Digits": "2", "FinishedOnKey": "", "ParentCallSid": PARENT},
    ),
    "a person who answers a warm transfer": Recorded(
        f"/voice/warm?call={PARENT}&once=AbCdEfGh&detects=1&warm=0a1b2c3d",
        {**PHONES, "AnsweredBy": "human", "CallStatus": "in-progress"},
    ),
    "a person who takes a warm transfer": Recorded(
        f"/voice/warm/answer?call={PARENT}&once=AbCdEfGh&key=1&warm=0a1b2c3d",
        {**PHONES, "Digits": "1", "FinishedOnKey": ""},
    ),
    "the end of a person's call": Recorded(
        f"/warm-status?call={PARENT}&warm=0a1b2c3d",
        {**PHONES, "CallStatus": "busy", "SipResponseCode": "486", "CallDuration": "0"},
    ),
    "a status": Recorded(
        "/call-status?route=Sales&placed=1764500000",
        {
            **PHONES,
            "CallDuration": "61",
            "CallStatus": "completed",
            "CallbackSource": "call-progress-events",
            "FromZip": "94103",
            "ParentCallSid": PARENT,
            "SequenceNumber": "3",
            "Timestamp": "Sun, 30 Nov 2025 12:00:00 +0000",
        },
    ),
    "a detection": Recorded(
        "/amd-status",
        {**SIDS, "AnsweredBy": "machine_start", "MachineDetectionDuration": "2400"},
    ),
    "a status of a stream": Recorded(
        "/stream-status",
        {
            **SIDS,
            "StreamEvent": "stream-started",
            "StreamName": STREAM,
            "StreamSid": STREAM,
            "Timestamp": "2025-11-30T12:00:00.000Z",
        },
    ),
}


READ = {
    "/voice": ("From", "To"),
    "/voice/next": ("From", "To", "DialCallStatus"),
    "/voice/whisper": ("From", "To"),
    "/voice/accept": ("From", "To", "Digits"),
    "/voice/warm": ("From", "To", "AnsweredBy"),
    "/voice/warm/answer": ("From", "To", "Digits"),
    "/warm-status": ("CallStatus", "From", "To"),
    "/call-status": ("CallStatus", "From", "To", "SequenceNumber", "CallDuration"),
    "/amd-status": ("AnsweredBy",),
    "/stream-status": ("StreamSid", "StreamEvent"),
}
"""What the bridge reads of a webhook, besides the call and the account."""


def meaning(path: str, form: Mapping[str, str]) -> dict[str, str]:
    names = ("CallSid", "AccountSid", *READ[path])
    return {name: form[name] for name in names if name in form}


def edited(recorded: Recorded) -> Iterator[MultiDict[str]]:
    """Every form that differs from the recorded one in one edit: a boundary at another
    place, two fields as one, one field as two."""
    text, at = joined(recorded.form.items()), 0
    cuts = []
    for name, value in sorted(recorded.form.items()):
        cuts += [at, at + len(name)]
        at += len(name) + len(value)
    cuts.append(at)
    for index in range(1, len(cuts) - 1):
        for place in range(cuts[index - 1], cuts[index + 1] + 1):
            yield divided(text, [*cuts[:index], place, *cuts[index + 1 :]])
    for index in range(1, len(cuts) - 2):
        less = [*cuts[:index], *cuts[index + 2 :]]
        yield divided(text, less)
        for first in range(less[index - 1], less[index] + 1):
            for second in range(first, less[index] + 1):
                more = [*less[:index], first, second, *less[index:]]
                yield divided(text, more)
    for start in range(len(text)):
        for end in range(start, len(text)):
            index = bisect_right(cuts, start)
            if end < cuts[index]:
                yield divided(text, [*cuts[:index], start, end, *cuts[index:]])


def divided(text: str, cuts: list[int]) -> MultiDict[str]:
    """The fields between these places; the first is 0, the last the end of the text."""
    places = zip(cuts[:-1:2], cuts[1::2], cuts[2::2], strict=False)
    return MultiDict((text[a:b], text[b:c]) for a, b, c in places)


def remade(recorded: Recorded) -> Iterator[MultiDict[str]]:
    """The edited forms that have the recorded signature and another meaning."""
    own = meaning(recorded.path, recorded.form)
    for form in edited(recorded):
        same = recorded.target + joined(form.items()) == recorded.text
        if same and meaning(recorded.path, form) != own:
            yield form


Fields = tuple[tuple[str, str], ...]


class Divisions:
    """All divisions of a recorded text that the bridge may accept.

    Positions are visited in order. Of the divisions up to a position that give the
    known fields the same values, only the one whose last name sorts first is kept:
    whatever can follow another one can follow it.
    """

    def __init__(self, recorded: Recorded) -> None:
        self._path, self._text = recorded.path, recorded.text
        self._ends = {
            it.end(): it[0] for it in webhook_fields._FIELD.finditer(self._text)
        }
        self._stops = [
            min((it for it in self._ends if it > place), default=len(self._text) + 1)
            for place in range(len(self._text) + 1)
        ]
        """For each position: the next one at which a field must end."""
        self._names_at = [self._names_from(it) for it in range(len(self._text))] + [[]]
        self._known = {*FORMS, "Caller", "Called", "ApplicationSid"}
        self.visited = 0

    def all(self) -> Iterator[tuple[str, MultiDict[str]]]:
        """One target and form for each meaning that can be reached."""
        text = self._text
        # The known fields of a division have a number: a tuple is hashed at each use.
        numbers: dict[Fields, int] = {(): 0}
        at: list[dict[int, tuple[str, Fields, Fields, str]]] = [{} for _ in text]
        at.append({})
        for place in range(len(text) + 1):
            target = text[:place]
            if target.partition("?")[0] == self._path:
                at[place][0] = ("", (), (), target)
            for number, (last, known, fields, first) in list(at[place].items()):
                for name, ends in self._next(place, last, dict(known)):
                    self.visited += len(ends)
                    start, then, found = place + len(name), number, known
                    for end in ends:
                        if name in self._known:
                            given = {**dict(known), name: text[start:end]}
                            found = tuple(sorted(given.items()))
                            then = numbers.setdefault(found, len(numbers))
                        there = at[end]
                        if then not in there or name < there[then][0]:
                            more = (*fields, (name, text[start:end]))
                            there[then] = (name, found, more, first)
        for _, _, fields, first in at[-1].values():
            yield first, MultiDict(fields)

    def _next(
        self, place: int, last: str, known: Mapping[str, str]
    ) -> Iterator[tuple[str, Sequence[int]]]:
        """The names of the fields that may begin here, and the ends of each."""
        text, size, stop = self._text, len(self._text), self._stops[place]
        form = MultiDict(known)
        shortest = False
        for name, end in self._names_at[place]:
            if name <= last or name in known:
                continue
            if name in FORMS or end == stop:
                yield (
                    name,
                    [
                        it
                        for it in self._value_ends(name, end, stop)
                        if name not in FORMS
                        or webhook_fields._has_form(name, text[end:it], form)
                    ],
                )
            elif not shortest or name in self._known:
                # A longer name can be followed by less.
                shortest = shortest or name not in self._known
                yield name, range(end, min(stop, size + 1))

    def _names_from(self, place: int) -> list[tuple[str, int]]:
        """The names that may begin here, and their ends."""
        found = []
        for end in range(place + 1, min(len(self._text), self._stops[place]) + 1):
            name = self._text[place:end]
            if webhook_fields.NAME.fullmatch(name):
                found.append((name, end))
            elif not name.startswith("SipHeader_"[: len(name)]):
                break
        return found

    def _value_ends(self, name: str, start: int, stop: int) -> Iterator[int]:
        if start == stop:
            field = self._ends[start]
            if field == "Sid":
                yield start + webhook_fields.SID_CHARS
                return
            if name != field and field not in ("From", "To"):
                return
            stop = self._stops[start]
        yield from range(start, min(stop, len(self._text) + 1))


def accepted(recorded: Recorded, target: str, form: MultiDict[str]) -> bool:
    """Whether the bridge accepts this form with the signature of the recorded one."""
    if target + joined(form.items()) != recorded.text:
        return False
    expected = {
        "dialled=": "DialCallStatus",
        "detects=": "AnsweredBy",
        "key=": "Digits",
    }
    more = [name for text, name in expected.items() if text in target]
    return misdivided(recorded.path, target, form, *more) is None
