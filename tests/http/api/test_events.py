"""The event stream of a call: in order, to the call's end, and never at its expense."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from bridge.agent.events import CallEvent
from bridge.core.limits import Limits
from bridge.http.api import auth, events
from bridge.privacy.redaction import Redaction
from tests.http.api.call_directory import TOKEN, ApiClient, api

pytestmark = pytest.mark.both_loops


@asynccontextmanager
async def listening(at: ApiClient, query: str = "") -> AsyncIterator["Reader"]:
    """A reader that has received the first line, so that it misses no event."""
    url = f"{at.url}/calls/{at.live.call_sid}/events{query}"
    async with at.http.get(url, headers=at.auth) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        reader = Reader(response.content)
        assert await reader.block() == [": events of the call"]
        yield reader


class Reader:
    """Reads server-sent events as the standard defines."""

    def __init__(self, content: Any) -> None:
        self._content = content

    async def block(self) -> list[str]:
        """The lines up to an empty one; none at the end of the stream."""
        lines: list[str] = []
        async with asyncio.timeout(5):
            while line := (await self._content.readline()).decode():
                if line == "\n":
                    return lines
                lines.append(line.removesuffix("\n"))
        return lines

    async def event(self) -> tuple[str, Any]:
        name, data = await self.block()
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        told = json.loads(data.removeprefix("data: "))
        assert told["at"] > 1_700_000_000
        return name.removeprefix("event: "), told


async def test_events_come_in_order_to_the_end_of_the_call() -> None:
    """A dashboard follows a call, and the stream ends with the call."""
    async with api() as at, listening(at) as reader:
        at.live.emit("caller_said", text="Hello\nthere", odd=complex(1, 2))
        at.live.emit("of my\nown", n=1)
        at.live.emit("call_ended", by="caller", why="hung_up")

        name, told = await reader.event()
        assert name == told["type"] == "caller_said"
        assert told["data"] == {"text": "Hello\nthere", "odd": "(1+2j)"}
        name, told = await reader.event()
        assert (name, told["type"]) == ("of my own", "of my\nown")
        assert (await reader.event())[0] == "call_ended"
        assert await reader.block() == []


@pytest.mark.parametrize(("query", "wanted"), [("", 1), ("?raw=0", 1), ("?raw=1", 2)])
async def test_model_events_are_sent_on_request(query: str, wanted: int) -> None:
    """Hundreds of deltas a second are sent only to readers that ask for them."""
    async with api() as at, listening(at, query) as reader:
        at.live.emit("raw_model_event", kind="response.done")
        at.live.emit("call_ended")

        names = [(await reader.event())[0] for _ in range(wanted)]
        assert names == ["raw_model_event", "call_ended"][-wanted:]
        assert await reader.block() == []


async def test_two_readers_get_the_same() -> None:
    """A dashboard and a recorder each get all events."""
    async with api() as at, listening(at) as one, listening(at) as other:
        at.live.emit("handoff", to="billing")

        assert await one.event() == await other.event()


async def test_a_call_without_a_last_event_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that failed leaves no reader waiting for ever."""
    monkeypatch.setattr(events, "POLL_SECONDS", 0.05)
    async with api() as at, listening(at) as reader:
        at.live.end()
        assert await reader.block() == []


async def test_a_quiet_stream_is_kept_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that closes silent connections does not close a quiet stream."""
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.05)
    async with api() as at, listening(at) as reader:
        assert await reader.block() == [":"]


async def test_a_reader_that_leaves_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A closed browser tab leaves no listener behind."""
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.02)
    async with api() as at:
        async with listening(at):
            assert at.live._listeners.wants("anything")
        await wait_until_no_listener(at)


async def test_a_reader_that_does_not_read_is_dropped() -> None:
    """A reader that takes nothing neither fills the memory nor stops other readers."""
    with capture_logs() as logged:
        async with api(Limits(send_seconds=0.2)) as at, stuck_reader(at):
            for _ in range(300):
                at.live.emit("caller_said", text="x" * 50_000)
                await asyncio.sleep(0)
            await wait_until_no_listener(at)

    assert "events_reader_slow" in [line["event"] for line in logged]
    assert at.hits == ["answer_slow"]


async def test_an_event_that_cannot_be_encoded_ends_the_stream() -> None:
    """The reader notices that the stream broke; the developer finds the error in the
    log."""
    data: dict[str, Any] = {}
    data["itself"] = data
    with capture_logs() as logged:
        async with api() as at, listening(at) as reader:
            at.live.emit("odd", data=data)
            with pytest.raises(aiohttp.ClientPayloadError):
                await reader.block()
            at.live.emit("even")
            await wait_until_no_listener(at)

    [line] = [line for line in logged if line["event"] == "events_failed"]
    assert line["call_sid"] == at.live.call_sid


