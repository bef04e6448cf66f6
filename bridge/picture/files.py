"""The files of a call beside its trace: their names, and who can read them."""

import os
from pathlib import Path

PAGE_SUFFIX = ".call.html"
SVG_SUFFIX = ".call.svg"
WAV_SUFFIX = ".call.wav"


def beside(trace: Path, suffix: str) -> Path:
    """The file of this kind that belongs to a trace."""
    return trace.with_name(trace.name.partition(".trace")[0] + suffix)


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read: it contains what people said. A file
    that is there is replaced, at once and as a whole. OSError: it cannot be written."""
    new = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(new, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # an earlier file may have other rights
        file.write(content)
    new.replace(path)
