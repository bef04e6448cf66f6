"""What docker compose and Prometheus themselves say of their files."""

from pathlib import Path

import pytest
import yaml

from tests.compose.project import Project

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def project(fresh_clone: Path) -> Project:
    """Files only: nothing of it is started."""
    return Project(fresh_clone)


def promtool(project: Project, *words: str) -> str:
    """What the tool of the image that compose runs says, with the files as that has
    them. The test fails where the tool does."""
    file = yaml.safe_load((project.folder / "docker-compose.yml").read_text("utf-8"))
    return project.shell(
        *("docker", "run", "--rm", "--network", "none", "--entrypoint", "promtool"),
        *("--volume", f"{project.folder}/deploy:/deploy:ro"),
        *("--volume", f"{HERE}/alerts.test.yml:/alerts.test.yml:ro"),
        *(file["services"]["prometheus"]["image"], *words),
    ).text


def test_compose_takes_its_file(project: Project) -> None:
    """What the schema cannot say: references, merged keys, conditions."""
    told = project.compose("--profile", "demo", "config", "--quiet").text

    assert told == ""


def test_prometheus_takes_its_files(project: Project) -> None:
    """It starts, and its expressions can be computed."""
    assert "SUCCESS" in promtool(project, "check", "config", "/deploy/prometheus.yml")


def test_rules_do_what_they_say(project: Project) -> None:
    """By the tests of deploy/alerts.yml."""
    assert "SUCCESS" in promtool(project, "test", "rules", "/alerts.test.yml")
