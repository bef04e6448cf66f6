"""Hostile clients: connections, requests and streams that break the rules.

    .venv/bin/python -m tests.bench.hostile_clients \
        '{"port": 8080, "attacks": ["pings"], ...}'

Runs as a separate process until its stdin is closed; then prints, as JSON, how the
connections of each kind ended. HTTP and WebSocket frames are written by hand: libraries
do not send such data. A client that needs an open stream gets it as Twilio does, with
signed requests (`Target.token`).
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic, process_time
from typing import Any
from urllib.parse import urlencode, urlsplit

from bridge.sim.twilio import markup, messages
from bridge.sim.twilio.signature import sign

CALLS_ADDRESS, OTHER_ADDRESS = "127.0.0.1", "127.0.0.2"
PUBLIC = "https://bridge.example"
ACCOUNT = "AC" + "0" * 31 + "1"
FORM = "Content-Type: application/x-www-form-urlencoded"
TEXT, BINARY, CONTINUED, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
ESTABLISHED = 1  # of linux/tcp_states.h
INTERVAL_SECONDS = 0.02  # between two portions of a flood
ARRIVE_SECONDS = 4.0  # until each group has begun
MIB = 2**20
SPEECH, SILENCE = bytes([0x00, 0x80] * 80), bytes([0xFF] * 160)


class Refused(Exception):
    """The bridge refused the connection; the text is its answer."""


@dataclass(slots=True)
class Outcomes:
    """How the connections of one group ended."""

    endings: dict[str, list[float]] = field(default_factory=dict)
    """How a connection ended -> for each such connection, after how many seconds."""
    sent: int = 0  # pieces of a flood
    seconds: float = 0.0  # in which the pieces were sent

    def add(self, ending: str, seconds: float) -> None:
        self.endings.setdefault(ending, []).append(seconds)


@dataclass(slots=True)
class Target:
    """The bridge that is attacked, and the outcomes of each group."""

    port: int
    token: str | None = None
    public: str = PUBLIC
    account: str = ACCOUNT
    outcomes: dict[str, Outcomes] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """An insecure bridge answers only the names of its machine."""
        if self.token is None:
            return f"127.0.0.1:{self.port}"
        return urlsplit(self.public).netloc

    def outcomes_of(self, group: str) -> Outcomes:
        return self.outcomes.setdefault(group, Outcomes())


# --- one client -----------------------------------------------------------------------


class HostileClient:
    """One TCP connection to the bridge."""

    def __init__(
        self,
        target: Target,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.target = target
        self.reader, self.writer = reader, writer
        self.call_sid = ""  # set when the connection is a stream
        self.stream_sid = ""
        self.sent = 0
        self.never_reads = False

    @classmethod
    async def connect(
        cls,
        target: Target,
        address: str = CALLS_ADDRESS,
        *,
        small_buffers: bool = False,
    ) -> "HostileClient":
        """`small_buffers`: the kernel keeps almost no unread data for this client."""
        line = socket.socket()
        if small_buffers:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.setblocking(False)
        try:
            line.bind((address, 0))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                await loop.sock_connect(line, (CALLS_ADDRESS, target.port))
        except BaseException:
            line.close()
            raise
        limit = 1024 if small_buffers else MIB
        return cls(target, *await asyncio.open_connection(sock=line, limit=limit))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def disconnect(self, *, reset: bool = False) -> None:
        if reset:
            # SO_LINGER of 0 s turns the close into a reset.
            line = self.writer.get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def head(self) -> tuple[int, int]:
        """Reads the head of a response: its status and the length of its body. Raises
        ConnectionError if there is no response."""
        try:
            async with asyncio.timeout(15):
                text = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise ConnectionResetError("no answer") from None
        length = re.search(rb"\r\ncontent-length: *(\d+)", text, re.IGNORECASE)
        return int(text.split(b" ", 2)[1]), int(length[1]) if length else 0

    async def ending(self) -> str:
        """How the bridge ended the connection; all data before the end is ignored."""
        if self.never_reads:
            return await self._end_without_reading()
        try:
            return await (self._end_of_stream() if self.call_sid else self._statuses())
        except asyncio.IncompleteReadError:
            return "closed"
        except ConnectionError:
            return "reset"

    async def _end_without_reading(self) -> str:
        """asyncio does not see the end of a connection that is not read; the state of
        the socket in the kernel shows it."""
        line = self.writer.get_extra_info("socket")
        while not self.writer.transport.is_closing():
            state = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            if state != ESTABLISHED:
                break
            await asyncio.sleep(INTERVAL_SECONDS)
        return "closed"

    async def _statuses(self) -> str:
        statuses = []
        data = bytearray()
        while piece := await self.reader.read(65536):
            data += piece
            del data[:-MIB]
        statuses = re.findall(rb"^HTTP/1\.[01] (\d{3})", data, re.MULTILINE)
        return " ".join(it.decode() for it in statuses) or "closed"

    async def _end_of_stream(self) -> str:
        while True:
            opcode, payload = await read_frame(self.reader)
            if opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else "none"
                return f"close {code}"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    declared: int | None = None,
) -> bytes:
    """A frame of a client; its mask is zero, which is allowed. `declared`: the length
    in the head of the frame."""
    length = len(payload) if declared is None else declared
    head = bytes([fin << 7 | reserved << 4 | opcode])
    mask = 0x80 if masked else 0
    if length < 126:
        head += bytes([mask | length])
    elif length < 2**16:
        head += struct.pack("!BH", mask | 126, length)
    else:
        head += struct.pack("!BQ", mask | 127, length)
    return head + (bytes(4) if masked else b"") + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Opcode and payload of a server's frame."""
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await reader.readexactly(8))
    return first & 0xF, await reader.readexactly(length)


