"""The events of one call as server-sent events. Only listens; a slow reader is dropped.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio

import msgspec
import structlog
from aiohttp import web

from bridge.agent.events import CallEvent
from bridge.agent.live import LiveCall
from bridge.http.api.auth import API_AUTH
from bridge.http.connection_guard import ConnectionGuard
from bridge.privacy.redaction import Redaction

log = structlog.get_logger()

LAST = "call_ended"
RAW = "raw_model_event"

MAX_WAITING = 1000
"""Events that a reader has not taken: it is too slow."""

KEEP_ALIVE_SECONDS = 15.0
"""A comment so often: proxies close what is silent, and who has left is noticed."""

LOOK_SECONDS = 1.0
"""A call that broke may say no last word: it is looked after so often."""


class TooSlow(Exception):
    """The reader does not keep up."""


class Feed:
    """What one reader has still to be sent."""

    def __init__(self, live: LiveCall, *, raw: bool) -> None:
        self._live = live
        self._raw = raw
        self._waiting: asyncio.Queue[CallEvent] = asyncio.Queue(MAX_WAITING)
        self._full = False

    async def put(self, event: CallEvent) -> None:
        """The listener: takes its own time never."""
        if event.type == RAW and not self._raw:
            return
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self._full = True

    async def next(self) -> CallEvent | None:
        """None: nothing for LOOK_SECONDS. TooSlow when events were lost."""
        if self._full:
            raise TooSlow
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await self._waiting.get()
        except TimeoutError:
            return None


async def stream(request: web.Request, live: LiveCall) -> web.StreamResponse:
    """Answers with the call's events until it ends or the reader has gone."""
    auth = request.app[API_AUTH]
    with auth.listening(request):
        return await _tell(request, live, auth.guard)


async def _tell(
    request: web.Request, live: LiveCall, guard: ConnectionGuard
) -> web.StreamResponse:
    feed = Feed(live, raw=request.query.get("raw") == "1")
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8"}
    )
    out = _Out(response, guard.limits.send_seconds)
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
        _break_off(request)
    except Exception:
        # An event of the user's that JSON cannot hold. The answer has begun, so there
        # is no other way to tell the reader.
        log.exception("events_failed", call_sid=live.call_sid)
        _break_off(request)
    finally:
        remove()
    return response


def _break_off(request: web.Request) -> None:
    """Not closed: what has not been read would be waited for."""
    if request.transport:
        request.transport.abort()


async def _send_all(out: "_Out", feed: Feed, live: LiveCall) -> None:
    silent = 0.0
    while True:
        over = live.over
        event = await feed.next()
        if event is not None:
            silent = 0.0
            await out.write(encoded(event, live.redaction))
            if event.type == LAST:
                return
            continue
        if over:
            return
        silent += LOOK_SECONDS
        if silent >= KEEP_ALIVE_SECONDS:
            silent = 0.0
            await out.write(b":\n\n")


class _Out:
    """TimeoutError: the reader took nothing for so long."""

    def __init__(self, response: web.StreamResponse, seconds: float) -> None:
        self._response = response
        self._seconds = seconds

    async def write(self, piece: bytes) -> None:
        async with asyncio.timeout(self._seconds):
            await self._response.write(piece)

    async def end(self) -> None:
        async with asyncio.timeout(self._seconds):
            await self._response.write_eof()


def encoded(event: CallEvent, redaction: Redaction | None = None) -> bytes:
    """`data` is JSON in one line; what JSON does not have is written as its text."""
    told = {"type": event.type, "at": event.at, "data": dict(event.data)}
    data = msgspec.json.encode(told, enc_hook=str)
    if redaction:
        # Of what is written, so that no object of the user's is passed over.
        told["data"] = redaction.message(msgspec.json.decode(data)["data"])
        data = msgspec.json.encode(told)
    # A name of the user's own may hold anything; a line break would end the field.
    name = " ".join(event.type.split())
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
