"""The files of the wheel and of the sdist, and their metadata."""

import tomllib
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement

from tests.package.building import (
    ROOT,
    SECRETS,
    Built,
    files_of_sdist,
    files_of_wheel,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DIST_INFO = f"twilio_realtime_bridge-{PROJECT['version']}.dist-info"


def code() -> dict[str, bytes]:
    """The files of both packages in the source tree."""
    found = [it for top in ("bridge", "twiml") for it in (ROOT / top).rglob("*")]
    return {
        it.relative_to(ROOT).as_posix(): it.read_bytes()
        for it in found
        if it.is_file() and "__pycache__" not in it.parts
    }


def metadata(wheel: Path) -> Message:
    return BytesParser().parsebytes(files_of_wheel(wheel)[f"{DIST_INFO}/METADATA"])


def test_the_wheel_has_the_code_and_nothing_else(built: Built) -> None:
    """The wheel has both packages with py.typed; no tests, examples or settings."""
    found = files_of_wheel(built.wheel)
    about = {name for name in found if name.startswith(f"{DIST_INFO}/")}
    own = {name: it for name, it in found.items() if name not in about}

    assert own == code()
    assert {"bridge/py.typed", "twiml/py.typed"} <= own.keys()
    assert {name.removeprefix(f"{DIST_INFO}/") for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "licenses/licenses/echarts.txt",
        "licenses/licenses/standardwebhooks.txt",
        "top_level.txt",
    }
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_builds_the_wheel_of_the_tree(built: Built) -> None:
    """A build from the sdist and a build of the image give the same wheel."""
    assert files_of_wheel(built.wheel) == files_of_wheel(built.tree_wheel)


def test_the_metadata_is_that_of_pyproject(built: Built) -> None:
    """An installer finds every dependency; an auditor finds the licence text."""
    about = metadata(built.wheel)
    wanted = [str(Requirement(it)) for it in PROJECT["dependencies"]]
    for extra, lines in PROJECT["optional-dependencies"].items():
        wanted += [str(Requirement(f"{it}; extra == '{extra}'")) for it in lines]
    required = [str(Requirement(it)) for it in about.get_all("Requires-Dist", [])]

    assert sorted(required) == sorted(wanted)
    assert about["Name"] == PROJECT["name"] and about["Version"] == PROJECT["version"]
    assert about["Requires-Python"] == PROJECT["requires-python"]
    assert about["Summary"] == PROJECT["description"]
    assert about.get_all("Provides-Extra") == [*PROJECT["optional-dependencies"]]
    assert about.get_all("Classifier") == PROJECT["classifiers"]
    assert about["License-Expression"] == PROJECT["license"] == "MIT"
    assert about.get_all("License-File") == [
        "LICENSE",
        "licenses/echarts.txt",
        "licenses/standardwebhooks.txt",
    ]
    found = files_of_wheel(built.wheel)
    assert found[f"{DIST_INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    (section, command) = found[f"{DIST_INFO}/entry_points.txt"].decode().splitlines()
    assert (section, command) == ("[console_scripts]", "bridge = bridge.__main__:main")
    assert about["Description-Content-Type"] == "text/markdown"
    described = about.get_payload(decode=True)
    assert isinstance(described, bytes)
    assert described.strip() == (ROOT / "README.md").read_bytes().strip()


def test_the_sdist_has_the_project_without_the_tests(built: Built) -> None:
    """The sdist has all files of git that are needed to build, read, run and deploy."""
    clone = built.sdist.parent.parent / "tree"  # without the planted secrets
    made = ("build/", "twilio_realtime_bridge.egg-info/")
    left_out = ("tests/", ".ci/", ".gitignore", *made)
    names = [it.relative_to(clone).as_posix() for it in clone.rglob("*")]
    wanted = [it for it in names if (clone / it).is_file()]
    found = files_of_sdist(built.sdist)
    by_setuptools = {"PKG-INFO", "setup.cfg"}
    by_setuptools |= {name for name in found if name.startswith(made)}

    assert found.keys() - by_setuptools == {
        name for name in wanted if not name.startswith(left_out)
    }
    assert {"LICENSE", "CHANGELOG.md", ".env.example", "docs/agent.md"} <= found.keys()


def test_no_secret_of_a_used_clone_is_packed(built: Built) -> None:
    """The operator's clone may have settings, keys and recordings; none is packed."""
    clone = built.sdist.parent.parent / "clone"
    assert all((clone / name).is_file() for name in SECRETS)

    packed = [
        *files_of_sdist(built.sdist).items(),
        *files_of_wheel(built.wheel).items(),
    ]
    assert not [name for name, content in packed if content == b"secret\n"]
