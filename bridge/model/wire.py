"""The model's side of a call, as one socket that does not end: sessions come and go.

The SDK sees a websocket (`async for`, `send`, `close`) and never that a connection was
lost; audio deltas never reach it. The core decides when to dial and when to switch. A
stuck SDK does not stop the audio: a connection has a reader of its own, and one writer.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import msgspec
import openai.types.realtime as openai_realtime
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from bridge.core import ProtocolError, errors, realtime_events
from bridge.core.bounds import MessageRate
from bridge.model.transcode import ModelAudio

MAX_OUT = 2000
"""Events waiting to be sent: twice the audio that may be held, or 40 s of frames."""

MAX_TO_SDK = 2000
"""Events the SDK has not taken. Ten answers are a few hundred: it is stuck."""

MAX_WAITING_CHARS = 32 * 1024 * 1024
"""Of events that wait to be sent, and of those that the SDK has not taken. A session is
given 15 MB at most: history, results of tools, a minute of the caller's voice."""

MAX_EVENT_CHARS = 2 * 1024 * 1024
"""Of an event that is looked into. A result of a tool that comes back in escapes has
600 kB, audio half of this at most (realtime_events.MAX_DELTA_CHARS); to read more of it
would hold all calls up."""

EVENTS_PER_SECOND = 1000.0
CHARS_PER_SECOND = 4 * 1024 * 1024.0
FLOOD_SECONDS = 20.0
"""A server sends no more than this on the average of so long. Answers are made ten
times as fast as they are heard: 200 events a second and 1 MB, where they are PCM; one
of ten minutes that comes at once has 6,000 events and 40 MB."""

MAX_PARTS = 5000
"""Of the lists of an event: the SDK takes up to 30 us to look at each, and meanwhile no
call goes on. A session with 128 tools has some hundreds."""

PARTS_AN_EVENT = 10
"""So many are another event of EVENTS_PER_SECOND."""

AT_ONCE = 20
"""Events that are taken before other calls have their turn: a server that sends a
thousand in one packet holds nobody else up."""

SEND_SECONDS = 10.0
"""A socket that takes nothing for so long is dead, though nobody said so."""

PHONE_FORMAT = {"type": realtime_events.MULAW}

SESSION_ID = "bridge_session"
"""Begins the event_id of every session.update, so that a refusal is known for what it
is."""


def _known_types() -> frozenset[str]:
    union = get_args(openai_realtime.RealtimeServerEvent)[0]
    return frozenset(
        get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(union)
    )


_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""May be one: a whole character can be written as two of them."""

KNOWN_TYPES = _known_types()
"""What the SDK can validate; it makes an error of anything else."""


JITTER_SECONDS = 0.15
"""Hundreds of calls that lose the same model do not dial it in the same moment."""

MAX_KNOWN = 2000
"""Items the SDK has seen, so that it does not see them again with the next session."""

MAX_OPEN = 64
"""Answers under way, for the SDK; there is one, as a rule."""

MAX_UPDATES = 16
"""Changes of a session that are made again with the next one."""


class ModelRefused(Exception):
    """The model did not take us. `why` is a short fixed phrase, fit to be logged;
    `fatal`: nor will it, however often it is tried."""

    def __init__(self, why: str, *, fatal: bool) -> None:
        super().__init__(why)
        self.why = why
        self.fatal = fatal


class WireOwner(Protocol):
    """The call, as the model's side sees it. Nothing here waits."""

    def model_event(self, event: realtime_events.ServerEvent, text: str) -> None: ...
    def model_misread(self, reason: str) -> None: ...
    def model_dialled(self) -> None:
        """A connection is open, and waits for `Wire.switch`."""

    def model_not_dialled(self, why: str, fatal: bool) -> None: ...
    def model_lost(self, why: str, code: int | None) -> None: ...
    def model_stuck(self, why: str) -> None:
        """No other connection would help."""

    def model_limit(self, limit: str) -> None:
        """It sends more than we bear: one of bridge.core.limits.HITS."""

    def send_to_model(self, text: str) -> None:
        """A client event of the SDK's, or of the user's own."""

    def ask(self) -> None:
        """An answer is wanted, as soon as the model is free."""


