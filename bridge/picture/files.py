"""The files of a call beside its trace: their names, and who can read them."""

import errno
import os
from pathlib import Path
from typing import Literal, get_args

RecordPart = Literal["trace", "audio", "page", "report"]
"""What can be kept of a call: its trace, and files beside it."""
RECORD_PARTS: tuple[RecordPart, ...] = get_args(RecordPart)

PAGE_SUFFIX = ".call.html"
SVG_SUFFIX = ".call.svg"
WAV_SUFFIX = ".call.wav"
REPORT_SUFFIX = ".call.json"
SUFFIXES = (PAGE_SUFFIX, SVG_SUFFIX, WAV_SUFFIX, REPORT_SUFFIX)

UNFINISHED = (".", ".new")
"""What the name of a file has around it while it is written."""


def beside(trace: Path, suffix: str) -> Path:
    """The file of this kind that belongs to a trace."""
    return trace.with_name(trace.name.partition(".trace")[0] + suffix)


def write_private(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Writes a file that only its owner can read: it contains what people said. A file
    that is there is replaced, at once and as a whole. OSError: it cannot be written, or
    it is there and must not be replaced; then nothing is left of the new content."""
    if not replace and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    new = path.with_name(path.name.join(UNFINISHED))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    descriptor = os.open(new, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # an earlier file may have other rights
            file.write(content)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
