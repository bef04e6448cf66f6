"""A caller whose stream broke returns to the agent, whatever state the instance is in.

The tests open streams by hand: Twilio may ask before the bridge notices the loss, or
connect twice.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.protocol import State

from bridge.fleet.formats import FORMAT
from bridge.fleet.memory import MemoryRegistry
from bridge.fleet.snapshot import CallSnapshot
from bridge.http.attempts import RESUMED_SECONDS
from bridge.http.webhooks import MAX_RESUMES
from bridge.sim.model import Behaviour, PlayRuler
from tests.e2e.bridge import RunningBridge, bridge
from tests.fleet.conftest import Clock
from tests.support.waiting import until
from twiml import spoken_texts

ACCOUNT, SID = "AC" + "0" * 32, "CA" + "4" * 32
QUICK = Behaviour(fallback=[PlayRuler(200)], think_seconds=0.05, speed=20)


@asynccontextmanager
async def stream(
    place: RunningBridge, name: str, call_sid: str = SID
) -> AsyncIterator[ClientConnection]:
    """Twilio's stream of a call; it breaks off at the end of the block."""
    url = place.url.replace("http", "ws") + "/media"
    async with connect(url, compression=None, proxy=None, close_timeout=0.5) as socket:
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"callSid": call_sid, "mediaFormat": form}
        await socket.send(
            json.dumps({"event": "start", "streamSid": name, "start": start})
        )
        yield socket


async def asks_next(place: RunningBridge, call_sid: str = SID) -> str:
    """What Twilio is told to do after the end of a stream."""
    numbers = {"From": "+14155550177", "To": "+14155550100"}
    form = {"AccountSid": ACCOUNT, "CallSid": call_sid, **numbers}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{place.url}/voice/next", data=form) as answer,
    ):
        assert answer.status == 200
        return await answer.text()


async def first_sound(socket: ClientConnection) -> str:
    """The name of the stream on which the agent is heard."""
    async with asyncio.timeout(3):
        while True:
            message = json.loads(await socket.recv())
            if message["event"] == "media":
                return str(message["streamSid"])


async def hang_up(socket: ClientConnection, name: str) -> None:
    await socket.send(json.dumps({"event": "stop", "streamSid": name}))


async def last_open(sockets: list[ClientConnection]) -> int:
    """The index of the one socket that is open after all others were closed."""
    await until(lambda: sum(it.state is State.OPEN for it in sockets) == 1)
    return next(at for at, it in enumerate(sockets) if it.state is State.OPEN)


def registry(place: RunningBridge) -> MemoryRegistry:
    known = place.server._services.registry
    assert isinstance(known, MemoryRegistry)
    return known


@pytest.mark.parametrize("max_calls", [9, 1])
async def test_twilio_asks_before_the_bridge_notices_the_loss(max_calls: int) -> None:
    """For the bridge the old stream is still open: the caller hears no apology, and the
    new stream is accepted although the instance is full."""
    async with bridge(QUICK, greeting="Go.", max_calls=max_calls) as place:
        async with stream(place, "MZ1") as old:
            await first_sound(old)

            document = await asks_next(place)

            assert "<Stream" in document, "an alive call was given up"
            async with stream(place, "MZ2") as new:
                assert await first_sound(new) == "MZ2"
                assert place.server.calls == place.model.active == 1
                async with asyncio.timeout(2):
                    await old.wait_closed()
                await hang_up(new, "MZ2")
        await place.empty()
        assert len(place.model.sessions) == 1, "the agent forgot the caller"


async def test_reserved_capacity_is_not_given_to_another_call() -> None:
    """A new call to a full instance that expects a caller back is refused."""
    other = "CA" + "5" * 32
    async with bridge(QUICK, greeting="Go.", max_calls=1) as place:
        async with stream(place, "MZ1") as old:
            await first_sound(old)
            with pytest.raises(InvalidStatus, match="503"):
                async with stream(place, "MZ9", other):
                    pass
            await asks_next(place)
            async with stream(place, "MZ9", other) as stranger:
                async with asyncio.timeout(2):
                    await stranger.wait_closed()
            assert await place.server.registered() == [SID]
            await hang_up(old, "MZ1")
        await place.empty()


