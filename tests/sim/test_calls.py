"""The fake of OpenAI's Calls API, tested with OpenAI's own client and types."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InvalidWebhookSignatureError,
    NotFoundError,
    OpenAI,
)
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from bridge.sim.model import Behaviour, ModelServer, SayText
from bridge.sim.realtime.calls import CallsServer, incoming
from bridge.sim.realtime.phone_call import PhoneCall, SipCallState
from tests.sim.realtime_client import QUICK, Client, speech

LONG = "This is a long answer which goes on and on, so that there is time to interrupt."
BODY: dict[str, Any] = {
    "type": "realtime",
    "model": "gpt-realtime-2.1",
    "instructions": "Be kind.",
    "audio": {"input": {"turn_detection": {"type": "server_vad"}}},
}


class Webhook:
    """A server that receives OpenAI's webhooks."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.deliveries.append((dict(request.headers), await request.read()))
        return web.Response()


class Servers:
    def __init__(self, model: ModelServer, calls: CallsServer, hook: Webhook) -> None:
        self.model, self.calls, self.hook = model, calls, hook

    async def ring(self, **how: Any) -> PhoneCall:
        return await self.calls.ring(self.hook.url, **how)

    @asynccontextmanager
    async def client(self, key: str = "sk-sim") -> AsyncIterator[AsyncOpenAI]:
        async with AsyncOpenAI(
            api_key=key, base_url=self.calls.url, max_retries=0, timeout=5
        ) as client:
            yield client

    @asynccontextmanager
    async def attached(self, call: PhoneCall) -> AsyncIterator[Client]:
        """The control socket of a call that is accepted here."""
        async with self.client() as client:
            await client.realtime.calls.accept(call.id, **BODY)
        async with Client.of(self.model, f"?call_id={call.id}") as socket:
            await socket.until("session.created")
            yield socket


@asynccontextmanager
async def servers(
    behaviour: Behaviour | None = None, **how: Any
) -> AsyncIterator[Servers]:
    hook = Webhook()
    app = web.Application()
    app.router.add_post("/openai/webhook", hook.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/openai/webhook"
    try:
        async with (
            ModelServer(behaviour or Behaviour(**QUICK)) as model,
            CallsServer(model, **how) as calls,
        ):
            yield Servers(model, calls, hook)
    finally:
        await runner.cleanup()


# --- the webhook


async def test_the_openai_package_accepts_the_webhook() -> None:
    """The `openai` package accepts the fake's signature."""
    async with servers() as here:
        call = await here.ring(caller="+14155550123")
        headers, body = here.hook.deliveries[0]
        client = OpenAI(api_key="x", webhook_secret=here.calls.secret)
        event = client.webhooks.unwrap(body, headers)

        assert event.type == "realtime.call.incoming"
        assert event.data.call_id == call.id
        assert event.data.sip_headers[0].name == "From"
        assert "+14155550123" in event.data.sip_headers[0].value
        assert call.answers == [200]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"age": 330.0}, InvalidWebhookSignatureError),
        ({"age": -330.0}, InvalidWebhookSignatureError),
        ({"secret": "whsec_b3RoZXI="}, InvalidWebhookSignatureError),
        ({"without": ["webhook-signature"]}, ValueError),
        ({"without": ["webhook-id"]}, ValueError),
    ],
)
async def test_the_openai_package_refuses_invalid_deliveries(
    how: dict[str, Any], error: type[Exception]
) -> None:
    """The `openai` package refuses old, early, forged and unsigned deliveries."""
    async with servers() as here:
        await here.ring(**how)
        headers, body = here.hook.deliveries[0]
        client = OpenAI(api_key="x", webhook_secret=here.calls.secret)

        with pytest.raises(error):
            client.webhooks.unwrap(body, headers)


async def test_a_second_delivery_has_the_same_id() -> None:
    """At-least-once delivery: the webhook-id identifies the second delivery."""
    async with servers() as here:
        call = await here.ring(copies=2)
        first, second = here.hook.deliveries

        assert first[0]["webhook-id"] == second[0]["webhook-id"]
        assert first[1] == second[1]
        assert call.answers == [200, 200]


# --- the API


async def test_a_call_is_accepted_once() -> None:
    """The control socket's session starts with the accept request's settings."""
    async with servers() as here, here.client() as client:
        call = await here.ring()
        await client.realtime.calls.accept(call.id, **BODY)

        assert call.state is SipCallState.TALKING
        with pytest.raises(BadRequestError) as again:
            await client.realtime.calls.accept(call.id, **BODY)
        assert again.value.code == "call_already_accepted"
        with pytest.raises(BadRequestError):
            await client.realtime.calls.reject(call.id)
        async with Client.of(here.model, f"?call_id={call.id}") as socket:
            session = (await socket.until("session.created"))["session"]
        assert session["instructions"] == "Be kind."
        assert session["audio"]["input"]["format"] == {"type": "audio/pcmu"}


