"""A caller's stream whose peer reads nothing: the bridge closes it, and the call
continues on the stream that Twilio opens next.

The peer is a TCP client with small buffers that stops reading. It may go on sending, so
no ping of the bridge finds out.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import aiohttp
import pytest

from bridge.call.media_leg import MediaLeg
from bridge.http import phone_socket
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.twilio import messages
from tests.bench.hostile_clients import (
    ESTABLISHED,
    SHAPES,
    TEXT,
    HostileClient,
    Target,
    frame,
    media,
    open_stream,
)
from tests.e2e.bridge import RunningBridge, bridge
from tests.e2e.test_back_again import asks_next, first_sound, hang_up, stream
from tests.support.waiting import until

pytestmark = pytest.mark.both_loops

TOKEN = "t" * 32
TALKATIVE = Behaviour(fallback=[PlayRuler(60_000)], think_seconds=0.05, speed=200)
"""A minute of audio, sent at once: 640 kB, more than small buffers of the kernel and
those of the connection hold."""


@asynccontextmanager
async def stuck_call(
    send_seconds: float = 0.3,
) -> AsyncIterator[tuple[RunningBridge, HostileClient]]:
    """A call whose peer sends like Twilio, and reads nothing but the handshake."""
    async with bridge(
        TALKATIVE, greeting="Go.", api_token=TOKEN, send_seconds=send_seconds
    ) as place:
        listener = place.server._guard._server
        assert listener is not None
        listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        client = await open_stream(Target(place.server.port), small_buffers=True)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            async with asyncio.TaskGroup() as tasks:
                talking = tasks.create_task(talk(client), name="caller")
                try:
                    yield place, client
                finally:
                    talking.cancel()
        finally:
            client.disconnect()


async def talk(client: HostileClient) -> None:
    with contextlib.suppress(ConnectionError):
        for number in range(10_000):
            await client.write(media(client, number))
            await asyncio.sleep(0.02)


def is_open(client: HostileClient) -> bool:
    """Whether the connection is open for the client's kernel; nothing is read."""
    if client.writer.transport.is_closing():
        return False
    line = client.writer.get_extra_info("socket")
    state = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return bool(state == ESTABLISHED)


def descriptors(port: int) -> int:
    """The connections of the bridge's port for which this process has a descriptor,
    also those that the kernel knows as closed."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(f":{port:04X}")}
    listens = {row[9] for row in rows if row[3] == "0A"}
    names = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(each))
    return sum(f"socket:[{inode}]" in names for inode in inodes - listens - {"0"})


async def calls_of_api(place: RunningBridge) -> list[str]:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        http.get(f"{place.url}/api/calls") as answer,
    ):
        assert answer.status == 200
        return [it["call_sid"] for it in (await answer.json())["calls"]]


async def resumes(place: RunningBridge, client: HostileClient) -> None:
    """Twilio asks for the next step, opens another stream, and the call goes on there,
    in the same session of the model."""
    assert "<Stream" in await asks_next(place, client.call_sid)
    async with stream(place, "MZ2", client.call_sid) as newer:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
            http.post(
                f"{place.url}/api/calls/{client.call_sid}/text",
                json={"text": "Say something."},
            ) as answer,
        ):
            assert answer.status < 300, await answer.text()
        assert await first_sound(newer) == "MZ2"
        assert len(place.model.sessions) == place.model.active == 1
        await hang_up(newer, "MZ2")
    await place.empty()
    assert place.metric('bridge_calls_total{outcome="caller_hung_up"}') == 1


async def is_stuck(client: HostileClient, place: RunningBridge) -> None:
    """Waits until the stream's connection takes nothing more."""

    def waiting() -> bool:
        call = place.server.call(client.call_sid)
        leg = call and call._leg
        stream = leg._stream if isinstance(leg, MediaLeg) else None
        return bool(stream and stream._socket.is_paused)

    await until(waiting, 5, "a stuck writer")


@pytest.mark.parametrize("limit", ["time", "size"])
async def test_a_phone_that_reads_nothing(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is closed within the limit of sending and a second, so that Twilio
    asks for the next step while the call still waits for it."""
    if limit == "size":
        monkeypatch.setattr(phone_socket, "MAX_UNSENT_BYTES", 100_000)
    async with stuck_call(0.3 if limit == "time" else 30) as (place, client):
        await until(lambda: place.metric('bridge_limit_hits_total{limit="phone_slow"}'))
        began = monotonic()
        await until(lambda: not is_open(client), 5, "closing the stuck stream")
        assert monotonic() - began < 2
        await until(lambda: not descriptors(place.server.port), 1, "its descriptor")

        assert place.metric("bridge_calls_active") == 1
        assert await calls_of_api(place) == [client.call_sid]
        assert place.model.active == 1
        await resumes(place, client)


async def test_a_newer_stream_takes_over_from_a_stuck_one() -> None:
    """The older stream is closed, although its peer does not read the close."""
    async with stuck_call(send_seconds=30) as (place, client):
        await is_stuck(client, place)
        async with stream(place, "MZ2", client.call_sid) as newer:
            await until(lambda: not is_open(client), 3, "closing the stuck stream")
            await until(lambda: descriptors(place.server.port) == 1, 1, "a descriptor")
            assert place.metric("bridge_calls_active") == 1
            await hang_up(newer, "MZ2")
        await place.empty()


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("stop", "caller_hung_up"),
        ("no UTF-8", "caller_protocol_error"),
        ("cancel", "bridge_failed"),
        ("end", "bridge_shutdown"),
    ],
)
async def test_a_call_with_a_stuck_stream_ends(what: str, outcome: str) -> None:
    """Nothing of it is left, whatever ends it: the caller, a message that breaks the
    protocol, or the bridge."""
    async with stuck_call(send_seconds=30) as (place, client):
        await is_stuck(client, place)
        call = place.server.call(client.call_sid)
        assert call is not None
        if what == "stop":
            sids = (client.target.account, client.call_sid, client.stream_sid)
            await client.write(frame(TEXT, messages.stop(9, *sids).encode()))
        elif what == "cancel":
            [task] = [
                task
                for task in asyncio.all_tasks()
                if "RequestHandler.start" in task.get_coro().__qualname__  # type: ignore[union-attr]
            ]
            task.cancel()
        elif what == "end":
            call.end("shutdown")
        else:
            await client.write(SHAPES[what])
        await until(lambda: not is_open(client), 3, "closing the stuck stream")
        await until(lambda: not descriptors(place.server.port), 1, "its descriptor")
        await place.empty()
        ended = f'bridge_calls_total{{outcome="{outcome}"}}'
        assert place.metric(ended) == 1
