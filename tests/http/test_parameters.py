"""What a webhook tells the agent: BRIDGE_PARAMETERS selects it."""

import json
from urllib.parse import urlencode

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import MultiDict

from bridge.agent.live import CallFacts
from bridge.app.values import PARAMETERS
from bridge.http.parameters import (
    CARRIED,
    MAX_CHARS,
    MAX_PARAMETERS,
    MAX_VALUE_CHARS,
    stream_parameters,
    to_carry,
)
from bridge.http.webhook_fields import Webhook
from twiml import connect

NUMBERS = {"From": "+15551230001", "To": "+15557650002"}
CLIENT = {**NUMBERS, "From": "client:ann", "ApplicationSid": "AP" + "1" * 32}


def webhook(form: dict[str, str], query: str = "") -> Webhook:
    request = make_mocked_request("POST", f"/voice?{query}")
    return Webhook(request, MultiDict({**NUMBERS, **form}), "https://bridge.example")


def others(
    form: dict[str, str], query: str = "", allowed: tuple[str, ...] = PARAMETERS
) -> dict[str, str]:
    """The parameters besides the numbers."""
    found = stream_parameters(webhook(form, query), allowed)
    return {name: text for name, text in found.items() if name not in NUMBERS}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ForwardedFrom", "+15550000003"),
        ("CallerName", "ANN SMITH"),
        ("CallerCity", "BOSTON"),
        ("StirVerstat", "TN-Validation-Passed-A"),
        ("SipHeader_X-Account", "42"),
    ],
)
def test_what_twilio_tells_reaches_the_agent(name: str, text: str) -> None:
    """The agent knows who has forwarded the call, and what a SIP header says, without a
    setting."""
    assert others({name: text}) == {name: text}


@pytest.mark.parametrize("name", ["CallToken", "ApiVersion", "AddOns", "Digits"])
def test_other_fields_stay_here(name: str) -> None:
    """A token that could place calls is in no report."""
    assert others({name: "x"}) == {}
    assert others({**CLIENT, name: "x"}) == {}


def test_parameters_of_a_client_of_the_voice_sdk() -> None:
    """An app's own parameters choose the route, and the agent sees them."""
    form = {**CLIENT, "tenant": "acme", "Topic": "billing", "CallStatus": "ringing"}

    assert others(form) == {"tenant": "acme", "Topic": "billing"}
    assert others({"tenant": "acme"}) == {}  # not of a client
    assert others(form, allowed=("Topic",)) == {"Topic": "billing"}
    assert others(form, allowed=()) == {}


def test_the_query_of_the_operators_url_is_selected_by_name() -> None:
    """`/voice?tenant=acme` reaches routes once the operator names it; a token in the
    same url does not."""
    query = "tenant=acme&team_id=7&token=secret"
    allowed = ("tenant", "team*")

    assert others({}, query) == {}
    assert others({}, query, allowed) == {"tenant": "acme", "team_id": "7"}
    # What the bridge itself adds to a url is not the operator's.
    assert others({}, f"{query}&once=1&by_get=1", ("o*", "b*", "tenant")) == {
        "tenant": "acme"
    }
    # What Twilio says goes before what the url says.
    both = others({"CallerName": "ANN"}, "CallerName=BOB")
    assert both == {"CallerName": "ANN"}


def test_a_client_cannot_replace_what_the_operators_url_says() -> None:
    """A user of an app gets the agent of the tenant whose url was called, whatever the
    app's page sends, and also when the first stream has failed."""
    allowed = (*PARAMETERS, "tenant")
    many = {f"p{number}": "v" * 300 for number in range(60)}
    for form in ({**CLIENT, "tenant": "other"}, {**CLIENT, **many}):
        assert others(form, "tenant=acme", allowed)["tenant"] == "acme"
        carried = to_carry(webhook(form, "tenant=acme"), allowed)
        # Twilio may send the client's fields again.
        assert others(form, urlencode(carried), allowed)["tenant"] == "acme"


