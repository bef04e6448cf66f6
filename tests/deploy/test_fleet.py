"""The whole topology with real processes: HAProxy, Redis and two bridges."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import aiohttp
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from bridge.sim.caller import Caller, CallRecord
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from bridge.sim.twilio import steps
from scripts.fleet import Bridge, Fleet
from tests.deploy.test_figures import BALANCER_FIGURES

BEAT_SECONDS = 2.2
"""After so long each instance has heard of the other."""

SHORT: steps.Script = [steps.ListenStep(quiet_seconds=0.1), steps.HangUpStep()]
LONG: steps.Script = [steps.WaitStep(3.0), steps.HangUpStep()]


async def call(fleet: Fleet, script: steps.Script = SHORT) -> CallRecord:
    return await Caller(webhook_url=fleet.voice_url).call(script)


async def calls_of(bridge: Bridge) -> int:
    async with aiohttp.ClientSession() as http, http.get(f"{bridge.url}/healthz") as it:
        found: int = (await it.json())["calls"]
        return found


async def busy(fleet: Fleet, *counts: int) -> None:
    """Waits until the bridges have so many calls, fewest first."""
    async with asyncio.timeout(5):
        while True:
            if sorted([await calls_of(it) for it in fleet.bridges]) == list(counts):
                return
            await asyncio.sleep(0.05)


async def test_calls_find_a_line_whatever_happens_to_instances(tmp_path: Path) -> None:
    """Two instances with a line each: callers find the free one, hear that all lines
    are busy, and do not notice that an instance died."""
    behaviour = Behaviour(fallback=[PlayRuler(200)])
    async with (
        ModelServer(behaviour) as model,
        Fleet(2, model_url=model.url, max_calls=1, folder=tmp_path) as fleet,
    ):
        await asyncio.sleep(BEAT_SECONDS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call(fleet, LONG), name="holds the line")
            await busy(fleet, 0, 1)
            second = await call(fleet)
            assert greeted(second), "the free line was not found"

            tasks.create_task(call(fleet, LONG), name="holds the other line")
            await busy(fleet, 1, 1)
            third = await call(fleet)
            assert third.said_by_twilio and not third.heard, "a full house was silent"
        await busy(fleet, 0, 0)

        await fleet.bridges[0].kill()
        fourth = await call(fleet)
        assert greeted(fourth), "the caller noticed that an instance had died"

        async with aiohttp.ClientSession() as http:
            async with http.get(fleet.balancer_metrics_url) as answer:
                told = await answer.text()
            async with http.get(f"{fleet.url}/metrics") as answer:
                assert answer.status == 404, "figures are open to the world"
        assert await fleet.bridges[1].terminate() == 0
    assert all(f"\n{name}{{" in told for name in BALANCER_FIGURES)


def greeted(record: CallRecord) -> bool:
    return bool(record.heard) and record.ended_by == "caller"


async def test_a_ticket_is_good_on_any_instance_and_on_one(tmp_path: Path) -> None:
    """Signed as Twilio signs, through the balancer: each call's webhook and stream may
    be at different instances; a handshake that is played again gets nothing at any."""
    secure = {
        "BRIDGE_INSECURE": "",
        "BRIDGE_PUBLIC_URL": PUBLIC,
        "TWILIO_AUTH_TOKEN": TOKEN,
    }
    behaviour = Behaviour(fallback=[PlayRuler(200)])
    async with (
        ModelServer(behaviour) as model,
        Fleet(2, model_url=model.url, folder=tmp_path, env=secure) as fleet,
    ):
        await asyncio.sleep(BEAT_SECONDS)
        signing = {"auth_token": TOKEN, "signed_origin": PUBLIC}
        for _ in range(4):
            caller = Caller(webhook_url=fleet.voice_url, **signing)
            assert greeted(await caller.call(SHORT)), "a signed call was turned away"

        path = await stream_path(fleet.voice_url)
        where = [urlsplit(it.url).port for it in fleet.bridges]
        first = await asyncio.gather(*(handshake(port, path) for port in where))
        again = [await handshake(port, path) for port in where]
        assert sorted(first) == [101, 403], "one ticket let two streams in"
        assert again == [403, 403], "a used ticket let a stream in"


PUBLIC, TOKEN = "https://bridge.example", "0123456789abcdef0123456789abcdef"


async def stream_path(voice_url: str) -> str:
    form = {"AccountSid": "AC" + "1" * 32, "CallSid": "CA" + "1" * 32}
    signature = RequestValidator(TOKEN).compute_signature(f"{PUBLIC}/voice", form)
    headers = {"X-Twilio-Signature": signature}
    async with (
        aiohttp.ClientSession() as http,
        http.post(voice_url, data=form, headers=headers) as answer,
    ):
        stream = ElementTree.fromstring(await answer.text()).find(".//Stream")
    assert stream is not None
    return urlsplit(stream.attrib["url"]).path


async def handshake(port: int | None, path: str) -> int:
    """The status that a stream's handshake at this instance is answered with."""
    url = PUBLIC.replace("https", "wss") + path
    signature = RequestValidator(TOKEN).compute_signature(url, {})
    headers = {"X-Twilio-Signature": signature}
    try:
        async with connect(
            f"ws://127.0.0.1:{port}{path}", additional_headers=headers, proxy=None
        ):
            return 101
    except InvalidStatus as error:
        return error.response.status_code
