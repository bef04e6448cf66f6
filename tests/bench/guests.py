"""Rude guests: what may come to a bridge's door, or sit in a stream, and should not.

    .venv/bin/python -m tests.bench.guests '{"port": 8080, "attacks": ["pings"], ...}'

A process of their own, until its stdin is closed; then it prints what each got, as
JSON. HTTP and websockets are written by hand: no library would send such things. What
needs an opened stream is done by a "Twilio" that signs (`House.token`).
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

HOME, ELSEWHERE = "127.0.0.1", "127.0.0.2"
PUBLIC = "https://bridge.example"
ACCOUNT = "AC" + "0" * 31 + "1"
FORM = "Content-Type: application/x-www-form-urlencoded"
TEXT, BINARY, CONTINUED, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
ESTABLISHED = 1  # of linux/tcp_states.h
BEAT = 0.02  # s between two portions of a flood
ARRIVE_SECONDS = 4.0  # until there is one of each
MIB = 2**20
LOUD, QUIET = bytes([0x00, 0x80] * 80), bytes([0xFF] * 160)


class Refused(Exception):
    """Not let in; the text is what was answered."""


@dataclass(slots=True)
class Got:
    """What one kind of guest got: how they were sent off -> after how many seconds."""

    fates: dict[str, list[float]] = field(default_factory=dict)
    sent: int = 0  # pieces of a flood
    seconds: float = 0.0  # in which they were sent

    def note(self, fate: str, seconds: float) -> None:
        self.fates.setdefault(fate, []).append(seconds)


@dataclass(slots=True)
class Services:
    """The bridge that is visited; what was got there is noted here."""

    port: int
    token: str | None = None
    public: str = PUBLIC
    account: str = ACCOUNT
    got: dict[str, Got] = field(default_factory=dict)

    def of(self, what: str) -> Got:
        return self.got.setdefault(what, Got())


# --- one guest ------------------------------------------------------------------------


class Guest:
    """A connection, and what becomes of it."""

    def __init__(
        self,
        services: Services,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.services = services
        self.reader, self.writer = reader, writer
        self.call_sid = ""  # once it is a stream
        self.stream_sid = ""
        self.sent = 0
        self.deaf = False  # reads nothing

    @classmethod
    async def come(
        cls, services: Services, address: str = HOME, *, narrow: bool = False
    ) -> "Guest":
        """`narrow`: takes next to nothing that it does not read."""
        line = socket.socket()
        if narrow:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.setblocking(False)
        try:
            line.bind((address, 0))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                await loop.sock_connect(line, (HOME, services.port))
        except BaseException:
            line.close()
            raise
        limit = 1024 if narrow else MIB
        return cls(services, *await asyncio.open_connection(sock=line, limit=limit))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def leave(self, *, reset: bool = False) -> None:
        if reset:
            # Lingering for 0 s turns the close into a reset.
            line = self.writer.get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def head(self) -> tuple[int, int]:
        """Status and length of an answer; its head is read. ConnectionError: none
        came."""
        try:
            async with asyncio.timeout(15):
                text = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise ConnectionResetError("no answer") from None
        length = re.search(rb"\r\ncontent-length: *(\d+)", text, re.IGNORECASE)
        return int(text.split(b" ", 2)[1]), int(length[1]) if length else 0

    async def fate(self) -> str:
        """How the other side ended it; everything that comes before is ignored."""
        if self.deaf:
            return await self._ended_unread()
        try:
            return await (self._end_of_stream() if self.call_sid else self._answers())
        except asyncio.IncompleteReadError:
            return "cut off"
        except ConnectionError:
            return "reset"

    async def _ended_unread(self) -> str:
        """A transport that is not read notices nothing; the kernel does."""
        line = self.writer.get_extra_info("socket")
        while not self.writer.transport.is_closing():
            state = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            if state != ESTABLISHED:
                break
            await asyncio.sleep(BEAT)
        return "cut off"

    async def _answers(self) -> str:
        statuses = []
        data = bytearray()
        while piece := await self.reader.read(65536):
            data += piece
            del data[:-MIB]
        statuses = re.findall(rb"^HTTP/1\.[01] (\d{3})", data, re.MULTILINE)
        return " ".join(it.decode() for it in statuses) or "cut off"

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
    """A frame of a client; the mask is of zeros, which is one. `declared`: the length
    that its head claims."""
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


def call_form(services: Services, call_sid: str) -> dict[str, str]:
    number = f"+1666{int(call_sid[-8:], 16) % 10**7:07}"
    return {
        "AccountSid": services.account,
        "CallSid": call_sid,
        "CallStatus": "ringing",
        "Direction": "inbound",
        "From": number,
        "To": "+15557650002",
    }


def webhook(
    services: Services, form: dict[str, str], signature: str | None = None
) -> bytes:
    """A request to /voice, signed unless `signature` is given ("" = none)."""
    body = urlencode(form).encode()
    if signature is None and services.token:
        signature = sign(services.token, f"{services.public}/voice", form)
    head = [
        "POST /voice HTTP/1.1",
        f"Host: {urlsplit(services.public).netloc}",
        FORM,
        f"Content-Length: {len(body)}",
    ]
    if signature:
        head.append(f"X-Twilio-Signature: {signature}")
    return ("\r\n".join(head) + "\r\n\r\n").encode() + body


def handshake(services: Services, url: str, signature: str | None = None) -> bytes:
    """The upgrade of a stream, signed unless `signature` is given ("" = not)."""
    if signature is None and services.token:
        signature = sign(services.token, url)
    head = [
        f"GET {urlsplit(url).path} HTTP/1.1",
        f"Host: {urlsplit(services.public).netloc}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}",
    ]
    if signature:
        head.append(f"X-Twilio-Signature: {signature}")
    return ("\r\n".join(head) + "\r\n\r\n").encode()


async def given_stream(services: Services, call_sid: str) -> markup.TwimlStream:
    """What /voice answers to a call of that name. Refused: no stream."""
    guest = await Guest.come(services)
    try:
        await guest.write(webhook(services, call_form(services, call_sid)))
        status, length = await guest.head()
        body = await guest.reader.readexactly(length)
    finally:
        guest.leave()
    if status != 200:
        raise Refused(f"/voice {status}")
    for verb in markup.verbs(body.decode()):
        if isinstance(verb, markup.TwimlConnect):
            return verb.stream
    raise Refused("/voice: no stream")


def new_sid(kind: str = "CA") -> str:
    return kind + secrets.token_hex(16)


async def opened(
    services: Services, *, start: bool = True, narrow: bool = False
) -> Guest:
    """A stream that Twilio was given; with `start` a call has begun in it."""
    call_sid = new_sid()
    given = await given_stream(services, call_sid)
    guest = await Guest.come(services, narrow=narrow)
    try:
        await guest.write(handshake(services, given.url))
        status, _ = await guest.head()
        if status != 101:
            raise Refused(f"/media {status}")
        guest.call_sid, guest.stream_sid = call_sid, new_sid("MZ")
        if start:
            await guest.write(begin(guest, given.parameters))
    except BaseException:
        guest.leave()
        raise
    return guest


def begin(guest: Guest, parameters: dict[str, str], call_sid: str = "") -> bytes:
    start = messages.start(
        guest.services.account, call_sid or guest.call_sid, guest.stream_sid, parameters
    )
    return frame(TEXT, messages.CONNECTED.encode()) + frame(TEXT, start.encode())


def media(guest: Guest, number: int, audio: bytes = QUIET) -> bytes:
    payload = base64.b64encode(audio).decode()
    tail = messages.media_tail(guest.stream_sid)
    text = messages.media(number + 2, number + 1, 20 * number, payload, tail)
    return frame(TEXT, text.encode())


# --- what guests do -------------------------------------------------------------------

Deed = Callable[[Guest], Awaitable[None]]
"""What is done on a connection. OSError: it was ended meanwhile."""


async def nothing(guest: Guest) -> None:
    pass


async def half_close(guest: Guest) -> None:
    """We say nothing any more, but would listen for ever."""
    guest.writer.write_eof()


def say(data: bytes) -> Deed:
    async def deed(guest: Guest) -> None:
        await guest.write(data)

    return deed


def say_and_half_close(data: bytes) -> Deed:
    async def deed(guest: Guest) -> None:
        await guest.write(data)
        guest.writer.write_eof()

    return deed


def drip(begun: bytes, rest: bytes, pause: float = 1.0) -> Deed:
    """`begun` at once, then a byte at a time."""

    async def deed(guest: Guest) -> None:
        await guest.write(begun)
        for byte in itertools.cycle(rest):
            await asyncio.sleep(pause)
            await guest.write(bytes([byte]))

    return deed


def flood(make: Callable[[Guest, int], bytes], per_second: float) -> Deed:
    """So many pieces a second, less where the other side takes less."""

    async def deed(guest: Guest) -> None:
        began = monotonic()
        while True:
            due = int((monotonic() - began) * per_second)
            if due - guest.sent > per_second * BEAT * 5:  # do not catch up for ever
                began += (due - guest.sent) / per_second - BEAT
                due = int((monotonic() - began) * per_second)
            # What is written joins what waits: a portion, then wait for it to be taken.
            portion = b"".join(make(guest, n) for n in range(guest.sent, due))
            guest.sent = max(due, guest.sent)
            await guest.write(portion)
            await asyncio.sleep(BEAT)

    return deed


def always(piece: bytes) -> Callable[[Guest, int], bytes]:
    return lambda guest, number: piece


def first(head: Callable[[Guest], bytes], rest: bytes) -> Callable[[Guest, int], bytes]:
    return lambda guest, number: rest if number else head(guest)


def reset_after(data: bytes, wait: float = 0.0) -> Deed:
    async def deed(guest: Guest) -> None:
        await guest.write(data)
        await asyncio.sleep(wait)
        guest.leave(reset=True)

    return deed


def unread(deed: Deed) -> Deed:
    """Nothing that comes is read any more."""

    async def and_deaf(guest: Guest) -> None:
        guest.deaf = True
        guest.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await deed(guest)

    return and_deaf


async def talk(guest: Guest) -> None:
    """Speaks and listens by turns, so that the agent answers again and again; and
    pings all the while, as large as pings may be."""
    began = monotonic()
    for number in itertools.count():
        audio = LOUD if number % 100 < 30 else QUIET
        await guest.write(media(guest, number, audio))
        await guest.write(frame(PING, bytes(125)) * 100)
        await asyncio.sleep(max(0.0, began + 0.02 * number - monotonic()))


# --- crowds ---------------------------------------------------------------------------

Arrival = Callable[[Services], Coroutine[Any, Any, Guest]]


def at_the_door(address: str = HOME, *, narrow: bool = False) -> Arrival:
    return lambda services: Guest.come(services, address, narrow=narrow)


def in_a_stream(*, start: bool = True, narrow: bool = False) -> Arrival:
    return lambda services: opened(services, start=start, narrow=narrow)


async def visit(services: Services, what: str, arrive: Arrival, deed: Deed) -> None:
    """One guest, from the first byte until they are sent away or this is cancelled."""
    got = services.of(what)
    try:
        guest = await arrive(services)
    except Refused as error:
        got.note(f"not let in: {error}", 0.0)
        return
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        got.note(f"not let in: {type(error).__name__}", 0.0)
        return
    began, fate = monotonic(), "still there"
    try:
        async with asyncio.TaskGroup() as tasks:
            doing = tasks.create_task(_until_ended(deed, guest))
            await asyncio.sleep(0)  # it may be deaf
            fate = await guest.fate()
            doing.cancel()
        if guest.writer.transport.is_closing() and fate == "cut off":
            fate = "gone by themselves"
    finally:
        if guest.sent:
            got.sent += guest.sent
            got.seconds += monotonic() - began
        got.note(fate, monotonic() - began)
        if fate == "still there" and guest.call_sid and not guest.deaf:
            stop = messages.stop(1, services.account, guest.call_sid, guest.stream_sid)
            with contextlib.suppress(ConnectionError):
                guest.writer.write(frame(TEXT, stop.encode()))
                guest.writer.close()
        else:
            guest.leave()


async def _until_ended(deed: Deed, guest: Guest) -> None:
    with contextlib.suppress(OSError):  # they have sent us away
        await deed(guest)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Guests of one kind: at most so many at a time, each `every` seconds one."""

    what: str
    arrive: Arrival
    deed: Deed
    at_once: int
    every: float

    async def come(self, services: Services) -> None:
        free = asyncio.Semaphore(self.at_once)
        async with asyncio.TaskGroup() as tasks:
            while True:
                await free.acquire()
                coming = visit(services, self.what, self.arrive, self.deed)
                tasks.create_task(coming).add_done_callback(lambda _: free.release())
                await asyncio.sleep(self.every)


