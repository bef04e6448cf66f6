"""A call whose snapshot was written by a newer version, in an unknown format."""

import aiohttp
import pytest
from structlog.testing import capture_logs

from bridge.fleet.formats import FORMAT
from bridge.sim.model import Behaviour, PlayRuler
from tests.e2e.bridge import RunningBridge, bridge
from tests.e2e.test_back_again import first_sound, hang_up, stream

ACCOUNT, SID = "AC" + "0" * 32, "CA" + "6" * 32
QUICK = Behaviour(fallback=[PlayRuler(200)], think_seconds=0.05, speed=20)
NEWER = b'{"format":%d,"stream_count":1,"agent_name":"Booking"}' % (FORMAT + 1)


async def asks_next(place: RunningBridge, **more: str) -> str:
    numbers = {"From": "+14155550177", "To": "+14155550100"}
    form = {"AccountSid": ACCOUNT, "CallSid": SID, **numbers, **more}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{place.url}/voice/next", data=form) as answer,
    ):
        assert answer.status == 200
        return await answer.text()


@pytest.mark.parametrize("more", [{}, {"DialCallStatus": "no-answer"}])
async def test_a_call_of_a_newer_version_continues(more: dict[str, str]) -> None:
    """Its stream was lost, or its transfer was not answered: the caller gets a new
    stream, which knows both numbers, and an agent that greets. Until that agent has
    something to store, the snapshot stays as the newer version has written it."""
    async with bridge(QUICK, greeting="Go.") as place:
        registry = place.server.registry
        await registry.put(f"snapshot:{SID}", NEWER, 60.0)
        with capture_logs() as logs:
            document = await asks_next(place, **more)
        assert "<Stream" in document and "+14155550177" in document
        assert await registry.get(f"snapshot:{SID}") == NEWER
        unreadable = [it for it in logs if it["event"] == "format_unreadable"]
        assert [(it["kind"], it["format"]) for it in unreadable] == [
            ("CallSnapshot", FORMAT + 1)
        ]

        async with stream(place, "MZ2", SID) as socket:
            assert await first_sound(socket) == "MZ2"
            await hang_up(socket, "MZ2")
        await place.empty()