@pytest.mark.parametrize(
    "name", ["threshold", "prefix_padding_ms", "silence_duration_ms"]
)
async def test_an_accept_takes_no_thresholds(name: str) -> None:
    """As with the real server, a SIP call refuses settings that a stream may have."""
    detection = {"type": "server_vad", name: 0}
    body = BODY | {"audio": {"input": {"turn_detection": detection}}}
    async with servers() as here, here.client() as client:
        call = await here.ring()
        with pytest.raises(BadRequestError) as refused:
            await client.realtime.calls.accept(call.id, **body)

        assert refused.value.param == f"audio.input.turn_detection.{name}"
        assert call.state is SipCallState.RINGING


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"voice": "marin"}, "voice"),
        ({"audio": {"output": {"voice": "nobody"}}}, "audio.output.voice"),
        ({"type": "transcription"}, "type"),
        (
            {"audio": {"output": {"format": {"type": "audio/pcmu"}}}},
            "audio.output.format",
        ),
    ],
)
async def test_an_accept_is_as_strict_as_an_update(
    change: dict[str, Any], param: str
) -> None:
    """A wrong field is refused with its path."""
    async with servers() as here, here.client() as client:
        call = await here.ring()
        with pytest.raises(BadRequestError) as refused:
            await client.realtime.calls.accept(
                call.id, type="realtime", extra_body=BODY | change
            )

        assert refused.value.param == param


async def test_unknown_calls_and_wrong_keys_are_refused() -> None:
    """404 call_id_not_found and 401 invalid_api_key, as from the real API."""
    async with servers() as here:
        async with here.client() as client:
            for request in (
                client.realtime.calls.accept("rtc_no", **BODY),
                client.realtime.calls.reject("rtc_no"),
                client.realtime.calls.refer("rtc_no", target_uri="tel:+14155550199"),
                client.realtime.calls.hangup("rtc_no"),
            ):
                with pytest.raises(NotFoundError) as gone:
                    await request
                assert gone.value.code == "call_id_not_found"
        async with here.client("sk-other") as client:
            with pytest.raises(AuthenticationError) as refused:
                await client.realtime.calls.hangup("rtc_no")
            assert refused.value.code == "invalid_api_key"


async def test_a_rejected_call_is_over() -> None:
    """The caller gets the rejection's SIP status; an invalid status is refused."""
    async with servers() as here, here.client() as client:
        call = await here.ring()
        with pytest.raises(BadRequestError):
            await client.realtime.calls.reject(call.id, status_code=200)
        await client.realtime.calls.reject(call.id, status_code=486)

        assert (call.state, call.sip_status) == (SipCallState.REJECTED, 486)
        with pytest.raises(NotFoundError):
            await client.realtime.calls.accept(call.id, **BODY)


async def test_only_an_accepted_call_is_referred_or_ended() -> None:
    """REFER and BYE need an established dialog."""
    async with servers() as here, here.client() as client:
        calls = client.realtime.calls
        call = await here.ring()
        with pytest.raises(BadRequestError):
            await calls.hangup(call.id)
        await calls.accept(call.id, **BODY)
        with pytest.raises(BadRequestError) as refused:
            await calls.refer(call.id, target_uri="+14155550199")
        assert refused.value.param == "target_uri"
        await calls.refer(call.id, target_uri="tel:+14155550199")

        assert (call.state, call.target) == (SipCallState.REFERRED, "tel:+14155550199")


async def test_scripted_failures() -> None:
    """`fail` and `lose` make any request fail."""
    async with servers(fail={"accept": 500}) as here, here.client() as client:
        call = await here.ring()
        with pytest.raises(APIStatusError) as failed:
            await client.realtime.calls.accept(call.id, **BODY)

        assert failed.value.status_code == 500
        assert [verb for verb, _ in here.calls.requests] == ["accept"]


# --- the control socket


async def test_a_socket_needs_an_accepted_call() -> None:
    """Before the accept the handshake gets 404; with `late`, also for a moment after
    it."""
    async with servers(late=1) as here, here.client() as client:
        call = await here.ring()
        url = f"{here.model.url}?call_id="
        for call_id in ("rtc_no", call.id):
            with pytest.raises(InvalidStatus) as early:
                await connect(url + call_id)
            body = json.loads(early.value.response.body or b"")
            assert early.value.response.status_code == 404
            assert body["error"]["code"] == "call_id_not_found"
        await client.realtime.calls.accept(call.id, **BODY)
        with pytest.raises(InvalidStatus):
            await connect(url + call.id)
        async with connect(url + call.id):
            assert call.attached == 1


