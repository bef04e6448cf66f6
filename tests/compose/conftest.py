"""Fixtures of the compose tests: the engine, a clone, and a running fleet."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.project import COUNTING, Project, clone, env, until

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests, so that `make test` does not run them: they take minutes."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.compose)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def engine() -> None:
    """Fails the tests if there is no Docker engine; they must not be skipped."""
    for command in (["docker", "version"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(
                f"`{' '.join(command)}` failed: {done.stderr.strip()}\n"
                "These tests need a Docker engine with compose 2.24 or newer. "
                "On a Debian machine without one: .ci/engine up, then "
                ".ci/engine run make compose-test"
            )


@pytest.fixture(scope="session")
def fresh_clone(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def fleet(fresh_clone: Path) -> Iterator[Project]:
    """Two healthy bridges, the balancer, Redis and the counting model."""
    project = Project(fresh_clone, COUNTING)
    project.write_env(**env())
    project.remove()
    project.compose(
        *("up", "--build", "--detach"), "balancer", "bridge", "redis", "model"
    )
    until("the bridges are healthy", lambda: project.healthy("bridge", 2))
    yield project
    project.remove()
    (fresh_clone / ".env").unlink()
