"""The hashes of the lock: installers refuse files that differ from the tested ones."""

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.package.building import LOCK, UV, files_of_wheel, outside_environ, run

PACKAGE = "typing-inspection"
"""A small package of pure Python."""


def pinned() -> str:
    """The lines of PACKAGE in the lock: one version and the hashes of its files."""
    found = re.search(rf"(?m)^{PACKAGE}==.*\n(?:    .*\n)+", LOCK.read_text("utf-8"))
    assert found
    return found[0]


def changed(wheel: Path, folder: Path) -> Path:
    """The wheel with one more line of code. Its RECORD is changed too, so only a hash
    from outside the wheel shows the difference."""
    files = files_of_wheel(wheel)
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    module = next(name for name in files if name.endswith("/__init__.py"))
    files[module] += b"import os  # changed code\n"
    digest = hashlib.sha256(files[module]).digest()
    line = f"{module},sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
    old = re.compile(rf"(?m)^{re.escape(module)},.*$")
    new = f"{line},{len(files[module])}"
    files[record] = old.sub(new, files[record].decode()).encode()
    folder.mkdir()
    with zipfile.ZipFile(folder / wheel.name, "w") as whole:
        for name, content in files.items():
            whole.writestr(name, content)
    return folder / wheel.name


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of the index and a changed wheel, each in its own folder."""
    folder = tmp_path_factory.mktemp("wheels")
    (folder / "lock").write_text(pinned())
    fetch = (sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes")
    options = ("--only-binary", ":all:", "-r", folder / "lock")
    run(*fetch, *options, "-d", folder / "tested", folder=folder)
    (tested,) = (folder / "tested").glob("*.whl")
    return {"tested": tested, "changed": changed(tested, folder / "changed")}


def pip(installer: str, python: Path) -> list[str | Path]:
    if installer == "uv":
        return [UV, "pip", "install", "--python", python]
    return [sys.executable, "-m", "pip", "--python", str(python), "install"]


def install(
    installer: str, wheel: Path, folder: Path, *options: str
) -> tuple[bool, str]:
    """Installs from the wheel's folder alone into a new environment. Returns whether
    the package was installed, and the output of the installer."""
    run(UV, "venv", "--python", sys.executable, folder / "env", folder=folder)
    python = folder / "env" / "bin" / "python"
    (folder / "lock").write_text(pinned())
    offered = ("--no-index", "--no-deps", "--no-cache-dir", "--find-links")
    done = subprocess.run(
        [*pip(installer, python), *offered, wheel.parent, *options],
        cwd=folder,
        env={**outside_environ(), "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    there = any((folder / "env").rglob("typing_inspection/__init__.py"))
    assert there == (done.returncode == 0), done.stdout
    return there, done.stdout


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_changed_wheel_is_refused(
    wheels: dict[str, Path], installer: str, tmp_path: Path
) -> None:
    """If an index or a mirror delivers other bytes, nothing is installed, and the
    message names the hash."""
    locked = ("--require-hashes", "-r", "lock")

    there, said = install(installer, wheels["changed"], tmp_path, *locked)

    assert not there
    told = {"pip": "DO NOT MATCH THE HASHES", "uv": "Hash mismatch for `typing-inspect"}
    assert told[installer] in said
    assert hashlib.sha256(wheels["changed"].read_bytes()).hexdigest() in said


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_only_the_hash_causes_the_refusal(
    wheels: dict[str, Path], installer: str, tmp_path: Path
) -> None:
    """The same command installs the wheel of the index, and without hashes the changed
    wheel is installed: the test above has no other reason to refuse it."""
    for name in ("tested", "changed"):
        (tmp_path / name).mkdir()
    locked = ("--require-hashes", "-r", "lock")

    assert install(installer, wheels["tested"], tmp_path / "tested", *locked)[0]
    assert install(installer, wheels["changed"], tmp_path / "changed", PACKAGE)[0]
