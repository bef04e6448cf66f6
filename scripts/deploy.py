"""Deploys a new version, or another .env, with docker compose, without losing a call.

    make deploy                        build, start new bridges, drain the old ones
    python3 scripts/deploy.py --help   the options

The new bridges start beside the old bridges. When all new bridges are healthy and the
balancer sends them calls, the old bridges drain: their calls end, or continue at a new
bridge. If the new bridges do not become healthy, they are removed and the old bridges
continue as before.

Needs docker with compose 2.24 or newer and Python 3.9, and no module of this project.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "bridge"
DRAIN_SECONDS = 300.0
"""Default of BRIDGE_DRAIN_SECONDS."""

AFTER_DRAIN_SECONDS = 30.0
"""For the remaining calls: they are handed over, and Twilio asks for the next step."""

LOOK_SECONDS = 1.0
TELL_SECONDS = 10.0
COMMAND_SECONDS = 60.0
"""Limit of a docker command that neither builds nor waits for a container."""

KILLED = 137
"""The exit code of a container that took longer than its grace period."""

CHECK_SECONDS = 180.0
"""Limit of `bridge check` in the new image, which imports the agent."""

LOG_LINES = 15

# Runs inside a bridge, because only its network reaches its port. There is no curl.
_ASK = """
import json, re, urllib.request as r
def get(path):
    try:
        return r.urlopen("http://127.0.0.1:8080" + path, timeout=3).read().decode()
    except r.HTTPError as error:
        return error.read().decode()
told = json.loads(get("/readyz"))
up = re.search("^bridge_registry_up ([0-9.]+)", get("/metrics"), re.M)
print(json.dumps({**told, "registry_up": float(up[1]) if up else 0}))
"""


class DeployFailed(Exception):
    """The text says why the deploy failed, and which bridges run now."""


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    state: str
    health: str
    image: str
    """ID of the image: two builds under one name have different IDs."""
    exit_code: int
    stop_seconds: int
    """The grace period at its start, from the .env of that time."""

    @property
    def runs(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class Facts:
    """What a bridge reports about itself."""

    status: str
    """ready, full or draining; unreachable if the bridge does not answer."""
    calls: int = 0
    registry_up: bool = False


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def run(
    *command: str, seconds: float | None = COMMAND_SECONDS, quiet: bool = True
) -> str:
    """The output of a command; DeployFailed with its last lines if it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.PIPE if quiet else None,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise DeployFailed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        text = f"`{' '.join(command[:4])} ...` took longer than {seconds:g} s"
        raise DeployFailed(text) from None
    if done.returncode:
        text = (done.stdout or "") + (done.stderr or "")
        last = "\n".join(text.strip().splitlines()[-LOG_LINES:])
        raise DeployFailed(f"`{' '.join(command)}` failed\n{last}".rstrip())
    return done.stdout or ""


