"""docker compose as a user runs it: a fresh clone, its files, its commands.

Only one project at a time, because its network has a fixed address range. Its ports on
this machine are used by nothing else. It needs an engine: `.ci/engine up` starts one,
with stand-ins for images.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.sim.caller import Caller, random_number
from bridge.sim.model import RememberedItem
from tests.support.counted_calls import CALL_SECONDS, CountedCalls

ROOT = Path(__file__).resolve().parents[2]
PORTS = {
    "BRIDGE_PORT": "18080",
    "STATS_PORT": "18404",
    "PROMETHEUS_PORT": "19090",
    "ALERTMANAGER_PORT": "19093",
    "GRAFANA_PORT": "13000",
    "SESSIONS_PORT": "18766",
}
PUBLIC, TOKEN = "https://phone.test", "5eed0f1de9bc4a2f8d7c6b5a49382716"
COUNTING = ("docker-compose.yml", "tests/compose/counting.yml")

# Removed from the environment: the bridges get their settings from the project's .env.
_OURS = ("BRIDGE_", "TWILIO_", "OPENAI_", "BALANCER_", "REDIS_", "ALERT_", "COMPOSE_")


def clone(folder: Path) -> Path:
    """Copies the files of git and new files that git does not ignore: no .env, no
    .venv."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@dataclass
class Done:
    """A command that has ended."""

    code: int
    text: str
    seconds: float


@dataclass
class Project:
    """`folder` is a clone. `files` None: the default files of `docker compose`."""

    folder: Path
    files: Sequence[str] | None = None
    name: str = "bridge-compose-test"
    environ: dict[str, str] = field(default_factory=dict)

    def write_env(self, **settings: str) -> None:
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (self.folder / ".env").write_text("".join(lines))

    # --- commands ---

    def shell(self, *command: str, seconds: float = 300, check: bool = True) -> Done:
        """Runs a command in the clone, with this project's ports and name."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        files = {"COMPOSE_FILE": ":".join(self.files)} if self.files else {}
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={
                **clean,
                **PORTS,
                **files,
                "COMPOSE_PROJECT_NAME": self.name,
                "COMPOSE_ANSI": "never",
                **self.environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        result = Done(done.returncode, done.stdout, time.monotonic() - began)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}"
        return result

    def compose(self, *words: str, seconds: float = 300, check: bool = True) -> Done:
        return self.shell("docker", "compose", *words, seconds=seconds, check=check)

    def remove(self) -> None:
        """Removes all containers and volumes. The bridges do not drain."""
        self.compose("--profile", "demo", "kill", check=False)
        self.compose(
            *("--profile", "demo", "down", "--volumes", "--remove-orphans"),
            *("--timeout", "0"),
        )

    # --- the state of the project ---

    def containers(self, service: str, running: bool = True) -> list[dict[str, Any]]:
        """The output of `docker inspect` for each, lowest number first."""
        words = ["ps", "--quiet", "--no-trunc", service]
        if not running:
            words.insert(1, "--all")
        ids = self.compose(*words).text.split()
        if not ids:
            return []
        found: list[dict[str, Any]] = json.loads(
            self.shell("docker", "inspect", *ids).text
        )
        label = "com.docker.compose.container-number"
        return sorted(found, key=lambda it: int(it["Config"]["Labels"][label]))

    def healthy(self, service: str, count: int) -> bool:
        states = [it["State"] for it in self.containers(service)]
        healths = [it.get("Health", {}).get("Status") for it in states]
        return healths == ["healthy"] * count

    def logs(self, service: str) -> list[dict[str, Any]]:
        """The log lines that are JSON."""
        found = []
        words = ("logs", "--no-log-prefix", "--no-color", service)
        for printed in self.compose(*words).text.splitlines():
            line = printed.removeprefix("\x1b[2K")  # compose clears a line of its own
            if line.startswith("{"):
                found.append(json.loads(line))
        return found

    def in_bridge(self, container: str, path: str) -> str:
        """The answer of a bridge to a request from its container, such as /metrics."""
        code = (
            "import urllib.request as r\n"
            f"try: print(r.urlopen('http://127.0.0.1:8080{path}').read().decode())\n"
            "except r.HTTPError as error: print(error.read().decode())"
        )
        return self.shell("docker", "exec", container, "python", "-c", code).text

    def calls(self) -> dict[str, int]:
        """The ID of each running bridge -> its number of calls."""
        return {
            it["Id"]: json.loads(self.in_bridge(it["Id"], "/healthz"))["calls"]
            for it in self.containers("bridge")
        }

    def get(self, port: str, path: str) -> Any:
        """JSON from a port on this machine; `port` is a name in PORTS."""
        url = f"http://127.0.0.1:{PORTS[port]}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())

    def conversations(self) -> list[list[RememberedItem]]:
        """The conversations of the counting model's sessions."""
        sessions = self.get("SESSIONS_PORT", "/sessions")
        return [[RememberedItem(**item) for item in session] for session in sessions]

    def counted_calls(self, first: int = 1) -> CountedCalls:
        """Calls that are signed as Twilio signs; `first` is the first call's number."""

        def caller() -> Caller:
            return Caller(
                webhook_url=f"http://127.0.0.1:{PORTS['BRIDGE_PORT']}/voice",
                auth_token=TOKEN,
                signed_origin=PUBLIC,
                from_number=random_number(),
                max_seconds=CALL_SECONDS,
            )

        return CountedCalls(caller, first)


def until(what: str, holds: Callable[[], object], seconds: float = 60.0) -> float:
    """Waits until `holds` is true, and returns the seconds that this took. Raises
    AssertionError after `seconds`."""
    began = time.monotonic()
    last: object = None
    while time.monotonic() - began < seconds:
        try:
            if holds():
                return time.monotonic() - began
        except (urllib.error.URLError, ConnectionError, AssertionError) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:g} s: {what} ({last})")


def base_argument() -> list[str]:
    """The argument of `docker build` for the base image in PYTHON_IMAGE, which replaces
    the Dockerfile's own if its registry cannot be reached; empty if it is not set."""
    return ["--build-arg", "PYTHON_IMAGE"] if os.environ.get("PYTHON_IMAGE") else []


def env(**more: str) -> Mapping[str, str]:
    """The .env of a bridge that serves signed calls with the counting model."""
    return {
        "BRIDGE_PUBLIC_URL": PUBLIC,
        "TWILIO_AUTH_TOKEN": TOKEN,
        "BRIDGE_MODEL_URL": "ws://model:8765/v1/realtime",
        "BRIDGE_AGENT": "counter.py:AGENT",
        "BRIDGE_DRAIN_SECONDS": "5",
        "BRIDGES": "2",
        **more,
    }
