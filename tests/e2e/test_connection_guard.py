"""Requests that are slow, malformed, forged or late."""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr
from twilio.request_validator import (  # type: ignore[import-untyped]
    RequestValidator,
)
from websockets.asyncio.client import ClientConnection, connect

from bridge.agent.events import CallEvent
from bridge.agent.live import LiveCall
from bridge.app.routes import Route, Routes
from bridge.app.settings import Settings
from bridge.app.startup import UserCode, start_services
from bridge.http.api import client
from bridge.http.server import Server
from bridge.sim.model import Behaviour, ModelServer, SayText
from bridge.sim.realtime.calls import CallsServer
from bridge.sim.realtime.phone_call import PhoneCall, SipCallState
from bridge.sim.twilio import rest, steps
from tests.e2e.bridge import AGENT, RunningBridge, bridge
from tests.e2e.test_outbound import (
    ACCOUNT,
    CALLEE,
    LISTEN,
    OURS,
    PUBLIC,
    SECRET,
    TOKEN,
    phones,
)

SID = "CA" + "1" * 32
CALL = {"AccountSid": ACCOUNT, "CallSid": SID, "From": CALLEE, "To": OURS}
PATHS = ["/voice", "/voice/next", "/call-status", "/openai/webhook"]
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


async def ask(
    place: RunningBridge, head: bytes, body: bytes, *, leave: bool = False
) -> str:
    """The first line of the answer to a request that is sent as raw bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", place.server.port)
    try:
        writer.write(head + b"\r\n" + body)
        await writer.drain()
        if leave:
            return ""
        async with asyncio.timeout(5):
            return (await reader.readline()).decode().strip()
    finally:
        writer.close()
        await writer.wait_closed()


def post(path: str, length: int, *more: bytes) -> bytes:
    start = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
    return start.encode() + FORM + b"".join(more)


@asynccontextmanager
async def listening(**conf: Any) -> AsyncIterator[RunningBridge]:
    """A bridge that accepts calls from Twilio and from OpenAI."""
    secret = SecretStr("whsec_" + "c2VjcmV0" * 4)
    async with bridge(
        openai_webhook_secret=secret, openai_api_key=SecretStr("sk-sim"), **conf
    ) as place:
        yield place


async def signed(place: RunningBridge, path: str, **form: str) -> str:
    """The answer to a request that Twilio has signed."""
    form = {"AccountSid": ACCOUNT, **form}
    signature = RequestValidator(SECRET).compute_signature(PUBLIC + path, form)
    headers = {"X-Twilio-Signature": signature}
    async with (
        aiohttp.ClientSession() as http,
        http.post(place.url + path, data=form, headers=headers) as answer,
    ):
        assert answer.status == 200
        return await answer.text()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.both_loops
async def test_a_body_that_does_not_arrive(path: str) -> None:
    """A client that starts a request and never ends it does not keep its connection for
    ever."""
    async with listening(body_seconds=0.2) as place:
        assert "408" in await ask(place, post(path, 100), b"From=")

    assert place.metric('bridge_limit_hits_total{limit="body_slow"}') == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.both_loops
async def test_a_body_that_is_too_large(path: str) -> None:
    """It is refused before it is stored, so that a client cannot fill the memory."""
    async with listening(body_bytes=5000) as place:
        assert "413" in await ask(place, post(path, 6000), b"a" * 6000)

    assert place.metric('bridge_limit_hits_total{limit="body_bytes"}') == 1


async def test_a_form_of_thousands_of_fields() -> None:
    """Parsing and sorting them would let a stranger keep the bridge busy."""
    body = b"&".join(b"%x=" % number for number in range(5000))
    async with listening() as place:
        assert "400" in await ask(place, post("/voice", len(body)), body)


@pytest.mark.parametrize("path", PATHS)
async def test_a_malformed_body(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused, and no client can fill the log with errors."""
    async with listening() as place:
        with caplog.at_level(logging.INFO):
            await ask(place, post(path, 100), b"From=", leave=True)
            packed = post(path, 9, b"Content-Encoding: gzip\r\n")
            answer = await ask(place, packed, b"no gzip, ")
            assert answer.split()[1] in ("400", "401")  # never decompressed
            await asyncio.sleep(0.1)  # until the unfinished request is closed

    # aiohttp logs what it cannot parse. A request that reached us is no error.
    lines = [it for it in caplog.records if "handling request" in it.getMessage()]
    kinds = {it.exc_info[0] for it in lines if it.exc_info}
    assert not kinds & {ConnectionResetError, web.RequestPayloadError}


