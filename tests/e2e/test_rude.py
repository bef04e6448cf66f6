"""Clients that break the rules of WebSocket and HTTP: the answer to each.

The clients are those of tests/bench/attacks.py, which starts them by the hundred.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bridge.http import server
from bridge.sim.model import Behaviour, PlayRuler
from bridge.sim.ruler import read_ruler
from bridge.sim.twilio import messages, steps
from tests.bench import hostile_clients
from tests.bench.hostile_clients import (
    CONTINUED,
    HEAD,
    PING,
    PONG,
    SHAPES,
    TEXT,
    HostileClient,
    Target,
    frame,
    open_stream,
)
from tests.e2e.bridge import RunningBridge, bridge

pytestmark = pytest.mark.both_loops

GREETED = Behaviour(turns=[[PlayRuler(500)]], think_seconds=0.05)
GOOD: list[steps.Step] = [
    steps.ListenStep(quiet_seconds=0.3, timeout=8),
    steps.HangUpStep(),
]

BORNE = {"an empty frame"}
"""Not what Twilio sends, but valid."""

CLOSED_WITH = {
    **dict.fromkeys(SHAPES, "close 1002"),  # protocol error
    "no UTF-8": "close 1007",
    "half a character": "close 1007",
    "close, no UTF-8": "close 1007",
    "close, then more": "close 1000",  # the code that the client sent
    **{it: "close 1009" for it in SHAPES if it.startswith(hostile_clients.LARGE)},
    **dict.fromkeys(BORNE, "close 1000"),  # after their `stop`
}


@asynccontextmanager
async def visited() -> AsyncIterator[tuple[RunningBridge, Target]]:
    async with bridge(GREETED, greeting="Hi.", max_calls=100) as place:
        yield place, Target(place.server.port)


async def ending(client: HostileClient, *said: bytes) -> str:
    """The answer to a client that sends `said`, within two seconds."""
    try:
        await client.write(b"".join(said))
        async with asyncio.timeout(2):
            return await client.ending()
    finally:
        client.disconnect()


def stop_of(client: HostileClient) -> bytes:
    sids = (client.target.account, client.call_sid, client.stream_sid)
    return messages.stop(9, *sids).encode()


def stop(client: HostileClient) -> bytes:
    return frame(TEXT, stop_of(client))


async def test_malformed_frames() -> None:
    """Each ends its own stream with the close code for the reason; another call is
    greeted as usual, and nothing of the client is left."""

    async def break_a_frame(target: Target, what: str) -> str:
        client = await open_stream(target)
        # Without a `stop` the bridge would wait for the caller's return.
        polite = what in BORNE or what == "close, then more"
        last = [stop(client)] if polite else []
        said = [SHAPES[what], *last] if what in BORNE else [*last, SHAPES[what]]
        return await ending(client, *said)

    async with visited() as (place, target):
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call(GOOD))
            got = {it: tasks.create_task(break_a_frame(target, it)) for it in SHAPES}
        await place.empty()
        broken = place.metric('bridge_calls_total{outcome="caller_protocol_error"}')
        too_large = place.metric('bridge_limit_hits_total{limit="message_bytes"}')

    assert {what: task.result() for what, task in got.items()} == CLOSED_WITH
    assert read_ruler(call.result().heard).heard_ms == {1: 500}
    codes = list(CLOSED_WITH.values())
    assert broken == len(codes) - codes.count("close 1000")
    assert too_large >= codes.count("close 1009")


async def test_a_message_in_single_bytes() -> None:
    """A client that sends a `stop` with one byte per frame, and pings in between, is
    understood."""
    async with visited() as (place, target):
        client = await open_stream(target)
        text = stop_of(client)
        pieces = [
            frame(CONTINUED if at else TEXT, text[at : at + 1], fin=False)
            + frame(PING, b"?") * (at % 4 == 0)
            for at in range(len(text))
        ]
        assert await ending(client, *pieces, frame(CONTINUED)) == "close 1000"
        await place.empty()
        hung_up = place.metric('bridge_calls_total{outcome="caller_hung_up"}')

    assert hung_up == 1


@pytest.mark.parametrize("kind", [PING, PONG])
async def test_pings_by_the_thousand(kind: int) -> None:
    """Twilio never does that: the client's call is ended, and another call
    continues."""
    async with visited() as (place, target):
        client = await open_stream(target)
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(place.caller().call(GOOD))
            end = tasks.create_task(ending(client, frame(kind) * 20_000, stop(client)))
        await place.empty()

    assert end.result() == "close 1000"
    assert read_ruler(call.result().heard).heard_ms == {1: 500}
    assert place.metric('bridge_limit_hits_total{limit="message_rate"}') == 1
    assert place.metric('bridge_calls_total{outcome="caller_protocol_error"}') == 1


async def test_a_message_without_end() -> None:
    """Fragments that never end are stored up to the size limit of a message, no
    further."""
    async with visited() as (place, target):
        client = await open_stream(target)
        first = frame(TEXT, b"{", fin=False)
        more = frame(CONTINUED, bytes(16 * 1024), fin=False)
        assert await ending(client, first, more * 100) == "close 1009"
        await place.empty()


async def test_request_smuggling() -> None:
    """If the end of a request is ambiguous, there is one answer: 400. What is hidden
    behind it is never handled as a request."""
    async with visited() as (place, target):
        got = {}
        for what, data in hostile_clients.smuggling():
            got[what] = await ending(await HostileClient.connect(target), data)
        call = await place.caller().call(GOOD)
        await place.empty()

    assert got == dict.fromkeys(hostile_clients.SMUGGLED, "400")
    assert read_ruler(call.heard).heard_ms == {1: 500}


async def test_connections_that_are_reset() -> None:
    """Wherever a connection breaks before there is a call, nothing of it is left."""
    async with visited() as (place, target):
        for _ in range(5):
            for said in (
                b"",
                HEAD,
                hostile_clients.webhook(
                    target, hostile_clients.call_form(target, hostile_clients.new_sid())
                ),
            ):
                client = await HostileClient.connect(target)
                await client.write(said)
                client.disconnect(reset=True)
            for wait in (0.0, 0.02):
                client = await hostile_clients.upgrade_and_reset(wait)(target)
                client.disconnect(reset=True)
            client = await open_stream(target, start=False)
            await client.write(frame(TEXT, b"{", declared=200))
            client.disconnect(reset=True)
        call = await place.caller().call(GOOD)
        await place.empty()

    assert read_ruler(call.heard).heard_ms == {1: 500}


async def test_a_client_that_does_not_read_pongs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that sends pings, reads no answers and leaves has lost its connection:
    this is no error of ours."""
    monkeypatch.setattr(server, "SHUTDOWN_SECONDS", 0.1)
    async with visited() as (place, target):
        client = await open_stream(target, small_buffers=True)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(frame(PING, bytes(125)) * 60_000)
        await asyncio.sleep(0.5)  # more than the kernel's buffers hold
        client.disconnect(reset=True)
        await asyncio.sleep(0.1)
        failed = place.metric('bridge_calls_total{outcome="bridge_failed"}')

    assert failed == 0
