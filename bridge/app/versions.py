"""Versions of the bridge and of what it runs on, from their packages' metadata."""

from importlib import metadata

PACKAGE = "twilio-realtime-bridge"


def version_of(package: str) -> str:
    """Its version; a phrase that says so where it is not installed as a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed as a package"  # run from its sources