class Deploy:
    """One deploy. `compose` are options of `docker compose`, such as -p or -f."""

    def __init__(self, compose: Sequence[str], healthy_seconds: float) -> None:
        self._compose = ["docker", "compose", *compose]
        self._healthy_seconds = healthy_seconds
        self.draining = False

    def compose(self, *words: str, **options: Any) -> str:
        return run(*self._compose, *words, **options)

    # --- the present state ---

    def containers(self, service: str = SERVICE) -> list[Container]:
        """The containers of a service, with the stopped ones, lowest number first."""
        ids = self.compose("ps", "--all", "--quiet", service).split()
        if not ids:
            return []
        found = []
        for each in json.loads(run("docker", "inspect", *ids)):
            state = each["State"]
            found.append(
                Container(
                    id=each["Id"],
                    name=each["Name"].lstrip("/"),
                    state=state["Status"],
                    health=state.get("Health", {}).get("Status", "none"),
                    image=each["Image"],
                    exit_code=state["ExitCode"],
                    stop_seconds=each.get("Config", {}).get("StopTimeout") or 0,
                )
            )
        return sorted(found, key=lambda it: (len(it.name), it.name))

    def facts(self, container: Container) -> Facts:
        try:
            text = run("docker", "exec", container.id, "python", "-c", _ASK)
            told = json.loads(text)
            return Facts(told["status"], told["calls"], told["registry_up"] >= 1)
        except (DeployFailed, ValueError, KeyError):
            return Facts("unreachable")

    def calls(self, containers: Sequence[Container]) -> int:
        """The number of calls of these bridges together."""
        with ThreadPoolExecutor(max(1, len(containers))) as threads:
            return sum(it.calls for it in threads.map(self.facts, containers))

    def take_calls(self) -> int:
        """The number of bridges to which the balancer sends new streams."""
        text = self.compose(
            *("exec", "-T", "balancer"),
            *("wget", "-q", "-O", "-", "http://127.0.0.1:8404/stats;csv"),
        )
        rows = csv.DictReader(io.StringIO(text.lstrip("# ")))
        return sum(
            row["pxname"] == "media"
            and row["svname"] not in ("FRONTEND", "BACKEND")
            and row["status"].startswith("UP")
            for row in rows
        )

    def slots(self) -> int:
        """Slots of the running balancer. The present .env may have another number."""
        told = self.compose("exec", "-T", "balancer", "printenv", "BALANCER_SLOTS")
        return int(told)

    def wanted(self) -> dict[str, Any]:
        """The service as docker-compose.yml and .env configure it now."""
        config = json.loads(self.compose("config", "--format", "json"))
        service: dict[str, Any] = config["services"][SERVICE]
        return service

    # --- the steps ---

    def run(self, bridges: int | None, build: bool, back: bool, check: bool) -> None:
        service = self.wanted()
        configured = int(service["deploy"]["replicas"])
        count = configured if bridges is None else bridges
        image = service["image"]
        previous = _previous(image)
        old = [it for it in self.containers() if it.runs]
        # An old bridge drains as long as the .env of its own start says.
        grace = max([_grace(service), *(it.stop_seconds for it in old)])
        if not old:
            raise DeployFailed(
                "no bridge is running, so there is nothing to replace. To start the "
                "bridges: docker compose up --build -d"
            )
        if count < 1:
            raise DeployFailed(f"{count} bridges cannot take calls")
        if bridges is None and len(old) != configured:
            raise DeployFailed(
                f"{len(old)} bridges run, but BRIDGES is {configured}. Set "
                f"BRIDGES={len(old)} in .env, or use the option --bridges {len(old)}"
            )
        if back and not _image_id(previous):
            raise DeployFailed(
                f"there is no {previous}, because no earlier deploy replaced an image"
            )
        self.refuse_what_cannot_work(old, count)
        self.remove_stopped()
        before = old[-1].image
        with self._rolled_back(old, image, before, grace):
            if back:
                run("docker", "tag", previous, image)
            elif build:
                say(f"building {image}")
                self.compose("build", SERVICE, seconds=None, quiet=False)
            if check:
                self.check_settings()
            say(
                f"starting {count} new bridges beside {len(old)} old bridges with "
                f"{self.calls(old)} calls"
            )
            new = self.start(old, count)
            self.await_healthy(old, new, count)
            # Keep the previous image for --back. If only .env has changed, do not: this
            # would replace the image that was deployed before.
            if _image_id(image) != before:
                run("docker", "tag", before, previous)
        self.draining = True
        self.drain(old, grace)
        self.tell_the_end(count)

    def refuse_what_cannot_work(self, old: Sequence[Container], count: int) -> None:
        """DeployFailed, before anything is changed, if the deploy cannot work."""
        balancer = self.containers("balancer")
        if not any(it.runs for it in balancer):
            raise DeployFailed(
                "the balancer does not run, so the new bridges would get no calls. To "
                "start it: docker compose up -d --no-recreate balancer"
            )
        slots = self.slots()
        if len(old) + count > slots:
            raise DeployFailed(
                f"{len(old)} old and {count} new bridges run side by side in a deploy, "
                f"but the running balancer has {slots} slots. Set "
                f"BALANCER_SLOTS={len(old) + count} or more in .env. Then, in a quiet "
                "hour, run: docker compose up -d --no-deps balancer (streams break and "
                "come back)"
            )
        for container in old:
            each = self.facts(container)
            if each.status == "draining":
                raise DeployFailed(
                    f"{container.name} is draining: another deploy, or a scale-down, "
                    "is in progress. Wait until it has ended"
                )
            if each.status != "unreachable" and not each.registry_up:
                raise DeployFailed(
                    f"{container.name} cannot reach Redis, so its calls cannot move to "
                    "another bridge. See RedisUnreachable in docs/operations.md"
                )

    def remove_stopped(self) -> None:
        """Otherwise compose would start the stopped bridges instead of new ones."""
        for it in self.containers():
            if not it.runs:
                say(f"removing {it.name}: {it.state}, exit code {it.exit_code}")
                run("docker", "rm", "--force", it.id)

    def check_settings(self) -> None:
        """Finds mistakes in .env, the routes or the agent before a bridge starts."""
        say("checking the settings and the agent in the new image")
        command = ("run", "--rm", "--no-deps", "-T", SERVICE, "check")
        try:
            self.compose(*command, seconds=CHECK_SECONDS)
        except DeployFailed as failed:
            raise DeployFailed(f"bridge check in the new image: {failed}") from None

    def start(self, old: Sequence[Container], count: int) -> list[Container]:
        scale = f"{SERVICE}={len(old) + count}"
        self.compose(
            # Without --no-deps: with it, compose (2.26) stores another configuration,
            # and the next `up` recreates every bridge.
            *("up", "--detach", "--no-recreate", "--no-build"),
            *("--scale", scale, SERVICE),
            seconds=None,
        )
        known = {it.id for it in old}
        return [it for it in self.containers() if it.id not in known]

    def await_healthy(
        self, old: Sequence[Container], new: Sequence[Container], count: int
    ) -> None:
        """Waits until all new bridges are healthy and the balancer sends them calls;
        DeployFailed if that takes too long."""
        until = time.monotonic() + self._healthy_seconds
        told = ""
        while True:
            states = {it.id: it for it in self.containers()}
            for it in new:
                now = states.get(it.id)
                if now is None or not now.runs or now.health == "unhealthy":
                    state = f"{now.state}, {now.health}" if now else "gone"
                    raise DeployFailed(f"{it.name} is {state}\n{self._log_of(it)}")
            healthy = _healthy(new, states)
            taking = self.take_calls()
            # Do not wait for an old bridge that has died since.
            needed = _healthy(old, states) + count
            text = f"healthy new bridges: {healthy} of {count}; "
            text += f"old and new bridges that take calls: {taking} of {needed}"
            if text != told:
                say(text)
                told = text
            if healthy == count and taking >= needed:
                return
            if len(new) < count or time.monotonic() > until:
                raise DeployFailed(
                    f"the new bridges did not take calls within "
                    f"{self._healthy_seconds:g} s ({text})\n"
                    + "\n".join(map(self._log_of, new))
                )
            time.sleep(LOOK_SECONDS)

    def drain(self, old: Sequence[Container], grace: int) -> None:
        """Stops the old bridges, all at once, and removes them. DeployFailed if one of
        them ended with an error, because it has cut off its calls.

        No old bridge may remain: the next `docker compose up` would start it again and
        stop a new bridge in exchange.
        """
        say(f"draining {len(old)} old bridges, for {grace} s at most")
        ids = [it.id for it in old]
        stop = _detached("docker", "stop", "--time", str(grace), *ids)
        tell_at = time.monotonic() + TELL_SECONDS
        try:
            while stop.poll() is None:
                time.sleep(LOOK_SECONDS)
                if time.monotonic() >= tell_at:
                    tell_at += TELL_SECONDS
                    left = [it for it in self.containers() if it.id in ids and it.runs]
                    text = f"{len(left)} bridges, {self.calls(left)} calls"
                    say(f"still draining: {text}")
        except BaseException:
            script = 'docker wait "$@" >/dev/null; docker rm "$@" >/dev/null'
            _detached("sh", "-c", script, "sh", *ids)
            raise
        codes = {}
        for each in json.loads(run("docker", "inspect", *ids)):
            name, code = each["Name"].lstrip("/"), each["State"]["ExitCode"]
            say(f"{name} ended with exit code {code}")
            if code:
                codes[name] = code
        kept = self._logs_in_a_folder(codes) if codes else None
        run("docker", "rm", "--force", *ids)
        if codes:
            ends = ", ".join(
                f"{name} {'was killed' if code == KILLED else f'ended with {code}'}"
                for name, code in codes.items()
            )
            raise DeployFailed(
                "the new bridges take all calls, but calls of the old bridges were cut "
                f"off: {ends}. Their logs are in {kept}"
            )

    def _logs_in_a_folder(self, names: Iterable[str]) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="bridge-deploy-"))
        for name in names:
            with (folder / f"{name}.log").open("wb") as log:
                subprocess.run(
                    ["docker", "logs", name],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=COMMAND_SECONDS,
                    check=False,
                )
        return folder

    def tell_the_end(self, count: int) -> None:
        now = [it for it in self.containers() if it.runs]
        say(f"{len(now)} bridges run, with {self.calls(now)} calls")
        if len(now) != count:
            raise DeployFailed(f"{count} bridges were wanted, {len(now)} run")

    # --- the rollback ---

    @contextmanager
    def _rolled_back(
        self, old: Sequence[Container], image: str, before: str, grace: int
    ) -> Iterator[None]:
        """Removes the new bridges if the code inside fails or is interrupted."""
        try:
            yield
        except BaseException as error:
            why = str(error) if isinstance(error, DeployFailed) else repr(error)
            if isinstance(error, KeyboardInterrupt):
                why = "interrupted"
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)  # the rollback must end
            known = {it.id for it in old}
            new = [it for it in self.containers() if it.id not in known]
            say(f"rolling back ({len(new)} new bridges); please wait")
            if new:
                # A new bridge that already has calls drains: they move to old bridges.
                stop = ("docker", "stop", "--time", str(grace), *(it.id for it in new))
                why += _tried(*stop, seconds=grace + COMMAND_SECONDS)
                why += _tried("docker", "rm", "--force", *(it.id for it in new))
            why += _tried("docker", "tag", before, image)
            now = self.containers()
            left = [it for it in now if it.runs and it.id in known]
            gone = len(new) - sum(it.id not in known for it in now)
            raise DeployFailed(
                f"{why}\nrolled back: {len(left)} of {len(old)} old bridges run, "
                f"{gone} of {len(new)} new ones were removed, {image} is the image "
                "before the deploy"
            ) from None

    def _log_of(self, container: Container) -> str:
        done = subprocess.run(  # the log is on both streams, whatever the result
            ["docker", "logs", "--tail", str(LOG_LINES), container.id],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
        )
        lines = (done.stdout + done.stderr).strip()
        return f"--- the last lines of {container.name}\n{lines}"


