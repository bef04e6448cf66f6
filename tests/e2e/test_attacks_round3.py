"""A third round of attacks, by somebody who did not write the bridge: those that were
not repelled. Over real sockets, and a real Redis where several bridges share one."""

import asyncio
import contextlib
import hashlib
import re
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from bridge.privacy.log_scrubber import LogScrubber
from tests.e2e.bridge import RunningBridge, bridge
from tests.e2e.test_accounts import ACCOUNTS, SUB, SUB_TOKEN, form_of, posted
from tests.e2e.test_attacks import (
    ACCOUNT,
    FORM,
    PUBLIC,
    TOKEN,
    deployed,
    opened,
    post,
    refused,
    sign,
    start,
    stream_path,
)
from tests.e2e.test_repeated_webhooks import pair
from tests.fleet.redis_server import RedisServer
from tests.support.waiting import until

HANDSHAKE = (
    b"GET /media HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
LONGEST_TURN = 0.1
"""CPU seconds of one turn of the event loop. A packet of audio is due each 20 ms; this
is what a slow machine may need for the rest of its work."""

FLOODS = {
    "pings": Frame(Opcode.PING, b""),
    "pongs": Frame(Opcode.PONG, b""),
    "texts": Frame(Opcode.TEXT, b""),
    "binary": Frame(Opcode.BINARY, b""),
}
HUGE = b"200 <" + b"x" * 2**20
FRAGMENTS = {"text": Opcode.TEXT, "binary": Opcode.BINARY}


def new_call() -> str:
    return "CA" + secrets.token_hex(16)


class FloodingModel(threading.Thread):
    """A model server that answers the handshake and then sends `piece` without a pause,
    on each connection, until the bridge closes it. It never reads."""

    def __init__(self, piece: bytes, seconds: float, *, endless: bool = True) -> None:
        super().__init__(daemon=True)
        self._endless = endless
        self._piece, self._until = piece, time.monotonic() + seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(seconds)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v1/realtime"
        self.floods = 0

    def run(self) -> None:
        with self._listener, contextlib.suppress(OSError):
            while time.monotonic() < self._until:
                bridge_side, _ = self._listener.accept()
                with bridge_side, contextlib.suppress(OSError):
                    self._flood(bridge_side)

    def _flood(self, bridge_side: socket.socket) -> None:
        bridge_side.settimeout(2.0)
        head = b""
        while b"\r\n\r\n" not in head:
            head += bridge_side.recv(4096)
        found = re.search(rb"Sec-WebSocket-Key: *(\S+)", head, re.I)
        assert found is not None
        answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        answer += "Connection: Upgrade\r\nSec-WebSocket-Accept: "
        answer += accept_key(found[1].decode()) + "\r\n\r\n"
        bridge_side.sendall(answer.encode())
        self.floods += 1
        while self._endless and time.monotonic() < self._until:
            bridge_side.sendall(self._piece * 4000)
        # With unread data in it, closing resets the connection.
        bridge_side.sendall(self._piece * 100_000)
        bridge_side.recv(1)
        time.sleep(0.1)


class Flood(threading.Thread):
    """A phone that sends `first` and then `piece` without a pause, until the bridge
    closes the connection or `seconds` are over. It never reads."""

    def __init__(self, port: int, first: bytes, piece: bytes, seconds: float) -> None:
        super().__init__(daemon=True)
        self._port, self._first, self._piece = port, first, piece
        self._seconds = seconds
        self.was_closed = False

    def run(self) -> None:
        until = time.monotonic() + self._seconds
        with socket.create_connection(("127.0.0.1", self._port)) as phone:
            phone.settimeout(self._seconds)
            with contextlib.suppress(TimeoutError):
                try:
                    phone.sendall(HANDSHAKE)
                    phone.recv(4096)
                    phone.sendall(self._first)
                    while time.monotonic() < until:
                        phone.sendall(self._piece * 2000)
                except OSError as error:
                    self.was_closed = not isinstance(error, TimeoutError)


@asynccontextmanager
async def turns() -> AsyncIterator[list[float]]:
    """The CPU time of each turn of the event loop."""
    found: list[float] = []

    async def measure() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            found.append(time.thread_time() - before)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(measure(), name="turns")
        try:
            yield found
        finally:
            task.cancel()


def begin() -> bytes:
    return Frame(Opcode.TEXT, start(new_call()).encode()).serialize(mask=True)


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.both_loops
async def test_a_flood_behind_the_end_of_a_stream_delays_no_other_call(
    name: str,
) -> None:
    """The bridge has closed a stream that sends too much, and reads what still arrives
    until the connection is closed. Each packet of it stopped all calls for 0.4 s: the
    40,000 frames of a packet were parsed in one turn of the event loop."""
    async with bridge() as place:
        piece = FLOODS[name].serialize(mask=True)
        flood = Flood(place.server.port, begin(), piece, 8.0)
        async with turns() as found:
            flood.start()
            await until(lambda: not flood.is_alive())

        assert flood.was_closed
        assert max(found) < LONGEST_TURN


@pytest.mark.slow
@pytest.mark.parametrize(("name", "endless"), [("pings", False), ("texts", True)])
@pytest.mark.both_loops
async def test_a_flood_of_a_model_delays_no_other_call(
    name: str, endless: bool
) -> None:
    """A broken model server costs its own call, not the others. What it sent behind the
    end of the connection stopped all calls for half a second; 200 kB of pings and a
    reset, for 10 s: each was answered, and asyncio logged each answer as lost."""
    piece = FLOODS[name].serialize(mask=False)
    model = FloodingModel(piece, 8.0, endless=endless)
    model.start()
    async with bridge(model_url=model.url) as place:
        reader, phone = await asyncio.open_connection("127.0.0.1", place.server.port)
        phone.write(HANDSHAKE + begin())
        async with turns() as found:
            await until(lambda: not model.is_alive())
        phone.transport.abort()
        await reader.read()

        assert model.floods
        assert max(found) < LONGEST_TURN


@pytest.mark.parametrize("name", FRAGMENTS)
@pytest.mark.both_loops
async def test_fragments_without_end_end_the_stream(name: str) -> None:
    """Empty fragments are no message and no byte, so no limit counted them: one stream
    took all CPU and 1 MB of memory a second, as long as a call may last."""
    async with bridge() as place:
        first = Frame(FRAGMENTS[name], b"", fin=False).serialize(mask=True)
        piece = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
        flood = Flood(place.server.port, begin() + first, piece, 8.0)
        flood.start()
        await until(lambda: not flood.is_alive())

        assert flood.was_closed


def _stamped(text: bytes) -> bytes:
    return b"%d+%s" % (time.time() * 1e6, text)


async def _answer(place: RunningBridge, form: dict[str, str]) -> tuple[int, str]:
    return await post(place, form, sign(PUBLIC + "/voice", form))


@pytest.mark.parametrize("what", [b"garbage", b"answered \xff\xfe"])
async def test_a_claim_of_a_webhook_that_is_none(
    what: bytes, server: RedisServer
) -> None:
    """A text that no bridge has written, under the name of a webhook that was not yet
    answered: the caller is served."""
    async with deployed(redis_url=SecretStr(server.url)) as place:
        form = {**FORM, "CallSid": new_call()}
        digest = hashlib.sha256(sign(PUBLIC + "/voice", form).encode()).hexdigest()[:32]
        server.client.set(f"bridge:store:webhook:{digest}", _stamped(what), ex=60)
        status, text = await _answer(place, form)

        assert status == 200 and "<Stream" in text
        assert place.metric('bridge_redis_keys_ignored_total{key="store"}') == 1


@pytest.mark.parametrize(
    "what",
    [b"", b"abc <x/>", b"200 \xff", b"99999 x", b"-1 x", b"999 <x/>", b"200 x", HUGE],
)
async def test_an_answer_of_a_webhook_that_is_none(
    what: bytes, server: RedisServer
) -> None:
    """A text that no bridge has written, in the place of the stored answer: the copy of
    the webhook is refused like one whose answer is gone, and nothing fails."""
    async with pair(server) as (one, two):
        form = {**FORM, "CallSid": new_call()}
        digest = hashlib.sha256(sign(PUBLIC + "/voice", form).encode()).hexdigest()[:32]
        assert (await _answer(one, form))[0] == 200
        key = f"bridge:store:webhook_answer:{digest}"
        await until(lambda: server.client.get(key))
        server.client.set(key, _stamped(what), ex=60)

        assert (await _answer(two, form))[0] == 403
        assert two.metric('bridge_redis_keys_ignored_total{key="store"}') == 1


async def test_two_accounts_name_one_call_at_once(server: RedisServer) -> None:
    """Two bridges get the first webhooks of a call, each of another account: one of
    them is refused. Both were accepted, and the later one owned the call."""
    conf = {"redis_url": SecretStr(server.url), **ACCOUNTS}
    async with deployed(**conf) as one, deployed(**conf) as two:
        for _ in range(40):
            call = new_call()
            answers = await asyncio.gather(
                posted(one, form_of(ACCOUNT, call), TOKEN),
                posted(two, form_of(SUB, call), SUB_TOKEN),
            )
            assert sorted(status for status, _ in answers) == [200, 403]


@pytest.mark.parametrize(
    "written", [r"\u002B15551234567", "+1\u00a0555\u00a0123\u00a04567"]
)
def test_numbers_in_texts_of_others(written: str) -> None:
    """JSON writers of .NET escape a plus sign, and formatters of numbers use
    no-break spaces: an exception that quotes such a text shows no number."""
    text = LogScrubber().text(f"no contact {written} found", theirs=True)

    assert "4567" not in text


async def test_a_used_ticket_after_redis_was_emptied(server: RedisServer) -> None:
    """The instance that has accepted a ticket knows that, also in the seconds before it
    notices that Redis has lost its data."""
    async with deployed(redis_url=SecretStr(server.url)) as place:
        path = await stream_path(place, {**FORM, "CallSid": new_call()})
        await (await opened(place, path)).close()
        server.client.flushall()

        assert await refused(place, path) == 403