@pytest.mark.parametrize(
    "header",
    [
        {"Host": "["},
        {"Host": "a b"},
        {"X-Forwarded-Proto": "ftp"},
        {"X-Forwarded-Host": "a/b?c"},
        {"X-Forwarded-Host": '"><Say>'},
    ],
)
async def test_a_malformed_host_header(header: dict[str, str]) -> None:
    """In development the Host header, or that of a trusted proxy, gives the public URL,
    so a malformed one is refused."""
    proxies = (ipaddress.ip_network("127.0.0.1"),)
    async with (
        bridge(trusted_proxies=proxies) as place,
        aiohttp.ClientSession(headers=header) as http,
        http.post(f"{place.url}/voice", data=CALL) as answer,
    ):
        assert answer.status in (400, 403)


async def test_an_outbound_call_whose_order_has_expired() -> None:
    """The callee is not greeted as a caller, because the purpose of the call is
    unknown."""
    async with phones(Behaviour(), rest.Unreached("busy")) as (place, _):
        document = await signed(
            place, "/voice?order=void", CallSid=SID, From=OURS, To=CALLEE
        )

    assert "<Hangup" in document
    assert "<Stream" not in document


async def test_an_outbound_call_to_a_full_bridge() -> None:
    """The callee does not hear that all lines are busy: the call is hung up."""
    answers = rest.Answers(script=[LISTEN, steps.HangUpStep()], after=0.5)
    async with phones(Behaviour(), answers, max_calls=1) as (place, twilio):
        sid = await client.place_call(place.url, TOKEN, {"to": CALLEE})
        place.server._services.capacity.draining = True
        with pytest.raises(client.ApiError, match=r"no more calls .* draining"):
            await client.place_call(place.url, TOKEN, {"to": CALLEE})
        async with asyncio.timeout(10):
            await twilio.calls[sid].over.wait()

    record = twilio.calls[sid].record
    assert record is not None
    assert record.said_by_twilio == []
    assert len(twilio.calls) == 1


@asynccontextmanager
async def with_sip(
    on_call: Callable[[LiveCall], None] | None = None, **conf: Any
) -> AsyncIterator[tuple[Server, CallsServer]]:
    """A bridge that gets its calls from OpenAI."""
    async with (
        ModelServer(Behaviour(turns=[[SayText("Hello.")]]), api_key="sk-sim") as model,
        CallsServer(model) as calls,
    ):

        async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
            # The fake API and the fake model listen on two ports.
            query = urlsplit(url).query
            return await connect(f"{model.url}?{query}", additional_headers=headers)

        settings = Settings(
            host="127.0.0.1",
            port=0,
            insecure=True,
            openai_api_key=SecretStr("sk-sim"),
            openai_webhook_secret=SecretStr(calls.secret),
            **conf,
        )
        url = f"ws{calls.url.removeprefix('http')}/realtime"
        routes = Routes(defaults=Route(on_call="told" if on_call else None))
        functions = {"told": on_call} if on_call else {}
        user_code = UserCode(AGENT, routes, functions=functions, connect=dial)
        async with start_services(settings, user_code, url) as services:
            running = Server(settings, services)
            await running.start()
            try:
                yield running, calls
            finally:
                await running.close()


async def ring(running: Server, calls: CallsServer) -> PhoneCall:
    """A SIP call in which both sides talk."""
    call = await calls.ring(f"http://127.0.0.1:{running.port}/openai/webhook")
    async with asyncio.timeout(5):
        await call.until(SipCallState.TALKING)
    return call


async def test_a_whole_sip_call() -> None:
    """Its events reach listeners and metrics, and neither fails."""
    said = asyncio.Event()

    async def heard(event: CallEvent) -> None:
        said.set()

    def on_call(live: LiveCall) -> None:
        live.on(heard, "said")

    async with with_sip(on_call) as (running, calls):
        call = await ring(running, calls)
        async with asyncio.timeout(5):
            await said.wait()
        assert call.state is SipCallState.TALKING
        call.hang_up()
        async with asyncio.timeout(5):
            await running.close(5)
        ended = running.metrics.registry.get_sample_value(
            "bridge_calls_total", {"outcome": "caller_hung_up"}
        )

    assert ended == 1


async def test_stopping_waits_for_sip_calls() -> None:
    """A bridge that is stopped lets a SIP call end by itself, too."""
    async with with_sip() as (running, calls):
        call = await ring(running, calls)
        async with asyncio.timeout(4), asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(running.close(30))
            await asyncio.sleep(0.5)
            assert (call.state, stopping.done()) == (SipCallState.TALKING, False)
            call.hang_up()


async def test_stopping_does_not_wait_for_ever() -> None:
    """A SIP call that is still running after the drain time is hung up."""
    async with with_sip() as (running, calls):
        call = await ring(running, calls)
        async with asyncio.timeout(2):
            await running.close(0.3)
            await call.until(SipCallState.ENDED)


async def test_stopping_waits_for_the_hang_up_of_a_sip_call() -> None:
    """OpenAI does not answer the first request. The process ends after the second, so
    that no call goes on and costs money."""
    async with with_sip() as (running, calls):
        call = await ring(running, calls)
        calls.stall["hangup"] = 1
        await running.close(0.1)
        assert call.state is SipCallState.ENDED
