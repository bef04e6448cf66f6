"""Deploys a new version, or another .env, with docker compose, without losing a call.

    make deploy                        build, start new bridges, drain the old ones
    python3 scripts/deploy.py --help   the options

The new bridges start beside the old ones. When all of them are healthy and the balancer
sends them calls, the old ones drain: their calls end, or go on at a new bridge. If the
new ones do not become healthy, they are removed and the old ones go on as before.

Needs docker with compose 2.24 or newer and Python 3.9, and nothing of this project.
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
"""BRIDGE_DRAIN_SECONDS where it is not set."""

AFTER_DRAIN_SECONDS = 30.0
"""For the calls that are left: they are handed over, and Twilio asks what follows."""

LOOK_SECONDS = 1.0
TELL_SECONDS = 10.0
COMMAND_SECONDS = 60.0
"""For a command of docker that neither builds nor waits for a container."""

KILLED = 137
"""The exit code of a container that took longer than its grace period."""

CHECK_SECONDS = 180.0
"""For `bridge check` in the new image, which imports the agent."""

LOG_LINES = 15

# Runs in a bridge: its port is open to its network only, and the image has no curl.
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
    """The text says why, and what became of the bridges."""


@dataclass(frozen=True)
class Container:
    id: str
    name: str
    state: str
    health: str
    image: str
    """Its ID: two builds of one name have two."""
    exit_code: int
    stop_seconds: int
    """What it was started with: its own .env may say more than the new one."""

    @property
    def runs(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class Facts:
    """What a bridge says of itself."""

    status: str
    """ready, full or draining; unreachable where it does not answer."""
    calls: int = 0
    registry_up: bool = False


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def run(
    *command: str, seconds: float | None = COMMAND_SECONDS, quiet: bool = True
) -> str:
    """The output of a command; DeployFailed with its last lines where it fails."""
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

    # --- what there is ---

    def containers(self, service: str = SERVICE) -> list[Container]:
        """Of a service, stopped ones included, oldest number first."""
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
        """Of all of them together."""
        with ThreadPoolExecutor(max(1, len(containers))) as threads:
            return sum(it.calls for it in threads.map(self.facts, containers))

    def take_calls(self) -> int:
        """Bridges that the balancer gives new streams."""
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
        """Of the balancer that runs: .env may say more by now."""
        told = self.compose("exec", "-T", "balancer", "printenv", "BALANCER_SLOTS")
        return int(told)

    def wanted(self) -> dict[str, Any]:
        """The service as docker-compose.yml and .env have it now."""
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
        # An old bridge drains as long as the .env that it was started with says.
        grace = max([_grace(service), *(it.stop_seconds for it in old)])
        if not old:
            raise DeployFailed(
                "no bridge is running, so there is nothing to replace. Start them: "
                "docker compose up --build -d"
            )
        if count < 1:
            raise DeployFailed(f"{count} bridges would take no calls")
        if bridges is None and len(old) != configured:
            raise DeployFailed(
                f"{len(old)} bridges run, and BRIDGES is {configured}. Set "
                f"BRIDGES={len(old)} in .env, or name the number: --bridges {len(old)}"
            )
        if back and not _image_id(previous):
            raise DeployFailed(
                f"there is no {previous}: no earlier deploy has replaced an image"
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
                f"starting {count} new bridges beside {len(old)} old ones, which have "
                f"{self.calls(old)} calls"
            )
            new = self.start(old, count)
            self.await_healthy(old, new, count)
            # What was deployed before can be had again (--back). Not where only .env
            # has changed: the image before that would be forgotten.
            if _image_id(image) != before:
                run("docker", "tag", before, previous)
        self.draining = True
        self.drain(old, grace)
        self.tell_the_end(count)

    def refuse_what_cannot_work(self, old: Sequence[Container], count: int) -> None:
        """DeployFailed before anything is touched."""
        balancer = self.containers("balancer")
        if not any(it.runs for it in balancer):
            raise DeployFailed(
                "the balancer does not run, so nobody would notice new bridges; "
                "docker compose up -d --no-recreate balancer"
            )
        slots = self.slots()
        if len(old) + count > slots:
            raise DeployFailed(
                f"{len(old)} old and {count} new bridges run side by side in a deploy, "
                f"and the balancer that runs has {slots} slots. Set "
                f"BALANCER_SLOTS={len(old) + count} or more in .env, and in a quiet "
                "hour: docker compose up -d --no-deps balancer (streams break and come "
                "back)"
            )
        for container in old:
            each = self.facts(container)
            if each.status == "draining":
                raise DeployFailed(
                    f"{container.name} is draining: another deploy, or a scaling down, "
                    "is under way. Wait until it has ended"
                )
            if each.status != "unreachable" and not each.registry_up:
                raise DeployFailed(
                    f"{container.name} cannot reach Redis, so its calls could not move "
                    "to another bridge. See RegistryAway in docs/operations.md"
                )

    def remove_stopped(self) -> None:
        """Compose would start them again in the place of new ones."""
        for it in self.containers():
            if not it.runs:
                say(f"removing {it.name}: {it.state}, exit code {it.exit_code}")
                run("docker", "rm", "--force", it.id)

    def check_settings(self) -> None:
        """Finds a mistake in .env, the routes or the agent before anything starts."""
        say("checking the settings and the agent in the new image")
        command = ("run", "--rm", "--no-deps", "-T", SERVICE, "check")
        try:
            self.compose(*command, seconds=CHECK_SECONDS)
        except DeployFailed as failed:
            raise DeployFailed(f"bridge check in the new image: {failed}") from None

    def start(self, old: Sequence[Container], count: int) -> list[Container]:
        scale = f"{SERVICE}={len(old) + count}"
        self.compose(
            # Not --no-deps: compose (2.26) notes another configuration then, and the
            # next `up` recreates every bridge.
            *("up", "--detach", "--no-recreate", "--no-build"),
            *("--scale", scale, SERVICE),
            seconds=None,
        )
        known = {it.id for it in old}
        return [it for it in self.containers() if it.id not in known]

    def await_healthy(
        self, old: Sequence[Container], new: Sequence[Container], count: int
    ) -> None:
        """Returns when all new ones are healthy and the balancer gives them calls."""
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
            # An old one that has died since is not waited for.
            needed = _healthy(old, states) + count
            text = f"new ones healthy: {healthy} of {count}; "
            text += f"old and new ones that take calls: {taking} of {needed}"
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
        """Stops the old ones, all at once, and removes them. DeployFailed when one did
        not end in good order: it has cut off its calls.

        None may be left: the next `docker compose up` would start a stopped old one
        again, and stop a new one for it.
        """
        say(f"draining {len(old)} old ones, for {grace} s at most")
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
                f"the new bridges take all calls, but calls of the old ones were cut "
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

    # --- taking it back ---

    @contextmanager
    def _rolled_back(
        self, old: Sequence[Container], image: str, before: str, grace: int
    ) -> Iterator[None]:
        """What goes wrong inside, Ctrl-C included, removes the new ones."""
        try:
            yield
        except BaseException as error:
            why = str(error) if isinstance(error, DeployFailed) else repr(error)
            if isinstance(error, KeyboardInterrupt):
                why = "interrupted"
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)  # what is begun is ended
            known = {it.id for it in old}
            new = [it for it in self.containers() if it.id not in known]
            say(f"rolling back ({len(new)} new bridges); please wait")
            if new:
                # One that took calls already drains; they go on at the old ones.
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
        done = subprocess.run(  # its output is on both streams, whatever its result
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
    """A command that goes on when this process is interrupted, or its terminal lost."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _tried(*command: str, **options: Any) -> str:
    """Empty; or what went wrong, for the end: the next step is taken all the same."""
    try:
        run(*command, **options)
    except DeployFailed as failed:
        return f"\nNOT rolled back: {failed}"
    return ""


