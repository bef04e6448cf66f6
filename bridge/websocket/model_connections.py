"""The sockets of a connection to the model: one that the bridge has opened, and one of
the user's own connector."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import OPEN

from bridge.websocket import closing
from bridge.websocket.direct_connection import DirectConnection
from bridge.websocket.text_socket import SocketEnd, SocketListener, Why
from bridge.websocket.write_watch import WriteWatch

MAX_UNSENT_BYTES = 32 * 1024 * 1024
"""Limit of data that waits to be sent to the model. At most 15 MB are sent to a new
session: history, tool results, a minute of caller audio."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Limit of a server event, as in the SDK; a larger one ends the connection."""

SEND_SECONDS = 10.0
"""A model that reads nothing for this time counts as lost."""

EVENTS_BEFORE_YIELD = 20
"""Messages that a task reads before the event loop serves the other calls."""


class ModelClientConnection(DirectConnection, ClientConnection):
    """The client's side of a connection to the model, for `websockets`' `connect`."""

    def __init__(self, protocol: ClientProtocol, **options: Any) -> None:
        super().__init__(protocol, **options)
        self.set_limits(
            stuck_seconds=SEND_SECONDS,
            max_unsent=MAX_UNSENT_BYTES,
            max_message=MAX_EVENT_BYTES,
        )


class TaskConnection:
    """A bridge.websocket.text_socket.TextSocket over a `ClientConnection` of the
    user's own connector, whose messages a task reads."""

    def __init__(
        self,
        connection: ClientConnection,
        start_task: Callable[[Coroutine[Any, Any, None], str], object],
    ) -> None:
        self._connection = connection
        self._start_task = start_task
        self._listener: SocketListener | None = None
        self._first: deque[str | bytes] = deque()
        self._may_read = asyncio.Event()
        self._started = self._left = False
        self._watch = WriteWatch(SEND_SECONDS, self._stuck)

    @property
    def is_paused(self) -> bool:
        return self._connection.paused

    def listen(
        self, listener: SocketListener, first: Iterable[str | bytes] = ()
    ) -> None:
        self._listener = listener
        self._first.extend(first)
        self._may_read.set()
        if not self._started:
            self._started = True
            self._start_task(self._read(), "model reader")

    def hold(self) -> None:
        self._listener = None
        self._may_read.clear()

    def send_text(self, *texts: str) -> None:
        connection = self._connection
        if connection.protocol.state is not OPEN or self._left:
            return
        unsent = connection.transport.get_write_buffer_size()
        if unsent + sum(map(len, texts)) > MAX_UNSENT_BYTES:
            self._stuck()
            return
        if not connection.paused:
            self._watch.stop()  # nobody tells when the transport goes on
        for text in texts:
            connection.protocol.send_text(text.encode())
        connection.send_data()
        if connection.paused:
            written = connection.transport.get_write_buffer_size() - unsent
            self._watch.written += written
            self._watch.start(connection.transport)

    def leave(self) -> None:
        self._left = True
        self._listener = None
        self._may_read.set()
        self._watch.stop()

    async def close_bounded(self, code: int = CloseCode.NORMAL_CLOSURE) -> None:
        self.leave()
        await closing.close_bounded(self._connection, code)

    def abort(self) -> None:
        closing.abort(self._connection)

    async def _read(self) -> None:
        received = 0
        try:
            async for message in self._connection:
                await self._hand_over(message)
                received += 1
                if received % EVENTS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
                if self._left:
                    return
        except ConnectionClosed:
            # Any end other than a close frame with 1000 or 1001, which ends the loop.
            pass
        self._ended(closing.end_of(self._connection.protocol))

    async def _hand_over(self, message: str | bytes) -> None:
        self._first.append(message)
        while self._first and not self._left:
            await self._may_read.wait()
            if self._listener is not None:
                self._listener.socket_message(self._first.popleft())

    def _stuck(self) -> None:
        self._ended(SocketEnd(Why.STUCK))

    def _ended(self, end: SocketEnd) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.socket_ended(end)
