"""The sockets of calls, compared with `websockets`' own reader of frames.

The bridge reads whole text frames itself. For any bytes, in any packets, its listener
must get the messages, and the end, that `websockets` alone would give.
"""

import asyncio
import itertools
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from bridge.websocket import frames
from bridge.websocket.closing import end_of
from bridge.websocket.direct_connection import (
    MAX_HELD,
    REST_FRAMES,
    DirectConnection,
    PhoneConnection,
)
from bridge.websocket.model_connections import ModelClientConnection, TaskConnection
from bridge.websocket.text_socket import SocketEnd, Why
from tests.support.waiting import until

pytestmark = pytest.mark.both_loops

MOST = 70_000
URI = parse_uri("ws://model/")


class Transport(asyncio.Transport):
    """Keeps what is written; its peer reads when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.unread = 0
        self.reading = True
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...
    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        assert self.reading, "asyncio has no second pause"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


class Listener:
    """Records what the socket calls."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def socket_message(self, text: str | bytes) -> None:
        self.got.append(text)

    def socket_ended(self, end: SocketEnd) -> None:
        self.got.append(end)

    def socket_resumed(self, seconds: float) -> None:
        self.got.append("resumed")

    def is_told(self) -> bool:
        """Of the end."""
        return any(isinstance(it, SocketEnd) for it in self.got)


def connection(masked: bool, **limits: Any) -> tuple[DirectConnection, Transport]:
    """An open socket of the phone (its frames are masked) or of the model."""
    made: DirectConnection
    if masked:
        made = PhoneConnection(ServerProtocol(state=OPEN, max_size=MOST))
    else:
        made = ModelClientConnection(ClientProtocol(URI, state=OPEN, max_size=MOST))
    given = {"stuck_seconds": 5.0, "max_unsent": 1000, "max_message": MOST} | limits
    made.set_limits(**given)
    made.response = object()  # type: ignore[assignment]
    transport = Transport()
    made.connection_made(transport)
    return made, transport


def expected(masked: bool, data: bytes) -> list[Any]:
    """The messages and the end that `websockets` alone finds in the data."""
    protocol = (
        ServerProtocol(state=OPEN, max_size=MOST)
        if masked
        else ClientProtocol(URI, state=OPEN, max_size=MOST)
    )
    protocol.receive_data(data)
    got: list[Any] = []
    parts: list[bytes] = []
    kind = Opcode.TEXT
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            kind = kind if event.opcode is Opcode.CONT else event.opcode
            parts.append(bytes(event.data))
            if event.fin:
                whole, parts = b"".join(parts), []
                if kind is Opcode.BINARY:
                    got.append(whole)
                    continue
                try:
                    got.append(whole.decode())
                except UnicodeDecodeError:
                    return [*got, SocketEnd(Why.BROKEN)]
    if protocol.state is not OPEN:
        got.append(end_of(protocol))
    return got


payloads = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(str.encode),
    st.sampled_from(
        [b"", b"x" * 125, b"x" * 126, b"y" * 65535, b"z" * 65536, b"w" * (MOST + 1)]
    ),
)
opcodes = st.sampled_from([Opcode.TEXT] * 6 + list(Opcode))


@st.composite
def streams(draw: st.DrawFn, masked: bool) -> bytes:
    """Frames of every kind, most of them valid, and sometimes garbage."""
    data = b""
    for _ in range(draw(st.integers(0, 6))):
        opcode, payload = draw(opcodes), draw(payloads)
        if opcode is Opcode.CLOSE:
            payload = Close(draw(st.sampled_from([1000, 1001, 1008])), "x").serialize()
        fin = draw(st.integers(0, 5)) > 0
        if opcode in (Opcode.CLOSE, Opcode.PING, Opcode.PONG):
            payload, fin = payload[:125], True
        mask = masked if draw(st.integers(0, 20)) else not masked
        data += Frame(opcode, payload, fin=fin).serialize(mask=mask)
    return data + draw(st.sampled_from([b""] * 5 + BROKEN))


BROKEN = [
    b"\xff\xff",
    b"\x81",
    b"\x81\xfe",
    b"\x09\x00",
    b"\x89\xfe\xff\xff",
    b"\xc1\x01x",
]
"""Frames that are incomplete, fragmented where they may not be, too long for their
kind, and compressed."""


@st.composite
def packets(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=8))
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


async def heard(masked: bool, parts: list[bytes], first: bool) -> list[Any]:
    """What the listener of a socket gets that receives these packets."""
    socket, _ = connection(masked)
    listener = Listener()
    if first:
        socket.listen(listener)
    for part in parts:
        socket.data_received(part)
        if not first:
            socket.listen(listener)
            first = True
    for _ in range(20):
        await asyncio.sleep(0)
    return listener.got