# --- Twilio's part --------------------------------------------------------------------


def call_form(target: Target, call_sid: str) -> dict[str, str]:
    number = f"+1666{int(call_sid[-8:], 16) % 10**7:07}"
    return {
        "AccountSid": target.account,
        "CallSid": call_sid,
        "CallStatus": "ringing",
        "Direction": "inbound",
        "From": number,
        "To": "+15557650002",
    }


def webhook(
    target: Target, form: dict[str, str], signature: str | None = None
) -> bytes:
    """A request to /voice, signed unless `signature` is given ("": without one)."""
    body = urlencode(form).encode()
    if signature is None and target.token:
        signature = sign(target.token, f"{target.public}/voice", form)
    head = [
        "POST /voice HTTP/1.1",
        f"Host: {target.host}",
        FORM,
        f"Content-Length: {len(body)}",
    ]
    if signature:
        head.append(f"X-Twilio-Signature: {signature}")
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def handshake(target: Target, url: str, signature: str | None = None) -> bytes:
    """The upgrade of a stream, signed unless `signature` is given ("": without one)."""
    if signature is None and target.token:
        signature = sign(target.token, url)
    head = [
        f"GET {urlsplit(url).path} HTTP/1.1",
        f"Host: {target.host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}",
    ]
    if signature:
        head.append(f"X-Twilio-Signature: {signature}")
    return ("\r\n".join(head) + "\r\n\r\n").encode()


async def ask_for_stream(target: Target, call_sid: str) -> markup.TwimlStream:
    """The stream that /voice returns for the call; raises Refused if there is none."""
    client = await HostileClient.connect(target)
    try:
        await client.write(webhook(target, call_form(target, call_sid)))
        status, length = await client.head()
        body = await client.reader.readexactly(length)
    finally:
        client.disconnect()
    if status != 200:
        raise Refused(f"/voice {status}")
    for verb in markup.verbs(body.decode()):
        if isinstance(verb, markup.TwimlConnect):
            return verb.stream
    raise Refused("/voice: no stream")


def new_sid(kind: str = "CA") -> str:
    return kind + secrets.token_hex(16)


async def open_stream(
    target: Target, *, start: bool = True, small_buffers: bool = False
) -> HostileClient:
    """A stream that /voice returned; with `start`, the call has begun in the stream."""
    call_sid = new_sid()
    given = await ask_for_stream(target, call_sid)
    client = await HostileClient.connect(target, small_buffers=small_buffers)
    try:
        await client.write(handshake(target, given.url))
        status, _ = await client.head()
        if status != 101:
            raise Refused(f"/media {status}")
        client.call_sid, client.stream_sid = call_sid, new_sid("MZ")
        if start:
            await client.write(start_frames(client, given.parameters))
    except BaseException:
        client.disconnect()
        raise
    return client


