"""One recorded webhook is one webhook: no other form with its signature is accepted."""

import pytest
from multidict import MultiDict

from bridge.http.webhook_fields import misdivided
from tests.http.divisions import (
    ACCOUNT,
    CALL,
    PHONES,
    RECORDED,
    Divisions,
    Recorded,
    accepted,
    edited,
    meaning,
    remade,
)

EACH = pytest.mark.parametrize(
    "recorded", [pytest.param(it, id=name) for name, it in RECORDED.items()]
)


@EACH
def test_what_twilio_sends_is_accepted(recorded: Recorded) -> None:
    """No call is lost because its webhook looks like an attack."""
    assert accepted(recorded, recorded.target, MultiDict(recorded.form))


@EACH
def test_no_edit_of_a_recorded_webhook_is_accepted(recorded: Recorded) -> None:
    """An attacker who moves, removes or adds one boundary between names and values gets
    no other call, caller, called number or status."""
    forms = list(remade(recorded))

    assert len(forms) > 20, "the signature alone refuses nothing"
    assert [it for it in forms if accepted(recorded, recorded.target, it)] == []


@EACH
def test_no_division_of_a_recorded_webhook_is_accepted(recorded: Recorded) -> None:
    """Whatever number of boundaries the attacker moves, the ones of the URL included:
    what the bridge accepts says the same as what Twilio has sent."""
    divisions, found = Divisions(recorded), set[str]()
    for target, form in divisions.all():
        if accepted(recorded, target, form):
            assert meaning(recorded.path, form) == meaning(recorded.path, recorded.form)
            assert target == recorded.target
            found.add(repr(form))

    assert found and divisions.visited > 1000


FAKE = {"AccountSid": ACCOUNT, "CallSid": "CA" + "e" * 32, "From": "+19005550100"}
INNER = "".join(name + value for name, value in FAKE.items()) + "To+15557650002"


@pytest.mark.parametrize("name", ["AAA", "CallerName"])
@pytest.mark.parametrize("end", ["", "Zz"])
def test_a_whole_form_inside_a_value(name: str, end: str) -> None:
    """A caller whose name is a whole form, and who recorded the webhook, cannot make it
    the webhook: neither the one that Twilio signs nor the other one is accepted."""
    recorded = Recorded("/voice", {**PHONES, name: f"x{INNER}{end}"})

    assert misdivided("/voice", "/voice", MultiDict(recorded.form))
    for target, form in Divisions(recorded).all():
        assert not accepted(recorded, target, form)
    for form in edited(recorded):
        assert not accepted(recorded, "/voice", form)


def test_a_form_inside_the_url() -> None:
    """A signature of a form is not the signature of a JSON body whose hash the caller
    has put into a value: the fields would then stand in the URL."""
    form = {**PHONES, "CallerName": "&bodySHA256=" + "0" * 64 + "&"}
    target = Recorded("/voice?once=1", form).text
    json = MultiDict(PHONES)

    assert misdivided("/voice", "/voice?once=1", json) is None
    assert misdivided("/voice", target, json) == "a value contains a field"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"CallSid": CALL + "0"}, "CallSid is malformed"),
        ({"CallSid": CALL[:-1]}, "CallSid is malformed"),
        ({"CallSid": "../../etc"}, "CallSid is malformed"),
        ({"CallSid": CALL + "\n"}, "CallSid is malformed"),
        ({"AccountSid": CALL}, "AccountSid is malformed"),
        ({"From": ""}, "From is malformed"),
        ({"From": "sip:x@y"}, "From is malformed"),
        ({"To": "+1555To"}, "To is malformed"),
        ({"CallStatus": "completedX"}, "CallStatus is malformed"),
        ({"From Zip": "1"}, "a name is malformed"),
        ({"1": "1"}, "a name is malformed"),
        ({"": "1"}, "a name is malformed"),
        ({"Caf\u00e9": "1"}, "a name is malformed"),
    ],
)
def test_a_malformed_field(change: dict[str, str], why: str) -> None:
    """The operator reads in the log which field is not as Twilio sends it."""
    assert misdivided("/voice", "/voice", MultiDict({**PHONES, **change})) == why


@pytest.mark.parametrize("name", ["AccountSid", "CallSid", "From", "To"])
def test_a_field_that_is_missing_or_repeated(name: str) -> None:
    """Of two values of a field, none counts."""
    less = {it: value for it, value in PHONES.items() if it != name}
    twice = MultiDict([*PHONES.items(), (name, PHONES[name])])

    assert misdivided("/voice", "/voice", MultiDict(less)) == f"{name} is missing"
    assert misdivided("/voice", "/voice", twice) == f"{name} is repeated"


@pytest.mark.parametrize(
    "more",
    [
        {"From": "sip:ann@example.com", "Caller": "sip:ann@example.com"},
        {"From": "client:Ann_1", "Caller": "client:Ann_1"},
        {"From": "whatsapp:+15551230001", "Caller": "whatsapp:+15551230001"},
        {"From": "+266696687", "Caller": "Anonymous"},
        {"From": "Restricted"},
        {"From": "12345"},
        {"To": "support", "Called": "", "ApplicationSid": "AP" + "a" * 32},
        {"SipHeader_X-Account.Id": "1", "room_id": "7", "Digits": ""},
        {"AddOns": '{"status":"successful"}', "CallerName": "FROM TO"},
        {"ParentCallSid": "CA" + "9" * 32, "ForwardedFrom": "+15550000003"},
        {"Digits": "1", "CallStatus": "some-new-status"},
    ],
)
def test_other_forms_that_twilio_sends(more: dict[str, str]) -> None:
    """Calls over SIP, from browsers, of hidden numbers, with fields that Twilio may
    add."""
    assert misdivided("/voice", "/voice", MultiDict({**PHONES, **more})) is None