async def test_a_stream_breaks_while_an_instance_drains_alone() -> None:
    """No other instance could resume the call: the caller returns here, to the same
    session, and the instance ends when the caller has hung up."""
    async with bridge(QUICK, greeting="Go.") as place:
        async with asyncio.TaskGroup() as tasks, stream(place, "MZ1") as old:
            await first_sound(old)
            closing = tasks.create_task(place.server.close(5.0))
            await until(lambda: place.server._services.capacity.draining)
            old.transport.abort()
            await until(
                lambda: any(call.awaits_new_stream for call in place.server._calls)
            )

            assert "<Stream" in await asks_next(place)
            async with stream(place, "MZ2") as new:
                assert await first_sound(new) == "MZ2"
                assert place.server.calls == 1 and not closing.done()
                await hang_up(new, "MZ2")
            async with asyncio.timeout(2):
                await closing
        assert len(place.model.sessions) == 1
        await place.empty()


async def test_streams_that_break_far_apart() -> None:
    """If each new stream breaks at once, the call ends after some attempts. A call of
    hours whose stream breaks now and then is resumed each time."""
    async with bridge(QUICK) as place:
        clock, stored = Clock(), registry(place)
        stored._now = clock
        await stored.put(
            f"snapshot:{SID}", CallSnapshot(stream_count=1).encoded(FORMAT), 9999.0
        )

        quick = [await asks_next(place) for _ in range(MAX_RESUMES + 1)]
        clock.pass_on(RESUMED_SECONDS + 1)
        slow = []
        for _ in range(MAX_RESUMES + 1):
            slow.append(await asks_next(place))
            clock.pass_on(RESUMED_SECONDS + 1)

    assert ["<Stream" in it for it in quick] == [True] * MAX_RESUMES + [False]
    assert spoken_texts.SORRY in quick[-1]
    assert all("<Stream" in it for it in slow), "a good call was given up"
    assert RESUMED_SECONDS <= 120


async def test_streams_of_one_call_at_once() -> None:
    """Twilio connects again before the first stream is there: the caller hears one
    agent."""
    async with bridge(QUICK, greeting="Go.") as place:
        for n, count in enumerate((2, 3, 2)):
            sid, names = f"CA{n:032}", [f"MZ{n}{i}" for i in range(count)]
            async with AsyncExitStack() as open_ones:
                opening = (stream(place, name, sid) for name in names)
                sockets = await asyncio.gather(
                    *(open_ones.enter_async_context(it) for it in opening)
                )
                await until(lambda: place.model.active)
                assert place.server.calls == 1, "two agents speak at once"
                at = await last_open(sockets)
                assert await first_sound(sockets[at]) == names[at]
                await hang_up(sockets[at], names[at])
            await place.empty()
        assert len(place.model.sessions) == 3


@pytest.mark.parametrize("stored", [b"\xff", b"many", b"-9", b"9" * 5000])
async def test_a_count_that_no_bridge_has_stored(stored: bytes) -> None:
    """Another program has written under our names: Twilio gets its answer, and the call
    goes on."""
    async with bridge(QUICK, greeting="Go.") as place:
        await registry(place).put(
            f"snapshot:{SID}", CallSnapshot(stream_count=1).encoded(FORMAT), 60.0
        )
        await registry(place).put(f"resume_count:{SID}", stored, 60.0)

        assert "<Stream" in await asks_next(place)


async def test_a_snapshot_that_cannot_be_read() -> None:
    """Another version of the bridge has stored it: the call starts anew, with a
    greeting."""
    async with bridge(QUICK, greeting="Go.") as place:
        unreadable = b'{"history":[{"id":"1","kind":"a_new_kind"}],"streams":1}'
        await registry(place).put(f"snapshot:{SID}", unreadable, 60.0)

        assert "<Stream" in await asks_next(place)
        async with stream(place, "MZ1") as socket:
            assert await first_sound(socket) == "MZ1"
            await hang_up(socket, "MZ1")
        await place.empty()
