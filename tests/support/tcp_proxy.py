"""A TCP proxy that holds back one connection: two commands of a client that uses
several connections arrive in the order that the test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.waiting import until

CHUNK_BYTES = 64 * 1024


class TcpProxy:
    """Made by `tcp_proxy`. Passes everything on, but for a connection that is held."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._text: bytes | None = None
        self._holding = False
        self._go_on = asyncio.Event()
        self._cut = False
        self._clients: set[asyncio.StreamWriter] = set()

    def hold(self, text: bytes) -> None:
        """Holds the next connection on which the client sends `text`, from that text
        on. The client may close it meanwhile: what it sent still arrives."""
        self._text = text
        self._go_on.clear()

    async def held(self) -> None:
        """Returns when the text has come."""
        await until(lambda: self._holding, what="the command")

    def release(self) -> None:
        self._go_on.set()

    def cut(self) -> None:
        """Closes all connections, and new ones at once, until `mend`."""
        self._cut = True
        for writer in self._clients:
            writer.close()

    def mend(self) -> None:
        self._cut = False

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._cut:
            writer.close()
            return
        self._clients.add(writer)
        there, out = await asyncio.open_connection("127.0.0.1", self._target)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pass_on(reader, out, hold=True))
            both.create_task(self._pass_on(there, writer, hold=False))
        self._clients.discard(writer)

    async def _pass_on(
        self, reader: asyncio.StreamReader, out: asyncio.StreamWriter, *, hold: bool
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if hold and self._text and self._text in data:
                    self._text, self._holding = None, True
                    await self._go_on.wait()
                    self._holding = False
                out.write(data)
                await out.drain()
        except ConnectionError:
            return  # one side has closed
        finally:
            out.close()


@asynccontextmanager
async def tcp_proxy(port: int) -> AsyncIterator[TcpProxy]:
    """A proxy to a port of this machine."""
    proxy = TcpProxy(port)
    running: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as tasks:

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            running.add(tasks.create_task(proxy.serve(reader, writer)))

        server = await asyncio.start_server(serve, "127.0.0.1")
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for task in running:
                task.cancel()
