"""Wrong input from outside: it is counted, survived, or ends the call with a clear
reason."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import steps
from tests.e2e.bridge import HELLO, RunningBridge, bridge
from twiml import spoken_texts

LISTEN = steps.ListenStep(quiet_seconds=0.4, timeout=8)
TOKEN = "a" * 32
PUBLIC = "https://bridge.example"

STOP = json.dumps({"event": "stop", "streamSid": "MZ1"})
START = {
    "event": "start",
    "sequenceNumber": "1",
    "streamSid": "MZ1",
    "start": {
        "callSid": "CA1",
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
    },
}


def media(payload: str = "////", sid: str = "MZ1", timestamp: str = "0") -> str:
    details = {"track": "inbound", "timestamp": timestamp, "payload": payload}
    return json.dumps({"event": "media", "streamSid": sid, "media": details})


async def test_malformed_messages_do_not_harm_a_call() -> None:
    """Between malformed messages the caller is heard and answered as usual."""
    odd = [
        "no json at all",
        "[]",
        "{}",
        '{"event":"party"}',
        '{"event":"media"}',
        '{"event":"media","streamSid":"MZ1","media":{"payload":"!!","timestamp":"1"}}',
        '{"event":"media","streamSid":"MZother","media":{"payload":"////","timestamp":1}}',
        '{"event":"mark","streamSid":"MZ1","mark":{"name":"nobody"}}',
        json.dumps(START),
        "x" * 70_000,
        '{"event":"dtmf","streamSid":"MZ1","dtmf":{}}',
    ]
    async with bridge(Behaviour(turns=[[PlayRuler(500)]])) as place:
        script = [
            *map(steps.SendStep, odd),
            steps.SayStep(HELLO),
            LISTEN,
            steps.HangUpStep(),
        ]
        record = await place.caller().call(script)
        await place.empty()

    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert record.ended_by == "caller"
    assert place.metric('bridge_protocol_errors_total{side="caller"}') == len(odd)


async def test_malformed_events_of_the_model_do_not_harm_a_call() -> None:
    """Malformed events are counted; valid events are handled as usual."""
    rubbish: list[str | bytes] = [
        "no json",
        b"binary",
        '{"type":"response.output_audio.delta"}',
        '{"type":"response.output_audio.delta","response_id":"r","item_id":"i",'
        '"delta":"!!"}',
        '{"type":"something.new","event_id":"e"}',
        '{"no":"type"}',
    ]
    behaviour = Behaviour(turns=[[PlayRuler(500)]], garbage=rubbish)
    async with bridge(behaviour) as place:
        record = await place.caller().call(
            [steps.SayStep(HELLO), LISTEN, steps.HangUpStep()]
        )
        await place.empty()

    assert read_ruler(record.heard).heard_ms == {1: 500}
    assert place.metric('bridge_protocol_errors_total{side="model"}') == len(rubbish)


@asynccontextmanager
async def stream(place: RunningBridge) -> AsyncIterator[ClientConnection]:
    url = place.url.replace("http", "ws") + "/media"
    async with connect(url, compression=None, proxy=None) as socket:
        yield socket


async def closed(socket: ClientConnection) -> int | None:
    """The close code, within two seconds."""
    async with asyncio.timeout(2):
        try:
            while True:
                await socket.recv()
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else None


async def test_media_before_start() -> None:
    """Audio before `start` is ignored; the `start` behind it begins the call."""
    async with bridge(Behaviour(turns=[[PlayRuler(200)]]), greeting="Hi.") as place:
        async with stream(place) as socket:
            await socket.send('{"event":"connected","protocol":"Call"}')
            await socket.send(media())
            await socket.send(json.dumps(START))
            async with asyncio.timeout(3):
                message = json.loads(await socket.recv())
            await socket.send(STOP)
        await place.empty()

    assert message["event"] == "mark"
    assert place.metric('bridge_protocol_errors_total{side="caller"}') == 1


async def test_a_binary_message() -> None:
    """Twilio sends text only; a binary message is counted and ignored."""
    async with bridge() as place:
        async with stream(place) as socket:
            await socket.send(json.dumps(START))
            await socket.send(b"\x00\x01")
            await socket.send(STOP)
            assert await closed(socket) == 1000
        await place.empty()

    assert place.metric('bridge_protocol_errors_total{side="caller"}') == 1


@pytest.mark.both_loops
async def test_a_message_that_is_too_large() -> None:
    """The message is not read: the stream ends with the close code for the reason."""
    async with bridge() as place:
        async with stream(place) as socket:
            await socket.send(json.dumps(START))
            await socket.send("x" * 2_000_000)
            assert await closed(socket) == 1009
        await place.empty()

    outcome = 'bridge_calls_total{outcome="caller_protocol_error"}'
    assert place.metric(outcome) == 1
    assert place.metric('bridge_limit_hits_total{limit="message_bytes"}') == 1


async def test_another_encoding() -> None:
    """A stream that is not mu-law is ended before it starts a session."""
    async with bridge() as place:
        async with stream(place) as socket:
            start: dict[str, Any] = json.loads(json.dumps(START))
            start["start"]["mediaFormat"]["encoding"] = "audio/l16"
            await socket.send(json.dumps(start))
            await closed(socket)
        await place.empty()

    assert place.model.sessions == []


# --- admission ---


CALL = "CA" + "1" * 32
FORM = {
    "AccountSid": "AC" + "0" * 32,
    "CallSid": CALL,
    "From": "+15551230001",
    "To": "+15557650002",
}


async def _post(url: str, form: dict[str, str], **headers: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=form, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def test_only_twilios_requests_are_accepted() -> None:
    """Unsigned or wrongly signed requests get no TwiML and start no session."""
    signer = RequestValidator(TOKEN)
    account = "AC" + "0" * 32
    form = {**FORM, "AccountSid": account}
    signature = signer.compute_signature(f"{PUBLIC}/voice", form)
    async with bridge(public_url=PUBLIC, twilio_auth_token=TOKEN) as place:
        good = await _post(
            f"{place.url}/voice", form, **{"X-Twilio-Signature": signature}
        )
        unsigned = await _post(f"{place.url}/voice", form)
        changed = await _post(
            f"{place.url}/voice",
            {**form, "From": "+1666"},
            **{"X-Twilio-Signature": signature},
        )
        with pytest.raises(Exception, match="403"):
            async with stream(place):
                pass

    assert good[0] == 200
    path = f"/media/{account}/{CALL}/"
    assert f'url="{PUBLIC.replace("https", "wss")}{path}' in good[1]
    assert f'action="{PUBLIC}/voice/next?once=' in good[1]
    assert (unsigned[0], changed[0]) == (403, 403)
    assert place.model.sessions == []


async def test_a_signed_call() -> None:
    """With the right token a call is accepted, webhook and handshake signed."""
    async with bridge(
        Behaviour(turns=[[PlayRuler(300)]]), public_url=PUBLIC, twilio_auth_token=TOKEN
    ) as place:
        caller = place.caller(auth_token=TOKEN, signed_origin=PUBLIC)
        record = await caller.call([steps.SayStep(HELLO), LISTEN, steps.HangUpStep()])

    assert read_ruler(record.heard).heard_ms == {1: 300}


async def test_a_body_that_is_not_a_form() -> None:
    """A body that Twilio would not send is refused with the status for it."""
    async with bridge() as place, aiohttp.ClientSession() as session:
        for body, kind, status in (
            (b"a=1", "text/plain", 415),
            (b"a=1", "multipart/form-data", 415),
            (b'{"CallSid": 1', "application/json", 400),
            (b'["CallSid"]', "application/json", 400),
            (b'{"CallSid": "\\ud800"}', "application/json", 400),
            (b'{"CallSid": null}', "application/json", 400),
            (b"CallSid=%ff", "application/x-www-form-urlencoded", 400),
            (b"From=1", "application/x-www-form-urlencoded", 400),
        ):
            headers = {"Content-Type": kind}
            url = f"{place.url}/voice"
            async with session.post(url, data=body, headers=headers) as answer:
                assert answer.status == status, body
        async with session.get(f"{place.url}/media") as answer:
            assert answer.status == 400


async def test_one_call_too_many() -> None:
    """The caller hears that all lines are busy; the WebSocket handshake gets 503, for
    the load balancer."""
    async with bridge(Behaviour(turns=[[PlayRuler(500)]]), max_calls=1) as place:
        async with stream(place) as socket:
            await socket.send(json.dumps(START))
            record = await place.caller().call([steps.WaitStep(1)])
            with pytest.raises(Exception, match="503"):
                async with stream(place):
                    pass
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{place.url}/readyz") as answer,
            ):
                assert answer.status == 503
                assert await answer.json() == {"status": "full", "calls": 1}
            await socket.send(STOP)
        await place.empty()

    assert record.said_by_twilio == [spoken_texts.BUSY]


async def test_health_and_metrics() -> None:
    """An operator's probes find the process alive and ready, and read its metrics."""
    async with bridge() as place, aiohttp.ClientSession() as session:
        for path in ("/healthz", "/readyz"):
            async with session.get(place.url + path) as answer:
                assert answer.status == 200
        async with session.get(f"{place.url}/metrics") as answer:
            text = await answer.text()
        status = await _post(
            f"{place.url}/stream-status",
            {**FORM, "StreamEvent": "stream-error", "StreamSid": "MZ" + "1" * 32},
        )
        done = await _post(
            f"{place.url}/call-status", {**FORM, "CallStatus": "completed"}
        )

    assert "bridge_calls_active 0.0" in text
    assert (status[0], done[0]) == (204, 204)


async def test_a_caller_with_an_endless_address() -> None:
    """A SIP address that is too long for a parameter is left out; the call is
    accepted."""
    async with bridge() as place:
        address = "sip:" + "x" * 600
        status, text = await _post(
            f"{place.url}/voice", {**FORM, "From": address, "Caller": address}
        )
        odd = await _post(
            f"{place.url}/voice", {**FORM, "From": "a\x00b", "Caller": "a\x00b"}
        )

    assert (status, odd[0]) == (200, 200)
    assert "sip:" not in text and "+15557650002" in text


async def test_a_form_that_is_not_text() -> None:
    """Bytes that are not text are refused with the status for it, signed or not."""
    kind = {"Content-Type": "application/x-www-form-urlencoded; charset=foo"}
    async with bridge() as place, aiohttp.ClientSession() as session:
        url = f"{place.url}/voice"
        async with session.post(url, data=b"a=%ff", headers=kind) as answer:
            assert answer.status == 400


async def test_the_next_step_of_an_unknown_call() -> None:
    """A caller whose call is unknown to the bridge hears a sentence."""
    async with bridge() as place:
        status, text = await _post(f"{place.url}/voice/next", FORM)

    assert status == 200
    assert spoken_texts.SORRY in text
