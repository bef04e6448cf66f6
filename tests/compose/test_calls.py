"""Calls continue while something happens to a container: no call is lost.

Both sides speak counted words (tests/support/counted_calls.py). A call is lost if the
caller did not end it or heard an apology. Words are checked in the caller's audio and
in the model's conversation.
"""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from tests.compose.project import Project, env, until
from tests.support.counted_calls import Verdict

CALLS = 8
TURNS = 5
"""Turns of a call; about half a minute."""

LATE = 20
"""Number of the first later call; a call's words contain its number."""

RAMP_SECONDS = 0.3
TALKING_SECONDS = 6.0
"""From the beginning of the first call until all calls are in conversation."""

Event = Callable[[Project], object]


@pytest.fixture(autouse=True)
def two_bridges(fleet: Project) -> Iterator[None]:
    """Each test begins with the two bridges that .env asks for."""
    fleet.write_env(**env())
    fleet.compose("up", "--detach", "--no-recreate", "balancer", "bridge", "redis")
    until("two bridges are healthy", lambda: fleet.healthy("bridge", 2))
    until("the balancer sends them calls", lambda: taking_calls(fleet) == 2)
    yield


def taking_calls(project: Project) -> int:
    """The number of bridges to which the balancer sends new streams."""
    text = project.compose(
        *("exec", "-T", "balancer"),
        *("wget", "-q", "-O", "-", "http://127.0.0.1:8404/stats;csv"),
    ).text
    rows = [line.split(",") for line in text.splitlines()]
    status = rows[0].index("status")
    return sum(row[0] == "media" and "UP" in row[status] for row in rows[1:-1]) - 1


async def talking(
    project: Project, event: Event, calls: int = CALLS, turns: int = TURNS
) -> list[Verdict]:
    """The results of calls during which `event` ran. It begins when all calls are in
    conversation, and must end before they do, unless the test says otherwise."""
    placed = project.counted_calls()

    async def happen() -> None:
        await asyncio.sleep(TALKING_SECONDS)
        began = time.monotonic()
        await asyncio.to_thread(event, project)
        print(f"the event took {time.monotonic() - began:.1f} s")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(happen())
        tasks.create_task(placed.place(calls, turns, RAMP_SECONDS))
    verdicts = placed.verdicts(await asyncio.to_thread(project.conversations))
    hit = [it for it in verdicts if it.gaps]
    away = sorted(gap.end - gap.begin for it in hit for gap in it.gaps)
    print(
        f"{len(verdicts)} calls, {len(hit)} in a new stream, "
        f"no stream for {', '.join(f'{it:.1f}' for it in away) or '0'} s"
    )
    return verdicts


def lost(verdicts: list[Verdict]) -> list[str]:
    return [it.lost for it in verdicts if it.lost]


def moved(verdicts: list[Verdict]) -> int:
    return sum(bool(it.gaps) for it in verdicts)


def wrong(verdicts: list[Verdict]) -> list[str]:
    return [text for it in verdicts for text in it.wrong]


async def test_calls_without_an_event_are_complete(fleet: Project) -> None:
    """Checks the measurement itself: undisturbed calls have no mistakes."""
    verdicts = await talking(fleet, lambda _: None, turns=2)

    assert lost(verdicts) == [] and wrong(verdicts) == [] and moved(verdicts) == 0


async def test_scaling_up_and_down(fleet: Project) -> None:
    """The two commands of docs/operations.md, one after another, while calls run."""

    def event(project: Project) -> None:
        up = ("up", "--detach", "--no-recreate", "--scale")
        project.compose(*up, "bridge=4", "bridge")
        until("four take calls", lambda: taking_calls(project) == 4)
        project.compose(*up, "bridge=2", "bridge")
        until("two are left", lambda: taking_calls(project) == 2)

    verdicts = await talking(fleet, event)

    assert lost(verdicts) == [] and wrong(verdicts) == []
    assert len(fleet.containers("bridge", running=False)) == 2