# --- the attacks ----------------------------------------------------------------------

REQUEST = f"POST /voice HTTP/1.1\r\nHost: bridge.example\r\n{FORM}\r\n"
HEAD = REQUEST.encode()
INNER = "GET /healthz HTTP/1.1\r\nHost: bridge.example\r\n\r\n"
"""What should never be taken for a request of its own."""

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
"""What websockets are not made of, or not of this size."""


def smuggling() -> Iterator[tuple[str, bytes]]:
    for what, rest in SMUGGLED.items():
        yield what, (REQUEST + rest + INNER).encode()


LARGE = ("2^63", "1 MiB")


def shapes(*, large: bool) -> list[Crowd]:
    return [
        Crowd(what, in_a_stream(), say(data), 1, 10.0)
        for what, data in SHAPES.items()
        if what.startswith(LARGE) is large
    ]


def idle(addresses: Sequence[str]) -> list[Crowd]:
    """1,000 in all; a thousand come within two seconds, and again if they are sent
    away."""
    each = 1000 // len(addresses)
    return [
        Crowd(f"of {it}", at_the_door(it), nothing, each, 0.002 * len(addresses))
        for it in addresses
    ]


def upgrade_and_reset(wait: float) -> Arrival:
    """Resets in the midst of an upgrade, or just behind it."""

    async def arrive(services: Services) -> Guest:
        given = await given_stream(services, new_sid())
        guest = await Guest.come(services)
        await guest.write(handshake(services, given.url))
        await asyncio.sleep(wait)
        return guest

    return arrive


