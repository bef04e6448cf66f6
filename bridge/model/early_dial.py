"""A connection to the model that is dialled before its call is known.

When the handshake of a stream is accepted, the caller already waits, and the stream's
`start`, the registry and the user's `on_call` are still to come. Dialling meanwhile
makes the greeting earlier by that time, or by that of the dial.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog
from websockets.asyncio.client import ClientConnection
from websockets.frames import CloseCode

from bridge.model.session import Connect, ModelTarget, dial, dialled
from bridge.model.wire import ModelRefused
from bridge.websocket import closing
from bridge.websocket.text_socket import StartTask

log = structlog.get_logger()


class EarlyDial:
    """One connection. The server drops it at the end of its stream at the latest,
    taken or not."""

    def __init__(
        self,
        target: ModelTarget,
        start_task: StartTask,
        name: str,
        on_unused: Callable[[], None],
    ) -> None:
        """`on_unused`: the call dials another address."""
        self._url, self._headers = target.address, dict(target.headers)
        self._connect: Connect = target.connect or dial
        self._start_task = start_task
        self._name = f"{name} early dial"
        self._on_unused = on_unused
        self._connection: ClientConnection | None = None
        self._refused: ModelRefused | None = None
        self._done = asyncio.Event()
        self._over = False
        """The connection was taken, or is not wanted."""
        self._task = start_task(self._dial(), self._name)

    async def take(
        self, url: str, headers: Mapping[str, str]
    ) -> ClientConnection | None:
        """The connection, once it is open; None if this one cannot be used.
        ModelRefused: it could not be opened."""
        if self._over:
            return None
        if (url, dict(headers)) != (self._url, self._headers):
            self._on_unused()
            self.drop()
            return None
        await self._done.wait()
        self._over = True
        connection, self._connection = self._connection, None
        if self._refused is not None:
            raise self._refused
        return connection

    def drop(self) -> None:
        """Hangs up, unless the connection was taken; safe to call twice."""
        self._over = True
        self._task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            code = CloseCode.NORMAL_CLOSURE
            self._start_task(closing.close_bounded(connection, code), self._name)

    async def _dial(self) -> None:
        try:
            self._connection = await dialled(self._connect, self._url, self._headers)
        except ModelRefused as refused:
            self._refused = refused
        finally:
            self._done.set()


class EarlyDials:
    """The early connections of an instance. A call that dials another address, because
    its route or its agent names a model, ends them: they would be for nothing."""

    def __init__(self, target: ModelTarget, start_task: StartTask) -> None:
        self._target = target
        self._start_task = start_task
        self._used = True

    def begin(self, call_sid: str) -> EarlyDial | None:
        """Dials for the stream of this call; None: the calls dial other addresses."""
        if not self._used:
            return None
        return EarlyDial(self._target, self._start_task, call_sid, self._unused)

    def _unused(self) -> None:
        if self._used:
            self._used = False
            log.info("early_dial_off")
