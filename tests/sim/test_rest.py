"""The fake Calls resource, proven with twilio's own client over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from twilio.base.exceptions import TwilioRestException  # type: ignore[import-untyped]
from twilio.http.http_client import TwilioHttpClient  # type: ignore[import-untyped]
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]
from twilio.rest import Client  # type: ignore[import-untyped]

from bridge.sim.caller import HangUpStep, HearStep, SayStep, Script, WaitStep
from bridge.sim.twilio.rest import Answers, FakeCall, Machine, TwilioRest, Unreached
from tests.sim.tiny_bridge import AGENT, Talk, TinyBridge, connect, tiny_bridge

SID, TOKEN = "AC" + "0" * 31 + "1", "12345"
TO, FROM = "+15551230001", "+15557650002"
EVENTS = ["initiated", "ringing", "answered", "completed"]
SPEECH = bytes([0x10, 0x90]) * 1600  # 0.4 s
TALK: Script = [SayStep(SPEECH), HangUpStep()]


class Http(TwilioHttpClient):  # type: ignore[misc]
    """Sends what is for Twilio to the fake."""

    def __init__(self, origin: str) -> None:
        super().__init__(pool_connections=False, timeout=5)
        self.origin = origin

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        url = url.replace("https://api.twilio.com", self.origin)
        return super().request(method, url, *args, **options)


class Account:
    """twilio's blocking client, beside the test."""

    def __init__(self, rest: TwilioRest, token: str = TOKEN) -> None:
        self.client = Client(SID, token, http_client=Http(rest.url))

    async def create(self, **options: Any) -> Any:
        return await asyncio.to_thread(
            self.client.calls.create, **{"to": TO, "from_": FROM, **options}
        )

    async def fetch(self, sid: str) -> Any:
        return await asyncio.to_thread(self.client.calls(sid).fetch)

    async def update(self, sid: str, **options: Any) -> Any:
        return await asyncio.to_thread(lambda: self.client.calls(sid).update(**options))


async def over(call: FakeCall) -> FakeCall:
    async with asyncio.timeout(8):
        await call.over.wait()
    return call


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.01)


@asynccontextmanager
async def house(
    *plays: Callable[[Talk], Any], **options: Any
) -> AsyncIterator[tuple[TinyBridge, TwilioRest, Account]]:
    async with tiny_bridge(*plays) as bridge:
        async with TwilioRest(SID, TOKEN, **options) as rest:
            yield bridge, rest, Account(rest)
        files = [task.get_coro().cr_code.co_filename for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        assert not [name for name in files if "/bridge/sim/" in name]


async def test_a_created_call_is_placed_and_reported() -> None:
    """Ringing, picked up, talked to, hung up: as an outbound call of Twilio's is."""

    async def play(talk: Talk) -> None:
        await talk.media(AGENT[:1600])

    script: Script = [HearStep(200), HangUpStep()]
    async with house(play, callee=Answers(script, after=0.2)) as (
        bridge,
        rest,
        account,
    ):
        created = await account.create(
            url=bridge.origin + "/voice?order=1",
            status_callback=bridge.origin + "/status",
            status_callback_event=EVENTS,
        )
        assert created.status == "queued" and created.direction == "outbound-api"
        call = await over(rest.calls[created.sid])
        fetched = await account.fetch(created.sid)

    (voice,) = bridge.forms("/voice")
    assert voice["CallSid"] == created.sid and voice["Direction"] == "outbound-api"
    assert voice["CallStatus"] == "in-progress"
    assert (voice["To"], voice["From"]) == (TO, FROM)
    start = bridge.talks[0].messages("start")[0]["start"]
    assert start["callSid"] == created.sid and start["accountSid"] == SID
    assert call.record is not None and call.record.heard == AGENT[:1600]
    forms = bridge.forms("/status")
    states = [form["CallStatus"] for form in forms]
    assert states == ["initiated", "ringing", "in-progress", "completed"]
    assert [form["SequenceNumber"] for form in forms] == ["0", "1", "2", "3"]
    assert {form["CallbackSource"] for form in forms} == {"call-progress-events"}
    assert all(form["Timestamp"].endswith("+0000") for form in forms)
    assert "CallDuration" not in forms[2] and forms[3]["CallDuration"] == "0"
    check = RequestValidator(TOKEN)
    for request, form in bridge.requests:
        signature = request.headers["X-Twilio-Signature"]
        assert check.validate(bridge.origin + request.path_qs, form, signature)
    assert fetched.status == "completed" and fetched.duration == "0"
    assert fetched.end_time is not None and fetched.start_time is not None


async def test_public_urls_are_signed_as_they_are_and_dialled_where_the_bridge_is() -> (
    None
):
    """A bridge that believes in its public address can be called on this machine."""
    public = "https://phone.example"
    async with tiny_bridge() as bridge:
        bridge.documents["/voice"] = connect("wss://phone.example/media/x1")
        async with TwilioRest(
            SID, TOKEN, bridge=bridge.origin, callee=Answers(TALK)
        ) as rest:
            created = await Account(rest).create(
                url=public + "/voice?order=1",
                status_callback=public + "/status",
                status_callback_event=EVENTS,
            )
            await over(rest.calls[created.sid])

    check = RequestValidator(TOKEN)
    assert len(bridge.talks) == 1 and len(bridge.forms("/status")) == 4
    for request, form in bridge.requests:
        signature = request.headers["X-Twilio-Signature"]
        assert check.validate(public + request.path_qs, form, signature)


@pytest.mark.parametrize("status", ["busy", "no-answer", "failed"])
async def test_nobody_is_reached(status: Any) -> None:
    """No document is asked for; the last status says why."""
    async with house(callee=Unreached(status)) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice", status_callback=bridge.origin + "/status"
        )
        await over(rest.calls[created.sid])
        fetched = await account.fetch(created.sid)

        (form,) = bridge.forms("/status")
        assert form["CallStatus"] == status and form["SequenceNumber"] == "0"
        assert bridge.forms("/voice") == []
        assert fetched.status == status and fetched.duration is None


