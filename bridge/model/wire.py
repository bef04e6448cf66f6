"""One lasting socket to the model for the SDK, over any number of model connections.

The SDK sees a WebSocket (`async for`, `send`, `close`). It never sees a lost connection
or an audio delta. The core decides when to dial and when to switch connections. Each
connection has its own reader and writer task, so a stuck SDK does not stop the audio.
"""

import asyncio
import contextlib
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
from bridge.core.limits import MessageRate
from bridge.model.sdk_events import (
    EVENTS_BEFORE_YIELD,
    MAX_WAITING_CHARS,
    SdkEvents,
)
from bridge.model.transcode import ModelAudio

MAX_OUT = 2000
"""Limit of events queued for sending: 40 s of frames, twice the caller audio that is
held."""

MAX_EVENT_CHARS = 2 * 1024 * 1024
"""Largest event that is decoded: decoding a larger one would delay all calls. An echoed
tool result with escapes has 600 kB, audio at most half of this limit
(realtime_events.MAX_DELTA_CHARS)."""

EVENTS_PER_SECOND = 1000.0
CHARS_PER_SECOND = 4 * 1024 * 1024.0
FLOOD_SECONDS = 20.0
"""Period over which the limits EVENTS_PER_SECOND and CHARS_PER_SECOND are averaged.
A model generates ten times faster than real time: 200 events and, as PCM, 1 MB a
second. An answer of ten minutes sent at once has 6,000 events and 40 MB."""

MAX_PARTS = 5000
"""Limit of list elements in one event: the SDK blocks all calls for up to
30 us with each. A session with 128 tools has some hundreds."""

PARTS_PER_EVENT = 10
"""This many list elements count as one more event against EVENTS_PER_SECOND."""

SEND_SECONDS = 10.0
"""A socket that accepts no data for this time counts as lost."""

CLOSE_SECONDS = 1.0
"""Time for a connection to close: to send what still waits, and for the server to
answer the close frame."""

PHONE_FORMAT = {"type": realtime_events.MULAW}

SESSION_ID = "bridge_session"
"""Prefix of the event_id of every session.update. When the server refuses an update,
its error names the event_id."""


def _known_types() -> frozenset[str]:
    union = get_args(openai_realtime.RealtimeServerEvent)[0]
    return frozenset(
        get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(union)
    )


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""A surrogate, lone or one of a valid pair."""

KNOWN_TYPES = _known_types()
"""Event types the SDK can validate; any other makes it report an error."""

JITTER_SECONDS = 0.15
"""Longest random delay of a redial: calls that lose the same model do not redial at the
same moment."""

MAX_UPDATES = 16
"""Limit of session updates that are sent again to the next session."""


class ModelRefused(Exception):
    """The model refused the connection. `why` is a short fixed phrase that is safe to
    log; `fatal`: retrying is useless."""

    def __init__(self, why: str, *, fatal: bool) -> None:
        super().__init__(why)
        self.why = why
        self.fatal = fatal


class WireOwner(Protocol):
    """The call's methods that the wire calls. None of them waits."""

    def model_event(
        self, connection: int, event: realtime_events.ServerEvent, text: str
    ) -> None: ...
    def model_misread(self, reason: str) -> None: ...
    def model_dialled(self, connection: int) -> None:
        """A dialled connection is open and waits for `Wire.switch`."""

    def model_not_dialled(self, connection: int, why: str, fatal: bool) -> None: ...
    def model_lost(self, connection: int, why: str, code: int | None) -> None: ...
    def model_stuck(self, why: str) -> None:
        """The call cannot go on, and another connection would not help."""

    def model_limit(self, limit: str) -> None:
        """The server reached a limit, which is one of bridge.core.limits.HITS."""

    def send_to_model(self, text: str) -> None:
        """A client event of the SDK or of user code, for the call to send."""

    def ask(self) -> None:
        """Requests a response as soon as the model is free."""


Dial = Callable[[], Awaitable[ClientConnection]]
"""Opens a socket to the model, or raises ModelRefused."""

