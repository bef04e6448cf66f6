"""`docker compose --profile demo up --build` with no .env, as a new user types it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compose.project import Project, until

SERVICES = {
    "balancer": 1,
    "bridge": 2,
    "redis": 1,
    "prometheus": 1,
    "alertmanager": 1,
    "grafana": 1,
}
FAKES = {"model": 1, "caller": 3}

STAND_IN = "grafana"
"""Its image may be a stand-in that only answers /api/health (.ci/engine)."""

ENDED = re.compile(
    r"The call was ended by the caller: ([\d.]+) s of the agent heard, "
    r"interruptions: (\d+), warnings: (\d+)"
)


@pytest.fixture(scope="module")
def demo(fresh_clone: Path) -> Iterator[Project]:
    project = Project(fresh_clone)
    project.remove()
    assert not (fresh_clone / ".env").exists()
    done = project.compose("--profile", "demo", "up", "--build", "--detach")
    print(f"up --build took {done.seconds:.0f} s")
    yield project
    project.remove()


def test_every_container_is_healthy(demo: Project) -> None:
    """The first command is enough."""
    for service, count in SERVICES.items():
        until(
            f"{service} is healthy",
            lambda service=service, count=count: demo.healthy(service, count),  # type: ignore[misc]
        )


def test_the_demo_calls_complete(demo: Project) -> None:
    """All three callers hear the agent, interrupt it and say goodbye, repeatedly."""

    def told() -> list[re.Match[str]]:
        logs = demo.compose("logs", "--no-log-prefix", "caller").text
        return list(ENDED.finditer(logs))

    until("six calls have ended", lambda: len(told()) >= 6, 120)
    calls = told()
    logs = demo.compose("logs", "--no-log-prefix", "caller").text
    assert all(float(it[1]) > 5 for it in calls), "the agent was hardly heard"
    assert all(int(it[2]) >= 1 for it in calls), "nobody was interrupted"
    assert all(int(it[3]) == 0 for it in calls), "Twilio had something to warn of"
    assert "failed" not in logs, logs
    outcomes = {
        line["outcome"] for line in demo.logs("bridge") if line["event"] == "call_ended"
    }
    assert outcomes == {"caller_hung_up"}


def test_a_call_from_this_machine(demo: Project) -> None:
    """`.venv/bin/bridge sim call` reaches the demo through its port."""
    port = demo.shell("docker", "compose", "port", "balancer", "8080").text.strip()
    url = f"http://{port}/voice"
    done = demo.shell(sys.executable, "-m", "bridge.cli.commands", "sim", "call", url)
    assert "ended by the caller" in done.text


@pytest.mark.parametrize("service", [*SERVICES, *FAKES])
def test_a_container_is_locked_down(demo: Project, service: str) -> None:
    """The running container is read-only, without capabilities, and not run as root."""
    users = set()
    for it in demo.containers(service):
        host, container = it["HostConfig"], it["Id"]
        assert host["ReadonlyRootfs"] and not host["Privileged"]
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        status = demo.shell("docker", "exec", container, "cat", "/proc/1/status").text
        facts = dict(line.split(":\t", 1) for line in status.splitlines())
        assert int(facts["CapEff"], 16) == 0 and int(facts["CapBnd"], 16) == 0
        assert facts["NoNewPrivs"].strip() == "1"
        users.add(facts["Uid"].split()[0])
        written = demo.shell(
            *("docker", "exec", container, "sh", "-c"),
            "touch /somewhere; touch /tmp/there && echo only-tmp",
            check=False,
        )
        assert "Read-only file system" in written.text and "only-tmp" in written.text
    assert "0" not in users
    assert service not in ("bridge", *FAKES) or users == {"10001"}


REACHES = {
    ("bridge", "redis", 6379): True,
    ("bridge", "balancer", 8404): True,
    ("bridge", "model", 8765): True,
    ("bridge", "grafana", 3000): False,
    ("bridge", "alertmanager", 9093): False,
    ("model", "redis", 6379): False,
    ("caller", "redis", 6379): False,
}


@pytest.mark.parametrize(("source", "target", "port"), REACHES)
def test_networks_are_separate(
    demo: Project, source: str, target: str, port: int
) -> None:
    """An attacker in a container reaches only the services it needs, by name and by
    address."""
    (ip, *_) = (
        network["IPAddress"]
        for network in demo.containers(target)[0]["NetworkSettings"][
            "Networks"
        ].values()
    )
    code = (
        "import socket, sys\n"
        "for host in sys.argv[1:]:\n"
        "  try:\n"
        f"    socket.create_connection((host, {port}), 2).close()\n"
        "    print('reached')\n"
        "  except OSError as error:\n"
        "    print('not', error)"
    )
    for _ in range(3):  # a caller's container ends with its call
        container = demo.containers(source)[0]["Id"]
        command = ("docker", "exec", container, "python", "-c", code, target, ip)
        told = demo.shell(*command, check=False)
        if told.code == 0:
            break
    wanted = {"reached"} if REACHES[source, target, port] else {"not"}
    assert {line.split()[0] for line in told.text.splitlines()} == wanted, told.text


@pytest.mark.parametrize("service", ["balancer", "prometheus"])
def test_redis_is_out_of_reach(demo: Project, service: str) -> None:
    """The services whose images have no Python cannot reach Redis, which has the
    conversations of callers."""
    (redis,) = demo.containers("redis")
    (address,) = (
        it["IPAddress"] for it in redis["NetworkSettings"]["Networks"].values()
    )
    container = demo.containers(service)[0]["Id"]
    told = demo.shell(
        *("docker", "exec", container, "wget", "-T", "2", "-t", "1", "-O", "-"),
        f"http://{address}:6379/",
        check=False,
    )
    assert told.code != 0 and "connected" not in told.text, told.text


def test_only_this_machine_reaches_ports(demo: Project) -> None:
    """Published ports of all containers are local; Redis and bridges have none."""
    for service in SERVICES:
        for it in demo.containers(service):
            bound = it["HostConfig"]["PortBindings"] or {}
            hosts = {each["HostIp"] for port in bound.values() for each in port}
            assert hosts <= {"127.0.0.1"}
            assert service not in ("redis", "bridge") or not bound


def test_prometheus_sees_everything(demo: Project) -> None:
    """Prometheus scrapes both bridges and the balancer, has the rules, and reaches
    Alertmanager."""

    def targets() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        told = demo.get("PROMETHEUS_PORT", "/api/v1/targets")["data"]
        for it in told["activeTargets"]:
            found.setdefault(it["labels"]["job"], []).append(it["health"])
        return found

    until(
        "all targets are up",
        lambda: targets() == {"bridge": ["up", "up"], "balancer": ["up"]},
    )
    groups = demo.get("PROMETHEUS_PORT", "/api/v1/rules")["data"]["groups"]
    rules: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
    alerts = Path(__file__).resolve().parents[2] / "deploy" / "alerts.yml"
    assert len(rules) == alerts.read_text().count("- alert: ") > 0
    assert [it["name"] for it in rules if it["health"] not in ("ok", "unknown")] == []
    managers = demo.get("PROMETHEUS_PORT", "/api/v1/alertmanagers")["data"]
    (manager,) = managers["activeAlertmanagers"]
    assert manager["url"] == "http://alertmanager:9093/api/v2/alerts"


def test_the_demo_fires_no_alert(demo: Project) -> None:
    """A fresh demo fires no alert."""
    alarms = demo.get("PROMETHEUS_PORT", "/api/v1/alerts")["data"]["alerts"]
    firing = [it["labels"]["alertname"] for it in alarms if it["state"] == "firing"]
    assert firing == []


def test_the_same_command_again(demo: Project) -> None:
    """Without a change no container is recreated, so no call is cut off."""
    before = {it["Id"] for it in demo.containers("bridge")}

    demo.compose("--profile", "demo", "up", "--build", "--detach")

    assert {it["Id"] for it in demo.containers("bridge")} == before


def test_stopping_in_good_order(demo: Project) -> None:
    """After `docker compose stop` every container exits with 0 in its grace period."""
    demo.compose("--profile", "demo", "stop", "caller", seconds=60)
    done = demo.compose("stop", seconds=300)

    print(f"stop took {done.seconds:.1f} s")
    codes = {
        service: {
            it["State"]["ExitCode"] for it in demo.containers(service, running=False)
        }
        for service in SERVICES
        if service != STAND_IN
    }
    assert codes == {it: {0} for it in codes}
