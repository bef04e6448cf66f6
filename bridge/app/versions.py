"""Versions of the bridge and of what it runs on, from their packages' metadata."""

from importlib import metadata

PACKAGE = "twilio-realtime-bridge"


def version_of(package: str) -> str:
    """The version of a package; a phrase if it is not installed as a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed as a package"  # it runs from its sources