def start_frames(client: HostileClient, parameters: dict[str, str]) -> bytes:
    start = messages.start(
        client.target.account, client.call_sid, client.stream_sid, parameters
    )
    return frame(TEXT, messages.CONNECTED.encode()) + frame(TEXT, start.encode())


def media(client: HostileClient, number: int, audio: bytes = SILENCE) -> bytes:
    payload = base64.b64encode(audio).decode()
    tail = messages.media_tail(client.stream_sid)
    text = messages.media(number + 2, number + 1, 20 * number, payload, tail)
    return frame(TEXT, text.encode())


# --- the actions of clients -----------------------------------------------------------

Action = Callable[[HostileClient], Awaitable[None]]
"""What a client does on its connection. OSError: the bridge ended the connection."""


async def stay_silent(client: HostileClient) -> None:
    pass


async def half_close(client: HostileClient) -> None:
    """The client sends nothing more, but would listen for ever."""
    client.writer.write_eof()


def send(data: bytes) -> Action:
    async def action(client: HostileClient) -> None:
        await client.write(data)

    return action


def send_and_half_close(data: bytes) -> Action:
    async def action(client: HostileClient) -> None:
        await client.write(data)
        client.writer.write_eof()

    return action


def send_slowly(begun: bytes, rest: bytes, pause: float = 1.0) -> Action:
    """Sends `begun` at once, then `rest` again and again, a byte every `pause` s."""

    async def action(client: HostileClient) -> None:
        await client.write(begun)
        for byte in itertools.cycle(rest):
            await asyncio.sleep(pause)
            await client.write(bytes([byte]))

    return action


Piece = Callable[[HostileClient, int], bytes]
"""Makes the piece of a flood that has this number, from 0."""


def flood(make: Piece, per_second: float) -> Action:
    """Sends `per_second` pieces a second; fewer if the bridge reads fewer."""

    async def action(client: HostileClient) -> None:
        began = monotonic()
        while True:
            due = int((monotonic() - began) * per_second)
            # After a pause of the bridge, do not send all of the missed pieces.
            if due - client.sent > per_second * INTERVAL_SECONDS * 5:
                began += (due - client.sent) / per_second - INTERVAL_SECONDS
                due = int((monotonic() - began) * per_second)
            # Unsent data adds up: write one portion, then wait until it is sent.
            portion = b"".join(make(client, n) for n in range(client.sent, due))
            client.sent = max(due, client.sent)
            await client.write(portion)
            await asyncio.sleep(INTERVAL_SECONDS)

    return action


def same_piece(piece: bytes) -> Piece:
    return lambda client, number: piece


def begin_with(head: Callable[[HostileClient], bytes], rest: bytes) -> Piece:
    return lambda client, number: rest if number else head(client)


def reset_after(data: bytes, wait: float = 0.0) -> Action:
    async def action(client: HostileClient) -> None:
        await client.write(data)
        await asyncio.sleep(wait)
        client.disconnect(reset=True)

    return action


def without_reading(action: Action) -> Action:
    """The client does `action` and reads nothing from then on."""

    async def act(client: HostileClient) -> None:
        client.never_reads = True
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await action(client)

    return act


async def talk_and_ping(client: HostileClient) -> None:
    """Speaks and is silent by turns, so that the agent answers again and again; sends
    pings of the largest allowed size all the time."""
    began = monotonic()
    for number in itertools.count():
        audio = SPEECH if number % 100 < 30 else SILENCE
        await client.write(media(client, number, audio))
        await client.write(frame(PING, bytes(125)) * 100)
        await asyncio.sleep(max(0.0, began + 0.02 * number - monotonic()))


# --- groups of clients ----------------------------------------------------------------

Connect = Callable[[Target], Coroutine[Any, Any, HostileClient]]


def connection(address: str = CALLS_ADDRESS, *, small_buffers: bool = False) -> Connect:
    return lambda target: HostileClient.connect(
        target, address, small_buffers=small_buffers
    )


