"""Writes requirements.lock: what pip resolves for `.[voice,dev]` on the given Pythons.

    python scripts/lock.py python3.11 python3.13 > requirements.lock

Oldest Python first: each later one is held to the versions already chosen, so one
name has one version everywhere. Names and versions only; where they are fetched
from is the business of whoever installs them.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("voice", "dev")
HEADER = """\
# Everything `.[voice,dev]` needs, for Python 3.11 to 3.13. Written by `make lock`.
# As a constraints file (pip install -c) it pins an installation without dev too.
"""


def direct_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def version_of(python: str) -> tuple[int, int]:
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            f"{python} does not run; name the Pythons: make lock LOCK_PYTHONS='...'"
        ) from None
    major, minor = done.stdout.split()
    return int(major), int(minor)


def resolve(
    python: str, wanted: Iterable[Requirement], held: dict[str, str]
) -> dict[str, str]:
    """What pip would install into a fresh venv of this Python: name -> version."""
    with tempfile.TemporaryDirectory() as folder:
        venv, report = Path(folder, "venv"), Path(folder, "report.json")
        constraints = Path(folder, "held.txt")
        constraints.write_text("".join(f"{n}=={v}\n" for n, v in held.items()))
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        options = ["--dry-run", "--report", str(report), "-c", str(constraints)]
        options += ["--only-binary", ":all:"]  # nothing of theirs runs at install
        names = [str(requirement) for requirement in wanted]
        subprocess.run([*pip, *options, *names], check=True, stdout=sys.stderr)
        installs = json.loads(report.read_text("utf-8"))["install"]
    metadata = [install["metadata"] for install in installs]
    return {canonicalize_name(each["name"]): each["version"] for each in metadata}


def marker_of(
    name: str,
    resolved: dict[tuple[int, int], dict[str, str]],
    declared: dict[str, str],
) -> str:
    """Where the line applies: as pyproject says, else the Pythons it was found on."""
    if name in declared:
        return f" ; {declared[name]}"
    versions = sorted(resolved)
    found = [name in resolved[version] for version in versions]
    if all(found):
        return ""
    if found == sorted(found):
        first = versions[found.index(True)]
        return f' ; python_version >= "{first[0]}.{first[1]}"'
    if found == sorted(found, reverse=True):
        end = versions[found.index(False)]
        return f' ; python_version < "{end[0]}.{end[1]}"'
    raise SystemExit(f"{name} is needed on some Pythons in the middle only: {found}")


def main(pythons: list[str]) -> None:
    if not pythons:
        raise SystemExit("usage: lock.py PYTHON [PYTHON ...], such as python3.11")
    wanted = direct_requirements()
    resolved: dict[tuple[int, int], dict[str, str]] = {}
    pins: dict[str, str] = {}
    for python in sorted(pythons, key=version_of):
        found = resolve(python, wanted, pins)
        resolved[version_of(python)] = found
        pins |= found
    declared: dict[str, str] = {
        canonicalize_name(each.name): str(each.marker)
        for each in wanted
        if each.marker is not None
    }
    lines = (
        f"{n}=={pins[n]}{marker_of(n, resolved, declared)}\n" for n in sorted(pins)
    )
    sys.stdout.write(HEADER + "".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
