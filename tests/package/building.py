"""Builds the package from a clone, and environments with only that package."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.compose.project import clone

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
LOCK = ROOT / "requirements.lock"
BOOTSTRAP_LOCK = ROOT / "requirements-bootstrap.lock"

SECRETS = (
    ".env",
    "deploy/.env",
    "deploy/.env.prod",
    "deploy/kubernetes/secret-prod.yaml",
    "examples/calls/2026/CA1.wav",
    "examples/key.p12",
    "examples/my_agent_private.py",
    "deploy/kubernetes/secret.yaml",
    "deploy/certs/bridge.pem",
    "deploy/certs/bridge.key",
    "docs/bridge.pem",
    "examples/calls/CA1.wav",
    "examples/calls/CA1.MZ1.trace.jsonl",
    "examples/__pycache__/hello.cpython-311.pyc",
)
"""Files that a used clone may have outside git, and that no package may contain."""

# Removed from the environment: programs get their settings from the test alone, and no
# settings of Python, such as PYTHONPATH or PYTHONDONTWRITEBYTECODE.
_OURS = ("BRIDGE_", "TWILIO_", "OPENAI_", "PYTHON", "VIRTUAL_ENV", "UV_PROJECT")


@dataclass(frozen=True, slots=True)
class Built:
    """`wheel` is built from `sdist`, as in `make package`; `tree_wheel` is built from
    the tree, as in the Dockerfile."""

    sdist: Path
    wheel: Path
    tree_wheel: Path


def outside_environ() -> dict[str, str]:
    """The environment of a user without any settings of this repository."""
    return {name: it for name, it in os.environ.items() if not name.startswith(_OURS)}


def run(*words: str | Path, folder: Path, timeout: float = 300) -> str:
    """The output of a command; if the command fails, the test fails with the output."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=outside_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout}"
    return done.stdout


def build(folder: Path) -> Built:
    """The sdist and wheels, built from clones; the clone of the sdist has secrets."""
    for name in ("clone", "tree"):
        (folder / name).mkdir()
        clone(folder / name)
    run("git", "init", "--quiet", folder=folder / "clone")
    run("git", "add", "--all", folder=folder / "clone")
    for name in SECRETS:
        secret = folder / "clone" / name
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text("secret\n")
    # As `make package`, and as the Dockerfile.
    make = folder / "clone" / "scripts" / "package.sh"
    run(make, sys.executable, folder / "dist", folder=folder)
    wheel = ("build", "--wheel", "--no-build-isolation", "--python", sys.executable)
    run(UV, *wheel, "--out-dir", folder / "tree-dist", folder / "tree", folder=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (from_sdist,) = (folder / "dist").glob("*.whl")
    (from_tree,) = (folder / "tree-dist").glob("*.whl")
    return Built(sdist, from_sdist, from_tree)


@dataclass(frozen=True, slots=True)
class Installation:
    """An environment, `env`, and an empty folder, `work`, in which commands run."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "env" / "bin" / "python"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def start(
        self, *words: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts the installed command `bridge` in `work`."""
        return subprocess.Popen(
            [self.folder / "env" / "bin" / "bridge", *words],
            cwd=self.work,
            env={**outside_environ(), "COLUMNS": "100", **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def bridge(
        self, *words: str, environ: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """The exit code of `bridge ...`, and its output."""
        process = self.start(*words, environ=environ)
        try:
            output, _ = process.communicate(timeout=200)
        finally:
            process.kill()
        return process.returncode, output


def install(package: Path, folder: Path) -> Installation:
    """A place with the locked packages and `package`. An sdist is built in a separate
    environment, with the locked setuptools."""
    place = Installation(folder)
    place.work.mkdir(parents=True)
    run(UV, "venv", "--python", sys.executable, folder / "env", folder=folder)
    pip = (UV, "pip", "install", "--python", place.python)
    locked = ("--require-hashes", "--only-binary", ":all:", "-r", LOCK)
    run(*pip, *locked, folder=folder)
    # Not from uv's cache: it may have built the sdist of an earlier run.
    own = ("--no-deps", "--no-cache", "--build-constraints", BOOTSTRAP_LOCK, package)
    run(*pip, *own, folder=folder)
    return place


def files_of_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


def files_of_sdist(sdist: Path) -> dict[str, bytes]:
    """Path -> content; the paths are without the top folder of the sdist."""
    with tarfile.open(sdist) as whole:
        members = [it for it in whole.getmembers() if it.isfile()]
        found = {it.name: whole.extractfile(it) for it in members}
        return {
            name.partition("/")[2]: file.read() for name, file in found.items() if file
        }