def stream(*, start: bool = True, small_buffers: bool = False) -> Connect:
    return lambda target: open_stream(target, start=start, small_buffers=small_buffers)


async def run_client(
    target: Target, group: str, connect: Connect, action: Action
) -> None:
    """One client, until the bridge ends its connection or this is cancelled."""
    outcomes = target.outcomes_of(group)
    try:
        client = await connect(target)
    except Refused as error:
        outcomes.add(f"refused: {error}", 0.0)
        return
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        outcomes.add(f"refused: {type(error).__name__}", 0.0)
        return
    began, ending = monotonic(), "still connected"
    try:
        async with asyncio.TaskGroup() as tasks:
            doing = tasks.create_task(_until_ended(action, client))
            await asyncio.sleep(0)  # the action may set never_reads
            ending = await client.ending()
            doing.cancel()
        if client.writer.transport.is_closing() and ending == "closed":
            ending = "closed by the client"
    finally:
        if client.sent:
            outcomes.sent += client.sent
            outcomes.seconds += monotonic() - began
        outcomes.add(ending, monotonic() - began)
        if ending == "still connected" and client.call_sid and not client.never_reads:
            stop = messages.stop(1, target.account, client.call_sid, client.stream_sid)
            with contextlib.suppress(ConnectionError):
                client.writer.write(frame(TEXT, stop.encode()))
                client.writer.close()
        else:
            client.disconnect()


async def _until_ended(action: Action, client: HostileClient) -> None:
    with contextlib.suppress(OSError):  # the bridge ended the connection
        await action(client)


@dataclass(frozen=True, slots=True)
class Group:
    """Clients of one kind: a new client every `every` seconds, at most `at_once` at a
    time."""

    name: str
    connect: Connect
    action: Action
    at_once: int
    every: float

    async def run(self, target: Target) -> None:
        free = asyncio.Semaphore(self.at_once)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await free.acquire()
                running = run_client(target, self.name, self.connect, self.action)
                tasks.create_task(running).add_done_callback(lambda _: free.release())
                await asyncio.sleep(self.every)


# --- the attacks ----------------------------------------------------------------------

REQUEST = f"POST /voice HTTP/1.1\r\nHost: bridge.example\r\n{FORM}\r\n"
HEAD = REQUEST.encode()
INNER = "GET /healthz HTTP/1.1\r\nHost: bridge.example\r\n\r\n"
"""The bridge must never handle this part of another request as a request."""

SMUGGLED = {
    "CL and TE": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE and CL": "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "CL twice": "Content-Length: 5\r\nContent-Length: 0\r\n\r\n",
    "CL +5": "Content-Length: +5\r\n\r\na=b&c",
    "CL -1": "Content-Length: -1\r\n\r\n",
    "CL 1_0": "Content-Length: 1_0\r\n\r\n0123456789",
    "TE xchunked": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE twice": "Transfer-Encoding: chunked\r\n" * 2 + "\r\n0\r\n\r\n",
    "TE : chunked": "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE folded": "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "chunk of -1": "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "chunk of 2^64": "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
    "chunk extended": "Transfer-Encoding: chunked\r\n\r\n1;" + "x" * 70_000 + "\r\na",
    "bare LF": "Content-Length: 0\n\n",
    "NUL in a header": "X-A: a\0b\r\nContent-Length: 0\r\n\r\n",
    "CR in a header": "X-A: a\rContent-Length: 5\r\n\r\n",
}