async def test_audio_is_played_by_the_server() -> None:
    """No audio passes the socket; the output buffer's events tell when it was heard."""
    async with servers(Behaviour(turns=[[SayText("Hello there.")]], **QUICK)) as here:
        async with here.attached(await here.ring()) as client:
            asked = time.monotonic()
            await client.send(type="response.create")
            started = await client.until("output_audio_buffer.started")
            done = await client.until("response.done")
            stopped = await client.until("output_audio_buffer.stopped")

        seconds = sum(len(it[2]) for it in here.model.sessions[0].sent_deltas) / 8000
        assert done["response"]["id"] == started["response_id"]
        assert stopped["response_id"] == started["response_id"]
        assert "response.output_audio.delta" not in client.types()
        assert "response.output_audio_transcript.delta" in client.types()
        assert client.at[-1] - asked >= seconds, "it is stopped before it was played"


async def test_a_caller_who_speaks_clears_the_buffer() -> None:
    """The server itself truncates items at what was heard."""
    async with servers(Behaviour(turns=[[SayText(LONG)]], **QUICK)) as here:
        call = await here.ring()
        async with here.attached(call) as client:
            await client.send(type="response.create")
            await client.until("response.done")
            call.say(speech())
            cleared = await client.until("output_audio_buffer.cleared")
            truncated = await client.until("conversation.item.truncated")

        item = here.model.sessions[0].items[truncated["item_id"]]
        assert cleared["response_id"] == item.response_id
        assert truncated["audio_end_ms"] == item.truncated_ms
        assert truncated["audio_end_ms"] < item.sent_ms
        assert item.text == ""


async def test_the_client_clears_the_buffer() -> None:
    """After cancel and clear the caller hears nothing, whatever was generated."""
    async with servers(Behaviour(turns=[[SayText(LONG)]], speed=2.0)) as here:
        async with here.attached(await here.ring()) as client:
            await client.send(type="response.create")
            await client.until("output_audio_buffer.started")
            await client.send(type="response.cancel")
            await client.send(type="output_audio_buffer.clear")
            await client.until("output_audio_buffer.cleared")
            error = await client.refused(type="output_audio_buffer.clear", extra=1)

        assert error["code"] == "unknown_parameter"
        assert here.model.sessions[0].responses[0].status == "cancelled"


async def test_a_stream_has_no_output_buffer() -> None:
    """The event exists only for sessions whose audio the server plays."""
    async with servers() as here, Client.of(here.model) as client:
        await client.until("session.created")
        error = await client.refused(type="output_audio_buffer.clear")

    assert error["code"] == "invalid_value"


async def test_no_format_is_changed_on_a_call() -> None:
    """The line has its format: a PCM session would be noise for the caller."""
    async with servers() as here, here.attached(await here.ring()) as client:
        audio = {"output": {"format": {"type": "audio/pcm", "rate": 24000}}}
        session = {"type": "realtime", "audio": audio}
        error = await client.refused(type="session.update", session=session)

    assert error["param"] == "session.audio.output.format"


async def test_a_key_is_an_event() -> None:
    """As in OpenAI's type, the event has no event_id."""
    async with servers() as here:
        call = await here.ring()
        async with here.attached(call) as client:
            call.press("5")
            event = json.loads(await client.socket.recv())

    assert event["type"] == "input_audio_buffer.dtmf_event_received"
    assert event["event"] == "5" and "event_id" not in event


@pytest.mark.parametrize("who", ["caller", "api"])
async def test_the_end_of_a_call_breaks_the_socket(who: str) -> None:
    """The socket is lost without a close frame, whichever side hangs up."""
    async with servers() as here:
        call = await here.ring()
        async with here.attached(call) as client, here.client() as api:
            if who == "caller":
                call.hang_up()
            else:
                await api.realtime.calls.hangup(call.id)
            async with asyncio.timeout(5):
                await call.until(SipCallState.ENDED)
                with pytest.raises(ConnectionClosedError) as lost:
                    await client.socket.recv()

        assert lost.value.rcvd is None
        assert call.ended_by == who


def test_the_event_has_the_headers_of_the_invite() -> None:
    """The headers of a SIP trunk are passed on; usual headers can be replaced."""
    call = PhoneCall("rtc_1", "+14155550123", "+14155550100", late=0)
    event = incoming(call, {"X-Campaign": "spring", "From": "<sip:a@b>"})
    headers = {it["name"]: it["value"] for it in event["data"]["sip_headers"]}

    assert headers["X-Campaign"] == "spring"
    assert headers["From"] == "<sip:a@b>"
