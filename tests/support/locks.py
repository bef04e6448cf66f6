"""Reads the versions that a lock file pins, without the hashes."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {
    "python_version": "3.13",
    "python_full_version": "3.13.0",
    "sys_platform": "linux",
    "os_name": "posix",
    "platform_system": "Linux",
}
"""The environment of the image, for markers."""


def locked(name: str) -> dict[str, Requirement]:
    """The pins of a lock, by the canonical name of the package."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pins = [line.removesuffix(" \\") for line in lines if line[:1] not in "# "]
    return {canonicalize_name(it.name): it for it in map(Requirement, pins)}


def pinned_for(environment: dict[str, str] | None = None) -> dict[str, str]:
    """What requirements.lock installs in `environment` (None: in this Python): name ->
    version."""
    return {
        name: str(it.specifier).removeprefix("==")
        for name, it in locked("requirements.lock").items()
        if it.marker is None or it.marker.evaluate(environment)
    }
