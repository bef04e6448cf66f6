"""Looks a host name up within a limit of time, whatever the resolver does."""

import asyncio
import contextlib
import socket
import threading

SECONDS = 4.0


class NotResolved(Exception):
    """The name has no address."""


class NoResolver(Exception):
    """It is not known whether the name has one: no DNS server has answered."""


async def resolve(host: str, port: int, seconds: float = SECONDS) -> None:
    """Returns if the host has an address. The look-up runs in a daemon thread of its
    own: it cannot be cancelled, and must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[OSError | None] = loop.create_future()

    def tell(error: OSError | None) -> None:
        if not done.done():
            done.set_result(error)

    def look_up() -> None:
        error = None
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as failed:
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            error = await done
    except TimeoutError:
        raise NoResolver from None
    if error is not None:
        raise (
            NoResolver if error.errno == socket.EAI_AGAIN else NotResolved
        ) from error