Dial = Callable[[], Awaitable[ClientConnection]]
"""An open socket to the model, or ModelRefused."""


Shape = Callable[[dict[str, Any]], None]
"""Puts into the `session` of a session.update what the SDK cannot say."""


@dataclass(frozen=True, slots=True)
class Update:
    """A change of the session, as it was sent."""

    event_id: str
    text: str


class ModelConnection:
    """One connection. Its two tasks end with it, or are ended by `drop`."""

    def __init__(self, socket: ClientConnection, wire: "Wire", pcm: bool) -> None:
        self._socket = socket
        self._wire = wire
        self._audio = ModelAudio() if pcm else None
        """Stands between us and a model that takes no mu-law."""
        self._out: asyncio.Queue[tuple[str, float]] = asyncio.Queue(MAX_OUT)
        self._out_chars = 0
        self._closed = False
        self._reader = wire.begin(self._read(), "model reader")
        self._writer = wire.begin(self._write(), "model writer")

    def post(self, text: str) -> None:
        """Sends an event, in order, without waiting for it."""
        if self._closed:
            return
        if self._audio:
            text = self._audio.to_model(text)
        if self._out.full() or self._out_chars + len(text) > MAX_WAITING_CHARS:
            self._lose("stuck")
            return
        self._out_chars += len(text)
        self._out.put_nowait((text, time.monotonic()))

    async def drop(self) -> None:
        """Safe to call twice. The peer gets `close_timeout` of the socket to answer."""
        self._closed = True
        self._reader.cancel()
        self._writer.cancel()
        await self._socket.close()

    def leave(self) -> None:
        """As `drop`, without waiting; nothing more comes from here."""
        self._closed = True
        self._reader.cancel()
        self._writer.cancel()
        self._wire.begin(self._socket.close(), "model close")

    async def _read(self) -> None:
        taken = 0
        try:
            async for text in self._socket:
                taken += 1
                if taken % AT_ONCE == 0:
                    await asyncio.sleep(0)
                if not self._wire.bears(text):
                    continue
                if self._audio and isinstance(text, str):
                    for each in self._audio.from_model(text):
                        self._wire.take(each)
                else:
                    self._wire.take(text)
            self._lose("closed")
        except ConnectionClosed as error:
            # With a close frame of 1000 or 1001 the loop above ends; this is any other.
            if error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self._wire.too_big()
            self._lose("lost")

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                text, since = await self._out.get()
                async with asyncio.timeout(SEND_SECONDS) as limit:
                    self._out_chars -= len(text)
                    await self._socket.send(text)
                    while not self._out.empty():
                        limit.reschedule(loop.time() + SEND_SECONDS)  # for each anew
                        text, since = self._out.get_nowait()
                        self._out_chars -= len(text)
                        await self._socket.send(text)
                self._wire.on_sent(time.monotonic() - since)
        except (ConnectionClosed, TimeoutError):
            # The reader tells why; unless it is the one that waits for ever.
            self._lose("lost")

    def _lose(self, why: str) -> None:
        if not self._closed:
            code = self._socket.close_code
            self.leave()
            self._wire.connection_lost(why, code)