Lost = Callable[[int, str, int | None], None]
"""(connection, why, close code): a connection is lost, as in WireOwner.model_lost."""

Shape = Callable[[dict[str, Any]], None]
"""Adds settings that the SDK cannot express to the `session` of a session.update."""


@dataclass(frozen=True, slots=True)
class Update:
    """A session.update as it was sent."""

    event_id: str
    text: str


class ModelConnection:
    """One connection to the model. Its two tasks end when it is lost or closed."""

    def __init__(
        self, number: int, socket: ClientConnection, wire: "Wire", pcm: bool
    ) -> None:
        self.number = number
        self._socket = socket
        self._wire = wire
        self._audio = ModelAudio() if pcm else None
        """Transcodes for a model that accepts no mu-law."""
        self._out: asyncio.Queue[tuple[str, float]] = asyncio.Queue(MAX_OUT)
        self._out_chars = 0
        self._closed = False
        self._reader = wire.begin(self._read(), "model reader")
        self._writer = wire.begin(self._write(), "model writer")

    def post(self, text: str) -> None:
        """Queues an event for sending, in order."""
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
        """Closes the connection; safe to call twice."""
        self._closed = True
        self._reader.cancel()
        self._writer.cancel()
        await close_socket(self._socket)

    def leave(self) -> None:
        """Closes the connection like `drop`, in a task; no more events come from it."""
        self._closed = True
        self._reader.cancel()
        self._writer.cancel()
        closing = self._wire.begin(close_socket(self._socket), "model close")
        # Also if the call ends before the task begins.
        closing.add_done_callback(lambda _: self._socket.transport.abort())

    async def _read(self) -> None:
        received = 0
        try:
            async for text in self._socket:
                if self._closed:
                    # Cancelling a task takes effect only where it waits, and a socket
                    # with events that were read ahead does not wait.
                    return
                received += 1
                if received % EVENTS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
                if not self._wire.is_within_limits(text):
                    continue
                if self._audio and isinstance(text, str):
                    for each in self._audio.from_model(text):
                        self._wire.take(self.number, each)
                else:
                    self._wire.take(self.number, text)
            self._lose("closed")
        except ConnectionClosed as error:
            # Any end other than a close frame with 1000 or 1001, which ends the loop.
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
                        # SEND_SECONDS for each event, not for all of them.
                        limit.reschedule(loop.time() + SEND_SECONDS)
                        text, since = self._out.get_nowait()
                        self._out_chars -= len(text)
                        await self._socket.send(text)
                self._wire.on_sent(time.monotonic() - since)
        except (ConnectionClosed, TimeoutError):
            # The reader normally ends, too, but it may wait for ever on a dead socket.
            self._lose("lost")

    def _lose(self, why: str) -> None:
        if not self._closed:
            code = self._socket.close_code
            self.leave()
            self._wire.connection_lost(self.number, why, code)


