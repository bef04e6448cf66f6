"""One lasting socket to the model for the SDK, over any number of model connections.

The SDK sees a WebSocket (`async for`, `send`, `close`). It never sees a lost connection
or an audio delta. The core decides when to dial and when to switch connections. It gets
each event in the callback in which it arrives, so a stuck SDK does not stop the audio.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from websockets.asyncio.client import ClientConnection

from bridge.core import ProtocolError, errors, realtime_events
from bridge.core.limits import MessageRate, is_dense
from bridge.model.dialects import REQUIRED, WORDLESS, Dialect
from bridge.model.sdk_events import SdkEvents
from bridge.websocket.model_connections import ModelClientConnection, TaskConnection
from bridge.websocket.text_socket import SocketEnd, TextSocket, Why, begin, failing

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

SHORT_CHARS = 1000
"""A shorter event cannot have MAX_PARTS, so it is not decoded to count them. Nearly all
events of a call that are no audio are shorter."""

MAX_PARTS = 5000
"""Limit of list elements in one event: the SDK blocks all calls for up to
30 us with each. A session with 128 tools has some hundreds."""

PARTS_PER_EVENT = 10
"""This many list elements count as one more event against EVENTS_PER_SECOND, also in
events that are too large."""

SPARSE_CHARS = 16_000
"""A smaller event is decoded quickly, whatever it has."""

MAX_TOKENS = 40_000
"""Limit of lists, objects and elements of an event that is decoded: all calls wait for
it, up to 2 us for each. A session with 128 tools has up to ten thousand."""

LOST_AS = {Why.CLOSED: "closed", Why.STUCK: "stuck"}
"""Ends of a socket that are reported to the core under a name of their own."""

PHONE_FORMAT = {"type": realtime_events.MULAW}

SESSION_ID = "bridge_session"
"""Prefix of the event_id of every session.update. When the server refuses an update,
its error names the event_id."""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""A surrogate, lone or one of a valid pair."""

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
    def model_misread(self, reason: str, kind: str = "") -> None:
        """An event cannot be used. `kind`: its type."""

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


class Transcoder(Protocol):
    """For the events of one connection to a model that accepts no mu-law
    (bridge.model.transcode.ModelAudio)."""

    def to_model(self, text: str) -> str: ...
    def from_model(self, text: str) -> list[str]: ...


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


@dataclass(frozen=True, slots=True)
class ServerWatch:
    """What the agent's session is told about the server."""

    refused: Callable[[str], None] = lambda event_id: None
    """Gets the event_id of a session.update that the server refused."""
    wordless: Callable[[], None] = lambda: None
    """Called after an answer with audio whose words have not come."""


class ModelConnection:
    """One connection to the model: the SocketListener of its socket."""

    def __init__(
        self,
        number: int,
        socket: TextSocket,
        wire: "Wire",
        transcoder: Callable[[], Transcoder] | None,
    ) -> None:
        self.number = number
        self._socket = socket
        self._wire = wire
        self._audio = transcoder() if transcoder else None
        """Transcodes for a model that accepts no mu-law."""
        self._dialect = wire.dialect()
        self._closed = False
        socket.listen(self)

    def post(self, text: str) -> None:
        """Sends an event."""
        if not self._closed:
            text = self._audio.to_model(text) if self._audio else text
            self._socket.send_text(self._dialect.written(text))

    async def drop(self) -> None:
        """Closes the connection; safe to call twice."""
        self._closed = True
        await self._socket.close_bounded()

    def leave(self) -> None:
        """Closes the connection like `drop`, in a task; no more events come from it."""
        self._closed = True
        self._socket.leave()
        closing = begin(self._wire.begin, self._socket.close_bounded(), "model close")
        if closing is None:
            self._socket.abort()
            return
        # Also if the call ends before the task begins.
        closing.add_done_callback(lambda _: self._socket.abort())

    # --- called by the socket (bridge.websocket.text_socket.SocketListener) ---

    def socket_message(self, text: str | bytes) -> None:
        try:
            self._take(text)
        except Exception as error:
            self._fail(error)

    def socket_ended(self, end: SocketEnd) -> None:
        try:
            if end.why is Why.TOO_LARGE:
                self._wire.too_big()
            self._lose(LOST_AS.get(end.why, "lost"), end.code)
        except Exception as error:
            self._fail(error)

    def socket_resumed(self, seconds: float) -> None:
        self._wire.on_resumed(seconds)

    # --- inside ---

    def _take(self, text: str | bytes) -> None:
        if not self._wire.is_within_limits(text):
            return
        events = self._dialect.read(text) if isinstance(text, str) else None
        if events is None:
            self._pass_on(text)
            return
        for event in self._dialect.take_resent():
            self._socket.send_text(event)
        for event in events:
            self._pass_on(event)

    def _pass_on(self, text: str | bytes) -> None:
        """Takes an event in the form of GA."""
        if self._audio and isinstance(text, str):
            for each in self._audio.from_model(text):
                self._wire.take(self.number, each)
        else:
            self._wire.take(self.number, text)

    def _lose(self, why: str, code: int | None) -> None:
        if not self._closed:
            self.leave()
            self._wire.connection_lost(self.number, why, code)

    def _fail(self, error: Exception) -> None:
        """A bug of the bridge, in a callback of the socket. It ends the call like an
        error in one of the call's tasks."""
        self._closed = True
        self._socket.leave()
        begin(self._wire.begin, failing(error), "model message")


