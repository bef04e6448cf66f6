"""A server that is ready to be loaded, with the fake model behind it."""

import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bridge.sim.load import BEHAVIOUR, LoadTarget
from bridge.sim.model import ModelServer
from bridge.sim.server_process import (
    allow_open_files,
    bridge_process,
    certificate,
    pinned,
)

FILES_OF_A_CALL = 4
"""Open files of the fakes: the webhook, the stream, the model's socket; one spare."""

OWN_FILES = 200
"""Of the fakes, besides those of calls."""


@dataclass(frozen=True, slots=True)
class LoadedServer:
    """`placement`: which core has which process, if each has its own."""

    target: LoadTarget
    model: ModelServer
    placement: str | None


@asynccontextmanager
async def loaded_server(
    target: LoadTarget | None,
    *,
    max_calls: int,
    model_host: str = "127.0.0.1",
    model_port: int = 0,
    tls: bool = False,
) -> AsyncIterator[LoadedServer]:
    """`target` None: a bridge in a process of its own, with a core of its own.

    The model listens at `model_host` and `model_port` for a given target. `tls`: the
    model has wss:// for a bridge that is started here.
    """
    allow_open_files(FILES_OF_A_CALL * max_calls + OWN_FILES)
    async with contextlib.AsyncExitStack() as stack:
        context: ssl.SSLContext | None = None
        more = {"BRIDGE_INSECURE": "1"}
        if tls:
            context, file = stack.enter_context(certificate())
            more["SSL_CERT_FILE"] = file
        model = await stack.enter_async_context(
            ModelServer(
                BEHAVIOUR,
                host=model_host if target else "127.0.0.1",
                port=model_port if target else 0,
                record_appends=True,
                keep_sessions=4 * max_calls,
                tls=context,
            )
        )
        if target is not None:
            yield LoadedServer(target, model, None)
            return
        process = await stack.enter_async_context(
            bridge_process(model.url, max_calls=max_calls, more=more)
        )
        placement = stack.enter_context(pinned(process.pid))
        target = LoadTarget(
            name="bridge serve", webhook_url=process.webhook_url, pid=process.pid
        )
        yield LoadedServer(target, model, placement)
