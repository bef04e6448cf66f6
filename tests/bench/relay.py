"""A bare relay: the least that the bridge's libraries need for a call.

    .venv/bin/python -m tests.bench.relay --model-url ws://127.0.0.1:8765/v1/realtime

It sends one append per frame of the caller, media and a mark per delta, `clear` and a
truncate when the caller speaks, and one session.update. It has no session, no SDK, no
limits, and nothing of the bridge. It uses only public APIs of aiohttp and websockets.
The bridge's CPU is judged by its ratio to this (tests.bench.ratio), because absolute
figures differ from machine to machine and from hour to hour.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import signal
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
from aiohttp import WSMsgType, web
from websockets.asyncio.client import ClientConnection, connect

APPEND = '{"type":"input_audio_buffer.append","audio":"'
UPDATE = json.dumps(
    {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "instructions": "You are a friendly receptionist.",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcmu"},
                    "turn_detection": {"type": "server_vad"},
                },
                "output": {"format": {"type": "audio/pcmu"}},
            },
        },
    }
)


class Media(msgspec.Struct):
    payload: str = ""
    timestamp: str = "0"


class PhoneMessage(msgspec.Struct):
    event: str
    media: Media | None = None
    stream_sid: str = msgspec.field(name="streamSid", default="")


class ModelEvent(msgspec.Struct):
    type: str
    delta: str = ""
    item_id: str = ""


read_phone = msgspec.json.Decoder(PhoneMessage).decode
read_model = msgspec.json.Decoder(ModelEvent).decode


class Call:
    """What both directions share."""

    def __init__(self, phone: web.WebSocketResponse, model: ClientConnection) -> None:
        self.phone = phone
        self.model = model
        self.sid = ""
        self.time_ms = 0  # of the stream's media clock
        self.item = ""  # the newest item
        self.began_ms = 0  # when its audio began
        self.sent_ms = 0  # of its audio
        self.marks = itertools.count(1)

    async def from_phone(self) -> None:
        async for message in self.phone:
            if message.type is not WSMsgType.TEXT:
                return
            said = read_phone(message.data)
            if said.event == "media" and said.media is not None:
                self.time_ms = int(said.media.timestamp)
                await self.model.send(f'{APPEND}{said.media.payload}"}}')
            elif said.event == "start":
                self.sid = said.stream_sid
            elif said.event == "stop":
                return

    async def from_model(self) -> None:
        async for text in self.model:
            event = read_model(text)
            if event.type == "response.output_audio.delta":
                await self._play(event)
            elif event.type == "input_audio_buffer.speech_started":
                await self._interrupt()

    async def _play(self, event: ModelEvent) -> None:
        if event.item_id != self.item:
            self.item, self.sent_ms, self.began_ms = event.item_id, 0, self.time_ms
        self.sent_ms += len(event.delta) * 3 // 4 // 8
        await self.phone.send_str(
            f'{{"event":"media","streamSid":"{self.sid}",'
            f'"media":{{"payload":"{event.delta}"}}}}'
        )
        await self.phone.send_str(
            f'{{"event":"mark","streamSid":"{self.sid}",'
            f'"mark":{{"name":"{next(self.marks)}"}}}}'
        )

    async def _interrupt(self) -> None:
        heard_ms = self.time_ms - self.began_ms
        if not self.item or heard_ms >= self.sent_ms:
            return
        await self.phone.send_str(f'{{"event":"clear","streamSid":"{self.sid}"}}')
        truncate = {
            "type": "conversation.item.truncate",
            "item_id": self.item,
            "content_index": 0,
            "audio_end_ms": heard_ms,
        }
        self.item = ""
        await self.model.send(json.dumps(truncate))


async def media(url: str, tls: ssl.SSLContext | None, request: web.Request) -> Any:
    phone = web.WebSocketResponse(compress=False)
    await phone.prepare(request)
    async with connect(url, compression=None, max_size=None, ssl=tls) as model:
        await model.send(UPDATE)
        call = Call(phone, model)
        async with asyncio.TaskGroup() as tasks:
            to_phone = tasks.create_task(call.from_model())
            await call.from_phone()
            to_phone.cancel()
    await phone.close()
    return phone


async def voice(request: web.Request) -> web.Response:
    stream = f'<Stream url="ws://{request.host}/media"/>'
    text = f"<Response><Connect>{stream}</Connect></Response>"
    return web.Response(text=text, content_type="text/xml")


async def serve(host: str, port: int, model_url: str) -> None:
    tls = ssl.create_default_context() if model_url.startswith("wss:") else None
    app = web.Application()
    app.router.add_post("/voice", voice)
    app.router.add_get("/media", partial(media, model_url, tls))
    # As in the bridge: a collection of all imported modules takes milliseconds.
    gc.collect()
    gc.freeze()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    _, bound = runner.addresses[0][:2]
    print(f"http://{host}:{bound}/voice pid {os.getpid()}", flush=True)
    await stop.wait()
    await runner.cleanup()


def runner(on_uvloop: bool) -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop is optional: without it, `--uvloop` is an error."""
    if not on_uvloop:
        return asyncio.run
    import uvloop

    return uvloop.run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model-url", required=True, help="ws:// or wss:// URL")
    parser.add_argument("--uvloop", action="store_true", help="run on uvloop")
    options = parser.parse_args()
    runner(options.uvloop)(serve(options.host, options.port, options.model_url))


if __name__ == "__main__":
    main()