async def test_a_bridge_is_killed(fleet: Project) -> None:
    """`docker kill` during calls: they continue with the agent on the other bridge. The
    caller's words of that second may be lost, but no call."""

    def event(project: Project) -> None:
        fullest = max(project.calls().items(), key=lambda each: each[1])
        assert fullest[1] >= CALLS / 2
        project.shell("docker", "kill", fullest[0])

    verdicts = await talking(fleet, event)

    assert lost(verdicts) == []
    assert moved(verdicts) >= CALLS / 2
    assert all(gap.heard_at < float("inf") for it in verdicts for gap in it.gaps)
    (gone,) = (
        it
        for it in fleet.containers("bridge", running=False)
        if not it["State"]["Running"]
    )
    assert gone["State"]["ExitCode"] == 137


async def test_redis_is_away_for_a_minute(fleet: Project) -> None:
    """Running calls continue, new calls are taken, and the bridges write their data
    again when Redis is back."""

    def event(project: Project) -> None:
        project.compose("stop", "redis")
        until("it is noticed", lambda: registry_up(project) == {0.0}, 15)
        late = project.counted_calls(LATE)
        asyncio.run(late.place(2, 2, RAMP_SECONDS))
        assert lost(late.verdicts(project.conversations())) == []
        time.sleep(max(0.0, 60.0 - (time.monotonic() - began)))
        project.compose("start", "redis")
        until("every bridge has it again", lambda: registry_up(project) == {1.0}, 30)

    began = time.monotonic() + TALKING_SECONDS
    verdicts = await talking(fleet, event, turns=14)

    assert lost(verdicts) == [] and wrong(verdicts) == [] and moved(verdicts) == 0


def registry_up(project: Project) -> set[float]:
    """bridge_registry_up of all bridges."""
    found = set()
    for it in project.containers("bridge"):
        for line in project.in_bridge(it["Id"], "/metrics").splitlines():
            if line.startswith("bridge_registry_up "):
                found.add(float(line.split()[1]))
    return found


async def test_redis_restart_and_new_haproxy_cfg(fleet: Project) -> None:
    """Redis is restarted; then a new haproxy.cfg is checked and loaded, as in
    docs/operations.md. No caller notices."""
    config = fleet.folder / "deploy" / "haproxy.cfg"
    before = config.read_text("utf-8")
    new = "    stats enable\n    monitor-uri /new\n"
    config.write_text(before.replace("    stats enable\n", new))

    def event(project: Project) -> None:
        project.compose("restart", "redis")
        until("every bridge has it again", lambda: registry_up(project) == {1.0})
        check = ("haproxy", "-c", "-f", "/deploy/haproxy.cfg")
        project.compose("exec", "-T", "balancer", *check)
        project.compose("kill", "-s", "USR2", "balancer")
        new = ("wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8404/new")
        until(
            "the new file is in use",
            lambda: (
                not project.compose("exec", "-T", "balancer", *new, check=False).code
            ),
            10,
        )
        late = project.counted_calls(LATE)
        asyncio.run(late.place(2, 1, RAMP_SECONDS))
        assert lost(late.verdicts(project.conversations())) == []

    try:
        verdicts = await talking(fleet, event)
    finally:
        config.write_text(before)

    assert lost(verdicts) == [] and wrong(verdicts) == [] and moved(verdicts) == 0


async def test_the_balancer_is_restarted(fleet: Project) -> None:
    """As docs/operations.md says, every stream breaks, and a call continues only if the
    balancer is back when Twilio asks for the next step. (The fake asks at once, so most
    calls are lost; the delay of the real Twilio is not known.) New calls are taken."""

    def event(project: Project) -> None:
        project.compose("restart", "--timeout", "0", "balancer")
        until("it is back", lambda: taking_calls(project) == 2, 15)
        late = project.counted_calls(LATE)
        asyncio.run(late.place(2, 1, RAMP_SECONDS))
        assert lost(late.verdicts(project.conversations())) == []

    verdicts = await talking(fleet, event)

    print(f"lost: {len(lost(verdicts))}")
    assert all(it.gaps or it.lost for it in verdicts), "no stream broke"


async def test_compose_up_with_another_env(fleet: Project) -> None:
    """`docker compose up -d` with another .env: compose stops both bridges before it
    starts one. Running calls wait at Twilio and continue; new callers hear that all
    lines are busy."""

    def event(project: Project) -> None:
        project.write_env(**env(BRIDGE_MAX_CALLS="50"))
        project.compose("up", "--detach", "balancer", "bridge", "redis")

    verdicts = await talking(fleet, event, turns=8)

    assert lost(verdicts) == []
    assert moved(verdicts) == CALLS
