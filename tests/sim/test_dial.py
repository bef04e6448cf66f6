"""<Dial> of the fake Twilio: the called party, the result, what follows."""

import pytest

from bridge.sim.caller import Caller, HangUpStep, HearStep, WaitStep
from bridge.sim.twilio.markup import TwimlDial, TwimlError, verbs
from bridge.sim.twilio.record import DialStatus
from tests.sim.tiny_bridge import (
    AGENT,
    TinyBridge,
    TinyBridgeStream,
    connect,
    tiny_bridge,
)

NUMBER = "+15550001111"


def dial(attributes: str = "", then: str = "", number: str = NUMBER) -> str:
    return f"<Response><Dial {attributes}>{number}</Dial>{then}</Response>"


def voice(bridge: TinyBridge) -> str:
    return bridge.origin + "/voice"


@pytest.mark.parametrize("outcome", ["busy", "no-answer", "failed", "canceled"])
async def test_the_action_gets_the_status_of_a_failed_dial(outcome: DialStatus) -> None:
    """The bridge can take the caller back after a failed transfer."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = dial('action="/dialled?n=1"', "<Say>never</Say>")
        bridge.documents["/dialled"] = "<Response><Say>Nobody.</Say></Response>"
        caller = Caller(
            webhook_url=voice(bridge), max_seconds=8.0, dial_outcome=outcome
        )

        record = await caller.call([WaitStep(5)])

        (form,) = bridge.forms("/dialled")
        assert form["DialCallStatus"] == outcome and form["DialBridged"] == "false"
        assert form["DialCallSid"] == record.dials[0].call_sid != record.call_sid
        assert form["CallStatus"] == "in-progress" and "DialCallDuration" not in form
        assert record.said_by_twilio == ["Nobody."]
        assert record.dialled == NUMBER and record.ended_by == "bridge"


async def test_the_action_gets_the_duration_of_an_answered_dial() -> None:
    """The caller is still connected when the called party has hung up."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = dial('action="/dialled" callerId="+15557650002"')
        bridge.documents["/dialled"] = "<Response><Say>Bye.</Say></Response>"
        caller = Caller(
            webhook_url=voice(bridge), max_seconds=8.0, dial_talk_seconds=0.6
        )

        record = await caller.call([WaitStep(5)])

        (form,) = bridge.forms("/dialled")
        assert form["DialCallStatus"] == "completed" and form["DialBridged"] == "true"
        assert form["DialCallDuration"] == "1"
        assert record.dials[0].talked_seconds == 0.6
        assert record.dials[0].caller_id == "+15557650002"
        assert record.said_by_twilio == ["Bye."]
        assert bridge.requests[1][1]["From"] == "+15551230001"


async def test_without_an_action_the_next_verb_follows() -> None:
    """The verb after <Dial> runs after an answered transfer, too."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = dial(then="<Say>Anything else?</Say>")

        record = await Caller(webhook_url=voice(bridge)).call([WaitStep(5)])

        assert record.said_by_twilio == ["Anything else?"]
        assert record.dials[0].status == "completed"


async def test_ringing_ends_at_the_dial_timeout() -> None:
    """The <Dial timeout> ends the ringing."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = dial('timeout="5" action="/dialled"')
        caller = Caller(webhook_url=voice(bridge), dial_ring_seconds=60.0)

        record = await caller.call([WaitStep(20)])

        assert bridge.forms("/dialled")[0]["DialCallStatus"] == "no-answer"
        assert record.ended_at is not None
        assert 5.0 <= record.ended_at - record.started_at < 6.0


async def test_the_script_continues_in_a_second_stream() -> None:
    """After a failed transfer the caller's script continues in the next stream."""

    async def leave(talk: TinyBridgeStream) -> None:
        await talk.until("media", 5)
        await talk.socket.close()

    async def stay(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:1600])

    async with tiny_bridge(leave, stay) as bridge:
        bridge.documents["/voice"] = connect(bridge.media_url, action="/next")
        bridge.documents["/next"] = dial('action="/dialled"')
        bridge.documents["/dialled"] = connect(bridge.media_url, again="yes")
        caller = Caller(webhook_url=voice(bridge), max_seconds=8.0, dial_outcome="busy")

        record = await caller.call([HearStep(200), HangUpStep()])

        first, second = bridge.talks
        assert first.stream_sid != second.stream_sid
        start = second.messages("start")[0]["start"]
        assert start["callSid"] == record.call_sid
        assert start["customParameters"] == {"again": "yes"}
        assert record.heard == AGENT[:1600] and record.ended_by == "caller"
        assert [end.code for end in record.stream_ends] == [31921, 0]
        assert [r.path for r in record.requests] == ["/voice", "/next", "/dialled"]


async def test_a_caller_may_hang_up_while_the_dial_rings() -> None:
    """The action is not requested after the caller has hung up."""

    async def leave(talk: TinyBridgeStream) -> None:
        await talk.socket.close()

    async with tiny_bridge(leave) as bridge:
        bridge.documents["/voice"] = connect(bridge.media_url, action="/next")
        bridge.documents["/next"] = dial('action="/dialled"')
        caller = Caller(webhook_url=voice(bridge), dial_ring_seconds=5.0)

        record = await caller.call([WaitStep(0.3), HangUpStep()])

        assert record.ended_by == "caller" and bridge.forms("/dialled") == []
        assert record.dials[0].status == "canceled"


async def test_an_invalid_number_fails_with_twilios_warning() -> None:
    """An invalid number gives a failed dial and a recorded warning."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = dial('action="/dialled"', number="reception")

        record = await Caller(webhook_url=voice(bridge)).call([WaitStep(5)])

        assert bridge.forms("/dialled")[0]["DialCallStatus"] == "failed"
        assert [warning.code for warning in record.warnings] == [13224]


@pytest.mark.parametrize("number", ["client:ann", "sip:ann@example.com", "anonymous"])
async def test_a_dial_for_a_caller_without_a_number_needs_a_caller_id(
    number: str,
) -> None:
    """Twilio dials nobody (13214), and the action gets the code and the text."""
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = dial('action="/dialled"')
        caller = Caller(webhook_url=voice(bridge), from_number=number)

        record = await caller.call([WaitStep(5)])

        (form,) = bridge.forms("/dialled")
        assert (form["DialCallStatus"], form["ErrorCode"]) == ("failed", "13214")
        assert "callerId must be provided" in form["ErrorMessage"]
        assert [warning.code for warning in record.warnings] == [13214]
        bridge.documents["/voice"] = dial(f'callerId="{caller.to_number}"')
        assert (await caller.call([WaitStep(5)])).dials[0].status == "completed"


def test_a_dial_is_parsed_with_its_defaults() -> None:
    """The number may be in a <Number>; the default timeout is 30 seconds."""
    number = f"<Number>{NUMBER}</Number>"

    assert verbs(dial(number=number)) == [TwimlDial(NUMBER, None, "POST", 30.0, None)]
    assert verbs(dial('action="/a" method="GET" timeout="7" callerId="+491"')) == [
        TwimlDial(NUMBER, "/a", "GET", 7.0, "+491")
    ]


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (dial('timeout="soon"'), 12200),
        (dial('timeout="4"'), 13212),
        (dial('timeout="601"'), 13212),
        (dial('method="PUT"'), 12200),
        (dial(number="<Client>ann</Client>"), 12200),
    ],
)
def test_an_invalid_dial_is_refused(document: str, code: int) -> None:
    """An invalid <Dial> fails with Twilio's error code."""
    with pytest.raises(TwimlError) as refused:
        verbs(document)

    assert refused.value.code == code
