"""scripts/digests.py, with a program in place of docker."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A `docker` that knows every image unless its name contains `gone`."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in *gone*) echo "not found" >&2; exit 1;; esac\n'
        f"echo 'Name: x\nDigest:    {NEW}\n\nManifests:\n  Name: x@{OLD}'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


def renew(docker: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.digests", *map(str, files)],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{docker}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_digests_are_renewed_and_nothing_else(docker: Path, tmp_path: Path) -> None:
    """One command renews a base image in each file that names it."""
    one, other = tmp_path / "Dockerfile", tmp_path / "compose.yml"
    one.write_text(f"ARG IMAGE=a/b:1.2-slim@{OLD}\nFROM ${{IMAGE}}\n")
    other.write_text(f"image: localhost:5000/c:v3@{OLD}\nimage: d:7\n")

    done = renew(docker, one, other)

    assert done.returncode == 0, done.stderr
    assert one.read_text() == f"ARG IMAGE=a/b:1.2-slim@{NEW}\nFROM ${{IMAGE}}\n"
    assert other.read_text() == f"image: localhost:5000/c:v3@{NEW}\nimage: d:7\n"
    assert f"a/b:1.2-slim@{NEW} (was {OLD})" in done.stdout


def test_no_file_changes_when_a_registry_does_not_answer(
    docker: Path, tmp_path: Path
) -> None:
    """It never happens that one file has the new digest and another the old one."""
    one, other = tmp_path / "Dockerfile", tmp_path / "compose.yml"
    one.write_text(f"FROM a:1@{OLD}\n")
    other.write_text(f"image: gone:1@{OLD}\n")

    done = renew(docker, one, other)

    assert done.returncode == 1 and "gone:1" in done.stderr
    assert OLD in one.read_text() and OLD in other.read_text()
