"""The fake Calls resource, tested with Twilio's own client over real sockets."""

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
from tests.sim.tiny_bridge import (
    AGENT,
    TinyBridge,
    TinyBridgeStream,
    connect,
    tiny_bridge,
)
from tests.support.waiting import until

SID, TOKEN = "AC" + "0" * 31 + "1", "12345"
TO, FROM = "+15551230001", "+15557650002"
EVENTS = ["initiated", "ringing", "answered", "completed"]
SPEECH = bytes([0x10, 0x90]) * 1600  # 0.4 s
TALK: Script = [SayStep(SPEECH), HangUpStep()]


class Http(TwilioHttpClient):  # type: ignore[misc]
    """Sends requests for Twilio to the fake."""

    def __init__(self, origin: str) -> None:
        super().__init__(pool_connections=False, timeout=5)
        self.origin = origin

    def request(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        url = url.replace("https://api.twilio.com", self.origin)
        return super().request(method, url, *args, **options)


class Account:
    """Twilio's blocking client, in a thread."""

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


@asynccontextmanager
async def servers(
    *plays: Callable[[TinyBridgeStream], Any], **options: Any
) -> AsyncIterator[tuple[TinyBridge, TwilioRest, Account]]:
    async with tiny_bridge(*plays) as bridge:
        async with TwilioRest(SID, TOKEN, **options) as rest:
            yield bridge, rest, Account(rest)
        files = [task.get_coro().cr_code.co_filename for task in asyncio.all_tasks()]  # type: ignore[union-attr]
        assert not [name for name in files if "/bridge/sim/" in name]


async def test_a_created_call_is_placed_and_reported() -> None:
    """An outbound call rings, is answered, and reports each status."""

    async def play(talk: TinyBridgeStream) -> None:
        await talk.media(AGENT[:1600])

    script: Script = [HearStep(200), HangUpStep()]
    async with servers(play, callee=Answers(script, after=0.2)) as (
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
    """A bridge with a public URL can be called on this machine."""
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
async def test_an_unreached_callee_has_its_status(status: Any) -> None:
    """No document is requested; the last status has the reason."""
    async with servers(callee=Unreached(status)) as (bridge, rest, account):
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
    """A callee that would answer after the timeout has missed the call."""
    async with servers(callee=Answers(TALK, after=30)) as (bridge, rest, account):
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
    """A bridge that trusts the last callback to arrive believes that a finished call
    goes on."""
    async with servers(callee=Answers(TALK), out_of_order=True) as started:
        bridge, rest, account = started
        created = await account.create(
            url=bridge.origin + "/voice",
            status_callback=bridge.origin + "/status",
            status_callback_event=events,
        )
        await over(rest.calls[created.sid])

        numbers = [form["SequenceNumber"] for form in bridge.forms("/status")]
        assert numbers == order


async def test_twiml_of_the_request_needs_no_webhook() -> None:
    """TwiML in the request needs no webhook; a relative URL in it is an error."""
    async with servers(callee=Answers([WaitStep(5)])) as (_, rest, account):
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


async def test_if_both_are_given_url_wins_over_twiml() -> None:
    """As documented in Twilio's reference."""
    async with servers(callee=Answers(TALK)) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice", twiml="<Response/>", method="POST"
        )
        await over(rest.calls[created.sid])

        assert len(bridge.talks) == 1


# Changing a call


async def test_the_account_hangs_up() -> None:
    """The stream gets `stop`, the call is completed; a second request is an error."""
    async with servers(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
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
    """The callee does not answer any more."""
    async with servers(callee=Answers(TALK, after=60)) as (bridge, rest, account):
        created = await account.create(url=bridge.origin + "/voice")
        call = rest.calls[created.sid]
        await until(lambda: call.status == "ringing")
        with pytest.raises(TwilioRestException) as refused:
            await account.update(created.sid, twiml="<Response/>")
        assert (refused.value.status, refused.value.code) == (400, 21220)

        await account.update(created.sid, status=status)

        assert (await over(call)).status == "canceled" and bridge.requests == []


async def test_a_call_canceled_in_the_queue_has_no_callback() -> None:
    """No callback is sent for a call canceled in the queue."""
    async with servers(queued_seconds=5.0) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice",
            status_callback=bridge.origin + "/status",
            status_callback_event=EVENTS,
        )
        await account.update(created.sid, status="canceled")

        assert (await over(rest.calls[created.sid])).status == "canceled"
        assert bridge.requests == []


async def test_new_twiml_replaces_the_stream() -> None:
    """The stream ends, its action is not requested, the callee stays connected."""
    async with servers(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
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


async def test_new_twiml_stops_a_request_or_a_dial() -> None:
    """The running verb is stopped."""
    async with servers(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
        bridge.documents["/voice"] = "<Response><Pause length='60'/></Response>"
        created = await account.create(url=bridge.origin + "/voice")
        await until(lambda: bridge.requests)
        await account.update(created.sid, twiml="<Response><Say>Hi</Say></Response>")
        call = await over(rest.calls[created.sid])

        assert call.record is not None and call.record.said_by_twilio == ["Hi"]


async def test_the_time_limit_ends_the_call() -> None:
    """The call ends at its TimeLimit."""
    async with servers(callee=Answers([WaitStep(60)])) as (bridge, rest, account):
        created = await account.create(url=bridge.origin + "/voice", time_limit=1)
        call = await over(rest.calls[created.sid])

        assert call.status == "completed" and 0.9 < call.talked_seconds < 2.0


# Answering machines

DETECT = {"async_amd": "true", "machine_detection": "DetectMessageEnd"}


async def test_after_the_beep_the_callback_comes() -> None:
    """The bridge's audio after the beep is recorded by the machine."""
    machine = Machine(greeting=SPEECH * 2, records_seconds=1.0)
    async with servers(callee=machine) as (bridge, rest, account):
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
async def test_the_detection_result_comes_in_time(
    callee: Answers | Machine, options: dict[str, Any], said: str, ms: int
) -> None:
    """The result comes soon or after the greeting, depending on the mode."""
    async with servers(callee=callee) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice",
            async_amd_status_callback=bridge.origin + "/amd",
            **{**DETECT, **options},
        )
        await until(lambda: bridge.forms("/amd"))
        call = rest.calls[created.sid]
        assert call.record is not None and call.record.stream_at is not None
        await until(lambda: call.callbacks)  # recorded when it was answered
        waited = call.callbacks[-1].at - call.record.stream_at
        rest.calls[created.sid].placed.end("test")  # type: ignore[union-attr]
        await over(call)

    (form,) = bridge.forms("/amd")
    assert form["AnsweredBy"] == said
    assert form["MachineDetectionDuration"] == str(ms)
    assert waited == pytest.approx(ms / 1000, abs=0.2)


async def test_synchronous_detection_delays_the_document() -> None:
    """Synchronous detection: the document is requested after the result."""
    callee = Answers(TALK, detected_after=0.5)
    async with servers(callee=callee) as (bridge, rest, account):
        created = await account.create(
            url=bridge.origin + "/voice", machine_detection="Enable"
        )
        call = await over(rest.calls[created.sid])

        assert bridge.forms("/voice")[0]["AnsweredBy"] == "human"
        assert call.talked_seconds > 0.5 + len(SPEECH) / 8000


async def test_a_hangup_during_detection_requests_no_document() -> None:
    """The call was answered, so it is completed."""
    callee = Answers(TALK, detected_after=5)
    async with servers(callee=callee) as (bridge, rest, account):
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
async def test_invalid_requests_get_twilios_error(
    options: dict[str, Any], code: int
) -> None:
    """An invalid request fails with Twilio's error code."""
    numbers = frozenset({FROM})
    async with servers(numbers=numbers) as (bridge, rest, account):
        wanted = {"url": bridge.origin + "/voice", **options}
        with pytest.raises(TwilioRestException) as refused:
            await account.create(**{k: v for k, v in wanted.items() if v is not None})

        assert (refused.value.status, refused.value.code) == (400, code)
        assert rest.calls == {}


async def test_wrong_tokens_and_unknown_calls_are_refused() -> None:
    """A wrong token gives 20003, an unknown call 20404."""
    async with servers() as (bridge, rest, account):
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
async def test_invalid_changes_get_twilios_error(options: dict[str, str]) -> None:
    """An invalid change fails, and the call goes on unchanged."""
    async with servers(callee=Answers([WaitStep(60)])) as (bridge, _, account):
        created = await account.create(url=bridge.origin + "/voice")
        await until(lambda: bridge.talks)
        with pytest.raises(TwilioRestException) as refused:
            await account.update(created.sid, **options)

        assert (refused.value.status, refused.value.code) == (400, 21200)
        assert (await account.fetch(created.sid)).status == "in-progress"