async def test_a_reader_that_falls_behind_is_dropped() -> None:
    """No event is left out silently: the stream ends instead."""
    async with api() as at:
        feed = events.Feed(at.live, raw=False)
        for _ in range(events.MAX_WAITING + 1):
            await feed.put(CallEvent("caller_said"))
        with pytest.raises(events.TooSlow):
            await feed.next()


async def test_the_number_of_streams_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dashboard that opens a stream a second does not use up the instance's sockets.
    A reader that leaves frees its place."""
    monkeypatch.setattr(auth, "MAX_LISTENERS", 1)
    monkeypatch.setattr(events, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.02)
    async with api() as at:
        async with listening(at):
            answer = await at.get("/calls/{sid}/events")
            assert (answer.status, at.hits) == (429, ["api_rate"])
            assert (await at.get("/calls")).status == 200
        await wait_until_no_listener(at)
        async with listening(at):
            pass


async def test_event_streams_are_exempt_from_connection_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of connections does not drop the stream of a dashboard."""
    async with api(Limits(waiting_sockets=1)) as at, listening(at) as reader:
        for _ in range(3):
            assert (await at.get("/calls")).status == 200
        at.live.emit("handoff", to="billing")
        assert (await reader.event())[0] == "handoff"


async def wait_until_no_listener(at: ApiClient) -> None:
    """Waits until the call has no listener."""
    async with asyncio.timeout(5):
        while at.live._listeners.wants("anything"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def stuck_reader(at: ApiClient) -> AsyncIterator[None]:
    """A reader with a small window that sends a request and never reads."""
    host, port = at.url.removeprefix("http://").removesuffix("/api").split(":")
    request = (
        f"GET /api/calls/{at.live.call_sid}/events HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Authorization: Bearer {TOKEN}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    with socket.socket() as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        end.setblocking(False)
        await loop.sock_connect(end, (host, int(port)))
        await loop.sock_sendall(end, request.encode())
        async with asyncio.timeout(5):
            while not at.live._listeners.wants("anything"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield


async def test_events_are_redacted() -> None:
    """A dashboard that follows a payment sees no card number and no key. The user's own
    listeners get everything."""
    heard: list[CallEvent] = []
    card = "4111 1111 1111 1111"
    async with api() as at, listening(at) as reader:
        at.live.redaction = Redaction(cards=True)
        at.live.on(heard.append)
        at.live.emit("caller_said", item="item_1", text=f"It is {card}.")
        at.live.emit("key_pressed", digit="4")
        at.live.emit("tool_end", tool="pay", arguments=f'["{card}"]', output=card)
        at.live.emit("mine", card=4111111111111111, odd=OddCard())

        told = [(await reader.event())[1]["data"] for _ in range(4)]

    assert told == [
        {"item": "item_1", "text": "It is [card number]."},
        {"digit": "[keys]"},
        {"tool": "pay", "arguments": '["[card number]"]', "output": "[card number]"},
        {"card": "[card number]", "odd": "a card: [card number]"},
    ]
    assert heard[0].data["text"] == f"It is {card}."


@pytest.mark.parametrize(
    "field", ["name", "code", "item", "status", "voice", "id", "type", "model"]
)
async def test_any_field_of_an_own_event_is_redacted(field: str) -> None:
    """User code may emit `code=` or `id=` with what a caller said. The same fields of
    the bridge's own events are ids and types, which stay."""
    card = "4111 1111 1111 1111"
    async with api() as at, listening(at) as reader:
        at.live.redaction = Redaction(cards=True)
        at.live.emit("mine", **{field: card, "more": [{field: card}]})
        at.live.emit(f"paid with {card}")
        at.live._listeners.emit(CallEvent("said", {"item": "item_4111111111111111"}))

        told = [await reader.event() for _ in range(3)]

    assert told[0][1]["data"] == {
        field: "[card number]",
        "more": [{field: "[card number]"}],
    }
    assert told[1][0] == told[1][1]["type"] == "paid with [card number]"
    assert told[2][1]["data"] == {"item": "item_4111111111111111"}


async def test_the_name_of_a_message_is_redacted() -> None:
    """A caller who gives a number as name: `take_message` sends it as an event."""
    async with api() as at, listening(at) as reader:
        at.live.redaction = Redaction(digits=True)
        at.live.take_message("Please call.", name="Ann 4711", call_back="4712")

        _, told = await reader.event()

    assert told["data"] == {
        "text": "Please call.",
        "name": "Ann [digits]",
        "call_back": "[digits]",
    }


class OddCard:
    def __str__(self) -> str:
        return "a card: 4111111111111111"
