"""The frames that the fakes write and read themselves are those of RFC 6455."""

import asyncio
import os
from random import Random

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from bridge.sim.model import ModelServer
from bridge.sim.twilio.writing import text_frame
from tests.support.waiting import until

APPEND = '{"type":"input_audio_buffer.append","audio":"////"}'
CLEAR = '{"type":"input_audio_buffer.clear"}'


def parsed(data: bytes) -> list[Frame]:
    server = ServerProtocol(state=State.OPEN, max_size=None)
    server.receive_data(data)
    events = server.events_received()
    assert server.parser_exc is None
    return [event for event in events if isinstance(event, Frame)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 125, 126, 127, 390, 65535, 65536])
def test_a_server_reads_what_the_fake_phone_writes(size: int) -> None:
    text = ("äbc" + "x" * size)[: max(0, size - 1)]
    frame = parsed(text_frame(text))[0]
    assert (frame.opcode, frame.fin) == (Opcode.TEXT, True)
    assert bytes(frame.data).decode() == text


def test_the_mask_of_a_frame_is_its_own() -> None:
    """A server that does not remove the mask must fail with the fake, as with
    Twilio."""
    frames = {text_frame("x" * 300) for _ in range(20)}
    assert len(frames) > 10
    assert not [frame for frame in frames if b"xxxx" in frame]


def frame_of(opcode: Opcode, data: bytes, fin: bool = True, mask: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=mask)


@pytest.mark.parametrize("seed", range(5))
async def test_messages_keep_their_order_however_they_arrive(seed: int) -> None:
    """Most are taken in the callback; fragments and pings take another way."""
    random = Random(seed)
    sent: list[str] = []
    data = b""
    for _ in range(200):
        text = random.choice([APPEND, APPEND, APPEND, CLEAR])
        sent.append(text)
        if seed % 2 and random.random() < 0.05:
            cut = random.randint(1, len(text) - 1)
            data += frame_of(Opcode.TEXT, text[:cut].encode(), fin=False)
            data += frame_of(Opcode.PING, b"hello")
            data += frame_of(Opcode.CONT, text[cut:].encode())
        else:
            data += frame_of(Opcode.TEXT, text.encode())
        if random.random() < 0.05:
            data += frame_of(Opcode.PING, b"hello")
    seen: list[str] = []

    def note(_: object, way: str, event: dict[str, object]) -> None:
        if way == "received":
            seen.append(APPEND if "audio" in event else CLEAR)

    async with (
        ModelServer(on_event=note) as model,  # type: ignore[arg-type]
        connect(model.url, compression=None, max_queue=None) as client,
    ):
        while data:
            piece = random.randint(1, 400)
            client.transport.write(data[:piece])
            data = data[piece:]
            await asyncio.sleep(0)
        await until(lambda: len(seen) == len(sent))
        assert seen == sent
        await asyncio.wait_for(await client.ping(), 5)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame_of(Opcode.TEXT, b"\xff\xfe"), 1007),
        (frame_of(Opcode.TEXT, b"{}", mask=False), 1002),
        (b"\xf1\x82" + os.urandom(4) + b"xx", 1002),
    ],
    ids=["not UTF-8", "not masked", "reserved bits"],
)
async def test_a_broken_frame_closes_the_connection_as_ever(
    data: bytes, code: int
) -> None:
    """A bridge that sends such a frame must not pass the tests with this fake."""
    async with (
        ModelServer() as model,
        connect(model.url, compression=None) as client,
    ):
        client.transport.write(frame_of(Opcode.TEXT, APPEND.encode()) + data)
        with pytest.raises(ConnectionClosedError) as closed:
            while True:
                await asyncio.wait_for(client.recv(), 5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == code


async def test_a_long_message_is_taken_whole() -> None:
    """15 MiB of base64 in one append, which no short frame holds."""
    audio = "/" * 4 * 100_000
    async with (
        ModelServer() as model,
        connect(model.url, compression=None, max_size=None) as client,
    ):
        await client.send(APPEND)
        await client.send(APPEND.replace("////", audio))
        await client.send(APPEND)
        await until(lambda: model.sessions[0].appends == 3)
        assert model.sessions[0].audio_in_bytes == 3 * 100_000 + 6
