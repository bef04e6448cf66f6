"""Is what is installed what was chosen, and is nothing known against it?

    .venv/bin/python -m scripts.audit        (make audit)

Looks at the environment whose Python runs it, and at requirements.lock. Ends with 0
when all is well, 1 when something is wrong, and 75 when nothing was found wrong but no
database of advisories answered: then nobody has looked whether a version is known to
be dangerous.

It finds slips, halves and edits by hand; who can rewrite a package can rewrite its
RECORD, too.
"""

import argparse
import base64
import csv
import hashlib
import http.client
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from scripts.lock import direct_requirements

ROOT = Path(__file__).resolve().parent.parent
NOT_CHECKED = 75  # EX_TEMPFAIL

ADVISORIES = "https://api.osv.dev/v1"
"""The database behind PyPI's own advisories, GitHub's and others'."""

ANSWER_SECONDS = 20.0

KNOWN_BAD = "pyyaml==5.3"
"""Asked with the others: whoever knows nothing against it (a proxy, an empty mirror) is
not believed about the rest."""

ACCEPTED: dict[str, str] = {}
"""Advisories that do not concern us: id -> why."""

OF_THE_VENV = {"pip", "setuptools", "wheel"}
"""Come with the Python, not from the lock."""

_PIN = re.compile(r"[a-z0-9-]+==[A-Za-z0-9.!+]+( ; [^;#@]+)?")


class NotAnsweredError(Exception):
    """No database of advisories, or none that can be believed."""


def pins_of(text: str) -> list[Requirement]:
    """The lock's lines that are as they should be: a name, a version, perhaps where."""
    lines = [line for line in text.splitlines() if _PIN.fullmatch(line)]
    found = []
    for line in lines:
        try:
            found.append(Requirement(line))
        except InvalidRequirement:  # of the marker
            continue
    return found