class Wire:
    """The connections of one call to its model; one is in use at a time."""

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
        on_lost: Lost | None = None,
        pcm: bool = False,
        sets_format: bool = True,
    ) -> None:
        """`on_left` is called after the bridge has left a connection, and after a
        connection was lost (after `on_lost`). `on_lost`: called in place of
        `owner.model_lost`. `pcm`: the model accepts no mu-law. `sets_format` False: the
        audio does not pass here, so its format is not set."""
        self._connect = dial
        self._owner = owner
        self._tasks = tasks
        self._name = name
        self._pcm = pcm
        self._sets_format = sets_format
        self._on_lost = on_lost or owner.model_lost
        self._shape = shape
        self.on_sent = on_sent
        """Called with the seconds that the last event was queued before it was sent."""
        self._connection: ModelConnection | None = None
        self._next: tuple[int, ClientConnection] | None = None
        """The connection that was dialled and is not in use yet, and its number."""
        self._on_left = on_left
        self._settled: list[str] = []
        """Older session updates, merged; sent to each new session."""
        self._latest: dict[int, Update] = {}
        """The newest session updates, which the server may still refuse; sent after
        `_settled`."""
        self._serial = 0
        self._sdk_events = SdkEvents(on_interrupted, owner.model_stuck)
        self._events = MessageRate(EVENTS_PER_SECOND, FLOOD_SECONDS)
        self._chars = MessageRate(CHARS_PER_SECOND, FLOOD_SECONDS)
        self._flood_reported = False
        """The server has exceeded a rate limit; the owner has been informed."""
        self._closed = False
        self._dialler: asyncio.Task[None] | None = None

    # --- what the call uses ---

    def dial(self, connection: int, seconds: float) -> None:
        """Dials a connection after about `seconds`. `connection`: its number."""
        if self._sdk_events.began or seconds:
            seconds *= random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
            seconds += random.uniform(0.0, JITTER_SECONDS)  # noqa: S311 - not a secret
        self._dialler = self.begin(self._dial(connection, seconds), "model dialler")

    def switch(self, connection: int) -> None:
        """From now on, uses the connection that `dial` has opened."""
        dialled, self._next = self._next, None
        assert dialled is not None, "there is a connection to switch to"
        number, socket = dialled
        assert number == connection, "only one connection is dialled at a time"
        self.use(number, socket)

    def use(self, connection: int, socket: ClientConnection) -> None:
        """From now on, uses this connection; configures its session."""
        self._connection = ModelConnection(connection, socket, self, self._pcm)
        for update in self._updates:
            self._connection.post(update)

    def leave(self, connection: int) -> None:
        """Closes the connection in use; its open responses end for the SDK. Does
        nothing if the connection was lost meanwhile."""
        if self._connection is not None and self._connection.number == connection:
            self._connection.leave()
            self._connection = None
            self._sdk_events.fail_open_responses()
            self._on_left()

    def post(self, text: str) -> None:
        """Queues an event for the connection in use; without one it is dropped."""
        if self._connection is not None:
            self._connection.post(text)

    def put(self, text: str) -> None:
        """Takes a client event of the SDK or of user code.

        A session.update gets the additions of `shape` and the audio formats. It is sent
        at once, and again to every later session. All other events go to the call,
        which sends them when the state of model and caller permits.
        """
        text = without_lone_surrogates(text)
        if is_plain_request(text):
            self._owner.ask()
        elif is_update(text):
            self._update(text)
        else:
            self._owner.send_to_model(text)

    def interrupted(self, item_id: str, content_index: int) -> None:
        """Queues an interruption for the SDK's listeners, behind the earlier events."""
        self._sdk_events.put_interruption(item_id, content_index)

    # --- what the SDK uses of a websocket ---

    def __aiter__(self) -> SdkEvents:
        return self._sdk_events

    async def send(self, text: str) -> None:
        self.put(text)

    async def close(self) -> None:
        """Safe to call twice."""
        self._closed = True
        if self._dialler is not None:
            self._dialler.cancel()
        self._sdk_events.close()
        spare, self._next = self._next, None
        # At the same time, so that neither uses up the other's time.
        await asyncio.gather(
            *([close_socket(spare[1])] if spare else []),
            *([self._connection.drop()] if self._connection else []),
        )

    # --- what a connection uses ---

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=f"{self._name} {name}")

    def is_within_limits(self, text: str | bytes) -> bool:
        """Counts a received event against the limits. False: it must not be decoded."""
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
        """Reports that an event was too large and is skipped."""
        self._owner.model_limit("model_bytes")
        self._owner.model_misread("event too large")

    def take(self, connection: int, text: str | bytes) -> None:
        """Takes an event of the server: for the call and, except audio, the SDK."""
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
        self._owner.model_event(connection, event, text)
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
        elif not self._events.add(parts / PARTS_PER_EVENT, time.monotonic()):
            self._flooded("model_flood")
        else:
            self._sdk_events.put(event, text)

    def connection_lost(self, connection: int, why: str, code: int | None) -> None:
        self._connection = None
        self._sdk_events.fail_open_responses()
        if not self._closed:
            self._on_lost(connection, why, code)
            self._on_left()

    # --- inside ---

    def _flooded(self, limit: str) -> None:
        """Reports the flood once. Another connection would reach the same server."""
        if not self._flood_reported:
            self._flood_reported = True
            self._owner.model_limit(limit)
            self._owner.model_stuck("flood")

    @property
    def _updates(self) -> list[str]:
        """The session updates that configure a new session."""
        made = self._settled
        for update in self._latest.values():
            made = updates(made, update.text)
        return made

    def _update(self, text: str) -> None:
        self._serial += 1
        event_id = f"{SESSION_ID}_{self._serial}"
        update = shaped(text, self._shape, event_id, sets_format=self._sets_format)
        event_id = msgspec.json.decode(update)["event_id"]
        self._latest[self._serial] = Update(event_id, update)
        if len(self._latest) > MAX_UPDATES:
            oldest = self._latest.pop(next(iter(self._latest)))
            self._settled = updates(self._settled, oldest.text)
        self.post(update)

    def _refused(self, error: realtime_events.ErrorDetails) -> None:
        """Forgets a session update that the server refused, so that the next session
        is not sent it again; the earlier settings stay in force."""
        if error.event_id is None or errors.may_pass(error):
            return
        # The newest one: user code may give several updates the same event_id.
        for serial, update in reversed(self._latest.items()):
            if update.event_id == error.event_id:
                del self._latest[serial]
                break

    async def _dial(self, connection: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            socket = await self._connect()
        except ModelRefused as refused:
            self._owner.model_not_dialled(connection, refused.why, refused.fatal)
            return
        if self._closed:
            await close_socket(socket)
            return
        self._next = connection, socket
        self._owner.model_dialled(connection)


async def close_socket(socket: ClientConnection) -> None:
    """Closes a connection within CLOSE_SECONDS, and breaks it if that does not succeed
    or is cancelled.

    The socket's own `close` waits without a limit until the server has read what was
    sent before; its `close_timeout` begins only then.
    """
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await socket.close()
    finally:
        socket.transport.abort()


def _parts_of(text: str) -> int | None:
    """Counts the list elements of an event, up to a little over MAX_PARTS.

    None: Python's JSON parser, which the SDK uses, rejects the text (for example a very
    long number), which would end the SDK's session.
    """
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
    """The session updates that configure a new session, with `update` added.

    An update with `tools` configures the full session: of earlier updates only the
    fields that it does not name are kept.
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


def without_lone_surrogates(text: str) -> str:
    """Replaces lone surrogates in a JSON text with `?`.

    A model may put one into a tool's arguments, and a tool into its result; other JSON
    parsers would refuse the text. Any other text stays as it is.
    """
    if not _SURROGATE.search(text):
        return text
    try:
        plain = json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        plain = text
    return plain.encode(errors="replace").decode()


def is_plain_request(text: str) -> bool:
    """Whether the event is a response.create without parameters."""
    if '"response.create"' not in text:
        return False
    event: Any = msgspec.json.decode(text)
    return event.get("type") == "response.create" and not event.get("response")


def is_update(text: str) -> bool:
    """Whether the event is a session.update."""
    if '"session.update"' not in text:
        return False
    event: Any = msgspec.json.decode(text)
    return bool(event.get("type") == "session.update")


def shaped(
    text: str, shape: Shape, event_id: str = SESSION_ID, *, sets_format: bool = True
) -> str:
    """A session.update with the additions of `shape`, mu-law in both directions where
    it configures audio (unless `sets_format` is False), and `event_id` unless it has an
    id already."""
    event: Any = msgspec.json.decode(text)
    event.setdefault("event_id", event_id)
    session = event["session"]
    shape(session)
    audio = session.get("audio")
    if audio is not None and sets_format:
        for side in ("input", "output"):
            if audio.get(side) is not None:
                audio[side]["format"] = PHONE_FORMAT
    return msgspec.json.encode(event).decode()
