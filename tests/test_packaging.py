"""What pyproject.toml says of the package, compared with the code, without a build."""

import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_imports import imports
from tests.test_project_files import PYTHONS

ROOT = Path(__file__).resolve().parent.parent
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT, SETUPTOOLS = WHOLE["project"], WHOLE["tool"]["setuptools"]
TOPS = ("bridge", "twiml")

# Each version of the one requires one version of the other.
COMES_WITH = {"pydantic-core": "pydantic"}


def files(root: Path) -> list[Path]:
    found = [it.relative_to(root) for top in TOPS for it in (root / top).rglob("*")]
    return [
        it for it in found if "__pycache__" not in it.parts and not (root / it).is_dir()
    ]


def forgotten(
    root: Path, packages: list[str], data: dict[str, list[str]]
) -> list[Path]:
    """The files of the code that a wheel with these packages would lack."""
    packed: set[Path] = set()
    for package in packages:
        folder = Path(*package.split("."))
        patterns = ["*.py", *data.get(package, [])]
        for pattern in patterns:
            packed |= {it.relative_to(root) for it in (root / folder).glob(pattern)}
    return sorted(set(files(root)) - packed)


def test_every_file_of_the_code_is_in_the_wheel() -> None:
    """A new folder or data file that pyproject.toml lacks would work in a clone and be
    missing from the wheel and from the image."""
    packages, data = SETUPTOOLS["packages"], SETUPTOOLS["package-data"]

    assert forgotten(ROOT, packages, data) == []
    folders = {".".join(it.parent.parts) for it in files(ROOT) if it.suffix == ".py"}
    assert sorted(packages) == sorted(folders)
    lacking = [it for it in packages if Path(*it.split("."), "__init__.py") not in CODE]
    assert not lacking, "without it mypy and setuptools see no package"


CODE = set(files(ROOT))


def test_a_forgotten_file_is_noticed(tmp_path: Path) -> None:
    """A new folder, a nested one and a data file are each noticed."""
    names = ["bridge/a.py", "bridge/new/a.py", "bridge/new/deep/a.py", "twiml/t.json"]
    for name in [*names, "bridge/py.typed", "bridge/__pycache__/a.pyc"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    data = {"bridge": ["py.typed"]}

    found = forgotten(tmp_path, ["bridge", "twiml"], data)
    assert [it.as_posix() for it in found] == names[1:]
    everything = ["bridge", "bridge.new", "bridge.new.deep", "twiml"]
    assert forgotten(tmp_path, everything, {**data, "twiml": ["*.json"]}) == []


@cache
def imported() -> dict[str, set[str]]:
    """The distributions that the code imports: name -> the files that import it."""
    found: dict[str, set[str]] = {}
    owners = packages_distributions()
    # A computed import is that of a user's module. The standard library of 3.14 has
    # `compression`.
    known = {*TOPS, *sys.stdlib_module_names, "compression", "(computed)"}
    for path in sorted(it for it in CODE if it.suffix == ".py"):
        for each in imports((ROOT / path).read_text("utf-8"), path):
            if each.top in known:
                continue
            for owner in owners.get(each.top, [each.top]):
                name = str(canonicalize_name(owner))
                found.setdefault(COMES_WITH.get(name, name), set()).add(str(path))
    return found


def declared(lines: list[str]) -> set[str]:
    """The names of the requirements that apply to this Python: some have no audioop."""
    needed = [
        it for it in map(Requirement, lines) if not it.marker or it.marker.evaluate()
    ]
    return {str(canonicalize_name(it.name)) for it in needed}


def test_every_imported_distribution_is_declared() -> None:
    """The code does not depend on a distribution that only another dependency happens
    to install, and requires none that it does not use."""
    found = imported()
    needed = declared(PROJECT["dependencies"])
    extras = declared(
        [it for extra in PROJECT["optional-dependencies"].values() for it in extra]
    )
    undeclared = {name: found[name] for name in found.keys() - needed - extras}

    assert not undeclared
    assert needed <= found.keys()


def test_only_the_voice_of_the_fakes_is_an_extra() -> None:
    """Apart from their voice, the fakes need nothing that `serve` does not need, so no
    other extra is necessary."""
    found = imported()
    by_fakes_only = {
        name
        for name, users in found.items()
        if all(user.startswith("bridge/sim/") for user in users)
    }

    assert by_fakes_only == declared(PROJECT["optional-dependencies"]["voice"])


def test_the_classifiers_list_the_tested_pythons() -> None:
    prefix = "Programming Language :: Python :: 3."
    found = [it for it in PROJECT["classifiers"] if it.startswith(prefix)]

    assert tuple(it.rpartition(" ")[2] for it in found) == PYTHONS