def version_of(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix("==")


def lock_mistakes(text: str, direct: Sequence[Requirement]) -> Iterator[str]:
    """Something other than plain pins, or not what pyproject.toml asks for."""
    pins = pins_of(text)
    lines = [it for it in text.splitlines() if it.strip() and it[0] != "#"]
    understood = {f"{pin.name}{pin.specifier}" for pin in pins}
    for line in lines:
        if line.split(" ;")[0] not in understood:
            yield f"requirements.lock: no plain pin (name==version): {line.strip()}"
    names = [pin.name for pin in pins]
    for name in sorted({it for it in names if names.count(it) > 1}):
        yield f"requirements.lock: {name} is there twice"
    locked = {pin.name: version_of(pin) for pin in pins}
    for wanted in direct:
        version = locked.get(canonicalize_name(wanted.name))
        if version is None:
            yield f"requirements.lock: lacks {wanted.name} of pyproject.toml: make lock"
        elif not wanted.specifier.contains(version, prereleases=True):
            yield f"requirements.lock: {version} is not {wanted}: make lock"


def other_packages(
    pins: Sequence[Requirement], found: Sequence[Distribution], own: str
) -> Iterator[str]:
    """Installed and not locked, locked and not installed, or in another version."""
    here = {str(canonicalize_name(it.metadata["Name"])): it.version for it in found}
    locked: dict[str, str] = {
        pin.name: version_of(pin)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    for name in sorted(here.keys() - locked.keys() - OF_THE_VENV - {own}):
        yield f"{name} {here[name]} is installed, and in no line of requirements.lock"
    for name in sorted(locked):
        if name not in here:
            yield f"{name} {locked[name]} is locked, and not installed"
        elif here[name] != locked[name]:
            yield f"{name} is installed as {here[name]}, and locked as {locked[name]}"


def other_files(found: Sequence[Distribution], site: Path) -> Iterator[str]:
    """Files that are not as their package brought them, or that none brought: a .pth or
    a module that lies there runs with everything else."""
    brought = set()
    for package in found:
        name, record = package.metadata["Name"], package.read_text("RECORD")
        if not record:
            yield f"{name} has no RECORD of its files"
        # Not package.files: from Python 3.12 on it is silent about those that are gone.
        for file, expected, _ in csv.reader((record or "").splitlines()):
            path = Path(str(package.locate_file(file))).resolve()
            brought.add(path)
            if not expected:  # the RECORD itself; bytecode
                continue
            how, _, digest = expected.partition("=")
            try:
                is_so = hashlib.new(how, path.read_bytes()).digest()
            except OSError:
                yield f"{name}: {file} is gone"
                continue
            if base64.urlsafe_b64encode(is_so).rstrip(b"=").decode() != digest:
                yield f"{name}: {file} is not as it was installed"
    for path in sorted(site.rglob("*")):
        if "__pycache__" in path.parts or not path.is_file():
            continue
        if path.resolve() not in brought:
            yield f"{path.relative_to(site)} belongs to no package"


def broken_requirements() -> Iterator[str]:
    """Packages whose own requirements are not met."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "check"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        yield from (done.stdout + done.stderr).splitlines()


def advisories(pins: Sequence[Requirement], database: str) -> Iterator[str]:
    """What is publicly known against these versions. Raises NotAnsweredError."""
    asked = [Requirement(KNOWN_BAD), *pins]
    queries = [
        {
            "package": {"name": pin.name, "ecosystem": "PyPI"},
            "version": version_of(pin),
        }
        for pin in asked
    ]
    answer = _ask(f"{database}/querybatch", {"queries": queries})
    try:
        ids = [[it["id"] for it in one.get("vulns", ())] for one in answer["results"]]
    except (KeyError, TypeError, AttributeError):
        raise NotAnsweredError("the answer is not that of a database") from None
    if len(ids) != len(asked) or not ids[0]:
        raise NotAnsweredError(f"it knows nothing of {KNOWN_BAD}")
    for pin, against in zip(pins, ids[1:], strict=True):
        for each in against:
            told = _ask(f"{database}/vulns/{each}")
            also = {each, *told.get("aliases", ())}
            if not told.get("withdrawn") and not also & ACCEPTED.keys():
                summary = told.get("summary") or "no summary"
                yield f"{pin.name} {version_of(pin)}: {each}: {summary}"


def _ask(url: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - ADVISORIES, or --advisories
        url,
        data=None if question is None else json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as it:  # noqa: S310
            answer = json.load(it)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotAnsweredError(str(error) or type(error).__name__) from None
    if not isinstance(answer, dict):
        raise NotAnsweredError("the answer is not that of a database")
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Audits what is installed.")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--advisories", default=ADVISORIES, metavar="URL")
    given = parser.parse_args(arguments)

    text = given.lock.read_text("utf-8")
    pins = pins_of(text)
    site = Path(sysconfig.get_path("purelib"))
    found = sorted(distributions(path=[str(site)]), key=lambda it: it.metadata["Name"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    mistakes = [
        *lock_mistakes(text, direct_requirements()),
        *other_packages(pins, found, project["name"]),
        *other_files(found, site),
        *broken_requirements(),
    ]
    return verdict(mistakes, pins, given.advisories)


def verdict(mistakes: Sequence[str], pins: Sequence[Requirement], database: str) -> int:
    """Prints what is wrong, of that which was found and of that which is known."""
    found, unanswered = list(mistakes), ""
    try:
        found += advisories(pins, database)
    except NotAnsweredError as error:
        unanswered = str(error)
    for each in found:
        print(each)
    if not mistakes:
        print(f"ok: what is installed are the {len(pins)} locked packages, unchanged")
    if unanswered:
        print("no advisory database could be reached: no advisory was looked up")
        print(f"  {database}: {unanswered}")
    elif len(found) == len(mistakes):
        print("ok: no advisory is known against any of them")
    return 1 if found else NOT_CHECKED if unanswered else 0


if __name__ == "__main__":
    sys.exit(main())