@pytest.mark.parametrize("masked", [True, False])
# Each stream starts an event loop: on a busy machine that takes long.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), first=st.booleans())
def test_any_bytes_in_any_packets_are_read_as_websockets_reads_them(
    masked: bool, data: st.DataObject, first: bool
) -> None:
    """No peer finds a message that only one of the two readers sees."""
    stream = data.draw(streams(masked))
    parts = data.draw(packets(stream))

    assert asyncio.run(heard(masked, parts, first)) == expected(masked, stream)


@given(text=st.text(max_size=200) | st.integers(0, 66_000).map(lambda n: "a" * n))
def test_frames_are_read_by_websockets(text: str) -> None:
    """The peer's own library reads what the bridge sends."""
    payload = text.encode()
    server = ServerProtocol(state=OPEN)
    server.receive_data(frames.client_frame(payload))
    client = ClientProtocol(URI, state=OPEN)
    client.receive_data(frames.server_frame(payload))

    for protocol in (server, client):
        [event] = protocol.events_received()
        assert isinstance(event, Frame)
        assert (event.opcode, bytes(event.data)) == (Opcode.TEXT, payload)


def test_masks_are_not_repeated() -> None:
    """Masks are random (RFC 6455, section 5.3), also when the pool is filled again."""
    masks = itertools.islice(frames.masks(4), 40)
    assert len(set(masks)) == 40


async def test_messages_without_a_listener_wait_and_reading_is_paused() -> None:
    """Messages that come between two listeners are not lost, and a peer that sends
    without end is made to wait."""
    socket, transport = connection(masked=True)
    for n in range(MAX_HELD):
        socket.data_received(client(str(n)))
    assert not transport.reading
    listener = Listener()
    socket.listen(listener, ["first"])
    assert listener.got == [], "the listener is called later"
    await until(lambda: transport.reading)

    assert listener.got == ["first", *map(str, range(MAX_HELD))]


async def test_a_burst_does_not_delay_other_calls() -> None:
    """A server that sends a hundred thousand events in one packet leaves turns of the
    event loop to the other calls."""
    socket, transport = connection(masked=False)
    listener = Listener()
    socket.listen(listener)
    socket.data_received(frames.server_frame(b"{}") * 100_000)
    assert not transport.reading
    turns = 0
    while len(listener.got) < 100_000:
        await asyncio.sleep(0)
        turns += 1

    assert turns > 5
    await until(lambda: transport.reading)


async def test_a_socket_that_is_left_calls_nobody() -> None:
    """Messages read ahead belong to a connection that was given up."""
    socket, _ = connection(masked=True)

    class Leaves(Listener):
        def socket_message(self, text: str | bytes) -> None:
            super().socket_message(text)
            socket.leave()

    listener = Leaves()
    socket.listen(listener)
    socket.data_received(client("one") + client("two"))
    socket.connection_lost(None)

    assert listener.got == ["one"]


async def test_what_arrived_before_a_reset_is_read() -> None:
    """Twilio's `stop` counts, although the connection was reset right behind it."""
    socket, _ = connection(masked=True)
    socket.data_received(client("one"))
    socket.data_received(client("stop") + b"\x81")
    socket.connection_lost(ConnectionResetError())
    listener = Listener()
    socket.listen(listener)
    await asyncio.sleep(0)

    end = SocketEnd(Why.LOST, CloseCode.ABNORMAL_CLOSURE)
    assert listener.got == ["one", "stop", end]


@pytest.mark.parametrize("sent", [REST_FRAMES, 100_000])
async def test_what_is_read_before_a_reset_is_bounded(sent: int) -> None:
    """The last messages of a phone are read, however slow the machine is; of a flood,
    only the first ones are."""
    socket, _ = connection(masked=True)
    socket.data_received(client("x") * sent)
    socket.connection_lost(ConnectionResetError())
    listener = Listener()
    socket.listen(listener)
    await until(listener.is_told)

    assert len(listener.got) == min(sent, MAX_HELD + REST_FRAMES) + 1


async def test_a_slow_peer_that_reads_is_not_stuck() -> None:
    """A caller on a bad network keeps the call as long as it takes something."""
    socket, transport = connection(masked=True, stuck_seconds=0.2)
    listener = Listener()
    socket.listen(listener)
    transport.unread = 100
    socket.pause_writing()
    for _ in range(30):
        await asyncio.sleep(0.01)
        transport.unread -= 1
    assert listener.got == []
    socket.resume_writing()
    await asyncio.sleep(0.25)
    assert listener.got == ["resumed"]


async def test_a_peer_that_reads_less_than_it_is_sent_is_not_stuck() -> None:
    """The agent speaks faster than a slow line carries it: what waits grows, although
    the caller's side reads all the time."""
    socket, transport = connection(masked=True, stuck_seconds=0.1, max_unsent=10**6)
    listener = Listener()
    socket.listen(listener)
    transport.unread = 1000
    socket.pause_writing()
    for _ in range(30):
        await asyncio.sleep(0.01)
        before = len(transport.written)
        socket.send_text("x" * 200)
        transport.unread += len(transport.written) - before - 100

    assert listener.got == []