class Wire:
    """All connections of one call to its model, one at a time."""

    def __init__(
        self,
        dial: Dial,
        owner: WireOwner,
        tasks: asyncio.TaskGroup,
        name: str,
        on_interrupted: Callable[[str, int], Awaitable[None]],
        on_sent: Callable[[float], None],
        shape: Shape,
        *,
        on_left: Callable[[], None] = lambda: None,
        pcm: bool = False,
    ) -> None:
        """`on_left` is called when a connection was lost or left, once the line knows.
        `pcm`: a model that takes no mu-law."""
        self._connect = dial
        self._owner = owner
        self._tasks = tasks
        self._name = name
        self._pcm = pcm
        self._shape = shape
        self._on_interrupted = on_interrupted
        self.on_sent = on_sent
        """Told how long the last event lay here before it was sent, in seconds."""
        self._connection: ModelConnection | None = None
        self._next: ClientConnection | None = None
        """Dialled, and not in use yet."""
        self._on_left = on_left
        self._settled: list[str] = []
        """What makes a session ours, made again with each ..."""
        self._latest: dict[int, Update] = {}
        """... and the newest changes of it, which may yet be refused."""
        self._serial = 0
        self._to_sdk: asyncio.Queue[str | tuple[str, int] | None] = asyncio.Queue()
        self._to_sdk_chars = 0
        self._given = 0
        """Events that the SDK has taken."""
        self._events = MessageRate(EVENTS_PER_SECOND, FLOOD_SECONDS)
        self._chars = MessageRate(CHARS_PER_SECOND, FLOOD_SECONDS)
        self._open: dict[str, None] = {}
        """Answers that the SDK knows to be under way."""
        self._shown: dict[str, None] = {}
        """Items that the SDK has seen in this session ..."""
        self._known: dict[str, None] = {}
        """... and in those before."""
        self._drowned = False
        """The server has sent beyond all measure."""
        self._began = False
        """The SDK has seen a session begin: it sees no other."""
        self._closed = False
        self._dialler: asyncio.Task[None] | None = None

    # --- what the call uses ---

    def dial(self, seconds: float, *, spare: bool = False) -> None:
        """A connection is wanted; the one in use, if any, stays only with `spare`."""
        if not spare:
            self._hang()
        if self._began or seconds:
            seconds *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            seconds += random.uniform(0.0, JITTER_SECONDS)  # noqa: S311 - nor this
        self._dialler = self.begin(self._dial(seconds), "model dialler")

    def switch(self) -> None:
        """The connection that was dialled is used from now on."""
        socket, self._next = self._next, None
        assert socket is not None, "there is a connection to switch to"
        self.use(socket)

    def use(self, socket: ClientConnection) -> None:
        """This one is, from now on."""
        self._hang()
        self._connection = ModelConnection(socket, self, self._pcm)
        for update in self._updates:
            self._connection.post(update)

    def post(self, text: str) -> None:
        """Sends an event, in order, without waiting for it."""
        if self._connection is not None:
            self._connection.post(text)

    def put(self, text: str) -> None:
        """An event of the SDK's, or the user's own. Every change of the session is
        shaped, and has mu-law in it; it is made at once, and with every session to
        come. All else is the call's to send: it knows whether there is a model, who
        is speaking, what is owed and what must be told before."""
        text = whole(text)
        if is_plain_request(text):
            self._owner.ask()
        elif is_update(text):
            self._update(text)
        else:
            self._owner.send_to_model(text)

    def interrupted(self, item_id: str, content_index: int) -> None:
        """The SDK's listeners are to know, after the events before it."""
        self._hand_on((item_id, content_index))

    # --- what the SDK uses of a websocket ---

    def __aiter__(self) -> "Wire":
        return self

    async def __anext__(self) -> str:
        while True:
            self._given += 1
            if self._given % AT_ONCE == 0:
                await asyncio.sleep(0)
            event = await self._to_sdk.get()
            if event is None:
                # Iteration ends as it does behind a clean close: the SDK's stream ends.
                raise StopAsyncIteration
            if isinstance(event, str):
                self._to_sdk_chars -= len(event)
                return event
            await self._on_interrupted(*event)

    async def send(self, text: str) -> None:
        self.put(text)

    async def close(self) -> None:
        """Safe to call twice."""
        self._closed = True
        if self._dialler is not None:
            self._dialler.cancel()
        self._to_sdk.put_nowait(None)
        spare, self._next = self._next, None
        if spare is not None:
            await spare.close()
        if self._connection is not None:
            await self._connection.drop()

    # --- what a connection uses ---

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=f"{self._name} {name}")

    def bears(self, text: str | bytes) -> bool:
        """An event has come; False: it is not to be looked into."""
        now, size = time.monotonic(), len(text)
        if not self._events.add(1.0, now):
            self._flooded("model_flood")
            return False
        if not self._chars.add(size, now):
            self._flooded("model_bytes")
            return False
        if size > MAX_EVENT_CHARS:
            self.too_big()
            return False
        return True

    def too_big(self) -> None:
        """An event was: it is left out."""
        self._owner.model_limit("model_bytes")
        self._owner.model_misread("event too large")

    def take(self, text: str | bytes) -> None:
        """An event of the server's."""
        if not isinstance(text, str):
            self._owner.model_misread("binary event")
            return
        try:
            event = realtime_events.decode(text)
        except ProtocolError as error:
            self._owner.model_misread(error.reason)
            return
        if isinstance(event, realtime_events.ModelError):
            self._refused(event.error)
        self._owner.model_event(event, text)
        if isinstance(event, realtime_events.AudioDelta):
            return
        if isinstance(event, realtime_events.Other) and event.type not in KNOWN_TYPES:
            self._owner.model_misread("unknown event")
            return
        parts = _parts_of(text)
        if parts is None:
            self._owner.model_misread("event that the SDK cannot read")
        elif parts > MAX_PARTS:
            self.too_big()
        elif not self._events.add(parts / PARTS_AN_EVENT, time.monotonic()):
            self._flooded("model_flood")
        elif self._is_news(event):
            self._hand_on(text)

    def connection_lost(self, why: str, code: int | None) -> None:
        self._connection = None
        self._end_answers()
        if not self._closed:
            self._owner.model_lost(why, code)
            self._on_left()

    # --- inside ---

    def _flooded(self, limit: str) -> None:
        """The server sends without end: another connection would be to the same."""
        if not self._drowned:
            self._drowned = True
            self._owner.model_limit(limit)
            self._owner.model_stuck("flood")

    @property
    def _updates(self) -> list[str]:
        """What another session is given to be ours."""
        made = self._settled
        for update in self._latest.values():
            made = updates(made, update.text)
        return made

    def _update(self, text: str) -> None:
        self._serial += 1
        update = shaped(text, self._shape, f"{SESSION_ID}_{self._serial}")
        event_id = msgspec.json.decode(update)["event_id"]
        self._latest[self._serial] = Update(event_id, update)
        if len(self._latest) > MAX_UPDATES:
            oldest = self._latest.pop(next(iter(self._latest)))
            self._settled = updates(self._settled, oldest.text)
        self.post(update)

    def _refused(self, error: realtime_events.ErrorDetails) -> None:
        """A change that the server will not have was none: what counted before it
        counts again, or the next session would be refused for it."""
        if error.event_id is None or errors.may_pass(error):
            return
        # The newest, for a user's own name may be given to many.
        for serial, update in reversed(self._latest.items()):
            if update.event_id == error.event_id:
                del self._latest[serial]
                break

    async def _dial(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            socket = await self._connect()
        except ModelRefused as refused:
            self._owner.model_not_dialled(refused.why, refused.fatal)
            return
        if self._closed:
            await socket.close()
            return
        self._next = socket
        self._owner.model_dialled()

    def _hang(self) -> None:
        """The connection in use is left; the SDK sees its answers end."""
        if self._connection is not None:
            self._connection.leave()
            self._connection = None
            self._end_answers()
            self._on_left()

    def _end_answers(self) -> None:
        """What a connection has left under way ends for the SDK, which would wait for
        it before it sends anything more."""
        for response_id in self._open:
            self._hand_on(failed(response_id))
        self._open.clear()
        self._known |= self._shown
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._shown = {}

    def _is_news(self, event: realtime_events.ServerEvent) -> bool:
        """The SDK is to see it: not what a new session is given of the one before."""
        match event:
            case realtime_events.ResponseCreated(response=response):
                _remember(self._open, response.id, MAX_OPEN)
            case realtime_events.ResponseDone(response=response):
                self._open.pop(response.id, None)
            case (
                realtime_events.ItemAdded(item=item)
                | realtime_events.ItemDone(item=item)
            ):
                _remember(self._shown, item.id, MAX_KNOWN)
                return item.id not in self._known
            case realtime_events.Other(type="session.created"):
                began, self._began = self._began, True
                return not began
        return True

    def _hand_on(self, event: str | tuple[str, int]) -> None:
        if self._closed:
            return
        chars = self._to_sdk_chars + (len(event) if isinstance(event, str) else 0)
        if self._to_sdk.qsize() >= MAX_TO_SDK or chars > MAX_WAITING_CHARS:
            self._owner.model_stuck("sdk_stuck")
            return
        self._to_sdk_chars = chars
        self._to_sdk.put_nowait(event)


def _remember(memory: dict[str, None], key: str, most: int) -> None:
    """Keeps the newest, whatever a server sends."""
    memory[key] = None
    if len(memory) > most:
        del memory[next(iter(memory))]


def _parts_of(text: str) -> int | None:
    """How many parts its lists have, counted until they are too many. None: the SDK's
    own parser does not take it, which knows less of numbers than JSON does, and would
    end the session."""
    try:
        left = [json.loads(text)]
    except (ValueError, RecursionError):
        return None
    parts = 0
    while left and parts <= MAX_PARTS:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            parts += len(value)
            left += value
    return parts


def updates(before: list[str], update: str) -> list[str]:
    """The changes of a session that make it what it is, with one more.

    One with tools in it is the whole of it: of those before it only what it does not
    name counts.
    """
    session: Any = msgspec.json.decode(update)["session"]
    if "tools" not in session:
        return [*before, update][-MAX_UPDATES:]
    kept = [update]
    for text in before:
        event: Any = msgspec.json.decode(text)
        if "tools" in event["session"]:
            continue
        rest = {k: v for k, v in event["session"].items() if k not in session}
        if set(rest) - {"type"}:
            event["session"] = {"type": "realtime", **rest}
            kept.append(msgspec.json.encode(event).decode())
    return kept


def failed(response_id: str) -> str:
    """The end of an answer whose connection is gone, as a server would tell it."""
    response = {
        "id": response_id,
        "object": "realtime.response",
        "status": "failed",
        "status_details": {"type": "failed", "error": {"type": "connection_lost"}},
        "output": [],
    }
    event = {"type": "response.done", "event_id": "bridge_lost", "response": response}
    return msgspec.json.encode(event).decode()


def whole(text: str) -> str:
    """JSON without halves of characters (lone surrogates): a model may well put one
    into a tool's arguments, and what the tool makes of it is no JSON for anybody else.
    What cannot be read stays as it is."""
    if not _HALF.search(text):
        return text
    try:
        plain = json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        plain = text
    return plain.encode(errors="replace").decode()


def is_plain_request(text: str) -> bool:
    """A response.create that wants no more than an answer."""
    if '"response.create"' not in text:
        return False
    event: Any = msgspec.json.decode(text)
    return event.get("type") == "response.create" and not event.get("response")


def is_update(text: str) -> bool:
    """A change of the session."""
    if '"session.update"' not in text:
        return False
    event: Any = msgspec.json.decode(text)
    return bool(event.get("type") == "session.update")


def shaped(text: str, shape: Shape, event_id: str = SESSION_ID) -> str:
    """A session.update with what `shape` adds, and with mu-law both ways, whatever it
    said of audio before; with this `event_id` unless it has one of its own."""
    event: Any = msgspec.json.decode(text)
    event.setdefault("event_id", event_id)
    session = event["session"]
    shape(session)
    audio = session.get("audio")
    if audio is not None:
        for side in ("input", "output"):
            if audio.get(side) is not None:
                audio[side]["format"] = PHONE_FORMAT
    return msgspec.json.encode(event).decode()
