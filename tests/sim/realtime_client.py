"""A plain Realtime client for tests; the `openai` package validates each event."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from openai.types.realtime.realtime_client_event import RealtimeClientEvent
from openai.types.realtime.realtime_server_event import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect

from bridge.sim.model import (
    Behaviour,
    ModelServer,
    ModelSession,
)
from bridge.sim.voice import CALLER_VOICE, speak
from tests.support.waiting import until

Event = dict[str, Any]
SERVER_EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
CLIENT_EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeClientEvent)
QUICK: dict[str, Any] = {
    "think_seconds": 0.02,
    "transcribe_seconds": 0.02,
    "speed": 40.0,
}
PCMU: Event = {"type": "audio/pcmu"}
WEATHER: Event = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class Client:
    """A plain Realtime client that validates and keeps each event."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[Event] = []
        self.at: list[float] = []

    async def send(self, **event: Any) -> None:
        CLIENT_EVENTS.validate_python(event)
        await self.socket.send(json.dumps(event))

    async def next(self) -> Event:
        async with asyncio.timeout(30):
            event: Event = json.loads(await self.socket.recv())
        SERVER_EVENTS.validate_python(event)
        assert event["event_id"]
        self.events.append(event)
        self.at.append(time.monotonic())
        return event

    async def until(self, kind: str, **fields: Any) -> Event:
        while True:
            event = await self.next()
            if event["type"] == kind and fields.items() <= event.items():
                return event

    async def configure(self, *, formats: Event = PCMU, **session: Any) -> Event:
        audio = {"input": {"format": formats}, "output": {"format": formats}}
        audio["input"] |= session.pop("input", {})
        session = {"type": "realtime", "audio": audio} | session
        await self.send(type="session.update", session=session)
        return await self.until("session.updated")

    async def say(self, audio: bytes, *, silence: bytes = b"\xff" * 8000) -> None:
        """Append in frames of 20 ms, then enough silence to end the turn."""
        for data in (audio, silence):
            for at in range(0, len(data), 160):
                encoded = base64.b64encode(data[at : at + 160]).decode()
                await self.send(type="input_audio_buffer.append", audio=encoded)

    async def refused(self, **event: Any) -> Event:
        """The error that answers `event`, which must have an event_id."""
        await self.socket.send(json.dumps({"event_id": "mine"} | event))
        error: Event = (await self.until("error"))["error"]
        assert error["event_id"] == "mine"
        return error

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def audio(self, item_id: str | None = None) -> bytes:
        return b"".join(
            base64.b64decode(event["delta"])
            for event in self.events
            if event["type"] == "response.output_audio.delta"
            and item_id in (None, event["item_id"])
        )

    @classmethod
    @asynccontextmanager
    async def of(cls, server: ModelServer, query: str = "") -> AsyncIterator[Self]:
        address = server.url + query
        async with connect(address, compression=None, close_timeout=0.2) as socket:
            yield cls(socket)


@asynccontextmanager
async def talking(
    behaviour: Behaviour, **session: Any
) -> AsyncIterator[tuple[Client, ModelSession]]:
    """A configured client, and its session on the server."""
    async with ModelServer(behaviour) as server, Client.of(server) as client:
        await client.until("session.created")
        await client.configure(**session)
        yield client, server.sessions[0]


def speech(text: str = "Hello, is anybody there?") -> bytes:
    return speak(text, voice=CALLER_VOICE).mulaw()


async def until_active(server: ModelServer, count: int) -> None:
    """Wait until the server has `count` sessions."""
    await until(lambda: server.active <= count)
