"""`make deploy` of another version or .env, and back, while calls run."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.compose.project import Done, Project, base_argument, env, until
from tests.compose.test_calls import (
    CALLS,
    lost,
    moved,
    taking_calls,
    talking,
    wrong,
)
from tests.fleet import earlier_version

IMAGE = "twilio-realtime-bridge"


def start(project: Project, **more: str) -> None:
    """Starts two bridges that take calls, from any state."""
    project.write_env(**env(**more))
    project.compose("up", "--detach", "balancer", "bridge", "redis", "model")
    until("two bridges are healthy", lambda: project.healthy("bridge", 2))
    until("the balancer sends them calls", lambda: taking_calls(project) == 2)


def ids(project: Project) -> set[str]:
    return {it["Id"] for it in project.containers("bridge")}


def image_of(project: Project, name: str) -> str:
    return project.shell("docker", "image", "inspect", "-f", "{{.Id}}", name).text


async def deployed_under_calls(
    project: Project, *options: str, turns: int = 11
) -> Done:
    """`make deploy` while calls run: no call and no word is lost."""
    results: list[Done] = []

    def event(it: Project) -> None:
        words = ["make", "deploy"]
        if options:
            words.append(f"OPTIONS={' '.join(options)}")
        results.append(it.shell(*words, seconds=300))

    verdicts = await talking(project, event, turns=turns)
    (done,) = results
    print(done.text)
    assert lost(verdicts) == [] and wrong(verdicts) == []
    assert moved(verdicts) == CALLS, "the old bridges did not drain"
    return done


async def test_another_env(fleet: Project) -> None:
    """The deploy of docs/operations.md, in one command."""
    start(fleet)
    before = ids(fleet)
    fleet.write_env(**env(BRIDGE_MAX_CALLS="50"))

    done = await deployed_under_calls(fleet)

    assert "no call was cut off" in done.text
    assert not ids(fleet) & before and len(ids(fleet)) == 2
    assert len(fleet.containers("bridge", running=False)) == 2, "old ones are left"
    told = fleet.in_bridge(ids(fleet).pop(), "/metrics")
    assert "bridge_calls_limit 50.0" in told
    now = ids(fleet)
    for options in (["--no-recreate"], []):
        fleet.compose("up", "--detach", *options, "balancer", "bridge", "redis")
        assert ids(fleet) == now, "compose thinks that something has changed"


def test_a_bridge_that_is_stopped_while_it_starts(fleet: Project) -> None:
    """It exits at once, instead of running until it is killed."""
    start(fleet)
    before = ids(fleet)
    up = ("up", "--detach", "--no-recreate", "--scale", "bridge=3", "bridge")
    fleet.compose(*up)
    (new,) = ids(fleet) - before
    done = fleet.shell("docker", "stop", "--time", "60", new)

    (stopped,) = (
        it for it in fleet.containers("bridge", running=False) if it["Id"] == new
    )
    fleet.shell("docker", "rm", new)
    assert done.seconds < 10 and stopped["State"]["ExitCode"] == 0


def test_a_balancer_without_slots(fleet: Project) -> None:
    """The deploy is refused before any change, and the message names the fix."""
    fleet.environ["BALANCER_SLOTS"] = "3"
    try:
        start(fleet)
        before = ids(fleet)
        done = fleet.shell("make", "deploy", check=False)
    finally:
        del fleet.environ["BALANCER_SLOTS"]

    assert done.code != 0 and "BALANCER_SLOTS=4" in done.text, done.text
    assert ids(fleet) == before


def test_a_deploy_with_another_number_of_bridges_is_refused(fleet: Project) -> None:
    """A deploy does not shrink a fleet that was scaled by hand."""
    start(fleet)
    up = ("up", "--detach", "--no-recreate", "--scale", "bridge=3", "bridge")
    fleet.compose(*up)
    until("three run", lambda: fleet.healthy("bridge", 3))
    before = ids(fleet)

    done = fleet.shell("make", "deploy", check=False)

    assert done.code != 0 and "BRIDGES=3" in done.text, done.text
    assert ids(fleet) == before
    fleet.compose("up", "--detach", "--no-recreate", "bridge")


def test_a_mistake_in_the_settings(fleet: Project) -> None:
    """The new image finds the mistake before a container starts; the old image is
    kept."""
    start(fleet)
    before, image = ids(fleet), image_of(fleet, IMAGE)
    fleet.write_env(**env(BRIDGE_AGENT="nowhere.py:agent"))

    done = fleet.shell("make", "deploy", check=False)

    assert done.code != 0 and "nowhere.py" in done.text, done.text
    assert ids(fleet) == before and image_of(fleet, IMAGE) == image


async def test_new_bridges_that_do_not_start(fleet: Project) -> None:
    """The new bridges are removed; the old bridges and all calls continue."""
    start(fleet)
    before, image = ids(fleet), image_of(fleet, IMAGE)
    results: list[Done] = []

    def event(project: Project) -> None:
        project.write_env(**env(BRIDGE_AGENT="nowhere.py:agent"))
        results.append(
            project.shell("make", "deploy", "OPTIONS=--no-check", check=False)
        )

    verdicts = await talking(fleet, event, turns=4)

    (done,) = results
    print(done.text)
    assert done.code != 0 and "rolled back: 2 of 2 old bridges run" in done.text
    assert "2 of 2 new ones were removed" in done.text
    assert "nowhere.py" in done.text, "the reason is in the log of the new one"
    assert lost(verdicts) == [] and wrong(verdicts) == [] and moved(verdicts) == 0
    assert ids(fleet) == before and image_of(fleet, IMAGE) == image
    assert len(fleet.containers("bridge", running=False)) == 2
    start(fleet)


async def test_redis_is_away(fleet: Project) -> None:
    """Without Redis no call can move to another bridge, so the deploy is refused."""
    start(fleet)
    before = ids(fleet)
    fleet.compose("stop", "redis")
    await asyncio.sleep(5)

    done = fleet.shell("make", "deploy", check=False)

    assert done.code != 0 and "cannot reach Redis" in done.text, done.text
    assert ids(fleet) == before
    fleet.compose("start", "redis")


def test_a_bridge_that_is_killed_raises_an_alarm(fleet: Project) -> None:
    """The alert passes the whole chain: bridge, Prometheus, Alertmanager, webhook."""
    fleet.environ["ALERT_WEBHOOK_URL"] = "http://alarms:9000/"
    start(fleet)
    fleet.compose("up", "--detach", "prometheus", "alertmanager", "alarms")
    until("Prometheus asks both", lambda: up(fleet) == 2)
    time.sleep(10)

    fleet.shell("docker", "kill", ids(fleet).pop())
    seconds = until("an alarm arrives", lambda: alarms(fleet), 180)

    first = alarms(fleet)[0]
    print(f"{first['labels']['alertname']} arrived after {seconds:.0f} s: {first}")
    assert first["labels"]["alertname"] == "InstanceLost"
    assert first["labels"]["severity"] == "ticket"
    assert first["annotations"]["runbook_url"].endswith("operations.md#instancelost")
    del fleet.environ["ALERT_WEBHOOK_URL"]


def up(project: Project) -> int:
    told = project.get("PROMETHEUS_PORT", "/api/v1/query?query=up{job=%22bridge%22}")
    return sum(float(it["value"][1]) == 1 for it in told["data"]["result"])


def alarms(project: Project) -> list[dict[str, dict[str, str]]]:
    return [it for it in project.logs("alarms") if it["status"] == "firing"]


# --- one version over another ---


@pytest.fixture(scope="module")
def other_version(
    fleet: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The deployed image is that of the last commit with the earlier format."""
    folder = earlier_version.unpack(tmp_path_factory.mktemp("earlier") / "clone")
    tag = ("--tag", f"{IMAGE}:earlier")
    fleet.shell("docker", "build", *base_argument(), *tag, str(folder))
    fleet.shell("docker", "tag", IMAGE, f"{IMAGE}:ours")
    fleet.shell("docker", "tag", f"{IMAGE}:earlier", IMAGE)
    fleet.environ["MODEL_IMAGE"] = f"{IMAGE}:ours"
    start(fleet)
    yield
    del fleet.environ["MODEL_IMAGE"]
    fleet.shell("docker", "tag", f"{IMAGE}:ours", IMAGE)


async def test_this_version_over_the_earlier_one(
    fleet: Project, other_version: None
) -> None:
    """Calls that began on the earlier version continue on this version."""
    await deployed_under_calls(fleet)

    assert image_of(fleet, IMAGE) == image_of(fleet, f"{IMAGE}:ours")
    assert image_of(fleet, f"{IMAGE}:previous") == image_of(fleet, f"{IMAGE}:earlier")


async def test_back_to_the_earlier_version(fleet: Project, other_version: None) -> None:
    """Calls that began on this version continue on the earlier version."""
    await deployed_under_calls(fleet, "--back", "--no-check")

    assert image_of(fleet, IMAGE) == image_of(fleet, f"{IMAGE}:earlier")
