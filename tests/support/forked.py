"""Workers of xdist that share the import of the SDK: a pytest plugin.

That import takes most of the CPU time that a worker needs before its first test. Here
one process imports the packages, and forks itself for each worker. It has one thread,
so a fork is safe.

xdist starts a program for each worker, and talks to it on its stdin and stdout. With
this plugin the program is `CLIENT`: it hands both to the process with the packages, and
stays until the worker has ended.
"""

import contextlib
import gc
import importlib
import os
import random
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import simulated_time

PACKAGES = (
    *("agents.realtime", "aiohttp", "jsonschema", "mcp.server.mcpserver", "numpy"),
    *("openai", "prometheus_client", "pydantic_settings", "redis.asyncio", "rich"),
    *("structlog", "twilio.request_validator", "typer", "uvloop", "websockets"),
    *("yaml",),
    *("bridge.cli.commands", "bridge.cli.demo", "bridge.http.server"),
    *("bridge.sim.caller", "bridge.sim.load", "bridge.sim.model"),
)
"""What the tests import. The tests themselves are imported by pytest, which rewrites
their asserts."""

PLUGINS = ("anyio", "_hypothesis_globals", "hypothesis", "platformdirs")
"""Packages that also have a plugin for pytest, so that pytest warns that it cannot
rewrite their asserts any more."""

CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect(sys.argv[1])
    socket.send_fds(line, [b"0"], [0, 1, 2])
    line.recv(1)
"""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    workers = getattr(config.option, "tx", None) or []
    if sys.platform != "linux" or workers != ["popen"] * len(workers) or not workers:
        return
    folder = Path(tempfile.mkdtemp(prefix="forked-"))
    address = folder / "socket"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked", str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Else the import of numpy starts a second thread.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )

    def end() -> None:
        assert server.stdin and server.stdout
        server.stdin.close()
        server.stdout.close()
        server.wait()
        address.unlink(missing_ok=True)
        folder.rmdir()

    config.add_cleanup(end)
    assert server.stdout
    assert server.stdout.read(1), "the packages cannot be imported"
    program = folder / "client.py"
    client = shlex.join([sys.executable, "-I", "-S", str(program), str(address)])
    program.write_text(CLIENT)
    config.add_cleanup(program.unlink)
    config.option.tx = [f"popen//python={client}"] * len(workers)


def _worker() -> None:
    """Does what `python -c` does with the line with which execnet starts a worker."""
    random.seed()
    sys.argv = ["-c"]
    exec("import sys;exec(eval(sys.stdin.readline()))", {"__name__": "__main__"})


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The clients, until the run is over."""
    while True:
        ready, _, _ = select.select([0, listener.fileno()], [], [])
        if 0 in ready:  # the process of pytest has ended
            return
        yield listener.accept()[0]


def main(address: str) -> None:
    gc.disable()
    simulated_time.install()
    # Prevents what tests/conftest.py says.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    for name in (*PACKAGES, *PLUGINS):
        with contextlib.suppress(ImportError):  # reported by the tests that need it
            module = importlib.import_module(name)
            if name in PLUGINS:
                module.__doc__ = "PYTEST_DONT_REWRITE"
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        os.write(1, b"1")
        for client in _accepted(listener):
            _, files, *_ = socket.recv_fds(client, 1, 3)
            if os.fork() == 0:
                listener.close()
                client.detach()  # it is open until this process ends
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                _worker()
                return
            client.close()
            for file in files:
                os.close(file)
    with contextlib.suppress(ChildProcessError):  # there is no other one
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass  # so `time make test` includes the workers


if __name__ == "__main__":
    main(sys.argv[1])