def _detached(*command: str) -> subprocess.Popen[bytes]:
    """Starts a command that continues if this process is interrupted or its terminal
    is lost."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _tried(*command: str, **options: Any) -> str:
    """Runs a command of the rollback. Returns what went wrong, or an empty text; the
    next step follows in both cases."""
    try:
        run(*command, **options)
    except DeployFailed as failed:
        return f"\nNOT rolled back: {failed}"
    return ""


def _image_id(name: str) -> str:
    """ID of the image; empty if there is no image of that name."""
    try:
        return run("docker", "image", "inspect", "-f", "{{.Id}}", name).strip()
    except DeployFailed:
        return ""


def _previous(image: str) -> str:
    """The same name with the tag `previous`; the registry in it may have a port."""
    if "@" in image:
        raise DeployFailed(
            f"{image} names a digest, which cannot be moved to another image. Use a "
            "tag in docker-compose.yml"
        )
    folder, _, name = image.rpartition("/")
    name = name.partition(":")[0] + ":previous"
    return f"{folder}/{name}" if folder else name


def _healthy(containers: Sequence[Container], states: dict[str, Container]) -> int:
    """How many of these containers are healthy, by their present states."""
    now = (states.get(it.id) for it in containers)
    return sum(it is not None and it.health == "healthy" for it in now)


def _grace(service: dict[str, Any]) -> int:
    """Seconds that the old bridges get to stop: the drain of the new .env, or the grace
    period of the compose file if that is longer."""
    given = service["environment"].get("BRIDGE_DRAIN_SECONDS") or DRAIN_SECONDS
    try:
        drain = float(given)
    except ValueError:
        raise DeployFailed(
            f"BRIDGE_DRAIN_SECONDS={given} is no number of seconds"
        ) from None
    told = re.fullmatch(
        r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", service.get("stop_grace_period", "")
    )
    hours, minutes, seconds = map(int, told.groups("0")) if told else (0, 0, 0)
    return max(hours * 3600 + minutes * 60 + seconds, int(drain + AFTER_DRAIN_SECONDS))


def _stop_as_on_ctrl_c(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Deploy a new version, or another .env, without losing a call."
    )
    parser.add_argument(
        "--no-build",
        action="store_true",
        help="deploy the existing image (it was pulled, or only .env has changed)",
    )
    parser.add_argument(
        "--bridges", type=int, metavar="N", help="number of bridges; default: BRIDGES"
    )
    parser.add_argument(
        "--back", action="store_true", help="deploy the image before the last deploy"
    )
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not run `bridge check` in the new image first",
    )
    parser.add_argument(
        "--healthy-seconds",
        type=float,
        default=120.0,
        help="roll back if the new bridges do not take calls within this time (120)",
    )
    parser.add_argument(
        "compose",
        nargs="*",
        metavar="OPTION",
        help="after --: options of docker compose, such as -p NAME or -f FILE",
    )
    given = parser.parse_args()
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop_as_on_ctrl_c)
    # Held until this process ends.
    lock = open(ROOT / "docker-compose.yml")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("deploy failed: another deploy from this folder is in progress")
    deploy = Deploy(given.compose, given.healthy_seconds)
    began = time.monotonic()
    try:
        deploy.run(
            bridges=given.bridges,
            build=not given.no_build,
            back=given.back,
            check=not given.no_check,
        )
    except DeployFailed as failed:
        sys.exit(f"deploy failed: {failed}")
    except KeyboardInterrupt:
        if not deploy.draining:
            sys.exit("interrupted: no bridge was started or stopped")
        sys.exit(
            "interrupted while the old bridges drain. They continue to drain, and a "
            "process in the background removes them when they have ended. The new "
            "bridges take all calls. Until then do not run `docker compose up`: it "
            "would start old bridges again. `docker compose ps --all bridge` shows the "
            "remaining bridges"
        )
    say(f"deployed in {time.monotonic() - began:.0f} s, no call was cut off")


if __name__ == "__main__":
    main()