async def test_it_rings_no_longer_than_the_timeout() -> None:
    """Who would have picked up later has missed the call."""
    async with house(callee=Answers(TALK, after=30)) as (bridge, rest, account):
        created = await account.create(url=bridge.origin + "/voice", timeout=1)
        call = await over(rest.calls[created.sid])

        assert call.status == "no-answer" and bridge.requests == []


@pytest.mark.parametrize(
    ("events", "order"),
    [(EVENTS, ["1", "0", "3", "2"]), (EVENTS[1:], ["1", "0", "2"])],
)
async def test_callbacks_may_come_out_of_order(
    events: list[str], order: list[str]
) -> None:
    """Whoever believes the last one to come believes a call that is over to go on."""
    async with house(callee=Answers(TALK), out_of_order=True) as house_:
        bridge, rest, account = house_
        created = await account.create(
            url=bridge.origin + "/voice",
            status_callback=bridge.origin + "/status",
            status_callback_event=events,
        )
        await over(rest.calls[created.sid])

        numbers = [form["SequenceNumber"] for form in bridge.forms("/status")]
        assert numbers == order


async def test_twiml_of_the_request_needs_no_webhook() -> None:
    """TwiML without a URL has nothing that a relative one could be relative to."""
    async with house(callee=Answers([WaitStep(5)])) as (_, rest, account):
        created = await account.create(twiml="<Response><Say>Hi</Say></Response>")
        call = await over(rest.calls[created.sid])
        assert call.record is not None and call.record.said_by_twilio == ["Hi"]

        relative = "<Response><Redirect>/voice</Redirect></Response>"
        created = await account.create(twiml=relative)
        call = await over(rest.calls[created.sid])
        assert call.record is not None and call.record.error is not None
        assert call.record.error.startswith("15004")

        created = await account.create(twiml=connect("/media/x1"))
        call = await over(rest.calls[created.sid])
        assert call.record is not None
        assert [end.code for end in call.record.stream_ends] == [31923]


async def test_of_url_and_twiml_the_url_is_taken() -> None:
    """As Twilio's reference has it."""
    async with house(callee=Answers(TALK)) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice", twiml="<Response/>", method="POST"
        )
        await over(rest.calls[created.sid])

        assert len(bridge.talks) == 1


# Changing a call


async def test_the_account_hangs_up() -> None:
    """The stream gets its `stop`; the call is completed; a second time it is over."""
    async with house(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
        created = await account.create(url=bridge.origin + "/voice")
        await until(lambda: bridge.talks)
        await account.update(created.sid, status="canceled")
        assert (await account.fetch(created.sid)).status == "in-progress"

        await account.update(created.sid, status="completed")
        call = await over(rest.calls[created.sid])

        assert call.record is not None and call.record.ended_by == "rest"
        assert call.status == "completed" and bridge.talks[0].messages("stop")
        with pytest.raises(TwilioRestException) as refused:
            await account.update(created.sid, status="completed")
        assert (refused.value.status, refused.value.code) == (404, 20404)


@pytest.mark.parametrize("status", ["completed", "canceled"])
async def test_a_call_that_rings_is_canceled(status: str) -> None:
    """Nobody picks up any more."""
    async with house(callee=Answers(TALK, after=60)) as (bridge, rest, account):
        created = await account.create(url=bridge.origin + "/voice")
        call = rest.calls[created.sid]
        await until(lambda: call.status == "ringing")
        with pytest.raises(TwilioRestException) as refused:
            await account.update(created.sid, twiml="<Response/>")
        assert (refused.value.status, refused.value.code) == (400, 21220)

        await account.update(created.sid, status=status)

        assert (await over(call)).status == "canceled" and bridge.requests == []


async def test_a_call_canceled_in_the_queue_is_told_to_nobody() -> None:
    """A callback that never comes must not be waited for."""
    async with house(queued_seconds=5.0) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice",
            status_callback=bridge.origin + "/status",
            status_callback_event=EVENTS,
        )
        await account.update(created.sid, status="canceled")

        assert (await over(rest.calls[created.sid])).status == "canceled"
        assert bridge.requests == []


