"""A relay for WebSocket connections that changes no byte, and what passed it.

Unlike a proxy that speaks WebSocket it does not answer pings, choose subprotocols or
join fragments: both sides see each other's bytes.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from websockets.frames import CTRL_OPCODES, Opcode, apply_mask

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Messages:
    """What one side sent on one connection."""

    head: str
    """Its HTTP request or response."""
    texts: list[str]
    control: Counter[str]
    """Its control frames by name, and "fragments"."""
    close_code: int | None


@dataclass(slots=True)
class TappedConnection:
    """The bytes of one connection so far."""

    client: bytearray = field(default_factory=bytearray)
    server: bytearray = field(default_factory=bytearray)

    def client_sent(self) -> Messages:
        return read_messages(bytes(self.client))

    def server_sent(self) -> Messages:
        return read_messages(bytes(self.server))


@dataclass(slots=True)
class Tap:
    port: int = 0
    connections: list[TappedConnection] = field(default_factory=list)


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[Tap]:
    """A relay to a port of this machine."""
    tap = Tap()
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = TappedConnection()
        tap.connections.append(connection)
        try:
            there, out = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(_pass_on(reader, out, connection.client))
            both.create_task(_pass_on(there, writer, connection.server))

    async with asyncio.TaskGroup() as tasks:

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            running.add(tasks.create_task(serve(reader, writer)))

        server = await asyncio.start_server(begin, "127.0.0.1")
        tap.port = server.sockets[0].getsockname()[1]
        try:
            yield tap
        finally:
            server.close()
            for task in running:
                task.cancel()


async def _pass_on(
    reader: asyncio.StreamReader, out: asyncio.StreamWriter, kept: bytearray
) -> None:
    try:
        while data := await reader.read(CHUNK_BYTES):
            kept += data
            out.write(data)
            await out.drain()
    except ConnectionError:
        return  # one side has closed
    finally:
        out.close()


def read_messages(sent: bytes) -> Messages:
    """Reads one side of a connection without compression. A frame that is not complete
    yet is left out."""
    head, _, _ = sent.partition(b"\r\n\r\n")
    messages = Messages(head.decode("latin-1"), [], Counter(), None)
    close_code, text = None, b""
    for opcode, last, payload in _frames(sent, len(head) + 4):
        if opcode in CTRL_OPCODES:
            messages.control[opcode.name.lower()] += 1
            if opcode is Opcode.CLOSE and len(payload) >= 2:
                close_code = int.from_bytes(payload[:2])
            continue
        text += payload
        if last:
            messages.texts.append(text.decode())
            text = b""
        else:
            messages.control["fragments"] += 1
    return Messages(messages.head, messages.texts, messages.control, close_code)


def _frames(data: bytes, at: int) -> Iterator[tuple[Opcode, bool, bytes]]:
    """(opcode, last of its message, payload) of each whole frame from `at` on."""
    while len(data) >= at + 2:
        first, length, masked = data[at], data[at + 1] & 0x7F, data[at + 1] & 0x80
        at += 2
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(data[at : at + size])
            at += size
        mask = data[at : at + 4] if masked else b""
        at += len(mask)
        if len(data) < at + length:
            return
        assert not first & 0x70, "the connection is compressed"
        payload = data[at : at + length]
        at += length
        plain = apply_mask(payload, mask) if mask else payload
        yield Opcode(first & 0x0F), bool(first & 0x80), plain