def test_a_url_with_carried_values_is_short_enough_for_twilio() -> None:
    """A caller whose app sends text in another script reaches the agent: Twilio takes
    no URL of more than 4000 characters."""
    form = {**CLIENT, **{name: "\u4f60" * 300 for name in ("a", "b", "c", "d")}}

    carried = to_carry(webhook({**form, "tenant": "acme"}), PARAMETERS)

    assert len(urlencode(carried)) < 3200
    assert json.loads(carried[CARRIED])["tenant"] == "acme"


@pytest.mark.parametrize("name", ["From", "To", "Direction", "Route"])
def test_no_parameter_is_taken_for_one_of_the_bridges_own(name: str) -> None:
    """A client or a url cannot choose the caller's number or a route by its name."""
    found = stream_parameters(webhook({}, f"{name}=evil"), ("*", "custom", name))

    assert found.get(name) in (None, NUMBERS.get(name))


def test_values_are_bounded() -> None:
    """A caller who sends much, or what XML cannot carry, still gets an agent."""
    form = {
        "tenant": "x" * MAX_VALUE_CHARS,
        "long": "x" * (MAX_VALUE_CHARS + 1),
        "n" * 200: "x",
        "odd": "a\x00b",
        "empty": "",
        **{f"p{number}": "v" * 300 for number in range(100)},
    }

    found = others({**CLIENT, **form})

    assert found["tenant"] == form["tenant"]
    assert not {"long", "n" * 200, "odd", "empty"} & found.keys()
    assert len(found) <= MAX_PARAMETERS
    assert sum(map(len, [*found, *found.values()])) <= MAX_CHARS
    assert connect("wss://a.example/media", action_url="/", parameters=found)


@pytest.mark.parametrize("direction", ["outbound-api", "outbound-dial"])
def test_the_facts_follow_the_direction(direction: str) -> None:
    """In a call that the operator's own code has placed, our number is `From`."""
    found = stream_parameters(webhook({"Direction": direction}), ())
    facts = CallFacts.of("CA1", found)

    assert facts.direction == "outbound"
    assert (facts.ours, facts.theirs) == (NUMBERS["From"], NUMBERS["To"])
    inbound = CallFacts.of("CA1", stream_parameters(webhook({}), ()))
    assert (inbound.direction, inbound.theirs) == ("inbound", NUMBERS["From"])


def test_what_twilio_sends_only_once_is_carried_on() -> None:
    """A caller who waits in the queue, or whose first stream fails, keeps the route
    that the app's parameters or the url have chosen."""
    allowed = (*PARAMETERS, "team")
    form = {**CLIENT, "tenant": "acme", "CallerCity": "BOSTON"}
    carried = to_carry(webhook(form, "team=7"), allowed)

    assert json.loads(carried[CARRIED]) == {"tenant": "acme", "team": "7"}
    again = stream_parameters(webhook({}, urlencode(carried)), allowed)
    assert (again["tenant"], again["team"]) == ("acme", "7")
    assert to_carry(webhook({}, urlencode(carried)), allowed) == carried
    assert to_carry(webhook({"CallerCity": "BOSTON"}), allowed) == {}


@pytest.mark.parametrize("text", ["", "x", "[1]", '{"a":1}', '{"a":"b"' + " " * 2000])
def test_a_malformed_carried_parameter_is_ignored(text: str) -> None:
    """It is in a signed url, and yet it is only text."""
    assert others({}, urlencode({CARRIED: text})) == {}
    assert to_carry(webhook({}, urlencode({CARRIED: text})), ()) == {}


def test_too_much_to_carry_is_left_out() -> None:
    """A url has a longest length: the caller keeps what fits."""
    form = {**CLIENT, **{f"p{number}": "v" * 300 for number in range(20)}}

    carried = json.loads(to_carry(webhook(form), PARAMETERS)[CARRIED])

    assert list(carried) == [f"p{number}" for number in range(9)]