class Wire:
    """The connections of one call to its model; one is in use at a time."""

    def __init__(
        self,
        dial: Dial,
        owner: WireOwner,
        tasks: asyncio.TaskGroup,
        name: str,
        on_interrupted: Callable[[str, int], Awaitable[None]],
        on_resumed: Callable[[float], None],
        shape: Shape,
        *,
        on_left: Callable[[], None] = lambda: None,
        on_lost: Lost | None = None,
        transcoder: Callable[[], Transcoder] | None = None,
        sets_format: bool = True,
        ready_on: str = "session.updated",
        watch: "ServerWatch | None" = None,
        wants_raw: Callable[[], bool] = lambda: True,
    ) -> None:
        """`on_left` is called after the bridge has left a connection, and after one was
        lost (after `on_lost`). `on_lost`: called in place of `owner.model_lost`.
        `transcoder`: for a model without mu-law. `sets_format` False: the audio does
        not pass here. `ready_on`: the event that makes a session ready. `wants_raw`: as
        in SdkEvents."""
        self._connect = dial
        self._owner = owner
        self._tasks = tasks
        self._name = name
        self._transcoder = transcoder
        self._sets_format = sets_format
        self._waits_for_updated = ready_on == "session.updated"
        self._on_lost = on_lost or owner.model_lost
        self._shape = shape
        self._watch = watch or ServerWatch()
        self.on_resumed = on_resumed
        """Called with the seconds for which a connection accepted no data."""
        self._connection: ModelConnection | None = None
        self._next: tuple[int, TextSocket] | None = None
        """The connection that was dialled and is not in use yet, and its number."""
        self._on_left = on_left
        self._settled: list[str] = []
        """Older session updates, merged; sent to each new session."""
        self._latest: dict[int, Update] = {}
        """The newest updates, which the server may still refuse; sent after those."""
        self._serial = 0
        self._sdk_events = SdkEvents(on_interrupted, owner.model_stuck, wants_raw)
        self._events = MessageRate(EVENTS_PER_SECOND, FLOOD_SECONDS)
        self._chars = MessageRate(CHARS_PER_SECOND, FLOOD_SECONDS)
        self._flood_reported = False
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

    def use(self, connection: int, socket: TextSocket) -> None:
        """From now on, uses this connection; configures its session."""
        new = self._connection = ModelConnection(
            connection, socket, self, self._transcoder
        )
        for update in self.session_updates:
            new.post(update)  # it may be lost with any of them

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

    @property
    def session_updates(self) -> list[str]:
        """The session updates that configure a new session."""
        made = self._settled
        for update in self._latest.values():
            made = updates(made, update.text)
        return made

    @property
    def last_update(self) -> str:
        """The event_id of the newest session.update; empty if there is none."""
        return next(reversed(self._latest.values())).event_id if self._latest else ""

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
            *([spare[1].close_bounded()] if spare else []),
            *([self._connection.drop()] if self._connection else []),
        )

    # --- what a connection uses ---

    def dialect(self) -> Dialect:
        """For a new connection."""
        return Dialect(self._report, waits_for_updated=self._waits_for_updated)

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
        if size > SPARSE_CHARS and isinstance(text, str) and is_dense(text, MAX_TOKENS):
            self._has_many_parts()
            return False
        return True

    def _has_many_parts(self) -> None:
        """Reports an event with many parts. Even to skip it takes time: a server that
        sends nothing else floods the bridge."""
        self.too_big()
        if not self._events.add(MAX_PARTS / PARTS_PER_EVENT, time.monotonic()):
            self._flooded("model_flood")

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
        if isinstance(event, realtime_events.Other) and event.type not in REQUIRED:
            self._owner.model_misread("unknown event", event.type)
            return
        if (
            isinstance(event, realtime_events.TranscriptDelta)
            and len(text) < SHORT_CHARS
        ):
            self._sdk_events.put(event, text)
            return
        parts = _parts_of(text)
        if parts is None:
            kind = msgspec.json.decode(text, type=realtime_events.Other).type
            self._owner.model_misread("event that the SDK cannot read", kind)
        elif parts > MAX_PARTS:
            self._has_many_parts()
        elif not self._events.add(parts / PARTS_PER_EVENT, time.monotonic()):
            self._flooded("model_flood")
        elif self._sdk_events.wants(event):
            self._sdk_events.put(event, text)

    def connection_lost(self, connection: int, why: str, code: int | None) -> None:
        self._connection = None
        self._sdk_events.fail_open_responses()
        if not self._closed:
            self._on_lost(connection, why, code)
            self._on_left()

    # --- inside ---

    def _report(self, reason: str) -> None:
        self._owner.model_misread(reason)
        if reason in WORDLESS:
            self._watch.wordless()

    def _flooded(self, limit: str) -> None:
        """Reports the flood once. Another connection would reach the same server."""
        if not self._flood_reported:
            self._flood_reported = True
            self._owner.model_limit(limit)
            self._owner.model_stuck("flood")

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
                self._watch.refused(update.event_id)
                break

    async def _dial(self, connection: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            opened = await self._connect()
        except ModelRefused as refused:
            self._owner.model_not_dialled(connection, refused.why, refused.fatal)
            return
        socket: TextSocket = (
            opened
            if isinstance(opened, ModelClientConnection)
            else TaskConnection(opened, self.begin)  # of the user's own connector
        )
        if self._closed:
            await socket.close_bounded()
            return
        self._next = connection, socket
        self._owner.model_dialled(connection)


def _parts_of(text: str) -> int | None:
    """Counts the list elements of an event, up to a little over MAX_PARTS; of a short
    event, an upper bound.

    None: Python's JSON parser, which the SDK uses, rejects the text (for example a very
    long number), which would end the SDK's session.
    """
    if len(text) < SHORT_CHARS:
        # Too short for a number, or for a depth, that Python rejects.
        lists = text.count("[")
        return lists and lists + text.count(",")
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
