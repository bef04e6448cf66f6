"""A log that cannot be written: calls go on, and the lost lines are counted.

Each test runs a real `bridge serve` with another standard error.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from bridge.sim.caller import Caller
from bridge.sim.ports import free_port
from bridge.sim.twilio import steps
from bridge.sim.twilio.record import CallRecord
from tests.support.waiting import until

pytestmark = pytest.mark.slow

PIPE_BYTES = 4096
CALL_SECONDS = 120.0
AGENT = """
from agents.realtime import RealtimeAgent

def agent(call):
    print("a line of the user's code", flush=True)
    return RealtimeAgent(name="plain", instructions="You are a test.")
"""


class Served:
    """A running `bridge serve`."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.url, self.process = url, process

    async def call(self) -> CallRecord:
        script = [steps.ListenStep(quiet_seconds=0.4, timeout=10), steps.HangUpStep()]
        async with asyncio.timeout(CALL_SECONDS):
            return await Caller(webhook_url=f"{self.url}/voice").call(script)

    async def lost_lines(self) -> float:
        return await self.metric("bridge_log_lines_lost_total")

    async def metric(self, name: str) -> float:
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{self.url}/metrics") as answer,
        ):
            text = await answer.text()
        [value] = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(value)

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            return await asyncio.to_thread(self.process.wait)


@asynccontextmanager
async def serving(
    folder: Path,
    shell: str = 'exec "$@"',
    agent: str = AGENT,
    environ: Mapping[str, str] = MappingProxyType({}),
    **popen: Any,
) -> AsyncIterator[Served]:
    """A bridge, started by a command of the shell; it is ready when this is entered.
    `agent` is the text of its agent file, `popen` gives its outputs."""
    port = free_port()
    (folder / "agent.py").write_text(agent)
    names = {"BRIDGE_HOST": "127.0.0.1", "BRIDGE_PORT": str(port)}
    names |= {"BRIDGE_INSECURE": "1", "BRIDGE_LOG": "json"}
    # With a limited file size, Python would leave cut off bytecode for all processes.
    names |= {"PYTHONDONTWRITEBYTECODE": "1"}
    kept = {it: os.environ[it] for it in ("PATH", "HOME") if it in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    serve = [sys.executable, "-m", "bridge", "serve", "--agent", "agent.py:agent"]
    process = subprocess.Popen(  # noqa: ASYNC220 - starts at once
        ["/bin/sh", "-c", shell, "sh", *serve],
        # The folder may have modules that take the place of others.
        env={**kept, "PYTHONPATH": f"{folder}:{root}", **names, **environ},
        cwd=folder,
        **popen,
    )
    served = Served(f"http://127.0.0.1:{port}", process)
    try:
        await ready(served)
        yield served
    finally:
        process.kill()
        process.wait()


async def ready(served: Served) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(200):
        while True:
            assert served.process.poll() is None
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(f"{served.url}/healthz"):
                    return
            await asyncio.sleep(0.05)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        yield reader, writer
    finally:
        for end in (reader, writer):
            with contextlib.suppress(OSError):  # the test has closed it
                os.close(end)


def fill(writer: int) -> None:
    """Fills the pipe. Through a file description of its own, because O_NONBLOCK would
    be set for the bridge, too."""
    own = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(own, b"\n")
    os.close(own)


def worked(record: CallRecord) -> None:
    assert record.heard and record.ended_by == "caller", record.error


async def test_calls_go_on_when_the_readers_of_the_output_are_gone(
    tmp_path: Path,
) -> None:
    """The program that collects the log has crashed. Callers are answered, the user's
    code may print, and a metric counts the lines."""
    with pipe() as (reader, writer):
        async with serving(tmp_path, stdout=writer, stderr=writer) as served:
            os.close(writer)
            os.close(reader)

            worked(await served.call())
            worked(await served.call())

            assert await served.lost_lines() >= 4
            assert await served.stop() == 0


async def test_calls_go_on_when_the_disk_of_the_log_is_full(tmp_path: Path) -> None:
    """The disk was full already when the bridge started."""
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 - a device
        async with serving(tmp_path, stdout=full, stderr=full) as served:
            worked(await served.call())

            assert await served.lost_lines() >= 4
            assert await served.stop() == 0


async def test_calls_go_on_when_the_log_is_not_read(tmp_path: Path) -> None:
    """The program that collects the log hangs, so each write to a pipe blocks. The
    lines wait for it, and the bridge can stop all the same."""
    with pipe() as (out, stdout), pipe() as (err, stderr):
        async with serving(tmp_path, stdout=stdout, stderr=stderr) as served:
            fill(stdout)
            fill(stderr)

            worked(await served.call())
            worked(await served.call())

            assert await served.lost_lines() == 0
            assert await served.stop() == 0
        os.close(stdout)
        os.close(stderr)
        assert os.read(out, PIPE_BYTES) and os.read(err, PIPE_BYTES)


async def test_the_log_goes_on_when_the_disk_has_room_again(tmp_path: Path) -> None:
    """The log then says how many lines were lost, and no line is glued to half of
    another."""
    log = tmp_path / "log"

    def lines() -> list[dict[str, Any]]:
        cut_off, *others = log.read_bytes().splitlines()
        assert len(cut_off) == 100
        return [json.loads(line) for line in others]

    with log.open("ab") as file:
        most = limit_file_size(100)
        async with serving(
            tmp_path, stdout=subprocess.DEVNULL, stderr=file, preexec_fn=most
        ) as served:
            worked(await served.call())
            lost = await served.lost_lines()
            assert lost >= 4
            assert log.stat().st_size == 100

            resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (10**9, 10**9))
            worked(await served.call())

            await until(lambda: "log_lines_lost" in log.read_text())
            assert await served.stop() == 0
            [told] = [it for it in lines() if it["event"] == "log_lines_lost"]
    assert told["lines"] >= lost
    assert {"call_ended", "closed"} <= {it["event"] for it in lines()}


def limit_file_size(size: int) -> Callable[[], None]:
    def limit() -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    return limit


async def test_a_bridge_with_closed_outputs_takes_calls(tmp_path: Path) -> None:
    """A supervisor may start it so. No line goes to a socket that gets the number of
    the closed file."""
    async with serving(tmp_path, shell='exec "$@" >&- 2>&-') as served:
        worked(await served.call())
        assert await served.stop() == 0


def test_the_last_lines_of_a_crash_are_written(tmp_path: Path) -> None:
    """A process that ends at once still says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "bridge", "serve"],
            env={
                **os.environ,
                "BRIDGE_INSECURE": "1",
                "BRIDGE_HOST": "127.0.0.1",
                "BRIDGE_PORT": port,
            },
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            timeout=200,
        )

    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