SHAPES: dict[str, bytes] = {
    "fragmented ping": frame(PING, b"x", fin=False),
    "ping of 126": frame(PING, bytes(126)),
    "unmasked": frame(TEXT, b"{}", masked=False),
    "reserved bit 1": frame(TEXT, b"{}", reserved=4),
    "reserved bit 2": frame(TEXT, b"{}", reserved=2),
    "reserved bit 3": frame(TEXT, b"{}", reserved=1),
    "opcode 3": frame(3, b"x"),
    "opcode 11": frame(11, b"x"),
    "no UTF-8": frame(TEXT, b'{"event":"\xc3\x28"}'),
    "half a character": frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUED, b"\x20"),
    "continued nothing": frame(CONTINUED, b"x"),
    "text in a text": frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"),
    "compressed": frame(TEXT, bytes.fromhex("aa5602000000ffff"), reserved=4),
    "close 1005": frame(CLOSE, struct.pack("!H", 1005)),
    "close 999": frame(CLOSE, struct.pack("!H", 999)),
    "close of a byte": frame(CLOSE, b"\x03"),
    "close, no UTF-8": frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
    "close, then more": frame(CLOSE, struct.pack("!H", 1000)) + frame(TEXT, b"{}"),
    "2^63 declared": frame(TEXT, declared=2**63),
    "2^63 - 1 declared": frame(TEXT, declared=2**63 - 1),
    "1 MiB declared": frame(TEXT, declared=MIB),
    "1 MiB": frame(TEXT, b" " * MIB),
    "1 MiB less 1": frame(TEXT, b" " * (MIB - 1)),
    "1 MiB of binary": frame(BINARY, bytes(MIB)),
    "no websocket": b"GET /healthz HTTP/1.1\r\n\r\n" * 10,
    "an empty frame": frame(TEXT),
}
"""Frames that break the WebSocket protocol, or are too large."""


def smuggling() -> Iterator[tuple[str, bytes]]:
    for name, rest in SMUGGLED.items():
        yield name, (REQUEST + rest + INNER).encode()


LARGE = ("2^63", "1 MiB")


def shapes(*, large: bool) -> list[Group]:
    return [
        Group(name, stream(), send(data), 1, 10.0)
        for name, data in SHAPES.items()
        if name.startswith(LARGE) is large
    ]


def idle(addresses: Sequence[str]) -> list[Group]:
    """1,000 clients in all, opened within two seconds; a client whose connection the
    bridge ends is replaced."""
    each = 1000 // len(addresses)
    return [
        Group(f"from {it}", connection(it), stay_silent, each, 0.002 * len(addresses))
        for it in addresses
    ]


def upgrade_and_reset(wait: float) -> Connect:
    """For a reset during the upgrade (`wait` of 0 s) or just after the upgrade."""

    async def connect(target: Target) -> HostileClient:
        given = await ask_for_stream(target, new_sid())
        client = await HostileClient.connect(target)
        await client.write(handshake(target, given.url))
        await asyncio.sleep(wait)
        return client

    return connect


def wrong_webhook(signature: str) -> Connect:
    """A webhook with a wrong signature ("": without one)."""

    async def connect(target: Target) -> HostileClient:
        client = await HostileClient.connect(target)
        await client.write(webhook(target, call_form(target, new_sid()), signature))
        return client

    return connect


def forged_handshake(signature: str) -> Connect:
    async def connect(target: Target) -> HostileClient:
        client = await HostileClient.connect(target)
        url = f"wss{target.public.removeprefix('https')}/media"
        await client.write(handshake(target, url, signature))
        return client

    return connect


def ticket(kind: str) -> Connect:
    """A handshake that Twilio signed, with a ticket that is invalid ("forged"), of
    another call ("another"), or already used ("used")."""

    async def connect(target: Target) -> HostileClient:
        given = await ask_for_stream(target, new_sid())
        url = given.url
        if kind == "forged":
            url = url[:-1] + ("A" if url[-1] != "A" else "B")
        if kind == "used":
            before = await HostileClient.connect(target)
            await before.write(handshake(target, url))
            await before.head()
            before.disconnect()
        client = await HostileClient.connect(target)
        await client.write(handshake(target, url))
        status, _ = await client.head()
        if status != 101:
            client.disconnect()
            raise Refused(f"/media {status}")
        client.call_sid, client.stream_sid = new_sid(), new_sid("MZ")
        await client.write(start_frames(client, given.parameters))
        return client

    return connect


HEADER = b"X-Flood: " + b"x" * 80 + b"\r\n"

