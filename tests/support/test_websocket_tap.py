"""The relay that changes no byte, and the report of what a gateway changes."""

import json

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from bridge.sim.caller import CallRecord
from tests.bench.gateway_programs import GATEWAYS
from tests.bench.gateways import Call, changes
from tests.support.websocket_tap import Tap, tapped


async def test_what_both_sides_have_sent() -> None:
    """Texts of each length form, pings, fragments and the close code."""
    texts = ["short", "x" * 300, "y" * 70_000]

    async def echo(socket: ServerConnection) -> None:
        async for text in socket:
            await socket.send(text)

    async with (
        serve(echo, "127.0.0.1", 0, compression=None) as server,
        tapped(next(iter(server.sockets)).getsockname()[1]) as tap,
    ):
        async with connect(f"ws://127.0.0.1:{tap.port}/a", compression=None) as socket:
            await (await socket.ping())
            for text in texts:
                await socket.send(text)
                assert await socket.recv() == text
            await socket.send(["in ", "pieces"])
            assert await socket.recv() == "in pieces"
        [connection] = tap.connections

    client, server_side = connection.client_sent(), connection.server_sent()
    assert client.head.startswith("GET /a ") and " 101 " in server_side.head
    assert client.texts == server_side.texts == [*texts, "in pieces"]
    assert client.control["ping"] == server_side.control["pong"] == 1
    assert client.control["fragments"] > 0
    assert client.close_code == 1000


async def test_changes_of_a_gateway_are_reported() -> None:
    """A gateway that drops, adds and changes events; audio is not compared."""
    created = {"type": "session.created", "event_id": "1"}
    done = {"type": "response.done", "event_id": "2"}
    update = {"type": "session.update", "session": {"model": "alias"}}
    audio = {"type": "input_audio_buffer.append", "audio": "AA=="}

    async def gateway(socket: ServerConnection) -> None:
        await socket.send(json.dumps({"type": "error"}))
        await socket.send(json.dumps(done))
        await socket.wait_closed()

    async with (
        serve(gateway, "127.0.0.1", 0, compression=None) as server,
        tapped(next(iter(server.sockets)).getsockname()[1]) as tap,
    ):
        async with connect(f"ws://127.0.0.1:{tap.port}", compression=None) as socket:
            for event in (update, audio):
                await socket.send(json.dumps(event))
            assert [await socket.recv(), await socket.recv()]
        call = _call(tap)

    call.sent = [created, done]
    call.received = [{**update, "session": {"model": "other"}}]
    assert [it for it in changes(call) if not it.startswith("frames")] == [
        "to the model: session.update changed (1)",
        "to the bridge: error added (1)",
        "to the bridge: session.created dropped (1)",
    ]


def _call(tap: Tap) -> Call:
    call = Call(GATEWAYS[0], CallRecord("CA1", 0.0), [], tap, [])
    first = tap.connections[0]
    call.tapped_bytes = len(first.client), len(first.server)
    return call
