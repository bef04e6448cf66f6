"""The whole topology with real processes: HAProxy, Redis and two bridges."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import aiohttp
import pytest
from twilio.request_validator import RequestValidator
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from bridge.sim.caller import Caller, CallRecord
from bridge.sim.model import Behaviour, ModelServer, PlayRuler
from bridge.sim.twilio import steps
from scripts.fleet import Bridge, Fleet
from tests.deploy.test_figures import BALANCER_FIGURES

pytestmark = pytest.mark.slow

BEAT_SECONDS = 2.2
"""After this time each instance knows the other instance."""

SHORT: steps.Script = [steps.ListenStep(quiet_seconds=0.1), steps.HangUpStep()]
LONG: steps.Script = [steps.WaitStep(60.0), steps.HangUpStep()]
"""Holds a line until the test cancels the call."""


PUBLIC, TOKEN = "https://bridge.example", "0123456789abcdef0123456789abcdef"


async def call(fleet: Fleet, script: steps.Script = SHORT) -> CallRecord:
    caller = Caller(webhook_url=fleet.voice_url, auth_token=TOKEN, signed_origin=PUBLIC)
    return await caller.call(script)


async def calls_of(bridge: Bridge) -> int:
    async with aiohttp.ClientSession() as http, http.get(f"{bridge.url}/healthz") as it:
        found: int = (await it.json())["calls"]
        return found


async def busy(fleet: Fleet, *counts: int) -> None:
    """Waits until the bridges have these numbers of calls, in ascending order."""
    async with asyncio.timeout(60):
        while True:
            if sorted([await calls_of(it) for it in fleet.bridges]) == list(counts):
                return
            await asyncio.sleep(0.05)


async def test_signed_calls_of_a_fleet(tmp_path: Path) -> None:
    """Two instances with a capacity of two calls each. In one test, because the start
    of a fleet takes seven seconds of CPU."""
    secure = {
        "BRIDGE_INSECURE": "",
        "BRIDGE_PUBLIC_URL": PUBLIC,
        "TWILIO_AUTH_TOKEN": TOKEN,
    }
    behaviour = Behaviour(fallback=[PlayRuler(200)])
    async with (
        ModelServer(behaviour) as model,
        Fleet(
            2, model_url=model.url, max_calls=2, folder=tmp_path, env=secure
        ) as fleet,
    ):
        await asyncio.sleep(BEAT_SECONDS)
        await callers_find_the_free_line_or_hear_that_all_are_busy(fleet)
        await a_ticket_is_valid_once_in_the_whole_fleet(fleet)
        await callers_do_not_notice_a_dead_instance(fleet)


async def callers_find_the_free_line_or_hear_that_all_are_busy(fleet: Fleet) -> None:
    async with asyncio.TaskGroup() as tasks:
        held = [tasks.create_task(call(fleet, LONG)) for _ in range(3)]
        await busy(fleet, 1, 2)
        assert greeted(await call(fleet)), "the free line was not found"

        held.append(tasks.create_task(call(fleet, LONG)))
        await busy(fleet, 2, 2)
        refused = await call(fleet)
        assert refused.said_by_twilio and not refused.heard, (
            "a caller heard nothing while all lines were busy"
        )
        for line in held:
            line.cancel()
    await busy(fleet, 0, 0)


async def callers_do_not_notice_a_dead_instance(fleet: Fleet) -> None:
    await fleet.bridges[0].kill()
    assert greeted(await call(fleet)), "the caller noticed that an instance had died"

    async with aiohttp.ClientSession() as http:
        async with http.get(fleet.balancer_metrics_url) as answer:
            told = await answer.text()
        async with http.get(f"{fleet.url}/metrics") as answer:
            assert answer.status == 404, "figures are open to the world"
    assert await fleet.bridges[1].terminate() == 0
    assert all(f"\n{name}{{" in told for name in BALANCER_FIGURES)


def greeted(record: CallRecord) -> bool:
    return bool(record.heard) and record.ended_by == "caller"


async def a_ticket_is_valid_once_in_the_whole_fleet(fleet: Fleet) -> None:
    """The webhook and the stream of a call may reach different instances; a repeated
    handshake is refused at every instance."""
    for _ in range(4):
        assert greeted(await call(fleet)), "a signed call was turned away"

    path = await stream_path(fleet.voice_url)
    where = [urlsplit(it.url).port for it in fleet.bridges]
    first = await asyncio.gather(*(handshake(port, path) for port in where))
    again = [await handshake(port, path) for port in where]
    assert sorted(first) == [101, 403], "one ticket let two streams in"
    assert again == [403, 403], "a used ticket let a stream in"


async def stream_path(voice_url: str) -> str:
    form = {"AccountSid": "AC" + "1" * 32, "CallSid": "CA" + "1" * 32}
    form |= {"From": "+15551230001", "To": "+15557650002"}
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
    """The status of a stream's handshake at this instance."""
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