ATTACKS: dict[str, tuple[str, list[Group]]] = {
    "half-open": (
        "connected and silent; FIN from the client: before, in and after a head, in a "
        "stream",
        [
            Group("silent", connection(), stay_silent, 60, 0.1),
            Group("FIN before a head", connection(), half_close, 20, 0.1),
            Group("FIN in a head", connection(), send_and_half_close(HEAD), 20, 0.1),
            Group(
                "FIN in a body",
                connection(),
                send_and_half_close(HEAD + b"Content-Length: 99\r\n\r\na="),
                at_once=20,
                every=0.1,
            ),
            Group("stream without start", stream(start=False), stay_silent, 5, 0.5),
            Group("FIN in a stream", stream(), half_close, 3, 1.0),
        ],
    ),
    "slow-loris": (
        "a byte a second of 100 heads, 50 bodies, 5 frames",
        [
            Group("head", connection(), send_slowly(HEAD, b"X-A: b\r\n"), 100, 0.02),
            Group(
                "body",
                connection(),
                send_slowly(HEAD + b"Content-Length: 1000\r\n\r\n", b"a=b&"),
                at_once=50,
                every=0.04,
            ),
            Group(
                "frame",
                stream(),
                send_slowly(frame(TEXT, declared=1000), b" "),
                at_once=5,
                every=0.5,
            ),
        ],
    ),
    "pings": (
        "20,000 pings/s on one stream, 20,000 unsolicited pongs/s on another",
        [
            Group("pings", stream(), flood(same_piece(frame(PING)), 20_000), 1, 1.0),
            Group("pongs", stream(), flood(same_piece(frame(PONG)), 20_000), 1, 1.0),
        ],
    ),
    "resets": (
        "5/s each: before and in a head, after a webhook, in and after the upgrade; "
        "1/s each: after start, in a frame",
        [
            Group("before a head", connection(), reset_after(b""), 5, 0.2),
            Group("in a head", connection(), reset_after(HEAD), 5, 0.2),
            Group(
                "after a webhook",
                wrong_webhook("x"),
                reset_after(b""),
                at_once=5,
                every=0.2,
            ),
            Group("in the upgrade", upgrade_and_reset(0.0), reset_after(b""), 5, 0.2),
            Group("after it", upgrade_and_reset(0.05), reset_after(b""), 5, 0.2),
            Group("after start", stream(), reset_after(b"", 0.1), 5, 1.0),
            Group(
                "in a frame",
                stream(),
                reset_after(frame(TEXT, b"{", declared=200), 0.1),
                at_once=5,
                every=1.0,
            ),
        ],
    ),
    "frames": (
        "endless messages in fragments of 1 byte, 0 bytes (2,000/s each) and 16 KiB "
        f"(200/s), and {sum(not it.startswith(LARGE) for it in SHAPES)} invalid frames",
        [
            Group(
                "1-byte fragments",
                stream(),
                flood(
                    begin_with(
                        lambda _: frame(TEXT, b"{", fin=False),
                        frame(CONTINUED, b" ", fin=False),
                    ),
                    2_000,
                ),
                at_once=1,
                every=1.0,
            ),
            Group(
                "empty fragments",
                stream(),
                flood(
                    begin_with(
                        lambda _: frame(TEXT, b"{", fin=False),
                        frame(CONTINUED, b"", fin=False),
                    ),
                    2_000,
                ),
                at_once=1,
                every=1.0,
            ),
            Group(
                "16 KiB fragments",
                stream(),
                flood(
                    begin_with(
                        lambda _: frame(TEXT, b"{", fin=False),
                        frame(CONTINUED, bytes(16384), fin=False),
                    ),
                    200,
                ),
                at_once=1,
                every=1.0,
            ),
            *shapes(large=False),
        ],
    ),
    "oversized": (
        "2^63 bytes declared, 1 MiB, 64 MiB (in pieces, 32 MiB/s), text and binary",
        [
            Group(
                "64 MiB",
                stream(),
                flood(
                    begin_with(
                        lambda _: frame(TEXT, declared=64 * MIB), b" " * (MIB // 16)
                    ),
                    512,
                ),
                at_once=1,
                every=1.0,
            ),
            *shapes(large=True),
        ],
    ),
    "messages": (
        "10,000 media/s on one stream; 2,000 binary and 2,000 invalid messages/s on "
        "others",
        [
            Group("media", stream(), flood(media, 10_000), 1, 1.0),
            Group(
                "binary",
                stream(),
                flood(same_piece(frame(BINARY, bytes(160))), 2_000),
                at_once=1,
                every=1.0,
            ),
            Group(
                "invalid",
                stream(),
                flood(same_piece(frame(TEXT, b"[" * 500)), 2_000),
                at_once=1,
                every=1.0,
            ),
        ],
    ),
    "idle other address": (
        "1,000 idle connections from 127.0.0.2",
        idle([OTHER_ADDRESS]),
    ),
    "idle calls' address": (
        "1,000 idle connections from 127.0.0.1, the address of the calls",
        idle([CALLS_ADDRESS]),
    ),
    "idle 20 addresses": (
        "1,000 idle connections from 20 addresses, 127.0.1.1 to 127.0.1.20",
        idle([f"127.0.1.{it}" for it in range(1, 21)]),
    ),
    "heads": (
        "endless heads (1 MB/s), heads with 1,000 headers or a header of 100 kB; "
        f"{len(SMUGGLED)} forms of request smuggling",
        [
            Group(
                "endless head",
                connection(),
                flood(begin_with(lambda _: HEAD, HEADER), 10_000),
                at_once=2,
                every=0.2,
            ),
            Group("1,000 headers", connection(), send(HEAD + HEADER * 1000), 5, 0.2),
            Group(
                "header of 100 kB",
                connection(),
                send(HEAD + b"X-A: " + b"x" * 100_000 + b"\r\n\r\n"),
                at_once=5,
                every=0.2,
            ),
            *(
                Group(name, connection(), send(data), 2, 1.0)
                for name, data in smuggling()
            ),
        ],
    ),
    "forgeries": (
        "200 webhooks/s and 50 handshakes/s without or with a wrong signature; 5/s "
        "each with forged tickets, tickets of another call, used tickets",
        [
            Group("webhook unsigned", wrong_webhook(""), stay_silent, 20, 0.01),
            Group(
                "webhook forged", wrong_webhook("x" * 27 + "="), stay_silent, 20, 0.01
            ),
            Group("handshake unsigned", forged_handshake(""), stay_silent, 20, 0.04),
            Group("handshake forged", forged_handshake("x="), stay_silent, 20, 0.04),
            Group("ticket forged", ticket("forged"), stay_silent, 5, 0.2),
            Group("ticket of another call", ticket("another"), stay_silent, 5, 0.2),
            Group("ticket used", ticket("used"), stay_silent, 5, 0.2),
        ],
    ),
    "never read": (
        "3 streams that talk and ping (5,000/s), 20 requests for metrics; none of them "
        "reads the answers",
        [
            Group(
                "stream",
                stream(small_buffers=True),
                without_reading(talk_and_ping),
                3,
                0.5,
            ),
            Group(
                "responses",
                connection(small_buffers=True),
                without_reading(
                    send(b"GET /metrics HTTP/1.1\r\nHost: bridge.example\r\n\r\n" * 100)
                ),
                at_once=20,
                every=0.1,
            ),
        ],
    ),
}


async def attack(target: Target, names: Sequence[str]) -> None:
    """Runs all groups of these attacks until cancelled. The groups begin one after
    another: fifty calls that begin at the same moment would be an attack by Twilio."""
    groups = [group for name in names for group in ATTACKS[name][1]]
    async with asyncio.TaskGroup() as tasks:
        for group in groups:
            tasks.create_task(group.run(target))
            await asyncio.sleep(ARRIVE_SECONDS / len(groups))


async def _until_stdin_closes() -> None:
    """Returns when the parent process closes this process's stdin."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()


async def main(arguments: dict[str, Any]) -> None:
    names = arguments.pop("attacks")
    target = Target(**arguments)
    began = monotonic()
    async with asyncio.TaskGroup() as tasks:
        attacking = tasks.create_task(attack(target, names))
        await _until_stdin_closes()
        attacking.cancel()
        await asyncio.sleep(0.2)  # for the last close frames
    lasted = monotonic() - began
    outcomes = {
        group: {
            "endings": each.endings,
            "sent_per_second": each.sent / each.seconds if each.seconds else None,
        }
        for group, each in target.outcomes.items()
    }
    print(json.dumps({"cpu": process_time() / lasted, "outcomes": outcomes}))


if __name__ == "__main__":
    os.nice(10)  # the fakes of the good calls have priority
    asyncio.run(main(json.loads(sys.argv[1])))