async def test_a_slow_model_of_a_users_connector_is_not_stuck() -> None:
    """Two bursts, each read quickly, are no sign of a model that reads nothing."""
    model, transport = connection(masked=False)
    assert isinstance(model, ModelClientConnection)

    async with asyncio.TaskGroup() as tasks:
        socket = TaskConnection(model, lambda work, _: tasks.create_task(work))
        socket._watch._seconds = 0.2
        listener = Listener()
        socket.listen(listener)
        model.paused, transport.unread = True, 100
        socket.send_text("first burst")
        await asyncio.sleep(0.15)
        model.paused, transport.unread = False, 0
        socket.send_text("audio")
        model.paused, transport.unread = True, 200
        socket.send_text("second burst")
        await asyncio.sleep(0.1)
        assert listener.got == []
        socket.leave()
        model.connection_lost(None)


@pytest.mark.parametrize("how", ["time", "size"])
async def test_a_peer_that_reads_nothing_is_stuck(how: str) -> None:
    """It is noticed by time, and by the data that waits for it; once."""
    socket, transport = connection(masked=True, stuck_seconds=0.02)
    listener = Listener()
    socket.listen(listener)
    transport.unread = 900
    socket.pause_writing()
    if how == "size":
        socket.send_text("x" * 200)
        socket.send_text("x" * 200)
        assert transport.written == b""
    await until(lambda: listener.got)

    assert listener.got == [SocketEnd(Why.STUCK)]


@pytest.mark.parametrize("masked", [True, False])
async def test_messages_of_one_event_are_written_together(masked: bool) -> None:
    """A delta of the agent's audio becomes several messages; each write is a system
    call, and these are most of what a call costs."""
    socket, transport = connection(masked=masked)
    peer: Any = (
        ClientProtocol(URI, state=OPEN) if masked else ServerProtocol(state=OPEN)
    )
    texts = ["media " + "x" * 200, "mark", "", "ä" * 70_000]

    socket.send_text(*texts)

    assert transport.writes == 1
    peer.receive_data(transport.written)
    assert [str(frame.data, "utf-8") for frame in peer.events_received()] == texts


async def test_pings_are_answered_within_a_limit() -> None:
    """Pings cost the bridge an answer each, so a flood of them ends the stream."""
    socket, transport = connection(masked=True, pings_per_second=2.0)
    listener = Listener()
    socket.listen(listener)
    ping = Frame(Opcode.PING, b"!").serialize(mask=True)
    socket.data_received(ping)
    assert transport.written == Frame(Opcode.PONG, b"!").serialize(mask=False)
    for _ in range(40):
        socket.data_received(ping)

    assert listener.got == [SocketEnd(Why.TOO_MANY)]


def client(text: str) -> bytes:
    return frames.client_frame(text.encode())


def lengths() -> Iterator[bytes]:
    """Heads that announce more than any limit."""
    yield b"\x81" + bytes([0x80 | 127]) + struct.pack("!Q", 2**63 - 1)
    yield b"\x81" + bytes([0x80 | 127]) + struct.pack("!Q", 2**64 - 1)


@pytest.mark.parametrize("head", list(lengths()))
async def test_a_message_that_is_announced_as_huge_is_refused(head: bytes) -> None:
    """The bridge keeps no memory for it, and does not wait for it."""
    socket, _ = connection(masked=True)
    listener = Listener()
    socket.listen(listener)
    socket.data_received(head)
    socket.data_received(b"1234")
    [end] = listener.got
    assert end.why in (Why.TOO_LARGE, Why.BROKEN)


@pytest.mark.parametrize("masked", [True, False])
async def test_a_message_in_countless_frames_is_refused(masked: bool) -> None:
    """Empty frames of a message that never ends cost time and memory, and reach no
    limit of sizes or messages."""
    socket, _ = connection(masked)
    listener = Listener()
    socket.listen(listener)
    socket.data_received(Frame(Opcode.TEXT, b"{", fin=False).serialize(mask=masked))
    empty = Frame(Opcode.CONT, b"", fin=False).serialize(mask=masked)
    for _ in range(50):
        socket.data_received(empty * 100)
        await asyncio.sleep(0)

    assert listener.got == [SocketEnd(Why.TOO_MANY)]
    assert len(socket._parts) < 2000


async def test_a_closed_connection_with_a_message_that_waits_costs_nothing() -> None:
    """A spare connection that was closed waits for its listener without turns of the
    event loop, except the one that follows if the first look took too long."""
    socket, _ = connection(masked=False)
    close = Frame(Opcode.CLOSE, Close(1000, "").serialize()).serialize(mask=False)
    socket.data_received(frames.server_frame(b"{}"))
    socket.data_received(close)
    await until(lambda: not socket._delivering)
    socket.data_received(b"more")
    await until(lambda: not socket._delivering)

    listener = Listener()
    socket.listen(listener)
    await until(lambda: len(listener.got) == 2)
    assert listener.got == ["{}", SocketEnd(Why.CLOSED, 1000)]
