"""A minimal server that the fake Twilio can call: documents and a media WebSocket.

It shares nothing with the bridge. Tests set its answers and inspect what it received.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from xml.sax.saxutils import quoteattr

from aiohttp import web

Json = dict[str, Any]
AGENT = bytes(range(1, 251)) * 320  # 10 s of audio in which each position is unique


@dataclass
class Received:
    at: float
    message: Json


@dataclass
class TinyBridgeStream:
    """One media stream, as the server sees it."""

    socket: web.WebSocketResponse
    handshake: web.Request
    received: list[Received] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def stream_sid(self) -> str:
        return str(self.messages("start")[0]["streamSid"])

    def messages(self, event: str) -> list[Json]:
        return [
            each.message for each in self.received if each.message["event"] == event
        ]

    def times(self, event: str) -> list[float]:
        return [each.at for each in self.received if each.message["event"] == event]

    async def until(self, event: str, count: int = 1) -> None:
        """Wait for `count` messages of this kind."""
        while len(self.messages(event)) < count:
            self.arrived.clear()
            async with asyncio.timeout(30):
                await self.arrived.wait()

    async def media(self, audio: bytes) -> None:
        payload = base64.b64encode(audio).decode()
        await self.send("media", media={"payload": payload})

    async def mark(self, name: str) -> None:
        await self.send("mark", mark={"name": name})

    async def send(self, event: str, **fields: object) -> None:
        message = {"event": event, "streamSid": self.stream_sid, **fields}
        await self.socket.send_str(json.dumps(message))


Play = Callable[[TinyBridgeStream], Awaitable[None]]


@dataclass
class TinyBridge:
    """`plays` run one per stream; `documents` answer the webhooks by path."""

    origin: str = ""
    documents: dict[str, str | web.Response] = field(default_factory=dict)
    plays: list[Play] = field(default_factory=list)
    requests: list[tuple[web.Request, dict[str, str]]] = field(default_factory=list)
    talks: list[TinyBridgeStream] = field(default_factory=list)
    refuse: int = 0  # HTTP status for the handshake

    @property
    def media_url(self) -> str:
        return self.origin.replace("http", "ws") + "/media/x1"

    def forms(self, path: str) -> list[dict[str, str]]:
        return [form for request, form in self.requests if request.path == path]

    async def webhook(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.requests.append((request, form))
        answer = self.documents.get(request.path, "")
        if isinstance(answer, web.Response):
            return answer
        return web.Response(text=answer, content_type="text/xml")

    async def media(self, request: web.Request) -> web.StreamResponse:
        if self.refuse:
            return web.Response(status=self.refuse, headers={"Location": "/media/x2"})
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        talk = TinyBridgeStream(socket, request)
        self.talks.append(talk)
        play = self.plays.pop(0) if self.plays else None
        async with asyncio.TaskGroup() as group:
            if play is not None:
                group.create_task(self._play(play, talk))
            async for message in socket:
                talk.received.append(Received(monotonic(), json.loads(message.data)))
                talk.arrived.set()
        return socket

    @staticmethod
    async def _play(play: Play, talk: TinyBridgeStream) -> None:
        await talk.until("start")
        await play(talk)


def connect(
    url: str, action: str = "", callback: str = "", then: str = "", **named: str
) -> str:
    """A document that opens a stream."""
    attributes = f" action={quoteattr(action)}" if action else ""
    called = f" statusCallback={quoteattr(callback)}" if callback else ""
    inside = "".join(
        f"<Parameter name={quoteattr(name)} value={quoteattr(value)}/>"
        for name, value in named.items()
    )
    return (
        f"<Response><Connect{attributes}><Stream url={quoteattr(url)}{called}>"
        f"{inside}</Stream></Connect>{then}</Response>"
    )


@asynccontextmanager
async def tiny_bridge(*plays: Play) -> AsyncIterator[TinyBridge]:
    bridge = TinyBridge(plays=list(plays))
    app = web.Application()
    app.router.add_get("/media/{token}", bridge.media)
    app.router.add_post("/{path:.*}", bridge.webhook)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    bridge.origin = f"http://{host}:{port}"
    bridge.documents["/voice"] = connect(bridge.media_url)
    try:
        yield bridge
    finally:
        await runner.cleanup()
