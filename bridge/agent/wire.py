"""The socket to the model: audio takes the short way, all else goes to the SDK too.

The SDK sees a websocket (`async for`, `send`, `close`). Audio deltas never reach it. A
stuck SDK does not stop the audio: the socket has a reader of its own, and one writer
for both.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, get_args

import msgspec
import openai.types.realtime as openai_realtime
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from bridge.core import ProtocolError, realtime
from bridge.core.transcode import ModelAudio

MAX_OUT = 2000
"""Events waiting to be sent: twice the audio that may be held, or 40 s of frames."""

MAX_TO_SDK = 2000
"""Events the SDK has not taken. Ten answers are a few hundred: it is stuck."""

SEND_SECONDS = 10.0
"""A socket that takes nothing for so long is dead, though nobody said so."""

PHONE_FORMAT = {"type": realtime.MULAW}

SESSION_ID = "bridge_session"
"""event_id of every session.update, so that a refusal is known for what it is."""


def _known_types() -> frozenset[str]:
    union = get_args(openai_realtime.RealtimeServerEvent)[0]
    return frozenset(
        get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(union)
    )


KNOWN_TYPES = _known_types()
"""What the SDK can validate; it makes an error of anything else."""


class Line(Protocol):
    """The call, as the model's side sees it. Nothing here waits."""

    def model_event(self, event: realtime.ServerEvent, text: str) -> None: ...
    def model_misread(self, reason: str) -> None: ...
    def model_lost(self, why: str, code: int | None) -> None: ...
    def ask(self) -> None:
        """An answer is wanted, as soon as the model is free."""


Shape = Callable[[dict[str, Any]], None]
"""Puts into the `session` of a session.update what the SDK cannot say."""


class Wire:
    """One connection to the model. Its two tasks end with it."""

    def __init__(
        self,
        socket: ClientConnection,
        line: Line,
        tasks: asyncio.TaskGroup,
        name: str,
        on_interrupted: Callable[[str, int], Awaitable[None]],
        on_sent: Callable[[float], None],
        shape: Shape,
        audio: ModelAudio | None = None,
    ) -> None:
        """`audio` stands between us and a model that takes no mu-law."""
        self._socket = socket
        self._audio = audio
        self._line = line
        self._shape = shape
        self._on_interrupted = on_interrupted
        self.on_sent = on_sent
        """Told how long the last event lay here before it was sent, in seconds."""
        self._out: asyncio.Queue[tuple[str, float]] = asyncio.Queue(MAX_OUT)
        self._to_sdk: asyncio.Queue[str | tuple[str, int] | None] = asyncio.Queue()
        self._closed = False
        self._reader = tasks.create_task(self._read(), name=f"{name} model reader")
        self._writer = tasks.create_task(self._write(), name=f"{name} model writer")

    # --- what the call uses ---

    def post(self, text: str) -> None:
        """Sends an event, in order, without waiting for it."""
        if self._audio:
            text = self._audio.to_model(text)
        try:
            self._out.put_nowait((text, time.monotonic()))
        except asyncio.QueueFull:
            self._lose("stuck")

    def interrupted(self, item_id: str, content_index: int) -> None:
        """The SDK's listeners are to know, after the events before it."""
        self._hand_on((item_id, content_index))

    # --- what the SDK uses of a websocket ---

    def __aiter__(self) -> "Wire":
        return self

    async def __anext__(self) -> str:
        while True:
            event = await self._to_sdk.get()
            if event is None:
                # Iteration ends as it does behind a clean close: the SDK's stream ends.
                raise StopAsyncIteration
            if isinstance(event, str):
                return event
            await self._on_interrupted(*event)

    async def send(self, text: str) -> None:
        """An event of the SDK's; every change of the session is shaped, and has mu-law
        in it. An answer is asked for by the call: it knows who is speaking, what is
        owed, and what the model must be told before."""
        if is_plain_request(text):
            self._line.ask()
        else:
            self.post(self.as_sent(text))

    def as_sent(self, text: str) -> str:
        return shaped(text, self._shape) if '"session.update"' in text else text

    async def close(self) -> None:
        """Safe to call twice. The peer gets `close_timeout` of the socket to answer."""
        self._closed = True
        self._reader.cancel()
        self._writer.cancel()
        self._to_sdk.put_nowait(None)
        await self._socket.close()

    # --- the tasks ---

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                if self._audio and isinstance(text, str):
                    for each in self._audio.from_model(text):
                        self._take(each)
                else:
                    self._take(text)
            self._lose("closed")
        except ConnectionClosed:
            # With a close frame of 1000 or 1001 the loop above ends; this is any other.
            self._lose("lost")

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                text, since = await self._out.get()
                async with asyncio.timeout(SEND_SECONDS) as limit:
                    await self._socket.send(text)
                    while not self._out.empty():
                        limit.reschedule(loop.time() + SEND_SECONDS)  # for each anew
                        text, since = self._out.get_nowait()
                        await self._socket.send(text)
                self.on_sent(time.monotonic() - since)
        except (ConnectionClosed, TimeoutError):
            # The reader tells why; unless it is the one that waits for ever.
            self._lose("lost")

    def _take(self, text: str | bytes) -> None:
        if not isinstance(text, str):
            self._line.model_misread("binary event")
            return
        try:
            event = realtime.decode(text)
        except ProtocolError as error:
            self._line.model_misread(error.reason)
            return
        self._line.model_event(event, text)
        if isinstance(event, realtime.AudioDelta):
            return
        if isinstance(event, realtime.Other) and event.type not in KNOWN_TYPES:
            self._line.model_misread("unknown event")
            return
        self._hand_on(text)

    def _hand_on(self, event: str | tuple[str, int]) -> None:
        if self._to_sdk.qsize() >= MAX_TO_SDK:
            self._lose("sdk_stuck")
        elif not self._closed:
            self._to_sdk.put_nowait(event)

    def _lose(self, why: str) -> None:
        if not self._closed:
            self._closed = True
            self._to_sdk.put_nowait(None)
            self._line.model_lost(why, self._socket.close_code)


def is_plain_request(text: str) -> bool:
    """A response.create that wants no more than an answer."""
    if '"response.create"' not in text:
        return False
    event: Any = msgspec.json.decode(text)
    return event.get("type") == "response.create" and not event.get("response")


def shaped(text: str, shape: Shape) -> str:
    """A session.update with what `shape` adds, and with mu-law both ways, whatever it
    said of audio before. Other events pass as they are.
    """
    event: Any = msgspec.json.decode(text)
    if event.get("type") != "session.update":
        return text
    event.setdefault("event_id", SESSION_ID)
    session = event["session"]
    shape(session)
    audio = session.get("audio")
    if audio is not None:
        for side in ("input", "output"):
            if audio.get(side) is not None:
                audio[side]["format"] = PHONE_FORMAT
    return msgspec.json.encode(event).decode()
