"""The whole topology with real processes: HAProxy, Redis and two bridges."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from bridge.sim.caller import Caller, CallRecord
from bridge.sim.model import Behaviour, ModelServer, Ruled
from bridge.sim.twilio import steps
from scripts.fleet import Bridge, Fleet, missing
from tests.deploy.test_figures import BALANCER_FIGURES

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"not here: {', '.join(missing())}"
)

BEAT_SECONDS = 2.2
"""After so long each instance has heard of the other."""

SHORT: steps.Script = [steps.Listen(quiet_seconds=0.1), steps.HangUp()]
LONG: steps.Script = [steps.Wait(3.0), steps.HangUp()]


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
    behaviour = Behaviour(fallback=[Ruled(200)])
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