def _image_id(name: str) -> str:
    """Empty where there is no image of that name."""
    try:
        return run("docker", "image", "inspect", "-f", "{{.Id}}", name).strip()
    except DeployFailed:
        return ""


def _previous(image: str) -> str:
    """The same name with another tag; a registry may have a port."""
    if "@" in image:
        raise DeployFailed(
            f"{image} names a digest, which cannot be moved to another image: name a "
            "tag in docker-compose.yml"
        )
    folder, _, name = image.rpartition("/")
    name = name.partition(":")[0] + ":previous"
    return f"{folder}/{name}" if folder else name


def _healthy(containers: Sequence[Container], states: dict[str, Container]) -> int:
    """How many of them are, by their present states."""
    now = (states.get(it.id) for it in containers)
    return sum(it is not None and it.health == "healthy" for it in now)


def _grace(service: dict[str, Any]) -> int:
    """Seconds that the old bridges get to stop: more than the new .env says, if the
    compose file says more."""
    given = service["environment"].get("BRIDGE_DRAIN_SECONDS") or DRAIN_SECONDS
    try:
        drain = float(given)
    except ValueError:
        raise DeployFailed(f"BRIDGE_DRAIN_SECONDS={given} is no number") from None
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
        help="deploy the image as it is (it was pulled, or only .env has changed)",
    )
    parser.add_argument(
        "--bridges", type=int, metavar="N", help="how many; else BRIDGES of .env"
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
        help="roll back if the new bridges do not take calls within so long (120)",
    )
    parser.add_argument(
        "compose",
        nargs="*",
        metavar="OPTION",
        help="behind --: options of docker compose, such as -p NAME or -f FILE",
    )
    given = parser.parse_args()
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop_as_on_ctrl_c)
    # Held until this process ends.
    lock = open(ROOT / "docker-compose.yml")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("deploy failed: another deploy from this folder is under way")
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
            "interrupted while the old bridges drain: they go on draining, and a "
            "process in the background removes them when they have ended. The new "
            "bridges take all calls. Until then no `docker compose up`: it would start "
            "old ones again. `docker compose ps --all bridge` shows what is left"
        )
    say(f"deployed in {time.monotonic() - began:.0f} s, no call was cut off")


if __name__ == "__main__":
    main()