async def test_other_twiml_takes_the_place_of_the_stream() -> None:
    """The stream ends, its action is not asked, the person is still there."""
    async with house(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
        bridge.documents["/voice"] = connect(bridge.media_url, action="/next")
        created = await account.create(url=bridge.origin + "/voice")
        await until(lambda: bridge.talks)
        await account.update(created.sid, twiml=connect(bridge.media_url, a="b"))
        await until(lambda: len(bridge.talks) == 2)
        bridge.documents["/bye"] = "<Response><Say>Bye</Say></Response>"

        await account.update(created.sid, url=bridge.origin + "/bye", method="POST")
        call = await over(rest.calls[created.sid])

        assert [bool(talk.messages("stop")) for talk in bridge.talks] == [True, True]
        assert bridge.forms("/next") == [] and call.record is not None
        assert call.record.said_by_twilio == ["Bye"]
        assert call.record.ended_by == "bridge"
        assert bridge.forms("/bye")[0]["CallStatus"] == "in-progress"


async def test_twiml_comes_while_twilio_asks_or_dials() -> None:
    """What ran is left where it stands."""
    async with house(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
        bridge.documents["/voice"] = "<Response><Pause length='60'/></Response>"
        created = await account.create(url=bridge.origin + "/voice")
        await until(lambda: bridge.requests)
        await account.update(created.sid, twiml="<Response><Say>Hi</Say></Response>")
        call = await over(rest.calls[created.sid])

        assert call.record is not None and call.record.said_by_twilio == ["Hi"]


async def test_the_time_limit_ends_the_call() -> None:
    """Nobody pays for a call longer than was asked for."""
    async with house(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
        created = await account.create(url=bridge.origin + "/voice", time_limit=1)
        call = await over(rest.calls[created.sid])

        assert call.status == "completed" and 0.9 < call.talked_seconds < 2.0


# Answering machines

DETECT = {"async_amd": "true", "machine_detection": "DetectMessageEnd"}


async def test_after_the_beep_the_callback_comes() -> None:
    """What the bridge says then is on the machine's tape."""
    machine = Machine(greeting=SPEECH * 2, records_seconds=1.0)
    async with house(callee=machine) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice",
            async_amd_status_callback=bridge.origin + "/amd",
            **DETECT,
        )
        await until(lambda: bridge.forms("/amd"))
        call = rest.calls[created.sid]
        assert call.record is not None
        await until(lambda: len(call.record.spoken) == 2)  # type: ignore[union-attr]
        posted = call.callbacks[-1].at
        await account.update(created.sid, status="completed")
        await over(call)
        fetched = await account.fetch(created.sid)

    assert bridge.forms("/amd") == [
        {
            "CallSid": created.sid,
            "AccountSid": SID,
            "AnsweredBy": "machine_end_beep",
            "MachineDetectionDuration": "1300",
        }
    ]
    assert posted == pytest.approx(call.record.spoken[-1].ended_at, abs=0.2)
    assert fetched.answered_by == "machine_end_beep"


@pytest.mark.parametrize(
    ("callee", "options", "said", "ms"),
    [
        (Answers([WaitStep(9)], detected_after=0.3), {}, "human", 300),
        (Answers([WaitStep(9)], answered_by="fax", detected_after=0.1), {}, "fax", 100),
        (
            Machine(SPEECH * 9),
            {
                "machine_detection": "Enable",
                "machine_detection_speech_threshold": 1000,
            },
            "machine_start",
            1000,
        ),
        (
            Machine(SPEECH, beep=b""),
            {"machine_detection_silence_timeout": 2000},
            "machine_end_silence",
            2400,
        ),
        (
            Machine(SPEECH * 20),
            {"machine_detection_timeout": 3},
            "unknown",
            3000,
        ),
    ],
)
async def test_who_picked_up_is_told_in_time(
    callee: Answers | Machine, options: dict[str, Any], said: str, ms: int
) -> None:
    """Soon, or when the machine has spoken: as the mode says."""
    async with house(callee=callee) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice",
            async_amd_status_callback=bridge.origin + "/amd",
            **{**DETECT, **options},
        )
        await until(lambda: bridge.forms("/amd"))
        call = rest.calls[created.sid]
        assert call.record is not None and call.record.stream_at is not None
        await until(lambda: call.callbacks)  # noted once it was answered
        waited = call.callbacks[-1].at - call.record.stream_at
        rest.calls[created.sid].placed.end("test")  # type: ignore[union-attr]
        await over(call)

    (form,) = bridge.forms("/amd")
    assert form["AnsweredBy"] == said
    assert form["MachineDetectionDuration"] == str(ms)
    assert waited == pytest.approx(ms / 1000, abs=0.2)


async def test_detection_that_is_not_beside_the_call_holds_it_up() -> None:
    """The document is asked for when it is known who picked up."""
    callee = Answers(TALK, detected_after=0.5)
    async with house(callee=callee) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice", machine_detection="Enable"
        )
        call = await over(rest.calls[created.sid])

        assert bridge.forms("/voice")[0]["AnsweredBy"] == "human"
        assert call.talked_seconds > 0.5 + len(SPEECH) / 8000


