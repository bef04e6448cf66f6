"""The events of one call as server-sent events. Only reads the call; drops a client
that reads too slowly.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from typing import Any

import msgspec
import structlog
from aiohttp import web

from bridge.agent.events import CallEvent
from bridge.agent.live import LiveCall
from bridge.http.api.auth import API_AUTH
from bridge.http.connection_guard import ConnectionGuard
from bridge.privacy.redaction import Redaction

log = structlog.get_logger()

EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}

LAST = "call_ended"
RAW = "raw_model_event"

MAX_WAITING = 1000
"""Limit of events that a reader has not taken yet; a reader at this limit is too
slow."""

KEEP_ALIVE_SECONDS = 15.0
"""Interval of comments on a silent stream: proxies close silent connections, and a
reader that has left is noticed only by a write."""

POLL_SECONDS = 1.0
"""A call that failed may send no last event, so its state is checked at this
interval."""


class TooSlow(Exception):
    """The reader does not keep up."""


class Feed:
    """The queue of events that must still be sent to one reader."""

    def __init__(self, live: LiveCall, *, raw: bool) -> None:
        self._live = live
        self._raw = raw
        self._waiting: asyncio.Queue[CallEvent] = asyncio.Queue(MAX_WAITING)
        self._full = False

    async def put(self, event: CallEvent) -> None:
        """The listener of the call's events. Never waits."""
        if event.type == RAW and not self._raw:
            return
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._full = True

    async def next(self) -> CallEvent | None:
        """The next event; None if none came for POLL_SECONDS. TooSlow if events were
        lost."""
        if self._full:
            raise TooSlow
        try:
            async with asyncio.timeout(POLL_SECONDS):
                return await self._waiting.get()
        except TimeoutError:
            return None


async def stream(
    request: web.Request, live: LiveCall, *, raw: bool
) -> web.StreamResponse:
    """Sends the call's events (`raw`: the model's own, too) until the call ends or the
    reader has gone."""
    auth = request.app[API_AUTH]
    with auth.listening(request):
        return await _send_events(request, Feed(live, raw=raw), live, auth.guard)


async def _send_events(
    request: web.Request, feed: Feed, live: LiveCall, guard: ConnectionGuard
) -> web.StreamResponse:
    response = web.StreamResponse(headers=EVENT_STREAM)
    out = Reader(response, guard.limits.send_seconds)
    remove = live.on(feed.put)
    try:
        await response.prepare(request)
        await out.write(b": events of the call\n\n")
        await _send_all(out, feed, live)
        await out.end()
    except ConnectionError:
        log.debug("events_reader_gone", call_sid=live.call_sid)
    except (TimeoutError, TooSlow):
        log.warning("events_reader_slow", call_sid=live.call_sid)
        guard.hit("answer_slow")
        abort(request)
    except Exception:
        # An event of the user's code that cannot be written as JSON. The answer has
        # begun, so a broken connection is the only sign left.
        log.warning("events_failed", call_sid=live.call_sid, exc_info=True)
        abort(request)
    finally:
        remove()
    return response


def abort(request: web.Request) -> None:
    """Aborts instead of closing: a close would wait until the reader has read
    everything."""
    if request.transport:
        request.transport.abort()


async def _send_all(out: "Reader", feed: Feed, live: LiveCall) -> None:
    silent = 0.0
    while True:
        over = live.over
        event = await feed.next()
        if event is not None:
            silent = 0.0
            await out.write(encode(event, live.redaction))
            if event.type == LAST:
                return
            continue
        if over:
            return
        silent += POLL_SECONDS
        if silent >= KEEP_ALIVE_SECONDS:
            silent = 0.0
            await out.write(b":\n\n")


class Reader:
    """Writes to the client. TimeoutError if it took nothing for `seconds`."""

    def __init__(self, response: web.StreamResponse, seconds: float) -> None:
        self._response = response
        self._seconds = seconds

    async def write(self, piece: bytes) -> None:
        async with asyncio.timeout(self._seconds):
            await self._response.write(piece)

    async def end(self) -> None:
        async with asyncio.timeout(self._seconds):
            await self._response.write_eof()


def encode(event: CallEvent, redaction: Redaction | None = None) -> bytes:
    """One event. `data` is one line of JSON; values that JSON does not have become
    text."""
    body: dict[str, Any] = {
        "type": event.type,
        "at": event.at,
        "data": dict(event.data),
    }
    data = msgspec.json.encode(body, enc_hook=str)
    if redaction:
        # Redacts the JSON and not the objects, so that no object of the user's code is
        # missed.
        plain = msgspec.json.decode(data)["data"]
        if event.emitted:
            # User code has chosen the names: a field `id` may hold a card number.
            body["type"] = redaction.text(event.type)
            plain = redaction.value(plain)
        body["data"] = redaction.message(plain)
        data = msgspec.json.encode(body)
    # A user's own event name may contain a line break, which would end the field.
    name = " ".join(body["type"].split())
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
