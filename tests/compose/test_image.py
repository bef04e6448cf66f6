"""The image, built and run by a Docker engine.

Each test starts `docker`, which finds its engine by itself (DOCKER_HOST). PYTHON_IMAGE
replaces the base image of the Dockerfile if its registry cannot be reached.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.compose.project import base_argument
from tests.support.locks import IMAGE, pinned_for

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCKED_DOWN = tuple(
    [
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--network",
        "none",
        "--security-opt",
        "no-new-privileges:true",
    ]
)

LARGEST_MB = 219
"""Limit for the size that the image adds to its base: now 200 MB on amd64. Largest
parts: numpy with its OpenBLAS (64), bytecode (31), twilio (26), openai (22),
cryptography (16), uvloop (14). New versions of these stay below the limit; pip, a copy
of the code or all bytecode would exceed it."""

DISTRIBUTIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({it.name: it.version for it in distributions()}))
"""


def docker(*words: str, timeout: float = 600) -> str:
    done = subprocess.run(
        ["docker", *words],
        cwd=ROOT,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"docker {words}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run(image: str, *words: str, options: tuple[str, ...] = ()) -> str:
    """The output of a command in a container; the first word is its program."""
    first, *others = words
    return docker("run", "--rm", *options, "--entrypoint", first, image, *others)


def python(image: str, code: str) -> str:
    return run(image, "python", "-c", code)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """Built as `make image` builds it, and removed afterwards."""
    name = f"img-test-{uuid.uuid4().hex[:8]}"
    given = [f"IMAGE_VERSION={PROJECT['version']}", "IMAGE_REVISION=0123abcd"]
    words = [word for each in given for word in ("--build-arg", each)]
    docker("build", "--quiet", "--tag", name, *base_argument(), *words, ".")
    yield name
    docker("image", "rm", "--force", name)


@pytest.fixture(scope="module")
def installed(image: str) -> dict[str, str]:
    """The distributions in the image: name -> version."""
    found = json.loads(python(image, DISTRIBUTIONS))
    return {str(canonicalize_name(name)): version for name, version in found.items()}


# ------------------------------------------------------------------------- its contents


def test_the_image_has_the_locked_packages_and_no_others(
    installed: dict[str, str],
) -> None:
    """No development package, no voice of the fakes and no pip is in the image: code
    that breaks in finds no installer."""
    own = {PROJECT["name"]: PROJECT["version"]}

    assert installed == pinned_for(IMAGE) | own


def test_development_packages_cannot_be_imported(image: str) -> None:
    names = ["pytest", "mypy", "hypothesis", "ruff", "coverage", "pip", "setuptools"]
    code = f"from importlib.util import find_spec; print(*map(find_spec, {names}))"

    assert set(python(image, code).split()) == {"None"}


def test_the_files_are_those_of_the_wheels(image: str) -> None:
    """No file was removed from a package, so all functions of the packages work."""
    code = """
from importlib.metadata import distributions
for it in distributions():
    for file in it.files or ():
        if not file.locate().exists():
            print(it.name, file)
"""
    assert python(image, code) == ""


def test_it_does_not_run_as_root(image: str) -> None:
    (config,) = json.loads(docker("image", "inspect", image))

    assert config["Config"]["User"] == "10001"
    assert run(image, "id", "-u").strip() == "10001"
    written = "import os; print(os.access('/venv', os.W_OK), os.access('.', os.W_OK))"
    assert python(image, written).split() == ["False", "False"]


def test_the_image_has_the_labels_of_the_project(image: str) -> None:
    (config,) = json.loads(docker("image", "inspect", image))
    prefix = "org.opencontainers.image."
    found = config["Config"]["Labels"].items()
    labels = {key.removeprefix(prefix): value for key, value in found}

    assert labels["title"] == PROJECT["name"]
    assert labels["version"] == PROJECT["version"]
    assert labels["revision"] == "0123abcd"
    assert labels["licenses"] == PROJECT["license"]
    assert labels["base.name"] == (os.environ.get("PYTHON_IMAGE") or default_base())


def default_base() -> str:
    text = (ROOT / "Dockerfile").read_text("utf-8")
    (found,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", text, re.MULTILINE)
    return str(found)


def test_a_wrong_version_label_is_refused() -> None:
    """pyproject.toml owns the version; a label cannot contradict it."""
    with pytest.raises(AssertionError, match="IMAGE_VERSION"):
        docker("build", *base_argument(), "--build-arg", "IMAGE_VERSION=9.9.9", ".")


def test_its_size(image: str) -> None:
    base = os.environ.get("PYTHON_IMAGE") or default_base()
    known = subprocess.run(["docker", "image", "inspect", base], capture_output=True)
    if known.returncode:
        docker("pull", "--quiet", base)
    size = [docker("image", "inspect", "-f", "{{.Size}}", it) for it in (image, base)]
    added = (int(size[0]) - int(size[1])) / 1e6
    print(f"the image is {added:.0f} MB larger than its base")

    assert added < LARGEST_MB


def test_modules_that_a_start_imports_are_compiled(image: str) -> None:
    """With a read-only root no bytecode can be written: a module without bytecode is
    compiled at each start, which doubles the time until calls are taken."""
    code = """
import importlib, sys
for name in ("cli.commands", "app.startup", "cli.demo", "fleet", "agent.loader"):
    importlib.import_module("bridge." + name)
from pathlib import Path
for name, it in list(sys.modules.items()):
    file = getattr(it, "__cached__", None)
    if file and file.startswith("/venv") and not Path(file).exists():
        print(name)
"""
    assert python(image, code).split() == []


# ---------------------------------------------------------------------- its behaviour


def test_a_call_is_placed_without_network_and_rights(image: str) -> None:
    """A call works from greeting to end in the most restricted container."""
    out = docker("run", "--rm", *LOCKED_DOWN, image, "demo", "--folder", "/tmp/calls")

    assert "billing" in out


def test_its_health_check_is_passed_by_a_bridge_that_serves(image: str) -> None:
    name = f"{image}-serving"
    given = ("-e", "BRIDGE_INSECURE=1")
    docker("run", "--rm", "-d", "--name", name, *LOCKED_DOWN, *given, image)
    try:
        state = ""
        for _ in range(90):
            state = docker("inspect", "-f", "{{.State.Health.Status}}", name).strip()
            if state == "healthy":
                break
            docker("exec", name, "sleep", "1")
        assert state == "healthy", docker("logs", name)
    finally:
        docker("rm", "--force", name)


# ------------------------------------------------------- images with a user's packages


@pytest.fixture(scope="module")
def own(image: str) -> Iterator[str]:
    """examples/image, built on the image."""
    name = f"{image}-own"
    given = ("--build-arg", f"BRIDGE_IMAGE={image}")
    docker("build", "--quiet", "--tag", name, *given, "examples/image")
    yield name
    docker("image", "rm", "--force", name)


def test_an_own_image_has_its_agent_and_its_package(
    own: str, installed: dict[str, str]
) -> None:
    """The bridge's packages keep their versions, and pip is removed again."""
    now = json.loads(python(own, DISTRIBUTIONS))
    names = {str(canonicalize_name(name)): version for name, version in now.items()}
    lines = (ROOT / "examples/image/requirements.txt").read_text("utf-8").split()

    assert names == installed | dict(line.split("==") for line in lines)
    assert run(own, "id", "-u").strip() == "10001"
    checked = subprocess.run(
        ["docker", "run", "--rm", *LOCKED_DOWN, own, "check"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "my_agent.py:agent" in checked.stdout, checked.stderr


def test_an_own_agent_takes_a_call_and_uses_its_package(own: str) -> None:
    where = ("--agent", "my_agent.py:agent", "--folder", "/tmp/calls")
    out = docker("run", "--rm", *LOCKED_DOWN, own, "demo", *where)

    assert "find_customer" in out
    names = ("Stevenson", "Stephenson")
    code = f"import my_agent; print(*map(my_agent.sound, {names}))"
    assert len(set(python(own, code).split())) == 1


def test_an_own_package_cannot_change_a_locked_version(
    image: str, tmp_path: Path
) -> None:
    """A requirement that contradicts the lock makes the build fail; it cannot silently
    change a version of the bridge's packages."""
    for file in ("Dockerfile", "my_agent.py"):
        (tmp_path / file).write_bytes((ROOT / "examples/image" / file).read_bytes())
    (tmp_path / "requirements.txt").write_text("aiohttp<3.14\n")

    with pytest.raises(AssertionError, match="aiohttp"):
        docker("build", "--build-arg", f"BRIDGE_IMAGE={image}", str(tmp_path))


# ------------------------------------------------------------------- its components


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_each_package_has_a_wheel_for(machine: str, tmp_path: Path) -> None:
    """The image can be built for amd64 and for arm64: the package index has a wheel for
    CPython 3.13 of each locked package. Debian 13 has glibc 2.41."""
    pins = pinned_for(IMAGE)
    wanted, report = tmp_path / "wanted.txt", tmp_path / "report.json"
    wanted.write_text("".join(f"{name}=={it}\n" for name, it in pins.items()))
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(17, 42)]
    words = ["--implementation", "cp", "--python-version", "3.13"]
    words += [f"--platform={it}" for it in (*platforms, f"manylinux2014_{machine}")]
    words += ["--abi=cp313", "--abi=abi3", "--abi=none"]
    words += ["--only-binary=:all:", "--no-deps", "--ignore-installed", "--quiet"]
    # Do not check the Python that runs pip; requires_python is checked below.
    words += ["--ignore-requires-python"]
    words += [f"--target={tmp_path / 'target'}", f"--report={report}", f"-r{wanted}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", *words],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text("utf-8"))["install"]
    files = {it["download_info"]["url"].rsplit("/", 1)[-1] for it in found}
    assert len(found) == len(pins)
    for each in (it["metadata"] for it in found):
        assert SpecifierSet(each.get("requires_python", "")).contains("3.13.0"), each
    assert all(it.endswith((f"{machine}.whl", "-any.whl")) for it in files), files


def test_the_bill_of_materials_lists_what_is_installed(
    installed: dict[str, str], tmp_path: Path
) -> None:
    """`make sbom` writes CycloneDX; the build validates it with CycloneDX's tool."""
    where = ("--target", "sbom-file", "--output", str(tmp_path))
    docker("build", *base_argument(), *where, ".")
    bom = json.loads((tmp_path / "sbom.json").read_text("utf-8"))
    found = bom["components"]
    listed = {str(canonicalize_name(it["name"])): it["version"] for it in found}

    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    root = bom["metadata"]["component"]
    assert listed | {root["name"]: root["version"]} == installed
