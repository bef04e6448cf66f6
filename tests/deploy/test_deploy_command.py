"""scripts/deploy.py with a fake docker: failures in each step.

tests/compose/test_deploy.py runs the script with a real engine and with calls.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_docker import IMAGE, FakeDocker, container

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PREVIOUS = "registry.example.com:5000/phone/bridge:previous"


@dataclass
class Host:
    """A machine with two bridges of the image `old`, and the script."""

    folder: Path
    docker: FakeDocker

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        (self.folder / "scripts").mkdir()
        (self.folder / "docker-compose.yml").touch()
        script = (ROOT / "scripts" / "deploy.py").read_text("utf-8")
        (self.folder / "scripts" / "deploy.py").write_text(script)
        docker = self.folder / "bin" / "docker"
        docker.write_text(self.docker.program)
        docker.chmod(0o755)

    @property
    def state(self) -> dict[str, Any]:
        return self.docker.state

    def set(self, **facts: Any) -> None:
        self.docker.set(**facts)

    @property
    def running(self) -> dict[str, str]:
        """The running bridges: ID -> image ID."""
        return {
            it["Id"]: it["Image"]
            for it in self.state["containers"]
            if it["State"]["Status"] == "running"
        }

    def start(self, *options: str) -> "subprocess.Popen[str]":
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, "scripts/deploy.py", *options],
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def deploy(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        text, _ = process.communicate(timeout=60)
        return process.returncode, text


OLD, NEW = {"id09": "old", "id10": "old"}, {"id11": "new", "id12": "new"}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    old = [container(number, "old") for number in (9, 10)]
    with FakeDocker(containers=old, tags={IMAGE: "old"}) as docker:
        yield Host(tmp_path, docker)


def test_a_deploy_replaces_the_old_bridges(host: Host) -> None:
    """New bridges replace the old ones; the old image is kept for --back."""
    code, text = host.deploy()

    assert code == 0 and "no call was cut off" in text, text
    assert host.running == NEW
    assert host.state["tags"] == {IMAGE: "new", PREVIOUS: "old"}
    assert host.deploy("--back")[0] == 0
    assert set(host.running.values()) == {"old"}
    assert host.state["tags"] == {IMAGE: "old", PREVIOUS: "new"}


def test_a_deploy_without_a_build_keeps_the_previous_image(host: Host) -> None:
    """--back returns to the previous image, even after more deploys of .env alone."""
    host.deploy()
    host.deploy("--no-build")

    assert host.state["tags"][PREVIOUS] == "old"


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "too few slots": ({"slots": 3}, [], "BALANCER_SLOTS=4"),
    "another number": ({"replicas": 4}, [], "BRIDGES=2"),
    "no bridges": ({}, ["--bridges", "0"], "0 bridges"),
    "draining": ({"status": "draining"}, [], "is draining"),
    "no Redis": ({"registry_up": 0.0}, [], "cannot reach Redis"),
    "nothing before": ({}, ["--back"], f"no {PREVIOUS}"),
    "a digest": ({"image": "bridge@sha256:12"}, [], "names a digest"),
    "no number": ({"env": {"BRIDGE_DRAIN_SECONDS": "60s"}}, [], "is no number"),
    "no engine": ({"fail": ["compose"]}, [], "made to fail"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_deploy_that_cannot_work_is_refused(host: Host, name: str) -> None:
    """The script names the reason, before it changes a container or an image."""
    facts, options, reason = REFUSED[name]
    host.set(**facts)

    code, text = host.deploy(*options)

    assert code != 0 and reason in text, text
    assert host.running == OLD and host.state["tags"] == {IMAGE: "old"}
    assert "Traceback" not in text


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "build": ({"fail": ["compose build"]}, "made to fail"),
    "settings": ({"check_fails": True}, "nowhere.py"),
    "start": ({"fail": ["compose up"]}, "made to fail"),
    "a crash": ({"new_state": "restarting"}, "nowhere.py"),
    "unhealthy": ({"new_health": "unhealthy"}, "unhealthy"),
    "never healthy": ({"new_health": "starting"}, "within 2 s"),
    "tag": ({"fail": [f"tag old {PREVIOUS}"]}, "made to fail"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_failed_deploy_is_rolled_back(host: Host, name: str) -> None:
    """The old bridges run, no new bridge runs, and the old image has its name again."""
    facts, reason = BROKEN[name]
    host.set(**facts)

    code, text = host.deploy("--healthy-seconds", "2")

    assert code != 0 and reason in text, text
    assert "2 of 2 old bridges run" in text and "Traceback" not in text, text
    assert host.running == OLD and len(host.state["containers"]) == 2
    assert host.state["tags"][IMAGE] == "old"


def test_a_rollback_continues_after_a_failed_step(host: Host) -> None:
    """A failed step is reported and does not prevent the other steps."""
    host.set(new_health="unhealthy", fail=["rm"])

    code, text = host.deploy()

    assert code != 0 and "NOT rolled back" in text and "0 of 2 new ones" in text, text
    assert host.running == OLD and host.state["tags"][IMAGE] == "old"


def test_a_bridge_that_was_killed_is_reported(host: Host) -> None:
    """The operator learns which bridge cut off calls, and where its log is. The bridge
    is removed, or the next `up` would start it."""
    host.set(exit_code=137)

    code, text = host.deploy()

    assert code != 0 and "phone-bridge-9 was killed" in text, text
    assert host.running == NEW and len(host.state["containers"]) == 2
    log = Path(text.split("Their logs are in ")[1].strip()) / "phone-bridge-9.log"
    assert b"nowhere.py" in log.read_bytes()


def wait_for(host: Host, command: str) -> None:
    """Returns when the script has called this docker command."""
    until = time.monotonic() + 60
    while not any(" ".join(it).startswith(command) for it in host.state["calls"]):
        assert time.monotonic() < until, f"never came to {command}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("compose build", signal.SIGINT),
        ("compose up", signal.SIGTERM),
        ("compose up", signal.SIGHUP),
    ],
)
def test_interrupted_before_the_drain(host: Host, command: str, number: int) -> None:
    """After Ctrl-C, a kill or a lost terminal, old and new bridges do not both stay."""
    host.set(slow=[command], calls=[])
    process = host.start()
    wait_for(host, command)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)

    assert process.returncode != 0 and "rolled back" in text, text
    host.set(slow=[])
    time.sleep(0.2)  # the command itself goes on, if it was not interrupted as well
    assert host.state["tags"][IMAGE] in ("old", "new")
    assert OLD.items() <= host.running.items()


def test_interrupted_in_the_drain(host: Host) -> None:
    """The old bridges continue to drain; the new bridges stay."""
    host.set(slow=["stop"], calls=[])
    process = host.start()
    wait_for(host, "stop")
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)

    assert process.returncode != 0 and "while the old bridges drain" in text, text
    host.set(slow=[])
    until = time.monotonic() + 60
    while len(host.state["containers"]) > 2:
        assert time.monotonic() < until, "old ones are left for the next `up` to start"
        time.sleep(0.1)
    assert host.running == NEW


def test_two_deploys_at_once(host: Host) -> None:
    """The second deploy is refused: its rollback would remove the bridges that the
    first one started."""
    host.set(slow=["compose build"], calls=[])
    first = host.start()
    wait_for(host, "compose build")

    code, text = host.deploy()

    assert code != 0 and "another deploy" in text, text
    host.set(slow=[])
    assert "no call was cut off" in first.communicate(timeout=60)[0]
    assert host.running == NEW
