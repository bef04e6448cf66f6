"""docker compose and Prometheus check their own files."""

from pathlib import Path

import pytest
import yaml

from tests.compose.project import Project

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def project(fresh_clone: Path) -> Project:
    """Only files; no container is started."""
    return Project(fresh_clone)


def promtool(project: Project, *words: str) -> str:
    """The output of promtool, of the image and with the files that compose uses. The
    test fails if the tool fails."""
    file = yaml.safe_load((project.folder / "docker-compose.yml").read_text("utf-8"))
    return project.shell(
        *("docker", "run", "--rm", "--network", "none", "--entrypoint", "promtool"),
        *("--volume", f"{project.folder}/deploy:/deploy:ro"),
        *("--volume", f"{HERE}/alerts.test.yml:/alerts.test.yml:ro"),
        *(file["services"]["prometheus"]["image"], *words),
    ).text


def test_compose_accepts_its_file(project: Project) -> None:
    """Checks what the schema cannot: references, merged keys, conditions."""
    told = project.compose("--profile", "demo", "config", "--quiet").text

    assert told == ""


def test_prometheus_accepts_its_files(project: Project) -> None:
    """Prometheus starts, and its expressions can be evaluated."""
    assert "SUCCESS" in promtool(project, "check", "config", "/deploy/prometheus.yml")


def test_alerts_fire_when_they_should(project: Project) -> None:
    """The tests in alerts.test.yml of deploy/alerts.yml pass."""
    assert "SUCCESS" in promtool(project, "test", "rules", "/alerts.test.yml")