def knock(signature: str) -> Callable[[Services], Coroutine[Any, Any, Guest]]:
    """A webhook that is not signed as it should be."""

    async def arrive(services: Services) -> Guest:
        guest = await Guest.come(services)
        await guest.write(webhook(services, call_form(services, new_sid()), signature))
        return guest

    return arrive


def forged_handshake(signature: str) -> Arrival:
    async def arrive(services: Services) -> Guest:
        guest = await Guest.come(services)
        url = f"wss{services.public.removeprefix('https')}/media"
        await guest.write(handshake(services, url, signature))
        return guest

    return arrive


def ticket(kind: str) -> Arrival:
    """A handshake that Twilio signed, with a ticket that is made up ("forged"), of
    another call, or "used" already."""

    async def arrive(services: Services) -> Guest:
        given = await given_stream(services, new_sid())
        url = given.url
        if kind == "forged":
            url = url[:-1] + ("A" if url[-1] != "A" else "B")
        if kind == "used":
            before = await Guest.come(services)
            await before.write(handshake(services, url))
            await before.head()
            before.leave()
        guest = await Guest.come(services)
        await guest.write(handshake(services, url))
        status, _ = await guest.head()
        if status != 101:
            guest.leave()
            raise Refused(f"/media {status}")
        guest.call_sid, guest.stream_sid = new_sid(), new_sid("MZ")
        await guest.write(begin(guest, given.parameters))
        return guest

    return arrive


