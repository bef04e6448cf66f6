"""The server under load: its process tree, as /proc shows it, and a bridge to start;
and what the fakes need of the machine: a core, open files, a certificate."""

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.sim.ports import free_port

START_SECONDS = 120.0
"""Time for a bridge to start on a loaded machine; most of it is spent on imports."""


@dataclass(frozen=True, slots=True)
class BridgeProcess:
    """A bridge in a process of its own, as a user would start it."""

    webhook_url: str
    pid: int


@asynccontextmanager
async def bridge_process(
    model_url: str,
    *,
    max_calls: int = 200,
    more: Mapping[str, str] | None = None,
    stderr: int = asyncio.subprocess.DEVNULL,
) -> AsyncIterator[BridgeProcess]:
    """`bridge serve` on a free port in front of the model at `model_url`.

    Requests are unsigned unless the environment in `more` says otherwise.
    """
    port = free_port()
    vendors = ("BRIDGE_", "OPENAI_", "TWILIO_")
    environ = {
        **{name: it for name, it in os.environ.items() if not name.startswith(vendors)},
        "BRIDGE_HOST": "127.0.0.1",
        "BRIDGE_PORT": str(port),
        "BRIDGE_MODEL_URL": model_url,
        "BRIDGE_GREETING": "",
        "BRIDGE_MAX_CALLS": str(max_calls),
        "BRIDGE_DRAIN_SECONDS": "0",
        **(more or {"BRIDGE_INSECURE": "1"}),
    }
    with tempfile.TemporaryDirectory() as folder:
        # Another directory, so that no .env file of the user applies.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge.cli.commands", "serve"),
            env=environ,
            cwd=folder,
            stderr=stderr,
        )
        try:
            await _listening(port, process)
            yield BridgeProcess(f"http://127.0.0.1:{port}/voice", process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            if process.returncode is not None:
                raise ChildProcessError(f"the bridge exited: {process.returncode}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


class ProcessTree:
    """A process and its descendants. None where there is no /proc, or no such
    process."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._pids = [pid]

    def find(self) -> None:
        """Look for the descendants that run now; this reads all of /proc."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = stat.read_text().rpartition(")")[2].split()[1]
            except (OSError, IndexError):  # the process has ended
                continue
            children.setdefault(int(parent), []).append(int(stat.parent.name))
        pids = [self._root]
        for pid in pids:  # grows
            pids += children.get(pid, [])
        self._pids = pids

    def cpu_seconds(self) -> float | None:
        """User and system time, including that of descendants that have ended."""
        # utime, stime, and those of the children that were waited for
        ticks = [
            sum(map(int, stat.rpartition(")")[2].split()[11:15]))
            for stat in self._read("stat")
        ]
        return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None

    def memory_mb(self) -> float | None:
        """Resident memory; pages that two processes share count twice."""
        pages = [int(statm.split()[1]) for statm in self._read("statm")]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20 if pages else None

    def _read(self, name: str) -> Iterator[str]:
        for pid in self._pids:
            try:
                yield Path(f"/proc/{pid}/{name}").read_text()
            except OSError:  # the process has ended
                continue


@contextmanager
def pinned(*server_pids: int) -> Iterator[str | None]:
    """The servers have one core, and this process has another. Gives a sentence about
    it, or None where this is not possible."""
    cores: list[int] = []
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield None
        return
    for pid in server_pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cores[0]})
    os.sched_setaffinity(0, {cores[1]})
    try:
        yield f"the server runs on core {cores[0]}, the fakes on core {cores[1]}"
    finally:
        os.sched_setaffinity(0, set(cores))


def allow_open_files(needed: int) -> None:
    """Raises this process's limit of open files, as far as the machine allows it."""
    import resource  # does not exist on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard):
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(OSError, ValueError):  # a further limit of the system
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def certificate() -> Iterator[tuple[ssl.SSLContext, str]]:
    """For a server at 127.0.0.1: its TLS context, and the certificate's file, which a
    client trusts if SSL_CERT_FILE names it. Needs the program `openssl`."""
    with tempfile.TemporaryDirectory() as folder:
        key, cert = f"{folder}/key.pem", f"{folder}/cert.pem"
        command = "openssl req -x509 -nodes -days 2 -subj /CN=localhost -newkey ec"
        curve = "-pkeyopt ec_paramgen_curve:prime256v1"
        name = "-addext subjectAltName=IP:127.0.0.1"
        words = f"{command} {curve} {name} -keyout {key} -out {cert}".split()
        subprocess.run(words, check=True, capture_output=True)  # noqa: S603
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        yield context, cert