async def test_hung_up_during_detection_the_document_is_never_asked_for() -> None:
    """The call is completed: it was answered."""
    callee = Answers(TALK, detected_after=5)
    async with house(callee=callee) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice", machine_detection="Enable"
        )
        call = rest.calls[created.sid]
        await until(lambda: call.status == "in-progress")
        await account.update(created.sid, status="completed")

        assert (await over(call)).status == "completed" and bridge.requests == []


# Errors


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"to": ""}, 21201),
        ({"from_": ""}, 21213),
        ({"to": "5551230001"}, 21211),
        ({"to": FROM}, 21211),
        ({"from_": "Anna"}, 21212),
        ({"from_": "+15550000000"}, 21210),
        ({"url": None}, 21205),
        ({"url": "/voice"}, 21205),
        ({"url": None, "twiml": "x" * 4001}, 32018),
        ({"method": "PUT"}, 21200),
        ({"timeout": 601}, 21208),
        ({"timeout": "soon"}, 21208),
        ({"time_limit": 0}, 21200),
        ({"status_callback": "phone.example/status"}, 21205),
        ({"status_callback_method": "PUT"}, 21200),
        ({"status_callback_event": "initiated ringing"}, 21626),
        ({"machine_detection": "Yes"}, 21234),
        ({"machine_detection": "Enable", "async_amd": "yes"}, 21234),
        ({"machine_detection": "Enable", "machine_detection_timeout": 2}, 21234),
        ({"machine_detection": "Enable", "async_amd": "true"}, 21262),
    ],
)
async def test_what_twilio_does_not_take(options: dict[str, Any], code: int) -> None:
    """A wrong request fails in a test with the code it would fail with live."""
    numbers = frozenset({FROM})
    async with house(numbers=numbers) as (bridge, rest, account):
        wanted = {"url": bridge.origin + "/voice", **options}
        with pytest.raises(TwilioRestException) as refused:
            await account.create(**{k: v for k, v in wanted.items() if v is not None})

        assert (refused.value.status, refused.value.code) == (400, code)
        assert rest.calls == {}


async def test_strangers_and_unknown_calls() -> None:
    """A wrong token is 20003, a call that is not there 20404."""
    async with house() as (bridge, rest, account):
        with pytest.raises(TwilioRestException) as refused:
            await Account(rest, "wrong").create(url=bridge.origin + "/voice")
        assert (refused.value.status, refused.value.code) == (401, 20003)
        for request in (account.fetch("CA1"), account.update("CA1", status="x")):
            with pytest.raises(TwilioRestException) as refused:
                await request
            assert (refused.value.status, refused.value.code) == (404, 20404)
        other = account.client.api.v2010.accounts("AC2").calls
        with pytest.raises(TwilioRestException) as refused:
            await asyncio.to_thread(
                other.create, to=TO, from_=FROM, url="https://phone.example/"
            )
        assert (refused.value.status, refused.value.code) == (404, 20404)


@pytest.mark.parametrize(
    "options",
    [
        {"status": "busy"},
        {"status": "completed", "twiml": "<Response/>"},
        {"url": "https://phone.example/", "twiml": "<Response/>"},
    ],
)
async def test_changes_twilio_does_not_take(options: dict[str, str]) -> None:
    """The call goes on as it was."""
    async with house(callee=Answers([WaitStep(60)])) as (bridge, _, account):
        created = await account.create(url=bridge.origin + "/voice")
        await until(lambda: bridge.talks)
        with pytest.raises(TwilioRestException) as refused:
            await account.update(created.sid, **options)

        assert (refused.value.status, refused.value.code) == (400, 21200)
        assert (await account.fetch(created.sid)).status == "in-progress"