HEADER = b"X-Flood: " + b"x" * 80 + b"\r\n"

ATTACKS: dict[str, tuple[str, list[Crowd]]] = {
    "half-open": (
        "connected and silent; FIN of one side: before, in, behind a head, in a stream",
        [
            Crowd("silent", at_the_door(), nothing, 60, 0.1),
            Crowd("FIN before a head", at_the_door(), half_close, 20, 0.1),
            Crowd("FIN in a head", at_the_door(), say_and_half_close(HEAD), 20, 0.1),
            Crowd(
                "FIN in a body",
                at_the_door(),
                say_and_half_close(HEAD + b"Content-Length: 99\r\n\r\na="),
                at_once=20,
                every=0.1,
            ),
            Crowd("stream without start", in_a_stream(start=False), nothing, 5, 0.5),
            Crowd("FIN in a stream", in_a_stream(), half_close, 3, 1.0),
        ],
    ),
    "slow-loris": (
        "a byte a second of 100 heads, 50 bodies, 5 frames",
        [
            Crowd("head", at_the_door(), drip(HEAD, b"X-A: b\r\n"), 100, 0.02),
            Crowd(
                "body",
                at_the_door(),
                drip(HEAD + b"Content-Length: 1000\r\n\r\n", b"a=b&"),
                at_once=50,
                every=0.04,
            ),
            Crowd(
                "frame",
                in_a_stream(),
                drip(frame(TEXT, declared=1000), b" "),
                at_once=5,
                every=0.5,
            ),
        ],
    ),
    "pings": (
        "20,000 pings/s on one stream, 20,000 unasked pongs/s on another",
        [
            Crowd("pings", in_a_stream(), flood(always(frame(PING)), 20_000), 1, 1.0),
            Crowd("pongs", in_a_stream(), flood(always(frame(PONG)), 20_000), 1, 1.0),
        ],
    ),
    "resets": (
        "5/s each: before and in a head, behind a webhook, in the upgrade, behind it; "
        "1/s each: behind start, in a frame",
        [
            Crowd("before a head", at_the_door(), reset_after(b""), 5, 0.2),
            Crowd("in a head", at_the_door(), reset_after(HEAD), 5, 0.2),
            Crowd(
                "behind a webhook",
                knock("x"),
                reset_after(b""),
                at_once=5,
                every=0.2,
            ),
            Crowd("in the upgrade", upgrade_and_reset(0.0), reset_after(b""), 5, 0.2),
            Crowd("behind it", upgrade_and_reset(0.05), reset_after(b""), 5, 0.2),
            Crowd("behind start", in_a_stream(), reset_after(b"", 0.1), 5, 1.0),
            Crowd(
                "in a frame",
                in_a_stream(),
                reset_after(frame(TEXT, b"{", declared=200), 0.1),
                at_once=5,
                every=1.0,
            ),
        ],
    ),
    "frames": (
        "1-byte fragments without end (2,000/s), 16 KiB ones (200/s), and "
        f"{len(SHAPES)} broken shapes",
        [
            Crowd(
                "1-byte fragments",
                in_a_stream(),
                flood(
                    first(
                        lambda _: frame(TEXT, b"{", fin=False),
                        frame(CONTINUED, b" ", fin=False),
                    ),
                    2_000,
                ),
                at_once=1,
                every=1.0,
            ),
            Crowd(
                "empty fragments",
                in_a_stream(),
                flood(
                    first(
                        lambda _: frame(TEXT, b"{", fin=False),
                        frame(CONTINUED, b"", fin=False),
                    ),
                    2_000,
                ),
                at_once=1,
                every=1.0,
            ),
            Crowd(
                "16 KiB fragments",
                in_a_stream(),
                flood(
                    first(
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
            Crowd(
                "64 MiB",
                in_a_stream(),
                flood(
                    first(lambda _: frame(TEXT, declared=64 * MIB), b" " * (MIB // 16)),
                    512,
                ),
                at_once=1,
                every=1.0,
            ),
            *shapes(large=True),
        ],
    ),
    "messages": (
        "10,000 media/s on one stream; 2,000 binary/s and 2,000 rubbish/s on others",
        [
            Crowd("media", in_a_stream(), flood(media, 10_000), 1, 1.0),
            Crowd(
                "binary",
                in_a_stream(),
                flood(always(frame(BINARY, bytes(160))), 2_000),
                at_once=1,
                every=1.0,
            ),
            Crowd(
                "rubbish",
                in_a_stream(),
                flood(always(frame(TEXT, b"[" * 500)), 2_000),
                at_once=1,
                every=1.0,
            ),
        ],
    ),
    "idle elsewhere": ("1,000 idle connections of 127.0.0.2", idle([ELSEWHERE])),
    "idle here": ("1,000 idle connections of 127.0.0.1, as the calls", idle([HOME])),
    "idle everywhere": (
        "1,000 idle connections of 20 addresses, 127.0.1.1 to 20",
        idle([f"127.0.1.{it}" for it in range(1, 21)]),
    ),
    "heads": (
        "heads without end (1 MB/s), of 1,000 headers, of one of 100 kB; "
        f"{len(SMUGGLED)} shapes of smuggling",
        [
            Crowd(
                "head without end",
                at_the_door(),
                flood(first(lambda _: HEAD, HEADER), 10_000),
                at_once=2,
                every=0.2,
            ),
            Crowd("1,000 headers", at_the_door(), say(HEAD + HEADER * 1000), 5, 0.2),
            Crowd(
                "one of 100 kB",
                at_the_door(),
                say(HEAD + b"X-A: " + b"x" * 100_000 + b"\r\n\r\n"),
                at_once=5,
                every=0.2,
            ),
            *(
                Crowd(
                    what, at_the_door(), say((REQUEST + rest + INNER).encode()), 2, 1.0
                )
                for what, rest in SMUGGLED.items()
            ),
        ],
    ),
    "forgers": (
        "200 webhooks/s and 50 handshakes/s unsigned or signed wrongly; 5/s each with "
        "forged tickets, with another call's, with used ones",
        [
            Crowd("webhook unsigned", knock(""), nothing, 20, 0.01),
            Crowd("webhook forged", knock("x" * 27 + "="), nothing, 20, 0.01),
            Crowd("handshake unsigned", forged_handshake(""), nothing, 20, 0.04),
            Crowd("handshake forged", forged_handshake("x="), nothing, 20, 0.04),
            Crowd("ticket forged", ticket("forged"), nothing, 5, 0.2),
            Crowd("ticket of another", ticket("another"), nothing, 5, 0.2),
            Crowd("ticket used", ticket("used"), nothing, 5, 0.2),
        ],
    ),
    "deaf": (
        "never reading: 3 streams that talk and ping (5,000/s), 20 metrics",
        [
            Crowd("stream", in_a_stream(narrow=True), unread(talk), 3, 0.5),
            Crowd(
                "answers",
                at_the_door(narrow=True),
                unread(
                    say(b"GET /metrics HTTP/1.1\r\nHost: bridge.example\r\n\r\n" * 100)
                ),
                at_once=20,
                every=0.1,
            ),
        ],
    ),
}


async def attack(services: Services, names: Sequence[str]) -> None:
    """All of them, until this is cancelled. They come one kind after the other: fifty
    calls that begin in the same moment would be an attack of Twilio's own."""
    crowds = [crowd for name in names for crowd in ATTACKS[name][1]]
    async with asyncio.TaskGroup() as tasks:
        for crowd in crowds:
            tasks.create_task(crowd.come(services))
            await asyncio.sleep(ARRIVE_SECONDS / len(crowds))


async def _until_told() -> None:
    """Until nobody holds our stdin any more."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()


async def main(arguments: dict[str, Any]) -> None:
    names = arguments.pop("attacks")
    services = Services(**arguments)
    began = monotonic()
    async with asyncio.TaskGroup() as tasks:
        attacking = tasks.create_task(attack(services, names))
        await _until_told()
        attacking.cancel()
        await asyncio.sleep(0.2)  # for what is hung up
    lasted = monotonic() - began
    got = {
        what: {
            "fates": each.fates,
            "sent_per_second": each.sent / each.seconds if each.seconds else None,
        }
        for what, each in services.got.items()
    }
    print(json.dumps({"cpu": process_time() / lasted, "got": got}))


if __name__ == "__main__":
    os.nice(10)  # the calls' own fakes come first
    asyncio.run(main(json.loads(sys.argv[1])))
